//! Processes that move between daemons with their memory: hosts with process numbers, mounts, state directories
//! and groups of their own on one machine, a real etcd, a real CRIU, and a program that keeps nothing but in memory.
//!
//! `FOREBAY_TEST_MEMORY` says how many MiB that is where its pause is measured.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::fronts::free_port;
use crate::memory_fleet::{Fleet, MEMORY, index, killed_at, other, owner};
use crate::place::{EXE, eventually, signal};

#[test]
fn a_process_moves_with_its_memory_to_another_daemon() {
    let asked = std::env::var("FOREBAY_TEST_MEMORY").ok();
    let memory = asked.map_or(MEMORY, |text| text.parse().unwrap());
    let Some(mut fleet) = Fleet::start_with("a process moves with its memory", memory, "") else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");

    // A question does not touch it, and says how long it would stand.
    let asked = fleet
        .place(from)
        .ask(&["move", "pages", "--to", to, "--dry-run"]);
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(asked.status.success(), "{asked:?}");
    assert!(said.contains("it would stand still for about"), "{said}");
    assert_eq!(fleet.place(from).await_pid("pages"), pid);

    let before = fleet.longest_silence();
    let moved = fleet.place(from).json(&["move", "pages", "--to", to]);
    println!("{moved}");
    fleet.goes_on();
    let after = fleet.longest_silence();
    println!("it was silent for {after} ms at most, {before} ms before it moved");
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert!(
        moved["expected_pause_seconds"].as_f64().unwrap() > 0.0,
        "{moved}"
    );
    assert!(
        moved["sent_bytes"].as_u64().unwrap() >= u64::from(memory) << 20,
        "{moved}"
    );
    assert_eq!(fleet.await_owner(), to);
    assert_eq!(
        fleet.place(to).await_pid("pages"),
        pid,
        "it is the same process"
    );
    let told = fleet.place(to).await_event("pages", "move");
    assert!(told.contains(&format!("came from {from}")), "{told}");
    fleet.await_clean();

    // The daemon that took it in ends, and the next one knows it: it goes on, and no other is started.
    fleet.crash(index(to));
    fleet.begin(index(to));
    assert_eq!(fleet.await_owner(), to);
    assert_eq!(fleet.place(to).await_pid("pages"), pid);

    // And back, where its number is free again.
    let moved = fleet.place(to).json(&["move", "pages", "--to", from]);
    println!("{moved}");
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    fleet.await_clean();

    // It is the app's program: where it ends, its policy has it started again.
    let program = fleet.program();
    fs::remove_file(&fleet.witness).unwrap();
    signal(program, Signal::KILL);
    fleet
        .place(from)
        .await_app("pages", "started again", |app| {
            app["state"] == "running" && app["main_pid"] != pid
        });
}

/// Whatever daemon ends, one process goes on from where it stood.
#[test]
fn a_daemon_that_is_killed_while_memory_moves_leaves_one_process() {
    let Some(mut fleet) = Fleet::start("a daemon is killed while memory moves") else {
        return;
    };
    let mut owner = fleet.await_owner();
    let stages = ["copying", "freezing", "sending", "committing", "awaiting"];
    for stage in stages {
        for is_source in [true, false] {
            let kills = if is_source { owner } else { other(owner) };
            owner = killed_at(&mut fleet, owner, kills, stage);
        }
    }
    let to = other(owner);
    let moved = fleet.place(owner).json(&["move", "pages", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert_eq!(fleet.await_owner(), to);
    fleet.await_clean();
}

/// A target that cannot make it leaves it where it is, and it goes on.
#[test]
fn a_process_that_its_target_cannot_make_goes_on_where_it_was() {
    let Some(mut fleet) = Fleet::start("a target cannot make a process") else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");
    fleet.break_criu(to);
    fleet.await_way(from, to);
    fleet
        .place(from)
        .fails(&["move", "pages", "--to", to], 1, &["stays", "restore"]);
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    fleet.await_rest();
    fleet.await_clean();
}

/// What stands against a move is told, all of it, before anything is touched.
#[test]
fn a_process_that_cannot_go_along_is_refused_before_it_is_touched() {
    let port = free_port();
    let exe = EXE.as_str();
    let quiet = "stdout = \"/dev/null\"\nstderr = \"/dev/null\"\nmove = { mode = \"checkpoint\" }";
    let more = format!(
        "[apps.family]\nexec = [\"/bin/sh\", \"-c\", \"sleep 100000 & wait\"]\n{quiet}\n\
         [apps.talks]\nexec = [\"{exe}\", \"workload\", \"pages\", \"--memory\", \"1\", \"--rate\", \"0\", \"--listen\", \
         \"127.0.0.1:{port}\"]\n{quiet}\n"
    );
    let Some(fleet) = Fleet::start_with("a process that cannot go along", MEMORY, &more) else {
        return;
    };
    let refused = |app: &str, words: &[&str]| {
        let from = owner(&fleet, app);
        let place = fleet.place(from);
        let pid = place.await_pid(app);
        for way in [&["--dry-run"][..], &[]] {
            let words: Vec<&str> = words.iter().copied().chain([app]).collect();
            let mut asked = vec!["move", app, "--to", other(from)];
            asked.extend(way);
            place.fails(&asked, 1, &words);
        }
        assert_eq!(place.await_pid(app), pid);
    };
    refused("family", &["1 child process(es)"]);
    let mut client = None;
    eventually("it listens", || {
        client = std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        client.is_some()
    });
    refused("talks", &["1 TCP connection(s)", "move.connections"]);
}

#[test]
fn a_process_moves_with_the_files_that_it_has_open() {
    let test = "a process moves with its files";
    let Some(mut fleet) = Fleet::start_with_files(test, &[], |_| String::new()) else {
        return;
    };
    let mut owner = fleet.await_owner();
    let to = other(owner);
    let pid = fleet.place(owner).await_pid("pages");
    let mut load = vec![0; 6 << 20];
    fastrand::Rng::new().fill(&mut load);
    fs::create_dir(fleet.data(owner).join("deep")).unwrap();
    fs::write(fleet.data(owner).join("deep/load"), &load).unwrap();
    std::os::unix::fs::symlink("deep/load", fleet.data(owner).join("link")).unwrap();
    fs::write(fleet.data(to).join("stale"), "of before").unwrap();
    fs::write(fleet.data(to).join("journal"), "of before").unwrap();

    let moved = fleet.place(owner).json(&["move", "pages", "--to", to]);
    println!("{moved}");
    assert_eq!(moved["stage"], "moved", "{moved}");
    let left = fleet.journaled(owner);
    assert!(fleet.writes_on(to) >= left, "it goes on behind what it had");
    assert_eq!(fleet.await_owner(), to);
    assert_eq!(fleet.place(to).await_pid("pages"), pid);
    assert_eq!(fs::read(fleet.data(to).join("link")).unwrap(), load);
    assert!(!fleet.data(to).join("stale").exists());
    assert_eq!(fleet.journaled(owner), left, "nobody writes at the source");
    fleet.await_clean();
    owner = to;

    // Whatever daemon ends, its files are where it is.
    for (stage, is_source) in [("sending", true), ("sending", false), ("awaiting", false)] {
        let kills = if is_source { owner } else { other(owner) };
        owner = killed_at(&mut fleet, owner, kills, stage);
        assert_eq!(fleet.place(owner).await_pid("pages"), pid);
        fleet.writes_on(owner);
        assert_eq!(fs::read(fleet.data(owner).join("link")).unwrap(), load);
    }
    fleet.await_clean();
    for (_, place) in &fleet.hosts {
        let left = fs::read_dir(place.path("srv")).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["data"], "nothing is left beside it");
    }
}

/// What somebody else writes meanwhile is not in the copy: it stays where it is.
#[test]
fn a_file_that_changes_while_its_process_stands_turns_the_move_back() {
    let test = "a file changes while its process stands";
    let Some(fleet) = Fleet::start_with_files(test, &[], |_| String::new()) else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");
    fs::write(fleet.data(to).join("stale"), "of before").unwrap();
    let foreign = fleet.data(from).join("foreign");
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                fs::write(&foreign, number.to_string()).unwrap();
            }
        });
        let asked = fleet.place(from).ask(&["move", "pages", "--to", to]);
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert_eq!(asked.status.code(), Some(1), "{asked:?}");
        assert!(
            said.contains("foreign was changed while pages stood still"),
            "{said}"
        );
    });
    fleet.await_rest();
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    fleet.writes_on(from);
    fleet.await_clean();
    eventually("what was there is there again", || {
        let names = fs::read_dir(fleet.data(to)).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names == ["stale"]
    });

    // When nobody does, it moves.
    let moved = fleet.place(from).json(&["move", "pages", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    fleet.writes_on(to);
}

/// A file that stays behind, and a disk that is full, are told before anything is touched.
#[test]
fn a_target_without_a_file_or_without_room_for_them_is_refused() {
    let exe = EXE.as_str();
    let quiet = "stdout = \"/dev/null\"\nstderr = \"/dev/null\"\n";
    let app = |name: &str, keys: &str, journal: &Path| {
        format!(
            "[apps.{name}]\n{quiet}exec = [\"{exe}\", \"workload\", \"pages\", \"--memory\", \"1\", \"--rate\", \
             \"0\", \"--witness\", \"/dev/null\", \"--journal\", \"{}\"]\nmove = {{ mode = \"checkpoint\"{keys} \
             }}\n",
            journal.display()
        )
    };
    let more = |shared: &Path| {
        let small = shared.join("small/own");
        let files = format!(", files = [\"{}\"]", small.display());
        let behind = app("behind", "", &shared.join("behind/journal"));
        behind + &app("small", &files, &small.join("journal"))
    };
    let test = "a target without a file or room";
    let Some(fleet) = Fleet::start_with_files(test, &["behind", "small/own"], more) else {
        return;
    };
    let refused = |app: &str, words: &[&str]| {
        let from = owner(&fleet, app);
        let pid = fleet.place(from).await_pid(app);
        for way in [&["--dry-run"][..], &[]] {
            let mut asked = vec!["move", app, "--to", other(from)];
            asked.extend(way);
            fleet.place(from).fails(&asked, 1, words);
        }
        assert_eq!(fleet.place(from).await_pid(app), pid);
    };
    refused(
        "behind",
        &["behind/journal is not at the target", "move.files"],
    );

    let from = owner(&fleet, "small");
    let to = index(other(from));
    fs::write(
        fleet.place(from).path("srv/small/own/load"),
        vec![1; 4 << 20],
    )
    .unwrap();
    let small = fleet.dir.path().join("srv/small");
    let mut command = fleet.machines[to].enter();
    let mount = command.args(["mount", "-t", "tmpfs", "-o", "size=1m", "none"]);
    assert!(mount.arg(&small).status().unwrap().success());
    refused(
        "small",
        &[
            "files of small have 5 MiB",
            "are free at",
            "make room there",
        ],
    );
}
