//! The store as a whole: what is written is read back, and survives what happens to files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::app::{AppId, Class};
use forebay_core::demand::{Band, Demand, MemoryNow, Usage};
use forebay_core::host::{Action, Outcome};
use forebay_core::idset::CpuSet;
use forebay_core::io_history::IoUse;
use forebay_core::plan::Reason;
use forebay_core::plan::reclaim::GiveBack;
use forebay_core::report::{AppReport, Event, EventKind, TickReport};
use forebay_core::slice::{Setting, Slice};
use forebay_core::snapshot::{Gap, HostSample, RunState};
use forebay_core::units::{Bytes, MilliCpu, Time};
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::query::{ROWS_MAX, Row};
use super::recorder::QUEUE_MAX;
use super::writer::Writer;
use super::*;

/// 2026-01-01, an hour's start.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// A report without apps, `ms` after the epoch of these tests.
pub(super) fn report_at(ms: u64) -> TickReport {
    TickReport {
        period: ms / 100,
        time: Time {
            monotonic: Duration::from_millis(ms),
            unix_ms: EPOCH_MS + ms,
        },
        paused: false,
        offload: forebay_core::offload::Mode::Watch,
        host: HostSample {
            cpu_busy: Err(Gap::Unsupported),
            steal: Err(Gap::Unsupported),
            memory_available: Ok(Bytes::mib(100)),
            interrupts: Err(forebay_core::snapshot::Gap::Unsupported),
            cost_models: Err(forebay_core::snapshot::Gap::Unsupported),
            swap_free: Err(Gap::Unsupported),
            memory_watch: Err(Gap::Unsupported),
            compaction: Err(Gap::Unsupported),
        },
        shared: CpuSet::EMPTY,
        io: BTreeMap::new(),
        apps: BTreeMap::new(),
        give_back: GiveBack::default(),
        actions: Vec::new(),
        shortfalls: Vec::new(),
        events: Vec::new(),
    }
}

fn id(name: &str) -> AppId {
    name.parse().unwrap()
}

fn app_using(cpu: Option<f64>, demand_q95: Option<f64>) -> AppReport {
    let band = |q95| Band {
        q50: 0.0,
        q90: 0.0,
        q95,
        q99: q95,
        model: "test".to_owned(),
        cold: false,
    };
    AppReport {
        class: Class::Critical,
        state: RunState::Running,
        main_pid: None,
        starts: 1,
        usage: Usage {
            cpu,
            cpu_stalled: Some(0.25),
            memory: Some(Bytes::mib(10)),
            ..Usage::default()
        },
        io: IoUse::default(),
        traffic: None,
        network: None,
        demand: demand_q95.map(|q95| Demand {
            cpu: band(q95),
            memory: band(1e6),
            cpu_stalled: 0.25,
            io_use: IoUse::default(),
            io: BTreeMap::new(),
            memory_now: MemoryNow::default(),
            usage: Usage::default(),
            response_time: None,
        }),
        slice: Slice::default(),
        reason: Some(Reason {
            cpu_demand: MilliCpu(500),
            cpu_wanted: MilliCpu(650),
            cpu_extra: MilliCpu(0),
            exclusive: CpuSet::EMPTY,
            spills: false,
            held_cpus: 0,
            memory_demand: Bytes::mib(12),
        }),
        reclaim: None,
        page_move: None,
        offload: None,
    }
}

pub(super) fn report_of_apps(ms: u64, apps: usize) -> TickReport {
    let mut report = report_at(ms);
    for n in 0..apps {
        let app = app_using(Some(1.5), Some(2.0));
        report.apps.insert(id(&format!("app-{n}")), app);
    }
    report
}

fn event(ms: u64, message: &str) -> Event {
    Event {
        time: report_at(ms).time,
        app: Some(id("web")),
        kind: EventKind::Started,
        message: message.to_owned(),
    }
}

fn open(dir: &TempDir) -> Store {
    Store::open(&dir.path().join("state.db"), Retention::default()).unwrap()
}

fn reader(dir: &TempDir) -> Reader {
    Reader::open(&dir.path().join("state.db")).unwrap()
}

fn query(app: &str, level: Level) -> HistoryQuery {
    HistoryQuery {
        app: Some(id(app)),
        resource: Resource::Cpu,
        since_unix_ms: 0,
        until_unix_ms: u64::MAX,
        resolution: Resolution::At(level),
        limit: ROWS_MAX,
    }
}

fn write_all(writer: &mut Writer, reports: &[TickReport]) {
    for report in reports {
        writer.add(report);
        writer.write(report.time).unwrap();
    }
}

#[test]
fn a_recorder_writes_what_it_is_given_and_stops() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let recorder = Recorder::start(store).unwrap();
    for n in 0..300 {
        let mut report = report_of_apps(n * 100, 2);
        if n == 7 {
            report.events.push(event(700, "was started"));
            let setting = Setting::CpuWeight(200);
            let app = id("app-0");
            report
                .actions
                .push((Action::Set { app, setting }, Outcome::Done));
        }
        recorder.offer(Arc::new(report));
    }
    assert_eq!(
        (recorder.dropped(), recorder.errors(), recorder.lost()),
        (0, 0, 0)
    );
    assert_eq!(recorder.last_error(), None);
    recorder.stop();

    let reader = reader(&dir);
    let history = reader.history(&query("app-1", Level::TenSeconds)).unwrap();
    assert_eq!(history.rows.len(), 3);
    let row = history.rows[1];
    assert_eq!((row.time_unix_ms, row.count), (EPOCH_MS + 10_000, 100));
    assert_eq!((row.min, row.mean, row.max, row.last), (1.5, 1.5, 1.5, 1.5));
    assert_eq!(row.demand_q95, Some(2.0));

    let events = reader
        .events(&EventQuery {
            limit: 10,
            ..EventQuery::default()
        })
        .unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].kind.as_str(), events[0].message.as_str()),
        ("started", "was started")
    );
    let of_app = EventQuery {
        app: Some(id("app-0")),
        limit: 10,
        ..EventQuery::default()
    };
    assert_eq!(reader.events(&of_app).unwrap(), []);
    let decisions = reader.decisions(&of_app).unwrap();
    assert_eq!(decisions[0].message, "cpu.weight = 200");
    assert!(
        decisions[0]
            .detail
            .as_ref()
            .unwrap()
            .contains("\"cpu_wanted\":650")
    );
}

#[test]
fn a_full_queue_drops_and_counts() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    // Holding the write lock keeps the recorder in its first batch.
    let lock = Connection::open(dir.path().join("state.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let recorder = Recorder::start(store).unwrap();
    let offered = 3 * u64::try_from(QUEUE_MAX).unwrap();
    for n in 0..offered {
        recorder.offer(Arc::new(report_at(n * 100)));
    }
    // At most one queue was taken out before the lock held the thread up.
    assert!(recorder.dropped() >= offered / 3);
    lock.execute_batch("COMMIT").unwrap();
    recorder.stop();
    let host = HistoryQuery {
        app: None,
        resource: Resource::MemoryAvailable,
        ..query("none", Level::Hour)
    };
    let rows = reader(&dir).history(&host).unwrap().rows;
    let samples: u64 = rows.iter().map(|row| row.count).sum();
    assert!(samples > 0 && samples <= offered * 2 / 3, "{samples}");
}

#[test]
fn a_full_disk_is_reported_and_left_behind() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let pages = schema::pragma(&store.db, "page_count").unwrap();
    store
        .db
        .pragma_update(None, "max_page_count", pages)
        .unwrap();
    let path = dir.path().join("state.db");
    store.retention.hour = Duration::from_secs(3600);
    let mut writer = Writer::new(store);
    let mut failed = 0;
    for n in 0..40 {
        let report = report_of_apps(n * 10_000, 100);
        writer.add(&report);
        if let Err(error) = writer.write(report.time) {
            assert_eq!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DiskFull)
            );
            failed += 1;
        }
    }
    assert!(failed > 30, "{failed}");
    // Only a minute waits; the rest is given up and counted.
    assert_eq!(writer.take_lost(), 39 - 6);
    writer.relieve();
    writer.write(report_at(400_000).time).unwrap();
    let rows = Reader::open(&path)
        .unwrap()
        .history(&query("app-9", Level::TenSeconds))
        .unwrap()
        .rows;
    assert_eq!(rows.len(), 6);
}

#[test]
fn files_that_are_not_ours_are_refused_and_kept() {
    let check = |prepare: &dyn Fn(&Path), expected: &str| {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("state.db");
        prepare(&path);
        let before = fs::read(&path).unwrap();
        let error = Store::open(&path, Retention::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert_eq!(fs::read(&path).unwrap(), before);
    };
    check(
        &|path| fs::write(path, [7; 5000]).unwrap(),
        "not a database",
    );
    check(
        &|path| {
            let db = Connection::open(path).unwrap();
            db.execute_batch("CREATE TABLE mine (x)").unwrap();
        },
        "another program",
    );
    check(
        &|path| {
            let store = Store::open(path, Retention::default()).unwrap();
            store.db.pragma_update(None, "user_version", 99).unwrap();
        },
        "format 99",
    );
    let missing = Path::new("/nonexistent/state.db");
    let error = Store::open(missing, Retention::default()).unwrap_err();
    assert!(error.to_string().contains("directory exists"), "{error}");
    assert!(Reader::open(missing).is_err());
}

#[test]
fn a_clock_set_back_merges_into_what_was_written() {
    let dir = TempDir::new().unwrap();
    let mut writer = Writer::new(open(&dir));
    let mut reports = Vec::new();
    for (monotonic, wall) in [(0, 0), (10_000, 10_000), (20_000, 5000), (30_000, 25_000)] {
        let mut report = report_of_apps(wall, 1);
        report.time.monotonic = Duration::from_millis(monotonic);
        reports.push(report);
    }
    write_all(&mut writer, &reports);
    let rows = reader(&dir)
        .history(&query("app-0", Level::TenSeconds))
        .unwrap()
        .rows;
    let counts: Vec<u64> = rows.iter().map(|row| row.count).collect();
    assert_eq!(counts, [2, 1]);
}

#[test]
fn resolution_follows_span_and_limit() {
    let dir = TempDir::new().unwrap();
    let mut writer = Writer::new(open(&dir));
    // Six hours, one sample in 10 s.
    for n in 0..6 * 360 {
        let report = report_of_apps(n * 10_000, 1);
        writer.add(&report);
        writer.write(report.time).unwrap();
    }
    let reader = reader(&dir);
    let check = |since_h: u64, limit, level, rows| {
        let history = reader
            .history(&HistoryQuery {
                since_unix_ms: EPOCH_MS + since_h * 3_600_000,
                resolution: Resolution::Auto,
                limit,
                ..query("app-0", Level::Hour)
            })
            .unwrap();
        assert_eq!((history.level, history.rows.len()), (level, rows));
    };
    check(0, 10_000, Level::TenSeconds, 6 * 360 - 1);
    check(5, 500, Level::TenSeconds, 359);
    check(0, 500, Level::Minute, 360);
    check(0, 100, Level::Hour, 6);
    check(0, 2, Level::Hour, 2);
    check(9, 100, Level::TenSeconds, 0);
}

#[test]
fn history_stays_within_its_bounds() {
    let dir = TempDir::new().unwrap();
    let retention = Retention {
        ten_seconds: Duration::from_secs(600),
        minute: Duration::from_secs(3600),
        hour: Duration::from_secs(7200),
        events_max: 100,
        bytes_max: 64 << 20,
    };
    let path = dir.path().join("state.db");
    let mut writer = Writer::new(Store::open(&path, retention).unwrap());
    let mut most = [0; 4];
    // Every hour another app: series must go as well.
    for n in 0..10 * 360_u64 {
        let mut report = report_at(n * 10_000);
        report
            .apps
            .insert(id(&format!("hour-{}", n / 360)), app_using(Some(1.0), None));
        report.events.push(event(n * 10_000, "again"));
        writer.add(&report);
        writer.write(report.time).unwrap();
        if n % 60 == 59 {
            let db = Connection::open(&path).unwrap();
            for (most, table) in
                most.iter_mut()
                    .zip(["rollup_10s", "rollup_1min", "event", "series"])
            {
                let sql = format!("SELECT count(*) FROM {table}");
                let rows: u64 = db
                    .query_row(&sql, [], |row| row.get(0))
                    .map(unsigned)
                    .unwrap();
                *most = rows.max(*most);
            }
        }
    }
    // 4 series; a span and a minute's worth more than the retention before each round.
    assert!(most[0] <= 4 * (60 + 8), "{most:?}");
    assert!(most[1] <= 4 * (60 + 3), "{most:?}");
    assert!(most[2] <= 100 + 7, "{most:?}");
    assert!(most[3] <= 3 * 6 + 1, "{most:?}");
}

#[test]
fn a_crowded_file_gives_up_the_oldest() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.db");
    let bytes_max = 2 << 20;
    let retention = Retention {
        bytes_max,
        ..Retention::default()
    };
    let mut writer = Writer::new(Store::open(&path, retention).unwrap());
    for n in 0..1000 {
        let report = report_of_apps(n * 10_000, 50);
        writer.add(&report);
        writer.write(report.time).unwrap();
    }
    assert!(fs::metadata(&path).unwrap().len() <= bytes_max / 4 * 5);
    let rows = reader(&dir)
        .history(&query("app-0", Level::TenSeconds))
        .unwrap()
        .rows;
    assert_eq!(rows.last().unwrap().time_unix_ms, EPOCH_MS + 9_980_000);
    assert!(rows[0].time_unix_ms > EPOCH_MS);
}

/// Numbers whose sums are exact in any order.
fn eighths() -> impl Strategy<Value = f64> {
    (-1000..1000_i32).prop_map(|n| f64::from(n) / 8.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn roll_ups_equal_direct_computation(
        samples in prop::collection::vec(
            (1..40_000_u64, prop::option::of(eighths()), prop::option::of(eighths())),
            1..200,
        ),
        batch in 1..5_usize,
    ) {
        let dir = TempDir::new().unwrap();
        let mut writer = Writer::new(open(&dir));
        let mut ms = 0;
        let mut samples_at = Vec::new();
        for (n, (gap, value, demand)) in samples.into_iter().enumerate() {
            ms += gap;
            let mut report = report_at(ms);
            report.apps.insert(id("web"), app_using(value, demand));
            writer.add(&report);
            samples_at.push((EPOCH_MS + ms, value, demand));
            // Batches of a few spans, below the bound on what waits.
            if n % batch == 0 {
                writer.write(report.time).unwrap();
            }
        }
        writer.finish();
        writer.write(report_at(ms).time).unwrap();
        prop_assert_eq!(writer.take_lost(), 0);

        let reader = reader(&dir);
        for level in Level::ALL {
            let rows = reader.history(&query("web", level)).unwrap().rows;
            prop_assert_eq!(rows, direct(level, &samples_at));
        }
    }
}

/// A sample's time, value and forecast.
type Sample = (u64, Option<f64>, Option<f64>);

/// The rows computed from the samples, without merging.
fn direct(level: Level, samples: &[Sample]) -> Vec<Row> {
    let span = |(time, _, _): &Sample| Level::TenSeconds.start_of(*time);
    // A span without a value has no row to hold its forecasts.
    let valued: BTreeSet<u64> = samples
        .iter()
        .filter(|(_, value, _)| value.is_some())
        .map(span)
        .collect();
    let mut groups: BTreeMap<u64, Vec<&Sample>> = BTreeMap::new();
    for sample in samples
        .iter()
        .filter(|sample| valued.contains(&span(sample)))
    {
        let group = groups.entry(level.start_of(sample.0)).or_default();
        group.push(sample);
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let row = |(time, group): (u64, Vec<&Sample>)| {
        let values: Vec<f64> = group.iter().filter_map(|(_, value, _)| *value).collect();
        let demands: Vec<f64> = group.iter().filter_map(|(_, _, demand)| *demand).collect();
        Row {
            time_unix_ms: time,
            count: values.len() as u64,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            mean: mean(&values),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            last: *values.last().unwrap(),
            demand_q95: (!demands.is_empty()).then(|| mean(&demands)),
        }
    };
    groups.into_iter().map(row).collect()
}

/// Set for the child of the test below: where to write.
const CRASH_DIR: &str = "FOREBAY_STORE_CRASH_DIR";

/// Not a test of its own: the child of the next one. Writes until it is killed, a batch of
/// one span at a time, and says which spans are written.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CRASH_DIR) else {
        return;
    };
    let path = Path::new(&dir).join("state.db");
    let mut writer = Writer::new(Store::open(&path, Retention::default()).unwrap());
    let history = Reader::open(&path)
        .unwrap()
        .history(&query("app-0", Level::TenSeconds));
    let last = history
        .unwrap()
        .rows
        .last()
        .map_or(0, |row| row.time_unix_ms - EPOCH_MS);
    for n in 1_u64.. {
        let ms = last + n * 10_000;
        let mut report = report_of_apps(ms, 20);
        report.events.push(event(ms, "again"));
        writer.add(&report);
        writer.write(report.time).unwrap();
        // Fails, and so ends the child, should the parent be gone.
        // The span that this report starts is not written yet, the one before it is.
        if n > 1 {
            writeln!(std::io::stdout(), "\nwritten {}", ms - 10_000).unwrap();
        }
    }
}

#[test]
fn killed_at_any_moment_it_opens_with_all_that_was_written() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.db");
    for round in 0..20_u32 {
        let written = run_and_kill(dir.path(), 1 + fastrand::usize(0..150));
        let store = Store::open(&path, Retention::default()).unwrap();
        check_intact(&store.db);
        let rows = reader(&dir)
            .history(&query("app-0", Level::TenSeconds))
            .unwrap()
            .rows;
        let newest = rows.last().unwrap().time_unix_ms;
        assert!(
            newest >= EPOCH_MS + written,
            "round {round}: {newest} < {written}"
        );
    }
}

/// Kills the child some instant after it has said so many times what it wrote; returns the
/// last it said.
fn run_and_kill(dir: &Path, lines: usize) -> u64 {
    let name = format!("{}::child_that_writes_until_it_is_killed", module_path!());
    let name = name.split_once("::").unwrap().1;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CRASH_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut written = output.lines().filter_map(|line| {
        line.unwrap()
            .strip_prefix("written ")
            .map(|ms| ms.parse::<u64>().unwrap())
    });
    let mut last = written.nth(lines - 1).expect("the child writes");
    let instant = Instant::now();
    let delay = Duration::from_micros(fastrand::u64(0..3000));
    while instant.elapsed() < delay {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before it died counts as well.
    if let Some(later) = written.last() {
        last = later;
    }
    last
}

/// The file is sound, and the levels agree, as they do after every commit.
fn check_intact(db: &Connection) {
    let text = |sql: &str| {
        db.query_row(sql, [], |row| row.get::<_, String>(0))
            .unwrap()
    };
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    for level in [Level::Minute, Level::Hour] {
        let wrong: i64 = db
            .query_row(
                &format!(
                    "SELECT count(*) FROM {} c WHERE count != (
                        SELECT total(count) FROM rollup_10s f
                        WHERE f.series = c.series AND f.unix_ms >= c.unix_ms
                          AND f.unix_ms < c.unix_ms + {}
                    ) AND c.unix_ms > (SELECT min(unix_ms) FROM rollup_10s)",
                    level.table(),
                    level.step_ms()
                ),
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(wrong, 0, "{}", level.table());
    }
}

#[test]
fn a_log_cut_short_anywhere_leaves_an_earlier_state() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.db");
    // Nothing of the log is in the main file, as before the checkpoint that would sync both.
    drop(open(&dir));
    let store = open(&dir);
    store
        .db
        .pragma_update(None, "wal_autocheckpoint", 0)
        .unwrap();
    let mut writer = Writer::new(store);
    for n in 0..6 {
        let report = report_of_apps(n * 9_000, 20);
        writer.add(&report);
        if n > 0 {
            writer.write(report.time).unwrap();
        }
    }
    let main = fs::read(&path).unwrap();
    let log = fs::read(dir.path().join("state.db-wal")).unwrap();
    assert!(log.len() > 20_000);

    let mut most = 0;
    for cut in (0..log.len()).step_by(997).chain([log.len()]) {
        let torn = TempDir::new().unwrap();
        fs::write(torn.path().join("state.db"), &main).unwrap();
        fs::write(torn.path().join("state.db-wal"), &log[..cut]).unwrap();
        let store = open(&torn);
        check_intact(&store.db);
        let rows = reader(&torn)
            .history(&query("app-0", Level::TenSeconds))
            .unwrap()
            .rows
            .len();
        assert!(
            rows >= most,
            "a longer log has no less: {rows} after {most} at {cut}"
        );
        most = rows;
    }
    assert!(most > 0);
}

/// What it costs: printed, and bounded generously enough for a debug build on a busy machine.
#[test]
fn cost_of_a_hundred_apps_at_ten_hertz() {
    let dir = TempDir::new().unwrap();
    let mut writer = Writer::new(open(&dir));
    let mut report = report_of_apps(0, 100);
    report.host.cpu_busy = Ok((0..16).map(|cpu| (cpu, Duration::ZERO)).collect());
    let spans = 30_u32;
    let mut spent = Duration::ZERO;
    for n in 0..u64::from(spans) * 100 {
        report.time = report_at(n * 100).time;
        // The recorder often holds the last reference: freeing the report is its cost too.
        let report = Box::new(report.clone());
        let before = thread_cpu_time();
        writer.add(&report);
        // As the recorder does: a batch each second.
        if n % 10 == 9 {
            writer.write(report.time).unwrap();
        }
        drop(report);
        spent += thread_cpu_time() - before;
    }
    let spent = spent / spans;
    let share = spent.as_secs_f64() / 10.0;
    println!(
        "recorder: {spent:?} CPU in 10 s with 100 apps at 10 Hz, {:.3} % of a core",
        share * 100.0
    );

    let recorder = Recorder::start(open(&TempDir::new().unwrap())).unwrap();
    let report = Arc::new(report);
    let offers = u32::try_from(QUEUE_MAX).unwrap();
    let before = Instant::now();
    for _ in 0..offers {
        recorder.offer(Arc::clone(&report));
    }
    println!("offer: {:?} each", before.elapsed() / offers);
    recorder.stop();
    assert!(share < 0.05, "{share}");
}

fn thread_cpu_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}
