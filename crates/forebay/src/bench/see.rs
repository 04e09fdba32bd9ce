//! What looking costs, with 200 apps: `forebay top` on a terminal, and a page that is told of every period.
//!
//! The apps are sleeping programs in slices of their own. The page's cost is what the daemon's main thread, which
//! answers whoever asks, takes more than beside nobody, in segments that follow each other, and what the dashboard
//! takes: the other threads do alike whether somebody looks or not, and by far more than what is looked for. A subscriber
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
/// What any part may take to begin, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// One time that the page is told of every period; in percent of a core, and MiB.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Page {
    followers: usize,
    /// All of the daemon.
    daemon_alone: f64,
    daemon_told: f64,
    /// Its main thread.
    answering_alone: f64,
    answering_told: f64,
    dashboard: f64,
    messages_per_second: f64,
    bytes_per_message: f64,
    daemon_grown_mib: f64,
    dashboard_grown_mib: f64,
}

impl Page {
    fn cost(&self) -> f64 {
        self.answering_told - self.answering_alone + self.dashboard
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
            "page, {} following: the daemon answers by {:.2} % of a core alone, {:.2} % told (all of it {:.2} % and {:.2} %), \
             dashboard {:.2} %; {:.1} messages a second of {:.0} bytes, {:.3} ms each; grown by {:.2} and {:.2} MiB",
            self.followers,
            self.answering_alone,
            self.answering_told,
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
        Ok(Spent::over(interrupted, length, || Spent::now("top", pid))?.all)
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
    let alone = Spent::over(interrupted, length, || {
        Spent::now("the daemon", daemon.id())
    })?;
    let dashboard = Dashboard::start(dir)?;
    let measured = (|| {
        let heard = Heard::default();
        for _ in 0..followers {
            dashboard.follow(&heard)?;
        }
        let all_heard = || heard.messages() >= followers as u64;
        eventually(interrupted, "the dashboard", "it told nothing", all_heard)?;
        let page = || Spent::now("the dashboard", dashboard.id());
        let (page_before, before) = (page()?, (heard.messages(), heard.bytes()));
        let began = Instant::now();
        let told = Spent::over(interrupted, length, || {
            Spent::now("the daemon", daemon.id())
        })?;
        let seconds = began.elapsed().as_secs_f64();
        let page = page()?.since(&page_before, seconds);
        #[expect(clippy::cast_precision_loss, reason = "some thousands, and megabytes")]
        let (messages, bytes) = (
            (heard.messages() - before.0) as f64,
            (heard.bytes() - before.1) as f64,
        );
        Ok(Page {
            followers,
            daemon_alone: alone.all,
            daemon_told: told.all,
            answering_alone: alone.main,
            answering_told: told.main,
            dashboard: page.main,
            messages_per_second: messages / seconds,
            bytes_per_message: bytes / messages.max(1.0),
            daemon_grown_mib: told.grown_mib,
            dashboard_grown_mib: page.grown_mib,
        })
    })();
    dashboard.end()?;
    measured
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
struct Spent {
    all: forebay_host::OwnUse,
    /// Of its main thread.
    main: Duration,
}

/// In percent of a core, and MiB; what is less than before is less than zero.
#[derive(Debug, Clone, Copy)]
struct Share {
    all: f64,
    main: f64,
    grown_mib: f64,
}

impl Spent {
    fn now(part: &'static str, pid: u32) -> Result<Self, Error> {
        let ended = || Error::part(part, "ended early; see its message above");
        // Time on a CPU in nanoseconds, that in the run queue, and how often it got one.
        let statistics = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat"));
        let statistics = statistics.ok().ok_or_else(ended)?;
        let on_cpu = statistics
            .split(' ')
            .next()
            .and_then(|nanoseconds| nanoseconds.parse().ok());
        Ok(Self {
            all: agent_use(pid).ok_or_else(ended)?,
            main: Duration::from_nanos(on_cpu.ok_or_else(ended)?),
        })
    }

    /// What is used in a time.
    fn over(
        interrupted: &AtomicBool,
        length: Duration,
        now: impl Fn() -> Result<Self, Error>,
    ) -> Result<Share, Error> {
        let (before, began) = (now()?, Instant::now());
        agent::wait(interrupted, length)?;
        Ok(now()?.since(&before, began.elapsed().as_secs_f64()))
    }

    fn since(&self, before: &Self, seconds: f64) -> Share {
        let percent = |after: Duration, before: Duration| {
            100.0 * after.saturating_sub(before).as_secs_f64() / seconds
        };
        Share {
            all: percent(self.all.cpu, before.all.cpu),
            main: percent(self.main, before.main),
            grown_mib: grown_mib(&self.all, &before.all),
        }
    }
}

/// What a process holds more than before, in MiB; less is less than zero.
fn grown_mib(after: &forebay_host::OwnUse, before: &forebay_host::OwnUse) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let [after, before] = [after.memory.0 as f64, before.memory.0 as f64];
    (after - before) / f64::from(1 << 20)
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
