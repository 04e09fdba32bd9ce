//! The notation of crontab(5): `0 3 * * mon-fri`.

use super::field::{Change, DayRule, Expression, MonthDays, Set};
use super::{ScheduleError, Zones};

/// Minute, hour, day of the month, month, day of the week.
pub(super) const FIELDS: usize = 5;

const NICKNAMES: [(&str, &str); 7] = [
    ("yearly", "0 0 1 1 *"),
    ("annually", "0 0 1 1 *"),
    ("monthly", "0 0 1 * *"),
    ("weekly", "0 0 * * 0"),
    ("daily", "0 0 * * *"),
    ("midnight", "0 0 * * *"),
    ("hourly", "0 * * * *"),
];

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// One field: its name in messages, what its numbers may be, and names of them from `min` on.
#[derive(Debug)]
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    words: &'static [&'static str],
}

const MINUTE: Field = Field {
    name: "minute",
    min: 0,
    max: 59,
    words: &[],
};
const HOUR: Field = Field {
    name: "hour",
    min: 0,
    max: 23,
    words: &[],
};
const DAY: Field = Field {
    name: "day of the month",
    min: 1,
    max: 31,
    words: &[],
};
const MONTH: Field = Field {
    name: "month",
    min: 1,
    max: 12,
    words: &MONTHS,
};
/// Both 0 and 7 are Sunday.
const WEEKDAY: Field = Field {
    name: "day of the week",
    min: 0,
    max: 7,
    words: &WEEKDAYS,
};

pub(super) fn parse(text: &str, zones: Zones<'_>) -> Result<Expression, ScheduleError> {
    let text = text.trim();
    if let Some(name) = text.strip_prefix('@') {
        return parse_fields(nickname(name)?, zones);
    }
    parse_fields(text, zones)
}

fn nickname(name: &str) -> Result<&'static str, ScheduleError> {
    let known = NICKNAMES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    if let Some((_, fields)) = known {
        return Ok(fields);
    }
    let message = if name.eq_ignore_ascii_case("reboot") {
        "`@reboot` has no time that could be known".to_owned()
    } else {
        format!("`@{name}` is no schedule")
    };
    Err(ScheduleError::new(
        message,
        "write @hourly, @daily, @weekly, @monthly or @yearly, or five fields",
    ))
}

fn parse_fields(text: &str, zones: Zones<'_>) -> Result<Expression, ScheduleError> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields.as_slice() else {
        return Err(ScheduleError::new(
            format!("`{text}` has {} fields", fields.len()),
            "write five: minute, hour, day of the month, month, day of the week",
        ));
    };
    let mut days = set(&WEEKDAY, weekday)?;
    if days.has(7) {
        days.add(0);
    }
    let mut weekdays = Set::default();
    (0..7)
        .filter(|day| days.has((day + 1) % 7))
        .for_each(|day| weekdays.add(day));
    let is_star = |field: &str| field.starts_with('*');
    let expression = Expression::daily(zones.local.clone());
    Ok(Expression {
        months: set(&MONTH, month)?,
        month_days: MonthDays::FromStart(set(&DAY, day)?),
        weekdays,
        day_rule: if is_star(day) || is_star(weekday) {
            DayRule::Both
        } else {
            DayRule::Either
        },
        hours: set(&HOUR, hour)?,
        minutes: set(&MINUTE, minute)?,
        change: if is_star(hour) || is_star(minute) {
            Change::Repeat
        } else {
            Change::Catch
        },
        ..expression
    })
}

fn set(field: &Field, text: &str) -> Result<Set, ScheduleError> {
    let mut set = Set::default();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step_of(field, part, step)?)),
            None => (part, None),
        };
        let (from, to) = match range.split_once('-') {
            Some((from, to)) => (number(field, from)?, number(field, to)?),
            None if range == "*" => (field.min, field.max),
            None if step.is_some() => (number(field, range)?, field.max),
            None => (number(field, range)?, number(field, range)?),
        };
        // `fri-sun` ends on the other Sunday.
        let to = if to == 0 && from > 0 && field.max == 7 {
            7
        } else {
            to
        };
        if from > to {
            return Err(ScheduleError::new(
                format!("the {} `{range}` ends before it begins", field.name),
                "write the smaller number first, or two ranges with `,` between",
            ));
        }
        (from..=to)
            .step_by(step.unwrap_or(1))
            .for_each(|number| set.add(number));
    }
    Ok(set)
}

fn step_of(field: &Field, part: &str, step: &str) -> Result<usize, ScheduleError> {
    let digits = step.bytes().all(|byte| byte.is_ascii_digit());
    let step = if digits { step.parse().ok() } else { None };
    step.filter(|step| *step > 0).ok_or_else(|| {
        ScheduleError::new(
            format!("`{part}` has no step for a {}", field.name),
            "write a number from 1 on behind `/`",
        )
    })
}

fn number(field: &Field, text: &str) -> Result<u32, ScheduleError> {
    let named = field
        .words
        .iter()
        .position(|word| word.eq_ignore_ascii_case(text))
        .and_then(|at| u32::try_from(at).ok())
        .map(|at| at + field.min);
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let numbered = if digits { text.parse().ok() } else { None };
    named
        .or(numbered)
        .filter(|number| (field.min..=field.max).contains(number))
        .ok_or_else(|| {
            let words = match field.words {
                [first, .., last] => format!(", {first} to {last}"),
                _ => String::new(),
            };
            ScheduleError::new(
                format!("`{text}` is no {}", field.name),
                format!(
                    "write {} to {}{words}, with `,` or `-` between, `/` and a step, or `*`",
                    field.min, field.max
                ),
            )
        })
}
