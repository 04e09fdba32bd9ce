//! What the kernel says of an instance's main process, without any privilege.
//!
//! A killed process frees its memory before its descriptors: its connections end some 60 ms per
//! gigabyte after the signal, and its pidfd tells no earlier. The flag `PF_EXITING` is there at
//! once, and everybody may read it in /proc/PID/stat. It is each thread's own: a main thread may
//! leave the others to serve, and one that was killed ends before those that run elsewhere do.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use forebay_core::shadow::detection::Life;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process has begun to exit (include/linux/sched.h).
const PF_EXITING: u64 = 0x0000_0004;

/// Threads that are asked what keeps them: a question takes some 20 us for each.
const THREADS_MAX: usize = 128;
/// How often they are asked.
const THREADS_PAUSE: Duration = Duration::from_millis(10);

/// A process; its files are of this one even after its number means another.
#[derive(Debug)]
pub(crate) struct Vitals {
    pid: u32,
    stat: File,
    /// What its threads said when they were asked last.
    threads: Threads,
}

/// What keeps the threads of a process.
#[derive(Debug, Default)]
struct Threads {
    asked: Option<Instant>,
    /// What each has had of the CPUs since it began.
    turns: BTreeMap<u32, Turns>,
    keeps: Keeps,
}

/// What a thread has had of the CPUs since it began, as schedstat tells it. A wait is counted once it is
/// over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Turns {
    ran: Duration,
    waited: Duration,
}

/// Whose threads are asked what keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The main process's. A child of it may be busy with something of its own.
    Own,
    /// Those of the processes that it started, too, of which each serves a connection.
    Family,
}

/// What keeps a process, if anything does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Keeps {
    /// Share of the time between the last two questions in which the thread waited for a CPU that
    /// waited longest.
    pub(crate) starved: Option<f64>,
    /// A thread waits in the kernel without letting itself be disturbed: for a disk, as a rule.
    pub(crate) blocked: bool,
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
            pid,
            stat: File::open(format!("/proc/{pid}/stat"))?,
            threads: Threads::default(),
        };
        Ok((vitals, pidfd))
    }

    pub(crate) fn life(&self) -> Life {
        let life = read(&self.stat).as_deref().and_then(parse);
        match life.unwrap_or(Life::Ending) {
            Life::Ending if life.is_some() => of_threads(self.pid),
            life => life,
        }
    }

    /// What keeps its threads; they are asked now and then.
    pub(crate) fn keeps(&mut self, whose: Whose, now: Instant) -> Keeps {
        let threads = &mut self.threads;
        let due = |asked| now.saturating_duration_since(asked) >= THREADS_PAUSE;
        if threads.asked.is_none_or(due) {
            threads.ask(self.pid, whose, now);
        }
        threads.keeps
    }
}

impl Threads {
    fn ask(&mut self, pid: u32, whose: Whose, now: Instant) {
        let since = self.asked.map(|asked| now.saturating_duration_since(asked));
        let mut turns = BTreeMap::new();
        let mut keeps = Keeps::default();
        let processes = match whose {
            Whose::Own => vec![pid],
            Whose::Family => family(pid),
        };
        let threads = processes.into_iter().flat_map(|pid| {
            let threads = threads(pid).into_iter().flatten();
            threads.map(move |thread| (pid, thread))
        });
        for (pid, thread) in threads.take(THREADS_MAX) {
            let of = |file| std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/{file}"));
            let stat = of("stat").unwrap_or_default();
            keeps.blocked |= parse(&stat) == Some(Life::Blocked);
            let Some(turn) = of("schedstat").ok().and_then(|text| parse_turns(&text)) else {
                continue;
            };
            turns.insert(thread, turn);
            let (Some(before), Some(since)) = (self.turns.get(&thread), since) else {
                continue;
            };
            let share = if turn == *before && is_runnable(&stat) {
                // It has waited all the time, and still does.
                1.0
            } else {
                let waited = turn.waited.saturating_sub(before.waited);
                (waited.as_secs_f64() / since.as_secs_f64()).clamp(0.0, 1.0)
            };
            keeps.starved = Some(keeps.starved.map_or(share, |most| most.max(share)));
        }
        *self = Self {
            asked: Some(now),
            turns,
            keeps,
        };
    }
}

/// The threads of a process; none when it is gone.
fn threads(pid: u32) -> io::Result<impl Iterator<Item = u32>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// A process and those that came of it, the youngest of each before the older ones. Where the kernel does
/// not tell, those that came of it are left out.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut asked = 0;
    while let Some(parent) = family.get(asked).filter(|_| family.len() < THREADS_MAX) {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().rev();
        family.extend(children.filter_map(|child| child.parse::<u32>().ok()));
        asked += 1;
    }
    family
}

/// Of a process whose main thread is ending: all others may still serve.
fn of_threads(pid: u32) -> Life {
    let threads = threads(pid).into_iter().flatten();
    let lives = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"));
        text.ok().as_deref().and_then(parse)
    });
    let mut others = lives.filter(|life| *life != Life::Ending);
    others.next().unwrap_or(Life::Ending)
}

/// Nanoseconds on a CPU, and waiting for one: the first two numbers.
fn parse_turns(schedstat: &str) -> Option<Turns> {
    let mut numbers = schedstat.split_whitespace();
    let mut next = || Some(Duration::from_nanos(numbers.next()?.parse().ok()?));
    Some(Turns {
        ran: next()?,
        waited: next()?,
    })
}

/// Whether a thread runs, or waits for nothing but a CPU: field 3 of proc(5).
fn is_runnable(stat: &str) -> bool {
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| state.starts_with('R'))
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
        Ok(text) => parse(&text) == Some(Life::Ending) && of_threads(pid) == Life::Ending,
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

    /// A main thread that ends by itself leaves the others to serve: it was taken for dead.
    #[test]
    fn a_process_goes_on_without_its_main_thread() {
        let script = "import ctypes, threading, sys\n\
                      threading.Thread(target=sys.stdin.read).start()\n\
                      ctypes.CDLL(None).pthread_exit(None)\n";
        let mut command = Command::new("python3");
        command.args(["-c", script]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (vitals, _) = Vitals::of(child.id()).unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        let deadline = Instant::now() + Duration::from_secs(30);
        while parse(&std::fs::read_to_string(&stat).unwrap()) != Some(Life::Ending) {
            assert!(Instant::now() < deadline, "its main thread does not end");
            std::thread::yield_now();
        }
        assert_eq!(vitals.life(), Life::Alive);
        assert!(!is_ending(child.id()));
        let pid = Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        until(&vitals, Life::Stopped);
        child.kill().unwrap();
        until(&vitals, Life::Ending);
        assert!(is_ending(child.id()));
        child.wait().unwrap();
    }

    /// Only the main thread was asked.
    #[test]
    fn any_thread_that_waits_for_a_cpu_counts() {
        let cpus = std::thread::available_parallelism().unwrap().get();
        let done = std::sync::atomic::AtomicBool::new(false);
        let ordering = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            for _ in 0..4 * cpus {
                scope.spawn(|| {
                    while !done.load(ordering) {
                        std::hint::spin_loop();
                    }
                });
            }
            let (mut vitals, _) = Vitals::of(std::process::id()).unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while vitals.keeps(Whose::Own, Instant::now()).starved < Some(0.5)
                && Instant::now() < deadline
            {}
            let keeps = vitals.keeps(Whose::Own, Instant::now());
            done.store(true, ordering);
            assert!(keeps.starved >= Some(0.5), "{keeps:?}");
        });
    }

    /// Only the main thread was looked at.
    #[test]
    fn any_thread_that_waits_for_a_disk_counts() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let mode = rustix::fs::Mode::from_bits_truncate(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        // Who starts a program stands like one that waits for a disk until that has begun, and this
        // one opens a pipe first that nobody writes to.
        let script = "import os, sys, threading\n\
                      opening = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]\n\
                      spawn = lambda: os.posix_spawn('/bin/true', ['true'], {}, file_actions=opening)\n\
                      threading.Thread(target=spawn).start()\n\
                      sys.stdin.read()\n";
        let mut command = Command::new("python3");
        command
            .args(["-c", script])
            .arg(&fifo)
            .stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut vitals, _) = Vitals::of(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !vitals.keeps(Whose::Own, Instant::now()).blocked && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let keeps = vitals.keeps(Whose::Own, Instant::now());
        // The program begins, and ends.
        drop(File::options().write(true).open(&fifo).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(keeps.blocked, "{keeps:?}");
    }

    /// A server of PostgreSQL whose commits waited for a busy disk was taken for one that hangs: its main
    /// process waits for nothing.
    #[test]
    fn a_child_that_waits_for_a_disk_counts_where_children_serve() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let mode = rustix::fs::Mode::from_bits_truncate(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        let script = "import os, sys\n\
                      opening = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]\n\
                      os.posix_spawn('/bin/true', ['true'], {}, file_actions=opening)\n";
        let mut command = Command::new("sh");
        command.args(["-c", "python3 -c \"$1\" \"$2\" & wait", "sh", script]);
        let mut child = command.arg(&fifo).stdin(Stdio::null()).spawn().unwrap();
        let (mut own, _) = Vitals::of(child.id()).unwrap();
        let (mut family, _) = Vitals::of(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !family.keeps(Whose::Family, Instant::now()).blocked && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let keeps = family.keeps(Whose::Family, Instant::now());
        let main = own.keeps(Whose::Own, Instant::now());
        // The program begins, and all of them end.
        drop(File::options().write(true).open(&fifo).unwrap());
        child.wait().unwrap();
        assert!(keeps.blocked, "{keeps:?}");
        assert!(!main.blocked, "{main:?}");
    }

    /// The kernel counts a wait once it is over, so that one that lasted was none.
    #[test]
    fn a_thread_that_still_waits_for_a_cpu_counts() {
        let name = "a_thread_that_still_waits_for_a_cpu_counts";
        let mut busy = Vec::new();
        // On one CPU, one in the normal class leaves next to nothing to one in the idle class.
        for class in ["--other", "--idle"] {
            let mut command = Command::new("taskset");
            command.args([
                "--cpu-list",
                "0",
                "chrt",
                class,
                "0",
                "sh",
                "-c",
                "while :; do :; done",
            ]);
            match command.stdin(Stdio::null()).spawn() {
                Ok(child) => busy.push(Ended(child)),
                Err(error) => {
                    println!("SKIPPED: {name}: taskset: {error}; install util-linux");
                    return;
                }
            }
        }
        let pid = busy[1].0.id();
        let begun = || {
            let class = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            class.contains("(sh)")
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !begun() {
            assert!(Instant::now() < deadline, "it does not begin");
            std::thread::yield_now();
        }
        let (mut vitals, _) = Vitals::of(pid).unwrap();
        let (mut asked, mut starved) = (0, 0);
        let mut latest = None;
        while asked < 50 && Instant::now() < deadline {
            let keeps = vitals.keeps(Whose::Own, Instant::now());
            if vitals.threads.asked != latest {
                latest = vitals.threads.asked;
                asked += 1;
                starved += u32::from(keeps.starved >= Some(0.5));
            }
        }
        assert!(starved * 2 > asked, "{starved} of {asked}");
    }

    /// A process that is ended with the test.
    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    #[test]
    fn a_process_that_never_was_is_refused() {
        assert!(Vitals::of(0).is_err());
        assert!(Vitals::of(u32::MAX).is_err());
    }
}
