//! Which of two networks forecasts fresh history better. Pure.
//!
//! # Approach
//!
//! Both run over a series as they do in the daemon. From the first fresh step on, what they say is
//! held against what came: the pinball losses at the four levels, summed over origins for each
//! target and horizon. The result is the geometric mean of the ratios, over series and targets:
//! no series outweighs the others.
//!
//! # Properties
//!
//! - Nothing that either was trained on is judged: every truth is fresh.
//! - Both are judged on the same origins.

use std::sync::Arc;

use forebay_forecast::lstm::{History, Lstm, Weights};
use forebay_forecast::{Forecaster as _, Quantiles, Target, is_plausible, pinball};

/// Truths that a verdict needs.
const JUDGED_MIN: u64 = 256;
/// Of the losses of one cell, what both get on top, so that a loss near nothing is no infinite ratio.
const FLOOR: f64 = 1e-3;

/// The comparison so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    logarithms: f64,
    cells: u32,
    judged: u64,
}

impl Tally {
    /// The losses of the new network as a ratio to those of the old one; above 1, it is worse.
    /// None where too little was judged.
    pub(super) fn ratio(&self) -> Option<f64> {
        let enough = self.judged >= JUDGED_MIN && self.cells > 0;
        enough.then(|| (self.logarithms / f64::from(self.cells)).exp())
    }

    /// Takes in a series, of which the steps from `fresh` on are judged.
    pub(super) fn add(
        &mut self,
        new: &Arc<Weights>,
        old: &Arc<Weights>,
        history: &History,
        fresh: usize,
    ) {
        let mut models = [new, old].map(|weights| Lstm::new(Arc::clone(weights), history.period));
        let targets: Vec<(Target, usize)> = new.layout().targets().collect();
        let mut losses = vec![([0.0; 2], 0_u64); targets.len()];
        for (step, &value) in history.values.iter().enumerate() {
            let sample = Some(value).filter(|value| is_plausible(*value));
            for model in &mut models {
                model.pass(sample);
            }
            if step + 1 < fresh || sample.is_none() {
                continue;
            }
            for (&(target, steps), cell) in targets.iter().zip(&mut losses) {
                let Some(truth) = truth(&history.values, step, target, steps) else {
                    continue;
                };
                let said = [0, 1].map(|i| models[i].forecast_of(target, steps));
                if let [Some(new), Some(old)] = said {
                    cell.0[0] += lost(&new, truth);
                    cell.0[1] += lost(&old, truth);
                    cell.1 += 1;
                }
            }
        }
        for ([new, old], judged) in losses {
            let floor = FLOOR * new.max(old);
            if judged > 0 && floor > 0.0 {
                self.logarithms += ((new + floor) / (old + floor)).ln();
                self.cells += 1;
            }
            self.judged += judged;
        }
    }
}

/// What came so many steps after another one. None if some of it was not seen.
fn truth(values: &[f64], step: usize, target: Target, steps: usize) -> Option<f64> {
    let ahead = values.get(step + 1..=step + steps)?;
    match target {
        Target::Value => ahead.last().copied().filter(|value| is_plausible(*value)),
        Target::Peak => ahead.iter().try_fold(0.0, |peak: f64, &value| {
            is_plausible(value).then_some(peak.max(value))
        }),
    }
}

/// Of all levels together.
fn lost(said: &Quantiles, truth: f64) -> f64 {
    let levels = [0.5, 0.9, 0.95, 0.99].into_iter().zip(said.to_array());
    levels
        .map(|(level, bound)| pinball(truth, bound, level))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bursts of an hour's period.
    fn history(seed: u64, steps: u32) -> History {
        let mut rng = fastrand::Rng::with_seed(seed);
        let wave = |step: u32| if step % 48 < 12 { 4.0 } else { 1.0 };
        History {
            values: (0..steps)
                .map(|step| wave(step) + 0.3 * rng.f64())
                .collect(),
            period: None,
        }
    }

    /// An untrained network: as a file, it is the pretrained one with noise for parameters.
    fn spoilt() -> Arc<Weights> {
        let mut bytes = Weights::pretrained().to_bytes();
        let header = bytes.len() - 8 - 4 * 16;
        for (i, number) in bytes[header - 8000..header].chunks_exact_mut(4).enumerate() {
            let noise: f32 = if i % 2 == 0 { 3.0 } else { -3.0 };
            number.copy_from_slice(&noise.to_le_bytes());
        }
        let body = bytes.len() - 8;
        let sum = bytes[..body]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        bytes[body..].copy_from_slice(&sum.to_le_bytes());
        Arc::new(Weights::from_bytes(&bytes).unwrap())
    }

    #[test]
    fn equals_are_equal_and_the_worse_loses() {
        let good = Arc::new(Weights::pretrained());
        let bad = spoilt();
        let ratio = |new: &Arc<Weights>, old: &Arc<Weights>| {
            let mut tally = Tally::default();
            (0..3).for_each(|seed| tally.add(new, old, &history(seed, 600), 300));
            tally.ratio().unwrap()
        };
        assert!((ratio(&good, &good) - 1.0).abs() < 1e-12);
        assert!(ratio(&bad, &good) > 1.05, "{}", ratio(&bad, &good));
        let product = ratio(&bad, &good) * ratio(&good, &bad);
        assert!((product - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_fresh_is_not_judged() {
        let good = Arc::new(Weights::pretrained());
        let judged = |fresh: usize| {
            let mut tally = Tally::default();
            tally.add(&good, &good, &history(1, 600), fresh);
            (tally.judged, tally.ratio())
        };
        // 1, 12 and 60 steps, and peaks of the last two; an origin is one step before what is fresh.
        assert_eq!(judged(500).0, 100 + 2 * 89 + 2 * 41);
        assert_eq!(judged(599), (1, None));
        assert_eq!(judged(600), (0, None));
        let mut gaps = history(1, 600);
        gaps.values[500..].fill(f64::NAN);
        let mut tally = Tally::default();
        tally.add(&good, &good, &gaps, 500);
        assert_eq!(tally.ratio(), None);
    }
}
