//! Clients: one thread for each, which reads what it asks.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen as start_listening, socket_with,
};

use super::place::INLINE_US;
use super::{
    Buffer, Built, CLIENT_KERNELS_MAX, CLIENT_REGIONS_MAX, CLIENT_TASKS_MAX, CLIENTS_MAX, Entry,
    Job, Known, Outbox, Phase, Registration, SEND_BOUND, Session, Shared, State, Work, leave, say,
    say_all,
};
use crate::dispatch::bucket;
use crate::kernel::{BUFFERS_MAX, Check, Cpu, Kernel, Launches, NAME_MAX, SCALARS_MAX};
use crate::memory::Region;
use crate::task::Shape;
use crate::wire::{
    self, Definition, DeviceStatus, KernelStatus, KernelThere, Outcome, Piece, Reader, Reply,
    Request, SOURCE_MAX, Task, There, VERSION,
};

/// Clients that wait to be accepted.
const BACKLOG: i32 = 16;
/// A client says hello in so long a time.
const HELLO_BOUND: Duration = Duration::from_secs(5);
/// How long no client is taken after one could not be; each further time doubles it.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Opens the socket, in the place of one that nobody listens on any more.
pub(super) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let open = || {
        socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
    };
    let socket = open()?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            if connect(open()?, &address).is_ok() {
                let path = path.display();
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another worker listens on {path}; end it, or name another socket"),
                ));
            }
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                let path = path.display();
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{path} is no socket; move it away, or name another socket"),
                ));
            }
            std::fs::remove_file(path)?;
            bind(&socket, &address)?;
        }
        bound => bound?,
    }
    start_listening(&socket, BACKLOG)?;
    Ok(socket)
}

/// Takes clients until the listener is left.
///
/// What this process lacks to take one (descriptors, memory, threads) others may give back: the client waits
/// in the meantime, and it is said once until one is taken again.
pub(super) fn accept(shared: &Arc<Shared>, listener: &OwnedFd) {
    let mut pause = PAUSE;
    let mut lacking = false;
    loop {
        let taken = match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => hear(shared, socket),
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            // The broker ends.
            Err(Errno::INVAL) => return,
            Err(error @ (Errno::BADF | Errno::NOTSOCK | Errno::OPNOTSUPP)) => {
                tracing::error!(%error, "no client can be heard any more");
                return;
            }
            Err(error) => Err(error.into()),
        };
        match taken {
            Ok(()) => {
                if std::mem::take(&mut lacking) {
                    tracing::info!("clients are heard again");
                }
                pause = PAUSE;
            }
            Err(error) => {
                if !std::mem::replace(&mut lacking, true) {
                    tracing::warn!(
                        %error,
                        "no client can be heard now, which is tried again; look at this process's limits \
                         (RLIMIT_NOFILE, RLIMIT_NPROC), or end clients"
                    );
                }
                // Whoever waits to be taken keeps the listener readable: nothing tells when it is worth
                // to try again.
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Has a thread hear a client.
fn hear(shared: &Arc<Shared>, socket: OwnedFd) -> io::Result<()> {
    let thread = Arc::clone(shared);
    std::thread::Builder::new()
        .name("client".to_owned())
        .spawn(move || serve(&thread, Arc::new(socket)))
        .map(drop)
}

fn serve(shared: &Arc<Shared>, socket: Arc<OwnedFd>) {
    let number = match greet(shared, &socket) {
        Ok(number) => number,
        Err(why) => {
            tracing::warn!(why, "a client is refused");
            say(&socket, &Reply::Refused { why });
            return;
        }
    };
    let mut reader = Reader::default();
    loop {
        match reader.receive::<Request>(socket.as_fd()) {
            Ok(Some((request, descriptors))) => {
                shared.handle(number, &socket, request, descriptors);
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "a client is left: it sent what is no request");
                let why = format!("read a request: {error}; see the protocol");
                say(&socket, &Reply::Refused { why });
                break;
            }
        }
    }
    leave(&socket);
    shared.forget_session(number);
}

/// Whoever may be a client: this process's own user, and root.
fn greet(shared: &Shared, socket: &Arc<OwnedFd>) -> Result<u64, String> {
    let refused = |error: &dyn std::fmt::Display| format!("greet a client: {error}");
    let peer = socket_peercred(socket).map_err(|error| refused(&error))?;
    if !peer.uid.is_root() && peer.uid != rustix::process::getuid() {
        return Err(format!(
            "user {} is not the one that this worker runs as; each user has a worker of its own",
            peer.uid.as_raw()
        ));
    }
    set_socket_timeout(socket, Timeout::Send, Some(SEND_BOUND)).map_err(|e| refused(&e))?;
    let mut reader = Reader::default();
    let heard = reader.receive_within::<Request>(socket.as_fd(), HELLO_BOUND);
    match heard.map_err(|error| refused(&error))? {
        Some((Request::Hello { version: VERSION }, _)) => {}
        Some((Request::Hello { version }, _)) => {
            return Err(format!(
                "version {version} of the protocol is not spoken here, {VERSION} is"
            ));
        }
        _ => return Err("a client says hello first".to_owned()),
    }
    let mut state = shared.lock();
    if state.stopping || state.sessions.len() >= CLIENTS_MAX {
        return Err(format!(
            "there are {CLIENTS_MAX} clients, the most that can be"
        ));
    }
    let number = state.number();
    let session = Session {
        socket: Arc::clone(socket),
        regions: std::collections::BTreeMap::new(),
        kernels: std::collections::BTreeMap::new(),
        tasks: 0,
    };
    state.sessions.insert(number, session);
    drop(state);
    say(socket, &Reply::Welcome { version: VERSION });
    Ok(number)
}

impl State {
    /// Forgets what devices made of kernels that are no other client's, too.
    fn forget_kernels(&mut self, session: &Session) {
        for known in session.kernels.values() {
            let mut others = self.sessions.values().flat_map(|own| own.kernels.values());
            if !others.any(|other| other.history == known.history) {
                for device in &mut self.devices {
                    device.built.remove(&known.history);
                    // Nobody hears any more what came of it.
                    let builds = |job: &Job| matches!(job, Job::Build(one, _) if one.history == known.history);
                    device.queue.retain(|job| !builds(job));
                }
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Shared {
    fn handle(
        &self,
        session: u64,
        socket: &Arc<OwnedFd>,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) {
        let done = |result: Result<(), String>| {
            let reply = result.map_or_else(|why| Reply::Refused { why }, |()| Reply::Done);
            say(socket, &reply);
        };
        match request {
            Request::Hello { .. } => done(Err("hello was said".to_owned())),
            Request::Share { memory, bytes } => {
                done(self.share(session, memory, bytes, descriptors));
            }
            Request::Forget { memory } => {
                let mut state = self.lock();
                let own = state.sessions.get_mut(&session);
                let forgotten = own.and_then(|own| own.regions.remove(&memory));
                self.forget_copies(&mut state, forgotten.as_slice());
                drop(state);
                done(forgotten.map(drop).ok_or_else(|| unknown_memory(memory)));
            }
            Request::Register(definition) => {
                if let Err(why) = self.register(session, socket, *definition) {
                    done(Err(why));
                }
            }
            Request::Submit(tasks) => self.submit(session, socket, tasks),
            Request::Cancel { task } => self.cancel(session, task),
            Request::Computed { ticket, error } => self.computed(session, ticket, error),
            Request::Devices => say(socket, &Reply::Devices(self.devices())),
            Request::Kernels => say(socket, &Reply::Kernels(self.kernels(session))),
            Request::Stats => say(socket, &Reply::Stats(Box::new(self.stats()))),
            Request::Price { cpu } => {
                let fits = (1.0..=100.0).contains(&cpu);
                if fits {
                    self.lock().price = cpu;
                }
                done(if fits {
                    Ok(())
                } else {
                    Err(format!("a price of {cpu} is none; name one from 1 to 100"))
                });
            }
            Request::Limit { device, part } => done(self.limit(&device, part)),
        }
    }

    /// Bounds what tasks take of a device's time, within what this worker was started with.
    fn limit(&self, device: &str, part: f64) -> Result<(), String> {
        if !(part > 0.0 && part <= 1.0) {
            return Err(format!(
                "a part of {part} is none; name one above 0 and up to 1"
            ));
        }
        let mut slots = self.slots.iter();
        let index = slots.position(|slot| slot.info.id == device);
        let index = index.ok_or_else(|| format!("there is no device {device}"))?;
        let part = part.min(self.options.device_part);
        let standing = &mut self.lock().devices[index].standing;
        standing.set_part(part, Instant::now());
        Ok(())
    }

    fn share(
        &self,
        session: u64,
        memory: u32,
        bytes: u64,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let (Some(file), true) = (descriptors.pop(), descriptors.is_empty()) else {
            return Err(
                "share memory: exactly one descriptor comes beside it, and none or others could be \
                 taken; send one, and raise the worker's limit on open files (RLIMIT_NOFILE) where it \
                 is reached"
                    .to_owned(),
            );
        };
        let length = usize::try_from(bytes).map_err(|_| "share memory: too long".to_owned())?;
        // The lock is free while the kernel maps it; only this thread adds memory to the session.
        let shared = {
            let state = self.lock();
            let regions = state.sessions.get(&session).map(|own| &own.regions);
            regions.map_or((0, 0, false), |regions| {
                let held = regions.values().map(|region| region.length() as u64).sum();
                (regions.len(), held, regions.contains_key(&memory))
            })
        };
        let (count, held, known): (usize, u64, bool) = shared;
        let most = self.options.client_bytes_max;
        if known {
            return Err(format!(
                "memory {memory} is shared already; forget it first"
            ));
        }
        if count >= CLIENT_REGIONS_MAX || held.saturating_add(bytes) > most {
            return Err(format!(
                "share {bytes} bytes: a client shares at most {CLIENT_REGIONS_MAX} pieces and \
                 {most} bytes; forget what is not needed"
            ));
        }
        let region = Arc::new(Region::map(file, length)?);
        if let Some(own) = self.lock().sessions.get_mut(&session) {
            own.regions.insert(memory, region);
        }
        Ok(())
    }

    fn register(
        &self,
        session: u64,
        socket: &Arc<OwnedFd>,
        definition: Definition,
    ) -> Result<(), String> {
        let name = definition.name.clone();
        let failed = |why: &str| format!("register kernel {name:?}: {why}");
        let refuse = |why: &str| Err(failed(why));
        if self.built_in.contains_key(&name) {
            return refuse("there is a built-in one of that name; choose another");
        }
        let known = Arc::new(check_definition(definition).map_err(|why| failed(&why))?);
        let mut state = self.lock();
        let Some(own) = state.sessions.get_mut(&session) else {
            return Ok(());
        };
        if own.kernels.contains_key(&name) {
            return refuse("it was registered already");
        }
        if own.kernels.len() >= CLIENT_KERNELS_MAX {
            return refuse(&format!("a client registers at most {CLIENT_KERNELS_MAX}"));
        }
        own.kernels.insert(name.clone(), Arc::clone(&known));
        let sources = self.slots.iter();
        let builders = sources.filter(|slot| known.has_source(slot.info.backend));
        let builders = builders.count();
        if builders == 0 {
            drop(state);
            say(socket, &Reply::Registered { builds: Vec::new() });
            return Ok(());
        }
        let registration = Arc::new(Registration {
            socket: Arc::clone(socket),
            builds: Mutex::new((builders, Vec::new())),
        });
        self.build_everywhere(&mut state, &known, Some(&registration));
        Ok(())
    }

    fn submit(&self, session: u64, socket: &Arc<OwnedFd>, tasks: Vec<Task>) {
        let now = Instant::now();
        for task in tasks {
            let number = task.task;
            let mut outbox = Outbox::new();
            let mut state = self.lock();
            let mut inline = None;
            match self.take(&mut state, session, task, now) {
                Ok(ticket) => {
                    let waits = state
                        .tasks
                        .get(&ticket)
                        .is_some_and(|entry| entry.waits > 0);
                    if !waits {
                        self.place(&mut state, ticket, &mut outbox);
                        inline = self.take_small(&mut state, ticket);
                    }
                }
                Err(outcome) => {
                    state.stats.count(&outcome);
                    let answer = Reply::Answer {
                        task: number,
                        outcome,
                    };
                    outbox.push((Arc::clone(socket), answer));
                }
            }
            drop(state);
            say_all(outbox);
            if let Some((ticket, begun)) = inline {
                self.run_begun(ticket, begun);
            }
        }
    }

    /// Takes back what was just queued for the CPU where it is so small that this thread runs it.
    fn take_small(&self, state: &mut State, ticket: u64) -> Option<(u64, super::take::Begun)> {
        let entry = state.tasks.get(&ticket)?;
        let Phase::Queued {
            expected_us,
            place: 0,
        } = entry.phase
        else {
            return None;
        };
        if expected_us > INLINE_US || state.cpu.back() != Some(&ticket) {
            return None;
        }
        state.cpu.pop_back();
        Some((ticket, self.begin(state, ticket)))
    }

    /// Checks a task and takes it.
    fn take(
        &self,
        state: &mut State,
        session: u64,
        task: Task,
        now: Instant,
    ) -> Result<u64, Outcome> {
        let full = state.tasks.len() >= self.options.tasks_max;
        let Some(own) = state.sessions.get(&session) else {
            return Err(Outcome::Cancelled);
        };
        if full || own.tasks >= CLIENT_TASKS_MAX {
            return Err(Outcome::Busy);
        }
        let mut tasks = state.tasks.values().map(|entry| &entry.work);
        if tasks.any(|work| work.session == session && work.task == task.task) {
            let why = format!("task {} is not answered yet; number it anew", task.task);
            return Err(Outcome::Refused(why));
        }
        let work = self
            .resolve(own, session, task, now)
            .map_err(Outcome::Refused)?;
        let earlier: Vec<u64> = state
            .tasks
            .iter()
            .filter(|(_, entry)| entry.work.conflicts(&work))
            .map(|(ticket, _)| *ticket)
            .collect();
        let ticket = state.number();
        for other in &earlier {
            if let Some(entry) = state.tasks.get_mut(other) {
                entry.followers.push(ticket);
            }
        }
        let entry = Entry {
            work: Arc::new(work),
            phase: Phase::Waits,
            waits: earlier.len(),
            followers: Vec::new(),
            began: None,
            retries: 0,
            asked: None,
        };
        state.tasks.insert(ticket, entry);
        if let Some(own) = state.sessions.get_mut(&session) {
            own.tasks += 1;
        }
        Ok(ticket)
    }

    fn resolve(
        &self,
        own: &Session,
        session: u64,
        task: Task,
        now: Instant,
    ) -> Result<Work, String> {
        let known = own.kernels.get(&task.kernel);
        let known = known.or_else(|| self.built_in.get(&task.kernel));
        let known = known.ok_or_else(|| {
            format!(
                "there is no kernel {:?}; `forebay accel kernels` lists those that are built in, \
                 and a client registers its own",
                task.kernel
            )
        })?;
        let parameters = &known.kernel.signature.buffers;
        if task.buffers.len() != parameters.len() {
            return Err(format!(
                "kernel {} takes {} buffers, and was given {}",
                task.kernel,
                parameters.len(),
                task.buffers.len()
            ));
        }
        let mut buffers: Vec<Buffer> = Vec::with_capacity(parameters.len());
        let mut elements = Vec::with_capacity(parameters.len());
        for (piece, parameter) in task.buffers.iter().zip(parameters) {
            let failed = |why: String| format!("kernel {}, {}: {why}", task.kernel, parameter.name);
            let region = own.regions.get(&piece.memory);
            let region = region.ok_or_else(|| failed(unknown_memory(piece.memory)))?;
            let (offset, length) =
                within(piece, region, parameter.element.size()).map_err(failed)?;
            if parameter.access.writes() && !region.writable() {
                let why = format!("memory {} is only for reading", piece.memory);
                return Err(failed(why));
            }
            if parameter.access.writes() && !piece.write {
                return Err(failed("it is written, and was given to read".to_owned()));
            }
            let buffer = Buffer {
                region: Arc::clone(region),
                offset,
                length,
                access: parameter.access,
            };
            if buffers.iter().any(|other| other.conflicts(&buffer)) {
                let why = "what is written overlaps another buffer of the task".to_owned();
                return Err(failed(why));
            }
            elements.push(length / parameter.element.size());
            buffers.push(buffer);
        }
        let shape = Shape {
            elements: &elements,
            scalars: &task.scalars,
            grid: task.grid,
        };
        known.kernel.check(&shape)?;
        let bytes: u64 = buffers.iter().map(|buffer| buffer.length as u64).sum();
        let deadline = task.deadline_us.map(Duration::from_micros);
        Ok(Work {
            session,
            socket: Arc::clone(&own.socket),
            task: task.task,
            known: Arc::clone(known),
            size: bucket(bytes),
            buffers,
            elements,
            bytes,
            scalars: task.scalars,
            grid: task.grid,
            submitted: now,
            // One beyond what a clock holds is none.
            deadline: deadline.and_then(|within| now.checked_add(within)),
            wish: task.place,
        })
    }

    /// A task that did not begin is answered as cancelled; one that runs is answered when it ends.
    fn cancel(&self, session: u64, task: u64) {
        let mut outbox = Outbox::new();
        let mut state = self.lock();
        let mut tasks = state.tasks.iter();
        let found = tasks.find(|(_, entry)| {
            let idle = matches!(entry.phase, Phase::Waits | Phase::Queued { .. });
            entry.work.session == session && entry.work.task == task && idle
        });
        // One that was answered meanwhile has its answer.
        if let Some(ticket) = found.map(|(ticket, _)| *ticket) {
            self.finish_locked(&mut state, ticket, Outcome::Cancelled, &mut outbox);
        }
        drop(state);
        say_all(outbox);
    }

    /// A client computed what it was asked for.
    fn computed(&self, session: u64, ticket: u64, error: Option<String>) {
        let mut state = self.lock();
        let Some(entry) = state.tasks.get_mut(&ticket) else {
            return;
        };
        if entry.work.session != session {
            return;
        }
        let result = error.map_or(Ok(()), Err);
        if let Some(asked) = entry.asked.take() {
            drop(state);
            // Who waited for it may have given up.
            asked.send(result).ok();
            return;
        }
        if entry.phase == Phase::AtClient {
            let (work, began) = (Arc::clone(&entry.work), entry.began);
            drop(state);
            let began = began.unwrap_or_else(Instant::now);
            self.done_on_cpu(ticket, &work, began, result);
        }
    }

    /// Frees all that a client had. What runs for it ends first, and is answered to nobody.
    fn forget_session(&self, number: u64) {
        let mut outbox = Outbox::new();
        let mut state = self.lock();
        let session = state.sessions.remove(&number);
        if let Some(session) = &session {
            state.forget_kernels(session);
        }
        let own = state
            .tasks
            .iter()
            .filter(|(_, entry)| entry.work.session == number && entry.phase != Phase::Runs);
        let idle: Vec<u64> = own.map(|(ticket, _)| *ticket).collect();
        for ticket in idle {
            self.finish_locked(&mut state, ticket, Outcome::Cancelled, &mut outbox);
        }
        for entry in state.tasks.values_mut() {
            if entry.work.session == number {
                // Nobody computes it any more: who waits for that is told.
                entry.asked = None;
            }
        }
        let regions = session
            .into_iter()
            .flat_map(|own| own.regions.into_values());
        let regions: Vec<Arc<Region>> = regions.collect();
        self.forget_copies(&mut state, &regions);
        drop(state);
        drop(regions);
        say_all(outbox);
    }

    /// Has devices free their copies of memory that is of no session any more. They come before the next
    /// run there, which may count on the room.
    fn forget_copies(&self, state: &mut State, regions: &[Arc<Region>]) {
        let constant = regions.iter().filter_map(|region| region.constant_number());
        let memories: Vec<u64> = constant.collect();
        if memories.is_empty() {
            return;
        }
        for (slot, device) in self.slots.iter().zip(&mut state.devices) {
            let gone = device.kept.forget(&memories);
            if !gone.is_empty() {
                device.queue.push_front(Job::Forget(gone));
                slot.ready.notify_one();
            }
        }
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        let state = self.lock();
        let now = Instant::now();
        let since = self.began.elapsed().as_secs_f64().max(1e-9);
        let pairs = self.slots.iter().zip(&state.devices);
        let status = pairs.map(|(slot, device)| {
            let standing = &device.standing;
            let kernels = device.built.iter().map(|(kernel, built)| KernelThere {
                name: kernel.to_string(),
                state: match (built, standing.of_kernel(kernel, now)) {
                    (_, Some(left)) => There::Quarantined(left.told(now)),
                    (Built::Asked, None) => There::Builds,
                    (Built::Ready, None) => There::Ready,
                    (Built::Never(why), None) => There::Never(why.to_string()),
                },
            });
            DeviceStatus {
                info: slot.info.clone(),
                quarantine: standing.quarantine(now).map(|left| left.told(now)),
                tasks: device.tasks,
                verified: device.verified,
                faults: device.faults,
                utilisation: (device.busy.as_secs_f64() / since).min(1.0),
                busy_us: u64::try_from(device.busy.as_micros()).unwrap_or(u64::MAX),
                part: standing.part(),
                kept_bytes: device.kept.bytes(),
                spared_bytes: device.spared,
                kernels: kernels.collect(),
            }
        });
        status.collect()
    }

    fn kernels(&self, session: u64) -> Vec<KernelStatus> {
        let state = self.lock();
        let own = state.sessions.get(&session);
        let own = own.into_iter().flat_map(|own| own.kernels.values());
        let known = self.built_in.values().chain(own);
        known.map(|known| known.status()).collect()
    }

    fn stats(&self) -> wire::Stats {
        let state = self.lock();
        let mut stats = state.stats.clone();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        stats.clients = count(state.sessions.len());
        let regions = || state.sessions.values().flat_map(|own| own.regions.values());
        stats.regions = count(regions().count());
        stats.region_bytes = regions().map(|region| count(region.length())).sum();
        stats.queued = count(state.tasks.len());
        stats.cpu_price = state.price;
        stats.regret = state.model.regret();
        stats
    }
}

fn unknown_memory(memory: u32) -> String {
    format!("memory {memory} is not shared; share it first")
}

/// Offset and length of a piece, if it is in its memory, aligned, and of whole elements.
fn within(piece: &Piece, region: &Region, element: usize) -> Result<(usize, usize), String> {
    let Piece { offset, length, .. } = *piece;
    let held = region.length();
    let end = offset.checked_add(length);
    let inside = end.is_some_and(|end| end <= held as u64);
    let numbers = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(length).ok());
    let Some((start, bytes)) = numbers.filter(|_| inside && length > 0) else {
        return Err(format!(
            "{length} bytes at {offset} are not in its memory of {held} bytes, or nothing"
        ));
    };
    if start % element != 0 || bytes % element != 0 {
        return Err(format!(
            "{length} bytes at {offset} are not whole elements of {element} bytes"
        ));
    }
    Ok((start, bytes))
}

/// A kernel of an app, once it was checked.
pub(crate) fn check_kernel(definition: &Definition) -> Result<Kernel, String> {
    let Definition {
        name,
        signature,
        per_item,
        sources,
        tolerance,
    } = definition;
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins || name.len() > NAME_MAX || !name.chars().all(letters) {
        return Err(format!(
            "a name is a C identifier of at most {NAME_MAX} bytes: it is the entry point too"
        ));
    }
    let (buffers, scalars) = (signature.buffers.len(), signature.scalars.len());
    if buffers == 0 || buffers > BUFFERS_MAX || scalars > SCALARS_MAX {
        return Err(format!(
            "it takes 1 to {BUFFERS_MAX} buffers and up to {SCALARS_MAX} scalars"
        ));
    }
    if per_item.len() != buffers {
        return Err("`per_item` has a number for each buffer".to_owned());
    }
    if sources.length() > SOURCE_MAX {
        return Err(format!("its sources are longer than {SOURCE_MAX} bytes"));
    }
    Ok(Kernel {
        name: name.clone().into(),
        signature: signature.clone(),
        check: Check::PerItem(per_item.clone()),
        launches: Launches::Grid,
        sources: sources.clone(),
        tolerance: *tolerance,
        cpu: Cpu::Client,
    })
}

fn check_definition(definition: Definition) -> Result<Known, String> {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let kernel = check_kernel(&definition)?;
    let mut hasher = DefaultHasher::new();
    let text = serde_json::to_string(&definition).map_err(|error| error.to_string())?;
    text.hash(&mut hasher);
    Ok(Known {
        history: format!("{}#{:016x}", definition.name, hasher.finish()).into(),
        kernel,
        definition: Some(definition),
    })
}
