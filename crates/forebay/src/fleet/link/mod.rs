//! How agents of one fleet speak to each other: TLS 1.3, both sides with a certificate of the fleet.
//!
//! Signatures first; see the modules.
//!
//! ```ignore
//! // This host's key and certificate; connections to come use the newest, those that are there go on.
//! let identity: Arc<Identity> = Identity::load(dir)?;
//!
//! // Source:
//! let mut link = Link::connect(&identity, &target, address, CONNECT_BOUND).await?;
//! match link.ask(&Request::Reserve(reserve), Duration::from_secs(5)).await? { Answer::Promised { .. } => .. }
//! let progress = Progress::default();                      // shared, atomic: bytes, wire bytes, rate
//! let answer = link.send(&request, &mut source /* AsyncRead */, Sending { progress: &progress, compress, stall }).await?;
//!
//! // Target:
//! let listener = Listener::bind(&identity, address).await?;
//! listener.serve(Arc::new(handler), shutdown).await;
//! ```
#![expect(dead_code, reason = "not compiled yet")]

use std::future::Future;

pub(crate) mod authority;
pub(crate) mod messages;

/// Whom an agent speaks with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its name, as its certificate says.
    pub(crate) host: forebay_core::fleet::HostName,
    /// Its Forebay.
    pub(crate) version: String,
    /// Where it is.
    pub(crate) address: std::net::SocketAddr,
    /// How far its clock is ahead of this host's, in milliseconds.
    pub(crate) clock_ahead_ms: i64,
}

/// Answers what other agents ask.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request. `body` has the bytes that follow a [`messages::Request::Content`], and nothing
    /// for others; what is left of it unread ends the connection after the answer.
    fn answer(
        &self,
        peer: &Peer,
        request: messages::Request,
        body: &mut Body<'_>,
    ) -> impl Future<Output = messages::Answer> + Send;
}

// Body::next(&mut self) -> Result<Option<Vec<u8>>, Error>      the next chunk, 1 MiB at most, verified
// Body::copy_to(&mut self, &mut impl AsyncWrite) -> Result<u64, Error>
// Link::connect(&Arc<Identity>, &HostName, SocketAddr, Duration) -> Result<Link, Error>
// Link::peer(&self) -> &Peer
// Link::ask(&mut self, &Request, Duration) -> Result<Answer, Error>
// Link::send(&mut self, &Request, &mut (impl AsyncRead + Unpin + Send), Sending<'_>) -> Result<Answer, Error>
// Error: every variant names the peer and says what to do.
pub(crate) struct Body<'a>(std::marker::PhantomData<&'a ()>);
