//! PostgreSQL behind a front: instances that do not serve are made standbys when they are started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::fronts::free_port;
use crate::place::{Place, eventually, is_running, signal};

pub(crate) const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// A front `db` before `pg-a`, which has a cluster, and `pg-b`, which has nothing.
struct Stage {
    place: Place,
    front: u16,
    ports: [u16; 2],
    /// Servers that were killed leave a segment of shared memory each.
    segments: Vec<String>,
}

pub(crate) fn as_postgres(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "postgres",
        "--regid",
        "postgres",
        "--clear-groups",
    ]);
    command.arg(Path::new(PROGRAMS).join(program));
    command
}

#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

impl Stage {
    fn new(test: &str) -> Option<Self> {
        if !Path::new(PROGRAMS).join("postgres").exists() {
            println!("SKIPPED: {test}: PostgreSQL 15 is not installed");
            return None;
        }
        let mut place = Place::new(test)?;
        let [front, a, b] = [(); 3].map(|()| free_port());
        let base = place.path("pg");
        succeed(
            Command::new("install")
                .args(["-d", "-o", "postgres", "-g", "postgres"])
                .arg(&base),
        );
        let mut initdb = as_postgres("initdb");
        succeed(
            initdb
                .args(["--auth", "trust", "--no-sync", "-D"])
                .arg(base.join("a")),
        );
        let settings = "unix_socket_directories = ''\nshared_buffers = 16MB\nfsync = off\n\
             wal_log_hints = on\nwal_keep_size = 64MB\nwal_retrieve_retry_interval = 10ms\nmin_wal_size = 80MB\n\
             dynamic_shared_memory_type = mmap\n";
        let file = base.join("a/postgresql.conf");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text + settings).unwrap();
        let app = |name: &str, port: u16| {
            let data = base.join(name).display().to_string();
            format!(
                "[apps.pg-{name}]\nclass = \"critical\"\nrestart = \"always\"\nuser = \"postgres\"\n\
                 exec = [\"{PROGRAMS}/postgres\", \"-D\", \"{data}\", \"-p\", \"{port}\"]\n\
                 stderr = \"{data}.log\"\n"
            )
        };
        place.configure(&format!(
            "{}{}[fronts.db]\nmode = \"postgres\"\nlisten = [\"127.0.0.1:{front}\"]\n\
             patience = \"30s\"\n\
             instances = {{ pg-a = \"127.0.0.1:{a}\", pg-b = \"127.0.0.1:{b}\" }}\n\
             [fronts.db.postgres]\nuser = \"postgres\"\nguarantee = \"strict\"\n\
             rebuild_after = \"300ms\"\ndata = {{ pg-a = \"{base}/a\", pg-b = \"{base}/b\" }}\n",
            app("a", a),
            app("b", b),
            base = base.display(),
        ));
        place.start();
        let stage = Self {
            place,
            front,
            ports: [a, b],
            segments: Vec::new(),
        };
        stage.await_ready("pg-a", "pg-b");
        Some(stage)
    }

    fn status(&self) -> Value {
        self.place.json(&["shadow", "status", "db"])
    }

    #[track_caller]
    fn await_ready(&self, primary: &str, standby: &str) {
        let holds = || {
            let front = self.status();
            front["stage"] == "warm" && front["primary"] == primary && front["standby"] == standby
        };
        let what = format!("{primary} serves and {standby} stands by");
        let ready = std::panic::AssertUnwindSafe(|| eventually(&what, holds));
        let ready = std::panic::catch_unwind(ready);
        if ready.is_err() {
            println!("{:#}", self.status());
            for name in ["a", "b"] {
                println!("{name}: {}", self.log(name));
            }
            panic!("{primary} does not serve, or {standby} does not stand by");
        }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.data(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Has another thing noted of a directory than what is.
    fn note(&self, name: &str, from: &str, to: &str) {
        let mark = self.place.path(&format!("state/fronts/db/pg-{name}.data"));
        let noted = fs::read_to_string(&mark).unwrap();
        assert!(noted.contains(from), "{noted}");
        let noted = noted.replace(from, to);
        fs::write(&mark, format!("{:<512}", noted.trim_end())).unwrap();
    }

    fn data(&self, name: &str) -> PathBuf {
        self.place.path("pg").join(name)
    }

    #[track_caller]
    fn psql(&self, port: u16, sql: &str) -> String {
        let mut psql = as_postgres("psql");
        psql.args(["-X", "-A", "-t", "-h", "127.0.0.1", "-p", &port.to_string()]);
        let output = succeed(psql.args(["-v", "ON_ERROR_STOP=1", "-c", sql]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Kills a server with all its processes.
    fn kill(&mut self, name: &str) {
        let pid = self.place.await_pid(&format!("pg-{name}"));
        let file = fs::read_to_string(self.data(name).join("postmaster.pid")).unwrap();
        let segment = file
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        self.segments.extend(segment.map(str::to_owned));
        signal(pid, Signal::KILL);
        eventually("a killed server is gone", || !is_running(pid));
    }

    fn end(mut self) {
        self.place.stop_well();
        for segment in &self.segments {
            // Most are gone: the next server of the same directory removes it.
            let removed = Command::new("ipcrm").args(["-m", segment]).output();
            assert!(removed.is_ok());
        }
    }
}

#[test]
fn servers_are_made_standbys_when_they_are_started() {
    let name = "servers_are_made_standbys_when_they_are_started";
    let Some(mut stage) = Stage::new(name) else {
        return;
    };
    let [a, b] = stage.ports;
    assert!(stage.log("b").contains("copied anew"), "{}", stage.log("b"));
    let names = "SELECT application_name || ' ' || sync_state FROM pg_stat_replication";
    assert_eq!(stage.psql(a, names), "pg-b sync");
    stage.psql(
        stage.front,
        "CREATE TABLE ledger (id int); INSERT INTO ledger VALUES (1)",
    );

    // A former primary is rewound, and what it had alone is gone.
    stage.kill("a");
    stage.psql(stage.front, "INSERT INTO ledger VALUES (2)");
    stage.await_ready("pg-b", "pg-a");
    assert!(stage.log("a").contains("rewound"), "{}", stage.log("a"));
    assert_eq!(stage.psql(b, names), "pg-a sync");
    assert_eq!(
        stage.psql(a, "SELECT pg_is_in_recovery(), count(*) FROM ledger"),
        "t|2"
    );

    // One that handed over is a primary of its own until it is begun anew.
    let before = stage.place.await_pid("pg-b");
    assert_eq!(
        stage.place.json(&["shadow", "handover", "db"])["to"],
        "pg-a"
    );
    stage.psql(stage.front, "INSERT INTO ledger VALUES (3)");
    stage.await_ready("pg-a", "pg-b");
    assert_ne!(stage.place.await_pid("pg-b"), before);
    assert_eq!(
        stage.psql(b, "SELECT pg_is_in_recovery(), count(*) FROM ledger"),
        "t|3"
    );

    // A standby that was killed goes on.
    stage.kill("b");
    stage.psql(stage.front, "INSERT INTO ledger VALUES (4)");
    stage.await_ready("pg-a", "pg-b");
    assert_eq!(
        stage.log("b").matches("copied anew").count(),
        1,
        "{}",
        stage.log("b")
    );

    // A rewind that was interrupted is noted, and a copy takes the place of what it left.
    stage.note("b", "follows", "rewinding");
    stage.kill("b");
    stage.await_ready("pg-a", "pg-b");
    assert_eq!(
        stage.log("b").matches("copied anew").count(),
        2,
        "{}",
        stage.log("b")
    );
    eventually("what was replaced is removed", || {
        !stage.data("b.forebay-old").exists()
    });
    assert!(!stage.data("b.forebay-new").exists());
    assert_eq!(stage.psql(stage.front, "SELECT count(*) FROM ledger"), "4");

    // A copy that was complete is put into place, and not made again.
    stage.place.json(&["pause"]);
    stage.kill("b");
    let (data, copy) = (stage.data("b"), stage.data("b.forebay-new"));
    succeed(Command::new("cp").arg("-a").args([&data, &copy]));
    fs::write(copy.join("complete"), "").unwrap();
    stage.note("b", "follows", "placing");
    stage.place.json(&["resume"]);
    stage.await_ready("pg-a", "pg-b");
    assert!(data.join("complete").exists());
    assert_eq!(stage.log("b").matches("copied anew").count(), 2);
    stage.end();
}

/// Whoever runs in the directory would go on writing to what is rewound or replaced.
#[test]
fn nothing_is_done_in_a_directory_in_which_a_server_runs() {
    let name = "nothing_is_done_in_a_directory_in_which_a_server_runs";
    let Some(mut stage) = Stage::new(name) else {
        return;
    };
    let data = stage.data("b");
    stage.place.json(&["pause"]);
    stage.kill("b");
    // It would be replaced by a copy.
    stage.note("b", "follows", "rewinding");
    let ctl = |what: &[&str]| {
        let mut ctl = as_postgres("pg_ctl");
        ctl.arg("-D").arg(&data).args(what).stdin(Stdio::null());
        ctl.stdout(Stdio::null()).stderr(Stdio::null());
        ctl.status().unwrap().success()
    };
    let port = format!("-p {}", free_port());
    // Not before the last process of the one that was killed is gone.
    eventually("a server is started by hand", || {
        ctl(&["start", "-w", "-o", &port, "-l", "/dev/null"])
    });
    let server = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let server = server.lines().next().unwrap().to_owned();
    stage.place.json(&["resume"]);
    let refusal = format!(
        "process {server} is of a server that runs in {}",
        data.display()
    );
    eventually("a refusal", || stage.log("b").contains(&refusal));
    assert!(is_running(server.parse().unwrap()));
    assert!(data.join("postmaster.pid").exists());
    assert_eq!(stage.log("b").matches("copied anew").count(), 1);
    assert!(ctl(&["stop", "-w", "-m", "fast"]));
    stage.await_ready("pg-a", "pg-b");
    assert_eq!(stage.log("b").matches("copied anew").count(), 2);
    stage.end();
}

/// Data that may be newer than the primary's, or another cluster's, are not touched.
#[test]
fn data_of_others_are_left_alone() {
    let Some(mut stage) = Stage::new("data_of_others_are_left_alone") else {
        return;
    };
    let data = stage.data("b");
    let refuses = |stage: &Stage, words: &[&str]| {
        eventually("a refusal", || {
            let log = stage.log("b");
            words.iter().all(|word| log.contains(word))
        });
    };
    // Its server never stood behind this front, as far as is noted, and it is no standby.
    fs::remove_file(stage.place.path("state/fronts/db/pg-b.data")).unwrap();
    fs::remove_file(data.join("standby.signal")).unwrap();
    stage.kill("b");
    refuses(&stage, &["never stood behind front db", "move it away"]);
    assert!(data.join("PG_VERSION").exists());
    // Something else than a cluster.
    fs::rename(&data, stage.data("kept")).unwrap();
    fs::create_dir(&data).unwrap();
    fs::write(data.join("photo"), "").unwrap();
    succeed(
        Command::new("chown")
            .args(["-R", "postgres:postgres"])
            .arg(&data),
    );
    refuses(&stage, &["something else than a cluster"]);
    assert!(data.join("photo").exists());
    // The primary is undisturbed, and a way that was shown helps.
    assert_eq!(stage.psql(stage.front, "SELECT 1"), "1");
    fs::rename(&data, stage.data("photos")).unwrap();
    stage.await_ready("pg-a", "pg-b");
    stage.end();
}
