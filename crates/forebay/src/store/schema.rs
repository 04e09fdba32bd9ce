//! The file's format, and how it is opened.
//!
//! Roll-ups are ordered by time first: a batch then touches a few pages at the end of each
//! table instead of one page for each series, and retention deletes from its start. A history
//! of one series is found by one seek for each roll-up, since their times are known.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::{Retention, StoreError};

/// "FBAY": marks the file as Forebay's.
const APPLICATION_ID: i64 = 0x4642_4159;

/// Longest wait for another connection's lock.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// Bytes that the write-ahead log is cut to after a checkpoint.
const LOG_BYTES_MAX: u64 = 8 << 20;

/// One script for each version of the format: script `n` leads from version `n` to `n + 1`.
/// A released script is never edited.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE series (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        app TEXT NOT NULL, -- empty for the host
        resource TEXT NOT NULL,
        last_unix_ms INTEGER NOT NULL, -- last written to, within an hour
        UNIQUE (app, resource)
    ) STRICT;
    CREATE TABLE rollup_10s (
        unix_ms INTEGER NOT NULL,
        series INTEGER NOT NULL,
        count INTEGER NOT NULL,
        sum REAL NOT NULL,
        min REAL NOT NULL,
        max REAL NOT NULL,
        last REAL NOT NULL,
        demand_count INTEGER NOT NULL,
        demand_sum REAL NOT NULL,
        PRIMARY KEY (unix_ms, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE rollup_1min (
        unix_ms INTEGER NOT NULL,
        series INTEGER NOT NULL,
        count INTEGER NOT NULL,
        sum REAL NOT NULL,
        min REAL NOT NULL,
        max REAL NOT NULL,
        last REAL NOT NULL,
        demand_count INTEGER NOT NULL,
        demand_sum REAL NOT NULL,
        PRIMARY KEY (unix_ms, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE rollup_1h (
        unix_ms INTEGER NOT NULL,
        series INTEGER NOT NULL,
        count INTEGER NOT NULL,
        sum REAL NOT NULL,
        min REAL NOT NULL,
        max REAL NOT NULL,
        last REAL NOT NULL,
        demand_count INTEGER NOT NULL,
        demand_sum REAL NOT NULL,
        PRIMARY KEY (unix_ms, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        unix_ms INTEGER NOT NULL,
        app TEXT,
        kind TEXT NOT NULL,
        message TEXT NOT NULL,
        detail TEXT
    ) STRICT;
    CREATE TABLE decision (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        unix_ms INTEGER NOT NULL,
        app TEXT,
        kind TEXT NOT NULL,
        message TEXT NOT NULL,
        detail TEXT
    ) STRICT;
"];

/// The version that this release writes.
pub(super) const VERSION: usize = MIGRATIONS.len();

/// Opens the file for writing, in this release's format.
pub(super) fn open(path: &Path, retention: &Retention) -> Result<Connection, StoreError> {
    create(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |attempt| move |source| StoreError::sqlite(path, attempt, source);
    let mut db = Connection::open_with_flags(path, flags).map_err(failed("opening"))?;
    db.busy_timeout(BUSY_WAIT).map_err(failed("opening"))?;

    // Reads only, so that a file of somebody else stays as it is.
    check_owner(&db, path)?;

    configure(&db, retention).map_err(failed("configuring"))?;
    migrate(&mut db).map_err(failed("creating its tables"))?;
    Ok(db)
}

/// Opens the file for reading only; it must exist in this release's format.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |source| StoreError::sqlite(path, "opening", source);
    let db = Connection::open_with_flags(path, flags).map_err(failed)?;
    db.busy_timeout(BUSY_WAIT).map_err(failed)?;
    check_owner(&db, path)?;
    Ok(db)
}

/// Creates an empty file that only the owner and the group can read: command lines of apps
/// may appear in events. SQLite gives its companion files the same mode.
fn create(path: &Path) -> Result<(), StoreError> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map(drop)
        .map_err(|source| StoreError::Open {
            path: path.to_owned(),
            attempt: "creating or opening the file",
            source,
        })
}

fn check_owner(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::sqlite(path, "reading its header", source);
    let owner = pragma(db, "application_id").map_err(failed)?;
    let version = pragma(db, "user_version").map_err(failed)?;
    let tables: i64 = db
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .map_err(failed)?;
    if owner != APPLICATION_ID && (owner != 0 || tables != 0) {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
        });
    }
    let known = i64::try_from(VERSION).unwrap_or(i64::MAX);
    if version > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: version,
            known,
        });
    }
    Ok(())
}

fn configure(db: &Connection, retention: &Retention) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "normal")?;
    db.pragma_update(None, "journal_size_limit", super::signed(LOG_BYTES_MAX))?;
    // The last word if giving up old rows does not keep up: writes fail, and are counted.
    let page = pragma(db, "page_size")?.max(1);
    let pages = super::signed(retention.bytes_max / 4 * 5) / page;
    db.pragma_update(None, "max_page_count", pages.max(1))?;
    Ok(())
}

fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    // Immediate, so that two daemons that start at once do not both migrate.
    let transaction = Transaction::new(db, TransactionBehavior::Immediate)?;
    let version = pragma(&transaction, "user_version")?;
    let done = usize::try_from(version).unwrap_or(0);
    if done < VERSION {
        for script in &MIGRATIONS[done..] {
            transaction.execute_batch(script)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(
            None,
            "user_version",
            i64::try_from(VERSION).unwrap_or(i64::MAX),
        )?;
    }
    transaction.commit()
}

/// A numeric pragma's value.
pub(super) fn pragma(db: &Connection, name: &str) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, name, |row| row.get(0))
}

/// The smallest and the greatest key of a table, unless it is empty.
pub(super) fn ends(
    transaction: &Transaction<'_>,
    table: &str,
    key: &str,
) -> rusqlite::Result<Option<(i64, i64)>> {
    // Two subqueries: each is one seek, where both in one SELECT would scan.
    let sql = format!("SELECT (SELECT min({key}) FROM {table}), (SELECT max({key}) FROM {table})");
    transaction.query_row(&sql, [], |row| {
        let first: Option<i64> = row.get(0)?;
        let last: Option<i64> = row.get(1)?;
        Ok(first.zip(last))
    })
}
