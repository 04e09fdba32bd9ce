//! Real servers behind a real front.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use forebay_shadow::control::{Answer, Counts, Line, Request};
use forebay_shadow::fence::Hierarchy;
use forebay_shadow::front::{self, Plan};
use forebay_shadow::mode::Mode;
use forebay_shadow::redis::Options;
use forebay_shadow::status::{Status, Transition};
use forebay_shadow::switchboard::Instance;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long anything may take.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// Whether a program is there; says so when the test is skipped.
pub(crate) fn has(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !there {
        println!("SKIPPED: {test}: {program} is missing; `cargo xtask setup` installs it");
    }
    there
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A group of control group v2 with one server in it.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes one, where this process may.
    pub(crate) fn new() -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let root = roots
            .into_iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.procs").exists());
        let root = root.ok_or_else(|| io::Error::other("no hierarchy of v2 is mounted"))?;
        let name = format!("forebay-redis-test-{}-{number}", std::process::id());
        let path = root.join(name);
        std::fs::create_dir(&path)?;
        let group = Self { path };
        group.fence()?;
        Ok(group)
    }

    fn fence(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |name: &str, reads: bool, writes: bool| {
            let mut options = OpenOptions::new();
            let file: File = options
                .read(reads)
                .write(writes)
                .open(self.path.join(name))?;
            Ok(OwnedFd::from(file))
        };
        [
            ("cgroup.freeze", true, true),
            ("cgroup.events", true, false),
            ("cgroup.procs", true, false),
            ("cgroup.kill", false, true),
        ]
        .into_iter()
        .map(|(name, reads, writes)| open(name, reads, writes))
        .collect()
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let deadline = Instant::now() + BOUND;
        std::fs::write(self.path.join("cgroup.kill"), "1").ok();
        while std::fs::remove_dir(&self.path)
            .is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
        {
            assert!(Instant::now() < deadline, "remove {}", self.path.display());
            std::thread::yield_now();
        }
    }
}

/// A server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    directory: tempfile::TempDir,
    arguments: Vec<String>,
    group: Option<Group>,
}

impl Server {
    pub(crate) fn start(arguments: &[&str], group: Option<Group>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(port, directory.path(), &arguments);
        let server = Self {
            child,
            port,
            directory,
            arguments,
            group,
        };
        server.enter();
        server
    }

    fn enter(&self) {
        if let Some(group) = &self.group {
            group.add(self.child.id());
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end, and begins it again with nothing.
    pub(crate) fn restart(&mut self) {
        self.child.wait().unwrap();
        self.child = spawn(self.port, self.directory.path(), &self.arguments);
        self.enter();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(port: u16, directory: &Path, arguments: &[String]) -> Child {
    let deadline = Instant::now() + BOUND;
    loop {
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ]);
        command.args([
            "--appendonly",
            "no",
            "--hz",
            "100",
            "--repl-diskless-sync-delay",
            "0",
            // A script may take longer on a busy machine than a server likes to wait for it.
            "--lua-time-limit",
            "0",
        ]);
        command.args(arguments).current_dir(directory);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (ready, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.contains("Ready to accept connections") {
                    // Nobody listens a second time.
                    ready.send(()).ok();
                }
            }
        });
        if told.recv_timeout(BOUND).is_ok() {
            return child;
        }
        // Its port may still be held by the one before it.
        child.kill().ok();
        child.wait().unwrap();
        assert!(
            Instant::now() < deadline,
            "redis-server does not begin on port {port}"
        );
    }
}

/// A front in a thread of its own.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) port: u16,
    control: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Front {
    pub(crate) fn start(servers: &[Server], options: Options) -> Self {
        // How long a disk takes to sync that compilers write to at the same time is not tested.
        let memory = tempfile::tempdir_in("/dev/shm");
        let directory = memory.or_else(|_| tempfile::tempdir()).unwrap();
        let port = free_port();
        let instance = |(place, server): (usize, &Server)| Instance {
            app: format!("redis-{place}"),
            address: server.address().to_string().parse().unwrap(),
            elsewhere: None,
        };
        let plan = Plan {
            name: "test".to_owned(),
            mode: Mode::Redis(options),
            listen: vec![format!("127.0.0.1:{port}").parse().unwrap()],
            instances: servers.iter().enumerate().map(instance).collect(),
            connections_max: 1000,
            user: String::new(),
            patience: Duration::from_secs(5),
            grace: Duration::ZERO,
            drain: Duration::ZERO,
            proxy: Default::default(),
            control: directory.path().join("control"),
            epoch_file: directory.path().join("epoch"),
            lender: None,
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let control = plan.control.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::select! {
                    ended = async { front::open(plan).await.unwrap().serve().await } => panic!("the front ended: {ended:?}"),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        Self {
            port,
            control,
            stop: Some(stop),
            thread: Some(thread),
            _directory: directory,
        }
    }

    pub(crate) async fn line(&self) -> Line {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Ok(line) = Line::connect(&self.control).await {
                return line;
            }
            assert!(Instant::now() < deadline, "the front does not begin");
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn join(&self, slot: usize, server: &Server) {
        let fence = server.group.as_ref().map(|group| group.fence().unwrap());
        let descriptors: Vec<BorrowedFd<'_>> = fence.iter().flatten().map(AsFd::as_fd).collect();
        let request = Request::Joined {
            app: format!("redis-{slot}"),
            pid: server.child.id(),
            fence: fence.is_some().then_some(Hierarchy::V2),
        };
        let answer = self.line().await.ask(&request, &descriptors).await.unwrap();
        assert_eq!(answer, Answer::Done);
    }

    /// Waits until the front stands like this.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let mut line = self.line().await;
        let mut known = None;
        let deadline = Instant::now() + BOUND;
        loop {
            let request = Request::Status {
                known: known.map(Box::new),
            };
            let Answer::Status(status) = line.ask(&request, &[]).await.unwrap() else {
                panic!("no status");
            };
            if wanted(&status) {
                return *status;
            }
            assert!(Instant::now() < deadline, "{what}: {status:#?}");
            known = Some(*status);
        }
    }

    pub(crate) async fn ready(&self) -> Status {
        self.until("a shadow in step", |status| {
            status.stage == "warm" && status.standby.is_some()
        })
        .await
    }

    pub(crate) async fn counts(&self) -> Counts {
        match self
            .line()
            .await
            .ask(&Request::Counters, &[])
            .await
            .unwrap()
        {
            Answer::Counters(counts) => counts,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn hand_over(&self) -> Transition {
        match self
            .line()
            .await
            .ask(&Request::HandOver, &[])
            .await
            .unwrap()
        {
            Answer::Changed(transition) => transition,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn client(&self) -> Client {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Ok(client) = Client::connect(self.port).await {
                return client;
            }
            assert!(Instant::now() < deadline, "the front does not listen");
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop(self.stop.take());
        let joined = self.thread.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            joined.unwrap().unwrap();
        }
    }
}

/// Two servers behind a front, the second in step with the first.
pub(crate) async fn pair(arguments: &[&str], options: Options) -> (Vec<Server>, Front) {
    let servers = vec![
        Server::start(arguments, None),
        Server::start(arguments, None),
    ];
    let front = Front::start(&servers, options);
    for (slot, server) in servers.iter().enumerate() {
        front.join(slot, server).await;
    }
    front.ready().await;
    (servers, front)
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Text(String),
    Error(String),
    Number(i64),
    Nothing,
    Many(Vec<Reply>),
    Push(Vec<Reply>),
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    stream: tokio::io::BufStream<Box<dyn Bytes>>,
}

/// What a client speaks over.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug> Bytes for T {}

impl Client {
    pub(crate) async fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    pub(crate) fn over(stream: impl Bytes + 'static) -> Self {
        Self {
            stream: tokio::io::BufStream::new(Box::new(stream)),
        }
    }

    pub(crate) async fn ask(&mut self, text: &str) -> Reply {
        self.try_ask(text).await.unwrap()
    }

    pub(crate) async fn try_ask(&mut self, text: &str) -> io::Result<Reply> {
        self.send(text).await?;
        self.receive().await
    }

    /// Sends commands, one a line.
    pub(crate) async fn send(&mut self, text: &str) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            bytes.extend(format!("*{}\r\n", words.len()).bytes());
            for word in words {
                bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
            }
        }
        self.send_bytes(&bytes).await
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    pub(crate) async fn receive(&mut self) -> io::Result<Reply> {
        let receiving = self.receive_one();
        tokio::time::timeout(BOUND, receiving)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    pub(crate) async fn is_ended(&mut self) -> bool {
        matches!(self.stream.read_u8().await, Err(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    async fn receive_one(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mark, rest) = line.trim_end().split_at(1);
        let length = rest.parse().unwrap_or(-1_i64);
        Ok(match mark {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(length),
            "_" => Reply::Nothing,
            "$" | "*" if length < 0 => Reply::Nothing,
            "$" => {
                let mut bytes = vec![0; usize::try_from(length).unwrap() + 2];
                self.stream.read_exact(&mut bytes).await?;
                bytes.truncate(bytes.len() - 2);
                Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            "*" | "%" | ">" | "~" => {
                let count = if mark == "%" { 2 * length } else { length };
                let mut many = Vec::new();
                for _ in 0..count {
                    many.push(Box::pin(self.receive_one()).await?);
                }
                if mark == ">" {
                    Reply::Push(many)
                } else {
                    Reply::Many(many)
                }
            }
            _ => panic!("{line:?}"),
        })
    }
}

pub(crate) fn text(text: &str) -> Reply {
    Reply::Text(text.to_owned())
}
