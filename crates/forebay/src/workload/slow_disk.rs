//! A file that is served at the speed of a slow disk, to put a loop device on.
//!
//! The throttle of cgroup v1 counts for each group by itself, so that no limit of it makes a
//! device slow for all groups together. This is a FUSE server for one file instead: all
//! requests pass one queue, in the order in which they come, at a set number of bytes and of
//! requests a second; each then takes a set time more, in which the device serves others. A
//! volume of a cloud provider behaves like that. What is written is kept.
//!
//! The file system has one file and no directory: its root is the file, mounted on a file.
//! The protocol is that of `include/uapi/linux/fuse.h`, version 7.31.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::time::ClockId;

use super::load::run_in_real_time;
use super::{Error, Lifetime, bind_to_parent, now, place, sleep_until};

/// Requests that wait in the server; the kernel holds back more.
const QUEUE_MAX: u16 = 1024;
/// Longest data of one request.
const DATA_MAX: u32 = 1 << 20;
/// Room for the headers of a request.
const HEADERS_MAX: usize = 4096;
const PAGE: u32 = 4096;

const IN_HEADER: usize = 40;
const IN_RW: usize = 40;

const LOOKUP_OF_ROOT: u64 = 1;
const FUSE_MAJOR: u32 = 7;
const FUSE_MINOR: u32 = 31;
const INIT_ASYNC_READ: u32 = 1;
const INIT_BIG_WRITES: u32 = 1 << 5;
const INIT_ASYNC_DIO: u32 = 1 << 15;
const INIT_MAX_PAGES: u32 = 1 << 22;
const OPEN_DIRECT_IO: u32 = 1;
const OPEN_PARALLEL_WRITES: u32 = 1 << 6;

/// `forebay workload slow-disk`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File that holds what is written; it must exist and have its size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// File to mount on; it must exist
    #[arg(long, value_name = "FILE")]
    at: PathBuf,
    /// Bytes served in a second
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    mib_per_s: u64,
    /// Requests served in a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    per_s: u64,
    /// Time of a request besides that
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    latency_us: u64,
    /// Run at this real-time priority
    #[arg(long, value_name = "1-99", value_parser = clap::value_parser!(u8).range(1..=99))]
    realtime: Option<u8>,
    /// File that appears when the disk is served
    #[arg(long, value_name = "FILE")]
    ready_file: PathBuf,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Serves until it is killed or unmounted.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    args.realtime.map_or(Ok(()), run_in_real_time)?;
    let disk = Disk::open(args)?;
    let connection = attach(&args.at)?;
    let replies = connection.try_clone().map_err(Error::system(
        "open a second time",
        "/dev/fuse",
        "raise the limit of open files",
    ))?;
    let (sender, receiver) = sync_channel(usize::from(QUEUE_MAX));
    let ready = &args.ready_file;
    std::thread::scope(|scope| {
        let replier = scope.spawn(move || answer(&replies, &receiver));
        let served = serve(connection, disk, &sender, ready);
        drop(sender);
        let answered = replier
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        served.and(answered)
    })
}

/// Mounts the file system, which opens the connection to the kernel.
fn attach(at: &Path) -> Result<File, Error> {
    let device = "/dev/fuse";
    let connection = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .map_err(Error::system(
            "open",
            device,
            "run as root on a kernel with FUSE",
        ))?;
    let options = format!(
        "fd={},rootmode=100600,user_id=0,group_id=0,max_read={DATA_MAX}",
        connection.as_raw_fd()
    );
    let options = CString::new(options).map_err(|error| {
        Error::system("mount", at.display(), "this should not happen; report it")(io::Error::other(
            error,
        ))
    })?;
    mount(
        "forebay",
        at,
        "fuse",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )
    .map_err(Error::system(
        "mount a file system on",
        at.display(),
        "run as root",
    ))?;
    Ok(connection)
}

/// The disk: its contents, and until when its queue is full.
#[derive(Debug)]
struct Disk {
    image: File,
    size: u64,
    per_byte: f64,
    per_request: Duration,
    latency: Duration,
    busy_until: Duration,
}

impl Disk {
    fn open(args: &Args) -> Result<Self, Error> {
        let image = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&args.image)
            .map_err(Error::system(
                "open image",
                args.image.display(),
                "make the file first, in its size",
            ))?;
        let size = image
            .metadata()
            .map_err(Error::system(
                "look at image",
                args.image.display(),
                "check its permissions",
            ))?
            .size();
        let bytes_per_s =
            f64::from(u32::try_from(args.mib_per_s).unwrap_or(u32::MAX)) * 1_048_576.0;
        Ok(Self {
            image,
            size,
            per_byte: 1.0 / bytes_per_s,
            per_request: Duration::from_secs(1) / u32::try_from(args.per_s).unwrap_or(u32::MAX),
            latency: Duration::from_micros(args.latency_us),
            busy_until: Duration::ZERO,
        })
    }

    /// When a request of so many bytes that comes now is done.
    fn done_at(&mut self, now: Duration, bytes: u32) -> Duration {
        let transfer = Duration::from_secs_f64(f64::from(bytes) * self.per_byte);
        self.busy_until = self.busy_until.max(now) + transfer.max(self.per_request);
        self.busy_until + self.latency
    }

    fn attributes(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(104);
        let long = |text: &mut Vec<u8>, value: u64| text.extend(value.to_ne_bytes());
        let word = |text: &mut Vec<u8>, value: u32| text.extend(value.to_ne_bytes());
        long(&mut text, 3600); // how long this is valid, in seconds
        word(&mut text, 0);
        word(&mut text, 0);
        long(&mut text, LOOKUP_OF_ROOT);
        long(&mut text, self.size);
        long(&mut text, self.size / 512);
        for _ in 0..3 {
            long(&mut text, 0); // times
        }
        for _ in 0..3 {
            word(&mut text, 0);
        }
        word(&mut text, 0o100_600);
        word(&mut text, 1); // links
        for _ in 0..3 {
            word(&mut text, 0); // owner, group, device
        }
        word(&mut text, PAGE);
        word(&mut text, 0);
        text
    }
}

/// An answer, and when it is due.
#[derive(Debug)]
struct Reply {
    due: Duration,
    message: Vec<u8>,
}

impl Reply {
    fn new(unique: u64, due: Duration, outcome: Result<&[u8], i32>) -> Self {
        let (error, data) = match outcome {
            Ok(data) => (0, data),
            Err(errno) => (-errno, &[][..]),
        };
        let length = u32::try_from(16 + data.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(16 + data.len());
        message.extend(length.to_ne_bytes());
        message.extend(error.to_ne_bytes());
        message.extend(unique.to_ne_bytes());
        message.extend(data);
        Self { due, message }
    }
}

/// Takes requests in and hands on their answers, until the file system is gone.
fn serve(
    mut connection: File,
    mut disk: Disk,
    replies: &SyncSender<Reply>,
    ready: &Path,
) -> Result<(), Error> {
    place(ready, b"ready\n")?;
    let mut buffer = vec![0; HEADERS_MAX + DATA_MAX as usize];
    loop {
        let length = match connection.read(&mut buffer) {
            Ok(length) => length,
            // Interrupted, or the request was taken back.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::ENOENT | libc::EAGAIN)
                ) =>
            {
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => {
                return Err(Error::system("read from", "/dev/fuse", "see dmesg")(error));
            }
        };
        let arrived = now(ClockId::Monotonic);
        if let Some(reply) = handle(&mut disk, &buffer[..length], arrived)
            && replies.send(reply).is_err()
        {
            // The other thread failed, and says why.
            return Ok(());
        }
    }
}

/// The answer to one request; none where none is expected.
fn handle(disk: &mut Disk, request: &[u8], arrived: Duration) -> Option<Reply> {
    let word = |at: usize| {
        let bytes = request.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let long = |at: usize| {
        let bytes = request.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (opcode, unique) = (word(4)?, long(8)?);
    let at_once = |outcome: Result<&[u8], i32>| Some(Reply::new(unique, arrived, outcome));
    match opcode {
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => None,
        // GETATTR, SETATTR
        3 | 4 => at_once(Ok(&disk.attributes())),
        // OPEN
        14 => {
            let mut open = 0_u64.to_ne_bytes().to_vec();
            open.extend((OPEN_DIRECT_IO | OPEN_PARALLEL_WRITES).to_ne_bytes());
            open.extend(0_u32.to_ne_bytes());
            at_once(Ok(&open))
        }
        // READ
        15 => {
            let (offset, size) = (long(IN_HEADER + 8)?, word(IN_HEADER + 16)?.min(DATA_MAX));
            let mut data = vec![0; size as usize];
            let outcome = read_full(&disk.image, &mut data, offset);
            let due = disk.done_at(arrived, size);
            let outcome = outcome.map(|count| &data[..count]);
            Some(Reply::new(unique, due, outcome.map_err(errno)))
        }
        // WRITE
        16 => {
            let (offset, size) = (long(IN_HEADER + 8)?, word(IN_HEADER + 16)?);
            let data = request.get(IN_HEADER + IN_RW..)?.get(..size as usize)?;
            let outcome = disk.image.write_all_at(data, offset).map_err(errno);
            let due = disk.done_at(arrived, size);
            let mut written = size.to_ne_bytes().to_vec();
            written.extend(0_u32.to_ne_bytes());
            Some(Reply::new(unique, due, outcome.map(|()| &written[..])))
        }
        // RELEASE, FLUSH: nothing is held back. FSYNC takes as long as a request.
        18 | 25 => at_once(Ok(&[])),
        20 => {
            let due = disk.done_at(arrived, 0);
            Some(Reply::new(unique, due, Ok(&[])))
        }
        // INIT
        26 => at_once(Ok(&greeting())),
        _ => at_once(Err(libc::ENOSYS)),
    }
}

fn greeting() -> Vec<u8> {
    let flags = INIT_ASYNC_READ | INIT_BIG_WRITES | INIT_ASYNC_DIO | INIT_MAX_PAGES;
    let mut text = Vec::with_capacity(64);
    for value in [FUSE_MAJOR, FUSE_MINOR, 0, flags] {
        text.extend(value.to_ne_bytes());
    }
    // Requests in the background at most, and when the kernel calls that congested.
    text.extend(QUEUE_MAX.to_ne_bytes());
    text.extend(QUEUE_MAX.to_ne_bytes());
    text.extend(DATA_MAX.to_ne_bytes());
    text.extend(1_u32.to_ne_bytes()); // granularity of times
    let pages = u16::try_from(DATA_MAX / PAGE).unwrap_or(u16::MAX);
    text.extend(pages.to_ne_bytes());
    text.resize(64, 0);
    text
}

fn read_full(image: &File, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < data.len() {
        match image.read_at(&mut data[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn errno(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Gives each answer when it is due. They are due in the order in which requests came.
fn answer(mut connection: &File, replies: &Receiver<Reply>) -> Result<(), Error> {
    for reply in replies {
        sleep_until(reply.due)?;
        match connection.write(&reply.message) {
            Ok(_) => {}
            // Nobody waits for it any more.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => {
                return Err(Error::system("answer through", "/dev/fuse", "see dmesg")(
                    error,
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let image = tempfile::tempfile().unwrap();
        image.set_len(1 << 20).unwrap();
        Disk {
            image,
            size: 1 << 20,
            per_byte: 1e-6,
            per_request: Duration::from_millis(1),
            latency: Duration::from_millis(5),
            busy_until: Duration::ZERO,
        }
    }

    fn request(opcode: u32, offset: u64, data: &[u8], size: u32) -> Vec<u8> {
        let mut text = 0_u32.to_ne_bytes().to_vec();
        text.extend(opcode.to_ne_bytes());
        text.extend(77_u64.to_ne_bytes());
        text.resize(IN_HEADER + 8, 0);
        text.extend(offset.to_ne_bytes());
        text.extend(size.to_ne_bytes());
        text.resize(IN_HEADER + IN_RW, 0);
        text.extend(data);
        text
    }

    #[test]
    fn what_was_written_is_read_and_each_takes_its_time() {
        let mut disk = disk();
        let at = Duration::from_secs(1);
        let written = handle(&mut disk, &request(16, 8, &[7; 4000], 4000), at).unwrap();
        assert_eq!(written.due, at + Duration::from_millis(9));
        let read = handle(&mut disk, &request(15, 0, &[], 16), at).unwrap();
        // Behind the write, by the least that a request takes.
        assert_eq!(read.due, at + Duration::from_millis(10));
        assert_eq!(read.message[16..], [[0; 8], [7; 8]].concat());
        assert_eq!(read.message[8..16], 77_u64.to_ne_bytes());
        let later = at + Duration::from_secs(1);
        let alone = handle(&mut disk, &request(15, 0, &[], 16), later).unwrap();
        assert_eq!(alone.due, later + Duration::from_millis(6));
    }

    #[test]
    fn what_it_does_not_know_it_refuses() {
        let mut disk = disk();
        let refused = handle(&mut disk, &request(99, 0, &[], 0), Duration::ZERO).unwrap();
        assert_eq!(refused.message[4..8], (-libc::ENOSYS).to_ne_bytes());
        assert!(handle(&mut disk, &request(2, 0, &[], 0), Duration::ZERO).is_none());
        assert!(handle(&mut disk, &[0; 3], Duration::ZERO).is_none());
        // A write that promises more than it brings.
        assert!(handle(&mut disk, &request(16, 0, &[1], 9), Duration::ZERO).is_none());
    }
}
