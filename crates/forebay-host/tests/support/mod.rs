//! A place in the real kernel for one test, gone afterwards.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Class, Exec, OnStop, Restart};
use forebay_core::host::{Action, Host, Outcome, Watch};
use forebay_core::slice::{Setting, Slice};
use forebay_core::snapshot::{AppSample, Snapshot};
use forebay_core::units::Time;
use forebay_host::groups::of_app;
use forebay_host::mounts::{Controller, Hierarchies};
use forebay_host::{LinuxHost, Options, restore};

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A group name and a state directory of one test.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) options: Options,
    pub(crate) hierarchies: Hierarchies,
    _state: tempfile::TempDir,
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
        let state = tempfile::tempdir().unwrap();
        let options = Options {
            group: PathBuf::from(format!("forebay-test-{}-{number}", std::process::id())),
            state_dir: state.path().join("state"),
            ..Options::default()
        };
        Some(Self {
            options,
            hierarchies,
            _state: state,
        })
    }

    pub(crate) fn open(&self) -> LinuxHost {
        LinuxHost::open(self.options.clone()).unwrap()
    }

    /// The directory of an app's group in the hierarchy of a controller.
    pub(crate) fn dir(&self, controller: Controller, app: &str) -> PathBuf {
        let (_, hierarchy) = self.hierarchies.of(controller).unwrap();
        hierarchy.dir(&of_app(&self.options.group, &id(app)))
    }

    /// The group that this test runs in, in the hierarchy of a controller.
    pub(crate) fn home(&self, controller: Controller) -> PathBuf {
        let (index, _) = self.hierarchies.of(controller).unwrap();
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        self.hierarchies.membership(&text)[index].clone().unwrap()
    }

    /// Directories of this test that are still there.
    pub(crate) fn left_behind(&self) -> Vec<PathBuf> {
        let anchor = self.options.group.display().to_string();
        let ours = |name: &str| name == anchor || name.starts_with(&format!("{anchor}."));
        self.hierarchies
            .list()
            .iter()
            .flat_map(|hierarchy| std::fs::read_dir(hierarchy.dir(Path::new(""))).unwrap())
            .map(|entry| entry.unwrap())
            .filter(|entry| ours(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let report = restore(&self.options.state_dir, &self.options.roots, OnStop::Kill);
        if !std::thread::panicking() {
            assert_eq!(report.unwrap().failed, Vec::<String>::new());
            assert_eq!(self.left_behind(), Vec::<PathBuf>::new());
        }
    }
}

pub(crate) fn id(name: &str) -> AppId {
    name.parse().unwrap()
}

pub(crate) fn app(name: &str, binding: Binding) -> App {
    App::new(id(name), Class::Standard, binding)
}

pub(crate) fn exec(command: &[&str]) -> Exec {
    Exec {
        restart: Restart::Never,
        ..Exec::of(command.iter().map(|s| (*s).to_owned()).collect())
    }
}

pub(crate) fn program(name: &str, command: &[&str]) -> App {
    app(name, Binding::Exec(exec(command)))
}

/// Does actions that are all expected to succeed.
pub(crate) fn apply(host: &mut LinuxHost, actions: &[Action]) {
    for (action, outcome) in actions.iter().zip(host.apply(actions)) {
        assert_eq!(outcome, Outcome::Done, "{action}");
    }
}

pub(crate) fn set(app: &str, setting: Setting) -> Action {
    Action::Set {
        app: id(app),
        setting,
    }
}

/// Looks in one period.
pub(crate) fn look(host: &mut LinuxHost, apps: &[&App], period: u64) -> Snapshot {
    look_with(host, apps, period, &BTreeMap::new())
}

pub(crate) fn look_with(
    host: &mut LinuxHost,
    apps: &[&App],
    period: u64,
    in_force: &BTreeMap<AppId, Slice>,
) -> Snapshot {
    let apps: BTreeMap<AppId, App> = apps
        .iter()
        .map(|app| (app.id.clone(), (*app).clone()))
        .collect();
    host.observe(&Watch {
        time: Time::default(),
        period,
        apps: &apps,
        in_force,
    })
}

/// Looks until what is wanted shows, in bounded time.
pub(crate) fn look_until(
    host: &mut LinuxHost,
    app: &App,
    what: &str,
    wanted: impl Fn(&AppSample) -> bool,
) -> AppSample {
    let deadline = Instant::now() + PATIENCE;
    for period in 0.. {
        let sample = look(host, &[app], period).apps.remove(&app.id).unwrap();
        if wanted(&sample) {
            return sample;
        }
        assert!(Instant::now() < deadline, "no {what}: {sample:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    unreachable!()
}

/// Waits until something holds, in bounded time.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn members(dir: &Path) -> Vec<u32> {
    std::fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}

pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// Whether a process is there and not only waiting to be reaped.
pub(crate) fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// What a process runs, with a blank after each argument.
pub(crate) fn command_of(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    String::from_utf8(line).unwrap().replace('\0', " ")
}

/// Ends a process, if it is still there.
pub(crate) fn end(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("end {pid:?}: {error}"),
    }
}

/// A shell that is not Forebay's, and that forks when it is told.
#[derive(Debug)]
pub(crate) struct Stray(std::process::Child);

impl Stray {
    pub(crate) fn new(marker: &str) -> Self {
        let child = std::process::Command::new("sh")
            .args(["-c", "read line; sleep 1000 & wait", marker])
            .stdin(std::process::Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn fork(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        self.0.wait().unwrap();
    }
}
