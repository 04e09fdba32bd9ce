//! The descriptor by which the kernel tells of, and is told about, pages of a process.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::mm::UserfaultfdFlags;

const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const WAKE: libc::c_ulong = 0x8010_aa02;
const COPY: libc::c_ulong = 0xc028_aa03;
const ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const WRITEPROTECT: libc::c_ulong = 0xc018_aa06;

/// Of descriptors by which only faults of user code are told; everybody may open one.
pub(super) const USER_MODE_ONLY: u32 = 1;
const VERSION: u64 = 0xaa;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const MODE_WP: u64 = 1 << 1;

/// A range of addresses, in whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// One of this process, for faults of user code alone, which everybody may open.
#[expect(
    unsafe_code,
    reason = "whoever has it could change this process's memory"
)]
pub(crate) fn open() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC
        | UserfaultfdFlags::NONBLOCK
        | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    // SAFETY: no range is registered by it, so that it has no effect on any memory.
    let opened = unsafe { rustix::mm::userfaultfd(flags) };
    Ok(opened?)
}

/// The descriptor.
#[derive(Debug)]
pub(crate) struct Userfault(OwnedFd);

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Userfault {
    /// One that was set up by somebody else.
    pub(crate) const fn ready(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// One for pages that the kernel notes as written by itself, without asking anybody.
    pub(crate) fn tracking(fd: OwnedFd) -> io::Result<Self> {
        let this = Self(fd);
        let mut words = [VERSION, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED, 0];
        this.ask(API, &mut words)?;
        Ok(this)
    }

    /// Begins to note what is written in a range.
    pub(crate) fn track(&self, range: Range) -> io::Result<()> {
        self.ask(REGISTER, &mut [range.start, range.len, MODE_WP, 0])
    }

    /// Takes all marks out of a range that is tracked, so that all of it counts as written.
    pub(crate) fn unmark(&self, range: Range) -> io::Result<()> {
        self.ask(WRITEPROTECT, &mut [range.start, range.len, 0])
    }

    /// Whether the memory that this is about is gone, with all who had it.
    pub(crate) fn is_over(&self) -> bool {
        // The kernel says so before it looks whether the range is tracked, which nothing is so far below.
        let asked = self.unmark(Range {
            start: 1 << 20,
            len: super::page_size(),
        });
        asked.is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH))
    }

    /// Fills missing pages with what lies at an address of this process, and wakes who waits for them.
    /// How many bytes were filled; fewer where one is there already.
    #[expect(unsafe_code, reason = "the kernel reads memory at an address")]
    pub(crate) fn copy(&self, at: u64, from: &[u8]) -> io::Result<u64> {
        let length = from.len() as u64;
        let mut words = [at, from.as_ptr().addr() as u64, length, 0, 0];
        // SAFETY: five words as the request has them; the source lives and is as long as they say.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), COPY, words.as_mut_ptr()) };
        partly(result, words[4])
    }

    /// Fills missing pages with zeros, as [`Self::copy`] does.
    pub(crate) fn zero(&self, range: Range) -> io::Result<u64> {
        let mut words = [range.start, range.len, 0, 0];
        match self.ask(ZEROPAGE, &mut words) {
            Ok(()) => partly(0, words[3]),
            Err(error) if words[3].cast_signed() > 0 => {
                drop(error);
                Ok(words[3])
            }
            Err(error) => Err(error),
        }
    }

    /// Wakes who waits for a page of a range.
    pub(crate) fn wake(&self, range: Range) -> io::Result<()> {
        self.ask(WAKE, &mut [range.start, range.len])
    }

    #[expect(unsafe_code, reason = "rustix has none of these requests")]
    fn ask<const N: usize>(&self, request: libc::c_ulong, words: &mut [u64; N]) -> io::Result<()> {
        debug_assert_eq!((request >> 16) & 0x3fff, 8 * N as libc::c_ulong);
        // SAFETY: the requests above read and write so many words, and no memory beside them.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, words.as_mut_ptr()) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// What a request that fills pages says: so many bytes, or why none.
fn partly(result: libc::c_int, done: u64) -> io::Result<u64> {
    match (result, done.cast_signed()) {
        (_, 1..) => Ok(done),
        (0, _) => Ok(0),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody waits for the page at an address.
    Fault(u64),
    /// The process forked, and this descriptor is for the child.
    Fork(i32),
    /// A range was moved.
    Moved { from: Range, to: u64 },
    /// Content of a range was given up; what is read there next is zero.
    Removed(Range),
    /// A range is no memory any more.
    Unmapped(Range),
    /// Something newer than this.
    Unknown(u8),
}

impl Event {
    /// Bytes of one event.
    pub(crate) const SIZE: usize = 32;

    /// Reads one as the kernel writes it.
    pub(crate) fn parse(message: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&message[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        let between = || Range {
            start: word(8),
            len: word(16).saturating_sub(word(8)),
        };
        match message[0] {
            0x12 => Self::Fault(word(16)),
            0x13 => Self::Fork(i32::from_ne_bytes([
                message[8],
                message[9],
                message[10],
                message[11],
            ])),
            0x14 => Self::Moved {
                from: Range {
                    start: word(8),
                    len: word(24),
                },
                to: word(16),
            },
            0x15 => Self::Removed(between()),
            0x16 => Self::Unmapped(between()),
            other => Self::Unknown(other),
        }
    }
}
