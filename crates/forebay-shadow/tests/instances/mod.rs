//! Real instances for tests of fronts: processes of this test's own binary, which write down what
//! they execute.

pub(crate) mod stage;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

const ADDRESS: &str = "FOREBAY_TEST_INSTANCE_ADDRESS";
const RECORD: &str = "FOREBAY_TEST_INSTANCE_RECORD";

/// A process that serves HTTP; it ends with this value.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    group: Option<PathBuf>,
    /// It is a test for its harness, which says after a minute that it goes on, and ends it where
    /// nobody can hear that.
    _words: BufReader<ChildStdout>,
}

impl Instance {
    /// Starts one at an address, inside a group if there is one.
    pub(crate) fn start(address: &str, record: &Path, group: Option<PathBuf>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "instance", "--ignored", "--nocapture"])
            .env(ADDRESS, address)
            .env(RECORD, record)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut words = BufReader::new(child.stdout.take().unwrap());
        let address = words
            .by_ref()
            .lines()
            .map(Result::unwrap)
            .find_map(|line| {
                line.split_once("LISTENING ")
                    .map(|(_, at)| at.parse().unwrap())
            })
            .unwrap();
        if let Some(group) = &group {
            std::fs::create_dir_all(group).unwrap();
            std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        Self {
            child,
            address,
            group,
            _words: words,
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        // The first thread that runs stops the others, which may answer somebody until then.
        let deadline = Instant::now() + BOUND;
        while signal == rustix::process::Signal::STOP && !self.stands() {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::yield_now();
        }
    }

    /// All its threads are stopped, or it was ended already.
    fn stands(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        tasks.into_iter().flatten().flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with(['T', 'Z', 'X']));
            state.unwrap_or(true)
        })
    }

    /// The files of its fence, in the order in which they are handed over.
    pub(crate) fn fence(&self) -> Vec<File> {
        let Some(group) = &self.group else {
            return Vec::new();
        };
        let open = |name: &str, write: bool| {
            let mut options = OpenOptions::new();
            options.read(name != "cgroup.kill").write(write);
            options.open(group.join(name)).unwrap()
        };
        vec![
            open("cgroup.freeze", true),
            open("cgroup.events", false),
            open("cgroup.procs", false),
            open("cgroup.kill", true),
        ]
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // It may be gone already.
        self.child.kill().ok();
        if let Some(group) = &self.group {
            std::fs::write(group.join("cgroup.freeze"), "0").ok();
            self.child.wait().ok();
            let deadline = Instant::now() + BOUND;
            while std::fs::remove_dir(group).is_err() && group.exists() {
                assert!(Instant::now() < deadline, "{} stays", group.display());
                std::thread::yield_now();
            }
        } else {
            self.child.wait().ok();
        }
    }
}

/// A place for groups that can be stopped; none, with a word, where that is impossible.
pub(crate) fn groups(test: &str) -> Option<PathBuf> {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .map(Path::new)
        .find(|root| root.join("cgroup.controllers").exists());
    let Some(root) = root else {
        println!("SKIPPED: {test}: there is no unified hierarchy");
        return None;
    };
    let group = root.join(format!("forebay-shadow-test-{}-{test}", std::process::id()));
    let made = std::fs::create_dir(&group);
    let able = made.is_ok() && group.join("cgroup.kill").exists();
    if made.is_ok() {
        std::fs::remove_dir(&group).unwrap();
    }
    if !able {
        println!("SKIPPED: {test}: no group that can be killed can be made here");
        return None;
    }
    Some(group)
}

/// The instance's own main function, when this process is one.
pub(crate) fn serve_as_instance() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    let record = OpenOptions::new()
        .append(true)
        .create(true)
        .open(std::env::var(RECORD).unwrap())
        .unwrap();
    let listener = TcpListener::bind(&address).unwrap();
    println!("\nLISTENING {}", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        let record = record.try_clone().unwrap();
        std::thread::spawn(move || answer_all(stream.unwrap(), record).ok());
    }
}

/// Answers requests until the connection ends.
fn answer_all(stream: TcpStream, mut record: File) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let field = |name: &str| {
            let line = head
                .lines()
                .find(|line| line.to_lowercase().starts_with(name))?;
            Some(line.split_once(": ")?.1.to_owned())
        };
        let path = head.split(' ').nth(1).unwrap().to_owned();
        if path == "/early" {
            writer.write_all(
                b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch",
            )?;
            return Ok(());
        }
        if field("expect").is_some() {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        let mut trailer = String::new();
        if let Some(length) = field("content-length") {
            body.resize(length.parse().unwrap(), 0);
            reader.read_exact(&mut body)?;
        } else if field("transfer-encoding").is_some() {
            body = chunks(&mut reader, &mut trailer)?;
        }
        // One write, so that lines of different threads do not mix.
        let id = field("x-id").unwrap_or_default();
        record.write_all(format!("{} {id}\n", std::process::id()).as_bytes())?;
        let bodiless = head.starts_with("HEAD ");
        match path.as_str() {
            "/hang" => {
                let end = reader.read_line(&mut head);
                let line = format!("{} {id}-ended\n", std::process::id());
                record.write_all(line.as_bytes())?;
                return end.map(drop);
            }
            "/trailers" => {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\n{trailer}x-sum: 4\r\n\r\n"
                );
                writer.write_all(answer.as_bytes())?;
            }
            "/stream" => {
                writer.write_all(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                )?;
                reader.read_line(&mut head)?;
                return Ok(());
            }
            "/half" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")?;
                reader.read_line(&mut head)?;
                return Ok(());
            }
            "/rude" => return Ok(()),
            "/rude-shadow" if head.contains("forebay-mirror: 1") => return Ok(()),
            "/garbage" => {
                writer.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
                )?;
            }
            "/until-close" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")?;
                return Ok(());
            }
            "/chunked" => {
                writer.write_all(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n",
                )?;
            }
            "/socket" => {
                writer.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
                )?;
                let mut byte = [0; 1024];
                loop {
                    let length = reader.read(&mut byte)?;
                    if length == 0 {
                        return Ok(());
                    }
                    writer.write_all(&byte[..length])?;
                }
            }
            "/none" => writer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?,
            _ => {
                if path.starts_with("/pid") {
                    body = std::process::id().to_string().into_bytes();
                } else if path == "/head" {
                    body = head.clone().into_bytes();
                } else if let Some(length) = path.strip_prefix("/large/") {
                    body = (0..length.parse().unwrap()).map(pattern).collect();
                }
                let mut answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                if path == "/pieces" {
                    // Head and body apart, as many services write them.
                    writer.write_all(answer.as_bytes())?;
                    answer.clear();
                }
                let mut answer = answer.into_bytes();
                if !bodiless {
                    answer.extend(body);
                }
                writer.write_all(&answer)?;
            }
        }
    }
}

/// A byte of a large body.
pub(crate) fn pattern(place: usize) -> u8 {
    u8::try_from(place * 7 % 251).unwrap()
}

fn chunks(reader: &mut impl BufRead, trailer: &mut String) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            loop {
                let mut field = String::new();
                reader.read_line(&mut field)?;
                if field.trim().is_empty() {
                    return Ok(body);
                }
                trailer.push_str(&field);
            }
        }
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        body.extend(&chunk[..size]);
    }
}

/// Descriptors of files.
pub(crate) fn descriptors(files: &[File]) -> Vec<std::os::fd::BorrowedFd<'_>> {
    files.iter().map(AsFd::as_fd).collect()
}
