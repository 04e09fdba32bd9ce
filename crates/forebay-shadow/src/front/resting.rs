//! Gives clients' connections away that are to outlive this process, and goes on with those of another one.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::{Desk, PATIENCE, counts, open_now};
use crate::control::{Answer, Line, Request};
use crate::mode::Service;
use crate::rest::{Known, Resting};
use crate::stream::Stream;

/// How long requests may take that are under way, and connections to come to rest.
const REST_BOUND: Duration = Duration::from_secs(2);
const REST_POLL: Duration = Duration::from_millis(5);

/// Connections that rest and that nobody has taken yet: then they are served on from here.
struct Offered<'a> {
    desk: &'a Desk,
    resting: Vec<Resting>,
}

impl Drop for Offered<'_> {
    fn drop(&mut self) {
        let later = self.desk.board.rest.end();
        for resting in std::mem::take(&mut self.resting).into_iter().chain(later) {
            // They had places before; whoever came since then may have them.
            match Arc::clone(&self.desk.room).try_acquire_owned() {
                Ok(place) => go_on(&self.desk.service, resting, place),
                Err(error) => tracing::warn!(%error, "a connection ends that was at rest"),
            }
        }
    }
}

impl Offered<'_> {
    /// Gives them away.
    ///
    /// # Errors
    /// When they are not taken.
    async fn give(&mut self, line: &mut Line) -> io::Result<()> {
        let mut left = self.desk.left();
        for resting in &self.resting {
            let Some(state) = resting.known.text() else {
                left += 1;
                continue;
            };
            let unread = resting.unread.clone();
            let answer = Answer::Resting { state, unread };
            line.send(&answer, &[resting.stream.as_fd()]).await?;
        }
        line.send(&Answer::Rested { left }, &[]).await?;
        match line.receive::<Request>().await? {
            Some((Request::Taken, _)) => {}
            other => return Err(io::Error::other(format!("it sent {other:?}"))),
        }
        // Who has them now says when they end.
        self.resting
            .retain(|resting| resting.known.text().is_none());
        line.send(&Answer::Done, &[]).await
    }
}

/// Serves a client whose connection was at rest.
fn go_on(service: &Service, resting: Resting, place: OwnedSemaphorePermit) {
    let service = service.clone();
    tokio::spawn(async move {
        if let Err(error) = service.resume(resting).await {
            tracing::debug!(%error, "a connection ended that was at rest");
        }
        drop(place);
    });
}

impl Desk {
    /// Gives away what rests, or comes to rest before long.
    ///
    /// # Errors
    /// When whoever asked is gone or silent: they are served on from here then.
    pub(super) async fn give_clients(&self, line: &mut Line) -> io::Result<()> {
        let rest = &self.board.rest;
        if rest.is_wanted() {
            let why = "somebody else is given the connections of this front".to_owned();
            return line.send(&Answer::Refused(why), &[]).await;
        }
        rest.begin();
        let mut offered = Offered {
            desk: self,
            resting: Vec::new(),
        };
        let all = async {
            while open_now(&self.plan, &self.room) > 0 {
                tokio::time::sleep(REST_POLL).await;
            }
        };
        // Those that are not at rest by then are left.
        tokio::time::timeout(REST_BOUND, all).await.ok();
        offered.resting = rest.end();
        tokio::time::timeout(PATIENCE, offered.give(line)).await?
    }

    /// Connections that do not rest: here, and in processes before this one.
    fn left(&self) -> u64 {
        let own = counts(&self.board, &self.plan, &self.room);
        let all = self.board.followers.add_to(own);
        all.open + all.before_open
    }

    /// Goes on with a connection that was at rest in another process.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn resume(
        &self,
        state: &str,
        unread: Vec<u8>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let known: Known = serde_json::from_str(state)
            .map_err(|error| format!("what is known of a connection cannot be read: {error}"))?;
        if !self.service.knows(&known) {
            return Err("the front has another mode than the connection was made in".to_owned());
        }
        let descriptor = descriptors.into_iter().next();
        let descriptor = descriptor.ok_or("no descriptor came with a connection")?;
        let stream = taken_up(descriptor).map_err(|error| error.to_string())?;
        let place = Arc::clone(&self.room).try_acquire_owned();
        let place = place.map_err(|_| "the front has as many connections as it may".to_owned())?;
        let resting = Resting {
            stream,
            unread,
            known,
        };
        go_on(&self.service, resting, place);
        Ok(())
    }
}

/// A socket of which nothing is said but what it is connected to.
fn taken_up(descriptor: OwnedFd) -> io::Result<Stream> {
    let stream = std::net::TcpStream::from(descriptor);
    stream.set_nonblocking(true)?;
    Stream::prepared(TcpStream::from_std(stream)?)
}
