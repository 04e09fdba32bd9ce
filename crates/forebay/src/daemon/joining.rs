//! What of a fleet runs beside the main thread, where this host is not alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use forebay_core::app::{App, AppId};
use forebay_core::fleet::choice::Room;
use forebay_core::fleet::offering;
use forebay_core::units::MilliCpu;
use tokio::sync::watch;

use super::Error;
use crate::config::{self, Config, FleetConfig, HostFacts};
use crate::control::{self, Command, Published};
use crate::fleet::agent;
use crate::fleet::member::{self, Membership};
use crate::{outlook, tiering};

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

/// What takes part in moves, where this host listens to others of its fleet.
pub(super) fn agent(
    config: &Config,
    facts: &HostFacts,
    membership: Option<&Membership>,
    commands: &SyncSender<Command>,
    published: &watch::Receiver<Option<Arc<Published>>>,
    apps: watch::Receiver<BTreeMap<AppId, App>>,
    elsewhere: watch::Sender<Arc<BTreeSet<AppId>>>,
) -> Result<Option<agent::Prepared>, Error> {
    let link = config.fleet.as_ref().map(|fleet| &fleet.link);
    let listen = link.and_then(|link| Some((link.listen?, link.rdma)));
    let (Some(membership), Some((listen, rdma))) = (membership, listen) else {
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
        elsewhere,
        capacity: Room {
            cpu: MilliCpu::cpus(u64::try_from(facts.cpus).unwrap_or(u64::MAX)),
            memory: facts.memory.saturating_sub(config.policy.system_memory),
        },
    });
    let prepared = prepared.map_err(|why| Error::Host(format!("take part in moves: {why}")))?;
    Ok(Some(prepared))
}
