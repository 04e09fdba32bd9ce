//! Clients of one broker that know nothing of each other, and those that are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use forebay_accel::client::Client;
use forebay_accel::kernel::Arguments;
use forebay_accel::task::Scalar;
use forebay_accel::wire::Wish;

use super::clients::{DOUBLE, double, doubling, register};
use super::fake::{Fake, Fault};
use super::{Stage, wait_until};

const COUNT: usize = 1000;

fn count() -> Scalar {
    Scalar::U32(u32::try_from(COUNT).unwrap())
}

fn there() -> Wish {
    Wish::Device("made-up:0".to_owned())
}

#[test]
fn kernels_of_two_clients_with_one_name_are_two_kernels() {
    let fake = Fake::new("made-up:0");
    let stage = Stage::new(
        |options| options.verify_one_in = u64::MAX,
        std::slice::from_ref(&fake),
    );
    let [twice, thrice] = [(); 2].map(|()| stage.client());
    register(&twice, DOUBLE, &Arc::new(AtomicU32::new(0)));
    let compute = |arguments: &mut Arguments<'_, '_>| {
        for number in arguments.buffers[0].slice_mut::<u32>()? {
            *number *= 3;
        }
        Ok(())
    };
    let builds = thrice.register(doubling("thrice"), Box::new(compute));
    assert_eq!(builds.unwrap()[0].error, None);
    let run = |client: &Client| {
        let mut numbers = client.memory(COUNT * 4).unwrap();
        numbers.slice_mut::<u32>().unwrap().fill(1);
        let task = double(client, &mut numbers, count()).place(there());
        let run = task.submit().unwrap().wait().unwrap();
        assert_eq!(run.place, "made-up:0");
        numbers.slice::<u32>().unwrap()[COUNT - 1]
    };
    for _ in 0..3 {
        assert_eq!((run(&twice), run(&thrice)), (2, 3));
    }
}

#[test]
fn a_task_whose_device_fails_after_its_client_died_is_forgotten() {
    let fake = Fake::new("made-up:0");
    let change = |options: &mut forebay_accel::broker::Options| {
        options.run_max = Duration::from_millis(300);
    };
    let stage = Stage::new(change, std::slice::from_ref(&fake));
    let watcher = stage.client();
    let client = stage.client();
    register(&client, DOUBLE, &Arc::new(AtomicU32::new(0)));
    fake.faults.lock().unwrap().push_back(Some(Fault::Hang));
    let mut numbers = client.memory(COUNT * 4).unwrap();
    let task = double(&client, &mut numbers, count()).place(there());
    let handle = task.submit().unwrap();
    wait_until("it runs on the device", || {
        fake.runs.load(Ordering::SeqCst) > 0
    });
    drop(client);
    assert!(handle.wait().is_err());
    wait_until("nothing is left of it", || {
        let stats = watcher.stats().unwrap();
        (stats.clients, stats.queued) == (1, 0)
    });
}

/// What is told of devices has room in a message: of kernels that are there, and of what was said of them.
#[test]
fn what_compilers_say_is_cut_and_kernels_of_clients_that_are_gone_are_forgotten() {
    let fake = Fake::new("made-up:0");
    let stage = Stage::new(|_| {}, std::slice::from_ref(&fake));
    let watcher = stage.client();
    let known = || watcher.devices().unwrap()[0].kernels.len();
    for round in 0..3 {
        let client = stage.client();
        for number in 0..16 {
            let mut definition = doubling("#error at length");
            definition.name = format!("broken_{round}_{number}");
            let builds = client.register(definition, Box::new(|_| Ok(()))).unwrap();
            let error = builds[0].error.clone().unwrap().to_string();
            assert!(error.ends_with("(cut)") && error.len() < 4096, "{error}");
        }
        assert_eq!(known(), 16);
        drop(client);
        wait_until("its kernels are forgotten", || known() == 0);
    }
}
