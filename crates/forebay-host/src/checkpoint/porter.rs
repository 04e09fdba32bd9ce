//! Takes a process in that comes from another host, in a process of its own, which outlives the daemon.
//!
//! # Problem
//!
//! A process that came has to be whole although the daemon ends that took it in: before it may go on, since
//! it is then the only copy that anybody has, and after, while its memory is being filled in behind its back.
//! Waiting until all is filled in would have it stand for a second or two for each GiB.
//!
//! # Approach
//!
//! The porter has the memory, has CRIU make the process in its app's control groups, standing still, and fills it
//! in. It hears from the daemon by a pipe, until the process is whole; from then on it needs nobody:
//!
//! ```text
//! daemon                                   porter
//!   'm' and runs of pages, again and again ──▶ Assembly        the process runs at its source
//!   'o' and which of them are stale ─────────▶ forgotten       only where memory may come after it
//!   'p' ─────────────────────────────────────▶ CRIU restores   it stands at both
//!   ◀──────────── who it is, or why it is not  landed.json     the daemon may end from here on
//!                                              fills in, ends  (owed.json: how far, and how that ended)
//! ```
//!
//! # Properties
//!
//! - What is known of the process is durable before the daemon is told: its number and the moment it was made.
//! - Where the pipe ends before 'p', nothing is made. The porter ends after the process is whole, or with it.
//! - Where the porter is ended, its guard ends a process that would read zeros.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::units::Bytes;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::hold::readable;
use super::owed::Lender;
use super::store::boot;
use super::{Assembly, Criu, Filled, Landed, Landing, owes};
use crate::error::HostError;
use crate::groups;
use crate::ledger::Process;
use crate::procs;

/// What the daemon says.
const MEMORY: u8 = b'm';
const OWED: u8 = b'o';
const PREPARE: u8 = b'p';
/// What is known of a process that is whole, beside its images.
const LANDED: &str = "landed.json";
/// How often it is said how much of what comes later is to come still.
const SAID_EVERY: Duration = Duration::from_millis(100);
/// What is said of a lender is no longer.
const LENDER_MAX: u64 = 4096;
/// What is buffered on the way.
const BUFFER: usize = 256 << 10;
/// So long may it take to make a process: CRIU's own bounds, and some more.
const PREPARE_MAX: Duration = Duration::from_secs(90);
/// The longest line that a porter says.
const LINE_MAX: u64 = 64 << 10;

/// What a porter is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// CRIU.
    pub criu: PathBuf,
    /// Where the images of the process are, which come before it is made.
    pub images: PathBuf,
    /// Memory that it may have.
    pub most: Bytes,
    /// How it is made.
    pub landing: Landing,
}

/// Who was made, and in which boot: numbers begin anew with the next one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Made {
    process: Process,
    boot: String,
}

/// What a porter says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    Landed(Process),
    Failed(String),
}

/// A porter at work, for its daemon.
#[derive(Debug)]
pub struct Porter {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: ChildStdout,
}

impl Porter {
    /// Starts one: `command` runs [`serve`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self, HostError> {
        let fail = |error| HostError::io("start a process that takes another one in", error);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(fail)?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(fail(io::Error::other("it has no input or output")));
        };
        Ok(Self {
            child,
            input: BufWriter::with_capacity(BUFFER, input),
            output,
        })
    }

    /// Hands over runs of so many bytes, their end included.
    ///
    /// # Errors
    /// When they do not come whole, or the porter refuses them; it is of no use any more then.
    pub fn take(&mut self, bytes: u64, from: &mut dyn Read) -> Result<(), HostError> {
        let fail = |error| HostError::io("take in memory of a process", error);
        self.input.write_all(&[MEMORY]).map_err(fail)?;
        self.pass_on(bytes, from)
    }

    fn pass_on(&mut self, bytes: u64, from: &mut dyn Read) -> Result<(), HostError> {
        let fail = |error| HostError::io("take in memory of a process", error);
        let copied = io::copy(&mut from.take(bytes), &mut self.input);
        let copied = copied.map_err(|error| self.why(error))?;
        if copied != bytes {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut off");
            return Err(fail(cut));
        }
        self.input.flush().map_err(|error| self.why(error))
    }

    /// Hands over which runs are to come once the process goes on, so many bytes, and of whom they are to be had, in
    /// words of whoever starts porters.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn owe(&mut self, lender: &str, bytes: u64, from: &mut dyn Read) -> Result<(), HostError> {
        let fail = |error| HostError::io("take in what of a process is to come", error);
        let length = u16::try_from(lender.len()).map_err(|e| fail(io::Error::other(e)))?;
        let mut head = vec![OWED];
        head.extend(length.to_le_bytes());
        head.extend(lender.as_bytes());
        self.input.write_all(&head).map_err(fail)?;
        self.pass_on(bytes, from)
    }

    /// Has the process made of all that came, and waits until it stands whole. What is left to be done, the
    /// child does by itself: somebody has to hear of its end.
    ///
    /// # Errors
    /// When it could not be made: nothing of it is left.
    pub fn prepare(mut self) -> Result<(Process, Child), HostError> {
        let fail = |error| HostError::io("have a process made that came", error);
        let asked = self.input.write_all(&[PREPARE]);
        let asked = asked.and_then(|()| self.input.flush());
        let hears = readable(self.output.as_fd(), PREPARE_MAX).map_err(fail)?;
        if !hears {
            self.end();
            let late = format!("it took more than {} s", PREPARE_MAX.as_secs());
            return Err(fail(io::Error::new(io::ErrorKind::TimedOut, late)));
        }
        match (self.heard(), asked) {
            (Ok(Said::Landed(process)), Ok(())) => Ok((process, self.child)),
            (Ok(Said::Failed(why)), _) => {
                self.end();
                Err(HostError::told(why))
            }
            (_, Err(error)) | (Err(error), _) => {
                self.end();
                Err(fail(error))
            }
        }
    }

    /// Why it takes nothing more: what it said, if it ended. One that is there says nothing, whatever became of the
    /// source.
    fn why(&mut self, error: io::Error) -> HostError {
        let is_ended = error.kind() == io::ErrorKind::BrokenPipe;
        match is_ended.then(|| self.heard()) {
            Some(Ok(Said::Failed(why))) => HostError::told(why),
            _ => HostError::io("take in memory of a process", error),
        }
    }

    fn heard(&mut self) -> io::Result<Said> {
        let mut line = String::new();
        BufReader::new((&mut self.output).take(LINE_MAX)).read_line(&mut line)?;
        serde_json::from_str(&line).map_err(io::Error::other)
    }

    /// Ends it, and whatever CRIU it began ends with the groups that it is in.
    pub fn end(mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Finds whoever lends memory by what the daemon says of it.
pub type Find<'a> = &'a dyn Fn(&str) -> Result<Arc<dyn Lender>, HostError>;

/// Does what a porter does, to its end.
///
/// # Errors
/// When the process could not be made or filled in; the daemon was told, where it could be.
pub fn serve(
    errand: &Errand,
    (from, to): (&mut dyn Read, &mut dyn Write),
    find: Find<'_>,
) -> Result<(), HostError> {
    // It outlives whoever gets signals of the terminal. Where it is run by itself, it may lead a group.
    rustix::process::setsid().ok();
    let landed = match land(errand, from, find) {
        Ok(Some(landed)) => landed,
        // The daemon wants nothing any more, or ended.
        Ok(None) => return Ok(()),
        Err(error) => {
            say(to, &Said::Failed(error.explain()))?;
            return Err(error);
        }
    };
    let Arrived {
        landed,
        process,
        is_owed,
    } = landed;
    if let Err(error) = say(to, &Said::Landed(process)) {
        // The daemon that comes next finds it.
        tracing::warn!(reason = error.explain(), "nobody hears that it is there");
    }
    let images = is_owed.then_some(errand.images.as_path());
    let filled: Filled = settle(landed, images)?;
    tracing::info!(
        bytes = filled.bytes.0,
        faults = filled.faults,
        "all of its memory is there"
    );
    Ok(())
}

fn say(to: &mut dyn Write, said: &Said) -> Result<(), HostError> {
    let fail = |error| HostError::io("tell the daemon of a process that came", error);
    let mut line = serde_json::to_vec(said).map_err(|error| fail(io::Error::other(error)))?;
    line.push(b'\n');
    to.write_all(&line).and_then(|()| to.flush()).map_err(fail)
}

/// A process that stands whole.
struct Arrived {
    landed: Landed,
    process: Process,
    /// Memory of it comes later.
    is_owed: bool,
}

fn land(
    errand: &Errand,
    from: &mut dyn Read,
    find: Find<'_>,
) -> Result<Option<Arrived>, HostError> {
    let mut from = BufReader::with_capacity(BUFFER, from);
    let mut assembly = Assembly::new(errand.most)?;
    let mut lender = None;
    loop {
        let mut word = [0];
        match from.read_exact(&mut word) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(|e| HostError::io("hear from the daemon", e))?,
        }
        match word[0] {
            MEMORY => assembly.take(&mut from)?,
            OWED => lender = Some(owe(&mut assembly, &mut from, find)?),
            PREPARE => break,
            other => {
                return Err(HostError::invalid(
                    format!("do what the daemon asks by {other}"),
                    "report this",
                ));
            }
        }
    }
    let criu = Criu::find(Some(&errand.criu))?;
    let is_owed = lender.is_some();
    let landed = Landed::prepare(&criu, &errand.images, assembly, &errand.landing, lender)?;
    let noted = is_owed.then(|| owes::begin(&errand.images)).transpose();
    match noted.and_then(|_| note(&errand.images, landed.pid())) {
        Ok(process) => Ok(Some(Arrived {
            landed,
            process,
            is_owed,
        })),
        Err(error) => {
            landed.discard()?;
            Err(error)
        }
    }
}

/// Hears what is to come later, and of whom.
fn owe(
    assembly: &mut Assembly,
    from: &mut impl Read,
    find: Find<'_>,
) -> Result<Arc<dyn Lender>, HostError> {
    let fail = |error| HostError::io("hear what of a process is to come later", error);
    let mut length = [0; 2];
    from.read_exact(&mut length).map_err(fail)?;
    let mut lender = String::new();
    let length = u64::from(u16::from_le_bytes(length)).min(LENDER_MAX);
    from.by_ref()
        .take(length)
        .read_to_string(&mut lender)
        .map_err(fail)?;
    assembly.owe(from)?;
    find(&lender)
}

/// Fills in to the end, and says beside its images how far that is where memory is to come.
fn settle(landed: Landed, images: Option<&Path>) -> Result<Filled, HostError> {
    let Some(images) = images else {
        return landed.settle();
    };
    let mut said = None;
    while !landed.is_settled() {
        let left = landed.left();
        if said != Some(left) {
            owes::say_left(images, left);
            said = Some(left);
        }
        std::thread::sleep(SAID_EVERY);
    }
    let settled = landed.settle();
    let noted = match &settled {
        Ok(_) => owes::Noted::Whole,
        Err(error) => owes::Noted::Lost(error.explain()),
    };
    match (owes::put(images, &noted), settled) {
        // Nobody would know, and its source would stand for ever; that it ended is as good.
        (Err(error), Ok(_)) => {
            tracing::error!(reason = error.explain(), "nobody knows that it is whole");
            Err(error)
        }
        (_, settled) => settled,
    }
}

/// Writes down who it is.
pub(super) fn note(images: &Path, pid: u32) -> Result<Process, HostError> {
    let process = procs::identify(Path::new("/proc"), pid).ok_or_else(|| {
        HostError::missing(
            format!("find process {pid}, which was just made: it ended"),
            "it goes on where it came from",
        )
    })?;
    let place = images.join(LANDED);
    let new = place.with_extension("new");
    let fail = |error| HostError::file("write", &new, error);
    let boot = boot(Path::new("/proc"))?;
    let text =
        serde_json::to_vec(&Made { process, boot }).map_err(|e| fail(io::Error::other(e)))?;
    let mut file = File::create(&new).map_err(fail)?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, &place))
        .and_then(|()| File::open(images)?.sync_all())
        .map_err(fail)?;
    Ok(process)
}

/// The process that was made of these images, if one was and it is still there.
#[must_use]
pub fn landed(images: &Path) -> Option<Process> {
    let text = fs::read(images.join(LANDED)).ok()?;
    let Made { process, boot: at } = serde_json::from_slice(&text).ok()?;
    let proc_root = Path::new("/proc");
    let is_it = boot(proc_root).ok()? == at && procs::is_alive(proc_root, process);
    is_it.then_some(process)
}

/// Ends a process that came. Done as well where it is gone.
pub fn end(process: Process) {
    if procs::is_alive(Path::new("/proc"), process) {
        groups::signal(process.pid, Signal::KILL);
    }
}

/// Lets a process that came go on. Done as well where it goes on already.
///
/// # Errors
/// When it ended.
pub fn go_on(process: Process) -> Result<(), HostError> {
    let gone = || {
        HostError::missing(
            format!("let process {} go on: it ended", process.pid),
            "see the log of the daemon for why",
        )
    };
    let number = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let pidfd = number.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // Once it is held on to, its number is no other's.
    let pidfd = pidfd.filter(|_| procs::is_alive(Path::new("/proc"), process));
    pidfd_send_signal(pidfd.ok_or_else(gone)?, Signal::CONT).map_err(|_| gone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Tcp;

    fn errand(dir: &Path) -> Errand {
        Errand {
            criu: "/no/such/criu".into(),
            images: dir.to_owned(),
            most: Bytes::mib(1),
            landing: Landing {
                tcp: Tcp::Refuse,
                groups: Vec::new(),
            },
        }
    }

    fn nobody(lender: &str) -> Result<Arc<dyn Lender>, HostError> {
        Err(HostError::told(format!("{lender} lends nothing")))
    }

    #[test]
    fn a_daemon_that_ends_leaves_nothing_to_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut said = Vec::new();
        let mut heard = vec![MEMORY];
        super::super::runs::end(&mut heard).unwrap();
        serve(
            &errand(dir.path()),
            (&mut heard.as_slice(), &mut said),
            &nobody,
        )
        .unwrap();
        assert!(said.is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_goes_wrong_is_told_to_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let check = |heard: &[u8], part: &str| {
            let mut said = Vec::new();
            let heard: &mut dyn Read = &mut &*heard;
            let error = serve(&errand(dir.path()), (heard, &mut said), &nobody).unwrap_err();
            let said: Said = serde_json::from_slice(&said).unwrap();
            let Said::Failed(why) = said else {
                panic!("{said:?}")
            };
            assert_eq!(why, error.explain());
            assert!(why.contains(part), "{why}");
        };
        check(&[PREPARE], "/no/such/criu");
        check(b"x", "report this");
        let mut cut = vec![MEMORY];
        cut.extend([0; 8]);
        check(&cut, "take in the memory");
        let mut owed = vec![OWED, 3, 0, b'a', b't', b'b'];
        owed.extend([0; 8]);
        check(&owed, "to come later");
        let mut owed = vec![OWED, 3, 0, b'a', b't', b'b'];
        super::super::runs::end(&mut owed).unwrap();
        check(&owed, "atb lends nothing");
    }

    /// A source that was lost left the daemon to wait for what a porter says that waits for the rest.
    #[test]
    fn a_source_that_is_lost_is_told_at_once() {
        struct Lost;
        impl Read for Lost {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("it was cut"))
            }
        }
        let mut command = Command::new("sh");
        command.args(["-c", "cat > /dev/null"]);
        let mut porter = Porter::start(command).unwrap();
        let error = porter.take(100, &mut Lost).unwrap_err().explain();
        assert!(error.contains("it was cut"), "{error}");
        let error = porter.take(100, &mut &b"ten bytes."[..]).unwrap_err();
        assert!(error.explain().contains("cut off"), "{error}");
        porter.end();
    }

    #[test]
    fn a_process_of_before_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(landed(dir.path()), None);
        let own = note(dir.path(), std::process::id()).unwrap();
        assert_eq!(landed(dir.path()), Some(own));
        let other = Process {
            start_time: own.start_time + 1,
            ..own
        };
        let here = boot(Path::new("/proc")).unwrap();
        for (process, boot) in [(other, here), (own, "another".to_owned())] {
            let made = serde_json::to_vec(&Made { process, boot }).unwrap();
            fs::write(dir.path().join(LANDED), made).unwrap();
            assert_eq!(landed(dir.path()), None);
        }
        assert!(go_on(other).unwrap_err().explain().contains("it ended"));
    }
}
