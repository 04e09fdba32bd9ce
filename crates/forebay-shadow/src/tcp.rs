//! `tcp`: connections are passed on byte by byte.
//!
//! Guarantee: a new connection reaches the primary, or waits for the next one; an established one
//! lives through a planned hand-over, and ends when its instance is lost. Nothing that was passed
//! on is ever sent again.
//!
//! [`relay`] passes the bytes on.

mod relay;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

pub(crate) use self::relay::{Waiting, relay};

use crate::stream::Stream;
use crate::switchboard::{Assigned, Switchboard, count};

/// Serves one client until one side ends. The instance is told the header first.
///
/// # Errors
/// When no instance could serve, or a connection broke.
pub(crate) async fn serve(
    board: &Arc<Switchboard>,
    client: Stream,
    header: &[u8],
    patience: Duration,
) -> io::Result<()> {
    let (mut instance, assigned) = connect(board, patience).await?;
    count(&board.counters.requests);
    // It fits any buffer, so that this does not wait.
    instance.write_all(header).await?;
    relay(board, &client, &instance, assigned).await
}

/// Connects to the primary; when it refuses, to the one after it.
pub(crate) async fn connect(
    board: &Switchboard,
    patience: Duration,
) -> io::Result<(Stream, Assigned)> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let assigned = match board.assigned(left).await {
            Ok(assigned) => assigned,
            Err(unserved) => {
                count(&board.counters.failed);
                return Err(io::Error::new(io::ErrorKind::TimedOut, unserved));
            }
        };
        let connecting = Stream::connect(board.address(assigned.slot));
        let refusal = tokio::select! {
            connected = connecting => match connected {
                Ok(stream) => return Ok((stream, assigned)),
                Err(error) => error,
            },
            () = board.replaced(assigned) => continue,
            () = tokio::time::sleep_until(deadline) => io::ErrorKind::TimedOut.into(),
        };
        board.trouble();
        if tokio::time::Instant::now() >= deadline {
            count(&board.counters.failed);
            return Err(refusal);
        }
        // Whoever takes over is told by the board; one that only restarts is tried again.
        tokio::select! {
            () = board.replaced(assigned) => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// How soon an instance that refused is tried again.
const RETRY: Duration = Duration::from_millis(5);
