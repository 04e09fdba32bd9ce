//! CRIU's `pagemap-PID.img`: which pages a process had, and who has their content.

use std::fs;
use std::path::Path;

use super::message::{Value, fields};
use super::precopy::userfault::Range;
use crate::error::HostError;

/// The two numbers that such a file begins with: that it is an image, and of what kind.
const MARKS: [u32; 2] = [0x5456_4319, 0x5608_4025];
/// Fields of an entry (CRIU's `pagemap.proto`): the address, the number of pages in the older and the
/// newer form, and flags.
const ADDRESS: u64 = 1;
const PAGES_OLD: u64 = 2;
const FLAGS: u64 = 4;
const PAGES: u64 = 5;
/// The content is for whoever restores it to provide.
const LAZY: u64 = 1 << 1;
/// The content is in the image.
const PRESENT: u64 = 1 << 2;

/// For every process of an image, the pages whose content is not in it.
pub(super) fn wanted(images: &Path, page: u64) -> Result<Vec<(u32, Vec<Range>)>, HostError> {
    let fail = |error| HostError::file("list", images, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(images).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name
            .strip_prefix("pagemap-")
            .and_then(|rest| rest.strip_suffix(".img"))
            .and_then(|number| number.parse().ok());
        let Some(number) = number else { continue };
        let file = fs::read(&path).map_err(|e| HostError::file("read", &path, e))?;
        let runs = parse(&file, page).ok_or_else(|| {
            HostError::invalid(
                format!(
                    "read {}: it is no pagemap of a CRIU that is known",
                    path.display()
                ),
                "use a CRIU from 4.0 on at both ends",
            )
        })?;
        found.push((number, runs));
    }
    Ok(found)
}

fn parse(file: &[u8], page: u64) -> Option<Vec<Range>> {
    let mut rest = file;
    for mark in MARKS {
        if word(&mut rest)? != mark {
            return None;
        }
    }
    // The first message names the file with pages.
    piece(&mut rest)?;
    let mut runs: Vec<Range> = Vec::new();
    while !rest.is_empty() {
        let (mut start, mut old, mut pages, mut flags) = (None, None, None, PRESENT);
        for (number, value) in fields(piece(&mut rest)?) {
            let Value::Number(value) = value else {
                continue;
            };
            match number {
                ADDRESS => start = Some(value),
                PAGES_OLD => old = Some(value),
                PAGES => pages = Some(value),
                FLAGS => flags = value,
                _ => {}
            }
        }
        if flags & LAZY == 0 || flags & PRESENT != 0 {
            continue;
        }
        let len = pages.or(old)?.checked_mul(page)?;
        let start = start?;
        start.checked_add(len)?;
        if !start.is_multiple_of(page) || len == 0 {
            return None;
        }
        runs.push(Range { start, len });
    }
    Some(runs)
}

fn word(rest: &mut &[u8]) -> Option<u32> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*bytes))
}

/// A message behind its length.
fn piece<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(word(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(entries: &[&[u8]]) -> Vec<u8> {
        let mut file: Vec<u8> = MARKS.iter().flat_map(|mark| mark.to_le_bytes()).collect();
        for entry in [[0x08, 0x01].as_slice()].iter().chain(entries) {
            file.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
            file.extend(*entry);
        }
        file
    }

    #[test]
    fn what_the_image_lacks_is_found() {
        let check = |entries: &[&[u8]], expected: Option<&[(u64, u64)]>| {
            let found = parse(&file(entries), 4096);
            let found = found.map(|runs| runs.iter().map(|run| (run.start, run.len)).collect());
            assert_eq!(found, expected.map(<[_]>::to_vec), "{entries:?}");
        };
        // { vaddr: 0x3000, compat_nr_pages: 2, flags: LAZY }
        let lazy: &[u8] = &[0x08, 0x80, 0x60, 0x10, 2, 0x20, 2];
        let present: &[u8] = &[0x08, 0x80, 0x60, 0x10, 2, 0x20, 6];
        // The newer number of pages counts.
        let newer: &[u8] = &[0x08, 0x80, 0x60, 0x10, 0, 0x20, 2, 0x28, 3];
        check(
            &[lazy, present, newer],
            Some(&[(0x3000, 0x2000), (0x3000, 0x3000)]),
        );
        check(&[], Some(&[]));
        // One that begins within a page, and one without a length.
        check(&[&[0x08, 1, 0x10, 2, 0x20, 2]], None);
        check(&[&[0x08, 0x80, 0x60, 0x20, 2]], None);
        assert_eq!(parse(&file(&[lazy])[..20], 4096), None, "cut off");
        assert_eq!(parse(b"something else", 4096), None);
    }
}
