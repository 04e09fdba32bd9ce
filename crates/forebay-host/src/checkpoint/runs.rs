//! Runs of pages on their way: an address, a length and as many bytes, again and again, then the end.
//!
//! The order is the order in which they were read: what comes later for the same address counts. Both
//! numbers have eight bytes, the least significant first. Of runs that are to come later there are the numbers alone.

use std::io::{self, Read, Write};

use super::precopy::userfault::Range;

/// The address that ends a stream; no page is there.
const END: u64 = u64::MAX;
/// The longest run that is taken.
pub const RUN_MAX: u64 = 1 << 20;

/// Runs at most that are to come later.
const PLACES_MAX: usize = 4 << 20;

/// Writes one run.
///
/// # Errors
/// Those of the writer.
pub(crate) fn write(to: &mut impl Write, start: u64, bytes: &[u8]) -> io::Result<()> {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&start.to_le_bytes());
    head[8..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    to.write_all(&head)?;
    to.write_all(bytes)
}

/// Says that nothing follows.
///
/// # Errors
/// Those of the writer.
pub fn end(to: &mut impl Write) -> io::Result<()> {
    write(to, END, &[])?;
    to.flush()
}

/// Reads one run into `into`, and says where it begins; none at the end.
///
/// # Errors
/// Those of the reader, and `InvalidData` where it is no run of whole pages.
pub(crate) fn read(from: &mut impl Read, page: u64, into: &mut Vec<u8>) -> io::Result<Option<u64>> {
    let number = |from: &mut dyn Read| {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        Ok::<_, io::Error>(u64::from_le_bytes(bytes))
    };
    let start = number(from)?;
    let length = number(from)?;
    if start == END && length == 0 {
        return Ok(None);
    }
    let is_whole = start.is_multiple_of(page) && length.is_multiple_of(page);
    if !is_whole || length == 0 || length > RUN_MAX || start.checked_add(length).is_none() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{length} bytes at {start:#x} are no run of pages"),
        ));
    }
    into.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
    from.read_exact(into)?;
    Ok(Some(start))
}

/// Writes which runs are to come later, and that there are no others.
///
/// # Errors
/// Those of the writer.
pub(crate) fn write_places(to: &mut impl Write, places: &[Range]) -> io::Result<()> {
    for place in places {
        to.write_all(&place.start.to_le_bytes())?;
        to.write_all(&place.len.to_le_bytes())?;
    }
    end(to)
}

/// Reads which runs are to come later.
///
/// # Errors
/// Those of the reader, and `InvalidData` where they are no runs of whole pages, or too many.
pub(crate) fn read_places(from: &mut impl Read, page: u64) -> io::Result<Vec<Range>> {
    let mut places = Vec::new();
    loop {
        let mut head = [0; 16];
        from.read_exact(&mut head)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (start, len) = (number(0), number(8));
        if (start, len) == (END, 0) {
            return Ok(places);
        }
        let is_whole = start.is_multiple_of(page) && len.is_multiple_of(page) && len > 0;
        if !is_whole || start.checked_add(len).is_none() || places.len() == PLACES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{len} bytes at {start:#x} are no run of pages, or one too many"),
            ));
        }
        places.push(Range { start, len });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_and_what_is_none_is_refused() {
        let range = |start, len| Range { start, len };
        let places = [range(3 * PAGE, 8 * PAGE), range(PAGE, PAGE)];
        let mut stream = Vec::new();
        write_places(&mut stream, &places).unwrap();
        assert_eq!(read_places(&mut stream.as_slice(), PAGE).unwrap(), places);
        read_places(&mut &stream[..stream.len() - 1], PAGE).unwrap_err();
        for bad in [
            range(1, PAGE),
            range(PAGE, 0),
            range(u64::MAX - PAGE + 1, PAGE),
        ] {
            let mut stream = Vec::new();
            write_places(&mut stream, &[bad]).unwrap();
            let error = read_places(&mut stream.as_slice(), PAGE).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }

    const PAGE: u64 = 4096;

    #[test]
    fn runs_come_back_until_the_end() {
        let mut stream = Vec::new();
        write(&mut stream, 3 * PAGE, &[7; 8192]).unwrap();
        write(&mut stream, PAGE, &[8; 4096]).unwrap();
        end(&mut stream).unwrap();
        let mut from = stream.as_slice();
        let mut bytes = Vec::new();
        assert_eq!(read(&mut from, PAGE, &mut bytes).unwrap(), Some(3 * PAGE));
        assert_eq!(bytes, [7; 8192]);
        assert_eq!(read(&mut from, PAGE, &mut bytes).unwrap(), Some(PAGE));
        assert_eq!(bytes, [8; 4096]);
        assert_eq!(read(&mut from, PAGE, &mut bytes).unwrap(), None);
        // Without an end it was cut off.
        assert!(read(&mut from, PAGE, &mut bytes).is_err());
    }

    #[test]
    fn what_is_no_run_is_refused_before_it_is_read() {
        let check = |start: u64, length: u64| {
            let mut head = start.to_le_bytes().to_vec();
            head.extend(length.to_le_bytes());
            let mut bytes = Vec::new();
            let error = read(&mut head.as_slice(), PAGE, &mut bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{start} {length}");
            assert!(bytes.is_empty());
        };
        check(1, PAGE);
        check(PAGE, 100);
        check(PAGE, 0);
        check(PAGE, 1 << 40);
        check(u64::MAX - PAGE + 1, 2 * PAGE);
    }
}
