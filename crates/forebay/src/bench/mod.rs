//! Measurements that hold promises: each prints its targets beside its figures and fails
//! when one is missed.

mod accel;
mod agent;
pub(crate) mod chaos;
mod colocation;
pub(crate) mod failover;
mod forecast;
mod front;
mod io;
mod left;
mod memory;
pub(crate) mod moving;
mod placement;
mod predict;
mod see;
mod tiering;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

pub(crate) use placement::Placement;

use crate::demo::Error;
use crate::demo::print as output;

/// Measure, beside targets
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    /// File that receives the result
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Repetitions of each arm
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// Time of one segment
    #[arg(long, value_name = "S", default_value_t = 12, value_parser = clap::value_parser!(u64).range(4..=600))]
    seconds: u64,
    /// `forecast`: folder with recorded series, DIR/SERIES.csv, and with DIR/origins.csv of lines
    /// `series,origin`. Without it, series of known processes are made
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// `forecast`: what the series are made from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// `front`: another build of this program, whose fronts are measured beside this one's
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// `failover`: memory that each instance holds, in MiB: the kernel frees it when one is killed
    /// [default: 256]; `move`: memory of the process that moves [default: 1024]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    memory: Option<u64>,
    /// `accel`: devices, by kind (`cpu`, `gpu`, `accelerator`) or by id
    #[arg(long, value_name = "KIND|ID", default_value = "all")]
    device: String,
    /// `see`: the repository's web/, after `npm ci` there: a browser opens the page, too
    #[arg(long, value_name = "DIR")]
    web: Option<PathBuf>,
    /// Directory of the inner process
    #[arg(long, value_name = "DIR", hide = true)]
    inner: Option<PathBuf>,
    /// The inner process is in a mount namespace of its own
    #[arg(long, hide = true)]
    mounted: bool,
}

/// The measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// A critical service beside batch work: alone, uncontrolled, hand-tuned, Forebay
    Colocation,
    /// What the daemon itself costs with 10 and with 100 apps
    Agent,
    /// A critical reader beside batch that saturates its disk: alone, uncontrolled, limited by
    /// hand, Forebay
    Io,
    /// A tiered directory from cold: all slow, all fast, Forebay for 60 s
    Tiering,
    /// Memory saved from a batch app, beside controllers as Senpai's; needs cgroup v2 and swap
    Memory,
    /// A load that rises again and again: planned for by forecasts, and by present use alone
    Predict,
    /// A service that is killed, stopped and blocked under its clients: behind Forebay, behind haproxy
    Failover,
    /// What a request costs through a front, beside haproxy, nginx and pgbouncer
    Front,
    /// A process that moves to another host under its client: by pre-copy, and by plain CRIU
    Move,
    /// Forecasts beside the rules of others, and what each member of the ensemble is worth
    Forecast,
    /// Built-in kernels on the CPU and on every device: transfer and compute
    Accel,
    /// What looking costs with 200 apps: `top`, and a page that is told ten times a second
    See,
}

/// A figure with its target.
#[derive(Debug, Clone, serde::Serialize)]
struct Target {
    name: &'static str,
    figure: f64,
    unit: &'static str,
    target: String,
    met: bool,
}

impl Target {
    fn at_most(name: &'static str, figure: f64, most: f64, unit: &'static str) -> Self {
        Self {
            name,
            figure,
            unit,
            target: format!("at most {most}"),
            met: figure <= most,
        }
    }

    fn at_least(name: &'static str, figure: f64, least: f64, unit: &'static str) -> Self {
        Self {
            name,
            figure,
            unit,
            target: format!("at least {least}"),
            met: figure >= least,
        }
    }
}

/// Runs one measurement; exit status 1 when a target is missed.
///
/// # Errors
/// When it lacks rights, a part fails, or a signal ends it.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    // Nothing on the host is touched by these, so there is nothing to sweep.
    match args.name {
        Name::Forecast => return forecast::run(args),
        Name::Accel => return accel::run(args),
        _ => {}
    }
    let is_outer = args.inner.is_none();
    if is_outer {
        left::remove();
    }
    let result = crate::demo::swept("bench", args.inner.as_deref(), |dir| measure(args, dir));
    if is_outer {
        left::remove();
    }
    result
}

fn measure(args: &Args, dir: &Path) -> Result<ExitCode, Error> {
    let (targets, result) = match args.name {
        Name::Colocation => colocation::run(args, dir)?,
        Name::Agent => agent::run(args, dir)?,
        Name::Io => io::run(args, dir)?,
        Name::Tiering => tiering::run(args, dir)?,
        Name::Memory => memory::run(args, dir)?,
        Name::Predict => predict::run(args, dir)?,
        Name::Failover => failover::run(args, dir)?,
        Name::Front => front::run(args, dir)?,
        Name::Move => moving::run(args, dir)?,
        Name::See => see::run(args, dir)?,
        Name::Forecast => return forecast::run(args),
        Name::Accel => return accel::run(args),
    };
    conclude(args, &targets, result)
}

/// Prints the targets, and writes all where that is asked for; exit status 1 if one is missed.
fn conclude(
    args: &Args,
    targets: &[Target],
    mut result: serde_json::Value,
) -> Result<ExitCode, Error> {
    for target in targets {
        output::line(format_args!(
            "{:<52}{:>10.3} {:<10} {:<16} {}",
            target.name,
            target.figure,
            target.unit,
            target.target,
            if target.met { "met" } else { "MISSED" }
        ));
    }
    result["targets"] = serde_json::json!(targets);
    if let Some(file) = &args.json {
        write(file, &result)?;
    }
    Ok(if targets.iter().all(|target| target.met) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// This program, to be run by somebody else.
fn own_program() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(Error::system(
        "find",
        "this program's own file",
        "check that /proc is mounted",
    ))
}

/// Writes the configuration of a daemon.
fn write_config(config: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(config, text).map_err(Error::system(
        "write",
        config.display(),
        "check that its file system has room",
    ))
}

/// Starts a daemon that ends with this process.
pub(crate) fn start_daemon(config: &Path) -> Result<Child, Error> {
    Command::new("/proc/self/exe")
        .args(["daemon", "--parent-death", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(Error::system(
            "start",
            "the daemon",
            "check memory and process limits",
        ))
}

fn write(file: &Path, result: &serde_json::Value) -> Result<(), Error> {
    std::fs::write(file, result.to_string() + "\n").map_err(Error::system(
        "write the result to",
        file.display(),
        "check that its directory exists and has room",
    ))
}
