//! Quantiles and maximum of a moving window.
//!
//! # Problem
//!
//! A limit that was enough for everything lately seen is the rule that operators reach for
//! first.
//!
//! # Approach
//!
//! For values: median and quantiles of the window, and its maximum in place of the 0.99
//! quantile. For peaks: the maximum at every level above the median. The horizon does not
//! matter.
//!
//! # Properties
//!
//! - Exact; a spike is remembered for a whole window, and no longer.
//! - A gap takes no place in the window.
//!
//! Source: Rzadca et al., "Autopilot: workload autoscaling at Google", EuroSys 2020 (moving
//! window recommenders, section 3.2.1: samples of a window, here weighted alike).

use super::WINDOW_MAX;
use super::ordered::Ordered;
use crate::{Forecaster, Quantiles, Target};

/// Quantiles and maximum of a moving window.
#[derive(Clone, Debug)]
pub struct MovingMax {
    window: Ordered,
}

impl MovingMax {
    /// Looks back on so many samples, 1 to [`WINDOW_MAX`].
    #[must_use]
    pub fn new(window: usize) -> Self {
        Self {
            window: Ordered::new(window.min(WINDOW_MAX)),
        }
    }
}

impl Forecaster for MovingMax {
    fn name(&self) -> &'static str {
        "moving-max"
    }

    fn pass(&mut self, sample: Option<f64>) {
        if let Some(value) = sample {
            self.window.push(value);
        }
    }

    fn forecast_of(&self, target: Target, _steps: usize) -> Option<Quantiles> {
        let greatest = self.window.greatest()?;
        let [q50, q90, q95, _] = Quantiles::LEVELS_PERMILLE;
        let median = self.window.quantile(q50)?;
        Quantiles::new(match target {
            Target::Value => [
                median,
                self.window.quantile(q90)?,
                self.window.quantile(q95)?,
                greatest,
            ],
            Target::Peak => [median, greatest, greatest, greatest],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_window_and_its_maximum() {
        let mut rule = MovingMax::new(11);
        assert_eq!(rule.forecast(1), None);
        assert_eq!(rule.forecast_peak(1), None);
        rule.update(100.0);
        for value in 0..=10_u8 {
            rule.update_gap();
            rule.update(f64::NAN);
            assert_eq!(
                rule.forecast_peak(60).unwrap().q90(),
                100.0_f64,
                "before {value}"
            );
            rule.update(f64::from(value));
        }
        // 0 to 10, and the spike is gone.
        let values = rule.forecast(12).unwrap();
        assert_eq!(values, Quantiles::new([5.0, 9.0, 9.5, 10.0]).unwrap());
        let peaks = rule.forecast_peak(12).unwrap();
        assert_eq!(peaks, Quantiles::new([5.0, 10.0, 10.0, 10.0]).unwrap());
    }
}
