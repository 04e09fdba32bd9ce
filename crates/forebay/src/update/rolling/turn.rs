//! This host's part in rolling updates: a thread that looks whether it is its turn.
//!
//! What it did is in two places, the coordinator's record and this host's journal of updates, and a crash may
//! come between any two writes. The order makes it whole: the slot is taken before the update is written into
//! the journal, under the key of the attempt; the slot is given back after the journal says how it ended. So a
//! daemon that comes back looks for the key: none in the journal begins it, one under way or over goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_api as api;
use forebay_core::app::Policy;
use forebay_core::fleet::HostName;
use forebay_core::fleet::rolling::{Ears, Opening, Phase, Rolling, Rollout, Turn};
use forebay_core::report::EventKind;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};

use super::super::{Refused, receipt, unix_ms};
use super::{Desk, RollError, open_now};
use crate::control::Command;
use crate::fleet::coordinator::now;
use crate::fleet::member;

/// How often it is looked while no rolling update concerns this host soon.
const LOOK_IDLE: Duration = Duration::from_secs(5);
/// How often while one does.
const LOOK: Duration = Duration::from_millis(500);
/// A host that so many wait before for each slot does not look often.
const NEAR: usize = 2;
/// How long an update of this host may be kept from beginning, by another one or a package manager.
const BEGIN_MAX: Duration = Duration::from_secs(600);

/// How far the update of an attempt is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Own {
    /// It was never begun.
    Unknown,
    /// It is under way.
    Goes {
        /// How far.
        stage: String,
        /// What somebody has to do.
        next: String,
    },
    /// It is over: well, or why not.
    Over(Result<(), String>),
}

impl super::super::Desk {
    /// How far the update of an attempt is.
    fn of_attempt(&self, key: &str) -> Own {
        let content = self.0.book.content();
        let is_it = |rollout: &Option<String>| rollout.as_deref() == Some(key);
        if let Some(entry) = content.current.filter(|entry| is_it(&entry.rollout)) {
            let stuck = super::super::locked(&self.0.stuck).clone();
            let output = self.0.place.output(entry.record.number, entry.record.runs);
            let shown = receipt::current(&entry, &output, None, stuck);
            return Own::Goes {
                stage: shown.stage,
                next: shown.next,
            };
        }
        let over = content.history.iter().rev();
        match over.into_iter().find(|one| is_it(&one.rollout)) {
            None => Own::Unknown,
            Some(one) if one.outcome == "committed" => Own::Over(Ok(())),
            Some(one) => {
                let troubles = one.troubles.join("; ");
                Own::Over(Err(format!("{}: {troubles}", one.outcome)))
            }
        }
    }

    fn tell(&self, said: String) {
        tracing::info!(said, "a rolling update");
        let told = Command::Tell(EventKind::Update, said);
        if self.0.commands.try_send(told).is_err() {
            tracing::warn!("an event was not told");
        }
    }
}

/// What this host is asked to do, of what all hosts are.
fn own_request(rollout: &Rollout, policy: &Policy) -> api::UpdateRequest {
    let wanted = rollout.wanted.clone();
    let is_here = |name: &String| {
        let id = name.parse().ok();
        id.is_some_and(|id| policy.apps.contains_key(&id))
    };
    api::UpdateRequest {
        command: wanted.command,
        directory: wanted.directory,
        rollback: wanted.rollback,
        limit_seconds: wanted.limit_seconds,
        well_within_seconds: wanted.well_within_seconds,
        restart: wanted.restart.into_iter().filter(is_here).collect(),
        reboot: wanted.reboot,
        rung: wanted.rung,
        rehearse: wanted.rehearse,
        unproved: wanted.unproved,
    }
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Roller {
    desk: Desk,
    /// Dropped to end the thread.
    stop: watch::Sender<()>,
    thread: JoinHandle<()>,
}

impl Roller {
    /// Starts it; what it had begun goes on.
    ///
    /// # Errors
    /// When the system starts no thread.
    pub(crate) fn start(member: member::Desk, update: super::super::Desk) -> std::io::Result<Self> {
        let desk = Desk {
            member,
            update,
            wake: Arc::new(Notify::new()),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = watch::channel(());
        let job = Job {
            desk: desk.clone(),
            ears: Ears::default(),
            beaten: None,
            kept_since: None,
            lost: false,
        };
        let thread = std::thread::Builder::new()
            .name("rolling".to_owned())
            .spawn(move || job.run(&runtime, stopped))?;
        Ok(Self { desk, stop, thread })
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Ends it where it stands: whoever comes next goes on.
    pub(crate) fn stop(self) {
        let Self { desk, stop, thread } = self;
        drop((desk, stop));
        if thread.join().is_err() {
            tracing::error!("the thread of rolling updates panicked; see its message above");
        }
    }
}

struct Job {
    desk: Desk,
    ears: Ears,
    /// What was said last of an attempt, and when.
    beaten: Option<(String, (String, String), Duration)>,
    /// Since when an attempt is kept from beginning.
    kept_since: Option<(String, Duration)>,
    /// The coordinator was not reached last time.
    lost: bool,
}

impl Job {
    fn run(mut self, runtime: &Runtime, mut stopped: watch::Receiver<()>) {
        let wake = Arc::clone(&self.desk.wake);
        while stopped.has_changed().is_ok() {
            let pause = match self.step(runtime) {
                Ok(pause) => {
                    self.lost = false;
                    pause
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.lost, true) {
                        tracing::warn!(%error, "this host begins no update of a rolling one; trying on");
                    }
                    LOOK_IDLE
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped.changed() => {}
                    () = wake.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            });
        }
    }

    fn step(&mut self, runtime: &Runtime) -> Result<Duration, RollError> {
        let read = self.desk.member.coordinator.rolling();
        let (_, rolling) = read.map_err(RollError::Coordinator)?;
        self.listen(&rolling)?;
        let Some(rollout) = rolling.rollout.clone() else {
            return Ok(LOOK_IDLE);
        };
        let here = self.desk.member.host.clone();
        let there = self.there();
        let opening = open_now(&rollout);
        match rolling.turn(&here, &there, opening) {
            Turn::Take => {
                // What was looked at last may be of before another one came, whose turn it is.
                let there = self.desk.member.coordinator.hosts();
                let there = there.map_err(RollError::Coordinator)?;
                let there: BTreeSet<HostName> = there.into_keys().collect();
                if rolling.turn(&here, &there, opening) != Turn::Take {
                    return Ok(LOOK);
                }
                self.take(&rollout, &there, opening)?;
                // What it took may be carried on at once.
                return Ok(Duration::ZERO);
            }
            Turn::CarryOn => self.carry_on(&rollout, runtime)?,
            Turn::Nothing => return Ok(LOOK_IDLE),
            Turn::Wait(_) => {
                let near = usize::try_from(rollout.at_once).unwrap_or(usize::MAX);
                let near = near.saturating_mul(NEAR);
                if rollout.place(&here).is_none_or(|place| place >= near) {
                    return Ok(LOOK_IDLE);
                }
            }
        }
        Ok(LOOK)
    }

    /// Who is there. This host is, whatever was read last.
    fn there(&self) -> BTreeSet<HostName> {
        let members = Arc::clone(&self.desk.member.standing.borrow().members);
        let others = members.keys().cloned();
        others.chain([self.desk.member.host.clone()]).collect()
    }

    /// Notes who has said nothing for too long.
    fn listen(&mut self, rolling: &Rolling) -> Result<(), RollError> {
        let here = &self.desk.member.host;
        let mut silent = self.ears.hear(rolling, now());
        silent.retain(|(name, _)| name != here);
        if silent.is_empty() {
            return Ok(());
        }
        self.desk.amend(|rolling| {
            for (name, beat) in &silent {
                rolling.silent(name, *beat);
            }
            Ok(())
        })?;
        for (name, _) in silent {
            self.desk.update.tell(format!(
                "rolling update: nothing is heard of {name}, and no other host begins"
            ));
        }
        Ok(())
    }

    fn take(
        &self,
        rollout: &Rollout,
        there: &BTreeSet<HostName>,
        opening: Opening,
    ) -> Result<(), RollError> {
        let here = &self.desk.member.host;
        let taken = self.desk.amend(|rolling| {
            // Somebody may have called it off meanwhile, or taken the slot: then it is no turn.
            let same = rolling.rollout.as_ref();
            if same.is_none_or(|same| same.number != rollout.number) {
                return Ok(false);
            }
            Ok(rolling.take(here, there, opening, unix_ms()).is_ok())
        })?;
        if taken {
            self.desk.update.tell(format!(
                "rolling update {}: {here} has a slot, and begins",
                rollout.number
            ));
        }
        Ok(())
    }

    /// Goes on with this host's own update, from wherever it was left.
    fn carry_on(&mut self, rollout: &Rollout, runtime: &Runtime) -> Result<(), RollError> {
        let here = self.desk.member.host.clone();
        let Some(host) = rollout.host(&here) else {
            return Ok(());
        };
        let key = rollout.key(host.attempt);
        match self.desk.update.of_attempt(&key) {
            Own::Goes { stage, next } => self.beat(rollout, &key, (stage, next)),
            Own::Over(how) => self.ended(rollout, how),
            Own::Unknown if rollout.phase() == Phase::Ending => {
                self.ended(rollout, Err("called off before it began".to_owned()))
            }
            Own::Unknown => match runtime.block_on(self.begin(rollout, &key)) {
                Ok(_) => Ok(()),
                Err(Refused::Mistake(why)) => self.ended(rollout, Err(why)),
                Err(Refused::Cannot(why)) => self.kept(rollout, key, why),
            },
        }
    }

    async fn begin(&self, rollout: &Rollout, key: &str) -> Result<u64, Refused> {
        let update = &self.desk.update;
        let policy = update.0.policy().await.map_err(Refused::Cannot)?;
        let request = own_request(rollout, &policy);
        update.begin_for(request, Some(key.to_owned())).await
    }

    /// It cannot begin now: what keeps it may pass.
    fn kept(&mut self, rollout: &Rollout, key: String, why: String) -> Result<(), RollError> {
        let since = self.kept_since.as_ref().filter(|(of, _)| *of == key);
        let since = since.map_or_else(now, |(_, since)| *since);
        self.kept_since = Some((key.clone(), since));
        if now().saturating_sub(since) >= BEGIN_MAX {
            return self.ended(
                rollout,
                Err(format!(
                    "it could not begin for {} s: {why}",
                    BEGIN_MAX.as_secs()
                )),
            );
        }
        self.beat(rollout, &key, ("cannot begin yet".to_owned(), why))
    }

    /// Says how far it is, where that changed or is due.
    fn beat(
        &mut self,
        rollout: &Rollout,
        key: &str,
        said: (String, String),
    ) -> Result<(), RollError> {
        let is_news = self.beaten.as_ref().is_none_or(|(of, last, at)| {
            *of != key || *last != said || now().saturating_sub(*at) >= rollout.beat_every()
        });
        if !is_news {
            return Ok(());
        }
        let here = &self.desk.member.host;
        self.desk.amend(|rolling| {
            rolling.beat(here, &said.0, &said.1);
            Ok(())
        })?;
        self.beaten = Some((key.to_owned(), said, now()));
        Ok(())
    }

    fn ended(&self, rollout: &Rollout, how: Result<(), String>) -> Result<(), RollError> {
        let here = &self.desk.member.host;
        self.desk.amend(|rolling| {
            rolling.ended(here, how.clone());
            Ok(())
        })?;
        let number = rollout.number;
        self.desk.update.tell(match how {
            Ok(()) => format!("rolling update {number}: {here} is updated"),
            Err(why) => format!("rolling update {number} stops: {here}: {why}"),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_restarts_the_apps_that_it_has() {
        let mut policy = Policy::default();
        let app = forebay_core::app::App::new(
            "web".parse().unwrap(),
            forebay_core::app::Class::Standard,
            forebay_core::app::Binding::Exec(forebay_core::app::Exec::of(vec!["sh".to_owned()])),
        );
        policy.apps.insert(app.id.clone(), app);
        let rollout = Rollout {
            number: 1,
            began_unix_ms: 1,
            by: "a".parse().unwrap(),
            wanted: forebay_core::fleet::rolling::Wanted {
                command: vec!["true".to_owned()],
                restart: vec!["db".to_owned(), "web".to_owned()],
                ..Default::default()
            },
            group: "default".to_owned(),
            at_once: 1,
            window: None,
            silence: LOOK,
            hosts: Vec::new(),
            called_off: false,
        };
        assert_eq!(own_request(&rollout, &policy).restart, ["web"]);
    }
}
