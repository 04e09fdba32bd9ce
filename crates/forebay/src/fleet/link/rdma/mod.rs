//! Contents over RDMA, where both hosts have it.
//!
//! Problem: a network card with RDMA carries more, for less CPU, than TCP; its streams are neither encrypted nor
//! do they say who is at the other end.
//!
//! Approach: everything is asked and answered over TLS as ever, and only what follows a
//! [`Request::Content`](super::Request::Content) goes another way, in the same frames:
//!
//! ```text
//!   asks                                    TLS                           answers
//!                     <── greeting: RDMA is here ─────────────────────
//!   ask for a stream  ── Request::Rdma ──────────────────────────────>  a token, good once, for some seconds
//!                     <── Answer::Rdma { address, token } ────────────
//!                                           RDMA
//!   connect           ── token, sealed greeting ─────────────────────>  the token is found and used up
//!                     <── sealed greeting ────────────────────────────
//!                                           TLS
//!   send              ── Request::Content, by RDMA ──────────────────>
//!                     ══ sealed frames, over RDMA ═══════════════════>
//!                     <── Answer::Taken ──────────────────────────────
//! ```
//!
//! [`seal`] encrypts, with keys that only the two sides of that TLS connection can have; [`stream`] is a
//! stream on a thread of its own, since rsockets block; [`door`] is where they are let in.
//!
//! Properties, tested: whoever has no token, one that was used or ended, or another one's, hears nothing and
//! takes nobody's place; a frame that was changed ends the content; a stream that breaks in the middle is
//! what a connection that breaks is, and nothing goes on by another way in the middle of a content; where there
//! is no RDMA, contents go over TCP with the reason said, or, where RDMA is required, not at all.

pub(crate) mod door;
mod seal;
pub(super) mod stream;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_host::rdma::{self, GoOn};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::Rdma;

pub(crate) use door::Door;
pub(super) use door::Incoming;
pub(super) use seal::Exported;
use stream::Sender;

/// How long a stream may take to be let in.
const AGREE_MAX: Duration = Duration::from_secs(10);
/// A stream over which nothing went for longer is not relied upon: nobody hears that it is broken.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long after a stream did not come about the next one is tried.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What contents go by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Transport {
    /// TCP, with TLS.
    #[default]
    Tcp,
    /// RDMA.
    Rdma,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        })
    }
}

/// What a content went by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) by: Transport,
    /// Why it was not RDMA, where that was wanted.
    pub(crate) why: Option<String>,
}

/// Where a stream is let in, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offered {
    pub(super) address: SocketAddr,
    /// In base64.
    pub(super) token: String,
}

/// What bytes go over.
pub(super) trait Bytes: Send + 'static {
    /// What comes next: at least one byte, or none at the end.
    fn receive(&self, into: &mut [u8], go_on: GoOn<'_>) -> io::Result<usize>;
    /// Sends some of it; how many bytes.
    fn send(&self, bytes: &[u8], go_on: GoOn<'_>) -> io::Result<usize>;
}

/// What streams come from.
pub(super) trait Accepts {
    fn address(&self) -> SocketAddr;
    /// The next one.
    fn accept(&self, go_on: GoOn<'_>) -> io::Result<(Box<dyn Bytes>, SocketAddr)>;
}

/// How streams are come by.
pub(super) trait Ways: fmt::Debug + Send + Sync + 'static {
    /// The devices, if there are some that can be used now; why not otherwise.
    fn find(&self) -> Result<Vec<String>, String>;
    fn connect(&self, to: SocketAddr, go_on: GoOn<'_>) -> io::Result<Box<dyn Bytes>>;
    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Accepts>>;
}

/// Those of this host's devices.
#[derive(Debug)]
struct Rsockets;

impl Bytes for rdma::Socket {
    fn receive(&self, into: &mut [u8], go_on: GoOn<'_>) -> io::Result<usize> {
        Self::receive(self, into, go_on)
    }

    fn send(&self, bytes: &[u8], go_on: GoOn<'_>) -> io::Result<usize> {
        Self::send(self, bytes, go_on)
    }
}

impl Accepts for rdma::Listener {
    fn address(&self) -> SocketAddr {
        Self::address(self)
    }

    fn accept(&self, go_on: GoOn<'_>) -> io::Result<(Box<dyn Bytes>, SocketAddr)> {
        let (socket, from) = Self::accept(self, go_on)?;
        Ok((Box::new(socket), from))
    }
}

impl Ways for Rsockets {
    fn find(&self) -> Result<Vec<String>, String> {
        rdma::find(Path::new("/sys"))
    }

    fn connect(&self, to: SocketAddr, go_on: GoOn<'_>) -> io::Result<Box<dyn Bytes>> {
        Ok(Box::new(rdma::Socket::connect(to, go_on)?))
    }

    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Accepts>> {
        Ok(Box::new(rdma::Listener::bind(at)?))
    }
}

/// What is wanted of RDMA, and how it is come by.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(super) wanted: Rdma,
    pub(super) ways: Arc<dyn Ways>,
}

impl Choice {
    pub(crate) fn new(wanted: Rdma) -> Self {
        Self {
            wanted,
            ways: Arc::new(Rsockets),
        }
    }
}

/// The streams of the side that asks, of one connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    choice: Choice,
    /// The other side said in its greeting that it has RDMA.
    is_offered: bool,
    exported: Exported,
    stream: Option<Sender>,
    used: Instant,
    /// When the last one did not come about, and why.
    failed: Option<(Instant, String)>,
}

/// What becomes of the next content.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It goes by the stream that is there.
    Stream,
    /// A stream is to be asked for.
    Ask,
    /// It goes over TCP.
    Tcp,
    /// It does not go, for this reason.
    Not(String),
}

impl Outgoing {
    pub(super) fn new(exported: Exported, is_offered: bool) -> Self {
        Self {
            choice: Choice::new(Rdma::Off),
            is_offered,
            exported,
            stream: None,
            used: Instant::now(),
            failed: None,
        }
    }

    pub(super) fn prefer(&mut self, choice: Choice) {
        self.choice = choice;
    }

    /// What is to be done before a content is sent.
    pub(super) fn next(&mut self) -> Next {
        if self.choice.wanted == Rdma::Off {
            return Next::Tcp;
        }
        if self.stream.is_some() && self.used.elapsed() < IDLE_MAX {
            return Next::Stream;
        }
        self.stream = None;
        let is_tried = |(at, _): &(Instant, String)| at.elapsed() < AGAIN_AFTER;
        if self.choice.wanted == Rdma::Auto && self.failed.as_ref().is_some_and(is_tried) {
            return Next::Tcp;
        }
        match self.choice.ways.find() {
            Err(why) => self.without(format!("this host has none: {why}")),
            Ok(_) if !self.is_offered => {
                self.without("the other host offers none; `forebay doctor` says why there".into())
            }
            Ok(_) => Next::Ask,
        }
    }

    /// A stream was asked for, and this is what came of it.
    pub(super) async fn asked(&mut self, offered: Result<Offered, String>) -> Next {
        let begun = match offered {
            Ok(offered) => {
                let ways = Arc::clone(&self.choice.ways);
                stream::begin(ways, &offered, &self.exported).await
            }
            Err(why) => Err(why),
        };
        match begun {
            Ok(stream) => {
                self.failed = None;
                self.stream = Some(stream);
                Next::Stream
            }
            Err(why) => {
                tracing::warn!(why, "no stream over RDMA came about");
                self.without(why)
            }
        }
    }

    fn without(&mut self, why: String) -> Next {
        if self.choice.wanted == Rdma::Require {
            return Next::Not(why);
        }
        self.failed = Some((Instant::now(), why));
        Next::Tcp
    }

    /// What the next content goes by, and counts as used.
    pub(super) fn stream(&mut self) -> Option<&mut Sender> {
        self.used = Instant::now();
        self.stream.as_mut()
    }

    /// What contents go by; none where they do not go.
    pub(super) fn carried(&self) -> Option<Carried> {
        let by = match (self.stream.is_some(), self.choice.wanted) {
            (true, _) => Transport::Rdma,
            (false, Rdma::Require) => return None,
            (false, _) => Transport::Tcp,
        };
        let why = self.failed.as_ref().map(|(_, why)| why.clone());
        Some(Carried { by, why })
    }
}
