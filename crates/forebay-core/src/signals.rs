//! What an app says of itself, or others measure of it: the kernel knows nothing of requests.

use std::collections::BTreeMap;

use crate::app::AppId;

/// The latest signals of one app. What nobody tells lately is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signal {
    /// Requests served, per second.
    pub requests_per_second: Option<f64>,
    /// Time until a request is answered, in milliseconds, as whoever tells it defines it.
    pub response_time_ms: Option<f64>,
}

/// The latest signals of all apps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signals {
    /// By app.
    pub apps: BTreeMap<AppId, Signal>,
}

/// Nobody tells anything.
pub static NONE: Signals = Signals {
    apps: BTreeMap::new(),
};
