//! Who asks, and what they may do.

use std::fs;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process of this host, known by the credentials that the kernel vouches for.
    Process {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its supplementary groups.
        groups: Vec<u32>,
    },
    /// Somebody who came over loopback TCP: any user of this host.
    Loopback,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It only looks.
    Read,
    /// It changes something.
    Change,
    /// It is root's, whoever else may change things.
    Root,
}

impl Access {
    /// As it stands in the API's document.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "look",
            Self::Change => "change",
            Self::Root => "root",
        }
    }
}

/// Who may look. Root and the group may always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Every user of the host.
    Anyone,
    /// Only root and the group.
    Group,
}

/// Who may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The number of the group whose members may change things; none: only root may.
    pub(crate) group: Option<u32>,
    /// Who may look.
    pub(crate) readers: Readers,
}

/// Whether `peer` may do what asks for `access`; if not, what to do about it.
pub(crate) fn authorise(peer: &Peer, access: Access, rules: &Rules) -> Result<(), &'static str> {
    match (peer, access) {
        (Peer::Loopback, Access::Read) => Ok(()),
        (Peer::Loopback, Access::Change | Access::Root) => {
            Err("this address is read-only; use the daemon's socket to change things")
        }
        (Peer::Process { uid, .. }, Access::Root) => match uid {
            0 => Ok(()),
            _ => Err("an update of the operating system is root's; try it with sudo"),
        },
        (peer, _) if may_change(peer, rules) => Ok(()),
        (_, Access::Read) if rules.readers == Readers::Anyone => Ok(()),
        (_, Access::Read) => Err(
            "only root and the daemon's group may look; ask root to add you to it: `daemon.group`, which is group forebay unless it was set",
        ),
        (_, Access::Change) => Err(
            "only root and the daemon's group may change things; ask root to add you to it: `daemon.group`, which is group forebay unless it was set",
        ),
    }
}

/// Whether `peer` is root or in the group.
pub(crate) fn may_change(peer: &Peer, rules: &Rules) -> bool {
    match peer {
        Peer::Loopback => false,
        Peer::Process { uid: 0, .. } => true,
        Peer::Process { gid, groups, .. } => rules
            .group
            .is_some_and(|group| *gid == group || groups.contains(&group)),
    }
}

/// The process at the other end of a socket. Its supplementary groups are read from /proc,
/// where the number may meanwhile belong to another process; the groups count only when
/// that process is of the same user, who then has them in any case.
pub(crate) fn process(uid: u32, gid: u32, pid: Option<i32>) -> Peer {
    let groups = pid
        .filter(|_| uid != 0)
        .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .map(|status| groups_in(&status, uid))
        .unwrap_or_default();
    Peer::Process { uid, gid, groups }
}

/// The supplementary groups in a /proc/PID/status, if all its user numbers are `uid`.
fn groups_in(status: &str, uid: u32) -> Vec<u32> {
    let numbers = |field: &str| -> Vec<u32> {
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(|rest| {
                rest.split_ascii_whitespace()
                    .filter_map(|n| n.parse().ok())
                    .collect()
            })
            .unwrap_or_default()
    };
    let uids = numbers("Uid");
    if uids.len() == 4 && uids.iter().all(|&other| other == uid) {
        numbers("Groups")
    } else {
        Vec::new()
    }
}

/// The number of the group called `name` in /etc/group; none when there is no such group.
pub(crate) fn group_number(name: &str) -> Option<u32> {
    group_in(&fs::read_to_string("/etc/group").ok()?, name)
}

fn group_in(file: &str, name: &str) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_group_change_and_others_look() {
        let anyone = Rules {
            group: Some(990),
            readers: Readers::Anyone,
        };
        let closed = Rules {
            readers: Readers::Group,
            ..anyone
        };
        let rootonly = Rules {
            group: None,
            ..closed
        };
        let process = |uid, gid, groups: &[u32]| Peer::Process {
            uid,
            gid,
            groups: groups.to_vec(),
        };
        let check = |peer: Peer, rules: Rules, read: bool, change: bool| {
            let may = |access| authorise(&peer, access, &rules).is_ok();
            let root = matches!(peer, Peer::Process { uid: 0, .. });
            assert_eq!(may(Access::Root), root, "{peer:?} as root");
            assert_eq!(may(Access::Read), read, "{peer:?} reads under {rules:?}");
            assert_eq!(may(Access::Change), change, "{peer:?} under {rules:?}");
        };
        check(process(0, 0, &[]), anyone, true, true);
        check(process(0, 0, &[]), rootonly, true, true);
        check(process(1000, 990, &[]), anyone, true, true);
        check(process(1000, 1000, &[27, 990]), closed, true, true);
        check(process(1000, 1000, &[27]), anyone, true, false);
        check(process(1000, 1000, &[27]), closed, false, false);
        check(process(1000, 990, &[990]), rootonly, false, false);
        // The group of number 0 is not the user root.
        check(process(1000, 0, &[0]), anyone, true, false);
        check(Peer::Loopback, anyone, true, false);
        check(Peer::Loopback, closed, true, false);
    }

    #[test]
    fn groups_count_only_for_the_same_user() {
        let status = "Name:\tbash\nUid:\t1000\t1000\t1000\t1000\nGroups:\t27 990 \n";
        assert_eq!(groups_in(status, 1000), [27, 990]);
        assert_eq!(groups_in(status, 1001), [0; 0]);
        let setuid = "Uid:\t1000\t0\t0\t0\nGroups:\t990\n";
        assert_eq!(groups_in(setuid, 1000), [0; 0]);
        assert_eq!(groups_in("", 1000), [0; 0]);
    }

    #[test]
    fn groups_are_found_by_name() {
        let file = "root:x:0:\nforebay:x:990:ann,bob\nbroken\n";
        assert_eq!(group_in(file, "forebay"), Some(990));
        assert_eq!(group_in(file, "fore"), None);
        assert_eq!(group_in(file, "broken"), None);
    }
}
