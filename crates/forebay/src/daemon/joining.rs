//! What of a fleet runs beside the main thread, where this host is not alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use forebay_core::app::{App, AppId};
use forebay_core::fleet::offering;
use forebay_core::fleet::policy::Away;
use tokio::sync::watch;

use super::Error;
use super::error::system;
use crate::config::{self, Config, FleetConfig, HostFacts, LockConfig};
use crate::control::{self, Command, Published};
use crate::fleet::agent;
use crate::fleet::member::{self, Membership};
use crate::update::rolling::Roller;
use crate::{outlook, server, tiering, update};

/// Starts the thread of the fleet, where this host is not alone.
pub(super) fn membership(
    config: &Config,
    facts: &HostFacts,
    published: &watch::Receiver<Option<Arc<Published>>>,
    outlook: outlook::Desk,
    tell: &tiering::Tell,
) -> Result<Option<Membership>, Error> {
    let start = |fleet: &FleetConfig| {
        Membership::start(member::Beginning {
            config: fleet.clone(),
            directory: config::fleet_directory(&config.daemon.state_dir),
            host: offering::Host {
                cpus: facts.cpus,
                memory: facts.memory,
                system_memory: config.policy.system_memory,
            },
            reports: published.clone(),
            outlook,
            tell: Arc::clone(tell),
        })
    };
    let membership = config.fleet.as_ref().map(start).transpose();
    membership.map_err(|why| Error::Host(format!("become a member of the fleet: {why}")))
}

/// Listens for those who speak FleetLock, where they are to be listened to.
pub(super) fn lock(
    config: &Config,
) -> Result<Option<(std::net::TcpListener, LockConfig)>, server::ListenError> {
    let lock = config.fleet.as_ref().and_then(|fleet| fleet.lock.clone());
    let bind = |lock: LockConfig| Ok((server::bind(lock.listen)?, lock));
    lock.map(bind).transpose()
}

/// Starts the thread of rolling updates, where this host is not alone.
pub(super) fn roller(
    membership: Option<&Membership>,
    update: update::Desk,
) -> Result<Option<Roller>, Error> {
    let start = |membership: &Membership| Roller::start(membership.desk(), update);
    membership.map(start).transpose().map_err(system(
        "start the thread of rolling updates",
        "check limits on threads",
    ))
}

/// What the control thread is told of the fleet.
pub(super) struct Told {
    /// Apps that are not this host's to start.
    pub(super) elsewhere: watch::Sender<Arc<BTreeSet<AppId>>>,
    /// Where apps could move to.
    pub(super) away: watch::Sender<Option<Arc<BTreeMap<AppId, Away>>>>,
}

/// What takes part in moves, where this host listens to others of its fleet.
pub(super) fn agent(
    config: &Config,
    membership: Option<&Membership>,
    commands: &SyncSender<Command>,
    published: &watch::Receiver<Option<Arc<Published>>>,
    apps: watch::Receiver<BTreeMap<AppId, App>>,
    told: Told,
) -> Result<Option<agent::Prepared>, Error> {
    let fleet = config.fleet.as_ref();
    let listening =
        fleet.and_then(|fleet| Some((fleet.link.listen?, fleet.link.rdma, fleet.moves)));
    let (Some(membership), Some((listen, rdma, own))) = (membership, listening) else {
        return Ok(None);
    };
    let prepared = agent::prepare(agent::Beginning {
        member: membership.desk(),
        listen,
        rdma,
        state_dir: &config.daemon.state_dir,
        criu: config.daemon.criu.clone(),
        anchor: Path::new(&config.daemon.cgroup_root),
        commands: commands.clone(),
        reports: published.clone(),
        apps,
        tell: control::tell_of(commands),
        elsewhere: told.elsewhere,
        away: told.away,
        own,
    });
    let prepared = prepared.map_err(|why| Error::Host(format!("take part in moves: {why}")))?;
    Ok(Some(prepared))
}
