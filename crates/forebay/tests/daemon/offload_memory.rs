//! What is done about a lack of memory, rung by rung, to the last: another host.

use std::fs;

use serde_json::Value;

use crate::moves::{Fleet, SHARED, status};
use crate::place::{EXE, Place, eventually};

/// So strict that an app with 2 % of the host's memory lacks some, and in time for a test. CPUs are no matter.
const STRICT: &str = "memory = \"1%\"\ncpu = \"100%\"\ncpu_waits = \"100%\"\nio_waits = \"100%\"\npersistence = \"500ms\"\n\
                      cool_down = \"1s\"\nsettling = \"1s\"\n";

/// So many MiB are more than that.
fn much() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let total = text.lines().find_map(|line| {
        let all = line.strip_prefix("MemTotal:")?.trim();
        all.strip_suffix(" kB")?.parse::<u64>().ok()
    });
    total.unwrap() / 1024 * 18 / 1000
}

fn explained(place: &Place, app: &str) -> String {
    let output = place.ask(&["explain", app]);
    String::from_utf8(output.stdout).unwrap()
}

/// The first host that runs it, by what each says itself.
fn home(fleet: &Fleet) -> Option<&'static str> {
    let mut hosts = fleet.hosts.iter();
    let found = hosts.find(|(_, place)| {
        let owns = &status(place)["owns"];
        owns.as_array().unwrap().contains(&"eater".into())
            && place.app("eater")["state"] == "running"
    });
    found.map(|(name, _)| *name)
}

/// Nothing here is known to be cold; so it leaves as soon as another host takes it.
#[test]
fn an_app_that_lacks_memory_leaves_by_itself_once_nothing_here_helps() {
    let names = ["a", "b"];
    let more = format!(
        "[offload]\nmode = \"watch\"\n{STRICT}[apps.eater]\nclass = \"critical\"\nmove = {{ mode = \"restart\" }}\n\
         exec = [\"{}\", \"workload\", \"heap\", \"--hot\", \"{}\", \"--rate\", \"100\", \"--count-file\", \
         \"{SHARED}/eaten\"]\n",
        *EXE,
        much()
    );
    let Some(fleet) = Fleet::start_with("an app lacks memory", &names, |_| more) else {
        return;
    };
    let mut found = None;
    eventually("somebody runs it", || {
        found = home(&fleet);
        found.is_some()
    });
    let from = found.unwrap();
    let to = if from == "a" { "b" } else { "a" };
    let place = fleet.place(from);
    let asked = fleet.place(to).ask_fleet(&["cordon", to]);
    assert!(asked.status.success(), "{asked:?}");
    eventually("it is seen that the other one takes no more", || {
        let hosts = place.ask_fleet(&["hosts", "--json"]);
        let hosts: Value = serde_json::from_slice(&hosts.stdout).unwrap();
        let hosts = hosts["hosts"].as_array().unwrap();
        let seen = hosts.iter().find(|host| host["host"] == to);
        seen.is_some_and(|host| host["cordoned"] == true)
    });
    let file = place.path("forebay.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("mode = \"watch\"", "mode = \"act\"")).unwrap();
    place.json(&["reload"]);
    // Compaction is a rung where free memory is scattered: then it was tried, and what it did is told.
    eventually("every rung was tried or is named", || {
        let said = explained(place, "eater");
        let tried = said.contains("Tried: compact memory: it was ");
        let parts = [
            "It is constrained: it works with ",
            "what it lacks is memory",
            "Not taken: compact memory: ",
            "Not taken: take back memory of batch: ",
            "Not taken: take back memory of its own: ",
            "Not taken: move it to another host: ",
        ];
        let unscattered = said.contains("Not taken: compact memory: free memory is not scattered");
        let unable = said.contains("Not taken: compact memory: this kernel cannot be asked");
        (tried || unscattered || unable) && parts.iter().all(|part| said.contains(part))
    });
    println!("{}", explained(place, "eater"));
    assert_eq!(home(&fleet), Some(from));

    let asked = fleet.place(to).ask_fleet(&["uncordon", to]);
    assert!(asked.status.success(), "{asked:?}");
    eventually("it is the other host's", || home(&fleet) == Some(to));
    let why = format!("leaves for {to} by itself, since it works with ");
    eventually("it is said why", || {
        explained(place, "eater").contains(&why)
    });
    let events = place.json(&["events", "--app", "eater"]);
    let events = events["events"].as_array().unwrap().iter();
    let steps = events.filter(|event| event["kind"] == "offload");
    let steps: Vec<&str> = steps
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    println!("{steps:#?}");
    let rung = format!("offload: move it to another host ({to}), since it works with ");
    assert_eq!(
        steps.iter().filter(|step| step.starts_with(&rung)).count(),
        1,
        "{steps:?}"
    );
    fleet.await_rest();
}

/// Page cache that was used once, of batch and its own. It takes half a minute without it being missed to be known as
/// that; then the kernel is asked, and what that did is told.
#[test]
fn cold_memory_is_taken_back_and_what_that_did_is_told() {
    let test = "cold_memory_is_taken_back_and_what_that_did_is_told";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let doctor = std::process::Command::new(EXE.as_str())
        .arg("doctor")
        .output();
    let doctor = String::from_utf8_lossy(&doctor.unwrap().stdout).into_owned();
    let has = |line: &str| line.starts_with("yes") && line.contains("memory.reclaim");
    if !doctor.lines().any(has) {
        println!("SKIPPED: {test}: this host cannot be asked to take memory back");
        return;
    }
    let fills =
        |file: &str| format!("dd if=/dev/zero of={file} bs=1M count=96 conv=fsync 2> /dev/null");
    let web = fills(&place.path("own").display().to_string());
    let holds = fills(&place.path("cold").display().to_string());
    place.configure(&format!(
        "[offload]\nmode = \"act\"\n{STRICT}[apps.web]\nclass = \"critical\"\nexec = [\"sh\", \"-c\", '{web}; exec {} \
         workload heap --hot {} --rate 100 --count-file {}']\n[apps.holds]\nclass = \"batch\"\nexec = [\"sh\", \"-c\", \
         '{holds}; exec sleep {}']\n",
        *EXE,
        much(),
        place.path("eaten").display(),
        place.seconds(1),
    ));
    place.start();
    let held = || place.app("holds")["usage"]["memory_bytes"].as_u64();
    eventually("batch holds what it wrote", || held() > Some(64 << 20));
    let before = held();
    let parts = [
        "It is constrained: it works with ",
        "Tried: take back memory of batch (",
        "Tried: take back memory of its own (",
    ];
    eventually("both were tried", || {
        let said = explained(&place, "web");
        parts.iter().all(|part| said.contains(part))
    });
    let said = explained(&place, "web");
    println!("{said}");
    let tried: Vec<&str> = said.split("Tried: ").skip(1).collect();
    let of = |whose: &str| {
        let found = tried.iter().find(|line| line.contains(whose));
        *found.unwrap_or_else(|| panic!("{tried:?}"))
    };
    let batch = of("MiB of holds)");
    assert!(
        batch.contains(" times its limit and then ") && batch.contains(" predicted), "),
        "{batch}"
    );
    // What is little is refused on v1, where a limit has to be lowered for it.
    let own = of("MiB of web)");
    assert!(
        own.contains(" times its limit and then ") || own.contains("the host did not do it"),
        "{own}"
    );
    eventually("it was given back", || {
        held()
            .zip(before)
            .is_some_and(|(now, before)| now + (40 << 20) < before)
    });
    place.stop_well();
}
