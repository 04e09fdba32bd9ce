//! A linear model of one number and of its quantiles, that learns with every sample.
//!
//! # Approach
//!
//! The mean is a [`LeastSquares`] fit. Each quantile is a further linear function above the mean,
//! moved by the gradient of the pinball loss along the gain of the least squares, which makes the
//! step as long as it has to be in each direction.
//!
//! Source: Koenker and Bassett, "Regression quantiles", 1978.

use crate::least_squares::{LeastSquares, dot};

use super::signals::{FEATURES, Features};
use super::{LEVELS, level};
use crate::history::narrow;

/// Trace of the covariance above which it is halved.
const TRACE_MAX: f32 = 1e7;
/// How far a quantile moves, in usual errors: along the gain, and its constant part besides.
const QUANTILE_RATE: f32 = 0.3;
const CONSTANT_RATE: f32 = 0.02;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Regression {
    mean: LeastSquares<FEATURES>,
    /// Above the mean.
    quantiles: [Features; LEVELS],
}

/// How errors are measured while one is learnt from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// An error is believed up to this.
    pub(super) clip: f32,
    /// What an error usually is.
    pub(super) usual: f32,
}

impl Regression {
    pub(super) fn new() -> Self {
        Self {
            mean: LeastSquares::new(TRACE_MAX),
            quantiles: [[0.0; FEATURES]; LEVELS],
        }
    }

    pub(super) fn mean(&self, features: &Features) -> f32 {
        self.mean.predict(features)
    }

    /// The quantiles, in order.
    pub(super) fn quantiles(&self, features: &Features) -> [f32; LEVELS] {
        let mean = self.mean(features);
        let mut quantiles = self
            .quantiles
            .each_ref()
            .map(|weights| mean + dot(weights, features));
        for index in 1..LEVELS {
            quantiles[index] = quantiles[index].max(quantiles[index - 1]);
        }
        quantiles
    }

    /// Learns that `features` meant `value`.
    pub(super) fn learn(&mut self, features: &Features, value: f32, measure: Measure) {
        let Some(gain) = self.mean.learn(features, value, measure.clip) else {
            *self = Self::new();
            return;
        };
        let mean = self.mean(features);
        let rate = QUANTILE_RATE * measure.usual;
        for (index, weights) in self.quantiles.iter_mut().enumerate() {
            let above = value > mean + dot(weights, features);
            let slope = narrow(level(index)) - if above { 0.0 } else { 1.0 };
            for (weight, part) in weights.iter_mut().zip(&gain) {
                *weight += rate * slope * part;
            }
            weights[0] += CONSTANT_RATE * rate * slope;
        }
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.mean.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURE: Measure = Measure {
        clip: 10.0,
        usual: 0.1,
    };

    /// Features of which the first three are noise about zero, and the constant.
    fn draw(random: &mut fastrand::Rng) -> Features {
        let mut features = [0.0; FEATURES];
        features[0] = 1.0;
        features[1..4].fill_with(|| random.f32() - 0.5);
        features
    }

    #[test]
    fn weights_of_a_linear_process_are_found_and_followed() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut model = Regression::new();
        for weights in [[1.0, -2.0, 0.5], [-1.0, 0.0, 3.0]] {
            for _ in 0..6000 {
                let features = draw(&mut random);
                let value = (0..3).map(|i| weights[i] * features[i + 1]).sum();
                model.learn(&features, value, MEASURE);
            }
            for (place, weight) in (1..4).zip(weights) {
                let mut features = [0.0; FEATURES];
                features[place] = 1.0;
                let found = model.mean(&features);
                assert!((found - weight).abs() < 0.2, "{found} {weight}");
            }
        }
    }

    #[test]
    fn quantiles_follow_noise_that_depends_on_a_feature() {
        let mut random = fastrand::Rng::with_seed(6);
        let mut model = Regression::new();
        for _ in 0..20_000 {
            let mut features = draw(&mut random);
            features[1] = if random.bool() { 1.0 } else { 0.0 };
            let value = (0.1 + features[1]) * random.f32();
            let usual = 0.5;
            model.learn(&features, value, Measure { usual, ..MEASURE });
        }
        let mut features = [0.0; FEATURES];
        features[0] = 1.0;
        let calm = model.quantiles(&features)[2];
        features[1] = 1.0;
        let wild = model.quantiles(&features)[2];
        assert!((calm - 0.095).abs() < 0.05, "{calm}");
        assert!((wild - 1.045).abs() < 0.1, "{wild}");
    }

    #[test]
    fn a_number_out_of_all_bounds_does_not_last() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut model = Regression::new();
        for step in 0..3000 {
            let features = draw(&mut random);
            let value = if step == 1000 { 1e30 } else { features[1] };
            model.learn(&features, value, MEASURE);
        }
        let mut features = [0.0; FEATURES];
        features[1] = 1.0;
        let found = model.mean(&features);
        assert!((found - 1.0).abs() < 0.1, "{found}");
    }
}
