//! What is known of the future besides the newest samples.
//!
//! Whoever looks further ahead than one control period can (other resolutions, calendars,
//! forecasts of others) does so beside the control thread and leaves here what plans need of it.

use std::collections::BTreeMap;
use std::fmt;

use forebay_forecast::Quantiles;
use serde::{Deserialize, Serialize};

use crate::app::AppId;

/// What is forecast of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Processor time, in CPUs.
    Cpu,
    /// Memory that it works with, in bytes.
    Memory,
    /// To and from block devices, in bytes per second.
    Io,
    /// Received over the network, in bytes per second.
    Received,
    /// Sent over the network, in bytes per second.
    Sent,
    /// Requests served, per second.
    Requests,
    /// Time until a request is answered, in milliseconds.
    ResponseTime,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Cpu,
        Self::Memory,
        Self::Io,
        Self::Received,
        Self::Sent,
        Self::Requests,
        Self::ResponseTime,
    ];

    /// Its name, as in configurations, on the command line and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::Requests => "requests",
            Self::ResponseTime => "response_time",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A span of time in which an app will probably need something.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// Of what.
    pub resource: Resource,
    /// When it begins, in milliseconds since 1970-01-01 UTC.
    pub from_unix_ms: u64,
    /// When it has ended.
    pub until_unix_ms: u64,
    /// The greatest need while it lasts, in the unit of the resource.
    pub peak: Quantiles,
    /// Who says so: `event nightly-report`, `timer logrotate.timer`.
    pub why: String,
}

/// All that is known to come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outlook {
    /// By app.
    pub expected: BTreeMap<AppId, Vec<Expected>>,
}

/// Nothing is known to come.
pub static NOTHING: Outlook = Outlook {
    expected: BTreeMap::new(),
};
