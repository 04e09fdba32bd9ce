//! The rules by which a shadow takes over from its primary.
//!
//! [`detection`] tells from evidence whether a primary is lost; [`promotion`] says what is done
//! about it, in which order, and what may be undone. Both are pure: the data plane gathers the
//! evidence and carries the steps out.

pub mod detection;
pub mod promotion;
