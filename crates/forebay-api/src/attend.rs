//! How an app takes part in updates of the operating system: it is told to prepare, and that it may resume.
//!
//! One line of text each way, over a Unix socket; `docs/update-protocol.md` is the protocol's page:
//!
//! ```text
//! app    forebay update 1 orders        it is there, and who it is
//! daemon resume                         nothing is under way
//! daemon prepare 7 30 detach            update 7 is to begin; answer within 30 s
//! app    ready                          or: cannot WHY
//! daemon resume                         it is over
//! ```
//!
//! What the daemon says is how it is now, not what changed: an app that connects again hears it again.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable that names the socket to programs that the daemon starts.
pub const SOCKET_VARIABLE: &str = "FOREBAY_UPDATE_SOCKET";
/// The variable that says which app they are.
pub const APP_VARIABLE: &str = "FOREBAY_UPDATE_APP";
/// What the name of the daemon's own socket is followed by in that of this one.
const SUFFIX: &str = ".update";
/// The longest line, its end included, in bytes.
pub const LINE_BYTES_MAX: usize = 512;
/// What the first line begins with; the app's name follows.
pub const GREETING: &str = "forebay update 1 ";
/// Between two attempts to reach a daemon that is not there.
const RETRY: Duration = Duration::from_secs(1);

/// Where apps are told, by the daemon that listens at this socket.
#[must_use]
pub fn socket_beside(daemon_socket: &Path) -> PathBuf {
    let mut path = daemon_socket.as_os_str().to_owned();
    path.push(SUFFIX);
    path.into()
}

/// What an app is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Go on as ever.
    Resume,
    /// An update is to begin: save what is needed, end what others can do without, and say that it is ready.
    Prepare {
        /// Its number.
        update: u64,
        /// How long there is to answer, in seconds.
        seconds: u64,
        /// It is ended then, and started again when the update is over; else it runs on, alone on CPUs of its
        /// own.
        ends: bool,
    },
}

impl Told {
    /// The line of it, without its end.
    #[must_use]
    pub fn line(self) -> String {
        match self {
            Self::Resume => "resume".to_owned(),
            Self::Prepare {
                update,
                seconds,
                ends,
            } => {
                let what = if ends { "end" } else { "detach" };
                format!("prepare {update} {seconds} {what}")
            }
        }
    }

    fn of(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["resume"] => Some(Self::Resume),
            ["prepare", update, seconds, what] => Some(Self::Prepare {
                update: update.parse().ok()?,
                seconds: seconds.parse().ok()?,
                ends: match what {
                    "end" => true,
                    "detach" => false,
                    _ => return None,
                },
            }),
            _ => None,
        }
    }
}

/// One connection of an app.
#[derive(Debug)]
pub struct Attendant {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Attendant {
    /// Registers an app with the daemon that listens at `socket`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(socket: &Path, app: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(format!("{GREETING}{app}\n").as_bytes())?;
        Ok(Self {
            stream: BufReader::new(stream),
            path: socket.to_owned(),
        })
    }

    /// Waits for what is to be done next.
    ///
    /// # Errors
    /// `UnexpectedEof` when the daemon is gone: connect again. `PermissionDenied` when it refuses: the text
    /// says why. `InvalidData` for a line that is none of this protocol.
    pub fn hear(&mut self) -> io::Result<Told> {
        let mut line = String::new();
        let most = LINE_BYTES_MAX as u64;
        (&mut self.stream).take(most).read_line(&mut line)?;
        let Some(text) = line.strip_suffix('\n') else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if let Some(why) = text.strip_prefix("refused ") {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                why.to_owned(),
            ));
        }
        Told::of(text).ok_or_else(|| {
            let why = format!("{}: `{text}` is no line of version 1", self.path.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
    }

    /// Answers: ready, or why it cannot be.
    ///
    /// # Errors
    /// When the daemon is gone: connect again, and it asks again.
    pub fn answer(&mut self, prepared: Result<(), &str>) -> io::Result<()> {
        let line = match prepared {
            Ok(()) => "ready\n".to_owned(),
            Err(why) => {
                let mut line = format!("cannot {}", why.replace(['\n', '\r'], " "));
                line.truncate(line.floor_char_boundary(LINE_BYTES_MAX - 1));
                line + "\n"
            }
        };
        self.stream.get_mut().write_all(line.as_bytes())
    }
}

/// Attends for as long as the program lives: `prepare` is called when an update is to begin (its errors are
/// told to the daemon), `resume` when it is over. Both may be called again for the same update, by a daemon that was
/// started anew. Connects again and again while no daemon is there.
///
/// # Errors
/// When the daemon refuses the app, or speaks another protocol.
pub fn attend(
    socket: &Path,
    app: &str,
    mut prepare: impl FnMut(Told) -> Result<(), String>,
    mut resume: impl FnMut(),
) -> io::Result<()> {
    let mut is_prepared = false;
    loop {
        match one_connection(socket, app, &mut is_prepared, &mut prepare, &mut resume) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData
                ) =>
            {
                return Err(error);
            }
            // It comes back, and then says how it is.
            Ok(()) | Err(_) => std::thread::sleep(RETRY),
        }
    }
}

fn one_connection(
    socket: &Path,
    app: &str,
    is_prepared: &mut bool,
    prepare: &mut impl FnMut(Told) -> Result<(), String>,
    resume: &mut impl FnMut(),
) -> io::Result<()> {
    let mut attendant = Attendant::connect(socket, app)?;
    loop {
        let told = attendant.hear()?;
        if told == Told::Resume {
            if std::mem::take(is_prepared) {
                resume();
            }
            continue;
        }
        *is_prepared = true;
        let prepared = prepare(told);
        attendant.answer(match &prepared {
            Ok(()) => Ok(()),
            Err(why) => Err(why),
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for told in [
            Told::Resume,
            Told::Prepare {
                update: 7,
                seconds: 30,
                ends: true,
            },
            Told::Prepare {
                update: 8,
                seconds: 1,
                ends: false,
            },
        ] {
            assert_eq!(Told::of(&told.line()), Some(told));
        }
        for line in [
            "",
            "prepare",
            "prepare 1 2",
            "prepare 1 2 sleep",
            "prepare x 2 end",
        ] {
            assert_eq!(Told::of(line), None, "{line}");
        }
    }
}
