//! A host's certificate is renewed before it ends, and hears whom the fleet has forgotten.
//!
//! Every [`NEWS_EVERY`] the agent asks the host that holds the authority, over a link like any other. In the
//! last third of its validity it asks for a new certificate as well, for a new key. Connections that are
//! there go on; the next ones begin with the new one.

use std::sync::Arc;
use std::time::Duration;

use super::authority::{Authority, Renewed};
use super::client::Link;
use super::error::{Error, Kind};
use super::identity::{Certificate, Identity, Key};
use super::messages::{Answer, Request};
use super::wire;

/// How often the authority is asked.
pub(crate) const NEWS_EVERY: Duration = Duration::from_secs(600);
/// How long it may take to answer.
const BOUND: Duration = Duration::from_secs(20);

/// When a certificate is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// In the last third of its validity.
    Due,
    /// Now.
    Now,
}

/// Renews the certificate of this host if it is time, and hears whom the fleet has forgotten; the new
/// certificate, if there is one.
///
/// # Errors
/// When the authority cannot be asked or refuses, or the files cannot be written: all stays as it was.
pub(crate) async fn renew(
    identity: &Arc<Identity>,
    when: When,
) -> Result<Option<Certificate>, Error> {
    let now = wire::now(&**identity.clock());
    let (authority, address) = identity.authority();
    let label = match &address {
        Some(address) => format!("{authority} at {address}"),
        None => authority.to_string(),
    };
    let local =
        |what: String| Error::new(Kind::Local, &label, what, "look at the files of the fleet");
    let old = identity.certificate();
    let key = match when == When::Now || old.is_due(now) {
        true => {
            let key = Key::generate();
            Some(key.map_err(|error| local(format!("make a key: {error}")))?)
        }
        false => None,
    };
    let signing = key.as_ref().map(|key| key.request(&identity.host()));
    let signing = signing.transpose().map_err(&local)?;
    let renewed = if authority == identity.host() {
        let identity = Arc::clone(identity);
        let renewed = tokio::task::spawn_blocking(move || {
            let authority = Authority::open(identity.dir())?;
            let (host, serial) = (identity.host(), identity.serial());
            authority.renew((&host, &serial), signing.as_ref(), now)
        });
        let renewed = renewed
            .await
            .map_err(|error| local(format!("renew: {error}")))?;
        renewed.map_err(|error| local(error.to_string()))?
    } else {
        let address = address.ok_or_else(|| {
            Error::new(
                Kind::Local,
                &label,
                "renew the certificate: nobody told this host where the agent of that host listens",
                "join with its address: `forebay fleet join ADDRESS TOKEN`",
            )
        })?;
        let mut link = Link::connect(identity, &authority, &address, BOUND).await?;
        let answer = link.ask(&Request::Renew { signing }, BOUND).await?;
        link.close().await;
        match answer {
            Answer::Renewed(renewed) => renewed,
            Answer::Refused(refused) => {
                let what = format!("renew the certificate: it says: {}", refused.message);
                return Err(Error::new(
                    Kind::Refused,
                    &label,
                    what,
                    "do what it says, and try again",
                ));
            }
            _ => {
                return Err(Error::cut(
                    &label,
                    "renew the certificate: it answers something else",
                ));
            }
        }
    };
    let identity = Arc::clone(identity);
    let kept = tokio::task::spawn_blocking(move || keep_it(&identity, &old, key, renewed));
    let kept = kept
        .await
        .map_err(|error| local(format!("keep what is new: {error}")))?;
    kept.map_err(|error| local(error.to_string()))
}

fn keep_it(
    identity: &Identity,
    old: &Certificate,
    key: Option<Key>,
    renewed: Renewed,
) -> Result<Option<Certificate>, super::identity::FileError> {
    identity.deny(&renewed.denied)?;
    match (key, renewed.certificate) {
        (Some(key), Some(certificate)) => {
            identity.renew(old, (key, certificate))?;
            Ok(Some(identity.certificate()))
        }
        _ => Ok(None),
    }
}

/// Keeps the certificate of this host valid, for as long as it is polled.
pub(crate) async fn keep(identity: Arc<Identity>, every: Duration) {
    let mut pause = tokio::time::interval(every);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        // A command may have renewed it.
        identity.look();
        match renew(&identity, When::Due).await {
            Ok(Some(certificate)) => tracing::info!(
                host = %identity.host(),
                until = %super::error::shown(certificate.ends()),
                "the certificate of this host was renewed"
            ),
            Ok(None) => {}
            Err(error) => {
                let now = wire::now(&**identity.clock());
                let certificate = identity.certificate();
                match certificate.is_over(now) {
                    true => tracing::error!(
                        %error,
                        "the certificate of this host has ended: it is out of the fleet until it joins \
                         again, by `forebay fleet join` with a new token"
                    ),
                    false => tracing::warn!(
                        %error,
                        until = %super::error::shown(certificate.ends()),
                        "the host that holds the authority cannot be asked; tried again"
                    ),
                }
            }
        }
    }
}
