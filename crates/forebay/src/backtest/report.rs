//! What a comparison came to: a table for people, JSON for programs.

use std::path::Path;

use forebay_forecast::Target;
use serde::Serialize;

use super::csv::{Counts, Recording};
use super::models::{Kind, Setting};
use super::replay::Result;
use super::score::Score;
use crate::demo::spread;
use crate::output::{numbers, table, words};

/// All of a comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    target: &'static str,
    /// Steps ahead.
    horizons: Vec<usize>,
    /// Steps that models looked back on.
    history: usize,
    files: Vec<FileReport>,
    /// Over all series. Empty for a single one.
    together: Vec<Together>,
}

/// One recorded series.
#[derive(Debug, Serialize)]
pub(crate) struct FileReport {
    file: String,
    #[serde(flatten)]
    counts: Counts,
    steps: usize,
    /// Between two samples.
    period_seconds: Option<f64>,
    /// The period that the clock suggests.
    cycle_steps: Option<usize>,
    warm_up_steps: usize,
    /// After more was missing than models remember.
    new_starts: usize,
    /// By model, then by horizon.
    pub(crate) scores: Vec<ModelScore>,
}

/// One model at one horizon.
#[derive(Debug, Serialize)]
pub(crate) struct ModelScore {
    model: Kind,
    horizon: usize,
    /// Processor time of one step, with the forecasts at all horizons, and of fits by step.
    step_us: f64,
    fit_us: f64,
    /// None where nothing was judged.
    #[serde(flatten)]
    pub(crate) score: Option<Score>,
}

/// One model at one horizon over several series.
#[derive(Debug, Serialize)]
struct Together {
    model: Kind,
    horizon: usize,
    /// Series of which anything was judged.
    series: usize,
    /// Means over series.
    step_us: f64,
    fit_us: f64,
    #[serde(flatten)]
    score: Option<Summary>,
}

#[derive(Debug, Serialize)]
struct Summary {
    /// Median over series.
    mase: Option<f64>,
    /// Geometric means over series.
    relative: [f64; 4],
    /// Means over series.
    covered: [f64; 3],
    /// At 0.95, of the series with the least.
    worst_covered: f64,
}

impl FileReport {
    pub(crate) fn new(
        file: &Path,
        recording: &Recording,
        setting: &Setting,
        warm_up_steps: usize,
        results: &[Result],
    ) -> Self {
        let scores = results.iter().flat_map(|result| {
            let by_horizon = setting.horizons.iter().zip(&result.scores);
            by_horizon.map(|(&horizon, score)| ModelScore {
                model: result.kind,
                horizon,
                step_us: result.step_us,
                fit_us: result.fit_us,
                score: score.clone(),
            })
        });
        Self {
            file: file.display().to_string(),
            counts: recording.counts,
            steps: recording.samples.len(),
            period_seconds: recording.period_seconds,
            cycle_steps: setting.cycle(),
            warm_up_steps,
            new_starts: recording.restarts.len(),
            scores: scores.collect(),
        }
    }

    /// What was read and what was not, in one line.
    fn line(&self) -> String {
        let mut line = format!("{}: {} rows", self.file, self.counts.rows);
        if let Some(period) = self.period_seconds {
            line += &format!(", one every {} s", (period * 1e3).round() / 1e3);
        }
        if let Some(cycle) = self.cycle_steps {
            line += &format!(", cycle of {cycle} steps");
        }
        let counted = [
            (self.counts.empty, "without a value"),
            (self.counts.not_finite, "not finite and left out"),
            (
                self.counts.repeated,
                "replaced by a later one of the same time",
            ),
            (self.counts.absent, "missing"),
            (
                u64::try_from(self.new_starts).unwrap_or(u64::MAX),
                "new starts after long gaps",
            ),
        ];
        for (count, what) in counted {
            if count > 0 {
                line += &format!(", {count} {what}");
            }
        }
        line + "\n"
    }
}

impl Report {
    pub(crate) fn new(
        target: Target,
        horizons: Vec<usize>,
        history: usize,
        files: Vec<FileReport>,
    ) -> Self {
        let together = match files.as_slice() {
            [] | [_] => Vec::new(),
            [first, ..] => (0..first.scores.len())
                .map(|i| Together::of(&files, i))
                .collect(),
        };
        Self {
            target: match target {
                Target::Value => "value",
                Target::Peak => "peak",
            },
            horizons,
            history,
            files,
            together,
        }
    }
}

impl Together {
    /// Of the score with this place in every file: models and horizons are the same in all.
    #[expect(clippy::cast_precision_loss, reason = "a number of files")]
    fn of(files: &[FileReport], place: usize) -> Self {
        let all: Vec<&ModelScore> = files.iter().map(|file| &file.scores[place]).collect();
        let scores: Vec<&Score> = all.iter().filter_map(|one| one.score.as_ref()).collect();
        let count = scores.len() as f64;
        let mean = |of: &dyn Fn(&Score) -> f64| scores.iter().map(|&s| of(s)).sum::<f64>() / count;
        let score = (!scores.is_empty()).then(|| Summary {
            mase: median(scores.iter().filter_map(|score| score.mase).collect()),
            relative: std::array::from_fn(|i| mean(&|score| score.relative[i].ln()).exp()),
            covered: std::array::from_fn(|i| mean(&|score| score.covered[i])),
            worst_covered: scores.iter().map(|s| s.covered[1]).fold(1.0, f64::min),
        });
        Self {
            model: all[0].model,
            horizon: all[0].horizon,
            series: scores.len(),
            step_us: all.iter().map(|one| one.step_us).sum::<f64>() / all.len() as f64,
            fit_us: all.iter().map(|one| one.fit_us).sum::<f64>() / all.len() as f64,
            score,
        }
    }
}

fn median(numbers: Vec<f64>) -> Option<f64> {
    (!numbers.is_empty()).then(|| spread(numbers.into_iter()).1)
}

/// The table: horizon by horizon, the least loss at 0.95 first.
pub(crate) fn text(report: &Report) -> String {
    let mut text: String = report.files.iter().map(FileReport::line).collect();
    text.push('\n');
    text += &match report.files.as_slice() {
        [one] => of_one(one, report.target),
        _ => of_several(&report.together, report.target),
    };
    text += "\npinball loss by level; to last: as a ratio to the last value with the changes seen from it; \
             covered: truths within\nthe bound; MASE: error of the median in mean changes of one step; \
             us: processor time of one step\n";
    text
}

fn of_one(file: &FileReport, target: &str) -> String {
    let mut scores: Vec<&ModelScore> = file.scores.iter().collect();
    let loss = |one: &ModelScore| one.score.as_ref().map_or(f64::INFINITY, |s| s.pinball[2]);
    scores.sort_by(|a, b| (a.horizon.cmp(&b.horizon)).then(loss(a).total_cmp(&loss(b))));
    let columns = [
        words("MODEL"),
        numbers("STEPS"),
        numbers("JUDGED"),
        numbers("MASE"),
        numbers("PINBALL .5"),
        numbers(".9"),
        numbers(".95"),
        numbers(".99"),
        numbers("TO LAST .5"),
        numbers(".9"),
        numbers(".95"),
        numbers(".99"),
        numbers("COVERED .9"),
        numbers(".95"),
        numbers(".99"),
        numbers("WORST TENTH"),
        numbers("us"),
        numbers("FITS, us"),
    ];
    let row = |one: &&ModelScore| {
        let score = one.score.as_ref();
        let mase = score.and_then(|s| s.mase);
        let pinball = |i: usize| cell(score.map(|s| s.pinball[i]), significant);
        let relative = |i: usize| cell(score.map(|s| s.relative[i]), ratio);
        let covered = |i: usize| cell(score.map(|s| s.covered[i]), share);
        [
            one.model.name(),
            one.horizon.to_string(),
            score.map_or(0, |s| s.judged).to_string(),
            cell(mase, significant),
            pinball(0),
            pinball(1),
            pinball(2),
            pinball(3),
            relative(0),
            relative(1),
            relative(2),
            relative(3),
            covered(0),
            covered(1),
            covered(2),
            cell(score.map(|s| s.worst_covered), share),
            significant(one.step_us),
            significant(one.fit_us),
        ]
    };
    let rows: Vec<_> = scores.iter().map(row).collect();
    let about = about(target);
    format!(
        "{about}, from step {} on\n{}",
        file.warm_up_steps,
        table(columns, &rows)
    )
}

fn of_several(together: &[Together], target: &str) -> String {
    let mut scores: Vec<&Together> = together.iter().collect();
    let loss = |one: &Together| one.score.as_ref().map_or(f64::INFINITY, |s| s.relative[2]);
    scores.sort_by(|a, b| (a.horizon.cmp(&b.horizon)).then(loss(a).total_cmp(&loss(b))));
    let columns = [
        words("MODEL"),
        numbers("STEPS"),
        numbers("SERIES"),
        numbers("MASE"),
        numbers("TO LAST .5"),
        numbers(".9"),
        numbers(".95"),
        numbers(".99"),
        numbers("COVERED .9"),
        numbers(".95"),
        numbers(".99"),
        numbers("WORST SERIES"),
        numbers("us"),
        numbers("FITS, us"),
    ];
    let row = |one: &&Together| {
        let score = one.score.as_ref();
        let relative = |i: usize| cell(score.map(|s| s.relative[i]), ratio);
        let covered = |i: usize| cell(score.map(|s| s.covered[i]), share);
        [
            one.model.name(),
            one.horizon.to_string(),
            one.series.to_string(),
            cell(score.and_then(|s| s.mase), significant),
            relative(0),
            relative(1),
            relative(2),
            relative(3),
            covered(0),
            covered(1),
            covered(2),
            cell(score.map(|s| s.worst_covered), share),
            significant(one.step_us),
            significant(one.fit_us),
        ]
    };
    let rows: Vec<_> = scores.iter().map(row).collect();
    let about = about(target);
    format!(
        "{about}; geometric means of ratios, means of coverage, median of MASE\n{}",
        table(columns, &rows)
    )
}

fn about(target: &str) -> &'static str {
    match target {
        "peak" => "greatest value within so many steps",
        _ => "value so many steps ahead",
    }
}

fn cell(number: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    number.map_or_else(|| "-".to_owned(), shown)
}

fn ratio(number: f64) -> String {
    format!("{number:.2}")
}

fn share(number: f64) -> String {
    format!("{number:.3}")
}

/// A number to three digits or more, without a needless tail.
pub(super) fn significant(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e7).contains(&size) => format!("{number:.2e}"),
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 => format!("{number:.2}"),
        size if size >= 0.1 => format!("{number:.3}"),
        size if size >= 0.01 => format!("{number:.4}"),
        _ => format!("{number:.5}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(relative: Option<f64>) -> FileReport {
        let score = relative.map(|relative| Score {
            judged: 10,
            silent: 0,
            mase: Some(relative),
            pinball: [0.5, 0.25, 123_456.0, 0.0],
            relative: [relative; 4],
            covered: [relative / 10.0; 3],
            worst_covered: 0.5,
        });
        let scores = [Kind::Mixture, Kind::MovingMax].map(|model| ModelScore {
            model,
            horizon: 12,
            step_us: 3.0,
            fit_us: 0.0,
            score: score.clone(),
        });
        FileReport {
            file: "web.csv".to_owned(),
            counts: Counts {
                rows: 100,
                absent: 3,
                ..Counts::default()
            },
            steps: 103,
            period_seconds: Some(300.0),
            cycle_steps: None,
            warm_up_steps: 41,
            new_starts: 1,
            scores: scores.into(),
        }
    }

    #[test]
    fn one_series_is_shown_with_its_losses() {
        let report = Report::new(Target::Value, vec![12], 1440, vec![file(Some(0.8))]);
        let shown = text(&report);
        let head = "web.csv: 100 rows, one every 300 s, 3 missing, 1 new starts after long gaps\n";
        assert!(shown.starts_with(head), "{shown}");
        let row = shown
            .lines()
            .find(|line| line.starts_with("mixture"))
            .unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        let expected = "mixture 12 10 0.800 0.500 0.250 123456 0 0.80 0.80 0.80 0.80 0.080 0.080 0.080 0.500 3.00 0";
        assert_eq!(cells.join(" "), expected);
        assert!(report.together.is_empty());
    }

    #[test]
    fn several_series_are_shown_by_means() {
        let files = vec![file(Some(0.5)), file(Some(2.0)), file(None)];
        let report = Report::new(Target::Peak, vec![12], 1440, files);
        let shown = text(&report);
        let row = shown
            .lines()
            .find(|line| line.starts_with("moving-max"))
            .unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        let expected = "moving-max 12 2 1.25 1.00 1.00 1.00 1.00 0.125 0.125 0.125 0.050 3.00 0";
        assert_eq!(cells.join(" "), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["together"][1]["model"], "moving-max");
        assert_eq!(json["files"][2]["scores"][0]["horizon"], 12);
        assert!(json["files"][2]["scores"][0].get("judged").is_none());
    }

    #[test]
    fn what_nobody_judged_is_a_dash() {
        let report = Report::new(Target::Peak, vec![12], 1440, vec![file(None), file(None)]);
        let shown = text(&report);
        let row = shown
            .lines()
            .find(|line| line.starts_with("mixture"))
            .unwrap();
        assert!(
            row.split_whitespace()
                .skip(3)
                .take(9)
                .all(|cell| cell == "-"),
            "{row}"
        );
    }

    #[test]
    fn numbers_are_as_long_as_they_have_to_be() {
        for (number, shown) in [
            (0.0, "0"),
            (12.345, "12.3"),
            (1234.5, "1234"),
            (-0.25, "-0.250"),
            (0.001_234, "0.00123"),
            (1e-9, "1.00e-9"),
            (2.5e12, "2.50e12"),
        ] {
            assert_eq!(significant(number), shown);
        }
    }
}
