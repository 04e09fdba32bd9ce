//! Who is let in, and who is not.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::wire::{self, Hello, PROTOCOL};
use super::super::{identity::Contents, verify};
use super::*;

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// Agrees on TLS as a host does, and says nothing.
pub(super) async fn knock(identity: &Identity, to: &str, address: &str) -> Tls {
    let clock = identity.clock();
    let config = verify::client(&identity.credentials(), &name(to), clock).unwrap();
    let socket = TcpStream::connect(address).await.unwrap();
    let ip = socket.peer_addr().unwrap().ip();
    let tls = TlsConnector::from(Arc::new(config));
    tls.connect(ServerName::IpAddress(ip.into()), socket)
        .await
        .unwrap()
}

/// Greets as a host does.
pub(super) async fn greeted(identity: &Identity, to: &str, address: &str) -> Tls {
    let mut stream = knock(identity, to, address).await;
    let clock = &**identity.clock();
    let ours = Hello::new(identity.host(), clock);
    wire::greet(&mut stream, (ours, clock), &name(to), "test")
        .await
        .unwrap();
    stream
}

#[tokio::test]
async fn hosts_of_a_fleet_know_each_other() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let mut link = Link::connect(&fleet.host("c"), &name("b"), &there.address, BOUND)
        .await
        .unwrap();
    assert_eq!(link.peer().host, name("b"));
    assert!(link.peer().clock_ahead_ms.abs() < 60_000);
    for _ in 0..3 {
        let Answer::State(state) = link.ask(&question(), BOUND).await.unwrap() else {
            panic!("no state");
        };
        assert_eq!(state.from, Some(name("c")));
    }
    assert_eq!(there.keeper.asked(), 3);
    link.close().await;
}

#[tokio::test]
async fn a_host_of_another_fleet_is_refused_by_both() {
    let (fleet, other) = (Fleet::begin(), Fleet::begin());
    let there = agent(fleet.host("b")).await;
    let error = Link::connect(&other.host("c"), &name("b"), &there.address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::NotOfFleet,
        &["b at 127.0.0.1", "not of this fleet", "forebay fleet join"],
    );

    // One that believes the other side, and is not believed.
    let mut mixed = Contents::read(&other.dir("c")).unwrap();
    mixed.authority = Contents::read(&fleet.dir("b")).unwrap().authority;
    mixed.store(&fleet.dir("mixed")).unwrap();
    let mixed = Identity::load(&fleet.dir("mixed"), system_clock()).unwrap();
    let mixed = Arc::new(mixed);
    let error = Link::connect(&mixed, &name("b"), &there.address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::NotOfFleet,
        &["b at 127.0.0.1", "another fleet", "forebay fleet join"],
    );
    assert_eq!(there.keeper.asked(), 0);
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_refused_by_both() {
    let fleet = Fleet::begin();
    fleet.host("b");
    let late = agent(fleet.host_at("b", ahead(40 * DAY))).await;
    let error = Link::connect(&fleet.host("c"), &name("b"), &late.address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::Validity,
        &[
            "b at 127.0.0.1",
            "the clock here says",
            "forebay fleet renew",
        ],
    );
    let there = agent(fleet.host("b")).await;
    let late = fleet.host_at("c", ahead(40 * DAY));
    let error = Link::connect(&late, &name("b"), &there.address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::Validity,
        &["its certificate ended at", "set both clocks"],
    );
}

#[tokio::test]
async fn another_host_than_was_meant_is_hung_up_on() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let error = Link::connect(&fleet.host("c"), &name("d"), &there.address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::WrongHost,
        &["d at 127.0.0.1", "it is b, and d was meant"],
    );
}

#[tokio::test]
async fn a_host_that_calls_itself_another_is_hung_up_on() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let c = fleet.host("c");
    let mut stream = knock(&c, "b", &there.address).await;
    wire::send(&mut stream, &Hello::new(name("d"), &**c.clock()))
        .await
        .unwrap();
    let _: Hello = wire::receive(&mut stream, "b", "greet")
        .await
        .unwrap()
        .unwrap();
    wire::send(
        &mut stream,
        &wire::Asked {
            within_ms: 1000,
            request: question(),
            by: Transport::Tcp,
        },
    )
    .await
    .ok();
    let answer = wire::receive::<Answer, _>(&mut stream, "b", "answer").await;
    assert!(matches!(answer, Ok(None) | Err(_)), "{answer:?}");
    assert_eq!(there.keeper.asked(), 0);
}

#[tokio::test]
async fn who_shows_no_certificate_hears_nothing() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let credentials = fleet.host("c").credentials();
    let (authority, fleet_name) = (
        credentials.contents.authority.clone(),
        credentials.fleet.clone(),
    );
    let authority = pem_fingerprint(&authority);
    let mut config = verify::joiner(authority, fleet_name, &name("b"), &system_clock()).unwrap();
    config.alpn_protocols = vec![verify::LINK.to_vec()];
    let socket = TcpStream::connect(&there.address).await.unwrap();
    let tls = TlsConnector::from(Arc::new(config));
    let mut stream = tls
        .connect(ServerName::try_from("x.invalid").unwrap(), socket)
        .await
        .unwrap();
    // TLS 1.3 lets the client finish first.
    let mut heard = Vec::new();
    let error = stream.read_to_end(&mut heard).await.unwrap_err();
    let error = Error::io("b", "hear it", &error);
    check(
        &error,
        Kind::NotOfFleet,
        &["shows no certificate", "forebay fleet join"],
    );
    assert!(heard.is_empty(), "{heard:?}");
    assert_eq!(there.keeper.asked(), 0);
}

pub(super) fn pem_fingerprint(pem: &str) -> String {
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    verify::fingerprint(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
}

#[tokio::test]
async fn who_does_not_speak_tls_hears_nothing() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    for said in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        b"\0\0\0\0",
        b"SSH-2.0-x\r\n",
    ] {
        let mut socket = TcpStream::connect(&there.address).await.unwrap();
        socket.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        // What it did not read may make the end a reset.
        socket.read_to_end(&mut heard).await.ok();
        assert!(heard.is_empty(), "{heard:?}");
    }
    // Nothing but an alert of TLS.
    let mut socket = TcpStream::connect(&there.address).await.unwrap();
    socket
        .write_all(b"\x16\x03\x01\x00\x05garbage and more of it")
        .await
        .unwrap();
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard).await.ok();
    assert!(
        heard.is_empty() || (heard[0] == 0x15 && heard.len() == 7),
        "{heard:?}"
    );
    assert_eq!(there.keeper.asked(), 0);
}

#[tokio::test]
async fn an_address_that_is_no_agent_is_said_to_be_none() {
    let fleet = Fleet::begin();
    let c = fleet.host("c");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let speaks = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket
            .write_all(b"220 mail.example.org ESMTP\r\n")
            .await
            .unwrap();
        let mut heard = Vec::new();
        socket.read_to_end(&mut heard).await.ok();
    });
    let error = Link::connect(&c, &name("b"), &address, BOUND)
        .await
        .unwrap_err();
    check(&error, Kind::Garbage, &[&address, "does not speak TLS"]);
    speaks.await.unwrap();
    // Nobody listens there any more.
    let error = Link::connect(&c, &name("b"), &address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::Unreachable,
        &[&address, "look whether its agent runs"],
    );
}

#[tokio::test]
async fn who_is_slow_is_cut_and_takes_nobodys_place() {
    let fleet = Fleet::begin();
    let patience = Patience {
        handshake: Duration::from_secs(2),
        ..Patience::default()
    };
    let there = agent_with(fleet.host("b"), None, Keeper::default(), patience).await;
    let address: SocketAddr = there.address.parse().unwrap();
    let mut slow = Vec::new();
    for i in 0..20 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        // Some say nothing, and some begin.
        if i % 2 == 0 {
            stream.write_all(&[0x16, 3]).await.ok();
        }
        slow.push(stream);
    }
    let mut link = Link::connect(&fleet.host("c"), &name("b"), &there.address, BOUND)
        .await
        .unwrap();
    link.ask(&question(), BOUND).await.unwrap();
    for mut stream in slow {
        let mut heard = Vec::new();
        let ended = tokio::time::timeout(BOUND, stream.read_to_end(&mut heard)).await;
        ended.expect("it is cut").ok();
        assert!(heard.is_empty(), "{heard:?}");
    }
    link.ask(&question(), BOUND).await.unwrap();
}

#[tokio::test]
async fn a_host_takes_no_more_connections_than_it_may() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let (c, d) = (fleet.host("c"), fleet.host("d"));
    let mut links = Vec::new();
    for _ in 0..16 {
        links.push(
            Link::connect(&c, &name("b"), &there.address, BOUND)
                .await
                .unwrap(),
        );
    }
    for link in &mut links {
        link.ask(&question(), BOUND).await.unwrap();
    }
    let mut more = Link::connect(&c, &name("b"), &there.address, BOUND)
        .await
        .unwrap();
    let Answer::Refused(refused) = more.ask(&question(), BOUND).await.unwrap() else {
        panic!("it has more than it may");
    };
    assert_eq!(refused.why, Why::Busy);
    assert!(
        refused.message.contains("c has 16 connections"),
        "{}",
        refused.message
    );
    let mut other = Link::connect(&d, &name("b"), &there.address, BOUND)
        .await
        .unwrap();
    assert!(matches!(
        other.ask(&question(), BOUND).await.unwrap(),
        Answer::State(_)
    ));
}

#[tokio::test]
async fn a_connection_too_many_is_held_no_longer_than_it_may_agree() {
    let fleet = Fleet::begin();
    let c = fleet.host("c");
    let full = async |handshake| {
        let patience = Patience {
            handshake,
            ..Patience::default()
        };
        let there = agent_with(fleet.host("b"), None, Keeper::default(), patience).await;
        let mut links = Vec::new();
        for _ in 0..16 {
            let link = Link::connect(&c, &name("b"), &there.address, BOUND).await;
            links.push(link.unwrap());
        }
        for link in &mut links {
            link.ask(&question(), BOUND).await.unwrap();
        }
        (there, links)
    };
    let (there, mut links) = full(Duration::from_secs(2)).await;
    let mut more = greeted(&c, "b", &there.address).await;
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(BOUND, more.read_to_end(&mut heard)).await;
    ended.expect("it is cut").ok();
    assert!(heard.is_empty(), "{heard:?}");
    for link in &mut links {
        link.ask(&question(), BOUND).await.unwrap();
    }

    // There are no more of them than may agree at a time.
    let (there, _links) = full(Duration::from_secs(300)).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(greeted(&c, "b", &there.address).await);
    }
    let d = fleet.host("d");
    let connect = async || Link::connect(&d, &name("b"), &there.address, BOUND).await;
    let error = connect().await.unwrap_err();
    check(&error, Kind::Cut, &["b at"]);
    drop(silent);
    let began = tokio::time::Instant::now();
    while connect().await.is_err() {
        assert!(began.elapsed() < BOUND, "their places are free again");
    }
}

#[tokio::test]
async fn another_version_is_refused_with_both() {
    let fleet = Fleet::begin();
    let (b, c) = (fleet.host("b"), fleet.host("c"));
    let newer = |host: &str, clock: &Clock| Hello {
        forebay: "9.9.9".to_owned(),
        protocol: PROTOCOL + 1,
        ..Hello::new(name(host), &**clock)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = verify::server(&b.credentials(), b.clock()).unwrap();
    let hello = newer("b", b.clock());
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config))
            .accept(socket)
            .await
            .unwrap();
        wire::send(&mut stream, &hello).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    let error = Link::connect(&c, &name("b"), &address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::Version,
        &[
            "b at",
            "runs Forebay 9.9.9 and speaks version 2",
            "same version",
        ],
    );

    // The side that is asked says nothing more to one that is newer.
    let there = agent(b).await;
    let mut stream = knock(&c, "b", &there.address).await;
    wire::send(&mut stream, &newer("c", c.clock()))
        .await
        .unwrap();
    let _: Hello = wire::receive(&mut stream, "b", "greet")
        .await
        .unwrap()
        .unwrap();
    let asked = wire::Asked {
        within_ms: 1000,
        request: question(),
        by: Transport::Tcp,
    };
    wire::send(&mut stream, &asked).await.ok();
    let answer = wire::receive::<Answer, _>(&mut stream, "b", "answer").await;
    assert!(matches!(answer, Ok(None) | Err(_)), "{answer:?}");
    assert_eq!(there.keeper.asked(), 0);
}

#[tokio::test]
async fn clocks_a_little_apart_do_and_ten_minutes_are_refused_with_both() {
    let fleet = Fleet::begin();
    // Made a moment ago, by a clock that is right.
    let there = agent(fleet.host("b")).await;
    fleet.host("c");
    for seconds in [-295, 295] {
        let c = fleet.host_at("c", ahead(seconds));
        let mut link = Link::connect(&c, &name("b"), &there.address, BOUND)
            .await
            .unwrap();
        link.ask(&question(), BOUND).await.unwrap();
        let apart = link.peer().clock_ahead_ms + seconds * 1000;
        assert!(apart.abs() < 5000, "{apart}");
    }
    for seconds in [-3000, -600, -310, 310, 600, 3600, 10 * DAY] {
        let c = fleet.host_at("c", ahead(seconds));
        let error = Link::connect(&c, &name("b"), &there.address, BOUND)
            .await
            .unwrap_err();
        let words = [
            "b at",
            "its clock says",
            "the clock of this host",
            "set both clocks",
        ];
        check(&error, Kind::Clocks, &words);
    }
    // Further behind than certificates begin before they are made.
    let c = fleet.host_at("c", ahead(-4000));
    let error = Link::connect(&c, &name("b"), &there.address, BOUND)
        .await
        .unwrap_err();
    let words = [
        "b at",
        "its certificate begins at",
        "the clock here says",
        "set both clocks",
    ];
    check(&error, Kind::Validity, &words);
    assert_eq!(there.keeper.asked(), 2);
}

#[tokio::test]
async fn only_its_owner_asks_for_room_for_an_application() {
    use forebay_core::fleet::Ownership;

    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let mut link = Link::connect(&fleet.host("c"), &name("b"), &there.address, BOUND)
        .await
        .unwrap();
    let reserve = |owner: &str| {
        Request::Reserve(messages::Reserve {
            app: "web".parse().unwrap(),
            record: Ownership::first(name(owner)),
            class: forebay_core::app::Class::Critical,
            need: forebay_core::fleet::choice::Room::default(),
            manner: messages::Manner::Checkpoint,
            requires: ["criu-4".to_owned()].into(),
            look: forebay_core::fleet::policy::Look::Ahead,
            homes: Vec::new(),
        })
    };
    let Answer::Refused(refused) = link.ask(&reserve("d"), BOUND).await.unwrap() else {
        panic!("it is d's");
    };
    assert_eq!(refused.why, Why::NotAllowed);
    assert!(
        refused.message.contains("belongs to d, and c asks"),
        "{}",
        refused.message
    );
    assert_eq!(there.keeper.asked(), 0);
    link.ask(&reserve("c"), BOUND).await.unwrap();
    assert_eq!(there.keeper.asked(), 1);
}
