//! Contents beside the connection: sockets of the system's stand in for rsockets, which need a device. What goes
//! over rsockets for real is tested in a guest (`tests/vm/rdma.sh`).

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use forebay_host::rdma::GoOn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::frame::CHUNK_MAX;
use super::super::rdma::{Accepts, Bytes, Choice, Door, Offered, Ways};
use super::super::wire::{self, Hello};
use super::handshakes::greeted;
use super::*;
use crate::config::Rdma;

/// A network of sockets of the system's, on which somebody listens and may do worse.
#[derive(Debug, Default)]
struct Loopback {
    /// There is no device.
    lacks: AtomicBool,
    /// Everything that went over it.
    heard: Mutex<Vec<u8>>,
    /// The byte, counted from the first, that is changed on its way; none at 0.
    changes: AtomicU64,
    /// The byte at which it breaks; none at 0.
    breaks: AtomicU64,
    /// How many connections were made.
    connected: AtomicU64,
}

#[derive(Debug)]
struct Net(Arc<Loopback>);

struct Tcp {
    stream: TcpStream,
    net: Arc<Loopback>,
}

struct Port(TcpListener, Arc<Loopback>);

/// Until something can be done, or so long that it is to be asked whether to go on.
fn wait(socket: &impl AsFd, flags: PollFlags) -> io::Result<()> {
    let slice = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    poll(
        &mut [PollFd::from_borrowed_fd(socket.as_fd(), flags)],
        Some(&slice),
    )?;
    Ok(())
}

fn patiently<T>(
    socket: &impl AsFd,
    flags: PollFlags,
    go_on: GoOn<'_>,
    mut does: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match does() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                go_on()?;
                wait(socket, flags)?;
            }
            done => return done,
        }
    }
}

impl Bytes for Tcp {
    fn receive(&self, into: &mut [u8], go_on: GoOn<'_>) -> io::Result<usize> {
        patiently(&self.stream, PollFlags::IN, go_on, || {
            (&self.stream).read(into)
        })
    }

    fn send(&self, bytes: &[u8], go_on: GoOn<'_>) -> io::Result<usize> {
        patiently(&self.stream, PollFlags::OUT, go_on, || {
            let mut heard = self.net.heard.lock().unwrap();
            let at = u64::try_from(heard.len()).unwrap();
            let within = |place: u64| {
                let place = place.checked_sub(at)?;
                usize::try_from(place).ok().filter(|at| *at < bytes.len())
            };
            if within(self.net.breaks.load(Ordering::Relaxed)).is_some_and(|at| at > 0) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut bytes = bytes.to_vec();
            if let Some(at) = within(self.net.changes.load(Ordering::Relaxed)).filter(|at| *at > 0)
            {
                bytes[at] ^= 1;
            }
            let sent = (&self.stream).write(&bytes)?;
            heard.extend(&bytes[..sent]);
            Ok(sent)
        })
    }
}

impl Accepts for Port {
    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn accept(&self, go_on: GoOn<'_>) -> io::Result<(Box<dyn Bytes>, SocketAddr)> {
        let (stream, from) = patiently(&self.0, PollFlags::IN, go_on, || self.0.accept())?;
        stream.set_nonblocking(true)?;
        let net = Arc::clone(&self.1);
        Ok((Box::new(Tcp { stream, net }), from))
    }
}

impl Ways for Net {
    fn find(&self) -> Result<Vec<String>, String> {
        match self.0.lacks.load(Ordering::Relaxed) {
            true => Err("the last device is gone".to_owned()),
            false => Ok(vec!["loop0".to_owned()]),
        }
    }

    fn connect(&self, to: SocketAddr, _: GoOn<'_>) -> io::Result<Box<dyn Bytes>> {
        let stream = TcpStream::connect(to)?;
        stream.set_nonblocking(true)?;
        self.0.connected.fetch_add(1, Ordering::Relaxed);
        let net = Arc::clone(&self.0);
        Ok(Box::new(Tcp { stream, net }))
    }

    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Accepts>> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(Box::new(Port(listener, Arc::clone(&self.0))))
    }
}

fn choice(wanted: Rdma, net: &Arc<Loopback>) -> Choice {
    let ways = Arc::new(Net(Arc::clone(net)));
    Choice { wanted, ways }
}

/// An agent that lets streams in, as soon as it does.
async fn open(identity: Arc<Identity>, choice: Choice) -> Agent {
    let door = Door::open(choice, IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
    if let Some(door) = &door {
        until("streams are let in", || door.is_open()).await;
    }
    let listener = Listener::bind(identity, None, "127.0.0.1:0").await.unwrap();
    let listener = listener.with_door(door);
    let (keeper, address) = (Arc::new(Keeper::default()), listener.address().to_string());
    let (end, ended) = oneshot::channel::<()>();
    tokio::spawn(listener.serve(Arc::clone(&keeper), async {
        ended.await.ok();
    }));
    Agent {
        address,
        keeper,
        _end: end,
    }
}

/// A fleet with an agent at `b` and what leads there from `c`.
struct Hosts {
    fleet: Fleet,
    net: Arc<Loopback>,
    there: Agent,
}

impl Hosts {
    async fn begin(wanted: Rdma) -> Self {
        let (fleet, net) = (Fleet::begin(), Arc::new(Loopback::default()));
        let there = open(fleet.host("b"), choice(wanted, &net)).await;
        Self { fleet, net, there }
    }

    async fn link(&self, wanted: Rdma) -> Link {
        let (from, to) = (self.fleet.host("c"), name("b"));
        let link = Link::connect(&from, &to, &self.there.address, BOUND);
        link.await.unwrap().prefer(choice(wanted, &self.net))
    }

    fn kept(&self) -> Kept {
        self.there.keeper.contents.lock().unwrap().pop().unwrap()
    }

    fn heard(&self) -> usize {
        self.net.heard.lock().unwrap().len()
    }
}

async fn send(link: &mut Link, bytes: &[u8]) -> Result<Answer, Error> {
    let all = u64::try_from(bytes.len()).unwrap();
    let progress = Progress::default();
    let sending = sending(&progress, Compress::Never);
    let mut source = bytes;
    link.send(&content(Some(all)), &mut source, sending).await
}

/// Where the byte is that comes this far into what is heard next.
fn ahead_by(hosts: &Hosts, bytes: usize) -> u64 {
    u64::try_from(hosts.heard() + bytes).unwrap()
}

const SECRET: &[u8] = b"the memory of an application";

/// Bytes that somebody who listens would know again.
fn secrets(length: usize) -> Vec<u8> {
    SECRET.iter().copied().cycle().take(length).collect()
}

#[tokio::test]
async fn contents_go_beside_the_connection_and_nobody_reads_them() {
    let hosts = Hosts::begin(Rdma::Auto).await;
    let mut link = hosts.link(Rdma::Auto).await;
    for length in [0, 1, CHUNK_MAX, CHUNK_MAX + 1, 3 * CHUNK_MAX + 17] {
        let (sent, before) = (secrets(length), hosts.heard());
        let bytes = u64::try_from(length).unwrap();
        let answer = send(&mut link, &sent).await.unwrap();
        assert_eq!(answer, Answer::Taken { bytes });
        assert!(hosts.kept().unwrap() == sent, "{length}");
        assert!(hosts.heard() > before + length, "it went another way");
        let carried = link.carried().unwrap();
        assert_eq!((carried.by, carried.why), (Transport::Rdma, None));
        // Questions go on between.
        link.ask(&question(), BOUND).await.unwrap();
    }
    assert_eq!(
        hosts.net.connected.load(Ordering::Relaxed),
        1,
        "one stream is enough"
    );
    let heard = hosts.net.heard.lock().unwrap();
    let is_readable = heard.windows(SECRET.len()).any(|part| part == SECRET);
    assert!(!is_readable, "it is not encrypted");
}

#[tokio::test]
async fn what_is_changed_on_the_way_is_not_taken_in() {
    let hosts = Hosts::begin(Rdma::Auto).await;
    let mut link = hosts.link(Rdma::Auto).await;
    send(&mut link, &secrets(10)).await.unwrap();
    hosts.kept().unwrap();
    hosts
        .net
        .changes
        .store(ahead_by(&hosts, 2000), Ordering::Relaxed);
    let answer = send(&mut link, &secrets(CHUNK_MAX)).await;
    if let Ok(answer) = answer {
        assert!(
            matches!(&answer, Answer::Refused(refused) if refused.why == Why::Incomplete),
            "{answer:?}"
        );
    }
    until("it was judged", || {
        !hosts.there.keeper.contents.lock().unwrap().is_empty()
    })
    .await;
    let (kind, text) = hosts.kept().unwrap_err();
    assert_eq!(kind, Kind::Corrupt, "{text}");
    assert!(text.contains("not what was sent next over RDMA"), "{text}");
    // The next one is as good as the first.
    hosts.net.changes.store(0, Ordering::Relaxed);
    let mut link = hosts.link(Rdma::Auto).await;
    send(&mut link, &secrets(CHUNK_MAX)).await.unwrap();
    assert!(hosts.kept().unwrap() == secrets(CHUNK_MAX));
}

#[tokio::test]
async fn a_stream_that_breaks_is_a_connection_that_breaks() {
    let hosts = Hosts::begin(Rdma::Auto).await;
    let mut link = hosts.link(Rdma::Auto).await;
    send(&mut link, &secrets(10)).await.unwrap();
    hosts.kept().unwrap();
    hosts
        .net
        .breaks
        .store(ahead_by(&hosts, CHUNK_MAX + 500), Ordering::Relaxed);
    match send(&mut link, &secrets(3 * CHUNK_MAX)).await {
        Err(error) => check(&error, Kind::Cut, &["b at", "ended in the middle"]),
        Ok(Answer::Refused(refused)) => assert_eq!(refused.why, Why::Incomplete, "{refused:?}"),
        Ok(other) => panic!("{other:?}"),
    }
    assert!(
        link.is_broken(),
        "nothing goes on by another way in the middle"
    );
    until("it was judged", || {
        !hosts.there.keeper.contents.lock().unwrap().is_empty()
    })
    .await;
    let (kind, text) = hosts.kept().unwrap_err();
    assert_eq!(kind, Kind::Cut, "{text}");
    // With the device gone, the next attempt goes over TCP, and says why.
    hosts.net.lacks.store(true, Ordering::Relaxed);
    let mut link = hosts.link(Rdma::Auto).await;
    send(&mut link, &secrets(CHUNK_MAX)).await.unwrap();
    assert!(hosts.kept().unwrap() == secrets(CHUNK_MAX));
    let carried = link.carried().unwrap();
    assert_eq!(carried.by, Transport::Tcp);
    assert!(carried.why.unwrap().contains("the last device is gone"));
}

#[tokio::test]
async fn without_rdma_at_either_end_contents_go_over_tcp_or_where_it_is_required_not_at_all() {
    // Each with what is said.
    let lacks = Hosts::begin(Rdma::Auto).await;
    let offers_none = Hosts::begin(Rdma::Off).await;
    lacks.net.lacks.store(true, Ordering::Relaxed);
    for (hosts, why) in [
        (&lacks, "this host has none: the last device is gone"),
        (&offers_none, "the other host offers none"),
    ] {
        let mut link = hosts.link(Rdma::Auto).await;
        send(&mut link, &secrets(1000)).await.unwrap();
        assert!(hosts.kept().unwrap() == secrets(1000));
        let carried = link.carried().unwrap();
        assert_eq!(carried.by, Transport::Tcp);
        assert!(carried.why.as_ref().unwrap().contains(why), "{carried:?}");

        let asked = hosts.there.keeper.asked();
        let mut link = hosts.link(Rdma::Require).await;
        let error = send(&mut link, &secrets(1000)).await.unwrap_err();
        check(
            &error,
            Kind::Refused,
            &["b at", why, "\"require\"", "\"auto\""],
        );
        assert_eq!(hosts.there.keeper.asked(), asked, "nothing went over");
        assert_eq!(link.carried(), None);
        assert_eq!(hosts.heard(), 0);
    }
    // Where it is off nobody asks why.
    let hosts = Hosts::begin(Rdma::Auto).await;
    let mut link = hosts.link(Rdma::Off).await;
    send(&mut link, &secrets(1000)).await.unwrap();
    let carried = link.carried().unwrap();
    assert_eq!((carried.by, carried.why), (Transport::Tcp, None));
    assert_eq!(hosts.heard(), 0);
}

#[tokio::test]
async fn who_requires_rdma_takes_nothing_in_by_another_way() {
    let hosts = Hosts::begin(Rdma::Require).await;
    let mut link = hosts.link(Rdma::Off).await;
    let Answer::Refused(refused) = send(&mut link, &secrets(1000)).await.unwrap() else {
        panic!("it came over TCP");
    };
    assert_eq!(refused.why, Why::NotAllowed);
    assert!(
        refused.message.contains("by RDMA or not at all"),
        "{}",
        refused.message
    );
    assert_eq!(hosts.there.keeper.asked(), 0);
    let mut link = hosts.link(Rdma::Require).await;
    send(&mut link, &secrets(1000)).await.unwrap();
    assert!(hosts.kept().unwrap() == secrets(1000));
    assert_eq!(link.carried().unwrap().by, Transport::Rdma);
}

/// A stream that somebody was offered, who then does something else with it.
async fn offered(hosts: &Hosts) -> (Offered, impl Sized + use<>) {
    let mut stream = greeted(&hosts.fleet.host("c"), "b", &hosts.there.address).await;
    let asked = wire::Asked {
        within_ms: 1000,
        request: Request::Rdma,
        by: Transport::Tcp,
    };
    wire::send(&mut stream, &asked).await.unwrap();
    let answer = wire::receive::<Answer, _>(&mut stream, "b", "answer").await;
    let Some(Answer::Rdma(offered)) = answer.unwrap() else {
        panic!("it offers none");
    };
    (offered, stream)
}

/// What somebody hears who says this to whoever lets streams in; bounded by what may come of it.
fn knock(address: SocketAddr, said: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    for part in said {
        stream.write_all(part).unwrap();
    }
    let mut heard = Vec::new();
    // What it did not read may make the end a reset.
    match stream.read_to_end(&mut heard) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("it is not cut"),
        _ => heard,
    }
}

#[tokio::test]
async fn who_was_not_given_a_token_hears_nothing() {
    let hosts = Hosts::begin(Rdma::Auto).await;
    let (offered, _link) = offered(&hosts).await;
    let token = URL_SAFE_NO_PAD.decode(&offered.token).unwrap();
    let garbage = [
        1, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    ];
    let address = offered.address;
    let none: Vec<u8> = Vec::new();
    let knocks = tokio::task::spawn_blocking(move || {
        let mut heard = vec![knock(address, &[&[9; 32], &garbage])];
        // The token alone lets nobody in, and stays good for whom it was given.
        heard.push(knock(address, &[&token, &garbage]));
        heard.push(knock(
            address,
            &[b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n"],
        ));
        heard
    });
    for heard in knocks.await.unwrap() {
        assert_eq!(heard, none);
    }
    // Others are let in meanwhile.
    let mut link = hosts.link(Rdma::Auto).await;
    send(&mut link, &secrets(1000)).await.unwrap();
    assert_eq!(link.carried().unwrap().by, Transport::Rdma);
    hosts.kept().unwrap();

    // One that was used is good for nobody: what lets a stream in, said again.
    let heard = hosts.net.heard.lock().unwrap().clone();
    let address = offered.address;
    let again = tokio::task::spawn_blocking(move || knock(address, &[&heard[..32 + 21]]));
    assert_eq!(again.await.unwrap(), none);
}

#[tokio::test]
async fn a_content_that_is_said_to_come_by_a_stream_that_nobody_asked_for_is_refused() {
    let hosts = Hosts::begin(Rdma::Auto).await;
    let mut stream = greeted(&hosts.fleet.host("c"), "b", &hosts.there.address).await;
    let asked = wire::Asked {
        within_ms: 1000,
        request: content(Some(10)),
        by: Transport::Rdma,
    };
    wire::send(&mut stream, &asked).await.unwrap();
    let answer = wire::receive::<Answer, _>(&mut stream, "b", "answer").await;
    let Some(Answer::Refused(refused)) = answer.unwrap() else {
        panic!("it is taken in");
    };
    assert!(
        refused.message.contains("no stream over RDMA"),
        "{}",
        refused.message
    );
    assert_eq!(hosts.there.keeper.asked(), 0);
}

#[tokio::test]
async fn who_says_nothing_takes_nobodys_place() {
    let hosts = Hosts::begin(Rdma::Auto).await;
    let (offered, _link) = offered(&hosts).await;
    let mut silent = Vec::new();
    for _ in 0..12 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(offered.address).await.unwrap());
    }
    let mut link = hosts.link(Rdma::Require).await;
    send(&mut link, &secrets(1000)).await.unwrap();
    assert_eq!(link.carried().unwrap().by, Transport::Rdma);
}

#[tokio::test]
async fn a_device_that_comes_and_goes_is_noticed() {
    let net = Arc::new(Loopback::default());
    net.lacks.store(true, Ordering::Relaxed);
    let door = Door::open(choice(Rdma::Auto, &net), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let door = door.unwrap().unwrap();
    assert!(!door.is_open());
    for lacks in [false, true, false] {
        net.lacks.store(lacks, Ordering::Relaxed);
        until("it is noticed", || door.is_open() != lacks).await;
    }
}

#[test]
fn what_hosts_from_before_say_is_understood() {
    let hello = "{\"forebay\": \"0.1.0\", \"protocol\": 1, \"host\": \"b\", \"clock_unix_ms\": 5}";
    let hello: Hello = serde_json::from_str(hello).unwrap();
    assert!(!hello.rdma, "nothing that it does not know is asked of it");
    let asked = serde_json::json!({"within_ms": 1000, "request": question()});
    let asked: wire::Asked = serde_json::from_value(asked).unwrap();
    assert_eq!(asked.by, Transport::Tcp);
}
