//! The notation of systemd.time(7): `Mon..Fri *-*-* 09,17:00:00 Europe/Berlin`.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::field::{Expression, MonthDays, SECOND, Set, Steps, YEAR_MAX, YEAR_MIN};
use super::{ScheduleError, Zones};

/// Words for whole expressions, with what they stand for.
const SHORTHANDS: [(&str, &str); 13] = [
    ("minutely", "*-*-* *:*:00"),
    ("hourly", "*-*-* *:00:00"),
    ("daily", "*-*-* 00:00:00"),
    ("weekly", "Mon *-*-* 00:00:00"),
    ("monthly", "*-*-01 00:00:00"),
    ("quarterly", "*-01,04,07,10-01 00:00:00"),
    ("semiannually", "*-01,07-01 00:00:00"),
    ("semi-annually", "*-01,07-01 00:00:00"),
    ("biannually", "*-01,07-01 00:00:00"),
    ("bi-annually", "*-01,07-01 00:00:00"),
    ("yearly", "*-01-01 00:00:00"),
    ("annually", "*-01-01 00:00:00"),
    ("anually", "*-01-01 00:00:00"),
];

const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// Lists may have so many parts.
const PARTS_MAX: usize = 240;

/// One field: its name in messages and what its numbers may be.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    min: u64,
    max: u64,
}

const MONTH: Field = Field {
    name: "month",
    min: 1,
    max: 12,
};
const DAY: Field = Field {
    name: "day of the month",
    min: 1,
    max: 31,
};
/// Counted from the last, which is 1: what every month has.
const DAY_FROM_END: Field = Field {
    name: "day of the month, counted from its end",
    min: 1,
    max: 28,
};
const HOUR: Field = Field {
    name: "hour",
    min: 0,
    max: 23,
};
const MINUTE: Field = Field {
    name: "minute",
    min: 0,
    max: 59,
};

pub(super) fn parse(text: &str, zones: Zones<'_>) -> Result<Expression, ScheduleError> {
    if let Some(seconds) = text.trim().strip_prefix('@') {
        return moment(seconds);
    }
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let zone = match words.as_slice() {
        [_, .., last] if is_zone(last) => Some(*last),
        _ => None,
    };
    let zone = match zone {
        Some(name) => {
            words.pop();
            named(name, zones)?
        }
        None => zones.local.clone(),
    };
    if let [word] = words.as_slice()
        && let Some((_, long)) = SHORTHANDS
            .iter()
            .find(|(short, _)| short.eq_ignore_ascii_case(word))
    {
        return parse_words(long.split(' ').collect(), zone);
    }
    parse_words(words, zone)
}

fn named(name: &str, zones: Zones<'_>) -> Result<TimeZone, ScheduleError> {
    if name.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    (zones.named)(name).ok_or_else(|| {
        ScheduleError::new(
            format!("there is no time zone `{name}` on this host"),
            "write `UTC` or a name of /usr/share/zoneinfo, such as `Europe/Berlin`",
        )
    })
}

/// Letters that are no weekday.
fn is_zone(word: &str) -> bool {
    let first = word.split(['.', ',', '-']).next().unwrap_or_default();
    word.starts_with(|c: char| c.is_ascii_alphabetic()) && weekday(first).is_none()
}

fn parse_words(mut words: Vec<&str>, zone: TimeZone) -> Result<Expression, ScheduleError> {
    let mut expression = Expression::daily(zone);
    if words.is_empty() {
        return Err(ScheduleError::new(
            "the schedule is empty",
            "write for example `daily` or `Mon..Fri 09:00`",
        ));
    }
    if words[0].starts_with(|c: char| c.is_alphabetic()) {
        expression.weekdays = weekdays(words.remove(0))?;
    }
    if let Some(word) = words.first()
        && !word.contains(':')
    {
        read_date(&mut expression, word)?;
        words.remove(0);
    }
    if let Some(word) = words.first()
        && word.contains(':')
    {
        read_time(&mut expression, word)?;
        words.remove(0);
    }
    match words.first() {
        None => Ok(expression),
        Some(word) => Err(ScheduleError::new(
            format!("`{word}` is one part too many"),
            "write weekdays, then a date, then a time, then a zone, each at most once",
        )),
    }
}

/// `@1700000000`: one moment, in seconds since 1970.
fn moment(seconds: &str) -> Result<Expression, ScheduleError> {
    let time = seconds
        .parse::<u32>()
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds.into()).ok());
    let Some(time) = time else {
        return Err(ScheduleError::new(
            format!("`@{seconds}` is no moment"),
            "write seconds since 1970 after `@`, or `@daily`",
        ));
    };
    let local = TimeZone::UTC.to_datetime(time);
    let mut expression = Expression::daily(TimeZone::UTC);
    read_date(&mut expression, &local.date().to_string())?;
    read_time(&mut expression, &local.time().to_string())?;
    Ok(expression)
}

fn weekday(name: &str) -> Option<u32> {
    let name = name.to_ascii_lowercase();
    let is = |day: &&str| *day == name || day.get(..3) == Some(name.as_str());
    let at = WEEKDAYS.iter().position(is)?;
    u32::try_from(at).ok()
}

fn weekdays(word: &str) -> Result<Set, ScheduleError> {
    let day = |name: &str| {
        weekday(name).ok_or_else(|| {
            ScheduleError::new(
                format!("`{name}` is no day of the week"),
                "write Mon, Tue, Wed, Thu, Fri, Sat or Sun, with `,` or `..` between",
            )
        })
    };
    let mut set = Set::default();
    for part in word.trim_end_matches(',').split(',') {
        let ends = part.split_once("..").or_else(|| part.split_once('-'));
        let (from, to) = match ends {
            Some((from, to)) => (day(from)?, day(to)?),
            None => (day(part)?, day(part)?),
        };
        if from > to {
            return Err(ScheduleError::new(
                format!("the days `{part}` end before they begin"),
                "a week begins on Monday: write `Sat,Sun,Mon` for days across its end",
            ));
        }
        (from..=to).for_each(|day| set.add(day));
    }
    Ok(set)
}

fn read_date(expression: &mut Expression, word: &str) -> Result<(), ScheduleError> {
    let shape = || {
        ScheduleError::new(
            format!("`{word}` is no date"),
            "write YEAR-MONTH-DAY or MONTH-DAY, with `*` for any, such as `*-*-01`; a time has a `:`",
        )
    };
    let (before, day, from_end) = match word.rsplit_once('~') {
        Some((before, day)) => (before, day, true),
        None => {
            let (before, day) = word.rsplit_once('-').ok_or_else(shape)?;
            (before, day, false)
        }
    };
    let (year, month) = match before.split_once('-') {
        Some((year, month)) if !month.contains('-') => (Some(year), month),
        Some(_) => return Err(shape()),
        None => (None, before),
    };
    if let Some(year) = year {
        expression.years = years(year)?;
    }
    expression.months = set(&MONTH, month)?;
    expression.month_days = if from_end {
        MonthDays::FromEnd(set_from_end(day)?)
    } else {
        MonthDays::FromStart(set(&DAY, day)?)
    };
    Ok(())
}

fn read_time(expression: &mut Expression, word: &str) -> Result<(), ScheduleError> {
    let parts: Vec<&str> = word.split(':').collect();
    let (hour, minute, second) = match parts.as_slice() {
        [hour, minute] => (hour, minute, "00"),
        [hour, minute, second] => (hour, minute, *second),
        _ => {
            return Err(ScheduleError::new(
                format!("`{word}` is no time"),
                "write HOUR:MINUTE or HOUR:MINUTE:SECOND, such as `06:30` or `*:0/15`",
            ));
        }
    };
    expression.hours = set(&HOUR, hour)?;
    expression.minutes = set(&MINUTE, minute)?;
    expression.seconds = seconds(second)?;
    Ok(())
}

/// A part of a list: a first number, perhaps a last one, perhaps a step.
struct Part {
    from: u64,
    to: Option<u64>,
    by: Option<u64>,
}

fn parts(
    field: &Field,
    text: &str,
    number: impl Fn(&str) -> Option<u64>,
) -> Result<Vec<Part>, ScheduleError> {
    let fix = |extra: &str| {
        format!(
            "write {} to {} with `,` or `..` between, `/` and a step, or `*`{extra}",
            field.min, field.max
        )
    };
    let wrong = |what: &str| ScheduleError::new(format!("`{what}` is no {}", field.name), fix(""));
    let mut found = Vec::new();
    for part in text.split(',') {
        let (range, by) = match part.split_once('/') {
            Some((range, by)) => {
                let step = number(by).filter(|step| *step > 0);
                (range, Some(step.ok_or_else(|| wrong(part))?))
            }
            None => (part, None),
        };
        let (from, to) = match range.split_once("..") {
            Some((from, to)) => (from, Some(number(to).ok_or_else(|| wrong(to))?)),
            None => (range, None),
        };
        if from == "*" {
            return Err(ScheduleError::new(
                format!("`*` stands alone, and not in `{text}`"),
                format!(
                    "write `{}{}` for steps from the start",
                    field.min,
                    &part[1..]
                ),
            ));
        }
        let from = number(from).ok_or_else(|| wrong(from))?;
        if to.is_some_and(|to| to < from) {
            return Err(ScheduleError::new(
                format!("the {} `{range}` ends before it begins", field.name),
                "write the smaller number first, or two ranges with `,` between",
            ));
        }
        found.push(Part { from, to, by });
        if found.len() > PARTS_MAX {
            return Err(ScheduleError::new(
                format!("the list of a {} has over {PARTS_MAX} parts", field.name),
                "write ranges or steps",
            ));
        }
    }
    Ok(found)
}

fn bounded(field: &Field) -> impl Fn(&str) -> Option<u64> {
    let Field { min, max, .. } = *field;
    move |text| whole(text).filter(|number| (min..=max).contains(number))
}

/// Digits alone: `u64::from_str` would take a sign too.
fn whole(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

fn set(field: &Field, text: &str) -> Result<Set, ScheduleError> {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    if text == "*" {
        return Ok(Set::all(small(field.min), small(field.max)));
    }
    let mut set = Set::default();
    for part in parts(field, text, bounded(field))? {
        let steps = steps(&part, field.max);
        let mut next = steps.at_least(0);
        while let Some(number) = next {
            set.add(small(number));
            next = steps.at_least(number + 1);
        }
    }
    Ok(set)
}

/// Without a last number, a step goes to the end of the field.
fn steps(part: &Part, max: u64) -> Steps {
    let to = match (part.to, part.by) {
        (Some(to), _) => to,
        (None, Some(_)) => max,
        (None, None) => part.from,
    };
    Steps {
        from: part.from,
        to,
        by: part.by.unwrap_or(1),
    }
}

/// Days counted from the last, which is 1; steps go forward in time.
fn set_from_end(text: &str) -> Result<Set, ScheduleError> {
    if text == "*" {
        return Ok(Set::all(1, 31));
    }
    let mut set = Set::default();
    for part in parts(&DAY_FROM_END, text, bounded(&DAY_FROM_END))? {
        let (first, last) = match (part.to, part.by) {
            (Some(to), _) => (to, part.from),
            (None, Some(_)) => (part.from, 1),
            (None, None) => (part.from, part.from),
        };
        let mut day = first;
        while day >= last {
            set.add(u32::try_from(day).unwrap_or(u32::MAX));
            match day.checked_sub(part.by.unwrap_or(1)) {
                Some(next) => day = next,
                None => break,
            }
        }
    }
    Ok(set)
}

fn years(text: &str) -> Result<Vec<Steps>, ScheduleError> {
    let field = Field {
        name: "year",
        min: YEAR_MIN.unsigned_abs().into(),
        max: YEAR_MAX.unsigned_abs().into(),
    };
    if text == "*" {
        return Ok(vec![Steps {
            from: field.min,
            to: field.max,
            by: 1,
        }]);
    }
    // A step is no year, so the bound is held afterwards.
    let found = parts(&field, text, whole)?;
    let found = found.iter().map(|part| {
        let part = Part {
            from: full_year(part.from),
            to: part.to.map(full_year),
            by: part.by,
        };
        let steps = steps(&part, field.max);
        let bounds = field.min..=field.max;
        (bounds.contains(&steps.from) && bounds.contains(&steps.to))
            .then_some(steps)
            .ok_or_else(|| {
                ScheduleError::new(
                    format!("`{text}` is no year"),
                    format!("write {YEAR_MIN} to {YEAR_MAX}, or `*`"),
                )
            })
    });
    found.collect()
}

/// `03` is 2003 and `71` is 1971.
fn full_year(year: u64) -> u64 {
    match year {
        0..70 => year + 2000,
        70..100 => year + 1900,
        other => other,
    }
}

fn seconds(text: &str) -> Result<Vec<Steps>, ScheduleError> {
    let field = Field {
        name: "second",
        min: 0,
        max: 59,
    };
    let max = 60 * SECOND - 1;
    if text == "*" {
        return Ok(vec![Steps {
            from: 0,
            to: max,
            by: SECOND,
        }]);
    }
    let number = |text: &str| micros(text).filter(|number| *number <= max);
    let found = parts(&field, text, number)?;
    let found = found.iter().map(|part| {
        let mut steps = steps(part, max);
        if part.by.is_none() {
            steps.by = SECOND;
        }
        steps
    });
    Ok(found.collect())
}

/// `23.42` in microseconds, rounded at the seventh digit.
fn micros(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits: String = fraction.chars().take(7).collect();
    whole(fraction)?;
    let tenths = whole(&format!("{digits:0<7}"))?;
    whole(seconds)?
        .checked_mul(SECOND)?
        .checked_add((tenths + 5) / 10)
}
