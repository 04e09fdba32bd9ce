//! Moves that nobody asked for: three daemons, a real etcd, and a real hog that constrains an app on one of
//! the hosts. All are on one machine: a hog of one host's own takes the processor time from that host's
//! other apps, and leaves those of another host their part.

use std::fs::OpenOptions;
use std::io::Write as _;

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
        let file = OpenOptions::new()
            .append(true)
            .open(place.path("forebay.toml"));
        write!(
            file.unwrap(),
            "[apps.hog]\nclass = \"critical\"\nrestart = \"never\"\nceiling = {{ cpu = 1.25 }}\n\
             exec = [\"{}\", \"workload\", \"burn\", \"--threads\", \"4\", \"--count-file\", {}]\n",
            *EXE,
            place.quoted("burned")
        )
        .unwrap();
        place.json(&["reload"]);
        place.await_pid("hog")
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
    let period = || place.json(&["status"])["period"].as_u64().unwrap();
    let until = period() + 30;
    eventually("some periods pass", || period() >= until);
    case.assert_nothing_moved(&pids);

    place.json(&["resume"]);
    eventually("it is another host's", || {
        status(case.fleet.place(case.others[0]))["owns"][0] == "counts"
    });
    signal(hog, Signal::KILL);
    case.fleet.await_rest();
}
