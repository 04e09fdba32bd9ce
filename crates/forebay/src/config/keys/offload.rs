//! The keys of the section `offload`.

use super::{Key, Kind, key};

/// What counts as a constraint, and what is done about it.
pub(super) const OFFLOAD: &[Key] = &[
    key(
        "mode",
        Kind::Choice {
            noun: "mode",
            words: &["off", "watch", "act"],
        },
        "What is done about apps that their slices do not hold: \"watch\" says who is constrained and what could be tried, \"act\" tries it, measures, and keeps it or takes it back (default \"watch\")",
    ),
    key(
        "cpu",
        Kind::Percent,
        "Share of the processor time of its slice above which an app is constrained (default 80%)",
    ),
    key(
        "memory",
        Kind::Percent,
        "The same of the memory that it may have (default 90%)",
    ),
    key(
        "io",
        Kind::Percent,
        "The same of the time of a block device that was measured (default 80%)",
    ),
    key(
        "network",
        Kind::Percent,
        "The same of what it may send, where `ceiling.egress` bounds that (default 80%)",
    ),
    key(
        "cpu_waits",
        Kind::Percent,
        "Share of time in which some task of it waits for a CPU (default 25%)",
    ),
    key(
        "memory_waits",
        Kind::Percent,
        "Share of time in which some task of it waits for memory (default 10%)",
    ),
    key(
        "io_waits",
        Kind::Percent,
        "Share of time in which some task of it waits for I/O (default 25%)",
    ),
    key(
        "response_time",
        Kind::Duration,
        "Time until an answer, of apps without `response_time_max`, 1ms to 1h (default 500ms)",
    ),
    key(
        "errors",
        Kind::Percent,
        "Share of errors among its answers, where a front of mode http sees them (default 1%)",
    ),
    key(
        "chance",
        Kind::Percent,
        "With what chance a constraint must be forecast to count, 1% to 50% (default 50%)",
    ),
    key(
        "persistence",
        Kind::Duration,
        "How long it must last to count, and be over to count no more, at most 1h (default 3s)",
    ),
    key(
        "cool_down",
        Kind::Duration,
        "How long after its end it does not count again, at most 1h (default 30s)",
    ),
    key(
        "settling",
        Kind::Duration,
        "How long the effect of what was tried is waited for, 1s to 1h; of slower steps a multiple (default 5s)",
    ),
];
