//! Whether a network (namespace) is there.
//!
//! Source: namespaces(7). One is there while a thread is in it, or somebody has it open or mounted; what a socket alone
//! keeps is not found, and is used by nobody who could answer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Whether the network of this number is there, as far as that can be seen: what may not be looked at may have it.
pub(super) fn is_there(proc_root: &Path, number: u64) -> bool {
    let name = format!("net:[{number}]");
    is_seen(proc_root, &name).unwrap_or(true)
}

fn is_seen(proc_root: &Path, name: &str) -> io::Result<bool> {
    for entry in fs::read_dir(proc_root)? {
        let entry = entry?;
        let number = entry.file_name();
        let is_process = number.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if is_process && has(&entry.path(), name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a process has it.
fn has(process: &Path, name: &str) -> io::Result<bool> {
    for thread in listed(&process.join("task"))? {
        if is_link_to(&thread.join("ns/net"), name)? {
            return Ok(true);
        }
    }
    for open in listed(&process.join("fd"))? {
        if is_link_to(&open, name)? {
            return Ok(true);
        }
    }
    let mounts = unless_gone(fs::read_to_string(process.join("mountinfo")))?;
    let mounts = mounts.unwrap_or_default();
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').any(|word| word == name)))
}

fn listed(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = unless_gone(fs::read_dir(directory))?.into_iter().flatten();
    let paths = listed.map(|entry| Ok(unless_gone(entry)?.map(|entry| entry.path())));
    paths.filter_map(Result::transpose).collect()
}

fn is_link_to(link: &Path, name: &str) -> io::Result<bool> {
    let target = unless_gone(fs::read_link(link))?;
    Ok(target.is_some_and(|target| target.as_os_str() == name))
}

/// Who ended meanwhile has nothing. One that ended and is waited for refuses in its own way.
fn unless_gone<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::INVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_network_is_there_while_somebody_has_it() {
        let check = |make: &dyn Fn(&Path), expected: bool| {
            let proc_root = tempfile::tempdir().unwrap();
            let process = proc_root.path().join("7");
            for part in ["task/7/ns", "task/8/ns", "fd"] {
                fs::create_dir_all(process.join(part)).unwrap();
            }
            symlink("net:[1]", process.join("task/7/ns/net")).unwrap();
            fs::create_dir_all(proc_root.path().join("sys")).unwrap();
            make(&process);
            assert_eq!(is_there(proc_root.path(), 5), expected);
        };
        let link =
            |at: &'static str| move |process: &Path| symlink("net:[5]", process.join(at)).unwrap();
        check(&|_| (), false);
        check(&link("task/8/ns/net"), true);
        check(&link("fd/3"), true);
        let mounts = |text: &'static str| {
            move |process: &Path| fs::write(process.join("mountinfo"), text).unwrap()
        };
        check(
            &mounts("600 31 0:4 net:[5] /run/netns/a rw shared:9 - nsfs nsfs rw\n"),
            true,
        );
        check(
            &mounts("600 31 0:4 net:[55] /run/netns/a rw shared:9 - nsfs nsfs rw\n"),
            false,
        );
        // What may not be looked at may have it.
        check(
            &|process| {
                fs::remove_dir(process.join("fd")).unwrap();
                fs::write(process.join("fd"), "").unwrap();
            },
            true,
        );
    }
}
