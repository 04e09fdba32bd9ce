//! Sets of CPU and NUMA node numbers, in the kernel's list format.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const WORDS: usize = 16;

/// A set of small numbers: CPUs or NUMA nodes. A plain value of 128 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdSet {
    words: [u64; WORDS],
}

/// CPUs by their number in /sys/devices/system/cpu.
pub type CpuSet = IdSet;
/// NUMA nodes by their number in /sys/devices/system/node.
pub type NodeSet = IdSet;

/// Why a text is not a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a list of numbers such as `0-3,8` below {max}", max = IdSet::IDS_MAX)]
pub struct IdSetError {
    text: String,
}

impl IdSet {
    /// Numbers must be below this.
    pub const IDS_MAX: usize = WORDS * 64;

    /// The empty set.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// Adds `id`. Asserts `id < IDS_MAX`: hosts refuse larger machines when they read the topology.
    pub fn insert(&mut self, id: usize) {
        assert!(id < Self::IDS_MAX, "id {id} is beyond {}", Self::IDS_MAX);
        self.words[id / 64] |= 1 << (id % 64);
    }

    /// Takes `id` out, if it is there.
    pub fn remove(&mut self, id: usize) {
        if id < Self::IDS_MAX {
            self.words[id / 64] &= !(1 << (id % 64));
        }
    }

    /// Whether `id` is in the set.
    #[must_use]
    pub fn contains(&self, id: usize) -> bool {
        id < Self::IDS_MAX && self.words[id / 64] >> (id % 64) & 1 == 1
    }

    /// How many numbers are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether the set has no number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == [0; WORDS]
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..Self::IDS_MAX).filter(|&id| self.words[id / 64] >> (id % 64) & 1 == 1)
    }

    /// In either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// In both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// In this and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    /// Whether every number of this is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.difference(other).is_empty()
    }

    /// Whether no number is in both.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.intersection(other).is_empty()
    }

    fn zip(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let mut words = [0; WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            *word = op(self.words[i], other.words[i]);
        }
        Self { words }
    }
}

impl FromIterator<usize> for IdSet {
    fn from_iter<I: IntoIterator<Item = usize>>(ids: I) -> Self {
        let mut set = Self::EMPTY;
        for id in ids {
            set.insert(id);
        }
        set
    }
}

/// The kernel's list format: `0-3,8`; empty for the empty set.
impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while ids.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for IdSet {
    type Err = IdSetError;

    fn from_str(text: &str) -> Result<Self, IdSetError> {
        let error = || IdSetError {
            text: text.to_owned(),
        };
        let id = |part: &str| {
            let id = part.trim().parse::<usize>().map_err(|_| error())?;
            if id < Self::IDS_MAX {
                Ok(id)
            } else {
                Err(error())
            }
        };
        let mut set = Self::EMPTY;
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (id(first)?, id(last)?),
                None => (id(part)?, id(part)?),
            };
            if first > last {
                return Err(error());
            }
            (first..=last).for_each(|id| set.insert(id));
        }
        Ok(set)
    }
}

impl TryFrom<String> for IdSet {
    type Error = IdSetError;

    fn try_from(text: String) -> Result<Self, IdSetError> {
        text.parse()
    }
}

impl From<IdSet> for String {
    fn from(set: IdSet) -> Self {
        set.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_the_kernels() {
        let check = |text: &str, shown: &str| {
            assert_eq!(
                text.parse::<IdSet>().map(|s| s.to_string()),
                Ok(shown.to_owned())
            );
        };
        check("", "");
        check("0", "0");
        check("0-3\n", "0-3");
        check("8,0-1,2,3", "0-3,8");
        check("1,3,5", "1,3,5");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["x", "3-1", "1-", "-1", "1024", "0-5000", "1 2"] {
            assert!(text.parse::<IdSet>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_set_survives_its_text(ids in proptest::collection::vec(0..IdSet::IDS_MAX, 0..64)) {
            let set: IdSet = ids.iter().copied().collect();
            prop_assert_eq!(set.to_string().parse::<IdSet>(), Ok(set));
            prop_assert!(ids.iter().all(|&id| set.contains(id)));
        }
    }
}
