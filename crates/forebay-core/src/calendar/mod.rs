//! When things happen: schedules as systemd's timers and cron write them.
//!
//! # Problem
//!
//! Much of what an app will need soon is written down on the host already: a backup at three, a
//! report on weekdays, a promotion from ten to twelve. What is written are patterns of local time, and
//! local time has days that are an hour short or long.
//!
//! # Approach
//!
//! Both notations become an [`Expression`](field::Expression): a set of values for each field of a
//! local time. The next match is found field by field, days first, and then placed on the line of
//! time by the zone's rules. A local time that a change of the clock skips, or repeats, is treated as
//! whoever would carry it out treats it:
//!
//! | | skipped | repeated |
//! |---|---|---|
//! | OnCalendar | does not happen | happens the first time |
//! | cron, hour or minute a `*` | does not happen | happens both times |
//! | cron, otherwise | happens when the clock has changed | happens the first time |
//!
//! # Properties
//!
//! - [`Schedule::next_after`] is after its argument, matches the fields, and nothing between the two
//!   does. Its work is bounded by the years that are looked at.
//! - No text makes a parser panic, and every mistake names the part it is in.
//! - Nothing here reads a clock, the environment or a file: the zone is an argument.
//!
//! Sources: systemd.time(7), "Calendar Events", and the behaviour of `systemd-analyze calendar` 252;
//! crontab(5) and cron(8) of Debian, for the two rules of the clock's changes too.

mod cron;
mod days;
mod field;
mod ics;
mod on_calendar;

use std::fmt;
use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

pub use days::{DATES_MAX, Days};
use field::Expression;
pub use ics::{Holidays, IcsError};

/// A longer expression is refused.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The zones that an expression may mean.
#[derive(Clone, Copy)]
pub struct Zones<'a> {
    /// Of expressions that name none.
    pub local: &'a TimeZone,
    /// Of those that name one, such as `Europe/Berlin`.
    pub named: &'a dyn Fn(&str) -> Option<TimeZone>,
}

impl fmt::Debug for Zones<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zones")
            .field("local", &self.local.iana_name())
            .finish_non_exhaustive()
    }
}

impl Zones<'static> {
    /// UTC and no other.
    pub const UTC: Self = Self {
        local: &TimeZone::UTC,
        named: &|_| None,
    };
}

/// What is wrong with an expression: at which part, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {fix}")]
pub struct ScheduleError {
    /// What is wrong, with the part of the text.
    pub message: String,
    /// What to write instead.
    pub fix: String,
}

impl ScheduleError {
    fn new(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            fix: fix.into(),
        }
    }
}

/// Times that recur: those of at least one expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    expressions: Vec<Expression>,
}

impl Schedule {
    /// Reads either notation: five fields and `@daily` are cron's, all else is `OnCalendar`'s.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str, zones: Zones<'_>) -> Result<Self, ScheduleError> {
        let nickname = text.trim_start().strip_prefix('@');
        let is_cron = nickname.is_some_and(|rest| rest.starts_with(|c: char| c.is_alphabetic()))
            || text.split_whitespace().count() == cron::FIELDS;
        if is_cron {
            Self::cron(text, zones)
        } else {
            Self::on_calendar(text, zones)
        }
    }

    /// Reads what systemd takes for `OnCalendar=`.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn on_calendar(text: &str, zones: Zones<'_>) -> Result<Self, ScheduleError> {
        refuse_long(text)?;
        on_calendar::parse(text, zones).map(Self::single)
    }

    /// Reads the five fields of a crontab, or `@daily` and its like.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn cron(text: &str, zones: Zones<'_>) -> Result<Self, ScheduleError> {
        refuse_long(text)?;
        cron::parse(text, zones).map(Self::single)
    }

    fn single(expression: Expression) -> Self {
        Self {
            expressions: vec![expression],
        }
    }

    /// Whatever happens by one of these.
    #[must_use]
    pub fn any(schedules: impl IntoIterator<Item = Self>) -> Self {
        let each = schedules.into_iter();
        Self {
            expressions: each.flat_map(|schedule| schedule.expressions).collect(),
        }
    }

    /// The first time after `after`, if there is one before the year 2200.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let each = self.expressions.iter();
        each.filter_map(|expression| expression.next_after(after))
            .min()
    }

    /// All times in a window, its start included and its end not.
    pub fn within(&self, window: Range<Timestamp>) -> impl Iterator<Item = Timestamp> {
        let before = window.start.checked_sub(std::time::Duration::from_nanos(1));
        let first = before.ok().and_then(|before| self.next_after(before));
        std::iter::successors(first, |last| self.next_after(*last))
            .take_while(move |time| *time < window.end)
    }

    /// Whether it happens at some time of a day, whatever the clock does on it.
    #[must_use]
    pub fn has_day(&self, date: Date) -> bool {
        self.expressions.iter().any(|each| each.has_day(date))
    }
}

fn refuse_long(text: &str) -> Result<(), ScheduleError> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(ScheduleError::new(
        format!("the schedule is longer than {TEXT_BYTES_MAX} bytes"),
        "divide it into several",
    ))
}
