//! Which files are touched: fanotify on the directories of a tier.
//!
//! The kernel names files by handles and opens none for us: an open file would break leases.
//! Events of one file and process that wait to be read are merged, so that a count is one of
//! short whiles in which a process touched a file, not one of reads. Reads of mapped memory
//! give no events. A promoted file is touched in `FAST/files`, which is watched as well.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::error::HostError;

/// Files whose touches are counted between two takings; those of others are lost, and counted.
const TOUCHED_MAX: usize = 65_536;
/// Bytes of events that are read at once: some 1,300 events.
const BUFFER: usize = 64 * 1024;
/// Reads in a row, so that a storm of events does not hold the reader for ever.
const READS_MAX: usize = 64;
/// The kernel's own bound on a handle.
const HANDLE_MAX: usize = 128;

/// Names the content of one file until the next boot, whatever its path is. Two files have
/// one key with a chance of one in 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(u64);

impl FileKey {
    fn of(file_system: [i32; 2], kind: i32, handle: &[u8]) -> Self {
        // Its keys are fixed, so that equal handles give equal numbers.
        let mut hasher = DefaultHasher::new();
        (file_system, kind, handle).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What was touched since it was taken last.
#[derive(Debug, Clone, Default)]
pub struct Touches {
    /// How often each file was.
    pub files: HashMap<FileKey, u32>,
    /// Events read.
    pub events: u64,
    /// Times that the kernel had more events than it keeps and dropped some.
    pub overflows: u64,
    /// Touches of files beyond those that are counted.
    pub lost: u64,
}

impl Touches {
    fn add(&mut self, file: FileKey, times: u32) {
        if self.files.len() >= TOUCHED_MAX && !self.files.contains_key(&file) {
            self.lost += u64::from(times);
            return;
        }
        let known = self.files.entry(file).or_default();
        *known = known.saturating_add(times);
    }
}

/// Watches the promoted files. Every event costs whoever touches a file a microsecond or two,
/// which fast files notice: while events come fast, they are watched for one look in ten, and
/// what is seen counts ten times.
#[derive(Debug)]
pub struct Sampler {
    watch: Watch,
    directory: OwnedFd,
    /// Looks to rest for, and how much what is seen now counts.
    rests: u32,
    weight: u32,
}

/// Events in one look, merged by file and process, from which the next looks are left out.
const LOOK_MAX: u64 = 32;
/// One look in so many is made then.
const SAMPLED: u32 = 10;

impl Sampler {
    pub(super) fn new(directory: OwnedFd) -> Result<Self, HostError> {
        let watch = Watch::open()?;
        let sampler = Self {
            watch,
            directory,
            rests: 0,
            weight: 1,
        };
        sampler.begin()?;
        Ok(sampler)
    }

    fn begin(&self) -> Result<(), HostError> {
        self.watch.mark(self.directory.as_fd()).map_err(|error| {
            HostError::io("watch the promoted files by fanotify", error)
                .advise("a file system without file handles cannot be watched: move files by hand")
        })
    }

    /// One look: counts what was touched since the last one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn look(&mut self, touches: &mut Touches) -> Result<(), HostError> {
        if self.rests > 0 {
            self.rests -= 1;
            if self.rests == 0 {
                self.begin()?;
            }
            return Ok(());
        }
        let before = touches.events;
        self.watch.read_weighted(touches, self.weight)?;
        self.weight = 1;
        if touches.events - before >= LOOK_MAX {
            self.watch
                .change(libc::FAN_MARK_REMOVE, self.directory.as_fd())
                .map_err(|error| HostError::io("rest from watching promoted files", error))?;
            // What was touched between the reading and the end of watching counts no more.
            let mut late = Touches::default();
            self.watch.read_weighted(&mut late, 1)?;
            (self.rests, self.weight) = (SAMPLED - 1, SAMPLED);
        }
        Ok(())
    }
}

/// An open group of fanotify.
#[derive(Debug)]
pub struct Watch {
    group: OwnedFd,
    own: i32,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the kernel has no fanotify with handles (before 5.1), or this is not root.
    #[expect(unsafe_code, reason = "rustix has no fanotify")]
    pub fn open() -> Result<Self, HostError> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_FID
            | libc::FAN_UNLIMITED_MARKS;
        // SAFETY: fanotify_init takes two integers. Nothing is opened through events, so that
        // their flags say nothing.
        let group = last(unsafe { libc::fanotify_init(flags, 0) })
            .map_err(|error| HostError::io("watch files by fanotify", error))?;
        Ok(Self {
            // SAFETY: it was just opened, and nobody else knows it.
            group: unsafe { OwnedFd::from_raw_fd(group) },
            own: rustix::process::getpid().as_raw_nonzero().get(),
        })
    }

    /// Watches the files in a directory from now on; one that is watched stays so.
    pub(super) fn mark(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        self.change(libc::FAN_MARK_ADD, directory)
    }

    #[expect(unsafe_code, reason = "rustix has no fanotify")]
    fn change(&self, flags: u32, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let mask = libc::FAN_OPEN | libc::FAN_ACCESS | libc::FAN_MODIFY | libc::FAN_EVENT_ON_CHILD;
        // SAFETY: both descriptors are open, and no path means the directory itself.
        let result = unsafe {
            libc::fanotify_mark(
                self.group.as_raw_fd(),
                flags,
                mask,
                directory.as_raw_fd(),
                std::ptr::null(),
            )
        };
        last(result).map(drop)
    }

    /// Waits until something was touched, at most so long.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, timeout: Duration) -> Result<(), HostError> {
        let timeout = Timespec::try_from(timeout).ok();
        match rustix::event::poll(
            &mut [PollFd::new(&self.group, PollFlags::IN)],
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(HostError::io("wait for events of fanotify", error)),
        }
    }

    /// Counts what was touched up to now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self, touches: &mut Touches) -> Result<(), HostError> {
        self.read_weighted(touches, 1)
    }

    fn read_weighted(&self, touches: &mut Touches, weight: u32) -> Result<(), HostError> {
        let mut buffer = vec![0; BUFFER];
        for _ in 0..READS_MAX {
            match rustix::io::read(&self.group, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(length) => count(&buffer[..length], self.own, weight, touches),
                Err(Errno::INTR) => {}
                Err(error) => return Err(HostError::io("read events of fanotify", error)),
            }
        }
        Ok(())
    }
}

/// Counts the events in a buffer; what is cut off or not understood ends it.
fn count(mut events: &[u8], own: i32, weight: u32, touches: &mut Touches) {
    while let Some(length) = number(events, 0).and_then(|length| usize::try_from(length).ok()) {
        let Some((event, rest)) = events.split_at_checked(length) else {
            return;
        };
        let Some((head, pid)) = head(event) else {
            return;
        };
        touches.events += 1;
        if head.mask & libc::FAN_Q_OVERFLOW != 0 {
            touches.overflows += 1;
        } else if pid != own
            && let Some(file) = event.get(head.length..).and_then(named)
        {
            touches.add(file, weight);
        }
        events = rest;
    }
}

struct Head {
    mask: u64,
    length: usize,
}

/// `struct fanotify_event_metadata`: length, version, 0, length of this, mask, fd, pid.
fn head(event: &[u8]) -> Option<(Head, i32)> {
    let length = u16::from_ne_bytes(event.get(6..8)?.try_into().ok()?);
    let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
    let pid = i32::from_ne_bytes(event.get(20..24)?.try_into().ok()?);
    (event[4] == libc::FANOTIFY_METADATA_VERSION && length > 0).then_some((
        Head {
            mask,
            length: usize::from(length),
        },
        pid,
    ))
}

/// The file of the first record that names one: type, 0, length, file system, handle.
fn named(mut records: &[u8]) -> Option<FileKey> {
    loop {
        let length = usize::from(u16::from_ne_bytes(records.get(2..4)?.try_into().ok()?));
        let record = records.get(..length)?;
        if *record.first()? == libc::FAN_EVENT_INFO_TYPE_FID {
            let bytes = usize::try_from(number(record, 12)?).ok()?;
            let file_system = [signed(record, 4)?, signed(record, 8)?];
            let handle = record.get(20..20 + bytes)?;
            return Some(FileKey::of(file_system, signed(record, 16)?, handle));
        }
        records = records.get(length.max(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn signed(bytes: &[u8], at: usize) -> Option<i32> {
    number(bytes, at).map(u32::cast_signed)
}

/// How the kernel names a file in events. None where the file system has no such names.
#[expect(unsafe_code, reason = "rustix has no name_to_handle_at")]
pub(super) fn key(
    directory: BorrowedFd<'_>,
    name: &Path,
    file_system: [i32; 2],
) -> Result<Option<FileKey>, Errno> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; HANDLE_MAX],
    }
    let mut handle = Handle {
        bytes: u32::try_from(HANDLE_MAX).map_err(|_| Errno::INVAL)?,
        kind: 0,
        handle: [0; HANDLE_MAX],
    };
    let name = rustix::path::Arg::into_c_str(name)?;
    let mut mount = 0;
    // SAFETY: the name ends with a zero; the handle is laid out as the kernel's, with room for
    // as many bytes as it says; links are not followed.
    let result = last(unsafe {
        libc::name_to_handle_at(
            directory.as_raw_fd(),
            name.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            0,
        )
    });
    match result {
        Ok(_) => {
            let length = usize::try_from(handle.bytes).map_err(|_| Errno::INVAL)?;
            let bytes = handle.handle.get(..length).ok_or(Errno::INVAL)?;
            Ok(Some(FileKey::of(file_system, handle.kind, bytes)))
        }
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number by which events tell the file systems apart.
#[expect(unsafe_code, reason = "rustix and libc keep the number to themselves")]
pub(super) fn file_system(of: BorrowedFd<'_>) -> Result<[i32; 2], Errno> {
    // SAFETY: fstatfs fills the whole structure, of which all zeros is a valid value; the
    // kernel's __kernel_fsid_t is two integers.
    unsafe {
        let mut about: libc::statfs = std::mem::zeroed();
        last(libc::fstatfs(of.as_raw_fd(), &raw mut about))?;
        Ok(std::mem::transmute::<libc::fsid_t, [i32; 2]>(about.f_fsid))
    }
}

fn last(result: libc::c_int) -> Result<i32, Errno> {
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event as the kernel writes it, of a file whose handle is one number.
    fn event(mask: u64, pid: i32, file: Option<u64>) -> Vec<u8> {
        let mut record = Vec::new();
        if let Some(file) = file {
            record.extend([libc::FAN_EVENT_INFO_TYPE_FID, 0]);
            record.extend(28_u16.to_ne_bytes());
            record.extend([1_i32, 2].map(i32::to_ne_bytes).concat());
            record.extend(8_u32.to_ne_bytes());
            record.extend(1_i32.to_ne_bytes());
            record.extend(file.to_ne_bytes());
        }
        let mut event = Vec::new();
        event.extend(u32::try_from(24 + record.len()).unwrap().to_ne_bytes());
        event.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        event.extend(24_u16.to_ne_bytes());
        event.extend(mask.to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(pid.to_ne_bytes());
        event.extend(record);
        event
    }

    #[test]
    fn touches_of_others_are_counted_by_file() {
        let events = [
            event(libc::FAN_OPEN, 7, Some(1)),
            event(libc::FAN_ACCESS, 8, Some(1)),
            event(libc::FAN_MODIFY, 7, Some(2)),
            event(libc::FAN_OPEN, 99, Some(3)),
            event(libc::FAN_Q_OVERFLOW, 0, None),
        ]
        .concat();
        let mut touches = Touches::default();
        count(&events, 99, 1, &mut touches);
        let mut counts: Vec<u32> = touches.files.values().copied().collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 2]);
        assert_eq!((touches.events, touches.overflows), (5, 1));
    }

    #[test]
    fn what_is_cut_off_or_strange_ends_the_count() {
        let good = event(libc::FAN_OPEN, 7, Some(1));
        let mut strange = good.clone();
        strange[4] = 9;
        let mut long = good.clone();
        long[26] = 200;
        for bad in [
            &good[..good.len() - 1],
            &good[..10],
            &[0; 24][..],
            &strange[..],
            &long[..],
        ] {
            let mut touches = Touches::default();
            count(&[&good[..], bad].concat(), 99, 1, &mut touches);
            assert_eq!(touches.files.values().sum::<u32>(), 1, "{bad:?}");
        }
    }

    #[test]
    fn files_beyond_the_bound_are_lost_and_counted() {
        let mut touches = Touches::default();
        for file in 0..TOUCHED_MAX as u64 + 10 {
            touches.add(FileKey(file), 1);
        }
        touches.add(FileKey(0), 1);
        assert_eq!(touches.files.len(), TOUCHED_MAX);
        assert_eq!((touches.lost, touches.files[&FileKey(0)]), (10, 2));
    }
}
