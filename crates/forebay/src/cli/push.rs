//! `forebay push`: what an app says of itself.

use clap::Args;
use forebay_api as api;
use forebay_core::app::AppId;

use super::Failure;
use crate::config;

/// What to tell.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The app
    pub(super) app: AppId,

    /// requests=120 (per second), response_time=3.4ms
    #[arg(required = true, value_name = "signal=value")]
    signals: Vec<String>,
}

impl PushArgs {
    /// As the daemon takes it.
    pub(super) fn request(&self) -> Result<api::SignalsRequest, Failure> {
        request(&self.signals).map_err(Failure::Usage)
    }
}

fn request(signals: &[String]) -> Result<api::SignalsRequest, String> {
    let mut request = api::SignalsRequest::default();
    for signal in signals {
        let (place, value) = match signal.split_once('=') {
            Some(("requests", value)) => (&mut request.requests_per_second, rate(value)?),
            Some(("response_time", value)) => (&mut request.response_time_ms, time(value)?),
            _ => {
                return Err(format!(
                    "`{signal}` is no signal; write requests=120 or response_time=3.4ms"
                ));
            }
        };
        if place.replace(value).is_some() {
            return Err(format!("`{signal}` was told already; tell it once"));
        }
    }
    Ok(request)
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|rate| rate.is_finite() && *rate >= 0.0)
        .ok_or_else(|| format!("requests={text} is no rate; write a number of requests per second"))
}

/// In milliseconds.
fn time(text: &str) -> Result<f64, String> {
    let time = config::duration(text).map_err(|why| format!("response_time: {why}"))?;
    Ok(time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_told_with_their_units() {
        let check = |words: &str, expected: Option<(Option<f64>, Option<f64>)>| {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            let request = request(&words).ok();
            let told = request.map(|told| (told.requests_per_second, told.response_time_ms));
            assert_eq!(told, expected, "{words:?}");
        };
        check(
            "requests=120 response_time=3.4ms",
            Some((Some(120.0), Some(3.4))),
        );
        check("requests=0", Some((Some(0.0), None)));
        check("response_time=2s", Some((None, Some(2000.0))));
        check("response_time=3.4", None);
        check("requests=-1", None);
        check("requests=NaN", None);
        check("requests=many", None);
        check("requests=1 requests=2", None);
        check("errors=1", None);
        check("requests", None);
    }
}
