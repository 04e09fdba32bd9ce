//! Days that are unlike others: holidays, inventories, the last trading day.

use std::collections::BTreeSet;

use jiff::civil::Date;

use super::{Holidays, Schedule};

/// Dates that one calendar may have beside its expressions.
pub const DATES_MAX: usize = 4096;

/// Days by expressions and by date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Days {
    schedules: Vec<Schedule>,
    dates: BTreeSet<Date>,
    /// Month and day.
    yearly: BTreeSet<(i8, i8)>,
}

impl Days {
    /// The days of expressions such as `*-12-25`, whatever their times are, and those of
    /// iCalendar files.
    #[must_use]
    pub fn new(schedules: Vec<Schedule>, holidays: impl IntoIterator<Item = Holidays>) -> Self {
        let mut days = Self {
            schedules,
            ..Self::default()
        };
        for each in holidays {
            days.dates.extend(each.dates);
            days.yearly.extend(each.yearly);
        }
        days
    }

    /// Whether a day is one of them.
    #[must_use]
    pub fn has(&self, date: Date) -> bool {
        self.dates.contains(&date)
            || self.yearly.contains(&(date.month(), date.day()))
            || self.schedules.iter().any(|each| each.has_day(date))
    }
}
