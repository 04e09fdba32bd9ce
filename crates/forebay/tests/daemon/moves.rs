//! Moves between hosts: daemons with state directories, groups and mounts of their own on one machine, a
//! real etcd, and a real program that counts into a file.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::etcd::Etcd;
use crate::fronts::free_port;
use crate::place::{EXE, Place, eventually, processes, signal};
use crate::relay::Relay;

/// Counts on from the last line of its file, some thirty milliseconds a line, with the host's name. What all hosts
/// see of it is written after its own line: a number that is twice in it was counted twice.
const COUNTS: &str = "h=$(cat \"$2\"); n=$(tail -n 1 \"$1\" 2>/dev/null || true); n=${n%% *}; n=${n:-0}; \
                      while :; do n=$((n + 1)); echo \"$n $h\" >> \"$1\"; echo \"$n $h\" >> \"$3\"; \
                      sleep 0.03; done";

/// In what is added to the configuration: where each host has its own directory.
pub(crate) const SHARED: &str = "@SHARED@";

/// Where agents listen, unless somebody says otherwise.
const ADDRESS: &str = "127.0.0.1";
const LEASE: &str = "5s";

/// Hosts of one fleet.
pub(crate) struct Fleet {
    pub(crate) hosts: Vec<(&'static str, Place)>,
    /// Where each host has its own directory, as its programs see it.
    shared: PathBuf,
    /// What the app wrote, in the order in which it did, on whatever host.
    witness: PathBuf,
    pub(crate) etcd: Etcd,
    /// What agents reach each other by, in the order of hosts; without any, nothing is between them.
    pub(crate) relays: Vec<Relay>,
    _dir: tempfile::TempDir,
}

impl Fleet {
    pub(crate) fn start(test: &str, names: &[&'static str]) -> Option<Self> {
        Self::start_with(test, names, |_| String::new())
    }

    /// With more in the configuration of every host, made of the first one's place.
    pub(crate) fn start_with(
        test: &str,
        names: &[&'static str],
        more: impl FnOnce(&Place) -> String,
    ) -> Option<Self> {
        Self::start_at(test, names, (ADDRESS, LEASE), more)
    }

    /// Whose agents reach each other by links that take so many bytes in a second.
    pub(crate) fn start_linked(test: &str, names: &[&'static str], speed: u64) -> Option<Self> {
        let relays = names.iter().map(|_| Relay::start(speed)).collect();
        Self::start_by(test, names, relays, (ADDRESS, LEASE), |_| String::new())
    }

    /// With agents that listen at this address, and with this lease.
    pub(crate) fn start_at(
        test: &str,
        names: &[&'static str],
        link: (&str, &str),
        more: impl FnOnce(&Place) -> String,
    ) -> Option<Self> {
        Self::start_by(test, names, Vec::new(), link, more)
    }

    fn start_by(
        test: &str,
        names: &[&'static str],
        relays: Vec<Relay>,
        link: (&str, &str),
        more: impl FnOnce(&Place) -> String,
    ) -> Option<Self> {
        let mut hosts = Vec::new();
        for name in names {
            hosts.push((*name, Place::new(test)?));
        }
        let etcd = Etcd::start(test)?;
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("srv");
        fs::create_dir(&shared).unwrap();
        let mut fleet = Self {
            hosts,
            shared,
            witness: dir.path().join("witness"),
            etcd,
            relays,
            _dir: dir,
        };
        certify(&fleet.hosts);
        let more = more(&fleet.hosts[0].1);
        for index in 0..fleet.hosts.len() {
            let (name, place) = &fleet.hosts[index];
            fs::create_dir(place.path("srv")).unwrap();
            fs::write(place.path("srv/name"), name).unwrap();
            fleet.configure(index, link, &more);
            fleet.begin(index);
        }
        Some(fleet)
    }

    fn file(&self) -> PathBuf {
        self.shared.join("orders/numbers")
    }

    fn configure(&self, index: usize, (address, lease): (&str, &str), more: &str) {
        let (name, place) = &self.hosts[index];
        let more = more.replace(SHARED, &self.shared.display().to_string());
        let relay = self.relays.get(index);
        let port = relay.map_or_else(free_port, Relay::leads_to);
        let reached = relay.map_or_else(String::new, Relay::configuration);
        place.configure(&format!(
            "[policy]\non_stop = \"kill\"\n\
             [fleet]\nhost = \"{name}\"\nlease = \"{lease}\"\n\
             [fleet.etcd]\nendpoints = [\"{}\"]\n[fleet.link]\nlisten = \"{address}:{port}\"\n{reached}\
             [apps.counts]\nrestart = \"always\"\n\
             exec = [\"/bin/sh\", \"-c\", '{COUNTS}', \"counts\", \"{}\", \"{}\", \"{}\"]\n\
             move = {{ mode = \"restart\", files = [\"{}\"] }}\n\
             [apps.stays]\nexec = [\"/bin/sleep\", \"{}\"]\n{more}",
            self.etcd.endpoint(),
            self.file().display(),
            self.shared.join("name").display(),
            self.witness.display(),
            self.shared.join("orders").display(),
            place.seconds(1),
        ));
    }

    /// Starts a daemon whose programs see its own directory.
    pub(crate) fn begin(&mut self, index: usize) {
        let shared = self.shared.clone();
        let (_, place) = &mut self.hosts[index];
        let own = place.path("srv");
        fs::create_dir_all(own.join("orders")).unwrap();
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "sh",
                "-c",
                "mount --bind \"$1\" \"$2\"; shift 2; exec \"$@\"",
                "sh",
            ])
            .arg(&own)
            .arg(&shared)
            .arg(EXE.as_str())
            .arg("daemon")
            .arg("--config")
            .arg(place.path("forebay.toml"));
        place.start_with(command);
    }

    pub(crate) fn place(&self, name: &str) -> &Place {
        let found = self.hosts.iter().find(|(host, _)| *host == name);
        &found.unwrap().1
    }

    /// Puts so many bytes beside what the app counts, which go along.
    pub(crate) fn load(&self, name: &str, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        fastrand::Rng::new().fill(&mut content);
        fs::write(self.place(name).path("srv/orders/load"), &content).unwrap();
        content
    }

    /// What a host has of that.
    pub(crate) fn loaded(&self, name: &str) -> Vec<u8> {
        fs::read(self.place(name).path("srv/orders/load")).unwrap_or_default()
    }

    pub(crate) fn index(&self, name: &str) -> usize {
        self.hosts
            .iter()
            .position(|(host, _)| *host == name)
            .unwrap()
    }

    /// What a host has of the app's file: it counted without a gap.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.place(name).path("srv/orders/numbers"));
        let text = text.unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let numbers: Vec<u64> = whole.lines().map(number).collect();
        let count = u64::try_from(numbers.len()).unwrap();
        assert!(numbers.iter().copied().eq(1..=count), "{name}: {numbers:?}");
        count
    }

    /// The processes of the app that are there.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let file = self.file().display().to_string();
        let found =
            processes(|words| words.contains(&file) && words.contains(&"counts".to_owned()));
        // A shell that is about to begin another program has its own words until it does.
        let is_forked = |pid: &u32| parent(*pid).is_some_and(|parent| found.contains(&parent));
        found
            .iter()
            .copied()
            .filter(|pid| !is_forked(pid))
            .collect()
    }

    /// No number was counted twice, by two at once or from files of before; the last one.
    #[track_caller]
    pub(crate) fn witnessed(&self) -> u64 {
        let text = fs::read_to_string(&self.witness).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines: Vec<&str> = whole.lines().collect();
        for pair in lines.windows(2) {
            assert!(number(pair[0]) < number(pair[1]), "{pair:?}");
        }
        lines.last().map_or(0, |line| number(line))
    }

    /// Waits until a host runs the app, and no other one does; what it counted.
    #[track_caller]
    pub(crate) fn await_owner(&self, name: &str) -> u64 {
        let runs = || {
            let running: Vec<&str> = self
                .hosts
                .iter()
                .filter(|(_, place)| place.app("counts")["state"] == "running")
                .map(|(host, _)| *host)
                .collect();
            running == [name] && self.processes().len() == 1
        };
        let runs = std::panic::AssertUnwindSafe(|| eventually("one host runs it", runs));
        if std::panic::catch_unwind(runs).is_err() {
            println!("processes: {:?}", self.processes());
            for (host, place) in &self.hosts {
                println!("{host}: {:#}", place.app("counts"));
                println!("{host}: {:#}", place.json(&["move"]));
                println!("{host}: {:#}", status(place));
                println!(
                    "{host}: {}",
                    String::from_utf8_lossy(&place.ask(&["explain", "counts"]).stdout)
                );
            }
            panic!("{name} does not run it, or not alone");
        }
        let before = self.counted(name);
        eventually("it goes on", || self.counted(name) > before + 5);
        before
    }

    /// Waits until nothing is on its way any more.
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

    /// Who owns the app, by what each host says of itself.
    pub(crate) fn owner(&self) -> String {
        let owns = |(_, place): &&(&str, Place)| {
            let owns = &status(place)["owns"];
            owns.as_array().unwrap().contains(&"counts".into())
        };
        let owners: Vec<_> = self.hosts.iter().filter(owns).collect();
        let [(owner, _)] = owners[..] else {
            panic!("{owners:?}");
        };
        (*owner).to_owned()
    }
}

#[test]
fn an_app_moves_with_its_file_and_counts_on() {
    let Some(mut fleet) = Fleet::start("an app moves with its file", &["a", "b", "c"]) else {
        return;
    };
    eventually("somebody owns it", || {
        !fleet.processes().is_empty() && fleet.processes().len() == 1
    });
    let first = fleet.owner();
    let others: Vec<&str> = ["a", "b", "c"]
        .into_iter()
        .filter(|host| *host != first)
        .collect();
    fleet.await_owner(&first);

    // Every refusal comes before anything is touched.
    let pid = fleet.processes();
    let place = fleet.place(&first);
    place.fails(
        &["move", "stays", "--to", others[0]],
        1,
        &["pinned", "mode = \"restart\""],
    );
    place.fails(
        &["move", "counts", "--to", "z"],
        1,
        &["z is no member", "a, b, c"],
    );
    place.fails(&["move", "counts", "--to", &first], 1, &["where it is"]);
    place.fails(&["move", "nothing", "--to", others[0]], 5, &["nothing"]);
    let there = fleet.place(others[0]);
    there.fails(
        &["move", "counts", "--to", &first],
        1,
        &["is at", "ask there"],
    );
    let asked = place.ask(&["move", "counts", "--to", others[0], "--dry-run"]);
    assert!(asked.status.success(), "{asked:?}");
    assert_eq!(fleet.processes(), pid);

    let moved = place.json(&["move", "counts", "--to", others[0]]);
    assert_eq!(
        (&moved["stage"], &moved["to"]),
        (&"moved".into(), &others[0].into()),
        "{moved}"
    );
    println!("{moved}");
    let before = fleet.counted(&first);
    assert!(fleet.await_owner(others[0]) >= before);
    assert_eq!(fleet.owner(), others[0]);
    let told = fleet.place(&first).await_event("counts", "move");
    assert!(told.contains(others[0]), "{told}");
    let told = fleet.place(others[0]).await_event("counts", "move");
    assert!(told.contains(&format!("came from {first}")), "{told}");

    // And on, to the third, by its own agent.
    let moved = fleet
        .place(others[0])
        .json(&["move", "counts", "--to", others[1]]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    let before = fleet.counted(others[0]);
    assert!(fleet.await_owner(others[1]) >= before);

    fleet.witnessed();

    // Nobody starts it a second time because a daemon was.
    let index = fleet.index(&first);
    fleet.hosts[index].1.crash();
    fleet.begin(index);
    fleet.await_owner(others[1]);
    assert_eq!(fleet.owner(), others[1]);
}

/// Hosts say what they take: one that would refuse is not chosen, and whoever chooses says why.
#[test]
fn a_host_that_does_not_have_the_app_is_not_asked() {
    let names = ["a", "b", "c"];
    let Some(fleet) = Fleet::start("a host does not have the app", &names) else {
        return;
    };
    eventually("somebody owns it", || fleet.processes().len() == 1);
    let first = fleet.owner();
    fleet.await_owner(&first);
    let pids = fleet.processes();
    let others: Vec<&str> = names.into_iter().filter(|host| *host != first).collect();
    let (with, without) = (others[0], others[1]);
    let file = fleet.place(without).path("forebay.toml");
    let all = fs::read_to_string(&file).unwrap();
    let start = all.find("[apps.counts]").unwrap();
    let end = all.find("[apps.stays]").unwrap();
    fs::write(&file, format!("{}{}", &all[..start], &all[end..])).unwrap();
    fleet.place(without).json(&["reload"]);
    let fleets = |asks: &str, host: &str| {
        let asked = fleet.place(host).ask_fleet(&[asks, host]);
        assert!(asked.status.success(), "{asked:?}");
    };
    fleets("cordon", with);
    let nowhere = |from: &str, words: &[&str]| {
        let asked = ["move", "counts", "--to", "auto"];
        eventually("all other hosts are ruled out", || {
            let output = fleet.place(from).ask(&asks_only(&asked));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            words.iter().all(|word| said.contains(word))
        });
        fleet.place(from).fails(&asked, 1, words);
    };
    let lacks = format!("{without}: counts is not among the apps that move there");
    nowhere(&first, &[&lacks, &format!("{with}: takes no more")]);
    assert_eq!(fleet.processes(), pids);

    // Who leaves a host goes to the one that has it.
    fleets("uncordon", with);
    fleets("drain", &first);
    fleet.await_owner(with);
    fleet.await_rest();

    // One that has another program under its name is none either.
    fs::write(&file, all.replace("sleep 0.03", "sleep 0.05")).unwrap();
    fleet.place(without).json(&["reload"]);
    let another = format!("{without}: counts is another one there");
    nowhere(with, &[&another, &format!("{first}: takes no more")]);
    assert_eq!(fleet.owner(), with);
    fleet.witnessed();
}

/// The same question, which moves nothing.
fn asks_only<'a>(asked: &[&'a str]) -> Vec<&'a str> {
    asked.iter().copied().chain(["--dry-run"]).collect()
}

/// Makes every host one of a fleet.
pub(crate) fn certify(hosts: &[(&'static str, Place)]) {
    let (first, holder) = &hosts[0];
    let own = holder.path("state").join("fleet");
    let run = |arguments: &[&str]| {
        let output = Command::new(EXE.as_str())
            .arg("fleet")
            .args(arguments)
            .arg("--dir")
            .arg(&own)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    run(&["ca", "init", "--fleet", "t", "--host", first]);
    for (name, place) in &hosts[1..] {
        let out = place.path("state").join("fleet");
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        run(&["ca", "issue", name, "--out", out.to_str().unwrap()]);
    }
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// That of a line.
fn number(line: &str) -> u64 {
    line.split(' ').next().unwrap().parse().unwrap()
}

pub(crate) fn status(place: &Place) -> Value {
    let output = Command::new(EXE.as_str())
        .args(["fleet", "status", "--json", "--socket"])
        .arg(place.path("socket"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Kills the source's daemon at a stage of a move; who owns the app in the end.
fn killed_at(fleet: &mut Fleet, from: &str, to: &str, stage: &dyn Fn(&Value) -> bool) -> String {
    let before = fleet.await_owner(from);
    let place = fleet.place(from);
    let asked = place.ask(&["move", "counts", "--to", to, "--detach"]);
    assert!(asked.status.success(), "{asked:?}");
    loop {
        let now = place.json(&["move", "counts"]);
        if stage(&now) || now["over"] == true {
            break;
        }
    }
    let index = fleet.index(from);
    fleet.hosts[index].1.crash();
    assert!(
        fleet.processes().len() <= 2,
        "at most one frozen and one that runs"
    );
    fleet.begin(index);
    fleet.await_rest();
    let owner = fleet.owner();
    assert!(fleet.await_owner(&owner) >= before, "nothing is lost");
    fleet.witnessed();
    owner
}

#[test]
fn a_source_that_is_killed_in_the_middle_leaves_one_owner() {
    let Some(mut fleet) = Fleet::start("a killed source", &["a", "b"]) else {
        return;
    };
    eventually("somebody owns it", || fleet.processes().len() == 1);
    let mut owner = fleet.owner();
    let stages = [
        "reserving",
        "copying",
        "freezing",
        "sending",
        "committing",
        "awaiting",
    ];
    let mut ends = Vec::new();
    for stage in stages {
        let to = if owner == "a" { "b" } else { "a" };
        let from = owner.clone();
        owner = killed_at(&mut fleet, &from, to, &|now| now["stage"] == stage);
        ends.push(format!("{stage}: {owner}"));
    }
    println!("{}", ends.join(", "));
    let other = if owner == "a" { "b" } else { "a" };
    let moved = fleet.place(&owner).json(&["move", "counts", "--to", other]);
    assert_eq!(moved["stage"], "moved", "{moved}");
}

/// The program ended and left a process: that is the app as well, and nothing of it stays at the source.
#[test]
fn what_a_program_left_behind_ends_where_it_was() {
    let mut words = Vec::new();
    let started = Fleet::start_with("what a program left behind", &["a", "b"], |place| {
        words.extend([place.seconds(5), place.seconds(6)]);
        let [child, main] = [&words[0], &words[1]];
        format!(
            "[apps.leaves]\nrestart = \"never\"\nmove = {{ mode = \"restart\" }}\n\
             exec = [\"/bin/sh\", \"-c\", \"sleep {child} & exec sleep {main}\"]\n"
        )
    });
    let Some(fleet) = started else { return };
    let sleeping = |n: usize| processes(|said| said == ["sleep".to_owned(), words[n].clone()]);
    eventually("it runs", || {
        sleeping(0).len() == 1 && sleeping(1).len() == 1
    });
    let owns = |name: &str| {
        let owns = &status(fleet.place(name))["owns"];
        owns.as_array().unwrap().contains(&"leaves".into())
    };
    eventually("its owner knows", || owns("a") != owns("b"));
    let [from, to] = if owns("a") { ["a", "b"] } else { ["b", "a"] };
    let left = sleeping(0);
    signal(sleeping(1)[0], Signal::KILL);
    fleet
        .place(from)
        .await_app("leaves", "ended", |app| app["state"] != "running");
    let moved = fleet.place(from).json(&["move", "leaves", "--to", to]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    eventually("it runs there", || {
        sleeping(0).len() == 1 && sleeping(1).len() == 1
    });
    assert_ne!(sleeping(0), left, "it was left to run");
}
