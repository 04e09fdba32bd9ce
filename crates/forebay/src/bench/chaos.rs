//! The daemon is killed at random moments, again and again.
//!
//! Promise: no app is ended or started again, and every knob is either adopted by the daemon
//! that comes back or put back by the guardian when none does. Checked after each kill, on
//! real processes of all three bindings: started, matched, and in a group that was there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_host::mounts::{Controller, Hierarchies};
use forebay_host::{Roots, ledger};

use crate::demo::print::line;
use crate::demo::{Error, interruption};

/// How long the daemon has to come back.
const LEASE: Duration = Duration::from_secs(1);
/// How long anything may take that the test waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest life of a daemon.
const LIFE_MAX_MS: u64 = 1500;
/// Of so many kills, one is left to the guardian.
const GUARDIAN_EVERY: u64 = 4;
/// CPU shares of the group that was there before: an odd number, to be recognised.
const SHARES: &str = "517";

/// Kill the daemon at random moments and see that nothing is lost
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 200)]
    kills: u32,
    /// Replays the same moments
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Directory of the inner process
    #[arg(long, value_name = "DIR", hide = true)]
    inner: Option<PathBuf>,
}

/// Runs the campaign.
///
/// # Errors
/// When a promise is broken: the message names the kill and the seed.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    crate::demo::swept("chaos", args.inner.as_deref(), |dir| campaign(args, dir))
}

fn campaign(args: &Args, dir: &Path) -> Result<ExitCode, Error> {
    let interrupted = interruption()?;
    let mut campaign = Campaign::prepare(dir, interrupted)?;
    let result = campaign.run(args);
    campaign.clean()?;
    let (adopted, restored) = result?;
    line(format_args!(
        "{} kills: {adopted} adopted by the next daemon, {restored} put back by the guardian; no app ended, no knob left",
        args.kills
    ));
    Ok(ExitCode::SUCCESS)
}

/// A process that must survive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Survivor {
    name: String,
    pid: u32,
    start_time: u64,
}

struct Campaign {
    exe: PathBuf,
    dir: PathBuf,
    group: String,
    bound: Bound,
    /// Processes that this campaign started itself: one to be matched, one in the bound group.
    own: Vec<Child>,
    /// Arguments by which the started apps are found in /proc.
    marks: Vec<String>,
    daemon: Option<Child>,
    interrupted: Arc<AtomicBool>,
}

impl Campaign {
    fn prepare(dir: &Path, interrupted: Arc<AtomicBool>) -> Result<Self, Error> {
        let pid = std::process::id();
        let exe = std::env::current_exe().map_err(Error::system(
            "find",
            "this program's own file",
            "check that /proc is mounted",
        ))?;
        // Sleeping for a number of seconds that nobody else sleeps for.
        let marks: Vec<String> = (1..=3)
            .map(|n| format!("{}", 1_000_000 + pid * 10 + n))
            .collect();
        let matched = sleep(&format!("{}", 1_000_000 + pid * 10 + 9))?;
        let inside = sleep(&format!("{}", 1_000_000 + pid * 10 + 8))?;
        let bound = Bound::make(&format!("forebay-chaos-bound-{pid}"), inside.id())?;
        let campaign = Self {
            exe,
            dir: dir.to_owned(),
            group: format!("forebay-chaos-{pid}"),
            bound,
            own: vec![matched, inside],
            marks,
            daemon: None,
            interrupted,
        };
        campaign.configure(pid)?;
        Ok(campaign)
    }

    fn configure(&self, pid: u32) -> Result<(), Error> {
        let path = |name: &str| toml::Value::from(self.dir.join(name).display().to_string());
        let mut text = format!(
            "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"{}\"\nlease = \"{}ms\"\n[policy]\nhold = \"200ms\"\n",
            path("socket"),
            path("state"),
            self.group,
            LEASE.as_millis(),
        );
        for (mark, class) in self.marks.iter().zip(["critical", "standard", "batch"]) {
            text +=
                &format!("[apps.{class}]\nclass = \"{class}\"\nexec = [\"sleep\", \"{mark}\"]\n");
        }
        text += &format!(
            "[apps.matched]\nclass = \"batch\"\nmatch = {{ command_line = \"{}\" }}\n",
            1_000_000 + pid * 10 + 9
        );
        text += &format!(
            "[apps.bound]\nclass = \"critical\"\ncgroup = \"{}\"\n",
            self.bound.name
        );
        let file = self.dir.join("chaos.toml");
        fs::write(&file, text).map_err(Error::system(
            "write",
            file.display(),
            "check that its file system has room",
        ))
    }

    fn run(&mut self, args: &Args) -> Result<(u32, u32), Error> {
        let mut random = fastrand::Rng::with_seed(args.seed);
        self.start()?;
        let mut survivors = self.await_apps()?;
        let (mut adopted, mut restored) = (0, 0);
        for kill in 1..=args.kills {
            let life = Duration::from_millis(random.u64(0..LIFE_MAX_MS));
            self.pause(life)?;
            self.kill()?;
            let broken = |what: String| {
                Error::part(
                    format!("kill {kill} of seed {}, after {life:?}", args.seed),
                    what,
                )
            };
            if random.u64(0..GUARDIAN_EVERY) == 0 {
                self.await_restored().map_err(&broken)?;
                self.bound.check().map_err(&broken)?;
                restored += 1;
                self.start()?;
            } else {
                self.start()?;
                adopted += 1;
            }
            // An app may be started for the first time only if it never was.
            let now = self.await_apps()?;
            if now != survivors {
                return Err(broken(format!(
                    "the apps were {survivors:?} and are {now:?}"
                )));
            }
            survivors = now;
        }
        Ok((adopted, restored))
    }

    fn start(&mut self) -> Result<(), Error> {
        let child = Command::new(&self.exe)
            .args(["daemon", "--parent-death", "--config"])
            .arg(self.dir.join("chaos.toml"))
            .stdin(Stdio::null())
            .spawn()
            .map_err(Error::system(
                "start",
                "the daemon",
                "check memory and process limits",
            ))?;
        self.daemon = Some(child);
        Ok(())
    }

    fn kill(&mut self) -> Result<(), Error> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        daemon
            .kill()
            .and_then(|()| daemon.wait().map(drop))
            .map_err(Error::system(
                "kill",
                "the daemon",
                "this should not happen; report it",
            ))
    }

    fn pause(&self, length: Duration) -> Result<(), Error> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        std::thread::sleep(length);
        Ok(())
    }

    /// All processes that must survive, once each app has its own.
    fn await_apps(&self) -> Result<Vec<Survivor>, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut survivors = Vec::new();
            for mark in &self.marks {
                survivors.extend(running(mark));
            }
            for child in &self.own {
                survivors.extend(identify("own", child.id()));
            }
            if survivors.len() == self.marks.len() + self.own.len() {
                return Ok(survivors);
            }
            if Instant::now() >= until {
                return Err(Error::part(
                    "the apps",
                    format!("only {survivors:?} are there"),
                ));
            }
            self.pause(Duration::from_millis(20))?;
        }
    }

    /// Waits until the guardian has put everything back.
    fn await_restored(&self) -> Result<(), String> {
        let boot = Roots::default()
            .boot_id()
            .map_err(|error| error.explain())?;
        let until = Instant::now() + PATIENCE;
        loop {
            let state =
                ledger::peek(&self.dir.join("state"), &boot).map_err(|error| error.explain())?;
            let left = self.groups_left();
            if state.is_restored() && left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(format!("the guardian left {left:?}, ledger {state:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn groups_left(&self) -> Vec<PathBuf> {
        let Ok(hierarchies) = Hierarchies::read(Path::new("/proc")) else {
            return Vec::new();
        };
        hierarchies
            .list()
            .iter()
            .filter_map(|hierarchy| fs::read_dir(hierarchy.dir(Path::new(""))).ok())
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|dir| {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                name.split('.').next() == Some(&self.group)
            })
            .collect()
    }

    /// Ends the daemon and everything else, and removes the bound group.
    fn clean(mut self) -> Result<(), Error> {
        if let Some(daemon) = &mut self.daemon {
            crate::demo::terminate(daemon, "the daemon")?;
        }
        for survivor in self.marks.iter().flat_map(|mark| running(mark)) {
            let pid = i32::try_from(survivor.pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).map_err(
                    Error::system("end", format!("process {}", survivor.pid), "end it by hand"),
                )?;
            }
        }
        for child in &mut self.own {
            child
                .kill()
                .and_then(|()| child.wait().map(drop))
                .map_err(Error::system("end", "a sleeping process", "end it by hand"))?;
        }
        self.bound.remove()
    }
}

/// A control group that was there before the daemon.
#[derive(Debug)]
struct Bound {
    name: String,
    dirs: Vec<PathBuf>,
    /// Files with the texts that they must hold again.
    originals: Vec<(PathBuf, String)>,
}

impl Bound {
    fn make(name: &str, member: u32) -> Result<Self, Error> {
        let hierarchies = Hierarchies::read(Path::new("/proc"))
            .map_err(|error| Error::part("the group to bind to", error.explain()))?;
        let mut dirs = Vec::new();
        for controller in [Controller::Cpu, Controller::Memory, Controller::Pids] {
            if let Some((_, hierarchy)) = hierarchies.of(controller) {
                let dir = hierarchy.dir(Path::new(name));
                if !dirs.contains(&dir) {
                    dirs.push(dir);
                }
            }
        }
        let mut originals = Vec::new();
        for dir in &dirs {
            fs::create_dir_all(dir).map_err(Error::system("make", dir.display(), "run as root"))?;
            let shares = dir.join("cpu.shares");
            if shares.exists() {
                write(&shares, SHARES)?;
            }
            for file in [
                "cpu.shares",
                "cpu.weight",
                "cpu.cfs_quota_us",
                "cpu.max",
                "memory.soft_limit_in_bytes",
                "memory.low",
            ] {
                let file = dir.join(file);
                if let Ok(text) = fs::read_to_string(&file) {
                    originals.push((file, text));
                }
            }
            write(&dir.join("cgroup.procs"), &member.to_string())?;
        }
        Ok(Self {
            name: name.to_owned(),
            dirs,
            originals,
        })
    }

    fn check(&self) -> Result<(), String> {
        for (file, original) in &self.originals {
            let now =
                fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            if now != *original {
                return Err(format!(
                    "{} holds {now:?}, it was {original:?}",
                    file.display()
                ));
            }
        }
        Ok(())
    }

    fn remove(self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        for dir in &self.dirs {
            // The member was just ended; the kernel lets go of the group soon after.
            while let Err(error) = fs::remove_dir(dir) {
                if Instant::now() >= until {
                    return Err(Error::system("remove", dir.display(), "remove it by hand")(
                        error,
                    ));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(Error::system("write", file.display(), "run as root"))
}

fn sleep(seconds: &str) -> Result<Child, Error> {
    Command::new("sleep")
        .arg(seconds)
        .stdin(Stdio::null())
        .spawn()
        .map_err(Error::system(
            "start",
            "sleep",
            "check memory and process limits",
        ))
}

/// The process that sleeps for `mark` seconds.
fn running(mark: &str) -> Vec<Survivor> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // The daemon starts programs by their full path.
            let mut words = line.split(|byte| *byte == 0);
            words
                .next()
                .is_some_and(|program| program.ends_with(b"sleep"))
                && words.next() == Some(mark.as_bytes())
        })
        .filter_map(|pid| identify(mark, pid))
        .collect()
}

fn identify(name: &str, pid: u32) -> Option<Survivor> {
    let process = forebay_host::procs::identify(Path::new("/proc"), pid)?;
    Some(Survivor {
        name: name.to_owned(),
        pid,
        start_time: process.start_time,
    })
}
