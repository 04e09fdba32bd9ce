//! An app's recorded history as a series to compare on.
//!
//! It is read from the daemon's history without the daemon, which may run or not: a reader holds
//! up no writer. Of each roll-up its mean is taken where values are forecast, its maximum where
//! peaks are. The last one is left out where it may be incomplete.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use forebay_core::app::AppId;
use forebay_forecast::Target;

use super::csv::{Counts, Recording};
use crate::store::{self, HistoryQuery, Level, Reader, Resolution, Resource, Row, StoreError};

/// Queries for one series, each of them bounded.
const PAGES_MAX: usize = 16;
/// Rows of one query; it has a bound of its own, too.
const PAGE: usize = 10_000;
/// Apps that a message lists.
const LISTED_MAX: usize = 20;

/// How much time one step covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Step {
    /// 10 s
    #[value(name = "10s")]
    TenSeconds,
    /// 1 min
    #[value(name = "1m", alias = "1min")]
    Minute,
    /// 1 h
    #[value(name = "1h")]
    Hour,
}

impl Step {
    fn level(self) -> Level {
        match self {
            Self::TenSeconds => Level::TenSeconds,
            Self::Minute => Level::Minute,
            Self::Hour => Level::Hour,
        }
    }
}

/// Why there is no history to compare on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "`{name}` is no file, and there is no history at {}; name a CSV file, or the daemon's state directory by --state-dir",
        database.display()
    )]
    NoHistory { name: String, database: PathBuf },
    #[error(
        "`{name}` is neither a file nor an app with history in {}; {known}",
        database.display()
    )]
    Unknown {
        name: String,
        database: PathBuf,
        known: String,
    },
    #[error(
        "{app} has no whole roll-up of {resource} at this resolution in {}; it has {known}; choose another --resource or a finer --step, or wait",
        database.display()
    )]
    Empty {
        app: AppId,
        resource: Resource,
        database: PathBuf,
        known: String,
    },
}

/// Which history is meant.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) resource: Resource,
    pub(super) step: Step,
    pub(super) state_dir: &'a Path,
    pub(super) target: Target,
    /// More missing steps are a new start.
    pub(super) gap_max: usize,
}

/// Whether an argument is a file, and else the name of an app.
pub(super) fn is_file(argument: &Path) -> bool {
    let named = argument
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let elsewhere = argument.components().count() != 1;
    // A directory may have the name of an app; what can be no name is a file.
    let no_name = argument
        .to_str()
        .is_none_or(|text| text.parse::<AppId>().is_err());
    named || elsewhere || no_name || (argument.exists() && !argument.is_dir())
}

/// Reads the history of an app.
///
/// # Errors
/// When there is no such app or no history of it, or it cannot be read.
pub(super) fn read(wanted: &Wanted<'_>) -> Result<Recording, Error> {
    let database = wanted.state_dir.join(store::FILE);
    let name = wanted.name.to_owned();
    if !database.exists() {
        return Err(Error::NoHistory { name, database });
    }
    let reader = Reader::open(&database)?;
    let series = reader.series()?;
    let apps: BTreeSet<&AppId> = series.iter().filter_map(|(app, _)| app.as_ref()).collect();
    let Some(app) = apps.iter().find(|app| app.as_str() == wanted.name) else {
        let known = listed(&apps);
        return Err(Error::Unknown {
            name,
            database,
            known,
        });
    };
    let rows = rows(&reader, app, wanted)?;
    if rows.is_empty() {
        let of = series
            .iter()
            .filter(|(other, _)| other.as_ref() == Some(*app));
        let known: Vec<&str> = of.map(|(_, resource)| resource.as_str()).collect();
        return Err(Error::Empty {
            app: (*app).clone(),
            resource: wanted.resource,
            known: known.join(", "),
            database,
        });
    }
    Ok(recording(&rows, wanted))
}

fn listed(apps: &BTreeSet<&AppId>) -> String {
    let names: Vec<&str> = apps
        .iter()
        .take(LISTED_MAX)
        .map(|app| app.as_str())
        .collect();
    match apps.len() {
        0 => "no app has any yet".to_owned(),
        all if all > LISTED_MAX => {
            format!("use {} or {} others", names.join(", "), all - LISTED_MAX)
        }
        _ => format!("use {}", names.join(" or ")),
    }
}

/// All whole roll-ups, oldest first.
fn rows(reader: &Reader, app: &AppId, wanted: &Wanted<'_>) -> Result<Vec<Row>, StoreError> {
    let level = wanted.step.level();
    let end = reader
        .span(Level::TenSeconds)?
        .map_or(0, |(_, newest)| newest);
    let mut until = end.checked_sub(level.step_ms());
    let mut pages = Vec::new();
    while let Some(until_unix_ms) = until
        && pages.len() < PAGES_MAX
    {
        let page = reader.history(&HistoryQuery {
            app: Some(app.clone()),
            resource: wanted.resource,
            since_unix_ms: 0,
            until_unix_ms,
            resolution: Resolution::At(level),
            limit: PAGE,
        })?;
        until = (page.rows.first()).and_then(|row| row.time_unix_ms.checked_sub(level.step_ms()));
        pages.push(page.rows);
    }
    Ok(pages.into_iter().rev().flatten().collect())
}

#[expect(clippy::cast_precision_loss, reason = "an hour in milliseconds")]
fn recording(rows: &[Row], wanted: &Wanted<'_>) -> Recording {
    let step = wanted.step.level().step_ms();
    let (mut samples, mut restarts, mut absent) = (Vec::new(), Vec::new(), 0);
    let mut before: Option<u64> = None;
    for row in rows {
        let passed = before.map_or(step, |before| row.time_unix_ms - before);
        let missing = usize::try_from(passed / step)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        absent += u64::try_from(missing).unwrap_or(u64::MAX);
        if missing > wanted.gap_max {
            restarts.push(samples.len());
        } else {
            samples.resize(samples.len() + missing, None);
        }
        samples.push(Some(match wanted.target {
            Target::Value => row.mean,
            Target::Peak => row.max,
        }));
        before = Some(row.time_unix_ms);
    }
    Recording {
        samples: samples.into_iter().collect(),
        restarts,
        period_seconds: Some(step as f64 / 1e3),
        counts: Counts {
            rows: u64::try_from(rows.len()).unwrap_or(u64::MAX),
            absent,
            ..Counts::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_767_225_600_000;

    fn wanted<'a>(name: &'a str, state_dir: &'a Path) -> Wanted<'a> {
        Wanted {
            name,
            resource: Resource::Cpu,
            step: Step::TenSeconds,
            state_dir,
            target: Target::Value,
            gap_max: 3,
        }
    }

    fn recorded(means: &[f64]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(store::FILE);
        let level = Level::TenSeconds;
        store::sample::record(&file, "web", Resource::Cpu, level, START, means);
        store::sample::record(
            &file,
            "db.main",
            Resource::Memory,
            level,
            START,
            &[1.0, 2.0],
        );
        dir
    }

    #[test]
    fn means_are_for_values_and_maxima_for_peaks() {
        let dir = recorded(&[1.0, 2.0, f64::NAN, 4.0, 5.0]);
        let check = |target, expected: [Option<f64>; 4]| {
            let wanted = Wanted {
                target,
                ..wanted("web", dir.path())
            };
            let found = read(&wanted).unwrap();
            assert_eq!(found.samples.iter().collect::<Vec<_>>(), expected);
            assert_eq!(found.period_seconds, Some(10.0));
            assert_eq!((found.counts.rows, found.counts.absent), (3, 1));
        };
        // The fifth may be incomplete.
        check(Target::Value, [Some(1.0), Some(2.0), None, Some(4.0)]);
        check(Target::Peak, [Some(1.5), Some(3.0), None, Some(6.0)]);
    }

    #[test]
    fn a_long_gap_is_a_new_start_and_long_histories_are_read_in_pages() {
        let mut means = vec![1.0; 25_000];
        means[20_000..20_010].fill(f64::NAN);
        let dir = recorded(&means);
        let found = read(&wanted("web", dir.path())).unwrap();
        assert_eq!(found.samples.len(), 25_000 - 10 - 1);
        assert_eq!(found.restarts, [20_000]);
    }

    #[test]
    fn what_there_is_not_is_said_with_what_there_is() {
        let dir = recorded(&[1.0, 2.0]);
        let error = |wanted: &Wanted<'_>| read(wanted).unwrap_err().to_string();
        let unknown = error(&wanted("wbe", dir.path()));
        assert!(
            unknown.starts_with("`wbe` is neither a file nor an app"),
            "{unknown}"
        );
        assert!(unknown.ends_with("use db.main or web"), "{unknown}");
        let empty = error(&wanted("db.main", dir.path()));
        assert!(empty.contains("no whole roll-up of cpu"), "{empty}");
        assert!(empty.contains("it has memory;"), "{empty}");
        let none = tempfile::tempdir().unwrap();
        let missing = error(&wanted("web", none.path()));
        assert!(missing.contains("there is no history at"), "{missing}");
        assert!(
            !none.path().join(store::FILE).exists(),
            "nothing was created"
        );
    }

    #[test]
    fn a_file_is_told_from_an_app() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data"), "1\n").unwrap();
        for (argument, expected) in [
            (PathBuf::from("web"), false),
            (PathBuf::from("db.main"), false),
            (PathBuf::from("web.csv"), true),
            (PathBuf::from("WEB.CSV"), true),
            (PathBuf::from("./web"), true),
            (PathBuf::from("records/web"), true),
            (dir.path().join("data"), true),
        ] {
            assert_eq!(is_file(&argument), expected, "{}", argument.display());
        }
    }
}
