//! Having the host begin anew: with its newest kernel by kexec(8) where that may be done, else through its firmware.
//!
//! Whoever runs the host's services ends them in order first: where that is systemd it is asked, which starts a
//! kernel that is loaded by itself (`systemctl kexec`, systemctl(1)). A service that knows what it waits for is ended last
//! ([`last`]).

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::HostError;
use crate::rehearsal;

pub mod boot_loader;
pub mod last;

/// Where distributions put kernels, and how they name them and what they begin with.
const BOOT: &str = "/boot";
const KERNEL: &str = "vmlinuz-";
const INITRDS: [(&str, &str); 3] = [("initrd.img-", ""), ("initramfs-", ".img"), ("initrd-", "")];

/// Where a kernel has its modules, by the version that it says of itself.
const MODULES: [&str; 2] = ["usr/lib/modules", "lib/modules"];
/// How names of kernels end that nobody is to start by himself.
const SET_ASIDE: [&str; 4] = [".old", ".bak", "+debug", "-debug"];
/// A kernel that does not come up gives way to what the firmware starts after so long. Without that it would stand.
const PANIC_SECONDS: u32 = 30;

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
    newest(Path::new("/"))
}

/// The newest kernel that this host has to begin anew with, whoever starts it.
///
/// # Errors
/// Why there is none.
pub fn next() -> Result<Kernel, HostError> {
    newest(Path::new("/")).map_err(|why| {
        HostError::missing(
            format!("find a kernel to begin anew with: {why}"),
            "name one, where this host keeps its kernels elsewhere",
        )
    })
}

/// The file of the kernel that runs, where it is where kernels are.
#[must_use]
pub fn running_image(proc_root: &Path) -> Option<PathBuf> {
    let version = running(proc_root).ok()?;
    let image = Path::new(BOOT).join(format!("{KERNEL}{version}"));
    let said = rehearsal::image::look(&image).ok()?.ok()?;
    said.runs(proc_root).then_some(image)
}

/// What the host begins anew with; nothing that runs has heard of it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// A kernel of this version is loaded.
    Loaded(String),
    /// Whatever its firmware starts, and why.
    Firmware(String),
}

impl Ready {
    /// The version that runs afterwards, where that is known now.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::Loaded(version) => Some(version),
            Self::Firmware(_) => None,
        }
    }
}

/// Loads a kernel where one is to be started, which takes a while and needs nobody to stand still. One that cannot be
/// loaded is a reason for the firmware.
#[must_use]
pub fn prepare(way: Way) -> Ready {
    match way {
        Way::Firmware(why) => Ready::Firmware(why),
        Way::Kexec(kernel) => match load(&kernel) {
            Ok(()) => Ready::Loaded(kernel.version),
            Err(error) => Ready::Firmware(error.explain()),
        },
    }
}

/// Has the host begin anew. It goes on running for a while, as whoever ends its services takes.
///
/// # Errors
/// When nobody could be asked to.
pub fn begin(ready: &Ready) -> Result<(), HostError> {
    match ready {
        Ready::Loaded(_) => run(&mut ender("kexec")?),
        Ready::Firmware(_) => run(&mut ender("reboot")?),
    }
}

/// The version of the kernel that runs.
///
/// # Errors
/// When /proc is not there.
pub fn running(proc_root: &Path) -> Result<String, HostError> {
    let file = proc_root.join("sys/kernel/osrelease");
    let text = fs::read_to_string(&file).map_err(|e| HostError::file("read", &file, e))?;
    Ok(text.trim().to_owned())
}

fn load(kernel: &Kernel) -> Result<(), HostError> {
    let mut command = Command::new("kexec");
    command
        .arg("--load")
        .arg(&kernel.image)
        .arg("--reuse-cmdline");
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !line
        .split_whitespace()
        .any(|word| word.starts_with("panic="))
    {
        command.arg(format!("--append=panic={PANIC_SECONDS}"));
    }
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

/// Whether a kernel that says this version of itself has its modules below this root.
fn has_modules(root: &Path, version: &str) -> bool {
    MODULES
        .iter()
        .any(|dir| root.join(dir).join(version).is_dir())
}

/// The newest kernel below a root that can be expected to come up, or why there is none.
fn newest(root: &Path) -> Result<Kernel, String> {
    let boot = root.join(BOOT.trim_start_matches('/'));
    let names = fs::read_dir(&boot).map_err(|error| format!("read {}: {error}", boot.display()))?;
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let versions: Vec<String> = names
        .filter_map(|name| name.strip_prefix(KERNEL).map(str::to_owned))
        .filter(|version| !SET_ASIDE.iter().any(|end| version.ends_with(end)))
        .filter(|version| has_modules(root, version))
        .collect();
    let initrd = |version: &str| {
        let names = INITRDS.map(|(start, end)| boot.join(format!("{start}{version}{end}")));
        names.into_iter().find(|file| file.is_file())
    };
    let newest = versions.iter().max_by(|a, b| compare(a, b));
    let version =
        newest.ok_or_else(|| format!("there is no {BOOT}/{KERNEL}VERSION with modules"))?;
    let found = initrd(version);
    // A host whose kernels begin with one has what its root needs in it.
    if found.is_none() && versions.iter().any(|version| initrd(version).is_some()) {
        return Err(format!(
            "{BOOT}/{KERNEL}{version} has no initrd, and others have: make it (`update-initramfs -c -k {version}`)"
        ));
    }
    Ok(Kernel {
        image: boot.join(format!("{KERNEL}{version}")),
        initrd: found,
        version: version.clone(),
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
    fn the_newest_kernel_that_can_come_up_is_taken_with_what_it_begins_with() {
        let root = tempfile::tempdir().unwrap();
        let boot = root.path().join("boot");
        fs::create_dir(&boot).unwrap();
        assert!(newest(root.path()).unwrap_err().contains("with modules"));
        let write = |name: &str| fs::write(boot.join(name), "").unwrap();
        let install = |version: &str| {
            write(&format!("vmlinuz-{version}"));
            fs::create_dir_all(root.path().join("lib/modules").join(version)).unwrap();
        };
        for version in [
            "6.9.0",
            "6.12.0",
            "6.13.0.old",
            "6.13.0.bak",
            "6.13.0+debug",
        ] {
            install(version);
        }
        for name in ["vmlinuz-6.14.0", "config-7"] {
            write(name);
        }
        let found = newest(root.path()).unwrap();
        assert_eq!((found.version.as_str(), &found.initrd), ("6.12.0", &None));
        write("initrd.img-6.9.0");
        let why = newest(root.path()).unwrap_err();
        assert!(why.contains("vmlinuz-6.12.0 has no initrd"), "{why}");
        write("initrd.img-6.12.0");
        let found = newest(root.path()).unwrap();
        assert_eq!(found.version, "6.12.0");
        assert_eq!(found.initrd, Some(boot.join("initrd.img-6.12.0")));
    }
}
