//! `forebay errand`: runs one command of an update, once, whatever becomes of the daemon.
//!
//! It is the program of the update's app, so that it and all that it starts are in that slice. What makes
//! the command run once is a file: whoever holds its lock runs it, `begun` is on disk before the command
//! begins, and a file that says so is never run again. A file that says `begun` and that nobody holds is
//! of a command that was cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_core::update::{Ending, Step};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// Between two looks at the command.
const LOOK: Duration = Duration::from_millis(20);
/// How long a command has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// What the command wrote is kept up to this; beyond, it begins anew.
const OUTPUT_MAX: u64 = 8 << 20;
/// The length of the file. It is never longer, so that the end can be written on a full disk.
const FILE_BYTES: usize = 4096;
/// Of a reason, what fits.
const WHY_MAX: usize = 1024;

/// Runs one command of an update.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file that says how far it is
    #[arg(long)]
    file: PathBuf,
    /// The step that it is, as JSON
    #[arg(long, value_parser = |text: &str| serde_json::from_str::<Step>(text))]
    step: Step,
    /// Where the command writes to
    #[arg(long)]
    output: PathBuf,
    /// How long it may take
    #[arg(long)]
    limit_ms: u64,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Errand {
    pub(super) step: Step,
    /// Who runs it.
    pub(super) pid: u32,
    pub(super) ending: Option<Ending>,
}

/// How far a command is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is no word of it.
    Unknown,
    /// It runs, under this process.
    Runs(u32),
    /// It ended.
    Ended(Ending),
}

fn write(file: &File, errand: &Errand) -> io::Result<()> {
    let mut text = serde_json::to_vec(errand)?;
    text.resize(FILE_BYTES, b' ');
    file.write_all_at(&text, 0)?;
    file.sync_all()
}

fn read(file: &mut File) -> io::Result<Option<Errand>> {
    let mut text = String::new();
    file.take(FILE_BYTES as u64).read_to_string(&mut text)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&text).map(Some).map_err(Into::into)
}

/// Looks how far the command of a file is.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn look(path: &Path) -> io::Result<Standing> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Standing::Unknown),
        Err(error) => return Err(error),
    };
    // Nobody writes while it is held here, and whoever comes to run it waits a moment.
    let is_free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    match read(&mut file) {
        Ok(Some(errand)) => Ok(match errand.ending {
            Some(ending) => Standing::Ended(ending),
            None if is_free => Standing::Ended(Ending::Lost),
            None => Standing::Runs(errand.pid),
        }),
        Ok(None) => Ok(Standing::Unknown),
        // Half of it is there: it is being written, or the host went down meanwhile.
        Err(_) if is_free => Ok(Standing::Ended(Ending::Lost)),
        Err(_) => Ok(Standing::Unknown),
    }
}

/// Has the command of a file never run, unless it was begun; how it ended.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn forbid(path: &Path, step: &Step) -> io::Result<Ending> {
    let mut file = open(path)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(io::Error::other("it has begun just now"));
    }
    match read(&mut file) {
        Ok(None) => {}
        Ok(Some(errand)) => return Ok(errand.ending.unwrap_or(Ending::Lost)),
        Err(_) => return Ok(Ending::Lost),
    }
    let ending = Ending::NotStarted("nothing started it in its slice".to_owned());
    let errand = Errand {
        step: step.clone(),
        pid: std::process::id(),
        ending: Some(ending.clone()),
    };
    write(&file, &errand)?;
    Ok(ending)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Runs the command of a file, or finds that it was run.
///
/// # Errors
/// When the file cannot be written; then the command does not run.
pub(crate) fn run(args: &Args) -> io::Result<ExitCode> {
    let asked = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&asked))?;
    let mut file = open(&args.file)?;
    flock(&file, FlockOperation::LockExclusive)?;
    // One that cannot be read was begun as well.
    if !matches!(read(&mut file), Ok(None)) {
        return Ok(ExitCode::SUCCESS);
    }
    let mut errand = Errand {
        step: args.step.clone(),
        pid: std::process::id(),
        ending: None,
    };
    write(&file, &errand)?;
    if let Some(dir) = args.file.parent() {
        File::open(dir)?.sync_all()?;
    }
    errand.ending = Some(match start(args) {
        Ok(child) => attend(child, args, &asked)?,
        Err(error) => {
            let mut why = format!("{}: {error}", args.command.join(" "));
            why.truncate(why.floor_char_boundary(WHY_MAX));
            Ending::NotStarted(why)
        }
    });
    write(&file, &errand)?;
    Ok(ExitCode::SUCCESS)
}

fn start(args: &Args) -> io::Result<Child> {
    let (program, rest) = args
        .command
        .split_first()
        .ok_or_else(|| io::Error::other("there is no command"))?;
    Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Waits for the end of the command, which is asked to end after its limit, or when somebody says so.
fn attend(mut child: Child, args: &Args, asked: &AtomicBool) -> io::Result<Ending> {
    let began = Instant::now();
    let limit = Duration::from_millis(args.limit_ms);
    let mut told: Option<(Instant, Ending)> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match told {
                Some((_, why)) => why,
                None => ending(status),
            });
        }
        let why = match (asked.load(Ordering::Relaxed), began.elapsed() >= limit) {
            (true, _) => Some(Ending::Stopped),
            (false, true) => Some(Ending::TimedOut),
            (false, false) => None,
        };
        match (&told, why) {
            (None, Some(why)) => {
                signal(&child, Signal::TERM);
                told = Some((Instant::now(), why));
            }
            (Some((at, _)), _) if at.elapsed() >= GRACE => signal(&child, Signal::KILL),
            _ => {}
        }
        bound(&args.output);
        std::thread::sleep(LOOK);
    }
}

/// A group that is gone needs no signal.
fn signal(child: &Child, signal: Signal) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group
        && let Err(error) = kill_process_group(group, signal)
    {
        writeln!(io::stderr(), "forebay: end the command: {error}").ok();
    }
}

fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Status(code),
        (None, Some(signal)) => Ending::Signal(signal),
        (None, None) => Ending::Lost,
    }
}

/// A command that writes for ever fills no disk: what it wrote begins anew, and it goes on behind that.
fn bound(output: &Path) {
    let grown = std::fs::metadata(output).is_ok_and(|found| found.len() > OUTPUT_MAX);
    if grown
        && let Err(error) = OpenOptions::new()
            .write(true)
            .open(output)
            .and_then(|file| file.set_len(0))
    {
        writeln!(io::stderr(), "forebay: bound the output: {error}").ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, limit_ms: u64, command: &str) -> Args {
        Args {
            file: dir.join("errand"),
            step: Step {
                update: 1,
                run: 1,
                boot: "boot".to_owned(),
            },
            output: dir.join("output"),
            limit_ms,
            command: ["sh", "-c", command].map(str::to_owned).to_vec(),
        }
    }

    #[test]
    fn a_command_runs_once_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let command = format!("echo x >> {}; exit 3", count.display());
        let args = args(dir.path(), 60_000, &command);
        assert_eq!(look(&args.file).unwrap(), Standing::Unknown);
        for _ in 0..3 {
            run(&args).unwrap();
            let standing = look(&args.file).unwrap();
            assert_eq!(standing, Standing::Ended(Ending::Status(3)));
        }
        assert_eq!(std::fs::read_to_string(count).unwrap(), "x\n");
    }

    #[test]
    fn one_that_hangs_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path(), 100, "sleep 1000000007 & wait");
        run(&args).unwrap();
        let standing = look(&args.file).unwrap();
        assert_eq!(standing, Standing::Ended(Ending::TimedOut));
    }

    #[test]
    fn one_that_does_not_exist_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(dir.path(), 100, "");
        args.command = vec![format!("/nowhere/{}", "x".repeat(3 * WHY_MAX))];
        run(&args).unwrap();
        match look(&args.file).unwrap() {
            Standing::Ended(Ending::NotStarted(why)) => assert!(why.starts_with("/nowhere/xx")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_that_was_forbidden_never_runs() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let args = args(dir.path(), 100, &format!("echo x > {}", count.display()));
        let ending = forbid(&args.file, &args.step).unwrap();
        assert!(matches!(ending, Ending::NotStarted(_)));
        run(&args).unwrap();
        assert_eq!(look(&args.file).unwrap(), Standing::Ended(ending));
        assert!(!count.exists());
    }

    #[test]
    fn one_that_was_begun_and_is_nobodys_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path(), 100, "exit 0");
        let file = File::create(&args.file).unwrap();
        let errand = Errand {
            step: args.step.clone(),
            pid: 1,
            ending: None,
        };
        write(&file, &errand).unwrap();
        assert_eq!(look(&args.file).unwrap(), Standing::Ended(Ending::Lost));
        // Nor is it run by whoever comes then.
        run(&args).unwrap();
        assert_eq!(look(&args.file).unwrap(), Standing::Ended(Ending::Lost));
        assert_eq!(forbid(&args.file, &args.step).unwrap(), Ending::Lost);
        // Nor is one of which half was written.
        file.set_len(20).unwrap();
        run(&args).unwrap();
        assert_eq!(look(&args.file).unwrap(), Standing::Ended(Ending::Lost));
        let held = OpenOptions::new().write(true).open(&args.file).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        write(&held, &errand).unwrap();
        assert_eq!(look(&args.file).unwrap(), Standing::Runs(1));
    }
}
