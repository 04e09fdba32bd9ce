//! What an application will need, near and far.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Demand, Models, Usage};

/// What an app will need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Forecast {
    /// The app.
    pub app: String,
    /// How far ahead the plan looks.
    pub horizon_seconds: f64,
    /// What is planned for; `null` while the app does not run.
    pub demand: Option<Demand>,
    /// Its latest use.
    pub usage: Usage,
    /// How that is made.
    pub models: Option<Models>,
    /// Each resource that it uses, from one period to as far as was asked.
    #[serde(default)]
    pub resources: Vec<ResourceForecast>,
    /// Events, timers and forecasts of others that matter to it, a line for each.
    #[serde(default)]
    pub known: Vec<String>,
}

/// Which forecasts are wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForecastQuery {
    /// Only of this: `cpu`, `memory`, `io`, `received`, `sent`, `requests` or `response_time`.
    pub resource: Option<String>,
    /// How far ahead: an hour unless told, a day at most.
    pub horizon_seconds: Option<f64>,
}

/// What an app will need of one resource: CPUs, bytes, bytes per second, requests per second, or
/// milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceForecast {
    /// `cpu`, `memory`, `io`, `received`, `sent`, `requests` or `response_time`.
    pub resource: String,
    /// The nearest first.
    pub rows: Vec<ForecastRow>,
    /// The value at equal distances until the horizon.
    pub course: Vec<CoursePoint>,
    /// The resolutions that it was looked at.
    pub scales: Vec<ForecastScale>,
}

/// One horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastRow {
    /// How far ahead.
    pub seconds: f64,
    /// The value at that moment, or about it where the resolution is coarser.
    pub value: Option<Levels>,
    /// The greatest value until then.
    pub peak: Levels,
    /// The resolution that answered; 0 for the control period itself.
    pub bucket_seconds: f64,
    /// Whether too little was seen to look so far, so that bounds are wide.
    pub cold: bool,
    /// Who made the median of the value, the greatest part first.
    pub centre: Vec<ModelShare>,
    /// Who made the 95 % bound of the peak.
    pub bound: Vec<ModelShare>,
    /// How much more often than one time in 20 that bound was lately exceeded.
    pub bound_excess: f64,
    /// The event, timer, calendar or forecast of others that brings something else than the models
    /// say of the peak.
    #[serde(default)]
    pub known: Option<String>,
}

/// Quantiles: not exceeded in 50, 90, 95 and 99 of 100 cases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Levels {
    /// As likely above as below.
    pub q50: f64,
    /// Not above this in 90 of 100 cases.
    pub q90: f64,
    /// Not above this in 95 of 100 cases.
    pub q95: f64,
    /// Not above this in 99 of 100 cases.
    pub q99: f64,
}

/// The value at one moment to come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CoursePoint {
    /// How far ahead.
    pub seconds: f64,
    /// The value then.
    pub value: Levels,
}

/// One resolution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastScale {
    /// Length of a bucket.
    pub bucket_seconds: f64,
    /// Buckets seen, gaps among them.
    pub buckets_seen: u64,
    /// The period found, if any.
    pub period_seconds: Option<f64>,
}

/// A model that took part in an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelShare {
    /// Its name.
    pub model: String,
    /// Its weight; all of an answer sum to one.
    pub weight: f64,
}

/// What all apps will need together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostForecast {
    /// CPUs of the host.
    pub cpus: u64,
    /// Each resource and span for which enough was seen.
    pub sums: Vec<SumForecast>,
    /// How it stands with the network that learns from the history of the host.
    pub learning: Option<Learning>,
}

/// The network that all apps share, and its training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Learning {
    /// What the training does: `off`, `waiting`, `reading`, `training` or `comparing`.
    pub phase: String,
    /// Version of the weights in use; 0 for those that come with the program.
    pub version: u32,
    /// Whether they are held against those before, and may be rolled back.
    pub on_trial: bool,
    /// What became of the last training or comparison since the daemon started: `better`,
    /// `not_better`, `too_little`, `diverged`, `given_up`, `kept` or `rolled_back`.
    pub verdict: Option<String>,
    /// Loss of the weights before these on what was held out of training, relative to a naive
    /// forecast; `null` for version 0.
    pub loss_before: Option<f64>,
    /// The same of the weights in use.
    pub loss: Option<f64>,
    /// Processor time of the training since the daemon started.
    pub cpu_seconds: f64,
    /// What keeps it from working.
    pub trouble: Option<String>,
}

/// The greatest need of all apps together within a span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SumForecast {
    /// `cpu`, in CPUs, or `memory`, in bytes.
    pub resource: String,
    /// Within this.
    pub seconds: f64,
    /// The greatest sum.
    pub peak: Levels,
    /// The sum of the apps' own 95 % bounds: what would have to be kept if all were unlucky at once.
    pub bounds: f64,
    /// Apps that are counted; those of which too little is known are not.
    pub apps: u64,
}
