//! Moves between two hosts while daemons, the coordinator and the network between agents are lost at any moment.
//!
//! `FOREBAY_TEST_KILLS` says how often, `FOREBAY_TEST_SEED` from which seed on: it is printed. `FOREBAY_TEST_LOST` says
//! what is lost each time, in this order, and not one or two by chance: `Source,Etcd`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;

use crate::etcd::Etcd;
use crate::memory_fleet::other;
use crate::moves::status;
use crate::place::{Place, eventually, signal};
use crate::relay::Relay;

/// When something is lost, at the latest, in percent of what an undisturbed move took: some are over by then.
const LATEST: u32 = 115;
/// For how long at most, in milliseconds. A host that is lost for longer than its lease is no member any more.
const LOST: u64 = 2_500;
const LOST_LONG: u64 = 7_000;
/// Of so many at least one is amid a move.
const MANY: u64 = 8;

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
    /// Agents do not reach each other; both reach the coordinator.
    Link,
    /// Somebody calls the move off.
    Wish,
}

const ALL: [Lost; 8] = [
    Lost::Source,
    Lost::Target,
    Lost::SourceParted,
    Lost::TargetParted,
    Lost::Etcd,
    Lost::EtcdParted,
    Lost::Link,
    Lost::Wish,
];

/// Two hosts, `a` and `b`, and an app that moves between them.
pub(crate) trait Ground {
    /// The app.
    const APP: &str;

    fn place(&self, host: &str) -> &Place;
    /// The process of a host's daemon.
    fn daemon_of(&self, host: &str) -> u32;
    fn crash_host(&mut self, host: &str);
    fn begin_host(&mut self, host: &str);
    fn etcd(&mut self) -> &mut Etcd;
    /// What agents reach each other by.
    fn relays(&self) -> &[Relay];
    /// Waits until no move is under way.
    fn await_rest(&self);
    /// Has something be there that a move has to bring along; how far the app is.
    fn prepare(&mut self, host: &str) -> u64;
    /// Waits until this host, which owns it, runs it and nobody else does; that nothing is lost since it was so far.
    fn await_whole(&self, owner: &str, before: u64);
}

struct Campaign<G> {
    ground: G,
    rng: Rng,
    /// How long a move takes when nothing is lost.
    takes: Duration,
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

impl<G: Ground> Campaign<G> {
    fn lose(&mut self, what: Lost, [source, target]: [&str; 2]) {
        let ground = &mut self.ground;
        match what {
            Lost::Source => ground.crash_host(source),
            Lost::Target => ground.crash_host(target),
            Lost::SourceParted => signal(ground.daemon_of(source), Signal::STOP),
            Lost::TargetParted => signal(ground.daemon_of(target), Signal::STOP),
            Lost::Etcd => ground.etcd().crash(),
            Lost::EtcdParted => ground.etcd().pause(),
            Lost::Link => ground.relays().iter().for_each(Relay::cut),
            // Refused where it is over.
            Lost::Wish => drop(ground.place(source).ask(&["move", G::APP, "--cancel"])),
        }
    }

    fn find(&mut self, what: Lost, [source, target]: [&str; 2]) {
        let ground = &mut self.ground;
        match what {
            Lost::Source => ground.begin_host(source),
            Lost::Target => ground.begin_host(target),
            Lost::SourceParted => signal(ground.daemon_of(source), Signal::CONT),
            Lost::TargetParted => signal(ground.daemon_of(target), Signal::CONT),
            Lost::Etcd => ground.etcd().restart(),
            Lost::EtcdParted => ground.etcd().go_on(),
            Lost::Link => ground.relays().iter().for_each(Relay::mend),
            Lost::Wish => {}
        }
    }

    /// A move that nothing disturbs, of files that nobody has seen before; who owns it then.
    fn undisturbed(&mut self, from: &str) -> String {
        let to = other(from);
        self.ready(from);
        let place = self.ground.place(from);
        let moved = place.json(&["move", G::APP, "--to", to]);
        assert_eq!(moved["stage"], "moved", "{moved}");
        self.takes = took(&moved);
        println!("undisturbed: {moved}");
        self.settled(0)
    }

    /// Waits until it could move; how far it is by then.
    fn ready(&mut self, from: &str) -> u64 {
        let to = other(from);
        let place = self.ground.place(from);
        eventually("it could move", || {
            let asked = place.ask(&["move", G::APP, "--to", to, "--dry-run"]);
            asked.status.success()
        });
        self.ground.prepare(from)
    }

    /// One move in the middle of which something is lost.
    fn kill(&mut self, from: &str) -> Ended {
        let to = other(from);
        let ends = [from, to];
        let before = self.ready(from);
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
                    // Nobody is there to be asked.
                    | (Lost::Source | Lost::SourceParted, Lost::Wish)
            );
        let at = self.takes * self.rng.u32(..LATEST) / 100;
        let longest = if self.rng.u8(..5) == 0 {
            LOST_LONG
        } else {
            LOST
        };
        let lost_for = self.rng.u64(..longest);
        let asked_at = Instant::now();
        let place = self.ground.place(from);
        let asked = place.ask(&["move", G::APP, "--to", to, "--detach"]);
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
        self.ground.await_rest();
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
        let owns = |name: &str| {
            let owns = &status(self.ground.place(name))["owns"];
            owns.as_array().unwrap().contains(&G::APP.into())
        };
        eventually("one host owns it", || owns("a") != owns("b"));
        let owner = if owns("a") { "a" } else { "b" };
        self.ground.await_whole(owner, before);
        owner.to_owned()
    }

    /// What the source says of the move, which is what came of it, and whether it was under way when
    /// something was lost.
    fn told(&self, from: &str, owner: &str, lost: &[Lost], lost_at: Duration) -> (String, bool) {
        let moves: Value = self.ground.place(from).json(&["move"]);
        let away = moves["away"].as_array().unwrap();
        let Some(told) = away.iter().find(|one| one["app"] == G::APP) else {
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

/// So many moves, `usual` unless somebody says otherwise, amid which something is lost, and one before and after amid
/// which nothing is.
pub(crate) fn campaign<G: Ground>(ground: G, usual: u32, first: String) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap())
    };
    let kills = number("FOREBAY_TEST_KILLS").unwrap_or(u64::from(usual));
    let seed = number("FOREBAY_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}, {kills} kills");
    let mut owner = first;
    let mut campaign = Campaign {
        ground,
        rng: Rng::with_seed(seed),
        takes: Duration::ZERO,
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
    assert!(kills < MANY || amid > 0, "nothing was lost in the middle");
    campaign.undisturbed(&owner);
}
