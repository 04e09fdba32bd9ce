//! What the kernel says of an instance's main process, without any privilege.
//!
//! A killed process frees its memory before its descriptors: its connections end some 60 ms per
//! gigabyte after the signal, and its pidfd tells no earlier. The flag `PF_EXITING` is there at
//! once, and everybody may read it in /proc/PID/stat.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use forebay_core::shadow::detection::Life;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process has begun to exit (include/linux/sched.h).
const PF_EXITING: u64 = 0x0000_0004;

/// A process; its files are of this one even after its number means another.
#[derive(Debug)]
pub(crate) struct Vitals {
    stat: File,
    /// Time waited for a CPU, and time run, in nanoseconds.
    schedstat: Option<File>,
    /// What it said, and when.
    waited: Option<(Duration, Instant)>,
}

impl Vitals {
    /// Takes hold of a process. The descriptor becomes readable once the process is gone.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn of(pid: u32) -> io::Result<(Self, OwnedFd)> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // Opened first: what the files then say is of this process or of none.
        let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK)?;
        let vitals = Self {
            stat: File::open(format!("/proc/{pid}/stat"))?,
            schedstat: File::open(format!("/proc/{pid}/schedstat")).ok(),
            waited: None,
        };
        Ok((vitals, pidfd))
    }

    pub(crate) fn life(&self) -> Life {
        read(&self.stat)
            .as_deref()
            .and_then(parse)
            .unwrap_or(Life::Ending)
    }

    /// Share of the time since the last question in which its main thread waited for a CPU.
    pub(crate) fn starved(&mut self, now: Instant) -> Option<f64> {
        let text = read(self.schedstat.as_ref()?)?;
        let waited = text.split_whitespace().nth(1)?.parse().ok()?;
        let waited = Duration::from_nanos(waited);
        let (before, at) = self.waited.replace((waited, now))?;
        let since = now.saturating_duration_since(at);
        let share = waited.saturating_sub(before).as_secs_f64() / since.as_secs_f64();
        share.is_finite().then_some(share.clamp(0.0, 1.0))
    }
}

fn read(file: &File) -> Option<String> {
    let mut buffer = [0; 1024];
    let length = file.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(buffer.get(..length)?);
    text.ok().map(str::to_owned)
}

/// Fields 3 (state) and 9 (flags) of proc(5). The name in parentheses may contain anything.
fn parse(text: &str) -> Option<Life> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    Some(match state {
        _ if flags & PF_EXITING != 0 => Life::Ending,
        "Z" | "X" | "x" => Life::Ending,
        "T" | "t" => Life::Stopped,
        "D" => Life::Blocked,
        _ => Life::Alive,
    })
}

/// Whether a process executes nothing any more: it exits, or is gone. One that cannot be looked at
/// for another reason is not known to.
pub(crate) fn is_ending(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    match text {
        Ok(text) => parse(&text) == Some(Life::Ending),
        Err(error) => {
            let gone = rustix::io::Errno::SRCH.raw_os_error();
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(gone)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn a_line_of_stat_is_read() {
        let line = |state: &str, flags: u64| {
            format!("7 (a) b (c)) {state} 1 7 7 0 -1 {flags} 90 0 0 0 1 2 0 0 20 0 1 0 5 6 7")
        };
        let cases = [
            (line("S", 0x40_0000), Some(Life::Alive)),
            (line("R", 0x40_0004), Some(Life::Ending)),
            (line("D", 0x40_0000), Some(Life::Blocked)),
            (line("T", 0x40_0000), Some(Life::Stopped)),
            (line("Z", 0x40_0000), Some(Life::Ending)),
            (String::from("7 (a"), None),
            (String::new(), None),
        ];
        for (text, life) in cases {
            assert_eq!(parse(&text), life, "{text}");
        }
    }

    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        command.spawn().unwrap()
    }

    fn until(vitals: &Vitals, life: Life) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while vitals.life() != life {
            assert!(Instant::now() < deadline, "{:?}", vitals.life());
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_is_alive_stopped_and_ending() {
        let mut child = sleeper();
        let (vitals, _) = Vitals::of(child.id()).unwrap();
        let pid = Pid::from_child(&child);
        until(&vitals, Life::Alive);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        until(&vitals, Life::Stopped);
        assert!(!is_ending(child.id()));
        child.kill().unwrap();
        until(&vitals, Life::Ending);
        assert!(is_ending(child.id()));
        child.wait().unwrap();
        assert_eq!(vitals.life(), Life::Ending);
    }

    #[test]
    fn a_process_that_never_was_is_refused() {
        assert!(Vitals::of(0).is_err());
        assert!(Vitals::of(u32::MAX).is_err());
    }
}
