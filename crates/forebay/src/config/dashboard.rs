//! The section `dashboard`: the page that the daemon keeps.

use std::net::{Ipv4Addr, SocketAddr};

use super::error::{Findings, Problem};
use super::facts::HostFacts;
use super::text::{At, Section};

/// Where the page is, unless it is said.
const LISTEN: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9476);

/// The page that the daemon keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DashboardConfig {
    /// A loopback address with a port.
    pub(crate) listen: SocketAddr,
    /// Whether it only looks.
    pub(crate) read_only: bool,
    /// Whom its process runs as.
    pub(crate) user: String,
}

/// Resolves the section; none where there is none, or after a mistake, which was noted.
pub(super) fn dashboard(
    section: Option<At<Section>>,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<DashboardConfig> {
    let mut section = section?.value;
    let before = findings.count();
    let listen = match section.take::<SocketAddr>("listen") {
        Some(At { value, at }) => {
            findings.keep(at, section.key("listen"), check(value).map(|()| value))?
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
    })
}

fn check(listen: SocketAddr) -> Result<(), Problem> {
    if !listen.ip().is_loopback() {
        return Err(Problem::new(
            format!(
                "`{listen}` can be reached from other hosts, and the page is served without TLS"
            ),
            format!(
                "use \"127.0.0.1:{0}\" or \"[::1]:{0}\", and reach it from other hosts through `ssh -L`",
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
