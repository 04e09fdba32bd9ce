//! FleetLock: hosts that are updated by others ask here whether they may be away.
//!
//! The protocol is that of Zincati and airlock: a POST to `/v1/pre-reboot` takes a slot, one to
//! `/v1/steady-state` gives it back; both may be repeated. The header `fleet-lock-protocol: true` and the JSON
//! body `{"client_params": {"id": ..., "group": ...}}` are asked for; 200 is yes, all else is no, with
//! `{"kind": ..., "value": ...}`. There is neither encryption nor any proof of who asks: that is the network's.
//!
//! Source: coreos.github.io/zincati/development/fleetlock/protocol, and the errors of coreos/airlock.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use forebay_core::fleet::rolling::{check_client, check_group};
use serde::{Deserialize, Serialize};

use crate::config::LockConfig;
use crate::update::rolling::{Desk, RollError};

/// The largest body of a request.
const BODY_BYTES_MAX: usize = 4 << 10;
/// How long a request may take, its body included.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
const PROTOCOL: &str = "fleet-lock-protocol";

/// What both requests share.
#[derive(Debug)]
struct Lock {
    desk: Desk,
    config: LockConfig,
}

/// What is in the body; what else is there is for others.
#[derive(Debug, Deserialize)]
struct Asked {
    client_params: Client,
}

#[derive(Debug, Deserialize)]
struct Client {
    id: String,
    group: String,
}

/// An answer that is no.
#[derive(Debug, Serialize)]
struct No {
    #[serde(skip)]
    status: StatusCode,
    kind: &'static str,
    value: String,
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        let status = self.status;
        // As airlock does, so that whoever reads lines has one.
        let text = serde_json::to_string(&self).unwrap_or_default() + "\n";
        (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
    }
}

fn no(status: StatusCode, kind: &'static str, value: impl Into<String>) -> No {
    No {
        status,
        kind,
        value: value.into(),
    }
}

/// What is answered at the address of FleetLock.
pub(super) fn router(desk: Desk, config: LockConfig) -> Router {
    Router::new()
        .route("/v1/pre-reboot", post(pre_reboot))
        .route("/v1/steady-state", post(steady_state))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unsupported_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(in_time))
        .with_state(Arc::new(Lock { desk, config }))
}

/// Gives up on who sends slowly, and on a coordinator that does not answer.
async fn in_time(request: Request, next: Next) -> Response {
    let given_up = || {
        let value = "it took too long; ask again";
        no(StatusCode::SERVICE_UNAVAILABLE, "timeout", value).into_response()
    };
    let answered = tokio::time::timeout(REQUEST_WAIT, next.run(request)).await;
    answered.unwrap_or_else(|_| given_up())
}

async fn unknown_path() -> No {
    let value = "use /v1/pre-reboot or /v1/steady-state";
    no(StatusCode::NOT_FOUND, "unknown_path", value)
}

async fn unsupported_method() -> No {
    no(
        StatusCode::METHOD_NOT_ALLOWED,
        "unsupported_method",
        "use POST",
    )
}

async fn pre_reboot(
    State(lock): State<Arc<Lock>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), No> {
    let client = lock.identity(&headers, &body)?;
    let at_once = lock.config.at_once;
    lock.asked("failed_lock", move |desk| {
        desk.lock(&client.id, &client.group, at_once)
    })
    .await
}

async fn steady_state(
    State(lock): State<Arc<Lock>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), No> {
    let client = lock.identity(&headers, &body)?;
    lock.asked("failed_unlock", move |desk| desk.unlock(&client.id))
        .await
}

impl Lock {
    /// Who asks.
    fn identity(&self, headers: &HeaderMap, body: &[u8]) -> Result<Client, No> {
        let wrong = |why: String| no(StatusCode::BAD_REQUEST, "invalid_client_identity", why);
        if headers.get(PROTOCOL).is_none_or(|value| value != "true") {
            return Err(wrong(format!("the header `{PROTOCOL}: true` is not there")));
        }
        let asked: Asked = serde_json::from_slice(body).map_err(|error| {
            wrong(format!(
                "the body is no `client_params` with `id` and `group`: {error}"
            ))
        })?;
        let client = asked.client_params;
        check_client(&client.id).map_err(wrong)?;
        check_group(&client.group).map_err(wrong)?;
        if !self.config.groups.contains(&client.group) {
            return Err(no(
                StatusCode::BAD_REQUEST,
                "unknown_group",
                format!(
                    "the group {} is not served here: name it in fleet.lock.groups",
                    client.group
                ),
            ));
        }
        Ok(client)
    }

    /// Asks the fleet, off the runtime.
    async fn asked(
        &self,
        kind: &'static str,
        ask: impl FnOnce(&Desk) -> Result<(), RollError> + Send + 'static,
    ) -> Result<(), No> {
        let desk = self.desk.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&desk));
        let unknown = |why: &str| no(StatusCode::SERVICE_UNAVAILABLE, kind, why);
        match asked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(RollError::Refused(why))) => Err(no(StatusCode::CONFLICT, kind, why)),
            Ok(Err(RollError::Coordinator(error))) => Err(unknown(&error.to_string())),
            Err(_) => Err(unknown("asking the fleet panicked; see the daemon's log")),
        }
    }
}
