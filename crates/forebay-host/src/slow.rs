//! Writes that may take long.
//!
//! A memory limit below what is in use makes the kernel reclaim before the write returns,
//! for as long as that takes. The control period must not stand still meanwhile, so such
//! writes go to a thread of their own, one after another. A write that does not end at once is
//! an outcome "not yet"; the next try collects it.
//!
//! Where the kernel cannot make room, cgroup v2 ends a process of the group. A limit that
//! somebody lowers must not do that: room is made first, and a limit that would still be
//! below what is in use is refused, as v1 does by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::HostError;
use crate::files::{read_text, write_text};

/// Writes that may wait.
const JOBS_MAX: usize = 256;
/// How long a period waits for a write: most are over by then.
const PATIENCE: Duration = Duration::from_millis(3);
/// Attempts at reclaim that may bring nothing before a limit is refused.
const FRUITLESS_MAX: u32 = 3;
/// Attempts at reclaim for one write, also where the group takes as fast as it gives.
const ATTEMPTS_MAX: u32 = 64;

#[derive(Debug)]
struct Job {
    file: PathBuf,
    text: String,
}

#[derive(Debug)]
struct Done {
    file: PathBuf,
    text: String,
    result: Result<(), HostError>,
}

/// What became of a write so far.
#[derive(Debug)]
pub(crate) enum Progress {
    Done,
    Pending,
    Failed(HostError),
}

/// The thread, once it is needed.
#[derive(Debug, Default)]
pub(crate) struct SlowWriter {
    thread: Option<(SyncSender<Job>, Receiver<Done>)>,
    /// The last text asked for, by file, until it is collected.
    pending: BTreeMap<PathBuf, (String, Option<Result<(), HostError>>)>,
}

impl SlowWriter {
    /// Whether a write to this file is on its way: others to it have to queue behind.
    pub(crate) fn is_busy(&self, file: &Path) -> bool {
        self.pending.contains_key(file)
    }

    /// Asks for a write, or for what became of the same write asked for before.
    pub(crate) fn write(&mut self, file: &Path, text: &str) -> Progress {
        self.collect(Instant::now());
        let known = self
            .pending
            .get(file)
            .is_some_and(|(asked, _)| asked == text);
        if !known && let Err(error) = self.submit(file, text) {
            return Progress::Failed(error);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.pending.get_mut(file).map(|(_, result)| result.take());
            match answer {
                Some(None) if self.collect(deadline) => {}
                Some(None) => return Progress::Pending,
                Some(Some(result)) => {
                    self.pending.remove(file);
                    return match result {
                        Ok(()) => Progress::Done,
                        Err(error) => Progress::Failed(error),
                    };
                }
                None => return Progress::Done,
            }
        }
    }

    fn submit(&mut self, file: &Path, text: &str) -> Result<(), HostError> {
        if self.thread.is_none() {
            self.thread = Some(spawn()?);
        }
        let job = Job {
            file: file.to_owned(),
            text: text.to_owned(),
        };
        let sent = self
            .thread
            .as_ref()
            .is_some_and(|(jobs, _)| jobs.try_send(job).is_ok());
        if !sent {
            return Err(HostError::invalid(
                format!("write {text} to {}", file.display()),
                "too many slow writes wait already; this one is tried again",
            ));
        }
        self.pending
            .insert(file.to_owned(), (text.to_owned(), None));
        Ok(())
    }

    /// Takes in one finished write, waiting for it until `deadline`. False when none came.
    fn collect(&mut self, deadline: Instant) -> bool {
        let Some((_, done)) = &self.thread else {
            return false;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match done.recv_timeout(left) {
            Ok(done) => {
                if let Some((asked, result)) = self.pending.get_mut(&done.file)
                    && *asked == done.text
                {
                    *result = Some(done.result);
                }
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                self.thread = None;
                false
            }
        }
    }
}

fn spawn() -> Result<(SyncSender<Job>, Receiver<Done>), HostError> {
    let (jobs, jobs_in) = sync_channel::<Job>(JOBS_MAX);
    let (done_out, done) = sync_channel::<Done>(JOBS_MAX);
    std::thread::Builder::new()
        .name("slow-writes".to_owned())
        .spawn(move || {
            for job in jobs_in {
                let done = Done {
                    result: make_room(&job).and_then(|()| write_text(&job.file, &job.text)),
                    file: job.file,
                    text: job.text,
                };
                if done_out.send(done).is_err() {
                    break;
                }
            }
        })
        .map_err(|e| HostError::io("start the thread for slow writes", e))?;
    Ok((jobs, done))
}

/// Brings a group's use below the `memory.max` that is about to be written.
fn make_room(job: &Job) -> Result<(), HostError> {
    let hard = job
        .file
        .file_name()
        .is_some_and(|name| name == "memory.max");
    let (true, Ok(limit), Some(dir)) = (hard, job.text.parse::<u64>(), job.file.parent()) else {
        return Ok(());
    };
    let (current, reclaim) = (dir.join("memory.current"), dir.join("memory.reclaim"));
    if !current.exists() {
        return Ok(());
    }
    let mut before = u64::MAX;
    let mut fruitless = 0;
    for attempt in 0.. {
        let used: u64 = read_text(&current)?.trim().parse().unwrap_or(0);
        let Some(above) = used.checked_sub(limit).filter(|above| *above > 0) else {
            return Ok(());
        };
        fruitless = if used < before { 0 } else { fruitless + 1 };
        if fruitless >= FRUITLESS_MAX || attempt >= ATTEMPTS_MAX || !reclaim.exists() {
            return Err(HostError::invalid(
                format!("lower {} to {limit}", job.file.display()),
                format!(
                    "{used} bytes are in use and cannot be reclaimed, so the kernel would end \
                     a process: raise the ceiling, or give the host swap; it is tried again"
                ),
            ));
        }
        before = used;
        // The kernel says "try again" for less than asked; what was gained shows in the use.
        match write_text(&reclaim, &above.to_string()) {
            Err(error) if error.errno() == Some(Errno::AGAIN.raw_os_error()) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_write_is_collected_later() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        crate::fixtures::slow_file(&fifo);
        let mut writer = SlowWriter::default();
        assert!(matches!(writer.write(&fifo, "1"), Progress::Pending));
        assert!(writer.is_busy(&fifo));
        assert!(matches!(writer.write(&fifo, "1"), Progress::Pending));
        assert_eq!(std::fs::read_to_string(&fifo).unwrap(), "1\n");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(writer.write(&fifo, "1"), Progress::Done) {
            assert!(Instant::now() < deadline);
        }
        assert!(!writer.is_busy(&fifo));
    }

    #[test]
    fn a_quick_write_is_done_and_a_refused_one_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.max");
        let mut writer = SlowWriter::default();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match writer.write(&file, "1") {
                Progress::Failed(error) => {
                    assert!(error.explain().contains("memory.max"));
                    break;
                }
                Progress::Pending => assert!(Instant::now() < deadline),
                Progress::Done => panic!("there is no such file"),
            }
        }
        std::fs::write(&file, "").unwrap();
        while !matches!(writer.write(&file, "2"), Progress::Done) {
            assert!(Instant::now() < deadline);
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "2\n");
    }
}
