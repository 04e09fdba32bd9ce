//! A dashboard, and who follows its stream as a page does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::demo::Error;

/// How often the page is told, at most.
const EVERY_MS: u64 = 100;
/// The first line of each message.
const MESSAGE: &[u8] = b"event: tick";

/// What all followers heard so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<[AtomicU64; 2]>);

impl Heard {
    pub(super) fn messages(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }
}

/// A dashboard beside the daemon of a directory.
#[derive(Debug)]
pub(super) struct Dashboard {
    child: Child,
    /// What a browser opens.
    pub(super) address: String,
}

impl Dashboard {
    pub(super) fn start(dir: &Path) -> Result<Self, Error> {
        let child = Command::new("/proc/self/exe")
            .args(["dashboard", "--listen", "127.0.0.1:0", "--socket"])
            .arg(dir.join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::system(
                "start",
                "the dashboard",
                "check memory and process limits",
            ))?;
        let mut dashboard = Self {
            child,
            address: String::new(),
        };
        if let Err(error) = dashboard.read_address() {
            dashboard.end()?;
            return Err(error);
        }
        Ok(dashboard)
    }

    fn read_address(&mut self) -> Result<(), Error> {
        let told = self.child.stdout.take();
        let told = told.ok_or_else(|| broken("it has no output"))?;
        let mut line = String::new();
        BufReader::new(told).read_line(&mut line).map_err(broken)?;
        line.trim().clone_into(&mut self.address);
        Ok(())
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Follows the stream until the dashboard ends.
    pub(super) fn follow(&self, heard: &Heard) -> Result<(), Error> {
        let address = self.address.strip_prefix("http://");
        let (place, token) = address
            .and_then(|address| address.split_once("/#token="))
            .ok_or_else(|| broken(format!("it said `{}` instead of its address", self.address)))?;
        let mut stream = TcpStream::connect(place).map_err(broken)?;
        write!(
            stream,
            "GET /v1/stream?every_ms={EVERY_MS} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n"
        )
        .map_err(broken)?;
        let heard = heard.clone();
        std::thread::spawn(move || count(stream, &heard));
        Ok(())
    }

    pub(super) fn end(mut self) -> Result<(), Error> {
        crate::demo::terminate(&mut self.child, "the dashboard")
    }
}

fn broken(why: impl ToString) -> Error {
    Error::part("the dashboard", why)
}

/// Counts messages until the stream ends.
fn count(stream: TcpStream, heard: &Heard) {
    let [messages, bytes] = &*heard.0;
    let mut stream = BufReader::with_capacity(1 << 18, stream);
    let mut line = Vec::new();
    while let Ok(read @ 1..) = stream.read_until(b'\n', &mut line) {
        messages.fetch_add(u64::from(line.starts_with(MESSAGE)), Ordering::Relaxed);
        bytes.fetch_add(read as u64, Ordering::Relaxed);
        line.clear();
    }
}
