//! What each route does: renders what was published, or asks the control thread.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as AnswerBody;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use forebay_api as api;
use forebay_core::app::{AppId, Policy};
use forebay_core::outlook::Resource;
use forebay_core::signals::{APPS_MAX, PUSHED_STANDS, Signal, Told};
use forebay_forecast::is_plausible;
use forebay_forecast::scales::AHEAD_MAX;
use forebay_host::Roots;
use forebay_host::topology::read_node_use;

use super::feed::View;
use super::peer::Peer;
use super::problem::{Asked, Body, Failure, InPath, Named};
use super::routes::{EVENT_STREAM, METRICS, Shared, routes};
use super::ticks::Messages;
use super::{EventsQuery, HistoryQuery, Server, convert, fleet, openapi};
use crate::control::{Command, Edit};
use crate::outlook::{self, Question};

/// Events and intervals of one answer, unless told otherwise and at most.
const EVENTS_USUAL: u32 = 100;
const INTERVALS_USUAL: u32 = 360;
const ROWS_MAX: u32 = 10_000;

/// The slowest pace of a stream.
const EVERY_MAX: Duration = Duration::from_secs(60);

/// How far forecasts go, unless told otherwise.
const HORIZON_USUAL: Duration = Duration::from_secs(3600);

/// How long a change is waited for to show in a report; it is made all the same.
const PAUSE_WAIT: Duration = Duration::from_secs(1);

type Answer<T> = Result<Json<T>, Failure>;

pub(super) async fn status(State(server): State<Shared>) -> Answer<api::Status> {
    Ok(Json(api::Status {
        fleet: server.state.fleet.as_ref().map(fleet::shown),
        ..convert::status(&server.view()?, server.agent())
    }))
}

pub(super) async fn host(State(server): State<Shared>) -> Answer<api::HostParts> {
    let view = server.view()?;
    let policy = server.policy().await?;
    Ok(Json(api::HostParts {
        memory: convert::memory(&read_node_use(&Roots::default())),
        devices: convert::devices(&view.published.report, &policy),
    }))
}

pub(super) async fn apps(State(server): State<Shared>) -> Answer<api::Apps> {
    let apps = convert::apps(&server.view()?);
    Ok(Json(api::Apps { apps }))
}

pub(super) async fn explain(
    State(server): State<Shared>,
    Named(name): Named,
) -> Answer<api::Explanation> {
    let view = server.view()?;
    let policy = server.policy().await?;
    let app = policy
        .apps
        .get(&name)
        .ok_or_else(|| Failure::no_app(name.as_str()))?;
    let models = server
        .ask(|reply| Command::Models(name.clone(), reply))
        .await?;
    let events = server
        .ask(|reply| Command::Events(usize::MAX, reply))
        .await?;
    let report = &view.published.report;
    let offload = convert::offload(report.apps.get(&name));
    let moves = convert::moves_lately(&events, &name, report.time);
    Ok(Json(api::Explanation {
        app: match report.apps.get(&name) {
            Some(seen) => convert::app(&name, seen),
            None => convert::unseen(app),
        },
        rules: convert::rules(app, &policy),
        models: models.map(|models| convert::models(&models, &policy)),
        shared_cpus: report.shared.to_string(),
        host_cpus: convert::all_cpus(&view).len() as u64,
        devices: convert::devices(report, &policy),
        external_forecasts: (server.state.beliefs)(&name),
        offload: offload.into_iter().chain(moves).collect(),
        paused: report.paused,
        shortfalls: report.shortfalls.iter().map(ToString::to_string).collect(),
    }))
}

pub(super) async fn forecast(
    State(server): State<Shared>,
    Named(name): Named,
    Asked(query): Asked<api::ForecastQuery>,
) -> Answer<api::Forecast> {
    let question = question(&name, &query)?;
    let view = server.view()?;
    let policy = server.policy().await?;
    if !policy.apps.contains_key(&name) {
        return Err(Failure::no_app(name.as_str()));
    }
    let models = server
        .ask(|reply| Command::Models(name.clone(), reply))
        .await?;
    let far = server.state.outlook.ask(question).await;
    let outlook::Answer {
        mut resources,
        mut known,
    } = far.map_err(Failure::busy)?;
    known.extend((server.state.beliefs)(&name));
    if let Some(models) = &models {
        convert::add_near(&mut resources, &models.near, &query);
    }
    let seen = view.published.report.apps.get(&name);
    Ok(Json(api::Forecast {
        app: name.to_string(),
        horizon_seconds: policy.horizon.as_secs_f64(),
        demand: seen.and_then(|app| app.demand.as_ref().map(convert::demand)),
        usage: seen.map(convert::usage).unwrap_or_default(),
        models: models.map(|models| convert::models(&models, &policy)),
        resources,
        known,
    }))
}

pub(super) async fn forecast_together(State(server): State<Shared>) -> Answer<api::HostForecast> {
    let view = server.view()?;
    let sums = server.state.outlook.ask_together().await;
    Ok(Json(api::HostForecast {
        cpus: convert::all_cpus(&view).len() as u64,
        sums: sums.map_err(Failure::busy)?,
        learning: Some(convert::learning(&(server.state.training)())),
    }))
}

/// What is asked of the thread that looks ahead.
fn question(app: &AppId, query: &api::ForecastQuery) -> Result<Question, Failure> {
    let seconds = query.horizon_seconds.unwrap_or(HORIZON_USUAL.as_secs_f64());
    let horizon = Duration::try_from_secs_f64(seconds).ok();
    let horizon = horizon.filter(|horizon| !horizon.is_zero() && *horizon <= AHEAD_MAX);
    let horizon = horizon.ok_or_else(|| {
        Failure::bad_request(format!(
            "a horizon of {seconds} s; name more than 0 and at most {} s",
            AHEAD_MAX.as_secs()
        ))
    })?;
    let named = query.resource.as_ref().map(|name| {
        let named = Resource::ALL.into_iter().find(|one| one.as_str() == name);
        let names = Resource::ALL.map(Resource::as_str).join(", ");
        named.ok_or_else(|| {
            Failure::bad_request(format!(
                "nothing is forecast of `{name}`; there are {names}"
            ))
        })
    });
    Ok(Question {
        app: app.clone(),
        resource: named.transpose()?,
        horizon,
    })
}

pub(super) async fn run(
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
    let app = off_thread(move || make(request), Failure::bad_request).await?;
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

pub(super) async fn set(
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

pub(super) async fn push(
    State(server): State<Shared>,
    Named(name): Named,
    Body(request): Body<api::SignalsRequest>,
) -> Answer<api::Done> {
    let told = [
        ("requests_per_second", request.requests_per_second),
        ("response_time_ms", request.response_time_ms),
    ];
    if told.iter().all(|(_, value)| value.is_none()) {
        return Err(Failure::bad_request(
            "nothing to tell; give requests_per_second or response_time_ms",
        ));
    }
    for (key, value) in told {
        if let Some(value) = value.filter(|value| !is_plausible(*value)) {
            return Err(Failure::bad_request(format!(
                "{key} cannot be {value}; give a number that is not negative"
            )));
        }
    }
    // Reports know the apps as well, and asking them holds up nobody.
    if !server.view()?.published.report.apps.contains_key(&name) {
        known(&server, [&name]).await?;
    }
    let signal = Signal {
        requests_per_second: request.requests_per_second,
        response_time_ms: request.response_time_ms,
        errors: None,
    };
    if !server
        .state
        .teller
        .tell(PUSHED_STANDS, &name, Told::by_app(signal))
    {
        return Err(Failure::busy(format!(
            "signals of {APPS_MAX} apps are told already; push those of fewer"
        )));
    }
    Ok(done(format!(
        "{name}: taken; it stands for {} s",
        PUSHED_STANDS.as_secs()
    )))
}

/// Settings of a plan that is asked for: each is tried on a copy of the policy, between two periods.
const WHAT_IF_MAX: usize = 64;

pub(super) async fn plan(
    State(server): State<Shared>,
    Body(request): Body<api::PlanRequest>,
) -> Answer<api::Plan> {
    let settings: usize = request.changes.iter().map(|change| change.set.len()).sum();
    if settings > WHAT_IF_MAX {
        return Err(Failure::bad_request(format!(
            "a plan under {settings} other settings: at most {WHAT_IF_MAX} can be asked for at once"
        )));
    }
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

pub(super) async fn pause(State(server): State<Shared>, pause: bool) -> Answer<api::Done> {
    if !pause && server.policy().await?.observe {
        return Err(Failure::failed(
            "the configuration says to observe only; set `policy.mode` to \"act\" there, and \
             `forebay reload`",
        ));
    }
    let mut periods = server.feed.periods();
    server.ask(|reply| Command::Pause(pause, reply)).await?;
    // Whoever looks next must see what is answered here.
    let shown = async {
        let agrees = |view: View| view.published.report.paused == pause;
        while !server.feed.view().is_some_and(agrees) && periods.changed().await.is_ok() {}
    };
    if tokio::time::timeout(PAUSE_WAIT, shown).await.is_err() {
        tracing::debug!(pause, "no report of it yet");
    }
    Ok(done(if pause {
        "paused: slices stay as they are; `forebay resume` goes on"
    } else {
        "resumed"
    }))
}

pub(super) async fn reload(State(server): State<Shared>) -> Answer<api::Done> {
    let reload = Arc::clone(&server.state.reload);
    let messages = off_thread(move || reload(), Failure::failed).await?;
    Ok(Json(api::Done { messages }))
}

pub(super) async fn events(
    State(server): State<Shared>,
    Asked(range): Asked<api::EventsRange>,
) -> Answer<api::Events> {
    let app: Option<AppId> = range
        .app
        .map(|name| name.parse().map_err(|_| Failure::no_app(&name)))
        .transpose()?;
    let limit = rows(range.limit.unwrap_or(EVENTS_USUAL));
    let since_unix_ms = range.since_unix_ms.unwrap_or(0);
    let stored = match &server.state.events {
        Some(read) => {
            let read = Arc::clone(read);
            let query = EventsQuery {
                app: app.clone(),
                since_unix_ms,
                limit,
            };
            // A history that cannot be read hides nothing of what is remembered.
            off_thread(move || read(query), Failure::failed)
                .await
                .unwrap_or_else(|failure| {
                    tracing::warn!(?failure, "events are from memory only");
                    Vec::new()
                })
        }
        None => Vec::new(),
    };
    let mut recent = server
        .ask(|reply| Command::Events(usize::MAX, reply))
        .await?;
    recent.retain(|event| app.is_none() || event.app == app);
    let recent = recent.iter().map(convert::event);
    let recent = recent.filter(|event| event.time_unix_ms >= since_unix_ms);
    let events = latest(stored, recent, limit);
    Ok(Json(api::Events { events }))
}

/// The latest of both, in the order of time: what is stored reaches further back, what is
/// remembered has what could not be stored, or not yet.
fn latest(
    mut events: Vec<api::Event>,
    recent: impl Iterator<Item = api::Event>,
    limit: usize,
) -> Vec<api::Event> {
    let stored = events.len();
    for event in recent {
        if !events[..stored].contains(&event) {
            events.push(event);
        }
    }
    events.sort_by_key(|event| event.time_unix_ms);
    events.split_off(events.len().saturating_sub(limit))
}

pub(super) async fn history(
    State(server): State<Shared>,
    InPath((app, resource)): InPath<(String, String)>,
    Asked(range): Asked<api::HistoryRange>,
) -> Answer<api::History> {
    let id: AppId = app.parse().map_err(|_| Failure::no_app(&app))?;
    let kept = api::Resource::ALL.into_iter();
    let resource = kept
        .clone()
        .find(|kept| kept.as_str() == resource)
        .ok_or_else(|| {
            let names: Vec<&str> = kept.map(api::Resource::as_str).collect();
            Failure::not_found(format!(
                "no history of `{resource}`; there is {}",
                names.join(", ")
            ))
        })?;
    let query = HistoryQuery {
        app: id.clone(),
        resource,
        step: range.step,
        since_unix_ms: range.since_unix_ms,
        limit: rows(range.limit.unwrap_or(INTERVALS_USUAL)),
    };
    let read = Arc::clone(&server.state.history);
    let (step, rows) = off_thread(move || read(query), Failure::failed).await?;
    // An app that was taken out of the configuration still has its past.
    if rows.is_empty() {
        known(&server, [&id]).await?;
    }
    Ok(Json(api::History {
        app,
        resource,
        step,
        rows,
    }))
}

fn rows(limit: u32) -> usize {
    usize::try_from(limit.clamp(1, ROWS_MAX)).unwrap_or(1)
}

pub(super) async fn stream(
    State(server): State<Shared>,
    Asked(pace): Asked<api::StreamPace>,
) -> Response {
    let every = Duration::from_millis(pace.every_ms.unwrap_or(0)).min(EVERY_MAX);
    let headers = [
        (header::CONTENT_TYPE, EVENT_STREAM),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let messages = Messages::new(server, every);
    (headers, AnswerBody::from_stream(messages)).into_response()
}

pub(super) async fn scrape(State(server): State<Shared>) -> Result<Response, Failure> {
    let text = server.metrics().await;
    let text = text.map_err(|e| Failure::failed(format!("metrics: {e}")))?;
    Ok(([(header::CONTENT_TYPE, METRICS)], text).into_response())
}

pub(super) async fn document() -> Json<serde_json::Value> {
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
    refuse: impl FnOnce(String) -> Failure,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(refuse),
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
    fn events_are_stored_ones_and_those_not_stored_yet() {
        let event = |time_unix_ms: u64| api::Event {
            time_unix_ms,
            app: None,
            kind: "failed".to_owned(),
            message: String::new(),
        };
        let check = |stored: &[u64], recent: &[u64], limit: usize, expected: &[u64]| {
            let stored = stored.iter().copied().map(event).collect();
            let recent = recent.iter().copied().map(event);
            let times: Vec<u64> = latest(stored, recent, limit)
                .iter()
                .map(|event| event.time_unix_ms)
                .collect();
            assert_eq!(times, expected);
        };
        check(&[1, 2, 3], &[2, 3, 4], 10, &[1, 2, 3, 4]);
        check(&[2, 3], &[1, 2, 3, 4], 2, &[3, 4]);
        check(&[], &[1, 1], 10, &[1, 1]);
        check(&[1, 5], &[3], 10, &[1, 3, 5]);
        check(&[], &[], 10, &[]);
    }

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
}
