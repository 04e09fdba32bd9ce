//! `forebay update fleet`: the hosts of the fleet, a few at a time.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use forebay_api as api;
use forebay_api::Client;
use forebay_core::fleet::HostName;

use super::update::{OrderArgs, request_in};
use super::{Exit, Failure};
use crate::output::{Output, numbers, table, utc, words};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(500);
/// How long this host may be away while it is watched from it: its daemon begins anew, or etcd does.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// How long the coordinator may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// Updates of several hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetUpdateCommand {
    /// Run a command that updates each host, a few at a time; stops after the first that is not well
    ///
    /// Each host runs it as by `forebay update run`. It goes on when this command is interrupted, and whatever
    /// becomes of this host.
    Run(Box<FleetRunArgs>),
    /// Show how it stands, who may be away now, and what to type next
    Status,
    /// Have no more hosts begin; those that update come to their end
    Abort,
    /// Go on after a host was not well: try it again, or leave it out
    Resume {
        /// Leave this host out; may be given several times
        #[arg(long, value_name = "HOST")]
        without: Vec<HostName>,
    },
    /// Free the slot of a FleetLock client that does not come back
    Release {
        /// The identity that it gave, as `status` shows it
        id: String,
    },
}

/// What is wanted, where, and when.
#[derive(Debug, Args)]
pub(crate) struct FleetRunArgs {
    #[command(flatten)]
    order: OrderArgs,

    /// Hosts that may be away at once, whoever updates them
    #[arg(long, value_name = "N", default_value_t = 1)]
    at_once: u32,

    /// A host, in the order in which they begin; may be given several times; all that are there unless given
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<HostName>,

    /// The group whose slots they take; 'default' unless given
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// Begin only in a window that opens then, as a timer of systemd or a crontab has it: 'Sat 02:00'
    #[arg(long, value_name = "TIME", requires = "lasts")]
    when: Option<String>,

    /// How long that window is open, in seconds
    #[arg(long = "for", id = "lasts", value_name = "S", requires = "when")]
    lasts: Option<u64>,

    /// How long a host that updates may say nothing before no other begins, in seconds; 15 minutes unless given
    #[arg(long, value_name = "S")]
    silence: Option<u64>,

    /// Where the command runs on each host; '/' unless given
    #[arg(long, value_name = "DIR")]
    directory: Option<String>,

    /// Begin it and do not wait for its end
    #[arg(long)]
    detach: bool,
}

pub(super) async fn run(
    command: FleetUpdateCommand,
    client: &Client,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let client = client.patient(ANSWER_WAIT);
    match command {
        FleetUpdateCommand::Run(args) => return begin(*args, &client, output).await,
        FleetUpdateCommand::Status => {
            let known: api::FleetUpdate = client.get("/v1/update/fleet").await?;
            output.show(&known, shown)?;
        }
        FleetUpdateCommand::Abort => {
            super::done(client.post("/v1/update/fleet/abort", &()).await?, output)?;
        }
        FleetUpdateCommand::Resume { without } => {
            let request = api::RolloutResume {
                without: without.iter().map(ToString::to_string).collect(),
            };
            super::done(
                client.post("/v1/update/fleet/resume", &request).await?,
                output,
            )?;
        }
        FleetUpdateCommand::Release { id } => {
            let request = api::SlotRelease { id };
            super::done(
                client.post("/v1/update/fleet/release", &request).await?,
                output,
            )?;
        }
    }
    Ok(Exit::Ok)
}

async fn begin(args: FleetRunArgs, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let request = api::RolloutRequest {
        update: request_in(args.order, args.directory),
        hosts: args.hosts.iter().map(ToString::to_string).collect(),
        at_once: Some(args.at_once),
        group: args.group,
        when: args.when,
        lasts_seconds: args.lasts,
        silence_seconds: args.silence,
    };
    let begun: api::UpdateBegun = client.post("/v1/update/fleet", &request).await?;
    if args.detach {
        output.show(&begun, |begun| {
            format!(
                "rolling update {} begins; `forebay update fleet status` shows it",
                begun.number
            )
        })?;
        return Ok(Exit::Ok);
    }
    let ended = follow(client, begun.number).await?;
    let well = ended
        .rollout
        .as_ref()
        .is_some_and(|one| one.phase == "complete");
    output.show(&ended, shown)?;
    Ok(match well {
        true => Exit::Ok,
        false => Exit::Failed,
    })
}

/// Waits until it is over or stops. This host's own daemon may begin anew meanwhile.
async fn follow(client: &Client, number: u64) -> Result<api::FleetUpdate, Failure> {
    let mut away_since = None;
    loop {
        let known: Result<api::FleetUpdate, api::Error> = client.get("/v1/update/fleet").await;
        match known {
            Ok(known) => {
                away_since = None;
                let rollout = known.rollout.as_ref().filter(|one| one.number == number);
                let Some(rollout) = rollout else {
                    return Err(Failure::Failed(format!(
                        "rolling update {number} is over, and another one was begun since; `forebay update fleet                          status` shows that"
                    )));
                };
                if !matches!(rollout.phase.as_str(), "going" | "ending") {
                    return Ok(known);
                }
            }
            Err(error) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= AWAY_MAX {
                    return Err(error.into());
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn shown(known: &api::FleetUpdate) -> String {
    let mut text = match &known.rollout {
        None => "no rolling update was run".to_owned(),
        Some(rollout) => one(rollout),
    };
    if !known.slots.is_empty() {
        let rows = known.slots.iter().map(|slot| {
            [
                slot.group.clone(),
                slot.holder.clone(),
                slot.kind.clone(),
                utc(slot.since_unix_ms),
            ]
        });
        let rows: Vec<[String; 4]> = rows.collect();
        let columns = [
            words("GROUP"),
            words("AWAY"),
            words("KIND"),
            words("SINCE (UTC)"),
        ];
        write!(text, "\n\n{}", table(columns, &rows).trim_end()).ok();
    }
    text
}

fn one(rollout: &api::Rollout) -> String {
    let mut text = format!(
        "rolling update {} ({}), {} at once: {}\n{}\n",
        rollout.number,
        rollout.command.join(" "),
        rollout.at_once,
        rollout.phase,
        rollout.next
    );
    if let (Some(when), Some(lasts)) = (&rollout.when, rollout.lasts_seconds) {
        writeln!(text, "hosts begin from {when} on, for {lasts} s").ok();
    }
    let rows = rollout.hosts.iter().map(|host| {
        [
            host.host.clone(),
            host.state.clone(),
            host.attempt.to_string(),
            host.said.clone().unwrap_or_default(),
        ]
    });
    let rows: Vec<[String; 4]> = rows.collect();
    let columns = [
        words("HOST"),
        words("STATE"),
        numbers("ATTEMPT"),
        words("WHY"),
    ];
    write!(text, "\n{}", table(columns, &rows).trim_end()).ok();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_hosts_and_who_is_away() {
        let known = api::FleetUpdate {
            rollout: Some(api::Rollout {
                number: 3,
                command: vec!["apt-get".to_owned(), "upgrade".to_owned()],
                at_once: 1,
                phase: "going".to_owned(),
                next: "it goes on".to_owned(),
                when: Some("Sat 02:00".to_owned()),
                lasts_seconds: Some(3600),
                hosts: vec![api::RolloutHost {
                    host: "a".to_owned(),
                    attempt: 1,
                    state: "updates".to_owned(),
                    said: Some("verifying".to_owned()),
                }],
                ..api::Rollout::default()
            }),
            slots: vec![api::Slot {
                holder: "a".to_owned(),
                kind: "host".to_owned(),
                group: "default".to_owned(),
                since_unix_ms: 1_735_689_599_000,
            }],
        };
        assert_eq!(
            shown(&known),
            "rolling update 3 (apt-get upgrade), 1 at once: going\nit goes on\nhosts begin from Sat 02:00 on, \
             for 3600 s\n\nHOST  STATE    ATTEMPT  WHY\na     updates        1  verifying\n\n\
             GROUP    AWAY  KIND  SINCE (UTC)\ndefault  a     host  2024-12-31 23:59:59"
        );
        assert_eq!(
            shown(&api::FleetUpdate::default()),
            "no rolling update was run"
        );
    }
}
