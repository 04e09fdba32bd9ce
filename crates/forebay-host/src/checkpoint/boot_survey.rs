//! Whether a program can be kept over a boot, found out before anything of it is touched.
//!
//! What CRIU is known to refuse stands against it, and what the next boot has not: files in memory, and process
//! numbers that it gives away before the program is back. What CRIU refuses beyond that is told by a trial.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rustix::fs::statfs;

use super::over_boot::low_numbers;
use super::preflight::{of_descriptors, of_memory, of_rights, read};
use crate::error::HostError;
use crate::procs;

/// File systems in memory: tmpfs and ramfs. See statfs(2).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// What stands against keeping a program, with all that descend from it, over a boot; nothing where it can be.
///
/// # Errors
/// When it is gone, or may not be looked at.
pub fn obstacles(pid: u32) -> Result<BTreeSet<String>, HostError> {
    let proc_root = Path::new("/proc");
    let gone = || {
        HostError::missing(
            format!("look whether process {pid} can be kept: it has ended"),
            "look again when it runs",
        )
    };
    let root = procs::identify(proc_root, pid).ok_or_else(gone)?;
    let own = read(Path::new("/proc/self/status"))?;
    let file = proc_root.join("sys/kernel/pid_max");
    let low = low_numbers(read(&file)?.trim().parse().unwrap_or(0));
    let mut all = BTreeSet::new();
    if procs::read_stat(proc_root, pid).is_none_or(|stat| stat.session != pid) {
        all.insert("it is of another's session: start it by Forebay, or by setsid".to_owned());
    }
    for pid in procs::families(proc_root, &[root]) {
        let directory = proc_root.join(pid.to_string());
        // Whether it stands or is debugged says nothing: it does while an image of it is taken.
        let rights = of_rights(&read(&directory.join("status"))?, &own);
        let mut found: Vec<String> = rights.into_iter().collect();
        let mut files = BTreeMap::new();
        of_descriptors(&directory, &mut found, &mut files)?;
        of_memory(pid, &directory, &mut found, &mut files)?;
        found.extend(files.keys().filter_map(|file| in_memory(file)));
        found.extend(numbers(&directory, low));
        all.extend(found);
    }
    Ok(all)
}

fn in_memory(file: &Path) -> Option<String> {
    let kind = u64::try_from(statfs(file).ok()?.f_type).ok()?;
    IN_MEMORY.contains(&kind).then(|| {
        format!(
            "it has {} open, which is in memory and goes with the host: put it on a disk",
            file.display()
        )
    })
}

/// The numbers of a process and its threads that a boot gives away.
fn numbers(directory: &Path, low: u32) -> Option<String> {
    let threads = fs::read_dir(directory.join("task")).ok()?.flatten();
    let mut numbers = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    numbers.find(|number: &u32| *number < low).map(|number| {
        format!(
            "its number {number} is one that the next boot gives away: restart it once, and it gets a high one"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_with_the_host_stands_against_it() {
        assert!(in_memory(Path::new("/dev/shm")).is_some_and(|why| why.contains("/dev/shm")));
        assert_eq!(in_memory(Path::new("/proc/self/exe")), None);
        let own = Path::new("/proc/self");
        assert!(numbers(own, u32::MAX).is_some());
        assert_eq!(numbers(own, 1), None);
        obstacles(u32::MAX).unwrap_err();
    }
}
