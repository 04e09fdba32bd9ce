//! Where streams are let in.
//!
//! A thread listens while there is a device, and looks again when devices come and go. Whoever connects shows a
//! token and, sealed, that it is the one whom the token was given: before that it holds a thread for some
//! seconds at most, and no more of them at a time than [`AGREEING`].

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::frame::FrameKind;
use super::super::places::{Bounds, Place, Places};
use super::seal::{Exported, Token};
use super::stream::{self, Patience, Receiver};
use super::{AGREE_MAX, Accepts, Bytes, Choice, Offered, Transport, Ways};
use crate::config::Rdma;

/// How many may agree at a time.
const AGREEING: Bounds = Bounds { all: 32, of_one: 8 };
/// Tokens that are good at a time: as many as hosts may have connections.
const TOKENS_MAX: usize = 256;
/// How often it is looked whether devices came or went.
const LOOK: Duration = Duration::from_secs(1);

/// Lets streams in until it is dropped, which waits for its thread.
#[derive(Debug)]
pub(crate) struct Door {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wanted: Rdma,
    ways: Arc<dyn Ways>,
    at: IpAddr,
    state: Mutex<State>,
    agreeing: Arc<Places<IpAddr>>,
    is_over: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Where it listens, or why it does not.
    stands: Result<SocketAddr, String>,
    expected: HashMap<Token, Expected>,
}

/// Whom a token was given.
#[derive(Debug)]
struct Expected {
    exported: Arc<Exported>,
    until: Instant,
    awaits: oneshot::Sender<Receiver>,
}

/// The streams of the side that answers, of one connection.
#[derive(Debug)]
pub(in super::super) struct Incoming {
    exported: Arc<Exported>,
    awaited: Option<oneshot::Receiver<Receiver>>,
    stream: Option<Receiver>,
}

impl Door {
    /// Begins to let streams in at an address of this host, or at all of them; nothing where RDMA is off.
    ///
    /// # Errors
    /// The system starts no thread.
    pub(crate) fn open(choice: Choice, at: IpAddr) -> io::Result<Option<Self>> {
        if choice.wanted == Rdma::Off {
            return Ok(None);
        }
        let shared = Arc::new(Shared {
            wanted: choice.wanted,
            ways: choice.ways,
            at,
            state: Mutex::new(State {
                stands: Err("it was not looked for devices yet".to_owned()),
                expected: HashMap::new(),
            }),
            agreeing: Places::new(AGREEING),
            is_over: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("fleet-rdma".to_owned());
        let thread = thread.spawn(move || run(&own))?;
        Ok(Some(Self {
            shared,
            thread: Some(thread),
        }))
    }

    /// Whether streams can be let in now.
    pub(in super::super) fn is_open(&self) -> bool {
        self.shared.state().stands.is_ok()
    }

    /// Why a content that goes by this is not taken in, if so.
    pub(in super::super) fn refuses(&self, by: Transport) -> Option<String> {
        let is_refused = by == Transport::Tcp && self.shared.wanted == Rdma::Require;
        is_refused.then(|| {
            let state = self.shared.state();
            let why = match &state.stands {
                Ok(_) => "it has it, so look for what keeps the source from it".to_owned(),
                Err(why) => why.clone(),
            };
            format!(
                "contents come by RDMA or not at all here (`fleet.link.rdma = \"require\"`), and this one came \
                 over TCP: {why}"
            )
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!(
                    "the thread that lets streams over RDMA in panicked; see its message above"
                );
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn stands(&self, stands: Result<SocketAddr, String>) {
        let mut state = self.state();
        if state.stands == stands {
            return;
        }
        match (&stands, self.wanted) {
            (Ok(address), _) => tracing::info!(%address, "contents can come over RDMA"),
            (Err(why), Rdma::Require) => {
                tracing::error!(why, "contents have to come over RDMA, and there is none");
            }
            (Err(why), _) => tracing::info!(why, "contents come over TCP"),
        }
        state.stands = stands;
    }
}

fn run(shared: &Arc<Shared>) {
    while !shared.is_over() {
        let listens = shared.ways.find().and_then(|devices| {
            let listener = shared.ways.listen(SocketAddr::new(shared.at, 0));
            let listener = listener.map_err(|error| {
                format!(
                    "listen at {} over RDMA: {error}; give `fleet.link.listen` an address of the network of {}",
                    shared.at,
                    devices.join(", ")
                )
            })?;
            Ok((listener, devices))
        });
        let why = match listens {
            Ok((listener, devices)) => {
                shared.stands(Ok(listener.address()));
                accept(shared, &*listener, &devices)
            }
            Err(why) => why,
        };
        if !shared.is_over() {
            shared.stands(Err(why));
            // Whoever ends it wakes it.
            thread::park_timeout(LOOK);
        }
    }
}

/// Accepts streams until devices come or go; why it ended.
fn accept(shared: &Arc<Shared>, listener: &dyn Accepts, devices: &[String]) -> String {
    let looked = Cell::new(Instant::now());
    let go_on = || {
        if shared.is_over() {
            return Err(io::Error::other("this agent ends"));
        }
        if looked.get().elapsed() < LOOK {
            return Ok(());
        }
        looked.set(Instant::now());
        match shared.ways.find() {
            Ok(now) if now == devices => Ok(()),
            Ok(_) => Err(io::Error::other("devices came or went")),
            Err(why) => Err(io::Error::other(why)),
        }
    };
    loop {
        let (socket, from) = match listener.accept(&go_on) {
            Ok(accepted) => accepted,
            Err(error) => return error.to_string(),
        };
        // Who finds no place is hung up on at once.
        let Some(place) = shared.agreeing.take(&from.ip()) else {
            tracing::warn!(%from, "a stream over RDMA was refused: as many agree already as may");
            continue;
        };
        let own = Arc::clone(shared);
        let thread = thread::Builder::new().name("fleet-rdma-in".to_owned());
        let spawned = thread.spawn(move || {
            if let Err(why) = own.admit(&*socket, place) {
                tracing::warn!(%from, why, "a stream over RDMA was refused");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a stream over RDMA; check limits on threads");
        }
    }
}

impl Shared {
    /// Lets one stream in that shows what it was given, and takes what comes over it.
    fn admit(&self, socket: &dyn Bytes, place: Place<IpAddr>) -> Result<(), String> {
        let is_over = || self.is_over();
        let patience = Patience {
            until: Some(Instant::now() + AGREE_MAX),
            is_over: &is_over,
        };
        let mut token = Token([0; Token::BYTES]);
        let shown = stream::fill(socket, &mut token.0, &patience);
        shown.map_err(|error| format!("hear its token: {error}"))?;
        let unknown =
            || "its token is none, was used or has ended; a host asks for a new one".to_owned();
        let exported = {
            let state = self.state();
            let expected = state.expected.get(&token).ok_or_else(unknown)?;
            Arc::clone(&expected.exported)
        };
        let (mut hears, mut sends) = exported.lanes(token);
        let greeting = stream::get(socket, &mut hears, &patience);
        if !matches!(&greeting, Ok(Some((FrameKind::Message, greeting))) if greeting.is_empty()) {
            return Err("it shows a token that was given another".to_owned());
        }
        // Only now is it used up: whoever reads one on its way cannot take it away.
        let expected = self.state().expected.remove(&token);
        let expected = expected.filter(|expected| Instant::now() < expected.until);
        let expected = expected.ok_or_else(unknown)?;
        let (receiver, into) = stream::received();
        if expected.awaits.send(receiver).is_err() {
            return Err("nobody waits for it any more".to_owned());
        }
        let greeting = (FrameKind::Message, Vec::new());
        let greeted = stream::put(socket, &mut sends, greeting, &patience);
        greeted.map_err(|error| format!("greet it: {error}"))?;
        drop(place);
        stream::take(socket, hears, &into);
        Ok(())
    }
}

impl Incoming {
    pub(in super::super) fn new(exported: Exported) -> Self {
        Self {
            exported: Arc::new(exported),
            awaited: None,
            stream: None,
        }
    }

    /// Offers a stream to the other side of a connection, whose own end is at `here`. The one before ends.
    ///
    /// # Errors
    /// None can be let in: why, and what to do.
    pub(in super::super) fn offer(
        &mut self,
        door: Option<&Door>,
        here: IpAddr,
    ) -> Result<Offered, String> {
        let door = door.ok_or("this host takes nothing by RDMA; see `fleet.link.rdma` there")?;
        let mut token = Token([0; Token::BYTES]);
        let drawn = SystemRandom::new().fill(&mut token.0);
        drawn.map_err(|_| "draw a token: the system gives no random bytes; look at its log")?;
        let now = Instant::now();
        let mut state = door.shared.state();
        let mut address = state.stands.clone()?;
        state
            .expected
            .retain(|_, expected| now < expected.until && !expected.awaits.is_closed());
        if state.expected.len() >= TOKENS_MAX {
            return Err("as many streams wait to be let in as may; try again later".to_owned());
        }
        let (awaits, awaited) = oneshot::channel();
        let expected = Expected {
            exported: Arc::clone(&self.exported),
            until: now + AGREE_MAX,
            awaits,
        };
        state.expected.insert(token, expected);
        drop(state);
        self.stream = None;
        self.awaited = Some(awaited);
        if address.ip().is_unspecified() {
            address.set_ip(here);
        }
        Ok(Offered {
            address,
            token: URL_SAFE_NO_PAD.encode(token.0),
        })
    }

    /// The stream that was let in last.
    ///
    /// # Errors
    /// None was.
    pub(in super::super) async fn stream(&mut self) -> Result<&mut Receiver, String> {
        if let Some(awaited) = self.awaited.take() {
            let came = timeout(AGREE_MAX, awaited).await;
            self.stream = came.ok().and_then(Result::ok);
        }
        self.stream
            .as_mut()
            .ok_or_else(|| "no stream over RDMA was let in; ask for one before".to_owned())
    }
}
