//! Taking the place of the process before, and serving to the end once another one has taken this one's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{Before, Error, Plan, counts, not_taken, open_now};
use crate::control::Line;
use crate::director::{Director, Endings};
use crate::followers::{self, Course};
use crate::succession;
use crate::switchboard::Switchboard;

/// Takes the place of the process before, which follows from here on.
///
/// # Errors
/// When that one does not follow: nothing was directed from here.
pub(super) async fn take(
    mut before: Before,
    director: &mut Director,
    board: &Arc<Switchboard>,
    plan: &Plan,
) -> Result<(), Error> {
    let taken = succession::take(&mut before.line).await;
    taken.map_err(not_taken(plan, "try again"))?;
    // Its own number has been heard by those before it.
    board.followers.begin_at(before.number + 1);
    director.assume(&before.heritage);
    let begun = followers::begin(board, &mut before.line).await;
    begun.map_err(not_taken(plan, "try again"))?;
    board.followers.inherit(&before.counts);
    let lines = before
        .followers
        .into_iter()
        .chain([(before.pid, before.line)]);
    for (pid, line) in lines {
        // One that is gone already needs nobody.
        if let Err(error) = followers::lead(board, pid, line) {
            tracing::warn!(pid, %error, "a process before this one does not follow");
        }
    }
    director.inherit(before.heritage);
    Ok(())
}

/// How often it is looked whether the last connection has ended.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// Serves the connections that there are, as the process says that has taken the place.
pub(super) async fn run_out(
    (mut line, course): (Line, Course),
    plan: &Plan,
    board: &Switchboard,
    room: &Semaphore,
    endings: &Endings,
) {
    let begun = counts(board, plan, room);
    let since = || {
        let now = counts(board, plan, room);
        now.since(&begun)
    };
    // Whoever waits for all places takes those that are free, which would not be told from clients.
    let ended = async {
        while open_now(plan, room) > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    };
    let drained = async {
        if tokio::time::timeout(plan.drain, ended).await.is_err() {
            let left = open_now(plan, room);
            tracing::warn!(left, "connections end that outlived the time to drain");
        }
        // While it follows: the other process ends whoever does not.
        endings.over().await;
    };
    // The other process waits for this, also where nobody is left to be served.
    if let Err(error) = followers::obey(&mut line, board, &course, since()).await {
        tracing::warn!(%error, "the process that took the place is not followed: connections end");
    } else {
        tokio::select! {
            followed = followers::follow(line, board, since) => {
                if let Err(error) = followed {
                    tracing::warn!(%error, "nobody says who serves any more: its connections end");
                }
            }
            () = drained => {}
        }
    }
    // However it came to this: whoever was fenced from here would stand, and whoever begins in its
    // group with it.
    endings.over().await;
}
