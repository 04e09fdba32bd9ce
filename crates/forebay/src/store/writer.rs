//! What is to be written, and writing it.
//!
//! One transaction for each batch. A span of 10 s is merged into all three levels at once, so
//! that after every commit the levels agree and a restart within an hour continues the hour.
//! A batch that fails stays pending, within bounds, and is tried again with the next one.

use std::collections::{BTreeMap, HashMap, VecDeque};

use forebay_core::app::AppId;
use forebay_core::host::{Action, Outcome};
use forebay_core::plan::Reason;
use forebay_core::report::{Event, TickReport};
use forebay_core::slice::{Knob, Setting};
use forebay_core::units::Time;
use rusqlite::{Connection, Transaction, params};

use super::rollup::{Bucket, RollUp, Summary};
use super::{Level, Resource, Retention, Store, millis, schema, signed};

/// Spans of 10 s that wait for a disk that works again: one minute.
const BUCKETS_MAX: usize = 6;

/// Events that wait likewise.
const EVENTS_PENDING_MAX: usize = 1000;

/// Longest text of one event, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Time between two rounds of housekeeping.
const HOUSEKEEPING_MS: u64 = 60_000;

/// Rows that a round of housekeeping deletes from a table beyond twice what was written: a
/// clock that is wrong for a minute costs little history, and no round takes long.
const DELETED_MIN: u64 = 500;

/// Writes reports to the file.
#[derive(Debug)]
pub(super) struct Writer {
    db: Connection,
    retention: Retention,
    rollup: RollUp,
    pending: Pending,
    /// Series written to within this hour.
    series: HashMap<Key, i64>,
    hour: u64,
    housekeeping_due_ms: Option<u64>,
    /// Rows written to each table since the last housekeeping.
    written: u64,
}

type Key = (Option<AppId>, Resource);

/// What the next batch is to hold.
#[derive(Debug, Default)]
struct Pending {
    buckets: VecDeque<Bucket>,
    events: VecDeque<Event>,
    decisions: BTreeMap<AppId, Decision>,
    /// Spans and events given up.
    lost: u64,
}

/// What an app's slice was changed to since the last batch.
#[derive(Debug)]
struct Decision {
    time: Time,
    settings: BTreeMap<Knob, Setting>,
    reason: Option<Reason>,
}

impl Writer {
    pub(super) fn new(store: Store) -> Self {
        Self {
            db: store.db,
            retention: store.retention,
            rollup: RollUp::default(),
            pending: Pending::default(),
            series: HashMap::new(),
            hour: 0,
            housekeeping_due_ms: None,
            written: 0,
        }
    }

    /// Takes in a report; writes nothing.
    pub(super) fn add(&mut self, report: &TickReport) {
        if let Some(ended) = self.rollup.add(report) {
            self.pending.push_bucket(ended);
        }
        for event in &report.events {
            self.pending.push_event(event.clone());
        }
        for (action, outcome) in &report.actions {
            if let (Action::Set { app, setting }, Outcome::Done) = (action, outcome) {
                self.pending.push_decision(report, app, *setting);
            }
        }
    }

    /// Ends the span that is being filled, before the last batch.
    pub(super) fn finish(&mut self) {
        if let Some(ended) = self.rollup.finish() {
            self.pending.push_bucket(ended);
        }
    }

    /// Spans and events given up since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.pending.lost)
    }

    /// Writes everything pending, and does the housekeeping if it is due at `now`.
    pub(super) fn write(&mut self, now: Time) -> rusqlite::Result<()> {
        if !self.pending.is_empty() {
            let written = self.write_pending();
            if written.is_err() {
                // Some of the series may have been created by what was rolled back.
                self.series.clear();
            }
            self.written += written?;
            self.pending.clear();
        }
        let now_ms = millis(now.monotonic);
        if self.housekeeping_due_ms.is_none_or(|due| due <= now_ms) {
            // Set first: housekeeping that fails is not repeated with every batch.
            self.housekeeping_due_ms = Some(now_ms + HOUSEKEEPING_MS);
            self.keep_house(now.unix_ms)?;
        }
        Ok(())
    }

    /// Lifts the bound on the file's size, as if the disk had space again.
    #[cfg(test)]
    pub(super) fn relieve(&self) {
        const PAGES_MAX: i64 = 1 << 30;
        let raised = self.db.pragma_update(None, "max_page_count", PAGES_MAX);
        assert_eq!(raised, Ok(()));
    }

    /// One transaction: rolled back when dropped without a commit.
    fn write_pending(&mut self) -> rusqlite::Result<u64> {
        let transaction = self.db.transaction()?;
        let mut rows = 0;
        for bucket in &self.pending.buckets {
            let hour = Level::Hour.start_of(bucket.unix_ms);
            if hour != self.hour {
                self.series.clear();
                self.hour = hour;
            }
            rows += write_bucket(&transaction, &mut self.series, bucket)?;
        }
        for event in &self.pending.events {
            write_event(&transaction, event)?;
        }
        for (app, decision) in &self.pending.decisions {
            write_decision(&transaction, app, decision)?;
        }
        let texts = self.pending.events.len() + self.pending.decisions.len();
        transaction.commit()?;
        Ok(rows + u64::try_from(texts).unwrap_or(u64::MAX))
    }

    /// Deletes what is too old or too much, in a small step, and syncs the log.
    fn keep_house(&mut self, now_unix_ms: u64) -> rusqlite::Result<()> {
        let step = Step {
            rows: std::mem::take(&mut self.written) * 2 + DELETED_MIN,
            crowded: used_bytes(&self.db)? > self.retention.bytes_max,
        };
        let transaction = self.db.transaction()?;
        let mut behind = false;
        for level in Level::ALL {
            let cutoff = now_unix_ms.saturating_sub(millis(self.retention.of(level)));
            behind |= trim_level(&transaction, level, cutoff, step)?;
        }
        for table in ["event", "decision"] {
            trim_texts(&transaction, table, self.retention.events_max, step)?;
        }
        if !behind {
            let age = millis(self.retention.hour).saturating_add(2 * Level::Hour.step_ms());
            let cutoff = signed(now_unix_ms.saturating_sub(age));
            let pruned =
                transaction.execute("DELETE FROM series WHERE last_unix_ms < ?1", [cutoff])?;
            if pruned > 0 {
                self.series.clear();
            }
        }
        transaction.commit()?;
        self.db
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.buckets.is_empty() && self.events.is_empty() && self.decisions.is_empty()
    }

    fn clear(&mut self) {
        self.buckets.clear();
        self.events.clear();
        self.decisions.clear();
    }

    fn push_bucket(&mut self, bucket: Bucket) {
        self.lost += push_bounded(&mut self.buckets, bucket, BUCKETS_MAX);
    }

    fn push_event(&mut self, event: Event) {
        self.lost += push_bounded(&mut self.events, event, EVENTS_PENDING_MAX);
    }

    /// Only the latest change of each knob of each app is kept: bounded by their number.
    fn push_decision(&mut self, report: &TickReport, app: &AppId, setting: Setting) {
        if self.decisions.len() == EVENTS_PENDING_MAX && !self.decisions.contains_key(app) {
            self.lost += 1;
            return;
        }
        let decision = self.decisions.entry(app.clone()).or_insert(Decision {
            time: report.time,
            settings: BTreeMap::new(),
            reason: None,
        });
        decision.time = report.time;
        decision.settings.insert(setting.knob(), setting);
        decision.reason = report.apps.get(app).and_then(|app| app.reason.clone());
    }
}

/// Adds to the end; says how many were given up at the front to make room.
fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, max: usize) -> u64 {
    let full = queue.len() >= max;
    if full {
        queue.pop_front();
    }
    queue.push_back(item);
    u64::from(full)
}

/// Merges a span into all levels; returns the rows it has in each.
fn write_bucket(
    transaction: &Transaction<'_>,
    series: &mut HashMap<Key, i64>,
    bucket: &Bucket,
) -> rusqlite::Result<u64> {
    let mut rows = Vec::new();
    for (app, resource, summary) in bucket.iter() {
        let key = (app.cloned(), resource);
        let id = match series.get(&key) {
            Some(id) => *id,
            None => {
                let id = series_id(transaction, app, resource, bucket.unix_ms)?;
                series.insert(key, id);
                id
            }
        };
        rows.push((id, summary));
    }
    // In the order of the tables.
    rows.sort_unstable_by_key(|(id, _)| *id);
    for level in Level::ALL {
        merge(transaction, level, bucket.unix_ms, &rows)?;
    }
    Ok(u64::try_from(rows.len()).unwrap_or(u64::MAX))
}

fn series_id(
    transaction: &Transaction<'_>,
    app: Option<&AppId>,
    resource: Resource,
    unix_ms: u64,
) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached(
            "INSERT INTO series (app, resource, last_unix_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET last_unix_ms = max(last_unix_ms, excluded.last_unix_ms)
             RETURNING id",
        )?
        .query_row(
            params![
                app.map_or("", AppId::as_str),
                resource.as_str(),
                signed(unix_ms)
            ],
            |row| row.get(0),
        )
}

fn merge(
    transaction: &Transaction<'_>,
    level: Level,
    unix_ms: u64,
    rows: &[(i64, &Summary)],
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(&format!(
        "INSERT INTO {} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT DO UPDATE SET
            count = count + excluded.count,
            sum = sum + excluded.sum,
            min = min(min, excluded.min),
            max = max(max, excluded.max),
            last = excluded.last,
            demand_count = demand_count + excluded.demand_count,
            demand_sum = demand_sum + excluded.demand_sum",
        level.table()
    ))?;
    let start = signed(level.start_of(unix_ms));
    for (series, summary) in rows {
        statement.execute(params![
            start,
            series,
            signed(summary.count),
            summary.sum,
            summary.min,
            summary.max,
            summary.last,
            signed(summary.demand_count),
            summary.demand_sum,
        ])?;
    }
    Ok(())
}

fn write_event(transaction: &Transaction<'_>, event: &Event) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO event (unix_ms, app, kind, message) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![
            signed(event.time.unix_ms),
            event.app.as_ref().map(AppId::as_str),
            word(&event.kind),
            cut(&event.message),
        ])
        .map(drop)
}

fn write_decision(
    transaction: &Transaction<'_>,
    app: &AppId,
    decision: &Decision,
) -> rusqlite::Result<()> {
    let settings: Vec<String> = decision
        .settings
        .values()
        .map(ToString::to_string)
        .collect();
    // The numbers are for `explain`; a change is worth recording even without them.
    let reason = decision
        .reason
        .as_ref()
        .and_then(|reason| serde_json::to_string(reason).ok());
    transaction
        .prepare_cached(
            "INSERT INTO decision (unix_ms, app, kind, message, detail)
             VALUES (?1, ?2, 'decision', ?3, ?4)",
        )?
        .execute(params![
            signed(decision.time.unix_ms),
            app.as_str(),
            cut(&settings.join(", ")),
            reason,
        ])
        .map(drop)
}

/// A plain enum value's name on the wire.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

/// The start of a text that is too long.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

/// How much one round may delete from each table.
#[derive(Debug, Clone, Copy)]
struct Step {
    rows: u64,
    /// Whether the file is too large, so that a sixteenth of every table goes early.
    crowded: bool,
}

/// Deletes the oldest roll-ups; says whether some remain that should go.
fn trim_level(
    transaction: &Transaction<'_>,
    level: Level,
    cutoff_unix_ms: u64,
    step: Step,
) -> rusqlite::Result<bool> {
    let table = level.table();
    let Some((first, last)) = schema::ends(transaction, table, "unix_ms")? else {
        return Ok(false);
    };
    // What ends at the cutoff or before it goes.
    let cutoff = cutoff_unix_ms.saturating_sub(level.step_ms());
    let end = signed(cutoff)
        .saturating_add(1)
        .max(step.crowded_end(first, last));

    let next = format!("SELECT min(unix_ms) FROM {table} WHERE unix_ms < ?1");
    let mut next = transaction.prepare_cached(&next)?;
    let mut delete =
        transaction.prepare_cached(&format!("DELETE FROM {table} WHERE unix_ms = ?1"))?;
    let mut deleted = 0;
    while let Some(start) = next.query_row([end], |row| row.get::<_, Option<i64>>(0))? {
        if deleted >= step.rows {
            return Ok(true);
        }
        deleted += u64::try_from(delete.execute([start])?).unwrap_or(u64::MAX);
    }
    Ok(false)
}

/// Deletes the oldest events or decisions beyond `max`.
fn trim_texts(
    transaction: &Transaction<'_>,
    table: &str,
    max: u64,
    step: Step,
) -> rusqlite::Result<()> {
    let Some((first, last)) = schema::ends(transaction, table, "id")? else {
        return Ok(());
    };
    let end = last
        .saturating_sub(signed(max))
        .saturating_add(1)
        .max(step.crowded_end(first, last))
        .min(first.saturating_add(signed(step.rows)));
    transaction
        .execute(&format!("DELETE FROM {table} WHERE id < ?1"), [end])
        .map(drop)
}

impl Step {
    /// Where a table's oldest sixteenth ends if the file is too large, else where it starts.
    fn crowded_end(self, first: i64, last: i64) -> i64 {
        if self.crowded {
            first.saturating_add(last.saturating_sub(first) / 16 + 1)
        } else {
            first
        }
    }
}

/// Bytes of the file that hold rows.
fn used_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let pages = schema::pragma(db, "page_count")? - schema::pragma(db, "freelist_count")?;
    Ok(super::unsigned(
        pages.saturating_mul(schema::pragma(db, "page_size")?),
    ))
}
