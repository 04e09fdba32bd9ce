//! What is done about an app that its slice does not hold: real load, a real hog, the real kernel.
//!
//! The host needs two CPUs that a critical app may own, and control groups for CPU sets.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_host::mounts::Controller;
use serde_json::Value;

use crate::fronts::free_port;
use crate::http::request;
use crate::place::{EXE, Knob, PATIENCE, Place, eventually, text};

/// The promise, in periods and in time.
const PERIODS_MAX: u64 = 2;
const PERIOD_MS: u64 = 100;

/// What a service does: so much processor time for a request, and so many of them at once.
pub(crate) struct Work {
    pub(crate) us: u32,
    pub(crate) at_once: u32,
}

/// So strict that what it uses is blamed for slow answers, and measured in little time.
pub(crate) const ACTING: &str =
    "[offload]\nmode = \"act\"\ncpu = \"40%\"\npersistence = \"500ms\"\nsettling = \"2s\"";

/// A service that computes for each request, as the only app; and somebody else who takes all the
/// processor time that he gets, on every CPU.
pub(crate) struct Stage {
    pub(crate) place: Place,
    port: u16,
    hogs: Vec<Child>,
}

impl Stage {
    /// None, with a line that says why, where it cannot be tried.
    pub(crate) fn new(test: &str, work: Work, keys: &str, rest: &str) -> Option<Self> {
        let mut place = Place::new(test)?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if cpus < 2 || place.hierarchies.of(Controller::Cpuset).is_none() {
            println!("SKIPPED: {test}: {cpus} CPU(s), or no CPU sets");
            return None;
        }
        let port = free_port();
        place.configure(&format!(
            "{rest}\n[apps.web]\nclass = \"critical\"\n{keys}\nexec = [\"{}\", \"workload\", \
             \"service\", \"--port\", \"{port}\", \"--threads\", \"{}\", \"--work-us\", \
             \"{}\"]\n",
            *EXE, work.at_once, work.us
        ));
        place.start();
        place.await_pid("web");
        let mut stage = Self {
            place,
            port,
            hogs: Vec::new(),
        };
        eventually("it serves", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        stage.await_cpus("1 CPU of its own, since it hardly does anything", 1);
        for _ in 0..cpus {
            let count = stage.place.path(&format!("hog-{}", stage.hogs.len()));
            let hog = Command::new(EXE.as_str())
                .args(["workload", "burn", "--threads", "1", "--count-file"])
                .arg(count)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            stage.hogs.push(hog);
        }
        Some(stage)
    }

    fn await_cpus(&self, what: &str, count: usize) {
        self.place
            .await_app("web", what, |app| cpus_of(app).len() == count);
    }

    pub(crate) fn explained(&self) -> String {
        let output = self.place.ask(&["explain", "web"]);
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn ticks(&self) -> Ticks {
        let mut stream = UnixStream::connect(self.place.path("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /v1/stream HTTP/1.0\r\n\r\n")
            .unwrap();
        Ticks(BufReader::new(stream))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for hog in &mut self.hogs {
            hog.kill().unwrap();
            hog.wait().unwrap();
        }
    }
}

/// The reports of all periods, as they come.
pub(crate) struct Ticks(BufReader<UnixStream>);

impl Ticks {
    fn next(&mut self) -> Tick {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
            let Some(json) = line.strip_prefix("data:") else {
                continue;
            };
            let tick: Value = serde_json::from_str(json).unwrap();
            let apps = tick["apps"].as_array().unwrap();
            let app = apps.iter().find(|app| app["name"] == "web").unwrap();
            let events = tick["events"].as_array().unwrap().iter();
            return Tick {
                period: tick["status"]["period"].as_u64().unwrap(),
                unix_ms: tick["status"]["time_unix_ms"].as_u64().unwrap(),
                cpu: app["usage"]["cpu_cores"].as_f64(),
                cpus: cpus_of(app),
                offload: events
                    .filter(|event| event["kind"] == "offload")
                    .map(|event| event["message"].as_str().unwrap().to_owned())
                    .collect(),
            };
        }
    }

    /// The first for which something is found, and what.
    pub(crate) fn find<T>(&mut self, what: &str, wanted: impl Fn(&Tick) -> Option<T>) -> (Tick, T) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tick = self.next();
            if let Some(found) = wanted(&tick) {
                return (tick, found);
            }
            assert!(Instant::now() < deadline, "not in time: {what}");
        }
    }
}

#[derive(Debug)]
pub(crate) struct Tick {
    period: u64,
    pub(crate) unix_ms: u64,
    /// What it used in the period that ended, in CPUs.
    pub(crate) cpu: Option<f64>,
    /// Where it may run from now on.
    pub(crate) cpus: Vec<usize>,
    pub(crate) offload: Vec<String>,
}

/// The CPUs of a list such as `0-3,8`.
fn cpus(list: &str) -> Vec<usize> {
    let ranges = list.split(',').filter(|range| !range.is_empty());
    let numbers = ranges.flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().unwrap()..=last.parse().unwrap()
    });
    numbers.collect()
}

fn cpus_of(app: &Value) -> Vec<usize> {
    cpus(app["slice"]["cpus"].as_str().unwrap_or_default())
}

/// The file that says where it runs, right after the report that says so.
#[track_caller]
pub(crate) fn assert_in_the_kernel(stage: &Stage, expected: &[usize]) {
    let file = stage.place.knob("web", Knob::Cpus);
    assert_eq!(cpus(&text(&file)), expected, "{}", file.display());
}

/// Asks for one piece of work, and waits until it is done.
fn work(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /work HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Clients that work until this goes.
pub(crate) struct Load {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn of(clients: Vec<Box<dyn FnMut() + Send>>) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let begin = |mut client: Box<dyn FnMut() + Send>| {
            let ends = Arc::clone(&ends);
            std::thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    client();
                }
            })
        };
        let threads = clients.into_iter().map(begin).collect();
        Self { ends, threads }
    }

    /// So many requests at the same time, again and again.
    pub(crate) fn full(stage: &Stage, at_once: usize) -> Self {
        let port = stage.port;
        let client = |_| Box::new(move || work(port)) as Box<dyn FnMut() + Send>;
        Self::of((0..at_once).map(client).collect())
    }

    /// So many requests at the same time at the beginning of each 100 ms; the app says how long its
    /// answers lately took, on average.
    fn bursts(stage: &Stage, at_once: usize) -> Self {
        const LATELY: usize = 10;
        let (port, socket) = (stage.port, stage.place.path("socket"));
        let mut latest = Vec::new();
        let burst = move || {
            let began = Instant::now();
            let took: Vec<Duration> = std::thread::scope(|scope| {
                let request = |_| {
                    scope.spawn(move || {
                        work(port);
                        began.elapsed()
                    })
                };
                let clients: Vec<_> = (0..at_once).map(request).collect();
                clients
                    .into_iter()
                    .map(|client| client.join().unwrap())
                    .collect()
            });
            latest.extend(took.into_iter().map(|took| took.as_secs_f64() * 1000.0));
            let excess = latest.len().saturating_sub(LATELY);
            latest.drain(..excess);
            let mean = latest.iter().sum::<f64>() / latest.len() as f64;
            let told = format!("{{\"response_time_ms\": {mean}}}");
            request(&socket, "POST", "/v1/apps/web/signals", &told);
            // The pace of the load.
            std::thread::sleep(Duration::from_millis(PERIOD_MS).saturating_sub(began.elapsed()));
        };
        Self::of(vec![Box::new(burst)])
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A client that failed has said why.
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}

/// Checks the promise, and says what it was.
#[track_caller]
fn assert_prompt(what: &str, from: &Tick, to: &Tick) {
    let periods = to.period.saturating_sub(from.period);
    let ms = to.unix_ms.saturating_sub(from.unix_ms);
    println!("{what}: {periods} period(s), {ms} ms");
    assert!(
        periods <= PERIODS_MAX && ms <= PERIODS_MAX * PERIOD_MS,
        "{periods} periods, {ms} ms: {from:?} {to:?}"
    );
}

#[test]
fn a_load_above_its_slice_is_a_larger_slice_within_two_periods() {
    let name = "a_load_above_its_slice_is_a_larger_slice_within_two_periods";
    // One request after the other, so that nothing but its use says that it wants more.
    let work = Work {
        us: 20_000,
        at_once: 1,
    };
    let Some(mut stage) = Stage::new(name, work, "", "") else {
        return;
    };
    let mut ticks = stage.ticks();
    // It measures how fast the CPU is when it begins, and may have two CPUs for a while.
    let deadline = Instant::now() + PATIENCE;
    let mut before = ticks.next();
    while before.cpus.len() > 1 {
        assert!(Instant::now() < deadline, "it keeps what it began with");
        before = ticks.next();
    }
    let load = Load::full(&stage, 2);
    let mut constrained = None;
    let grown = loop {
        let tick = ticks.next();
        // Whatever it uses is measured against the slice that it had meanwhile.
        let limit = 0.8 * before.cpus.len() as f64;
        if tick.cpu.is_some_and(|cpu| cpu > limit) && constrained.is_none() {
            constrained = Some(Tick {
                offload: Vec::new(),
                cpus: before.cpus.clone(),
                ..tick
            });
        }
        if tick.cpus.len() > before.cpus.len() {
            break tick;
        }
        assert!(Instant::now() < deadline, "its slice did not grow");
        before = tick;
    };
    assert_in_the_kernel(&stage, &grown.cpus);
    assert_eq!((before.cpus.len(), grown.cpus.len()), (1, 2));
    match constrained {
        Some(constrained) => assert_prompt("over 80 % to a larger slice", &constrained, &grown),
        // What it waited for had said it before.
        None => println!("its slice grew before it used 80 % of it"),
    }
    drop(load);
    stage.place.stop_well();
}

#[test]
fn a_rung_is_taken_measured_and_kept_where_it_helps() {
    let name = "a_rung_is_taken_measured_and_kept_where_it_helps";
    // Two requests of 15 ms at once are answered after 30 ms on one CPU, and after 15 on two; they use
    // a third of one.
    let work = Work {
        us: 15_000,
        at_once: 2,
    };
    let slow = "response_time_max = \"20ms\"";
    let Some(mut stage) = Stage::new(name, work, slow, ACTING) else {
        return;
    };
    let mut ticks = stage.ticks();
    let load = Load::bursts(&stage, 2);
    let taken = |tick: &Tick| tick.offload.first().cloned();
    let (raised, why) = ticks.find("a rung is taken", taken);
    println!("{why}");
    assert!(
        why.contains("offload: give it more CPUs (1.00 CPU), since"),
        "{why}"
    );
    assert_eq!(
        raised.cpus.len(),
        1,
        "what it takes is in force with the next plan"
    );
    let (grown, ()) = ticks.find("a larger slice", |tick| {
        (tick.cpus.len() == 2).then_some(())
    });
    assert_in_the_kernel(&stage, &grown.cpus);
    assert_prompt("constraint to a changed placement", &raised, &grown);
    let said = stage.explained();
    for part in [
        "It is constrained: ",
        "what it lacks is processor time",
        "Not taken: place its threads one by one: ",
        "In force for it: give it more CPUs (1.00 CPU), its effect is being measured.",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let tried = "Tried: give it more CPUs (1.00 CPU): it was ";
    eventually("its effect is known", || stage.explained().contains(tried));
    let said = stage.explained();
    println!("{said}");
    // Two CPUs that are one core's threads help less than two cores: what was found decides.
    let (_, found) = said.split_once(tried).unwrap();
    let (found, _) = found.split_once(" predicted), ").unwrap();
    let (_, relief) = found.split_once("relief ").unwrap();
    let (relief, _) = relief.split_once('%').unwrap();
    let helped = relief.parse::<i32>().unwrap() >= 10;
    println!(
        "{}",
        if helped {
            "it helped"
        } else {
            "it did not help on this machine, and is taken back"
        }
    );
    assert_eq!(said.contains(" predicted), kept."), helped, "{said}");
    assert_eq!(said.contains(" predicted), taken back."), !helped, "{said}");
    let in_force = said.contains("In force for it: give it more CPUs (1.00 CPU).");
    assert_eq!(in_force, helped, "{said}");
    drop(load);
    stage.place.stop_well();
}

#[test]
fn a_rung_that_does_not_help_is_taken_back_and_what_is_absent_is_named() {
    let name = "a_rung_that_does_not_help_is_taken_back_and_what_is_absent_is_named";
    // One request at a time, of 25 ms: no CPU more makes that quicker.
    let work = Work {
        us: 25_000,
        at_once: 1,
    };
    let slow = "response_time_max = \"15ms\"";
    let Some(mut stage) = Stage::new(name, work, slow, ACTING) else {
        return;
    };
    let mut ticks = stage.ticks();
    let load = Load::bursts(&stage, 1);
    let (raised, why) = ticks.find("a rung is taken", |tick| tick.offload.first().cloned());
    assert!(
        why.contains("offload: give it more CPUs (1.00 CPU), since"),
        "{why}"
    );
    let (grown, ()) = ticks.find("a larger slice", |tick| {
        (tick.cpus.len() == 2).then_some(())
    });
    assert_prompt("constraint to a changed placement", &raised, &grown);
    let (_, undone) = ticks.find("it is taken back", |tick| tick.offload.first().cloned());
    assert!(
        undone.contains("taken back: give it more CPUs (1.00 CPU)"),
        "{undone}"
    );
    let (shrunk, ()) = ticks.find("its slice is what it was", |tick| {
        (tick.cpus.len() == 1).then_some(())
    });
    assert_in_the_kernel(&stage, &shrunk.cpus);
    eventually("all other rungs are named", || {
        let said = stage.explained();
        let parts = [
            "Tried: give it more CPUs (1.00 CPU): it was ",
            " predicted), taken back.",
            "Not taken: place its threads one by one: ",
            "Not taken: give it more CPUs: it did not help when it was tried last",
            "Not taken: move it to another host: this host takes no part in moves of a fleet (`fleet.link.listen`).",
            "Not taken: send its tasks to an accelerator: no worker takes tasks of it (`accelerators`), or it does not",
        ];
        parts.iter().all(|part| said.contains(part))
    });
    println!("{}", stage.explained());
    drop(load);
    stage.place.stop_well();
}
