//! Nobody is promoted because the host is busy: fronts of three modes under load at once, with twice as
//! many threads that compute as there are CPUs, checkpoints of PostgreSQL and forks of Redis, and no
//! fault at all.
//!
//! Ten seconds as a test. For longer, alone on the host:
//!
//!     FOREBAY_TEST_SECONDS=3600 cargo nextest run --release -p forebay-shadow --test calm

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not take for tests"
)]

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "redis/harness.rs"]
mod harness;
#[expect(dead_code, reason = "other tests use the rest")]
mod instances;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "redis/load.rs"]
mod load;
#[expect(
    dead_code,
    clippy::result_large_err,
    reason = "other tests use the rest"
)]
mod postgresql;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_shadow::redis::Options;
use harness::{Client, Front, Group, Reply, Server, has, text};
use instances::stage::Stage;
use load::Load;
use postgresql::{Cluster, PLAIN, runtime};

const SECONDS: u64 = 10;
/// Clients of the http front, and how often each asks.
const CLIENTS: usize = 16;
const PACE: Duration = Duration::from_millis(20);
/// What Redis holds, and copies the tables of when it forks.
const VALUES: usize = 100;
const VALUE_BYTES: usize = 1 << 20;
/// Between two checkpoints, and between two forks.
const PAUSE: Duration = Duration::from_secs(1);

/// Not a test: the main function of the instances.
#[test]
#[ignore = "it is started by the other test"]
fn instance() {
    instances::serve_as_instance();
}

/// Threads that compute, until it is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start(threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let compute = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..threads).map(compute).collect();
        Self { stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// How long all of it goes on: to the end, or until something fails.
struct Span {
    end: Instant,
    failed: AtomicBool,
}

impl Span {
    fn goes_on(&self) -> bool {
        Instant::now() < self.end && !self.failed.load(Ordering::Relaxed)
    }

    /// For each thread: what fails in one is not told before the others have ended.
    const fn watch(&self) -> Watch<'_> {
        Watch(self)
    }
}

struct Watch<'a>(&'a Span);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_busy_host_is_no_loss() {
    let name = "a_busy_host_is_no_loss";
    if !has(name, "redis-server") {
        return;
    }
    // Whom the front cannot stop it does not replace, however much it wants to.
    let Some(groups) = instances::groups(name) else {
        return;
    };
    let Some(cluster) = Cluster::start(name, &PLAIN) else {
        return;
    };
    let seconds = std::env::var("FOREBAY_TEST_SECONDS");
    let seconds = seconds.map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let runtime = runtime();
    let servers = [(); 2].map(|()| Server::start(&[], Some(Group::new().unwrap())));
    let redis = runtime.block_on(behind(&servers));
    let http = runtime.block_on(Stage::new(Duration::from_secs(10), Some(&groups)));
    runtime.block_on(fill(&redis));
    initialise(&cluster);
    let statuses = || {
        [
            ("http", runtime.block_on(http.status())),
            ("redis", runtime.block_on(redis.ready())),
            ("postgres", cluster.status()),
        ]
    };
    let before = statuses();

    let cpus = std::thread::available_parallelism().unwrap().get();
    let busy = Busy::start(2 * cpus);
    let span = Span {
        end: Instant::now() + Duration::from_secs(seconds),
        failed: AtomicBool::new(false),
    };
    let checkpoints = AtomicU64::new(0);
    let (asked, seen, forks) = std::thread::scope(|scope| {
        scope.spawn(|| transact(&cluster, seconds, &span));
        scope.spawn(|| {
            let _watch = span.watch();
            while span.goes_on() {
                cluster.psql_at(cluster.ports[0], "postgres", "CHECKPOINT");
                checkpoints.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
        });
        let _watch = span.watch();
        runtime.block_on(async {
            let load = Load::start(&redis).await;
            let (asked, forks) = tokio::join!(browse(&http, &span), fork(&servers[0], &span));
            (asked, load.end().await, forks)
        })
    });
    drop(busy);
    let counts = [
        runtime.block_on(http.counts()),
        runtime.block_on(redis.counts()),
        cluster.counts(),
    ];
    for (((mode, before), (_, after)), counts) in before.iter().zip(statuses()).zip(counts) {
        assert_eq!(after.epoch, before.epoch, "{mode}: {after:#?}");
        assert_eq!(after.primary, before.primary, "{mode}");
        assert_eq!(after.transitions, before.transitions, "{mode}");
        // Nor was anything tried that did not work.
        assert_eq!(after.failures, before.failures, "{mode}");
        let unanswered = (counts.failed, counts.unknown);
        assert_eq!(unanswered, (0, 0), "{mode}: {counts:?}");
        println!("{mode}: {} requests, {} held", counts.requests, counts.held);
    }
    let checkpoints = checkpoints.into_inner();
    println!(
        "{seconds} s, {} threads beside: http {asked} answers, redis {seen:?} and {forks} forks, \
         postgres {checkpoints} checkpoints: nobody was promoted",
        2 * cpus
    );
    assert!(asked > 0 && seen.acknowledged > 0 && forks > 0 && checkpoints > 0);
    assert_eq!((seen.lost, seen.dropped), (0, Vec::<String>::new()));
}

/// A front before servers that it can stop.
async fn behind(servers: &[Server]) -> Front {
    let front = Front::start(servers, Options::default());
    for (slot, server) in servers.iter().enumerate() {
        front.join(slot, server).await;
    }
    front.ready().await;
    front
}

/// Values that the server's process has to copy the page tables of.
async fn fill(front: &Front) {
    let mut client = front.client().await;
    let value = "x".repeat(VALUE_BYTES);
    for number in 0..VALUES {
        let answer = client.ask(&format!("SET value-{number} {value}")).await;
        assert_eq!(answer, text("OK"));
    }
}

/// Has the primary fork and write all it has, again and again; how often it did.
async fn fork(server: &Server, span: &Span) -> u64 {
    let mut client = Client::connect(server.port).await.unwrap();
    let mut forks = 0;
    while span.goes_on() {
        let answer = client.ask("BGSAVE").await;
        forks += u64::from(matches!(answer, Reply::Text(_)));
        tokio::time::sleep(PAUSE).await;
    }
    forks
}

fn initialise(cluster: &Cluster) {
    let arguments = ["-i", "-q", "-s", "5"];
    let output = cluster.tool("pgbench", cluster.front, "app", &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Transactions of eight clients, of which none may fail.
fn transact(cluster: &Cluster, seconds: u64, span: &Span) {
    let _watch = span.watch();
    let mut pgbench = cluster
        .command("pgbench", cluster.front, "app")
        .args(["-n", "-c", "8", "-T", &seconds.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while pgbench.try_wait().unwrap().is_none() {
        if span.failed.load(Ordering::Relaxed) {
            pgbench.kill().unwrap();
            pgbench.wait().unwrap();
            return;
        }
        std::thread::sleep(PACE);
    }
    let output = pgbench.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Requests of some clients; how many were answered. None may fail.
async fn browse(stage: &Stage, span: &Span) -> u64 {
    let mut asked = 0;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(stage.client().await);
    }
    let mut pace = tokio::time::interval(PACE);
    while span.goes_on() {
        pace.tick().await;
        for client in &mut clients {
            client
                .send("GET /a HTTP/1.1\r\nHost: test\r\nX-Id: a\r\n\r\n")
                .await;
        }
        for client in &mut clients {
            let reply = client.reply(false).await.unwrap();
            if reply.status != 200 {
                panic!("{}{:#?}", reply.head, stage.status().await);
            }
            asked += 1;
        }
    }
    asked
}
