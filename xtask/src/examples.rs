//! `cargo xtask examples [--quick] [NAME...]`: every example configuration, tried on this host.
//!
//! Each trial runs the example's real server under its real load tool three times: alone, beside a
//! build by many short compiler processes, and beside the same build with a daemon that runs the
//! example. While the load of the third runs, every app of the example must be found in its slice
//! with what its class promises. Afterwards nothing may be left. Examples of fronts are tried as
//! [`front`] says.
//!
//! The daemon runs a copy of the example that differs from it in the lines which are printed: its
//! own state, control groups and port, so that it disturbs nothing else on the host.

mod build;
mod conform;
mod front;
mod leftovers;
mod nginx;
mod postgres;
mod redis;
mod stage;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Failure, process, setup};
use build::Build;
use stage::{Running, Signal, Stage, wait_until};

/// How long a load may take, whatever its tool was told.
const LOAD_MAX: Duration = Duration::from_secs(30);
/// How often an app that does not conform yet is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// One example: what it needs beside the configuration.
trait Trial {
    /// Its file in `examples/`, without extension.
    fn name(&self) -> &'static str;

    /// Texts of the example and what takes their place in the copy.
    fn edits(&self, stage: &Stage) -> Vec<(&'static str, String)>;

    /// The apps of the example.
    fn apps(&self) -> &'static [App];

    /// Writes what the server needs, once.
    fn prepare(&mut self, stage: &Stage) -> Result<(), String>;

    /// The server as the example starts it.
    fn server(&self, stage: &Stage) -> Command;

    /// Who starts the server while Forebay runs, and what ends it otherwise.
    fn server_kind(&self) -> Server;

    /// Whether the server answers.
    fn is_ready(&self, stage: &Stage) -> bool;

    /// Does, after the server started, what the first load needs.
    fn fill(&self, _stage: &Stage) -> Result<(), String> {
        Ok(())
    }

    /// The load tool.
    fn load(&self, stage: &Stage) -> Command;

    /// What the tool says of a load.
    fn latency(&self, stage: &Stage, output: &str) -> Result<Latency, String>;

    /// Whether the build is an app that `forebay run` starts.
    fn runs_build(&self) -> bool {
        false
    }
}

/// An app that must be found.
struct App {
    name: &'static str,
    class: Class,
    /// File names of the executables whose processes must all be in its slice.
    programs: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Critical,
    Standard,
    Batch,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }
}

enum Server {
    /// The example has it as `exec`.
    OfForebay,
    /// Something else starts it and the example finds it.
    OfHost(Signal),
}

/// What a load tool measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Latency {
    p50_ms: f64,
    p99_ms: f64,
    per_s: f64,
}

/// What surrounds the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Alone,
    Crowded,
    Forebay,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Crowded => "beside a build",
            Self::Forebay => "the same, with Forebay",
        }
    }
}

struct Row {
    latency: Latency,
    /// None without a build.
    objects_per_s: Option<f64>,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All phases, to be compared.
    Full,
    /// Only whether the example does with Forebay what it says. What this host does not allow is
    /// skipped.
    Quick,
}

impl Extent {
    fn phases(self) -> &'static [Phase] {
        match self {
            Self::Full => &[Phase::Alone, Phase::Crowded, Phase::Forebay],
            Self::Quick => &[Phase::Forebay],
        }
    }

    fn load_s(self) -> u64 {
        match self {
            Self::Full => 8,
            Self::Quick => 4,
        }
    }
}

pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let mut trials: Vec<Box<dyn Trial>> = vec![
        Box::new(nginx::Nginx::default()),
        Box::new(redis::Redis::default()),
        Box::new(postgres::Postgres::default()),
    ];
    let mut fronts = front::all();
    let known = trials.iter().map(|trial| trial.name());
    let known: Vec<_> = known.chain(fronts.iter().map(|f| f.name())).collect();
    let (extent, names) = parse(arguments, &known)?;
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    trials.retain(|trial| wanted(trial.name()));
    fronts.retain(|front| wanted(front.name()));

    if let Err(reason) = prepare_host(extent) {
        return match extent {
            Extent::Full => Err(reason.into()),
            Extent::Quick => {
                println!("SKIPPED: examples: {}", reason.replace('\n', " "));
                Ok(())
            }
        };
    }
    let forebay = crate::build_forebay()?;
    stage::sweep(&forebay)?;
    check_all(&forebay)?;

    let mut table = vec![
        "| example | load | p50 ms | p99 ms | requests/s | objects/s |".to_owned(),
        "|---|---|---:|---:|---:|---:|".to_owned(),
    ];
    let mut failed = false;
    for trial in &mut trials {
        let begun = Instant::now();
        println!("\n== {}", trial.name());
        let programs = trial.apps().iter().flat_map(|app| app.programs).copied();
        let others = conform::refuse_others(&programs.collect::<Vec<_>>());
        let name = trial.name();
        let tried = attempt(name, others, extent, || {
            try_one(trial.as_mut(), &forebay, extent)
        });
        match tried {
            Ok(rows) => table.extend(rows.into_iter().flatten()),
            Err(()) => failed = true,
        }
        let taken = begun.elapsed().as_secs_f64();
        println!("== {name}: {taken:.1} s");
    }
    for example in &mut fronts {
        let begun = Instant::now();
        let name = example.name();
        println!("\n== {name}");
        let others = conform::refuse_others(example.binds());
        let tried = attempt(name, others, extent, || {
            front::try_one(example.as_mut(), &forebay, extent)
        });
        failed |= tried.is_err();
        println!("== {name}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    if extent == Extent::Full && table.len() > 2 {
        println!("\n{}", table.join("\n"));
    }
    if failed { Err(Failure::Checks) } else { Ok(()) }
}

/// Tries one example, unless others are in its way, and tells what went wrong. None when it was
/// skipped.
fn attempt<T>(
    name: &str,
    others: Result<(), String>,
    extent: Extent,
    tries: impl FnOnce() -> Result<T, String>,
) -> Result<Option<T>, ()> {
    let tried = match (others, extent) {
        (Err(reason), Extent::Quick) => {
            println!("SKIPPED: {name}: {reason}");
            return Ok(None);
        }
        (Err(reason), Extent::Full) => Err(reason),
        (Ok(()), _) => tries(),
    };
    tried
        .map(Some)
        .map_err(|error| println!("FAILED: {name}: {error}"))
}

fn parse<'a>(arguments: &'a [String], known: &[&str]) -> Result<(Extent, Vec<&'a str>), Failure> {
    let mut extent = Extent::Full;
    let mut names = Vec::new();
    for argument in arguments {
        if argument == "--quick" {
            extent = Extent::Quick;
        } else if known.contains(&argument.as_str()) {
            names.push(argument.as_str());
        } else {
            return Err(Failure::Usage(format!(
                "no example `{argument}` to try; there are: {}",
                known.join(", ")
            )));
        }
    }
    Ok((extent, names))
}

/// Only a full trial may install what it needs.
fn prepare_host(extent: Extent) -> Result<(), String> {
    if !setup::is_root() {
        return Err(
            "try the examples: control groups and the servers' users need root; run it as root"
                .into(),
        );
    }
    match extent {
        Extent::Full => setup::ensure(setup::Group::Examples),
        Extent::Quick => setup::is_complete(setup::Group::Examples),
    }
}

/// Every example must be valid as it is, those without a trial too.
fn check_all(forebay: &Path) -> Result<(), String> {
    let directory = process::repository().join("examples");
    let fail = |error| format!("list {}: {error}", directory.display());
    for entry in fs::read_dir(&directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            process::succeed(Command::new(forebay).arg("check").arg(&path))?;
        }
    }
    Ok(())
}

/// The rows of one example, when all of it went well.
fn try_one(trial: &mut dyn Trial, forebay: &Path, extent: Extent) -> Result<Vec<String>, String> {
    let mut stage = Stage::new(trial.name(), forebay, extent.load_s())?;
    let rows = perform(trial, &mut stage, extent.phases());
    let removed = stage.remove();
    let rows = rows?;
    removed?;
    println!("nothing is left: no control group, no process, no file");
    let rows = extent.phases().iter().zip(rows).map(|(phase, row)| {
        format!(
            "| {} | {} | {:.2} | {:.2} | {:.0} | {} |",
            trial.name(),
            phase.name(),
            row.latency.p50_ms,
            row.latency.p99_ms,
            row.latency.per_s,
            row.objects_per_s
                .map_or("-".into(), |rate| format!("{rate:.1}")),
        )
    });
    Ok(rows.collect())
}

fn perform(trial: &mut dyn Trial, stage: &mut Stage, phases: &[Phase]) -> Result<Vec<Row>, String> {
    let build = Build::write(stage.dir())?;
    trial.prepare(stage)?;
    write_copy(trial.name(), trial.edits(stage), stage)?;
    let mut rows = Vec::new();
    for &phase in phases {
        build.clear()?;
        let row = run_phase(trial, stage, &build, phase)?;
        let objects = row
            .objects_per_s
            .map_or(String::new(), |rate| format!(", {rate:.1} objects/s built"));
        println!(
            "{}: p50 {:.2} ms, p99 {:.2} ms, {:.0} requests/s{objects}",
            phase.name(),
            row.latency.p50_ms,
            row.latency.p99_ms,
            row.latency.per_s,
        );
        rows.push(row);
    }
    Ok(rows)
}

/// Writes the trial's copy of an example, with these texts in place of those.
fn write_copy(name: &str, edits: Vec<(&'static str, String)>, stage: &Stage) -> Result<(), String> {
    let example = process::repository().join(format!("examples/{name}.toml"));
    let fail = |error| format!("read {}: {error}", example.display());
    let mut text = fs::read_to_string(&example).map_err(fail)?;
    for (from, to) in edits {
        if text.matches(from).count() != 1 {
            return Err(format!(
                "copy {}: `{from}` must stand in it once; change the example or xtask/src/examples",
                example.display()
            ));
        }
        println!("the copy has {to}");
        text = text.replace(from, &to);
    }
    text += &stage.daemon_section();
    fs::write(stage.config(), text)
        .map_err(|error| format!("write {}: {error}", stage.config().display()))
}

fn run_phase(
    trial: &dyn Trial,
    stage: &mut Stage,
    build: &Build,
    phase: Phase,
) -> Result<Row, String> {
    // Ended in the reverse order, also when something fails.
    let mut running: Vec<Running> = Vec::new();
    let managed = phase == Phase::Forebay;
    match trial.server_kind() {
        Server::OfForebay if managed => {}
        Server::OfForebay => {
            running.push(stage.spawn("server", Signal::Terminate, trial.server(stage))?);
        }
        Server::OfHost(signal) => {
            running.push(stage.spawn("server", signal, trial.server(stage))?);
        }
    }
    if managed {
        let mut daemon = stage.forebay(&["daemon", "--parent-death", "--config"]);
        daemon.arg(stage.config());
        running.push(stage.spawn("daemon", Signal::Terminate, daemon)?);
        wait_until("the daemon answers", || {
            Ok(process::succeeds_quietly(&mut stage.client(&["status"])).then_some(()))
        })?;
    }
    wait_until("the server answers", || {
        stage::all_run(&mut running)?;
        Ok(trial.is_ready(stage).then_some(()))
    })?;
    if stage.is_unfilled() {
        trial.fill(stage)?;
    }
    if phase != Phase::Alone {
        if managed && trial.runs_build() {
            let mut run =
                stage.client(&["run", "--name", "build", "--class", "batch", "--directory"]);
            run.arg(build.dir()).arg("--").args(build.command());
            process::succeed(&mut run)?;
        } else {
            let mut make = words(stage, &build.command());
            make.current_dir(build.dir());
            running.push(stage.spawn("build", Signal::Terminate, make)?);
        }
        wait_until("the build builds", || {
            stage::all_run(&mut running)?;
            Ok((build.objects()? > 0).then_some(()))
        })?;
    }
    let row = measure(trial, stage, build, phase, &mut running);
    stage.remember_family();
    let mut ended = Ok(());
    while let Some(last) = running.pop() {
        ended = ended.and(last.end());
    }
    let row = row?;
    ended?;
    Ok(row)
}

fn measure(
    trial: &dyn Trial,
    stage: &mut Stage,
    build: &Build,
    phase: Phase,
    running: &mut [Running],
) -> Result<Row, String> {
    let built_before = build.objects()?;
    let begun = Instant::now();
    let mut load = stage.spawn("load", Signal::Terminate, trial.load(stage))?;
    let mut looked = Instant::now();
    let mut findings = vec!["not looked at yet".to_owned()];
    let taken = loop {
        if load.has_ended()? {
            break begun.elapsed();
        }
        if begun.elapsed() > LOAD_MAX {
            return Err(format!(
                "the load: no end within {} s; see what else this host does",
                LOAD_MAX.as_secs()
            ));
        }
        stage::all_run(running)?;
        if phase == Phase::Forebay && !findings.is_empty() && looked.elapsed() >= LOOK {
            let report = conform::look(trial.apps(), stage)?;
            findings = report.findings;
            if findings.is_empty() {
                println!(
                    "all apps are in their slices {:.1} s after the load began",
                    begun.elapsed().as_secs_f64()
                );
                println!("{}", report.lines.join("\n"));
            }
            looked = Instant::now();
        }
        stage::pause();
    };
    let built = build.objects()?.saturating_sub(built_before);
    let output = load.succeeded()?;
    if phase == Phase::Forebay && !findings.is_empty() {
        return Err(format!(
            "not as the example promises by the end of the load:\n  {}",
            findings.join("\n  ")
        ));
    }
    build.must_last(built_before + built)?;
    Ok(Row {
        latency: trial.latency(stage, &output)?,
        objects_per_s: (phase != Phase::Alone).then(|| build::per_s(built, taken)),
    })
}

/// A command line in a trial.
fn words(stage: &Stage, command: &[String]) -> Command {
    let mut program = stage.program(&command[0]);
    program.args(&command[1..]);
    program
}

/// A loopback port that nobody listens on now.
fn free_port() -> Result<u16, String> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("find a free port on 127.0.0.1: {error}"))
}
