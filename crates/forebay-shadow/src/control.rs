//! How the daemon speaks with a front: one JSON line each way, over a Unix socket of its own.
//!
//! Descriptors travel with the line that they belong to (`SCM_RIGHTS`). Whoever may connect is
//! root or the front's own user; the socket's mode says the same.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::UCred;

use crate::answers::Answers;
use crate::fence::Hierarchy;
use crate::status::{Status, Transition};
use crate::succession::Inheritance;
use crate::tls::Pem;

/// Longest line.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// Most descriptors with a line.
const DESCRIPTORS_MAX: usize = 8;
/// How long either side waits for the other one's next byte.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a front may take to say what it knows.
pub const ANSWER_BOUND: Duration = Duration::from_secs(1);
/// How long a front leaves open how it stands, while that does not change.
pub const STATUS_BOUND: Duration = Duration::from_secs(1);
/// How long a hand-over may take: the primary answers what it was asked, gives the shadow what that
/// lacks, and the shadow takes over, each within a bound of its own.
pub const CHANGE_BOUND: Duration = Duration::from_secs(30);

/// Refuses whoever is neither root nor the user of this process, and says who it is.
///
/// # Errors
/// When it is somebody else.
pub(crate) fn admit(stream: &UnixStream) -> io::Result<UCred> {
    let peer = stream.peer_cred()?;
    let uid = peer.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {uid} may not ask here"),
        ));
    }
    Ok(peer)
}

/// What a front is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// An instance runs. With the descriptors of its fence, if there is one.
    Joined {
        /// The app that it is.
        app: String,
        /// Its main process.
        pid: u32,
        /// What the descriptors are.
        fence: Option<Hierarchy>,
    },
    /// The shadow is to take over in order.
    HandOver,
    /// The shadow is to take over now, and the primary to be ended.
    Promote,
    /// A shadow is to be put in step with the primary anew.
    Resync {
        /// The app that it is.
        app: String,
    },
    /// An instance is not to take over.
    Detach {
        /// The app that it is.
        app: String,
    },
    /// An instance that was detached may take over again.
    Attach {
        /// The app that it is.
        app: String,
    },
    /// How it stands, as soon as that is anything else than this, or after a while.
    Status {
        /// What is known already.
        known: Option<Box<Status>>,
    },
    /// What was counted.
    Counters,
    /// How long the primary took to answer. Refused while a process before this one serves connections.
    Answers,
    /// Another process is to take this one's place: [`crate::succession`].
    Succeed {
        /// The user that it runs as.
        user: String,
    },
    /// It has all it needs, and takes the place as soon as this is answered.
    Succeeded,
    /// Another certificate for TLS, for connections to come.
    Certificate(Pem),
    /// Clients' connections are to outlive this process: those that come to rest, or rest, are given away.
    Rest,
    /// They are taken. Where this is not heard, this process serves them on.
    Taken,
    /// Goes on with a connection that was at rest. With its descriptor.
    Resume {
        /// What was known of it.
        state: String,
        /// What was read of it and sent to nobody.
        #[serde(default)]
        unread: Vec<u8>,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// It is done, like this.
    Changed(Transition),
    /// How it stands.
    Status(Box<Status>),
    /// What was counted.
    Counters(Counts),
    /// How long the primary took to answer.
    Answers {
        /// The app that it is.
        app: String,
        /// Since this process of the front began.
        answers: Answers,
        /// All instances together, over the same time; absent from a front of an older release.
        #[serde(default)]
        all: Option<Answers>,
    },
    /// What a successor gets; the descriptors that are named in it follow.
    Inheritance(Box<Inheritance>),
    /// Descriptors that belong to it, in the order in which they are named.
    Part,
    /// A client's connection that rests. With its descriptor.
    Resting {
        /// What is known of it.
        state: String,
        /// What was read of it and sent to nobody.
        unread: Vec<u8>,
    },
    /// Those were all that rest.
    Rested {
        /// Connections that cannot, or did not in time.
        left: u64,
    },
    /// It is not done, for this reason.
    Refused(String),
}

/// What a front counted since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections refused because there were too many, or because they lacked the header of the
    /// PROXY protocol, or TLS where it is spoken.
    pub refused: u64,
    /// Requests, or connections where there is nothing smaller.
    pub requests: u64,
    /// Requests that waited until it was known who serves.
    pub held: u64,
    /// Requests that were sent to a new primary again.
    pub replayed: u64,
    /// Requests that got no answer, and surely were not executed.
    pub failed: u64,
    /// Requests that got no answer, and of which nobody knows.
    pub unknown: u64,
    /// Copies of requests that the shadow was asked and whose answers were compared.
    pub mirrored: u64,
    /// Of those, answers that differ or did not come.
    pub mismatched: u64,
    /// Requests that were not copied because too many copies were under way.
    pub unmirrored: u64,
    /// Reads that the shadow answered.
    pub spread: u64,
    /// Connections of clients now.
    #[serde(default)]
    pub open: u64,
    /// Processes before this one that still serve the connections they had.
    #[serde(default)]
    pub before: u64,
    /// Those connections.
    #[serde(default)]
    pub before_open: u64,
}

impl Counts {
    /// With what another process counted of the same front. What is open now is not added up.
    #[must_use]
    pub const fn and(self, other: &Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            refused: self.refused + other.refused,
            requests: self.requests + other.requests,
            held: self.held + other.held,
            replayed: self.replayed + other.replayed,
            failed: self.failed + other.failed,
            unknown: self.unknown + other.unknown,
            mirrored: self.mirrored + other.mirrored,
            mismatched: self.mismatched + other.mismatched,
            unmirrored: self.unmirrored + other.unmirrored,
            spread: self.spread + other.spread,
            ..self
        }
    }

    /// What was counted after another moment of the same process.
    pub(crate) const fn since(self, before: &Self) -> Self {
        Self {
            connections: self.connections - before.connections,
            refused: self.refused - before.refused,
            requests: self.requests - before.requests,
            held: self.held - before.held,
            replayed: self.replayed - before.replayed,
            failed: self.failed - before.failed,
            unknown: self.unknown - before.unknown,
            mirrored: self.mirrored - before.mirrored,
            mismatched: self.mismatched - before.mismatched,
            unmirrored: self.unmirrored - before.unmirrored,
            spread: self.spread - before.spread,
            ..self
        }
    }
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
    pending: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Line {
    /// The end of a connection that was accepted.
    #[must_use]
    pub const fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// This end as another process can go on with it: what was received and not read yet.
    pub(crate) fn parts(&self) -> (BorrowedFd<'_>, &[u8]) {
        (self.stream.as_fd(), &self.pending)
    }

    /// Goes on with an end that another process had.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn resume(end: OwnedFd, pending: Vec<u8>) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(end);
        stream.set_nonblocking(true)?;
        Ok(Self {
            pending,
            ..Self::new(UnixStream::from_std(stream)?)
        })
    }

    /// Connects to a front.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }

    /// Asks, and waits for the answer as long as one waits here.
    ///
    /// # Errors
    /// When the front is gone, does not answer in time, or does not speak this.
    pub async fn ask(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<Answer> {
        self.ask_within(request, descriptors, PATIENCE).await
    }

    /// Asks, and waits so long for the answer.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_within(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> io::Result<Answer> {
        let asked = async {
            self.send(request, descriptors).await?;
            match self.receive().await? {
                Some((answer, _)) => Ok(answer),
                None => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it ended the conversation",
                )),
            }
        };
        match tokio::time::timeout(within, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it does not answer within {} ms", within.as_millis()),
            )),
        }
    }

    /// Sends one line.
    ///
    /// # Errors
    /// What the system says.
    pub async fn send<T: Serialize>(
        &mut self,
        value: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        let mut sent = 0;
        while let Some(rest) = line.get(sent..).filter(|rest| !rest.is_empty()) {
            self.stream.writable().await?;
            let with = if sent == 0 { descriptors } else { &[] };
            let written = self
                .stream
                .try_io(Interest::WRITABLE, || send_some(&self.stream, rest, with));
            match written {
                Ok(written) => sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for one line; none when the other side has ended.
    ///
    /// # Errors
    /// When the line is too long, or not what is spoken here.
    pub async fn receive<T: for<'a> Deserialize<'a>>(
        &mut self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let value = serde_json::from_slice(&line)?;
                return Ok(Some((value, std::mem::take(&mut self.descriptors))));
            }
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line is longer than {LINE_BYTES_MAX} bytes"),
                ));
            }
            self.stream.readable().await?;
            let mut buffer = [0; 8192];
            let received = self.stream.try_io(Interest::READABLE, || {
                receive_some(&self.stream, &mut buffer, &mut self.descriptors)
            });
            match received {
                Ok(0) => return Ok(None),
                Ok(length) => self.pending.extend(buffer.iter().take(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn send_some(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("more than {DESCRIPTORS_MAX} descriptors with one line"),
        ));
    }
    Ok(sendmsg(
        stream.as_fd(),
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

fn receive_some(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            // More than fit a line are closed again.
            let room = DESCRIPTORS_MAX.saturating_sub(descriptors.len());
            descriptors.extend(rights.take(room));
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn lines_and_descriptors_arrive_together() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (Line::new(one), Line::new(other));
        let file = File::open("/proc/self/comm").unwrap();
        let request = Request::Joined {
            app: "a".to_owned(),
            pid: 7,
            fence: Some(Hierarchy::V1),
        };
        one.send(&request, &[file.as_fd(), file.as_fd()])
            .await
            .unwrap();
        one.send(&Request::Counters, &[]).await.unwrap();
        let (heard, descriptors) = other.receive::<Request>().await.unwrap().unwrap();
        assert_eq!((heard, descriptors.len()), (request, 2));
        let mut text = String::new();
        File::from(descriptors.into_iter().next().unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert!(!text.is_empty());
        let (heard, descriptors) = other.receive::<Request>().await.unwrap().unwrap();
        assert_eq!((heard, descriptors.len()), (Request::Counters, 0));
        drop(one);
        assert!(other.receive::<Request>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_not_spoken_here_is_an_error() {
        for wrong in [
            b"{}\n".to_vec(),
            b"\n".to_vec(),
            vec![b'x'; 2 * LINE_BYTES_MAX],
        ] {
            let (one, other) = UnixStream::pair().unwrap();
            let mut other = Line::new(other);
            let writing = async {
                let mut one = one;
                use tokio::io::AsyncWriteExt;
                // The other side may close before it has read all of it.
                one.write_all(&wrong).await.ok();
            };
            let (heard, ()) = tokio::join!(
                async {
                    let heard = other.receive::<Request>().await;
                    drop(other);
                    heard
                },
                writing
            );
            assert!(heard.is_err());
        }
    }
}
