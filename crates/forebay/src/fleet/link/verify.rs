//! Whom a host of a fleet speaks with: the other side's certificate, looked at.
//!
//! A host is named in its certificate by `spiffe://FLEET/host/NAME`, as SPIFFE names workloads: exact,
//! with the letters that names of hosts have here, which those of DNS do not. The chain is verified by
//! webpki; the name, and whether the authority took it back, here.
//!
//! Sessions are not resumed: a resumed one would not show its certificate again. Connections may last longer
//! than certificates: both sides look again before each question ([`again`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use forebay_core::fleet::HostName;
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{
    Resumption, WantsClientCert, verify_server_cert_signed_by_trust_anchor,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, ParsedCertificate, WantsServerCert, WebPkiClientVerifier,
};
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName,
    Error as TlsError, OtherError, RootCertStore, ServerConfig, SignatureScheme,
};

use super::error::WrongName;
use super::identity::{Credentials, Identity};

/// What agents speak with each other (ALPN, RFC 7301).
pub(super) const LINK: &[u8] = b"forebay-link/1";
/// What somebody who wants to join speaks.
pub(super) const JOIN: &[u8] = b"forebay-join/1";

/// The name of a host in a certificate.
pub(super) fn uri(fleet: &str, host: &HostName) -> String {
    format!("spiffe://{fleet}/host/{host}")
}

/// Whose certificate it is.
pub(super) fn name(fleet: &str, certificate: &CertificateDer<'_>) -> Option<HostName> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let prefix = format!("spiffe://{fleet}/host/");
    let mut names = parsed.valid_uri_names();
    let name = names.next()?.strip_prefix(&prefix)?.parse().ok()?;
    // One that has several names is not one that was made here.
    names.next().is_none().then_some(name)
}

/// The serial number of a certificate, in hexadecimal.
pub(super) fn serial(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(hex(parsed.serial()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a certificate is known by.
pub(super) fn fingerprint(certificate: &[u8]) -> String {
    hex(&Sha256::digest(certificate))
}

fn other(wrong: WrongName) -> TlsError {
    TlsError::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong))))
}

/// What both sides check of each other besides the chain.
fn check(
    fleet: &str,
    certificate: &CertificateDer<'_>,
    meant: Option<&HostName>,
    denied: &BTreeSet<String>,
) -> Result<(), TlsError> {
    let there = name(fleet, certificate).ok_or_else(|| other(WrongName::None))?;
    if let Some(meant) = meant.filter(|meant| **meant != there) {
        let meant = meant.clone();
        return Err(other(WrongName::Other { there, meant }));
    }
    match serial(certificate) {
        Some(serial) if !denied.contains(&serial) => Ok(()),
        _ => Err(TlsError::InvalidCertificate(CertificateError::Revoked)),
    }
}

/// Looks once more at a certificate that was good when its connection began: it may have ended since, or
/// this host heard that it was taken back.
pub(super) fn again(identity: &Identity, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    identity.look();
    let credentials = identity.credentials();
    let now = identity.clock().current_time();
    let now = now.ok_or(TlsError::FailedToGetCurrentTime)?;
    let provider = ring::default_provider();
    chain(certificate, &[], &credentials.roots, now, &provider)?;
    check(&credentials.fleet, certificate, None, &credentials.denied)
}

/// Whose word is taken for who a host is.
#[derive(Debug)]
enum Vouches {
    /// Of the fleet that this host is in.
    Fleet(Arc<Credentials>),
    /// Of the authority whose certificate has this fingerprint, which the other side sends along; all
    /// that one who joins knows.
    Fingerprint { authority: String, fleet: String },
}

/// Looks at the certificate of a host that was connected to.
#[derive(Debug)]
struct Server {
    vouches: Vouches,
    meant: HostName,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match &self.vouches {
            Vouches::Fleet(credentials) => {
                chain(
                    certificate,
                    intermediates,
                    &credentials.roots,
                    now,
                    &self.provider,
                )?;
                check(
                    &credentials.fleet,
                    certificate,
                    Some(&self.meant),
                    &credentials.denied,
                )?;
            }
            Vouches::Fingerprint { authority, fleet } => {
                let sent = intermediates
                    .iter()
                    .find(|sent| fingerprint(sent) == *authority);
                let mut roots = RootCertStore::empty();
                roots.add(
                    sent.ok_or(CertificateError::UnknownIssuer)?
                        .clone()
                        .into_owned(),
                )?;
                chain(certificate, &[], &roots, now, &self.provider)?;
                check(fleet, certificate, Some(&self.meant), &BTreeSet::new())?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn chain(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<(), TlsError> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let known = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, known)
}

/// Looks at the certificate of a host that connects.
#[derive(Debug)]
struct Client {
    credentials: Arc<Credentials>,
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Client {
    /// Nobody is told whose certificates would do.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verified = self
            .chain
            .verify_client_cert(certificate, intermediates, now)?;
        check(
            &self.credentials.fleet,
            certificate,
            None,
            &self.credentials.denied,
        )?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// How to speak to one host.
pub(super) fn client(
    credentials: &Arc<Credentials>,
    meant: &HostName,
    clock: &Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let vouches = Vouches::Fleet(Arc::clone(credentials));
    let resolver = SingleCertAndKey::from(Arc::clone(&credentials.pair));
    let mut config =
        connecting(vouches, meant, clock)?.with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![LINK.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// How to speak to the host that holds the authority with no more than a token.
pub(super) fn joiner(
    authority: String,
    fleet: String,
    meant: &HostName,
    clock: &Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let vouches = Vouches::Fingerprint { authority, fleet };
    let mut config = connecting(vouches, meant, clock)?.with_no_client_auth();
    config.alpn_protocols = vec![JOIN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn connecting(
    vouches: Vouches,
    meant: &HostName,
    clock: &Arc<dyn TimeProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Server {
        vouches,
        meant: meant.clone(),
        provider: Arc::clone(&provider),
    };
    Ok(
        ClientConfig::builder_with_details(provider, Arc::clone(clock))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier)),
    )
}

/// How to speak to hosts that connect.
pub(super) fn server(
    credentials: &Arc<Credentials>,
    clock: &Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let chain = WebPkiClientVerifier::builder_with_provider(
        Arc::clone(&credentials.roots),
        Arc::clone(&provider),
    )
    .build()
    .map_err(|error| TlsError::General(error.to_string()))?;
    let verifier = Client {
        credentials: Arc::clone(credentials),
        chain,
    };
    let builder = ServerConfig::builder_with_details(provider, Arc::clone(clock))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier));
    Ok(finish(builder, credentials, LINK))
}

/// How to speak to one who has a token and no certificate yet.
pub(super) fn door(
    credentials: &Arc<Credentials>,
    clock: &Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_details(provider, Arc::clone(clock))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth();
    Ok(finish(builder, credentials, JOIN))
}

fn finish(
    builder: ConfigBuilder<ServerConfig, WantsServerCert>,
    credentials: &Credentials,
    protocol: &[u8],
) -> ServerConfig {
    let resolver = SingleCertAndKey::from(Arc::clone(&credentials.pair));
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}
