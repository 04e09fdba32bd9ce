//! Several hosts that share applications, carried out; `forebay_core::fleet` has the rules.

pub(crate) mod coordinator;
pub(crate) mod link;
pub(crate) mod member;
#[expect(
    dead_code,
    reason = "the daemon starts it once it listens to other agents"
)]
pub(crate) mod moves;
