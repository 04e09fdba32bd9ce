//! All-day events of an iCalendar file.
//!
//! # Problem
//!
//! Holidays are published as iCalendar files (RFC 5545), written by many programs.
//!
//! # Approach
//!
//! Lines are unfolded, and of each VEVENT the first day, the day after the last, and whether it
//! comes again every year are read. Everything else is passed over: other properties, events with a time
//! of day, cancelled ones, those with a DURATION, EXDATE or RDATE, and rules of recurrence other than
//! the plain yearly one; these events are counted, and `forebay check` tells how many there are.
//!
//! # Properties
//!
//! - No text makes it panic; at most [`DATES_MAX`] days are kept, and an event is at most a year long.
//! - A file that is no calendar, or a date that is none, is refused with its line.

use std::collections::BTreeSet;

use jiff::ToSpan as _;
use jiff::civil::Date;

use super::DATES_MAX;

/// Days that one event may last.
const EVENT_DAYS_MAX: usize = 366;

/// The days of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holidays {
    /// Days of one year.
    pub dates: BTreeSet<Date>,
    /// Month and day of what comes every year.
    pub yearly: BTreeSet<(i8, i8)>,
    /// Events that were passed over: with a time of day, cancelled, or with another rule.
    pub skipped: usize,
}

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct IcsError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

#[derive(Debug, Default)]
struct Event {
    from: Option<Date>,
    /// Exclusive.
    until: Option<Date>,
    rule: Option<String>,
    is_odd: bool,
}

impl Holidays {
    /// Reads a file's text.
    ///
    /// # Errors
    /// When it is no calendar, has a date that is none, or more than [`DATES_MAX`] days.
    pub fn parse(text: &str) -> Result<Self, IcsError> {
        let mut found = Self::default();
        let mut event: Option<Event> = None;
        let mut is_calendar = false;
        for (line, content) in unfold(text) {
            let (name, value) = content.split_once(':').unwrap_or((&content, ""));
            let (name, parameters) = name.split_once(';').unwrap_or((name, ""));
            match (name.to_ascii_uppercase().as_str(), &mut event) {
                ("BEGIN", _) if value.eq_ignore_ascii_case("VCALENDAR") => is_calendar = true,
                ("BEGIN", _) if value.eq_ignore_ascii_case("VEVENT") => {
                    event = Some(Event::default())
                }
                ("END", Some(_)) if value.eq_ignore_ascii_case("VEVENT") => {
                    found.add(event.take().unwrap_or_default(), line)?;
                }
                ("DTSTART" | "DTEND", Some(event)) if is_timed(parameters, value) => {
                    event.is_odd = true;
                }
                ("DTSTART", Some(event)) => event.from = Some(date(value, line)?),
                ("DTEND", Some(event)) => event.until = Some(date(value, line)?),
                ("RRULE", Some(event)) => event.rule = Some(value.to_ascii_uppercase()),
                ("STATUS", Some(event)) if value.eq_ignore_ascii_case("CANCELLED") => {
                    event.is_odd = true;
                }
                // Days that are left out or added, and a length in words of its own.
                ("EXDATE" | "RDATE", Some(event)) => event.is_odd = true,
                ("DURATION", Some(event)) if value != "P1D" => event.is_odd = true,
                _ => {}
            }
            if !is_calendar {
                return Err(IcsError {
                    line,
                    message: "the file does not begin with BEGIN:VCALENDAR".to_owned(),
                });
            }
        }
        if is_calendar {
            return Ok(found);
        }
        Err(IcsError {
            line: 1,
            message: "the file is empty".to_owned(),
        })
    }

    fn add(&mut self, event: Event, line: usize) -> Result<(), IcsError> {
        let Some(from) = event.from.filter(|_| !event.is_odd) else {
            self.skipped += 1;
            return Ok(());
        };
        let yearly = match event.rule.as_deref() {
            None => false,
            Some(rule) if is_plain_yearly(rule, from) => true,
            Some(_) => {
                self.skipped += 1;
                return Ok(());
            }
        };
        let until = event.until.filter(|until| *until > from);
        let days = from.series(1.day()).take(EVENT_DAYS_MAX);
        for day in days.take_while(|day| *day == from || until.is_some_and(|until| *day < until)) {
            if yearly {
                self.yearly.insert((day.month(), day.day()));
            } else {
                self.dates.insert(day);
            }
        }
        if self.dates.len() <= DATES_MAX {
            return Ok(());
        }
        Err(IcsError {
            line,
            message: format!("the file has more than {DATES_MAX} days"),
        })
    }
}

/// Lines with their numbers; one that begins with a blank continues the one before.
fn unfold(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        match (line.strip_prefix([' ', '\t']), lines.last_mut()) {
            (Some(more), Some((_, last))) => last.push_str(more),
            _ if line.trim().is_empty() => {}
            _ => lines.push((index + 1, line.trim().to_owned())),
        }
    }
    lines
}

fn is_timed(parameters: &str, value: &str) -> bool {
    let is_date = parameters
        .split(';')
        .any(|one| one.eq_ignore_ascii_case("VALUE=DATE"));
    !is_date && value.contains('T')
}

/// `20261225`.
fn date(value: &str, line: usize) -> Result<Date, IcsError> {
    let digits = value.len() == 8 && value.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = digits
        .then(|| {
            let year = value[..4].parse().ok()?;
            Date::new(year, value[4..6].parse().ok()?, value[6..].parse().ok()?).ok()
        })
        .flatten();
    parsed.ok_or_else(|| IcsError {
        line,
        message: format!("`{value}` is no date, as 20261225 is"),
    })
}

/// Every year on the same day, for good; that day may be written out.
fn is_plain_yearly(rule: &str, from: Date) -> bool {
    let mut parts = rule.split(';').filter(|part| !part.is_empty());
    let is_plain = |part: &str| match part.split_once('=') {
        Some(("FREQ", every)) => every == "YEARLY",
        Some(("INTERVAL", every)) => every == "1",
        Some(("BYMONTH", month)) => month.parse() == Ok(from.month()),
        Some(("BYMONTHDAY", day)) => day.parse() == Ok(from.day()),
        Some(("WKST", _)) => true,
        _ => false,
    };
    let names = |name: &str| rule.split(';').any(|part| part.starts_with(name));
    // A day without its month is that day of every month.
    let is_one_day = names("BYMONTH=") || !names("BYMONTHDAY=");
    names("FREQ=YEARLY") && is_one_day && parts.all(is_plain)
}
