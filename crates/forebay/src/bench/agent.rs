//! What the daemon itself costs, with 10 and with 100 apps, on a loaded machine.
//!
//! The apps are sleeping programs in slices of their own, as most services are most of the
//! time; every file is read and every forecast made all the same. One app burns on every
//! CPU, so that the daemon has to get through.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Args, Target};
use crate::demo::print as output;
use crate::demo::{Error, interruption};

const RSS_MIB_MAX: f64 = 64.0;
const JITTER_MS_MAX: f64 = 10.0;

/// Figures of one run.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Figures {
    cpu_percent_of_core: f64,
    rss_mib: f64,
    jitter_p99_ms: f64,
}

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    let few = median(args, dir, 10)?;
    let many = median(args, dir, 100)?;
    let targets = vec![
        Target::at_most("CPU with 10 apps", few.cpu_percent_of_core, 1.5, "% of CPU"),
        Target::at_most(
            "CPU with 100 apps",
            many.cpu_percent_of_core,
            5.0,
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
        serde_json::json!({ "10_apps": few, "100_apps": many }),
    ))
}

fn median(args: &Args, dir: &Path, apps: usize) -> Result<Figures, Error> {
    let mut runs = Vec::new();
    for _ in 0..args.repetitions {
        let run = once(dir, apps, Duration::from_secs(args.seconds))?;
        output::line(format_args!(
            "{apps:>3} apps: {:.2} % of a CPU, {:.1} MiB, jitter p99 {:.2} ms",
            run.cpu_percent_of_core, run.rss_mib, run.jitter_p99_ms
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

fn once(dir: &Path, apps: usize, length: Duration) -> Result<Figures, Error> {
    let interrupted = interruption()?;
    let mut daemon = start(dir, apps)?;
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

fn start(dir: &Path, apps: usize) -> Result<Child, Error> {
    let exe = std::env::current_exe().map_err(Error::system(
        "find",
        "this program's own file",
        "check that /proc is mounted",
    ))?;
    let quoted = |text: String| toml::Value::from(text).to_string();
    let path = |name: &str| quoted(dir.join(name).display().to_string());
    let mut text = format!(
        "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"forebay-bench-{}\"\nlease = \"2s\"\n[policy]\non_stop = \"kill\"\n",
        path("socket"),
        path("state"),
        std::process::id()
    );
    for index in 0..apps - 1 {
        let class = ["critical", "standard", "batch"][index % 3];
        // Writing to a String cannot fail.
        write!(
            text,
            "[apps.app{index}]\nclass = \"{class}\"\nexec = [\"sleep\", \"3600\"]\n"
        )
        .ok();
    }
    let burn = quoted(exe.display().to_string());
    write!(
        text,
        "[apps.burn]\nclass = \"batch\"\nexec = [{burn}, \"workload\", \"burn\", \"--count-file\", {}]\n",
        path("burn")
    )
    .ok();
    let config = dir.join("bench.toml");
    super::write_config(&config, &text)?;
    super::start_daemon(&config)
}

fn wait(interrupted: &std::sync::atomic::AtomicBool, length: Duration) -> Result<(), Error> {
    let until = Instant::now() + length;
    while Instant::now() < until {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
