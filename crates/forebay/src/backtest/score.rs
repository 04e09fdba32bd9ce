//! How good forecasts were.
//!
//! # Approach
//!
//! Each forecast is judged when what it was about is known: by pinball loss at each level (the
//! loss that the true quantile minimises), by whether the bound covered the truth, and by the
//! absolute error of the median. The median's error is put into proportion to the mean change
//! from one step to the next before anything was judged (MASE), the losses to those of the last
//! value with the changes seen from it, on the same origins. A model that was silent at an origin
//! is not judged there; how often that was is counted.
//!
//! Sources: Koenker and Bassett, "Regression quantiles", 1978 (pinball loss); Hyndman and
//! Koehler, "Another look at measures of forecast accuracy", 2006 (MASE).

use forebay_forecast::{Quantiles, Target, pinball};
use serde::Serialize;

use super::csv::Samples;

/// Levels of a forecast.
pub(crate) const LEVELS: [f64; 4] = [0.5, 0.9, 0.95, 0.99];
/// Parts of the judged time of which the worst is told.
pub(crate) const PARTS: usize = 10;
/// Bounds are partly kept in single precision: what is above one by less is covered.
const ROUNDING: f64 = 1e-7;

/// What came `steps` steps after an origin: the value, or the greatest up to there. None where it
/// was not seen, or more than a quarter of the steps to a peak were not, and from `end` on.
pub(crate) fn truth(
    samples: &Samples,
    origin: usize,
    steps: usize,
    target: Target,
    end: usize,
) -> Option<f64> {
    let last = origin.checked_add(steps).filter(|&last| last < end)?;
    match target {
        Target::Value => samples.get(last),
        Target::Peak => {
            let seen = || (origin + 1..=last).filter_map(|step| samples.get(step));
            let missing = steps - seen().count();
            (missing * 4 <= steps)
                .then(|| seen().reduce(f64::max))
                .flatten()
        }
    }
}

/// What losses are put into proportion to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    /// Mean change from one step to the next before anything is judged, or a ten-thousandth of
    /// the mean where that is more.
    change: f64,
    /// Added to both sides of a ratio, so that two that lose nothing are equal.
    small: f64,
}

impl Scale {
    /// Of a series whose first `unjudged` steps are only for warming up.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of steps are far below 2^52"
    )]
    pub(crate) fn of(samples: &Samples, unjudged: usize) -> Self {
        let mean = |numbers: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = numbers.fold((0.0, 0_usize), |(sum, count), n| (sum + n, count + 1));
            if count == 0 { 0.0 } else { sum / count as f64 }
        };
        let changes = |end: usize| {
            (1..end.min(samples.len()))
                .filter_map(|step| Some((samples.get(step)? - samples.get(step - 1)?).abs()))
        };
        let level = mean(&mut samples.iter().flatten());
        Self {
            change: mean(&mut changes(unjudged)).max(1e-4 * level),
            small: 1e-3 * mean(&mut changes(samples.len())) + 1e-9 * level + f64::MIN_POSITIVE,
        }
    }
}

/// Sums over judged forecasts of one model at one horizon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Losses {
    silent: u64,
    judged: u64,
    absolute: f64,
    pinball: [f64; 4],
    /// Of the reference, on the same origins.
    reference: [f64; 4],
    covered: [u64; 4],
    /// (covered at 0.95, judged) of each part of the judged time.
    parts: [(u64, u64); PARTS],
}

impl Losses {
    /// One more origin, in one of [`PARTS`] parts of the time.
    pub(crate) fn judge(
        &mut self,
        answer: Option<Quantiles>,
        reference: Quantiles,
        truth: f64,
        part: usize,
    ) {
        let Some(answer) = answer.map(Quantiles::to_array) else {
            self.silent += 1;
            return;
        };
        let reference = reference.to_array();
        self.judged += 1;
        self.absolute += (truth - answer[0]).abs();
        for (i, level) in LEVELS.into_iter().enumerate() {
            self.pinball[i] += pinball(truth, answer[i], level);
            self.reference[i] += pinball(truth, reference[i], level);
            self.covered[i] += u64::from(truth <= answer[i] + ROUNDING * truth);
        }
        let (covered, judged) = &mut self.parts[part.min(PARTS - 1)];
        *covered += u64::from(truth <= answer[2] + ROUNDING * truth);
        *judged += 1;
    }

    /// What it comes to. None if nothing was judged.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(crate) fn score(&self, scale: Scale) -> Option<Score> {
        if self.judged == 0 {
            return None;
        }
        let count = self.judged as f64;
        let ratio = |i: usize| {
            (self.pinball[i] / count + scale.small) / (self.reference[i] / count + scale.small)
        };
        let parts = self.parts.iter().filter(|(_, judged)| *judged > 0);
        Some(Score {
            judged: self.judged,
            silent: self.silent,
            mase: (scale.change > 0.0).then_some(self.absolute / count / scale.change),
            pinball: self.pinball.map(|sum| sum / count),
            relative: std::array::from_fn(ratio),
            covered: [1, 2, 3].map(|i| self.covered[i] as f64 / count),
            worst_covered: parts
                .map(|&(covered, judged)| covered as f64 / judged as f64)
                .fold(1.0, f64::min),
        })
    }
}

/// How good the forecasts of one model at one horizon were.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Score {
    /// Origins that were judged.
    pub(crate) judged: u64,
    /// Origins at which the model was silent.
    pub(crate) silent: u64,
    /// Mean absolute error of the median in mean changes of one step. None for a series of
    /// nothing but zeros.
    pub(crate) mase: Option<f64>,
    /// Mean pinball loss at each level, in the unit of the series.
    pub(crate) pinball: [f64; 4],
    /// The same as a ratio to that of the last value with its changes.
    pub(crate) relative: [f64; 4],
    /// Share of truths that were at most the bound, at 0.9, 0.95 and 0.99.
    pub(crate) covered: [f64; 3],
    /// At 0.95, in the worst tenth of the judged time.
    pub(crate) worst_covered: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-6 * b.abs()
    }

    #[test]
    fn pinball_is_what_the_level_says() {
        let check = |truth, quantile, level, loss| {
            assert!(near(pinball(truth, quantile, level), loss));
        };
        check(10.0, 8.0, 0.95, 1.9);
        check(8.0, 10.0, 0.95, 0.1);
        check(8.0, 8.0, 0.95, 0.0);
        check(10.0, 8.0, 0.5, 1.0);
        check(0.0, 100.0, 0.99, 1.0);
    }

    #[test]
    fn scores_are_those_counted_by_hand() {
        let samples: Samples = [1.0, 3.0, 2.0, 2.0, 5.0].map(Some).into_iter().collect();
        let scale = Scale::of(&samples, 3);
        assert!(near(scale.change, 1.5), "{scale:?}");
        let quantiles = |levels| Quantiles::new(levels).unwrap();
        let mut losses = Losses::default();
        assert_eq!(losses.score(scale), None);
        let reference = quantiles([2.0, 4.0, 4.0, 4.0]);
        losses.judge(Some(quantiles([1.0, 2.0, 3.0, 4.0])), reference, 2.0, 0);
        losses.judge(Some(quantiles([2.0, 3.0, 4.0, 5.0])), reference, 5.0, 9);
        losses.judge(None, reference, 5.0, 9);
        let score = losses.score(scale).unwrap();
        assert_eq!((score.judged, score.silent), (2, 1));
        // |2 - 1| and |5 - 2|, over 1.5.
        assert!(near(score.mase.unwrap(), 4.0 / 2.0 / 1.5));
        // At 0.5: 0.5 and 1.5; at 0.9: 0 and 1.8; at 0.95: 0.05 and 0.95; at 0.99: 0.02 and 0.
        for (loss, expected) in score.pinball.into_iter().zip([1.0, 0.9, 0.5, 0.01]) {
            assert!(near(loss, expected), "{score:?}");
        }
        // The reference at 0.95: 0.1 and 0.95.
        assert!((score.relative[2] - 0.5 / 0.525).abs() < 1e-3, "{score:?}");
        assert_eq!(score.covered, [0.5, 0.5, 1.0]);
        assert_eq!(score.worst_covered, 0.0);
    }

    #[test]
    fn two_that_lose_nothing_are_equal() {
        for value in [0.0, 7.0] {
            let samples: Samples = [Some(value); 20].into_iter().collect();
            let scale = Scale::of(&samples, 10);
            let same = Quantiles::new([value; 4]).unwrap();
            let mut losses = Losses::default();
            losses.judge(Some(same), same, value, 0);
            let score = losses.score(scale).unwrap();
            assert_eq!(score.relative, [1.0; 4]);
            assert_eq!(score.covered, [1.0; 3]);
            assert_eq!(score.mase, (value > 0.0).then_some(0.0));
        }
    }

    #[test]
    fn truths_are_those_that_were_seen() {
        let samples: Samples = [1.0, 5.0, -1.0, 2.0, 3.0, -1.0, -1.0]
            .map(|value| (value > 0.0).then_some(value))
            .into_iter()
            .collect();
        let check = |origin, steps, target, expected: Option<f64>| {
            assert_eq!(
                truth(&samples, origin, steps, target, 7),
                expected,
                "{origin} {steps}"
            );
        };
        check(0, 1, Target::Value, Some(5.0));
        check(0, 2, Target::Value, None);
        check(0, 3, Target::Value, Some(2.0));
        check(0, 4, Target::Peak, Some(5.0));
        check(1, 3, Target::Peak, None);
        check(2, 2, Target::Peak, Some(3.0));
        check(0, 7, Target::Peak, None);
        check(0, usize::MAX, Target::Value, None);
        assert_eq!(truth(&samples, 0, 3, Target::Value, 3), None);
    }
}
