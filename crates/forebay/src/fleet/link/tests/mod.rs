//! Two agents on real sockets, and whoever else knocks.

mod handshakes;
mod joining;
mod measured;
mod over_rdma;
mod rotation;
mod streams;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::time_provider::TimeProvider;

use super::authority::{Authority, Beginning};
use super::identity::{Clock, system_clock};
use super::listener::Patience;
use super::messages::{Content, Move, Phase, Progressed, Refused, Stage, Why};
use super::rdma::Transport;
use super::*;

/// Nothing here takes longer on the slowest machine.
const BOUND: Duration = Duration::from_secs(20);

/// A clock that is ahead of the system's, or behind it.
#[derive(Debug)]
struct Ahead(i64);

impl TimeProvider for Ahead {
    fn current_time(&self) -> Option<UnixTime> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            now.checked_add_signed(self.0).unwrap(),
        )))
    }
}

/// One that is ahead by what it is set to.
#[derive(Debug, Default)]
struct Set(AtomicI64);

impl TimeProvider for Set {
    fn current_time(&self) -> Option<UnixTime> {
        Ahead(self.0.load(Ordering::Relaxed)).current_time()
    }
}

fn ahead(seconds: i64) -> Clock {
    Arc::new(Ahead(seconds))
}

const DAY: i64 = 86_400;

/// A fleet whose authority is on host `a`.
struct Fleet {
    dir: TempDir,
    authority: Arc<Authority>,
}

impl Fleet {
    fn begin() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let beginning = Beginning {
            fleet: "shop".to_owned(),
            host: "a".parse().unwrap(),
        };
        let authority =
            Authority::init(&dir.path().join("a"), beginning, SystemTime::now()).unwrap();
        Self {
            dir,
            authority: Arc::new(authority),
        }
    }

    fn dir(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    /// A host of the fleet, with this clock.
    fn host_at(&self, host: &str, clock: Clock) -> Arc<Identity> {
        let dir = self.dir(host);
        if !dir.exists() {
            let name = host.parse().unwrap();
            self.authority
                .issue(&name, (&dir, None), SystemTime::now())
                .unwrap();
        }
        Arc::new(Identity::load(&dir, clock).unwrap())
    }

    fn host(&self, host: &str) -> Arc<Identity> {
        self.host_at(host, system_clock())
    }
}

fn name(host: &str) -> HostName {
    host.parse().unwrap()
}

/// A content, or why it did not come.
type Kept = Result<Vec<u8>, (Kind, String)>;

/// What the other side does with what it gets.
#[derive(Debug, Default)]
struct Keeper {
    asked: AtomicUsize,
    contents: Mutex<Vec<Kept>>,
    /// Answers no content before it has this.
    hold: Option<Arc<tokio::sync::Semaphore>>,
    /// Refuses contents without a look.
    refuses: bool,
    /// Answers nothing.
    silent: bool,
    /// Of each page that is asked for, so many bytes of its number.
    lends: Option<usize>,
}

impl Keeper {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Handler for Keeper {
    async fn answer(&self, peer: &Peer, request: Request, body: &mut Body<'_>) -> Answer {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.silent {
            std::future::pending::<()>().await;
        }
        match request {
            Request::Content { .. } if self.refuses => Answer::Refused(Refused {
                why: Why::Full,
                message: "no room".to_owned(),
            }),
            Request::Content { .. } => {
                if let Some(hold) = &self.hold {
                    hold.acquire().await.unwrap().forget();
                }
                let mut kept = Vec::new();
                let came = body.copy_to(&mut kept).await;
                let bytes = body.progress().bytes();
                let answer = match &came {
                    Ok(all) => {
                        assert_eq!(*all, bytes);
                        Answer::Taken { bytes }
                    }
                    Err(error) => Answer::Refused(Refused {
                        why: Why::Incomplete,
                        message: error.to_string(),
                    }),
                };
                let kept = came
                    .map(|_| kept)
                    .map_err(|error| (error.kind, error.to_string()));
                self.contents.lock().unwrap().push(kept);
                answer
            }
            _ => Answer::State(Progressed {
                epoch: Some(7),
                from: Some(peer.host.clone()),
                stage: Stage::Nothing,
                contents: Vec::new(),
            }),
        }
    }

    async fn lend(&self, _: &Peer, of: Move, pages: Vec<Pages>) -> Result<Vec<u8>, Answer> {
        assert_eq!(of.epoch, 3);
        let length = self.lends.ok_or_else(|| {
            Answer::Refused(Refused {
                why: Why::Unknown,
                message: "nobody lends it".to_owned(),
            })
        })?;
        let of = |page: &Pages| std::iter::repeat_n(u8::try_from(page.start).unwrap(), length);
        Ok(pages.iter().flat_map(of).collect())
    }
}

/// An agent that listens, until this is dropped.
struct Agent {
    address: String,
    keeper: Arc<Keeper>,
    _end: oneshot::Sender<()>,
}

async fn agent_with(
    identity: Arc<Identity>,
    authority: Option<Arc<Authority>>,
    keeper: Keeper,
    patience: Patience,
) -> Agent {
    let listener = Listener::patient(identity, authority, "127.0.0.1:0", patience)
        .await
        .unwrap();
    let (keeper, address) = (Arc::new(keeper), listener.address().to_string());
    let (end, ended) = oneshot::channel::<()>();
    tokio::spawn(listener.serve(Arc::clone(&keeper), async {
        ended.await.ok();
    }));
    Agent {
        address,
        keeper,
        _end: end,
    }
}

async fn agent(identity: Arc<Identity>) -> Agent {
    agent_with(identity, None, Keeper::default(), Patience::default()).await
}

fn question() -> Request {
    Request::State {
        app: "web".parse().unwrap(),
    }
}

fn content(bytes: Option<u64>) -> Request {
    Request::Content {
        of: Move {
            app: "web".parse().unwrap(),
            epoch: 3,
        },
        phase: Phase::Copy(1),
        content: Content {
            name: "pages-1.img".to_owned(),
            kind: "image".to_owned(),
        },
        bytes,
    }
}

fn sending(progress: &Progress, compress: Compress) -> Sending<'_> {
    Sending {
        progress,
        compress,
        stall: BOUND,
        answer: BOUND,
    }
}

/// Waits for something that has to come, for a bounded time.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = tokio::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < BOUND, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What names a peer and says what to do.
fn check(error: &Error, kind: Kind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind, kind, "{text}");
    assert!(!error.peer.is_empty() && !error.remedy.is_empty(), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}
