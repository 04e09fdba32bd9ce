//! Connections that are read, closed without a word and made anew, between two network namespaces with a pair of virtual
//! links. Needs root and ip(8).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a fixture that fails should stop the test, and one that is skipped says so"
)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_host::tcp_repair::{Frozen, News, Rule, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than the test takes.
const HELD: Duration = Duration::from_secs(60);

/// Which addresses are used.
#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// Two namespaces and what is between them; gone when this is.
struct Stage {
    server: String,
    client: String,
    family: Family,
}

impl Stage {
    /// None, with a line that says why, where there can be no namespaces.
    fn new(test: &str, family: Family) -> Option<Self> {
        static NUMBER: AtomicU8 = AtomicU8::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let ip_is_there = Command::new("ip").arg("-V").output().is_ok();
        if !rustix::process::geteuid().is_root() || !ip_is_there {
            println!("SKIPPED: {test}: needs root, and ip(8) of iproute2");
            return None;
        }
        let name = |end: &str| format!("fbr{end}{}-{number}", std::process::id());
        let stage = Self {
            server: name("s"),
            client: name("c"),
            family,
        };
        let Self { server, client, .. } = &stage;
        for namespace in [server, client] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!(
            "-n {server} link add near type veth peer name far netns {client}"
        ));
        ip(&format!("-n {server} link set near up"));
        ip(&format!("-n {client} link set far up"));
        let (here, there) = (stage.here(), stage.there());
        stage.address("add");
        ip(&format!("-n {client} address add {there} dev far nodad"));
        println!("{test}: {here} and {there}");
        Some(stage)
    }

    /// Nothing is written there: it gives the rule its name.
    fn state_dir(&self) -> PathBuf {
        PathBuf::from(&self.server)
    }

    const fn here(&self) -> &'static str {
        match self.family {
            Family::V4 => "10.91.0.1/24",
            Family::V6 => "fd91::1/64",
        }
    }

    const fn there(&self) -> &'static str {
        match self.family {
            Family::V4 => "10.91.0.2/24",
            Family::V6 => "fd91::2/64",
        }
    }

    fn host(&self) -> IpAddr {
        let (address, _) = self.here().split_once('/').unwrap();
        address.parse().unwrap()
    }

    /// Adds the server's address, or deletes it.
    fn address(&self, verb: &str) {
        let nodad = if verb == "add" { " nodad" } else { "" };
        let (server, here) = (&self.server, self.here());
        ip(&format!(
            "-n {server} address {verb} {here} dev near{nodad}"
        ));
    }

    /// Does something where the server is.
    fn at_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.server, work)
    }

    fn at_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.client, work)
    }

    /// A connection: the server's end, and the client's.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let host = self.host();
        let listener = self.at_server(|| TcpListener::bind((host, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let client = self.at_client(|| TcpStream::connect(address).unwrap());
        let (server, _) = listener.accept().unwrap();
        for stream in [&server, &client] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        (server, client)
    }

    fn hold(&self, address: SocketAddr) {
        self.at_server(|| {
            Rule::of(&self.state_dir(), [address])
                .unwrap()
                .put(HELD)
                .unwrap()
        });
    }

    fn open(&self) {
        self.at_server(|| Rule::remove(&self.state_dir()).unwrap());
    }

    /// Reads a connection and closes it, as a host does that goes down; its address goes with it.
    fn write_down(&self, server: TcpStream) -> Frozen {
        self.hold(server.local_addr().unwrap());
        let frozen = socket::freeze(server.as_fd()).unwrap();
        drop(server);
        self.address("delete");
        frozen
    }

    /// Makes it anew once the address is there again, as the next boot does.
    fn make(&self, frozen: &Frozen) -> TcpStream {
        let made = self.at_server(|| {
            let news = News::open().unwrap();
            let until = Instant::now() + PATIENCE;
            let early = socket::make(frozen).unwrap_err();
            assert!(socket::is_premature(&early), "{early}");
            std::thread::scope(|scope| {
                scope.spawn(|| self.address("add"));
                loop {
                    assert!(news.wait(until).unwrap(), "the address does not come");
                    match socket::make(frozen) {
                        Ok(made) => return made,
                        Err(error) => assert!(socket::is_premature(&error), "{error}"),
                    }
                }
            })
        });
        self.open();
        socket::go_on(made.as_fd(), frozen).unwrap();
        stream(made)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The links go with them.
        for namespace in [&self.server, &self.client] {
            ip(&format!("netns delete {namespace}"));
        }
    }
}

fn stream(made: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(made);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {line}: {error}");
}

fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let done = scope.spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        done.join().unwrap()
    })
}

/// Bytes that tell where they are from: so many, beginning at this one.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    let byte = |at: usize| {
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        number.wrapping_mul(2_654_435_761).to_le_bytes()[3]
    };
    (from..from + length).map(byte).collect()
}

/// Reads so many bytes and compares them, which begin at this place of the pattern.
fn expect(stream: &mut TcpStream, from: usize, length: usize) {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    let whole = crc32fast::hash(&bytes) == crc32fast::hash(&pattern(from, length));
    assert!(
        whole,
        "{length} bytes from {from} on are others than were sent"
    );
}

/// Sends while the connection is read, closed and made anew, and reads once it is told to.
fn talk(mut client: TcpStream, length: usize, reads: mpsc::Receiver<()>) -> JoinHandle<TcpStream> {
    let mut writing = client.try_clone().unwrap();
    std::thread::spawn(move || {
        let sending = std::thread::spawn(move || writing.write_all(&pattern(0, length)));
        reads.recv_timeout(PATIENCE).unwrap();
        expect(&mut client, 0, length);
        sending.join().unwrap().unwrap();
        client
    })
}

/// Waits until the kernel says that so much is queued, at least.
fn await_queue(look: impl Fn() -> usize, least: usize) {
    let until = Instant::now() + PATIENCE;
    while look() < least {
        assert!(Instant::now() < until, "{} of {least} bytes", look());
        std::thread::yield_now();
    }
}

fn unread(stream: &TcpStream) -> usize {
    usize::try_from(rustix::io::ioctl_fionread(stream).unwrap()).unwrap()
}

fn data_goes_on_in_both_directions(test: &str, family: Family) {
    let Some(stage) = Stage::new(test, family) else {
        return;
    };
    let (mut server, client) = stage.connect();
    // More than fits into buffers, so that the client goes on.
    let length = 24 << 20;
    let (tell, told) = mpsc::channel();
    let talking = talk(client, length, told);
    let head = 1 << 20;
    expect(&mut server, 0, head);
    await_queue(|| unread(&server), 1 << 16);
    // Nothing of what is written from here on is acknowledged, so that some of it is under way and the rest is unsent.
    stage.hold(server.local_addr().unwrap());
    let mut written = 0;
    server.set_nonblocking(true).unwrap();
    let answer = pattern(0, length);
    while let Some(rest) = answer.get(written..written + 65536) {
        match server.write(rest) {
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    let frozen = stage.write_down(server);
    let (sent, received) = (frozen.to_send.len(), frozen.received.len());
    println!(
        "{sent} bytes to send, {} of them new, {received} unread",
        frozen.shape.unsent
    );
    let unsent = frozen.shape.unsent;
    assert!(sent > unsent && unsent > 0 && received >= 1 << 16);
    let began = Instant::now();
    let mut server = stage.make(&frozen);
    tell.send(()).unwrap();
    let mut sending = server.try_clone().unwrap();
    let rest = std::thread::spawn(move || sending.write_all(&answer[written..]));
    expect(&mut server, head, length - head);
    rest.join().unwrap().unwrap();
    talking.join().unwrap();
    println!(
        "{} ms after it was made both sides have all",
        began.elapsed().as_millis()
    );
}

#[test]
fn data_goes_on_in_both_directions_over_ipv4() {
    data_goes_on_in_both_directions("data_goes_on_in_both_directions_over_ipv4", Family::V4);
}

#[test]
fn data_goes_on_in_both_directions_over_ipv6() {
    data_goes_on_in_both_directions("data_goes_on_in_both_directions_over_ipv6", Family::V6);
}

/// What both sides agreed on when they began stays: windows would be taken for others, and segments for old ones.
#[test]
fn what_was_agreed_on_is_kept() {
    let Some(stage) = Stage::new("what_was_agreed_on_is_kept", Family::V4) else {
        return;
    };
    let (server, mut client) = stage.connect();
    let frozen = stage.write_down(server);
    let shape = frozen.shape;
    println!("{shape:?}");
    assert!(
        shape
            .window_scale
            .is_some_and(|(send, receive)| send > 0 && receive > 0)
    );
    assert!(shape.sack && shape.timestamp.is_some());
    let mut server = stage.make(&frozen);
    let twice = stage.at_server(|| socket::make(&frozen).unwrap_err());
    assert_eq!(twice.kind(), io::ErrorKind::AddrInUse);
    server.write_all(b"1").unwrap();
    let mut one = [0];
    client.read_exact(&mut one).unwrap();
    client.write_all(b"2").unwrap();
    server.read_exact(&mut one).unwrap();
    let again = stage.write_down(server).shape;
    assert_eq!(
        (again.mss, again.window_scale, again.sack),
        (shape.mss, shape.window_scale, shape.sack)
    );
    assert_eq!(again.send_seq, shape.send_seq.wrapping_add(1));
    assert_eq!(again.receive_seq, shape.receive_seq.wrapping_add(1));
    // The clock of its timestamps goes on, and not by more than passed: it counts milliseconds.
    let passed = again
        .timestamp
        .unwrap()
        .wrapping_sub(shape.timestamp.unwrap());
    assert!(passed < 60_000, "{passed} ms");
    assert!(again.receive_buffer >= shape.receive_buffer);
}

/// What a front read and did not deal with comes first again.
#[test]
fn what_is_put_back_is_read_first() {
    let Some(stage) = Stage::new("what_is_put_back_is_read_first", Family::V4) else {
        return;
    };
    let (mut server, mut client) = stage.connect();
    client.write_all(&pattern(0, 100)).unwrap();
    expect(&mut server, 0, 60);
    await_queue(|| unread(&server), 40);
    let mut frozen = stage.write_down(server);
    frozen.put_back(pattern(20, 40));
    // Nobody hears of it, and the client sends again.
    client.write_all(&pattern(100, 50)).unwrap();
    let mut server = stage.make(&frozen);
    expect(&mut server, 20, 130);
}

/// A connection that a kernel does not know is reset; the same without the rule shows that this tells something.
#[test]
fn nobody_is_told_while_it_is_away() {
    for holds in [true, false] {
        let Some(stage) = Stage::new("nobody_is_told_while_it_is_away", Family::V4) else {
            return;
        };
        let (server, mut client) = stage.connect();
        stage.hold(server.local_addr().unwrap());
        socket::freeze(server.as_fd()).unwrap();
        drop(server);
        if !holds {
            stage.open();
        }
        client.write_all(b"are you there").unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let heard = client.read(&mut [0]).unwrap_err().kind();
        let expected = if holds {
            io::ErrorKind::WouldBlock
        } else {
            io::ErrorKind::ConnectionReset
        };
        assert_eq!(heard, expected);
    }
}

#[test]
fn a_client_that_ended_meanwhile_is_known_to_have() {
    let Some(stage) = Stage::new("a_client_that_ended_meanwhile_is_known_to_have", Family::V4)
    else {
        return;
    };
    // In order: its last words arrive, and its end.
    let (server, mut client) = stage.connect();
    let frozen = stage.write_down(server);
    client.write_all(b"bye").unwrap();
    drop(client);
    let mut server = stage.make(&frozen);
    let mut said = String::new();
    server.read_to_string(&mut said).unwrap();
    assert_eq!(said, "bye");
    // By a reset that nobody heard: it is told when it is asked.
    let (server, client) = stage.connect();
    let frozen = stage.write_down(server);
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let mut server = stage.make(&frozen);
    let ended = server.read(&mut [0]).unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
    // Before: there is nothing to be kept, and it goes on as it was.
    let (mut server, client) = stage.connect();
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    let why = socket::freeze(server.as_fd()).unwrap_err().to_string();
    assert!(why.contains("ended"), "{why}");
}

/// As when what was written down could not be made durable.
#[test]
fn one_that_was_frozen_goes_on() {
    let Some(stage) = Stage::new("one_that_was_frozen_goes_on", Family::V6) else {
        return;
    };
    let (mut server, mut client) = stage.connect();
    let address = server.local_addr().unwrap();
    stage.hold(address);
    socket::freeze(server.as_fd()).unwrap();
    client.write_all(&pattern(0, 1000)).unwrap();
    socket::thaw(server.as_fd()).unwrap();
    stage.open();
    expect(&mut server, 0, 1000);
    server.write_all(&pattern(0, 1000)).unwrap();
    expect(&mut client, 0, 1000);
}

/// A rule that nobody removes goes by itself, and whoever connects meanwhile is served afterwards.
#[test]
fn a_rule_ends_by_itself_and_keeps_others_waiting() {
    let Some(stage) = Stage::new("a_rule_ends_by_itself", Family::V6) else {
        return;
    };
    let host = stage.host();
    let listener = stage.at_server(|| TcpListener::bind((host, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let bound = Duration::from_secs(2);
    let began = Instant::now();
    let state_dir = stage.state_dir();
    stage.at_server(|| Rule::of(&state_dir, [address]).unwrap().put(bound).unwrap());
    let (tell, told) = mpsc::channel();
    let waiting = std::thread::scope(|scope| {
        scope.spawn(|| {
            stage.at_client(|| {
                TcpStream::connect(address).unwrap();
                tell.send(began.elapsed()).unwrap();
            });
        });
        listener.accept().unwrap();
        told.recv_timeout(PATIENCE).unwrap()
    });
    println!("connected after {} ms", waiting.as_millis());
    assert!(waiting >= bound, "{waiting:?}");
    // Removing one that is there, and one that is not.
    stage.hold(address);
    stage.open();
    stage.open();
    let too_many = (0..2000).map(|port| SocketAddr::new(host, port));
    assert!(
        Rule::of(&state_dir, too_many)
            .unwrap_err()
            .explain()
            .contains("1024")
    );
}
