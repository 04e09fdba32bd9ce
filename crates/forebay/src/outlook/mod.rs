//! The thread that looks further ahead than a control period can.
//!
//! ```text
//! control ──reports──▶ outlook thread ──what is to come──▶ control
//!   history (at the start) ─▶  ▲
//!            API ──questions───┘   (bounded; full is "busy")
//! ```
//!
//! It begins with what the history has of each application, so that a restart forgets nothing that
//! matters at its resolutions: models are made anew from the past, and no format of theirs has to
//! outlive a release. Reports that come meanwhile wait in a bounded queue. Models are fitted here,
//! one at a time, so that questions are answered between two fits.

mod ahead;
mod occasions;
mod past;

pub(crate) use ahead::levels;
use occasions::Known;
pub(crate) use occasions::Origins;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_api as api;
use forebay_core::app::{AppId, Class};
use forebay_core::fleet::offering::Ahead;
use forebay_core::outlook::ahead::Forecasts;
use forebay_core::outlook::{Outlook, Resource, Window};
use forebay_core::report::TickReport;
use forebay_forecast::lstm::Weights;
use tokio::sync::{oneshot, watch};

use crate::fetch::Foretold;

/// Reports that wait: two minutes at the default period, while the history is read.
const REPORTS_MAX: usize = 1200;
/// Questions that wait.
const QUESTIONS_MAX: usize = 16;
/// How often reports are taken in, and what is to come is told.
const PACE: Duration = Duration::from_secs(1);
/// How far ahead plans are told what comes: they look an hour ahead at most.
const PLANNED: Duration = Duration::from_secs(2 * 3600);

/// What the thread begins with.
#[derive(Debug)]
pub(crate) struct Beginning {
    /// The history, where one is kept.
    pub(crate) history: Option<PathBuf>,
    /// The applications of the configuration.
    pub(crate) apps: Vec<(AppId, Class)>,
    /// The network that takes part, whenever there is a better one.
    pub(crate) weights: watch::Receiver<Arc<Weights>>,
    /// Forecasts that others make.
    pub(crate) foretold: Foretold,
    /// Where events and timers are found.
    pub(crate) origins: Origins,
}

/// What is asked about one application.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) app: AppId,
    /// Only about this; about all that it uses when absent.
    pub(crate) resource: Option<Resource>,
    /// How far ahead.
    pub(crate) horizon: Duration,
}

/// What is said of one application.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// What is forecast of each resource.
    pub(crate) resources: Vec<api::ResourceForecast>,
    /// Which events and timers matter, a line for each.
    pub(crate) known: Vec<String>,
}

enum Message {
    Ask(Question, oneshot::Sender<Answer>),
    Together(oneshot::Sender<Vec<api::SumForecast>>),
    Needs(Duration, oneshot::Sender<Ahead>),
    Stop,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Lookout {
    desk: Desk,
    thread: JoinHandle<()>,
}

/// Where it is told and asked.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    reports: SyncSender<Arc<TickReport>>,
    messages: SyncSender<Message>,
    known: watch::Receiver<Arc<Outlook>>,
}

impl Lookout {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(beginning: Beginning) -> std::io::Result<Self> {
        let (reports, arriving) = mpsc::sync_channel(REPORTS_MAX);
        let (messages, asked) = mpsc::sync_channel(QUESTIONS_MAX);
        let (tell, known) = watch::channel(Arc::new(Outlook::default()));
        let thread = std::thread::Builder::new()
            .name("outlook".to_owned())
            .spawn(move || run(beginning, &arriving, &asked, &tell))?;
        Ok(Self {
            desk: Desk {
                reports,
                messages,
                known,
            },
            thread,
        })
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Ends the thread, after the fit that it is at.
    pub(crate) fn stop(self) {
        // A thread that has ended already is joined all the same.
        self.desk.messages.send(Message::Stop).ok();
        if self.thread.join().is_err() {
            tracing::error!("the thread that looks ahead panicked; see its message above");
        }
    }
}

impl Desk {
    /// Of a thread that has ended.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            reports: mpsc::sync_channel(1).0,
            messages: mpsc::sync_channel(1).0,
            known: watch::channel(Arc::default()).1,
        }
    }

    /// Hands over a report; one that finds the queue full is dropped, as a gap of one period.
    pub(crate) fn offer(&self, report: Arc<TickReport>) {
        if let Err(TrySendError::Full(report)) = self.reports.try_send(report) {
            tracing::debug!(period = report.period, "looking ahead misses a period");
        }
    }

    /// What is known to come, whenever it changes.
    pub(crate) fn known(&self) -> watch::Receiver<Arc<Outlook>> {
        self.known.clone()
    }

    /// What is forecast of an application; nothing of one that was not seen.
    ///
    /// # Errors
    /// When too many ask, or the daemon stops.
    pub(crate) async fn ask(&self, question: Question) -> Result<Answer, String> {
        self.send(|reply| Message::Ask(question, reply)).await
    }

    /// What all applications are expected to need together.
    ///
    /// # Errors
    /// When too many ask, or the daemon stops.
    pub(crate) async fn ask_together(&self) -> Result<Vec<api::SumForecast>, String> {
        self.send(Message::Together).await
    }

    /// What apps will stay below for so long in 95 of 100 cases, with what is known to come.
    ///
    /// # Errors
    /// When too many ask, or the daemon stops.
    pub(crate) async fn ask_needs(&self, ahead: Duration) -> Result<Ahead, String> {
        self.send(|reply| Message::Needs(ahead, reply)).await
    }

    async fn send<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        self.messages
            .try_send(message(reply))
            .map_err(|_| "looking ahead is busy; try again in a second".to_owned())?;
        answer
            .await
            .map_err(|_| "the thread that looks ahead has ended; restart the daemon".to_owned())
    }
}

fn run(
    mut beginning: Beginning,
    reports: &Receiver<Arc<TickReport>>,
    messages: &Receiver<Message>,
    tell: &watch::Sender<Arc<Outlook>>,
) {
    step_back();
    let weights = Arc::clone(&beginning.weights.borrow_and_update());
    let mut forecasts = Forecasts::new(Some(weights));
    if let Some(history) = &beginning.history {
        past::replay(&mut forecasts, history, &beginning.apps);
    }
    let mut known = Known::open(beginning.origins);
    if beginning.history.is_none() {
        // Where there is no room for the history, what is left is the ledger's.
        known.forget_at_the_end();
    }
    let mut due = Instant::now();
    let mut told = Arc::new(Outlook::default());
    loop {
        match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Message::Ask(question, reply)) => {
                // Whoever asked may have gone meanwhile; then nobody misses the answer.
                let ahead = expected(
                    &known,
                    &beginning.foretold,
                    forecasts.now_unix_ms(),
                    question.horizon,
                );
                let answer = Answer {
                    resources: ahead::answer(&forecasts, &ahead, &known, &question),
                    known: known.explain(&question.app),
                };
                reply.send(answer).ok();
            }
            Ok(Message::Together(reply)) => {
                reply.send(ahead::together(&forecasts)).ok();
            }
            Ok(Message::Needs(ahead, reply)) => {
                let now = forecasts.now_unix_ms();
                let mut needs = forecasts.needs(ahead);
                let coming = expected(&known, &beginning.foretold, now, ahead);
                raise(&mut needs, &coming, Window::ahead(now, ahead));
                reply.send(needs).ok();
            }
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        // However many ask, what is observed comes first once its time has come.
        if Instant::now() < due {
            continue;
        }
        due = Instant::now() + PACE;
        if beginning.weights.has_changed().unwrap_or(false) {
            let weights = Arc::clone(&beginning.weights.borrow_and_update());
            forecasts.set_weights(&weights);
        }
        for report in reports.try_iter().take(REPORTS_MAX) {
            forecasts.record(&report);
            beginning.foretold.record(&report);
            known.record(&report);
        }
        let now = forecasts.now_unix_ms();
        if now == 0 {
            // Nothing was observed yet, so that nobody knows what time it is.
            continue;
        }
        known.step(now);
        forecasts.fit();
        let outlook = Outlook {
            expected: expected(&known, &beginning.foretold, now, PLANNED).expected,
            ..forecasts.outlook()
        };
        // Compared outside of the channel: the control thread shall never wait for its lock.
        if *told != outlook {
            told = Arc::new(outlook);
            tell.send_replace(Arc::clone(&told));
        }
    }
    known.save();
}

/// What events, timers and others say of the time until then.
fn expected(known: &Known, foretold: &Foretold, now_unix_ms: u64, ahead: Duration) -> Outlook {
    let mut expected = foretold.expected(now_unix_ms, ahead);
    for (app, spans) in known.expected(now_unix_ms, ahead) {
        expected.entry(app).or_default().extend(spans);
    }
    Outlook {
        expected,
        ..Outlook::default()
    }
}

/// Raises needs to what is known to come within a window.
fn raise(needs: &mut Ahead, coming: &Outlook, window: Window) {
    for app in coming.expected.keys() {
        for resource in [Resource::Cpu, Resource::Memory] {
            if let Some((most, _)) = coming.brought(app, resource, window) {
                let app = needs.entry(app.clone()).or_default();
                let need = app.entry(resource).or_insert(0.0);
                *need = need.max(most.q95());
            }
        }
    }
}

/// Whatever is done here can wait for everybody else.
fn step_back() {
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "the thread that looks ahead keeps the daemon's priority");
    }
}
