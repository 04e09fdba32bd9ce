//! Images of programs, taken by a thread beside the control thread.
//!
//! ```text
//! configured ──watch──▶ thread ──rows──▶ API
//! reports ─────watch──▶   ▲
//!        API ──orders─────┘   (bounded; full is "busy")
//! ```
//!
//! One image at a time: what is copied is a neighbour's memory and disk as well. What CRIU could not
//! do is told once, and shown until it can.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_api as api;
use forebay_core::app::{App, AppId, Binding, Images};
use forebay_core::report::EventKind;
use forebay_host::checkpoint::{Criu, Image, Note, Origin, Store, TRIAL, boot_survey};
use forebay_host::error::HostError;
use tokio::sync::{oneshot, watch};

use crate::control::{Published, TellOf};

/// How often the thread looks what is due.
const LOOK: Duration = Duration::from_millis(500);
/// Images asked for that wait.
const ORDERS_MAX: usize = 16;

/// An app that images are taken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    images: Images,
}

/// The apps of a configuration that images are taken of.
pub(crate) fn wanted(apps: &BTreeMap<AppId, App>) -> BTreeMap<AppId, Wanted> {
    let one = |(id, app): (&AppId, &App)| match (&app.binding, app.images) {
        (Binding::Exec(_), Some(images)) => Some((id.clone(), Wanted { images })),
        _ => None,
    };
    apps.iter().filter_map(one).collect()
}

/// What the thread is told and begins with.
pub(crate) struct Beginning {
    pub(crate) state_dir: PathBuf,
    pub(crate) criu: Option<PathBuf>,
    pub(crate) wanted: watch::Receiver<BTreeMap<AppId, Wanted>>,
    pub(crate) reports: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) tell: TellOf,
}

type Rows = Arc<Mutex<BTreeMap<AppId, Row>>>;

/// How it stands with the images of one app.
#[derive(Debug, Clone, Default)]
struct Row {
    every: Duration,
    image: Option<Image>,
    /// When the last attempt ended.
    tried: Option<Instant>,
    /// How long the program has to live first, since it began from an image.
    trial: Duration,
    trouble: Option<String>,
}

/// What is asked of the thread.
#[derive(Debug)]
enum Order {
    /// An image of this app, whenever the last one was taken.
    Take(AppId),
    /// The same, and what came of it.
    Try(AppId, oneshot::Sender<Result<(), String>>),
    /// An image of this app for another boot, for this update; the program is ended.
    Keep(AppId, u64, oneshot::Sender<Result<(), String>>),
}

/// Where images are asked for and shown.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    rows: Rows,
    orders: SyncSender<Order>,
    store: Store,
    criu: Option<PathBuf>,
}

impl Desk {
    /// Without any app, and nobody who would take images.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            rows: Rows::default(),
            orders: mpsc::sync_channel(1).0,
            store: Store::new("/nonexistent".as_ref()),
            criu: None,
        }
    }

    /// Why no image can be taken here, if so.
    pub(crate) fn missing(&self) -> Option<String> {
        let found = Criu::find(self.criu.as_deref());
        found.err().map(|error| error.explain())
    }

    /// What stands against keeping the program of an app, which is this process, over a boot.
    pub(crate) fn obstacles(&self, pid: u32) -> Vec<String> {
        match boot_survey::obstacles(pid) {
            Ok(found) => found.into_iter().collect(),
            Err(error) => vec![error.explain()],
        }
    }

    /// Where the program of an app comes from.
    pub(crate) fn origin(&self, app: &AppId, pid: u32) -> Origin {
        self.store.origin(app, pid, "/proc".as_ref())
    }

    /// Takes an image of an app and waits for it.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn try_one(&self, app: &AppId) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Try(app.clone(), reply), answer).await
    }

    /// Takes an image of an app for another boot, for this update, and ends its program.
    ///
    /// # Errors
    /// Why not; then the program goes on.
    pub(crate) async fn keep(&self, app: &AppId, update: u64) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Keep(app.clone(), update, reply), answer)
            .await
    }

    async fn order(
        &self,
        mut order: Order,
        answer: oneshot::Receiver<Result<(), String>>,
    ) -> Result<(), String> {
        const GONE: &str = "the thread that takes images has ended";
        while let Err(error) = self.orders.try_send(order) {
            order = match error {
                TrySendError::Full(order) => order,
                TrySendError::Disconnected(_) => return Err(GONE.to_owned()),
            };
            tokio::time::sleep(LOOK).await;
        }
        answer.await.map_err(|_| GONE.to_owned())?
    }

    pub(crate) fn rows(&self) -> Vec<api::AppImages> {
        let rows = locked(&self.rows);
        rows.iter().map(|(id, row)| row.shown(id)).collect()
    }

    /// Asks for an image of an app.
    ///
    /// # Errors
    /// Why it is not taken.
    pub(crate) fn take(&self, app: &str) -> Result<(), Refused> {
        let known: Vec<AppId> = locked(&self.rows).keys().cloned().collect();
        let Some(id) = known.iter().find(|id| id.as_str() == app) else {
            let names: Vec<&str> = known.iter().map(AppId::as_str).collect();
            let names = if names.is_empty() {
                "none; give an app that Forebay starts `images`".to_owned()
            } else {
                names.join(", ")
            };
            return Err(Refused::Unknown(format!(
                "no images are taken of `{app}`; there are: {names}"
            )));
        };
        self.orders
            .try_send(Order::Take(id.clone()))
            .map_err(|_| Refused::Busy("many images are asked for; try again".to_owned()))
    }
}

/// Why an image is not taken.
pub(crate) enum Refused {
    Unknown(String),
    Busy(String),
}

impl Row {
    fn shown(&self, app: &AppId) -> api::AppImages {
        let image = self.image.as_ref();
        api::AppImages {
            app: app.to_string(),
            every_ms: u64::try_from(self.every.as_millis()).unwrap_or(u64::MAX),
            taken_unix_ms: image.map(|image| image.taken_unix_ms),
            bytes: image.map(|image| image.bytes),
            pause_us: image.and_then(|image| image.pause_us),
            trouble: self.trouble.clone(),
        }
    }
}

fn locked(rows: &Mutex<BTreeMap<AppId, Row>>) -> MutexGuard<'_, BTreeMap<AppId, Row>> {
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that takes images.
#[derive(Debug)]
pub(crate) struct Imager {
    desk: Desk,
    /// Dropped to end the thread.
    stop: watch::Sender<()>,
    thread: JoinHandle<()>,
}

impl Imager {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system starts none.
    pub(crate) fn start(beginning: Beginning) -> std::io::Result<Self> {
        let rows = Rows::default();
        let (orders, asked) = mpsc::sync_channel(ORDERS_MAX);
        let (stop, stopped) = watch::channel(());
        let store = Store::new(&beginning.state_dir);
        let desk = Desk {
            rows: Arc::clone(&rows),
            orders,
            store: store.clone(),
            criu: beginning.criu.clone(),
        };
        let job = Job {
            store,
            rows,
            beginning,
            stopped,
        };
        job.list();
        let thread = std::thread::Builder::new()
            .name("images".to_owned())
            .spawn(move || job.run(&asked))?;
        Ok(Self { desk, stop, thread })
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Ends it, after the image that is being taken.
    pub(crate) fn stop(self) {
        let Self { desk, stop, thread } = self;
        drop((desk, stop));
        if thread.join().is_err() {
            tracing::error!("the thread that takes images panicked");
        }
    }
}

struct Job {
    store: Store,
    rows: Rows,
    beginning: Beginning,
    stopped: watch::Receiver<()>,
}

impl Job {
    fn run(self, asked: &Receiver<Order>) {
        // The desk of the API outlives the thread, so that the end of orders does not end it.
        while self.stopped.has_changed().is_ok() {
            let order = asked.recv_timeout(LOOK);
            self.list();
            match order {
                Ok(Order::Take(app)) => self.take(&app),
                // Whoever asked may have gone meanwhile; then nobody misses the answer.
                Ok(Order::Try(app, reply)) => {
                    reply.send(self.take_one(&app, None)).ok();
                }
                Ok(Order::Keep(app, update, reply)) => {
                    reply.send(self.take_one(&app, Some(update))).ok();
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.due().iter().for_each(|app| self.take(app));
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Keeps the rows those of the configuration, and tells what became of restores.
    fn list(&self) {
        let wanted = self.beginning.wanted.borrow().clone();
        let mut rows = locked(&self.rows);
        rows.retain(|app, _| wanted.contains_key(app));
        for (app, wanted) in &wanted {
            let row = rows.entry(app.clone()).or_insert_with(|| Row {
                image: self.store.newest(app).ok().flatten(),
                ..Row::default()
            });
            row.every = wanted.images.every;
            match self.store.take_notes(app) {
                Ok(notes) => {
                    for note in notes {
                        match note {
                            Note::Restored(text) => {
                                // What it begins from has to prove itself before it is copied.
                                row.tried = Some(Instant::now());
                                row.trial = TRIAL + LOOK;
                                (self.beginning.tell)(app, EventKind::Started, text);
                            }
                            Note::Failed(text) => {
                                row.image = self.store.newest(app).ok().flatten();
                                (self.beginning.tell)(app, EventKind::Failed, text);
                            }
                        }
                    }
                }
                Err(error) => self.trouble(app, row, &error),
            }
        }
    }

    /// The apps that run and of which the last image is old enough.
    fn due(&self) -> Vec<AppId> {
        let rows = locked(&self.rows);
        let is_due = |row: &Row| {
            let every = row.every.max(row.trial);
            row.tried.is_none_or(|tried| tried.elapsed() >= every)
        };
        let due = rows.iter().filter(|(_, row)| is_due(row));
        let due: Vec<AppId> = due.map(|(app, _)| app.clone()).collect();
        drop(rows);
        due.into_iter()
            .filter(|app| self.process(app).is_some())
            .collect()
    }

    fn process(&self, app: &AppId) -> Option<u32> {
        let published = self.beginning.reports.borrow();
        published.as_ref()?.report.apps.get(app)?.main_pid
    }

    fn take(&self, app: &AppId) {
        if let Err(why) = self.take_one(app, None) {
            tracing::debug!(%app, why, "no image was taken");
        }
    }

    /// Takes an image, for another boot where it is for an update.
    fn take_one(&self, app: &AppId, update: Option<u64>) -> Result<(), String> {
        let pid = self.process(app);
        let pid = pid.ok_or_else(|| format!("take an image of {app}: it does not run"))?;
        let proc_root = "/proc".as_ref();
        let taken = Criu::find(self.beginning.criu.as_deref()).and_then(|criu| match update {
            None => criu.take(&self.store, app, pid, proc_root),
            Some(update) => criu.keep(&self.store, app, pid, update, proc_root),
        });
        let result = taken.as_ref().map(|_| ()).map_err(HostError::explain);
        let mut rows = locked(&self.rows);
        let Some(row) = rows.get_mut(app) else {
            return result;
        };
        row.tried = Some(Instant::now());
        row.trial = Duration::ZERO;
        match taken {
            Ok(taken) => {
                tracing::debug!(%app, took = ?taken.took, "an image was taken");
                row.image = Some(taken.image);
                row.trouble = None;
            }
            Err(error) => self.trouble(app, row, &error),
        }
        result
    }

    fn trouble(&self, app: &AppId, row: &mut Row, error: &HostError) {
        let text = error.explain();
        if row.trouble.as_ref() != Some(&text) {
            (self.beginning.tell)(app, EventKind::Failed, text.clone());
        }
        row.trouble = Some(text);
    }
}
