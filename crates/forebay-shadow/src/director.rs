//! Watches the primary and carries a promotion out.
//!
//! The rules are [`forebay_core::shadow`]'s. One task gathers what they ask for: every two
//! milliseconds while somebody waits, else when the kernel says that the process ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::shadow::detection::{self, Evidence, Life, Observation, Verdict};
use forebay_core::shadow::promotion::{Cause, Epoch, Input, Promotion, Slot, Stage, Step};
use tokio::sync::{mpsc, oneshot, watch};

use crate::epoch::{EpochFile, Record};
use crate::fence::Fence;
use crate::member::{self, FENCE_POLL, Member};
use crate::ping::Ping;
use crate::status::{MemberStatus, Status, Transition};
use crate::stream::Address;
use crate::switchboard::{Gate, Switchboard};
use crate::synchronise::{Standing, Synchroniser, Witness};
use crate::unread::{self, Unread};

/// How often the primary is looked at while somebody waits.
const LOOK: Duration = Duration::from_millis(2);
/// And while nobody does; its end is told by the kernel.
const LOOK_IDLE: Duration = Duration::from_millis(50);
/// Waits shorter than this are not looked into.
const WAIT_MIN: Duration = Duration::from_millis(2);
/// How often it is asked how the shadow stands.
const STANDING: Duration = Duration::from_millis(250);
/// How long requests to a primary that is to hand over may take.
const SETTLE_BOUND: Duration = Duration::from_secs(1);
/// How long a shadow may take to take over.
const PROMOTE_BOUND: Duration = Duration::from_secs(10);
/// How long another than the last primary waits for that one when nobody serves: it knows most.
const FIRST_CHOICE_BOUND: Duration = Duration::from_secs(2);
/// Transitions that are remembered.
const TRANSITIONS_MAX: usize = 64;

/// What the director is asked for.
#[derive(Debug)]
pub(crate) enum Order {
    /// An instance runs, as this process, behind this fence if there is one.
    Joined {
        /// Which.
        slot: Slot,
        /// Its main process.
        pid: u32,
        /// What stops it.
        fence: Option<Fence>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The shadow is to take over in order.
    HandOver(oneshot::Sender<Result<Transition, String>>),
}

/// The task.
#[derive(Debug)]
pub(crate) struct Director {
    board: Arc<Switchboard>,
    machine: Promotion,
    members: Vec<Option<Member>>,
    standings: Vec<Standing>,
    synchroniser: Arc<dyn Synchroniser>,
    epochs: Arc<EpochFile>,
    /// What the file says, as far as this process wrote it.
    durable: Option<Record>,
    orders: mpsc::Receiver<Order>,
    status: watch::Sender<Status>,
    began: Instant,
    /// Since when nobody serves, if nobody does.
    down_since: Instant,
    unread: Unread,
    ping: Ping,
    transitions: Vec<Transition>,
    /// The transition that goes on, and who waits for its end.
    running: Option<Transition>,
    asked: Option<oneshot::Sender<Result<Transition, String>>>,
    /// A connection to the primary was refused since the last look.
    refused: bool,
    news: mpsc::Sender<(Slot, Standing)>,
    heard: mpsc::Receiver<(Slot, Standing)>,
}

/// What a director is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) board: Arc<Switchboard>,
    pub(crate) synchroniser: Arc<dyn Synchroniser>,
    pub(crate) epochs: EpochFile,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) status: watch::Sender<Status>,
}

impl Director {
    pub(crate) fn new(parts: Parts) -> Self {
        let routing = parts.board.routing();
        let count = parts.board.instances().len();
        let (news, heard) = mpsc::channel(2 * count);
        Self {
            machine: Promotion::starting(routing.primary, routing.epoch),
            members: (0..count).map(|_| None).collect(),
            standings: vec![Standing::Away("it was not seen yet".to_owned()); count],
            board: parts.board,
            synchroniser: parts.synchroniser,
            epochs: Arc::new(parts.epochs),
            durable: None,
            orders: parts.orders,
            status: parts.status,
            began: Instant::now(),
            down_since: Instant::now(),
            unread: Unread::default(),
            ping: Ping::default(),
            transitions: Vec::new(),
            running: None,
            asked: None,
            refused: false,
            news,
            heard,
        }
    }

    /// Runs until nobody can order anything any more.
    pub(crate) async fn run(mut self) {
        let mut ask = tokio::time::interval(STANDING);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let busy = self.board.flights.count(self.machine.primary()) > 0
                || self.machine.stage() == Stage::Suspect;
            let due = Instant::now() + if busy { LOOK } else { LOOK_IDLE };
            let end = self.member(self.machine.primary()).map(Member::end);
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                () = member::ended(end), if self.machine.stage() != Stage::Down => self.look(due).await,
                () = self.board.troubled() => {
                    self.refused = true;
                    self.look(due).await;
                }
                Some((slot, standing)) = self.heard.recv() => self.stands(slot, standing).await,
                _ = ask.tick() => self.ask_standings(),
                () = tokio::time::sleep_until(due.into()) => self.look(due).await,
            }
        }
    }

    fn member(&self, slot: Slot) -> Option<&Member> {
        self.members.get(slot).and_then(Option::as_ref)
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Joined {
                slot,
                pid,
                fence,
                reply,
            } => {
                let joined = self.join(slot, pid, fence);
                // Whoever asked may have gone.
                reply.send(joined).ok();
                self.publish();
            }
            Order::HandOver(reply) => {
                if let Some(why) = self.not_now() {
                    reply.send(Err(why)).ok();
                    return;
                }
                self.asked = Some(reply);
                self.begin(Cause::Planned, &[]);
                self.drive(Input::HandOver).await;
            }
        }
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
                .map(|(slot, standing)| format!("{}: {}", self.name(slot), words(standing)))
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

    fn join(&mut self, slot: Slot, pid: u32, fence: Option<Fence>) -> Result<(), String> {
        let place = self
            .members
            .get_mut(slot)
            .ok_or_else(|| format!("there is no instance {slot}"))?;
        let member = Member::new(pid, fence);
        *place = Some(member.map_err(|error| format!("watch process {pid}: {error}"))?);
        Ok(())
    }

    /// Asks, beside this task, how every instance stands.
    fn ask_standings(&mut self) {
        let primary = self.machine.primary();
        for slot in 0..self.members.len() {
            let (board, news) = (Arc::clone(&self.board), self.news.clone());
            let synchroniser = Arc::clone(&self.synchroniser);
            // One that has not answered yet is not asked again: there is room for one answer each.
            let Ok(permit) = news.try_reserve_owned() else {
                return;
            };
            tokio::spawn(async move {
                let instances = board.instances();
                let (Some(this), Some(first)) = (instances.get(slot), instances.get(primary))
                else {
                    return;
                };
                let standing = if slot == primary {
                    match synchroniser.ping(this).await {
                        Ok(()) => Standing::Ready { lag: None },
                        Err(why) => Standing::Away(why),
                    }
                } else {
                    synchroniser.standing(this, first).await
                };
                permit.send((slot, standing));
            });
        }
    }

    async fn stands(&mut self, slot: Slot, standing: Standing) {
        let ready = matches!(standing, Standing::Ready { .. });
        if let Standing::Behind(why) = &standing
            && self.machine.stage() == Stage::Warm
            && slot != self.machine.primary()
        {
            tracing::debug!(app = self.name(slot), why, "the shadow is not in step");
            self.follow(slot);
        }
        if let Some(place) = self.standings.get_mut(slot) {
            *place = standing;
        }
        self.choose_standby();
        self.publish();
        let first_choice = slot == self.machine.primary();
        let may_begin = first_choice || self.down_since.elapsed() >= FIRST_CHOICE_BOUND;
        if ready && may_begin && self.machine.stage() == Stage::Down {
            if self.running.is_none() {
                self.begin(Cause::Death, &[]);
            }
            self.drive(Input::Available(slot)).await;
        }
    }

    fn choose_standby(&self) {
        let primary = self.machine.primary();
        let ready = |slot: &Slot| {
            *slot != primary && matches!(self.standings.get(*slot), Some(Standing::Ready { .. }))
        };
        let standby = (0..self.members.len()).find(ready);
        if self.board.routing().standby != standby {
            self.board.change(|routing| routing.standby = standby);
        }
    }

    /// Makes an instance follow the primary, beside this task.
    fn follow(&self, slot: Slot) {
        let (board, synchroniser) = (Arc::clone(&self.board), Arc::clone(&self.synchroniser));
        let primary = self.machine.primary();
        tokio::spawn(async move {
            let instances = board.instances();
            let (Some(shadow), Some(first)) = (instances.get(slot), instances.get(primary)) else {
                return;
            };
            if let Err(why) = synchroniser.follow(shadow, first).await {
                tracing::warn!(app = shadow.app, why, "the shadow does not follow");
            }
        });
    }

    /// Looks at the primary, and acts on what is seen.
    async fn look(&mut self, due: Instant) {
        let now = Instant::now();
        let refused = std::mem::take(&mut self.refused);
        let primary = self.machine.primary();
        if matches!(self.machine.stage(), Stage::Down) {
            return;
        }
        let waiting = self.board.flights.waiting(primary);
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
            progress: self.board.flights.heard(primary),
            unread: None,
            ping: None,
            starved: None,
            late: now.saturating_duration_since(due),
            grace: Duration::ZERO,
        };
        let bound = detection::silence_max(seen.usual, seen.grace);
        // A witness is asked early, so that it has lasted when it is needed.
        if !idle && seen.waiting.is_some_and(|time| time >= bound / 4) {
            let witness = self.synchroniser.witness();
            if witness == Witness::Ping {
                seen.ping = self.ping.out(&self.board, &self.synchroniser, primary, now);
            } else if let Address::Tcp(address) = self.board.address(primary) {
                match unread::queues(*address) {
                    Ok(queues) => seen.unread = self.unread.add(&queues, now),
                    Err(error) => tracing::warn!(%error, "unread bytes cannot be seen"),
                }
            }
            let member = self.members.get_mut(primary).and_then(Option::as_mut);
            seen.starved = member.and_then(|member| member.starved(now));
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
                let dead = evidence.contains(&Evidence::Ended);
                let cause = if dead { Cause::Death } else { Cause::Stall };
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
        match self.machine.stage() {
            Stage::Warm => self.finish(),
            Stage::Down => self.down_since = Instant::now(),
            _ => {}
        }
        self.choose_standby();
        self.publish();
    }

    fn finish(&mut self) {
        let done = self.running.take().filter(|running| running.to.is_some());
        if let Some(transition) = &done {
            tracing::info!(%transition, "promoted");
            if self.transitions.len() == TRANSITIONS_MAX {
                self.transitions.remove(0);
            }
            self.transitions.push(transition.clone());
        }
        if let Some(asked) = self.asked.take() {
            let answer =
                done.ok_or_else(|| "the shadow did not take over; see `forebay events`".to_owned());
            asked.send(answer).ok();
        }
    }

    async fn carry_out(&mut self, step: Step) -> Option<Input> {
        let began = Instant::now();
        let outcome = match step {
            Step::Hold => {
                self.board.change(|routing| routing.gate = Gate::Held);
                return None;
            }
            Step::Release => {
                self.board.change(|routing| routing.gate = Gate::Open);
                return None;
            }
            Step::Unfence(slot) => {
                self.unfence(slot);
                return None;
            }
            Step::Kill(slot) => {
                self.kill(slot);
                return None;
            }
            Step::Drain(slot) => {
                self.follow(slot);
                return None;
            }
            Step::Fence(slot) => self.fence(slot).await,
            Step::Settle(slot) => self.settle(slot).await,
            Step::Promote(slot, epoch) => self.promote(slot, epoch).await,
            Step::Replay(slot) => {
                let epoch = self.machine.epoch();
                let planned = self.machine.cause() == Some(Cause::Planned);
                self.board.change(|routing| {
                    routing.epoch = epoch;
                    routing.primary = slot;
                    routing.standby = None;
                    if !planned {
                        routing.lost_before = epoch;
                    }
                });
                // Those that were interrupted come before those that wait.
                tokio::task::yield_now().await;
                Ok(())
            }
        };
        if let Some(running) = &mut self.running {
            running.took(step, began.elapsed());
        }
        Some(match outcome {
            Ok(()) => Input::Done,
            Err(why) => {
                tracing::error!(?step, why, "a step of a promotion failed");
                if let Some(running) = &mut self.running {
                    running.trouble.push(why);
                }
                Input::Refused
            }
        })
    }

    /// Stops the old primary and makes the next epoch durable at the same time.
    async fn fence(&mut self, slot: Slot) -> Result<(), String> {
        let record = self
            .machine
            .next()
            .map(|(primary, epoch)| Record { epoch, primary });
        let stood = self.stand(slot);
        let Some(record) = record else {
            return stood.await;
        };
        let (stood, written) = tokio::join!(stood, self.write(record));
        written?;
        self.durable = Some(record);
        stood
    }

    fn write(&self, record: Record) -> impl Future<Output = Result<(), String>> + use<> {
        let epochs = Arc::clone(&self.epochs);
        async move {
            let path = epochs.path().display().to_string();
            let written = tokio::task::spawn_blocking(move || epochs.write(record)).await;
            match written {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("write epoch {} to {path}: {error}", record.epoch)),
                Err(error) => Err(format!("write epoch {} to {path}: {error}", record.epoch)),
            }
        }
    }

    fn stand(&self, slot: Slot) -> impl Future<Output = Result<(), String>> + use<> {
        let member = self.member(slot);
        member::stop(
            self.name(slot).to_owned(),
            member.and_then(|member| member.fence.clone()),
            member.map(Member::life),
            self.machine.cause(),
        )
    }

    fn unfence(&self, slot: Slot) {
        let fence = self.member(slot).and_then(|member| member.fence.as_ref());
        if let Some(Err(error)) = fence.map(|fence| fence.thaw()) {
            tracing::error!(app = self.name(slot), %error, "thaw");
        }
    }

    /// Ends the old primary; its group is let go once nobody is left in it.
    fn kill(&mut self, slot: Slot) {
        let name = self.name(slot).to_owned();
        let Some(member) = self.members.get_mut(slot).and_then(Option::take) else {
            return;
        };
        if let Some(standing) = self.standings.get_mut(slot) {
            *standing = Standing::Away("it was fenced and ended".to_owned());
        }
        if let Some(fence) = member.fence {
            tokio::spawn(member::end(name, fence));
        }
    }

    async fn settle(&mut self, slot: Slot) -> Result<(), String> {
        let deadline = Instant::now() + SETTLE_BOUND;
        while self.board.flights.count(slot) > 0 {
            if Instant::now() >= deadline {
                return Err(format!(
                    "{} requests to {} took longer than {} s",
                    self.board.flights.count(slot),
                    self.name(slot),
                    SETTLE_BOUND.as_secs()
                ));
            }
            tokio::time::sleep(FENCE_POLL).await;
        }
        let instances = self.board.instances();
        let to = self.machine.next().and_then(|(to, _)| instances.get(to));
        let (Some(old), Some(to)) = (instances.get(slot), to) else {
            return Ok(());
        };
        let settled = self.synchroniser.settle(old, to);
        match tokio::time::timeout(PROMOTE_BOUND, settled).await {
            Ok(settled) => settled,
            Err(_) => Err(format!(
                "{} did not get all of {} within {} s",
                to.app,
                old.app,
                PROMOTE_BOUND.as_secs()
            )),
        }
    }

    async fn promote(&mut self, slot: Slot, epoch: Epoch) -> Result<(), String> {
        let record = Record {
            epoch,
            primary: slot,
        };
        if self.durable != Some(record) {
            self.write(record).await?;
            self.durable = Some(record);
        }
        let Some(instance) = self.board.instances().get(slot) else {
            return Err(format!("there is no instance {slot}"));
        };
        if let Some(running) = &mut self.running {
            running.to = Some(instance.app.clone());
            running.epoch = epoch;
        }
        let promoted = self.synchroniser.promote(instance);
        match tokio::time::timeout(PROMOTE_BOUND, promoted).await {
            Ok(promoted) => promoted,
            Err(_) => Err(format!(
                "promote {}: it did not take over within {} s",
                instance.app,
                PROMOTE_BOUND.as_secs()
            )),
        }
    }

    fn publish(&self) {
        let routing = self.board.routing();
        let members = self
            .board
            .instances()
            .iter()
            .zip(&self.standings)
            .zip(&self.members);
        let members = members.map(|((instance, standing), member)| MemberStatus {
            app: instance.app.clone(),
            address: instance.address.clone(),
            pid: member.as_ref().map(|member| member.pid),
            fence: member.as_ref().is_some_and(|member| member.fence.is_some()),
            standing: standing.clone(),
        });
        let status = Status {
            stage: format!("{:?}", self.machine.stage()).to_lowercase(),
            epoch: routing.epoch,
            primary: routing.primary,
            standby: routing.standby,
            members: members.collect(),
            transitions: self.transitions.clone(),
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

fn words(standing: &Standing) -> String {
    match standing {
        Standing::Ready { .. } => "ready".to_owned(),
        Standing::Behind(why) | Standing::Away(why) => why.clone(),
    }
}
