//! What CRIU counts of a dump: the file `stats-dump`, a message of protocol buffers behind two marks
//! and its length.

use std::time::Duration;

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

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Fields of a message until it ends or is none; only the two kinds that are met here.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        let (key, after) = number(rest)?;
        let (value, after) = number(after)?;
        let found = match key & 7 {
            0 => {
                rest = after;
                Value::Number(value)
            }
            2 => {
                let (bytes, after) = after.split_at_checked(usize::try_from(value).ok()?)?;
                rest = after;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((key >> 3, found))
    })
}

/// A number of up to ten bytes, seven bits in each.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (place, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(7 * place).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(place + 1..)?));
        }
    }
    None
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
