//! What events, crontabs and timers of this host are known to bring, and what of it is kept.
//!
//! What was learnt is in one file of the state directory, written now and then and at the end; one
//! that cannot be read is told, left as it is, and nothing is written over it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use forebay_core::calendar::{Schedule, Zones};
use forebay_core::occasion::{DayFilter, Occasions, Source, Times};
use forebay_core::outlook::ahead::uses;
use forebay_core::outlook::{Expected, Resource};
use forebay_core::report::TickReport;
use forebay_host::regular;
use forebay_host::timers::{self, CronEntry, Timer};
use forebay_host::zones::ZoneFiles;
use jiff::tz::TimeZone;
use tokio::sync::watch;

/// Where what was learnt is kept, in the state directory.
const FILE: &str = "occasions.json";
/// A longer file is not one of ours: 2,048 pairs of some kilobytes each.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// A timer that elapses so much later than its calendar says is watched at its calendar's times.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// How often crontabs and timers are read anew, and what was learnt is written.
const REFRESH: Duration = Duration::from_secs(600);

/// What is declared, and where the rest is found.
#[derive(Debug, Clone)]
pub(crate) struct Origins {
    /// Events and calendars of the configuration.
    pub(crate) declared: watch::Receiver<Vec<Source>>,
    /// Where crontabs and zones are: `/`.
    pub(crate) root: PathBuf,
    /// The bus that systemd is on.
    pub(crate) bus: String,
    /// Where what was learnt is kept.
    pub(crate) state_dir: PathBuf,
}

/// What is learnt of occasions, fed once a second.
#[derive(Debug)]
pub(super) struct Known {
    origins: Origins,
    occasions: Occasions,
    /// The greatest use since the last second, by app and resource.
    greatest: BTreeMap<(AppId, Resource), f64>,
    refreshed: Option<Instant>,
    /// Whether the file may be written: what could not be read is not.
    kept: bool,
    /// What was said of the bus last.
    silent: bool,
    /// What was said of sources that were left out and lines that were not understood.
    left_out: (usize, usize),
}

impl Known {
    /// Takes up what was learnt before.
    pub(super) fn open(origins: Origins) -> Self {
        let file = origins.state_dir.join(FILE);
        let (occasions, kept) = match read(&file) {
            Ok(occasions) => (occasions.unwrap_or_default(), true),
            Err(why) => {
                tracing::warn!(
                    file = %file.display(),
                    why,
                    "what timers and events do to apps is learnt anew and not kept; move the file away"
                );
                (Occasions::default(), false)
            }
        };
        Self {
            origins,
            occasions,
            greatest: BTreeMap::new(),
            refreshed: None,
            kept,
            silent: false,
            left_out: (0, 0),
        }
    }

    /// Keeps nothing of what is learnt from now on.
    pub(super) const fn forget_at_the_end(&mut self) {
        self.kept = false;
    }

    pub(super) fn record(&mut self, report: &TickReport) {
        for (id, app) in &report.apps {
            for (resource, value) in uses(app) {
                let greatest = self.greatest.entry((id.clone(), resource)).or_insert(value);
                *greatest = greatest.max(value);
            }
        }
    }

    /// Learns from what was recorded since the last call; now and then looks for sources again.
    pub(super) fn step(&mut self, now_unix_ms: u64) {
        let declared = self.origins.declared.has_changed().unwrap_or(false);
        if declared || self.refreshed.is_none_or(|then| then.elapsed() >= REFRESH) {
            let first = self.refreshed.is_none();
            self.refreshed = Some(Instant::now());
            self.refresh(now_unix_ms);
            if !first {
                self.save();
            }
        }
        for ((app, resource), value) in std::mem::take(&mut self.greatest) {
            self.occasions.record(now_unix_ms, &app, resource, value);
        }
    }

    /// What is expected of each app within `ahead`.
    pub(super) fn expected(
        &self,
        now_unix_ms: u64,
        ahead: Duration,
    ) -> BTreeMap<AppId, Vec<Expected>> {
        self.occasions.expected(now_unix_ms, ahead).expected
    }

    /// How much of an ordinary day's need there is on the day of a moment to come, and who says so.
    pub(super) fn factor_on(
        &self,
        (app, resource): (&AppId, Resource),
        now_unix_ms: u64,
        at_unix_ms: u64,
    ) -> Option<(f64, String)> {
        self.occasions
            .factor_on(app, resource, now_unix_ms, at_unix_ms)
    }

    /// Which sources matter to an app, a line for each.
    pub(super) fn explain(&self, app: &AppId) -> Vec<String> {
        self.occasions.explain(app)
    }

    fn refresh(&mut self, now_unix_ms: u64) {
        let zones = ZoneFiles::new(&self.origins.root);
        let timers = match timers::timers(&self.origins.bus) {
            Ok(timers) => timers,
            Err(error) => {
                if !std::mem::replace(&mut self.silent, true) {
                    tracing::info!(reason = error.explain(), "no timers of systemd are known");
                }
                Vec::new()
            }
        };
        // What was declared by name comes first: there is room for so many.
        let mut sources = self.origins.declared.borrow_and_update().clone();
        sources.extend(
            timers
                .into_iter()
                .filter_map(|timer| of_timer(timer, &zones)),
        );
        let crontabs = timers::crontabs(&self.origins.root);
        sources.extend(of_crontabs(crontabs.entries));
        let all = sources.len();
        let left_out = self.occasions.set_sources(now_unix_ms, sources);
        let told = (left_out, crontabs.skipped);
        if told != self.left_out && told != (0, 0) {
            tracing::info!(
                left_out,
                all,
                not_understood = crontabs.skipped,
                "not all timers and lines of crontabs are watched for what they do to apps"
            );
        }
        self.left_out = told;
    }

    /// Writes what was learnt; one failure more or less of this loses minutes, and is logged.
    pub(super) fn save(&self) {
        if !self.kept {
            return;
        }
        let file = self.origins.state_dir.join(FILE);
        let written = serde_json::to_vec(&self.occasions.state())
            .map_err(|error| error.to_string())
            // It names commands of users.
            .and_then(|text| {
                regular::replace(&file, &text, 0o600).map_err(|error| error.to_string())
            });
        if let Err(error) = written {
            tracing::warn!(error, file = %file.display(), "what was learnt of timers is not kept");
        }
    }
}

fn of_timer(timer: Timer, zones: &ZoneFiles) -> Option<Source> {
    let local = zones.local();
    let named = |name: &str| zones.named(name);
    let known = Zones {
        local: &local,
        named: &named,
    };
    // What systemd draws at random, it alone knows, and for the next time only.
    let is_exact = timer.delay <= DELAY_MAX;
    let schedules = timer.on_calendar.iter();
    let schedules: Option<Vec<Schedule>> = schedules
        .map(|text| Schedule::on_calendar(text, known).ok())
        .collect();
    let times = match schedules.filter(|schedules| is_exact && !schedules.is_empty()) {
        Some(schedules) => Times::Scheduled {
            schedule: Schedule::any(schedules),
            filter: DayFilter::default(),
            zone: local,
        },
        // It counts from something else than the calendar, by words that are not ours, or by chance.
        None => Times::Foretold(vec![timer.next_unix_ms?]),
    };
    Some(Source {
        name: format!("timer {}", timer.unit),
        times,
        lasts: None,
        apps: None,
        declared: Vec::new(),
    })
}

/// One source for each name: the same command at other times does the same.
fn of_crontabs(entries: Vec<CronEntry>) -> Vec<Source> {
    let mut by_name: BTreeMap<(String, Option<String>), (Vec<Schedule>, TimeZone)> =
        BTreeMap::new();
    for entry in entries {
        let zone = entry.zone.iana_name().map(str::to_owned);
        let same = by_name
            .entry((entry.name, zone))
            .or_insert_with(|| (Vec::new(), entry.zone));
        same.0.push(entry.schedule);
    }
    by_name
        .into_iter()
        .map(|((name, _), (schedules, zone))| Source {
            name: format!("cron {name}"),
            times: Times::Scheduled {
                schedule: Schedule::any(schedules),
                filter: DayFilter::default(),
                zone,
            },
            lasts: None,
            apps: None,
            declared: Vec::new(),
        })
        .collect()
}

/// What was learnt before; nothing where there is no file.
fn read(file: &Path) -> Result<Option<Occasions>, String> {
    let bytes = match regular::read(file, FILE_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| error.to_string())?.0,
    };
    let state = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let occasions = Occasions::restore(state).map_err(|error| error.to_string())?;
    Ok(Some(occasions))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn origins(dir: &Path) -> Origins {
        Origins {
            declared: watch::channel(Vec::new()).1,
            root: dir.join("root"),
            bus: format!("unix:path={}", dir.join("no-bus").display()),
            state_dir: dir.to_owned(),
        }
    }

    #[test]
    fn what_was_learnt_is_kept_and_what_cannot_be_read_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let mut known = Known::open(origins(dir.path()));
        known.step(1_700_000_000_000);
        known.save();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("version"), "{text}");
        assert!(Known::open(origins(dir.path())).kept);

        for damaged in ["", "{", "{\"version\":99}"] {
            fs::write(&file, damaged).unwrap();
            let mut known = Known::open(origins(dir.path()));
            known.step(1_700_000_000_000);
            known.save();
            assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
        }
    }

    #[test]
    fn crontabs_and_timers_become_sources() {
        let dir = tempfile::tempdir().unwrap();
        let crontab = dir.path().join("root/etc/crontab");
        fs::create_dir_all(crontab.parent().unwrap()).unwrap();
        fs::write(
            &crontab,
            "17 3 * * 1-5 root /usr/bin/backup --all\n17 6 * * 6,7 root /usr/bin/backup --all\n",
        )
        .unwrap();
        let found = timers::crontabs(&dir.path().join("root"));
        let sources = of_crontabs(found.entries);
        assert_eq!(sources.len(), 1, "one command, whenever it runs");
        let source = &sources[0];
        assert_eq!(source.name, "cron root /usr/bin/backup --all");
        // 3:17 of the next day, UTC: there is no other zone in that root.
        assert_eq!(
            source.next_after(1_700_049_600_000),
            Some(1_700_104_620_000)
        );
        // Saturday the 18th.
        assert_eq!(
            source.next_after(1_700_265_600_000),
            Some(1_700_288_220_000)
        );

        let zones = ZoneFiles::new(&dir.path().join("root"));
        let timer = |on_calendar: &[&str], next_unix_ms, delay: u64| {
            of_timer(
                Timer {
                    unit: "a.timer".to_owned(),
                    triggers: "a.service".to_owned(),
                    on_calendar: on_calendar.iter().map(|&text| text.to_owned()).collect(),
                    next_unix_ms,
                    delay: Duration::from_secs(delay),
                },
                &zones,
            )
        };
        let daily = timer(&["*-*-* 03:17:00"], None, 60).unwrap();
        assert_eq!(daily.next_after(1_700_049_600_000), Some(1_700_104_620_000));
        let counted = timer(&[], Some(5_000), 0).unwrap();
        assert_eq!(counted.next_after(1_000), Some(5_000));
        let delayed = timer(&["*-*-* 03:17:00"], Some(5_000), 6000).unwrap();
        assert_eq!(delayed.next_after(1_000), Some(5_000));
        assert!(timer(&[], None, 0).is_none());
    }
}
