//! Updates of the operating system: how far one is, and asking for one.

use axum::Json;
use axum::extract::State;
use forebay_api as api;

use super::problem::{Body, Failure, InPath};
use super::routes::Shared;
use crate::update::{Desk, Refused};

type Answer<T> = Result<Json<T>, Failure>;

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Mistake(why) => Self::bad_request(why),
            Refused::Cannot(why) => Self::failed(why),
        }
    }
}

fn desk(server: &Shared) -> Result<&Desk, Failure> {
    let desk = server.state.update.as_ref();
    desk.ok_or_else(|| Failure::failed("this daemon carries out no updates"))
}

pub(super) async fn updates(State(server): State<Shared>) -> Answer<api::Updates> {
    Ok(Json(desk(&server)?.updates().await))
}

pub(super) async fn plan(
    State(server): State<Shared>,
    Body(request): Body<api::UpdateRequest>,
) -> Answer<api::UpdatePlan> {
    Ok(Json(desk(&server)?.plan(request).await?))
}

pub(super) async fn begin(
    State(server): State<Shared>,
    Body(request): Body<api::UpdateRequest>,
) -> Answer<api::UpdateBegun> {
    let number = desk(&server)?.begin(request).await?;
    Ok(Json(api::UpdateBegun { number }))
}

pub(super) async fn steer(
    State(server): State<Shared>,
    InPath(what): InPath<String>,
) -> Answer<api::Done> {
    let desk = desk(&server)?;
    let said = match what.as_str() {
        "resume" => desk.resume()?,
        "abort" => desk.abort()?,
        other => {
            return Err(Failure::bad_request(format!(
                "`{other}` is nothing to do with an update; use resume or abort"
            )));
        }
    };
    Ok(Json(api::Done {
        messages: vec![said],
    }))
}
