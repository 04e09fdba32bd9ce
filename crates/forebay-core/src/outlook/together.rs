//! What all apps of a host need together.
//!
//! Problem: the sum of the apps' bounds is more than their sum will reach, where not all are unlucky
//! at once. Whoever fills a host by the sum of bounds leaves it half empty.
//!
//! Approach: a [`Joint`] for each resource and span learns from every bucket of 10 s where among
//! its forecasts each app turned out to be, and keeps what is of one moment together.
//!
//! Properties: an app keeps its place; one that is gone is left out; beyond [`MEMBERS_MAX`] apps that
//! ever were, all begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_forecast::scales::{SCALES, Scales};
use forebay_forecast::{Joint, Quantiles, Target};

use super::Resource;
use crate::app::AppId;

/// Apps whose moments are kept.
pub const MEMBERS_MAX: usize = 256;
/// How far ahead sums are learnt, in buckets of the finest scale: two minutes and ten.
pub const SPANS: [usize; 2] = [12, 60];
/// What is summed.
pub const SUMMED: [Resource; 2] = [Resource::Cpu, Resource::Memory];

/// The greatest need of all apps together within a span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sum {
    /// Of what.
    pub resource: Resource,
    /// Within this.
    pub span: Duration,
    /// In the unit of the resource.
    pub peak: Quantiles,
    /// The sum of the apps' own 95 % bounds, to compare with.
    pub bounds: f64,
    /// Apps that are counted.
    pub apps: usize,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Together {
    places: Vec<AppId>,
    sums: BTreeMap<(Resource, usize), Joint>,
}

/// The scales of one resource of those apps that use it.
type Series<'a> = BTreeMap<&'a AppId, &'a Scales>;

/// The greatest sample of the bucket that was just closed. None of an app that is no longer observed.
fn newest(scales: &Scales, now_unix_ms: u64) -> Option<f64> {
    let bucket = u64::try_from(SCALES[0].bucket.as_millis()).ok()?;
    let last = scales.last()?;
    // What is observed now may be of the bucket after, whose end nobody has seen yet.
    (last.start_unix_ms + 3 * bucket > now_unix_ms).then_some(last.max)
}

/// How long so many buckets are.
fn span(buckets: usize) -> Duration {
    SCALES[0].bucket * u32::try_from(buckets).unwrap_or(u32::MAX)
}

impl Together {
    /// A bucket was closed: learns from it. `series` gives the scales of a resource.
    pub(super) fn step<'a>(&mut self, now_unix_ms: u64, series: impl Fn(Resource) -> Series<'a>) {
        for resource in SUMMED {
            let series = series(resource);
            self.make_places(&series);
            let samples: Vec<Option<f64>> =
                self.each(&series, |scales| newest(scales, now_unix_ms));
            for buckets in SPANS {
                let forecasts = self.forecasts(&series, now_unix_ms, buckets);
                let joint = self.sums.entry((resource, buckets));
                joint
                    .or_insert_with(|| Joint::new(Target::Peak, buckets))
                    .step(&samples, &forecasts);
            }
        }
    }

    /// What is needed together; nothing where too few moments are known.
    pub(super) fn sums<'a>(
        &self,
        now_unix_ms: u64,
        series: impl Fn(Resource) -> Series<'a>,
    ) -> Vec<Sum> {
        let each = self.sums.iter().filter_map(|((resource, buckets), joint)| {
            let forecasts = self.forecasts(&series(*resource), now_unix_ms, *buckets);
            let known = || forecasts.iter().flatten();
            Some(Sum {
                resource: *resource,
                span: span(*buckets),
                peak: joint.sum(&forecasts)?,
                bounds: known().map(Quantiles::q95).sum(),
                apps: known().count(),
            })
        });
        each.collect()
    }

    fn make_places(&mut self, series: &Series<'_>) {
        for app in series.keys() {
            if self.places.contains(app) {
                continue;
            }
            if self.places.len() == MEMBERS_MAX {
                *self = Self::default();
            }
            self.places.push((*app).clone());
        }
    }

    fn each<T>(&self, series: &Series<'_>, of: impl Fn(&Scales) -> Option<T>) -> Vec<Option<T>> {
        let places = self.places.iter();
        places
            .map(|app| series.get(app).and_then(|scales| of(scales)))
            .collect()
    }

    fn forecasts(&self, series: &Series<'_>, now: u64, buckets: usize) -> Vec<Option<Quantiles>> {
        self.each(series, |scales| {
            newest(scales, now)?;
            let peak = scales.forecast(Target::Peak, now, span(buckets))?;
            (!peak.cold).then_some(peak.quantiles)
        })
    }
}

#[cfg(test)]
mod tests {
    use forebay_forecast::scales::Depth;

    use super::*;

    #[test]
    fn an_app_that_is_no_longer_observed_is_left_out() {
        let mut scales = Scales::new(&Depth::Light);
        let start = 1_700_049_600_000;
        assert_eq!(newest(&scales, start), None);
        (0..=20).for_each(|second| scales.record(start + second * 1000, 2.0));
        assert_eq!(newest(&scales, start + 21_000), Some(2.0));
        assert_eq!(newest(&scales, start + 600_000), None);
    }
}
