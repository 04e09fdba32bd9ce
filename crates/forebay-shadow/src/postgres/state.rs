//! What a session is beside its transactions: settings, prepared statements, channels.
//!
//! Problem: after a loss, the session on the new primary has to be as the old one was.
//!
//! Approach: statements that are prepared by the protocol pass through here. Everything else the
//! server itself is asked for, whenever a text gives reason to, and before the client hears that
//! the text was carried out: what was rolled back or set for a transaction only is then right by
//! itself. Only settings that the server does not list are remembered by their names.
//!
//! Properties: what cannot be carried over is known and named; what is not known for certain counts
//! as such.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::client::Rows;
use super::frame;
use super::sql::{self, Class, identifier, literal};

/// Most bytes of prepared statements of one session, with their names and what is known of them.
const PREPARED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a prepared statement takes beside its name and its text.
const PREPARED_BYTES_MIN: usize = 256;
/// Most names of settings that the server does not list.
pub(crate) const NAMES_MAX: usize = 256;
/// Obstacles that are named in an error.
const NAMED_MAX: usize = 8;

/// A statement that was prepared by the protocol.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The message; none where it was too long to be kept.
    pub(crate) message: Option<Vec<u8>>,
    pub(crate) class: Class,
}

/// What would have to be carried over.
#[derive(Debug, Default)]
pub(crate) struct State {
    prepared: BTreeMap<Vec<u8>, Arc<Prepared>>,
    bytes: usize,
    /// There were more than are kept.
    unkept: bool,
    settings: Vec<(String, String)>,
    channels: Vec<String>,
    prepared_in_sql: Vec<String>,
    obstacles: Vec<String>,
    /// Settings that the server does not list.
    names: BTreeSet<String>,
    hidden: bool,
    /// A text that may have changed it was carried out since it was last asked for.
    pub(crate) stale: bool,
    /// It stays changed if the transaction that goes on is rolled back.
    lasting: bool,
}

impl Prepared {
    fn bytes(&self, name: &[u8]) -> usize {
        let message = self.message.as_ref().map_or(0, Vec::len);
        PREPARED_BYTES_MIN + name.len() + message + self.class.bytes()
    }
}

/// Where a text was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a transaction that goes on.
    Within,
    /// In none, or in one that it ended.
    Outside,
}

impl State {
    pub(crate) fn prepare(&mut self, name: Vec<u8>, mut prepared: Arc<Prepared>) {
        self.close(&name);
        if self.bytes + prepared.bytes(&name) > PREPARED_BYTES_MAX {
            prepared = Arc::new(Prepared {
                message: None,
                class: prepared.class.clone(),
            });
        }
        let bytes = prepared.bytes(&name);
        if self.bytes + bytes > PREPARED_BYTES_MAX {
            self.unkept = true;
            return;
        }
        self.bytes += bytes;
        self.prepared.insert(name, prepared);
    }

    pub(crate) fn close(&mut self, name: &[u8]) {
        if let Some(before) = self.prepared.remove(name) {
            self.bytes -= before.bytes(name);
        }
    }

    /// There are prepared statements of which nothing is known.
    pub(crate) fn is_unkept(&self) -> bool {
        self.unkept
    }

    pub(crate) fn prepared(&self, name: &[u8]) -> Option<&Arc<Prepared>> {
        self.prepared.get(name)
    }

    /// A text of this class was carried out.
    pub(crate) fn note(&mut self, class: &Class, place: Place) {
        self.stale |= class.changes_session;
        // What was changed in a transaction that has ended by now may be there for good.
        self.lasting |=
            class.lasting && class.changes_session || self.stale && place == Place::Outside;
        self.hidden |= class.hidden_setting;
        for name in &class.settings {
            if self.names.len() < NAMES_MAX {
                self.names.insert(name.clone());
            } else if !self.names.contains(name) {
                self.hidden = true;
            }
        }
    }

    /// The transaction that went on is lost, and what it changed with it.
    pub(crate) fn lose_transaction(&mut self) {
        self.stale = self.lasting;
    }

    /// The latest text that changed it is to be carried out again: it has changed nothing yet.
    pub(crate) fn begin_redo(&mut self) {
        self.stale = false;
        self.lasting = false;
    }

    /// That text is under way, outside any transaction.
    pub(crate) fn redone(&mut self) {
        self.stale = true;
        self.lasting = true;
    }

    /// The question how the session stands; its user is who logged in.
    pub(crate) fn question(&self, user: &str) -> String {
        let names: Vec<String> = self.names.iter().map(|name| literal(name)).collect();
        format!(
            "SELECT 's', name, setting FROM pg_catalog.pg_settings \
               WHERE source = 'session' AND name NOT LIKE 'transaction%' \
             UNION ALL SELECT 's', 'session_authorization', session_user::text \
               WHERE session_user <> {user} \
             UNION ALL SELECT 's', 'role', pg_catalog.current_setting('role') \
               WHERE pg_catalog.current_setting('role') <> 'none' \
             UNION ALL SELECT 's', n, pg_catalog.current_setting(n, true) \
               FROM pg_catalog.unnest(ARRAY[{names}]::text[]) AS n \
               WHERE pg_catalog.current_setting(n, true) IS NOT NULL \
             UNION ALL SELECT 'l', c, NULL FROM pg_catalog.pg_listening_channels() AS c \
             UNION ALL SELECT 'p', name, CASE WHEN from_sql THEN statement END \
               FROM pg_catalog.pg_prepared_statements WHERE name <> 'forebay' \
             UNION ALL SELECT 'o', 'cursor WITH HOLD ' || name, NULL \
               FROM pg_catalog.pg_cursors WHERE is_holdable \
             UNION ALL SELECT 'o', 'temporary table ' || relname, NULL FROM pg_catalog.pg_class \
               WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind IN ('r', 'v', 'S', 'p') \
             UNION ALL SELECT 'o', 'advisory lock', NULL FROM pg_catalog.pg_locks \
               WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()",
            user = literal(user),
            names = names.join(", "),
        )
    }

    /// Takes the answer in; none where the server gave an error.
    pub(crate) fn answer(&mut self, rows: Option<Rows>) {
        self.settings.clear();
        self.channels.clear();
        self.prepared_in_sql.clear();
        self.obstacles.clear();
        self.stale = false;
        self.lasting = false;
        let Some(rows) = rows else {
            self.obstacles
                .push("a state that the server did not tell".to_owned());
            return;
        };
        let mut listed = BTreeSet::new();
        for row in rows {
            let mut row = row.into_iter().flatten();
            let (Some(kind), Some(name)) = (row.next(), row.next()) else {
                continue;
            };
            let value = row.next();
            if [Some(&name), value.as_ref()]
                .into_iter()
                .flatten()
                .any(|text| text.contains('\u{fffd}'))
            {
                self.obstacles.push("a text that is not UTF-8".to_owned());
                continue;
            }
            match (kind.as_str(), value) {
                ("s", value) => self.settings.push((name, value.unwrap_or_default())),
                ("l", _) => self.channels.push(name),
                ("p", None) => {
                    listed.insert(name.into_bytes());
                }
                ("p", Some(text)) => match sql::preparation(text.as_bytes(), &name) {
                    Some(text) => self
                        .prepared_in_sql
                        .push(String::from_utf8_lossy(text).into_owned()),
                    None => self.obstacles.push(format!("prepared statement {name}")),
                },
                _ => self.obstacles.push(name),
            }
        }
        let gone: Vec<Vec<u8>> = self
            .prepared
            .keys()
            .filter(|name| !name.is_empty() && !listed.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            self.close(&name);
        }
        self.unkept = listed.iter().any(|name| !self.prepared.contains_key(name));
    }

    /// What of it cannot be carried over, if anything.
    pub(crate) fn obstacles(&self) -> Option<String> {
        let mut all = self.obstacles.clone();
        if self.hidden {
            all.push("a setting whose name is a parameter".to_owned());
        }
        if self.stale {
            all.push("what the latest statement changed".to_owned());
        }
        let lost = self.prepared.iter().find(|(_, one)| one.message.is_none());
        if lost.is_some() {
            all.push("prepared statements that are too long to be kept".to_owned());
        }
        if self.unkept {
            all.push("more prepared statements than are kept".to_owned());
        }
        if all.is_empty() {
            return None;
        }
        let more = all.len().saturating_sub(NAMED_MAX);
        all.truncate(NAMED_MAX);
        if more > 0 {
            all.push(format!("and {more} more"));
        }
        Some(all.join(", "))
    }

    /// The messages that make another session like this one, with how many "ready for query" they
    /// are answered, and how many of these, at the end, may be errors.
    pub(crate) fn replay(&self) -> (Vec<u8>, usize, usize) {
        let mut out = Vec::new();
        let mut readies = 0;
        let mut query = |out: &mut Vec<u8>, sql: &str| {
            frame::put_query(out, sql.as_bytes());
            readies += 1;
        };
        let rank = |name: &str| match name {
            // What follows is read in this encoding.
            "client_encoding" => 0,
            "session_authorization" => 1,
            "role" => 3,
            _ => 2,
        };
        let mut settings: Vec<&(String, String)> = self.settings.iter().collect();
        settings.sort_by_key(|(name, _)| rank(name));
        for (name, value) in settings {
            let (name, value) = (literal(name), literal(value));
            query(
                &mut out,
                &format!("SELECT pg_catalog.set_config({name}, {value}, false)"),
            );
        }
        for channel in &self.channels {
            query(&mut out, &format!("LISTEN {}", identifier(channel)));
        }
        for text in &self.prepared_in_sql {
            query(&mut out, text);
        }
        let named = self.prepared.iter().filter(|(name, _)| !name.is_empty());
        let messages = named.filter_map(|(_, one)| one.message.as_deref());
        let before = out.len();
        for message in messages {
            out.extend_from_slice(message);
        }
        if out.len() > before {
            frame::put(&mut out, b'S', &[]);
            readies += 1;
        }
        // Clients seldom come back to the unnamed one, whose tables may be gone.
        let unnamed = self.prepared.get(b"".as_slice());
        let Some(message) = unnamed.and_then(|one| one.message.as_deref()) else {
            return (out, readies, 0);
        };
        out.extend_from_slice(message);
        frame::put(&mut out, b'S', &[]);
        (out, readies + 1, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [&str; 3]) -> Vec<Option<String>> {
        let value = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        values.map(value).to_vec()
    }

    fn prepared(text: &[u8]) -> Arc<Prepared> {
        Arc::new(Prepared {
            message: Some(text.to_vec()),
            class: Class::default(),
        })
    }

    #[test]
    fn the_answer_is_what_is_replayed() {
        let mut state = State::default();
        state.prepare(b"kept".to_vec(), prepared(b"[kept]"));
        state.prepare(b"gone".to_vec(), prepared(b"[gone]"));
        state.prepare(Vec::new(), prepared(b"[unnamed]"));
        state.note(&sql::classify(b"set my.x = 1"), Place::Outside);
        assert!(state.stale && state.obstacles().is_some());
        assert!(state.question("me").contains("'my.x'"));
        state.answer(Some(vec![
            row(["s", "role", "r"]),
            row(["s", "work_mem", "64"]),
            row(["l", "a\"b", ""]),
            row(["p", "kept", ""]),
            row(["p", "q", "insert into t values (1); prepare q as select 2"]),
        ]));
        assert_eq!(state.obstacles(), None);
        let (out, readies, loose) = state.replay();
        assert_eq!((readies, loose), (6, 1));
        let out = String::from_utf8_lossy(&out);
        let at = |text: &str| out.find(text);
        assert!(at("'work_mem'") < at("'role'") && at("'work_mem'").is_some());
        assert!(at("LISTEN \"a\"\"b\"").is_some());
        assert!(at("prepare q as select 2").is_some() && at("insert").is_none());
        assert!(at("[kept]").is_some() && at("[gone]").is_none() && at("[unnamed]").is_some());
    }

    #[test]
    fn what_cannot_be_carried_over_is_named() {
        let mut state = State::default();
        state.answer(Some(vec![row(["o", "temporary table t", ""])]));
        assert_eq!(state.obstacles().unwrap(), "temporary table t");
        state.answer(Some(
            (0..10).map(|_| row(["o", "advisory lock", ""])).collect(),
        ));
        assert!(state.obstacles().unwrap().ends_with("and 2 more"));
        state.answer(Some(vec![row(["s", "a.b", "\u{fffd}"])]));
        assert!(state.obstacles().is_some());
        state.answer(None);
        assert!(state.obstacles().is_some());
        state.answer(Some(Vec::new()));
        assert_eq!(state.obstacles(), None);
        let hides = sql::classify(b"select set_config($1, '', false)");
        state.note(&hides, Place::Outside);
        state.answer(Some(Vec::new()));
        assert!(state.obstacles().is_some());
    }

    #[test]
    fn what_a_lost_transaction_changed_is_lost_with_it() {
        let check = |texts: &[(&str, Place)], expected| {
            let mut state = State::default();
            for (text, place) in texts {
                state.note(&sql::classify(text.as_bytes()), *place);
            }
            state.lose_transaction();
            assert_eq!(state.obstacles().is_some(), expected, "{texts:?}");
            state.answer(Some(Vec::new()));
            state.lose_transaction();
            assert_eq!(state.obstacles(), None, "{texts:?}");
        };
        let (within, outside) = (Place::Within, Place::Outside);
        check(&[("set a.b = 1", within)], false);
        check(&[("set a.b = 1", outside)], true);
        // It was set before, and nobody has asked what came of it.
        check(&[("set a.b = 1", outside), ("begin", within)], true);
        check(&[("set a.b = 1", within), ("commit", outside)], true);
        check(&[("begin", within), ("set a.b = 1", within)], false);
        check(&[("select pg_advisory_lock(1)", within)], true);
        check(&[("prepare a as select 1", within)], true);
    }

    #[test]
    fn names_of_prepared_statements_are_bounded() {
        let mut state = State::default();
        for number in 0..100_000_u32 {
            let name = format!("a statement with number {number}").into_bytes();
            state.prepare(name, prepared(b""));
        }
        assert!(state.prepared.len() <= PREPARED_BYTES_MAX / PREPARED_BYTES_MIN);
        assert!(state.is_unkept() && state.obstacles().is_some());
        let names: Vec<Vec<u8>> = state.prepared.keys().cloned().collect();
        for name in &names {
            state.close(name);
        }
        assert_eq!(state.bytes, 0);
        assert!(state.obstacles().is_some(), "others are still there");
        state.answer(Some(vec![row(["p", "a statement with number 99999", ""])]));
        assert!(state.obstacles().is_some());
        state.answer(Some(Vec::new()));
        assert_eq!(state.obstacles(), None);
    }

    #[test]
    fn more_than_is_kept_cannot_be_carried_over() {
        let mut state = State::default();
        // Four of them, and one without its text.
        let text = vec![0; PREPARED_BYTES_MAX / 4 - 2 * PREPARED_BYTES_MIN];
        for number in 0..5_u8 {
            state.prepare(vec![number], prepared(&text));
        }
        assert!(state.obstacles().is_some());
        let kept = |state: &State| {
            let kept = state.prepared.values();
            kept.filter_map(|one| one.message.as_ref())
                .map(Vec::len)
                .sum::<usize>()
        };
        assert_eq!(kept(&state), 4 * text.len());
        state.close(&[4]);
        state.prepare(vec![1], prepared(&text));
        assert_eq!(state.obstacles(), None);
        let long = Prepared {
            message: None,
            class: Class::default(),
        };
        state.prepare(vec![1], Arc::new(long));
        assert!(state.obstacles().is_some());
    }
}
