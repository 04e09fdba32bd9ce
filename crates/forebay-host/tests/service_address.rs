//! Addresses that go along with applications, in the real kernel: two networks with a cable between them.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says on standard output when it is skipped"
)]

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use forebay_core::fleet::mobility::ServiceAddress;
use forebay_host::Roots;
use forebay_host::service_address::Addresses;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a test waits for what comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it waits for what does not.
const SILENCE: Duration = Duration::from_millis(300);
const PORT: u16 = 7000;

/// A network of its own, there while this is.
struct Room(Child);

impl Room {
    fn new() -> Option<Self> {
        let mut command = Command::new("setpriv");
        let child = command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "sleep",
                "infinity",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let mut room = Self(child.ok()?);
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
        let pid = room.0.id().to_string();
        let until = Instant::now() + PATIENCE;
        while of(&pid) == of("self") {
            if room.0.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < until, "no network of its own");
            std::thread::yield_now();
        }
        Some(room)
    }

    /// Does something there, on a thread that is of no other use.
    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let place = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(place.as_fd(), kind).unwrap();
                act()
            });
            there.join().unwrap()
        })
    }

    fn ip(&self, commands: &str) {
        self.inside(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = child.stdin.take().unwrap();
            input.write_all(commands.as_bytes()).unwrap();
            drop(input);
            assert!(child.wait().unwrap().success(), "{commands}");
        });
    }

    fn shows(&self, words: &[&str]) -> String {
        self.inside(|| {
            let said = Command::new("ip").args(words).output().unwrap();
            String::from_utf8(said.stdout).unwrap()
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The host of a test, and another one on its network.
struct Stage {
    near: Room,
    far: Room,
    state: tempfile::TempDir,
}

impl Stage {
    fn new(test: &str) -> Option<Self> {
        let rooms = rustix::process::geteuid()
            .is_root()
            .then(|| (Room::new(), Room::new()));
        let Some((Some(near), Some(far))) = rooms else {
            println!("SKIPPED: {test}: no networks of its own");
            return None;
        };
        let other = far.0.id();
        near.ip(&format!(
            "link set lo up\nlink add eth1 address 02:77:00:00:00:01 type veth peer name eth1 netns {other}\n\
             address add 10.77.0.1/24 dev eth1\naddress add fd77::1/64 dev eth1 nodad\nlink set eth1 up\n"
        ));
        far.ip(
            "link set lo up\naddress add 10.77.0.2/24 dev eth1\naddress add fd77::2/64 dev eth1 nodad\n\
             link set eth1 up\n",
        );
        let state = tempfile::tempdir().unwrap();
        Some(Self { near, far, state })
    }

    /// Does something with the addresses of the host.
    fn with<T: Send>(&self, act: impl FnOnce(&Addresses) -> T + Send) -> T {
        let addresses = Addresses::new(self.state.path(), Roots::default());
        self.near.inside(|| act(&addresses))
    }

    fn has(&self, ip: IpAddr) -> bool {
        let all = self.near.shows(&["-o", "address", "show"]);
        all.contains(&format!(" {ip}/"))
    }

    /// Whether a client of the other host reaches somebody there.
    fn reaches(&self, ip: IpAddr, bound: Duration) -> Result<(), std::io::ErrorKind> {
        let to = SocketAddr::new(ip, PORT);
        let reached = self.far.inside(|| TcpStream::connect_timeout(&to, bound));
        reached.map(drop).map_err(|error| error.kind())
    }

    /// The hardware address at which the other host looks for an address.
    fn known(&self, ip: IpAddr) -> String {
        self.far.shows(&["neigh", "show", &ip.to_string()])
    }

    fn nothing_is_left(&self, ip: IpAddr) {
        assert!(!self.has(ip));
        assert_eq!(self.with(|all| all.all()), []);
    }
}

fn app() -> AppId {
    "cache".parse().unwrap()
}

fn address(text: &str) -> ServiceAddress {
    ServiceAddress::parse(text, None).unwrap()
}

fn address_on(text: &str, device: &str) -> ServiceAddress {
    ServiceAddress::parse(text, Some(device.to_owned())).unwrap()
}

const BOTH: [&str; 2] = ["10.77.0.5/24", "fd77::5/64"];

#[test]
fn an_address_comes_is_announced_and_goes() {
    let Some(stage) = Stage::new("an address comes and goes") else {
        return;
    };
    for address in BOTH.map(address) {
        let ip = address.ip;
        let answers = || stage.with(|all| all.answers(&app(), &address));
        // The other host looks for it where it was before.
        let before = "02:77:00:00:00:99";
        stage.far.ip(&format!(
            "neigh replace {ip} lladdr {before} dev eth1 nud stale\n"
        ));
        assert!(!answers());
        assert!(stage.with(|all| all.answer(&app(), &address)).unwrap());
        assert!(stage.has(ip) && answers());
        assert!(
            !stage.with(|all| all.answer(&app(), &address)).unwrap(),
            "no news"
        );
        let until = Instant::now() + PATIENCE;
        while !stage.known(ip).contains("02:77:00:00:00:01") {
            assert!(Instant::now() < until, "{}", stage.known(ip));
            std::thread::yield_now();
        }
        let listener = stage.with(|_| TcpListener::bind((ip, PORT)).unwrap());
        stage.reaches(ip, PATIENCE).unwrap();
        drop(listener);

        // Whoever took it away meanwhile, it comes back.
        stage.near.ip(&format!("address del {address} dev eth1\n"));
        assert!(!answers());
        assert!(stage.with(|all| all.answer(&app(), &address)).unwrap());
        assert!(answers());
        for _ in 0..2 {
            stage.with(|all| all.leave(&app())).unwrap();
            stage.nothing_is_left(ip);
        }
    }
}

#[test]
fn one_that_is_quiet_is_known_to_nobody_but_its_own_host() {
    let Some(stage) = Stage::new("a quiet address") else {
        return;
    };
    for address in BOTH.map(address) {
        let ip = address.ip;
        for _ in 0..2 {
            stage
                .with(|all| all.await_quietly(&app(), &address))
                .unwrap();
        }
        assert!(stage.has(ip) && !stage.with(|all| all.answers(&app(), &address)));
        let listener = stage.with(|_| TcpListener::bind((ip, PORT)).unwrap());
        stage.reaches(ip, SILENCE).unwrap_err();
        let known = stage.known(ip);
        assert!(!known.contains("02:77:00:00:00:01"), "{known}");
        // Nor is it where its network device is known anyhow: nobody is refused, either.
        stage.far.ip(&format!(
            "neigh replace {ip} lladdr 02:77:00:00:00:01 dev eth1 nud permanent\n"
        ));
        let heard = stage.reaches(ip, SILENCE);
        assert_eq!(heard, Err(std::io::ErrorKind::TimedOut));
        assert!(stage.with(|all| all.answer(&app(), &address)).unwrap());
        let to = SocketAddr::new(ip, PORT);
        let connected = stage
            .far
            .inside(|| TcpStream::connect_timeout(&to, PATIENCE));
        let client = connected.unwrap();
        let (server, _) = listener.accept().unwrap();

        // And at the source: it is gone, and what is left there is quiet.
        for _ in 0..2 {
            stage.with(|all| all.hush(&app())).unwrap();
        }
        assert!(!stage.has(ip));
        drop(server);
        client.set_read_timeout(Some(SILENCE)).unwrap();
        let heard = std::io::Read::read(&mut &client, &mut [0]).map_err(|error| error.kind());
        assert_eq!(
            heard,
            Err(std::io::ErrorKind::WouldBlock),
            "it hears of the end"
        );
        stage.with(|all| all.leave(&app())).unwrap();
        stage.nothing_is_left(ip);
    }
}

#[test]
fn one_that_somebody_else_put_there_is_left_alone() {
    let Some(stage) = Stage::new("an address of somebody else") else {
        return;
    };
    for address in BOTH.map(address) {
        let ip = address.ip;
        stage.near.ip(&format!("address add {address} dev eth1\n"));
        let refused = [
            stage.with(|all| all.answer(&app(), &address).map(drop)),
            stage.with(|all| all.await_quietly(&app(), &address)),
            stage.with(|all| all.could_answer(&app(), &address)),
        ];
        for refused in refused {
            let said = refused.unwrap_err().explain();
            assert!(said.contains("Forebay did not put it there"), "{said}");
            assert!(
                said.contains(&format!("ip address del {address} dev eth1")),
                "{said}"
            );
        }
        stage.with(|all| all.hush(&app())).unwrap();
        stage.with(|all| all.leave(&app())).unwrap();
        assert!(stage.has(ip));
        assert_eq!(stage.with(|all| all.all()), []);
    }
}

#[test]
fn what_is_of_another_network_or_boot_is_not_taken_for_ours() {
    let Some(stage) = Stage::new("an address of another network") else {
        return;
    };
    let address = address(BOTH[0]);
    stage.with(|all| all.answer(&app(), &address)).unwrap();
    let elsewhere = Addresses::new(stage.state.path(), Roots::default());
    let said = stage
        .far
        .inside(|| elsewhere.leave(&app()))
        .unwrap_err()
        .explain();
    assert!(said.contains("network namespace of the daemon"), "{said}");
    assert!(stage.has(address.ip));

    // After a boot nothing of it is there; whoever has it then is somebody else.
    let file = stage.state.path().join("addresses/cache.json");
    let text = fs::read_to_string(&file).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::write(&file, text.replace(boot.trim(), "another")).unwrap();
    let said = stage
        .with(|all| all.answer(&app(), &address))
        .unwrap_err()
        .explain();
    assert!(said.contains("Forebay did not put it there"), "{said}");
    stage.with(|all| all.leave(&app())).unwrap();
    assert!(stage.has(address.ip));
    assert_eq!(stage.with(|all| all.all()), []);
}

/// The kernel takes all of a network along with the first address that came, and routes of the device with the last one
/// that goes.
#[test]
fn addresses_of_others_stay_when_the_first_of_their_network_goes() {
    let Some(stage) = Stage::new("the first address of a network") else {
        return;
    };
    let promotes = |who: &str| format!("/proc/sys/net/ipv4/conf/{who}/promote_secondaries");
    stage.near.inside(|| {
        for who in ["all", "eth1"] {
            fs::write(promotes(who), "0").unwrap();
        }
    });
    let first = address_on("10.78.0.5/24", "eth1");
    let second = address_on("10.78.0.6/24", "eth1");
    let others: AppId = "web".parse().unwrap();
    stage.near.ip("address del 10.77.0.1/24 dev eth1\n");
    stage.with(|all| all.answer(&app(), &first)).unwrap();
    stage.with(|all| all.answer(&others, &second)).unwrap();
    stage
        .near
        .ip("address add 10.78.0.7/24 dev eth1 label eth1:x\nroute add 10.99.0.0/16 via 10.78.0.9 dev eth1\n");
    stage.with(|all| all.leave(&app())).unwrap();
    assert!(!stage.has(first.ip));
    assert!(stage.with(|all| all.answers(&others, &second)));
    let shown = stage.near.shows(&["-o", "address", "show"]);
    assert!(
        shown.contains(" 10.78.0.7/24 ") && shown.contains("eth1:x"),
        "{shown}"
    );
    let routes = stage.near.shows(&["route", "show"]);
    assert!(routes.contains("10.99.0.0/16 via 10.78.0.9"), "{routes}");
    let setting = stage
        .near
        .inside(|| fs::read_to_string(promotes("eth1")).unwrap());
    assert_eq!(setting.trim(), "0", "it is as it was");
    // The next one is the first of them now.
    stage.with(|all| all.leave(&others)).unwrap();
    assert!(!stage.has(second.ip) && stage.has("10.78.0.7".parse().unwrap()));
}
