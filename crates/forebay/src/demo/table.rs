//! The result: medians over the rounds, with their ranges.

use std::collections::BTreeMap;

use serde::Serialize;

use super::arm::{Arm, Segment};

/// All segments so far.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    segments: BTreeMap<Arm, Vec<Segment>>,
}

/// One arm in the result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ArmRow {
    pub(crate) name: &'static str,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p99_ms_min: f64,
    pub(crate) p99_ms_max: f64,
    pub(crate) p999_ms: f64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    /// Work of the batch apps: each one's rate over its median rate in the uncontrolled arm,
    /// then the mean of the apps. 1 is as much as uncontrolled.
    pub(crate) batch_work: f64,
    pub(crate) batch_work_min: f64,
    pub(crate) batch_work_max: f64,
    /// Units of computation per second, of the CPU-hungry one.
    pub(crate) batch_units_per_s: f64,
    /// MiB through memory and disk per second, of the other.
    pub(crate) batch_mib_per_s: f64,
}

/// The daemon in the result.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct AgentRow {
    pub(crate) cpu_percent_of_core: f64,
    pub(crate) rss_bytes: u64,
}

impl Summary {
    /// Takes in one segment.
    pub(crate) fn add(&mut self, arm: Arm, segment: Segment) {
        self.segments.entry(arm).or_default().push(segment);
    }

    /// One row for each arm: medians over its segments, requests summed.
    pub(crate) fn rows(&self) -> Vec<(Arm, ArmRow)> {
        let uncontrolled = |rate: fn(&Segment) -> f64| {
            let segments = self.segments.get(&Arm::Uncontrolled);
            spread(segments.into_iter().flatten().map(rate)).1
        };
        let units = uncontrolled(|s| s.batch_per_s);
        let mib = uncontrolled(|s| s.churn_mib_per_s);
        self.segments
            .iter()
            .map(|(&arm, segments)| {
                let of = |value: fn(&Segment) -> f64| spread(segments.iter().map(value));
                let (p99_ms_min, p99_ms, p99_ms_max) = of(|s| s.p99_ms);
                let (batch_work_min, batch_work, batch_work_max) = spread(
                    segments
                        .iter()
                        .map(|segment| relative_work(segment, units, mib)),
                );
                let row = ArmRow {
                    name: arm.name(),
                    p50_ms: of(|s| s.p50_ms).1,
                    p99_ms,
                    p99_ms_min,
                    p99_ms_max,
                    p999_ms: of(|s| s.p999_ms).1,
                    completed: segments.iter().map(|s| s.completed).sum(),
                    failed: segments.iter().map(|s| s.failed).sum(),
                    batch_work,
                    batch_work_min,
                    batch_work_max,
                    batch_units_per_s: of(|s| s.batch_per_s).1,
                    batch_mib_per_s: of(|s| s.churn_mib_per_s).1,
                };
                (arm, row)
            })
            .collect()
    }

    /// The daemon's cost: median use, largest memory.
    pub(crate) fn agent(&self) -> Option<AgentRow> {
        let agents: Vec<_> = self
            .segments
            .get(&Arm::Forebay)?
            .iter()
            .filter_map(|segment| segment.agent)
            .collect();
        let rss_bytes = agents.iter().map(|agent| agent.rss_bytes).max()?;
        let (_, cpu_percent_of_core, _) =
            spread(agents.iter().map(|agent| agent.cpu_percent_of_core));
        Some(AgentRow {
            cpu_percent_of_core,
            rss_bytes,
        })
    }

    /// The result for machines.
    pub(crate) fn json(&self) -> serde_json::Value {
        let arms: Vec<ArmRow> = self.rows().into_iter().map(|(_, row)| row).collect();
        serde_json::json!({ "arms": arms, "agent": self.agent() })
    }

    /// The result for people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<24}{:>9}{:>9}{:>18}{:>10}{:>10}{:>8}{:>12}{:>12}{:>10}\n",
            "",
            "p50 ms",
            "p99 ms",
            "(range)",
            "p99.9 ms",
            "requests",
            "failed",
            "batch work",
            "units/s",
            "MiB/s"
        );
        for (_, row) in &self.rows() {
            let range = format!("({:.2}-{:.2})", row.p99_ms_min, row.p99_ms_max);
            let batch = if row.batch_work > 0.0 {
                format!("{:.0} %", 100.0 * row.batch_work)
            } else {
                "-".to_owned()
            };
            text += &format!(
                "{:<24}{:>9.2}{:>9.2}{:>18}{:>10.2}{:>10}{:>8}{:>12}{:>12.0}{:>10.0}\n",
                row.name,
                row.p50_ms,
                row.p99_ms,
                range,
                row.p999_ms,
                row.completed,
                row.failed,
                batch,
                row.batch_units_per_s,
                row.batch_mib_per_s
            );
        }
        if let Some(agent) = self.agent() {
            text += &format!(
                "Forebay itself: {:.2} % of a CPU, {} resident.\n",
                agent.cpu_percent_of_core,
                forebay_core::units::Bytes(agent.rss_bytes)
            );
        }
        text
    }
}

/// The mean of both batch apps' rates over their uncontrolled ones. One that did nothing even
/// uncontrolled, as may be in a short segment, says nothing.
fn relative_work(segment: &Segment, units: f64, mib: f64) -> f64 {
    let rates = [(segment.batch_per_s, units), (segment.churn_mib_per_s, mib)];
    let parts: Vec<f64> = rates
        .iter()
        .filter(|(_, uncontrolled)| *uncontrolled > 0.0)
        .map(|(rate, uncontrolled)| rate / uncontrolled)
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "one or two")]
    let count = parts.len().max(1) as f64;
    parts.iter().sum::<f64>() / count
}

/// Smallest, median (the lower of two), largest.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => (f64::NAN, f64::NAN, f64::NAN),
        [first, .., last] => {
            let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
            (*first, f64::midpoint(lower, upper), *last)
        }
        [only] => (*only, *only, *only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        let check = |values: &[f64], expected| {
            assert_eq!(spread(values.iter().copied()), expected);
        };
        check(&[3.0], (3.0, 3.0, 3.0));
        check(&[3.0, 1.0, 2.0], (1.0, 2.0, 3.0));
        check(&[4.0, 1.0, 2.0, 3.0], (1.0, 2.5, 4.0));
    }

    #[test]
    fn the_table_has_a_row_for_each_arm() {
        let mut summary = Summary::default();
        for arm in [Arm::Alone, Arm::Uncontrolled] {
            summary.add(
                arm,
                Segment {
                    p99_ms: 2.5,
                    completed: 7,
                    batch_per_s: if arm == Arm::Alone { 0.0 } else { 10.0 },
                    churn_mib_per_s: if arm == Arm::Alone { 0.0 } else { 5.0 },
                    ..Segment::default()
                },
            );
        }
        let table = summary.table();
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.contains("100 %"), "{table}");
        assert_eq!(summary.json()["arms"][0]["completed"], 7);
    }
}
