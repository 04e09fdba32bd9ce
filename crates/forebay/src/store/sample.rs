//! Recorded history for tests of what reads it.

use std::path::Path;

use rusqlite::{Connection, params};

use super::{Level, Resource, Retention, Store, signed};

/// Writes roll-ups of one series, the first at `first_unix_ms`, a NaN for each that is missing.
/// The maximum of each is 1.5 times its mean.
pub(crate) fn record(
    path: &Path,
    app: &str,
    resource: Resource,
    level: Level,
    first_unix_ms: u64,
    means: &[f64],
) {
    drop(Store::open(path, Retention::default()).unwrap());
    let mut db = Connection::open(path).unwrap();
    let transaction = db.transaction().unwrap();
    let series: i64 = transaction
        .query_row(
            "INSERT INTO series (app, resource, last_unix_ms) VALUES (?1, ?2, 0)
             ON CONFLICT DO UPDATE SET last_unix_ms = 0 RETURNING id",
            params![app, resource.as_str()],
            |row| row.get(0),
        )
        .unwrap();
    let mut time = first_unix_ms;
    for &mean in means {
        if mean.is_finite() {
            let sql = format!(
                "INSERT OR REPLACE INTO {} VALUES (?1, ?2, 1, ?3, ?3, ?4, ?3, 0, 0)",
                level.table()
            );
            let row = params![signed(time), series, mean, mean * 1.5];
            transaction.execute(&sql, row).unwrap();
        }
        time += level.step_ms();
    }
    transaction.commit().unwrap();
}
