//! Byte streams over RDMA: rsockets of librdmacm.
//!
//! An rsocket is what a TCP socket is, a stream of bytes to an IP address and a port, carried by the network
//! card without the kernel's TCP between. The library is loaded when it is first asked for: one program runs on
//! hosts with RDMA and without, and says which of both it is on ([`find`]).
//!
//! Everything here blocks, for [`SLICE`] at a time; between two slices whoever calls is asked whether to go on.
//! An rsocket is not one of the kernel's files: it is not polled with others, and belongs on a thread.

mod library;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use library::{Calls, Event};

/// How long it is waited at most before whoever waits is asked whether to go on.
pub const SLICE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// The devices of this host that can be used now, in the order of their names: at least one.
///
/// # Errors
/// The library cannot be loaded, there is no device, or no port of one is up: which, and what to do.
pub fn find(sys: &Path) -> Result<Vec<String>, String> {
    library::calls()?;
    let directory = sys.join("class/infiniband");
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        return Err(format!(
            "there is no device in {}; load the driver of the network card",
            directory.display()
        ));
    }
    let (up, down): (Vec<String>, Vec<String>) = names
        .into_iter()
        .partition(|name| is_up(&directory.join(name)));
    match up.is_empty() {
        false => Ok(up),
        true => Err(format!(
            "no port of {} is active; look at the cable and the network device",
            down.join(", ")
        )),
    }
}

/// Whether a port of a device is active: its `state` is `4: ACTIVE`.
fn is_up(device: &Path) -> bool {
    let ports = fs::read_dir(device.join("ports"))
        .into_iter()
        .flatten()
        .flatten();
    let mut states = ports.filter_map(|port| fs::read_to_string(port.path().join("state")).ok());
    states.any(|state| state.starts_with("4:"))
}

/// Asked between two slices; an error ends what waits, with that error.
pub type GoOn<'a> = &'a dyn Fn() -> io::Result<()>;

/// A connection.
pub struct Socket {
    own: Own,
}

/// A socket that waits for connections.
pub struct Listener {
    own: Own,
    address: SocketAddr,
}

/// An rsocket that is closed when this goes.
struct Own {
    number: i32,
    calls: &'static Calls,
}

impl Drop for Own {
    /// What was sent is on its way before this returns, as far as the other side is there.
    fn drop(&mut self) {
        self.calls.close(self.number);
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("number", &self.own.number)
            .finish()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn new(address: SocketAddr) -> io::Result<Own> {
    let calls = library::calls().map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why))?;
    let number = calls.socket(address)?;
    let own = Own { number, calls };
    calls.set_nonblocking(number)?;
    Ok(own)
}

impl Own {
    /// Waits until it can be read from, or written to.
    fn wait(&self, event: Event, go_on: GoOn<'_>) -> io::Result<()> {
        loop {
            go_on()?;
            if self.calls.poll(self.number, event, SLICE)? {
                return Ok(());
            }
        }
    }
}

impl Socket {
    /// Connects to where somebody listens.
    ///
    /// # Errors
    /// The library or a device is not there, no device leads there, nobody listens, or `go_on` says so.
    pub fn connect(to: SocketAddr, go_on: GoOn<'_>) -> io::Result<Self> {
        let own = new(to)?;
        match own.calls.connect(own.number, to) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                own.wait(Event::Writable, go_on)?;
                own.calls.trouble(own.number)?;
            }
            Err(error) => return Err(error),
        }
        Ok(Self { own })
    }

    /// What comes next: at least one byte, or none at the end.
    ///
    /// # Errors
    /// The connection is broken, or `go_on` says so.
    pub fn receive(&self, into: &mut [u8], go_on: GoOn<'_>) -> io::Result<usize> {
        loop {
            match self.own.calls.receive(self.own.number, into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.own.wait(Event::Readable, go_on)?;
                }
                received => return received,
            }
        }
    }

    /// Sends some of it; how many bytes.
    ///
    /// # Errors
    /// The connection is broken, or `go_on` says so.
    pub fn send(&self, bytes: &[u8], go_on: GoOn<'_>) -> io::Result<usize> {
        loop {
            match self.own.calls.send(self.own.number, bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.own.wait(Event::Writable, go_on)?;
                }
                sent => return sent,
            }
        }
    }
}

impl Listener {
    /// Listens; port 0 is one that is free.
    ///
    /// # Errors
    /// The library or a device is not there, or the address is not one of a device.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let own = new(address)?;
        own.calls.bind(own.number, address)?;
        own.calls.listen(own.number, BACKLOG)?;
        let address = own.calls.address(own.number)?;
        Ok(Self { own, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection, and where it comes from. A thread of the library takes them in: it is looked whether
    /// it has, once in each [`SLICE`] and when this thread is unparked.
    ///
    /// # Errors
    /// None can be accepted any more, or `go_on` says so.
    pub fn accept(&self, go_on: GoOn<'_>) -> io::Result<(Socket, SocketAddr)> {
        loop {
            match self.own.calls.accept(self.own.number) {
                Ok((number, from)) => {
                    let calls = self.own.calls;
                    let own = Own { number, calls };
                    calls.set_nonblocking(number)?;
                    return Ok((Socket { own }, from));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    go_on()?;
                    std::thread::park_timeout(SLICE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_counts_where_a_port_of_it_is_active() {
        if library::calls().is_err() {
            println!("SKIPPED: a device counts where a port is active: no librdmacm.so.1");
            return;
        }
        let sys = tempfile::tempdir().unwrap();
        let error = find(sys.path()).unwrap_err();
        assert!(error.contains("there is no device"), "{error}");
        let port = |device: &str, state: &str| {
            let port = sys
                .path()
                .join(format!("class/infiniband/{device}/ports/1"));
            fs::create_dir_all(&port).unwrap();
            fs::write(port.join("state"), state).unwrap();
        };
        port("b0", "1: DOWN\n");
        let error = find(sys.path()).unwrap_err();
        assert!(error.contains("no port of b0 is active"), "{error}");
        port("a0", "4: ACTIVE\n");
        port("c0", "4: ACTIVE\n");
        assert_eq!(find(sys.path()).unwrap(), ["a0", "c0"]);
    }
}
