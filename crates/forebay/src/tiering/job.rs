//! The thread that moves the files of one tier.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forebay_api as api;
use forebay_core::report::EventKind;
use forebay_core::tier::{Place, Room};
use forebay_core::units::Bytes;
use forebay_host::Error;
use forebay_host::tier::{Left, Moved, Recovered, Tier};

use super::files::{Files, Planned};
use super::touched::Touched;
use super::{Order, Shared, Tell, wire};

/// How often files are listed anew, and decisions made: or so much more seldom that either
/// takes no more than this part of the time.
const SCAN: Duration = Duration::from_secs(10);
const DECIDE: Duration = Duration::from_secs(1);
const PART: u32 = 50;
/// How often an idle mover takes in touches and looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);
/// Moves and bytes between two looks at requests and heat.
const MOVES_MAX: usize = 16;
const BYTES_MAX: u64 = 64 << 20;
/// With a bound on bandwidth, bytes of so many seconds.
const BATCH_SECONDS: u64 = 5;
/// How long a tier that cannot be used is left alone, doubling each time.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// How long moves gather before they are told as one event.
const TOLD: Duration = Duration::from_secs(60);

/// One mover.
pub(super) struct Job {
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    tell: Tell,
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Work,
    End,
}

impl Job {
    pub(super) fn new(shared: Arc<Shared>, orders: Receiver<Order>, tell: Tell) -> Self {
        Self {
            shared,
            orders,
            tell,
        }
    }

    /// Works until it is stopped. A tier that cannot be used is tried again.
    pub(super) fn run(self) {
        yield_to_everybody();
        let mut memory = Memory {
            began: Instant::now(),
            files: Files::new(Duration::ZERO),
            drained: false,
        };
        let mut pause = RETRY;
        let mut told = None;
        while !self.shared.is_stopping() {
            let trouble = match Work::open(&self, &mut memory) {
                Ok(mut work) => {
                    pause = RETRY;
                    told = None;
                    match work.run() {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let trouble = trouble.explain();
            self.shared.update(|status| {
                status.state = api::TierState::Broken;
                status.trouble = Some(trouble.clone());
            });
            if told.as_ref() != Some(&trouble) {
                self.tell(EventKind::Failed, &trouble);
                told = Some(trouble.clone());
            }
            if self.refuse(&trouble, pause) == Next::End {
                return;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn tell(&self, kind: EventKind, what: &str) {
        let name = &self.shared.place.name;
        (self.tell)(kind, format!("tier {name}: {what}"));
    }

    /// Answers all requests with what is wrong, for a while.
    fn refuse(&self, trouble: &str, pause: Duration) -> Next {
        let end = Instant::now() + pause;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            match self.orders.recv_timeout(rest.min(LOOK)) {
                Ok(order) => self.shared.answer(order.request, |answer| {
                    answer.trouble = Some(trouble.to_owned());
                    answer.done = true;
                }),
                Err(RecvTimeoutError::Disconnected) => return Next::End,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.shared.is_stopping() {
                return Next::End;
            }
            if rest.is_zero() {
                return Next::Work;
            }
        }
    }
}

/// What outlives trouble with the tier.
struct Memory {
    began: Instant,
    files: Files,
    drained: bool,
}

/// A mover that has its tier.
struct Work<'j> {
    job: &'j Job,
    tier: Tier,
    memory: &'j mut Memory,
    /// None where touches cannot be counted.
    touched: Option<Touched>,
    scan_at: Duration,
    decide_at: Duration,
    /// Moves since they were told.
    untold: api::TierTotals,
    tell_at: Duration,
}

impl<'j> Work<'j> {
    fn open(job: &'j Job, memory: &'j mut Memory) -> Result<Self, Error> {
        let (tier, recovered) = Tier::open(job.shared.place.clone())?;
        job.shared.set_brake(tier.brake());
        say_recovered(job, &recovered);
        let mut work = Self {
            job,
            tier,
            memory,
            touched: None,
            scan_at: Duration::ZERO,
            decide_at: Duration::ZERO,
            untold: api::TierTotals::default(),
            tell_at: Duration::ZERO,
        };
        let trouble = match Touched::start(&work.tier) {
            Ok(touched) => {
                work.touched = Some(touched);
                work.scan().err().map(|error| error.explain())
            }
            Err(error) => Some(error),
        };
        if let Some(trouble) = &trouble {
            // Files can still be moved by hand.
            work.touched = None;
            job.tell(EventKind::Failed, trouble);
            work.scan()?;
        }
        job.shared.update(|status| {
            status.kept = recovered.kept;
            status.trouble = trouble;
        });
        Ok(work)
    }

    fn run(&mut self) -> Result<(), Error> {
        loop {
            if self.job.shared.is_stopping() {
                self.tell_moves(true);
                return Ok(());
            }
            self.take_touches();
            let now = self.memory.began.elapsed();
            if now >= self.scan_at {
                self.scan()?;
            }
            if now >= self.decide_at && self.moves_by_itself() {
                self.decide()?;
            }
            self.show_state();
            self.tell_moves(false);
            match self.job.orders.recv_timeout(LOOK) {
                Ok(order) => self.obey(&order)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn moves_by_itself(&self) -> bool {
        self.touched.is_some() && !self.job.shared.is_held()
    }

    fn take_touches(&mut self) {
        let Some(touched) = &self.touched else { return };
        if !touched.is_counting() {
            self.touched = None;
            let trouble = "touches are no longer counted; see the log for why";
            self.job.tell(EventKind::Failed, trouble);
            self.job
                .shared
                .update(|status| status.trouble = Some(trouble.to_owned()));
            return;
        }
        let touches = touched.take();
        self.memory
            .files
            .touched(self.memory.began.elapsed(), &touches);
        let heats = self.memory.files.heats();
        let (files, forecast_files, forgotten) = (
            heats.len() as u64,
            heats.forecasts() as u64,
            heats.forgotten(),
        );
        self.job.shared.update(|status| {
            let before = status.heat.unwrap_or_default();
            status.heat = Some(api::TierHeat {
                files,
                forecast_files,
                forgotten,
                events: before.events + touches.events,
                overflows: before.overflows + touches.overflows,
                lost: before.lost + touches.lost,
            });
        });
    }

    fn scan(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        let scan = match &self.touched {
            Some(touched) => self.tier.scan_and_watch(touched.watch())?,
            None => self.tier.scan()?,
        };
        let copies = wire::Copies {
            unclaimed: self.tier.count()?,
            nameless: self.tier.nameless()?,
        };
        self.job
            .shared
            .update(|status| wire::seen(status, &self.tier, &scan, copies));
        self.memory.files.scanned(self.memory.began.elapsed(), scan);
        self.show_sums();
        let pause = SCAN.max(began.elapsed() * PART);
        self.scan_at = self.memory.began.elapsed() + pause;
        Ok(())
    }

    fn show_sums(&self) {
        let (fast, slow) = (
            self.memory.files.on(Place::Fast),
            self.memory.files.on(Place::Slow),
        );
        self.job.shared.update(|status| {
            status.fast_files = fast.files;
            status.fast_bytes = self.tier.fast_used();
            status.slow_files = slow.files;
            status.slow_bytes = slow.bytes;
        });
    }

    fn show_state(&self) {
        let state = match () {
            () if self.touched.is_none() => api::TierState::ByHand,
            () if self.job.shared.is_held() => api::TierState::Held,
            () if self.memory.drained => api::TierState::Drained,
            () => api::TierState::Idle,
        };
        self.job.shared.update(|status| status.state = state);
    }

    /// Moves until every file is where it belongs, somebody asks for something, or moves are
    /// held back.
    fn decide(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        let (fast_free, slow_free) = self.tier.free()?;
        let bandwidth = self.tier.place().bandwidth_max;
        let bytes = bandwidth.map_or(BYTES_MAX, |most| most.saturating_mul(BATCH_SECONDS));
        let room = Room {
            fast_used: Bytes(self.tier.fast_used()),
            fast_size_max: Bytes(self.tier.place().fast_size_max),
            fast_free: Bytes(fast_free),
            slow_free: Bytes(slow_free),
            moves_max: MOVES_MAX,
            bytes_max: Bytes(bytes.min(BYTES_MAX)),
        };
        let mut moves = self.memory.files.decide(self.memory.began.elapsed(), &room);
        let took = began.elapsed();
        // What a drained tier lost is not brought back.
        moves.retain(|one| !self.memory.drained || one.to == Place::Slow);
        let is_idle = moves.is_empty();
        for one in moves {
            if self.job.shared.is_stopping() || self.job.shared.is_held() {
                break;
            }
            let state = api::TierState::Moving;
            self.job.shared.update(|status| status.state = state);
            let moved = self.make(&one)?;
            self.take_touches();
            if matches!(moved, Moved::Left(_)) && one.to == Place::Slow {
                // What was to come into its room would find none.
                break;
            }
        }
        self.decide_at = self.memory.began.elapsed() + took * PART;
        if is_idle {
            self.decide_at += DECIDE;
        }
        Ok(())
    }

    /// Tries one move, and remembers how it ended.
    fn make(&mut self, one: &Planned) -> Result<Moved, Error> {
        let moved = match one.to {
            Place::Fast => self.tier.promote(&one.path),
            Place::Slow => self.tier.demote(&one.path),
        };
        let now = self.memory.began.elapsed();
        let (bytes, left) = match &moved {
            Ok(Moved::Done { bytes }) => {
                // Gone already, it is as cold as can be.
                let key = self.tier.key_of(&one.path).unwrap_or(None);
                self.memory.files.moved(now, &one.path, one.to, key);
                self.show_sums();
                (Some(*bytes), None)
            }
            Ok(Moved::Left(left)) => {
                let again = self.memory.files.left(now, &one.path, left);
                (None, Some(wire::left(left, again)))
            }
            Err(error) => {
                // The tier is opened anew, and this file is not tried at once.
                self.memory.files.left(now, &one.path, &Left::Wanted);
                (None, Some(error.explain()))
            }
        };
        self.sum_up(one.to, bytes);
        self.job.shared.note_move(api::TierMove {
            time_unix_ms: unix_ms(),
            file: one.path.display().to_string(),
            to: wire::side(one.to),
            bytes,
            why: one.why.clone(),
            left,
        });
        moved
    }

    fn sum_up(&mut self, to: Place, bytes: Option<u64>) {
        let add = |totals: &mut api::TierTotals| match (bytes, to) {
            (None, _) => totals.left += 1,
            (Some(bytes), Place::Fast) => {
                totals.promoted += 1;
                totals.promoted_bytes += bytes;
            }
            (Some(bytes), Place::Slow) => {
                totals.demoted += 1;
                totals.demoted_bytes += bytes;
            }
        };
        add(&mut self.untold);
        self.job.shared.update(|status| add(&mut status.totals));
    }

    /// Tells of the moves of a while as one event.
    fn tell_moves(&mut self, now_or_never: bool) {
        let now = self.memory.began.elapsed();
        let api::TierTotals {
            promoted, demoted, ..
        } = self.untold;
        if promoted + demoted == 0 || now < self.tell_at && !now_or_never {
            return;
        }
        self.tell_at = now + TOLD;
        let totals = std::mem::take(&mut self.untold);
        let part = |what: &str, files: u64, bytes: u64| {
            (files > 0).then(|| format!("{what} {files} file(s) ({})", Bytes(bytes)))
        };
        let parts = [
            part("promoted", promoted, totals.promoted_bytes),
            part("demoted", demoted, totals.demoted_bytes),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        self.job.tell(EventKind::Tier, &parts.join(", "));
    }

    /// Does what somebody asked for.
    fn obey(&mut self, order: &Order) -> Result<(), Error> {
        let (to, files) = match order.what {
            api::TierOrder::Promote => {
                self.memory.drained = false;
                (Place::Fast, order.files.clone())
            }
            api::TierOrder::Demote => (Place::Slow, order.files.clone()),
            api::TierOrder::Drain => {
                self.memory.drained = true;
                self.scan()?;
                (Place::Slow, self.memory.files.promoted())
            }
            api::TierOrder::Forget => return self.forget(order.request),
        };
        let state = api::TierState::Moving;
        self.job.shared.update(|status| status.state = state);
        let mut failure = None;
        for file in files {
            if self.job.shared.is_stopping() {
                break;
            }
            let moved = self.asked_for(&file, to);
            let row = wire::row(&file, &moved);
            self.job
                .shared
                .answer(order.request, |answer| wire::answered(answer, row));
            failure = failure.or(moved.err());
            self.take_touches();
        }
        let stopped = self.job.shared.is_stopping();
        self.job.shared.answer(order.request, |answer| {
            answer.done = true;
            answer.trouble = stopped.then(|| "the daemon is stopping".to_owned());
        });
        failure.map_or(Ok(()), Err)
    }

    fn asked_for(&mut self, file: &Path, to: Place) -> Result<Moved, Error> {
        let directory = &self.tier.place().directory;
        let path: PathBuf = file.strip_prefix(directory).unwrap_or(file).to_owned();
        let moved = self.make(&Planned {
            path: path.clone(),
            to,
            why: "asked for".to_owned(),
        })?;
        self.memory.files.hold(self.memory.began.elapsed(), &path);
        Ok(moved)
    }

    fn forget(&mut self, request: u64) -> Result<(), Error> {
        let moved = self.tier.collect_removed(SystemTime::now())?;
        let young = self.tier.nameless()?;
        self.job.shared.answer(request, |answer| {
            answer.moved = moved;
            answer.young = young;
            answer.done = true;
        });
        self.job.shared.update(|status| {
            status.nameless = young;
            status.fast_bytes = self.tier.fast_used();
        });
        Ok(())
    }
}

fn say_recovered(job: &Job, recovered: &Recovered) {
    if recovered.ended + recovered.undone > 0 {
        let what = format!(
            "ended {} and undid {} move(s) that a killed mover had left",
            recovered.ended, recovered.undone
        );
        job.tell(EventKind::Tier, &what);
    }
}

/// Moves are made when nobody else wants the disk or the CPU.
fn yield_to_everybody() {
    if let Err(error) = forebay_host::tier::idle_priority() {
        tracing::warn!(reason = error.explain(), "files move at plain I/O priority");
    }
    // On Linux this is the calling thread.
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::warn!(%error, "files move at plain CPU priority");
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
