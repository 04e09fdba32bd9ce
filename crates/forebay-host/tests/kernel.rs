//! The live host on the kernel that runs this test. Needs root and writable control groups.

#[cfg(test)]
mod support;

use std::path::Path;

use forebay_core::app::{Binding, Device, IoMax, Match, OnStop, Sink};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::{Ending, RunState};
use forebay_core::units::{Bytes, Limit, MilliCpu};
use forebay_host::mounts::{Controller, Version};
use support::*;

#[test]
fn a_program_is_started_shaped_watched_and_released() {
    let Some(place) = Place::new("started_shaped_watched") else {
        return;
    };
    let mut host = place.open();
    let app = program("web", &["sh", "-c", "while :; do :; done & wait"]);
    let first = host.topology().cpus()[0].id;
    let mut settings = vec![
        Setting::Cpus([first].into_iter().collect()),
        Setting::CpuWeight(500),
        Setting::CpuMax(Limit::At(MilliCpu(500))),
        Setting::MemoryMax(Limit::At(Bytes::mib(256))),
        Setting::PidsMax(Limit::At(64)),
    ];
    settings.retain(|s| host.capabilities().knobs.contains(&s.knob()));
    assert!(settings.len() >= 3, "{:?}", host.capabilities());
    look(&mut host, &[&app], 0);
    let mut actions: Vec<Action> = settings.iter().map(|s| set("web", *s)).collect();
    actions.push(Action::Start {
        app: app.clone().into(),
    });
    apply(&mut host, &actions);

    let cpu = place.dir(Controller::Cpu, "web");
    wait_for("child of sh in the group", || members(&cpu).len() == 2);
    let sample = look_until(&mut host, &app, "use of CPU", |sample| {
        sample.cpu_used.as_ref().is_ok_and(|t| !t.is_zero())
            && sample.memory_used.as_ref().is_ok_and(|b| b.0 > 0)
    });
    assert_eq!(sample.state, RunState::Running);
    assert!(members(&cpu).contains(&sample.main_pid.unwrap()));
    look_until(&mut host, &app, "process count", |s| s.processes == Ok(2));
    look_until(&mut host, &app, "throttling", |s| {
        s.cpu_throttled.as_ref().is_ok_and(|t| !t.is_zero())
    });
    if place.hierarchies.of(Controller::Cpu).unwrap().1.version == Version::V1 {
        assert_eq!(text(&cpu.join("cpu.shares")), "5120");
        assert_eq!(text(&cpu.join("cpu.cfs_quota_us")), "50000");
    }

    let pid = sample.main_pid.unwrap();
    apply(&mut host, &[Action::Release { app: id("web") }]);
    assert!(!cpu.exists());
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    // It runs on outside; taken up again by its strays.
    let sample = look(&mut host, &[&app], 3).apps.remove(&app.id).unwrap();
    assert_eq!(sample.state, RunState::Running);
    assert_eq!(sample.strays.len(), 2, "{sample:?}");
    apply(
        &mut host,
        &[Action::Enter {
            app: id("web"),
            pids: sample.strays.iter().copied().collect(),
        }],
    );
    assert_eq!(members(&cpu).len(), 2);
    apply(&mut host, &[Action::Kill { app: id("web") }]);
    let sample = look_until(&mut host, &app, "end", |s| s.state != RunState::Running);
    assert_eq!(sample.state, RunState::Ended(Ending::Signal(9)));
    let report = host.close(OnStop::Keep).unwrap();
    assert!(report.is_complete(), "{report:?}");
}

#[test]
fn knobs_the_kernel_lacks_are_unsupported() {
    let Some(place) = Place::new("unsupported") else {
        return;
    };
    let mut host = place.open();
    let offered = host.capabilities().knobs.clone();
    look(&mut host, &[&program("web", &["true"])], 0);
    let outcomes = host.apply(&[set("web", Setting::MemoryMin(Bytes::mib(1)))]);
    let expected = if offered.contains(&Knob::MemoryMin) {
        Outcome::Done
    } else {
        Outcome::Unsupported
    };
    assert_eq!(outcomes, [expected]);
}

#[test]
fn a_device_that_vanished_is_named_and_the_group_is_not_given_up() {
    let Some(place) = Place::new("vanished_device") else {
        return;
    };
    let mut host = place.open();
    let is_io_max = |knob: &Knob| matches!(knob, Knob::IoMax(_));
    if !host.capabilities().knobs.iter().any(is_io_max) {
        println!("SKIPPED: a_device_that_vanished_is_named: no limits of devices are offered");
        return;
    }
    let app = program("web", &["sleep", "1000"]);
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    look(&mut host, &[&app], 0);
    let gone = Device {
        major: 250,
        minor: 250,
    };
    let max = IoMax {
        rbps: Limit::At(1 << 20),
        ..IoMax::NONE
    };
    let outcomes = host.apply(&[
        set("web", Setting::IoMax(gone, max)),
        set("web", Setting::CpuWeight(300)),
    ]);
    let told = |why: &String| why.contains("there is no block device 250:250 now");
    assert!(
        matches!(&outcomes[..], [Outcome::Failed(why), Outcome::Done] if told(why)),
        "{outcomes:?}"
    );
    // What went with the device need not be taken away.
    apply(&mut host, &[set("web", Setting::IoMax(gone, IoMax::NONE))]);
    let sample = look(&mut host, &[&app], 1).apps.remove(&app.id).unwrap();
    assert_eq!(sample.state, RunState::Running);
    assert_eq!(sample.found, [], "its group was taken for another one");
    let report = host.close(OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
}

#[test]
fn endings_are_told() {
    let Some(place) = Place::new("endings") else {
        return;
    };
    let mut host = place.open();
    let app = program("job", &["sh", "-c", "exit 7"]);
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    let sample = look_until(&mut host, &app, "end", |s| s.state != RunState::Running);
    assert_eq!(sample.state, RunState::Ended(Ending::Status(7)));
    // Again, in the same group.
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    look_until(&mut host, &app, "end", |s| {
        s.state == RunState::Ended(Ending::Status(7))
    });
    let missing = program("job", &["/no/such/program"]);
    let outcomes = host.apply(&[Action::Start {
        app: missing.into(),
    }]);
    assert!(
        matches!(&outcomes[0], Outcome::Failed(why) if why.contains("/no/such/program")),
        "{outcomes:?}"
    );
}

#[test]
fn a_second_daemon_is_refused() {
    let Some(place) = Place::new("second_daemon") else {
        return;
    };
    let _first = place.open();
    let error = forebay_host::LinuxHost::open(place.options.clone()).unwrap_err();
    assert_eq!(error.kind(), forebay_host::ErrorKind::Locked);
}

#[test]
fn a_daemon_that_comes_back_takes_its_apps_up() {
    let Some(place) = Place::new("comes_back") else {
        return;
    };
    let mut host = place.open();
    let app = program("web", &["sleep", "1000"]);
    apply(
        &mut host,
        &[
            set("web", Setting::CpuWeight(300)),
            Action::Start {
                app: app.clone().into(),
            },
        ],
    );
    let pid = look(&mut host, &[&app], 1).apps[&app.id].main_pid.unwrap();
    // As after kill -9: nothing is put back.
    drop(host);
    let mut host = place.open();
    let sample = look(&mut host, &[&app], 1).apps.remove(&app.id).unwrap();
    assert_eq!(sample.state, RunState::Running);
    assert_eq!(sample.main_pid, Some(pid));
    assert!(
        sample.found.contains(&Setting::CpuWeight(300)),
        "{:?}",
        sample.found
    );
    assert!(look(&mut host, &[&app], 2).apps[&app.id].found.is_empty());
    // A clean stop that keeps it, and a start after that.
    let report = host.close(OnStop::Keep).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(place.left_behind(), Vec::<std::path::PathBuf>::new());
    let mut host = place.open();
    let sample = look(&mut host, &[&app], 1).apps.remove(&app.id).unwrap();
    assert_eq!(sample.main_pid, Some(pid));
    assert_eq!(sample.strays.iter().copied().collect::<Vec<_>>(), [pid]);
    let report = host.close(OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
    wait_for("end of sleep", || !is_running(pid));
}

/// Ends a process that nobody else ends, whatever becomes of the test.
struct Leftover(u32);

impl Drop for Leftover {
    fn drop(&mut self) {
        end(self.0);
    }
}

#[test]
fn a_released_program_is_not_taken_for_another() {
    let Some(place) = Place::new("released_program") else {
        return;
    };
    let mut host = place.open();
    let first = program("naps", &["sleep", "1001"]);
    let second = program("naps", &["sleep", "1002"]);
    apply(
        &mut host,
        &[Action::Start {
            app: first.clone().into(),
        }],
    );
    let pid = |host: &mut forebay_host::LinuxHost, app| {
        look(host, &[app], 1)
            .apps
            .remove(&id("naps"))
            .unwrap()
            .main_pid
    };
    let old = Leftover(pid(&mut host, &first).unwrap());
    apply(&mut host, &[Action::Release { app: id("naps") }]);
    // The same command again is the same app.
    assert_eq!(pid(&mut host, &first), Some(old.0));

    let seen = look(&mut host, &[&second], 1)
        .apps
        .remove(&id("naps"))
        .unwrap();
    assert_eq!(seen.state, RunState::Absent, "{seen:?}");
    assert!(seen.strays.is_empty(), "{seen:?}");
    apply(
        &mut host,
        &[Action::Start {
            app: second.clone().into(),
        }],
    );
    let new = pid(&mut host, &second).unwrap();
    assert_eq!(command_of(new), "sleep 1002 ");
    assert!(is_running(old.0), "what was released is nobody's to end");
    assert_eq!(members(&place.dir(Controller::Cpu, "naps")), [new]);

    // Nor after a stop that keeps programs, by a daemon of another configuration.
    let new = Leftover(new);
    host.close(OnStop::Keep).unwrap();
    let mut host = place.open();
    let seen = look(&mut host, &[&first], 1)
        .apps
        .remove(&id("naps"))
        .unwrap();
    assert_eq!((seen.state, seen.main_pid), (RunState::Absent, None));
    assert_eq!(host.known_apps(), []);
    host.close(OnStop::Kill).unwrap();
    assert!(is_running(old.0) && is_running(new.0));
}

#[test]
fn a_program_in_its_slice_stays_when_its_command_changes() {
    let Some(place) = Place::new("command_changes") else {
        return;
    };
    let mut host = place.open();
    let before = program("naps", &["sleep", "1001"]);
    let after = program("naps", &["sleep", "1002"]);
    apply(
        &mut host,
        &[Action::Start {
            app: before.clone().into(),
        }],
    );
    let pid = look(&mut host, &[&before], 1).apps[&before.id].main_pid;
    // As after kill -9, with a configuration that was changed meanwhile.
    drop(host);
    let mut host = place.open();
    let seen = look(&mut host, &[&after], 1)
        .apps
        .remove(&after.id)
        .unwrap();
    assert_eq!((seen.state, seen.main_pid), (RunState::Running, pid));
    apply(&mut host, &[Action::Kill { app: id("naps") }]);
    look_until(&mut host, &after, "end", |s| s.state != RunState::Running);
    apply(
        &mut host,
        &[Action::Start {
            app: after.clone().into(),
        }],
    );
    let now = look(&mut host, &[&after], 1).apps[&after.id].main_pid;
    assert_eq!(command_of(now.unwrap()), "sleep 1002 ");
}

#[test]
fn a_group_of_others_is_shaped_and_put_back() {
    let Some(place) = Place::new("group_of_others") else {
        return;
    };
    // A group that somebody else made, outside of ours.
    let name = format!("{}-other", place.options.group.display());
    let (_, hierarchy) = place.hierarchies.of(Controller::Cpu).unwrap();
    let theirs = Theirs(hierarchy.dir(name.as_ref()));
    std::fs::create_dir(&theirs.0).unwrap();
    let file = match hierarchy.version {
        Version::V1 => theirs.0.join("cpu.shares"),
        Version::V2 => theirs.0.join("cpu.weight"),
    };
    if !file.exists() {
        println!("SKIPPED: group_of_others: the cpu controller is off at the root");
        return;
    }
    let original = text(&file);
    let app = app("theirs", Binding::Cgroup(name.into()));
    let mut host = place.open();
    let sample = look(&mut host, &[&app], 1).apps.remove(&app.id).unwrap();
    assert_eq!(sample.state, RunState::Absent, "nobody is in it");
    assert!(sample.found.contains(&Setting::CpuWeight(100)));
    apply(&mut host, &[set("theirs", Setting::CpuWeight(700))]);
    assert_ne!(text(&file), original);

    // Somebody else writes: noticed, and left alone in the end.
    let in_force = [(
        app.id.clone(),
        [Setting::CpuWeight(700)].into_iter().collect(),
    )]
    .into();
    let foreign = |host: &mut forebay_host::LinuxHost| {
        (0..10).find_map(|period| {
            let snapshot = look_with(host, &[&app], period, &in_force);
            let foreign = &snapshot.apps[&app.id].foreign;
            foreign.get(&Knob::CpuWeight).cloned()
        })
    };
    assert_eq!(foreign(&mut host), None);
    std::fs::write(&file, "200").unwrap();
    assert_eq!(foreign(&mut host).as_deref(), Some("200"));
    let mut place_host = host;
    apply(
        &mut place_host,
        &[Action::Release {
            app: app.id.clone(),
        }],
    );
    assert_eq!(text(&file), "200");

    // Without that, the original comes back, also after a crash.
    std::fs::write(&file, &original).unwrap();
    look(&mut place_host, &[&app], 1);
    apply(&mut place_host, &[set("theirs", Setting::CpuWeight(700))]);
    drop(place_host);
    let report =
        forebay_host::restore(&place.options.state_dir, &place.options.roots, OnStop::Keep)
            .unwrap();
    assert_eq!(report.knobs, 1, "{report:?}");
    assert_eq!(text(&file), original);
}

struct Theirs(std::path::PathBuf);

impl Drop for Theirs {
    fn drop(&mut self) {
        assert!(std::fs::remove_dir(&self.0).is_ok() || std::thread::panicking());
    }
}

#[test]
fn matching_processes_are_followed_and_sent_home() {
    let Some(place) = Place::new("match") else {
        return;
    };
    let marker = format!("{}-stray", place.options.group.display());
    let mut stray = Stray::new(&marker);
    // Wherever this test runs is where its children come from.
    let home = place.home(Controller::Cpu);
    assert!(members(&home).contains(&stray.pid()));
    let mut host = place.open();
    let app = app(
        "theirs",
        Binding::Match(Match {
            executable: None,
            command_line: Some(marker),
        }),
    );
    let pid = stray.pid();
    let sample = look_until(&mut host, &app, "stray", |s| s.strays.contains(&pid));
    apply(
        &mut host,
        &[Action::Enter {
            app: app.id.clone(),
            pids: sample.strays.into_iter().collect(),
        }],
    );
    let dir = place.dir(Controller::Cpu, "theirs");
    assert_eq!(members(&dir), [pid]);
    // A child that it forks is born inside, and goes where its parent came from.
    stray.fork();
    wait_for("child", || members(&dir).len() == 2);
    let child = members(&dir)
        .into_iter()
        .find(|other| *other != pid)
        .unwrap();
    let sample = look_until(&mut host, &app, "calm", |s| s.strays.is_empty());
    assert_eq!(sample.state, RunState::Running);
    apply(
        &mut host,
        &[Action::Release {
            app: app.id.clone(),
        }],
    );
    let home = members(&home);
    assert!(home.contains(&pid) && home.contains(&child), "{home:?}");
}

#[test]
fn weights_outlast_idleness() {
    let Some(place) = Place::new("weights") else {
        return;
    };
    let mut host = place.open();
    if !host.capabilities().knobs.contains(&Knob::CpuIdle) {
        println!("SKIPPED: weights: no cpu.idle");
        return;
    }
    let version = place.hierarchies.of(Controller::Cpu).unwrap().1.version;
    let weight = |dir: &std::path::Path| match version {
        Version::V1 => (text(&dir.join("cpu.shares")).parse::<u64>().unwrap() * 100).div_ceil(1024),
        Version::V2 => text(&dir.join("cpu.weight")).parse().unwrap(),
    };
    let web = program("web", &["sleep", "1000"]);
    let job = program("job", &["sleep", "1000"]);
    apply(
        &mut host,
        &[
            Action::Start { app: web.into() },
            Action::Start { app: job.into() },
            set("web", Setting::CpuWeight(400)),
            set("job", Setting::CpuWeight(300)),
        ],
    );
    assert_eq!(weight(&place.dir(Controller::Cpu, "web")), 400);
    apply(
        &mut host,
        &[
            set("job", Setting::CpuIdle(true)),
            set("job", Setting::CpuWeight(200)),
        ],
    );
    apply(&mut host, &[set("job", Setting::CpuIdle(false))]);
    assert_eq!(weight(&place.dir(Controller::Cpu, "job")), 200);
    // A burst that no longer fits its quota gives way.
    apply(
        &mut host,
        &[
            set("job", Setting::CpuMax(Limit::At(MilliCpu(1000)))),
            set("job", Setting::CpuBurst(MilliCpu(900))),
            set("job", Setting::CpuMax(Limit::At(MilliCpu(500)))),
        ],
    );
}

#[test]
fn a_memory_limit_below_use_does_not_hold_up_the_period() {
    let Some(place) = Place::new("memory_limit") else {
        return;
    };
    let mut host = place.open();
    if !host.capabilities().knobs.contains(&Knob::MemoryMax) {
        println!("SKIPPED: memory_limit: no memory controller");
        return;
    }
    // File pages, which can be reclaimed: written, then kept clean by a sync.
    let dir = tempfile::tempdir_in(".").unwrap();
    let file = dir.path().join("pages");
    let script = format!(
        "dd if=/dev/zero of={0} bs=1M count=200 2>/dev/null && sync {0} && sleep 1000",
        file.display()
    );
    let app = program("web", &["sh", "-c", &script]);
    look(&mut host, &[&app], 0);
    let mut app = app;
    if let Binding::Exec(exec) = &mut app.binding {
        exec.directory = Some(std::env::current_dir().unwrap());
    }
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    look_until(&mut host, &app, "pages", |s| {
        s.memory_used.as_ref().is_ok_and(|b| *b > Bytes::mib(190))
    });
    let limit = set("web", Setting::MemoryMax(Limit::At(Bytes::mib(64))));
    let mut longest = std::time::Duration::ZERO;
    wait_for("limit", || {
        let start = std::time::Instant::now();
        let outcomes = host.apply(std::slice::from_ref(&limit));
        longest = longest.max(start.elapsed());
        outcomes == [Outcome::Done]
    });
    println!("longest write: {longest:?}");
    look_until(&mut host, &app, "less memory", |s| {
        s.memory_used.as_ref().is_ok_and(|b| *b <= Bytes::mib(64))
    });
}

#[test]
fn a_memory_limit_that_cannot_be_kept_ends_nobody() {
    let Some(place) = Place::new("no_room") else {
        return;
    };
    let mut host = place.open();
    if !host.capabilities().knobs.contains(&Knob::MemoryMax) {
        println!("SKIPPED: no_room: no memory controller");
        return;
    }
    // Anonymous pages: `tail` holds what it has to print, and nobody reads it.
    let script = "head -c 80M /dev/zero | tail -c 80M | sleep 1000";
    let app = program("web", &["sh", "-c", script]);
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    look_until(&mut host, &app, "pages", |s| {
        s.memory_used.as_ref().is_ok_and(|b| *b > Bytes::mib(80))
    });
    let limit = Bytes::mib(32);
    let mut last = None;
    wait_for("answer", || {
        last = host
            .apply(&[set("web", Setting::MemoryMax(Limit::At(limit)))])
            .pop();
        !matches!(&last, Some(Outcome::Failed(why)) if why.contains("making room"))
    });
    let sample = look(&mut host, &[&app], 1).apps.remove(&app.id).unwrap();
    assert_eq!(sample.state, RunState::Running);
    match last {
        // With swap there is room after all.
        Some(Outcome::Done) => assert!(sample.memory_used.unwrap() <= limit),
        other => assert!(sample.memory_used.unwrap() > limit, "{other:?}"),
    }
    let dir = place.dir(Controller::Memory, "web");
    let holder = |pid: &u32| text(Path::new(&format!("/proc/{pid}/comm"))) == "tail";
    assert!(members(&dir).iter().any(holder), "{:?}", members(&dir));
}

#[test]
fn a_program_runs_as_its_user_with_its_own_output() {
    let Some(place) = Place::new("user") else {
        return;
    };
    let mut host = place.open();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut exec = exec(&["sh", "-c", "id -u; pwd; echo $GREETING; ulimit -n; exit 0"]);
    exec.user = Some("nobody".to_owned());
    exec.directory = Some("/usr".into());
    exec.stdout = Some(Sink::File(out.clone()));
    exec.environment
        .insert("GREETING".to_owned(), "hello".to_owned());
    let app = app("web", Binding::Exec(exec));
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    look_until(&mut host, &app, "end", |s| {
        s.state == RunState::Ended(Ending::Status(0))
    });
    let said = text(&out);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["65534", "/usr", "hello"]);
}

#[test]
fn a_stop_that_ends_programs_asks_them_first() {
    let Some(place) = Place::new("ask_first") else {
        return;
    };
    let mut host = place.open();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut exec = exec(&[
        "sh",
        "-c",
        "trap 'echo bye; exit 0' TERM; echo up; sleep 1000 & wait",
    ]);
    exec.stdout = Some(Sink::File(out.clone()));
    let polite = app("polite", Binding::Exec(exec));
    let deaf_out = dir.path().join("deaf");
    let script = format!("trap '' TERM; echo up > {}; sleep 1000", deaf_out.display());
    let deaf = program("deaf", &["sh", "-c", &script]);
    apply(
        &mut host,
        &[
            Action::Start { app: polite.into() },
            Action::Start {
                app: deaf.clone().into(),
            },
        ],
    );
    for out in [&out, &deaf_out] {
        wait_for("output", || out.exists() && text(out) == "up");
    }
    let pid = look(&mut host, &[&deaf], 1).apps[&deaf.id]
        .main_pid
        .unwrap();
    let report = host.close(OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(text(&out), "up\nbye");
    assert!(!is_running(pid));
}

#[test]
fn a_program_ended_with_the_daemon_is_not_known_to_the_next() {
    let Some(place) = Place::new("ended with the daemon") else {
        return;
    };
    let mut host = place.open();
    let web = program("web", &["sleep", "1000"]);
    apply(
        &mut host,
        &[Action::Start {
            app: web.clone().into(),
        }],
    );
    assert!(host.close(OnStop::Kill).unwrap().is_complete());

    let mut host = place.open();
    let sample = look(&mut host, &[&web], 0).apps.remove(&web.id).unwrap();
    assert_eq!(sample.state, RunState::Absent);
}

#[test]
fn a_swap_ceiling_of_nothing_keeps_an_app_out_of_swap() {
    let Some(place) = Place::new("swap_ceiling") else {
        return;
    };
    let mut host = place.open();
    let swap = text(Path::new("/proc/swaps"));
    if !host.capabilities().knobs.contains(&Knob::MemorySwapMax) || swap.lines().count() < 2 {
        println!("SKIPPED: swap_ceiling: no memory.swap.max, or no swap");
        return;
    }
    let hog = "x=$(head -c 33554432 /dev/zero | tr '\\0' x); sleep 1000";
    let app = program("hog", &["sh", "-c", hog]);
    let none = Setting::MemorySwapMax(Limit::At(Bytes(0)));
    apply(
        &mut host,
        &[
            set("hog", none),
            Action::Start {
                app: app.clone().into(),
            },
        ],
    );
    look_until(&mut host, &app, "32 MiB in use", |s| {
        s.memory_used
            .as_ref()
            .is_ok_and(|used| *used > Bytes::mib(32))
    });
    let dir = place.dir(Controller::Memory, "hog");
    let in_swap = || -> u64 { text(&dir.join("memory.swap.current")).parse().unwrap() };
    let reclaim = || std::fs::write(dir.join("memory.reclaim"), "16M");
    assert!(reclaim().is_err(), "nothing of it can be reclaimed");
    assert_eq!(in_swap(), 0);
    apply(&mut host, &[set("hog", Setting::MemorySwapMax(Limit::Max))]);
    wait_for("memory in swap", || {
        // Less than asked for is an error too.
        reclaim().ok();
        in_swap() > 0
    });
}

#[test]
fn a_zswap_ceiling_of_nothing_keeps_an_app_out_of_zswap() {
    let Some(place) = Place::new("zswap_ceiling") else {
        return;
    };
    let mut host = place.open();
    let enabled = std::fs::read_to_string("/sys/module/zswap/parameters/enabled");
    let swap = text(Path::new("/proc/swaps"));
    if !host.capabilities().knobs.contains(&Knob::MemoryZswapMax)
        || swap.lines().count() < 2
        || enabled.is_ok_and(|enabled| enabled.trim() != "Y")
    {
        println!("SKIPPED: zswap_ceiling: no memory.zswap.max, no swap, or zswap is off");
        return;
    }
    // Pages of one repeated word would be kept without being compressed, and cost nothing.
    let hog = "x=$(yes compressible | head -c 33554432); sleep 1000";
    let app = program("hog", &["sh", "-c", hog]);
    let none = Setting::MemoryZswapMax(Limit::At(Bytes(0)));
    apply(
        &mut host,
        &[
            set("hog", none),
            Action::Start {
                app: app.clone().into(),
            },
        ],
    );
    look_until(&mut host, &app, "32 MiB in use", |s| {
        s.memory_used
            .as_ref()
            .is_ok_and(|used| *used > Bytes::mib(32))
    });
    let dir = place.dir(Controller::Memory, "hog");
    let held = |file: &str| -> u64 { text(&dir.join(file)).parse().unwrap() };
    let swap_out = |what: &str, file: &str| {
        wait_for(what, || {
            // Less than asked for is an error too.
            std::fs::write(dir.join("memory.reclaim"), "4M").ok();
            held(file) > 0
        });
    };
    swap_out("memory on the swap device", "memory.swap.current");
    assert_eq!(held("memory.zswap.current"), 0);
    apply(
        &mut host,
        &[set("hog", Setting::MemoryZswapMax(Limit::Max))],
    );
    swap_out("memory in zswap", "memory.zswap.current");
}
