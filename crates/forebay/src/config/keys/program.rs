//! The keys of what is done with programs that Forebay starts.

use super::{Key, Kind, key};

/// Images of a program.
pub(super) const IMAGES: &[Key] = &[key(
    "every",
    Kind::Duration,
    "From the end of one image to the beginning of the next, 1s to 1 day (default 1min)",
)];

/// How it takes part in updates of the operating system.
pub(super) const UPDATE: &[Key] = &[
    key(
        "timeout",
        Kind::Duration,
        "How long it has to answer `ready` when it is told to prepare, 1s to 10min (default 30s)",
    ),
    key(
        "otherwise",
        Kind::Choice {
            noun: "way",
            words: &["refuse", "next"],
        },
        "What is done where it does not: the update does not begin (refuse), or it is carried through as if it were not told (next) (default \"refuse\")",
    ),
];

/// What an app may have of accelerators.
pub(super) const ACCELERATORS: &[Key] = &[
    key(
        "allow",
        Kind::Texts,
        "The devices that its worker uses, as `forebay accel devices` names them (default: all)",
    ),
    key("deny", Kind::Texts, "Devices that its worker does not use"),
    key(
        "time",
        Kind::Percent,
        "Part of the time of each device that its tasks may take, 1% to 100% (default 100%)",
    ),
    key(
        "memory",
        Kind::OrMax(&Kind::Bytes),
        "Memory of a device that its tasks may take (default \"max\")",
    ),
    key(
        "priority",
        Kind::Choice {
            noun: "priority",
            words: &["low", "normal", "high"],
        },
        "Beside other apps that use the same device at the same time; they get time as 1 to 4 to 16 (default: low for batch, high for critical apps)",
    ),
];

/// How an app changes hosts.
pub(super) const MOVE: &[Key] = &[
    key(
        "mode",
        Kind::Choice {
            noun: "mode",
            words: &["pinned", "restart", "checkpoint", "handoff"],
        },
        "What becomes of its processes: they stay (pinned), start anew there (restart), go along with their memory (checkpoint), or a shadow takes over (handoff) (default \"pinned\")",
    ),
    key(
        "files",
        Kind::Texts,
        "Absolute paths of the files and directories that go along; all hosts of the fleet name the same",
    ),
    key(
        "connections",
        Kind::Choice {
            noun: "connections",
            words: &["refuse", "close"],
        },
        "What becomes of established TCP connections when it goes along with its memory (checkpoint): it stays while there are any but those at its `address`, which go along (refuse), or all are closed (default \"refuse\")",
    ),
    key(
        "address",
        Kind::Text,
        "The address where its clients reach it, with its prefix, such as 10.77.0.5/24: on the host that owns it alone, put there and announced by Forebay (restart and checkpoint); all hosts of the fleet name the same",
    ),
    key(
        "device",
        Kind::Text,
        "The network device of this host that `address` is put on (default: the one that has an address of that network)",
    ),
    key(
        "memory",
        Kind::Choice {
            noun: "memory",
            words: &["pre-copy", "post-copy"],
        },
        "When its memory is sent where it goes along (checkpoint): all of it before it goes on there (pre-copy), or what is left after a round or two once it runs there (post-copy), during which the loss of either host ends it (default \"pre-copy\")",
    ),
    key(
        "apart",
        Kind::Texts,
        "Apps that it shares no host with, such as another instance of the same service: it comes to no host where one of them is, nor one of them to its own",
    ),
    key(
        "takeover",
        Kind::Choice {
            noun: "takeover",
            words: &["never", "after-lease"],
        },
        "Whether other hosts may take it over when this one is lost; then it is frozen here when the coordinator is (default \"never\")",
    ),
];
