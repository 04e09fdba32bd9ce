//! The state of one that others may take over, where all hosts reach it.
//!
//! Whoever runs it opens the store by the epoch of the record by which it has it, and what an older one
//! writes is refused from then on: an owner that was overtaken and does not know it yet changes nothing.

use forebay_core::fleet::Epoch;

/// How far it got, and by which record that was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Store {
    epoch: Epoch,
    at: u64,
}

impl Store {
    /// Opens it, and says how far the state got; none where a newer owner has.
    pub(super) fn open(&mut self, epoch: Epoch) -> Option<u64> {
        (epoch >= self.epoch).then(|| {
            self.epoch = epoch;
            self.at
        })
    }

    /// What is written before it is acknowledged; whether it was taken.
    pub(super) fn write(&mut self, epoch: Epoch, at: u64) -> bool {
        let takes = epoch >= self.epoch;
        if takes {
            self.at = at;
        }
        takes
    }

    pub(super) const fn at(&self) -> u64 {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_was_overtaken_changes_nothing() {
        let mut store = Store::default();
        assert_eq!(store.open(5), Some(0));
        assert!(store.write(5, 100));
        assert_eq!(store.open(7), Some(100));
        assert!(!store.write(5, 200));
        assert_eq!((store.open(5), store.at()), (None, 100));
        assert!(store.write(7, 150));
        assert_eq!(store.open(7), Some(150));
    }
}
