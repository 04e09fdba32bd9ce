//! Devices that fail: every task is answered once, and rightly.

use std::collections::VecDeque;
use std::time::Duration;

use forebay_accel::task::Scalar;
use forebay_accel::wire::Wish;

use super::Stage;
use super::fake::{Fake, Fault};

const FAULTS: usize = 10_000;
const ELEMENTS: usize = 256;
const AT_ONCE: usize = 8;

/// So long a run is a hang here. One that is no hang is taken for one on a machine that is very
/// busy, which harms nothing: its task is answered by the CPU.
const HANG: Duration = Duration::from_millis(4);

#[test]
fn quotas_send_tasks_to_the_cpu() {
    let fakes = [Fake::new("made-up:0")];
    let id = fakes[0].info.id.clone();
    let change = |options: &mut forebay_accel::broker::Options| {
        options.device_part = 0.5;
        options.device_bytes_max = 3 * 4096;
    };
    let stage = Stage::new(change, &fakes);
    let client = stage.client();
    let run = |bytes: usize| {
        let [a, b, mut sum] = [(); 3].map(|()| client.memory(bytes).unwrap());
        let task = client.task("add").input(&a).input(&b).output(&mut sum);
        let count = Scalar::U32(u32::try_from(bytes / 4).unwrap());
        let wish = Wish::Device(id.clone());
        task.scalar(count)
            .place(wish)
            .submit()
            .unwrap()
            .wait()
            .unwrap()
            .place
    };
    super::wait_until("the device has built it", || run(4096) == id);
    assert_eq!(run(4100), "cpu", "more memory than it may take");
    assert_eq!(client.devices().unwrap()[0].part, 0.5);
    // Within its quota; nobody raises that.
    client.set_limit(&id, 1.0).unwrap();
    assert_eq!(client.devices().unwrap()[0].part, 0.5);
    client.set_limit(&id, 1e-9).unwrap();
    super::wait_until("its time is used up", || run(4096) == "cpu");
    client.set_limit(&id, 0.5).unwrap();
    super::wait_until("it has time again", || run(4096) == id);
    for part in [0.0, -1.0, 1.1] {
        assert!(client.set_limit(&id, part).is_err(), "{part}");
    }
    assert!(client.set_limit("another", 0.5).is_err());
}

#[test]
fn ten_thousand_faults_lose_no_task_and_falsify_none() {
    let fakes = [Fake::new("made-up:0"), Fake::new("made-up:1")];
    let mut random = fastrand::Rng::with_seed(7);
    for fake in &fakes {
        let faults: VecDeque<_> = (0..FAULTS / fakes.len())
            .flat_map(|_| {
                let fault = match random.u32(0..20) {
                    0..7 => Fault::Wrong,
                    7..13 => Fault::Vanish,
                    13..19 => Fault::OutOfMemory,
                    _ => Fault::Hang,
                };
                let good = random.usize(0..2);
                std::iter::once(Some(fault)).chain(std::iter::repeat_n(None, good))
            })
            .collect();
        *fake.faults.lock().unwrap() = faults;
    }
    let change = |options: &mut forebay_accel::broker::Options| {
        options.verify_one_in = 1;
        options.run_max = HANG;
        options.quarantine = Duration::ZERO;
    };
    let stage = Stage::new(change, &fakes);
    let client = stage.client();
    let bytes = ELEMENTS * 4;
    let mut memories: Vec<_> = (0..AT_ONCE)
        .map(|_| [(); 3].map(|()| client.memory(bytes).unwrap()))
        .collect();
    let count = Scalar::U32(u32::try_from(ELEMENTS).unwrap());
    let (mut tasks, mut rerun, mut there) = (0_u32, 0_u32, 0_u32);
    let left = || {
        fakes
            .iter()
            .map(|fake| fake.faults.lock().unwrap().len())
            .sum::<usize>()
    };
    while left() > 0 {
        let mut handles = Vec::new();
        for [a, b, sum] in &mut memories {
            tasks += 1;
            a.slice_mut::<u32>().unwrap().fill((tasks as f32).to_bits());
            b.slice_mut::<u32>().unwrap().fill(0.5_f32.to_bits());
            sum.slice_mut::<u8>().unwrap().fill(0xff);
            let wish = Wish::Device(fakes[tasks as usize % 2].info.id.clone());
            let task = client.task("add").input(a).input(b).output(sum);
            handles.push((tasks, task.scalar(count).place(wish).submit().unwrap()));
        }
        for ((number, handle), [_, _, sum]) in handles.into_iter().zip(&memories) {
            let run = handle.wait().unwrap();
            rerun += run.retries;
            there += u32::from(run.place != "cpu");
            let sums = sum.slice::<f32>().unwrap();
            assert!(
                sums.iter().all(|sum| *sum == number as f32 + 0.5),
                "task {number}"
            );
        }
    }
    let stats = client.stats().unwrap();
    println!("{tasks} tasks, {there} of them on devices, {rerun} runs done again by the CPU");
    assert_eq!(stats.on_cpu + stats.on_devices, u64::from(tasks));
    assert_eq!(stats.on_devices, u64::from(there));
    assert_eq!((stats.failed, stats.queued), (0, 0));
    assert!(rerun as usize >= FAULTS, "{rerun}");
    assert!(there > 0);
}
