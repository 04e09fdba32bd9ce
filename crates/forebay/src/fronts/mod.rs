//! What the daemon does for its fronts: writes their plans, tells them which instances run, hears
//! how they stand.
//!
//! A front goes on without the daemon. What it decided is asked of it, never kept here: a daemon
//! that comes back finds out who is the primary as it finds out everything else.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::{App, AppId};
use forebay_core::report::{EventKind, TickReport};
use forebay_host::Roots;
use forebay_host::fence;
use forebay_host::groups;
use forebay_host::mounts::Version;
use forebay_host::regular;
use forebay_shadow::answers::Answers;
use forebay_shadow::control::{
    ANSWER_BOUND, Answer, CHANGE_BOUND, Counts, Line, Request, STATUS_BOUND,
};
use forebay_shadow::fence::Hierarchy;
use forebay_shadow::status::{Left, Status, Transition};
use tokio::sync::watch;

use crate::config::{self, Config, FrontConfig, read_certificate};
use crate::control::{Published, TellOf};
use crate::signals::Teller;

mod answers;
mod clients;
mod passed;
mod upgrade;

pub(crate) use clients::{Client, Given};
pub(crate) use passed::Passed;
pub(crate) use upgrade::{Upgrades, changed};

/// How soon a front that cannot be reached is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How soon it is noticed that a certificate was renewed.
const RENEWAL: Duration = Duration::from_secs(10);

/// A front as the daemon knows it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) config: Arc<FrontConfig>,
    /// How it stands, or why it cannot be asked.
    pub(crate) status: Result<Status, String>,
    /// Why it does not answer now; `status` is what was known last.
    pub(crate) unreachable: Option<String>,
    /// Changes of the primary that this daemon heard of, by their cause.
    pub(crate) changes: BTreeMap<String, u64>,
}

/// All fronts, for whoever asks.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    fronts: Arc<watch::Sender<BTreeMap<AppId, Known>>>,
    state_dir: PathBuf,
    upgrades: Option<Arc<Upgrades>>,
}

/// Why a front did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is none of that name.
    Unknown(String),
    /// Not now.
    Busy(String),
}

/// How a shadow takes over when somebody asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The primary answers what it was sent.
    InOrder,
    /// The primary is stopped where it stands, and ended.
    AtOnce,
}

impl Desk {
    /// That of a daemon without fronts.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            fronts: Arc::new(watch::channel(BTreeMap::new()).0),
            state_dir: PathBuf::new(),
            upgrades: None,
        }
    }

    /// All fronts by name.
    pub(crate) fn all(&self) -> BTreeMap<AppId, Known> {
        self.fronts.borrow().clone()
    }

    fn control(&self, front: &str) -> Result<PathBuf, Refused> {
        let fronts = self.fronts.borrow();
        let known = fronts.iter().find(|(name, _)| name.as_str() == front);
        known
            .map(|(_, known)| known.config.control(&self.state_dir))
            .ok_or_else(|| {
                let names: Vec<&str> = fronts.keys().map(AppId::as_str).collect();
                Refused::Unknown(format!(
                    "there is no front `{front}`; there are: {}",
                    if names.is_empty() {
                        "none".to_owned()
                    } else {
                        names.join(", ")
                    }
                ))
            })
    }

    /// Has the shadow take over, in order or at once.
    ///
    /// # Errors
    /// When there is no such front, or it refuses.
    pub(crate) async fn change(&self, front: &str, way: Way) -> Result<Transition, Refused> {
        let request = match way {
            Way::InOrder => Request::HandOver,
            Way::AtOnce => Request::Promote,
        };
        match self.ask(front, &request, CHANGE_BOUND).await? {
            Answer::Changed(transition) => Ok(transition),
            other => Err(Refused::Busy(format!("front {front} answered {other:?}"))),
        }
    }

    /// Does something about an instance that does not serve.
    ///
    /// # Errors
    /// When there is no such front or instance, or it refuses.
    pub(crate) async fn tend(&self, front: &str, request: &Request) -> Result<(), Refused> {
        match self.ask(front, request, CHANGE_BOUND).await? {
            Answer::Done => Ok(()),
            other => Err(Refused::Busy(format!("front {front} answered {other:?}"))),
        }
    }

    /// What a front counted.
    ///
    /// # Errors
    /// When there is no such front, or it cannot be reached.
    pub(crate) async fn counts(&self, front: &str) -> Result<Counts, Refused> {
        match self.ask(front, &Request::Counters, ANSWER_BOUND).await? {
            Answer::Counters(counts) => Ok(counts),
            other => Err(Refused::Busy(format!("front {front} answered {other:?}"))),
        }
    }

    /// How long all instances behind a front took to answer, since the process of the front began.
    ///
    /// # Errors
    /// When there is no such front, or it cannot tell.
    pub(crate) async fn answered(&self, front: &str) -> Result<Answers, Refused> {
        match self.ask(front, &Request::Answers, ANSWER_BOUND).await? {
            Answer::Answers { all: Some(all), .. } => Ok(all),
            other => Err(Refused::Busy(format!("front {front} answered {other:?}"))),
        }
    }

    async fn ask(
        &self,
        front: &str,
        request: &Request,
        within: Duration,
    ) -> Result<Answer, Refused> {
        let control = self.control(front)?;
        let asked = async {
            let mut line = connect(&control).await?;
            line.ask_within(request, &[], within).await
        };
        match asked.await {
            Ok(Answer::Refused(why)) => Err(Refused::Busy(format!("front {front}: {why}"))),
            Ok(answer) => Ok(answer),
            Err(error) => Err(Refused::Busy(format!("ask front {front}: {error}"))),
        }
    }
}

/// Connects to a front, which does not wait for it to do anything, unless its queue is full.
async fn connect(control: &Path) -> io::Result<Line> {
    match tokio::time::timeout(ANSWER_BOUND, Line::connect(control)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The apps that stand by and do not serve now.
pub(crate) type StandingBy = Arc<BTreeSet<AppId>>;

/// Writes what each front has to do, before any is started.
///
/// # Errors
/// When a plan cannot be written.
pub(crate) fn write_plans(config: &Config) -> Result<(), String> {
    let state_dir = &config.daemon.state_dir;
    let mut fronts = config.fronts.values();
    fronts.try_for_each(|front| write_plan(front, state_dir))
}

fn write_plan(front: &FrontConfig, state_dir: &Path) -> Result<(), String> {
    let directory = front.directory(state_dir);
    std::fs::create_dir_all(&directory)
        .map_err(|error| format!("make {}: {error}", directory.display()))?;
    let plan = serde_json::to_vec_pretty(&front.plan(state_dir))
        .map_err(|error| format!("write the plan of front {}: {error}", front.name))?;
    regular::replace(&front.plan_file(state_dir), &plan, 0o600)
        .map_err(|error| format!("write the plan of front {}: {error}", front.name))
}

/// Whether an app was a front: it has a plan.
pub(crate) fn was_front(app: &AppId, state_dir: &Path) -> bool {
    let Some(name) = app.as_str().strip_suffix(".front") else {
        return false;
    };
    let directory = config::fronts_directory(state_dir).join(name);
    directory.join(config::PLAN_FILE).is_file()
}

/// The apps that the fronts are.
pub(crate) fn apps(config: &Config) -> BTreeMap<AppId, App> {
    let apps = config.fronts.values().map(|front| &front.app);
    let found = apps.filter_map(|id| Some((id.clone(), config.policy.apps.get(id)?.clone())));
    found.collect()
}

/// What is known at the start: nothing, since nobody was asked.
pub(crate) fn board(config: &Config) -> watch::Sender<BTreeMap<AppId, Known>> {
    let unasked = |front: &FrontConfig| Known {
        config: Arc::new(front.clone()),
        status: Err("it was not asked yet".to_owned()),
        unreachable: None,
        changes: BTreeMap::new(),
    };
    let fronts = config.fronts.iter();
    watch::Sender::new(
        fronts
            .map(|(name, front)| (name.clone(), unasked(front)))
            .collect(),
    )
}

/// Who stands by, of what is known: nobody behind a front that was not heard yet.
pub(crate) fn standing_by(fronts: &BTreeMap<AppId, Known>) -> BTreeSet<AppId> {
    let mut all = BTreeSet::new();
    for known in fronts.values() {
        let Ok(status) = &known.status else { continue };
        // By name: a front may run with another plan than the one that is configured.
        let primary = status.members.get(status.primary);
        let serves = |app: &AppId| primary.is_some_and(|primary| primary.app == app.as_str());
        let others = known.config.instances.iter();
        let others = others.filter(|(app, _)| !serves(app));
        all.extend(others.map(|(app, _)| app.clone()));
    }
    all
}

/// Where the daemon's fronts and groups are.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) state_dir: PathBuf,
    pub(crate) anchor: PathBuf,
}

impl Place {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            state_dir: config.daemon.state_dir.clone(),
            anchor: PathBuf::from(&config.daemon.cgroup_root),
        }
    }
}

/// Follows all fronts, each in a task of its own; these end with the reports.
pub(crate) fn follow(
    config: &Config,
    board: watch::Sender<BTreeMap<AppId, Known>>,
    reports: &watch::Receiver<Option<Arc<Published>>>,
    standing: watch::Sender<StandingBy>,
    tell: &TellOf,
    teller: &Teller,
    upgrades: Upgrades,
) -> Desk {
    let (board, upgrades) = (Arc::new(board), Arc::new(upgrades));
    let desk = Desk {
        fronts: Arc::clone(&board),
        state_dir: config.daemon.state_dir.clone(),
        upgrades: Some(Arc::clone(&upgrades)),
    };
    for front in config.fronts.values() {
        let follower = Follower {
            front: Arc::new(front.clone()),
            place: Place::of(config),
            board: Arc::clone(&board),
            standing: standing.clone(),
            tell: Arc::clone(tell),
            teller: teller.clone(),
            upgrades: Arc::clone(&upgrades),
            seen: 0,
            heard: false,
            ended: BTreeSet::new(),
            failed: (0, 0),
            outdated: None,
            hangs: false,
        };
        tokio::spawn(follower.run(reports.clone()));
    }
    desk
}

struct Follower {
    front: Arc<FrontConfig>,
    place: Place,
    board: Arc<watch::Sender<BTreeMap<AppId, Known>>>,
    standing: watch::Sender<StandingBy>,
    tell: TellOf,
    teller: Teller,
    upgrades: Arc<Upgrades>,
    /// The latest epoch that was told of.
    seen: u64,
    /// Whether its status was heard before.
    heard: bool,
    /// Processes that the front could not end, and that were taken care of.
    ended: BTreeSet<(String, u32)>,
    /// The latest failure that was told of, by the process that it happened to.
    failed: (u32, u64),
    /// How it differs from what is configured, as far as that was told.
    outdated: Option<String>,
    /// It was told that it does not answer.
    hangs: bool,
}

impl Follower {
    async fn run(mut self, reports: watch::Receiver<Option<Arc<Published>>>) {
        let control = self.front.control(&self.place.state_dir);
        let mut ended = reports.clone();
        loop {
            // Its plan may have become another one.
            if let Some(known) = self.board.borrow().get(&self.front.name) {
                self.front = Arc::clone(&known.config);
            }
            let (kind, why) = match connect(&control).await {
                Ok(line) => match self.attend(line, &control, reports.clone()).await {
                    Ok(()) => return,
                    Err(error) => (error.kind(), error.to_string()),
                },
                Err(error) => {
                    let why = format!("connect to {}: {error}", control.display());
                    (error.kind(), why)
                }
            };
            if kind == io::ErrorKind::TimedOut && !std::mem::replace(&mut self.hangs, true) {
                let what = format!("the front does not answer: {why}");
                (self.tell)(&self.front.app, EventKind::Shadow, what);
            }
            self.learn(Err(why));
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                // Only the end of the control thread ends this.
                () = async { while ended.changed().await.is_ok() {} } => return,
            }
        }
    }

    /// Speaks with one front until it is gone, or the daemon ends.
    async fn attend(
        &mut self,
        mut line: Line,
        control: &Path,
        mut reports: watch::Receiver<Option<Arc<Published>>>,
    ) -> io::Result<()> {
        let mut telling = connect(control).await?;
        let (front, place) = (Arc::clone(&self.front), self.place.clone());
        let joining = join(&front, &place, &mut telling, &mut reports);
        let renewing = renew(&front, control);
        let teller = self.teller.clone();
        let measuring = answers::measure(&front.name, control, &teller);
        tokio::select! {
            joined = joining => joined,
            Err(renewed) = renewing => Err(renewed),
            never = measuring => match never {},
            heard = self.hear(&mut line) => heard,
        }
    }

    async fn hear(&mut self, line: &mut Line) -> io::Result<()> {
        let mut known = None;
        loop {
            // It answers by then, whether anything has changed or not.
            let within = STATUS_BOUND + ANSWER_BOUND;
            match line
                .ask_within(&Request::Status { known }, &[], within)
                .await?
            {
                Answer::Status(status) => {
                    self.learn(Ok((*status).clone()));
                    known = Some(status);
                }
                other => return Err(io::Error::other(format!("it answered {other:?}"))),
            }
        }
    }

    fn learn(&mut self, status: Result<Status, String>) {
        let mut changes: Vec<String> = Vec::new();
        if let Ok(status) = &status {
            let news = status.transitions.iter();
            let mut news = news.filter(|transition| transition.epoch > self.seen);
            if std::mem::replace(&mut self.heard, true) {
                for transition in news {
                    changes.push(transition.cause.clone());
                    (self.tell)(&self.front.app, EventKind::Shadow, transition.to_string());
                    self.upgrades.excuse(transition);
                }
            } else if let Some(last) = news.next_back() {
                // What it remembers from before this daemon came is no news, and no excuse.
                (self.tell)(&self.front.app, EventKind::Shadow, last.to_string());
            }
            self.seen = self.seen.max(status.epoch);
            self.end_left(&status.left);
            self.tell_failures(status);
            self.tell_outdated(status);
            self.hangs = false;
        }
        let name = &self.front.name;
        self.board.send_if_modified(|fronts| {
            let Some(known) = fronts.get_mut(name) else {
                return false;
            };
            // The last thing that was known of who serves holds until it is asked again.
            let before = (known.status.clone(), known.unreachable.clone());
            match &status {
                Err(why) if known.status.is_ok() => known.unreachable = Some(why.clone()),
                _ => {
                    known.status = status.clone();
                    known.unreachable = None;
                }
            }
            let is_news = !changes.is_empty();
            for cause in changes {
                *known.changes.entry(cause).or_default() += 1;
            }
            is_news || before != (known.status.clone(), known.unreachable.clone())
        });
        let standing = standing_by(&self.board.borrow());
        self.standing.send_if_modified(|before| {
            let changed = **before != standing;
            if changed {
                *before = Arc::new(standing.clone());
            }
            changed
        });
    }
}

impl Follower {
    /// Ends those that stand behind a fence for good, and that the front may not end itself.
    fn end_left(&mut self, left: &[Left]) {
        let is_left = |(app, pid): &(String, u32)| {
            left.iter().any(|left| left.app == *app && left.pid == *pid)
        };
        self.ended.retain(is_left);
        for left in left {
            let Ok(app) = left.app.parse::<AppId>() else {
                continue;
            };
            let key = (left.app.clone(), left.pid);
            if !self.ended.insert(key.clone()) {
                continue;
            }
            let own = || groups::of_app(&self.place.anchor, &app);
            let group = self.front.groups.get(&app).cloned().unwrap_or_else(own);
            let ended = fence::end(&Roots::default(), &group);
            if ended.is_err() {
                // It is tried again with the next news of it.
                self.ended.remove(&key);
            }
            let what = match ended {
                Ok(true) => format!("ended by the daemon: {}", left.why),
                Ok(false) => continue,
                Err(error) => {
                    let why = error.explain();
                    tracing::error!(%app, pid = left.pid, why, "it stands, and cannot be ended");
                    format!("stands, and cannot be ended ({why}): {}", left.why)
                }
            };
            (self.tell)(&app, EventKind::Shadow, what);
        }
    }

    fn tell_failures(&mut self, status: &Status) {
        let pid = status.about.pid;
        let told = if self.failed.0 == pid {
            self.failed.1
        } else {
            0
        };
        let news = status.failures.iter();
        for failure in news.filter(|failure| failure.number > told) {
            (self.tell)(&self.front.app, EventKind::Shadow, failure.what.clone());
        }
        let last = status.failures.last().map_or(told, |last| last.number);
        self.failed = (pid, last);
    }

    fn tell_outdated(&mut self, status: &Status) {
        let fronts = self.board.borrow();
        let known = fronts.get(&self.front.name);
        let plan = known.map(|known| known.config.plan(&self.place.state_dir));
        let outdated = plan.and_then(|plan| upgrade::outdated(&plan, status));
        drop(fronts);
        if outdated != self.outdated
            && let Some(outdated) = &outdated
        {
            (self.tell)(&self.front.app, EventKind::Shadow, outdated.clone());
        }
        self.outdated = outdated;
    }
}

/// Tells a front which instances run, as they come; ends with the reports.
async fn join(
    front: &FrontConfig,
    place: &Place,
    line: &mut Line,
    reports: &mut watch::Receiver<Option<Arc<Published>>>,
) -> io::Result<()> {
    let mut told: BTreeMap<usize, Life> = BTreeMap::new();
    loop {
        let running = {
            let published = reports.borrow_and_update();
            published
                .as_ref()
                .map(|published| running(front, &published.report))
        };
        for (slot, app, life) in running.into_iter().flatten() {
            if told.get(&slot) == Some(&life) {
                continue;
            }
            let pid = life.pid;
            let opened = match front.groups.get(&app) {
                Some(group) => fence::open_group(&Roots::default(), group),
                None => fence::open(&Roots::default(), &place.anchor, &app),
            };
            let (fence, descriptors) = match opened {
                Ok(files) => (Some(hierarchy(files.version)), files.files),
                Err(error) => {
                    tracing::warn!(%app, error = error.explain(), "it cannot be stopped by its front");
                    (None, Vec::new())
                }
            };
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let request = Request::Joined {
                app: app.to_string(),
                pid,
                fence,
            };
            // A change that goes on comes before it.
            match line.ask_within(&request, &borrowed, CHANGE_BOUND).await? {
                Answer::Done => {
                    told.insert(slot, life);
                }
                // It has ended meanwhile; the next report says so.
                other => tracing::debug!(%app, pid, ?other, "an instance did not join"),
            }
        }
        if reports.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Hands a front each certificate that stands in its files, which it may not read itself: the
/// first one, too, since the front may have begun with a plan that was written long ago.
async fn renew(front: &FrontConfig, control: &Path) -> io::Result<Infallible> {
    let Some(tls) = front.mode.tls() else {
        return std::future::pending().await;
    };
    let mut line = Line::connect(control).await?;
    let (mut told, mut complaint) = (None, None);
    loop {
        let (certificate, key) = (tls.certificate_file.clone(), tls.key_file.clone());
        // A file system may hang.
        let reading = tokio::task::spawn_blocking(move || read_certificate(&certificate, &key));
        let trouble = match reading.await? {
            Ok(pem) if told.as_ref() == Some(&pem) => None,
            Ok(pem) => match line.ask(&Request::Certificate(pem.clone()), &[]).await? {
                Answer::Done => {
                    tracing::info!(front = %front.name, "it has the certificate of its files");
                    told = Some(pem);
                    None
                }
                other => Some(format!("it answered {other:?}")),
            },
            Err(why) => Some(why),
        };
        if trouble != complaint {
            if let Some(why) = &trouble {
                tracing::warn!(front = %front.name, why, "its certificate is not renewed");
            }
            complaint = trouble;
        }
        tokio::time::sleep(RENEWAL).await;
    }
}

const fn hierarchy(version: Version) -> Hierarchy {
    match version {
        Version::V1 => Hierarchy::V1,
        Version::V2 => Hierarchy::V2,
    }
}

/// One life of an instance: one that begins from an image has the number of the process before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    pid: u32,
    starts: u32,
}

/// The instances of a front that run.
fn running(front: &FrontConfig, report: &TickReport) -> Vec<(usize, AppId, Life)> {
    let instances = front.instances.iter().enumerate();
    let running = instances.filter_map(|(slot, (app, _))| {
        let pid = match front.groups.get(app) {
            Some(group) => fence::first_process(&Roots::default(), group)?,
            None => report.apps.get(app)?.main_pid?,
        };
        let starts = report.apps.get(app).map_or(0, |app| app.starts);
        Some((slot, app.clone(), Life { pid, starts }))
    });
    running.collect()
}
