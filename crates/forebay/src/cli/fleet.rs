//! `forebay fleet`: the hosts that share applications.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use forebay_api as api;
use forebay_api::Client;
use forebay_core::fleet::HostName;

use super::fleet_link::LinkCommand;
use super::{Failure, cores, memory};
use crate::output::{Output, numbers, table, utc, words};

/// What to do with the fleet.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Show how this host stands in the fleet
    Status,
    /// List the hosts that are there, with what they have room for
    Hosts,
    /// Have a host take no more applications; those that are there stay
    Cordon {
        /// The host
        host: HostName,
    },
    /// Have a host take applications again
    Uncordon {
        /// The host
        host: HostName,
    },
    /// Have a host take no more applications, and move away all that can, one after the other
    ///
    /// Goes on when this command is interrupted, and when the daemon is started again. Asked for once more it
    /// goes on with those that could not leave; `uncordon` ends it.
    Drain {
        /// The host; this one unless given
        host: Option<HostName>,
        /// Begin it and do not wait for its end
        #[arg(long)]
        detach: bool,
        /// Only show how far this host is left
        #[arg(long, conflicts_with_all = ["host", "detach"])]
        show: bool,
    },
    /// The same as `forebay move`: move an app to another host, or show moves
    Move(super::moves::MoveArgs),
    #[command(flatten)]
    Link(LinkCommand),
}

pub(super) async fn run(
    command: FleetCommand,
    client: &Client,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        FleetCommand::Status => {
            let fleet: api::Fleet = client.get("/v1/fleet").await?;
            output.show(&fleet, status)?;
        }
        FleetCommand::Hosts => {
            let hosts: api::FleetHosts = client.get("/v1/fleet/hosts").await?;
            output.show(&hosts, list_now)?;
        }
        FleetCommand::Cordon { host } => ask(client, output, &host, "cordon").await?,
        FleetCommand::Uncordon { host } => ask(client, output, &host, "uncordon").await?,
        FleetCommand::Drain { show: true, .. } => super::drain::show(client, output).await?,
        FleetCommand::Drain { host, detach, .. } => {
            super::drain::run(client, output, host.as_ref(), detach).await?;
        }
        FleetCommand::Move(args) => super::moves::run(args, client, output).await?,
        FleetCommand::Link(_) => unreachable!("it was carried out without the daemon"),
    }
    Ok(())
}

async fn ask(
    client: &Client,
    output: &mut Output,
    host: &HostName,
    what: &str,
) -> Result<(), Failure> {
    let uri = format!("/v1/fleet/hosts/{host}/{what}");
    super::done(client.post(&uri, &()).await?, output)
}

fn now_unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(unix.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// How it stands, in a few words.
pub(super) fn standing(fleet: &api::Fleet) -> String {
    let mut text = match fleet.lease_seconds {
        Some(left) => format!("{}, a member for {left:.0} s more at least", fleet.host),
        None => format!("{}, no member now", fleet.host),
    };
    if fleet.cordoned {
        text.push_str(", takes no more applications");
    }
    if let (Some(since), Some(why)) = (fleet.lost_since_unix_ms, &fleet.lost) {
        write!(
            text,
            "; out of reach since {} UTC, apps go on and nothing moves: {why}",
            utc(since)
        )
        .ok();
    }
    text
}

/// How this host stands among them, for people.
pub(crate) fn status(fleet: &api::Fleet) -> String {
    let owns = match fleet.owns.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let lines = [
        ("host", standing(fleet)),
        ("coordinator", fleet.coordinator.clone()),
        ("hosts", fleet.hosts.to_string()),
        ("owns", owns),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        writeln!(text, "{name:<12} {value}").ok();
    }
    if !fleet.apps.is_empty() {
        let rows: Vec<[String; 5]> = fleet.apps.iter().map(owned).collect();
        let columns = [
            words("APP"),
            words("HOST"),
            numbers("EPOCH"),
            words("STATE"),
            words("MOVES"),
        ];
        write!(text, "\n{}", table(columns, &rows)).ok();
    }
    text
}

fn owned(app: &api::FleetApp) -> [String; 5] {
    let state = if app.runs {
        "was let run"
    } else {
        "given, not begun"
    };
    [
        app.app.clone(),
        app.owner.clone(),
        app.epoch.to_string(),
        state.to_owned(),
        app.moves.clone().unwrap_or_default(),
    ]
}

/// The members as of now, for people.
pub(crate) fn list_now(hosts: &api::FleetHosts) -> String {
    list(hosts, now_unix_ms())
}

fn list(hosts: &api::FleetHosts, now_unix_ms: u64) -> String {
    if hosts.hosts.is_empty() {
        return "no hosts are members now; `forebay fleet status` says why this one is not"
            .to_owned();
    }
    let rows: Vec<[String; 9]> = hosts
        .hosts
        .iter()
        .map(|host| row(host, now_unix_ms))
        .collect();
    table(
        [
            words("HOST"),
            words("STATE"),
            numbers("CPUS"),
            numbers("NEEDED"),
            numbers("MEMORY"),
            numbers("NEEDED"),
            numbers("APPS"),
            words("VERSION"),
            words("ADDRESS"),
        ],
        &rows,
    )
}

/// After this a host has missed several of its own publications, or its clock is another one.
const STALE_SECONDS: u64 = 60;

fn row(host: &api::FleetHost, now_unix_ms: u64) -> [String; 9] {
    let state = match host.cordoned {
        true => "cordoned",
        false => "open",
    };
    let age = now_unix_ms.abs_diff(host.time_unix_ms) / 1000;
    let state = match age > STALE_SECONDS {
        true => format!("{state}, clock or news {age} s off"),
        false => state.to_owned(),
    };
    [
        host.host.clone(),
        state,
        cores(host.capacity.cpus),
        cores(host.needed.cpus),
        memory(host.capacity.memory_bytes),
        memory(host.needed.memory_bytes),
        host.apps.len().to_string(),
        host.version.clone(),
        host.address.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_lost_the_fleet_says_since_when_and_why() {
        let fleet = api::Fleet {
            host: "a".to_owned(),
            coordinator: "etcd at http://127.0.0.1:2379".to_owned(),
            lease_seconds: None,
            lost_since_unix_ms: Some(1_735_689_599_000),
            lost: Some(
                "renew the lease at etcd at http://127.0.0.1:2379: no answer in time".to_owned(),
            ),
            cordoned: true,
            hosts: 2,
            owns: vec!["web".to_owned()],
            apps: [("web", true, None), ("shop", false, Some("to b: awaiting"))]
                .map(|(app, runs, moves)| api::FleetApp {
                    app: app.to_owned(),
                    owner: if runs { "a" } else { "b" }.to_owned(),
                    epoch: 4,
                    runs,
                    moves: moves.map(str::to_owned),
                })
                .into(),
        };
        assert_eq!(
            status(&fleet),
            "host         a, no member now, takes no more applications; out of reach since \
             2024-12-31 23:59:59 UTC, apps go on and nothing moves: renew the lease at etcd at \
             http://127.0.0.1:2379: no answer in time\n\
             coordinator  etcd at http://127.0.0.1:2379\n\
             hosts        2\n\
             owns         web\n\n\
             APP   HOST  EPOCH  STATE             MOVES\n\
             web   a         4  was let run\n\
             shop  b         4  given, not begun  to b: awaiting\n"
        );
    }

    #[test]
    fn hosts_are_a_table() {
        let room = |cpus, mib: u64| api::FleetRoom {
            cpus,
            memory_bytes: mib << 20,
        };
        let host = |name: &str, cordoned: bool, age_s: u64| api::FleetHost {
            host: name.to_owned(),
            version: "0.1.0".to_owned(),
            address: (!cordoned).then(|| "10.0.0.5:9476".to_owned()),
            cordoned,
            capacity: room(4.0, 2048),
            needed: room(1.5, 512),
            room: std::collections::BTreeMap::new(),
            apps: vec!["web".to_owned()],
            time_unix_ms: 1_000_000 - age_s * 1000,
        };
        let hosts = api::FleetHosts {
            hosts: vec![host("a", false, 2), host("b", true, 600)],
        };
        let text = list(&hosts, 1_000_000);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].starts_with("a     open "), "{text}");
        assert!(lines[1].ends_with("0.1.0    10.0.0.5:9476"), "{text}");
        assert!(
            lines[2].contains("cordoned, clock or news 600 s off"),
            "{text}"
        );
        assert!(lines[2].ends_with("-"), "{text}");
    }
}
