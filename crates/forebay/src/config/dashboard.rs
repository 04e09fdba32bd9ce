//! The section `dashboard`: the page that the daemon keeps.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use forebay_shadow::tls::{Authorities, Pem};
use serde::{Deserialize, Serialize};

use super::certificate::{self, Files};
use super::error::{Findings, Problem};
use super::facts::HostFacts;
use super::resolve::absolute_path;
use super::text::{At, Section};

/// Where the page is, unless it is said.
const LISTEN: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9476);
const CLIENT_CA: &str = "client_ca";

/// The page that the daemon keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DashboardConfig {
    /// A port, and a loopback address where TLS is not spoken.
    pub(crate) listen: SocketAddr,
    /// Whether it only looks.
    pub(crate) read_only: bool,
    /// Whom its process runs as.
    pub(crate) user: String,
    /// Where what TLS needs stands; none where it is not spoken.
    pub(crate) tls: Option<PageFiles>,
}

/// The files of a page that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageFiles {
    pub(crate) own: Files,
    /// By which browsers are known; anybody may connect without.
    pub(crate) client_ca: Option<PathBuf>,
}

/// What stood in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageTls {
    pub(crate) pem: Pem,
    pub(crate) clients: Option<Authorities>,
}

impl PageFiles {
    /// Reads them, and sees whether TLS can be spoken with them.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(crate) fn read(&self) -> Result<PageTls, String> {
        let said = |problem: &Problem| format!("{}; {}", problem.message, problem.fix);
        let pem = certificate::read(&self.own.certificate, &self.own.key)?;
        let clients = self.client_ca.as_deref();
        let clients = clients.map(|path| check_clients(&pem, path, path));
        let clients = clients.transpose().map_err(|problem| said(&problem))?;
        Ok(PageTls { pem, clients })
    }
}

/// Resolves the section; none where there is none, or after a mistake, which was noted.
pub(super) fn dashboard(
    section: Option<At<Section>>,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<DashboardConfig> {
    let mut section = section?.value;
    let before = findings.count();
    let encryption = section.take::<Section>("tls");
    let is_tls = encryption.is_some();
    let tls = encryption.and_then(|tls| of_tls(tls.value, host, findings));
    let listen = match section.take::<SocketAddr>("listen") {
        Some(At { value, at }) => {
            let checked = check(value, is_tls).map(|()| value);
            findings.keep(at, section.key("listen"), checked)?
        }
        None => LISTEN.into(),
    };
    let read_only = section.take::<bool>("read_only");
    let user = match section.take::<String>("user") {
        Some(At { value, at }) => {
            findings.keep(at, section.key("user"), host.check_user(&value));
            value
        }
        None => "nobody".to_owned(),
    };
    (findings.count() == before).then_some(DashboardConfig {
        listen,
        read_only: read_only.is_none_or(|set| set.value),
        user,
        tls,
    })
}

fn of_tls(
    mut section: Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<PageFiles> {
    let own = certificate::files("the page", &mut section, host, findings);
    let at = section.at(CLIENT_CA);
    let client_ca = absolute_path(&mut section, CLIENT_CA, findings);
    let (own, pem) = own?;
    if let (Some(at), Some(path)) = (at, &client_ca) {
        let checked = check_clients(&pem, path, &host.at(path));
        findings.keep(at, section.key(CLIENT_CA), checked)?;
    }
    Some(PageFiles { own, client_ca })
}

/// The authorities of a file: as it was named, and where it really is.
fn check_clients(pem: &Pem, path: &Path, place: &Path) -> Result<Authorities, Problem> {
    let clients = Authorities(certificate::read_authorities(path, place)?);
    match pem.server(&[], Some(&clients)) {
        Ok(_) => Ok(clients),
        Err(error) => Err(Problem::new(
            format!("{}: {error}", path.display()),
            "name the certificates, in PEM, of those who vouch for browsers",
        )),
    }
}

/// Whether the page may be at an address.
fn check(listen: SocketAddr, is_tls: bool) -> Result<(), Problem> {
    if !is_tls && !listen.ip().is_loopback() {
        return Err(Problem::new(
            format!(
                "`{listen}` can be reached from other hosts, and the page is served without TLS"
            ),
            format!(
                "give the page a certificate in [dashboard.tls]; or use \"127.0.0.1:{0}\" or \"[::1]:{0}\", and reach it from other hosts through `ssh -L`",
                listen.port()
            ),
        ));
    }
    if listen.port() == 0 {
        return Err(Problem::new(
            format!("`{listen}` is another port at each start"),
            "name the port",
        ));
    }
    Ok(())
}
