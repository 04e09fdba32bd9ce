//! The decayed histogram of the Kubernetes Vertical Pod Autoscaler.
//!
//! # Problem
//!
//! What an application asked for on most of its days is to be known in a small fixed memory.
//!
//! # Approach
//!
//! Buckets that grow by 5 % each, the first as wide as a thousandth of a reference; a sample
//! adds weight to its bucket, and the weight of all that was before halves with every
//! half-life. A quantile is the upper end of the bucket in which the level is reached. It is
//! the answer at every horizon, for values and peaks alike: the rule knows no horizon.
//!
//! The autoscaler keeps such a histogram of CPU samples; for memory it keeps one of daily
//! peaks, which this is not.
//!
//! # Properties
//!
//! - A quantile is at most 5 % and a thousandth of the reference above the sample that it is
//!   about, and never below it, as long as that is at most 10,000,000 times the reference.
//! - 4 KiB, whatever the past.
//!
//! Source: Kubernetes autoscaler, "Vertical Pod Autoscaler: recommender" (exponential buckets,
//! ratio 1.05, half-life 24 h).

use crate::{Forecaster, Quantiles, Target, is_plausible};

/// How much wider a bucket is than the one below it.
const RATIO: f64 = 1.05;
/// Width of the first bucket as a share of the reference.
const FIRST: f64 = 1e-3;
/// Buckets: the last one begins at 10,000,000 times the reference.
const BUCKETS: usize = 420;
/// Weight of a sample at which all weights are made smaller.
const WEIGHT_MAX: f64 = 1e100;

/// What a histogram is told when it begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HistogramOptions {
    /// A value that is great for the series, in its unit: what it was scaled for. One that is
    /// not plausible, or 0, is taken for 1.
    pub reference: f64,
    /// Steps after which a sample counts half, at least 1.
    pub half_life: f64,
}

/// The decayed histogram of the Kubernetes Vertical Pod Autoscaler.
#[derive(Clone, Debug)]
pub struct Histogram {
    weights: Box<[f64]>,
    total: f64,
    /// Weight of the next sample.
    weight: f64,
    growth: f64,
    first: f64,
}

impl Histogram {
    /// Values in `options` beyond their bounds are taken for the bound.
    #[must_use]
    pub fn new(options: HistogramOptions) -> Self {
        let usable = is_plausible(options.reference) && options.reference > 0.0;
        let reference = if usable { options.reference } else { 1.0 };
        Self {
            weights: vec![0.0; BUCKETS].into_boxed_slice(),
            total: 0.0,
            weight: 1.0,
            // A half-life that is not a number counts as 1.
            growth: (1.0 / options.half_life.max(1.0)).exp2(),
            first: reference * FIRST,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "held between 0 and the number of buckets"
    )]
    fn bucket(&self, value: f64) -> usize {
        let place = (value / self.first * (RATIO - 1.0) + 1.0).ln() / RATIO.ln();
        place.floor().clamp(0.0, (BUCKETS - 1) as f64) as usize
    }

    fn upper_end(&self, bucket: usize) -> f64 {
        let exponent = i32::try_from(bucket + 1).unwrap_or(i32::MAX);
        self.first * (RATIO.powi(exponent) - 1.0) / (RATIO - 1.0)
    }

    fn quantiles(&self) -> Option<Quantiles> {
        if self.total <= 0.0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 1000")]
        let levels = Quantiles::LEVELS_PERMILLE.map(|permille| permille as f64 / 1000.0);
        let mut quantiles = [None; Quantiles::LEVELS_PERMILLE.len()];
        let mut below = 0.0;
        let mut highest = 0;
        for (bucket, &weight) in self.weights.iter().enumerate() {
            if weight == 0.0 {
                continue;
            }
            below += weight;
            highest = bucket;
            for (quantile, level) in quantiles.iter_mut().zip(levels) {
                if quantile.is_none() && below >= level * self.total {
                    *quantile = Some(self.upper_end(bucket));
                }
            }
        }
        // What rounding left of the total is in the highest bucket.
        Quantiles::new(quantiles.map(|quantile| quantile.unwrap_or(self.upper_end(highest))))
    }
}

impl Forecaster for Histogram {
    fn name(&self) -> &'static str {
        "histogram"
    }

    fn pass(&mut self, sample: Option<f64>) {
        self.weight *= self.growth;
        if self.weight > WEIGHT_MAX {
            for weight in &mut self.weights {
                *weight /= self.weight;
            }
            self.total = self.weights.iter().sum();
            self.weight = 1.0;
        }
        if let Some(value) = sample {
            self.weights[self.bucket(value)] += self.weight;
            self.total += self.weight;
        }
    }

    fn forecast_of(&self, _target: Target, _steps: usize) -> Option<Quantiles> {
        self.quantiles()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: HistogramOptions = HistogramOptions {
        reference: 100.0,
        half_life: 50.0,
    };

    /// The definition: weights of all samples by age, in order of size, cumulated.
    fn plain(samples: &[Option<f64>], level: f64) -> f64 {
        let first = OPTIONS.reference * 1e-3;
        let upper_end = |value: f64| {
            let mut end = first;
            let mut width = first;
            while value >= end * (1.0 + 1e-12) {
                width *= 1.05;
                end += width;
            }
            end
        };
        let age = |index: usize| f64::from(u32::try_from(samples.len() - index).unwrap());
        let mut weighted: Vec<(f64, f64)> = samples
            .iter()
            .enumerate()
            .filter_map(|(index, sample)| {
                Some((
                    upper_end((*sample)?),
                    (-age(index) / OPTIONS.half_life).exp2(),
                ))
            })
            .collect();
        weighted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        let mut below = 0.0;
        for (end, weight) in &weighted {
            below += weight;
            if below >= level * total {
                return *end;
            }
        }
        weighted.last().unwrap().0
    }

    #[test]
    fn quantiles_are_those_of_the_definition() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut histogram = Histogram::new(OPTIONS);
        assert_eq!(histogram.forecast(1), None);
        let mut samples = Vec::new();
        for step in 0..2000 {
            let sample = (step % 9 != 4).then(|| 250.0 * rng.f64() * rng.f64());
            match sample {
                Some(value) => histogram.update(value),
                None => histogram.update_gap(),
            }
            samples.push(sample);
            if step % 97 != 3 {
                continue;
            }
            let quantiles = histogram.forecast(60).unwrap().to_array();
            for (quantile, level) in quantiles.into_iter().zip([0.5, 0.9, 0.95, 0.99]) {
                let expected = plain(&samples, level);
                assert!(
                    (quantile / expected - 1.0).abs() < 1e-9,
                    "step {step}, level {level}: {quantile} is not {expected}"
                );
            }
        }
    }

    #[test]
    fn a_constant_is_covered_with_one_bucket() {
        for value in [0.0, 1e-3, 1.0, 99.0, 1e6, 1e9] {
            let mut histogram = Histogram::new(OPTIONS);
            (0..100_000).for_each(|_| histogram.update(value));
            let quantiles = histogram.forecast_peak(12).unwrap();
            assert!(quantiles.q50() >= value, "{value}: {quantiles:?}");
            assert!(
                quantiles.q99() <= 1.05 * value + 0.1 + 1e-9,
                "{value}: {quantiles:?}"
            );
        }
    }

    #[test]
    fn no_options_and_no_samples_make_it_answer_nonsense() {
        for reference in [f64::NAN, -1.0, 0.0, f64::INFINITY] {
            let half_life = reference;
            let mut histogram = Histogram::new(HistogramOptions {
                reference,
                half_life,
            });
            for value in [f64::NAN, -3.0, f64::INFINITY, 1e300] {
                histogram.update(value);
                assert_eq!(histogram.forecast(1), None);
            }
            for _ in 0..3000 {
                histogram.update(2.0);
            }
            let quantiles = histogram.forecast(1).unwrap();
            assert!((2.0..2.2).contains(&quantiles.q95()), "{quantiles:?}");
        }
    }
}
