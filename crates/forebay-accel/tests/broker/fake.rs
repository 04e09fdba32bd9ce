//! A device in a thread of this process, that computes as the CPU does unless it is told to fail.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use forebay_accel::device::{
    Backend, BuildError, Constant, Device, DeviceError, DeviceInfo, DeviceKind, Timing,
};
use forebay_accel::kernel::{Arguments, Cpu, Kernel};
use forebay_accel::process::{self, Launcher, Process};
use forebay_accel::task::{Grid, Launch, Scalar, View};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    Wrong,
    Hang,
    Vanish,
    OutOfMemory,
}

/// A device that can be started many times. The next fault is used by the next run.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    pub(crate) info: DeviceInfo,
    pub(crate) faults: Arc<Mutex<VecDeque<Option<Fault>>>>,
    /// Runs that began.
    pub(crate) runs: Arc<std::sync::atomic::AtomicU64>,
    /// Copies that its process keeps, which has them to itself.
    pub(crate) kept: Arc<Mutex<BTreeMap<Constant, Vec<u8>>>>,
    /// How long a run takes, in microseconds, by the bytes of its first buffer.
    pub(crate) takes: Option<fn(usize) -> u64>,
    /// Bytes that were copied to it.
    pub(crate) copied: Arc<std::sync::atomic::AtomicU64>,
}

impl Fake {
    pub(crate) fn new(id: &str) -> Self {
        Self {
            info: DeviceInfo {
                id: id.to_owned(),
                backend: Backend::Opencl,
                platform: "made up".to_owned(),
                vendor: "a test".to_owned(),
                name: id.to_owned(),
                driver: "1".to_owned(),
                memory_bytes: 1 << 30,
                buffer_bytes_max: 1 << 30,
                kind: DeviceKind::Gpu,
            },
            faults: Arc::default(),
            runs: Arc::default(),
            kept: Arc::default(),
            takes: None,
            copied: Arc::default(),
        }
    }
}

impl Fake {
    /// One of its own model, which takes so long.
    pub(crate) fn of_speed(id: &str, takes: fn(usize) -> u64) -> Self {
        Self {
            takes: Some(takes),
            ..Self::new(id)
        }
    }
}

/// Starts threads where a broker starts processes.
#[derive(Debug)]
pub(crate) struct Threads(pub(crate) Vec<Fake>);

impl Launcher for Threads {
    fn launch(&self, device: &str) -> io::Result<Process> {
        let fake = self.0.iter().find(|fake| fake.info.id == device);
        let fake = fake.ok_or(io::ErrorKind::NotFound)?.clone();
        let (ours, theirs) = process::pair()?;
        let (end, ended) = channel();
        let mut thread = Some(std::thread::spawn(move || {
            fake.kept.lock().unwrap().clear();
            let mut device = Running {
                fake,
                ended,
                factors: BTreeMap::new(),
            };
            // It ends as the socket does, or by a fault.
            process::serve(&theirs, &mut device).ok();
        }));
        let socket = ours.try_clone()?;
        let kill = move || kill(&end, &socket, thread.take());
        Ok(Process {
            socket: ours,
            end: Box::new(kill),
        })
    }
}

fn kill(
    end: &Sender<()>,
    socket: &std::os::fd::OwnedFd,
    thread: Option<std::thread::JoinHandle<()>>,
) {
    // One that ended hears nothing.
    end.send(()).ok();
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).ok();
    if let Some(thread) = thread {
        // One that vanished panicked.
        thread.join().ok();
    }
}

struct Running {
    fake: Fake,
    ended: Receiver<()>,
    /// What kernels of clients that were built multiply by, by their names.
    factors: BTreeMap<String, u32>,
}

/// What a thread that vanishes unwinds with; its panic is no message.
struct Vanished;

impl Device for Running {
    fn info(&self) -> &DeviceInfo {
        &self.fake.info
    }

    fn build(&mut self, kernel: &Kernel) -> Result<(), BuildError> {
        match &kernel.sources.opencl {
            None => Err(BuildError::NoSource(Backend::Opencl)),
            Some(source) if source.contains("#error at length") => {
                Err(BuildError::Compile("1:1: é".repeat(20_000)))
            }
            Some(source) if source.contains("#error") => {
                Err(BuildError::Compile("1:1: #error".to_owned()))
            }
            Some(source) => {
                let factor = if source == "thrice" { 3 } else { 2 };
                self.factors
                    .insert(kernel.name.clone().into_owned(), factor);
                Ok(())
            }
        }
    }

    fn run(
        &mut self,
        kernel: &Kernel,
        buffers: &mut [View<'_>],
        kept: &[Option<Constant>],
        scalars: &[Scalar],
        launches: &[Launch],
    ) -> Result<Timing, DeviceError> {
        assert!(!launches.is_empty(), "nothing is launched");
        let runs = &self.fake.runs;
        runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let fault = self.fake.faults.lock().unwrap().pop_front().flatten();
        match fault {
            Some(Fault::OutOfMemory) => return Err(DeviceError::OutOfMemory),
            Some(Fault::Hang) => {
                // Half of a result is there when it is ended.
                scribble(buffers);
                self.ended.recv().ok();
                std::panic::resume_unwind(Box::new(Vanished));
            }
            Some(Fault::Vanish) => {
                scribble(buffers);
                std::panic::resume_unwind(Box::new(Vanished));
            }
            Some(Fault::Wrong) | None => {}
        }
        if let Some(takes) = self.fake.takes {
            let us = takes(buffers[0].bytes().len());
            std::thread::sleep(std::time::Duration::from_micros(us));
        }
        let copies = self.copies(buffers, kept);
        let mut views: Vec<View<'_>> = Vec::new();
        for (view, copy) in buffers.iter_mut().zip(&copies) {
            views.push(match (view, copy) {
                (View::Read(_), Some(copy)) => View::Read(copy),
                (View::Read(bytes), None) => View::Read(bytes),
                (View::Write(bytes), _) => View::Write(bytes),
                (View::ReadWrite(bytes), _) => View::ReadWrite(bytes),
            });
        }
        let buffers = &mut views[..];
        match kernel.cpu {
            Cpu::Native(compute) => {
                let grid = Grid::line(1);
                let mut arguments = Arguments {
                    buffers,
                    scalars,
                    grid,
                };
                compute(&mut arguments).map_err(DeviceError::Failed)?;
            }
            Cpu::Client => multiply(buffers, self.factors[kernel.name.as_ref()]),
        }
        if fault == Some(Fault::Wrong) {
            scribble(buffers);
        }
        Ok(Timing::default())
    }

    fn forget(&mut self, constants: &[Constant]) {
        let mut kept = self.fake.kept.lock().unwrap();
        kept.retain(|one, _| !constants.contains(one));
    }
}

impl Running {
    /// What a device computes with is what was copied to it, whatever the memory holds now.
    fn copies(&self, buffers: &[View<'_>], kept: &[Option<Constant>]) -> Vec<Option<Vec<u8>>> {
        let mut held = self.fake.kept.lock().unwrap();
        let count = |bytes: &[u8]| {
            let counter = &self.fake.copied;
            counter.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::SeqCst);
        };
        let copy = |(view, key): (&View<'_>, &Option<Constant>)| match (view, key) {
            (View::Read(bytes), Some(key)) => {
                let entry = held.entry(*key).or_insert_with(|| {
                    count(bytes);
                    bytes.to_vec()
                });
                Some(entry.clone())
            }
            (View::Write(_), _) => None,
            (view, _) => {
                count(view.bytes());
                None
            }
        };
        buffers.iter().zip(kept).map(copy).collect()
    }
}

/// The one kernel of an app that this device knows: each number twice, or thrice.
fn multiply(buffers: &mut [View<'_>], factor: u32) {
    for buffer in buffers {
        if let View::ReadWrite(_) = buffer {
            for number in buffer.slice_mut::<u32>().unwrap() {
                *number = number.wrapping_mul(factor);
            }
        }
    }
}

fn scribble(buffers: &mut [View<'_>]) {
    for byte in buffers.iter_mut().filter_map(View::bytes_mut).flatten() {
        *byte ^= 0x55;
    }
}
