//! `forebay demo failover`: services that are killed and stopped under their clients, live.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cache::{self, Cache};
use super::clients::{CONNECTIONS, Clients, RATE, Speech};
use super::shop::{Forebay, Shop};
use super::{Fault, Scene, Tally};
use crate::demo::print::line;
use crate::demo::{Error, interruption, stay};

/// Time before a fault, and after it beside what it takes until the next shadow stands by.
const PAUSE: Duration = Duration::from_millis(1500);
/// Changes of each front that are shown at the end.
const CHANGES: usize = 3;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Http,
    Redis,
}

impl Service {
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Redis => "redis",
        }
    }
}

/// One kind of fault of one service.
struct Row {
    service: Service,
    fault: Fault,
    tally: Tally,
}

/// Shows it for a while; the figures as JSON.
///
/// # Errors
/// When a part fails, or a signal ends it.
pub(crate) fn show(dir: &Path, length: Duration, stays: bool) -> Result<Value, Error> {
    let scene = Scene {
        dir,
        interrupted: interruption()?,
        memory_mib: 64,
    };
    let missing = cache::is_installed().err();
    let (mut cache, besides) = match &missing {
        None => {
            let (cache, text) = Cache::plan(&scene)?;
            (Some(cache), text)
        }
        Some(_) => (None, String::new()),
    };
    introduce(missing.as_deref());
    let mut shop = Forebay::open(&scene, &besides)?;
    shop.await_ready()?;
    if let Some(cache) = &mut cache {
        cache.await_ready()?;
    }
    let mut rows = plan(cache.is_some());
    let begin = Instant::now();
    let mut number = 0;
    // Each round has clients of its own, so that what they met can be shown while it goes on.
    while number < rows.len() || begin.elapsed() < length {
        let place = number % rows.len();
        let Some(row) = rows.get_mut(place) else {
            break;
        };
        number += 1;
        let round = u64::try_from(number).unwrap_or(u64::MAX);
        let met = match (row.service, &mut cache) {
            (Service::Redis, Some(cache)) => {
                cache.begin(round);
                suffer(&scene, cache, Speech::Redis, row.fault, round)?
            }
            _ => suffer(&scene, &mut shop, Speech::Http, row.fault, round)?,
        };
        let gap = met.gap_ms(1.0);
        row.tally.merge(met);
        line(format_args!("{}", live(number, row, gap)));
    }
    line(format_args!("\n{}", table(&rows, missing.as_deref())));
    let fronts = [
        ("http", Some(shop.changes())),
        ("redis", cache.as_ref().map(Cache::changes)),
    ];
    for (name, changes) in fronts {
        let Some(changes) = changes else { continue };
        line(format_args!(
            "what the front of {name} did, the latest last:"
        ));
        let first = changes.len().saturating_sub(CHANGES);
        for change in changes.iter().skip(first) {
            line(format_args!("  {change}"));
        }
    }
    let result = result(number, &rows, missing.as_deref());
    if stays {
        stay(&[dir.join("socket")], &scene.interrupted);
    }
    Box::new(shop).close()?;
    Ok(result)
}

fn introduce(missing: Option<&str>) {
    let redis = missing.map_or_else(
        || {
            "Two redis-servers beside it, of which one replicates the other (guarantee `strict`; while a shadow is\n\
             missing, writes go on without it): every fourth command is a write of its own.\n"
                .to_owned()
        },
        |why| format!("SKIPPED: redis: {why}\n"),
    );
    line(format_args!(
        "An HTTP service and its shadow behind a front: {CONNECTIONS} connections ask {RATE} times a second, and every\n\
         fourth request is an order that must not be executed twice.\n\
         {redis}The primaries are killed and stopped in turn.\n"
    ));
}

fn plan(has_redis: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for fault in [Fault::Killed, Fault::Stopped] {
        for service in [Service::Http, Service::Redis] {
            if service == Service::Http || has_redis {
                rows.push(Row {
                    service,
                    fault,
                    tally: Tally::default(),
                });
            }
        }
    }
    rows
}

/// One fault under clients of its own.
fn suffer(
    scene: &Scene<'_>,
    shop: &mut dyn Shop,
    speech: Speech,
    fault: Fault,
    round: u64,
) -> Result<Tally, Error> {
    let clients = Clients::start(shop.address(), speech, round << 32)?;
    scene.pause(PAUSE)?;
    let moment = shop.hurt(fault)?;
    scene.pause(PAUSE)?;
    shop.heal(fault)?;
    shop.await_ready()?;
    let mut tally = Tally::default();
    let met = clients.stop()?;
    tally.add(&met, &[moment], &shop.executed()?);
    Ok(tally)
}

/// What one fault did, and what all like it did so far.
fn live(number: usize, row: &Row, gap_ms: f64) -> String {
    let Row {
        service,
        fault,
        tally,
    } = row;
    format!(
        "{number:>3}  {:<6} {:<8} longest wait {gap_ms:>6.1} ms; so far: {} of {} requests failed, {} of unknown outcome, \
         {} clients dropped, {} twice, {} lost",
        service.name(),
        format!("{fault:?}").to_lowercase(),
        tally.failed_looks + tally.failed_orders,
        tally.requests,
        tally.unknown_orders,
        tally.dropped,
        tally.twice,
        tally.lost
    )
}

fn table(rows: &[Row], missing: Option<&str>) -> String {
    let mut text = format!(
        "{:<16}{:>7}{:>12}{:>12}{:>10}{:>8}{:>9}{:>9}{:>7}{:>6}\n",
        "",
        "faults",
        "gap p50 ms",
        "gap max ms",
        "requests",
        "failed",
        "unknown",
        "dropped",
        "twice",
        "lost"
    );
    for Row {
        service,
        fault,
        tally,
    } in rows
    {
        text += &format!(
            "{:<16}{:>7}{:>12.1}{:>12.1}{:>10}{:>8}{:>9}{:>9}{:>7}{:>6}\n",
            format!(
                "{}, {}",
                service.name(),
                format!("{fault:?}").to_lowercase()
            ),
            tally.gaps.len(),
            tally.gap_ms(0.5),
            tally.gap_ms(1.0),
            tally.requests,
            tally.failed_looks + tally.failed_orders,
            tally.unknown_orders,
            tally.dropped,
            tally.twice,
            tally.lost
        );
    }
    if let Some(why) = missing {
        text += &format!("redis           not shown: {why}\n");
    }
    text + "gap: the longest that any client waited around a fault. failed: surely not executed, and the client was told.\n\
            unknown: nobody can tell, and the client was told. lost: acknowledged, and not there.\n"
}

fn result(faults: usize, rows: &[Row], missing: Option<&str>) -> Value {
    let rows = rows.iter().map(|row| {
        let tally = &row.tally;
        json!({
            "service": row.service.name(),
            "fault": format!("{:?}", row.fault).to_lowercase(),
            "gaps_ms": tally.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3).collect::<Vec<_>>(),
            "requests": tally.requests,
            "failed_looks": tally.failed_looks,
            "failed_orders": tally.failed_orders,
            "unknown_orders": tally.unknown_orders,
            "dropped": tally.dropped,
            "twice": tally.twice,
            "lost": tally.lost,
        })
    });
    json!({
        "faults": faults,
        "rows": rows.collect::<Vec<_>>(),
        "skipped": missing.map(|why| format!("redis: {why}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_missing_is_named_in_the_table_and_the_result() {
        let why = "redis-server: not found; `apt-get install redis-server` gets it";
        for (missing, lines) in [(None, 7), (Some(why), 6)] {
            let rows = plan(missing.is_none());
            let table = table(&rows, missing);
            assert_eq!(table.lines().count(), lines, "{table}");
            assert_eq!(table.contains(why), missing.is_some());
            let result = result(4, &rows, missing);
            assert_eq!(result["skipped"].is_string(), missing.is_some());
            assert_eq!(result["rows"].as_array().unwrap().len(), rows.len());
        }
    }
}
