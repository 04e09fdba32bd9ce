//! The live host passes the contract of every host. Needs root and writable control groups.

#![expect(
    dead_code,
    clippy::unwrap_used,
    reason = "a fixture that fails should stop the test, and does not use all of the support"
)]

#[cfg(test)]
mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Device, IoMax, Match, OnStop, Partition};
use forebay_core::idset::CpuSet;
use forebay_core::slice::{Knob, Setting};
use forebay_core::units::{Bytes, Limit, MilliCpu, Time, Utilization};
use forebay_host::LinuxHost;
use forebay_host::groups::of_app;
use forebay_host::mounts::{Controller, Hierarchy, Version};
use forebay_sim::contract::{Fixture, HOARD, check_all};
use support::*;

#[test]
fn the_live_host_keeps_the_contract() {
    let Some(place) = Place::new("the_live_host_keeps_the_contract") else {
        return;
    };
    let mut live = Live {
        place,
        others: Others::default(),
        began: Instant::now(),
        strays: 0,
    };
    check_all(&mut live);
}

/// Where there is no device below.
const TMPFS: i64 = 0x0102_1994;

/// The kernel that runs this test, seen without the host's own eyes.
struct Live {
    place: Place,
    others: Others,
    began: Instant,
    strays: u32,
}

/// What statfs says of a file system in memory.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Processes and groups that are not Forebay's, gone when this is.
#[derive(Default)]
struct Others {
    children: Vec<Child>,
    /// Those that lead a process group of their own.
    readers: Vec<Child>,
    groups: Vec<PathBuf>,
}

impl Others {
    fn burn(&mut self, marker: &str) -> u32 {
        let child = Command::new("sh")
            .args(["-c", "while :; do :; done", marker])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    fn clear(&mut self) {
        for mut child in self.children.drain(..) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for mut reader in self.readers.drain(..) {
            let group = rustix::process::Pid::from_child(&reader);
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
            reader.wait().unwrap();
        }
        for dir in self.groups.drain(..) {
            wait_for("end of a group", || {
                !dir.exists() || std::fs::remove_dir(&dir).is_ok()
            });
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The files of an app's group in the hierarchy of one controller.
struct Files {
    dir: PathBuf,
    version: Version,
}

impl Files {
    /// What a file says that is called `v1` or `v2`, as the hierarchy is.
    fn read(&self, v1: &str, v2: &str) -> Result<String, String> {
        let path = self.dir.join(self.name(v1, v2));
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    fn name<'a>(&self, v1: &'a str, v2: &'a str) -> &'a str {
        match self.version {
            Version::V1 => v1,
            Version::V2 => v2,
        }
    }

    /// A set of CPUs or nodes; in v2 an empty one stands for the parent's.
    fn read_set<S: std::str::FromStr<Err: std::fmt::Debug>>(
        &self,
        file: &str,
    ) -> Result<S, String> {
        let mut text = self.read(file, file)?;
        if text.is_empty() {
            text = self.read(file, &format!("{file}.effective"))?;
        }
        Ok(text.parse().unwrap())
    }

    /// The first line of a file that has one for each device after it.
    fn read_weight(&self) -> Result<u32, String> {
        let text = self.read("blkio.bfq.weight", "io.weight")?;
        let first = text.lines().next().unwrap_or_default();
        Ok(first.trim_start_matches("default ").parse().unwrap())
    }

    fn read_rate(&self, device: &str, v1: &str, v2: &str) -> Result<Limit<u64>, String> {
        let text = self.read(v1, "io.max")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{device} ")));
        let rate = match (line, self.version) {
            (None, _) => "max",
            (Some(line), Version::V1) => line,
            (Some(line), Version::V2) => line
                .split(' ')
                .find_map(|part| part.strip_prefix(v2)?.strip_prefix('='))
                .unwrap(),
        };
        Ok(amount(rate))
    }
}

/// A number, or no limit: v2 says `max`, v1 the largest number it has.
fn amount(text: &str) -> Limit<u64> {
    match text.parse() {
        Ok(number) if number < 1 << 60 => Limit::At(number),
        Ok(_) => Limit::Max,
        Err(_) => {
            assert!(matches!(text, "max" | "-1"), "{text}");
            Limit::Max
        }
    }
}

fn bytes(text: &str) -> Limit<Bytes> {
    match amount(text) {
        Limit::At(number) => Limit::At(Bytes(number)),
        Limit::Max => Limit::Max,
    }
}

/// A share of the kernel's period of 100 ms, as nobody in these checks changes it.
fn milli(quota_us: &str) -> MilliCpu {
    MilliCpu(quota_us.parse::<u64>().unwrap() / 100)
}

impl Live {
    /// The group of an app, relative to the root of each hierarchy.
    fn group(&self, app: &App) -> PathBuf {
        match &app.binding {
            Binding::Cgroup(path) => path.clone(),
            _ => of_app(&self.place.options.group, &app.id),
        }
    }

    fn files(&self, app: &App, controller: Controller) -> Files {
        let (_, hierarchy) = self.place.hierarchies.of(controller).unwrap();
        Files {
            dir: hierarchy.dir(&self.group(app)),
            version: hierarchy.version,
        }
    }
}

impl Fixture<LinuxHost> for Live {
    fn fresh(&mut self) -> LinuxHost {
        self.place.open()
    }

    fn burner(&mut self, id: AppId) -> App {
        program(id.as_str(), &["sh", "-c", "while :; do :; done"])
    }

    fn reader(&mut self, _host: &mut LinuxHost, id: AppId) -> Result<App, String> {
        let dir = self.place.options.state_dir.parent().unwrap();
        if rustix::fs::statfs(dir).unwrap().f_type == TMPFS {
            return Err(format!("{} is in memory", dir.display()));
        }
        let file = dir.join("read");
        std::fs::write(&file, vec![7; 1 << 20]).unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        let read = format!("dd if={} of=/dev/null bs=64k iflag=direct", file.display());
        let words: Vec<&str> = read.split(' ').collect();
        let once = Command::new(words[0]).args(&words[1..]).output();
        let once = once.map_err(|error| format!("{read}: {error}"))?;
        if !once.status.success() {
            return Err(String::from_utf8_lossy(&once.stderr).into_owned());
        }
        let script = format!("while :; do {read} 2>/dev/null; done");
        Ok(program(id.as_str(), &["sh", "-c", &script]))
    }

    fn settle(&mut self, _host: &mut LinuxHost, time: Duration) {
        // The kernel's own time has to pass, as it does between two periods of a daemon.
        std::thread::sleep(time);
    }

    fn time(&mut self, _host: &LinuxHost) -> Time {
        Time {
            monotonic: self.began.elapsed(),
            unix_ms: 0,
        }
    }

    fn read(&mut self, _host: &LinuxHost, app: &App, knob: Knob) -> Result<Setting, String> {
        let cpu = || self.files(app, Controller::Cpu);
        let memory = || self.files(app, Controller::Memory);
        Ok(match knob {
            Knob::EgressMax | Knob::L3Cache | Knob::MemoryBandwidth | Knob::OomScoreAdj => {
                return Err("it is no file of a group".to_owned());
            }
            Knob::Cpus => Setting::Cpus(
                self.files(app, Controller::Cpuset)
                    .read_set("cpuset.cpus")?,
            ),
            Knob::CpusPartition => {
                let file = knob.to_string();
                let held = self.files(app, Controller::Cpuset).read(&file, &file)?;
                Setting::CpusPartition(match held.as_str() {
                    "member" => Partition::Member,
                    "root" => Partition::Root,
                    "isolated" => Partition::Isolated,
                    other => return Err(format!("the kernel says {other}")),
                })
            }
            Knob::Mems => Setting::Mems(
                self.files(app, Controller::Cpuset)
                    .read_set("cpuset.mems")?,
            ),
            Knob::CpuWeight => {
                let weight: u32 = cpu().read("cpu.shares", "cpu.weight")?.parse().unwrap();
                Setting::CpuWeight(match cpu().version {
                    Version::V1 => (weight * 100).div_ceil(1024),
                    Version::V2 => weight,
                })
            }
            Knob::CpuIdle => Setting::CpuIdle(cpu().read("cpu.idle", "cpu.idle")? != "0"),
            Knob::CpuMax => {
                let text = cpu().read("cpu.cfs_quota_us", "cpu.max")?;
                let quota = text.split(' ').next().unwrap_or_default();
                Setting::CpuMax(match amount(quota) {
                    Limit::At(_) => Limit::At(milli(quota)),
                    Limit::Max => Limit::Max,
                })
            }
            Knob::CpuBurst => {
                Setting::CpuBurst(milli(&cpu().read("cpu.cfs_burst_us", "cpu.max.burst")?))
            }
            Knob::CpuUclampMin | Knob::CpuUclampMax => {
                let file = knob.to_string();
                let held = match cpu().read(&file, &file)?.as_str() {
                    "max" => Utilization::FULL,
                    percent => {
                        let percent: f64 = percent.parse().unwrap();
                        let of_full = |clamp: &Utilization| clamp.as_percent() == percent;
                        let mut all = (0..=10_000).map(Utilization);
                        all.find(of_full).unwrap()
                    }
                };
                match knob {
                    Knob::CpuUclampMin => Setting::CpuUclampMin(held),
                    _ => Setting::CpuUclampMax(held),
                }
            }
            Knob::MemoryMin | Knob::MemoryLow => {
                let file = knob.to_string();
                let held = Bytes(memory().read(&file, &file)?.parse().unwrap());
                match knob {
                    Knob::MemoryMin => Setting::MemoryMin(held),
                    _ => Setting::MemoryLow(held),
                }
            }
            Knob::MemoryHigh => Setting::MemoryHigh(bytes(
                &memory().read("memory.soft_limit_in_bytes", "memory.high")?,
            )),
            Knob::MemoryMax => Setting::MemoryMax(bytes(
                &memory().read("memory.limit_in_bytes", "memory.max")?,
            )),
            Knob::MemorySwapMax | Knob::MemoryZswapMax => {
                let file = knob.to_string();
                let held = bytes(&memory().read(&file, &file)?);
                match knob {
                    Knob::MemorySwapMax => Setting::MemorySwapMax(held),
                    _ => Setting::MemoryZswapMax(held),
                }
            }
            Knob::IoWeight => Setting::IoWeight(self.files(app, Controller::Io).read_weight()?),
            Knob::IoMax(device) => {
                let (files, name) = (self.files(app, Controller::Io), device.to_string());
                let rate = |v1: &str, v2: &str| files.read_rate(&name, v1, v2);
                let max = IoMax {
                    rbps: rate("blkio.throttle.read_bps_device", "rbps")?,
                    wbps: rate("blkio.throttle.write_bps_device", "wbps")?,
                    riops: rate("blkio.throttle.read_iops_device", "riops")?,
                    wiops: rate("blkio.throttle.write_iops_device", "wiops")?,
                };
                Setting::IoMax(device, max)
            }
            Knob::IoLatency(device) => {
                let text = self
                    .files(app, Controller::Io)
                    .read("io.latency", "io.latency")?;
                let target = text
                    .lines()
                    .find_map(|line| line.strip_prefix(&format!("{device} target=")));
                let micros = |us: &str| Limit::At(Duration::from_micros(us.parse().unwrap()));
                Setting::IoLatency(device, target.map_or(Limit::Max, micros))
            }
            Knob::PidsMax => {
                let files = self.files(app, Controller::Pids);
                Setting::PidsMax(amount(&files.read("pids.max", "pids.max")?))
            }
        })
    }

    fn write(&mut self, _host: &mut LinuxHost, app: &App, setting: Setting) -> Result<(), String> {
        let (controller, v1, v2) = match setting {
            Setting::CpuWeight(weight) => (
                Controller::Cpu,
                ("cpu.shares", (weight * 1024 / 100).to_string()),
                ("cpu.weight", weight.to_string()),
            ),
            Setting::CpuMax(Limit::Max) => (
                Controller::Cpu,
                ("cpu.cfs_quota_us", "-1".to_owned()),
                ("cpu.max", "max".to_owned()),
            ),
            Setting::MemoryMax(Limit::Max) => (
                Controller::Memory,
                ("memory.limit_in_bytes", "-1".to_owned()),
                ("memory.max", "max".to_owned()),
            ),
            Setting::PidsMax(Limit::Max) => (
                Controller::Pids,
                ("pids.max", "max".to_owned()),
                ("pids.max", "max".to_owned()),
            ),
            Setting::IoMax(
                device,
                IoMax {
                    rbps: Limit::At(rate),
                    ..
                },
            ) => (
                Controller::Io,
                ("blkio.throttle.read_bps_device", format!("{device} {rate}")),
                ("io.max", format!("{device} rbps={rate}")),
            ),
            other => return Err(format!("nobody else sets {other}")),
        };
        let files = self.files(app, controller);
        let (file, text) = match files.version {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        std::fs::write(files.dir.join(file), text).unwrap();
        Ok(())
    }

    fn occupied_group(&mut self, _host: &mut LinuxHost, id: AppId) -> Result<App, String> {
        let name = PathBuf::from(format!("{}-other", self.place.options.group.display()));
        let pid = self.others.burn("other");
        for hierarchy in self.place.hierarchies.list() {
            let dir = make_group(hierarchy, &name);
            self.others.groups.push(dir.clone());
            std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        Ok(app(id.as_str(), Binding::Cgroup(name)))
    }

    fn hoarding_group(&mut self, host: &mut LinuxHost, id: AppId) -> Result<App, String> {
        let file = self.place.options.state_dir.with_file_name("hoard");
        write_uncached(&file, 2 * HOARD.0)?;
        let app = self.occupied_group(host, id)?;
        // Page cache is charged to who reads it first.
        let script = format!(
            "read go; cat {} >/dev/null; echo done; exec >&-; sleep 1000",
            file.display()
        );
        let mut reader = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        for dir in &self.others.groups {
            std::fs::write(dir.join("cgroup.procs"), reader.id().to_string()).unwrap();
        }
        reader.stdin.take().unwrap().write_all(b"go\n").unwrap();
        // Whoever measures what it holds must not find it still reading.
        let mut said = String::new();
        let mut output = reader.stdout.take().unwrap();
        output.read_to_string(&mut said).unwrap();
        assert_eq!(said, "done\n");
        self.others.readers.push(reader);
        Ok(app)
    }

    fn stray(&mut self, _host: &mut LinuxHost, id: AppId) -> Result<(App, u32), String> {
        self.strays += 1;
        let group = self.place.options.group.display();
        let marker = format!("{group}-stray-{}", self.strays);
        let pid = self.others.burn(&marker);
        let rule = Match {
            executable: None,
            command_line: Some(marker),
        };
        Ok((app(id.as_str(), Binding::Match(rule)), pid))
    }

    fn remove_group(&mut self, _host: &mut LinuxHost, app: &App) -> Result<(), String> {
        self.others.clear();
        for hierarchy in self.place.hierarchies.list() {
            let dir = hierarchy.dir(&self.group(app));
            for pid in members(&dir) {
                end(pid);
            }
            wait_for("end of a group", || {
                !dir.exists() || std::fs::remove_dir(&dir).is_ok()
            });
        }
        Ok(())
    }

    fn interrupts(&mut self, _host: &LinuxHost) -> Result<BTreeMap<u32, CpuSet>, String> {
        let entries = std::fs::read_dir("/proc/irq").map_err(|error| error.to_string())?;
        let served = entries.flatten().filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let text = std::fs::read_to_string(entry.path().join("smp_affinity_list")).ok()?;
            Some((number, text.trim().parse().unwrap()))
        });
        Ok(served.collect())
    }

    fn has_cost_model(&mut self, _host: &LinuxHost, device: Device) -> Result<bool, String> {
        let (_, hierarchy) = self.place.hierarchies.of(Controller::Io).unwrap();
        let file = hierarchy.mount.join("io.cost.qos");
        let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        let line = format!("{device} enable=1 ");
        Ok(text.lines().any(|text| text.starts_with(&line)))
    }

    fn left_behind(&mut self, _host: &LinuxHost) -> Result<Vec<String>, String> {
        let parents = self.place.left_behind();
        Ok(parents
            .iter()
            .flat_map(|parent| std::fs::read_dir(parent).unwrap().flatten())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.path().display().to_string())
            .collect())
    }

    fn finish(&mut self, host: LinuxHost) {
        let report = host.close(OnStop::Kill);
        self.others.clear();
        let report = report.unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(self.place.left_behind(), Vec::<PathBuf>::new());
    }
}

/// Writes a file of which nothing is in memory; says why where it would stay there.
fn write_uncached(path: &Path, length: u64) -> Result<(), String> {
    let file = std::fs::File::create(path).unwrap();
    let in_memory = rustix::fs::fstatfs(&file).unwrap().f_type == TMPFS_MAGIC;
    if in_memory {
        return Err(format!("{} is in memory", path.display()));
    }
    std::io::copy(&mut std::io::repeat(7).take(length), &mut &file).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    Ok(())
}

/// Makes a group that takes members.
fn make_group(hierarchy: &Hierarchy, name: &Path) -> PathBuf {
    let dir = hierarchy.dir(name);
    std::fs::create_dir(&dir).unwrap();
    if hierarchy.version == Version::V1 && hierarchy.controllers.contains(&Controller::Cpuset) {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            std::fs::write(dir.join(file), text(&hierarchy.mount.join(file))).unwrap();
        }
    }
    dir
}
