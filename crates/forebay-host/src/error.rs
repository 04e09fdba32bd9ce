//! What can go wrong with the kernel, said so that a person can act on it.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// What kind of trouble it is, for callers that answer differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Another process holds the state directory.
    Locked,
    /// The kernel refused: permissions, a read-only mount.
    Denied,
    /// The object is not there, or no longer.
    Missing,
    /// What was asked for makes no sense on this host.
    Invalid,
    /// Anything else the kernel said.
    Other,
}

/// An attempt that failed: what was attempted on which object, and what to do about it.
/// The kernel's own words are the source.
#[derive(Debug)]
pub struct HostError {
    kind: ErrorKind,
    attempt: String,
    advice: Option<String>,
    source: Option<io::Error>,
}

impl HostError {
    /// An attempt that the kernel refused. The advice follows from its answer.
    pub(crate) fn io(attempt: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let (kind, advice) = judge(&source);
        Self {
            kind,
            attempt: attempt.into(),
            advice: advice.map(str::to_owned),
            source: Some(source),
        }
    }

    /// An attempt on a file.
    pub(crate) fn file(verb: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::io(format!("{verb} {}", path.display()), source)
    }

    /// Something that cannot be, with what to do.
    pub(crate) fn invalid(attempt: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            attempt: attempt.into(),
            advice: Some(advice.into()),
            source: None,
        }
    }

    /// Something that is not there, with what to do.
    pub(crate) fn missing(attempt: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Missing,
            ..Self::invalid(attempt, advice)
        }
    }

    /// The state directory belongs to another process.
    pub(crate) fn locked(attempt: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Locked,
            attempt: attempt.into(),
            advice: Some(advice.into()),
            source: None,
        }
    }

    /// What another part of this program said, advice included.
    #[must_use]
    pub fn told(text: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Other,
            attempt: text.into(),
            advice: None,
            source: None,
        }
    }

    /// The same trouble with better advice.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// What kind of trouble it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The kernel's error number, where there was one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(io::Error::raw_os_error)
    }

    /// Whether the object vanished meanwhile.
    pub(crate) fn is_gone(&self) -> bool {
        self.kind == ErrorKind::Missing
    }

    /// Attempt, cause and advice on one line, for an outcome or a log.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.attempt.clone();
        if let Some(source) = &self.source {
            text.push_str(": ");
            text.push_str(&plain(source));
        }
        if let Some(advice) = &self.advice {
            text.push_str("; ");
            text.push_str(advice);
        }
        text
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.attempt)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for HostError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// The kernel's words without the number that Rust appends.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

fn judge(error: &io::Error) -> (ErrorKind, Option<&'static str>) {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => (
            ErrorKind::Denied,
            Some("run as root or delegate the control group"),
        ),
        Some(Errno::ROFS) => (
            ErrorKind::Denied,
            Some("the mount is read-only: remount it writable"),
        ),
        Some(Errno::NOENT | Errno::NODEV | Errno::SRCH) => (ErrorKind::Missing, None),
        Some(Errno::NOSPC | Errno::DQUOT) => {
            (ErrorKind::Other, Some("make room on that file system"))
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            (ErrorKind::Other, Some("raise the limit of open files"))
        }
        _ => (ErrorKind::Other, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_attempt_cause_and_advice() {
        let error = HostError::io("write cpu.max of web", Errno::ACCESS);
        assert_eq!(
            error.explain(),
            "write cpu.max of web: permission denied; run as root or delegate the control group"
        );
        assert_eq!(
            error.to_string(),
            "write cpu.max of web; run as root or delegate the control group"
        );
        assert_eq!(error.kind(), ErrorKind::Denied);
    }
}
