//! The keys of the fleet.

use super::{Key, Kind, key};

/// The hosts that share applications.
pub(super) const FLEET: &[Key] = &[
    key(
        "host",
        Kind::Text,
        "This host's name in the fleet, which no other host has (default: its host name)",
    ),
    key(
        "lease",
        Kind::Duration,
        "How long others wait for a sign of life before this host counts as lost, 5s to 5m (default 10s)",
    ),
    key(
        "etcd",
        Kind::Section(ETCD),
        "The etcd cluster that the hosts share; without this section the host is a fleet of its own",
    ),
    key("link", Kind::Section(LINK), "How agents reach each other"),
    key(
        "moves",
        Kind::Section(MOVES),
        "What moves to another host without being asked for; only where `offload.mode` is \"act\"",
    ),
    key(
        "lock",
        Kind::Section(LOCK),
        "Where hosts that speak FleetLock ask whether they may reboot; without this section nowhere",
    ),
];

const LOCK: &[Key] = &[
    key(
        "listen",
        Kind::Address,
        "IP address and port to listen at; whoever reaches it may take slots, in cleartext",
    ),
    key(
        "at_once",
        Kind::Count { min: 1, max: 64 },
        "Members of a group that may be away at once (default 1)",
    ),
    key(
        "groups",
        Kind::Texts,
        "The groups that are served (default [\"default\"], which rolling updates use as well)",
    ),
];

const ETCD: &[Key] = &[
    key(
        "endpoints",
        Kind::Texts,
        "Its members, each https://HOST:PORT, or http://HOST:PORT where nobody else is on the network",
    ),
    key(
        "prefix",
        Kind::Text,
        "What the names of all keys begin with; two fleets in one etcd need two (default \"/forebay\")",
    ),
    key("user", Kind::Text, "User to log in as"),
    key(
        "password_file",
        Kind::Text,
        "File with that user's password on its first line, for its owner alone",
    ),
    key(
        "ca",
        Kind::Text,
        "File with the certificates, in PEM, by which etcd's own is known",
    ),
    key(
        "certificate",
        Kind::Text,
        "File with this host's certificate for etcd, in PEM, where etcd wants one",
    ),
    key("key", Kind::Text, "File with its key, for its owner alone"),
];

const MOVES: &[Key] = &[
    key(
        "by_itself",
        Kind::Bool,
        "Whether applications with a `move` leave this host because they are constrained, or because a shortage of processor time is foreseen (default true)",
    ),
    key(
        "per_hour",
        Kind::Count { min: 1, max: 60 },
        "How many moves by itself this host begins within an hour; two thirds of them because of what is foreseen (default 6)",
    ),
    key(
        "rest",
        Kind::Duration,
        "How long an application stays after a move, 1s to 1d (default 15m)",
    ),
    key(
        "hold",
        Kind::Duration,
        "How long it does not go back to a host that it left, 1s to 7d (default 1h)",
    ),
    key(
        "foreseen_for",
        Kind::Duration,
        "How long a shortage must be foreseen before something is done about it, 1s to 1h (default 60s)",
    ),
];

const LINK: &[Key] = &[
    key(
        "listen",
        Kind::Address,
        "IP address and port at which the agent listens to those of other hosts; without it no application moves",
    ),
    key(
        "address",
        Kind::Text,
        "HOST:PORT at which others reach it (default: `listen`, where that is one address)",
    ),
    key(
        "rdma",
        Kind::Choice {
            noun: "use of RDMA",
            words: &["auto", "off", "require"],
        },
        "Whether what moves goes over RDMA: \"auto\" where both hosts have it, over TCP otherwise; \"require\" moves nothing otherwise (default \"auto\")",
    ),
];
