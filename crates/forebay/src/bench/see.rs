//! What looking costs, with 200 apps: `forebay top` on a terminal, and a page that is told of every period.
//!
//! The apps are sleeping programs in slices of their own. The page's cost is what the daemon takes more than
//! beside nobody, in segments that follow each other, and what the dashboard's own process takes. A subscriber
//! reads the messages and does nothing with them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Args, Target, agent};
use crate::demo::print as output;
use crate::demo::{Error, agent_use, interruption};

const APPS: usize = 200;
/// How often the page is told, at most.
const EVERY_MS: u64 = 100;
/// What is promised, in percent of a core.
const TOP_MAX: f64 = 1.0;
const PAGE_MAX: f64 = 5.0;
/// Fewer messages in a second are not what was to be measured.
const RATE_MIN: f64 = 8.0;
/// What `top` draws on: larger than most have it.
const SCREEN: (u16, u16) = (50, 160);
/// For the daemon to have started all, and for `top` to have its first looks.
const WARM_UP: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// The end of a message of the stream.
const MESSAGE: &[u8] = b"event: tick";

/// In percent of a core.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Page {
    daemon_alone: f64,
    daemon_told: f64,
    dashboard: f64,
    messages_per_second: f64,
}

impl Page {
    fn cost(&self) -> f64 {
        self.daemon_told - self.daemon_alone + self.dashboard
    }
}

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    let interrupted = interruption()?;
    let length = Duration::from_secs(args.seconds);
    let mut daemon = agent::asleep(dir, APPS)?;
    let measured = (|| {
        let all_run = || {
            let status = crate::cli::status(&dir.join("socket"));
            status.is_ok_and(|status| status.apps_running == APPS as u64)
        };
        eventually(
            &interrupted,
            "the daemon",
            "it did not start all apps",
            all_run,
        )?;
        agent::wait(&interrupted, WARM_UP)?;
        let top = top(dir, &interrupted, length)?;
        output::line(format_args!("top: {top:.2} % of a core"));
        let mut pages = Vec::new();
        for _ in 0..args.repetitions {
            let page = page(dir, &daemon, &interrupted, length)?;
            output::line(format_args!(
                "page: daemon {:.2} % of a core, told {:.2} %, dashboard {:.2} %, {:.1} messages a second",
                page.daemon_alone, page.daemon_told, page.dashboard, page.messages_per_second
            ));
            pages.push(page);
        }
        Ok((top, pages))
    })();
    crate::demo::terminate(&mut daemon, "the daemon")?;
    let (top, pages) = measured?;
    let median = |of: fn(&Page) -> f64| crate::demo::spread(pages.iter().map(of)).1;
    let targets = vec![
        Target::at_most("`top` with 200 apps", top, TOP_MAX, "% of CPU"),
        Target::at_most(
            "a page with 200 apps, in all of the agent",
            median(Page::cost),
            PAGE_MAX,
            "% of CPU",
        ),
        Target::at_least(
            "how often the page is told",
            median(|page| page.messages_per_second),
            RATE_MIN,
            "a second",
        ),
    ];
    Ok((targets, serde_json::json!({ "top": top, "pages": pages })))
}

/// What `top` takes while nobody presses a key.
fn top(dir: &Path, interrupted: &AtomicBool, length: Duration) -> Result<f64, Error> {
    let (rows, columns) = SCREEN;
    // `script` gives it a terminal, and notes what it draws.
    let screen = dir.join("screen");
    let command = format!("stty rows {rows} cols {columns}; exec \"$FOREBAY\" top --view apps");
    let mut script = Command::new("script")
        .args(["--quiet", "--command", &command])
        .arg(&screen)
        .env("FOREBAY", super::own_program()?)
        .env("FOREBAY_SOCKET", dir.join("socket"))
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(Error::system("run", "script", "install bsdutils"))?;
    let measured = (|| {
        let mut pid = None;
        let shows = || {
            pid = child_named(script.id(), "forebay");
            pid.is_some()
        };
        eventually(interrupted, "top", "it did not start", shows)?;
        let pid = pid.ok_or_else(|| Error::part("top", "it did not start"))?;
        agent::wait(interrupted, WARM_UP)?;
        share("top", pid, interrupted, length)
    })();
    crate::demo::terminate(&mut script, "script")?;
    let drawn = std::fs::read(&screen).unwrap_or_default();
    match String::from_utf8_lossy(&drawn).contains("app1") {
        true => measured,
        false => Err(Error::part("top", "it did not show the apps")),
    }
}

/// The child of a process that runs a program of this name.
fn child_named(parent: u32, name: &str) -> Option<u32> {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(children).ok()?;
    let mut pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    pids.find(|pid| {
        let called = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        called.is_ok_and(|called| called.trim_end() == name)
    })
}

/// Twice the daemon: alone, and while a page is told of every period.
fn page(
    dir: &Path,
    daemon: &Child,
    interrupted: &AtomicBool,
    length: Duration,
) -> Result<Page, Error> {
    let daemon_alone = share("the daemon", daemon.id(), interrupted, length)?;
    let mut dashboard = Command::new("/proc/self/exe")
        .args(["dashboard", "--listen", "127.0.0.1:0", "--socket"])
        .arg(dir.join("socket"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::system(
            "start",
            "the dashboard",
            "check memory and process limits",
        ))?;
    let measured = (|| {
        let messages = subscribe(&mut dashboard)?;
        let heard = || messages.load(Ordering::Relaxed) > 0;
        eventually(interrupted, "the dashboard", "it told nothing", heard)?;
        let (before, began) = (messages.load(Ordering::Relaxed), Instant::now());
        let used = |pid| agent_use(pid).map(|used| used.cpu);
        let page_before = used(dashboard.id());
        let daemon_told = share("the daemon", daemon.id(), interrupted, length)?;
        let seconds = began.elapsed().as_secs_f64();
        let (Some(page_before), Some(page_after)) = (page_before, used(dashboard.id())) else {
            return Err(Error::part("the dashboard", "ended early"));
        };
        let told = messages.load(Ordering::Relaxed) - before;
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        Ok(Page {
            daemon_alone,
            daemon_told,
            dashboard: 100.0 * page_after.saturating_sub(page_before).as_secs_f64() / seconds,
            messages_per_second: told as f64 / seconds,
        })
    })();
    crate::demo::terminate(&mut dashboard, "the dashboard")?;
    measured
}

/// Follows the stream through a dashboard, as a page does; how many messages came so far. Ends with the dashboard.
fn subscribe(dashboard: &mut Child) -> Result<Arc<AtomicU64>, Error> {
    let broken = |why: String| Error::part("the dashboard", why);
    let told = dashboard.stdout.take();
    let told = told.ok_or_else(|| broken("it has no output".to_owned()))?;
    let mut line = String::new();
    let read = BufReader::new(told).read_line(&mut line);
    read.map_err(|error| broken(error.to_string()))?;
    let address = line.trim().strip_prefix("http://");
    let (place, token) = address
        .and_then(|address| address.split_once("/#token="))
        .ok_or_else(|| broken(format!("it said `{}` instead of its address", line.trim())))?;
    let mut stream = TcpStream::connect(place).map_err(|error| broken(error.to_string()))?;
    write!(
        stream,
        "GET /v1/stream?every_ms={EVERY_MS} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n"
    )
    .map_err(|error| broken(error.to_string()))?;
    let messages = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&messages);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut kept = 0;
        while let Ok(read @ 1..) = stream.read(&mut buffer[kept..]) {
            let end = kept + read;
            let found = buffer[..end]
                .windows(MESSAGE.len())
                .filter(|part| *part == MESSAGE);
            count.fetch_add(found.count() as u64, Ordering::Relaxed);
            // What begins here may end in the next part.
            kept = end.min(MESSAGE.len() - 1);
            buffer.copy_within(end - kept..end, 0);
        }
    });
    Ok(messages)
}

/// What a process takes in a time, in percent of a core.
fn share(
    part: &'static str,
    pid: u32,
    interrupted: &AtomicBool,
    length: Duration,
) -> Result<f64, Error> {
    let (before, began) = (agent_use(pid), Instant::now());
    agent::wait(interrupted, length)?;
    let (after, seconds) = (agent_use(pid), began.elapsed().as_secs_f64());
    let (Some(before), Some(after)) = (before, after) else {
        return Err(Error::part(part, "ended early; see its message above"));
    };
    Ok(100.0 * after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds)
}

fn eventually(
    interrupted: &AtomicBool,
    part: &'static str,
    otherwise: &'static str,
    mut is_so: impl FnMut() -> bool,
) -> Result<(), Error> {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > until {
            return Err(Error::part(part, otherwise));
        }
        agent::wait(interrupted, LOOK)?;
    }
    Ok(())
}
