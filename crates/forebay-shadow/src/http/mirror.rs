//! Some requests go to the shadow as well, and its answers are compared and dropped.
//!
//! So a shadow is known to answer as the primary does before it has to. A copy is sent after the
//! client has its answer and costs it nothing; a shadow that is slow or broken loses copies, never
//! requests: few are under way at once, and the rest is skipped and counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::body::Body;
use super::client::Client;
use super::head::{self, Method, Request, Search};
use super::pool::Pool;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Switchboard, count};

/// Copies under way at once.
const COPIES_MAX: usize = 16;
/// How long a shadow may take for one.
const COPY_BOUND: Duration = Duration::from_secs(5);
/// A line by which the shadow may tell a copy from a request.
const MARK: &[u8] = b"forebay-mirror: 1\r\n";

/// What is copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Of a thousand requests, so many.
    pub per_mille: u16,
    /// Requests that change something as well. Right for a shadow with a state of its own; where it
    /// shares the primary's, they would be executed twice.
    pub writes: bool,
    /// Beginnings of paths whose answers differ by their nature: only their status is compared.
    pub ignore_bodies: Vec<String>,
}

/// Sends copies.
#[derive(Debug)]
pub(crate) struct Mirror {
    options: Options,
    board: Arc<Switchboard>,
    pool: Arc<Pool>,
    room: Arc<Semaphore>,
    seen: AtomicU64,
}

/// A request that the shadow is to get.
#[derive(Debug)]
pub(crate) struct Copied {
    bytes: Vec<u8>,
    method: Method,
    compares_body: bool,
}

/// What is compared of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Print {
    status: u16,
    length: u64,
    sum: u64,
}

impl Print {
    pub(crate) const fn of(status: u16) -> Self {
        Self {
            status,
            length: 0,
            sum: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Takes in some of the content, by FNV-1a:
    /// <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.length += u64::try_from(bytes.len()).unwrap_or_default();
        self.sum = bytes.iter().fold(self.sum, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }
}

impl Mirror {
    pub(crate) fn new(options: Options, (board, pool): (Arc<Switchboard>, Arc<Pool>)) -> Self {
        Self {
            options,
            board,
            pool,
            room: Arc::new(Semaphore::new(COPIES_MAX)),
            seen: AtomicU64::new(0),
        }
    }

    /// A copy of the request that a client's buffer begins with, if this is one to copy.
    pub(crate) fn copy(&self, client: &Client, request: &Request, known: usize) -> Option<Copied> {
        let share = u64::from(self.options.per_mille);
        if share == 0 || request.upgrade || !(request.safe || self.options.writes) {
            return None;
        }
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        let due = |number: u64| number.wrapping_mul(share) / 1000;
        if due(number) == due(number.wrapping_add(1)) || self.board.routing().standby.is_none() {
            return None;
        }
        let mut bytes = client.buffer.get(..known)?.to_vec();
        let target = bytes.get(request.target.clone()).unwrap_or_default();
        let ignored = self.options.ignore_bodies.iter();
        let compares_body = !ignored
            .clone()
            .any(|path| target.starts_with(path.as_bytes()));
        head::rewrite(&mut bytes, request.length, &mut Vec::new(), MARK);
        Some(Copied {
            bytes,
            method: request.method,
            compares_body,
        })
    }

    /// Sends a copy, beside the client's connection, and compares what comes.
    pub(crate) fn send(&self, copied: Copied, primary: Print) {
        let Some(slot) = self.board.routing().standby else {
            return;
        };
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            count(&self.board.counters.unmirrored);
            return;
        };
        let (board, pool) = (Arc::clone(&self.board), Arc::clone(&self.pool));
        let to = Assigned {
            slot,
            epoch: board.routing().epoch,
        };
        tokio::spawn(async move {
            let asked = tokio::time::timeout(COPY_BOUND, ask(&board, &pool, to, &copied));
            let same = match asked.await {
                Ok(Ok(print)) => {
                    print.status == primary.status && (print == primary || !copied.compares_body)
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a copy was not answered");
                    false
                }
                Err(_) => false,
            };
            count(&board.counters.mirrored);
            if !same {
                count(&board.counters.mismatched);
            }
            drop(place);
        });
    }
}

async fn ask(board: &Switchboard, pool: &Pool, to: Assigned, copied: &Copied) -> io::Result<Print> {
    let mut stream = match pool.take(to) {
        Some(stream) => stream,
        None => Stream::connect_bounded(board.address(to.slot)).await?,
    };
    stream.write_all(&copied.bytes).await?;
    let malformed = |bad: head::Bad| io::Error::new(io::ErrorKind::InvalidData, bad.why);
    let mut buffer = Vec::new();
    let mut search = Search::default();
    let response = loop {
        match search.find(&buffer).map_err(malformed)? {
            Some(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                let response =
                    head::response(bytes, copied.method, &mut Vec::new()).map_err(malformed)?;
                buffer.drain(..length);
                if response.status >= 200 {
                    break response;
                }
                search = Search::default();
            }
            None if stream.read_buf(&mut buffer).await? == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            None => {}
        }
    };
    let mut print = Print::of(response.status);
    let mut body = response.body;
    loop {
        let taken = body.take_into(&buffer, |content| print.add(content));
        let clean = taken.map_err(malformed)? == buffer.len();
        if body.is_done() {
            if clean && response.keep {
                pool.put(to, stream);
            }
            return Ok(print);
        }
        buffer.clear();
        if stream.read_buf(&mut buffer).await? == 0 {
            return match body {
                Body::Close => Ok(print),
                Body::Length(_) | Body::Chunked(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
}
