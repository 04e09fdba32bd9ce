//! What the control thread published lately, for whoever reads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::host::Outcome;
use forebay_core::offload::Rung;
use forebay_core::offload::ladder::Verdict;
use forebay_core::report::{Event, EventKind};
use forebay_core::units::Time;
use tokio::sync::watch;

use super::ask;
use super::convert::event_kind;
use crate::control::{Command, Published};
use crate::log::EVENTS_TARGET;

/// Time over which the CPUs' busy share is shown. The kernel counts it in hundredths of a
/// second, so one period says little.
const BUSY_WINDOW: Duration = Duration::from_secs(1);

/// Reports kept for that, however short the period.
const REPORTS_MAX: usize = 1000;

/// Events kept for those who follow the stream at a slower pace.
const EVENTS_MAX: usize = 1000;

/// The latest reports and events. One writer, [`Feed::pump`].
#[derive(Debug)]
pub(super) struct Feed {
    lately: Mutex<Lately>,
    /// The number of the latest period; none when the daemon stops.
    periods: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Lately {
    reports: VecDeque<Arc<Published>>,
    events: VecDeque<Event>,
    /// Events before the first one kept.
    forgotten: u64,
    totals: Totals,
    /// When the latest rung was taken that was counted, by app; none before the first report, whose rungs are from
    /// before.
    climbed: Option<BTreeMap<AppId, Time>>,
}

/// What has been counted since the daemon started.
#[derive(Debug, Clone, Default)]
pub(super) struct Totals {
    pub(super) events: BTreeMap<EventKind, u64>,
    pub(super) actions_failed: u64,
    pub(super) took: Duration,
    /// Rungs of the offload ladder, by what became of them.
    pub(super) steps: BTreeMap<(Rung, Verdict), u64>,
}

/// The latest report, and the share of the last second in which each CPU was busy.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) published: Arc<Published>,
    pub(super) busy: BTreeMap<usize, f64>,
}

impl Feed {
    pub(super) fn new() -> Self {
        Self {
            lately: Mutex::default(),
            periods: watch::Sender::new(Some(0)),
        }
    }

    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in reports until the control thread is gone.
    pub(super) async fn pump(
        &self,
        mut reports: watch::Receiver<Option<Arc<Published>>>,
        commands: &SyncSender<Command>,
    ) {
        let mut last: Option<(u64, Time)> = None;
        reports.mark_changed();
        while reports.changed().await.is_ok() {
            let Some(published) = reports.borrow_and_update().clone() else {
                continue;
            };
            let report = &published.report;
            // Whoever sleeps through a period misses its events; the control thread has them.
            let missed = match last {
                Some((period, since)) if period + 1 < report.period => {
                    let all = ask(commands, |reply| Command::Events(EVENTS_MAX, reply)).await;
                    all.unwrap_or_default()
                        .into_iter()
                        .filter(|event| event.time > since && event.time < report.time)
                        .collect()
                }
                _ => Vec::new(),
            };
            last = Some((report.period, report.time));
            self.add(published, missed);
        }
    }

    fn add(&self, published: Arc<Published>, missed: Vec<Event>) {
        let period = published.report.period;
        for event in missed.iter().chain(&published.report.events) {
            log(event);
        }
        self.lately().add(published, missed);
        self.periods.send_replace(Some(period));
    }

    /// Ends every stream.
    pub(super) fn close(&self) {
        self.periods.send_replace(None);
    }

    /// Tells of every period from the next one on; none is the last.
    pub(super) fn periods(&self) -> watch::Receiver<Option<u64>> {
        self.periods.subscribe()
    }

    /// What was published last; none before the first period.
    pub(super) fn view(&self) -> Option<View> {
        self.lately().view()
    }

    pub(super) fn totals(&self) -> Totals {
        self.lately().totals.clone()
    }

    /// Events after the first `seen`, and how many there have been.
    pub(super) fn events_after(&self, seen: u64) -> (Vec<Event>, u64) {
        let lately = self.lately();
        let skip = seen.saturating_sub(lately.forgotten);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let events = lately.events.iter().skip(skip).cloned().collect();
        (events, lately.seen())
    }
}

/// Has an event in the log, with its parts as fields. Not by the control thread, which waits for nobody's log.
fn log(event: &Event) {
    tracing::info!(
        target: EVENTS_TARGET,
        app = event.app.as_ref().map(tracing::field::display),
        kind = event_kind(event.kind),
        "{}",
        event.message
    );
}

impl Lately {
    fn add(&mut self, published: Arc<Published>, missed: Vec<Event>) {
        let report = &published.report;
        for event in missed.into_iter().chain(report.events.iter().cloned()) {
            *self.totals.events.entry(event.kind).or_default() += 1;
            if self.events.len() == EVENTS_MAX {
                self.events.pop_front();
                self.forgotten += 1;
            }
            self.events.push_back(event);
        }
        for (_, outcome) in &report.actions {
            self.totals.actions_failed += u64::from(matches!(outcome, Outcome::Failed(_)));
        }
        self.totals.took += published.timing.took;
        self.count_steps(&published);

        let now = report.time;
        self.reports.push_back(published);
        while self.reports.len() > REPORTS_MAX
            || self
                .reports
                .get(1)
                .is_some_and(|second| now.since(second.report.time) >= BUSY_WINDOW)
        {
            self.reports.pop_front();
        }
    }

    /// A report has the latest rungs of each app, so that one that was missed loses none.
    fn count_steps(&mut self, published: &Published) {
        let apps = &published.report.apps;
        let mut latest = self.climbed.clone().unwrap_or_default();
        latest.retain(|id, _| apps.contains_key(id));
        for (id, app) in apps {
            let Some(climb) = &app.offload else { continue };
            let before = self.climbed.as_ref().map(|climbed| climbed.get(id));
            for tried in &climb.tried {
                let is_new = before.is_some_and(|before| before.is_none_or(|at| *at < tried.at));
                if is_new {
                    let key = (tried.rung, tried.verdict);
                    *self.totals.steps.entry(key).or_default() += 1;
                }
            }
            let last = climb.tried.iter().map(|tried| tried.at).max();
            latest.extend(last.map(|at| (id.clone(), at)));
        }
        self.climbed = Some(latest);
    }

    fn seen(&self) -> u64 {
        self.forgotten + self.events.len() as u64
    }

    fn view(&self) -> Option<View> {
        let published = Arc::clone(self.reports.back()?);
        let mut readings = self
            .reports
            .iter()
            .filter_map(|p| Some((p.report.time, p.report.host.cpu_busy.as_ref().ok()?)));
        let busy = match (readings.next(), readings.next_back()) {
            (Some((then, old)), Some((now, new))) => {
                let elapsed = now.since(then).as_secs_f64();
                new.iter()
                    .filter_map(|(cpu, new)| {
                        let grown = new.checked_sub(*old.get(cpu)?)?.as_secs_f64();
                        (elapsed > 0.0).then(|| (*cpu, (grown / elapsed).min(1.0)))
                    })
                    .collect()
            }
            _ => BTreeMap::new(),
        };
        Some(View { published, busy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::{event, published};

    #[test]
    fn busy_is_the_share_of_the_last_second() {
        let mut lately = Lately::default();
        assert!(lately.view().is_none());
        for period in 0..30u64 {
            let mut report = published(period);
            // CPU 0 is busy in the second half of every period, CPU 1 since period 20.
            let late = Duration::from_millis(period.saturating_sub(19) * 100);
            report.report.host.cpu_busy = Ok(BTreeMap::from([
                (0, Duration::from_millis(period * 50)),
                (1, late),
            ]));
            lately.add(Arc::new(report), Vec::new());
        }
        let busy = lately.view().unwrap().busy;
        assert!((busy[&0] - 0.5).abs() < 1e-9, "{busy:?}");
        assert!((busy[&1] - 1.0).abs() < 1e-9, "{busy:?}");
        assert!(lately.reports.len() <= 11);
    }

    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_event_is_logged_once_with_its_parts_as_fields() {
        let written = Written::default();
        let into = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_env_filter("warn,forebay::events=info")
            .with_writer(move || into.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let feed = Feed::new();
            let mut with_events = published(1);
            with_events.report.events = vec![event("one")];
            feed.add(Arc::new(with_events), vec![event("missed")]);
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (line, message) in lines.iter().zip(["missed", "one"]) {
            let parts = [
                "INFO forebay::events:",
                message,
                "kind=\"slice\"",
                "app=web",
            ];
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        }
    }

    #[test]
    fn rungs_are_counted_once_and_not_those_from_before() {
        use forebay_core::offload::{Climb, Effect, ladder::Tried};
        let tried = |ms: u64, verdict| Tried {
            rung: Rung::WidenSlice,
            effect: Effect::Whole,
            at: Time {
                monotonic: Duration::from_millis(ms),
                ..Time::default()
            },
            before: 1.2,
            after: None,
            predicted: 0.5,
            relief: None,
            verdict,
        };
        let report = |period, tried: Vec<Tried>| {
            let mut published = published(period);
            let app = published.report.apps.values_mut().next().unwrap();
            app.offload = Some(Climb {
                constraints: Vec::new(),
                could: None,
                paused: false,
                settling: None,
                in_force: Vec::new(),
                skipped: Vec::new(),
                tried,
            });
            Arc::new(published)
        };
        let feed = Feed::new();
        let old = tried(1, Verdict::Kept);
        feed.add(report(1, vec![old.clone()]), Vec::new());
        assert!(feed.totals().steps.is_empty());
        let both = vec![old, tried(2, Verdict::Undone)];
        feed.add(report(2, both.clone()), Vec::new());
        feed.add(Arc::new(published(3)), Vec::new());
        feed.add(report(4, both), Vec::new());
        let expected = BTreeMap::from([((Rung::WidenSlice, Verdict::Undone), 1)]);
        assert_eq!(feed.totals().steps, expected);
    }

    #[test]
    fn followers_get_each_event_once() {
        let feed = Feed::new();
        let mut with_events = published(1);
        with_events.report.events = vec![event("one"), event("two")];
        feed.add(Arc::new(with_events), vec![event("missed")]);
        let words = |events: Vec<Event>| -> Vec<String> {
            events.into_iter().map(|event| event.message).collect()
        };
        let (events, seen) = feed.events_after(0);
        assert_eq!(words(events), ["missed", "one", "two"]);
        let (events, seen) = feed.events_after(seen);
        assert_eq!((words(events).len(), seen), (0, 3));

        for _ in 0..EVENTS_MAX {
            let mut report = published(2);
            report.report.events = vec![event("more")];
            feed.add(Arc::new(report), Vec::new());
        }
        let (events, seen) = feed.events_after(seen);
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!(seen, 3 + EVENTS_MAX as u64);
        assert_eq!(feed.totals().events[&EventKind::Slice], seen);
    }
}
