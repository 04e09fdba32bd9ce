//! What is learnt of timers and events: from noise nothing, of effects their size and delay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::calendar::{Days, Schedule, Zones};
use forebay_core::occasion::{
    DayFilter, MEASURED_MIN, Occasions, PAIRS_MAX, SLOT_MS, SOURCES_MAX, STATE_VERSION, Source,
    State, Times,
};
use forebay_core::outlook::{Expected, Resource};
use jiff::tz::TimeZone;

/// 2024-01-01 00:00 UTC, a Monday.
const START: u64 = 1_704_067_200_000;
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn app(name: &str) -> AppId {
    name.parse().expect("a name")
}

fn schedule(text: &str) -> Times {
    Times::Scheduled {
        schedule: Schedule::parse(text, Zones::UTC).expect("a schedule"),
        filter: DayFilter::default(),
        zone: TimeZone::UTC,
    }
}

fn source(name: &str, times: Times) -> Source {
    Source {
        name: name.to_owned(),
        times,
        lasts: None,
        apps: None,
        declared: Vec::new(),
    }
}

/// Feeds an app's CPUs, one sample in ten seconds.
fn feed(occasions: &mut Occasions, span: std::ops::Range<u64>, mut value: impl FnMut(u64) -> f64) {
    let web = app("web");
    let mut at = span.start;
    while at < span.end {
        occasions.record(at, &web, Resource::Cpu, value(at));
        at += SLOT_MS;
    }
}

fn expected(occasions: &Occasions, now: u64, horizon: u64) -> Vec<Expected> {
    let outlook = occasions.expected(now, Duration::from_millis(horizon));
    outlook
        .expected
        .get(&app("web"))
        .cloned()
        .unwrap_or_default()
}

/// A series that wanders and bursts, as those of servers do.
struct Noise {
    random: fastrand::Rng,
    wander: f64,
    burst: u32,
}

impl Noise {
    fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            wander: 0.0,
            burst: 0,
        }
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.random.f64()).sum::<f64>() - 6.0
    }

    fn next(&mut self) -> f64 {
        self.wander = 0.98 * self.wander + 0.05 * self.normal();
        if self.random.f64() < 0.002 {
            self.burst = self.random.u32(1..30);
        }
        self.burst = self.burst.saturating_sub(1);
        let burst = if self.burst > 0 { 1.5 } else { 0.0 };
        (1.0 + self.wander + 0.1 * self.normal() + burst).max(0.0)
    }
}

#[test]
fn nothing_is_learnt_of_noise() {
    const SEEDS: u64 = 100;
    let (mut ever, mut finally) = (0, 0);
    for seed in 0..SEEDS {
        let mut noise = Noise::new(seed);
        let mut occasions = Occasions::default();
        occasions.set_sources(START, vec![source("timer x", schedule("hourly"))]);
        let mut was_there = false;
        // Looked at after every occurrence of two days.
        for hour in 0..48 {
            let from = START + hour * HOUR;
            feed(&mut occasions, from..from + HOUR, |_| noise.next());
            let is_there = !expected(&occasions, from + HOUR, HOUR).is_empty();
            was_there |= is_there;
            if hour == 47 {
                finally += u64::from(is_there);
            }
        }
        ever += u64::from(was_there);
    }
    eprintln!("of {SEEDS} seeds, {finally} at the end and {ever} at any time saw an effect");
    assert!(finally * 100 <= SEEDS * 5, "{finally} of {SEEDS}");
    assert!(ever * 100 <= SEEDS * 10, "{ever} of {SEEDS}");
}

#[test]
fn an_effect_of_known_size_and_delay_is_recovered() {
    const SEEDS: u64 = 12;
    let mut covered = 0_u64;
    let mut judged = 0_u64;
    for seed in 0..SEEDS {
        let mut noise = Noise::new(seed);
        let mut size = fastrand::Rng::with_seed(seed + 1000);
        let mut occasions = Occasions::default();
        occasions.set_sources(START, vec![source("timer x", schedule("00/2:00"))]);
        let mut last = None;
        // Every two hours, 3 CPUs more from the third minute to the twelfth.
        for occurrence in 0..32 {
            let at = START + occurrence * 2 * HOUR;
            let more = 3.0 + 0.2 * (size.f64() - 0.5);
            if let Some(Expected { peak, .. }) = last.take() {
                let real = 1.0 + more;
                judged += 1;
                covered += u64::from(forebay_forecast::Quantiles::q95(&peak) >= real);
            }
            feed(&mut occasions, at..at + 2 * HOUR - SLOT_MS, |now| {
                let offset = now - at;
                let is_up = (3 * MINUTE..12 * MINUTE).contains(&offset);
                noise.next() + if is_up { more } else { 0.0 }
            });
            if occurrence >= 26 {
                last = expected(&occasions, at + 2 * HOUR - MINUTE, 30 * MINUTE).pop();
            }
        }
        let now = START + 64 * HOUR - MINUTE;
        let all = expected(&occasions, now, 3 * HOUR);
        assert_eq!(all.len(), 2, "seed {seed}: {all:?}");
        let next = &all[0];
        let start = START + 64 * HOUR;
        assert_eq!(
            next.from_unix_ms,
            start + 3 * MINUTE,
            "seed {seed}: {next:?}"
        );
        assert_eq!(
            next.until_unix_ms,
            start + 12 * MINUTE,
            "seed {seed}: {next:?}"
        );
        // The base wanders around 1 and bursts by 1.5 in a tenth of the minutes.
        let median = next.peak.q50();
        assert!((3.7..6.5).contains(&median), "seed {seed}: {median}");
        assert_eq!(next.why, "timer x: learnt from 12 occurrences");
    }
    eprintln!("{covered} of {judged} bounds held");
    assert!(covered * 100 >= judged * 90, "{covered} of {judged}");
}

#[test]
fn three_clear_occurrences_are_enough_and_three_without_end_it() {
    let mut noise = Noise::new(7);
    let mut occasions = Occasions::default();
    occasions.set_sources(START, vec![source("timer x", schedule("02:00"))]);
    let mut day = |occasions: &mut Occasions, day: u64, more: f64| {
        let from = START + day * DAY;
        feed(occasions, from..from + DAY, |now| {
            let is_up = (2 * HOUR..2 * HOUR + 5 * MINUTE).contains(&(now - from));
            noise.next().min(2.0) + if is_up { more } else { 0.0 }
        });
        expected(occasions, from + DAY, DAY).len()
    };
    let learnt: Vec<usize> = (0..6).map(|n| day(&mut occasions, n, 4.0)).collect();
    assert_eq!(learnt, [0, 0, 1, 1, 1, 1]);
    // Now it stops to matter.
    let forgotten: Vec<usize> = (6..10).map(|n| day(&mut occasions, n, 0.0)).collect();
    assert_eq!(forgotten, [1, 1, 0, 0]);
}

#[test]
fn what_is_declared_stands_until_it_is_measured() {
    let mut occasions = Occasions::default();
    let event = Source {
        lasts: Some(Duration::from_millis(30 * MINUTE)),
        apps: Some(BTreeSet::from([app("web")])),
        declared: vec![(Resource::Cpu, 8.0)],
        ..source("event report", schedule("00/4:00"))
    };
    occasions.set_sources(START, vec![event]);
    let first = expected(&occasions, START, HOUR * 3);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(first[0].peak.to_array(), [8.0; 4]);
    assert_eq!(first[0].why, "event report: declared");
    assert_eq!(first[0].until_unix_ms - first[0].from_unix_ms, 30 * MINUTE);
    let mut medians = Vec::new();
    for occurrence in 1..12 {
        let at = START + occurrence * 4 * HOUR;
        feed(&mut occasions, at - 20 * MINUTE..at + 3 * HOUR, |now| {
            let is_up = now >= at && now < at + 30 * MINUTE;
            if is_up { 3.0 } else { 1.0 }
        });
        let next = expected(&occasions, at + 3 * HOUR, 2 * HOUR).remove(0);
        medians.push(next.peak.q50());
        if occurrence == 11 {
            assert_eq!(next.why, "event report: measured in 11 occurrences");
        }
    }
    assert_eq!(medians[..2], [8.0, 8.0]);
    assert!(medians[2] < 8.0 && medians[2] > medians[3], "{medians:?}");
    assert!(
        (medians[MEASURED_MIN - 1] - 3.0).abs() < 1e-6,
        "{medians:?}"
    );
}

#[test]
fn what_has_begun_is_expected_until_it_is_over() {
    let event = Source {
        lasts: Some(Duration::from_secs(3600)),
        apps: Some(BTreeSet::from([app("web")])),
        declared: vec![(Resource::Memory, 1e9)],
        ..source("event report", schedule("12:00"))
    };
    let mut occasions = Occasions::default();
    occasions.set_sources(START, vec![event]);
    let check = |now: u64, horizon: u64, expected_from: &[u64]| {
        let found = expected(&occasions, START + now, horizon);
        let from: Vec<u64> = found.iter().map(|e| e.from_unix_ms - START).collect();
        assert_eq!(from, expected_from, "{now}");
    };
    check(10 * HOUR, HOUR, &[]);
    check(11 * HOUR, HOUR, &[12 * HOUR]);
    check(12 * HOUR + 59 * MINUTE, HOUR, &[12 * HOUR]);
    check(13 * HOUR, HOUR, &[]);
    check(12 * HOUR, 25 * HOUR, &[12 * HOUR, 36 * HOUR]);
}

#[test]
fn days_of_calendars_allow_forbid_and_matter() {
    let holidays = Arc::new(Days::new(
        ["*-01-03", "*-01-15", "*-01-22", "*-01-29", "*-02-03"]
            .map(|text| Schedule::on_calendar(text, Zones::UTC).unwrap())
            .to_vec(),
        [],
    ));
    let event = |name: &str, filter: DayFilter| Source {
        lasts: Some(Duration::from_secs(3600)),
        apps: Some(BTreeSet::from([app("web")])),
        declared: vec![(Resource::Cpu, 2.0)],
        ..source(
            name,
            Times::Scheduled {
                schedule: Schedule::parse("12:00", Zones::UTC).unwrap(),
                filter,
                zone: TimeZone::UTC,
            },
        )
    };
    let only = DayFilter {
        only: Some(Arc::clone(&holidays)),
        except: None,
    };
    let except = DayFilter {
        only: None,
        except: Some(Arc::clone(&holidays)),
    };
    let days = |filter: DayFilter| {
        let mut occasions = Occasions::default();
        occasions.set_sources(START, vec![event("event e", filter)]);
        let found = expected(&occasions, START, 5 * DAY);
        let days = found.iter().map(|e| (e.from_unix_ms - START) / DAY + 1);
        days.collect::<Vec<_>>()
    };
    assert_eq!(days(only), [3]);
    assert_eq!(days(except), [1, 2, 4, 5]);

    // A day of the calendar has 40 % of an ordinary day's peak.
    let mut occasions = Occasions::default();
    let times = Times::WholeDays {
        days: Arc::clone(&holidays),
        zone: TimeZone::UTC,
    };
    occasions.set_sources(START, vec![source("calendar holidays", times)]);
    let mut random = fastrand::Rng::with_seed(3);
    for day in 0..33_u64 {
        let from = START + day * DAY;
        // Those of the expressions above; 2024-02-03 is the day after the last.
        let factor = if [2, 14, 21, 28].contains(&day) {
            0.4
        } else {
            1.0
        };
        let peak = 10.0 + random.f64();
        feed(&mut occasions, from..from + DAY, |now| {
            let is_noon = (12 * HOUR..13 * HOUR).contains(&(now - from));
            factor * if is_noon { peak } else { 1.0 }
        });
    }
    // The last day is closed by the next one's first slot.
    feed(
        &mut occasions,
        START + 33 * DAY..START + 33 * DAY + MINUTE,
        |_| 1.0,
    );
    let factor = |now: u64, at: u64| {
        occasions.factor_on(&app("web"), Resource::Cpu, START + now, START + at)
    };
    let (known, why) = factor(32 * DAY + 5 * HOUR, 33 * DAY + 5 * HOUR).expect("it is known");
    assert!((0.35..0.5).contains(&known), "{known}");
    assert!(why.starts_with("calendar holidays: 0.4"), "{why}");
    // Not of an ordinary day, and not on the day itself, which the models see.
    assert_eq!(factor(31 * DAY, 32 * DAY), None);
    assert_eq!(factor(33 * DAY, 33 * DAY + 5 * HOUR), None);
    // A plan that went by the day's peak would keep it all day.
    assert_eq!(expected(&occasions, START + 32 * DAY, 2 * DAY), []);
    assert!(occasions.explain(&app("web"))[0].contains("of an ordinary day's peak"));
}

#[test]
fn a_clock_that_is_set_is_not_walked_through() {
    let mut occasions = Occasions::default();
    let often = source("timer often.timer", schedule("*:*:*"));
    let nightly = source("timer nightly.timer", schedule("03:00"));
    occasions.set_sources(0, vec![often, nightly]);
    // From 1970 on, every second of it would take minutes.
    feed(&mut occasions, START..START + MINUTE, |_| 1.0);
    let next = expected(&occasions, START, DAY);
    assert_eq!(next, [], "nothing is known of an effect");
    let lines = occasions.explain(&app("web")).join("\n");
    assert!(lines.contains("nightly.timer (0 seen)"), "{lines}");
}

#[test]
fn what_was_learnt_stays_where_occurrences_are_closer_together_now_and_then() {
    let daily_and_monthly = || {
        let both = ["03:00", "*-*-01 04:00"].map(|text| Schedule::parse(text, Zones::UTC).unwrap());
        source(
            "timer backup.timer",
            Times::Scheduled {
                schedule: Schedule::any(both.to_vec()),
                filter: DayFilter::default(),
                zone: TimeZone::UTC,
            },
        )
    };
    let mut occasions = Occasions::default();
    for day in 0..70_u64 {
        let from = START + day * DAY;
        occasions.set_sources(from, vec![daily_and_monthly()]);
        feed(&mut occasions, from..from + DAY, |now| {
            let is_backup = (3 * HOUR..3 * HOUR + 10 * MINUTE).contains(&(now - from));
            if is_backup { 4.0 } else { 1.0 }
        });
    }
    // It began anew once, when the first of a month came near, and not with each month.
    let lines = occasions.explain(&app("web")).join("\n");
    assert!(lines.contains("learnt from"), "{lines}");
    let seen = lines.split("learnt from ").nth(1).unwrap();
    let seen: usize = seen.split(' ').next().unwrap().parse().unwrap();
    assert!(seen >= 12, "{lines}");
}

#[test]
fn a_day_that_a_calendar_forbids_is_passed_at_once() {
    // One day of a year; every minute of the others is forbidden.
    let days = Arc::new(Days::new(
        vec![Schedule::on_calendar("*-12-24", Zones::UTC).unwrap()],
        [],
    ));
    let event = source(
        "event rare",
        Times::Scheduled {
            schedule: Schedule::parse("*:*", Zones::UTC).unwrap(),
            filter: DayFilter {
                only: Some(days),
                except: None,
            },
            zone: TimeZone::UTC,
        },
    );
    let next = event.next_after(START).expect("there is such a day");
    let shown = jiff::Timestamp::from_millisecond(i64::try_from(next).unwrap()).unwrap();
    assert_eq!(shown.to_string(), "2024-12-24T00:00:00Z");
}

#[test]
fn what_was_learnt_survives_a_restart() {
    let mut noise = Noise::new(11);
    let mut occasions = Occasions::default();
    let sources = || vec![source("timer x", schedule("00/2:00"))];
    occasions.set_sources(START, sources());
    for occurrence in 0..30 {
        let at = START + occurrence * 2 * HOUR;
        feed(&mut occasions, at..at + 2 * HOUR, |now| {
            noise.next() + if now - at < 2 * MINUTE { 5.0 } else { 0.0 }
        });
    }
    let now = START + 60 * HOUR + 30 * MINUTE;
    let before = expected(&occasions, now, 3 * HOUR);
    assert_eq!(before.len(), 1);
    let text = serde_json::to_string(&occasions.state()).unwrap();
    assert!(text.len() < 6000, "{}", text.len());
    let state: State = serde_json::from_str(&text).unwrap();
    let mut again = Occasions::restore(state.clone()).unwrap();
    assert!(expected(&again, now, 3 * HOUR).is_empty());
    again.set_sources(now, sources());
    let after = expected(&again, now, 3 * HOUR);
    let about = |all: &[Expected]| -> Vec<(u64, u64)> {
        all.iter()
            .map(|e| (e.from_unix_ms, e.until_unix_ms))
            .collect()
    };
    assert_eq!(about(&after), about(&before));
    assert!((after[0].peak.q95() - before[0].peak.q95()).abs() < 0.02);
    // A source that was away for a while is known again.
    again.set_sources(now, Vec::new());
    assert!(expected(&again, now, 3 * HOUR).is_empty());
    again.set_sources(now, sources());
    assert_eq!(about(&expected(&again, now, 3 * HOUR)), about(&before));
    // Another schedule is watched for another time, so nothing of it counts.
    again.set_sources(now, vec![source("timer x", schedule("00/1:00"))]);
    assert!(expected(&again, now, 3 * HOUR).is_empty());

    let mut other = state;
    other.version = STATE_VERSION + 1;
    assert!(Occasions::restore(other).is_err());
    let wrong = text.replacen("\"level\":", "\"level\":1e39,\"was\":", 1);
    let wrong = serde_json::from_str::<State>(&wrong).map(Occasions::restore);
    assert!(!matches!(wrong, Ok(Ok(_))));
}

#[test]
fn bounds_hold() {
    let mut occasions = Occasions::default();
    let sources = (0..SOURCES_MAX + 9).map(|n| source(&format!("timer {n}"), schedule("03:00")));
    assert_eq!(occasions.set_sources(START, sources.collect()), 9);
    for step in 0..3 {
        for n in 0..200 {
            let id = app(&format!("app{n}"));
            for resource in Resource::ALL {
                occasions.record(START + step * SLOT_MS, &id, resource, 1.0);
                occasions.record(START + step * SLOT_MS, &id, resource, f64::NAN);
            }
        }
    }
    let state = serde_json::to_value(occasions.state()).unwrap();
    let sources = state["sources"].as_array().unwrap();
    let pairs = sources.iter().map(|s| s["pairs"].as_array().unwrap().len());
    assert_eq!(pairs.sum::<usize>(), PAIRS_MAX);
    // One that occurs every minute is a period, and none of an occasion.
    let mut often = Occasions::default();
    often.set_sources(START, vec![source("timer often", schedule("minutely"))]);
    assert_eq!(
        often.explain(&app("web")),
        ["without effect: timer often (too often)"]
    );
    // Samples from before are late, and what comes after years is a gap.
    feed(&mut often, START..START + HOUR, |_| 1.0);
    feed(&mut often, START - DAY..START, |_| 9.0);
    feed(
        &mut often,
        START + 1000 * DAY..START + 1000 * DAY + HOUR,
        |_| 1.0,
    );
}

#[test]
fn explanations_say_what_matters_and_what_does_not() {
    let mut occasions = Occasions::default();
    let event = Source {
        lasts: Some(Duration::from_secs(600)),
        apps: Some(BTreeSet::from([app("web")])),
        declared: vec![(Resource::Memory, f64::from(1 << 30))],
        ..source("event report", schedule("12:00"))
    };
    let others = vec![
        event,
        source("timer x", schedule("00/2:00")),
        source("timer y", schedule("00/2:10")),
    ];
    occasions.set_sources(START, others);
    let mut noise = Noise::new(5);
    for occurrence in 0..30 {
        let at = START + occurrence * 2 * HOUR;
        feed(&mut occasions, at..at + 2 * HOUR, |now| {
            noise.next().min(2.0) + if now - at < 2 * MINUTE { 5.0 } else { 0.0 }
        });
    }
    let lines = occasions.explain(&app("web"));
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert_eq!(
        lines[0],
        "event report: declared: memory, 1.0 GiB declared from 0 s to 10 min after it"
    );
    assert!(
        lines[1].starts_with("timer x: learnt from 12 occurrences: cpu, ")
            && lines[1].contains(" CPU above before from 0 s to 3 min after it (p "),
        "{}",
        lines[1]
    );
    assert_eq!(
        lines[2],
        "without effect: event report (2 seen), timer y (12 seen)"
    );
    assert!(
        occasions.explain(&app("other")).is_empty() || occasions.explain(&app("other")).len() == 1
    );
}
