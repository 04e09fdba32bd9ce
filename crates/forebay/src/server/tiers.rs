//! Tiered directories: what their movers show, and what is asked of them.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use forebay_api as api;

use super::problem::{Body, Failure, InPath};
use super::routes::Shared;
use crate::tiering::Refused;

/// Files of one request.
const FILES_MAX: usize = 1000;

type Answer<T> = Result<Json<T>, Failure>;

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown(why) => Self::not_found(why),
            Refused::Busy(why) => Self::busy(why),
        }
    }
}

pub(super) async fn tiers(State(server): State<Shared>) -> Json<api::Tiers> {
    Json(api::Tiers {
        tiers: server.state.tiers.status(),
    })
}

pub(super) async fn ask(
    State(server): State<Shared>,
    InPath(tier): InPath<String>,
    Body(request): Body<api::TierRequest>,
) -> Answer<api::TierAnswer> {
    let wants_files = matches!(
        request.order,
        api::TierOrder::Promote | api::TierOrder::Demote
    );
    if wants_files == request.files.is_empty() || request.files.len() > FILES_MAX {
        return Err(Failure::bad_request(format!(
            "name 1 to {FILES_MAX} files to promote or demote, and none to drain or forget"
        )));
    }
    let files = request.files.into_iter().map(PathBuf::from).collect();
    let answer = server.state.tiers.ask(&tier, request.order, files)?;
    Ok(Json(answer))
}

pub(super) async fn answer(
    State(server): State<Shared>,
    InPath((tier, request)): InPath<(String, String)>,
) -> Answer<api::TierAnswer> {
    let number = request
        .parse()
        .map_err(|_| Failure::bad_request(format!("`{request}` is not the number of a request")))?;
    Ok(Json(server.state.tiers.answer(&tier, number)?))
}
