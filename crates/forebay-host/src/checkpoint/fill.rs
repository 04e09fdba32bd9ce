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
//! What did not come before ([`Owed`]) has its place in the file, and is put there when it does: who waits for it
//! waits for that, and nobody else does.
//!
//! # Properties
//!
//! - A page is filled in once. What the process gave up is not filled in any more: it reads zeros there.
//! - No other host is needed where nothing is owed: the source may end once the process runs.
//! - The process does not outlive this before it is done, when the kernel would give it zeros for pages
//!   that are missing: see [`Guard`].
//!
//! Source: the kernel's admin-guide/mm/userfaultfd; the words on CRIU's socket, criu(8), lazy-pages.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use forebay_core::units::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::guard::Guard;
use super::owed::Owed;
use super::pages::{Run, Runs};
use super::precopy::page_size;
use super::precopy::userfault::{Event, Range, Userfault};

/// What CRIU says when the process is whole.
const FINISHED: u32 = 0x5253_5446;
/// Filled in at once where somebody waits for a page, and where nobody does.
const URGENT: u64 = 32 << 10;
const CHUNK: u64 = 256 << 10;
/// How often it is looked whether a process ended of which nothing is heard.
const LOOK: Duration = Duration::from_millis(250);
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
    /// No other one of the same filler has it.
    number: u64,
    pid: u32,
    userfault: Userfault,
    missing: Runs,
    /// What is missing before this address is owed.
    looked: u64,
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
    /// Contexts that there were.
    begun: u64,
    /// Since a process forked, pages may be needed more than once.
    is_shared: bool,
    owed: Option<Owed>,
    /// Which contexts wait for pages that are owed, and where.
    waits: Vec<(u64, u64)>,
    /// Addresses, at the source, of what came a moment ago.
    fresh: VecDeque<Range>,
    filled: Filled,
}

impl Filler {
    pub(super) fn new(
        (file, length): (File, u64),
        wanted: BTreeMap<u32, Runs>,
        owed: Option<Owed>,
    ) -> io::Result<Self> {
        Ok(Self {
            source: Source::new(file, length)?,
            page: page_size(),
            wanted,
            contexts: Vec::new(),
            begun: 0,
            is_shared: false,
            owed,
            waits: Vec::new(),
            fresh: VecDeque::new(),
            filled: Filled::default(),
        })
    }

    /// Takes descriptors from CRIU, and serves faults, until the process is whole.
    pub(super) fn begin(&mut self, criu: &UnixStream) -> io::Result<()> {
        loop {
            self.take_in()?;
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
            let userfault = Userfault::ready(receive(criu)?);
            self.attend((pid, userfault), runs, None);
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
        let mut is_busy = true;
        loop {
            self.serve(None, Some(if is_busy { Duration::ZERO } else { LOOK }))?;
            self.take_in()?;
            if !is_busy {
                self.miss_the_dead();
            }
            // What misses nothing any more is let go of.
            let whole = |context: &mut Context| context.missing.is_empty();
            for context in self.contexts.extract_if(.., whole) {
                context.guard.map_or(Ok(()), Guard::dismiss)?;
            }
            let Some(at) = self.contexts.len().checked_sub(1) else {
                break;
            };
            is_busy = match (self.fresh.pop_front(), self.here(at)) {
                (Some(range), _) => self.fill_fresh(range).map(|()| true)?,
                (None, Some(piece)) => self.fill(at, piece).map(|()| true)?,
                // All that is missing is owed.
                (None, None) => false,
            };
        }
        self.filled.took = began.elapsed();
        Ok(self.filled)
    }

    /// Looks after what is missing in one more address space.
    fn attend(&mut self, (pid, userfault): (u32, Userfault), missing: Runs, guard: Option<Guard>) {
        self.begun += 1;
        self.contexts.push(Context {
            number: self.begun,
            pid,
            userfault,
            missing,
            looked: 0,
            guard,
        });
    }

    /// Puts what came of what is owed where it belongs, has who waits for it go on, and asks for more.
    fn take_in(&mut self) -> io::Result<()> {
        let Some(owed) = &mut self.owed else {
            return Ok(());
        };
        let came = owed.came()?;
        for (place, address, bytes) in came.iter().flat_map(|came| came.runs()) {
            let len = bytes.len() as u64;
            self.source.file.write_all_at(bytes, place)?;
            owed.settle(Range { start: place, len });
            self.fresh.push_back(Range {
                start: address,
                len,
            });
        }
        owed.ask();
        if owed.is_settled() {
            // Where something was moved to meanwhile was passed by.
            for context in &mut self.contexts {
                context.looked = 0;
            }
            self.owed = None;
        }
        if !came.is_empty() {
            for (number, start) in std::mem::take(&mut self.waits) {
                let mut contexts = self.contexts.iter();
                if let Some(at) = contexts.position(|context| context.number == number) {
                    self.relieve(at, start)?;
                }
            }
        }
        Ok(())
    }

    /// Memory of which nothing is left misses nothing; nobody tells of that.
    fn miss_the_dead(&mut self) {
        let contexts = self.contexts.iter_mut();
        for context in contexts.filter(|context| context.userfault.is_over()) {
            context.missing = Runs::default();
        }
    }

    /// So much of a run as is here, from its beginning on.
    fn part_here(&self, run: Run) -> Run {
        let len = self.owed.as_ref().map_or(run.len, |owed| owed.there(run));
        Run { len, ..run }
    }

    /// The first piece that a process misses and that is here.
    fn here(&mut self, at: usize) -> Option<(u64, Run)> {
        let context = self.contexts.get_mut(at)?;
        let Some(owed) = &self.owed else {
            return context.missing.first(CHUNK);
        };
        while let Some((start, run)) = context.missing.next(context.looked, CHUNK) {
            let len = owed.there(run);
            if len > 0 {
                return Some((start, Run { len, ..run }));
            }
            context.looked = start + owed.away(run);
        }
        None
    }

    /// Fills in what came a moment ago where it is missing at the address that it had.
    fn fill_fresh(&mut self, range: Range) -> io::Result<()> {
        let end = range.start + range.len;
        for at in 0..self.contexts.len() {
            let mut from = range.start;
            while let Some((start, run)) = self.contexts[at].missing.next(from, CHUNK) {
                if start >= end {
                    break;
                }
                let len = run.len.min(end - start);
                let part = self.part_here(Run { len, ..run });
                // Something else was moved there, which is owed still.
                if part.len == 0 {
                    from = start + self.page;
                    continue;
                }
                self.fill(at, (start, part))?;
                if self.contexts[at].missing.at(start, self.page).is_some() {
                    // Its areas change, which has to be heard first.
                    self.fresh.push_back(range);
                    return Ok(());
                }
                from = start;
            }
        }
        Ok(())
    }

    /// Hears all that the kernel tells; without a bound, waits until it tells something, something came that is owed,
    /// or `also` can be read.
    fn serve(&mut self, also: Option<BorrowedFd<'_>>, bound: Option<Duration>) -> io::Result<()> {
        let mut polled: Vec<PollFd<'_>> = self
            .contexts
            .iter()
            .map(|context| context.userfault.as_fd())
            .chain(also)
            .chain(self.owed.as_ref().map(Owed::as_fd))
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
                self.relieve(at, address - address % self.page)
            }
            Event::Removed(range) | Event::Unmapped(range) => {
                let given_up = context.missing.take(range);
                if let (Some(owed), false) = (&mut self.owed, self.is_shared) {
                    for (_, run) in given_up {
                        owed.waive(run);
                    }
                }
                Ok(())
            }
            Event::Moved { from, to } => {
                context.missing.shift(from, to);
                Ok(())
            }
            Event::Fork(fd) => {
                let userfault = Userfault::ready(adopt(fd));
                let (pid, missing) = (context.pid, context.missing.clone());
                let guard = Guard::of_child(pid, &userfault)?;
                if self.contexts.len() >= CONTEXTS_MAX {
                    return Err(io::Error::other("it forks without end"));
                }
                self.is_shared = true;
                self.attend((pid, userfault), missing, Some(guard));
                Ok(())
            }
            Event::Unknown(kind) => Err(io::Error::other(format!(
                "the kernel tells of something new, {kind}"
            ))),
        }
    }

    /// Has whoever waits at an address go on, or has what is owed there come first.
    fn relieve(&mut self, at: usize, start: u64) -> io::Result<()> {
        let Some((start, run)) = self.contexts[at].missing.at(start, URGENT) else {
            return self.zero(at, start);
        };
        let part = self.part_here(run);
        match (part.len, &mut self.owed) {
            (0, Some(owed)) => {
                owed.hurry(run);
                let wait = (self.contexts[at].number, start);
                if !self.waits.contains(&wait) {
                    self.waits.push(wait);
                }
                Ok(())
            }
            _ => self.fill(at, (start, part)),
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
                    context.let_go(page)
                }
                Some(libc::ESRCH) => {
                    context.missing = Runs::default();
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
                Some(libc::ENOENT) => context.let_go(page),
                Some(libc::ESRCH) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Context {
    /// Whoever still waits where no memory is any more finds that out by itself.
    fn let_go(&self, page: Range) -> io::Result<()> {
        match self.userfault.wake(page) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            woken => woken,
        }
    }

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
        // SAFETY: within the mapping, as was just checked, and the file is not made shorter. Its content changes by
        // `give_back`, which has it alone, and by `take_in`, which writes to the file: both have the filler alone, and
        // what is lent here is of it, so that it is not lent any more by then.
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
