//! What a request costs through a front, beside haproxy, nginx and pgbouncer in the same run.
//!
//! All proxies stand before the same server, with one thread each, and are asked by the same clients over
//! loopback. Within a repetition each load is put on all arms one after the other, in an order that
//! rotates, so that a slow spell of the machine falls on all; a ratio is of two arms of one repetition,
//! and its median and range over the repetitions are shown. Latency is measured at a fixed rate, CPU
//! per request where each answer is followed by the next request.
//!
//! The fronts run without a daemon, with the primary's and the shadow's processes known to them; the
//! postgres front has no standby.

mod cost;
mod idle;
mod judge;
mod load;
mod postgres;
mod proxies;
mod talk;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_shadow::mode::Mode;
use forebay_shadow::postgres::Options;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use self::load::{Done, Pace, Work};
use self::postgres::{Cluster, Pgbouncer};
use self::proxies::{Build, Front, Haproxy, Member, Nginx, Origins};
use self::talk::Talk;
use super::{Args, Target};
use crate::demo::print::{line, progress};
use crate::demo::{Error, interruption};

/// Files that each process may have open, where that can be chosen.
const OPEN_FILES: u64 = 65_536;
/// Connections that a proxy has to take.
const CONNECTIONS: u32 = 4000;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scenario {
    /// Small requests, passed on as bytes.
    Tcp,
    /// Small requests of HTTP.
    Http,
    /// Answers of 1 MiB.
    Large,
    /// A simple query.
    Postgres,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario::Tcp,
    Scenario::Http,
    Scenario::Large,
    Scenario::Postgres,
];

/// How it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Load {
    connections: u32,
    pace: Pace,
}

const ONE: Load = Load {
    connections: 1,
    pace: Pace::Fixed(1000),
};
const MANY: Load = Load {
    connections: 64,
    pace: Pace::Fixed(2000),
};
const ONE_FULL: Load = Load {
    connections: 1,
    pace: Pace::Full,
};
const MANY_FULL: Load = Load {
    connections: 64,
    pace: Pace::Full,
};
const LARGE_FULL: Load = Load {
    connections: 8,
    pace: Pace::Full,
};

/// Whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Arm {
    Direct,
    Forebay,
    /// Another build of it.
    Beside,
    Haproxy,
    HaproxySplice,
    Nginx,
    Session,
    Transaction,
}

impl Scenario {
    const fn loads(self) -> &'static [Load] {
        match self {
            Self::Tcp | Self::Http | Self::Postgres => &[ONE, MANY, ONE_FULL, MANY_FULL],
            Self::Large => &[LARGE_FULL],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Large => "http 1 MiB",
            Self::Postgres => "postgres",
        }
    }
}

impl Load {
    fn name(self) -> String {
        let connections = match self.connections {
            1 => "1 connection".to_owned(),
            many => format!("{many} connections"),
        };
        match self.pace {
            Pace::Fixed(rate) => format!("{connections}, {rate}/s"),
            Pace::Full => format!("{connections}, no rate"),
        }
    }
}

impl Arm {
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Forebay => "Forebay",
            Self::Beside => "Forebay, the build beside",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy splice-auto",
            Self::Nginx => "nginx",
            Self::Session => "pgbouncer session",
            Self::Transaction => "pgbouncer transaction",
        }
    }
}

/// Where an arm of a scenario is asked, what, and which process is between.
#[derive(Debug, Clone, Copy)]
struct Place {
    arm: Arm,
    address: SocketAddr,
    talk: Talk,
    pid: Option<u32>,
}

/// Everything that runs.
///
/// Proxies end before what is behind them: they are named first.
struct House {
    tcp: Front,
    http: Front,
    /// Of another build: tcp and http.
    beside: Option<[Front; 2]>,
    haproxy: Option<Haproxy>,
    nginx: Option<Nginx>,
    database: Option<Database>,
    origins: Origins,
}

/// What is asked in PostgreSQL's protocol.
struct Database {
    front: Front,
    beside: Option<Front>,
    pgbouncer: Option<Pgbouncer>,
    cluster: Cluster,
}

/// All that was measured: one entry for each repetition.
type Figures = HashMap<(Scenario, Load, Arm), Vec<Done>>;

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, Value), Error> {
    let flag = interruption()?;
    let open_files = raise_open_files()?;
    let house = House::open(dir, args.beside.as_deref())?;
    let before = running();
    line(format_args!(
        "{} repetition(s); processes that wanted a CPU within the last minute, on average: {before}",
        args.repetitions
    ));
    let mut figures = Figures::new();
    for repetition in 0..args.repetitions {
        for scenario in SCENARIOS {
            house.measure(scenario, repetition, &flag, &mut figures)?;
        }
    }
    judge::print(&figures);
    let mut targets = judge::targets(&figures);
    let (idle_targets, idle) = idle::run(dir, &house, open_files, &flag)?;
    targets.extend(idle_targets);
    let result = json!({
        "front": judge::json(&figures),
        "idle": idle,
        "load_average": { "before": before, "after": running() },
    });
    line(format_args!(""));
    Ok((targets, result))
}

impl House {
    fn open(dir: &Path, beside: Option<&Path>) -> Result<Self, Error> {
        let origins = Origins::start()?;
        let origin = origins.ports[0];
        let skipped = |what: &str, package: &str| {
            line(format_args!(
                "SKIPPED: {what}: not installed; `apt-get install {package}` gets it"
            ));
        };
        let haproxy = if proxies::is_installed("haproxy") {
            Some(Haproxy::start(dir, origin, CONNECTIONS)?)
        } else {
            skipped("haproxy", "haproxy");
            None
        };
        let nginx = if proxies::is_installed("nginx") {
            Some(Nginx::start(dir, origin, CONNECTIONS)?)
        } else {
            skipped("nginx", "nginx-light");
            None
        };
        if nginx.as_ref().is_some_and(|nginx| nginx.tcp.is_none()) {
            skipped("nginx, tcp", "libnginx-mod-stream");
        }
        let own = Build::own(dir);
        let other = beside.map(|program| Build { program, dir });
        let database = if postgres::is_installed() {
            Some(Database::open(own, other, skipped)?)
        } else {
            skipped("PostgreSQL 15", "postgresql");
            None
        };
        let fronts = |build| {
            let tcp = Front::before(build, Mode::Tcp, &origins)?;
            let http = Front::before(build, proxies::http_mode(), &origins)?;
            Ok::<_, Error>([tcp, http])
        };
        let [tcp, http] = fronts(own)?;
        Ok(Self {
            tcp,
            http,
            beside: other.map(fronts).transpose()?,
            origins,
            haproxy,
            nginx,
            database,
        })
    }

    /// The arms of a scenario that can be measured here.
    fn places(&self, scenario: Scenario) -> Vec<Place> {
        let path = match scenario {
            Scenario::Large => "/large",
            Scenario::Tcp | Scenario::Http | Scenario::Postgres => "/small",
        };
        let place = |arm, address, process: Option<&proxies::Process>| Place {
            arm,
            address,
            talk: Talk::Http { path },
            pid: process.map(proxies::Process::pid),
        };
        let mut places = vec![place(Arm::Direct, self.origins.address(), None)];
        let front = |arm, front: &Front| place(arm, front.address, Some(&front.process));
        let beside = self.beside.as_ref();
        match scenario {
            Scenario::Tcp => {
                places.push(front(Arm::Forebay, &self.tcp));
                places.extend(beside.map(|[tcp, _]| front(Arm::Beside, tcp)));
                if let Some(haproxy) = &self.haproxy {
                    places.push(place(Arm::Haproxy, haproxy.tcp, Some(&haproxy.process)));
                }
                if let Some((nginx, tcp)) = self.nginx.as_ref().and_then(|n| Some((n, n.tcp?))) {
                    places.push(place(Arm::Nginx, tcp, Some(&nginx.process)));
                }
            }
            Scenario::Http | Scenario::Large => {
                places.push(front(Arm::Forebay, &self.http));
                places.extend(beside.map(|[_, http]| front(Arm::Beside, http)));
                if let Some(haproxy) = &self.haproxy {
                    places.push(place(Arm::Haproxy, haproxy.http, Some(&haproxy.process)));
                    if scenario == Scenario::Large {
                        let process = Some(&haproxy.process);
                        places.push(place(Arm::HaproxySplice, haproxy.splice, process));
                    }
                }
                if let Some(nginx) = &self.nginx {
                    places.push(place(Arm::Nginx, nginx.http, Some(&nginx.process)));
                }
            }
            Scenario::Postgres => {
                return self
                    .database
                    .as_ref()
                    .map_or_else(Vec::new, Database::places);
            }
        }
        places
    }

    /// Puts each load of a scenario on each of its arms.
    fn measure(
        &self,
        scenario: Scenario,
        repetition: u32,
        flag: &AtomicBool,
        figures: &mut Figures,
    ) -> Result<(), Error> {
        let places = self.places(scenario);
        let first = usize::try_from(repetition).unwrap_or(0) % places.len().max(1);
        for load in scenario.loads() {
            progress(format_args!(
                "{}, {}, {}",
                repetition + 1,
                scenario.name(),
                load.name()
            ));
            for place in places.iter().cycle().skip(first).take(places.len()) {
                interrupted(flag)?;
                let done = segment(place, *load)
                    .map_err(|why| Error::part(part(scenario, place.arm), why))?;
                let key = (scenario, *load, place.arm);
                figures.entry(key).or_default().push(done);
            }
        }
        Ok(())
    }
}

fn part(scenario: Scenario, arm: Arm) -> String {
    format!("{}, {}", scenario.name(), arm.name())
}

fn segment(place: &Place, load: Load) -> Result<Done, String> {
    let work = Work {
        address: place.address,
        talk: place.talk,
        connections: load.connections,
        pace: load.pace,
        time: SEGMENT,
    };
    load::run(&work, || place.pid.map_or(Ok(Duration::ZERO), cost::cpu))
}

/// Time of one arm under one load.
const SEGMENT: Duration = Duration::from_millis(800);

impl Database {
    fn open(
        own: Build<'_>,
        other: Option<Build<'_>>,
        skipped: impl Fn(&str, &str),
    ) -> Result<Self, Error> {
        let dir = own.dir;
        let cluster = Cluster::start(dir)?;
        let pgbouncer = if proxies::is_installed("pgbouncer") {
            Some(Pgbouncer::start(dir, cluster.port)?)
        } else {
            skipped("pgbouncer", "pgbouncer");
            None
        };
        let served = Member {
            port: cluster.port,
            pid: Some(cluster.pid()),
        };
        let missing = Member {
            port: super::failover::free_port()?,
            pid: None,
        };
        let front = |build| {
            let mode = Mode::Postgres(Options::new("postgres".to_owned()));
            Front::start(build, mode, &[served, missing])
        };
        Ok(Self {
            front: front(own)?,
            beside: other.map(front).transpose()?,
            pgbouncer,
            cluster,
        })
    }

    fn places(&self) -> Vec<Place> {
        let place = |arm, address, database, process: Option<&proxies::Process>| Place {
            arm,
            address,
            talk: Talk::Postgres { database },
            pid: process.map(proxies::Process::pid),
        };
        let name = postgres::DATABASE;
        let front = |arm, front: &Front| place(arm, front.address, name, Some(&front.process));
        let mut places = vec![
            place(Arm::Direct, self.cluster.address(), name, None),
            front(Arm::Forebay, &self.front),
        ];
        places.extend(
            self.beside
                .as_ref()
                .map(|beside| front(Arm::Beside, beside)),
        );
        if let Some(pgbouncer) = &self.pgbouncer {
            for (arm, database) in [
                (Arm::Session, postgres::SESSION),
                (Arm::Transaction, postgres::TRANSACTION),
            ] {
                let process = Some(&pgbouncer.process);
                places.push(place(arm, pgbouncer.address, database, process));
            }
        }
        places
    }
}

/// Allows this process and those that it starts as many open files as the system lets it; how many.
fn raise_open_files() -> Result<u64, Error> {
    let before = getrlimit(Resource::Nofile).maximum;
    let set = |most: Option<u64>| {
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        setrlimit(Resource::Nofile, limit).map(|()| most.unwrap_or(u64::MAX))
    };
    let wanted = before.map(|before| before.max(OPEN_FILES));
    set(wanted).or_else(|_| set(before)).map_err(Error::system(
        "raise",
        "the limit on open files",
        "this should not happen; report it",
    ))
}

/// The first figure of /proc/loadavg: what ran beside has to be known to trust a figure.
fn running() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

fn interrupted(flag: &AtomicBool) -> Result<(), Error> {
    match flag.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted),
        false => Ok(()),
    }
}
