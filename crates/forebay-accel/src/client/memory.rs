//! Memory that is shared with a broker.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytemuck::{AnyBitPattern, NoUninit};

use super::link::Job;
use super::{ANSWER_BOUND, Error, Inner, lock};
use crate::memory::Region;
use crate::wire::Request;

/// Memory that is shared with the broker. It is forgotten there when this is dropped.
pub struct Memory {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("bytes", &self.length())
            .finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    region: Mutex<Arc<Region>>,
    length: usize,
    pub(super) number: u32,
    /// Tasks that are not answered and use it.
    pub(super) busy: AtomicUsize,
    /// A worker that was lost may write to it for ever.
    spoiled: AtomicBool,
    pub(super) client: Weak<Inner>,
}

impl Shared {
    pub(super) fn new(region: Arc<Region>, number: u32, client: Weak<Inner>) -> Self {
        Self {
            length: region.length(),
            region: Mutex::new(region),
            number,
            busy: AtomicUsize::new(0),
            spoiled: AtomicBool::new(false),
            client,
        }
    }

    /// Where it is now. While a task that is to write to it is not answered, that may change.
    pub(super) fn region(&self) -> Arc<Region> {
        Arc::clone(&lock(&self.region))
    }

    /// Has other memory with the same content take its place, which nobody else knows of.
    ///
    /// Only for memory that a task which is not answered writes to: nobody has a slice of that.
    fn replace(&self) -> Result<(), String> {
        let mut region = lock(&self.region);
        *region = Arc::new(region.copy()?);
        Ok(())
    }
}

/// All memory that these jobs are to write to.
fn written<'a>(jobs: impl Iterator<Item = &'a Job>) -> BTreeMap<u32, &'a Arc<Shared>> {
    let parts = jobs.flat_map(|job| &job.buffers);
    let written = parts.filter(|part| part.write);
    written
        .map(|part| (part.shared.number, &part.shared))
        .collect()
}

/// Takes what these jobs are to write to away from a worker that was lost: it may be at work still, since
/// a connection can end before the worker does.
///
/// # Errors
/// When there is no other memory.
pub(super) fn take_away<'a>(jobs: impl Iterator<Item = &'a Job>) -> Result<(), Error> {
    for shared in written(jobs).values() {
        shared.replace().map_err(Error::Memory)?;
    }
    Ok(())
}

/// As [`take_away`], for good: what cannot be taken away is not to be used any more.
pub(super) fn take_away_or_spoil<'a>(jobs: impl Iterator<Item = &'a Job>) {
    for shared in written(jobs).values() {
        if let Err(error) = shared.replace() {
            tracing::warn!(error, "memory that a worker may write to is used no more");
            shared.spoiled.store(true, Ordering::Release);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(client) = self.shared.client.upgrade() {
            let memory = self.shared.number;
            lock(&client.memories).remove(&memory);
            if !client.is_connected() {
                return;
            }
            let forgotten = client.ask(&Request::Forget { memory }, &[], ANSWER_BOUND);
            if let Err(error) = forgotten {
                tracing::debug!(%error, "memory is forgotten with the connection");
            }
        }
    }
}

impl Memory {
    /// In bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.shared.length
    }

    /// What it holds.
    ///
    /// # Errors
    /// While a task uses it, after a worker was lost that may still write to it, or where it is not a
    /// whole number of these.
    pub fn slice<T: AnyBitPattern>(&self) -> Result<&[T], Error> {
        self.idle()?;
        let region = self.shared.region();
        // SAFETY: no task uses it, and none that writes to it can begin while the slice lives: a
        // task borrows what it writes alone until it is submitted, and the broker refuses to write
        // to what a task was given to read. Without such a task nothing takes the place of the region,
        // which is mapped as long as it is there. Memory that is shared has no safe accessor.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let bytes = unsafe {
            let bytes = region.bytes(0, self.length());
            std::slice::from_raw_parts(bytes.as_ptr(), bytes.len())
        };
        bytemuck::try_cast_slice(bytes).map_err(|error| Error::Memory(error.to_string()))
    }

    /// What it holds, to write to.
    ///
    /// # Errors
    /// As [`slice`](Self::slice), or where it is constant.
    pub fn slice_mut<T: AnyBitPattern + NoUninit>(&mut self) -> Result<&mut [T], Error> {
        self.idle()?;
        let region = self.shared.region();
        if !region.writable() {
            let why = "constant memory cannot be written; share other memory";
            return Err(Error::Memory(why.to_owned()));
        }
        // SAFETY: no task uses it, and none can begin to: a task borrows the memory until it is
        // submitted, and this slice borrows it alone. The region stays, as above.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let bytes = unsafe {
            let bytes = region.bytes_mut(0, self.length());
            std::slice::from_raw_parts_mut(bytes.as_mut_ptr(), bytes.len())
        };
        bytemuck::try_cast_slice_mut(bytes).map_err(|error| Error::Memory(error.to_string()))
    }

    fn idle(&self) -> Result<(), Error> {
        let why = if self.shared.busy.load(Ordering::Acquire) > 0 {
            "a task that is not answered uses this memory; wait for it first"
        } else if self.shared.spoiled.load(Ordering::Acquire) {
            "a worker that was lost may still write to this memory; share other memory"
        } else {
            return Ok(());
        };
        Err(Error::Memory(why.to_owned()))
    }
}
