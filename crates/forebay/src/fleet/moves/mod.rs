//! Moves of applications between hosts, carried out.
//!
//! `forebay_core::fleet` says what happens next, here it is done. Each side has a driver that takes the
//! steps of its machine one at a time, each bounded in time, and tells the machine how they ended:
//!
//! ```text
//!   source: depart::Depart ── Leaving ──┐           ┌── Coming ── arrive::Arrive :target
//!                │                      Peer  ──────┘                 │
//!                ├── Apps (control thread)                     Apps ──┤
//!                ├── Book (journal on disk)                    Book ──┤
//!                └────────── Records (the coordinator) ───────────────┘
//! ```
//!
//! - [`Records`], [`Peer`] and [`Apps`] are all that drivers need of the coordinator, of the other host
//!   and of the control thread. What could not be found out in time is [`Trouble::Unknown`], never a guess.
//! - [`Leaving`] and [`Coming`] are what moves: [`body::restart`] moves files and starts the program anew,
//!   [`body::checkpoint`] moves its process with its memory.
//!   Another way to move is another pair of these, chosen in [`body::leaving`] and [`body::coming`].
//! - [`journal::Book`] has each machine's mark on disk before a step that needs it is taken; a daemon that
//!   begins anew goes on from there. A damaged one stops moves, and no application.
//! - [`keeper`] says which applications are this host's to start, and holds those that are not; [`claims`]
//!   reads whose they are.
//! - [`desk::Moves`] has them all: what is asked and what is shown; [`threads`] are what carries it out.
//!
//! Properties, tested in `tests.rs` with faults at every step: exactly one host owns the application
//! afterwards and lets it run, no byte of its files is lost, both sides say how it ended.

mod apart;
mod arrive;
mod body;
mod claims;
mod depart;
pub(crate) mod desk;
pub(crate) mod drain;
pub(crate) mod hosted;
pub(crate) mod initiative;
mod journal;
mod keeper;
mod note;
mod orphans;
mod past;
pub(crate) mod service;
mod speed;
#[cfg(test)]
mod tests;
mod threads;
pub(crate) mod wired;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_core::app::{App, AppId, Class};
use forebay_core::fleet::choice::{Offer, Room};
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::policy::Look;
use forebay_core::fleet::tenure::Lease;
use forebay_core::fleet::{Epoch, HostName, Outcome, Ownership, arrival, departure};
use forebay_core::units::Bytes;
use forebay_host::fence::{Stop, Unclaimed};
use forebay_host::ledger::Process;
use tokio::sync::watch;

use crate::fleet::link::rdma::Carried;

/// Why something was not done, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is not done, and will not be: what was attempted, why not, and what to do.
    Refused(String),
    /// It may be done, or be done later.
    Unknown(String),
}

impl Trouble {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::Refused,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(why) | Self::Unknown(why)) = self;
        f.write_str(why)
    }
}

/// How something ended, for a machine.
fn outcome<T>(result: &Result<T, Trouble>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(trouble) => trouble.outcome(),
    }
}

/// Refuses with a text.
fn refuse<T>(why: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Refused(why.into()))
}

/// One attempt to move one application: giving up changes the epoch, so that none is taken for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) app: AppId,
    /// That the record had when it began.
    pub(crate) epoch: Epoch,
}

/// When in a move a content is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// While the application runs, in this round, counted from 1.
    Copy(u32),
    /// While it stands still.
    Final,
}

/// One stream of bytes of what an application consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// Which one. Whoever takes it in must not open it as it is.
    pub(crate) name: String,
    /// `file` or `list`.
    pub(crate) kind: String,
}

/// What is asked of a target before anything is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) app: AppId,
    /// As the source has it.
    pub(crate) record: Ownership,
    pub(crate) class: Class,
    /// What it will need at most within the next minutes, or needs now.
    pub(crate) need: Room,
    pub(crate) way: Way,
    /// What the target has to have, by name; a name that it does not know is something that it lacks.
    pub(crate) requires: BTreeSet<String>,
    /// By which room the target was chosen.
    pub(crate) look: Look,
    /// The hosts that it left, and how long ago.
    pub(crate) homes: Vec<(HostName, Duration)>,
}

/// Records, by application.
pub(crate) type Owners = BTreeMap<AppId, Ownership>;

/// What was heard of the coordinator.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// What this host holds there.
    pub(crate) lease: Option<Lease>,
    /// All records, no older than what was read under that lease.
    pub(crate) records: Option<Arc<Owners>>,
    /// It is in reach, so that these are the latest.
    pub(crate) is_in_reach: bool,
}

/// Whose applications are.
pub(crate) trait Records: fmt::Debug + Send + Sync {
    /// Reads one record; none where nobody ever said.
    fn read(&self, app: &AppId) -> Result<Option<Ownership>, Trouble>;
    /// Makes the first one of an application.
    fn create(&self, app: &AppId, record: &Ownership) -> Result<(), Trouble>;
    /// Changes one in one transaction, if it has this epoch.
    fn change(&self, app: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Trouble>;
    /// Changes one whose owner is no member, which the same transaction looks at.
    fn take_over(&self, app: &AppId, from: &Ownership, to: &Ownership) -> Result<(), Trouble>;
    /// Who is there, as was looked last. Asks nobody.
    fn members(&self) -> BTreeMap<HostName, Offer>;
    /// Reads all.
    fn all(&self) -> Result<Owners, Trouble>;
    /// What was heard of the coordinator. Asks nobody.
    fn heard(&self) -> Heard;
    /// Whether another member says that an application is there.
    fn is_at_another(&self, app: &AppId) -> Result<bool, Trouble>;
}

/// The agents of other hosts. Each call is bounded in time.
pub(crate) trait Peer: fmt::Debug + Send + Sync {
    /// Asks for room, or for longer.
    fn reserve(&self, to: &HostName, wish: &Wish) -> Result<(), Trouble>;
    /// Sends so many bytes.
    fn send(
        &self,
        to: &HostName,
        of: &Attempt,
        parcel: (Phase, &Content, u64),
        from: &mut (dyn Read + Send),
    ) -> Result<(), Trouble>;
    /// Bytes of content that would go to a host in a second; none where that cannot be measured.
    fn speed(&self, _: &HostName) -> Result<Option<f64>, Trouble> {
        Ok(None)
    }
    /// What the last content to a host went by; none where none did, or nobody knows.
    fn carried(&self, _: &HostName) -> Option<Carried> {
        None
    }
    /// All was sent: a durable copy that stands still is to be made.
    fn prepare(&self, to: &HostName, of: &Attempt, contents: &[Content]) -> Result<(), Trouble>;
    /// Nothing will come of it.
    fn release(&self, to: &HostName, of: &Attempt) -> Result<(), Trouble>;
    /// How much of the memory of what runs there is still to come from here; none where nothing is needed any more.
    fn owes(&self, _: &HostName, of: &Attempt) -> Result<Option<Bytes>, Trouble> {
        refuse(format!(
            "ask what of {} is still to come: nobody does that here",
            of.app
        ))
    }
    /// Where the agent of a host listens.
    fn address(&self, of: &HostName) -> Result<String, Trouble> {
        refuse(format!("find where {of} listens: nobody knows that here"))
    }
}

/// The applications of this host, which the control thread has. Each call is bounded in time.
pub(crate) trait Apps: fmt::Debug + Send + Sync {
    /// As it is configured.
    fn app(&self, id: &AppId) -> Option<App>;
    /// The movable ones.
    fn movable(&self) -> Vec<App>;
    /// Whether any process of it is there, frozen or not; not known before the host was looked at.
    fn runs(&self, id: &AppId) -> Option<bool>;
    /// Done when nobody in it runs any more.
    fn freeze(&self, id: &AppId) -> Result<(), Trouble>;
    fn thaw(&self, id: &AppId) -> Result<(), Trouble>;
    /// What stops it when this daemon does not live to; none where nobody said.
    fn stop(&self, _: &AppId) -> Result<Option<Stop>, Trouble> {
        Ok(None)
    }
    /// Whether it stands still by [`Apps::freeze`], and is marked by [`Apps::give`]. Asks nobody.
    fn is_given(&self, id: &AppId) -> bool;
    /// Ends all its processes.
    fn end(&self, id: &AppId) -> Result<(), Trouble>;
    /// Refused only where it certainly did not run.
    fn start(&self, id: &AppId) -> Result<(), Trouble>;
    /// Removes images of its program: it is never begun from them any more.
    fn forget_images(&self, id: &AppId) -> Result<(), Trouble>;
    /// From now on whoever lets its frozen processes go ends them before, this daemon alone excepted; and what
    /// becomes of them where no daemon comes.
    fn give(&self, id: &AppId, unclaimed: Unclaimed) -> Result<(), Trouble>;
    /// Takes that back.
    fn keep(&self, id: &AppId) -> Result<(), Trouble>;
    /// Writes down which applications others may take over, and until when those may run, by the clock of leases:
    /// the guardian freezes them then.
    fn may_run(&self, until: Duration, apps: &BTreeSet<AppId>) -> Result<(), Trouble>;
    /// What it will need at most within the next minutes, or needs now.
    fn need(&self, id: &AppId, look: Look) -> Room;
    /// What applications of a class will find here, or find now, as this host publishes it; without what
    /// was promised.
    fn room(&self, class: Class, look: Look) -> Room;
    /// The process of its program; none where there is none, or it was not looked at yet.
    fn main_process(&self, _: &AppId) -> Option<u32> {
        None
    }
    /// All of its processes.
    fn processes(&self, _: &AppId) -> Vec<u32> {
        Vec::new()
    }
    /// What moving processes with their memory needs of this host; none where nobody said.
    fn ground(&self) -> Option<Ground> {
        None
    }
    /// Makes the control groups of its slice; their directories.
    fn slice(&self, id: &AppId) -> Result<Vec<PathBuf>, Trouble> {
        refuse(format!("make a slice of {id}: nobody does that here"))
    }
    /// Takes a process that came, and stands still, up as its program.
    fn adopt(&self, id: &AppId, _: Process) -> Result<(), Trouble> {
        refuse(format!("take a process up as {id}: nobody does that here"))
    }
    /// Has the address that goes along with it be here and answer; done where it has none.
    fn answer(&self, _: &AppId) -> Result<(), Trouble> {
        Ok(())
    }
    /// Whether that address is here and answers, or it has none.
    fn answers(&self, _: &AppId) -> bool {
        true
    }
    /// Whether its address could be put here.
    fn could_answer(&self, _: &AppId) -> Result<(), Trouble> {
        Ok(())
    }
    /// Has its address be here with nobody knowing of it: its connections are made then.
    fn await_quietly(&self, _: &AppId) -> Result<(), Trouble> {
        Ok(())
    }
    /// Takes its address away; what uses it still is heard by nobody.
    fn hush(&self, _: &AppId) -> Result<(), Trouble> {
        Ok(())
    }
    /// Takes all away that is here of its address.
    fn leave_address(&self, _: &AppId) -> Result<(), Trouble> {
        Ok(())
    }
    /// Those of which something of an address is here, whether they are configured or not.
    fn with_addresses(&self) -> Vec<AppId> {
        Vec::new()
    }
    /// The fronts of this host; none before they are known.
    fn service(&self) -> Option<Arc<dyn service::Service>> {
        None
    }
    /// Tells the user.
    fn tell(&self, id: &AppId, what: String);
    /// Tells the user of what failed.
    fn warn(&self, id: &AppId, what: String);
}

/// What moving processes with their memory needs of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ground {
    /// CRIU, where its place is configured.
    pub(crate) criu: Option<PathBuf>,
    /// Where their images are.
    pub(crate) state_dir: PathBuf,
}

/// What a move would be like, before anything is touched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Foreseen {
    /// How long the application would stand still.
    pub(crate) pause: Duration,
    /// What else was found out of one that is copied while it runs.
    pub(crate) copying: Option<Copying>,
}

/// How an application would be copied while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Copying {
    /// Bytes of its memory that it writes in a second.
    pub(crate) written: f64,
    /// Bytes that go to the target in a second.
    pub(crate) link: f64,
    /// Whether that was measured, and is not what is usual.
    pub(crate) is_measured: bool,
    /// How often it is copied, what was written meanwhile alone after the first time.
    pub(crate) rounds: usize,
}

impl fmt::Display for Foreseen {
    /// Sentences without a full stop, behind others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(copying) = &self.copying {
            write!(f, "{copying}, copied in {} round(s)", copying.rounds)?;
            f.write_str("; ")?;
        }
        let ms = self.pause.as_millis();
        write!(f, "it would stand still for about {ms} ms")
    }
}

impl fmt::Display for Copying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: f64| bytes / 1_048_576.0;
        let link = match self.is_measured {
            true => "go to the target",
            false => "are supposed to go to the target, which does not measure it",
        };
        write!(
            f,
            "it writes {:.1} MiB of its memory in a second and {:.0} MiB/s {link}",
            mib(self.written),
            mib(self.link)
        )
    }
}

/// What moves, on its source.
pub(crate) trait Leaving: fmt::Debug + Send {
    /// Hears where it moves to, before anything else is asked of it.
    fn goes_to(&mut self, _: &HostName) {}
    /// Looks whether it can, without touching it; what the target has to have.
    fn check(&mut self) -> Result<BTreeSet<String>, Trouble>;
    /// Judges, once there is room for it, whether copying it would come to an end, still without touching it.
    fn weigh(&mut self, _: &Road<'_>) -> Result<(), Trouble> {
        Ok(())
    }
    /// How it would move, as far as that is known once it was looked at.
    fn foresees(&self) -> Option<Foreseen> {
        None
    }
    /// What is risked by the way in which it moves, beside the pause, as far as that is known once it was looked at.
    fn risks(&self) -> Option<String> {
        None
    }
    /// Copies what it has while it runs, until little is left.
    fn copy(&mut self, road: &Road<'_>) -> Result<(), Trouble>;
    /// Freezes it, and sees that it stands still.
    fn freeze(&mut self) -> Result<(), Trouble>;
    /// Sends the rest; done when the target has a durable copy that stands still.
    fn send(&mut self, road: &Road<'_>) -> Result<(), Trouble>;
    /// Lets it go on. Nothing of what was sent is needed any more.
    fn thaw(&mut self) -> Result<(), Trouble>;
    /// Removes what is left of its being frozen where nobody of it is here any more.
    fn clean(&mut self) -> Result<(), Trouble> {
        Ok(())
    }
    /// What becomes of it where its record may be changed, and no daemon comes that finds out.
    fn unclaimed(&self) -> Unclaimed {
        Unclaimed::Ends
    }
    /// Finds out that its target, where it runs, needs nothing more of what stands here.
    fn lend(&mut self, _: &Road<'_>) -> Result<(), Trouble> {
        Ok(())
    }
    /// Ends it, while it stands still.
    fn end(&mut self) -> Result<(), Trouble>;
}

/// What moves, on its target.
pub(crate) trait Coming: fmt::Debug + Send {
    /// Hears where it comes from, before anything else is asked of it.
    fn comes_from(&mut self, _: Origin) {}
    /// Whether this host has what is required.
    fn fits(&self, requires: &BTreeSet<String>) -> Result<(), String>;
    /// Takes in so many bytes.
    fn take(&mut self, parcel: (Phase, &Content, u64), from: &mut dyn Read) -> Result<(), String>;
    /// Makes a durable copy that stands still.
    fn prepare(&mut self, contents: &[Content]) -> Result<(), Trouble>;
    /// Lets it go on. Refused only where it certainly never ran.
    fn start(&mut self) -> Result<(), Trouble>;
    /// Removes it, where it never ran.
    fn discard(&mut self) -> Result<(), Trouble>;
    /// It runs: what was only needed to come is removed.
    fn settle(&mut self) -> Result<(), Trouble>;
    /// What is there of a copy, after an earlier daemon marked this.
    fn found(&self, mark: arrival::Mark) -> arrival::Found;
}

/// Where something comes from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) peer: Arc<dyn Peer>,
    pub(crate) host: HostName,
    pub(crate) of: Attempt,
}

/// What a move would be, as far as that is known before anything is touched.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outlook {
    /// What it would be like, where that is known.
    pub(crate) foreseen: Option<Foreseen>,
    /// What is risked beside that.
    pub(crate) risks: Option<String>,
}

/// What [`Leaving`] sends by.
pub(crate) struct Road<'a> {
    peer: &'a dyn Peer,
    to: &'a HostName,
    of: &'a Attempt,
    note: &'a note::Note,
}

/// What the drivers of one host share.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) here: HostName,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) peer: Arc<dyn Peer>,
    pub(crate) apps: Arc<dyn Apps>,
    pub(crate) book: journal::Book,
    /// Where applications were before.
    pub(crate) past: past::Past,
    /// Where what is coming is written down.
    state_dir: PathBuf,
    /// Applications that are not this host's to start, for the control thread.
    elsewhere: watch::Sender<Arc<BTreeSet<AppId>>>,
    /// Taken by whoever lets an application go on because no move is about it, and by moves that mark
    /// that there is one.
    holding: Mutex<()>,
    /// Those that their moves let go on for good, whatever a full disk says of them still.
    goes_on: Mutex<BTreeSet<AppId>>,
    /// What was heard of records last, which is in the book.
    heard: Mutex<Option<Arc<Owners>>>,
}

impl House {
    /// Reads the journal, and says what is not to be started here, before anything is.
    pub(crate) fn open(
        here: HostName,
        state_dir: &Path,
        (records, peer, apps): (Arc<dyn Records>, Arc<dyn Peer>, Arc<dyn Apps>),
        elsewhere: watch::Sender<Arc<BTreeSet<AppId>>>,
    ) -> Self {
        let house = Self {
            here,
            records,
            peer,
            apps,
            book: journal::Book::open(state_dir),
            past: past::Past::open(state_dir, keeper::now()),
            state_dir: state_dir.to_owned(),
            elsewhere,
            holding: Mutex::default(),
            goes_on: Mutex::default(),
            heard: Mutex::default(),
        };
        house.publish(keeper::now());
        house
    }

    fn hold(&self) -> MutexGuard<'_, ()> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self) -> MutexGuard<'_, BTreeSet<AppId>> {
        self.goes_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What of marks matters to who may run something.
    fn marks(&self, content: &journal::Content) -> BTreeMap<AppId, departure::Mark> {
        let goes_on = self.goes_on();
        let departures = content.departures.iter();
        departures
            .map(|(app, departing)| match goes_on.contains(app) {
                true => (app.clone(), departure::Mark::Begun),
                false => (app.clone(), departing.mark),
            })
            .collect()
    }

    /// What this host holds at the coordinator. What was heard of records by then is known by whoever goes by it:
    /// under a lease that began anew others may have taken over what was this host's before.
    fn lease(&self) -> Option<Lease> {
        self.hear().lease
    }

    /// Takes in what was heard of records.
    fn hear(&self) -> Heard {
        let heard = self.records.heard();
        if let Some(records) = &heard.records {
            // Held for as long as it is written down: nobody goes by it before.
            let mut before = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let is_same = |before: &Arc<Owners>| Arc::ptr_eq(before, records);
            if !before.as_ref().is_some_and(is_same) {
                let movable = self.apps.movable();
                // What is handed over follows its front, which has to see what is news of its record.
                let known = movable.iter().filter(|app| !service::is_handed_over(app));
                let known = known.filter_map(|app| records.get_key_value(&app.id));
                self.book.learn_all(known);
                *before = Some(Arc::clone(records));
            }
        }
        heard
    }

    /// Why nobody may run an application of which two hosts are owners.
    fn disputed(&self, app: &AppId) -> Option<String> {
        let other = self.book.dispute(app)?;
        let known = self.book.record(app)?;
        Some(format!(
            "two hosts were made owners of it at epoch {}: {} by what is known on {}, and {} by the coordinator, \
             which was put back to an earlier state; it is held, and nothing of it moves: see on which of them its \
             latest files are, and write its record anew with a greater epoch for that one (`docs/moves.md`)",
            known.epoch, known.owner, self.here, other.owner
        ))
    }

    /// Reads a record for whoever begins something from it: one of before what is known here is none.
    fn read_latest(&self, app: &AppId) -> Result<Option<Ownership>, Trouble> {
        // In this order: what is read later is not older by having been read earlier.
        let known = self.book.record(app);
        let record = self.read(app)?;
        if let (Some(record), Some(known)) = (&record, &known)
            && known.epoch > record.epoch
        {
            return Err(Trouble::Unknown(format!(
                "the coordinator was put back to an earlier state: its record of {app} is {} of {}, and {} of {} \
                 is known here; wait until it says that again (`forebay events`)",
                record.epoch, record.owner, known.epoch, known.owner
            )));
        }
        // That it runs may be known here and not be said yet.
        Ok(record.and_then(|_| self.book.record(app)))
    }

    /// Reads a record, and remembers it.
    fn read(&self, app: &AppId) -> Result<Option<Ownership>, Trouble> {
        let record = self.records.read(app)?;
        if let Some(record) = &record {
            self.book.learn(app, record);
            if let Some(why) = self.disputed(app) {
                return Err(Trouble::Unknown(format!("{app}: {why}")));
            }
        }
        Ok(record)
    }

    /// Changes a record, and remembers what it is then.
    fn change(&self, app: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Trouble> {
        let changed = self.records.change(app, epoch, to);
        if changed.is_ok() {
            self.book.learn(app, to);
        }
        changed
    }
}

/// What became of one step of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The next one is to be taken.
    Goes,
    /// The same one is to be tried again, after so long.
    Rest(Duration),
    /// It is over.
    Over,
}

/// The first rest before a step is tried again; each is twice as long as the one before.
const REST_MIN: Duration = Duration::from_millis(20);
/// The longest one.
const REST_MAX: Duration = Duration::from_secs(1);

/// The longest one while clients wait for the other host.
const REST_WAITING: Duration = Duration::from_millis(100);

/// The rest after so many attempts in a row.
fn rest(attempts: u32) -> Duration {
    (REST_MIN * (1 << attempts.saturating_sub(1).min(10))).min(REST_MAX)
}

pub(crate) use body::checkpoint::lending::lender;
pub(crate) use desk::{Awaited, Choose, Desk, Moves, Refused, Wanted};
pub(crate) use drain::{Drain, Found, Leaver, Place};
pub(crate) use hosted::Hosted;
pub(crate) use initiative::{Around, Initiative};
pub(crate) use note::{Ended, Note, Shown};
pub(crate) use wired::{Coordinated, Wired};
