//! Moves between hosts while daemons, the coordinator and the network are lost at any moment.
//!
//! `FOREBAY_TEST_KILLS` says how often, `FOREBAY_TEST_SEED` from which seed on: it is printed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;

use crate::moves::{Fleet, status};
use crate::place::{eventually, signal};

/// How often, where nobody says.
const KILLS: u32 = 12;
/// A move takes about so long here: what is lost is lost within.
const MOVE: u64 = 900;
/// For how long at most, in milliseconds. A host that is lost for longer than its lease is no member any more.
const LOST: u64 = 2_500;
const LOST_LONG: u64 = 7_000;

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lost {
    /// Its daemon ends, and another one begins.
    Source,
    Target,
    /// Nobody hears of it, and it of nobody, until it goes on.
    SourceParted,
    TargetParted,
    Etcd,
    EtcdParted,
}

const ALL: [Lost; 6] = [
    Lost::Source,
    Lost::Target,
    Lost::SourceParted,
    Lost::TargetParted,
    Lost::Etcd,
    Lost::EtcdParted,
];

struct Campaign {
    fleet: Fleet,
    rng: Rng,
}

fn until(moment: Instant) {
    while Instant::now() < moment {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Campaign {
    fn lose(&mut self, what: Lost, [source, target]: [&str; 2]) {
        let fleet = &mut self.fleet;
        match what {
            Lost::Source | Lost::Target => {
                let name = if what == Lost::Source { source } else { target };
                let index = fleet.index(name);
                fleet.hosts[index].1.crash();
            }
            Lost::SourceParted => signal(fleet.place(source).daemon_pid(), Signal::STOP),
            Lost::TargetParted => signal(fleet.place(target).daemon_pid(), Signal::STOP),
            Lost::Etcd => fleet.etcd.crash(),
            Lost::EtcdParted => fleet.etcd.pause(),
        }
    }

    fn find(&mut self, what: Lost, [source, target]: [&str; 2]) {
        let fleet = &mut self.fleet;
        match what {
            Lost::Source | Lost::Target => {
                let name = if what == Lost::Source { source } else { target };
                let index = fleet.index(name);
                fleet.begin(index);
            }
            Lost::SourceParted => signal(fleet.place(source).daemon_pid(), Signal::CONT),
            Lost::TargetParted => signal(fleet.place(target).daemon_pid(), Signal::CONT),
            Lost::Etcd => fleet.etcd.restart(),
            Lost::EtcdParted => fleet.etcd.go_on(),
        }
    }

    /// One move in the middle of which something is lost; who owns the app, and what was told of it.
    fn kill(&mut self, from: &str) -> (String, String) {
        let to = if from == "a" { "b" } else { "a" };
        let ends = [from, to];
        let fleet = &self.fleet;
        eventually("it could move", || {
            let asked = fleet
                .place(from)
                .ask(&["move", "counts", "--to", to, "--dry-run"]);
            asked.status.success()
        });
        let before = fleet.await_owner(from);
        let what = ALL[self.rng.usize(..ALL.len())];
        let more = ALL[self.rng.usize(..ALL.len())];
        // Two ways to lose one host are one.
        let both = self.rng.u8(..4) == 0
            && what != more
            && !matches!(
                (what.min(more), what.max(more)),
                (Lost::Source, Lost::SourceParted)
                    | (Lost::Target, Lost::TargetParted)
                    | (Lost::Etcd, Lost::EtcdParted)
            );
        let at = self.rng.u64(..MOVE);
        let longest = if self.rng.u8(..5) == 0 {
            LOST_LONG
        } else {
            LOST
        };
        let lost_for = self.rng.u64(..longest);
        let asked = fleet
            .place(from)
            .ask(&["move", "counts", "--to", to, "--detach"]);
        assert!(asked.status.success(), "{asked:?}");
        let began = Instant::now();
        until(began + Duration::from_millis(at));
        let lost: Vec<Lost> = [Some(what), both.then_some(more)]
            .into_iter()
            .flatten()
            .collect();
        for one in &lost {
            self.lose(*one, ends);
        }
        until(Instant::now() + Duration::from_millis(lost_for));
        // The coordinator first: a daemon that begins is waited for.
        let mut back = lost.clone();
        back.sort_by_key(|one| !matches!(one, Lost::Etcd | Lost::EtcdParted));
        for one in back {
            self.find(one, ends);
        }
        self.fleet.await_rest();
        let owner = self.settled(before);
        let said = self.told(from, &owner);
        let told = format!("{lost:?} at {at} ms for {lost_for} ms: {said}, at {owner}");
        println!("{told}");
        (owner, said)
    }

    /// One host owns it and runs it, and nothing is lost.
    fn settled(&self, before: u64) -> String {
        let fleet = &self.fleet;
        let owns = |name: &str| {
            let owns = &status(fleet.place(name))["owns"];
            owns.as_array().unwrap().contains(&"counts".into())
        };
        eventually("one host owns it", || owns("a") != owns("b"));
        let owner = fleet.owner();
        let counted = fleet.await_owner(&owner);
        assert!(counted >= before, "{counted} of {before}");
        // What was written for all to see is in its file, and nothing twice.
        let seen = fleet.witnessed();
        assert!(fleet.counted(&owner) >= seen, "{seen} is not in its file");
        owner
    }

    /// What the source says of the move, which is what came of it.
    fn told(&self, from: &str, owner: &str) -> String {
        let moves: Value = self.fleet.place(from).json(&["move"]);
        let away = moves["away"].as_array().unwrap();
        let Some(told) = away.iter().find(|one| one["app"] == "counts") else {
            // It was over when its daemon was lost.
            return "of before".to_owned();
        };
        let stage = told["stage"].as_str().unwrap().to_owned();
        match stage.as_str() {
            "moved" => assert_ne!(owner, from, "{told}"),
            "stayed" | "refused" => {
                assert_eq!(owner, from, "{told}");
                assert!(
                    told["why"].as_str().is_some_and(|why| !why.is_empty()),
                    "{told}"
                );
            }
            _ => panic!("{told}"),
        }
        stage
    }
}

#[test]
fn whatever_is_lost_at_any_moment_one_host_owns_it() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let kills = number("FOREBAY_TEST_KILLS").unwrap_or(u64::from(KILLS));
    let seed = number("FOREBAY_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}, {kills} kills");
    let Some(fleet) = Fleet::start("whatever is lost at any moment", &["a", "b"]) else {
        return;
    };
    eventually("somebody owns it", || fleet.processes().len() == 1);
    let mut owner = fleet.owner();
    let mut campaign = Campaign {
        fleet,
        rng: Rng::with_seed(seed),
    };
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..kills {
        let (now, said) = campaign.kill(&owner);
        *ends.entry(said).or_default() += 1;
        owner = now;
    }
    println!("{kills} kills: {ends:?}");
    let fleet = &campaign.fleet;
    let to = if owner == "a" { "b" } else { "a" };
    eventually("it could move", || {
        let asked = fleet
            .place(&owner)
            .ask(&["move", "counts", "--to", to, "--dry-run"]);
        asked.status.success()
    });
    let moved = fleet.place(&owner).json(&["move", "counts", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    fleet.await_owner(to);
    fleet.witnessed();
}
