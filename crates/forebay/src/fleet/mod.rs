//! The agents of a fleet, and how they speak to each other.

pub(crate) mod link;
