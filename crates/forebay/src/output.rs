//! What commands print: text for people, or JSON for programs.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// For whom a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Aligned text.
    People,
    /// One JSON document, or one a line for what goes on.
    Json,
}

/// Where a command prints to.
pub(crate) struct Output {
    format: Format,
    to: Box<dyn Write>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// Standard output.
    pub(crate) fn stdout(format: Format) -> Self {
        Self::to(format, io::stdout())
    }

    /// Somewhere else.
    pub(crate) fn to(format: Format, to: impl Write + 'static) -> Self {
        let to = Box::new(to);
        Self { format, to }
    }

    /// For whom it prints.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    pub(crate) fn show<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        let mut text = match self.format {
            Format::People => harmless(text(value)),
            Format::Json => serde_json::to_string_pretty(value)?,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.to.write_all(text.as_bytes())?;
        self.to.flush()
    }

    /// Prints one of many, as one line.
    pub(crate) fn line<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        let text = match self.format {
            Format::People => harmless(text(value)),
            Format::Json => serde_json::to_string(value)?,
        };
        writeln!(self.to, "{text}")?;
        self.to.flush()
    }
}

/// Names and reasons come from elsewhere, and a terminal obeys what it is sent. Nor may they change the
/// direction of what stands beside them.
pub(crate) fn harmless(text: String) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_harmful = |c: char| c.is_control() && c != '\n' && c != '\t' || turns(c);
    if text.contains(is_harmful) {
        text.replace(is_harmful, "\u{fffd}")
    } else {
        text
    }
}

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    align: Align,
}

/// A column of words.
pub(crate) const fn words(title: &'static str) -> Column {
    let align = Align::Left;
    Column { title, align }
}

/// A column of numbers.
pub(crate) const fn numbers(title: &'static str) -> Column {
    let align = Align::Right;
    Column { title, align }
}

/// Rows under their titles, each column as wide as its widest cell.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    let titles = columns.map(|column| column.title.to_owned());
    let lines = || std::iter::once(&titles).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|i| {
        lines()
            .map(|line| line[i].chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for line in lines() {
        let cells: [String; N] = std::array::from_fn(|i| {
            let (cell, width) = (&line[i], widths[i]);
            match columns[i].align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            }
        });
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// A point in time, for people: `2026-02-28 13:05:09` UTC.
pub(crate) fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Year, month and day of the day so many days after 1970-01-01, in the Gregorian calendar.
/// Counts in eras of 400 years from 0000-03-01, so that a leap day ends a year; see Howard
/// Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [
            ["web".to_owned(), "0.40".to_owned()],
            ["a-long-name".to_owned(), "12.00".to_owned()],
        ];
        assert_eq!(
            table([words("APP"), numbers("CPU")], &rows),
            "APP            CPU\n\
             web           0.40\n\
             a-long-name  12.00\n"
        );
        assert_eq!(table([words("APP"), numbers("CPU")], &[]), "APP  CPU\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_sent() {
        assert_eq!(harmless("a\tb ü…\n".to_owned()), "a\tb ü…\n");
        assert_eq!(
            harmless("\u{1b}]0;x\u{7}".to_owned()),
            "\u{fffd}]0;x\u{fffd}"
        );
        assert_eq!(harmless("\r\u{9b}2J".to_owned()), "\u{fffd}\u{fffd}2J");
        assert_eq!(harmless("\u{202e}gnp".to_owned()), "\u{fffd}gnp");
    }

    #[test]
    fn times_are_dates() {
        let check = |seconds: u64, shown: &str| assert_eq!(utc(seconds * 1000), shown);
        check(0, "1970-01-01 00:00:00");
        check(951_782_399, "2000-02-28 23:59:59");
        check(951_782_400, "2000-02-29 00:00:00");
        check(951_868_800, "2000-03-01 00:00:00");
        check(1_735_689_599, "2024-12-31 23:59:59");
        check(1_735_689_600, "2025-01-01 00:00:00");
        check(4_107_542_400, "2100-03-01 00:00:00");
    }
}
