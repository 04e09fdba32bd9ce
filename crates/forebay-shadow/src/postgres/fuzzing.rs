//! What must hold of every byte that a client or a server can send; called by `fuzz/`.

use super::frame::{self, Frames, Garbage, Piece};
use super::sql;
use crate::pieces::pieces;

/// Messages are the same however they come, and their fields can be asked for.
///
/// # Panics
/// When it is not so.
pub fn frames(bytes: &[u8]) {
    let (cuts, bytes) = pieces(bytes);
    let mut first = Frames::default();
    first.push(bytes);
    first.startup().ok();
    assert_eq!(read([bytes]), read(cuts));
}

/// Each message with its tag, and what was none.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<(u8, Vec<u8>)>, Option<Garbage>) {
    let mut frames = Frames::default();
    let mut found: Vec<(u8, Vec<u8>)> = Vec::new();
    for piece in pieces {
        frames.push(piece);
        loop {
            match frames.next() {
                Ok(Some(Piece::Whole { tag, bytes })) => {
                    let message = frames.bytes(&bytes);
                    frame::row(message);
                    frame::error_field(message, b'M');
                    frame::error_line(message);
                    frame::text(frame::body(message));
                    found.push((tag, message.to_vec()));
                }
                Ok(Some(Piece::Head { tag, bytes, .. })) => {
                    found.push((tag, frames.bytes(&bytes).to_vec()));
                }
                Ok(Some(Piece::More { bytes, .. })) => {
                    let more = frames.bytes(&bytes);
                    let (_, message) = found.last_mut().expect("a head before more of it");
                    message.extend_from_slice(more);
                }
                Ok(None) => break,
                Err(garbage) => return (found, Some(garbage)),
            }
        }
    }
    (found, None)
}

/// Any text has a class; what is quoted does nothing; what is no text but a comment changes
/// nothing of what stands beside it.
///
/// # Panics
/// When it is not so.
pub fn sql(bytes: &[u8]) {
    sql::classify(bytes);
    sql::preparation(bytes, "a");
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|letter| *letter != '\0')
        .collect();
    let quoted = [sql::literal(&text), sql::identifier(&text)];
    for quoted in quoted.iter().filter(|quoted| !quoted.contains('\\')) {
        let class = sql::classify(format!("select {quoted}").as_bytes());
        assert!(
            class.reads && class.ends.is_none() && !class.changes_session,
            "{quoted}"
        );
    }
}
