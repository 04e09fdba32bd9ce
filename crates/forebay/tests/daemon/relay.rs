//! A link between two agents that is as slow as a test wants, and can be cut.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fronts::free_port;

/// Bytes that are passed on at once.
const PIECE: usize = 16 << 10;

#[derive(Debug)]
struct Shared {
    to: u16,
    speed: u64,
    is_cut: AtomicBool,
    is_over: AtomicBool,
    /// Until when what was passed on takes.
    busy: Mutex<Instant>,
    passes: Mutex<Vec<TcpStream>>,
}

/// The way to one agent.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// Passes so many bytes on in a second, both ways and for all together, to a port where nobody listens yet.
    pub(crate) fn start(speed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            to: free_port(),
            speed,
            is_cut: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            busy: Mutex::new(Instant::now()),
            passes: Mutex::default(),
        });
        let its = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if its.is_over.load(Ordering::Relaxed) {
                    return;
                }
                // Whoever comes while it is cut finds nobody.
                if !its.is_cut.load(Ordering::Relaxed) {
                    its.begin(stream);
                }
            }
        });
        Self { address, shared }
    }

    /// What its agent is told of it, in `[fleet.link]`.
    pub(crate) fn configuration(&self) -> String {
        format!("address = \"{}\"\n", self.address)
    }

    /// Where the agent has to listen.
    pub(crate) fn leads_to(&self) -> u16 {
        self.shared.to
    }

    /// Ends all connections, and lets none be until it is mended.
    pub(crate) fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::Relaxed);
        for stream in self.shared.passes.lock().unwrap().drain(..) {
            // It may have ended.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    pub(crate) fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.cut();
        // Its thread looks.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn begin(self: &Arc<Self>, here: TcpStream) {
        let Ok(there) = TcpStream::connect(("127.0.0.1", self.to)) else {
            return;
        };
        let ends = [&here, &there].map(|end| {
            end.set_nodelay(true).unwrap();
            end.try_clone().unwrap()
        });
        self.passes.lock().unwrap().extend(ends);
        let back = (there.try_clone().unwrap(), here.try_clone().unwrap());
        for (from, to) in [(here, there), back] {
            let own = Arc::clone(self);
            std::thread::spawn(move || own.pass(from, to));
        }
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = [0; PIECE];
        loop {
            let length = match from.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            self.take_time(length);
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        for end in [from, to] {
            // The other side may have ended it.
            end.shutdown(Shutdown::Both).ok();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a time to wait")]
    fn take_time(&self, bytes: usize) {
        let speed = self.speed as f64;
        let takes = Duration::from_secs_f64(bytes as f64 / speed);
        let until = {
            let mut busy = self.busy.lock().unwrap();
            *busy = (*busy).max(Instant::now()) + takes;
            *busy
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}
