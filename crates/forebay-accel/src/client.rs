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

mod link;
mod memory;
mod task;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytemuck::NoUninit;

use crate::kernel::{Access, Arguments};
use crate::memory::Region;
use crate::task::Grid;
use crate::wire::{
    self, Build, Definition, DeviceStatus, KernelStatus, Reply, Request, Stats, Wish,
};
#[cfg(test)]
pub(crate) use link::greet;
use link::{Job, Link, Said, Waiting};
pub use memory::Memory;
use memory::Shared;
use task::Ticket;
pub use task::{Handle, Task};

/// The variable by which a program that Forebay started finds its worker.
pub const SOCKET_VARIABLE: &str = "FOREBAY_ACCEL_SOCKET";

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

/// A question is asked so often at most, where another worker is waited for.
const ATTEMPTS_MAX: u32 = 3;

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
    path: PathBuf,
    /// How long another worker is waited for when one is gone; none is, where it is absent.
    patience: Option<Duration>,
    link: Mutex<Link>,
    /// It is connected again, or never will be.
    linked: Condvar,
    /// Whoever submits holds it: what is sent again is sent once.
    submitting: Mutex<()>,
    /// Whoever computes for the broker holds it: memory is written by one at a time.
    computing: Mutex<()>,
    /// One question at a time.
    replies: Mutex<Receiver<Said>>,
    pending: Mutex<Pending>,
    kernels: Mutex<BTreeMap<String, Arc<Own>>>,
    memories: Mutex<BTreeMap<u32, Weak<Shared>>>,
    next_task: AtomicU64,
    next_memory: AtomicU32,
    closed: AtomicBool,
}

#[derive(Default)]
struct Pending {
    tasks: BTreeMap<u64, Waiting>,
    lost: Option<String>,
}

struct Own {
    definition: Definition,
    access: Vec<Access>,
    compute: Compute,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Connects to the broker that listens there. When that is gone, its tasks are answered as lost.
    ///
    /// # Errors
    /// When nobody listens, or the broker refuses.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open(path.as_ref(), None)
    }

    /// As [`connect`](Self::connect), for longer than one worker lives: when it is gone, another one is
    /// waited for at the same place, and is given the memory, the kernels and all tasks that are not
    /// answered yet. What a task writes is copied before it is sent, to begin it again from that, in
    /// other memory: the worker may be lost and still at work. Whoever moved to another host finds the
    /// worker there in the same way.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn lasting(path: impl AsRef<Path>, patience: Duration) -> Result<Self, Error> {
        Self::open(path.as_ref(), Some(patience))
    }

    fn open(path: &Path, patience: Option<Duration>) -> Result<Self, Error> {
        let socket = link::greet(path, ANSWER_BOUND)?;
        let (reply, replies) = channel();
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            patience,
            link: Mutex::new(Link::new(socket)),
            linked: Condvar::new(),
            submitting: Mutex::default(),
            computing: Mutex::default(),
            replies: Mutex::new(replies),
            pending: Mutex::default(),
            kernels: Mutex::default(),
            memories: Mutex::default(),
            next_task: AtomicU64::new(1),
            next_memory: AtomicU32::new(1),
            closed: AtomicBool::new(false),
        });
        let (order, orders) = channel();
        // Threads know of the connection no longer than somebody uses it.
        let (read, computed) = (Arc::clone(&inner), Arc::downgrade(&inner));
        let client = Self { inner };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            let failed = |source| Error::Connect {
                path: path.display().to_string(),
                source,
            };
            thread.spawn(run).map(drop).map_err(failed)
        };
        spawn(
            "accel-read",
            Box::new(move || link::hear(&read, &reply, &order)),
        )?;
        spawn(
            "accel-compute",
            Box::new(move || link::compute_all(&computed, &orders)),
        )?;
        Ok(client)
    }

    /// Shares new memory with the broker; it holds zeros.
    ///
    /// # Errors
    /// When there is none, or the broker refuses it.
    pub fn memory(&self, bytes: usize) -> Result<Memory, Error> {
        self.share(Region::new(bytes).map_err(Error::Memory)?)
    }

    /// Shares memory that holds these for ever: nobody can write to it any more. A device to which it was
    /// copied keeps the copy, so that tasks which read it again do not pay for that again.
    ///
    /// # Errors
    /// As [`memory`](Self::memory).
    pub fn constant<T: NoUninit>(&self, content: &[T]) -> Result<Memory, Error> {
        let region = Region::constant(bytemuck::cast_slice(content));
        self.share(region.map_err(Error::Memory)?)
    }

    fn share(&self, region: Region) -> Result<Memory, Error> {
        let region = Arc::new(region);
        let number = self.inner.next_memory.fetch_add(1, Ordering::Relaxed);
        let request = Request::Share {
            memory: number,
            bytes: region.length() as u64,
        };
        self.done(&request, &[region.as_fd()])?;
        let client = Arc::downgrade(&self.inner);
        let shared = Arc::new(Shared::new(region, number, client));
        let weak = Arc::downgrade(&shared);
        lock(&self.inner.memories).insert(number, weak);
        Ok(Memory { shared })
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
        let request = Request::Register(Box::new(definition.clone()));
        match self.ask(&request, &[], BUILD_BOUND)? {
            Reply::Registered { builds } => {
                let own = Arc::new(Own {
                    definition,
                    access,
                    compute,
                });
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
    /// When the broker is gone, they are too many for one message, or a task is to write to constant
    /// memory; over a [lasting](Self::lasting) connection also when one writes outside of its memory, or to
    /// memory that a task before it writes to and that is not answered.
    pub fn submit(&self, tasks: Vec<Task<'_>>) -> Result<Vec<Handle>, Error> {
        let guard = lock(&self.inner.submitting);
        let mut pending = lock(&self.inner.pending);
        if let Some(why) = &pending.lost {
            return Err(Error::Lost(why.clone()));
        }
        let lasting = self.inner.patience.is_some();
        let mut wires = Vec::with_capacity(tasks.len());
        let mut jobs: Vec<(u64, Job, Option<link::Again>)> = Vec::with_capacity(tasks.len());
        for task in tasks {
            let number = self.inner.next_task.fetch_add(1, Ordering::Relaxed);
            let (wire, job) = task.into_parts(number);
            job.check()?;
            let mut before = pending.tasks.values().map(Waiting::job);
            let mut beside = jobs.iter().map(|(_, job, _)| job);
            if lasting
                && (before.any(|other| job.rewrites(other))
                    || beside.any(|other| job.rewrites(other)))
            {
                let why = "a task that is not answered writes to the same memory, and could not be begun \
                           again after this one; wait for it first";
                return Err(Error::Memory(why.to_owned()));
            }
            let again = lasting.then(|| link::Again::of(&wire, &job)).transpose()?;
            jobs.push((number, job, again));
            wires.push(wire);
        }
        // What cannot be sent is not waited for.
        let message = wire::encode(&Request::Submit(wires)).map_err(|error| {
            let count = jobs.len();
            Error::Refused(format!(
                "submit {count} tasks: {error}; submit fewer at once"
            ))
        })?;
        let mut handles = Vec::with_capacity(jobs.len());
        for (number, job, again) in jobs {
            let ticket = Arc::new(Ticket::default());
            let waiting = Waiting::new(Arc::clone(&ticket), job, again);
            pending.tasks.insert(number, waiting);
            handles.push(Handle::new(number, ticket, Arc::downgrade(&self.inner)));
        }
        drop(pending);
        // Without a connection they are sent once there is one.
        let socket = lock(&self.inner.link).socket();
        let sent = match &socket {
            Some(socket) => wire::send_encoded(socket, &message, &[]),
            None => Ok(()),
        };
        drop(guard);
        match sent {
            Err(error) if lasting => {
                // Whoever reads finds out, too, and sends them again.
                tracing::debug!(%error, "tasks go to the next worker");
                if let Some(socket) = &socket {
                    leave(socket);
                }
                Ok(handles)
            }
            Err(error) => {
                let mut pending = lock(&self.inner.pending);
                for handle in &handles {
                    pending.tasks.remove(&handle.number());
                }
                Err(Error::Lost(error.to_string()))
            }
            Ok(()) => Ok(handles),
        }
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

    /// Bounds the part of a device's time that tasks take, above 0 and up to 1.
    ///
    /// # Errors
    /// When the broker is gone, has no such device, or that is no part.
    pub fn set_limit(&self, device: &str, part: f64) -> Result<(), Error> {
        let device = device.to_owned();
        if !part.is_finite() {
            return Err(Error::Refused(format!("a part of {part} is none")));
        }
        self.done(&Request::Limit { device, part }, &[])
    }

    /// The process that listens at the other end, and its user.
    ///
    /// # Errors
    /// What the system says.
    pub fn peer(&self) -> io::Result<(u32, u32)> {
        let link = lock(&self.inner.link).socket();
        let socket = link.ok_or(io::ErrorKind::NotConnected)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).map_err(io::Error::other)?;
        Ok((pid, peer.uid.as_raw()))
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
        let message = wire::encode(request)
            .map_err(|error| Error::Refused(format!("ask the worker: {error}")))?;
        let replies = lock(&self.replies);
        let mut left = ATTEMPTS_MAX;
        loop {
            left -= 1;
            let (socket, generation) = self.connected()?;
            let answer = ask_there(
                &socket,
                generation,
                &replies,
                (&message, descriptors),
                within,
            );
            match answer {
                Ok(reply) => return reply,
                // Everything that is asked may be asked again.
                Err(_) if self.patience.is_some() && left > 0 => self.await_other(generation)?,
                Err(why) => {
                    let known = lock(&self.pending).lost.clone();
                    return Err(Error::Lost(known.unwrap_or(why)));
                }
            }
        }
    }
}

/// Asks over one connection: what was replied, or why nothing is.
fn ask_there(
    socket: &OwnedFd,
    generation: u64,
    replies: &Receiver<Said>,
    (message, descriptors): (&[u8], &[BorrowedFd<'_>]),
    within: Duration,
) -> Result<Result<Reply, Error>, String> {
    let end = Instant::now() + within;
    let failed = |why: String| {
        // A reply that came now would be taken for that to another question.
        leave(socket);
        why
    };
    wire::send_encoded(socket, message, descriptors).map_err(|error| failed(error.to_string()))?;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let said = replies.recv_timeout(left);
        let said = said.map_err(|_| failed("it does not answer".to_owned()))?;
        if said.generation != generation {
            continue;
        }
        return match said.reply {
            Ok(Reply::Refused { why }) => Ok(Err(Error::Refused(why))),
            Ok(reply) => Ok(Ok(reply)),
            Err(why) => Err(why),
        };
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
        self.inner.close();
    }
}
