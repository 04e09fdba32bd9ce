//! The configuration: from a text to a resolved policy, in two stages.
//!
//! [`text`] reads TOML against the table of [`keys`] into typed values that remember where they
//! stand; [`resolve`] and [`app`] turn those into what the planner and the daemon work by, and
//! check them against each other and against the host. All mistakes are reported at once, each
//! with its file, line, key and fix, and a text with a mistake resolves into nothing.

mod accel;
mod address;
mod app;
mod certificate;
mod dashboard;
mod edit;
mod error;
mod event;
mod facts;
mod fleet;
mod front;
mod keys;
mod mode;
mod offload;
mod quantity;
mod resolve;
mod sources;
mod text;
mod tier;
mod update;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::app::{AppId, Policy};
use forebay_host::tier::TierPlace;

use crate::server::Otlp;
use crate::training::TrainingConfig;

pub(crate) use accel::workers_directory;
pub(crate) use app::is_container_name;
pub(crate) use certificate::Files as CertificateFiles;
pub(crate) use certificate::read as read_certificate;
pub(crate) use dashboard::{DashboardConfig, PageFiles, PageTls};
pub(crate) use edit::{AppArgs, app_from_args, set};
pub(crate) use error::{Error, Errors};
pub(crate) use event::KnownFuture;
pub(crate) use facts::HostFacts;
#[cfg(feature = "etcd")]
pub(crate) use fleet::EtcdConfig;
#[cfg(all(test, feature = "etcd"))]
pub(crate) use fleet::EtcdTls;
#[cfg(test)]
pub(crate) use fleet::LinkConfig;
pub(crate) use fleet::{FleetConfig, LockConfig, MovesConfig, Rdma, directory as fleet_directory};
pub(crate) use front::{FrontConfig, PLAN_FILE, fronts_directory, lender};
pub(crate) use keys::schema;
#[cfg(test)]
pub(crate) use keys::{Key, Kind, ROOT};
pub(crate) use update::update_socket;

use crate::fetch::Sources;
use error::{Findings, Problem};

/// A duration as it stands in a configuration: `100ms`, `5s`.
///
/// # Errors
/// When the text is none.
pub(crate) fn duration(text: &str) -> Result<Duration, Error> {
    quantity::duration(text).map_err(|problem| problem.in_argument(""))
}

/// The file that is read when none is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/forebay/forebay.toml";

/// A longer file is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything a configuration decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// What the planner works by.
    pub(crate) policy: Policy,
    /// What the daemon works by.
    pub(crate) daemon: DaemonConfig,
    /// How forecasts learn.
    pub(crate) training: TrainingConfig,
    /// The tiered directories by name.
    pub(crate) tiers: BTreeMap<String, TierPlace>,
    /// The fronts by name.
    pub(crate) fronts: BTreeMap<AppId, FrontConfig>,
    /// What is known to come.
    pub(crate) known_future: KnownFuture,
    /// What is read of others: metrics of apps, and forecasts.
    pub(crate) sources: Sources,
    /// The page that the daemon keeps.
    pub(crate) dashboard: Option<DashboardConfig>,
    /// Who this host is among others; none where it is alone.
    pub(crate) fleet: Option<FleetConfig>,
}

/// What the daemon works by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DaemonConfig {
    /// Unix socket of the API.
    pub(crate) socket: PathBuf,
    /// Where the ledger and the history are kept.
    pub(crate) state_dir: PathBuf,
    /// Control group, below each hierarchy's root, that holds the slices.
    pub(crate) cgroup_root: String,
    /// How long the guardian waits for a lost daemon.
    pub(crate) lease: Duration,
    /// Group whose members may change things beside root. It need not exist.
    pub(crate) group: String,
    /// Who may read.
    pub(crate) readers: Readers,
    /// Loopback address of metrics and events; nothing listens when absent.
    pub(crate) http: Option<SocketAddr>,
    /// How long roll-ups are kept.
    pub(crate) history: Retention,
    /// Unix socket of the container runtime; those that are usual when absent.
    pub(crate) container_socket: Option<PathBuf>,
    /// CRIU's program.
    pub(crate) criu: Option<PathBuf>,
    /// QEMU's program.
    pub(crate) qemu: Option<PathBuf>,
    /// Where metrics are sent.
    pub(crate) otlp: Option<Otlp>,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/forebay/forebay.sock"),
            state_dir: PathBuf::from("/var/lib/forebay"),
            cgroup_root: "forebay".to_owned(),
            lease: Duration::from_secs(10),
            group: "forebay".to_owned(),
            readers: Readers::Anyone,
            http: None,
            history: Retention::default(),
            container_socket: None,
            criu: None,
            qemu: None,
            otlp: None,
        }
    }
}

/// Who may read through the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Every user of the host.
    Anyone,
    /// Root and the members of the group.
    Group,
}

/// How long each roll-up of the history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Roll-up of 10 seconds.
    pub(crate) rollup_10s: Duration,
    /// Roll-up of 1 minute.
    pub(crate) rollup_1min: Duration,
    /// Roll-up of 1 hour.
    pub(crate) rollup_1h: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        Self {
            rollup_10s: days(1),
            rollup_1min: days(14),
            rollup_1h: days(400),
        }
    }
}

/// A span of time on a command line, written as in a configuration: `30s`, `10m`, `24h`.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub(crate) fn span(text: &str) -> Result<std::time::Duration, String> {
    quantity::duration(text).map_err(|problem| format!("{}; {}", problem.message, problem.fix))
}

/// Reads `path`, or [`DEFAULT_FILE`] if there is one, or takes the defaults.
///
/// # Errors
/// When the file cannot be read, and everything that [`parse`] finds in it.
pub(crate) fn load(path: Option<&Path>, host: &HostFacts) -> Result<Config, Errors> {
    let default = host.at(Path::new(DEFAULT_FILE));
    let path = match path {
        Some(path) => path,
        None if default.exists() => &default,
        None => return Ok(Config::default()),
    };
    let name = path.display().to_string();
    let text = read(path).map_err(|problem| Error {
        file: name.clone(),
        ..problem.in_argument("")
    })?;
    parse(&text, &name, host)
}

fn read(path: &Path) -> Result<String, Problem> {
    let unreadable = |e: std::io::Error| {
        Problem::new(
            format!("read the configuration: {e}"),
            "name a file that exists and may be read, or start without one",
        )
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Problem::new(
            format!("the configuration is longer than {FILE_BYTES_MAX} bytes"),
            "name the right file",
        ));
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.as_bytes().iter().take(e.utf8_error().valid_up_to());
        let line = 1 + valid.filter(|&&byte| byte == b'\n').count();
        Problem::new(
            format!("line {line} is not UTF-8"),
            "save the file as UTF-8",
        )
    })
}

/// Resolves a text. `file` is its name in messages.
///
/// # Errors
/// Every mistake in it, in the order of its lines.
pub(crate) fn parse(text: &str, file: &str, host: &HostFacts) -> Result<Config, Errors> {
    let mut findings = Findings::new(file, text);
    let config = match text::read(text, &mut findings) {
        Some(root) => resolve::resolve(root, host, &mut findings),
        None => Config::default(),
    };
    findings.finish(config)
}
