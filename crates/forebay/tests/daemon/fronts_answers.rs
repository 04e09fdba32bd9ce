//! What a front measures of the answers of who serves: a signal of an app that tells nothing itself.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::fronts::{Stage, free_port};
use crate::place::{EXE, Place, eventually};

/// A front before two services that take 40 ms of CPU time for a piece of work, and may take 20.
fn slow(test: &str) -> Option<Stage> {
    let mut place = Place::new(test)?;
    let [port, a, b] = [(); 3].map(|()| free_port());
    let service = |name: &str, port: u16| {
        format!(
            "[apps.{name}]\nclass = \"critical\"\nresponse_time_max = \"20ms\"\nexec = [\"{}\", \
             \"workload\", \"service\", \"--port\", \"{port}\", \"--work-us\", \"40000\"]\n",
            *EXE
        )
    };
    place.configure(&format!(
        "[offload]\npersistence = \"1s\"\n{}{}[fronts.web]\nmode = \"http\"\n\
         listen = [\"127.0.0.1:{port}\"]\n\
         instances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n",
        service("a", a),
        service("b", b),
    ));
    place.start();
    let stage = Stage { place, port };
    stage.await_ready("a");
    Some(stage)
}

/// Whether an answer has all of its body.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    body.len() >= length
}

#[test]
fn a_slow_instance_is_constrained_by_what_its_front_measures() {
    let name = "a_slow_instance_is_constrained_by_what_its_front_measures";
    let Some(mut stage) = slow(name) else {
        return;
    };
    let ends = Arc::new(AtomicBool::new(false));
    let client = {
        let (ends, mut stream) = (Arc::clone(&ends), stage.connect());
        std::thread::spawn(move || {
            let mut served = 0;
            while !ends.load(Ordering::Relaxed) {
                stream
                    .write_all(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n")
                    .unwrap();
                let mut answer = Vec::new();
                while !is_whole(&answer) {
                    let mut bytes = [0; 4096];
                    let read = stream.read(&mut bytes).unwrap();
                    assert!(read > 0, "the front hung up: {answer:?}");
                    answer.extend_from_slice(&bytes[..read]);
                }
                assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
                served += 1;
            }
            served
        })
    };
    let usage = |app: &str, key: &str| stage.place.app(app)["usage"][key].clone();
    let slow = |value: &Value| {
        value
            .as_f64()
            .is_some_and(|ms| (35.0..5000.0).contains(&ms))
    };
    eventually("the front measures how long it takes", || {
        slow(&usage("a", "response_time_ms"))
    });
    assert!(usage("a", "requests_per_second").as_f64() > Some(0.5));
    assert_eq!(
        usage("b", "response_time_ms"),
        Value::Null,
        "nobody asks it"
    );
    let explained = || {
        let output = stage.place.ask(&["explain", "a"]);
        String::from_utf8(output.stdout).unwrap()
    };
    eventually("that is a constraint", || {
        let said = explained();
        said.contains("an answer of it takes ") && said.contains("more than 20.0 ms")
    });
    println!("{}", explained());
    // What it says itself goes before, and ends the constraint.
    eventually("its own word goes before what the front measures", || {
        stage.place.json(&["push", "a", "response_time=1ms"]);
        usage("a", "response_time_ms") == 1.0
    });
    eventually("it is not constrained by its answers any more", || {
        stage.place.json(&["push", "a", "response_time=1ms"]);
        !explained().contains("an answer of it takes ")
    });
    eventually("what the front measures counts again", || {
        slow(&usage("a", "response_time_ms"))
    });
    ends.store(true, Ordering::Relaxed);
    assert!(client.join().unwrap() > 0);
    eventually("without requests nothing is known of answers", || {
        usage("a", "response_time_ms") == Value::Null
    });
    stage.place.stop_well();
}
