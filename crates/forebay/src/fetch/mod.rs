//! Reads what others know: metrics of apps, and forecasts in files and at addresses.
//!
//! One thread beside the control thread, with a task for each source. Everything is bounded: the
//! sources by the configuration, an answer by size and time ([`http`]), a source that fails by
//! waiting ever longer. Trouble is told once, as an event of the app that names where it was
//! looked for; it is told again only after things went well in between.

pub(crate) mod exposition;
mod forecast;
pub(crate) mod http;
mod scrape;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forebay_core::app::AppId;
use forebay_core::external::{External, Source};
use forebay_core::outlook::Expected;
use forebay_core::outlook::ahead::uses;
use forebay_core::report::{EventKind, TickReport};
use forebay_core::signals::{APPS_MAX, Told};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) use exposition::Selector;
pub(crate) use forecast::{ForecastSource, Place};
pub(crate) use http::Url;
pub(crate) use scrape::Scrape;

use crate::control::TellOf;
use crate::signals::Teller;
use scrape::Meter;

/// The longest wait for a source that fails, unless it is asked less often anyway.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Characters of a reason that are told.
const REASON_CHARS_MAX: usize = 200;
/// Metrics that fail so many times in a row are told: an app that restarts is no trouble.
const SCRAPES_FAILED: u32 = 3;

/// Everything that is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// Metrics, by app.
    pub(crate) metrics: BTreeMap<AppId, Scrape>,
    /// Foretold.
    pub(crate) forecasts: Vec<ForecastSource>,
}

/// Forecasts of others. Shared with whoever looks ahead; never locked by the control thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Foretold(Arc<Mutex<External>>);

impl Foretold {
    pub(crate) fn lock(&self) -> MutexGuard<'_, External> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what was measured, of the series that forecasts are about.
    pub(crate) fn record(&self, report: &TickReport) {
        let mut external = self.lock();
        for (app, used) in &report.apps {
            for (resource, value) in uses(used) {
                external.record(report.time.unix_ms, app, resource, value);
            }
        }
    }

    /// What is expected within `ahead` by those that are believed.
    pub(crate) fn expected(
        &self,
        now_unix_ms: u64,
        ahead: Duration,
    ) -> BTreeMap<AppId, Vec<Expected>> {
        self.lock().expected(now_unix_ms, ahead).expected
    }

    /// How far those about an app are believed, in words.
    pub(crate) fn explain(&self, app: &AppId) -> Vec<String> {
        let explained = self.lock().explain(unix_ms(), app);
        explained.iter().map(ToString::to_string).collect()
    }
}

/// What the tasks share.
#[derive(Clone)]
struct Desk {
    teller: Teller,
    foretold: Foretold,
    tell: TellOf,
}

/// The thread that reads.
pub(crate) struct Fetcher {
    thread: JoinHandle<()>,
    /// None ends it.
    sources: watch::Sender<Option<Sources>>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

impl Fetcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses one.
    pub(crate) fn start(
        sources: Sources,
        teller: Teller,
        foretold: Foretold,
        tell: TellOf,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (sources, changed) = watch::channel(Some(sources));
        let desk = Desk {
            teller,
            foretold,
            tell,
        };
        let thread = std::thread::Builder::new()
            .name("fetch".to_owned())
            .spawn(move || {
                runtime.block_on(read_all(changed, desk));
                // A file system that hangs holds up no stop.
                runtime.shutdown_background();
            })?;
        Ok(Self { thread, sources })
    }

    /// Where to leave other sources, after the configuration changed.
    pub(crate) fn sources(&self) -> watch::Sender<Option<Sources>> {
        self.sources.clone()
    }

    /// Ends the thread; what it is reading is given up.
    pub(crate) fn stop(self) {
        self.sources.send_replace(None);
        if self.thread.join().is_err() {
            tracing::error!("the thread that reads metrics and forecasts panicked");
        }
    }
}

/// Reads until there are to be no sources.
async fn read_all(mut changed: watch::Receiver<Option<Sources>>, desk: Desk) {
    loop {
        let Some(sources) = changed.borrow_and_update().clone() else {
            return;
        };
        let known = sources.forecasts.iter().map(ForecastSource::source);
        desk.foretold.lock().set_sources(known);
        let mut tasks = JoinSet::new();
        for (app, metrics) in sources.metrics {
            tasks.spawn(scrape(app, metrics, desk.clone()));
        }
        for source in sources.forecasts {
            tasks.spawn(read_forecast(source, desk.clone()));
        }
        if changed.changed().await.is_err() {
            return;
        }
        tasks.shutdown().await;
    }
}

/// Reads an app's metrics again and again.
async fn scrape(app: AppId, scrape: Scrape, desk: Desk) {
    let origin = Instant::now();
    let mut meter = Meter::default();
    let mut pace = Pace::new(scrape.every, SCRAPES_FAILED);
    loop {
        let begun = tokio::time::Instant::now();
        let read = match http::get(&scrape.url, "text/plain; version=0.0.4").await {
            Ok(text) => meter.read(origin.elapsed(), &text, &scrape),
            Err(why) => Err(why),
        };
        match read {
            Ok(signal) => {
                pace.succeeded();
                if !desk
                    .teller
                    .tell(scrape.stands(), &app, Told::by_app(signal))
                {
                    tracing::warn!(%app, APPS_MAX, "signals of too many apps: not taken");
                }
            }
            Err(why) => {
                if pace.failed() {
                    let message = format!("read its metrics at {}: {why}", scrape.url);
                    (desk.tell)(&app, EventKind::Failed, message);
                }
            }
        }
        tokio::time::sleep_until(begun + pace.wait()).await;
    }
}

/// Reads a forecast again and again.
async fn read_forecast(from: ForecastSource, desk: Desk) {
    let source = from.source();
    let mut pace = Pace::new(from.every, 1);
    let mut reading = Reading::default();
    loop {
        let begun = tokio::time::Instant::now();
        let text = match &from.place {
            Place::File(path) => reading.read(path).await,
            Place::Url(url) => http::get(url, "application/json").await,
        };
        match take(&desk.foretold, &source, text) {
            Ok(()) => pace.succeeded(),
            Err(why) => {
                if pace.failed() {
                    let (resource, place) = (source.resource, &source.place);
                    let message = format!("read the forecast of its {resource} at {place}: {why}");
                    (desk.tell)(&source.app, EventKind::Failed, message);
                }
            }
        }
        tokio::time::sleep_until(begun + pace.wait()).await;
    }
}

fn take(foretold: &Foretold, source: &Source, text: Result<String, String>) -> Result<(), String> {
    let given = text
        .and_then(|text| forecast::parse(&text))
        .map_err(|why| shortened(&why));
    let mut external = foretold.lock();
    match given {
        Ok(given) => external
            .take(source, unix_ms(), given)
            .map_err(|refused| refused.to_string()),
        Err(why) => {
            external.refuse(source, why.clone());
            Err(why)
        }
    }
}

/// A reason as far as it is one: what was read may be in it.
fn shortened(why: &str) -> String {
    let mut start: String = why
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(REASON_CHARS_MAX)
        .collect();
    if why.chars().nth(REASON_CHARS_MAX).is_some() {
        start.push('…');
    }
    start
}

/// A file that is read where it holds nobody up.
#[derive(Debug, Default)]
struct Reading {
    /// One that did not end in time. Another is not begun before: a file system that hangs would
    /// collect threads.
    under_way: Option<tokio::task::JoinHandle<Result<String, String>>>,
}

impl Reading {
    async fn read(&mut self, path: &Path) -> Result<String, String> {
        let mut read = self.under_way.take().unwrap_or_else(|| {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || http::read(&path))
        });
        match tokio::time::timeout(http::WAIT, &mut read).await {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => Err("reading it panicked; see the daemon's log".to_owned()),
            Err(_) => {
                self.under_way = Some(read);
                Err("its file system does not answer; see what it is on".to_owned())
            }
        }
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// When to ask again, and whether to tell of a failure.
#[derive(Debug)]
struct Pace {
    every: Duration,
    /// Failures in a row that are told.
    told_at: u32,
    failures: u32,
}

impl Pace {
    const fn new(every: Duration, told_at: u32) -> Self {
        Self {
            every,
            told_at,
            failures: 0,
        }
    }

    const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Notes a failure; says whether it is to be told.
    const fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures == self.told_at
    }

    /// Doubles with each failure, within bounds.
    fn wait(&self) -> Duration {
        let doubled = self.every.saturating_mul(1 << self.failures.min(16));
        doubled.min(WAIT_MAX.max(self.every))
    }
}

#[cfg(test)]
mod tests;
