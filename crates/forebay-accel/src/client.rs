//! The client of a broker: shares memory, submits tasks, and computes its own kernels on the CPU.
//!
//! An app's own kernel is computed in the app's own process, by a closure: no code of an app is
//! loaded into the broker, where its crash would take the tasks of other processes along, and
//! nothing has to be built as a shared object.
//!
//! ```no_run
//! use forebay_accel::client::Client;
//! use forebay_accel::task::Scalar;
//!
//! let client = Client::connect("/run/forebay/accel/web.sock")?;
//! let mut a = client.memory(4096)?;
//! let mut b = client.memory(4096)?;
//! let mut sum = client.memory(4096)?;
//! a.slice_mut::<f32>()?.fill(1.0);
//! b.slice_mut::<f32>()?.fill(2.0);
//! let task = client.task("add").input(&a).input(&b).output(&mut sum);
//! let run = task.scalar(Scalar::U32(1024)).submit()?.wait()?;
//! println!("{} on {}", sum.slice::<f32>()?[0], run.place);
//! # Ok::<(), forebay_accel::client::Error>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytemuck::{AnyBitPattern, NoUninit};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::kernel::{Access, Arguments};
use crate::memory::Region;
use crate::task::{Grid, Scalar, View};
use crate::wire::{
    Build, Definition, DeviceStatus, KernelStatus, Outcome, Piece, Reader, Reply, Request, Run,
    Stats, Task as WireTask, VERSION, Wish, send,
};

/// A broker answers what is no task, and no build of a kernel, in so long a time.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// As above, where devices build a kernel.
const BUILD_BOUND: Duration = Duration::from_secs(300);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect to {path}: {source}; is the worker running, and this user's?")]
    Connect { path: String, source: io::Error },
    #[error("the worker is gone: {0}; connect again")]
    Lost(String),
    #[error("{0}")]
    Refused(String),
    #[error("the kernel failed: {0}")]
    Failed(String),
    #[error("the worker has too much to do; submit it again when other tasks are answered")]
    Busy,
    #[error("the task was cancelled")]
    Cancelled,
    #[error("the task did not begin before its deadline")]
    Late,
    #[error("{0}")]
    Memory(String),
}

/// Computes a kernel of an app on the CPU.
pub type Compute = Box<dyn Fn(&mut Arguments<'_, '_>) -> Result<(), String> + Send + Sync>;

/// A connection to a broker. It ends when this is dropped.
pub struct Client {
    inner: Arc<Inner>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

struct Inner {
    socket: OwnedFd,
    /// One question at a time.
    replies: Mutex<Receiver<Reply>>,
    pending: Mutex<Pending>,
    kernels: Mutex<BTreeMap<String, Arc<Own>>>,
    next_task: AtomicU64,
    next_memory: AtomicU32,
}

#[derive(Default)]
struct Pending {
    tasks: BTreeMap<u64, Waiting>,
    lost: Option<String>,
}

struct Waiting {
    ticket: Arc<Ticket>,
    job: Arc<Job>,
}

/// What is needed to compute a task here, and what keeps its memory from being touched.
struct Job {
    kernel: String,
    buffers: Vec<Part>,
    scalars: Vec<Scalar>,
    grid: Grid,
}

impl Drop for Job {
    fn drop(&mut self) {
        for part in &self.buffers {
            part.shared.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

struct Own {
    access: Vec<Access>,
    compute: Compute,
}

#[derive(Default)]
struct Ticket {
    outcome: Mutex<Option<Result<Outcome, String>>>,
    ready: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Connects to the broker that listens there.
    ///
    /// # Errors
    /// When nobody listens, or the broker refuses.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
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
        let (reply, replies) = channel();
        let inner = Arc::new(Inner {
            socket,
            replies: Mutex::new(replies),
            pending: Mutex::default(),
            kernels: Mutex::default(),
            next_task: AtomicU64::new(1),
            next_memory: AtomicU32::new(1),
        });
        let (order, orders) = channel();
        // Threads know of the connection no longer than somebody uses it.
        let (read, computed) = (Arc::clone(&inner), Arc::downgrade(&inner));
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(run).map(drop).map_err(failed)
        };
        spawn("accel-read", Box::new(move || hear(&read, &reply, &order)))?;
        spawn(
            "accel-compute",
            Box::new(move || compute_all(&computed, &orders)),
        )?;
        let client = Self { inner };
        match client.ask(&Request::Hello { version: VERSION }, &[], ANSWER_BOUND)? {
            Reply::Welcome { .. } => Ok(client),
            other => Err(unexpected(&other)),
        }
    }

    /// Shares new memory with the broker; it holds zeros.
    ///
    /// # Errors
    /// When there is none, or the broker refuses it.
    pub fn memory(&self, bytes: usize) -> Result<Memory, Error> {
        let region = Region::new(bytes).map_err(Error::Memory)?;
        let number = self.inner.next_memory.fetch_add(1, Ordering::Relaxed);
        let request = Request::Share {
            memory: number,
            bytes: bytes as u64,
        };
        self.done(&request, &[region.as_fd()])?;
        let shared = Shared {
            region,
            number,
            busy: AtomicUsize::new(0),
            client: Arc::downgrade(&self.inner),
        };
        Ok(Memory {
            shared: Arc::new(shared),
        })
    }

    /// Registers a kernel of the app's own, and how it is computed on the CPU: what devices made
    /// of its sources.
    ///
    /// # Errors
    /// When the broker refuses it. That it does not compile for a device is no error.
    pub fn register(&self, definition: Definition, compute: Compute) -> Result<Vec<Build>, Error> {
        let name = definition.name.clone();
        let buffers = definition.signature.buffers.iter();
        let access = buffers.map(|buffer| buffer.access).collect();
        let request = Request::Register(definition);
        match self.ask(&request, &[], BUILD_BOUND)? {
            Reply::Registered { builds } => {
                let own = Arc::new(Own { access, compute });
                lock(&self.inner.kernels).insert(name, own);
                Ok(builds)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Begins to describe a task.
    pub fn task<'a>(&'a self, kernel: &str) -> Task<'a> {
        Task {
            client: self,
            kernel: kernel.to_owned(),
            buffers: Vec::new(),
            scalars: Vec::new(),
            grid: Grid::line(1),
            deadline: None,
            wish: Wish::Best,
        }
    }

    /// Submits several tasks at once.
    ///
    /// # Errors
    /// When the broker is gone.
    pub fn submit(&self, tasks: Vec<Task<'_>>) -> Result<Vec<Handle>, Error> {
        let mut handles = Vec::with_capacity(tasks.len());
        let mut wires = Vec::with_capacity(tasks.len());
        let mut pending = lock(&self.inner.pending);
        if let Some(why) = &pending.lost {
            return Err(Error::Lost(why.clone()));
        }
        for task in tasks {
            let number = self.inner.next_task.fetch_add(1, Ordering::Relaxed);
            let (wire, job) = task.into_parts(number);
            let ticket = Arc::new(Ticket::default());
            let waiting = Waiting {
                ticket: Arc::clone(&ticket),
                job: Arc::new(job),
            };
            pending.tasks.insert(number, waiting);
            wires.push(wire);
            handles.push(Handle {
                number,
                ticket,
                client: Arc::downgrade(&self.inner),
            });
        }
        drop(pending);
        if let Err(error) = send(&self.inner.socket, &Request::Submit(wires), &[]) {
            let mut pending = lock(&self.inner.pending);
            for handle in &handles {
                pending.tasks.remove(&handle.number);
            }
            return Err(Error::Lost(error.to_string()));
        }
        Ok(handles)
    }

    /// Devices as the broker sees them.
    ///
    /// # Errors
    /// When the broker is gone.
    pub fn devices(&self) -> Result<Vec<DeviceStatus>, Error> {
        match self.ask(&Request::Devices, &[], ANSWER_BOUND)? {
            Reply::Devices(devices) => Ok(devices),
            other => Err(unexpected(&other)),
        }
    }

    /// Kernels: those built in, and this client's.
    ///
    /// # Errors
    /// When the broker is gone.
    pub fn kernels(&self) -> Result<Vec<KernelStatus>, Error> {
        match self.ask(&Request::Kernels, &[], ANSWER_BOUND)? {
            Reply::Kernels(kernels) => Ok(kernels),
            other => Err(unexpected(&other)),
        }
    }

    /// What the broker counted.
    ///
    /// # Errors
    /// When the broker is gone.
    pub fn stats(&self) -> Result<Stats, Error> {
        match self.ask(&Request::Stats, &[], ANSWER_BOUND)? {
            Reply::Stats(stats) => Ok(*stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Says what time of the CPU costs beside that of devices, 1 to 100.
    ///
    /// # Errors
    /// When the broker is gone, or that is no price.
    pub fn set_price(&self, cpu: f64) -> Result<(), Error> {
        if !cpu.is_finite() {
            let why = format!("a price of {cpu} is none; name one from 1 to 100");
            return Err(Error::Refused(why));
        }
        self.done(&Request::Price { cpu }, &[])
    }

    fn done(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.ask(request, descriptors, ANSWER_BOUND)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<Reply, Error> {
        self.inner.ask(request, descriptors, within)
    }
}

impl Inner {
    fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<Reply, Error> {
        let replies = lock(&self.replies);
        let lost = |why: String| Error::Lost(why);
        send(&self.socket, request, descriptors).map_err(|error| lost(error.to_string()))?;
        match replies.recv_timeout(within) {
            Ok(Reply::Refused { why }) => Err(Error::Refused(why)),
            Ok(reply) => Ok(reply),
            Err(_) => {
                // A reply that came now would be taken for that to another question.
                leave(&self.socket);
                let why = lock(&self.pending).lost.clone();
                Err(lost(why.unwrap_or_else(|| "it does not answer".to_owned())))
            }
        }
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Lost(format!("it answered something else: {reply:?}"))
}

fn leave(socket: &OwnedFd) {
    // One that is not connected any more is left already.
    rustix::net::shutdown(socket.as_fd(), rustix::net::Shutdown::Both).ok();
}

impl Drop for Client {
    fn drop(&mut self) {
        leave(&self.inner.socket);
    }
}

/// Memory that is shared with the broker. It is forgotten there when this is dropped.
pub struct Memory {
    shared: Arc<Shared>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("bytes", &self.shared.region.length())
            .finish_non_exhaustive()
    }
}

struct Shared {
    region: Region,
    number: u32,
    /// Tasks that are not answered and use it.
    busy: AtomicUsize,
    client: Weak<Inner>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(client) = self.shared.client.upgrade() {
            let memory = self.shared.number;
            let forgotten = client.ask(&Request::Forget { memory }, &[], ANSWER_BOUND);
            if let Err(error) = forgotten {
                tracing::debug!(%error, "memory is forgotten with the connection");
            }
        }
    }
}

impl Memory {
    /// In bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.shared.region.length()
    }

    /// What it holds.
    ///
    /// # Errors
    /// While a task uses it, or where it is not a whole number of these.
    pub fn slice<T: AnyBitPattern>(&self) -> Result<&[T], Error> {
        self.idle()?;
        // SAFETY: no task uses it, and none that writes to it can begin while the slice lives: a
        // task borrows what it writes alone until it is submitted, and the broker refuses to write
        // to what a task was given to read.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let bytes = unsafe { self.shared.region.bytes(0, self.length()) };
        bytemuck::try_cast_slice(bytes).map_err(|error| Error::Memory(error.to_string()))
    }

    /// What it holds, to write to.
    ///
    /// # Errors
    /// While a task uses it, or where it is not a whole number of these.
    pub fn slice_mut<T: AnyBitPattern + NoUninit>(&mut self) -> Result<&mut [T], Error> {
        self.idle()?;
        // SAFETY: no task uses it, and none can begin to: a task borrows the memory until it is
        // submitted, and this slice borrows it alone.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let bytes = unsafe { self.shared.region.bytes_mut(0, self.length()) };
        bytemuck::try_cast_slice_mut(bytes).map_err(|error| Error::Memory(error.to_string()))
    }

    fn idle(&self) -> Result<(), Error> {
        if self.shared.busy.load(Ordering::Acquire) == 0 {
            Ok(())
        } else {
            let why = "a task that is not answered uses this memory; wait for it first";
            Err(Error::Memory(why.to_owned()))
        }
    }
}

/// A part of memory that a task uses.
struct Part {
    shared: Arc<Shared>,
    offset: usize,
    length: usize,
    write: bool,
}

/// A task that is described; it borrows its memory until it is submitted.
#[must_use = "a task does nothing until it is submitted"]
pub struct Task<'a> {
    client: &'a Client,
    kernel: String,
    buffers: Vec<(&'a Arc<Shared>, std::ops::Range<usize>, bool)>,
    scalars: Vec<Scalar>,
    grid: Grid,
    deadline: Option<Duration>,
    wish: Wish,
}

impl fmt::Debug for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("kernel", &self.kernel)
            .field("scalars", &self.scalars)
            .finish_non_exhaustive()
    }
}

impl<'a> Task<'a> {
    /// The next buffer of the kernel, which it reads: all of this memory.
    pub fn input(self, memory: &'a Memory) -> Self {
        let all = 0..memory.length();
        self.input_part(memory, all)
    }

    /// As [`input`](Self::input), of a part, in bytes.
    pub fn input_part(mut self, memory: &'a Memory, part: std::ops::Range<usize>) -> Self {
        self.buffers.push((&memory.shared, part, false));
        self
    }

    /// The next buffer of the kernel, which it writes (and perhaps reads): all of this memory.
    pub fn output(self, memory: &'a mut Memory) -> Self {
        let all = 0..memory.length();
        self.output_part(memory, all)
    }

    /// As [`output`](Self::output), of a part, in bytes.
    pub fn output_part(mut self, memory: &'a mut Memory, part: std::ops::Range<usize>) -> Self {
        self.buffers.push((&memory.shared, part, true));
        self
    }

    /// The next number of the kernel.
    pub fn scalar(mut self, scalar: Scalar) -> Self {
        self.scalars.push(scalar);
        self
    }

    /// For how many items a kernel of the app's own runs.
    pub const fn grid(mut self, grid: Grid) -> Self {
        self.grid = grid;
        self
    }

    /// It begins within so long a time, or not at all.
    pub const fn deadline(mut self, within: Duration) -> Self {
        self.deadline = Some(within);
        self
    }

    /// Where it runs, whatever would be better.
    pub fn place(mut self, wish: Wish) -> Self {
        self.wish = wish;
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// When the broker is gone.
    pub fn submit(self) -> Result<Handle, Error> {
        let mut handles = self.client.submit(vec![self])?;
        let gone = || Error::Lost("no task was submitted".to_owned());
        handles.pop().ok_or_else(gone)
    }

    fn into_parts(self, number: u64) -> (WireTask, Job) {
        let pieces = self.buffers.iter().map(|(shared, part, write)| Piece {
            memory: shared.number,
            offset: part.start as u64,
            length: part.len() as u64,
            write: *write,
        });
        let wire = WireTask {
            task: number,
            kernel: self.kernel.clone(),
            buffers: pieces.collect(),
            scalars: self.scalars.clone(),
            grid: self.grid,
            deadline_us: self
                .deadline
                .map(|within| u64::try_from(within.as_micros()).unwrap_or(u64::MAX)),
            place: self.wish,
        };
        let parts = self.buffers.into_iter().map(|(shared, part, write)| {
            shared.busy.fetch_add(1, Ordering::Acquire);
            Part {
                shared: Arc::clone(shared),
                offset: part.start,
                length: part.len(),
                write,
            }
        });
        let job = Job {
            kernel: self.kernel,
            buffers: parts.collect(),
            scalars: self.scalars,
            grid: self.grid,
        };
        (wire, job)
    }
}

/// A task that was submitted. It goes on when this is dropped.
#[must_use = "the result is there once the task was waited for"]
pub struct Handle {
    number: u64,
    ticket: Arc<Ticket>,
    client: Weak<Inner>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Waits for the answer.
    ///
    /// # Errors
    /// When there is no result.
    pub fn wait(self) -> Result<Run, Error> {
        let mut outcome = lock(&self.ticket.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return to_run(outcome);
            }
            let woken = self.ticket.ready.wait(outcome);
            outcome = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the answer for so long; the handle back where there is none.
    ///
    /// # Errors
    /// When there is no result.
    pub fn wait_within(self, within: Duration) -> Result<Result<Run, Error>, Self> {
        let end = Instant::now() + within;
        let mut outcome = lock(&self.ticket.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return Ok(to_run(outcome));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(outcome);
                return Err(self);
            }
            let woken = self.ticket.ready.wait_timeout(outcome, left);
            outcome = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has it not run if it did not begin; it is waited for all the same.
    pub fn cancel(&self) {
        if let Some(client) = self.client.upgrade() {
            let request = Request::Cancel { task: self.number };
            if let Err(error) = send(&client.socket, &request, &[]) {
                tracing::debug!(%error, "a task is cancelled with the connection");
            }
        }
    }
}

fn to_run(outcome: Result<Outcome, String>) -> Result<Run, Error> {
    Err(match outcome {
        Ok(Outcome::Done(run)) => return Ok(run),
        Ok(Outcome::Failed(why)) => Error::Failed(why),
        Ok(Outcome::Refused(why)) => Error::Refused(why),
        Ok(Outcome::Busy) => Error::Busy,
        Ok(Outcome::Cancelled) => Error::Cancelled,
        Ok(Outcome::Late) => Error::Late,
        Err(why) => Error::Lost(why),
    })
}

/// Reads what the broker says until it is gone.
fn hear(inner: &Inner, replies: &Sender<Reply>, orders: &Sender<(u64, u64)>) {
    let mut reader = Reader::default();
    let why = loop {
        match reader.receive::<Reply>(&inner.socket) {
            Ok(Some((Reply::Answer { task, outcome }, _))) => {
                let waiting = lock(&inner.pending).tasks.remove(&task);
                if let Some(waiting) = waiting {
                    waiting.end(Ok(outcome));
                }
            }
            Ok(Some((Reply::Compute { ticket, task }, _))) => {
                if orders.send((ticket, task)).is_err() {
                    break "the thread that computes ended".to_owned();
                }
            }
            Ok(Some((reply, _))) => {
                if replies.send(reply).is_err() {
                    break "the connection is closed".to_owned();
                }
            }
            Ok(None) => break "it closed the connection".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    let mut pending = lock(&inner.pending);
    pending.lost = Some(why.clone());
    let tasks = std::mem::take(&mut pending.tasks);
    drop(pending);
    leave(&inner.socket);
    for waiting in tasks.into_values() {
        waiting.end(Err(why.clone()));
    }
}

impl Waiting {
    /// The memory is free before anybody is told.
    fn end(self, outcome: Result<Outcome, String>) {
        let Self { ticket, job } = self;
        drop(job);
        *lock(&ticket.outcome) = Some(outcome);
        ticket.ready.notify_all();
    }
}

/// Computes what the broker asks this client to.
fn compute_all(inner: &Weak<Inner>, orders: &Receiver<(u64, u64)>) {
    for (ticket, task) in orders {
        let Some(inner) = inner.upgrade() else {
            return;
        };
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
        if send(&inner.socket, &Request::Computed { ticket, error }, &[]).is_err() {
            return;
        }
    }
}

fn compute_one(own: &Own, job: &Job) -> Result<(), String> {
    let mut views = Vec::new();
    for (part, access) in job.buffers.iter().zip(&own.access) {
        let Part { offset, length, .. } = *part;
        if access.writes() && !part.write {
            return Err("a buffer that the kernel writes was given to read".to_owned());
        }
        // SAFETY: the job keeps everybody of this process from the memory, and the broker asked
        // for it to be computed here: it checked the parts, runs no task that conflicts, and
        // touches nothing of it until it is told. Memory that is shared has no safe accessor.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        views.push(unsafe {
            match access {
                Access::Read => View::Read(part.shared.region.bytes(offset, length)),
                Access::Write => View::Write(part.shared.region.bytes_mut(offset, length)),
                Access::ReadWrite => View::ReadWrite(part.shared.region.bytes_mut(offset, length)),
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
