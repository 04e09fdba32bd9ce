//! Commands that need no daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::app::OnStop;
use forebay_core::occasion::Source;
use forebay_host::guardian::{Guarded, Watched, guard};
use forebay_host::lock::{Lock, Role};
use forebay_host::tcp_repair::{Rule, kept};
use forebay_host::{ErrorKind, Roots};

use crate::daemon::{Error, facts};
use crate::dashboard::address_file;
use crate::demo::print;
use crate::server::remove_stale;
use crate::{calibrate, config};

/// Validate a configuration
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CheckArgs {
    /// Configuration file [default: /etc/forebay/forebay.toml, if it is there]
    #[arg(value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the JSON Schema of configurations instead
    #[arg(long)]
    schema: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Validates a configuration: every mistake at once.
///
/// # Errors
/// When it has mistakes.
pub(crate) fn check(args: &CheckArgs) -> Result<ExitCode, Error> {
    if args.schema {
        print::line(format_args!("{:#}", config::schema()));
        return Ok(ExitCode::SUCCESS);
    }
    match config::load(args.config.as_deref(), &facts()?) {
        Ok(config) if args.json => {
            let policy = serde_json::json!({
                "valid": true, "policy": config.policy, "warnings": advice(&config),
            });
            print::line(format_args!("{policy}"));
            Ok(ExitCode::SUCCESS)
        }
        Ok(config) => {
            print::line(format_args!(
                "valid: {} app(s), period {} ms",
                config.policy.apps.len(),
                config.policy.period.as_millis()
            ));
            for line in next_occurrences(&config.known_future, unix_ms()) {
                print::line(format_args!("{line}"));
            }
            for warning in advice(&config) {
                print::line(format_args!("warning: {warning}"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(errors) if args.json => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            print::line(format_args!(
                "{}",
                serde_json::json!({ "valid": false, "errors": errors })
            ));
            Ok(ExitCode::FAILURE)
        }
        Err(errors) => Err(Error::Config(errors)),
    }
}

/// What works, and may not be what is meant.
fn advice(config: &config::Config) -> Vec<String> {
    config
        .fronts
        .values()
        .flat_map(config::FrontConfig::advice)
        .collect()
}

/// When each declared event and day of a calendar comes next.
fn next_occurrences(known: &config::KnownFuture, now_ms: u64) -> Vec<String> {
    let events = known.sources().into_iter().filter(Source::is_moment);
    let line = |source: Source| {
        let next = source
            .next_after(now_ms)
            .and_then(|ms| i64::try_from(ms).ok());
        let next = next.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        match next {
            Some(next) => format!("{}: next {next}", source.name),
            None => format!("{}: never again", source.name),
        }
    };
    let now = i64::try_from(now_ms).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
    let calendars = known.calendars.iter().map(|(name, calendar)| {
        let next = calendar.next_day(now);
        let next = next.map_or("never again".to_owned(), |day| format!("next {day}"));
        let skipped = match calendar.skipped {
            0 => String::new(),
            count => format!(", {count} events of its file were passed over"),
        };
        format!("calendar {name}: {next}{skipped}")
    });
    events.map(line).chain(calendars).collect()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Put back everything that a lost daemon left
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RestoreArgs {
    /// Where that daemon kept its ledger
    #[arg(long, value_name = "DIR", default_value = "/var/lib/forebay")]
    state_dir: PathBuf,
    /// End the programs that it started, instead of letting them run
    #[arg(long)]
    kill: bool,
    /// End programs, too, that stand still and lend their memory to a host that they moved to: what that did not fetch
    /// yet is lost there, and its copy is started anew
    #[arg(long)]
    lent: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Puts back everything in the ledger.
///
/// # Errors
/// When a daemon runs, the ledger cannot be read, or something could not be put back.
pub(crate) fn restore(args: &RestoreArgs) -> Result<ExitCode, Error> {
    let on_stop = if args.kill {
        OnStop::Kill
    } else {
        OnStop::Keep
    };
    let roots = Roots::default();
    let host = |error: forebay_host::Error| Error::Host(error.explain());
    let restored = match args.lent {
        true => forebay_host::restore_all(&args.state_dir, &roots, on_stop),
        false => forebay_host::restore(&args.state_dir, &roots, on_stop),
    };
    let mut report = restored.map_err(host)?;
    // Also what was asked to stay: whoever runs this wants nothing left.
    report.absorb(forebay_host::cost::remove(&args.state_dir, &roots, None).map_err(host)?);
    // First what they would be made of: a daemon that comes would make connections anew that are reset by then.
    let connections = kept::discard(&args.state_dir).and_then(|()| Rule::remove(&args.state_dir));
    report
        .failed
        .extend(connections.err().map(|error| error.explain()));
    if args.json {
        print::line(format_args!(
            "{}",
            serde_json::json!({
                "knobs": report.knobs,
                "processes": report.processes,
                "groups": report.groups,
                "foreign": report.foreign,
                "lend": report.lend,
                "failed": report.failed,
            })
        ));
    } else {
        print::line(format_args!(
            "put back {} knob(s) and {} process(es), removed {} group(s)",
            report.knobs, report.processes, report.groups
        ));
        for foreign in &report.foreign {
            print::line(format_args!(
                "left alone, written by somebody else: {foreign}"
            ));
        }
        for app in &report.lend {
            print::line(format_args!(
                "left frozen: {app} lends its memory to the host that it moved to; a daemon that begins here goes on \
                 with that, and `forebay restore --lent` ends it"
            ));
        }
    }
    if report.is_complete() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Error::Farewell(report.failed.join("; ")))
    }
}

/// Say what this host offers, and what the lack of the rest costs
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Control group whose features are examined
    #[arg(long, value_name = "GROUP", default_value = "forebay")]
    cgroup_root: PathBuf,
    /// Where measurements of block devices are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/forebay")]
    state_dir: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Prints every kernel feature used, present or missing.
///
/// # Errors
/// When /proc or every control group hierarchy is missing.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<ExitCode, Error> {
    let mut features = forebay_host::doctor::examine(&Roots::default(), &args.cgroup_root)
        .map_err(|error| Error::Host(error.explain()))?;
    features.extend(calibrate::features(&args.state_dir, Path::new("/")));
    if args.json {
        let features: Vec<_> = features
            .iter()
            .map(|feature| {
                serde_json::json!({
                    "name": feature.name,
                    "present": feature.present,
                    "detail": feature.detail,
                    "lack_costs": feature.lack_costs,
                })
            })
            .collect();
        print::line(format_args!("{}", serde_json::json!(features)));
        return Ok(ExitCode::SUCCESS);
    }
    for feature in &features {
        let mark = if feature.present { "yes" } else { "no " };
        print::line(format_args!(
            "{mark}  {:<28} {}",
            feature.name, feature.detail
        ));
        if !feature.present {
            print::line(format_args!("     without it: {}", feature.lack_costs));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Print completions for a shell
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Prints completions.
pub(crate) fn completions(args: &CompletionsArgs) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::whole(), "forebay", &mut text);
    print::line(format_args!("{}", String::from_utf8_lossy(&text)));
    ExitCode::SUCCESS
}

/// Print the manual page
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ManArgs {
    /// Write the pages of all commands into this directory instead, one file for each
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

/// Prints the manual page of the program, or writes one for each command.
///
/// # Errors
/// When the directory cannot be written to.
pub(crate) fn man(args: &ManArgs) -> Result<ExitCode, Error> {
    let Some(directory) = &args.directory else {
        let mut text = Vec::new();
        clap_mangen::Man::new(crate::Cli::whole())
            .render(&mut text)
            .map_err(|source| Error::System {
                attempt: "make the manual page",
                remedy: "this should not happen; report it",
                source,
            })?;
        print::line(format_args!("{}", String::from_utf8_lossy(&text)));
        return Ok(ExitCode::SUCCESS);
    };
    clap_mangen::generate_to(crate::Cli::whole(), directory).map_err(|source| Error::System {
        attempt: "write the manual pages",
        remedy: "name a directory that is there and may be written to",
        source,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Wait to be written down and begun again
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CanaryArgs {
    /// Where it is asked
    directory: PathBuf,
}

/// Is the canary of a rehearsal.
///
/// # Errors
/// When its files cannot be written.
pub(crate) fn canary(args: &CanaryArgs) -> std::io::Result<ExitCode> {
    forebay_host::rehearsal::run_canary(&args.directory).map(|()| ExitCode::SUCCESS)
}

/// Watch over a daemon
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GuardianArgs {
    /// Process number of the daemon
    #[arg(long)]
    daemon: u32,
    /// Where the daemon keeps its ledger
    #[arg(long)]
    state_dir: PathBuf,
    /// The daemon's socket
    #[arg(long)]
    socket: PathBuf,
    /// How long to wait for a lost daemon to come back
    #[arg(long)]
    lease_ms: u64,
    /// What happens to the programs it started
    #[arg(long, value_enum)]
    on_stop: OnStopArg,
}

/// What happens to the programs that a lost daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnStopArg {
    /// They keep running.
    Keep,
    /// They are ended.
    Kill,
}

/// Waits for the daemon's death, and for its return; else puts everything back.
///
/// # Errors
/// When something could not be put back.
pub(crate) fn guardian(args: &GuardianArgs) -> Result<ExitCode, Error> {
    let on_stop = match args.on_stop {
        OnStopArg::Keep => OnStop::Keep,
        OnStopArg::Kill => OnStop::Kill,
    };
    let ended = guard(&Watched {
        daemon: args.daemon,
        state_dir: args.state_dir.clone(),
        lease: Duration::from_millis(args.lease_ms),
        on_stop,
        roots: Roots::default(),
    })
    .map_err(|error| Error::Host(error.explain()))?;
    match ended {
        Guarded::Relieved => {}
        Guarded::Stopped | Guarded::Restored(_) => sweep(&args.state_dir, &args.socket)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes away what a lost daemon had beside its socket, unless another one has come since.
fn sweep(state_dir: &Path, socket: &Path) -> Result<(), Error> {
    // A daemon has the directory before it listens.
    let _lock = match Lock::take(state_dir, Role::Restorer, &Roots::default().proc) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::Locked => return Ok(()),
        Err(error) => return Err(Error::Host(error.explain())),
    };
    let sockets = [Some(socket.to_owned()), config::update_socket(socket)];
    for socket in sockets.into_iter().flatten() {
        // Where somebody listens, all of it is that one's.
        remove_stale(&socket).map_err(|error| Error::Listen(error.to_string()))?;
    }
    let address = address_file(socket);
    match std::fs::remove_file(&address) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::Host(format!(
            "remove {}: {error}; its token opens nothing any more",
            address.display()
        ))),
        _ => Ok(()),
    }
}
