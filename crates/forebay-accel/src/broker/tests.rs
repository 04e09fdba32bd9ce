//! What a kernel on the CPU sees of its task: where its buffers are, and when it begins. The kernels tell.

use std::sync::Arc;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use super::{Options, by_name, start_with};
use crate::client::Client;
use crate::kernel::{
    Access, Arguments, Check, Cpu, CpuFunction, Element, Kernel, Launches, Parameter, Signature,
    Sources, Tolerance,
};
use crate::process::OwnProgram;

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
fn with_kernel(compute: CpuFunction, test: impl FnOnce(&Client)) {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path().join("accel.sock"));
    options.cpu_threads = 1;
    let kernels = by_name(vec![tells(compute)]);
    let launcher = Arc::new(OwnProgram);
    let broker = start_with(options.clone(), Vec::new(), launcher, kernels).unwrap();
    let client = Client::connect(&options.socket).unwrap();
    test(&client);
    drop(client);
    broker.stop();
}

/// The number of the file that is mapped at an address; 0 of memory that is no file.
fn file_at(address: usize) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let number = maps.lines().find_map(|line| {
        // start-end rights offset device number path
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|word| usize::from_str_radix(word, 16).unwrap());
        let inside = (start..end).contains(&address);
        inside.then(|| words.nth(3).unwrap().parse().unwrap())
    });
    number.unwrap()
}

fn tell_where(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [from, to] = arguments.buffers else {
        return Err("it takes two buffers".to_owned());
    };
    let from = from.bytes().as_ptr().addr();
    let to = to.slice_mut::<u64>()?;
    let own = to.as_ptr().addr();
    let [from, file_of_from, own, file_of_own] =
        [from as u64, file_at(from), own as u64, file_at(own)];
    to.copy_from_slice(&[from, file_of_from, own, file_of_own]);
    Ok(())
}

/// The kernel reads and writes the very memory that the client made: no byte is moved between them. It
/// is mapped there once more, which is all that is done for it.
#[test]
fn a_kernel_on_the_cpu_works_in_the_memory_of_its_client() {
    with_kernel(tell_where, |client| {
        let from = client.memory(8).unwrap();
        let mut to = client.memory(4 * 8).unwrap();
        let at = [&from, &to].map(|memory| memory.slice::<u8>().unwrap().as_ptr().addr());
        let files = at.map(file_at);
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
    with_kernel(tell_when, |client| {
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
