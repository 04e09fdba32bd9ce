//! The demo leaves nothing, whichever part of it is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use forebay_host::mounts::Hierarchies;
use rustix::process::Signal;

use crate::place::{
    EXE, Place, eventually, groups_left, is_running, processes, signal, wait_for_end,
};

/// A demo under way.
struct Demo {
    outer: Child,
    inner: u32,
    temp: tempfile::TempDir,
    hierarchies: Hierarchies,
    /// What the names of the groups of its daemon begin with.
    groups: &'static str,
}

impl Demo {
    fn start(test: &str) -> Option<Self> {
        // Each arm has a third of it, in which a slow machine must see all parts at once.
        Self::begin(test, &["demo", "--seconds", "24"], "forebay-demo")
    }

    fn begin(test: &str, words: &[&str], groups: &'static str) -> Option<Self> {
        // A place says whether the kernel can be tried.
        let place = Place::new(test)?;
        let temp = tempfile::tempdir().unwrap();
        let log = File::create(temp.path().join("log")).unwrap();
        let outer = Command::new(EXE.as_str())
            .args(words)
            .arg("--json")
            .arg(temp.path().join("result.json"))
            .env("TMPDIR", temp.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut demo = Self {
            outer,
            inner: 0,
            temp,
            hierarchies: place.hierarchies.clone(),
            groups,
        };
        eventually("the inner process runs", || {
            demo.inner = demo.part("--inner").first().copied().unwrap_or(0);
            demo.inner != 0
        });
        Some(demo)
    }

    fn dir(&self) -> PathBuf {
        self.temp
            .path()
            .join(format!("forebay-demo-{}", self.outer.id()))
    }

    /// Living processes that name the demo's directory.
    fn parts(&self) -> Vec<u32> {
        let dir = self.dir().display().to_string();
        processes(|words| words.iter().any(|word| word.starts_with(&dir)))
    }

    fn part(&self, word: &str) -> Vec<u32> {
        let dir = self.dir().display().to_string();
        processes(|words| {
            words.iter().skip(1).take(2).any(|w| w == word)
                && words.iter().any(|w| w.starts_with(&dir))
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.temp.path().join("log")).unwrap()
    }

    /// Waits until all parts of the uncontrolled arm run.
    fn await_plain(&self) {
        eventually("the uncontrolled arm runs", || {
            ["service", "burn", "churn", "load"]
                .iter()
                .all(|part| self.part(part).len() == 1)
                && self.part("daemon").is_empty()
        });
    }

    /// Waits until all parts of the arm with a daemon run.
    fn await_managed(&self) {
        eventually("the arm with a daemon runs", || {
            ["daemon", "guardian", "service", "burn", "churn", "load"]
                .iter()
                .all(|part| self.part(part).len() == 1)
        });
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        eventually("no process is left", || self.parts().is_empty());
        // Children without the directory in their words are found by their groups.
        let left = || -> Vec<PathBuf> { groups_left(&self.hierarchies, &self.group()) };
        eventually("no group is left", || left().is_empty());
        eventually("the directory is gone", || !self.dir().exists());
    }

    /// The group of the demo's daemon goes by the number of the inner process.
    fn group(&self) -> String {
        format!("{}-{}", self.groups, self.inner)
    }

    fn end(&mut self) -> Option<i32> {
        wait_for_end(&mut self.outer)
            .unwrap_or_else(|| panic!("the demo does not end: {}", self.log()))
            .code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the demo said:\n{}", self.log());
        }
        if self.outer.try_wait().unwrap().is_none() {
            signal(self.outer.id(), Signal::TERM);
            if wait_for_end(&mut self.outer).is_none() {
                self.outer.kill().unwrap();
                self.outer.wait().unwrap();
            }
        }
        for pid in self.parts() {
            signal(pid, Signal::KILL);
        }
        let state = self.dir().join("state");
        if state.exists() {
            let restored = Command::new(EXE.as_str())
                .args(["restore", "--kill", "--state-dir"])
                .arg(state)
                .output()
                .unwrap();
            if !std::thread::panicking() {
                assert!(restored.status.success(), "{restored:?}");
            }
        }
    }
}

fn is_gone(path: &Path) -> bool {
    !path.exists()
}

#[test]
fn a_demo_to_its_end_leaves_its_result_and_nothing_else() {
    let Some(mut demo) = Demo::start("a_demo_to_its_end_leaves_its_result_and_nothing_else") else {
        return;
    };
    demo.await_managed();
    assert_eq!(demo.end(), Some(0), "{}", demo.log());
    let text = fs::read_to_string(demo.temp.path().join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let arms: Vec<&str> = result["arms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arm| arm["name"].as_str().unwrap())
        .collect();
    assert_eq!(arms, ["alone", "uncontrolled", "forebay"]);
    for arm in result["arms"].as_array().unwrap() {
        for key in ["p50_ms", "p99_ms", "p999_ms", "completed", "failed"] {
            assert!(arm[key].is_number(), "{key}: {arm}");
        }
        assert!(arm.get("batch_work").is_some(), "{arm}");
    }
    for key in ["cpu_percent_of_core", "rss_bytes"] {
        assert!(result["agent"][key].is_number(), "{key}: {result}");
    }
    assert!(demo.parts().is_empty(), "processes are left");
    assert!(is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

fn start_failover(test: &str) -> Option<Demo> {
    let words = ["demo", "failover", "--seconds", "12"];
    Demo::begin(test, &words, "forebay-bench")
}

/// The servers of redis that this demo started: they say where they listen, and nothing of the demo.
fn servers(demo: &Demo) -> Vec<u32> {
    let config = fs::read_to_string(demo.dir().join("failover.toml")).unwrap_or_default();
    processes(|words| is_server(words, &config))
}

/// A server calls itself `redis-server 127.0.0.1:PORT`, all in one word.
fn is_server(words: &[String], config: &str) -> bool {
    let mut title = words.iter().flat_map(|word| word.split(' '));
    let is_redis = title
        .next()
        .is_some_and(|word| word.ends_with("redis-server"));
    is_redis && title.any(|word| word.contains(':') && config.contains(&format!("\"{word}\"")))
}

#[test]
fn a_demo_of_failover_shows_all_there_is_and_leaves_nothing() {
    let Some(mut demo) = start_failover("a_demo_of_failover_shows_all_there_is_and_leaves_nothing")
    else {
        return;
    };
    assert_eq!(demo.end(), Some(0), "{}", demo.log());
    let text = fs::read_to_string(demo.temp.path().join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = result["rows"].as_array().unwrap();
    let expected = if result["skipped"].is_null() { 4 } else { 2 };
    assert_eq!(rows.len(), expected, "{result}");
    for row in rows {
        assert!(!row["gaps_ms"].as_array().unwrap().is_empty(), "{row}");
        for key in ["twice", "lost", "dropped"] {
            assert_eq!(row[key], 0, "{key}: {row}");
        }
    }
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

/// A service moves twice by itself, and no request of its clients fails.
#[test]
fn a_demo_of_the_fleet_moves_a_service_by_itself_and_leaves_nothing() {
    let test = "a_demo_of_the_fleet_moves_a_service_by_itself_and_leaves_nothing";
    for program in ["etcd", "unshare", "ip"] {
        let word = if program == "ip" { "-V" } else { "--version" };
        if Command::new(program).arg(word).output().is_err() {
            println!("SKIPPED: {test}: there is no {program}");
            return;
        }
    }
    let words = ["demo", "fleet", "--seconds", "12"];
    let Some(mut demo) = Demo::begin(test, &words, "forebay-demo") else {
        return;
    };
    assert_eq!(demo.end(), Some(0), "{}", demo.log());
    let text = fs::read_to_string(demo.temp.path().join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let moves = result["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 2, "{result}");
    for one in moves {
        assert_ne!(one["from"], one["to"], "{one}");
        assert_eq!(one["owners"], 1, "{one}");
        assert!(one["why"].as_str().unwrap().contains("by itself"), "{one}");
    }
    assert_eq!(result["all"]["failed"], 0, "{result}");
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

/// Packages of demos that the host's own database knows.
fn packages() -> Vec<String> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ", "forebay-demo-*"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

fn start_update(test: &str) -> Option<Demo> {
    if Command::new("dpkg-query")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIPPED: {test}: there is no dpkg");
        return None;
    }
    Demo::begin(test, &["demo", "update", "--seconds", "12"], "forebay-demo")
}

/// A package is installed under two services, one of which is restarted, and no request fails.
#[test]
fn a_demo_of_an_update_shows_its_receipt_and_leaves_nothing() {
    let Some(mut demo) = start_update("a_demo_of_an_update_shows_its_receipt_and_leaves_nothing")
    else {
        return;
    };
    assert_eq!(demo.end(), Some(0), "{}", demo.log());
    println!("{}", demo.log());
    let text = fs::read_to_string(demo.temp.path().join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["receipt"]["outcome"], "committed", "{result}");
    let [web, till] = &result["services"].as_array().unwrap()[..] else {
        panic!("{result}");
    };
    assert_eq!(
        (&web["restarted"], &till["restarted"]),
        (&true.into(), &false.into())
    );
    assert!(web["planned_pause_p99_ms"].is_number() && web["front_pause_ms"].is_number());
    assert_eq!(till["planned_pause_p99_ms"], 0.0, "{till}");
    for service in [web, till] {
        assert_eq!(service["during"]["failed"], 0, "{service}");
        assert!(
            service["during"]["requests"].as_u64().unwrap() > 100,
            "{service}"
        );
    }
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    let own = format!("forebay-demo-{}", demo.inner);
    assert!(!packages().contains(&own));
    demo.assert_nothing_left();
}

#[test]
fn a_demo_of_an_update_that_is_killed_removes_its_package() {
    let Some(mut demo) = start_update("a_demo_of_an_update_that_is_killed_removes_its_package")
    else {
        return;
    };
    let own = format!("forebay-demo-{}", demo.inner);
    eventually("its package is there", || packages().contains(&own));
    signal(demo.outer.id(), Signal::KILL);
    assert_eq!(demo.end(), None);
    demo.assert_nothing_left();
    assert!(!packages().contains(&own));
}

#[test]
fn a_demo_of_failover_that_is_killed_leaves_nothing() {
    let Some(mut demo) = start_failover("a_demo_of_failover_that_is_killed_leaves_nothing") else {
        return;
    };
    let skips = || demo.log().contains("SKIPPED: redis");
    eventually("the instances run", || {
        demo.part("orders").len() == 2 && (skips() || servers(&demo).len() == 2)
    });
    let servers = servers(&demo);
    signal(demo.outer.id(), Signal::KILL);
    assert_eq!(demo.end(), None);
    demo.assert_nothing_left();
    eventually("no server is left", || {
        !servers.iter().copied().any(is_running)
    });
}

#[test]
fn an_interrupt_ends_the_demo_and_all_of_it() {
    let Some(mut demo) = Demo::start("an_interrupt_ends_the_demo_and_all_of_it") else {
        return;
    };
    demo.await_plain();
    signal(demo.outer.id(), Signal::INT);
    assert_eq!(demo.end(), Some(1));
    assert!(demo.log().contains("interrupted"), "{}", demo.log());
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

#[test]
fn the_inner_process_killed_among_plain_programs_leaves_nothing() {
    let Some(mut demo) =
        Demo::start("the_inner_process_killed_among_plain_programs_leaves_nothing")
    else {
        return;
    };
    demo.await_plain();
    signal(demo.inner, Signal::KILL);
    assert_eq!(demo.end(), Some(137));
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

#[test]
fn the_inner_process_killed_with_a_daemon_leaves_nothing() {
    let Some(mut demo) = Demo::start("the_inner_process_killed_with_a_daemon_leaves_nothing")
    else {
        return;
    };
    demo.await_managed();
    signal(demo.inner, Signal::KILL);
    assert_eq!(demo.end(), Some(137));
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

#[test]
fn the_outer_process_killed_leaves_nothing() {
    let Some(mut demo) = Demo::start("the_outer_process_killed_leaves_nothing") else {
        return;
    };
    demo.await_managed();
    signal(demo.outer.id(), Signal::KILL);
    assert_eq!(demo.end(), None);
    demo.assert_nothing_left();
}

/// The inner process then gives up with its daemon running and nobody waiting for it.
#[test]
fn the_outer_process_killed_while_a_daemon_starts_leaves_nothing() {
    let Some(mut demo) =
        Demo::start("the_outer_process_killed_while_a_daemon_starts_leaves_nothing")
    else {
        return;
    };
    eventually("a daemon starts", || demo.part("daemon").len() == 1);
    signal(demo.outer.id(), Signal::KILL);
    assert_eq!(demo.end(), None);
    demo.assert_nothing_left();
}

#[test]
fn the_daemon_of_the_demo_killed_leaves_nothing() {
    let Some(mut demo) = Demo::start("the_daemon_of_the_demo_killed_leaves_nothing") else {
        return;
    };
    demo.await_managed();
    let apps = ["service", "burn", "churn"].map(|part| demo.part(part)[0]);
    signal(demo.part("daemon")[0], Signal::KILL);
    eventually("the guardian ends the apps", || {
        !apps.into_iter().any(is_running)
    });
    signal(demo.outer.id(), Signal::TERM);
    demo.end();
    assert!(!apps.into_iter().any(is_running));
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

#[test]
fn daemon_and_guardian_of_the_demo_killed_leave_nothing() {
    let Some(mut demo) = Demo::start("daemon_and_guardian_of_the_demo_killed_leave_nothing") else {
        return;
    };
    demo.await_managed();
    let apps = ["service", "burn", "churn"].map(|part| demo.part(part)[0]);
    for part in ["guardian", "daemon"] {
        signal(demo.part(part)[0], Signal::KILL);
    }
    signal(demo.outer.id(), Signal::TERM);
    demo.end();
    assert!(!apps.into_iter().any(is_running));
    assert!(demo.parts().is_empty() && is_gone(&demo.dir()));
    demo.assert_nothing_left();
}

#[test]
fn without_root_the_demo_explains_and_offers_the_simulation() {
    use std::os::unix::process::CommandExt as _;

    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: without_root_the_demo_explains: not root, so not another user either");
        return;
    }
    let mut command = Command::new(EXE.as_str());
    command.arg("demo").uid(65534).gid(65534);
    if let Err(error) = command.output() {
        println!(
            "SKIPPED: without_root_the_demo_explains: another user cannot run {}: {error}",
            *EXE
        );
        return;
    }
    crate::place::refusal(command).says(&["needs root", "sudo", "forebay demo --simulated"]);
}
