//! Forebay's developer commands; `cargo xtask help` lists them.
//!
//! Only the standard library is used: this is the first thing compiled on a
//! fresh machine, and it prepares that machine for the rest.

#![expect(
    clippy::print_stdout,
    reason = "these are terminal commands: their output is their result"
)]

mod criu;
mod dist;
mod docs;
mod examples;
mod fpga;
mod fuzz;
mod json;
mod process;
mod setup;
mod tally;
mod test;
mod tidy;
mod vm;
mod web;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
Forebay's developer commands

  cargo xtask demo [ARGS...]        build, then run `forebay demo ARGS...`
  cargo xtask test [--quick]        everything a change must pass; --quick leaves
                                    out the long checks (and names them as skipped)
  cargo xtask test web              only the dashboard, in a real browser
  cargo xtask test --fpga-emulator  only what an FPGA computes, on Intel's emulator, which is
                                    fetched from PyPI for that (300 MB; never shipped)
  cargo xtask tidy                  house rules that compilers do not check
  cargo xtask setup [GROUP...]      install the system packages of `build` (default),
                                    `examples`, `bench`, `web`, `docs`, `dist`, `vm` or
                                    `containers`, and say which
  cargo xtask docs                  the reference pages, made anew from the code, and the book
  cargo xtask dist                  the packages (.deb and .rpm) and the OpenAPI document, in
                                    target/dist, with the program's size and start time
  cargo xtask web                   make the dashboard's page with its charts, by npm
  cargo xtask bench NAME [ARGS...]  run a benchmark; NAME is `colocation`, `agent`, `io`,
                                    `tiering`, `memory`, `predict`, `failover`, `front`,
                                    `move`, `forecast`, `accel` or `see`; what it is held against comes
                                    with `cargo xtask setup bench`;
                                    --json FILE keeps the numbers;
                                    exit status 1 when a target is missed
  cargo xtask examples [NAME...]    try the example configurations with their servers and
                                    load tools; NAME is `nginx`, `redis` or `postgres`;
                                    --quick only looks whether their apps are found
  cargo xtask chaos [ARGS...]       kill the daemon at random moments: --kills N, --seed S
  cargo xtask sim [ARGS...]         simulated ticks with faults: --ticks N, --seed S
  cargo xtask sim fleet [ARGS...]   a simulated fleet: --hosts N, --apps N, --hours H, --seed S,
                                    --faults, --json FILE; exit status 1 when an invariant
                                    breaks or, without faults, a target is missed
  cargo xtask fuzz [TARGET...]      random bytes for the parsers: --seconds N for each target
  cargo xtask vm ...                virtual machines to test on: build, run, test
  cargo xtask help                  this text

Exit status: 0 success, 1 a check failed, 2 a wrong command line; demo, bench,
chaos, sim and `vm run` end with the status of the program they run.
";

/// Names that `cargo xtask bench` accepts; each is one `forebay bench NAME`.
const BENCHMARKS: &[&str] = &[
    "colocation",
    "agent",
    "io",
    "tiering",
    "memory",
    "predict",
    "failover",
    "front",
    "move",
    "forecast",
    "accel",
    "see",
];

/// How a command ended, when it did not succeed.
enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// Something could not be done.
    Error(String),
    /// Checks ran, some failed, and all has been said.
    Checks,
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Error(text)
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let result = match command.as_deref() {
        Some("vm") => vm::run(&rest),
        command => dispatch(command, &rest).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(status) => status,
        Err(Failure::Checks) => ExitCode::from(1),
        Err(Failure::Error(text)) => {
            eprintln!("xtask: {text}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(text)) => {
            eprintln!("xtask: {text}; `cargo xtask help` lists the commands");
            ExitCode::from(2)
        }
    }
}

fn dispatch(command: Option<&str>, arguments: &[String]) -> Result<(), Failure> {
    match command {
        Some("demo") => forebay(&["demo"], arguments),
        Some("test") => test::run(test::parse(arguments)?),
        Some("tidy") => tidy_command(arguments),
        Some("setup") => setup_command(arguments),
        Some("bench") => bench(arguments),
        Some("examples") => examples::run(arguments),
        Some("chaos") => forebay(&["chaos"], arguments),
        Some("sim") => sim(arguments),
        Some("fuzz") => fuzz::run(arguments),
        Some("dist") if arguments.is_empty() => Ok(dist::run(build_forebay)?),
        Some("docs") if arguments.is_empty() => Ok(docs::run()?),
        Some("web") if arguments.is_empty() => Ok(web::build()?),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(unknown) => Err(Failure::Usage(format!("no command `{unknown}`"))),
    }
}

/// Builds the release binary and becomes it, so that signals and the exit
/// status are its own.
fn forebay(command: &[&str], arguments: &[String]) -> Result<(), Failure> {
    Err(process::become_program(&build_forebay()?, command, arguments).into())
}

/// Builds the release binary and says where it is.
fn build_forebay() -> Result<PathBuf, String> {
    setup::ensure(setup::Group::Build)?;
    let mut build = process::cargo_shipped();
    process::succeed(build.args(["--bin", "forebay"]))?;
    Ok(workspace::read()?.target_directory.join("release/forebay"))
}

fn bench(arguments: &[String]) -> Result<(), Failure> {
    let known = BENCHMARKS.join(", ");
    match arguments.first() {
        Some(name) if name == "memory" => bench_memory(arguments),
        Some(name) if name == "see" => {
            // The program has the page in it, and a browser of `web/` opens it.
            web::build()?;
            let room = web::room().display().to_string();
            let mut arguments = arguments.to_vec();
            arguments.extend(["--web".to_owned(), room]);
            forebay(&["bench"], &arguments)
        }
        Some(name) if BENCHMARKS.contains(&name.as_str()) => forebay(&["bench"], arguments),
        Some(name) => Err(Failure::Usage(format!(
            "no benchmark `{name}`; there are: {known}"
        ))),
        None => Err(Failure::Usage(format!("bench needs a name: {known}"))),
    }
}

/// Runs the benchmark of memory in a guest, which has control groups v2 alone, and swap. Its
/// result is written to a folder that the guest shares, and copied to the file asked for.
fn bench_memory(arguments: &[String]) -> Result<(), Failure> {
    let (arguments, json) = take_json(arguments).map_err(Failure::Usage)?;
    let program = build_forebay()?;
    let folder = program.parent().map_or_else(
        || Err("find the folder of the release binary".to_owned()),
        |folder| Ok(folder.join("bench-memory")),
    )?;
    std::fs::create_dir_all(&folder)
        .map_err(|error| format!("make {}: {error}", folder.display()))?;
    std::fs::copy(&program, folder.join("forebay"))
        .map_err(|error| format!("copy {}: {error}", program.display()))?;
    // The result of an earlier run is not this one's.
    let result = folder.join("result.json");
    match std::fs::remove_file(&result) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("remove {}: {error}", result.display()).into());
        }
        _ => {}
    }
    let command = format!(
        "systemctl is-system-running --wait >/dev/null; cd /var/tmp && mkswap -q /dev/vdb && \
         swapon /dev/vdb && TMPDIR=/var/tmp /host/forebay bench {} --json /host/result.json",
        arguments.join(" ")
    );
    let mut words: Vec<String> = "run --smp 3 --mem 1024 --disk 2G --share"
        .split(' ')
        .map(str::to_owned)
        .collect();
    words.extend([folder.display().to_string(), "--".to_owned(), command]);
    let status = vm::run(&words)?;
    if let Some(json) = json.filter(|_| result.exists()) {
        std::fs::copy(&result, json)
            .map_err(|error| format!("copy {} to {json}: {error}", result.display()))?;
    }
    if status == ExitCode::SUCCESS {
        Ok(())
    } else {
        Err(Failure::Checks)
    }
}

/// Takes `--json FILE` out of the arguments of a benchmark that runs in a guest: the file is on
/// this side.
fn take_json(arguments: &[String]) -> Result<(Vec<&str>, Option<&str>), String> {
    let (mut rest, mut json) = (Vec::new(), None);
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == "--json" {
            json = Some(words.next().ok_or("--json needs a file")?);
        } else if let Some(file) = word.strip_prefix("--json=") {
            json = Some(file);
        } else {
            rest.push(word);
        }
    }
    Ok((rest, json))
}

/// Becomes the program that soaks one host, or the one that runs a fleet.
fn sim(arguments: &[String]) -> Result<(), Failure> {
    let (name, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "fleet" => ("fleet", rest),
        _ => ("soak", arguments),
    };
    setup::ensure(setup::Group::Build)?;
    let mut build = process::cargo_shipped();
    process::succeed(build.args(["--bin", name]))?;
    let program = workspace::read()?
        .target_directory
        .join("release")
        .join(name);
    Err(process::become_program(&program, &[], arguments).into())
}

fn setup_command(arguments: &[String]) -> Result<(), Failure> {
    let mut groups = Vec::new();
    for name in arguments {
        let group = setup::Group::from_name(name).ok_or_else(|| {
            Failure::Usage(format!(
                "no group `{name}`; there are: build, examples, bench, web, docs, dist, vm, containers"
            ))
        })?;
        groups.push(group);
    }
    if groups.is_empty() {
        groups.push(setup::Group::Build);
    }
    for group in &groups {
        setup::ensure(*group)?;
    }
    if groups.contains(&setup::Group::Build) {
        criu::ensure();
    }
    setup::say_which_test_runner();
    Ok(())
}

fn tidy_command(arguments: &[String]) -> Result<(), Failure> {
    if let Some(extra) = arguments.first() {
        return Err(Failure::Usage(format!(
            "tidy takes no argument, not `{extra}`"
        )));
    }
    let findings = tidy::check(&process::repository())?;
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: nothing to report");
        Ok(())
    } else {
        Err(Failure::Checks)
    }
}
