//! An app that takes much of a slow block device, and what is tried about it: a device of the test's own, as slow as it
//! was measured.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use forebay_host::mounts::Controller;
use serde_json::Value;

use crate::calibrate::{Disk, LIMIT};
use crate::place::{EXE, Place, eventually};

/// What a request takes that comes alone, in microseconds.
const ALONE_US: u64 = 20_000;

/// Measures the device where it is held to [`LIMIT`], for the daemon of a place.
fn measure(disk: &mut Disk, place: &Place) -> Option<()> {
    let procs = disk.throttled(LIMIT)?;
    let measured = Command::new("sh")
        .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
        .arg(procs)
        .arg(EXE.as_str())
        .arg("calibrate")
        .arg(disk.path("mnt"))
        .args(["--seconds", "3", "--json", "--state-dir"])
        .arg(place.path("state"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(measured.status.success(), "{measured:?}");
    // A limit of the kernel's lets requests that come alone pass at once; what is as slow as that takes its time.
    let file = place.path("state/calibration.json");
    let mut known: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    for way in ["read", "write"] {
        let single = &mut known["devices"][0][way]["single"];
        for of in ["p50_us", "p99_us", "max_us"] {
            single[of] = ALONE_US.into();
        }
    }
    fs::write(file, known.to_string()).unwrap();
    Some(())
}

/// What an app may read of a device in a second, as the kernel has it; none without a limit.
fn may_read(place: &Place, app: &str, device: &str) -> Option<u64> {
    let (_, hierarchy) = place.hierarchies.of(Controller::Io)?;
    let dir = hierarchy.dir(Path::new(&format!("{}.{app}", place.group)));
    let v1 = fs::read_to_string(dir.join("blkio.throttle.read_bps_device"));
    let text = v1
        .or_else(|_| fs::read_to_string(dir.join("io.max")))
        .ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(device))?;
    let words = rest.split_whitespace();
    let mut words = words.map(|word| word.strip_prefix("rbps=").unwrap_or(word));
    words.next()?.parse().ok()
}

fn offloaded(place: &Place) -> Vec<String> {
    let events = place.json(&["events", "--app", "web"]);
    let events = events["events"].as_array().unwrap().iter();
    let steps = events.filter(|event| event["kind"] == "offload");
    steps
        .map(|event| event["message"].as_str().unwrap().to_owned())
        .collect()
}

/// Each rung in its order, with what it did.
#[test]
fn an_app_that_takes_much_of_a_device_climbs_rung_by_rung() {
    let test = "an_app_that_takes_much_of_a_device_climbs_rung_by_rung";
    // It goes after the apps that use it.
    let Some(mut disk) = Disk::new(test) else {
        return;
    };
    let Some(mut place) = Place::new(test) else {
        return;
    };
    if measure(&mut disk, &place).is_none() {
        println!("SKIPPED: {test}: no writable control group for block devices");
        return;
    }
    let mnt = |name: &str| disk.path("mnt").join(name);
    for name in ["served", "load"] {
        fs::write(mnt(name), vec![1; 24 << 20]).unwrap();
    }
    for dir in [mnt("tiered"), mnt("slow"), place.path("fast")] {
        fs::create_dir(dir).unwrap();
    }
    // So little that it hardly waits: who does has batch bounded by what it waits for, and not by what it takes. It is
    // more than twice what counts as too much.
    let config = format!(
        "[offload]\nmode = \"watch\"\nio = \"1%\"\nio_waits = \"100%\"\ncpu_waits = \"100%\"\npersistence = \"500ms\"\n\
         settling = \"1s\"\n[tiers.files]\ndirectory = \"{}\"\nslow = \"{}\"\nfast = {}\nfast_size_max = \"16MiB\"\n\
         [apps.web]\nclass = \"critical\"\nexec = [\"{exe}\", \"workload\", \"disk-reads\", \"--device\", \"{}\", \
         \"--per-s\", \"20\", \"--kib\", \"32\", \"--seconds\", \"100000\", \"--json\", {}]\n\
         [apps.load]\nclass = \"batch\"\nexec = [\"{exe}\", \"workload\", \"disk-hog\", \"--device\", \"{}\", \
         \"--readers\", \"4\", \"--writers\", \"0\", \"--count-file\", {}]\n",
        mnt("tiered").display(),
        mnt("slow").display(),
        place.quoted("fast"),
        mnt("served").display(),
        place.quoted("read.json"),
        mnt("load").display(),
        place.quoted("read.count"),
        exe = *EXE,
    );
    place.configure(&config);
    place.start();
    let explained = || String::from_utf8(place.ask(&["explain", "web"]).stdout).unwrap();
    // What could be tried first is said, and nothing is done.
    let could = "It could be tried to divide block devices anew (";
    eventually("it is constrained", || {
        let said = explained();
        said.contains("of a block device's time, more than 1%")
            && said.contains("what it lacks is I/O")
            && said.contains(could)
    });
    let number = disk.number();
    let mut before = None;
    eventually("batch is bounded by what the app leaves", || {
        before = may_read(&place, "load", &number);
        before.is_some()
    });
    println!("{}", explained());
    assert_eq!(offloaded(&place), Vec::<String>::new());

    place.configure(&config.replace("mode = \"watch\"", "mode = \"act\""));
    place.json(&["reload"]);
    let divided = "offload: divide block devices anew (";
    // What it may without that comes to rest slowly.
    let (mut most, mut less) = (before.unwrap(), 0);
    eventually("batch may read less", || {
        less = may_read(&place, "load", &number).unwrap_or(most);
        most = most.max(less);
        less < most * 4 / 5 && !offloaded(&place).is_empty()
    });
    let step = offloaded(&place).remove(0);
    println!("{most} to {less} bytes/s: {step}");
    assert!(
        step.starts_with(divided) && step.contains(" of their time taken from batch), since it "),
        "{step}"
    );
    // It reads what it reads whatever batch may, so that this does not help; then its files are to move, which
    // has none to move. What is left is another host, and there is none.
    let rungs = [
        "divide block devices anew",
        "let warm files move to fast storage although it waits",
    ];
    eventually("all rungs are tried or named", || {
        let said = explained();
        let tried = |rung: &str| said.contains(&format!("Tried: {rung}"));
        rungs.iter().all(|rung| tried(rung))
            && said.contains(
                "Not taken: move it to another host: this host takes no part in moves of a fleet",
            )
    });
    let said = explained();
    println!("{said}");
    for line in said.lines().filter(|line| line.contains("Tried: ")) {
        assert!(
            line.contains(" times its limit and then ") && line.contains(" predicted), "),
            "{line}"
        );
    }
    let steps = offloaded(&place);
    let at = |start: &str| steps.iter().position(|step| step.starts_with(start));
    let order = rungs.map(|rung| at(&format!("offload: {rung}")));
    assert!(order[0].is_some() && order[0] < order[1], "{steps:?}");
    place.json(&["pause"]);
    let paused: Value = place.json(&["status"]);
    assert_eq!(paused["paused"], true, "{paused}");
    place.stop_well();
}
