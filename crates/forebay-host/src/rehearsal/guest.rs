//! Process 1 of the machine that a rehearsal starts: has CRIU begin the canary, asks it, and switches the machine off.
//!
//! It says what it sees as lines over the serial line, beginning with [`MARK`], among those of the kernel.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use serde::{Deserialize, Serialize};

use super::canary::{self, Answer, Files};
use super::finish;
use crate::checkpoint::criu::{IMAGES_DIR, RESTORE_LOG, complaints};

/// Where it finds what it is to do.
pub(super) const ORDER: &str = "/rehearsal.json";
/// What its lines begin with.
pub(super) const MARK: &str = "forebay-rehearsal: ";
/// The serial line.
const LINE: &str = "/dev/ttyS0";
/// Beginning the canary may take so long, emulated, and its answer.
const RESTORE_MAX: Duration = Duration::from_secs(180);
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Lines of CRIU's that are said.
const COMPLAINTS_MAX: usize = 5;
/// As on hosts whose processes' numbers do not come round: the canary has the number that it had.
const PID_MAX: &str = "4194304";

/// What it is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// CRIU, with what it begins with.
    pub(super) criu: Vec<String>,
    pub(super) images: PathBuf,
    /// Where the canary is asked.
    pub(super) canary: PathBuf,
    /// What it is asked.
    pub(super) number: u64,
}

/// One thing that it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It runs, under a kernel of this release.
    Up(String),
    /// CRIU has begun the canary.
    Restored,
    /// The canary answered.
    Answered(Answer),
    /// What went wrong.
    Trouble(String),
    /// Nothing follows.
    Over,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(release) => write!(f, "up {release}"),
            Self::Restored => f.write_str("restored"),
            Self::Answered(answer) => write!(f, "answered {} {}", answer.count, answer.sum),
            Self::Trouble(what) => write!(f, "trouble {what}"),
            Self::Over => f.write_str("over"),
        }
    }
}

impl Said {
    /// What a line says, if it is one of these.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (_, said) = line.split_once(MARK)?;
        let said = said.trim();
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            "up" => Some(Self::Up(rest.to_owned())),
            "restored" => Some(Self::Restored),
            "answered" => Answer::parse(rest).map(Self::Answered),
            "trouble" => Some(Self::Trouble(rest.to_owned())),
            "over" => Some(Self::Over),
            _ => None,
        }
    }
}

/// Is process 1 of a rehearsal's machine, and switches it off in the end.
///
/// # Errors
/// When this is something else, and nothing is done; when the machine cannot be switched off.
pub fn run() -> io::Result<()> {
    if std::process::id() != 1 || !Path::new(ORDER).is_file() {
        return Err(io::Error::other(
            "this is for the machine that `forebay update rehearse` starts",
        ));
    }
    prepare()?;
    let mut line = OpenOptions::new().write(true).open(LINE)?;
    if let Err(why) = rehearse(&mut line) {
        // One line, whatever it says.
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        say(&mut line, &Said::Trouble(why))?;
    }
    say(&mut line, &Said::Over)?;
    reboot(RebootCommand::PowerOff)?;
    Ok(())
}

fn say(line: &mut File, said: &Said) -> io::Result<()> {
    // The kernel may be in the middle of a line of its own.
    line.write_all(format!("\r\n{MARK}{said}\r\n").as_bytes())
}

fn prepare() -> io::Result<()> {
    // Anybody may write in the root of such an archive, and CRIU wants it as the canary had it.
    fs::set_permissions("/", fs::Permissions::from_mode(0o755))?;
    let none = MountFlags::empty();
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(place)?;
        mount(kind, place, kind, none, None)?;
    }
    // All of it is in memory, and what was written down may be there.
    for place in ["/run", "/tmp"] {
        fs::create_dir_all(place)?;
    }
    // CRIU looks for terminals and control groups where there are any.
    for (kind, place) in [("devpts", "/dev/pts"), ("cgroup2", "/sys/fs/cgroup")] {
        fs::create_dir_all(place)
            .and_then(|()| mount(kind, place, kind, none, None).map_err(io::Error::from))
            .or_else(|error| {
                let mut console = OpenOptions::new().write(true).open(LINE)?;
                write!(console, "no {place}: {error}\r\n")
            })?;
    }
    Ok(())
}

/// Brings up the loopback (netdevice(7)): CRIU tries on itself what the kernel can, by connections to itself.
#[expect(unsafe_code, reason = "rustix has no requests to network interfaces")]
fn bring_loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};

    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: this is plain data, and nothing of it is more than a number.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, letter) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = letter.cast_signed();
    }
    let up = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = up;
    // SAFETY: the socket is open, and the request is one of this kind's and outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn rehearse(line: &mut File) -> Result<(), String> {
    let told = |error: io::Error| format!("the serial line: {error}");
    let read = |file: &str| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
    let release = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
    say(line, &Said::Up(release)).map_err(told)?;
    bring_loopback_up().map_err(|error| format!("bring up the loopback: {error}"))?;
    let order: Order =
        serde_json::from_str(&read(ORDER)?).map_err(|error| format!("{ORDER}: {error}"))?;
    let pid_max = "/proc/sys/kernel/pid_max";
    fs::write(pid_max, PID_MAX).map_err(|error| format!("write {pid_max}: {error}"))?;
    if let Err(why) = restore(&order) {
        // Whoever wants to see more looks at what the machine said.
        let log = order.images.join(RESTORE_LOG);
        let mut log = File::open(&log).map_err(|error| format!("{why}; and no log: {error}"))?;
        io::copy(&mut log, line).map_err(told)?;
        return Err(why);
    }
    say(line, &Said::Restored).map_err(told)?;
    let files = Files::of(&order.canary);
    let answer = canary::ask(&files, order.number, ANSWER_MAX).map_err(|error| error.explain())?;
    say(line, &Said::Answered(answer)).map_err(told)
}

fn restore(order: &Order) -> Result<(), String> {
    let (program, words) = order.criu.split_first().ok_or("there is no CRIU")?;
    let mut command = Command::new(program);
    command
        .args(words)
        .arg("restore")
        .arg(IMAGES_DIR)
        .arg(&order.images)
        .args(["--restore-detached", "--manage-cgroups=ignore"])
        // Modes of directories are those of the archive.
        .args(["--skip-file-rwx-check", "--log-file", RESTORE_LOG, "-v4"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    let status = finish(&mut command, RESTORE_MAX).map_err(|error| error.explain())?;
    if status.success() {
        return Ok(());
    }
    // It complains of what it finds missing at first, and goes on without: what ended it comes last.
    let said = complaints(&order.images.join(RESTORE_LOG));
    let last = &said[said.len().saturating_sub(COMPLAINTS_MAX)..];
    Err(format!("CRIU ended with {status}: {}", last.join(" | ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_among_what_the_kernel_says() {
        let all = [
            Said::Up("6.1.0-9-amd64".to_owned()),
            Said::Restored,
            Said::Answered(Answer { count: 2, sum: 7 }),
            Said::Trouble("CRIU ended with exit status: 1: a | b".to_owned()),
            Said::Over,
        ];
        for said in all {
            let line = format!("[    2.1] clocksource: {MARK}{said}\r");
            assert_eq!(Said::parse(&line), Some(said));
        }
        assert_eq!(Said::parse("[    2.1] Run /init as init process"), None);
        assert_eq!(Said::parse(&format!("{MARK}answered x")), None);
        assert_eq!(Said::parse(&format!("{MARK}sings")), None);
    }

    #[test]
    fn it_is_nothing_but_process_1_of_such_a_machine() {
        assert!(run().unwrap_err().to_string().contains("update rehearse"));
    }
}
