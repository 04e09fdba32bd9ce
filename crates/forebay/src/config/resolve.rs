//! The second stage for the whole file: from typed values to a policy that this host can hold.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::app::{
    App, AppId, Binding, Floor, Foresight, IoProtection, OnStop, Partition, Policy,
};
use forebay_core::units::{Bytes, MilliCpu};

use super::accel;
use super::address::check_address;
use super::app::{Resolved, absolute, cgroup_path, resolve_app};
use super::dashboard::dashboard;
use super::error::{Findings, Problem};
use super::event::known_future;
use super::facts::HostFacts;
use super::fleet::fleet;
use super::front::fronts;
use super::offload;
use super::sources::{forecasts, otlp};
use super::text::{At, Section};
use super::tier::tiers;
use super::update;
use super::{Config, DaemonConfig, Readers, Retention};
use crate::fetch::Sources;
use crate::training::TrainingConfig;

const HEADROOM_PERCENT_MAX: u32 = 400;
const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const CENTURY: Duration = Duration::from_secs(36_525 * 86_400);

/// Resolves a file. What it returns after a mistake is noted is of no use.
pub(super) fn resolve(mut root: Section, host: &HostFacts, findings: &mut Findings<'_>) -> Config {
    let daemon = daemon(root.take_section("daemon"), host, findings);
    let mut policy = policy(root.take_section("policy"), host, findings);
    policy.offload = offload::rules(root.take_section("offload"), findings);
    let training = training(root.take_section("forecast"), findings);
    let mut places = BTreeMap::new();
    let mut floors = BTreeMap::new();
    let mut sources = Sources::default();
    let apps = root.take::<BTreeMap<String, Section>>("apps");
    for (name, section) in apps.map_or_else(BTreeMap::new, |v| v.value) {
        let (at, key) = (section.at, section.name.clone());
        match name.parse::<AppId>() {
            Ok(id) => {
                let resolved = resolve_app(id.clone(), section, host, findings);
                let Resolved {
                    floor,
                    app,
                    metrics,
                } = resolved;
                sources
                    .metrics
                    .extend(metrics.map(|metrics| (id.clone(), metrics)));
                floors.insert(id.clone(), floor);
                places.insert(id.clone(), (at, key));
                if let Some(mut app) = app {
                    let workers = accel::workers_directory(&daemon.socket);
                    if let Err(problem) = accel::tell_program(&mut app, &workers) {
                        let (at, key) = &places[&id];
                        findings.add(*at, format!("{key}.accelerators"), problem);
                    }
                    if let Err(problem) = update::tell_program(&mut app, &daemon.socket) {
                        let (at, key) = &places[&id];
                        findings.add(*at, format!("{key}.update"), problem);
                    }
                    policy.apps.insert(id, app);
                }
            }
            Err(_) => findings.add(
                at,
                key,
                Problem::new(
                    format!("`{name}` is not an app name"),
                    "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit",
                ),
            ),
        }
    }
    let ids: Vec<&AppId> = policy.apps.keys().collect();
    for (index, id) in ids.iter().enumerate() {
        let (at, key) = &places[*id];
        let app = &policy.apps[*id];
        let others = ids[..index].iter().map(|other| &policy.apps[*other]);
        if let Err(problem) = check_binding(app, others.clone(), &daemon.cgroup_root) {
            findings.add(*at, key, problem);
        }
        if let Err(problem) = check_address(app, others) {
            findings.add(*at, format!("{key}.move.address"), problem);
        }
    }
    let floors = floors.iter().map(|(id, floor)| (id, *floor)).collect();
    for problem in check_sums(&floors, policy.system_memory, host) {
        let at = places.values().map(|(at, _)| *at).min().unwrap_or(0);
        findings.add(at, "apps", problem);
    }
    let tiers = tiers(root.take("tiers"), findings);
    policy.tiered = !tiers.is_empty();
    let fronts = fronts(root.take("fronts"), &policy.apps, host, findings);
    for front in fronts.values() {
        let app = front.app(&daemon.state_dir, &host.executable);
        policy.apps.insert(app.id.clone(), app);
        for (id, _) in &front.instances {
            let Some(app) = policy.apps.get_mut(id) else {
                continue;
            };
            let own = (daemon.state_dir.as_path(), host.executable.as_path());
            if let Binding::Exec(exec) = &mut app.binding
                && let Some(prepared) = front.prepared(id, exec, own)
            {
                *exec = prepared;
            }
        }
    }
    // Also those that were refused, so that nothing is said twice.
    let names: Vec<&str> = places.keys().map(AppId::as_str).collect();
    let (events, calendars) = (root.take("event"), root.take("calendars"));
    let known_future = known_future(events, calendars, &names, host, findings);
    let is_app = |app: &AppId| places.contains_key(app);
    sources.forecasts = forecasts(root.take("external_forecast"), is_app, findings);
    let fleet = fleet(root.take("fleet"), host, findings);
    let dashboard = dashboard(root.take("dashboard"), host, findings);
    Config {
        policy,
        daemon,
        training,
        dashboard,
        fleet,
        tiers,
        fronts,
        known_future,
        sources,
    }
}

/// Whether a control group is the daemon's anchor or an app's group beside it, or in one.
fn is_own(path: &Path, cgroup_root: &str) -> bool {
    let path = path.to_string_lossy();
    path.strip_prefix(cgroup_root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}

/// Checks that an app shares its processes with no other.
pub(super) fn check_binding<'a>(
    app: &App,
    mut others: impl Iterator<Item = &'a App>,
    cgroup_root: &str,
) -> Result<(), Problem> {
    if let Binding::Cgroup(path) = &app.binding
        && is_own(path, cgroup_root)
    {
        return Err(Problem::new(
            format!("control group `{}` is one of Forebay's own", path.display()),
            "name the group that the app's own manager made",
        ));
    }
    let clash = |other: &App| match (&app.binding, &other.binding) {
        (Binding::Cgroup(a), Binding::Cgroup(b)) if a.starts_with(b) || b.starts_with(a) => {
            Some(format!("control group `{}`", b.display()))
        }
        (Binding::Match(a), Binding::Match(b)) if a == b => Some("same match".to_owned()),
        (Binding::Systemd(a), Binding::Systemd(b)) if a == b => Some(format!("unit `{b}`")),
        (Binding::Container(a), Binding::Container(b)) if a == b => {
            Some(format!("container `{b}`"))
        }
        (Binding::Systemd(unit), Binding::Cgroup(path))
        | (Binding::Cgroup(path), Binding::Systemd(unit))
            if path.iter().any(|part| *part == **unit) =>
        {
            Some(format!(
                "unit `{unit}`, which control group `{}` is in",
                path.display()
            ))
        }
        _ => None,
    };
    match others.find_map(|other| Some((clash(other)?, &other.id))) {
        None => Ok(()),
        Some((what, other)) => Err(Problem::new(
            format!("app `{other}` has the {what}, so that processes would belong to both"),
            "give each app processes of its own",
        )),
    }
}

/// Checks that the host can hold all floors at once.
pub(super) fn check_sums(
    floors: &BTreeMap<&AppId, Floor>,
    system_memory: Bytes,
    host: &HostFacts,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let cpu = MilliCpu(u64::try_from(host.cpus).map_or(u64::MAX, |n| n.saturating_mul(1000)));
    let cpu_sum = floors
        .values()
        .fold(0_u64, |sum, floor| sum.saturating_add(floor.cpu.0));
    if cpu_sum > cpu.0 {
        problems.push(Problem::new(
            format!(
                "the floors of {} add up to {}, and the host has {cpu}",
                parts(
                    floors.iter().map(|(id, floor)| (*id, floor.cpu)),
                    MilliCpu(0)
                ),
                MilliCpu(cpu_sum),
            ),
            "lower floor.cpu of some of them",
        ));
    }
    let memory_sum = floors
        .values()
        .fold(system_memory, |sum, floor| sum.saturating_add(floor.memory));
    if memory_sum > host.memory && memory_sum > system_memory {
        problems.push(Problem::new(
            format!(
                "the floors of {} and policy.system_memory ({}) add up to {memory_sum}, and the host has {}",
                parts(floors.iter().map(|(id, floor)| (*id, floor.memory)), Bytes(0)),
                system_memory,
                host.memory,
            ),
            "lower floor.memory of some of them",
        ));
    }
    problems
}

/// `db (2.00 CPU), web (1.00 CPU)`, without those that ask for nothing.
fn parts<'a, T: Display + PartialEq>(
    floors: impl Iterator<Item = (&'a AppId, T)>,
    nothing: T,
) -> String {
    let named: Vec<String> = floors
        .filter(|(_, floor)| *floor != nothing)
        .map(|(id, floor)| format!("{id} ({floor})"))
        .collect();
    named.join(", ")
}

fn policy(mut section: Section, host: &HostFacts, findings: &mut Findings<'_>) -> Policy {
    let defaults = Policy::default();
    let period = Bounds {
        min: 20 * MILLISECOND,
        max: 10_000 * MILLISECOND,
    };
    let period = bounded(&mut section, "period", period, findings).unwrap_or(defaults.period);
    let hold = Bounds {
        min: Duration::ZERO,
        max: HOUR,
    };
    let horizon = Bounds {
        min: period,
        max: HOUR,
    };
    let headroom = section.take::<u32>("headroom");
    if let Some(At { value, at }) = headroom
        && value > HEADROOM_PERCENT_MAX
    {
        let problem = Problem::new(
            format!("`{value}%` is more than a host can set aside"),
            format!("use at most \"{HEADROOM_PERCENT_MAX}%\""),
        );
        findings.add(at, section.key("headroom"), problem);
    }
    let system_memory = section.take::<Bytes>("system_memory");
    if let Some(At { value, at }) = system_memory
        && value >= host.memory
    {
        let problem = Problem::new(
            format!("{value} would leave nothing of the host's {}", host.memory),
            "lower it",
        );
        findings.add(at, section.key("system_memory"), problem);
    }
    let partition = section.take::<&str>("partition");
    let lend = section.take::<bool>("lend");
    if let (Some(At { value, at }), Some(At { value: true, .. })) = (partition, lend)
        && value != "none"
    {
        let problem = Problem::new(
            format!("CPUs in a `{value}` partition are nobody else's, so they cannot be lent"),
            "leave out `lend`, or set this to \"none\"",
        );
        findings.add(at, section.key("partition"), problem);
    }
    Policy {
        observe: matches!(
            section.take::<&str>("mode"),
            Some(At {
                value: "observe",
                ..
            })
        ),
        period,
        headroom_percent: headroom.map_or(defaults.headroom_percent, |v| v.value),
        hold: bounded(&mut section, "hold", hold, findings).unwrap_or(defaults.hold),
        // A period that is longer than the default horizon draws it along.
        horizon: bounded(&mut section, "horizon", horizon, findings)
            .unwrap_or(defaults.horizon.max(period)),
        foresight: match section.take::<&str>("forecast") {
            Some(At { value: "off", .. }) => Foresight::Present,
            _ => Foresight::Models,
        },
        system_memory: system_memory.map_or(defaults.system_memory, |v| v.value),
        lend: lend.map_or(defaults.lend, |v| v.value),
        reclaim_cold: section
            .take::<bool>("reclaim_cold")
            .map_or(defaults.reclaim_cold, |v| v.value),
        watch_memory: matches!(
            section.take::<&str>("hot_memory"),
            Some(At {
                value: "watched",
                ..
            })
        ),
        partition: match partition {
            Some(At { value: "root", .. }) => Partition::Root,
            Some(At {
                value: "isolated", ..
            }) => Partition::Isolated,
            _ => Partition::Member,
        },
        move_interrupts: matches!(
            section.take::<&str>("interrupts"),
            Some(At {
                value: "shared",
                ..
            })
        ),
        io_protection: match section.take::<&str>("io_protection") {
            Some(At {
                value: "latency", ..
            }) => IoProtection::Latency,
            Some(At { value: "cost", .. }) => IoProtection::Cost,
            _ => IoProtection::None,
        },
        batch_cache_percent: share(&mut section, "batch_cache", findings),
        batch_bandwidth_percent: share(&mut section, "batch_bandwidth", findings),
        oom_protection: section
            .take::<bool>("oom_protection")
            .map_or(defaults.oom_protection, |v| v.value),
        on_stop: match section.take::<&str>("on_stop") {
            Some(At { value: "kill", .. }) => OnStop::Kill,
            _ => OnStop::Keep,
        },
        apps: BTreeMap::new(),
        devices: BTreeMap::new(),
        tiered: defaults.tiered,
        offload: defaults.offload,
    }
}

fn training(mut section: Section, findings: &mut Findings<'_>) -> TrainingConfig {
    let defaults = TrainingConfig::default();
    TrainingConfig {
        on: match section.take::<&str>("training") {
            Some(At { value, .. }) => value == "on",
            None => defaults.on,
        },
        cpu_percent: share(&mut section, "training_cpu", findings).unwrap_or(defaults.cpu_percent),
    }
}

/// A share of something, 1% to 100%.
pub(super) fn share(section: &mut Section, key: &str, findings: &mut Findings<'_>) -> Option<u32> {
    let At { value, at } = section.take::<u32>(key)?;
    if (1..=100).contains(&value) {
        return Some(value);
    }
    let problem = Problem::new(format!("{value}% is no share"), "write 1% to 100%");
    findings.add(at, section.key(key), problem);
    None
}

fn container_socket(section: &mut Section, findings: &mut Findings<'_>) -> Option<PathBuf> {
    let at = section.at("container_socket");
    let path = absolute_path(section, "container_socket", findings)?;
    if path.to_string_lossy().contains(':') {
        let problem = Problem::new(
            format!("`{}` has a `:` in it", path.display()),
            "name the socket by a path without one, such as a symbolic link",
        );
        findings.add(at.unwrap_or(0), section.key("container_socket"), problem);
        return None;
    }
    Some(path)
}

fn daemon(mut section: Section, host: &HostFacts, findings: &mut Findings<'_>) -> DaemonConfig {
    let defaults = DaemonConfig::default();
    let lease = Bounds {
        min: 1_000 * MILLISECOND,
        max: 600_000 * MILLISECOND,
    };
    let mut config = DaemonConfig {
        socket: absolute_path(&mut section, "socket", findings).unwrap_or(defaults.socket),
        state_dir: absolute_path(&mut section, "state_dir", findings).unwrap_or(defaults.state_dir),
        lease: bounded(&mut section, "lease", lease, findings).unwrap_or(defaults.lease),
        readers: match section.take::<&str>("readers") {
            Some(At { value: "group", .. }) => Readers::Group,
            _ => Readers::Anyone,
        },
        http: http(&mut section, findings),
        history: history(section.take_section("history"), findings),
        container_socket: container_socket(&mut section, findings),
        criu: absolute_path(&mut section, "criu", findings),
        qemu: absolute_path(&mut section, "qemu", findings),
        otlp: section
            .take::<Section>("otlp")
            .and_then(|section| otlp(section.value, findings)),
        ..DaemonConfig::default()
    };
    if let Some(At { value, at }) = section.take::<String>("cgroup_root") {
        let key = section.key("cgroup_root");
        if let Some(path) = findings.keep(at, key, cgroup_path(&value)) {
            config.cgroup_root = path.display().to_string();
        }
    }
    if let Some(At { value, at }) = section.take::<String>("group") {
        let key = section.key("group");
        if findings.keep(at, key, host.check_group(&value)).is_some() {
            config.group = value;
        }
    }
    config
}

/// What is served there asks nobody who they are, so it stays on this host.
fn http(section: &mut Section, findings: &mut Findings<'_>) -> Option<SocketAddr> {
    let At { value, at } = section.take::<SocketAddr>("http")?;
    if value.ip().is_loopback() {
        return Some(value);
    }
    let problem = Problem::new(
        format!("`{value}` can be reached from other hosts, and this port asks for no password"),
        format!("use \"127.0.0.1:{0}\" or \"[::1]:{0}\"", value.port()),
    );
    findings.add(at, section.key("http"), problem);
    None
}

fn history(mut section: Section, findings: &mut Findings<'_>) -> Retention {
    let defaults = Retention::default();
    let mut keep = |key, period, default| {
        let bounds = Bounds {
            min: period,
            max: CENTURY,
        };
        bounded(&mut section, key, bounds, findings).unwrap_or(default)
    };
    Retention {
        rollup_10s: keep("10s", 10_000 * MILLISECOND, defaults.rollup_10s),
        rollup_1min: keep("1min", 60_000 * MILLISECOND, defaults.rollup_1min),
        rollup_1h: keep("1h", HOUR, defaults.rollup_1h),
    }
}

pub(super) fn absolute_path(
    section: &mut Section,
    key: &str,
    findings: &mut Findings<'_>,
) -> Option<PathBuf> {
    let At { value, at } = section.take::<String>(key)?;
    findings.keep(at, section.key(key), absolute(Path::new(&value)))?;
    Some(PathBuf::from(value))
}

/// Both included.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

pub(super) fn bounded(
    section: &mut Section,
    key: &str,
    bounds: Bounds,
    findings: &mut Findings<'_>,
) -> Option<Duration> {
    let At { value, at } = section.take::<Duration>(key)?;
    if (bounds.min..=bounds.max).contains(&value) {
        return Some(value);
    }
    let problem = Problem::new(
        format!("{value:?} is out of bounds"),
        format!("use {:?} to {:?}", bounds.min, bounds.max),
    );
    findings.add(at, section.key(key), problem);
    None
}
