//! Modules of a kernel that CRIU needs, and what loads them in the machine.
//!
//! CRIU opens sockets of netfilter's to find out what the kernel can, and of those that diagnose sockets. Distributions have
//! these as modules, which the kernel asks modprobe(8) for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::Archive;
use crate::error::HostError;

/// Where kernels have them, below the root.
pub(super) const DIRECTORY: &str = "lib/modules";
/// What the kernel runs for them, and where that is.
const PROGRAM: &str = "/sbin/modprobe";
/// Where the machine has them.
const THERE: &str = "/lib/modules";
/// What is wanted, where the kernel has it.
const WANTED: [&str; 12] = [
    "nfnetlink",
    "nf_tables",
    "veth",
    "tun",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "unix_diag",
    "af_packet_diag",
    "netlink_diag",
    "binfmt_misc",
];

/// Packs those of a release, where they are below this root; whether they are.
pub(super) fn take(archive: &mut Archive, root: &Path, release: &str) -> Result<bool, HostError> {
    let directory = root.join(DIRECTORY).join(release);
    if release.is_empty()
        || !directory.join("modules.dep").is_file()
        || !Path::new(PROGRAM).is_file()
    {
        return Ok(false);
    }
    archive.take(Path::new(PROGRAM))?;
    for library in libraries(Path::new(PROGRAM))? {
        archive.take(&library)?;
        let real = fs::canonicalize(&library).map_err(|e| HostError::file("find", &library, e))?;
        archive.library(&real)?;
    }
    let there = Path::new(THERE).join(release);
    let names = fs::read_dir(&directory).map_err(|e| HostError::file("read", &directory, e))?;
    for path in names.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default();
        // How modules depend on each other, and what they are asked for by.
        if path.is_file() && name.to_string_lossy().starts_with("modules.") {
            archive.copy_as(&path, &there.join(name))?;
        }
    }
    for name in WANTED {
        for file in files(root, release, name)? {
            let below = file.strip_prefix(&directory).unwrap_or(&file);
            archive.copy_as(&file, &there.join(below))?;
        }
    }
    Ok(true)
}

/// The files of a module and of those that it needs; none where it is no module.
fn files(root: &Path, release: &str, name: &str) -> Result<Vec<PathBuf>, HostError> {
    let mut command = Command::new(PROGRAM);
    command.arg("--dirname").arg(root).args([
        "--set-version",
        release,
        "--show-depends",
        "--ignore-install",
        name,
    ]);
    let said = said(&mut command)?;
    let lines = said.lines().filter_map(|line| line.strip_prefix("insmod "));
    let files = lines.filter_map(|line| line.split_whitespace().next());
    Ok(files.map(PathBuf::from).collect())
}

/// What a program is linked with (ld.so(8)): paths among the words of lines as `libz.so.1 => /lib/libz.so.1 (0x7f..)`.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, HostError> {
    let said = said(Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1"))?;
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .collect())
}

fn said(command: &mut Command) -> Result<String, HostError> {
    let output = command
        .output()
        .map_err(|error| HostError::file("run", Path::new(PROGRAM), error))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
