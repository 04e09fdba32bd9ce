//! Whether a process could be copied, judged before it is touched: what it writes, over a link as slow as a test has it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::memory_fleet::{Fleet, index, other, owner};
use crate::place::{EXE, eventually};

/// Bytes that go over a link in a second, to each side.
const SPEED: f64 = 20.0 * 1_048_576.0;

/// Passes on what comes, and no more than [`SPEED`] of what goes there, for as long as the test runs; where it listens.
fn slow_way(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for from in listener.incoming() {
            let (Ok(from), Ok(there)) = (from, TcpStream::connect(to)) else {
                continue;
            };
            let back = (there.try_clone().unwrap(), from.try_clone().unwrap());
            std::thread::spawn(move || pass(from, there, SPEED));
            std::thread::spawn(move || pass(back.0, back.1, f64::INFINITY));
        }
    });
    here
}

fn pass(mut from: TcpStream, mut to: TcpStream, speed: f64) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let until = Instant::now() + Duration::from_secs_f64(count as f64 / speed);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
        // The pace of the link.
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
    // The other side may have gone first.
    to.shutdown(std::net::Shutdown::Write).ok();
}

/// The agent of each host is reached by the slow way alone.
fn slow_down(fleet: &mut Fleet) {
    for at in 0..fleet.hosts.len() {
        let file = fleet.hosts[at].1.path("forebay.toml");
        let text = fs::read_to_string(&file).unwrap();
        let (_, rest) = text.split_once("listen = \"").unwrap();
        let (address, _) = rest.split_once('"').unwrap();
        let listen = format!("listen = \"{address}\"\n");
        let way = slow_way(address.parse().unwrap());
        let text = text.replacen(&listen, &format!("{listen}address = \"{way}\"\n"), 1);
        fs::write(&file, text).unwrap();
        fleet.crash(at);
        fleet.begin(at);
    }
}

/// A program that has so many MiB in memory and writes so many of them in a second.
fn app(name: &str, memory: u32, rate: u32) -> String {
    format!(
        "[apps.{name}]\nstdout = \"/dev/null\"\nstderr = \"/dev/null\"\nmove = {{ mode = \"checkpoint\" }}\n\
         exec = [\"{}\", \"workload\", \"pages\", \"--memory\", \"{memory}\", \"--rate\", \"{rate}\", \"--witness\", \
         \"/dev/null\"]\n",
        EXE.as_str()
    )
}

/// The number before these words.
#[track_caller]
fn number(said: &str, before: &str) -> f64 {
    let (text, _) = said.split_once(before).unwrap_or_else(|| panic!("{said}"));
    let word = text.rsplit(' ').next().unwrap();
    word.parse().unwrap_or_else(|_| panic!("{said}"))
}

/// It was copied in rounds that were in vain before it was refused.
#[test]
fn a_process_that_writes_faster_than_its_link_is_refused_before_it_is_touched() {
    let more = app("fast", 256, 8192);
    let Some(mut fleet) = Fleet::start_with("a process that writes too fast", 24, &more) else {
        return;
    };
    fleet.await_owner();
    slow_down(&mut fleet);
    let from = fleet.await_owner();
    let ask = |app: &str, from: &str| {
        let asked = ["move", app, "--to", other(from), "--dry-run"];
        fleet.place(from).ask(&asked)
    };
    // One that writes less than that can move there, and is told how.
    eventually("it could move", || ask("pages", from).status.success());
    let said = String::from_utf8(ask("pages", from).stdout).unwrap();
    println!("{said}");
    let link = number(&said, " MiB/s go to the target");
    assert!((8.0..24.0).contains(&link), "{said}");
    assert!(
        number(&said, " MiB of its memory in a second") > 1.0,
        "{said}"
    );
    assert!(number(&said, " ms") > 100.0, "{said}");

    let from = owner(&fleet, "fast");
    let place = fleet.place(from);
    let pid = place.await_pid("fast");
    let words = [
        "fast writes its memory faster than it can be sent",
        "MiB/s go to the target",
        "so that it would stand still for",
        "move it when it does less",
    ];
    place.fails(
        &["move", "fast", "--to", other(from), "--dry-run"],
        1,
        &words,
    );
    place.fails(&["move", "fast", "--to", other(from)], 1, &words);
    let moved = place.json(&["move", "fast"]);
    assert_eq!(
        (&moved["sent_bytes"], &moved["stood_seconds"]),
        (&0.into(), &().into()),
        "{moved}"
    );
    assert_eq!(place.await_pid("fast"), pid);
    assert_eq!(place.app("fast")["state"], "running");
    let there = &fleet.hosts[index(other(from))].1;
    assert_eq!(there.json(&["move"])["coming"], serde_json::json!([]));
    assert!(!there.path("state/moves/fast.comes").exists());
}

/// How far what is foreseen is from what comes, at three rates.
#[test]
#[ignore = "a measurement, worth something on a machine at rest"]
fn what_is_foreseen_beside_what_comes() {
    let asked = std::env::var("FOREBAY_TEST_MEMORY").ok();
    let memory = asked.map_or(256, |text| text.parse().unwrap());
    let rates = [("slow", 5), ("middle", 40), ("quick", 160)];
    let more: String = rates
        .iter()
        .map(|(name, rate)| app(name, memory, *rate))
        .collect();
    let Some(fleet) = Fleet::start_with("what is foreseen", 24, &more) else {
        return;
    };
    fleet.await_owner();
    for (name, rate) in rates {
        for _ in 0..3 {
            let from = owner(&fleet, name);
            let to = other(from);
            let ask = || {
                fleet
                    .place(from)
                    .ask(&["move", name, "--to", to, "--dry-run"])
            };
            eventually("it could move", || ask().status.success());
            let moved = fleet.place(from).json(&["move", name, "--to", to]);
            let of = |key: &str| moved[key].as_f64().unwrap_or(f64::NAN);
            println!(
                "{name}: {rate} MiB/s of {memory} MiB, {:.1} seen; link {:.0} MiB/s seen, {:.0} in all; foreseen \
                 {:.0} ms, stood {:.0} ms; sent {:.0} MiB: {}",
                of("written_bytes_per_second") / 1_048_576.0,
                of("link_bytes_per_second") / 1_048_576.0,
                of("sent_bytes") / 1_048_576.0 / of("took_seconds"),
                of("expected_pause_seconds") * 1000.0,
                of("stood_seconds") * 1000.0,
                of("sent_bytes") / 1_048_576.0,
                moved["stage"],
            );
            fleet.await_rest();
        }
    }
}
