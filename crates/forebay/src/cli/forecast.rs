//! Forecasts, as tables and as small pictures made of characters.

use std::time::Duration;

use clap::{Args, ValueEnum};
use forebay_api as api;
use forebay_api::Client;
use forebay_core::app::AppId;
use forebay_core::units::Bytes;

use super::Failure;
use super::render::{cores, memory_f64};
use crate::config;
use crate::output::{Output, numbers, table, words};

/// Heights of a bar.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Intervals of the past that are drawn.
const PAST_MAX: usize = 24;

/// Which forecasts to show.
#[derive(Debug, Args)]
pub(crate) struct ForecastArgs {
    /// Its name; all apps together unless given
    app: Option<AppId>,

    /// Only this resource; all that the app uses unless given
    #[arg(long, value_enum, requires = "app")]
    resource: Option<Forecastable>,

    /// How far ahead, such as 30s, 10m or 24h: at most a day
    #[arg(long, value_name = "TIME", value_parser = config::span, requires = "app")]
    horizon: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Forecastable {
    Cpu,
    Memory,
    Io,
    Received,
    Sent,
    Requests,
    #[value(name = "response_time")]
    ResponseTime,
}

/// Asks for the forecast and the past before it.
pub(super) async fn run(
    args: &ForecastArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), Failure> {
    let Some(app) = &args.app else {
        let forecast: api::HostForecast = client.get("/v1/forecast").await?;
        output.show(&forecast, together)?;
        return Ok(());
    };
    let mut uri = format!("/v1/forecast/{app}?");
    if let Some(named) = args.resource.and_then(|named| named.to_possible_value()) {
        uri += &format!("resource={}&", named.get_name());
    }
    if let Some(horizon) = args.horizon {
        uri += &format!("horizon_seconds={}", horizon.as_secs_f64());
    }
    let forecast: api::Forecast = client.get(uri.trim_end_matches(['&', '?'])).await?;
    let mut past = Vec::new();
    for one in &forecast.resources {
        let step = past_step(one);
        let uri = format!(
            "/v1/history/{app}/{}?step={}&limit={PAST_MAX}",
            one.resource,
            step.as_str()
        );
        // Without a history there is the forecast alone.
        past.push(client.get::<api::History>(&uri).await.ok());
    }
    output.show(&forecast, |forecast| text(forecast, &past, Detail::Brief))?;
    Ok(())
}

fn together(forecast: &api::HostForecast) -> String {
    let learning = forecast.learning.as_ref().map(learning).unwrap_or_default();
    if forecast.sums.is_empty() {
        return format!(
            "too little is known of the apps together yet; it takes some twenty minutes\n{learning}"
        );
    }
    let rows: Vec<_> = forecast
        .sums
        .iter()
        .map(|sum| {
            let show = |value: f64| show(&sum.resource, value);
            [
                sum.resource.clone(),
                span(sum.seconds),
                show(sum.peak.q50),
                show(sum.peak.q95),
                show(sum.peak.q99),
                show(sum.bounds),
                sum.apps.to_string(),
            ]
        })
        .collect();
    let columns = [
        words("PEAK OF ALL"),
        words("WITHIN"),
        numbers("q50"),
        numbers("q95"),
        numbers("q99"),
        numbers("SUM OF THEIR q95"),
        numbers("APPS"),
    ];
    format!(
        "{}the host has {} CPUs\n{learning}",
        table(columns, &rows),
        forecast.cpus
    )
}

/// One line about the network that learns.
fn learning(learning: &api::Learning) -> String {
    let mut line = match learning.version {
        0 => "network: as it comes with the program".to_owned(),
        version => format!("network: version {version}, learnt on this host"),
    };
    if let (Some(before), Some(loss)) = (learning.loss_before, learning.loss) {
        line += &format!(", loss {loss:.3} of a naive forecast's ({before:.3} before)");
    }
    if learning.on_trial {
        line += ", on trial";
    }
    line += &format!("; training: {}", learning.phase);
    if let Some(verdict) = &learning.verdict {
        line += &format!(", last time {}", verdict.replace('_', " "));
    }
    line += &format!(", {:.1} s of CPU\n", learning.cpu_seconds);
    if let Some(trouble) = &learning.trouble {
        line += &format!("no training: {trouble}\n");
    }
    line
}

/// How much is said of how forecasts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    Brief,
    Full,
}

/// Intervals of the past about as long as those of the course to come.
fn past_step(one: &api::ResourceForecast) -> api::Step {
    match one.course.first().map_or(0.0, |first| first.seconds) {
        seconds if seconds >= 1800.0 => api::Step::Hour,
        seconds if seconds >= 30.0 => api::Step::Minute,
        _ => api::Step::TenSeconds,
    }
}

/// Each resource; `past` is in the same order, as far as it goes.
pub(super) fn text(
    forecast: &api::Forecast,
    past: &[Option<api::History>],
    detail: Detail,
) -> String {
    if forecast.resources.is_empty() {
        return format!(
            "nothing is known of {} yet; it is forecast once it has run for a second\n",
            forecast.app
        );
    }
    let past = past.iter().map(Option::as_ref);
    let past = past.chain(std::iter::repeat(None));
    let each = forecast.resources.iter().zip(past).map(|(one, past)| {
        let mut text = format!("{} of {}\n", title(&one.resource), forecast.app);
        text += &rows(one);
        text += &fan(one, past);
        if detail == Detail::Full {
            text += &made(one);
        }
        text
    });
    let mut text = each.collect::<Vec<_>>().join("\n");
    if !forecast.known.is_empty() {
        text += "\nknown to come:\n";
        forecast
            .known
            .iter()
            .for_each(|line| text += &format!("  {line}\n"));
    }
    text
}

fn title(resource: &str) -> &str {
    match resource {
        "cpu" => "CPUs",
        "memory" => "memory that is worked with",
        "io" => "bytes per second to and from disks",
        "received" => "bytes per second received",
        "sent" => "bytes per second sent",
        "requests" => "requests per second",
        "response_time" => "response time in milliseconds",
        other => other,
    }
}

/// A value in the unit of its resource.
fn show(resource: &str, value: f64) -> String {
    match resource {
        "memory" => memory_f64(value),
        "io" | "received" | "sent" => format!("{}/s", Bytes::from_f64(value)),
        "requests" => format!("{value:.1}"),
        _ => cores(value),
    }
}

fn rows(one: &api::ResourceForecast) -> String {
    let show = |value: f64| show(&one.resource, value);
    let rows: Vec<_> = one
        .rows
        .iter()
        .map(|row| {
            let value = row.value.as_ref();
            let or_absent = |level: Option<f64>| level.map_or_else(|| "-".to_owned(), show);
            let cold = if row.cold {
                " (too little history yet)"
            } else {
                ""
            };
            [
                span(row.seconds),
                or_absent(value.map(|value| value.q50)),
                or_absent(value.map(|value| value.q95)),
                show(row.peak.q50),
                show(row.peak.q95),
                show(row.peak.q99),
                match &row.known {
                    Some(known) => known.clone(),
                    None => format!("{}{cold}", first(&row.bound)),
                },
            ]
        })
        .collect();
    let columns = [
        words("IN"),
        numbers("VALUE q50"),
        numbers("q95"),
        numbers("PEAK UNTIL THEN q50"),
        numbers("q95"),
        numbers("q99"),
        words("MOSTLY BY"),
    ];
    table(columns, &rows)
}

fn first(shares: &[api::ModelShare]) -> &str {
    shares.first().map_or("-", |share| share.model.as_str())
}

/// The past and what is to come, on one scale from zero.
fn fan(one: &api::ResourceForecast, past: Option<&api::History>) -> String {
    let past: Vec<f64> = past
        .map(|past| past.rows.iter().map(|row| row.mean).collect())
        .unwrap_or_default();
    let level = |level: fn(&api::Levels) -> f64| -> Vec<f64> {
        one.course.iter().map(|point| level(&point.value)).collect()
    };
    let (middle, bound) = (level(|l| l.q50), level(|l| l.q95));
    let Some(last) = one.course.last() else {
        return String::new();
    };
    let all = past.iter().chain(&middle).chain(&bound);
    let most = all.copied().fold(0.0, f64::max);
    let before = bars(&past, most);
    let indent = " ".repeat(past.len());
    format!(
        "{indent}┆{} q95, 0 to {} over {}\n{before}┆{} q50\n",
        bars(&bound, most),
        show(&one.resource, most),
        span(last.seconds),
        bars(&middle, most),
    )
}

/// One character for each value.
fn bars(values: &[f64], most: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of one, times the number of bars"
    )]
    let bar = |value: &f64| {
        let part = if most > 0.0 { value / most } else { 0.0 };
        BARS[((part * 8.0) as usize).min(BARS.len() - 1)]
    };
    values.iter().map(bar).collect()
}

/// Who made each answer, at what resolutions, and what was found there.
fn made(one: &api::ResourceForecast) -> String {
    let parts = |shares: &[api::ModelShare]| {
        let each = shares
            .iter()
            .map(|share| format!("{} {:.0}%", share.model, share.weight * 100.0));
        each.collect::<Vec<_>>().join(", ")
    };
    let rows: Vec<_> = one
        .rows
        .iter()
        .map(|row| {
            [
                span(row.seconds),
                parts(&row.centre),
                parts(&row.bound),
                format!("{:+.1}%", row.bound_excess * 100.0),
            ]
        })
        .collect();
    let columns = [
        words("IN"),
        words("MEDIAN BY"),
        words("95% BOUND BY"),
        numbers("EXCEEDED TOO OFTEN BY"),
    ];
    let scales = one.scales.iter().map(|scale| {
        let period = match scale.period_seconds {
            Some(period) => format!("a period of {}", span(period)),
            None => "no period found".to_owned(),
        };
        format!(
            "at steps of {}: {} seen, {period}\n",
            span(scale.bucket_seconds),
            scale.buckets_seen
        )
    });
    table(columns, &rows) + &scales.collect::<String>()
}

/// A span of time in its largest whole unit.
fn span(seconds: f64) -> String {
    let units = [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
    let fits = |(size, _): &(f64, &str)| seconds >= *size && (seconds / size).fract() < 1e-9;
    match units.into_iter().find(fits) {
        Some((size, unit)) => format!("{:.0} {unit}", seconds / size),
        None if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        None => format!("{seconds:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_told_beside_the_sum_of_bounds() {
        let mut forecast = api::HostForecast {
            cpus: 8,
            sums: Vec::new(),
            learning: None,
        };
        assert!(together(&forecast).contains("too little"));
        forecast.sums.push(api::SumForecast {
            resource: "cpu".to_owned(),
            seconds: 120.0,
            peak: levels(2.0),
            bounds: 5.5,
            apps: 3,
        });
        let text = together(&forecast);
        assert!(
            text.contains("cpu          2 min   2.00  4.00  6.00              5.50     3\n"),
            "{text}"
        );
        assert!(text.ends_with("the host has 8 CPUs\n"), "{text}");
        forecast.learning = Some(api::Learning {
            phase: "waiting".to_owned(),
            version: 3,
            on_trial: true,
            verdict: Some("not_better".to_owned()),
            loss_before: Some(0.84),
            loss: Some(0.8126),
            cpu_seconds: 12.34,
            trouble: None,
        });
        let text = together(&forecast);
        let line = "network: version 3, learnt on this host, loss 0.813 of a naive forecast's \
                    (0.840 before), on trial; training: waiting, last time not better, 12.3 s of CPU\n";
        assert!(text.ends_with(line), "{text}");
    }

    #[test]
    fn spans_are_told_in_whole_units() {
        let check = |seconds, expected| assert_eq!(span(seconds), expected);
        check(0.1, "100 ms");
        check(1.0, "1 s");
        check(90.0, "90 s");
        check(600.0, "10 min");
        check(21_600.0, "6 h");
        check(86_400.0, "1 d");
    }

    fn levels(q50: f64) -> api::Levels {
        api::Levels {
            q50,
            q90: q50 * 1.5,
            q95: q50 * 2.0,
            q99: q50 * 3.0,
        }
    }

    #[test]
    fn a_fan_follows_the_past_on_one_scale() {
        let one = api::ResourceForecast {
            resource: "cpu".to_owned(),
            rows: vec![api::ForecastRow {
                seconds: 600.0,
                value: Some(levels(1.0)),
                peak: levels(1.5),
                bucket_seconds: 10.0,
                cold: true,
                centre: Vec::new(),
                bound: vec![api::ModelShare {
                    model: "errors".to_owned(),
                    weight: 0.75,
                }],
                bound_excess: 0.01,
                known: None,
            }],
            course: [1.0, 2.0, 4.0]
                .map(|q50| api::CoursePoint {
                    seconds: q50 * 60.0,
                    value: levels(q50),
                })
                .to_vec(),
            scales: vec![api::ForecastScale {
                bucket_seconds: 10.0,
                buckets_seen: 77,
                period_seconds: Some(300.0),
            }],
        };
        let row = |mean| api::HistoryRow {
            time_unix_ms: 0,
            min: 0.0,
            mean,
            max: mean,
            samples: 1,
            demand_q95: None,
        };
        let past = api::History {
            app: "web".to_owned(),
            resource: api::Resource::Cpu,
            step: api::Step::TenSeconds,
            rows: vec![row(0.0), row(8.0)],
        };
        let fan = fan(&one, Some(&past));
        assert_eq!(fan, "  ┆▃▅█ q95, 0 to 8.00 over 4 min\n▁█┆▂▃▅ q50\n");
        let forecast = api::Forecast {
            app: "web".to_owned(),
            horizon_seconds: 1.0,
            demand: None,
            usage: api::Usage::default(),
            models: None,
            resources: vec![one],
            known: vec!["event nightly: every day at 02:00".to_owned()],
        };
        let past = [Some(past)];
        let brief = text(&forecast, &past, Detail::Brief);
        for wanted in [
            "CPUs of web\n",
            "10 min",
            "errors (too little history yet)",
            "4.50",
            "known to come:\n  event nightly: every day at 02:00\n",
        ] {
            assert!(brief.contains(wanted), "{wanted}: {brief}");
        }
        let mut raised = forecast.clone();
        raised.resources[0].rows[0].known = Some("event nightly".to_owned());
        let raised = text(&raised, &past, Detail::Brief);
        assert!(raised.contains("event nightly\n"), "{raised}");
        let full = text(&forecast, &past, Detail::Full);
        for wanted in [
            "errors 75%",
            "+1.0%",
            "at steps of 10 s: 77 seen, a period of 5 min",
        ] {
            assert!(full.contains(wanted), "{wanted}: {full}");
        }
    }
}
