//! A place in the real kernel for one daemon of one test, gone afterwards.

use std::fs;
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use forebay_host::mounts::{Controller, Hierarchies};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) use crate::kernel::*;

/// The program: in a guest it is elsewhere than where it was compiled.
pub(crate) static EXE: LazyLock<String> = LazyLock::new(|| {
    std::env::var("FOREBAY_EXE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_forebay").to_owned())
});
/// How long a test waits for anything: a slow machine needs it, and waiting for what comes costs nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(20);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Where one daemon runs.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its group below the root of each hierarchy.
    pub(crate) group: String,
    pub(crate) hierarchies: Hierarchies,
    number: u32,
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    /// Groups that the test made itself, innermost last.
    made: Vec<PathBuf>,
    mounted: Vec<PathBuf>,
}

impl Place {
    /// None, with a line that says why, where the kernel cannot be tried.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let skip = |reason: &str| {
            println!("SKIPPED: {test}: {reason}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("not root");
        }
        let hierarchies = match Hierarchies::read(Path::new("/proc")) {
            Ok(hierarchies) => hierarchies,
            Err(error) => return skip(&error.explain()),
        };
        let writable = hierarchies
            .of(Controller::Cpu)
            .is_some_and(|(_, hierarchy)| hierarchy.writable);
        if !writable {
            return skip("no writable cpu control group");
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        // Other users look in, too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self {
            group: format!("forebay-test-{}-{number}", std::process::id()),
            hierarchies,
            number,
            dir,
            daemon: None,
            made: Vec::new(),
            mounted: Vec::new(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The path as it stands in a configuration.
    pub(crate) fn quoted(&self, name: &str) -> String {
        format!("\"{}\"", self.path(name).display())
    }

    /// Seconds that nobody else sleeps for: by them a process is found in /proc.
    pub(crate) fn seconds(&self, n: u32) -> String {
        let own = std::process::id() % 4_000_000;
        format!(
            "{}",
            1_000_000_000 + u64::from(own) * 100 + u64::from(self.number * 10 + n)
        )
    }

    /// Writes the configuration: `rest` after a `[daemon]` section with this place in it.
    pub(crate) fn configure(&self, rest: &str) {
        self.configure_daemon("", rest);
    }

    pub(crate) fn configure_daemon(&self, keys: &str, rest: &str) {
        let text = format!(
            "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"{}\"\nlease = \"1s\"\n{keys}\n{rest}",
            self.quoted("socket"),
            self.quoted("state"),
            self.group,
        );
        fs::write(self.path("forebay.toml"), text).unwrap();
    }

    /// The line of the configuration that has this text.
    pub(crate) fn line_of(&self, text: &str) -> usize {
        let file = fs::read_to_string(self.path("forebay.toml")).unwrap();
        1 + file.lines().position(|line| line.contains(text)).unwrap()
    }

    pub(crate) fn daemon_command(&self) -> Command {
        let mut command = Command::new(EXE.as_str());
        command
            .arg("daemon")
            .arg("--config")
            .arg(self.path("forebay.toml"));
        command
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(&mut self) -> u32 {
        let command = self.daemon_command();
        self.start_with(command)
    }

    pub(crate) fn start_with(&mut self, command: Command) -> u32 {
        let pid = self.begin_with(command);
        let deadline = Instant::now() + PATIENCE;
        while !self.ask(&["status"]).status.success() {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the daemon does not answer ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(POLL);
        }
        pid
    }

    /// Starts a daemon that may be gone before it answers.
    pub(crate) fn begin_with(&mut self, mut command: Command) -> u32 {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("daemon.log"))
            .unwrap();
        let child = command
            .env("FOREBAY_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id();
        self.daemon = Some(child);
        pid
    }

    /// What the daemon says when it does not start. It has to end by itself.
    pub(crate) fn refusal(&self) -> Refusal {
        refusal(self.daemon_command())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// Runs a command that asks the daemon.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        self.asking(arguments).output().unwrap()
    }

    pub(crate) fn asking(&self, arguments: &[&str]) -> Command {
        let (name, rest) = arguments.split_first().unwrap();
        let mut command = Command::new(EXE.as_str());
        command
            .arg(name)
            .arg("--socket")
            .arg(self.path("socket"))
            .args(rest)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed, and gives its JSON.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let (name, rest) = arguments.split_first().unwrap();
        let arguments: Vec<&str> = [name, "--json"].iter().chain(rest).copied().collect();
        let output = self.ask(&arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {output:?}\n{}",
            self.log()
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {output:?}"))
    }

    /// Runs a command that must fail with this code and one line that has all these words.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.ask(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        says(&String::from_utf8(output.stderr).unwrap(), words);
    }

    /// One app as the daemon shows it; null when it does not.
    #[track_caller]
    pub(crate) fn app(&self, name: &str) -> Value {
        let apps = self.json(&["apps"]);
        let apps = apps["apps"].as_array().unwrap();
        apps.iter()
            .find(|app| app["name"] == name)
            .cloned()
            .unwrap_or(Value::Null)
    }

    /// Waits until an app is as wanted.
    #[track_caller]
    pub(crate) fn await_app(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let app = self.app(name);
            if wanted(&app) {
                return app;
            }
            assert!(
                Instant::now() < deadline,
                "{name}: not {what}: {app:#}\n{}",
                self.log()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits until a program that Forebay starts runs; its process number.
    #[track_caller]
    pub(crate) fn await_pid(&self, name: &str) -> u32 {
        let app = self.await_app(name, "running", |app| {
            app["state"] == "running" && app["main_pid"].is_u64()
        });
        u32::try_from(app["main_pid"].as_u64().unwrap()).unwrap()
    }

    /// Waits for an event of a kind about an app; its message.
    #[track_caller]
    pub(crate) fn await_event(&self, app: &str, kind: &str) -> String {
        self.await_any(app, &[kind])["message"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits for an event of one of these kinds about an app; its kind.
    #[track_caller]
    pub(crate) fn await_any_event(&self, app: &str, kinds: &[&str]) -> String {
        self.await_any(app, kinds)["kind"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[track_caller]
    fn await_any(&self, app: &str, kinds: &[&str]) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.json(&["events", "--app", app]);
            let events = events["events"].as_array().unwrap();
            if let Some(event) = events
                .iter()
                .find(|event| kinds.iter().any(|kind| event["kind"] == *kind))
            {
                return event.clone();
            }
            assert!(
                Instant::now() < deadline,
                "no {kinds:?} of {app}: {events:#?}\n{}",
                self.log()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Asks the daemon to end and waits.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().unwrap();
        signal(daemon.id(), Signal::TERM);
        wait_for_end(&mut daemon).unwrap_or_else(|| {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            panic!("the daemon does not stop: {}", self.log())
        })
    }

    /// Stops the daemon, which has to put everything back.
    #[track_caller]
    pub(crate) fn stop_well(&mut self) {
        let status = self.stop();
        assert!(status.success(), "{status}: {}", self.log());
        self.assert_nothing_left();
    }

    /// Ends the daemon as a crash would.
    pub(crate) fn crash(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Whether it has a daemon, as far as the test began and ended one.
    pub(crate) fn is_begun(&self) -> bool {
        self.daemon.is_some()
    }

    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub(crate) fn restore(&self, arguments: &[&str]) -> Output {
        Command::new(EXE.as_str())
            .arg("restore")
            .arg("--state-dir")
            .arg(self.path("state"))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The directories of the daemon's own group that are there.
    pub(crate) fn groups_left(&self) -> Vec<PathBuf> {
        groups_left(&self.hierarchies, &self.group)
    }

    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.groups_left(), Vec::<PathBuf>::new(), "{}", self.log());
        assert!(!self.path("socket").exists(), "the socket is still there");
    }

    /// The guardians of this place's daemons.
    pub(crate) fn guardians(&self) -> Vec<u32> {
        let state = self.path("state").display().to_string();
        processes(|words| words.get(1).is_some_and(|w| w == "guardian") && words.contains(&state))
    }

    /// A knob of one app's group, under its name in v2 or in v1.
    pub(crate) fn knob(&self, app: &str, knob: Knob) -> PathBuf {
        knob_in(&self.hierarchies, &format!("{}.{app}", self.group), knob)
    }

    /// Makes a group that is not Forebay's, in every hierarchy that matters.
    pub(crate) fn make_group(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.group);
        for controller in [
            Controller::Cpu,
            Controller::Memory,
            Controller::Pids,
            Controller::Io,
        ] {
            let Some((_, hierarchy)) = self.hierarchies.of(controller) else {
                continue;
            };
            let dir = hierarchy.dir(Path::new(&name));
            if !dir.exists() {
                fs::create_dir(&dir).unwrap();
                self.made.push(dir);
            }
        }
        name
    }

    /// Makes a group of that name where processes can be frozen, too.
    pub(crate) fn make_unified(&mut self, name: &str) {
        let unified = self.hierarchies.unified();
        let freezer = unified.or_else(|| self.hierarchies.of(Controller::Freezer));
        let (_, hierarchy) = freezer.unwrap();
        let dir = hierarchy.dir(Path::new(name));
        if !dir.exists() {
            fs::create_dir(&dir).unwrap();
            self.made.push(dir);
        }
    }

    /// The groups that [`Self::make_group`] made.
    pub(crate) fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// A file system of so many KiB, in a directory of that name.
    pub(crate) fn mount_small(&mut self, name: &str, kib: u32) {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(&dir)
            .status()
            .unwrap();
        assert!(status.success());
        self.mounted.push(dir);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            signal(daemon.id(), Signal::TERM);
            if wait_for_end(daemon).is_none() {
                daemon.kill().unwrap();
                daemon.wait().unwrap();
            }
        }
        if std::thread::panicking() {
            println!("the daemon said:\n{}", self.log());
        }
        // What a test filled the disk with, if it did.
        fs::remove_file(self.path("state/filler")).ok();
        let restored = self.restore(&["--kill"]);
        if !std::thread::panicking() {
            assert!(restored.status.success(), "{restored:?}");
            self.assert_nothing_left();
        }
        for dir in self.mounted.iter().rev() {
            let status = Command::new("umount").arg(dir).status().unwrap();
            assert!(status.success(), "{} stays mounted", dir.display());
        }
        for dir in self.made.iter().rev() {
            eventually("the group is empty", || fs::remove_dir(dir).is_ok());
        }
    }
}

/// How a program refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

impl Refusal {
    /// Checks that it is one line with all these words in it.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        says(&self.text, words);
    }
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    assert_eq!(text.lines().count(), 1, "one clear line, not: {text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// Runs a program that has to end by itself.
pub(crate) fn refusal(mut command: Command) -> Refusal {
    // A file: what a program starts may hold a pipe open for long.
    let mut said = tempfile::tempfile().unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone().unwrap())
        .spawn()
        .unwrap();
    let ended = wait_for_end(&mut child);
    if ended.is_none() {
        signal(child.id(), Signal::TERM);
        child.wait().unwrap();
    }
    let mut text = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut text).unwrap();
    let status = ended.unwrap_or_else(|| panic!("it runs instead of refusing: {text}"));
    Refusal {
        code: status.code(),
        text,
    }
}

/// The JSON of a command that looks for a container runtime at this socket.
#[track_caller]
pub(crate) fn json_with_runtime(socket: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(EXE.as_str())
        .args(arguments)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits for a child, in bounded time.
pub(crate) fn wait_for_end(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(POLL);
    }
    None
}

/// Waits until something holds, in bounded time.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(POLL);
    }
}
