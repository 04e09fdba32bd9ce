//! Groups that a manager owns: systemd, or a container runtime.
//!
//! Problem: a manager writes its groups' knobs from what it believes they are, at any time: when
//! a unit is changed, reloaded or started again. Whoever writes to the files behind its back is
//! one of two writers on one knob, and loses at a moment that nobody foresees.
//!
//! Approach: the manager is asked to write, through its own interface, and nothing else is done.
//! Calls take from a millisecond to a tenth of a second, so a thread of its own makes them, one
//! after another ([`link`]); the control thread hands in all that it wants of one app at once and
//! hears of it in a later period ([`apps`]). What is read, uses and other people's writes, is
//! read from the group's files as for any app.
//!
//! Properties:
//!
//! - what the manager held of a property is in the ledger, durable, before it is first asked to
//!   change it ([`book`]);
//! - right before a write the manager is asked what it holds; what is neither the original nor
//!   ours is somebody else's, and stays;
//! - what the manager says it did is believed once the group's file says so too;
//! - a knob for which the manager has no property is not offered for such an app;
//! - an app is put back through the manager, from the ledger alone, by whoever does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use forebay_core::app::Binding;
use forebay_core::slice::{Knob, Setting};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::mounts::Version;

pub(crate) mod apps;
pub(crate) mod book;
pub(crate) mod container;
mod leave;
pub(crate) mod link;
pub(crate) mod systemd;
mod withhold;

pub use book::{Book, Note};
pub use container::{Answering, Container};

/// Who owns groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The manager of the system's services.
    Systemd,
    /// Docker, or Podman.
    Container,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Systemd => "systemd",
            Self::Container => "container runtime",
        })
    }
}

/// Where managers are spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The bus that systemd is on, as a D-Bus address.
    pub systemd: String,
    /// Unix sockets of container runtimes, by their paths, with `:` between them.
    pub containers: String,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            systemd: "unix:path=/run/dbus/system_bus_socket".to_owned(),
            containers: "/run/docker.sock:/run/podman/podman.sock".to_owned(),
        }
    }
}

impl Addresses {
    /// The usual places, or those that the environment names: `DBUS_SYSTEM_BUS_ADDRESS`, and
    /// `DOCKER_HOST` or `CONTAINER_HOST` where it is a Unix socket.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut addresses = Self::default();
        if let Ok(bus) = std::env::var("DBUS_SYSTEM_BUS_ADDRESS") {
            addresses.systemd = bus;
        }
        let host = |name: &str| std::env::var(name).ok();
        let host = host("DOCKER_HOST").or_else(|| host("CONTAINER_HOST"));
        if let Some(socket) = host
            .as_deref()
            .and_then(|host| host.strip_prefix("unix://"))
        {
            addresses.containers = socket.to_owned();
        }
        addresses
    }

    fn of(&self, kind: Kind) -> &str {
        match kind {
            Kind::Systemd => &self.systemd,
            Kind::Container => &self.containers,
        }
    }
}

/// One thing that a manager owns, as the ledger names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    /// Whose it is.
    pub owner: Kind,
    /// Where that manager is spoken to.
    pub address: String,
    /// A unit's name, or a container's ID.
    pub name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner {
            Kind::Systemd => write!(f, "{} ({})", self.name, self.owner),
            Kind::Container => write!(f, "container {}", container::shown(&self.name)),
        }
    }
}

/// What a property holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// An amount; the largest number stands for none set.
    Number(u64),
    /// A set of CPUs or nodes, the lowest in the first byte's lowest bit; empty for none set.
    Bits(Vec<u8>),
    /// Rates by device.
    Rates(BTreeMap<String, u64>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(u64::MAX) => f.write_str("not set"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bits(bytes) => match systemd::set_of(bytes) {
                Some(set) if set.is_empty() => f.write_str("not set"),
                Some(set) => write!(f, "{set}"),
                None => f.write_str("more than Forebay counts to"),
            },
            Self::Rates(rates) if rates.is_empty() => f.write_str("not set"),
            Self::Rates(rates) => {
                let rates: Vec<String> = rates
                    .iter()
                    .map(|(device, rate)| format!("{device} {rate}"))
                    .collect();
                f.write_str(&rates.join(", "))
            }
        }
    }
}

impl Value {
    /// Whether two values mean the same to the manager.
    fn means(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bits(a), Self::Bits(b)) => {
                let long = a.len().max(b.len());
                let at = |bytes: &[u8], index| bytes.get(index).copied().unwrap_or(0);
                (0..long).all(|index| at(a, index) == at(b, index))
            }
            (Self::Rates(a), Self::Rates(b)) => {
                let set = |rates: &BTreeMap<String, u64>| -> BTreeMap<String, u64> {
                    let set = rates.iter().filter(|(_, rate)| **rate != u64::MAX);
                    set.map(|(device, rate)| (device.clone(), *rate)).collect()
                };
                set(a) == set(b)
            }
            _ => self == other,
        }
    }
}

/// Properties by name.
pub(crate) type Values = BTreeMap<String, Value>;

/// What a manager holds of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// What the ledger calls it.
    pub(crate) name: String,
    /// Where the manager is spoken to that holds it.
    pub(crate) at: String,
    /// Its group, relative to each hierarchy's root; none while nothing of it runs.
    pub(crate) group: Option<PathBuf>,
    pub(crate) values: Values,
    /// What it says that it was told, where that is not what it holds.
    pub(crate) told: Values,
    /// Properties whose value the manager keeps beside what the thing itself says, as somebody
    /// asked it to before.
    pub(crate) kept: BTreeSet<String>,
    /// What it has no property for.
    pub(crate) lacks: BTreeSet<Knob>,
    /// Knobs that it never writes: nobody's, and written as those of any group.
    pub(crate) direct: BTreeSet<Knob>,
}

/// A manager. Every call may block, in bounded time.
pub(crate) trait Owner: fmt::Debug + Send {
    /// What it holds of the thing of this name; [`HostError::is_gone`] when there is none.
    fn look_up(&mut self, name: &str) -> Result<Held, HostError>;

    /// Sets properties, for as long as the host runs at most.
    fn write(&mut self, name: &str, values: &Values) -> Result<(), HostError>;

    /// Lets go of what it kept of a property because it was asked to write it. The property
    /// holds again what it held without that.
    fn forget(&mut self, name: &str, property: &str) -> Result<(), HostError>;

    /// What the files of a thing's group hold, found without the manager, who is away. None where
    /// files are never written for a manager, or the group is gone.
    fn behind(&mut self, _name: &str) -> Option<Held> {
        None
    }

    /// Writes those files.
    fn write_behind(&mut self, name: &str, _values: &Values) -> Result<(), HostError> {
        Err(HostError::invalid(
            format!("write to the control group of {name}"),
            "it is its manager's alone",
        ))
    }
}

/// A manager that is not spoken to yet.
fn owner(kind: Kind, address: &str) -> Box<dyn Owner> {
    match kind {
        Kind::Systemd => Box::new(systemd::Systemd::new(address)),
        Kind::Container => Box::new(container::Containers::new(address)),
    }
}

impl Kind {
    /// What a manager of this kind is told for a setting. `now` is what the properties hold,
    /// `cpu` the version of the hierarchy that its weight is in.
    pub(crate) fn values(
        self,
        setting: &Setting,
        now: &Values,
        cpu: Version,
    ) -> Vec<(String, Value)> {
        match self {
            Self::Systemd => systemd::values(setting, now),
            Self::Container => {
                let property = container::wire::property(setting.knob());
                let value = container::wire::value(setting, cpu);
                let pair = property.map(str::to_owned).zip(value);
                pair.into_iter().collect()
            }
        }
    }

    /// The properties that a knob is.
    pub(crate) fn properties(self, knob: Knob) -> Vec<&'static str> {
        match self {
            Self::Systemd => systemd::properties(knob),
            Self::Container => container::wire::property(knob).into_iter().collect(),
        }
    }

    /// Whether a property of this kind takes a knob and does nothing about it, in a hierarchy of
    /// this version.
    pub(crate) const fn is_idle(self, knob: Knob, version: Version) -> bool {
        match (self, version) {
            (Self::Systemd, Version::V1) => systemd::is_idle_on_v1(knob),
            _ => false,
        }
    }

    /// Whether what a thing was made with is a ceiling of its owner's, so that "no limit" means
    /// that one.
    pub(crate) const fn keeps_limits(self) -> bool {
        match self {
            Self::Systemd => false,
            Self::Container => true,
        }
    }

    /// Whether a manager may make of a knob what is not quite what it was told.
    pub(crate) fn approximates(self, knob: Knob, version: Version) -> bool {
        // Shares become a weight by a rule that differs between versions of the runtimes.
        self == Self::Container && knob == Knob::CpuWeight && version == Version::V2
    }

    /// Whether a manager remembers over a reboot what it was told.
    pub(crate) const fn outlives_boots(self) -> bool {
        match self {
            Self::Systemd => false,
            Self::Container => true,
        }
    }
}

/// The version of the systemd on this host's bus.
///
/// # Errors
/// When there is none, or it does not answer.
pub(crate) fn systemd_version(addresses: &Addresses) -> Result<u32, HostError> {
    systemd::Systemd::new(&addresses.systemd).version()
}

/// Who answers at the sockets of container runtimes, and what is wrong with those that are there
/// and do not answer.
pub(crate) fn container_runtimes(addresses: &Addresses) -> (Vec<Answering>, Vec<HostError>) {
    container::answering(&addresses.containers)
}

/// Who owns the group of an app that is bound like this, and what it calls the app.
pub(crate) fn of_binding(binding: &Binding) -> Option<(Kind, &str)> {
    match binding {
        Binding::Systemd(unit) => Some((Kind::Systemd, unit)),
        Binding::Container(name) => Some((Kind::Container, name)),
        Binding::Exec(_) | Binding::Cgroup(_) | Binding::Match(_) => None,
    }
}
