//! Processes whose memory comes after them (post-copy): between two daemons with an etcd, over links that are so slow
//! that a process which writes all of its memory again and again cannot be copied before.
//!
//! The program looks at all of its pages again and again: one that was lost, or is of before, does not agree with its
//! count.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::memory_fleet::{Fleet, Load, index, other};
use crate::place::{PATIENCE, eventually, is_running, signal};

/// All of it is written every second and takes 8 s to send, and a program stays where it would stand for more than 5.
const LOAD: Load = Load {
    memory: 32,
    rate: 32,
    speed: 4 << 20,
};
const AFTER: &str = ", memory = \"post-copy\"";
/// Nothing is given up sooner: half a minute, but for what was on its way when the link was cut.
const LOST: Duration = Duration::from_secs(27);

/// A move that is at its lending.
struct Lending {
    from: &'static str,
    to: &'static str,
    pid: u32,
    /// By the numbers of the test: the one that lends, and the one that runs.
    lender: u32,
}

impl Fleet {
    /// Moves it until it runs at the target and fetches its memory.
    #[track_caller]
    fn lends(&self) -> Lending {
        let from = self.await_owner();
        let to = other(from);
        let lender = self.program();
        let pid = self.place(from).await_pid("pages");
        self.await_way(from, to);
        let asked = self
            .place(from)
            .ask(&["move", "pages", "--to", to, "--detach"]);
        assert!(asked.status.success(), "{asked:?}");
        self.await_stage(from, &["lending"]);
        assert!(
            is_running(lender),
            "it is ended before all of it was fetched"
        );
        assert_eq!(self.programs().len(), 2);
        Lending {
            from,
            to,
            pid,
            lender,
        }
    }

    fn is_told(&self, name: &str, said: &str) -> bool {
        let events = self.place(name).json(&["events", "--app", "pages"]);
        let mut events = events["events"].as_array().unwrap().iter();
        events.any(|event| event["message"].as_str().unwrap().contains(said))
    }

    fn shown(&self, name: &str) -> Value {
        self.place(name).json(&["move", "pages"])
    }

    /// It is whole at the target, and nothing of it is left at the source.
    #[track_caller]
    fn is_whole(&self, of: &Lending) {
        eventually("the one that lent is ended", || !is_running(of.lender));
        self.await_rest();
        assert_eq!(self.await_owner(), of.to);
        assert_eq!(self.place(of.to).await_pid("pages"), of.pid);
        self.await_clean();
        self.goes_on();
        assert!(self.is_told(of.to, "all of its memory is here"));
    }

    /// It was lost: the owner starts another one, and the one that lent is ended.
    #[track_caller]
    fn is_lost(&self, of: &Lending, said: &str) {
        eventually("another one is started", || {
            let app = self.place(of.to).app("pages");
            app["state"] == "running" && app["main_pid"] != of.pid
        });
        eventually("it is told", || self.is_told(of.to, said));
        self.forget_witnessed();
        eventually("the one that lent is ended", || !is_running(of.lender));
        self.await_rest();
        assert_eq!(self.await_owner(), of.to);
        self.await_clean();
    }
}

#[test]
fn a_process_that_writes_too_fast_to_be_copied_moves_and_its_memory_comes_after_it() {
    let test = "memory comes after its process";
    let Some(fleet) = Fleet::start_linked(test, LOAD, "") else {
        return;
    };
    let from = fleet.await_owner();
    let refused = ["faster than it can be sent", "post-copy"];
    let asked = ["move", "pages", "--to", other(from)];
    fleet.place(from).fails(&asked, 1, &refused);
    drop(fleet);

    let fleet = Fleet::start_linked(test, LOAD, AFTER).unwrap();
    let from = fleet.await_owner();
    let to = other(from);
    let asked = fleet
        .place(from)
        .ask(&["move", "pages", "--to", to, "--dry-run"]);
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(said.contains("it would stand still for about"), "{said}");
    assert!(said.contains("come after it"), "{said}");
    let before = fleet.longest_silence();
    let began = Instant::now();
    let of = fleet.lends();
    let ran = began.elapsed();
    let mut owed = Vec::new();
    let until = Instant::now() + PATIENCE;
    let moved = loop {
        let now = fleet.shown(from);
        if now["over"] == true {
            break now;
        }
        assert!(
            now["stage"] == "lending" || now["stage"] == "ending",
            "{now}"
        );
        owed.extend(now["owed_bytes"].as_u64());
        assert!(Instant::now() < until, "{now}");
    };
    println!("{moved}");
    println!(
        "it ran after {ran:.1?}, all was there after {:.1?}; silent for {} ms at most, {before} ms before",
        began.elapsed(),
        fleet.longest_silence()
    );
    assert_eq!(moved["stage"], "moved", "{moved}");
    let first = owed.first().copied().unwrap_or_default();
    assert!(first > 1 << 20, "little was owed: {owed:?}");
    assert!(owed.is_sorted_by(|a, b| a >= b), "{owed:?}");
    // In less time than what it writes takes to send.
    assert!(moved["stood_seconds"].as_f64().unwrap() < 8.0, "{moved}");
    fleet.is_whole(&of);
    // And back.
    let of = fleet.lends();
    fleet.is_whole(&of);
}

/// The next daemon lends on, whether the one before it crashed or was stopped, and whatever is put back in between.
#[test]
fn a_process_lends_on_when_its_daemon_ends() {
    let test = "a process lends on";
    let Some(mut fleet) = Fleet::start_linked(test, LOAD, AFTER) else {
        return;
    };
    let of = fleet.lends();
    fleet.crash(index(of.from));
    fleet.begin(index(of.from));
    fleet.is_whole(&of);

    for by in [Signal::KILL, Signal::TERM] {
        let of = fleet.lends();
        fleet.loses(of.from, by);
        let restored = fleet.restore(of.from);
        let said = String::from_utf8_lossy(&restored.stdout).into_owned();
        assert!(restored.status.success(), "{by:?}: {restored:?}");
        assert!(said.contains("left frozen: pages"), "{by:?}: {said}");
        assert!(is_running(of.lender), "{by:?}: it is ended");
        fleet.begin(index(of.from));
        fleet.is_whole(&of);
    }

    // That of the target is not needed for it.
    let of = fleet.lends();
    fleet.crash(index(of.to));
    fleet.begin(index(of.to));
    fleet.is_whole(&of);
}

#[test]
fn a_link_that_is_lost_for_a_while_costs_nothing_and_for_good_the_process() {
    let test = "a link is lost while a process lends";
    let Some(fleet) = Fleet::start_linked(test, LOAD, AFTER) else {
        return;
    };
    let of = fleet.lends();
    fleet.relay(of.from).cut();
    let left = fleet.shown(of.from)["owed_bytes"].as_u64();
    assert!(left.is_some_and(|left| left > 0), "{left:?}");
    eventually("nothing comes", || {
        let now = fleet.shown(of.from);
        now["stage"] == "lending" && now["took_seconds"].as_f64() > Some(2.0)
    });
    fleet.relay(of.from).mend();
    fleet.is_whole(&of);

    let of = fleet.lends();
    let cut = Instant::now();
    for (name, _) in &fleet.hosts {
        fleet.relay(name).cut();
    }
    eventually("the one that ran is ended", || {
        fleet.place(of.to).app("pages")["main_pid"] != of.pid
    });
    assert!(cut.elapsed() >= LOST, "it was given up too early");
    assert!(
        is_running(of.lender),
        "its target did not say that it needs nothing"
    );
    for (name, _) in &fleet.hosts {
        fleet.relay(name).mend();
    }
    fleet.is_lost(&of, "what it had in memory is lost");
}

#[test]
fn a_porter_that_is_killed_while_memory_comes_takes_the_process_with_it() {
    let test = "a porter is killed while memory comes";
    let Some(fleet) = Fleet::start_linked(test, LOAD, AFTER) else {
        return;
    };
    let of = fleet.lends();
    // Its guards are forks of it.
    for porter in fleet.porters() {
        signal(porter, Signal::KILL);
    }
    fleet.is_lost(&of, "what it had in memory is lost");
}

/// Both ways beside each other where both can: `FOREBAY_TEST_MEMORY` MiB, of which 10 are written in a second, over links
/// of 64 MiB/s.
#[test]
#[ignore = "a measurement"]
fn pauses_of_both_ways_are_measured() {
    let asked = std::env::var("FOREBAY_TEST_MEMORY").ok();
    let load = Load {
        memory: asked.map_or(128, |text| text.parse().unwrap()),
        rate: 10,
        speed: 64 << 20,
    };
    for (way, moves) in [("pre-copy", ""), ("post-copy", AFTER)] {
        let fleet = Fleet::start_linked("pauses of both ways", load, moves).unwrap();
        for _ in 0..3 {
            let from = fleet.await_owner();
            let moved = fleet
                .place(from)
                .json(&["move", "pages", "--to", other(from)]);
            assert_eq!(moved["stage"], "moved", "{moved}");
            let silent = fleet.longest_silence();
            let (stood, took) = (&moved["stood_seconds"], &moved["took_seconds"]);
            println!(
                "{way}: stood {stood} s, {took} s until the source was let go; silent for {silent} ms"
            );
            fleet.forget_witnessed();
        }
    }
}
