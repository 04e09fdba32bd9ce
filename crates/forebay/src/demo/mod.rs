//! The main job on real processes: a critical service beside batch work, measured.
//!
//! Three arms take turns: the service alone, beside uncontrolled batch work, and beside the
//! same batch work with a Forebay daemon of its own. The daemon is a real one, in its own
//! control groups and directory, and its cost is part of what is measured.
//!
//! Two processes, so that nothing is left whatever dies: the outer one waits and sweeps, the
//! inner one works and is told to end when the outer one is gone.

mod accel;
mod arm;
mod clients;
mod fleet;
pub(crate) mod print;
mod simulated;
mod sweep;
mod table;
mod update;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::bench::failover;

pub(crate) use arm::{Arm, Scene, Segment, Wave, agent_use, terminate};
pub(crate) use sweep::STATE_DIR;
pub(crate) use table::{ArmRow, Summary, spread};

/// The least time of one segment: a shorter one shows no 99.9 % quantile.
const SEGMENT_MIN: Duration = Duration::from_secs(4);
/// The longest time of one segment; longer demos repeat them instead.
const SEGMENT_MAX: Duration = Duration::from_secs(10);

/// Show the main job on this host
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// What to show
    #[arg(value_enum, default_value = "colocation")]
    show: Show,
    /// Time for all arms together
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(12..=3600))]
    seconds: u64,
    /// File that receives the result
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep what was shown and its daemon running afterwards, until Ctrl-C
    #[arg(long)]
    stay: bool,
    /// Run the same scenario on a simulated host: needs no root and measures nothing
    #[arg(long, conflicts_with_all = ["stay", "show"])]
    simulated: bool,
    /// Directory of the inner process
    #[arg(long, value_name = "DIR", hide = true)]
    inner: Option<PathBuf>,
    /// The inner process is in a network of its own
    #[arg(long, hide = true)]
    apart: bool,
}

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Show {
    /// A critical service beside batch work: alone, uncontrolled, and with Forebay
    Colocation,
    /// A service that is killed and stopped under its clients, and its shadow that takes over
    Failover,
    /// A slice that is too small for its compute tasks, which go to an accelerator and back
    Accel,
    /// A service that moves between three hosts by itself when one of them is hogged, under its clients
    Fleet,
    /// A package that is installed under a service with its clients: the receipt, and what they saw
    Update,
}

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It needs rights that the caller has not.
    #[error(
        "run the demo: it makes control groups and starts a daemon, which needs root; \
         use sudo, or try `forebay demo --simulated`"
    )]
    NotRoot,
    /// The system refused something.
    #[error("{attempt} {object}; {remedy}")]
    System {
        attempt: &'static str,
        object: String,
        remedy: &'static str,
        source: std::io::Error,
    },
    /// A part of the demo did not do what it should.
    #[error("{part}: {what}")]
    Part { part: String, what: String },
    /// A signal asked for the end.
    #[error("interrupted; everything was cleaned up")]
    Interrupted,
}

impl Error {
    pub(crate) fn system<E: Into<std::io::Error>>(
        attempt: &'static str,
        object: impl ToString,
        remedy: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            attempt,
            object: object.to_string(),
            remedy,
            source: source.into(),
        }
    }

    pub(crate) fn part(part: impl ToString, what: impl ToString) -> Self {
        Self::Part {
            part: part.to_string(),
            what: what.to_string(),
        }
    }
}

/// Runs the demo.
///
/// # Errors
/// When it lacks rights, a part fails, or a signal ends it.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    if args.simulated {
        return simulated::run(Duration::from_secs(args.seconds), args.json.as_deref());
    }
    swept("demo", args.inner.as_deref(), |dir| {
        inner(args, dir).map(|()| ExitCode::SUCCESS)
    })
}

/// Runs `work` in a swept directory of its own: see [`sweep`]. The outer process starts this
/// program again with the directory, and then `inner` is there.
pub(crate) fn swept(
    subcommand: &str,
    inner: Option<&Path>,
    work: impl FnOnce(&Path) -> Result<ExitCode, Error>,
) -> Result<ExitCode, Error> {
    let Some(dir) = inner else {
        return sweep::outer(subcommand);
    };
    let result = work(dir);
    sweep::in_place_of_outer(dir)?;
    result
}

/// A flag that SIGINT and SIGTERM set; and the outer process's end sends SIGTERM.
pub(crate) fn interruption() -> Result<Arc<AtomicBool>, Error> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(Error::system(
            "catch",
            format!("signal {signal}"),
            "this should not happen; report it",
        ))?;
    }
    sweep::follow_parent()?;
    Ok(flag)
}

fn inner(args: &Args, dir: &Path) -> Result<(), Error> {
    if args.show == Show::Fleet && !args.apart {
        return fleet::apart();
    }
    let length = Duration::from_secs(args.seconds);
    let result = match args.show {
        Show::Colocation => None,
        Show::Failover => Some(failover::show(dir, length, args.stay)?),
        Show::Accel => Some(accel::show(dir, args.stay)?),
        Show::Fleet => Some(fleet::show(dir, length, args.stay)?),
        Show::Update => Some(update::show(dir, length, args.stay)?),
    };
    if let Some(result) = result {
        return args
            .json
            .as_deref()
            .map_or(Ok(()), |file| write(file, &result));
    }
    let interrupted = interruption()?;
    let scene = Scene::new(dir, &interrupted)?;
    let arms = [Arm::Alone, Arm::Uncontrolled, Arm::Forebay];
    let (rounds, length) = rounds(Duration::from_secs(args.seconds), arms.len());

    print::line(format_args!(
        "A service that computes {:.1} ms for each request; batch work on every CPU; {rounds} round(s) of {} s an arm.",
        scene.work_ms(),
        length.as_secs()
    ));
    let mut summary = Summary::default();
    for round in 1..=rounds {
        for arm in arms {
            print::progress(format_args!(
                "round {round} of {rounds}, {}: running",
                arm.name()
            ));
            let segment = scene.run(arm, length)?;
            print::progress(format_args!(
                "round {round} of {rounds}, {}: p99 {:.2} ms, {} requests\n",
                arm.name(),
                segment.p99_ms,
                segment.completed
            ));
            summary.add(arm, segment);
        }
    }
    print::line(format_args!("\n{}", summary.table()));
    if let Some(file) = &args.json {
        write(file, &summary.json())?;
    }
    if args.stay {
        scene.stay()?;
    }
    if interrupted.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    Ok(())
}

/// Leaves everything running until a signal asks for its end, and says how the daemons can be looked at.
pub(crate) fn stay(sockets: &[PathBuf], interrupted: &AtomicBool) {
    // It was found before, to start the daemon.
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("forebay"));
    print::line(format_args!("Running. Look with:"));
    for look in looks(&program, sockets) {
        print::line(format_args!("  {look}"));
    }
    print::line(format_args!("Ctrl-C ends everything."));
    while !interrupted.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Command lines for a shell by which daemons are looked at, in a terminal and in a browser.
///
/// They name this program, which need not be on the path. A page takes any free port: there are several of
/// them in a fleet, and the host may have one of its own.
fn looks(program: &Path, sockets: &[PathBuf]) -> Vec<String> {
    let program = shell_word(program);
    let of_one = |socket: &PathBuf| {
        let socket = shell_word(socket);
        [
            format!("{program} top --socket {socket}"),
            format!("{program} dashboard --listen 127.0.0.1:0 --socket {socket}"),
        ]
    };
    sockets.iter().flat_map(of_one).collect()
}

/// A path as one word of a shell.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "/._-+".contains(sign);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn write(file: &Path, result: &serde_json::Value) -> Result<(), Error> {
    std::fs::write(file, result.to_string() + "\n").map_err(Error::system(
        "write the result to",
        file.display(),
        "check that its directory exists and has room",
    ))
}

/// As many rounds as fit, and the length of one segment.
pub(crate) fn rounds(total: Duration, arms: usize) -> (u32, Duration) {
    let arms = u32::try_from(arms).unwrap_or(u32::MAX).max(1);
    let longest = SEGMENT_MAX * arms;
    let rounds = u32::try_from(total.as_nanos().div_ceil(longest.as_nanos()))
        .unwrap_or(u32::MAX)
        .max(1);
    let length = (total / (rounds * arms)).max(SEGMENT_MIN);
    (rounds, Duration::from_secs(length.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_stays_is_looked_at_by_lines_that_a_shell_and_this_program_understand() {
        let sockets = ["/tmp/forebay-demo-7/a/socket", "/tmp/it's here/socket"];
        let lines = looks(Path::new("/opt/a b/forebay"), &sockets.map(PathBuf::from));
        assert_eq!(
            lines[..2],
            [
                "'/opt/a b/forebay' top --socket /tmp/forebay-demo-7/a/socket",
                "'/opt/a b/forebay' dashboard --listen 127.0.0.1:0 --socket /tmp/forebay-demo-7/a/socket",
            ]
        );
        for (line, socket) in lines.iter().zip(sockets.iter().flat_map(|one| [one, one])) {
            let words = Command::new("sh")
                .args(["-c", &format!("printf '%s\\n' {line}")])
                .output()
                .unwrap();
            let words = String::from_utf8(words.stdout).unwrap();
            let words: Vec<&str> = words.lines().collect();
            assert_eq!(words.first(), Some(&"/opt/a b/forebay"));
            assert_eq!(words.last(), Some(socket));
            let parsed = crate::Cli::whole().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn the_time_is_shared_by_rounds_and_arms() {
        let check = |seconds, expected: (u32, u64)| {
            let (rounds, length) = rounds(Duration::from_secs(seconds), 3);
            assert_eq!((rounds, length.as_secs()), expected, "{seconds} s");
        };
        check(12, (1, 4));
        check(30, (1, 10));
        check(60, (2, 10));
        check(100, (4, 8));
    }
}
