//! What is started for an app sees the host's file systems as they are.
//!
//! The daemon's unit has systemd give it a view of its own (a mount namespace), in which the files of the
//! system cannot be written. That is for the daemon: the programs of apps, the command of an update and CRIU,
//! which has to see what its process sees, begin in the view of process 1.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::HostError;

/// The view that what is started begins in, where that is not this process's own.
static VIEW: OnceLock<File> = OnceLock::new();

/// From now on what is started for apps begins in the view of process 1.
///
/// # Errors
/// When that cannot be had.
pub fn start_outside(proc_root: &Path) -> Result<(), HostError> {
    let path = proc_root.join("1/ns/mnt");
    let view = File::open(&path).map_err(|error| {
        HostError::file("open", &path, error)
            .advise("leave --outside away, or give the unit CAP_SYS_PTRACE and CAP_SYS_ADMIN")
    })?;
    // A second call changes nothing: there is one process 1.
    VIEW.get_or_init(|| view);
    Ok(())
}

/// Moves this process, which has to be a forked child, into the view that it is to begin in. A plain system
/// call: it allocates nothing and takes no lock. The working directory is the root afterwards.
///
/// # Errors
/// When the kernel refuses. Whether there was anything to do otherwise.
pub(crate) fn step_out() -> io::Result<bool> {
    let Some(view) = VIEW.get() else {
        return Ok(false);
    };
    move_into_link_name_space(view.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(true)
}

/// Has a command begin there, in the root directory.
#[expect(
    unsafe_code,
    reason = "only the child may change its view: it is one of a whole process"
)]
pub fn have_step_out(command: &mut Command) {
    if VIEW.get().is_none() {
        return;
    }
    // SAFETY: `step_out` makes one plain system call, allocates nothing and takes no lock (the cell was
    // filled before the fork), as has to be between fork and exec. There is no safe way to run code there.
    unsafe {
        command.pre_exec(|| step_out().map(drop));
    }
}
