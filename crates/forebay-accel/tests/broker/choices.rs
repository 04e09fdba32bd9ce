//! Where a broker sends tasks, with devices of known speeds, against the best place in hindsight.

use std::time::Duration;

use forebay_accel::client::Client;
use forebay_accel::kernel::Arguments;
use forebay_accel::task::{Grid, Scalar};

use super::clients::doubling;
use super::fake::Fake;
use super::{Stage, wait_until};

const SMALL: usize = 16 << 10;
const LARGE: usize = 256 << 10;
/// Calls of each size after which a place is to be known, and those that are then looked at.
const LEARNS: u32 = 100;
const LOOKED_AT: u32 = 200;

/// The CPU is best for small tasks, the fast device for large ones.
fn cpu_us(bytes: usize) -> u64 {
    if bytes == SMALL { 1000 } else { 8000 }
}

fn fast_us(bytes: usize) -> u64 {
    if bytes == SMALL { 1500 } else { 2000 }
}

fn slow_us(bytes: usize) -> u64 {
    if bytes == SMALL { 3000 } else { 6000 }
}

fn truth(place: &str, bytes: usize) -> u64 {
    match place {
        "cpu" => cpu_us(bytes),
        "made-up:fast" => fast_us(bytes),
        "made-up:slow" => slow_us(bytes),
        other => panic!("{other}"),
    }
}

fn register(client: &Client) {
    let compute = |arguments: &mut Arguments<'_, '_>| {
        let numbers = arguments.buffers[0].slice_mut::<u32>()?;
        // As long as this takes on a CPU, however fast that is.
        std::thread::sleep(Duration::from_micros(cpu_us(numbers.len() * 4)));
        for number in numbers {
            *number = number.wrapping_mul(2);
        }
        Ok(())
    };
    client
        .register(doubling("good"), Box::new(compute))
        .unwrap();
}

/// After 100 calls of each size, in a mixed trace, no more than a tenth is lost to the best place for each.
#[test]
fn tasks_go_to_the_best_of_places_within_a_hundred_calls() {
    let fast = Fake::of_speed("made-up:fast", fast_us);
    let slow = Fake::of_speed("made-up:slow", slow_us);
    let stage = Stage::new(|options| options.verify_one_in = u64::MAX, &[fast, slow]);
    let client = stage.client();
    register(&client);
    wait_until("both have the kernel", || {
        let devices = client.devices().unwrap();
        devices.iter().all(|device| device.ready() == 1)
    });
    let mut memories = [SMALL, LARGE].map(|bytes| client.memory(bytes).unwrap());
    let mut spent = [[0, 0]; 2];
    let mut random = fastrand::Rng::with_seed(3);
    let mut calls = [0; 2];
    while calls.iter().any(|calls| *calls < LEARNS + LOOKED_AT) {
        let size = random.usize(0..2);
        let bytes = memories[size].length();
        let items = u32::try_from(bytes / 4).unwrap();
        let task = client.task("doubling").output(&mut memories[size]);
        let task = task.grid(Grid::line(items)).scalar(Scalar::U32(items));
        let run = task.submit().unwrap().wait().unwrap();
        calls[size] += 1;
        let places = ["cpu", "made-up:fast", "made-up:slow"];
        let best = places.map(|place| truth(place, bytes)).into_iter().min();
        let part = &mut spent[usize::from(calls[size] > LEARNS)];
        part[0] += truth(&run.place, bytes);
        part[1] += best.unwrap();
    }
    #[expect(clippy::cast_precision_loss, reason = "some seconds")]
    let regret = spent.map(|[spent, best]| spent as f64 / best as f64 - 1.0);
    let stats = client.stats().unwrap();
    let explored = stats.explored;
    println!(
        "regret of the first {LEARNS} calls of each size {:.1} %, after them {:.1} %; {explored} tries of {}",
        100.0 * regret[0],
        100.0 * regret[1],
        calls[0] + calls[1]
    );
    assert!(regret[1] < 0.10, "{regret:?}");
    // What the broker says of itself is what its choices made of it.
    let told = stats.regret;
    println!("the broker's own figure: {told:?}");
    assert_eq!(told.calls, u64::from(calls[0] + calls[1]));
    assert!(told.part.unwrap() < 0.3, "{told:?}");
    assert!(explored * 20 <= u64::from(calls[0] + calls[1]));
}
