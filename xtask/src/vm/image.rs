//! The guest image: built once into a cache directory by `tests/vm/image/build.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, setup};

const CACHE: &str = "/var/cache/forebay-vm";

/// The directory of a current image, building it where there is none.
pub(super) fn ensure() -> Result<PathBuf, String> {
    let cache =
        std::env::var_os("FOREBAY_VM_CACHE").map_or_else(|| PathBuf::from(CACHE), PathBuf::from);
    install_qemu()?;
    setup::ensure(setup::Group::Vm)?;
    let recipe = recipe()?;
    let fail = |error| format!("make the image in {}: {error}", cache.display());
    fs::create_dir_all(&cache).map_err(fail)?;
    // Whoever comes second waits and finds the image there. Dropped with the file.
    let lock = fs::File::create(cache.join("lock")).map_err(fail)?;
    lock.lock().map_err(fail)?;
    let stamp = cache.join("recipe");
    if fs::read(&stamp).is_ok_and(|built| built == recipe) {
        return Ok(cache);
    }
    println!(
        "vm: building the guest image in {} (once, 1 to 3 minutes)",
        cache.display()
    );
    process::succeed(Command::new(directory().join("build.sh")).arg(&cache))?;
    fs::write(&stamp, recipe).map_err(fail)?;
    Ok(cache)
}

/// Debian 12 needs QEMU from its backports, which plain `apt-get install` does not take.
fn install_qemu() -> Result<(), String> {
    let version = fs::read_to_string("/etc/debian_version").unwrap_or_default();
    let there = process::find_program("qemu-system-x86_64").is_some();
    if there || !version.starts_with("12") || !setup::is_root() {
        return Ok(());
    }
    println!("setup: installing qemu-system-x86 and qemu-utils from bookworm-backports");
    process::succeed(&mut Command::new(directory().join("install-qemu.sh")))
}

fn directory() -> PathBuf {
    super::scenario::directory().join("image")
}

/// Everything that decides how the image comes out; it is stale when this differs.
fn recipe() -> Result<Vec<u8>, String> {
    let fail = |path: &Path, error| format!("read {}: {error}", path.display());
    let directory = directory();
    let entries = fs::read_dir(&directory).map_err(|error| fail(&directory, error))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let mut text = Vec::new();
    for path in paths {
        text.extend(fs::read(&path).map_err(|error| fail(&path, error))?);
    }
    Ok(text)
}
