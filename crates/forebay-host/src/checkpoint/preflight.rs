//! Whether a process can move by checkpoint, found out before anything of it is touched.
//!
//! The source surveys the process, the target says what it has, and both together are judged: what stands
//! against the move, and how long the process would stand. Only what CRIU is known to refuse, or what
//! would be lost, stands against it; what CRIU refuses beyond that is told when it freezes the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::units::Bytes;
use serde::{Deserialize, Serialize};

use super::Criu;
use super::precopy::maps;
use crate::error::HostError;
use crate::procs;

/// Character devices that CRIU restores by their name: /dev/null, zero, full, random and urandom.
const DEVICES: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];
/// Descriptors that no image can hold, as the kernel names them.
const KERNELS: [(&str, &str); 5] = [
    ("anon_inode:[io_uring]", "io_uring"),
    ("anon_inode:[userfaultfd]", "a userfaultfd"),
    ("anon_inode:[perf_event]", "a performance counter"),
    ("anon_inode:bpf", "BPF"),
    ("anon_inode:kvm", "a virtual machine"),
];
/// The right to raise limits, without which CRIU takes only processes of its own user.
const CAP_SYS_RESOURCE: u32 = 24;

/// What is known of a process that may move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    /// Its number, which it has to have at the target as well.
    pub pid: u32,
    /// Private anonymous memory, which is copied while it runs.
    pub tracked: Bytes,
    /// Other memory of its own, which is copied while it stands.
    pub untracked: Bytes,
    /// What the processor can do, as the kernel names it.
    pub features: BTreeSet<String>,
    /// CRIU's version.
    pub criu: (u32, u32),
    /// Files that it has mapped or open by name; the bytes of what is mapped, which has to be the same.
    pub files: BTreeMap<PathBuf, Option<u64>>,
    /// What of itself stands against a move.
    pub obstacles: Vec<String>,
}

/// What a host has for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Memory that may be taken.
    pub room: Bytes,
    /// What the processor can do.
    pub features: BTreeSet<String>,
    /// CRIU's version.
    pub criu: (u32, u32),
    /// Files of the process that are not there, or of another size.
    pub missing: BTreeSet<PathBuf>,
    /// Whether a process of its number is there.
    pub is_taken: bool,
}

/// What is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// All that stands against the move, as one sentence each; it can move if nothing does.
    pub obstacles: Vec<String>,
    /// How long it would stand, if it writes slower than it is copied.
    pub pause: Duration,
}

/// What a pause is made of: measured by `forebay bench move`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speeds {
    /// Freezing, restoring and going on, of a process without memory.
    pub fixed: Duration,
    /// What CRIU takes beyond that for 1 GiB that it does not copy.
    pub each_gib: Duration,
    /// Bytes in a second over the link.
    pub link: f64,
}

impl Speeds {
    /// Between two networks of one machine that was busy otherwise.
    pub const MEASURED: Self = Self {
        fixed: Duration::from_millis(120),
        each_gib: Duration::from_millis(280),
        link: 1e9,
    };

    /// What CRIU needs for so much memory that was copied before.
    #[must_use]
    pub fn fixed(&self, tracked: Bytes) -> Duration {
        self.fixed
            + self
                .each_gib
                .mul_f64(tracked.as_f64() / Bytes::mib(1024).as_f64())
    }
}

impl Survey {
    /// Looks at a process.
    ///
    /// # Errors
    /// When there is none, or it may not be looked at.
    pub fn of(pid: u32, criu: &Criu) -> Result<Self, HostError> {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let status = read(&root.join("status"))?;
        let mut obstacles = Vec::new();
        obstacles.extend(of_status(&status, &read(Path::new("/proc/self/status"))?));
        let stat = procs::read_stat(Path::new("/proc"), pid);
        let is_leader = stat.is_some_and(|stat| stat.session == pid);
        if !is_leader {
            obstacles.push("it is of another's session: start it by Forebay, or by setsid".into());
        }
        let children = procs::children(Path::new("/proc"), pid).len();
        if children > 0 {
            obstacles.push(format!(
                "it has {children} child process(es), and one alone can be copied while it runs"
            ));
        }
        let mut files = BTreeMap::new();
        of_descriptors(&root, &mut obstacles, &mut files)?;
        let (tracked, untracked) = of_memory(pid, &root, &mut obstacles, &mut files)?;
        Ok(Self {
            pid,
            tracked,
            untracked,
            features: features(&read(Path::new("/proc/cpuinfo"))?),
            criu: criu.version(),
            files,
            obstacles,
        })
    }

    /// What this host has for such a process.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn place(&self, room: Bytes, criu: &Criu) -> Result<Place, HostError> {
        let is_there = |file: &Path, bytes: Option<u64>| {
            let found = fs::metadata(file).ok();
            found.is_some_and(|found| bytes.is_none_or(|bytes| found.len() == bytes))
        };
        let files = self.files.iter();
        let missing = files.filter(|(file, bytes)| !is_there(file, **bytes));
        let missing = missing.map(|(file, _)| file.clone());
        Ok(Place {
            room,
            features: features(&read(Path::new("/proc/cpuinfo"))?),
            criu: criu.version(),
            missing: missing.collect(),
            is_taken: Path::new(&format!("/proc/{}", self.pid)).exists(),
        })
    }

    /// Whether it can move there, and how long it would stand.
    #[must_use]
    pub fn judge(&self, place: &Place, speeds: Speeds) -> Outlook {
        let mut obstacles = self.obstacles.clone();
        let needed = self.tracked.saturating_add(self.untracked);
        // All of it lies there once while it comes in; what was filled in is given back.
        if needed > place.room {
            obstacles.push(format!(
                "it has {} MiB in memory, and {} MiB are free at the target",
                needed.0 >> 20,
                place.room.0 >> 20
            ));
        }
        let lacking: Vec<&str> = self
            .features
            .difference(&place.features)
            .map(String::as_str)
            .collect();
        if !lacking.is_empty() {
            obstacles.push(format!(
                "the target's processor lacks {}, which it may use",
                lacking.join(" ")
            ));
        }
        if self.criu > place.criu {
            obstacles.push(format!(
                "the target's CRIU {}.{} is older than {}.{} here: update it",
                place.criu.0, place.criu.1, self.criu.0, self.criu.1
            ));
        }
        for file in &place.missing {
            obstacles.push(format!(
                "{} is not at the target, or is another file there: put it there, or name it in `move.files`",
                file.display()
            ));
        }
        if place.is_taken {
            obstacles.push(format!("a process {} is at the target already", self.pid));
        }
        let rest = Duration::try_from_secs_f64(self.untracked.as_f64() / speeds.link);
        Outlook {
            obstacles,
            pause: speeds
                .fixed(self.tracked)
                .saturating_add(rest.unwrap_or(Duration::MAX)),
        }
    }
}

pub(super) fn read(path: &Path) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(|e| HostError::file("read", path, e))
}

/// The value of a line of a status file.
pub(super) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.map(str::trim)
}

/// What its state says against a move, beside what this process may do.
fn of_status(status: &str, own: &str) -> Vec<String> {
    let mut obstacles = Vec::new();
    match field(status, "State:").and_then(|state| state.chars().next()) {
        Some('T' | 't') => obstacles.push("it was stopped: let it go on".to_owned()),
        Some('Z' | 'X') => obstacles.push("it has ended".to_owned()),
        _ => {}
    }
    if let Some(tracer) = field(status, "TracerPid:").filter(|tracer| *tracer != "0") {
        obstacles.push(format!("process {tracer} debugs it: end that"));
    }
    obstacles.extend(of_rights(status, own));
    obstacles
}

/// What the user whose it is says against taking it, beside what this process may do.
pub(super) fn of_rights(status: &str, own: &str) -> Option<String> {
    let rights = field(own, "CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    let may_all = rights.is_some_and(|rights| rights >> CAP_SYS_RESOURCE & 1 == 1);
    let user = |status| field(status, "Uid:").map(str::to_owned);
    (!may_all && user(status) != user(own))
        .then(|| "it is another user's, which CRIU takes only with CAP_SYS_RESOURCE".to_owned())
}

/// A TCP connection of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Its own end.
    pub here: SocketAddr,
    /// The other one.
    pub there: SocketAddr,
}

impl std::fmt::Display for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {}", self.here, self.there)
    }
}

/// The TCP connections of a process that are established, on whatever address.
///
/// # Errors
/// When it may not be looked at.
pub fn connections(pid: u32) -> Result<Vec<Connection>, HostError> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let directory = root.join("fd");
    let listed = fs::read_dir(&directory).map_err(|e| HostError::file("list", &directory, e))?;
    // It may have closed some meanwhile.
    let links = listed
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    let own: BTreeSet<String> = links.filter_map(|link| socket(&link)).collect();
    let mut found = Vec::new();
    for table in ["net/tcp", "net/tcp6"] {
        // A kernel without IPv6 has no table of it.
        let text = fs::read_to_string(root.join(table)).unwrap_or_default();
        let lines = text.lines().filter(|line| is_established(line, &own));
        for line in lines {
            found.push(ends(line).ok_or_else(|| {
                HostError::invalid(
                    format!("read the connections of process {pid}: `{line}`"),
                    "report this",
                )
            })?);
        }
    }
    Ok(found)
}

/// The number of a socket, as descriptors name it.
fn socket(link: &Path) -> Option<String> {
    let name = link.to_str()?;
    let number = name.strip_prefix("socket:[")?.strip_suffix(']')?;
    Some(number.to_owned())
}

/// Whether a line of the kernel's table is of an established connection of one of these sockets. Those that
/// are being closed have something to send still.
fn is_established(line: &str, own: &BTreeSet<String>) -> bool {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace();
    let (state, inode) = (fields.nth(3), fields.nth(5));
    state != Some(LISTEN) && inode.is_some_and(|inode| own.contains(inode))
}

/// The two ends of a connection, as a line of the kernel's table has them.
fn ends(line: &str) -> Option<Connection> {
    let mut fields = line.split_whitespace().skip(1);
    let (here, there) = (end(fields.next()?)?, end(fields.next()?)?);
    Some(Connection { here, there })
}

/// An address in words of four bytes, each as this processor has it, and a port. One of IPv4 that a socket of IPv6
/// has is one of IPv4.
fn end(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = Vec::new();
    for word in words.as_bytes().chunks(8) {
        // One that is cut off is none, whatever number it begins with.
        let word = std::str::from_utf8(word)
            .ok()
            .filter(|word| word.len() == 8)?;
        octets.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    }
    let ip = match octets.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)),
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// What it has open.
pub(super) fn of_descriptors(
    root: &Path,
    obstacles: &mut Vec<String>,
    files: &mut BTreeMap<PathBuf, Option<u64>>,
) -> Result<(), HostError> {
    let directory = root.join("fd");
    let listed = fs::read_dir(&directory).map_err(|e| HostError::file("list", &directory, e))?;
    for entry in listed.flatten() {
        let path = entry.path();
        // It may have closed it meanwhile.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let name = target.to_string_lossy();
        if is_daemons(&target) {
            let number = entry.file_name();
            obstacles.push(format!(
                "its descriptor {} leads to where this daemon's output goes: name files as its `stdout` and \
                 `stderr`, /dev/null for none",
                number.to_string_lossy()
            ));
            continue;
        }
        if let Some((_, what)) = KERNELS.iter().find(|(start, _)| name.starts_with(start)) {
            obstacles.push(format!("it has {what} open, which no image holds"));
            continue;
        }
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        let kind = metadata.file_type();
        let number = (
            rustix::fs::major(metadata.rdev()),
            rustix::fs::minor(metadata.rdev()),
        );
        if kind.is_block_device() || (kind.is_char_device() && !DEVICES.contains(&number)) {
            obstacles.push(format!("it has the device {name} open: close it first"));
        } else if kind.is_file() && name.starts_with('/') && !name.starts_with("/memfd:") {
            if name.ends_with(" (deleted)") {
                obstacles.push(format!("it has a file open that was removed, {name}"));
            } else {
                files.entry(target).or_default();
            }
        }
    }
    Ok(())
}

/// Whether it is a pipe or a socket that this program has as its output or error.
fn is_daemons(target: &Path) -> bool {
    let name = target.to_string_lossy();
    let is_shared = name.starts_with("pipe:") || name.starts_with("socket:");
    let own = ["1", "2"].map(|fd| fs::read_link(Path::new("/proc/self/fd").join(fd)).ok());
    is_shared && own.iter().flatten().any(|own| own == target)
}

/// Its memory: what can be tracked, and what cannot.
pub(super) fn of_memory(
    pid: u32,
    root: &Path,
    obstacles: &mut Vec<String>,
    files: &mut BTreeMap<PathBuf, Option<u64>>,
) -> Result<(Bytes, Bytes), HostError> {
    let number = i32::try_from(pid).unwrap_or(0);
    for area in maps::read(number)? {
        let name = &area.name;
        if name.starts_with("/dev/")
            && !name.starts_with("/dev/zero")
            && !name.starts_with("/dev/shm")
        {
            obstacles.push(format!("it has the device {name} mapped"));
        } else if name.starts_with("/anon_hugepage") {
            obstacles.push("it has huge pages of its own, which are not tracked".to_owned());
        } else if name.starts_with('/')
            && !name.starts_with("/memfd:")
            && !name.ends_with(" (deleted)")
        {
            // CRIU refuses another one under its name.
            let bytes = fs::metadata(name).ok().map(|found| found.len());
            files.insert(name.into(), bytes);
        }
    }
    let rollup = read(&root.join("smaps_rollup"))?;
    let of = |name: &str| {
        let value = field(&rollup, name).and_then(|text| text.strip_suffix(" kB"));
        Bytes(
            value
                .and_then(|text| text.trim().parse::<u64>().ok())
                .unwrap_or(0)
                << 10,
        )
    };
    let tracked = of("Anonymous:").saturating_add(of("Swap:"));
    Ok((tracked, of("Pss_Shmem:")))
}

/// What a processor can do: the flags that all of its CPUs have.
fn features(cpuinfo: &str) -> BTreeSet<String> {
    let mut all = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| matches!(name.trim(), "flags" | "Features"))
        .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect());
    let first: BTreeSet<String> = all.next().unwrap_or_default();
    all.fold(first, |common, other: BTreeSet<String>| {
        common.intersection(&other).cloned().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEEDS: Speeds = Speeds {
        fixed: Duration::from_millis(100),
        each_gib: Duration::from_millis(120),
        link: 1e9,
    };

    fn survey() -> Survey {
        Survey {
            pid: 7,
            tracked: Bytes::mib(1024),
            untracked: Bytes(100_000_000),
            features: ["avx2", "sse2"].map(str::to_owned).into(),
            criu: (4, 2),
            files: BTreeMap::new(),
            obstacles: Vec::new(),
        }
    }

    fn place() -> Place {
        Place {
            room: Bytes::mib(2048),
            features: ["avx2", "sse2", "avx512f"].map(str::to_owned).into(),
            criu: (4, 2),
            missing: BTreeSet::new(),
            is_taken: false,
        }
    }

    #[test]
    fn what_stands_against_a_move_is_named() {
        let check = |change: fn(&mut Survey, &mut Place), part: &str| {
            let (mut survey, mut place) = (survey(), place());
            change(&mut survey, &mut place);
            let found = survey.judge(&place, SPEEDS).obstacles.join("; ");
            assert!(found.contains(part), "{found}");
        };
        assert_eq!(survey().judge(&place(), SPEEDS).obstacles, [""; 0]);
        check(
            |_, place| place.room = Bytes::mib(1000),
            "1000 MiB are free",
        );
        check(
            |_, place| {
                place.features.remove("avx2");
            },
            "lacks avx2",
        );
        check(|_, place| place.criu = (4, 1), "CRIU 4.1 is older");
        check(
            |_, place| place.is_taken = true,
            "a process 7 is at the target",
        );
        check(
            |_, place| {
                place.missing.insert("/etc/a".into());
            },
            "/etc/a is not at the target",
        );
        check(|survey, _| survey.obstacles.push("no".into()), "no");
    }

    #[test]
    fn the_pause_is_what_is_copied_while_it_stands() {
        let pause = survey().judge(&place(), SPEEDS).pause;
        assert_eq!(pause, Duration::from_millis(320));
    }

    #[test]
    fn a_state_in_which_it_cannot_move_is_told() {
        let own = "Uid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\n";
        let check = |status: &str, part: &str| {
            let found = of_status(status, own).join("; ");
            assert!(found.contains(part), "{found}");
        };
        check(
            "State:\tT (stopped)\nTracerPid:\t0\nUid:\t0\t0\t0\t0\n",
            "it was stopped",
        );
        check(
            "State:\tS (sleeping)\nTracerPid:\t12\nUid:\t0\t0\t0\t0\n",
            "12 debugs it",
        );
        check(
            "State:\tS (sleeping)\nTracerPid:\t0\nUid:\t9\t9\t9\t9\n",
            "another user's",
        );
        let fine = "State:\tS (sleeping)\nTracerPid:\t0\nUid:\t0\t0\t0\t0\n";
        assert_eq!(of_status(fine, own), [""; 0]);
        // With the right, another user's is fine.
        let other = "State:\tS (sleeping)\nTracerPid:\t0\nUid:\t9\t9\t9\t9\n";
        let all = "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n";
        assert_eq!(of_status(other, all), [""; 0]);
    }

    #[test]
    fn connections_are_counted_by_the_sockets_of_the_process() {
        let own = BTreeSet::from(["77".to_owned()]);
        let line = |state: &str, inode: &str| {
            format!(
                "0: 0100007F:1F90 0100007F:C350 {state} 0:0 00:0 00000000 0 0 {inode} 1 0 20 4 30"
            )
        };
        let check = |state: &str, inode: &str, expected: bool| {
            assert_eq!(
                is_established(&line(state, inode), &own),
                expected,
                "{state} {inode}"
            );
        };
        check("01", "77", true);
        check("01", "78", false);
        check("0A", "77", false);
        check("08", "77", true);
        assert!(!is_established("  sl  local_address rem_address", &own));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let before = connections(std::process::id()).unwrap().len();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let after = connections(std::process::id()).unwrap();
        assert!(after.len() > before, "{before} to {after:?}");
        let own = Connection {
            here: stream.local_addr().unwrap(),
            there: stream.peer_addr().unwrap(),
        };
        assert!(after.contains(&own), "{own} of {after:?}");
        drop(stream);
    }

    #[test]
    fn ends_of_connections_are_read_as_the_kernel_writes_them() {
        let check = |text: &str, expected: Option<&str>| {
            let found = end(text).map(|end| end.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        };
        if cfg!(target_endian = "little") {
            check("05004D0A:0050", Some("10.77.0.5:80"));
            check(
                "000000FD000000000000000005000000:0050",
                Some("[fd00::5]:80"),
            );
            check(
                "0000000000000000FFFF000005004D0A:0050",
                Some("10.77.0.5:80"),
            );
        }
        for text in ["", "05004D0A", "05004D:0050", "x5004D0A:0050", "05004D0A:x"] {
            check(text, None);
        }
    }

    #[test]
    fn features_are_those_of_all_cpus() {
        let text = "processor\t: 0\nflags\t\t: a b c\n\nprocessor\t: 1\nflags\t\t: b c d\n";
        assert_eq!(features(text), ["b", "c"].map(str::to_owned).into());
        assert_eq!(features(""), BTreeSet::new());
    }

    /// A process that has a device and io_uring open cannot move.
    #[test]
    fn what_a_process_has_open_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let fd = directory.path().join("fd");
        fs::create_dir(&fd).unwrap();
        let link = |name: &str, target: &str| {
            std::os::unix::fs::symlink(target, fd.join(name)).unwrap();
        };
        link("0", "/dev/null");
        link("3", "anon_inode:[io_uring]");
        link("4", "/proc/self/exe");
        link("5", "/dev/tty0");
        let (mut obstacles, mut files) = (Vec::new(), BTreeMap::new());
        of_descriptors(directory.path(), &mut obstacles, &mut files).unwrap();
        assert!(
            obstacles.iter().any(|o| o.contains("io_uring")),
            "{obstacles:?}"
        );
        assert!(
            !obstacles.iter().any(|o| o.contains("/dev/null")),
            "{obstacles:?}"
        );
        assert_eq!(files, [(PathBuf::from("/proc/self/exe"), None)].into());
    }
}
