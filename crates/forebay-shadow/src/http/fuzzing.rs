//! What must hold of every byte that a client or an instance can send; called by `fuzz/`.

use std::ops::Range;

use super::body::Body;
use super::head::{self, Method, Request, Search};
use crate::pieces::pieces;

/// A head that is believed is believed alike after fields were taken out of it and lines were put
/// in: whoever reads it next sees the same request, with the same body.
///
/// # Panics
/// When it is not.
pub fn request(bytes: &[u8]) {
    let Some(found) = find(bytes) else { return };
    let mut cuts = Vec::new();
    let Ok(before) = head::request(found, &mut cuts) else {
        return;
    };
    let mut buffer = bytes.to_vec();
    let lines = added(&cuts);
    let length = head::rewrite(&mut buffer, found.len(), &mut cuts, lines);
    assert_eq!(bytes.get(found.len()..), buffer.get(length..));
    let passed_on = buffer.get(..length).expect("a head within its buffer");
    assert_eq!(find(&buffer).map(<[u8]>::len), Some(length));
    let after = head::request(passed_on, &mut cuts).expect("what is passed on is a request");
    assert_eq!(target(found, &before), target(passed_on, &after));
    assert_eq!(
        (before.method, before.modern, before.body, before.keyed),
        (after.method, after.modern, after.body, after.keyed)
    );
}

/// The same of a response, whatever was asked.
///
/// # Panics
/// When it does not hold.
pub fn response(bytes: &[u8]) {
    let Some(found) = find(bytes) else { return };
    for asked in [Method::Head, Method::Idempotent, Method::Other] {
        let mut cuts = Vec::new();
        let Ok(before) = head::response(found, asked, &mut cuts) else {
            continue;
        };
        let mut buffer = bytes.to_vec();
        let lines = added(&cuts);
        let length = head::rewrite(&mut buffer, found.len(), &mut cuts, lines);
        let passed_on = buffer.get(..length).expect("a head within its buffer");
        let after = head::response(passed_on, asked, &mut cuts).expect("it is still a response");
        assert_eq!((before.status, before.body), (after.status, after.body));
    }
}

/// Chunks end where they end, however they come, and their content is no longer than they are.
///
/// # Panics
/// When the pieces are read otherwise than the whole.
pub fn chunks(bytes: &[u8]) {
    let (cuts, bytes) = pieces(bytes);
    let mut whole = Body::chunked();
    let mut content = 0;
    let taken = whole.take_into(bytes, |part| content += part.len());
    assert!(content <= bytes.len());
    let mut body = Body::chunked();
    let mut sum = Ok(0);
    for piece in cuts {
        match body.take(piece) {
            Ok(taken) => sum = sum.map(|before| before + taken),
            Err(bad) => {
                sum = Err(bad);
                break;
            }
        }
    }
    assert_eq!(taken, sum);
    if taken.is_ok() {
        assert_eq!(whole, body);
    }
}

/// The head that bytes begin with; it is found at the same place whether they come at once or one
/// by one.
fn find(bytes: &[u8]) -> Option<&[u8]> {
    let at_once = Search::default().find(bytes);
    let mut search = Search::default();
    let mut by_steps = Ok(None);
    for length in (0..bytes.len()).step_by(7).chain([bytes.len()]) {
        by_steps = search.find(bytes.get(..length)?);
        if by_steps != Ok(None) {
            break;
        }
    }
    assert_eq!(at_once, by_steps);
    at_once
        .ok()
        .flatten()
        .and_then(|length| bytes.get(..length))
}

/// A line for one that was taken out: a head may have all the fields that are allowed.
fn added(cuts: &[Range<usize>]) -> &'static [u8] {
    if cuts.is_empty() { b"" } else { b"Via: f\r\n" }
}

fn target<'a>(head: &'a [u8], request: &Request) -> Option<&'a [u8]> {
    let range: Range<usize> = request.target.clone();
    head.get(range)
}
