//! Images of programs: which there are, and asking for one.

use axum::Json;
use axum::extract::State;
use forebay_api as api;

use super::problem::{Failure, InPath};
use super::routes::Shared;
use crate::images::Refused;

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown(why) => Self::not_found(why),
            Refused::Busy(why) => Self::busy(why),
        }
    }
}

pub(super) async fn images(State(server): State<Shared>) -> Json<api::ImageList> {
    Json(api::ImageList {
        images: server.state.images.rows(),
    })
}

pub(super) async fn take(
    State(server): State<Shared>,
    InPath(app): InPath<String>,
) -> Result<Json<api::Done>, Failure> {
    server.state.images.take(&app)?;
    Ok(Json(api::Done {
        messages: vec![format!(
            "an image of {app} is taken; `forebay image` shows it"
        )],
    }))
}
