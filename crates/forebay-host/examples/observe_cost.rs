//! What the live host costs: microseconds to look at one app, milliseconds to start one.
//! Run as root: `cargo run --release -p forebay-host --example cost [APPS]`.

#![expect(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a tool that prints measurements"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use forebay_core::app::{App, AppId, Binding, Class, Exec, OnStop, Restart};
use forebay_core::host::{Action, Host, Outcome, Watch};
use forebay_core::slice::{Setting, Slice};
use forebay_core::units::{Bytes, Limit, MilliCpu, Time};
use forebay_host::{LinuxHost, Options};

const PERIODS: u64 = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args().nth(1).map_or(Ok(10), |n| n.parse())?;
    let state_dir = std::env::temp_dir().join(format!("forebay-cost-{}", std::process::id()));
    let mut host = LinuxHost::open(Options {
        group: PathBuf::from(format!("forebay-cost-{}", std::process::id())),
        state_dir: state_dir.clone(),
        ..Options::default()
    })?;
    let apps: BTreeMap<AppId, App> = (0..count)
        .map(|number| app(number).map(|app| (app.id.clone(), app)))
        .collect::<Result<_, _>>()?;

    let starts: Vec<Action> = apps
        .values()
        .map(|app| Action::Start {
            app: app.clone().into(),
        })
        .collect();
    time("start", starts.len(), || done(host.apply(&starts)));

    let mut in_force: BTreeMap<AppId, Slice> = BTreeMap::new();
    for setting in [
        Setting::Cpus(host.topology().cpu_set()),
        Setting::CpuWeight(300),
        Setting::CpuMax(Limit::At(MilliCpu(900))),
        Setting::MemoryMax(Limit::At(Bytes::mib(512))),
    ] {
        let actions: Vec<Action> = apps
            .keys()
            .map(|app| Action::Set {
                app: app.clone(),
                setting,
            })
            .collect();
        for app in apps.keys() {
            in_force.entry(app.clone()).or_default().set(setting);
        }
        let name = setting.to_string();
        time(&name, actions.len(), || done(host.apply(&actions)));
    }

    for (name, apps) in [("observe none", BTreeMap::new()), ("observe all", apps)] {
        let watch = |period| Watch {
            time: Time::default(),
            period,
            apps: &apps,
            in_force: &in_force,
        };
        host.observe(&watch(0));
        let start = Instant::now();
        for period in 1..=PERIODS {
            host.observe(&watch(period));
        }
        let each = start.elapsed().as_secs_f64() * 1e6 / PERIODS as f64;
        println!("{name}: {each:.1} us a period");
    }
    let start = Instant::now();
    let report = host.close(OnStop::Kill)?;
    println!(
        "close: {:.1} ms, {report:?}",
        start.elapsed().as_secs_f64() * 1e3
    );
    std::fs::remove_dir_all(&state_dir)?;
    Ok(())
}

fn app(number: usize) -> Result<App, Box<dyn Error>> {
    Ok(App::new(
        format!("app-{number}").parse()?,
        Class::Standard,
        Binding::Exec(Exec {
            restart: Restart::Never,
            ..Exec::of(vec!["sleep".to_owned(), "1000".to_owned()])
        }),
    ))
}

fn done(outcomes: Vec<Outcome>) {
    for outcome in outcomes {
        if outcome != Outcome::Done {
            println!("  {outcome:?}");
        }
    }
}

fn time(what: &str, count: usize, act: impl FnOnce()) {
    let start = Instant::now();
    act();
    let each = start.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64;
    println!("{what}: {each:.0} us each");
}
