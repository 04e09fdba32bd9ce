//! What CRIU counts of a dump: the file `stats-dump`, a message of protocol buffers behind two marks
//! and its length.

use std::time::Duration;

use super::message::{Value, fields};

/// Marks and length before the message, in bytes.
const HEAD: usize = 12;
/// The statistics of a dump within those of either kind; within them, how long the program was
/// frozen, in microseconds (CRIU's `stats.proto`).
const DUMP: u64 = 1;
const FROZEN: u64 = 2;

/// How long the program stood.
pub(super) fn pause(file: &[u8]) -> Option<Duration> {
    let message = file.get(HEAD..)?;
    let dump = fields(message).find_map(|(number, value)| match value {
        Value::Bytes(bytes) if number == DUMP => Some(bytes),
        _ => None,
    })?;
    fields(dump).find_map(|(number, value)| match value {
        Value::Number(micros) if number == FROZEN => Some(Duration::from_micros(micros)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_is_found_and_nothing_is_made_up() {
        let check = |message: &[u8], expected: Option<u64>| {
            let mut file = vec![0; HEAD];
            file.extend(message);
            assert_eq!(
                pause(&file),
                expected.map(Duration::from_micros),
                "{message:?}"
            );
        };
        // { dump: { freezing_time: 1119, frozen_time: 22320, memdump_time: 2821 } }
        let whole = [
            0x0a, 0x0b, 0x08, 0xdf, 0x08, 0x10, 0xb0, 0xae, 0x01, 0x18, 0x85, 0x16, 0x20,
        ];
        check(&whole, Some(22_320));
        for length in 0..11 {
            check(whole.get(..length).unwrap(), None);
        }
        check(&[0x12, 0x01, 0x00], None);
        check(&[0xff; 30], None);
        assert_eq!(pause(&[]), None);
    }
}
