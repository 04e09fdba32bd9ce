//! The data plane: fronts that own a service's listening socket and fail over to warm shadows.
//!
//! Read [`switchboard`] first: every connection asks it who serves, and the `director` alone
//! changes it, by the rules of [`forebay_core::shadow`]. A front needs no privilege. What it may
//! do to control groups is in the descriptors that the daemon hands over ([`fence`]), so that it
//! fails over while the daemon is away, and outlives it.

pub mod answers;
pub mod control;
mod director;
mod epoch;
pub mod fence;
pub mod flights;
mod followers;
pub mod front;
pub mod http;
mod latency;
pub mod listen;
mod member;
pub mod mode;
#[cfg(fuzzing)]
mod pieces;
mod ping;
pub mod postgres;
pub mod proxy;
pub mod redis;
mod refuse;
mod rest;
pub mod secret;
pub mod status;
pub mod stream;
pub mod succession;
pub mod switchboard;
pub mod synchronise;
mod tcp;
pub mod tls;
mod unread;
mod vitals;
