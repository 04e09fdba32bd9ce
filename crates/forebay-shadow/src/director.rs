//! Watches the primary and carries a promotion out.
//!
//! The rules are [`forebay_core::shadow`]'s. One task gathers what they ask for: every two
//! milliseconds while somebody waits ([`looks`]), else when the kernel says that the process ended.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::shadow::detection::{self, Evidence, Life, Observation, Verdict};
use forebay_core::shadow::promotion::{Cause, Epoch, Input, Promotion, Slot, Stage};
use tokio::sync::{mpsc, oneshot, watch};

use crate::epoch::{EpochFile, Record};
use crate::fence::Fence;
use crate::member::{self, Member};
use crate::ping::Ping;
use crate::status::{About, Failure, Left, MemberStatus, Status, Transition};
use crate::stream::{Address, Stream, is_refusal};
use crate::succession::{Outcome, Successor, Testament};
use crate::switchboard::Switchboard;
use crate::synchronise::{Renewal, Standing, Synchroniser, Witness};
use crate::unread::Unread;
use crate::vitals::Whose;

/// Waits shorter than this are not looked into.
const WAIT_MIN: Duration = Duration::from_millis(2);
/// How often it is asked how the shadow stands.
const STANDING: Duration = Duration::from_millis(250);
/// How soon a refusal comes: who takes longer does not refuse.
const REFUSAL_BOUND: Duration = Duration::from_millis(50);
/// And for a while after the primary changed, until a shadow is in step with it.
const STANDING_EAGER: Duration = Duration::from_millis(25);
const EAGER_BOUND: Duration = Duration::from_secs(1);
/// How long another than the last primary waits for that one when nobody serves: it knows most.
const FIRST_CHOICE_BOUND: Duration = Duration::from_secs(2);
/// And for one whose process runs, which may be recovering from a crash.
const FIRST_LIVES_BOUND: Duration = Duration::from_secs(300);
/// How soon a change is tried again of which a step failed.
const REST: Duration = Duration::from_millis(100);
/// News from beside the director that wait for it; whoever has more waits.
const NOTES_MAX: usize = 16;
/// Transitions that are remembered.
const TRANSITIONS_MAX: usize = 64;

/// What the director is asked for.
#[derive(Debug)]
pub(crate) enum Order {
    /// An instance runs, as this process, behind this fence if there is one.
    Joined {
        /// The app that it is.
        app: String,
        /// Its main process.
        pid: u32,
        /// What stops it.
        fence: Option<Fence>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The shadow is to take over in order.
    HandOver(oneshot::Sender<Result<Transition, String>>),
    /// The shadow is to take over now, and the primary to be ended.
    Promote(oneshot::Sender<Result<Transition, String>>),
    /// A shadow is to be put in step anew.
    Resync(String, oneshot::Sender<Result<(), String>>),
    /// Another process is to say who serves from now on. Nothing is done until its verdict comes.
    Yield(
        oneshot::Sender<Result<Testament, String>>,
        oneshot::Receiver<Outcome>,
        Option<Successor>,
    ),
    /// An instance is not to take over until told otherwise.
    Detach(String, Detached, oneshot::Sender<Result<(), String>>),
}

/// Whether an instance may take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Detached {
    /// It may not.
    Yes,
    /// It may.
    #[default]
    No,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Director {
    board: Arc<Switchboard>,
    machine: Promotion,
    members: Vec<Option<Member>>,
    standings: Vec<Standing>,
    detached: Vec<Detached>,
    synchroniser: Arc<dyn Synchroniser>,
    epochs: Arc<EpochFile>,
    /// What the file says, as far as this process wrote it.
    kept: Option<Record>,
    /// The epoch up to which it is durable that some may have been used, and up to which that is asked.
    reserved: Epoch,
    reserving: Epoch,
    orders: mpsc::Receiver<Order>,
    status: watch::Sender<Status>,
    grace: Duration,
    began: Instant,
    /// Since when nobody serves, if nobody does.
    down_since: Instant,
    /// Until when nothing is done about the primary, because a step failed.
    rest: Option<Instant>,
    unread: Unread,
    ping: Ping,
    transitions: Vec<Transition>,
    /// When the primary changed last.
    changed_at: Option<Instant>,
    /// The transition that goes on, and who waits for its end.
    running: Option<Transition>,
    asked: Option<oneshot::Sender<Result<Transition, String>>>,
    /// A connection to the primary was refused since the last look.
    refused: bool,
    /// How often each instance was begun or ended: what was asked of one before says nothing after.
    lives: Vec<u64>,
    /// Who was asked how it stands, and has not answered yet.
    asking: Vec<bool>,
    news: mpsc::Sender<(Asked, Standing)>,
    heard: mpsc::Receiver<(Asked, Standing)>,
    notes: mpsc::Sender<Note>,
    noted: mpsc::Receiver<Note>,
    /// Processes that were to be ended, and are still there.
    left: Vec<Left>,
    /// Which process this is.
    about: About,
    /// Changes that did not work.
    failures: Vec<Failure>,
    /// Another process says who serves.
    succeeded: bool,
    looks: Looks,
    /// Instances that are being ended.
    endings: Endings,
    /// A hand-over is about to begin.
    prepares: bool,
}

/// What was done beside the director.
#[derive(Debug)]
enum Note {
    /// The next epoch may be used without waiting for the disk; or why not.
    Reserved { next: Epoch, failed: Option<String> },
    /// An instance that was fenced could not be ended.
    Left(Left),
    /// A hand-over can begin.
    Prepared(Prepared),
}

/// A question of how an instance stands, which the answer is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    slot: Slot,
    life: u64,
    /// Whom it was to be in step with.
    primary: Slot,
    epoch: Epoch,
}

/// What a director is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) board: Arc<Switchboard>,
    pub(crate) synchroniser: Arc<dyn Synchroniser>,
    pub(crate) epochs: EpochFile,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) status: watch::Sender<Status>,
    /// Silence of the primary that is always allowed.
    pub(crate) grace: Duration,
    /// Which process this is.
    pub(crate) about: About,
    /// Instances that are being ended, also after the director has ended.
    pub(crate) endings: Endings,
}

impl Director {
    /// # Errors
    /// When the system has no timer for its looks.
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        let routing = parts.board.routing();
        let count = parts.board.instances().len();
        let (news, heard) = mpsc::channel(2 * count);
        let (notes, noted) = mpsc::channel(NOTES_MAX);
        Ok(Self {
            machine: Promotion::starting(routing.primary, routing.epoch),
            members: (0..count).map(|_| None).collect(),
            standings: vec![Standing::Away("it was not seen yet".to_owned()); count],
            detached: vec![Detached::No; count],
            board: parts.board,
            synchroniser: parts.synchroniser,
            epochs: Arc::new(parts.epochs),
            kept: None,
            reserved: 0,
            reserving: 0,
            orders: parts.orders,
            status: parts.status,
            grace: parts.grace,
            began: Instant::now(),
            down_since: Instant::now(),
            rest: None,
            unread: Unread::default(),
            ping: Ping::default(),
            transitions: Vec::new(),
            changed_at: None,
            running: None,
            asked: None,
            refused: false,
            lives: vec![0; count],
            asking: vec![false; count],
            news,
            heard,
            notes,
            noted,
            left: Vec::new(),
            about: parts.about,
            failures: Vec::new(),
            succeeded: false,
            looks: Looks::new(Instant::now())?,
            endings: parts.endings,
            prepares: false,
        })
    }

    /// Runs until nobody can order anything any more.
    pub(crate) async fn run(mut self) {
        let mut asked: Option<Instant> = None;
        let board = Arc::clone(&self.board);
        if self.machine.stage() == Stage::Warm {
            // It took the place of another process.
            self.reserve().await;
        }
        loop {
            let ask = asked.map_or_else(Instant::now, |asked| asked + self.standing_pause());
            // Whoever is heard of later than that was kept from hearing.
            let late_from = Instant::now() + LOOK;
            let primary = self.machine.primary();
            let waits = match self.machine.stage() {
                Stage::Suspect => Waits::All,
                _ => Waits::Requests,
            };
            let rests = self.rest.is_some_and(|until| Instant::now() < until);
            let end = self.member(primary).filter(|_| !rests);
            let end = end.map(Member::end);
            let standby = self.board.routing().standby;
            let standby = standby.filter(|_| self.machine.stage() == Stage::Warm);
            let standby_end = standby.and_then(|slot| self.member(slot)).map(Member::end);
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => {
                        self.obey(order).await;
                        if self.succeeded {
                            return;
                        }
                    }
                    None => return,
                },
                () = member::ended(end), if self.machine.stage() != Stage::Down => {
                    self.look(late_from).await;
                }
                () = member::ended(standby_end) => {
                    if let Some(slot) = standby {
                        // Whoever serves there next is another process, of which nothing is known
                        // until somebody says so.
                        self.members[slot] = None;
                        self.begin_life(slot, "its process ended");
                    }
                }
                refused = self.board.troubled() => {
                    self.refused = refused && self.is_refused().await;
                    self.look(late_from).await;
                }
                Some((asked, standing)) = self.heard.recv() => {
                    if let Some(asking) = self.asking.get_mut(asked.slot) {
                        *asking = false;
                    }
                    if self.is_current(asked) {
                        self.stands(asked.slot, standing).await;
                    }
                }
                Some(note) = self.noted.recv() => self.note(note).await,
                () = tokio::time::sleep_until(ask.into()) => {
                    self.ask_standings();
                    asked = Some(Instant::now());
                }
                due = self.looks.due(&board, primary, waits) => self.look(due).await,
            }
        }
    }

    async fn note(&mut self, note: Note) {
        match note {
            Note::Prepared(prepared) => self.hand_over(prepared).await,
            Note::Reserved { next, failed: None } => self.reserved = self.reserved.max(next),
            Note::Reserved {
                next,
                failed: Some(why),
            } => {
                let path = self.epochs.path().display();
                tracing::warn!(next, %path, why, "the next promotion has to wait for the disk");
            }
            Note::Left(left) => {
                tracing::error!(app = left.app, pid = left.pid, why = left.why, "not ended");
                self.left.retain(|other| other.app != left.app);
                self.left.push(left);
                self.publish();
            }
        }
    }

    fn standing_pause(&self) -> Duration {
        let changed = self.changed_at.is_some_and(|at| at.elapsed() < EAGER_BOUND);
        if changed && self.board.routing().standby.is_none() {
            STANDING_EAGER
        } else {
            STANDING
        }
    }

    fn member(&self, slot: Slot) -> Option<&Member> {
        self.members.get(slot).and_then(Option::as_ref)
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Joined {
                app,
                pid,
                fence,
                reply,
            } => {
                let joined = match self.place(&app) {
                    Ok(slot) => {
                        self.mourn(slot, pid).await;
                        self.join(slot, pid, fence)
                    }
                    Err(why) => Err(why),
                };
                // Whoever asked may have gone.
                reply.send(joined).ok();
                self.publish();
            }
            Order::HandOver(reply) => self.prepare(reply),
            Order::Promote(reply) => {
                let input = Input::Lost(Cause::Forced);
                self.change(Cause::Forced, input, reply).await;
            }
            Order::Resync(app, reply) => match self.shadow(&app) {
                Ok(slot) if self.renewal(slot) != Renewal::Never => {
                    reply.send(self.renew(slot)).ok();
                }
                Ok(slot) => self.follow(slot, Some(reply)),
                Err(why) => {
                    reply.send(Err(why)).ok();
                }
            },
            Order::Yield(reply, verdict, successor) => {
                self.give_way(reply, verdict, successor).await;
            }
            Order::Detach(app, detached, reply) => {
                let detach = self.shadow(&app).map(|slot| {
                    if let Some(place) = self.detached.get_mut(slot) {
                        *place = detached;
                    }
                    self.choose_standby();
                    self.publish();
                });
                reply.send(detach).ok();
            }
        }
    }

    /// Changes the primary because somebody asked for it.
    async fn change(
        &mut self,
        cause: Cause,
        input: Input,
        reply: oneshot::Sender<Result<Transition, String>>,
    ) {
        if let Some(why) = self.not_now() {
            reply.send(Err(why)).ok();
            return;
        }
        self.asked = Some(reply);
        self.begin(cause, &[]);
        self.drive(input).await;
    }

    /// The place of an instance.
    fn place(&self, app: &str) -> Result<Slot, String> {
        let mut instances = self.board.instances().iter();
        let place = instances.position(|instance| instance.app == app);
        place.ok_or_else(|| {
            let names = self.board.instances().iter();
            let names: Vec<&str> = names.map(|instance| instance.app.as_str()).collect();
            format!(
                "there is no instance `{app}`; there are: {}",
                names.join(", ")
            )
        })
    }

    /// The place of an instance that does not serve.
    fn shadow(&self, app: &str) -> Result<Slot, String> {
        let slot = self.place(app)?;
        if slot == self.machine.primary() {
            return Err(format!("{app} is the primary; hand over first"));
        }
        Ok(slot)
    }

    fn is_detached(&self, slot: Slot) -> bool {
        self.detached.get(slot) == Some(&Detached::Yes)
    }

    fn not_now(&self) -> Option<String> {
        match self.machine.stage() {
            Stage::Warm | Stage::Suspect => {}
            stage => return Some(format!("the front is busy ({stage:?}); try again")),
        }
        if self.board.routing().standby.is_none() {
            let why = self.standings.iter().enumerate();
            let why = why.filter(|(slot, _)| *slot != self.machine.primary());
            let why: Vec<String> = why
                .map(|(slot, standing)| {
                    let why = if self.is_detached(slot) {
                        "detached"
                    } else {
                        words(standing)
                    };
                    format!("{}: {why}", self.name(slot))
                })
                .collect();
            return Some(format!("no shadow can take over: {}", why.join("; ")));
        }
        None
    }

    fn name(&self, slot: Slot) -> &str {
        self.board
            .instances()
            .get(slot)
            .map_or("?", |instance| &instance.app)
    }

    /// A primary that is said to be another process than the one that is known died unseen: its
    /// shadow comes first, since the new process may have nothing of what the old one had.
    async fn mourn(&mut self, slot: Slot, pid: u32) {
        let serves = slot == self.machine.primary()
            && matches!(self.machine.stage(), Stage::Warm | Stage::Suspect);
        let died = self
            .member(slot)
            .is_some_and(|member| member.pid != pid && member.life() == Life::Ending);
        if serves && died {
            self.begin(Cause::Death, &[Evidence::Ended]);
            self.drive(Input::Lost(Cause::Death)).await;
        }
    }

    fn join(&mut self, slot: Slot, pid: u32, fence: Option<Fence>) -> Result<(), String> {
        let member = Member::new(pid, fence);
        let member = member.map_err(|error| format!("watch process {pid}: {error}"))?;
        let app = self.name(slot).to_owned();
        self.left.retain(|left| left.app != app || left.pid == pid);
        if let Some(fence) = &member.fence
            && slot != self.machine.primary()
        {
            let asked = fence.is_asked();
            let asked = asked.map_err(|error| format!("look at the fence of {app}: {error}"))?;
            if asked {
                // The front before this one fenced it, and did not come to end it. It would execute
                // what lies in its socket buffers.
                tracing::warn!(
                    app,
                    pid,
                    "it was fenced before this front began, and is ended"
                );
                self.end(app, pid, Arc::clone(fence));
                return Ok(());
            }
        }
        let place = self.members.get_mut(slot);
        let place = place.ok_or_else(|| format!("there is no instance {slot}"))?;
        let before = place.replace(member);
        // The daemon says again who runs when it was begun anew itself. A program that begins from an
        // image of itself has the number of the one that ended.
        if before.is_none_or(|before| before.pid != pid || before.has_ended()) {
            self.begin_life(slot, "it was not asked since it began");
            self.ask_standings();
        }
        Ok(())
    }

    /// Another process is meant by an instance from now on, or none: what the one before it said is
    /// worth nothing.
    fn begin_life(&mut self, slot: Slot, why: &str) {
        if let Some(life) = self.lives.get_mut(slot) {
            *life += 1;
        }
        // What the one before it was asked holds up no question to this one.
        if let Some(asking) = self.asking.get_mut(slot) {
            *asking = false;
        }
        if let Some(standing) = self.standings.get_mut(slot) {
            *standing = Standing::Away(why.to_owned());
        }
        self.choose_standby();
        self.publish();
    }

    /// Whether things still are as they were when it was asked. An answer of a primary that was
    /// replaced meanwhile would make it the shadow that is ready.
    fn is_current(&self, asked: Asked) -> bool {
        asked.epoch == self.machine.epoch()
            && asked.primary == self.machine.primary()
            && self.lives.get(asked.slot) == Some(&asked.life)
    }

    /// Whether a primary of whose process nothing is known refuses connections. One that broke
    /// says little: a request that crashes its handler would end its place otherwise.
    async fn is_refused(&self) -> bool {
        let primary = self.machine.primary();
        if self.member(primary).is_some() {
            return false;
        }
        let connecting = Stream::connect(self.board.address(primary));
        let connected = tokio::time::timeout(REFUSAL_BOUND, connecting).await;
        matches!(connected, Ok(Err(error)) if is_refusal(&error))
    }

    /// Looks at the primary, and acts on what is seen.
    async fn look(&mut self, due: Instant) {
        let now = Instant::now();
        let refused = std::mem::take(&mut self.refused);
        let primary = self.machine.primary();
        if matches!(self.machine.stage(), Stage::Down) || self.rest.is_some_and(|until| now < until)
        {
            return;
        }
        let flights = self.board.look(primary, self.grace);
        let waiting = flights.waiting;
        let idle = waiting.is_none_or(|waiting| waiting.time < WAIT_MIN);
        let life = match self.member(primary) {
            // Its end is noticed in any case.
            Some(member) => member.life(),
            None if refused => Life::Ending,
            None => Life::Alive,
        };
        let mut seen = Observation {
            life,
            waiting: waiting.map(|waiting| waiting.time),
            usual: waiting.and_then(|waiting| waiting.usual),
            progress: flights.heard,
            unread: None,
            ping: None,
            unanswered: Duration::ZERO,
            starved: None,
            late: now.saturating_duration_since(due),
            grace: flights.grace,
        };
        let bound = detection::silence_max(seen.usual, seen.grace);
        // A witness is asked early, so that it has lasted when it is needed.
        if !idle && seen.waiting.is_some_and(|time| time >= bound / 4) {
            let instance = self.board.instances().get(primary);
            // What another host's process leaves unread is not seen from here.
            let elsewhere = instance.is_some_and(|instance| instance.elsewhere.is_some());
            if elsewhere || self.synchroniser.witness() == Witness::Ping {
                let silence = self
                    .ping
                    .look(&self.board, &self.synchroniser, primary, now);
                (seen.ping, seen.unanswered) = (silence.out, silence.in_vain);
            } else if let Address::Tcp(address) = self.board.address(primary) {
                match self.unread.look(*address, bound, now) {
                    Ok(unread) => seen.unread = unread,
                    Err(error) => tracing::warn!(%error, "unread bytes cannot be seen"),
                }
            }
            if let Some(member) = self.members.get_mut(primary).and_then(Option::as_mut) {
                let whose = match self.synchroniser.witness() {
                    Witness::Unread => Whose::Own,
                    Witness::Ping => Whose::Family,
                };
                let keeps = member.keeps(whose, now);
                seen.starved = keeps.starved;
                if keeps.blocked && seen.life == Life::Alive {
                    seen.life = Life::Blocked;
                }
            }
        } else {
            self.unread.forget();
        }
        self.judge(&seen).await;
    }

    async fn judge(&mut self, seen: &Observation) {
        match detection::judge(seen) {
            Verdict::Well | Verdict::Excused(_) | Verdict::Suspect(_) => {
                if self.machine.stage() == Stage::Suspect {
                    self.running = None;
                    self.drive(Input::Cleared).await;
                }
            }
            Verdict::Lost(evidence) => {
                let cause = match evidence.as_slice() {
                    [Evidence::Ended] => Cause::Death,
                    [Evidence::Stopped] => Cause::Halt,
                    _ => Cause::Stall,
                };
                self.begin(cause, &evidence);
                self.drive(Input::Lost(cause)).await;
            }
        }
    }

    fn begin(&mut self, cause: Cause, evidence: &[Evidence]) {
        self.running = Some(Transition::begin(
            cause,
            evidence.iter().map(ToString::to_string).collect(),
            self.name(self.machine.primary()),
        ));
    }

    /// Takes in what happened, and carries out what follows until nothing does.
    async fn drive(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let standby = self.board.routing().standby;
            let steps = self.machine.step(self.began.elapsed(), input, standby);
            for step in steps {
                next = self.carry_out(step).await.or(next);
            }
        }
        self.note_failure();
        // What could not be done now cannot be done in the next instant either.
        let refused = self.running.as_ref().is_some_and(|r| !r.trouble.is_empty());
        self.rest = refused.then(|| Instant::now() + REST);
        match self.machine.stage() {
            Stage::Warm => self.finish(),
            Stage::Down => {
                self.down_since = Instant::now();
                self.disappoint();
            }
            _ => {}
        }
        self.choose_standby();
        self.publish();
        if self.machine.stage() == Stage::Warm {
            self.reserve().await;
        }
    }

    fn finish(&mut self) {
        let ended = self.running.take();
        let trouble = ended.as_ref().map(|ended| ended.trouble.join("; "));
        let done = ended.filter(|ended| ended.to.is_some());
        if let Some(transition) = &done {
            self.ask_standings();
            self.changed_at = Some(Instant::now());
            tracing::info!(%transition, "promoted");
            if self.transitions.len() == TRANSITIONS_MAX {
                self.transitions.remove(0);
            }
            self.transitions.push(transition.clone());
        }
        if let Some(asked) = self.asked.take() {
            let answer = done.ok_or_else(|| {
                let trouble = trouble.filter(|trouble| !trouble.is_empty());
                trouble.unwrap_or_else(|| "the shadow did not take over".to_owned())
            });
            asked.send(answer).ok();
        }
    }

    fn publish(&self) {
        let routing = self.board.routing();
        let members = self
            .board
            .instances()
            .iter()
            .zip(&self.standings)
            .zip(&self.members)
            .zip(&self.detached);
        let members = members.map(|(((instance, standing), member), detached)| MemberStatus {
            app: instance.app.clone(),
            address: instance.address.clone(),
            elsewhere: instance.elsewhere.clone(),
            pid: member.as_ref().map(|member| member.pid),
            fence: member.as_ref().is_some_and(|member| member.fence.is_some()),
            standing: standing.clone(),
            detached: *detached == Detached::Yes,
        });
        let status = Status {
            stage: format!("{:?}", self.machine.stage()).to_lowercase(),
            epoch: routing.epoch,
            primary: routing.primary,
            standby: routing.standby,
            members: members.collect(),
            transitions: self.transitions.clone(),
            left: self.left.clone(),
            failures: self.failures.clone(),
            about: self.about.clone(),
        };
        self.status.send_if_modified(|before| {
            let changed = *before != status;
            if changed {
                *before = status;
            }
            changed
        });
    }
}

fn words(standing: &Standing) -> &str {
    match standing {
        Standing::Ready { .. } => "ready",
        Standing::Behind(why) | Standing::Away(why) => why,
    }
}

mod endings;
mod looks;
mod prepare;
mod standings;
mod steps;
mod succeed;
#[cfg(test)]
mod tests;
mod ticks;

pub(crate) use endings::Endings;
use looks::{LOOK, Looks, Waits};
use prepare::Prepared;
pub(crate) use succeed::Heritage;
