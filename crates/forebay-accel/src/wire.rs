//! What goes over the socket: one packet (`SOCK_SEQPACKET`) for one message, as JSON, and
//! descriptors of memory beside it.
//!
//! ```text
//! client -> broker   Request     hello first; each but `submit`, `cancel` and `computed` is replied to
//! broker -> client   Reply       answers of tasks come when they are ready, by their numbers
//! broker -> device   Order       to the process of a device; one at a time
//! device -> broker   Report
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::device::{BuildError, Constant, DeviceError, DeviceInfo, Timing};
use crate::kernel::{Signature, Sources, Tolerance};
use crate::task::{Grid, Launch, Scalar};

/// The protocol of this build.
pub const VERSION: u32 = 1;
/// The longest message, in bytes. A socket takes some 200 KiB at once.
pub const MESSAGE_MAX: usize = 160 * 1024;
/// The longest sources of a kernel, in bytes, all together.
pub const SOURCE_MAX: usize = 64 * 1024;
/// Descriptors beside one message at most.
const DESCRIPTORS_MAX: usize = 18;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Hello {
        version: u32,
    },
    /// Shares the memory whose descriptor comes beside it, under a number.
    Share {
        memory: u32,
        bytes: u64,
    },
    /// Forgets memory; tasks that were submitted with it still end.
    Forget {
        memory: u32,
    },
    Register(Box<Definition>),
    Submit(Vec<Task>),
    Cancel {
        task: u64,
    },
    /// The client computed what [`Reply::Compute`] asked for.
    Computed {
        ticket: u64,
        error: Option<String>,
    },
    Devices,
    Kernels,
    Stats,
    /// What a second of the CPU costs beside one of a device; 1 where the CPU is not scarce.
    Price {
        cpu: f64,
    },
    /// The part of a device's time that tasks may take from now on, above 0 and up to 1; never more
    /// than the worker was started with.
    Limit {
        device: String,
        part: f64,
    },
}

/// A kernel of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    pub name: String,
    pub signature: Signature,
    /// Each buffer holds at least so many elements for each item of the grid.
    pub per_item: Vec<u32>,
    pub sources: Sources,
    pub tolerance: Tolerance,
}

/// A task of a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Chosen by the client; no two of its tasks at a time have the same.
    pub task: u64,
    pub kernel: String,
    pub buffers: Vec<Piece>,
    pub scalars: Vec<Scalar>,
    pub grid: Grid,
    /// From when it is read; one that did not begin by then is answered `late`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_us: Option<u64>,
    #[serde(default)]
    pub place: Wish,
}

/// Where a task is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Where it ends first, as far as is known.
    #[default]
    Best,
    Cpu,
    /// There if it is usable, else on the CPU.
    Device(String),
}

/// A part of shared memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    pub memory: u32,
    pub offset: u64,
    pub length: u64,
    /// Whether it may be written. A kernel that would write what may not be is refused.
    #[serde(default)]
    pub write: bool,
}

/// What the broker says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Welcome {
        version: u32,
    },
    Done,
    Refused {
        why: String,
    },
    /// A kernel was registered. It runs on the CPU in any case.
    Registered {
        builds: Vec<Build>,
    },
    Answer {
        task: u64,
        outcome: Outcome,
    },
    /// The client is to compute a task with its own implementation, and to say when it did.
    Compute {
        ticket: u64,
        task: u64,
    },
    Devices(Vec<DeviceStatus>),
    Kernels(Vec<KernelStatus>),
    Stats(Box<Stats>),
}

/// What a device made of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub device: String,
    /// Why it cannot run there.
    pub error: Option<BuildError>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done(Run),
    /// The kernel itself says that it cannot: what the buffers hold is wrong.
    Failed(String),
    /// The task is wrong: no kernel of that name, sizes that do not fit, memory that is not there.
    Refused(String),
    /// Too much is queued; submit it again when answers came.
    Busy,
    Cancelled,
    /// It did not begin before its deadline.
    Late,
}

/// How a task ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `cpu`, or the id of a device.
    pub place: String,
    /// From when it was read until it began.
    pub waited_us: f64,
    /// From when it began until its result was there.
    pub took_us: f64,
    /// Devices that failed it before.
    pub retries: u32,
}

/// A device as the broker sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub info: DeviceInfo,
    /// Why it gets no tasks now.
    pub quarantine: Option<String>,
    pub tasks: u64,
    pub verified: u64,
    pub faults: u64,
    /// Of the time since the broker began, 0 to 1.
    pub utilisation: f64,
    /// Time that it took for tasks since then, in microseconds.
    #[serde(default)]
    pub busy_us: u64,
    /// The part of its time that tasks may take.
    #[serde(default)]
    pub part: f64,
    /// Copies of constant memory that it keeps, in bytes.
    #[serde(default)]
    pub kept_bytes: u64,
    /// What did not have to be copied to it since then because it was kept, in bytes.
    #[serde(default)]
    pub spared_bytes: u64,
    /// The kernels that were asked of it.
    #[serde(default)]
    pub kernels: Vec<KernelThere>,
}

impl DeviceStatus {
    /// Kernels that it computes now; none while it is left alone.
    #[must_use]
    pub fn ready(&self) -> usize {
        let ready = self.kernels.iter().filter(|one| one.state == There::Ready);
        if self.quarantine.is_some() {
            0
        } else {
            ready.count()
        }
    }
}

/// A kernel on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelThere {
    pub name: String,
    pub state: There,
}

/// Whether a device computes a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum There {
    /// It is being built.
    Builds,
    Ready,
    /// It cannot be built.
    Never(String),
    /// It crashed, hung or was wrong there, and is not computed there for a while.
    Quarantined(String),
}

/// A kernel as the broker knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelStatus {
    pub name: String,
    pub signature: Signature,
    /// What it has a source for.
    pub backends: Vec<crate::device::Backend>,
}

/// What the broker counted since it began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub clients: u64,
    /// Memory of clients that is mapped.
    pub regions: u64,
    pub region_bytes: u64,
    pub queued: u64,
    pub on_cpu: u64,
    pub on_devices: u64,
    pub explored: u64,
    pub failed: u64,
    pub refused: u64,
    pub busy: u64,
    pub cancelled: u64,
    pub late: u64,
    /// Runs on a device that gave no result that may be believed, and that the CPU did again.
    pub rerun: u64,
    pub cpu_price: f64,
    #[serde(default)]
    pub regret: crate::dispatch::Regret,
}

/// What the process of a device is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// `None` of what the process knows by itself.
    Build {
        name: String,
        definition: Option<Definition>,
    },
    /// Descriptors beside it: those of the memory that is read, then that which is written.
    Run {
        name: String,
        buffers: Vec<Source>,
        scalars: Vec<Scalar>,
        launches: Vec<Launch>,
        /// Copies that are freed first.
        forget: Vec<Constant>,
    },
    /// Frees copies of memory. It is not answered.
    Forget(Vec<Constant>),
}

/// Where the process of a device finds a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// Where its content is: the index of a descriptor, and the offset.
    pub(crate) read: Option<(usize, usize)>,
    /// Where the result goes in the memory that is written.
    pub(crate) write: Option<usize>,
    pub(crate) length: usize,
    /// The device keeps its copy, or has it.
    pub(crate) keep: Option<Constant>,
}

/// What the process of a device says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// It is open.
    Ready(DeviceInfo),
    Unusable(String),
    Built(Result<(), BuildError>),
    Ran(Result<Timing, DeviceError>),
}

/// Sends one message.
///
/// # Errors
/// What the socket says; `TimedOut` where the other side does not read.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_encoded(socket, &encode(message)?, descriptors)
}

/// A message as it is sent.
///
/// # Errors
/// `InvalidInput` of one that is too long.
pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a message of {} bytes is longer than {MESSAGE_MAX}",
                bytes.len()
            ),
        ));
    }
    Ok(bytes)
}

/// Sends what was encoded.
///
/// # Errors
/// As [`send`].
pub(crate) fn send_encoded(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} descriptors are too many for a message",
                descriptors.len()
            ),
        ));
    }
    loop {
        match sendmsg(
            socket.as_fd(),
            &[IoSlice::new(bytes)],
            &mut beside,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads messages; its memory is used again.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            bytes: vec![0; MESSAGE_MAX],
        }
    }
}

impl Reader {
    /// The next message, and what came beside it: all of that, or nothing where not all of it could be
    /// taken. `None` when the other side is gone.
    ///
    /// # Errors
    /// What the socket says, or that this is no message.
    pub(crate) fn receive<T: DeserializeOwned>(
        &mut self,
        socket: impl AsFd,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut self.bytes)];
            match recvmsg(
                socket.as_fd(),
                &mut parts,
                &mut beside,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message is longer than {MESSAGE_MAX} bytes; submit fewer tasks at once"),
            ));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // They were too many, or this process may hold no more. Whoever needs some says so.
            descriptors.clear();
        }
        let message = serde_json::from_slice(&self.bytes[..received.bytes])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some((message, descriptors)))
    }

    /// The next message if it comes in time.
    ///
    /// # Errors
    /// `TimedOut`, and as [`receive`](Self::receive).
    pub(crate) fn receive_within<T: DeserializeOwned>(
        &mut self,
        socket: impl AsFd,
        within: Duration,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        if !readable_within(&socket, within)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.receive(socket)
    }
}

/// Waits until something can be read, or the other side is gone.
pub(crate) fn readable_within(socket: impl AsFd, within: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    // One beyond what a clock holds does not end.
    let end = std::time::Instant::now().checked_add(within);
    loop {
        let left = end.map(|end| end.saturating_duration_since(std::time::Instant::now()));
        let left = left.map(Timespec::try_from).transpose();
        let left = left.map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut polled, left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
