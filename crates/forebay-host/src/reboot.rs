//! Having the host begin anew: with its newest kernel by kexec(8) where that may be done, else through its firmware.
//!
//! Whoever runs the host's services ends them in order first: where that is systemd it is asked, which starts a
//! kernel that is loaded by itself (`systemctl kexec`, systemctl(1)).

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::HostError;

/// Where distributions put kernels, and how they name them and what they begin with.
const BOOT: &str = "/boot";
const KERNEL: &str = "vmlinuz-";
const INITRDS: [(&str, &str); 3] = [("initrd.img-", ""), ("initramfs-", ".img"), ("initrd-", "")];

/// A kernel that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its version, as its file is named.
    pub version: String,
    /// The kernel.
    pub image: PathBuf,
    /// What it begins with, if there is something.
    pub initrd: Option<PathBuf>,
}

/// How the host begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// This kernel is started by the one that runs.
    Kexec(Kernel),
    /// Through the firmware, and why.
    Firmware(String),
}

/// How this host can begin anew.
///
/// # Errors
/// When nobody here can have it do so.
pub fn way() -> Result<Way, HostError> {
    ender("reboot")?;
    Ok(kexec().map_or_else(Way::Firmware, Way::Kexec))
}

/// The kernel that kexec(8) would start, or why it would start none.
fn kexec() -> Result<Kernel, String> {
    program("kexec").ok_or("there is no kexec(8): install kexec-tools")?;
    match fs::read_to_string("/proc/sys/kernel/kexec_load_disabled") {
        Ok(text) if text.trim() == "0" => {}
        Ok(_) => return Err("the kernel takes no other one (kexec_load_disabled)".to_owned()),
        Err(_) => return Err("the kernel was built without kexec".to_owned()),
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return Err("the kernel is locked down".to_owned());
    }
    newest(Path::new(BOOT)).ok_or_else(|| format!("there is no {BOOT}/{KERNEL}VERSION"))
}

/// Has the host begin anew. It goes on running for a while, as whoever ends its services takes.
///
/// # Errors
/// When nobody could be asked to; a kernel that cannot be loaded is told in `Ok`, and the host goes through its
/// firmware.
pub fn begin(way: &Way) -> Result<Option<String>, HostError> {
    let trouble = match way {
        Way::Firmware(_) => None,
        Way::Kexec(kernel) => match load(kernel) {
            Ok(()) => {
                run(&mut ender("kexec")?)?;
                return Ok(None);
            }
            Err(error) => Some(error.explain()),
        },
    };
    run(&mut ender("reboot")?)?;
    Ok(trouble)
}

fn load(kernel: &Kernel) -> Result<(), HostError> {
    let mut command = Command::new("kexec");
    command
        .arg("--load")
        .arg(&kernel.image)
        .arg("--reuse-cmdline");
    if let Some(initrd) = &kernel.initrd {
        command.arg("--initrd").arg(initrd);
    }
    run(&mut command)
}

/// What ends the host: `reboot`, or `kexec` into what is loaded.
fn ender(word: &str) -> Result<Command, HostError> {
    let is_systemd = Path::new("/run/systemd/system").is_dir();
    if is_systemd && program("systemctl").is_some() {
        let mut command = Command::new("systemctl");
        command.arg(word);
        return Ok(command);
    }
    let own = match word {
        "kexec" => ("kexec", Some("--exec")),
        _ => ("reboot", None),
    };
    if program(own.0).is_none() {
        return Err(HostError::missing(
            "find who has this host begin anew: neither systemd nor `reboot` is there",
            "reboot it as it is done here, after `forebay update run --reboot`",
        ));
    }
    let mut command = Command::new(own.0);
    command.args(own.1);
    Ok(command)
}

fn run(command: &mut Command) -> Result<(), HostError> {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let words = words.join(" ");
    let ended = command
        .output()
        .map_err(|error| HostError::io(format!("run `{words}`"), error))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(HostError::invalid(
        format!("run `{words}`: {} ({})", said.trim(), ended.status),
        "see what it says, and reboot by hand",
    ))
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The newest kernel of a directory.
fn newest(boot: &Path) -> Option<Kernel> {
    let names = fs::read_dir(boot).ok()?.flatten();
    let versions = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix(KERNEL).map(str::to_owned)
    });
    let version = versions.max_by(|a, b| compare(a, b))?;
    let initrds = INITRDS.map(|(start, end)| boot.join(format!("{start}{version}{end}")));
    Some(Kernel {
        image: boot.join(format!("{KERNEL}{version}")),
        initrd: initrds.into_iter().find(|file| file.is_file()),
        version,
    })
}

/// Compares versions: runs of digits as numbers, all else as text.
fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (pieces(a), pieces(b));
    a.iter()
        .zip(&b)
        .map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            _ => a.cmp(b),
        })
        .find(|order| order.is_ne())
        .unwrap_or(a.len().cmp(&b.len()))
}

fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digit = first.is_ascii_digit();
        let end = rest
            .find(|other: char| other.is_ascii_digit() != digit)
            .unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let check = |a: &str, b: &str| {
            assert_eq!(compare(a, b), Ordering::Less, "{a} {b}");
            assert_eq!(compare(b, a), Ordering::Greater, "{b} {a}");
        };
        check("6.1.0-9-amd64", "6.1.0-10-amd64");
        check("6.9.2", "6.12.1");
        check("6.12.1", "6.12.1-1");
        check("5.14.0-70.el9", "5.14.0-162.el9");
        assert_eq!(compare("6.1.0-9-amd64", "6.1.0-9-amd64"), Ordering::Equal);
    }

    #[test]
    fn the_newest_kernel_is_taken_with_what_it_begins_with() {
        let boot = tempfile::tempdir().unwrap();
        assert_eq!(newest(boot.path()), None);
        let write = |name: &str| fs::write(boot.path().join(name), "").unwrap();
        for name in [
            "vmlinuz-6.9.0",
            "vmlinuz-6.12.0",
            "initrd.img-6.12.0",
            "config-7",
        ] {
            write(name);
        }
        let found = newest(boot.path()).unwrap();
        assert_eq!(found.version, "6.12.0");
        assert_eq!(found.initrd, Some(boot.path().join("initrd.img-6.12.0")));
        write("vmlinuz-7.0");
        assert_eq!(newest(boot.path()).unwrap().initrd, None);
    }
}
