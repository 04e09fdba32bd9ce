//! Who owns an application.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Counts the changes of one application's record; a fence against whoever missed one.
pub type Epoch = u64;

/// A host's name: 1 to 64 of `a-z A-Z 0-9 - _ .`, starting with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// Why a text is not a host's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host name: use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit"
)]
pub struct HostNameError(String);

impl HostName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        match crate::app::is_name(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(HostNameError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for HostName {
    type Error = HostNameError;

    fn try_from(text: String) -> Result<Self, HostNameError> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

/// The record of one application. Every change of it is a transaction: it takes effect if the record
/// is still the one that it was made of, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// The one host that may let it run, and change this record.
    pub owner: HostName,
    /// Larger by one after every change of the owner, and after one that was called off.
    pub epoch: Epoch,
    /// It was let run by its owner since it became that, or before.
    pub runs: bool,
}

impl Ownership {
    /// The record of an application that runs where it was begun.
    #[must_use]
    pub const fn first(owner: HostName) -> Self {
        Self {
            owner,
            epoch: 1,
            runs: true,
        }
    }

    /// Its owner gives it to another host, which has a copy that stands still.
    #[must_use]
    pub fn given_to(&self, host: &HostName) -> Self {
        Self {
            owner: host.clone(),
            epoch: self.epoch + 1,
            runs: false,
        }
    }

    /// Its owner keeps it, and what was asked of the record before cannot take effect any more.
    #[must_use]
    pub fn recalled(&self) -> Self {
        Self {
            epoch: self.epoch + 1,
            ..self.clone()
        }
    }

    /// Its owner let it run.
    #[must_use]
    pub fn running(&self) -> Self {
        Self {
            runs: true,
            ..self.clone()
        }
    }
}

/// What a record says to whoever knows an earlier one, or a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It says more than what is known.
    Later,
    /// It says the same, or less: an answer that was late, or a coordinator that was put back.
    None,
    /// Two hosts were made owners of one epoch, as a coordinator that was put back can do: none of them is
    /// believed before a later record says who is.
    Conflict,
}

impl Ownership {
    /// What a record says beyond this one, which is known.
    #[must_use]
    pub fn news(&self, record: &Self) -> News {
        if self.epoch != record.epoch {
            return match self.epoch < record.epoch {
                true => News::Later,
                false => News::None,
            };
        }
        match (self.owner == record.owner, record.runs && !self.runs) {
            (false, _) => News::Conflict,
            // What runs does not become what never ran.
            (true, true) => News::Later,
            (true, false) => News::None,
        }
    }

    /// What its owner, who knows this record, makes of one that says less: the epoch that is replaced, and what is
    /// said again. A coordinator that was put back says less, or one that did not hear the owner's last word.
    #[must_use]
    pub fn again(&self, record: &Self) -> Option<(Epoch, Self)> {
        match self.epoch.cmp(&record.epoch) {
            std::cmp::Ordering::Greater => Some((record.epoch, self.recalled())),
            std::cmp::Ordering::Equal if self.runs && !record.runs => {
                (self.owner == record.owner).then(|| (record.epoch, self.clone()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_strictly() {
        for good in ["a", "db-1.example.org", "0"] {
            assert_eq!(good.parse::<HostName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a b", "a/b", &"x".repeat(65)] {
            let error = bad.parse::<HostName>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn two_owners_of_one_epoch_are_no_news() {
        let [a, b] = ["a", "b"].map(|name| Ownership::first(name.parse().unwrap()));
        assert_eq!(a.news(&b), News::Conflict);
        assert_eq!(a.news(&b.recalled()), News::Later);
        assert_eq!(a.recalled().news(&b), News::None);
        let given = a.given_to(&b.owner);
        assert_eq!(given.news(&given.running()), News::Later);
        assert_eq!(given.running().news(&given), News::None);
        assert_eq!(
            a.again(&b),
            None,
            "nobody overrules another one of his epoch"
        );
    }

    #[test]
    fn an_owner_says_again_what_was_lost_of_it() {
        let a = Ownership::first("a".parse().unwrap());
        let later = a.recalled();
        assert_eq!(later.again(&a), Some((1, later.recalled())));
        assert_eq!(a.again(&later), None);
        let back = later.given_to(&a.owner);
        assert_eq!(back.running().again(&back), Some((3, back.running())));
        assert_eq!(back.again(&back.running()), None);
    }
}
