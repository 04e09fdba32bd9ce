//! Moves that nobody asked for: three daemons, a real etcd, and a real hog that constrains an app on one of
//! the hosts. All are on one machine: a hog of one host's own takes the processor time from that host's
//! other apps, and leaves those of another host their part.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;

use crate::moves::{Fleet, status};
use crate::place::{EXE, Place, eventually, signal};

/// In time for a test.
const QUICK: &str =
    "cpu_waits = \"20%\"\npersistence = \"500ms\"\ncool_down = \"1s\"\nsettling = \"1s\"\n";

/// A fleet of which one host has the app; that host and the others.
struct Case {
    fleet: Fleet,
    first: String,
    others: Vec<&'static str>,
}

impl Case {
    fn new(test: &str, mode: &str, moves: &str) -> Option<Self> {
        let names = ["a", "b", "c"];
        let more = format!("[fleet.moves]\n{moves}\n[offload]\nmode = \"{mode}\"\n{QUICK}");
        let fleet = Fleet::start_with(test, &names, |_| more)?;
        eventually("somebody owns it", || fleet.processes().len() == 1);
        let first = fleet.owner();
        fleet.await_owner(&first);
        let others = names.into_iter().filter(|host| *host != first).collect();
        Some(Self {
            fleet,
            first,
            others,
        })
    }

    fn home(&self) -> &Place {
        self.fleet.place(&self.first)
    }

    /// A host takes no more.
    fn cordon(&self, name: &str) {
        let place = self.fleet.place(name);
        let asked = place.ask_fleet(&["cordon", name]);
        assert!(asked.status.success(), "{asked:?}");
        // Others look from time to time.
        eventually("all see that it takes no more", || {
            self.fleet.hosts.iter().all(|(_, other)| {
                let hosts = other.fleet_json(&["hosts"]);
                let hosts = hosts["hosts"].as_array().unwrap();
                let seen = hosts.iter().find(|host| host["host"] == name);
                seen.is_some_and(|host| host["cordoned"] == true)
            })
        });
    }

    /// The hog of a host, which is a part of its configuration: for more than half of the time it takes all CPUs,
    /// ahead of the app and of all that tests run beside it; its process.
    fn hog(&self, name: &str) -> u32 {
        let place = self.fleet.place(name);
        let hog = format!(
            "[apps.hog]\nclass = \"critical\"\nrestart = \"never\"\nceiling = {{ cpu = 1.25 }}\n\
             exec = [\"{}\", \"workload\", \"burn\", \"--threads\", \"4\", \"--count-file\", {}]\n",
            *EXE,
            place.quoted("burned")
        );
        self.add(name, &hog);
        place.await_pid("hog")
    }

    /// More in the configuration of a host.
    fn add(&self, name: &str, text: &str) {
        let place = self.fleet.place(name);
        let file = OpenOptions::new()
            .append(true)
            .open(place.path("forebay.toml"));
        file.unwrap().write_all(text.as_bytes()).unwrap();
        place.json(&["reload"]);
    }

    /// So many control periods pass at home.
    #[track_caller]
    fn pass(&self, periods: u64) {
        let period = || self.home().json(&["status"])["period"].as_u64().unwrap();
        let until = period() + periods;
        eventually("some periods pass", || period() >= until);
    }

    /// What was said at home of moves of the app.
    fn told(&self) -> Vec<String> {
        let events = self.home().json(&["events", "--app", "counts"]);
        let events = events["events"].as_array().unwrap().iter();
        let moves = events.filter(|event| event["kind"] == "move");
        moves
            .map(|event| event["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until the explanation of the app at a host has all of these words; the explanation.
    #[track_caller]
    fn await_explained(&self, name: &str, words: &[&str]) -> String {
        let place = self.fleet.place(name);
        let mut said = String::new();
        eventually(&format!("{name} explains {words:?}"), || {
            let output = place.ask(&["explain", "counts"]);
            said = String::from_utf8(output.stdout).unwrap();
            words.iter().all(|word| said.contains(word))
        });
        said
    }

    /// Nothing moves from a host, nor ever did.
    #[track_caller]
    fn assert_nothing_moved(&self, pids: &[u32]) {
        assert_eq!(self.fleet.processes(), pids, "it was touched");
        for (name, place) in &self.fleet.hosts {
            let moves = place.json(&["move"]);
            assert_eq!(moves["away"], Value::Array(Vec::new()), "{name}");
        }
        assert_eq!(self.fleet.owner(), self.first);
    }
}

impl Place {
    pub(crate) fn ask_fleet(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = std::process::Command::new(EXE.as_str());
        command.arg("fleet").args(arguments);
        command.arg("--socket").arg(self.path("socket"));
        command.output().unwrap()
    }

    fn fleet_json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let output = self.ask_fleet(&arguments);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn an_app_that_is_constrained_moves_by_itself_and_does_not_come_back() {
    let Some(case) = Case::new("an app moves by itself", "act", "") else {
        return;
    };
    let first = case.first.clone();
    let (to, third) = (case.others[0], case.others[1]);
    case.cordon(third);
    let hog = case.hog(&first);
    eventually("it is another host's", || {
        status(case.fleet.place(to))["owns"][0] == "counts"
    });
    // The hosts share their CPUs.
    signal(hog, Signal::KILL);
    case.fleet.await_owner(to);
    assert_eq!(case.fleet.owner(), to);
    case.fleet.await_rest();
    case.fleet.witnessed();

    // Both say why, and nobody asked for it.
    let why = format!("leaves for {to} by itself, since some task of it waits for a CPU");
    let said = case.await_explained(&first, &[&why, &format!("moved to {to}")]);
    println!("{said}");
    case.await_explained(to, &[&format!("came from {first} by restart")]);
    let events = case.home().json(&["events", "--app", "counts"]);
    let steps = events["events"].as_array().unwrap().iter();
    let steps = steps.filter(|event| event["kind"] == "offload");
    let steps: Vec<&str> = steps
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    let [step] = steps[..] else {
        panic!("{steps:?}")
    };
    let rung =
        format!("offload: move it to another host ({to}), since some task of it waits for a CPU");
    assert!(step.starts_with(&rung), "{step}");

    // The same again there: it rests, and does not go to and fro.
    let hog = case.hog(to);
    let stays = "Not taken: move it to another host: it moved a short while ago, and stays for";
    let said = case.await_explained(to, &["It is constrained", stays]);
    signal(hog, Signal::KILL);
    println!("{said}");
    assert_eq!(case.fleet.owner(), to);
    assert_eq!(case.fleet.processes().len(), 1);
}

#[test]
fn nothing_moves_where_forebay_only_observes() {
    let Some(case) = Case::new("nothing moves while paused", "watch", "") else {
        return;
    };
    let pids = case.fleet.processes();
    case.cordon(case.others[1]);
    let hog = case.hog(&case.first);
    let could = format!(
        "It could be tried to move it to another host ({})",
        case.others[0]
    );
    case.await_explained(&case.first, &["It is constrained", &could]);

    let place = case.home();
    place.json(&["pause"]);
    let file = place.path("forebay.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("mode = \"watch\"", "mode = \"act\"")).unwrap();
    place.json(&["reload"]);
    // Where Forebay acts, it is taken in the first.
    let could = format!("{could}; nothing is tried while Forebay is paused.");
    let said = case.await_explained(&case.first, &["It is constrained", &could]);
    case.pass(30);
    case.assert_nothing_moved(&pids);
    // What is not done is not told to be in force.
    assert!(!said.contains("In force for it"), "{said}");

    place.json(&["resume"]);
    eventually("it is another host's", || {
        status(case.fleet.place(case.others[0]))["owns"][0] == "counts"
    });
    signal(hog, Signal::KILL);
    case.fleet.await_rest();
}

/// What is known to come makes one leave before it is there.
#[test]
fn an_app_leaves_before_a_shortage_that_is_foreseen_has_come() {
    let moves = "foreseen_for = \"1s\"";
    let Some(case) = Case::new("an app leaves before a shortage", "act", moves) else {
        return;
    };
    let first = case.first.clone();
    let (to, third) = (case.others[0], case.others[1]);
    case.cordon(third);
    let cpus = std::thread::available_parallelism().unwrap().get();
    // In UTC, and not on the minute that begins now.
    let seconds = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let comes = (seconds() / 60 + 10) * 60;
    let minute = comes / 60 % 1440;
    let event = |name: &str, app: &str, cpu: f64| {
        format!(
            "[[event]]\nname = \"{name}\"\nschedule = \"{:02}:{:02}\"\ntimezone = \"UTC\"\napps = [\"{app}\"]\n\
             cpu = {cpu}\n",
            minute / 60,
            minute % 60
        )
    };
    #[expect(clippy::cast_precision_loss, reason = "there are few CPUs")]
    let most = cpus as f64 - 0.2;
    // Each alone has room here.
    let text = event("report", "stays", most) + &event("rush", "counts", 0.7);
    case.add(&first, &text);
    eventually("it is another host's", || {
        status(case.fleet.place(to))["owns"][0] == "counts"
    });
    case.fleet.await_owner(to);
    assert!(seconds() < comes, "it came first");
    case.fleet.await_rest();
    case.fleet.witnessed();
    let why = format!("leaves for {to} by itself, since");
    let foreseen = "CPUs will be needed here within the next minutes";
    let said = case.await_explained(&first, &[&why, foreseen, &format!("moved to {to}")]);
    println!("{said}");
    case.await_explained(to, &[&format!("came from {first} by restart")]);
}

#[test]
fn nothing_moves_by_itself_where_that_is_switched_off() {
    let Some(case) = Case::new("nothing moves by itself", "act", "by_itself = false") else {
        return;
    };
    let pids = case.fleet.processes();
    let hog = case.hog(&case.first);
    let stays = "Not taken: move it to another host: nothing moves by itself here \
                 (`fleet.moves.by_itself = false`)";
    let said = case.await_explained(&case.first, &["It is constrained", stays]);
    println!("{said}");
    case.pass(30);
    case.assert_nothing_moved(&pids);

    // Whoever asks for it gets it.
    let moved = case
        .home()
        .json(&["move", "counts", "--to", case.others[0]]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    signal(hog, Signal::KILL);
    case.fleet.await_owner(case.others[0]);
}

/// One that is constrained where nobody has room for it stays, and is not moved to and fro to find that out.
#[test]
fn nothing_moves_where_no_other_host_has_room() {
    let Some(mut case) = Case::new("no other host has room", "act", "") else {
        return;
    };
    let pids = case.fleet.processes();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let memory = memory.lines().find_map(|line| {
        let all = line.strip_prefix("MemTotal:")?.trim();
        all.strip_suffix(" kB")?.parse::<u64>().ok()
    });
    // What they keep for themselves is all but a page.
    let keeps = format!("[policy]\nsystem_memory = \"{}KiB\"\n", memory.unwrap() - 4);
    for name in case.others.clone() {
        let index = case.fleet.index(name);
        let file = case.fleet.place(name).path("forebay.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("[policy]\n", &keeps)).unwrap();
        case.fleet.hosts[index].1.crash();
        case.fleet.begin(index);
    }
    // Each is named with what it has, to whoever asks.
    let asked = ["move", "counts", "--to", "auto", "--dry-run"];
    let others: Vec<String> = case
        .others
        .iter()
        .map(|host| format!("{host}: has room for"))
        .collect();
    eventually("all see that they have none", || {
        let output = case.home().ask(&asked);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        others.iter().all(|other| said.contains(other))
    });

    let hog = case.hog(&case.first);
    let stays = "Not taken: move it to another host: no host of the fleet has room for it";
    let said = case.await_explained(&case.first, &["It is constrained", stays]);
    println!("{said}");
    let told = case.told();
    case.pass(50);
    // At most that one would leave is said once, when the host is short itself.
    let new = case.told().len() - told.len();
    assert!(new <= 1, "{:?}", case.told());
    case.assert_nothing_moved(&pids);
    signal(hog, Signal::KILL);
}
