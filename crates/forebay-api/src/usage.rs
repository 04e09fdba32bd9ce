//! What an app uses and serves, and how it tells.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The latest use of an app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Processor time used, in CPUs.
    pub cpu_cores: Option<f64>,
    /// Share of time in which some task waited for a CPU, 0 to 1.
    pub cpu_stalled: Option<f64>,
    /// Memory charged.
    pub memory_bytes: Option<u64>,
    /// To and from all block devices.
    #[serde(default)]
    pub io_bytes_per_second: Option<f64>,
    /// Received over the network, loopback left out.
    #[serde(default)]
    pub received_bytes_per_second: Option<f64>,
    /// Sent over the network, loopback left out.
    #[serde(default)]
    pub sent_bytes_per_second: Option<f64>,
    /// Requests served, per second; `null` unless told lately, by a push, its metrics or its front.
    #[serde(default)]
    pub requests_per_second: Option<f64>,
    /// Time until a request is answered, in milliseconds; `null` unless told lately.
    #[serde(default)]
    pub response_time_ms: Option<f64>,
}

/// What an app says of itself. Each value stands for three seconds, and is absent from then on
/// unless it is told again; what is not told stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalsRequest {
    /// Requests served, per second.
    #[serde(default)]
    pub requests_per_second: Option<f64>,
    /// Time until a request is answered, in milliseconds: mean, quantile or what else the app
    /// is judged by, always the same.
    #[serde(default)]
    pub response_time_ms: Option<f64>,
}
