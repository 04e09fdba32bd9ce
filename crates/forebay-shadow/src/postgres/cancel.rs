//! Requests to cancel: whose they mean.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_core::shadow::promotion::Slot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::frame::{self, Key};
use crate::stream::Stream;
use crate::switchboard::Switchboard;

/// How long a server may take for it.
const CANCEL_BOUND: Duration = Duration::from_secs(5);

/// A client keeps the key of its first backend; this says which one it has now.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    now: Mutex<HashMap<Key, (Slot, Key)>>,
}

impl Cancels {
    /// A client that knows this key is served by that backend.
    pub(crate) fn set(&self, known: Key, slot: Slot, key: Key) {
        self.lock().insert(known, (slot, key));
    }

    pub(crate) fn forget(&self, known: Key) {
        self.lock().remove(&known);
    }

    /// Passes a request on to whoever is meant; a key that nobody has is ignored, as a server does.
    pub(crate) async fn pass_on(&self, board: &Switchboard, known: Key) {
        let Some((slot, key)) = self.lock().get(&known).copied() else {
            return;
        };
        let passed = async {
            let mut stream = Stream::connect(board.address(slot)).await?;
            let mut out = Vec::new();
            frame::put_cancel(&mut out, key);
            stream.write_all(&out).await?;
            // It closes the connection once the signal is sent.
            stream.read(&mut [0; 1]).await
        };
        match tokio::time::timeout(CANCEL_BOUND, passed).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a request to cancel was not passed on"),
            Err(_) => tracing::debug!("a request to cancel was not taken"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (Slot, Key)>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
