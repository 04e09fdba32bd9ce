//! A real etcd for one test, on free ports of this host, gone afterwards.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long etcd may take to answer: a slow disk needs it.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// One member, which is the whole cluster.
#[derive(Debug)]
pub(crate) struct Etcd {
    directory: tempfile::TempDir,
    host: String,
    client: u16,
    peer: u16,
    more: Vec<String>,
    scheme: &'static str,
    child: Option<Child>,
}

impl Etcd {
    /// None, with a line that says why, where it is not installed.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_with(test, "http", &[])
    }

    /// The same, where others reach it at an address of this host.
    pub(crate) fn start_at(test: &str, host: &str) -> Option<Self> {
        Self::start_all(test, host, "http", &[])
    }

    /// The same, with further options, and spoken with by `http` or `https`.
    pub(crate) fn start_with(test: &str, scheme: &'static str, more: &[&str]) -> Option<Self> {
        Self::start_all(test, "127.0.0.1", scheme, more)
    }

    fn start_all(test: &str, host: &str, scheme: &'static str, more: &[&str]) -> Option<Self> {
        let installed = Command::new("etcd").arg("--version").output();
        if installed.is_err() {
            println!("SKIPPED: {test}: no etcd; install etcd-server");
            return None;
        }
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        // Somebody else may take a port before etcd does.
        for _ in 0..5 {
            let mut etcd = Self {
                directory: tempfile::tempdir().unwrap(),
                host: host.to_owned(),
                client: free(),
                peer: free(),
                more: more.iter().map(ToString::to_string).collect(),
                scheme,
                child: None,
            };
            if etcd.run() {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    /// Where it is: `http://HOST:PORT`.
    pub(crate) fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Where it is: `HOST:PORT`.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.client)
    }

    /// Starts it anew with what it has on disk.
    pub(crate) fn restart(&mut self) {
        assert!(
            self.child.is_none() && self.run(),
            "etcd does not start again"
        );
    }

    /// Ends it as a crash would.
    pub(crate) fn crash(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// It stands still until it is let go on.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Whether it answers.
    fn run(&mut self) -> bool {
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let (client, address) = (self.endpoint(), self.address());
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        // It ends with the thread that started it, whatever ends that.
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "etcd",
                "--name",
                "test",
                "--data-dir",
            ])
            .arg(self.directory.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(&self.more)
            // Where it was packaged for other processors only.
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = self.child.insert(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if answers(self.scheme, &address) {
                return true;
            }
            std::thread::sleep(POLL);
        }
        let log = std::fs::read_to_string(self.directory.path().join("log"));
        panic!("etcd does not answer: {}", log.unwrap_or_default());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn answers(scheme: &str, address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    if scheme == "https" {
        return true;
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
    let mut answer = String::new();
    // It may close the connection while it starts.
    asked
        .and_then(|()| stream.read_to_string(&mut answer))
        .is_ok()
        && answer.contains("\"health\":\"true\"")
}
