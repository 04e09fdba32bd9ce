//! The kernels that every app has at once.

use crate::kernel::Kernel;

mod add;

/// All of them; names are unique.
#[must_use]
pub fn built_in() -> Vec<Kernel> {
    vec![add::kernel()]
}
