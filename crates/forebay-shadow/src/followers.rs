//! Processes of a front before this one, which still serve the clients they had.
//!
//! Problem: a front that is replaced by a new process cannot give it the connections that it has
//! in the middle of something. It keeps them, but who serves is said by one process alone.
//!
//! Approach: the new process tells each one before it of every change of the [`Routing`], over the
//! line on which it took its place, and hears back that it is in force there, how many requests are
//! under way, and who waits. Both sides call an instance by its app, since places differ between
//! plans.
//!
//! Properties: requests are held everywhere before anything is done about a primary
//! ([`Followers::heard`]); a process that does not follow in time is ended, and until it is gone it
//! counts as one that has not heard; a process whose leader is gone ends by itself, since nobody
//! would tell it who serves.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_core::shadow::promotion::{Epoch, Slot};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::control::{Counts, Line};
use crate::flights::Waiting;
use crate::member;
use crate::switchboard::{Gate, Instance, Losses, Routing, Switchboard};

/// How long a process may take to follow, before it is ended.
const FOLLOW_BOUND: Duration = Duration::from_millis(500);
/// How long the process whose place is taken may take until it follows.
const BEGIN_BOUND: Duration = Duration::from_secs(5);
/// How often a process that follows says how it is while its clients wait for something.
const REPORT: Duration = Duration::from_millis(2);
/// And while they do not.
const REPORT_IDLE: Duration = Duration::from_millis(250);

/// Who serves, as one process tells another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Course {
    /// Grows with each change.
    number: u64,
    epoch: Epoch,
    primary: Instance,
    open: bool,
    standby: Option<Instance>,
    lost: Losses,
}

/// How a process is that follows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The course that is in force there.
    course: u64,
    /// Requests that an instance has not answered to the end.
    flights: BTreeMap<String, usize>,
    /// Who waits longest for the primary, and what is usual there.
    waiting: Option<(Duration, Option<Duration>)>,
    /// A connection to the primary was refused, or ended.
    refused: bool,
    glance: bool,
    /// What it counted since it follows.
    counts: Counts,
}

/// One process that follows, as the leader knows it.
#[derive(Debug)]
struct Link {
    pid: u32,
    report: Mutex<Report>,
    /// The line goes back to whoever asks for it here; one that is gone is nobody's to ask for.
    ask: mpsc::UnboundedSender<oneshot::Sender<Line>>,
}

impl Link {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All processes that follow.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    links: Mutex<Vec<Arc<Link>>>,
    /// The number of the latest change of the routing.
    number: AtomicU64,
    /// Somebody followed, or is gone.
    news: Notify,
    /// What those counted that are gone.
    gone: Mutex<Counts>,
}

impl Followers {
    /// Goes on counting changes where the process before stopped.
    pub(crate) fn begin_at(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
    }

    /// The routing changes. Called while nobody can read it.
    pub(crate) fn changes(&self) {
        self.number.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    fn links(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the latest change is in force everywhere. Whoever does not follow is ended by
    /// its own task meanwhile.
    pub(crate) async fn heard(&self) {
        let number = self.number();
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // From here on nothing is missed.
            news.as_mut().enable();
            let behind = self
                .links()
                .iter()
                .any(|link| link.report().course < number);
            if !behind {
                return;
            }
            news.await;
        }
    }

    /// Requests that an instance has not answered to the end, of clients of processes before.
    pub(crate) fn count(&self, app: &str) -> usize {
        let links = self.links();
        let counts = links.iter().map(|link| {
            let report = link.report();
            report.flights.get(app).copied().unwrap_or_default()
        });
        counts.sum()
    }

    /// Who waits longest for the primary there.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        let links = self.links();
        let waiting = links.iter().filter_map(|link| link.report().waiting);
        let waiting = waiting.map(|(time, usual)| Waiting { time, usual });
        waiting.min_by_key(|waiting| waiting.suspicion(Duration::ZERO))
    }

    /// A process before this one still serves its connections.
    pub(crate) fn any(&self) -> bool {
        !self.links().is_empty()
    }

    /// Adds what was counted in processes before.
    pub(crate) fn add_to(&self, counts: Counts) -> Counts {
        let links = self.links();
        let mut all = self.settled(counts);
        for link in links.iter() {
            let report = link.report();
            all = all.and(&report.counts);
            all.before += 1;
            all.before_open += report.counts.open;
        }
        all
    }

    /// Adds what was counted in processes that are gone.
    pub(crate) fn settled(&self, counts: Counts) -> Counts {
        counts.and(&self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what processes counted that are not known here.
    pub(crate) fn inherit(&self, counts: &Counts) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        *gone = gone.and(counts);
    }

    /// Stops leading, and gives back the lines to all that follow, each with its process.
    pub(crate) async fn gather(&self) -> Vec<(u32, Line)> {
        let links = self.links().clone();
        let mut lines = Vec::new();
        for link in links {
            let (give, given) = oneshot::channel();
            // One that ended meanwhile has no line any more, and hears of nothing.
            if link.ask.send(give).is_ok()
                && let Ok(line) = given.await
            {
                lines.push((link.pid, line));
            }
        }
        lines
    }
}

/// Leads a process that has given its place up, from now on and until it is gone.
///
/// # Errors
/// When its end could not be seen.
pub(crate) fn lead(board: &Arc<Switchboard>, pid: u32, line: Line) -> io::Result<()> {
    let end = raw(pid).and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?))?;
    #[expect(unsafe_code, reason = "tokio has no other way to wait for a pidfd")]
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and the `AsyncFd`
    // that takes it here ends its registration before it drops it.
    let end = unsafe { AsyncFd::register_with_interest(end, Interest::READABLE) }?;
    let (ask, mut asks) = mpsc::unbounded_channel();
    let link = Arc::new(Link {
        pid,
        report: Mutex::default(),
        ask,
    });
    board.followers.links().push(Arc::clone(&link));
    let board = Arc::clone(board);
    tokio::spawn(async move {
        match tell(&board, &link, &mut asks, line).await {
            Ok((line, give)) => {
                if give.send(line).is_err() {
                    tracing::error!(pid, "nobody leads a process that follows");
                }
            }
            Err(error) => {
                // Whoever asks from here on is told at once that there is nothing.
                drop(asks);
                finish(pid, error, end).await;
                board.followers.inherit(&link.report().counts);
            }
        }
        forget(&board, &link);
    });
    Ok(())
}

/// Sees that a process is gone that follows no more.
async fn finish(pid: u32, error: io::Error, end: AsyncFd<OwnedFd>) {
    let end = Arc::new(end);
    let ended = member::ended(Some(Arc::clone(&end)));
    tokio::pin!(ended);
    let bound = if error.kind() == io::ErrorKind::TimedOut {
        Duration::ZERO
    } else {
        FOLLOW_BOUND
    };
    if tokio::time::timeout(bound, &mut ended).await.is_ok() {
        return;
    }
    tracing::error!(pid, %error, "a process before this one does not follow, and is ended");
    if let Err(error) = pidfd_send_signal(end.get_ref(), Signal::KILL) {
        tracing::error!(pid, %error, "end a process before this one");
    }
    ended.await;
}

fn forget(board: &Switchboard, link: &Arc<Link>) {
    let followers = &board.followers;
    followers.links().retain(|other| !Arc::ptr_eq(other, link));
    followers.news.notify_waiters();
}

fn raw(pid: u32) -> io::Result<Pid> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no process has this number"))
}

/// Tells one process of every change, and hears how it is, until it ends or its line is asked for.
async fn tell(
    board: &Switchboard,
    link: &Link,
    asks: &mut mpsc::UnboundedReceiver<oneshot::Sender<Line>>,
    mut line: Line,
) -> io::Result<(Line, oneshot::Sender<Line>)> {
    let mut routing = board.subscribe();
    routing.mark_changed();
    let mut unheard = None;
    let mut told = 0;
    loop {
        let until = unheard;
        let late = async move {
            match until {
                Some(since) => tokio::time::sleep_until(since).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            report = line.receive::<Report>() => {
                let (report, _) = report?.ok_or(io::ErrorKind::UnexpectedEof)?;
                if report.course >= told {
                    unheard = None;
                }
                if report.refused {
                    board.trouble();
                } else if report.glance {
                    board.glance();
                }
                *link.report() = report;
                board.followers.news.notify_waiters();
            }
            // The sender is part of the board, so there always is one.
            _ = routing.changed(), if unheard.is_none() => {
                let course = {
                    let now = routing.borrow_and_update();
                    course(board, &now)
                };
                told = course.number;
                unheard = Some(tokio::time::Instant::now() + FOLLOW_BOUND);
                let sent = tokio::time::timeout(FOLLOW_BOUND, line.send(&course, &[])).await;
                sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            }
            Some(give) = asks.recv(), if unheard.is_none() => return Ok((line, give)),
            () = late => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn course(board: &Switchboard, routing: &Routing) -> Course {
    let instances = board.instances();
    Course {
        number: board.followers.number(),
        epoch: routing.epoch,
        primary: instances[routing.primary].clone(),
        open: routing.gate == Gate::Open,
        standby: routing
            .standby
            .and_then(|slot| instances.get(slot))
            .cloned(),
        lost: board.losses(routing),
    }
}

/// Has the process whose place is taken follow, before anything is directed from here.
///
/// # Errors
/// When it does not, and may go on as it was.
pub(crate) async fn begin(board: &Switchboard, line: &mut Line) -> io::Result<()> {
    let course = course(board, &board.routing());
    let followed = async {
        line.send(&course, &[]).await?;
        loop {
            let (report, _) = line
                .receive::<Report>()
                .await?
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            if report.course >= course.number {
                return Ok(());
            }
        }
    };
    let followed = tokio::time::timeout(BEGIN_BOUND, followed).await;
    followed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Puts in force what the process says first that takes this one's place, and says so.
///
/// # Errors
/// Why this process can serve nobody any more.
pub(crate) async fn obey(
    line: &mut Line,
    board: &Switchboard,
    course: &Course,
    counts: Counts,
) -> io::Result<()> {
    let report = Report {
        course: take(board, course)?,
        counts,
        ..how(board)
    };
    let sent = tokio::time::timeout(FOLLOW_BOUND, line.send(&report, &[])).await;
    sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Follows the process that took this one's place, until that is gone.
///
/// # Errors
/// Why this process can serve nobody any more.
pub(crate) async fn follow(
    mut line: Line,
    board: &Switchboard,
    counts: impl Fn() -> Counts,
) -> io::Result<()> {
    let mut said = Report::default();
    let mut heard = 0;
    // Each course is answered, also one that is known already: whoever says it waits for that.
    let mut owed = false;
    loop {
        let primary = board.routing().primary;
        let waits = board.flights.count(primary) > 0;
        let (mut refused, mut glance) = (false, false);
        tokio::select! {
            biased;
            course = line.receive::<Course>() => {
                let (course, _) = course?.ok_or(io::ErrorKind::UnexpectedEof)?;
                heard = take(board, &course)?;
                owed = true;
            }
            trouble = board.troubled() => (refused, glance) = (trouble, true),
            () = tokio::time::sleep(if waits { REPORT } else { REPORT_IDLE }) => {}
        }
        let report = Report {
            course: heard,
            refused,
            glance,
            counts: counts(),
            ..how(board)
        };
        if owed || report != said {
            owed = false;
            let sent = tokio::time::timeout(FOLLOW_BOUND, line.send(&report, &[])).await;
            sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            said = report;
        }
    }
}

/// Puts in force what the leader says.
/// Whom a course is about, where this process can follow it.
///
/// # Errors
/// When its primary is not in the plan of this process.
pub(crate) fn follows(board: &Switchboard, course: &Course) -> io::Result<Slot> {
    place(board, &course.primary).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!(
                "{} at {} serves, which the plan of this process does not have",
                course.primary.app, course.primary.address
            ),
        )
    })
}

fn place(board: &Switchboard, instance: &Instance) -> Option<Slot> {
    let mut known = board.instances().iter();
    known.position(|known| known == instance)
}

fn take(board: &Switchboard, course: &Course) -> io::Result<u64> {
    let primary = follows(board, course)?;
    let standby = course.standby.as_ref();
    let standby = standby.and_then(|standby| place(board, standby));
    board.change(|routing| {
        routing.epoch = course.epoch;
        routing.primary = primary;
        routing.gate = if course.open { Gate::Open } else { Gate::Held };
        routing.standby = standby;
        board.take_losses(routing, &course.lost);
    });
    Ok(course.number)
}

fn how(board: &Switchboard) -> Report {
    let primary = board.routing().primary;
    let waiting = board.flights.look(primary, Duration::ZERO).waiting;
    let instances = board.instances().iter().enumerate();
    let flights = instances
        .map(|(slot, instance)| (instance.app.clone(), board.flights.count(slot)))
        .filter(|(_, count)| *count > 0);
    Report {
        flights: flights.collect(),
        waiting: waiting.map(|waiting| (waiting.time, waiting.usual)),
        ..Report::default()
    }
}
