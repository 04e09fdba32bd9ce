//! Figures of one run, held against each other repetition by repetition.

use std::time::Duration;

use serde_json::{Value, json};

use super::load::{Done, Pace};
use super::{Arm, Figures, LARGE_FULL, Load, MANY, MANY_FULL, ONE, ONE_FULL, SCENARIOS, Scenario};
use crate::bench::Target;
use crate::demo::print::line;

const ARMS: [Arm; 8] = [
    Arm::Direct,
    Arm::Forebay,
    Arm::Beside,
    Arm::Haproxy,
    Arm::HaproxySplice,
    Arm::Nginx,
    Arm::Session,
    Arm::Transaction,
];

/// The middle of some figures, and their range.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    middle: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let half = figures.len() / 2;
        let upper = *figures.get(half)?;
        // Of an even number, halfway between the two in the middle.
        let lower = if figures.len().is_multiple_of(2) {
            half - 1
        } else {
            half
        };
        Some(Self {
            middle: f64::midpoint(*figures.get(lower)?, upper),
            least: *figures.first()?,
            most: *figures.last()?,
        })
    }

    fn show(self, digits: usize) -> String {
        format!(
            "{:.digits$} ({:.digits$} to {:.digits$})",
            self.middle, self.least, self.most
        )
    }
}

/// A figure of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// CPU time of the proxy for a request, in microseconds.
    Cpu,
    /// Latency, in microseconds.
    P50,
    /// Latency, in microseconds.
    P99,
    /// Requests in a second.
    Rate,
}

impl Figure {
    fn of(self, done: &Done) -> f64 {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        #[expect(clippy::cast_precision_loss, reason = "some hundred thousand requests")]
        let requests = done.requests.max(1) as f64;
        match self {
            Self::Cpu => us(done.cpu) / requests,
            Self::P50 => us(done.p50),
            Self::P99 => us(done.p99),
            Self::Rate => requests / done.time.as_secs_f64(),
        }
    }
}

fn all(figures: &Figures, key: (Scenario, Load, Arm), figure: Figure) -> Vec<f64> {
    let done = figures.get(&key).map_or(&[][..], Vec::as_slice);
    done.iter().map(|done| figure.of(done)).collect()
}

/// Holds an arm against another one in each repetition.
fn paired(
    figures: &Figures,
    (scenario, load): (Scenario, Load),
    [one, other]: [Arm; 2],
    figure: Figure,
    hold: impl Fn(f64, f64) -> f64,
) -> Option<Spread> {
    let one = all(figures, (scenario, load, one), figure);
    let other = all(figures, (scenario, load, other), figure);
    let pairs = one.iter().zip(&other);
    Spread::of(pairs.map(|(one, other)| hold(*one, *other)).collect())
}

fn ratio(one: f64, other: f64) -> f64 {
    one / other
}

fn difference(one: f64, other: f64) -> f64 {
    one - other
}

/// Prints a table for each scenario and load.
pub(super) fn print(figures: &Figures) {
    line(format_args!(
        "\nMiddle and range over the repetitions. CPU: of the proxy, us for a request; x: of Forebay's over this \
         one's, in one repetition;\nadded: over direct, in one repetition."
    ));
    for scenario in SCENARIOS {
        for load in scenario.loads() {
            table(figures, scenario, *load);
        }
    }
}

fn table(figures: &Figures, scenario: Scenario, load: Load) {
    if !figures.contains_key(&(scenario, load, Arm::Direct)) {
        return;
    }
    let is_rated = matches!(load.pace, Pace::Fixed(_));
    let titles = if is_rated {
        ["p50 us added", "p99 us added"]
    } else {
        ["requests/s", "p99 us"]
    };
    line(format_args!(
        "\n{:<40}{:<24}{:<24}{:<30}{:<30}",
        format!("{}, {}", scenario.name(), load.name()),
        "CPU us",
        "x",
        titles[0],
        titles[1]
    ));
    let show = |spread: Option<Spread>, digits| {
        spread.map_or_else(|| "-".to_owned(), |spread| spread.show(digits))
    };
    for arm in ARMS {
        let key = (scenario, load, arm);
        if !figures.contains_key(&key) {
            continue;
        }
        let own = |figure| Spread::of(all(figures, key, figure));
        let place = (scenario, load);
        let added = |figure| match arm {
            // What there is to add to.
            Arm::Direct => own(figure),
            _ => paired(figures, place, [arm, Arm::Direct], figure, difference),
        };
        let is_proxy = arm != Arm::Direct;
        let cpu = is_proxy.then(|| own(Figure::Cpu)).flatten();
        let times = (is_proxy && arm != Arm::Forebay)
            .then(|| paired(figures, place, [Arm::Forebay, arm], Figure::Cpu, ratio))
            .flatten();
        let (first, second) = if is_rated {
            (added(Figure::P50), added(Figure::P99))
        } else {
            (own(Figure::Rate), own(Figure::P99))
        };
        line(format_args!(
            "  {:<38}{:<24}{:<24}{:<30}{:<30}",
            arm.name(),
            show(cpu, 1),
            show(times, 2),
            show(first, 0),
            show(second, 0)
        ));
    }
}

/// What is promised, each by the middle of its repetitions.
pub(super) fn targets(figures: &Figures) -> Vec<Target> {
    let cpu: [(&'static str, Scenario, Load, Arm, f64); 7] = [
        (
            "tcp, 64 connections: CPU / haproxy's",
            Scenario::Tcp,
            MANY_FULL,
            Arm::Haproxy,
            1.0,
        ),
        (
            "tcp, 1 connection: CPU / haproxy's",
            Scenario::Tcp,
            ONE_FULL,
            Arm::Haproxy,
            1.0,
        ),
        (
            "http, 64 connections: CPU / haproxy's",
            Scenario::Http,
            MANY_FULL,
            Arm::Haproxy,
            1.0,
        ),
        (
            "http, 1 connection: CPU / haproxy's",
            Scenario::Http,
            ONE_FULL,
            Arm::Haproxy,
            1.0,
        ),
        (
            "http, 1 MiB: CPU / haproxy's",
            Scenario::Large,
            LARGE_FULL,
            Arm::Haproxy,
            0.6,
        ),
        (
            "postgres, 64: CPU / pgbouncer's, session",
            Scenario::Postgres,
            MANY_FULL,
            Arm::Session,
            1.1,
        ),
        (
            "postgres, 64: CPU / pgbouncer's, transaction",
            Scenario::Postgres,
            MANY_FULL,
            Arm::Transaction,
            1.1,
        ),
    ];
    let cpu = cpu
        .into_iter()
        .filter_map(|(name, scenario, load, arm, most)| {
            let pair = [Arm::Forebay, arm];
            let spread = paired(figures, (scenario, load), pair, Figure::Cpu, ratio)?;
            Some(Target::at_most(name, spread.middle, most, "x"))
        });
    let latency: [(&'static str, Scenario, Load, Figure); 8] = [
        (
            "tcp, 1 connection: p50 over haproxy's",
            Scenario::Tcp,
            ONE,
            Figure::P50,
        ),
        (
            "tcp, 1 connection: p99 over haproxy's",
            Scenario::Tcp,
            ONE,
            Figure::P99,
        ),
        (
            "tcp, 64 connections: p50 over haproxy's",
            Scenario::Tcp,
            MANY,
            Figure::P50,
        ),
        (
            "tcp, 64 connections: p99 over haproxy's",
            Scenario::Tcp,
            MANY,
            Figure::P99,
        ),
        (
            "http, 1 connection: p50 over haproxy's",
            Scenario::Http,
            ONE,
            Figure::P50,
        ),
        (
            "http, 1 connection: p99 over haproxy's",
            Scenario::Http,
            ONE,
            Figure::P99,
        ),
        (
            "http, 64 connections: p50 over haproxy's",
            Scenario::Http,
            MANY,
            Figure::P50,
        ),
        (
            "http, 64 connections: p99 over haproxy's",
            Scenario::Http,
            MANY,
            Figure::P99,
        ),
    ];
    let latency = latency
        .into_iter()
        .filter_map(|(name, scenario, load, figure)| {
            let pair = [Arm::Forebay, Arm::Haproxy];
            let spread = paired(figures, (scenario, load), pair, figure, difference)?;
            Some(Target::at_most(name, spread.middle, 0.0, "us"))
        });
    cpu.chain(latency).collect()
}

/// Every segment.
pub(super) fn json(figures: &Figures) -> Value {
    let mut rows = Vec::new();
    for scenario in SCENARIOS {
        for load in scenario.loads() {
            for arm in ARMS {
                let Some(done) = figures.get(&(scenario, *load, arm)) else {
                    continue;
                };
                let each = |figure: Figure| done.iter().map(|d| figure.of(d)).collect::<Vec<_>>();
                rows.push(json!({
                    "scenario": scenario.name(),
                    "connections": load.connections,
                    "rate": match load.pace {
                        Pace::Fixed(rate) => Some(rate),
                        Pace::Full => None,
                    },
                    "arm": arm.name(),
                    "cpu_us": each(Figure::Cpu),
                    "p50_us": each(Figure::P50),
                    "p99_us": each(Figure::P99),
                    "requests_per_s": each(Figure::Rate),
                }));
            }
        }
    }
    json!(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(cpu: u64) -> Done {
        Done {
            requests: 10,
            time: Duration::from_secs(1),
            p50: Duration::from_micros(cpu),
            p99: Duration::from_micros(2 * cpu),
            cpu: Duration::from_micros(10 * cpu),
        }
    }

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        let spread = |figures: &[f64]| Spread::of(figures.to_vec()).unwrap();
        assert_eq!(spread(&[3.0, 1.0, 2.0, 10.0]).show(1), "2.5 (1.0 to 10.0)");
        assert_eq!(spread(&[3.0]).middle, 3.0);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn arms_are_held_against_each_other_within_a_repetition() {
        let mut figures = Figures::new();
        // The machine was twice as slow in the second one.
        let key = |arm| (Scenario::Tcp, MANY_FULL, arm);
        figures.insert(key(Arm::Forebay), vec![done(20), done(40)]);
        figures.insert(key(Arm::Haproxy), vec![done(10), done(20)]);
        let targets = targets(&figures);
        assert_eq!(targets.len(), 1);
        assert!(!targets[0].met && (targets[0].figure - 2.0).abs() < 1e-9);
    }
}
