//! Whether one application may leave for its own sake, and why not.
//!
//! [`decide`](super::decide) looks at a host; an application may be constrained where its host is not short
//! at all. What keeps applications from wandering holds for both, out of one [`Memory`].

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cause, Homes, Memory, Rules};
use crate::app::AppId;
use crate::fleet::HostName;
use crate::fleet::taking::Untaken;

/// What is known of moving one application to another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Away {
    /// It could go there now.
    To(HostName),
    /// It is on its way.
    Leaves,
    /// It stays.
    Stays(Stays),
}

/// Why one stays that is constrained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stays {
    /// Nobody looked yet.
    Unseen,
    /// Nothing moves by itself.
    Off,
    /// It cannot move.
    Pinned,
    /// It is another host's.
    NotOurs,
    /// This host is no member of the fleet at this moment.
    Alone,
    /// This host is being left, in an order of its own.
    Drained,
    /// It is on its way already.
    Leaves,
    /// It moved a short while ago.
    Rests {
        /// How much longer it stays.
        left: Duration,
    },
    /// It found no target, or did not get there.
    Barred {
        /// How much longer it is left alone.
        left: Duration,
    },
    /// No target was found for another one, or it had no room after all.
    Pauses {
        /// How much longer nobody looks.
        left: Duration,
    },
    /// The moves of this hour are used up.
    UsedUp {
        /// How many there may be.
        most: u32,
    },
    /// So many are on their way.
    Others {
        /// How many there may be.
        most: u32,
    },
    /// No host has room.
    NoTarget,
    /// No host takes it, whatever room it has.
    Untaken(Untaken),
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unseen => f.write_str("other hosts were not looked at yet"),
            Self::Off => {
                f.write_str("nothing moves by itself here (`fleet.moves.by_itself = false`)")
            }
            Self::Pinned => f.write_str("it is pinned to this host: it has no `move`"),
            Self::NotOurs => f.write_str("it is not this host's, see `forebay fleet status`"),
            Self::Alone => f.write_str(
                "this host is no member of its fleet at this moment, see `forebay fleet status`",
            ),
            Self::Drained => f.write_str("this host is being left already"),
            Self::Leaves => f.write_str("it is on its way already"),
            Self::Rests { left } => write!(
                f,
                "it moved a short while ago, and stays for {} s more",
                left.as_secs()
            ),
            Self::Barred { left } => write!(
                f,
                "it did not get to another host when that was tried last, and is left alone for {} s more",
                left.as_secs()
            ),
            Self::Pauses { left } => write!(
                f,
                "a host did not have the room that it offered, and none is asked for {} s more",
                left.as_secs()
            ),
            Self::UsedUp { most } => {
                write!(f, "the {most} moves that an hour may have are used up")
            }
            Self::Others { most } => {
                write!(f, "{most} are on their way from here, and no more may be")
            }
            Self::Untaken(untaken) => untaken.fmt(f),
            Self::NoTarget => f.write_str(
                "no host of the fleet has room for it, of those that take it and that it did not leave lately",
            ),
        }
    }
}

impl Memory {
    /// Whether one application that is constrained may leave, where so many are on their way from here.
    ///
    /// # Errors
    /// Why not.
    pub fn allows(
        &self,
        rules: &Rules,
        now: Duration,
        (app, homes): (&AppId, &Homes),
        leaving: usize,
    ) -> Result<(), Stays> {
        let cause = Cause::Short;
        let left = |until: Duration| until.saturating_sub(now);
        if leaving >= rules.at_once as usize {
            let most = rules.at_once;
            return Err(Stays::Others { most });
        }
        if let Some(left) = homes.rest_left(rules, now) {
            return Err(Stays::Rests { left });
        }
        let barred = self.barred.get(&(cause, app.clone())).copied().map(left);
        if let Some(left) = barred.filter(|left| !left.is_zero()) {
            return Err(Stays::Barred { left });
        }
        let paused = self.paused.get(&cause).copied().map(left);
        if let Some(left) = paused.filter(|left| !left.is_zero()) {
            return Err(Stays::Pauses { left });
        }
        if !self.affords(rules, now, cause) {
            let most = rules.moves_per_hour;
            return Err(Stays::UsedUp { most });
        }
        Ok(())
    }
}

impl Homes {
    /// How much longer one rests after its last move.
    pub(super) fn rest_left(&self, rules: &Rules, now: Duration) -> Option<Duration> {
        let (_, left) = self.0.back()?;
        let rest = rules.rest.saturating_sub(now.saturating_sub(*left));
        (!rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(10_000 + seconds)
    }

    fn left(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_keeps_one_here_is_named_with_how_long_it_will() {
        let rules = Rules {
            moves_per_hour: 2,
            ..Rules::default()
        };
        let (web, other): (AppId, AppId) = ("web".parse().unwrap(), "other".parse().unwrap());
        let new = Homes::default();
        let came = Homes::arrived(at(0), &[], "elsewhere".parse().unwrap());
        let mut memory = Memory::default();
        let check = |memory: &Memory, seconds, app: &AppId, homes: &Homes| {
            memory.allows(&rules, at(seconds), (app, homes), 0)
        };
        assert_eq!(check(&memory, 0, &web, &new), Ok(()));
        let rests = Err(Stays::Rests { left: left(890) });
        assert_eq!(check(&memory, 10, &web, &came), rests);
        assert_eq!(check(&memory, 900, &web, &came), Ok(()));
        let busy = memory.allows(&rules, at(0), (&web, &new), 2);
        assert_eq!(busy, Err(Stays::Others { most: 2 }));

        // What was foreseen keeps nobody here who lacks something now.
        memory.found_none(&rules, at(10), (&web, Cause::Foreseen));
        assert_eq!(check(&memory, 11, &web, &new), Ok(()));
        memory.found_none(&rules, at(10), (&web, Cause::Short));
        let barred = Err(Stays::Barred { left: left(299) });
        assert_eq!(check(&memory, 11, &web, &new), barred);
        let pauses = Err(Stays::Pauses { left: left(14) });
        assert_eq!(check(&memory, 11, &other, &new), pauses);
        assert_eq!(check(&memory, 25, &other, &new), Ok(()));

        memory.began(at(30), Cause::Short);
        memory.began(at(40), Cause::Foreseen);
        let used_up = Err(Stays::UsedUp { most: 2 });
        assert_eq!(check(&memory, 50, &other, &new), used_up);
        assert_eq!(check(&memory, 3630, &other, &new), Ok(()));
    }
}
