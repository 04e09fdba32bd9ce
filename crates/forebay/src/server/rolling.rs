//! Rolling updates: how one stands, and asking for one.

use axum::Json;
use axum::extract::State;
use forebay_api as api;

use super::problem::{Body, Failure};
use super::routes::Shared;
use crate::update::rolling::Desk;

type Answer<T> = Result<Json<T>, Failure>;

fn desk(server: &Shared) -> Result<&Desk, Failure> {
    server.state.rolling.as_ref().ok_or_else(|| {
        Failure::not_found("this host is alone; write a section [fleet] and start the daemon again")
    })
}

fn done(said: String) -> Answer<api::Done> {
    Ok(Json(api::Done {
        messages: vec![said],
    }))
}

pub(super) async fn status(State(server): State<Shared>) -> Answer<api::FleetUpdate> {
    Ok(Json(desk(&server)?.status().await?))
}

pub(super) async fn begin(
    State(server): State<Shared>,
    Body(request): Body<api::RolloutRequest>,
) -> Answer<api::UpdateBegun> {
    let number = desk(&server)?.run(request).await?;
    Ok(Json(api::UpdateBegun { number }))
}

pub(super) async fn abort(State(server): State<Shared>) -> Answer<api::Done> {
    done(desk(&server)?.abort().await?)
}

pub(super) async fn resume(
    State(server): State<Shared>,
    Body(request): Body<api::RolloutResume>,
) -> Answer<api::Done> {
    done(desk(&server)?.resume(request).await?)
}

pub(super) async fn release(
    State(server): State<Shared>,
    Body(request): Body<api::SlotRelease>,
) -> Answer<api::Done> {
    done(desk(&server)?.release(request.id).await?)
}
