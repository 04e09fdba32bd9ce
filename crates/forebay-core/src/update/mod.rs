//! An update of the operating system: its stages, and what follows which.
//!
//! # Problem
//! A command changes the system under applications that matter. It may fail, hang or hurt them, and
//! the daemon or the host may die at any moment of it.
//!
//! # Approach
//! A [`Record`] says how far an update is. The stage names what is being done; [`Record::deed`] is that,
//! and [`Record::after`] is the record once it was done. Whoever carries an update out loops:
//!
//! ```text
//! deed = record.deed();  fact = do it;  record = record.after(fact);  make the record durable
//!
//! planned ─▶ locked ─▶ isolated ─▶ [leaving] ─▶ synced ─▶ updating ─▶ [reboot_pending] ─▶ restoring ─▶ verifying
//!                                                            └─▶ [departing] ─▶ reviving ──┘ (undoing, where
//!                                                                                             another kernel came up)
//!    │          │          │           │           │          │ fails        ▲                        sick │ │ well
//!    │          │          │           │           │          └──▶ undoing ──┴◀────────────────────────────┘ │
//!    │          │          │           └───────────┴─────┐     (rollback command, at most twice)             │
//!    └──────────┴──────────┴────────────────┐            ▼                                                   │
//!                                           ▼◀─── [returning] ◀──────────────────────────────────────────────┘
//!                                        closing
//!                                           ▼
//!                                  committed, rolled_back or alarmed
//! ```
//!
//! # Properties
//! - A crash repeats the deed of the stage that is on disk and no other; deeds are idempotent by their
//!   [`Step`], which names the update, the deed, the run and the boot.
//! - The command begins at most once, and each rollback as well: there are at most two.
//! - An app that is kept over a boot is ended only after its image is whole, and `departing` can be repeated in
//!   the boot that it began in, which is on disk: who runs is written down again. In any other boot it is over.
//! - A reboot that is waited for ends the boot that the command ended in: one before it, as by a power cut, is none.
//! - So it is with a new beginning of userspace alone (`soft`): what tells one userspace from another takes the
//!   place of the boot, and apps that run on are none that is ended; that they did is seen by their lives.
//! - Every path ends in `closing`, which takes away what the update put up; every path on which apps went to
//!   other hosts comes through `returning`.
//!
//! Where apps are told (`tell`), `telling` comes before `synced`; `restoring` and `closing` tell them that it is
//! over. Where apps are kept (`keep`), `rehearsing` comes before `departing`: a kernel that does not pass leads to
//! `restoring`, or to `undoing`, and nobody is written down for it.
//!
//! The tests enumerate every crash of every path.

mod health;
mod hold;
mod rehearsal;
mod rung;
mod tell;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::AppId;
use crate::idset::CpuSet;
use crate::units::Bytes;

pub use health::{ANSWERS_MIN, Looked, judge};
pub use hold::{BETWEEN, FROZEN_MAX, Hold, PERSISTENCE, Turn, suffers};
pub use rehearsal::{Kernel, REHEARSALS_MAX, Rehearsal, Rehearse, Verdict};
pub use rung::{
    Choice, Front, Keeps, Rung, Soft, Subject, WAYS_OF_A_BOOT, Way, choose, ends_the_host,
    ends_userspace, falls_short,
};
pub use tell::{Answered, Call, Heard, Otherwise, Part, heard};

/// Rollbacks of one update.
pub const ROLLBACKS_MAX: u32 = 2;
/// Troubles that are remembered of one update.
pub const TROUBLES_MAX: usize = 32;

/// How long apps may take to be well after an update that does not say.
pub const WELL_WITHIN_USUAL: Duration = Duration::from_secs(60);

const fn well_within_usual() -> Duration {
    WELL_WITHIN_USUAL
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What updates: a program and its arguments, never empty.
    pub command: Vec<String>,
    /// Where it runs.
    pub directory: PathBuf,
    /// What undoes it, where something does.
    pub rollback: Option<Vec<String>>,
    /// How long it, and what undoes it, may take.
    pub limit: Duration,
    /// How long each program that is restarted may take to run, and then all apps to be well, before it is undone.
    #[serde(default = "well_within_usual")]
    pub well_within: Duration,
    /// Apps that are restarted whether they run outdated code or not.
    pub restart: BTreeSet<AppId>,
    /// It is complete only after the host began anew.
    pub reboot: bool,
    /// It goes on where the slice could not be shown to protect critical apps.
    pub unproved: bool,
    /// Apps that can move are on other hosts meanwhile.
    #[serde(default)]
    pub elsewhere: bool,
    /// Apps that can are kept as images over the reboot, which Forebay has the host do.
    #[serde(default)]
    pub keep: bool,
    /// Whether the kernel that comes is rehearsed, where apps are kept.
    #[serde(default)]
    pub rehearse: Rehearse,
    /// Userspace begins anew, which Forebay has systemd do, but for apps that run on.
    #[serde(default)]
    pub soft: bool,
    /// Apps that are told of it before it begins.
    #[serde(default)]
    pub told: BTreeMap<AppId, Call>,
}

impl Order {
    /// Whether the command is nothing but what is done for it anyway, in order: it is not run.
    #[must_use]
    pub fn is_its_command(&self) -> bool {
        self.soft && ends_userspace(&self.command)
    }
}

/// One life of a program: the number of its process and when that began, as the kernel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The process.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat.
    pub began_ticks: u64,
}

/// Response times that clients of an app saw over some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Answers.
    pub answers: u64,
    /// Of these, errors.
    pub errors: u64,
    /// The median, in milliseconds; absent without answers.
    pub p50_ms: Option<f64>,
    /// What one in a hundred exceeds.
    pub p99_ms: Option<f64>,
    /// The slowest.
    pub max_ms: Option<f64>,
}

/// What was measured of one critical app before "isolated" was believed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AppProof {
    /// CPUs that are in force and nobody else's.
    pub exclusive: CpuSet,
    /// Memory that is never taken away, as the kernel has it.
    pub memory_floor: Option<Bytes>,
    /// CPUs that the load was seen to run on.
    #[serde(default)]
    pub load_ran_on: CpuSet,
    /// Share of looks at which it was on CPUs of this app that it may not use.
    #[serde(default)]
    pub crossed: f64,
    /// Share of time in which its tasks waited for a CPU before the load; absent where that is not known.
    #[serde(default)]
    pub waited: Option<f64>,
    /// The same while the slice of the update was full of work.
    #[serde(default)]
    pub waited_loaded: Option<f64>,
    /// Before the load.
    pub before: Pace,
    /// While the slice of the update was full of work.
    pub loaded: Pace,
}

/// What is known of the system so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// Nothing ran.
    Untouched,
    /// The command did what it was to do.
    Updated,
    /// It, or what was to undo it, failed.
    Broken,
    /// It was undone.
    Undone,
}

/// How an update ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The system is updated and the apps are well.
    Committed,
    /// The system is as it was, as far as the declared rollback makes it, and the apps are well.
    RolledBack,
    /// Neither: somebody has to look.
    Alarmed,
}

/// How far an update is: what is being done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is written down.
    Planned,
    /// No other one begins; the isolation is measured.
    Locked,
    /// It is measured; shadows are waited for.
    Isolated,
    /// Apps that can move go to other hosts.
    Leaving,
    /// Apps that take part are told to prepare.
    Telling,
    /// All that is needed stands by; the command is to begin.
    Synced,
    /// The command may run.
    Updating,
    /// The kernel that comes is tried out in a virtual machine.
    Rehearsing,
    /// The host is to begin anew.
    RebootPending,
    /// Apps are written down and ended, and the host begins anew; or userspace does, and those that may run on.
    Departing,
    /// Apps go on from what was written down, or ran on.
    Reviving,
    /// What undoes it may run.
    Undoing,
    /// Programs that run outdated code are replaced.
    Restoring,
    /// Apps are compared with their past.
    Verifying,
    /// Apps that went to other hosts come back.
    Returning(Outcome),
    /// What was put up for the update is taken away.
    Closing(Outcome),
    /// Over.
    Over(Outcome),
}

/// What is to be done in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// See that no other update is under way.
    Lock,
    /// Measure the isolation under load.
    Prove,
    /// See that every front that is to hand over has a shadow in step.
    Sync,
    /// Have those that can move go to other hosts, and this one take no more.
    Leave,
    /// Tell those that take part to prepare; end those that are to be ended once they are ready.
    Tell,
    /// Nothing but to note that the command begins.
    Begin,
    /// Run the command, unless this step ran; wait for its end.
    Update,
    /// See in a virtual machine that the kernel that comes is one that apps can go on under, where it is another one.
    Rehearse,
    /// Wait for another boot.
    AwaitBoot,
    /// In the boot that this began in: write down and end whoever is kept and runs, then have the host
    /// begin anew. In another one: nothing. With `soft`: the same with userspace, but for those that run on.
    Depart,
    /// See that those who were kept go on from their images, or ran on.
    Revive,
    /// Run the rollback, unless this step ran; wait for its end.
    Undo,
    /// Replace the old programs, one after the other, through their fronts.
    Restore,
    /// Look how the apps are.
    Verify,
    /// Have this host take applications again, and those that went come back.
    Return,
    /// Let go of what was put up.
    Close,
}

/// What came of a deed.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// It is done.
    Done,
    /// The isolation was measured.
    Proved(BTreeMap<AppId, AppProof>),
    /// It cannot be done: before the command began.
    Refused(String),
    /// Somebody does not want it any more: before the command began.
    Aborted,
    /// A command ended, and these programs are outdated since.
    Ran(Ending, BTreeMap<AppId, Life>),
    /// Those that could go to other hosts are there, apart from these troubles.
    Left(Vec<String>),
    /// What the rehearsal came to, where there is another kernel to rehearse.
    Rehearsed(Option<Rehearsal>),
    /// The host, or userspace, began anew, or why it was not asked to.
    Booted(Result<(), String>),
    /// The host began anew with this kernel, and not with the one that was meant.
    FellBack(String),
    /// Those that were kept go on where they were or ran on, apart from these, who lost what they had.
    Revived(Vec<String>),
    /// Those that take part are prepared, apart from these troubles.
    Told(Vec<String>),
    /// Outdated programs were replaced, apart from these troubles.
    Restored(Vec<String>),
    /// Those that went are back, apart from these troubles.
    Returned(Vec<String>),
    /// Apps are well, or why they are not.
    Judged(Result<(), String>),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself.
    Status(i32),
    /// By a signal.
    Signal(i32),
    /// It took too long, and was ended.
    TimedOut,
    /// Somebody wanted it to end.
    Stopped,
    /// It never began.
    NotStarted(String),
    /// It, or the host, was ended from outside: nobody knows how far it came.
    Lost,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended with status {status}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::TimedOut => f.write_str("took longer than its limit, and was ended"),
            Self::Stopped => f.write_str("was ended because somebody asked for it"),
            Self::NotStarted(why) => write!(f, "could not be started: {why}"),
            Self::Lost => f.write_str("was cut off; nobody knows how far it came"),
        }
    }
}

/// What makes a step of an update happen once: the same key names the same step for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The update.
    pub update: u64,
    /// Commands that were begun by it, this one included.
    pub run: u32,
    /// The boot that it was first tried in.
    pub boot: String,
}

/// One update, as it is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Counts from 1.
    pub number: u64,
    /// When it was asked for.
    pub began_unix_ms: u64,
    /// The boot that it was asked for in.
    pub boot: String,
    /// What is wanted.
    pub order: Order,
    /// What was said of each app.
    pub plan: BTreeMap<AppId, Choice>,
    /// How far it is.
    pub stage: Stage,
    /// What is known of the system.
    pub system: System,
    /// Commands that were begun: the update's, and those that undo it.
    pub runs: u32,
    /// Of these, those that undo it.
    pub rollbacks: u32,
    /// What was measured.
    pub proof: BTreeMap<AppId, AppProof>,
    /// Programs that are to be replaced, as they were.
    pub old: BTreeMap<AppId, Life>,
    /// Those that were to go to other hosts: on disk before the first one does.
    #[serde(default)]
    pub away: BTreeSet<AppId>,
    /// The boot that `departing`, or the reboot that is waited for, is to end, or the userspace: on disk before the first
    /// app is ended, or with the end of the command.
    #[serde(default)]
    pub departs_from: Option<String>,
    /// The kernel that `departing` is to come to, where Forebay starts it and it can be told from others. Still there
    /// after another one came up instead.
    #[serde(default)]
    pub departs_to: Option<String>,
    /// Rehearsals that were begun: on disk before each.
    #[serde(default)]
    pub rehearsals: u32,
    /// The file of the kernel that they are of.
    #[serde(default)]
    pub rehearses: Option<PathBuf>,
    /// What that file said of itself then.
    #[serde(default)]
    pub rehearses_build: Option<String>,
    /// What the last one came to.
    #[serde(default)]
    pub rehearsal: Option<Rehearsal>,
    /// Those that are to run on while userspace begins anew, as they were: on disk before anything else ends.
    #[serde(default)]
    pub lives: BTreeMap<AppId, Life>,
    /// Somebody has to look at what went wrong, however well apps are now.
    #[serde(default)]
    pub alarm: bool,
    /// Those that are prepared and have not been told yet that it is over: on disk before the first of them is
    /// ended.
    #[serde(default)]
    pub prepared: BTreeMap<AppId, Call>,
    /// What went wrong, the latest last.
    pub troubles: Vec<String>,
}

impl Record {
    /// An update that was asked for.
    #[must_use]
    pub const fn new(number: u64, began_unix_ms: u64, boot: String, order: Order) -> Self {
        Self {
            number,
            began_unix_ms,
            boot,
            order,
            plan: BTreeMap::new(),
            stage: Stage::Planned,
            system: System::Untouched,
            runs: 0,
            rollbacks: 0,
            proof: BTreeMap::new(),
            old: BTreeMap::new(),
            away: BTreeSet::new(),
            departs_from: None,
            departs_to: None,
            rehearsals: 0,
            rehearses: None,
            rehearses_build: None,
            rehearsal: None,
            lives: BTreeMap::new(),
            alarm: false,
            prepared: BTreeMap::new(),
            troubles: Vec::new(),
        }
    }

    /// What is to be done now; none when it is over.
    #[must_use]
    pub const fn deed(&self) -> Option<Deed> {
        Some(match self.stage {
            Stage::Planned => Deed::Lock,
            Stage::Locked => Deed::Prove,
            Stage::Isolated => Deed::Sync,
            Stage::Leaving => Deed::Leave,
            Stage::Telling => Deed::Tell,
            Stage::Synced => Deed::Begin,
            Stage::Updating => Deed::Update,
            Stage::Rehearsing => Deed::Rehearse,
            Stage::RebootPending => Deed::AwaitBoot,
            Stage::Departing => Deed::Depart,
            Stage::Reviving => Deed::Revive,
            Stage::Undoing => Deed::Undo,
            Stage::Restoring => Deed::Restore,
            Stage::Verifying => Deed::Verify,
            Stage::Returning(_) => Deed::Return,
            Stage::Closing(_) => Deed::Close,
            Stage::Over(_) => return None,
        })
    }

    /// The key of the command that runs now, or ran last.
    #[must_use]
    pub fn step(&self) -> Step {
        Step {
            update: self.number,
            run: self.runs,
            boot: self.boot.clone(),
        }
    }

    /// Whether this boot is another one than the update is to end.
    #[must_use]
    pub fn began_anew(&self, here: &str) -> bool {
        // Records of before say only which boot the update was asked for in.
        self.departs_from.as_deref().unwrap_or(&self.boot) != here
    }

    /// Those that are kept over a boot.
    pub fn kept(&self) -> impl Iterator<Item = &AppId> {
        let plan = self.plan.iter().filter(|_| self.order.keep);
        plan.filter(|(_, choice)| choice.rung == Rung::Checkpoint)
            .map(|(app, _)| app)
    }

    /// Those that run on while userspace begins anew.
    pub fn survivors(&self) -> impl Iterator<Item = &AppId> {
        let plan = self.plan.iter().filter(|_| self.order.soft);
        plan.filter(|(_, choice)| choice.rung == Rung::SoftReboot)
            .map(|(app, _)| app)
    }

    /// Whether nothing of the system was touched yet, so that it can be called off.
    #[must_use]
    pub const fn can_be_called_off(&self) -> bool {
        matches!(
            self.stage,
            Stage::Planned
                | Stage::Locked
                | Stage::Isolated
                | Stage::Leaving
                | Stage::Telling
                | Stage::Synced
        )
    }

    /// What comes once everything else stands by.
    fn ready(&self) -> Stage {
        match self.order.told.is_empty() {
            true => Stage::Synced,
            false => Stage::Telling,
        }
    }

    /// What comes last, from the stage of now: whoever may have gone comes back first.
    const fn end(&self, outcome: Outcome) -> Stage {
        match self.stage {
            Stage::Planned | Stage::Locked | Stage::Isolated => Stage::Closing(outcome),
            _ if self.order.elsewhere => Stage::Returning(outcome),
            _ => Stage::Closing(outcome),
        }
    }

    /// The record once the deed of its stage came to this.
    ///
    /// # Panics
    /// When the fact is none that the deed can come to.
    #[must_use]
    pub fn after(mut self, fact: Fact) -> Self {
        self.stage = match (self.stage, fact) {
            (Stage::Planned, Fact::Done) => Stage::Locked,
            (Stage::Locked, Fact::Proved(proof)) => {
                self.proof = proof;
                Stage::Isolated
            }
            (Stage::Isolated, Fact::Done) if self.order.elsewhere => Stage::Leaving,
            (Stage::Isolated, Fact::Done) => self.ready(),
            (Stage::Leaving, Fact::Left(troubles)) => {
                troubles.into_iter().for_each(|why| self.trouble(why));
                self.ready()
            }
            (Stage::Telling, Fact::Told(troubles)) => {
                troubles.into_iter().for_each(|why| self.trouble(why));
                Stage::Synced
            }
            (Stage::Synced, Fact::Done) if self.order.is_its_command() => {
                self.system = System::Updated;
                Stage::Departing
            }
            (Stage::Synced, Fact::Done) => {
                self.runs = 1;
                Stage::Updating
            }
            (_, Fact::Refused(why)) if self.can_be_called_off() => {
                self.trouble(why);
                self.end(Outcome::RolledBack)
            }
            (_, Fact::Aborted) if self.can_be_called_off() => {
                self.trouble("called off before anything was changed".to_owned());
                self.end(Outcome::RolledBack)
            }
            (Stage::Updating, Fact::Ran(ending, old)) => self.updated(&ending, old),
            (Stage::Undoing, Fact::Ran(ending, old)) => self.undone(&ending, old),
            (Stage::Rehearsing, Fact::Rehearsed(found)) => self.rehearsed(found),
            (Stage::Rehearsing, Fact::Booted(Err(why))) => self.stays_up(why),
            (Stage::RebootPending, Fact::Booted(Ok(()))) => {
                // Whatever ran before the host began anew is gone.
                self.old.clear();
                Stage::Restoring
            }
            (Stage::RebootPending, Fact::Done) => {
                self.trouble(
                    "it went on without the reboot that it waited for: what needs one is in effect once this host begins \
                     anew"
                        .to_owned(),
                );
                Stage::Restoring
            }
            (Stage::Departing, Fact::Booted(Ok(()))) => {
                // Whoever ran on still runs the code that it ran.
                let lives = &self.lives;
                self.old.retain(|app, life| lives.get(app) == Some(life));
                self.departs_to = None;
                Stage::Reviving
            }
            (Stage::Departing, Fact::FellBack(kernel)) => {
                self.old.clear();
                self.system = System::Broken;
                let meant = self.departs_to.as_deref().unwrap_or_default();
                self.trouble(format!(
                    "kernel {meant} was to come up, and kernel {kernel} runs instead"
                ));
                Stage::Reviving
            }
            (Stage::Departing, Fact::Booted(Err(why))) => {
                self.departs_to = None;
                let who = if self.order.soft {
                    "userspace"
                } else {
                    "the host"
                };
                self.alarm = true;
                self.trouble(format!("{who} did not begin anew, and has to: {why}"));
                Stage::Reviving
            }
            (Stage::Reviving, Fact::Revived(lost)) => {
                self.alarm |= !lost.is_empty();
                lost.into_iter().for_each(|why| self.trouble(why));
                match self.system {
                    // The new kernel did not come up: what undoes the command takes it away.
                    System::Broken => self.undo_or(Stage::Restoring),
                    _ => Stage::Restoring,
                }
            }
            (Stage::Restoring, Fact::Restored(troubles)) => {
                troubles.into_iter().for_each(|why| self.trouble(why));
                Stage::Verifying
            }
            (Stage::Verifying, Fact::Judged(judged)) => self.judged(judged),
            (Stage::Returning(outcome), Fact::Returned(troubles)) => {
                troubles.into_iter().for_each(|why| self.trouble(why));
                Stage::Closing(outcome)
            }
            (Stage::Closing(outcome), Fact::Done) => Stage::Over(outcome),
            (stage, fact) => panic!("{stage:?} does not come to {fact:?}"),
        };
        self
    }

    fn updated(&mut self, ending: &Ending, old: BTreeMap<AppId, Life>) -> Stage {
        if let Ending::NotStarted(_) = ending {
            self.trouble(format!("the command {ending}"));
            return self.end(Outcome::RolledBack);
        }
        self.old = old;
        if *ending == Ending::Status(0) {
            self.system = System::Updated;
            return match (self.order.keep || self.order.soft, self.order.reboot) {
                (true, _) => self.before_departure(),
                (false, true) => Stage::RebootPending,
                (false, false) => Stage::Restoring,
            };
        }
        self.system = System::Broken;
        self.trouble(format!("the command {ending}"));
        self.undo_or(Stage::Restoring)
    }

    fn undone(&mut self, ending: &Ending, old: BTreeMap<AppId, Life>) -> Stage {
        self.old.extend(old);
        if *ending == Ending::Status(0) {
            self.system = System::Undone;
            return Stage::Restoring;
        }
        self.system = System::Broken;
        self.trouble(format!("rollback {} {ending}", self.rollbacks));
        self.undo_or(Stage::Restoring)
    }

    fn judged(&mut self, judged: Result<(), String>) -> Stage {
        match judged {
            Ok(()) => self.end(match self.system {
                _ if self.alarm => Outcome::Alarmed,
                System::Updated => Outcome::Committed,
                System::Undone | System::Untouched => Outcome::RolledBack,
                System::Broken => Outcome::Alarmed,
            }),
            Err(why) => {
                self.trouble(why);
                let otherwise = self.end(Outcome::Alarmed);
                self.undo_or(otherwise)
            }
        }
    }

    /// Undoes it where that is declared and was not tried often enough.
    fn undo_or(&mut self, otherwise: Stage) -> Stage {
        if self.order.rollback.is_none() || self.rollbacks == ROLLBACKS_MAX {
            return otherwise;
        }
        self.rollbacks += 1;
        self.runs += 1;
        Stage::Undoing
    }

    /// Remembers what went wrong.
    pub fn trouble(&mut self, why: String) {
        if self.troubles.len() == TROUBLES_MAX {
            self.troubles.remove(0);
        }
        self.troubles.push(why);
    }
}
