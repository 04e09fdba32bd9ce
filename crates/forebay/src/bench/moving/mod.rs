//! A process that writes its memory all the time moves to another host under its client: by iterative
//! pre-copy, and by CRIU alone, which stops it, copies all, and begins it again.
//!
//! The pause is the longest that the client waited from one answer to the next. Afterwards every page is
//! looked at, over the connection that the client had all the time. Arms take turns within each
//! repetition.

pub(crate) mod host;
pub(crate) mod stage;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use forebay_host::checkpoint::Criu;
use serde_json::{Value, json};

use super::{Args, Target};
use crate::demo::print::line;
use crate::demo::{Error, interruption};

/// Memory of the process in MiB, unless said otherwise, and what of it it writes in a second.
const MEMORY: u64 = 1024;
const RATE: u64 = 50;
/// Where `cargo xtask setup` puts a CRIU that knows the kernel at hand.
const UNPACKED: &str = "/var/cache/forebay-criu/criu";
/// Where images are: in memory, for both arms.
const IMAGES: &str = "/dev/shm";
/// Runs its arguments without descriptors of whoever began this: a file that is open there, or a lock on
/// it, would have to move along.
const ALONE: &str = "for fd in /proc/self/fd/*; do fd=${fd##*/}; \
                     [ \"$fd\" -gt 2 ] && eval \"exec $fd>&-\"; done; exec \"$@\"";
/// What the issue asks for, in milliseconds and as a part of the other arm's.
const PAUSE_MAX: f64 = 400.0;
const PART_MAX: f64 = 0.5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    Precopy,
    Plain,
}

impl Arm {
    const fn name(self) -> &'static str {
        match self {
            Self::Precopy => "pre-copy",
            Self::Plain => "plain CRIU",
        }
    }
}

pub(super) fn run(args: &Args, _dir: &Path) -> Result<(Vec<Target>, Value), Error> {
    let interrupted = interruption()?;
    let criu = find()?;
    let memory = args.memory.unwrap_or(MEMORY);
    line(format_args!(
        "{memory} MiB of which {RATE} MiB/s are written, one client; {} repetition(s)",
        args.repetitions
    ));
    let mut pauses = [Vec::new(), Vec::new()];
    let mut moves = Vec::new();
    for repetition in 0..args.repetitions {
        for (arm, pauses) in [Arm::Precopy, Arm::Plain].into_iter().zip(&mut pauses) {
            if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let mut moved = stage(arm, &criu, memory)?;
            let pause = moved["pause_ms"].as_f64().unwrap_or(f64::INFINITY);
            line(format_args!(
                "{:<12}{pause:>9.1} ms   whole {}   answers in order {}",
                arm.name(),
                moved["is_whole"],
                moved["is_monotonic"],
            ));
            pauses.push(pause);
            moved["arm"] = json!(arm.name());
            moved["repetition"] = json!(repetition);
            moves.push(moved);
        }
    }
    let [ours, plain] = pauses.map(|pauses| Range::of(&pauses));
    for (arm, range) in [(Arm::Precopy, ours), (Arm::Plain, plain)] {
        line(format_args!(
            "{:<12}pause {:.1} to {:.1} ms, median {:.1}",
            arm.name(),
            range.least,
            range.most,
            range.median
        ));
    }
    let broken = moves
        .iter()
        .filter(|moved| moved["is_whole"] != true || moved["is_monotonic"] != true)
        .count();
    let targets = vec![
        Target::at_most("longest pause of a move", ours.most, PAUSE_MAX, "ms"),
        Target::at_most(
            "its median as a part of plain CRIU's",
            ours.median / plain.median,
            PART_MAX,
            "",
        ),
        Target::at_most(
            "moves with a page or an answer lost",
            count(broken),
            0.0,
            "",
        ),
    ];
    let result = json!({ "memory_mib": memory, "rate_mib": RATE, "moves": moves });
    Ok((targets, result))
}

#[derive(Debug, Clone, Copy)]
struct Range {
    least: f64,
    median: f64,
    most: f64,
}

impl Range {
    fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(sorted.len() / 2),
            most: at(sorted.len().saturating_sub(1)),
        }
    }
}

fn count(things: usize) -> f64 {
    u32::try_from(things).map_or(f64::INFINITY, f64::from)
}

/// A CRIU that works with this kernel.
fn find() -> Result<PathBuf, Error> {
    let usual = ["/usr/sbin/criu", "/usr/local/sbin/criu", UNPACKED];
    let works = |program: &PathBuf| {
        let check = Command::new(program).arg("check").output();
        check.is_ok_and(|check| check.status.success()) && Criu::find(Some(program)).is_ok()
    };
    let found = usual.into_iter().map(PathBuf::from).find(works);
    found.ok_or_else(|| {
        Error::part(
            "CRIU",
            "none works with this kernel; `cargo xtask setup` gets one",
        )
    })
}

/// A directory in memory, gone with this.
struct Images(PathBuf);

impl Images {
    fn make() -> Result<Self, Error> {
        let dir = Path::new(IMAGES).join(format!("forebay-bench-move-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(Error::system(
            "make",
            dir.display(),
            "mount a tmpfs there, and remove what an earlier benchmark left",
        ))?;
        Ok(Self(dir))
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            line(format_args!(
                "{} stays: {error}; remove it",
                self.0.display()
            ));
        }
    }
}

/// One move, in a network and with process numbers of its own: nothing of it outlives it.
fn stage(arm: Arm, criu: &Path, memory: u64) -> Result<Value, Error> {
    let images = Images::make()?;
    let program = std::env::current_exe();
    let program = program.map_err(Error::system("find", "this program", "report it"))?;
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--pid", "--fork", "--mount-proc"])
        .args(["--kill-child", "--", "bash", "-c", ALONE, "bash"])
        .arg(program)
        .args(["workload", "move", "--dir"])
        .arg(&images.0)
        .arg("--criu")
        .arg(criu)
        .args(["--memory", &memory.to_string()])
        .args(["--rate", &RATE.to_string()])
        .stdin(Stdio::null());
    if arm == Arm::Plain {
        command.arg("--plain");
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(Error::system("run", "unshare", "install util-linux"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let moved = text
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok());
    moved.ok_or_else(|| {
        let name = arm.name();
        Error::part(name, "the move failed; what was said is above")
    })
}
