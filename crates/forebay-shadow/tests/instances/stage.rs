//! A front with two instances behind it, and its clients.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_shadow::control::{Answer, Counts, Line, Request};
use forebay_shadow::fence::Hierarchy;
use forebay_shadow::front::{self, Plan};
use forebay_shadow::http::Options;
use forebay_shadow::mode::Mode;
use forebay_shadow::proxy;
use forebay_shadow::status::Status;
use forebay_shadow::stream::Address;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{BOUND, Instance, descriptors};

/// A front in a thread of its own, with two instances behind it.
pub(crate) struct Stage {
    pub(crate) front: SocketAddr,
    pub(crate) control: PathBuf,
    pub(crate) instances: Vec<Instance>,
    pub(crate) groups: Vec<Option<PathBuf>>,
    pub(crate) directory: tempfile::TempDir,
}

impl Stage {
    /// With two instances, each behind a fence of its own if there is a place for groups.
    pub(crate) async fn new(patience: Duration, groups: Option<&Path>) -> Self {
        let stage = Self::unjoined(patience, groups).await;
        for slot in 0..2 {
            stage.join(slot).await;
        }
        stage
    }

    /// With two instances of whose processes the front is not told.
    pub(crate) async fn unjoined(patience: Duration, groups: Option<&Path>) -> Self {
        let options = Options {
            forwarded_for: true,
            ..Options::default()
        };
        Self::with(patience, groups, options).await
    }

    pub(crate) async fn with(patience: Duration, groups: Option<&Path>, options: Options) -> Self {
        let proxy = proxy::Options::default();
        Self::of(patience, groups, Mode::Http(options), proxy).await
    }

    /// With instances that nobody joined, behind a front of any mode.
    pub(crate) async fn of(
        patience: Duration,
        groups: Option<&Path>,
        mode: Mode,
        proxy: proxy::Options,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let name =
            |slot: usize| groups.map(|path| PathBuf::from(format!("{}-{slot}", path.display())));
        let groups: Vec<_> = (0..2).map(name).collect();
        let start = |slot: usize| Instance::start("127.0.0.1:0", &record, groups[slot].clone());
        let instances: Vec<_> = (0..2).map(start).collect();
        // Nobody else takes a port that was just given up: ports are handed out in turn.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let front = free.local_addr().unwrap();
        drop(free);
        let control = directory.path().join("control");
        let described = instances.iter().enumerate();
        let plan = Plan {
            name: "test".to_owned(),
            mode,
            listen: vec![Address::Tcp(front).into()],
            instances: described
                .map(|(slot, instance)| forebay_shadow::switchboard::Instance {
                    app: format!("app-{slot}"),
                    address: Address::Tcp(instance.address),
                    elsewhere: None,
                })
                .collect(),
            connections_max: 1000,
            user: String::new(),
            patience,
            grace: Duration::ZERO,
            drain: Duration::ZERO,
            proxy,
            control: control.clone(),
            epoch_file: directory.path().join("epoch"),
            lender: None,
        };
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime
                .block_on(async { front::open(plan).await.unwrap().serve().await })
                .unwrap();
        });
        let stage = Self {
            front,
            control,
            instances,
            groups,
            directory,
        };
        stage
            .until(|status| status.stage == "warm" && status.standby.is_some())
            .await;
        stage
    }

    pub(crate) async fn ask(&self, request: &Request, files: &[std::fs::File]) -> Answer {
        let deadline = Instant::now() + BOUND;
        loop {
            let conversation = async {
                let mut line = Line::connect(&self.control).await?;
                line.ask(request, &descriptors(files)).await
            };
            match conversation.await {
                Ok(answer) => return answer,
                // The front has not begun yet.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn join(&self, slot: usize) {
        let instance = &self.instances[slot];
        let files = instance.fence();
        let fence = (!files.is_empty()).then_some(Hierarchy::V2);
        let request = Request::Joined {
            app: format!("app-{slot}"),
            pid: instance.child.id(),
            fence,
        };
        assert_eq!(self.ask(&request, &files).await, Answer::Done);
    }

    pub(crate) async fn until(&self, is: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + BOUND;
        let mut known = None;
        loop {
            let Answer::Status(status) = self.ask(&Request::Status { known }, &[]).await else {
                panic!("no status");
            };
            if is(&status) {
                return *status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            known = Some(status);
        }
    }

    pub(crate) async fn status(&self) -> Status {
        self.until(|_| true).await
    }

    pub(crate) async fn counts(&self) -> Counts {
        match self.ask(&Request::Counters, &[]).await {
            Answer::Counters(counts) => counts,
            other => panic!("{other:?}"),
        }
    }

    /// Starts an instance anew at its old address, and waits until it stands by.
    pub(crate) async fn restart(&mut self, slot: usize) {
        let address = self.instances[slot].address.to_string();
        let group = self.groups[slot].clone();
        self.instances.remove(slot);
        let record = self.directory.path().join("record");
        self.instances
            .insert(slot, Instance::start(&address, &record, group));
        self.join(slot).await;
        self.until(|status| status.stage == "warm" && status.standby == Some(slot))
            .await;
    }

    /// How often each request was executed.
    pub(crate) fn executed(&self) -> BTreeMap<String, usize> {
        let record = std::fs::read_to_string(self.directory.path().join("record")).unwrap();
        let mut times = BTreeMap::new();
        for line in record.lines() {
            let (_, id) = line.split_once(' ').unwrap();
            *times.entry(id.to_owned()).or_default() += 1;
        }
        times
    }

    pub(crate) async fn executed_once(&self, id: &str) {
        let deadline = Instant::now() + BOUND;
        while self.executed().get(id) != Some(&1) {
            assert!(Instant::now() < deadline, "{id} was not executed");
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.front).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client {
            stream,
            buffer: Vec::new(),
        }
    }
}

/// A client of few words.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
    pub(crate) buffer: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn more(&mut self) -> io::Result<usize> {
        let read = self.stream.read_buf(&mut self.buffer);
        tokio::time::timeout(BOUND, read)
            .await
            .expect("an answer in time")
    }

    pub(crate) async fn head(&mut self) -> io::Result<String> {
        loop {
            let end = self
                .buffer
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Ok(String::from_utf8(head).unwrap());
            }
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub(crate) async fn reply(&mut self, bodiless: bool) -> io::Result<Reply> {
        let head = self.head().await?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let field = |name: &str| {
            let mut lines = head.lines();
            let line = lines.find(|line| line.to_lowercase().starts_with(name))?;
            line.split_once(": ").map(|(_, value)| value.to_owned())
        };
        let length = field("content-length").map(|length| length.parse().unwrap());
        let whole = |buffer: &[u8]| match length {
            _ if bodiless || status == 204 || status < 200 => Some(0),
            Some(length) => (buffer.len() >= length).then_some(length),
            None if field("transfer-encoding").is_some() => {
                let end = buffer.windows(5).position(|bytes| bytes == b"0\r\n\r\n");
                end.map(|end| end + 5)
            }
            None => None,
        };
        loop {
            if let Some(length) = whole(&self.buffer) {
                let body = self.buffer.drain(..length).collect();
                return Ok(Reply { status, head, body });
            }
            if self.more().await? == 0 {
                if length.is_none() && field("transfer-encoding").is_none() {
                    let body = std::mem::take(&mut self.buffer);
                    return Ok(Reply { status, head, body });
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        id: &str,
        body: &str,
    ) -> io::Result<Reply> {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nX-Id: {id}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await?;
        self.reply(method == "HEAD").await
    }
}

impl Stage {
    /// Starts an instance anew when nobody serves.
    pub(crate) async fn restart_alone(&mut self, slot: usize) {
        let address = self.instances[slot].address.to_string();
        self.instances.remove(slot);
        let record = self.directory.path().join("record");
        self.instances
            .insert(slot, Instance::start(&address, &record, None));
        self.join(slot).await;
        self.until(|status| status.stage == "warm" && status.primary == slot)
            .await;
    }
}
