//! Certificates that vouch for themselves, and clients that believe one.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use forebay_shadow::secret::Secret;
use forebay_shadow::tls::{Options, Pem};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Makes a certificate of a server `test`, which is this host as well, in `NAME.crt` and `NAME.key`.
pub(crate) fn certificate(directory: &Path, name: &str) -> Pem {
    let path = |end: &str| directory.join(format!("{name}.{end}"));
    let config = "[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\n\
                  subjectAltName=DNS:test,DNS:localhost,IP:127.0.0.1\n\
                  basicConstraints=critical,CA:FALSE\n";
    std::fs::write(path("cnf"), config).unwrap();
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", "/CN=test", "-config"])
        .arg(path("cnf"))
        .arg("-keyout")
        .arg(path("key"))
        .arg("-out")
        .arg(path("crt"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    Pem {
        chain: std::fs::read_to_string(path("crt")).unwrap(),
        key: Secret(std::fs::read_to_string(path("key")).unwrap()),
    }
}

/// A front that speaks TLS everywhere, with a new certificate.
pub(crate) fn options(directory: &Path, name: &str) -> Options {
    Options {
        certificate_file: directory.join(format!("{name}.crt")),
        key_file: directory.join(format!("{name}.key")),
        pem: certificate(directory, name),
        listen: Vec::new(),
        require: false,
    }
}

/// Somebody who believes one certificate, and would like to speak a protocol.
pub(crate) fn believer(chain: &str, protocol: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(chain.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !protocol.is_empty() {
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    }
    Arc::new(config)
}
