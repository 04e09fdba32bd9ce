//! Who this host is in its fleet: its key, its certificate, and whom it believes.
//!
//! One file has all of it, so that a key never stands beside the certificate of another: `identity.json`,
//! mode 0600, replaced whole. The key is made on this host and never leaves it. Connections take what is
//! newest when they begin; those that are there go on with what they began with, so that a renewal
//! interrupts nothing.
//!
//! `denied.json` beside it has the serial numbers of certificates that the fleet's authority took back.
//!
//! The daemon and commands change both. Whoever does holds `lock` and reads again before it writes, so that
//! none puts something old in the place of what another has written meanwhile.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay_core::fleet::HostName;
use forebay_host::regular;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};
use rustix::fs::{FlockOperation, flock};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::time_provider::{DefaultTimeProvider, TimeProvider};

use super::authority::{SigningRequest, proof};
use super::verify;

const FILE: &str = "identity.json";
const DENIED: &str = "denied.json";
const LOCK: &str = "lock";
/// The format that is written.
const VERSION: u32 = 1;
/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;
/// Certificates that may be taken back at a time.
pub(super) const DENIED_MAX: usize = 4096;
/// In the last part of its validity a certificate is renewed.
pub(super) const RENEWED_IN_LAST: u32 = 3;

/// Why this host's place in the fleet cannot be used or kept.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {}: {why}; {remedy}", path.display())]
pub(crate) struct FileError {
    pub(super) attempt: &'static str,
    pub(super) path: PathBuf,
    pub(super) why: String,
    pub(super) remedy: &'static str,
}

impl FileError {
    pub(super) fn of(error: &regular::ReplaceError) -> Self {
        Self {
            attempt: error.attempt,
            path: error.file.clone(),
            why: error.source.to_string(),
            remedy: "make room, or run it as the user that owns the directory",
        }
    }
}

/// The end of the year 9999, in seconds since 1970: no certificate can say a later moment (RFC 5280, 4.1.2.5).
const LAST_UNIX_S: u64 = 253_402_300_799;

/// Reads a moment, in seconds since 1970. Files and other agents may say any number, and sums with one that
/// is too great panic.
pub(super) fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let unix_s = u64::deserialize(from)?;
    if unix_s > LAST_UNIX_S {
        let late = format!("{unix_s} s since 1970 is after the year 9999");
        return Err(D::Error::custom(late));
    }
    Ok(unix_s)
}

/// A certificate as it is handed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Certificate {
    /// In PEM.
    pub(crate) pem: String,
    /// It begins, in seconds since 1970.
    #[serde(deserialize_with = "moment")]
    pub(crate) not_before_unix_s: u64,
    /// It ends.
    #[serde(deserialize_with = "moment")]
    pub(crate) not_after_unix_s: u64,
}

impl Certificate {
    /// Whether its last third has begun.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        let last = self.not_after().saturating_sub(self.not_before()) / RENEWED_IN_LAST;
        now + last >= self.ends()
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self, now: SystemTime) -> bool {
        now > self.ends()
    }

    /// When it ends.
    pub(crate) fn ends(&self) -> SystemTime {
        UNIX_EPOCH + self.not_after()
    }

    const fn not_before(&self) -> Duration {
        Duration::from_secs(self.not_before_unix_s)
    }

    const fn not_after(&self) -> Duration {
        Duration::from_secs(self.not_after_unix_s)
    }
}

/// A private key, in PEM; no log shows it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A new one: ECDSA on P-256.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self(pem("PRIVATE KEY", pair.serialized_der())))
    }

    pub(super) const fn from_pem(text: String) -> Self {
        Self(text)
    }

    pub(super) fn pair(&self) -> Result<KeyPair, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(self.0.as_bytes())
            .map_err(|error| format!("its key is none: {error}"))?;
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|error| format!("its key is none: {error}"))
    }

    /// What an authority needs to make a certificate for this key and nothing else: the public key, and
    /// that whoever asks has the private one.
    pub(super) fn request(&self, host: &HostName) -> Result<SigningRequest, String> {
        let pair = self.pair()?;
        let public = pair.public_key_raw();
        let signature = pair
            .sign(&proof(host, public))
            .map_err(|error| format!("its key cannot sign: {error}"))?;
        Ok(SigningRequest {
            public_key: STANDARD.encode(public),
            signature: STANDARD.encode(signature),
        })
    }
}

/// What the file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    pub(super) version: u32,
    pub(super) host: HostName,
    pub(super) fleet: String,
    pub(super) key: Key,
    pub(super) certificate: Certificate,
    /// The authority's certificate, in PEM.
    pub(super) authority: String,
    /// The host that holds the authority, and where its agent listens, as it was told at joining.
    pub(super) authority_host: HostName,
    pub(super) authority_address: Option<String>,
}

impl Contents {
    pub(super) const VERSION: u32 = VERSION;

    /// Writes it, durable on return.
    pub(super) fn store(&self, dir: &Path) -> Result<(), FileError> {
        make(dir)?;
        let _lock = lock(&dir.join(LOCK), MAY_NOT)?;
        self.write(dir)
    }

    /// Writes it; whoever calls this holds the lock.
    fn write(&self, dir: &Path) -> Result<(), FileError> {
        let path = dir.join(FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|error| damaged(&path, &error))?;
        regular::replace(&path, &text, 0o600).map_err(|error| FileError::of(&error))
    }

    /// Reads it.
    pub(super) fn read(dir: &Path) -> Result<Self, FileError> {
        Self::find(dir)?.ok_or_else(|| FileError {
            attempt: "read",
            path: dir.join(FILE),
            why: "it is not there".to_owned(),
            remedy: "this host is in no fleet yet: `forebay fleet join`, or `forebay fleet ca init`",
        })
    }

    /// Reads it; nothing where this host is in no fleet.
    pub(super) fn find(dir: &Path) -> Result<Option<Self>, FileError> {
        let path = dir.join(FILE);
        let (bytes, mode) = match regular::read(&path, BYTES_MAX) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(FileError {
                    attempt: "read",
                    path,
                    why: error.to_string(),
                    remedy: "run it as the user that owns the file",
                });
            }
        };
        own_only(
            (&path, mode),
            "chmod 600 it; if somebody read it, join anew and have the host forgotten before",
        )?;
        let contents: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error))?;
        if contents.version != VERSION {
            let why = format!("its version is {}, known is {VERSION}", contents.version);
            return Err(damaged(&path, &why));
        }
        Ok(Some(contents))
    }
}

/// Refuses a file with a key in it that others may read.
pub(super) fn own_only((path, mode): (&Path, u32), remedy: &'static str) -> Result<(), FileError> {
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(FileError {
        attempt: "use",
        path: path.to_owned(),
        why: "others than its owner may read the key in it".to_owned(),
        remedy,
    })
}

/// What to do where a file of the fleet may not be changed.
const MAY_NOT: &str = "run it as the user that owns the directory";

/// Waits for others that change files of one directory, which none does for long.
pub(super) fn lock(path: &Path, remedy: &'static str) -> Result<File, FileError> {
    let locked = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| {
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        });
    locked.map_err(|error| FileError {
        attempt: "lock",
        path: path.to_owned(),
        why: error.to_string(),
        remedy,
    })
}

/// Makes a directory that only its owner may look into.
pub(super) fn make(dir: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|error| FileError {
        attempt: "make",
        path: dir.to_owned(),
        why: error.to_string(),
        remedy: "run it as root, or name a directory with --dir",
    })
}

fn damaged(path: &Path, why: &impl ToString) -> FileError {
    FileError {
        attempt: "use",
        path: path.to_owned(),
        why: why.to_string(),
        remedy: "move it away and join anew: `forebay fleet join`",
    }
}

/// What connections begin with.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) host: HostName,
    pub(super) fleet: String,
    pub(super) pair: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) denied: BTreeSet<String>,
    /// Of the host's certificate, in hexadecimal.
    serial: String,
    pub(super) contents: Contents,
    stamp: Stamp,
}

impl Credentials {
    fn new(contents: Contents, denied: BTreeSet<String>, stamp: Stamp) -> Result<Self, String> {
        let one = |pem: &str, whose: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|error| format!("the certificate of {whose} is none: {error}"))
        };
        let own = one(&contents.certificate.pem, "the host")?;
        let authority = one(&contents.authority, "the authority")?;
        let serial = verify::serial(&own).ok_or("the certificate of the host has no number")?;
        let mut roots = RootCertStore::empty();
        roots
            .add(authority.clone())
            .map_err(|error| format!("the certificate of the authority is none: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(contents.key.0.as_bytes())
            .map_err(|error| format!("its key is none: {error}"))?;
        // The authority's own goes along, for those who join and know no more than its fingerprint.
        let pair = CertifiedKey::from_der(vec![own, authority], key, &ring::default_provider())
            .map_err(|error| format!("its certificate and its key do not go together: {error}"))?;
        Ok(Self {
            host: contents.host.clone(),
            fleet: contents.fleet.clone(),
            pair: Arc::new(pair),
            roots: Arc::new(roots),
            denied,
            serial,
            contents,
            stamp,
        })
    }
}

/// Who this host is in its fleet.
#[derive(Debug)]
pub(crate) struct Identity {
    dir: PathBuf,
    clock: Clock,
    now: RwLock<Arc<Credentials>>,
}

/// What certificates are judged by.
pub(crate) type Clock = Arc<dyn TimeProvider>;

/// The one of this host.
pub(crate) fn system_clock() -> Clock {
    Arc::new(DefaultTimeProvider)
}

impl Identity {
    /// Reads it.
    ///
    /// # Errors
    /// When this host is in no fleet, or its files cannot be used.
    pub(crate) fn load(dir: &Path, clock: Clock) -> Result<Self, FileError> {
        Ok(Self {
            dir: dir.to_owned(),
            clock,
            now: RwLock::new(Arc::new(read(dir)?)),
        })
    }

    /// Whether a host has a place in a fleet in this directory.
    pub(crate) fn is_there(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// The directory that it stands in.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What certificates are judged by.
    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// This host.
    pub(crate) fn host(&self) -> HostName {
        self.credentials().host.clone()
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> Certificate {
        self.credentials().contents.certificate.clone()
    }

    /// The serial number of its certificate, in hexadecimal.
    pub(crate) fn serial(&self) -> String {
        self.credentials().serial.clone()
    }

    /// The host that holds the authority, and where its agent listens, if that is known.
    pub(crate) fn authority(&self) -> (HostName, Option<String>) {
        let now = self.credentials();
        (
            now.contents.authority_host.clone(),
            now.contents.authority_address.clone(),
        )
    }

    pub(super) fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what stands in its directory, where a command or another process has changed it; what
    /// cannot be used changes nothing, and is told of.
    pub(crate) fn look(&self) {
        if stamp(&self.dir) == self.credentials().stamp {
            return;
        }
        if let Err(error) = self.refresh() {
            tracing::warn!(%error, "this host's place in the fleet changed and cannot be used; the old one is");
        }
    }

    fn refresh(&self) -> Result<(), FileError> {
        self.put(read(&self.dir)?);
        Ok(())
    }

    /// Keeps a new key with its certificate in place of an old one; whether it did. Where that one is not
    /// there any more, another process has renewed it or joined anew, and what it has written is used: the
    /// new one here may be of before the host was forgotten.
    pub(super) fn renew(
        &self,
        old: &Certificate,
        (key, certificate): (Key, Certificate),
    ) -> Result<bool, FileError> {
        let _lock = lock(&self.dir.join(LOCK), MAY_NOT)?;
        let there = Contents::read(&self.dir)?;
        let is_old = there.certificate == *old;
        if is_old {
            let contents = Contents {
                key,
                certificate,
                ..there
            };
            let now = self.credentials();
            // What does not go together is not written.
            Credentials::new(contents.clone(), now.denied.clone(), now.stamp)
                .map_err(|why| damaged(&self.dir.join(FILE), &why))?;
            contents.write(&self.dir)?;
        }
        self.refresh()?;
        Ok(is_old)
    }

    /// Keeps whom the fleet has forgotten: serial numbers in hexadecimal.
    pub(crate) fn deny(&self, denied: &[String]) -> Result<(), FileError> {
        let denied: BTreeSet<String> = denied.iter().take(DENIED_MAX).cloned().collect();
        let path = self.dir.join(DENIED);
        let _lock = lock(&self.dir.join(LOCK), MAY_NOT)?;
        if denied != read_denied(&path)? {
            let text = serde_json::to_vec(&denied).map_err(|error| damaged(&path, &error))?;
            regular::replace(&path, &text, 0o600).map_err(|error| FileError::of(&error))?;
        }
        self.refresh()
    }

    fn put(&self, next: Credentials) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

/// What changes when one of the files is replaced: their numbers, and when they were.
type Stamp = [Option<(u64, i64, i64)>; 2];

fn stamp(dir: &Path) -> Stamp {
    [FILE, DENIED].map(|name| {
        let metadata = std::fs::metadata(dir.join(name)).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
    })
}

fn read(dir: &Path) -> Result<Credentials, FileError> {
    // Before the files: what comes between is looked at once more.
    let stamp = stamp(dir);
    let contents = Contents::read(dir)?;
    let denied = read_denied(&dir.join(DENIED))?;
    Credentials::new(contents, denied, stamp).map_err(|why| damaged(&dir.join(FILE), &why))
}

fn read_denied(path: &Path) -> Result<BTreeSet<String>, FileError> {
    match regular::read(path, BYTES_MAX) {
        Ok((bytes, _)) => serde_json::from_slice(&bytes).map_err(|error| damaged(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(damaged(path, &error)),
    }
}

/// Bytes in PEM (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    const COLUMNS: usize = 64;
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(COLUMNS) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_time() {
        let day = 86_400;
        let certificate = Certificate {
            pem: String::new(),
            not_before_unix_s: 100 * day,
            not_after_unix_s: 130 * day,
        };
        let at = |days: u64| UNIX_EPOCH + Duration::from_secs(days * day);
        assert!(!certificate.is_due(at(119)));
        assert!(certificate.is_due(at(120)));
        assert!(!certificate.is_over(at(130)));
        assert!(certificate.is_over(at(131)));
    }

    #[test]
    fn a_moment_that_no_certificate_can_say_is_refused_where_it_is_read() {
        let read = |after: u64| -> Result<Certificate, _> {
            serde_json::from_str(&format!(
                r#"{{"pem":"","not_before_unix_s":0,"not_after_unix_s":{after}}}"#
            ))
        };
        let last = read(LAST_UNIX_S).unwrap();
        assert!(!last.is_over(SystemTime::now()) && !last.is_due(SystemTime::now()));
        assert_eq!(
            super::super::error::shown(last.ends()),
            "9999-12-31 23:59:59 UTC"
        );
        for late in [LAST_UNIX_S + 1, u64::MAX] {
            let error = read(late).unwrap_err().to_string();
            assert!(error.contains("after the year 9999"), "{error}");
        }
    }

    #[test]
    fn pem_is_as_others_write_it() {
        let text = pem("CERTIFICATE", &[7; 100]);
        assert!(text.lines().all(|line| line.len() <= 64), "{text}");
        assert_eq!(
            CertificateDer::from_pem_slice(text.as_bytes())
                .unwrap()
                .as_ref(),
            [7; 100]
        );
    }
}
