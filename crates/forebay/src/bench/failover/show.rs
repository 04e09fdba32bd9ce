//! `forebay demo failover`: a service that is killed and stopped under its clients, live.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::clients::{CONNECTIONS, Clients, RATE};
use super::shop::{Forebay, Shop};
use super::{Fault, Scene, Tally};
use crate::demo::print::line;
use crate::demo::{Error, interruption};

/// Time between two faults, beside what it takes until the next shadow stands by.
const PAUSE: Duration = Duration::from_millis(1500);

/// Shows it for a while; the figures as JSON.
///
/// # Errors
/// When a part fails, or a signal ends it.
pub(crate) fn show(dir: &Path, length: Duration) -> Result<Value, Error> {
    let scene = Scene {
        dir,
        interrupted: interruption()?,
        memory_mib: 64,
    };
    line(format_args!(
        "A service and its shadow behind a front: {CONNECTIONS} connections ask {RATE} times a second, and every\n\
         fourth request is an order that must not be executed twice. The primary is killed and stopped in turn.\n"
    ));
    let mut shop = Forebay::open(&scene)?;
    shop.await_ready()?;
    let begin = Instant::now();
    let mut all = Tally::default();
    let mut number = 0;
    // Each round has clients of its own, so that what they met can be shown while it goes on.
    while number < 2 || begin.elapsed() < length {
        scene.check()?;
        let fault = if number % 2 == 0 {
            Fault::Killed
        } else {
            Fault::Stopped
        };
        number += 1;
        let clients = Clients::start(shop.address(), number << 32)?;
        scene.pause(PAUSE)?;
        let moment = shop.hurt(fault)?;
        scene.pause(PAUSE)?;
        shop.heal(fault)?;
        shop.await_ready()?;
        let mut round = Tally::default();
        round.add(&clients.stop()?, &[moment], &shop.executed()?);
        line(format_args!(
            "{number:>3}  {:<8} {}",
            format!("{fault:?}").to_lowercase(),
            words(&round)
        ));
        all.merge(round);
    }
    line(format_args!(
        "\n{number} times: {}\nlongest wait: {:.1} ms in the middle, {:.1} ms at most",
        words(&all),
        all.gap_ms(0.5),
        all.gap_ms(1.0)
    ));
    let changes = shop.changes();
    line(format_args!("\nwhat the front did, the latest last:"));
    for change in changes.iter().rev().take(4).rev() {
        line(format_args!("  {change}"));
    }
    let result = json!({
        "faults": number,
        "gaps_ms": all.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3).collect::<Vec<_>>(),
        "requests": all.requests,
        "failed_looks": all.failed_looks,
        "failed_orders": all.failed_orders,
        "unknown_orders": all.unknown_orders,
        "dropped": all.dropped,
        "twice": all.twice,
        "lost": all.lost,
    });
    Box::new(shop).close()?;
    Ok(result)
}

fn words(tally: &Tally) -> String {
    format!(
        "longest wait {:>6.1} ms; of {} requests {} failed, {} orders of unknown outcome; {} clients dropped, {} orders twice, {} lost",
        tally.gap_ms(1.0),
        tally.requests,
        tally.failed_looks + tally.failed_orders,
        tally.unknown_orders,
        tally.dropped,
        tally.twice,
        tally.lost
    )
}
