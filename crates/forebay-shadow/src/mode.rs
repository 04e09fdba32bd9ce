//! What a front speaks with its clients, and how its shadows are kept in step.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http;
use crate::redis;
use crate::stream::Stream;
use crate::switchboard::Switchboard;
use crate::synchronise::{Standby, Synchroniser};
use crate::tcp;

/// A mode with what can be chosen of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Bytes.
    Tcp,
    /// HTTP/1.1.
    Http(http::Options),
    /// RESP, the protocol of Redis.
    Redis(redis::Options),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Http(_) => "http",
            Self::Redis(_) => "redis",
        })
    }
}

impl Mode {
    /// What keeps shadows in step.
    pub(crate) fn synchroniser(&self) -> Arc<dyn Synchroniser> {
        match self {
            Self::Tcp | Self::Http(_) => Arc::new(Standby),
            Self::Redis(options) => Arc::new(redis::Native::new(options)),
        }
    }
}

/// What all connections of a front share.
#[derive(Debug, Clone)]
pub(crate) enum Service {
    Tcp(Arc<Switchboard>, Duration),
    Http(Arc<http::Shared>),
    Redis(Arc<Switchboard>, Arc<redis::Setup>, Duration),
}

impl Service {
    /// For requests that may wait so long for somebody to serve them.
    pub(crate) fn new(mode: &Mode, board: &Arc<Switchboard>, patience: Duration) -> Self {
        let board = Arc::clone(board);
        match mode {
            Mode::Tcp => Self::Tcp(board, patience),
            Mode::Redis(options) => {
                Self::Redis(board, Arc::new(redis::Setup::new(options)), patience)
            }
            Mode::Http(options) => Self::Http(Arc::new(http::Shared::new(
                board,
                options.clone(),
                patience,
            ))),
        }
    }

    /// Serves one client until it ends.
    ///
    /// # Errors
    /// When its connection broke, or could not be served.
    pub(crate) async fn serve(&self, client: Stream) -> io::Result<()> {
        match self {
            Self::Tcp(board, patience) => tcp::serve(board, client, *patience).await,
            Self::Redis(board, setup, patience) => {
                redis::serve(board, client, setup, *patience).await
            }
            Self::Http(shared) => http::serve(shared, client).await,
        }
    }
}
