//! `redis` fronts with real servers.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests say what they skip and measure, and panic on what they do not expect"
)]

mod balance;
mod bounds;
#[path = "../certificate/mod.rs"]
mod certificate;
mod changes;
mod harness;
mod load;
mod loss;
mod rest;
#[path = "../resting/mod.rs"]
mod resting;
mod tls;
mod tools;

use std::time::Duration;

use forebay_shadow::redis::{Guarantee, Options};
use harness::{Client, Front, Reply, Server, has, pair, text};
use rustix::process::Signal;

pub(crate) fn strict() -> Options {
    Options {
        guarantee: Guarantee::Strict,
        ..Options::default()
    }
}

pub(crate) fn password(password: &str) -> Options {
    Options {
        password: Some(forebay_shadow::secret::Secret(password.to_owned())),
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

#[tokio::test]
async fn a_transaction_goes_on_where_it_was() {
    if !has("a_transaction_goes_on_where_it_was", "redis-server") {
        return;
    }
    let (mut servers, front) = pair(&[], Options::default()).await;
    let mut open = front.client().await;
    assert_eq!(open.ask("MULTI").await, text("OK"));
    assert_eq!(open.ask("SET a 1").await, text("QUEUED"));
    assert_eq!(open.ask("SELECT 2").await, text("QUEUED"));
    let mut watching = front.client().await;
    assert_eq!(watching.ask("WATCH w").await, text("OK"));
    let mut within = front.client().await;
    assert_eq!(within.ask("WATCH w").await, text("OK"));
    assert_eq!(within.ask("MULTI").await, text("OK"));
    assert_eq!(within.ask("SET w within").await, text("QUEUED"));
    kill(&mut servers, &front).await;
    assert_eq!(open.ask("INCR a").await, text("QUEUED"));
    let done = vec![text("OK"), text("OK"), Reply::Number(1)];
    assert_eq!(open.ask("EXEC").await, Reply::Many(done));
    assert_eq!(open.ask("GET a").await, text("1"), "it selected a database");
    for (client, begun) in [(&mut watching, false), (&mut within, true)] {
        if !begun {
            assert_eq!(client.ask("MULTI").await, text("OK"));
        }
        assert_eq!(client.ask("SET w x").await, text("QUEUED"));
        assert_eq!(
            client.ask("EXEC").await,
            Reply::Nothing,
            "what it watched may have changed"
        );
        assert_eq!(client.ask("GET w").await, Reply::Nothing);
        // The next one is as good as any.
        client
            .send("WATCH w\nMULTI\nSET w y\nEXEC\nDEL w")
            .await
            .unwrap();
        for _ in 0..3 {
            client.receive().await.unwrap();
        }
        assert_eq!(
            client.receive().await.unwrap(),
            Reply::Many(vec![text("OK")])
        );
        assert_eq!(client.receive().await.unwrap(), Reply::Number(1));
    }
}

/// A server that is held by a script answers nobody; it is killed with everything under way.
#[tokio::test]
async fn reads_are_sent_again_and_writes_are_in_doubt() {
    if !has(
        "reads_are_sent_again_and_writes_are_in_doubt",
        "redis-server",
    ) {
        return;
    }
    for options in [Options::default(), strict()] {
        let (servers, front) = pair(&[], options).await;
        let mut client = front.client().await;
        assert_eq!(client.ask("SET a 1").await, text("OK"));
        let before = front.ready().await;
        // Stopped, it takes in what comes and answers nothing.
        servers[before.primary].signal(Signal::STOP);
        let ask = "GET a\nINCR a\nMULTI\nINCR a\nEXEC\nGET a\nSELECT 1\nGET a";
        client.send(ask).await.unwrap();
        until_sent(&front, 8).await;
        servers[before.primary].signal(Signal::KILL);
        let mut replies = Vec::new();
        for _ in 0..8 {
            replies.push(client.receive().await.unwrap());
        }
        let in_doubt =
            |reply: &Reply| matches!(reply, Reply::Error(why) if why.starts_with("INDOUBT"));
        assert_eq!(replies[0], text("1"));
        assert!(in_doubt(&replies[1]), "{replies:?}");
        assert_eq!(replies[2..4], [text("OK"), text("QUEUED")]);
        assert!(in_doubt(&replies[4]), "{replies:?}");
        assert_eq!(replies[5..], [text("1"), text("OK"), Reply::Nothing]);
        let counts = front.counts().await;
        assert_eq!(counts.unknown, 2, "{counts:?}");
    }
}

async fn until_sent(front: &Front, commands: u64) {
    let deadline = std::time::Instant::now() + harness::BOUND;
    let from = 1;
    while front.counts().await.requests < from + commands {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[tokio::test]
async fn one_that_waits_for_others_is_no_stall_and_moves_over() {
    if !has(
        "one_that_waits_for_others_is_no_stall_and_moves_over",
        "redis-server",
    ) {
        return;
    }
    let (_servers, front) = pair(&[], Options::default()).await;
    let mut client = front.client().await;
    client.send("BLPOP list 0\nGET after").await.unwrap();
    let mut other = front.client().await;
    assert_eq!(other.ask("SET after 1").await, text("OK"));
    let transition = front.hand_over().await;
    assert_eq!(transition.trouble, Vec::<String>::new());
    // It is on the new primary once that knows of it.
    loop {
        let Reply::Text(list) = other.ask("CLIENT LIST TYPE normal").await else {
            panic!()
        };
        if list.contains("cmd=blpop") {
            break;
        }
    }
    assert_eq!(other.ask("RPUSH list x").await, Reply::Number(1));
    let popped = client.receive().await.unwrap();
    assert_eq!(popped, Reply::Many(vec![text("list"), text("x")]));
    assert_eq!(client.receive().await.unwrap(), text("1"));
}

#[tokio::test]
async fn a_front_logs_in_and_clients_bring_their_own_password() {
    if !has(
        "a_front_logs_in_and_clients_bring_their_own_password",
        "redis-server",
    ) {
        return;
    }
    let options = Options {
        guarantee: Guarantee::Strict,
        ..password("sesame")
    };
    let (mut servers, front) = pair(&["--requirepass", "sesame"], options).await;
    let mut client = front.client().await;
    let refused = client.ask("GET a").await;
    assert!(matches!(refused, Reply::Error(why) if why.starts_with("NOAUTH")));
    let refused = client.ask("AUTH wrong").await;
    assert!(matches!(refused, Reply::Error(why) if why.starts_with("WRONGPASS")));
    assert_eq!(client.ask("AUTH sesame").await, text("OK"));
    assert_eq!(client.ask("SET a 1").await, text("OK"));
    kill(&mut servers, &front).await;
    assert_eq!(client.ask("GET a").await, text("1"));
}

#[tokio::test]
async fn a_shadow_answers_reads_where_that_is_allowed() {
    if !has(
        "a_shadow_answers_reads_where_that_is_allowed",
        "redis-server",
    ) {
        return;
    }
    let options = Options {
        read_from_shadow: true,
        ..strict()
    };
    let (mut servers, front) = pair(&[], options).await;
    let mut client = front.client().await;
    assert_eq!(client.ask("SELECT 2").await, text("OK"));
    assert_eq!(client.ask("SET a 1").await, text("OK"));
    let both = |client: Client| async {
        let mut client = client;
        let mut ports = std::collections::BTreeSet::new();
        for _ in 0..20 {
            for _ in 0..2 {
                let Reply::Many(port) = client.ask("CONFIG GET port").await else {
                    panic!()
                };
                ports.insert(format!("{port:?}"));
            }
            assert_eq!(client.ask("INCR n").await, client.ask("INCRBY n 0").await);
            // What `strict` acknowledged, every instance has.
            assert_eq!(client.ask("GET a").await, text("1"));
        }
        (client, ports.len())
    };
    let (mut client, ports) = both(client).await;
    assert_eq!(ports, 2);
    for _ in 0..3 {
        let primary = front.ready().await.primary;
        servers[1 - primary].signal(Signal::KILL);
        assert_eq!(client.ask("GET a").await, text("1"));
        assert_eq!(client.ask("GET a").await, text("1"));
        servers[1 - primary].restart();
        front.join(1 - primary, &servers[1 - primary]).await;
        front.ready().await;
        kill(&mut servers, &front).await;
        assert_eq!(client.ask("GET a").await, text("1"));
        assert_eq!(client.ask("GET a").await, text("1"));
    }
    front.ready().await;
    assert_eq!(both(client).await.1, 2);
}

#[tokio::test]
async fn garbage_gets_one_error_and_others_are_undisturbed() {
    if !has(
        "garbage_gets_one_error_and_others_are_undisturbed",
        "redis-server",
    ) {
        return;
    }
    let (_servers, front) = pair(&[], Options::default()).await;
    let mut good = front.client().await;
    for (bytes, error) in [
        (
            b"PING\r\n*1\r\n:1\r\n".to_vec(),
            Some("ERR Protocol error: expected '$'"),
        ),
        (
            b"PING\r\n*-x\r\n".to_vec(),
            Some("ERR Protocol error: invalid multibulk length"),
        ),
        (
            b"PING\r\n*1\r\n$999999999\r\n".to_vec(),
            Some("ERR Protocol error: invalid bulk length"),
        ),
        (
            [b"PING\r\n".as_slice(), &[b'x'; 70_000]].concat(),
            Some("ERR Protocol error: too big inline request"),
        ),
        (b"PING\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), None),
    ] {
        let mut client = Client::connect(front.port).await.unwrap();
        client.send_bytes(&bytes).await.unwrap();
        assert_eq!(client.receive().await.unwrap(), text("PONG"));
        if let Some(error) = error {
            assert_eq!(
                client.receive().await.unwrap(),
                Reply::Error(error.to_owned())
            );
        }
        assert!(client.is_ended().await);
        assert_eq!(good.ask("PING").await, text("PONG"));
    }
    let refused = good.ask("REPLICAOF NO ONE").await;
    assert!(
        matches!(refused, Reply::Error(why) if why.starts_with("ERR forebay: the front decides"))
    );
    good.send("MULTI\nSET a 1\nMONITOR\nEXEC\nGET a")
        .await
        .unwrap();
    let mut replies = Vec::new();
    for _ in 0..5 {
        replies.push(good.receive().await.unwrap());
    }
    assert!(
        matches!(&replies[3], Reply::Error(why) if why.starts_with("EXECABORT")),
        "{replies:?}"
    );
    assert_eq!(replies[4], Reply::Nothing);
    assert_eq!(good.ask("QUIT").await, text("OK"));
    assert!(good.is_ended().await);
}

#[tokio::test]
async fn large_values_and_long_pipelines_pass() {
    if !has("large_values_and_long_pipelines_pass", "redis-server") {
        return;
    }
    for options in [Options::default(), strict()] {
        let (_servers, front) = pair(&[], options).await;
        let mut client = front.client().await;
        let large = "x".repeat(5_000_000);
        assert_eq!(client.ask(&format!("SET large {large}")).await, text("OK"));
        assert_eq!(client.ask("GET large").await, text(&large));
        // All of it is sent before anything is read.
        const COMMANDS: usize = 20_000;
        let lines: Vec<String> = (0..COMMANDS)
            .map(|number| format!("SET k {number}\nGET k"))
            .collect();
        client.send(&lines.join("\n")).await.unwrap();
        for number in 0..COMMANDS {
            assert_eq!(client.receive().await.unwrap(), text("OK"));
            assert_eq!(client.receive().await.unwrap(), text(&number.to_string()));
        }
    }
}

#[tokio::test]
async fn a_shadow_that_is_away_makes_strict_refuse_or_doubt() {
    if !has(
        "a_shadow_that_is_away_makes_strict_refuse_or_doubt",
        "redis-server",
    ) {
        return;
    }
    let (servers, front) = pair(&[], strict()).await;
    let mut client = front.client().await;
    assert_eq!(client.ask("SET a 1").await, text("OK"));
    servers[1].signal(Signal::STOP);
    let reply = tokio::time::timeout(Duration::from_secs(5), client.ask("SET a 2"))
        .await
        .unwrap();
    assert!(
        matches!(&reply, Reply::Error(why) if why.starts_with("INDOUBT")),
        "{reply:?}"
    );
    front
        .until("no shadow", |status| status.standby.is_none())
        .await;
    let reply = client.ask("SET a 3").await;
    assert!(
        matches!(&reply, Reply::Error(why) if why.starts_with("NOREPLICAS")),
        "{reply:?}"
    );
    assert_eq!(client.ask("GET a").await, text("2"));
    servers[1].signal(Signal::CONT);
    front.ready().await;
    assert_eq!(client.ask("SET a 4").await, text("OK"));
}
