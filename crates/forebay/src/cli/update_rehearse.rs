//! `forebay update rehearse`: tries a kernel out in a virtual machine, here and now; no daemon is asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use forebay_api as api;
use forebay_core::update::Verdict;
use forebay_host::reboot;
use forebay_host::rehearsal::{self, Wanted};

use super::{Exit, Failure};
use crate::output::Output;
use crate::update::rehearse::{self, LIMIT, Report};
use crate::{config, daemon};

/// The least of all: the host's other programs come first.
const NICE: i32 = 19;
const PROC: &str = "/proc";

/// Which kernel, and how.
#[derive(Debug, Args)]
pub(crate) struct RehearseArgs {
    /// The kernel's file [default: the newest of /boot that has modules]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// How long a machine may take [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    limit: Option<Duration>,

    /// Emulate the machine's processor also where KVM is
    #[arg(long)]
    emulate: bool,

    /// CRIU's program; that of the configuration unless given
    #[arg(long, value_name = "FILE")]
    criu: Option<PathBuf>,

    /// QEMU's program; that of the configuration unless given
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,

    /// The daemon's state directory; that of the configuration unless given
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// The configuration [default: /etc/forebay/forebay.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where what it came to is written as well
    #[arg(long, hide = true)]
    report: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).map_err(|error| error.to_string())
}

/// Rehearses, and says what it came to.
pub(super) fn run(args: &RehearseArgs, output: &mut Output) -> Result<Exit, Failure> {
    let wanted = wanted(args)?;
    let failed = |error: forebay_host::Error| Failure::Failed(error.explain());
    rustix::process::nice(NICE)
        .map_err(|error| Failure::Failed(format!("take the lowest priority: {error}")))?;
    let found = rehearsal::rehearse(&wanted).map_err(failed)?;
    let report = Report::new(&found, &wanted.directory);
    let files = [Some(rehearse::last(&wanted.directory)), args.report.clone()];
    for file in files.into_iter().flatten() {
        report.write(&file).map_err(Failure::Failed)?;
    }
    output.show(&report.shown(), said)?;
    Ok(match found.verdict {
        Verdict::Passed => Exit::Ok,
        Verdict::Failed(_) | Verdict::Impossible(_) => Exit::Failed,
    })
}

fn wanted(args: &RehearseArgs) -> Result<Wanted, Failure> {
    let facts = daemon::facts().map_err(|error| Failure::Failed(error.to_string()))?;
    // The daemon says all that it knows, and its configuration may be elsewhere.
    let is_told = args.report.is_some();
    let usual = Path::new(config::DEFAULT_FILE);
    let file = args.config.as_deref();
    let file = file.or_else(|| usual.exists().then_some(usual));
    let own = match file.filter(|_| !is_told) {
        Some(file) => {
            let read = config::load(Some(file), &facts);
            read.map_err(|errors| Failure::Failed(errors.to_string()))?
                .daemon
        }
        None => config::DaemonConfig::default(),
    };
    let kernel = match &args.kernel {
        Some(kernel) => kernel.clone(),
        None => {
            let next = reboot::next();
            next.map_err(|error| Failure::Failed(error.explain()))?
                .image
        }
    };
    Ok(Wanted {
        kernel,
        root: "/".into(),
        running: reboot::running_image(Path::new(PROC)),
        limit: args.limit.unwrap_or(LIMIT),
        directory: rehearse::directory(args.state_dir.as_deref().unwrap_or(&own.state_dir)),
        criu: args.criu.clone().or(own.criu),
        qemu: args.qemu.clone().or(own.qemu),
        executable: facts.executable,
        accelerate: !args.emulate,
    })
}

/// What it came to, for people.
pub(super) fn said(found: &api::UpdateRehearsal) -> String {
    let api::UpdateRehearsal {
        kernel, seconds, ..
    } = found;
    let why = found.why.as_deref().unwrap_or_default();
    let console = found.console.as_ref();
    let console = console.map_or(String::new(), |file| {
        format!("\nwhat the machine said is in {file}")
    });
    match found.verdict.as_str() {
        "passed" => format!(
            "kernel {kernel} passed its rehearsal in {seconds:.1} s: it came up in a virtual machine, and a program \
             that was written down here went on there"
        ),
        "failed" => {
            format!("kernel {kernel} did not pass its rehearsal ({seconds:.1} s): {why}{console}")
        }
        _ => format!("kernel {kernel} cannot be rehearsed here ({seconds:.1} s): {why}{console}"),
    }
}
