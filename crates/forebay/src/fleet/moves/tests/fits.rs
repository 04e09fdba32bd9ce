//! What a target has to have, and what it says where it does not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use forebay_core::app::{App, Binding, Class, Exec};
use forebay_core::fleet::mobility::{Connections, Memory, Mobility, Way};
use forebay_core::fleet::tenure::Takeover;

use super::models::{Luck, ModelApps, Process, web};
use crate::fleet::moves::{Apps, body};

fn app(files: &[PathBuf], exec: Exec) -> App {
    let mut app = App::new(web(), Class::Standard, Binding::Exec(exec));
    app.mobility = Some(Mobility {
        way: Way::Restart,
        files: files.to_vec(),
        takeover: Takeover::Never,
        connections: Connections::Refuse,
        memory: Memory::PreCopy,
        address: None,
        apart: BTreeSet::new(),
    });
    app
}

fn exec(words: &[&str]) -> Exec {
    Exec::of(words.iter().map(ToString::to_string).collect())
}

/// What a target says to a source that starts `/bin/true` and has these files.
fn asked(source: &[PathBuf], target: &[PathBuf], there: Exec) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let (luck, reached) = (Luck::none(1), Arc::new(Mutex::new(0)));
    let data = dir.path().to_owned();
    let luck = Arc::new(Mutex::new(luck));
    let model = ModelApps::new("source", data, luck, Process::Runs, reached);
    let apps: Arc<dyn Apps> = Arc::new(model);
    let here = app(source, exec(&["/bin/true"]));
    let requires = body::leaving(&here, &apps).unwrap().check().unwrap();
    body::coming(&app(target, there), &apps, dir.path())
        .unwrap()
        .fits(&requires)
}

#[track_caller]
fn expect(said: Result<(), String>, words: Option<&str>) {
    match words {
        None => said.unwrap(),
        Some(words) => {
            let why = said.unwrap_err();
            assert!(why.contains(words), "`{words}` is not in: {why}");
        }
    }
}

#[test]
fn a_target_that_would_run_something_else_is_refused() {
    let check = |there: Exec, words: Option<&str>| expect(asked(&[], &[], there), words);
    let plain = || exec(&["/bin/true"]);
    check(plain(), None);
    check(
        exec(&["/bin/true", "a"]),
        Some("another `exec` on the target"),
    );
    check(
        exec(&["/bin/false"]),
        Some("write the same [apps.web] on all hosts"),
    );
    let user = Some("nobody".to_owned());
    check(Exec { user, ..plain() }, Some("another `user`"));
    let group = Some("nogroup".to_owned());
    check(Exec { group, ..plain() }, Some("another `group`"));
    let directory = |path: &str| Exec {
        directory: Some(path.into()),
        ..plain()
    };
    check(directory("/srv"), Some("another `directory`"));
    check(directory("/"), None);
    // Each host may tell it what it is called there.
    let mut environment = plain();
    environment.environment.insert("HOST".into(), "b".into());
    check(environment, None);
}

#[test]
fn both_hosts_count_the_same_files_among_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let check = |source: &[&str], target: &[&str], words: Option<&str>| {
        let paths = |names: &[&str]| -> Vec<PathBuf> {
            let names = names.iter();
            names.map(|name| dir.path().join(name)).collect()
        };
        let said = asked(&paths(source), &paths(target), exec(&["/bin/true"]));
        expect(said, words);
    };
    check(&[], &[], None);
    check(&["a", "b"], &["b", "a"], None);
    check(&["a", "b"], &["a"], Some("is not among the `move.files`"));
    // They would be taken for what the source removed.
    let more = Some("on the target and not on the source");
    check(&["a"], &["a", "b"], more);
    check(&[], &["b"], more);
}

#[test]
fn what_nothing_can_take_the_place_of_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let luck = Arc::new(Mutex::new(Luck::none(1)));
    let reached = Arc::new(Mutex::new(0));
    let data = dir.path().to_owned();
    let model = ModelApps::new("target", data, luck, Process::None, reached);
    let apps: Arc<dyn Apps> = Arc::new(model);
    let fits = |path: &Path| {
        let there = app(&[path.to_owned()], exec(&["/bin/true"]));
        let requires = [format!("moves:{}", path.display())].into();
        body::coming(&there, &apps, dir.path())
            .unwrap()
            .fits(&requires)
    };
    fits(&path).unwrap();
    std::os::unix::fs::symlink("/srv", &path).unwrap();
    expect(fits(&path), Some("is a link to /srv"));
    expect(fits(Path::new("/proc")), Some("a file system of its own"));
}

/// Whoever chooses goes by this, and is refused what differs: so both compare the same.
#[test]
fn what_a_host_says_of_an_app_is_what_it_would_answer() {
    let like = |files: &[&str], exec: Exec| {
        let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
        body::like(&app(&files, exec)).unwrap().like
    };
    let plain = || exec(&["/bin/true"]);
    let own = like(&["/srv/a", "/srv/b"], plain());
    assert_eq!(own, like(&["/srv/b", "/srv/a"], plain()));
    let mut environment = plain();
    environment.environment.insert("HOST".into(), "b".into());
    assert_eq!(own, like(&["/srv/a", "/srv/b"], environment));
    assert_ne!(own, like(&["/srv/a"], plain()));
    assert_ne!(own, like(&["/srv/a", "/srv/b"], exec(&["/bin/true", "a"])));

    let dir = tempfile::tempdir().unwrap();
    let luck = Arc::new(Mutex::new(Luck::none(1)));
    let data = dir.path().to_owned();
    let model = ModelApps::new("target", data, luck, Process::None, Arc::default());
    let apps: Arc<dyn Apps> = Arc::new(model);
    let taking = |way, program: &str, criu: Result<(), String>| {
        let mut app = app(&[dir.path().join("data")], exec(&[program]));
        app.mobility.as_mut().unwrap().way = way;
        let taking = body::taking(&app, &apps, (dir.path(), &criu)).unwrap();
        assert_eq!(taking.way, way.to_string());
        taking.obstacle
    };
    assert_eq!(taking(Way::Restart, "/bin/true", Ok(())), None);
    let missing = taking(Way::Restart, "/bin/nothing", Ok(())).unwrap();
    assert!(missing.contains("install it there"), "{missing}");
    assert_eq!(taking(Way::Checkpoint, "/bin/true", Ok(())), None);
    let no_criu = Err("no CRIU".to_owned());
    assert_eq!(taking(Way::Restart, "/bin/true", no_criu.clone()), None);
    let lacks = taking(Way::Checkpoint, "/bin/true", no_criu).unwrap();
    assert_eq!(lacks, "no CRIU");
}
