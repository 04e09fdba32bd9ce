//! Who may ask the dashboard, and for what.
//!
//! Every user of the host can connect to a loopback address, and so can any page in any browser on it.
//! So what the daemon knows takes a token that only who started the dashboard was told, and a page of
//! another site that was led here by a name of its own is refused by that name, or by the certificate.

use std::io;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};

use super::places::Seat;
use crate::server::{Failure, names_loopback};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 24;

/// What a browser lets the page do: use its own files, and ask where it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// By which names a page may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// The host's own of loopback: in cleartext nothing else tells a browser where it was led.
    Loopback,
    /// Those in the certificate, with which a browser compares.
    Certified,
}

/// The rule.
#[derive(Debug)]
pub(super) struct Gate {
    token: String,
    read_only: bool,
    names: Names,
}

/// A token that nobody can guess.
pub(super) fn token() -> io::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

impl Gate {
    pub(super) const fn new(token: String, read_only: bool, names: Names) -> Self {
        Self {
            token,
            read_only,
            names,
        }
    }

    /// Whether a request may be passed on; if not, why and what to do.
    fn allows(&self, request: &Request) -> Result<(), Failure> {
        let told = request.headers().get(header::AUTHORIZATION);
        let told = told.and_then(|told| told.to_str().ok());
        let told = told.and_then(|told| told.strip_prefix("Bearer "));
        if !told.is_some_and(|told| same(told.as_bytes(), self.token.as_bytes())) {
            return Err(Failure::no_token(
                "the page's token is missing or old: open the address that `forebay dashboard` printed",
            ));
        }
        // What would be in force is only asked; it has a body, and changes nothing.
        let looks = request.method() == Method::GET || request.uri().path() == "/v1/plan";
        if self.read_only && !looks {
            return Err(Failure::not_allowed(
                "this dashboard only looks; start `forebay dashboard` without --read-only to change things",
            ));
        }
        Ok(())
    }
}

/// Compares in a time that tells nothing about where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .fold(0, |differs, (a, b)| differs | (a ^ b))
            == 0
}

/// Lets through who has the token.
pub(super) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let seat = request.extensions().get::<Arc<Seat>>().cloned();
    let keeps_its_place = || {
        let kept = seat.map_or(Ok(()), |seat| seat.is_known());
        kept.map_err(|why| Failure::busy(why.to_string()))
    };
    match gate.allows(&request).and_then(|()| keeps_its_place()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

/// Refuses other names than the host's own, and tells the browser what the page may do.
pub(super) async fn harden(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = if gate.names == Names::Certified || names_loopback(&request) {
        next.run(request).await
    } else {
        let why = "use 127.0.0.1, [::1] or localhost as the host\n";
        (StatusCode::FORBIDDEN, why).into_response()
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        let headers = response.headers_mut();
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_are_long() {
        let (one, other) = (token().unwrap(), token().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 32);
        assert!(same(one.as_bytes(), one.as_bytes()));
        assert!(!same(one.as_bytes(), other.as_bytes()));
        assert!(!same(one.as_bytes(), &one.as_bytes()[..31]));
    }

    #[test]
    fn who_has_the_token_asks_and_who_may_changes() {
        let check = |method: Method, path: &str, told: Option<&str>, read_only: bool, ok: bool| {
            let gate = Gate::new("secret".to_owned(), read_only, Names::Loopback);
            let mut request = Request::builder().method(method.clone()).uri(path);
            if let Some(told) = told {
                request = request.header(header::AUTHORIZATION, told);
            }
            let request = request.body(axum::body::Body::empty()).unwrap();
            let allowed = gate.allows(&request);
            assert_eq!(
                allowed.is_ok(),
                ok,
                "{method} {path} {told:?} {read_only}: {allowed:?}"
            );
        };
        check(
            Method::GET,
            "/v1/status",
            Some("Bearer secret"),
            false,
            true,
        );
        check(Method::GET, "/v1/status", Some("Bearer secret"), true, true);
        check(Method::GET, "/v1/status", None, false, false);
        check(Method::GET, "/v1/status", Some("secret"), false, false);
        check(
            Method::GET,
            "/v1/status",
            Some("Bearer secre"),
            false,
            false,
        );
        check(
            Method::GET,
            "/v1/status",
            Some("Bearer other!"),
            false,
            false,
        );
        check(
            Method::POST,
            "/v1/pause",
            Some("Bearer secret"),
            false,
            true,
        );
        check(
            Method::POST,
            "/v1/pause",
            Some("Bearer secret"),
            true,
            false,
        );
        check(Method::POST, "/v1/plan", Some("Bearer secret"), true, true);
        check(Method::POST, "/v1/pause", None, false, false);
    }
}
