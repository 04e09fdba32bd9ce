//! Workers of accelerators that the daemon starts: real processes, real control groups, and the OpenCL
//! device of this host, whichever it is (PoCL does, and shares the CPUs).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_accel::client::{Client, SOCKET_VARIABLE};
use forebay_accel::trial::{CANDIDATES, Compared, Trial};
use forebay_accel::wire::Wish;
use rustix::process::Signal;
use serde_json::Value;

use crate::http::request;
use crate::place::{Knob, PATIENCE, Place, eventually, is_running, processes, signal, text};

/// Who the app and its worker are.
const USER: u32 = 65_534;
/// The promise: from when the price is told until the slice is relieved.
const RELIEVED_BOUND: Duration = Duration::from_secs(1);

fn socket(place: &Place) -> PathBuf {
    place.path("accel/web/socket")
}

fn connected(place: &Place) -> Client {
    let mut client = None;
    eventually("the worker listens", || {
        client = Client::connect(socket(place)).ok();
        client.is_some()
    });
    client.unwrap()
}

fn worker_of(client: &Client) -> u32 {
    client.peer().unwrap().0
}

/// Everything that has the socket of this place's worker on its command line.
fn workers(place: &Place) -> Vec<u32> {
    let socket = socket(place).display().to_string();
    processes(|words| words.contains(&socket))
}

fn environment(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let words = bytes.split(|byte| *byte == 0);
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn device_of(client: &Client, test: &str) -> Option<String> {
    let device = client.devices().unwrap().into_iter().next();
    if device.is_none() {
        println!("SKIPPED: {test}: no accelerator; install pocl-opencl-icd");
    }
    device.map(|device| device.info.id)
}

#[test]
fn the_daemon_starts_a_worker_and_starts_it_again() {
    let Some(mut place) = Place::new("the_daemon_starts_a_worker_and_starts_it_again") else {
        return;
    };
    place.configure(&format!(
        "[apps.web]\nexec = [\"sleep\", \"{}\"]\nuser = \"{USER}\"\n\
         [apps.web.accelerators]\ntime = \"50%\"\nmemory = \"1GiB\"\n",
        place.seconds(1)
    ));
    place.start();
    let app = place.await_pid("web");
    let named = format!("{SOCKET_VARIABLE}={}", socket(&place).display());
    assert!(environment(app).contains(&named), "{:?}", environment(app));

    let client = connected(&place);
    let (worker, user) = client.peer().unwrap();
    assert_eq!(user, USER);
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{USER}\t{USER}")),
        "{status}"
    );
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let members = text(&place.knob("web", Knob::Procs));
    assert!(
        members.lines().any(|pid| pid == worker.to_string()),
        "{members}"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(place.path("accel/web"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
    let parts = client.devices().unwrap().into_iter().map(|one| one.part);
    assert!(parts.into_iter().all(|part| part == 0.5));
    let mut trial = Trial::new(&client, "sort", 5000).unwrap();
    assert_eq!(trial.run(&client, Wish::Best).unwrap().retries, 0);
    trial.check().unwrap();

    // Tasks are under way while it is killed.
    let (runs, ends) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let under_way = {
        let (runs, ends, socket) = (Arc::clone(&runs), Arc::clone(&ends), socket(&place));
        std::thread::spawn(move || {
            let client = Client::lasting(socket, PATIENCE).unwrap();
            let mut trial = Trial::new(&client, "sort", 50_000).unwrap();
            while !ends.load(Ordering::Relaxed) {
                trial.run(&client, Wish::Best).unwrap();
                trial.check().unwrap();
                runs.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let more = |count| {
        let before = runs.load(Ordering::SeqCst);
        eventually("tasks are answered", || {
            assert!(
                !under_way.is_finished(),
                "a task was not answered, or wrongly"
            );
            runs.load(Ordering::SeqCst) >= before + count
        });
    };
    more(3);
    signal(worker, Signal::KILL);
    eventually("another one runs", || {
        let now = Client::connect(socket(&place));
        now.is_ok_and(|client| worker_of(&client) != worker)
    });
    more(3);
    ends.store(true, Ordering::Relaxed);
    under_way.join().unwrap();
    let client = connected(&place);
    let second = worker_of(&client);
    let mut trial = Trial::new(&client, "sort", 5000).unwrap();
    trial.run(&client, Wish::Best).unwrap();
    trial.check().unwrap();
    let events = place.json(&["events", "--app", "web"]).to_string();
    let ended = format!("its worker, process {worker}, ended");
    assert!(events.contains(&ended), "{events}");

    // It outlives a daemon, and the next one takes it up.
    for guardian in place.guardians() {
        signal(guardian, Signal::KILL);
    }
    place.crash();
    place.start();
    place.await_pid("web");
    let taken_up = format!("its worker, process {second}, was taken up");
    eventually("it is taken up", || {
        let events = place.json(&["events", "--app", "web"]).to_string();
        events.contains(&taken_up)
    });
    assert_eq!(workers(&place), [second]);
    trial.run(&client, Wish::Best).unwrap();

    // Another configuration is another worker; without one there is none.
    let text = std::fs::read_to_string(place.path("forebay.toml")).unwrap();
    std::fs::write(place.path("forebay.toml"), text.replace("50%", "25%")).unwrap();
    place.json(&["reload"]);
    eventually("it has the new quota", || {
        let client = Client::connect(socket(&place));
        client.is_ok_and(|client| worker_of(&client) != second)
    });
    assert!(!is_running(second));
    let without = text.split("[apps.web.accelerators]").next().unwrap();
    std::fs::write(place.path("forebay.toml"), without).unwrap();
    place.json(&["reload"]);
    eventually("it is gone", || {
        workers(&place).is_empty() && !place.path("accel/web").exists()
    });
    assert!(is_running(app), "its app goes on");

    std::fs::write(place.path("forebay.toml"), text).unwrap();
    place.json(&["reload"]);
    connected(&place);
    place.stop_well();
    assert_eq!(workers(&place), [] as [u32; 0]);
    assert!(!place.path("accel").exists());
}

#[test]
fn what_a_lost_daemon_left_of_a_worker_that_nobody_wants_is_put_away() {
    let name = "what_a_lost_daemon_left_of_a_worker_that_nobody_wants_is_put_away";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let app = format!("[apps.web]\nexec = [\"sleep\", \"{}\"]\n", place.seconds(1));
    place.configure(&format!("{app}accelerators = {{}}\n"));
    place.start();
    let client = connected(&place);
    let (worker, user) = client.peer().unwrap();
    assert_ne!(user, 0, "an app of root has a worker without its rights");
    place.crash();
    place.configure(&app);
    place.start();
    eventually("it is ended", || !is_running(worker));
    eventually("nothing is left", || !place.path("accel/web").exists());
    place.stop_well();
}

/// Clients that submit tasks until this goes.
struct Load {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// So many at the same time: two tasks on the device one after the other take less than one on a CPU counts.
const CLIENTS: usize = 2;
/// Looking at a result takes as long as a task, and keeps the worker idle: one in so many is.
const CHECKED: u32 = 16;

impl Load {
    fn new(stage: &Stage) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (kernel, size) = stage.kernel;
        let threads = (0..CLIENTS).map(|_| {
            let (ends, socket) = (Arc::clone(&ends), socket(&stage.place));
            std::thread::spawn(move || {
                let client = Client::connect(socket).unwrap();
                let mut trial = Trial::new(&client, kernel, size).unwrap();
                for number in 0_u32.. {
                    trial.run(&client, Wish::Best).unwrap();
                    if number % CHECKED == 0 {
                        trial.check().unwrap();
                    }
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { ends, threads }
    }

    fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// The device takes so many times as long as the CPU: it is used only where time of the CPU is scarce.
const TIMES: std::ops::Range<f64> = 1.5..3.2;
/// And a task takes so long there, in microseconds: many of them fit into a period of the slice's quota, so
/// that few of them are stopped on their way.
const CPU_US: std::ops::Range<f64> = 200.0..6_000.0;

/// Where the process of the device is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Where {
    Slice,
    /// As a GPU would be.
    Outside,
}

/// Processor time that the app may use, and the part of it above which it is constrained.
const CEILING: f64 = 0.5;
const LIMIT: f64 = 0.6;

struct Stage {
    place: Place,
    client: Client,
    device: String,
    kernel: (&'static str, u32),
}

impl Stage {
    /// An app whose worker knows how long tasks take on the CPU and on the device. It has one device: what
    /// Vulkan shows of the same CPUs is left out.
    fn new(test: &str, device_is: Where) -> Option<Self> {
        let mut place = Place::new(test)?;
        place.configure(&format!(
            "[offload]\nmode = \"watch\"\ncpu = \"{:.0}%\"\npersistence = \"500ms\"\nsettling = \"2s\"\n\
             [apps.web]\nexec = [\"sleep\", \"{}\"]\nceiling = {{ cpu = {CEILING} }}\n\
             accelerators = {{ deny = [\"vulkan:0\"] }}\n",
            LIMIT * 100.0,
            place.seconds(1)
        ));
        place.start();
        place.await_pid("web");
        let client = connected(&place);
        let device = device_of(&client, test)?;
        let mut stage = Self {
            place,
            client,
            device,
            kernel: CANDIDATES[0],
        };
        let (kernel, size) = stage.kernel;
        let mut trial = Trial::new(&stage.client, kernel, size).unwrap();
        trial.run(&stage.client, Wish::Best).unwrap();
        eventually("the device begins", || !stage.devices().is_empty());
        if device_is == Where::Outside {
            stage.take_devices_out_of_the_slice();
        }
        let fits = |compared: &Compared| {
            let times = compared.device_us / compared.cpu_us;
            TIMES.contains(&times) && CPU_US.contains(&compared.cpu_us)
        };
        let mut compared = Vec::new();
        let fitting = CANDIDATES.into_iter().find_map(|(kernel, size)| {
            let mut trial = Trial::new(&stage.client, kernel, size).unwrap();
            let of = trial
                .compare(&stage.client, &stage.device, PATIENCE)
                .unwrap();
            compared.push(((kernel, size), of));
            Some(((kernel, size), of.filter(fits)?))
        });
        let (kernel, of) = fitting.unwrap_or_else(|| {
            panic!("nothing takes somewhat longer on the device: {compared:#?}")
        });
        println!("{test}: {kernel:?} {of:?}");
        stage.kernel = kernel;
        // Until here it was its own load that it lacked CPUs for.
        let file = stage.place.path("forebay.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, text.replace("\"watch\"", "\"act\"")).unwrap();
        stage.place.json(&["reload"]);
        Some(stage)
    }

    fn app(&self) -> Value {
        let (code, body) = request(&self.place.path("socket"), "GET", "/v1/apps/web", "");
        assert_eq!(code, 200, "{body}");
        let mut told: Value = serde_json::from_str(&body).unwrap();
        told["app"].take()
    }

    fn uses(&self) -> Option<f64> {
        self.app()["usage"]["cpu_cores"].as_f64()
    }

    fn explained(&self) -> String {
        let output = self.place.ask(&["explain", "web"]);
        String::from_utf8(output.stdout).unwrap()
    }

    fn price(&self) -> f64 {
        self.client.stats().unwrap().cpu_price
    }

    /// The processes of devices of the worker.
    fn devices(&self) -> Vec<u32> {
        let worker = worker_of(&self.client).to_string();
        processes(|words| words.get(1).is_some_and(|word| word == "accel-device"))
            .into_iter()
            .filter(|pid| {
                let stat = text(Path::new(&format!("/proc/{pid}/stat")));
                let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
                rest.is_some_and(|rest| rest.split(' ').nth(1) == Some(&worker))
            })
            .collect()
    }

    /// What computes for the device is outside of the slice, as a GPU would be.
    fn take_devices_out_of_the_slice(&self) {
        let devices = self.devices();
        assert!(!devices.is_empty(), "the device has no process");
        for hierarchy in self.place.hierarchies.list() {
            let door = hierarchy.dir(Path::new("")).join("cgroup.procs");
            for device in &devices {
                std::fs::write(&door, device.to_string()).unwrap();
            }
        }
    }
}

#[test]
fn a_slice_that_lacks_cpus_is_relieved_by_an_accelerator() {
    let name = "a_slice_that_lacks_cpus_is_relieved_by_an_accelerator";
    let Some(mut stage) = Stage::new(name, Where::Outside) else {
        return;
    };
    assert_eq!(stage.price(), 1.0);
    let load = Load::new(&stage);
    eventually("it lacks CPUs", || {
        stage.uses().is_some_and(|cpus| cpus > CEILING * LIMIT)
    });
    eventually("its worker is told", || stage.price() > 1.0);
    let told = Instant::now();
    eventually("it is relieved", || {
        stage.uses().is_some_and(|cpus| cpus < CEILING * LIMIT)
    });
    let relieved = told.elapsed();
    println!(
        "from the price to a slice below its limit: {} ms",
        relieved.as_millis()
    );
    assert!(relieved <= RELIEVED_BOUND, "{relieved:?}");
    eventually("it is seen to have helped", || {
        stage
            .explained()
            .contains("Tried: send its tasks to an accelerator")
    });
    let explained = stage.explained();
    assert!(
        explained.contains("In force for it: send its tasks to an accelerator"),
        "{explained}"
    );
    let device = stage.client.devices().unwrap();
    let device = device
        .iter()
        .find(|one| one.info.id == stage.device)
        .unwrap();
    assert!(device.tasks > 0 && device.faults == 0, "{device:?}");
    let used = &stage.app()["accelerator"];
    assert!(
        used["on_devices_per_second"].as_f64().unwrap() > 0.0,
        "{used}"
    );
    load.end();
    stage.place.stop_well();
}

#[test]
fn a_rung_that_does_not_help_is_taken_back() {
    let name = "a_rung_that_does_not_help_is_taken_back";
    let Some(mut stage) = Stage::new(name, Where::Slice) else {
        return;
    };
    // The device is this host's CPUs, and its process stays in the slice: nothing is won.
    let load = Load::new(&stage);
    eventually("its worker is told", || stage.price() > 1.0);
    let end = Instant::now() + PATIENCE;
    while stage.price() > 1.0 {
        assert!(Instant::now() < end, "{}", stage.explained());
        std::thread::yield_now();
    }
    let events = stage.place.json(&["events", "--app", "web"]).to_string();
    let undone = "offload, taken back: send its tasks to an accelerator";
    assert!(events.contains(undone), "{events}");
    load.end();
    stage.place.stop_well();
}
