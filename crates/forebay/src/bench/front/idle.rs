//! Connections that say nothing, and a shadow that nobody asks.

use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use forebay_shadow::mode::Mode;
use serde_json::{Value, json};

use super::proxies::{self, Build, Front, Haproxy, Nginx};
use super::{Arm, House, Place, Scenario, cost, interrupted, load};
use crate::bench::Target;
use crate::demo::Error;
use crate::demo::print::{line, progress};

const CONNECTIONS: u32 = 10_000;
/// Files that a proxy has open beside those of connections.
const OWN_FILES: u64 = 600;
/// Time in which nothing is said.
const TIME: Duration = Duration::from_secs(3);

/// What nothing costs.
#[derive(Debug, Clone, Copy)]
struct Cost {
    arm: Arm,
    connections: u32,
    before_kib: u64,
    after_kib: u64,
    /// Share of one CPU.
    share: f64,
}

/// Measures both.
///
/// # Errors
/// When a connection cannot be made, or a process is gone.
pub(super) fn run(
    dir: &Path,
    house: &House,
    open_files: u64,
    flag: &AtomicBool,
) -> Result<(Vec<Target>, Value), Error> {
    let shadow = shadow(house)?;
    line(format_args!(
        "\na front that nobody asks, and the shadow behind it: {:.2} % of a core",
        shadow * 100.0
    ));
    // Through tcp each connection takes two files of the proxy.
    let room = u32::try_from(open_files.saturating_sub(OWN_FILES) / 2).unwrap_or(u32::MAX);
    let connections = room.min(CONNECTIONS);
    if connections < CONNECTIONS {
        line(format_args!(
            "SKIPPED: {CONNECTIONS} idle connections: a process may have {open_files} files open, and tcp takes two for \
             each; {connections} are made"
        ));
    }
    let directory = dir.join("idle");
    std::fs::create_dir(&directory).map_err(Error::system(
        "make",
        directory.display(),
        "free space",
    ))?;
    let mut rows = Vec::new();
    for scenario in [Scenario::Tcp, Scenario::Http] {
        line(format_args!(
            "\nidle, {}, {connections} connections{:<10}{:>14}{:>14}{:>16}{:>12}",
            scenario.name(),
            "",
            "before MiB",
            "after MiB",
            "KiB/connection",
            "% of a core"
        ));
        for arm in [Arm::Forebay, Arm::Haproxy, Arm::Nginx] {
            interrupted(flag)?;
            progress(format_args!("idle, {}, {}", scenario.name(), arm.name()));
            let cost = of(&directory, house, (scenario, arm), connections)?;
            if let Some(cost) = cost {
                print(&cost);
                rows.push(json!({
                    "scenario": scenario.name(),
                    "arm": cost.arm.name(),
                    "connections": cost.connections,
                    "resident_before_kib": cost.before_kib,
                    "resident_after_kib": cost.after_kib,
                    "cpu_share": cost.share,
                }));
            }
        }
    }
    let target = Target::at_most(
        "front and shadow that nobody asks",
        shadow * 100.0,
        3.0,
        "% of a core",
    );
    Ok((
        vec![target],
        json!({ "shadow_cpu_share": shadow, "connections": rows }),
    ))
}

/// The share of one CPU that a front with a shadow and the shadow itself take.
fn shadow(house: &House) -> Result<f64, Error> {
    let pids = [house.http.process.pid(), house.origins.shadow()];
    let (spent, time) = spend(&pids)?;
    Ok(spent.as_secs_f64() / time.as_secs_f64())
}

fn spend(pids: &[u32]) -> Result<(Duration, Duration), Error> {
    let sum = || {
        pids.iter()
            .map(|pid| cost::cpu(*pid))
            .sum::<Result<Duration, String>>()
    };
    let failed = |why| Error::part("a proxy", why);
    let (before, begin) = (sum().map_err(failed)?, Instant::now());
    std::thread::sleep(TIME);
    let (after, time) = (sum().map_err(failed)?, begin.elapsed());
    Ok((after.saturating_sub(before), time))
}

/// A proxy of its own, so that its memory is that of these connections alone.
fn of(
    dir: &Path,
    house: &House,
    (scenario, arm): (Scenario, Arm),
    connections: u32,
) -> Result<Option<Cost>, Error> {
    let dir = dir.join(format!("{}-{}", scenario.name(), arm.name()));
    std::fs::create_dir(&dir).map_err(Error::system("make", dir.display(), "free space"))?;
    let origin = house.origins.ports[0];
    // One more looks whether it listens.
    let room = connections + 16;
    let is_tcp = scenario == Scenario::Tcp;
    let mode = if is_tcp {
        Mode::Tcp
    } else {
        proxies::http_mode()
    };
    let (address, process) = match arm {
        Arm::Forebay => {
            let front = Front::before(Build::own(&dir), mode, &house.origins)?;
            (front.address, front.process)
        }
        Arm::Haproxy if house.haproxy.is_some() => {
            let haproxy = Haproxy::start(&dir, origin, room)?;
            let address = if is_tcp { haproxy.tcp } else { haproxy.http };
            (address, haproxy.process)
        }
        Arm::Nginx => {
            let known = house.nginx.as_ref();
            if known.is_none_or(|nginx| is_tcp && nginx.tcp.is_none()) {
                return Ok(None);
            }
            let nginx = Nginx::start(&dir, origin, room)?;
            let tcp = nginx.tcp.filter(|_| is_tcp);
            (tcp.unwrap_or(nginx.http), nginx.process)
        }
        _ => return Ok(None),
    };
    let failed = |why| Error::part(super::part(scenario, arm), why);
    let talk = super::Talk::Http { path: "/small" };
    let place = Place {
        arm,
        address,
        talk,
        pid: Some(process.pid()),
    };
    let before_kib = cost::resident_kib(process.pid()).map_err(failed)?;
    let streams = (0..connections).map(|_| asked(&place));
    // Held until the end: they are what is measured.
    let streams: Vec<TcpStream> = streams.collect::<Result<_, _>>().map_err(failed)?;
    let (spent, time) = spend(&[process.pid()])?;
    let after_kib = cost::resident_kib(process.pid()).map_err(failed)?;
    drop(streams);
    Ok(Some(Cost {
        arm,
        connections,
        before_kib,
        after_kib,
        share: spent.as_secs_f64() / time.as_secs_f64(),
    }))
}

/// A connection over which something was asked once: only then is it surely there on all sides.
fn asked(place: &Place) -> Result<TcpStream, String> {
    let mut stream = load::connect(place.address, place.talk)?;
    load::ask_once(&mut stream, place.talk)?;
    Ok(stream)
}

fn print(cost: &Cost) {
    let mib = |kib: u64| {
        #[expect(clippy::cast_precision_loss, reason = "some hundred thousand KiB")]
        let kib = kib as f64;
        kib / 1024.0
    };
    let each = mib(cost.after_kib.saturating_sub(cost.before_kib)) * 1024.0;
    line(format_args!(
        "  {:<36}{:>14.1}{:>14.1}{:>16.2}{:>12.2}",
        cost.arm.name(),
        mib(cost.before_kib),
        mib(cost.after_kib),
        each / f64::from(cost.connections.max(1)),
        cost.share * 100.0
    ));
}
