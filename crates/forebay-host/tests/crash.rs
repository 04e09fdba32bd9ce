//! kill -9 of a daemon at random moments: no app is ended or started twice, every knob comes
//! back. This program plays the daemon and the guardian too, as processes of their own.

#![expect(
    dead_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, which clippy does not see without the usual harness, of which the \
              support is shared"
)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use forebay_core::app::{App, Binding, OnStop, Partition};
use forebay_core::host::{Action, Host};
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_core::snapshot::RunState;
use forebay_core::units::{Bytes, Limit, MilliCpu};
use forebay_host::guardian::{Guarded, Watched, guard};
use forebay_host::mounts::Controller;
use forebay_host::{LinuxHost, Options, Roots};
use support::*;

/// Crashes in an ordinary run; `FOREBAY_CRASHES` asks for more.
const CRASHES: u64 = 12;
/// How long a daemon lives at most before it is killed.
const LIFE_MAX_US: u64 = 60_000;
const LEASE: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // Test runners ask for the list of tests first, once for the ignored ones alone.
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            list();
        }
        return;
    }
    match arguments.get(1).map(String::as_str) {
        Some("daemon") => daemon(Path::new(&arguments[2]), &arguments[3]),
        Some("guardian") => guardian(Path::new(&arguments[2]), &arguments[3]),
        _ => crashes(),
    }
}

#[expect(clippy::print_stdout, reason = "what a test runner reads")]
fn list() {
    println!("crashes_leave_nothing: test");
}

/// Does all kinds of things as fast as it can, until it is killed.
fn daemon(state_dir: &Path, group: &str) {
    let mut host = LinuxHost::open(Options {
        group: PathBuf::from(group),
        state_dir: state_dir.to_owned(),
        ..Options::default()
    })
    .unwrap();
    let (web, job, theirs) = apps(group);
    let all: BTreeMap<_, _> = [&web, &job, &theirs]
        .into_iter()
        .map(|app| (app.id.clone(), app.clone()))
        .collect();
    let cpus = host.topology().cpu_set();
    let parts = cpus.len() > 1 && host.capabilities().knobs.contains(&Knob::CpusPartition);
    let last = cpus.iter().last().into_iter().collect();
    let mut told = false;
    for period in 0.. {
        let snapshot = look_with(
            &mut host,
            &[&web, &job, &theirs],
            period,
            &BTreeMap::<_, Slice>::new(),
        );
        let mut actions = Vec::new();
        for (id, sample) in &snapshot.apps {
            if !sample.strays.is_empty() {
                actions.push(Action::Enter {
                    app: id.clone(),
                    pids: sample.strays.iter().copied().collect(),
                });
            }
            let step = u32::try_from(period % 50).unwrap();
            actions.push(set(id.as_str(), Setting::CpuWeight(200 + step)));
            actions.push(set(
                id.as_str(),
                Setting::CpuMax(Limit::At(MilliCpu(1000 + u64::from(step)))),
            ));
            actions.push(set(
                id.as_str(),
                Setting::MemoryMax(Limit::At(Bytes::mib(500 + u64::from(step)))),
            ));
            if *id == web.id && parts {
                let partition = if period % 2 == 0 {
                    Partition::Root
                } else {
                    Partition::Member
                };
                actions.push(set(id.as_str(), Setting::Cpus(last)));
                actions.push(set(id.as_str(), Setting::CpusPartition(partition)));
            }
            if all[id].binding != theirs.binding && sample.state != RunState::Running {
                actions.push(Action::Start {
                    app: all[id].clone().into(),
                });
            }
        }
        for frozen in [&job, &theirs] {
            let app = frozen.id.clone();
            match period % 4 {
                1 => actions.push(Action::Freeze { app }),
                2 => actions.push(Action::Thaw { app }),
                _ => {}
            }
        }
        if snapshot.apps[&job.id].state == RunState::Running && period % 3 == 0 {
            actions.push(Action::Kill {
                app: job.id.clone(),
            });
        }
        if period % 7 == 6 {
            actions.push(Action::Release {
                app: theirs.id.clone(),
            });
        }
        host.apply(&actions);
        if let (false, Some(pid)) = (told, snapshot.apps[&web.id].main_pid) {
            println!("ready {pid}");
            told = true;
        }
    }
}

fn apps(group: &str) -> (App, App, App) {
    let marker = |name: &str| format!("{group}-{name}");
    let script = ": $0; while :; do sleep 1; done";
    let web = program("web", &["sh", "-c", script, &marker("web")]);
    let job = program("job", &["sh", "-c", script, &marker("job")]);
    let theirs = app("theirs", Binding::Cgroup(format!("{group}-other").into()));
    (web, job, theirs)
}

fn guardian(state_dir: &Path, daemon: &str) {
    let outcome = guard(&Watched {
        daemon: daemon.parse().unwrap(),
        state_dir: state_dir.to_owned(),
        roots: Roots::default(),
        lease: LEASE,
        on_stop: OnStop::Keep,
    })
    .unwrap();
    let complete = match &outcome {
        Guarded::Stopped | Guarded::Relieved => true,
        Guarded::Restored(report) => report.is_complete(),
    };
    assert!(complete, "{outcome:?}");
    println!(
        "{}",
        match outcome {
            Guarded::Stopped => "stopped",
            Guarded::Relieved => "relieved",
            Guarded::Restored(_) => "restored",
        }
    );
}

/// This program in another part; killed with the test, if not before.
struct Part(Child);

impl Part {
    fn new(arguments: &[&str]) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        line
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Programs started with this text as an argument. Their forks, which have it too until they
/// run something else, lead no session.
fn marked(marker: &str) -> Vec<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let has = line
                .split(|byte| *byte == 0)
                .any(|arg| arg == marker.as_bytes());
            (has && is_running(pid) && leads_session(pid)).then_some(pid)
        })
        .collect()
}

fn assert_one_job(group: &str) {
    let jobs = marked(&format!("{group}-job"));
    let stats: Vec<_> = jobs
        .iter()
        .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
        .collect();
    assert!(jobs.len() <= 1, "two jobs: {stats:#?}");
}

fn leads_session(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3);
        session.unwrap() == pid.to_string()
    })
}

struct Theirs(Vec<PathBuf>);

impl Drop for Theirs {
    fn drop(&mut self) {
        for dir in &self.0 {
            let gone = std::fs::remove_dir(dir);
            assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
        }
    }
}

fn crashes() {
    let Some(place) = Place::new("crash") else {
        return;
    };
    let group = place.options.group.display().to_string();
    let state_dir = place.options.state_dir.display().to_string();
    let mut theirs = Theirs(Vec::new());
    let mut originals = BTreeMap::new();
    for controller in [Controller::Cpu, Controller::Memory] {
        let (_, hierarchy) = place.hierarchies.of(controller).unwrap();
        let dir = hierarchy.dir(format!("{group}-other").as_ref());
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            theirs.0.push(dir.clone());
        }
        for file in [
            "cpu.shares",
            "cpu.weight",
            "cpu.cfs_quota_us",
            "cpu.max",
            "memory.limit_in_bytes",
            "memory.max",
            "cgroup.freeze",
        ] {
            let file = dir.join(file);
            if file.exists() {
                originals.insert(file.clone(), text(&file));
            }
        }
    }
    if originals.is_empty() {
        println!("SKIPPED: crash: the controllers are off at the root");
        return;
    }

    let rounds = std::env::var("FOREBAY_CRASHES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(CRASHES);
    let mut random = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos() | 1;
    println!("seed {random}");
    let mut first_pid = None;
    let (mut restored, mut relieved) = (0, 0);
    for round in 0..rounds {
        let mut daemon = Part::new(&["daemon", &state_dir, &group]);
        let mut guardian = Part::new(&["guardian", &state_dir, &daemon.0.id().to_string()]);
        let line = daemon.first_line();
        let pid: u32 = line
            .trim()
            .strip_prefix("ready ")
            .unwrap_or_else(|| panic!("round {round}: {line:?}"))
            .parse()
            .unwrap();
        assert_eq!(
            *first_pid.get_or_insert(pid),
            pid,
            "round {round}: restarted"
        );
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        let life = Duration::from_micros(u64::from(random) % LIFE_MAX_US);
        let end = Instant::now() + life;
        while Instant::now() < end {
            assert_one_job(&group);
        }
        daemon.kill();
        assert!(
            is_running(pid),
            "round {round}: the app died with the daemon"
        );
        assert_one_job(&group);
        if round % 2 == 0 {
            let line = guardian.first_line();
            assert_eq!(line.trim(), "restored", "round {round}");
            assert!(guardian.0.wait().unwrap().success());
            assert_eq!(place.left_behind(), Vec::<PathBuf>::new(), "round {round}");
            for (file, original) in &originals {
                assert_eq!(text(file), *original, "round {round}: {}", file.display());
            }
            assert!(is_running(pid), "round {round}: the guardian ended the app");
            restored += 1;
        } else {
            // The next round's daemon comes back within the lease.
            let (state_dir, group) = (state_dir.clone(), group.clone());
            let mut next = Part::new(&["daemon", &state_dir, &group]);
            assert_eq!(next.first_line().trim(), format!("ready {pid}"));
            assert_eq!(guardian.first_line().trim(), "relieved", "round {round}");
            assert!(guardian.0.wait().unwrap().success());
            next.kill();
            relieved += 1;
        }
    }
    // The last daemon's guardian may not have been asked: Place restores, and ends the apps.
    let report =
        forebay_host::restore(&place.options.state_dir, &place.options.roots, OnStop::Kill)
            .unwrap();
    assert!(report.is_complete(), "{report:?}");
    for (file, original) in &originals {
        assert_eq!(text(file), *original, "{}", file.display());
    }
    wait_for("end of the apps", || {
        marked(&format!("{group}-web")).is_empty() && marked(&format!("{group}-job")).is_empty()
    });
    println!("{rounds} crashes: {restored} restored, {relieved} taken up");
}
