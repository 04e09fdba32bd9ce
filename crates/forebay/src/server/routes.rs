//! What there is: the one table behind both the router and the OpenAPI document.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, patch, post};
use forebay_api as api;
use forebay_shadow::control::CHANGE_BOUND;
use schemars::{Schema, SchemaGenerator};

use super::Server;
use super::handlers::{
    apps, document, events, explain, forecast, forecast_together, history, host, pause, plan, push,
    reload, run, scrape, set, status, stream,
};
use super::peer::{Access, Peer, authorise};
use super::problem::Failure;
use super::{fleet, fronts, images, moves, rolling, tiers, update};

/// The largest body of a request.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// How long a request may take.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// How long one may take that has a front change who serves: a little longer than the front gives itself.
pub(crate) const CHANGE_WAIT: Duration = Duration::from_secs(35);
const _: () = assert!(CHANGE_WAIT.as_secs() > CHANGE_BOUND.as_secs());

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;
pub(super) type Shared = Arc<Server>;

/// One thing that can be asked.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) access: Access,
    pub(super) summary: &'static str,
    pub(super) query: Option<SchemaOf>,
    pub(super) body: Option<SchemaOf>,
    pub(super) content: &'static str,
    pub(super) answer: Option<SchemaOf>,
    /// How long it may take.
    wait: Duration,
    handler: MethodRouter<Shared>,
}

const JSON: &str = "application/json";
pub(super) const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// A route that looks.
fn look(path: &'static str, summary: &'static str, handler: MethodRouter<Shared>) -> Route {
    Route {
        method: Method::GET,
        path,
        access: Access::Read,
        summary,
        query: None,
        body: None,
        content: JSON,
        answer: None,
        wait: REQUEST_WAIT,
        handler,
    }
}

/// A route that changes something.
fn change(path: &'static str, summary: &'static str, handler: MethodRouter<Shared>) -> Route {
    Route {
        method: Method::POST,
        access: Access::Change,
        ..look(path, summary, handler)
    }
}

impl Route {
    /// What root does for the whole host, however others may change its partition.
    fn of_root(mut self) -> Self {
        self.access = Access::Root;
        self
    }

    fn with_query(mut self, schema: SchemaOf) -> Self {
        self.query = Some(schema);
        self
    }

    fn with_body(mut self, schema: SchemaOf) -> Self {
        self.body = Some(schema);
        self
    }

    fn answers(mut self, schema: SchemaOf) -> Self {
        self.answer = Some(schema);
        self
    }

    fn takes(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

fn of<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Everything that can be asked.
pub(super) fn routes() -> Vec<Route> {
    vec![
        look("/v1/status", "The daemon and the host now", get(status)).answers(of::<api::Status>),
        look(
            "/v1/host",
            "Memory by NUMA node, and what is planned of measured block devices",
            get(host),
        )
        .answers(of::<api::HostParts>),
        look("/v1/apps", "All apps now", get(apps)).answers(of::<api::Apps>),
        change("/v1/apps", "Start a program as a new app", post(run))
            .with_body(of::<api::RunRequest>)
            .answers(of::<api::Done>),
        look(
            "/v1/apps/{name}",
            "Why an app's slice is what it is",
            get(explain),
        )
        .answers(of::<api::Explanation>),
        Route {
            method: Method::PATCH,
            ..change(
                "/v1/apps/{name}",
                "Change an app until the configuration is read again: all keys or none",
                patch(set),
            )
            .with_body(of::<api::SetRequest>)
            .answers(of::<api::Done>)
        },
        change(
            "/v1/apps/{name}/signals",
            "Tell what an app serves: each value stands for three seconds",
            post(push),
        )
        .with_body(of::<api::SignalsRequest>)
        .answers(of::<api::Done>),
        look("/v1/events", "The latest events", get(events))
            .with_query(of::<api::EventsRange>)
            .answers(of::<api::Events>),
        look(
            "/v1/history/{app}/{resource}",
            "What an app used or did: `cpu`, `cpu_stalled`, `io`, `memory`, `received`, `sent`, `requests`, `response_time` \
             or `accelerator`; and what its slice allowed: `cpu_allowed`, `memory_allowed`",
            get(history),
        )
        .with_query(of::<api::HistoryRange>)
        .answers(of::<api::History>),
        look(
            "/v1/forecast",
            "What all apps will need together",
            get(forecast_together),
        )
        .answers(of::<api::HostForecast>),
        look("/v1/forecast/{app}", "What an app will need", get(forecast))
            .with_query(of::<api::ForecastQuery>)
            .answers(of::<api::Forecast>),
        Route {
            access: Access::Read,
            ..change(
                "/v1/plan",
                "What would be in force if these were set; nothing is",
                post(plan),
            )
            .with_body(of::<api::PlanRequest>)
            .answers(of::<api::Plan>)
        },
        change(
            "/v1/pause",
            "Only observe from now on",
            post(|state| pause(state, true)),
        )
        .answers(of::<api::Done>),
        change(
            "/v1/resume",
            "Act again from now on",
            post(|state| pause(state, false)),
        )
        .answers(of::<api::Done>),
        change(
            "/v1/reload",
            "Read the configuration again; one with errors changes nothing",
            post(reload),
        )
        .answers(of::<api::Done>),
        look("/v1/fronts", "All fronts now", get(fronts::fronts)).answers(of::<api::Fronts>),
        change(
            "/v1/fronts/{front}/handover",
            "Have the shadow of a front take over in order",
            post(fronts::hand_over),
        )
        .takes(CHANGE_WAIT)
        .answers(of::<api::HandOver>),
        change(
            "/v1/fronts/{front}/promote",
            "Have the shadow of a front take over at once; the primary is ended",
            post(fronts::promote),
        )
        .takes(CHANGE_WAIT)
        .answers(of::<api::HandOver>),
        change(
            "/v1/fronts/{front}/upgrade",
            "Have a new process take a front's place, with its plan as it is configured now",
            post(fronts::upgrade),
        )
        .takes(CHANGE_WAIT)
        .answers(of::<api::Done>),
        change(
            "/v1/fronts/{front}/instances/{app}/{what}",
            "Put a shadow in step anew (`resync`), keep it from taking over (`detach`), or let it again (`attach`)",
            post(fronts::tend),
        )
        .takes(CHANGE_WAIT)
        .answers(of::<api::Done>),
        look(
            "/v1/fleet",
            "How this host stands among others",
            get(fleet::status),
        )
        .answers(of::<api::Fleet>),
        look(
            "/v1/fleet/hosts",
            "The hosts that are there now, with what they have room for",
            get(fleet::hosts),
        )
        .answers(of::<api::FleetHosts>),
        change(
            "/v1/fleet/hosts/{host}/{what}",
            "Ask a host to take no more applications (`cordon`), to take them again (`uncordon`), or to give away those that can move (`drain`)",
            post(fleet::ask),
        )
        .answers(of::<api::Done>),
        look(
            "/v1/fleet/drain",
            "How far this host is left by the apps that can move",
            get(moves::drain),
        )
        .answers(of::<api::Drain>),
        look(
            "/v1/update",
            "The update of the operating system under way, and what came of those before it",
            get(update::updates),
        )
        .answers(of::<api::Updates>),
        change(
            "/v1/update",
            "Begin an update of the operating system",
            post(update::begin),
        )
        .of_root()
        .with_body(of::<api::UpdateRequest>)
        .answers(of::<api::UpdateBegun>),
        Route {
            access: Access::Read,
            ..change(
                "/v1/update/plan",
                "What an update would do to each app; nothing is touched",
                post(update::plan),
            )
            .with_body(of::<api::UpdateRequest>)
            .answers(of::<api::UpdatePlan>)
        },
        look(
            "/v1/update/fleet",
            "The rolling update of the fleet's hosts, and who may be away now",
            get(rolling::status),
        )
        .answers(of::<api::FleetUpdate>),
        change(
            "/v1/update/fleet",
            "Begin an update of several hosts, a few at a time",
            post(rolling::begin),
        )
        .of_root()
        .with_body(of::<api::RolloutRequest>)
        .answers(of::<api::UpdateBegun>),
        change(
            "/v1/update/fleet/abort",
            "Have no more hosts begin",
            post(rolling::abort),
        )
        .of_root()
        .answers(of::<api::Done>),
        change(
            "/v1/update/fleet/resume",
            "Go on after a host was not well: try it again, or leave it out",
            post(rolling::resume),
        )
        .of_root()
        .with_body(of::<api::RolloutResume>)
        .answers(of::<api::Done>),
        change(
            "/v1/update/fleet/release",
            "Free the slot of a FleetLock client that does not come back",
            post(rolling::release),
        )
        .of_root()
        .with_body(of::<api::SlotRelease>)
        .answers(of::<api::Done>),
        change(
            "/v1/update/{what}",
            "Go on without the reboot that an update waits for (`resume`), or call it off (`abort`)",
            post(update::steer),
        )
        .of_root()
        .answers(of::<api::Done>),
        look(
            "/v1/images",
            "Images of programs that keep their state in memory",
            get(images::images),
        )
        .answers(of::<api::ImageList>),
        change(
            "/v1/images/{app}",
            "Take an image of an app now",
            post(images::take),
        )
        .answers(of::<api::Done>),
        look(
            "/v1/moves",
            "Moves between hosts: the latest of each app from here, and those on their way here",
            get(moves::moves),
        )
        .answers(of::<api::Moves>),
        change(
            "/v1/moves",
            "Move an app to another host, or find out whether it could",
            post(moves::begin),
        )
        .with_body(of::<api::MoveRequest>)
        .answers(of::<api::Done>),
        change(
            "/v1/moves/{name}/cancel",
            "Have an app stay that is on its way from here, as long as that is possible",
            post(moves::cancel),
        )
        .answers(of::<api::Done>),
        look(
            "/v1/tiers",
            "Tiered directories: what they hold, how warm it is, what was moved and why",
            get(tiers::tiers),
        )
        .answers(of::<api::Tiers>),
        change(
            "/v1/tiers/{name}/moves",
            "Ask for files of a tier to be moved; the answer grows while they are",
            post(tiers::ask),
        )
        .with_body(of::<api::TierRequest>)
        .answers(of::<api::TierAnswer>),
        look(
            "/v1/tiers/{name}/moves/{request}",
            "What became of a request",
            get(tiers::answer),
        )
        .answers(of::<api::TierAnswer>),
        Route {
            content: EVENT_STREAM,
            ..look(
                "/v1/stream",
                "Periods as they come: server-sent events named `tick`",
                get(stream),
            )
            .with_query(of::<api::StreamPace>)
            .answers(of::<api::Tick>)
        },
        Route {
            content: METRICS,
            ..look("/metrics", "Metrics for Prometheus", get(scrape)).answers(of::<String>)
        },
        look("/openapi.json", "This document", get(document)),
    ]
}

/// The router of [`routes`].
pub(super) fn router(server: &Shared) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let (access, wait) = (route.access, route.wait);
        let rules = server.state.rules;
        let handler =
            route
                .handler
                .layer(from_fn(move |request: Request, next: Next| async move {
                    let peer = request.extensions().get::<Peer>();
                    let allowed = peer.map_or(Err("nobody knows who asks"), |peer| {
                        authorise(peer, access, &rules)
                    });
                    match allowed {
                        Ok(()) => within(wait, request, next).await,
                        Err(why) => Failure::not_allowed(why).into_response(),
                    }
                }));
        router = router.route(route.path, handler);
    }
    router
        .fallback(|| async {
            Failure::not_found("no such path; /openapi.json lists what there is").into_response()
        })
        .method_not_allowed_fallback(|| async { Failure::bad_method().into_response() })
        .layer(from_fn(of_this_host))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::clone(server))
}

/// Refuses pages of other sites that a browser was led to send here under a name of theirs.
async fn of_this_host(request: Request, next: Next) -> Response {
    if request.extensions().get::<Peer>() == Some(&Peer::Loopback) && !names_loopback(&request) {
        return Failure::not_allowed("use 127.0.0.1, [::1] or localhost as the host")
            .into_response();
    }
    next.run(request).await
}

/// Gives a request its time.
async fn within(wait: Duration, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match tokio::time::timeout(wait, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = wait.as_secs();
            tracing::warn!(%method, path, seconds, "request given up");
            Failure::timeout(format!(
                "{method} {path} took more than {seconds} s; it may still be done; see the daemon's log"
            ))
            .into_response()
        }
    }
}

/// Whether the host that is asked for is this one, by a name that no other site can have.
pub(crate) fn names_loopback(request: &Request) -> bool {
    let host = request.headers().get(header::HOST);
    host.and_then(|host| host.to_str().ok())
        .is_some_and(|host| {
            let name = match host.strip_prefix('[') {
                Some(rest) => rest.split(']').next().unwrap_or_default(),
                None => host.split(':').next().unwrap_or_default(),
            };
            matches!(name, "localhost" | "::1")
                || name.starts_with("127.") && name.parse::<std::net::Ipv4Addr>().is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_front_has_to_do_for_may_take_its_time() {
        let asks_a_front =
            |route: &Route| route.path.starts_with("/v1/fronts/") && route.access != Access::Read;
        for route in routes() {
            let expected = match asks_a_front(&route) {
                true => CHANGE_WAIT,
                false => REQUEST_WAIT,
            };
            assert_eq!(route.wait, expected, "{}", route.path);
        }
        assert_eq!(
            routes().iter().filter(|route| asks_a_front(route)).count(),
            4
        );
    }

    #[test]
    fn only_loopback_names_are_taken_over_tcp() {
        let check = |host: &str, expected: bool| {
            let request = Request::builder()
                .header(header::HOST, host)
                .body(axum::body::Body::empty())
                .unwrap();
            assert_eq!(names_loopback(&request), expected, "{host}");
        };
        check("127.0.0.1:9475", true);
        check("localhost", true);
        check("[::1]:9475", true);
        check("evil.example:9475", false);
        check("127.0.0.1.evil.example", false);
        check("localhost.evil.example", false);
    }
}
