//! What a client had under way or had made of its connection, when the primary changes.

use std::time::{Duration, Instant};

use forebay_shadow::redis::Options;
use rustix::process::Signal;

use super::harness::{BOUND, Client, Front, Reply, Server, has, pair, text};
use super::loss::fenced_servers;
use super::{kill, strict};

async fn front_of(servers: &[Server], options: Options) -> Front {
    let front = Front::start(servers, options);
    for (slot, server) in servers.iter().enumerate() {
        front.join(slot, server).await;
    }
    front.ready().await;
    front
}

/// A client whose connection cannot be made anew must not do in one database what was meant for
/// another.
#[tokio::test]
async fn nothing_is_executed_before_the_connection_is_what_it_was() {
    let name = "nothing_is_executed_before_the_connection_is_what_it_was";
    if !has(name, "redis-server") {
        return;
    }
    let mut servers = vec![
        Server::start(&["--databases", "16"], None),
        Server::start(&["--databases", "4"], None),
    ];
    let front = front_of(&servers, Options::default()).await;
    let mut client = front.client().await;
    assert_eq!(client.ask("SELECT 9").await, text("OK"));
    kill(&mut servers, &front).await;
    let asked = client.try_ask("SET a 1").await;
    assert!(asked.is_err(), "{asked:?}");
    let mut other = front.client().await;
    assert_eq!(other.ask("GET a").await, Reply::Nothing);
}

#[tokio::test]
async fn the_primary_answers_for_a_shadow_that_does_not_know_the_client() {
    let name = "the_primary_answers_for_a_shadow_that_does_not_know_the_client";
    if !has(name, "redis-server") {
        return;
    }
    let options = Options {
        read_from_shadow: true,
        ..Options::default()
    };
    let (servers, front) = pair(&[], options).await;
    let primary = front.ready().await.primary;
    let mut direct = Client::connect(servers[primary].port).await.unwrap();
    assert_eq!(
        direct.ask("ACL SETUSER app on >secret ~* +@all").await,
        text("OK")
    );
    let mut client = front.client().await;
    assert_eq!(client.ask("AUTH app secret").await, text("OK"));
    assert_eq!(client.ask("SET a 1").await, text("OK"));
    for _ in 0..10 {
        assert_eq!(client.ask("GET a").await, text("1"));
        assert_eq!(client.ask("ACL WHOAMI").await, text("app"));
    }
}

#[tokio::test]
async fn what_a_transaction_made_of_the_connection_is_remembered() {
    let name = "what_a_transaction_made_of_the_connection_is_remembered";
    if !has(name, "redis-server") {
        return;
    }
    let (mut servers, front) = pair(&[], Options::default()).await;
    let mut setter = front.client().await;
    let large = setter.ask("SETRANGE large 2000000 x").await;
    assert!(!matches!(large, Reply::Error(_)), "{large:?}");
    for database in 0..6 {
        assert_eq!(setter.ask(&format!("SELECT {database}")).await, text("OK"));
        assert_eq!(setter.ask(&format!("SET n {database}")).await, text("OK"));
    }
    let cases = [
        ("MULTI\nPING\nSELECT 3\nEXEC", "3"),
        ("MULTI\nSELECT 99\nSELECT 4\nEXEC", "4"),
        ("MULTI\nSELECT 5\nPING\nSELECT 99\nEXEC", "5"),
        ("MULTI\nSELECT 2\nEXEC\nMULTI\nPING\nEXEC", "2"),
        // Of a large answer, what is before, between and behind.
        ("MULTI\nSELECT 3\nSELECT 0\nGET large\nEXEC", "0"),
        (
            "MULTI\nSELECT 3\nPING\nEXEC\nMULTI\nSELECT 0\nGET large\nEXEC",
            "0",
        ),
        ("MULTI\nGET large\nSELECT 99\nSELECT 1\nEXEC", "1"),
        ("MULTI\nSELECT 2\nDISCARD", "0"),
        ("MULTI\nSELECT 2\nRESET\nMULTI\nPING\nEXEC", "0"),
    ];
    let mut clients = Vec::new();
    for (ask, _) in cases {
        let mut client = front.client().await;
        client.send(ask).await.unwrap();
        for _ in ask.lines() {
            client.receive().await.unwrap();
        }
        clients.push(client);
    }
    // One that the server will not execute is not executed by the next one either.
    let mut failed = front.client().await;
    assert_eq!(failed.ask("MULTI").await, text("OK"));
    assert!(matches!(failed.ask("GET").await, Reply::Error(_)));
    assert_eq!(failed.ask("SET n x").await, text("QUEUED"));
    kill(&mut servers, &front).await;
    for ((ask, database), client) in cases.iter().zip(&mut clients) {
        assert_eq!(client.ask("GET n").await, text(database), "{ask}");
    }
    let refused = failed.ask("EXEC").await;
    assert!(matches!(&refused, Reply::Error(why) if why.starts_with("EXECABORT")));
    assert_eq!(failed.ask("GET n").await, text("0"));
}

/// How many bytes of commands a front takes for a server that reads nothing, the last megabyte of
/// which it has not sent.
async fn room(front: &Front) -> usize {
    const PIECE: usize = 16 * 1024;
    let mut client = front.client().await;
    let echo = format!("*2\r\n$4\r\nECHO\r\n${PIECE}\r\n{}\r\n", "x".repeat(PIECE));
    let mut taken = 0;
    loop {
        let before = front.counts().await.requests;
        client.send_bytes(echo.as_bytes()).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(1);
        while front.counts().await.requests == before {
            if Instant::now() > deadline {
                return taken;
            }
        }
        taken += echo.len();
    }
}

/// Sends so much to a server that reads nothing that nothing behind it reaches it; how many replies
/// come before those of what is sent next.
async fn fill(front: &Front, client: &mut Client, room: usize) -> usize {
    const PIECE: usize = 16 * 1024;
    let echo = format!("*2\r\n$4\r\nECHO\r\n${PIECE}\r\n{}\r\n", "x".repeat(PIECE));
    let count = room.saturating_sub(512 * 1024) / echo.len();
    let before = front.counts().await.requests;
    client
        .send_bytes(echo.repeat(count).as_bytes())
        .await
        .unwrap();
    until_requests(front, before + count as u64).await;
    count
}

async fn until_requests(front: &Front, requests: u64) {
    let deadline = Instant::now() + BOUND;
    while front.counts().await.requests < requests {
        assert!(Instant::now() < deadline, "{:?}", front.counts().await);
    }
}

/// What the old primary has not read is not in doubt, and leaves nothing open.
#[tokio::test]
async fn what_was_never_sent_is_executed_once_or_said_not_to_be() {
    let name = "what_was_never_sent_is_executed_once_or_said_not_to_be";
    if !has(name, "redis-server") {
        return;
    }
    let options = Options {
        confirm_ms: 10_000,
        ..strict()
    };
    let (mut servers, front) = pair(&[], options.clone()).await;
    let mut plain = front.client().await;
    let mut transaction = front.client().await;
    let mut watched = front.client().await;
    assert_eq!(watched.ask("WATCH w").await, text("OK"));
    let before = front.ready().await;
    servers[before.primary].signal(Signal::STOP);
    let room = room(&front).await;
    println!("{name}: {room} bytes are taken for a server that reads nothing");
    let cases = [
        (&mut plain, "SET a 1\nGET a\nINCR a"),
        (&mut transaction, "MULTI\nINCR b\nEXEC"),
        (&mut watched, "MULTI\nINCR c\nEXEC"),
    ];
    let mut sent = Vec::new();
    for (client, ask) in cases {
        let filled = fill(&front, client, room).await;
        let requests = front.counts().await.requests;
        client.send(ask).await.unwrap();
        until_requests(&front, requests + ask.lines().count() as u64).await;
        sent.push((client, filled));
    }
    servers[before.primary].signal(Signal::KILL);
    front
        .until("another primary", |status| {
            status.epoch > before.epoch && status.stage == "warm"
        })
        .await;
    servers[before.primary].restart();
    front.join(before.primary, &servers[before.primary]).await;
    let mut replies = Vec::new();
    for (client, filled) in &mut sent {
        for _ in 0..*filled {
            assert!(matches!(client.receive().await.unwrap(), Reply::Text(_)));
        }
        let mut last = Vec::new();
        for _ in 0..3 {
            last.push(client.receive().await.unwrap());
        }
        replies.push(last);
    }
    assert_eq!(replies[0], [text("OK"), text("1"), Reply::Number(2)]);
    assert_eq!(replies[1][..2], [text("OK"), text("QUEUED")]);
    assert!(
        matches!(&replies[1][2], Reply::Error(why) if why.starts_with("EXECABORT")),
        "{replies:?}"
    );
    assert_eq!(
        replies[2],
        [text("OK"), text("QUEUED"), Reply::Nothing],
        "what it watched may have changed"
    );
    // None of them is within a transaction.
    for (client, _) in &mut sent {
        assert_eq!(client.ask("GET b").await, Reply::Nothing);
        assert_eq!(client.ask("GET c").await, Reply::Nothing);
    }
    assert_eq!(front.counts().await.unknown, 0);
}

#[tokio::test]
async fn one_that_waits_for_others_moves_over_with_strict_as_well() {
    let name = "one_that_waits_for_others_moves_over_with_strict_as_well";
    if !has(name, "redis-server") {
        return;
    }
    let options = Options {
        confirm_ms: 10_000,
        ..strict()
    };
    let (_servers, front) = pair(&[], options).await;
    let mut client = front.client().await;
    client.send("BLPOP list 0\nGET after").await.unwrap();
    let mut other = front.client().await;
    assert_eq!(other.ask("SET after 1").await, text("OK"));
    let transition = front.hand_over().await;
    assert_eq!(transition.trouble, Vec::<String>::new());
    assert_eq!(other.ask("RPUSH list x").await, Reply::Number(1));
    let popped = Reply::Many(vec![text("list"), text("x")]);
    assert_eq!(client.receive().await.unwrap(), popped);
    assert_eq!(client.receive().await.unwrap(), text("1"));
}

/// Every absence of a shadow is waited for anew.
#[tokio::test]
async fn a_shadow_that_goes_again_is_waited_for_again() {
    let name = "a_shadow_that_goes_again_is_waited_for_again";
    if !has(name, "redis-server") {
        return;
    }
    let options = Options {
        confirm_ms: 3000,
        ..strict()
    };
    let (mut servers, front) = pair(&[], options).await;
    let mut client = front.client().await;
    assert_eq!(client.ask("SET a 1").await, text("OK"));
    servers[1].signal(Signal::KILL);
    front
        .until("no shadow", |status| status.standby.is_none())
        .await;
    let refused = client.ask("SET a 2").await;
    assert!(matches!(&refused, Reply::Error(why) if why.starts_with("NOREPLICAS")));
    servers[1].restart();
    front.join(1, &servers[1]).await;
    front.ready().await;
    servers[1].signal(Signal::KILL);
    front
        .until("no shadow", |status| status.standby.is_none())
        .await;
    client.send("SET a 3").await.unwrap();
    servers[1].restart();
    front.join(1, &servers[1]).await;
    assert_eq!(client.receive().await.unwrap(), text("OK"));
}

/// Waits until the front asked a server twice how it stands.
async fn asked_by_front(server: &mut Client) {
    let calls = |reply: Reply| {
        let Reply::Text(stats) = reply else {
            panic!("{reply:?}")
        };
        let line = stats.lines().find(|line| line.contains("cmdstat_info:"));
        let calls = line.and_then(|line| line.split_once("calls="));
        let calls = calls.and_then(|(_, rest)| rest.split_once(','));
        calls.map_or(0, |(calls, _)| calls.parse::<u64>().unwrap())
    };
    let from = calls(server.ask("INFO commandstats").await);
    let deadline = Instant::now() + BOUND;
    let mut own = 0;
    loop {
        own += 1;
        if calls(server.ask("INFO commandstats").await) >= from + own + 2 {
            return;
        }
        assert!(Instant::now() < deadline);
    }
}

/// `WAIT` counts replicas, whosever they are.
#[tokio::test]
async fn a_replica_of_somebody_else_confirms_nothing() {
    let name = "a_replica_of_somebody_else_confirms_nothing";
    if !has(name, "redis-server") {
        return;
    }
    let (servers, front) = pair(&[], strict()).await;
    let primary = front.ready().await.primary;
    let stranger = Server::start(&[], None);
    let mut strange = Client::connect(stranger.port).await.unwrap();
    let follow = format!("REPLICAOF 127.0.0.1 {}", servers[primary].port);
    assert_eq!(strange.ask(&follow).await, text("OK"));
    let mut direct = Client::connect(servers[primary].port).await.unwrap();
    let online = format!("port={},state=online", stranger.port);
    let deadline = Instant::now() + BOUND;
    loop {
        let Reply::Text(info) = direct.ask("INFO replication").await else {
            panic!()
        };
        // A new one says what it has once a second.
        let line = info.lines().find(|line| line.contains(&online));
        if line.is_some_and(|line| !line.contains("offset=0,")) {
            break;
        }
        assert!(Instant::now() < deadline, "{info}");
    }
    asked_by_front(&mut direct).await;
    let mut client = front.client().await;
    // A server that has just copied everything may take longer for its first word than a client waits.
    while client.ask("SET a 1").await != text("OK") {
        assert!(Instant::now() < deadline);
    }
    servers[1 - primary].signal(Signal::STOP);
    let reply = client.ask("SET a 2").await;
    let Reply::Error(why) = &reply else {
        panic!("acknowledged without the shadow: {reply:?}")
    };
    assert!(why.starts_with("INDOUBT"), "{why}");
    servers[1 - primary].signal(Signal::CONT);
}

/// Who was the primary and has nothing is not preferred to who has something.
#[tokio::test]
async fn an_empty_server_does_not_win_over_one_with_data() {
    let name = "an_empty_server_does_not_win_over_one_with_data";
    if !has(name, "redis-server") {
        return;
    }
    let Some(mut servers) = fenced_servers(name) else {
        return;
    };
    let mut direct = Client::connect(servers[1].port).await.unwrap();
    assert_eq!(direct.ask("SET a 1").await, text("OK"));
    // Nobody was the primary yet: the first one counts as the last.
    let front = Front::start(&servers, Options::default());
    for (slot, server) in servers.iter().enumerate() {
        front.join(slot, server).await;
    }
    front
        .until("the one with data", |status| {
            status.primary == 1 && status.stage == "warm"
        })
        .await;
    assert_eq!(front.client().await.ask("GET a").await, text("1"));
    // The empty one was ended before the other one served, if the front knew of it by then; it comes
    // back as its shadow.
    servers[0].signal(Signal::KILL);
    servers[0].restart();
    front.join(0, &servers[0]).await;
    front.ready().await;
    let mut first = Client::connect(servers[0].port).await.unwrap();
    assert_eq!(first.ask("GET a").await, text("1"));
}
