//! What an agent does about the fleet by itself: it listens, and keeps its certificate valid.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::authority::Authority;
use super::identity::{Identity, system_clock};
use super::listener::Listener;
use super::messages::{Answer, Refused, Request, Why};
use super::{Body, Handler, Peer, renewal};

/// Where a host's place in its fleet is, in the state directory.
pub(crate) const DIR: &str = "fleet";

/// Takes no applications in: hosts join and renew their certificates, which the listener sees to.
#[derive(Debug)]
struct AuthorityOnly;

impl Handler for AuthorityOnly {
    async fn answer(&self, _: &Peer, _: Request, _: &mut Body<'_>) -> Answer {
        Answer::Refused(Refused {
            why: Why::NotAllowed,
            message:
                "this agent holds the fleet's authority and nothing else; ask the daemon's agent"
                    .to_owned(),
        })
    }
}

/// Lets hosts join and renew their certificates, and renews that of this host, until it is told to end.
/// `listens` hears where.
///
/// # Errors
/// When this host does not hold the authority, or the address cannot be listened at.
pub(crate) async fn serve(
    identity: Arc<Identity>,
    address: &str,
    listens: impl FnOnce(SocketAddr) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let authority = Arc::new(Authority::open(identity.dir())?);
    let listener = Listener::bind(Arc::clone(&identity), Some(authority), address).await?;
    let (mut interrupted, mut ended) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    listens(listener.address())?;
    let end = async {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = ended.recv() => {}
        }
    };
    tokio::select! {
        () = listener.serve(Arc::new(AuthorityOnly), end) => {}
        () = renewal::keep(identity, renewal::NEWS_EVERY) => {}
    }
    Ok(())
}

/// Keeps the certificate of this host valid once it is in a fleet, for as long as it is polled.
pub(crate) async fn renewing(dir: &Path) {
    let identity = loop {
        if Identity::is_there(dir) {
            match Identity::load(dir, system_clock()) {
                Ok(identity) => break identity,
                Err(error) => {
                    tracing::warn!(%error, "the place of this host in its fleet cannot be used")
                }
            }
        }
        tokio::time::sleep(renewal::NEWS_EVERY).await;
    };
    renewal::keep(Arc::new(identity), renewal::NEWS_EVERY).await;
}
