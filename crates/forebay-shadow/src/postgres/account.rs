//! What both servers say of themselves, and of each other.
//!
//! Which standby a commit waits for is a question of names (`synchronous_standby_names`), and a
//! standby's name is what it connects with: `application_name` of `primary_conninfo`, else
//! `cluster_name`, else `walreceiver`. The standby is asked for it, since it alone knows with which
//! connection it receives; the primary, how many are called so: `pg_basebackup`, `pg_receivewal` and
//! standbys of others confirm commits as well, if the name is theirs, too.

use std::time::{Duration, Instant};

use super::client::Rows;

pub(crate) const SHADOW: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
     greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()) - '0/0', \
     (SELECT status FROM pg_catalog.pg_stat_wal_receiver), \
     (SELECT (extract(epoch FROM pg_catalog.clock_timestamp() - last_msg_receipt_time) * 1000)::bigint \
        FROM pg_catalog.pg_stat_wal_receiver), \
     pg_catalog.current_setting('synchronous_standby_names'), \
     (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_retrieve_retry_interval'), \
     (SELECT conninfo FROM pg_catalog.pg_stat_wal_receiver)";

pub(crate) const PRIMARY: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
     CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_lsn() - '0/0' END, \
     pg_catalog.current_setting('synchronous_standby_names'), \
     pg_catalog.current_setting('synchronous_commit'), \
     (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(application_name, coalesce( \
         state = 'streaming' AND sync_state IN ('sync', 'quorum'), false))), '[]') \
       FROM pg_catalog.pg_stat_replication), \
     (SELECT pid || ' ' || coalesce(wait_event, '') FROM pg_catalog.pg_stat_activity \
       WHERE backend_type = 'checkpointer')";

/// A standby's account of itself.
#[derive(Debug)]
pub(crate) struct Shadow {
    pub(crate) received: u64,
    pub(crate) streams: bool,
    pub(crate) heard: Option<Duration>,
    pub(crate) synchronous: bool,
    /// How long it waits for its primary before it heeds that it is to take over, at worst.
    pub(crate) retries: Option<Duration>,
    /// What it is called by its primary.
    pub(crate) name: Option<String>,
}

impl Shadow {
    /// None within, when it is no standby.
    pub(crate) fn of(rows: Rows) -> Option<Option<Self>> {
        let mut row = rows.into_iter().next()?.into_iter();
        let standby = row.next()??;
        let received = row.next()?.and_then(|bytes| bytes.parse().ok());
        let status = row.next()?;
        let heard = row.next()?.and_then(|time| time.parse().ok());
        let names = row.next()??;
        let retries = row.next()?.and_then(|time| time.parse().ok());
        let name = row.next()?.as_deref().and_then(name_within);
        Some((standby == "t").then(|| Self {
            received: received.unwrap_or_default(),
            streams: status.as_deref() == Some("streaming"),
            heard: heard.map(Duration::from_millis),
            synchronous: !names.is_empty(),
            retries: retries.map(Duration::from_millis),
            name,
        }))
    }
}

/// A primary's.
#[derive(Debug)]
pub(crate) struct Primary {
    pub(crate) standby: bool,
    pub(crate) written: u64,
    /// Whom commits wait for.
    pub(crate) names: String,
    pub(crate) commit: String,
    /// Who receives its log, and whether commits wait for that one now.
    receivers: Vec<(String, bool)>,
    /// Its checkpointer, and where that waits.
    pub(crate) checkpointer: Option<(u32, String)>,
    /// When it was asked.
    pub(crate) asked: Instant,
}

impl Primary {
    /// What it answered, when it was asked at that moment.
    pub(crate) fn of(rows: Rows, asked: Instant) -> Option<Self> {
        let mut row = rows.into_iter().next()?.into_iter();
        Some(Self {
            asked,
            standby: row.next()?? == "t",
            written: row
                .next()?
                .and_then(|bytes| bytes.parse().ok())
                .unwrap_or_default(),
            names: row.next()??,
            commit: row.next()??,
            receivers: serde_json::from_str(&row.next()??).ok()?,
            checkpointer: row.next()?.as_deref().and_then(|said| {
                let (pid, waits) = said.split_once(' ')?;
                Some((pid.parse().ok()?, waits.to_owned()))
            }),
        })
    }

    /// Whether commits wait for the standby of a name.
    ///
    /// # Errors
    /// When the name does not say which one that is.
    pub(crate) fn waits_for(&self, name: &str, own: &str) -> Result<bool, String> {
        // The server compares without case.
        let same = self
            .receivers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let mut same = same.map(|(_, waits)| *waits);
        match (same.next(), same.count()) {
            _ if name == "*" => Err(format!("it is called `*`, which means everybody; {REMEDY}")),
            (None, _) => Err(format!("{own} knows of nobody who is called `{name}`")),
            (Some(waits), 0) => Ok(waits),
            (Some(_), others) => Err(format!(
                "{others} more than it are called `{name}` by {own}, and may confirm its commits; {REMEDY}"
            )),
        }
    }
}

const REMEDY: &str = "set an application_name of its own in its primary_conninfo, without spaces";

/// The name within what a standby connects with, which quotes nothing.
fn name_within(conninfo: &str) -> Option<String> {
    let value = |key: &str| {
        let mut words = conninfo.split(' ');
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let name = value("application_name").or_else(|| value("fallback_application_name"))?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_what_the_server_takes() {
        let check = |conninfo, expected: Option<&str>| {
            assert_eq!(name_within(conninfo).as_deref(), expected, "{conninfo}");
        };
        check(
            "user=postgres host=127.0.0.1 fallback_application_name=walreceiver port=5432",
            Some("walreceiver"),
        );
        check(
            "fallback_application_name=walreceiver application_name=pg-b port=5432",
            Some("pg-b"),
        );
        check("user=postgres", None);
    }

    #[test]
    fn a_name_of_two_is_nobodys() {
        let primary = |receivers: &[(&str, bool)]| Primary {
            standby: false,
            written: 0,
            names: String::new(),
            commit: "on".to_owned(),
            receivers: receivers
                .iter()
                .map(|(name, waits)| ((*name).to_owned(), *waits))
                .collect(),
            checkpointer: None,
            asked: Instant::now(),
        };
        let waits = |receivers: &[_]| primary(receivers).waits_for("b", "a");
        assert_eq!(waits(&[("B", true), ("pg_receivewal", true)]), Ok(true));
        assert_eq!(waits(&[("b", false)]), Ok(false));
        assert!(waits(&[]).is_err());
        assert!(waits(&[("b", true), ("B", false)]).is_err());
        assert!(primary(&[("*", true)]).waits_for("*", "a").is_err());
    }
}
