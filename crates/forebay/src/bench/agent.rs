//! What the daemon itself costs, with 10 and with 100 apps, on a loaded machine.
//!
//! The apps are sleeping programs in slices of their own, as most services are most of the
//! time, and every forecast is made all the same. What cannot have changed is not read, so the
//! most is done where nobody sleeps: in a run of its own, each of 100 apps works with a MiB of
//! memory and writes a file in every period. One app burns on every CPU, so that the daemon has
//! to get through.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Args, Target};
use crate::demo::print as output;
use crate::demo::{Error, interruption};

/// In percent of a core; own target, since nobody has named one.
const CPU_ACTIVE_MAX: f64 = 10.0;
const RSS_MIB_MAX: f64 = 64.0;
const JITTER_MS_MAX: f64 = 10.0;

/// Apps are of each in turn.
const CLASSES: [&str; 3] = ["critical", "standard", "batch"];

/// What all apps but one do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Asleep,
    Active,
}

impl Life {
    const fn name(self) -> &'static str {
        match self {
            Self::Asleep => "apps",
            Self::Active => "active apps",
        }
    }
}

/// Figures of one run.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Figures {
    cpu_percent_of_core: f64,
    rss_mib: f64,
    jitter_p99_ms: f64,
}

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    let few = median(args, dir, 10, Life::Asleep)?;
    let many = median(args, dir, 100, Life::Asleep)?;
    let active = median(args, dir, 100, Life::Active)?;
    let targets = vec![
        Target::at_most("CPU with 10 apps", few.cpu_percent_of_core, 1.5, "% of CPU"),
        Target::at_most(
            "CPU with 100 apps",
            many.cpu_percent_of_core,
            5.0,
            "% of CPU",
        ),
        Target::at_most(
            "CPU with 100 active apps",
            active.cpu_percent_of_core,
            CPU_ACTIVE_MAX,
            "% of CPU",
        ),
        Target::at_most(
            "resident memory with 100 apps",
            many.rss_mib,
            RSS_MIB_MAX,
            "MiB",
        ),
        Target::at_most(
            "tick jitter p99, loaded machine, 10 apps",
            few.jitter_p99_ms,
            JITTER_MS_MAX,
            "ms",
        ),
        Target::at_most(
            "tick jitter p99, loaded machine, 100 apps",
            many.jitter_p99_ms,
            JITTER_MS_MAX,
            "ms",
        ),
    ];
    Ok((
        targets,
        serde_json::json!({ "10_apps": few, "100_apps": many, "100_active_apps": active }),
    ))
}

fn median(args: &Args, dir: &Path, apps: usize, life: Life) -> Result<Figures, Error> {
    let mut runs = Vec::new();
    for _ in 0..args.repetitions {
        let run = once(dir, apps, life, Duration::from_secs(args.seconds))?;
        output::line(format_args!(
            "{apps:>3} {}: {:.2} % of a CPU, {:.1} MiB, jitter p99 {:.2} ms",
            life.name(),
            run.cpu_percent_of_core,
            run.rss_mib,
            run.jitter_p99_ms
        ));
        runs.push(run);
    }
    let of = |value: fn(&Figures) -> f64| crate::demo::spread(runs.iter().map(value)).1;
    Ok(Figures {
        cpu_percent_of_core: of(|f| f.cpu_percent_of_core),
        rss_mib: of(|f| f.rss_mib),
        jitter_p99_ms: of(|f| f.jitter_p99_ms),
    })
}

fn once(dir: &Path, apps: usize, life: Life, length: Duration) -> Result<Figures, Error> {
    let interrupted = interruption()?;
    let mut daemon = start(dir, apps, life)?;
    let result = (|| {
        let socket = dir.join("socket");
        wait(&interrupted, Duration::from_secs(5))?;
        let before = crate::demo::agent_use(daemon.id());
        let began = Instant::now();
        wait(&interrupted, length)?;
        let seconds = began.elapsed().as_secs_f64();
        let after = crate::demo::agent_use(daemon.id());
        let (Some(before), Some(after)) = (before, after) else {
            return Err(Error::part(
                "the daemon",
                "ended early; see its message above",
            ));
        };
        let status =
            crate::cli::status(&socket).map_err(|error| Error::part("the daemon", error))?;
        #[expect(clippy::cast_precision_loss, reason = "megabytes and microseconds")]
        Ok(Figures {
            cpu_percent_of_core: 100.0 * after.cpu.saturating_sub(before.cpu).as_secs_f64()
                / seconds,
            rss_mib: after.memory.0 as f64 / f64::from(1 << 20),
            jitter_p99_ms: 1000.0 * status.timing.late_p99_seconds,
        })
    })();
    crate::demo::terminate(&mut daemon, "the daemon")?;
    result
}

fn start(dir: &Path, apps: usize, life: Life) -> Result<Child, Error> {
    let exe = super::own_program()?;
    let path = |name: &str| quoted(dir.join(name).display().to_string());
    let mut text = head(dir);
    let own = quoted(exe.display().to_string());
    for index in 0..apps - 1 {
        let class = CLASSES[index % CLASSES.len()];
        let name = format!("app{index}");
        let words = match life {
            Life::Asleep => "\"sleep\", \"3600\"".to_owned(),
            // Its count file is rewritten every 100 ms.
            Life::Active => format!(
                "{own}, \"workload\", \"heap\", \"--hot\", \"1\", \"--rate\", \"1000\", \
                 \"--count-file\", {}",
                path(&name)
            ),
        };
        // Writing to a String cannot fail.
        write!(
            text,
            "[apps.{name}]\nclass = \"{class}\"\nexec = [{words}]\n"
        )
        .ok();
    }
    write!(
        text,
        "[apps.burn]\nclass = \"batch\"\nexec = [{own}, \"workload\", \"burn\", \"--count-file\", {}]\n",
        path("burn")
    )
    .ok();
    begin(dir, &text)
}

/// Starts a daemon with so many apps that sleep, and nobody else.
pub(super) fn asleep(dir: &Path, apps: usize) -> Result<Child, Error> {
    let sections = (0..apps).map(|index| {
        let class = CLASSES[index % CLASSES.len()];
        format!("[apps.app{index}]\nclass = \"{class}\"\nexec = [\"sleep\", \"3600\"]\n")
    });
    begin(dir, &(head(dir) + &sections.collect::<String>()))
}

/// What stands before the apps: all is in a directory of the benchmark's own.
fn head(dir: &Path) -> String {
    let path = |name: &str| quoted(dir.join(name).display().to_string());
    format!(
        "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"forebay-bench-{}\"\nlease = \"2s\"\n[policy]\non_stop = \"kill\"\n",
        path("socket"),
        path("state"),
        std::process::id()
    )
}

fn quoted(text: String) -> String {
    toml::Value::from(text).to_string()
}

fn begin(dir: &Path, text: &str) -> Result<Child, Error> {
    let config = dir.join("bench.toml");
    super::write_config(&config, text)?;
    super::start_daemon(&config)
}

pub(super) fn wait(
    interrupted: &std::sync::atomic::AtomicBool,
    length: Duration,
) -> Result<(), Error> {
    let until = Instant::now() + length;
    while Instant::now() < until {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
