//! The control thread: one period after the other, commands in between.
//!
//! Reports go out through a watch channel and nothing else is shared. A period that overruns
//! is skipped and counted, never piled up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forebay_core::app::{AppId, Policy};
use forebay_core::demand::History;
use forebay_core::fleet::policy::Away;
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::outlook::{Outlook, Resource};
use forebay_core::plan::Plan;
use forebay_core::report::{Event, EventKind, TickReport};
use forebay_core::shadow;
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::Topology;
use forebay_core::units::Time;
use forebay_forecast::{Forecast, ModelScore};
use forebay_host::ledger::Process;
use tokio::sync::{oneshot, watch};

use crate::signals::Listener;

/// Periods over which jitter is shown: a minute at the default period.
const JITTER_WINDOW: usize = 600;

/// A change of the policy; what it refuses, it says.
pub(crate) type Edit = Box<dyn FnOnce(&mut Policy) -> Result<(), String> + Send>;

/// What others may ask of the control thread. Each carries where the answer goes.
pub(crate) enum Command {
    /// Change the running policy; nothing changes when the edit refuses.
    Edit(Edit, oneshot::Sender<Result<(), String>>),
    /// Observe and forecast, but change nothing, until resumed.
    Pause(bool, oneshot::Sender<()>),
    /// What would change under an edited policy.
    WhatIf(Edit, oneshot::Sender<Result<(Plan, Vec<Action>), String>>),
    /// The running policy.
    Policy(oneshot::Sender<Policy>),
    /// Do something to an app on behalf of a move between hosts.
    Do(AppId, Deed, oneshot::Sender<Result<(), String>>),
    /// Start an app's program beside the one that runs, which it replaces by itself.
    Succeed(AppId, oneshot::Sender<Result<(), String>>),
    /// An app did not get to another host, for which its ladder had it leave.
    Stayed(AppId),
    /// The end of an app's program is wanted, so that it starts again at once.
    Excuse(AppId),
    /// The latest events, oldest first, at most so many.
    Events(usize, oneshot::Sender<Vec<Event>>),
    /// How an app's forecasts are made: the models of its processor and memory series.
    Models(AppId, oneshot::Sender<Option<Models>>),
    /// Something happened beside the control period.
    Tell(EventKind, String),
    /// Something happened beside the control period that is about an app.
    TellOf(AppId, EventKind, String),
    /// End the control thread.
    Stop,
}

/// What a move does to an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Stop it where it stands.
    Freeze,
    /// Let it go on.
    Thaw,
    /// End all its processes, frozen or not.
    End,
    /// Start its program.
    Start,
    /// Make its slice.
    Slice,
    /// Take a process that came, and stands still, up as its program.
    Adopt(Process),
}

/// How well each model of an app's two series did lately, and what they say of the next periods.
#[derive(Debug)]
pub(crate) struct Models {
    pub(crate) cpu: Vec<ModelScore>,
    pub(crate) memory: Vec<ModelScore>,
    pub(crate) near: Vec<Near>,
}

/// What the series of the control period say of one horizon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Near {
    pub(crate) resource: Resource,
    pub(crate) ahead: Duration,
    pub(crate) value: Forecast,
    pub(crate) peak: Forecast,
}

/// What every reader renders.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) report: TickReport,
    pub(crate) timing: Timing,
    /// Where the host's CPUs are, as it was when the daemon started.
    pub(crate) topology: Arc<Topology>,
}

/// How punctual the control thread is, and what it costs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timing {
    /// How late the latest period began.
    pub(crate) late: Duration,
    /// How long the latest period took.
    pub(crate) took: Duration,
    /// Lateness not exceeded in 99 of 100 of the latest periods.
    pub(crate) jitter_p99: Duration,
    /// Periods skipped because the one before took too long.
    pub(crate) overruns: u64,
}

/// Tells an event of an app that happened beside the control period.
pub(crate) type TellOf = Arc<dyn Fn(&AppId, EventKind, String) + Send + Sync>;

/// Tells events through the queue of commands; one that finds it full is lost, and logged.
pub(crate) fn tell_of(commands: &SyncSender<Command>) -> TellOf {
    let commands = commands.clone();
    Arc::new(move |app, kind, message| {
        if let Err(error) = commands.try_send(Command::TellOf(app.clone(), kind, message)) {
            tracing::warn!(%error, "an event was not told");
        }
    })
}

/// What threads beside this one found out.
#[derive(Debug)]
pub(crate) struct Beside {
    /// What is known to come.
    pub(crate) outlook: watch::Receiver<Arc<Outlook>>,
    /// Apps that are shadows now.
    pub(crate) standing_by: watch::Receiver<Arc<BTreeSet<AppId>>>,
    /// Apps that are not this host's to start.
    pub(crate) elsewhere: watch::Receiver<Arc<BTreeSet<AppId>>>,
    /// Apps that an update ended, and starts again itself.
    pub(crate) ended: watch::Receiver<Arc<BTreeSet<AppId>>>,
    /// Where apps could move to; none without a fleet.
    pub(crate) away: watch::Receiver<Option<Arc<BTreeMap<AppId, Away>>>>,
}

/// Runs periods until told to stop. Leaves the host as it is: whoever owns it closes it.
pub(crate) fn run(
    host: &mut impl Host,
    mut policy: Policy,
    commands: &Receiver<Command>,
    known: &Beside,
    reports: &watch::Sender<Option<Arc<Published>>>,
    mut signals: Listener,
) {
    let mut state = State::new();
    let mut paused = false;
    let mut clock = Clock::start();
    let mut jitter = Jitter::default();
    let mut own_place = None;
    let topology = Arc::new(host.topology().clone());
    loop {
        let began = Instant::now();
        let late = began.saturating_duration_since(clock.due);
        let outlook = Arc::clone(&known.outlook.borrow());
        let standing_by = Arc::clone(&known.standing_by.borrow());
        let elsewhere = not_ours(&known.elsewhere.borrow(), &known.ended.borrow());
        let away = known.away.borrow().clone();
        let planned = shadow::planned(&policy, &standing_by);
        let inputs = Inputs {
            paused: paused || policy.observe,
            away: away.as_deref(),
            outlook: &outlook,
            signals: signals.now(),
            elsewhere: &elsewhere,
            ..Inputs::new(clock.now(), &planned)
        };
        let report = tick(&mut state, host, &inputs);
        if own_place != Some(report.shared) {
            own_place = Some(report.shared);
            keep_to(&report.shared);
        }
        jitter.add(late);
        let took = began.elapsed();
        let overruns = clock.next(policy.period);
        let timing = Timing {
            late,
            took,
            jitter_p99: jitter.p99(),
            overruns,
        };
        let topology = Arc::clone(&topology);
        reports.send_replace(Some(Arc::new(Published {
            report,
            timing,
            topology,
        })));

        let goes_on = between(commands, clock.due, |command| {
            if matches!(command, Command::Stop) {
                return false;
            }
            let asked = Asked {
                time: clock.now(),
                outlook: &outlook,
                standing_by: &standing_by,
                paused: &mut paused,
                policy: &mut policy,
            };
            answer(command, &mut state, host, asked);
            true
        });
        if !goes_on {
            return;
        }
    }
}

/// Has all that is asked answered until the next period is `due`. That comes first once its time has come,
/// however many ask; one of them is answered even then. Whether there is to be a next period: the answer
/// says no, or nobody can ask any more.
fn between<T>(asked: &Receiver<T>, due: Instant, mut answer: impl FnMut(T) -> bool) -> bool {
    loop {
        let wait = due.saturating_duration_since(Instant::now());
        match asked.recv_timeout(wait) {
            Ok(one) => {
                if !answer(one) {
                    return false;
                }
            }
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        if Instant::now() >= due {
            return true;
        }
    }
}

/// Apps that nobody here is to start now.
fn not_ours(elsewhere: &Arc<BTreeSet<AppId>>, ended: &BTreeSet<AppId>) -> Arc<BTreeSet<AppId>> {
    match ended.is_empty() {
        true => Arc::clone(elsewhere),
        false => Arc::new(elsewhere.union(ended).cloned().collect()),
    }
}

/// What a command may look at and change.
struct Asked<'a> {
    time: Time,
    outlook: &'a Outlook,
    standing_by: &'a BTreeSet<AppId>,
    paused: &'a mut bool,
    policy: &'a mut Policy,
}

fn answer(command: Command, state: &mut State, host: &mut impl Host, asked: Asked<'_>) {
    // Whoever asked may have gone meanwhile; then nobody misses the answer.
    match command {
        Command::Edit(edit, reply) => {
            let mut edited = asked.policy.clone();
            let result = edit(&mut edited);
            if result.is_ok() {
                *asked.policy = edited;
                state.forgive();
            }
            reply.send(result).ok();
        }
        Command::Pause(pause, reply) => {
            *asked.paused = pause;
            reply.send(()).ok();
        }
        Command::WhatIf(edit, reply) => {
            let mut edited = asked.policy.clone();
            let result = edit(&mut edited).map(|()| {
                let planned = shadow::planned(&edited, asked.standing_by);
                let inputs = Inputs {
                    outlook: asked.outlook,
                    ..Inputs::new(asked.time, &planned)
                };
                state.what_if(host, &inputs)
            });
            reply.send(result).ok();
        }
        Command::Policy(reply) => {
            reply.send(asked.policy.clone()).ok();
        }
        Command::Do(id, deed, reply) => {
            reply.send(carry_out(&id, deed, state, host, &asked)).ok();
        }
        Command::Succeed(id, reply) => {
            reply.send(succeed(&id, host, asked.policy)).ok();
        }
        Command::Stayed(id) => state.refuse_move(asked.time, &id),
        Command::Excuse(id) => state.excuse(asked.time, &id),
        Command::Events(limit, reply) => {
            let skip = state.events().count().saturating_sub(limit);
            reply
                .send(state.events().skip(skip).cloned().collect())
                .ok();
        }
        Command::Tell(kind, message) => state.tell(asked.time, kind, message),
        Command::TellOf(app, kind, message) => state.tell_of(asked.time, &app, kind, message),
        Command::Models(app, reply) => {
            let models = state.history(&app).map(|history| Models {
                cpu: history.cpu_series().scores(),
                memory: history.memory_series().scores(),
                near: near(history, asked.policy.period),
            });
            reply.send(models).ok();
        }
        Command::Stop => unreachable!("the loop ends at a stop"),
    }
}

/// Does to an app what a move needs.
fn carry_out(
    id: &AppId,
    deed: Deed,
    state: &mut State,
    host: &mut impl Host,
    asked: &Asked<'_>,
) -> Result<(), String> {
    let action = match deed {
        Deed::Freeze => Action::Freeze { app: id.clone() },
        Deed::Thaw => Action::Thaw { app: id.clone() },
        Deed::End => Action::Kill { app: id.clone() },
        Deed::Slice => Action::Enter {
            app: id.clone(),
            pids: Vec::new(),
        },
        Deed::Adopt(process) => {
            let app = asked.policy.apps.get(id);
            let app =
                app.ok_or_else(|| format!("take a process up as {id}: there is no such app"))?;
            Action::Adopt {
                app: Box::new(app.clone()),
                pid: process.pid,
                start_time: process.start_time,
            }
        }
        Deed::Start => {
            let app = asked.policy.apps.get(id);
            let app = app.ok_or_else(|| format!("start {id}: there is no such app"))?;
            Action::Start {
                app: Box::new(app.clone()),
            }
        }
    };
    let outcome = host.apply(std::slice::from_ref(&action)).pop();
    if let (Deed::Start, Some(outcome)) = (deed, &outcome) {
        state.started(asked.time, id, outcome);
    }
    if let (Deed::Adopt(_), Some(Outcome::Done)) = (deed, &outcome) {
        state.came(asked.time, id);
    }
    match outcome {
        Some(Outcome::Done) => Ok(()),
        Some(Outcome::Failed(why)) => Err(why),
        Some(Outcome::Pending) => Err(format!(
            "{action}: something else has to end before; ask again in a moment"
        )),
        other => Err(format!("{action}: the host says {other:?}")),
    }
}

/// Starts a successor of an app's program.
fn succeed(id: &AppId, host: &mut impl Host, policy: &Policy) -> Result<(), String> {
    let app = policy.apps.get(id);
    let app = app.ok_or_else(|| format!("replace {id}: there is no such app"))?;
    let action = Action::Succeed {
        app: Box::new(app.clone()),
    };
    match host.apply(&[action]).pop() {
        Some(Outcome::Done) => Ok(()),
        Some(Outcome::Failed(why)) => Err(why),
        other => Err(format!("replace {id}: the host says {other:?}")),
    }
}

/// What the series of the control period say of the next one, and of the next second.
fn near(history: &History, period: Duration) -> Vec<Near> {
    let second = Duration::from_secs(1).as_nanos() / period.as_nanos().max(1);
    let steps = [1, usize::try_from(second).unwrap_or(1).max(1)];
    let series = [
        (Resource::Cpu, history.cpu_series()),
        (Resource::Memory, history.memory_series()),
    ];
    let rows = series.into_iter().flat_map(|(resource, series)| {
        steps.into_iter().filter_map(move |steps| {
            Some(Near {
                resource,
                ahead: period * u32::try_from(steps).ok()?,
                value: series.forecast(steps)?,
                peak: series.peak(steps)?,
            })
        })
    });
    rows.collect()
}

/// Moves all threads of the daemon to CPUs that are nobody's own: it is a neighbour too.
fn keep_to(cpus: &forebay_core::idset::CpuSet) {
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus.iter() {
        set.set(cpu);
    }
    let threads = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(rustix::process::Pid::from_raw);
    // Without a shared CPU the daemon stays where it is; a thread may end meanwhile.
    for thread in threads.filter(|_| !cpus.is_empty()) {
        if let Err(error) = rustix::thread::sched_setaffinity(Some(thread), &set) {
            tracing::debug!(%error, thread = thread.as_raw_nonzero().get(), "not moved");
        }
    }
}

/// When the next period is due.
#[derive(Debug)]
struct Clock {
    origin: Instant,
    due: Instant,
    overruns: u64,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self {
            origin: now,
            due: now,
            overruns: 0,
        }
    }

    fn now(&self) -> Time {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Time {
            monotonic: self.origin.elapsed(),
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Moves on to the next period that is not past; counts those it leaves out.
    fn next(&mut self, period: Duration) -> u64 {
        self.due += period;
        let now = Instant::now();
        while self.due < now {
            self.due += period;
            self.overruns += 1;
        }
        self.overruns
    }
}

/// Lateness of the latest periods.
#[derive(Debug, Default)]
struct Jitter {
    window: std::collections::VecDeque<Duration>,
}

impl Jitter {
    fn add(&mut self, late: Duration) {
        if self.window.len() == JITTER_WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(late);
    }

    fn p99(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.window.iter().copied().collect();
        if sorted.is_empty() {
            return Duration::ZERO;
        }
        let rank = (sorted.len() - 1) * 99 / 100;
        *sorted.select_nth_unstable(rank).1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn a_period_comes_in_its_time_however_many_ask() {
        const ANSWERS_MAX: u32 = 1_000_000;
        let (sender, asked) = sync_channel(4);
        sender.send(()).unwrap();
        let due = Instant::now() + Duration::from_millis(5);
        let mut answers = 0;
        // Whoever was answered asks again at once.
        let goes_on = between(&asked, due, |()| {
            answers += 1;
            assert!(answers < ANSWERS_MAX, "the period never came");
            sender.send(()).unwrap();
            true
        });
        assert!(goes_on && Instant::now() >= due);
        let before = answers;
        assert!(between(&asked, due, |()| {
            answers += 1;
            true
        }));
        assert_eq!(answers, before + 1, "one is answered even when it is late");
    }

    #[test]
    fn it_ends_when_it_is_told_and_when_nobody_can_ask() {
        let (sender, asked) = sync_channel(4);
        let due = Instant::now() + Duration::from_secs(60);
        sender.send(()).unwrap();
        assert!(!between(&asked, due, |()| false));
        drop(sender);
        assert!(!between(&asked, due, |()| true));
    }
}
