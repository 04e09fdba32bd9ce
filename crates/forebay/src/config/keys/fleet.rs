//! The keys of the fleet.

use super::{Key, Kind, key};

/// This host in a fleet.
pub(super) const FLEET: &[Key] = &[
    key(
        "etcd",
        Kind::Texts,
        "Addresses of etcd, which the hosts share, such as \"https://etcd1:2379\"; without any this host is a fleet by itself",
    ),
    key(
        "prefix",
        Kind::Text,
        "What the fleet's keys begin with there (default \"/forebay\")",
    ),
    key(
        "ca",
        Kind::Text,
        "File with the certificates of the authorities that etcd's certificate may be of",
    ),
    key(
        "certificate",
        Kind::Text,
        "File with this host's certificate for etcd; goes with `key`",
    ),
    key("key", Kind::Text, "File with the key of `certificate`"),
    key(
        "user",
        Kind::Text,
        "User of etcd; goes with `password_file`",
    ),
    key(
        "password_file",
        Kind::Text,
        "File with the password of `user`",
    ),
    key(
        "listen",
        Kind::Text,
        "ADDRESS:PORT where the agents of other hosts connect (default \"0.0.0.0:7346\")",
    ),
    key(
        "address",
        Kind::Text,
        "HOST:PORT as other hosts reach it (default: the host's name with the port of `listen`)",
    ),
    key(
        "lease",
        Kind::Duration,
        "How long this host counts as a member without a word, 2s to 5min (default 10s)",
    ),
];
