//! `forebay tier`: what tiered directories hold, and moving files by hand. While a daemon has a
//! tier it is asked; else this process moves the files itself.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use forebay_api as api;
use forebay_api::Client;
use forebay_core::units::Bytes;
use forebay_host::ErrorKind;
use forebay_host::tier::{Place, Recovered, Tier, TierPlace};
use serde::Serialize;

use crate::cli::SOCKET_VARIABLE;

use crate::config;
use crate::daemon::{Error, facts};
use crate::output::{Format, Output, numbers, table, words};

/// How often a daemon that moves files is asked how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// Moves that `status` shows.
const MOVES_SHOWN: usize = 10;

/// Show tiered directories, and move their files
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: TierCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum TierCommand {
    /// Show how much each tier holds
    Status(Options),
    /// Move files to the fast tier
    Promote(Files),
    /// Move files to the slow tier
    Demote(Files),
    /// Move all files to the slow tier, so that the directory is an ordinary one again
    Drain(One),
    /// Remove the copies that no file has led to for 10 minutes, for ever
    Forget(One),
}

#[derive(Debug, Clone, clap::Args)]
struct Options {
    /// Configuration file [default: /etc/forebay/forebay.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct One {
    /// Name of the tier
    tier: String,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, clap::Args)]
struct Files {
    #[command(flatten)]
    one: One,
    /// The files, in the tier's directory or relative to it
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Runs one of the commands. A file that was left where it is makes the exit status 1.
///
/// # Errors
/// When the configuration has mistakes, or a tier cannot be used.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    match &args.command {
        TierCommand::Status(options) => status(options),
        TierCommand::Promote(files) => ask(&files.one, api::TierOrder::Promote, &files.files),
        TierCommand::Demote(files) => ask(&files.one, api::TierOrder::Demote, &files.files),
        TierCommand::Drain(one) => ask(one, api::TierOrder::Drain, &[]),
        TierCommand::Forget(one) => forget(one),
    }
}

fn status(options: &Options) -> Result<ExitCode, Error> {
    let config = config::load(options.config.as_deref(), &facts()?).map_err(Error::Config)?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for place in config.tiers.into_values() {
        let name = place.name.clone();
        // One that cannot be used says nothing of the others.
        match Mover::of(place, &config.daemon.socket).and_then(|mover| mover.status(&name)) {
            Ok(row) => {
                if row.state == api::TierState::Broken {
                    let trouble = row.trouble.as_deref().unwrap_or("unknown trouble");
                    failed.push(format!("tier {name}: {trouble}"));
                }
                rows.push(row);
            }
            Err(error) => failed.push(error),
        }
    }
    if !rows.is_empty() || failed.is_empty() {
        print(options, &rows, |rows| show(rows))?;
    }
    match failed.is_empty() {
        true => Ok(ExitCode::SUCCESS),
        false => Err(Error::Host(failed.join("\n"))),
    }
}

fn show(rows: &[api::Tier]) -> String {
    if rows.is_empty() {
        return "no tiers: name some as [tiers.NAME] in the configuration".to_owned();
    }
    let columns = [
        words("TIER"),
        words("STATE"),
        numbers("FAST FILES"),
        numbers("FAST"),
        numbers("OF"),
        numbers("SLOW FILES"),
        numbers("SLOW"),
        words("NOTE"),
    ];
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            let notes = [
                (row.kept, "put aside in `kept`"),
                (row.unclaimed, "unclaimed"),
                (row.nameless, "without a file (`forget` removes them)"),
                (row.broken.len() as u64, "without their copy"),
                (u64::from(row.truncated), "listing cut off"),
                (row.unwatched, "directories not watched"),
                (
                    row.heat.map_or(0, |heat| heat.overflows),
                    "times too many touches to count",
                ),
            ];
            let notes = notes.into_iter().filter(|(count, _)| *count > 0);
            let notes: Vec<_> = notes
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            [
                row.tier.clone(),
                row.state.to_string(),
                row.fast_files.to_string(),
                Bytes(row.fast_bytes).to_string(),
                Bytes(row.fast_size_max_bytes).to_string(),
                row.slow_files.to_string(),
                Bytes(row.slow_bytes).to_string(),
                notes.join(", "),
            ]
        })
        .collect();
    let mut text = table(columns, &lines);
    for row in rows {
        if let Some(trouble) = row.trouble.as_ref() {
            text += &format!("\n{}: {trouble}", row.tier);
        }
        text += &moves(row);
    }
    text
}

/// The latest moves of a tier, with why.
fn moves(row: &api::Tier) -> String {
    if row.moves.is_empty() {
        return String::new();
    }
    let api::TierTotals {
        promoted,
        promoted_bytes,
        demoted,
        demoted_bytes,
        left,
    } = row.totals;
    let mut text = format!(
        "\n{}: promoted {promoted} ({}), demoted {demoted} ({}), left {left}; the latest:",
        row.tier,
        Bytes(promoted_bytes),
        Bytes(demoted_bytes)
    );
    let latest = row.moves.len().saturating_sub(MOVES_SHOWN);
    for one in &row.moves[latest..] {
        let to = match one.to {
            api::TierSide::Fast => "to fast",
            api::TierSide::Slow => "to slow",
        };
        text += &format!("\n  {to}  {}  {}", one.file, one.why);
        if let Some(left) = &one.left {
            text += &format!("; left: {left}");
        }
    }
    text
}

fn mover(one: &One) -> Result<Mover, Error> {
    let config = config::load(one.options.config.as_deref(), &facts()?).map_err(Error::Config)?;
    let known: Vec<String> = config.tiers.keys().cloned().collect();
    let mut tiers = config.tiers;
    let place = tiers.remove(&one.tier).ok_or_else(|| {
        Error::Host(match known.is_empty() {
            true => format!(
                "no tier `{}`: the configuration names none; add [tiers.{}]",
                one.tier, one.tier
            ),
            false => format!("no tier `{}`; use {}", one.tier, known.join(" or ")),
        })
    })?;
    Mover::of(place, &config.daemon.socket).map_err(Error::Host)
}

fn ask(one: &One, order: api::TierOrder, files: &[PathBuf]) -> Result<ExitCode, Error> {
    let answer = mover(one)?
        .ask(&one.tier, order, files)
        .map_err(Error::Host)?;
    print(&one.options, &answer.files, |rows| {
        let line = |row: &api::TierFile| match &row.reason {
            None => format!(
                "moved {} ({})",
                row.file,
                Bytes(row.bytes.unwrap_or_default())
            ),
            Some(reason) => format!("left {}: {reason}", row.file),
        };
        let mut lines: Vec<_> = rows.iter().map(line).collect();
        if rows.len() as u64 <= answer.moved + answer.left_beyond {
            let moved = rows.iter().filter(|row| row.moved).count() as u64;
            let more = answer.moved.saturating_sub(moved);
            if more + answer.left_beyond > 0 {
                lines.push(format!(
                    "and moved {more} more, left {} more",
                    answer.left_beyond
                ));
            }
        }
        lines.join("\n")
    })?;
    if let Some(trouble) = answer.trouble {
        return Err(Error::Host(trouble));
    }
    match answer.left_beyond == 0 && answer.files.iter().all(|row| row.moved) {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}

fn forget(one: &One) -> Result<ExitCode, Error> {
    let answer = mover(one)?
        .ask(&one.tier, api::TierOrder::Forget, &[])
        .map_err(Error::Host)?;
    if let Some(trouble) = answer.trouble {
        return Err(Error::Host(trouble));
    }
    let (removed, young) = (answer.moved, answer.young);
    let value = serde_json::json!({ "tier": one.tier, "removed": removed, "kept": young });
    print(&one.options, &value, |_| match young {
        0 => format!("removed {removed} copies from tier {}", one.tier),
        young => format!(
            "removed {removed} copies from tier {}; {young} lost their file less than 10 \
             minutes ago and are kept",
            one.tier
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Who moves the files of a tier: the daemon that has it, or else this process.
enum Mover {
    Own(Box<Tier>, Recovered),
    Daemon(tokio::runtime::Runtime, Client),
}

impl Mover {
    fn of(place: TierPlace, socket: &Path) -> Result<Self, String> {
        let busy = match Tier::open(place) {
            Ok((tier, recovered)) => {
                if let Err(error) = forebay_host::tier::idle_priority() {
                    tracing::warn!(reason = error.explain(), "moving at plain I/O priority");
                }
                return Ok(Self::Own(Box::new(tier), recovered));
            }
            Err(error) if error.kind() == ErrorKind::Locked => error,
            Err(error) => return Err(error.explain()),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("ask the daemon: {error}; check limits on open files"))?;
        let named = std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from);
        let socket = named.unwrap_or_else(|| socket.to_owned());
        let client = runtime
            .block_on(Client::connect(socket))
            .map_err(|error| format!("{}; no daemon answers either: {error}", busy.explain()))?;
        Ok(Self::Daemon(runtime, client))
    }

    fn status(&self, name: &str) -> Result<api::Tier, String> {
        match self {
            Self::Own(tier, recovered) => {
                crate::tiering::direct(tier, recovered).map_err(|error| error.explain())
            }
            Self::Daemon(runtime, client) => {
                let tiers: api::Tiers = runtime
                    .block_on(client.get("/v1/tiers"))
                    .map_err(|error| error.to_string())?;
                let mut tiers = tiers.tiers.into_iter();
                tiers.find(|tier| tier.tier == name).ok_or_else(|| {
                    format!("tier {name} is held by a process that is not the daemon at {}; wait for it to end", client.path().display())
                })
            }
        }
    }

    fn ask(
        self,
        name: &str,
        order: api::TierOrder,
        files: &[PathBuf],
    ) -> Result<api::TierAnswer, String> {
        match self {
            Self::Own(tier, _) => own(*tier, order, files).map_err(|error| error.explain()),
            Self::Daemon(runtime, client) => runtime.block_on(asked(&client, name, order, files)),
        }
    }
}

/// Does what was asked for, without a daemon.
fn own(
    mut tier: Tier,
    order: api::TierOrder,
    files: &[PathBuf],
) -> Result<api::TierAnswer, forebay_host::Error> {
    let mut answer = api::TierAnswer {
        done: true,
        ..api::TierAnswer::default()
    };
    let files = match order {
        api::TierOrder::Promote | api::TierOrder::Demote => files.to_vec(),
        api::TierOrder::Drain => {
            let entries = tier.scan()?.entries.into_iter();
            let fast = entries.filter(|entry| entry.place == Place::Fast);
            fast.map(|entry| entry.path).collect()
        }
        api::TierOrder::Forget => {
            answer.moved = tier.collect_removed(SystemTime::now())?;
            answer.young = tier.nameless()?;
            return Ok(answer);
        }
    };
    for file in files {
        let inside = file.strip_prefix(&tier.place().directory).unwrap_or(&file);
        let inside = inside.to_owned();
        let moved = match order {
            api::TierOrder::Promote => tier.promote(&inside),
            _ => tier.demote(&inside),
        };
        crate::tiering::answered(&mut answer, crate::tiering::row(&file, &moved));
    }
    Ok(answer)
}

/// Asks the daemon, and waits until all is done: there may be much to move.
async fn asked(
    client: &Client,
    name: &str,
    order: api::TierOrder,
    files: &[PathBuf],
) -> Result<api::TierAnswer, String> {
    let text = |file: &PathBuf| {
        let text = file.to_str().map(str::to_owned);
        text.ok_or_else(|| {
            format!(
                "{} is not UTF-8, which the API needs; stop the daemon to move it",
                file.display()
            )
        })
    };
    let request = api::TierRequest {
        order,
        files: files.iter().map(text).collect::<Result<_, _>>()?,
    };
    let mut answer: api::TierAnswer = client
        .post(&format!("/v1/tiers/{name}/moves"), &request)
        .await
        .map_err(|error| error.to_string())?;
    while !answer.done {
        tokio::time::sleep(LOOK).await;
        answer = client
            .get(&format!("/v1/tiers/{name}/moves/{}", answer.request))
            .await
            .map_err(|error| error.to_string())?;
    }
    Ok(answer)
}

fn print<T: Serialize>(
    options: &Options,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Error> {
    let format = match options.json {
        true => Format::Json,
        false => Format::People,
    };
    match Output::stdout(format).show(value, text) {
        // Whoever read has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|source| Error::System {
            attempt: "print",
            remedy: "look at where the output goes",
            source,
        }),
    }
}
