//! What the kernel says of running programs: which run code that was replaced, and whether a package
//! manager is at work.

use std::fs;
use std::io;
use std::path::Path;

use forebay_core::idset::CpuSet;
use forebay_core::update::Life;
use rustix::process::{Flock, FlockType, fcntl_getlk};

/// What dpkg knows of packages.
pub(super) const DPKG_STATUS: &str = "/var/lib/dpkg/status";
/// Locks that package managers hold while packages are half installed.
const PACKAGE_LOCKS: [&str; 2] = ["/var/lib/dpkg/lock", "/var/lib/rpm/.rpm.lock"];
/// Where code comes from that packages replace.
const CODE: [&str; 6] = ["/usr/", "/lib", "/bin/", "/sbin/", "/opt/", "/srv/"];
const DELETED: &str = " (deleted)";

/// The life of a process; none when it is gone.
pub(super) fn life(proc: &Path, pid: u32) -> Option<Life> {
    let stat = fs::read_to_string(proc.join(format!("{pid}/stat"))).ok()?;
    // The name in parentheses may have any character in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let began_ticks = rest.split_whitespace().nth(19)?.parse().ok()?;
    Some(Life { pid, began_ticks })
}

/// A file whose code a process runs and that was replaced or removed since.
pub(super) fn replaced(proc: &Path, pid: u32) -> Option<String> {
    let maps = fs::read_to_string(proc.join(format!("{pid}/maps"))).ok()?;
    maps.lines().find_map(replaced_file)
}

fn replaced_file(line: &str) -> Option<String> {
    let mut fields = line.splitn(6, ' ');
    let access = fields.nth(1)?;
    let file = fields.nth(3)?.trim_start().strip_suffix(DELETED)?;
    let is_code = access.contains('x') && CODE.iter().any(|dir| file.starts_with(dir));
    is_code.then(|| file.to_owned())
}

/// The lock that a package manager holds while packages are half installed, if one does, or if nobody can
/// say.
pub(super) fn package_lock() -> Option<&'static str> {
    PACKAGE_LOCKS.into_iter().find(|file| {
        is_locked(Path::new(file)).unwrap_or_else(|error| {
            tracing::warn!(%error, file, "it is taken for locked: nobody can say");
            true
        })
    })
}

/// Whether another process holds a lock of a file, as the kernel answers: what `/proc/locks` names a file
/// system is not on all of them what files say it is.
fn is_locked(file: &Path) -> io::Result<bool> {
    let file = match fs::File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let wanted = Flock::from(FlockType::WriteLock);
    Ok(fcntl_getlk(&file, &wanted)?.is_some())
}

/// The CPUs that a process may use, as the kernel has them.
pub(super) fn cpus(proc: &Path, pid: u32) -> Option<CpuSet> {
    let status = fs::read_to_string(proc.join(format!("{pid}/status"))).ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().parse().ok()
}

/// Packages that dpkg has not finished with, by name: none where there is no dpkg.
pub(super) fn unconfigured(status: &Path) -> Vec<String> {
    const UNFINISHED: [&str; 5] = [
        "half-installed",
        "unpacked",
        "half-configured",
        "triggers-awaited",
        "triggers-pending",
    ];
    let text = fs::read(status).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut package = "";
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = name;
        }
        let state = line.strip_prefix("Status: ");
        let state = state.and_then(|words| words.split_whitespace().nth(2));
        if state.is_some_and(|state| UNFINISHED.contains(&state)) {
            found.push(package.to_owned());
        }
    }
    found
}

/// The CPUs that threads of a process, and of all that it started, ran on last.
pub(super) fn ran_on(proc: &Path, pid: u32) -> CpuSet {
    let mut cpus = CpuSet::default();
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        let threads = fs::read_dir(proc.join(format!("{pid}/task")));
        for thread in threads.into_iter().flatten().flatten() {
            let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let children = read("children");
            left.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            // One that ended meanwhile ran nowhere.
            if let Some((_, rest)) = read("stat").rsplit_once(')')
                && let Some(cpu) = rest.split_whitespace().nth(36)
                && let Ok(cpu) = cpu.parse()
                && cpu < CpuSet::IDS_MAX
            {
                cpus.insert(cpu);
            }
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_replaced_is_told_from_other_memory() {
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(replaced_file(line).as_deref(), expected, "{line}");
        };
        let at = "7f2e1c000000-7f2e1c021000";
        let line =
            |access: &str, file: &str| format!("{at} {access} 00000000 fe:01 1234       {file}");
        check(
            &line("r-xp", "/usr/lib/libc.so.6 (deleted)"),
            Some("/usr/lib/libc.so.6"),
        );
        check(&line("r-xp", "/usr/lib/libc.so.6"), None);
        check(&line("r--p", "/usr/lib/libc.so.6 (deleted)"), None);
        check(&line("r-xp", "/memfd:jit (deleted)"), None);
        check(&line("rw-s", "/dev/zero (deleted)"), None);
        check(
            &line("r-xp", "/opt/my app/bin (deleted)"),
            Some("/opt/my app/bin"),
        );
        check("", None);
    }

    #[test]
    fn packages_that_dpkg_has_not_finished_with_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("status");
        assert_eq!(unconfigured(&file), [""; 0]);
        let text = "Package: good\nStatus: install ok installed\nVersion: 1\n\n\
                    Package: bad\nStatus: install ok half-configured\n\n\
                    Package: gone\nStatus: deinstall ok config-files\n\n\
                    Package: torn\nStatus: install reinstreq half-installed\n";
        fs::write(&file, text).unwrap();
        assert_eq!(unconfigured(&file), ["bad", "torn"]);
    }

    #[test]
    fn this_process_has_a_life_and_cpus() {
        let proc = Path::new("/proc");
        let own = std::process::id();
        let one = life(proc, own).unwrap();
        assert_eq!(one.pid, own);
        assert_eq!(life(proc, own), Some(one));
        let allowed = cpus(proc, own).unwrap();
        assert!(!allowed.is_empty());
        let ran_on = ran_on(proc, own);
        assert!(!ran_on.is_empty() && ran_on.is_subset(&allowed), "{ran_on}");
        assert_eq!(life(proc, u32::MAX), None);
    }

    /// A file that this process runs code of and that is removed meanwhile is found.
    #[test]
    fn a_program_that_was_removed_under_a_process_is_found() {
        let dir = tempfile::Builder::new().tempdir_in("/usr/local").ok();
        let Some(dir) = dir else {
            println!("SKIPPED: a_program_that_was_removed: /usr/local cannot be written");
            return;
        };
        let program = dir.path().join("sleeper");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program)
            .arg("1000000009")
            .spawn()
            .unwrap();
        let proc = Path::new("/proc");
        // `spawn` comes back in the middle of execve, before the file is mapped.
        let maps = proc.join(format!("{}/maps", child.id()));
        while !fs::read_to_string(&maps)
            .unwrap()
            .contains(program.to_str().unwrap())
        {
            std::thread::yield_now();
        }
        assert_eq!(replaced(proc, child.id()), None);
        fs::remove_file(&program).unwrap();
        let found = replaced(proc, child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.as_deref(), program.to_str());
    }
}
