//! From what an app's metrics say to its signals.
//!
//! Requests are a counter: all samples that the selector fits, summed, over the time between two
//! readings. A counter that went back was restarted, and is a gap.
//!
//! Response time is what its selector names. Where there are samples of `NAME_sum` and
//! `NAME_count` that fit (a histogram, or a summary without a `quantile` in the selector), it is
//! the mean over the time between two readings, absent when nothing was served then. Otherwise
//! it is the greatest of the samples of `NAME` itself that fit: a gauge, or a summary's quantile.
//! Names that end in `_ms` or `_milliseconds` are of milliseconds, in `_us` or `_microseconds` of
//! microseconds, all others of seconds, as Prometheus has it.

use std::time::Duration;

use forebay_core::signals::{PUSHED_STANDS, Signal};

use super::exposition::Selector;
use super::http::Url;

/// Intervals for which a scraped value stands, so that one that is late changes nothing.
const STANDS_INTERVALS: u32 = 3;

/// An app's metrics, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scrape {
    /// Where they are.
    pub(crate) url: Url,
    /// Time between two readings.
    pub(crate) every: Duration,
    /// The counter of requests served.
    pub(crate) requests: Option<Selector>,
    /// The histogram, summary or gauge of response times.
    pub(crate) response_time: Option<Selector>,
}

impl Scrape {
    /// How long what was read stands.
    pub(super) fn stands(&self) -> Duration {
        (self.every * STANDS_INTERVALS).max(PUSHED_STANDS)
    }
}

/// What has to be known of the reading before.
#[derive(Debug, Default)]
pub(super) struct Meter {
    last: Option<(Duration, Counters)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    requests: Option<f64>,
    /// Sum of all response times, and how many there were.
    timed: Option<(f64, f64)>,
}

impl Meter {
    /// Signals of the time between the reading before and this one, at `now`. What cannot be
    /// told yet is absent.
    ///
    /// # Errors
    /// What is missing in the text or not understood, and what to do.
    pub(super) fn read(
        &mut self,
        now: Duration,
        text: &str,
        scrape: &Scrape,
    ) -> Result<Signal, String> {
        let mut counters = Counters::default();
        let mut signal = Signal::default();
        if let Some(selector) = &scrape.requests {
            counters.requests = sum(selector, text, "")?;
            if counters.requests.is_none() {
                return Err(missing(selector));
            }
        }
        if let Some(selector) = &scrape.response_time {
            counters.timed = sum(selector, text, "_sum")?.zip(sum(selector, text, "_count")?);
            if counters.timed.is_none() {
                let values = values(selector, text, "")?;
                let greatest = values.into_iter().reduce(f64::max);
                let value = greatest.ok_or_else(|| missing(selector))?;
                signal.response_time_ms = Some(value * milliseconds(&selector.name));
            }
        }
        if let Some((then, before)) = self.last.replace((now, counters)) {
            let seconds = now.saturating_sub(then).as_secs_f64();
            signal.requests_per_second = grown(counters.requests, before.requests)
                .filter(|_| seconds > 0.0)
                .map(|requests| requests / seconds);
            if let Some(selector) = &scrape.response_time
                && let Some(((sum, count), (sum_before, count_before))) =
                    counters.timed.zip(before.timed)
            {
                let mean = grown(Some(sum), Some(sum_before))
                    .zip(grown(Some(count), Some(count_before)).filter(|count| *count > 0.0));
                signal.response_time_ms =
                    mean.map(|(sum, count)| sum / count * milliseconds(&selector.name));
            }
        }
        Ok(signal)
    }
}

/// How much a counter grew, unless it was restarted.
fn grown(now: Option<f64>, before: Option<f64>) -> Option<f64> {
    let grown = now? - before?;
    (grown >= 0.0).then_some(grown)
}

fn values(selector: &Selector, text: &str, suffix: &str) -> Result<Vec<f64>, String> {
    selector.values(text, suffix).map_err(|line| {
        format!(
            "line {line} is not understood; serve the Prometheus text format, or name another metric than `{}`",
            selector.name
        )
    })
}

fn sum(selector: &Selector, text: &str, suffix: &str) -> Result<Option<f64>, String> {
    Ok(values(selector, text, suffix)?
        .into_iter()
        .reduce(|sum, value| sum + value))
}

fn missing(selector: &Selector) -> String {
    format!(
        "there is no sample of `{}` with the labels asked for; see what is served there and correct the name",
        selector.name
    )
}

/// Milliseconds of one unit of a metric.
fn milliseconds(name: &str) -> f64 {
    let ends = |suffixes: [&str; 2]| suffixes.iter().any(|suffix| name.ends_with(suffix));
    if ends(["_ms", "_milliseconds"]) {
        1.0
    } else if ends(["_us", "_microseconds"]) {
        1e-3
    } else {
        1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(requests: &str, response_time: &str) -> Scrape {
        let selector = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Scrape {
            url: "http://127.0.0.1:9113/metrics".parse().unwrap(),
            every: Duration::from_secs(1),
            requests: selector(requests),
            response_time: selector(response_time),
        }
    }

    fn read(scrape: &Scrape, texts: &[&str]) -> (Option<f64>, Option<f64>) {
        let mut meter = Meter::default();
        let mut signal = Signal::default();
        for (second, text) in (0..).zip(texts) {
            signal = meter
                .read(Duration::from_secs(2 * second), text, scrape)
                .unwrap();
        }
        (signal.requests_per_second, signal.response_time_ms)
    }

    #[test]
    fn a_counter_is_a_rate_between_two_readings() {
        let all = scrape("hits", "");
        assert_eq!(read(&all, &["hits 100"]), (None, None));
        assert_eq!(read(&all, &["hits 100", "hits 340"]), (Some(120.0), None));
        assert_eq!(read(&all, &["hits 100", "hits 100"]), (Some(0.0), None));
        assert_eq!(
            read(&all, &["hits 100", "hits 7"]),
            (None, None),
            "restarted"
        );
        assert_eq!(
            read(&all, &["hits 100", "hits 7", "hits 9"]),
            (Some(1.0), None)
        );
        let some = scrape("hits{code!=\"500\"}", "");
        let texts = [
            "hits{code=\"200\"} 1\nhits{code=\"500\"} 1",
            "hits{code=\"200\"} 5\nhits{code=\"500\"} 9",
        ];
        assert_eq!(read(&some, &texts), (Some(2.0), None));
    }

    #[test]
    fn a_response_time_is_a_mean_of_the_interval_or_what_is_named() {
        let histogram = scrape("", "d_seconds");
        let before = "d_seconds_bucket{le=\"1\"} 9\nd_seconds_sum 1.0\nd_seconds_count 10";
        let after = "d_seconds_bucket{le=\"1\"} 9\nd_seconds_sum 1.5\nd_seconds_count 30";
        assert_eq!(read(&histogram, &[before]), (None, None));
        assert_eq!(read(&histogram, &[before, after]), (None, Some(25.0)));
        assert_eq!(
            read(&histogram, &[before, before]),
            (None, None),
            "nothing was served"
        );
        let summary = "d_seconds{quantile=\"0.5\"} 0.1\nd_seconds{quantile=\"0.99\"} 0.25\nd_seconds_sum 5\nd_seconds_count 2";
        let quantile = scrape("", "d_seconds{quantile=\"0.99\"}");
        assert_eq!(read(&quantile, &[summary]), (None, Some(250.0)));
        let check = |name: &str, expected: f64| {
            let text = format!("{name}{{a=\"1\"}} 2\n{name}{{a=\"2\"}} 4");
            assert_eq!(
                read(&scrape("", name), &[&text]),
                (None, Some(expected)),
                "{name}"
            );
        };
        check("latency_ms", 4.0);
        check("latency_milliseconds", 4.0);
        check("latency_us", 0.004);
        check("latency_seconds", 4000.0);
        check("latency", 4000.0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let says = |scrape: &Scrape, text: &str, words: &str| {
            let refused = Meter::default()
                .read(Duration::ZERO, text, scrape)
                .unwrap_err();
            assert!(refused.contains(words), "{refused}");
        };
        says(&scrape("hits", ""), "<html>", "no sample of `hits`");
        says(
            &scrape("", "d"),
            "d{quantile=\"0.5\"} NaN",
            "no sample of `d`",
        );
        says(&scrape("hits", ""), "\nhits{ 7", "line 2");
    }
}
