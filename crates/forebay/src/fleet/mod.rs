//! Several hosts that share applications, carried out; `forebay_core::fleet` has the rules.

pub(crate) mod moves;
