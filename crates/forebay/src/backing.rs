//! What the API stands on: configuration, history and the daemon's own use, as the closures
//! that the server takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay_api as api;
use forebay_core::app::{App, AppId, OnStop, Policy};
use forebay_core::occasion::Source;
use forebay_core::plan::Reason;
use tokio::sync::{oneshot, watch};

use crate::calibrate;
use crate::config::{self, AppArgs, Config, HostFacts, Readers};
use crate::control::{Command, Edit, Published};
use crate::fetch::{Foretold, Sources};
use crate::fleet::{member, moves};
use crate::fronts;
use crate::images;
use crate::outlook;
use crate::server::{self, AgentUse, EventsQuery, HistoryQuery, ReadAgent, Rules, ServerState};
use crate::signals::Teller;
use crate::store::{self, Level, Reader, Resolution};
use crate::tiering::Desk;

/// Reads the configuration again and puts it in force, or leaves everything as it is.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    pub(crate) file: Option<PathBuf>,
    /// Where measurements of block devices are.
    pub(crate) state_dir: PathBuf,
    pub(crate) facts: HostFacts,
    pub(crate) commands: SyncSender<Command>,
    /// What the policy in force says of a stop.
    pub(crate) on_stop: watch::Sender<OnStop>,
    /// What is read of others.
    pub(crate) sources: watch::Sender<Option<Sources>>,
    /// The fronts as apps: they stay as they began until the next start.
    pub(crate) fronts: BTreeMap<AppId, App>,
    pub(crate) desk: fronts::Desk,
    /// Events and calendars.
    pub(crate) declared: watch::Sender<Vec<Source>>,
    /// The apps that images are taken of.
    pub(crate) imaged: watch::Sender<BTreeMap<AppId, images::Wanted>>,
    /// The apps of an update that is under way: they stand in no file.
    pub(crate) update: crate::update::Kept,
    /// All apps, for moves between hosts.
    pub(crate) apps: watch::Sender<BTreeMap<AppId, App>>,
    /// Where it is known whose those are that can move.
    pub(crate) moves: Option<moves::Desk>,
}

/// Where the history is.
#[derive(Debug, Clone)]
pub(crate) enum History {
    /// It is written and holds all events.
    Kept(PathBuf),
    /// It could not be opened; asking for it says why. Events are those in memory.
    Off(PathBuf),
}

impl Reload {
    /// Blocks until the control thread has taken the new policy. Apps that were added by
    /// `forebay run` are not in the file and are released.
    ///
    /// # Errors
    /// All mistakes in the file; then the running policy stays.
    pub(crate) fn run(&self) -> Result<Vec<String>, String> {
        let mut config =
            config::load(self.file.as_deref(), &self.facts).map_err(|errors| errors.to_string())?;
        let measured = calibrate::known(&self.state_dir, &self.facts.root);
        config.policy.devices = measured.devices;
        // Without its plan a new front cannot begin, and one that is left out serves clients.
        for front in config.fronts.values() {
            config.policy.apps.remove(&front.app);
        }
        config.policy.apps.extend(self.fronts.clone());
        let apps = config.policy.apps.len();
        config.policy.apps.extend(self.update.apps());
        let on_stop = config.policy.on_stop;
        let imaged = images::wanted(&config.policy.apps);
        let known = config.policy.apps.clone();
        let new = config.policy;
        let kept: BTreeSet<AppId> = new.apps.keys().cloned().collect();
        let gone = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&gone);
        let apart = self.update.apart();
        let held = self.update.clone();
        let edit = Box::new(move |policy: &mut Policy| {
            let mut new = new;
            apart.impose(&mut new);
            held.hold_back(&mut new);
            let old = std::mem::replace(policy, new);
            let mut noted = noted
                .lock()
                .map_err(|_| "the reload was given up".to_owned())?;
            noted.extend(old.apps.into_keys().filter(|id| !kept.contains(id)));
            Ok(())
        });
        // One that can move may be another host's: whose it is has to be known before anybody starts it here.
        let before = self.apps.borrow().clone();
        let all = before.clone().into_iter().chain(known.clone()).collect();
        self.apps.send_replace(all);
        if let Some(desk) = &self.moves {
            desk.moves.look_whose();
        }
        if let Err(why) = self.edit(edit) {
            self.apps.send_replace(before);
            return Err(why);
        }
        self.on_stop.send_replace(on_stop);
        self.sources.send_if_modified(|sources| {
            let changed = sources.as_ref().is_some_and(|now| *now != config.sources);
            if changed {
                *sources = Some(config.sources);
            }
            changed
        });
        self.declared.send_replace(config.known_future.sources());
        self.imaged.send_replace(imaged);
        self.apps.send_replace(known);
        let mut messages = vec![format!(
            "reloaded: {apps} app(s); changes of [daemon], [fleet], [forecast] and [tiers] take effect at the next start"
        )];
        messages.extend(fronts::changed(&self.desk.all(), &config.fronts));
        messages.extend(measured.unused);
        let gone = gone
            .lock()
            .map_err(|_| "the reload was given up".to_owned())?;
        messages.extend(
            gone.iter()
                .map(|id| format!("{id} is no longer configured: released; its processes run on")),
        );
        Ok(messages)
    }

    /// Has the control thread take a change of the policy.
    fn edit(&self, edit: Edit) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .try_send(Command::Edit(edit, reply))
            .map_err(|_| "the control thread is busy or stopping; try again".to_owned())?;
        answer
            .blocking_recv()
            .map_err(|_| "the control thread ended".to_owned())?
    }
}

/// Where the threads beside the control thread are asked and told.
pub(crate) struct Desks {
    pub(crate) tiers: Desk,
    pub(crate) outlook: outlook::Desk,
    pub(crate) fronts: fronts::Desk,
    pub(crate) images: images::Desk,
    pub(crate) fleet: Option<member::Desk>,
    pub(crate) moves: Option<moves::Desk>,
    pub(crate) update: crate::update::Desk,
    pub(crate) rolling: Option<crate::update::rolling::Desk>,
    pub(crate) teller: Teller,
    pub(crate) foretold: Foretold,
    pub(crate) training: server::ReadTraining,
}

/// Everything the server needs.
pub(crate) fn state(
    config: &Config,
    reload: Reload,
    reports: watch::Receiver<Option<Arc<Published>>>,
    history_in: History,
    desks: Desks,
) -> ServerState {
    let Desks {
        tiers,
        outlook,
        fronts,
        images,
        fleet,
        moves,
        update,
        rolling,
        teller,
        foretold,
        training,
    } = desks;
    let facts = reload.facts.clone();
    let facts_for_set = facts.clone();
    let (database, events_in) = match history_in {
        History::Kept(database) => (database.clone(), Some(database)),
        History::Off(database) => (database, None),
    };
    let reader: Mutex<Option<Reader>> = Mutex::new(None);
    ServerState {
        otlp: config.daemon.otlp.clone(),
        reports,
        commands: reload.commands.clone(),
        rules: rules(config),
        reload: Arc::new(move || reload.run()),
        run_app: Arc::new(move |request| app(request, &facts)),
        set_key: Arc::new(move |policy, app, key, value| {
            config::set(policy, app, key, value, &facts_for_set).map_err(|error| error.to_string())
        }),
        history: Arc::new(move |query| {
            let mut reader = reader
                .lock()
                .map_err(|_| "reading the history failed before; restart the daemon".to_owned())?;
            let open = match reader.take() {
                Some(open) => open,
                None => Reader::open(&database).map_err(|error| error.to_string())?,
            };
            let answer = history(&open, query);
            *reader = Some(open);
            answer
        }),
        events: events_in.map(|database| {
            let read: server::ReadEvents = Arc::new(move |query| {
                let reader = Reader::open(&database).map_err(|error| error.to_string())?;
                events(&reader, query)
            });
            read
        }),
        agent: agent(),
        tiers,
        outlook,
        fronts,
        images,
        fleet,
        moves,
        update: Some(update),
        rolling,
        teller,
        beliefs: Arc::new(move |app| foretold.explain(app)),
        training,
    }
}

/// Who may do what.
pub(crate) fn rules(config: &Config) -> Rules {
    Rules {
        group: server::group_number(&config.daemon.group),
        readers: match config.daemon.readers {
            Readers::Anyone => server::Readers::Anyone,
            Readers::Group => server::Readers::Group,
        },
    }
}

fn app(request: api::RunRequest, facts: &HostFacts) -> Result<App, String> {
    let mut args = AppArgs::new(request.name, request.class.to_string(), request.command);
    args.exec.user = request.user;
    args.exec.group = request.group;
    args.exec.directory = request.directory.map(PathBuf::from);
    let app = config::app_from_args(args, facts).map_err(|errors| errors.to_string())?;
    let mut policy = Policy::default();
    let id = app.id.clone();
    policy.apps.insert(id.clone(), app);
    for api::Assignment { key, value } in &request.set {
        config::set(&mut policy, &id, key, value, facts).map_err(|error| error.to_string())?;
    }
    policy
        .apps
        .remove(&id)
        .ok_or_else(|| format!("{id}: its settings removed it"))
}

fn history(
    reader: &Reader,
    query: HistoryQuery,
) -> Result<(api::Step, Vec<api::HistoryRow>), String> {
    let history = reader
        .history(&store::HistoryQuery {
            app: Some(query.app),
            resource: match query.resource {
                api::Resource::Cpu => store::Resource::Cpu,
                api::Resource::CpuStalled => store::Resource::CpuStalled,
                api::Resource::Io => store::Resource::Io,
                api::Resource::Memory => store::Resource::Memory,
                api::Resource::Received => store::Resource::Received,
                api::Resource::Sent => store::Resource::Sent,
                api::Resource::Requests => store::Resource::Requests,
                api::Resource::ResponseTime => store::Resource::ResponseTime,
                api::Resource::Accelerator => store::Resource::Accelerator,
                api::Resource::CpuAllowed => store::Resource::CpuAllowed,
                api::Resource::MemoryAllowed => store::Resource::MemoryAllowed,
            },
            since_unix_ms: query.since_unix_ms.unwrap_or(0),
            until_unix_ms: u64::MAX,
            resolution: query.step.map_or(Resolution::Auto, |step| {
                Resolution::At(match step {
                    api::Step::TenSeconds => Level::TenSeconds,
                    api::Step::Minute => Level::Minute,
                    api::Step::Hour => Level::Hour,
                })
            }),
            limit: query.limit,
        })
        .map_err(|error| error.to_string())?;
    let step = match history.level {
        Level::TenSeconds => api::Step::TenSeconds,
        Level::Minute => api::Step::Minute,
        Level::Hour => api::Step::Hour,
    };
    let rows = history
        .rows
        .iter()
        .map(|row| api::HistoryRow {
            time_unix_ms: row.time_unix_ms,
            min: row.min,
            mean: row.mean,
            max: row.max,
            samples: row.count,
            demand_q95: row.demand_q95,
        })
        .collect();
    Ok((step, rows))
}

/// Stored events in the order of time; of one app, its decisions too.
fn events(reader: &Reader, query: EventsQuery) -> Result<Vec<api::Event>, String> {
    let query = store::EventQuery {
        app: query.app,
        since_unix_ms: query.since_unix_ms,
        limit: query.limit,
    };
    let mut rows = reader.events(&query).map_err(|error| error.to_string())?;
    if query.app.is_some() {
        rows.extend(
            reader
                .decisions(&query)
                .map_err(|error| error.to_string())?,
        );
    }
    rows.sort_by_key(|row| (row.time_unix_ms, row.id));
    let skip = rows.len().saturating_sub(query.limit);
    Ok(rows
        .into_iter()
        .skip(skip)
        .map(|row| api::Event {
            time_unix_ms: row.time_unix_ms,
            app: row.app,
            kind: row.kind,
            message: match row.detail.as_deref().and_then(numbers) {
                Some(numbers) => format!("{}; {numbers}", row.message),
                None => row.message,
            },
        })
        .collect())
}

/// The numbers that decided, in words.
fn numbers(detail: &str) -> Option<String> {
    let reason: Reason = serde_json::from_str(detail).ok()?;
    Some(format!(
        "needs {}, {} with headroom; memory {}",
        reason.cpu_demand, reason.cpu_wanted, reason.memory_demand
    ))
}

/// How long what the daemon uses is taken for what it uses now. To look takes a file for each of its children,
/// which all that it started are, and whoever follows the stream asks in each period.
const USED_FOR: Duration = Duration::from_millis(500);

/// The daemon's use with its guardian's.
fn agent() -> ReadAgent {
    let latest: Mutex<Option<(Instant, AgentUse)>> = Mutex::default();
    Arc::new(move || {
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, used)) = latest.filter(|(at, _)| at.elapsed() < USED_FOR) {
            return used;
        }
        let used = forebay_host::daemon_use(Path::new("/proc"), std::process::id())
            .map(|used| AgentUse {
                cpu: used.cpu,
                resident: used.memory,
            })
            .unwrap_or_default();
        *latest = Some((Instant::now(), used));
        used
    })
}
