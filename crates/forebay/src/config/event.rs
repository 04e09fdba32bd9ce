//! Events that are known to come, and the calendars that they go by.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::calendar::{Days, Holidays, Schedule, Zones};
use forebay_core::occasion::{DayFilter, Source, Times};
use forebay_core::outlook::Resource;
use forebay_core::units::{Bytes, MilliCpu, Rate};
use forebay_host::regular;
use forebay_host::zones::ZoneFiles;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use super::error::{Findings, Problem, either, nearest};
use super::facts::HostFacts;
use super::resolve::absolute_path;
use super::text::{At, Section};

/// Events of one configuration.
const EVENTS_MAX: usize = 64;
/// Calendars of one configuration.
const CALENDARS_MAX: usize = 16;
const LASTS_MIN: Duration = Duration::from_secs(60);
const LASTS_MAX: Duration = Duration::from_secs(7 * 86_400);
/// A longer iCalendar file is refused.
const ICS_BYTES_MAX: u64 = 1 << 20;

/// What is known to come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KnownFuture {
    /// In the order of the file.
    pub(crate) events: Vec<Event>,
    /// By name.
    pub(crate) calendars: BTreeMap<String, Calendar>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name among events.
    pub(crate) name: String,
    /// When it begins.
    pub(crate) schedule: Schedule,
    /// Whose days calendars mean.
    pub(crate) zone: TimeZone,
    /// How long it lasts.
    pub(crate) lasts: Option<Duration>,
    /// The apps that it changes.
    pub(crate) apps: BTreeSet<AppId>,
    /// A calendar on whose days alone it happens.
    pub(crate) only_on: Option<String>,
    /// A calendar on whose days it never happens.
    pub(crate) except: Option<String>,
    /// What each app needs then: thousandths of the resource's unit.
    pub(crate) needs: Vec<(Resource, MilliAmount)>,
}

/// Thousandths of a resource's unit.
pub(crate) type MilliAmount = u128;

/// Days that are unlike others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Calendar {
    /// Which.
    pub(crate) days: Arc<Days>,
    /// Where they begin and end.
    pub(crate) zone: TimeZone,
    /// Events of its iCalendar file that were passed over.
    pub(crate) skipped: usize,
}

/// Days that are looked through for the next of a calendar: leap days come every eight years at least.
const DAYS_AHEAD: usize = 366 * 8;

impl Calendar {
    /// The first of its days that is not over, in the calendar's zone.
    pub(crate) fn next_day(&self, now: Timestamp) -> Option<Date> {
        let today = self.zone.to_datetime(now).date();
        let mut days = today.series(1.day()).take(DAYS_AHEAD);
        days.find(|day| self.days.has(*day))
    }
}

impl KnownFuture {
    /// As sources of [`Occasions`](forebay_core::occasion::Occasions): `event NAME` and
    /// `calendar NAME`.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let events = self.events.iter().map(|event| self.event(event));
        let calendars = self.calendars.iter().map(|(name, calendar)| Source {
            name: format!("calendar {name}"),
            times: Times::WholeDays {
                days: Arc::clone(&calendar.days),
                zone: calendar.zone.clone(),
            },
            lasts: None,
            apps: None,
            declared: Vec::new(),
        });
        events.chain(calendars).collect()
    }

    fn event(&self, event: &Event) -> Source {
        let days = |name: &Option<String>| {
            let calendar = self.calendars.get(name.as_ref()?)?;
            Some(Arc::clone(&calendar.days))
        };
        let amount =
            |(resource, milli): &(Resource, MilliAmount)| (*resource, *milli as f64 / 1000.0);
        Source {
            name: format!("event {}", event.name),
            times: Times::Scheduled {
                schedule: event.schedule.clone(),
                filter: DayFilter {
                    only: days(&event.only_on),
                    except: days(&event.except),
                },
                zone: event.zone.clone(),
            },
            lasts: event.lasts,
            apps: Some(event.apps.clone()),
            declared: event.needs.iter().map(amount).collect(),
        }
    }
}

/// Resolves events and calendars against the names of `apps`.
pub(super) fn known_future(
    events: Option<At<Vec<Section>>>,
    calendars: Option<At<BTreeMap<String, Section>>>,
    apps: &[&str],
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> KnownFuture {
    let zones = ZoneFiles::new(&host.root);
    let sections = calendars.map_or_else(BTreeMap::new, |found| found.value);
    let names: Vec<String> = sections.keys().cloned().collect();
    let mut known = KnownFuture::default();
    for (index, (name, section)) in sections.into_iter().enumerate() {
        if index == CALENDARS_MAX {
            let problem = Problem::new(
                format!("there are more than {CALENDARS_MAX} calendars"),
                "put their days into fewer",
            );
            findings.add(section.at, section.name, problem);
            break;
        }
        if let Some(calendar) = calendar(section, &zones, host, findings) {
            known.calendars.insert(name, calendar);
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for section in events.map_or_else(Vec::new, |found| found.value) {
        let (at, key) = (section.at, section.name.clone());
        let Some(event) = event(section, &names, apps, &zones, findings) else {
            continue;
        };
        if known.events.iter().any(|other| other.name == event.name) {
            let problem = Problem::new(
                format!("there is another event `{}`", event.name),
                "give each event a name of its own",
            );
            findings.add(at, key, problem);
        } else if known.events.len() == EVENTS_MAX {
            let problem = Problem::new(
                format!("there are more than {EVENTS_MAX} events"),
                "give one event several schedules",
            );
            findings.add(at, key, problem);
            break;
        } else {
            known.events.push(event);
        }
    }
    known
}

fn event(
    mut section: Section,
    calendars: &[&str],
    apps: &[&str],
    zones: &ZoneFiles,
    findings: &mut Findings<'_>,
) -> Option<Event> {
    let before = findings.count();
    let needs = needs(&mut section);
    let mut calendar = |key: &str, section: &mut Section| {
        let At { value, at } = section.take::<String>(key)?;
        let name = section.key(key);
        findings.keep(
            at,
            name,
            known(&value, calendars, "calendar", "[calendars.NAME]"),
        )?;
        Some(value)
    };
    let only_on = calendar("only_on", &mut section);
    let except = calendar("except", &mut section);
    let zone = zone(&mut section, zones, findings);
    let schedule = schedules(&mut section, "schedule", &zone, zones, findings);
    let apps = event_apps(&mut section, apps, findings);
    let lasts = lasts(&mut section, findings);
    let name = section.take::<String>("name").map(|found| found.value);
    let lacking: Vec<&str> = [
        ("name", name.is_none()),
        ("schedule", schedule.is_none()),
        ("apps", apps.is_none()),
    ]
    .into_iter()
    .filter_map(|(key, lacks)| lacks.then_some(key))
    .collect();
    if let (Some(name), Some(schedules), Some(apps)) = (name, schedule, apps) {
        return Some(Event {
            name,
            schedule: Schedule::any(schedules),
            zone,
            lasts,
            apps,
            only_on,
            except,
            needs,
        });
    }
    // What was refused has been said already.
    if !section.refused && findings.count() == before {
        let problem = Problem::new(
            format!("the event lacks {}", lacking.join(", ")),
            "an event needs name, schedule and apps",
        );
        findings.add(section.at, section.name, problem);
    }
    None
}

fn needs(section: &mut Section) -> Vec<(Resource, MilliAmount)> {
    let whole = |amount: u64| u128::from(amount) * 1000;
    let bytes = |found: At<Bytes>| whole(found.value.0);
    let rate = |found: At<Rate>| whole(found.value.0);
    let cpu = section.take::<MilliCpu>("cpu");
    let needs = [
        (Resource::Cpu, cpu.map(|found| u128::from(found.value.0))),
        (Resource::Memory, section.take("memory").map(bytes)),
        (Resource::Io, section.take("io").map(bytes)),
        (Resource::Received, section.take("received").map(rate)),
        (Resource::Sent, section.take("sent").map(rate)),
        (
            Resource::Requests,
            section
                .take::<u64>("requests")
                .map(|found| whole(found.value)),
        ),
    ];
    let given = needs.into_iter();
    given
        .filter_map(|(resource, need)| Some((resource, need?)))
        .collect()
}

fn lasts(section: &mut Section, findings: &mut Findings<'_>) -> Option<Duration> {
    let At { value, at } = section.take::<Duration>("duration")?;
    if (LASTS_MIN..=LASTS_MAX).contains(&value) {
        return Some(value);
    }
    let problem = Problem::new(
        format!("{value:?} is out of bounds"),
        format!("use {LASTS_MIN:?} to {LASTS_MAX:?}"),
    );
    findings.add(at, section.key("duration"), problem);
    None
}

fn event_apps(
    section: &mut Section,
    apps: &[&str],
    findings: &mut Findings<'_>,
) -> Option<BTreeSet<AppId>> {
    let At { value, at } = section.take::<Vec<String>>("apps")?;
    let key = section.key("apps");
    let each = value.into_iter().map(|name| {
        findings.keep(at, key.clone(), known(&name, apps, "app", "[apps.NAME]"))?;
        name.parse().ok()
    });
    each.collect()
}

/// Whether something is configured under a name.
fn known(name: &str, names: &[&str], what: &str, section: &str) -> Result<(), Problem> {
    if names.contains(&name) {
        return Ok(());
    }
    let fix = match (nearest(name, names), names) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, []) => format!("write {section} for it"),
        (None, names) => format!("use {}", either(names)),
    };
    Err(Problem::new(format!("there is no {what} `{name}`"), fix))
}

/// The zone that a section names, or the host's.
fn zone(section: &mut Section, zones: &ZoneFiles, findings: &mut Findings<'_>) -> TimeZone {
    let Some(At { value, at }) = section.take::<String>("timezone") else {
        return zones.local();
    };
    zones.named(&value).unwrap_or_else(|| {
        let problem = Problem::new(
            format!("there is no time zone `{value}` on this host"),
            "write \"UTC\" or a name of /usr/share/zoneinfo, such as \"Europe/Berlin\"",
        );
        findings.add(at, section.key("timezone"), problem);
        TimeZone::UTC
    })
}

fn schedules(
    section: &mut Section,
    key: &str,
    zone: &TimeZone,
    zones: &ZoneFiles,
    findings: &mut Findings<'_>,
) -> Option<Vec<Schedule>> {
    let At { value, at } = section.take::<Vec<String>>(key)?;
    let zones = Zones {
        local: zone,
        named: &|name| zones.named(name),
    };
    let each: Vec<Option<Schedule>> = value
        .iter()
        .map(|text| {
            let parsed = Schedule::parse(text, zones);
            let parsed = parsed.map_err(|error| Problem::new(error.message, error.fix));
            findings.keep(at, section.key(key), parsed)
        })
        .collect();
    each.into_iter().collect()
}

fn calendar(
    mut section: Section,
    zones: &ZoneFiles,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<Calendar> {
    let before = findings.count();
    let zone = zone(&mut section, zones, findings);
    let dates = schedules(&mut section, "dates", &zone, zones, findings);
    let at = section.at("ics").unwrap_or(section.at);
    let path = absolute_path(&mut section, "ics", findings);
    let holidays = path.and_then(|path| {
        let read = read_ics(&host.at(&path), &path);
        findings.keep(at, section.key("ics"), read)
    });
    let skipped = holidays.as_ref().map_or(0, |holidays| holidays.skipped);
    let is_empty = |holidays: &Holidays| holidays.dates.is_empty() && holidays.yearly.is_empty();
    if dates.is_none() && holidays.as_ref().is_some_and(is_empty) {
        let problem = Problem::new(
            format!("no day can be read of the file; {skipped} events were passed over"),
            "name a file with all-day events of single days or every year, or give dates",
        );
        findings.add(at, section.key("ics"), problem);
        return None;
    }
    if dates.is_none() && holidays.is_none() {
        if !section.refused && findings.count() == before {
            let problem = Problem::new("the calendar has no days", "give it dates or ics");
            findings.add(section.at, section.name, problem);
        }
        return None;
    }
    Some(Calendar {
        days: Arc::new(Days::new(dates.unwrap_or_default(), holidays)),
        zone,
        skipped,
    })
}

/// `path` is its name in messages.
fn read_ics(file: &Path, path: &Path) -> Result<Holidays, Problem> {
    let path = path.display();
    let unreadable = |error: std::io::Error| {
        Problem::new(
            format!("read {path}: {error}"),
            "name a file that exists and may be read, with the all-day events that matter",
        )
    };
    let (bytes, _) = regular::read(file, ICS_BYTES_MAX).map_err(unreadable)?;
    Holidays::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| {
        Problem::new(
            format!("{path}:{}: {}", error.line, error.message),
            "correct the file, or write its days as dates",
        )
    })
}
