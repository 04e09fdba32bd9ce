//! The keys of fronts.

use super::{Key, Kind, key};

const MODES: &[&str] = &["tcp", "http", "redis", "postgres"];

/// One front.
pub(super) const FRONT: &[Key] = &[
    key(
        "mode",
        Kind::Choice {
            noun: "mode",
            words: MODES,
        },
        "What clients speak",
    ),
    key(
        "listen",
        Kind::Texts,
        "Where clients connect: ADDRESS:PORT, the absolute path of a Unix socket, or systemd:NAME for the sockets that systemd passes under a name",
    ),
    key(
        "instances",
        Kind::TextMap,
        "The apps that serve, two at least, each with the address at which the front reaches it",
    ),
    key(
        "elsewhere",
        Kind::TextMap,
        "Those of the instances that other hosts run, each with its host's name",
    ),
    key(
        "primary",
        Kind::Text,
        "Which of them serves at the very beginning (default: the first by name)",
    ),
    key(
        "user",
        Kind::Text,
        "User that the front runs as once it listens (default \"nobody\")",
    ),
    key(
        "connections_max",
        Kind::Count {
            min: 1,
            max: 1_000_000,
        },
        "Connections at the same time; more are refused (default 10000)",
    ),
    key(
        "patience",
        Kind::Duration,
        "How long a request may wait for somebody to serve it, 100ms to 10min (default 5s)",
    ),
    key(
        "grace",
        Kind::Duration,
        "Silence of the primary that is always allowed, such as its longest pause, at most 1min (default 0ms)",
    ),
    key(
        "drain",
        Kind::Duration,
        "How long connections may go on once another process of the front has taken the place, at most 7d (default 1h)",
    ),
    key(
        "proxy_protocol",
        Kind::Section(FRONT_PROXY),
        "Who a client is, where that is said before its first byte",
    ),
    key(
        "http",
        Kind::Section(FRONT_HTTP),
        "What can be chosen of mode \"http\"",
    ),
    key(
        "redis",
        Kind::Section(FRONT_REDIS),
        "What can be chosen of mode \"redis\"",
    ),
    key(
        "postgres",
        Kind::Section(FRONT_POSTGRES),
        "What mode \"postgres\" has to know",
    ),
];

const GUARANTEE: Kind = Kind::Choice {
    noun: "guarantee",
    words: &["fast", "strict"],
};

const FRONT_PROXY: &[Key] = &[
    key(
        "accept",
        Kind::Bool,
        "Whether each client begins with a header, version 1 or 2; others are refused (default false)",
    ),
    key(
        "send",
        Kind::Bool,
        "Whether each connection to an instance begins with one, version 2: mode \"tcp\" only (default false)",
    ),
];

const FRONT_HTTP: &[Key] = &[
    key(
        "forwarded_for",
        Kind::Bool,
        "Whether instances are told the client's address in X-Forwarded-For (default false)",
    ),
    key(
        "mirror",
        Kind::Percent,
        "Share of requests that the shadow gets as well, its answers compared and dropped (default 0%)",
    ),
    key(
        "mirror_writes",
        Kind::Bool,
        "Whether requests that change something are mirrored: for a shadow with a state of its own (default false)",
    ),
    key(
        "mirror_ignore",
        Kind::Texts,
        "Beginnings of paths whose answers differ by their nature: only their status is compared",
    ),
    key(
        "spread",
        Kind::Percent,
        "Share of reads that the shadow answers (default 0%)",
    ),
    key(
        "spread_within",
        Kind::Duration,
        "How long the shadow may take until its answer begins (default 1s)",
    ),
    key(
        "tls",
        Kind::Section(FRONT_TLS),
        "What TLS with clients needs; without this section they are spoken with in cleartext",
    ),
];

const CERTIFICATE: Key = key(
    "certificate",
    Kind::Text,
    "File with the front's certificate and then those that vouch for it, in PEM",
);
const CERTIFICATE_KEY: Key = key(
    "key",
    Kind::Text,
    "File with the certificate's private key in PEM, not for everybody",
);

const FRONT_TLS: &[Key] = &[
    CERTIFICATE,
    CERTIFICATE_KEY,
    key(
        "listen",
        Kind::Texts,
        "Those of the front's addresses at which TLS is spoken, and nothing else (default: all)",
    ),
];

const FRONT_POSTGRES_TLS: &[Key] = &[
    CERTIFICATE,
    CERTIFICATE_KEY,
    key(
        "listen",
        Kind::Texts,
        "Those of the front's addresses at which TLS is offered (default: all of TCP)",
    ),
    key(
        "require",
        Kind::Bool,
        "Whether clients that do not ask for TLS are refused there (default false)",
    ),
];

const FRONT_REDIS: &[Key] = &[
    key(
        "guarantee",
        GUARANTEE,
        "\"fast\": a write is acknowledged by the primary; \"strict\": and is on the shadow (default fast)",
    ),
    key(
        "without_shadow",
        Kind::Choice {
            noun: "way",
            words: &["refuse", "continue"],
        },
        "What strict does with writes while a shadow is missing (default refuse)",
    ),
    key(
        "confirm",
        Kind::Duration,
        "How long strict waits for shadows to have what was written (default 500ms)",
    ),
    key(
        "long",
        Kind::Duration,
        "How long a command that works on much data may keep the primary silent (default 2s)",
    ),
    key(
        "stuck",
        Kind::Duration,
        "How long a client may leave a command unfinished, or all that may wait for it unread (default 1min)",
    ),
    key(
        "read_from_shadow",
        Kind::Bool,
        "Whether a shadow answers reads, perhaps with what was true a moment ago (default false)",
    ),
    key(
        "command_bytes_max",
        Kind::Bytes,
        "Longest command (default 64MiB)",
    ),
    key(
        "user",
        Kind::Text,
        "User of the front itself and of replication (default: Redis's default user)",
    ),
    key(
        "password_file",
        Kind::Text,
        "File with that user's password on its first line, for its owner alone",
    ),
    key(
        "tls",
        Kind::Section(FRONT_TLS),
        "What TLS with clients needs; without this section they are spoken with in cleartext",
    ),
];

const FRONT_POSTGRES: &[Key] = &[
    key(
        "user",
        Kind::Text,
        "Superuser that the front asks the servers as: it promotes, and repeats logins",
    ),
    key(
        "password_file",
        Kind::Text,
        "File with that user's password on its first line, for its owner alone",
    ),
    key(
        "database",
        Kind::Text,
        "Database that the front connects to (default \"postgres\")",
    ),
    key(
        "guarantee",
        GUARANTEE,
        "\"fast\": a commit is on the primary; \"strict\": and on the standby, whenever one is ready (default fast)",
    ),
    key(
        "lag_max",
        Kind::Bytes,
        "How far a standby may be behind and still take over (default 16MiB)",
    ),
    key(
        "data",
        Kind::TextMap,
        "Data directory of each instance: Forebay makes standbys itself, when it starts an instance that does not serve",
    ),
    key(
        "bin",
        Kind::Text,
        "Directory of PostgreSQL's programs, for `data` (default: that of the instances' `exec`)",
    ),
    key(
        "rebuild",
        Kind::Texts,
        "In place of `data`: command that makes an instance a standby of the primary and starts it; it runs as the front's user",
    ),
    key(
        "rebuild_after",
        Kind::Duration,
        "How long an instance may be away before it is rebuilt, 1ms to 10min (default 2s)",
    ),
    key(
        "tls",
        Kind::Section(FRONT_POSTGRES_TLS),
        "What TLS with clients that ask for it needs; without this section they are told that there is none",
    ),
];
