//! A tiered directory from cold: how fast a working set is served before, while and after its
//! files move.
//!
//! The slow side is an image in a loop device that gives some MiB a second to everybody
//! together: the reader and the daemon are in one control group with that bound. The fast side
//! is memory. The reader opens a random file of the working set, reads the 1 MiB in it past the
//! page cache and closes it, one after the other. All mounts are in a mount namespace of their
//! own and end with it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_core::app::Device;
use forebay_core::units::Bytes;
use forebay_host::mounts::{Controller, Hierarchies, Version};
use rustix::fs::OFlags;

use super::{Args, Target};
use crate::demo::print as output;
use crate::demo::{Error, interruption, spread};

const MIB: u64 = 1 << 20;
/// The data set, of which the working set is every eighth file, and the tier's bound.
const FILES: usize = 768;
const WORKING_SET: usize = 96;
const FILE_SIZE: u64 = MIB;
const FAST_SIZE_MAX: u64 = 128 * MIB;
/// What the slow device gives, and what of it moves may take.
const SLOW_PER_SECOND: u64 = 24 * MIB;
const MOVES_PER_SECOND: u64 = 16 * MIB;
/// One read is a whole file.
const READ: usize = 1 << 20;
/// How long Forebay has from cold, and the end of it, which is compared.
const COLD: Duration = Duration::from_secs(60);
const AT_THE_END: usize = 10;
/// What is to be reached, as a part of the fast arm's speed.
const PART: f64 = 0.8;
/// Seconds in a row that must be fast enough before the speed counts as reached.
const IN_A_ROW: usize = 3;

/// How much of each second goes to what is measured; the rest is for the fast side beside it.
const SLICE: Duration = Duration::from_millis(800);

/// What a reader got in each second, and what another got on the fast side beside it: MiB per
/// second and latencies in microseconds.
#[derive(Debug, Clone, Default)]
struct Reads {
    seconds: Vec<f64>,
    latencies: Vec<Vec<u32>>,
    fast_seconds: Vec<f64>,
    fast_latencies: Vec<Vec<u32>>,
}

/// One arm, over some of its seconds.
#[derive(Debug, Clone, serde::Serialize)]
struct Figures {
    mib_per_second: f64,
    p50_us: u32,
    p99_us: u32,
    max_us: u32,
}

/// One repetition.
#[derive(Debug, Clone, serde::Serialize)]
struct Round {
    all_slow: Figures,
    all_fast: Figures,
    /// Until the speed was reached.
    forebay_moving: Option<Figures>,
    forebay_end: Figures,
    /// Of the fast arm's speed, in the last seconds.
    part_of_fast: f64,
    seconds_to_reach: Option<u64>,
    daemon_cpu_seconds: f64,
    mib_per_second_each_second: Vec<f64>,
    promoted: u64,
    left: u64,
}

/// # Errors
/// When a part of it fails, or a signal ends it.
pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    if !args.mounted {
        return Err(in_own_namespace());
    }
    let interrupted = interruption()?;
    let scene = Scene::new(dir)?;
    let bounded = Bounded::enter(scene.device)?;
    let rounds = (0..args.repetitions)
        .map(|_| scene.round(Duration::from_secs(args.seconds), &interrupted))
        .collect::<Result<Vec<Round>, Error>>();
    drop(bounded);
    let rounds = rounds?;
    let of = |value: &dyn Fn(&Round) -> f64| spread(rounds.iter().map(value)).1;
    let reached = of(&|round| round.seconds_to_reach.map_or(f64::INFINITY, seconds));
    let targets = vec![
        Target::at_least(
            "speed from cold, in the end, of all-fast speed",
            of(&|round| round.part_of_fast),
            PART,
            "ratio",
        ),
        Target::at_most(
            "time until 80 % of all-fast speed",
            reached,
            COLD.as_secs_f64(),
            "s",
        ),
    ];
    Ok((targets, serde_json::json!({ "rounds": rounds })))
}

fn seconds(count: u64) -> f64 {
    Duration::from_secs(count).as_secs_f64()
}

/// This process and all that it starts, in a group whose disk is slow.
struct Bounded {
    before: PathBuf,
    group: PathBuf,
}

impl Bounded {
    fn enter(device: Device) -> Result<Self, Error> {
        let failed = |error: forebay_host::Error| Error::part("the slow disk", error.explain());
        let none = || Error::part("the slow disk", "no control group bounds block devices");
        let hierarchies = Hierarchies::read(Path::new("/proc")).map_err(failed)?;
        let (index, hierarchy) = hierarchies.of(Controller::Io).ok_or_else(none)?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(Error::system(
            "read",
            "/proc/self/cgroup",
            "check that /proc is mounted",
        ))?;
        let mut groups = hierarchies.membership(&own);
        let before = groups.swap_remove(index).ok_or_else(none)?;
        let name = format!("{}{}-disk", super::left::PREFIX, std::process::id());
        let bounded = Self {
            before: before.join("cgroup.procs"),
            group: hierarchy.dir(Path::new(&name)),
        };
        fs::create_dir(&bounded.group).map_err(Error::system(
            "make control group",
            bounded.group.display(),
            "run as root",
        ))?;
        let bounds = match hierarchy.version {
            Version::V2 => vec![(
                "io.max",
                format!("{device} rbps={SLOW_PER_SECOND} wbps={SLOW_PER_SECOND}"),
            )],
            Version::V1 => vec![
                (
                    "blkio.throttle.read_bps_device",
                    format!("{device} {SLOW_PER_SECOND}"),
                ),
                (
                    "blkio.throttle.write_bps_device",
                    format!("{device} {SLOW_PER_SECOND}"),
                ),
            ],
        };
        for (file, text) in bounds {
            let file = bounded.group.join(file);
            fs::write(&file, text).map_err(Error::system(
                "write",
                file.display(),
                "give the io controller to groups below the root",
            ))?;
        }
        move_to(&bounded.group.join("cgroup.procs"))?;
        Ok(bounded)
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let left = move_to(&self.before);
        // Whoever was started in it ends a moment later than it is told to.
        let end = Instant::now() + Duration::from_secs(10);
        let mut removed = fs::remove_dir(&self.group);
        while removed.is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            removed = fs::remove_dir(&self.group);
        }
        if let (Err(error), _) | (_, Err(error)) = (
            left.map_err(|e| e.to_string()),
            removed.map_err(|e| e.to_string()),
        ) {
            output::line(format_args!(
                "{} is left: {error}; remove it by hand",
                self.group.display()
            ));
        }
    }
}

fn move_to(procs: &Path) -> Result<(), Error> {
    fs::write(procs, std::process::id().to_string()).map_err(Error::system(
        "move this process to",
        procs.display(),
        "run as root",
    ))
}

/// Becomes this program again, in a mount namespace of its own. Returns only when it cannot.
fn in_own_namespace() -> Error {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(cause) => {
            let object = "this program's own file";
            return Error::system("find", object, "check that /proc is mounted")(cause);
        }
    };
    let cause = Command::new("unshare")
        .args(["-m", "--propagation", "private"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .arg("--mounted")
        .exec();
    Error::system("start", "unshare", "install util-linux")(cause)
}

/// Both sides, with the data set on them.
struct Scene {
    dir: PathBuf,
    device: Device,
}

impl Scene {
    fn new(dir: &Path) -> Result<Self, Error> {
        output::progress(format_args!("writing {FILES} files of 1 MiB\n"));
        let path = |name: &str| dir.join(name);
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(Error::system(
            "chmod",
            dir.display(),
            "this should not happen; report it",
        ))?;
        for name in ["fast", "slow"] {
            make_directory(&path(name))?;
        }
        let image = path("image");
        let size = FILES as u64 * FILE_SIZE * 5 / 4;
        let made = File::create(&image).and_then(|file| file.set_len(size));
        made.map_err(Error::system(
            "make",
            image.display(),
            "make room on its file system",
        ))?;
        succeed("mkfs.ext4", &["-q".as_ref(), &image])?;
        succeed(
            "mount",
            &["-o".as_ref(), "loop".as_ref(), &image, &path("slow")],
        )?;
        let tmpfs = "tmpfs".as_ref();
        succeed("mount", &["-t".as_ref(), tmpfs, tmpfs, &path("fast")])?;
        for name in ["fast/tier", "fast/plain", "slow/tier", "slow/data"] {
            make_directory(&path(name))?;
        }
        let slow = path("slow");
        let about = fs::metadata(&slow).map_err(Error::system(
            "look at",
            slow.display(),
            "this should not happen; report it",
        ))?;
        let device = Device {
            major: rustix::fs::major(about.dev()),
            minor: rustix::fs::minor(about.dev()),
        };
        let scene = Self {
            dir: dir.to_owned(),
            device,
        };
        let mut random = fastrand::Rng::with_seed(1);
        let mut content = vec![0; usize::try_from(FILE_SIZE).unwrap_or(0)];
        for index in 0..FILES {
            random.fill(&mut content);
            scene.write(&path("slow/data"), index, &content)?;
            if is_in_working_set(index) {
                scene.write(&path("fast/plain"), index, &content)?;
            }
        }
        Ok(scene)
    }

    fn write(&self, directory: &Path, index: usize, content: &[u8]) -> Result<(), Error> {
        let path = directory.join(name(index));
        File::create(&path)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .map_err(Error::system(
                "write",
                path.display(),
                "make room on its file system",
            ))
    }

    fn round(&self, length: Duration, interrupted: &AtomicBool) -> Result<Round, Error> {
        let (slow, fast) = (self.dir.join("slow/data"), self.dir.join("fast/plain"));
        let reads = read(&slow, &fast, length, interrupted)?;
        let all_slow = reads.figures(0..reads.seconds.len());
        show("all slow", &all_slow);
        let mut daemon = self.start()?;
        let result = (|| {
            let reads = read(&slow, &fast, COLD, interrupted)?;
            let cpu =
                crate::demo::agent_use(daemon.id()).map_or(0.0, |used| used.cpu.as_secs_f64());
            let tiers = crate::cli::tiers(&self.dir.join("socket"))
                .map_err(|error| Error::part("the daemon", error))?;
            let totals = tiers.tiers.first().map(|tier| tier.totals);
            Ok((reads, cpu, totals.unwrap_or_default()))
        })();
        crate::demo::terminate(&mut daemon, "the daemon")?;
        let (reads, daemon_cpu_seconds, totals) = result?;
        self.drain()?;
        let reached = reads.reached();
        let seconds = reads.seconds.len();
        let last = seconds.saturating_sub(AT_THE_END)..seconds;
        let moving = reached.filter(|at| *at > 0).map(|at| reads.figures(0..at));
        let end = reads.figures(last.clone());
        let all_fast = figures(
            &reads.fast_seconds[last.clone()],
            &reads.fast_latencies[last.clone()],
        );
        show("all fast", &all_fast);
        if let Some(moving) = &moving {
            show("Forebay, until 80 %", moving);
        }
        show("Forebay, in the end", &end);
        let at = reached.map_or("never".to_owned(), |at| format!("after {at} s"));
        output::line(format_args!(
            "80 % of fast {at}; {} files promoted, {} moves left their file; the daemon used {daemon_cpu_seconds:.1} s of a CPU in {} s",
            totals.promoted,
            totals.left,
            COLD.as_secs()
        ));
        Ok(Round {
            all_slow,
            all_fast,
            forebay_moving: moving,
            forebay_end: end,
            part_of_fast: reads.part_of_fast(last),
            seconds_to_reach: reached.map(|at| at as u64),
            daemon_cpu_seconds,
            mib_per_second_each_second: reads.seconds,
            promoted: totals.promoted,
            left: totals.left,
        })
    }

    fn config(&self) -> Result<PathBuf, Error> {
        let quoted =
            |name: &str| toml::Value::from(self.dir.join(name).display().to_string()).to_string();
        let text = format!(
            "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"forebay-bench-{}\"\nlease = \"1s\"\n\
             [tiers.bench]\ndirectory = {}\nfast = {}\nslow = {}\nfast_size_max = {FAST_SIZE_MAX}\n\
             bandwidth_max = {MOVES_PER_SECOND}\nvolatile = true\n",
            quoted("socket"),
            quoted("daemon"),
            std::process::id(),
            quoted("slow/data"),
            quoted("fast/tier"),
            quoted("slow/tier"),
        );
        let config = self.dir.join("bench.toml");
        super::write_config(&config, &text)?;
        Ok(config)
    }

    fn start(&self) -> Result<Child, Error> {
        super::start_daemon(&self.config()?)
    }

    /// All files to the slow side, for the next round to begin cold.
    fn drain(&self) -> Result<(), Error> {
        let config = self.config()?;
        let arguments = ["tier", "drain", "bench", "--config"].map(Path::new);
        let arguments: Vec<&Path> = arguments.into_iter().chain([config.as_path()]).collect();
        succeed("/proc/self/exe", &arguments)
    }
}

fn show(arm: &str, figures: &Figures) {
    output::line(format_args!(
        "{arm:<22}{:>10.1} MiB/s   p50 {:>7} us   p99 {:>7} us   max {:>8} us",
        figures.mib_per_second, figures.p50_us, figures.p99_us, figures.max_us
    ));
}

fn name(index: usize) -> String {
    format!("{index:04}")
}

const fn is_in_working_set(index: usize) -> bool {
    index.is_multiple_of(FILES / WORKING_SET)
}

/// Where direct I/O may write to.
#[repr(align(4096))]
struct Aligned([u8; READ]);

/// Reads the working set in one directory.
struct Reader {
    files: Vec<PathBuf>,
    random: fastrand::Rng,
    buffer: Box<Aligned>,
}

impl Reader {
    fn of(directory: &Path) -> Self {
        let working_set = (0..FILES).filter(|index| is_in_working_set(*index));
        Self {
            files: working_set
                .map(|index| directory.join(name(index)))
                .collect(),
            random: fastrand::Rng::with_seed(7),
            buffer: Box::new(Aligned([0; READ])),
        }
    }

    /// Reads for so long: the speed in MiB per second, and each latency in microseconds.
    fn read(&mut self, length: Duration) -> Result<(f64, Vec<u32>), Error> {
        let mut latencies = Vec::new();
        let began = Instant::now();
        loop {
            let file = &self.files[self.random.usize(..self.files.len())];
            let start = Instant::now();
            OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::DIRECT.bits().cast_signed())
                .open(file)
                .and_then(|file| file.read_exact_at(&mut self.buffer.0, 0))
                .map_err(Error::system(
                    "read",
                    file.display(),
                    "tmpfs takes direct reads from Linux 6.6 on",
                ))?;
            latencies.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
            let took = began.elapsed();
            if took >= length {
                let bytes = latencies.len() as u64 * READ as u64;
                return Ok((mib(bytes) / took.as_secs_f64(), latencies));
            }
        }
    }
}

/// Reads a directory for so long, second by second, and beside it the working set on the fast
/// side as it is without Forebay: what else the machine does slows both.
fn read(
    directory: &Path,
    beside: &Path,
    length: Duration,
    interrupted: &AtomicBool,
) -> Result<Reads, Error> {
    let (mut reader, mut fast) = (Reader::of(directory), Reader::of(beside));
    let mut reads = Reads::default();
    for _ in 0..length.as_secs() {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let (speed, latencies) = reader.read(SLICE)?;
        reads.seconds.push(speed);
        reads.latencies.push(latencies);
        let (speed, latencies) = fast.read(Duration::from_secs(1) - SLICE)?;
        reads.fast_seconds.push(speed);
        reads.fast_latencies.push(latencies);
    }
    Ok(reads)
}

impl Reads {
    /// Over some of the seconds.
    fn figures(&self, range: Range<usize>) -> Figures {
        figures(&self.seconds[range.clone()], &self.latencies[range])
    }

    /// Of the fast side's speed, over some of the seconds.
    fn part_of_fast(&self, range: Range<usize>) -> f64 {
        mean(&self.seconds[range.clone()]) / mean(&self.fast_seconds[range])
    }

    /// The first second from which on a few in a row are fast enough.
    fn reached(&self) -> Option<usize> {
        let last = self.seconds.len().checked_sub(IN_A_ROW)?;
        (0..=last).find(|at| {
            (*at..at + IN_A_ROW).all(|second| self.part_of_fast(second..second + 1) >= PART)
        })
    }
}

fn figures(seconds: &[f64], latencies: &[Vec<u32>]) -> Figures {
    let mut latencies = latencies.concat();
    latencies.sort_unstable();
    let quantile = |permille: usize| {
        let rank = latencies.len().saturating_sub(1) * permille / 1000;
        latencies.get(rank).copied().unwrap_or(0)
    };
    Figures {
        mib_per_second: mean(seconds),
        p50_us: quantile(500),
        p99_us: quantile(990),
        max_us: quantile(1000),
    }
}

fn mean(values: &[f64]) -> f64 {
    let count = u32::try_from(values.len()).unwrap_or(u32::MAX).max(1);
    values.iter().sum::<f64>() / f64::from(count)
}

fn mib(bytes: u64) -> f64 {
    Bytes(bytes).as_f64() / Bytes(MIB).as_f64()
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(Error::system("make", path.display(), "make room there"))
}

fn succeed(program: &str, arguments: &[&Path]) -> Result<(), Error> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(Error::system(
            "start",
            program,
            "install util-linux and e2fsprogs",
        ))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::part(
            program,
            String::from_utf8_lossy(&output.stderr).trim(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(parts: &[f64]) -> Reads {
        Reads {
            seconds: parts.iter().map(|part| part * 100.0).collect(),
            fast_seconds: vec![100.0; parts.len()],
            latencies: (0..)
                .map(|second| (1..=100).map(|us| us + 1000 * second).collect())
                .take(parts.len())
                .collect(),
            fast_latencies: vec![Vec::new(); parts.len()],
        }
    }

    #[test]
    fn a_speed_is_reached_when_it_stays() {
        let check = |parts: &[f64], expected: Option<usize>| {
            assert_eq!(reads(parts).reached(), expected, "{parts:?}");
        };
        check(&[0.1, 0.9, 0.1, 0.8, 0.9, 1.0, 0.1], Some(3));
        check(&[0.9, 0.9, 0.7, 0.9, 0.9], None);
        check(&[], None);
    }

    #[test]
    fn figures_are_those_of_the_seconds_asked_for() {
        let reads = reads(&[0.1, 0.1, 0.5, 0.7]);
        let figures = reads.figures(2..4);
        assert!((figures.mib_per_second - 60.0).abs() < 1e-9);
        assert!((reads.part_of_fast(2..4) - 0.6).abs() < 1e-9);
        assert_eq!((figures.p50_us, figures.max_us), (2100, 3100));
        assert_eq!(figures.p99_us, 3098);
    }
}
