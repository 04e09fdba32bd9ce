//! Processes that move between daemons with their memory: hosts with process numbers, mounts, state directories
//! and groups of their own on one machine, a real etcd, a real CRIU, and a program that keeps nothing but in memory.
//!
//! `FOREBAY_TEST_MEMORY` says how many MiB that is where its pause is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::etcd::Etcd;
use crate::fronts::free_port;
use crate::images::criu;
use crate::machine::{Machine, Rooms, children};
use crate::moves::{certify, status};
use crate::network::Network;
use crate::place::{EXE, PATIENCE, Place, eventually, is_running, signal};

/// Memory of the program in MiB, and what of it is written in a second.
const MEMORY: u32 = 24;
const RATE: u32 = 10;
/// Its pages are all looked at for every so many lines.
const CHECK_EVERY: u32 = 20;

/// Hosts of one fleet, whose apps move with their memory.
pub(crate) struct Fleet {
    pub(crate) hosts: Vec<(&'static str, Place)>,
    pub(crate) machines: Vec<Machine>,
    criu: PathBuf,
    /// What the program says, on whatever host.
    witness: PathBuf,
    pub(crate) etcd: Etcd,
    dir: tempfile::TempDir,
    /// Where each host has its own directory, as its programs see it: their files go along.
    shared: Option<PathBuf>,
    /// What becomes of programs whose daemon ends.
    on_stop: &'static str,
    pace: Pace,
    /// The network that they are on, and the address that their program has there.
    pub(crate) network: Option<Network>,
}

/// What the speed of a machine allows for.
struct Pace {
    /// Where agents listen.
    address: String,
    lease: &'static str,
    /// MiB of the program's memory that are written in a second.
    rate: u32,
}

impl Fleet {
    fn start(test: &str) -> Option<Self> {
        Self::start_with(test, MEMORY, "")
    }

    /// Whose program keeps a file open. More in the configuration is made of where its hosts have their own, with
    /// these directories in it.
    fn start_with_files(
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
    fn data(&self, name: &str) -> PathBuf {
        self.place(name).path("srv/data")
    }

    /// What the program wrote to the file that it keeps open: nothing is missing of it, and nothing twice.
    #[track_caller]
    fn journaled(&self, name: &str) -> u64 {
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
    fn writes_on(&self, name: &str) -> u64 {
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

    /// Whose programs run on when their daemon ends.
    pub(crate) fn start_keeping(test: &str) -> Option<Self> {
        let mut fleet = Self::new(test)?;
        fleet.on_stop = "keep";
        Some(fleet.begun(MEMORY, ""))
    }

    /// With more in the configuration of every host.
    fn start_with(test: &str, memory: u32, more: &str) -> Option<Self> {
        Some(Self::new(test)?.begun(memory, more))
    }

    /// On a network of their own, where clients reach the program at an address that goes along.
    pub(crate) fn start_on(test: &str, network: Network, memory: u32, more: &str) -> Option<Self> {
        let rooms = Rooms::Network;
        let mut fleet = Self::new_in(test, rooms, &network.centre.to_string())?;
        for (index, machine) in fleet.machines.iter().enumerate() {
            network.connect(index, machine);
        }
        fleet.network = Some(network);
        Some(fleet.begun(memory, more))
    }

    /// Before any daemon begins.
    fn new(test: &str) -> Option<Self> {
        Self::new_in(test, Rooms::Processes, "127.0.0.1")
    }

    fn new_in(test: &str, rooms: Rooms, centre: &str) -> Option<Self> {
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
            network: None,
        };
        certify(&fleet.hosts);
        Some(fleet)
    }

    fn begun(mut self, memory: u32, more: &str) -> Self {
        for index in 0..self.hosts.len() {
            let criu = self.criu.clone();
            self.configure(index, &criu, memory, more);
            self.begin(index);
        }
        self.await_owner();
        self
    }

    fn configure(&self, index: usize, criu: &Path, memory: u32, more: &str) {
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
        place.configure_daemon(
            &format!("criu = \"{}\"", criu.display()),
            &format!(
                "[policy]\non_stop = \"{}\"\n\
                 [fleet]\nhost = \"{name}\"\nlease = \"{lease}\"\n\
                 [fleet.etcd]\nendpoints = [\"{}\"]\n[fleet.link]\nlisten = \"{address}:{}\"\n\
                 [apps.pages]\nrestart = \"always\"\nstdout = \"/dev/null\"\nstderr = \"/dev/null\"\n\
                 exec = [\"{}\", \"workload\", \"pages\", \"--memory\", \"{memory}\", \"--rate\", \"{rate}\", \
                 \"--witness\", \"{}\", \"--check-every\", \"{CHECK_EVERY}\"{journal}{listen}]\n\
                 move = {{ mode = \"checkpoint\"{files}{goes} }}\n{more}",
                self.on_stop,
                self.etcd.endpoint(),
                free_port(),
                EXE.as_str(),
                self.witness.display(),
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

    /// The program that moves, by the numbers of the test, while no copy of it is made.
    pub(crate) fn program(&self) -> u32 {
        let programs = self.programs();
        let [program] = programs[..] else {
            panic!("{programs:?}");
        };
        program
    }

    /// All of them.
    pub(crate) fn programs(&self) -> Vec<u32> {
        let witness = self.witness.display().to_string();
        crate::place::processes(|words| words.contains(&witness))
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
            let is_empty = |(_, place): &(&str, Place)| {
                let moves = fs::read_dir(place.path("state/moves"));
                moves.is_ok_and(|mut left| left.next().is_none())
            };
            let porters = crate::place::processes(|words| {
                words.get(1).is_some_and(|word| word == "porter")
                    && words.iter().any(|word| {
                        let mut hosts = self.hosts.iter();
                        hosts.any(|(_, place)| Path::new(word).starts_with(place.path("state")))
                    })
            });
            self.hosts.iter().all(is_empty) && porters.is_empty()
        });
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

#[test]
fn a_process_moves_with_its_memory_to_another_daemon() {
    let asked = std::env::var("FOREBAY_TEST_MEMORY").ok();
    let memory = asked.map_or(MEMORY, |text| text.parse().unwrap());
    let Some(mut fleet) = Fleet::start_with("a process moves with its memory", memory, "") else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");

    // A question does not touch it, and says how long it would stand.
    let asked = fleet
        .place(from)
        .ask(&["move", "pages", "--to", to, "--dry-run"]);
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(asked.status.success(), "{asked:?}");
    assert!(said.contains("it would stand still for about"), "{said}");
    assert_eq!(fleet.place(from).await_pid("pages"), pid);

    let before = fleet.longest_silence();
    let moved = fleet.place(from).json(&["move", "pages", "--to", to]);
    println!("{moved}");
    fleet.goes_on();
    let after = fleet.longest_silence();
    println!("it was silent for {after} ms at most, {before} ms before it moved");
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert!(
        moved["expected_pause_seconds"].as_f64().unwrap() > 0.0,
        "{moved}"
    );
    assert!(
        moved["sent_bytes"].as_u64().unwrap() >= u64::from(memory) << 20,
        "{moved}"
    );
    assert_eq!(fleet.await_owner(), to);
    assert_eq!(
        fleet.place(to).await_pid("pages"),
        pid,
        "it is the same process"
    );
    let told = fleet.place(to).await_event("pages", "move");
    assert!(told.contains(&format!("came from {from}")), "{told}");
    fleet.await_clean();

    // The daemon that took it in ends, and the next one knows it: it goes on, and no other is started.
    fleet.crash(index(to));
    fleet.begin(index(to));
    assert_eq!(fleet.await_owner(), to);
    assert_eq!(fleet.place(to).await_pid("pages"), pid);

    // And back, where its number is free again.
    let moved = fleet.place(to).json(&["move", "pages", "--to", from]);
    println!("{moved}");
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    fleet.await_clean();

    // It is the app's program: where it ends, its policy has it started again.
    let program = fleet.program();
    fs::remove_file(&fleet.witness).unwrap();
    signal(program, Signal::KILL);
    fleet
        .place(from)
        .await_app("pages", "started again", |app| {
            app["state"] == "running" && app["main_pid"] != pid
        });
}

/// Kills a daemon at a stage of a move; who owns the program in the end.
pub(crate) fn killed_at(
    fleet: &mut Fleet,
    from: &'static str,
    kills: &str,
    stage: &str,
) -> &'static str {
    let to = other(from);
    fleet.goes_on();
    let place = fleet.place(from);
    eventually("it could move", || {
        let asked = place.ask(&["move", "pages", "--to", to, "--dry-run"]);
        asked.status.success()
    });
    let asked = place.ask(&["move", "pages", "--to", to, "--detach"]);
    assert!(asked.status.success(), "{asked:?}");
    // Looked at as often as can be: some stages are short.
    let until = Instant::now() + PATIENCE;
    let is_there = |now: &Value| now["stage"] == stage || now["over"] == true;
    while !is_there(&place.json(&["move", "pages"])) {
        assert!(Instant::now() < until, "it comes to no end");
    }
    fleet.crash(index(kills));
    fleet.begin(index(kills));
    fleet.await_rest();
    let owner = fleet.await_owner();
    println!("{kills} killed, {from} to {to} {stage}: {owner}");
    owner
}

/// Whatever daemon ends, one process goes on from where it stood.
#[test]
fn a_daemon_that_is_killed_while_memory_moves_leaves_one_process() {
    let Some(mut fleet) = Fleet::start("a daemon is killed while memory moves") else {
        return;
    };
    let mut owner = fleet.await_owner();
    let stages = ["copying", "freezing", "sending", "committing", "awaiting"];
    for stage in stages {
        for is_source in [true, false] {
            let kills = if is_source { owner } else { other(owner) };
            owner = killed_at(&mut fleet, owner, kills, stage);
        }
    }
    let to = other(owner);
    let moved = fleet.place(owner).json(&["move", "pages", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert_eq!(fleet.await_owner(), to);
    fleet.await_clean();
}

/// A target that cannot make it leaves it where it is, and it goes on.
#[test]
fn a_process_that_its_target_cannot_make_goes_on_where_it_was() {
    let Some(mut fleet) = Fleet::start("a target cannot make a process") else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");
    fleet.break_criu(to);
    eventually("it could move", || {
        let asked = fleet
            .place(from)
            .ask(&["move", "pages", "--to", to, "--dry-run"]);
        asked.status.success()
    });
    fleet
        .place(from)
        .fails(&["move", "pages", "--to", to], 1, &["stays", "restore"]);
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    fleet.await_rest();
    fleet.await_clean();
}

/// What stands against a move is told, all of it, before anything is touched.
#[test]
fn a_process_that_cannot_go_along_is_refused_before_it_is_touched() {
    let port = free_port();
    let exe = EXE.as_str();
    let quiet = "stdout = \"/dev/null\"\nstderr = \"/dev/null\"\nmove = { mode = \"checkpoint\" }";
    let more = format!(
        "[apps.family]\nexec = [\"/bin/sh\", \"-c\", \"sleep 100000 & wait\"]\n{quiet}\n\
         [apps.talks]\nexec = [\"{exe}\", \"workload\", \"pages\", \"--memory\", \"1\", \"--rate\", \"0\", \"--listen\", \
         \"127.0.0.1:{port}\"]\n{quiet}\n"
    );
    let Some(fleet) = Fleet::start_with("a process that cannot go along", MEMORY, &more) else {
        return;
    };
    let refused = |app: &str, words: &[&str]| {
        let from = owner(&fleet, app);
        let place = fleet.place(from);
        let pid = place.await_pid(app);
        for way in [&["--dry-run"][..], &[]] {
            let words: Vec<&str> = words.iter().copied().chain([app]).collect();
            let mut asked = vec!["move", app, "--to", other(from)];
            asked.extend(way);
            place.fails(&asked, 1, &words);
        }
        assert_eq!(place.await_pid(app), pid);
    };
    refused("family", &["1 child process(es)"]);
    let mut client = None;
    eventually("it listens", || {
        client = std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        client.is_some()
    });
    refused("talks", &["1 TCP connection(s)", "move.connections"]);
}

#[test]
fn a_process_moves_with_the_files_that_it_has_open() {
    let test = "a process moves with its files";
    let Some(mut fleet) = Fleet::start_with_files(test, &[], |_| String::new()) else {
        return;
    };
    let mut owner = fleet.await_owner();
    let to = other(owner);
    let pid = fleet.place(owner).await_pid("pages");
    let mut load = vec![0; 6 << 20];
    fastrand::Rng::new().fill(&mut load);
    fs::create_dir(fleet.data(owner).join("deep")).unwrap();
    fs::write(fleet.data(owner).join("deep/load"), &load).unwrap();
    std::os::unix::fs::symlink("deep/load", fleet.data(owner).join("link")).unwrap();
    fs::write(fleet.data(to).join("stale"), "of before").unwrap();
    fs::write(fleet.data(to).join("journal"), "of before").unwrap();

    let moved = fleet.place(owner).json(&["move", "pages", "--to", to]);
    println!("{moved}");
    assert_eq!(moved["stage"], "moved", "{moved}");
    let left = fleet.journaled(owner);
    assert!(fleet.writes_on(to) >= left, "it goes on behind what it had");
    assert_eq!(fleet.await_owner(), to);
    assert_eq!(fleet.place(to).await_pid("pages"), pid);
    assert_eq!(fs::read(fleet.data(to).join("link")).unwrap(), load);
    assert!(!fleet.data(to).join("stale").exists());
    assert_eq!(fleet.journaled(owner), left, "nobody writes at the source");
    fleet.await_clean();
    owner = to;

    // Whatever daemon ends, its files are where it is.
    for (stage, is_source) in [("sending", true), ("sending", false), ("awaiting", false)] {
        let kills = if is_source { owner } else { other(owner) };
        owner = killed_at(&mut fleet, owner, kills, stage);
        assert_eq!(fleet.place(owner).await_pid("pages"), pid);
        fleet.writes_on(owner);
        assert_eq!(fs::read(fleet.data(owner).join("link")).unwrap(), load);
    }
    fleet.await_clean();
    for (_, place) in &fleet.hosts {
        let left = fs::read_dir(place.path("srv")).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["data"], "nothing is left beside it");
    }
}

/// What somebody else writes meanwhile is not in the copy: it stays where it is.
#[test]
fn a_file_that_changes_while_its_process_stands_turns_the_move_back() {
    let test = "a file changes while its process stands";
    let Some(fleet) = Fleet::start_with_files(test, &[], |_| String::new()) else {
        return;
    };
    let from = fleet.await_owner();
    let to = other(from);
    let pid = fleet.place(from).await_pid("pages");
    fs::write(fleet.data(to).join("stale"), "of before").unwrap();
    let foreign = fleet.data(from).join("foreign");
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                fs::write(&foreign, number.to_string()).unwrap();
            }
        });
        let asked = fleet.place(from).ask(&["move", "pages", "--to", to]);
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert_eq!(asked.status.code(), Some(1), "{asked:?}");
        assert!(
            said.contains("foreign was changed while pages stood still"),
            "{said}"
        );
    });
    fleet.await_rest();
    assert_eq!(fleet.await_owner(), from);
    assert_eq!(fleet.place(from).await_pid("pages"), pid);
    fleet.writes_on(from);
    fleet.await_clean();
    eventually("what was there is there again", || {
        let names = fs::read_dir(fleet.data(to)).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names == ["stale"]
    });

    // When nobody does, it moves.
    let moved = fleet.place(from).json(&["move", "pages", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    fleet.writes_on(to);
}

/// A file that stays behind, and a disk that is full, are told before anything is touched.
#[test]
fn a_target_without_a_file_or_without_room_for_them_is_refused() {
    let exe = EXE.as_str();
    let quiet = "stdout = \"/dev/null\"\nstderr = \"/dev/null\"\n";
    let app = |name: &str, keys: &str, journal: &Path| {
        format!(
            "[apps.{name}]\n{quiet}exec = [\"{exe}\", \"workload\", \"pages\", \"--memory\", \"1\", \"--rate\", \
             \"0\", \"--witness\", \"/dev/null\", \"--journal\", \"{}\"]\nmove = {{ mode = \"checkpoint\"{keys} \
             }}\n",
            journal.display()
        )
    };
    let more = |shared: &Path| {
        let small = shared.join("small/own");
        let files = format!(", files = [\"{}\"]", small.display());
        let behind = app("behind", "", &shared.join("behind/journal"));
        behind + &app("small", &files, &small.join("journal"))
    };
    let test = "a target without a file or room";
    let Some(fleet) = Fleet::start_with_files(test, &["behind", "small/own"], more) else {
        return;
    };
    let refused = |app: &str, words: &[&str]| {
        let from = owner(&fleet, app);
        let pid = fleet.place(from).await_pid(app);
        for way in [&["--dry-run"][..], &[]] {
            let mut asked = vec!["move", app, "--to", other(from)];
            asked.extend(way);
            fleet.place(from).fails(&asked, 1, words);
        }
        assert_eq!(fleet.place(from).await_pid(app), pid);
    };
    refused(
        "behind",
        &["behind/journal is not at the target", "move.files"],
    );

    let from = owner(&fleet, "small");
    let to = index(other(from));
    fs::write(
        fleet.place(from).path("srv/small/own/load"),
        vec![1; 4 << 20],
    )
    .unwrap();
    let small = fleet.dir.path().join("srv/small");
    let mut command = fleet.machines[to].enter();
    let mount = command.args(["mount", "-t", "tmpfs", "-o", "size=1m", "none"]);
    assert!(mount.arg(&small).status().unwrap().success());
    refused(
        "small",
        &[
            "files of small have 5 MiB",
            "are free at",
            "make room there",
        ],
    );
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
