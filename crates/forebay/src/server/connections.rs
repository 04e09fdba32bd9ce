//! Takes connections in, a bounded number of them, and serves each until it ends.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::feed::Feed;
use super::fleet_lock;
use super::loopback;
use super::otlp;
use super::peer::{self, Peer, Rules};
use super::places::{Holder, NoPlace, Place, Places, Rank};
use super::problem::Failure;
use super::routes::router;
use super::ticks::Ticks;
use super::{Server, ServerState, Socket};
use crate::config::LockConfig;

/// How long a connection may take to send a request's head, or be idle between requests.
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// How long requests under way may take when the daemon stops.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);

/// How long to wait when the kernel has no descriptor left for a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is sent at once, if the kernel has room for it: a message about some hundred apps.
const MESSAGE_BYTES: usize = 512 << 10;

/// Where to listen.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// The daemon's socket.
    pub(crate) socket: Socket,
    /// A loopback address, read-only, if wanted.
    pub(crate) tcp: Option<std::net::TcpListener>,
    /// Where FleetLock is spoken, if wanted, and how.
    pub(crate) lock: Option<(std::net::TcpListener, LockConfig)>,
}

/// Serves until `stop` is done or the control thread is gone, then lets requests under way
/// end, briefly. Runs on one thread's runtime as well as on many.
pub(crate) async fn serve(
    state: ServerState,
    mut listeners: Listeners,
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let unix = listeners.socket.listener()?;
    let tcp = match listeners.tcp {
        Some(listener) => Some(tokio::net::TcpListener::from_std(listener)?),
        None => None,
    };
    let rules = state.rules;
    let lock = match (listeners.lock, state.rolling.clone()) {
        (Some((listener, config)), Some(desk)) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Some((listener, Open::new(fleet_lock::router(desk, config))))
        }
        // Who is alone in no fleet has nothing to share.
        _ => None,
    };
    let (lock, mut clients) = lock.unzip();
    let reports = state.reports.clone();
    let server = Arc::new(Server {
        state,
        feed: Feed::new(),
        ticks: Ticks::default(),
    });
    let mut open = Open::new(router(&server));
    let pump = server.feed.pump(reports, &server.state.commands);
    let export = otlp::export(&server);
    tokio::pin!(pump, stop, export);
    loop {
        let accept_tcp = accept(tcp.as_ref());
        let accept_lock = accept(lock.as_ref());
        tokio::select! {
            () = &mut stop => break,
            () = &mut pump => break,
            () = &mut export => {}
            accepted = unix.accept() => match accepted {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(cred) => {
                        widen(&stream);
                        let peer = peer::process(cred.uid(), cred.gid(), cred.pid());
                        open.add(stream, peer, Holder::User(cred.uid()), &rules);
                    }
                    Err(error) => tracing::warn!(%error, "connection without credentials refused"),
                },
                Err(error) => out_of_descriptors(&error).await,
            },
            accepted = accept_tcp => match accepted {
                Ok((stream, there)) => {
                    let holder = user_at(&stream, there);
                    open.add(stream, Peer::Loopback, holder, &rules);
                }
                Err(error) => out_of_descriptors(&error).await,
            },
            accepted = accept_lock => match (accepted, &mut clients) {
                // Nobody knows who they are, and they may do nothing else.
                (Ok((stream, there)), Some(clients)) => {
                    clients.reap();
                    let holder = Holder::Address(there.ip().to_canonical());
                    clients.add(stream, Peer::Loopback, holder, &rules);
                }
                (Err(error), _) => out_of_descriptors(&error).await,
                (Ok(_), None) => {}
            },
            Some(_) = open.tasks.join_next(), if !open.tasks.is_empty() => {}
        }
    }
    server.feed.close();
    if let Some(clients) = clients {
        clients.close().await;
    }
    open.close().await;
    Ok(())
}

/// The next connection; never one where nobody listens.
async fn accept(
    listener: Option<&tokio::net::TcpListener>,
) -> std::io::Result<(tokio::net::TcpStream, std::net::SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Has the kernel take a whole message of the stream, if it may: in pieces, each waits for its reader to get a CPU,
/// and on a busy host a page is told a few times a second instead of ten.
fn widen(stream: &tokio::net::UnixStream) {
    // Less where net.core.wmem_max says so; the messages come all the same.
    if let Err(error) = set_socket_send_buffer_size(stream, MESSAGE_BYTES) {
        tracing::debug!(%error, "a connection has the usual room for what is sent");
    }
}

/// Who came over loopback, as far as the kernel tells.
fn user_at(stream: &tokio::net::TcpStream, there: SocketAddr) -> Holder {
    let user = stream
        .local_addr()
        .and_then(|here| loopback::user_of(there, here));
    match user {
        Ok(user) => user.map_or(Holder::Unknown, Holder::User),
        Err(error) => {
            tracing::debug!(%error, "whose a connection is stays unknown");
            Holder::Unknown
        }
    }
}

async fn out_of_descriptors(error: &std::io::Error) {
    tracing::warn!(%error, "connection not accepted");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

/// What a connection is sent, as it stands, that there is no room for.
fn no_room(why: NoPlace) -> Vec<u8> {
    let body = Failure::busy(why.to_string()).body();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    (head + &body).into_bytes()
}

/// The connections that are open.
struct Open {
    router: TowerToHyperService<Router>,
    places: Places,
    closing: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Open {
    fn new(router: Router) -> Self {
        Self {
            router: TowerToHyperService::new(router),
            places: Places::default(),
            closing: watch::Sender::new(false),
            tasks: JoinSet::new(),
        }
    }

    fn room(&self, peer: &Peer, holder: Holder, rules: &Rules) -> Result<Place, NoPlace> {
        let rank = match peer {
            Peer::Process { uid: 0, .. } => Rank::Root,
            peer if peer::may_change(peer, rules) => Rank::Changer,
            _ => Rank::Reader,
        };
        self.places.take(holder, rank)
    }

    fn add<S>(&mut self, mut stream: S, peer: Peer, holder: Holder, rules: &Rules)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let place = match self.room(&peer, holder, rules) {
            Ok(place) => place,
            Err(why) => {
                // A fresh socket has room for so little; nobody is waited for.
                self.tasks.spawn(async move {
                    let told = no_room(why);
                    let refused = tokio::time::timeout(ACCEPT_RETRY, stream.write_all(&told)).await;
                    tracing::warn!(?holder, ?why, ?refused, "connection refused");
                });
                return;
            }
        };
        let router = self.router.clone();
        let mut closing = self.closing.subscribe();
        self.tasks.spawn(async move {
            let _place = place;
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(peer.clone());
                router.call(request)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WAIT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = async { closing.wait_for(|&closing| closing).await.ok(); } => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection broke");
            }
        });
    }

    /// Forgets those that have ended.
    fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    async fn close(mut self) {
        self.closing.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL_WAIT, all).await.is_err() {
            tracing::info!("connections cut off at the end");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_says_how_long_it_is_and_what_to_do() {
        for why in [NoPlace::Full, NoPlace::Share] {
            let text = String::from_utf8(no_room(why)).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let length = format!("content-length: {}", body.len());
            assert!(head.ends_with(&length), "{head}");
            let problem: forebay_api::Problem = serde_json::from_str(body).unwrap();
            assert_eq!(problem.refusal, forebay_api::Refusal::Busy);
            assert_eq!(problem.message, why.to_string());
        }
    }
}
