//! Updates of which apps are told: real daemons, apps that attend by the shell and by the Rust client.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use forebay_api::attend::{Attendant, Told};
use serde_json::Value;

use crate::place::{EXE, Place, eventually, sleepers, text};
use crate::update::{append, assert_nothing_of_it_is_left, last};

/// An app that attends by the shell: it notes each `prepare` and each `resume` in a file.
fn attending(place: &Place, keys: &str) -> (String, PathBuf) {
    let notes = place.path("notes");
    let script = format!(
        "{EXE} update attend --prepare 'echo $FOREBAY_UPDATE_HOW >> {notes}' --resume 'echo resume >> {notes}' & \
         exec sleep {seconds}",
        EXE = *EXE,
        notes = notes.display(),
        seconds = place.seconds(1),
    );
    let script = toml::Value::from(script).to_string();
    let app = format!(
        "[apps.orders]\nrestart = \"always\"\nexec = [\"sh\", \"-c\", {script}]\nupdate = {{ {keys} }}\n"
    );
    (app, notes)
}

fn current(place: &Place) -> Value {
    place.json(&["update", "status"])["current"].clone()
}

/// A command that goes on until a file is there.
fn waiting(place: &Place) -> [String; 3] {
    let go = place.path("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    ["sh".to_owned(), "-c".to_owned(), script]
}

fn begin(place: &Place, words: &[&str], command: &[String]) {
    let mut all = vec!["update", "run", "--detach", "--unproved"];
    all.extend(words);
    all.push("--");
    all.extend(command.iter().map(String::as_str));
    place.json(&all);
}

#[test]
fn an_app_that_is_told_runs_apart_while_the_command_runs() {
    let test = "an_app_that_is_told_runs_apart_while_the_command_runs";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let (app, notes) = attending(&place, "");
    place.configure(&app);
    place.start();
    let pid = place.await_pid("orders");
    eventually("it has registered", || {
        let plan = place.json(&["update", "plan", "--", "true"]);
        plan["refused"] == serde_json::json!([])
    });
    begin(&place, &[], &waiting(&place));
    eventually("the command runs", || {
        current(&place)["stage"] == "updating"
    });
    let prepared = serde_json::json!([{"app": "orders", "how": "detach"}]);
    assert_eq!(current(&place)["prepared"], prepared);
    assert_eq!(text(&notes), "detach");
    place.await_app("orders", "apart", |app| app["class"] == "critical");
    let measured = &current(&place)["isolation"];
    println!("{measured:#}");
    assert_eq!(measured[0]["app"], "orders", "{measured}");
    assert!(measured[0]["load_cpus"].is_string(), "{measured}");
    // Neither a configuration that is read again nor another daemon takes that from it.
    place.json(&["reload"]);
    place.await_app("orders", "apart", |app| app["class"] == "critical");
    place.crash();
    place.start();
    place.await_app("orders", "apart", |app| app["class"] == "critical");
    fs::write(place.path("go"), "").unwrap();
    eventually("it is over", || last(&place)["outcome"] == "committed");
    eventually("it hears that", || text(&notes).ends_with("resume"));
    place.await_app("orders", "as before", |app| app["class"] == "standard");
    assert_eq!(place.await_pid("orders"), pid, "it ran on");
    let receipt = last(&place);
    assert_eq!(receipt["apps"][0]["told"], "detach", "{receipt}");
    assert!(
        receipt["next"]
            .as_str()
            .unwrap()
            .contains("nothing is left"),
        "{receipt}"
    );
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
    assert!(!place.path("socket.update").exists());
}

/// Whoever may connect can hold up whoever else does not.
#[test]
fn a_user_with_all_its_connections_open_keeps_nobody_else_out() {
    let test = "a_user_with_all_its_connections_open_keeps_nobody_else_out";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: {test}: only root can be another user");
        return;
    }
    // One that every user may run.
    let python = "/usr/bin/python3";
    if !Path::new(python).exists() {
        println!("SKIPPED: {test}: no {python}");
        return;
    }
    place.configure("[apps.orders]\nexec = [\"sleep\", \"600\"]\nupdate = {}\n");
    place.start();
    place.await_pid("orders");
    let socket = place.path("socket.update");
    // All that it may have, silent, and one more, which is closed.
    let script = "import socket, sys\n\
                  held = []\n\
                  for _ in range(5):\n    \
                  held.append(socket.socket(socket.AF_UNIX))\n    \
                  held[-1].connect(sys.argv[1])\n\
                  held[-1].settimeout(60)\n\
                  print(held[-1].recv(200), flush=True)\n\
                  sys.stdin.read()\n";
    let mut other = Command::new(python)
        .args(["-c", script])
        .arg(&socket)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(other.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said.trim(), "b''");
    let mut attendant = Attendant::connect(&socket, "orders").unwrap();
    assert_eq!(attendant.hear().unwrap(), Told::Resume);
    drop(other.stdin.take());
    other.wait().unwrap();
    place.stop_well();
}

#[test]
fn an_app_that_is_told_to_end_is_not_started_before_the_update_is_over() {
    let test = "an_app_that_is_told_to_end_is_not_started_before_the_update_is_over";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let (app, notes) = attending(&place, "");
    place.configure(&app);
    place.start();
    let pid = place.await_pid("orders");
    let seconds = place.seconds(1);
    eventually("it has registered", || {
        let plan = place.json(&["update", "plan", "--rung", "cooperative", "--", "true"]);
        assert_eq!(plan["apps"][0]["rung"], "cooperative", "{plan}");
        plan["refused"] == serde_json::json!([])
    });
    let plan = place.json(&["update", "plan", "--rung", "auto", "--", "true"]);
    assert_eq!(plan["chosen"], "cooperative", "{plan}");
    begin(&place, &["--rung", "cooperative"], &waiting(&place));
    eventually("the command runs", || {
        current(&place)["stage"] == "updating"
    });
    assert_eq!(text(&notes), "end");
    assert_eq!(sleepers(&seconds), [0; 0]);
    place.crash();
    place.start();
    // Periods in which it would have been started.
    let begun = place.json(&["status"])["period"].as_u64();
    eventually("periods go by", || {
        place.json(&["status"])["period"].as_u64() > begun.map(|n| n + 20)
    });
    assert_eq!(
        sleepers(&seconds),
        [0; 0],
        "the next daemon leaves it ended as well"
    );
    fs::write(place.path("go"), "").unwrap();
    eventually("it is over", || last(&place)["outcome"] == "committed");
    let receipt = last(&place);
    assert_eq!(receipt["troubles"], serde_json::json!([]), "{receipt}");
    assert_ne!(place.await_pid("orders"), pid, "it was started again");
    assert_eq!(sleepers(&seconds).len(), 1);
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

#[test]
fn an_app_that_does_not_answer_refuses_the_update_or_is_done_without() {
    let test = "an_app_that_does_not_answer_refuses_the_update_or_is_done_without";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let configure = |place: &Place, keys: &str| {
        place.configure(&format!(
            "[apps.orders]\nexec = [\"sleep\", \"{}\"]\nupdate = {{ {keys} }}\n[apps.other]\nexec = [\"sleep\", \
             \"{}\"]\n",
            place.seconds(1),
            place.seconds(2)
        ));
    };
    configure(&place, "timeout = \"1s\"");
    place.start();
    place.await_pid("orders");
    let ran = place.path("ran");
    let command = append(&ran);
    let run = |place: &Place, words: &[&str]| {
        let order = [
            &["update", "run", "--unproved"][..],
            words,
            &["--", "sh", "-c", &command],
        ];
        place.ask(&order.concat())
    };
    // Nobody is there to be told.
    let refused = run(&place, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("orders: update: it is to be told, and has not registered"),
        "{said}"
    );
    let socket = place.path("socket.update");
    let mut silent = Attendant::connect(&socket, "orders").unwrap();
    assert_eq!(silent.hear().unwrap(), Told::Resume);
    for rung in [&[][..], &["--rung", "cooperative"]] {
        run(&place, rung);
        let receipt = last(&place);
        assert_eq!(receipt["outcome"], "rolled_back", "{receipt}");
        let why = receipt["troubles"].to_string();
        assert!(
            why.contains("orders is not prepared: it did not answer `ready` within 1 s"),
            "{why}"
        );
        let number = receipt["number"].as_u64().unwrap();
        let prepare = Told::Prepare {
            update: number,
            seconds: 1,
            ends: !rung.is_empty(),
        };
        assert_eq!(silent.hear().unwrap(), prepare);
        assert_eq!(silent.hear().unwrap(), Told::Resume);
        // Its answer comes when nobody waits for it any more, and is none to the next call.
        silent.answer(Ok(())).unwrap();
    }
    // One that cannot says why, and nobody waits.
    let cannot = std::thread::spawn(move || {
        let told = silent.hear().unwrap();
        silent.answer(Err("it is busy")).unwrap();
        (told, silent.hear().unwrap())
    });
    run(&place, &[]);
    assert!(
        last(&place)["troubles"]
            .to_string()
            .contains("it says `it is busy`")
    );
    assert_eq!(cannot.join().unwrap().1, Told::Resume);
    assert!(!ran.exists(), "nothing ran");
    // Where the next rung is allowed it goes on, and says so.
    configure(&place, "timeout = \"1s\", otherwise = \"next\"");
    place.json(&["reload"]);
    let output = run(&place, &["--rung", "cooperative"]);
    assert!(output.status.success(), "{output:?}");
    let receipt = last(&place);
    assert_eq!(receipt["outcome"], "committed", "{receipt}");
    let why = receipt["troubles"].to_string();
    assert!(why.contains("nobody registered for it"), "{why}");
    assert_eq!(text(&ran), "x");
    // Apps that are not told, and lines that nobody understands.
    for (greeting, expected) in [
        (
            "forebay update 1 other\n",
            "refused other: no app of that name is told",
        ),
        (
            "forebay update 9 orders\n",
            "refused `forebay update 9 orders`: begin with",
        ),
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.starts_with(expected), "{line}");
    }
    configure(&place, "timeout = \"0s\", otherwise = \"never\"");
    let output = place.ask(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("apps.orders.update.otherwise"), "{said}");
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}
