use super::*;

fn app(name: &str) -> AppId {
    name.parse().unwrap()
}

fn spot(file: &str) -> Spot {
    Spot {
        file: PathBuf::from(file),
        device: None,
    }
}

fn sample() -> Vec<Record> {
    let process = Process {
        pid: 7,
        start_time: 99,
    };
    vec![
        Record::Created {
            app: None,
            dir: "/cg/forebay".into(),
        },
        Record::Created {
            app: Some(app("web")),
            dir: "/cg/forebay/web".into(),
        },
        Record::Original {
            app: app("db"),
            spot: spot("/cg/db/cpu.max"),
            text: "max 100000".to_owned(),
        },
        Record::Wrote {
            spot: spot("/cg/db/cpu.max"),
            text: "5000 100000".to_owned(),
        },
        Record::HostOriginal {
            spot: spot("/proc/irq/1/smp_affinity_list"),
            text: "0-1".to_owned(),
        },
        Record::Moved {
            app: app("web"),
            process,
            from: vec!["/cg".into()],
        },
        Record::Starting {
            app: app("web"),
            at: 5,
            command: vec!["serve".to_owned()],
        },
        Record::Started {
            app: app("web"),
            process,
            command: vec!["serve".to_owned()],
        },
    ]
}

fn filled(dir: &Path) -> State {
    let mut ledger = Ledger::open(dir, "boot").unwrap();
    for record in sample() {
        ledger.append(record).unwrap();
    }
    ledger.sync().unwrap();
    ledger.state().clone()
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = filled(dir.path());
    assert!(!state.is_restored());
    assert_eq!(Ledger::open(dir.path(), "boot").unwrap().state(), &state);
    // Opening rewrote it: still the same.
    assert_eq!(peek(dir.path(), "boot").unwrap(), state);
}

#[test]
fn cut_anywhere_it_opens_with_a_prefix_of_the_records() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().join("ledger");
    let bytes = fs::read(&path).unwrap();
    let mut states = vec![State::default()];
    for record in sample() {
        let mut state = states.last().unwrap().clone();
        state.take(record);
        states.push(state);
    }
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        let state = peek(dir.path(), "boot").unwrap();
        assert!(states.contains(&state), "cut at {length}: {state:?}");
    }
}

#[test]
fn rubbish_in_the_middle_is_an_error_that_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().join("ledger");
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[2] = "{\"wrote\":";
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    let error = Ledger::open(dir.path(), "boot").unwrap_err().explain();
    assert!(error.contains("line 3"), "{error}");
}

#[test]
fn another_boot_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let ledger = Ledger::open(dir.path(), "later").unwrap();
    assert_eq!(ledger.state(), &State::default());
    assert!(dir.path().join("ledger.other-boot").exists());
}

#[test]
fn release_keeps_what_runs() {
    let mut state = State::default();
    for record in sample() {
        state.take(record);
    }
    state.take(Record::Released { app: app("db") });
    assert!(!state.apps.contains_key(&app("db")));
    assert!(state.wrote.is_empty());
    state.take(Record::Released { app: app("web") });
    assert!(state.apps[&app("web")].started.is_some());
    assert!(state.apps[&app("web")].is_restored());
    assert!(state.apps[&app("web")].is_released());
    assert_eq!(state.apps[&app("web")].command, ["serve"]);
    state.take(Record::Forgotten { app: app("web") });
    assert!(!state.apps.contains_key(&app("web")));
}

#[test]
fn a_line_without_a_command_is_understood() {
    let line = r#"{"started":{"app":"web","process":{"pid":7,"start_time":9}}}"#;
    let record: Record = serde_json::from_str(line).unwrap();
    let mut state = State::default();
    state.take(record);
    assert!(state.apps[&app("web")].command.is_empty());
}

#[test]
fn a_full_disk_leaves_a_whole_ledger() {
    // /dev/full answers every write with ENOSPC.
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path(), "boot").unwrap();
    ledger.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = ledger.append(sample().remove(0)).unwrap_err();
    assert!(error.explain().contains("make room"), "{}", error.explain());
    assert!(
        ledger.state().is_restored(),
        "nothing was taken for written"
    );
}

#[test]
fn what_runtimes_remember_outlives_the_boot() {
    let dir = tempfile::tempdir().unwrap();
    let app: AppId = "web".parse().unwrap();
    let spot = |kind| owner::book::Spot {
        object: owner::Object {
            owner: kind,
            address: "/run/docker.sock".to_owned(),
            name: "9ae8b7ab6f8b".to_owned(),
        },
        property: "CpuShares".to_owned(),
    };
    let notes = |kind| {
        let original = owner::book::Original {
            value: owner::Value::Number(500),
            kept: false,
        };
        [
            Record::Owned(owner::Note::Original {
                app: app.clone(),
                spot: spot(kind),
                original,
            }),
            Record::Owned(owner::Note::Wrote {
                spot: spot(kind),
                value: owner::Value::Number(10),
            }),
        ]
    };
    let mut ledger = Ledger::open(dir.path(), "a").unwrap();
    for note in [owner::Kind::Systemd, owner::Kind::Container]
        .map(notes)
        .into_iter()
        .flatten()
    {
        ledger.append(note).unwrap();
    }
    drop(ledger);
    let mut expected = State::default();
    for note in notes(owner::Kind::Container) {
        expected.take(note);
    }
    assert_eq!(peek(dir.path(), "b").unwrap(), expected);
    let ledger = Ledger::open(dir.path(), "b").unwrap();
    assert_eq!(*ledger.state(), expected);
    assert!(!ledger.state().is_restored());
    assert!(
        ledger.state().apps.contains_key(&app),
        "nobody would put it back"
    );
}
