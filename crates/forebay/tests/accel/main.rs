//! `forebay accel-worker` from outside, with the OpenCL device of this host, whichever it is: PoCL
//! does for a machine without accelerators.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, whose functions clippy does not see as such"
)]

mod clients;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_accel::client::{Client, Memory, Task};
use forebay_accel::device::{Backend, DeviceInfo};
use forebay_accel::kernel::{
    Access, Arguments, Element, Kernel, Parameter, ScalarParameter, Signature, Sources, Tolerance,
};
use forebay_accel::kernels::built_in;
use forebay_accel::kernels::sample::{Sample, Sizes};
use forebay_accel::task::{Grid, Scalar, ScalarType};
use forebay_accel::wire::{Definition, DeviceStatus, Run, There, Wish};

/// Nothing that a test waits for takes longer, however busy the machine is.
const BOUND: Duration = Duration::from_secs(240);

/// A worker, as a process.
struct Worker {
    process: Child,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Worker {
    fn new(options: &[&str]) -> Self {
        Self::with(options, Stdio::inherit())
    }

    /// What it says is in a file.
    fn saying(options: &[&str], log: &std::path::Path) -> Self {
        Self::with(options, std::fs::File::create(log).unwrap().into())
    }

    fn with(options: &[&str], errors: Stdio) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("accel.sock");
        let process = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .arg("accel-worker")
            .arg(&socket)
            .args(options)
            .stdin(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        Self {
            process,
            socket,
            _directory: directory,
        }
    }

    fn client(&mut self) -> Client {
        let end = Instant::now() + BOUND;
        loop {
            match Client::connect(&self.socket) {
                Ok(client) => return client,
                Err(error) => {
                    assert!(Instant::now() < end, "{error}");
                    assert!(self.process.try_wait().unwrap().is_none(), "it ended");
                    std::thread::yield_now();
                }
            }
        }
    }

    /// A client, and the first device of OpenCL; says so where there is none.
    fn with_device(&mut self, test: &str) -> Option<(Client, String)> {
        let (client, device) = self.with_device_of(Backend::Opencl, test)?;
        Some((client, device.id))
    }

    fn with_device_of(&mut self, backend: Backend, test: &str) -> Option<(Client, DeviceInfo)> {
        let client = self.client();
        let Some(device) = first(&client, backend) else {
            println!("SKIPPED: {test}: no {backend} device; see `forebay accel devices`");
            return None;
        };
        println!("{test}: {} ({})", device.info.name, device.info.platform);
        Some((client, device.info))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The first device of a backend that the worker has.
fn first(client: &Client, backend: Backend) -> Option<DeviceStatus> {
    let mut devices = client.devices().unwrap().into_iter();
    devices.find(|device| device.info.backend == backend)
}

fn status(client: &Client, backend: Backend) -> DeviceStatus {
    first(client, backend).unwrap()
}

fn memories(client: &Client, sample: &Sample) -> Vec<Memory> {
    let each = sample.buffers.iter().map(|buffer| {
        let mut memory = client.memory(buffer.bytes().len()).unwrap();
        let bytes = memory.slice_mut::<u8>().unwrap();
        bytes.copy_from_slice(buffer.bytes());
        memory
    });
    each.collect()
}

fn task<'a>(
    client: &'a Client,
    kernel: &Kernel,
    sample: &Sample,
    memories: &'a mut [Memory],
) -> Task<'a> {
    let mut task = client.task(&kernel.name);
    for (memory, parameter) in memories.iter_mut().zip(&kernel.signature.buffers) {
        task = if parameter.access.writes() {
            task.output(memory)
        } else {
            task.input(memory)
        };
    }
    for scalar in &sample.scalars {
        task = task.scalar(*scalar);
    }
    task
}

/// The first run on the device: it is the CPU's as long as the device builds the kernel.
fn run_there(device: &str, mut submit: impl FnMut(Wish) -> Run) -> Run {
    let end = Instant::now() + BOUND;
    loop {
        let run = submit(Wish::Device(device.to_owned()));
        if run.place == device || run.retries > 0 {
            return run;
        }
        assert!(Instant::now() < end, "it never ran on {device}");
        std::thread::yield_now();
    }
}

#[test]
fn every_built_in_kernel_runs_on_a_device_as_on_the_cpu() {
    let mut worker = Worker::new(&["--verify-one-in", "1"]);
    let Some((client, device)) = worker.with_device("built-in kernels") else {
        return;
    };
    for kernel in built_in() {
        for (scale, seed) in [(5000, 1), (70_000, 2)] {
            let sample = Sample::of(&kernel, scale, Sizes::Ragged, seed).unwrap();
            let mut wanted = sample.clone();
            wanted.compute(&kernel).unwrap();
            let mut there = sample.clone();
            let run = run_there(&device, |wish| {
                let mut memories = memories(&client, &sample);
                let task = task(&client, &kernel, &sample, &mut memories).place(wish);
                let run = task.submit().unwrap().wait().unwrap();
                for (buffer, memory) in there.buffers.iter_mut().zip(&memories) {
                    let bytes = memory.slice::<u8>().unwrap();
                    buffer.bytes_mut().copy_from_slice(bytes);
                }
                run
            });
            let device = status(&client, Backend::Opencl);
            assert_eq!(run.retries, 0, "{}: {:?}", kernel.name, device.quarantine);
            let agrees = wanted.agrees(&kernel, &there);
            assert!(agrees.is_ok(), "{}: {agrees:?}", kernel.name);
        }
    }
    let device = status(&client, Backend::Opencl);
    assert_eq!((device.faults, device.verified), (0, device.tasks));
    assert!(device.tasks >= 2 * u64::try_from(built_in().len()).unwrap());
}

/// Times are printed: they are those of the device that is there.
#[test]
fn constant_memory_is_copied_to_a_device_once() {
    const COUNT: usize = 1 << 20;
    let mut worker = Worker::new(&[]);
    let Some((client, device)) = worker.with_device("constant memory") else {
        return;
    };
    let bytes = COUNT as u64 * 4;
    let weights = vec![0.25_f32; COUNT];
    let constant = client.constant(&weights).unwrap();
    let mut copied = client.memory(COUNT * 4).unwrap();
    copied.slice_mut::<f32>().unwrap().copy_from_slice(&weights);
    let mut input = client.memory(COUNT * 4).unwrap();
    let mut sum = client.memory(COUNT * 4).unwrap();
    let mut took = [const { Vec::new() }; 2];
    for round in 0..20_u8 {
        for (memory, took) in [&copied, &constant].into_iter().zip(&mut took) {
            input.slice_mut::<f32>().unwrap().fill(f32::from(round));
            let run = run_there(&device, |wish| {
                let task = client.task("add").input(memory).input(&input);
                let task = task.output(&mut sum).place(wish);
                let count = Scalar::U32(u32::try_from(COUNT).unwrap());
                task.scalar(count).submit().unwrap().wait().unwrap()
            });
            assert_eq!(run.retries, 0);
            took.push(run.took_us);
            let wanted = f32::from(round) + 0.25;
            let sums = sum.slice::<f32>().unwrap();
            assert!(sums.iter().all(|sum| *sum == wanted), "round {round}");
        }
    }
    let held = status(&client, Backend::Opencl);
    assert_eq!(held.kept_bytes, bytes);
    assert!(held.spared_bytes >= 19 * bytes, "{held:?}");
    let median = |took: &mut Vec<f64>| {
        took.sort_by(f64::total_cmp);
        took[took.len() / 2]
    };
    let [copied, kept] = took.each_mut().map(median);
    println!("add of {COUNT} on {device}: copied each time {copied:.0} us, kept {kept:.0} us");
    drop(constant);
    let end = Instant::now() + BOUND;
    while status(&client, Backend::Opencl).kept_bytes > 0 {
        assert!(Instant::now() < end, "what was given back is kept");
        std::thread::yield_now();
    }
}

/// What a kernel of an app does with number `i` of `numbers`, in the language of a backend.
fn sources(backend: Backend, name: &str, body: &str) -> Sources {
    let mut sources = Sources::default();
    match backend {
        Backend::Opencl => {
            let text = format!(
                "__kernel void {name}(__global uint *numbers, const uint count) {{\n\
                 const size_t i = get_global_id(0);\n{body}\n}}\n"
            );
            sources.opencl = Some(text.into());
        }
        Backend::Vulkan => {
            let text = format!(
                "@group(0) @binding(0) var<storage, read_write> numbers: array<atomic<u32>>;\n\
                 @group(1) @binding(0) var<uniform> count: u32;\n\
                 @compute @workgroup_size(64)\n\
                 fn {name}(@builtin(global_invocation_id) item: vec3<u32>) {{\n\
                 let i = item.x;\n{body}\n}}\n"
            );
            sources.wgsl = Some(text.into());
        }
        Backend::Cuda => panic!("no test has a kernel for it"),
    }
    sources
}

/// An app's own kernel that sets each number to 7, and what it does on devices instead.
fn own(backend: Backend, name: &str, body: &str) -> Definition {
    Definition {
        name: name.to_owned(),
        signature: Signature {
            buffers: vec![Parameter {
                name: "numbers".into(),
                access: Access::ReadWrite,
                element: Element::U32,
            }],
            scalars: vec![ScalarParameter {
                name: "count".into(),
                kind: ScalarType::U32,
            }],
        },
        per_item: vec![1],
        sources: sources(backend, name, body),
        tolerance: Tolerance::Exact,
    }
}

const ITEMS: u32 = 1000;

/// Has a kernel run on the device; 7 is what is there then, whoever computed it.
fn run_own(client: &Client, device: &DeviceInfo, name: &str, body: &str) -> Run {
    let (id, backend) = (device.id.as_str(), device.backend);
    let compute = |arguments: &mut Arguments<'_, '_>| {
        arguments.buffers[0].slice_mut::<u32>()?.fill(7);
        Ok(())
    };
    let own = own(backend, name, body);
    let builds = client.register(own, Box::new(compute)).unwrap();
    let build = builds.iter().find(|build| build.device == id).unwrap();
    assert_eq!(build.error, None);
    let mut memory = client.memory(ITEMS as usize * 4).unwrap();
    let run = run_there(id, |wish| {
        memory.slice_mut::<u32>().unwrap().fill(1);
        let task = client.task(name).output(&mut memory).place(wish);
        let task = task.scalar(Scalar::U32(ITEMS)).grid(Grid::line(ITEMS));
        task.submit().unwrap().wait().unwrap()
    });
    let numbers = memory.slice::<u32>().unwrap();
    assert!(numbers.iter().all(|number| *number == 7), "{name}");
    run
}

/// Why a kernel is left alone on the device now.
fn left_alone(client: &Client, backend: Backend, kernel: &str) -> Option<String> {
    let kernels = status(client, backend).kernels.into_iter();
    let mut named = kernels.filter(|one| one.name.starts_with(&format!("{kernel}#")));
    named.find_map(|one| match one.state {
        There::Quarantined(why) => Some(why),
        _ => None,
    })
}

/// Each of these kernels fails in its own way: a name, what it does, what is said of it.
fn harm_no_other(backend: Backend, good: &str, faults: &[(&str, &str, &str)]) {
    let limits = ["--run-max-seconds", "3", "--quarantine-seconds", "5"];
    let every = ["--verify-one-in", "1"];
    let mut worker = Worker::new(&[limits.as_slice(), &every].concat());
    let Some((client, device)) = worker.with_device_of(backend, "kernels that fail") else {
        return;
    };
    for (name, body, wanted) in faults {
        let run = run_own(&client, &device, name, body);
        assert_eq!((run.place.as_str(), run.retries), ("cpu", 1), "{name}");
        let why = left_alone(&client, backend, name).unwrap();
        assert!(why.contains(wanted), "{name}: {why}");
        assert_eq!(status(&client, backend).quarantine, None, "{name}");
        let run = run_own(&client, &device, &format!("after_{name}"), good);
        assert_eq!(
            (run.place, run.retries),
            (device.id.clone(), 0),
            "after {name}"
        );
        let end = Instant::now() + BOUND;
        while left_alone(&client, backend, name).is_some() {
            assert!(Instant::now() < end, "{name} is left alone for ever");
            std::thread::yield_now();
        }
    }
    let counted = status(&client, backend).faults;
    assert_eq!(usize::try_from(counted).unwrap(), faults.len());
}

#[test]
fn kernels_that_crash_hang_or_are_wrong_harm_no_other_kernel() {
    let endless = "volatile __global uint *watched = numbers; while (*watched != 77u) {}";
    harm_no_other(
        Backend::Opencl,
        "if (i < count) numbers[i] = 7;",
        &[
            (
                "wrong",
                "if (i < count) numbers[i] = 8;",
                "computed wrong wrongly",
            ),
            (
                "crash",
                "numbers[i + 0x100000000000ul] = 1;",
                "process ended",
            ),
            ("hang", endless, "taken to hang"),
        ],
    );
}

/// What leaves its buffer cannot crash: naga holds it to it. And a loop without an end came back on lavapipe,
/// with nothing done: these are some 10^10 additions, which take longer than a run may.
#[test]
fn kernels_that_take_too_long_or_are_wrong_by_vulkan_harm_no_other_kernel() {
    let store = |value: u32| format!("if i < count {{ atomicStore(&numbers[i], {value}u); }}");
    let (good, wrong) = (store(7), store(8));
    let outside = wrong.replace("[i]", "[i + 0x10000000u]");
    let additions = "atomicAdd(&numbers[i], 1u);\n".repeat(200);
    let long = format!("for (var turn = 0u; turn < 60000u; turn++) {{ {additions} }}");
    harm_no_other(
        Backend::Vulkan,
        &good,
        &[
            ("wrong", wrong.as_str(), "computed wrong wrongly"),
            ("outside", outside.as_str(), "computed outside wrongly"),
            ("hang", long.as_str(), "taken to hang"),
        ],
    );
}

#[test]
fn what_does_not_compile_is_told_in_the_compiler_s_words() {
    let mut worker = Worker::new(&[]);
    let Some((client, device)) = worker.with_device("compile errors") else {
        return;
    };
    let definition = own(Backend::Opencl, "broken", "numbers[i] = undeclared_thing;");
    let builds = client.register(definition, Box::new(|_| Ok(()))).unwrap();
    let build = builds.iter().find(|build| build.device == device).unwrap();
    let error = build.error.clone().unwrap().to_string();
    assert!(error.contains("undeclared_thing"), "{error}");
    assert_eq!(status(&client, Backend::Opencl).faults, 0);
}

#[test]
fn processes_of_devices_end_with_their_worker() {
    let mut worker = Worker::new(&[]);
    let Some((client, device)) = worker.with_device_of(Backend::Opencl, "the end of a worker")
    else {
        return;
    };
    let good = "if (i < count) numbers[i] = 7;";
    run_own(&client, &device, "seven", good);
    // A thread's children are listed by that thread: those of all are asked for.
    let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.process.id())).unwrap();
    let children: String = tasks
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap())
        .collect();
    let children: Vec<&str> = children.split_whitespace().collect();
    assert!(!children.is_empty(), "the device has no process");
    drop(worker);
    let end = Instant::now() + BOUND;
    let alive = |child: &&str| {
        let status = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // One that ended and that nobody waited for yet is dead.
        let state = status
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    };
    while children.iter().any(alive) {
        assert!(Instant::now() < end, "{children:?} are alive");
        std::thread::yield_now();
    }
}

/// What is said of a process on its standard error, which goes to a file.
fn said(file: &std::path::Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

/// How many descriptors a process holds.
fn descriptors(process: u32) -> usize {
    let held = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    held.count()
}

/// The least descriptor of a process that is free.
fn free_descriptor(process: u32) -> u64 {
    let held = |number: &u64| {
        let link = format!("/proc/{process}/fd/{number}");
        std::fs::symlink_metadata(link).is_ok()
    };
    (0..).find(|number| !held(number)).unwrap()
}

/// A client that comes while the worker can open nothing waits until it can, and others are served.
#[test]
fn a_worker_without_descriptors_says_so_once_and_hears_clients_again() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut worker = Worker::saying(&["--threads", "1"], &log);
    let client = worker.client();
    let process = Pid::from_child(&worker.process);
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = |current: Option<u64>| {
        let limit = Rlimit {
            current,
            maximum: most,
        };
        prlimit(Some(process), Resource::Nofile, limit).unwrap()
    };
    let words = "no client can be heard now";
    client.stats().unwrap();
    let held = descriptors(worker.process.id());
    for round in 1..=2 {
        let end = Instant::now() + BOUND;
        while descriptors(worker.process.id()) != held {
            assert!(Instant::now() < end, "clients that left are held");
            std::thread::yield_now();
        }
        let before = limit(Some(free_descriptor(worker.process.id())));
        let socket = worker.socket.clone();
        let waiting = std::thread::spawn(move || {
            let clients = [(); 3].map(|()| Client::connect(&socket));
            clients.map(|client| client.unwrap().stats().unwrap().clients)
        });
        let end = Instant::now() + BOUND;
        while said(&log).matches(words).count() < round {
            assert!(Instant::now() < end, "{}", said(&log));
            std::thread::yield_now();
        }
        // Who is heard goes on being heard, and is told of what cannot be done.
        let error = client.memory(64).unwrap_err().to_string();
        assert!(error.contains("RLIMIT_NOFILE"), "{error}");
        limit(before.current);
        waiting.join().unwrap();
        assert_eq!(said(&log).matches(words).count(), round, "{}", said(&log));
    }
}

/// Memory of a process that is its own, and that it shares, in bytes.
fn resident(process: u32) -> [u64; 2] {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    ["RssAnon:", "RssShmem:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<u64>().unwrap() * 1024
    })
}

/// The worker has no memory of its own for what a task reads and writes: it works in that of its client.
#[test]
fn a_task_on_the_cpu_takes_no_memory_of_the_worker_s_own() {
    let mut worker = Worker::new(&["--threads", "1"]);
    let client = worker.client();
    let count = 4 << 20_u32;
    let bytes = count as usize * 4;
    let [mut a, b, mut sum] = [(); 3].map(|()| client.memory(bytes).unwrap());
    let before = resident(worker.process.id());
    for value in [1.0, 2.0] {
        a.slice_mut::<f32>().unwrap().fill(value);
        let task = client.task("add").input(&a).input(&b).output(&mut sum);
        let task = task.scalar(Scalar::U32(count)).place(Wish::Cpu);
        task.submit().unwrap().wait().unwrap();
        let sums = sum.slice::<f32>().unwrap();
        assert!(sums.iter().all(|sum| *sum == value));
    }
    let after = resident(worker.process.id());
    let [own, shared] = [0, 1].map(|kind| after[kind].saturating_sub(before[kind]));
    assert!(own < bytes as u64 / 4, "{own} bytes of its own");
    assert!(shared >= 3 * bytes as u64, "{shared} bytes of its client's");
}

#[test]
fn a_worker_that_is_asked_to_end_takes_its_socket_away_and_no_file_of_others() {
    use rustix::process::{Pid, Signal, kill_process};

    let mut worker = Worker::new(&[]);
    worker.client();
    let id = i32::try_from(worker.process.id()).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    let status = worker.process.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(!worker.socket.exists());

    std::fs::write(&worker.socket, "precious").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("accel-worker")
        .arg(&worker.socket)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(std::fs::read(&worker.socket).unwrap(), b"precious");
}
