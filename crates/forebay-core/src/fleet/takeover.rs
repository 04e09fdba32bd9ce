//! Who looks after what a lost host owned.
//!
//! Problem: when the lease of a host ends, all others hear of it at once. If all of them looked for
//! homes for what it owned, the coordinator would answer as many times as there are hosts, and most of
//! that would be in vain.
//!
//! Approach: the one member whose name follows that of the lost host, around the end of the list, is
//! its keeper. It chooses a target for each application that others may take over, asks it for room, and
//! changes the record, on the condition that the lost host is still no member. When the keeper is lost
//! too, the next one keeps both. Two that both think they are the keeper do no harm: one transaction
//! takes effect.
//!
//! Where only those hosts know of an application that are configured for it, there is no keeper that knows of all.
//! Each of them takes it for itself when its turn comes ([`turn`]): the order is that in which a target would be
//! chosen, so that the best one that can is the one.
//!
//! Properties, tested: whoever sees the same members names the same keeper; nobody keeps itself; what
//! only its owner gives away is left alone.

use std::collections::{BTreeMap, BTreeSet};

use super::choice::{Mover, Offer, Reason, any};
use super::tenure::Takeover;
use super::{Epoch, HostName, Ownership};

/// The member that looks after what a host owned that is none any more.
#[must_use]
pub fn keeper<'a>(lost: &HostName, members: &'a BTreeSet<HostName>) -> Option<&'a HostName> {
    if members.contains(lost) {
        return None;
    }
    members
        .range(lost.clone()..)
        .next()
        .or_else(|| members.first())
}

/// The change that gives an application of a lost host to another one: it takes effect if the record
/// has this epoch and the lost host is still no member.
#[must_use]
pub fn change(
    record: &Ownership,
    (lost, takeover): (&HostName, Takeover),
    target: &HostName,
) -> Option<(Epoch, Ownership)> {
    let may = takeover == Takeover::AfterLease && record.owner == *lost && target != lost;
    may.then(|| (record.epoch, record.given_to(target)))
}

/// Later turns than this one are at the same time.
pub const TURNS_MAX: u32 = 8;

/// When it is the turn of a host to take an application of a lost one over, counted from zero: after so many others
/// that would be chosen before it.
///
/// # Errors
/// It is not to be chosen: why none of those that are left is.
pub fn turn(
    mover: &Mover,
    here: &HostName,
    offers: &BTreeMap<HostName, Offer>,
) -> Result<u32, BTreeMap<HostName, Reason>> {
    let mut left = offers.clone();
    for turn in 0..TURNS_MAX {
        match any(mover, &left) {
            (Some(chosen), _) if chosen == *here => return Ok(turn),
            (Some(chosen), _) => _ = left.remove(&chosen),
            (None, reasons) => return Err(reasons),
        }
    }
    let own: BTreeMap<_, _> = left.remove_entry(here).into_iter().collect();
    match any(mover, &own) {
        (Some(_), _) => Ok(TURNS_MAX),
        (None, reasons) => Err(reasons),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn check(lost: &str, members: &[&str], expected: Option<&str>) {
        let members: BTreeSet<_> = members.iter().map(|name| host(name)).collect();
        let keeper = keeper(&host(lost), &members);
        assert_eq!(keeper.map(HostName::as_str), expected, "{lost} {members:?}");
    }

    #[test]
    fn the_next_by_name_keeps_and_nobody_keeps_itself() {
        check("b", &["a", "c", "d"], Some("c"));
        check("d", &["a", "c"], Some("a"));
        check("b", &["a", "b", "c"], None);
        check("b", &[], None);
        check("a", &["b"], Some("b"));
    }

    #[test]
    fn only_what_others_may_take_is_taken() {
        let record = Ownership::first(host("a"));
        let lost = host("a");
        let taken = change(&record, (&lost, Takeover::AfterLease), &host("b")).unwrap();
        assert_eq!(taken, (1, record.given_to(&host("b"))));
        assert_eq!(change(&record, (&lost, Takeover::Never), &host("b")), None);
        let other = host("c");
        assert_eq!(
            change(&record, (&other, Takeover::AfterLease), &host("b")),
            None
        );
        assert_eq!(change(&record, (&lost, Takeover::AfterLease), &lost), None);
    }

    #[test]
    fn turns_go_by_room_and_whoever_has_none_has_no_turn() {
        use crate::app::Class;
        use crate::fleet::choice::Room;
        use crate::units::{Bytes, MilliCpu};
        let room = |cpu, gib: u64| Room {
            cpu: MilliCpu(cpu),
            memory: Bytes::mib(1024 * gib),
        };
        let offer = |cpu, gib| Offer {
            capacity: room(cpu, gib),
            needed: BTreeMap::new(),
            used: None,
            promised: BTreeMap::new(),
            apps: BTreeSet::new(),
            cordoned: false,
            unfit: None,
            takes: None,
        };
        let mut offers = BTreeMap::from([
            (host("a"), offer(8000, 64)),
            (host("b"), offer(4000, 32)),
            (host("c"), offer(500, 32)),
        ]);
        let mover = Mover {
            class: Class::Standard,
            need: room(1000, 1),
            here: host("lost"),
        };
        assert_eq!(turn(&mover, &host("a"), &offers), Ok(0));
        assert_eq!(turn(&mover, &host("b"), &offers), Ok(1));
        assert!(
            turn(&mover, &host("c"), &offers)
                .unwrap_err()
                .contains_key(&host("c"))
        );
        for number in 0..20 {
            offers.insert(host(&format!("a{number}")), offer(8000, 64));
        }
        assert_eq!(turn(&mover, &host("b"), &offers), Ok(TURNS_MAX));
        assert!(turn(&mover, &host("c"), &offers).is_err());
    }
}
