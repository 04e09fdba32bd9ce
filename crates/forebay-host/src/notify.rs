//! Telling systemd how this service stands: sd_notify(3).
//!
//! `NOTIFY_SOCKET` says where, `WATCHDOG_USEC` how often it wants to hear that all is well, and
//! `WATCHDOG_PID` from whom. They are taken once and go, so that no child speaks in this one's name.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::HostError;

const SOCKET: &str = "NOTIFY_SOCKET";
const INTERVAL: &str = "WATCHDOG_USEC";
const PID: &str = "WATCHDOG_PID";
/// Said so many times within the interval, as sd_watchdog_enabled(3) advises and once more.
const BEATS: u32 = 4;
const REMEDY: &str = "start this by systemd, or unset NOTIFY_SOCKET";

/// systemd, as who started this service.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    /// How often to say that all is well, and when that was said last.
    beat: Option<(Duration, Option<Instant>)>,
}

impl Notifier {
    /// What the environment names; nothing where this was not started by systemd.
    ///
    /// Call it once, while there is one thread.
    ///
    /// # Errors
    /// When the socket cannot be connected to.
    #[expect(unsafe_code, reason = "the environment is raw")]
    pub fn take() -> Result<Option<Self>, HostError> {
        let [socket, interval, pid] = [SOCKET, INTERVAL, PID].map(std::env::var_os);
        for name in [SOCKET, INTERVAL, PID] {
            // SAFETY: this process has one thread, so nobody reads the environment meanwhile. There is
            // no safe way: each program that is started would have to be kept from inheriting it.
            unsafe { std::env::remove_var(name) }
        }
        let Some(socket) = socket.map(OsStringExt::into_vec) else {
            return Ok(None);
        };
        let number = |text: Option<std::ffi::OsString>| text?.to_str()?.parse::<u64>().ok();
        let is_asked = number(pid).is_none_or(|pid| pid == u64::from(std::process::id()));
        let interval = number(interval).filter(|_| is_asked);
        let connected = Self::connect(&socket, interval.map(Duration::from_micros));
        connected.map(Some).map_err(|error| {
            let name = String::from_utf8_lossy(&socket);
            HostError::io(format!("connect to {SOCKET}={name}"), error).advise(REMEDY)
        })
    }

    /// A name that begins with @ is one without a file.
    fn connect(name: &[u8], watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            path => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(path)))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // Who does not listen must not hold this up.
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            beat: watchdog.map(|interval| (interval / BEATS, None)),
        })
    }

    /// It answers, and does what it is there for.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// It begins to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// All is well; passed on as often as systemd wants to hear it.
    pub fn well(&mut self, now: Instant) {
        let Some((every, last)) = &mut self.beat else {
            return;
        };
        if last.is_some_and(|last| now.saturating_duration_since(last) < *every) {
            return;
        }
        *last = Some(now);
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, text: &str) {
        if let Err(error) = self.socket.send(text.as_bytes()) {
            tracing::warn!(%error, text, "not told to systemd");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn it_is_said_as_often_as_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let name = path.as_os_str().as_bytes();
        let mut notifier = Notifier::connect(name, Some(Duration::from_secs(8))).unwrap();
        notifier.ready();
        assert_eq!(heard(&systemd).as_deref(), Some("READY=1"));
        let start = Instant::now();
        let mut said = Vec::new();
        for tenth in 0..=40 {
            notifier.well(start + Duration::from_millis(100 * tenth));
            said.extend(heard(&systemd).map(|text| (tenth, text)));
        }
        let beat = |tenth| (tenth, "WATCHDOG=1".to_owned());
        assert_eq!(said, [beat(0), beat(20), beat(40)]);
        notifier.stopping();
        assert_eq!(heard(&systemd).as_deref(), Some("STOPPING=1"));
    }

    #[test]
    fn without_a_watchdog_nothing_is_said_and_nobody_holds_it_up() {
        let name = format!("forebay-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let mut notifier = Notifier::connect(format!("@{name}").as_bytes(), None).unwrap();
        notifier.well(Instant::now());
        assert_eq!(heard(&systemd), None);
        // More than its queue takes: what does not fit is left out.
        for _ in 0..10_000 {
            notifier.ready();
        }
        assert_eq!(heard(&systemd).as_deref(), Some("READY=1"));
    }
}
