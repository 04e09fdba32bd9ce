//! The section `fleet`: who this host is among others, and how they are reached.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::fleet::HostName;
use forebay_core::fleet::policy::Rules;
use forebay_core::fleet::rolling;
use forebay_shadow::secret::Secret;
use forebay_shadow::tls::Pem;

use super::certificate::{read_at, read_authorities};
use super::error::{Findings, Problem};
use super::facts::HostFacts;
use super::mode::password;
use super::resolve::{Bounds, absolute_path, bounded};
use super::text::{At, Section};

/// Shorter, and a pause of etcd would end it; longer, and nobody would wait for it.
const LEASE: Bounds = Bounds {
    min: Duration::from_secs(5),
    max: Duration::from_secs(300),
};
/// How long an application may be left where it came to.
const REST: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_secs(24 * 3600),
};
/// How long it may be kept from where it was.
const HOLD: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_secs(7 * 24 * 3600),
};
/// How long a shortage may have to be foreseen.
const FORESEEN: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_secs(3600),
};
/// Members of etcd at most: it works with seven at most.
const ENDPOINTS_MAX: usize = 16;
const PREFIX_LEN_MAX: usize = 128;

/// Who this host is among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FleetConfig {
    /// Its name.
    pub(crate) host: HostName,
    /// How long others wait for a sign of life.
    pub(crate) lease: Duration,
    /// What the hosts share; none where this one is alone.
    pub(crate) etcd: Option<EtcdConfig>,
    /// How agents reach each other.
    pub(crate) link: LinkConfig,
    /// What moves without being asked for.
    pub(crate) moves: MovesConfig,
    /// Where FleetLock is spoken; nowhere when absent.
    pub(crate) lock: Option<LockConfig>,
}

/// How FleetLock is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockConfig {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Members of a group that may be away at once.
    pub(crate) at_once: u32,
    /// The groups that are served, at least one.
    pub(crate) groups: Vec<String>,
}

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcdConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT`, all of one kind, at least one.
    pub(crate) endpoints: Vec<String>,
    /// What the names of keys begin with, without a `/` at its end.
    pub(crate) prefix: String,
    /// Name and password.
    pub(crate) user: Option<(String, Secret)>,
    /// What TLS needs besides the system's own; none without TLS.
    pub(crate) tls: Option<EtcdTls>,
}

/// What TLS with etcd needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EtcdTls {
    /// Certificates in PEM by which its own is known.
    pub(crate) ca: String,
    /// What this host shows of itself.
    pub(crate) own: Option<Pem>,
}

/// What moves without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MovesConfig {
    /// Whether anything does.
    pub(crate) by_itself: bool,
    /// How readily.
    pub(crate) rules: Rules,
}

/// How agents reach each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkConfig {
    /// Where this one listens; it does not when absent.
    pub(crate) listen: Option<SocketAddr>,
    /// Where others reach it: `HOST:PORT`.
    pub(crate) address: Option<String>,
    /// Whether contents go over RDMA.
    pub(crate) rdma: Rdma,
}

/// Whether contents of moves go over RDMA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Rdma {
    /// Where both hosts have it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always: what cannot does not move.
    Require,
}

/// The directory in the state directory that the fleet's files are in.
pub(crate) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("fleet")
}

/// Resolves the section; none where there is none, or after a mistake, which was noted.
pub(super) fn fleet(
    section: Option<At<Section>>,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<FleetConfig> {
    let mut section = section?.value;
    let name = name(&mut section, host, findings);
    let lease = bounded(&mut section, "lease", LEASE, findings);
    let etcd = section.take::<Section>("etcd");
    let etcd = etcd.map(|etcd| resolve_etcd(etcd.value, host, findings));
    let link = link(section.take_section("link"), findings);
    let moves = moves(section.take_section("moves"), findings);
    let lock = section.take::<Section>("lock");
    let lock = lock.map(|lock| lock_of(lock.value, findings));
    Some(FleetConfig {
        host: name?,
        lease: lease.unwrap_or(Duration::from_secs(10)),
        etcd: match etcd {
            Some(etcd) => Some(etcd?),
            None => None,
        },
        link,
        moves,
        lock: match lock {
            Some(lock) => Some(lock?),
            None => None,
        },
    })
}

fn lock_of(mut section: Section, findings: &mut Findings<'_>) -> Option<LockConfig> {
    let listen = section.take::<SocketAddr>("listen");
    if listen.is_none() && !section.refused {
        let problem = Problem::new(
            "it is not said where FleetLock is to be spoken",
            "write listen = \"IP:PORT\", an address that only hosts of the fleet reach",
        );
        findings.add(section.at, section.key("listen"), problem);
    }
    let at_once = section.take::<u64>("at_once");
    let at_once = at_once.and_then(|set| u32::try_from(set.value).ok());
    let groups = section.take::<Vec<String>>("groups");
    for group in groups.iter().flat_map(|groups| &groups.value) {
        if let (Err(_), Some(At { at, .. })) = (rolling::check_group(group), &groups) {
            let problem = Problem::new(
                format!("`{group}` is not a group"),
                "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit",
            );
            findings.add(*at, section.key("groups"), problem);
        }
    }
    Some(LockConfig {
        listen: listen?.value,
        at_once: at_once.unwrap_or(1),
        groups: groups.map_or_else(|| vec![rolling::GROUP.to_owned()], |groups| groups.value),
    })
}

fn moves(mut section: Section, findings: &mut Findings<'_>) -> MovesConfig {
    let defaults = Rules::default();
    let by_itself = section.take::<bool>("by_itself");
    let per_hour = section.take::<u64>("per_hour");
    let per_hour = per_hour.and_then(|set| u32::try_from(set.value).ok());
    let per_hour = per_hour.unwrap_or(defaults.moves_per_hour);
    let mut time =
        |key, bounds, default| bounded(&mut section, key, bounds, findings).unwrap_or(default);
    MovesConfig {
        by_itself: by_itself.is_none_or(|set| set.value),
        rules: Rules {
            moves_per_hour: per_hour,
            // The rest is for those that lack something already.
            ahead_per_hour: per_hour - per_hour / 3,
            rest: time("rest", REST, defaults.rest),
            hold: time("hold", HOLD, defaults.hold),
            persistence_ahead: time("foreseen_for", FORESEEN, defaults.persistence_ahead),
            ..defaults
        },
    }
}

fn name(section: &mut Section, host: &HostFacts, findings: &mut Findings<'_>) -> Option<HostName> {
    let (at, refused, key) = (section.at, section.refused, section.key("host"));
    let parse = |name: &str, fix: &str| {
        name.parse::<HostName>()
            .map_err(|_| Problem::new(format!("`{name}` is not a host name"), fix))
    };
    let letters = "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit";
    match section.take::<String>("host") {
        Some(At { value, at }) => findings.keep(at, key, parse(&value, letters)),
        // What was given may only have been refused.
        None if refused => None,
        None => {
            let file = Path::new("/proc/sys/kernel/hostname");
            let own = std::fs::read_to_string(host.at(file)).map_err(|error| {
                Problem::new(
                    format!("read the host's name in {}: {error}", file.display()),
                    "give it one with `host`",
                )
            });
            let own = own.and_then(|own| parse(own.trim_end(), "give it one with `host`"));
            findings.keep(at, key, own)
        }
    }
}

fn resolve_etcd(
    mut section: Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<EtcdConfig> {
    let before = findings.count();
    if cfg!(not(feature = "etcd")) {
        let problem = Problem::new(
            "this program was built without etcd",
            "build it with `cargo build --release --features etcd`, which needs Debian's protobuf-compiler and libprotobuf-dev, or leave the section out",
        );
        findings.add(section.at, section.name.clone(), problem);
    }
    let endpoints = endpoints(&mut section, findings);
    let is_tls = endpoints.iter().any(|url| url.starts_with("https://"));
    let prefix = prefix(&mut section, findings);
    let user = user(&mut section, host, findings);
    let tls = tls(&mut section, is_tls, host, findings);
    (findings.count() == before).then_some(EtcdConfig {
        endpoints,
        prefix,
        user,
        tls,
    })
}

fn endpoints(section: &mut Section, findings: &mut Findings<'_>) -> Vec<String> {
    let key = section.key("endpoints");
    let Some(At { value, at }) = section.take::<Vec<String>>("endpoints") else {
        if !section.refused {
            let problem = Problem::new(
                "it is not said where etcd is",
                "write endpoints = [\"https://HOST:2379\"], one for each member",
            );
            findings.add(section.at, key, problem);
        }
        return Vec::new();
    };
    for endpoint in &value {
        if let Err(problem) = check_endpoint(endpoint) {
            findings.add(at, key.clone(), problem);
        }
    }
    let secure = value.iter().filter(|url| url.starts_with("https://"));
    if ![0, value.len()].contains(&secure.count()) {
        let problem = Problem::new(
            "some members are spoken with by TLS and some in cleartext",
            "write https:// for all of them, or http:// for all",
        );
        findings.add(at, key.clone(), problem);
    }
    if value.len() > ENDPOINTS_MAX {
        let problem = Problem::new(
            format!("there are more than {ENDPOINTS_MAX} members"),
            "name some of them: any one knows everything",
        );
        findings.add(at, key, problem);
    }
    value
}

fn check_endpoint(endpoint: &str) -> Result<(), Problem> {
    let wrong = || {
        Problem::new(
            format!("`{endpoint}` is not where an etcd member is"),
            "write https://HOST:PORT or http://HOST:PORT",
        )
    };
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| endpoint.strip_prefix(scheme))
        .ok_or_else(wrong)?;
    check_address(rest).map_err(|_| wrong())
}

/// Checks that a text is `HOST:PORT`.
fn check_address(text: &str) -> Result<(), Problem> {
    let is_host = |host: &str| match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(inner) => inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !host.is_empty() && host.chars().all(is_letter)
        }
    };
    let parts = text.rsplit_once(':');
    let right = parts.is_some_and(|(host, port)| {
        is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    right.then_some(()).ok_or_else(|| {
        Problem::new(
            format!("`{text}` is not a host and a port"),
            "write HOST:PORT, such as \"10.0.0.5:9476\"",
        )
    })
}

fn prefix(section: &mut Section, findings: &mut Findings<'_>) -> String {
    let Some(At { value, at }) = section.take::<String>("prefix") else {
        return "/forebay".to_owned();
    };
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let right = value.starts_with('/')
        && !value.ends_with('/')
        && value.len() <= PREFIX_LEN_MAX
        && value.chars().all(is_letter);
    if !right {
        let problem = Problem::new(
            format!("`{value}` is not what names of keys can begin with"),
            format!(
                "write a path such as \"/forebay\": at most {PREFIX_LEN_MAX} letters, digits, `-`, `_`, `.` and `/`, with a `/` at its beginning and none at its end"
            ),
        );
        findings.add(at, section.key("prefix"), problem);
    }
    value
}

fn user(
    section: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<(String, Secret)> {
    let file_at = section.at("password_file");
    let password = password(section, host, findings);
    match (section.take::<String>("user"), file_at) {
        (Some(user), Some(_)) => Some((user.value, Secret(password?))),
        (None, None) => None,
        (user, file_at) => {
            // What was given may only have been refused.
            if !section.refused {
                let (at, key) = match user {
                    Some(user) => (user.at, section.key("user")),
                    None => (file_at.unwrap_or(section.at), section.key("password_file")),
                };
                let problem = Problem::new(
                    "a user and a password belong together",
                    "give both `user` and `password_file`, or none of them",
                );
                findings.add(at, key, problem);
            }
            None
        }
    }
}

fn tls(
    section: &mut Section,
    is_tls: bool,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<EtcdTls> {
    let places = ["ca", "certificate", "key"].map(|key| section.at(key).map(|at| (at, key)));
    if let (false, Some((at, key))) = (is_tls, places.into_iter().flatten().next()) {
        if !section.refused {
            let problem = Problem::new(
                "etcd is spoken with in cleartext, so that no certificate is asked for",
                "write https:// in `endpoints`, or leave this out",
            );
            findings.add(at, section.key(key), problem);
        }
        return None;
    }
    let [ca_at, certificate_at, key_at] = places.map(|place| place.map(|(at, _)| at));
    let ca = absolute_path(section, "ca", findings);
    let certificate = absolute_path(section, "certificate", findings);
    let key = absolute_path(section, "key", findings);
    if !is_tls {
        return None;
    }
    let Some(ca_at) = ca_at else {
        if !section.refused {
            let problem = Problem::new(
                "it is not said by which certificates etcd's own is known",
                "name the file of its CA with `ca`",
            );
            findings.add(section.at, section.key("ca"), problem);
        }
        return None;
    };
    let ca = findings.keep(ca_at, section.key("ca"), {
        let ca = ca?;
        read_authorities(&ca, &host.at(&ca))
    })?;
    let own = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            match read_at(
                (&certificate, &key),
                (&host.at(&certificate), &host.at(&key)),
            ) {
                Ok(pem) => Some(pem),
                Err((name, problem)) => {
                    let at = if name == "key" {
                        key_at
                    } else {
                        certificate_at
                    };
                    findings.add(at.unwrap_or(ca_at), section.key(name), problem);
                    return None;
                }
            }
        }
        (None, None) => None,
        (certificate, _) => {
            if !section.refused && certificate_at.is_some() != key_at.is_some() {
                let (at, name) = match certificate {
                    Some(_) => (certificate_at, "certificate"),
                    None => (key_at, "key"),
                };
                let problem = Problem::new(
                    "a certificate and its key belong together",
                    "give both `certificate` and `key`, or none of them",
                );
                findings.add(at.unwrap_or(ca_at), section.key(name), problem);
            }
            return None;
        }
    };
    Some(EtcdTls { ca, own })
}

fn link(mut section: Section, findings: &mut Findings<'_>) -> LinkConfig {
    let listen = section.take::<SocketAddr>("listen");
    let address = section.take::<String>("address");
    if let Some(At { value, at }) = &address
        && let Err(problem) = check_address(value)
    {
        findings.add(*at, section.key("address"), problem);
    }
    if let (Some(At { value, at }), None) = (&listen, &address)
        && (value.ip().is_unspecified() || value.port() == 0)
        && !section.refused
    {
        let problem = Problem::new(
            format!("nobody can tell from `{value}` where others reach this host"),
            "say so with `address`, such as address = \"10.0.0.5:9476\"",
        );
        findings.add(*at, section.key("listen"), problem);
    }
    LinkConfig {
        address: address
            .map(|address| address.value)
            .or_else(|| listen.map(|listen| listen.value.to_string())),
        listen: listen.map(|listen| listen.value),
        rdma: match section.take::<&str>("rdma") {
            Some(At { value: "off", .. }) => Rdma::Off,
            Some(At {
                value: "require", ..
            }) => Rdma::Require,
            _ => Rdma::Auto,
        },
    }
}
