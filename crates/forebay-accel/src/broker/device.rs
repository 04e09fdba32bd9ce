//! Drives one device: a thread here, a process there.
//!
//! The process reads memory of clients and writes to memory of the broker's own, from which a
//! result is copied once it may be believed. So a device that dies or hangs in the middle leaves
//! nothing half written, and its task runs on the CPU as if it had never been elsewhere.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use super::standing::Blamed;
use super::take::{Begun, compute, micros};
use super::{Buffer, Built, Job, Known, Outbox, Shared, Work, say, say_all};
use crate::agree::agree;
use crate::device::{BuildError, Constant, DeviceError};
use crate::dispatch::{CPU, Ran};
use crate::kernel::{Access, Cpu};
use crate::memory::Region;
use crate::process::{Launcher, Process};
use crate::scratch::Scratch;
use crate::task::View;
use crate::wire::{self, Build, Order, Outcome, Reader, Reply, Report, Run, Source};

/// A run is a hang after so many times what was expected, but not before [`HANG_MIN`].
const HANG_TIMES: f64 = 50.0;
const HANG_MIN: Duration = Duration::from_secs(2);
/// Of what is said of a fault, in bytes.
const SAID_MAX: usize = 2048;
/// Where results begin, in bytes.
const ALIGNMENT: usize = 64;

pub(super) fn drive(shared: &Shared, index: usize, launcher: &dyn Launcher) {
    let mut driver = Driver {
        shared,
        index,
        launcher,
        live: None,
    };
    while let Some(job) = next(shared, index) {
        match job {
            Job::Build(known, registration) => {
                let error = driver.build(&known).err();
                if let Some(registration) = registration {
                    registration.built(Build {
                        device: shared.slots[index].info.id.clone(),
                        error,
                    });
                }
            }
            Job::Run(ticket) => driver.run(ticket),
            Job::Forget(constants) => driver.forget(constants),
        }
    }
}

fn next(shared: &Shared, index: usize) -> Option<Job> {
    let mut state = shared.lock();
    loop {
        if state.stopping {
            return None;
        }
        if let Some(job) = state.devices[index].queue.pop_front() {
            return Some(job);
        }
        let ready = &shared.slots[index].ready;
        state = ready
            .wait(state)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

struct Driver<'a> {
    shared: &'a Shared,
    index: usize,
    launcher: &'a dyn Launcher,
    live: Option<Live>,
}

/// The process of the device, as long as it may be believed.
struct Live {
    process: Process,
    reader: Reader,
    built: BTreeSet<Arc<str>>,
    /// Where it writes.
    staging: Option<Region>,
}

/// What a run in the process gave.
struct Given {
    /// Where each buffer that is written is, in the memory that it writes.
    offsets: Vec<Option<usize>>,
    /// Copied to it, in bytes, and how long that took.
    moved: u64,
    moved_in: Duration,
    /// Not copied, since it was kept, in bytes.
    spared: u64,
}

/// Whether a device may keep copies of what a task reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copies {
    Kept,
    Gone,
}

/// Why a device gave no result.
enum Trouble {
    /// This kernel is not to be computed there for a while.
    Fault(String),
    /// It is not to be used for a while: it does not even begin.
    Broken(String),
    OutOfMemory,
    NotBuilt(BuildError),
}

impl Driver<'_> {
    fn open(&mut self) -> Result<&mut Live, String> {
        if self.live.is_none() {
            let id = &self.shared.slots[self.index].info.id;
            let process = self.launcher.launch(id).map_err(|e| e.to_string())?;
            let mut reader = Reader::default();
            let within = self.shared.options.build_max;
            match receive(&process, &mut reader, within)? {
                Report::Ready(_) => {}
                Report::Unusable(why) => return Err(why),
                other => return Err(format!("its process said {other:?} when it began")),
            }
            self.live = Some(Live {
                process,
                reader,
                built: BTreeSet::new(),
                staging: None,
            });
        }
        self.live.as_mut().ok_or_else(|| "it is gone".to_owned())
    }

    /// Builds a kernel, and notes what came of it.
    fn build(&mut self, known: &Arc<Known>) -> Result<(), BuildError> {
        let mut outbox = Outbox::new();
        let result = match self.built(known) {
            Ok(()) => Ok(()),
            Err(Trouble::NotBuilt(error)) => Err(error),
            // A kernel that ends the compiler does so again.
            Err(Trouble::Fault(why)) => {
                self.quarantine(&known.history, Blamed::Kernel, &why, &mut outbox);
                drop(self.end());
                Err(BuildError::Failed(why))
            }
            // It has not seen the kernel: that is built once it runs again.
            Err(Trouble::Broken(why)) => {
                self.quarantine(&known.history, Blamed::Device, &why, &mut outbox);
                let mut state = self.shared.lock();
                state.devices[self.index].built.remove(&known.history);
                drop(state);
                say_all(outbox);
                return Err(BuildError::Failed(why));
            }
            Err(Trouble::OutOfMemory) => Err(BuildError::Failed("out of memory".to_owned())),
        };
        let noted = match &result {
            Ok(()) => Built::Ready,
            Err(error) => Built::Never(error.clone()),
        };
        let mut state = self.shared.lock();
        // Its client may have left meanwhile.
        if let Some(built) = state.devices[self.index].built.get_mut(&known.history) {
            *built = noted;
        }
        drop(state);
        say_all(outbox);
        result
    }

    fn built(&mut self, known: &Known) -> Result<(), Trouble> {
        let within = self.shared.options.build_max;
        let live = self.open().map_err(Trouble::Broken)?;
        if live.built.contains(&known.history) {
            return Ok(());
        }
        let order = Order::Build {
            name: known.history.to_string(),
            definition: known.definition.clone(),
        };
        match live.ask(&order, &[], within).map_err(Trouble::Fault)? {
            Report::Built(Ok(())) => {
                live.built.insert(Arc::clone(&known.history));
                Ok(())
            }
            Report::Built(Err(error)) => Err(Trouble::NotBuilt(error.map(cut))),
            other => Err(Trouble::Fault(format!("asked to build, it said {other:?}"))),
        }
    }

    fn run(&mut self, ticket: u64) {
        let mut state = self.shared.lock();
        let begun = self.shared.begin(&mut state, ticket);
        let device = &state.devices[self.index];
        let one_in = self.shared.options.verify_one_in.max(1);
        // After a fault, what comes first is looked at.
        let suspect = match &begun {
            Begun::Runs(work, _) => device.standing.is_suspect(&work.known.history),
            Begun::Late | Begun::Gone => false,
        };
        let verify = suspect || device.tasks.is_multiple_of(one_in);
        let key = &self.shared.slots[self.index].key;
        let expected_us = match &begun {
            Begun::Runs(work, _) => {
                let model = &state.model;
                model.expected_us(&work.known.history, work.size, key)
            }
            Begun::Late | Begun::Gone => None,
        };
        drop(state);
        let (work, began) = match begun {
            Begun::Runs(work, began) => (work, began),
            Begun::Late => return self.shared.finish(ticket, Outcome::Late),
            Begun::Gone => return,
        };
        let within = expected_us.map_or(self.shared.options.run_max, |expected| {
            let long = Duration::from_secs_f64((expected * HANG_TIMES / 1e6).min(1e6));
            long.max(HANG_MIN).min(self.shared.options.run_max)
        });
        let mut ran = self.run_there(&work, within, Copies::Kept);
        // What was kept for others is no reason to fail this one.
        if matches!(ran, Err(Trouble::OutOfMemory)) && self.forget_all() {
            ran = self.run_there(&work, within, Copies::Gone);
        }
        let took = began.elapsed();
        let mut state = self.shared.lock();
        let device = &mut state.devices[self.index];
        device.busy += took;
        device.standing.charge(took, Instant::now());
        drop(state);
        match ran {
            Ok(result) if verify => self.verify(ticket, &work, &result, (began, took)),
            Ok(result) => {
                if let Some(staging) = self.staging() {
                    commit(&work, &result.offsets, staging);
                }
                self.done(ticket, &work, &result, (began, took));
            }
            Err(trouble) => self.failed(ticket, &work, trouble, took),
        }
    }

    fn staging(&self) -> Option<&Region> {
        self.live.as_ref().and_then(|live| live.staging.as_ref())
    }

    /// Ends the process, and what it keeps with it. Whoever drops it waits until it is gone.
    fn end(&mut self) -> Option<Live> {
        self.shared.lock().devices[self.index].kept.clear();
        self.live.take()
    }

    fn forget(&self, constants: Vec<Constant>) {
        let Some(live) = &self.live else { return };
        let sent = wire::send(&live.process.socket, &Order::Forget(constants), &[]);
        if let Err(error) = sent {
            // The next run finds out, too.
            tracing::debug!(%error, "copies are forgotten with the process");
        }
    }

    /// Frees all copies that the device keeps; whether there may have been any.
    fn forget_all(&self) -> bool {
        let gone = self.shared.lock().devices[self.index].kept.clear();
        let any = !gone.is_empty();
        if any {
            self.forget(gone);
        }
        any
    }

    /// What the device keeps of a task's memory from now on: the copy of each buffer, what it forgets
    /// first, and how much it has already.
    fn plan(&self, work: &Work) -> (Vec<Option<Constant>>, Vec<Constant>, u64) {
        let options = &self.shared.options;
        // The other half is for whoever else uses the device.
        let memory = self.shared.slots[self.index].info.memory_bytes / 2;
        let most = memory.min(options.device_bytes_max);
        let mut state = self.shared.lock();
        let own = state.sessions.get(&work.session);
        // What its client gave back meanwhile would never be forgotten.
        let shared = |buffer: &Buffer| {
            let mut regions = own.into_iter().flat_map(|own| own.regions.values());
            regions.any(|region| Arc::ptr_eq(region, &buffer.region))
        };
        let constant = |buffer: &Buffer| buffer.constant().filter(|_| shared(buffer));
        let mut keys: Vec<Option<Constant>> = work.buffers.iter().map(constant).collect();
        let constants: Vec<Constant> = keys.iter().flatten().copied().collect();
        let named: u64 = constants.iter().map(|constant| constant.length).sum();
        let device = &mut state.devices[self.index];
        let plan = device.kept.plan(&constants, work.bytes - named, most);
        device.spared += plan.spared;
        drop(state);
        for (key, keeps) in keys.iter_mut().filter(|key| key.is_some()).zip(plan.keeps) {
            if !keeps {
                *key = None;
            }
        }
        (keys, plan.forget, plan.spared)
    }

    /// Makes room for what a task writes.
    fn make_staging(&mut self, work: &Work) -> Result<(), Trouble> {
        let live = self.open().map_err(Trouble::Broken)?;
        let written = work.buffers.iter().filter(|one| one.access.writes());
        let length = written.fold(0, |end: usize, one| {
            (end + one.length).next_multiple_of(ALIGNMENT)
        });
        let held = live.staging.as_ref().map_or(0, Region::length);
        if length > held {
            live.staging = None;
            let region = Region::new(length.next_power_of_two());
            live.staging = Some(region.map_err(|_| Trouble::OutOfMemory)?);
        }
        Ok(())
    }

    /// Runs a task in the process.
    fn run_there(
        &mut self,
        work: &Work,
        within: Duration,
        copies: Copies,
    ) -> Result<Given, Trouble> {
        self.built(&work.known)?;
        self.make_staging(work)?;
        // What is planned is told to the process, whatever comes of it: nothing fails between.
        let (keys, forget, spared) = match copies {
            Copies::Kept => self.plan(work),
            Copies::Gone => (vec![None; work.buffers.len()], Vec::new(), 0),
        };
        let live = self.open().map_err(Trouble::Broken)?;
        let mut regions: Vec<&Region> = Vec::new();
        let mut sources = Vec::new();
        let mut length = 0_usize;
        let mut read_bytes = 0;
        for (buffer, keep) in work.buffers.iter().zip(keys) {
            if buffer.access.reads() {
                read_bytes += buffer.length as u64;
            }
            let read = buffer.access.reads().then(|| {
                let known = regions
                    .iter()
                    .position(|region| region.identity() == buffer.region.identity());
                let index = known.unwrap_or_else(|| {
                    regions.push(&buffer.region);
                    regions.len() - 1
                });
                (index, buffer.offset)
            });
            let write = buffer.access.writes().then_some(length);
            if write.is_some() {
                length = (length + buffer.length).next_multiple_of(ALIGNMENT);
            }
            sources.push(Source {
                read,
                write,
                length: buffer.length,
                keep,
            });
        }
        let mut descriptors: Vec<BorrowedFd<'_>> =
            regions.iter().map(|region| region.as_fd()).collect();
        let staging = live.staging.as_ref().filter(|_| length > 0);
        descriptors.extend(staging.map(|staging| staging.as_fd()));
        let offsets = sources.iter().map(|source| source.write).collect();
        let order = Order::Run {
            name: work.known.history.to_string(),
            buffers: sources,
            scalars: work.scalars.clone(),
            launches: work.known.kernel.launches(&work.shape()),
            forget,
        };
        let sent = wire::send(&live.process.socket, &order, &descriptors);
        sent.map_err(|error| Trouble::Fault(format!("its process is gone: {error}")))?;
        match receive(&live.process, &mut live.reader, within).map_err(Trouble::Fault)? {
            Report::Ran(Ok(timing)) => Ok(Given {
                offsets,
                moved: read_bytes - spared,
                moved_in: timing.transfer_in,
                spared,
            }),
            Report::Ran(Err(DeviceError::OutOfMemory)) => Err(Trouble::OutOfMemory),
            Report::Ran(Err(error @ DeviceError::TooLarge(_))) => {
                let id = &self.shared.slots[self.index].info.id;
                tracing::debug!(device = id, %error, "a task goes elsewhere");
                Err(Trouble::OutOfMemory)
            }
            Report::Ran(Err(error)) => Err(Trouble::Fault(cut(error.to_string()))),
            other => Err(Trouble::Fault(format!("asked to run, it said {other:?}"))),
        }
    }

    fn done(&self, ticket: u64, work: &Work, result: &Given, (began, took): (Instant, Duration)) {
        let mut outbox = Outbox::new();
        let slot = &self.shared.slots[self.index];
        let mut state = self.shared.lock();
        let (history, size) = (&work.known.history, work.size);
        let ran = Ran {
            took_us: micros(took),
            kept_bytes: result.spared,
        };
        let model = &mut state.model;
        model.record_transfer(&slot.key, result.moved, micros(result.moved_in));
        model.record(history, size, &slot.key, ran);
        let device = &mut state.devices[self.index];
        device.tasks += 1;
        device.standing.good(history);
        let retries = state.tasks.get(&ticket).map_or(0, |entry| entry.retries);
        let run = Run {
            place: slot.info.id.clone(),
            waited_us: micros(began.saturating_duration_since(work.submitted)),
            took_us: micros(took),
            retries,
        };
        self.shared
            .finish_locked(&mut state, ticket, Outcome::Done(run), &mut outbox);
        drop(state);
        say_all(outbox);
    }

    /// Computes a task on the CPU too. What the CPU says holds.
    fn verify(
        &mut self,
        ticket: u64,
        work: &Work,
        result: &Given,
        (began, took): (Instant, Duration),
    ) {
        let offsets = &result.offsets;
        self.shared.lock().devices[self.index].verified += 1;
        let Some(staging) = self.staging() else {
            return self.done(ticket, work, result, (began, took));
        };
        let compared = match work.known.kernel.cpu {
            Cpu::Native(_) => verify_here(work, offsets, staging),
            Cpu::Client => match self.ask_client(ticket, work) {
                Ok(()) => differs(work, offsets, staging, &[]),
                Err(outcome) => return self.shared.finish(ticket, outcome),
            },
        };
        match compared {
            Ok(None) => self.done(ticket, work, result, (began, took)),
            Ok(Some(why)) => self.was_wrong(ticket, work, began, &why),
            Err(why) => self.shared.finish(ticket, Outcome::Failed(why)),
        }
    }

    /// Has the client compute a task into its own memory.
    fn ask_client(&self, ticket: u64, work: &Work) -> Result<(), Outcome> {
        let (asked, computed) = sync_channel(1);
        let mut state = self.shared.lock();
        let here = state.sessions.contains_key(&work.session);
        let entry = state.tasks.get_mut(&ticket).filter(|_| here);
        entry.ok_or(Outcome::Cancelled)?.asked = Some(asked);
        drop(state);
        let task = work.task;
        say(&work.socket, &Reply::Compute { ticket, task });
        match computed.recv_timeout(self.shared.options.run_max) {
            Ok(result) => result.map_err(Outcome::Failed),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(Outcome::Cancelled),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(Outcome::Failed(format!(
                "the client did not compute it in {} s",
                self.shared.options.run_max.as_secs()
            ))),
        }
    }

    /// The CPU's result is in the client's memory already.
    fn was_wrong(&mut self, ticket: u64, work: &Work, began: Instant, why: &str) {
        let mut outbox = Outbox::new();
        let name = &work.known.kernel.name;
        let why = format!("it computed {name} wrongly: {why}");
        self.quarantine(&work.known.history, Blamed::Kernel, &why, &mut outbox);
        let mut state = self.shared.lock();
        state.stats.rerun += 1;
        let retries = state.tasks.get_mut(&ticket).map_or(0, |entry| {
            entry.retries += 1;
            entry.retries
        });
        let run = Run {
            place: CPU.to_owned(),
            waited_us: micros(began.saturating_duration_since(work.submitted)),
            took_us: micros(began.elapsed()),
            retries,
        };
        self.shared
            .finish_locked(&mut state, ticket, Outcome::Done(run), &mut outbox);
        drop(state);
        say_all(outbox);
        drop(self.end());
    }

    /// A task that a device failed runs on the CPU.
    fn failed(&mut self, ticket: u64, work: &Work, trouble: Trouble, took: Duration) {
        let mut outbox = Outbox::new();
        let (history, size) = (&work.known.history, work.size);
        let slot = &self.shared.slots[self.index];
        let ended = match trouble {
            Trouble::Fault(why) => {
                self.quarantine(history, Blamed::Kernel, &why, &mut outbox);
                self.end()
            }
            Trouble::Broken(why) => {
                self.quarantine(history, Blamed::Device, &why, &mut outbox);
                self.end()
            }
            Trouble::OutOfMemory => {
                // As if it had been slow: such sizes go elsewhere, and are tried again some day.
                let mut state = self.shared.lock();
                let on_cpu = state.model.expected_us(history, size, CPU);
                let slow = micros(took) + 4.0 * on_cpu.unwrap_or(0.0);
                let model = &mut state.model;
                model.record(history, size, &slot.key, Ran::whole(slow));
                None
            }
            Trouble::NotBuilt(error) => {
                let mut state = self.shared.lock();
                if let Some(built) = state.devices[self.index].built.get_mut(history) {
                    *built = Built::Never(error);
                }
                None
            }
        };
        let mut state = self.shared.lock();
        state.stats.rerun += 1;
        if let Some(entry) = state.tasks.get_mut(&ticket) {
            entry.retries += 1;
        }
        let expected = state.model.expected_us(history, size, CPU).unwrap_or(0.0);
        self.shared
            .queue_on_cpu(&mut state, ticket, expected, &mut outbox);
        drop(state);
        self.shared.cpu_ready.notify_one();
        say_all(outbox);
        // A process that does not die at once holds nobody up but this device.
        drop(ended);
    }

    /// Leaves a kernel alone on this device for a while, or the device; what is queued of that runs on the
    /// CPU.
    fn quarantine(&self, kernel: &Arc<str>, blamed: Blamed, why: &str, outbox: &mut Outbox) {
        let id = &self.shared.slots[self.index].info.id;
        let (first, now) = (self.shared.options.quarantine, Instant::now());
        let mut state = self.shared.lock();
        let device = &mut state.devices[self.index];
        device.faults += 1;
        let (blamed, lasts) = match blamed {
            Blamed::Kernel => device.standing.fault(kernel, why, first, now),
            Blamed::Device => {
                let lasts = device.standing.device_fault(why, first, now);
                (Blamed::Device, lasts)
            }
        };
        let seconds = lasts.as_secs();
        match blamed {
            Blamed::Kernel => {
                tracing::warn!(device = id, kernel = &**kernel, why, seconds, "left alone");
            }
            Blamed::Device => tracing::warn!(device = id, why, seconds, "a device is left alone"),
        }
        let queue = std::mem::take(&mut state.devices[self.index].queue);
        for job in queue {
            let Job::Run(ticket) = job else {
                state.devices[self.index].queue.push_back(job);
                continue;
            };
            let Some(entry) = state.tasks.get(&ticket) else {
                continue;
            };
            let (phase, work) = (entry.phase, Arc::clone(&entry.work));
            if blamed == Blamed::Kernel && work.known.history != *kernel {
                state.devices[self.index].queue.push_back(Job::Run(ticket));
                continue;
            }
            state.left_queue(phase);
            let on_cpu = state.model.expected_us(&work.known.history, work.size, CPU);
            let expected = on_cpu.unwrap_or(0.0);
            self.shared
                .queue_on_cpu(&mut state, ticket, expected, outbox);
            self.shared.cpu_ready.notify_one();
        }
    }
}

impl Live {
    fn ask(
        &mut self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<Report, String> {
        wire::send(&self.process.socket, order, descriptors)
            .map_err(|error| format!("its process is gone: {error}"))?;
        receive(&self.process, &mut self.reader, within)
    }
}

/// What is kept of a text that a compiler or a driver wrote: all that it wrote of all kernels is told in one
/// message.
fn cut(mut text: String) -> String {
    if text.len() > SAID_MAX {
        let end = (0..=SAID_MAX).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ... (cut)");
    }
    text
}

fn receive(process: &Process, reader: &mut Reader, within: Duration) -> Result<Report, String> {
    match reader.receive_within(&process.socket, within) {
        Ok(Some((report, _))) => Ok(report),
        Ok(None) => Err("its process ended, as by a crash of the kernel or the driver".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Err(format!(
            "it did not end in {:.1} s and is taken to hang",
            within.as_secs_f64()
        )),
        Err(error) => Err(format!("hear its process: {error}")),
    }
}

/// Buffers that are written, where the device put them, and their place among those of the task.
fn written<'a>(
    work: &'a Work,
    offsets: &'a [Option<usize>],
) -> impl Iterator<Item = (usize, &'a Buffer, usize)> {
    let pairs = work.buffers.iter().zip(offsets).enumerate();
    pairs.filter_map(|(index, (buffer, offset))| Some((index, buffer, (*offset)?)))
}

/// Copies results to the client's memory.
fn commit(work: &Work, offsets: &[Option<usize>], staging: &Region) {
    for (_, buffer, offset) in written(work, offsets) {
        // SAFETY: the process of the device answered and does nothing until it is asked again, so
        // nobody writes what is read here; the task is this thread's, and tasks that conflict with
        // it wait. Memory that is shared has no safe accessor.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let (from, to) = unsafe {
            (
                staging.bytes(offset, buffer.length),
                buffer.region.bytes_mut(buffer.offset, buffer.length),
            )
        };
        to.copy_from_slice(from);
    }
}

/// Computes a task with its own implementation, and compares: how the device differs, if it does.
/// In any case the CPU's result goes to the client.
fn verify_here(
    work: &Work,
    offsets: &[Option<usize>],
    staging: &Region,
) -> Result<Option<String>, String> {
    let mut scratch: Vec<Scratch> = Vec::new();
    for (_, buffer, _) in written(work, offsets) {
        let mut own = Scratch::new(buffer.length);
        if buffer.access == Access::ReadWrite {
            own.bytes_mut().copy_from_slice(content(buffer));
        }
        scratch.push(own);
    }
    let mut owned = scratch.iter_mut();
    let mut views = Vec::new();
    for buffer in &work.buffers {
        views.push(match buffer.access {
            Access::Read => View::Read(content(buffer)),
            Access::Write => View::Write(owned.next().map_or(&mut [], Scratch::bytes_mut)),
            Access::ReadWrite => View::ReadWrite(owned.next().map_or(&mut [], Scratch::bytes_mut)),
        });
    }
    compute(work, &mut views)?;
    drop(views);
    let compared = differs(work, offsets, staging, &scratch)?;
    for ((_, buffer, _), own) in written(work, offsets).zip(&scratch) {
        // SAFETY: as in `commit`.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let to = unsafe { buffer.region.bytes_mut(buffer.offset, buffer.length) };
        to.copy_from_slice(own.bytes());
    }
    Ok(compared)
}

/// How what the device wrote differs from what the CPU computed: into these, or, where there are
/// none, into the client's memory.
fn differs(
    work: &Work,
    offsets: &[Option<usize>],
    staging: &Region,
    computed: &[Scratch],
) -> Result<Option<String>, String> {
    for (number, (index, buffer, offset)) in written(work, offsets).enumerate() {
        let parameter = &work.known.kernel.signature.buffers[index];
        // SAFETY: as in `commit`; nothing is written while these slices live.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let theirs = unsafe { staging.bytes(offset, buffer.length) };
        let ours = computed
            .get(number)
            .map_or_else(|| content(buffer), Scratch::bytes);
        let tolerance = work.known.kernel.tolerance;
        if let Err(why) = agree(tolerance, parameter.element, ours, theirs) {
            return Ok(Some(format!("{}: {why}", parameter.name)));
        }
    }
    Ok(None)
}

/// What the client's memory holds.
#[expect(unsafe_code, reason = "memory is shared by its addresses")]
fn content(buffer: &Buffer) -> &[u8] {
    // SAFETY: only the thread that runs the task calls this, and writes nothing while the slice
    // lives; tasks that conflict with it wait.
    unsafe { buffer.region.bytes(buffer.offset, buffer.length) }
}
