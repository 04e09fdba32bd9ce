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
//! Properties, tested: whoever sees the same members names the same keeper; nobody keeps itself; what
//! only its owner gives away is left alone.

use std::collections::BTreeSet;

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
}
