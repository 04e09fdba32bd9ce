//! Times of built-in kernels on the CPU, beside the library alone, and on every device that is found.
//! `cargo run --release -p forebay-accel --example measure -- [SCALE...]`
//!
//! `cargo xtask bench accel` prints the same and more; this builds in a fraction of the time.

#![expect(clippy::print_stdout, reason = "its output is its result")]

use forebay_accel::backends;
use forebay_accel::kernels::built_in;
use forebay_accel::measure::{Plan, measure};

fn main() -> Result<(), String> {
    let scales = std::env::args().skip(1).map(|word| word.parse());
    let mut scales: Vec<u32> = scales
        .collect::<Result<_, _>>()
        .map_err(|error| format!("an argument is a number of elements: {error}"))?;
    if scales.is_empty() {
        scales = vec![1 << 12, 1 << 16, 1 << 20];
    }
    let found = backends::find();
    let mut devices = Vec::new();
    for info in &found.devices {
        println!("{}: {} ({})", info.id, info.name, info.driver);
        devices.push(backends::open(&info.id)?);
    }
    let plan = Plan {
        scales,
        repetitions: 9,
        seed: 1,
    };
    measure(&built_in(), &mut devices, &plan, |row| {
        let library = row.library_us.map_or(f64::NAN, |us| row.cpu_us / us);
        println!(
            "{:<10}{:>9} cpu {:>10.1} us, {library:>5.2} x {}",
            row.kernel,
            row.scale,
            row.cpu_us,
            row.library.unwrap_or("(no library)")
        );
        for device in &row.devices {
            match (&device.measured, &device.error) {
                (Some(m), _) => println!(
                    "    {:<12} build {:>9.0}, in {:>8.1}, compute {:>10.1}, out {:>8.1} us",
                    device.id, m.build_us, m.transfer_in_us, m.compute_us, m.transfer_out_us
                ),
                (None, Some(error)) => println!("    {:<12} {error}", device.id),
                (None, None) => {}
            }
        }
    })?;
    Ok(())
}
