//! What a kernel on the CPU sees of its task: where its buffers are, and when it begins. The kernels tell.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::{Broker, Options, by_name, start_with};
use crate::client::{Client, Error};
use crate::device::DeviceInfo;
use crate::kernel::{
    Access, Arguments, Check, Cpu, CpuFunction, Element, Kernel, Launches, Parameter, Signature,
    Sources, Tolerance,
};
use crate::memory::mapped_at;
use crate::process::{Launcher, OwnProgram, Process, pair};
use crate::wire::{Definition, Request, send};

/// A kernel that reads numbers and writes what it tells.
fn tells(compute: CpuFunction) -> Kernel {
    let buffer = |name: &'static str, access| Parameter {
        name: name.into(),
        access,
        element: Element::U64,
    };
    Kernel {
        name: "tells".into(),
        signature: Signature {
            buffers: vec![buffer("from", Access::Read), buffer("to", Access::Write)],
            scalars: Vec::new(),
        },
        check: Check::Function(|_| Ok(())),
        launches: Launches::Grid,
        sources: Sources::default(),
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

/// A broker that has this kernel, as long as the test runs.
fn with_kernel(compute: CpuFunction, test: impl FnOnce(&Client, &Broker)) {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path().join("accel.sock"));
    options.cpu_threads = 1;
    let kernels = by_name(vec![tells(compute)]);
    let launcher = Arc::new(OwnProgram);
    let broker = start_with(options.clone(), Vec::new(), launcher, kernels).unwrap();
    let client = Client::connect(&options.socket).unwrap();
    test(&client, &broker);
    drop(client);
    broker.stop();
}

fn tell_where(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [from, to] = arguments.buffers else {
        return Err("it takes two buffers".to_owned());
    };
    let from = from.bytes().as_ptr().addr();
    let to = to.slice_mut::<u64>()?;
    let own = to.as_ptr().addr();
    let [from, file_of_from, own, file_of_own] =
        [from as u64, mapped_at(from).1, own as u64, mapped_at(own).1];
    to.copy_from_slice(&[from, file_of_from, own, file_of_own]);
    Ok(())
}

/// The kernel reads and writes the very memory that the client made: no byte is moved between them. It
/// is mapped there once more, which is all that is done for it.
#[test]
fn a_kernel_on_the_cpu_works_in_the_memory_of_its_client() {
    with_kernel(tell_where, |client, _| {
        let from = client.memory(8).unwrap();
        let mut to = client.memory(4 * 8).unwrap();
        let at = [&from, &to].map(|memory| memory.slice::<u8>().unwrap().as_ptr().addr());
        let files = at.map(|address| mapped_at(address).1);
        assert!(files[0] != 0 && files[1] != 0 && files[0] != files[1]);
        let mut places = Vec::new();
        // The first is computed by a thread of the CPU, later ones by the thread that reads them.
        for _ in 0..3 {
            to.slice_mut::<u64>().unwrap().fill(0);
            let task = client.task("tells").input(&from).output(&mut to);
            assert_eq!(task.submit().unwrap().wait().unwrap().place, "cpu");
            let told = to.slice::<u64>().unwrap();
            assert_eq!([told[1], told[3]], files);
            places.push([told[0], told[2]]);
        }
        assert!(places.iter().all(|place| *place == places[0]));
        assert_ne!(places[0], at.map(|address| address as u64));
    });
}

/// Nothing that a test waits for takes longer, however busy the machine is.
const BOUND: Duration = Duration::from_secs(60);

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < end, "waited for: {what}");
        std::thread::yield_now();
    }
}

static BEGAN: AtomicBool = AtomicBool::new(false);
static MAY_END: AtomicBool = AtomicBool::new(false);

fn wait_to_end(_: &mut Arguments<'_, '_>) -> Result<(), String> {
    BEGAN.store(true, Ordering::SeqCst);
    wait_until("the test lets it end", || MAY_END.load(Ordering::SeqCst));
    Ok(())
}

/// Whoever submits and cancels while the CPU is busy would fill its memory otherwise.
#[test]
fn what_was_cancelled_stands_in_no_queue_and_behind_no_other_task() {
    with_kernel(wait_to_end, |client, broker| {
        let from = client.memory(8).unwrap();
        let [mut to, mut other] = [(); 2].map(|()| client.memory(8).unwrap());
        let task = client.task("tells").input(&from).output(&mut to);
        let first = task.submit().unwrap();
        wait_until("it runs", || BEGAN.load(Ordering::SeqCst));
        for _ in 0..100 {
            // What it writes is written by the first one, too, and by none.
            for memory in [&mut to, &mut other] {
                let task = client.task("tells").input(&from).output(memory);
                let task = task.submit().unwrap();
                task.cancel();
                assert!(matches!(task.wait(), Err(Error::Cancelled)));
            }
        }
        let state = broker.shared.lock();
        let followers = state.tasks.values().map(|entry| entry.followers.len());
        let left = (state.tasks.len(), state.cpu.len(), followers.sum::<usize>());
        let wait_us = state.cpu_wait_us;
        drop(state);
        MAY_END.store(true, Ordering::SeqCst);
        assert_eq!(left, (1, 0, 0));
        assert!(wait_us.abs() < 1e-6, "{wait_us}");
        first.wait().unwrap();
    });
}

/// Starts what never says a word.
#[derive(Debug, Default)]
struct Silent(Arc<Mutex<Vec<OwnedFd>>>);

impl Launcher for Silent {
    fn launch(&self, _: &str) -> std::io::Result<Process> {
        let (ours, theirs) = pair()?;
        let held = Arc::clone(&self.0);
        held.lock().unwrap().push(theirs);
        Ok(Process {
            socket: ours,
            end: Box::new(move || held.lock().unwrap().clear()),
        })
    }
}

/// A device that hangs when it is opened would have all their sources in its queue otherwise.
#[test]
fn kernels_of_clients_that_left_are_not_built() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new(directory.path().join("accel.sock"));
    let silent = Silent::default();
    let opened = Arc::clone(&silent.0);
    let device = DeviceInfo {
        memory_bytes: 1 << 30,
        buffer_bytes_max: 1 << 30,
        ..DeviceInfo::of_a_test("silent")
    };
    let kernels = by_name(vec![tells(tell_when)]);
    let broker = start_with(options.clone(), vec![device], Arc::new(silent), kernels).unwrap();
    let register = |name: String| {
        Request::Register(Box::new(Definition {
            name,
            signature: tells(tell_when).signature,
            per_item: vec![1, 1],
            sources: Sources {
                opencl: Some("no matter what".into()),
                ..Sources::default()
            },
            tolerance: Tolerance::Exact,
        }))
    };
    let queued = || broker.shared.lock().devices[0].queue.len();
    for round in 0..3 {
        let socket = crate::client::greet(&options.socket, BOUND).unwrap();
        for number in 0..10 {
            let request = register(format!("kernel_{round}_{number}"));
            send(&socket, &request, &[]).unwrap();
        }
        // The first of all keeps the device busy for as long as it may.
        let busy = usize::from(round == 0);
        wait_until("all are asked for", || queued() + busy == 10);
        drop(socket);
        wait_until("nobody is left who asks", || queued() == 0);
    }
    // It is given up, so that the broker need not wait for it to be.
    opened.lock().unwrap().clear();
    broker.stop();
}

/// Of a clock that all threads and processes share, in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

fn tell_when(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [_, to] = arguments.buffers else {
        return Err("it takes two buffers".to_owned());
    };
    to.slice_mut::<u64>()?[0] = now();
    Ok(())
}

const ROUNDS: usize = 10;
const TASKS: usize = 500;
/// From before a client submits a task until its kernel begins, in microseconds: what is promised of a
/// release build; of one that is not optimized only that it does not become slow unseen.
const PROMISED_US: f64 = if cfg!(debug_assertions) { 150.0 } else { 20.0 };

/// The promise is of a machine that has a CPU for each side. One that does much else has moments like
/// that: of some rounds, the median of the best one is held against it.
#[test]
fn a_small_task_begins_soon() {
    with_kernel(tell_when, |client, _| {
        let from = client.memory(8).unwrap();
        let mut to = client.memory(8).unwrap();
        let (mut begins, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (mut starts, mut answers) = (Vec::new(), Vec::new());
            for _ in 0..TASKS {
                let (submitted, at) = (now(), Instant::now());
                let task = client.task("tells").input(&from).output(&mut to);
                task.submit().unwrap().wait().unwrap();
                answers.push(at.elapsed().as_secs_f64() * 1e6);
                let began = to.slice::<u64>().unwrap()[0];
                starts.push(std::time::Duration::from_nanos(began - submitted).as_secs_f64() * 1e6);
            }
            begins.push(median(starts));
            whole.push(median(answers));
        }
        println!("submit to start, medians of rounds in us: {begins:.1?}");
        println!("submit to answer, medians of rounds in us: {whole:.1?}");
        let best = begins.into_iter().fold(f64::INFINITY, f64::min);
        assert!(
            best < PROMISED_US,
            "{best:.1} us; {PROMISED_US} are promised"
        );
    });
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
