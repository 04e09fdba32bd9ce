//! What must hold of every byte that a client or a server can send; called by `fuzz/`.

use super::commands;
use super::replies::{Got, Replies, elements};
use super::requests::{Command, ProtocolError, Requests};
use crate::pieces::pieces;

/// Longest command.
const BYTES_MAX: usize = 4096;
/// More of a reply than this is handed on before its end.
const PART_MIN: usize = 64;

/// Commands are the same however they come, are read the same from what is sent on, and of every
/// one it can be said what it is.
///
/// # Panics
/// When it is not so.
pub fn requests(bytes: &[u8]) {
    let (cuts, bytes) = pieces(bytes);
    let (at_once, error) = read([bytes]);
    assert_eq!((at_once.clone(), error), read(cuts));
    let sent_on: Vec<u8> = at_once
        .iter()
        .flat_map(|command| command.bytes.clone())
        .collect();
    let mut again = Requests::new(usize::MAX);
    again.push(&sent_on);
    for command in &at_once {
        let same = again.next().expect("what is sent on is a command");
        let same = same.expect("all of it was sent on");
        assert!(command.arguments().eq(same.arguments()));
        commands::kind(command);
        commands::is_of_one_server(command);
        commands::is_long(command);
        commands::is_http(command);
        commands::route_name(commands::route(command));
    }
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Command>, Option<ProtocolError>) {
    let mut requests = Requests::new(BYTES_MAX);
    let mut found = Vec::new();
    for piece in pieces {
        requests.push(piece);
        loop {
            match requests.next() {
                Ok(Some(command)) => found.push(command),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

/// Replies end at the same places however they come, and nothing of them is lost or added.
///
/// # Panics
/// When it is not so.
pub fn replies(bytes: &[u8]) {
    let (cuts, bytes) = pieces(bytes);
    let (ends, passed, failed) = scan([bytes]);
    let (ends_of_pieces, passed_in_pieces, failed_in_pieces) = scan(cuts);
    assert_eq!((&ends, failed), (&ends_of_pieces, failed_in_pieces));
    assert!(bytes.starts_with(&passed));
    assert!(bytes.starts_with(&passed_in_pieces));
}

/// Where replies ended, what was handed on, and whether it was the protocol.
fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<usize>, Vec<u8>, bool) {
    let mut replies = Replies::new();
    let (mut ends, mut passed) = (Vec::new(), Vec::new());
    for piece in pieces {
        replies.push(piece);
        loop {
            match replies.next(PART_MIN) {
                Ok(Some(Got::Whole(bytes))) => {
                    elements(bytes);
                    passed.extend_from_slice(bytes);
                    ends.push(passed.len());
                }
                Ok(Some(Got::Last(bytes))) => {
                    passed.extend_from_slice(bytes);
                    ends.push(passed.len());
                }
                Ok(Some(Got::Part(bytes))) => passed.extend_from_slice(bytes),
                Ok(None) => break,
                Err(_) => return (ends, passed, true),
            }
        }
    }
    (ends, passed, false)
}
