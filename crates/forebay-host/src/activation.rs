//! Listening sockets that systemd opened and passes to this process: sd_listen_fds(3).
//!
//! `LISTEN_PID` says whom they are for, `LISTEN_FDS` how many descriptors follow from the third on,
//! and `LISTEN_FDNAMES` what each is called. They are taken once, before there is another thread or
//! another descriptor, and the variables go, so that no child takes them for its own.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::error::HostError;

/// The first one that is passed.
const FIRST: RawFd = 3;
/// More than any configuration has.
const SOCKETS_MAX: u32 = 256;
/// What one without a name is called by systemd.
const UNNAMED: &str = "unknown";
const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
const REMEDY: &str = "start this by systemd, or unset LISTEN_PID";

/// What was passed under a name.
#[derive(Debug)]
pub struct Passed {
    /// `FileDescriptorName=` of its socket unit, which several may share.
    pub name: String,
    descriptor: OwnedFd,
}

impl AsFd for Passed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Passed {
    /// Something of that name.
    #[must_use]
    pub const fn new(name: String, descriptor: OwnedFd) -> Self {
        Self { name, descriptor }
    }

    /// Whether clients can connect to it, over TCP or a Unix socket.
    ///
    /// # Errors
    /// What it is instead.
    pub fn check(&self) -> Result<(), String> {
        let said = |error: Errno| match error {
            Errno::NOTSOCK => "it is no socket".to_owned(),
            error => format!("the kernel says nothing of it: {error}"),
        };
        let family = sockopt::socket_domain(self).map_err(said)?;
        let families = [
            AddressFamily::INET,
            AddressFamily::INET6,
            AddressFamily::UNIX,
        ];
        if !families.contains(&family) {
            return Err("it is neither for TCP nor a Unix socket".to_owned());
        }
        if sockopt::socket_type(self).map_err(said)? != SocketType::STREAM {
            return Err("it is no stream (use ListenStream=)".to_owned());
        }
        if sockopt::socket_acceptconn(self).map_err(said)? {
            Ok(())
        } else {
            Err("nobody can connect to it (use Accept=no)".to_owned())
        }
    }
}

/// Takes what was passed to this process; nothing where that was for another one, or nobody.
///
/// Call it once, before anything was opened and while there is one thread.
///
/// # Errors
/// When what the variables say is not so.
#[expect(
    unsafe_code,
    reason = "the environment and inherited descriptors are raw"
)]
pub fn take() -> Result<Vec<Passed>, HostError> {
    let variable = |name: &str| std::env::var(name).ok();
    let said = Said {
        pid: variable("LISTEN_PID"),
        count: variable("LISTEN_FDS"),
        names: variable("LISTEN_FDNAMES"),
    };
    for name in VARIABLES {
        // SAFETY: this process has one thread, so nobody reads the environment meanwhile. There is
        // no safe way: each program that is started would have to be kept from inheriting it.
        unsafe { std::env::remove_var(name) }
    }
    let names = said.names_for(std::process::id())?;
    let descriptors = (FIRST..).zip(names).map(|(number, name)| {
        let failed = |error: Errno| {
            HostError::io(
                format!("take descriptor {number}, which LISTEN_FDS counts"),
                error,
            )
            .advise(REMEDY)
        };
        // SAFETY: it is only asked for, and the kernel says whether it is open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl_getfd(borrowed).map_err(failed)?;
        fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC).map_err(failed)?;
        // It is one with systemd's, which makes it blocking again at each start of the service.
        ioctl_fionbio(borrowed, true).map_err(failed)?;
        // SAFETY: it is open, was passed to this process, and nobody has taken it before: this is
        // called once, before anything else was opened.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Passed { name, descriptor })
    });
    descriptors.collect()
}

/// The variables as they are.
#[derive(Debug, Default)]
struct Said {
    pid: Option<String>,
    count: Option<String>,
    names: Option<String>,
}

impl Said {
    /// What each is called that is for this process.
    fn names_for(&self, own: u32) -> Result<Vec<String>, HostError> {
        if self.pid.as_deref() != Some(own.to_string().as_str()) {
            return Ok(Vec::new());
        }
        let count = self.count.as_deref().unwrap_or_default();
        let wrong = |what: String| Err(HostError::invalid(what, REMEDY));
        let count = match count.parse::<u32>() {
            Ok(count) if count <= SOCKETS_MAX => count,
            _ => {
                return wrong(format!(
                    "take LISTEN_FDS={count} for a number of sockets up to {SOCKETS_MAX}"
                ));
            }
        };
        let Some(names) = &self.names else {
            return Ok((0..count).map(|_| UNNAMED.to_owned()).collect());
        };
        let names: Vec<String> = match names.as_str() {
            "" if count == 0 => Vec::new(),
            names => names.split(':').map(str::to_owned).collect(),
        };
        if u32::try_from(names.len()) != Ok(count) {
            return wrong(format!(
                "take {} names in LISTEN_FDNAMES for {count} sockets",
                names.len()
            ));
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn sockets_are_for_whom_they_are_passed_to() {
        let check =
            |pid: &str, count: &str, names: Option<&str>, expected: Result<&[&str], &str>| {
                let said = Said {
                    pid: (!pid.is_empty()).then(|| pid.to_owned()),
                    count: Some(count.to_owned()),
                    names: names.map(str::to_owned),
                };
                match (said.names_for(7), expected) {
                    (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{said:?}"),
                    (Err(error), Err(expected)) => {
                        let why = error.explain();
                        assert!(why.contains(expected), "{why}");
                    }
                    other => panic!("{said:?}: {other:?}"),
                }
            };
        check("7", "2", Some("web:db"), Ok(&["web", "db"]));
        check("7", "2", Some("web:web"), Ok(&["web", "web"]));
        check("7", "2", Some("web:"), Ok(&["web", ""]));
        check("7", "2", None, Ok(&["unknown", "unknown"]));
        check("7", "0", Some(""), Ok(&[]));
        check("8", "2", Some("web:db"), Ok(&[]));
        check("", "2", Some("web:db"), Ok(&[]));
        check("x", "y", None, Ok(&[]));
        check("7", "two", None, Err("LISTEN_FDS=two"));
        check("7", "-1", None, Err("LISTEN_FDS=-1"));
        check("7", "4294967295", None, Err("up to 256"));
        check(
            "7",
            "2",
            Some("web"),
            Err("1 names in LISTEN_FDNAMES for 2"),
        );
    }

    #[test]
    fn only_what_clients_can_connect_to_is_of_use() {
        let directory = tempfile::tempdir().unwrap();
        let check = |descriptor: OwnedFd, expected: Result<(), &str>| {
            let found = Passed::new("web".to_owned(), descriptor).check();
            match (&found, expected) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(words)) => assert!(why.contains(words), "{why}"),
                other => panic!("{other:?}"),
            }
        };
        check(TcpListener::bind("127.0.0.1:0").unwrap().into(), Ok(()));
        check(TcpListener::bind("[::1]:0").unwrap().into(), Ok(()));
        let path = directory.path().join("stream");
        check(UnixListener::bind(path).unwrap().into(), Ok(()));
        let path = directory.path().join("datagram");
        check(UnixDatagram::bind(path).unwrap().into(), Err("no stream"));
        check(
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            Err("no stream"),
        );
        check(
            UnixStream::pair().unwrap().0.into(),
            Err("nobody can connect"),
        );
        check(File::open("/dev/null").unwrap().into(), Err("no socket"));
    }
}
