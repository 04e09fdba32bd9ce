//! What devices keep of memory that does not change: copied once, never stale, bounded, given back.

use std::sync::atomic::Ordering;

use forebay_accel::client::{Client, Error, Memory};
use forebay_accel::task::Scalar;
use forebay_accel::wire::{DeviceStatus, Run, Wish};

use super::fake::{Fake, Fault};
use super::{Stage, wait_until};

const COUNT: usize = 4096;
const BYTES: u64 = COUNT as u64 * 4;

/// Adds two on the device, and looks at the sums.
fn add(client: &Client, a: &Memory, b: &Memory) -> Result<Run, Error> {
    let mut sum = client.memory(COUNT * 4)?;
    let count = Scalar::U32(u32::try_from(COUNT).unwrap());
    let task = client.task("add").input(a).input(b).output(&mut sum);
    let there = Wish::Device("made-up:0".to_owned());
    let run = task.scalar(count).place(there).submit()?.wait()?;
    let (a, b) = (a.slice::<f32>()?, b.slice::<f32>()?);
    for ((a, b), sum) in a.iter().zip(b).zip(sum.slice::<f32>()?) {
        assert_eq!(a + b, *sum, "on {}", run.place);
    }
    Ok(run)
}

/// The first run has the device build the kernel, and is the CPU's.
fn await_there(client: &Client) {
    let [a, b] = [(); 2].map(|()| client.memory(COUNT * 4).unwrap());
    wait_until("the device has the kernel", || {
        add(client, &a, &b).unwrap().place == "made-up:0"
    });
}

fn status(client: &Client) -> DeviceStatus {
    client.devices().unwrap().remove(0)
}

fn copied(fake: &Fake) -> u64 {
    fake.copied.swap(0, Ordering::SeqCst)
}

#[test]
fn constant_memory_is_copied_once_and_other_memory_each_time() {
    let fake = Fake::new("made-up:0");
    let stage = Stage::new(|_| {}, std::slice::from_ref(&fake));
    let client = stage.client();
    await_there(&client);
    let weights = client.constant(&vec![0.5_f32; COUNT]).unwrap();
    let mut inputs = client.memory(COUNT * 4).unwrap();
    copied(&fake);
    for round in 0..10_u8 {
        // What its client may write to is never computed from an older copy.
        inputs.slice_mut::<f32>().unwrap().fill(f32::from(round));
        assert_eq!(add(&client, &weights, &inputs).unwrap().place, "made-up:0");
        let expected = if round == 0 { 2 * BYTES } else { BYTES };
        assert_eq!(copied(&fake), expected, "round {round}");
    }
    let status = status(&client);
    assert_eq!((status.kept_bytes, status.spared_bytes), (BYTES, 9 * BYTES));
}

#[test]
fn constant_memory_cannot_be_written_by_anybody() {
    let stage = Stage::new(|_| {}, &[Fake::new("made-up:0")]);
    for client in [
        stage.client(),
        Client::lasting(&stage.path, super::BOUND).unwrap(),
    ] {
        let mut weights = client.constant(&vec![0.5_f32; COUNT]).unwrap();
        let written = weights.slice_mut::<f32>();
        assert!(matches!(written, Err(Error::Memory(_))), "{written:?}");
        let a = client.memory(COUNT * 4).unwrap();
        let task = client.task("add").input(&a).input(&a).output(&mut weights);
        let task = task.scalar(Scalar::U32(u32::try_from(COUNT).unwrap()));
        let submitted = task.submit();
        assert!(matches!(submitted, Err(Error::Memory(_))), "{submitted:?}");
        let held = weights.slice::<f32>().unwrap();
        assert!(held.iter().all(|value| *value == 0.5));
    }
}

#[test]
fn what_a_device_keeps_is_bounded_by_the_quota_of_memory() {
    let fake = Fake::new("made-up:0");
    // Two constants of a task, what it writes, and one more.
    let change = |options: &mut forebay_accel::broker::Options| {
        options.device_bytes_max = 4 * BYTES;
    };
    let stage = Stage::new(change, std::slice::from_ref(&fake));
    let client = stage.client();
    await_there(&client);
    let constants: Vec<Memory> = (0..6_u8)
        .map(|number| client.constant(&vec![f32::from(number); COUNT]).unwrap())
        .collect();
    for round in 0..60 {
        let (a, b) = (round % 6, (round * round + 1) % 6);
        add(&client, &constants[a], &constants[b]).unwrap();
        let held: u64 = {
            let kept = fake.kept.lock().unwrap();
            kept.values().map(|copy| copy.len() as u64).sum()
        };
        assert!(held <= 3 * BYTES, "{held}");
        assert_eq!(status(&client).kept_bytes, held);
    }
    assert!(status(&client).spared_bytes > 0);
}

#[test]
fn what_a_client_gives_back_or_leaves_is_forgotten_by_the_device() {
    let fake = Fake::new("made-up:0");
    let stage = Stage::new(|_| {}, std::slice::from_ref(&fake));
    let watcher = stage.client();
    await_there(&watcher);
    let held = || fake.kept.lock().unwrap().len();
    let one = watcher.constant(&vec![1.0_f32; COUNT]).unwrap();
    let two = watcher.constant(&vec![2.0_f32; COUNT]).unwrap();
    add(&watcher, &one, &two).unwrap();
    assert_eq!(held(), 2);
    drop(one);
    wait_until("the first is forgotten", || held() == 1);
    let other = stage.client();
    let three = other.constant(&vec![3.0_f32; COUNT]).unwrap();
    add(&other, &three, &three).unwrap();
    assert_eq!(held(), 2);
    drop(other);
    wait_until("what was the other client's is forgotten", || held() == 1);
    assert_eq!(status(&watcher).kept_bytes, BYTES);
    // Memory that has the number of a file that is gone is other memory.
    for value in 4..20_u8 {
        let next = watcher.constant(&vec![f32::from(value); COUNT]).unwrap();
        add(&watcher, &next, &two).unwrap();
    }
}

#[test]
fn a_fault_or_a_lack_of_memory_costs_the_copies_and_no_task() {
    let fake = Fake::new("made-up:0");
    let change = |options: &mut forebay_accel::broker::Options| {
        options.quarantine = std::time::Duration::ZERO;
    };
    let stage = Stage::new(change, std::slice::from_ref(&fake));
    let client = stage.client();
    await_there(&client);
    let a = client.constant(&vec![1.0_f32; COUNT]).unwrap();
    let b = client.constant(&vec![2.0_f32; COUNT]).unwrap();
    add(&client, &a, &b).unwrap();
    let next = |fault: Fault| fake.faults.lock().unwrap().push_back(Some(fault));
    // There is none for others beside what is kept: it runs there all the same.
    next(Fault::OutOfMemory);
    let run = add(&client, &a, &b).unwrap();
    assert_eq!((run.place.as_str(), run.retries), ("made-up:0", 0));
    assert_eq!(status(&client).kept_bytes, 0);
    add(&client, &a, &b).unwrap();
    assert_eq!(status(&client).kept_bytes, 2 * BYTES);
    next(Fault::Vanish);
    let run = add(&client, &a, &b).unwrap();
    assert_eq!((run.place.as_str(), run.retries), ("cpu", 1));
    copied(&fake);
    let run = add(&client, &a, &b).unwrap();
    assert_eq!(run.place, "made-up:0");
    assert_eq!(
        (copied(&fake), status(&client).kept_bytes),
        (2 * BYTES, 2 * BYTES)
    );
}
