//! Certificates, and what is asked for them.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay_core::fleet::HostName;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::ring;

use super::super::identity::{Certificate, pem};
use super::super::verify::{hex, uri};
use super::{BACKDATED, Error, VALIDITY, refused, unix_s};

const SERIAL_BYTES: usize = 16;
/// How long the authority's own is valid.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A moment, as rcgen takes it.
macro_rules! at {
    ($unix_s:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs($unix_s)
    };
}

/// What an authority needs to make a certificate for a key: the public key, and a signature over it and
/// the host's name, by which whoever asks shows that it has the private one. A request of PKCS #10 says
/// the same and much more, all of which the authority would have to parse and then to ignore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SigningRequest {
    /// A point of P-256, uncompressed, in base64.
    pub(in crate::fleet::link) public_key: String,
    /// ECDSA with SHA-256 over [`proof`], in base64.
    pub(in crate::fleet::link) signature: String,
}

/// What is signed: nothing that is signed elsewhere begins like this.
pub(in crate::fleet::link) fn proof(host: &HostName, public_key: &[u8]) -> Vec<u8> {
    let mut text = format!("forebay fleet: a certificate for {host}\n").into_bytes();
    text.extend(public_key);
    text
}

/// A new certificate, and its serial number in hexadecimal.
pub(super) struct Signed {
    pub(super) certificate: Certificate,
    pub(super) serial: String,
}

/// Makes a certificate for a host of a fleet.
pub(super) fn sign(
    (fleet, host): (&str, &HostName),
    request: &SigningRequest,
    pair: KeyPair,
    now: SystemTime,
) -> Result<Signed, Error> {
    let key = check(host, request)?;
    let mut serial = random::<SERIAL_BYTES>()?;
    // Positive, and as long as it is: it is compared as bytes.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let (begins, ends) = (unix_s(now - BACKDATED), unix_s(now + VALIDITY));
    let name = Ia5String::try_from(uri(fleet, host));
    let name = name.map_err(|error| made("a certificate", &error))?;
    let mut params = CertificateParams::default();
    params.not_before = at!(begins);
    params.not_after = at!(ends);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.subject_alt_names = vec![SanType::URI(name)];
    params.distinguished_name = common_name(host.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let authority = authority_params(fleet, now);
    let certificate = params
        .signed_by(&key, &Issuer::from_params(&authority, pair))
        .map_err(|error| made("a certificate", &error))?;
    Ok(Signed {
        certificate: Certificate {
            pem: pem("CERTIFICATE", certificate.der()),
            not_before_unix_s: begins,
            not_after_unix_s: ends,
        },
        serial: hex(&serial),
    })
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(filled) if filled == N => Ok(bytes),
        Ok(_) => Err(refused(
            "get random bytes: the kernel gave too few",
            "try again",
        )),
        Err(error) => Err(refused(format!("get random bytes: {error}"), "try again")),
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

pub(super) fn authority_params(fleet: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at!(unix_s(now - BACKDATED));
    params.not_after = at!(unix_s(now + AUTHORITY_VALIDITY));
    params.distinguished_name = common_name(&format!("Forebay fleet {fleet}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A public key that a certificate is made for.
pub(super) struct PublicKey(Vec<u8>);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The key of a request, if whoever asks has the private one.
pub(super) fn check(host: &HostName, request: &SigningRequest) -> Result<PublicKey, Error> {
    let none = |what: &str| {
        refused(
            format!("make a certificate for {host}: {what}"),
            "update Forebay on that host, and try again",
        )
    };
    let decode = |text: &str| STANDARD.decode(text).ok();
    let (Some(key), Some(signature)) = (decode(&request.public_key), decode(&request.signature))
    else {
        return Err(none("its request is not in base64"));
    };
    let provider = ring::default_provider();
    let algorithms = provider.signature_verification_algorithms.mapping;
    let algorithm = algorithms
        .iter()
        .find(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256)
        .and_then(|(_, algorithms)| algorithms.first());
    let is_theirs = algorithm.is_some_and(|known| {
        known
            .verify_signature(&key, &proof(host, &key), &signature)
            .is_ok()
    });
    match is_theirs {
        true => Ok(PublicKey(key)),
        false => Err(none("its request is not signed with its key")),
    }
}

pub(super) fn made(what: &str, error: &rcgen::Error) -> Error {
    refused(format!("make {what}: {error}"), "try again")
}
