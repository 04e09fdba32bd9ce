//! A critical reader beside batch that saturates its disk, against limits set by hand.
//!
//! The disk is a loop device on a file that is served at a set speed through one queue (see
//! `workload slow-disk`), mounted where no other process sees it. All arms take turns within each
//! repetition, in an order that rotates.
//!
//! A daemon places the applications of every arm on the same CPUs, so that only what becomes of
//! the disk differs: uncontrolled, it knows nothing of the device; by hand, it has `io_max` from
//! its configuration; with Forebay, it knows what was measured. The best limits by hand are
//! those with most batch work among those whose p99 is within the target.

mod stage;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{Args, Target};
use crate::demo::print as output;
use crate::demo::{Error, interruption, spread};
use stage::Stage;

/// p99 with Forebay over p99 alone.
const P99_RATIO_MAX: f64 = 2.0;
/// p99 uncontrolled over p99 alone: below this there was nothing to protect from.
const UNCONTROLLED_RATIO_MIN: f64 = 5.0;
/// Batch work with Forebay over batch work of the best limits set by hand.
const BATCH_RATIO_MIN: f64 = 0.7;

/// What surrounds the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Arm {
    /// Nothing.
    Alone,
    /// Batch work, left to the kernel.
    Uncontrolled,
    /// Batch work that may take this part of the device, in thousandths, half for each
    /// direction.
    ByHand(u32),
    /// Batch work with a Forebay daemon that knows the device.
    Forebay,
}

const ARMS: [Arm; 6] = [
    Arm::Alone,
    Arm::Uncontrolled,
    Arm::ByHand(500),
    Arm::ByHand(100),
    Arm::ByHand(20),
    Arm::Forebay,
];

impl Arm {
    fn name(self) -> String {
        match self {
            Self::Alone => "alone".to_owned(),
            Self::Uncontrolled => "uncontrolled".to_owned(),
            Self::ByHand(part) => format!("io.max by hand, {}%", f64::from(part) / 10.0),
            Self::Forebay => "forebay".to_owned(),
        }
    }
}

/// What one arm did in one segment.
#[derive(Debug, Clone, Copy, Default)]
struct Segment {
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    reads: u64,
    batch_mib_per_s: f64,
    agent: Option<Agent>,
}

/// The daemon's own use.
#[derive(Debug, Clone, Copy)]
struct Agent {
    cpu_percent_of_core: f64,
    rss_mib: f64,
}

/// One arm in the result: medians over its segments.
#[derive(Debug, Clone, Serialize)]
struct Row {
    name: String,
    p50_ms: f64,
    p99_ms: f64,
    p99_ms_min: f64,
    p99_ms_max: f64,
    p999_ms: f64,
    reads: u64,
    /// p99 over the p99 alone of the same repetition.
    p99_ratio: f64,
    p99_ratio_min: f64,
    p99_ratio_max: f64,
    batch_mib_per_s: f64,
    batch_mib_per_s_min: f64,
    batch_mib_per_s_max: f64,
    agent_cpu_percent_of_core: Option<f64>,
    agent_rss_mib: Option<f64>,
}

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    stage::enter_own_mounts()?;
    let interrupted = interruption()?;
    let stage = Stage::set(dir, &interrupted)?;
    let mut segments: BTreeMap<Arm, Vec<Segment>> = BTreeMap::new();
    for repetition in 0..args.repetitions {
        let first = usize::try_from(repetition).unwrap_or(0) % ARMS.len();
        for arm in ARMS.iter().cycle().skip(first).take(ARMS.len()) {
            let segment = stage.run(*arm, Duration::from_secs(args.seconds))?;
            output::line(format_args!(
                "{:>2}/{} {:<24} p99 {:>8.2} ms  batch {:>7.1} MiB/s",
                repetition + 1,
                args.repetitions,
                arm.name(),
                segment.p99_ms,
                segment.batch_mib_per_s,
            ));
            segments.entry(*arm).or_default().push(segment);
        }
    }
    let rows = rows(&segments);
    output::line(format_args!("\n{}", table(&rows)));
    let result = serde_json::json!({
        "arms": rows.values().collect::<Vec<_>>(),
        "device": stage.device(),
    });
    Ok((targets(&rows), result))
}

fn rows(segments: &BTreeMap<Arm, Vec<Segment>>) -> BTreeMap<Arm, Row> {
    let alone: Vec<f64> = segments[&Arm::Alone].iter().map(|s| s.p99_ms).collect();
    let row = |arm: &Arm, of_arm: &Vec<Segment>| {
        let of = |value: fn(&Segment) -> f64| spread(of_arm.iter().map(value));
        let (p99_ms_min, p99_ms, p99_ms_max) = of(|s| s.p99_ms);
        let ratios = of_arm.iter().zip(&alone).map(|(s, alone)| s.p99_ms / alone);
        let (p99_ratio_min, p99_ratio, p99_ratio_max) = spread(ratios);
        let (batch_mib_per_s_min, batch_mib_per_s, batch_mib_per_s_max) = of(|s| s.batch_mib_per_s);
        let agents: Vec<Agent> = of_arm.iter().filter_map(|s| s.agent).collect();
        let agent = |value: fn(&Agent) -> f64| {
            (!agents.is_empty()).then(|| spread(agents.iter().map(value)).1)
        };
        Row {
            name: arm.name(),
            p50_ms: of(|s| s.p50_ms).1,
            p99_ms,
            p99_ms_min,
            p99_ms_max,
            p999_ms: of(|s| s.p999_ms).1,
            reads: of_arm.iter().map(|s| s.reads).sum(),
            p99_ratio,
            p99_ratio_min,
            p99_ratio_max,
            batch_mib_per_s,
            batch_mib_per_s_min,
            batch_mib_per_s_max,
            agent_cpu_percent_of_core: agent(|a| a.cpu_percent_of_core),
            agent_rss_mib: agent(|a| a.rss_mib),
        }
    };
    segments
        .iter()
        .map(|(arm, of_arm)| (*arm, row(arm, of_arm)))
        .collect()
}

fn table(rows: &BTreeMap<Arm, Row>) -> String {
    let mut text = format!(
        "{:<22}{:>8}{:>9}{:>16}{:>10}{:>8}{:>8}{:>14}{:>13}\n",
        "", "p50 ms", "p99 ms", "(range)", "p99.9 ms", "reads", "x alone", "batch MiB/s", "(range)"
    );
    for row in rows.values() {
        let p99 = format!("({:.2}-{:.2})", row.p99_ms_min, row.p99_ms_max);
        let batch = format!(
            "({:.1}-{:.1})",
            row.batch_mib_per_s_min, row.batch_mib_per_s_max
        );
        text += &format!(
            "{:<22}{:>8.2}{:>9.2}{:>16}{:>10.2}{:>8}{:>8.2}{:>14.1}{:>13}\n",
            row.name,
            row.p50_ms,
            row.p99_ms,
            p99,
            row.p999_ms,
            row.reads,
            row.p99_ratio,
            row.batch_mib_per_s,
            batch
        );
        if let (Some(cpu), Some(rss)) = (row.agent_cpu_percent_of_core, row.agent_rss_mib)
            && row.name == Arm::Forebay.name()
        {
            text += &format!("The daemon used {cpu:.2} % of a CPU and {rss:.1} MiB.\n");
        }
    }
    text
}

fn targets(rows: &BTreeMap<Arm, Row>) -> Vec<Target> {
    let row = |arm: Arm| rows.get(&arm).expect("every arm ran in every repetition");
    let by_hand = rows
        .iter()
        .filter(|(arm, row)| matches!(arm, Arm::ByHand(_)) && row.p99_ratio <= P99_RATIO_MAX)
        .map(|(_, row)| row)
        .max_by(|a, b| a.batch_mib_per_s.total_cmp(&b.batch_mib_per_s));
    let mut targets = vec![
        Target::at_least(
            "read p99 uncontrolled / alone",
            row(Arm::Uncontrolled).p99_ratio,
            UNCONTROLLED_RATIO_MIN,
            "",
        ),
        Target::at_most(
            "read p99 Forebay / alone",
            row(Arm::Forebay).p99_ratio,
            P99_RATIO_MAX,
            "",
        ),
    ];
    match by_hand {
        Some(best) => {
            output::line(format_args!("Best limits by hand: {}", best.name));
            targets.push(Target::at_least(
                "batch work Forebay / best limits by hand",
                row(Arm::Forebay).batch_mib_per_s / best.batch_mib_per_s,
                BATCH_RATIO_MIN,
                "",
            ));
        }
        None => output::line(format_args!("No limits set by hand met the p99 target.")),
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(p99_ms: f64, batch_mib_per_s: f64) -> Segment {
        Segment {
            p99_ms,
            batch_mib_per_s,
            ..Segment::default()
        }
    }

    #[test]
    fn ratios_are_within_a_repetition_and_the_best_by_hand_meets_the_target() {
        let segments = BTreeMap::from([
            (Arm::Alone, vec![segment(1.0, 0.0), segment(4.0, 0.0)]),
            (
                Arm::Uncontrolled,
                vec![segment(10.0, 60.0), segment(40.0, 60.0)],
            ),
            (
                Arm::ByHand(500),
                vec![segment(9.0, 30.0), segment(9.0, 30.0)],
            ),
            (Arm::ByHand(20), vec![segment(1.0, 2.0), segment(4.0, 2.0)]),
            (Arm::Forebay, vec![segment(1.5, 1.0), segment(6.0, 1.0)]),
        ]);
        let rows = rows(&segments);
        let ratio = |arm: Arm| rows[&arm].p99_ratio;
        assert!((ratio(Arm::Uncontrolled) - 10.0).abs() < 1e-9);
        assert!((ratio(Arm::Forebay) - 1.5).abs() < 1e-9);
        let met: Vec<bool> = targets(&rows).iter().map(|target| target.met).collect();
        // Half of what 2 % by hand gave is too little.
        assert_eq!(met, [true, true, false]);
        assert!(table(&rows).contains("io.max by hand, 50%"));
    }
}
