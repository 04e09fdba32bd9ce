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

    /// Does it once more; what a user is told of a new error.
    pub(in crate::fleet) fn turn(&mut self, what: impl FnOnce()) -> Option<String> {
        let panicked = guarded(what).err();
        let new = panicked
            .as_ref()
            .filter(|why| self.told.as_ref() != Some(why));
        let news = new.map(|why| {
            let said = "a defect of Forebay's, it is tried again; please report it";
            tracing::error!(of = self.of, why, "{said}");
            format!("{}: {said}: {why}", self.of)
        });
        self.told = panicked;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::Guard;

    #[test]
    fn what_panics_is_tried_again_and_told() {
        let mut guard = Guard::new("a turn");
        let said = guard.turn(|| panic!("by {}", 1)).unwrap();
        assert!(
            said.starts_with("a turn: ") && said.ends_with(": by 1"),
            "{said}"
        );
        assert_eq!(guard.turn(|| panic!("by {}", 1)), None, "it was told");
        let mut turns = 0;
        assert_eq!(guard.turn(|| turns += 1), None);
        assert_eq!(turns, 1);
        guard.turn(|| panic!("by {}", 1)).unwrap();
    }
}
