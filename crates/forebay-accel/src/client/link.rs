//! The connection: read by one thread, made anew where that is wanted.
//!
//! What is sent again after a worker was lost is sent once: [`Inner::submitting`] keeps those who submit
//! from a connection that is made anew, and a task is sent by whoever submits it or by whoever makes the
//! connection. What was answered is not pending, so that nothing is answered twice; what was not answered
//! may have run to any point, and may still run, since a connection can end before its worker does. So what
//! it writes is given other memory, and what that held is put back first ([`Again`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::memory::{Shared, take_away, take_away_or_spoil};
use super::task::Ticket;
use super::{ANSWER_BOUND, BUILD_BOUND, Error, Inner, Own, leave, lock, unexpected};
use crate::kernel::{Access, Arguments};
use crate::task::{Grid, Scalar, View};
use crate::wire::{Outcome, Reader, Reply, Request, Task as WireTask, VERSION, send};

/// How often it is tried to connect again: soon at first, since a worker starts within a second.
const AGAIN: Duration = Duration::from_millis(10);
const AGAIN_MAX: Duration = Duration::from_millis(200);

/// A connection, or that there is none now.
pub(super) struct Link {
    socket: Option<Arc<OwnedFd>>,
    /// Connections before this one.
    generation: u64,
    /// Why there never will be one again.
    lost: Option<String>,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(Arc::new(socket)),
            generation: 0,
            lost: None,
        }
    }

    pub(super) fn socket(&self) -> Option<Arc<OwnedFd>> {
        self.socket.clone()
    }
}

/// What a worker said, or that it says nothing more, over one connection.
pub(super) struct Said {
    pub(super) generation: u64,
    pub(super) reply: Result<Reply, String>,
}

/// A task that is not answered.
pub(super) struct Waiting {
    ticket: Arc<Ticket>,
    job: Arc<Job>,
    again: Option<Again>,
}

/// What is needed to compute a task here, and what keeps its memory from being touched.
pub(super) struct Job {
    pub(super) kernel: String,
    pub(super) buffers: Vec<Part>,
    pub(super) scalars: Vec<Scalar>,
    pub(super) grid: Grid,
}

/// A part of memory that a task uses.
pub(super) struct Part {
    pub(super) shared: Arc<Shared>,
    pub(super) offset: usize,
    pub(super) length: usize,
    pub(super) write: bool,
}

impl Job {
    /// Whether all that it is to write may be written.
    pub(super) fn check(&self) -> Result<(), Error> {
        let writable = |part: &Part| !part.write || part.shared.region().writable();
        if self.buffers.iter().all(writable) {
            return Ok(());
        }
        let why = "a task is to write to constant memory; give it memory of its own";
        Err(Error::Memory(why.to_owned()))
    }

    /// Whether both write to the same memory.
    pub(super) fn rewrites(&self, other: &Self) -> bool {
        let written = |job: &'_ Self| {
            let parts = job.buffers.iter().filter(|part| part.write);
            let parts = parts.map(|part| (part.shared.number, part.offset, part.length));
            parts.collect::<Vec<_>>()
        };
        let others = written(other);
        written(self).iter().any(|(number, offset, length)| {
            others
                .iter()
                .any(|(of, at, long)| number == of && *offset < at + long && *at < offset + length)
        })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for part in &self.buffers {
            part.shared.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

/// What is needed to send a task again.
pub(super) struct Again {
    wire: WireTask,
    submitted: Instant,
    /// What each part that may be written held; it may be read, too.
    held: Vec<Option<Vec<u8>>>,
}

impl Again {
    /// Copies what a task may write, before it is sent.
    ///
    /// # Errors
    /// When a part of that is not in its memory.
    pub(super) fn of(wire: &WireTask, job: &Job) -> Result<Self, Error> {
        let hold = |part: &Part| {
            let region = part.shared.region();
            let end = part.offset.checked_add(part.length);
            if end.is_none_or(|end| end > region.length()) {
                return Err(Error::Memory(format!(
                    "a task is to write {} bytes at {}, which are not in its memory of {} bytes",
                    part.length,
                    part.offset,
                    region.length()
                )));
            }
            // SAFETY: the task was not sent, and borrows what it writes alone until it is. Memory
            // that is shared has no safe accessor.
            #[expect(unsafe_code, reason = "memory is shared by its addresses")]
            let bytes = unsafe { region.bytes(part.offset, part.length) };
            Ok(bytes.to_vec())
        };
        let parts = job.buffers.iter();
        let held = parts.map(|part| part.write.then(|| hold(part)).transpose());
        Ok(Self {
            wire: wire.clone(),
            submitted: Instant::now(),
            held: held.collect::<Result<_, Error>>()?,
        })
    }

    /// Puts back what the parts held; the time that is left to begin it, none where that is over.
    fn rewind(&self, job: &Job) -> Option<WireTask> {
        for (part, held) in job.buffers.iter().zip(&self.held) {
            let Some(held) = held else { continue };
            let region = part.shared.region();
            // SAFETY: this memory was taken away from the worker that had the task, no other has it
            // yet, nobody here computes it, and the job keeps everybody else of this process from it.
            #[expect(unsafe_code, reason = "memory is shared by its addresses")]
            let bytes = unsafe { region.bytes_mut(part.offset, part.length) };
            bytes.copy_from_slice(held);
        }
        let mut wire = self.wire.clone();
        if let Some(within) = wire.deadline_us {
            let since = u64::try_from(self.submitted.elapsed().as_micros()).unwrap_or(u64::MAX);
            wire.deadline_us = Some(within.checked_sub(since)?);
        }
        Some(wire)
    }
}

impl Waiting {
    pub(super) fn new(ticket: Arc<Ticket>, job: Job, again: Option<Again>) -> Self {
        Self {
            ticket,
            job: Arc::new(job),
            again,
        }
    }

    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// The memory is free before anybody is told.
    fn end(self, outcome: Result<Outcome, String>) {
        let Self { ticket, job, .. } = self;
        drop(job);
        *lock(&ticket.outcome) = Some(outcome);
        ticket.ready.notify_all();
    }
}

/// Connects to a worker, and says hello.
pub(crate) fn greet(path: &Path, within: Duration) -> Result<OwnedFd, Error> {
    let failed = |source: io::Error| Error::Connect {
        path: path.display().to_string(),
        source,
    };
    let open = || {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    let socket = open().map_err(|error| failed(error.into()))?;
    let lost = |why: String| Error::Lost(why);
    let hello = Request::Hello { version: VERSION };
    send(&socket, &hello, &[]).map_err(|error| lost(error.to_string()))?;
    let heard = Reader::default().receive_within::<Reply>(&socket, within);
    match heard.map_err(|error| lost(error.to_string()))? {
        Some((Reply::Welcome { .. }, _)) => Ok(socket),
        Some((Reply::Refused { why }, _)) => Err(Error::Refused(why)),
        Some((other, _)) => Err(unexpected(&other)),
        None => Err(lost("it closed the connection".to_owned())),
    }
}

/// Reads what brokers say until there is none any more.
pub(super) fn hear(inner: &Inner, replies: &Sender<Said>, orders: &Sender<Order>) {
    let mut reader = Reader::default();
    while let Ok((socket, generation)) = inner.connected() {
        let why = read(inner, &socket, generation, (replies, orders), &mut reader);
        leave(&socket);
        lock(&inner.link).socket = None;
        // Whoever asks over it hears nothing more.
        let said = Said {
            generation,
            reply: Err(why.clone()),
        };
        let asked = replies.send(said).is_ok();
        let linked = match inner.patience {
            Some(patience) if asked => inner.relink(patience, &mut reader),
            _ => Err(why),
        };
        if let Err(why) = linked {
            return inner.give_up(&why);
        }
    }
}

/// What a broker asks to be computed here.
pub(super) struct Order {
    generation: u64,
    ticket: u64,
    task: u64,
}

/// Reads from one broker until it is gone; why it is.
fn read(
    inner: &Inner,
    socket: &OwnedFd,
    generation: u64,
    (replies, orders): (&Sender<Said>, &Sender<Order>),
    reader: &mut Reader,
) -> String {
    loop {
        match reader.receive::<Reply>(socket) {
            Ok(Some((Reply::Answer { task, outcome }, _))) => {
                let waiting = lock(&inner.pending).tasks.remove(&task);
                if let Some(waiting) = waiting {
                    waiting.end(Ok(outcome));
                }
            }
            Ok(Some((Reply::Compute { ticket, task }, _))) => {
                let order = Order {
                    generation,
                    ticket,
                    task,
                };
                if orders.send(order).is_err() {
                    return "the thread that computes ended".to_owned();
                }
            }
            Ok(Some((reply, _))) => {
                let said = Said {
                    generation,
                    reply: Ok(reply),
                };
                if replies.send(said).is_err() {
                    return "the connection is closed".to_owned();
                }
            }
            Ok(None) => return "it closed the connection".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

impl Inner {
    /// The connection, once there is one, and its number.
    pub(super) fn connected(&self) -> Result<(Arc<OwnedFd>, u64), Error> {
        self.await_link(|_| true)
    }

    /// Waits for another connection than one.
    pub(super) fn await_other(&self, generation: u64) -> Result<(), Error> {
        self.await_link(|now| now > generation).map(drop)
    }

    fn await_link(&self, wanted: impl Fn(u64) -> bool) -> Result<(Arc<OwnedFd>, u64), Error> {
        let absent = |link: &mut Link| {
            link.lost.is_none() && !(link.socket.is_some() && wanted(link.generation))
        };
        let waited = self.linked.wait_while(lock(&self.link), absent);
        let link = waited.unwrap_or_else(PoisonError::into_inner);
        match (&link.socket, &link.lost) {
            (Some(socket), None) => Ok((Arc::clone(socket), link.generation)),
            (_, Some(why)) => Err(Error::Lost(why.clone())),
            (None, None) => Err(Error::Lost("it is not connected".to_owned())),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        lock(&self.link).socket.is_some()
    }

    /// The user of this connection is gone.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(socket) = lock(&self.link).socket() {
            leave(&socket);
        }
    }

    /// Connects to the next worker, and gives it what the one before had.
    fn relink(&self, patience: Duration, reader: &mut Reader) -> Result<(), String> {
        // One beyond what a clock holds does not end.
        let end = Instant::now().checked_add(patience);
        let mut pause = AGAIN;
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err("the connection is closed".to_owned());
            }
            let why = match self.link_once(reader) {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if end.is_some_and(|end| Instant::now() >= end) {
                let seconds = patience.as_secs_f64();
                return Err(format!("no other came in {seconds:.1} s: {why}"));
            }
            // Nothing tells when a socket is bound.
            std::thread::sleep(pause);
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    fn link_once(&self, reader: &mut Reader) -> Result<(), Error> {
        let socket = greet(&self.path, ANSWER_BOUND)?;
        // Nobody submits meanwhile, and nobody here computes for the one before.
        let _submitting = lock(&self.submitting);
        let _computing = lock(&self.computing);
        let mut pending = lock(&self.pending);
        take_away(pending.tasks.values().map(Waiting::job))?;
        let mut memories: BTreeMap<u32, Arc<Shared>> = BTreeMap::new();
        let known = lock(&self.memories);
        memories.extend(
            known
                .iter()
                .filter_map(|(number, one)| Some((*number, one.upgrade()?))),
        );
        drop(known);
        // Memory that is dropped is used by its tasks until these are answered.
        for part in pending
            .tasks
            .values()
            .flat_map(|waiting| &waiting.job.buffers)
        {
            memories.insert(part.shared.number, Arc::clone(&part.shared));
        }
        let mut ask = |request: &Request, descriptors: &[BorrowedFd<'_>], within| {
            let lost = |error: io::Error| Error::Lost(error.to_string());
            send(&socket, request, descriptors).map_err(lost)?;
            match reader
                .receive_within::<Reply>(&socket, within)
                .map_err(lost)?
            {
                Some((Reply::Done | Reply::Registered { .. }, _)) => Ok(()),
                Some((Reply::Refused { why }, _)) => Err(Error::Refused(why)),
                Some((other, _)) => Err(unexpected(&other)),
                None => Err(Error::Lost("it closed the connection".to_owned())),
            }
        };
        for (number, shared) in &memories {
            let region = shared.region();
            let request = Request::Share {
                memory: *number,
                bytes: region.length() as u64,
            };
            ask(&request, &[region.as_fd()], ANSWER_BOUND)?;
        }
        for own in lock(&self.kernels).values() {
            ask(
                &Request::Register(Box::new(own.definition.clone())),
                &[],
                BUILD_BOUND,
            )?;
        }
        let mut late = Vec::new();
        for (number, waiting) in &pending.tasks {
            let Some(again) = &waiting.again else {
                continue;
            };
            match again.rewind(&waiting.job) {
                Some(wire) => send(&socket, &Request::Submit(vec![wire]), &[])
                    .map_err(|error| Error::Lost(error.to_string()))?,
                None => late.push(*number),
            }
        }
        let late: Vec<Waiting> = late
            .iter()
            .filter_map(|number| pending.tasks.remove(number))
            .collect();
        drop(pending);
        let mut link = lock(&self.link);
        link.socket = Some(Arc::new(socket));
        link.generation += 1;
        drop(link);
        self.linked.notify_all();
        // Whoever closed this meanwhile did not see the new connection.
        if self.closed.load(Ordering::Acquire) {
            self.close();
        }
        for waiting in late {
            waiting.end(Ok(Outcome::Late));
        }
        Ok(())
    }

    /// There is no worker any more: every task is answered so.
    fn give_up(&self, why: &str) {
        let mut pending = lock(&self.pending);
        pending.lost = Some(why.to_owned());
        let tasks = std::mem::take(&mut pending.tasks);
        drop(pending);
        lock(&self.link).lost = Some(why.to_owned());
        self.linked.notify_all();
        // What is told to be free is nobody else's.
        take_away_or_spoil(tasks.values().map(Waiting::job));
        for waiting in tasks.into_values() {
            waiting.end(Err(why.to_owned()));
        }
    }
}

/// Computes what the broker asks this client to.
pub(super) fn compute_all(inner: &Weak<Inner>, orders: &Receiver<Order>) {
    for order in orders {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let computing = lock(&inner.computing);
        // What a broker asked that is gone is asked again by the next one.
        let Some(socket) = inner.of_generation(order.generation) else {
            continue;
        };
        let (ticket, task) = (order.ticket, order.task);
        let job = lock(&inner.pending)
            .tasks
            .get(&task)
            .map(|waiting| Arc::clone(&waiting.job));
        let Some(job) = job else {
            continue;
        };
        let own = lock(&inner.kernels).get(&job.kernel).cloned();
        let error = own
            .ok_or_else(|| format!("this client has no kernel {}", job.kernel))
            .and_then(|own| compute_one(&own, &job))
            .err();
        // The memory is free before the broker hears of it, and so before anybody is told.
        drop(job);
        let sent = send(&socket, &Request::Computed { ticket, error }, &[]);
        drop(computing);
        if sent.is_err() && inner.patience.is_none() {
            return;
        }
    }
}

impl Inner {
    /// The connection of a number, if it is the one that there is.
    fn of_generation(&self, generation: u64) -> Option<Arc<OwnedFd>> {
        let link = lock(&self.link);
        link.socket().filter(|_| link.generation == generation)
    }
}

fn compute_one(own: &Own, job: &Job) -> Result<(), String> {
    let mut views = Vec::new();
    let regions: Vec<_> = job
        .buffers
        .iter()
        .map(|part| part.shared.region())
        .collect();
    for ((part, region), access) in job.buffers.iter().zip(&regions).zip(&own.access) {
        let Part { offset, length, .. } = *part;
        if access.writes() && !part.write {
            return Err("a buffer that the kernel writes was given to read".to_owned());
        }
        // SAFETY: the job keeps everybody of this process from the memory, and the broker asked
        // for it to be computed here: it checked the parts, runs no task that conflicts, and
        // touches nothing of it until it is told. A region that is taken away meanwhile is
        // this call's alone. Memory that is shared has no safe accessor.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        views.push(unsafe {
            match access {
                Access::Read => View::Read(region.bytes(offset, length)),
                Access::Write => View::Write(region.bytes_mut(offset, length)),
                Access::ReadWrite => View::ReadWrite(region.bytes_mut(offset, length)),
            }
        });
    }
    let mut arguments = Arguments {
        buffers: &mut views,
        scalars: &job.scalars,
        grid: job.grid,
    };
    let compute = std::panic::AssertUnwindSafe(|| (own.compute)(&mut arguments));
    std::panic::catch_unwind(compute).unwrap_or_else(|_| Err("it panicked".to_owned()))
}
