//! The virtual machine: QEMU, with a kernel, a first root file system, and a serial line. It has no network, no disk and
//! no device of this host.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::canary::Answer;
use super::guest::Said;
use crate::error::HostError;

/// Lines that are remembered, and bytes of each.
const LINES_MAX: usize = 40;
const LINE_MAX: usize = 400;
/// Of what a machine says as much is written down.
const CONSOLE_MAX: usize = 1 << 20;
/// Lines that wait to be looked at: a machine that says more waits.
const QUEUE: usize = 256;
/// Where the processor runs it, a kernel is up within seconds. Where it says nothing for so long, that does not work here.
const ACCELERATED_MAX: Duration = Duration::from_secs(20);
/// What ends a machine that has said all.
const OFF_MAX: Duration = Duration::from_secs(10);
/// The last words of what unpacks a kernel and cannot (arch/x86/boot/compressed/error.c).
const HALTED: &str = "-- System halted";
/// Last lines that say why.
const TAIL: usize = 5;

/// Who executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Executed {
    /// The processor (KVM).
    ByProcessor,
    /// QEMU.
    ByEmulator,
}

/// What is started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) qemu: &'a Path,
    pub(super) kernel: &'a Path,
    pub(super) archive: &'a Path,
    pub(super) memory_mib: u64,
    pub(super) executed: Executed,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, or it said all.
    Over,
    /// It was still there.
    TooLong,
    /// There is no machine at all: what the emulator says.
    NoMachine(String),
}

/// What was heard of it.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The release of the kernel, once it runs programs.
    pub(super) up: Option<String>,
    pub(super) restored: bool,
    pub(super) answer: Option<Answer>,
    pub(super) troubles: Vec<String>,
    is_over: bool,
    /// What it died of.
    panic: Option<String>,
    last: VecDeque<String>,
    /// What the emulator itself said.
    emulator: VecDeque<String>,
}

impl Heard {
    /// Takes a line in; whether nothing more is to come.
    pub(super) fn line(&mut self, line: &str) -> bool {
        match Said::parse(line) {
            Some(Said::Up(release)) => self.up = Some(release),
            Some(Said::Restored) => self.restored = true,
            Some(Said::Answered(answer)) => self.answer = Some(answer),
            Some(Said::Trouble(what)) if self.troubles.len() < LINES_MAX => {
                self.troubles.push(what)
            }
            Some(Said::Trouble(_)) => {}
            Some(Said::Over) => self.is_over = true,
            None => {
                // What unpacks the kernel stops where it cannot.
                let is_end = line.contains("Kernel panic - not syncing") || line.contains(HALTED);
                if is_end {
                    self.panic.get_or_insert_with(|| line.to_owned());
                }
                remember(&mut self.last, line);
                return line.contains(HALTED);
            }
        }
        self.is_over
    }

    /// Why it came no further: what it died of, and the last that it said.
    pub(super) fn tail(&self) -> String {
        let skipped = self.last.len().saturating_sub(TAIL);
        let last = self.last.iter().skip(skipped);
        let panic = self
            .panic
            .iter()
            .filter(|panic| !last.clone().any(|line| line == *panic));
        let lines: Vec<&str> = panic.chain(last.clone()).map(String::as_str).collect();
        match lines.is_empty() {
            true => "nothing".to_owned(),
            false => lines.join(" | "),
        }
    }
}

fn remember(lines: &mut VecDeque<String>, line: &str) {
    if line.is_empty() {
        return;
    }
    if lines.len() == LINES_MAX {
        lines.pop_front();
    }
    lines.push_back(line.to_owned());
}

impl Machine<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.qemu);
        // An emulated processor is slow with these, and its clocks are those of a busy host.
        let (accelerator, processor, options) = match self.executed {
            Executed::ByProcessor => ("kvm", "host", ""),
            Executed::ByEmulator => (
                "tcg,thread=single,tb-size=64",
                "max,la57=off,erms=off,fsrm=off",
                " mitigations=off tsc=unstable clocksource=acpi_pm no_timer_check",
            ),
        };
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", "q35,hpet=off", "-accel", accelerator, "-cpu", processor])
            .args(["-smp", "1", "-m", &format!("{}M", self.memory_mib)])
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.archive)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1 random.trust_cpu=on{options} rdinit=/init -- \
                 rehearsal-init"
            ));
        command
    }

    /// Starts it, and listens until it has said all, ends, or was there for so long. What it says is written to a file.
    pub(super) fn run(&self, limit: Duration, console: &Path) -> Result<(Heard, End), HostError> {
        let mut log =
            File::create(console).map_err(|error| HostError::file("create", console, error))?;
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .map_err(|error| HostError::file("run", self.qemu, error))?;
        let mut running = Running(child);
        let lines = running.lines();
        let began = Instant::now();
        let mut heard = Heard::default();
        let mut written = 0;
        loop {
            let patience = match (self.executed, &heard.up) {
                (Executed::ByProcessor, None) => limit.min(ACCELERATED_MAX),
                _ => limit,
            };
            let left = patience.saturating_sub(began.elapsed());
            // One that says something all the time is not waited for longer.
            if left.is_zero() {
                return Ok((heard, End::TooLong));
            }
            let line = match lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return Ok((heard, End::TooLong)),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let (Line::Machine(text) | Line::Emulator(text)) = &line;
            if written < CONSOLE_MAX {
                written += text.len() + 1;
                writeln!(log, "{text}")
                    .map_err(|error| HostError::file("write", console, error))?;
            }
            match &line {
                Line::Machine(text) if heard.line(text) => break,
                Line::Machine(_) => {}
                Line::Emulator(text) => {
                    remember(&mut heard.emulator, text);
                    // It stands still then, and would for ever.
                    if text.contains("KVM internal error") {
                        return Ok((heard, End::NoMachine(text.clone())));
                    }
                }
            }
        }
        let end = running.end(&heard)?;
        Ok((heard, end))
    }
}

/// A line of the machine's, or of the emulator's own.
enum Line {
    Machine(String),
    Emulator(String),
}

/// Ended with this, in whatever way.
struct Running(Child);

impl Running {
    fn lines(&mut self) -> Receiver<Line> {
        let (send, lines) = mpsc::sync_channel(QUEUE);
        if let Some(out) = self.0.stdout.take() {
            listen(out, send.clone(), Line::Machine);
        }
        if let Some(out) = self.0.stderr.take() {
            listen(out, send, Line::Emulator);
        }
        lines
    }

    /// How it ended once there is nothing more to hear.
    fn end(&mut self, heard: &Heard) -> Result<End, HostError> {
        let fail = |error| HostError::io("wait for the end of QEMU", error);
        let deadline = Instant::now() + OFF_MAX;
        loop {
            match self.0.try_wait().map_err(fail)? {
                // A machine that ends, in whatever way, is no failure of its own.
                Some(status) if !status.success() => {
                    let said: Vec<&str> = heard.emulator.iter().map(String::as_str).collect();
                    return Ok(End::NoMachine(format!(
                        "QEMU ended ({status}): {}",
                        said.join(" | ")
                    )));
                }
                Some(_) => return Ok(End::Over),
                None if Instant::now() >= deadline => return Ok(End::Over),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended needs no end.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Ends with what it listens to, or with whoever listens to it.
fn listen(
    out: impl Read + Send + 'static,
    lines: SyncSender<Line>,
    whose: impl Fn(String) -> Line + Send + 'static,
) {
    std::thread::spawn(move || {
        let ended = each_line(out, |line| lines.send(whose(line)).is_ok());
        if let Err(error) = ended {
            tracing::debug!(%error, "a machine is heard no more");
        }
    });
}

/// Cuts what is read into lines, of which no more than a bound is kept.
fn each_line(mut from: impl Read, mut take: impl FnMut(String) -> bool) -> io::Result<()> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer)?;
        for byte in &buffer[..count] {
            match byte {
                b'\n' => {
                    let text = String::from_utf8_lossy(&line).trim().to_owned();
                    line.clear();
                    if !take(text) {
                        return Ok(());
                    }
                }
                // Control characters would do something to whoever shows them.
                byte if line.len() < LINE_MAX && !byte.is_ascii_control() => line.push(*byte),
                _ => {}
            }
        }
        // It ends no line with that, and says nothing more.
        let partial = String::from_utf8_lossy(&line);
        if partial.contains(HALTED) {
            take(partial.trim().to_owned());
            return Ok(());
        }
        if count == 0 {
            take(String::from_utf8_lossy(&line).trim().to_owned());
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Heard {
        let mut heard = Heard::default();
        for line in lines {
            heard.line(line);
        }
        heard
    }

    #[test]
    fn why_it_came_no_further_is_what_it_died_of_and_the_last_that_it_said() {
        let mut lines = vec![
            "[ 1.0] Linux version 6.1",
            "[ 2.0] Kernel panic - not syncing: no init",
        ];
        lines.extend(["a", "b", "c", "d", "e", "f"]);
        let tail = heard(&lines).tail();
        assert_eq!(
            tail,
            "[ 2.0] Kernel panic - not syncing: no init | b | c | d | e | f"
        );
        assert_eq!(heard(&lines[..2]).tail(), lines[..2].join(" | "));
        assert_eq!(heard(&[]).tail(), "nothing");
        assert!(
            Heard::default().line("-- System halted"),
            "nothing comes after that"
        );
        assert!(!Heard::default().line("[ 2.0] Kernel panic - not syncing"));
    }

    struct Endless;

    impl Read for Endless {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("a machine that stands still is listened to");
        }
    }

    #[test]
    fn no_more_than_a_bound_of_what_a_machine_says_is_kept() {
        let mut lines = Vec::new();
        let long = "x".repeat(3 * LINE_MAX);
        let said = format!("\x1b[2Ja\r\n{long}\nlast");
        each_line(said.as_bytes(), |line| {
            lines.push(line);
            true
        })
        .unwrap();
        assert_eq!(lines, ["[2Ja", &long[..LINE_MAX], "last"]);
        // A machine that stands still leaves the line open, and nothing is read after that.
        let mut halted = io::Cursor::new("bad magic\n\n -- System halted").chain(Endless);
        lines.clear();
        let heard = each_line(&mut halted, |line| {
            lines.push(line);
            true
        });
        heard.unwrap();
        assert_eq!(lines, ["bad magic", "", "-- System halted"]);
        let mut heard = Heard::default();
        for n in 0..3 * LINES_MAX {
            heard.line(&format!("line {n}"));
            heard.line("forebay-rehearsal: trouble t");
        }
        assert_eq!(
            (heard.last.len(), heard.troubles.len()),
            (LINES_MAX, LINES_MAX)
        );
    }
}
