//! Fronts: how they stand, and what is asked of them.

use axum::Json;
use axum::extract::State;
use forebay_api as api;
use forebay_shadow::control::{Counts, Request};
use forebay_shadow::status::{MemberStatus, Status};
use forebay_shadow::synchronise::Standing;
use tokio::task::JoinSet;

use super::problem::{Failure, InPath};
use super::routes::Shared;
use crate::fronts::{Desk, Known, Refused, Way};

type Answer<T> = Result<Json<T>, Failure>;

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown(why) => Self::not_found(why),
            Refused::Busy(why) => Self::busy(why),
        }
    }
}

pub(super) async fn fronts(State(server): State<Shared>) -> Json<api::Fronts> {
    let fronts = asked(&server.state.fronts).await;
    Json(api::Fronts { fronts })
}

/// All fronts by name, with what each counted where it answers in time.
pub(super) async fn asked(desk: &Desk) -> Vec<api::Front> {
    // All are asked at the same time, so that one that does not answer delays none.
    let mut asked = JoinSet::new();
    for (name, known) in desk.all() {
        let desk = desk.clone();
        asked.spawn(async move {
            let counts = desk.counts(name.as_str()).await;
            // One that does not answer is shown without its counts, and says why.
            front(&known, counts, &desk)
        });
    }
    let mut fronts = asked.join_all().await;
    fronts.sort_by(|one, other| one.front.cmp(&other.front));
    fronts
}

pub(super) async fn upgrade(
    State(server): State<Shared>,
    InPath(front): InPath<String>,
) -> Answer<api::Done> {
    // Whoever asked may go away; what was begun is ended or undone all the same.
    let desk = server.state.fronts.clone();
    let upgrading = tokio::spawn(async move { desk.upgrade(&front).await });
    let messages = match upgrading.await {
        Ok(done) => done?,
        Err(error) => return Err(Refused::Busy(format!("the upgrade broke: {error}")).into()),
    };
    Ok(Json(api::Done { messages }))
}

pub(super) async fn hand_over(
    State(server): State<Shared>,
    InPath(front): InPath<String>,
) -> Answer<api::HandOver> {
    change(&server, front, Way::InOrder).await
}

pub(super) async fn promote(
    State(server): State<Shared>,
    InPath(front): InPath<String>,
) -> Answer<api::HandOver> {
    change(&server, front, Way::AtOnce).await
}

async fn change(server: &Shared, front: String, way: Way) -> Answer<api::HandOver> {
    let transition = server.state.fronts.change(&front, way).await?;
    let step = |(step, time): (String, std::time::Duration)| api::HandOverStep {
        step,
        ms: time.as_secs_f64() * 1e3,
    };
    Ok(Json(api::HandOver {
        front,
        from: transition.from,
        to: transition.to.unwrap_or_default(),
        epoch: transition.epoch,
        steps: transition.steps.into_iter().map(step).collect(),
    }))
}

/// Resynchronises, detaches or attaches an instance.
pub(super) async fn tend(
    State(server): State<Shared>,
    InPath((front, app, what)): InPath<(String, String, String)>,
) -> Answer<api::Done> {
    let (request, said) = match what.as_str() {
        "resync" => (
            Request::Resync { app: app.clone() },
            "follows the primary anew",
        ),
        "detach" => (
            Request::Detach { app: app.clone() },
            "does not take over until it is attached",
        ),
        "attach" => (Request::Attach { app: app.clone() }, "may take over again"),
        other => {
            return Err(Failure::bad_request(format!(
                "`{other}` is nothing to do with an instance; use resync, detach or attach"
            )));
        }
    };
    server.state.fronts.tend(&front, &request).await?;
    Ok(Json(api::Done {
        messages: vec![format!("{front}: {app} {said}")],
    }))
}

/// All fronts as they are known, without asking them.
pub(super) fn known(desk: &Desk) -> Vec<api::Front> {
    let fronts = desk.all().into_values().map(|known| api::Front {
        changes: Vec::new(),
        failures: Vec::new(),
        ..standing(&known)
    });
    fronts.collect()
}

fn standing(known: &Known) -> api::Front {
    let config = &known.config;
    let mut front = api::Front {
        front: config.name.to_string(),
        mode: config.mode.to_string(),
        listen: config.listen.iter().map(ToString::to_string).collect(),
        ..api::Front::default()
    };
    match &known.status {
        Ok(status) => fill(&mut front, status),
        Err(why) => front.trouble = Some(why.clone()),
    }
    if let Some(why) = &known.unreachable {
        front.stage = Some("unreachable".to_owned());
        front.trouble = Some(format!("it is unreachable: {why}"));
    }
    front
}

fn front(known: &Known, counts: Result<Counts, Refused>, desk: &Desk) -> api::Front {
    let mut front = standing(known);
    front.outdated = desk.outdated(known);
    match counts {
        Ok(counts) => front.counts = Some(convert(counts)),
        Err(Refused::Unknown(why) | Refused::Busy(why)) => {
            front.stage = Some("unreachable".to_owned());
            front.trouble = Some(why);
        }
    }
    front
}

fn fill(front: &mut api::Front, status: &Status) {
    let name = |slot: usize| status.members.get(slot).map(|member| member.app.clone());
    front.stage = Some(status.stage.clone());
    front.primary = name(status.primary);
    front.standby = status.standby.and_then(name);
    front.epoch = status.epoch;
    front.instances = status.members.iter().map(instance).collect();
    front.changes = status.transitions.iter().map(ToString::to_string).collect();
    let left = status.left.iter().map(|left| left.why.clone());
    front.trouble = Some(left.collect::<Vec<_>>().join("; ")).filter(|left| !left.is_empty());
    let failures = status.failures.iter();
    front.failures = failures.map(|failure| failure.what.clone()).collect();
    front.pid = Some(status.about.pid).filter(|pid| *pid > 0);
}

fn instance(member: &MemberStatus) -> api::FrontInstance {
    let (ready, trouble, lag) = match &member.standing {
        Standing::Ready { lag } => (true, None, *lag),
        Standing::Behind(why) | Standing::Away(why) => (false, Some(why.clone()), None),
    };
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    api::FrontInstance {
        app: member.app.clone(),
        address: member.address.to_string(),
        elsewhere: member.elsewhere.clone(),
        pid: member.pid,
        fence: member.fence,
        ready,
        detached: member.detached,
        trouble,
        lag_bytes: lag.and_then(|lag| lag.bytes),
        lag_ms: lag.and_then(|lag| lag.time).map(ms),
    }
}

const fn convert(counts: Counts) -> api::FrontCounts {
    api::FrontCounts {
        connections: counts.connections,
        refused: counts.refused,
        requests: counts.requests,
        held: counts.held,
        replayed: counts.replayed,
        failed: counts.failed,
        unknown: counts.unknown,
        mirrored: counts.mirrored,
        mismatched: counts.mismatched,
        unmirrored: counts.unmirrored,
        spread: counts.spread,
        open: counts.open,
        before: counts.before,
        before_open: counts.before_open,
    }
}
