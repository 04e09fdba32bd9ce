//! `forebay tier`: what tiered directories hold, and moving files by hand.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use forebay_core::units::Bytes;
use forebay_host::tier::{Moved, Tier, Place};
use serde::Serialize;

use crate::config;
use crate::daemon::{Error, facts};
use crate::output::{Format, Output, numbers, table, words};

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

/// One tier, as `status` shows it.
#[derive(Debug, Serialize)]
struct Status {
    tier: String,
    directory: PathBuf,
    fast_files: u64,
    fast_bytes: u64,
    fast_size_max_bytes: u64,
    slow_files: u64,
    slow_bytes: u64,
    /// Contents put aside for a person to judge.
    kept: u64,
    /// Copies that no link was made for.
    unclaimed: u64,
    /// Copies that no file leads to any more.
    nameless: u64,
    /// Links whose copy is not there.
    broken: Vec<PathBuf>,
    /// Whether there were more files than are looked at.
    truncated: bool,
}

/// One file that was asked for.
#[derive(Debug, Serialize)]
struct Row {
    file: PathBuf,
    moved: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Runs one of the commands. A file that was left where it is makes the exit status 1.
///
/// # Errors
/// When the configuration has mistakes, or a tier cannot be used.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    match &args.command {
        TierCommand::Status(options) => status(options),
        TierCommand::Promote(files) => each(&files.one, &files.files, Tier::promote),
        TierCommand::Demote(files) => each(&files.one, &files.files, Tier::demote),
        TierCommand::Drain(one) => drain(one),
        TierCommand::Forget(one) => forget(one),
    }
}

fn status(options: &Options) -> Result<ExitCode, Error> {
    let config = config::load(options.config.as_deref(), &facts()?).map_err(Error::Config)?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for place in config.tiers.into_values() {
        // One that cannot be used says nothing of the others.
        let looked = Tier::open(place).and_then(|(tier, recovered)| {
            let scan = tier.scan()?;
            let count = |at: Place| {
                let there = scan.entries.iter().filter(|entry| entry.place == at);
                there.fold((0_u64, 0_u64), |(files, bytes), entry| {
                    (files + 1, bytes.saturating_add(entry.size))
                })
            };
            let ((fast_files, _), (slow_files, slow_bytes)) =
                (count(Place::Fast), count(Place::Slow));
            Ok(Status {
                tier: tier.place().name.clone(),
                directory: tier.place().directory.clone(),
                fast_files,
                fast_bytes: tier.fast_used(),
                fast_size_max_bytes: tier.place().fast_size_max,
                slow_files,
                slow_bytes,
                kept: recovered.kept,
                unclaimed: recovered.unclaimed,
                nameless: tier.nameless()?,
                broken: scan.broken,
                truncated: scan.truncated,
            })
        });
        match looked {
            Ok(row) => rows.push(row),
            Err(error) => failed.push(error.explain()),
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

fn show(rows: &[Status]) -> String {
    if rows.is_empty() {
        return "no tiers: name some as [tiers.NAME] in the configuration".to_owned();
    }
    let columns = [
        words("TIER"),
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
            ];
            let notes = notes.into_iter().filter(|(count, _)| *count > 0);
            let notes: Vec<_> = notes
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            [
                row.tier.clone(),
                row.fast_files.to_string(),
                Bytes(row.fast_bytes).to_string(),
                Bytes(row.fast_size_max_bytes).to_string(),
                row.slow_files.to_string(),
                Bytes(row.slow_bytes).to_string(),
                notes.join(", "),
            ]
        })
        .collect();
    table(columns, &lines)
}

fn open(one: &One) -> Result<Tier, Error> {
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
    let (tier, _) = Tier::open(place).map_err(|error| Error::Host(error.explain()))?;
    Ok(tier)
}

fn each(
    one: &One,
    files: &[PathBuf],
    work: impl Fn(&mut Tier, &Path) -> Result<Moved, forebay_host::Error>,
) -> Result<ExitCode, Error> {
    let mut tier = open(one)?;
    if let Err(error) = forebay_host::tier::idle_priority() {
        tracing::warn!(reason = error.explain(), "moving at plain I/O priority");
    }
    let mut rows = Vec::new();
    for file in files {
        let inside = file
            .strip_prefix(&tier.place().directory)
            .unwrap_or(file)
            .to_owned();
        let (moved, bytes, reason) = match work(&mut tier, &inside) {
            Ok(Moved::Done { bytes }) => (true, Some(bytes), None),
            Ok(Moved::Left(left)) => (false, None, Some(left.to_string())),
            Err(error) => (false, None, Some(error.explain())),
        };
        rows.push(Row {
            file: file.clone(),
            moved,
            bytes,
            reason,
        });
    }
    print(&one.options, &rows, |rows| {
        let line = |row: &Row| match &row.reason {
            None => format!(
                "moved {} ({})",
                row.file.display(),
                Bytes(row.bytes.unwrap_or_default())
            ),
            Some(reason) => format!("left {}: {reason}", row.file.display()),
        };
        let lines: Vec<_> = rows.iter().map(line).collect();
        lines.join("\n")
    })?;
    match rows.iter().all(|row| row.moved) {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}

fn drain(one: &One) -> Result<ExitCode, Error> {
    let files: Vec<PathBuf> = {
        let tier = open(one)?;
        let scan = tier.scan().map_err(|error| Error::Host(error.explain()))?;
        let fast = scan.entries.into_iter();
        fast.filter(|entry| entry.place == Place::Fast)
            .map(|entry| entry.path)
            .collect()
    };
    each(one, &files, Tier::demote)
}

fn forget(one: &One) -> Result<ExitCode, Error> {
    let failed = |error: forebay_host::Error| Error::Host(error.explain());
    let mut tier = open(one)?;
    let removed = tier.collect_removed(SystemTime::now()).map_err(failed)?;
    let young = tier.nameless().map_err(failed)?;
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
