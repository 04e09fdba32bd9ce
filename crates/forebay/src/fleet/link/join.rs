//! How a host becomes one of the fleet.
//!
//! ```text
//!   joins, has a token                              holds the authority
//!   TLS: names the token by its id ──────────────>  hangs up unless that one is out
//!   the certificate must be of the authority that
//!   the token has the fingerprint of, and of the
//!   host that it names
//!   the secret, a public key, its clock ─────────>  spends the token, makes a certificate
//!   stores key and certificate       <────────────  the certificate
//! ```
//!
//! So neither side says anything to somebody else that is worth having: the id lets nobody in, the secret
//! is sent only to the host that made it, and the private key to nobody.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::fleet::HostName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use super::authority::{Authority, SigningRequest, Token, Welcome};
use super::client::{tls, unusable};
use super::error::{Error, Kind};
use super::identity::{Clock, Contents, Identity, Key};
use super::{verify, wire};

/// Follows the id of a token where TLS has the name of a server.
pub(super) const NAME_SUFFIX: &str = ".join.forebay.invalid";
/// How long all of it may take.
const BOUND: Duration = Duration::from_secs(30);

/// What one says who wants to join. It has no `Debug`: nothing shows the secret.
#[derive(Serialize, Deserialize)]
struct Knock {
    forebay: String,
    protocol: u32,
    secret: String,
    host: HostName,
    signing: SigningRequest,
    clock_unix_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Opened {
    Welcome(Box<Welcome>),
    Refused(String),
}

/// Joins the fleet that a token is of, at the agent of the host that holds its authority; the host's place
/// in it is in the directory then.
///
/// # Errors
/// When this host is in a fleet already, nobody answers there, it is not the host that made the token, it
/// does not take it, or the files cannot be written.
pub(crate) async fn join(
    dir: &Path,
    address: &str,
    token: &Token,
    clock: Clock,
) -> Result<Identity, Error> {
    let label = format!("{} at {address}", token.at);
    let joined = timeout(BOUND, joined(dir, address, token, &clock, &label));
    let contents = joined
        .await
        .unwrap_or_else(|_| Err(Error::slow(&label, "join its fleet", BOUND)))?;
    let keep = |error: super::identity::FileError| {
        let text = error.to_string();
        Error::new(
            Kind::Local,
            &label,
            format!("join its fleet: {text}"),
            "then make a new token: this one is spent",
        )
    };
    contents.0.store(dir).map_err(keep)?;
    let identity = Identity::load(dir, clock).map_err(keep)?;
    identity.deny(&contents.1).map_err(keep)?;
    Ok(identity)
}

async fn joined(
    dir: &Path,
    address: &str,
    token: &Token,
    clock: &Clock,
    label: &str,
) -> Result<(Contents, Vec<String>), Error> {
    // One that has ended may join again under its own name, in its own fleet.
    let there = Contents::find(dir).map_err(|error| {
        Error::new(
            Kind::Local,
            label,
            format!("join its fleet: {error}"),
            "then join again: it is not written over before",
        )
    })?;
    if let Some(contents) = there
        && (&contents.fleet, &contents.host) != (&token.fleet, &token.host)
    {
        return Err(Error::new(
            Kind::Local,
            label,
            format!(
                "join its fleet: this host is {} of fleet {}",
                contents.host, contents.fleet
            ),
            format!("move {} away if it is to leave that one", dir.display()),
        ));
    }
    let key = Key::generate().map_err(|error| unusable(label, &error.to_string()))?;
    let signing = key
        .request(&token.host)
        .map_err(|why| unusable(label, &why))?;
    let (authority, fleet) = (token.authority.clone(), token.fleet.clone());
    let config = verify::joiner(authority, fleet, &token.at, clock)
        .map_err(|error| unusable(label, &error.to_string()))?;
    let name = ServerName::try_from(format!("{}{NAME_SUFFIX}", token.id)).map_err(|_| {
        Error::new(
            Kind::Local,
            label,
            "read the token: it is damaged",
            "copy all of what `forebay fleet ca token HOST` printed",
        )
    })?;
    let (mut stream, _) = tls(address, config, Some(name), label)
        .await
        .map_err(spent)?;
    let knock = Knock {
        forebay: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: wire::PROTOCOL,
        secret: token.secret.clone(),
        host: token.host.clone(),
        signing,
        clock_unix_ms: wire::unix_ms(wire::now(&**clock)),
    };
    let sent = wire::send(&mut stream, &knock).await;
    sent.map_err(|error| Error::io(label, "ask to join", &error))?;
    let opened: Option<Opened> =
        wire::receive(&mut stream, label, "hear whether it lets in").await?;
    let welcome = match opened {
        Some(Opened::Welcome(welcome)) => welcome,
        Some(Opened::Refused(why)) => {
            return Err(Error::new(
                Kind::Refused,
                label,
                format!("join its fleet: it says: {why}"),
                "do what it says, and try again",
            ));
        }
        None => return Err(Error::cut(label, "hear whether it lets in")),
    };
    let contents = Contents {
        version: Contents::VERSION,
        host: token.host.clone(),
        fleet: token.fleet.clone(),
        key,
        certificate: welcome.certificate,
        authority: welcome.authority,
        authority_host: token.at.clone(),
        authority_address: Some(address.to_owned()),
    };
    Ok((contents, welcome.denied))
}

/// Whoever holds the authority hangs up on a token that is not out, without a word.
fn spent(error: Error) -> Error {
    if error.kind != Kind::Cut {
        return error;
    }
    Error {
        kind: Kind::Refused,
        what: "join its fleet: it hung up, as it does where a token was used, was replaced or has ended"
            .to_owned(),
        remedy: "make a new one there: `forebay fleet ca token HOST`; if it is new, look whether the \
                 address is that of the agent"
            .to_owned(),
        ..error
    }
}

/// Lets one in who has named a token that is out.
///
/// # Errors
/// When it does not ask as it has to, or cannot be answered. A refusal is none.
pub(super) async fn admit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    authority: &Arc<Authority>,
    id: &str,
    clock: &Clock,
    label: &str,
) -> Result<(), Error> {
    let knock: Option<Knock> = wire::receive(stream, label, "hear who wants to join").await?;
    let Some(knock) = knock else {
        return Err(Error::cut(label, "hear who wants to join"));
    };
    let host = knock.host.clone();
    let opened = opened(authority, id, knock, clock).await;
    match &opened {
        Opened::Welcome(_) => tracing::info!(%host, from = label, "a host joined the fleet"),
        Opened::Refused(why) => {
            tracing::warn!(%host, from = label, why, "a host was not let into the fleet");
        }
    }
    let answer = async {
        wire::send(stream, &opened).await?;
        stream.shutdown().await
    };
    answer
        .await
        .map_err(|error| Error::io(label, "answer it", &error))
}

async fn opened(authority: &Arc<Authority>, id: &str, knock: Knock, clock: &Clock) -> Opened {
    if knock.protocol != wire::PROTOCOL {
        return Opened::Refused(format!(
            "{} runs Forebay {} and speaks version {} of the fleet's protocol, and this host runs {} and \
             speaks version {}; install the same version on both",
            knock.host,
            knock.forebay,
            knock.protocol,
            env!("CARGO_PKG_VERSION"),
            wire::PROTOCOL
        ));
    }
    let now = wire::now(&**clock);
    // Before the token is spent.
    if let Err(apart) = wire::apart(knock.clock_unix_ms, wire::unix_ms(now)) {
        let host = &knock.host;
        return Opened::Refused(format!("let {host} join: {apart}; {}", wire::SET_CLOCKS));
    }
    let (authority, id) = (Arc::clone(authority), id.to_owned());
    let admitted = tokio::task::spawn_blocking(move || {
        authority.admit((&id, &knock.secret), &knock.host, &knock.signing, now)
    });
    match admitted.await {
        Ok(Ok(welcome)) => Opened::Welcome(Box::new(welcome)),
        Ok(Err(error)) => Opened::Refused(error.to_string()),
        Err(error) => Opened::Refused(format!("let it join: {error}; make a new token")),
    }
}
