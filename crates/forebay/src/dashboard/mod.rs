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
mod places;
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
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::DumpableBehavior;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

use crate::config::{CertificateFiles, PageFiles, PageTls};
use gate::{Gate, Names};
pub(crate) use keeper::{Keeper, address_file};
use places::{Places, Seat};
use relay::Relay;

/// How long a connection may take to send a request's head, or be idle between requests.
const HEAD_WAIT: Duration = Duration::from_secs(30);

/// How long both sides may take to agree on TLS.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be taken.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the daemon tells is no longer: certificates and authorities are bounded where they are read.
const TOLD_BYTES_MAX: u64 = 4 << 20;

/// Serve a page that shows the host, its apps and what is decided about them, live
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; a loopback address, unless there is a certificate
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9476")]
    listen: SocketAddr,
    /// The daemon's socket [default: $FOREBAY_SOCKET, or /run/forebay/forebay.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Only look: no button of the page changes anything
    #[arg(long)]
    read_only: bool,
    /// Speak TLS by the certificate in this file, in PEM, with those that vouch for it
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The file with the certificate's key, in PEM, not for everybody
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Take only browsers with a certificate of those in this file, in PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    client_ca: Option<PathBuf>,
    /// The daemon keeps it: its token and certificate come by standard input, and it ends with the daemon
    #[arg(long, hide = true)]
    kept: bool,
}

/// What keeps the page from being served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An address that other hosts can reach.
    #[error(
        "serve the dashboard on {0}: not a loopback address, and without TLS; name a certificate with --certificate and --key, or listen on 127.0.0.1 or [::1] and reach it from other hosts through `ssh -L`"
    )]
    NotLoopback(SocketAddr),
    /// A certificate that cannot be used.
    #[error("serve the dashboard by TLS: {0}")]
    Certificate(String),
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
    let told = if args.kept {
        Told::read().map_err(system("read what the daemon tells"))?
    } else {
        Told {
            token: gate::token().map_err(system("make a token"))?,
            tls: own_tls(args)?,
        }
    };
    if told.tls.is_none() && !address.ip().is_loopback() {
        return Err(Error::NotLoopback(address));
    }
    let speaks = told.tls.as_ref().map(acceptor).transpose()?;
    let socket = crate::cli::socket(args.socket.as_deref());
    let refused = |cause| Error::Listen { address, cause };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for signals"))?;

    if !args.kept {
        let printed = writeln!(io::stdout(), "{}", told.address(address));
        printed
            .and_then(|()| io::stdout().flush())
            .map_err(system("print the page's address"))?;
        eprintln!(
            "The page shows {}{}. Whoever has this address may do what you may; Ctrl-C ends it.",
            socket.display(),
            if args.read_only { ", read-only" } else { "" }
        );
    }
    // A browser compares the name that it was led here by with the certificate.
    let names = match speaks {
        Some(_) => Names::Certified,
        None => Names::Loopback,
    };
    let router = router(
        Gate::new(told.token, args.read_only, names),
        Relay::new(socket),
    );
    tokio::select! {
        () = accept(listener, speaks, router) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// What a page is served with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    token: String,
    tls: Option<PageTls>,
}

impl Told {
    /// What the daemon tells. From now on this process ends with the thread that started it.
    fn read() -> io::Result<Self> {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        // Others of its user are not to look into it.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let mut line = String::new();
        // A daemon that ended already closed the pipe, and there is no token.
        io::stdin()
            .lock()
            .take(TOLD_BYTES_MAX)
            .read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// What to open in a browser. The token stands behind `#`: a browser keeps that to itself.
    fn address(&self, listen: SocketAddr) -> String {
        let scheme = match self.tls {
            Some(_) => "https",
            None => "http",
        };
        let place = match listen.ip().is_unspecified() {
            // At whichever address, this is what the host is called.
            true => {
                let host = rustix::system::uname();
                format!("{}:{}", host.nodename().to_string_lossy(), listen.port())
            }
            false => listen.to_string(),
        };
        format!("{scheme}://{place}/#token={}", self.token)
    }
}

/// What stands in the files that were named.
fn own_tls(args: &Args) -> Result<Option<PageTls>, Error> {
    let (Some(certificate), Some(key)) = (&args.certificate, &args.key) else {
        return Ok(None);
    };
    let files = PageFiles {
        own: CertificateFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        },
        client_ca: args.client_ca.clone(),
    };
    files.read().map(Some).map_err(Error::Certificate)
}

fn acceptor(tls: &PageTls) -> Result<TlsAcceptor, Error> {
    let server = tls.pem.server(&[b"http/1.1"], tls.clients.as_ref());
    let server = server.map_err(|error| Error::Certificate(error.to_string()))?;
    Ok(Arc::new(server).into())
}

/// Takes connections for ever.
async fn accept(listener: TcpListener, speaks: Option<TlsAcceptor>, router: Router) {
    let service = TowerToHyperService::new(router);
    let places = Places::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (service, speaks) = (service.clone(), speaks.clone());
        let seat = Arc::new(places.seat());
        tokio::spawn(async move {
            tokio::select! {
                () = serve_one(stream, speaks, service, &seat) => {}
                () = seat.is_taken() => tracing::debug!("a connection without the token made room"),
            }
        });
    }
}

/// Serves one connection to its end.
async fn serve_one(
    stream: TcpStream,
    speaks: Option<TlsAcceptor>,
    service: TowerToHyperService<Router>,
    seat: &Arc<Seat>,
) {
    let Some(speaks) = speaks else {
        return converse(stream, service, seat).await;
    };
    match tokio::time::timeout(HANDSHAKE_WAIT, speaks.accept(stream)).await {
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            if let Some([own, ..]) = session.peer_certificates() {
                seat.certified(own);
            }
            converse(stream, service, seat).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a client did not agree on TLS"),
        Err(_) => tracing::debug!("a client did not agree on TLS in time"),
    }
}

/// Answers what one connection asks.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: TowerToHyperService<Router>,
    seat: &Arc<Seat>,
) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(seat));
        service.call(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection broke");
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
