//! The few calls of bpf(2) that counting packets takes.
//!
//! The programs are short enough to be written as instructions, so that neither a compiler for
//! them nor a loader of object files is needed. A program is attached by a link: the kernel
//! detaches it when the link's descriptor goes, however the daemon ends.

#![expect(
    unsafe_code,
    reason = "no safe crate makes these calls without a loader of object files"
)]

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::error::HostError;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_ARRAY: u32 = 2;
/// bpf(2) calls the programs' license by name; helpers for GPL programs alone are not used.
const LICENSE: &CStr = c"Apache-2.0";
/// What the verifier has to say of a program that it refuses.
const LOG_BYTES: usize = 64 * 1024;

/// One instruction, as the kernel lays it out.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Insn {
    pub(super) code: u8,
    /// Destination in the low four bits, source in the high ones.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Packets that come to a group's sockets.
    Ingress,
    /// Packets that leave them.
    Egress,
    /// What happens to their connections.
    SockOps,
}

impl Hook {
    const fn program_type(self) -> u32 {
        match self {
            Self::Ingress | Self::Egress => 8,
            Self::SockOps => 13,
        }
    }

    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
            Self::SockOps => 3,
        }
    }
}

// The argument of bpf(2), by command; what is beyond its size counts as zero.

#[repr(C)]
#[derive(Clone, Copy)]
struct MapAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// A descriptor as bpf(2) takes it.
fn number(fd: &impl AsFd) -> u32 {
    // Descriptors are not negative.
    fd.as_fd().as_raw_fd().unsigned_abs()
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<u8>().addr() as u64
}

/// # Safety
/// `attr` is what `command` takes, laid out as in linux/bpf.h, and every address in `attr` that `command` uses points to memory of the size that the command
/// reads or writes there.
unsafe fn bpf<A>(command: libc::c_int, attr: &A) -> std::io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size` bytes of `attr`; the caller vouches for what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<A>(),
        )
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// # Safety
/// As [`bpf`], and `command` gives a new descriptor.
unsafe fn bpf_open<A>(command: libc::c_int, attr: &A) -> std::io::Result<OwnedFd> {
    // SAFETY: the caller's, passed on.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just given this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One row of numbers that programs and the daemon share.
#[derive(Debug)]
pub(super) struct Row<const N: usize> {
    map: OwnedFd,
}

impl<const N: usize> Row<N> {
    pub(super) fn new() -> Result<Self, HostError> {
        let attr = MapAttr {
            kind: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: u32::try_from(size_of::<[u64; N]>()).unwrap_or(u32::MAX),
            max_entries: 1,
        };
        // SAFETY: this command has no addresses, and gives a descriptor.
        let map = unsafe { bpf_open(MAP_CREATE, &attr) }
            .map_err(|error| HostError::io("make a map for a BPF program", error))?;
        Ok(Self { map })
    }

    /// The descriptor that instructions name the row by.
    pub(super) fn descriptor(&self) -> i32 {
        self.map.as_raw_fd()
    }

    pub(super) fn read(&self) -> Result<[u64; N], HostError> {
        let key = 0_u32;
        let mut row = [0; N];
        let attr = ElementAttr {
            map: number(&self.map),
            padding: 0,
            key: address(&raw const key),
            value: address(row.as_mut_ptr().cast_const()),
            flags: 0,
        };
        // SAFETY: the key has 4 bytes and the row as many as the map was made for.
        unsafe { bpf(MAP_LOOKUP, &attr) }
            .map_err(|error| HostError::io("read a map of a BPF program", error))?;
        Ok(row)
    }

    pub(super) fn write(&self, row: &[u64; N]) -> Result<(), HostError> {
        let key = 0_u32;
        let attr = ElementAttr {
            map: number(&self.map),
            padding: 0,
            key: address(&raw const key),
            value: address(row.as_ptr()),
            flags: 0,
        };
        // SAFETY: the key has 4 bytes and the row as many as the map was made for.
        unsafe { bpf(MAP_UPDATE, &attr) }
            .map_err(|error| HostError::io("write a map of a BPF program", error))?;
        Ok(())
    }
}

/// A program that the kernel has checked.
#[derive(Debug)]
pub(super) struct Program {
    hook: Hook,
    fd: OwnedFd,
}

impl Program {
    pub(super) fn load(hook: Hook, code: &[Insn]) -> Result<Self, HostError> {
        let mut name = [0; 16];
        name[..7].copy_from_slice(b"forebay");
        let mut attr = ProgramAttr {
            kind: hook.program_type(),
            instructions: u32::try_from(code.len()).unwrap_or(u32::MAX),
            code: address(code.as_ptr()),
            license: address(LICENSE.as_ptr()),
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name,
            interface: 0,
            attach_type: hook.attach_type(),
        };
        // SAFETY: the instructions and the license live until the call returns.
        let loaded = unsafe { bpf_open(PROG_LOAD, &attr) };
        let fd = match loaded {
            Ok(fd) => fd,
            Err(error) => {
                let mut log = vec![0_u8; LOG_BYTES];
                attr.log_level = 1;
                attr.log_size = u32::try_from(log.len()).unwrap_or(0);
                attr.log = address(log.as_mut_ptr().cast_const());
                // SAFETY: as before, and the log has the size that is given.
                unsafe { bpf_open(PROG_LOAD, &attr) }.map_err(|_| refused(hook, error, &log))?
            }
        };
        Ok(Self { hook, fd })
    }

    /// Runs the program for a control group, as long as what is returned lives.
    pub(super) fn attach(&self, group: &Path) -> Result<OwnedFd, HostError> {
        let action = "attach a BPF program to control group";
        let dir = File::open(group).map_err(|error| HostError::file(action, group, error))?;
        let attr = LinkAttr {
            program: number(&self.fd),
            target: number(&dir),
            attach_type: self.hook.attach_type(),
            flags: 0,
        };
        // SAFETY: this command has no addresses, and gives a descriptor.
        unsafe { bpf_open(LINK_CREATE, &attr) }
            .map_err(|error| HostError::file(action, group, error))
    }
}

/// Why a program was not loaded, with the last that the verifier said.
fn refused(hook: Hook, error: std::io::Error, log: &[u8]) -> HostError {
    let log = String::from_utf8_lossy(log);
    let last = log.trim_end_matches('\0').trim_end().lines().next_back();
    let said = last.map_or_else(String::new, |line| format!(" (verifier: {line})"));
    HostError::io(format!("load the BPF program for {hook:?}{said}"), error)
}
