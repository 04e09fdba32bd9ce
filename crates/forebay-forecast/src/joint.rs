//! What several series come to together.
//!
//! # Problem
//!
//! A pool of applications, or a host, has to hold their sum. The sum of their 0.95 bounds is far
//! too much where they are independent, since not all are unlucky at once, and just right where
//! they rise together. Nobody knows beforehand which it is.
//!
//! # Approach
//!
//! Each series has its own forecasts. When their time comes, it is put down where among its
//! quantiles each turned out to be. What was put down of one moment stays together, and so keeps
//! what the series have in common. For a new forecast every remembered moment is laid over the
//! present quantiles, and the sums are ranked.
//!
//! For the greatest sum within a window, a moment is the one at which the sum was greatest: what
//! each series then was, relative to its own forecast.
//!
//! # Properties
//!
//! - Nothing is assumed about distributions or correlation; both are those of the last
//!   [`MOMENTS`] moments.
//! - Members may come and go: one that has no forecast now is left out; of one that was not there
//!   at a moment, its median stands in.
//! - A sum of one is that series.
//!
//! # Measured
//!
//! Sums of real series (`examples/joint_traces.rs`), each forecast by a mixture; coverage of the
//! 0.95 bound of the sum 1, 12 and 60 steps ahead and of the peak within 60, and how far it lies
//! above the sum, as a part of how far the sum of 0.95 bounds does: four machines of one trace
//! (4,499 sums) 0.946, 0.943, 0.964, 0.953, and 0.72, 0.79, 1.43, 0.93; six series that have nothing
//! to do with each other (2,531 sums) 0.957, 0.960, 0.939, 0.955, and 0.67, 0.73, 0.85, 0.46.
//!
//! Sources: Barone-Adesi, Giannopoulos and Vosper, "VaR without correlations for portfolios of
//! derivative securities", 1999 (filtered historical simulation); Clark, Gangopadhyay, Hay,
//! Rajagopalan and Wilby, "The Schaake shuffle", 2004 (moments kept together).

use std::collections::VecDeque;

use crate::{Quantiles, Target};

/// Moments that are remembered.
pub const MOMENTS: usize = 240;
/// Moments before there is an answer.
const WARM_MOMENTS: usize = 32;
/// The least distance between two quantiles, as part of the median and in the unit of the series:
/// nearer ones say nothing of what lies between them.
const APART_MIN: (f64, f64) = (1e-3, 1e-9);
/// How far beyond the quantiles a place may lie: below the median in distances from there to the
/// 0.90 quantile, and above the 0.99 quantile in distances from the 0.90 quantile to it. What
/// leapt beyond bounds that were close together must not be laid over ones that are not.
const BELOW_MAX: f64 = 3.0;
const ABOVE_MAX: f64 = 4.0;

/// See the [module](self). Members are known by their place.
#[derive(Clone, Debug)]
pub struct Joint {
    target: Target,
    steps: usize,
    /// Steps between moments: neighbouring ones say nearly the same.
    stride: usize,
    passed: usize,
    /// The last samples of all members, the newest last.
    recent: VecDeque<Vec<Option<f64>>>,
    /// Forecasts whose time has not come, the oldest first; none between strides.
    pending: VecDeque<Option<Vec<Option<Quantiles>>>>,
    /// Where members turned out to be; NaN for one that was not there.
    moments: VecDeque<Vec<f32>>,
}

impl Joint {
    /// Sums of what `target` says, `steps` ahead; at least 1.
    #[must_use]
    pub fn new(target: Target, steps: usize) -> Self {
        let steps = steps.max(1);
        Self {
            target,
            steps,
            stride: (steps / 6).max(1),
            passed: 0,
            recent: VecDeque::with_capacity(steps),
            pending: VecDeque::with_capacity(steps + 1),
            moments: VecDeque::with_capacity(MOMENTS),
        }
    }

    /// One step passed: what each member was, and what is now forecast of it. None stands for a
    /// member that is not there. A member keeps its place.
    pub fn step(&mut self, samples: &[Option<f64>], forecasts: &[Option<Quantiles>]) {
        if self.recent.len() == self.steps {
            self.recent.pop_front();
        }
        self.recent.push_back(samples.to_vec());
        if self.pending.len() == self.steps
            && let Some(Some(forecasts)) = self.pending.pop_front()
        {
            self.learn(&forecasts);
        }
        self.passed = self.passed.wrapping_add(1);
        let due = self.passed.is_multiple_of(self.stride);
        self.pending.push_back(due.then(|| forecasts.to_vec()));
    }

    fn learn(&mut self, forecasts: &[Option<Quantiles>]) {
        // A member that was missed once is no zero: it is taken for what was expected of it.
        let sum = |row: &Vec<Option<f64>>| {
            let members = row.iter().zip(forecasts);
            let each = members
                .filter_map(|(sample, forecast)| Some(sample.unwrap_or(forecast.as_ref()?.q50())));
            each.sum::<f64>()
        };
        let moment = match self.target {
            Target::Value => self.recent.back(),
            Target::Peak => self.recent.iter().max_by(|a, b| sum(a).total_cmp(&sum(b))),
        };
        let Some(row) = moment else { return };
        let places = row.iter().zip(forecasts).map(|(sample, forecast)| {
            let (Some(sample), Some(forecast)) = (sample, forecast) else {
                return f32::NAN;
            };
            crate::history::narrow(place_of(*sample, forecast))
        });
        let moment: Vec<f32> = places.collect();
        if moment.iter().all(|place| place.is_nan()) {
            return;
        }
        if self.moments.len() == MOMENTS {
            self.moments.pop_front();
        }
        self.moments.push_back(moment);
    }

    /// What those members come to together of which a forecast is given. None while too few
    /// moments are known, and where no forecast is given.
    #[must_use]
    pub fn sum(&self, forecasts: &[Option<Quantiles>]) -> Option<Quantiles> {
        if self.moments.len() < WARM_MOMENTS || forecasts.iter().all(Option::is_none) {
            return None;
        }
        let over = |moment: &Vec<f32>| {
            let members = forecasts.iter().enumerate();
            let each = members.filter_map(|(member, forecast)| {
                let place = moment.get(member).copied().filter(|place| !place.is_nan());
                Some(value_at(
                    f64::from(place.unwrap_or(0.0)),
                    forecast.as_ref()?,
                ))
            });
            each.sum::<f64>()
        };
        let mut sums: Vec<f64> = self.moments.iter().map(over).collect();
        sums.sort_unstable_by(f64::total_cmp);
        let at = |permille: usize| {
            let rank = ((sums.len() + 1) * permille).div_ceil(1000);
            sums[rank.clamp(1, sums.len()) - 1]
        };
        Quantiles::new(Quantiles::LEVELS_PERMILLE.map(at))
    }

    /// How many moments are remembered.
    #[must_use]
    pub fn moments(&self) -> usize {
        self.moments.len()
    }
}

/// The quantiles from the median up, and how far each is from the next.
fn ladder(forecast: &Quantiles) -> ([f64; 4], [f64; 3]) {
    let steps = forecast.to_array();
    let (part, least) = APART_MIN;
    let least = (part * steps[0]).max(least);
    let apart = std::array::from_fn(|index| (steps[index + 1] - steps[index]).max(least));
    (steps, apart)
}

/// Where a value lies: 0 at the median, 1, 2 and 3 at the other quantiles, in between in
/// proportion.
fn place_of(value: f64, forecast: &Quantiles) -> f64 {
    let (steps, apart) = ladder(forecast);
    if value < steps[0] {
        return ((value - steps[0]) / apart[0]).max(-BELOW_MAX);
    }
    for (index, width) in apart.iter().enumerate() {
        if value < steps[index] + width {
            #[expect(clippy::cast_precision_loss, reason = "at most 3")]
            let place = index as f64 + (value - steps[index]).max(0.0) / width;
            return place;
        }
    }
    3.0 + ((value - steps[3]).max(0.0) / (apart[1] + apart[2])).min(ABOVE_MAX)
}

/// The value at a place.
fn value_at(place: f64, forecast: &Quantiles) -> f64 {
    let (steps, apart) = ladder(forecast);
    let value = if place < 1.0 {
        steps[0] + place * apart[0]
    } else if place < 2.0 {
        steps[1] + (place - 1.0) * apart[1]
    } else if place < 3.0 {
        steps[2] + (place - 2.0) * apart[2]
    } else {
        steps[3] + (place - 3.0) * (apart[1] + apart[2])
    };
    value.max(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Forecaster, Mixture, MixtureOptions};

    const MEMBERS: usize = 4;

    /// Coverage of the 0.95 bound of the sum, its mean distance above the mean sum, and that of the
    /// sum of bounds, where members share a part of their noise, 0 to 1.
    fn measured(shared: f64, target: Target, steps: usize) -> [f64; 3] {
        let mut random = fastrand::Rng::with_seed(11);
        let mut noise = move || random.f64() + random.f64() - 1.0;
        let options = MixtureOptions {
            targets: vec![target],
            horizons: vec![steps],
            history_max: 300,
            cycle: None,
        };
        let mut models: Vec<Mixture> = (0..MEMBERS).map(|_| Mixture::new(&options)).collect();
        let mut joint = Joint::new(target, steps);
        let mut said: VecDeque<Option<(f64, f64)>> = VecDeque::new();
        let mut sums: VecDeque<f64> = VecDeque::new();
        let (mut covered, mut above, mut plain, mut judged) = (0.0, 0.0, 0.0, 0.0);
        for step in 0..3000 {
            let common = noise();
            let sample = |own: f64| 10.0 + shared * common + (1.0 - shared) * own;
            let samples: Vec<f64> = (0..MEMBERS).map(|_| sample(noise())).collect();
            sums.push_back(samples.iter().sum());
            if sums.len() > steps {
                sums.pop_front();
            }
            if said.len() == steps
                && let Some(Some((bound, sum_of_bounds))) = said.pop_front()
                && step > 1000
            {
                let truth = match target {
                    Target::Value => sums[steps - 1],
                    Target::Peak => sums.iter().copied().fold(0.0, f64::max),
                };
                covered += if truth <= bound { 1.0 } else { 0.0 };
                above += bound - truth;
                plain += sum_of_bounds - truth;
                judged += 1.0;
            }
            for (model, sample) in models.iter_mut().zip(&samples) {
                model.update(*sample);
            }
            let forecasts = models.iter().map(|model| model.forecast_of(target, steps));
            let forecasts: Vec<Option<Quantiles>> = forecasts.collect();
            let samples: Vec<Option<f64>> = samples.into_iter().map(Some).collect();
            joint.step(&samples, &forecasts);
            let bounds = forecasts.iter().flatten().map(Quantiles::q95).sum();
            said.push_back(joint.sum(&forecasts).map(|sum| (sum.q95(), bounds)));
        }
        [covered / judged, above / judged, plain / judged]
    }

    #[test]
    fn a_member_that_was_missed_is_no_zero() {
        let said = |q50: f64| Quantiles::new([q50, q50 + 1.0, q50 + 2.0, q50 + 3.0]);
        let forecasts = [said(1.0), said(10.0)];
        let mut joint = Joint::new(Target::Peak, 2);
        joint.step(&[Some(1.0), Some(10.0)], &forecasts);
        joint.step(&[Some(1.0), Some(10.0)], &forecasts);
        // The greatest of both together, although the larger one was not seen.
        joint.step(&[Some(3.0), None], &forecasts);
        let moment = joint.moments.back().expect("it is learnt");
        assert!(
            (moment[0] - 2.0).abs() < 1e-6 && moment[1].is_nan(),
            "{moment:?}"
        );
    }

    #[test]
    fn bounds_of_sums_cover_what_they_promise() {
        for target in [Target::Value, Target::Peak] {
            for shared in [0.0, 0.7] {
                let [covered, ..] = measured(shared, target, 6);
                assert!(
                    (covered - 0.95).abs() < 0.03,
                    "{target:?} {shared} {covered}"
                );
            }
        }
    }

    #[test]
    fn independent_members_need_less_than_the_sum_of_their_bounds() {
        let [_, above, plain] = measured(0.0, Target::Value, 1);
        assert!(above < 0.65 * plain, "{above} {plain}");
    }

    #[test]
    fn members_that_rise_together_need_all_of_it() {
        let [_, above, plain] = measured(1.0, Target::Value, 1);
        assert!((above / plain - 1.0).abs() < 0.15, "{above} {plain}");
    }

    #[test]
    fn a_value_is_found_again_at_its_place() {
        let forecast = Quantiles::new([10.0, 12.0, 13.0, 17.0]).expect("numbers");
        for (value, place) in [
            (9.0, -0.5),
            (10.0, 0.0),
            (11.0, 0.5),
            (12.5, 1.5),
            (17.0, 3.0),
        ] {
            assert!((place_of(value, &forecast) - place).abs() < 1e-9, "{value}");
            assert!((value_at(place, &forecast) - value).abs() < 1e-9, "{place}");
        }
        assert!((place_of(1e9, &forecast) - 7.0).abs() < 1e-9);
        assert!((place_of(0.0, &forecast) + 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_sum_of_one_is_that_series() {
        let mut joint = Joint::new(Target::Value, 1);
        let forecast = Quantiles::new([10.0, 11.0, 12.0, 13.0]);
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..300 {
            joint.step(&[Some(8.0 + 4.0 * random.f64())], &[forecast]);
        }
        let sum = joint.sum(&[forecast]).expect("it is warm");
        assert!((sum.q50() - 10.0).abs() < 0.5, "{sum:?}");
        assert!((sum.q95() - 11.8).abs() < 0.2, "{sum:?}");
        assert_eq!(joint.sum(&[None]), None);
    }

    #[test]
    fn members_come_and_go() {
        let mut joint = Joint::new(Target::Value, 2);
        let forecast = Quantiles::new([5.0, 6.0, 7.0, 8.0]);
        for step in 0..200 {
            let second = (step > 100).then_some(5.0);
            joint.step(
                &[Some(5.0), second],
                &[forecast, forecast.filter(|_| step > 100)],
            );
        }
        let both = joint.sum(&[forecast, forecast]).expect("it is warm");
        let one = joint.sum(&[None, forecast]).expect("it is warm");
        assert!((both.q95() - 10.0).abs() < 1e-3, "{both:?}");
        assert!((one.q95() - 5.0).abs() < 1e-3, "{one:?}");
        // A third that was never there has but its median.
        let three = joint.sum(&[forecast, forecast, forecast]).expect("warm");
        assert!((three.q95() - 15.0).abs() < 1e-3, "{three:?}");
    }

    proptest! {
        #[test]
        fn sums_are_finite_and_ordered(
            samples in proptest::collection::vec(
                proptest::collection::vec(proptest::option::of(0.0..1e18_f64), 3), 40..120),
        ) {
            let mut joint = Joint::new(Target::Peak, 3);
            for row in &samples {
                let forecasts: Vec<_> = row
                    .iter()
                    .map(|sample| Quantiles::new([sample.unwrap_or(1.0) / 2.0; 4]))
                    .collect();
                joint.step(row, &forecasts);
                if let Some(sum) = joint.sum(&forecasts) {
                    let all = sum.to_array();
                    prop_assert!(all.iter().all(|q| q.is_finite() && *q >= 0.0));
                    prop_assert!(all.windows(2).all(|pair| pair[0] <= pair[1]));
                }
            }
            prop_assert!(joint.moments() <= MOMENTS);
        }
    }
}
