//! Errors that nobody foresaw: a thread of the fleet does not end by one, and none is silent.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does something; what was said of it where it panicked. Whoever calls this goes on with nothing of what that may
/// have left half done: what counts is on disk, as if the daemon had ended there.
pub(in crate::fleet) fn guarded<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("nothing is known of it").to_owned()
    })
}

/// Guards what a thread does again and again, and says each error once while it stays the same.
#[derive(Debug)]
pub(in crate::fleet) struct Guard {
    /// What fails: "the lease of this host".
    of: &'static str,
    told: Option<String>,
}

impl Guard {
    pub(in crate::fleet) const fn new(of: &'static str) -> Self {
        Self { of, told: None }
    }

    /// Does it once more.
    pub(in crate::fleet) fn turn(&mut self, what: impl FnOnce()) {
        let panicked = guarded(what).err();
        if let Some(why) = &panicked
            && self.told.as_ref() != Some(why)
        {
            tracing::error!(
                of = self.of,
                why,
                "a defect of Forebay's, it is tried again; please report it"
            );
        }
        self.told = panicked;
    }
}

#[cfg(test)]
mod tests {
    use super::Guard;

    #[test]
    fn what_panics_is_tried_again_and_told() {
        let mut guard = Guard::new("a turn");
        guard.turn(|| panic!("by {}", 1));
        assert_eq!(guard.told.as_deref(), Some("by 1"));
        let mut turns = 0;
        guard.turn(|| turns += 1);
        assert_eq!((turns, guard.told), (1, None));
    }
}
