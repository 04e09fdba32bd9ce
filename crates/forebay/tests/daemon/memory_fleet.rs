//! A fleet of two hosts with a program that has memory, which moves by `checkpoint`: what tests of such moves share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::etcd::Etcd;
use crate::fronts::free_port;
use crate::http::request;
use crate::images::criu;
use crate::machine::{Machine, Rooms, children};
use crate::moves::{certify, status};
use crate::network::Network;
use crate::place::{EXE, PATIENCE, Place, eventually, is_running, signal};
use crate::relay::Relay;

/// Memory of the program in MiB, and what of it is written in a second.
pub(crate) const MEMORY: u32 = 24;
pub(crate) const RATE: u32 = 10;
/// Its pages are all looked at for every so many lines.
pub(crate) const CHECK_EVERY: u32 = 20;

/// Hosts of one fleet, whose apps move with their memory.
pub(crate) struct Fleet {
    pub(crate) hosts: Vec<(&'static str, Place)>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) criu: PathBuf,
    /// What the program says, on whatever host.
    pub(crate) witness: PathBuf,
    pub(crate) etcd: Etcd,
    pub(crate) dir: tempfile::TempDir,
    /// Where each host has its own directory, as its programs see it: their files go along.
    pub(crate) shared: Option<PathBuf>,
    /// What becomes of programs whose daemon ends.
    pub(crate) on_stop: &'static str,
    pub(crate) pace: Pace,
    /// More words of how the program moves.
    pub(crate) moves: &'static str,
    /// The network that they are on, and the address that their program has there.
    pub(crate) network: Option<Network>,
    /// What agents reach each other by, in the order of hosts; without any, nothing is between them.
    pub(crate) relays: Vec<Relay>,
}

/// What a program has in memory, in MiB, how much of that it writes in a second, and how many bytes its links take in a
/// second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) memory: u32,
    pub(crate) rate: u32,
    pub(crate) speed: u64,
}

/// What the speed of a machine allows for.
pub(crate) struct Pace {
    /// Where agents listen.
    pub(crate) address: String,
    pub(crate) lease: &'static str,
    /// MiB of the program's memory that are written in a second.
    pub(crate) rate: u32,
}

impl Fleet {
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_with(test, MEMORY, "")
    }

    /// Whose program keeps a file open. More in the configuration is made of where its hosts have their own, with
    /// these directories in it.
    pub(crate) fn start_with_files(
        test: &str,
        own: &[&str],
        more: impl FnOnce(&Path) -> String,
    ) -> Option<Self> {
        let mut fleet = Self::new(test)?;
        let shared = fleet.dir.path().join("srv");
        fs::create_dir(&shared).unwrap();
        for ((_, place), machine) in fleet.hosts.iter().zip(&fleet.machines) {
            for own in own.iter().chain(&["data"]) {
                fs::create_dir_all(place.path("srv").join(own)).unwrap();
            }
            let mut command = machine.enter();
            let mount = command.args(["mount", "--bind"]);
            let mounted = mount.arg(place.path("srv")).arg(&shared).status();
            assert!(mounted.unwrap().success(), "mount {}", shared.display());
        }
        let more = more(&shared);
        fleet.shared = Some(shared);
        Some(fleet.begun(MEMORY, &more))
    }

    /// What a host has in the directory that goes along.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.place(name).path("srv/data")
    }

    /// What the program wrote to the file that it keeps open: nothing is missing of it, and nothing twice.
    #[track_caller]
    pub(crate) fn journaled(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.data(name).join("journal")).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let numbers = whole.lines().map(|line| line.parse().unwrap());
        let numbers: Vec<u64> = numbers.collect();
        let count = u64::try_from(numbers.len()).unwrap();
        assert!(numbers.iter().copied().eq(1..=count), "{name}: {numbers:?}");
        count
    }

    /// It writes on to the file that it has open here.
    #[track_caller]
    pub(crate) fn writes_on(&self, name: &str) -> u64 {
        let before = self.journaled(name);
        eventually("it writes on", || self.journaled(name) > before + 5);
        before
    }

    /// The longest time from one line of the witness to the next, in milliseconds.
    pub(crate) fn longest_silence(&self) -> u64 {
        let lines = self.witnessed();
        let pairs = lines.windows(2);
        let silences = pairs.map(|pair| pair[1].1.saturating_sub(pair[0].1));
        silences.max().unwrap_or(0)
    }

    /// With agents that listen at this address of a machine that is slow, and so many MiB.
    pub(crate) fn start_at(test: &str, address: &str, memory: u32) -> Option<Self> {
        let mut fleet = Self::new(test)?;
        fleet.pace = Pace {
            address: address.to_owned(),
            lease: "60s",
            rate: 1,
        };
        Some(fleet.begun(memory, ""))
    }

    /// Whose agents reach each other by links, and whose program moves with more words in its `move`.
    pub(crate) fn start_linked(test: &str, load: Load, moves: &'static str) -> Option<Self> {
        let mut fleet = Self::new(test)?;
        fleet.link(load);
        fleet.moves = moves;
        Some(fleet.begun(load.memory, ""))
    }

    /// The same, whose programs run on when their daemon ends.
    pub(crate) fn start_linked_keeping(test: &str, load: Load) -> Option<Self> {
        let mut fleet = Self::new(test)?;
        fleet.link(load);
        fleet.on_stop = "keep";
        Some(fleet.begun(load.memory, ""))
    }

    fn link(&mut self, load: Load) {
        self.pace.rate = load.rate;
        let relays = self.hosts.iter().map(|_| Relay::start(load.speed));
        self.relays = relays.collect();
    }

    /// Puts back what is in force on a host whose daemon ended.
    pub(crate) fn restore(&self, name: &str) -> Output {
        let mut command = self.machines[index(name)].enter();
        let state = self.place(name).path("state");
        let restore = command.args([EXE.as_str(), "restore", "--state-dir"]);
        restore.arg(state).output().unwrap()
    }

    /// What a host is reached by.
    pub(crate) fn relay(&self, name: &str) -> &Relay {
        &self.relays[index(name)]
    }

    /// With more in the configuration of every host.
    pub(crate) fn start_with(test: &str, memory: u32, more: &str) -> Option<Self> {
        Some(Self::new(test)?.begun(memory, more))
    }

    /// On a network of their own, where clients reach the program at an address that goes along.
    pub(crate) fn start_on(test: &str, network: Network, memory: u32, more: &str) -> Option<Self> {
        Some(Self::on(test, network)?.begun(memory, more))
    }

    /// Before any daemon begins.
    pub(crate) fn on(test: &str, network: Network) -> Option<Self> {
        let rooms = Rooms::Network;
        let mut fleet = Self::new_in(test, rooms, &network.centre.to_string())?;
        for (index, machine) in fleet.machines.iter().enumerate() {
            network.connect(index, machine);
        }
        fleet.network = Some(network);
        Some(fleet)
    }

    /// Before any daemon begins.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::new_in(test, Rooms::Processes, "127.0.0.1")
    }

    pub(crate) fn new_in(test: &str, rooms: Rooms, centre: &str) -> Option<Self> {
        let criu = criu(test)?;
        let names = ["a", "b"];
        let mut hosts = Vec::new();
        let mut machines = Vec::new();
        for (index, name) in (1..).zip(names) {
            hosts.push((name, Place::new(test)?));
            let Some(machine) = Machine::start(index * 10_000, rooms) else {
                println!("SKIPPED: {test}: no process numbers of its own");
                return None;
            };
            machines.push(machine);
        }
        let dir = tempfile::tempdir().unwrap();
        let fleet = Self {
            hosts,
            machines,
            criu,
            witness: dir.path().join("witness"),
            etcd: Etcd::start_at(test, centre)?,
            dir,
            shared: None,
            on_stop: "kill",
            pace: Pace {
                address: "127.0.0.1".to_owned(),
                lease: "5s",
                rate: RATE,
            },
            moves: "",
            relays: Vec::new(),
            network: None,
        };
        certify(&fleet.hosts);
        Some(fleet)
    }

    pub(crate) fn begun(mut self, memory: u32, more: &str) -> Self {
        for index in 0..self.hosts.len() {
            let criu = self.criu.clone();
            self.configure(index, &criu, memory, more);
            self.begin(index);
        }
        self.await_owner();
        self
    }

    pub(crate) fn configure(&self, index: usize, criu: &Path, memory: u32, more: &str) {
        let (name, place) = &self.hosts[index];
        let Pace {
            address,
            lease,
            rate,
        } = &self.pace;
        let network = self.network.as_ref();
        let address = network.map_or_else(|| address.clone(), |net| net.host(index).to_string());
        let (listen, goes) = network.map_or_else(Default::default, Network::configuration);
        let data = self.shared.as_ref().map(|shared| shared.join("data"));
        let (journal, files) = data.map_or_else(Default::default, |data| {
            let data = data.display();
            (
                format!(", \"--journal\", \"{data}/journal\""),
                format!(", files = [\"{data}\"]"),
            )
        });
        let relay = self.relays.get(index);
        let port = relay.map_or_else(free_port, Relay::leads_to);
        let reached = relay.map_or_else(String::new, Relay::configuration);
        place.configure_daemon(
            &format!("criu = \"{}\"", criu.display()),
            &format!(
                "[policy]\non_stop = \"{}\"\n\
                 [fleet]\nhost = \"{name}\"\nlease = \"{lease}\"\n\
                 [fleet.etcd]\nendpoints = [\"{}\"]\n[fleet.link]\nlisten = \"{address}:{port}\"\n{reached}\
                 [apps.pages]\nrestart = \"always\"\nstdout = \"/dev/null\"\nstderr = \"/dev/null\"\n\
                 exec = [\"{}\", \"workload\", \"pages\", \"--memory\", \"{memory}\", \"--rate\", \"{rate}\", \
                 \"--witness\", \"{}\", \"--check-every\", \"{CHECK_EVERY}\"{journal}{listen}]\n\
                 move = {{ mode = \"checkpoint\"{}{files}{goes} }}\n{more}",
                self.on_stop,
                self.etcd.endpoint(),
                EXE.as_str(),
                self.witness.display(),
                self.moves,
            ),
        );
    }

    pub(crate) fn begin(&mut self, index: usize) {
        let (_, place) = &mut self.hosts[index];
        let mut command = self.machines[index].enter();
        command
            .arg(EXE.as_str())
            .arg("daemon")
            .arg("--config")
            .arg(place.path("forebay.toml"));
        place.start_with(command);
    }

    /// The daemon itself, by the numbers of the test.
    pub(crate) fn daemon(&self, index: usize) -> u32 {
        let [daemon] = children(self.hosts[index].1.daemon_pid())[..] else {
            panic!("{} has no daemon", self.hosts[index].0);
        };
        daemon
    }

    /// The program that moves and its copies, by the numbers of the test.
    pub(crate) fn programs(&self) -> Vec<u32> {
        let witness = self.witness.display().to_string();
        crate::place::processes(|words| words.contains(&witness))
    }

    /// The program, while no copy of it is made.
    pub(crate) fn program(&self) -> u32 {
        let programs = self.programs();
        let [program] = programs[..] else {
            panic!("{programs:?}");
        };
        program
    }

    /// Its daemon ends as a crash would have it.
    pub(crate) fn crash(&mut self, index: usize) {
        let daemon = self.daemon(index);
        signal(daemon, Signal::KILL);
        eventually("the daemon ended", || !is_running(daemon));
        self.hosts[index].1.crash();
    }

    /// A program that begins anew counts from the beginning.
    pub(crate) fn forget_witness(&self) {
        fs::remove_file(&self.witness).unwrap();
    }

    /// From now on a host makes no process any more.
    pub(crate) fn break_criu(&mut self, name: &str) {
        let index = index(name);
        let broken = self.dir.path().join("criu");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = restore ] && exit 1\nexec \"{}\" \"$@\"\n",
            self.criu.display()
        );
        fs::write(&broken, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&broken, mode).unwrap();
        self.configure(index, &broken, MEMORY, "");
        self.crash(index);
        self.begin(index);
    }

    /// Its daemon ends as somebody asks it to.
    pub(crate) fn stop(&mut self, index: usize) {
        let daemon = self.daemon(index);
        signal(daemon, Signal::TERM);
        eventually("the daemon ended", || !is_running(daemon));
        self.hosts[index].1.crash();
    }

    pub(crate) fn place(&self, name: &str) -> &Place {
        &self.hosts[index(name)].1
    }

    /// Lines of the witness so far: what was counted, and when. One program at a time counted, it never went back,
    /// and all of its pages are as it left them.
    #[track_caller]
    pub(crate) fn witnessed(&self) -> Vec<(u64, u64)> {
        let text = fs::read_to_string(&self.witness).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = |line: &str| {
            let (count, at) = line.split_once(' ').unwrap();
            let count = count.parse();
            (
                count.unwrap_or_else(|_| panic!("a page is lost: {line}")),
                at.parse().unwrap(),
            )
        };
        let lines: Vec<(u64, u64)> = whole.lines().map(line).collect();
        for pair in lines.windows(2) {
            assert!(pair[0].0 <= pair[1].0, "it went back: {pair:?}");
        }
        lines
    }

    /// It goes on, for long enough that all of its pages are looked at.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let lines = CHECK_EVERY as usize * 2;
        let before = self.witnessed().len();
        eventually("it goes on", || self.witnessed().len() > before + lines);
    }

    /// Waits until one host owns the program and runs it, and no other one does.
    #[track_caller]
    pub(crate) fn await_owner(&self) -> &'static str {
        let owners = || -> Vec<&'static str> {
            let owns = |place: &Place| {
                let owns = &status(place)["owns"];
                owns.as_array().unwrap().contains(&"pages".into())
            };
            let hosts = self.hosts.iter().filter(|(_, place)| owns(place));
            hosts.map(|(name, _)| *name).collect()
        };
        let running = || -> Vec<&'static str> {
            let runs = |place: &Place| place.app("pages")["state"] == "running";
            let hosts = self.hosts.iter().filter(|(_, place)| runs(place));
            hosts.map(|(name, _)| *name).collect()
        };
        eventually("one host owns it and runs it", || {
            let owners = owners();
            owners.len() == 1 && owners == running()
        });
        self.goes_on();
        owners()[0]
    }

    /// Waits until nothing stands against a move; what does meanwhile is shown.
    #[track_caller]
    pub(crate) fn await_way(&self, from: &str, to: &str) {
        let mut refused = String::new();
        eventually("it could move", || {
            let asked = ["move", "pages", "--to", to, "--dry-run"];
            let asked = self.place(from).ask(&asked);
            let said = String::from_utf8_lossy(&asked.stderr).into_owned();
            if !asked.status.success() && said != refused {
                print!("{said}");
                refused = said;
            }
            asked.status.success()
        });
    }

    #[track_caller]
    pub(crate) fn await_rest(&self) {
        eventually("all moves are over", || {
            self.hosts.iter().all(|(_, place)| {
                let moves = place.json(&["move"]);
                let over = |one: &Value| one["over"] == true;
                moves["away"].as_array().unwrap().iter().all(over)
                    && moves["coming"].as_array().unwrap().is_empty()
            })
        });
    }

    /// Nothing of a move is left on any host: neither images nor whoever carried it.
    #[track_caller]
    pub(crate) fn await_clean(&self) {
        eventually("nothing of a move is left", || {
            let is_empty =
                |(_, place): &(&str, Place)| match fs::read_dir(place.path("state/moves")) {
                    Ok(mut left) => left.next().is_none(),
                    Err(error) => error.kind() == std::io::ErrorKind::NotFound,
                };
            self.hosts.iter().all(is_empty) && self.porters().is_empty()
        });
    }

    /// Those that take processes in, by the numbers of the test.
    pub(crate) fn porters(&self) -> Vec<u32> {
        crate::place::processes(|words| {
            words.get(1).is_some_and(|word| word == "porter")
                && words.iter().any(|word| {
                    let mut hosts = self.hosts.iter();
                    hosts.any(|(_, place)| Path::new(word).starts_with(place.path("state")))
                })
        })
    }

    /// Nothing that was witnessed before counts.
    pub(crate) fn forget_witnessed(&self) {
        if let Err(error) = fs::remove_file(&self.witness) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // What `nsenter` is told it does not pass on.
        for (_, place) in self.hosts.iter().filter(|(_, place)| place.is_begun()) {
            for daemon in children(place.daemon_pid()) {
                signal(daemon, Signal::TERM);
                let stops = std::panic::AssertUnwindSafe(|| {
                    eventually("the daemon stops", || !is_running(daemon));
                });
                if let Err(late) = std::panic::catch_unwind(stops) {
                    println!("threads left of {daemon}: {}", threads(daemon));
                    std::panic::resume_unwind(late);
                }
            }
        }
    }
}

/// The name of each thread of a process, its state, and what it waits for in the kernel.
fn threads(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let told = tasks.map(|task| {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let state = stat.rsplit(')').next().unwrap_or_default();
        let state = state.split_whitespace().next().unwrap_or_default();
        format!("{} {state} {}", read("comm").trim(), read("wchan").trim())
    });
    told.collect::<Vec<_>>().join("; ")
}

pub(crate) fn index(name: &str) -> usize {
    usize::from(name == "b")
}

pub(crate) fn other(name: &str) -> &'static str {
    if name == "a" { "b" } else { "a" }
}

/// Who owns an app and runs it.
#[track_caller]
pub(crate) fn owner(fleet: &Fleet, app: &str) -> &'static str {
    let owns = |name: &&'static str| {
        let owns = &status(fleet.place(name))["owns"];
        let is_owned = owns.as_array().unwrap().contains(&app.into());
        is_owned && fleet.place(name).app(app)["state"] == "running"
    };
    let mut found = None;
    eventually("somebody runs it", || {
        found = ["a", "b"].into_iter().find(owns);
        found.is_some()
    });
    found.unwrap()
}

/// How often a move is begun for a stage that may be over before it is seen.
const TRIES: u32 = 5;

/// Kills a daemon at a stage of a move from a host to the other; who owns the program in the end. A move that was past
/// that stage before it was seen counts as missed, and another one is begun, from wherever the program is by then.
pub(crate) fn killed_at(
    fleet: &mut Fleet,
    from: &'static str,
    kills: &str,
    stage: &str,
) -> &'static str {
    let is_source = kills == from;
    let mut at = from;
    for attempt in 1..=TRIES {
        let kills = if is_source { at } else { other(at) };
        let is_amid = crashes_at(fleet, at, kills, stage);
        fleet.begin(index(kills));
        fleet.await_rest();
        let owner = fleet.await_owner();
        let when = if is_amid { "amid" } else { "after" };
        println!(
            "{kills} killed, {at} to {} {when} {stage}: {owner}",
            other(at)
        );
        if is_amid {
            return owner;
        }
        println!("missed {stage} {attempt} times");
        at = owner;
    }
    panic!("no move of {TRIES} was seen while {stage}");
}

/// Begins a move and kills a daemon once it is at a stage, or over; whether it was at that stage.
pub(crate) fn crashes_at(fleet: &mut Fleet, from: &'static str, kills: &str, stage: &str) -> bool {
    let to = other(from);
    fleet.goes_on();
    let place = fleet.place(from);
    fleet.await_way(from, to);
    let asked = place.ask(&["move", "pages", "--to", to, "--detach"]);
    assert!(asked.status.success(), "{asked:?}");
    // Looked at as often as can be: some stages are shorter than it takes to begin a program that asks.
    let socket = place.path("socket");
    // Where it is frozen, CRIU is at work by then.
    let log = place.path("state/moves/pages.leaves/dump.log");
    let until = Instant::now() + PATIENCE;
    let is_amid = loop {
        let (status, said) = request(&socket, "GET", "/v1/moves", "");
        assert_eq!(status, 200, "{said}");
        let moves: Value = serde_json::from_str(&said).unwrap();
        let away = moves["away"].as_array().unwrap();
        let now = away.iter().find(|one| one["app"] == "pages").unwrap();
        if now["stage"] == stage && (stage != "freezing" || log.exists()) {
            break true;
        }
        if now["over"] == true {
            break false;
        }
        assert!(Instant::now() < until, "it comes to no end");
    };
    fleet.crash(index(kills));
    is_amid
}
