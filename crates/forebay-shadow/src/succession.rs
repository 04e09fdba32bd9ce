//! How a new process takes a front's place: a new release of Forebay, or another plan.
//!
//! Problem: no connection may be refused or reset meanwhile, and two may never say who serves.
//!
//! Approach: the new process asks the old one on its control socket.
//!
//! ```text
//!   new                                    old
//!    │ Succeed ──────────────────────────>  │ the director stops where nothing is under way, and
//!    │                                      │ leaves the lock of the epoch file
//!    │ <────── Inheritance, with the descriptors of listening sockets, of fences, and of lines
//!    │         to processes before it       │
//!    │ takes the lock, binds what is new    │
//!    │ Succeeded ─────────────────────────> │
//!    │ <────────────────────────────── Done │
//!    │ a course: who serves ──────────────> │ the director ends; accepts nobody from here on
//!    │ <──────────────────────────── report │
//!    │ directs, accepts                     │ follows, until its last client is gone
//! ```
//!
//! Properties: a listening socket is open in one of them at any time, so nobody is refused; the old
//! process keeps the connections it has and follows the new one ([`crate::followers`]), so nobody is
//! reset; a new process that fails, stands or hangs before its first course changes nothing: the old
//! one takes the lock back within a bound, and ends whoever keeps it for doing nothing
//! ([`Successor`]). The new one directs nothing before the old one has said that it follows, so one of
//! them is a director that does something, and never two. One that was begun without an old one waits until no other process of its front is
//! left ([`Served`]): a process whose leader died ends by itself.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::Epoch;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::control::{Answer, Counts, Line, PATIENCE, Request};
use crate::fence::{Fence, Hierarchy};
use crate::followers::{self, Course};
use crate::listen::Listen;
use crate::status::{Left, Transition};
use crate::stream::Address;
use crate::switchboard::{Instance, Losses, Switchboard};

/// How long the old process waits for the new one, without anybody who says who serves.
pub(crate) const YIELD_BOUND: Duration = Duration::from_secs(5);
/// How long a new process waits until the last one of before is gone.
const ALONE_BOUND: Duration = Duration::from_secs(5);
const ALONE_POLL: Duration = Duration::from_millis(5);
/// Processes before this one that may still serve.
pub(crate) const FOLLOWERS_MAX: usize = 8;

/// What a new process gets of the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inheritance {
    /// The old process. The kernel would name the one that made the socket, which may be gone.
    pid: u32,
    epoch: Epoch,
    /// The app that serves.
    primary: String,
    /// Where; processes of before this was said do not know it.
    #[serde(default)]
    primary_at: Option<Address>,
    /// Whether it does, or nobody could.
    serves: bool,
    /// Which instances were lost.
    lost: Losses,
    /// Changes of the routing so far.
    number: u64,
    /// Listening sockets, in the order of their descriptors; that of the control socket is before.
    sockets: Vec<Listen>,
    members: Vec<Heir>,
    detached: Vec<String>,
    transitions: Vec<Transition>,
    /// Processes that were to be ended and are still there.
    #[serde(default)]
    left: Vec<Left>,
    counts: Counts,
    followers: Vec<Earlier>,
}

impl Inheritance {
    /// How many lines with descriptors follow.
    fn parts(&self) -> usize {
        let fences = self.members.iter().filter(|heir| heir.fence.is_some());
        self.sockets.len() + fences.count() + self.followers.len()
    }
}

/// An instance as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Heir {
    app: String,
    pid: u32,
    fence: Option<Hierarchy>,
}

/// A process before the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Earlier {
    pid: u32,
    /// What came from it and was not read yet.
    pending: Vec<u8>,
}

/// What the director knew when it stopped.
#[derive(Debug)]
pub(crate) struct Testament {
    pub(crate) epoch: Epoch,
    pub(crate) primary: Instance,
    pub(crate) serves: bool,
    pub(crate) lost: Losses,
    pub(crate) number: u64,
    pub(crate) members: Vec<(String, u32, Option<Arc<Fence>>)>,
    pub(crate) detached: Vec<String>,
    pub(crate) transitions: Vec<Transition>,
    pub(crate) left: Vec<Left>,
    /// Processes before this one, with their lines.
    pub(crate) followers: Vec<(u32, Line)>,
}

/// What became of a succession, for the director that waits.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The new process says who serves.
    Succeeded,
    /// It does not; these follow the old one again.
    Failed(Vec<(u32, Line)>),
}

/// An old process as the new one has it.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) line: Line,
    pub(crate) pid: u32,
    pub(crate) epoch: Epoch,
    pub(crate) primary: String,
    pub(crate) primary_at: Option<Address>,
    pub(crate) serves: bool,
    pub(crate) lost: Losses,
    pub(crate) number: u64,
    pub(crate) control: OwnedFd,
    pub(crate) sockets: Vec<(Listen, OwnedFd)>,
    pub(crate) members: Vec<(String, u32, Option<Fence>)>,
    pub(crate) detached: Vec<String>,
    pub(crate) transitions: Vec<Transition>,
    pub(crate) left: Vec<Left>,
    pub(crate) counts: Counts,
    pub(crate) followers: Vec<(u32, Line)>,
}

/// Asks the old process for what it has. None when nobody listens there.
///
/// # Errors
/// When it refuses, does not answer, or does not speak this.
pub(crate) async fn ask(control: &Path, user: &str) -> io::Result<Option<Inherited>> {
    let mut line = match Line::connect(control).await {
        Ok(line) => line,
        Err(error) => {
            let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
            return if nobody.contains(&error.kind()) {
                Ok(None)
            } else {
                Err(error)
            };
        }
    };
    let told = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let request = Request::Succeed {
        user: user.to_owned(),
    };
    let heard = async {
        line.send(&request, &[]).await?;
        let Some((answer, first)) = line.receive::<Answer>().await? else {
            return Err(told("it ended the conversation"));
        };
        let inheritance = match answer {
            Answer::Inheritance(inheritance) => *inheritance,
            Answer::Refused(why) => return Err(io::Error::other(why)),
            other => return Err(told(&format!("it answered {other:?}"))),
        };
        // A line may come with the descriptors of the next one; their order is what holds.
        let mut parts = VecDeque::from(first);
        for _ in 0..inheritance.parts() {
            match line.receive::<Answer>().await? {
                Some((Answer::Part, descriptors)) => parts.extend(descriptors),
                other => return Err(told(&format!("it sent {other:?} for descriptors"))),
            }
        }
        Ok((inheritance, parts))
    };
    let (inheritance, parts) = tokio::time::timeout(PATIENCE, heard)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer"))??;
    assemble(line, inheritance, parts).map(Some)
}

fn assemble(
    line: Line,
    inheritance: Inheritance,
    mut parts: VecDeque<OwnedFd>,
) -> io::Result<Inherited> {
    let mut one = || {
        let lacks = || io::Error::new(io::ErrorKind::InvalidData, "a descriptor is missing");
        parts.pop_front().ok_or_else(lacks)
    };
    let control = one()?;
    let mut sockets = Vec::new();
    for address in inheritance.sockets {
        sockets.push((address, one()?));
    }
    let mut members = Vec::new();
    for heir in inheritance.members {
        let fence = heir.fence.map(|hierarchy| {
            let files = (0..hierarchy.descriptors()).map(|_| one());
            Fence::new(hierarchy, files.collect::<io::Result<_>>()?)
        });
        members.push((heir.app, heir.pid, fence.transpose()?));
    }
    let mut followers = Vec::new();
    for earlier in inheritance.followers {
        let line = Line::resume(one()?, earlier.pending)?;
        followers.push((earlier.pid, line));
    }
    Ok(Inherited {
        line,
        pid: inheritance.pid,
        epoch: inheritance.epoch,
        primary: inheritance.primary,
        primary_at: inheritance.primary_at,
        serves: inheritance.serves,
        lost: inheritance.lost,
        number: inheritance.number,
        control,
        sockets,
        members,
        detached: inheritance.detached,
        transitions: inheritance.transitions,
        left: inheritance.left,
        counts: inheritance.counts,
        followers,
    })
}

/// Says that this process takes the place; it has it once the old one follows
/// ([`crate::followers::begin`]).
///
/// # Errors
/// When the old one goes on as it was.
pub(crate) async fn take(line: &mut Line) -> io::Result<()> {
    match line.ask(&Request::Succeeded, &[]).await? {
        Answer::Done => Ok(()),
        other => Err(io::Error::other(format!("it answered {other:?}"))),
    }
}

/// Gives the place to a process that asked for it. What the director gets to know is the outcome;
/// the line is there when this process has to follow, with what it follows first.
///
/// # Errors
/// When the new process was gone or silent before it said who serves.
pub(crate) async fn give(
    mut line: Line,
    testament: Testament,
    (listening, board): (Listening<'_>, &Switchboard),
    verdict: oneshot::Sender<Outcome>,
) -> io::Result<(Line, Course)> {
    let given = async {
        send(&mut line, &testament, listening).await?;
        match line.receive::<Request>().await? {
            Some((Request::Succeeded, _)) => line.send(&Answer::Done, &[]).await?,
            other => return Err(io::Error::other(format!("it sent {other:?}"))),
        }
        let (course, _) = line.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        // Once the director is gone, a course that cannot be followed ends both.
        followers::follows(board, &course)?;
        Ok(course)
    };
    let given = tokio::time::timeout(YIELD_BOUND, given).await;
    match given.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(course) => {
            // The director is there until it hears this.
            verdict.send(Outcome::Succeeded).ok();
            Ok((line, course))
        }
        Err(error) => {
            verdict.send(Outcome::Failed(testament.followers)).ok();
            Err(error)
        }
    }
}

/// The sockets of a front.
#[derive(Debug)]
pub(crate) struct Listening<'a> {
    pub(crate) control: BorrowedFd<'a>,
    pub(crate) sockets: Vec<(Listen, BorrowedFd<'a>)>,
    pub(crate) counts: Counts,
}

async fn send(line: &mut Line, testament: &Testament, listening: Listening<'_>) -> io::Result<()> {
    let mut parts: Vec<Vec<BorrowedFd<'_>>> = Vec::new();
    let mut sockets = Vec::new();
    for (address, socket) in listening.sockets {
        parts.push(vec![socket]);
        sockets.push(address);
    }
    let mut members = Vec::new();
    for (app, pid, fence) in &testament.members {
        let fence = fence.as_ref().map(|fence| fence.parts());
        members.push(Heir {
            app: app.clone(),
            pid: *pid,
            fence: fence.as_ref().map(|(hierarchy, _)| *hierarchy),
        });
        parts.extend(fence.map(|(_, files)| files));
    }
    let mut followers = Vec::new();
    for (pid, line) in &testament.followers {
        let (end, pending) = line.parts();
        followers.push(Earlier {
            pid: *pid,
            pending: pending.to_vec(),
        });
        parts.push(vec![end]);
    }
    let inheritance = Inheritance {
        pid: std::process::id(),
        epoch: testament.epoch,
        primary: testament.primary.app.clone(),
        primary_at: Some(testament.primary.address.clone()),
        serves: testament.serves,
        lost: testament.lost.clone(),
        number: testament.number,
        sockets,
        members,
        detached: testament.detached.clone(),
        transitions: testament.transitions.clone(),
        left: testament.left.clone(),
        counts: listening.counts,
        followers,
    };
    let inheritance = Answer::Inheritance(Box::new(inheritance));
    line.send(&inheritance, &[listening.control]).await?;
    for part in parts {
        line.send(&Answer::Part, &part).await?;
    }
    Ok(())
}

/// The process that asked for the place.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) pid: u32,
    process: OwnedFd,
}

impl Successor {
    /// Takes hold of a process that waits for an answer, so that its number is nobody else's.
    ///
    /// # Errors
    /// When it is gone, or is this one.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        if pid == std::process::id() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a process does not take its own place",
            ));
        }
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(number, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, process })
    }

    /// Ends it, also where it is stopped.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn end(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Held by every process that serves clients of a front.
#[derive(Debug)]
pub(crate) struct Served(File);

impl Served {
    /// Beside the file of the epochs.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(epochs: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        Ok(Self(
            options.mode(0o600).open(epochs.with_extension("served"))?,
        ))
    }

    /// With an old process that is to be succeeded, and those before it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn together(&self) -> io::Result<()> {
        Ok(flock(
            self.0.as_fd(),
            FlockOperation::NonBlockingLockShared,
        )?)
    }

    /// Waits until no other process of this front serves anybody.
    ///
    /// # Errors
    /// When one still does.
    pub(crate) fn alone(&self) -> io::Result<()> {
        let deadline = Instant::now() + ALONE_BOUND;
        loop {
            match flock(self.0.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return self.together(),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(ALONE_POLL);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        "a process of this front before still serves clients",
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
