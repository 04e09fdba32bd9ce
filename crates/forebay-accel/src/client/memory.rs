//! Memory that is shared with a broker.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytemuck::{AnyBitPattern, NoUninit};

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
            .field("bytes", &self.shared.region.length())
            .finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) region: Region,
    pub(super) number: u32,
    /// Tasks that are not answered and use it.
    pub(super) busy: AtomicUsize,
    pub(super) client: Weak<Inner>,
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
        self.shared.region.length()
    }

    /// What it holds.
    ///
    /// # Errors
    /// While a task uses it, or where it is not a whole number of these.
    pub fn slice<T: AnyBitPattern>(&self) -> Result<&[T], Error> {
        self.idle()?;
        // SAFETY: no task uses it, and none that writes to it can begin while the slice lives: a
        // task borrows what it writes alone until it is submitted, and the broker refuses to write
        // to what a task was given to read.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let bytes = unsafe { self.shared.region.bytes(0, self.length()) };
        bytemuck::try_cast_slice(bytes).map_err(|error| Error::Memory(error.to_string()))
    }

    /// What it holds, to write to.
    ///
    /// # Errors
    /// While a task uses it, where it is not a whole number of these, or where it is constant.
    pub fn slice_mut<T: AnyBitPattern + NoUninit>(&mut self) -> Result<&mut [T], Error> {
        self.idle()?;
        if !self.shared.region.writable() {
            let why = "constant memory cannot be written; share other memory";
            return Err(Error::Memory(why.to_owned()));
        }
        // SAFETY: no task uses it, and none can begin to: a task borrows the memory until it is
        // submitted, and this slice borrows it alone.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let bytes = unsafe { self.shared.region.bytes_mut(0, self.length()) };
        bytemuck::try_cast_slice_mut(bytes).map_err(|error| Error::Memory(error.to_string()))
    }

    fn idle(&self) -> Result<(), Error> {
        if self.shared.busy.load(Ordering::Acquire) == 0 {
            Ok(())
        } else {
            let why = "a task that is not answered uses this memory; wait for it first";
            Err(Error::Memory(why.to_owned()))
        }
    }
}
