//! Programs that Forebay starts: as whom, where, again after an end, and inside their slice.

use std::fs;

use crate::place::{Knob, Place, eventually, groups_of, is_running, sleepers, text};

#[test]
fn a_program_runs_as_it_was_described() {
    let Some(mut place) = Place::new("a_program_runs_as_it_was_described") else {
        return;
    };
    let directory = place.path("work");
    fs::create_dir(&directory).unwrap();
    let script = format!(
        "id -u; id -g; pwd; echo $FLAVOUR; echo trouble >&2; exec sleep {}",
        place.seconds(1)
    );
    place.configure(&format!(
        "[apps.a]\nexec = [\"sh\", \"-c\", \"{script}\"]\nuser = \"65534\"\ngroup = \"65533\"\n\
         directory = {}\nenvironment = {{ FLAVOUR = \"mint\" }}\nstdout = {}\nstderr = {}\n",
        place.quoted("work"),
        place.quoted("out"),
        place.quoted("err")
    ));
    place.start();
    let pid = place.await_pid("a");
    eventually("it sleeps", || sleepers(&place.seconds(1)) == [pid]);
    let said = format!("65534\n65533\n{}\nmint", directory.display());
    assert_eq!(text(&place.path("out")), said);
    assert_eq!(text(&place.path("err")), "trouble");
    let members = text(&place.knob("a", Knob::Procs));
    assert_eq!(members, pid.to_string());
    place.stop_well();
    assert!(is_running(pid), "on_stop is keep");
    assert!(!groups_of(pid).contains(&place.group));
}

#[test]
fn programs_are_started_again_by_their_policy_and_wait_longer_each_time() {
    let name = "programs_are_started_again_by_their_policy_and_wait_longer_each_time";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let app = |name: &str, restart: &str, status: u32| {
        format!(
            "[apps.{name}]\nexec = [\"sh\", \"-c\", \"exit {status}\"]\nrestart = \"{restart}\"\n"
        )
    };
    place.configure(&[app("always", "always", 0), app("never", "never", 1)].concat());
    let text = fs::read_to_string(place.path("forebay.toml")).unwrap();
    let more = [
        app("failing", "on-failure", 7),
        app("done", "on-failure", 0),
    ]
    .concat();
    fs::write(place.path("forebay.toml"), text + &more).unwrap();
    place.start();
    for name in ["always", "failing"] {
        place.await_app(name, "started three times", |app| app["starts"] == 3);
        let events = place.json(&["events", "--app", name]);
        let starts: Vec<u64> = events["events"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["kind"] == "started")
            .map(|event| event["time_unix_ms"].as_u64().unwrap())
            .collect();
        let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps[0] >= 950 && gaps[1] >= 1950, "{name}: {gaps:?}");
    }
    for (name, status) in [("never", "status 1"), ("done", "status 0")] {
        let app = place.app(name);
        assert_eq!(app["state"], "ended", "{app:#}");
        assert_eq!(app["ending"], status);
        assert_eq!(app["starts"], 1);
    }
    place.stop_well();
}

#[test]
fn a_child_that_leaves_its_session_stays_in_the_slice() {
    let Some(mut place) = Place::new("a_child_that_leaves_its_session_stays_in_the_slice") else {
        return;
    };
    let (main, child) = (place.seconds(1), place.seconds(2));
    let script = format!("setsid sh -c 'sleep {child} & exit 0'; exec sleep {main}");
    place.configure(&format!(
        "[apps.a]\nclass = \"batch\"\nexec = [\"sh\", \"-c\", \"{script}\"]\nrestart = \"never\"\n"
    ));
    place.start();
    let pid = place.await_pid("a");
    eventually("both sleep", || {
        sleepers(&main).len() == 1 && sleepers(&child).len() == 1
    });
    let orphan = sleepers(&child)[0];
    assert_eq!(groups_of(orphan), groups_of(pid), "the child escaped");
    assert!(groups_of(orphan).contains(&place.group));
    // It stays there when the program itself is gone.
    crate::place::signal(pid, rustix::process::Signal::KILL);
    place.await_event("a", "ended");
    assert!(groups_of(orphan).contains(&place.group));
    crate::place::signal(orphan, rustix::process::Signal::KILL);
    place.stop_well();
}

#[test]
fn a_child_that_outlives_its_program_ends_with_the_slice() {
    let Some(mut place) = Place::new("a_child_that_outlives_its_program_ends_with_the_slice")
    else {
        return;
    };
    let child = place.seconds(1);
    place.configure(&format!(
        "[policy]\non_stop = \"kill\"\n[apps.a]\nexec = [\"sh\", \"-c\", \"sleep {child} & exit 0\"]\nrestart = \"never\"\n"
    ));
    place.start();
    place.await_app("a", "ended", |app| app["state"] == "ended");
    let orphan = sleepers(&child)[0];
    let status = place.stop();
    let survived = is_running(orphan);
    crate::place::signal(orphan, rustix::process::Signal::KILL);
    assert!(
        status.success() && !survived,
        "{status}, survived: {survived}"
    );
}

#[test]
fn floors_and_ceilings_are_in_the_kernel() {
    let Some(mut place) = Place::new("floors_and_ceilings_are_in_the_kernel") else {
        return;
    };
    place.configure(&format!(
        "[apps.a]\nexec = [\"sleep\", \"{}\"]\nceiling = {{ cpu = 0.5, memory = \"256MiB\", pids = 77 }}\nfloor = {{ memory = \"16MiB\" }}\n",
        place.seconds(1)
    ));
    place.start();
    place.await_app("a", "limited", |app| {
        app["slice"]["cpu_max_cores"] == 0.5
            && app["slice"]["memory_max_bytes"] == 256 << 20
            && app["slice"]["pids_max"] == 77
    });
    let quota = text(&place.knob("a", Knob::Quota));
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    assert_eq!(
        text(&place.knob("a", Knob::MemoryMax)),
        (256 << 20).to_string()
    );
    assert_eq!(text(&place.knob("a", Knob::PidsMax)), "77");
    let min = place.knob("a", Knob::MemoryMin);
    if min.exists() {
        assert_eq!(text(&min), (16 << 20).to_string());
    }
    place.json(&["set", "a", "ceiling.pids=88", "ceiling.cpu=max"]);
    place.await_app("a", "changed", |app| app["slice"]["pids_max"] == 88);
    eventually("the kernel has it", || {
        text(&place.knob("a", Knob::PidsMax)) == "88"
    });
    let free = |quota: String| quota == "-1" || quota.starts_with("max");
    eventually("the quota is lifted", || {
        free(text(&place.knob("a", Knob::Quota)))
    });
    place.stop_well();
}

#[test]
fn a_class_is_changed_while_the_program_runs() {
    let Some(mut place) = Place::new("a_class_is_changed_while_the_program_runs") else {
        return;
    };
    place.configure(&format!(
        "[apps.a]\nclass = \"batch\"\nexec = [\"sleep\", \"{}\"]\n[apps.b]\nclass = \"standard\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1),
        place.seconds(2)
    ));
    place.start();
    let pid = place.await_pid("a");
    let idle = place.knob("a", Knob::Idle);
    if idle.exists() {
        eventually("batch is idle class", || text(&idle) == "1");
    }
    place.json(&["set", "a", "class=critical"]);
    let app = place.await_app("a", "critical", |app| {
        app["class"] == "critical" && app["reason"]["exclusive_cpus"] != ""
    });
    let own = app["reason"]["exclusive_cpus"].as_str().unwrap().to_owned();
    if idle.exists() {
        eventually("critical is not", || text(&idle) == "0");
    }
    let others = place.knob("b", Knob::Cpus);
    eventually("nobody else has its CPU", || {
        let others = text(&others);
        !others.is_empty() && !others.split(',').any(|cpu| cpu == own)
    });
    assert_eq!(place.await_pid("a"), pid);
    assert_eq!(place.app("a")["starts"], 1);
    place.stop_well();
}
