//! Bytes as a network brings them, for fuzzing.

/// Takes the lengths of pieces from the beginning of some bytes, and cuts the rest accordingly.
///
/// The first byte says how many lengths follow, of one byte each; they are used again from the
/// first one until everything is cut.
pub(crate) fn pieces(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (count, rest) = bytes.split_first().unwrap_or((&0, bytes));
    let (lengths, bytes) = rest.split_at(usize::from(count % 8).min(rest.len()));
    let mut pieces = Vec::new();
    let mut left = bytes;
    let mut lengths = lengths.iter().cycle();
    while !left.is_empty() {
        let length = lengths
            .next()
            .map_or(left.len(), |length| usize::from(*length) + 1);
        let (piece, after) = left.split_at(length.min(left.len()));
        pieces.push(piece);
        left = after;
    }
    (pieces, bytes)
}
