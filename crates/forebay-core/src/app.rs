//! What the user protects or confines.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::accel::Accelerators;
use crate::fleet::mobility::Mobility;
use crate::io::DeviceCapability;
use crate::offload;
use crate::units::{Bytes, Limit, MilliCpu, Rate, Utilization};

/// An app's name: 1 to 64 of `a-z A-Z 0-9 - _ .`, starting with a letter or digit.
/// It is also the name of the app's control group, hence the narrow alphabet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppId(String);

/// Why a text is not an app's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an app name: use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit"
)]
pub struct AppIdError(String);

impl AppId {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AppId {
    type Err = AppIdError;

    fn from_str(text: &str) -> Result<Self, AppIdError> {
        match is_name(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(AppIdError(text.to_owned())),
        }
    }
}

/// Whether a text can name an app or a host.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

impl TryFrom<String> for AppId {
    type Error = AppIdError;

    fn try_from(text: String) -> Result<Self, AppIdError> {
        text.parse()
    }
}

impl From<AppId> for String {
    fn from(id: AppId) -> Self {
        id.0
    }
}

/// How much an app matters. Orders the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Its response time is protected ahead of everything else.
    Critical,
    /// Gets a fair share of what the critical ones leave.
    Standard,
    /// Runs in what is left.
    Batch,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Critical => "critical",
            Self::Standard => "standard",
            Self::Batch => "batch",
        })
    }
}

/// What Forebay starts and supervises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// User to run as, by name or number; the daemon's own when absent.
    pub user: Option<String>,
    /// Group to run as, by name or number; the user's own when absent.
    pub group: Option<String>,
    /// Working directory; `/` when absent.
    pub directory: Option<PathBuf>,
    /// Variables added to the daemon's environment.
    pub environment: BTreeMap<String, String>,
    /// Where standard output goes; to the daemon's own when absent.
    pub stdout: Option<Sink>,
    /// Where standard error goes; to the daemon's own when absent.
    pub stderr: Option<Sink>,
    /// When to start it again after it ended.
    pub restart: Restart,
}

impl Exec {
    /// A command with everything else left out; it is started again whenever it ends.
    #[must_use]
    pub const fn of(command: Vec<String>) -> Self {
        Self {
            command,
            user: None,
            group: None,
            directory: None,
            environment: BTreeMap::new(),
            stdout: None,
            stderr: None,
            restart: Restart::Always,
        }
    }
}

/// Where a program's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sink {
    /// It is appended to this file.
    File(PathBuf),
    /// The system's journal, under the app's name.
    Journal,
}

/// When an ended program is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Whenever it ends.
    Always,
    /// When it ends with another status than 0, or by a signal.
    OnFailure,
    /// Never.
    Never,
}

/// Which running processes belong to an app. All given conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// The executable's path, or its file name when without a slash.
    pub executable: Option<String>,
    /// A text that the command line (arguments joined by spaces) contains.
    pub command_line: Option<String>,
}

/// How an app is tied to processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Forebay starts and supervises it.
    Exec(Exec),
    /// Everything in this existing control group, named relative to each hierarchy's root.
    Cgroup(PathBuf),
    /// Every process that matches, as they come and go.
    Match(Match),
    /// The processes of this unit of systemd, such as `nginx.service`.
    Systemd(String),
    /// The processes of the Docker or Podman container of this name.
    Container(String),
}

impl Binding {
    /// Whether the app's group was made by somebody else, who goes on owning it.
    #[must_use]
    pub const fn is_of_others(&self) -> bool {
        match self {
            Self::Cgroup(_) | Self::Systemd(_) | Self::Container(_) => true,
            Self::Exec(_) | Self::Match(_) => false,
        }
    }
}

/// The least a slice may hold; nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// Processor time never taken away.
    pub cpu: MilliCpu,
    /// Memory never taken away.
    pub memory: Bytes,
}

/// The most a slice may hold; no limit by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Processor time.
    pub cpu: Limit<MilliCpu>,
    /// Memory.
    pub memory: Limit<Bytes>,
    /// Memory that may be in swap.
    pub swap: Limit<Bytes>,
    /// Compressed memory that zswap may hold in front of it.
    pub zswap: Limit<Bytes>,
    /// Processes and threads.
    pub pids: Limit<u64>,
    /// Data sent over the network.
    pub egress: Limit<Rate>,
}

/// Bounds of the utilization that an app's tasks count for when the governor schedutil chooses
/// the frequency of a CPU. What is absent is left as it was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uclamp {
    /// At least this much: it runs fast from its first instant on.
    pub min: Option<Utilization>,
    /// At most this much: it does not drive the frequency up.
    pub max: Option<Utilization>,
}

/// One app as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub id: AppId,
    /// How much it matters.
    pub class: Class,
    /// Its processes.
    pub binding: Binding,
    /// Never planned below.
    pub floor: Floor,
    /// Never planned above.
    pub ceiling: Ceiling,
    /// What it is expected to use before history exists.
    pub request: Option<MilliCpu>,
    /// How its tasks count when frequencies are chosen.
    pub uclamp: Uclamp,
    /// CPU weight among its siblings, 1 to 10,000; by class when absent. Not for batch, which the kernel
    /// gives what nobody else wants.
    #[serde(default)]
    pub cpu_weight: Option<u32>,
    /// I/O weight among its siblings, 1 to 10,000; by class when absent.
    pub io_weight: Option<u32>,
    /// Limits for block devices, by `major:minor`.
    pub io_max: BTreeMap<Device, IoMax>,
    /// Whether images of it are taken, to begin it anew from; for `exec` apps.
    pub images: Option<Images>,
    /// How long an answer may take before the app counts as constrained; as for all apps when
    /// absent.
    pub response_time_max: Option<Duration>,
    /// How it changes hosts; it stays where it is when absent. For `exec` apps.
    pub mobility: Option<Mobility>,
    /// What it may have of accelerators; without it, it has no worker. For `exec` apps.
    #[serde(default)]
    pub accelerators: Option<Accelerators>,
    /// How it takes part in updates of the operating system; it is not told of them when absent. For `exec`
    /// apps.
    #[serde(default)]
    pub update: Option<crate::update::Part>,
}

/// When images of a program are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// From the end of one to the beginning of the next.
    pub every: Duration,
}

impl App {
    /// An app without floor, limits or expectations.
    #[must_use]
    pub fn new(id: AppId, class: Class, binding: Binding) -> Self {
        Self {
            id,
            class,
            binding,
            floor: Floor::default(),
            ceiling: Ceiling::default(),
            request: None,
            uclamp: Uclamp::default(),
            cpu_weight: None,
            io_weight: None,
            io_max: BTreeMap::new(),
            images: None,
            response_time_max: None,
            mobility: None,
            accelerators: None,
            update: None,
        }
    }
}

/// What a group's CPUs are to the rest of the host: the words of cpuset.cpus.partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// Others may have them too.
    Member,
    /// They are taken from every group beside it, with a scheduling domain of their own.
    Root,
    /// The same without load balancing: each thread stays on the CPU that it pins itself to.
    Isolated,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Member => "member",
            Self::Root => "root",
            Self::Isolated => "isolated",
        })
    }
}

/// What holds back the rest of the host for critical apps' I/O, beyond the limits of batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoProtection {
    /// Nothing.
    #[default]
    None,
    /// io.latency: when a critical app's requests take too long, every group beside it may have
    /// fewer of its own in flight.
    Latency,
    /// io.cost: the kernel is told what requests to measured devices cost, and divides the
    /// devices' time by io.weight among all groups.
    Cost,
}

/// A block device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        text.split_once(':')
            .and_then(|(major, minor)| {
                Some(Self {
                    major: major.trim().parse().ok()?,
                    minor: minor.trim().parse().ok()?,
                })
            })
            .ok_or_else(|| DeviceError(text.to_owned()))
    }
}

impl TryFrom<String> for Device {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

/// Why a text is not a device number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a block device number such as `8:0` (see lsblk)")]
pub struct DeviceError(String);

/// Limits of one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoMax {
    /// Bytes read per second.
    pub rbps: Limit<u64>,
    /// Bytes written per second.
    pub wbps: Limit<u64>,
    /// Reads per second.
    pub riops: Limit<u64>,
    /// Writes per second.
    pub wiops: Limit<u64>,
}

impl Default for Ceiling {
    fn default() -> Self {
        Self {
            cpu: Limit::Max,
            memory: Limit::Max,
            swap: Limit::Max,
            zswap: Limit::Max,
            pids: Limit::Max,
            egress: Limit::Max,
        }
    }
}

impl IoMax {
    /// No limit of any kind.
    pub const NONE: Self = Self {
        rbps: Limit::Max,
        wbps: Limit::Max,
        riops: Limit::Max,
        wiops: Limit::Max,
    };
}

/// What happens to the apps that Forebay started when it stops or is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStop {
    /// They keep running, outside any slice, and are adopted again at the next start.
    Keep,
    /// They are ended.
    Kill,
}

/// What an app's demand is planned by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Foresight {
    /// Forecasts of the peak within the horizon.
    Models,
    /// What it uses now: the planner only reacts.
    Present,
}

/// Everything the user decided, resolved: what the planner works by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Whether it only observes and plans: nothing of the plan is put in force.
    pub observe: bool,
    /// Length of the control period.
    pub period: Duration,
    /// What the plan leaves above demand, in percent of it.
    pub headroom_percent: u32,
    /// Shortest time between two reductions of one slice.
    pub hold: Duration,
    /// How far ahead demand is planned for.
    pub horizon: Duration,
    /// What demand is planned by.
    pub foresight: Foresight,
    /// Memory kept for the system itself.
    pub system_memory: Bytes,
    /// Whether batch may use critical apps' own CPUs while those leave them idle.
    pub lend: bool,
    /// Whether the own CPUs of critical apps are taken from everybody else on the host:
    /// [`Partition::Member`] is no.
    pub partition: Partition,
    /// Whether the interrupts of devices are moved off critical apps' own CPUs.
    pub move_interrupts: bool,
    /// Share of the last-level cache that batch may fill while a critical app runs, in percent.
    pub batch_cache_percent: Option<u32>,
    /// Share of the memory bandwidth that batch may use while a critical app runs, in percent.
    pub batch_bandwidth_percent: Option<u32>,
    /// What holds back the rest of the host for critical apps' I/O.
    pub io_protection: IoProtection,
    /// Whether memory that batch apps do not seem to use is taken back slowly.
    pub reclaim_cold: bool,
    /// Whether the kernel is had to watch which memory batch apps touch (DAMON).
    pub watch_memory: bool,
    /// Whether critical apps are the last to be ended when memory is out, and batch the first.
    pub oom_protection: bool,
    /// What happens to started apps when the daemon stops.
    pub on_stop: OnStop,
    /// The apps by name.
    pub apps: BTreeMap<AppId, App>,
    /// Block devices that the user had measured, with what they can do.
    pub devices: BTreeMap<Device, DeviceCapability>,
    /// Whether there are tiered directories, whose files move by their heat.
    pub tiered: bool,
    /// What counts as a constraint, and what is done about it.
    pub offload: offload::Rules,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            observe: false,
            period: Duration::from_millis(100),
            headroom_percent: 30,
            hold: Duration::from_secs(5),
            horizon: Duration::from_secs(1),
            foresight: Foresight::Models,
            system_memory: Bytes::mib(256),
            lend: false,
            io_protection: IoProtection::None,
            reclaim_cold: false,
            watch_memory: false,
            partition: Partition::Member,
            move_interrupts: false,
            batch_cache_percent: None,
            batch_bandwidth_percent: None,
            oom_protection: true,
            on_stop: OnStop::Keep,
            apps: BTreeMap::new(),
            devices: BTreeMap::new(),
            tiered: false,
            offload: offload::Rules::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_directories() {
        let check = |text: &str, valid: bool| assert_eq!(text.parse::<AppId>().is_ok(), valid);
        check("web", true);
        check("db-1.main_x", true);
        check("", false);
        check(".hidden", false);
        check("..", false);
        check("a/b", false);
        check("ä", false);
        check(&"a".repeat(65), false);
    }

    #[test]
    fn devices_are_major_minor() {
        let check = |text: &str, shown: Option<&str>| {
            assert_eq!(
                text.parse::<Device>()
                    .ok()
                    .map(|d| d.to_string())
                    .as_deref(),
                shown
            );
        };
        check("8:0", Some("8:0"));
        check("8", None);
        check("sda", None);
        check("8:-1", None);
    }
}
