//! `forebay dashboard`: the page that shows the host, its applications and what is decided about them,
//! live.
//!
//! It is a client of the daemon's socket like `forebay top`, with the rights of who starts it: a process
//! of its own, so that nothing that a browser sends reaches the daemon unchecked. [`assets`] are the
//! files of the page, which come with the program; [`gate`] is who may ask; [`relay`] passes what is
//! allowed on to the socket. Nothing here knows what an answer means.

mod assets;
mod gate;
mod keeper;
mod relay;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{any, get};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use gate::Gate;
pub(crate) use keeper::Keeper;
use relay::Relay;

/// Connections of browsers at a time. One page uses two or three.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take to send a request's head, or be idle between requests.
const HEAD_WAIT: Duration = Duration::from_secs(30);

/// How long to wait when no connection can be taken.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A longer line is no token.
const TOKEN_LINE_MAX: u64 = 256;

/// Serve a page that shows the host, its apps and what is decided about them, live
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; a loopback address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9476")]
    listen: SocketAddr,
    /// The daemon's socket [default: $FOREBAY_SOCKET, or /run/forebay/forebay.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Only look: no button of the page changes anything
    #[arg(long)]
    read_only: bool,
    /// The daemon keeps it: the token comes by standard input, and it ends with the daemon
    #[arg(long, hide = true)]
    kept: bool,
}

/// What keeps the page from being served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An address that other hosts can reach.
    #[error(
        "serve the dashboard on {0}: not a loopback address; listen on 127.0.0.1 or [::1], and reach it from other hosts through `ssh -L`"
    )]
    NotLoopback(SocketAddr),
    /// Somebody else listens there, or it may not be used.
    #[error("serve the dashboard on {address}: {cause}; name another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The system lacks something that is needed.
    #[error("{doing}: {cause}")]
    System {
        /// What was attempted.
        doing: &'static str,
        /// Why not.
        cause: io::Error,
    },
}

/// Serves until a signal ends it.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let system = |doing| move |cause| Error::System { doing, cause };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the dashboard"))?
        .block_on(serve(args))
}

async fn serve(args: &Args) -> Result<ExitCode, Error> {
    let system = |doing| move |cause| Error::System { doing, cause };
    let address = args.listen;
    if !address.ip().is_loopback() {
        return Err(Error::NotLoopback(address));
    }
    let socket = crate::cli::socket(args.socket.as_deref());
    let token = if args.kept {
        told_token().map_err(system("read the token that the daemon tells"))?
    } else {
        gate::token().map_err(system("make a token"))?
    };
    let refused = |cause| Error::Listen { address, cause };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for signals"))?;

    if !args.kept {
        // The token stands behind `#`: a browser keeps that to itself.
        let told = writeln!(io::stdout(), "http://{address}/#token={token}");
        told.and_then(|()| io::stdout().flush())
            .map_err(system("print the page's address"))?;
        eprintln!(
            "The page shows {}{}. Whoever has this address may do what you may; Ctrl-C ends it.",
            socket.display(),
            if args.read_only { ", read-only" } else { "" }
        );
    }
    let router = router(Gate::new(token, args.read_only), Relay::new(socket));
    tokio::select! {
        () = accept(listener, router) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The token that the daemon tells. From now on this process ends with the thread that started it.
fn told_token() -> io::Result<String> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let mut line = String::new();
    // A daemon that ended already closed the pipe, and there is no token.
    io::stdin()
        .lock()
        .take(TOKEN_LINE_MAX)
        .read_line(&mut line)?;
    let token = line.trim_end();
    if !line.ends_with('\n') || token.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(token.to_owned())
}

/// Takes connections for ever.
async fn accept(listener: TcpListener, router: Router) {
    let service = TowerToHyperService::new(router);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The places are never closed; whoever comes too many waits in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            let _place = place;
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WAIT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "connection broke");
            }
        });
    }
}

/// Everything that can be asked of the dashboard.
fn router(gate: Gate, relay: Relay) -> Router {
    let gate = Arc::new(gate);
    // What the daemon knows takes the token; the files of the page are no secret.
    let asked = any(relay::pass)
        .with_state(Arc::new(relay))
        .layer(from_fn_with_state(Arc::clone(&gate), gate::check));
    Router::new()
        .route("/v1/{*what}", asked)
        .fallback(get(assets::serve))
        .layer(from_fn_with_state(gate, gate::harden))
}
