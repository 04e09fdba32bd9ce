//! Where the daemon listens.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::{fs, net};

use super::peer::{Readers, Rules};

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Somebody does already.
    #[error("{0}: another daemon listens there; stop it, or name another socket")]
    InUse(PathBuf),
    /// What is there is no socket.
    #[error("{0}: there is something else than a socket; move it away, or name another socket")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("{doing} {what}: {cause}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        what: String,
        /// Why not.
        cause: io::Error,
    },
    /// An address that other hosts can reach.
    #[error(
        "listen on {0}: not a loopback address; use 127.0.0.1 or [::1], and a proxy that authenticates for other hosts"
    )]
    NotLoopback(SocketAddr),
}

/// The daemon's socket. Dropping it takes the file away, if it is still this one.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: Option<StdUnixListener>,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`. A socket that nobody listens on any more is replaced. The caller
    /// makes sure that only one daemon at a time comes here.
    pub(crate) fn bind(path: &Path, rules: &Rules) -> Result<Self, ListenError> {
        let failed = |doing| {
            move |cause| ListenError::Io {
                doing,
                what: path.display().to_string(),
                cause,
            }
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
        }
        remove_stale(path)?;
        let listener = StdUnixListener::bind(path).map_err(failed("listen on"))?;
        listener
            .set_nonblocking(true)
            .map_err(failed("listen on"))?;
        // Who may do what is decided by credentials; the mode only spares others the try.
        if let Some(group) = rules.group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("chgrp"))?;
        }
        let mode = match rules.readers {
            Readers::Anyone => 0o666,
            Readers::Group => 0o660,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("chmod"))?;
        Ok(Self {
            listener: Some(listener),
            identity: identity(path).map_err(failed("look at"))?,
            path: path.to_owned(),
        })
    }

    /// The listener, for the runtime that is entered. Once.
    pub(crate) fn listener(&mut self) -> io::Result<tokio::net::UnixListener> {
        let listener = self.listener.take().ok_or(io::ErrorKind::NotConnected)?;
        tokio::net::UnixListener::from_std(listener)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "socket left behind");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Takes a socket away that nobody listens on any more. The caller makes sure that nobody begins to meanwhile.
///
/// # Errors
/// When somebody listens there, or it is none.
pub(crate) fn remove_stale(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt as _;

    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|cause| ListenError::Io {
                doing: "remove the stale socket",
                what: path.display().to_string(),
                cause,
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

/// Listens on a loopback address, for readers that cannot use the socket.
pub(crate) fn bind_loopback(address: SocketAddr) -> Result<net::TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::NotLoopback(address));
    }
    bind(address)
}

/// Listens at any address.
///
/// # Errors
/// When the system does not let it.
pub(crate) fn bind(address: SocketAddr) -> Result<net::TcpListener, ListenError> {
    let failed = |cause| ListenError::Io {
        doing: "listen on",
        what: address.to_string(),
        cause,
    };
    let listener = net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        group: None,
        readers: Readers::Anyone,
    };

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/forebay.sock");

        let live = Socket::bind(&path, &RULES).unwrap();
        let error = Socket::bind(&path, &RULES).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        drop(live);
        assert!(!path.exists(), "a stopped daemon leaves no socket");

        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a killed one does");
        let again = Socket::bind(&path, &RULES).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o666
        );

        // Somebody else's socket at the same path stays.
        fs::remove_file(&path).unwrap();
        let other = StdUnixListener::bind(&path).unwrap();
        drop(again);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn a_file_is_not_taken_for_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = Socket::bind(&path, &RULES).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn other_hosts_cannot_reach_it() {
        assert!(bind_loopback("127.0.0.1:0".parse().unwrap()).is_ok());
        let error = bind_loopback("0.0.0.0:0".parse().unwrap()).unwrap_err();
        assert!(matches!(error, ListenError::NotLoopback(_)), "{error}");
    }
}
