//! Several hosts that share applications, carried out; `forebay_core::fleet` has the rules.

#[expect(
    dead_code,
    reason = "the daemon starts it once coordinator and link are there"
)]
pub(crate) mod moves;
