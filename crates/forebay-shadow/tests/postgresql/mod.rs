//! Two real servers and a front before them.

#[path = "../certificate/mod.rs"]
pub(crate) mod certificate;
pub(crate) mod client;

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_shadow::control::{Answer, Counts, Line, Request};
use forebay_shadow::fence::Hierarchy;
use forebay_shadow::front::{self, Plan};
use forebay_shadow::mode::Mode;
use forebay_shadow::postgres::{Guarantee, Options};
use forebay_shadow::status::Status;
use forebay_shadow::switchboard::Instance;
use tempfile::TempDir;

pub(crate) const BOUND: Duration = Duration::from_secs(60);
const BINARIES: &str = "/usr/lib/postgresql/15/bin";
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Clusters are heavy: one after the other.
static ONE: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Makes an instance a standby of the primary and starts it; or, without a primary, the first.
/// `$1` is its port, `$2` the primary's.
const STANDBY: &str = r#"set -e
dir=$BASE/$1
pid=$(head -n 1 "$dir/postmaster.pid" 2>/dev/null || true)
case "$(ps -o stat= -p "${pid:-0}" || true)" in
  ""|Z*) ;;
  *) $AS "$BIN/pg_ctl" -D "$dir" -m immediate -s stop ;;
esac
"$BASE/forget" "$1"
rm -rf "$dir"
$AS "$BIN/pg_basebackup" -h 127.0.0.1 -p "$2" -U postgres -D "$dir" -R -c fast --no-sync
exec "$BASE/start" "$1"
"#;
/// One that was killed leaves a segment of shared memory, which the server with the same directory
/// would remove.
const FORGET: &str = r#"segment=$(sed -n 7p "$BASE/$1/postmaster.pid" 2>/dev/null | awk '{ print $2 }')
if [ -n "$segment" ]; then ipcrm -m "$segment" 2>/dev/null || true; fi
"#;
const START: &str = r#"set -e
if [ -n "$GROUPS_OF" ]; then echo $$ > "$GROUPS_OF/$1/cgroup.procs"; fi
rm -f "$BASE/$1/postmaster.pid"
$AS setsid "$BIN/postgres" -D "$BASE/$1" -p "$1" >> "$BASE/$1.log" 2>&1 < /dev/null &
n=0
until [ "$(sed -n 8p "$BASE/$1/postmaster.pid" 2>/dev/null | tr -d ' ')" = ready ]; do
  n=$((n + 1))
  [ $n -lt 3000 ]
  sleep 0.01
done
"#;

pub(crate) struct Cluster {
    base: TempDir,
    pub(crate) ports: Vec<u16>,
    pub(crate) front: u16,
    groups: Option<PathBuf>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _one: MutexGuard<'static, ()>,
}

pub(crate) struct Wanted {
    pub(crate) guarantee: Guarantee,
    pub(crate) authentication: &'static str,
    pub(crate) rebuild: bool,
    pub(crate) tls: Encryption,
}

/// Whether the front speaks TLS with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    None,
    Offered,
    Required,
}

pub(crate) const PLAIN: Wanted = Wanted {
    guarantee: Guarantee::Fast,
    authentication: "trust",
    rebuild: false,
    tls: Encryption::None,
};

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Cluster {
    /// A primary, a standby of it, and a front before both; none where PostgreSQL is missing.
    pub(crate) fn start(name: &str, wanted: &Wanted) -> Option<Self> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        if !Path::new(BINARIES).join("postgres").exists() {
            println!("SKIPPED: {name}: PostgreSQL 15 is not installed");
            return None;
        }
        let base = TempDir::new().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
        for (script, text) in [("standby", STANDBY), ("forget", FORGET), ("start", START)] {
            let path = base.path().join(script);
            fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut cluster = Self {
            ports: vec![free_port(), free_port()],
            front: free_port(),
            groups: None,
            stop: None,
            thread: None,
            base,
            _one: one,
        };
        cluster.make_groups();
        cluster.initialise(wanted);
        cluster.run_front(wanted);
        cluster.join(0);
        cluster.join(1);
        cluster.await_standby(1);
        Some(cluster)
    }

    fn make_groups(&mut self) {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("forebay-shadow-test-{}-{number}", std::process::id());
        let mut unified = UNIFIED.iter().map(Path::new);
        let unified = unified.find(|path| path.join("cgroup.controllers").exists());
        let Some(unified) = unified.filter(|_| is_root()) else {
            return;
        };
        let groups = unified.join(name);
        for port in &self.ports {
            if fs::create_dir_all(groups.join(port.to_string())).is_err() {
                return;
            }
        }
        self.groups = Some(groups);
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let run_as = "setpriv --reuid postgres --regid postgres --clear-groups";
        let groups = self.groups.as_ref().map(|path| path.display().to_string());
        vec![
            ("BASE", self.base.path().display().to_string()),
            ("BIN", BINARIES.to_owned()),
            (
                "AS",
                if is_root() {
                    run_as.to_owned()
                } else {
                    String::new()
                },
            ),
            ("GROUPS_OF", groups.unwrap_or_default()),
        ]
    }

    fn sh(&self, script: &str, arguments: &[String]) {
        let output = Command::new("sh")
            .args(["-c", script, "sh"])
            .args(arguments)
            .envs(self.environment())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn initialise(&self, wanted: &Wanted) {
        let port = self.ports[0].to_string();
        self.sh(
            "$AS $BIN/initdb -D $BASE/$1 -U postgres -A trust --no-sync -E UTF8 --locale=C.UTF-8 > $BASE/initdb.log",
            std::slice::from_ref(&port),
        );
        let dir = self.base.path().join(&port);
        let settings = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\n\
             shared_buffers = 32MB\nmax_connections = 100\nwal_keep_size = 64MB\n\
             wal_retrieve_retry_interval = 10ms\nlog_line_prefix = '%m [%p] '\n\
             dynamic_shared_memory_type = mmap\nrecovery_init_sync_method = syncfs\nautovacuum = off\nmin_wal_size = 80MB\n";
        let mut text = fs::read_to_string(dir.join("postgresql.conf")).unwrap();
        text.push_str(settings);
        fs::write(dir.join("postgresql.conf"), text).unwrap();
        let hosts = format!(
            "host all postgres 127.0.0.1/32 trust\nhost replication postgres 127.0.0.1/32 trust\n\
             host all all 127.0.0.1/32 {}\n",
            wanted.authentication
        );
        fs::write(dir.join("pg_hba.conf"), hosts).unwrap();
        self.sh("$BASE/start $1", &[port]);
        self.psql_at(
            self.ports[0],
            "postgres",
            "CREATE ROLE app LOGIN PASSWORD 'se''cret'; GRANT CREATE ON SCHEMA public TO app; \
             CREATE TABLE ledger (id bigint); GRANT ALL ON ledger TO app;",
        );
        self.rebuild(1, 0);
    }

    /// Makes one a standby of the other.
    pub(crate) fn rebuild(&self, slot: usize, primary: usize) {
        let ports = [slot, primary].map(|slot| self.ports[slot].to_string());
        self.sh("$BASE/standby $1 $2", &ports);
    }

    fn run_front(&mut self, wanted: &Wanted) {
        let base = self.base.path();
        let mut rebuild = Vec::new();
        if wanted.rebuild {
            rebuild.push("env".to_owned());
            rebuild.extend(
                self.environment()
                    .into_iter()
                    .map(|(name, value)| format!("{name}={value}")),
            );
            let script = "exec $BASE/standby ${FOREBAY_ADDRESS##*:} ${FOREBAY_PRIMARY_ADDRESS##*:}";
            rebuild.extend(["sh", "-c", script].map(str::to_owned));
        }
        let instance = |port: &u16| Instance {
            app: format!("pg-{port}"),
            address: format!("127.0.0.1:{port}").parse().unwrap(),
            elsewhere: None,
        };
        let tls = (wanted.tls != Encryption::None).then(|| forebay_shadow::tls::Options {
            require: wanted.tls == Encryption::Required,
            ..certificate::options(base, "front")
        });
        let plan = Plan {
            name: "test".to_owned(),
            mode: Mode::Postgres(Options {
                user: "postgres".to_owned(),
                password: None,
                database: "postgres".to_owned(),
                guarantee: wanted.guarantee,
                lag_bytes_max: 16 << 20,
                rebuild,
                rebuild_after_ms: 300,
                data: Default::default(),
                programs: PathBuf::new(),
                passwords: Default::default(),
                tls,
            }),
            listen: vec![format!("127.0.0.1:{}", self.front).parse().unwrap()],
            instances: self.ports.iter().map(instance).collect(),
            connections_max: 1000,
            user: String::new(),
            patience: Duration::from_secs(20),
            grace: Duration::ZERO,
            drain: Duration::ZERO,
            proxy: Default::default(),
            control: base.join("control"),
            epoch_file: base.join("epoch"),
            lender: None,
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        self.stop = Some(stop);
        self.thread = Some(std::thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    ran = async { front::open(plan).await.unwrap().serve().await } => ran.unwrap(),
                    _ = stopped => {}
                }
            });
        }));
    }

    pub(crate) fn ask(&self, request: &Request, descriptors: &[OwnedFd]) -> Answer {
        let path = self.base.path().join("control");
        // A socket that is there is listened on a moment later.
        until("the front", || {
            std::os::unix::net::UnixStream::connect(&path).ok()
        });
        runtime().block_on(async {
            let mut line = Line::connect(&path).await.unwrap();
            let descriptors: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
            line.ask(request, &descriptors).await.unwrap()
        })
    }

    pub(crate) fn status(&self) -> Status {
        match self.ask(&Request::Status { known: None }, &[]) {
            Answer::Status(status) => *status,
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        match self.ask(&Request::Counters, &[]) {
            Answer::Counters(counts) => counts,
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn pid(&self, slot: usize) -> u32 {
        let path = self
            .base
            .path()
            .join(self.ports[slot].to_string())
            .join("postmaster.pid");
        let pid = || fs::read_to_string(&path).ok()?.lines().next()?.parse().ok();
        until("a process number", pid)
    }

    /// Tells the front who an instance is.
    pub(crate) fn join(&self, slot: usize) {
        let files = [
            "cgroup.freeze",
            "cgroup.events",
            "cgroup.procs",
            "cgroup.kill",
        ];
        let group = self
            .groups
            .as_ref()
            .map(|groups| groups.join(self.ports[slot].to_string()));
        let descriptors = group.as_ref().map_or_else(Vec::new, |group| {
            let open = |file: &str| {
                let mut options = fs::OpenOptions::new();
                let writes = !matches!(file, "cgroup.events");
                let reads = !matches!(file, "cgroup.kill");
                OwnedFd::from(
                    options
                        .read(reads)
                        .write(writes)
                        .open(group.join(file))
                        .unwrap(),
                )
            };
            files.map(open).into_iter().collect()
        });
        let request = Request::Joined {
            app: format!("pg-{}", self.ports[slot]),
            pid: self.pid(slot),
            fence: group.map(|_| Hierarchy::V2),
        };
        assert_eq!(self.ask(&request, &descriptors), Answer::Done);
    }

    /// Waits until an instance stands by.
    pub(crate) fn await_standby(&self, slot: usize) {
        let deadline = Instant::now() + BOUND;
        loop {
            let status = self.status();
            if status.stage == "warm" && status.standby == Some(slot) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{slot} does not stand by: {status:#?}"
            );
            self.ask(
                &Request::Status {
                    known: Some(Box::new(status)),
                },
                &[],
            );
        }
    }

    /// Kills the primary, with all its processes, as a lack of memory would.
    pub(crate) fn kill(&self, slot: usize) {
        if let Some(groups) = &self.groups {
            fs::write(
                groups
                    .join(self.ports[slot].to_string())
                    .join("cgroup.kill"),
                "1",
            )
            .unwrap();
            return;
        }
        let pid = self.pid(slot);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let all = children.unwrap_or_default();
        for pid in [pid.to_string()]
            .iter()
            .map(String::as_str)
            .chain(all.split_whitespace())
        {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }

    pub(crate) fn has_fences(&self) -> bool {
        self.groups.is_some()
    }

    /// Stops all processes of an instance where they are.
    pub(crate) fn stop(&self, slot: usize) {
        let groups = self.groups.as_ref().unwrap();
        let group = groups.join(self.ports[slot].to_string());
        let all = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        for pid in all.lines() {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            // One that has ended since stands as well.
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).ok();
        }
    }

    /// The certificate of the front, where it has one.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.base.path().join("front.crt")
    }

    pub(crate) fn psql_at(&self, port: u16, user: &str, sql: &str) -> String {
        let output = self.tool(
            "psql",
            port,
            user,
            &["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql],
        );
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            output.status.success(),
            "{sql}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    pub(crate) fn command(&self, tool: &str, port: u16, user: &str) -> Command {
        let mut command = Command::new(Path::new(BINARIES).join(tool));
        command
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", user])
            .env("PGPASSWORD", "se'cret")
            .env("PGDATABASE", "postgres")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn tool(&self, tool: &str, port: u16, user: &str, arguments: &[&str]) -> Output {
        self.command(tool, port, user)
            .args(arguments)
            .output()
            .unwrap()
    }

    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for port in &self.ports {
            let path = self.base.path().join(format!("{port}.log"));
            if let Ok(mut file) = fs::File::open(path) {
                file.read_to_string(&mut text).ok();
            }
        }
        text
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        if std::thread::panicking() {
            let logs = self.logs();
            let tail: Vec<&str> = logs.lines().rev().take(60).collect();
            for line in tail.iter().rev() {
                println!("{line}");
            }
        }
        for (slot, port) in self.ports.iter().enumerate() {
            let path = self
                .base
                .path()
                .join(port.to_string())
                .join("postmaster.pid");
            if path.exists() {
                self.kill(slot);
            }
        }
        for port in &self.ports {
            let mut forget = Command::new(self.base.path().join("forget"));
            forget.arg(port.to_string()).envs(self.environment());
            if let Err(error) = forget.status() {
                println!("shared memory of {port} stays: {error}");
            }
        }
        let Some(groups) = &self.groups else { return };
        let deadline = Instant::now() + Duration::from_secs(10);
        for port in &self.ports {
            let group = groups.join(port.to_string());
            fs::write(group.join("cgroup.kill"), "1").ok();
            fs::write(group.join("cgroup.freeze"), "0").ok();
            while fs::remove_dir(&group).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        fs::remove_dir(groups).ok();
    }
}
