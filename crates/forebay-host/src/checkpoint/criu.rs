//! The program `criu`, and what it is asked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use rustix::fs::statvfs;

use super::over_boot::seal;
use super::statistics;
use super::store::{Image, Store, boot, size, unix_ms};
use crate::error::HostError;
use crate::outside;
use crate::procs;

/// Beginning from an image may take so long, and a second more for every so many bytes.
const RESTORE_MAX: Duration = Duration::from_secs(30);
const RESTORE_BYTES: u64 = 50 << 20;

pub(crate) const IMAGES_DIR: &str = "--images-dir";
const DUMP_LOG: &str = "dump.log";
pub(crate) const RESTORE_LOG: &str = "restore.log";
/// The oldest version that is known to do what is asked here: older ones do not know the memory
/// layout of kernels since 6.13.
const VERSION_MIN: (u32, u32) = (4, 0);
/// Taking an image may take so long, for the largest program.
const TIME_MAX: Duration = Duration::from_secs(120);
/// How often it is looked whether it is taken.
const LOOK: Duration = Duration::from_millis(5);

/// The program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    program: PathBuf,
    version: (u32, u32),
    /// How long taking an image may take.
    time_max: Duration,
}

/// What becomes of established TCP connections when a process moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tcp {
    /// They go along: their addresses have to, too.
    Keep,
    /// They are closed.
    Close,
    /// CRIU refuses a process that has some.
    Refuse,
}

impl Tcp {
    pub(super) const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Keep => &[
                "--tcp-established",
                "--network-lock",
                "nftables",
                "--skip-in-flight",
            ],
            Self::Close => &["--tcp-close", "--network-lock", "skip", "--skip-in-flight"],
            Self::Refuse => &["--network-lock", "skip", "--skip-in-flight"],
        }
    }
}

/// What an image is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// To begin again in this boot; the program goes on.
    Again,
    /// To go on in the next boot, for this update; the program stands afterwards.
    Boot(u64),
}

impl Aim {
    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Again => &["--leave-running"],
            // An update replaces the code that it runs, which has to come along then.
            Self::Boot(_) => &["--leave-stopped", "--ghost-limit", "1G"],
        }
    }
}

/// An image that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What is known of it.
    pub image: Image,
    /// How long it took, from the first to the last.
    pub took: Duration,
}

impl Criu {
    /// Looks at the program; without one, for `criu` in the usual places.
    ///
    /// # Errors
    /// When there is none, or it is too old.
    pub fn find(program: Option<&Path>) -> Result<Self, HostError> {
        let program = Self::locate(program)?;
        let mut asked = Command::new(&program);
        let said = asked
            .arg("--version")
            .output()
            .map_err(|e| HostError::file("run", &program, e))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = version(&said).ok_or_else(|| {
            HostError::invalid(
                format!("ask {} for its version", program.display()),
                "it gave none: name CRIU's own program as `criu` in `[daemon]`",
            )
        })?;
        if version < VERSION_MIN {
            let (major, minor) = version;
            return Err(HostError::invalid(
                format!("use {} of version {major}.{minor}", program.display()),
                "install CRIU 4.0 or newer: older ones do not know newer kernels",
            ));
        }
        Ok(Self {
            program,
            version,
            time_max: TIME_MAX,
        })
    }

    /// The program, which is not asked for its version.
    fn locate(program: Option<&Path>) -> Result<PathBuf, HostError> {
        let program = program.map_or_else(search, |program| Some(program.to_owned()));
        program.ok_or_else(|| {
            HostError::missing(
                "find `criu`",
                "install CRIU 4.0 or newer, or name it as `criu` in `[daemon]`",
            )
        })
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Its file.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Takes an image of a process and all that descend from it. They go on as soon as their
    /// memory is copied, and also when it fails.
    ///
    /// # Errors
    /// When there is no room, or CRIU refuses: with the last that it said.
    pub fn take(
        &self,
        store: &Store,
        app: &AppId,
        pid: u32,
        proc_root: &Path,
    ) -> Result<Taken, HostError> {
        self.take_for(store, app, pid, proc_root, Aim::Again)
    }

    pub(super) fn take_for(
        &self,
        store: &Store,
        app: &AppId,
        pid: u32,
        proc_root: &Path,
        aim: Aim,
    ) -> Result<Taken, HostError> {
        let began = Instant::now();
        let process = procs::identify(proc_root, pid).ok_or_else(|| {
            HostError::missing(
                format!("take an image of {app}: process {pid} has ended"),
                "the next image is taken as usual",
            )
        })?;
        let begun = store.running(app, process)?;
        let boot = boot(proc_root)?;
        let (number, part) = store.begin(app)?;
        let stands = unix_ms();
        let taken = self.dump(app, pid, &part, proc_root, aim).and_then(|()| {
            let statistics = fs::read(part.join("stats-dump")).unwrap_or_default();
            let pause = statistics::pause(&statistics);
            let image = Image {
                number,
                begun,
                pid,
                boot,
                taken_unix_ms: match aim {
                    Aim::Again => unix_ms(),
                    // From then on its clients wait.
                    Aim::Boot(_) => stands,
                },
                pause_us: pause.and_then(|pause| u64::try_from(pause.as_micros()).ok()),
                bytes: size(&part)?,
                kept: match aim {
                    Aim::Again => None,
                    Aim::Boot(update) => Some(seal(&part, update)?),
                },
            };
            store.finish(app, &part, &image)?;
            Ok(image)
        });
        match taken {
            Ok(image) => Ok(Taken {
                image,
                took: began.elapsed(),
            }),
            Err(error) => {
                // The next one removes what this one could not.
                fs::remove_dir_all(&part).ok();
                Err(error)
            }
        }
    }

    fn dump(
        &self,
        app: &AppId,
        pid: u32,
        part: &Path,
        proc_root: &Path,
        aim: Aim,
    ) -> Result<(), HostError> {
        let needed = resident(proc_root, pid);
        let room = room(part)?;
        if room < 2 * needed {
            return Err(HostError::invalid(
                format!(
                    "take an image of {app}: it has {} MiB in memory, and {} MiB are free at {}",
                    needed >> 20,
                    room >> 20,
                    part.display()
                ),
                "make room there, or move `state_dir`",
            ));
        }
        let mut command = Command::new(&self.program);
        command
            .arg("dump")
            .args(["--tree", &pid.to_string()])
            .arg(IMAGES_DIR)
            .arg(part)
            .args(["--tcp-close", "--skip-in-flight"])
            .args(aim.arguments())
            .args(["--manage-cgroups=ignore", "--network-lock", "skip"])
            .args(["--file-locks", "--log-file", DUMP_LOG]);
        outside::have_step_out(&mut command);
        let status = run(command, app, self.time_max)?;
        if status {
            return Ok(());
        }
        Err(HostError::invalid(
            format!(
                "take an image of {app}: {}",
                last_error(&part.join(DUMP_LOG))
            ),
            "it goes on as before; leave `image` out if CRIU cannot take it",
        ))
    }

    /// What begins a program from an image; see [`Store::pid_file`] for the process that it is. CRIU is not asked for its
    /// version: the one that took the image was, somebody waits now, and what it cannot do it says.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn restore(
        program: Option<&Path>,
        store: &Store,
        app: &AppId,
        image: &Image,
    ) -> Result<Vec<String>, HostError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(vec![
            text(&Self::locate(program)?),
            "restore".to_owned(),
            IMAGES_DIR.to_owned(),
            text(&store.directory(app, image.number)),
            "--restore-detached".to_owned(),
            "--pidfile".to_owned(),
            text(&store.pid_file(app)),
            "--tcp-close".to_owned(),
            "--manage-cgroups=ignore".to_owned(),
            "--file-locks".to_owned(),
            "--log-file".to_owned(),
            RESTORE_LOG.to_owned(),
        ])
    }
}

/// How long it may take to begin a program from an image. CRIU itself waits without a bound.
pub(crate) fn restore_max(image: &Image) -> Duration {
    RESTORE_MAX + Duration::from_secs(image.bytes / RESTORE_BYTES)
}

fn search() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join("criu"))
        .find(|program| program.is_file())
}

/// `Version: 4.2.1` and what follows.
fn version(said: &str) -> Option<(u32, u32)> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    let mut parts = line.trim().split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next().and_then(|minor| minor.parse().ok());
    Some((major, minor.unwrap_or(0)))
}

/// Whether it succeeded; it is ended when it takes too long.
fn run(mut command: Command, app: &AppId, time_max: Duration) -> Result<bool, HostError> {
    let program = PathBuf::from(command.get_program());
    let mut child: Child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| HostError::file("run", &program, e))?;
    let deadline = Instant::now() + time_max;
    loop {
        let ended = child
            .try_wait()
            .map_err(|e| HostError::file("wait for", &program, e))?;
        if let Some(status) = ended {
            return Ok(status.success());
        }
        if Instant::now() >= deadline {
            child
                .kill()
                .and_then(|()| child.wait())
                .map_err(|e| HostError::file("end", &program, e))?;
            return Err(HostError::invalid(
                format!(
                    "take an image of {app}: not done after {} s",
                    time_max.as_secs()
                ),
                "it goes on as before; a slow disk may be the reason",
            ));
        }
        std::thread::sleep(LOOK);
    }
}

/// The first line in which CRIU complains. It also complains of limits that it cannot raise, which
/// nobody has to mind.
pub(crate) fn last_error(log: &Path) -> String {
    match complaints(log).first() {
        Some(words) => format!("CRIU says: {words}"),
        None => format!("CRIU failed without a reason; see {}", log.display()),
    }
}

/// All in which it complains, without where in its source that is.
pub(crate) fn complaints(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let words = |line: &str| {
        line.split_once("): ")
            .map_or(line, |(_, words)| words)
            .to_owned()
    };
    text.lines()
        // A process of those that begin says its number first.
        .filter(|line| line.starts_with("Error") || line.contains(" Error ("))
        .filter(|line| !line.contains("rlimit") && !line.contains("FAILED"))
        .map(words)
        .collect()
}

/// Bytes that a process and its descendants have in memory.
fn resident(proc_root: &Path, pid: u32) -> u64 {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let of = |pid: u32| {
        let text = fs::read_to_string(proc_root.join(format!("{pid}/statm"))).unwrap_or_default();
        let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        pages.unwrap_or(0_u64) * page
    };
    let root = procs::identify(proc_root, pid);
    let family = procs::families(proc_root, root.as_slice());
    family.into_iter().map(of).sum()
}

pub(crate) fn room(directory: &Path) -> Result<u64, HostError> {
    let found = File::open(directory)
        .map_err(|e| HostError::file("open", directory, e))
        .and_then(|_| {
            statvfs(directory).map_err(|e| HostError::file("look for room at", directory, e))
        })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
#[path = "criu_tests.rs"]
mod imitated;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let check = |said: &str, expected| assert_eq!(version(said), expected, "{said}");
        check("Version: 4.2.1\nGitID: v4\n", Some((4, 2)));
        check("Version: 3.17.1\n", Some((3, 17)));
        check("Version: 5", Some((5, 0)));
        check("criu\n", None);
    }

    #[test]
    fn what_is_no_criu_is_refused() {
        let check = |program: &str, part: &str| {
            let error = Criu::find(Some(Path::new(program))).unwrap_err().explain();
            assert!(error.contains(part), "{error}");
        };
        check("/no/such/criu", "run /no/such/criu");
        check("/bin/true", "it gave none");
    }

    #[test]
    fn the_first_complaint_that_matters_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(
            &log,
            "Error (criu/util.c:1): rlimit: Can't\nError (criu/x.c:5): Can't fork for 7\nError (criu/x.c:9): Restoring FAILED.\n",
        )
        .unwrap();
        assert_eq!(last_error(&log), "CRIU says: Can't fork for 7");
        // What a process that begins complains of comes after its number, and after the time where that is wanted.
        let began = "(01.079382)  28775: Error (criu/files-reg.c:2294): File . has bad mode\n  7: Error (criu/x.c:1): no vdso\n";
        fs::write(&log, began).unwrap();
        assert_eq!(complaints(&log), ["File . has bad mode", "no vdso"]);
        assert!(last_error(&directory.path().join("none")).contains("none"));
    }
}
