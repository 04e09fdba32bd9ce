//! The global LSTM, trained on the history of this host beside everything else.
//!
//! # Problem
//!
//! The weights that come with the program know no host. What its applications have in common can
//! be learnt from the history, but training must not take from them what Forebay is there to give,
//! must survive whatever happens to the daemon and to the disk, and must not make forecasts worse.
//!
//! # Approach
//!
//! One thread at the lowest priority, on the CPUs that everybody shares. Now and then ([`decision`])
//! it reads roll-ups ([`histories`]) and trains on them in portions, each followed by a pause that
//! keeps its share of a CPU ([`pace`]). Weights that did better on what was held out are put on
//! disk ([`files`]) and in use, and are held against those before them when enough is newer than
//! all that they learnt from ([`compare`]); if they lose, those before come back.
//!
//! ```text
//! state.db ──roll-ups──▶ trainer ──watch: weights──▶ forecasts
//!                          │ ▲
//!                 lstm.weights, .previous, lstm.training
//! ```
//!
//! # Properties
//!
//! - Over any time, no more of a CPU is used than the share of it and one portion.
//! - It ends within a portion when the daemon stops; what was not finished is forgotten.
//! - Series, samples and processor time of a training are bounded, and so is memory: about 800
//!   bytes for each of [`SAMPLES_MAX`] samples.
//! - A file that cannot be read means the built-in weights and a warning; it is left alone.
//!
//! Source: Prechelt, "Early stopping - but when?", 1998, for the training; the trial afterwards is
//! a plain comparison on data that neither network has seen.

mod compare;
mod decision;
mod files;
mod histories;
mod job;
mod pace;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::report::EventKind;
use forebay_forecast::lstm::{TrainerConfig, Weights};
use tokio::sync::watch;

use decision::Rules;
use files::Kept;
use job::Job;

/// Samples of all series that are learnt from.
const SAMPLES_MAX: usize = 16_384;
/// Series that are learnt from at once; where there are more, the next training has others.
const SERIES_MAX: usize = 24;
/// Samples of a series that are worth reading.
const SAMPLES_MIN: usize = 256;
/// Processor time after which a training is given up.
const CPU_MAX: Duration = Duration::from_secs(300);
/// How often the thread looks whether there is something to do.
const LOOK: Duration = Duration::from_secs(300);

/// Takes in what happened.
pub(crate) type Tell = Arc<dyn Fn(EventKind, String) + Send + Sync>;

/// Whether to train, and with how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TrainingConfig {
    /// Whether weights are trained at all. Those on disk are used in any case.
    pub(crate) on: bool,
    /// Of one CPU, 1 to 100.
    pub(crate) cpu_percent: u32,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            on: true,
            cpu_percent: 5,
        }
    }
}

/// What the thread is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is off, or has ended.
    Off,
    /// Nothing is due.
    Waiting,
    /// History is read.
    Reading,
    /// A network learns.
    Training,
    /// The weights in use are held against those before.
    Comparing,
}

impl Phase {
    /// Its name on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Waiting => "waiting",
            Self::Reading => "reading",
            Self::Training => "training",
            Self::Comparing => "comparing",
        }
    }
}

/// What became of the last training or comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// New weights are in use, on trial.
    Better,
    /// What was there did as well on the part held out.
    NotBetter,
    /// Too few samples.
    TooLittle,
    /// Something was not finite.
    Diverged,
    /// It took too much processor time.
    GivenUp,
    /// The weights on trial did as well as those before, or nothing could be compared.
    Kept,
    /// The weights on trial did worse; those before are in use again.
    RolledBack,
}

impl Verdict {
    /// Its name on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::NotBetter => "not_better",
            Self::TooLittle => "too_little",
            Self::Diverged => "diverged",
            Self::GivenUp => "given_up",
            Self::Kept => "kept",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// How it stands. The daemon tells whoever asks, and logs it at its end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Status {
    pub(crate) phase: Phase,
    /// Of the weights in use; 0 for those that are built in.
    pub(crate) version: u32,
    /// Whether the weights in use are those that are built in.
    pub(crate) built_in: bool,
    /// Whether the weights in use are on trial.
    pub(crate) on_trial: bool,
    /// Of the last training or comparison of this run.
    pub(crate) verdict: Option<Verdict>,
    /// Loss of the weights before and of those in use on what was held out, relative to a naive
    /// forecast. None for the built-in ones.
    pub(crate) held_out: Option<(f64, f64)>,
    /// Processor time of the thread.
    pub(crate) cpu: Duration,
    /// What keeps it from working.
    pub(crate) trouble: Option<String>,
}

impl Default for Status {
    /// The weights that come with the program, and nobody who trains others.
    fn default() -> Self {
        Self {
            phase: Phase::Off,
            version: 0,
            built_in: true,
            on_trial: false,
            verdict: None,
            held_out: None,
            cpu: Duration::ZERO,
            trouble: None,
        }
    }
}

/// What the thread shows.
#[derive(Debug)]
struct Shared {
    status: Mutex<Status>,
    weights: watch::Sender<Arc<Weights>>,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spent(&self, cpu: Duration) {
        self.status().cpu = cpu;
    }

    /// Puts weights in use, where they are others.
    fn publish(&self, kept: &Kept) {
        let mut status = self.status();
        let origin = kept.weights.origin();
        status.version = kept.weights.version();
        status.built_in = kept.built_in;
        status.on_trial = kept.past.on_trial;
        status.held_out = (!kept.built_in).then_some((origin.loss_before, origin.loss_after));
        drop(status);
        self.weights.send_if_modified(|now| {
            let other = **now != *kept.weights;
            if other {
                *now = Arc::clone(&kept.weights);
            }
            other
        });
    }
}

/// What a thread works by.
#[derive(Debug, Clone)]
struct Settings {
    database: PathBuf,
    state_dir: PathBuf,
    /// Of one CPU.
    share: f64,
    look: Duration,
    rules: Rules,
    trainer: TrainerConfig,
    cpu_max: Duration,
}

impl Settings {
    fn new(config: TrainingConfig, state_dir: &Path) -> Self {
        let layout = Weights::pretrained().layout().clone();
        Self {
            database: state_dir.join(crate::store::FILE),
            state_dir: state_dir.to_owned(),
            share: f64::from(config.cpu_percent.clamp(1, 100)) / 100.0,
            look: LOOK,
            rules: Rules::default(),
            trainer: TrainerConfig {
                steps_max: SAMPLES_MAX,
                ..TrainerConfig::new(layout)
            },
            cpu_max: CPU_MAX,
        }
    }
}

/// The thread that trains. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Training {
    shared: Arc<Shared>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Training {
    /// Loads weights and starts the thread where the configuration says so. Nothing that goes
    /// wrong here keeps a daemon from its work: the status and the log say what it was.
    pub(crate) fn start(config: TrainingConfig, state_dir: &Path, tell: Tell) -> Self {
        let settings = config.on.then(|| Settings::new(config, state_dir));
        Self::start_with(settings, state_dir, tell)
    }

    /// Without settings, weights are loaded and no more.
    fn start_with(settings: Option<Settings>, state_dir: &Path, tell: Tell) -> Self {
        let (kept, troubles) = files::load(state_dir, unix_ms());
        for trouble in &troubles {
            tracing::warn!("{trouble}");
        }
        let (weights, _) = watch::channel(Arc::clone(&kept.weights));
        let shared = Arc::new(Shared {
            status: Mutex::new(Status {
                trouble: troubles.first().map(ToString::to_string),
                ..Status::default()
            }),
            weights,
        });
        shared.publish(&kept);
        let mut training = Self {
            shared,
            stop: None,
            thread: None,
        };
        if let Some(settings) = settings {
            training.spawn(settings, kept, tell);
        }
        training
    }

    fn spawn(&mut self, settings: Settings, kept: Kept, tell: Tell) {
        let (stop, stopped) = mpsc::channel();
        let blocked = self.status().trouble.is_some();
        let job = Job::new(settings, kept, blocked, Arc::clone(&self.shared), tell);
        let spawned = std::thread::Builder::new()
            .name("training".to_owned())
            .spawn(move || job.run(&stopped));
        match spawned {
            Ok(thread) => (self.stop, self.thread) = (Some(stop), Some(thread)),
            Err(error) => {
                tracing::error!(%error, "nothing is trained: the system refused a thread");
                self.shared.status().trouble = Some(format!("start the training thread: {error}"));
            }
        }
    }

    /// The weights in use, now and from now on.
    pub(crate) fn weights(&self) -> watch::Receiver<Arc<Weights>> {
        self.shared.weights.subscribe()
    }

    /// How it stands.
    pub(crate) fn status(&self) -> Status {
        self.shared.status().clone()
    }

    /// How it stands, for as long as somebody asks.
    pub(crate) fn status_reader(&self) -> impl Fn() -> Status + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.status().clone()
    }

    /// Ends the thread and waits for it: a portion of work at most.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the training thread panicked; see its message above");
        }
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        self.end();
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
