//! Comparing an image that was kept over a boot with its checksums, beside the thread that decides.
//!
//! An image is as large as the memory of its program, and after a boot the disk gives it back for the first time. Who
//! decides for all apps does not wait for that: a thread reads it, and the program's start is pending until it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use forebay_core::app::AppId;

use super::{Image, Store};
use crate::error::HostError;

/// An image that is being compared. The thread ends soon after this is dropped.
#[derive(Debug)]
pub(crate) struct Comparing {
    number: u64,
    is_unwanted: Arc<AtomicBool>,
    /// There until it is waited for.
    thread: Option<JoinHandle<Result<(), HostError>>>,
}

impl Comparing {
    pub(super) fn start(store: &Store, app: &AppId, image: &Image) -> Result<Self, HostError> {
        let is_unwanted = Arc::new(AtomicBool::new(false));
        let (number, told) = (image.number, Arc::clone(&is_unwanted));
        let (store, id, image) = (store.clone(), app.clone(), image.clone());
        let thread = std::thread::Builder::new()
            .name("compare".to_owned())
            .spawn(move || store.check_kept(&id, &image, &told))
            .map_err(|error| {
                HostError::io(
                    format!("start a thread that compares image {number} of {app}"),
                    error,
                )
            })?;
        Ok(Self {
            number,
            is_unwanted,
            thread: Some(thread),
        })
    }

    /// Whether it is this image that is compared.
    pub(super) const fn is_of(&self, image: &Image) -> bool {
        self.number == image.number
    }

    /// Whether it was compared.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What came of it; waits for that.
    ///
    /// # Errors
    /// When the image is not as it was written.
    pub(super) fn result(mut self) -> Result<(), HostError> {
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(HostError::invalid(
                format!(
                    "compare image {} with its checksums: the thread panicked",
                    self.number
                ),
                "the program begins with nothing; see the daemon's log, and report it",
            )),
        }
    }
}

impl Drop for Comparing {
    fn drop(&mut self) {
        self.is_unwanted.store(true, Ordering::Relaxed);
    }
}
