//! How much each of several forecasts counts, by what it lost lately.
//!
//! A forecast may be absent for a while. It is then charged what all others together lost, so
//! that silence is neither a merit nor a fault.
//!
//! Sources: Cesa-Bianchi and Lugosi, "Prediction, learning, and games", chapters 2 and 3
//! (exponentially weighted forecasters, discounted losses); Freund, Schapire, Singer and Warmuth,
//! "Using and combining predictors that specialize", 1997 (absence).

use crate::lstm::math::exp;

/// Loss of one step, in units of the average, beyond which it counts no more.
const LOSS_MAX: f32 = 50.0;
/// Weight of the newest loss in the average that is the unit, at least.
const UNIT_RATE: f32 = 0.001;

/// Weights of `N` forecasts. NaN stands for a forecast, or a loss, that is absent.
#[derive(Clone, Debug)]
pub(super) struct Weights<const N: usize> {
    losses: [f32; N],
    /// What a forecast loses on average, so that the rate needs no unit.
    unit: f32,
    seen: u32,
    rate: f32,
    kept: f32,
    weights: [f32; N],
}

impl<const N: usize> Weights<N> {
    /// Losses are forgotten over about `memory` steps; a forecast that lost one unit more has
    /// `exp(-rate)` of the weight.
    pub(super) fn new(rate: f32, memory: f32) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a few forecasts")]
        let even = 1.0 / N as f32;
        Self {
            losses: [0.0; N],
            unit: 0.0,
            seen: 0,
            rate,
            kept: 1.0 - 1.0 / memory,
            weights: [even; N],
        }
    }

    /// Takes in what each lost in one step; losses are not negative.
    pub(super) fn learn(&mut self, losses: &[f32; N]) {
        let Some(together) = self.mean(losses) else {
            return;
        };
        let (mut sum, mut count) = (0.0, 0.0);
        for loss in losses.iter().filter(|loss| !loss.is_nan()) {
            sum += loss;
            count += 1.0;
        }
        let mean: f32 = sum / count;
        if !mean.is_finite() {
            return;
        }
        self.seen = self.seen.saturating_add(1);
        #[expect(clippy::cast_precision_loss, reason = "rounding is harmless")]
        let rate = (self.seen as f32).recip().max(UNIT_RATE);
        self.unit += rate * (mean - self.unit);
        let unit = self.unit.max(f32::MIN_POSITIVE);
        for (kept, &loss) in self.losses.iter_mut().zip(losses) {
            let loss = if loss.is_nan() { together } else { loss };
            *kept = *kept * self.kept + (loss / unit).min(LOSS_MAX);
        }
        let least = self.losses.iter().copied().fold(f32::INFINITY, f32::min);
        self.weights = self.losses.map(|loss| exp((least - loss) * self.rate));
        let sum: f32 = self.weights.iter().sum();
        for weight in &mut self.weights {
            *weight /= sum;
        }
    }

    /// They sum to one.
    pub(super) fn all(&self) -> &[f32; N] {
        &self.weights
    }

    /// The weighted mean of the forecasts that are there. None if none is.
    pub(super) fn mean(&self, forecasts: &[f32; N]) -> Option<f32> {
        let (mut sum, mut total) = (0.0, 0.0);
        for (&forecast, &weight) in forecasts.iter().zip(&self.weights) {
            // A weight may be zero while all others are absent.
            let weight = weight + f32::EPSILON;
            if !forecast.is_nan() {
                sum += weight * forecast;
                total += weight;
            }
        }
        (total > 0.0).then(|| sum / total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_loses_less_counts_more_and_a_change_is_followed() {
        let mut weights = Weights::<3>::new(0.5, 50.0);
        for _ in 0..200 {
            weights.learn(&[1.0, 2.0, 3.0]);
        }
        assert!(weights.all()[0] > 0.95, "{weights:?}");
        for _ in 0..200 {
            weights.learn(&[3.0, 2.0, 1.0]);
        }
        assert!(weights.all()[2] > 0.95, "{weights:?}");
        assert!((weights.all().iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn the_unit_of_the_losses_does_not_matter() {
        let of = |unit: f32| {
            let mut weights = Weights::<2>::new(0.3, 100.0);
            for step in 0_u8..30 {
                weights.learn(&[unit * f32::from(step % 3), unit]);
            }
            weights.all()[0]
        };
        assert!((of(1.0) - of(1e12)).abs() < 1e-4);
        assert!((of(1.0) - of(1e-12)).abs() < 1e-4);
    }

    #[test]
    fn who_is_absent_is_charged_what_all_lose_together() {
        let mut weights = Weights::<3>::new(0.5, 50.0);
        assert_eq!(weights.mean(&[f32::NAN; 3]), None);
        for _ in 0..200 {
            weights.learn(&[1.0, 3.0, f32::NAN]);
        }
        let [good, bad, absent] = *weights.all();
        assert!((good - absent).abs() < 0.1 && bad < 0.01, "{weights:?}");
        let mean = weights.mean(&[1.0, f32::NAN, 3.0]).expect("two are there");
        assert!((mean - 2.0).abs() < 0.1, "{mean}");
    }
}
