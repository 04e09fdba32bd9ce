//! What is known of the future besides the newest samples.
//!
//! Whoever looks further ahead than one control period can (other resolutions, calendars,
//! forecasts of others) does so beside the control thread and leaves here what plans need of it.

pub mod ahead;
pub mod together;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use forebay_forecast::Quantiles;
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
    /// What need will stay below in 90 of 100 cases until [`soon_until_unix_ms`](Self::soon_until_unix_ms).
    pub soon: BTreeMap<AppId, BTreeMap<Resource, f64>>,
    /// After this, in milliseconds since 1970-01-01 UTC, `soon` is of the past.
    pub soon_until_unix_ms: u64,
}

/// Nothing is known to come.
pub static NOTHING: Outlook = Outlook {
    expected: BTreeMap::new(),
    soon: BTreeMap::new(),
    soon_until_unix_ms: 0,
};

/// What one app will need of one resource, as far as that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Need<'a> {
    /// What expected spans bring within the horizon, level by level, and who says the most.
    pub expected: Option<(Quantiles, &'a str)>,
    /// What need will soon stay below in 90 of 100 cases.
    pub soon: Option<f64>,
}

impl Outlook {
    /// What is known of an app's need between now and the end of the horizon.
    #[must_use]
    pub fn need(&self, app: &AppId, resource: Resource, span: Window) -> Need<'_> {
        let soon = self.soon.get(app).and_then(|needs| needs.get(&resource));
        Need {
            expected: self.brought(app, resource, span),
            soon: soon
                .copied()
                .filter(|_| span.from_unix_ms < self.soon_until_unix_ms),
        }
    }

    /// The most that expected spans bring to an app within a window, level by level, and who says
    /// the greatest 95 % quantile of them.
    #[must_use]
    pub fn brought(
        &self,
        app: &AppId,
        resource: Resource,
        span: Window,
    ) -> Option<(Quantiles, &str)> {
        let meeting = || self.meeting(app, resource, span);
        let most = meeting()
            .map(|span| span.peak)
            .reduce(Quantiles::or_greater)?;
        let by = meeting().max_by(|a, b| a.peak.q95().total_cmp(&b.peak.q95()))?;
        Some((most, &by.why))
    }

    fn meeting(
        &self,
        app: &AppId,
        resource: Resource,
        span: Window,
    ) -> impl Iterator<Item = &Expected> {
        let of_app = self.expected.get(app).into_iter().flatten();
        of_app.filter(move |other| {
            other.resource == resource
                && other.from_unix_ms <= span.until_unix_ms
                && other.until_unix_ms > span.from_unix_ms
        })
    }
}

/// A span of time, in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Where it begins.
    pub from_unix_ms: u64,
    /// Where it ends.
    pub until_unix_ms: u64,
}

impl Window {
    /// From now to the end of a horizon.
    #[must_use]
    pub fn ahead(now_unix_ms: u64, horizon: Duration) -> Self {
        let horizon_ms = u64::try_from(horizon.as_millis()).unwrap_or(u64::MAX);
        Self {
            from_unix_ms: now_unix_ms,
            until_unix_ms: now_unix_ms.saturating_add(horizon_ms),
        }
    }

    /// Where it ends, as a span without length.
    #[must_use]
    pub const fn end(self) -> Self {
        Self {
            from_unix_ms: self.until_unix_ms,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_counts_from_a_horizon_before_it_until_its_end() {
        let app: AppId = "web".parse().unwrap();
        let span = |from, until, level: f64, why: &str| Expected {
            resource: Resource::Cpu,
            from_unix_ms: from,
            until_unix_ms: until,
            peak: Quantiles::new([level / 2.0, level, level, level]).unwrap(),
            why: why.to_owned(),
        };
        let mut outlook = Outlook::default();
        let spans = vec![
            span(10_000, 20_000, 2.0, "report"),
            span(12_000, 13_000, 3.0, "backup"),
        ];
        outlook.expected.insert(app.clone(), spans);
        outlook.soon.insert(
            app.clone(),
            [(Resource::Cpu, 1.0), (Resource::Memory, 7.0)].into(),
        );
        outlook.soon_until_unix_ms = 11_000;
        let check = |resource, unix_ms, expected: Option<(f64, &'static str)>, soon| {
            let levels = |level: f64| Quantiles::new([level / 2.0, level, level, level]).unwrap();
            let expected = expected.map(|(level, why)| (levels(level), why));
            let window = Window::ahead(unix_ms, Duration::from_secs(1));
            let need = outlook.need(&app, resource, window);
            assert_eq!(need, Need { expected, soon }, "{unix_ms}");
        };
        check(Resource::Cpu, 8_000, None, Some(1.0));
        check(Resource::Cpu, 9_000, Some((2.0, "report")), Some(1.0));
        check(Resource::Cpu, 11_000, Some((3.0, "backup")), None);
        check(Resource::Cpu, 13_000, Some((2.0, "report")), None);
        check(Resource::Cpu, 20_000, None, None);
        check(Resource::Memory, 9_000, None, Some(7.0));
        check(Resource::Io, 9_000, None, None);

        let brought = |from_unix_ms, until_unix_ms| {
            let span = Window {
                from_unix_ms,
                until_unix_ms,
            };
            let brought = outlook.brought(&app, Resource::Cpu, span);
            brought.map(|(most, by)| (most.q50(), most.q95(), by))
        };
        assert_eq!(brought(0, 9_000), None);
        assert_eq!(brought(0, 11_000), Some((1.0, 2.0, "report")));
        assert_eq!(brought(0, 86_400_000), Some((1.5, 3.0, "backup")));
        assert_eq!(brought(14_000, 14_000), Some((1.0, 2.0, "report")));
    }
}
