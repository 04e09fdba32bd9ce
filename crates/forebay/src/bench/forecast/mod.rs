//! Forecasts beside the rules of others, and what each member of the ensemble is worth.
//!
//! Rolling origins over recorded series (`--data`), or over series of known processes that are
//! made from a seed, so that anybody can run it. Every model sees every step once and answers at
//! each, for values and for the greatest until then. All steps from the first origin on are
//! judged; where a folder names origins, losses and coverage are those at these origins, as elsewhere.
//! Since 117 origins tell a coverage to 0.02 only, that of all steps stands beside it.
//!
//! Models see a series from its beginning and look back on 1440 steps of it; errors are remembered for
//! longer. The histogram is that of the autoscaler for CPU, decayed by half in a day, for memory too,
//! where the autoscaler would take daily peaks.
//!
//! Losses are ratios to that of the last value with the changes seen from it, as in `backtest`.

mod process;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use forebay_forecast::{Quantiles, Target};

use super::{Args, Target as Goal};
use crate::backtest::{
    Kind, Losses, Model, Scale, Score, Series, Setting, from_folder, thread_time, truth,
};
use crate::demo::Error;
use crate::demo::print as output;

/// Steps ahead, and steps that models look back on.
const HORIZONS: [usize; 3] = [1, 12, 60];
const HISTORY: usize = 1440;
/// Models that are compared. Some say nothing new beside others of their kind, and are left out.
const KINDS: [Kind; 12] = [
    Kind::Ensemble,
    Kind::WithoutArima,
    Kind::WithoutLstm,
    Kind::Mixture,
    Kind::Lstm,
    Kind::Arima,
    Kind::Series,
    Kind::Window,
    Kind::Smoothing,
    Kind::Seasonal,
    Kind::Histogram,
    Kind::MovingMax,
];
const TARGETS: [Target; 2] = [Target::Value, Target::Peak];
/// Series that are forecast at once, at most.
const WORKERS_MAX: usize = 16;
/// The place of the 0.95 bound among levels, and among what is covered.
const BOUND: usize = 2;
const COVERED: usize = 1;

/// Loss of the ensemble on values at 0.5 and at 0.95, by horizon.
const VALUES_MAX: [(f64, f64); HORIZONS.len()] = [(0.81, 0.70), (0.81, 0.81), (0.78, 0.88)];
/// Coverage of its 0.95 bound on values: the mean over series, and the series with the least.
const COVERAGE: (f64, f64, f64) = (0.94, 0.965, 0.90);
/// Loss of its 0.95 bound on the peaks of the longest horizon, over that of a rule of others.
const PEAKS_MAX: f64 = 0.65;
/// Processor time of a step with forecasts at all horizons, fits apart, in microseconds.
const MIXTURE_US_MAX: f64 = 15.0;
const ENSEMBLE_US_MAX: f64 = 100.0;

/// One model on one series.
#[derive(Debug, Clone)]
struct Run {
    /// By horizon. None where it was silent.
    scores: Vec<Option<Score>>,
    /// The same over all steps.
    everywhere: Vec<Option<Score>>,
    step_us: f64,
    fit_us: f64,
}

/// One model at one horizon over all series.
#[derive(Debug, Clone, serde::Serialize)]
struct Row {
    model: String,
    target: &'static str,
    horizon: usize,
    /// Series of which anything was judged.
    series: usize,
    /// Loss at 0.5, 0.9, 0.95 and 0.99 as a ratio to the last value with its changes: geometric
    /// means over series.
    relative: [f64; 4],
    /// At 0.9, 0.95 and 0.99: means over series.
    covered: [f64; 3],
    /// At 0.95, of the series with the least.
    worst_covered: f64,
    /// At 0.95, of all steps: the mean over series, and of the series with the least.
    covered_everywhere: f64,
    worst_covered_everywhere: f64,
    /// Processor time of one step, and of fits by step: means over series.
    step_us: f64,
    fit_us: f64,
}

/// Runs the comparison; exit status 1 when a target is missed.
///
/// # Errors
/// When a recording is not understood or the result is not written.
pub(super) fn run(args: &Args) -> Result<ExitCode, Error> {
    let all = match &args.data {
        Some(folder) => from_folder(folder, &setting()).map_err(|error| explained(&error))?,
        None => process::all(args.seed),
    };
    let runs = compare(&all);
    let rows = rows(&runs);
    print(&rows);
    let goals = goals(&rows, args.data.as_deref());
    let mut result = serde_json::json!({
        "series": all.iter().map(|series| &series.name).collect::<Vec<_>>(),
        "history": HISTORY,
        "rows": rows,
    });
    if args.data.is_none() {
        result["seed"] = args.seed.into();
    }
    super::conclude(args, &goals, result)
}

/// An error with its causes.
fn explained(error: &dyn std::error::Error) -> Error {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    Error::part("bench forecast", text)
}

/// What all series have in common.
fn setting() -> Setting {
    Setting {
        target: Target::Value,
        horizons: HORIZONS.to_vec(),
        history: HISTORY,
        period_seconds: None,
        reference: 1.0,
    }
}

/// What each model came to on each series: by series, then by target, then by model.
fn compare(all: &[Series]) -> Vec<Vec<Vec<Run>>> {
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Vec<Vec<Run>>>> = all.iter().map(|_| Mutex::default()).collect();
    let work = || {
        while let Some((series, place)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            all.get(at).zip(done.get(at))
        } {
            let runs = TARGETS.map(|target| on_one(series, target)).into();
            // Whoever panicked has said why already.
            *place.lock().unwrap_or_else(|broken| broken.into_inner()) = runs;
            output::progress(format_args!("{}", series.name));
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..workers.min(WORKERS_MAX) {
            scope.spawn(work);
        }
    });
    done.into_iter()
        .map(|place| {
            place
                .into_inner()
                .unwrap_or_else(|broken| broken.into_inner())
        })
        .collect()
}

fn on_one(series: &Series, target: Target) -> Vec<Run> {
    let setting = Setting {
        target,
        ..series.setting.clone()
    };
    let (reference, _) = answers(Kind::LastValue, series, &setting);
    let judge = |kind| {
        let (answers, spent) = answers(kind, series, &setting);
        let (scores, everywhere) = scores(series, target, &answers, &reference);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let steps = series.samples.len().max(1) as f64;
        Run {
            scores,
            everywhere,
            step_us: spent.0 / steps,
            fit_us: spent.1 / steps,
        }
    };
    KINDS.into_iter().map(judge).collect()
}

/// Answers from the first origin on, by step and horizon.
type Answers = Vec<[Option<Quantiles>; HORIZONS.len()]>;

/// What a model says, and the processor time of its steps and of its fits.
fn answers(kind: Kind, series: &Series, setting: &Setting) -> (Answers, (f64, f64)) {
    let mut model = Model::new(kind, setting);
    let mut said = Vec::with_capacity(series.samples.len() - series.first());
    let mut fitting = 0.0;
    let before = microseconds();
    for (step, sample) in series.samples.iter().enumerate() {
        model.update(sample);
        if model.wants_fit() {
            let before = microseconds();
            model.fit();
            fitting += microseconds() - before;
        }
        let answers = HORIZONS.map(|steps| model.answer(setting.target, steps));
        if step >= series.first() {
            said.push(answers);
        }
    }
    (said, (microseconds() - before - fitting, fitting))
}

/// Processor time of this thread.
fn microseconds() -> f64 {
    thread_time().as_secs_f64() * 1e6
}

/// By horizon: at the origins, and at all steps.
fn scores(
    series: &Series,
    target: Target,
    answers: &Answers,
    reference: &Answers,
) -> (Vec<Option<Score>>, Vec<Option<Score>>) {
    let scale = Scale::of(&series.samples, series.first() + 1);
    let end = series.samples.len();
    let of = |place: usize, only_origins: bool| {
        let mut losses = Losses::default();
        let pairs = answers.iter().zip(reference).zip(series.first()..);
        for ((answers, references), step) in pairs {
            if only_origins && !series.origins.contains(&step) {
                continue;
            }
            let known = truth(&series.samples, step, HORIZONS[place], target, end);
            if let (Some(truth), Some(reference)) = (known, references[place]) {
                losses.judge(answers[place], reference, truth, 0);
            }
        }
        losses.score(scale)
    };
    let all = 0..HORIZONS.len();
    (
        all.clone().map(|place| of(place, true)).collect(),
        all.map(|place| of(place, false)).collect(),
    )
}

/// By target, horizon and model.
fn rows(runs: &[Vec<Vec<Run>>]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (which, target) in TARGETS.into_iter().enumerate() {
        for place in 0..HORIZONS.len() {
            for (model, kind) in KINDS.into_iter().enumerate() {
                let all: Vec<&Run> = runs.iter().map(|one| &one[which][model]).collect();
                rows.extend(row(kind, target, place, &all));
            }
        }
    }
    rows
}

#[expect(clippy::cast_precision_loss, reason = "a number of series")]
fn row(kind: Kind, target: Target, place: usize, all: &[&Run]) -> Option<Row> {
    let mean = |numbers: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = numbers.fold((0.0, 0_usize), |(s, c), n| (s + n, c + 1));
        sum / count.max(1) as f64
    };
    let scores = || all.iter().filter_map(|run| run.scores[place].as_ref());
    let everywhere = || all.iter().filter_map(|run| run.everywhere[place].as_ref());
    let covered = |score: &Score| score.covered[COVERED];
    scores().next()?;
    Some(Row {
        model: kind.name(),
        target: match target {
            Target::Value => "value",
            Target::Peak => "peak",
        },
        horizon: HORIZONS[place],
        series: scores().count(),
        relative: std::array::from_fn(|i| mean(&mut scores().map(|s| s.relative[i].ln())).exp()),
        covered: std::array::from_fn(|i| mean(&mut scores().map(|score| score.covered[i]))),
        worst_covered: scores().map(covered).fold(1.0, f64::min),
        covered_everywhere: mean(&mut everywhere().map(covered)),
        worst_covered_everywhere: everywhere().map(covered).fold(1.0, f64::min),
        step_us: mean(&mut all.iter().map(|run| run.step_us)),
        fit_us: mean(&mut all.iter().map(|run| run.fit_us)),
    })
}

fn print(rows: &[Row]) {
    let mut above = None;
    for row in rows {
        if above != Some((row.target, row.horizon)) {
            above = Some((row.target, row.horizon));
            output::line(format_args!(
                "\n{:<24}{:>7}{:>8}{:>8}{:>8}{:>8}{:>10}{:>8}{:>8}{:>8}{:>10}{:>8}{:>9}{:>9}",
                format!("{}, {} steps", row.target, row.horizon),
                "series",
                "0.5",
                "0.9",
                "0.95",
                "0.99",
                "cover 0.9",
                "0.95",
                "0.99",
                "worst",
                "all steps",
                "worst",
                "step, us",
                "fits, us",
            ));
        }
        let [a, b, c, d] = row.relative;
        let [x, y, z] = row.covered;
        output::line(format_args!(
            "{:<24}{:>7}{a:>8.3}{b:>8.3}{c:>8.3}{d:>8.3}{x:>10.3}{y:>8.3}{z:>8.3}{:>8.3}{:>10.3}{:>8.3}{:>9.2}{:>9.1}",
            row.model,
            row.series,
            row.worst_covered,
            row.covered_everywhere,
            row.worst_covered_everywhere,
            row.step_us,
            row.fit_us,
        ));
    }
    output::line(format_args!(""));
}

/// What was aimed at. Losses on made series have no target of their own: they are as hard as
/// somebody chose to make them.
fn goals(rows: &[Row], data: Option<&Path>) -> Vec<Goal> {
    let find = |kind: Kind, target: &str, place: usize| {
        let is_it = |row: &&Row| {
            row.model == kind.name() && row.target == target && row.horizon == HORIZONS[place]
        };
        rows.iter().find(is_it)
    };
    let of = |row: Option<&Row>, figure: &dyn Fn(&Row) -> f64| row.map_or(f64::NAN, figure);
    let mut goals = Vec::new();
    for place in 0..HORIZONS.len() {
        let row = find(Kind::Ensemble, "value", place);
        if data.is_some() {
            let (median, bound) = VALUES_MAX[place];
            let [at_median, at_bound] = LOSS_NAMES[place];
            goals.push(Goal::at_most(
                at_median,
                of(row, &|r| r.relative[0]),
                median,
                "",
            ));
            goals.push(Goal::at_most(
                at_bound,
                of(row, &|r| r.relative[BOUND]),
                bound,
                "",
            ));
        }
        let [least, most, worst] = COVERAGE_NAMES[place];
        let covered = of(row, &|r| r.covered[COVERED]);
        goals.push(Goal::at_least(least, covered, COVERAGE.0, ""));
        goals.push(Goal::at_most(most, covered, COVERAGE.1, ""));
        goals.push(Goal::at_least(
            worst,
            of(row, &|r| r.worst_covered),
            COVERAGE.2,
            "",
        ));
    }
    let far = HORIZONS.len() - 1;
    let ours = find(Kind::Ensemble, "peak", far);
    for (kind, [loss, cover]) in [
        (
            Kind::Histogram,
            [
                "peaks, 60: loss at 0.95 / histogram",
                "peaks, 60: coverage - histogram",
            ],
        ),
        (
            Kind::MovingMax,
            [
                "peaks, 60: loss at 0.95 / maximum",
                "peaks, 60: coverage - maximum",
            ],
        ),
    ] {
        let other = find(kind, "peak", far);
        let ratio = of(ours, &|r| r.relative[BOUND]) / of(other, &|r| r.relative[BOUND]);
        let apart = of(ours, &|r| r.covered[COVERED]) - of(other, &|r| r.covered[COVERED]);
        goals.push(Goal::at_most(loss, ratio, PEAKS_MAX, ""));
        goals.push(Goal::at_least(cover, apart, 0.0, ""));
    }
    let cost = |kind| of(find(kind, "value", 0), &|row| row.step_us);
    goals.push(Goal::at_most(
        "a step of the mixture",
        cost(Kind::Mixture),
        MIXTURE_US_MAX,
        "us",
    ));
    goals.push(Goal::at_most(
        "a step of the ensemble",
        cost(Kind::Ensemble),
        ENSEMBLE_US_MAX,
        "us",
    ));
    goals
}

/// By horizon: at 0.5 and at 0.95.
const LOSS_NAMES: [[&str; 2]; HORIZONS.len()] = [
    ["values, 1: loss at 0.5", "values, 1: loss at 0.95"],
    ["values, 12: loss at 0.5", "values, 12: loss at 0.95"],
    ["values, 60: loss at 0.5", "values, 60: loss at 0.95"],
];
/// By horizon: the mean, from below and from above, and the least.
const COVERAGE_NAMES: [[&str; 3]; HORIZONS.len()] = [
    [
        "values, 1: coverage of 0.95",
        "values, 1: coverage of 0.95 ",
        "values, 1: worst series",
    ],
    [
        "values, 12: coverage of 0.95",
        "values, 12: coverage of 0.95 ",
        "values, 12: worst series",
    ],
    [
        "values, 60: coverage of 0.95",
        "values, 60: coverage of 0.95 ",
        "values, 60: worst series",
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    fn short(seed: u64) -> Vec<Series> {
        let mut all = process::all(seed);
        all.truncate(2);
        for series in &mut all {
            series.samples = series.samples.iter().take(700).collect();
            series.origins = (400..640).step_by(10).collect();
        }
        all
    }

    #[test]
    fn the_same_seed_gives_the_same_losses() {
        let losses = |seed| -> Vec<[f64; 4]> {
            let rows = rows(&compare(&short(seed)));
            rows.iter().map(|row| row.relative).collect()
        };
        let one = losses(1);
        assert_eq!(one, losses(1));
        assert_ne!(one, losses(2));
    }

    #[test]
    fn origins_and_all_steps_are_judged_apart() {
        let series = short(3).remove(0);
        let setting = series.setting.clone();
        let (reference, _) = answers(Kind::LastValue, &series, &setting);
        let (scores, everywhere) = scores(&series, Target::Value, &reference, &reference);
        let judged = |score: &Option<Score>| score.as_ref().map_or(0, |score| score.judged);
        assert_eq!(scores.iter().map(judged).collect::<Vec<_>>(), [24, 24, 24]);
        assert_eq!(
            everywhere.iter().map(judged).collect::<Vec<_>>(),
            [299, 288, 240]
        );
        for score in scores.iter().chain(&everywhere).flatten() {
            assert!(
                score
                    .relative
                    .iter()
                    .all(|ratio| (ratio - 1.0).abs() < 1e-12)
            );
        }
    }

    #[test]
    fn a_target_that_is_not_a_number_is_missed() {
        let goals = goals(&[], None);
        assert!(goals.iter().all(|goal| !goal.met), "{goals:?}");
    }
}
