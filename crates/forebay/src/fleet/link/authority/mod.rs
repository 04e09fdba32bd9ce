//! The authority of a fleet: who is in it.
//!
//! It is one key, on one host, in a directory of its own that only its owner may look into:
//!
//! ```text
//! ca/authority.pem    its key and its certificate, 0600
//! ca/authority.json   certificates that are valid, tokens that are out, certificates taken back
//! ca/lock             held by whoever changes them: the agent that lets hosts join, or a command
//! ```
//!
//! A host joins with a token, which is good once, for one name and for a short time. It is spent in the
//! same change by which the certificate is kept, and that is durable before the certificate is handed over.
//! What is kept of it is a hash, so that the file lets nobody in.
//! A certificate counts from an hour before it is made, so that hosts whose clocks are behind believe it.
//!
//! Forgetting a host takes the serial numbers of its certificates back. No certificate is made for one whose
//! own is taken back, which is looked at under the same lock. This host knows at once; others
//! hear of it when they ask for news ([`super::renewal`]), or at the latest when the certificate ends.

mod signing;
mod token;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::fleet::HostName;
use forebay_host::regular;
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::identity::{
    Certificate, Contents, DENIED_MAX, FileError, Key, RENEWED_IN_LAST, lock, make, moment,
    own_only, pem,
};
use super::verify::{fingerprint, hex};

pub(crate) use signing::SigningRequest;
pub(in crate::fleet::link) use signing::proof;
use signing::{authority_params, made, random};
pub(crate) use token::Token;

const PEM: &str = "authority.pem";
const STATE: &str = "authority.json";
const LOCK: &str = "lock";
const VERSION: u32 = 1;
const BYTES_MAX: u64 = 16 << 20;

/// How long a host's certificate is valid.
pub(crate) const VALIDITY: Duration = Duration::from_secs(30 * 86_400);
/// How long before it is made it begins: clocks may be behind by so much.
pub(crate) const BACKDATED: Duration = Duration::from_secs(3600);
/// Tokens that may be out at a time.
const TOKENS_MAX: usize = 256;
/// Certificates of one host that may be in the first two thirds of their validity when it renews. It needs
/// one; those that are due do not count, so that it never waits when it has to renew.
const YOUNG_MAX: usize = 8;
/// Certificates that may be valid at a time.
const ISSUED_MAX: usize = 16_384;
const SECRET_BYTES: usize = 32;
const TOKEN_ID_BYTES: usize = 8;

/// A new certificate, and those who are not of the fleet any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Renewed {
    /// The certificate, if one was asked for.
    pub(crate) certificate: Option<Certificate>,
    /// Serial numbers of certificates that were taken back and have not ended yet.
    pub(crate) denied: Vec<String>,
}

/// Why the authority does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Its files cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is asked is not done.
    #[error("{what}; {remedy}")]
    Refused {
        /// What was asked, and why not.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
}

fn refused(what: impl Into<String>, remedy: &'static str) -> Error {
    Error::Refused {
        what: what.into(),
        remedy,
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Issued {
    host: HostName,
    serial: String,
    #[serde(deserialize_with = "moment")]
    not_after_unix_s: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Out {
    id: String,
    /// Of the secret, SHA-256.
    hash: String,
    host: HostName,
    #[serde(deserialize_with = "moment")]
    until_unix_s: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    fleet: String,
    /// The host that it is on.
    host: HostName,
    issued: Vec<Issued>,
    tokens: Vec<Out>,
    denied: Vec<Issued>,
}

impl State {
    fn prune(&mut self, now_unix_s: u64) {
        self.tokens.retain(|token| token.until_unix_s > now_unix_s);
        self.issued
            .retain(|issued| issued.not_after_unix_s >= now_unix_s);
        self.denied
            .retain(|denied| denied.not_after_unix_s >= now_unix_s);
    }

    /// Whether a host has room for one more certificate that it asks for by itself: it takes neither the
    /// room of others, nor that of the list of those who were forgotten.
    fn has_room(&self, host: &HostName, now: SystemTime) -> Result<(), Error> {
        let due_unix_s = unix_s(now + VALIDITY.saturating_add(BACKDATED) / RENEWED_IN_LAST);
        let is_young =
            |issued: &&Issued| issued.host == *host && issued.not_after_unix_s > due_unix_s;
        if self.issued.iter().filter(is_young).count() < YOUNG_MAX {
            return Ok(());
        }
        Err(refused(
            format!("renew the certificate of {host}: {YOUNG_MAX} that it has are not due yet"),
            "have it use the newest, or look why it renews so often; if it is not itself, forget it",
        ))
    }

    /// Whether a host may go on by the certificate that has this serial number.
    fn believes(&self, host: &HostName, serial: &str) -> Result<(), Error> {
        let is_it = |issued: &Issued| issued.serial == serial && issued.host == *host;
        let why = if self.denied.iter().any(is_it) {
            "was taken back"
        } else if self.issued.iter().any(is_it) {
            return Ok(());
        } else {
            "is none of those that were made here and are still valid"
        };
        Err(refused(
            format!("renew the certificate of {host}: the one that it shows {why}"),
            "have it join again with a new token if that is wrong: `forebay fleet ca token HOST`",
        ))
    }
}

/// What one who joined gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) certificate: Certificate,
    pub(super) authority: String,
    pub(super) denied: Vec<String>,
}

/// The authority.
#[derive(Debug)]
pub(crate) struct Authority {
    dir: PathBuf,
}

/// How a fleet is begun.
#[derive(Debug, Clone)]
pub(crate) struct Beginning {
    /// Its name: lower-case letters, digits, `-`, `_` and `.`.
    pub(crate) fleet: String,
    /// This host.
    pub(crate) host: HostName,
}

/// The directory of the authority, in that of the fleet.
pub(crate) fn place(dir: &Path) -> PathBuf {
    dir.join("ca")
}

impl Authority {
    /// Begins a fleet, of which this host is the first.
    ///
    /// # Errors
    /// When there is one already, or it cannot be written.
    pub(crate) fn init(dir: &Path, beginning: Beginning, now: SystemTime) -> Result<Self, Error> {
        let is_name = (1..=64).contains(&beginning.fleet.len())
            && beginning
                .fleet
                .starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && beginning.fleet.bytes().all(|c| {
                c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.')
            });
        if !is_name {
            return Err(refused(
                format!("`{}` is no name of a fleet", beginning.fleet),
                "use 1 to 64 lower-case letters, digits, `-`, `_` or `.`, starting with a letter or digit",
            ));
        }
        let this = Self { dir: place(dir) };
        make(&this.dir)?;
        let lock = this.lock()?;
        // One of the two files may be lost: the key of a fleet is not written over for that.
        let begun = [PEM, STATE].map(|name| exists(&this.dir.join(name)));
        let [key, state] = begun;
        if key? || state? || Contents::find(dir)?.is_some() {
            return Err(refused(
                format!(
                    "begin a fleet in {}: this host is in one already",
                    dir.display()
                ),
                "name another directory with --dir, or move that one away, which ends the fleet that it holds",
            ));
        }
        let key = Key::generate().map_err(|error| made("a key", &error))?;
        let pair = key.pair().map_err(|why| refused(why, "try again"))?;
        let params = authority_params(&beginning.fleet, now);
        let certificate = params
            .self_signed(&pair)
            .map_err(|error| made("the authority's certificate", &error))?;
        let text =
            pem("PRIVATE KEY", pair.serialized_der()) + &pem("CERTIFICATE", certificate.der());
        let file = this.dir.join(PEM);
        regular::replace(&file, text.as_bytes(), 0o600).map_err(|e| FileError::of(&e))?;
        let state = State {
            version: VERSION,
            fleet: beginning.fleet,
            host: beginning.host.clone(),
            issued: Vec::new(),
            tokens: Vec::new(),
            denied: Vec::new(),
        };
        this.write(&state)?;
        drop(lock);
        this.issue(&beginning.host, (dir, None), now)?;
        Ok(this)
    }

    /// Opens the one of this host.
    ///
    /// # Errors
    /// When there is none, or its files cannot be used.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let this = Self { dir: place(dir) };
        this.read()?;
        Ok(this)
    }

    /// What the fleet is called, and the fingerprint of its authority.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub(crate) fn name(&self) -> Result<(String, String), Error> {
        Ok((self.read()?.fleet, fingerprint(&self.keys()?.1)))
    }

    /// Makes key and certificate for a host that cannot join by itself, into a directory; `address` is
    /// where it will find this host's agent to renew it.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub(crate) fn issue(
        &self,
        host: &HostName,
        (out, address): (&Path, Option<String>),
        now: SystemTime,
    ) -> Result<(), Error> {
        let key = Key::generate().map_err(|error| made("a key", &error))?;
        let request = key.request(host).map_err(|why| refused(why, "try again"))?;
        let (certificate, state) =
            self.change(now, |state| self.sign(state, host, &request, now))?;
        let contents = Contents {
            version: Contents::VERSION,
            host: host.clone(),
            fleet: state.fleet,
            key,
            certificate,
            authority: pem("CERTIFICATE", &self.keys()?.1),
            authority_host: state.host,
            authority_address: address,
        };
        Ok(contents.store(out)?)
    }

    /// Lets a host join, once and for so long.
    ///
    /// # Errors
    /// When too many may already, or it cannot be written.
    pub(crate) fn token(
        &self,
        host: &HostName,
        good_for: Duration,
        now: SystemTime,
    ) -> Result<Token, Error> {
        let (id, secret) = (random::<TOKEN_ID_BYTES>()?, random::<SECRET_BYTES>()?);
        let (id, secret) = (hex(&id), hex(&secret));
        let authority = fingerprint(&self.keys()?.1);
        let ((), state) = self.change(now, |state| {
            // The newest counts.
            state.tokens.retain(|token| token.host != *host);
            if state.tokens.len() >= TOKENS_MAX {
                return Err(refused(
                    format!("make a token for {host}: {TOKENS_MAX} are out"),
                    "have those hosts join, or wait until their tokens have ended",
                ));
            }
            state.tokens.push(Out {
                id: id.clone(),
                hash: fingerprint(secret.as_bytes()),
                host: host.clone(),
                until_unix_s: unix_s(now + good_for),
            });
            Ok(())
        })?;
        Ok(Token {
            id,
            secret,
            host: host.clone(),
            fleet: state.fleet,
            at: state.host,
            authority,
        })
    }

    /// Whether a token of this name is out.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub(super) fn expects(&self, id: &str, now: SystemTime) -> Result<bool, Error> {
        let state = self.read()?;
        let mut tokens = state.tokens.iter();
        Ok(tokens.any(|token| token.id == id && token.until_unix_s > unix_s(now)))
    }

    /// Takes a token, and makes a certificate.
    ///
    /// # Errors
    /// When it is not out, is not for that host, or is over; or the files cannot be written.
    pub(super) fn admit(
        &self,
        (id, secret): (&str, &str),
        host: &HostName,
        request: &SigningRequest,
        now: SystemTime,
    ) -> Result<Welcome, Error> {
        const ANEW: &str =
            "make a new one on the host that holds the authority: `forebay fleet ca token HOST`";
        let state = self.read()?;
        // One that has ended is still there until something else is written, and says why then.
        let Some(token) = state.tokens.iter().find(|token| token.id == id) else {
            let what =
                format!("let {host} join: its token was used, or replaced, or ended long ago");
            return Err(refused(what, ANEW));
        };
        if token.hash != fingerprint(secret.as_bytes()) {
            return Err(refused(
                format!("let {host} join: its token is not one of this fleet"),
                ANEW,
            ));
        }
        if token.host != *host {
            let what = format!("let {host} join: its token is for {}", token.host);
            return Err(refused(what, ANEW));
        }
        if token.until_unix_s <= unix_s(now) {
            let until = super::error::shown(UNIX_EPOCH + Duration::from_secs(token.until_unix_s));
            let what = format!("let {host} join: its token ended at {until}");
            return Err(refused(what, ANEW));
        }
        signing::check(host, request)?;
        // Both at once: whoever forgets the host finds the token or the certificate.
        let (certificate, state) = self.change(now, |state| {
            let before = state.tokens.len();
            state.tokens.retain(|token| token.id != id);
            if before == state.tokens.len() {
                let what = format!(
                    "let {host} join: its token was used or replaced, or {host} was forgotten"
                );
                return Err(refused(what, ANEW));
            }
            self.sign(state, host, request, now)
        })?;
        Ok(Welcome {
            certificate,
            authority: pem("CERTIFICATE", &self.keys()?.1),
            denied: serials(&state),
        })
    }

    /// Makes a new certificate for a host of the fleet, if it wants one, and says who is not of it. The
    /// serial number is that of the certificate by which the host shows who it is.
    ///
    /// # Errors
    /// When that one was taken back or was not made here, the host has many already, the request is none, or
    /// the files cannot be written.
    pub(crate) fn renew(
        &self,
        (host, serial): (&HostName, &str),
        request: Option<&SigningRequest>,
        now: SystemTime,
    ) -> Result<Renewed, Error> {
        let Some(request) = request else {
            return Ok(Renewed {
                certificate: None,
                denied: self.denied(now)?,
            });
        };
        let (certificate, state) = self.change(now, |state| {
            // Under the lock: it may have been forgotten since it was listened to.
            state.believes(host, serial)?;
            state.has_room(host, now)?;
            self.sign(state, host, request, now)
        })?;
        Ok(Renewed {
            certificate: Some(certificate),
            denied: serials(&state),
        })
    }

    /// The serial numbers of certificates that were taken back and have not ended yet.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub(crate) fn denied(&self, now: SystemTime) -> Result<Vec<String>, Error> {
        let mut state = self.read()?;
        state.prune(unix_s(now));
        Ok(serials(&state))
    }

    /// Takes all certificates of a host back, and its tokens; how many certificates there were.
    ///
    /// # Errors
    /// When it is this host, was never of the fleet, or it cannot be written.
    pub(crate) fn forget(&self, host: &HostName, now: SystemTime) -> Result<usize, Error> {
        let (taken, _) = self.change(now, |state| {
            if state.host == *host {
                return Err(refused(
                    format!("forget {host}: it holds the authority itself"),
                    "begin another fleet on another host instead",
                ));
            }
            let tokens = state.tokens.len();
            state.tokens.retain(|token| token.host != *host);
            let (theirs, others): (Vec<_>, Vec<_>) = state
                .issued
                .drain(..)
                .partition(|issued| issued.host == *host);
            state.issued = others;
            if theirs.is_empty() && tokens == state.tokens.len() {
                return Err(refused(
                    format!(
                        "forget {host}: it has no certificate of this fleet that is still valid"
                    ),
                    "look whether the name is right",
                ));
            }
            if state.denied.len() + theirs.len() > DENIED_MAX {
                return Err(refused(
                    format!(
                        "forget {host}: {} certificates are taken back already",
                        state.denied.len()
                    ),
                    "wait until some of them have ended, or begin another fleet",
                ));
            }
            let taken = theirs.len();
            state.denied.extend(theirs);
            Ok(taken)
        })?;
        Ok(taken)
    }

    fn sign(
        &self,
        state: &mut State,
        host: &HostName,
        request: &SigningRequest,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        if state.issued.len() >= ISSUED_MAX {
            return Err(refused(
                format!("make a certificate for {host}: {ISSUED_MAX} are valid"),
                "wait until some of them have ended",
            ));
        }
        let (pair, _) = self.keys()?;
        let signed = signing::sign((&state.fleet, host), request, pair, now)?;
        state.issued.push(Issued {
            host: host.clone(),
            serial: signed.serial,
            not_after_unix_s: signed.certificate.not_after_unix_s,
        });
        Ok(signed.certificate)
    }

    /// Its key and its certificate.
    fn keys(&self) -> Result<(KeyPair, CertificateDer<'static>), Error> {
        let path = self.dir.join(PEM);
        let (text, mode) = self.text(&path)?;
        own_only(
            (&path, mode),
            "chmod 600 it; if somebody read it, begin another fleet: who has it can make any host of this one",
        )?;
        let pair = Key::from_pem(text.clone()).pair();
        let certificate = CertificateDer::from_pem_slice(text.as_bytes());
        match (pair, certificate) {
            (Ok(pair), Ok(certificate)) => Ok((pair, certificate)),
            (Err(why), _) => Err(damaged(&path, why)),
            (_, Err(error)) => Err(damaged(&path, error.to_string())),
        }
    }

    /// What a file says, and who may read it.
    fn text(&self, path: &Path) -> Result<(String, u32), Error> {
        let (bytes, mode) = regular::read(path, BYTES_MAX).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => {
                    "do it on the host that holds the authority of the fleet, or begin one: `forebay fleet ca init`"
                }
                _ => "run it as the user that owns the file",
            };
            FileError {
                attempt: "read",
                path: path.to_owned(),
                why: error.to_string(),
                remedy,
            }
        })?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| damaged(path, "it is no text".to_owned()))?;
        Ok((text, mode))
    }

    fn read(&self) -> Result<State, Error> {
        let path = self.dir.join(STATE);
        let (text, _) = self.text(&path)?;
        let state: State =
            serde_json::from_str(&text).map_err(|error| damaged(&path, error.to_string()))?;
        if state.version != VERSION {
            let why = format!("its version is {}, known is {VERSION}", state.version);
            return Err(damaged(&path, why));
        }
        Ok(state)
    }

    fn write(&self, state: &State) -> Result<(), Error> {
        let path = self.dir.join(STATE);
        let text = serde_json::to_vec_pretty(state).map_err(|e| damaged(&path, e.to_string()))?;
        regular::replace(&path, &text, 0o600).map_err(|error| FileError::of(&error))?;
        Ok(())
    }

    /// Changes what is kept, one at a time; durable on return, and not changed where that failed.
    fn change<T>(
        &self,
        now: SystemTime,
        change: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Result<(T, State), Error> {
        let _lock = self.lock()?;
        let mut state = self.read()?;
        state.prune(unix_s(now));
        let changed = change(&mut state)?;
        self.write(&state)?;
        Ok((changed, state))
    }

    /// Waits for others that change something, which none does for long.
    fn lock(&self) -> Result<File, Error> {
        const ELSEWHERE: &str =
            "do it on the host that holds the authority, as the user that owns the directory";
        Ok(lock(&self.dir.join(LOCK), ELSEWHERE)?)
    }
}

fn exists(path: &Path) -> Result<bool, FileError> {
    path.try_exists().map_err(|error| FileError {
        attempt: "look for",
        path: path.to_owned(),
        why: error.to_string(),
        remedy: "run it as the user that owns the directory",
    })
}

fn damaged(path: &Path, why: String) -> Error {
    Error::File(FileError {
        attempt: "use",
        path: path.to_owned(),
        why,
        remedy: "put it back from a copy; without it no host can join, and none renew its certificate",
    })
}

fn serials(state: &State) -> Vec<String> {
    state
        .denied
        .iter()
        .map(|denied| denied.serial.clone())
        .collect()
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
