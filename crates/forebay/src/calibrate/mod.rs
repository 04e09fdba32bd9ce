//! `forebay calibrate`: what a block device can really do, kept for the planner.
//!
//! Problem: a limit for batch can be chosen only by who knows what the device gives in all,
//! and neither its data sheet nor /sys says.
//!
//! Approach: ask it. Reads go to the whole device through a descriptor that cannot write.
//! Writes go to a scratch file without a name, which the kernel removes with the last
//! descriptor, whatever becomes of this process. Both bypass the page cache.
//!
//! What it does not find out: a device whose empty parts were never written answers reads of
//! them faster than it reads data, and a cache in the device flatters short measurements.

mod disk;
mod known;
mod measure;
mod model;
mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::demo::print;
use crate::output::{Format, Output, numbers, table, utc, words};
use disk::{Disk, Scratch};
pub(crate) use known::{features, known};
use measure::{Access, Phase, Rate};

/// Block of sequential requests: large enough that the device's bandwidth bounds them.
const LARGE: usize = 1 << 20;
/// Sequential requests at a time.
const SEQUENTIAL_DEPTH: usize = 4;
/// Random requests at a time.
const RANDOM_DEPTH: usize = 16;
/// Phases of reading.
const READ_PHASES: u32 = 4;
/// Phases of writing: the same, after the scratch file has been filled.
const WRITE_PHASES: u32 = 5;

/// Measure what a block device can do; it is kept busy meanwhile
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// A block device, whose reads are measured; or a directory, whose device is measured with
    /// writes to a scratch file in that directory, which is gone afterwards
    #[arg(value_name = "DEVICE|DIR", required_unless_present = "show")]
    target: Option<PathBuf>,
    /// Directory for the scratch file, on a file system of the device
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// How long to measure
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..=600))]
    seconds: u32,
    /// Then tell the kernel what requests to the device cost (io.cost of cgroup v2), so that
    /// io.weight divides its time; stays until `--remove-model` or the next boot
    #[arg(long)]
    install_model: bool,
    /// Put back what `--install-model` found, and measure nothing
    #[arg(long, conflicts_with_all = ["scratch", "seconds", "install_model"])]
    remove_model: bool,
    /// Show what was measured before, and measure nothing
    #[arg(long, conflicts_with_all = ["target", "scratch", "seconds", "install_model", "remove_model"])]
    show: bool,
    /// Where results are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/forebay")]
    state_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a device was not measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The system refused something.
    #[error("{attempt}; {advice}")]
    System {
        attempt: String,
        advice: String,
        source: io::Error,
    },
    /// It makes no sense.
    #[error("{attempt}; {advice}")]
    Invalid { attempt: String, advice: String },
    /// The kernel takes no cost model, or gives none up.
    #[error("{0}")]
    Model(String),
}

impl Error {
    fn system(attempt: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let advice = advice(source.kind(), rustix::process::geteuid());
        Self::System {
            attempt: attempt.into(),
            advice: advice.to_owned(),
            source,
        }
    }

    fn invalid(attempt: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Invalid {
            attempt: attempt.into(),
            advice: advice.into(),
        }
    }
}

/// What to do about trouble of this kind.
fn advice(kind: io::ErrorKind, user: rustix::process::Uid) -> &'static str {
    match kind {
        // Only a device control group or a security module refuses root.
        io::ErrorKind::PermissionDenied if user.is_root() => {
            "root may not use this device here, as in a container whose device list lacks it: \
                 allow it there, or run on the host itself"
        }
        io::ErrorKind::PermissionDenied => "run as root",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on that file system"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "it is read-only: remount it writable, or name the device itself to measure \
                 reads only"
        }
        io::ErrorKind::NotFound => "see `lsblk` for the devices and where they are mounted",
        io::ErrorKind::UnexpectedEof => {
            "the device ended before its size: it was made smaller or is going away; see \
                 `lsblk`"
        }
        _ => "see `dmesg` for what the kernel says of the device",
    }
}

/// What one direction of a device can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Direction {
    /// Large requests in order.
    sequential: Rate,
    /// Small requests in order, several at a time; not measured by earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequential_small: Option<Rate>,
    /// Small requests anywhere, several at a time.
    random: Rate,
    /// Small requests anywhere, one at a time.
    single: Rate,
}

/// What was measured of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calibration {
    /// Which device.
    disk: Disk,
    /// When.
    measured_unix_ms: u64,
    /// Reads.
    read: Direction,
    /// Writes, where there was a place for them.
    write: Option<Direction>,
}

/// What `--show` says of one device.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    calibration: Calibration,
    /// Why the numbers are not those of the device that is here now.
    stale: Option<String>,
    /// What io.cost.model and io.cost.qos were made to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    installed: Option<[String; 2]>,
}

/// Measures a device and keeps the result, or shows what was kept.
///
/// # Errors
/// When the device or the place for the scratch file cannot be used, or a result not be kept.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let format = if args.json {
        Format::Json
    } else {
        Format::People
    };
    let mut output = Output::stdout(format);
    let shown = match &args.target {
        None => show(&args.state_dir)?,
        Some(target) if args.remove_model => return model::remove(target, args, &mut output),
        Some(target) => {
            let store = store::Store::take(&args.state_dir)?;
            if args.install_model {
                model::check(&args.state_dir)?;
            }
            let calibration = calibrate(target, args)?;
            store.keep(&calibration)?;
            let installed = match args.install_model {
                true => Some(model::install(&calibration, &args.state_dir)?),
                false => None,
            };
            vec![Shown {
                calibration,
                stale: None,
                installed,
            }]
        }
    };
    output
        .show(&shown, |shown| text(shown))
        .map_err(|source| Error::system("print the result", source))?;
    Ok(ExitCode::SUCCESS)
}

fn show(state_dir: &Path) -> Result<Vec<Shown>, Error> {
    let kept = store::load(state_dir)?;
    let shown = kept.into_iter().map(|calibration| {
        let stale = calibration.disk.differs(Path::new("/"));
        Shown {
            calibration,
            stale,
            installed: None,
        }
    });
    Ok(shown.collect())
}

fn calibrate(target: &Path, args: &Args) -> Result<Calibration, Error> {
    let (disk, within) = disk::find(target, Path::new("/"))?;
    let scratch_in = args.scratch.as_deref().or(within);
    // Everything that can refuse does so before the device is made busy.
    let device = disk.open()?;
    let scratch = scratch_in
        .map(|dir| Scratch::make(dir, &disk))
        .transpose()?;
    let write_phases = if scratch.is_some() { WRITE_PHASES } else { 0 };
    let each = Duration::from_secs(u64::from(args.seconds)) / (READ_PHASES + write_phases);

    let small = disk.small_block();
    let read = direction(&device, Access::Read, small, disk.size, each)?;
    let write = scratch
        .map(|scratch| {
            // What is measured is overwriting: a file system that looks for room is not the
            // device.
            progress(Access::Write, "into a new file");
            let filled = measure::fill(&scratch, LARGE, SEQUENTIAL_DEPTH, each)?;
            direction(&scratch.target(), Access::Write, small, filled, each)
        })
        .transpose()?;
    Ok(Calibration {
        disk,
        measured_unix_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }),
        read,
        write,
    })
}

fn direction(
    target: &measure::Target,
    access: Access,
    small: usize,
    span: Bytes,
    each: Duration,
) -> Result<Direction, Error> {
    let measured = |what: &str, phase: Phase| {
        progress(access, what);
        measure::measure(target, access, phase, span, each)
    };
    Ok(Direction {
        single: measured(
            "at random, one at a time",
            Phase {
                block: small,
                depth: 1,
                random: true,
            },
        )?,
        random: measured(
            "at random, several at a time",
            Phase {
                block: small,
                depth: RANDOM_DEPTH,
                random: true,
            },
        )?,
        sequential_small: Some(measured(
            "in order, small",
            Phase {
                block: small,
                depth: RANDOM_DEPTH,
                random: false,
            },
        )?),
        sequential: measured(
            "in order",
            Phase {
                block: LARGE,
                depth: SEQUENTIAL_DEPTH,
                random: false,
            },
        )?,
    })
}

fn progress(access: Access, what: &str) {
    print::progress(format_args!("measuring {access} {what}"));
}

fn text(shown: &[Shown]) -> String {
    if shown.is_empty() {
        return "no device was measured: `forebay calibrate DEVICE` does it".to_owned();
    }
    let mut text = String::new();
    for one in shown {
        let Calibration {
            disk,
            measured_unix_ms,
            read,
            write,
        } = &one.calibration;
        text += &format!(
            "{} ({}), {}, measured {}\n",
            disk.name,
            disk.device,
            disk.size,
            utc(*measured_unix_ms)
        );
        if let Some(why) = &one.stale {
            text += &format!("not used: {why}\n");
        }
        let mut rows = rows("read", read);
        match write {
            Some(write) => rows.extend(self::rows("write", write)),
            None => text += "writes were not measured: name a directory on it\n",
        }
        let columns = [
            words("REQUESTS"),
            numbers("BLOCK"),
            numbers("DEPTH"),
            numbers("BANDWIDTH"),
            numbers("PER SECOND"),
            numbers("P50 us"),
            numbers("P99 us"),
            numbers("MAX us"),
        ];
        text += &table(columns, &rows);
        if let Some([model, qos]) = &one.installed {
            text += &model::told(disk, model, qos);
        }
    }
    text
}

fn rows(access: &str, direction: &Direction) -> Vec<[String; 8]> {
    let row = |what: &str, rate: &Rate| {
        [
            format!("{access}, {what}"),
            Bytes(rate.block_bytes).to_string(),
            rate.depth.to_string(),
            format!("{}/s", Bytes(rate.bytes_per_second)),
            rate.requests_per_second.to_string(),
            rate.p50_us.to_string(),
            rate.p99_us.to_string(),
            rate.max_us.to_string(),
        ]
    };
    let small = direction.sequential_small.as_ref();
    [row("in order", &direction.sequential)]
        .into_iter()
        .chain(small.map(|rate| row("in order, small", rate)))
        .chain([
            row("random", &direction.random),
            row("random, alone", &direction.single),
        ])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_root_is_not_told_to_be() {
        let denied = io::ErrorKind::PermissionDenied;
        let root = rustix::process::Uid::ROOT;
        assert!(advice(denied, root).contains("in a container"));
        let user = rustix::process::Uid::from_raw(1000);
        assert_eq!(advice(denied, user), "run as root");
    }

    #[test]
    fn people_see_what_is_known_and_what_is_not() {
        let rate = serde_json::json!({
            "block_bytes": 4096, "depth": 16, "requests": 10, "bytes_per_second": 3 << 20,
            "requests_per_second": 768, "p50_us": 11, "p99_us": 22, "max_us": 33,
        });
        let direction = serde_json::json!({
            "sequential": rate, "random": rate, "single": rate,
        });
        let check = |write: &serde_json::Value, stale: Option<&str>, lines: &[&str]| {
            let calibration = serde_json::from_value(serde_json::json!({
                "disk": {
                    "device": "8:0", "name": "sda", "size": 1_u64 << 30, "identity": null,
                    "logical_block": 512,
                },
                "measured_unix_ms": 951_782_399_000_u64,
                "read": direction,
                "write": write,
            }));
            let shown = text(&[Shown {
                calibration: calibration.unwrap(),
                stale: stale.map(str::to_owned),
                installed: None,
            }]);
            let starts: Vec<&str> = shown.lines().collect();
            assert_eq!(starts.len(), lines.len(), "{shown}");
            for (line, start) in starts.iter().zip(lines) {
                assert!(line.starts_with(start), "{line} is not {start}");
            }
        };
        let head = "sda (8:0), 1.0 GiB, measured 2000-02-28 23:59:59";
        let read = [
            "REQUESTS",
            "read, in order",
            "read, random ",
            "read, random, alone",
        ];
        let write = ["write, in order", "write, random ", "write, random, alone"];
        let unknown = "writes were not measured";
        check(&direction, None, &[&[head][..], &read, &write].concat());
        check(
            &serde_json::Value::Null,
            None,
            &[&[head, unknown][..], &read].concat(),
        );
        check(
            &serde_json::Value::Null,
            Some("8:0 is not here"),
            &[&[head, "not used: 8:0 is not here", unknown][..], &read].concat(),
        );
        assert!(text(&[]).contains("no device was measured"));
    }
}
