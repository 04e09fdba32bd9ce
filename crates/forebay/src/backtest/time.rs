//! Times as recordings have them: numbers since 1970, or dates.

/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// The unit of times that are numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Unit {
    /// How many of it a second has.
    per_second: f64,
}

impl Unit {
    /// The unit in which the first time of a file lies between 1973 and 5138, or else seconds:
    /// what begins with 1.7e9 is seconds, with 1.7e12 milliseconds, and so on to nanoseconds.
    pub(crate) fn of(first: f64) -> Self {
        let per_second = match first {
            first if first >= 1e17 => 1e9,
            first if first >= 1e14 => 1e6,
            first if first >= 1e11 => 1e3,
            _ => 1.0,
        };
        Self { per_second }
    }

    /// A number of this unit, in seconds.
    pub(crate) fn seconds(self, number: f64) -> f64 {
        number / self.per_second
    }
}

/// A time as it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Time {
    /// A number, whose unit the file has to tell.
    Number(f64),
    /// A date, in seconds since 1970-01-01 00:00:00 UTC.
    Date(f64),
}

/// Reads `1700000000.5`, `2026-02-28`, `2026-02-28 13:05`, `2026-02-28T13:05:09.25Z` or
/// `2026-02-28 13:05:09+01:00`; without a zone it is UTC. None if it is none of these.
pub(crate) fn parse(text: &str) -> Option<Time> {
    if let Ok(number) = text.parse::<f64>() {
        return number.is_finite().then_some(Time::Number(number));
    }
    let (date, rest) = text.split_at_checked(10)?;
    let bytes = date.as_bytes();
    if bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let (year, month, day) = (
        digits(date.get(..4)?)?,
        digits(date.get(5..7)?)?,
        digits(date.get(8..)?)?,
    );
    let days = days(year, month, day)?;
    let of_day = match rest.strip_prefix(['T', 't', ' ']) {
        Some(clock) => clock_seconds(clock)?,
        None if rest.is_empty() => 0.0,
        None => return None,
    };
    Some(Time::Date(days * DAY + of_day))
}

/// Seconds of `HH:MM[:SS[.fraction]]` with an optional zone.
fn clock_seconds(clock: &str) -> Option<f64> {
    let zone_at = clock.find(['Z', 'z', '+', '-']).unwrap_or(clock.len());
    let (clock, zone) = clock.split_at(zone_at);
    let mut parts = clock.trim_end().split(':');
    let hour = two_digits(parts.next()?, 23)?;
    let minute = two_digits(parts.next()?, 59)?;
    let second = match parts.next() {
        Some(second) => {
            let (whole, fraction) = second.split_once('.').unwrap_or((second, "0"));
            // A leap second is the first of the next minute.
            let whole = two_digits(whole, 60)?;
            digits(fraction)?;
            whole + format!("0.{fraction}").parse::<f64>().ok()?
        }
        None => 0.0,
    };
    if parts.next().is_some() {
        return None;
    }
    Some(hour * 3600.0 + minute * 60.0 + second - offset(zone)?)
}

/// Seconds by which a zone is ahead of UTC.
fn offset(zone: &str) -> Option<f64> {
    let sign = match zone.chars().next() {
        None => return Some(0.0),
        Some('Z' | 'z') => return (zone.len() == 1).then_some(0.0),
        Some('+') => 1.0,
        Some(_) => -1.0,
    };
    let zone = &zone[1..];
    let (hours, minutes) = match zone.split_once(':') {
        Some(split) => split,
        None => zone.split_at_checked(2)?,
    };
    let minutes = if minutes.is_empty() { "00" } else { minutes };
    Some(sign * (two_digits(hours, 23)? * 3600.0 + two_digits(minutes, 59)? * 60.0))
}

fn two_digits(text: &str, greatest: u32) -> Option<f64> {
    let number = digits(text)?;
    (text.len() == 2 && number <= greatest).then_some(f64::from(number))
}

/// A number of nothing but digits; of very many only the first count.
fn digits(text: &str) -> Option<u32> {
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.bytes().take(9))
        .map(|bytes| bytes.fold(0, |number, byte| number * 10 + u32::from(byte - b'0')))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, counted in years that begin in
/// March, so that a leap day ends one. Source: Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `days_from_civil`.
fn days(year: u32, month: u32, day: u32) -> Option<f64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    // Moved by one era of 400 years, so that the first days of the year 0 are not below zero.
    let year = 400 + year - u32::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Some(f64::from(era * 146_097 + day_of_era) - f64::from(719_468 + 146_097))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        let check =
            |text: &str, expected: Option<Time>| assert_eq!(parse(text), expected, "{text}");
        let date = |seconds| Some(Time::Date(seconds));
        check("1700000000.5", Some(Time::Number(1_700_000_000.5)));
        check("-3", Some(Time::Number(-3.0)));
        check("1970-01-01", date(0.0));
        check("1969-12-31 23:59", date(-60.0));
        check("2000-02-29 00:00:00", date(951_782_400.0));
        check("2024-12-31T23:59:59Z", date(1_735_689_599.0));
        check("2025-01-01 01:00:00+01:00", date(1_735_689_600.0));
        check("2024-12-31T18:30:00.25-0530", date(1_735_689_600.25));
        check("2024-12-31 18:30:00 -0530", date(1_735_689_600.0));
        check("2100-03-01t00:00:00z", date(4_107_542_400.0));
        for wrong in [
            "",
            "nan",
            "inf",
            "2025-02-29",
            "2025-13-01",
            "2025-00-01",
            "2025-01-32 00:00:00",
            "2025-01-01 24:00:00",
            "2025-01-01 00:60",
            "2025-01-01 0:00",
            "2025-01-01 00:00:00.",
            "2025-01-01 00:00:00Zulu",
            "2025-01-01 00:00:00+1",
            "2025-01-01x",
            "2025/01/01",
            "01.02.2025",
            "2025-01-0\u{e9}",
            "yesterday",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn the_unit_is_told_by_the_size() {
        for (first, seconds) in [
            (1.7e9, 1.7e9),
            (1.7e12, 1.7e9),
            (1.7e15, 1.7e9),
            (1.7e18, 1.7e9),
            (12.5, 12.5),
            (-1e12, -1e12),
        ] {
            assert!((Unit::of(first).seconds(first) - seconds).abs() < 1e-3);
        }
    }
}
