//! A process that CRIU holds still for a move: let go on, or ended.
//!
//! CRIU takes its image as for a restore with lazy pages: all but its private anonymous memory is in
//! the image, and CRIU waits for somebody to ask for that. Nobody does: [`Tracker`](super::Tracker) has
//! it. What CRIU is told is how it ends. Whoever dies meanwhile, CRIU waits on, as the other end of its
//! connection is in its own hands as well.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::criu::{IMAGES_DIR, last_error};
use super::release::Release;
use super::{Criu, Tcp};
use crate::error::HostError;
use crate::fence::Stop;
use crate::groups;
use crate::nft;
use crate::outside;

const LOG: &str = "dump.log";
/// What CRIU is asked: that all was fetched, and something that it does not know, on which it gives up.
const CLOSE: u32 = 0x1023;
const NONSENSE: u32 = 0x7fff;
/// Bytes of a request, in the version in which it has most.
const REQUEST: usize = 32;
/// So long may freezing take, and so long letting go.
pub(super) const FREEZE_MAX: Duration = Duration::from_secs(30);
const RELEASE_MAX: Duration = Duration::from_secs(10);
/// And so long the kernel, to end a CRIU that did not.
const END_MAX: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);
/// Where all processes are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How a process is frozen.
#[derive(Debug, Clone, Copy)]
pub struct Freezing<'a> {
    /// What becomes of its TCP connections where it is made anew.
    pub tcp: Tcp,
    /// What becomes of it when whoever froze it ends.
    pub orphaned: Orphaned<'a>,
}

/// What becomes of a frozen process when whoever froze it ends.
#[derive(Debug, Clone, Copy)]
pub enum Orphaned<'a> {
    /// CRIU holds it until it is ended.
    Stands,
    /// CRIU lets it go: for whoever has its group hold it before another copy may run. Where this stops its group it
    /// stands there: CRIU leaves its connections out of the kernel's hands, and it would find them broken.
    GoesOn(Option<&'a Stop>),
}

/// A process that stands still.
#[derive(Debug)]
pub struct Held {
    criu: Child,
    /// CRIU waits for a word at its other end.
    line: UnixStream,
    pid: u32,
    images: PathBuf,
    _release: Option<Release>,
}

impl Held {
    /// Freezes a process, and has an image made of all but its private anonymous memory.
    ///
    /// # Errors
    /// When CRIU refuses, with the first that it complained of; the process goes on then.
    pub fn freeze(
        criu: &Criu,
        pid: u32,
        images: &Path,
        freezing: Freezing<'_>,
    ) -> Result<Self, HostError> {
        let fail = |error| HostError::io(format!("freeze process {pid} for a move"), error);
        note_tables(images).map_err(fail)?;
        let (line, theirs) = UnixStream::pair().map_err(fail)?;
        let (ready, said) = io::pipe().map_err(fail)?;
        // Before CRIU is: it reads that when it has done its part, whoever is there by then.
        let release = match freezing.orphaned {
            Orphaned::Stands => None,
            Orphaned::GoesOn(stop) => {
                let word = request(NONSENSE);
                let release = Release::new((line.as_fd(), &word), ready.as_fd(), stop);
                Some(release.map_err(fail)?)
            }
        };
        let mut command = Command::new(criu.program());
        command
            .arg("dump")
            .args(["--tree", &pid.to_string()])
            .arg(IMAGES_DIR)
            .arg(images)
            .arg("--lazy-pages")
            .args(["--ps-socket", &theirs.as_raw_fd().to_string()])
            .args(["--status-fd", &said.as_raw_fd().to_string()])
            .args(freezing.tcp.arguments())
            .arg("--manage-cgroups=ignore")
            .args(["--file-locks", "--log-file", LOG])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let kept = [theirs.as_raw_fd(), line.as_raw_fd(), said.as_raw_fd()];
        keep(&mut command, kept);
        outside::have_step_out(&mut command);
        let child = command
            .spawn()
            .map_err(|e| HostError::file("run", criu.program(), e))?;
        let mut held = Self {
            criu: child,
            line,
            pid,
            images: images.to_owned(),
            _release: release,
        };
        drop((theirs, said));
        // What says so stays there, for whoever waits for the end of this process.
        if came(ready.as_fd(), FREEZE_MAX).map_err(fail)? {
            return Ok(held);
        }
        // It is ended only where it takes too long: what it began it takes back by itself.
        held.wait(RELEASE_MAX).ok();
        let said = last_error(&held.images.join(LOG));
        held.give_up()?;
        Err(HostError::invalid(
            format!("freeze process {pid} for a move: {said}"),
            "it goes on where it is; move it by a restart if CRIU cannot take it",
        ))
    }

    /// Ends it: it goes on elsewhere.
    ///
    /// # Errors
    /// When CRIU does not end it; it stands still then.
    pub fn end(mut self) -> Result<(), HostError> {
        self.say(CLOSE)?;
        if !self.wait(RELEASE_MAX)? {
            let said = last_error(&self.images.join(LOG));
            return Err(HostError::invalid(
                format!("end process {}, which was moved: {said}", self.pid),
                "it must not go on: end it by hand",
            ));
        }
        unlock(Some(self.pid), &self.images)
    }

    /// Lets it go on here, with its connections. CRIU is ended where it does not do so in time.
    ///
    /// # Errors
    /// When CRIU cannot be ended, or a connection stays held up.
    pub fn thaw(mut self) -> Result<(), HostError> {
        let told = self.say(NONSENSE);
        if let Err(error) = told.and_then(|()| self.wait(RELEASE_MAX).map(drop)) {
            tracing::warn!(pid = self.pid, why = error.explain(), "CRIU is ended");
        }
        self.give_up()
    }

    fn say(&mut self, word: u32) -> Result<(), HostError> {
        self.line
            .write_all(&request(word))
            .map_err(|e| HostError::io("tell CRIU what becomes of a process", e))
    }

    /// Waits until CRIU ended; whether it succeeded.
    fn wait(&mut self, bound: Duration) -> Result<bool, HostError> {
        let fail = |e| HostError::io("wait for CRIU", e);
        let until = Instant::now() + bound;
        loop {
            if let Some(status) = self.criu.try_wait().map_err(fail)? {
                return Ok(status.success());
            }
            if Instant::now() >= until {
                return Err(HostError::invalid(
                    format!("wait for CRIU, which holds process {}", self.pid),
                    "see its dump.log; end CRIU by hand",
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends CRIU if it is still there, and takes back what it leaves: the kernel lets the process go on
    /// when CRIU ends, but not its connections.
    fn give_up(&mut self) -> Result<(), HostError> {
        let fail = |e| HostError::io("end CRIU", e);
        if self.criu.try_wait().map_err(fail)?.is_none() {
            self.criu.kill().map_err(fail)?;
            self.criu.wait().map_err(fail)?;
        }
        take_back(self.pid, &self.images)
    }
}

fn request(word: u32) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&word.to_ne_bytes());
    request
}

/// Gives a process its connections back that CRIU held up before it was ended, as said in these images:
/// for whoever comes after a mover that ended.
///
/// # Errors
/// When the kernel refuses.
pub fn take_back(pid: u32, images: &Path) -> Result<(), HostError> {
    open_connections(pid)?;
    unlock(Some(pid), images)
}

/// Has processes be held by no CRIU any more that an earlier mover began, gives them their connections back, and
/// removes what CRIU left of these images, also where nobody is there any more. Waits until CRIU let them go by itself,
/// also one that does not hold them yet, ends it where it does not, and gives up after 15 s in all.
///
/// # Errors
/// When somebody else holds one, CRIU does not end, or the kernel refuses.
pub fn let_go(pids: &[u32], images: &Path) -> Result<(), HostError> {
    await_release(pids, images)?;
    let mut done = Ok(());
    for pid in pids {
        done = done.and(take_back(*pid, images));
    }
    done.and_then(|()| unlock(None, images))
}

/// Waits until nobody holds these processes, and no CRIU that is about to is at work on these images; ends CRIU where
/// that takes too long.
fn await_release(pids: &[u32], images: &Path) -> Result<(), HostError> {
    let until = Instant::now() + RELEASE_MAX;
    loop {
        let fail = |e| HostError::file("look for a CRIU at work on", images, e);
        let at_work = at_work(images).map_err(fail)?;
        let held = pids.iter().find_map(|pid| Some((*pid, tracer(*pid)?)));
        let now = Instant::now();
        match (held, at_work) {
            (None, None) => return Ok(()),
            (_, Some(criu)) if now >= until + END_MAX => {
                return Err(HostError::invalid(
                    format!("end CRIU, process {criu}, which holds what moves: it does not end"),
                    "see what it waits for (`/proc/PID/stack`); it is ended as soon as it can be",
                ));
            }
            (_, Some(criu)) if now >= until => {
                groups::signal(criu, rustix::process::Signal::KILL);
            }
            // None of these images'.
            (Some((pid, tracer)), None) if now >= until => {
                let name = fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
                let name = name.trim();
                return Err(HostError::invalid(
                    format!("let process {pid} go on: process {tracer} ({name}) holds it"),
                    "end that",
                ));
            }
            _ => {}
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The CRIU that takes these images, whatever its program is called.
fn at_work(images: &Path) -> io::Result<Option<u32>> {
    let images = images.as_os_str().as_bytes();
    for process in fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        if words.any(|word| word == IMAGES_DIR.as_bytes()) && words.next() == Some(images) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Who holds a process.
fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Beside the images: the tables of CRIU's that were there before it began.
const TABLES: &str = "tables-before";
const TABLE: &str = "CRIU-";

/// CRIU says what its table is called only when its images are done: one that is ended before leaves a table that no
/// image names.
fn note_tables(images: &Path) -> io::Result<()> {
    let before = nft::tables(TABLE)?;
    fs::write(images.join(TABLES), before.join("\n"))
}

/// Lets packets of the connections of a process pass again, also of one that is gone.
fn unlock(pid: Option<u32>, images: &Path) -> Result<(), HostError> {
    let inventory = fs::read(images.join("inventory.img")).unwrap_or_default();
    let mut named: Vec<String> = tables(&inventory).collect();
    if named.is_empty() {
        named = left_over(images)
            .map_err(|e| HostError::io("find the table of nftables that CRIU left", e))?;
    }
    // Older ones of CRIU name it by the process.
    let older = pid.map(|pid| format!("{TABLE}{pid}"));
    for table in named.into_iter().chain(older) {
        nft::remove_table(&table)
            .map_err(|e| HostError::io(format!("remove the table {table} of nftables"), e))?;
    }
    Ok(())
}

/// The tables that came since CRIU began here and are nobody's any more; an error while a CRIU runs, whose one may be.
fn left_over(images: &Path) -> io::Result<Vec<String>> {
    let Ok(before) = fs::read_to_string(images.join(TABLES)) else {
        return Ok(Vec::new());
    };
    let mut now = nft::tables(TABLE)?;
    now.retain(|table| before.lines().all(|other| other != table));
    if !now.is_empty() && runs_criu()? {
        let tables = now.join(" ");
        let why = format!("a CRIU runs, which may hold connections up by one of {tables}");
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    Ok(now)
}

/// Whether a CRIU runs in this network.
fn runs_criu() -> io::Result<bool> {
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let here = network(Path::new("/proc/self"));
    for process in fs::read_dir("/proc")?.flatten() {
        let process = process.path();
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if name.trim() == "criu" && network(&process) == here {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The tables of CRIU's runs. It has room for 31 letters, `inet ` among them, so that the name is cut off in most
/// releases.
fn tables(inventory: &[u8]) -> impl Iterator<Item = String> {
    const CUT: usize = 31 - "inet ".len();
    run_names(inventory).flat_map(|name| {
        let whole = format!("{TABLE}{name}");
        [whole.chars().take(CUT).collect(), whole]
    })
}

/// Names that CRIU gave its runs: 36 letters, written as UUIDs are.
fn run_names(inventory: &[u8]) -> impl Iterator<Item = String> {
    inventory.windows(36).filter_map(|text| {
        let is_name = text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
        is_name.then(|| String::from_utf8_lossy(text).into_owned())
    })
}

/// CRIU takes connections out of the kernel's hands while it reads them, and gives them back only where
/// it was not ended.
fn open_connections(pid: u32) -> Result<(), HostError> {
    each_socket(pid, |fd, socket| {
        if !is_held_up(socket) {
            return Ok(());
        }
        repair(socket, false)
            .map_err(|e| HostError::io(format!("let connection {fd} of process {pid} go on"), e))
    })
}

/// Takes the connections of a process that stands out of the kernel's hands: when it ends, nobody at their other ends
/// hears of it, and nothing of them is left. For one whose connections go on elsewhere.
///
/// # Errors
/// When the kernel refuses.
pub fn disown_connections(pid: u32) -> Result<(), HostError> {
    each_socket(pid, |fd, socket| match repair(socket, true) {
        // One that listens, or is none of TCP.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EPERM | libc::ENOPROTOOPT | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(())
        }
        done => done.map_err(|e| {
            HostError::io(
                format!("have connection {fd} of process {pid} end unheard"),
                e,
            )
        }),
    })
}

/// Does something with each socket of a process that is still there.
fn each_socket(
    pid: u32,
    mut each: impl FnMut(i32, &OwnedFd) -> Result<(), HostError>,
) -> Result<(), HostError> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(pidfd) = number.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return Ok(());
    };
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let listed = match fs::read_dir(&directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(HostError::file("list", &directory, error)),
    };
    for entry in listed.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if !target.to_string_lossy().starts_with("socket:") {
            continue;
        }
        let name = entry.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(socket) = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()) else {
            continue;
        };
        each(fd, &socket)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "rustix does not have TCP_REPAIR")]
fn is_held_up(socket: &OwnedFd) -> bool {
    let mut value: libc::c_int = 0;
    let mut length: libc::socklen_t = 4;
    // SAFETY: the kernel writes one integer, which lives, and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    result == 0 && value != 0
}

#[expect(unsafe_code, reason = "rustix does not have TCP_REPAIR")]
fn repair(socket: &OwnedFd, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    // SAFETY: the kernel reads one integer, which lives.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const value).cast(),
            4,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has these descriptors stay open in what a command starts.
#[expect(unsafe_code, reason = "only the child may let a descriptor stay open")]
pub(super) fn keep<const N: usize>(command: &mut Command, kept: [RawFd; N]) {
    let stay = move || {
        for fd in kept {
            // SAFETY: fcntl takes plain numbers; a descriptor that is not open is an error.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `stay` makes plain system calls, allocates nothing and takes no lock, as has to be
    // between fork and exec.
    unsafe {
        command.pre_exec(stay);
    }
}

/// Whether something can be read before long, its end included.
pub(super) fn readable(fd: BorrowedFd<'_>, bound: Duration) -> io::Result<bool> {
    heard(fd, bound).map(|heard| !heard.is_empty())
}

/// Whether something comes before long; its end is nothing.
pub(super) fn came(fd: BorrowedFd<'_>, bound: Duration) -> io::Result<bool> {
    heard(fd, bound).map(|heard| heard.contains(PollFlags::IN))
}

/// What is heard before long. Plain system calls alone.
fn heard(fd: BorrowedFd<'_>, bound: Duration) -> io::Result<PollFlags> {
    let until = Instant::now() + bound;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(_) => return Ok(polled[0].revents()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_are_found_in_an_inventory() {
        let name = "1a2b3c4d-0000-4000-8000-0123456789ab";
        let inventory = [b"\x00\x19$".as_slice(), name.as_bytes(), b"\x20".as_slice()].concat();
        assert_eq!(run_names(&inventory).collect::<Vec<_>>(), [name]);
        assert_eq!(run_names(b"1a2b").count(), 0);
        let named: Vec<String> = tables(&inventory).collect();
        let whole = format!("{TABLE}{name}");
        assert_eq!(named, ["CRIU-1a2b3c4d-0000-4000-80", &whole]);
    }
}
