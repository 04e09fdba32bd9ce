//! The temporary directory of one trial, and the processes that run in it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::leftovers::{self, Process};
use crate::process;

/// How long a part may take to appear, or to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often an awaited event is looked for.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a part's output that an error quotes.
const QUOTED_LINES: usize = 8;
/// Names of temporary directories and control groups; the process number follows.
const PREFIX: &str = "forebay-examples-";
/// The variable by which every process of a trial can be told, whoever became its parent.
pub(super) const MARK: &str = "FOREBAY_EXAMPLES";

pub(super) struct Stage {
    dir: PathBuf,
    forebay: PathBuf,
    load_s: u64,
    is_unfilled: bool,
    family: Vec<Process>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    Terminate,
    Interrupt,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
        }
    }
}

impl Stage {
    /// `load_s` is how long each load shall take, in seconds.
    pub(super) fn new(example: &str, forebay: &Path, load_s: u64) -> Result<Self, String> {
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        let fail = |error| format!("make {} for {example}: {error}", dir.display());
        fs::create_dir(&dir).map_err(fail)?;
        // The servers run as users of their own.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).map_err(fail)?;
        Ok(Self {
            dir,
            forebay: forebay.to_path_buf(),
            load_s,
            is_unfilled: true,
            family: Vec::new(),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn load_s(&self) -> u64 {
        self.load_s
    }

    /// True once: before the first load.
    pub(super) fn is_unfilled(&mut self) -> bool {
        std::mem::replace(&mut self.is_unfilled, false)
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("forebay.toml")
    }

    /// What sets the trial's daemon apart from another on the same host.
    pub(super) fn daemon_section(&self) -> String {
        format!(
            "\n[daemon]\nsocket = {:?}\nstate_dir = {:?}\ncgroup_root = {:?}\nlease = \"2s\"\n\n\
             [policy]\non_stop = \"kill\"\n",
            self.dir.join("socket"),
            self.dir.join("state"),
            group_root(),
        )
    }

    /// A program of this trial. It ends with xtask, however xtask ends.
    pub(super) fn program(&self, name: &str) -> Command {
        let mut command = self.marked(Path::new("setpriv"));
        command.args(["--pdeathsig", "TERM", "--", name]);
        command
    }

    /// The same as another user, without that user's password or shell.
    pub(super) fn program_as(&self, user: &str, name: &str) -> Command {
        let mut command = self.marked(Path::new("setpriv"));
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        command.args(["--pdeathsig", "TERM", "--", name]);
        command
    }

    pub(super) fn forebay(&self, arguments: &[&str]) -> Command {
        let mut command = self.marked(&self.forebay);
        command.args(arguments);
        command
    }

    /// A compiler that is killed leaves its temporary files where all is removed.
    fn marked(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, &self.dir).env("TMPDIR", &self.dir);
        command.current_dir(&self.dir);
        command
    }

    /// A command to this trial's daemon.
    pub(super) fn client(&self, arguments: &[&str]) -> Command {
        let mut command = self.forebay(arguments);
        command.env("FOREBAY_SOCKET", self.dir.join("socket"));
        command
    }

    /// Starts a part; its output goes to `NAME.log`.
    pub(super) fn spawn(
        &self,
        name: &'static str,
        signal: Signal,
        mut command: Command,
    ) -> Result<Running, String> {
        let log = self.dir.join(format!("{name}.log"));
        let fail = |error| {
            format!(
                "start the {name}: `{}`: {error}",
                process::describe(&command)
            )
        };
        let output = File::create(&log).map_err(fail)?;
        let errors = output.try_clone().map_err(fail)?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().map_err(|error| {
            format!(
                "start the {name}: `{}`: {error}",
                process::describe(&command)
            )
        })?;
        Ok(Running {
            name,
            signal,
            log,
            child: Some(child),
        })
    }

    /// Remembers all that runs for this trial now, to see later that it ended.
    pub(super) fn remember_family(&mut self) {
        self.family.extend(leftovers::family());
    }

    /// Removes the directory; an error when anything of the trial remains.
    pub(super) fn remove(self) -> Result<(), String> {
        let found = wait_until("everything of the trial has ended", || {
            Ok(leftovers::find(&self.family, &self.dir, &group_root())
                .is_empty()
                .then_some(()))
        });
        fs::remove_dir_all(&self.dir)
            .map_err(|error| format!("remove {}: {error}", self.dir.display()))?;
        found.map_err(|_| {
            let left = leftovers::find(&self.family, &self.dir, &group_root());
            format!("left behind:\n  {}", left.join("\n  "))
        })
    }
}

/// The daemon's anchor below each hierarchy's root; app groups are named after it.
pub(super) fn group_root() -> String {
    format!("{PREFIX}{}", std::process::id())
}

/// Puts right what a trial left that was itself killed.
pub(super) fn sweep(forebay: &Path) -> Result<(), String> {
    let directory = std::env::temp_dir();
    let fail = |error| format!("list {}: {error}", directory.display());
    for entry in fs::read_dir(&directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let Some(owner) = owner.and_then(|number| number.parse::<u32>().ok()) else {
            continue;
        };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        println!(
            "removing {}, left by a trial that was killed",
            entry.path().display()
        );
        let state = entry.path().join("state");
        if state.exists() {
            let mut restore = Command::new(forebay);
            restore
                .args(["restore", "--kill", "--state-dir"])
                .arg(state);
            process::succeed(&mut restore)?;
        }
        fs::remove_dir_all(entry.path())
            .map_err(|error| format!("remove {}: {error}", entry.path().display()))?;
    }
    Ok(())
}

/// A process that xtask started. When dropped it is ended, too.
pub(super) struct Running {
    name: &'static str,
    signal: Signal,
    log: PathBuf,
    /// None once it has been waited for by `end`.
    child: Option<Child>,
}

impl Running {
    pub(super) fn has_ended(&mut self) -> Result<bool, String> {
        match &mut self.child {
            Some(child) => child
                .try_wait()
                .map(|status| status.is_some())
                .map_err(|error| format!("wait for the {}: {error}", self.name)),
            None => Ok(true),
        }
    }

    /// The output of a part that ended well.
    pub(super) fn succeeded(mut self) -> Result<String, String> {
        let status = match &mut self.child {
            Some(child) => child
                .wait()
                .map_err(|error| format!("wait for the {}: {error}", self.name))?,
            None => return Err(format!("the {} has been ended", self.name)),
        };
        if status.success() {
            fs::read_to_string(&self.log)
                .map_err(|error| format!("read {}: {error}", self.log.display()))
        } else {
            Err(format!(
                "the {} failed: {status}:\n{}",
                self.name,
                self.quote()
            ))
        }
    }

    /// Tells it to end, and waits.
    pub(super) fn end(mut self) -> Result<(), String> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let name = self.name;
        let fail = |error| format!("end the {name}: {error}");
        if child.try_wait().map_err(fail)?.is_some() {
            return Ok(());
        }
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", self.signal.name()]);
        process::succeed(kill.arg(child.id().to_string()))?;
        let patient = wait_until("it ends", || {
            child
                .try_wait()
                .map_err(fail)
                .map(|status| status.map(|_| ()))
        });
        if patient.is_err() {
            child.kill().map_err(fail)?;
            child.wait().map_err(fail)?;
            return Err(format!(
                "end the {name}: still there {} s after SIG{}, then killed:\n{}",
                PATIENCE.as_secs(),
                self.signal.name(),
                self.quote()
            ));
        }
        Ok(())
    }

    fn quote(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let last = lines.len().saturating_sub(QUOTED_LINES);
        lines[last..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            println!("{error}");
        }
    }
}

/// An error when a part that should still run has ended.
pub(super) fn all_run(parts: &mut [Running]) -> Result<(), String> {
    for part in parts {
        if part.has_ended()? {
            return Err(format!(
                "the {} ended by itself:\n{}",
                part.name,
                part.quote()
            ));
        }
    }
    Ok(())
}

/// Waits for an event, within a bound.
pub(super) fn wait_until<T>(
    event: &str,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() >= until {
            return Err(format!(
                "wait until {event}: not within {} s; see what else this host does",
                PATIENCE.as_secs()
            ));
        }
        pause();
    }
}

/// Between two looks for the same event.
pub(super) fn pause() {
    std::thread::sleep(POLL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_starts_ends_and_quotes_and_leaves_nothing() {
        let stage = Stage::new("a test", Path::new("/no/such/forebay"), 1).unwrap();
        let dir = stage.dir().to_path_buf();
        let mut sleep = Command::new("sleep");
        let sleeping = stage.spawn("sleep", Signal::Terminate, {
            sleep.arg("60");
            sleep
        });
        sleeping.unwrap().end().unwrap();

        let mut fail = Command::new("sh");
        fail.args(["-c", "echo why; exit 3"]);
        let mut failing = stage.spawn("failing", Signal::Interrupt, fail).unwrap();
        wait_until("it ends", || Ok(failing.has_ended()?.then_some(()))).unwrap();
        let error = all_run(std::slice::from_mut(&mut failing)).unwrap_err();
        assert!(error.contains("ended by itself:\nwhy"), "{error}");
        assert!(failing.succeeded().unwrap_err().contains("why"));

        let mut missing = stage.spawn("gone", Signal::Terminate, Command::new("/no/such/program"));
        assert!(missing.as_mut().is_err());
        stage.remove().unwrap();
        assert!(!dir.exists());
    }
}
