//! What there is: the one table behind both the router and the OpenAPI document.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, patch, post};
use axum::{Extension, Json, Router};
use forebay_api as api;
use forebay_core::app::{AppId, Policy};
use schemars::{Schema, SchemaGenerator};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};

use super::peer::{Access, Peer, authorise};
use super::problem::{Asked, Body, Failure, Named};
use super::{EventsQuery, HistoryQuery, Server, convert, openapi};
use crate::control::{Command, Edit};

/// The largest body of a request.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// How long a request may take.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// Events and intervals of one answer, unless told otherwise and at most.
const EVENTS_USUAL: u32 = 100;
const INTERVALS_USUAL: u32 = 360;
const ROWS_MAX: u32 = 10_000;

/// The slowest pace of a stream.
const EVERY_MAX: Duration = Duration::from_secs(60);

/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;
type Shared = Arc<Server>;
type Answer<T> = Result<Json<T>, Failure>;

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
    handler: MethodRouter<Shared>,
}

const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream";

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
}

fn of<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Everything that can be asked.
pub(super) fn routes() -> Vec<Route> {
    vec![
        look("/v1/status", "The daemon and the host now", get(status)).answers(of::<api::Status>),
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
        look("/v1/events", "The latest events", get(events))
            .with_query(of::<api::EventsRange>)
            .answers(of::<api::Events>),
        look(
            "/v1/history/{app}/{resource}",
            "What an app used of `cpu` or `memory`",
            get(history),
        )
        .with_query(of::<api::HistoryRange>)
        .answers(of::<api::History>),
        look("/v1/forecast/{app}", "What an app will need", get(forecast))
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
        look("/openapi.json", "This document", get(document)),
    ]
}

/// The router of [`routes`].
pub(super) fn router(server: &Shared) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let access = route.access;
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
                        Ok(()) => next.run(request).await,
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
        .layer(from_fn(bounded))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::clone(server))
}

/// Gives every request its time, and refuses pages of other sites that a browser was led to
/// send here under a name of theirs.
async fn bounded(request: Request, next: Next) -> Response {
    if request.extensions().get::<Peer>() == Some(&Peer::Loopback) && !names_loopback(&request) {
        return Failure::not_allowed("use 127.0.0.1, [::1] or localhost as the host")
            .into_response();
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match tokio::time::timeout(REQUEST_WAIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = REQUEST_WAIT.as_secs();
            tracing::warn!(%method, path, seconds, "request given up");
            Failure::timeout(format!(
                "{method} {path} took more than {seconds} s; it may still be done; see the daemon's log"
            ))
            .into_response()
        }
    }
}

fn names_loopback(request: &Request) -> bool {
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

async fn status(State(server): State<Shared>) -> Answer<api::Status> {
    Ok(Json(convert::status(&server.view()?, server.agent())))
}

async fn apps(State(server): State<Shared>) -> Answer<api::Apps> {
    let apps = convert::apps(&server.view()?);
    Ok(Json(api::Apps { apps }))
}

async fn explain(State(server): State<Shared>, Named(name): Named) -> Answer<api::Explanation> {
    let view = server.view()?;
    let policy = server.policy().await?;
    let app = policy
        .apps
        .get(&name)
        .ok_or_else(|| Failure::no_app(name.as_str()))?;
    let models = server
        .ask(|reply| Command::Models(name.clone(), reply))
        .await?;
    let report = &view.published.report;
    Ok(Json(api::Explanation {
        app: match report.apps.get(&name) {
            Some(seen) => convert::app(&name, seen),
            None => convert::unseen(app),
        },
        rules: convert::rules(app, &policy),
        models: models.map(|models| convert::models(&models, &policy)),
        shared_cpus: report.shared.to_string(),
        host_cpus: convert::all_cpus(&view).len() as u64,
        paused: report.paused,
        shortfalls: report.shortfalls.iter().map(ToString::to_string).collect(),
    }))
}

async fn forecast(State(server): State<Shared>, Named(name): Named) -> Answer<api::Forecast> {
    let view = server.view()?;
    let policy = server.policy().await?;
    if !policy.apps.contains_key(&name) {
        return Err(Failure::no_app(name.as_str()));
    }
    let models = server
        .ask(|reply| Command::Models(name.clone(), reply))
        .await?;
    let seen = view.published.report.apps.get(&name);
    Ok(Json(api::Forecast {
        app: name.to_string(),
        horizon_seconds: policy.horizon.as_secs_f64(),
        demand: seen.and_then(|app| app.demand.as_ref().map(convert::demand)),
        usage: seen
            .map(|app| convert::usage(&app.usage))
            .unwrap_or_default(),
        models: models.map(|models| convert::models(&models, &policy)),
    }))
}

async fn run(
    State(server): State<Shared>,
    Extension(peer): Extension<Peer>,
    Body(mut request): Body<api::RunRequest>,
) -> Answer<api::Done> {
    let name: AppId = request
        .name
        .parse()
        .map_err(|e: forebay_core::app::AppIdError| Failure::bad_request(e.to_string()))?;
    as_oneself(&peer, &mut request)?;
    let settings = std::mem::take(&mut request.set);
    let make = Arc::clone(&server.state.run_app);
    let app = off_thread(move || make(request)).await?;
    let set_key = Arc::clone(&server.state.set_key);
    let edit: Edit = Box::new(move |policy| {
        if policy.apps.contains_key(&app.id) {
            return Err(format!(
                "there is an app `{}` already; choose another name",
                app.id
            ));
        }
        let id = app.id.clone();
        policy.apps.insert(id.clone(), app);
        assign(&set_key, policy, &id, &settings)
    });
    edited(&server, edit).await?;
    Ok(done(format!("{name} starts in the next period")))
}

/// Members of the group run programs as themselves: being allowed to partition the host
/// does not make one root.
fn as_oneself(peer: &Peer, request: &mut api::RunRequest) -> Result<(), Failure> {
    match peer {
        Peer::Process { uid: 0, .. } => Ok(()),
        Peer::Process { uid, gid, .. } => {
            let own = |asked: &Option<String>, own: u32| {
                asked.as_ref().is_none_or(|asked| *asked == own.to_string())
            };
            if !own(&request.user, *uid) || !own(&request.group, *gid) {
                return Err(Failure::not_allowed(
                    "only root may run a program as another user or group; leave them out",
                ));
            }
            request.user = Some(uid.to_string());
            request.group = Some(gid.to_string());
            Ok(())
        }
        Peer::Loopback => Err(Failure::not_allowed("this address is read-only")),
    }
}

async fn set(
    State(server): State<Shared>,
    Named(name): Named,
    Body(request): Body<api::SetRequest>,
) -> Answer<api::Done> {
    if request.set.is_empty() {
        return Err(Failure::bad_request(
            "nothing to set; give at least one key=value",
        ));
    }
    known(&server, [&name]).await?;
    let summary = request
        .set
        .iter()
        .map(|set| format!("{name}: {} = {}", set.key, set.value));
    let messages = summary.collect();
    let set_key = Arc::clone(&server.state.set_key);
    let edit: Edit = Box::new(move |policy| assign(&set_key, policy, &name, &request.set));
    edited(&server, edit).await?;
    Ok(Json(api::Done { messages }))
}

async fn plan(
    State(server): State<Shared>,
    Body(request): Body<api::PlanRequest>,
) -> Answer<api::Plan> {
    let mut changes = Vec::new();
    for change in request.changes {
        let name: AppId = change
            .app
            .parse()
            .map_err(|_| Failure::no_app(&change.app))?;
        changes.push((name, change.set));
    }
    known(&server, changes.iter().map(|(name, _)| name)).await?;
    let set_key = Arc::clone(&server.state.set_key);
    let edit: Edit = Box::new(move |policy| {
        changes
            .iter()
            .try_for_each(|(name, set)| assign(&set_key, policy, name, set))
    });
    let (plan, actions) = server
        .ask(|reply| Command::WhatIf(edit, reply))
        .await?
        .map_err(Failure::bad_request)?;
    Ok(Json(convert::plan(&plan, &actions)))
}

/// Checks that the apps exist, to tell 404 from what an edit refuses.
async fn known(server: &Server, names: impl IntoIterator<Item = &AppId>) -> Result<(), Failure> {
    let policy = server.policy().await?;
    match names
        .into_iter()
        .find(|name| !policy.apps.contains_key(name))
    {
        Some(unknown) => Err(Failure::no_app(unknown.as_str())),
        None => Ok(()),
    }
}

fn assign(
    set_key: &super::SetKey,
    policy: &mut Policy,
    app: &AppId,
    settings: &[api::Assignment],
) -> Result<(), String> {
    settings
        .iter()
        .try_for_each(|set| set_key(policy, app, &set.key, &set.value))
}

async fn edited(server: &Server, edit: Edit) -> Result<(), Failure> {
    server
        .ask(|reply| Command::Edit(edit, reply))
        .await?
        .map_err(Failure::bad_request)
}

async fn pause(State(server): State<Shared>, pause: bool) -> Answer<api::Done> {
    server.ask(|reply| Command::Pause(pause, reply)).await?;
    Ok(done(if pause {
        "paused: slices stay as they are; `forebay resume` goes on"
    } else {
        "resumed"
    }))
}

async fn reload(State(server): State<Shared>) -> Answer<api::Done> {
    let reload = Arc::clone(&server.state.reload);
    let messages = off_thread(move || reload()).await?;
    Ok(Json(api::Done { messages }))
}

async fn events(
    State(server): State<Shared>,
    Asked(range): Asked<api::EventsRange>,
) -> Answer<api::Events> {
    let app: Option<AppId> = range
        .app
        .map(|name| name.parse().map_err(|_| Failure::no_app(&name)))
        .transpose()?;
    let limit = rows(range.limit.unwrap_or(EVENTS_USUAL));
    let events = match &server.state.events {
        Some(read) => {
            let read = Arc::clone(read);
            off_thread(move || read(EventsQuery { app, limit })).await?
        }
        None => {
            let mut events = server
                .ask(|reply| Command::Events(usize::MAX, reply))
                .await?;
            events.retain(|event| app.is_none() || event.app == app);
            events.split_off(events.len().saturating_sub(limit))
        }
    };
    let events = events.iter().map(convert::event).collect();
    Ok(Json(api::Events { events }))
}

async fn history(
    State(server): State<Shared>,
    Path((app, resource)): Path<(String, String)>,
    Asked(range): Asked<api::HistoryRange>,
) -> Answer<api::History> {
    let id: AppId = app.parse().map_err(|_| Failure::no_app(&app))?;
    let resource = match resource.as_str() {
        "cpu" => api::Resource::Cpu,
        "memory" => api::Resource::Memory,
        other => {
            return Err(Failure::not_found(format!(
                "no history of `{other}`; there is `cpu` and `memory`"
            )));
        }
    };
    let query = HistoryQuery {
        app: id.clone(),
        resource,
        step: range.step,
        since_unix_ms: range.since_unix_ms,
        limit: rows(range.limit.unwrap_or(INTERVALS_USUAL)),
    };
    let read = Arc::clone(&server.state.history);
    let rows = off_thread(move || read(query)).await?;
    // An app that was taken out of the configuration still has its past.
    if rows.is_empty() {
        known(&server, [&id]).await?;
    }
    Ok(Json(api::History {
        app,
        resource,
        step: range.step,
        rows,
    }))
}

fn rows(limit: u32) -> usize {
    usize::try_from(limit.clamp(1, ROWS_MAX)).unwrap_or(1)
}

async fn stream(
    State(server): State<Shared>,
    Asked(pace): Asked<api::StreamPace>,
) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let every = Duration::from_millis(pace.every_ms.unwrap_or(0)).min(EVERY_MAX);
    let (_, mut seen) = server.feed.events_after(u64::MAX);
    let mut sent: Option<Instant> = None;
    let ticks = WatchStream::from_changes(server.feed.periods())
        .take_while(Option::is_some)
        .filter_map(move |_| {
            // A period that comes a little early is the one that was waited for.
            let due = every.mul_f64(0.9);
            if sent.is_some_and(|sent| sent.elapsed() < due) {
                return None;
            }
            let view = server.feed.view()?;
            let (events, now_seen) = server.feed.events_after(seen);
            let tick = convert::tick(&view, server.agent(), &events);
            let event = SseEvent::default()
                .event("tick")
                .id(tick.status.period.to_string())
                .json_data(&tick)
                .inspect_err(|error| tracing::error!(%error, "tick not sent"))
                .ok()?;
            (seen, sent) = (now_seen, Some(Instant::now()));
            Some(Ok(event))
        });
    Sse::new(ticks).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

async fn document() -> Json<serde_json::Value> {
    Json(openapi::document(&routes()))
}

fn done(message: impl Into<String>) -> Json<api::Done> {
    Json(api::Done {
        messages: vec![message.into()],
    })
}

/// Runs what may block where it blocks nobody.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Failure::failed),
        Err(error) => {
            tracing::error!(%error, "request died");
            Err(Failure::failed("a fault in the daemon; see its log"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_the_group_run_as_themselves() {
        let check = |uid: u32, user: Option<&str>, runs_as: Option<Option<&str>>| {
            let peer = Peer::Process {
                uid,
                gid: uid,
                groups: vec![990],
            };
            let mut request = api::RunRequest {
                name: "x".to_owned(),
                class: api::Class::Batch,
                command: vec!["true".to_owned()],
                user: user.map(str::to_owned),
                group: None,
                directory: None,
                set: Vec::new(),
            };
            let result = as_oneself(&peer, &mut request).ok();
            assert_eq!(result.map(|()| request.user.as_deref()), runs_as);
        };
        check(0, None, Some(None));
        check(0, Some("nobody"), Some(Some("nobody")));
        check(1000, None, Some(Some("1000")));
        check(1000, Some("1000"), Some(Some("1000")));
        check(1000, Some("0"), None);
        check(1000, Some("root"), None);
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
