//! A simulated host with virtual time, seeded faults, and the contract every host passes.
//!
//! [`SimHost`] is a [`Host`](forebay_core::host::Host) whose time is moved by
//! [`SimHost::advance`]. Everything random comes from its seed: the same calls on the same
//! seed give the same host, so a failure found at random is replayed by its seed.
//!
//! [`contract`] states what every host does, simulated or live, as checks that run on both.
//! [`soak`] runs the control period on random hosts and checks what must always hold; [`fleet`] does so
//! for many hosts that share applications.

pub mod contract;
pub mod cpu;
mod disk;
mod fault;
pub mod fleet;
mod group;
mod host;
mod interrupts;
mod leftovers;
mod load;
mod memory;
mod owner;
mod partition;
mod program;
pub mod soak;
mod step;

pub use disk::{DEVICE, Disk};
pub use fault::Faults;
pub use host::{SimHost, Usage};
pub use load::Load;
pub use program::{Life, Program};
