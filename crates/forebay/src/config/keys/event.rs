//! The keys of events and calendars.

use super::{COUNT_MAX, Key, Kind, key};

/// One event.
pub(super) const EVENT: &[Key] = &[
    key("name", Kind::Text, "Its name, which no other event has"),
    key(
        "schedule",
        Kind::TextOrTexts,
        "When it begins, as OnCalendar of systemd.time(7) or in the five fields of crontab(5)",
    ),
    key(
        "timezone",
        Kind::Text,
        "The zone of its times, such as \"Europe/Berlin\" (default: the host's)",
    ),
    key(
        "duration",
        Kind::Duration,
        "How long it lasts, 1min to 7d (default 10min, until it was measured)",
    ),
    key(
        "apps",
        Kind::Texts,
        "The apps that it is expected to change",
    ),
    key(
        "only_on",
        Kind::Text,
        "A calendar: it happens on those days alone",
    ),
    key(
        "except",
        Kind::Text,
        "A calendar: it never happens on those days",
    ),
    key(
        "cpu",
        Kind::Cpu,
        "The most processor time that each of its apps needs then",
    ),
    key(
        "memory",
        Kind::Bytes,
        "The most memory that each of its apps needs then",
    ),
    key(
        "io",
        Kind::Bytes,
        "The most bytes a second to and from disks that each of its apps needs then",
    ),
    key(
        "received",
        Kind::Rate,
        "The most that each of its apps receives then",
    ),
    key(
        "sent",
        Kind::Rate,
        "The most that each of its apps sends then",
    ),
    key(
        "requests",
        Kind::Count {
            min: 1,
            max: COUNT_MAX,
        },
        "The most requests a second that each of its apps serves then",
    ),
];

/// One calendar.
pub(super) const CALENDAR: &[Key] = &[
    key(
        "dates",
        Kind::TextOrTexts,
        "Its days, as OnCalendar without a time, such as \"*-12-25\"",
    ),
    key(
        "ics",
        Kind::Text,
        "An iCalendar file whose all-day events are its days, too",
    ),
    key(
        "timezone",
        Kind::Text,
        "Where its days begin and end (default: the host's)",
    ),
];
