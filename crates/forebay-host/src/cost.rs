//! The kernel's model of what requests cost on a device: io.cost.model and io.cost.qos.
//!
//! Both are files of the root group of v2, for the whole host, with a line for each device. With
//! a model that is on, io.weight divides the device's time among groups. Who installs it decides
//! how long it stays: a daemon's goes back with everything else the daemon did
//! ([`Record::HostOriginal`]), one that somebody asked for by [`install`] stays until [`remove`]
//! or the next boot ([`Record::Asked`]). A model that anybody else has switched on is theirs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use forebay_core::app::Device;
use forebay_core::io::{CostModel, Costs};
use forebay_core::snapshot::CostModels;

use crate::Roots;
use crate::apply::Refusal;
use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::host::LinuxHost;
use crate::ledger::{Ledger, Record, Spot, State};
use crate::lock::{Lock, Role};
use crate::mounts::{Controller, Hierarchies, Version};
use crate::restore::{self, Report, read_spot};

/// In the order in which they are written: the kernel guesses until it has a model.
const FILES: [&str; 2] = [MODEL, QOS];
const MODEL: &str = "io.cost.model";
const QOS: &str = "io.cost.qos";
/// How many requests of a hundred may take longer than the latency.
const WITHIN: &str = "95.00";
/// How far the kernel may slow the device below the model when they do, in percent; above the
/// model it never goes.
const SLOWEST: &str = "25.00";
const FASTEST: &str = "100.00";

/// The directory of the two files.
///
/// # Errors
/// Why there is none, and what to do.
fn root_dir(hierarchies: &Hierarchies) -> Result<PathBuf, HostError> {
    let attempt = "look for io.cost.model";
    let Some((_, hierarchy)) = hierarchies.of(Controller::Io) else {
        return Err(HostError::invalid(
            format!("{attempt}: the io controller is in no hierarchy"),
            "boot a kernel with CONFIG_BLK_CGROUP",
        ));
    };
    if hierarchy.version == Version::V1 {
        return Err(HostError::invalid(
            format!("{attempt}: the io controller is v1's here"),
            "boot with systemd.unified_cgroup_hierarchy=1",
        ));
    }
    let missing = FILES
        .iter()
        .map(|name| hierarchy.mount.join(name))
        .find(|file| !file.exists());
    match missing {
        Some(file) => Err(HostError::invalid(
            format!("{attempt}: there is no {}", file.display()),
            "boot a kernel with CONFIG_BLK_CGROUP_IOCOST; in a container, ask on its host",
        )),
        None => Ok(hierarchy.mount.clone()),
    }
}

/// For `doctor`: devices with a model that is on.
pub(crate) fn examine(hierarchies: &Hierarchies) -> Result<BTreeSet<Device>, HostError> {
    let text = read_text(&root_dir(hierarchies)?.join(QOS))?;
    Ok(text.lines().filter_map(enabled).collect())
}

/// The device of a line of io.cost.qos, where it is on.
fn enabled(line: &str) -> Option<Device> {
    let mut words = line.split_whitespace();
    let device = words.next()?.parse().ok()?;
    words.any(|word| word == "enable=1").then_some(device)
}

fn spots(dir: &Path, device: Device) -> [Spot; 2] {
    FILES.map(|name| Spot {
        file: dir.join(name),
        device: Some(device),
    })
}

/// What each file is to hold, as the kernel shows it.
fn texts(device: Device, model: &CostModel) -> [String; 2] {
    let CostModel { read, write } = model;
    [
        format!(
            "{device} ctrl=user model=linear rbps={} rseqiops={} rrandiops={} wbps={} wseqiops={} \
             wrandiops={}",
            read.bytes_per_second,
            read.sequential_per_second,
            read.random_per_second,
            write.bytes_per_second,
            write.sequential_per_second,
            write.random_per_second
        ),
        format!(
            "{device} enable=1 ctrl=user rpct={WITHIN} rlat={} wpct={WITHIN} wlat={} min={SLOWEST} \
             max={FASTEST}",
            read.latency_us, write.latency_us
        ),
    ]
}

/// Reads a model back.
fn parse(texts: &[String; 2]) -> Option<CostModel> {
    let [model, qos] = texts;
    let number = |text: &str, key: &str| -> Option<u64> {
        let mut words = text.split_whitespace();
        words
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?
            .parse()
            .ok()
    };
    let costs = |way: &str| {
        Some(Costs {
            bytes_per_second: number(model, &format!("{way}bps"))?,
            sequential_per_second: number(model, &format!("{way}seqiops"))?,
            random_per_second: number(model, &format!("{way}randiops"))?,
            latency_us: number(qos, &format!("{way}lat"))?,
        })
    };
    Some(CostModel {
        read: costs("r")?,
        write: costs("w")?,
    })
}

fn has(list: &[(Spot, String)], spot: &Spot) -> bool {
    list.iter().any(|(known, _)| known == spot)
}

/// Writes both files, each after the ledger knows what it will hold.
fn write(
    ledger: &mut Ledger,
    dir: &Path,
    device: Device,
    model: &CostModel,
) -> Result<(), HostError> {
    for (spot, text) in spots(dir, device).into_iter().zip(texts(device, model)) {
        ledger.append(Record::Wrote {
            spot: spot.clone(),
            text: text.clone(),
        })?;
        write_text(&spot.file, &text).map_err(|error| match error.errno() {
            Some(libc::EOPNOTSUPP) => error.advise(
                "the kernel knows costs of devices with queues of their own only: name the disk \
                 that this one is made of",
            ),
            Some(libc::ENODEV) => error.advise("there is no such disk now: see `lsblk`"),
            _ => error,
        })?;
        let held = read_spot(&spot)?;
        if held != text {
            let text = held;
            ledger.append(Record::Wrote { spot, text })?;
        }
    }
    Ok(())
}

/// Puts back what these places held. What somebody else has set since is left, and forgotten.
fn put_back(
    ledger: &mut Ledger,
    from: fn(&mut State) -> &mut Vec<(Spot, String)>,
    mine: impl Fn(&Spot) -> bool,
) -> Result<Report, HostError> {
    let mut report = Report::default();
    let mut state = ledger.state().clone();
    let list: Vec<_> = from(&mut state)
        .drain(..)
        .filter(|(s, _)| mine(s))
        .collect();
    restore::restore_knobs(ledger, list.iter().rev().collect(), &mut report);
    if report.is_complete() && !list.is_empty() {
        ledger.amend(|state| {
            from(state).retain(|(spot, _)| !has(&list, spot));
            state.wrote.retain(|spot, _| !has(&list, spot));
        })?;
    }
    Ok(report)
}

/// Whether [`install`] can do its work.
///
/// # Errors
/// Those of [`install`] that do not depend on the device.
pub fn check(state_dir: &Path, roots: &Roots) -> Result<(), HostError> {
    root_dir(&Hierarchies::read(&roots.proc)?)?;
    take(state_dir, roots).map(|_| ())
}

/// Installs a model that stays until [`remove`] or the next boot. What the files are made to
/// hold is returned.
///
/// # Errors
/// When a daemon runs, which is to install it itself; when the kernel knows no models, or not of
/// this device; or when the ledger cannot be written.
pub fn install(
    state_dir: &Path,
    roots: &Roots,
    device: Device,
    model: &CostModel,
) -> Result<[String; 2], HostError> {
    let dir = root_dir(&Hierarchies::read(&roots.proc)?)?;
    let (_lock, mut ledger) = take(state_dir, roots)?;
    for spot in spots(&dir, device) {
        if has(&ledger.state().host, &spot) {
            return Err(HostError::invalid(
                format!("install a cost model of {device}: a daemon's is in force"),
                "run `forebay restore` first",
            ));
        }
        if !has(&ledger.state().asked, &spot) {
            let text = read_spot(&spot)?;
            ledger.append(Record::Asked { spot, text })?;
        }
    }
    ledger.sync()?;
    if let Err(error) = write(&mut ledger, &dir, device, model) {
        // Half a model is worse than none.
        let report = put_back(
            &mut ledger,
            |state| &mut state.asked,
            |s| s.device == Some(device),
        )?;
        for reason in report.failed {
            tracing::warn!(reason, "not put back");
        }
        return Err(error);
    }
    Ok(texts(device, model))
}

/// Puts back what [`install`] found: of one device, or of all.
///
/// # Errors
/// When a daemon runs, nothing was installed for this device, or the ledger cannot be written.
/// What the kernel refused is in the report instead.
pub fn remove(state_dir: &Path, roots: &Roots, only: Option<Device>) -> Result<Report, HostError> {
    if !state_dir.exists() && only.is_none() {
        return Ok(Report::default());
    }
    let (_lock, mut ledger) = take(state_dir, roots)?;
    let mine = |spot: &Spot| only.is_none() || spot.device == only;
    let known = ledger.state().asked.iter().any(|(spot, _)| mine(spot));
    match only {
        Some(device) if !known => Err(HostError::invalid(
            format!("remove the cost model of {device}: none was installed by `--install-model`"),
            "see io.cost.qos in /sys/fs/cgroup for what others have switched on",
        )),
        _ => put_back(&mut ledger, |state| &mut state.asked, mine),
    }
}

fn take(state_dir: &Path, roots: &Roots) -> Result<(Lock, Ledger), HostError> {
    let lock = Lock::take(state_dir, Role::Restorer, &roots.proc).map_err(|error| {
        match error.kind() {
            crate::ErrorKind::Locked => error.advise(
                "a running daemon has the ledger: set io_protection = \"cost\" in its configuration \
                 to have it install models, or stop it first",
            ),
            _ => error,
        }
    })?;
    let ledger = Ledger::open(state_dir, &roots.boot_id()?)?;
    Ok((lock, ledger))
}

/// The models of this host, as a daemon sees them.
#[derive(Debug)]
pub(crate) struct Models {
    dir: PathBuf,
    seen: CostModels,
}

impl Models {
    /// None where the kernel has none.
    pub(crate) fn open(hierarchies: &Hierarchies, ledger: &State, roots: &Roots) -> Option<Self> {
        let dir = match root_dir(hierarchies) {
            Ok(dir) => dir,
            Err(error) => {
                tracing::debug!(reason = error.explain(), "no cost models");
                return None;
            }
        };
        let mut models = Self {
            dir,
            seen: CostModels::default(),
        };
        models.look(ledger, roots);
        Some(models)
    }

    /// What is in force, without looking again.
    pub(crate) fn seen(&self) -> CostModels {
        self.seen.clone()
    }

    /// Looks whose models are on.
    pub(crate) fn look(&mut self, ledger: &State, roots: &Roots) {
        let ours = ledger.host.iter().filter_map(|(spot, _)| {
            let ours = spot.file == self.dir.join(QOS);
            spot.device.filter(|_| ours)
        });
        let ours: BTreeSet<Device> = ours.collect();
        let mut seen = CostModels::default();
        let text = read_text(&self.dir.join(QOS)).unwrap_or_default();
        let on = text.lines().filter_map(enabled);
        seen.others = on.filter(|device| !ours.contains(device)).collect();
        for device in ours {
            let held = spots(&self.dir, device).map(|spot| {
                let text = read_spot(&spot).ok()?;
                let wrote = ledger.wrote.get(&spot);
                wrote
                    .is_some_and(|ours| ours.contains(&text))
                    .then_some(text)
            });
            let model = match held {
                [Some(model), Some(qos)] => parse(&[model, qos]),
                _ => None,
            };
            match model {
                Some(model) => {
                    seen.in_force.insert(device, model);
                }
                // Its model went along: installing it again says what is the matter.
                None if !roots.has_device(device) => {}
                None => {
                    seen.foreign.insert(device);
                }
            }
        }
        self.seen = seen;
    }
}

impl LinuxHost {
    /// Records what a device's model is before it is another one.
    pub(crate) fn announce_cost_model(&mut self, device: Device) -> Result<(), Refusal> {
        let models = self.costs.as_ref().ok_or(Refusal::Unsupported)?;
        for spot in spots(&models.dir, device) {
            if !has(&self.ledger.state().host, &spot) {
                let text = read_spot(&spot)?;
                self.ledger.append(Record::HostOriginal { spot, text })?;
            }
        }
        Ok(())
    }

    /// Installs a device's model, or puts back what was there before.
    pub(crate) fn set_cost_model(
        &mut self,
        device: Device,
        model: Option<&CostModel>,
    ) -> Result<(), Refusal> {
        let models = self.costs.as_mut().ok_or(Refusal::Unsupported)?;
        let files = spots(&models.dir, device);
        let done = match model {
            Some(model) => write(&mut self.ledger, &models.dir, device, model),
            None => Ok(()),
        };
        let undo = model.is_none() || done.is_err();
        let report = match undo {
            true => put_back(
                &mut self.ledger,
                |state| &mut state.host,
                |s| files.contains(s),
            )?,
            false => Report::default(),
        };
        models.look(self.ledger.state(), &self.options.roots);
        done?;
        match report.failed.first() {
            Some(why) => Err(Refusal::Failed(format!("cost model of {device}: {why}"))),
            None => Ok(()),
        }
    }
}

/// A line of either file, as it can be written back: the kernel shows its own guesses, and takes
/// them for somebody's wish when they are written.
pub(crate) fn canonical(file: &str, device: Device, line: Option<&str>) -> Option<String> {
    let guessed = line.is_none_or(|line| line.split_whitespace().any(|word| word == "ctrl=auto"));
    let on = line.is_some_and(|line| enabled(line).is_some());
    match file {
        MODEL if guessed => Some(format!("{device} ctrl=auto")),
        QOS if guessed => Some(format!("{device} enable={} ctrl=auto", u8::from(on))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knobs::cut;
    use std::fs;

    const DISK: Device = Device {
        major: 254,
        minor: 16,
    };

    fn model() -> CostModel {
        let costs = |bytes_per_second, latency_us| Costs {
            bytes_per_second,
            sequential_per_second: 2000,
            random_per_second: 1000,
            latency_us,
        };
        CostModel {
            read: costs(100 << 20, 4000),
            write: costs(50 << 20, 9000),
        }
    }

    #[test]
    fn a_model_is_written_as_the_kernel_shows_it_and_read_back() {
        let texts = texts(DISK, &model());
        assert_eq!(
            texts,
            [
                "254:16 ctrl=user model=linear rbps=104857600 rseqiops=2000 rrandiops=1000 \
                 wbps=52428800 wseqiops=2000 wrandiops=1000",
                "254:16 enable=1 ctrl=user rpct=95.00 rlat=4000 wpct=95.00 wlat=9000 min=25.00 \
                 max=100.00",
            ]
        );
        assert_eq!(parse(&texts), Some(model()));
        assert_eq!(parse(&[String::new(), String::new()]), None);
    }

    #[test]
    fn what_the_kernel_guesses_is_put_back_as_a_guess() {
        let check = |file: &str, text: &str, expected: &str| {
            assert_eq!(cut(file, Some(DISK), text), expected);
        };
        check(MODEL, "", "254:16 ctrl=auto");
        check(
            MODEL,
            "8:0 ctrl=user model=linear rbps=1\n254:16 ctrl=auto model=linear rbps=488636629\n",
            "254:16 ctrl=auto",
        );
        let theirs = "254:16 ctrl=user model=linear rbps=7 rseqiops=7 rrandiops=7";
        check(MODEL, theirs, theirs);
        check(QOS, "", "254:16 enable=0 ctrl=auto");
        check(
            QOS,
            "254:16 enable=0 ctrl=auto rpct=0.00 rlat=250000\n",
            "254:16 enable=0 ctrl=auto",
        );
        check(
            QOS,
            "254:16 enable=1 ctrl=auto rpct=0.00 rlat=250000\n",
            "254:16 enable=1 ctrl=auto",
        );
        let theirs = "254:16 enable=1 ctrl=user rpct=95.00 rlat=5";
        check(QOS, theirs, theirs);
    }

    /// A host whose root group is a directory, and a state directory.
    fn tree() -> (tempfile::TempDir, Roots) {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("cgroup");
        let proc_root = top.path().join("proc");
        for dir in [
            &root,
            &top.path().join("sys/dev/block/254:16"),
            &proc_root.join("self"),
            &proc_root.join("sys/kernel/random"),
        ] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(proc_root.join("sys/kernel/random/boot_id"), "b\n").unwrap();
        fs::write(
            proc_root.join("self/mountinfo"),
            format!("1 0 0:1 / {} rw - cgroup2 cgroup2 rw\n", root.display()),
        )
        .unwrap();
        fs::write(root.join("cgroup.controllers"), "cpu io\n").unwrap();
        for name in FILES {
            fs::write(root.join(name), "").unwrap();
        }
        let roots = Roots {
            proc: proc_root,
            sys: top.path().join("sys"),
        };
        (top, roots)
    }

    /// The line of the disk; a plain file keeps the tail of a longer text.
    fn first_line(top: &tempfile::TempDir, name: &str) -> String {
        let text = fs::read_to_string(top.path().join("cgroup").join(name)).unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn what_was_asked_for_stays_until_it_is_taken_back() {
        let (top, roots) = tree();
        let state = top.path().join("state");
        let written = install(&state, &roots, DISK, &model()).unwrap();
        assert_eq!(FILES.map(|name| first_line(&top, name)), written);
        // What a daemon did is put back when it goes; this is not its doing.
        let peeked = crate::ledger::peek(&state, "b").unwrap();
        assert!(
            peeked.is_restored() && peeked.asked.len() == 2,
            "{peeked:?}"
        );
        let report = crate::restore(&state, &roots, forebay_core::app::OnStop::Keep).unwrap();
        assert!(report.is_complete());
        assert_eq!(FILES.map(|name| first_line(&top, name)), written);
        // Asked again, the original is still the first.
        install(&state, &roots, DISK, &model()).unwrap();
        let report = remove(&state, &roots, Some(DISK)).unwrap();
        assert_eq!((report.knobs, report.failed), (2, Vec::new()));
        assert_eq!(first_line(&top, MODEL), "254:16 ctrl=auto");
        assert_eq!(first_line(&top, QOS), "254:16 enable=0 ctrl=auto");
        let error = remove(&state, &roots, Some(DISK)).unwrap_err();
        assert!(error.explain().contains("none was installed"), "{error:?}");
        assert_eq!(remove(&state, &roots, None).unwrap(), Report::default());
    }

    #[test]
    fn what_somebody_changed_since_is_left() {
        let (top, roots) = tree();
        let state = top.path().join("state");
        install(&state, &roots, DISK, &model()).unwrap();
        let theirs = "254:16 enable=1 ctrl=user rpct=50.00 rlat=1 wpct=0.00 wlat=2";
        fs::write(top.path().join("cgroup").join(QOS), theirs).unwrap();
        let report = remove(&state, &roots, Some(DISK)).unwrap();
        assert_eq!((report.knobs, report.foreign.len()), (1, 1), "{report:?}");
        assert_eq!(first_line(&top, QOS), theirs);
    }

    #[test]
    fn a_kernel_without_models_is_said() {
        let (top, roots) = tree();
        let state = top.path().join("state");
        fs::remove_file(top.path().join("cgroup").join(QOS)).unwrap();
        let error = install(&state, &roots, DISK, &model())
            .unwrap_err()
            .explain();
        assert!(error.contains("CONFIG_BLK_CGROUP_IOCOST"), "{error}");
        assert!(!state.exists());
    }

    #[test]
    fn a_daemon_that_runs_is_asked_instead() {
        let (top, roots) = tree();
        let state = top.path().join("state");
        let _daemon = Lock::take(&state, Role::Daemon, Path::new("/proc")).unwrap();
        let this = std::process::id().to_string();
        fs::create_dir(roots.proc.join(&this)).unwrap();
        fs::copy("/proc/self/stat", roots.proc.join(&this).join("stat")).unwrap();
        let error = install(&state, &roots, DISK, &model())
            .unwrap_err()
            .explain();
        assert!(error.contains("io_protection = \"cost\""), "{error}");
    }

    #[test]
    fn a_daemon_tells_its_own_models_from_others() {
        let (top, roots) = tree();
        let hierarchies = Hierarchies::read(&roots.proc).unwrap();
        let mut ledger = Ledger::open(top.path(), "b").unwrap();
        let mut models = Models::open(&hierarchies, ledger.state(), &roots).unwrap();
        assert_eq!(models.seen(), CostModels::default());
        let qos = top.path().join("cgroup").join(QOS);
        fs::write(
            &qos,
            "8:0 enable=1 ctrl=auto rpct=0.00\n8:16 enable=0 ctrl=auto\n",
        )
        .unwrap();
        models.look(ledger.state(), &roots);
        assert_eq!(models.seen().others, ["8:0".parse().unwrap()].into());
        for spot in spots(&models.dir.clone(), DISK) {
            let text = read_spot(&spot).unwrap();
            ledger.append(Record::HostOriginal { spot, text }).unwrap();
        }
        fs::write(&qos, "").unwrap();
        write(&mut ledger, &models.dir.clone(), DISK, &model()).unwrap();
        models.look(ledger.state(), &roots);
        assert_eq!(models.seen().in_force.get(&DISK), Some(&model()));
        assert!(models.seen().others.is_empty() && models.seen().foreign.is_empty());
        fs::write(&qos, "254:16 enable=0 ctrl=auto\n").unwrap();
        models.look(ledger.state(), &roots);
        assert_eq!(models.seen().foreign, [DISK].into());
        // Nobody did it when the device is gone.
        fs::remove_dir(roots.sys.join("dev/block/254:16")).unwrap();
        models.look(ledger.state(), &roots);
        assert!(models.seen().in_force.is_empty() && models.seen().foreign.is_empty());
    }
}
