//! Messages of protocol buffers, as far as they are met in CRIU's images.

/// What a field holds.
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Fields of a message until it ends or is none; only the two kinds that are met here.
pub(super) fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
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
