//! Memory saved from a batch app, and what that costs it, beside controllers as Senpai's.
//!
//! The app works with a part of its memory and holds the rest; now and then it touches that too.
//! Beside it, on the same CPU, runs a like program that only works and that nobody reclaims. What
//! a page of work costs is CPU time and time in which the app waited for memory; it is counted
//! relative to the other's, so that a slow spell of the machine falls on both. Arms take turns.
//! Each starts with all memory there; the time until the cold part is gone counts.
//!
//! Senpai's rule is that of TMO (Weiner et al., ASPLOS 2022, section 3.3): every interval reclaim
//! `used * ratio * max(0, 1 - pressure / threshold)`, where pressure is PSI's share of time in
//! which some task waited for memory. Once with the ratio and threshold that its open-source
//! version starts from, once tuned by hand to the bound and the pace of Forebay's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Args, Target};
use crate::demo::print as output;
use crate::demo::{Error, interruption, spread, terminate};
use crate::workload::read_count;

/// What the app works with, and what it only holds.
const HOT_MIB: u64 = 96;
const COLD_MIB: u64 = 288;
/// All of the cold part is touched once in this time.
const TOUCH_COLD_EVERY_S: u64 = 3600;
/// A segment is so many times as long as `--seconds`: what is cold takes time to find.
const LENGTHS: u32 = 10;
/// How much slower the app may become.
const SLOWDOWN_MAX_PERCENT: f64 = 5.0;
/// Part of the cold memory that must have been saved.
const SAVED_MIN_PERCENT: f64 = 75.0;
/// How long a part may take to appear: emulated machines fill memory slowly.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    Uncontrolled,
    Senpai,
    SenpaiTuned,
    Forebay,
}

const ARMS: [Arm; 4] = [
    Arm::Uncontrolled,
    Arm::Senpai,
    Arm::SenpaiTuned,
    Arm::Forebay,
];

impl Arm {
    const fn name(self) -> &'static str {
        match self {
            Self::Uncontrolled => "uncontrolled",
            Self::Senpai => "senpai",
            Self::SenpaiTuned => "senpai, tuned",
            Self::Forebay => "forebay",
        }
    }

    fn senpai(self) -> Option<Senpai> {
        match self {
            Self::Senpai => Some(Senpai {
                interval: Duration::from_secs(6),
                ratio: 0.01,
                threshold: 0.001,
            }),
            Self::SenpaiTuned => Some(Senpai {
                interval: Duration::from_secs(2),
                ratio: 0.0625,
                threshold: 0.02,
            }),
            Self::Uncontrolled | Self::Forebay => None,
        }
    }
}

/// What one arm did in one segment.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Segment {
    /// Held by the app in the last third, in MiB.
    held_mib: f64,
    /// Cost of the app's work over that of the program beside it.
    relative_cost: f64,
    /// Share of time in which the app waited for memory.
    waited_percent: f64,
}

/// All segments of one arm.
#[derive(Debug, Clone, serde::Serialize)]
struct Row {
    arm: &'static str,
    saved_mib: f64,
    saved_percent_of_cold: f64,
    /// Beside the uncontrolled arm of the same repetition: the median, and from least to most.
    slowdown_percent: f64,
    slowdown_range_percent: (f64, f64),
    waited_percent: f64,
    segments: Vec<Segment>,
}

pub(super) fn run(args: &Args, dir: &Path) -> Result<(Vec<Target>, serde_json::Value), Error> {
    let interrupted = interruption()?;
    let scene = Scene::new(dir, &interrupted)?;
    let length = Duration::from_secs(args.seconds) * LENGTHS;
    let mut segments = vec![Vec::new(); ARMS.len()];
    for repetition in 0..args.repetitions {
        for turn in 0..ARMS.len() {
            let at = (turn + usize::try_from(repetition).unwrap_or(0)) % ARMS.len();
            let segment = scene.run(ARMS[at], length)?;
            output::line(format_args!(
                "{:>2}/{} {:<16} holds {:>6.1} MiB, relative cost {:.3}, waited {:>5.2} %",
                repetition + 1,
                args.repetitions,
                ARMS[at].name(),
                segment.held_mib,
                segment.relative_cost,
                segment.waited_percent,
            ));
            segments[at].push(segment);
        }
    }
    let rows = rows(&segments);
    output::line(format_args!(
        "\n{:<16}{:>12}{:>16}{:>14}{:>16}{:>12}",
        "", "saved, MiB", "% of the cold", "slowdown, %", "", "waited, %"
    ));
    for row in &rows {
        output::line(format_args!(
            "{:<16}{:>12.1}{:>16.1}{:>14.2}{:>16}{:>12.2}",
            row.arm,
            row.saved_mib,
            row.saved_percent_of_cold,
            row.slowdown_percent,
            format!(
                "{:.1} to {:.1}",
                row.slowdown_range_percent.0, row.slowdown_range_percent.1
            ),
            row.waited_percent
        ));
    }
    output::line(format_args!(""));
    Ok((targets(&rows), serde_json::json!({ "arms": rows })))
}

fn rows(segments: &[Vec<Segment>]) -> Vec<Row> {
    let median = |segments: &[Segment], of: fn(&Segment) -> f64| spread(segments.iter().map(of)).1;
    let held = median(&segments[0], |segment| segment.held_mib);
    // In a repetition, so that a spell that slows one of the two programs more falls on few.
    let slowdown = |own: &[Segment]| {
        let pairs = own.iter().zip(&segments[0]);
        spread(pairs.map(|(own, alone)| 100.0 * (own.relative_cost / alone.relative_cost - 1.0)))
    };
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    let cold = COLD_MIB as f64;
    ARMS.iter()
        .zip(segments)
        .map(|(arm, segments)| {
            let saved = held - median(segments, |segment| segment.held_mib);
            let (least, slowdown, most) = slowdown(segments);
            Row {
                arm: arm.name(),
                saved_mib: saved,
                saved_percent_of_cold: 100.0 * saved / cold,
                slowdown_percent: slowdown,
                slowdown_range_percent: (least, most),
                waited_percent: median(segments, |segment| segment.waited_percent),
                segments: segments.clone(),
            }
        })
        .collect()
}

fn targets(rows: &[Row]) -> Vec<Target> {
    let row = |arm: Arm| {
        let position = ARMS.iter().position(|other| *other == arm);
        &rows[position.expect("every arm has a row")]
    };
    let forebay = row(Arm::Forebay);
    vec![
        Target::at_most(
            "slowdown with Forebay",
            forebay.slowdown_percent,
            SLOWDOWN_MAX_PERCENT,
            "%",
        ),
        Target::at_least(
            "saved with Forebay, of the cold memory",
            forebay.saved_percent_of_cold,
            SAVED_MIN_PERCENT,
            "%",
        ),
        Target::at_least(
            "saved with Forebay / saved by Senpai",
            forebay.saved_mib / row(Arm::Senpai).saved_mib.max(1.0),
            1.0,
            "",
        ),
    ]
}

/// Senpai's rule with its constants.
#[derive(Debug, Clone, Copy)]
struct Senpai {
    interval: Duration,
    ratio: f64,
    threshold: f64,
}

impl Senpai {
    /// What to reclaim now.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes of one group, and a part of them"
    )]
    fn step(&self, used: u64, pressure: f64) -> u64 {
        let part = self.ratio * (1.0 - pressure / self.threshold).max(0.0);
        (used as f64 * part) as u64
    }
}

/// What all segments share.
struct Scene {
    exe: PathBuf,
    dir: PathBuf,
    root: PathBuf,
    interrupted: Arc<AtomicBool>,
}

impl Scene {
    fn new(dir: &Path, interrupted: &Arc<AtomicBool>) -> Result<Self, Error> {
        let root = PathBuf::from("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.subtree_control"));
        let v2 = controllers.is_ok_and(|text| text.split_whitespace().any(|c| c == "memory"));
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        if !v2 || swaps.lines().count() < 2 {
            return Err(Error::part(
                "the memory benchmark",
                "needs the memory controller of cgroup v2 at /sys/fs/cgroup, enabled for the \
                 groups below, and swap; `cargo xtask bench memory` runs it in a guest that has \
                 both",
            ));
        }
        let exe = std::env::current_exe().map_err(Error::system(
            "find",
            "this program's own file",
            "check that /proc is mounted",
        ))?;
        Ok(Self {
            exe,
            dir: dir.to_owned(),
            root,
            interrupted: Arc::clone(interrupted),
        })
    }

    fn run(&self, arm: Arm, length: Duration) -> Result<Segment, Error> {
        let app = self.heap("app", COLD_MIB)?;
        let beside = self.heap("beside", 0)?;
        let mut daemon = match arm {
            Arm::Forebay => Some(self.daemon(&app, &beside)?),
            _ => None,
        };
        let result = self.watch(arm, &app, &beside, length);
        if let Some(daemon) = &mut daemon {
            terminate(daemon, "the daemon")?;
        }
        app.end()?;
        beside.end()?;
        result
    }

    /// Waits, with Senpai at work where that is the arm, and reads what came of it.
    fn watch(
        &self,
        arm: Arm,
        app: &Member,
        beside: &Member,
        length: Duration,
    ) -> Result<Segment, Error> {
        let senpai = arm.senpai();
        let began = Instant::now();
        let work = |member: &Member| {
            read_count(&member.count).map_err(|error| Error::part(member.name, error))
        };
        let before = [(work(app)?, app.spent()?), (work(beside)?, beside.spent()?)];
        let waited_before = app.waited()?;
        let mut pressure_before = (began, waited_before);
        let (mut held, mut readings) = (0.0, 0u32);
        while began.elapsed() < length {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(POLL);
            let used = app.number("memory.current")?;
            if began.elapsed() * 3 >= length * 2 {
                #[expect(clippy::cast_precision_loss, reason = "bytes of one group")]
                let mib = used as f64 / f64::from(1 << 20);
                held += mib;
                readings += 1;
            }
            let (then, before) = pressure_before;
            if let Some(senpai) = senpai.filter(|senpai| then.elapsed() >= senpai.interval) {
                let waited = app.waited()?;
                let grown = waited.saturating_sub(before).as_secs_f64();
                let bytes = senpai.step(used, grown / then.elapsed().as_secs_f64());
                pressure_before = (Instant::now(), waited);
                if bytes > 0 {
                    app.reclaim(bytes)?;
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let waited = app.waited()?.saturating_sub(waited_before).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "pages of one segment")]
        let cost = |member: &Member, before: (u64, Duration)| {
            let done = work(member)?.saturating_sub(before.0).max(1);
            let spent = member.spent()?.saturating_sub(before.1);
            Ok::<f64, Error>(spent.as_secs_f64() / done as f64)
        };
        let relative_cost = cost(app, before[0])? / cost(beside, before[1])?;
        Ok(Segment {
            held_mib: held / f64::from(readings.max(1)),
            relative_cost,
            waited_percent: 100.0 * waited / seconds,
        })
    }

    /// A program in a group of its own, once all its memory is there.
    fn heap(&self, name: &'static str, cold: u64) -> Result<Member, Error> {
        let group = self.root.join(format!(
            "{}{}-{name}",
            super::left::PREFIX,
            std::process::id()
        ));
        fs::create_dir(&group).map_err(Error::system(
            "make control group",
            group.display(),
            "remove it if an earlier run left it",
        ))?;
        let mut member = Member {
            name,
            group,
            count: self.dir.join(name),
            child: None,
        };
        // The shell enters the group before the program charges anything.
        let script = "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&member.group)
            .arg(&self.exe)
            .args(["workload", "heap", "--parent-death"])
            .args(["--hot", &HOT_MIB.to_string(), "--cold", &cold.to_string()])
            .args(["--touch-cold-every", &TOUCH_COLD_EVERY_S.to_string()])
            .arg("--count-file")
            .arg(&member.count)
            .stdin(Stdio::null())
            .spawn()
            .map_err(Error::system(
                "start",
                name,
                "check memory and process limits",
            ))?;
        let mut cpu = CpuSet::new();
        cpu.set(0);
        sched_setaffinity(Some(Pid::from_child(&child)), &cpu).map_err(Error::system(
            "keep on CPU 0",
            name,
            "use a machine that has a CPU 0",
        ))?;
        member.child = Some(child);
        let wanted = (HOT_MIB + cold) << 20;
        self.until(name, || Ok(member.number("memory.current")? >= wanted))?;
        self.until(name, || {
            Ok(read_count(&member.count).is_ok_and(|pages| pages > 0))
        })?;
        Ok(member)
    }

    fn daemon(&self, app: &Member, beside: &Member) -> Result<Child, Error> {
        let quoted = |path: PathBuf| toml::Value::from(path.display().to_string()).to_string();
        let group = |member: &Member| {
            let name = member.group.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        // The other one is of the same class, so that both run alike, and keeps what it has.
        let text = format!(
            "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"forebay-bench-{}\"\n\
             lease = \"2s\"\n[policy]\nreclaim_cold = true\nsystem_memory = \"64MiB\"\n\
             [apps.app]\nclass = \"batch\"\ncgroup = \"{}\"\n\
             [apps.beside]\nclass = \"batch\"\ncgroup = \"{}\"\n\
             floor = {{ memory = \"{}MiB\" }}\n",
            quoted(self.dir.join("socket")),
            quoted(self.dir.join("state")),
            std::process::id(),
            group(app),
            group(beside),
            2 * HOT_MIB,
        );
        let config = self.dir.join("bench.toml");
        super::write_config(&config, &text)?;
        let mut daemon = super::start_daemon(&config)?;
        let answers = self.until("the daemon", || {
            Ok(crate::cli::status(&self.dir.join("socket")).is_ok())
        });
        if answers.is_err() {
            terminate(&mut daemon, "the daemon")?;
        }
        answers.map(|()| daemon)
    }

    fn until(
        &self,
        part: &str,
        mut holds: impl FnMut() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(Error::part(part, "was not ready in time"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// A program and the group it is in, both gone when this is.
struct Member {
    name: &'static str,
    group: PathBuf,
    count: PathBuf,
    child: Option<Child>,
}

impl Member {
    fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.group.join(file);
        fs::read_to_string(&path).map_err(Error::system(
            "read",
            path.display(),
            "use a kernel with cgroup v2 and PSI",
        ))
    }

    fn number(&self, file: &str) -> Result<u64, Error> {
        let text = self.read(file)?;
        text.trim()
            .parse()
            .map_err(|error| Error::part(format!("{}/{file}", self.group.display()), error))
    }

    /// Time in which some task waited for memory.
    fn waited(&self) -> Result<Duration, Error> {
        let text = self.read("memory.pressure")?;
        let total = text
            .lines()
            .find(|line| line.starts_with("some "))
            .and_then(|line| line.rsplit_once("total=")?.1.trim().parse().ok());
        total.map(Duration::from_micros).ok_or_else(|| {
            Error::part(
                format!("{}/memory.pressure", self.group.display()),
                "has no total",
            )
        })
    }

    /// CPU time, and time in which it waited for memory.
    fn spent(&self) -> Result<Duration, Error> {
        let text = self.read("cpu.stat")?;
        let usage = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        let used = usage.map(Duration::from_micros).ok_or_else(|| {
            Error::part(
                format!("{}/cpu.stat", self.group.display()),
                "has no usage_usec",
            )
        })?;
        Ok(used + self.waited()?)
    }

    fn reclaim(&self, bytes: u64) -> Result<(), Error> {
        let path = self.group.join("memory.reclaim");
        match fs::write(&path, bytes.to_string()) {
            // Less than asked came: that is an answer.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
            other => other.map_err(Error::system(
                "write",
                path.display(),
                "use Linux 5.19 or newer",
            )),
        }
    }

    fn end(mut self) -> Result<(), Error> {
        self.stop().map_err(Error::system(
            "end and remove",
            self.group.display(),
            "remove the group by hand",
        ))
    }

    fn stop(&mut self) -> std::io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.group.exists() {
            match fs::remove_dir(&self.group) {
                Err(error) if Instant::now() >= deadline => return Err(error),
                _ => std::thread::sleep(POLL),
            }
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(group = %self.group.display(), %error, "not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senpai_takes_less_the_more_is_waited_and_nothing_at_its_threshold() {
        let senpai = Arm::Senpai.senpai().unwrap();
        assert_eq!(senpai.step(1000 << 20, 0.0), 10 << 20);
        assert_eq!(senpai.step(1000 << 20, 0.0005), 5 << 20);
        assert_eq!(senpai.step(1000 << 20, 0.001), 0);
        assert_eq!(senpai.step(1000 << 20, 0.5), 0);
    }

    #[test]
    fn what_is_saved_and_lost_is_relative_to_the_uncontrolled_arm() {
        let segment = |held_mib, relative_cost| Segment {
            held_mib,
            relative_cost,
            waited_percent: 0.0,
        };
        let rows = rows(&[
            // In the second repetition everything cost twice as much.
            vec![segment(384.0, 0.5), segment(384.0, 1.0)],
            vec![segment(374.0, 0.5), segment(374.0, 1.0)],
            vec![segment(200.0, 0.6), segment(200.0, 1.2)],
            vec![segment(96.0, 0.505), segment(96.0, 1.03)],
        ]);
        assert!((rows[0].saved_mib, rows[0].slowdown_percent) == (0.0, 0.0));
        assert!((rows[3].saved_percent_of_cold - 100.0).abs() < 1e-9);
        assert!((rows[3].slowdown_percent - 2.0).abs() < 1e-9);
        assert!((rows[3].slowdown_range_percent.1 - 3.0).abs() < 1e-9);
        assert!((rows[2].slowdown_percent - 20.0).abs() < 1e-9);
        let missed: Vec<bool> = targets(&rows).iter().map(|target| target.met).collect();
        assert_eq!(missed, [true, true, true]);
    }
}
