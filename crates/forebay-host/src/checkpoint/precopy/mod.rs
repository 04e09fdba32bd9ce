//! The memory of a process that runs, copied in rounds.
//!
//! # Problem
//!
//! A process that moves to another host should stand for as long as its last writes take to send, not
//! for as long as all of its memory does. So it is copied while it runs, and copied again where it was
//! written meanwhile: the kernel has to say where.
//!
//! # Approach
//!
//! The process is made to open a `userfaultfd`, which is fetched from it and closed there: one stop of
//! a millisecond. By that descriptor the kernel notes by itself, without asking anybody, which pages of
//! its private anonymous memory are written (`UFFD_FEATURE_WP_ASYNC`), and `PAGEMAP_SCAN` asks
//! and marks anew in one step. Pages are marked before they are read: what is written while they are
//! read is found by the next round.
//!
//! Areas that came meanwhile, or took the place of others, are not tracked, and the kernel refuses to
//! scan them: then all of them is copied, and they are tracked from then on.
//!
//! An area that is moved (mremap) is not tracked any more where it went, and where the kernel joins it
//! with a neighbour, neither is that one. But the marks of the neighbour stay, and say nothing any more: it
//! is written without taking them out. So of whatever begins to be tracked, be it for the first time or
//! anew, all marks are taken out before any is made. Nobody but this begins to track, hence a mark that is
//! found later was made here, and the area was tracked all the time since.
//!
//! # Properties
//!
//! - The process runs all the time but for the one stop, and nothing of it changes: when the descriptor
//!   closes, for whatever reason, the kernel takes its marks out.
//! - Every page that was written after it was last sent is sent by a later round.
//! - So after the last round, while the process stands, every page that is there and not the kernel's page
//!   of zeros was sent as it is. Of the others it may be that something older was sent: whoever makes
//!   the process anew goes by what is there now, as CRIU's image does.
//! - Known not to be seen: what a device writes past the page tables, into memory that it was given
//!   before a round (direct I/O that is under way when the page is marked and ends after it was read).
//! - Memory used here: one batch, and a few words for every run of pages of one area.
//!
//! Source: the kernel's admin-guide/mm/userfaultfd and admin-guide/mm/pagemap; for the rounds,
//! [`forebay_core::fleet::rounds`]. Needs Linux 6.7.

mod inject;
pub(crate) mod maps;
mod read;
pub(in crate::checkpoint) mod scan;
pub(crate) mod userfault;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use forebay_core::fleet::rounds::{Bounds, Round, Verdict, judge};
use forebay_core::units::Bytes;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use self::inject::Stopped;
use self::read::Reader;
use self::scan::{Doing, Which, scan};
use self::userfault::{Range, USER_MODE_ONLY, Userfault};
use super::runs;
use crate::error::HostError;

/// Areas that change while they are looked at are looked at so often.
const TRIES: u32 = 8;

/// Tracks what a process writes.
#[derive(Debug)]
pub struct Tracker {
    pid: i32,
    pidfd: OwnedFd,
    userfault: Userfault,
    pagemap: File,
    reader: Reader,
    /// Pages that were marked and could not be read.
    unread: Vec<Range>,
    /// How long the process stood for this to begin.
    stood: Duration,
}

pub(crate) fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

fn number(pid: u32) -> Result<Pid, HostError> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    raw.ok_or_else(|| {
        HostError::missing(
            format!("track process {pid}"),
            "there is none of that number",
        )
    })
}

impl Tracker {
    /// Begins to track a process.
    ///
    /// # Errors
    /// When the kernel cannot, or the process must not be stopped. It goes on as before then.
    pub fn attach(pid: u32) -> Result<Self, HostError> {
        let number = number(pid)?;
        let pid = number.as_raw_nonzero().get();
        let fail =
            |what: &str, error: io::Error| HostError::io(format!("{what} process {pid}"), error);
        let open = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            File::open(&path).map_err(|e| HostError::io(format!("open {path}"), e))
        };
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|e| fail("watch", e.into()))?;
        let (pagemap, memory) = (open("pagemap")?, open("mem")?);
        let began = Instant::now();
        let fd = fetch_apart(pid, pidfd.as_fd())?;
        let stood = began.elapsed();
        let userfault = Userfault::tracking(fd).map_err(|error| {
            fail("track writes of", error).advise("that needs Linux 6.7 or newer")
        })?;
        Ok(Self {
            pid,
            pidfd,
            userfault,
            pagemap,
            reader: Reader::new(pid, memory),
            unread: Vec::new(),
            stood,
        })
    }

    /// How long it stood for that.
    #[must_use]
    pub const fn stood(&self) -> Duration {
        self.stood
    }

    /// Whose writes are tracked.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Copies what was written since the round before; all there is, in the first.
    ///
    /// # Errors
    /// When the process ended, the taker refuses, or an area cannot be tracked.
    pub fn round(&mut self, to: &mut impl Write) -> Result<Round, HostError> {
        let began = Instant::now();
        let copied = self.copy(to)?;
        let took = began.elapsed();
        Ok(Round {
            copied: Bytes(copied),
            took,
            left: Bytes(self.left()?),
        })
    }

    /// Copies what is left of a process that stands still.
    ///
    /// # Errors
    /// As those of [`Self::round`], and where a page cannot be read.
    pub fn last(&mut self, to: &mut impl Write) -> Result<Bytes, HostError> {
        let copied = self.copy(to)?;
        // What is no memory now was given up by the process.
        self.unread.clear();
        Ok(Bytes(copied))
    }

    /// Says what [`Self::last`] would copy of a process that stands still, for whoever fetches it later; how much that
    /// is.
    ///
    /// # Errors
    /// As those of [`Self::round`].
    pub fn owe(&mut self, to: &mut impl Write) -> Result<Bytes, HostError> {
        let mut owed = std::mem::take(&mut self.unread);
        let areas = maps::read(self.pid)?;
        if areas.is_empty() {
            return Err(self.ended());
        }
        for area in areas.iter().filter(|area| area.is_lazy()) {
            owed.extend(self.written(Range {
                start: area.start,
                len: area.end - area.start,
            })?);
        }
        self.alive()?;
        runs::write_places(to, &owed)
            .map_err(|error| HostError::io("say what of a process is to come later", error))?;
        Ok(Bytes(owed.iter().map(|range| range.len).sum()))
    }

    /// Copies in rounds until freezing it is right, or it is not; what each of them did.
    ///
    /// # Errors
    /// As those of [`Self::round`].
    pub fn rounds(
        &mut self,
        bounds: Bounds,
        to: &mut impl Write,
    ) -> Result<(Vec<Round>, Verdict), HostError> {
        let mut rounds = Vec::new();
        loop {
            match judge(bounds, &rounds) {
                Verdict::Again => rounds.push(self.round(to)?),
                verdict => return Ok((rounds, verdict)),
            }
        }
    }

    fn copy(&mut self, to: &mut impl Write) -> Result<u64, HostError> {
        let mut copied = 0;
        let again = std::mem::take(&mut self.unread);
        let mut unread = Vec::new();
        let refused = |error| HostError::io("send memory of a process", error);
        copied += self
            .reader
            .send(again.into_iter(), to, &mut unread)
            .map_err(refused)?;
        let areas = maps::read(self.pid)?;
        // It has none any more when it ends, before all of its threads have.
        if areas.is_empty() {
            return Err(self.ended());
        }
        for area in areas {
            if !area.is_lazy() {
                continue;
            }
            let range = Range {
                start: area.start,
                len: area.end - area.start,
            };
            let runs = self.written(range)?;
            copied += self
                .reader
                .send(runs.into_iter(), to, &mut unread)
                .map_err(refused)?;
        }
        self.unread = unread;
        self.alive()?;
        Ok(copied)
    }

    /// What was written in an area since it was marked, and marks it anew; all of it where it is new.
    fn written(&self, area: Range) -> Result<Vec<Range>, HostError> {
        let mut runs = Vec::new();
        let marked = scan(&self.pagemap, area, (Which::Written, Doing::Mark), |run| {
            runs.push(run);
        });
        match marked {
            Ok(()) => return Ok(runs),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(self.refused(area, error)),
        }
        // It is new, or part of it is, and what was marked before that was found is lost.
        let mut known: Vec<Range> = Vec::new();
        let mut failed = None;
        runs.clear();
        for _ in 0..TRIES {
            // Whole areas: one that is tracked in part is two to the kernel, and the process cannot move it.
            let mut areas = touching(self.pid, area)?;
            if areas.iter().all(|now| known.contains(now)) {
                return Ok(runs);
            }
            failed = None;
            areas.retain(|now| {
                let begun = match known.contains(now) {
                    true => Ok(()),
                    false => self.begin(*now, &mut runs),
                };
                begun.map_err(|error| failed = Some((*now, error))).is_ok()
            });
            known = areas;
        }
        match failed {
            Some((at, error)) => Err(self.refused(at, error)),
            // What came last is not tracked, so that the next round finds it.
            None => Ok(runs),
        }
    }

    /// Begins to track an area, and finds all that is there.
    fn begin(&self, area: Range, runs: &mut Vec<Range>) -> io::Result<()> {
        match self.userfault.track(area) {
            // A kind whose content may go at any time: no image has it. If one does, the target notices.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            tracked => tracked?,
        }
        self.userfault.unmark(area)?;
        scan(&self.pagemap, area, (Which::There, Doing::Mark), |run| {
            runs.push(run);
        })
    }

    /// Bytes that were written and not copied.
    fn left(&self) -> Result<u64, HostError> {
        let mut left: u64 = self.unread.iter().map(|range| range.len).sum();
        for area in maps::read(self.pid)? {
            if !area.is_lazy() {
                continue;
            }
            let range = Range {
                start: area.start,
                len: area.end - area.start,
            };
            let mut bytes = 0;
            scan(&self.pagemap, range, (Which::Written, Doing::Look), |run| {
                bytes += run.len;
            })
            .map_err(|error| self.refused(range, error))?;
            left += bytes;
        }
        Ok(left)
    }

    fn alive(&self) -> Result<(), HostError> {
        let mut polled = [rustix::event::PollFd::new(
            &self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut polled, Some(&now)) {
            Ok(1..) => Err(self.ended()),
            _ => Ok(()),
        }
    }

    fn ended(&self) -> HostError {
        HostError::missing(
            format!("copy the memory of process {}: it ended", self.pid),
            "it is started anew where it was",
        )
    }

    fn refused(&self, area: Range, error: io::Error) -> HostError {
        let (pid, start, end) = (self.pid, area.start, area.start + area.len);
        let said = HostError::io(
            format!("track what process {pid} writes at {start:x}-{end:x}"),
            error,
        );
        match said.errno() {
            Some(libc::EBUSY) => said.advise(
                "it handles its own page faults, so that nobody else can; move it by a restart",
            ),
            _ => said.advise("it goes on as before; move it by a restart"),
        }
    }
}

/// The areas of a process now that can be tracked and have a part in a range.
fn touching(pid: i32, range: Range) -> Result<Vec<Range>, HostError> {
    let end = range.start + range.len;
    let areas = maps::read(pid)?;
    let touching = areas
        .iter()
        .filter(|area| area.is_lazy() && area.start < end && range.start < area.end)
        .map(|area| Range {
            start: area.start,
            len: area.end - area.start,
        });
    Ok(touching.collect())
}

/// [`fetch`] on a thread of its own: where that gives up on a process that does not stop, its end takes back
/// that it was asked to.
fn fetch_apart(pid: i32, pidfd: rustix::fd::BorrowedFd<'_>) -> Result<OwnedFd, HostError> {
    let fetched = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tracer".to_owned());
        let thread = thread.spawn_scoped(scope, || fetch(pid, pidfd));
        thread.map(std::thread::ScopedJoinHandle::join)
    });
    let ended = || io::Error::other("its thread ended");
    fetched
        .and_then(|joined| joined.map_err(|_| ended()))
        .unwrap_or_else(|error| Err(HostError::io(format!("stop process {pid}"), error)))
}

/// Whether this kernel notes what a process writes: asked of it, for this process, in which nothing is tracked.
///
/// # Errors
/// It does not, or not for whoever asks.
pub(crate) fn probe() -> Result<(), HostError> {
    let opened = userfault::open().and_then(Userfault::tracking);
    opened.map(drop).map_err(|error| {
        HostError::missing(
            format!("have the kernel note what processes write ({error})"),
            "boot Linux 6.7 or newer, with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP",
        )
    })
}

/// Has the process open the descriptor, takes it, and has the process close its own.
pub(in crate::checkpoint) fn fetch(
    pid: i32,
    pidfd: rustix::fd::BorrowedFd<'_>,
) -> Result<OwnedFd, HostError> {
    let fail = |what: &str, error: io::Error| HostError::io(format!("{what} process {pid}"), error);
    let mut stopped = Stopped::stop(pid)?;
    let flags = u64::from(OPEN_FLAGS | USER_MODE_ONLY);
    let opened = stopped
        .call(libc::SYS_userfaultfd, [flags, 0, 0])
        .map_err(|error| fail("open a userfaultfd in", error))?;
    let taken = i32::try_from(opened)
        .map_err(io::Error::other)
        .and_then(|fd| Ok(pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty())?));
    let closed = stopped.call(libc::SYS_close, [opened, 0, 0]);
    stopped.release()?;
    let taken = taken.map_err(|error| fail("take a descriptor from", error))?;
    closed.map_err(|error| fail("close a descriptor in", error))?;
    Ok(taken)
}

/// Closed in programs that are started, and never waited for.
const OPEN_FLAGS: u32 = (libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned();
