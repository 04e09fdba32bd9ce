//! Processes of a front that take each other's place, and those that stop in the middle of it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not take for tests"
)]

#[expect(dead_code, reason = "other tests use the rest")]
mod instances;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_shadow::control::{Answer, Line, Request};
use forebay_shadow::fence::Hierarchy;
use forebay_shadow::front::{self, Plan};
use forebay_shadow::listen::Listen;
use forebay_shadow::mode::Mode;
use forebay_shadow::status::Status;
use forebay_shadow::stream::Address;
use forebay_shadow::switchboard;
use instances::{BOUND, Instance, descriptors};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, getpid, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where a process of this test's own binary finds its plan, and how far it goes if it is to stop.
const PLAN: &str = "FOREBAY_TEST_PLAN";
const STOPS: &str = "FOREBAY_TEST_STOPS";

/// Not a test: the instances' main function.
#[test]
#[ignore = "it is started by the other tests"]
fn instance() {
    instances::serve_as_instance();
}

/// Not a test: a front's main function.
#[test]
#[ignore = "it is started by the other tests"]
fn process() {
    let Ok(file) = std::env::var(PLAN) else {
        return;
    };
    let plan: Plan = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        if let Ok(stops) = std::env::var(STOPS) {
            return stop_in_the_middle(&plan, &stops).await;
        }
        let opened = match front::succeed(&plan).await.unwrap() {
            Some(opened) => opened,
            None => front::open(plan).await.unwrap(),
        };
        opened.serve().await.unwrap();
    });
}

/// Asks for the place, and stands at some point of what follows.
async fn stop_in_the_middle(plan: &Plan, stops: &str) {
    let mut line = Line::connect(&plan.control).await.unwrap();
    let request = Request::Succeed {
        user: String::new(),
    };
    let inheritance = line.ask(&request, &[]).await.unwrap();
    assert!(matches!(inheritance, Answer::Inheritance(_)));
    let epochs = File::options()
        .read(true)
        .write(true)
        .open(&plan.epoch_file);
    let epochs = epochs.unwrap();
    if stops != "asked" {
        flock(&epochs, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
    if stops == "succeeded" {
        line.send(&Request::Succeeded, &[]).await.unwrap();
        while line.receive::<Answer>().await.unwrap().unwrap().0 != Answer::Done {}
    }
    println!("\nSTOPS");
    kill_process(getpid(), Signal::STOP).unwrap();
    // Whoever lets it go on finds it with what it had.
    std::future::pending::<()>().await;
    drop(epochs);
}

/// A front before two instances, whose processes come and go.
struct Fronts {
    plan: Plan,
    file: PathBuf,
    instances: Vec<Instance>,
    directory: tempfile::TempDir,
}

impl Fronts {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let instances: Vec<_> = (0..2)
            .map(|_| Instance::start("127.0.0.1:0", &record, None))
            .collect();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = free.local_addr().unwrap();
        let described = instances.iter().enumerate();
        let plan = Plan {
            name: "test".to_owned(),
            mode: Mode::Tcp,
            listen: vec![Address::Tcp(listen).into()],
            instances: described
                .map(|(slot, instance)| switchboard::Instance {
                    app: format!("app-{slot}"),
                    address: Address::Tcp(instance.address),
                    elsewhere: None,
                })
                .collect(),
            connections_max: 100,
            user: String::new(),
            patience: BOUND,
            grace: Duration::ZERO,
            drain: BOUND,
            proxy: forebay_shadow::proxy::Options::default(),
            control: directory.path().join("control"),
            epoch_file: directory.path().join("epoch"),
            lender: None,
        };
        let file = directory.path().join("plan");
        std::fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
        Self {
            plan,
            file,
            instances,
            directory,
        }
    }

    fn start(&self, stops: Option<&str>) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "process", "--ignored", "--nocapture"])
            .env(PLAN, &self.file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(stops) = stops {
            command.env(STOPS, stops);
        }
        Process(command.spawn().unwrap())
    }

    async fn ask(&self, request: &Request, files: &[File]) -> Answer {
        let deadline = Instant::now() + BOUND;
        loop {
            let conversation = async {
                let mut line = Line::connect(&self.plan.control).await?;
                line.ask(request, &descriptors(files)).await
            };
            match conversation.await {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until(&self, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + BOUND;
        loop {
            let asked = self.ask(&Request::Status { known: None }, &[]).await;
            let Answer::Status(status) = asked else {
                panic!("{asked:?}")
            };
            if is(&status) {
                return *status;
            }
            assert!(Instant::now() < deadline, "{what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn join(&self, slot: usize, fence: Option<&Fence>) {
        let files = fence.map(Fence::files).unwrap_or_default();
        let request = Request::Joined {
            app: format!("app-{slot}"),
            pid: self.instances[slot].child.id(),
            fence: fence.map(|_| Hierarchy::V1),
        };
        assert_eq!(self.ask(&request, &files).await, Answer::Done);
    }

    async fn ready(&self) {
        self.until("a shadow stands by", |status| {
            status.stage == "warm" && status.standby.is_some()
        })
        .await;
    }

    fn listen(&self) -> SocketAddr {
        match &self.plan.listen[0] {
            Listen::At(Address::Tcp(address)) => *address,
            Listen::At(Address::Unix(_)) | Listen::Passed(_) => unreachable!(),
        }
    }

    /// Which instance answers a new client.
    async fn answers(&self) -> u32 {
        let mut client = TcpStream::connect(self.listen()).await.unwrap();
        answer(&mut client).await
    }
}

async fn answer(client: &mut TcpStream) -> u32 {
    let asked = async {
        let request = b"GET /pid HTTP/1.1\r\nHost: x\r\nX-Id: x\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut text = Vec::new();
        loop {
            assert_ne!(client.read_buf(&mut text).await.unwrap(), 0);
            let text = String::from_utf8_lossy(&text);
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && head.contains(&format!("Content-Length: {}", body.len()))
            {
                return body.parse().unwrap();
            }
        }
    };
    tokio::time::timeout(BOUND, asked).await.unwrap()
}

/// A process of the front.
struct Process(Child);

impl Process {
    /// Waits until it stands in the middle.
    fn await_stop(&mut self) {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        assert!(lines.any(|line| line.ends_with("STOPS")));
        let deadline = Instant::now() + BOUND;
        let stat = format!("/proc/{}/stat", self.0.id());
        loop {
            let text = std::fs::read_to_string(&stat).unwrap();
            if text.rsplit_once(") ").unwrap().1.starts_with('T') {
                return;
            }
            assert!(Instant::now() < deadline, "it does not stand");
            std::thread::yield_now();
        }
    }

    async fn await_end(&mut self) {
        let deadline = Instant::now() + BOUND;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "process {} goes on", self.0.id());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Files that are taken for those of a group of v1 which is left when this test says so.
struct Fence(PathBuf);

impl Fence {
    fn new(directory: &Path, pid: u32) -> Self {
        std::fs::write(directory.join("freezer.state"), "").unwrap();
        std::fs::write(directory.join("procs"), format!("{pid}\n")).unwrap();
        Self(directory.to_path_buf())
    }

    fn files(&self) -> Vec<File> {
        let open = |name: &str| {
            let mut options = File::options();
            let path = self.0.join(name);
            options.read(true).write(true).open(path).unwrap()
        };
        vec![open("freezer.state"), open("procs")]
    }

    /// The last process of the group is gone.
    fn empty(&self) {
        std::fs::write(self.0.join("procs"), "").unwrap();
    }
}

async fn one_that_stops_leaves_a_director(stops: &str) {
    let mut fronts = Fronts::new();
    let mut old = fronts.start(None);
    for slot in 0..2 {
        fronts.join(slot, None).await;
    }
    fronts.ready().await;
    let mut client = TcpStream::connect(fronts.listen()).await.unwrap();
    let [first, second] = [0, 1].map(|slot: usize| fronts.instances[slot].child.id());
    assert_eq!(answer(&mut client).await, first);
    let mut new = fronts.start(Some(stops));
    new.await_stop();
    fronts.instances[0].signal(Signal::KILL);
    // Until it is gone its socket may take a connection, which goes with it.
    fronts.instances[0].child.wait().unwrap();
    // The old process says who serves again, and nobody else could.
    assert_eq!(fronts.answers().await, second);
    assert!(old.is_running());
    let epochs = File::open(&fronts.plan.epoch_file).unwrap();
    assert!(flock(&epochs, FlockOperation::NonBlockingLockExclusive).is_err());
    let status = fronts
        .until("app-1 serves", |status| status.primary == 1)
        .await;
    assert_eq!(status.about.pid, old.0.id());
    if stops == "asked" {
        assert!(new.is_running(), "it has nothing that anybody needs");
    } else {
        new.await_end().await;
    }
    // The next one takes the place in order.
    drop((new, client));
    let new = fronts.start(None);
    let pid = new.0.id();
    fronts
        .until("the place is taken", |status| status.about.pid == pid)
        .await;
    old.await_end().await;
    assert_eq!(fronts.answers().await, second);
}

#[tokio::test]
async fn a_successor_that_stops_before_it_has_anything_changes_nothing() {
    one_that_stops_leaves_a_director("asked").await;
}

/// The old process waited for ever for the right to say who serves: nobody failed over.
#[tokio::test]
async fn a_successor_that_stops_with_the_right_to_direct_is_ended() {
    one_that_stops_leaves_a_director("locked").await;
}

/// The old process had ended its director before the new one's had begun.
#[tokio::test]
async fn a_successor_that_stops_before_it_directs_is_ended() {
    one_that_stops_leaves_a_director("succeeded").await;
}

/// A process that had given its place up ended while an instance was being ended: its group stood, and so
/// did whoever began in it next.
#[tokio::test]
async fn a_process_that_runs_out_lets_go_whom_it_fenced() {
    let fronts = Fronts::new();
    let mut old = fronts.start(None);
    let fence = Fence::new(fronts.directory.path(), fronts.instances[0].child.id());
    fronts.join(0, Some(&fence)).await;
    fronts.join(1, None).await;
    fronts.ready().await;
    let promoted = fronts.ask(&Request::Promote, &[]).await;
    assert!(matches!(promoted, Answer::Changed(_)), "{promoted:?}");
    let new = fronts.start(None);
    let pid = new.0.id();
    fronts
        .until("the place is taken", |status| status.about.pid == pid)
        .await;
    // It has nobody to serve, and would end within this time.
    let ended = tokio::time::timeout(Duration::from_secs(1), old.await_end()).await;
    assert!(ended.is_err(), "it left its fence");
    fence.empty();
    old.await_end().await;
    // One was written to end those who stood, and one once nobody was left.
    let state = std::fs::read_to_string(fronts.directory.path().join("freezer.state"));
    assert_eq!(state.unwrap(), "FROZENTHAWEDTHAWED");
}

/// What a process could not end was not said by the one after it.
#[tokio::test]
async fn what_could_not_be_ended_is_said_by_the_next_process() {
    let fronts = Fronts::new();
    let mut old = fronts.start(None);
    let first = fronts.instances[0].child.id();
    let fence = Fence::new(fronts.directory.path(), first);
    fronts.join(0, Some(&fence)).await;
    fronts.join(1, None).await;
    fronts.ready().await;
    let promoted = fronts.ask(&Request::Promote, &[]).await;
    assert!(matches!(promoted, Answer::Changed(_)), "{promoted:?}");
    let before = fronts.until("somebody is left", |status| !status.left.is_empty());
    let before = before.await.left;
    assert_eq!((before[0].app.as_str(), before[0].pid), ("app-0", first));
    let new = fronts.start(None);
    let pid = new.0.id();
    let status = fronts.until("the place is taken", |status| status.about.pid == pid);
    assert_eq!(status.await.left, before);
    old.await_end().await;
}

/// A new process said that its primary answered nobody, while the clients of the one before it were served.
#[tokio::test]
async fn what_processes_before_pass_on_is_not_taken_for_nothing() {
    let fronts = Fronts::new();
    let mut old = fronts.start(None);
    for slot in 0..2 {
        fronts.join(slot, None).await;
    }
    fronts.ready().await;
    let mut client = TcpStream::connect(fronts.listen()).await.unwrap();
    answer(&mut client).await;
    let asked = fronts.ask(&Request::Answers, &[]).await;
    assert!(
        matches!(&asked, Answer::Answers { answers, .. } if answers.count() > 0),
        "{asked:?}"
    );
    let new = fronts.start(None);
    let pid = new.0.id();
    fronts
        .until("the place is taken", |status| status.about.pid == pid)
        .await;
    answer(&mut client).await;
    let asked = fronts.ask(&Request::Answers, &[]).await;
    assert!(matches!(asked, Answer::Refused(_)), "{asked:?}");
    drop(client);
    old.await_end().await;
    let deadline = Instant::now() + BOUND;
    while !matches!(
        fronts.ask(&Request::Answers, &[]).await,
        Answer::Answers { .. }
    ) {
        assert!(Instant::now() < deadline, "the old process has ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
