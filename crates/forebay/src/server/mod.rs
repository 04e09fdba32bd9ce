//! The HTTP API: on the daemon's socket for everyone the rules allow, and read-only on
//! loopback TCP when asked for.
//!
//! [`routes`] is the one table of what there is; routing and the OpenAPI document both come
//! from it. Nothing here decides about a slice: reports are read, and changes are asked of
//! the control thread. Everything is bounded: connections, the size and time of a request,
//! the events that a slow follower can catch up on.

mod connections;
mod convert;
mod feed;
mod fleet;
mod fleet_lock;
mod fronts;
mod handlers;
mod images;
mod loopback;
mod metrics;
mod moves;
mod openapi;
mod otlp;
mod peer;
mod places;
mod problem;
mod rolling;
mod routes;
mod socket;
#[cfg(test)]
pub(crate) mod tests;
mod ticks;
mod tiers;
mod update;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use forebay_api as api;
use forebay_core::app::{App, AppId, Policy};
use forebay_core::units::Bytes;
use tokio::sync::{oneshot, watch};

pub(crate) use connections::{Listeners, serve};
pub(crate) use otlp::Otlp;
pub(crate) use peer::{Readers, Rules, group_number};
pub(crate) use problem::Failure;
pub(crate) use routes::{CHANGE_WAIT, names_loopback};
pub(crate) use socket::{ListenError, Socket, bind, bind_loopback, remove_stale};

use crate::control::{Command, Published};
use crate::outlook;
use crate::signals::Teller;
use crate::tiering::Desk;
use crate::training;
use feed::{Feed, View};
use ticks::Ticks;
/// Reads the configuration anew and puts it in force; what changed, or all that is wrong.
pub(crate) type Reload = Arc<dyn Fn() -> Result<Vec<String>, String> + Send + Sync>;
/// Makes an app of a request.
pub(crate) type RunApp = Arc<dyn Fn(api::RunRequest) -> Result<App, String> + Send + Sync>;
/// Sets one key of one app of a policy.
pub(crate) type SetKey =
    Arc<dyn Fn(&mut Policy, &AppId, &str, &str) -> Result<(), String> + Send + Sync>;
/// Reads the history of one resource of one app: the intervals it chose, oldest first.
pub(crate) type ReadHistory =
    Arc<dyn Fn(HistoryQuery) -> Result<(api::Step, Vec<api::HistoryRow>), String> + Send + Sync>;
/// Reads stored events, oldest first.
pub(crate) type ReadEvents =
    Arc<dyn Fn(EventsQuery) -> Result<Vec<api::Event>, String> + Send + Sync>;
/// How far the forecasts of others about an app are believed, in words; must be quick.
pub(crate) type ReadBeliefs = Arc<dyn Fn(&AppId) -> Vec<String> + Send + Sync>;
/// How it stands with the training of the network; must be quick.
pub(crate) type ReadTraining = Arc<dyn Fn() -> training::Status + Send + Sync>;
/// What the daemon itself uses now.
pub(crate) type ReadAgent = Arc<dyn Fn() -> AgentUse + Send + Sync>;

/// What the API stands on. The closures may block; they are called off the runtime, except
/// `set_key`, which the control thread calls, and `agent`, which must be quick.
pub(crate) struct ServerState {
    /// What the control thread publishes.
    pub(crate) reports: watch::Receiver<Option<Arc<Published>>>,
    /// Where it takes commands.
    pub(crate) commands: SyncSender<Command>,
    /// Who may do what.
    pub(crate) rules: Rules,
    /// For `POST /v1/reload`.
    pub(crate) reload: Reload,
    /// For `POST /v1/apps`.
    pub(crate) run_app: RunApp,
    /// For `PATCH /v1/apps/{name}` and `POST /v1/plan`.
    pub(crate) set_key: SetKey,
    /// For `GET /v1/history/{app}/{resource}`.
    pub(crate) history: ReadHistory,
    /// For `GET /v1/events`; without it, those that the control thread remembers.
    pub(crate) events: Option<ReadEvents>,
    /// For every status.
    pub(crate) agent: ReadAgent,
    /// For `/v1/tiers`.
    pub(crate) tiers: Desk,
    /// For `/v1/images`.
    pub(crate) images: crate::images::Desk,
    /// For `/v1/fleet`; none where this host is alone.
    pub(crate) fleet: Option<crate::fleet::member::Desk>,
    /// For `/v1/moves`; none on a host that is in no fleet.
    pub(crate) moves: Option<crate::fleet::moves::Desk>,
    /// For `/v1/update`.
    pub(crate) update: Option<crate::update::Desk>,
    /// For `/v1/update/fleet`, and for FleetLock; none where this host is alone.
    pub(crate) rolling: Option<crate::update::rolling::Desk>,
    /// For `/v1/fronts`.
    pub(crate) fronts: crate::fronts::Desk,
    /// For `GET /v1/forecast/{app}`.
    pub(crate) outlook: outlook::Desk,
    /// For `POST /v1/apps/{name}/signals`.
    pub(crate) teller: Teller,
    /// For `GET /v1/apps/{name}`.
    pub(crate) beliefs: ReadBeliefs,
    /// For `GET /v1/forecast`.
    pub(crate) training: ReadTraining,
    /// Where metrics are sent; none where nobody wants them.
    pub(crate) otlp: Option<Otlp>,
}

impl std::fmt::Debug for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerState")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// What part of a history is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HistoryQuery {
    /// The app; it may no longer be configured.
    pub(crate) app: AppId,
    /// The resource.
    pub(crate) resource: api::Resource,
    /// Length of the intervals; when absent, the shortest that reaches back far enough and
    /// fits the limit.
    pub(crate) step: Option<api::Step>,
    /// Not before this.
    pub(crate) since_unix_ms: Option<u64>,
    /// At most so many intervals, the latest; 1 to 10,000.
    pub(crate) limit: usize,
}

/// Which events are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventsQuery {
    /// Only those about this app.
    pub(crate) app: Option<AppId>,
    /// Not before this.
    pub(crate) since_unix_ms: u64,
    /// At most so many, the latest; 1 to 10,000.
    pub(crate) limit: usize,
}

/// What the daemon itself uses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AgentUse {
    /// Processor time since it started.
    pub(crate) cpu: Duration,
    /// Memory it holds.
    pub(crate) resident: Bytes,
}

/// What every handler sees.
#[derive(Debug)]
struct Server {
    state: ServerState,
    feed: Feed,
    ticks: Ticks,
}

impl Server {
    /// The latest report.
    fn view(&self) -> Result<View, Failure> {
        self.feed
            .view()
            .ok_or_else(|| Failure::busy("the daemon is starting; try again in a second"))
    }

    fn agent(&self) -> AgentUse {
        (self.state.agent)()
    }

    /// The metrics now.
    async fn metrics(&self) -> Result<String, std::fmt::Error> {
        let continuity = metrics::Continuity::now(&self.state).await;
        metrics::render(
            self.feed.view().as_ref(),
            &self.feed.totals(),
            self.agent(),
            &self.state.tiers.status(),
            &continuity,
        )
    }

    /// Asks the control thread.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Failure> {
        ask(&self.state.commands, command).await
    }

    async fn policy(&self) -> Result<Policy, Failure> {
        self.ask(Command::Policy).await
    }
}

/// Asks the control thread without ever waiting for room: it may be late, we may not.
async fn ask<T>(
    commands: &SyncSender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Failure> {
    let stopping = || Failure::busy("the daemon is stopping");
    let (reply, answer) = oneshot::channel();
    match commands.try_send(command(reply)) {
        Ok(()) => answer.await.map_err(|_| stopping()),
        Err(TrySendError::Full(_)) => Err(Failure::busy(
            "the control thread has as many requests as it takes; try again",
        )),
        Err(TrySendError::Disconnected(_)) => Err(stopping()),
    }
}
