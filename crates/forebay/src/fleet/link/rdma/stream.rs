//! One stream of sealed frames, on a thread: rsockets block, and are none of the runtime's.
//!
//! Each side hands one frame over at a time, and waits until it is on its way or was taken. A stream ends with
//! whoever has its other end in the program, at the latest after a slice of waiting.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::{mpsc, oneshot};

use super::super::frame::{self, FrameKind, HEAD};
use super::super::wire::{Broken, Frames};
use super::seal::{Exported, Lane, TAG, Token};
use super::{AGREE_MAX, Bytes, Offered, Ways};

/// How long no byte may go over in the middle of a frame.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Frames that wait for the thread, or for whoever takes them, beside the one at hand.
const FRAMES_WAITING: usize = 1;

/// What came: a frame, or why no more will.
type Came = Result<(FrameKind, Vec<u8>), Broken>;

/// A frame that is to be sent, and who waits for it.
struct Job {
    kind: FrameKind,
    payload: Vec<u8>,
    done: oneshot::Sender<io::Result<()>>,
}

/// The end that frames are put into.
#[derive(Debug)]
pub(in super::super) struct Sender {
    jobs: mpsc::Sender<Job>,
}

/// The end that frames come out of.
#[derive(Debug)]
pub(in super::super) struct Receiver {
    frames: mpsc::Receiver<Came>,
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the stream ended")
}

impl Frames for Sender {
    async fn put(&mut self, kind: FrameKind, payload: Vec<u8>) -> io::Result<()> {
        let (done, heard) = oneshot::channel();
        let job = Job {
            kind,
            payload,
            done,
        };
        self.jobs.send(job).await.map_err(|_| ended())?;
        heard.await.unwrap_or_else(|_| Err(ended()))
    }

    /// What was put is on its way already.
    async fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Receiver {
    /// The next frame; none where the other side ended the stream before one.
    pub(in super::super) async fn next(&mut self) -> Result<Option<(FrameKind, Vec<u8>)>, Broken> {
        self.frames.recv().await.transpose()
    }
}

/// How long something is waited for.
pub(super) struct Patience<'a> {
    /// All of it.
    pub(super) until: Option<Instant>,
    /// Whether nobody wants the stream any more.
    pub(super) is_over: &'a dyn Fn() -> bool,
}

impl Patience<'_> {
    fn go_on(&self, piece: Option<Instant>) -> io::Result<()> {
        if (self.is_over)() {
            return Err(ended());
        }
        let now = Instant::now();
        match [self.until, piece]
            .into_iter()
            .flatten()
            .any(|end| now >= end)
        {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }
}

/// Sends all of it. What stands still is given up, and not what is long.
fn send(socket: &dyn Bytes, mut bytes: &[u8], patience: &Patience<'_>) -> io::Result<()> {
    while !bytes.is_empty() {
        let piece = Some(Instant::now() + STALL_MAX);
        match socket.send(bytes, &|| patience.go_on(piece))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => bytes = &bytes[sent..],
        }
    }
    Ok(())
}

/// Fills all of it.
pub(super) fn fill(
    socket: &dyn Bytes,
    mut into: &mut [u8],
    patience: &Patience<'_>,
) -> io::Result<()> {
    while !into.is_empty() {
        let piece = Some(Instant::now() + STALL_MAX);
        match socket.receive(into, &|| patience.go_on(piece))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => into = &mut into[received..],
        }
    }
    Ok(())
}

/// Sends a frame.
pub(super) fn put(
    socket: &dyn Bytes,
    lane: &mut Lane,
    (kind, payload): (FrameKind, Vec<u8>),
    patience: &Patience<'_>,
) -> io::Result<()> {
    let (head, sealed) = lane.seal(kind, payload);
    send(socket, &head, patience)?;
    send(socket, &sealed, patience)
}

/// The next frame, however long it takes until one begins; none where the other side ended the stream before.
pub(super) fn get(
    socket: &dyn Bytes,
    lane: &mut Lane,
    patience: &Patience<'_>,
) -> Result<Option<(FrameKind, Vec<u8>)>, Broken> {
    let mut head = [0; HEAD];
    let began = socket.receive(&mut head, &|| patience.go_on(None));
    let began = match began.map_err(Broken::Io)? {
        0 => return Ok(None),
        began => began,
    };
    fill(socket, &mut head[began..], patience).map_err(Broken::Io)?;
    let (_, length) = frame::parse_head(head).map_err(Broken::Frame)?;
    let mut sealed = vec![0; length + TAG];
    fill(socket, &mut sealed, patience).map_err(Broken::Io)?;
    lane.open(head, sealed).map(Some).map_err(Broken::Frame)
}

/// Asks to be let in, and hears that it was the right one who did.
fn ask(
    socket: &dyn Bytes,
    token: Token,
    (sends, hears): (&mut Lane, &mut Lane),
    patience: &Patience<'_>,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("greet the other host over RDMA: {error}");
    send(socket, &token.0, patience).map_err(failed)?;
    put(socket, sends, (FrameKind::Message, Vec::new()), patience).map_err(failed)?;
    match get(socket, hears, patience) {
        Ok(Some((FrameKind::Message, greeting))) if greeting.is_empty() => Ok(()),
        Ok(None) => Err("the other host let no stream over RDMA in; its log says why".to_owned()),
        Ok(Some(_)) => Err("the other host greets otherwise than is known here; update it".into()),
        Err(Broken::Io(error)) => Err(failed(error)),
        Err(Broken::Frame(error)) => Err(format!(
            "whoever answers over RDMA is not the other host: {error}; look whose that address is there"
        )),
    }
}

/// Begins a stream where one was offered.
///
/// # Errors
/// Why none came about.
pub(super) async fn begin(
    ways: Arc<dyn Ways>,
    offered: &Offered,
    exported: &Exported,
) -> Result<Sender, String> {
    let token = URL_SAFE_NO_PAD
        .decode(&offered.token)
        .ok()
        .and_then(|token| token.try_into().ok());
    let token = Token(token.ok_or("the other host offers a token that is none; update it")?);
    let (sends, hears) = exported.lanes(token);
    let address = offered.address;
    let (jobs, received) = mpsc::channel(FRAMES_WAITING);
    let (told, ready) = oneshot::channel();
    let thread = thread::Builder::new().name("fleet-rdma-out".to_owned());
    thread
        .spawn(move || {
            let lanes = (sends, hears);
            match connected(&*ways, address, token, lanes, &received) {
                Ok((socket, sends)) => {
                    // Whoever does not wait any more has dropped the jobs as well.
                    told.send(Ok(())).ok();
                    carry(&*socket, sends, received);
                }
                Err(why) => {
                    told.send(Err(why)).ok();
                }
            }
        })
        .map_err(|error| format!("start a thread: {error}; check limits on threads"))?;
    // The thread bounds its time.
    let ready = ready.await;
    ready.unwrap_or_else(|_| Err("the thread of the stream ended; see its message".to_owned()))?;
    Ok(Sender { jobs })
}

fn connected(
    ways: &dyn Ways,
    address: SocketAddr,
    token: Token,
    (mut sends, mut hears): (Lane, Lane),
    jobs: &mpsc::Receiver<Job>,
) -> Result<(Box<dyn Bytes>, Lane), String> {
    let is_over = || jobs.is_closed();
    let patience = Patience {
        until: Some(Instant::now() + AGREE_MAX),
        is_over: &is_over,
    };
    let socket = ways.connect(address, &|| patience.go_on(None));
    let socket =
        socket.map_err(|error| format!("connect to {address} over RDMA: {error}; try rping"))?;
    ask(&*socket, token, (&mut sends, &mut hears), &patience)?;
    Ok((socket, sends))
}

/// Sends what is put into the stream, until nobody has the other end any more.
fn carry(socket: &dyn Bytes, mut sends: Lane, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        let is_over = || jobs.is_closed();
        let patience = Patience {
            until: None,
            is_over: &is_over,
        };
        let sent = put(socket, &mut sends, (job.kind, job.payload), &patience);
        let sent = sent.map_err(broke);
        let is_broken = sent.is_err();
        // Nobody waits for it where the content was given up.
        job.done.send(sent).ok();
        if is_broken {
            return;
        }
    }
}

/// The end that frames come out of, and what fills it.
pub(super) fn received() -> (Receiver, mpsc::Sender<Came>) {
    let (into, frames) = mpsc::channel(FRAMES_WAITING);
    (Receiver { frames }, into)
}

/// Hands over what comes, until it ends or nobody has the other end any more.
pub(super) fn take(socket: &dyn Bytes, mut hears: Lane, into: &mpsc::Sender<Came>) {
    loop {
        let is_over = || into.is_closed();
        // Whoever waits for a content bounds how long it waits.
        let patience = Patience {
            until: None,
            is_over: &is_over,
        };
        let frame = match get(socket, &mut hears, &patience) {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => return,
            Err(Broken::Io(error)) => Err(Broken::Io(broke(error))),
            Err(broken) => Err(broken),
        };
        let is_broken = frame.is_err();
        if into.blocking_send(frame).is_err() || is_broken {
            return;
        }
    }
}

/// A stream that breaks is a connection that ended in the middle, whatever the device calls it.
fn broke(error: io::Error) -> io::Error {
    tracing::warn!(%error, "a stream over RDMA broke");
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}
