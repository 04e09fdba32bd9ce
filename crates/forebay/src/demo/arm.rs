//! One arm for one segment of time: start the processes, send the load, count.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Error;
use super::sweep::STATE_DIR;
use crate::workload;

/// CPU time of one request.
const WORK_US: u64 = 1000;
/// Requests per second, low and high, each half of the period.
const RATE_LOW: u32 = 100;
const RATE_HIGH: u32 = 400;
/// Time before anything counts: connections, page cache, the daemon's first plans.
const WARM_UP: Duration = Duration::from_secs(2);
/// Period of the load: half of what is measured, within these bounds.
const PERIOD_S: (u64, u64) = (2, 20);
/// Memory and file of the memory- and I/O-hungry batch app.
const CHURN_MIB: u32 = 256;
/// Threads of the CPU-hungry batch app for each CPU.
const BURN_THREADS_PER_CPU: usize = 4;
/// Priority of the load generator in every arm: its own lateness must not count.
const REALTIME: &str = "10";
/// How long a part may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// What surrounds the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arm {
    /// Nothing.
    Alone,
    /// Batch work, left to the kernel.
    Uncontrolled,
    /// Batch work with the lowest weight on all CPUs.
    Weights,
    /// Batch work that runs only when nothing else wants a CPU.
    Idle,
    /// The service on the last CPU, batch work on the others.
    CpuSet,
    /// As `CpuSet`, and the service may also run on the others, ahead of idle batch work.
    Precedence,
    /// Batch work with a Forebay daemon.
    Forebay,
}

impl Arm {
    /// Its name in tables and files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Uncontrolled => "uncontrolled",
            Self::Weights => "static weights",
            Self::Idle => "static idle class",
            Self::CpuSet => "static CPU set",
            Self::Precedence => "static set, precedence",
            Self::Forebay => "forebay",
        }
    }
}

/// The load of a segment: a rate that is low for half of a period, then high.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wave {
    /// Requests per second.
    pub(crate) low: u32,
    pub(crate) high: u32,
    pub(crate) period: Duration,
    /// Time before anything counts; the wave begins with it.
    pub(crate) warm_up: Duration,
}

impl Wave {
    /// The wave of the demo, for so long a segment.
    fn of(measured: Duration) -> Self {
        let (least, most) = PERIOD_S;
        Self {
            low: RATE_LOW,
            high: RATE_HIGH,
            period: Duration::from_secs((measured.as_secs() / 2).clamp(least, most)),
            warm_up: WARM_UP,
        }
    }
}

/// What one arm did in one segment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segment {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    /// Of each second, by itself.
    pub(crate) seconds_p99_ms: Vec<Option<f64>>,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    /// Units of computation of the CPU-hungry batch app, per second.
    pub(crate) batch_per_s: f64,
    /// MiB moved by the memory- and I/O-hungry batch app, per second.
    pub(crate) churn_mib_per_s: f64,
    /// The daemon's own use, with its guardian's.
    pub(crate) agent: Option<Agent>,
}

/// The daemon's own use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agent {
    pub(crate) cpu_percent_of_core: f64,
    pub(crate) rss_bytes: u64,
}

/// The load generator's report.
#[derive(Debug, Deserialize)]
struct Load {
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    completed: u64,
    failed: u64,
    slices: Vec<Second>,
}

#[derive(Debug, Deserialize)]
struct Second {
    p99_ms: Option<f64>,
}

/// What all segments share.
#[derive(Debug)]
pub(crate) struct Scene {
    exe: PathBuf,
    dir: PathBuf,
    iterations: u64,
    burn_threads: usize,
    interrupted: Arc<AtomicBool>,
}

impl Scene {
    /// Measures once how many iterations one request takes, so that every arm does the same.
    pub(crate) fn new(dir: &Path, interrupted: &Arc<AtomicBool>) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Calibration {
            iterations: u64,
        }
        let exe = std::env::current_exe().map_err(Error::system(
            "find",
            "this program's own file",
            "check that /proc is mounted",
        ))?;
        let output = Command::new(&exe)
            .args(["workload", "service", "--calibrate", "--work-us"])
            .arg(WORK_US.to_string())
            .output()
            .map_err(Error::system(
                "start",
                exe.display(),
                "check its permissions",
            ))?;
        let calibration: Calibration = serde_json::from_slice(&output.stdout)
            .map_err(|error| Error::part("calibrate the service", error))?;
        Ok(Self {
            exe,
            dir: dir.to_owned(),
            iterations: calibration.iterations,
            burn_threads: BURN_THREADS_PER_CPU
                * std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            interrupted: Arc::clone(interrupted),
        })
    }

    /// CPU time of one request.
    #[expect(clippy::cast_precision_loss, reason = "a few milliseconds")]
    pub(crate) fn work_ms(&self) -> f64 {
        WORK_US as f64 / 1000.0
    }

    /// Runs one arm for `length`, warm-up included.
    pub(crate) fn run(&self, arm: Arm, length: Duration) -> Result<Segment, Error> {
        self.clear()?;
        let cast = match arm {
            Arm::Alone => Cast::plain(self, &[Role::Service])?,
            Arm::Uncontrolled => Cast::plain(self, &Role::ALL)?,
            Arm::Forebay => Cast::managed(self, "")?,
            Arm::Weights | Arm::Idle | Arm::CpuSet | Arm::Precedence => Cast::placed(self, arm)?,
        };
        let measured = length.saturating_sub(WARM_UP).max(Duration::from_secs(1));
        self.follow(cast, Wave::of(measured), measured)
    }

    /// Runs a daemon whose configuration has these lines of `[policy]` besides, under a wave that
    /// is measured for so long.
    pub(crate) fn ride(
        &self,
        policy: &str,
        wave: Wave,
        measured: Duration,
    ) -> Result<Segment, Error> {
        self.clear()?;
        self.follow(Cast::managed(self, policy)?, wave, measured)
    }

    fn follow(&self, cast: Cast, wave: Wave, measured: Duration) -> Result<Segment, Error> {
        let port = self.await_file("port", "the service")?;
        let result = self.measure(&cast, port.trim(), wave, measured);
        cast.end()?;
        result
    }

    /// Starts everything with a daemon, says how to look at it, waits for a signal.
    pub(crate) fn stay(&self) -> Result<(), Error> {
        self.clear()?;
        let cast = Cast::managed(self, "")?;
        let port = self.await_file("port", "the service")?;
        let length = Duration::from_secs(3600);
        let mut load = self.load(port.trim(), Wave::of(length), length)?;
        super::stay(&[self.socket()], &self.interrupted);
        end_child(&mut load, "the load generator")?;
        cast.end()
    }

    fn measure(
        &self,
        cast: &Cast,
        port: &str,
        wave: Wave,
        measured: Duration,
    ) -> Result<Segment, Error> {
        let mut load = self.load(port, wave, measured)?;
        self.wait(&mut load, wave.warm_up)?;
        let before = Counters::read(self, cast);
        let status = self.wait(&mut load, measured + PATIENCE)?;
        let after = Counters::read(self, cast);
        if status.is_none() {
            end_child(&mut load, "the load generator")?;
            return Err(Error::part("the load generator", "did not end in time"));
        }
        let text = fs::read(self.dir.join("load.json")).map_err(Error::system(
            "read",
            self.dir.join("load.json").display(),
            "see the load generator's message above",
        ))?;
        let load: Load = serde_json::from_slice(&text)
            .map_err(|error| Error::part("the load generator's report", error))?;
        Ok(before.until(&after, &load))
    }

    /// Waits for the child's end, at most for `bound`.
    fn wait(
        &self,
        child: &mut Child,
        bound: Duration,
    ) -> Result<Option<std::process::ExitStatus>, Error> {
        let until = Instant::now() + bound;
        while Instant::now() < until {
            if self.interrupted.load(Ordering::Relaxed) {
                end_child(child, "the load generator")?;
                return Err(Error::Interrupted);
            }
            let status = child.try_wait().map_err(Error::system(
                "wait for",
                "the load generator",
                "this should not happen; report it",
            ))?;
            if status.is_some() {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    }

    fn load(&self, port: &str, wave: Wave, measured: Duration) -> Result<Child, Error> {
        let Wave {
            low, high, period, ..
        } = wave;
        let period = period.as_secs();
        let mut command = self.workload("load");
        command
            .arg("--target")
            .arg(format!("127.0.0.1:{port}"))
            .arg("--pattern")
            .arg(format!("{low}:{high}:{period}"))
            .arg("--seconds")
            .arg(measured.as_secs().to_string())
            .arg("--warmup-s")
            .arg(wave.warm_up.as_secs().to_string())
            .args(["--realtime", REALTIME, "--json"])
            .arg(self.dir.join("load.json"));
        spawn(command, "the load generator")
    }

    fn workload(&self, name: &str) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(["workload", name, "--parent-death"]);
        command
    }

    fn arguments(&self, role: Role) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let words: Vec<String> = match role {
            Role::Service => vec![
                "--port-file".into(),
                path("port"),
                "--iterations".into(),
                self.iterations.to_string(),
            ],
            Role::Burn => vec![
                "--threads".into(),
                self.burn_threads.to_string(),
                "--count-file".into(),
                path("burn"),
            ],
            Role::Churn => vec![
                "--mib".into(),
                CHURN_MIB.to_string(),
                "--dir".into(),
                path(""),
                "--count-file".into(),
                path("churn"),
            ],
        };
        words
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Removes what an earlier segment wrote.
    fn clear(&self) -> Result<(), Error> {
        for name in ["port", "burn", "churn", "load.json"] {
            let file = self.dir.join(name);
            match fs::remove_file(&file) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(
                        Error::system("remove", file.display(), "remove it by hand")(error),
                    );
                }
            }
        }
        Ok(())
    }

    fn await_file(&self, name: &str, part: &str) -> Result<String, Error> {
        let file = self.dir.join(name);
        let until = Instant::now() + PATIENCE;
        loop {
            match fs::read_to_string(&file) {
                Ok(text) if !text.is_empty() => return Ok(text),
                _ if self.interrupted.load(Ordering::Relaxed) => return Err(Error::Interrupted),
                _ if Instant::now() >= until => {
                    return Err(Error::part(part, "did not start; see its message above"));
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Service,
    Burn,
    Churn,
}

impl Role {
    const ALL: [Self; 3] = [Self::Service, Self::Burn, Self::Churn];

    const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Burn => "burn",
            Self::Churn => "churn",
        }
    }
}

/// The processes of one segment.
struct Cast {
    children: Vec<(String, Child)>,
    /// A daemon among them: told to end first, since it ends the others.
    daemon: Option<Child>,
    placement: Option<crate::bench::Placement>,
}

impl Cast {
    fn plain(scene: &Scene, roles: &[Role]) -> Result<Self, Error> {
        let mut children = Vec::new();
        for &role in roles {
            let mut command = scene.workload(role.name());
            command.args(scene.arguments(role));
            children.push((role.name().to_owned(), spawn(command, role.name())?));
        }
        Ok(Self {
            children,
            daemon: None,
            placement: None,
        })
    }

    fn placed(scene: &Scene, arm: Arm) -> Result<Self, Error> {
        let mut cast = Self::plain(scene, &Role::ALL)?;
        let pids: Vec<u32> = cast.children.iter().map(|(_, child)| child.id()).collect();
        cast.placement = Some(crate::bench::Placement::make(
            &scene.dir.join("placement"),
            arm,
            pids[0],
            &pids[1..],
        )?);
        Ok(cast)
    }

    fn managed(scene: &Scene, policy: &str) -> Result<Self, Error> {
        let config = scene.dir.join("forebay.toml");
        fs::write(&config, daemon_config(scene, policy)).map_err(Error::system(
            "write",
            config.display(),
            "check that its file system has room",
        ))?;
        let mut command = Command::new(&scene.exe);
        command
            .args(["daemon", "--parent-death", "--config"])
            .arg(config)
            .arg0("forebay-demo-daemon")
            .stdout(Stdio::null());
        Ok(Self {
            children: Vec::new(),
            daemon: Some(spawn(command, "the daemon")?),
            placement: None,
        })
    }

    fn end(mut self) -> Result<(), Error> {
        if let Some(daemon) = &mut self.daemon {
            terminate(daemon, "the daemon")?;
        }
        for (name, child) in &mut self.children {
            end_child(child, name)?;
        }
        if let Some(placement) = self.placement.take() {
            placement.undo()?;
        }
        Ok(())
    }
}

/// The configuration of the demo's daemon: what a user would write.
fn daemon_config(scene: &Scene, policy: &str) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let path = |name: &str| quoted(&scene.dir.join(name).display().to_string());
    let mut text = format!(
        "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = {}\nlease = \"2s\"\n\n[policy]\non_stop = \"kill\"\n{policy}",
        quoted(&scene.socket().display().to_string()),
        path(STATE_DIR),
        quoted(&format!("forebay-demo-{}", std::process::id())),
    );
    for role in Role::ALL {
        let class = if role == Role::Service {
            "critical"
        } else {
            "batch"
        };
        let mut words = vec![
            scene.exe.display().to_string(),
            "workload".to_owned(),
            role.name().to_owned(),
        ];
        words.extend(scene.arguments(role));
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        text += &format!(
            "\n[apps.{}]\nclass = \"{class}\"\nexec = [{}]\nrestart = \"never\"\n",
            role.name(),
            words.join(", ")
        );
    }
    text
}

fn spawn(mut command: Command, part: &str) -> Result<Child, Error> {
    command.stdin(Stdio::null()).spawn().map_err(Error::system(
        "start",
        part,
        "check memory and process limits",
    ))
}

/// Asks for the end, and waits.
pub(crate) fn terminate(child: &mut Child, part: &str) -> Result<(), Error> {
    use rustix::process::{Pid, Signal, kill_process};

    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself; the wait below tells.
        kill_process(pid, Signal::TERM).ok();
    }
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if child
            .try_wait()
            .map_err(Error::system(
                "wait for",
                part,
                "this should not happen; report it",
            ))?
            .is_some()
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let left = threads(child.id());
    end_child(child, part)?;
    let why = format!(
        "did not end within {PATIENCE:?} when asked, and was killed; of its threads were left: {left}"
    );
    Err(Error::part(part, why))
}

/// The names of a process's threads.
fn threads(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let names = tasks.into_iter().flatten().flatten();
    let names = names.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    names.join(", ")
}

fn end_child(child: &mut Child, part: &str) -> Result<(), Error> {
    child
        .kill()
        .and_then(|()| child.wait())
        .map(drop)
        .map_err(Error::system("end", part, "end it by hand"))
}

/// What grows while a segment runs.
struct Counters {
    at: Instant,
    burn: u64,
    churn: u64,
    agent: Option<forebay_host::OwnUse>,
}

impl Counters {
    fn read(scene: &Scene, cast: &Cast) -> Self {
        // An arm without batch work has no count files: it did none.
        let count = |name: &str| workload::read_count(&scene.dir.join(name)).unwrap_or(0);
        Self {
            at: Instant::now(),
            burn: count("burn"),
            churn: count("churn"),
            agent: cast
                .daemon
                .as_ref()
                .and_then(|daemon| agent_use(daemon.id())),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of seconds of work")]
    fn until(&self, after: &Self, load: &Load) -> Segment {
        let seconds = after.at.duration_since(self.at).as_secs_f64();
        let agent = self.agent.zip(after.agent).map(|(before, after)| Agent {
            cpu_percent_of_core: 100.0 * (after.cpu.saturating_sub(before.cpu)).as_secs_f64()
                / seconds,
            rss_bytes: after.memory.0,
        });
        Segment {
            p50_ms: load.p50_ms.unwrap_or(f64::NAN),
            p99_ms: load.p99_ms.unwrap_or(f64::NAN),
            p999_ms: load.p999_ms.unwrap_or(f64::NAN),
            seconds_p99_ms: load.slices.iter().map(|second| second.p99_ms).collect(),
            completed: load.completed,
            failed: load.failed,
            batch_per_s: (after.burn - self.burn) as f64 / seconds,
            churn_mib_per_s: (after.churn - self.churn) as f64 / seconds,
            agent,
        }
    }
}

/// The daemon's use with that of its children that watch over it.
pub(crate) fn agent_use(daemon: u32) -> Option<forebay_host::OwnUse> {
    forebay_host::daemon_use(Path::new("/proc"), daemon)
}
