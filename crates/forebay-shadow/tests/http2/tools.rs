//! Programs of others notice nothing of primaries that are killed.

use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::instances::BOUND;
use crate::instances::stage::Stage;
use crate::{PATIENCE, tls};

/// Primaries that are killed in the sight of each program.
const KILLS: usize = 3;
/// Requests that are answered between two of those, at least.
const BETWEEN: u64 = 100;
/// Requests of one run of a program on connections that it uses again.
const REQUESTS: usize = 1000;

/// A program that asks, and is begun again until all primaries were killed.
struct Program<'a> {
    name: &'a str,
    arguments: Vec<&'a str>,
    /// Requests of each run.
    requests: usize,
    /// How many run at the same time.
    many: usize,
    /// Whether it says of a run of so many requests that nothing failed.
    is_well: fn(&str, usize) -> bool,
}

/// Whether a program is there; says so when the test is skipped.
fn has(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !there {
        println!("SKIPPED: {test}: {program} is missing; `cargo xtask setup` installs it");
    }
    there
}

impl Program<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.name);
        command.args(&self.arguments).stdin(Stdio::null());
        command
    }

    /// Asks while primaries are killed, and says what came of it.
    async fn check(&self, stage: &mut Stage) {
        let before = stage.counts().await;
        let (tell, end) = watch::channel(false);
        let mut asking = JoinSet::new();
        for _ in 0..self.many {
            let (command, end) = (self.command(), end.clone());
            asking.spawn_blocking(move || again_and_again(command, &end));
        }
        for _ in 0..KILLS {
            kill_one(stage, &mut asking).await;
        }
        tell.send_replace(true);
        let said: Vec<String> = asking.join_all().await.into_iter().flatten().collect();
        for said in &said {
            let well = (self.is_well)(said, self.requests);
            assert!(well, "{} {:?}: {said}", self.name, self.arguments);
        }
        let after = stage.counts().await;
        let asked = after.requests - before.requests;
        println!(
            "{} {:?}: {} runs of {} requests, {KILLS} primaries killed: {asked} asked, {} held, {} \
             sent again, {} failed, {} unknown",
            self.name,
            self.arguments,
            said.len(),
            self.requests,
            after.held - before.held,
            after.replayed - before.replayed,
            after.failed,
            after.unknown,
        );
        assert_eq!((after.failed, after.unknown), (0, 0), "{after:?}");
        let runs = u64::try_from(said.len() * self.requests).unwrap();
        assert_eq!(asked, runs, "each was asked for once");
    }
}

/// Runs a program until it is told to end, and once more; what each run said.
fn again_and_again(mut command: Command, end: &watch::Receiver<bool>) -> Vec<String> {
    let mut said = Vec::new();
    loop {
        let last = *end.borrow();
        let output = command.output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {complaint}");
        said.push(String::from_utf8(output.stdout).unwrap());
        if last {
            return said;
        }
    }
}

/// Kills the primary once enough was answered, and begins it anew once another one serves.
async fn kill_one(stage: &mut Stage, asking: &mut JoinSet<Vec<String>>) {
    let target = stage.counts().await.requests + BETWEEN;
    let deadline = Instant::now() + BOUND;
    while stage.counts().await.requests < target {
        if let Some(ended) = asking.try_join_next() {
            panic!("a program failed: {ended:?}");
        }
        assert!(Instant::now() < deadline, "the programs do not ask");
    }
    let before = stage.status().await;
    stage.instances[before.primary].signal(Signal::KILL);
    stage
        .until(|status| status.stage == "warm" && status.epoch > before.epoch)
        .await;
    stage.restart(before.primary).await;
}

fn is_well_for_h2load(said: &str, requests: usize) -> bool {
    let asked = format!(
        "requests: {requests} total, {requests} started, {requests} done, {requests} succeeded, \
         0 failed, 0 errored, 0 timeout"
    );
    let codes = format!("status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx");
    let has = |line: &String| said.lines().any(|said| said == line);
    has(&asked) && has(&codes)
}

/// Each answer has its version of HTTP and its status.
fn is_well_for_curl(said: &str, requests: usize) -> bool {
    let all = |wanted: &str| said.lines().all(|line| line == wanted);
    said.lines().count() == requests && (all("2 200") || all("1.1 200"))
}

#[tokio::test]
async fn h2load_notices_no_killed_primary() {
    if !has("h2load_notices_no_killed_primary", "h2load") {
        return;
    }
    let count = REQUESTS.to_string();
    let load = ["-n", count.as_str(), "-c", "4", "-m", "16"];
    let program = |arguments| Program {
        name: "h2load",
        arguments,
        requests: REQUESTS,
        many: 1,
        is_well: is_well_for_h2load,
    };
    let mut stage = Stage::new(PATIENCE, None).await;
    let url = format!("http://{}/a", stage.front);
    for version in [["-p", "h2c"].as_slice(), &["--h1"]] {
        let arguments = [load.as_slice(), version, &[url.as_str()]].concat();
        program(arguments).check(&mut stage).await;
    }
    drop(stage);
    let (mut stage, _directory) = tls::stage().await;
    let url = format!("https://{}/a", stage.front);
    let arguments = [load.as_slice(), &[url.as_str()]].concat();
    program(arguments).check(&mut stage).await;
}

#[tokio::test]
async fn curl_notices_no_killed_primary() {
    if !has("curl_notices_no_killed_primary", "curl") {
        return;
    }
    let quiet = [
        "--silent",
        "--show-error",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_version} %{http_code}\n",
    ];
    let together = ["--parallel", "--parallel-max", "16"];
    let program = |requests, many, arguments| Program {
        name: "curl",
        arguments,
        requests,
        many,
        is_well: is_well_for_curl,
    };
    let mut stage = Stage::new(PATIENCE, None).await;
    let url = format!("http://{}/a", stage.front);
    // curl 7.88 uses such a connection for one request, and fails the next one, also with others.
    let arguments = [quiet.as_slice(), &["--http2-prior-knowledge", url.as_str()]].concat();
    program(1, 8, arguments).check(&mut stage).await;
    let url = format!("{url}?[1-{REQUESTS}]");
    let arguments = [quiet.as_slice(), &together, &["--http2", url.as_str()]].concat();
    program(REQUESTS, 1, arguments).check(&mut stage).await;
    drop(stage);
    let (mut stage, directory) = tls::stage().await;
    let port = stage.front.port();
    let ca = directory.path().join("first.crt").display().to_string();
    let resolve = format!("test:{port}:127.0.0.1");
    let url = format!("https://test:{port}/a?[1-{REQUESTS}]");
    let own = ["--http2", "--cacert", &*ca, "--resolve", &*resolve, &*url];
    let arguments = [quiet.as_slice(), &together, &own].concat();
    program(REQUESTS, 1, arguments).check(&mut stage).await;
}
