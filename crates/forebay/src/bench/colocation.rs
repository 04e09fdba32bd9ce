//! A critical service beside batch work, against what one could set by hand.
//!
//! All arms take turns within each repetition, in an order that rotates, so that a slow
//! spell of the machine falls on all. The best hand-tuned split is the static arm with most
//! batch work among those whose p99 is within the target; Forebay is held against it.

use std::path::Path;
use std::time::Duration;

use super::{Args, Target};
use crate::demo::print as output;
use crate::demo::{Arm, ArmRow, Error, Scene, Summary, interruption};

const ARMS: [Arm; 7] = [
    Arm::Alone,
    Arm::Uncontrolled,
    Arm::Weights,
    Arm::Idle,
    Arm::CpuSet,
    Arm::Precedence,
    Arm::Forebay,
];
const STATIC: [Arm; 4] = [Arm::Weights, Arm::Idle, Arm::CpuSet, Arm::Precedence];

/// p99 with Forebay over p99 alone.
const P99_RATIO_MAX: f64 = 1.5;
/// p99 uncontrolled over p99 alone: below this there was nothing to protect from.
const UNCONTROLLED_RATIO_MIN: f64 = 5.0;
/// Batch work with Forebay over batch work of the best hand-tuned split.
const BATCH_RATIO_MIN: f64 = 0.7;

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    let interrupted = interruption()?;
    let scene = Scene::new(dir, &interrupted)?;
    let mut summary = Summary::default();
    for repetition in 0..args.repetitions {
        let first = usize::try_from(repetition).unwrap_or(0) % ARMS.len();
        for arm in ARMS.iter().cycle().skip(first).take(ARMS.len()) {
            let segment = scene.run(*arm, Duration::from_secs(args.seconds))?;
            output::line(format_args!(
                "{:>2}/{} {:<24} p99 {:>8.2} ms  batch {:>8.0}/s  {:>5.0} MiB/s",
                repetition + 1,
                args.repetitions,
                arm.name(),
                segment.p99_ms,
                segment.batch_per_s,
                segment.churn_mib_per_s,
            ));
            summary.add(*arm, segment);
        }
    }
    output::line(format_args!("\n{}", summary.table()));
    Ok((targets(&summary), summary.json()))
}

fn targets(summary: &Summary) -> Vec<Target> {
    let rows = summary.rows();
    let row = |arm: Arm| {
        rows.iter()
            .find(|(other, _)| *other == arm)
            .map(|(_, row)| row)
            .expect("every arm ran in every repetition")
    };
    let alone = row(Arm::Alone).p99_ms;
    let limit = alone * P99_RATIO_MAX;
    let by_hand: Option<&ArmRow> = STATIC
        .iter()
        .map(|arm| row(*arm))
        .filter(|row| row.p99_ms <= limit)
        .max_by(|a, b| a.batch_work.total_cmp(&b.batch_work));
    let mut targets = vec![
        Target::at_least(
            "p99 uncontrolled / alone",
            row(Arm::Uncontrolled).p99_ms / alone,
            UNCONTROLLED_RATIO_MIN,
            "",
        ),
        Target::at_most(
            "p99 Forebay / alone",
            row(Arm::Forebay).p99_ms / alone,
            P99_RATIO_MAX,
            "",
        ),
    ];
    if let Some(by_hand) = by_hand {
        output::line(format_args!("Best hand-tuned split: {}", by_hand.name));
        targets.push(Target::at_least(
            "batch work Forebay / best hand-tuned split",
            row(Arm::Forebay).batch_work / by_hand.batch_work,
            BATCH_RATIO_MIN,
            "",
        ));
    } else {
        output::line(format_args!("No hand-tuned split met the p99 target."));
    }
    targets
}
