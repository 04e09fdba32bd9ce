//! Recorded series, read from files as users have them.
//!
//! # Problem
//!
//! A recording is exported by something else: with or without a heading, with columns in any
//! order, quoted, with holes, repeated and late rows. What is read wrongly makes every number
//! that is printed afterwards wrong, and nobody sees it.
//!
//! # Approach
//!
//! Lines are read one at a time. The first one tells the separator (tab, semicolon or comma),
//! and whether it is a heading: it is unless one of its fields is a number or a time. Columns are
//! `value` and one of `timestamp`, `time`, `ts`, `date`, `datetime`; where there are two, the
//! other is the other one, and without a heading the first is the time. A single column is the
//! value, and time is then unknown.
//!
//! The period of samples is the median step of the first rows. A row that comes later than that
//! leaves gaps behind; where more are missing than a model remembers, it starts anew.
//!
//! # Properties
//!
//! - What is not understood is refused with its line. What is skipped or replaced is counted.
//! - No bytes make it panic; a line and the number of steps are bounded, and so is memory: eight
//!   bytes for each step.
//! - Decimal commas and thousands separators are refused: which one `1,234` has, nobody can say.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use forebay_forecast::VALUE_MAX;

use super::time::{self, Time, Unit};

/// Steps that a recording may have, missing ones included.
pub(crate) const STEPS_MAX: usize = 20_000_000;
/// Bytes that a line may have.
const LINE_MAX: u64 = 65_536;
/// Rows from which the period of samples is found.
const PROBED: usize = 1024;
const TIME_NAMES: [&str; 5] = ["timestamp", "time", "ts", "date", "datetime"];
const VALUE_NAME: &str = "value";
/// What stands for a value that is not there, in lower case.
const MISSING: [&str; 6] = ["", "-", "na", "n/a", "null", "none"];

/// Whether rows stand for steps or times do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spacing {
    /// Times tell: missing rows are gaps, and more than so many of them a new start.
    Times { gap_max: usize },
    /// Each row is one step, whatever its time.
    Rows,
}

/// Why a recording was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The system refused something.
    #[error("read {}; {advice}", file.display())]
    System {
        file: PathBuf,
        advice: &'static str,
        source: io::Error,
    },
    /// A line of it.
    #[error("{}:{line}: {what}; {advice}", file.display())]
    Line {
        file: PathBuf,
        line: u64,
        what: String,
        advice: &'static str,
    },
    /// All of it.
    #[error("{}: {what}; {advice}", file.display())]
    File {
        file: PathBuf,
        what: String,
        advice: &'static str,
    },
}

/// What is wrong with a line, and what to do.
#[derive(Debug)]
struct Wrong {
    what: String,
    advice: &'static str,
}

fn wrong(what: impl Into<String>, advice: &'static str) -> Wrong {
    Wrong {
        what: what.into(),
        advice,
    }
}

/// Values by step, of which some are gaps. A gap is kept as a number that no value can be, which
/// halves the memory of a long recording.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    fn push(&mut self, sample: Option<f64>) {
        self.0.push(sample.unwrap_or(f64::NAN));
    }

    fn replace_last(&mut self, sample: Option<f64>) {
        if let Some(last) = self.0.last_mut() {
            *last = sample.unwrap_or(f64::NAN);
        }
    }

    /// Steps.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value of a step. None for a gap and beyond the end.
    pub(crate) fn get(&self, step: usize) -> Option<f64> {
        self.0.get(step).copied().filter(|value| !value.is_nan())
    }

    /// The values that are there, by step.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Option<f64>> + '_ {
        (0..self.len()).map(|step| self.get(step))
    }
}

impl FromIterator<Option<f64>> for Samples {
    fn from_iter<I: IntoIterator<Item = Option<f64>>>(values: I) -> Self {
        let mut samples = Self::default();
        values.into_iter().for_each(|value| samples.push(value));
        samples
    }
}

/// What was counted while reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Counts {
    /// Rows with a time or a value.
    pub(crate) rows: u64,
    /// Of them without a value.
    pub(crate) empty: u64,
    /// Of them with a value that is not finite, which are gaps too.
    pub(crate) not_finite: u64,
    /// Of them with the time of the row before, which they replace.
    pub(crate) repeated: u64,
    /// Steps without a row.
    pub(crate) absent: u64,
}

/// One recorded series.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recording {
    /// One for each step.
    pub(crate) samples: Samples,
    /// Steps at which a series begins anew, ascending, after more was missing than is remembered.
    pub(crate) restarts: Vec<usize>,
    /// Between two samples. None where times are unknown.
    pub(crate) period_seconds: Option<f64>,
    /// What was counted.
    pub(crate) counts: Counts,
}

impl Recording {
    /// The last steps of it, at most so many.
    pub(crate) fn latest(mut self, steps: usize) -> Self {
        let cut = self.samples.len().saturating_sub(steps);
        self.samples.0.drain(..cut);
        self.restarts.retain(|&step| step > cut);
        self.restarts.iter_mut().for_each(|step| *step -= cut);
        self
    }
}

/// Reads a file.
///
/// # Errors
/// When it cannot be read, or a line of it is not understood.
pub(crate) fn read(file: &Path, spacing: Spacing) -> Result<Recording, Error> {
    let opened = File::open(file).map_err(|source| Error::System {
        file: file.to_owned(),
        advice: "name a CSV file that can be read",
        source,
    })?;
    parse(file, BufReader::with_capacity(1 << 16, opened), spacing)
}

/// Reads what a file holds.
///
/// # Errors
/// When it cannot be read, or a line of it is not understood.
pub(crate) fn parse(
    file: &Path,
    mut input: impl BufRead,
    spacing: Spacing,
) -> Result<Recording, Error> {
    let mut rows = Rows::new(spacing);
    let mut layout: Option<Layout> = None;
    let mut bytes = Vec::new();
    let mut number = 0;
    let at = |line: u64| {
        let file = file.to_owned();
        move |Wrong { what, advice }| Error::Line {
            file,
            line,
            what,
            advice,
        }
    };
    loop {
        bytes.clear();
        input
            .by_ref()
            .take(LINE_MAX + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|source| Error::System {
                file: file.to_owned(),
                advice: "name a CSV file that can be read",
                source,
            })?;
        if bytes.is_empty() {
            break;
        }
        number += 1;
        let line = text(&bytes, number).map_err(at(number))?;
        if line.trim().is_empty() {
            continue;
        }
        let known = match &layout {
            Some(layout) => layout,
            None => {
                let (found, is_heading) = Layout::of(line, number).map_err(at(number))?;
                let known = layout.insert(found);
                if is_heading {
                    continue;
                }
                known
            }
        };
        let row = known.row(line).map_err(at(number))?;
        rows.add(number, row)
            .map_err(|(line, wrong)| at(line)(wrong))?;
    }
    let recording = rows.finish().map_err(|(line, wrong)| at(line)(wrong))?;
    if recording.samples.iter().flatten().next().is_none() {
        let what = if number == 0 {
            "it is empty"
        } else {
            "no row has a value"
        };
        return Err(Error::File {
            file: file.to_owned(),
            what: what.to_owned(),
            advice: "write one line for each sample: time,value",
        });
    }
    Ok(recording)
}

/// A line as text, without its end.
fn text(bytes: &[u8], number: u64) -> Result<&str, Wrong> {
    const ADVICE: &str = "name a CSV file in UTF-8, with one sample a line";
    let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) if number == 1 => rest,
        _ => bytes,
    };
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if u64::try_from(line.len()).unwrap_or(u64::MAX) > LINE_MAX {
        return Err(wrong(
            format!("the line is longer than {LINE_MAX} bytes"),
            ADVICE,
        ));
    }
    match std::str::from_utf8(line) {
        Ok(line) if !line.contains('\0') => Ok(line),
        _ => Err(wrong("this is not text", ADVICE)),
    }
}

/// Where times and values are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    separator: char,
    columns: usize,
    time: Option<usize>,
    value: usize,
    /// The line that told.
    told_by: u64,
}

/// What a row says.
#[derive(Debug, Clone, Copy)]
struct Row {
    time: Option<Time>,
    value: Cell,
}

#[derive(Debug, Clone, Copy)]
enum Cell {
    Value(f64),
    Empty,
    NotFinite,
}

impl Layout {
    /// What the first line tells, and whether it is a heading.
    fn of(line: &str, told_by: u64) -> Result<(Self, bool), Wrong> {
        const ADVICE: &str = "name the columns `timestamp` and `value` in the first line";
        let separator = ['\t', ';']
            .into_iter()
            .find(|&separator| line.contains(separator))
            .unwrap_or(',');
        let fields = Fields::new(line, separator).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = fields
            .iter()
            .map(|field| field.trim().to_ascii_lowercase())
            .collect();
        let is_data = names
            .iter()
            .any(|name| time::parse(name).is_some() || name.parse::<f64>().is_ok());
        let column = |wanted: &[&str]| -> Result<Option<usize>, Wrong> {
            let mut found = (0..names.len()).filter(|&i| wanted.contains(&names[i].as_str()));
            match (found.next(), found.next()) {
                (Some(first), Some(_)) => Err(wrong(
                    format!("two columns may be the one of `{}`", names[first]),
                    ADVICE,
                )),
                (first, _) => Ok(first),
            }
        };
        let named = (column(&TIME_NAMES)?, column(&[VALUE_NAME])?);
        let (time, value) = match (named, names.len()) {
            ((Some(time), Some(value)), _) => (Some(time), value),
            ((None, _), 1) => (None, 0),
            ((Some(_), None), 1) => {
                return Err(wrong(
                    "there is a column of times and none of values",
                    ADVICE,
                ));
            }
            ((Some(time), None), 2) => (Some(time), 1 - time),
            ((None, Some(value)), 2) => (Some(1 - value), value),
            ((None, None), 2) => (Some(0), 1),
            (_, columns) => {
                return Err(wrong(
                    format!("which of {columns} columns are time and value is not said"),
                    ADVICE,
                ));
            }
        };
        let layout = Self {
            separator,
            columns: names.len(),
            time,
            value,
            told_by,
        };
        Ok((layout, !is_data))
    }

    fn row(&self, line: &str) -> Result<Row, Wrong> {
        let (mut time, mut value, mut columns) = (None, None, 0);
        for field in Fields::new(line, self.separator) {
            let field = field?;
            if Some(columns) == self.time {
                time = Some(time_of(field.trim())?);
            } else if columns == self.value {
                value = Some(value_of(field.trim())?);
            }
            columns += 1;
        }
        match value {
            Some(value) if columns == self.columns => Ok(Row { time, value }),
            _ => Err(wrong(
                format!(
                    "{columns} fields, where line {} has {}",
                    self.told_by, self.columns
                ),
                "give every line the same fields, and write decimals with a point",
            )),
        }
    }
}

fn time_of(field: &str) -> Result<Time, Wrong> {
    time::parse(field).ok_or_else(|| {
        wrong(
            format!("`{}` is not a time", shown(field)),
            "write seconds since 1970 or a date such as 2026-02-28 13:05:09",
        )
    })
}

fn value_of(field: &str) -> Result<Cell, Wrong> {
    if let Ok(value) = field.parse::<f64>() {
        if !value.is_finite() {
            return Ok(Cell::NotFinite);
        }
        if value < 0.0 {
            return Err(wrong(
                format!("{} is negative, which no demand is", shown(field)),
                "record what was used, not how it changed, and leave out what is wrong",
            ));
        }
        if value > VALUE_MAX {
            return Err(wrong(
                format!("{} is more than {VALUE_MAX:e}", shown(field)),
                "record in a greater unit, and leave out what is wrong",
            ));
        }
        return Ok(Cell::Value(value));
    }
    if MISSING.contains(&field.to_ascii_lowercase().as_str()) {
        return Ok(Cell::Empty);
    }
    let advice = if field.contains(',') {
        "write decimals with a point and no separator of thousands"
    } else {
        "write a number, or nothing where there is none"
    };
    Err(wrong(format!("`{}` is not a number", shown(field)), advice))
}

/// The beginning of a field, for messages, without what would disturb a terminal.
fn shown(field: &str) -> String {
    let mut shown: String = field.escape_debug().take(40).collect();
    if shown.len() < field.len() {
        shown += "...";
    }
    shown
}

/// The fields of a line, with quotes as in RFC 4180.
struct Fields<'a> {
    rest: Option<&'a str>,
    separator: char,
}

impl<'a> Fields<'a> {
    fn new(line: &'a str, separator: char) -> Self {
        Self {
            rest: Some(line),
            separator,
        }
    }

    fn quoted(&self, quoted: &'a str) -> Result<(Cow<'a, str>, Option<&'a str>), Wrong> {
        const ADVICE: &str = "write a quote within a quoted field twice, and end it on its line";
        let mut text = Cow::Borrowed("");
        let mut rest = quoted;
        loop {
            let (inside, after) = rest
                .split_once('"')
                .ok_or_else(|| wrong("a quoted field does not end", ADVICE))?;
            if text.is_empty() {
                text = Cow::Borrowed(inside);
            } else {
                text.to_mut().push_str(inside);
            }
            match after.strip_prefix('"') {
                Some(more) => {
                    text.to_mut().push('"');
                    rest = more;
                }
                None => {
                    let after = after.trim_start_matches(' ');
                    return match after.strip_prefix(self.separator) {
                        Some(next) => Ok((text, Some(next))),
                        None if after.is_empty() => Ok((text, None)),
                        None => Err(wrong("a quoted field is followed by text", ADVICE)),
                    };
                }
            }
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Cow<'a, str>, Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        if let Some(quoted) = rest.trim_start_matches(' ').strip_prefix('"') {
            return Some(self.quoted(quoted).map(|(field, next)| {
                self.rest = next;
                field
            }));
        }
        match rest.split_once(self.separator) {
            Some((field, next)) => {
                self.rest = Some(next);
                Some(Ok(Cow::Borrowed(field)))
            }
            None => Some(Ok(Cow::Borrowed(rest))),
        }
    }
}

/// Rows on their way to steps.
#[derive(Debug)]
struct Rows {
    spacing: Spacing,
    recording: Recording,
    unit: Option<Unit>,
    /// The first rows, while the period is not known: line, time, value.
    probed: Vec<(u64, f64, Option<f64>)>,
    probing: bool,
    last_time: Option<f64>,
}

impl Rows {
    fn new(spacing: Spacing) -> Self {
        Self {
            spacing,
            recording: Recording::default(),
            unit: None,
            probed: Vec::new(),
            probing: true,
            last_time: None,
        }
    }

    fn add(&mut self, line: u64, row: Row) -> Result<(), (u64, Wrong)> {
        let counts = &mut self.recording.counts;
        counts.rows += 1;
        let sample = match row.value {
            Cell::Value(value) => Some(value),
            Cell::Empty => {
                counts.empty += 1;
                None
            }
            Cell::NotFinite => {
                counts.not_finite += 1;
                None
            }
        };
        let Some(time) = row.time else {
            return self.push(line, sample);
        };
        let seconds = match time {
            Time::Date(seconds) => seconds,
            Time::Number(number) => {
                let unit = *self.unit.get_or_insert_with(|| Unit::of(number));
                unit.seconds(number)
            }
        };
        if !self.probing {
            return self.place(line, seconds, sample);
        }
        self.probed.push((line, seconds, sample));
        if self.probed.len() == PROBED {
            self.end_probe()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Recording, (u64, Wrong)> {
        self.end_probe()?;
        Ok(self.recording)
    }

    fn end_probe(&mut self) -> Result<(), (u64, Wrong)> {
        let probed = std::mem::take(&mut self.probed);
        let mut steps: Vec<f64> = probed
            .windows(2)
            .map(|pair| pair[1].1 - pair[0].1)
            .filter(|&step| step > 0.0)
            .collect();
        steps.sort_unstable_by(f64::total_cmp);
        if self.probing {
            self.recording.period_seconds = steps.get(steps.len().saturating_sub(1) / 2).copied();
        }
        self.probing = false;
        for (line, seconds, sample) in probed {
            self.place(line, seconds, sample)?;
        }
        Ok(())
    }

    fn place(&mut self, line: u64, seconds: f64, sample: Option<f64>) -> Result<(), (u64, Wrong)> {
        let before = self.last_time.replace(seconds);
        let (Some(before), Spacing::Times { gap_max }) = (before, self.spacing) else {
            return self.push(line, sample);
        };
        let passed = seconds - before;
        if passed < 0.0 {
            let what = format!("its time is {} s before that of the row above", -passed);
            return Err((line, wrong(what, "sort the rows by time")));
        }
        if passed == 0.0 {
            self.recording.counts.repeated += 1;
            self.recording.samples.replace_last(sample);
            return Ok(());
        }
        let period = self.recording.period_seconds.unwrap_or(passed);
        let missing = whole((passed / period).round() - 1.0);
        self.recording.counts.absent += u64::try_from(missing).unwrap_or(u64::MAX).min(1 << 40);
        if missing > gap_max {
            let step = self.recording.samples.len();
            self.recording.restarts.push(step);
        } else {
            for _ in 0..missing {
                self.push(line, None)?;
            }
        }
        self.push(line, sample)
    }

    fn push(&mut self, line: u64, sample: Option<f64>) -> Result<(), (u64, Wrong)> {
        if self.recording.samples.len() == STEPS_MAX {
            let what = format!("there are more than {STEPS_MAX} steps up to here");
            let advice = "split the file, or keep every n-th sample";
            return Err((line, wrong(what, advice)));
        }
        self.recording.samples.push(sample);
        Ok(())
    }
}

/// A whole number of steps, at least none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float that is too great becomes the greatest integer"
)]
fn whole(steps: f64) -> usize {
    steps.max(0.0) as usize
}

#[cfg(test)]
mod tests;
