//! An app that sends most of what it may, to somebody in another network.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::Command;

use crate::fronts_elsewhere::Far;
use crate::place::{EXE, Place, eventually};

/// Takes what comes over any number of connections, for as long as the test runs.
fn sink(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut bytes = vec![0; 65_536];
                // Whoever sends ends by a signal.
                while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
            });
        }
    });
    port
}

/// Nothing on one host makes its link wider: what is said is that it could only go elsewhere, and why it does not.
#[test]
fn an_app_that_sends_most_of_what_it_may_is_constrained_and_what_could_be_done_is_named() {
    let test = "an_app_that_sends_most_of_what_it_may_is_constrained";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let Some(far) = Far::new(test) else {
        return;
    };
    let doctor = Command::new(EXE.as_str()).arg("doctor").output().unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let has = |line: &str| line.starts_with("yes") && line.contains("egress.max");
    if !doctor.lines().any(has) {
        println!("SKIPPED: {test}: nothing counts what an app sends here");
        return;
    }
    let port = sink(&far.here);
    let app = |name: &str, sends: &str| {
        format!(
            "[apps.{name}]\nclass = \"critical\"\nceiling = {{ egress = \"8Mbit\" }}\nexec = [\"ip\", \"netns\", \
             \"exec\", \"{}\", \"bash\", \"-c\", \"exec 3<>/dev/tcp/{}/{port}; {sends}\"]\n",
            far.name, far.here
        )
    };
    place.configure(&format!(
        "[offload]\nmode = \"act\"\npersistence = \"500ms\"\n{}{}",
        app("much", "cat /dev/zero >&3"),
        app(
            "little",
            "while :; do head -c 20000 /dev/zero >&3; sleep 0.2; done"
        ),
    ));
    place.start();
    place.await_pid("much");
    place.await_pid("little");
    let explained = |app: &str| {
        let output = place.ask(&["explain", app]);
        String::from_utf8(output.stdout).unwrap()
    };
    let parts = [
        "It is constrained: it sends ",
        ", more than 80% of the 8.0 Mbit/s that it may",
        "what it lacks is network.",
        "Not taken: move it to another host: this host takes no part in moves of a fleet (`fleet.link.listen`).",
    ];
    eventually("it is constrained by what it may send", || {
        let said = explained("much");
        parts.iter().all(|part| said.contains(part))
    });
    println!("{}", explained("much"));
    let sent = |app: &str| place.app(app)["usage"]["sent_bytes_per_second"].as_f64();
    assert!(sent("much") > Some(800_000.0), "{:?}", sent("much"));
    // The same limit is none for one that sends a tenth of it.
    assert!(sent("little").is_some_and(|sent| (10_000.0..800_000.0).contains(&sent)));
    let said = explained("little");
    assert!(!said.contains("It is constrained: it sends"), "{said}");
    place.stop_well();
}
