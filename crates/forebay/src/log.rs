//! Where the program's own log goes.
//!
//! With fields to the journal, where systemd connected standard error to it: it says so by `JOURNAL_STREAM`, which names
//! the device and the inode (systemd.exec(5)), and which programs inherit whose standard error is another one. As text to
//! standard error otherwise.

use std::os::fd::AsFd;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged, where it is not the usual: directives as of `tracing_subscriber::EnvFilter`.
const FILTER: &str = "FOREBAY_LOG";
/// What events of applications are logged as.
pub(crate) const EVENTS_TARGET: &str = "forebay::events";
/// Before the names of fields in the journal: `FOREBAY_APP`, `FOREBAY_KIND`.
const FIELDS: &str = "FOREBAY";
const NAME: &str = "forebay";

/// Begins to log, once in a process: `usual` is what is logged unless somebody says otherwise, to which events of
/// applications come in the journal.
pub(crate) fn begin(usual: &str) {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let journal = is_stream(&stream, std::io::stderr()).then(tracing_journald::layer);
    let (journal, failed) = match journal {
        Some(Ok(journal)) => (Some(journal), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let usual = match &journal {
        Some(_) => format!("{usual},{EVENTS_TARGET}=info"),
        None => usual.to_owned(),
    };
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(usual));
    let text = journal
        .is_none()
        .then(|| tracing_subscriber::fmt::layer().with_writer(std::io::stderr));
    let journal = journal.map(|journal| {
        journal
            .with_field_prefix(Some(FIELDS.to_owned()))
            .with_syslog_identifier(NAME.to_owned())
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(text)
        .init();
    if let Some(error) = failed {
        tracing::warn!(%error, "the journal is not reached by its socket: the log is text, without fields");
    }
}

/// Whether a file is the stream that `JOURNAL_STREAM` names, as `DEVICE:INODE`.
fn is_stream(stream: &str, file: impl AsFd) -> bool {
    let Ok(found) = rustix::fs::fstat(file) else {
        return false;
    };
    let named = stream.split_once(':');
    named.is_some_and(|(device, inode)| {
        device.parse() == Ok(found.st_dev) && inode.parse() == Ok(found.st_ino)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_stream_is_known_by_its_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let found = file.metadata().unwrap();
        let (device, inode) = (found.dev(), found.ino());
        assert!(is_stream(&format!("{device}:{inode}"), &file));
        for other in [
            String::new(),
            device.to_string(),
            format!("{device}:{}", inode + 1),
            format!("{}:{inode}", device + 1),
            format!("{device}:{inode}:"),
            "a:b".to_owned(),
        ] {
            assert!(!is_stream(&other, &file), "{other}");
        }
    }
}
