//! Schedules beside systemd's own answers, cron's rules, and a search minute by minute.

use forebay_core::calendar::{Days, Holidays, Schedule, Zones};
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan as _};
use proptest::prelude::*;

/// Zones by their rules, so that no test depends on a host's zone data.
const ZONES: [(&str, &str); 6] = [
    ("Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ("America/New_York", "EST5EDT,M3.2.0,M11.1.0"),
    ("America/Santiago", "<-04>4<-03>,M9.1.6/24,M4.1.6/24"),
    (
        "Australia/Lord_Howe",
        "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
    ),
    ("Asia/Tokyo", "JST-9"),
    ("Pacific/Auckland", "NZST-12NZDT,M9.5.0,M4.1.0/3"),
];

fn zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" {
        return Some(TimeZone::UTC);
    }
    let (_, rule) = ZONES.iter().find(|(known, _)| *known == name)?;
    Some(TimeZone::posix(rule).expect("a rule of the table"))
}

fn with<R>(local: &str, act: impl FnOnce(Zones<'_>) -> R) -> R {
    act(Zones {
        local: &zone(local).expect("a zone of the table"),
        named: &zone,
    })
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// In whole seconds, as systemd prints them.
fn following(schedule: &Schedule, after: Timestamp, count: usize) -> Vec<String> {
    let first = schedule.next_after(after);
    let each = std::iter::successors(first, |last| schedule.next_after(*last));
    each.take(count)
        .map(|time| {
            let whole = time.as_millisecond().div_euclid(1000);
            Timestamp::from_second(whole)
                .expect("before the year 9999")
                .to_string()
        })
        .collect()
}

/// The file's head says where it is from.
#[test]
fn calendar_expressions_mean_what_they_mean_to_systemd() {
    let data = include_str!("data/on_calendar.tsv");
    let mut seen = 0;
    for line in data.lines().filter(|line| !line.starts_with('#')) {
        let [text, local, after, expected] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let parsed = with(local, |zones| Schedule::on_calendar(text, zones));
        if expected == "refused" {
            assert!(parsed.is_err(), "{line}");
            seen += 1;
            continue;
        }
        let schedule = parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
        let expected: Vec<&str> = match expected {
            "never" => Vec::new(),
            times => times.split(' ').collect(),
        };
        let after: DateTime = after.replace(' ', "T").parse().unwrap();
        let after = zone(local).unwrap().to_timestamp(after).unwrap();
        let count = expected.len().max(1);
        assert_eq!(following(&schedule, after, count), expected, "{line}");
        seen += 1;
    }
    assert!(seen > 250, "{seen}");
}

#[test]
fn crontab_lines_happen_when_cron_runs_them() {
    let check = |text: &str, local: &str, after: &str, expected: &[&str]| {
        let schedule = with(local, |zones| Schedule::parse(text, zones)).unwrap();
        let found = following(&schedule, time(after), expected.len());
        assert_eq!(found, expected, "{text} after {after}");
    };
    let (utc, berlin) = ("UTC", "Europe/Berlin");
    let new_year = "2024-01-01T00:00:00Z";
    check(
        "0 3 * * *",
        utc,
        new_year,
        &["2024-01-01T03:00:00Z", "2024-01-02T03:00:00Z"],
    );
    check(
        "*/20 4-5 * * *",
        utc,
        new_year,
        &["2024-01-01T04:00:00Z", "2024-01-01T04:20:00Z"],
    );
    check(
        "5,1 0 * JAN mon-fri/2",
        utc,
        new_year,
        &[
            "2024-01-01T00:01:00Z",
            "2024-01-01T00:05:00Z",
            "2024-01-03T00:01:00Z",
        ],
    );
    // Both days are given: either counts. Either a star: both do.
    check(
        "0 0 13 * fri",
        utc,
        new_year,
        &[
            "2024-01-05T00:00:00Z",
            "2024-01-12T00:00:00Z",
            "2024-01-13T00:00:00Z",
        ],
    );
    check("0 0 */13 * 5", utc, new_year, &["2024-03-01T00:00:00Z"]);
    // Both 0 and 7 are Sunday, and a week may end on it.
    check(
        "0 0 * * 7",
        utc,
        new_year,
        &["2024-01-07T00:00:00Z", "2024-01-14T00:00:00Z"],
    );
    check(
        "0 0 * * sat-sun",
        utc,
        new_year,
        &[
            "2024-01-06T00:00:00Z",
            "2024-01-07T00:00:00Z",
            "2024-01-13T00:00:00Z",
        ],
    );
    check(
        "0 0 * * 0-1",
        utc,
        new_year,
        &["2024-01-07T00:00:00Z", "2024-01-08T00:00:00Z"],
    );
    check("@weekly", utc, new_year, &["2024-01-07T00:00:00Z"]);
    check("@hourly", utc, new_year, &["2024-01-01T01:00:00Z"]);
    check("@daily", berlin, new_year, &["2024-01-01T23:00:00Z"]);
    check(
        "0 0 29 2 *",
        utc,
        new_year,
        &["2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z"],
    );
    // The hour that is skipped: fixed times happen once it is over, others do not.
    check(
        "30 2 * * *",
        berlin,
        "2024-03-30T12:00:00Z",
        &["2024-03-31T01:00:00Z", "2024-04-01T00:30:00Z"],
    );
    check(
        "10,50 2 * * *",
        berlin,
        "2024-03-30T12:00:00Z",
        &["2024-03-31T01:00:00Z", "2024-04-01T00:10:00Z"],
    );
    check(
        "30 * * * *",
        berlin,
        "2024-03-31T00:00:00Z",
        &["2024-03-31T00:30:00Z", "2024-03-31T01:30:00Z"],
    );
    // The hour that is repeated: fixed times happen once, others again.
    check(
        "30 2 * * *",
        berlin,
        "2024-10-26T12:00:00Z",
        &["2024-10-27T00:30:00Z", "2024-10-28T01:30:00Z"],
    );
    check(
        "30 * * * *",
        berlin,
        "2024-10-27T00:00:00Z",
        &[
            "2024-10-27T00:30:00Z",
            "2024-10-27T01:30:00Z",
            "2024-10-27T02:30:00Z",
        ],
    );
    check(
        "*/30 2 27 10 *",
        berlin,
        "2024-10-01T00:00:00Z",
        &[
            "2024-10-27T00:00:00Z",
            "2024-10-27T00:30:00Z",
            "2024-10-27T01:00:00Z",
            "2024-10-27T01:30:00Z",
        ],
    );
}

#[test]
fn mistakes_name_the_part_and_what_to_write() {
    let check = |text: &str, message: &str, fix: &str| {
        let error = with("UTC", |zones| Schedule::parse(text, zones)).unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.fix.as_str()),
            (message, fix),
            "{text}"
        );
    };
    check(
        "",
        "the schedule is empty",
        "write for example `daily` or `Mon..Fri 09:00`",
    );
    check(
        "Mon..Fri 25:00",
        "`25` is no hour",
        "write 0 to 23 with `,` or `..` between, `/` and a step, or `*`",
    );
    check(
        "*-*-*/2",
        "`*` stands alone, and not in `*/2`",
        "write `1/2` for steps from the start",
    );
    check(
        "Sat..Mon",
        "the days `Sat..Mon` end before they begin",
        "a week begins on Monday: write `Sat,Sun,Mon` for days across its end",
    );
    check(
        "Mon..Foo",
        "`Foo` is no day of the week",
        "write Mon, Tue, Wed, Thu, Fri, Sat or Sun, with `,` or `..` between",
    );
    check(
        "10:00 Nowhere/Else",
        "there is no time zone `Nowhere/Else` on this host",
        "write `UTC` or a name of /usr/share/zoneinfo, such as `Europe/Berlin`",
    );
    check(
        "10:00 11:00",
        "`11:00` is one part too many",
        "write weekdays, then a date, then a time, then a zone, each at most once",
    );
    check(
        "0 25 * * *",
        "`25` is no hour",
        "write 0 to 23, with `,` or `-` between, `/` and a step, or `*`",
    );
    check(
        "0 0 * * funday",
        "`funday` is no day of the week",
        "write 0 to 7, sun to sat, with `,` or `-` between, `/` and a step, or `*`",
    );
    check(
        "*/0 * * * *",
        "`*/0` has no step for a minute",
        "write a number from 1 on behind `/`",
    );
    check(
        "0 22-2 * * *",
        "the hour `22-2` ends before it begins",
        "write the smaller number first, or two ranges with `,` between",
    );
    check(
        "@reboot",
        "`@reboot` has no time that could be known",
        "write @hourly, @daily, @weekly, @monthly or @yearly, or five fields",
    );
    let long = "0,".repeat(600);
    check(
        &long,
        "the schedule is longer than 1024 bytes",
        "divide it into several",
    );
    let cron = Schedule::cron("* * * *", Zones::UTC).unwrap_err();
    assert_eq!(cron.message, "`* * * *` has 4 fields");
}

#[test]
fn several_schedules_are_one_and_windows_have_ends() {
    let each = ["Mon 09:00", "0 17 * * 5"].map(|text| Schedule::parse(text, Zones::UTC).unwrap());
    let both = Schedule::any(each);
    let window = time("2024-01-01T09:00:00Z")..time("2024-01-08T09:00:00Z");
    let found: Vec<String> = both.within(window).map(|time| time.to_string()).collect();
    assert_eq!(found, ["2024-01-01T09:00:00Z", "2024-01-05T17:00:00Z"]);
    let none = Schedule::any([]);
    assert_eq!(none.next_after(time("2024-01-01T00:00:00Z")), None);
    assert_eq!(both.next_after(Timestamp::MAX), None);
    assert!(both.next_after(Timestamp::MIN).is_some());
}

#[test]
fn calendars_have_days() {
    let text = "\u{feff}BEGIN:VCALENDAR\r\nVERSION:2.0\r\nBEGIN:VEVENT\r\nSUMMARY:A long\r\n  name\r\n\
        DTSTART;VALUE=DATE:20241224\r\nDTEND;VALUE=DATE:20241227\r\nEND:VEVENT\r\n\
        BEGIN:VEVENT\r\nDTSTART;VALUE=DATE:20200501\r\nRRULE:FREQ=YEARLY\r\nEND:VEVENT\r\n\
        BEGIN:VEVENT\r\nDTSTART:20240101T090000Z\r\nDTEND:20240101T100000Z\r\nEND:VEVENT\r\n\
        BEGIN:VEVENT\r\nDTSTART;VALUE=DATE:20240301\r\nRRULE:FREQ=MONTHLY\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";
    let holidays = Holidays::parse(text).unwrap();
    assert_eq!(holidays.skipped, 2);
    let written_out = "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20200608\n\
        RRULE:FREQ=YEARLY;INTERVAL=1;BYMONTH=6;BYMONTHDAY=8\nEND:VEVENT\nBEGIN:VEVENT\n\
        DTSTART;VALUE=DATE:20200908\nRRULE:FREQ=YEARLY;BYMONTH=11;BYDAY=4TH\nEND:VEVENT\n\
        BEGIN:VEVENT\nDTSTART;VALUE=DATE:20200910\nRRULE:FREQ=YEARLY;BYMONTHDAY=10\nEND:VEVENT\n\
        BEGIN:VEVENT\nDTSTART;VALUE=DATE:20200909\nDURATION:P3D\nEND:VEVENT\nEND:VCALENDAR\n";
    let written_out = Holidays::parse(written_out).unwrap();
    assert_eq!((written_out.yearly.len(), written_out.skipped), (1, 3));
    let own = Schedule::on_calendar("*-10-03", Zones::UTC).unwrap();
    let days = Days::new(vec![own], [holidays, written_out]);
    let check = |date: &str, expected: bool| {
        assert_eq!(days.has(date.parse().unwrap()), expected, "{date}");
    };
    check("2024-12-23", false);
    check("2024-12-24", true);
    check("2024-12-26", true);
    check("2024-12-27", false);
    check("2031-05-01", true);
    check("2024-10-03", true);
    check("2031-06-08", true);
    check("2024-01-01", false);

    let wrong = |text: &str, expected: &str| {
        let error = Holidays::parse(text).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    wrong("", "line 1: the file is empty");
    wrong(
        "hello\n",
        "line 1: the file does not begin with BEGIN:VCALENDAR",
    );
    wrong(
        "BEGIN:VCALENDAR\n\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20241332\n",
        "line 4: `20241332` is no date, as 20261225 is",
    );
}

/// Whether a crontab line of plain numbers matches, told without the code under test.
fn cron_has(local: DateTime, fields: &[Option<u32>; 5]) -> bool {
    let is = |field: Option<u32>, value: i8| field.is_none_or(|f| i64::from(f) == i64::from(value));
    let [minute, hour, day, month, weekday] = *fields;
    let sunday = local.date().weekday().to_sunday_zero_offset();
    let days = match (day, weekday) {
        (Some(_), Some(_)) => is(day, local.day()) || is(weekday, sunday),
        _ => is(day, local.day()) && is(weekday, sunday),
    };
    is(minute, local.minute()) && is(hour, local.hour()) && is(month, local.month()) && days
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "[ -~äé*/,.~:0-9@a-z-]{0,40}") {
        for schedule in [Schedule::parse(&text, Zones::UTC), Schedule::cron(&text, Zones::UTC), Schedule::on_calendar(&text, Zones::UTC)].into_iter().flatten() {
            let after = time("2024-02-28T23:59:59Z");
            prop_assert!(schedule.next_after(after).is_none_or(|next| next > after));
        }
    }

    #[test]
    fn no_expression_of_allowed_letters_makes_a_parser_panic(
        text in "(mon|sat..sun|)? ?[0-9*]{1,4}[-~][0-9*/,.]{1,6}[-~ ][0-9*/,.]{1,6} [0-9*/,.]{1,6}:[0-9*/,.]{1,6}(:[0-9*/,.]{1,6})?( UTC)?"
    ) {
        if let Ok(schedule) = Schedule::parse(&text, Zones::UTC) {
            let after = time("2024-02-28T23:59:59Z");
            prop_assert!(schedule.next_after(after).is_none_or(|next| next > after));
        }
    }

    #[test]
    fn holidays_of_any_text_do_not_panic(text in "(BEGIN:VCALENDAR\n)?(BEGIN:VEVENT\n|DTSTART;VALUE=DATE:[0-9]{8}\n|DTEND:[0-9T]{8,9}\n|RRULE:FREQ=YEARLY\n| [a-z]\n|END:VEVENT\n|\\PC{0,8}\n){0,12}") {
        drop(Holidays::parse(&text));
    }

    /// Every minute of three days is tried, across both changes of the clock of a year.
    #[test]
    fn the_next_time_of_a_crontab_line_is_the_first_that_matches(
        minute in proptest::option::of(0_u32..60),
        hour in proptest::option::of(0_u32..24),
        day in proptest::option::of(1_u32..32),
        weekday in proptest::option::of(0_u32..7),
        place in 0..ZONES.len(),
        change in 0..2,
        offset in 0_i64..2880,
    ) {
        let zone = zone(ZONES[place].0).unwrap();
        let around = if change == 0 { "2024-03-10T00:00:00Z" } else { "2024-10-27T00:00:00Z" };
        let change = zone.following(time(around).checked_sub(200.hours()).unwrap()).next();
        let change = change.map_or(time(around), |change| change.timestamp());
        let after = change.checked_sub(36.hours()).unwrap().checked_add(offset.minutes()).unwrap();
        let fields = [minute, hour, day, None, weekday];
        let text = fields.map(|f| f.map_or("*".to_owned(), |f| f.to_string())).join(" ");
        let schedule = Schedule::cron(&text, Zones { local: &zone, named: &|_| None }).unwrap();
        let fixed = minute.is_some() && hour.is_some();
        let expected = (1..3 * 1440).map(|n| after.checked_add(n.minutes()).unwrap()).find(|at| {
            let local = zone.to_datetime(*at);
            let repeated = match zone.to_ambiguous_timestamp(local).offset() {
                AmbiguousOffset::Fold { after: new, .. } => new.to_timestamp(local).unwrap() == *at,
                _ => false,
            };
            if cron_has(local, &fields) && !(repeated && fixed) {
                return true;
            }
            // Right after hours that were skipped.
            let before = zone.to_datetime(at.checked_sub(1.minute()).unwrap());
            let mut skipped = before.checked_add(1.minute()).unwrap();
            while fixed && skipped < local {
                if cron_has(skipped, &fields) {
                    return true;
                }
                skipped = skipped.checked_add(1.minute()).unwrap();
            }
            false
        });
        let found = schedule.next_after(after);
        match expected {
            Some(expected) => prop_assert_eq!(found, Some(expected), "{} after {}", text, after),
            None => prop_assert!(found.is_none_or(|f| f >= after.checked_add((3 * 1440).minutes()).unwrap()), "{} {:?}", text, found),
        }
    }

    /// Days of expressions of systemd are searched one by one.
    #[test]
    fn the_next_day_of_a_calendar_expression_is_the_first_that_matches(
        month in 1_i8..13, month_to in 0_i8..4, day in 1_i8..32, by in 1_i8..9, from_end in any::<bool>(),
        week in proptest::option::of(0_i8..7), start in 0_i64..1500,
    ) {
        const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        let last = (month + month_to).min(12);
        let name = week.map_or(String::new(), |week| format!("{} ", NAMES[usize::try_from(week).unwrap()]));
        let mark = if from_end { '~' } else { '-' };
        let day = if from_end { day.min(28) } else { day };
        let text = format!("{name}*-{month}..{last}{mark}{day}/{by} 06:00");
        let schedule = Schedule::on_calendar(&text, Zones::UTC).unwrap();
        let first: Date = "2023-01-01".parse().unwrap();
        let from = first.checked_add(start.days()).unwrap();
        let matches = |date: &Date| {
            let on_week = week.is_none_or(|week| date.weekday().to_monday_zero_offset() == week);
            let start = if from_end { date.days_in_month() + 1 - day } else { day };
            // Steps of days that begin before the month does still count from there.
            let on_day = date.day() >= start && (date.day() - start) % by == 0;
            on_week && (month..=last).contains(&date.month()) && on_day
        };
        let expected = from.series(1.day()).take(3000).find(matches);
        let at = |date: Date| date.at(6, 0, 0, 0).to_zoned(TimeZone::UTC).unwrap().timestamp();
        let before = at(from).checked_sub(1.second()).unwrap();
        let found = schedule.next_after(before);
        if let Some(expected) = expected {
            prop_assert_eq!(found, Some(at(expected)), "{} from {}", text, from);
            prop_assert!(schedule.has_day(expected));
        }
    }
}
