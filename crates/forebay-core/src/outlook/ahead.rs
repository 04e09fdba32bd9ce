//! What is forecast of all apps beyond the next control periods.
//!
//! Problem: the series of the control period remember two minutes, and a plan that is to be ready
//! before a rise must know of hours and days. What that takes is no work for a period of 100 ms.
//!
//! Approach: whoever runs beside the control thread feeds each report to a [`Forecasts`], which
//! keeps [`Scales`] for every resource that an app uses, deep ones for critical apps and light ones
//! for others. What plans need of it is small: what the greatest need within the next [`SOON`] stays
//! below in 90 of 100 cases. It counts only where it is above all that the series of the period
//! remember (two minutes): what they have seen, they know the moment of, and a bound of a longer
//! window is always higher than theirs. Of rises at random moments nine in ten windows of [`SOON`]
//! are free unless they come every three minutes or so, and then the last one is still remembered;
//! so what is left are rises that the scales foresee.
//!
//! Properties: an app that is gone is forgotten after [`FORGOTTEN_AFTER`]; a resource that was never
//! used costs nothing; nothing is fitted while a report is taken in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_forecast::Target;
use forebay_forecast::lstm::Weights;
use forebay_forecast::scales::{Bucket, Depth, SCALES, Scales};

use super::together::{SUMMED, Sum, Together};
use super::{Outlook, Resource};
use crate::app::{AppId, Class};
use crate::report::{AppReport, TickReport};
use crate::units::Bytes;

/// How far ahead plans are told of a rise.
pub const SOON: Duration = Duration::from_secs(10);
/// Apps that were not reported for so long are forgotten.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Forecasts {
    apps: BTreeMap<AppId, Watched>,
    weights: Option<Arc<Weights>>,
    now_unix_ms: u64,
    together: Together,
    /// Whose turn it is to be fitted.
    fitted: Option<(AppId, Resource)>,
}

#[derive(Debug)]
struct Watched {
    class: Class,
    seen_unix_ms: u64,
    series: BTreeMap<Resource, Scales>,
}

/// What an app does of each resource in one period; absent where that is not known.
pub fn uses(app: &AppReport) -> impl Iterator<Item = (Resource, f64)> {
    let demand = app.demand.as_ref();
    let memory = app.usage.memory.map(|used| match demand {
        Some(demand) => demand.memory_now.working_set(used),
        None => used,
    });
    let known = [
        (Resource::Cpu, app.usage.cpu),
        (Resource::Memory, memory.map(Bytes::as_f64)),
        (Resource::Io, app.usage.io),
        (Resource::Received, app.usage.received),
        (Resource::Sent, app.usage.sent),
        (Resource::Requests, app.usage.requests),
        (Resource::ResponseTime, app.usage.response_time),
    ];
    known
        .into_iter()
        .filter_map(|(resource, value)| Some((resource, value?)))
}

impl Forecasts {
    /// Nothing is known; `weights` of the network, where it is to take part.
    #[must_use]
    pub fn new(weights: Option<Arc<Weights>>) -> Self {
        Self {
            weights,
            ..Self::default()
        }
    }

    /// Takes in what one period saw.
    pub fn record(&mut self, report: &TickReport) {
        let now = report.time.unix_ms;
        let bucket = milliseconds(SCALES[0].bucket);
        let closed = now / bucket != self.now_unix_ms / bucket;
        self.now_unix_ms = now;
        for (id, app) in &report.apps {
            let watched = self.watched(id, app.class);
            watched.seen_unix_ms = now;
            for (resource, value) in uses(app) {
                self.sample(id, app.class, resource, value);
            }
        }
        let oldest = now.saturating_sub(milliseconds(FORGOTTEN_AFTER));
        self.apps.retain(|_, app| app.seen_unix_ms >= oldest);
        if closed {
            let apps = &self.apps;
            self.together.step(now, |resource| of(apps, resource));
        }
    }

    /// What all apps need together, each resource and span for which enough was seen.
    #[must_use]
    pub fn sums(&self) -> Vec<Sum> {
        let series = |resource| of(&self.apps, resource);
        self.together.sums(self.now_unix_ms, series)
    }

    fn sample(&mut self, id: &AppId, class: Class, resource: Resource, value: f64) {
        let (now, depth) = (self.now_unix_ms, self.depth(class));
        let series = &mut self.watched(id, class).series;
        // What is never used has no future to be sought.
        if value > 0.0 || series.contains_key(&resource) {
            let scales = series
                .entry(resource)
                .or_insert_with(|| Scales::new(&depth));
            scales.record(now, value);
        }
    }

    /// A bucket of an app's past at one scale; before the first report, the oldest first.
    pub fn replay(
        &mut self,
        (id, class): (&AppId, Class),
        resource: Resource,
        scale: usize,
        bucket: &Bucket,
    ) {
        let depth = self.depth(class);
        let app = self.watched(id, class);
        app.seen_unix_ms = app.seen_unix_ms.max(bucket.start_unix_ms);
        let scales = app.series.entry(resource);
        scales
            .or_insert_with(|| Scales::new(&depth))
            .replay(scale, bucket);
    }

    fn depth(&self, class: Class) -> Depth {
        match class {
            Class::Critical => Depth::Full(self.weights.clone()),
            Class::Standard | Class::Batch => Depth::Light,
        }
    }

    /// The app's series; made anew where its class is another now.
    fn watched(&mut self, id: &AppId, class: Class) -> &mut Watched {
        let app = self.apps.entry(id.clone()).or_insert_with(|| Watched {
            class,
            seen_unix_ms: 0,
            series: BTreeMap::new(),
        });
        if (app.class == Class::Critical) != (class == Class::Critical) {
            app.series.clear();
        }
        app.class = class;
        app
    }

    /// Fits one model that is due, if any, another app's each time. False if none was.
    pub fn fit(&mut self) -> bool {
        let all = || {
            self.apps.iter().flat_map(|(id, app)| {
                app.series
                    .keys()
                    .map(move |resource| (id.clone(), *resource))
            })
        };
        let last = self.fitted.clone();
        let after = all().filter(|key| last.as_ref().is_none_or(|last| key > last));
        let turns: Vec<_> = after.chain(all()).collect();
        for (id, resource) in turns {
            let series = self.apps.get_mut(&id).map(|app| &mut app.series);
            if let Some(scales) = series.and_then(|series| series.get_mut(&resource))
                && scales.fit()
            {
                self.fitted = Some((id, resource));
                return true;
            }
        }
        false
    }

    /// Other weights for the network from now on.
    pub fn set_weights(&mut self, weights: &Arc<Weights>) {
        let series = self
            .apps
            .values_mut()
            .flat_map(|app| app.series.values_mut());
        series.for_each(|scales| scales.set_weights(weights));
        self.weights = Some(Arc::clone(weights));
    }

    /// What plans are told: the needs of critical apps that are about to come.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        let critical = self
            .apps
            .iter()
            .filter(|(_, app)| app.class == Class::Critical);
        let soon = critical.map(|(id, app)| {
            let need = |(resource, scales): (&Resource, &Scales)| {
                let peak = scales.forecast(Target::Peak, self.now_unix_ms, SOON)?;
                (!peak.cold).then(|| (*resource, peak.quantiles.q90()))
            };
            (id.clone(), app.series.iter().filter_map(need).collect())
        });
        Outlook {
            expected: BTreeMap::new(),
            soon: soon
                .filter(|(_, needs): &(_, BTreeMap<_, _>)| !needs.is_empty())
                .collect(),
            soon_until_unix_ms: self.now_unix_ms + milliseconds(SOON),
        }
    }

    /// What apps will stay below for so long in 95 of 100 cases, of those resources that can be summed.
    /// Without those that too little was seen of.
    #[must_use]
    pub fn needs(&self, ahead: Duration) -> BTreeMap<AppId, BTreeMap<Resource, f64>> {
        let need = |(resource, scales): (&Resource, &Scales)| {
            let peak = scales.forecast(Target::Peak, self.now_unix_ms, ahead)?;
            (SUMMED.contains(resource) && !peak.cold).then(|| (*resource, peak.quantiles.q95()))
        };
        let apps = self.apps.iter();
        apps.map(|(id, app)| (id.clone(), app.series.iter().filter_map(need).collect()))
            .collect()
    }

    /// Resources of an app that are forecast. None of an app that is not known.
    pub fn resources(&self, app: &AppId) -> Option<impl Iterator<Item = (Resource, &Scales)>> {
        let series = &self.apps.get(app)?.series;
        Some(series.iter().map(|(resource, scales)| (*resource, scales)))
    }

    /// When the newest report was taken in, in milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn now_unix_ms(&self) -> u64 {
        self.now_unix_ms
    }
}

/// The series of one resource.
fn of(apps: &BTreeMap<AppId, Watched>, resource: Resource) -> BTreeMap<&AppId, &Scales> {
    let series = apps.iter();
    series
        .filter_map(|(id, app)| Some((id, app.series.get(&resource)?)))
        .collect()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
