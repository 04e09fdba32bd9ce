//! What Docker says at its socket, for the troubles that no real one makes when a test wants them:
//! one container, whose limits are carried out on a control group.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use forebay_host::mounts::{Controller, Hierarchies, Version};
use serde_json::{Value, json};

use crate::kernel::{Knob, knob_in};

/// The most that is sent of an answer without an end, in MiB.
const ENDLESS_MIB_MAX: usize = 64;

/// How a kind of question is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Never.
    Silent,
    /// By a status and a message.
    Refuses(u16, String),
    /// By these bytes and no others.
    Says(&'static str),
    /// By a JSON without an end.
    Endless,
    /// The container is gone by the time that it is asked for.
    Vanishes,
    /// Well, and then nobody finds the socket any more.
    Leaves,
}

/// What the runtime knows.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// The container's group, relative to the hierarchies' roots.
    group: String,
    /// What it was told.
    pub(crate) config: Value,
    /// How GET /version is answered.
    pub(crate) version: Manner,
    pub(crate) inspect: Manner,
    pub(crate) update: Manner,
    /// Bodies of the updates that were carried out.
    pub(crate) updates: Vec<Value>,
    is_gone: bool,
    /// MiB of endless answers that were taken.
    pub(crate) endless_mib: usize,
    /// Questions that get no answer.
    unanswered: Vec<UnixStream>,
    hierarchies: Hierarchies,
}

#[derive(Debug)]
pub(crate) struct Imitation {
    pub(crate) socket: PathBuf,
    known: Arc<Mutex<Known>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Imitation {
    /// Listens at a socket of its own; the container `name` is the process `pid` in the group `group`.
    pub(crate) fn new(name: &str, id: &str, pid: u32, group: &str) -> Self {
        let known = Known {
            id: id.to_owned(),
            name: name.to_owned(),
            pid,
            group: group.to_owned(),
            config: json!({}),
            version: Manner::Well,
            inspect: Manner::Well,
            update: Manner::Well,
            updates: Vec::new(),
            is_gone: false,
            endless_mib: 0,
            unanswered: Vec::new(),
            hierarchies: Hierarchies::read(Path::new("/proc")).unwrap(),
        };
        let dir = tempfile::tempdir().unwrap();
        let mut imitation = Self {
            socket: dir.path().join("socket"),
            known: Arc::new(Mutex::new(known)),
            stopping: Arc::new(AtomicBool::new(false)),
            thread: None,
            _dir: dir,
        };
        imitation.listen();
        imitation
    }

    fn listen(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (known, socket) = (Arc::clone(&self.known), self.socket.clone());
        self.stopping.store(false, Ordering::Release);
        let stopping = Arc::clone(&self.stopping);
        self.thread = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::Acquire) {
                    break;
                }
                // Whoever asked may be gone by now, such as a daemon that was killed.
                if let Err(error) = answer(stream.unwrap(), &known, &socket) {
                    println!("imitated runtime: {error}");
                }
            }
        }));
    }

    /// Listens again after [`Manner::Leaves`].
    pub(crate) fn come_back(&mut self) {
        self.end();
        self.listen();
    }

    fn end(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if !self.socket.exists() {
            fs::rename(left(&self.socket), &self.socket).unwrap();
        }
        UnixStream::connect(&self.socket).unwrap();
        self.thread.take().unwrap().join().unwrap();
        fs::remove_file(&self.socket).unwrap();
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

impl Drop for Imitation {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where a socket is that nobody finds.
fn left(socket: &Path) -> PathBuf {
    socket.with_extension("left")
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Method, path and body of a request.
fn question(stream: &UnixStream) -> io::Result<(String, String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = first.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok((method, path, body))
}

fn answer(mut stream: UnixStream, known: &Mutex<Known>, socket: &Path) -> io::Result<()> {
    let (method, path, body) = question(&stream)?;
    let mut known = lock(known);
    let known = &mut *known;
    let is_update = method == "POST";
    let manner = match path.as_str() {
        "/version" => &known.version,
        _ if is_update => &known.update,
        _ => &known.inspect,
    };
    match manner.clone() {
        Manner::Well => {
            let (status, text) = known.well(&path, is_update, &body);
            send(&mut stream, status, &text)
        }
        Manner::Silent => {
            known.unanswered.push(stream);
            Ok(())
        }
        Manner::Refuses(status, message) => {
            send(&mut stream, status, &json!({ "message": message }))
        }
        Manner::Says(text) => stream.write_all(text.as_bytes()),
        Manner::Endless => {
            known.endless_mib = endless(&mut stream)?;
            Ok(())
        }
        Manner::Vanishes => {
            known.is_gone = true;
            let (status, text) = known.well(&path, is_update, &body);
            send(&mut stream, status, &text)
        }
        Manner::Leaves => {
            fs::rename(socket, left(socket))?;
            let (status, text) = known.well(&path, is_update, &body);
            send(&mut stream, status, &text)
        }
    }
}

fn send(stream: &mut UnixStream, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// How many MiB were taken before the other side had enough.
fn endless(stream: &mut UnixStream) -> io::Result<usize> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n[")?;
    let mib = vec![b' '; 1 << 20];
    for sent in 0..ENDLESS_MIB_MAX {
        if stream.write_all(&mib).is_err() {
            return Ok(sent);
        }
    }
    Ok(ENDLESS_MIB_MAX)
}

impl Known {
    fn well(&mut self, path: &str, is_update: bool, body: &Value) -> (u16, Value) {
        if path == "/version" {
            return (200, json!({ "Version": "20.10.24", "ApiVersion": "1.41" }));
        }
        let asked = path.trim_start_matches("/containers/");
        let asked = asked.split('/').next().unwrap();
        if self.is_gone || (asked != self.id && asked != self.name) {
            let message = format!("No such container: {asked}");
            return (404, json!({ "message": message }));
        }
        if is_update {
            for (key, value) in body.as_object().unwrap() {
                self.carry_out(key, value);
                self.config[key] = value.clone();
            }
            self.updates.push(body.clone());
            return (200, json!({ "Warnings": null }));
        }
        let inspected = json!({
            "Id": self.id,
            "Name": format!("/{}", self.name),
            "State": { "Running": true, "Pid": self.pid },
            "HostConfig": self.config,
        });
        (200, inspected)
    }

    fn carry_out(&self, key: &str, value: &Value) {
        let version = |controller| {
            let (_, hierarchy) = self.hierarchies.of(controller).unwrap();
            hierarchy.version
        };
        let number = value.as_i64().unwrap_or_default();
        let v2 = version(Controller::Cpu) == Version::V2;
        let (knob, text) = match key {
            "CpuShares" if v2 => (
                Knob::Weight,
                (1 + (number - 2) * 9_999 / 262_142).to_string(),
            ),
            "CpuShares" => (Knob::Weight, number.to_string()),
            "CpuQuota" if v2 && number < 0 => (Knob::Quota, "max".to_owned()),
            "CpuQuota" => (Knob::Quota, number.to_string()),
            "Memory" => (Knob::MemoryMax, number.to_string()),
            "PidsLimit" if number <= 0 => (Knob::PidsMax, "max".to_owned()),
            "PidsLimit" => (Knob::PidsMax, number.to_string()),
            _ => return,
        };
        fs::write(knob_in(&self.hierarchies, &self.group, knob), text).unwrap();
    }
}
