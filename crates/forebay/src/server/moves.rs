//! Moves between hosts: which there are, asking for one, giving one up.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use forebay_api as api;
use forebay_core::app::AppId;
use forebay_core::fleet::{arrival, departure};

use super::problem::{Body, Failure, Named};
use super::routes::Shared;
use crate::fleet::moves::{Awaited, Desk, Leaver, Moves, Note, Place, Refused, Shown};

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoSuch(why) => Self::not_found(why),
            Refused::Busy(why) => Self::busy(why),
            Refused::Cannot(why) => Self::failed(why),
        }
    }
}

const fn stage(stage: departure::Stage) -> &'static str {
    use departure::{End, Stage};
    match stage {
        Stage::Checking => "checking",
        Stage::Reserving => "reserving",
        Stage::Copying => "copying",
        Stage::Freezing => "freezing",
        Stage::Sending => "sending",
        Stage::Committing => "committing",
        Stage::Recalling => "recalling",
        Stage::Reading => "reading",
        Stage::Awaiting => "awaiting",
        Stage::Lending => "lending",
        Stage::Ending => "ending",
        Stage::Thawing => "thawing",
        Stage::CallingOff => "calling_off",
        Stage::Over(End::Refused) => "refused",
        Stage::Over(End::Stayed) => "stayed",
        Stage::Over(End::Moved) => "moved",
    }
}

const fn arrival_stage(stage: arrival::Stage) -> &'static str {
    use arrival::Stage;
    match stage {
        Stage::Receiving => "receiving",
        Stage::Preparing => "preparing",
        Stage::Waiting => "waiting",
        Stage::Starting => "starting",
        Stage::Announcing => "announcing",
        Stage::Returning => "returning",
        Stage::Discarding { .. } => "discarding",
        Stage::Watching => "watching",
        Stage::Over(_) => "over",
    }
}

fn away((note, shown): &(Arc<Note>, Shown)) -> api::Move {
    let copying = shown.foreseen.and_then(|foreseen| foreseen.copying);
    api::Move {
        app: note.app.to_string(),
        to: note.there.to_string(),
        mode: note.way.to_string(),
        began_unix_ms: note.began_unix_ms,
        stage: stage(shown.stage).to_owned(),
        over: matches!(shown.stage, departure::Stage::Over(_)),
        sent_bytes: shown.sent,
        total_bytes: shown.total,
        took_seconds: shown.took.as_secs_f64(),
        stood_seconds: shown.stood.map(|time| time.as_secs_f64()),
        expected_pause_seconds: shown.foreseen.map(|of| of.pause.as_secs_f64()),
        written_bytes_per_second: copying.map(|of| of.written),
        link_bytes_per_second: copying.map(|of| of.link),
        left_seconds: shown.left.map(|time| time.as_secs_f64()),
        transport: shown.carried.as_ref().map(|carried| carried.by.to_string()),
        transport_why: shown
            .carried
            .as_ref()
            .and_then(|carried| carried.why.clone()),
        owed_bytes: shown.owed.map(|owed| owed.0),
        why: shown.why.clone(),
    }
}

fn coming(awaited: &Awaited) -> api::Arrival {
    api::Arrival {
        app: awaited.app.to_string(),
        from: awaited.from.to_string(),
        stage: arrival_stage(awaited.stage).to_owned(),
        why: awaited.why.clone(),
    }
}

/// What this host does to have an application move.
pub(super) fn on_its_way(moves: &Moves, app: &str) -> Option<String> {
    let away = moves.away().into_iter().find_map(|(note, shown)| {
        let is_it = note.app.as_str() == app && note.end().is_none();
        is_it.then(|| format!("to {}: {}", note.there, stage(shown.stage)))
    });
    away.or_else(|| {
        let coming = moves
            .awaited()
            .into_iter()
            .find(|one| one.app.as_str() == app)?;
        Some(format!(
            "from {}: {}",
            coming.from,
            arrival_stage(coming.stage)
        ))
    })
}

/// Does what may block, off the runtime.
async fn off<T: Send + 'static>(
    server: &Shared,
    ask: impl FnOnce(Desk) -> Result<T, Refused> + Send + 'static,
) -> Result<T, Failure> {
    let desk = server.state.moves.clone().ok_or_else(|| {
        Failure::failed(
            "no app changes hosts here: give this host a place in a fleet with `fleet.link.listen`",
        )
    })?;
    match tokio::task::spawn_blocking(move || ask(desk)).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Failure::failed(format!(
            "the request was given up: {error}"
        ))),
    }
}

pub(super) async fn moves(State(server): State<Shared>) -> Json<api::Moves> {
    let desk = server.state.moves.as_ref();
    Json(desk.map_or_else(api::Moves::default, |desk| shown(&desk.moves)))
}

/// Moves from and to this host.
pub(super) fn shown(moves: &Moves) -> api::Moves {
    api::Moves {
        host: Some(moves.here().to_string()),
        away: moves.away().iter().map(away).collect(),
        coming: moves.awaited().iter().map(coming).collect(),
        trouble: moves.broken(),
    }
}

pub(super) async fn begin(
    State(server): State<Shared>,
    Body(request): Body<api::MoveRequest>,
) -> Result<Json<api::Done>, Failure> {
    let api::MoveRequest { app, to, dry_run } = request;
    let id = app.parse::<AppId>().map_err(|_| Failure::no_app(&app))?;
    let message = off(&server, move |desk| {
        let (to, look) = desk.target(&id, &to)?;
        if dry_run {
            let outlook = desk.moves.try_only(&id, &to, look)?;
            let foreseen =
                (outlook.foreseen).map_or_else(String::new, |foreseen| format!("; {foreseen}"));
            let risks = outlook.risks.map(|risks| format!("; {risks}"));
            let risks = risks.unwrap_or_default();
            return Ok(format!(
                "{id} can move to {to}: it has room, and all that {id} needs{foreseen}{risks}"
            ));
        }
        desk.moves.begin(&id, &to, look)?;
        Ok(format!("{id} moves to {to}"))
    });
    Ok(Json(api::Done {
        messages: vec![message.await?],
    }))
}

pub(super) async fn cancel(
    State(server): State<Shared>,
    Named(app): Named,
) -> Result<Json<api::Done>, Failure> {
    let message = off(&server, move |desk| {
        desk.moves.cancel(&app)?;
        Ok(format!(
            "{app} is to stay, if its record was not changed yet; `forebay move` shows it"
        ))
    });
    Ok(Json(api::Done {
        messages: vec![message.await?],
    }))
}

fn leaver(one: &Leaver) -> api::DrainedApp {
    let (state, to, why) = match &one.place {
        Place::Waits(why) => ("waits", None, why.clone()),
        Place::Moves(to) => ("moves", Some(to), None),
        Place::Left(to) => ("left", to.as_ref(), None),
        Place::Stays(why) => ("stays", None, Some(why.clone())),
    };
    api::DrainedApp {
        app: one.app.to_string(),
        movable: one.movable,
        state: state.to_owned(),
        to: to.map(ToString::to_string),
        why,
    }
}

pub(super) async fn drain(State(server): State<Shared>) -> Result<Json<api::Drain>, Failure> {
    let shown = off(&server, |desk| {
        let drained = desk.drain.shown();
        Ok(api::Drain {
            host: desk.moves.here().to_string(),
            draining: drained.goes_on,
            over: drained.is_over(),
            apps: drained.apps.iter().map(leaver).collect(),
            trouble: drained.trouble,
        })
    });
    Ok(Json(shown.await?))
}
