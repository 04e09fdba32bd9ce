//! How a daemon fails.

use crate::config;

/// Why the daemon did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration has mistakes.
    #[error("{0}")]
    Config(config::Errors),
    /// The host refused something.
    #[error("{0}")]
    Host(String),
    /// The API cannot be reached.
    #[error("{0}")]
    Listen(String),
    /// The system refused something.
    #[error("{attempt}; {remedy}")]
    System {
        attempt: &'static str,
        remedy: &'static str,
        source: std::io::Error,
    },
    /// Some things could not be put back.
    #[error("not everything was put back: {0}; run `forebay restore`")]
    Farewell(String),
}

pub(super) fn system(
    attempt: &'static str,
    remedy: &'static str,
) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::System {
        attempt,
        remedy,
        source,
    }
}
