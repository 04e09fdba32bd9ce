//! A process that comes from another host: it stands still when it is whole, then it goes on, or ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_core::units::Bytes;
use rustix::process::{Pid, Signal, kill_process};

use super::assemble::Assembly;
use super::criu::{IMAGES_DIR, RESTORE_LOG, last_error};
use super::fill::{Filled, Filler};
use super::owed::{Lender, Owed};
use super::pages::Runs;
use super::precopy::page_size;
use super::{Criu, Tcp, pagemap};
use crate::error::HostError;

/// How a process is made that comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landing {
    /// As it was frozen.
    pub tcp: Tcp,
    /// The directories of the control groups that it is made in; without any, it is in those of this program.
    pub groups: Vec<PathBuf>,
}

/// Where CRIU asks for memory, within its directory.
const SOCKET: &str = "lazy-pages.socket";
const PID_FILE: &str = "restored.pid";
/// So long may CRIU take to make a process without its memory.
const RESTORE_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

/// A process that is whole, and stands still until it is begun.
#[derive(Debug)]
pub struct Landed {
    pid: Pid,
    filling: JoinHandle<Result<Filled, HostError>>,
    /// Bytes that are still to come.
    left: Arc<AtomicU64>,
}

impl Landed {
    /// Restores a process from what CRIU wrote of it, and the memory that came; what did not come is had of a lender,
    /// where there is one, once it goes on.
    ///
    /// # Errors
    /// When memory is missing that nobody lends, or CRIU refuses; nothing of the process is left then.
    pub fn prepare(
        criu: &Criu,
        images: &Path,
        mut assembly: Assembly,
        landing: &Landing,
        lender: Option<Arc<dyn Lender>>,
    ) -> Result<Self, HostError> {
        let mut wanted = BTreeMap::new();
        let mut owed = Runs::default();
        for (pid, ranges) in pagemap::wanted(images, page_size())? {
            let runs = match &lender {
                Some(_) if wanted.is_empty() => {
                    let (runs, missing) = assembly.find_or_owe(&ranges);
                    owed = missing;
                    runs
                }
                // Whose memory is lent is one process.
                _ => assembly.find(&ranges).map_err(|at| {
                    HostError::invalid(
                        format!("restore process {pid}: its memory at {at:x} did not come"),
                        "it stays where it is; move it again",
                    )
                })?,
            };
            wanted.insert(pid, runs);
        }
        let fail = |e| HostError::file("prepare a restore in", images, e);
        let left = Arc::new(AtomicU64::new(0));
        let lender = lender.filter(|_| !owed.is_empty());
        let owed = lender.map(|lender| Owed::new(owed, lender, Arc::clone(&left)));
        let owed = owed.transpose().map_err(fail)?;
        let file = assembly.into_file().map_err(fail)?;
        let filler = Filler::new(file, wanted, owed).map_err(fail)?;
        let listener = listen(images).map_err(fail)?;
        remove(&images.join(PID_FILE))?;
        let mut child = restore(criu, images, landing)?;
        match accept(&listener, &mut child)? {
            Some(line) => Self::fill((filler, left), line, child, images),
            None => Err(refused(images, &mut child)),
        }
    }

    /// Fills memory in on a thread, and waits until the process is whole.
    fn fill(
        (mut filler, left): (Filler, Arc<AtomicU64>),
        line: UnixStream,
        mut child: Child,
        images: &Path,
    ) -> Result<Self, HostError> {
        let fail = |e| HostError::io("fill in the memory of a process", e);
        let filling = std::thread::Builder::new()
            .name("filler".to_owned())
            .spawn(move || {
                filler.begin(&line).map_err(fail)?;
                filler.finish().map_err(fail)
            })
            .map_err(|e| HostError::io("begin a thread that fills memory in", e))?;
        let until = Instant::now() + RESTORE_MAX;
        let status = loop {
            let ended = child.try_wait();
            if let Some(status) = ended.map_err(|e| HostError::io("wait for CRIU", e))? {
                break status;
            }
            if Instant::now() >= until {
                return Err(refused(images, &mut child));
            }
            std::thread::sleep(LOOK);
        };
        if !status.success() {
            return Err(refused(images, &mut child));
        }
        let path = images.join(PID_FILE);
        let text = fs::read_to_string(&path).map_err(|e| HostError::file("read", &path, e))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| {
            HostError::missing(
                format!("find the process in {}", path.display()),
                "move it again",
            )
        })?;
        Ok(Self { pid, filling, left })
    }

    /// Its number, which it had at the source.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it ended.
    pub fn start(&self) -> Result<(), HostError> {
        kill_process(self.pid, Signal::CONT)
            .map_err(|e| HostError::io(format!("let process {} go on", self.pid()), e))
    }

    /// What is still to come of its memory from whoever lends it.
    #[must_use]
    pub fn left(&self) -> Bytes {
        Bytes(self.left.load(Ordering::Relaxed))
    }

    /// Whether nothing is done for it any more: all of its memory is there, or will not be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.filling.is_finished()
    }

    /// Waits until all of its memory is there. Where that fails it is ended: it would read zeros.
    ///
    /// # Errors
    /// When memory could not be filled in.
    pub fn settle(self) -> Result<Filled, HostError> {
        let pid = self.pid();
        let filled = self.filling.join().unwrap_or_else(|_| {
            Err(HostError::invalid(
                format!("fill in the memory of process {pid}: its thread ended"),
                "report this",
            ))
        });
        if filled.is_err() {
            end(self.pid)?;
        }
        filled
    }

    /// Ends it: it never ran.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn discard(self) -> Result<(), HostError> {
        end(self.pid)
    }
}

fn end(pid: Pid) -> Result<(), HostError> {
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(HostError::io(
            format!("end process {}", pid.as_raw_nonzero()),
            error,
        )),
    }
}

/// Listens where CRIU will ask, by a name that is short enough for a socket.
fn listen(images: &Path) -> io::Result<UnixListener> {
    let directory = File::open(images)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn restore(criu: &Criu, images: &Path, landing: &Landing) -> Result<Child, HostError> {
    let mut command = Command::new(criu.program());
    enter(&mut command, &landing.groups)?;
    command
        .arg("restore")
        .arg(IMAGES_DIR)
        .arg(images)
        .args(["--lazy-pages", "--leave-stopped", "--restore-detached"])
        .args(["--pidfile", PID_FILE])
        .args(landing.tcp.arguments())
        .arg("--manage-cgroups=ignore")
        .args(["--file-locks", "--log-file", RESTORE_LOG])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| HostError::file("run", criu.program(), e))
}

/// Has what a command starts be in these groups: what CRIU makes is where CRIU is.
#[expect(
    unsafe_code,
    reason = "only the child may enter groups of v1 before it runs"
)]
fn enter(command: &mut Command, groups: &[PathBuf]) -> Result<(), HostError> {
    let mut doors = Vec::new();
    for dir in groups {
        let file = dir.join("cgroup.procs");
        let door = File::options().write(true).open(&file);
        doors.push(door.map_err(|e| HostError::file("open", &file, e))?);
    }
    let enter = move || doors.iter().try_for_each(|mut door| door.write_all(b"0\n"));
    // SAFETY: `enter` makes plain system calls, allocates nothing and takes no lock, as has to be between
    // fork and exec; the descriptors were opened before.
    unsafe {
        command.pre_exec(enter);
    }
    Ok(())
}

/// CRIU's connection; none when it ended, or takes too long.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<Option<UnixStream>, HostError> {
    let fail = |e| HostError::io("wait for CRIU to ask for memory", e);
    let until = Instant::now() + RESTORE_MAX;
    loop {
        match listener.accept() {
            Ok((line, _)) => {
                line.set_nonblocking(false).map_err(fail)?;
                return Ok(Some(line));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(fail(error)),
        }
        if child.try_wait().map_err(fail)?.is_some() || Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Why nothing came of it; CRIU ends what it began when it ends.
fn refused(images: &Path, child: &mut Child) -> HostError {
    let ended = child.kill().and_then(|()| child.wait());
    let mut said = last_error(&images.join(RESTORE_LOG));
    if let Err(error) = ended {
        said = format!("{said}; CRIU does not end: {error}");
    }
    HostError::invalid(
        format!("restore a process that was moved: {said}"),
        "it goes on where it came from",
    )
}

fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::file("remove", path, error))
        }
        _ => Ok(()),
    }
}
