//! Where a front listens: at addresses of its own, and on sockets that systemd opened.
//!
//! The latter are the daemon's, which systemd started with them. A front asks it for those of a name
//! before it gives up its rights ([`ask`]), on a socket of the daemon's ([`Lender`]). Its process
//! then has them for as long as it lives, and gives them to the one that takes its place: whether
//! systemd, the daemon or both are restarted meanwhile is nothing to clients.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use crate::control::{self, ANSWER_BOUND, Line, PATIENCE};
use crate::front::Complaint;
use crate::stream::{Address, AddressError};

/// What begins the name of a socket of systemd's.
const SYSTEMD: &str = "systemd:";
/// The longest name that systemd takes.
const NAME_BYTES_MAX: usize = 255;

/// Where clients connect: an address, or `systemd:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// Where the front opens a socket itself.
    At(Address),
    /// The sockets that systemd passes under a name.
    Passed(String),
}

/// Why a text does not say where to listen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// It is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// systemd has no such name.
    #[error(
        "`{0}` is no name of a socket: use systemd:NAME with the FileDescriptorName= of its unit, \
         1 to {NAME_BYTES_MAX} characters of ASCII without `:`"
    )]
    Name(String),
}

impl From<Address> for Listen {
    fn from(address: Address) -> Self {
        Self::At(address)
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let Some(name) = text.strip_prefix(SYSTEMD) else {
            return Ok(Self::At(text.parse()?));
        };
        let has_room = (1..=NAME_BYTES_MAX).contains(&name.len());
        if has_room && name.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b':') {
            Ok(Self::Passed(name.to_owned()))
        } else {
            Err(ListenError::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Passed(name) => write!(f, "{SYSTEMD}{name}"),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = ListenError;

    fn try_from(text: String) -> Result<Self, ListenError> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

/// What a front asks for.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    names: Vec<String>,
}

/// What it gets, one after another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Given {
    /// A socket of a name.
    Socket(String),
    /// There is none that is of use.
    Lacks { name: String, why: String },
    /// That was all.
    All,
}

/// The sockets of each name, or why there are none.
pub(crate) type Passed = BTreeMap<String, Result<Vec<OwnedFd>, String>>;

/// Asks the daemon for the sockets that a front listens on and systemd opened.
///
/// # Errors
/// When the daemon is not there, or does not answer.
pub(crate) async fn ask(lender: Option<&Path>, listen: &[Listen]) -> io::Result<Passed> {
    let names = listen.iter().filter_map(|listen| match listen {
        Listen::At(_) => None,
        Listen::Passed(name) => Some(name.clone()),
    });
    let names: Vec<String> = names.collect();
    let Some(lender) = lender.filter(|_| !names.is_empty()) else {
        return Ok(Passed::new());
    };
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let asked = async {
        let mut line = Line::connect(lender).await?;
        line.send(&Asked { names }, &[]).await?;
        let mut passed = Passed::new();
        // A descriptor may come with a later line; their order is what holds.
        let (mut order, mut descriptors) = (Vec::new(), Vec::new());
        loop {
            let (given, with) = line
                .receive::<Given>()
                .await?
                .ok_or_else(|| wrong("the daemon ended the conversation"))?;
            descriptors.extend(with);
            match given {
                Given::Socket(name) => order.push(name),
                Given::Lacks { name, why } => {
                    passed.insert(name, Err(why));
                }
                Given::All => break,
            }
        }
        if order.len() != descriptors.len() {
            return Err(wrong("a descriptor is missing"));
        }
        for (name, descriptor) in order.into_iter().zip(descriptors) {
            let sockets = passed.entry(name).or_insert_with(|| Ok(Vec::new()));
            if let Ok(sockets) = sockets {
                sockets.push(descriptor);
            }
        }
        Ok(passed)
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(asked) => asked,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the daemon does not answer",
        )),
    }
}

/// Where fronts ask for sockets: the daemon's end.
#[derive(Debug)]
pub struct Lender(net::UnixListener);

impl Lender {
    /// Opens it, in place of that of a daemon before: this one holds the state directory, which it
    /// is in.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = net::UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Gives each front what it asks for, for as long as this is waited for. What there is of a name,
    /// or why that is of no use, is `find`'s to say.
    ///
    /// # Errors
    /// When the runtime cannot wait for fronts.
    pub async fn serve<'a>(
        self,
        find: impl Fn(&str) -> Result<Vec<BorrowedFd<'a>>, String>,
    ) -> io::Result<()> {
        let listener = UnixListener::from_std(self.0)?;
        let mut complaint = Complaint::default();
        loop {
            let given = async {
                let (stream, _) = listener.accept().await?;
                // Between bind and chmod others may have connected.
                control::admit(&stream)?;
                // One after another: each has asked already, since that is all it connects for.
                tokio::time::timeout(ANSWER_BOUND, give(Line::new(stream), &find))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            };
            if let Err(error) = given.await {
                complaint.add("a front did not get the sockets that it asked for", &error);
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// How long the daemon waits after a front was not heard, such as for want of descriptors.
const BREATH: Duration = Duration::from_millis(10);

async fn give<'a>(
    mut line: Line,
    find: &impl Fn(&str) -> Result<Vec<BorrowedFd<'a>>, String>,
) -> io::Result<()> {
    let Some((asked, _)) = line.receive::<Asked>().await? else {
        return Ok(());
    };
    for name in asked.names {
        match find(&name) {
            Ok(sockets) => {
                for socket in sockets {
                    let given = Given::Socket(name.clone());
                    line.send(&given, &[socket]).await?;
                }
            }
            Err(why) => line.send(&Given::Lacks { name, why }, &[]).await?,
        }
    }
    line.send(&Given::All, &[]).await
}

/// A listening socket that no runtime knows yet.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(net::UnixListener),
}

/// How long a front waits in the kernel for a connection that is not there: the least that there is.
const INSTANT: Duration = Duration::from_micros(1);

impl Listener {
    /// One that somebody else opened, and shares: whoever is started with it by systemd gets it made
    /// blocking again, at any time, for everybody. A front that waited in accept(2) would serve
    /// nobody, so the kernel is told not to keep it there.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn shared(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(INSTANT))?;
        Ok(match sockopt::socket_domain(&socket)? {
            rustix::net::AddressFamily::UNIX => Self::Unix(socket.into()),
            _ => Self::Tcp(socket.into()),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says, or when that has no address.
    pub(crate) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().map(PathBuf::from);
                path.map(Address::Unix).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "it has no path in a file system",
                    )
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_name_is_told_from_an_address() {
        let check = |text: &str, expected: Option<Listen>| {
            let parsed = text.parse::<Listen>();
            assert_eq!(parsed.as_ref().ok(), expected.as_ref(), "{text}");
            if let Ok(listen) = parsed {
                assert_eq!(listen.to_string(), text);
            }
        };
        check(
            "systemd:shop.socket",
            Some(Listen::Passed("shop.socket".to_owned())),
        );
        check(
            "/systemd:shop",
            Some(Listen::At(Address::Unix("/systemd:shop".into()))),
        );
        check(
            "127.0.0.1:80",
            Some(Listen::At("127.0.0.1:80".parse().unwrap())),
        );
        for wrong in [
            "systemd:",
            "systemd:a:b",
            "systemd:\n",
            "systemd:\u{e9}",
            "systemd",
            "",
        ] {
            check(wrong, None);
        }
    }

    #[tokio::test]
    async fn a_front_gets_the_sockets_of_its_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sockets");
        // What a daemon before left.
        drop(net::UnixListener::bind(&path).unwrap());
        let many: Vec<TcpListener> = (0..12)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let lender = Lender::open(&path).unwrap();
        let find = |name: &str| match name {
            "many" => Ok(many.iter().map(|one| one.as_fd()).collect()),
            other => Err(format!("there is no {other}")),
        };
        let names = ["many", "none"].map(|name| Listen::Passed(name.to_owned()));
        let mut passed = tokio::select! {
            ended = lender.serve(find) => panic!("{ended:?}"),
            passed = ask(Some(&path), &names) => passed.unwrap(),
        };
        let lacks = passed.remove("none").unwrap().unwrap_err();
        assert_eq!(lacks, "there is no none");
        let sockets = passed.remove("many").unwrap().unwrap();
        let addresses = sockets.into_iter().map(|socket| {
            let listener = Listener::shared(socket).unwrap();
            listener.address().unwrap()
        });
        let expected = many
            .iter()
            .map(|one| Address::Tcp(one.local_addr().unwrap()));
        assert_eq!(addresses.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        // Nobody is asked for nothing; nobody answers.
        assert!(ask(None, &names).await.unwrap().is_empty());
        assert!(ask(Some(&path), &names[..0]).await.unwrap().is_empty());
        let error = ask(Some(&path), &names).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn nobody_waits_for_clients_on_a_socket_that_was_made_blocking_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let sockets: [OwnedFd; 2] = [
            TcpListener::bind("127.0.0.1:0").unwrap().into(),
            net::UnixListener::bind(&path).unwrap().into(),
        ];
        for socket in sockets {
            let theirs = socket.try_clone().unwrap();
            let listener = Listener::shared(socket).unwrap();
            rustix::io::ioctl_fionbio(&theirs, false).unwrap();
            let began = Instant::now();
            let accepted = match &listener {
                Listener::Tcp(listener) => listener.accept().map(drop),
                Listener::Unix(listener) => listener.accept().map(drop),
            };
            assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(began.elapsed() < Duration::from_secs(1));
        }
    }
}
