//! The section `fleet`: this host as one of several.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Findings, Problem};
use super::resolve::{Bounds, bounded};
use super::text::Section;

const LEASE: Bounds = Bounds {
    min: Duration::from_secs(2),
    max: Duration::from_secs(300),
};

/// This host in a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FleetConfig {
    /// Where etcd is; nowhere where this host is alone.
    pub(crate) etcd: Vec<String>,
    /// What the fleet's keys begin with.
    pub(crate) prefix: String,
    /// The authorities that etcd's certificate may be of.
    pub(crate) ca: Option<PathBuf>,
    /// Certificate and key for etcd.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
    /// User of etcd, and the file with the password.
    pub(crate) user: Option<(String, PathBuf)>,
    /// Where other agents connect.
    pub(crate) listen: String,
    /// As they reach it; its name and port where absent.
    pub(crate) address: Option<String>,
    /// How long it counts as a member without a word.
    pub(crate) lease: Duration,
}

/// Resolves the section; none where it is absent.
pub(super) fn fleet(section: Option<Section>, findings: &mut Findings<'_>) -> Option<FleetConfig> {
    let mut section = section?;
    let etcd = section.take::<Vec<String>>("etcd");
    for url in etcd.iter().flat_map(|etcd| &etcd.value) {
        let rest = ["http://", "https://"]
            .iter()
            .find_map(|scheme| url.strip_prefix(scheme));
        if rest.is_none_or(str::is_empty) {
            let problem = Problem::new(
                format!("`{url}` is not where an etcd is"),
                "write http://HOST:PORT or https://HOST:PORT",
            );
            let at = etcd.as_ref().map_or(section.at, |etcd| etcd.at);
            findings.add(at, section.key("etcd"), problem);
        }
    }
    let certificate = together(&mut section, ["certificate", "key"], findings);
    let user = together(&mut section, ["user", "password_file"], findings);
    let listen = section.take::<String>("listen");
    if let Some(listen) = &listen
        && listen.value.parse::<SocketAddr>().is_err()
    {
        let problem = Problem::new(
            format!("`{}` is no address that can be listened at", listen.value),
            "write ADDRESS:PORT, such as \"0.0.0.0:7346\"",
        );
        findings.add(listen.at, section.key("listen"), problem);
    }
    let lease = bounded(&mut section, "lease", LEASE, findings);
    let mut text = |key| section.take::<String>(key).map(|text| text.value);
    Some(FleetConfig {
        etcd: etcd.map_or_else(Vec::new, |etcd| etcd.value),
        prefix: text("prefix").unwrap_or_else(|| "/forebay".to_owned()),
        ca: text("ca").map(PathBuf::from),
        certificate: certificate.map(|[one, other]| (one.into(), other.into())),
        user: user.map(|[name, file]| (name, file.into())),
        listen: listen.map_or_else(|| "0.0.0.0:7346".to_owned(), |listen| listen.value),
        address: text("address"),
        lease: lease.unwrap_or(Duration::from_secs(10)),
    })
}

/// Two keys of which neither is of use alone.
fn together(
    section: &mut Section,
    keys: [&str; 2],
    findings: &mut Findings<'_>,
) -> Option<[String; 2]> {
    let places = keys.map(|key| section.at(key));
    let values = keys.map(|key| section.take::<String>(key).map(|text| text.value));
    match values {
        [Some(one), Some(other)] => Some([one, other]),
        [None, None] => None,
        [one, _] => {
            let [key, missing] = match one {
                Some(_) => keys,
                None => [keys[1], keys[0]],
            };
            let at = places.into_iter().flatten().next().unwrap_or(section.at);
            let problem = Problem::new(
                format!("`{missing}` is missing"),
                format!("give both, or leave `{key}` out"),
            );
            findings.add(at, section.key(key), problem);
            None
        }
    }
}
