//! When an app is constrained.
//!
//! Problem: a number above its limit for one moment is no reason to act, one that hovers around its
//! limit is no reason to act again and again, and one that is about to rise is a reason already.
//!
//! Approach: every [`Sign`] gives a reading in each period in which it is known: how much there is
//! of something, and how much may be. A sign is read of now, and, where there is a forecast, of the
//! horizon: there the reading is the quantile that is exceeded with the chance asked for. Each has a
//! small machine:
//!
//! ```text
//!          above the limit             for the persistence
//!   quiet ────────────────> rising ──────────────────────> raised
//!     ^ ^                     │ not above                    │ below RELEASE of the limit,
//!     │ └─────────────────────┘                              │ for the persistence
//!     └───────────── the cool-down is over ─── cooling <─────┘
//! ```
//!
//! Properties, tested: nothing is raised that was not above its limit for the persistence; nothing
//! is raised anew within the cool-down; a value between the two limits changes nothing; a gap is no
//! value, and what is not known for [`GAP_MAX`] is not raised any more.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bottleneck, Rules, Seen};
use crate::app::Class;
use crate::demand::{Band, PRESENT};
use crate::units::{Bytes, Limit, Rate, Time};

/// What was raised is over below this part of its limit.
pub const RELEASE: f64 = 0.9;
/// What was not known for so long is forgotten: several rotations of what is read now and then.
pub const GAP_MAX: Duration = Duration::from_secs(10);
/// The quantiles of a band, and in what part of cases they are exceeded.
const LEVELS: [f64; 4] = [0.5, 0.1, 0.05, 0.01];

/// By what an app is told to be constrained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// It uses most of the processor time of its slice.
    CpuUse,
    /// It works with most of the memory that it may have.
    MemoryUse,
    /// It takes most of a measured block device's time.
    IoUse,
    /// It sends most of what it may send.
    NetworkUse,
    /// Some task of it waits for a CPU (PSI).
    CpuStalled,
    /// Some task of it waits for memory (PSI).
    MemoryStalled,
    /// Some task of it waits for I/O (PSI).
    IoStalled,
    /// Its answers take long.
    ResponseTime,
    /// Its answers are errors.
    Errors,
}

impl Sign {
    /// What it is a lack of; none where it says only that something is lacking.
    #[must_use]
    pub const fn bottleneck(self) -> Option<Bottleneck> {
        match self {
            Self::CpuUse | Self::CpuStalled => Some(Bottleneck::Cpu),
            Self::MemoryUse | Self::MemoryStalled => Some(Bottleneck::Memory),
            Self::IoUse | Self::IoStalled => Some(Bottleneck::Io),
            Self::NetworkUse => Some(Bottleneck::Network),
            Self::ResponseTime | Self::Errors => None,
        }
    }
}

/// Of when a sign is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// It is so.
    Now,
    /// It is expected to be so within the horizon.
    Ahead,
}

/// One thing that is watched of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Watched {
    /// By what.
    pub sign: Sign,
    /// Of when.
    pub when: When,
}

/// What a forecast says of a reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Foretold<'a> {
    /// In what part of cases the limit will be exceeded, 0 to 1. A forecast says nothing between
    /// one half and certainty, so that one half is "at least".
    pub chance: f64,
    /// The model, or whoever announced it.
    pub by: &'a str,
}

/// How much there is of something that was watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading<'a> {
    /// What was watched.
    pub watched: Watched,
    /// How much there is: CPUs, bytes, shares of time, bytes per second, milliseconds.
    pub value: f64,
    /// More is too much.
    pub limit: f64,
    /// All there is, where the limit is a part of something.
    pub whole: Option<f64>,
    /// What the forecast says, of what is ahead.
    pub foretold: Option<Foretold<'a>>,
}

impl Reading<'_> {
    /// How many times the limit it is.
    #[must_use]
    pub fn severity(&self) -> f64 {
        if self.limit > 0.0 {
            self.value / self.limit
        } else {
            0.0
        }
    }
}

/// What is known of one app in one period, as far as it is known.
pub(super) fn readings<'a>(seen: &Seen<'a>, rules: &Rules) -> Vec<Reading<'a>> {
    let mut all = Vec::new();
    let part = |percent: u32| f64::from(percent) / 100.0;
    let demand = seen.demand;
    let mut now = |sign, value: Option<f64>, limit: f64, whole: Option<f64>| {
        let known = value.filter(|value| value.is_finite() && limit > 0.0);
        all.extend(known.map(|value| Reading {
            watched: Watched {
                sign,
                when: When::Now,
            },
            value,
            limit,
            whole,
            foretold: None,
        }));
    };

    // Batch takes what is left of processor time, memory and devices, within limits that the
    // planner draws, so that using all of it and waiting for more are no constraint.
    let takes_the_rest = seen.app.class == Class::Batch;
    let cpu_limit = seen.cpus * part(rules.cpu_percent);
    let memory_whole = seen.memory.map(Bytes::as_f64);
    let memory_limit = memory_whole.unwrap_or(0.0) * part(rules.memory_percent);
    let io_limit = part(rules.io_percent);
    if !takes_the_rest {
        now(Sign::CpuUse, demand.usage.cpu, cpu_limit, Some(seen.cpus));
        let stalled = demand.usage.cpu_stalled.map(|_| demand.cpu_stalled);
        let limit = part(rules.cpu_stalled_percent);
        now(Sign::CpuStalled, stalled, limit, None);
        let limit = part(rules.io_stalled_percent);
        now(Sign::IoStalled, demand.io_use.stalled, limit, None);
        let memory = demand.memory_now;
        let works_with = memory.used.map(|used| memory.working_set(used).as_f64());
        now(Sign::MemoryUse, works_with, memory_limit, memory_whole);
        let limit = part(rules.memory_stalled_percent);
        now(Sign::MemoryStalled, memory.stalled, limit, None);
        let shares = demand.io_use.devices.values();
        let busiest = shares.filter_map(|used| used.share).max_by(f64::total_cmp);
        now(Sign::IoUse, busiest, io_limit, Some(1.0));
    }
    if let Limit::At(Rate(most)) = seen.app.ceiling.egress {
        let most = Bytes(most).as_f64();
        let limit = most * part(rules.network_percent);
        now(Sign::NetworkUse, demand.usage.sent, limit, Some(most));
    }
    let slow = seen.app.response_time_max.unwrap_or(rules.response_time);
    let slow_ms = slow.as_secs_f64() * 1000.0;
    now(
        Sign::ResponseTime,
        demand.usage.response_time,
        slow_ms,
        None,
    );
    now(Sign::Errors, seen.errors, part(rules.errors_percent), None);

    let mut ahead = |sign, band: Option<&'a Band>, limit: f64, whole| {
        let chance = part(rules.chance_percent);
        let usable = band.filter(|band| !band.cold && band.model != PRESENT && limit > 0.0);
        all.extend(usable.map(|band| Reading {
            watched: Watched {
                sign,
                when: When::Ahead,
            },
            value: exceeded_with(band, chance),
            limit,
            whole,
            foretold: Some(Foretold {
                chance: chance_above(band, limit),
                by: &band.model,
            }),
        }));
    };
    if !takes_the_rest {
        ahead(Sign::CpuUse, Some(&demand.cpu), cpu_limit, Some(seen.cpus));
        let memory = Some(&demand.memory);
        ahead(Sign::MemoryUse, memory, memory_limit, memory_whole);
        let bands = demand.io.values().map(|device| &device.share);
        let busiest = bands.max_by(|a, b| a.q95.total_cmp(&b.q95));
        ahead(Sign::IoUse, busiest, io_limit, Some(1.0));
    }
    ahead(
        Sign::ResponseTime,
        demand.response_time.as_ref(),
        slow_ms,
        None,
    );
    all
}

/// What is exceeded in this part of cases, between the quantiles that are known.
fn exceeded_with(band: &Band, chance: f64) -> f64 {
    let values = [band.q50, band.q90, band.q95, band.q99];
    between(&LEVELS, &values, chance)
}

/// In what part of cases this is exceeded: one half at most, nothing beyond the 99 % quantile.
fn chance_above(band: &Band, limit: f64) -> f64 {
    if limit >= band.q99 {
        return 0.0;
    }
    between(&[band.q50, band.q90, band.q95, band.q99], &LEVELS, limit)
}

/// Where `x` is among `xs`, which all rise or all fall, there among `ys`.
fn between(xs: &[f64; 4], ys: &[f64; 4], x: f64) -> f64 {
    let falls = xs[0] > xs[3];
    let before = |a: f64, b: f64| if falls { a > b } else { a < b };
    if !before(xs[0], x) {
        return ys[0];
    }
    for (pair, at) in xs.windows(2).zip(ys.windows(2)) {
        if !before(pair[1], x) {
            let part = (x - pair[0]) / (pair[1] - pair[0]);
            return at[0] + part * (at[1] - at[0]);
        }
    }
    ys[3]
}

/// Where one thing that is watched stands; nothing is kept of what is quiet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Trigger {
    stage: Stage,
    /// When there was a value last.
    known_at: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Stage {
    /// Above the limit since.
    Rising { since: Time },
    /// Raised at a time, and below the lower limit since.
    Raised {
        since: Time,
        raised_at: Time,
        below_since: Option<Time>,
    },
    /// Over since, and perhaps above the limit again since.
    Cooling { over_at: Time, since: Option<Time> },
}

/// The machine of one thing that is watched: where it stands after this period.
pub(super) fn advance(
    before: Option<Trigger>,
    now: Time,
    severity: Option<f64>,
    rules: &Rules,
) -> Option<Trigger> {
    // What was not known for so long did not last meanwhile, also where no period looked.
    let before = before.filter(|trigger| now.since(trigger.known_at) <= GAP_MAX);
    let Some(severity) = severity else {
        return before;
    };
    let above = severity > 1.0;
    let rising = |since: Time| {
        if now.since(since) >= rules.persistence {
            Stage::Raised {
                since,
                raised_at: now,
                below_since: None,
            }
        } else {
            Stage::Rising { since }
        }
    };
    let stage = match before.map(|trigger| trigger.stage) {
        None if above => rising(now),
        Some(Stage::Rising { since }) if above => rising(since),
        None | Some(Stage::Rising { .. }) => return None,
        Some(Stage::Raised {
            since,
            raised_at,
            below_since,
        }) => {
            let below_since = (severity < RELEASE).then(|| below_since.unwrap_or(now));
            if below_since.is_some_and(|below| now.since(below) >= rules.persistence) {
                Stage::Cooling {
                    over_at: now,
                    since: None,
                }
            } else {
                Stage::Raised {
                    since,
                    raised_at,
                    below_since,
                }
            }
        }
        Some(Stage::Cooling { over_at, since }) => {
            let since = above.then(|| since.unwrap_or(now));
            match (now.since(over_at) >= rules.cool_down, since) {
                (false, since) => Stage::Cooling { over_at, since },
                (true, Some(since)) => rising(since),
                (true, None) => return None,
            }
        }
    };
    Some(Trigger {
        stage,
        known_at: now,
    })
}

impl Trigger {
    /// Since when it is so and since when that is a constraint, where it is one.
    pub(super) const fn raised(&self) -> Option<(Time, Time)> {
        match self.stage {
            Stage::Raised {
                since, raised_at, ..
            } => Some((since, raised_at)),
            Stage::Rising { .. } | Stage::Cooling { .. } => None,
        }
    }
}

/// One way in which an app is constrained, with the numbers that say so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    /// By what and of when.
    pub watched: Watched,
    /// How much there was when it was last known, in the unit of the sign.
    pub value: f64,
    /// More is too much.
    pub limit: f64,
    /// All there is, where the limit is a part of something.
    pub whole: Option<f64>,
    /// In what part of cases the limit will be exceeded, and who says so, of what is ahead.
    pub foretold: Option<(f64, String)>,
    /// Within what time, of what is ahead.
    pub horizon: Duration,
    /// For how long it has been so.
    pub lasts: Duration,
    /// For how long it has been acted upon.
    pub raised: Duration,
    /// What it is a lack of, as far as that can be told.
    pub bottleneck: Option<Bottleneck>,
}

impl Constraint {
    /// How many times the limit it is.
    #[must_use]
    pub fn severity(&self) -> f64 {
        if self.limit > 0.0 {
            self.value / self.limit
        } else {
            0.0
        }
    }
}

impl fmt::Display for Constraint {
    /// A sentence without its full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, limit) = (self.value, self.limit);
        let whole = self.whole.unwrap_or(limit);
        let verb = match self.watched.when {
            When::Now => ("uses", "works with", "takes", "sends", "takes", "has"),
            When::Ahead => (
                "is expected to use",
                "is expected to work with",
                "is expected to take",
                "is expected to send",
                "is expected to take",
                "is expected to have",
            ),
        };
        let of_limit = 100.0 * limit / whole.max(f64::MIN_POSITIVE);
        let bytes = |bytes: f64| Bytes::from_f64(bytes);
        match self.watched.sign {
            Sign::CpuUse => write!(
                f,
                "it {} {value:.2} CPU, more than {of_limit:.0}% of the {whole:.2} of its slice",
                verb.0
            )?,
            Sign::MemoryUse => write!(
                f,
                "it {} {}, more than {of_limit:.0}% of the {} that it may have",
                verb.1,
                bytes(value),
                bytes(whole)
            )?,
            Sign::IoUse => write!(
                f,
                "it {} {:.0}% of a block device's time, more than {:.0}%",
                verb.2,
                value * 100.0,
                limit * 100.0
            )?,
            Sign::NetworkUse => write!(
                f,
                "it {} {}, more than {of_limit:.0}% of the {} that it may",
                verb.3,
                Rate(bytes(value).0),
                Rate(bytes(whole).0)
            )?,
            Sign::CpuStalled | Sign::MemoryStalled | Sign::IoStalled => {
                let what = match self.watched.sign {
                    Sign::CpuStalled => "a CPU",
                    Sign::MemoryStalled => "memory",
                    _ => "I/O",
                };
                write!(
                    f,
                    "some task of it waits for {what} {:.0}% of the time, more than {:.0}%",
                    value * 100.0,
                    limit * 100.0
                )?;
            }
            Sign::ResponseTime => write!(
                f,
                "an answer of it {} {value:.1} ms, more than {limit:.1} ms",
                verb.4
            )?,
            Sign::Errors => write!(
                f,
                "it {} {:.1}% of errors among its answers, more than {:.1}%",
                verb.5,
                value * 100.0,
                limit * 100.0
            )?,
        }
        if let Some((chance, by)) = &self.foretold {
            let least = if *chance >= LEVELS[0] {
                "at least "
            } else {
                ""
            };
            write!(
                f,
                ", within {} s and with a chance of {least}{:.0}% (`{by}`)",
                self.horizon.as_secs_f64(),
                chance * 100.0
            )?;
        }
        write!(f, ", for {:.1} s", self.lasts.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_millis(100);

    fn at(periods: u32) -> Time {
        Time {
            monotonic: PERIOD * periods,
            unix_ms: 0,
        }
    }

    fn rules() -> Rules {
        Rules {
            persistence: PERIOD * 5,
            cool_down: PERIOD * 20,
            ..Rules::default()
        }
    }

    /// In which periods these values, one in each, are a constraint.
    fn raised(values: &[Option<f64>]) -> Vec<bool> {
        let mut trigger = None;
        let mut all = Vec::new();
        for (period, value) in (0..).zip(values) {
            trigger = advance(trigger, at(period), *value, &rules());
            all.push(trigger.is_some_and(|trigger| trigger.raised().is_some()));
        }
        all
    }

    fn spans(spans: &[(usize, Option<f64>)]) -> Vec<Option<f64>> {
        let values = spans.iter();
        values
            .flat_map(|(periods, value)| vec![*value; *periods])
            .collect()
    }

    fn first(raised: &[bool]) -> Option<usize> {
        raised.iter().position(|raised| *raised)
    }

    #[test]
    fn what_lasts_is_raised_and_what_does_not_is_not() {
        let check = |given: &[(usize, Option<f64>)], expected| {
            assert_eq!(first(&raised(&spans(given))), expected, "{given:?}");
        };
        check(&[(10, Some(1.2))], Some(5));
        check(&[(3, Some(0.2)), (10, Some(1.2))], Some(8));
        check(&[(5, Some(1.2)), (20, Some(1.0))], None);
        // A gap neither lasts nor ends what was there.
        check(&[(3, Some(1.2)), (2, None), (1, Some(1.2))], Some(5));
        check(&[(3, Some(1.2)), (20, None)], None);
        check(&[(40, None)], None);
    }

    #[test]
    fn a_long_gap_does_not_count_as_lasting() {
        let one = advance(None, at(0), Some(1.2), &rules());
        // In 120 periods nobody looked, since the daemon was paused or the host stood still.
        let after = advance(one, at(120), Some(1.2), &rules()).unwrap();
        assert_eq!(after.raised(), None);
        let later = advance(Some(after), at(125), Some(1.2), &rules()).unwrap();
        assert_eq!(later.raised(), Some((at(120), at(125))));
    }

    #[test]
    fn what_was_raised_ends_below_the_lower_limit_and_not_between() {
        let ends = |given: &[(usize, Option<f64>)]| {
            let raised = raised(&spans(given));
            raised.iter().rposition(|raised| *raised)
        };
        let up = (10, Some(1.2));
        assert_eq!(ends(&[up, (50, Some(0.95))]), Some(59));
        // Five periods of persistence after the first below.
        assert_eq!(ends(&[up, (50, Some(0.5))]), Some(14));
        assert_eq!(ends(&[up, (3, Some(0.5)), (10, Some(0.95))]), Some(22));
        // What is not known any more is not a constraint any more.
        assert_eq!(ends(&[up, (200, None)]), Some(109));
    }

    #[test]
    fn nothing_is_raised_anew_before_it_is_cool() {
        let given = [(10, Some(1.2)), (6, Some(0.5)), (40, Some(1.2))];
        let raised = raised(&spans(&given));
        let again = raised.iter().skip(15).position(|raised| *raised).unwrap() + 15;
        // It was over in period 15, and cool 20 later: it had lasted by then.
        assert_eq!(again, 35);
    }

    fn band(q50: f64, q90: f64, q95: f64, q99: f64) -> Band {
        Band {
            q50,
            q90,
            q95,
            q99,
            model: "ets".to_owned(),
            cold: false,
        }
    }

    #[test]
    fn chances_and_quantiles_are_inverse() {
        let band = band(1.0, 2.0, 3.0, 5.0);
        let check = |chance: f64, value: f64| {
            assert!(
                (exceeded_with(&band, chance) - value).abs() < 1e-9,
                "{chance}"
            );
            assert!(
                (chance_above(&band, value) - chance).abs() < 1e-9,
                "{value}"
            );
        };
        check(0.5, 1.0);
        check(0.3, 1.5);
        check(0.1, 2.0);
        check(0.05, 3.0);
        check(0.03, 4.0);
        assert!((chance_above(&band, 0.1) - 0.5).abs() < 1e-9);
        assert!(chance_above(&band, 5.0).abs() < 1e-9);
        let flat = self::band(1.0, 1.0, 1.0, 1.0);
        assert!((chance_above(&flat, 0.9) - 0.5).abs() < 1e-9);
        assert!(chance_above(&flat, 1.0).abs() < 1e-9);
        assert!((exceeded_with(&flat, 0.2) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_constraint_says_its_numbers() {
        let constraint = |sign, when, value, limit, whole, foretold: Option<(f64, &str)>| {
            Constraint {
                watched: Watched { sign, when },
                value,
                limit,
                whole,
                foretold: foretold.map(|(chance, by)| (chance, by.to_owned())),
                horizon: Duration::from_secs(1),
                lasts: Duration::from_millis(3100),
                raised: Duration::from_secs(1),
                bottleneck: sign.bottleneck(),
            }
            .to_string()
        };
        assert_eq!(
            constraint(Sign::CpuUse, When::Now, 1.86, 1.6, Some(2.0), None),
            "it uses 1.86 CPU, more than 80% of the 2.00 of its slice, for 3.1 s"
        );
        assert_eq!(
            constraint(
                Sign::CpuUse,
                When::Ahead,
                1.9,
                1.6,
                Some(2.0),
                Some((0.5, "ets"))
            ),
            "it is expected to use 1.90 CPU, more than 80% of the 2.00 of its slice, within 1 s \
             and with a chance of at least 50% (`ets`), for 3.1 s"
        );
        assert_eq!(
            constraint(Sign::ResponseTime, When::Now, 812.3, 500.0, None, None),
            "an answer of it takes 812.3 ms, more than 500.0 ms, for 3.1 s"
        );
        assert_eq!(
            constraint(Sign::MemoryStalled, When::Now, 0.25, 0.1, None, None),
            "some task of it waits for memory 25% of the time, more than 10%, for 3.1 s"
        );
        let mib = |mib| Bytes::mib(mib).as_f64();
        assert_eq!(
            constraint(
                Sign::MemoryUse,
                When::Now,
                mib(95),
                mib(90),
                Some(mib(100)),
                None
            ),
            "it works with 95.0 MiB, more than 90% of the 100.0 MiB that it may have, for 3.1 s"
        );
    }

    proptest! {
        /// Whatever is read, nothing is raised that did not last, nor anew within the cool-down.
        #[test]
        fn raising_takes_persistence_and_a_cool_down(
            values in prop::collection::vec(prop::option::weighted(0.9, 0.0..2.0_f64), 1..400)
        ) {
            let raised = raised(&values);
            let mut over_at: Option<usize> = None;
            for period in 0..raised.len() {
                let before = period > 0 && raised[period - 1];
                if raised[period] && !before {
                    let known = values[period - 5..=period].iter().flatten();
                    prop_assert!(known.clone().all(|value| *value > 1.0));
                    prop_assert!(over_at.is_none_or(|over| period - over >= 20));
                }
                if before && !raised[period] {
                    over_at = Some(period);
                }
            }
        }
    }
}
