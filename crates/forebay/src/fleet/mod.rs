//! Several hosts that share applications, carried out; `forebay_core::fleet` has the rules.

pub(crate) mod agent;
pub(crate) mod coordinator;
mod guard;
pub(crate) mod link;
pub(crate) mod member;
pub(crate) mod moves;
