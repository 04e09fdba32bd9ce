//! Why two agents do not speak with each other, and what to do.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::fleet::HostName;
use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

use crate::output;

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody answers there.
    Unreachable,
    /// It took longer than it may.
    Slow,
    /// It does not speak what is spoken here.
    Garbage,
    /// Its certificate, or ours, is not of the fleet, or there is none.
    NotOfFleet,
    /// A certificate's time is over, or has not begun.
    Validity,
    /// It was forgotten by the fleet.
    Forgotten,
    /// Another host than was meant.
    WrongHost,
    /// It speaks another version.
    Version,
    /// The clocks are too far apart.
    Clocks,
    /// A message is longer than any may be.
    TooLong,
    /// It ended in the middle.
    Cut,
    /// A chunk is not what was sent.
    Corrupt,
    /// What was to be sent could not be read, or what came not be kept.
    Local,
    /// It refused.
    Refused,
}

/// Why two agents do not speak with each other.
#[derive(Debug, thiserror::Error)]
#[error("{peer}: {what}; {remedy}")]
pub(crate) struct Error {
    /// What kind of trouble it is.
    pub(crate) kind: Kind,
    /// Whom this is about: its name where it is known, and where it is.
    pub(crate) peer: String,
    /// What was attempted, and what came of it.
    pub(crate) what: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Error {
    pub(super) fn new(
        kind: Kind,
        peer: impl fmt::Display,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            peer: peer.to_string(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// It took too long.
    pub(super) fn slow(peer: impl fmt::Display, doing: &str, bound: Duration) -> Self {
        let what = format!("{doing} took longer than {:.0} s", bound.as_secs_f64());
        let remedy = "look whether the host and the network between are overloaded, and try again";
        Self::new(Kind::Slow, peer, what, remedy)
    }

    /// Something was read or written that failed.
    pub(super) fn io(peer: impl fmt::Display, doing: &str, error: &io::Error) -> Self {
        if let Some(error) = error.get_ref()
            && let Some(tls) = error.downcast_ref::<rustls::Error>()
        {
            return Self::tls(peer, doing, tls);
        }
        if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted
        ) {
            return Self::cut(peer, doing);
        }
        Self::new(
            Kind::Unreachable,
            peer,
            format!("{doing}: {error}"),
            "look whether its agent runs and the network lets it through, and try again",
        )
    }

    /// The other side went away.
    pub(super) fn cut(peer: impl fmt::Display, doing: &str) -> Self {
        Self::new(
            Kind::Cut,
            peer,
            format!("{doing}: the connection ended in the middle"),
            "look at the other agent's log and at the network, and try again",
        )
    }

    /// TLS, or the other side's certificate, is not as it has to be.
    pub(super) fn tls(peer: impl fmt::Display, doing: &str, error: &rustls::Error) -> Self {
        use AlertDescription as Alert;
        let (kind, what, remedy) = match error {
            rustls::Error::InvalidCertificate(error) => refused(error),
            rustls::Error::NoCertificatesPresented => (
                Kind::NotOfFleet,
                "it shows no certificate".to_owned(),
                "have it join the fleet: `forebay fleet join`",
            ),
            rustls::Error::AlertReceived(Alert::CertificateExpired) => (
                Kind::Validity,
                format!(
                    "it finds that the certificate of this host is not valid at the time of its \
                     clock; the clock here says {}",
                    shown(SystemTime::now())
                ),
                "set both clocks; if they are right, renew the certificate: `forebay fleet renew`, \
                 or `forebay fleet join` with a new token where it has ended",
            ),
            rustls::Error::AlertReceived(Alert::CertificateRevoked) => (
                Kind::Forgotten,
                "it knows that this host was forgotten by the fleet".to_owned(),
                "have this host join again with a new token if that was a mistake",
            ),
            rustls::Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => (
                Kind::NotOfFleet,
                "it finds that the certificate of this host is of another fleet".to_owned(),
                "have both hosts join the same fleet: `forebay fleet join`",
            ),
            rustls::Error::AlertReceived(Alert::CertificateRequired) => (
                Kind::NotOfFleet,
                "it finds that this host shows no certificate".to_owned(),
                "have this host join the fleet: `forebay fleet join`",
            ),
            rustls::Error::AlertReceived(alert) => (
                Kind::NotOfFleet,
                format!("it ended the handshake ({alert:?})"),
                "look at the log of its agent, which says why",
            ),
            rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => (
                Kind::Garbage,
                "it does not speak TLS".to_owned(),
                "look whether the address is that of an agent of Forebay",
            ),
            other => (
                Kind::Garbage,
                format!("it does not agree on TLS 1.3 as it is spoken here ({other})"),
                "look whether the address is that of an agent of Forebay",
            ),
        };
        Self::new(kind, peer, format!("{doing}: {what}"), remedy)
    }
}

fn refused(error: &CertificateError) -> (Kind, String, &'static str) {
    let at =
        |time: rustls::pki_types::UnixTime| shown(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    match error {
        CertificateError::ExpiredContext { time, not_after } => (
            Kind::Validity,
            format!(
                "its certificate ended at {}, and the clock here says {}",
                at(*not_after),
                at(*time)
            ),
            "set both clocks; if they are right, have it renew its certificate, or join again with a \
             new token: `forebay fleet join`",
        ),
        CertificateError::NotValidYetContext { time, not_before } => (
            Kind::Validity,
            format!(
                "its certificate begins at {}, an hour before the clock of the host that made it, and \
                 the clock here says {}",
                at(*not_before),
                at(*time)
            ),
            "set both clocks, by NTP for example",
        ),
        CertificateError::Revoked => (
            Kind::Forgotten,
            "it was forgotten by the fleet".to_owned(),
            "have it join again with a new token if that was a mistake: `forebay fleet ca token`",
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            Kind::NotOfFleet,
            "its certificate is not of this fleet".to_owned(),
            "have both hosts join the same fleet: `forebay fleet join`",
        ),
        CertificateError::Other(other) => match other.0.downcast_ref::<WrongName>() {
            Some(wrong) => (
                Kind::WrongHost,
                wrong.to_string(),
                "look whether the address is that host's",
            ),
            None => (
                Kind::NotOfFleet,
                format!("its certificate is not usable ({other})"),
                "have it join the fleet anew: `forebay fleet join`",
            ),
        },
        other => (
            Kind::NotOfFleet,
            format!("its certificate is not usable ({other})"),
            "have it join the fleet anew: `forebay fleet join`",
        ),
    }
}

/// A certificate of the fleet that says another name than was expected, or none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WrongName {
    #[error("it is {there}, and {meant} was meant")]
    Other { there: HostName, meant: HostName },
    #[error("its certificate names no host of a fleet")]
    None,
}

/// A moment, as errors show it.
pub(super) fn shown(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    format!("{} UTC", output::utc(unix_ms))
}
