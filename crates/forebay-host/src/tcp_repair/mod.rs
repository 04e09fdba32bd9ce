//! TCP connections that outlive the boot that they were made in.
//!
//! # Problem
//! The host is to begin anew, and clients of a front are to notice a pause, not a reset. Whatever a kernel that does not
//! know a connection hears of it, it answers with a reset; and what a client was acknowledged is never sent again.
//!
//! # Approach
//! The kernel lets root read all of a connection and make one like it (`TCP_REPAIR`):
//!
//! ```text
//!   the boot that ends                         the boot that comes
//!   drop_rule::Rule::put     nothing comes in       drop::Rule::put     before the network is there
//!   socket::freeze      read, and held up      kept::take          good once
//!   kept::write         durable, read back     socket::make        once address and route are there
//!   closed              nobody hears of it     socket::go_on       both sides send again what was lost
//!                                              drop_rule::Rule::remove
//! ```
//!
//! # Properties
//! - What was acknowledged to a client is in what was written down, and nothing is acknowledged after that.
//! - Connections are made once from what was written down: made twice, a request that lay unread could be executed twice.
//! - A rule that nobody removes goes by itself, by the kernel's clock.
//!
//! Source: the kernel's `net/ipv4/tcp.c` (`do_tcp_setsockopt`, `tcp_repair_set_window`), and tcp(7). CRIU does the same
//! for the connections of programs.

pub mod drop_rule;
pub mod kept;
pub mod news;
mod options;
pub mod socket;

pub use drop_rule::Rule;
pub use kept::{Connection, Kept};
pub use news::News;
pub use socket::{Frozen, Window};
