//! Stopping an instance where it stands, and ending it there.
//!
//! A front has no privilege to write to control groups. The daemon opens the few files that a
//! fence needs and hands the descriptors over: the kernel asks for permission when a file is
//! opened. So a front can fence while the daemon is away.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::vitals;

/// Which files a fence consists of, in the order in which their descriptors are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hierarchy {
    /// `cgroup.freeze`, `cgroup.events`, `cgroup.procs`, `cgroup.kill`.
    V2,
    /// `freezer.state`, `cgroup.procs`.
    V1,
}

impl Hierarchy {
    /// How many descriptors it takes.
    #[must_use]
    pub const fn descriptors(self) -> usize {
        match self {
            Self::V2 => 4,
            Self::V1 => 2,
        }
    }
}

/// The files of one group.
#[derive(Debug)]
pub struct Fence {
    freeze: File,
    /// Of v2 alone; v1 says in the file itself how far it is.
    events: Option<File>,
    procs: File,
    kill: Option<File>,
}

impl Fence {
    /// From descriptors in the order of [`Hierarchy`].
    ///
    /// # Errors
    /// When there are fewer or more than the hierarchy has files.
    pub fn new(hierarchy: Hierarchy, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let count = descriptors.len();
        let mut files = descriptors.into_iter().map(File::from);
        let all = (files.next(), files.next(), files.next(), files.next());
        match (hierarchy, all) {
            (Hierarchy::V2, (Some(freeze), Some(events), Some(procs), Some(kill)))
                if count == 4 =>
            {
                Ok(Self {
                    freeze,
                    events: Some(events),
                    procs,
                    kill: Some(kill),
                })
            }
            (Hierarchy::V1, (Some(freeze), Some(procs), None, None)) => Ok(Self {
                freeze,
                events: None,
                procs,
                kill: None,
            }),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a fence of {hierarchy:?} does not consist of {count} descriptors"),
            )),
        }
    }

    /// What another process needs to have the same fence.
    #[must_use]
    pub fn parts(&self) -> (Hierarchy, Vec<BorrowedFd<'_>>) {
        let files = [
            Some(&self.freeze),
            self.events.as_ref(),
            Some(&self.procs),
            self.kill.as_ref(),
        ];
        let hierarchy = match self.events {
            Some(_) => Hierarchy::V2,
            None => Hierarchy::V1,
        };
        (
            hierarchy,
            files.into_iter().flatten().map(AsFd::as_fd).collect(),
        )
    }

    /// Asks the kernel to stop everybody in the group.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn freeze(&self) -> io::Result<()> {
        let word = if self.events.is_some() { "1" } else { "FROZEN" };
        (&self.freeze).write_all(word.as_bytes())
    }

    /// Lets everybody in the group go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn thaw(&self) -> io::Result<()> {
        let word = if self.events.is_some() { "0" } else { "THAWED" };
        (&self.freeze).write_all(word.as_bytes())
    }

    /// Whether the kernel was asked to stop the group, by whomever.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn is_asked(&self) -> io::Result<bool> {
        let text = read(&self.freeze)?;
        Ok(!matches!(text.trim(), "0" | "THAWED"))
    }

    /// Whether nobody in the group executes anything: all stand, or are on their way out.
    ///
    /// A dying process counts as not frozen until its memory is freed, which takes longer than
    /// anybody wants to wait.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn stands(&self) -> io::Result<bool> {
        let frozen = match &self.events {
            Some(events) => read(events)?.lines().any(|line| line == "frozen 1"),
            None => read(&self.freeze)?.trim() == "FROZEN",
        };
        Ok(frozen || self.is_over()?)
    }

    /// Whether everybody in the group is on their way out or gone, so that nobody needs to be stopped.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn is_over(&self) -> io::Result<bool> {
        // Who is in groups below this one is not listed.
        if !self.is_leaf() {
            return Ok(false);
        }
        let members = self.members()?;
        if !members.iter().all(|pid| vitals::is_ending(*pid)) {
            return Ok(false);
        }
        // Whoever was begun by one of them before its end is in the list by now.
        let later = self.members()?;
        Ok(later.iter().all(|pid| members.contains(pid)))
    }

    /// Whether there are no groups below this one, as far as that can be told.
    fn is_leaf(&self) -> bool {
        const LINKS_OF_LEAF: u64 = 2;
        let procs = format!("/proc/self/fd/{}", self.procs.as_raw_fd());
        let group = std::fs::read_link(procs).ok();
        let group = group.as_deref().and_then(Path::parent);
        let metadata = group.and_then(|group| std::fs::metadata(group).ok());
        metadata.is_some_and(|metadata| metadata.nlink() == LINKS_OF_LEAF)
    }

    /// Whether nobody is left.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.members()?.is_empty())
    }

    /// Ends everybody in the group, frozen or not.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kill(&self) -> io::Result<()> {
        if let Some(mut kill) = self.kill.as_ref() {
            return kill.write_all(b"1");
        }
        for pid in self.members()? {
            let pid = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            let Some(pid) = pid else { continue };
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // One that stands in v1's freezer dies only when it is let go; it executes nothing.
        self.thaw()
    }

    fn members(&self) -> io::Result<Vec<u32>> {
        let text = read(&self.procs)?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

fn read(file: &File) -> io::Result<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let offset = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let length = file.read_at(&mut buffer, offset)?;
        text.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if length == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_takes_the_files_of_its_hierarchy() {
        let files = |count| {
            let open = |_| OwnedFd::from(File::open("/dev/null").unwrap());
            (0..count).map(open).collect::<Vec<_>>()
        };
        for (hierarchy, count, good) in [
            (Hierarchy::V2, 4, true),
            (Hierarchy::V2, 3, false),
            (Hierarchy::V2, 5, false),
            (Hierarchy::V1, 2, true),
            (Hierarchy::V1, 4, false),
            (Hierarchy::V1, 0, false),
        ] {
            let made = Fence::new(hierarchy, files(count));
            assert_eq!(made.is_ok(), good, "{hierarchy:?} of {count}");
            assert!(!good || hierarchy.descriptors() == count);
        }
    }
}
