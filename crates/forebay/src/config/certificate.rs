//! Certificates and keys of fronts and of the page, and the authorities that others are known by.

use std::path::{Path, PathBuf};

use forebay_host::regular;
use forebay_shadow::listen::Listen;
use forebay_shadow::secret::Secret;
use forebay_shadow::tls::{self, Pem};

use super::app::absolute;
use super::error::{Findings, Problem};
use super::facts::HostFacts;
use super::text::{At, Section};

/// A longer chain or key is none.
const PEM_BYTES_MAX: u64 = 64 * 1024;
const CERTIFICATE: &str = "certificate";
const KEY: &str = "key";

/// A mistake, and the key that it is in.
pub(super) type Mistake = (&'static str, Problem);

/// A longer bundle of certificates is none.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;

/// Where a certificate and its key stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Resolves the files of who speaks TLS, and what stands there now; nothing after a mistake, which was noted.
pub(super) fn files(
    who: &str,
    section: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<(Files, Pem)> {
    let mut file = |name: &'static str| {
        let key = section.key(name);
        let Some(At { value, at }) = section.take::<String>(name) else {
            if !section.refused {
                let lacks = format!("{who} has no {name} to speak TLS with");
                let remedy = "name the file that holds it in PEM";
                findings.add(section.at, key, Problem::new(lacks, remedy));
            }
            return None;
        };
        let path = PathBuf::from(value);
        findings.keep(at, key, absolute(&path))?;
        Some((path, at))
    };
    let (certificate, key) = (file(CERTIFICATE), file(KEY));
    let ((certificate, certificate_at), (key, key_at)) = (certificate?, key?);
    let places = (host.at(&certificate), host.at(&key));
    let pem = read_at((&certificate, &key), (&places.0, &places.1));
    let pem = pem.map_err(|(name, problem)| {
        let at = if name == KEY { key_at } else { certificate_at };
        findings.add(at, section.key(name), problem);
    });
    Some((Files { certificate, key }, pem.ok()?))
}

/// Resolves what a front needs to speak TLS; nothing after a mistake, which was noted.
pub(super) fn resolve(
    mut section: Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<tls::Options> {
    let files = files("the front", &mut section, host, findings);
    let listen = section.take::<Vec<String>>("listen");
    let listen = listen.map_or_else(Vec::new, |listen| {
        let addresses = listen.value.iter().filter_map(|text| {
            let parsed = text.parse::<Listen>().map_err(|error| {
                Problem::new(
                    error.to_string(),
                    "name addresses at which the front listens",
                )
            });
            findings.keep(listen.at, section.key("listen"), parsed)
        });
        addresses.collect()
    });
    let (files, pem) = files?;
    Some(tls::Options {
        certificate_file: files.certificate,
        key_file: files.key,
        pem,
        listen,
        require: section.take::<bool>("require").is_some_and(|set| set.value),
    })
}

/// Reads a certificate and its key.
///
/// # Errors
/// What is wrong, and what to do.
pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Pem, String> {
    read_at((certificate, key), (certificate, key))
        .map_err(|(_, problem)| format!("{}; {}", problem.message, problem.fix))
}

/// Files as they were named, and where they really are.
pub(super) fn read_at(
    (certificate, key): (&Path, &Path),
    places: (&Path, &Path),
) -> Result<Pem, Mistake> {
    let (chain, _) = text((CERTIFICATE, certificate), places.0)?;
    let (secret, mode) = text((KEY, key), places.1)?;
    if mode & 0o007 != 0 {
        let open = format!("everybody may use the key in {}", key.display());
        return Err((KEY, Problem::new(open, "chmod 600 it")));
    }
    let pem = Pem {
        chain,
        key: Secret(secret),
    };
    match pem.check() {
        Ok(()) => Ok(pem),
        Err(error) => {
            let (name, path) = match error {
                tls::Error::Key(_) => (KEY, key),
                // Without authorities of clients there is no other.
                tls::Error::Certificate(_) | tls::Error::Pair(_) | tls::Error::Clients(_) => {
                    (CERTIFICATE, certificate)
                }
            };
            let problem = Problem::new(
                format!("{}: {error}", path.display()),
                "name a chain that begins with the server's own certificate, and the key that it was made with, both in PEM",
            );
            Err((name, problem))
        }
    }
}

fn text((name, path): (&'static str, &Path), place: &Path) -> Result<(String, u32), Mistake> {
    let failed = |why: String| {
        Problem::new(
            format!("read the {name} in {}: {why}", path.display()),
            "write it there in PEM, where the daemon may read it",
        )
    };
    let read = regular::read(place, PEM_BYTES_MAX);
    let (bytes, mode) = read.map_err(|error| (name, failed(error.to_string())))?;
    let text = String::from_utf8(bytes).map_err(|_| (name, failed("it is no text".to_owned())))?;
    Ok((text, mode))
}

/// Reads certificates by which others are known: the file as it was named, and where it really is.
pub(super) fn read_authorities(path: &Path, place: &Path) -> Result<String, Problem> {
    let unusable = |why: String| {
        Problem::new(
            format!("read the certificates in {}: {why}", path.display()),
            "write them there in PEM, where the daemon may read them",
        )
    };
    let (bytes, _) =
        regular::read(place, AUTHORITIES_BYTES_MAX).map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is no text".to_owned()))?;
    match text.contains("-----BEGIN CERTIFICATE-----") {
        true => Ok(text),
        false => Err(unusable("it holds none".to_owned())),
    }
}
