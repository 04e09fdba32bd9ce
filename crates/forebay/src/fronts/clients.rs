//! Clients' connections that outlive the process of a front: taken from it, and given to the next one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_shadow::control::{Answer, Line, PATIENCE, Request};
use tokio::time::Instant;

use super::{Desk, Known, Refused, connect};

/// How long a front may take to give all away: requests under way are answered first.
const TAKE_BOUND: Duration = Duration::from_secs(20);
/// Stages of a front in which its primary serves.
const SERVES: [&str; 2] = ["warm", "suspect"];

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// What the front knows of it.
    pub(crate) state: String,
    /// What the front read of it and sent to nobody.
    pub(crate) unread: Vec<u8>,
    pub(crate) socket: OwnedFd,
}

/// What a front gave away.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) clients: Vec<Client>,
    /// Connections that it has still.
    pub(crate) left: u64,
}

impl Desk {
    /// Takes the connections of a front that rest.
    ///
    /// # Errors
    /// When there is no such front, or it does not give them: it serves them on.
    pub(crate) async fn take_clients(&self, front: &str) -> Result<Given, Refused> {
        let control = self.control(front)?;
        let taking = async { take(&mut connect(&control).await?).await };
        let taken = tokio::time::timeout(TAKE_BOUND, taking).await;
        let taken = taken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        taken.map_err(|error| {
            Refused::Busy(format!(
                "take clients' connections from front {front}: {error}"
            ))
        })
    }

    /// Gives connections to a front; how many it goes on with, and why not with others.
    ///
    /// # Errors
    /// When there is no such front, or it cannot be reached.
    pub(crate) async fn give_clients(
        &self,
        front: &str,
        clients: Vec<Client>,
    ) -> Result<(u64, Option<String>), Refused> {
        let control = self.control(front)?;
        let refused = |error: io::Error| {
            Refused::Busy(format!(
                "give clients' connections to front {front}: {error}"
            ))
        };
        let mut line = connect(&control).await.map_err(refused)?;
        let (mut count, mut why) = (0, None);
        for client in clients {
            let request = Request::Resume {
                state: client.state,
                unread: client.unread,
            };
            match line.ask(&request, &[client.socket.as_fd()]).await {
                Ok(Answer::Done) => count += 1,
                Ok(Answer::Refused(said)) => why = Some(said),
                Ok(other) => why = Some(format!("it answered {other:?}")),
                Err(error) => {
                    why = Some(error.to_string());
                    break;
                }
            }
        }
        Ok((count, why))
    }

    /// Waits until a front serves; not for ever.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn serving(&self, front: &str, until: Instant) -> Result<(), String> {
        let mut fronts = self.fronts.subscribe();
        let known = |(name, _): &(&AppId, &Known)| name.as_str() == front;
        if !fronts.borrow().iter().any(|one| known(&one)) {
            return Err(format!("there is no front {front} any more"));
        }
        let serving = fronts.wait_for(|fronts| {
            let found = fronts.iter().find(known);
            found.is_some_and(|(_, known)| serves(known))
        });
        match tokio::time::timeout_at(until, serving).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err("the daemon is stopping".to_owned()),
            Err(_) => Err(format!("front {front} did not serve in time")),
        }
    }
}

fn serves(known: &Known) -> bool {
    let status = known.status.as_ref().ok();
    let status = status.filter(|_| known.unreachable.is_none());
    status.is_some_and(|status| SERVES.contains(&status.stage.as_str()))
}

async fn take(line: &mut Line) -> io::Result<Given> {
    line.send(&Request::Rest, &[]).await?;
    let (mut known, mut sockets) = (Vec::new(), VecDeque::new());
    let left = loop {
        let (answer, more) = line.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        // A line may come with the descriptor of the next one; their order is what holds.
        sockets.extend(more);
        match answer {
            Answer::Resting { state, unread } => known.push((state, unread)),
            Answer::Rested { left } => break left,
            Answer::Refused(why) => return Err(io::Error::other(why)),
            other => return Err(io::Error::other(format!("it answered {other:?}"))),
        }
    };
    if known.len() != sockets.len() {
        return Err(io::Error::other("a descriptor is missing"));
    }
    match line.ask_within(&Request::Taken, &[], PATIENCE).await? {
        Answer::Done => {}
        other => return Err(io::Error::other(format!("it answered {other:?}"))),
    }
    let clients = known.into_iter().zip(sockets);
    let clients = clients.map(|((state, unread), socket)| Client {
        state,
        unread,
        socket,
    });
    Ok(Given {
        clients: clients.collect(),
        left,
    })
}
