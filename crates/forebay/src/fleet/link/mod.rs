//! How agents of one fleet speak to each other: TLS 1.3, both sides with a certificate of the fleet.
//!
//! Problem: agents move whole applications between hosts, with their memory and their files, and tell each
//! other to take them. Nobody else may ask that, listen, or pretend to be one of them.
//!
//! Approach: a fleet has an [`authority`], on one host, that makes a certificate for each host; a host is
//! let in by a token that is good once ([`join`]). Both sides of a connection show theirs, and look whether
//! the other is the host that was meant ([`verify`]). Certificates are short-lived and renewed by
//! themselves ([`renewal`]), and are taken back when a host is forgotten.
//!
//! Then both greet each other ([`wire`]), which finds versions and clocks that do not go together. After
//! that one side asks ([`client`]) and the other answers ([`listener`]), one thing at a time, in frames of
//! bounded length ([`frame`]): [`messages`], and contents in checksummed chunks ([`stream`]), over the same
//! connection or, where both hosts have it, over RDMA ([`rdma`]).
//!
//! Properties, tested on sockets: whoever is not of the fleet hears nothing; whoever is slow is cut, and
//! takes nobody's place; no frame makes room beyond its bound; a content that came whole is what was sent;
//! a renewal interrupts nothing; a token lets one host in, once; every refusal names the peer and says what
//! to do.

#![cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "moves ask and send; hosts only join and renew yet"
    )
)]

pub(crate) mod agent;
pub(crate) mod authority;
pub(crate) mod client;
pub(crate) mod error;
mod frame;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod listener;
pub(crate) mod messages;
mod places;
pub(crate) mod rdma;
pub(crate) mod renewal;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
mod verify;
pub(crate) mod wire;

use std::net::SocketAddr;

use forebay_core::fleet::HostName;
use forebay_host::checkpoint::lend::Pages;

pub(crate) use client::Link;
pub(crate) use error::{Error, Kind};
pub(crate) use identity::Identity;
pub(crate) use listener::Listener;
pub(crate) use messages::{Answer, Request};
pub(crate) use stream::{Body, Compress, Progress, Sending};

/// Whom an agent speaks with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its name, as its certificate says.
    pub(crate) host: HostName,
    /// Its version of Forebay.
    pub(crate) version: String,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// How far its clock is ahead of this host's, in milliseconds.
    pub(crate) clock_ahead_ms: i64,
}

/// Answers what other agents ask.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request. `body` has the bytes that come with a [`Request::Content`], and none for others.
    /// An answer before the end of a body ends the connection; so does taking longer than whoever asks
    /// waits, in which case this is dropped where it awaits something.
    fn answer(
        &self,
        peer: &Peer,
        request: Request,
        body: &mut Body<'_>,
    ) -> impl Future<Output = Answer> + Send;

    /// What is asked for by [`Request::Lend`], at most [`frame::CHUNK_MAX`] bytes; or what is answered instead.
    fn lend(
        &self,
        _: &Peer,
        of: messages::Move,
        _: Vec<Pages>,
    ) -> impl Future<Output = Result<Vec<u8>, Answer>> + Send {
        let message = format!("nobody lends memory of {} here", of.app);
        let why = messages::Why::Unknown;
        std::future::ready(Err(Answer::Refused(messages::Refused { why, message })))
    }
}
