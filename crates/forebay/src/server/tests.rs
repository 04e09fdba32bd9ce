//! The server and the client over a real socket, before a control thread that plays along.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use forebay_api::{Client, Error, Refusal};
use forebay_core::app::{Binding, Class, Exec, Floor, Restart};
use forebay_core::demand::{Band, Demand, MemoryNow, Usage};
use forebay_core::host::Action;
use forebay_core::io_history::IoUse;
use forebay_core::network::NetworkRates;
use forebay_core::plan::reclaim::GiveBack;
use forebay_core::plan::{Plan, Reason};
use forebay_core::report::{AppReport, Event, EventKind, TickReport};
use forebay_core::slice::{Setting, Slice};
use forebay_core::snapshot::{Gap, HostSample, RunState, Traffic};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::{Limit, MilliCpu, Time};
use forebay_forecast::lstm::Weights;
use forebay_forecast::{ModelScore, Target};

use super::*;
use crate::control::{Models, Timing};

mod who;

/// A thread that looks ahead and has seen nothing.
fn lookout() -> crate::outlook::Desk {
    let beginning = crate::outlook::Beginning {
        history: None,
        apps: Vec::new(),
        weights: watch::channel(Arc::new(Weights::pretrained())).1,
        foretold: crate::fetch::Foretold::default(),
        origins: crate::outlook::Origins {
            declared: watch::channel(Vec::new()).1,
            root: "/nowhere".into(),
            bus: "unix:path=/nowhere".to_owned(),
            state_dir: "/nowhere".into(),
        },
    };
    crate::outlook::Lookout::start(beginning).unwrap().desk()
}

fn id(name: &str) -> AppId {
    name.parse().unwrap()
}

pub(super) fn event(message: &str) -> Event {
    Event {
        time: Time::default(),
        app: Some(id("web")),
        kind: EventKind::Slice,
        message: message.to_owned(),
    }
}

fn band(q50: f64) -> Band {
    Band {
        q50,
        q90: q50 * 1.2,
        q95: q50 * 1.5,
        q99: q50 * 2.0,
        model: "window".to_owned(),
        cold: false,
    }
}

/// Two CPUs, `web` on CPU 1 of its own, `crunch` on CPU 0.
pub(super) fn published(period: u64) -> Published {
    let time = Time {
        monotonic: Duration::from_millis(period * 100),
        unix_ms: 1_700_000_000_000 + period * 100,
    };
    let report = |class, cpus: &str, exclusive: &str| AppReport {
        class,
        state: RunState::Running,
        main_pid: Some(42),
        starts: 1,
        usage: Usage {
            cpu: Some(0.4),
            cpu_stalled: None,
            memory: Some(Bytes::mib(100)),
            requests: Some(120.0),
            response_time: Some(3.5),
            accelerator: Some(forebay_core::accel::Use {
                devices: 1,
                quarantined: 2,
                faults: 5,
                busy: 0.25,
                on_devices: 12.0,
                price: 8.0,
                ..forebay_core::accel::Use::default()
            }),
            ..Usage::default()
        },
        io: IoUse::default(),
        traffic: Some(Traffic {
            sent: Bytes(3000),
            ..Traffic::default()
        }),
        network: Some(NetworkRates {
            received: 10.0,
            sent: 20.0,
        }),
        demand: Some(Demand {
            cpu: band(0.4),
            memory: band(1e8),
            cpu_stalled: 0.0,
            io_use: IoUse::default(),
            io: BTreeMap::new(),
            memory_now: MemoryNow::default(),
            usage: Usage::default(),
            response_time: None,
        }),
        slice: Slice::from_iter([
            Setting::Cpus(cpus.parse().unwrap()),
            Setting::MemoryHigh(Limit::Max),
            Setting::CpuMax(Limit::At(MilliCpu(1500))),
        ]),
        reason: Some(Reason {
            cpu_demand: MilliCpu(600),
            cpu_wanted: MilliCpu(780),
            cpu_extra: MilliCpu(0),
            exclusive: exclusive.parse().unwrap(),
            spills: false,
            held_cpus: 0,
            memory_demand: Bytes::mib(150),
        }),
        reclaim: None,
        page_move: None,
        offload: None,
    };
    let shape = Shape {
        nodes: 2,
        l3s: 1,
        cores: 1,
        threads: 1,
        memory: Bytes::mib(4096),
    };
    Published {
        topology: Arc::new(Topology::regular(shape)),
        report: TickReport {
            period,
            time,
            paused: false,
            offload: forebay_core::offload::Mode::Watch,
            host: HostSample {
                cpu_busy: Ok(BTreeMap::from([(0, time.monotonic), (1, Duration::ZERO)])),
                steal: Err(Gap::Unsupported),
                memory_available: Ok(Bytes::mib(4096)),
                interrupts: Err(Gap::Unsupported),
                cost_models: Err(Gap::Unsupported),
                swap_free: Err(Gap::Unsupported),
                memory_watch: Err(Gap::Unsupported),
                compaction: Err(Gap::Unsupported),
            },
            shared: "0".parse().unwrap(),
            io: BTreeMap::new(),
            apps: BTreeMap::from([
                (id("crunch"), report(Class::Batch, "0", "")),
                (id("web"), report(Class::Critical, "1", "1")),
            ]),
            give_back: GiveBack::default(),
            actions: Vec::new(),
            shortfalls: Vec::new(),
            events: Vec::new(),
        },
        timing: Timing::default(),
    }
}

fn app(name: &str, class: Class) -> App {
    App {
        floor: Floor {
            cpu: MilliCpu(500),
            memory: Bytes(0),
        },
        ..App::new(
            id(name),
            class,
            Binding::Exec(Exec {
                restart: Restart::Never,
                ..Exec::of(vec!["sleep".to_owned(), "1".to_owned()])
            }),
        )
    }
}

/// Answers as the control thread does, on a policy of two apps, until all senders are gone
/// or it is told to stop; then returns the policy and whether it is paused.
fn control(
    commands: std::sync::mpsc::Receiver<Command>,
    reports: Arc<watch::Sender<Option<Arc<Published>>>>,
) -> JoinHandle<(Policy, bool)> {
    std::thread::spawn(move || {
        let mut policy = Policy::default();
        for app in [app("web", Class::Critical), app("crunch", Class::Batch)] {
            policy.apps.insert(app.id.clone(), app);
        }
        let mut paused = false;
        while let Ok(command) = commands.recv() {
            match command {
                Command::Edit(edit, reply) => {
                    let mut edited = policy.clone();
                    let result = edit(&mut edited);
                    if result.is_ok() {
                        policy = edited;
                    }
                    reply.send(result).unwrap();
                }
                Command::Pause(pause, reply) => {
                    paused = pause;
                    reply.send(()).unwrap();
                    let mut next = published(2);
                    next.report.paused = paused;
                    reports.send_replace(Some(Arc::new(next)));
                }
                Command::WhatIf(edit, reply) => {
                    let result = edit(&mut policy.clone()).map(|()| {
                        let release = Action::Release { app: id("web") };
                        (Plan::default(), vec![release])
                    });
                    reply.send(result).unwrap();
                }
                Command::Policy(reply) => reply.send(policy.clone()).unwrap(),
                Command::Events(limit, reply) => {
                    let mut events = vec![event("one"), event("two")];
                    events.drain(..events.len().saturating_sub(limit));
                    reply.send(events).unwrap();
                }
                Command::Models(app, reply) => {
                    let score = ModelScore {
                        name: "window",
                        steps: 10,
                        target: Target::Peak,
                        pinball: Some(0.01),
                        samples: 50,
                        used: true,
                    };
                    let models = (app == id("web")).then(|| Models {
                        cpu: vec![score],
                        memory: Vec::new(),
                        near: Vec::new(),
                    });
                    reply.send(models).unwrap();
                }
                Command::Tell(..) | Command::TellOf(..) => unreachable!("nobody tells"),
                Command::Stayed(..) | Command::Do(..) => unreachable!("there is no fleet"),
                Command::Succeed(..) | Command::Excuse(..) => unreachable!("there are no fronts"),
                Command::Stop => break,
            }
        }
        (policy, paused)
    })
}

/// The OpenAPI document, for the reference.
pub(crate) fn openapi() -> serde_json::Value {
    openapi::document(&routes::routes())
}

/// An answer with a value of each metric, for the reference.
pub(crate) fn every_metric() -> String {
    metrics::tests::every()
}

/// A kind of event as it stands on the wire, for the reference.
pub(crate) fn event_kind(kind: EventKind) -> &'static str {
    convert::event_kind(kind)
}

/// What a server stands on that knows two apps, and no fronts and no fleet.
fn state(
    reports: watch::Receiver<Option<Arc<Published>>>,
    commands: SyncSender<Command>,
    rules: Rules,
    teller: Teller,
) -> ServerState {
    ServerState {
        reports,
        commands,
        rules,
        fronts: crate::fronts::Desk::none(),
        images: crate::images::Desk::none(),
        fleet: None,
        moves: None,
        update: None,
        rolling: None,
        reload: Arc::new(|| Err("forebay.toml:3: unknown key `clas`".to_owned())),
        run_app: Arc::new(|request| {
            let mut made = app(&request.name, Class::Batch);
            if let Binding::Exec(exec) = &mut made.binding {
                exec.command = request.command;
            }
            Ok(made)
        }),
        set_key: Arc::new(|policy, app, key, value| match key {
            "floor.cpu" => {
                let cpus: f64 = value.parse().map_err(|e| format!("floor.cpu: {e}"))?;
                policy.apps.get_mut(app).unwrap().floor.cpu = MilliCpu::from_cpus(cpus);
                Ok(())
            }
            other => Err(format!("unknown key `{other}`")),
        }),
        history: Arc::new(|query| match query.app.as_str() {
            "web" => Ok((
                query.step.unwrap_or(api::Step::Hour),
                vec![
                    api::HistoryRow {
                        time_unix_ms: 0,
                        min: 0.0,
                        mean: 0.5,
                        max: 1.0,
                        samples: 100,
                        demand_q95: None,
                    };
                    query.limit.min(3)
                ],
            )),
            _ => Ok((api::Step::Hour, Vec::new())),
        }),
        events: None,
        agent: Arc::new(|| AgentUse {
            cpu: Duration::from_millis(1500),
            resident: Bytes::mib(20),
        }),
        tiers: Desk::default(),
        otlp: None,
        outlook: lookout(),
        teller,
        beliefs: Arc::new(|app| vec![format!("requests of {app}: believed 50 %")]),
        training: Arc::new(|| training::Status {
            version: 2,
            held_out: Some((0.9, 0.8)),
            verdict: Some(training::Verdict::NotBetter),
            ..training::Status::default()
        }),
    }
}

/// A server on a socket of its own, and what to drive it with.
pub(crate) struct Fixture {
    directory: tempfile::TempDir,
    pub(crate) client: Client,
    pub(crate) reports: Arc<watch::Sender<Option<Arc<Published>>>>,
    commands: SyncSender<Command>,
    control: JoinHandle<(Policy, bool)>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    stop: oneshot::Sender<()>,
    tcp: std::net::SocketAddr,
    signals: crate::signals::Listener,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("forebay.sock");
        // The tests may not run as root; their own group may change things.
        let rules = Rules {
            group: Some(rustix::process::getegid().as_raw()),
            readers: Readers::Anyone,
        };
        let (commands, received) = sync_channel(16);
        let (teller, listener) = crate::signals::board();
        let (reports, latest) = watch::channel(Some(Arc::new(published(1))));
        let reports = Arc::new(reports);
        let state = state(latest, commands.clone(), rules, teller);
        let tcp = bind_loopback("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = tcp.local_addr().unwrap();
        let listeners = Listeners {
            socket: Socket::bind(&path, &rules).unwrap(),
            tcp: Some(tcp),
            lock: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(state, listeners, async {
            stopped.await.ok();
        }));
        let client = Client::connect(&path).await.unwrap();
        Self {
            directory,
            client,
            reports: Arc::clone(&reports),
            commands,
            control: control(received, reports),
            server,
            stop,
            signals: listener,
            tcp: address,
        }
    }

    /// Stops everything; the policy as it became, and whether it was paused.
    async fn stop(self) -> (Policy, bool) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap().unwrap();
        assert!(!self.directory.path().join("forebay.sock").exists());
        self.commands.send(Command::Stop).unwrap();
        self.control.join().unwrap()
    }

    async fn publish(&self, period: u64, events: Vec<Event>) {
        let mut next = published(period);
        next.report.events = events;
        self.reports.send_replace(Some(Arc::new(next)));
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> (Refusal, String) {
    match result.unwrap_err() {
        Error::Refused { refusal, message } => (refusal, message),
        other => panic!("{other}"),
    }
}

fn set(key: &str, value: &str) -> api::SetRequest {
    api::SetRequest {
        set: vec![api::Assignment {
            key: key.to_owned(),
            value: value.to_owned(),
        }],
    }
}

/// What a server answers to bytes, until it closes or has answered what is expected.
fn raw(mut stream: impl std::io::Read + std::io::Write, request: &[u8], until: &str) -> String {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains(until) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn readers_see_what_was_published() {
    let fixture = Fixture::start().await;
    let client = &fixture.client;

    let status: api::Status = client.get("/v1/status").await.unwrap();
    assert_eq!((status.apps, status.apps_running), (2, 2));
    assert_eq!(status.host.shared_cpus, "0");
    assert_eq!(status.host.cpus[0].owner, None);
    assert_eq!(status.host.cpus[1].owner.as_deref(), Some("web"));
    let places = status.host.cpus.iter().map(|cpu| (cpu.node, cpu.l3));
    let places: Vec<_> = places.collect();
    assert_eq!(places, [(Some(0), Some(0)), (Some(1), Some(1))]);
    assert_eq!(status.agent.resident_bytes, 20 << 20);

    let apps: api::Apps = client.get("/v1/apps").await.unwrap();
    let web = &apps.apps[1];
    assert_eq!(web.name, "web");
    assert_eq!(web.slice.cpus.as_deref(), Some("1"));
    assert_eq!(web.slice.memory_high_bytes, Some(api::Limit::MAX));
    assert_eq!(web.slice.cpu_max_cores, Some(api::Limit::At(1.5)));
    assert_eq!(web.slice.memory_min_bytes, None);
    assert_eq!(web.usage.requests_per_second, Some(120.0));
    assert_eq!(web.usage.response_time_ms, Some(3.5));
    // As it was last read: this period is a gap.
    assert_eq!(web.usage.sent_bytes_per_second, Some(20.0));

    let explained: api::Explanation = client.get("/v1/apps/web").await.unwrap();
    assert_eq!(explained.rules.binding, "exec sleep 1");
    assert_eq!(explained.host_cpus, 2);
    assert!(explained.models.unwrap().cpu[0].used);
    assert_eq!(
        explained.external_forecasts,
        ["requests of web: believed 50 %"]
    );

    let together: api::HostForecast = client.get("/v1/forecast").await.unwrap();
    let learning = together.learning.unwrap();
    assert_eq!((learning.version, learning.loss), (2, Some(0.8)));
    assert_eq!(learning.verdict.as_deref(), Some("not_better"));
    let forecast: api::Forecast = client.get("/v1/forecast/crunch").await.unwrap();
    assert_eq!(forecast.models, None);
    assert!((forecast.demand.unwrap().cpu.q50 - 0.4).abs() < 1e-9);

    let events: api::Events = client.get("/v1/events?limit=1").await.unwrap();
    assert_eq!(events.events.len(), 1);
    assert_eq!(events.events[0].message, "two");
    let events: api::Events = client.get("/v1/events?app=crunch").await.unwrap();
    assert_eq!(events.events, []);

    let history: api::History = client
        .get("/v1/history/web/cpu?step=1m&limit=2")
        .await
        .unwrap();
    assert_eq!((history.step, history.rows.len()), (api::Step::Minute, 2));
    fixture.stop().await;
}

#[tokio::test]
async fn changes_reach_the_control_thread_whole_or_not_at_all() {
    let fixture = Fixture::start().await;
    let client = &fixture.client;

    let done: api::Done = client
        .patch("/v1/apps/web", &set("floor.cpu", "0.25"))
        .await
        .unwrap();
    assert_eq!(done.messages, ["web: floor.cpu = 0.25"]);

    let mut two = set("floor.cpu", "1");
    two.set.extend(set("florr.cpu", "1").set);
    let (why, message) = refusal(client.patch::<api::Done>("/v1/apps/web", &two).await);
    assert_eq!(why, Refusal::BadRequest);
    assert_eq!(message, "unknown key `florr.cpu`");

    let request = api::RunRequest {
        name: "job".to_owned(),
        class: api::Class::Batch,
        command: vec!["make".to_owned()],
        user: None,
        group: None,
        directory: None,
        set: set("floor.cpu", "0.1").set,
    };
    client
        .post::<api::Done>("/v1/apps", &request)
        .await
        .unwrap();
    let (_, message) = refusal(client.post::<api::Done>("/v1/apps", &request).await);
    assert!(message.contains("`job` already"), "{message}");

    let what_if = api::PlanRequest {
        changes: vec![api::AppChange {
            app: "crunch".to_owned(),
            set: set("floor.cpu", "2").set,
        }],
    };
    let plan: api::Plan = client.post("/v1/plan", &what_if).await.unwrap();
    assert_eq!(plan.actions[0].what, "release web");
    let much = api::PlanRequest {
        changes: vec![what_if.changes[0].clone(); 65],
    };
    let (why, message) = refusal(client.post::<api::Plan>("/v1/plan", &much).await);
    assert_eq!(why, Refusal::BadRequest);
    assert!(
        message.contains("65 other settings: at most 64"),
        "{message}"
    );

    client.post::<api::Done>("/v1/pause", &()).await.unwrap();
    let status: api::Status = client.get("/v1/status").await.unwrap();
    assert!(status.paused, "what was answered is what is seen next");

    let (why, message) = refusal(client.post::<api::Done>("/v1/reload", &()).await);
    assert_eq!(why, Refusal::Failed);
    assert!(message.contains("forebay.toml:3"), "{message}");

    let (policy, paused) = fixture.stop().await;
    assert!(paused);
    assert_eq!(policy.apps[&id("web")].floor.cpu, MilliCpu(250));
    assert_eq!(policy.apps[&id("crunch")].floor.cpu, MilliCpu(500));
    assert_eq!(policy.apps[&id("job")].floor.cpu, MilliCpu(100));
}

#[tokio::test]
async fn what_is_pushed_reaches_the_board_and_nonsense_does_not() {
    let mut fixture = Fixture::start().await;
    let uri = "/v1/apps/web/signals";
    let told = |requests, response_time| api::SignalsRequest {
        requests_per_second: requests,
        response_time_ms: response_time,
    };
    let push = |uri: &'static str, body: api::SignalsRequest| {
        let client = fixture.client.clone();
        async move { client.post::<api::Done>(uri, &body).await }
    };
    let done = push(uri, told(Some(120.0), None)).await.unwrap();
    assert_eq!(done.messages, ["web: taken; it stands for 3 s"]);
    push(uri, told(None, Some(3.5))).await.unwrap();
    for (uri, body, expected) in [
        (uri, told(None, None), Refusal::BadRequest),
        (uri, told(Some(-1.0), None), Refusal::BadRequest),
        (uri, told(None, Some(1e300)), Refusal::BadRequest),
        (
            "/v1/apps/nope/signals",
            told(Some(1.0), None),
            Refusal::NotFound,
        ),
    ] {
        let (why, message) = refusal(push(uri, body).await);
        assert_eq!(why, expected, "{message}");
    }
    let typo = serde_json::json!({ "requests": 1 });
    let (why, _) = refusal(fixture.client.post::<api::Done>(uri, &typo).await);
    assert_eq!(why, Refusal::BadRequest);
    let web = fixture.signals.now().of(&id("web"));
    assert_eq!(
        (web.requests_per_second, web.response_time_ms),
        (Some(120.0), Some(3.5))
    );
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let fixture = Fixture::start().await;
    let client = &fixture.client;
    for uri in [
        "/v1/apps/nope",
        "/v1/apps/..%2Fetc",
        "/v1/forecast/nope",
        "/v1/history/nope/cpu",
        "/v1/history/web/smell",
        "/v2/status",
    ] {
        let (why, _) = refusal(client.get::<serde_json::Value>(uri).await);
        assert_eq!(why, Refusal::NotFound, "{uri}");
    }
    let change = set("floor.cpu", "1");
    let (why, message) = refusal(client.patch::<api::Done>("/v1/apps/nope", &change).await);
    assert_eq!(why, Refusal::NotFound);
    assert_eq!(message, "no app `nope`; `forebay apps` lists them");
    fixture.stop().await;
}

#[tokio::test]
async fn nonsense_is_refused_with_the_reason() {
    let fixture = Fixture::start().await;
    let client = &fixture.client;

    let huge = set("floor.cpu", &"9".repeat(70 << 10));
    let (why, message) = refusal(client.patch::<api::Done>("/v1/apps/web", &huge).await);
    assert_eq!(why, Refusal::TooLarge);
    assert!(message.contains("65536"), "{message}");

    let typo = serde_json::json!({ "set": [], "sett": [] });
    let (why, message) = refusal(client.patch::<api::Done>("/v1/apps/web", &typo).await);
    assert_eq!(why, Refusal::BadRequest);
    assert!(message.contains("unknown field `sett`"), "{message}");

    let (why, message) = refusal(client.get::<api::Events>("/v1/events?limt=3").await);
    assert_eq!(why, Refusal::BadRequest);
    assert!(message.contains("limt"), "{message}");

    let (why, _) = refusal(client.post::<api::Done>("/v1/status", &()).await);
    assert_eq!(why, Refusal::BadRequest);
    fixture.stop().await;
}

#[tokio::test]
async fn followers_see_every_event_at_any_pace() {
    let fixture = Fixture::start().await;
    let mut fast = fixture
        .client
        .ticks(api::StreamPace::default())
        .await
        .unwrap();
    let pace = api::StreamPace {
        every_ms: Some(60_000),
    };
    let mut slow = fixture.client.ticks(pace).await.unwrap();

    fixture.publish(2, vec![event("first")]).await;
    let tick = fast.next().await.unwrap().unwrap();
    assert_eq!((tick.status.period, tick.apps.len()), (2, 2));
    assert_eq!(tick.events[0].message, "first");
    assert_eq!(slow.next().await.unwrap().unwrap().status.period, 2);

    fixture.publish(3, vec![event("second")]).await;
    let tick = fast.next().await.unwrap().unwrap();
    assert_eq!(tick.events.len(), 1);
    assert_eq!(tick.events[0].message, "second");

    fixture.stop().await;
    assert_eq!(fast.next().await.unwrap(), None, "the stream ends in order");
    assert_eq!(slow.next().await.unwrap(), None, "not due again");
}

#[tokio::test]
async fn loopback_tcp_only_looks_and_only_under_its_own_name() {
    let fixture = Fixture::start().await;
    let address = fixture.tcp;
    let ask = |request: &'static str| {
        tokio::task::spawn_blocking(move || {
            let stream = std::net::TcpStream::connect(address).unwrap();
            raw(stream, request.as_bytes(), "}")
        })
    };
    let check = |answer: String, status: &str| {
        assert!(answer.starts_with(status), "{answer}");
    };
    let answer = ask("GET /v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    check(answer.unwrap(), "HTTP/1.1 200");
    let answer = ask("GET /metrics HTTP/1.0\r\nhost: 127.0.0.1:1\r\n\r\n").await;
    let answer = answer.unwrap();
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    assert!(answer.contains("# TYPE forebay_"), "{answer}");
    let answer = ask("POST /v1/pause HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
    check(answer.await.unwrap(), "HTTP/1.1 403");
    let answer = ask("GET /v1/status HTTP/1.1\r\nhost: evil.example\r\n\r\n").await;
    check(answer.unwrap(), "HTTP/1.1 403");
    let (_, paused) = fixture.stop().await;
    assert!(!paused);
}

#[tokio::test]
async fn a_full_queue_is_said_at_once() {
    let (commands, _received) = sync_channel(0);
    let result = ask(&commands, Command::Policy).await;
    assert_eq!(
        result.unwrap_err(),
        Failure::busy("the control thread has as many requests as it takes; try again")
    );
    let (commands, received) = sync_channel(1);
    drop(received);
    let result = ask(&commands, Command::Policy).await;
    assert_eq!(result.unwrap_err(), Failure::busy("the daemon is stopping"));
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("forebay.sock");
    let error = Client::connect(&path).await.unwrap_err().to_string();
    let expected = format!(
        "connect to {}: no such file; is the daemon running? start it with `forebay daemon`",
        path.display()
    );
    assert_eq!(error, expected);
}
