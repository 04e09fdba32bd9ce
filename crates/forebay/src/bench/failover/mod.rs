//! A service that is killed, stopped and blocked under its clients, behind Forebay and behind haproxy.
//!
//! 64 connections ask 1,000 times a second; every fourth request is an order that must not be executed
//! twice. What was executed stands in a file that all instances share. The gap is the longest that
//! any client waited around one fault. Both arms run the same instances, one after the other, in every
//! repetition.

mod cache;
mod clients;
mod haproxy;
mod shop;
mod show;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) use self::shop::free_port;
pub(crate) use self::show::show;

use self::clients::{CONNECTIONS, Clients, End, Met, RATE, Sample, Speech};
use self::haproxy::Haproxy;
use self::shop::{Forebay, Shop};
use super::{Args, Target};
use crate::demo::print::line;
use crate::demo::{Error, interruption};

/// Memory of an instance, unless said otherwise.
const MEMORY_MIB: u64 = 256;
/// Time without faults before the first and after the last one.
const CALM: Duration = Duration::from_secs(1);
/// A request that was sent so long after a fault has nothing to do with it.
const AFTERMATH: Duration = Duration::from_secs(2);
/// For so long an event loop is blocked.
const BLOCKED: Duration = Duration::from_secs(3);

/// What happens to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    /// SIGKILL.
    Killed,
    /// SIGSTOP, and SIGCONT once another one serves.
    Stopped,
    /// Its only thread sleeps.
    Blocked,
}

impl Fault {
    /// How often it happens in one repetition. One that has to be guessed from silence is acted on
    /// once in a while only: what hangs again and again may hang because of its load.
    const fn times(self) -> u32 {
        match self {
            Self::Killed | Self::Stopped => 4,
            Self::Blocked => 1,
        }
    }
}

const FAULTS_ALL: [Fault; 3] = [Fault::Killed, Fault::Stopped, Fault::Blocked];

/// The two arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Arm {
    Forebay,
    Haproxy,
}

/// What one kind of fault did in one arm.
#[derive(Debug, Default)]
struct Tally {
    gaps: Vec<Duration>,
    requests: usize,
    failed_looks: usize,
    failed_orders: usize,
    unknown_orders: usize,
    dropped: u32,
    twice: usize,
    /// Orders that were answered and never executed.
    lost: usize,
}

/// What every arm needs.
struct Scene<'a> {
    dir: &'a Path,
    interrupted: Arc<AtomicBool>,
    memory_mib: u64,
}

impl Scene<'_> {
    fn check(&self) -> Result<(), Error> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    fn pause(&self, time: Duration) -> Result<(), Error> {
        std::thread::sleep(time);
        self.check()
    }
}

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, Value), Error> {
    let scene = Scene {
        dir,
        interrupted: interruption()?,
        memory_mib: args.memory.unwrap_or(MEMORY_MIB),
    };
    line(format_args!(
        "{CONNECTIONS} connections, {RATE} requests/s, every fourth an order; instances of {} MiB; {} \
         repetition(s)",
        scene.memory_mib, args.repetitions
    ));
    let arms: &[Arm] = if haproxy::is_installed() {
        &[Arm::Forebay, Arm::Haproxy]
    } else {
        line(format_args!(
            "SKIPPED: haproxy: not installed; `apt-get install haproxy` gets it"
        ));
        &[Arm::Forebay]
    };
    let mut tallies: HashMap<(Arm, Fault), Tally> = HashMap::new();
    for repetition in 0..args.repetitions {
        for arm in arms {
            scene.check()?;
            let mut shop: Box<dyn Shop> = match arm {
                Arm::Forebay => Box::new(Forebay::open(&scene, "")?),
                Arm::Haproxy => Box::new(Haproxy::open(&scene)?),
            };
            for (place, fault) in FAULTS_ALL.into_iter().enumerate() {
                let segment = u64::from(repetition) * 10 + u64::try_from(place).unwrap_or(0);
                let tally = tallies.entry((*arm, fault)).or_default();
                suffer(&scene, shop.as_mut(), fault, segment, tally)?;
            }
            shop.close()?;
        }
    }
    print(arms, &tallies);
    Ok(conclude(arms, &tallies))
}

/// Lets one kind of fault happen again and again under the clients.
fn suffer(
    scene: &Scene<'_>,
    shop: &mut dyn Shop,
    fault: Fault,
    segment: u64,
    tally: &mut Tally,
) -> Result<(), Error> {
    shop.await_ready()?;
    let clients = Clients::start(shop.address(), Speech::Http, segment << 32)?;
    scene.pause(CALM)?;
    let mut faults = Vec::new();
    for _ in 0..fault.times() {
        shop.await_ready()?;
        scene.pause(CALM)?;
        faults.push(shop.hurt(fault)?);
        scene.pause(CALM)?;
        shop.heal(fault)?;
    }
    shop.await_ready()?;
    scene.pause(CALM)?;
    let met = clients.stop()?;
    tally.add(&met, &faults, &shop.executed()?);
    Ok(())
}

impl Tally {
    fn add(&mut self, met: &Met, faults: &[Instant], executed: &HashMap<u64, u32>) {
        for fault in faults {
            let concerned = |sample: &&Sample| {
                sample.sent + sample.took >= *fault && sample.sent <= *fault + AFTERMATH
            };
            let waits = met.samples.iter().filter(concerned);
            self.gaps.extend(waits.map(|sample| sample.took).max());
        }
        self.requests += met.samples.len();
        self.dropped += met.dropped;
        for sample in &met.samples {
            let times = sample
                .order
                .map(|id| executed.get(&id).copied().unwrap_or(0));
            match (sample.end, times) {
                (End::Answered, Some(0)) => self.lost += 1,
                (End::Answered, _) => {}
                (End::Failed, None) | (End::Unknown, None) => self.failed_looks += 1,
                (End::Failed, Some(_)) => self.failed_orders += 1,
                (End::Unknown, Some(_)) => self.unknown_orders += 1,
            }
            if times.is_some_and(|times| times > 1) {
                self.twice += 1;
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.gaps.extend(other.gaps);
        self.requests += other.requests;
        self.failed_looks += other.failed_looks;
        self.failed_orders += other.failed_orders;
        self.unknown_orders += other.unknown_orders;
        self.dropped += other.dropped;
        self.twice += other.twice;
        self.lost += other.lost;
    }

    /// The gap that this share of the faults did not exceed, in milliseconds.
    fn gap_ms(&self, share: f64) -> f64 {
        let mut gaps: Vec<f64> = self
            .gaps
            .iter()
            .map(|gap| gap.as_secs_f64() * 1e3)
            .collect();
        gaps.sort_by(f64::total_cmp);
        let last = gaps.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place among some hundred gaps"
        )]
        let place = (share * last as f64).round() as usize;
        gaps.get(place).copied().unwrap_or(f64::NAN)
    }
}

fn print(arms: &[Arm], tallies: &HashMap<(Arm, Fault), Tally>) {
    line(format_args!(
        "\n{:<20}{:>7}{:>12}{:>12}{:>10}{:>9}{:>9}{:>9}{:>9}{:>7}{:>6}",
        "",
        "faults",
        "gap p50 ms",
        "gap p99 ms",
        "requests",
        "looks",
        "orders",
        "unknown",
        "dropped",
        "twice",
        "lost"
    ));
    for fault in FAULTS_ALL {
        for arm in arms {
            let Some(tally) = tallies.get(&(*arm, fault)) else {
                continue;
            };
            line(format_args!(
                "{:<20}{:>7}{:>12.1}{:>12.1}{:>10}{:>9}{:>9}{:>9}{:>9}{:>7}{:>6}",
                format!("{fault:?}, {arm:?}").to_lowercase(),
                tally.gaps.len(),
                tally.gap_ms(0.5),
                tally.gap_ms(0.99),
                tally.requests,
                tally.failed_looks,
                tally.failed_orders,
                tally.unknown_orders,
                tally.dropped,
                tally.twice,
                tally.lost
            ));
        }
    }
    line(format_args!(
        "looks and orders: requests that failed; unknown: orders of which nobody can tell, and the client was told so\n"
    ));
}

fn conclude(arms: &[Arm], tallies: &HashMap<(Arm, Fault), Tally>) -> (Vec<Target>, Value) {
    let mut targets = Vec::new();
    let mut all = Vec::new();
    for arm in arms {
        for fault in FAULTS_ALL {
            let Some(tally) = tallies.get(&(*arm, fault)) else {
                continue;
            };
            all.push(json!({
                "arm": format!("{arm:?}").to_lowercase(),
                "fault": format!("{fault:?}").to_lowercase(),
                "gaps_ms": tally.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3).collect::<Vec<_>>(),
                "requests": tally.requests,
                "failed_looks": tally.failed_looks,
                "failed_orders": tally.failed_orders,
                "unknown_orders": tally.unknown_orders,
                "dropped": tally.dropped,
                "twice": tally.twice,
                "lost": tally.lost,
            }));
            if *arm == Arm::Forebay {
                targets.extend(promises(fault, tally));
            }
        }
    }
    (targets, json!({ "failover": all }))
}

/// What is promised of one kind of fault.
fn promises(fault: Fault, tally: &Tally) -> [Target; 4] {
    let (gap, names) = match fault {
        Fault::Killed => (
            20.0,
            [
                "killed: gap p99",
                "killed: failed looks",
                "killed: clients dropped",
                "killed: executed twice or lost",
            ],
        ),
        Fault::Stopped => (
            60.0,
            [
                "stopped: gap p99",
                "stopped: failed looks",
                "stopped: clients dropped",
                "stopped: executed twice or lost",
            ],
        ),
        Fault::Blocked => (
            100.0,
            [
                "blocked: gap p99",
                "blocked: failed looks",
                "blocked: clients dropped",
                "blocked: executed twice or lost",
            ],
        ),
    };
    #[expect(clippy::cast_precision_loss, reason = "counts of some thousand")]
    let count = |count: usize| count as f64;
    [
        Target::at_most(names[0], tally.gap_ms(0.99), gap, "ms"),
        Target::at_most(names[1], count(tally.failed_looks), 0.0, "requests"),
        Target::at_most(names[2], f64::from(tally.dropped), 0.0, "clients"),
        Target::at_most(names[3], count(tally.twice + tally.lost), 0.0, "orders"),
    ]
}
