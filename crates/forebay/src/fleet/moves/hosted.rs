//! The applications of this host, as moves need them: asked of the control thread, read off its reports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Class};
use forebay_core::fleet::choice::Room;
use forebay_core::fleet::mobility::ServiceAddress;
use forebay_core::fleet::offering::{self, Ahead};
use forebay_core::fleet::policy::Look;
use forebay_core::report::{EventKind, TickReport};
use forebay_core::snapshot::RunState;
use forebay_host::checkpoint::Store;
use forebay_host::error::HostError;
use forebay_host::fence::{Stop, Unclaimed};
use forebay_host::ledger::Process;
use forebay_host::service_address::Addresses;
use forebay_host::tenure::Tenure;
use forebay_host::{Roots, fence};
use tokio::sync::{oneshot, watch};

use super::service::{Fronts, Service, is_handed_over};
use super::{Apps, Ground, Trouble};
use crate::control::{Command, Deed, Published, TellOf};

/// How long the control thread may take for one thing.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between two looks whether it answered.
const POLL: Duration = Duration::from_millis(1);

/// See the module.
pub(crate) struct Hosted {
    pub(crate) commands: SyncSender<Command>,
    pub(crate) reports: watch::Receiver<Option<Arc<Published>>>,
    /// As they are configured now.
    pub(crate) apps: watch::Receiver<BTreeMap<AppId, App>>,
    pub(crate) tell: TellOf,
    /// The anchor of the groups.
    pub(crate) anchor: PathBuf,
    /// Where images of programs are.
    pub(crate) state_dir: PathBuf,
    /// What this host offers is made of this, beside its reports.
    pub(crate) size: offering::Host,
    /// See [`size`](Self::size).
    pub(crate) ahead: watch::Receiver<Arc<Ahead>>,
    /// CRIU, where its place is configured.
    pub(crate) criu: Option<PathBuf>,
    /// Once they are known.
    pub(crate) fronts: OnceLock<Arc<Fronts>>,
}

impl std::fmt::Debug for Hosted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosted")
            .field("anchor", &self.anchor)
            .finish_non_exhaustive()
    }
}

impl Hosted {
    fn carry_out(&self, id: &AppId, deed: Deed) -> Result<(), Trouble> {
        let unknown = |why: &str| Trouble::Unknown(format!("{deed:?} {id}: {why}"));
        let (reply, mut answer) = oneshot::channel();
        let deadline = Instant::now() + ANSWER_MAX;
        let mut command = Command::Do(id.clone(), deed, reply);
        loop {
            match self.commands.try_send(command) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => {
                    return Err(unknown("the control thread ended"));
                }
                // It was never asked, so that it is certain that it is not done.
                Err(TrySendError::Full(_)) if Instant::now() >= deadline => {
                    let why = format!("{deed:?} {id}: the control thread is busy; see its log");
                    return Err(Trouble::Refused(why));
                }
                Err(TrySendError::Full(back)) => command = back,
            }
            std::thread::sleep(POLL);
        }
        loop {
            match answer.try_recv() {
                Ok(done) => return done.map_err(Trouble::Refused),
                Err(oneshot::error::TryRecvError::Closed) => {
                    return Err(unknown("the control thread ended"));
                }
                Err(oneshot::error::TryRecvError::Empty) if Instant::now() >= deadline => {
                    return Err(unknown("the control thread does not answer; see its log"));
                }
                Err(oneshot::error::TryRecvError::Empty) => std::thread::sleep(POLL),
            }
        }
    }

    fn addresses(&self) -> Addresses {
        Addresses::new(&self.state_dir, Roots::default())
    }

    /// Does something with the address that goes along with an app; done where there is none.
    fn with_address(
        &self,
        id: &AppId,
        act: impl FnOnce(Addresses, &ServiceAddress) -> Result<(), HostError>,
    ) -> Result<(), Trouble> {
        let address = self.app(id).and_then(|app| app.mobility?.address);
        let done = address.map_or(Ok(()), |address| act(self.addresses(), &address));
        done.map_err(|error| Trouble::Refused(error.explain()))
    }

    fn report<T>(&self, look: impl FnOnce(&TickReport) -> Option<T>) -> Option<T> {
        look(&self.reports.borrow().as_ref()?.report)
    }
}

/// What was needed at least is needed elsewhere as well.
pub(super) fn with_floor(room: Room, app: &App) -> Room {
    Room {
        cpu: room.cpu.max(app.floor.cpu),
        memory: room.memory.max(app.floor.memory),
    }
}

impl Apps for Hosted {
    fn app(&self, id: &AppId) -> Option<App> {
        self.apps.borrow().get(id).cloned()
    }

    fn movable(&self) -> Vec<App> {
        let apps = self.apps.borrow();
        let movable = apps.values().filter(|app| app.mobility.is_some());
        movable.cloned().collect()
    }

    fn runs(&self, id: &AppId) -> Option<bool> {
        let main = self.report(|report| Some(report.apps.get(id)?.state == RunState::Running))?;
        // What its program left behind is a part of it.
        Some(main || fence::is_populated(&Roots::default(), &self.anchor, id))
    }

    fn freeze(&self, id: &AppId) -> Result<(), Trouble> {
        self.carry_out(id, Deed::Freeze)
    }

    fn thaw(&self, id: &AppId) -> Result<(), Trouble> {
        self.carry_out(id, Deed::Thaw)
    }

    fn stop(&self, id: &AppId) -> Result<Option<Stop>, Trouble> {
        fence::stop(&Roots::default(), &self.anchor, id)
            .map_err(|error| Trouble::Refused(error.explain()))
    }

    fn is_given(&self, id: &AppId) -> bool {
        fence::is_given(&Roots::default(), &self.anchor, id)
    }

    fn end(&self, id: &AppId) -> Result<(), Trouble> {
        self.carry_out(id, Deed::End)
    }

    fn start(&self, id: &AppId) -> Result<(), Trouble> {
        // Of one that runs already, since an answer was lost, that is done.
        self.carry_out(id, Deed::Start)
    }

    fn forget_images(&self, id: &AppId) -> Result<(), Trouble> {
        Store::new(&self.state_dir)
            .forget(id)
            .map_err(|error| Trouble::Refused(error.explain()))
    }

    fn give(&self, id: &AppId, unclaimed: Unclaimed) -> Result<(), Trouble> {
        fence::give(&Roots::default(), &self.anchor, id, unclaimed)
            .map_err(|error| Trouble::Refused(error.explain()))
    }

    fn keep(&self, id: &AppId) -> Result<(), Trouble> {
        fence::keep(&Roots::default(), &self.anchor, id)
            .map_err(|error| Trouble::Refused(error.explain()))
    }

    fn may_run(&self, until: Duration, apps: &BTreeSet<AppId>) -> Result<(), Trouble> {
        let refused = |error: HostError| Trouble::Refused(error.explain());
        let tenure = Tenure {
            boot: Roots::default().boot_id().map_err(refused)?,
            until_ms: u64::try_from(until.as_millis()).unwrap_or(u64::MAX),
            anchor: self.anchor.clone(),
            apps: apps.clone(),
        };
        tenure.write(&self.state_dir).map_err(refused)
    }

    fn need(&self, id: &AppId, look: Look) -> Room {
        // The instance of it that is on the target has its part of that host already.
        let Some(app) = self.app(id).filter(|app| !is_handed_over(app)) else {
            return Room::default();
        };
        let ahead = Arc::clone(&self.ahead.borrow());
        let need = |report: &TickReport| {
            let (_, standing) = offering::standing(self.size, report, &ahead);
            let known = standing.iter().find(|known| known.app == id)?;
            Some(match look {
                Look::Ahead => known.need.room(known.memory),
                Look::Present => known.used,
            })
        };
        with_floor(self.report(need).unwrap_or_default(), &app)
    }

    fn room(&self, class: Class, look: Look) -> Room {
        let ahead = Arc::clone(&self.ahead.borrow());
        let room = |report: &TickReport| {
            let offer = offering::offer(self.size, report, &ahead, BTreeMap::new(), false);
            match look {
                Look::Ahead => Some(offer.room(class)),
                Look::Present => offer.room_now(class),
            }
        };
        self.report(room).unwrap_or_default()
    }

    fn main_process(&self, id: &AppId) -> Option<u32> {
        self.report(|report| report.apps.get(id)?.main_pid)
    }

    fn processes(&self, id: &AppId) -> Vec<u32> {
        fence::members(&Roots::default(), &self.anchor, id)
    }

    fn ground(&self) -> Option<Ground> {
        Some(Ground {
            criu: self.criu.clone(),
            state_dir: self.state_dir.clone(),
        })
    }

    fn slice(&self, id: &AppId) -> Result<Vec<PathBuf>, Trouble> {
        self.carry_out(id, Deed::Slice)?;
        fence::dirs(&Roots::default(), &self.anchor, id)
            .map_err(|error| Trouble::Refused(error.explain()))
    }

    fn adopt(&self, id: &AppId, process: Process) -> Result<(), Trouble> {
        self.carry_out(id, Deed::Adopt(process))
    }

    fn answer(&self, id: &AppId) -> Result<(), Trouble> {
        self.with_address(id, |all, address| all.answer(id, address).map(drop))
    }

    fn answers(&self, id: &AppId) -> bool {
        let address = self.app(id).and_then(|app| app.mobility?.address);
        address.is_none_or(|address| self.addresses().answers(id, &address))
    }

    fn could_answer(&self, id: &AppId) -> Result<(), Trouble> {
        self.with_address(id, |all, address| all.could_answer(id, address))
    }

    fn await_quietly(&self, id: &AppId) -> Result<(), Trouble> {
        self.with_address(id, |all, address| all.await_quietly(id, address))
    }

    fn hush(&self, id: &AppId) -> Result<(), Trouble> {
        let hushed = self.addresses().hush(id);
        hushed.map_err(|error| Trouble::Refused(error.explain()))
    }

    fn leave_address(&self, id: &AppId) -> Result<(), Trouble> {
        let left = self.addresses().leave(id);
        left.map_err(|error| Trouble::Refused(error.explain()))
    }

    fn with_addresses(&self) -> Vec<AppId> {
        self.addresses().all()
    }

    fn service(&self) -> Option<Arc<dyn Service>> {
        let fronts = self.fronts.get().cloned()?;
        Some(fronts)
    }

    fn tell(&self, id: &AppId, what: String) {
        (self.tell)(id, EventKind::Move, what);
    }

    fn warn(&self, id: &AppId, what: String) {
        tracing::warn!(app = %id, "{what}");
        (self.tell)(id, EventKind::Move, what);
    }
}
