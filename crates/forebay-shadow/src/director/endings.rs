//! Instances that are being ended beside the director.
//!
//! Whoever fences one ends it and lets its group go, which takes as long as its memory is being freed. A
//! process that ends meanwhile would leave the group standing, and whoever begins in it next with it.

use tokio::sync::watch;

/// How many are being ended.
#[derive(Debug, Clone)]
pub(crate) struct Endings(watch::Sender<usize>);

impl Default for Endings {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Endings {
    /// One more is being ended, until what is returned is dropped.
    pub(super) fn begin(&self) -> Ending {
        self.0.send_modify(|count| *count += 1);
        Ending(self.clone())
    }

    /// Waits until none is.
    pub(crate) async fn over(&self) {
        let mut count = self.0.subscribe();
        // The sender is here.
        count.wait_for(|count| *count == 0).await.ok();
    }
}

/// One instance that is being ended.
#[derive(Debug)]
pub(super) struct Ending(Endings);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
