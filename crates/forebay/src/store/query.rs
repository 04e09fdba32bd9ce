//! Reading history, from any thread and while it is written.

use std::path::{Path, PathBuf};

use forebay_core::app::AppId;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{Level, Resource, StoreError, schema, signed, unsigned};

/// Rows that one query returns at most.
pub(crate) const ROWS_MAX: usize = 10_000;

/// Roll-ups that one query looks for at most, found or not.
const SEEKS_MAX: usize = 20_000;

/// Series that are listed at most.
const SERIES_MAX: i64 = 10_000;

/// A connection that only reads. One thread at a time; open another for another thread.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    db: Connection,
}

/// Which history is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HistoryQuery {
    /// The app; the host when absent.
    pub(crate) app: Option<AppId>,
    /// The resource.
    pub(crate) resource: Resource,
    /// From here, in milliseconds since 1970-01-01 UTC.
    pub(crate) since_unix_ms: u64,
    /// Up to and with this.
    pub(crate) until_unix_ms: u64,
    /// How much time each row covers.
    pub(crate) resolution: Resolution,
    /// Most rows; the newest are returned.
    pub(crate) limit: usize,
}

/// How much time each row covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// The finest that reaches back far enough and fits the limit.
    Auto,
    /// This one.
    At(Level),
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct History {
    /// How much time each row covers.
    pub(crate) level: Level,
    /// Rows in the order of time. Times without samples have none.
    pub(crate) rows: Vec<Row>,
}

/// One roll-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Row {
    /// Where it starts.
    pub(crate) time_unix_ms: u64,
    /// Samples in it.
    pub(crate) count: u64,
    /// The lowest sample.
    pub(crate) min: f64,
    /// The mean of the samples.
    pub(crate) mean: f64,
    /// The highest sample.
    pub(crate) max: f64,
    /// The last sample.
    pub(crate) last: f64,
    /// The mean of the forecasts' 95 % quantiles, if there were any.
    pub(crate) demand_q95: Option<f64>,
}

/// Which events or decisions are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EventQuery {
    /// Of this app only; of all and of the host when absent.
    pub(crate) app: Option<AppId>,
    /// From here, in milliseconds since 1970-01-01 UTC.
    pub(crate) since_unix_ms: u64,
    /// Most rows; the newest are returned.
    pub(crate) limit: usize,
}

/// One event or decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventRow {
    /// Grows with every row; never used twice.
    pub(crate) id: i64,
    /// When.
    pub(crate) time_unix_ms: u64,
    /// The app it is about, unless it is about the host.
    pub(crate) app: Option<String>,
    /// An event's kind as on the wire, or `decision`.
    pub(crate) kind: String,
    /// In words.
    pub(crate) message: String,
    /// A decision's reason, as JSON.
    pub(crate) detail: Option<String>,
}

impl Reader {
    /// Opens the file that a [`Store`](super::Store) has created.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.to_owned(),
            db: schema::open_read_only(path)?,
        })
    }

    /// The history of one resource of one app or of the host.
    pub(crate) fn history(&self, query: &HistoryQuery) -> Result<History, StoreError> {
        self.history_of(query)
            .map_err(|source| self.failed("roll-ups", source))
    }

    /// What there is history of: those that were written to last first, at most [`SERIES_MAX`].
    /// The host is no app.
    pub(crate) fn series(&self) -> Result<Vec<(Option<AppId>, Resource)>, StoreError> {
        self.listed()
            .map_err(|source| self.failed("the list of series", source))
    }

    /// Where the roll-ups of a resolution start: the oldest and the newest. None where it has none.
    pub(crate) fn span(&self, level: Level) -> Result<Option<(u64, u64)>, StoreError> {
        let span = || {
            let transaction = self.db.unchecked_transaction()?;
            schema::ends(&transaction, level.table(), "unix_ms")
        };
        let span = span().map_err(|source| self.failed("roll-ups", source))?;
        Ok(span.map(|(oldest, newest)| (unsigned(oldest), unsigned(newest))))
    }

    /// The newest events, in the order they were written.
    pub(crate) fn events(&self, query: &EventQuery) -> Result<Vec<EventRow>, StoreError> {
        self.texts("event", query)
            .map_err(|source| self.failed("events", source))
    }

    /// The newest slice changes with the numbers that decided, in the order they were written.
    pub(crate) fn decisions(&self, query: &EventQuery) -> Result<Vec<EventRow>, StoreError> {
        self.texts("decision", query)
            .map_err(|source| self.failed("decisions", source))
    }

    fn failed(&self, what: &'static str, source: rusqlite::Error) -> StoreError {
        StoreError::Query {
            path: self.path.clone(),
            what,
            source,
        }
    }

    fn history_of(&self, query: &HistoryQuery) -> rusqlite::Result<History> {
        // One transaction: the writer may delete between two statements.
        let transaction = self.db.unchecked_transaction()?;
        let level = match query.resolution {
            Resolution::At(level) => level,
            Resolution::Auto => choose(&transaction, query)?,
        };
        let series = transaction
            .query_row(
                "SELECT id FROM series WHERE app = ?1 AND resource = ?2",
                params![
                    query.app.as_ref().map_or("", AppId::as_str),
                    query.resource.as_str()
                ],
                |row| row.get(0),
            )
            .optional()?;
        let rows = match series {
            Some(series) => seek(&transaction, level, series, query)?,
            None => Vec::new(),
        };
        Ok(History { level, rows })
    }

    fn listed(&self) -> rusqlite::Result<Vec<(Option<AppId>, Resource)>> {
        let mut statement = self.db.prepare_cached(
            "SELECT app, resource FROM series ORDER BY last_unix_ms DESC, app, resource LIMIT ?1",
        )?;
        let rows = statement.query_map([SERIES_MAX], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut listed = Vec::new();
        for row in rows {
            let (app, resource) = row?;
            // A later release may know more resources.
            let Ok(resource) = resource.parse() else {
                continue;
            };
            match app.as_str() {
                "" => listed.push((None, resource)),
                // What cannot be an app's name was not written by us.
                name => listed.extend(name.parse().ok().map(|app| (Some(app), resource))),
            }
        }
        Ok(listed)
    }

    fn texts(&self, table: &str, query: &EventQuery) -> rusqlite::Result<Vec<EventRow>> {
        let mut statement = self.db.prepare_cached(&format!(
            "SELECT id, unix_ms, app, kind, message, detail FROM {table}
             WHERE unix_ms >= ?1 AND (?2 IS NULL OR app = ?2)
             ORDER BY id DESC LIMIT ?3"
        ))?;
        let limit = i64::try_from(query.limit.min(ROWS_MAX)).unwrap_or(i64::MAX);
        let app = query.app.as_ref().map(AppId::as_str);
        let rows =
            statement.query_map(params![signed(query.since_unix_ms), app, limit], |row| {
                Ok(EventRow {
                    id: row.get(0)?,
                    time_unix_ms: unsigned(row.get(1)?),
                    app: row.get(2)?,
                    kind: row.get(3)?,
                    message: row.get(4)?,
                    detail: row.get(5)?,
                })
            })?;
        let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        rows.reverse();
        Ok(rows)
    }
}

/// The finest level that has everything the coarsest has since the start, in few enough rows.
fn choose(transaction: &Transaction<'_>, query: &HistoryQuery) -> rusqlite::Result<Level> {
    let limit = u64::try_from(query.limit.min(ROWS_MAX)).unwrap_or(u64::MAX);
    let ends = |level: Level| {
        let ends = schema::ends(transaction, level.table(), "unix_ms")?;
        Ok::<_, rusqlite::Error>(ends.map(|(first, last)| (unsigned(first), unsigned(last))))
    };
    let Some((first, _)) = ends(Level::Hour)? else {
        return Ok(Level::TenSeconds);
    };
    // The coarsest rows start up to one step before their first sample.
    let needed = query.since_unix_ms.max(first + Level::Hour.step_ms());
    for level in [Level::TenSeconds, Level::Minute] {
        let Some((oldest, newest)) = ends(level)? else {
            continue;
        };
        let from = query.since_unix_ms.max(oldest);
        let span = query.until_unix_ms.min(newest).saturating_sub(from);
        if oldest <= needed && span / level.step_ms() < limit {
            return Ok(level);
        }
    }
    Ok(Level::Hour)
}

/// Finds the series' rows from the newest to the oldest, one seek for each roll-up; where it
/// has none, goes on at the next one that any series has.
fn seek(
    transaction: &Transaction<'_>,
    level: Level,
    series: i64,
    query: &HistoryQuery,
) -> rusqlite::Result<Vec<Row>> {
    let table = level.table();
    let mut find = transaction.prepare_cached(&format!(
        "SELECT count, sum, min, max, last, demand_count, demand_sum
         FROM {table} WHERE unix_ms = ?1 AND series = ?2"
    ))?;
    let mut before = transaction.prepare_cached(&format!(
        "SELECT max(unix_ms) FROM {table} WHERE unix_ms < ?1"
    ))?;
    let since = signed(level.start_of(query.since_unix_ms));
    let mut time = signed(level.start_of(query.until_unix_ms));
    let mut rows = Vec::new();
    for _ in 0..SEEKS_MAX {
        if time < since || rows.len() == query.limit.min(ROWS_MAX) {
            break;
        }
        let found = find
            .query_row([time, series], |row| read_row(time, row))
            .optional()?;
        if let Some(row) = found {
            rows.push(row);
            time = time.saturating_sub(signed(level.step_ms()));
        } else {
            match before.query_row([time], |row| row.get::<_, Option<i64>>(0))? {
                Some(earlier) => time = earlier,
                None => break,
            }
        }
    }
    rows.reverse();
    Ok(rows)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a roll-up has far fewer than 2^53 samples"
)]
fn read_row(time: i64, row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let count: i64 = row.get(0)?;
    let demand_count: i64 = row.get(5)?;
    let demand_sum: f64 = row.get(6)?;
    Ok(Row {
        time_unix_ms: unsigned(time),
        count: unsigned(count),
        min: row.get(2)?,
        mean: row.get::<_, f64>(1)? / count as f64,
        max: row.get(3)?,
        last: row.get(4)?,
        demand_q95: (demand_count > 0).then(|| demand_sum / demand_count as f64),
    })
}
