//! The thread that trains: does what [`decision`](super::decision) says.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use forebay_core::report::EventKind;
use forebay_forecast::lstm::{self, History, Progress, Trained, Trainer};

use super::compare::Tally;
use super::decision::{self, Next, Now, Outcome, Past};
use super::files::{self, Kept};
use super::histories::{self, Source};
use super::pace::{Pace, Stopped};
use super::{Phase, SAMPLES_MIN, SERIES_MAX, Settings, Shared, Tell, Verdict, unix_ms};
use crate::store::{Level, Reader, StoreError};

/// Processor time that a portion of training is to take.
const PORTION: Duration = Duration::from_millis(10);
/// Steps of the first portion of a training, and of any.
const WORK: usize = 256;
const WORK_MAX: usize = 1 << 16;
/// Sources that are looked into for one training or comparison.
const SOURCES_MAX: usize = 256;

/// All that the thread knows.
pub(super) struct Job {
    settings: Settings,
    kept: Kept,
    shared: Arc<Shared>,
    tell: Tell,
    /// Whether a file that is not understood is where weights would be written.
    blocked: bool,
    /// Whether the notes on disk are what is known here.
    noted: bool,
    /// When the last training or comparison of this run ended.
    ended: Option<Instant>,
    /// What was told last, so that it is told once.
    told: Option<String>,
}

/// Why a turn ended early.
#[derive(Debug)]
enum End {
    Stopped,
    Trouble(String),
}

impl From<Stopped> for End {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Trouble(error.to_string())
    }
}

impl From<files::Error> for End {
    fn from(error: files::Error) -> Self {
        Self::Trouble(error.to_string())
    }
}

impl Job {
    pub(super) fn new(
        settings: Settings,
        kept: Kept,
        blocked: bool,
        shared: Arc<Shared>,
        tell: Tell,
    ) -> Self {
        Self {
            settings,
            kept,
            shared,
            tell,
            blocked,
            noted: false,
            ended: None,
            told: None,
        }
    }

    /// Works until the other end of `stop` is gone.
    pub(super) fn run(mut self, stop: &Receiver<()>) {
        // On Linux this is the calling thread.
        if let Err(error) = rustix::process::setpriority_process(None, 19) {
            tracing::warn!(%error, "networks are trained at plain CPU priority");
        }
        let shared = Arc::clone(&self.shared);
        let pace = Pace {
            share: self.settings.share,
            stop,
            shared: &shared,
        };
        loop {
            let trouble = match self.turn(&pace) {
                Ok(()) => None,
                Err(End::Stopped) => break,
                Err(End::Trouble(trouble)) => Some(trouble),
            };
            shared.status().phase = Phase::Waiting;
            shared.status().trouble.clone_from(&trouble);
            if let Some(trouble) = &trouble
                && self.told.as_ref() != Some(trouble)
            {
                tracing::warn!("no training: {trouble}");
            }
            self.told = trouble;
            if pace.rest(self.settings.look) == Err(Stopped) {
                break;
            }
        }
        shared.status().phase = Phase::Off;
    }

    /// Looks what is due and does it.
    fn turn(&mut self, pace: &Pace<'_>) -> Result<(), End> {
        let (looked, _) = pace.portion(|| self.look())?;
        let Some((reader, now)) = looked? else {
            return Ok(());
        };
        match decision::next(&self.settings.rules, &self.kept.past, &now) {
            Next::Wait => return Ok(()),
            Next::Train => self.train(&reader, &now, pace)?,
            Next::Judge => self.judge(&reader, &now, pace)?,
        }
        self.ended = Some(Instant::now());
        Ok(())
    }

    /// The history as it is now. None where there is none yet.
    fn look(&mut self) -> Result<Option<(Reader, Now)>, End> {
        self.unblock()?;
        let past = self.kept.past.corrected(unix_ms());
        if !self.noted || past != self.kept.past {
            files::note(&self.settings.state_dir, &past)?;
            (self.kept.past, self.noted) = (past, true);
        }
        if !self.settings.database.exists() {
            return Ok(None);
        }
        let reader = Reader::open(&self.settings.database)?;
        let mut spans = Level::ALL.map(|level| (level, None));
        for (level, span) in &mut spans {
            *span = reader.span(*level)?;
        }
        let now = Now {
            unix_ms: unix_ms(),
            spans,
            since_job: self.ended.map(|ended| ended.elapsed()),
        };
        Ok(Some((reader, now)))
    }

    /// A file that was not understood is neither written over nor guessed at; it may have been moved
    /// away meanwhile.
    fn unblock(&mut self) -> Result<(), End> {
        if !self.blocked {
            return Ok(());
        }
        let (kept, troubles) = files::load(&self.settings.state_dir, unix_ms());
        if let Some(trouble) = troubles.into_iter().next() {
            return Err(trouble.into());
        }
        self.kept = kept;
        self.blocked = false;
        self.shared.publish(&self.kept);
        Ok(())
    }

    fn train(&mut self, reader: &Reader, now: &Now, pace: &Pace<'_>) -> Result<(), End> {
        self.shared.status().phase = Phase::Reading;
        let end = end_of(now);
        let histories = self.read(reader, end, pace)?;
        self.shared.status().phase = Phase::Training;
        let (verdict, trained) = self.learn(&histories, pace)?;
        let past = Past {
            jobs: self.kept.past.jobs.saturating_add(1),
            until_unix_ms: Some(end),
            ..self.kept.past
        };
        match trained {
            Some(trained) => self.take(trained, past)?,
            None => {
                files::note(&self.settings.state_dir, &past)?;
                self.kept.past = past;
            }
        }
        self.conclude(verdict);
        Ok(())
    }

    /// Histories to learn from, others each time where there are too many.
    fn read(&self, reader: &Reader, end: u64, pace: &Pace<'_>) -> Result<Vec<History>, End> {
        let (sources, _) = pace.portion(|| histories::sources(reader))?;
        let sources = sources?;
        let mut found = Vec::new();
        for source in self.turn_of(&sources) {
            let steps_max = self.settings.trainer.steps_max / SERIES_MAX;
            let (steps, _) = pace.portion(|| source.read(reader, end, steps_max, end))?;
            let Some(steps) = steps? else { continue };
            let enough = |history: &History| {
                let there = history.values.iter().filter(|value| value.is_finite());
                there.count() >= SAMPLES_MIN
            };
            found.extend(steps.histories.into_iter().filter(enough));
            if found.len() >= SERIES_MAX {
                break;
            }
        }
        found.truncate(SERIES_MAX);
        Ok(found)
    }

    /// The sources from where this training's turn begins, at most [`SOURCES_MAX`].
    fn turn_of<'s>(&self, sources: &'s [Source]) -> impl Iterator<Item = &'s Source> {
        let first = usize::try_from(self.kept.past.jobs)
            .unwrap_or(0)
            .wrapping_mul(SERIES_MAX)
            .checked_rem(sources.len());
        let (before, after) = sources.split_at(first.unwrap_or(0));
        after.iter().chain(before).take(SOURCES_MAX)
    }

    fn learn(
        &self,
        histories: &[History],
        pace: &Pace<'_>,
    ) -> Result<(Verdict, Option<Trained>), End> {
        let seed = self.kept.past.jobs;
        let (mut trainer, _) = pace.portion(|| {
            Trainer::new(&self.settings.trainer, histories, seed).improving(&self.kept.weights)
        })?;
        let (mut work, mut spent) = (WORK, Duration::ZERO);
        loop {
            let (progress, cpu) = pace.portion(|| trainer.advance(work))?;
            spent += cpu;
            if let Progress::Done(verdict) = progress {
                return Ok((verdict.into(), trainer.finish()));
            }
            if spent > self.settings.cpu_max {
                return Ok((Verdict::GivenUp, None));
            }
            work = adapted(work, cpu);
        }
    }

    /// Puts new weights on disk, then in use.
    fn take(&mut self, trained: Trained, past: Past) -> Result<(), End> {
        let version = self.kept.past.versions.saturating_add(1);
        let weights = trained.weights.numbered(version);
        let past = Past {
            version,
            versions: version,
            on_trial: true,
            ..past
        };
        files::replace(
            &self.settings.state_dir,
            &weights,
            &self.kept.weights,
            &past,
        )?;
        let origin = weights.origin();
        let message = format!(
            "weights {version} of the LSTM are in use, on trial: on history held out from training \
             their loss is {:.3} of a naive forecast's, that of weights {} was {:.3}",
            origin.loss_after,
            self.kept.weights.version(),
            origin.loss_before
        );
        self.kept = Kept {
            previous: Some(Arc::clone(&self.kept.weights)),
            weights: Arc::new(weights),
            past,
            built_in: false,
        };
        (self.tell)(EventKind::Forecast, message);
        Ok(())
    }

    fn judge(&mut self, reader: &Reader, now: &Now, pace: &Pace<'_>) -> Result<(), End> {
        self.shared.status().phase = Phase::Comparing;
        let old = self
            .kept
            .previous
            .clone()
            .unwrap_or_else(|| Kept::built_in().weights);
        let ratio = self.compare(&old, reader, now, pace)?;
        let dir = &self.settings.state_dir;
        let done = Past {
            on_trial: false,
            ..self.kept.past
        };
        match decision::outcome(&self.settings.rules, &self.kept.past, now, ratio) {
            Outcome::Undecided => {}
            Outcome::Keep => {
                files::note(dir, &done)?;
                self.kept.past = done;
                self.conclude(Verdict::Kept);
            }
            Outcome::RollBack => {
                let past = Past {
                    version: old.version(),
                    ..done
                };
                files::put_back(dir, &old, &past)?;
                let message = format!(
                    "weights {} of the LSTM are rolled back to weights {}: on history newer than \
                     their training they lost {:.1} % more",
                    self.kept.weights.version(),
                    old.version(),
                    (ratio.unwrap_or(f64::NAN) - 1.0) * 100.0
                );
                self.kept = Kept {
                    previous: Some(Arc::clone(&old)),
                    weights: old,
                    past,
                    built_in: past.version == 0,
                };
                (self.tell)(EventKind::Forecast, message);
                self.conclude(Verdict::RolledBack);
            }
        }
        Ok(())
    }

    /// The losses of the weights in use to those before on what is newer than their training.
    fn compare(
        &self,
        old: &Arc<lstm::Weights>,
        reader: &Reader,
        now: &Now,
        pace: &Pace<'_>,
    ) -> Result<Option<f64>, End> {
        let fresh = self.kept.past.until_unix_ms.unwrap_or(u64::MAX);
        let (sources, _) = pace.portion(|| histories::sources(reader))?;
        let sources = sources?;
        let mut tally = Tally::default();
        let mut series = 0;
        for source in self.turn_of(&sources) {
            let steps_max = self.settings.trainer.steps_max / SERIES_MAX;
            let read = || source.read(reader, end_of(now), steps_max, fresh);
            let (steps, _) = pace.portion(read)?;
            let Some(steps) = steps? else { continue };
            for history in &steps.histories {
                pace.portion(|| tally.add(&self.kept.weights, old, history, steps.fresh))?;
                series += 1;
            }
            if series >= SERIES_MAX {
                break;
            }
        }
        Ok(tally.ratio())
    }

    fn conclude(&self, verdict: Verdict) {
        // A verdict is told of what is in use already.
        self.shared.publish(&self.kept);
        self.shared.status().verdict = Some(verdict);
        tracing::info!(?verdict, version = self.kept.weights.version(), "training");
    }
}

impl From<lstm::Verdict> for Verdict {
    fn from(verdict: lstm::Verdict) -> Self {
        match verdict {
            lstm::Verdict::Better => Self::Better,
            lstm::Verdict::NotBetter => Self::NotBetter,
            lstm::Verdict::Diverged => Self::Diverged,
            lstm::Verdict::TooLittle => Self::TooLittle,
        }
    }
}

/// Where the roll-ups of ten seconds end: what begins there may be incomplete.
fn end_of(now: &Now) -> u64 {
    let ten = now
        .spans
        .iter()
        .find(|(level, _)| *level == Level::TenSeconds);
    ten.and_then(|(_, span)| *span)
        .map_or(0, |(_, newest)| newest)
}

/// Steps of the next portion, after so many took so much processor time.
fn adapted(work: usize, cpu: Duration) -> usize {
    if cpu > PORTION * 2 {
        (work / 2).max(1)
    } else if cpu < PORTION / 2 {
        (work * 2).min(WORK_MAX)
    } else {
        work
    }
}
