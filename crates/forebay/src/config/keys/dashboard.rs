//! The keys of the section `dashboard`.

use super::{Key, Kind, key};

/// The page that the daemon keeps.
pub(super) const DASHBOARD: &[Key] = &[
    key(
        "listen",
        Kind::Address,
        "Address and port of the page, a loopback address where it speaks no TLS (default 127.0.0.1:9476)",
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
    key(
        "tls",
        Kind::Section(TLS),
        "What TLS with browsers needs; without this section they are spoken with in cleartext, on loopback alone",
    ),
];

const TLS: &[Key] = &[
    key(
        "certificate",
        Kind::Text,
        "File with the page's certificate and then those that vouch for it, in PEM",
    ),
    key(
        "key",
        Kind::Text,
        "File with the certificate's private key in PEM, not for everybody",
    ),
    key(
        "client_ca",
        Kind::Text,
        "File with the certificates, in PEM, of those who vouch for browsers: who has none of theirs is refused (default: none is asked for)",
    ),
];
