//! Connections to instances that wait for their next request.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use tokio::io::Interest;

use crate::stream::Stream;
use crate::switchboard::Assigned;

/// Idle connections to all instances together.
const IDLE_MAX: usize = 1024;
/// How long one is kept: less than services close theirs after, as a rule.
const IDLE_BOUND: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Idle {
    stream: Stream,
    since: Instant,
}

/// The connections of one front; all are to the primary of one epoch.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    of: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    to: Option<Assigned>,
    /// The one used last is at the end, and goes first: those that are not needed grow old.
    idle: Vec<Idle>,
}

impl Pool {
    /// A connection that can be used again.
    pub(crate) fn take(&self, assigned: Assigned) -> Option<Stream> {
        let mut shelf = self.lock();
        if shelf.to != Some(assigned) {
            return None;
        }
        // What was closed meanwhile is dropped.
        while let Some(idle) = shelf.idle.pop() {
            if is_quiet(&idle.stream) {
                return Some(idle.stream);
            }
        }
        None
    }

    /// A connection on which an answer is complete.
    pub(crate) fn put(&self, assigned: Assigned, stream: Stream) {
        let mut shelf = self.lock();
        match shelf.to {
            // One to an instance that has been replaced is of no use.
            Some(to) if to.epoch > assigned.epoch => return,
            Some(to) if to == assigned => {}
            _ => {
                shelf.idle.clear();
                shelf.to = Some(assigned);
            }
        }
        let since = Instant::now();
        let old = |idle: &Idle| since.duration_since(idle.since) > IDLE_BOUND;
        if shelf.idle.first().is_some_and(old) {
            shelf.idle.retain(|idle| !old(idle));
        }
        if shelf.idle.len() < IDLE_MAX {
            shelf.idle.push(Idle { stream, since });
        }
    }

    /// A shelf is consistent between any two statements under its lock.
    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nothing came on an idle connection, as far as the kernel has told already: that costs
/// no system call.
fn is_quiet(stream: &Stream) -> bool {
    let told = stream.try_io(Interest::READABLE, || Ok(is_open(stream)));
    match told {
        // Nothing was told.
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        Ok(open) => open,
    }
}

/// Whether nothing came on an idle connection, not even its end, by asking the kernel.
pub(crate) fn is_open(stream: &Stream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let peeked = rustix::net::recv(stream, &mut [0_u8; 1][..], flags);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}
