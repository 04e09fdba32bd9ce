//! How commands end.

use std::io;
use std::process::ExitCode;

use forebay_api::{Error, Refusal};

/// How a command ended. The one list of exit codes; the manual shows [`Exit::DOCUMENTATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It did what was asked.
    Ok = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The command line or a value in it makes no sense.
    Usage = 2,
    /// No daemon answers.
    Unreachable = 3,
    /// Whoever asked may not do that.
    NotAllowed = 4,
    /// There is no such app.
    NotFound = 5,
}

impl Exit {
    /// For the end of `--help` and the manual page.
    pub(crate) const DOCUMENTATION: &'static str = "Exit codes:
  0  done
  1  tried and failed
  2  the command line or a value in it makes no sense
  3  no daemon answers at the socket
  4  not allowed: needs root or group forebay
  5  no such app";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what was asked: what to say, and how to end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The daemon did not do it.
    #[error(transparent)]
    Daemon(#[from] Error),
    /// The command line makes no sense beyond what clap checks.
    #[error("{0}")]
    Usage(String),
    /// It was tried, and what came of it is not what was asked for.
    #[error("{0}")]
    Failed(String),
    /// The result could not be written, or the terminal not be used.
    #[error("{doing}: {cause}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Why not.
        cause: io::Error,
    },
}

impl From<io::Error> for Failure {
    fn from(cause: io::Error) -> Self {
        let doing = "write the result";
        Self::Io { doing, cause }
    }
}

impl Failure {
    /// How the command ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Failed(_) => Exit::Failed,
            // Whoever read our output has enough of it: `forebay events | head`.
            Self::Io { cause, .. } if cause.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::Io { .. } => Exit::Failed,
            Self::Daemon(error) => match error {
                Error::Connect { .. } => Exit::Unreachable,
                Error::SocketNotAllowed { .. } => Exit::NotAllowed,
                Error::Broken { .. } => Exit::Failed,
                Error::Refused { refusal, .. } => match refusal {
                    Refusal::NotAllowed => Exit::NotAllowed,
                    Refusal::NotFound => Exit::NotFound,
                    Refusal::BadRequest | Refusal::TooLarge => Exit::Usage,
                    _ => Exit::Failed,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_code() {
        let refused = |refusal| {
            Failure::from(Error::Refused {
                refusal,
                message: String::new(),
            })
        };
        let connect = Failure::from(Error::Connect {
            path: "/x".into(),
            cause: io::ErrorKind::NotFound.into(),
        });
        let path = "/x".into();
        let check = |failure: &Failure, code: u8| assert_eq!(failure.exit() as u8, code);
        check(&Failure::Usage(String::new()), 2);
        check(&Failure::Failed(String::new()), 1);
        check(&connect, 3);
        check(&Error::SocketNotAllowed { path }.into(), 4);
        check(&refused(Refusal::NotAllowed), 4);
        check(&refused(Refusal::NotFound), 5);
        check(&refused(Refusal::BadRequest), 2);
        check(&refused(Refusal::Busy), 1);
        check(&refused(Refusal::Other), 1);
        check(&io::Error::from(io::ErrorKind::BrokenPipe).into(), 0);
        check(&io::Error::from(io::ErrorKind::StorageFull).into(), 1);
    }
}
