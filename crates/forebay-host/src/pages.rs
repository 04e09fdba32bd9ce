//! Bringing an app's pages to the NUMA nodes that it is to have.
//!
//! Problem: when cpuset.mems gets narrower, cgroup v2 moves everything before the write returns,
//! which is seconds for a large app, and the control period would stand still; v1 moves nothing.
//! The same goes for a process that enters a narrower group.
//!
//! Approach: cpuset.mems first holds the old nodes and the new ones. A thread then moves pages in
//! pieces with move_pages(2), resting as long as it worked, and how far it is can be seen at any
//! time. When it has been through, the old nodes are taken away, and little is left to the kernel.
//!
//! Pages that several processes map, and page cache that nobody maps, stay where they are.
//!
//! Source: move_pages(2), set_mempolicy(2); kernel/cgroup/cpuset.c for what the kernel does itself.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use forebay_core::idset::NodeSet;
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::{PageMove, PageMoveState};
use forebay_core::units::Bytes;

use crate::apply::Refusal;
use crate::error::HostError;
use crate::groups;
use crate::host::LinuxHost;
use crate::knobs;
use crate::observe::read_knob;
use crate::procs;
use crate::worker::Worker;

/// Apps whose pages may wait to be moved.
const JOBS_MAX: usize = 64;
/// Pages that are looked at and moved at once.
const PIECE: usize = 512;
/// How long the pages of one app may take.
const TIME_MAX: Duration = Duration::from_secs(600);
/// A process with less than this is left to the kernel.
const SMALL: u64 = 16 << 20;
/// The longest rest after a piece.
const REST_MAX: Duration = Duration::from_millis(20);

/// The moves and the thread, once it is needed.
#[derive(Debug)]
pub(crate) struct PageMover {
    worker: Worker<Job>,
    /// The last move of each app.
    moves: BTreeMap<AppId, Move>,
}

#[derive(Debug)]
struct Move {
    to: NodeSet,
    /// The nodes that pages left are still the app's.
    is_open: bool,
    progress: Arc<Progress>,
}

#[derive(Debug)]
struct Job {
    /// The nodes they leave.
    from: NodeSet,
    /// The group whose processes it is about.
    dir: PathBuf,
    proc_root: PathBuf,
    to: NodeSet,
    progress: Arc<Progress>,
}

/// What the thread says while it works, in bytes.
#[derive(Debug, Default)]
struct Progress {
    mapped: AtomicU64,
    looked_at: AtomicU64,
    moved: AtomicU64,
    stayed: AtomicU64,
    /// 0 while it runs.
    state: AtomicU8,
    cancelled: AtomicBool,
}

const DONE: u8 = 1;
const CUT_SHORT: u8 = 2;

impl Progress {
    fn state(&self) -> PageMoveState {
        match self.state.load(Ordering::Acquire) {
            0 => PageMoveState::Running,
            DONE => PageMoveState::Done,
            _ => PageMoveState::CutShort,
        }
    }
}

impl Default for PageMover {
    fn default() -> Self {
        Self {
            worker: Worker::new("page-mover", JOBS_MAX, work),
            moves: BTreeMap::new(),
        }
    }
}

impl PageMover {
    /// How far the last move of an app is.
    pub(crate) fn of(&self, app: &AppId) -> Option<PageMove> {
        let Move { to, progress, .. } = self.moves.get(app)?;
        let state = progress.state();
        let bytes = |count: &AtomicU64| Bytes(count.load(Ordering::Relaxed));
        Some(PageMove {
            to: *to,
            mapped: bytes(&progress.mapped),
            looked_at: bytes(&progress.looked_at),
            moved: bytes(&progress.moved),
            stayed: bytes(&progress.stayed),
            state,
        })
    }

    /// Begins to bring the pages of a group's processes from some nodes to others.
    fn start(
        &mut self,
        app: &AppId,
        (dir, proc_root): (&Path, &Path),
        (from, to): (NodeSet, NodeSet),
    ) -> Result<(), HostError> {
        let progress = Arc::new(Progress::default());
        let job = Job {
            from,
            dir: dir.to_owned(),
            proc_root: proc_root.to_owned(),
            to,
            progress: Arc::clone(&progress),
        };
        let attempt = format!("move pages of {app} to node(s) {to}");
        self.worker.submit(job, attempt)?;
        let begun = Move {
            to,
            is_open: true,
            progress,
        };
        self.moves.insert(app.clone(), begun);
        Ok(())
    }

    /// Whether the nodes that an app's pages left are still to be taken away.
    fn is_open(&self, app: &AppId) -> bool {
        self.moves.get(app).is_some_and(|last| last.is_open)
    }

    fn close(&mut self, app: &AppId) {
        if let Some(last) = self.moves.get_mut(app) {
            last.is_open = false;
        }
    }

    /// Gives up the move of an app, which ends after the piece at hand.
    pub(crate) fn cancel(&mut self, app: &AppId) {
        if let Some(Move { progress, .. }) = self.moves.remove(app) {
            progress.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Gives up all moves and waits for the piece at hand.
    pub(crate) fn stop(&mut self) {
        for Move { progress, .. } in self.moves.values() {
            progress.cancelled.store(true, Ordering::Relaxed);
        }
        self.worker.stop();
    }
}

fn work(job: Job) {
    let state = match bring(&job) {
        Some(()) => DONE,
        None => CUT_SHORT,
    };
    job.progress.state.store(state, Ordering::Release);
}

/// None when it was cancelled or took too long.
fn bring(job: &Job) -> Option<()> {
    let deadline = Instant::now() + TIME_MAX;
    let pids = groups::members(&job.dir);
    // Whoever ends meanwhile has no pages.
    let maps = pids.iter().filter_map(|pid| {
        let text = fs::read_to_string(job.proc_root.join(format!("{pid}/maps"))).ok()?;
        Some((*pid, parse_maps(&text)))
    });
    let maps: Vec<(u32, Vec<Range<usize>>)> = maps.collect();
    let sizes = maps.iter().flat_map(|(_, ranges)| ranges).map(Range::len);
    job.progress
        .mapped
        .store(bytes(sizes.sum()), Ordering::Relaxed);
    let page = rustix::param::page_size();
    for (pid, ranges) in maps {
        for range in ranges {
            let mut addresses = range.step_by(page).peekable();
            while addresses.peek().is_some() {
                if job.progress.cancelled.load(Ordering::Relaxed) || Instant::now() >= deadline {
                    return None;
                }
                let began = Instant::now();
                let piece: Vec<usize> = addresses.by_ref().take(PIECE).collect();
                let gone = bring_piece(job, pid, &piece, page).is_none();
                std::thread::sleep(began.elapsed().min(REST_MAX));
                if gone {
                    break;
                }
            }
        }
        // Some kernels (6.1) do not show move_pages what automatic balancing has marked.
        if let Some(stayed) = migrate_pages(pid, job.from, job.to) {
            let count = &job.progress.stayed;
            count.fetch_add(bytes(stayed * page), Ordering::Relaxed);
        }
    }
    Some(())
}

/// Looks at pages and moves those that are elsewhere. None when the process is gone.
fn bring_piece(job: &Job, pid: u32, piece: &[usize], page: usize) -> Option<()> {
    let add = |count: &AtomicU64, pages: usize| {
        count.fetch_add(bytes(pages * page), Ordering::Relaxed);
    };
    add(&job.progress.looked_at, piece.len());
    let on = move_pages(pid, piece, None)?;
    let is_elsewhere = |node: i32| usize::try_from(node).is_ok_and(|node| !job.to.contains(node));
    let elsewhere = piece.iter().zip(on).filter(|(_, node)| is_elsewhere(*node));
    let elsewhere: Vec<usize> = elsewhere.map(|(address, _)| *address).collect();
    if elsewhere.is_empty() {
        return Some(());
    }
    let nodes: Vec<i32> = job
        .to
        .iter()
        .filter_map(|node| node.try_into().ok())
        .collect();
    let targets: Vec<i32> = nodes
        .iter()
        .copied()
        .cycle()
        .take(elsewhere.len())
        .collect();
    move_pages(pid, &elsewhere, Some(&targets))?;
    // A huge page moves with the first of its small ones: only a second look tells.
    let now = move_pages(pid, &elsewhere, None)?;
    let stayed = now.into_iter().filter(|node| is_elsewhere(*node)).count();
    add(&job.progress.moved, elsewhere.len() - stayed);
    Some(())
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// What a process maps and may have pages in.
fn parse_maps(text: &str) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let access = fields.next()?;
        // What cannot be accessed was only reserved, and the kernel's own pages stay.
        let is_kernels = matches!(
            fields.nth(3),
            Some("[vvar]" | "[vvar_vclock]" | "[vdso]" | "[vsyscall]")
        );
        let address = |text| usize::from_str_radix(text, 16).ok();
        (!access.starts_with("---") && !is_kernels).then_some(address(start)?..address(end)?)
    };
    text.lines().filter_map(range).collect()
}

/// Only pages that no other process maps (linux/mempolicy.h; libc does not have it).
const MPOL_MF_MOVE: libc::c_int = 1 << 1;

/// On which node each page is, or where it went: negative numbers are errors of that page.
/// None when the process is gone, or may not be touched.
#[expect(unsafe_code, reason = "rustix has no move_pages")]
fn move_pages(pid: u32, pages: &[usize], to: Option<&[i32]>) -> Option<Vec<i32>> {
    let mut status = vec![-libc::ENOENT; pages.len()];
    assert!(
        to.is_none_or(|to| to.len() == pages.len()),
        "a node for each page"
    );
    // SAFETY: the kernel reads `pages.len()` addresses, and as many nodes where they are given,
    // and writes as many states; it dereferences none of the addresses in this process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            libc::c_long::from(pid),
            pages.len(),
            pages.as_ptr(),
            to.map_or(std::ptr::null(), <[i32]>::as_ptr),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    // A positive number counts pages that were not moved.
    (result >= 0).then_some(status)
}

impl LinuxHost {
    /// Gives an app its nodes; where that takes some away, its pages leave them first.
    pub(crate) fn set_mems(&mut self, app: &AppId, nodes: NodeSet) -> Result<(), Refusal> {
        let setting = Setting::Mems(nodes);
        let under_way = self.pages.of(app).filter(|last| last.to == nodes);
        match under_way.map(|last| last.state) {
            Some(PageMoveState::Running) => return Err(Refusal::Pending),
            Some(_) if self.pages.is_open(app) => {
                let wrote = self.write_knob(app, &setting);
                if !matches!(wrote, Err(Refusal::Pending)) {
                    self.pages.close(app);
                }
                return wrote;
            }
            _ => self.pages.cancel(app),
        }
        let held = self.nodes_held(app);
        let Some(entry) = self.entries.get_mut(app) else {
            return Err(Refusal::Unsupported);
        };
        let came = std::mem::take(&mut entry.pages_unsettled);
        let dir = entry
            .group
            .as_ref()
            .and_then(|group| Some(group.all_dirs().last()?.to_path_buf()));
        let (Some(dir), Some(held)) = (dir, held) else {
            return self.write_knob(app, &setting);
        };
        if !came && held.is_subset(&nodes) || groups::members(&dir).is_empty() {
            return self.write_knob(app, &setting);
        }
        let both = held.union(&nodes);
        if both != held {
            self.write_knob(app, &Setting::Mems(both))?;
        }
        let from = self.topology.memory_nodes().difference(&nodes);
        let proc_root = &self.options.roots.proc;
        self.pages.start(app, (&dir, proc_root), (from, nodes))?;
        Err(Refusal::Pending)
    }

    /// Before large processes enter a group whose nodes are few, lets it have all: the kernel
    /// would bring their pages along while the period waits.
    pub(crate) fn open_nodes(&mut self, app: &AppId, pids: &[u32]) -> Result<(), Refusal> {
        let all = self.topology.memory_nodes();
        let held = self.nodes_held(app);
        let Some(held) = held.filter(|held| all.len() > 1 && !all.is_subset(held)) else {
            return Ok(());
        };
        let page = rustix::param::page_size() as u64;
        let is_large = |pid: &u32| {
            let stat = procs::read_stat(&self.options.roots.proc, *pid);
            stat.is_some_and(|stat| stat.resident_pages.saturating_mul(page) > SMALL)
        };
        if pids.iter().any(is_large) {
            self.pages.cancel(app);
            self.write_knob(app, &Setting::Mems(held.union(&all)))?;
        }
        if let Some(entry) = self.entries.get_mut(app) {
            entry.pages_unsettled = true;
        }
        Ok(())
    }

    /// The nodes that an app's group has now; none where it has no such knob.
    fn nodes_held(&self, app: &AppId) -> Option<NodeSet> {
        let way = self.ways.of(Knob::Mems)?;
        let group = self.entries.get(app)?.group.as_ref()?;
        let (texts, period) = read_knob(group, Knob::Mems, way)?;
        match knobs::parse(Knob::Mems, way, &texts, period) {
            Some(Setting::Mems(nodes)) => Some(nodes),
            // Nothing was set: all of the parent's.
            _ => Some(self.topology.memory_nodes()),
        }
    }
}

/// Moves all pages of a process at once; how many could not be. None when the process is gone.
#[expect(unsafe_code, reason = "rustix has no migrate_pages")]
fn migrate_pages(pid: u32, from: NodeSet, to: NodeSet) -> Option<usize> {
    const WORD: usize = libc::c_ulong::BITS as usize;
    let mask = |nodes: NodeSet| {
        let mut words = vec![0 as libc::c_ulong; NodeSet::IDS_MAX.div_ceil(WORD)];
        for node in nodes.iter() {
            words[node / WORD] |= 1 << (node % WORD);
        }
        words
    };
    let (from, to) = (mask(from), mask(to));
    // SAFETY: the kernel reads one bit less than it is told from each mask, and both have as many.
    let result = unsafe {
        libc::syscall(
            libc::SYS_migrate_pages,
            libc::c_long::from(pid),
            NodeSet::IDS_MAX + 1,
            from.as_ptr(),
            to.as_ptr(),
        )
    };
    usize::try_from(result).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_reserved_is_not_looked_at() {
        let text = "\
55d0c2a00000-55d0c2a02000 r-xp 00000000 fe:00 1234 /usr/bin/true
7f0000000000-7f0010000000 ---p 00000000 00:00 0
7f1000000000-7f1000001000 rw-p 00000000 00:00 0 [heap]
7ffd1c5f9000-7ffd1c5fd000 r--p 00000000 00:00 0 [vvar]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
";
        let expected = [
            0x55d0_c2a0_0000..0x55d0_c2a0_2000,
            0x7f10_0000_0000..0x7f10_0000_1000,
        ];
        assert_eq!(parse_maps(text), expected);
    }

    #[test]
    fn own_pages_are_found_on_a_node() {
        let page = rustix::param::page_size();
        let memory = vec![1_u8; 4 * page];
        let address = (memory.as_ptr() as usize).next_multiple_of(page);
        let Some(on) = move_pages(std::process::id(), &[address], None) else {
            println!("SKIPPED: own_pages_are_found_on_a_node: this kernel has no NUMA");
            return;
        };
        assert!(matches!(on.as_slice(), [node] if *node >= 0), "{on:?}");
        assert_eq!(memory[page], 1);
    }
}
