//! Images that outlive the boot that they were taken in.
//!
//! # Problem
//! The host is to begin anew, and programs are to go on where they were. Whatever a program answers after its
//! image was taken would be lost, and an image that is not whole would lose all.
//!
//! # Approach
//! CRIU leaves the program standing once it is written down. What was written is summed, made durable, read back
//! from the disk and compared; only then the program is ended. Where anything fails it goes on. The sums are
//! beside the image, and whoever begins from it in another boot compares again.
//!
//! # Properties
//! - A program is ended after its image was read back whole, and not before.
//! - An image is used in one boot: it is that boot's before CRIU begins, durably.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::criu::{Aim, Criu, Taken};
use super::store::{Image, Store, boot, entries, sync};
use crate::error::HostError;
use crate::ledger::Process;
use crate::procs;

/// How long what was killed may take to go: a core of a large program is freed first.
const GONE_MAX: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
const CHUNK: usize = 1 << 16;

/// What makes an image good for another boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The update that it was taken for.
    pub update: u64,
    /// The checksum (CRC-32) of each file that CRIU wrote, by name.
    pub(crate) sums: BTreeMap<String, u32>,
    /// A boot after its own had it.
    #[serde(default)]
    pub(crate) claimed: bool,
}

/// Where a running program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody noted it: it does not run, or is being begun.
    Unknown,
    /// It began with nothing, or from an image of its own boot.
    Own,
    /// It goes on from an image that was taken for an update.
    Kept {
        /// The update.
        update: u64,
        /// From when it was stopped for that until it went on, by the host's clock.
        stood: Duration,
    },
}

impl Criu {
    /// Takes an image for another boot, and ends the program, with all that descend from it, once the image is
    /// whole on the disk. Where it fails they go on.
    ///
    /// # Errors
    /// As those of [`Self::take`]; when what was written reads back as something else; when they do not end.
    pub fn keep(
        &self,
        store: &Store,
        app: &AppId,
        pid: u32,
        update: u64,
        proc_root: &Path,
    ) -> Result<Taken, HostError> {
        let root = procs::identify(proc_root, pid);
        let taken = self.take_for(store, app, pid, proc_root, Aim::Boot(update));
        // They stand, so that there are no more of them than now.
        let family = procs::families(proc_root, root.as_slice());
        let family: Vec<Process> = family
            .into_iter()
            .filter_map(|pid| procs::identify(proc_root, pid))
            .collect();
        match taken {
            Ok(taken) => {
                end(app, &family, proc_root)?;
                Ok(taken)
            }
            Err(error) => {
                for process in &family {
                    signal(*process, Signal::CONT, proc_root)?;
                }
                Err(error)
            }
        }
    }
}

fn signal(process: Process, signal: Signal, proc_root: &Path) -> Result<(), HostError> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|_| procs::is_alive(proc_root, process)) else {
        return Ok(());
    };
    match kill_process(pid, signal) {
        Err(error) if error != rustix::io::Errno::SRCH => Err(HostError::io(
            format!("send {signal:?} to process {}", process.pid),
            error,
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn end(app: &AppId, family: &[Process], proc_root: &Path) -> Result<(), HostError> {
    for process in family {
        signal(*process, Signal::KILL, proc_root)?;
    }
    let deadline = Instant::now() + GONE_MAX;
    while family
        .iter()
        .any(|process| procs::is_alive(proc_root, *process))
    {
        if Instant::now() >= deadline {
            return Err(HostError::invalid(
                format!("end {app} after its image was taken: it is still there"),
                "look for processes in state D",
            ));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Sums what CRIU wrote, has it on the disk, and reads it back from there.
pub(super) fn seal(directory: &Path, update: u64) -> Result<Kept, HostError> {
    let wanted = AtomicBool::new(false);
    let sums = sums(directory, &wanted)?;
    for file in entries(directory)? {
        sync(&file)?;
        let file_ = File::open(&file).map_err(|e| HostError::file("open", &file, e))?;
        // What the kernel still has in memory says nothing of the disk. Where it keeps it, it is read from there.
        fadvise(&file_, 0, None::<NonZeroU64>, Advice::DontNeed)
            .map_err(|e| HostError::file("read anew", &file, e))?;
    }
    sync(directory)?;
    let kept = Kept {
        update,
        sums,
        claimed: false,
    };
    compare(
        directory,
        &kept,
        &wanted,
        "the disk gives back something else than was written: look at it",
    )?;
    Ok(kept)
}

fn compare(
    directory: &Path,
    kept: &Kept,
    is_unwanted: &AtomicBool,
    advice: &str,
) -> Result<(), HostError> {
    let found = sums(directory, is_unwanted)?;
    if found == kept.sums {
        return Ok(());
    }
    let names = kept.sums.keys().chain(found.keys());
    let other = names
        .into_iter()
        .find(|name| kept.sums.get(*name) != found.get(*name));
    let other = other.map_or("", String::as_str);
    Err(HostError::invalid(
        format!(
            "compare {} with its checksum",
            directory.join(other).display()
        ),
        advice,
    ))
}

fn sums(directory: &Path, is_unwanted: &AtomicBool) -> Result<BTreeMap<String, u32>, HostError> {
    let mut sums = BTreeMap::new();
    for file in entries(directory)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if file.extension().is_some_and(|end| end == "img") {
            sums.insert(name.into_owned(), sum(&file, is_unwanted)?);
        }
    }
    Ok(sums)
}

fn sum(file: &Path, is_unwanted: &AtomicBool) -> Result<u32, HostError> {
    let fail = |error| HostError::file("read", file, error);
    let mut open = File::open(file).map_err(fail)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        if is_unwanted.load(Ordering::Relaxed) {
            return Err(HostError::invalid(
                format!("read {}: nobody wants to know any more", file.display()),
                "nothing is lost: it is read again when its program is to begin",
            ));
        }
        match open.read(&mut buffer).map_err(fail)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

impl Store {
    /// Compares an image that was kept with its checksums, which takes as long as reading it does.
    ///
    /// # Errors
    /// When it is not as it was written, or nobody wants to know any more.
    pub(super) fn check_kept(
        &self,
        app: &AppId,
        image: &Image,
        is_unwanted: &AtomicBool,
    ) -> Result<(), HostError> {
        let Some(kept) = &image.kept else {
            return Ok(());
        };
        compare(
            &self.directory(app, image.number),
            kept,
            is_unwanted,
            "the program begins with nothing, and what it had is lost: look at the disk",
        )
    }

    /// Makes an image this boot's, so that no later one begins from it.
    pub(crate) fn claim(
        &self,
        app: &AppId,
        image: &Image,
        proc_root: &Path,
    ) -> Result<Image, HostError> {
        let here = boot(proc_root)?;
        if image.boot == here {
            return Ok(image.clone());
        }
        let kept = image.kept.clone().map(|kept| Kept {
            claimed: true,
            ..kept
        });
        let claimed = Image {
            boot: here,
            kept,
            ..image.clone()
        };
        self.describe(&self.directory(app, image.number), &claimed)?;
        Ok(claimed)
    }

    /// Where the program that an app runs comes from.
    #[must_use]
    pub fn origin(&self, app: &AppId, pid: u32, proc_root: &Path) -> Origin {
        let process = procs::identify(proc_root, pid);
        let running = process.and_then(|process| self.known(app, process));
        match running {
            None => Origin::Unknown,
            Some(running) => running.kept.map_or(Origin::Own, |went| Origin::Kept {
                update: went.update,
                stood: Duration::from_millis(went.on_unix_ms.saturating_sub(went.stopped_unix_ms)),
            }),
        }
    }
}

/// Raises the numbers that processes get into their upper half, once in a boot. A program that is kept over a
/// boot has its number again, and a boot gives away low ones.
pub(crate) fn raise_numbers(proc_root: &Path) -> Result<(), HostError> {
    let kernel = proc_root.join("sys/kernel");
    let read = |name: &str| -> Result<u32, HostError> {
        let file = kernel.join(name);
        let text = fs::read_to_string(&file).map_err(|e| HostError::file("read", &file, e))?;
        text.trim().parse().map_err(|_| {
            HostError::invalid(
                format!("read {}: `{}` is no number", file.display(), text.trim()),
                "nothing is lost: programs keep low numbers",
            )
        })
    };
    let (low, last) = (low_numbers(read("pid_max")?), read("ns_last_pid")?);
    if last >= low {
        return Ok(());
    }
    // Boots differ, so that two of them do not give away the same numbers.
    let spread = crc32fast::hash(boot(proc_root)?.as_bytes()) % (low / 2).max(1);
    let file = kernel.join("ns_last_pid");
    fs::write(&file, (low + spread).to_string()).map_err(|e| HostError::file("write", &file, e))
}

/// Numbers below are given away by a boot.
pub(super) const fn low_numbers(pid_max: u32) -> u32 {
    pid_max / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn what_is_not_as_it_was_written_is_found() {
        let directory = image_of(&[
            ("core-1.img", "a"),
            ("pages-1.img", "bc"),
            ("dump.log", "x"),
        ]);
        let at = |name: &str| directory.path().join(name);
        let kept = seal(directory.path(), 3).unwrap();
        assert_eq!((kept.update, kept.sums.len()), (3, 2));
        let said = || {
            let wanted = AtomicBool::new(false);
            let compared = compare(directory.path(), &kept, &wanted, "look");
            compared
                .err()
                .map_or(String::new(), |error| error.explain())
        };
        fs::write(at("dump.log"), "y").unwrap();
        assert_eq!(said(), "", "what CRIU says of its work is no part of it");
        fs::write(at("pages-1.img"), "bd").unwrap();
        assert!(said().contains("pages-1.img"), "{}", said());
        fs::write(at("pages-1.img"), "bc").unwrap();
        assert_eq!(said(), "");
        fs::remove_file(at("core-1.img")).unwrap();
        assert!(said().contains("core-1.img"), "{}", said());
        fs::write(at("core-1.img"), "a").unwrap();
        fs::write(at("more.img"), "").unwrap();
        assert!(said().contains("more.img"), "{}", said());
        let unwanted = compare(directory.path(), &kept, &AtomicBool::new(true), "look");
        let unwanted = unwanted.unwrap_err().explain();
        assert!(unwanted.contains("nobody wants to know"), "{unwanted}");
    }

    #[test]
    fn numbers_are_raised_once_in_a_boot() {
        let proc = tempfile::tempdir().unwrap();
        let kernel = proc.path().join("sys/kernel");
        fs::create_dir_all(kernel.join("random")).unwrap();
        let write = |name: &str, text: &str| fs::write(kernel.join(name), text).unwrap();
        write("pid_max", "4194304\n");
        write("ns_last_pid", "812\n");
        write("random/boot_id", "one\n");
        let last = || -> u32 {
            let text = fs::read_to_string(kernel.join("ns_last_pid")).unwrap();
            text.trim().parse().unwrap()
        };
        raise_numbers(proc.path()).unwrap();
        let one = last();
        assert!((2_097_152..3_145_728).contains(&one), "{one}");
        write("ns_last_pid", "2097999\n");
        raise_numbers(proc.path()).unwrap();
        assert_eq!(last(), 2_097_999, "they are high");
        write("ns_last_pid", "812\n");
        write("random/boot_id", "two\n");
        raise_numbers(proc.path()).unwrap();
        assert_ne!(last(), one);
    }
}
