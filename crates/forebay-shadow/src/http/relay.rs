//! Another protocol than HTTP over TLS, such as WebSockets: bytes are passed on both ways until
//! both sides ended, or the instance is lost. What [`crate::tcp`] does, with bytes that have to
//! enter this process.

use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};

use super::link::Link;
use super::wire;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Switchboard, count};
use crate::tcp::Waiting;

/// Passes on both ways.
///
/// # Errors
/// When a connection broke, or the instance is lost.
pub(super) async fn relay(
    board: &Switchboard,
    client: &mut Link,
    instance: Stream,
    assigned: Assigned,
) -> io::Result<()> {
    let waiting = Mutex::new(Waiting::new(board, assigned.slot));
    let waiting = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut from_client, mut to_client) = split(client);
    let (mut from_instance, mut to_instance) = split(instance);
    let relayed = async {
        let asked = || waiting().asked();
        let heard = || waiting().heard();
        let up = one_way(&mut from_client, &mut to_instance, &asked);
        let down = one_way(&mut from_instance, &mut to_client, &heard);
        tokio::try_join!(up, down).map(drop)
    };
    let mut lost = board.subscribe();
    tokio::select! {
        relayed = relayed => relayed,
        _ = lost.wait_for(|routing| routing.is_lost(assigned)) => {
            count(&board.counters.unknown);
            Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its instance was lost"))
        }
    }
}

/// Passes on what comes from one side until it ends, then ends the other one's.
async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    seen: &(impl Fn() + Sync),
) -> io::Result<()> {
    // An idle connection holds no buffer.
    let mut buffer = Vec::new();
    while poll_fn(|context| wire::poll_read(from, context, &mut buffer)).await? > 0 {
        seen();
        to.write_all(&buffer).await?;
        to.flush().await?;
        wire::give_back(std::mem::take(&mut buffer));
    }
    match to.shutdown().await {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}
