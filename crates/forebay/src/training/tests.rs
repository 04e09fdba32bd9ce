//! Whole trainings on small histories, and what happens to them.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use super::decision::Past;
use super::*;
use crate::store::{self, Level, Resource};

/// Steps of ten seconds in the histories of these tests.
const STEPS: u64 = 700;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Four apps with bursts, whose last roll-up is now. Returns when they start.
fn record(dir: &Path) -> u64 {
    let step = Level::TenSeconds.step_ms();
    let first = unix_ms() / step * step - (STEPS - 1) * step;
    for app in 0..4 {
        let mut rng = fastrand::Rng::with_seed(app);
        let mut wave = |n: u64| if n % 48 < 12 { 4.0 } else { 1.0 } + 0.3 * rng.f64();
        let means: Vec<f64> = (0..STEPS).map(&mut wave).collect();
        let (file, name) = (dir.join(store::FILE), format!("app-{app}"));
        store::sample::record(
            &file,
            &name,
            Resource::Cpu,
            Level::TenSeconds,
            first,
            &means,
        );
    }
    first
}

/// Weights that forecast badly.
fn spoilt(version: u32) -> Weights {
    let mut bytes = Weights::pretrained().numbered(version).to_bytes();
    let body = bytes.len() - 8;
    for (i, number) in bytes[body - 8000..body].chunks_exact_mut(4).enumerate() {
        let noise: f32 = if i % 2 == 0 { 3.0 } else { -3.0 };
        number.copy_from_slice(&noise.to_le_bytes());
    }
    // FNV-1a, which the format ends with.
    let sum = bytes[..body]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    bytes[body..].copy_from_slice(&sum.to_le_bytes());
    Weights::from_bytes(&bytes).unwrap()
}

/// As the daemon, but at once and on less.
fn settings(dir: &Path) -> Settings {
    let mut settings = Settings::new(TrainingConfig::default(), dir);
    settings.share = 1.0;
    settings.look = Duration::from_millis(1);
    settings.rules.first_steps = 300;
    settings.trainer.epochs_max = 2;
    settings.trainer.batches = 2;
    settings.trainer.judged_max = 16;
    settings.trainer.steps_max = 320 * SERIES_MAX;
    settings
}

fn start(settings: Settings, dir: &Path) -> (Training, Receiver<String>) {
    let (told, events) = mpsc::channel();
    let tell: Tell = Arc::new(move |kind, message| {
        assert_eq!(kind, EventKind::Forecast);
        told.send(message).ok();
    });
    (Training::start_with(Some(settings), dir, tell), events)
}

/// Waits for something, but not for ever.
fn until(training: &Training, what: impl Fn(&Status) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = training.status();
        if what(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "{status:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn a_training_ends_with_weights_in_use_on_disk_and_on_trial() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    // What is easy to do better than.
    let bad = spoilt(6);
    let past = Past {
        version: 6,
        versions: 8,
        until_unix_ms: Some(0),
        ..Past::default()
    };
    files::replace(dir.path(), &bad, &Weights::pretrained(), &past).unwrap();
    let (training, events) = start(settings(dir.path()), dir.path());
    let mut weights = training.weights();
    assert_eq!(**weights.borrow_and_update(), bad);
    let event = events.recv_timeout(PATIENCE).unwrap();
    assert!(
        event.starts_with("weights 9 of the LSTM are in use"),
        "{event}"
    );
    let status = until(&training, |status| status.verdict.is_some());
    assert_eq!(status.verdict, Some(Verdict::Better));
    assert_eq!(
        (status.version, status.built_in, status.on_trial),
        (9, false, true)
    );
    let (before, after) = status.held_out.unwrap();
    assert!(after < before, "{status:?}");
    assert!(status.cpu > Duration::ZERO);
    assert!(weights.has_changed().unwrap());
    let in_use = Arc::clone(&weights.borrow_and_update());
    training.stop();

    let (kept, troubles) = files::load(dir.path(), unix_ms());
    assert!(troubles.is_empty());
    assert_eq!((kept.weights, kept.previous), (in_use, Some(Arc::new(bad))));
    assert!(kept.past.on_trial && kept.past.until_unix_ms > Some(0));
}

/// Weights on trial, whose training ended half-way through the history.
fn on_trial(dir: &Path, new: &Weights, old: &Weights) -> Status {
    let first = record(dir);
    let past = Past {
        version: new.version(),
        versions: new.version(),
        jobs: 1,
        until_unix_ms: Some(first + STEPS / 2 * 10_000),
        on_trial: true,
    };
    files::replace(dir, new, old, &past).unwrap();
    let mut settings = settings(dir);
    settings.rules.judge_steps = 300;
    let (training, events) = start(settings, dir);
    let status = until(&training, |status| status.verdict.is_some());
    training.stop();
    if status.verdict == Some(Verdict::RolledBack) {
        let event = events.recv_timeout(PATIENCE).unwrap();
        assert!(event.contains("rolled back to weights 3"), "{event}");
    }
    status
}

#[test]
fn what_loses_on_fresh_history_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let old = Weights::pretrained().numbered(3);
    let status = on_trial(dir.path(), &spoilt(4), &old);
    assert_eq!(status.verdict, Some(Verdict::RolledBack));
    assert_eq!((status.version, status.on_trial), (3, false));
    let (kept, _) = files::load(dir.path(), unix_ms());
    assert_eq!(*kept.weights, old);
    // Its number is not given again.
    assert_eq!(kept.past.versions, 4);
}

#[test]
fn what_does_not_lose_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let new = Weights::pretrained().numbered(4);
    let status = on_trial(dir.path(), &new, &spoilt(3));
    assert_eq!(status.verdict, Some(Verdict::Kept));
    assert_eq!((status.version, status.on_trial), (4, false));
}

#[test]
fn ended_at_any_point_it_leaves_weights_that_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let past = Past {
        version: 1,
        versions: 1,
        until_unix_ms: Some(0),
        ..Past::default()
    };
    files::replace(dir.path(), &spoilt(1), &Weights::pretrained(), &past).unwrap();
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..24 {
        let (training, _events) = start(settings(dir.path()), dir.path());
        let work = Duration::from_micros(rng.u64(0..200_000));
        until(&training, |status| {
            status.cpu >= work || status.verdict.is_some()
        });
        let asked = Instant::now();
        drop(training);
        // One portion of a debug build on a busy machine.
        assert!(asked.elapsed() < Duration::from_secs(20), "round {round}");
        let (kept, troubles) = files::load(dir.path(), unix_ms());
        assert!(troubles.is_empty(), "round {round}: {troubles:?}");
        assert!(!kept.built_in && kept.previous.is_some(), "round {round}");
        assert_eq!(kept.weights.version(), kept.past.version, "round {round}");
    }
}

#[test]
fn it_keeps_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let mut settings = settings(dir.path());
    settings.share = 0.2;
    settings.trainer.epochs_max = 1000;
    settings.trainer.patience = 1000;
    let (training, _events) = start(settings, dir.path());
    // The first portions are not yet of the size that is wanted.
    let before = until(&training, |s| s.cpu > Duration::from_millis(100));
    let begun = Instant::now();
    let more = Duration::from_millis(800);
    let after = until(&training, |s| s.cpu > before.cpu + more);
    let used = (after.cpu - before.cpu).as_secs_f64();
    let allowed = 0.2 * begun.elapsed().as_secs_f64();
    // A portion is 10 ms where it can be so small: a window in a debug build takes more.
    assert!(used <= allowed + 0.25, "{used} s of {allowed} s");
    training.stop();
}

#[test]
fn a_file_that_is_not_understood_stops_training_until_it_is_moved_away() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let file = dir.path().join("lstm.weights");
    std::fs::write(&file, "somebody's").unwrap();
    let (training, _events) = start(settings(dir.path()), dir.path());
    let status = until(&training, |s| s.phase == Phase::Waiting);
    let trouble = status.trouble.unwrap();
    assert!(trouble.contains("lstm.weights"), "{trouble}");
    assert!(status.built_in);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's");
    std::fs::rename(&file, dir.path().join("aside")).unwrap();
    until(&training, |s| s.verdict.is_some() && s.trouble.is_none());
    training.stop();
}

#[test]
fn without_history_or_switched_off_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (training, _events) = start(settings(dir.path()), dir.path());
    let status = until(&training, |s| s.phase == Phase::Waiting);
    assert_eq!((status.trouble, status.verdict), (None, None));
    training.stop();

    let tell: Tell = Arc::new(|_, message| panic!("{message}"));
    let off = TrainingConfig {
        on: false,
        ..TrainingConfig::default()
    };
    let training = Training::start(off, dir.path(), tell);
    assert_eq!(training.status().phase, Phase::Off);
    assert_eq!(training.weights().borrow().version(), 0);
}

#[test]
fn a_damaged_history_is_told_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(store::FILE);
    std::fs::write(&file, vec![7; 10_000]).unwrap();
    let (training, _events) = start(settings(dir.path()), dir.path());
    let status = until(&training, |s| s.trouble.is_some());
    assert!(status.trouble.unwrap().contains("damaged"));
    std::fs::remove_file(&file).unwrap();
    record(dir.path());
    until(&training, |s| s.verdict.is_some());
    training.stop();
}
