//! Memory that did not come with its process, and is fetched once that goes on.
//!
//! # Problem
//!
//! A process that writes faster than can be sent is begun at its target without all of its memory (post-copy). Each
//! of its threads that runs into a page that is missing waits for it, for a way to the source and back, while the
//! rest is to come as fast as it can, since both hosts have to live until it did.
//!
//! # Approach
//!
//! Two lanes ask the source, each over a connection of its own: one for pages that somebody waits for and nothing
//! else, one for those as well and, while there are none, for the rest in the order of addresses. What they brought
//! is taken in by [`Filler`](super::fill), which is told by a descriptor that something came.
//!
//! # Properties
//!
//! - A page is asked for once; of two processes that share it after a fork, for both.
//! - What is lost on the way is asked for again, over a new connection, for [`LOST_AFTER`]; then nothing is, and the
//!   process cannot be whole.
//! - What waits to be taken in is bounded: by the threads that wait, and by [`AHEAD_MAX`] requests.
//!
//! Source: Hines and Gopalan, "Post-Copy Based Live Virtual Machine Migration Using Adaptive Pre-Paging and Dynamic
//! Self-Ballooning", VEE 2009, section 3.2 (active push beside demand paging).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::lend::{BYTES_MAX, Pages, RANGES_MAX};
use super::pages::{Run, Runs};
use super::precopy::userfault::Range;
use crate::error::HostError;

/// Without a page for so long, nothing more is expected of the source.
pub const LOST_AFTER: Duration = Duration::from_secs(30);
/// Between two attempts.
const REST: Duration = Duration::from_millis(250);
/// Asked for at a time where nobody waits for it.
const ASK: u64 = BYTES_MAX / 2;
/// Requests for what nobody waits for, that are under way or not taken in yet.
const AHEAD_MAX: usize = 3;

/// Where memory is that did not come.
pub trait Lender: Send + Sync {
    /// Connects to it. Bounded in time.
    ///
    /// # Errors
    /// It cannot be reached now.
    fn connect(&self) -> Result<Box<dyn Line>, HostError>;
}

/// A connection to a [`Lender`].
pub trait Line: Send {
    /// These pages, one behind the other: at most [`RANGES_MAX`] runs of [`BYTES_MAX`] in all. Bounded in time; after
    /// an error it is of no use.
    ///
    /// # Errors
    /// They did not come whole.
    fn fetch(&mut self, pages: &[Pages]) -> Result<Vec<u8>, HostError>;
}

/// Runs that are asked for at once: where each belongs in the file, and where it is at the source.
type Ask = Vec<(u64, Run)>;

/// Runs that came.
#[derive(Debug)]
pub(super) struct Came {
    ask: Ask,
    /// Somebody waits for it.
    is_urgent: bool,
    bytes: Vec<u8>,
}

impl Came {
    /// Each run by its place in the file, with its address at the source and its content.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64, &[u8])> {
        let mut rest: &[u8] = &self.bytes;
        self.ask.iter().map(move |(place, run)| {
            let length = usize::try_from(run.len).unwrap_or(usize::MAX);
            let (bytes, after) = rest.split_at(length);
            rest = after;
            (*place, run.offset, bytes)
        })
    }
}

#[derive(Debug, Default)]
struct Queue {
    urgent: VecDeque<Ask>,
    rest: VecDeque<Ask>,
    /// Of the rest: asked for, and not taken in yet.
    ahead: usize,
    came: Vec<Came>,
    lost: Option<String>,
    is_over: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    bell: Condvar,
    /// Says that something came, or is lost.
    wake: OwnedFd,
    left: Arc<AtomicU64>,
}

/// What is owed to one process.
#[derive(Debug)]
pub(super) struct Owed {
    /// What did not come, by its place in the file.
    missing: Runs,
    /// And was not asked for.
    unasked: Runs,
    shared: Arc<Shared>,
}

impl Owed {
    /// Begins to ask for what is owed: by places in a file, addresses at the source. How many bytes are left is in
    /// `left` from then on.
    pub(super) fn new(
        owed: Runs,
        lender: Arc<dyn Lender>,
        left: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        left.store(owed.bytes(), Ordering::Relaxed);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            bell: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            left,
        });
        // Before its lanes: where one cannot begin, the other one ends with this.
        let own = Self {
            missing: owed.clone(),
            unasked: owed,
            shared,
        };
        for serves in [Serves::Urgent, Serves::All] {
            let (shared, lender) = (Arc::clone(&own.shared), Arc::clone(&lender));
            let thread = std::thread::Builder::new().name("lane".to_owned());
            thread.spawn(move || lane(&shared, &*lender, serves))?;
        }
        Ok(own)
    }

    /// Readable when something is to be taken in.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Whether all of it came, or is needed by nobody any more.
    pub(super) fn is_settled(&self) -> bool {
        self.missing.is_empty()
    }

    /// How many of so many bytes at a place are there, from its beginning on.
    pub(super) fn there(&self, run: Run) -> u64 {
        self.missing.gap(run.offset, run.len)
    }

    /// How many of them are not.
    pub(super) fn away(&self, run: Run) -> u64 {
        let away = self.missing.at(run.offset, run.len);
        away.map_or(0, |(_, away)| away.len)
    }

    /// Somebody waits for what belongs at this place.
    pub(super) fn hurry(&mut self, run: Run) {
        let asked = self.unasked.take(Range {
            start: run.offset,
            len: run.len,
        });
        // What was asked for already is on its way.
        if !asked.is_empty() {
            self.shared.queue().urgent.push_back(asked);
            self.shared.bell.notify_all();
        }
    }

    /// Asks for more of the rest, as far as that is not too far ahead.
    pub(super) fn ask(&mut self) {
        while !self.unasked.is_empty() && self.shared.queue().ahead < AHEAD_MAX {
            let mut ask = Ask::new();
            let mut room = ASK;
            while room > 0 && ask.len() < RANGES_MAX {
                let Some((start, run)) = self.unasked.first(room) else {
                    break;
                };
                ask.extend(self.unasked.take(Range {
                    start,
                    len: run.len,
                }));
                room -= run.len;
            }
            let mut queue = self.shared.queue();
            queue.rest.push_back(ask);
            queue.ahead += 1;
            drop(queue);
            self.shared.bell.notify_all();
        }
    }

    /// Nobody needs what belongs at this place.
    pub(super) fn waive(&mut self, run: Run) {
        let range = Range {
            start: run.offset,
            len: run.len,
        };
        self.unasked.take(range);
        self.settle(range);
    }

    /// What came since.
    ///
    /// # Errors
    /// Nothing more will come: why.
    pub(super) fn came(&mut self) -> io::Result<Vec<Came>> {
        let mut count = [0; 8];
        match rustix::io::read(&self.shared.wake, &mut count[..]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut queue = self.shared.queue();
        if let Some(why) = &queue.lost {
            return Err(io::Error::other(why.clone()));
        }
        let came = std::mem::take(&mut queue.came);
        queue.ahead -= came.iter().filter(|came| !came.is_urgent).count();
        Ok(came)
    }

    /// It is in its place; whether anybody needs it still.
    pub(super) fn settle(&mut self, range: Range) {
        let settled = self.missing.take(range);
        let bytes: u64 = settled.iter().map(|(_, run)| run.len).sum();
        self.shared.left.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Owed {
    /// Lanes end when they are done with what they are at, which is bounded.
    fn drop(&mut self) {
        self.shared.queue().is_over = true;
        self.shared.bell.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a lane is to ask for next; none when there is nothing more to ask for.
    fn next(&self, serves: Serves) -> Option<(Ask, bool)> {
        let mut queue = self.queue();
        loop {
            if queue.is_over || queue.lost.is_some() {
                return None;
            }
            if let Some(ask) = queue.urgent.pop_front() {
                return Some((ask, true));
            }
            if serves == Serves::All
                && let Some(ask) = queue.rest.pop_front()
            {
                return Some((ask, false));
            }
            queue = self
                .bell
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(&self, (ask, is_urgent): (Ask, bool), bytes: Vec<u8>) {
        let mut queue = self.queue();
        queue.came.push(Came {
            ask,
            is_urgent,
            bytes,
        });
        drop(queue);
        self.ring();
    }

    fn lose(&self, why: String) {
        self.queue().lost = Some(why);
        self.bell.notify_all();
        self.ring();
    }

    fn ring(&self) {
        // It fails where it was rung so often already that nobody can have missed it.
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok();
    }

    /// Rests before another attempt; whether there is to be one.
    fn rests(&self) -> bool {
        let wanted = |queue: &mut Queue| !queue.is_over && queue.lost.is_none();
        let waited = self.bell.wait_timeout_while(self.queue(), REST, wanted);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        wanted(&mut queue)
    }
}

/// What a lane asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serves {
    Urgent,
    All,
}

fn lane(shared: &Shared, lender: &dyn Lender, serves: Serves) {
    let mut line = None;
    while let Some(asked) = shared.next(serves) {
        let began = Instant::now();
        loop {
            let was_idle = line.is_some();
            let error = match fetch(&mut line, lender, &asked.0) {
                Ok(bytes) => {
                    shared.take(asked, bytes);
                    break;
                }
                Err(error) => error,
            };
            line = None;
            tracing::debug!(reason = error.explain(), "memory does not come");
            if began.elapsed() >= LOST_AFTER {
                let seconds = LOST_AFTER.as_secs();
                let why = error.explain();
                return shared.lose(format!("nothing of it came for {seconds} s: {why}"));
            }
            // A connection of before may have ended while nothing was asked for.
            if !was_idle && !shared.rests() {
                return;
            }
        }
    }
}

fn fetch(
    line: &mut Option<Box<dyn Line>>,
    lender: &dyn Lender,
    ask: &Ask,
) -> Result<Vec<u8>, HostError> {
    let line = match line {
        Some(line) => line,
        None => line.insert(lender.connect()?),
    };
    let pages = ask.iter().map(|(_, run)| Pages {
        start: run.offset,
        len: run.len,
    });
    let pages: Vec<Pages> = pages.collect();
    let bytes = line.fetch(&pages)?;
    let expected: u64 = pages.iter().map(|pages| pages.len).sum();
    if bytes.len() as u64 != expected {
        return Err(HostError::invalid(
            format!("fetch {expected} bytes of memory: {} came", bytes.len()),
            "install the same version of Forebay on both hosts",
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Pages hold the number of their address; so many attempts fail first, and it is counted what was asked for.
    #[derive(Debug, Default)]
    struct Numbered {
        fails: AtomicUsize,
        asked: Mutex<Vec<Pages>>,
    }

    struct Direct(Arc<Numbered>);

    impl Lender for Arc<Numbered> {
        fn connect(&self) -> Result<Box<dyn Line>, HostError> {
            Ok(Box::new(Direct(Self::clone(self))))
        }
    }

    impl Line for Direct {
        fn fetch(&mut self, pages: &[Pages]) -> Result<Vec<u8>, HostError> {
            let fails = &self.0.fails;
            let failed = fails.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            if failed.is_ok() {
                return Err(HostError::told("the link is cut".to_owned()));
            }
            assert!(pages.len() <= RANGES_MAX);
            self.0.asked.lock().unwrap().extend(pages);
            let bytes = pages.iter().flat_map(|pages| {
                let length = usize::try_from(pages.len).unwrap();
                let byte = u8::try_from(pages.start / PAGE % 251).unwrap();
                std::iter::repeat_n(byte, length)
            });
            Ok(bytes.collect())
        }
    }

    const PAGE: u64 = 4096;

    fn owed(pages: u64) -> Runs {
        // Every second page, so that no two are one run; at the source they are elsewhere than in the file.
        let runs = (0..pages).map(|at| {
            let run = Run {
                len: PAGE,
                offset: (1000 + 2 * at) * PAGE,
            };
            (at * 2 * PAGE, run)
        });
        Runs(runs.collect())
    }

    fn wait(owed: &mut Owed) -> Vec<Came> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let shared = Arc::clone(&owed.shared);
        let mut polled = [PollFd::new(&shared.wake, PollFlags::IN)];
        let bound = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut polled, Some(&bound)).unwrap(), 1, "nothing came");
        owed.came().unwrap()
    }

    /// It could be any number that came and was not taken in.
    #[test]
    fn what_came_and_is_not_taken_in_yet_is_ahead() {
        let lender = Arc::new(Numbered::default());
        let all: Arc<dyn Lender> = Arc::new(Arc::clone(&lender));
        let each = ASK / PAGE;
        let left = Arc::new(AtomicU64::new(0));
        let mut owed = Owed::new(owed(each * (AHEAD_MAX as u64 + 2)), all, left).unwrap();
        let until = Instant::now() + LOST_AFTER;
        while owed.shared.queue().came.len() < AHEAD_MAX {
            owed.ask();
            assert!(Instant::now() < until, "nothing came");
            std::thread::yield_now();
        }
        owed.ask();
        let queue = owed.shared.queue();
        assert_eq!((queue.ahead, queue.rest.len()), (AHEAD_MAX, 0));
        drop(queue);
        let asked = lender.asked.lock().unwrap().len();
        assert_eq!(asked as u64, AHEAD_MAX as u64 * each, "more was asked for");
        assert_eq!(owed.came().unwrap().len(), AHEAD_MAX);
        assert_eq!(owed.shared.queue().ahead, 0);
    }

    #[test]
    fn all_of_it_comes_once_and_what_is_waited_for_does_not_wait() {
        let lender = Arc::new(Numbered::default());
        lender.fails.store(3, Ordering::Relaxed);
        let left = Arc::new(AtomicU64::new(0));
        let all: Arc<dyn Lender> = Arc::new(Arc::clone(&lender));
        let mut owed = Owed::new(owed(600), all, Arc::clone(&left)).unwrap();
        assert_eq!(left.load(Ordering::Relaxed), 600 * PAGE);
        let last = Run {
            len: PAGE,
            offset: 599 * 2 * PAGE,
        };
        assert_eq!((owed.there(last), owed.away(last)), (0, PAGE));
        owed.hurry(last);
        owed.hurry(last);
        owed.waive(Run {
            len: 2 * PAGE,
            offset: 8 * PAGE,
        });
        let mut found = 0;
        while !owed.is_settled() {
            owed.ask();
            for came in wait(&mut owed) {
                for (place, address, bytes) in came.runs() {
                    assert_eq!(address, 1000 * PAGE + place);
                    let byte = u8::try_from(address / PAGE % 251).unwrap();
                    assert!(bytes.iter().all(|found| *found == byte), "{address}");
                    found += 1;
                    let len = bytes.len() as u64;
                    owed.settle(Range { start: place, len });
                }
            }
        }
        assert_eq!(found, 599);
        assert_eq!(left.load(Ordering::Relaxed), 0);
        assert_eq!((owed.there(last), owed.away(last)), (PAGE, 0));
        let mut asked = lender.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 599);
        asked.sort_unstable_by_key(|pages| pages.start);
        asked.dedup();
        assert_eq!(asked.len(), 599, "a page was asked for twice");
    }

    /// Without a lender that answers, it is said once that it is lost, and lanes end.
    #[test]
    fn a_lender_that_sends_too_little_is_none() {
        struct Short;
        impl Lender for Short {
            fn connect(&self) -> Result<Box<dyn Line>, HostError> {
                Ok(Box::new(Self))
            }
        }
        impl Line for Short {
            fn fetch(&mut self, _: &[Pages]) -> Result<Vec<u8>, HostError> {
                Ok(vec![0; 7])
            }
        }
        let ask = vec![(
            0,
            Run {
                len: PAGE,
                offset: 0,
            },
        )];
        let error = fetch(&mut None, &Short, &ask).unwrap_err().explain();
        assert!(error.contains("4096 bytes"), "{error}");
    }
}
