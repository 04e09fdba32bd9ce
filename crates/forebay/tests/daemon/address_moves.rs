//! An address that goes where its program goes, with the connections of clients: machines on a bridge, a daemon on
//! each, and a client that asks without a pause over one connection.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::memory_fleet::{Fleet, crashes_at, index, killed_at, other, owner};
use crate::network::{Network, V4, V6, has, ip, tables};
use crate::place::{EXE, PATIENCE, eventually, signal};

/// From one request to the next.
const PACE: Duration = Duration::from_millis(1);
const MEMORY: u32 = 24;

/// A client with one connection, which it does not give up.
struct Client {
    stop: Arc<AtomicBool>,
    asks: JoinHandle<Heard>,
}

/// Whoever looks on ends with what is looked at, however that ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a client saw.
#[derive(Debug, Default)]
struct Heard {
    answers: u64,
    /// The longest time from one answer to the next.
    gap: Duration,
    count: u64,
    /// Why it heard nothing more.
    broken: Option<String>,
}

fn request(mut stream: &TcpStream, word: u8) -> std::io::Result<u64> {
    stream.write_all(&[word])?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    Ok(u64::from_le_bytes(answer))
}

fn connect(to: SocketAddr) -> TcpStream {
    let mut found = None;
    eventually("somebody listens", || {
        found = TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok();
        found.is_some()
    });
    let stream = found.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Client {
    fn start(to: SocketAddr) -> Self {
        let stream = connect(to);
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let asks = std::thread::spawn(move || {
            let mut heard = Heard::default();
            let mut before = Instant::now();
            while !stops.load(Ordering::Relaxed) {
                match request(&stream, b'p') {
                    Ok(count) if count < heard.count => {
                        heard.broken = Some(format!("{count} after {}", heard.count));
                    }
                    Ok(count) => heard.count = count,
                    Err(error) => heard.broken = Some(error.to_string()),
                }
                if heard.broken.is_some() {
                    return heard;
                }
                heard.answers += 1;
                heard.gap = heard.gap.max(before.elapsed());
                before = Instant::now();
                std::thread::sleep(PACE);
            }
            // All of its pages are as it left them.
            match request(&stream, b'c') {
                Ok(u64::MAX) => heard.broken = Some("a page is lost".to_owned()),
                Ok(_) => {}
                Err(error) => heard.broken = Some(error.to_string()),
            }
            heard
        });
        Self { stop, asks }
    }

    /// It was answered all the time, over the connection that it began with.
    #[track_caller]
    fn served(self) -> Heard {
        self.stop.store(true, Ordering::Relaxed);
        let heard = self.asks.join().unwrap();
        assert_eq!(heard.broken, None, "{heard:?}");
        assert!(heard.answers > 10, "{heard:?}");
        heard
    }
}

impl Fleet {
    fn service(&self) -> SocketAddr {
        self.network.as_ref().unwrap().service
    }

    /// Whether a host has the address.
    fn answers(&self, name: &str) -> bool {
        let network = self.network.as_ref().unwrap();
        network.is_at(&self.machines[index(name)])
    }

    /// It is reached at its owner alone, and nothing of a move is left in the kernel of either.
    #[track_caller]
    fn await_reached(&self, owner: &str) {
        eventually("its address is at its owner alone", || {
            self.answers(owner) && !self.answers(other(owner))
        });
        let mut left = Vec::new();
        let is_clean = std::panic::AssertUnwindSafe(|| {
            eventually("no table is left", || {
                left = self.machines.iter().map(tables).collect();
                left.iter().all(Vec::is_empty)
            });
        });
        if let Err(late) = std::panic::catch_unwind(is_clean) {
            println!("{left:?}");
            std::panic::resume_unwind(late);
        }
    }

    /// Both hosts have the address while this is asked.
    fn both_answer(&self) -> bool {
        ["a", "b", "a"].iter().all(|name| self.answers(name))
    }
}

fn moves_there_and_back(test: &str, service: IpAddr) {
    let Some(network) = Network::enter(test, service) else {
        return;
    };
    let Some(fleet) = Fleet::start_on(test, network, MEMORY, "") else {
        return;
    };
    let mut owner = fleet.await_owner();
    let pid = fleet.place(owner).await_pid("pages");
    fleet.await_reached(owner);
    let client = Client::start(fleet.service());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watched = scope.spawn(|| {
            let mut looks = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                assert!(!fleet.both_answer(), "both hosts have the address");
                looks += 1;
            }
            looks
        });
        let ends = Ends(&is_over);
        for _ in 0..2 {
            let to = other(owner);
            let moved = fleet.place(owner).json(&["move", "pages", "--to", to]);
            println!("{moved}");
            assert_eq!(moved["stage"], "moved", "{moved}");
            assert_eq!(fleet.await_owner(), to);
            assert_eq!(fleet.place(to).await_pid("pages"), pid);
            fleet.await_reached(to);
            owner = to;
        }
        drop(ends);
        assert!(watched.join().unwrap() > 10);
    });
    let heard = client.served();
    println!(
        "{service}: {} answers over one connection, at most {:.0?} between two",
        heard.answers, heard.gap
    );
    fleet.await_clean();
}

/// A fleet on a network, and a client of its program.
fn fleet(test: &str) -> Option<Fleet> {
    let network = Network::enter(test, V4)?;
    let fleet = Fleet::start_on(test, network, MEMORY, "")?;
    fleet.await_reached(fleet.await_owner());
    Some(fleet)
}

#[test]
fn a_connection_goes_along_with_its_address() {
    moves_there_and_back("a connection goes along", V4);
}

#[test]
fn a_connection_of_ipv6_goes_along_with_its_address() {
    moves_there_and_back("a connection of IPv6 goes along", V6);
}

/// Whatever daemon ends once the process stands, the client is answered on, by the one host that has the address.
#[test]
fn a_daemon_that_is_killed_cuts_no_connection() {
    daemons_killed_at(&["sending", "committing", "awaiting"]);
}

/// Nor does one that ends while CRIU still works on the process and its connections.
#[test]
fn a_daemon_that_is_killed_amid_freezing_cuts_no_connection() {
    daemons_killed_at(&["freezing"]);
}

/// Whoever puts the host back then lets nobody go on whose connections are still out of the kernel's hands.
#[test]
fn what_is_put_back_amid_freezing_goes_on_with_its_connections() {
    let test = "a host is put back amid freezing";
    let Some(mut fleet) = Network::enter(test, V4).and_then(|network| Fleet::on(test, network))
    else {
        return;
    };
    fleet.on_stop = "keep";
    let mut fleet = fleet.begun(MEMORY, "");
    let mut owner = fleet.await_owner();
    fleet.await_reached(owner);
    let pid = fleet.place(owner).await_pid("pages");
    let client = Client::start(fleet.service());
    for attempt in 1.. {
        let own = index(owner);
        let is_amid = crashes_at(&mut fleet, owner, owner, "freezing");
        if is_amid {
            let put_back = fleet.restore(owner);
            assert!(put_back.status.success(), "{put_back:?}");
            assert_eq!(tables(&fleet.machines[own]), [] as [String; 0]);
            assert!(!has(&fleet.machines[own], V4));
            fleet.goes_on();
        }
        fleet.begin(own);
        fleet.await_rest();
        owner = fleet.await_owner();
        if is_amid {
            break;
        }
        assert!(attempt < 5, "no move was seen amid freezing");
    }
    assert_eq!(fleet.place(owner).await_pid("pages"), pid);
    fleet.await_reached(owner);
    client.served();
    fleet.await_clean();
}

fn daemons_killed_at(stages: &[&str]) {
    let Some(mut fleet) = fleet("a daemon is killed while a connection moves") else {
        return;
    };
    let mut owner = fleet.await_owner();
    let pid = fleet.place(owner).await_pid("pages");
    let client = Client::start(fleet.service());
    for stage in stages {
        for is_source in [true, false] {
            let kills = if is_source { owner } else { other(owner) };
            owner = killed_at(&mut fleet, owner, kills, stage);
            assert_eq!(fleet.place(owner).await_pid("pages"), pid);
            fleet.await_reached(owner);
        }
    }
    let heard = client.served();
    println!("at most {:.0?} between two answers", heard.gap);
    fleet.await_clean();
}

/// A target that cannot make it: the connections go on where they were.
#[test]
fn a_move_that_turns_back_cuts_no_connection() {
    let Some(mut fleet) = fleet("a move with a connection turns back") else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");
    fleet.break_criu(to);
    let client = Client::start(fleet.service());
    let place = fleet.place(from);
    fleet.await_way(from, to);
    place.fails(&["move", "pages", "--to", to], 1, &["stays", "restore"]);
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    fleet.await_rest();
    fleet.await_reached(from);
    client.served();
    fleet.await_clean();
}

/// What stands against a move is said before anything is touched.
#[test]
fn what_cannot_go_along_with_an_address_is_refused() {
    let Some(fleet) = fleet("a connection cannot go along") else {
        return;
    };
    let from = fleet.await_owner();
    let (here, there) = (index(from), index(other(from)));
    let pid = fleet.place(from).await_pid("pages");
    let asked = ["move", "pages", "--to", other(from), "--dry-run"];
    // Whoever has it there would go on to answer.
    let theirs = Some(&fleet.machines[there]);
    ip(theirs, "address add 10.77.0.5/24 dev cable\n");
    let words = [
        "on the target",
        "10.77.0.5/24",
        "cable",
        "Forebay did not put it there",
    ];
    fleet.place(from).fails(&asked, 1, &words);
    assert!(has(&fleet.machines[there], V4), "it is somebody else's");
    ip(theirs, "address del 10.77.0.5/24 dev cable\n");

    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    assert!(fleet.place(from).ask(&asked).status.success());
    assert!(has(&fleet.machines[here], V4));
}

/// One that somebody took away comes back; whoever puts the host back takes it away.
#[test]
fn an_address_is_there_while_its_app_is() {
    let Some(mut fleet) = fleet("an address is there while its app is") else {
        return;
    };
    let owner = fleet.await_owner();
    let own = index(owner);
    ip(
        Some(&fleet.machines[own]),
        "address del 10.77.0.5/24 dev cable\n",
    );
    fleet.await_reached(owner);
    // The guardian of a daemon that is lost.
    fleet.crash(own);
    eventually("the guardian took it away", || {
        !has(&fleet.machines[own], V4)
    });
    eventually("its program ended", || fleet.programs().is_empty());
    fleet.forget_witness();
    fleet.begin(own);
    assert_eq!(fleet.await_owner(), owner);
    fleet.await_reached(owner);
    // And a daemon that ends.
    fleet.stop(own);
    assert!(!has(&fleet.machines[own], V4));
    fleet.forget_witness();
    fleet.begin(own);
    assert_eq!(fleet.await_owner(), owner);
    fleet.await_reached(owner);
}

/// Of a program that begins anew where it goes.
const RESTARTED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 6)), 7710);

/// Its program listens on it, so that it is there before that. Whoever takes it over has it, and the lost host has not.
#[test]
fn an_address_goes_to_whoever_starts_its_program() {
    let test = "an address goes to whoever starts its program";
    let more = format!(
        "[apps.again]\nrestart = \"always\"\nstdout = \"/dev/null\"\nstderr = \"/dev/null\"\n\
         exec = [\"{}\", \"workload\", \"pages\", \"--memory\", \"1\", \"--rate\", \"0\", \"--listen\", \
         \"{RESTARTED}\"]\n\
         move = {{ mode = \"restart\", takeover = \"after-lease\", address = \"{}/24\", device = \"cable\" }}\n",
        EXE.as_str(),
        RESTARTED.ip()
    );
    let Some(network) = Network::enter(test, V4) else {
        return;
    };
    let Some(fleet) = Fleet::start_on(test, network, MEMORY, &more) else {
        return;
    };
    let is_at = |name: &str| has(&fleet.machines[index(name)], RESTARTED.ip());
    let is_reached = |name: &str| {
        eventually("its address is at its owner alone", || {
            is_at(name) && !is_at(other(name))
        });
        request(&connect(RESTARTED), b'c').unwrap();
    };
    let mut at = owner(&fleet, "again");
    is_reached(at);
    let to = other(at);
    let moved = fleet.place(at).json(&["move", "again", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    at = to;
    is_reached(at);

    // Its daemon hangs: the guardian takes the address away before another one has it.
    let daemon = fleet.daemon(index(at));
    signal(daemon, Signal::STOP);
    eventually("it is gone", || !is_at(at));
    is_reached(other(at));
    signal(daemon, Signal::CONT);
    // Who began it in its room stops along with it.
    signal(fleet.hosts[index(at)].1.daemon_pid(), Signal::CONT);
    assert_eq!(owner(&fleet, "again"), other(at));
    is_reached(other(at));
}
