//! What 64 clients see while primaries are lost, and how it is checked.

use std::collections::BTreeMap;

use forebay_shadow::redis::{Guarantee, Options, WithoutShadow};
use rustix::process::Signal;

use super::harness::{self, Client, Front, Group, Reply, Server, has, pair};
use super::load::{Load, Seen, Times};
use super::strict;

/// How many primaries are killed: `FOREBAY_TEST_KILLS`, or what fits a test.
fn kills(usual: usize) -> usize {
    std::env::var("FOREBAY_TEST_KILLS").map_or(usual, |kills| kills.parse().unwrap())
}

/// Kills primaries at random moments under load, and tells what 64 clients saw.
async fn kill_under_load(name: &str, options: Options, kills: usize) -> Seen {
    // Whether writes are acknowledged while the old primary is not back.
    let alone =
        options.guarantee == Guarantee::Fast || options.without_shadow == WithoutShadow::Continue;
    let (mut servers, front) = pair(&[], options).await;
    let mut load = Load::start(&front).await;
    let mut gaps = Times::default();
    for _ in 0..kills {
        let before = front.ready().await;
        load.answers(fastrand::u64(1..500)).await;
        load.measure();
        servers[before.primary].signal(Signal::KILL);
        let epoch = before.epoch;
        let after = front.until("another primary", |status| {
            status.epoch > epoch && status.stage == "warm"
        });
        let after = after.await;
        assert_ne!(after.primary, before.primary, "{after:#?}");
        if alone {
            gaps.0.push(load.gap().await);
        }
        servers[before.primary].restart();
        front.join(before.primary, &servers[before.primary]).await;
    }
    let status = front.ready().await;
    for step in ["fence", "promote", "replay"] {
        let steps = status
            .transitions
            .iter()
            .flat_map(|transition| &transition.steps);
        let times = steps
            .filter(|(name, _)| name == step)
            .map(|(_, time)| *time);
        println!("{name}: {step}: {}", Times(times.collect()));
    }
    let epoch = status.epoch;
    let seen = load.end().await;
    let counts = front.counts().await;
    println!("{name}: {kills} kills: gaps {gaps}; {seen:?}; {counts:?}");
    assert!(epoch >= kills as u64, "{epoch}");
    assert_eq!(seen.dropped, Vec::<String>::new());
    assert_eq!(seen.twice, 0);
    assert_eq!(seen.denied, 0, "executed, though said not to be");
    // Whoever was the primary before soon has what the new one has, and nothing of its own.
    let deadline = std::time::Instant::now() + harness::BOUND;
    loop {
        let first = lists(&servers[0]).await;
        let second = lists(&servers[1]).await;
        assert!(!first.is_empty() || !second.is_empty());
        if first == second {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{first:?} is not {second:?}"
        );
    }
    seen
}

/// Everything that a server has.
async fn lists(server: &Server) -> BTreeMap<String, Reply> {
    let mut client = Client::connect(server.port).await.unwrap();
    let Reply::Many(keys) = client.ask("KEYS *").await else {
        panic!("no keys");
    };
    let mut lists = BTreeMap::new();
    for key in keys {
        let Reply::Text(key) = key else {
            panic!("{key:?}")
        };
        let list = client.ask(&format!("LRANGE {key} 0 -1")).await;
        lists.insert(key, list);
    }
    lists
}

#[tokio::test]
async fn strict_loses_no_acknowledged_write() {
    if !has("strict_loses_no_acknowledged_write", "redis-server") {
        return;
    }
    let seen = kill_under_load("strict", strict(), kills(20)).await;
    assert_eq!((seen.lost, seen.revived), (0, 0), "{seen:?}");
}

#[tokio::test]
async fn fast_drops_no_client_and_executes_nothing_twice() {
    if !has(
        "fast_drops_no_client_and_executes_nothing_twice",
        "redis-server",
    ) {
        return;
    }
    kill_under_load("fast", Options::default(), kills(20)).await;
}

#[tokio::test]
async fn strict_may_go_on_without_a_shadow() {
    if !has("strict_may_go_on_without_a_shadow", "redis-server") {
        return;
    }
    let options = Options {
        without_shadow: WithoutShadow::Continue,
        ..strict()
    };
    let seen = kill_under_load("strict, continue", options, kills(5)).await;
    assert_eq!(
        seen.lost, 0,
        "killed only while a shadow is in step: {seen:?}"
    );
}

/// When a primary that was stopped is let go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GoesOn {
    /// Once another one is the primary.
    Replaced,
    /// At any moment before.
    AtOnce,
}

/// Two servers that a front can stop; none where this process may make no groups.
pub(crate) fn fenced_servers(name: &str) -> Option<Vec<Server>> {
    let groups = [Group::new(), Group::new()];
    let mut servers = Vec::new();
    for group in groups {
        match group {
            Ok(group) => servers.push(Server::start(&[], Some(group))),
            Err(error) => {
                println!("SKIPPED: {name}: a control group is needed: {error}; run as root");
                return None;
            }
        }
    }
    Some(servers)
}

/// Two servers that the front can stop, behind it; none where this process may make no groups.
async fn fenced_pair(name: &str, options: Options) -> Option<(Vec<Server>, Front)> {
    if !has(name, "redis-server") {
        return None;
    }
    let servers = fenced_servers(name)?;
    let front = Front::start(&servers, options);
    for (slot, server) in servers.iter().enumerate() {
        front.join(slot, server).await;
    }
    front.ready().await;
    Some((servers, front))
}

/// A script that computes for long is no stall, though everybody waits and nothing is read.
#[tokio::test]
async fn a_long_command_is_no_stall() {
    let options = Options {
        long_ms: 20_000,
        ..Options::default()
    };
    let Some((_servers, front)) = fenced_pair("a_long_command_is_no_stall", options).await else {
        return;
    };
    let before = front.ready().await;
    let mut load = Load::start(&front).await;
    load.answers(10_000).await;
    load.measure();
    let mut client = front.client().await;
    let script = b"EVAL \"local n = 0; for i = 1, 3e8 do n = n + i end; return 1\" 0\r\n";
    client.send_bytes(script).await.unwrap();
    assert_eq!(client.receive().await.unwrap(), Reply::Number(1));
    let gap = load.gap().await;
    println!("a_long_command_is_no_stall: all waited {gap:?} for the script");
    assert!(gap.as_millis() >= 100, "{gap:?}");
    assert_eq!(front.ready().await.epoch, before.epoch);
    let seen = load.end().await;
    assert_eq!(
        (seen.in_doubt, seen.refused, seen.lost, seen.twice),
        (0, 0, 0, 0),
        "{seen:?}"
    );
}

async fn stop_under_load(name: &str, goes_on: GoesOn) {
    let Some((mut servers, front)) = fenced_pair(name, strict()).await else {
        return;
    };
    let before = front.ready().await;
    let mut load = Load::start(&front).await;
    load.answers(2000).await;
    load.measure();
    servers[before.primary].signal(Signal::STOP);
    if goes_on == GoesOn::AtOnce {
        load.answers(fastrand::u64(0..3)).await;
        servers[before.primary].signal(Signal::CONT);
        // Either nobody noticed, or it was replaced; the clients go on in both cases.
        load.answers(500).await;
    } else {
        let after = front.until("another primary", |status| {
            status.epoch > before.epoch && status.stage == "warm"
        });
        let transition = after.await.transitions.pop().unwrap();
        println!("{name}: {transition}");
        assert_eq!(
            transition.evidence,
            ["its process is stopped while requests wait"]
        );
        servers[before.primary].signal(Signal::CONT);
        // It was ended where it stood.
        servers[before.primary].restart();
        front.join(before.primary, &servers[before.primary]).await;
        front.ready().await;
        load.answers(500).await;
        println!("{name}: longest wait {:?}", load.gap().await);
    }
    let seen = load.end().await;
    println!("{name}: {seen:?}");
    assert_eq!(seen.dropped, Vec::<String>::new());
    assert_eq!((seen.lost, seen.twice, seen.denied), (0, 0, 0));
}

#[tokio::test]
async fn a_stopped_primary_executes_nothing_once_it_was_replaced() {
    let name = "a_stopped_primary_executes_nothing_once_it_was_replaced";
    stop_under_load(name, GoesOn::Replaced).await;
}

#[tokio::test]
async fn a_primary_that_stops_for_a_moment_leaves_no_two() {
    stop_under_load(
        "a_primary_that_stops_for_a_moment_leaves_no_two",
        GoesOn::AtOnce,
    )
    .await;
}

#[tokio::test]
async fn a_planned_hand_over_costs_nobody_an_error() {
    if !has("a_planned_hand_over_costs_nobody_an_error", "redis-server") {
        return;
    }
    for options in [Options::default(), strict()] {
        let (_servers, front) = pair(&[], options.clone()).await;
        let mut load = Load::start(&front).await;
        let mut gaps = Times::default();
        for _ in 0..5 {
            front.ready().await;
            load.answers(fastrand::u64(1..200)).await;
            load.measure();
            front.hand_over().await;
            if options.guarantee == Guarantee::Fast {
                gaps.0.push(load.gap().await);
            }
        }
        front.ready().await;
        let seen = load.end().await;
        println!("hand-over, {:?}: {gaps}; {seen:?}", options.guarantee);
        assert_eq!(seen.dropped, Vec::<String>::new());
        assert_eq!((seen.lost, seen.twice, seen.in_doubt), (0, 0, 0));
        assert_eq!(seen.refused, 0, "the old primary is the shadow soon enough");
    }
}
