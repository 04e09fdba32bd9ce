//! Words and numbers for the wire.

use std::path::Path;

use forebay_api as api;
use forebay_core::tier::Place;
use forebay_host::Error;
use forebay_host::tier::{Left, Moved, Recovered, Scan, Tier};

/// Broken links that are named.
const BROKEN_MAX: usize = 100;
/// Files of one request that are named.
const ROWS_MAX: usize = 1000;

pub(super) const fn side(place: Place) -> api::TierSide {
    match place {
        Place::Fast => api::TierSide::Fast,
        Place::Slow => api::TierSide::Slow,
    }
}

/// A tier that no daemon moves the files of.
///
/// # Errors
/// When it cannot be looked at.
pub(crate) fn direct(tier: &Tier, recovered: &Recovered) -> Result<api::Tier, Error> {
    let scan = tier.scan()?;
    let mut status = api::Tier {
        tier: tier.place().name.clone(),
        directory: tier.place().directory.display().to_string(),
        state: api::TierState::ByHand,
        kept: recovered.kept,
        ..api::Tier::default()
    };
    for entry in &scan.entries {
        let (files, bytes) = match entry.place {
            Place::Fast => (&mut status.fast_files, None),
            Place::Slow => (&mut status.slow_files, Some(&mut status.slow_bytes)),
        };
        *files += 1;
        if let Some(bytes) = bytes {
            *bytes = bytes.saturating_add(entry.size);
        }
    }
    let copies = Copies {
        unclaimed: recovered.unclaimed,
        nameless: tier.nameless()?,
    };
    seen(&mut status, tier, &scan, copies);
    Ok(status)
}

/// Copies on the fast side that are not simply the content of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copies {
    pub(super) unclaimed: u64,
    pub(super) nameless: u64,
}

/// What a scan says beside the files.
pub(super) fn seen(status: &mut api::Tier, tier: &Tier, scan: &Scan, copies: Copies) {
    status.fast_bytes = tier.fast_used();
    status.fast_size_max_bytes = tier.place().fast_size_max;
    status.unclaimed = copies.unclaimed;
    status.nameless = copies.nameless;
    let broken = scan.broken.iter().take(BROKEN_MAX);
    status.broken = broken.map(|path| path.display().to_string()).collect();
    status.truncated = scan.truncated;
    status.unwatched = scan.unwatched;
}

/// What became of one file that was asked for.
pub(crate) fn row(file: &Path, moved: &Result<Moved, Error>) -> api::TierFile {
    let (bytes, reason) = match moved {
        Ok(Moved::Done { bytes }) => (Some(*bytes), None),
        Ok(Moved::Left(left)) => (None, Some(left.to_string())),
        Err(error) => (None, Some(error.explain())),
    };
    api::TierFile {
        file: file.display().to_string(),
        moved: reason.is_none(),
        bytes,
        reason,
    }
}

/// Adds one file to an answer, within bounds.
pub(crate) fn answered(answer: &mut api::TierAnswer, row: api::TierFile) {
    answer.moved += u64::from(row.moved);
    if answer.files.len() < ROWS_MAX {
        answer.files.push(row);
    } else if !row.moved {
        answer.left_beyond += 1;
    }
}

/// Why a file was left, and when it is tried again.
pub(super) fn left(left: &Left, again: Option<std::time::Duration>) -> String {
    match again {
        Some(again) => format!("{left}; tried again in {} s", again.as_secs()),
        None => left.to_string(),
    }
}
