//! The keys of what is done with programs that Forebay starts.

use super::{Key, Kind, key};

/// Images of a program.
pub(super) const IMAGES: &[Key] = &[key(
    "every",
    Kind::Duration,
    "From the end of one image to the beginning of the next, 1s to 1 day (default 1min)",
)];

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
        "What becomes of established TCP connections when it goes along with its memory (checkpoint): it stays while there are any (refuse), or they are closed (default \"refuse\")",
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
