//! How far a porter is with memory that comes after its process, beside the images of that: for whoever keeps the
//! process that lends it, and for daemons that come later.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use forebay_core::units::Bytes;
use serde::{Deserialize, Serialize};

use super::porter::{end, landed};
use super::store::boot;
use crate::error::HostError;
use crate::ledger::Process;
use crate::{procs, regular};

const FILE: &str = "owed.json";
const BYTES_MAX: u64 = 64 << 10;
/// How much is to come still, which is no longer true a moment later.
const LEFT: &str = "owed.left";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// What is written down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Noted {
    /// A porter is at work.
    Comes { porter: Process, boot: String },
    /// All of it is there.
    Whole,
    /// The process was ended: why.
    Lost(String),
}

/// What of a process's memory is still to come from where it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owes {
    /// So much.
    Comes(Bytes),
    /// Nothing: all of it is there, or its process ended by itself.
    Whole,
    /// Nothing more will come, and the process was ended: why.
    Lost(String),
}

/// What is seen of it.
enum Seen {
    AtWork(Bytes),
    /// The porter is gone, and the process is not yet.
    Alone(Process, Bytes),
    Over(Owes),
    /// Nothing was to come, or somebody took note of how that ended.
    Nothing,
}

/// This process is the porter from now on.
pub(super) fn begin(images: &Path) -> Result<(), HostError> {
    let proc_root = Path::new("/proc");
    let porter = procs::identify(proc_root, std::process::id());
    let porter = porter.ok_or_else(|| {
        HostError::missing("find this process in /proc".to_owned(), "mount /proc")
    })?;
    let boot = boot(proc_root)?;
    put(images, &Noted::Comes { porter, boot })
}

pub(super) fn put(images: &Path, noted: &Noted) -> Result<(), HostError> {
    let file = images.join(FILE);
    let fail = |error| HostError::file("write", &file, io::Error::other(error));
    let text = serde_json::to_vec(noted).map_err(|e| fail(e.to_string()))?;
    regular::replace(&file, &text, 0o600).map_err(|e| fail(e.to_string()))
}

/// A hint for whoever looks: without it they see that of before.
pub(super) fn say_left(images: &Path, left: Bytes) {
    let (file, new) = (images.join(LEFT), images.join("owed.left.new"));
    fs::write(&new, left.0.to_string())
        .and_then(|()| fs::rename(&new, &file))
        .ok();
}

fn noted(images: &Path) -> Result<Option<Noted>, HostError> {
    let file = images.join(FILE);
    let fail = |error| HostError::file("read", &file, error);
    match regular::read(&file, BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(error)),
        Ok((text, _)) => {
            let noted = serde_json::from_slice(&text);
            noted.map(Some).map_err(|e| fail(io::Error::other(e)))
        }
    }
}

fn see(images: &Path) -> Result<Seen, HostError> {
    let proc_root = Path::new("/proc");
    // Whether a process ended is looked at before what it may have said last.
    let was_landed = landed(images);
    for is_last in [false, true] {
        let (porter, at) = match noted(images)? {
            None => return Ok(Seen::Nothing),
            Some(Noted::Whole) => return Ok(Seen::Over(Owes::Whole)),
            Some(Noted::Lost(why)) => return Ok(Seen::Over(Owes::Lost(why))),
            Some(Noted::Comes { porter, boot }) => (porter, boot),
        };
        if boot(proc_root)? != at {
            let why = "its host began anew".to_owned();
            return Ok(Seen::Over(Owes::Lost(why)));
        }
        let left = fs::read_to_string(images.join(LEFT)).unwrap_or_default();
        let left = Bytes(left.trim().parse().unwrap_or_default());
        if procs::is_alive(proc_root, porter) {
            return Ok(Seen::AtWork(left));
        }
        if let (true, Some(process)) = (is_last, was_landed) {
            return Ok(Seen::Alone(process, left));
        }
    }
    let why = "whoever filled its memory in was ended".to_owned();
    Ok(Seen::Over(Owes::Lost(why)))
}

/// What is still to come of the memory of the process that was made of these images, or how that ended, until somebody
/// took note of it.
///
/// # Errors
/// When that cannot be found out.
pub fn owes(images: &Path) -> Result<Option<Owes>, HostError> {
    Ok(match see(images)? {
        Seen::AtWork(left) | Seen::Alone(_, left) => Some(Owes::Comes(left)),
        Seen::Over(over) => Some(over),
        Seen::Nothing => None,
    })
}

/// Somebody took note of how it ended.
///
/// # Errors
/// When that cannot be written.
pub fn forget(images: &Path) -> Result<(), HostError> {
    let file = images.join(FILE);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::file("remove", &file, error))
        }
        _ => Ok(()),
    }
}

/// Waits until nothing is to come any more of the memory of the process that was made of these images, and sees to it
/// that it does not run on where some of it is lost.
///
/// # Errors
/// When that cannot be found out.
pub fn await_whole(images: &Path) -> Result<Option<Owes>, HostError> {
    loop {
        match see(images)? {
            Seen::AtWork(_) => {}
            // Its guard ends it, unless that was ended as well.
            Seen::Alone(process, _) => end(process),
            Seen::Over(over) => return Ok(Some(over)),
            Seen::Nothing => return Ok(None),
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::porter::note;
    use super::*;

    #[test]
    fn whoever_looks_learns_how_far_a_porter_is_and_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path();
        assert_eq!(owes(images).unwrap(), None);
        begin(images).unwrap();
        say_left(images, Bytes(7));
        assert_eq!(owes(images).unwrap(), Some(Owes::Comes(Bytes(7))));
        put(images, &Noted::Whole).unwrap();
        assert_eq!(await_whole(images).unwrap(), Some(Owes::Whole));
        let lost = "it is cut".to_owned();
        put(images, &Noted::Lost(lost.clone())).unwrap();
        assert_eq!(await_whole(images).unwrap(), Some(Owes::Lost(lost)));

        // A porter that is gone, without what it made and with it.
        let own = procs::identify(Path::new("/proc"), std::process::id()).unwrap();
        let porter = Process {
            start_time: own.start_time + 1,
            ..own
        };
        let here = boot(Path::new("/proc")).unwrap();
        put(images, &Noted::Comes { porter, boot: here }).unwrap();
        assert!(matches!(await_whole(images).unwrap(), Some(Owes::Lost(_))));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        note(images, child.id()).unwrap();
        assert_eq!(owes(images).unwrap(), Some(Owes::Comes(Bytes(7))));
        let waited = std::thread::scope(|scope| {
            let waits = scope.spawn(|| await_whole(images));
            // It would read zeros, and nobody else ends it.
            child.wait().unwrap();
            waits.join().unwrap()
        });
        assert!(matches!(waited.unwrap(), Some(Owes::Lost(_))));

        let boot = "another".to_owned();
        put(images, &Noted::Comes { porter: own, boot }).unwrap();
        assert!(matches!(owes(images).unwrap(), Some(Owes::Lost(why)) if why.contains("anew")));
        fs::write(images.join(FILE), "?").unwrap();
        owes(images).unwrap_err();
        for _ in 0..2 {
            forget(images).unwrap();
            assert_eq!(await_whole(images).unwrap(), None);
        }
    }
}
