//! The broker of one app: takes tasks, gives each a place, answers each exactly once.
//!
//! One lock guards [`State`]; nothing is computed, sent or waited for under it. A task is in
//! `tasks` from when it was taken until it is answered, and only [`finish`](Shared::finish)
//! removes and answers one. CPU kernels run in threads here, or in the thread that read them where
//! they end at once. Each device has a thread here that drives a process there.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::device::{Backend, BuildError, Constant, DeviceInfo};
use crate::dispatch::Model;
use crate::kernel::{Access, Kernel};
use crate::memory::Region;
use crate::process::Launcher;
use crate::task::{Grid, Scalar, Shape, View};
use crate::wire::{Build, Definition, KernelStatus, Outcome, Reply, Stats, Wish};

mod device;
mod kept;
mod place;
mod session;
mod standing;
mod take;
#[cfg(test)]
mod tests;

use kept::Kept;
pub(crate) use session::check_kernel;
use standing::Standing;

/// Tasks of one client that are not answered yet, at most.
pub const CLIENT_TASKS_MAX: usize = 64;
/// Clients at a time at most.
pub const CLIENTS_MAX: usize = 64;
/// Pieces of memory of one client at most.
pub const CLIENT_REGIONS_MAX: usize = 256;
/// Kernels of one client at most.
pub const CLIENT_KERNELS_MAX: usize = 64;
/// A client that reads nothing for so long is left.
const SEND_BOUND: Duration = Duration::from_secs(1);

/// How a broker works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub socket: PathBuf,
    pub cpu_threads: usize,
    /// Tasks that are not answered yet, of all clients.
    pub tasks_max: usize,
    /// One result of a device in so many is computed on the CPU too.
    pub verify_one_in: u64,
    /// The longest run on a device.
    pub run_max: Duration,
    /// The longest that a device may take to open, or to build a kernel.
    pub build_max: Duration,
    /// How long a kernel, or a device, is left alone after its first fault; each further one doubles
    /// it, up to an hour.
    pub quarantine: Duration,
    /// The part of each device's time that tasks may take, above 0 and up to 1.
    pub device_part: f64,
    /// The most that the buffers of one task may take of a device's memory, in bytes.
    pub device_bytes_max: u64,
    /// Memory of one client that may be mapped.
    pub client_bytes_max: u64,
}

impl Options {
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            cpu_threads: std::thread::available_parallelism().map_or(1, usize::from),
            tasks_max: 1024,
            verify_one_in: 64,
            run_max: Duration::from_secs(30),
            build_max: Duration::from_secs(60),
            quarantine: Duration::from_secs(10),
            device_part: 1.0,
            device_bytes_max: u64::MAX,
            client_bytes_max: 64 << 30,
        }
    }
}

/// A broker that runs.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    listener: Arc<OwnedFd>,
    accepting: JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
}

/// Listens, and begins to drive these devices.
///
/// # Errors
/// When it cannot listen, or no thread can be started.
pub fn start(
    options: Options,
    devices: Vec<DeviceInfo>,
    launcher: Arc<dyn Launcher>,
) -> io::Result<Broker> {
    start_with(options, devices, launcher, all_built_in())
}

fn start_with(
    options: Options,
    devices: Vec<DeviceInfo>,
    launcher: Arc<dyn Launcher>,
    built_in: BTreeMap<String, Arc<Known>>,
) -> io::Result<Broker> {
    let listener = Arc::new(session::listen(&options.socket)?);
    let slots = devices.into_iter().map(Slot::new).collect();
    let shared = Arc::new(Shared::new(options, slots, built_in));
    let mut threads = Vec::new();
    for number in 0..shared.options.cpu_threads.max(1) {
        let shared = Arc::clone(&shared);
        threads.push(named(format!("cpu-{number}"), move || take::run(&shared))?);
    }
    for index in 0..shared.slots.len() {
        let (shared, launcher) = (Arc::clone(&shared), Arc::clone(&launcher));
        threads.push(named(format!("device-{index}"), move || {
            device::drive(&shared, index, &*launcher);
        })?);
    }
    let (accepted, heard) = (Arc::clone(&shared), Arc::clone(&listener));
    let accepting = named("accept".to_owned(), move || {
        session::accept(&accepted, &heard);
    })?;
    Ok(Broker {
        shared,
        listener,
        accepting,
        threads,
    })
}

fn named(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(run)
}

impl Broker {
    /// Serves until the listener fails.
    pub fn serve(self) {
        if self.accepting.join().is_err() {
            tracing::error!("the thread that hears clients ended; no new client is heard");
        }
    }

    /// Ends: clients are left, processes of devices ended, threads joined.
    ///
    /// # Panics
    /// When a thread of the broker did.
    pub fn stop(self) {
        let sockets: Vec<Arc<OwnedFd>> = {
            let mut state = self.shared.lock();
            state.stopping = true;
            let sessions = state.sessions.values();
            sessions
                .map(|session| Arc::clone(&session.socket))
                .collect()
        };
        self.shared.cpu_ready.notify_all();
        for slot in &self.shared.slots {
            slot.ready.notify_all();
        }
        leave(&self.listener);
        for socket in sockets {
            leave(&socket);
        }
        for thread in self.threads.into_iter().chain([self.accepting]) {
            assert!(thread.join().is_ok(), "a thread of the broker panicked");
        }
    }
}

/// The kernels that every app has, where no broker is asked.
#[must_use]
pub fn built_in() -> Vec<KernelStatus> {
    all_built_in()
        .values()
        .map(|known| known.status())
        .collect()
}

fn all_built_in() -> BTreeMap<String, Arc<Known>> {
    by_name(crate::kernels::built_in())
}

fn by_name(kernels: Vec<Kernel>) -> BTreeMap<String, Arc<Known>> {
    let named = kernels.into_iter().map(|kernel| {
        let name = kernel.name.to_string();
        let known = Known {
            history: name.as_str().into(),
            kernel,
            definition: None,
        };
        (name, Arc::new(known))
    });
    named.collect()
}

/// Ends a connection, so that whoever reads it knows.
fn leave(socket: &OwnedFd) {
    // One that is not connected any more is left already.
    rustix::net::shutdown(socket.as_fd(), rustix::net::Shutdown::Both).ok();
}

#[derive(Debug)]
struct Shared {
    options: Options,
    began: Instant,
    slots: Vec<Slot>,
    state: Mutex<State>,
    cpu_ready: Condvar,
    built_in: BTreeMap<String, Arc<Known>>,
}

/// A device, as far as it never changes.
#[derive(Debug)]
struct Slot {
    info: DeviceInfo,
    /// What is learnt is learnt of this.
    key: Arc<str>,
    ready: Condvar,
}

impl Slot {
    fn new(info: DeviceInfo) -> Self {
        let DeviceInfo {
            backend,
            platform,
            driver,
            name,
            ..
        } = &info;
        Self {
            key: format!("{backend}/{platform}/{driver}/{name}").into(),
            ready: Condvar::new(),
            info,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<u64, Session>,
    tasks: BTreeMap<u64, Entry>,
    /// The number of the next session, and of the next task.
    next: u64,
    cpu: VecDeque<u64>,
    cpu_wait_us: f64,
    devices: Vec<DeviceState>,
    model: Model,
    price: f64,
    stats: Stats,
    stopping: bool,
}

/// A kernel, and under which name what is learnt of it is kept.
#[derive(Debug)]
struct Known {
    kernel: Kernel,
    /// Of an app's own: the source is part of it.
    history: Arc<str>,
    definition: Option<Definition>,
}

impl Known {
    const fn has_source(&self, backend: Backend) -> bool {
        self.kernel.sources.has(backend)
    }

    fn status(&self) -> KernelStatus {
        let all = Backend::ALL.into_iter();
        KernelStatus {
            name: self.kernel.name.to_string(),
            signature: self.kernel.signature.clone(),
            backends: all.filter(|backend| self.has_source(*backend)).collect(),
        }
    }
}

#[derive(Debug)]
struct Session {
    socket: Arc<OwnedFd>,
    regions: BTreeMap<u32, Arc<Region>>,
    kernels: BTreeMap<String, Arc<Known>>,
    tasks: usize,
}

/// A task, as it was taken.
#[derive(Debug)]
struct Work {
    session: u64,
    socket: Arc<OwnedFd>,
    task: u64,
    known: Arc<Known>,
    size: u8,
    buffers: Vec<Buffer>,
    elements: Vec<usize>,
    /// Of all buffers.
    bytes: u64,
    scalars: Vec<Scalar>,
    grid: Grid,
    submitted: Instant,
    deadline: Option<Instant>,
    wish: Wish,
}

/// A part of memory that is checked.
#[derive(Debug)]
struct Buffer {
    region: Arc<Region>,
    offset: usize,
    length: usize,
    access: Access,
}

impl Buffer {
    /// What a device may keep its copy by.
    fn constant(&self) -> Option<Constant> {
        let memory = self.region.constant_number()?;
        (self.access == Access::Read).then_some(Constant {
            memory,
            offset: self.offset as u64,
            length: self.length as u64,
        })
    }

    fn conflicts(&self, other: &Self) -> bool {
        (self.access.writes() || other.access.writes())
            && self.region.identity() == other.region.identity()
            && self.offset < other.offset + other.length
            && other.offset < self.offset + self.length
    }
}

impl Work {
    fn shape(&self) -> Shape<'_> {
        Shape {
            elements: &self.elements,
            scalars: &self.scalars,
            grid: self.grid,
        }
    }

    fn conflicts(&self, other: &Self) -> bool {
        let mut own = self.buffers.iter();
        own.any(|own| other.buffers.iter().any(|other| own.conflicts(other)))
    }

    /// The buffers, to compute with.
    ///
    /// # Safety
    /// The caller alone runs this task, which is in `tasks`; while it is, no task that conflicts
    /// with it runs.
    #[expect(unsafe_code, reason = "memory is shared by its addresses")]
    unsafe fn views(&self) -> Vec<View<'_>> {
        let mut views = Vec::with_capacity(self.buffers.len());
        for buffer in &self.buffers {
            let Buffer { offset, length, .. } = *buffer;
            // SAFETY: tasks that conflict do not run, as the caller promises, and the parts of one
            // task that are written were checked not to overlap any other part of it. Memory that
            // is shared has no safe accessor.
            views.push(unsafe {
                match buffer.access {
                    Access::Read => View::Read(buffer.region.bytes(offset, length)),
                    Access::Write => View::Write(buffer.region.bytes_mut(offset, length)),
                    Access::ReadWrite => View::ReadWrite(buffer.region.bytes_mut(offset, length)),
                }
            });
        }
        views
    }
}

#[derive(Debug)]
struct Entry {
    work: Arc<Work>,
    phase: Phase,
    /// Earlier tasks that touch the same memory and are not answered.
    waits: usize,
    /// Later tasks that wait for this one.
    followers: Vec<u64>,
    began: Option<Instant>,
    /// Devices that failed it.
    retries: u32,
    /// Who waits for the client to compute it, beside the run on a device.
    asked: Option<SyncSender<Result<(), String>>>,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// For others that touch the same memory.
    Waits,
    /// For the CPU (0) or a device (its index + 1), which is expected to take so long.
    Queued {
        expected_us: f64,
        place: usize,
    },
    Runs,
    /// The client computes it.
    AtClient,
}

#[derive(Debug)]
struct DeviceState {
    queue: VecDeque<Job>,
    wait_us: f64,
    standing: Standing,
    built: BTreeMap<Arc<str>, Built>,
    tasks: u64,
    verified: u64,
    faults: u64,
    busy: Duration,
    kept: Kept,
    /// What was not copied to it because it was kept, in bytes.
    spared: u64,
}

impl DeviceState {
    fn new(part: f64) -> Self {
        Self {
            queue: VecDeque::new(),
            wait_us: 0.0,
            standing: Standing::new(part, Instant::now()),
            built: BTreeMap::new(),
            tasks: 0,
            verified: 0,
            faults: 0,
            busy: Duration::ZERO,
            kept: Kept::default(),
            spared: 0,
        }
    }

    /// What it keeps of what a task reads, in bytes.
    fn kept_of(&self, work: &Work) -> u64 {
        let constants = work.buffers.iter().filter_map(Buffer::constant);
        let kept = constants.filter(|constant| self.kept.holds(constant));
        kept.map(|constant| constant.length).sum()
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Built {
    Asked,
    Ready,
    Never(BuildError),
}

#[derive(Debug)]
enum Job {
    Build(Arc<Known>, Option<Arc<Registration>>),
    Run(u64),
    /// Frees copies of memory that its client gave back.
    Forget(Vec<Constant>),
}

/// Who is told when all devices built a kernel.
#[derive(Debug)]
struct Registration {
    socket: Arc<OwnedFd>,
    builds: Mutex<(usize, Vec<Build>)>,
}

impl Registration {
    /// One device is done; the last one's thread tells the client.
    fn built(&self, build: Build) {
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        builds.0 -= 1;
        builds.1.push(build);
        if builds.0 == 0 {
            let mut all = std::mem::take(&mut builds.1);
            all.sort_by(|a, b| a.device.cmp(&b.device));
            drop(builds);
            say(&self.socket, &Reply::Registered { builds: all });
        }
    }
}

/// What is sent once the lock is free.
type Outbox = Vec<(Arc<OwnedFd>, Reply)>;

/// Tells a client something. One that does not read is left, and finds out by that.
fn say(socket: &Arc<OwnedFd>, reply: &Reply) {
    let mut sent = crate::wire::send(socket.as_fd(), reply, &[]);
    if let Err(error) = &sent
        && error.kind() == io::ErrorKind::InvalidInput
    {
        let why = format!("answer: {error}; ask for less at once, or register fewer kernels");
        sent = crate::wire::send(socket.as_fd(), &Reply::Refused { why }, &[]);
    }
    if let Err(error) = sent {
        tracing::debug!(%error, "a client is gone, or reads nothing");
        leave(socket);
    }
}

fn say_all(outbox: Outbox) {
    for (socket, reply) in outbox {
        say(&socket, &reply);
    }
}

impl Shared {
    fn new(options: Options, slots: Vec<Slot>, built_in: BTreeMap<String, Arc<Known>>) -> Self {
        let state = State {
            devices: slots
                .iter()
                .map(|_| DeviceState::new(options.device_part))
                .collect(),
            price: 1.0,
            ..State::default()
        };
        Self {
            options,
            began: Instant::now(),
            slots,
            state: Mutex::new(state),
            cpu_ready: Condvar::new(),
            built_in,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked under the lock broke an invariant: its panic is the message.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a task and lets those go on that waited for it. Does nothing for one that was
    /// answered already.
    fn finish(&self, ticket: u64, outcome: Outcome) {
        let mut outbox = Outbox::new();
        let mut state = self.lock();
        self.finish_locked(&mut state, ticket, outcome, &mut outbox);
        drop(state);
        say_all(outbox);
    }

    fn finish_locked(&self, state: &mut State, ticket: u64, outcome: Outcome, outbox: &mut Outbox) {
        let Some(entry) = state.tasks.remove(&ticket) else {
            return;
        };
        state.take_out(ticket, entry.phase);
        state.stats.count(&outcome);
        let work = entry.work;
        if let Some(session) = state.sessions.get_mut(&work.session) {
            session.tasks -= 1;
            let answer = Reply::Answer {
                task: work.task,
                outcome,
            };
            outbox.push((Arc::clone(&work.socket), answer));
        }
        drop(work);
        for follower in entry.followers {
            let Some(next) = state.tasks.get_mut(&follower) else {
                continue;
            };
            next.waits -= 1;
            if next.waits == 0 {
                self.place(state, follower, outbox);
                self.cpu_ready.notify_one();
            }
        }
    }
}

impl State {
    /// Takes a task that will not run out of where it stands: who submits and cancels leaves nothing.
    fn take_out(&mut self, ticket: u64, phase: Phase) {
        match phase {
            Phase::Waits => {
                for other in self.tasks.values_mut() {
                    other.followers.retain(|follower| *follower != ticket);
                }
            }
            Phase::Queued { place, .. } => match place.checked_sub(1) {
                None => self.cpu.retain(|queued| *queued != ticket),
                Some(index) => {
                    let queue = &mut self.devices[index].queue;
                    queue.retain(|job| !matches!(job, Job::Run(queued) if *queued == ticket));
                }
            },
            Phase::Runs | Phase::AtClient => {}
        }
        self.left_queue(phase);
    }

    /// What a queue was expected to take is less by a task that leaves it.
    fn left_queue(&mut self, phase: Phase) {
        if let Phase::Queued { expected_us, place } = phase {
            let wait = match place.checked_sub(1) {
                None => &mut self.cpu_wait_us,
                Some(index) => &mut self.devices[index].wait_us,
            };
            *wait = (*wait - expected_us).max(0.0);
        }
    }
}

impl Stats {
    fn count(&mut self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Done(run) if run.place == crate::dispatch::CPU => &mut self.on_cpu,
            Outcome::Done(_) => &mut self.on_devices,
            Outcome::Failed(_) => &mut self.failed,
            Outcome::Refused(_) => &mut self.refused,
            Outcome::Busy => &mut self.busy,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Late => &mut self.late,
        };
        *counter += 1;
    }
}
