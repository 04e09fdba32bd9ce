//! `cargo xtask test --fpga-emulator`: the tests of OpenCL on Intel's emulator of FPGAs.
//!
//! It shows a device of type ACCELERATOR, which takes programs that were compiled before. It comes from PyPI,
//! of the versions and contents that `tests/fpga/requirements.txt` pins, with 300 MB to fetch and 1 GB
//! unpacked, under Intel's End User License Agreement for Developer Tools: it is fetched only by this command,
//! into target/, and never shipped. No Python is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, setup, workspace};

/// What it is: pinned with all that it needs.
const PINS: &str = "tests/fpga/requirements.txt";
const DRIVER: &str = "lib/libintelocl_emu.so";
/// Tells the tests where drivers are, and that the emulator is to be among them.
const TOLD: &str = "FOREBAY_TEST_FPGA_EMULATOR";
/// The tests that concern devices of OpenCL.
const TESTS: &str = "(binary(devices) and test(/opencl|binaries::/)) or \
                     (package(forebay) and binary(accel) and test(/every_built_in|constant_memory|compile|crash|python/))";

/// What runs the tests, once the emulator is there.
pub(crate) fn tests() -> Result<Command, String> {
    if !setup::has_cargo_command("nextest") {
        return Err(
            "test with the emulator: cargo-nextest is needed to choose tests; install it"
                .to_owned(),
        );
    }
    let place = emulator()?;
    let drivers = place.join("vendors");
    let mut command = process::cargo_whole(&["nextest", "run", "--test=devices", "--test=accel"]);
    command
        .args(["--no-fail-fast", "--success-output=final", "-E", TESTS])
        .env("OCL_ICD_VENDORS", &drivers)
        .env(TOLD, &drivers);
    Ok(command)
}

/// Where it is, once it is there.
fn emulator() -> Result<PathBuf, String> {
    let pins = process::repository().join(PINS);
    let text =
        fs::read_to_string(&pins).map_err(|error| format!("read {}: {error}", pins.display()))?;
    let version =
        version(&text).ok_or_else(|| format!("{} pins no {PACKAGE}VERSION", pins.display()))?;
    let place = workspace::read()?
        .target_directory
        .join(format!("fpga-emulator-{version}"));
    let drivers = place.join("vendors");
    if drivers.exists() {
        return Ok(place);
    }
    setup::ensure(setup::Group::Docs)?;
    println!(
        "fpga: fetching Intel's emulator {version} into {}",
        place.display()
    );
    let mut pip = Command::new("pip3");
    // Below a folder named by --target no library of theirs is installed.
    pip.args([
        "install",
        "--no-deps",
        "--disable-pip-version-check",
        "--ignore-installed",
    ])
    .args(["--root-user-action=ignore", "--require-hashes", "--prefix"])
    .arg(&place)
    .arg("--requirement")
    .arg(&pins);
    process::succeed(&mut pip)?;
    name_driver(&place, &drivers)?;
    Ok(place)
}

/// Names the driver where loaders look for some. What is not whole is not named, and fetched again.
fn name_driver(place: &Path, drivers: &Path) -> Result<(), String> {
    let driver = place.join(DRIVER);
    if !driver.exists() {
        return Err(format!(
            "look for {}: it is not in the packages that {PINS} pins",
            driver.display()
        ));
    }
    let failed = |error| format!("name the emulator in {}: {error}", drivers.display());
    let made = place.join("vendors.new");
    fs::create_dir_all(&made).map_err(failed)?;
    fs::write(
        made.join("intel-fpga-emulator.icd"),
        format!("{}\n", driver.display()),
    )
    .map_err(failed)?;
    fs::rename(&made, drivers).map_err(failed)
}

const PACKAGE: &str = "intel-opencl-fpga-emu-rt==";

fn version(pins: &str) -> Option<&str> {
    let pin = pins.lines().find_map(|line| line.strip_prefix(PACKAGE))?;
    pin.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_name_a_version_and_a_hash_for_each_package() {
        let pins = fs::read_to_string(process::repository().join(PINS)).unwrap();
        assert!(version(&pins).is_some());
        let packages = pins.lines().filter(|line| line.contains("=="));
        assert!(packages.clone().count() > 1);
        for package in packages {
            assert!(package.contains("--hash=sha256:"), "{package}");
        }
    }
}
