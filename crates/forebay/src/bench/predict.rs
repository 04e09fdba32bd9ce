//! What foresight is worth: a load that rises again and again, planned for by forecasts and by
//! present use alone.
//!
//! The service gets one CPU in the valley and needs more than one at the top, beside batch work
//! that takes all it finds. A planner that only reacts gives more after a period in which requests
//! have queued; one that knows the pattern gives it before. What counts is the first second after
//! each rise. Both arms are the same daemon; one has `forecast = "off"`. They take turns, and each
//! has the same time before anything counts, in which the pattern can be learnt.

use std::path::Path;
use std::time::Duration;

use super::{Args, Target};
use crate::demo::print as output;
use crate::demo::{Error, Scene, Segment, Wave, interruption, spread};

/// Requests of 1 ms in a second: little in the valley; at the top more than one CPU serves beside
/// batch work, and less than two serve that share a core.
const RATE_LOW: u32 = 100;
const RATE_HIGH: u32 = 1000;
/// Rises before anything counts, and rises that count, in each segment.
const RISES_LEARNT: u32 = 6;
const RISES_MEASURED: u32 = 4;
/// p99 of the first second after a rise, with forecasts over without.
const RATIO_MAX: f64 = 0.5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    Reactive,
    Predictive,
}

const ARMS: [Arm; 2] = [Arm::Reactive, Arm::Predictive];

impl Arm {
    const fn name(self) -> &'static str {
        match self {
            Self::Reactive => "reactive only",
            Self::Predictive => "with forecasts",
        }
    }

    const fn policy(self) -> &'static str {
        match self {
            Self::Reactive => "forecast = \"off\"\n",
            Self::Predictive => "forecast = \"on\"\n",
        }
    }
}

/// All rises of one arm.
#[derive(Debug, Clone, serde::Serialize)]
struct Row {
    arm: &'static str,
    /// Median over rises of the p99 within the first second, and the range.
    rise_p99_ms: f64,
    rise_p99_least_ms: f64,
    rise_p99_most_ms: f64,
    rises: Vec<f64>,
    /// Medians over segments.
    p99_ms: f64,
    batch_work: f64,
    agent_percent_of_core: f64,
}

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    let interrupted = interruption()?;
    let scene = Scene::new(dir, &interrupted)?;
    // Rises are to begin with whole seconds, half a period after each period's start.
    let period = Duration::from_secs(args.seconds / 2 * 2);
    let wave = Wave {
        low: RATE_LOW,
        high: RATE_HIGH,
        period,
        warm_up: period * RISES_LEARNT,
    };
    let mut segments = [Vec::new(), Vec::new()];
    for repetition in 0..args.repetitions {
        for turn in 0..ARMS.len() {
            let at = (turn + usize::try_from(repetition).unwrap_or(0)) % ARMS.len();
            let arm = ARMS[at];
            let segment = scene.ride(arm.policy(), wave, period * RISES_MEASURED)?;
            output::line(format_args!(
                "{:>2}/{} {:<16} p99 of the first second after each rise, ms: {}",
                repetition + 1,
                args.repetitions,
                arm.name(),
                rises(&segment, period)
                    .map(|p99| format!("{p99:.2}"))
                    .collect::<Vec<_>>()
                    .join("  "),
            ));
            segments[at].push(segment);
        }
    }
    let rows: Vec<Row> = ARMS
        .iter()
        .zip(&segments)
        .map(|(arm, segments)| row(*arm, segments, period))
        .collect();
    output::line(format_args!(
        "\n{:<16}{:>30}{:>14}{:>14}{:>12}",
        "", "p99 after a rise, ms", "p99, ms", "batch, 1/s", "agent, %"
    ));
    for row in &rows {
        output::line(format_args!(
            "{:<16}{:>9.2} ({:>7.2} to {:>7.2}){:>14.2}{:>14.0}{:>12.2}",
            row.arm,
            row.rise_p99_ms,
            row.rise_p99_least_ms,
            row.rise_p99_most_ms,
            row.p99_ms,
            row.batch_work,
            row.agent_percent_of_core,
        ));
    }
    output::line(format_args!(""));
    let targets = vec![Target::at_most(
        "p99 after a rise, with forecasts / reactive only",
        rows[1].rise_p99_ms / rows[0].rise_p99_ms,
        RATIO_MAX,
        "",
    )];
    Ok((targets, serde_json::json!({ "arms": rows })))
}

/// The p99 of the first second after each rise that counts.
fn rises(segment: &Segment, period: Duration) -> impl Iterator<Item = f64> {
    let period = usize::try_from(period.as_secs()).unwrap_or(usize::MAX);
    let firsts = segment.seconds_p99_ms.iter().skip(period / 2);
    firsts.step_by(period).copied().flatten()
}

fn row(arm: Arm, segments: &[Segment], period: Duration) -> Row {
    let rises: Vec<f64> = segments.iter().flat_map(|s| rises(s, period)).collect();
    let (least, median, most) = spread(rises.iter().copied());
    let agent = |segment: &Segment| {
        let agent = segment.agent.as_ref();
        agent.map_or(f64::NAN, |agent| agent.cpu_percent_of_core)
    };
    Row {
        arm: arm.name(),
        rise_p99_ms: median,
        rise_p99_least_ms: least,
        rise_p99_most_ms: most,
        rises,
        p99_ms: spread(segments.iter().map(|s| s.p99_ms)).1,
        batch_work: spread(segments.iter().map(|s| s.batch_per_s)).1,
        agent_percent_of_core: spread(segments.iter().map(agent)).1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_is_half_a_period_after_the_start() {
        let seconds = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let segment = Segment {
            seconds_p99_ms: seconds.map(Some).to_vec(),
            ..Segment::default()
        };
        let found: Vec<f64> = rises(&segment, Duration::from_secs(4)).collect();
        assert_eq!(found, [3.0, 7.0]);
    }
}
