//! The slow device, and one arm on it for one segment of time.
//!
//! Everything is mounted in a mount namespace of its own, and the loop device goes with the
//! last descriptor: whatever dies, nothing is left.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{Agent, Arm, Segment};
use crate::demo::{Error, STATE_DIR, agent_use, terminate};
use crate::workload::disk_load::Reads;
use crate::workload::read_count;

/// The device: a volume with a bandwidth, a number of requests a second, and a latency.
const MIB_PER_S: u64 = 64;
const REQUESTS_PER_S: u64 = 4000;
const LATENCY_US: u64 = 1000;
const SIZE: u64 = 512 << 20;
/// Small reads a second of the critical application.
const READS_PER_S: u32 = 200;
/// Requests of batch at a time, of each direction, and their length.
const BATCH_DEPTH: u32 = 8;
const BATCH_KIB: u32 = 128;
/// Time before anything counts: the daemon's start, its first forecasts, its first limits.
const WARM_UP: Duration = Duration::from_secs(4);
/// How long a part may take to appear or to end.
const PATIENCE: Duration = Duration::from_secs(20);
const CALIBRATION_S: u32 = 6;
const CALIBRATION: &str = "calibration.json";
/// The device must not wait for a CPU.
const DISK_REALTIME: &str = "20";

/// Goes on in a mount namespace of its own: starts this program again in one, in its place.
pub(super) fn enter_own_mounts() -> Result<(), Error> {
    let namespace = |process: &str| {
        let link = format!("/proc/{process}/ns/mnt");
        fs::read_link(&link).map_err(Error::system(
            "read",
            link.clone(),
            "check that /proc is mounted",
        ))
    };
    let parent = std::os::unix::process::parent_id().to_string();
    if namespace("self")? != namespace(&parent)? {
        return Ok(());
    }
    let exe = own_file()?;
    let failed = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(Error::system(
        "start",
        "unshare",
        "install util-linux, and run as root",
    )(failed))
}

fn own_file() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(Error::system(
        "find",
        "this program's own file",
        "check that /proc is mounted",
    ))
}

/// What all segments share.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    exe: PathBuf,
    dir: PathBuf,
    interrupted: &'a AtomicBool,
    disk: Disk,
}

/// The device, there as long as this is.
#[derive(Debug)]
struct Disk {
    /// Holds the memory that the device keeps its data in.
    memory: PathBuf,
    server: Option<Child>,
    node: String,
    /// Its number.
    device: String,
    /// The kernel frees the device with the last descriptor.
    open: Option<File>,
}

impl<'a> Stage<'a> {
    /// Makes the device and measures it.
    pub(super) fn set(dir: &Path, interrupted: &'a AtomicBool) -> Result<Self, Error> {
        let exe = own_file()?;
        let memory = dir.join("disk");
        fs::create_dir(&memory).map_err(Error::system(
            "make directory",
            memory.display(),
            "remove it if an earlier run left it",
        ))?;
        mount(
            "forebay-bench",
            &memory,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            None,
        )
        .map_err(Error::system(
            "mount a file system in memory on",
            memory.display(),
            "run as root",
        ))?;
        let mut stage = Self {
            exe,
            dir: dir.to_owned(),
            interrupted,
            disk: Disk {
                memory,
                server: None,
                node: String::new(),
                device: String::new(),
                open: None,
            },
        };
        stage.serve()?;
        stage.attach()?;
        stage.calibrate()?;
        Ok(stage)
    }

    /// What the device is, for the result.
    pub(super) fn device(&self) -> serde_json::Value {
        let measured = fs::read_to_string(self.dir.join(CALIBRATION))
            .ok()
            .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        serde_json::json!({
            "mib_per_s": MIB_PER_S,
            "requests_per_s": REQUESTS_PER_S,
            "latency_us": LATENCY_US,
            "measured": measured.map(|mut kept| kept["devices"].take()),
        })
    }

    fn serve(&mut self) -> Result<(), Error> {
        let file = |name: &str| self.disk.memory.join(name);
        for (name, size) in [("image", SIZE), ("device", 0)] {
            File::create(file(name))
                .and_then(|made| made.set_len(size))
                .map_err(Error::system("make", file(name).display(), "free memory"))?;
        }
        let mut command = self.workload("slow-disk");
        command
            .arg("--image")
            .arg(file("image"))
            .arg("--at")
            .arg(file("device"))
            .arg("--ready-file")
            .arg(file("ready"))
            .args(["--mib-per-s", &MIB_PER_S.to_string()])
            .args(["--per-s", &REQUESTS_PER_S.to_string()])
            .args(["--latency-us", &LATENCY_US.to_string()])
            .args(["--realtime", DISK_REALTIME]);
        let ready = file("ready");
        self.disk.server = Some(spawn(command, "the device")?);
        self.wait("the device", PATIENCE, || ready.exists())
    }

    fn attach(&mut self) -> Result<(), Error> {
        let losetup = |arguments: &[&str], object: &str| {
            let output = Command::new("losetup")
                .args(arguments)
                .arg(object)
                .output()
                .map_err(Error::system("start", "losetup", "install util-linux"))?;
            if output.status.success() {
                Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
            } else {
                let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(Error::part(format!("losetup {object}"), why))
            }
        };
        let file = self.disk.memory.join("device").display().to_string();
        let node = losetup(&["--find", "--show", "--direct-io=on"], &file)?;
        let open = File::open(&node);
        // From here on it goes with the last descriptor.
        losetup(&["--detach"], &node)?;
        self.disk.open = Some(open.map_err(Error::system("open", &node, "see dmesg"))?);
        let name = node.trim_start_matches("/dev/");
        let number = format!("/sys/block/{name}/dev");
        self.disk.device = fs::read_to_string(&number)
            .map_err(Error::system("read", number, "check that /sys is mounted"))?
            .trim()
            .to_owned();
        self.disk.node = node;
        Ok(())
    }

    /// Measures the device as a user would.
    fn calibrate(&self) -> Result<(), Error> {
        let output = Command::new(&self.exe)
            .args(["calibrate", &self.disk.node, "--json"])
            .args(["--seconds", &CALIBRATION_S.to_string()])
            .arg("--state-dir")
            .arg(&self.dir)
            .output()
            .map_err(Error::system(
                "start",
                self.exe.display(),
                "check its permissions",
            ))?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::part("calibrate the device", why))
    }

    /// Runs one arm for `length`, warm-up included.
    pub(super) fn run(&self, arm: Arm, length: Duration) -> Result<Segment, Error> {
        let measured = length.saturating_sub(WARM_UP).max(Duration::from_secs(2));
        for name in ["reads.json", "hog"] {
            remove(&self.dir.join(name))?;
        }
        let mut daemon = self.daemon(arm, measured)?;
        let result = self.measure(arm, measured, &daemon);
        terminate(&mut daemon, "the daemon")?;
        result
    }

    fn measure(&self, arm: Arm, measured: Duration, daemon: &Child) -> Result<Segment, Error> {
        let warm = Instant::now() + WARM_UP;
        self.wait("the warm-up", 2 * WARM_UP, || Instant::now() >= warm)?;
        if arm != Arm::Alone {
            // On a machine that others keep busy, what runs in the idle class starts late.
            let hog = self.dir.join("hog");
            self.wait("the batch application", PATIENCE, || {
                read_count(&hog).is_ok_and(|count| count > 0)
            })?;
        }
        let file = self.dir.join("reads.json");
        let count = || match arm {
            Arm::Alone => Ok(0),
            _ => read_count(&self.dir.join("hog"))
                .map_err(|error| Error::part("the batch application", error)),
        };
        let used = || agent_use(daemon.id());
        let (began, before, own_before) = (Instant::now(), count()?, used());
        self.wait("the reader's report", measured + PATIENCE, || file.exists())?;
        let (after, own_after) = (count()?, used());
        let seconds = began.elapsed().as_secs_f64();
        let text = fs::read_to_string(&file).map_err(Error::system(
            "read",
            file.display(),
            "see the reader's message above",
        ))?;
        let reads: Reads = serde_json::from_str(&text)
            .map_err(|error| Error::part("the reader's report", error))?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds, KiB and bytes of seconds"
        )]
        let float = |number: u64| number as f64;
        Ok(Segment {
            p50_ms: float(reads.p50_us) / 1000.0,
            p99_ms: float(reads.p99_us) / 1000.0,
            p999_ms: float(reads.p999_us) / 1000.0,
            reads: reads.completed,
            batch_mib_per_s: float(after.saturating_sub(before)) / 1024.0 / seconds,
            agent: own_before.zip(own_after).map(|(before, after)| Agent {
                cpu_percent_of_core: 100.0 * after.cpu.saturating_sub(before.cpu).as_secs_f64()
                    / seconds,
                rss_mib: after.memory.as_f64() / 1_048_576.0,
            }),
        })
    }

    fn reader(&self, measured: Duration) -> Vec<String> {
        [
            ("--device", self.disk.node.clone()),
            ("--per-s", READS_PER_S.to_string()),
            ("--seconds", measured.as_secs().to_string()),
            ("--warmup-s", WARM_UP.as_secs().to_string()),
            ("--json", self.dir.join("reads.json").display().to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }

    fn hog(&self) -> Vec<String> {
        [
            ("--device", self.disk.node.clone()),
            ("--readers", BATCH_DEPTH.to_string()),
            ("--writers", BATCH_DEPTH.to_string()),
            ("--kib", BATCH_KIB.to_string()),
            ("--count-file", self.dir.join("hog").display().to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }

    fn workload(&self, name: &str) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(["workload", name, "--parent-death"]);
        command
    }

    /// Starts a daemon that starts the applications. It places all arms' applications on the
    /// same CPUs, so that only what becomes of the disk differs.
    fn daemon(&self, arm: Arm, measured: Duration) -> Result<Child, Error> {
        let state = self.dir.join(STATE_DIR);
        let calibration = state.join(CALIBRATION);
        fs::create_dir_all(&state).map_err(Error::system(
            "make directory",
            state.display(),
            "check that its file system has room",
        ))?;
        remove(&calibration)?;
        if arm == Arm::Forebay {
            fs::copy(self.dir.join(CALIBRATION), &calibration).map_err(Error::system(
                "write",
                calibration.display(),
                "check that its file system has room",
            ))?;
        }
        let config = self.dir.join("forebay.toml");
        crate::bench::write_config(&config, &self.config(arm, measured))?;
        crate::bench::start_daemon(&config)
    }

    /// What a user would write.
    fn config(&self, arm: Arm, measured: Duration) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let path = |name: &str| quoted(&self.dir.join(name).display().to_string());
        let mut text = format!(
            "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"forebay-bench-{}\"\nlease = \"2s\"\n\n[policy]\non_stop = \"kill\"\n",
            path("socket"),
            path(STATE_DIR),
            std::process::id(),
        );
        let reader = ("reader", "critical", "disk-reads", self.reader(measured));
        let hog = ("hog", "batch", "disk-hog", self.hog());
        let hog = (arm != Arm::Alone).then_some(hog);
        for (name, class, workload, arguments) in [reader].into_iter().chain(hog) {
            let exe = self.exe.display().to_string();
            let words = [exe, "workload".to_owned(), workload.to_owned()];
            let words: Vec<String> = words.iter().chain(&arguments).map(|w| quoted(w)).collect();
            text += &format!(
                "\n[apps.{name}]\nclass = \"{class}\"\nexec = [{}]\nrestart = \"never\"\n",
                words.join(", ")
            );
        }
        if let Arm::ByHand(part) = arm {
            let rate = (MIB_PER_S << 20) * u64::from(part) / 2000;
            text += &format!(
                "io_max = {{ {} = {{ rbps = {rate}, wbps = {rate} }} }}\n",
                quoted(&self.disk.device)
            );
        }
        text
    }

    /// Waits until something holds, at most for `bound`.
    fn wait(&self, part: &str, bound: Duration, holds: impl Fn() -> bool) -> Result<(), Error> {
        let until = Instant::now() + bound;
        while !holds() {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if Instant::now() >= until {
                return Err(Error::part(
                    part,
                    "did not come in time; see its message above",
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::system("remove", file.display(), "remove it by hand")(error))
        }
        _ => Ok(()),
    }
}

fn spawn(mut command: Command, part: &str) -> Result<Child, Error> {
    command.stdin(Stdio::null()).spawn().map_err(Error::system(
        "start",
        part,
        "check memory and process limits",
    ))
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.open = None;
        if let Some(server) = &mut self.server {
            // It may have ended by itself; then there is nothing to end.
            server.kill().ok();
            server.wait().ok();
        }
        for place in [self.memory.join("device"), self.memory.clone()] {
            // What is not mounted any more need not be unmounted; the rest goes with the
            // namespace.
            unmount(&place, UnmountFlags::DETACH).ok();
        }
    }
}
