//! The fleet: how this host stands in it, who is there, and what is asked of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use forebay_api as api;
use forebay_core::app::Class;
use forebay_core::fleet::choice::Room;
use forebay_core::fleet::{HostName, Outcome};

use super::problem::{Failure, InPath};
use super::routes::Shared;
use crate::fleet::coordinator::{Command, Error, Member, now};
use crate::fleet::member::{AskError, Desk};

type Answer<T> = Result<Json<T>, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.outcome() {
            Outcome::Unknown => Self::busy(error.to_string()),
            Outcome::Done | Outcome::Refused => Self::failed(error.to_string()),
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NoHost(why) => Self::not_found(why),
            AskError::Refused(why) => Self::failed(why),
            AskError::Coordinator(error) => error.into(),
        }
    }
}

fn desk(server: &Shared) -> Result<Desk, Failure> {
    server.state.fleet.clone().ok_or_else(|| {
        Failure::not_found("this host is alone; write a section [fleet] and start the daemon again")
    })
}

pub(super) async fn status(State(server): State<Shared>) -> Answer<api::Fleet> {
    let mut shown = shown(&desk(&server)?);
    if let Some(moving) = &server.state.moves {
        for app in &mut shown.apps {
            app.moves = super::moves::on_its_way(&moving.moves, &app.app);
        }
    }
    Ok(Json(shown))
}

/// How this host stands.
pub(super) fn shown(desk: &Desk) -> api::Fleet {
    let standing = Arc::clone(&desk.standing.borrow());
    let lease = standing.tenure.map(|lease| lease.renewed_at + lease.ttl);
    let left = lease.and_then(|until| until.checked_sub(now()));
    let own = |(app, record): (_, &forebay_core::fleet::Ownership)| {
        (record.owner == desk.host).then(|| ToString::to_string(app))
    };
    let records = || standing.records.iter().flat_map(|records| records.iter());
    let app = |(app, record): (_, &forebay_core::fleet::Ownership)| api::FleetApp {
        app: ToString::to_string(app),
        owner: record.owner.to_string(),
        epoch: record.epoch,
        runs: record.runs,
        moves: None,
    };
    api::Fleet {
        host: desk.host.to_string(),
        coordinator: desk.coordinator.place().to_owned(),
        lease_seconds: left.map(|left| left.as_secs_f64()),
        lost_since_unix_ms: standing.lost.as_ref().map(|lost| lost.since_unix_ms),
        lost: standing.lost.as_ref().map(|lost| lost.why.clone()),
        cordoned: standing.cordoned,
        hosts: standing.members.len() as u64,
        owns: records().filter_map(own).collect(),
        apps: records().map(app).collect(),
    }
}

pub(super) async fn hosts(State(server): State<Shared>) -> Answer<api::FleetHosts> {
    let desk = desk(&server)?;
    let members = off_the_runtime(move || desk.coordinator.hosts()).await??;
    Ok(Json(api::FleetHosts {
        hosts: members.values().map(host).collect(),
    }))
}

pub(super) async fn ask(
    State(server): State<Shared>,
    InPath((host, what)): InPath<(String, String)>,
) -> Answer<api::Done> {
    let desk = desk(&server)?;
    let command = match what.as_str() {
        "cordon" => Command::Cordon,
        "uncordon" => Command::Uncordon,
        "drain" => {
            if server.state.moves.is_none() && host == desk.host.as_str() {
                return Err(Failure::failed(
                    "no app changes hosts here: give this host a place in a fleet with `fleet.link.listen`, \
                     or `cordon` it alone",
                ));
            }
            Command::Drain
        }
        other => {
            return Err(Failure::not_found(format!(
                "a host cannot be asked to `{other}`; ask it to `cordon`, `uncordon` or `drain`"
            )));
        }
    };
    let host: HostName = host
        .parse()
        .map_err(|error: forebay_core::fleet::HostNameError| {
            Failure::not_found(error.to_string())
        })?;
    let done = off_the_runtime(move || desk.ask(&host, &command)).await??;
    Ok(Json(api::Done {
        messages: vec![done],
    }))
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Failure::failed("asking the fleet panicked; see the daemon's log"))
}

fn host(member: &Member) -> api::FleetHost {
    let offer = &member.offer;
    let sums = [&offer.needed, &offer.promised];
    let needed = sums.into_iter().flat_map(|sums| sums.values());
    let classes = [Class::Critical, Class::Standard, Class::Batch];
    api::FleetHost {
        host: member.host.to_string(),
        version: member.version.clone(),
        address: member.address.clone(),
        cordoned: offer.cordoned,
        capacity: room(offer.capacity),
        needed: needed.fold(
            api::FleetRoom {
                cpus: 0.0,
                memory_bytes: 0,
            },
            |sum, more| api::FleetRoom {
                cpus: sum.cpus + more.cpu.as_cpus(),
                memory_bytes: sum.memory_bytes.saturating_add(more.memory.0),
            },
        ),
        room: classes
            .map(|class| (class.to_string(), room(offer.room(class))))
            .into(),
        apps: offer.apps.iter().map(ToString::to_string).collect(),
        time_unix_ms: member.unix_ms,
    }
}

fn room(room: Room) -> api::FleetRoom {
    api::FleetRoom {
        cpus: room.cpu.as_cpus(),
        memory_bytes: room.memory.0,
    }
}
