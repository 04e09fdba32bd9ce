//! `forebay demo accel`: a slice that is too small for its compute tasks, and the ladder's rung that
//! hands them to an accelerator.
//!
//! The service checks every result. The device is whatever this host has; where that is a CPU (PoCL), its
//! process is put outside of the slice, where a GPU's work would be, and the demo says so: it shows the
//! switch and what the slice wins by it, and nothing of what an accelerator is worth.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_accel::client::Client;
use forebay_accel::device::DeviceKind;
use forebay_accel::trial::{CANDIDATES, Trial};
use forebay_accel::wire::Wish;
use forebay_host::Roots;
use forebay_host::mounts::Hierarchies;
use serde_json::{Value, json};

use super::print::{line, progress};
use super::{Error, STATE_DIR, interruption, stay, terminate};
use crate::bench::start_daemon;
use crate::output::{numbers, table, words};
use crate::workload::tasks::Status;

/// The app.
const APP: &str = "service";
/// Processor time that it may use, in CPUs: less than its tasks want.
const CEILING: f64 = 0.5;
/// What it computes takes so many times as long on the device as on the CPU: it goes there where CPUs are
/// scarce, and not before.
const TIMES: std::ops::Range<f64> = 1.3..3.2;
/// And so long on the CPU, in microseconds: many of them fit into a period of the slice's quota.
const CPU_US: std::ops::Range<f64> = 200.0..6_000.0;
/// Kernels that it computes by turns, at most.
const KERNELS_MAX: usize = 2;
/// Time that each part is shown for.
const SHOWN: Duration = Duration::from_secs(6);
/// The ladder waits, measures, and lets go what is not needed for a minute.
const CLIMB_BOUND: Duration = Duration::from_secs(90);
const DESCENT_BOUND: Duration = Duration::from_secs(150);
const LOOK: Duration = Duration::from_millis(250);

/// One part of the show, in means over its looks.
#[derive(Debug, Default)]
struct Part {
    name: &'static str,
    looks: f64,
    cpus: f64,
    on_cpu: f64,
    on_devices: f64,
    p50_ms: f64,
    p95_ms: f64,
    price: f64,
}

impl Part {
    fn add(&mut self, look: &Look) {
        let used = &look.app["accelerator"];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        self.looks += 1.0;
        self.cpus += number(&look.app["usage"]["cpu_cores"]);
        self.on_cpu += number(&used["on_cpu_per_second"]);
        self.on_devices += number(&used["on_devices_per_second"]);
        self.price += number(&used["cpu_price"]);
        self.p50_ms += look.status.p50_ms.unwrap_or(0.0);
        self.p95_ms += look.status.p95_ms.unwrap_or(0.0);
    }

    fn row(&self) -> [String; 7] {
        let mean = |sum: f64| sum / self.looks.max(1.0);
        [
            self.name.to_owned(),
            format!("{:.2} of {CEILING:.2}", mean(self.cpus)),
            format!("{:.1}", mean(self.on_cpu)),
            format!("{:.1}", mean(self.on_devices)),
            format!("{:.1}", mean(self.p50_ms)),
            format!("{:.1}", mean(self.p95_ms)),
            format!("{:.0} x", mean(self.price)),
        ]
    }

    fn json(&self) -> Value {
        let mean = |sum: f64| sum / self.looks.max(1.0);
        json!({
            "part": self.name,
            "slice_cpus": mean(self.cpus),
            "tasks_per_s_on_cpus": mean(self.on_cpu),
            "tasks_per_s_on_devices": mean(self.on_devices),
            "p50_ms": mean(self.p50_ms),
            "p95_ms": mean(self.p95_ms),
            "cpu_price": mean(self.price),
        })
    }
}

/// What is seen at one moment.
struct Look {
    app: Value,
    offload: Vec<String>,
    status: Status,
}

impl Look {
    fn price(&self) -> f64 {
        self.app["accelerator"]["cpu_price"].as_f64().unwrap_or(1.0)
    }

    fn helped(&self) -> bool {
        let kept = "In force for it: send its tasks to an accelerator.";
        self.offload.iter().any(|line| line == kept)
    }
}

struct Show<'a> {
    exe: PathBuf,
    dir: &'a Path,
    daemon: Child,
    interrupted: std::sync::Arc<AtomicBool>,
}

/// Shows it; the figures as JSON.
///
/// # Errors
/// When there is no accelerator, a part fails, or a signal ends it.
pub(super) fn show(dir: &Path, stays: bool) -> Result<Value, Error> {
    let interrupted = interruption()?;
    let exe = std::env::current_exe().map_err(Error::system(
        "find",
        "this program's own file",
        "check that /proc is mounted",
    ))?;
    // What is compared at the beginning is no load of the service.
    let config = configure(&exe, dir, "watch")?;
    let daemon = start_daemon(&config)?;
    let mut show = Show {
        exe,
        dir,
        daemon,
        interrupted,
    };
    let shown = show.play();
    if stays && shown.is_ok() {
        stay(&[dir.join("socket")], &show.interrupted);
    }
    let ended = terminate(&mut show.daemon, "the daemon");
    let result = shown?;
    ended.map(|()| result)
}

fn configure(exe: &Path, dir: &Path, mode: &str) -> Result<PathBuf, Error> {
    let file = dir.join("forebay.toml");
    fs::write(&file, configuration(exe, dir, mode)).map_err(Error::system(
        "write",
        file.display(),
        "check that its file system has room",
    ))?;
    Ok(file)
}

fn configuration(exe: &Path, dir: &Path, mode: &str) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let path = |name: &str| quoted(&dir.join(name).display().to_string());
    let program = quoted(&exe.display().to_string());
    format!(
        "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = {}\nlease = \"2s\"\n\
         [policy]\non_stop = \"kill\"\n\
         [offload]\nmode = \"{mode}\"\npersistence = \"2s\"\nsettling = \"3s\"\n\
         [apps.{APP}]\nexec = [{program}, \"workload\", \"tasks\", \"--kernels\", {}, \"--status\", {}, \"--rest\", {}]\n\
         ceiling = {{ cpu = {CEILING} }}\naccelerators = {{}}\n\
         [apps.neighbour]\nclass = \"batch\"\nexec = [{program}, \"workload\", \"burn\", \"--threads\", \
         \"1\", \"--count-file\", {}]\n",
        path("socket"),
        path(STATE_DIR),
        quoted(&format!("forebay-demo-{}", std::process::id())),
        path("kernels"),
        path("status"),
        path("rest"),
        path("burn"),
    )
}

impl Show<'_> {
    fn play(&self) -> Result<Value, Error> {
        let worker = self.dir.join("accel").join(APP).join("socket");
        let client =
            self.await_some("the worker", CLIMB_BOUND, || Client::connect(&worker).ok())?;
        let devices = client
            .devices()
            .map_err(|error| Error::part("the worker", error))?;
        let Some(device) = devices.first().map(|device| device.info.clone()) else {
            return Err(Error::part(
                "the worker",
                "it found no accelerator; see `forebay accel devices` (Debian: pocl-opencl-icd)",
            ));
        };
        line(format_args!(
            "A service in a slice of {CEILING} CPU hands compute tasks to its worker, beside batch work.\n\
             Accelerator: {} ({}).",
            device.name, device.platform
        ));
        let pids = self.begin_device(&client)?;
        if device.kind == DeviceKind::Cpu {
            take_out(&pids)?;
            line(format_args!(
                "It is a CPU, and shares those of this host: its process is put outside of the slice, as the\n\
                 work of a GPU would be. What is shown is the switch and the slice, not what a GPU is worth."
            ));
        }
        let kernels = self.choose(&client, &device.id)?;
        configure(&self.exe, self.dir, "act")?;
        let reloaded = Command::new(&self.exe)
            .args(["reload", "--socket"])
            .arg(self.dir.join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(Error::system(
                "start",
                "forebay reload",
                "check process limits",
            ))?;
        if !reloaded.success() {
            return Err(Error::part("forebay reload", reloaded));
        }
        let file = self.dir.join("kernels");
        fs::write(&file, kernels).map_err(Error::system(
            "write",
            file.display(),
            "check that its file system has room",
        ))?;
        self.await_some("its tasks", CLIMB_BOUND, || self.looked().ok())?;
        let mut before = Part {
            name: "before",
            ..Part::default()
        };
        let look = self.until("the rung", CLIMB_BOUND, &mut before, |look| {
            look.price() > 1.0
        })?;
        self.told(&look);
        let mut settled = Part::default();
        let helped = self.until("its effect", CLIMB_BOUND, &mut settled, |look| {
            look.helped() || look.price() <= 1.0
        })?;
        self.told(&helped);
        if !helped.helped() {
            return Err(Error::part(
                "the rung",
                "it did not help, and was taken back: this host is too busy for its device; try again",
            ));
        }
        let mut with = Part {
            name: "tasks go to it",
            ..Part::default()
        };
        let begun = Instant::now();
        self.until("some time", SHOWN * 2, &mut with, |_| {
            begun.elapsed() >= SHOWN
        })?;
        line(format_args!(
            "The service rests; a minute later the rung is let go, since it is not needed."
        ));
        fs::write(self.dir.join("rest"), "").map_err(Error::system(
            "write",
            "the file that lets the service rest",
            "check that its file system has room",
        ))?;
        let mut resting = Part::default();
        let last = self.until("its end", DESCENT_BOUND, &mut resting, |look| {
            look.price() <= 1.0
        })?;
        self.told(&last);
        let mut after = Part {
            name: "taken back, resting",
            ..Part::default()
        };
        after.add(&last);
        self.conclude(&[before, with, after], &last.status)
    }

    /// Has the device begin; its processes.
    fn begin_device(&self, client: &Client) -> Result<Vec<u32>, Error> {
        let unrun = |error: String| Error::part("the worker", error);
        let (kernel, size) = CANDIDATES[0];
        let mut trial = Trial::new(client, kernel, size).map_err(unrun)?;
        let ran = trial.run(client, Wish::Best);
        ran.map_err(|error| unrun(error.to_string()))?;
        let (worker, _) = client.peer().map_err(|error| unrun(error.to_string()))?;
        self.await_some("the device", CLIMB_BOUND, || {
            let pids = device_processes(worker);
            (!pids.is_empty()).then_some(pids)
        })
    }

    /// Looks for kernels that go to the device only where CPUs are scarce; a line for each.
    fn choose(&self, client: &Client, device: &str) -> Result<String, Error> {
        let unrun = |error: String| Error::part("compare kernels", error);
        let mut chosen = Vec::new();
        for (kernel, size) in CANDIDATES {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            progress(format_args!("comparing {kernel}"));
            let mut trial = Trial::new(client, kernel, size).map_err(unrun)?;
            let compared = trial.compare(client, device, CLIMB_BOUND);
            let Some(compared) = compared.map_err(|error| unrun(error.to_string()))? else {
                continue;
            };
            let times = compared.device_us / compared.cpu_us;
            if TIMES.contains(&times) && CPU_US.contains(&compared.cpu_us) {
                line(format_args!(
                    "  {kernel}, {size} elements: {:.2} ms on the CPU, {:.2} ms on the device",
                    compared.cpu_us / 1000.0,
                    compared.device_us / 1000.0
                ));
                chosen.push(format!("{kernel} {size}\n"));
            }
            if chosen.len() >= KERNELS_MAX {
                break;
            }
        }
        if chosen.is_empty() {
            return Err(Error::part(
                "compare kernels",
                "none takes somewhat longer on this device than on the CPU, so that there is nothing to \
                 decide: its worker alone does what is right",
            ));
        }
        Ok(chosen.concat())
    }

    fn conclude(&self, parts: &[Part], status: &Status) -> Result<Value, Error> {
        let heads = [
            words("PART"),
            numbers("CPU"),
            numbers("TASKS/S ON CPUS"),
            numbers("ON DEVICE"),
            numbers("P50 MS"),
            numbers("P95 MS"),
            numbers("A CPU COUNTS"),
        ];
        let rows: Vec<[String; 7]> = parts.iter().map(Part::row).collect();
        line(format_args!("\n{}", table(heads, &rows)));
        let done: Vec<String> = status
            .done
            .iter()
            .map(|(place, count)| format!("{count} on {place}"))
            .collect();
        line(format_args!(
            "tasks: {}; results that were not the CPU's: {}; without a result: {}",
            done.join(", "),
            status.wrong,
            status.failed
        ));
        if status.wrong > 0 || status.failed > 0 {
            return Err(Error::part(APP, "a task was answered wrongly, or not"));
        }
        Ok(json!({
            "parts": parts.iter().map(Part::json).collect::<Vec<_>>(),
            "tasks": status.done,
            "wrong": status.wrong,
            "failed": status.failed,
        }))
    }

    fn told(&self, look: &Look) {
        for sentence in &look.offload {
            if !sentence.starts_with("Not taken") {
                line(format_args!("  {sentence}"));
            }
        }
    }

    /// Looks until something is so.
    fn until(
        &self,
        what: &str,
        bound: Duration,
        part: &mut Part,
        wanted: impl Fn(&Look) -> bool,
    ) -> Result<Look, Error> {
        self.await_some(what, bound, || {
            let look = self.looked().ok()?;
            progress(format_args!(
                "waiting for {what}: slice {:.2} CPU, {:.1} tasks/s on CPUs, {:.1} on the device",
                look.app["usage"]["cpu_cores"].as_f64().unwrap_or(0.0),
                look.app["accelerator"]["on_cpu_per_second"]
                    .as_f64()
                    .unwrap_or(0.0),
                look.app["accelerator"]["on_devices_per_second"]
                    .as_f64()
                    .unwrap_or(0.0),
            ));
            if wanted(&look) {
                return Some(look);
            }
            part.add(&look);
            None
        })
    }

    fn await_some<T>(
        &self,
        what: &str,
        bound: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, Error> {
        let end = Instant::now() + bound;
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if let Some(found) = look() {
                return Ok(found);
            }
            if Instant::now() >= end {
                let seconds = bound.as_secs();
                return Err(Error::part(
                    what,
                    format!("did not come within {seconds} s"),
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn looked(&self) -> Result<Look, Error> {
        let output = Command::new(&self.exe)
            .args(["explain", "--json", "--socket"])
            .arg(self.dir.join("socket"))
            .arg(APP)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .map_err(Error::system("ask", "the daemon", "see its message above"))?;
        let unread = |error: serde_json::Error| Error::part("the daemon", error);
        let mut told: Value = serde_json::from_slice(&output.stdout).map_err(unread)?;
        let status = self.dir.join("status");
        let text = fs::read(&status).map_err(Error::system(
            "read",
            status.display(),
            "see the message of the service above",
        ))?;
        let status = serde_json::from_slice(&text).map_err(|error| Error::part(APP, error))?;
        let offload = serde_json::from_value(told["offload"].take()).map_err(unread)?;
        Ok(Look {
            app: told["app"].take(),
            offload,
            status,
        })
    }
}

/// The processes of a worker's devices.
fn device_processes(worker: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{worker}/task")) else {
        return Vec::new();
    };
    // A thread's children are listed by that thread.
    let lists = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<u32>>()
        })
        .collect()
}

/// Moves processes to the root of every hierarchy.
fn take_out(pids: &[u32]) -> Result<(), Error> {
    let hierarchies = Hierarchies::read(&Roots::default().proc)
        .map_err(|error| Error::part("find the control groups", error.explain()))?;
    for hierarchy in hierarchies.list().iter().filter(|one| one.writable) {
        let door = hierarchy.dir(Path::new("")).join("cgroup.procs");
        for pid in pids {
            fs::write(&door, pid.to_string()).map_err(Error::system(
                "move the process of the device by",
                door.display(),
                "run as root",
            ))?;
        }
    }
    Ok(())
}
