//! The second stage for one app: what its keys mean together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use forebay_core::app::{
    App, AppId, Binding, Ceiling, Class, Device, Exec, Floor, Images, IoMax, Match, Restart, Sink,
    Uclamp,
};
use forebay_core::fleet::mobility::{Connections, Memory, Mobility, Way};
use forebay_core::fleet::tenure::Takeover;
use forebay_core::units::{Bytes, Limit, MilliCpu, Utilization};

use super::accel::accelerators;
use super::address::address;
use super::error::{Findings, Problem};
use super::facts::HostFacts;
use super::offload::RESPONSE_TIME;
use super::resolve::bounded;
use super::sources;
use super::text::{At, Section};
use crate::fetch::Scrape;

/// The least processor time that the kernel takes as a quota: 1 ms in its period of 100 ms.
const CEILING_CPU_MIN: MilliCpu = MilliCpu(10);

/// Between two images of a program.
const IMAGES_EVERY: Duration = Duration::from_secs(60);
const IMAGES_EVERY_MIN: Duration = Duration::from_secs(1);
const IMAGES_EVERY_MAX: Duration = Duration::from_secs(86_400);

/// The keys that say how Forebay starts a program.
const EXEC_ONLY: [&str; 11] = [
    "user",
    "group",
    "directory",
    "environment",
    "stdout",
    "stderr",
    "restart",
    "images",
    "move",
    "accelerators",
    "update",
];

/// The keys of which an app has one: which processes are its own.
const BINDINGS: [&str; 5] = ["exec", "systemd", "container", "cgroup", "match"];

/// What one app's section comes to.
pub(super) struct Resolved {
    /// Counts against the host even when the app is refused for something else.
    pub(super) floor: Floor,
    /// Nothing when it has no usable binding.
    pub(super) app: Option<App>,
    /// Where it tells of itself.
    pub(super) metrics: Option<Scrape>,
}

/// Resolves one app.
pub(super) fn resolve_app(
    id: AppId,
    mut section: Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Resolved {
    let class = section
        .take::<&str>("class")
        .and_then(|word| class(word.value))
        .unwrap_or(Class::Standard);
    let binding = binding(&mut section, host, findings);
    let images = images(&mut section, findings);
    let mobility = mobility(&id, &mut section, findings);
    let with_memory = mobility
        .as_ref()
        .is_some_and(|mobility| mobility.way == Way::Checkpoint);
    let accelerators = accelerators(&mut section, images.is_some() || with_memory, findings);

    let update = super::update::part(&mut section, images.is_some() || with_memory, findings);

    let mut floor = section.take_section("floor");
    let mut ceiling = section.take_section("ceiling");
    let places = [
        ("floor.cpu", floor.at("cpu")),
        ("floor.memory", floor.at("memory")),
        ("ceiling.cpu", ceiling.at("cpu")),
        ("ceiling.memory", ceiling.at("memory")),
    ];
    let floor = Floor {
        cpu: floor.take("cpu").map_or(MilliCpu(0), |v| v.value),
        memory: floor.take("memory").map_or(Bytes(0), |v| v.value),
    };
    let ceiling = Ceiling {
        cpu: limit(&mut ceiling, "cpu"),
        memory: limit(&mut ceiling, "memory"),
        swap: limit(&mut ceiling, "swap"),
        zswap: limit(&mut ceiling, "zswap"),
        pids: limit(&mut ceiling, "pids"),
        egress: limit(&mut ceiling, "egress"),
    };
    let places = [
        &places[..],
        &[
            ("uclamp_min", section.at("uclamp_min")),
            ("uclamp_max", section.at("uclamp_max")),
        ],
    ]
    .concat();
    let mut clamp = |key| section.take(key).map(|v| Utilization::percent(v.value));
    let uclamp = Uclamp {
        min: clamp("uclamp_min"),
        max: clamp("uclamp_max"),
    };
    let problems = check_bounds(floor, ceiling).into_iter();
    for (key, problem) in problems.chain(check_uclamp(uclamp)) {
        let place = places.iter().find(|(name, _)| *name == key);
        let at = place.and_then(|(_, at)| *at).unwrap_or(section.at);
        findings.add(at, format!("{}.{key}", section.name), problem);
    }
    let request = section.take_section("request").take("cpu");
    let io_weight = section.take::<u64>("io_weight");
    let io_max = io_max(&mut section, host, findings);
    let response_time_max = bounded(&mut section, "response_time_max", RESPONSE_TIME, findings);
    let metrics = section
        .take::<Section>("metrics")
        .and_then(|metrics| sources::metrics(metrics.value, findings));
    let app = binding.map(|binding| App {
        id,
        class,
        binding,
        floor,
        ceiling,
        request: request.map(|v| v.value),
        uclamp,
        cpu_weight: None,
        io_weight: io_weight.and_then(|weight| u32::try_from(weight.value).ok()),
        io_max,
        images,
        response_time_max,
        mobility,
        accelerators,
        update,
    });
    Resolved {
        floor,
        app,
        metrics,
    }
}

/// When images of the program are taken.
fn images(section: &mut Section, findings: &mut Findings<'_>) -> Option<Images> {
    let mut images = section.take::<Section>("images")?.value;
    let every = images.take::<Duration>("every");
    if let Some(At { value, at }) = every
        && !(IMAGES_EVERY_MIN..=IMAGES_EVERY_MAX).contains(&value)
    {
        let message = format!("{value:?} between two images is not possible");
        let key = images.key("every");
        findings.add(at, key, Problem::new(message, "use 1s to 1 day"));
    }
    let every = every.map_or(IMAGES_EVERY, |every| every.value);
    Some(Images { every })
}

/// How it changes hosts; none where it stays.
fn mobility(id: &AppId, section: &mut Section, findings: &mut Findings<'_>) -> Option<Mobility> {
    let mut movable = section.take::<Section>("move")?.value;
    let way = match movable.take::<&str>("mode").map(|word| word.value) {
        Some("restart") => Some(Way::Restart),
        Some("checkpoint") => Some(Way::Checkpoint),
        Some("handoff") => Some(Way::Handoff),
        _ => None,
    };
    let takeover = match movable.take::<&str>("takeover").map(|word| word.value) {
        Some("after-lease") => Takeover::AfterLease,
        _ => Takeover::Never,
    };
    let connections = match movable.take::<&str>("connections").map(|word| word.value) {
        Some("close") => Connections::Close,
        _ => Connections::Refuse,
    };
    let memory = match movable.take::<&str>("memory").map(|word| word.value) {
        Some("post-copy") => Memory::PostCopy,
        _ => Memory::PreCopy,
    };
    let files = movable.take::<Vec<String>>("files");
    let at = files.as_ref().map_or(movable.at, |files| files.at);
    let files: Vec<PathBuf> = files
        .map_or_else(Vec::new, |files| files.value)
        .into_iter()
        .map(PathBuf::from)
        .collect();
    for problem in check_moved(&files) {
        findings.add(at, movable.key("files"), problem);
    }
    let address = address(&mut movable, way, findings);
    let apart = apart(id, &mut movable, findings);
    Some(Mobility {
        way: way?,
        files,
        takeover,
        connections,
        memory,
        address,
        apart,
    })
}

/// Whom it shares no host with.
fn apart(own: &AppId, movable: &mut Section, findings: &mut Findings<'_>) -> BTreeSet<AppId> {
    let Some(names) = movable.take::<Vec<String>>("apart") else {
        return BTreeSet::new();
    };
    let mut apart = BTreeSet::new();
    for name in names.value {
        let message = match name.parse::<AppId>() {
            Ok(id) if id == *own => format!("`{name}` is this app"),
            Ok(id) => {
                apart.insert(id);
                continue;
            }
            Err(error) => error.to_string(),
        };
        let problem = Problem::new(message, "write the names of others, as in [apps.NAME]");
        findings.add(names.at, movable.key("apart"), problem);
    }
    apart
}

/// What is wrong with the files that go along with an app.
fn check_moved(files: &[PathBuf]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, file) in files.iter().enumerate() {
        problems.extend(absolute(file).err());
        let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if file.file_name().is_none() || !file.components().all(is_plain) {
            let message = format!("`{}` does not name one file or directory", file.display());
            problems.push(Problem::new(message, "write its path without `..`"));
        }
        let mut others = files[..index].iter();
        if let Some(other) = others.find(|o| o.starts_with(file) || file.starts_with(o)) {
            let message = format!("`{}` and `{}` overlap", other.display(), file.display());
            problems.push(Problem::new(message, "keep the outer one"));
        }
    }
    problems
}

/// What is wrong with an app's floors and ceilings, by key.
pub(super) fn check_bounds(floor: Floor, ceiling: Ceiling) -> Vec<(&'static str, Problem)> {
    let mut problems = Vec::new();
    let mut add =
        |key, message: String, fix: String| problems.push((key, Problem::new(message, fix)));
    if let Limit::At(cpu) = ceiling.cpu
        && cpu < CEILING_CPU_MIN
    {
        add(
            "ceiling.cpu",
            format!("a ceiling of {}m is below what the kernel takes", cpu.0),
            format!("use at least \"{}m\"", CEILING_CPU_MIN.0),
        );
    } else if !ceiling.cpu.allows(floor.cpu) {
        add(
            "floor.cpu",
            format!(
                "the floor ({}) is above the ceiling ({})",
                floor.cpu, ceiling.cpu
            ),
            "lower floor.cpu or raise ceiling.cpu".to_owned(),
        );
    }
    if ceiling.memory == Limit::At(Bytes(0)) {
        add(
            "ceiling.memory",
            "a ceiling of zero lets nothing run".to_owned(),
            "give what the app needs, or leave the key out".to_owned(),
        );
    } else if !ceiling.memory.allows(floor.memory) {
        add(
            "floor.memory",
            format!(
                "the floor ({}) is above the ceiling ({})",
                floor.memory, ceiling.memory
            ),
            "lower floor.memory or raise ceiling.memory".to_owned(),
        );
    }
    problems
}

/// What is wrong with an app's utilization clamps, by key.
pub(super) fn check_uclamp(uclamp: Uclamp) -> Vec<(&'static str, Problem)> {
    let clamps = [("uclamp_min", uclamp.min), ("uclamp_max", uclamp.max)];
    let mut problems = Vec::new();
    for (key, clamp) in clamps {
        if let Some(clamp) = clamp.filter(|clamp| *clamp > Utilization::FULL) {
            let message = format!("{clamp} is more than a CPU has");
            problems.push((key, Problem::new(message, "use 0% to 100%")));
        }
    }
    if let (Some(min), Some(max)) = (uclamp.min, uclamp.max)
        && min > max
    {
        let message = format!("the least ({min}) is above the most ({max})");
        let fix = "lower uclamp_min or raise uclamp_max";
        problems.push(("uclamp_min", Problem::new(message, fix)));
    }
    problems
}

/// The class of a word.
pub(super) fn class(word: &str) -> Option<Class> {
    [Class::Critical, Class::Standard, Class::Batch]
        .into_iter()
        .find(|class| class.to_string() == word)
}

fn limit<T>(section: &mut Section, key: &str) -> Limit<T>
where
    Limit<T>: TryFrom<super::text::Value, Error = super::text::Value>,
{
    section.take(key).map_or(Limit::Max, |v| v.value)
}

fn binding(
    section: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<Binding> {
    let given: Vec<(&str, usize)> = BINDINGS
        .into_iter()
        .filter_map(|key| Some((key, section.at(key)?)))
        .collect();
    match given.as_slice() {
        [] if section.refused => return None,
        [] => {
            let problem = Problem::new(
                "nothing says which processes are the app's",
                "add exec = [\"PROGRAM\", ...], systemd = \"NAME.service\", \
                 container = \"NAME\", cgroup = \"PATH\" or match = { executable = \"NAME\" }",
            );
            findings.add(section.at, &section.name, problem);
            return None;
        }
        [(_, _)] => {}
        [_, rest @ ..] => {
            for (key, at) in rest {
                let problem = Problem::new(
                    format!("the app has `{}` already", given[0].0),
                    format!("keep one of {}", BINDINGS.join(", ")),
                );
                findings.add(*at, section.key(key), problem);
            }
            return None;
        }
    }
    if let Some(command) = section.take::<Vec<String>>("exec") {
        return exec(command, section, host, findings).map(Binding::Exec);
    }
    for key in EXEC_ONLY {
        if let Some(at) = section.at(key) {
            let problem = Problem::new(
                "only an app that Forebay starts has this key",
                "take it out, or bind the app with `exec`",
            );
            findings.add(at, section.key(key), problem);
        }
    }
    if let Some(path) = section.take::<String>("cgroup") {
        let key = section.key("cgroup");
        return findings
            .keep(path.at, key, cgroup_path(&path.value))
            .map(Binding::Cgroup);
    }
    if let Some(unit) = section.take::<String>("systemd") {
        let key = section.key("systemd");
        return findings
            .keep(unit.at, key, unit_name(unit.value))
            .map(Binding::Systemd);
    }
    if let Some(name) = section.take::<String>("container") {
        let key = section.key("container");
        return findings
            .keep(name.at, key, container_name(name.value))
            .map(Binding::Container);
    }
    matching(section.take_section("match"), findings).map(Binding::Match)
}

fn exec(
    command: At<Vec<String>>,
    section: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<Exec> {
    let places: Vec<(&str, Option<usize>)> = EXEC_ONLY
        .iter()
        .map(|key| (*key, section.at(key)))
        .collect();
    let restart = section.take::<&str>("restart").map(|word| word.value);
    let mut text = |key: &str| section.take::<String>(key).map(|text| text.value);
    let mut exec = Exec {
        command: command.value,
        user: text("user"),
        group: text("group"),
        directory: text("directory").map(PathBuf::from),
        stdout: text("stdout").map(sink),
        stderr: text("stderr").map(sink),
        environment: section
            .take::<BTreeMap<String, String>>("environment")
            .map_or_else(BTreeMap::new, |variables| variables.value),
        restart: match restart {
            Some("always") => Restart::Always,
            Some("never") => Restart::Never,
            _ => Restart::OnFailure,
        },
    };
    let before = findings.count();
    for (key, problem) in check_exec(&exec, host) {
        let place = places.iter().find(|(name, _)| *name == key);
        let at = place.and_then(|(_, at)| *at).unwrap_or(command.at);
        findings.add(at, section.key(key), problem);
    }
    let program = findings.keep(command.at, section.key("exec"), host.find_program(&exec));
    exec.command[0] = program?;
    (findings.count() == before).then_some(exec)
}

fn sink(text: String) -> Sink {
    match text.as_str() {
        "journal" => Sink::Journal,
        _ => Sink::File(PathBuf::from(text)),
    }
}

/// What is wrong with how an app is started, by key. The program itself is looked up apart.
pub(super) fn check_exec(exec: &Exec, host: &HostFacts) -> Vec<(&'static str, Problem)> {
    let mut problems = Vec::new();
    let mut check = |key, result: Result<(), Problem>| {
        problems.extend(result.err().map(|problem| (key, problem)));
    };
    if let Some(user) = &exec.user {
        check("user", host.check_user(user));
    }
    if let Some(group) = &exec.group {
        check("group", host.check_group(group));
    }
    if let Some(directory) = &exec.directory {
        let result = absolute(directory).and_then(|()| host.check_directory(directory));
        check("directory", result);
    }
    for (key, file) in [("stdout", &exec.stdout), ("stderr", &exec.stderr)] {
        if let Some(Sink::File(file)) = file {
            check(key, absolute(file));
        }
    }
    for name in exec.environment.keys() {
        if name.is_empty() || name.contains(['=', '\0']) {
            let message = format!("{name:?} cannot be a variable's name");
            let fix = "use letters, digits and `_`";
            check("environment", Err(Problem::new(message, fix)));
        }
    }
    problems
}

/// Checks that a path begins at the root.
pub(super) fn absolute(path: &Path) -> Result<(), Problem> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(Problem::new(
            format!("`{}` is a relative path", path.display()),
            "write the path from `/` on",
        ))
    }
}

/// A unit of systemd that has processes, with the kind in its name.
fn unit_name(unit: String) -> Result<String, Problem> {
    let problem = |message: &str, fix: String| Problem::new(format!("`{unit}` {message}"), fix);
    let kinds = [".service", ".scope", ".slice"];
    let see = || "see `systemctl list-units` for the names".to_owned();
    if unit.contains('/') {
        let last = unit.rsplit('/').next().unwrap_or_default();
        return Err(problem(
            "is a path",
            format!("write the unit's name alone, `{last}`"),
        ));
    }
    let Some(name) = kinds.iter().find_map(|kind| unit.strip_suffix(kind)) else {
        return Err(problem(
            "does not say which kind of unit it is",
            format!("write `{unit}.service`, or a name that ends in .scope or .slice"),
        ));
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.is_empty() || unit.len() > 255 || !name.chars().all(fits) {
        return Err(problem("is not the name of a unit", see()));
    }
    if name.ends_with('@') {
        let fix = format!("name an instance, such as `{name}1.service`");
        return Err(problem("is a template, of which nothing runs", fix));
    }
    if unit == "-.slice" || unit == "init.scope" {
        return Err(problem("holds the host itself", see()));
    }
    Ok(unit)
}

/// Whether a container can have this name, by the rule that Docker and Podman have for names.
pub(crate) fn is_container_name(name: &str) -> bool {
    let mut letters = name.chars();
    let fits = letters.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && letters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    fits && name.len() <= 255
}

fn container_name(name: String) -> Result<String, Problem> {
    if is_container_name(&name) {
        return Ok(name);
    }
    Err(Problem::new(
        format!("`{name}` is not the name of a container"),
        "see `docker ps` or `podman ps` for the names",
    ))
}

/// A control group's path relative to its hierarchy's root, without `.`, `..` or a leading `/`.
pub(super) fn cgroup_path(text: &str) -> Result<PathBuf, Problem> {
    let problem = |message: &str| {
        Problem::new(
            format!("`{text}` {message}"),
            "write the path as /proc/PID/cgroup shows it, such as \"system.slice/nginx.service\"",
        )
    };
    if text.starts_with("/sys/fs/cgroup") {
        return Err(problem("begins with where control groups are mounted"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => path.push(part),
            _ => return Err(problem("climbs out with `..`")),
        }
    }
    if path.as_os_str().is_empty() {
        return Err(problem("is the root, which holds the whole host"));
    }
    Ok(path)
}

fn matching(mut section: Section, findings: &mut Findings<'_>) -> Option<Match> {
    let executable = section.take::<String>("executable");
    let command_line = section.take::<String>("command_line").map(|v| v.value);
    if let Some(At { value, at }) = &executable
        && value.contains('/')
        && let Err(problem) = absolute(Path::new(value))
    {
        findings.add(*at, section.key("executable"), problem);
        return None;
    }
    if executable.is_none() && command_line.is_none() {
        if !section.refused {
            let problem = Problem::new(
                "no condition would match every process",
                "add executable = \"NAME\" or command_line = \"TEXT\"",
            );
            findings.add(section.at, &section.name, problem);
        }
        return None;
    }
    Some(Match {
        executable: executable.map(|v| v.value),
        command_line,
    })
}

fn io_max(
    section: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> BTreeMap<Device, IoMax> {
    let mut devices = BTreeMap::new();
    let sections = section.take::<BTreeMap<String, Section>>("io_max");
    for (name, mut limits) in sections.map_or_else(BTreeMap::new, |v| v.value) {
        let device = name
            .parse::<Device>()
            .map_err(|e| Problem::new(e.to_string(), "write major:minor"))
            .and_then(|device| host.check_device(device).map(|()| device));
        if let Some(device) = findings.keep(limits.at, &limits.name, device) {
            let max = IoMax {
                rbps: rate(&mut limits, "rbps", findings),
                wbps: rate(&mut limits, "wbps", findings),
                riops: limit(&mut limits, "riops"),
                wiops: limit(&mut limits, "wiops"),
            };
            devices.insert(device, max);
        }
    }
    devices
}

/// Bytes per second. The kernel refuses zero.
fn rate(limits: &mut Section, key: &str, findings: &mut Findings<'_>) -> Limit<u64> {
    let at = limits.at(key).unwrap_or(limits.at);
    match limit(limits, key) {
        Limit::At(Bytes(0)) => {
            let problem = Problem::new("a limit of zero lets nothing through", "use at least 1");
            findings.add(at, limits.key(key), problem);
            Limit::Max
        }
        Limit::At(Bytes(bytes)) => Limit::At(bytes),
        Limit::Max => Limit::Max,
    }
}
