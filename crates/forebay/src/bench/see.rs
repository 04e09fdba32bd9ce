//! What looking costs, with 200 apps: `forebay top` on a terminal, and a page that is told of every period.
//!
//! The apps are sleeping programs in slices of their own. The page's cost is what the daemon takes more than
//! beside nobody, in segments that follow each other, and what the dashboard's own process takes. A subscriber
//! reads the messages and does nothing with them; then several do, to see what one more costs. With the
//! repository's `web/` a browser opens the page, too: what is told of it is as the browser measured it, on the
//! machine as it was, beside how busy that was.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::{Args, Target, agent};
use crate::demo::print as output;
use crate::demo::{Error, agent_use, interruption, spread};

mod browser;
mod follower;

use follower::{Dashboard, Heard};

const APPS: usize = 200;
/// What is promised, in percent of a core.
const TOP_MAX: f64 = 1.0;
const PAGE_MAX: f64 = 5.0;
/// Fewer messages in a second are not what was to be measured.
const RATE_MIN: f64 = 9.0;
/// What the daemon and the dashboard may grow by while they are looked at, once they have been.
const GROWN_MIB_MAX: f64 = 8.0;
/// Followers of the last segment.
const MANY: usize = 5;
/// What `top` draws on: larger than most have it.
const SCREEN: (u16, u16) = (50, 160);
/// For the daemon to have started all, and for `top` to have its first looks.
const WARM_UP: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// One time that the page is told of every period; in percent of a core, and MiB.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Page {
    followers: usize,
    daemon_alone: f64,
    daemon_told: f64,
    dashboard: f64,
    messages_per_second: f64,
    bytes_per_message: f64,
    daemon_grown_mib: f64,
    dashboard_grown_mib: f64,
}

impl Page {
    fn cost(&self) -> f64 {
        self.daemon_told - self.daemon_alone + self.dashboard
    }

    /// Processor time for one message to one follower, in milliseconds.
    fn per_message_ms(&self) -> f64 {
        10.0 * self.cost() / self.messages_per_second
    }

    fn grown_mib(&self) -> f64 {
        self.daemon_grown_mib.max(self.dashboard_grown_mib)
    }

    fn say(&self) {
        output::line(format_args!(
            "page, {} following: daemon {:.2} % of a core alone, {:.2} % told, dashboard {:.2} %; {:.1} messages a \
             second of {:.0} bytes, {:.3} ms each; grown by {:.2} and {:.2} MiB",
            self.followers,
            self.daemon_alone,
            self.daemon_told,
            self.dashboard,
            self.messages_per_second,
            self.bytes_per_message,
            self.per_message_ms(),
            self.daemon_grown_mib,
            self.dashboard_grown_mib
        ));
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
            let page = page(dir, &daemon, &interrupted, length, 1)?;
            page.say();
            pages.push(page);
        }
        let many = page(dir, &daemon, &interrupted, length, MANY)?;
        many.say();
        let browser = match &args.web {
            Some(web) => Some(browser::look(web, dir, args.repetitions)?),
            None => {
                output::line(format_args!(
                    "the page in a browser: NOT measured; name the repository's web/ by --web, after `npm ci` there"
                ));
                None
            }
        };
        Ok((top, pages, many, browser))
    })();
    crate::demo::terminate(&mut daemon, "the daemon")?;
    let (top, pages, many, browser) = measured?;
    let median = |of: fn(&Page) -> f64| spread(pages.iter().map(of)).1;
    let mut targets = vec![
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
        Target::at_most(
            "what daemon or dashboard grow by meanwhile",
            median(Page::grown_mib),
            GROWN_MIB_MAX,
            "MiB",
        ),
    ];
    targets.extend(browser.iter().flat_map(browser::Looks::targets));
    let result = serde_json::json!({
        "apps": APPS,
        "segment_seconds": args.seconds,
        "top_percent": top,
        "pages": pages,
        "page_per_message_ms": median(Page::per_message_ms),
        "with_many_followers": many,
        "browser": browser,
    });
    Ok((targets, result))
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

/// Twice the daemon: alone, and while so many are told of every period through one dashboard.
fn page(
    dir: &Path,
    daemon: &Child,
    interrupted: &AtomicBool,
    length: Duration,
    followers: usize,
) -> Result<Page, Error> {
    let daemon_alone = share("the daemon", daemon.id(), interrupted, length)?;
    let dashboard = Dashboard::start(dir)?;
    let measured = (|| {
        let heard = Heard::default();
        for _ in 0..followers {
            dashboard.follow(&heard)?;
        }
        let all_heard = || heard.messages() >= followers as u64;
        eventually(interrupted, "the dashboard", "it told nothing", all_heard)?;
        let used = |part, pid| {
            let used = agent_use(pid);
            used.ok_or_else(|| Error::part(part, "ended early; see its message above"))
        };
        let both = || -> Result<_, Error> {
            Ok((
                used("the daemon", daemon.id())?,
                used("the dashboard", dashboard.id())?,
            ))
        };
        let (before, told, began) = (both()?, (heard.messages(), heard.bytes()), Instant::now());
        agent::wait(interrupted, length)?;
        let (after, seconds) = (both()?, began.elapsed().as_secs_f64());
        let percent = |after: &forebay_host::OwnUse, before: &forebay_host::OwnUse| {
            100.0 * after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds
        };
        #[expect(clippy::cast_precision_loss, reason = "some thousands, and megabytes")]
        let (messages, bytes) = (
            (heard.messages() - told.0) as f64,
            (heard.bytes() - told.1) as f64,
        );
        Ok(Page {
            followers,
            daemon_alone,
            daemon_told: percent(&after.0, &before.0),
            dashboard: percent(&after.1, &before.1),
            messages_per_second: messages / seconds,
            bytes_per_message: bytes / messages.max(1.0),
            daemon_grown_mib: grown_mib(&after.0, &before.0),
            dashboard_grown_mib: grown_mib(&after.1, &before.1),
        })
    })();
    dashboard.end()?;
    measured
}

/// What a process holds more than before, in MiB; less is less than zero.
fn grown_mib(after: &forebay_host::OwnUse, before: &forebay_host::OwnUse) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let [after, before] = [after.memory.0 as f64, before.memory.0 as f64];
    (after - before) / f64::from(1 << 20)
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
