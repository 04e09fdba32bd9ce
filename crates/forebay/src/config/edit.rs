//! Policy from command lines: `forebay run` makes an app, `forebay set` changes one.

use forebay_core::app::{App, AppId, Binding, Exec, Policy, Restart};
use forebay_core::units::Utilization;

use super::app::{check_bounds, check_exec, check_uclamp, class};
use super::error::{Error, Errors, Problem, either, nearest};
use super::facts::HostFacts;
use super::keys::{APP, CLASSES, Kind};
use super::resolve::check_sums;
use super::text::{Scalar, Value, read_scalar, refuse_nul};

/// The keys that `forebay set` takes.
const SETTABLE: [&str; 13] = [
    "class",
    "floor.cpu",
    "floor.memory",
    "ceiling.cpu",
    "ceiling.memory",
    "ceiling.swap",
    "ceiling.zswap",
    "ceiling.pids",
    "ceiling.egress",
    "uclamp_min",
    "uclamp_max",
    "io_weight",
    "request.cpu",
];

/// An app as a command line describes it.
#[derive(Debug, Clone)]
pub(crate) struct AppArgs {
    /// Its name.
    pub(crate) name: String,
    /// Its class, as text.
    pub(crate) class: String,
    /// How to start it; the program is looked up in the environment's PATH.
    pub(crate) exec: Exec,
}

impl AppArgs {
    /// A command with the daemon's user and environment, which is not started again.
    pub(crate) fn new(name: String, class: String, command: Vec<String>) -> Self {
        let exec = Exec {
            restart: Restart::Never,
            ..Exec::of(command)
        };
        Self { name, class, exec }
    }
}

/// Resolves an app that is described on a command line.
///
/// # Errors
/// Every mistake in it. The name may still be another app's: that is the caller's to check.
pub(crate) fn app_from_args(args: AppArgs, host: &HostFacts) -> Result<App, Errors> {
    let AppArgs {
        name,
        class: word,
        mut exec,
    } = args;
    let mut problems = Vec::new();
    let id = name.parse::<AppId>();
    if id.is_err() {
        let fix = "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit";
        problems.push((
            "name",
            Problem::new(format!("`{name}` is not an app name"), fix),
        ));
    }
    let class = class(&word);
    if class.is_none() {
        let fix = format!("use {}", either(CLASSES));
        problems.push((
            "class",
            Problem::new(format!("`{word}` is not a class"), fix),
        ));
    }
    problems.extend(check_exec(&exec, host));
    for text in exec.command.iter().chain(exec.environment.values()) {
        problems.extend(refuse_nul(text).err().map(|problem| ("command", problem)));
    }
    match host.find_program(&exec) {
        Ok(program) => exec.command[0] = program,
        Err(problem) => problems.push(("command", problem)),
    }
    match (id, class) {
        (Ok(id), Some(class)) if problems.is_empty() => {
            Ok(App::new(id, class, Binding::Exec(exec)))
        }
        _ => Err(Errors::from_arguments(problems)),
    }
}

/// Changes one setting of one app. The policy stays as it was when the change is refused.
///
/// # Errors
/// When there is no such app or key, the value does not fit the key, or the host cannot hold
/// the result.
pub(crate) fn set(
    policy: &mut Policy,
    id: &AppId,
    key: &str,
    value: &str,
    host: &HostFacts,
) -> Result<(), Error> {
    let name = format!("{id}.{key}");
    let mut changed = policy.clone();
    let Some(app) = changed.apps.get_mut(id) else {
        let problem = Problem::new(
            format!("there is no app `{id}`"),
            "see `forebay apps` for the names",
        );
        return Err(problem.in_argument(""));
    };
    let value = settable(key)
        .and_then(|kind| read_scalar(kind, Scalar::from_argument(value)))
        .map_err(|problem| problem.in_argument(&name))?;
    assign(app, key, value);
    let bounds = check_bounds(app.floor, app.ceiling).into_iter();
    let bounds = bounds.chain(check_uclamp(app.uclamp));
    let mut problems: Vec<Problem> = bounds.map(|(_, problem)| problem).collect();
    if key.starts_with("floor.") {
        let floors = changed.apps.iter().map(|(id, app)| (id, app.floor));
        problems.extend(check_sums(&floors.collect(), changed.system_memory, host));
    }
    match problems.into_iter().next() {
        Some(problem) => Err(problem.in_argument(&name)),
        None => {
            *policy = changed;
            Ok(())
        }
    }
}

/// The kind of a key that may be set.
fn settable(key: &str) -> Result<&'static Kind, Problem> {
    if !SETTABLE.contains(&key) {
        return Err(Problem::new(
            format!("`{key}` is not a key that can be set"),
            match nearest(key, &SETTABLE) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("use {}", either(&SETTABLE)),
            },
        ));
    }
    let mut keys = APP;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        match keys
            .iter()
            .find(|key| key.name == part)
            .map(|key| &key.kind)
        {
            Some(Kind::Section(inner)) => keys = inner,
            Some(kind) if parts.peek().is_none() => return Ok(kind),
            _ => break,
        }
    }
    unreachable!("every settable key stands in the table: {key}")
}

/// Asserts that the value is of the key's kind, as [`settable`] gives it.
fn assign(app: &mut App, key: &str, value: Value) {
    fn read<T: TryFrom<Value, Error = Value>>(value: Value) -> T {
        match T::try_from(value) {
            Ok(value) => value,
            Err(value) => panic!("a setting is read as another kind than {value:?}"),
        }
    }
    match key {
        "class" => app.class = class(read(value)).unwrap_or(app.class),
        "floor.cpu" => app.floor.cpu = read(value),
        "floor.memory" => app.floor.memory = read(value),
        "ceiling.cpu" => app.ceiling.cpu = read(value),
        "ceiling.memory" => app.ceiling.memory = read(value),
        "ceiling.swap" => app.ceiling.swap = read(value),
        "ceiling.zswap" => app.ceiling.zswap = read(value),
        "ceiling.pids" => app.ceiling.pids = read(value),
        "ceiling.egress" => app.ceiling.egress = read(value),
        "uclamp_min" => app.uclamp.min = Some(Utilization::percent(read(value))),
        "uclamp_max" => app.uclamp.max = Some(Utilization::percent(read(value))),
        "io_weight" => app.io_weight = u32::try_from(read::<u64>(value)).ok(),
        "request.cpu" => app.request = Some(read(value)),
        _ => unreachable!("no assignment for the settable key {key}"),
    }
}
