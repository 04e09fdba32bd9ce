//! One small file that must survive the daemon: replaced as a whole, and known as damaged when it is.
//!
//! It is written beside, synced, renamed, and the directory synced. A heading names what it is and
//! carries a checksum of the JSON behind it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A longer one is not read: it is none of ours.
const BYTES_MAX: u64 = 16 << 20;

/// What was attempted when the new content is in its place, and may be gone after a crash of the host.
pub(crate) const SYNC_DIRECTORY: &str = "sync the directory of";

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It is not what was written.
    #[error("{file}: {what}")]
    Damaged { file: String, what: String },
    /// The system refused something.
    #[error("{attempt} {file}; check the disk")]
    File {
        attempt: &'static str,
        file: String,
        source: io::Error,
    },
}

fn failed(attempt: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Error {
    let file = file.display().to_string();
    move |source| Error::File {
        attempt,
        file,
        source,
    }
}

/// FNV-1a of 64 bits: it tells a damaged file from a whole one, and nothing more is asked of it.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Puts `content` in place of what was there; durable on return.
pub(crate) fn write(file: &Path, heading: &str, content: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_string(content)
        .map_err(|error| failed("write", file)(io::Error::other(error)))?;
    let text = format!("{heading}{:016x}\n{json}\n", checksum(&json));
    let beside = file.with_extension("json.new");
    let mut new = File::create(&beside).map_err(failed("create", &beside))?;
    new.write_all(text.as_bytes())
        .and_then(|()| new.sync_all())
        .map_err(failed("write", &beside))?;
    fs::rename(&beside, file).map_err(failed("replace", file))?;
    let dir = file.parent().unwrap_or_else(|| Path::new("/"));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed(SYNC_DIRECTORY, file))
}

/// Reads what was written; one that is not there is empty.
pub(crate) fn read<T: DeserializeOwned + Default>(file: &Path, heading: &str) -> Result<T, Error> {
    let damaged = |what: &str| Error::Damaged {
        file: file.display().to_string(),
        what: what.to_owned(),
    };
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Ok(found) if found.len() > BYTES_MAX => return Err(damaged("it is far too long")),
        Ok(_) | Err(_) => {}
    }
    let bytes = fs::read(file).map_err(failed("read", file))?;
    let text = String::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
    let (first, json) = text
        .split_once('\n')
        .ok_or_else(|| damaged("it ends in its first line"))?;
    let expected = first
        .strip_prefix(heading)
        .ok_or_else(|| damaged("it does not begin as such a journal does"))?;
    let json = json
        .strip_suffix('\n')
        .ok_or_else(|| damaged("its end is missing"))?;
    if format!("{:016x}", checksum(json)) != expected {
        return Err(damaged("its checksum differs"));
    }
    serde_json::from_str(json).map_err(|error| damaged(&error.to_string()))
}

/// An error with its cause.
pub(crate) fn said(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
