//! Moves between hosts while daemons, the coordinator and the network are lost at any moment.
//!
//! `FOREBAY_TEST_KILLS` says how often, `FOREBAY_TEST_SEED` from which seed on: it is printed. `FOREBAY_TEST_LOST` says
//! what is lost each time, in this order, and not one or two by chance: `Source,Etcd`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;

use crate::moves::{Fleet, status};
use crate::place::{eventually, signal};

/// How often, where nobody says.
const KILLS: u32 = 8;
/// When something is lost, at the latest, in percent of what an undisturbed move took: some are over by then.
const LATEST: u32 = 115;
/// Bytes that go along beside what the app counts, so that there is something to be in the middle of.
const LOAD: usize = 4 << 20;
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
    /// How long a move takes when nothing is lost.
    takes: Duration,
    /// What is in the files that go along.
    load: Vec<u8>,
    /// What is lost each time, if that is not left to chance.
    always: Option<Vec<Lost>>,
}

/// How one move ended in the middle of which something was to be lost.
struct Ended {
    lost: Vec<Lost>,
    /// It was under way then.
    is_amid: bool,
    said: String,
    owner: String,
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

    /// A move that nothing disturbs, of files that nobody has seen before; who owns it then.
    fn undisturbed(&mut self, from: &str) -> String {
        let to = other(from);
        self.ready(from);
        let moved = self.fleet.place(from).json(&["move", "counts", "--to", to]);
        assert_eq!(moved["stage"], "moved", "{moved}");
        self.takes = took(&moved);
        println!("undisturbed: {moved}");
        self.settled(0)
    }

    /// Waits until it could move, and gives it other files; what it counted by then.
    fn ready(&mut self, from: &str) -> u64 {
        let (fleet, to) = (&self.fleet, other(from));
        eventually("it could move", || {
            let asked = fleet
                .place(from)
                .ask(&["move", "counts", "--to", to, "--dry-run"]);
            asked.status.success()
        });
        let before = fleet.await_owner(from);
        self.load = fleet.load(from, LOAD);
        before
    }

    /// One move in the middle of which something is lost.
    fn kill(&mut self, from: &str) -> Ended {
        let to = other(from);
        let ends = [from, to];
        let before = self.ready(from);
        let fleet = &self.fleet;
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
        let at = self.takes * self.rng.u32(..LATEST) / 100;
        let longest = if self.rng.u8(..5) == 0 {
            LOST_LONG
        } else {
            LOST
        };
        let lost_for = self.rng.u64(..longest);
        let asked_at = Instant::now();
        let asked = fleet
            .place(from)
            .ask(&["move", "counts", "--to", to, "--detach"]);
        assert!(asked.status.success(), "{asked:?}");
        until(Instant::now() + at);
        let by_chance = || [Some(what), both.then_some(more)].into_iter().flatten();
        let lost = self.always.clone();
        let lost: Vec<Lost> = lost.unwrap_or_else(|| by_chance().collect());
        // Not earlier than the move's own clock has it.
        let lost_at = asked_at.elapsed();
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
        let (said, is_amid) = self.told(from, &owner, &lost, lost_at);
        println!(
            "{lost:?} {}, at {} ms for {lost_for} ms: {said}, owned by {owner}",
            when(is_amid),
            at.as_millis()
        );
        Ended {
            lost,
            is_amid,
            said,
            owner,
        }
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
        assert!(fleet.loaded(&owner) == self.load, "its files are others");
        owner
    }

    /// What the source says of the move, which is what came of it, and whether it was under way when
    /// something was lost.
    fn told(&self, from: &str, owner: &str, lost: &[Lost], lost_at: Duration) -> (String, bool) {
        let moves: Value = self.fleet.place(from).json(&["move"]);
        let away = moves["away"].as_array().unwrap();
        let Some(told) = away.iter().find(|one| one["app"] == "counts") else {
            // It was over when its daemon was lost, or had not begun to touch anything.
            assert!(lost.contains(&Lost::Source), "{moves}");
            return ("not remembered".to_owned(), false);
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
        // A daemon that begins anew remembers those that are not over.
        let is_amid = lost.contains(&Lost::Source) || took(told) > lost_at;
        (stage, is_amid)
    }
}

fn took(shown: &Value) -> Duration {
    Duration::try_from_secs_f64(shown["took_seconds"].as_f64().unwrap()).unwrap()
}

fn other(host: &str) -> &'static str {
    if host == "a" { "b" } else { "a" }
}

const fn when(is_amid: bool) -> &'static str {
    if is_amid { "amid" } else { "before or after" }
}

fn always() -> Option<Vec<Lost>> {
    let asked = std::env::var("FOREBAY_TEST_LOST").ok()?;
    let named = |name: &str| {
        let found = ALL.into_iter().find(|lost| format!("{lost:?}") == name);
        found.unwrap_or_else(|| panic!("FOREBAY_TEST_LOST: {name} is none of {ALL:?}"))
    };
    Some(asked.split(',').map(named).collect())
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
        takes: Duration::ZERO,
        load: Vec::new(),
        always: always(),
    };
    owner = campaign.undisturbed(&owner);
    let mut amid = 0;
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..kills {
        let ended = campaign.kill(&owner);
        amid += u32::from(ended.is_amid);
        let told = format!("{:?} {}: {}", ended.lost, when(ended.is_amid), ended.said);
        *ends.entry(told).or_default() += 1;
        owner = ended.owner;
    }
    println!("{kills} kills, {amid} in the middle of a move:");
    for (told, times) in ends {
        println!("{times} x {told}");
    }
    assert!(
        kills < u64::from(KILLS) || amid > 0,
        "nothing was lost in the middle"
    );
    campaign.undisturbed(&owner);
    campaign.fleet.witnessed();
}
