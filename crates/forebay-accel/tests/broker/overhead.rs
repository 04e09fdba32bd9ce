//! What it costs to have a task run here instead of computing it in place.

use forebay_accel::task::Scalar;

use super::Stage;

const ROUNDS: usize = 20_000;

/// Prints; asserts only what holds on a machine that does much else, too. The promise of 20
/// microseconds is held by `forebay accel bench` on a machine that does nothing else.
#[test]
fn a_small_task_begins_soon() {
    let stage = Stage::new(|_| {}, &[]);
    let client = stage.client();
    let [a, b, mut sum] = [(); 3].map(|()| client.memory(4).unwrap());
    let (mut waited, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = std::time::Instant::now();
        let task = client.task("add").input(&a).input(&b).output(&mut sum);
        let handle = task.scalar(Scalar::U32(1)).submit().unwrap();
        waited.push(handle.wait().unwrap().waited_us);
        whole.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let at = |values: &mut Vec<f64>, part: usize| {
        values.sort_by(f64::total_cmp);
        values[values.len() * part / 100]
    };
    println!(
        "read to start p50 {:.1} us, p99 {:.1} us; submit to answer p50 {:.1} us, p99 {:.1} us",
        at(&mut waited, 50),
        at(&mut waited, 99),
        at(&mut whole, 50),
        at(&mut whole, 99)
    );
    assert!(at(&mut waited, 50) < 1000.0);
}
