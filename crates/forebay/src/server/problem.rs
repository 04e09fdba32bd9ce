//! Answers that are not a success.

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use forebay_api::{Problem, Refusal};
use forebay_core::app::AppId;
use serde::de::DeserializeOwned;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    status: StatusCode,
    refusal: Refusal,
    message: String,
}

impl Failure {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Refusal::BadRequest, message)
    }

    pub(super) fn bad_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Refusal::BadRequest,
            "this path does not take that method; /openapi.json says which it takes",
        )
    }

    pub(crate) fn not_allowed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Refusal::NotAllowed, message)
    }

    /// It is not known who asks.
    pub(crate) fn no_token(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Refusal::NotAllowed, message)
    }

    /// Nobody answers at the daemon's socket.
    pub(crate) fn no_daemon(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, Refusal::Failed, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Refusal::NotFound, message)
    }

    pub(super) fn no_app(name: &str) -> Self {
        Self::not_found(format!("no app `{name}`; `forebay apps` lists them"))
    }

    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Refusal::Busy, message)
    }

    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Refusal::Timeout, message)
    }

    /// It made sense and was refused, or failed.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, Refusal::Failed, message)
    }

    fn problem(self) -> Problem {
        Problem {
            refusal: self.refusal,
            message: self.message,
        }
    }

    /// What is told, for a connection that is not served.
    pub(super) fn body(self) -> String {
        serde_json::json!(self.problem()).to_string()
    }

    fn new(status: StatusCode, refusal: Refusal, message: impl Into<String>) -> Self {
        Self {
            status,
            refusal,
            message: message.into(),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.status;
        (status, Json(self.problem())).into_response()
    }
}

/// A JSON body of bounded size; what is wrong with it is told as a [`Problem`].
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Failure::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    Refusal::TooLarge,
                    format!(
                        "the body is larger than {} bytes; send less",
                        super::routes::BODY_BYTES_MAX
                    ),
                ),
                _ => Failure::bad_request(rejection.body_text()),
            })?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|e| Failure::bad_request(format!("body: {e}; /openapi.json describes it")))
    }
}

/// The query of a request.
#[derive(Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Query::from_request_parts(parts, state)
            .await
            .map(|Query(query)| Self(query))
            .map_err(|rejection| {
                Failure::bad_request(format!(
                    "{}; /openapi.json describes it",
                    rejection.body_text()
                ))
            })
    }
}

/// The parts of a path that a request chooses; what is wrong with them is told as a [`Problem`].
#[derive(Debug)]
pub(super) struct InPath<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Path::from_request_parts(parts, state)
            .await
            .map(|Path(chosen)| Self(chosen))
            .map_err(|rejection| Failure::bad_request(rejection.body_text()))
    }
}

/// The app that a path names. What is no app's name names no app.
#[derive(Debug)]
pub(super) struct Named(pub(super) AppId);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let InPath(name) = InPath::<String>::from_request_parts(parts, state).await?;
        name.parse().map(Self).map_err(|_| Failure::no_app(&name))
    }
}
