//! A program of PostgreSQL's, run to its end.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Failed;

/// How long a program may take: a copy of some terabytes does.
const RUN_BOUND: Duration = Duration::from_secs(12 * 3600);
/// How often it is looked whether it has ended.
const RUN_POLL: Duration = Duration::from_millis(10);
/// What is kept of what it said last.
const SAID_BYTES_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    command: Command,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Program {
    pub(super) fn new(path: PathBuf) -> Self {
        let mut command = Command::new(&path);
        // What it says is read here.
        command.env("LC_ALL", "C").stdin(Stdio::null());
        Self { path, command }
    }

    /// The same program, to be run with other arguments.
    pub(super) fn again(&self) -> Self {
        Self::new(self.path.clone())
    }

    pub(super) fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        let mut option = std::ffi::OsString::from(name);
        option.push("=");
        option.push(value);
        self.command.arg(option);
    }

    pub(super) fn argument(&mut self, value: impl AsRef<OsStr>) {
        self.command.arg(value);
    }

    pub(super) fn secret(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.command.env(name, value);
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// When it cannot be run, fails or takes too long; with what it said last.
    pub(super) fn run(mut self) -> Result<(), Failed> {
        self.command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.begin()?;
        let stderr = child.stderr.take();
        let (said, ended) = std::thread::scope(|scope| {
            let said = scope.spawn(move || stderr.map(last_words).unwrap_or_default());
            let ended = end(&mut child);
            // It ends with the program.
            (said.join().unwrap_or_default(), ended)
        });
        let failed = |why: String| {
            let said = said.trim();
            let colon = if said.is_empty() { "" } else { ": " };
            Failed(format!("run {self}: {why}{colon}{said}"))
        };
        match ended {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(failed(format!("it ended with {status}"))),
            Ok(None) => Err(failed(format!(
                "it took longer than {} s",
                RUN_BOUND.as_secs()
            ))),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Runs one that says little, and gives that.
    ///
    /// # Errors
    /// When it cannot be run, or fails.
    pub(super) fn ask(mut self) -> Result<String, Failed> {
        let output = self.command.output();
        let failed = |why: String| Failed(format!("run {self}: {why}"));
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(format!("it ended with {}: {said}", output.status)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn begin(&mut self) -> Result<Child, Failed> {
        let spawned = self.command.spawn();
        spawned.map_err(|error| {
            Failed(format!(
                "run {self}: {error}; name the directory of PostgreSQL's programs in `bin`"
            ))
        })
    }
}

/// None where it took too long, and was ended.
fn end(child: &mut Child) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + RUN_BOUND;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(RUN_POLL);
    }
}

/// The end of a text.
fn last_words(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        kept.extend(buffer.iter().take(length));
        let much = kept.len().saturating_sub(SAID_BYTES_MAX);
        kept.drain(..much);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_said_last_is_in_the_error() {
        let mut shell = Program::new("/bin/sh".into());
        shell.argument("-c");
        shell.argument("seq 1 100000 >&2; echo no room >&2; exit 3");
        let Failed(why) = shell.run().unwrap_err();
        assert!(
            why.contains("exit status: 3") && why.ends_with("no room"),
            "{why}"
        );
        assert!(why.len() < 2 * SAID_BYTES_MAX, "{}", why.len());
        let missing = Program::new("/nonexistent/pg_rewind".into());
        let Failed(why) = missing.run().unwrap_err();
        assert!(why.contains("`bin`"), "{why}");
    }
}
