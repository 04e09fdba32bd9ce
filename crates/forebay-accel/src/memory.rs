//! Memory that a client shares: a memfd that can become no shorter.
//!
//! A client that could truncate its memory would end the broker with SIGBUS in the middle of a
//! kernel, so a descriptor is taken only with the seals that forbid it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What a file of tmpfs says of its file system: memory that the kernel finds when it is touched.
/// Huge pages of the other kind of memfd may not be there then.
const TMPFS: i64 = 0x0102_1994;

/// Which memory it is, whichever descriptor it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// Shared memory, mapped.
#[derive(Debug)]
pub(crate) struct Region {
    file: OwnedFd,
    identity: Identity,
    start: NonNull<u8>,
    length: usize,
    writable: bool,
    /// What it is known by while nobody can write to it, in this process or another one.
    constant: Option<u64>,
}

/// What is wanted of memory that is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Read,
    /// Where its descriptor and its seals allow it.
    Write,
}

/// Numbers of memory that is constant. That of an inode is used again after the memory is gone.
static CONSTANTS: AtomicU64 = AtomicU64::new(1);

// SAFETY: a region owns its mapping, which is no thread's own; who may touch which bytes of it at
// which time is decided by the broker, which never runs two tasks that conflict. No safe type
// shares a mapping of a file.
#[expect(unsafe_code, reason = "a mapping is an address")]
unsafe impl Send for Region {}
// SAFETY: as above; every access through a shared region is `unsafe` itself.
#[expect(unsafe_code, reason = "a mapping is an address")]
unsafe impl Sync for Region {}

impl Region {
    /// Memory of this length, sealed against becoming shorter or longer.
    ///
    /// # Errors
    /// What the system refused, and what to do.
    pub(crate) fn new(length: usize) -> Result<Self, String> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let make = || {
            let file = rustix::fs::memfd_create("forebay-accel", flags)?;
            rustix::fs::ftruncate(&file, length as u64)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
            Ok(file)
        };
        let file = make().map_err(|error: rustix::io::Errno| {
            format!("make shared memory of {length} bytes: {error}; check limits on memory")
        })?;
        Self::map(file, length)
    }

    /// Memory that holds these bytes for ever.
    ///
    /// The seal is given before anybody else has the descriptor, and while nothing maps it to write:
    /// the kernel refuses it otherwise, and every later attempt to write.
    ///
    /// # Errors
    /// What the system refused, and what to do.
    pub(crate) fn constant(bytes: &[u8]) -> Result<Self, String> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let length = bytes.len();
        let make = || {
            let file = rustix::fs::memfd_create("forebay-accel", flags)?;
            fill(&file, bytes)?;
            fcntl_add_seals(
                &file,
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
            )?;
            Ok(file)
        };
        let file = make().map_err(|error: rustix::io::Errno| {
            format!("make constant memory of {length} bytes: {error}; check limits on memory")
        })?;
        Self::map(file, length)
    }

    /// Other memory that holds what this one holds; what somebody writes meanwhile may be in it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn copy(&self) -> Result<Self, String> {
        let made = Self::new(self.length)?;
        // SAFETY: the slice goes to the kernel and nowhere else, which copies what is there at that time,
        // whoever writes to it. Memory that is shared has no safe accessor.
        #[expect(unsafe_code, reason = "memory is shared by its addresses")]
        let bytes = unsafe { self.bytes(0, self.length) };
        fill(&made.file, bytes).map_err(|error| {
            let length = self.length;
            format!("copy shared memory of {length} bytes: {error}; check limits on memory")
        })?;
        Ok(made)
    }

    /// Maps what somebody else made, once it was checked: to write to where that is allowed.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do.
    pub(crate) fn map(file: OwnedFd, length: usize) -> Result<Self, String> {
        Self::map_for(Rights::Write, file, length)
    }

    /// As [`map`](Self::map), only to read, whatever is allowed: a stray write of this process to it is a
    /// crash.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub(crate) fn map_to_read(file: OwnedFd, length: usize) -> Result<Self, String> {
        Self::map_for(Rights::Read, file, length)
    }

    fn map_for(rights: Rights, file: OwnedFd, length: usize) -> Result<Self, String> {
        let seals = fcntl_get_seals(&file).map_err(|_| {
            "the descriptor is no memfd; make it with memfd_create(MFD_ALLOW_SEALING)".to_owned()
        })?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err("the memfd may become shorter; add F_SEAL_SHRINK to it first".to_owned());
        }
        let system = fstatfs(&file).map_err(|error| format!("look at the memfd: {error}"))?;
        #[expect(
            clippy::useless_conversion,
            reason = "the type differs between architectures"
        )]
        if i64::from(system.f_type) != TMPFS {
            return Err("the memfd has huge pages (MFD_HUGETLB); make it without".to_owned());
        }
        let stat = fstat(&file).map_err(|error| format!("look at the memfd: {error}"))?;
        let held = u64::try_from(stat.st_size).unwrap_or(0);
        if length == 0 || held < length as u64 {
            return Err(format!(
                "the memfd holds {held} bytes, and {length} are named; name what it holds, and \
                 more than nothing"
            ));
        }
        let sealed = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
        let rights = if sealed { Rights::Read } else { rights };
        let (start, writable) = map_file(&file, length, rights)
            .map_err(|error| format!("map {length} bytes of a memfd: {error}; check limits"))?;
        Ok(Self {
            file,
            identity: Identity {
                device: stat.st_dev,
                inode: stat.st_ino,
            },
            start,
            length,
            writable,
            // Where only further mappings are forbidden, one that is there may write still.
            constant: seals
                .contains(SealFlags::WRITE)
                .then(|| CONSTANTS.fetch_add(1, Ordering::Relaxed)),
        })
    }

    pub(crate) const fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    pub(crate) const fn writable(&self) -> bool {
        self.writable
    }

    /// What it is known by, if nobody can write to it any more.
    pub(crate) const fn constant_number(&self) -> Option<u64> {
        self.constant
    }

    /// A part to read.
    ///
    /// # Safety
    /// Nobody in this process writes to these bytes while the slice lives. (The client may, against
    /// the agreement; it owns this process's user and harms only its own results.)
    ///
    /// # Panics
    /// When the part is not in the region.
    #[expect(unsafe_code, reason = "a mapping is an address")]
    pub(crate) unsafe fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        let start = self.at(offset, length);
        // SAFETY: `at` checked the range against the mapping, which lives as long as `self`; the
        // caller promises that nobody writes. A mapping has no safe accessor.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), length) }
    }

    /// A part to write to.
    ///
    /// # Safety
    /// Nobody in this process reads or writes these bytes by another way while the slice lives.
    ///
    /// # Panics
    /// When the part is not in the region, or the region is only read.
    #[expect(unsafe_code, reason = "a mapping is an address")]
    #[expect(clippy::mut_from_ref, reason = "the caller promises to be alone")]
    pub(crate) unsafe fn bytes_mut(&self, offset: usize, length: usize) -> &mut [u8] {
        assert!(self.writable, "a region that is only read is written");
        let start = self.at(offset, length);
        // SAFETY: `at` checked the range against the mapping, which is writable and lives as long
        // as `self`; the caller promises to be alone. A mapping has no safe accessor.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) }
    }

    #[expect(unsafe_code, reason = "a mapping is an address")]
    fn at(&self, offset: usize, length: usize) -> NonNull<u8> {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "a part leaves its region"
        );
        // SAFETY: the assertion above keeps it in the mapping.
        unsafe { self.start.add(offset) }
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Region {
    #[expect(unsafe_code, reason = "a mapping is an address")]
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's own, and no slice of it outlives the region.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        assert!(unmapped.is_ok(), "a mapping of this process is none");
    }
}

/// Writes these bytes to the beginning of a file.
fn fill(file: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::pwrite(file, &bytes[written..], written as u64) {
            Ok(more) => written += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether it may be written to, too.
#[expect(unsafe_code, reason = "a file can be mapped in no safe way")]
fn map_file(
    file: &OwnedFd,
    length: usize,
    rights: Rights,
) -> rustix::io::Result<(NonNull<u8>, bool)> {
    let map = |protection| {
        // SAFETY: the kernel chooses an address that is free. That the file cannot become shorter
        // under the mapping was checked by its seals.
        unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }
    };
    let mapped = |start: *mut std::ffi::c_void, writable| {
        NonNull::new(start.cast::<u8>())
            .map(|start| (start, writable))
            .ok_or(rustix::io::Errno::NOMEM)
    };
    if rights == Rights::Write {
        match map(ProtFlags::READ | ProtFlags::WRITE) {
            Ok(start) => return mapped(start, true),
            // The descriptor is only for reading.
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    mapped(map(ProtFlags::READ)?, false)
}

/// The rights of what is mapped at an address of this process (`rw-s`), and the number of its file: 0 of
/// memory that is no file.
#[cfg(test)]
pub(crate) fn mapped_at(address: usize) -> (String, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        // start-end rights offset device number path
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|word| usize::from_str_radix(word, 16).unwrap());
        let rights = words.next()?.to_owned();
        let inside = (start..end).contains(&address);
        inside.then(|| (rights, words.nth(2).unwrap().parse().unwrap()))
    });
    found.unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: impl Into<OwnedFd>, length: usize, wanted: &str) {
        let error = Region::map(file.into(), length).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }

    #[test]
    fn forged_descriptors_are_refused() {
        check(tempfile::tempfile().unwrap(), 1, "no memfd");
        let (read, _write) = rustix::pipe::pipe().unwrap();
        check(read, 1, "no memfd");
        let open = |flags| rustix::fs::memfd_create("test", flags).unwrap();
        check(open(MemfdFlags::ALLOW_SEALING), 1, "F_SEAL_SHRINK");
        let short = open(MemfdFlags::ALLOW_SEALING);
        rustix::fs::ftruncate(&short, 10).unwrap();
        fcntl_add_seals(&short, SealFlags::SHRINK).unwrap();
        check(short.try_clone().unwrap(), 11, "holds 10 bytes");
        check(short.try_clone().unwrap(), 0, "more than nothing");
        check(short, usize::MAX, "holds 10 bytes");
    }

    #[test]
    fn memory_that_is_sealed_against_writing_is_only_read() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, 10).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::WRITE).unwrap();
        let region = Region::map(file, 10).unwrap();
        assert!(!region.writable() && region.constant_number().is_some());
    }

    #[test]
    fn memory_is_mapped_only_to_read_where_no_more_is_wanted() {
        let made = Region::new(10).unwrap();
        let read = Region::map_to_read(made.file.try_clone().unwrap(), 10).unwrap();
        assert!(made.writable() && !read.writable());
        // Others write to it.
        assert_eq!(read.constant_number(), None);
    }

    #[test]
    fn a_copy_is_other_memory_with_the_same_content() {
        let made = Region::constant(b"0123456789").unwrap();
        let copy = made.copy().unwrap();
        assert_ne!(copy.identity(), made.identity());
        // SAFETY: nobody else knows of the copy.
        #[expect(unsafe_code, reason = "a mapping is an address")]
        let held = unsafe { copy.bytes_mut(0, 10) };
        assert_eq!(held, b"0123456789");
    }

    /// Whoever can write, by whatever way, keeps memory from being taken for constant.
    #[test]
    fn memory_is_constant_only_where_nobody_can_write() {
        let made = Region::constant(b"0123456789").unwrap();
        let again = Region::map(made.file.try_clone().unwrap(), 10).unwrap();
        assert_ne!(made.constant_number(), again.constant_number());
        // SAFETY: nobody can write to it.
        #[expect(unsafe_code, reason = "a mapping is an address")]
        let held = unsafe { again.bytes(2, 3) };
        assert_eq!(held, b"234");
        let refused = rustix::io::pwrite(&made.file, b"x", 0);
        assert_eq!(refused, Err(rustix::io::Errno::PERM));

        let open = Region::new(10).unwrap();
        assert_eq!(open.constant_number(), None);
        // It is mapped to write: the kernel gives no seal.
        let refused = fcntl_add_seals(&open.file, SealFlags::WRITE);
        assert_eq!(refused, Err(rustix::io::Errno::BUSY));
        // And one that keeps only others from writing makes nothing constant.
        fcntl_add_seals(&open.file, SealFlags::FUTURE_WRITE).unwrap();
        let read = Region::map(open.file.try_clone().unwrap(), 10).unwrap();
        assert!(!read.writable());
        assert_eq!(read.constant_number(), None);
    }
}
