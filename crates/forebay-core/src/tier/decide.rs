//! Which files to move next.
//!
//! # Problem
//!
//! The fast side has room for some of the files. Those that are used most for the room they
//! take should be there. Every move costs bandwidth on both sides, keeps the file's openers
//! waiting and may fail, so that a move must be worth more than it costs, and no two files
//! may push each other out in turn.
//!
//! # Approach
//!
//! Greedy by heat per byte, as for a knapsack whose items are small. First, what is too much
//! on the fast side leaves, coldest first. Then the warmest files of the slow side come: into
//! free room, or into the room of colder ones, if each of those has less than half the heat
//! per byte and all of them together less than half the heat.
//!
//! # Properties
//!
//! - What is on the fast side afterwards fits, and so it does after every move.
//! - With heat that does not change, every exchange raises the heat on the fast side by more
//!   than what was there: deciding again and again comes to an end, and nothing comes back.
//! - No file is named twice; none that rests is named, except to make the tier fit.
//! - No more moves and no more bytes than asked for, but one move if there is any to make.
//! - Work is bounded by sorting the files and by the bounds below.
//!
//! Source: Dantzig, "Discrete-variable extremum problems", 1957 (the greedy bound for
//! knapsacks); the factor of two is that of competitive caching with sizes (Young, "On-line
//! file caching", 1998): what was paid to bring a file in is earned before it goes.

use std::time::Duration;

use super::rest::Rest;
use crate::units::Bytes;

/// How much warmer a file must be than those it replaces.
const WARMER: f64 = 2.0;
/// Touches per second under which nothing is promoted: three in about seven minutes.
const HEAT_MIN: f64 = 0.006;
/// Room on the file system that is left to applications whose promoted files grow: this part
/// of the tier's bound.
const RESERVE_PART: u64 = 64;
/// A smaller file takes as much room.
const SIZE_MIN: u64 = 4096;
/// Candidates looked at, and files that might make room for each.
const CANDIDATES_MAX: usize = 4096;
const VICTIMS_MAX: usize = 1024;

/// Which side a file is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The fast file system.
    Fast,
    /// The slow one.
    Slow,
}

/// What is known of one file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct File {
    /// Its length.
    pub size: Bytes,
    /// In touches per second.
    pub heat: f64,
    /// Where it is.
    pub place: Place,
    /// Until when it is left alone.
    pub rest: Rest,
}

impl File {
    fn room(&self) -> u64 {
        self.size.0.max(SIZE_MIN)
    }

    fn heat_per_byte(&self) -> f64 {
        self.heat / Bytes(self.room()).as_f64()
    }
}

/// What there is to move within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the tier on the fast side, those included that no file leads to any more.
    pub fast_used: Bytes,
    /// The most of them.
    pub fast_size_max: Bytes,
    /// Free bytes of the fast file system, which may be less.
    pub fast_free: Bytes,
    /// Free bytes of the slow file system.
    pub slow_free: Bytes,
    /// Moves to decide on.
    pub moves_max: usize,
    /// Bytes to decide on.
    pub bytes_max: Bytes,
}

/// Why a file is moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cause {
    /// It is the warmest for its size.
    Warm,
    /// It makes room for the warmer file of this index.
    Yields {
        /// To that one.
        to: usize,
    },
    /// There is more on the fast side than may be.
    TooFull,
}

/// One file to move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Move {
    /// Its index.
    pub file: usize,
    /// Where to.
    pub to: Place,
    /// Why.
    pub cause: Cause,
}

/// What is still to be decided on.
struct Draft<'a> {
    files: &'a [File],
    moves: Vec<Move>,
    moves_left: usize,
    bytes_left: u64,
    used: u64,
    slow_free: u64,
}

impl Draft<'_> {
    /// Takes all of them, or none when that is more than was asked for.
    fn take(&mut self, moves: &[Move]) -> bool {
        let sizes = moves.iter().map(|one| self.files[one.file].size.0);
        let bytes = sizes.fold(0, u64::saturating_add);
        let first = self.moves.is_empty() && self.moves_left > 0;
        if !first && (moves.len() > self.moves_left || bytes > self.bytes_left) {
            return false;
        }
        for one in moves {
            let size = self.files[one.file].size.0;
            match one.to {
                Place::Fast => self.used = self.used.saturating_add(size),
                Place::Slow => {
                    self.used = self.used.saturating_sub(size);
                    self.slow_free = self.slow_free.saturating_sub(size);
                }
            }
        }
        self.moves.extend_from_slice(moves);
        self.moves_left = self.moves_left.saturating_sub(moves.len());
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        true
    }
}

/// Decides on the next moves, to be made in their order.
#[must_use]
pub fn decide(now: Duration, files: &[File], room: &Room) -> Vec<Move> {
    let reserve = room.fast_size_max.0 / RESERVE_PART;
    let could = room.fast_used.0.saturating_add(room.fast_free.0);
    let most = room.fast_size_max.0.min(could.saturating_sub(reserve));
    let mut draft = Draft {
        files,
        moves: Vec::new(),
        moves_left: room.moves_max,
        bytes_left: room.bytes_max.0,
        used: room.fast_used.0,
        slow_free: room.slow_free.0,
    };
    let coldest = coldest_first(now, files);
    if draft.used > most {
        make_fit(&mut draft, &coldest, most);
        return draft.moves;
    }
    let rested = |index: &usize| files[*index].rest.stays_until <= now;
    let mut coldest: Vec<usize> = coldest.into_iter().filter(rested).collect();
    for candidate in warmest_first(now, files) {
        if files[candidate].room() > most {
            continue;
        }
        let mut moves = Vec::new();
        let fits = find_room(&draft, &coldest, candidate, most, &mut moves);
        moves.push(Move {
            file: candidate,
            to: Place::Fast,
            cause: Cause::Warm,
        });
        if !fits {
            continue;
        }
        if !draft.take(&moves) {
            break;
        }
        coldest.retain(|index| moves.iter().all(|one| one.file != *index));
    }
    draft.moves
}

/// Files of the fast side that may be tried.
fn coldest_first(now: Duration, files: &[File]) -> Vec<usize> {
    let there = |index: &usize| {
        let file = &files[*index];
        file.place == Place::Fast && file.rest.retry_at <= now
    };
    let mut order: Vec<usize> = (0..files.len()).filter(there).collect();
    order.sort_by(|a, b| {
        let (a, b) = (files[*a].heat_per_byte(), files[*b].heat_per_byte());
        a.total_cmp(&b)
    });
    order
}

/// Files of the slow side that are worth it and may be tried.
fn warmest_first(now: Duration, files: &[File]) -> Vec<usize> {
    let wanted = |index: &usize| {
        let file = &files[*index];
        let rests = file.rest.retry_at > now || file.rest.stays_until > now;
        file.place == Place::Slow && file.size.0 > 0 && file.heat >= HEAT_MIN && !rests
    };
    let mut order: Vec<usize> = (0..files.len()).filter(wanted).collect();
    order.sort_by(|a, b| {
        let (a, b) = (files[*a].heat_per_byte(), files[*b].heat_per_byte());
        b.total_cmp(&a)
    });
    order.truncate(CANDIDATES_MAX);
    order
}

/// Rests do not count: there is more than may be.
fn make_fit(draft: &mut Draft<'_>, coldest: &[usize], most: u64) {
    for &file in coldest {
        if draft.used <= most {
            return;
        }
        if draft.files[file].size.0 > draft.slow_free {
            continue;
        }
        let one = Move {
            file,
            to: Place::Slow,
            cause: Cause::TooFull,
        };
        if !draft.take(&[one]) {
            return;
        }
    }
}

/// Whether there is room for the candidate, with the moves that make it.
fn find_room(
    draft: &Draft<'_>,
    coldest: &[usize],
    candidate: usize,
    most: u64,
    moves: &mut Vec<Move>,
) -> bool {
    let wanted = &draft.files[candidate];
    let mut used = draft.used.saturating_add(wanted.size.0);
    let (mut lost, mut slow_free) = (0.0, draft.slow_free);
    for &index in coldest.iter().take(VICTIMS_MAX) {
        if used <= most {
            return true;
        }
        let victim = &draft.files[index];
        if victim.heat_per_byte() * WARMER >= wanted.heat_per_byte() {
            return false;
        }
        let too_warm = (lost + victim.heat) * WARMER >= wanted.heat;
        if victim.size.0 == 0 || too_warm || victim.size.0 > slow_free {
            continue;
        }
        lost += victim.heat;
        used = used.saturating_sub(victim.size.0);
        slow_free -= victim.size.0;
        moves.push(Move {
            file: index,
            to: Place::Slow,
            cause: Cause::Yields { to: candidate },
        });
    }
    used <= most
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn file(place: Place, mib: u64, heat: f64) -> File {
        File {
            size: Bytes::mib(mib),
            heat,
            place,
            rest: Rest::default(),
        }
    }

    fn room(files: &[File], mib_max: u64) -> Room {
        let there = files.iter().filter(|file| file.place == Place::Fast);
        Room {
            fast_used: Bytes(there.map(|file| file.size.0).sum()),
            fast_size_max: Bytes::mib(mib_max),
            fast_free: Bytes::mib(1 << 20),
            slow_free: Bytes::mib(1 << 20),
            moves_max: usize::MAX,
            bytes_max: Bytes(u64::MAX),
        }
    }

    fn check(files: &[File], room: &Room, expected: &[(usize, Place)]) {
        let moves = decide(NOW, files, room);
        let moves: Vec<_> = moves.iter().map(|one| (one.file, one.to)).collect();
        assert_eq!(moves, expected, "{files:?}");
    }

    use Place::{Fast, Slow};

    #[test]
    fn the_warmest_for_their_size_come_while_there_is_room() {
        let files = [
            file(Slow, 10, 5.0),
            file(Slow, 1, 2.0),
            file(Slow, 4, 0.001),
            file(Slow, 0, 9.0),
            file(Slow, 100, 90.0),
        ];
        check(&files, &room(&files, 12), &[(1, Fast), (0, Fast)]);
    }

    #[test]
    fn a_file_yields_only_to_one_twice_as_warm() {
        let mut files = [file(Fast, 4, 1.0), file(Slow, 4, 1.9)];
        check(&files, &room(&files, 5), &[]);
        files[1].heat = 2.1;
        check(&files, &room(&files, 5), &[(0, Slow), (1, Fast)]);
        // Per byte it is ten times as warm, but what would go is warmer as a whole.
        let files = [file(Fast, 400, 10.0), file(Slow, 4, 1.0)];
        check(&files, &room(&files, 400), &[]);
    }

    #[test]
    fn who_rests_is_left() {
        let resting = Rest {
            stays_until: NOW + Duration::from_secs(1),
            ..Rest::default()
        };
        let failed = Rest {
            retry_at: NOW + Duration::from_secs(1),
            ..Rest::default()
        };
        for rest in [resting, failed] {
            for index in 0..2 {
                let mut files = [file(Fast, 4, 0.0), file(Slow, 4, 5.0)];
                files[index].rest = rest;
                check(&files, &room(&files, 5), &[]);
            }
        }
        // But a tier that is too full is made to fit.
        let mut files = [file(Fast, 4, 9.0), file(Fast, 4, 8.0)];
        files[1].rest = resting;
        check(&files, &room(&files, 5), &[(1, Slow)]);
        files[1].rest = failed;
        check(&files, &room(&files, 5), &[(0, Slow)]);
    }

    #[test]
    fn room_is_what_the_file_systems_have() {
        let files = [file(Slow, 10, 5.0), file(Fast, 10, 0.0)];
        let full = Room {
            fast_free: Bytes::mib(1),
            ..room(&files, 100)
        };
        // There is 1 MiB and the reserve is more: the cold one goes first, alone.
        check(&files, &full, &[(1, Slow)]);
        let both_full = Room {
            slow_free: Bytes::mib(1),
            ..full
        };
        check(&files, &both_full, &[]);
    }

    #[test]
    fn no_more_is_decided_than_asked_for_but_one() {
        let files = [file(Slow, 10, 5.0), file(Slow, 10, 4.0)];
        let mut room = room(&files, 100);
        room.bytes_max = Bytes::mib(12);
        check(&files, &room, &[(0, Fast)]);
        room.bytes_max = Bytes::mib(1);
        check(&files, &room, &[(0, Fast)]);
        room.moves_max = 0;
        check(&files, &room, &[]);
    }

    fn any_file() -> impl Strategy<Value = File> {
        let rest = prop_oneof![
            4 => Just(Rest::default()),
            1 => Just(Rest { stays_until: NOW + Duration::from_secs(9), ..Rest::default() }),
        ];
        let heat = prop_oneof![Just(0.0), 0.0..0.01, 0.0..100.0];
        let size = prop_oneof![0_u64..10_000, 0_u64..50_000_000];
        (size, heat, any::<bool>(), rest).prop_map(|(size, heat, fast, rest)| File {
            size: Bytes(size),
            heat,
            place: if fast { Fast } else { Slow },
            rest,
        })
    }

    proptest! {
        #[test]
        fn everything_promised_holds(
            files in prop::collection::vec(any_file(), 0..40),
            mib_max in 1_u64..200,
            free in 0_u64..100,
            moves_max in 0_usize..50,
            mib in 0_u64..100,
        ) {
            let room = Room {
                fast_free: Bytes::mib(free),
                moves_max,
                bytes_max: Bytes::mib(mib),
                ..room(&files, mib_max)
            };
            let moves = decide(NOW, &files, &room);
            let names: BTreeSet<usize> = moves.iter().map(|one| one.file).collect();
            prop_assert_eq!(names.len(), moves.len());
            let mut used = room.fast_used.0;
            for one in &moves {
                let file = &files[one.file];
                prop_assert!(file.place != one.to);
                prop_assert!(file.rest.retry_at <= NOW);
                prop_assert!(one.cause == Cause::TooFull || file.rest.stays_until <= NOW);
                match one.to {
                    Fast => {
                        used += file.size.0;
                        prop_assert!(used <= room.fast_size_max.0);
                        prop_assert!(used <= room.fast_used.0 + room.fast_free.0);
                    }
                    Slow => used -= file.size.0,
                }
            }
            let group = |one: &Move| matches!(one.cause, Cause::Yields { .. });
            let first = moves.iter().take_while(|one| group(one)).count() + 1;
            let most = if moves_max > 0 { moves_max.max(first) } else { 0 };
            prop_assert!(moves.len() <= most);
            let bytes: u64 = moves.iter().skip(first).map(|one| files[one.file].size.0).sum();
            prop_assert!(bytes <= room.bytes_max.0);
        }

        /// With heat that stays, it ends, and nobody comes back.
        #[test]
        fn nobody_goes_to_and_fro(
            files in prop::collection::vec(any_file(), 0..40),
            mib_max in 1_u64..200,
            moves_max in 1_usize..6,
        ) {
            let mut files = files;
            let mut now = NOW + Duration::from_secs(10);
            let mut heat_before = -1.0;
            let mut rounds = 0;
            loop {
                let room = Room { moves_max, ..room(&files, mib_max) };
                let moves = decide(now, &files, &room);
                let fits = room.fast_used <= room.fast_size_max;
                if moves.is_empty() {
                    prop_assert!(fits);
                    break;
                }
                for one in moves {
                    files[one.file].place = one.to;
                }
                let there = files.iter().filter(|file| file.place == Fast);
                let heat: f64 = there.map(|file| file.heat).sum();
                if fits {
                    prop_assert!(heat > heat_before, "{} after {}", heat, heat_before);
                }
                heat_before = heat;
                now += Duration::from_secs(1);
                rounds += 1;
                prop_assert!(rounds <= 2 * files.len(), "it does not end");
            }
        }
    }
}
