//! Docker and Podman: containers by the HTTP API on the runtime's Unix socket.
//!
//! | knob | update of a container |
//! |---|---|
//! | `Cpus`, `Mems` | CpusetCpus, CpusetMems |
//! | `CpuWeight` | CpuShares |
//! | `CpuMax` | CpuQuota; NanoCpus where it was made with that |
//! | `MemoryMax` | Memory, and MemorySwap with it, so that as much swap is left as there was |
//! | `PidsMax` | PidsLimit |
//! | `MemoryMin`, `MemoryLow`, `MemoryHigh`, `IoWeight`, `IoMax`, `IoLatency`, `CpuUclampMin`, `CpuUclampMax` | none: written to the group |
//! | `CpuIdle`, `CpuBurst`, `CpusPartition`, `MemorySwapMax` | withheld |
//!
//! A runtime writes the files of what it was told and no others. Of memory.min, memory.high,
//! io.latency and uclamp it is told nothing by anybody; of MemoryReservation (memory.low, or v1's soft
//! limit), BlkioWeight and the rates of devices only when the container is made. An update takes
//! none of them back again, so what Forebay asked for could never be undone through it. So these
//! files are written directly, and put back from the ledger as those of any group; where the
//! container was made with such a limit, the file is the runtime's and the knob is withheld.
//! Withheld is as well what changes a file of the runtime's along with its own: cpu.idle the
//! weight, a burst the quota's bounds, a partition the CPUs; and memory.swap.max, which follows
//! Memory.
//!
//! Below a unit of systemd (`docker-ID.scope`, the rule on v2) every file is systemd's, which
//! writes what it was not told as well. There, what the runtime has no property for is withheld, and
//! from Podman's containers a quota, too, unless they were made with one: it could not be taken back.
//!
//! A limit that a container was made with stays where the app has no ceiling of its own: nobody
//! who writes `--memory 1g` expects to lose it.
//!
//! Podman has no update in its Docker API before 5, so it is told in its own, with resources as
//! the OCI's runtime specification has them. Before 5.1 it forgets what it was told when the
//! container ends. Docker remembers it also over a reboot, and so does the ledger.
//!
//! One thread speaks to all runtimes, one call after another. One that did not answer in time is
//! let rest, else each of its containers would hold up those of another socket. An answer counts
//! only from a runtime that names its version, and a container only with a full ID: whoever is
//! believed that there is no such container has the ledger let go of its originals, and the ID
//! decides which control group is the container's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, io};

use forebay_core::slice::Knob;
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::{Held, Owner, Values};
use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::knobs::{self, Ways, all_knobs};
use crate::mounts::{Controller, Hierarchies};
use crate::observe::read_files;
use crate::procs;

mod http;
pub(super) mod wire;

use http::{Answer, Ask, call};
use wire::{About, Inspected, Known};

const PROC: &str = "/proc";
/// The first version of Podman with an update in its API.
const PODMAN_UPDATES_SINCE: [u32; 2] = [4, 3];
/// A full ID has that many hexadecimal digits; people are shown the first few.
const ID_SHOWN: usize = 12;
const ID_DIGITS: usize = 64;
/// How long one call may take: a runtime that starts many containers is slow, not lost, and on a busy host
/// Podman took more than 5 s for an update.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a runtime that took longer is not asked again: meanwhile those of other sockets are, and
/// each of its containers would take as long to find out.
const REST: Duration = Duration::from_secs(10);
/// How long it takes at most to ask for the names of all containers, and one call of that.
const NAMES_TIME_MAX: Duration = Duration::from_secs(10);
const NAME_PATIENCE: Duration = Duration::from_secs(4);
/// What is passed on of a runtime's own words.
const MESSAGE_CHARS_MAX: usize = 300;

/// The runtimes behind some sockets.
#[derive(Debug)]
pub(super) struct Containers {
    sockets: Vec<PathBuf>,
    runtimes: BTreeMap<PathBuf, Runtime>,
    /// By ID, the containers that were looked at last under each name.
    seen: BTreeMap<String, Seen>,
    /// How long one call may take.
    patience: Duration,
    /// Until when those are not asked that did not answer in time.
    resting: BTreeMap<PathBuf, Instant>,
}

/// Who answers at a socket.
#[derive(Debug, Clone)]
struct Runtime {
    about: About,
}

#[derive(Debug, Clone)]
struct Seen {
    socket: PathBuf,
    name: String,
    known: Known,
}

/// A runtime that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answering {
    /// Its socket.
    pub socket: PathBuf,
    /// `Docker` or `Podman`, with its version and that of its API.
    pub name: String,
}

/// A container as its runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The socket that its runtime answers at.
    pub socket: PathBuf,
    /// Whether that is Podman and not Docker.
    pub is_of_podman: bool,
}

impl Runtime {
    fn name(&self) -> &'static str {
        if self.about.libpod().is_some() {
            "Podman"
        } else {
            "Docker"
        }
    }

    /// Whether a quota could not be taken back from a container that has none. crun, which Podman
    /// starts containers with, tells systemd of no quota as of one that is no number of systemd's:
    /// what comes out is a hundredth of a CPU, also when the container starts again.
    fn keeps_quota(&self, values: &Values) -> bool {
        self.about.libpod().is_some() && wire::is_unset(values, Knob::CpuMax)
    }

    /// Whether it can be asked to change a container at all.
    fn updates(&self) -> bool {
        let Some(version) = self.about.libpod() else {
            return true;
        };
        let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
        [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)] >= PODMAN_UPDATES_SINCE
    }
}

impl Containers {
    /// The runtimes behind these sockets, with `:` between them.
    pub(super) fn new(sockets: &str) -> Self {
        Self {
            sockets: sockets.split(':').map(PathBuf::from).collect(),
            runtimes: BTreeMap::new(),
            seen: BTreeMap::new(),
            patience: PATIENCE,
            resting: BTreeMap::new(),
        }
    }

    /// Asks at a socket; `attempt` says what for.
    fn ask(&mut self, socket: &Path, ask: Ask, attempt: &str) -> Result<Answer, HostError> {
        let rests = |until: &Instant| Instant::now() < *until;
        let answer = if self.resting.get(socket).is_some_and(rests) {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            self.resting.remove(socket);
            call(socket, ask, self.patience)
        };
        answer.map_err(|error| {
            if error.kind() != io::ErrorKind::TimedOut {
                // Whoever answers next may be another.
                self.runtimes.remove(socket);
            }
            let advice = match error.kind() {
                io::ErrorKind::TimedOut => {
                    let until = Instant::now() + REST;
                    self.resting.entry(socket.to_owned()).or_insert(until);
                    let text = format!("no answer in {:?}", self.patience);
                    return HostError::io(attempt, io::Error::other(text))
                        .advise("see the runtime's log, and restart it if it is stuck");
                }
                io::ErrorKind::NotFound => None,
                io::ErrorKind::ConnectionRefused => Some("is the runtime running?"),
                io::ErrorKind::PermissionDenied => Some("run as root"),
                io::ErrorKind::InvalidData => Some(WHOSE_SOCKET),
                _ => Some("see the runtime's log"),
            };
            let error = HostError::io(attempt, error);
            match advice {
                Some(advice) => error.advise(advice),
                None => error,
            }
        })
    }

    fn runtime(&mut self, socket: &Path) -> Result<Runtime, HostError> {
        if let Some(runtime) = self.runtimes.get(socket) {
            return Ok(runtime.clone());
        }
        let attempt = format!("ask the container runtime at {}", socket.display());
        let answer = self.ask(socket, Ask::get("/version".to_owned()), &attempt)?;
        let about: About = understood(&answer, &attempt)?;
        if about.version.is_empty() || about.api_version.is_empty() {
            return Err(not_understood(&attempt, "it names no version"));
        }
        let runtime = Runtime { about };
        self.runtimes.insert(socket.to_owned(), runtime.clone());
        Ok(runtime)
    }

    /// What a socket's runtime knows under a name or ID; none when it knows none.
    fn inspect(&mut self, socket: &Path, name: &str) -> Result<Option<Inspected>, HostError> {
        let runtime = self.runtime(socket)?;
        let attempt = format!(
            "ask {} at {} for container {name}",
            runtime.name(),
            socket.display()
        );
        let path = format!("/containers/{name}/json");
        let answer = self.ask(socket, Ask::get(path), &attempt)?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let found: Inspected = understood(&answer, &attempt)?;
        if !is_id(&found.id) {
            // Any group has the empty ID in its name.
            return Err(not_understood(&attempt, "it names no container's ID"));
        }
        // The start of an ID finds a container as well, and another one tomorrow.
        let is_it = found.id == name || found.name.trim_start_matches('/') == name;
        Ok(is_it.then_some(found))
    }

    /// Finds a container by name or ID in the one runtime that has it.
    fn find(&mut self, name: &str) -> Result<(PathBuf, Inspected), HostError> {
        let attempt = format!("look for container {name}");
        let sockets = match self.seen.get(name) {
            Some(seen) => vec![seen.socket.clone()],
            None => self.sockets.clone(),
        };
        let mut found = Vec::new();
        let mut troubles = Vec::new();
        let mut answered = Vec::new();
        for socket in &sockets {
            match self.inspect(socket, name) {
                Ok(Some(container)) => found.push((socket.clone(), container)),
                Ok(None) => answered.push(socket.display().to_string()),
                Err(error) if error.is_gone() => {}
                Err(error) => troubles.push(error),
            }
        }
        match (found.pop(), found.pop()) {
            (Some(one), None) => Ok(one),
            (Some((a, _)), Some((b, _))) => Err(HostError::invalid(
                format!(
                    "{attempt}: the runtimes at {} and {} both have one",
                    b.display(),
                    a.display()
                ),
                "name one socket as daemon.container_socket",
            )),
            (None, _) => Err(match troubles.pop() {
                // It may be this one's.
                Some(error) => error,
                None if answered.is_empty() => HostError::io(
                    format!("{attempt}: no container runtime at {}", listed(&sockets)),
                    io::Error::other("no such socket"),
                )
                .advise(
                    "start the runtime (for Podman, podman.socket), name its socket as \
                     daemon.container_socket, or bind the app with `cgroup`",
                ),
                None => HostError::missing(
                    format!("{attempt}: {} has none of this name", answered.join(", ")),
                    "see `docker ps -a` or `podman ps -a` for the names",
                ),
            }),
        }
    }

    fn held(&mut self, socket: PathBuf, found: Inspected) -> Result<Held, HostError> {
        let runtime = self.runtime(&socket)?;
        let name = found.name.trim_start_matches('/').to_owned();
        let group = match found.state.running {
            true => group_of(found.state.pid, &found.id)?,
            false => None,
        };
        let told = found.host_config.told();
        let mut held = Held {
            name: found.id.clone(),
            at: socket.display().to_string(),
            group: group.as_ref().map(|place| place.path.clone()),
            values: told.clone(),
            told,
            kept: BTreeSet::new(),
            lacks: BTreeSet::new(),
            direct: BTreeSet::new(),
        };
        let mut period_us = found.host_config.period_us();
        if let Some(place) = &group {
            held.values = place.values(&mut period_us);
            let by_runtime = |knob: &Knob| {
                runtime.updates()
                    && wire::property(*knob).is_some_and(|name| held.values.contains_key(name))
            };
            let nobodys = |knob: &Knob| {
                let way = place.ways.of(*knob);
                is_written_directly(*knob)
                    && !place.is_of_systemd()
                    && way.is_some_and(|way| !found.host_config.writes(*knob, way.version))
            };
            held.direct = all_knobs().into_iter().filter(nobodys).collect();
            let stays = |knob: &Knob| {
                *knob == Knob::CpuMax && place.is_of_systemd() && runtime.keeps_quota(&held.values)
            };
            held.lacks = all_knobs()
                .into_iter()
                .filter(|knob| !by_runtime(knob) && !held.direct.contains(knob) || stays(knob))
                .collect();
        }
        self.seen.retain(|_, seen| seen.name != name);
        let seen = Seen {
            socket,
            name,
            known: Known {
                config: found.host_config,
                period_us,
            },
        };
        self.seen.insert(found.id, seen);
        Ok(held)
    }
}

impl Owner for Containers {
    fn look_up(&mut self, name: &str) -> Result<Held, HostError> {
        let (socket, found) = self.find(name)?;
        self.held(socket, found)
    }

    fn write(&mut self, id: &str, values: &Values) -> Result<(), HostError> {
        if values.is_empty() {
            return Ok(());
        }
        let Some(seen) = self.seen.get(id).cloned() else {
            return Err(HostError::missing(
                format!("change container {}", shown(id)),
                "it was not looked at before; report this as a bug",
            ));
        };
        let runtime = self.runtime(&seen.socket)?;
        let told: Vec<String> = values
            .iter()
            .map(|(property, value)| format!("{property} = {value}"))
            .collect();
        let attempt = format!(
            "have {} at {} set {} of container {}",
            runtime.name(),
            seen.socket.display(),
            told.join(", "),
            seen.name
        );
        let (path, body) = match runtime.about.libpod() {
            Some(version) => (
                format!("/v{version}/libpod/containers/{id}/update"),
                seen.known.libpod(values),
            ),
            None => (
                format!("/containers/{id}/update"),
                seen.known.docker(values),
            ),
        };
        let ask = Ask {
            method: Method::POST,
            path,
            body: body.to_string().into_bytes(),
        };
        let answer = match self.ask(&seen.socket, ask, &attempt) {
            // The runtime is gone; its container may well be there.
            Err(error) if error.is_gone() => {
                return Err(HostError::io(attempt, io::Error::other("no such socket"))
                    .advise("start the runtime"));
            }
            other => other?,
        };
        if answer.status.is_success() {
            return Ok(());
        }
        // A runtime without updates says the same of every container.
        let is_gone = answer.status == StatusCode::NOT_FOUND
            && matches!(self.inspect(&seen.socket, id), Ok(None));
        if is_gone {
            return Err(HostError::missing(
                format!("{attempt}: it is there no more"),
                "see `docker ps -a` or `podman ps -a` for what is",
            ));
        }
        let error = refused(&answer, &attempt);
        Err(if answer.status.is_server_error() {
            error
        } else {
            error.advise("change the limit that it names, on the container or of the app")
        })
    }

    fn forget(&mut self, _: &str, _: &str) -> Result<(), HostError> {
        // It keeps one value of each, and that was written back.
        Ok(())
    }

    fn behind(&mut self, id: &str) -> Option<Held> {
        let place = Place::find(id)?;
        let values = place.values(&mut 0);
        Some(Held {
            name: id.to_owned(),
            at: String::new(),
            group: Some(place.path),
            told: Values::new(),
            kept: BTreeSet::new(),
            lacks: BTreeSet::new(),
            direct: BTreeSet::new(),
            values,
        })
    }

    fn write_behind(&mut self, id: &str, values: &Values) -> Result<(), HostError> {
        let Some(place) = Place::find(id) else {
            return Ok(());
        };
        for (knob, way) in place.ways.knobs() {
            let value = wire::property(knob).and_then(|property| values.get(property));
            let (Some(value), Some(dir)) = (value, place.dir(way)) else {
                continue;
            };
            let period = crate::apply::period_us(way, &dir);
            for (file, text) in way.files.iter().zip(wire::texts(knob, value, way, period)) {
                write_text(&dir.join(file), &text)?;
            }
        }
        Ok(())
    }
}

/// Knobs of which runtimes are told nothing, or only when a container is made.
const fn is_written_directly(knob: Knob) -> bool {
    matches!(
        knob,
        Knob::CpuUclampMin
            | Knob::CpuUclampMax
            | Knob::MemoryMin
            | Knob::MemoryLow
            | Knob::MemoryHigh
            | Knob::IoWeight
            | Knob::IoMax(_)
            | Knob::IoLatency(_)
    )
}

/// A container's control group.
#[derive(Debug)]
struct Place {
    /// Relative to each hierarchy's root.
    path: PathBuf,
    hierarchies: Hierarchies,
    ways: Ways,
}

impl Place {
    fn at(path: PathBuf, hierarchies: Hierarchies) -> Self {
        let dirs: Vec<PathBuf> = hierarchies
            .list()
            .iter()
            .map(|hierarchy| hierarchy.dir(&path))
            .collect();
        let ways = Ways::probe(&hierarchies, |index| dirs.get(index).map(PathBuf::as_path));
        Self {
            path,
            hierarchies,
            ways,
        }
    }

    /// The group of a container of which nothing is known but its ID, while it runs.
    fn find(id: &str) -> Option<Self> {
        let mut pids = procs::all(Path::new(PROC)).into_iter();
        pids.find_map(|pid| group_of(pid, id).ok().flatten())
    }

    fn dir(&self, way: &knobs::Way) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.list().get(way.hierarchy)?;
        Some(hierarchy.dir(&self.path))
    }

    /// What its files hold of what a runtime has properties for, and the quota's period.
    fn values(&self, period_us: &mut u64) -> Values {
        let mut values = Values::new();
        for (knob, way) in self.ways.knobs() {
            let (Some(property), Some(dir)) = (wire::property(knob), self.dir(way)) else {
                continue;
            };
            let Some((mut texts, period)) = read_files(&dir, knob, way) else {
                continue;
            };
            if knob == Knob::CpuMax {
                *period_us = period;
            }
            // None of its own: those of its parent.
            if matches!(knob, Knob::Cpus | Knob::Mems) && texts.iter().all(String::is_empty) {
                let file = way.files.first().map(|file| format!("{file}.effective"));
                let text = file.and_then(|file| read_text(&dir.join(file)).ok());
                texts = text
                    .map(|text| text.trim().to_owned())
                    .into_iter()
                    .collect();
            }
            if let Some(value) = wire::read(knob, way, &texts, period) {
                values.insert(property.to_owned(), value);
            }
        }
        values
    }

    /// Whether a unit of systemd holds it: then systemd writes its files.
    fn is_of_systemd(&self) -> bool {
        let kinds = [".scope", ".service", ".slice"];
        self.path.iter().any(|part| {
            let part = part.to_string_lossy();
            kinds.iter().any(|kind| part.ends_with(kind))
        })
    }
}

/// The group that a container has for itself: the part of its process' group up to where its ID
/// stands. None when the process is gone.
fn group_of(pid: u32, id: &str) -> Result<Option<Place>, HostError> {
    let proc_root = Path::new(PROC);
    let file = proc_root.join(format!("{pid}/cgroup"));
    let text = match read_text(&file) {
        Err(error) if error.is_gone() => return Ok(None),
        other => other?,
    };
    let hierarchies = Hierarchies::read(proc_root)?;
    let index = match hierarchies.of(Controller::Cpu) {
        Some((index, _)) => Some(index),
        None => hierarchies.unified().map(|(index, _)| index),
    };
    let dir = index.and_then(|index| {
        let dir = hierarchies.membership(&text).get(index)?.clone()?;
        let hierarchy = hierarchies.list().get(index)?;
        Some(dir.strip_prefix(&hierarchy.mount).ok()?.to_owned())
    });
    let dir = dir.unwrap_or_default();
    let is_named = |path: &&Path| {
        let name = path.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| name.contains(id))
    };
    match dir.ancestors().find(is_named) {
        Some(path) => Ok(Some(Place::at(path.to_owned(), hierarchies))),
        None => Err(HostError::invalid(
            format!(
                "look at container {}: its process {pid} is in the control group /{}, which is not \
                 its own",
                shown(id),
                dir.display()
            ),
            "let the runtime make a group for it (no --cgroups=disabled)",
        )),
    }
}

/// What to do about an answer that is none of a container runtime.
const WHOSE_SOCKET: &str = "is that the socket of Docker or Podman?";

fn understood<T: DeserializeOwned>(answer: &Answer, attempt: &str) -> Result<T, HostError> {
    if !answer.status.is_success() {
        return Err(refused(answer, attempt));
    }
    serde_json::from_slice(&answer.body).map_err(|error| not_understood(attempt, error))
}

fn not_understood(attempt: &str, why: impl fmt::Display) -> HostError {
    let text = format!("the answer is not understood: {why}");
    HostError::io(attempt, io::Error::other(text)).advise(WHOSE_SOCKET)
}

/// What a runtime says when it does not do what it was asked for.
fn refused(answer: &Answer, attempt: &str) -> HostError {
    #[derive(serde::Deserialize)]
    struct Refused {
        message: String,
    }
    let text = match serde_json::from_slice::<Refused>(&answer.body) {
        Ok(refused) => one_line(&refused.message),
        Err(_) => format!("it answered {}", answer.status),
    };
    let error = HostError::io(attempt, io::Error::other(text));
    error.advise(if answer.status.is_server_error() {
        "see the runtime's log"
    } else {
        WHOSE_SOCKET
    })
}

/// Somebody else's words, fit for an event.
fn one_line(words: &str) -> String {
    let words = words.trim().replace(char::is_control, " ");
    match words.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{} ...", &words[..end]),
        None => words,
    }
}

fn listed(sockets: &[PathBuf]) -> String {
    let sockets: Vec<String> = sockets.iter().map(|s| s.display().to_string()).collect();
    sockets.join(", ")
}

/// Whether a text is a container's full ID.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// The start of an ID, as the runtimes' own commands show it.
pub(super) fn shown(id: &str) -> &str {
    id.get(..ID_SHOWN).unwrap_or(id)
}

/// Who answers at which of these sockets, and why the others do not.
pub(super) fn answering(sockets: &str) -> (Vec<Answering>, Vec<HostError>) {
    let mut containers = Containers::new(sockets);
    let mut answering = Vec::new();
    let mut silent = Vec::new();
    for socket in containers.sockets.clone() {
        match containers.runtime(&socket) {
            Ok(runtime) => answering.push(Answering {
                name: format!(
                    "{} {}, API {}",
                    runtime.name(),
                    runtime.about.version,
                    runtime.about.api_version
                ),
                socket,
            }),
            Err(error) => silent.push(error),
        }
    }
    (answering, silent)
}

/// Those of these IDs that are running containers of the runtimes at these sockets, with their groups
/// relative to the hierarchies' roots. A runtime that does not answer at once is done without.
pub(crate) fn running(
    sockets: &str,
    ids: &BTreeSet<&str>,
) -> BTreeMap<String, (PathBuf, Container)> {
    let mut containers = Containers::new(sockets);
    containers.patience = NAME_PATIENCE;
    let deadline = Instant::now() + NAMES_TIME_MAX;
    let mut running = BTreeMap::new();
    for id in ids {
        if Instant::now() > deadline {
            break;
        }
        // Why it is not to be had: `forebay doctor` says it.
        let Ok(held) = containers.look_up(id) else {
            continue;
        };
        let Some((group, seen)) = held.group.zip(containers.seen.get(*id).cloned()) else {
            continue;
        };
        let runtime = containers.runtime(&seen.socket);
        let container = Container {
            is_of_podman: runtime.is_ok_and(|runtime| runtime.about.libpod().is_some()),
            name: seen.name,
            socket: seen.socket,
        };
        running.insert((*id).to_owned(), (group, container));
    }
    running
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_runtime_that_was_silent_is_let_rest() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut containers = Containers::new(&socket.display().to_string());
        containers.patience = Duration::from_millis(50);
        let first = containers.look_up("web").unwrap_err().explain();
        assert!(first.contains("no answer in 50ms"), "{first}");
        listener.accept().unwrap();
        let second = containers.look_up("web").unwrap_err().explain();
        assert_eq!(second, first);
        let asked = listener.accept().unwrap_err();
        assert_eq!(
            asked.kind(),
            io::ErrorKind::WouldBlock,
            "it was asked again"
        );
        // As after that time.
        containers.resting.insert(socket, Instant::now());
        containers.look_up("web").unwrap_err();
        listener.accept().unwrap();
    }

    #[test]
    fn a_quota_that_could_not_be_taken_back_is_not_set() {
        let check = |about: &str, nanos: u64, keeps: bool| {
            let about = serde_json::from_str(about).unwrap();
            let property = wire::property(Knob::CpuMax).unwrap().to_owned();
            let values = [(property, super::super::Value::Number(nanos))].into();
            assert_eq!(Runtime { about }.keeps_quota(&values), keeps, "{nanos}");
        };
        let podman =
            r#"{"Components":[{"Name":"Podman Engine","Details":{"APIVersion":"5.4.2"}}]}"#;
        check(podman, u64::MAX, true);
        check(podman, 700_000_000, false);
        check("{}", u64::MAX, false);
    }

    #[test]
    fn what_a_runtime_says_is_passed_on_on_one_short_line() {
        assert_eq!(one_line(" no\nmore \n"), "no more");
        let long = one_line(&"\u{e4}".repeat(MESSAGE_CHARS_MAX + 1));
        assert_eq!(long.chars().count(), MESSAGE_CHARS_MAX + 4);
    }
}
