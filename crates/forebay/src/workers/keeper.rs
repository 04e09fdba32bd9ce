//! One worker: started, asked, told its price, started again when it ends.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_accel::client::{Client, Error};
use forebay_accel::wire::{DeviceStatus, Stats};
use forebay_core::accel::{Priority, SCARCE_PRICE, Use};
use forebay_core::app::{App, AppId, Binding, Class, Exec, Restart};
use forebay_core::report::EventKind;
use forebay_core::snapshot::RunState;
use forebay_core::supervise::{Home, Lives, Verdict};
use forebay_core::units::{Bytes, Limit, Time};
use forebay_host::Roots;
use forebay_host::companion::{self, Companion};
use rustix::fs::{Mode, OFlags};

use super::{Beginning, Order, Shared};

/// How often a worker is asked, and looked after.
const LOOK: Duration = Duration::from_millis(250);
/// How long what it said stands: one question that is late changes nothing.
const STANDS: Duration = Duration::from_secs(3);
/// A worker looks for devices before it listens, for a minute at most.
const LISTENS_BOUND: Duration = Duration::from_secs(120);
/// So many questions in a row without an answer, each of which was waited for, and it is taken to hang.
const UNANSWERED_MAX: u32 = 3;
/// An app that starts again soon finds its worker as it was.
const LINGER: Duration = Duration::from_secs(5);
/// One that is asked to end has so long.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// The user of a worker whose app runs as the daemon does: a worker needs no rights.
const USER: &str = "nobody";
/// A part of a device's time that changed less is not told anew.
const PART_STEP: f64 = 0.01;

/// Looks after the worker of one app.
pub(super) struct Keeper {
    app: AppId,
    beginning: Beginning,
    shared: Arc<Shared>,
    roots: Roots,
    directory: PathBuf,
    origin: Instant,
    lives: Lives,
    /// Of the worker that runs, or ran last.
    state: RunState,
    worker: Option<Worker>,
    /// A worker is started only by a report that is newer: an older one may tell of an app that was ended
    /// with its slice.
    newer_than: Option<u64>,
    idle_since: Option<Instant>,
    /// What was told last of what is wrong.
    trouble: Option<String>,
}

/// A worker that runs.
struct Worker {
    process: Companion,
    exec: Exec,
    since: Instant,
    client: Option<Client>,
    read: Option<Reading>,
    price: Option<f64>,
    unanswered: u32,
}

/// What a worker said at a time.
struct Reading {
    at: Instant,
    stats: Stats,
    devices: Vec<DeviceStatus>,
}

/// Why a worker cannot be started, or does not do what it should.
type Trouble = String;

impl Keeper {
    pub(super) fn new(app: AppId, beginning: Beginning, shared: Arc<Shared>) -> Self {
        Self {
            directory: beginning.directory.join(app.as_str()),
            app,
            beginning,
            shared,
            roots: Roots::default(),
            origin: Instant::now(),
            lives: Lives::default(),
            state: RunState::Absent,
            worker: None,
            newer_than: None,
            idle_since: None,
            trouble: None,
        }
    }

    /// Until the worker is not wanted any more; then it is gone, with all that it had.
    pub(super) fn run(mut self) {
        let mut known = None;
        let mut looked = Instant::now();
        loop {
            let left = LOOK.saturating_sub(looked.elapsed());
            let Some(order) = self.shared.await_order(&self.app, known.as_ref(), left) else {
                break;
            };
            looked = Instant::now();
            if let Err(trouble) = self.look(&order) {
                self.complain(trouble);
            }
            known = Some(order);
        }
        self.end_worker("it is not wanted any more");
        self.shared.shares().forget(&self.app);
        clear(&self.directory);
    }

    fn tell(&self, what: String) {
        (self.beginning.tell)(&self.app, EventKind::Accelerator, what);
    }

    /// Tells what is wrong, once.
    fn complain(&mut self, trouble: Trouble) {
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::warn!(app = %self.app, trouble, "its worker");
            self.tell(trouble.clone());
            self.trouble = Some(trouble);
        }
    }

    fn look(&mut self, order: &Order) -> Result<(), Trouble> {
        let wanted = self.exec(order);
        if let Some(worker) = &self.worker {
            if let Some(ending) = worker.process.ended() {
                let pid = worker.process.pid();
                self.tell(format!("its worker, process {pid}, ended: {ending}"));
                self.state = RunState::Ended(ending);
                self.worker = None;
                self.newer_than = Some(order.seen);
            } else if worker.exec != wanted {
                self.end_worker("its configuration changed");
                self.lives = Lives::default();
                self.state = RunState::Absent;
            }
        }
        if !order.runs {
            let since = *self.idle_since.get_or_insert_with(Instant::now);
            if self.worker.is_some() && since.elapsed() >= LINGER {
                self.end_worker("its app does not run");
                self.state = RunState::Absent;
            }
            return Ok(());
        }
        self.idle_since = None;
        if self.worker.is_none() {
            if self.newer_than.is_some_and(|than| order.seen <= than) {
                return Ok(());
            }
            self.begin(order, wanted)?;
        }
        self.attend(order)
    }

    /// How a worker is started for an order.
    fn exec(&self, order: &Order) -> Exec {
        let accelerators = &order.accelerators;
        let mut command = vec![
            self.beginning.executable.display().to_string(),
            "accel-worker".to_owned(),
            self.socket().display().to_string(),
        ];
        let lists = [
            ("--allow", &accelerators.allow),
            ("--deny", &accelerators.deny),
        ];
        for (option, names) in lists {
            for name in names {
                command.extend([option.to_owned(), name.clone()]);
            }
        }
        command.push("--device-time-percent".to_owned());
        command.push(accelerators.time_percent.to_string());
        if let Limit::At(Bytes(bytes)) = accelerators.memory {
            command.extend(["--device-bytes-max".to_owned(), bytes.to_string()]);
        }
        let mut environment = order.exec.environment.clone();
        // Drivers keep what they compiled; not every user has a home.
        let cache = self.directory.join("cache").display().to_string();
        for variable in ["XDG_CACHE_HOME", "POCL_CACHE_DIR", "CUDA_CACHE_PATH"] {
            let variable = environment.entry(variable.to_owned());
            variable.or_insert_with(|| cache.clone());
        }
        Exec {
            command,
            user: Some(order.exec.user.clone().unwrap_or_else(|| USER.to_owned())),
            group: order.exec.group.clone(),
            directory: None,
            environment,
            stdout: None,
            stderr: order.exec.stderr.clone(),
            restart: Restart::Always,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// Starts a worker when it is due, or takes up the one that runs.
    fn begin(&mut self, order: &Order, exec: Exec) -> Result<(), Trouble> {
        let now = Time {
            monotonic: self.origin.elapsed(),
            unix_ms: 0,
        };
        let binding = Binding::Exec(exec.clone());
        let app = App::new(self.app.clone(), order.class, binding);
        if self.lives.judge(now, &app, &self.state, Home::Here) != Verdict::Start {
            return Ok(());
        }
        self.lives.started(now);
        self.newer_than = None;
        let process = match self.find(&exec)? {
            Some(process) => {
                let pid = process.pid();
                self.tell(format!("its worker, process {pid}, was taken up"));
                process
            }
            None => {
                self.prepare(&exec)?;
                let (roots, anchor) = (&self.roots, &self.beginning.anchor);
                let started = Companion::start(roots, anchor, &self.app, &exec);
                let process = started.map_err(|error| error.explain())?;
                let pid = process.pid();
                self.tell(format!("its worker was started as process {pid}"));
                process
            }
        };
        self.state = RunState::Running;
        self.worker = Some(Worker {
            process,
            exec,
            since: Instant::now(),
            client: None,
            read: None,
            price: None,
            unanswered: 0,
        });
        Ok(())
    }

    /// The worker that a daemon before started, if it is as one is wanted now. One that is not is ended.
    fn find(&self, exec: &Exec) -> Result<Option<Companion>, Trouble> {
        let Some(pid) = listener(&self.socket())? else {
            return Ok(None);
        };
        let command = companion::command_of(&self.roots, pid).unwrap_or_default();
        if command == exec.command {
            let anchor = &self.beginning.anchor;
            let adopted = Companion::adopt(&self.roots, anchor, &self.app, pid);
            if adopted.is_some() {
                return Ok(adopted);
            }
        }
        end_stray(&self.roots, pid, &self.socket())?;
        Ok(None)
    }

    /// Makes the directory of the worker, which is its user's.
    fn prepare(&self, exec: &Exec) -> Result<(), Trouble> {
        let identity = forebay_host::identity_of(exec).map_err(|error| error.explain())?;
        let (uid, gid) = identity.map_or((None, None), |who| (Some(who.uid), Some(who.gid)));
        let failed = |what: &str, path: &Path, error: io::Error| {
            format!("{what} {} for its worker: {error}", path.display())
        };
        let all = &self.beginning.directory;
        let made = fs::create_dir_all(all)
            .and_then(|()| fs::set_permissions(all, fs::Permissions::from_mode(0o711)));
        made.map_err(|error| failed("make", all, error))?;
        for path in [self.directory.clone(), self.directory.join("cache")] {
            give_directory(&path, uid, gid).map_err(|error| failed("make", &path, error))?;
        }
        Ok(())
    }

    fn end_worker(&mut self, why: &str) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        let pid = worker.process.pid();
        drop(worker.client);
        match worker.process.end(END_PATIENCE) {
            Ok(()) => self.tell(format!("its worker, process {pid}, was ended: {why}")),
            Err(error) => {
                let why = error.explain();
                tracing::error!(app = %self.app, pid, why, "its worker goes on");
                self.tell(format!("its worker, process {pid}, goes on: {why}"));
            }
        }
    }

    /// Asks the worker that runs, and tells it what is decided.
    fn attend(&mut self, order: &Order) -> Result<(), Trouble> {
        let socket = self.socket();
        let Some(worker) = &mut self.worker else {
            return Ok(());
        };
        if worker.client.is_none() {
            match Client::connect(&socket) {
                Ok(client) => {
                    let (pid, _) = client.peer().map_err(|error| error.to_string())?;
                    if pid != worker.process.pid() {
                        return Err(format!(
                            "process {pid} listens at {}, and not its worker; end that one",
                            socket.display()
                        ));
                    }
                    worker.price = None;
                    worker.client = Some(client);
                }
                Err(Error::Connect { .. }) if worker.since.elapsed() < LISTENS_BOUND => {
                    return Ok(());
                }
                // It answers, if only that it has all the clients it takes: it does not hang.
                Err(Error::Refused(why)) => return Err(format!("its worker says: {why}")),
                Err(error) => return self.unanswered(&error),
            }
        }
        match worker.ask(order) {
            Ok(reading) => {
                worker.unanswered = 0;
                self.trouble = None;
                self.learn(order, reading);
                Ok(())
            }
            Err(error) => {
                worker.client = None;
                // One that ended is seen to have, at the next look.
                if worker.process.ended().is_some() {
                    return Ok(());
                }
                self.unanswered(&error)
            }
        }
    }

    /// One that hangs is ended, unless its slice stands still.
    fn unanswered(&mut self, error: &Error) -> Result<(), Trouble> {
        let anchor = &self.beginning.anchor;
        if companion::stands_still(&self.roots, anchor, &self.app) {
            return Ok(());
        }
        let Some(worker) = &mut self.worker else {
            return Ok(());
        };
        worker.unanswered += 1;
        if worker.unanswered < UNANSWERED_MAX {
            return Ok(());
        }
        let why = format!("its worker does not answer, and is started again: {error}");
        self.end_worker("it does not answer");
        self.state = RunState::Ended(forebay_core::snapshot::Ending::Unknown);
        Err(why)
    }

    /// Takes in what the worker said, and tells the control thread.
    fn learn(&mut self, order: &Order, reading: Reading) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        let used = reading.since(worker.read.as_ref());
        let teller = &self.beginning.teller;
        if !teller.tell_accelerator(STANDS, &self.app, used) {
            tracing::warn!(app = %self.app, "signals of too many apps: what its worker says is not taken");
        }
        let weight = priority(order).weight();
        for device in &reading.devices {
            let id = &device.info.id;
            let before = worker.read.as_ref();
            let taken = before.and_then(|before| Some(reading.taken(before, id)?.1));
            let part = {
                let mut shares = self.shared.shares();
                if let Some(taken) = taken {
                    shares.used(id, &self.app, weight, taken, reading.at);
                }
                shares.part(id, &self.app, weight, reading.at)
            };
            let part = part.min(f64::from(order.accelerators.time_percent) / 100.0);
            if (part - device.part).abs() >= PART_STEP
                && let Some(client) = &worker.client
                && let Err(error) = client.set_limit(id, part)
            {
                tracing::debug!(app = %self.app, device = id, %error, "its part is told again");
            }
        }
        worker.read = Some(reading);
    }
}

/// What an app is worth beside others on a device.
fn priority(order: &Order) -> Priority {
    let by_class = match order.class {
        Class::Critical => Priority::High,
        Class::Standard => Priority::Normal,
        Class::Batch => Priority::Low,
    };
    order.accelerators.priority.unwrap_or(by_class)
}

impl Worker {
    fn ask(&mut self, order: &Order) -> Result<Reading, Error> {
        let gone = || Error::Lost("it is not connected".to_owned());
        let client = self.client.as_ref().ok_or_else(gone)?;
        let price = if order.accelerate { SCARCE_PRICE } else { 1.0 };
        if self.price != Some(price) {
            client.set_price(price)?;
            self.price = Some(price);
        }
        Ok(Reading {
            stats: client.stats()?,
            devices: client.devices()?,
            at: Instant::now(),
        })
    }
}

impl Reading {
    /// The time of a device that was taken since the reading before, in seconds and as a part.
    fn taken(&self, before: &Self, device: &str) -> Option<(f64, f64)> {
        let of = |reading: &Self| {
            let mut devices = reading.devices.iter();
            let found = devices.find(|one| one.info.id == device)?;
            Some(found.busy_us)
        };
        let elapsed = self.at.duration_since(before.at).as_secs_f64();
        let grown = of(self)?.checked_sub(of(before)?)?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds of a worker's life"
        )]
        let seconds = grown as f64 / 1e6;
        (elapsed > 0.0).then(|| (seconds, seconds / elapsed))
    }

    /// What the app does with accelerators since the reading before.
    fn since(&self, before: Option<&Self>) -> Use {
        let usable = self
            .devices
            .iter()
            .filter(|device| device.quarantine.is_none());
        let left_alone = self
            .devices
            .iter()
            .filter(|device| device.quarantine.is_some());
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        #[expect(clippy::cast_precision_loss, reason = "tasks between two looks")]
        let rate = |of: fn(&Stats) -> u64| {
            let Some(before) = before else { return 0.0 };
            let elapsed = self.at.duration_since(before.at).as_secs_f64();
            let grown = of(&self.stats).saturating_sub(of(&before.stats)) as f64;
            if elapsed > 0.0 { grown / elapsed } else { 0.0 }
        };
        let busy = self.devices.iter().filter_map(|device| {
            let (_, part) = self.taken(before?, &device.info.id)?;
            Some(part)
        });
        Use {
            devices: count(usable.count()),
            quarantined: count(left_alone.count()),
            faults: self.devices.iter().map(|device| device.faults).sum(),
            kernels: count(
                self.devices
                    .iter()
                    .map(DeviceStatus::ready)
                    .max()
                    .unwrap_or(0),
            ),
            busy: busy.sum(),
            on_cpu: rate(|stats| stats.on_cpu),
            on_devices: rate(|stats| stats.on_devices),
            shared: Bytes(self.stats.region_bytes),
            price: self.stats.cpu_price,
        }
    }
}

/// The process that listens at a socket; none when nobody does.
fn listener(socket: &Path) -> Result<Option<u32>, Trouble> {
    match Client::connect(socket) {
        Ok(client) => {
            let (pid, _) = client.peer().map_err(|error| error.to_string())?;
            Ok(Some(pid))
        }
        Err(Error::Connect { .. }) => Ok(None),
        Err(error) => Err(format!(
            "somebody listens at {} who is no worker: {error}",
            socket.display()
        )),
    }
}

/// Ends a worker that is not wanted as it is. Nobody else's process is ended: it has to be one by its
/// command.
fn end_stray(roots: &Roots, pid: u32, socket: &Path) -> Result<(), Trouble> {
    let command = companion::command_of(roots, pid).unwrap_or_default();
    let own = socket.display().to_string();
    if command.get(1).map(String::as_str) != Some("accel-worker") || command.get(2) != Some(&own) {
        let command = command.join(" ");
        return Err(format!(
            "process {pid} ({command}) listens at {own}; end it"
        ));
    }
    match Companion::stray(roots, pid) {
        Some(stray) => stray.end(END_PATIENCE).map_err(|error| error.explain()),
        None => Ok(()),
    }
}

/// Puts away what is left of a worker that nobody wants.
pub(super) fn sweep(directory: &Path) {
    let socket = directory.join("socket");
    let roots = Roots::default();
    let ended = listener(&socket).and_then(|pid| match pid {
        Some(pid) => end_stray(&roots, pid, &socket),
        None => Ok(()),
    });
    match ended {
        Ok(()) => clear(directory),
        Err(why) => tracing::warn!(directory = %directory.display(), why, "left as it is"),
    }
}

fn clear(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "what a worker had is left behind");
        }
    }
}

/// Makes a directory with an owner; one that is there is left as it is. Its parent may be that owner's, who
/// may put something else in its place at any time: only what is a directory, and still root's, is given away.
fn give_directory(path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;

    match fs::DirBuilder::new().mode(0o700).create(path) {
        // What is in a directory of another user is left to that user.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if made.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(
            "somebody else put another one in its place",
        ));
    }
    fchown(&made, uid, gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the wire has it: a device with what is told of it.
    fn device(id: &str, quarantine: Option<&str>, faults: u64) -> DeviceStatus {
        let told = serde_json::json!({
            "info": {
                "id": id, "backend": "opencl", "platform": "", "vendor": "", "name": "", "driver": "",
                "memory_bytes": 1, "buffer_bytes_max": 1, "kind": "gpu",
            },
            "quarantine": quarantine, "tasks": 0, "verified": 0, "faults": faults, "utilisation": 0.0,
        });
        serde_json::from_value(told).unwrap()
    }

    #[test]
    fn devices_that_are_left_alone_and_faults_are_told() {
        let reading = Reading {
            at: Instant::now(),
            stats: Stats::default(),
            devices: vec![
                device("a", None, 1),
                device("b", Some("it does not begin"), 3),
                device("c", Some("three kernels failed there"), 4),
            ],
        };
        let used = reading.since(None);
        assert_eq!((used.devices, used.quarantined, used.faults), (1, 2, 8));
    }
}
