//! What clients see: results, order, cancellation, deadlines, back-pressure; and what is left of
//! one that dies.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use forebay_accel::client::{Client, Error, Memory, Task};
use forebay_accel::kernel::{
    Access, Element, Parameter, ScalarParameter, Signature, Sources, Tolerance,
};
use forebay_accel::task::{Grid, Scalar, ScalarType};
use forebay_accel::wire::{Definition, There, Wish};

use super::fake::Fake;
use super::{BOUND, Stage, wait_until};

/// Each number of a buffer twice, as an app's own kernel.
pub(crate) fn doubling(source: &'static str) -> Definition {
    Definition {
        name: "doubling".to_owned(),
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
        sources: Sources {
            opencl: Some(Cow::Borrowed(source)),
            ..Sources::default()
        },
        tolerance: Tolerance::Exact,
    }
}

pub(crate) fn register(client: &Client, source: &'static str, computed: &Arc<AtomicU32>) {
    let computed = Arc::clone(computed);
    let compute = Box::new(
        move |arguments: &mut forebay_accel::kernel::Arguments<'_, '_>| {
            for number in arguments.buffers[0].slice_mut::<u32>()? {
                *number = number.wrapping_mul(2);
            }
            computed.fetch_add(1, Ordering::SeqCst);
            Ok(())
        },
    );
    client.register(doubling(source), compute).unwrap();
}

/// The source of that kernel, as the device of a test knows it.
pub(crate) const DOUBLE: &str = "good";

/// A task that doubles all numbers of a memory.
pub(crate) fn double<'a>(client: &'a Client, memory: &'a mut Memory, count: Scalar) -> Task<'a> {
    let Scalar::U32(items) = count else {
        panic!("{count:?}");
    };
    let task = client.task("doubling").output(memory);
    task.grid(Grid::line(items)).scalar(count)
}

#[test]
fn a_task_of_a_built_in_kernel_is_answered() {
    let stage = Stage::new(|_| {}, &[]);
    let client = stage.client();
    let mut a = client.memory(4096).unwrap();
    let mut b = client.memory(8192).unwrap();
    let mut sum = client.memory(4096).unwrap();
    a.slice_mut::<f32>().unwrap().fill(1.5);
    b.slice_mut::<f32>().unwrap()[1024..].fill(2.0);
    for _ in 0..10 {
        sum.slice_mut::<f32>().unwrap().fill(0.0);
        let task = client.task("add").input(&a).input_part(&b, 4096..8192);
        let handle = task.output(&mut sum).scalar(Scalar::U32(1024)).submit();
        assert_eq!(handle.unwrap().wait().unwrap().place, "cpu");
        assert!(sum.slice::<f32>().unwrap().iter().all(|sum| *sum == 3.5));
    }
}

#[test]
fn an_app_s_own_kernel_runs_in_the_client_and_on_devices() {
    let fake = Fake::new("made-up:0");
    let stage = Stage::new(
        |options| options.verify_one_in = 1,
        std::slice::from_ref(&fake),
    );
    let client = stage.client();
    let computed = Arc::new(AtomicU32::new(0));
    register(&client, "good", &computed);
    let mut numbers = client.memory(4000).unwrap();
    numbers.slice_mut::<u32>().unwrap().fill(1);
    let mut run = |wish: Wish| {
        let task = client
            .task("doubling")
            .output(&mut numbers)
            .grid(Grid::line(1000));
        let handle = task.scalar(Scalar::U32(1000)).place(wish).submit().unwrap();
        let run = handle.wait().unwrap();
        (run.place, numbers.slice::<u32>().unwrap()[999])
    };
    assert_eq!(run(Wish::Cpu), ("cpu".to_owned(), 2));
    assert_eq!(computed.load(Ordering::SeqCst), 1);
    // There it is computed once more by the client, which is asked whether it is right.
    let there = Wish::Device("made-up:0".to_owned());
    assert_eq!(run(there), ("made-up:0".to_owned(), 4));
    assert_eq!(computed.load(Ordering::SeqCst), 2);
    fake.faults
        .lock()
        .unwrap()
        .push_back(Some(super::fake::Fault::Wrong));
    let there = Wish::Device("made-up:0".to_owned());
    assert_eq!(run(there), ("cpu".to_owned(), 8));
    let device = &client.devices().unwrap()[0];
    assert_eq!((&device.quarantine, device.ready()), (&None, 0));
    let There::Quarantined(why) = &device.kernels[0].state else {
        panic!("{:?}", device.kernels);
    };
    assert!(why.contains("computed doubling wrongly"), "{why}");
}

#[test]
fn what_does_not_compile_is_told_and_runs_on_the_cpu() {
    let stage = Stage::new(|_| {}, &[Fake::new("made-up:0")]);
    let client = stage.client();
    let compute = Box::new(|_: &mut forebay_accel::kernel::Arguments<'_, '_>| Ok(()));
    let builds = client.register(doubling("#error no"), compute).unwrap();
    let error = builds[0].error.as_ref().unwrap().to_string();
    assert_eq!(error, "it does not compile: 1:1: #error");
    let mut numbers = client.memory(4000).unwrap();
    let task = client
        .task("doubling")
        .output(&mut numbers)
        .grid(Grid::line(1000));
    let task = task.place(Wish::Device("made-up:0".to_owned()));
    let handle = task.scalar(Scalar::U32(1000)).submit().unwrap();
    assert_eq!(handle.wait().unwrap().place, "cpu");
}

/// A client whose kernel waits until it is let go.
struct Held {
    client: Client,
    go: Arc<AtomicBool>,
    began: Arc<AtomicU32>,
}

impl Held {
    fn new(stage: &Stage) -> Self {
        let client = stage.client();
        let (go, began) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (gate, count) = (Arc::clone(&go), Arc::clone(&began));
        let compute = move |arguments: &mut forebay_accel::kernel::Arguments<'_, '_>| {
            count.fetch_add(1, Ordering::SeqCst);
            wait_until("the test lets a kernel go", || gate.load(Ordering::SeqCst));
            for number in arguments.buffers[0].slice_mut::<u32>()? {
                *number = *number * 2 + 1;
            }
            Ok(())
        };
        client
            .register(doubling("good"), Box::new(compute))
            .unwrap();
        Self { client, go, began }
    }

    fn task<'a>(
        &'a self,
        memory: &'a mut forebay_accel::client::Memory,
    ) -> forebay_accel::client::Task<'a> {
        let task = self.client.task("doubling").output(memory);
        task.grid(Grid::line(1)).scalar(Scalar::U32(1))
    }
}

#[test]
fn tasks_on_the_same_memory_run_in_their_order_and_late_and_cancelled_ones_do_not_run() {
    let stage = Stage::new(|_| {}, &[]);
    let held = Held::new(&stage);
    let mut memory = held.client.memory(4).unwrap();
    let first = held.task(&mut memory).submit().unwrap();
    let second = held.task(&mut memory).submit().unwrap();
    let late = held
        .task(&mut memory)
        .deadline(Duration::from_micros(1))
        .submit()
        .unwrap();
    let cancelled = held.task(&mut memory).submit().unwrap();
    cancelled.cancel();
    assert!(matches!(cancelled.wait(), Err(Error::Cancelled)));
    assert!(matches!(memory.slice::<u32>(), Err(Error::Memory(_))));
    held.go.store(true, Ordering::SeqCst);
    first.wait().unwrap();
    second.wait().unwrap();
    assert!(matches!(late.wait(), Err(Error::Late)));
    assert_eq!(memory.slice::<u32>().unwrap(), [3]);
    assert_eq!(held.began.load(Ordering::SeqCst), 2);
}

#[test]
fn a_client_that_submits_too_much_is_told_so() {
    let stage = Stage::new(|options| options.tasks_max = 4, &[]);
    let held = Held::new(&stage);
    let mut memory = held.client.memory(4).unwrap();
    let mut handles = Vec::new();
    for _ in 0..6 {
        handles.push(held.task(&mut memory).submit().unwrap());
    }
    let busy: Vec<_> = handles.drain(4..).collect();
    for handle in busy {
        assert!(matches!(handle.wait(), Err(Error::Busy)));
    }
    held.go.store(true, Ordering::SeqCst);
    for handle in handles {
        handle.wait().unwrap();
    }
    assert_eq!(held.client.stats().unwrap().busy, 2);
}

/// Descriptors and mappings of this process: those of shared memory.
fn held_here() -> (usize, usize) {
    let memfd = |path: std::path::PathBuf| {
        let target = std::fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().contains("memfd:forebay-accel")
    };
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let files = files
        .filter(|file| memfd(file.as_ref().unwrap().path()))
        .count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (
        files,
        maps.lines()
            .filter(|line| line.contains("memfd:forebay-accel"))
            .count(),
    )
}

/// Runs alone in its process, as nextest has it: it counts what the process holds.
#[test]
fn a_client_that_dies_leaves_nothing() {
    let fake = Fake::new("made-up:0");
    let stage = Stage::new(
        |options| options.run_max = BOUND,
        std::slice::from_ref(&fake),
    );
    let watcher = stage.client();
    for round in 0..20 {
        let held = Held::new(&stage);
        let mut memories: Vec<_> = (0..8)
            .map(|_| held.client.memory(1 << 16).unwrap())
            .collect();
        let mut handles = Vec::new();
        for memory in &mut memories {
            handles.push(held.task(memory).submit().unwrap());
            handles.push(held.task(memory).submit().unwrap());
        }
        if round % 2 == 0 {
            wait_until("a kernel runs", || held.began.load(Ordering::SeqCst) > 0);
        }
        let go = Arc::clone(&held.go);
        drop(held.client);
        for handle in handles {
            assert!(handle.wait().is_err());
        }
        go.store(true, Ordering::SeqCst);
    }
    wait_until("the broker forgot them", || {
        let stats = watcher.stats().unwrap();
        (
            stats.clients,
            stats.regions,
            stats.region_bytes,
            stats.queued,
        ) == (1, 0, 0, 0)
    });
    wait_until("nothing is held", || held_here() == (0, 0));
}
