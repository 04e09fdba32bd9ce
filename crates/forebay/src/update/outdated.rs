//! What the kernel says of running programs: which run code that was replaced, and whether a package
//! manager is at work.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use forebay_core::app::{AppId, Binding};
use forebay_core::idset::CpuSet;
use forebay_core::update::Life;
use forebay_host::reboot::{self, Kernel};
use rustix::process::{Flock, FlockType, fcntl_getlk};

/// What dpkg knows of packages.
pub(super) const DPKG_STATUS: &str = "/var/lib/dpkg/status";
/// Locks that package managers hold while packages are half installed.
const PACKAGE_LOCKS: [&str; 2] = ["/var/lib/dpkg/lock", "/var/lib/rpm/.rpm.lock"];
/// Where code comes from that packages replace.
const CODE: [&str; 6] = ["/usr/", "/lib", "/bin/", "/sbin/", "/opt/", "/srv/"];
const DELETED: &str = " (deleted)";
/// Where packages of Debian's say that a reboot is needed; beside it which they are.
const REBOOT_REQUIRED: &str = "/run/reboot-required";
/// Of these so many are named.
const PACKAGES_SHOWN: usize = 8;

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

/// What an update left that is in effect only once this host begins anew: a kernel that came meanwhile, or what packages
/// say.
pub(super) fn unbooted(began_unix_ms: u64) -> Option<String> {
    let running = reboot::running(Path::new("/proc")).unwrap_or_default();
    kernel_since(reboot::next().ok()?, &running, began_unix_ms)
        .or_else(|| asked_for(Path::new(REBOOT_REQUIRED)))
}

fn kernel_since(next: Kernel, running: &str, began_unix_ms: u64) -> Option<String> {
    // Packages bring files of the time when they were made; the file is here since its last change.
    let since = fs::metadata(&next.image).ok()?.ctime();
    let is_new = next.version != running && since >= i64::try_from(began_unix_ms / 1000).ok()?;
    is_new.then(|| format!("kernel {} was installed", next.version))
}

/// What Debian's packages write where they need a reboot.
fn asked_for(file: &Path) -> Option<String> {
    if !file.exists() {
        return None;
    }
    let packages = fs::read_to_string(file.with_extension("pkgs")).unwrap_or_default();
    let packages: BTreeSet<&str> = packages.split_whitespace().take(PACKAGES_SHOWN).collect();
    Some(match packages.is_empty() {
        true => format!("{} says that a reboot is needed", file.display()),
        false => {
            let packages: Vec<&str> = packages.into_iter().collect();
            format!(
                "{} says that a reboot is needed for {}",
                file.display(),
                packages.join(", ")
            )
        }
    })
}

/// Those of these that run code that was replaced though Forebay starts none of them, each with a file of it: by the
/// control groups of all processes.
pub(super) fn outside(proc: &Path, apps: &[(&AppId, &Binding)]) -> BTreeMap<AppId, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let has = |binding: &Binding| groups.lines().any(|line| is_of(line, binding));
        let of: Vec<&AppId> = apps
            .iter()
            .filter(|(id, binding)| !found.contains_key(*id) && has(binding))
            .map(|(id, _)| *id)
            .collect();
        if of.is_empty() {
            continue;
        }
        if let Some(file) = replaced(proc, pid) {
            found.extend(of.into_iter().map(|id| (id.clone(), file.clone())));
        }
    }
    found
}

/// Whether a line of /proc/PID/cgroup is one of an app that has this group, or this unit.
fn is_of(line: &str, binding: &Binding) -> bool {
    let path = line.splitn(3, ':').nth(2).unwrap_or_default();
    match binding {
        Binding::Systemd(unit) => path.split('/').any(|part| part == unit.as_str()),
        Binding::Cgroup(group) => {
            let group = group.to_string_lossy();
            let rest = path
                .trim_start_matches('/')
                .strip_prefix(group.trim_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Binding::Exec(_) | Binding::Match(_) | Binding::Container(_) => false,
    }
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

    #[test]
    fn what_needs_a_reboot_is_a_kernel_that_came_meanwhile_or_what_packages_say() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("vmlinuz-9.9");
        fs::write(&image, "").unwrap();
        let now = u64::try_from(fs::metadata(&image).unwrap().ctime()).unwrap() * 1000;
        let since = |running: &str, began: u64| {
            let next = Kernel {
                version: "9.9".to_owned(),
                image: image.clone(),
                initrd: None,
            };
            kernel_since(next, running, began)
        };
        let said = since("9.8", now - 5000).unwrap();
        assert!(said.contains("kernel 9.9"), "{said}");
        assert_eq!(since("9.9", now - 5000), None, "it runs");
        assert_eq!(since("9.8", now + 5000), None, "it was there before");

        let file = dir.path().join("reboot-required");
        assert_eq!(asked_for(&file), None);
        fs::write(&file, "*** System restart required ***\n").unwrap();
        assert!(
            asked_for(&file)
                .unwrap()
                .contains("says that a reboot is needed")
        );
        let packages = dir.path().join("reboot-required.pkgs");
        fs::write(packages, "libc6\ndbus\nlibc6\n").unwrap();
        let said = asked_for(&file).unwrap();
        assert!(said.ends_with("is needed for dbus, libc6"), "{said}");
    }

    #[test]
    fn a_unit_or_a_group_that_runs_outdated_code_is_found_by_its_processes() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, group: &str, file: &str| {
            let dir = proc.path().join(pid.to_string());
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("cgroup"), format!("1:cpu:/else\n0::{group}\n")).unwrap();
            let maps = format!("7f2e1c000000-7f2e1c021000 r-xp 00000000 fe:01 1234       {file}\n");
            fs::write(dir.join("maps"), maps).unwrap();
        };
        let gone = "/usr/sbin/nginx (deleted)";
        process(1, "/system.slice/ssh.service", gone);
        process(2, "/system.slice/nginx.service", "/usr/sbin/nginx");
        process(3, "/system.slice/nginx.service/worker", gone);
        process(4, "/batch/jobs/1", gone);
        process(5, "/batch/jobs-of-others", gone);
        fs::create_dir(proc.path().join("sys")).unwrap();
        let bindings: [(AppId, Binding); 4] = [
            (
                "web".parse().unwrap(),
                Binding::Systemd("nginx.service".into()),
            ),
            (
                "jobs".parse().unwrap(),
                Binding::Cgroup("batch/jobs".into()),
            ),
            (
                "other".parse().unwrap(),
                Binding::Systemd("inx.service".into()),
            ),
            ("none".parse().unwrap(), Binding::Cgroup("batch/job".into())),
        ];
        let apps: Vec<_> = bindings.iter().map(|(id, binding)| (id, binding)).collect();
        let found = outside(proc.path(), &apps);
        let names: Vec<&str> = found.keys().map(AppId::as_str).collect();
        assert_eq!(names, ["jobs", "web"]);
        assert!(found.values().all(|file| file == "/usr/sbin/nginx"));
    }
}
