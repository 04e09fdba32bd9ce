//! The program as its users have it: the real binary, real processes, real control groups.
//!
//! Each test has a directory, a socket, a state directory and a control group of its own, and
//! leaves none of them. Without root or writable control groups a test says `SKIPPED` and ends.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says on standard output when it is skipped"
)]

mod accel;
#[cfg(feature = "etcd")]
mod accel_moves;
mod activation;
mod address_moves;
mod apart;
mod api;
mod apps;
mod bindings;
mod calibrate;
mod certificates;
mod checkpoint_moves;
mod cleanup;
mod client;
mod container_troubles;
mod containers;
mod dashboard;
mod disk;
mod ender;
#[cfg(feature = "etcd")]
mod etcd;
mod fleet;
mod fronts;
mod fronts_answers;
mod fronts_elsewhere;
mod fronts_life;
mod fronts_metrics;
mod http;
mod images;
mod imitation;
mod input;
mod journal;
mod kept_dashboard;
mod kernel;
#[cfg(feature = "etcd")]
mod leaving;
mod leaving_postgres;
mod lifecycle;
mod losses;
mod machine;
mod memory_after;
mod memory_fleet;
mod memory_kills;
mod memory_losses;
mod memory_moves;
mod memory_weighed;
mod mistakes;
#[cfg(feature = "etcd")]
mod move_kills;
#[cfg(feature = "etcd")]
mod moves;
#[cfg(feature = "etcd")]
mod moves_by_itself;
mod network;
mod offload;
mod offload_ahead;
mod offload_io;
#[cfg(feature = "etcd")]
mod offload_memory;
mod offload_network;
mod otlp;
mod outlook;
mod owners;
mod place;
mod rdma;
mod relay;
mod runtime;
mod runtime_imitation;
mod setup;
mod signals;
mod standby;
mod survival;
#[cfg(feature = "etcd")]
mod takeovers;
mod tutorial;
mod update;
mod update_clients;
#[cfg(feature = "etcd")]
mod update_elsewhere;
#[cfg(feature = "etcd")]
mod update_fleet;
mod update_hold;
mod update_hooks;
mod update_keep;
mod update_kills;
mod update_rehearse;
mod update_soft;
mod update_told;
