//! The keys of the section `dashboard`.

use super::{Key, Kind, key};

/// The page that the daemon keeps.
pub(super) const DASHBOARD: &[Key] = &[
    key(
        "listen",
        Kind::Address,
        "Loopback address and port of the page (default 127.0.0.1:9476)",
    ),
    key(
        "read_only",
        Kind::Bool,
        "Whether the page only looks; false has it change what members of `daemon.group` may (default true)",
    ),
    key(
        "user",
        Kind::Text,
        "User that the page's process runs as (default \"nobody\")",
    ),
];
