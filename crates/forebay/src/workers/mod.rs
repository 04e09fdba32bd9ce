//! Workers of accelerators, one beside each app that has `accelerators`, in its slice.
//!
//! ```text
//! reports ──heed()──▶ orders ──▶ a thread for each worker: starts it, asks it, tells it its price
//!                                  │
//!           board of signals ◀─────┘ devices, kernels, tasks, time
//! ```
//!
//! A worker lives as long as its app runs here. It outlives a daemon that is lost, and the next one takes
//! it up; a daemon that stops in order ends it. What the ladder decides of an app is told again and again
//! ([`Climb::accelerates`]), so that a worker that is new, or was taken up, has the right price at once.

mod keeper;
mod share;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_core::accel::Accelerators;
use forebay_core::app::{App, AppId, Binding, Class};
use forebay_core::offload::Climb;
use forebay_core::report::TickReport;
use tokio::sync::watch;

use crate::config::{self, Config};
use crate::control::TellOf;
use crate::signals::Teller;
use keeper::Keeper;
use share::Shares;

/// What the threads of workers need.
#[derive(Clone)]
struct Beginning {
    /// Where the directories of workers are.
    directory: PathBuf,
    /// The daemon's anchor group.
    anchor: PathBuf,
    /// This program.
    executable: PathBuf,
    teller: Teller,
    tell: TellOf,
}

/// All workers of this host.
pub(crate) struct Workers {
    beginning: Beginning,
    configured: watch::Receiver<BTreeMap<AppId, App>>,
    shared: Arc<Shared>,
    threads: BTreeMap<AppId, JoinHandle<()>>,
    /// Whether a report was looked at.
    looked: bool,
}

/// What the threads are told.
#[derive(Default)]
struct Shared {
    orders: Mutex<BTreeMap<AppId, Order>>,
    changed: Condvar,
    shares: Mutex<Shares>,
}

/// What is wanted of one worker.
#[derive(Debug, Clone, PartialEq)]
struct Order {
    exec: forebay_core::app::Exec,
    accelerators: Accelerators,
    class: Class,
    /// Whether the app's program runs, as of report number `seen`.
    runs: bool,
    seen: u64,
    /// Whether time of CPUs is scarce for it.
    accelerate: bool,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, BTreeMap<AppId, Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted of an app's worker, once that is another thing than what was `known`, or after
    /// `within`. Nothing when it is to end.
    fn await_order(&self, app: &AppId, known: Option<&Order>, within: Duration) -> Option<Order> {
        let same = |orders: &mut BTreeMap<AppId, Order>| {
            let now = orders.get(app);
            now.is_some() && now.zip(known).is_some_and(|(now, known)| now.is_as(known))
        };
        let waited = self.changed.wait_timeout_while(self.orders(), within, same);
        let (orders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        orders.get(app).cloned()
    }
}

impl Order {
    /// Whether the same is wanted.
    fn is_as(&self, other: &Self) -> bool {
        let seen = other.seen;
        Self {
            seen,
            ..self.clone()
        } == *other
    }
}

impl Workers {
    /// Those of a daemon, which tells signals and events.
    pub(crate) fn of(
        config: &Config,
        executable: &Path,
        (teller, tell): (Teller, TellOf),
        configured: watch::Receiver<BTreeMap<AppId, App>>,
    ) -> Self {
        let beginning = Beginning {
            directory: config::workers_directory(&config.daemon.socket),
            anchor: PathBuf::from(&config.daemon.cgroup_root),
            executable: executable.to_owned(),
            teller,
            tell,
        };
        Self::new(beginning, configured)
    }

    /// Puts away what daemons before left of workers that nobody wants any more.
    fn new(beginning: Beginning, configured: watch::Receiver<BTreeMap<AppId, App>>) -> Self {
        let wanted = |name: &str| {
            let apps = configured.borrow();
            let mut apps = apps.values();
            apps.any(|app| app.id.as_str() == name && wanted(app).is_some())
        };
        for name in left_in(&beginning.directory) {
            if !wanted(&name) {
                keeper::sweep(&beginning.directory.join(&name));
            }
        }
        Self {
            beginning,
            configured,
            shared: Arc::default(),
            threads: BTreeMap::new(),
            looked: false,
        }
    }

    /// Takes in what a period found and decided. Starts the threads of workers that are new.
    pub(crate) fn heed(&mut self, report: &TickReport) {
        let mut orders = self.shared.orders();
        // Most hosts have none.
        let same = !self.configured.has_changed().unwrap_or(false);
        if std::mem::replace(&mut self.looked, true) && same && orders.is_empty() {
            return;
        }
        let apps = self.configured.borrow_and_update();
        orders.retain(|app, _| apps.get(app).is_some_and(|app| wanted(app).is_some()));
        for (id, app) in apps.iter() {
            let Some((exec, accelerators)) = wanted(app) else {
                continue;
            };
            let seen = report.apps.get(id);
            let before = orders.get(id);
            let climb = seen.and_then(|app| app.offload.as_ref());
            let order = Order {
                exec: exec.clone(),
                accelerators: accelerators.clone(),
                class: app.class,
                runs: seen.is_some_and(|app| app.main_pid.is_some()),
                seen: report.period,
                accelerate: match before {
                    // Nothing is changed while Forebay only looks.
                    Some(before) if report.paused => before.accelerate,
                    _ => climb.is_some_and(Climb::accelerates),
                },
            };
            orders.insert(id.clone(), order);
        }
        drop(apps);
        let names: Vec<AppId> = orders.keys().cloned().collect();
        drop(orders);
        self.shared.changed.notify_all();
        self.threads.retain(|_, thread| !thread.is_finished());
        for app in names {
            if self.threads.contains_key(&app) {
                continue;
            }
            let keeper = Keeper::new(
                app.clone(),
                self.beginning.clone(),
                Arc::clone(&self.shared),
            );
            let thread = std::thread::Builder::new().name("worker".to_owned());
            match thread.spawn(move || keeper.run()) {
                Ok(thread) => {
                    self.threads.insert(app, thread);
                }
                Err(error) => {
                    tracing::error!(%app, %error, "no thread for its worker; tried again")
                }
            }
        }
    }

    /// Ends all workers, and takes their directories away.
    pub(crate) fn stop(self) {
        self.shared.orders().clear();
        self.shared.changed.notify_all();
        for (app, thread) in self.threads {
            if thread.join().is_err() {
                tracing::error!(%app, "the thread of its worker panicked");
            }
        }
        match fs::remove_dir(&self.beginning.directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let directory = self.beginning.directory.display();
                tracing::warn!(%directory, %error, "the directory of workers stays");
            }
        }
    }
}

/// The program beside which an app is to have a worker.
fn wanted(app: &App) -> Option<(&forebay_core::app::Exec, &Accelerators)> {
    match &app.binding {
        Binding::Exec(exec) => Some((exec, app.accelerators.as_ref()?)),
        _ => None,
    }
}

/// The names of what is in the directory of workers.
fn left_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).collect()
}
