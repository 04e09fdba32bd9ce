//! Gives a process that CRIU restored its memory: what it asks for at once, the rest behind its back.
//!
//! # Problem
//!
//! All that a process has in memory is here when it begins, but copying it into the process takes as
//! long as copying did before it was frozen, and it would stand for so long.
//!
//! # Approach
//!
//! CRIU restores it without its private anonymous memory, and gives a descriptor (`userfaultfd`) by
//! which the kernel says where the process runs into a page that is missing. That page is filled in
//! first; in between, the others are, until none is missing. What the process does to its memory
//! meanwhile (it forks, gives areas up, moves them) the kernel tells as well, and waits until it was heard.
//!
//! # Properties
//!
//! - A page is filled in once. What the process gave up is not filled in any more: it reads zeros there.
//! - No other host is needed: the source may end once the process runs.
//! - The process does not outlive this before it is done, when the kernel would give it zeros for pages
//!   that are missing: see [`Guard`].
//!
//! Source: the kernel's admin-guide/mm/userfaultfd; the words on CRIU's socket, criu(8), lazy-pages.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use forebay_core::units::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::assemble::{Run, Runs};
use super::guard::Guard;
use super::precopy::page_size;
use super::precopy::userfault::{Event, Range, Userfault};

/// What CRIU says when the process is whole.
const FINISHED: u32 = 0x5253_5446;
/// Filled in at once where somebody waits for a page, and where nobody does.
const URGENT: u64 = 32 << 10;
const CHUNK: u64 = 256 << 10;
/// Processes that may come of one by forks while it is filled in.
const CONTEXTS_MAX: usize = 1024;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// What was filled in.
    pub bytes: Bytes,
    /// How often the process waited for a page.
    pub faults: u64,
    /// From the moment it was whole until nothing was missing.
    pub took: Duration,
}

/// One address space, and what is missing in it.
#[derive(Debug)]
struct Context {
    pid: u32,
    userfault: Userfault,
    missing: Missing,
    /// Since it may run: before that, it cannot read anything.
    guard: Option<Guard>,
}

/// Fills in what processes miss.
#[derive(Debug)]
pub(super) struct Filler {
    source: Source,
    page: u64,
    /// What each process misses, until CRIU gave its descriptor.
    wanted: BTreeMap<u32, Runs>,
    contexts: Vec<Context>,
    /// Since a process forked, pages may be needed more than once.
    is_shared: bool,
    filled: Filled,
}

impl Filler {
    pub(super) fn new(
        (file, length): (File, u64),
        wanted: BTreeMap<u32, Runs>,
    ) -> io::Result<Self> {
        Ok(Self {
            source: Source::new(file, length)?,
            page: page_size(),
            wanted,
            contexts: Vec::new(),
            is_shared: false,
            filled: Filled::default(),
        })
    }

    /// Takes descriptors from CRIU, and serves faults, until the process is whole.
    pub(super) fn begin(&mut self, criu: &UnixStream) -> io::Result<()> {
        loop {
            self.serve(Some(criu.as_fd()), None)?;
            if !is_readable(criu.as_fd())? {
                continue;
            }
            let word = read_word(criu)?;
            if word == FINISHED {
                return Ok(());
            }
            // A process that has ended already, as a zombie, has no memory.
            if word.cast_signed() < 0 {
                continue;
            }
            let pid = word;
            let runs = self.wanted.remove(&pid).ok_or_else(|| {
                io::Error::other(format!(
                    "CRIU restores process {pid}, of which nothing came"
                ))
            })?;
            self.contexts.push(Context {
                pid,
                userfault: Userfault::ready(receive(criu)?),
                missing: Missing(runs),
                guard: None,
            });
        }
    }

    /// Fills in all that is missing. If that fails, or this ends before it is done, the process ends.
    pub(super) fn finish(mut self) -> io::Result<Filled> {
        for context in &mut self.contexts {
            if context.guard.is_some() {
                continue;
            }
            let fds = [context.userfault.as_fd()];
            context.guard = Some(Guard::new(context.pid, &fds)?);
        }
        let began = Instant::now();
        loop {
            self.serve(None, Some(Duration::ZERO))?;
            // What misses nothing any more is let go of.
            let whole = |context: &mut Context| context.missing.is_empty();
            for context in self.contexts.extract_if(.., whole) {
                context.guard.map_or(Ok(()), Guard::dismiss)?;
            }
            let Some(at) = self.contexts.len().checked_sub(1) else {
                break;
            };
            let Some(piece) = self.contexts[at].missing.first(CHUNK) else {
                continue;
            };
            self.fill(at, piece)?;
        }
        self.filled.took = began.elapsed();
        Ok(self.filled)
    }

    /// Hears all that the kernel tells; without a bound, waits until it tells something or `also` can be
    /// read.
    fn serve(&mut self, also: Option<BorrowedFd<'_>>, bound: Option<Duration>) -> io::Result<()> {
        let mut polled: Vec<PollFd<'_>> = self
            .contexts
            .iter()
            .map(|context| context.userfault.as_fd())
            .chain(also)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let bound = bound.map(Timespec::try_from).transpose();
        let bound = bound.map_err(io::Error::other)?;
        match poll(&mut polled, bound.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<usize> = (0..self.contexts.len())
            .filter(|at| !polled[*at].revents().is_empty())
            .collect();
        for at in ready {
            while let Some(event) = self.contexts[at].next()? {
                self.hear(at, event)?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, at: usize, event: Event) -> io::Result<()> {
        let context = &mut self.contexts[at];
        match event {
            Event::Fault(address) => {
                self.filled.faults += 1;
                let start = address - address % self.page;
                match context.missing.at(start, URGENT) {
                    Some(piece) => self.fill(at, piece),
                    None => self.zero(at, start),
                }
            }
            Event::Removed(range) | Event::Unmapped(range) => {
                context.missing.take(range);
                Ok(())
            }
            Event::Moved { from, to } => {
                context.missing.shift(from, to);
                Ok(())
            }
            Event::Fork(fd) => {
                let userfault = Userfault::ready(adopt(fd));
                let child = Context {
                    pid: context.pid,
                    guard: Some(Guard::of_child(context.pid, &userfault)?),
                    userfault,
                    missing: context.missing.clone(),
                };
                if self.contexts.len() >= CONTEXTS_MAX {
                    return Err(io::Error::other("it forks without end"));
                }
                self.is_shared = true;
                self.contexts.push(child);
                Ok(())
            }
            Event::Unknown(kind) => Err(io::Error::other(format!(
                "the kernel tells of something new, {kind}"
            ))),
        }
    }

    /// Fills a piece in, as much as can be now; what is done is missing no more.
    fn fill(&mut self, at: usize, (start, run): (u64, Run)) -> io::Result<()> {
        let context = &mut self.contexts[at];
        let page = Range {
            start,
            len: self.page,
        };
        let mut len = run.len;
        let copied = loop {
            let bytes = self.source.bytes(Run { len, ..run })?;
            match context.userfault.copy(start, bytes) {
                // The kernel copies within one area, and pages of two may be beside each other.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && len > self.page => {
                    len = (len / 2).next_multiple_of(self.page);
                }
                copied => break copied,
            }
        };
        match copied {
            Ok(done) => {
                context.missing.take(Range { start, len: done });
                self.filled.bytes = self.filled.bytes.saturating_add(Bytes(done));
                if !self.is_shared {
                    self.source.give_back(Run { len: done, ..run });
                }
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                // Its areas change, and what changed is told first; who waits asks again.
                Some(libc::EAGAIN) => context.userfault.wake(page),
                // It is there.
                Some(libc::EEXIST) => {
                    context.missing.take(page);
                    context.userfault.wake(page)
                }
                // It is no memory any more; what becomes of it is told, or was.
                Some(libc::ENOENT) => {
                    context.missing.take(page);
                    Ok(())
                }
                Some(libc::ESRCH) => {
                    context.missing = Missing::default();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    fn zero(&mut self, at: usize, start: u64) -> io::Result<()> {
        let context = &mut self.contexts[at];
        let page = Range {
            start,
            len: self.page,
        };
        match context.userfault.zero(page) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The fault is not answered then, and told again.
                Some(libc::EAGAIN | libc::EEXIST) => context.userfault.wake(page),
                Some(libc::ENOENT | libc::ESRCH) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Context {
    /// What the kernel tells next, if it tells something.
    fn next(&self) -> io::Result<Option<Event>> {
        let mut message = [0; Event::SIZE];
        match rustix::io::read(&self.userfault, &mut message[..]) {
            Ok(Event::SIZE) => Ok(Some(Event::parse(&message))),
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a process misses, by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Missing(Runs);

impl Missing {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first that is missing.
    fn first(&self, most: u64) -> Option<(u64, Run)> {
        let (start, run) = self.0.first_key_value()?;
        let len = run.len.min(most);
        Some((*start, Run { len, ..*run }))
    }

    /// What is missing from an address on.
    fn at(&self, at: u64, most: u64) -> Option<(u64, Run)> {
        let (start, run) = self.0.range(..=at).next_back()?;
        let within = at - start;
        let len = run.len.checked_sub(within).filter(|len| *len > 0)?;
        let found = Run {
            len: len.min(most),
            offset: run.offset + within,
        };
        Some((at, found))
    }

    /// Takes a range out.
    fn take(&mut self, range: Range) -> Vec<(u64, Run)> {
        let end = range.start.saturating_add(range.len);
        let before = self.0.range(..range.start).next_back();
        let first = before
            .filter(|(start, run)| *start + run.len > range.start)
            .map_or(range.start, |(start, _)| *start);
        let touched: Vec<u64> = self.0.range(first..end).map(|(start, _)| *start).collect();
        let mut taken = Vec::new();
        for start in touched {
            let Some(run) = self.0.remove(&start) else {
                continue;
            };
            let run_end = start + run.len;
            let (from, to) = (start.max(range.start), run_end.min(end));
            let part = |from: u64, to: u64| Run {
                len: to - from,
                offset: run.offset + (from - start),
            };
            if start < from {
                self.0.insert(start, part(start, from));
            }
            if to < run_end {
                self.0.insert(to, part(to, run_end));
            }
            if from < to {
                taken.push((from, part(from, to)));
            }
        }
        taken
    }

    /// Moves a range elsewhere.
    fn shift(&mut self, from: Range, to: u64) {
        let moved = self.take(from);
        self.take(Range {
            start: to,
            len: from.len,
        });
        let shifted = moved
            .into_iter()
            .map(|(start, run)| (start - from.start + to, run));
        self.0.extend(shifted);
    }
}

/// The file with pages, mapped, so that the kernel copies from it.
#[derive(Debug)]
struct Source {
    file: File,
    address: *mut libc::c_void,
    length: usize,
}

#[expect(unsafe_code, reason = "a mapping is an address")]
// SAFETY: the mapping is of this process, and nobody else knows it; it is read from one thread at a
// time, as `Filler` is not shared.
unsafe impl Send for Source {}

impl Source {
    #[expect(unsafe_code, reason = "a file can be mapped in no safe way")]
    fn new(file: File, length: u64) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let address = if length == 0 {
            std::ptr::null_mut()
        } else {
            // SAFETY: a new mapping at an address that the kernel chooses; the file has no name, and
            // nobody makes it shorter.
            unsafe {
                mmap(
                    std::ptr::null_mut(),
                    length,
                    ProtFlags::READ,
                    MapFlags::SHARED,
                    &file,
                    0,
                )
            }?
        };
        Ok(Self {
            file,
            address,
            length,
        })
    }

    #[expect(unsafe_code, reason = "a mapping is an address")]
    fn bytes(&self, run: Run) -> io::Result<&[u8]> {
        let within = |bytes: u64| usize::try_from(bytes).ok();
        let ends = run.offset.checked_add(run.len).and_then(within);
        let (Some(offset), Some(len), Some(end)) = (within(run.offset), within(run.len), ends)
        else {
            return Err(io::Error::other("a run is longer than memory"));
        };
        if end > self.length {
            return Err(io::Error::other("a run ends behind its file"));
        }
        // SAFETY: within the mapping, as was just checked; its content changes only by `give_back`, which
        // has it alone.
        Ok(unsafe { std::slice::from_raw_parts(self.address.cast::<u8>().add(offset), len) })
    }

    /// Gives memory back that is not needed any more. Where that fails, it goes with the file.
    fn give_back(&mut self, run: Run) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, run.offset, run.len).ok();
    }
}

impl Drop for Source {
    #[expect(unsafe_code, reason = "a mapping is an address")]
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: it was mapped so, and nobody has a part of it any more. The kernel refuses only
            // what is no mapping.
            unsafe { rustix::mm::munmap(self.address, self.length) }.ok();
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    super::hold::readable(fd, Duration::ZERO)
}

fn read_word(mut from: &UnixStream) -> io::Result<u32> {
    use std::io::Read as _;
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return io::Error::other("CRIU gave up");
        }
        error
    })?;
    Ok(u32::from_ne_bytes(bytes))
}

/// The descriptor that comes with the next byte.
fn receive(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        from,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::other("CRIU sent no descriptor"))
}

#[expect(unsafe_code, reason = "the kernel tells descriptors as numbers")]
fn adopt(fd: i32) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the kernel opened it for this process with the event that told of it, and nobody else
    // knows the number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages 0 to 9 and 20 to 29.
    fn missing() -> Missing {
        let run = |len, offset| Run { len, offset };
        Missing(Runs::from([(0, run(10, 100)), (20, run(10, 200))]))
    }

    fn offsets(missing: &Missing) -> Vec<(u64, u64, u64)> {
        missing
            .0
            .iter()
            .map(|(start, run)| (*start, run.len, run.offset))
            .collect()
    }

    #[test]
    fn what_is_taken_is_missing_no_more() {
        let check = |start, len, expected: &[(u64, u64, u64)]| {
            let mut left = missing();
            let before: u64 = left.0.values().map(|run| run.len).sum();
            let taken = left.take(Range { start, len });
            assert_eq!(offsets(&left), expected, "{start} {len}");
            let after: u64 = left.0.values().map(|run| run.len).sum();
            let sum: u64 = taken.iter().map(|(_, run)| run.len).sum();
            assert_eq!(before, after + sum);
        };
        check(0, 10, &[(20, 10, 200)]);
        check(3, 2, &[(0, 3, 100), (5, 5, 105), (20, 10, 200)]);
        check(5, 20, &[(0, 5, 100), (25, 5, 205)]);
        check(10, 10, &[(0, 10, 100), (20, 10, 200)]);
        check(0, u64::MAX, &[]);
    }

    #[test]
    fn what_is_asked_for_is_found_and_what_moved_is_found_there() {
        let mut missing = missing();
        assert_eq!(
            missing.at(4, 3),
            Some((
                4,
                Run {
                    len: 3,
                    offset: 104
                }
            ))
        );
        assert_eq!(
            missing.at(28, 9),
            Some((
                28,
                Run {
                    len: 2,
                    offset: 208
                }
            ))
        );
        assert_eq!(missing.at(15, 1), None);
        missing.shift(Range { start: 5, len: 5 }, 25);
        assert_eq!(offsets(&missing), [(0, 5, 100), (20, 5, 200), (25, 5, 105)]);
    }
}
