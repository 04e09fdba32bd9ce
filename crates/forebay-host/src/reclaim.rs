//! Making groups give memory back.
//!
//! The kernel reclaims while the writer waits, so requests go to a thread of their own, one
//! after another; how far each is can be seen at any time.
//!
//! v2 has memory.reclaim for it: asked for in pieces, so that a request ends when its time is
//! over, when the kernel says EAGAIN (it found less) and little more comes, or when it is
//! cancelled. Nothing stays behind.
//!
//! The kernel takes what was not accessed since it looked last, and where it never looked, that is
//! nothing: it goes through its lists, forgets what was accessed, and a moment later takes what has
//! not been accessed again, much of which is in use. So after each request the marks of access are
//! removed for the next one (`/proc/PID/clear_refs`), which then finds what was in use since.
//!
//! v1 has memory.force_empty, which takes all a group has: too much. Lowering
//! memory.limit_in_bytes below what is in use makes the kernel reclaim the difference before
//! the limit is in force, and refuse with EBUSY where it cannot; writing back what was there
//! ends it. The limit is never below what is in use, and stays for microseconds; still, a group
//! that grows just then and has nothing left to reclaim would lose a process, so there must be
//! more page cache than is asked for. Whoever restores after a crash in between finds the
//! original in the ledger.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use forebay_core::snapshot::{Reclaim, ReclaimState};
use forebay_core::units::Bytes;
use forebay_core::working_set::MemoryStat;

use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::groups;
use crate::memory::parse_stat;
use crate::mounts::{Controller, Hierarchies, Version};
use crate::worker::Worker;

/// Requests that may wait.
const JOBS_MAX: usize = 64;
/// What the kernel is asked for at once.
const PIECE: u64 = 8 << 20;
/// How long one request may take.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Pieces in a row that may bring little before a request ends.
const FRUITLESS_MAX: u32 = 3;
/// The most that one request of v1 is about: it cannot be interrupted.
const LIMIT_MAX: u64 = 64 << 20;
/// Page cache that must be there beyond what is asked for in v1.
const LIMIT_MARGIN: u64 = 16 << 20;
/// Groups whose processes map more keep their marks: removing them takes 10 ms for each 4 GiB or so, in
/// which these can map no memory.
const UNMARKED_MAX: u64 = 16 << 30;
/// And those with more processes.
const UNMARKED_PROCESSES_MAX: usize = 1024;
/// What clear_refs takes for pages of any kind.
const CLEAR_ALL: &str = "1";
/// The name of v1's limit.
pub(crate) const LIMIT_FILE: &str = "memory.limit_in_bytes";

/// How a host reclaims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    /// memory.reclaim of v2.
    Reclaim,
    /// memory.limit_in_bytes of v1, lowered for a moment.
    Limit,
}

/// How and in which hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReclaimWay {
    pub(crate) hierarchy: usize,
    pub(crate) means: Means,
}

impl ReclaimWay {
    /// Finds out what there is. `dir` gives our group's directory in a hierarchy.
    pub(crate) fn probe<'a>(
        hierarchies: &Hierarchies,
        dir: impl Fn(usize) -> Option<&'a Path>,
    ) -> Option<Self> {
        let (hierarchy, found) = hierarchies.of(Controller::Memory)?;
        let (means, file) = match found.version {
            Version::V2 => (Means::Reclaim, "memory.reclaim"),
            Version::V1 => (Means::Limit, LIMIT_FILE),
        };
        let there = dir(hierarchy)?.join(file).exists();
        there.then_some(Self { hierarchy, means })
    }
}

/// The requests and who works on them.
#[derive(Debug)]
pub(crate) struct Reclaimer {
    worker: Worker<Job>,
    /// Requests so far.
    count: u64,
    /// The last request to each app.
    requests: BTreeMap<AppId, Request>,
}

#[derive(Debug)]
struct Request {
    number: u64,
    asked: u64,
    progress: Arc<Progress>,
}

/// What the thread says while it works.
#[derive(Debug, Default)]
struct Progress {
    got: AtomicU64,
    /// 0 while it runs.
    state: AtomicU8,
    cancelled: AtomicBool,
}

const DONE: u8 = 1;
const SHORT: u8 = 2;
const FAILED: u8 = 3;

impl Progress {
    fn state(&self) -> ReclaimState {
        // What was got is written before the end is.
        match self.state.load(Ordering::Acquire) {
            0 => ReclaimState::Running,
            DONE => ReclaimState::Done,
            SHORT => ReclaimState::Short,
            _ => ReclaimState::Failed,
        }
    }
}

#[derive(Debug)]
struct Job {
    work: Work,
    progress: Arc<Progress>,
}

#[derive(Debug)]
enum Work {
    /// memory.reclaim in this group.
    Pieces { dir: PathBuf, bytes: u64 },
    /// memory.limit_in_bytes of this group, down and back.
    Limit(Lowering),
}

/// A limit that is lowered for a moment.
#[derive(Debug)]
pub(crate) struct Lowering {
    pub(crate) file: PathBuf,
    pub(crate) target: String,
    pub(crate) original: String,
    bytes: u64,
}

impl Lowering {
    /// Looks at a group of v1, and cuts what is asked for to what is safe.
    pub(crate) fn of(dir: &Path, bytes: u64) -> Result<Self, HostError> {
        let file = dir.join(LIMIT_FILE);
        let original = read_text(&file)?.trim().to_owned();
        let used = number(&dir.join("memory.usage_in_bytes"))?;
        let stat = parse_stat(&read_text(&dir.join("memory.stat"))?, Version::V1);
        let cache = stat.as_ref().map_or(0, |stat: &MemoryStat| stat.file().0);
        let safe = cache.saturating_sub(LIMIT_MARGIN).min(LIMIT_MAX).min(used);
        // Whole mebibytes, so that the ledger sees few different values.
        let bytes = bytes.min(safe) >> 20 << 20;
        if bytes == 0 {
            return Err(HostError::invalid(
                format!("lower {} for a moment", file.display()),
                format!(
                    "its page cache of {cache} bytes is too little to do that safely; v1 \
                     reclaims nothing else"
                ),
            ));
        }
        Ok(Self {
            target: (used - bytes).to_string(),
            file,
            original,
            bytes,
        })
    }
}

impl Default for Reclaimer {
    fn default() -> Self {
        Self {
            worker: Worker::new("reclaim", JOBS_MAX, work),
            count: 0,
            requests: BTreeMap::new(),
        }
    }
}

impl Reclaimer {
    /// How far the last request to an app is.
    pub(crate) fn of(&self, app: &AppId) -> Option<Reclaim> {
        let request = self.requests.get(app)?;
        let state = request.progress.state();
        Some(Reclaim {
            number: request.number,
            asked: Bytes(request.asked),
            got: Bytes(request.progress.got.load(Ordering::Relaxed)),
            state,
        })
    }

    /// Whether a request to an app is under way.
    pub(crate) fn is_running(&self, app: &AppId) -> bool {
        self.of(app)
            .is_some_and(|reclaim| reclaim.state == ReclaimState::Running)
    }

    /// Asks a group of v2 for memory.
    pub(crate) fn start(&mut self, app: &AppId, dir: &Path, bytes: u64) -> Result<(), HostError> {
        let dir = dir.to_owned();
        self.submit(app, bytes, Work::Pieces { dir, bytes })
    }

    /// Asks a group of v1.
    pub(crate) fn lower(&mut self, app: &AppId, lowering: Lowering) -> Result<(), HostError> {
        self.submit(app, lowering.bytes, Work::Limit(lowering))
    }

    fn submit(&mut self, app: &AppId, bytes: u64, work: Work) -> Result<(), HostError> {
        let attempt = || format!("reclaim {bytes} bytes of {app}");
        if self.is_running(app) {
            return Err(HostError::invalid(
                attempt(),
                "the request before is still under way; it is tried again",
            ));
        }
        let progress = Arc::new(Progress::default());
        let job = Job {
            work,
            progress: Arc::clone(&progress),
        };
        self.worker.submit(job, attempt())?;
        self.count += 1;
        let request = Request {
            number: self.count,
            asked: bytes,
            progress,
        };
        self.requests.insert(app.clone(), request);
        Ok(())
    }

    /// Gives up the request to an app. False while the kernel is still at it.
    pub(crate) fn cancel(&mut self, app: &AppId) -> bool {
        if let Some(request) = self.requests.get(app) {
            request.progress.cancelled.store(true, Ordering::Relaxed);
        }
        if self.is_running(app) {
            return false;
        }
        self.requests.remove(app);
        true
    }

    /// Gives up all requests and waits for the end of what the kernel is at.
    pub(crate) fn stop(&mut self) {
        for request in self.requests.values() {
            request.progress.cancelled.store(true, Ordering::Relaxed);
        }
        self.worker.stop();
    }
}

fn work(Job { work, progress }: Job) {
    let ended = match &work {
        _ if progress.cancelled.load(Ordering::Relaxed) => Ok(SHORT),
        Work::Pieces { dir, bytes } => {
            let ended = in_pieces(dir, *bytes, &progress);
            if ended.is_ok() {
                forget_accesses(dir, &progress);
            }
            ended
        }
        Work::Limit(lowering) => lower_for_a_moment(lowering, &progress),
    };
    let state = ended.unwrap_or_else(|error| {
        // A group that is gone has nothing left to give.
        if !error.is_gone() {
            tracing::warn!(reason = error.explain(), "memory not reclaimed");
        }
        FAILED
    });
    progress.state.store(state, Ordering::Release);
}

fn in_pieces(dir: &Path, bytes: u64, progress: &Progress) -> Result<u8, HostError> {
    let (reclaim, current) = (dir.join("memory.reclaim"), dir.join("memory.current"));
    let deadline = Instant::now() + TIME_MAX;
    let mut fruitless = 0;
    let mut got = 0;
    while got < bytes {
        if progress.cancelled.load(Ordering::Relaxed) || Instant::now() >= deadline {
            return Ok(SHORT);
        }
        let piece = (bytes - got).min(PIECE);
        let before = number(&current)?;
        let gained = match write_text(&reclaim, &piece.to_string()) {
            Ok(()) => piece,
            // Less than asked: what it was shows in the use, unless the group grew meanwhile.
            Err(error) if error.errno() == Some(libc::EAGAIN) => {
                before.saturating_sub(number(&current)?).min(piece)
            }
            Err(error) if error.errno() == Some(libc::EINTR) => 0,
            Err(error) => return Err(error),
        };
        got += gained;
        progress.got.store(got, Ordering::Relaxed);
        fruitless = if gained < piece / 4 { fruitless + 1 } else { 0 };
        if fruitless >= FRUITLESS_MAX {
            return Ok(SHORT);
        }
    }
    Ok(DONE)
}

/// Removes the marks of access of a group's processes, unless they map more than is quick to go through.
/// A help for the next request, so that what goes wrong is only said.
fn forget_accesses(dir: &Path, progress: &Progress) {
    let pids = groups::members(dir);
    // What several share is gone through in each.
    let mapped = pids.iter().filter_map(|pid| resident(*pid)).sum::<u64>();
    if mapped > UNMARKED_MAX || pids.len() > UNMARKED_PROCESSES_MAX {
        return;
    }
    for pid in pids {
        if progress.cancelled.load(Ordering::Relaxed) {
            return;
        }
        let file = PathBuf::from(format!("/proc/{pid}/clear_refs"));
        match write_text(&file, CLEAR_ALL) {
            Err(error) if !error.is_gone() && error.errno() != Some(libc::ESRCH) => {
                tracing::debug!(reason = error.explain(), "accesses not forgotten");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Bytes that a process has in memory; none of one that is gone.
fn resident(pid: u32) -> Option<u64> {
    let statm = read_text(Path::new(&format!("/proc/{pid}/statm"))).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

fn lower_for_a_moment(lowering: &Lowering, progress: &Progress) -> Result<u8, HostError> {
    let used = lowering.file.with_file_name("memory.usage_in_bytes");
    let before = number(&used)?;
    let lowered = write_text(&lowering.file, &lowering.target);
    // Refused or not: nothing of it may stay.
    write_text(&lowering.file, &lowering.original)?;
    let got = before.saturating_sub(number(&used)?);
    progress
        .got
        .store(got.min(lowering.bytes), Ordering::Relaxed);
    match lowered {
        Ok(()) => Ok(DONE),
        Err(error) if error.errno() == Some(libc::EBUSY) => Ok(SHORT),
        Err(error) => Err(error),
    }
}

fn number(file: &Path) -> Result<u64, HostError> {
    let text = read_text(file)?;
    text.trim().parse().map_err(|_| {
        HostError::invalid(
            format!("read {}: `{}` is no number", file.display(), text.trim()),
            "report this as a bug, with the kernel's version",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "total_inactive_anon 0\ntotal_active_anon 0\ntotal_inactive_file 94371840\n\
         total_active_file 0\ntotal_unevictable 0\n";

    fn group_of_v1(stat: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        write(LIMIT_FILE, "9223372036854771712\n");
        write("memory.usage_in_bytes", "104857600\n");
        write("memory.stat", stat);
        dir
    }

    #[test]
    fn a_limit_is_lowered_by_no_more_than_is_safe() {
        let dir = group_of_v1(STAT);
        let target = |bytes: u64| Lowering::of(dir.path(), bytes).unwrap().target;
        assert_eq!(target(10 << 20), (90u64 << 20).to_string());
        // 90 MiB of page cache, 64 MiB at once.
        assert_eq!(target(1 << 30), (36u64 << 20).to_string());
        let scant = group_of_v1(&STAT.replace("94371840", "1048576"));
        let error = Lowering::of(scant.path(), 1 << 20).unwrap_err();
        assert!(
            error.explain().contains("page cache"),
            "{}",
            error.explain()
        );
    }

    #[test]
    fn a_lowered_limit_is_written_back() {
        let dir = group_of_v1(STAT);
        let mut reclaimer = Reclaimer::default();
        let app: AppId = "batch".parse().unwrap();
        let lowering = Lowering::of(dir.path(), 8 << 20).unwrap();
        reclaimer.lower(&app, lowering).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while reclaimer.is_running(&app) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        reclaimer.stop();
        let reclaim = reclaimer.of(&app).unwrap();
        assert_eq!(reclaim.asked, Bytes::mib(8));
        assert_eq!(reclaim.state, ReclaimState::Done);
        let limit = std::fs::read_to_string(dir.path().join(LIMIT_FILE)).unwrap();
        assert_eq!(limit.trim(), "9223372036854771712");
    }

    #[test]
    fn one_request_at_a_time_and_a_cancelled_one_ends() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("memory.reclaim");
        crate::fixtures::slow_file(&fifo);
        std::fs::write(dir.path().join("memory.current"), "104857600\n").unwrap();
        let mut reclaimer = Reclaimer::default();
        let app: AppId = "batch".parse().unwrap();
        reclaimer.start(&app, dir.path(), 1 << 40).unwrap();
        let mut pieces = std::fs::File::open(&fifo).unwrap();
        assert!(reclaimer.is_running(&app));
        let again = reclaimer.start(&app, dir.path(), 1).unwrap_err();
        assert!(again.explain().contains("batch"), "{}", again.explain());
        assert!(!reclaimer.cancel(&app), "the kernel is still at it");
        // Lets the piece through that it waits with; no other follows.
        let bytes = std::io::copy(&mut pieces, &mut std::io::sink()).unwrap();
        reclaimer.stop();
        let reclaim = reclaimer.of(&app).unwrap();
        assert_eq!(reclaim.state, ReclaimState::Short);
        assert!(reclaim.got >= Bytes::mib(8) && reclaim.got < reclaim.asked);
        assert!(bytes > 0, "the kernel was asked");
    }

    #[test]
    fn accesses_are_forgotten_after_a_request() {
        let referenced = |pid: u32| {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let line = rollup
                .lines()
                .find_map(|line| line.strip_prefix("Referenced:"));
            line.unwrap()
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap()
        };
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Once it has answered it waits, and touches nothing.
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, b"x").unwrap();
        let mut answer = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
        let before = referenced(child.id());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        std::fs::write(dir.path().join("memory.current"), "1048576\n").unwrap();
        std::fs::write(dir.path().join("memory.reclaim"), "").unwrap();
        let mut reclaimer = Reclaimer::default();
        let app: AppId = "batch".parse().unwrap();
        reclaimer.start(&app, dir.path(), 4096).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while reclaimer.is_running(&app) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        reclaimer.stop();
        let after = referenced(child.id());
        drop(stdin);
        child.wait().unwrap();
        assert!(
            before > 100 && after < before / 4,
            "{before} kB, then {after}"
        );
    }
}
