//! What becomes of a process in the middle of a move whose daemon ends, and for which no other one comes; and of one
//! whose move is called off.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::memory_fleet::{Fleet, Load, MEMORY, index, other};
use crate::place::{PATIENCE, eventually, is_running, signal};

impl Fleet {
    /// Waits until a move is at one of these stages, looked at as often as can be.
    #[track_caller]
    pub(crate) fn await_stage(&self, from: &str, stages: &[&str]) {
        let until = Instant::now() + PATIENCE;
        loop {
            let now: Value = self.place(from).json(&["move", "pages"]);
            if stages.iter().any(|stage| now["stage"] == *stage) {
                return;
            }
            assert_ne!(now["over"], true, "{now}");
            assert!(
                Instant::now() < until,
                "it does not come to {stages:?}: {now}"
            );
        }
    }

    /// The daemon ends by a signal, and its guardian after it, since no other daemon comes.
    pub(crate) fn loses(&mut self, name: &str, by: Signal) {
        let daemon = self.daemon(index(name));
        signal(daemon, by);
        eventually("the daemon ended", || !is_running(daemon));
        self.hosts[index(name)].1.crash();
        eventually("its guardian ended", || {
            self.place(name).guardians().is_empty()
        });
    }
}

/// It was ended by the guardian, and by the daemon that was stopped, since it might have been another host's: with it
/// went all that it had in memory.
#[test]
fn a_process_whose_owner_nobody_knows_stands_until_a_daemon_does() {
    // So slow that whoever looks at a move sees it before the record is changed.
    let load = Load {
        memory: MEMORY,
        rate: 1,
        speed: 16 << 20,
    };
    let Some(mut fleet) = Fleet::start_linked_keeping("nobody knows whose a process is", load)
    else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");
    for by in [Signal::KILL, Signal::TERM] {
        let program = fleet.program();
        fleet.await_way(from, to);
        let asked = fleet
            .place(from)
            .ask(&["move", "pages", "--to", to, "--detach"]);
        assert!(asked.status.success(), "{asked:?}");
        // From here on the record cannot be changed, nor can anybody know that it is not.
        fleet.await_stage(from, &["copying"]);
        fleet.etcd.crash();
        fleet.await_stage(from, &["recalling"]);
        fleet.loses(from, by);
        let stood = fleet.witnessed().len();
        assert!(is_running(program), "{by:?}: {}", fleet.place(from).log());
        assert!(
            !fleet.place(from).groups_left().is_empty(),
            "{by:?}: it is let go: {}",
            fleet.place(from).log()
        );

        fleet.etcd.restart();
        assert_eq!(fleet.witnessed().len(), stood, "{by:?}: it stands");
        fleet.begin(index(from));
        fleet.await_rest();
        assert_eq!(fleet.await_owner(), from, "{by:?}");
        assert_eq!(fleet.place(from).await_pid("pages"), pid, "{by:?}");
        assert!(is_running(program), "{by:?}: it is the same process");
        fleet.await_clean();
    }
    // What was made there and ended has its number until somebody asked for how it ended.
    fleet.await_way(from, to);
    let moved = fleet.place(from).json(&["move", "pages", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert_eq!(fleet.await_owner(), to);
    assert_eq!(fleet.place(to).await_pid("pages"), pid);
}

/// While its memory is on a way that is slow, so that there is time to say so.
#[test]
fn a_move_that_is_called_off_leaves_the_process_as_it_was() {
    let load = Load {
        memory: MEMORY,
        rate: 1,
        speed: 4 << 20,
    };
    let Some(fleet) = Fleet::start_linked("a move is called off", load, "") else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let program = fleet.program();
    let place = fleet.place(from);
    place.fails(&["move", "pages", "--cancel"], 5, &["not on its way"]);
    fleet.await_way(from, to);
    let asked = place.ask(&["move", "pages", "--to", to, "--detach"]);
    assert!(asked.status.success(), "{asked:?}");
    fleet.await_stage(from, &["copying"]);
    let asked = place.ask(&["move", "pages", "--cancel"]);
    assert!(asked.status.success(), "{asked:?}");
    fleet.await_rest();
    let moved = place.json(&["move", "pages"]);
    assert_eq!(moved["stage"], "stayed", "{moved}");
    assert!(!moved["why"].as_str().unwrap().is_empty(), "{moved}");
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.program(), program, "it is the same process");
    fleet.await_clean();
}
