//! Errors that nobody foresaw: a thread of moves does not end by one, and none is silent.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does something; what was said of it where it panicked. Whoever calls this goes on with nothing of what that may
/// have left half done: what counts is on disk, as if the daemon had ended there.
pub(super) fn guarded<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("nothing is known of it").to_owned()
    })
}
