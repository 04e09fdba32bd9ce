//! `redis` fronts with real servers.

mod harness;
mod load;

use forebay_shadow::redis::{Guarantee, Options, WithoutShadow};
use harness::{Front, Reply, Server, has, pair, text};
use load::{Load, Times};
use rustix::process::Signal;

fn strict() -> Options {
    Options {
        guarantee: Guarantee::Strict,
        ..Options::default()
    }
}

/// The primary is killed, its shadow takes over, and it comes back as the shadow.
async fn kill(servers: &mut [Server], front: &Front) {
    let before = front.ready().await;
    servers[before.primary].signal(Signal::KILL);
    let epoch = before.epoch;
    front
        .until("another primary", |status| {
            status.epoch > epoch && status.stage == "warm"
        })
        .await;
    servers[before.primary].restart();
    front.join(before.primary, &servers[before.primary]).await;
}

#[tokio::test]
async fn a_client_keeps_its_connection_and_what_it_made_of_it() {
    if !has(
        "a_client_keeps_its_connection_and_what_it_made_of_it",
        "redis-server",
    ) {
        return;
    }
    let (mut servers, front) = pair(&[], strict()).await;
    let mut client = front.client().await;
    assert_eq!(client.ask("SET a 1").await, text("OK"));
    assert!(matches!(client.ask("HELLO 3").await, Reply::Many(_)));
    assert_eq!(client.ask("SELECT 3").await, text("OK"));
    assert_eq!(client.ask("CLIENT SETNAME me").await, text("OK"));
    assert_eq!(client.ask("CLIENT TRACKING ON").await, text("OK"));
    assert_eq!(client.ask("SET b 2").await, text("OK"));
    let mut listener = front.client().await;
    assert!(matches!(
        listener.ask("SUBSCRIBE news").await,
        Reply::Many(_)
    ));
    kill(&mut servers, &front).await;
    // What the client keeps is worth nothing after each new connection.
    let mut reply = client.ask("GET b").await;
    let forget = Reply::Push(vec![text("invalidate"), Reply::Nothing]);
    assert_eq!(reply, forget);
    while reply == forget {
        reply = client.receive().await.unwrap();
    }
    assert_eq!(reply, text("2"));
    assert_eq!(client.ask("CLIENT GETNAME").await, text("me"));
    let Reply::Many(tracking) = client.ask("CLIENT TRACKINGINFO").await else {
        panic!()
    };
    assert_eq!(tracking[1], Reply::Many(vec![text("on")]));
    let heard = listener.receive();
    let told = async {
        let mut teller = front.client().await;
        while teller.ask("PUBLISH news x").await != Reply::Number(1) {
            front.ready().await;
        }
    };
    let (heard, ()) = tokio::join!(heard, told);
    assert_eq!(
        heard.unwrap(),
        Reply::Many(vec![text("message"), text("news"), text("x")])
    );
    assert_eq!(client.ask("SELECT 0").await, text("OK"));
    assert_eq!(client.ask("GET a").await, text("1"));
}

/// How many primaries are killed: `FOREBAY_TEST_KILLS`, or what fits a test.
fn kills(usual: usize) -> usize {
    std::env::var("FOREBAY_TEST_KILLS").map_or(usual, |kills| kills.parse().unwrap())
}

/// Kills primaries at random moments under load, and tells what 64 clients saw.
async fn kill_under_load(name: &str, options: Options, kills: usize) -> load::Seen {
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
    seen
}

#[tokio::test]
async fn strict_loses_no_acknowledged_write() {
    if !has("strict_loses_no_acknowledged_write", "redis-server") {
        return;
    }
    let seen = kill_under_load("strict", strict(), kills(20)).await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    assert!(
        seen.refused > 0,
        "while there is no shadow, writes are refused"
    );
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
