//! The service behind Forebay: a daemon, a front, two instances.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use forebay_api as api;
use rustix::process::{Pid, Signal, kill_process};

use super::{BLOCKED, Fault, Scene};
use crate::bench::{start_daemon, write_config};
use crate::cli;
use crate::demo::{Error, STATE_DIR, terminate};

/// How long anything may take that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A service with two instances, and something that fails over between them.
pub(super) trait Shop {
    /// Where clients ask.
    fn address(&self) -> SocketAddr;
    /// Waits until one serves and the other one could.
    fn await_ready(&mut self) -> Result<(), Error>;
    /// Lets a fault happen to the one that serves; the moment.
    fn hurt(&mut self, fault: Fault) -> Result<Instant, Error>;
    /// Has the one that was hurt begin anew, unless that happens by itself.
    fn heal(&mut self, fault: Fault) -> Result<(), Error>;
    /// How often each order was executed.
    fn executed(&self) -> Result<HashMap<u64, u32>, Error>;
    /// Ends everything.
    fn close(self: Box<Self>) -> Result<(), Error>;
}

/// A port that nobody has now.
pub(crate) fn free_port() -> Result<u16, Error> {
    let failed = || Error::system("find", "a free port", "check the loopback device");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    Ok(listener.local_addr().map_err(failed())?.port())
}

/// The command of one instance.
pub(super) fn instance(scene: &Scene<'_>, port: u16, log: &Path) -> Result<Vec<String>, Error> {
    let exe = std::env::current_exe().map_err(Error::system(
        "find",
        "this program's own file",
        "check that /proc is mounted",
    ))?;
    Ok([
        exe.display().to_string().as_str(),
        "workload",
        "orders",
        "--port",
        &port.to_string(),
        "--log",
        &log.display().to_string(),
        "--memory-mib",
        &scene.memory_mib.to_string(),
    ]
    .map(str::to_owned)
    .into())
}

/// Counts the lines of the file that instances write.
pub(super) fn count(log: &Path) -> Result<HashMap<u64, u32>, Error> {
    let text = fs::read_to_string(log).map_err(Error::system(
        "read",
        log.display(),
        "check that its directory exists",
    ))?;
    let mut executed = HashMap::new();
    for id in text.lines().filter_map(|line| line.parse().ok()) {
        *executed.entry(id).or_default() += 1;
    }
    Ok(executed)
}

/// Does to a process, or to the service at a port, what the fault is.
pub(super) fn inflict(fault: Fault, pid: u32, port: u16) -> Result<Instant, Error> {
    let signal = |signal| {
        let moment = Instant::now();
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        match pid.map(|pid| kill_process(pid, signal)) {
            Some(Ok(())) => Ok(moment),
            _ => Err(Error::part("the primary", format!("{pid:?} does not run"))),
        }
    };
    match fault {
        Fault::Killed => signal(Signal::KILL),
        Fault::Stopped => signal(Signal::STOP),
        Fault::Blocked => {
            let failed = || Error::system("block", format!("port {port}"), "look at its log");
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(failed())?;
            let moment = Instant::now();
            let request = format!(
                "POST /block/{} HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
                BLOCKED.as_millis()
            );
            stream.write_all(request.as_bytes()).map_err(failed())?;
            Ok(moment)
        }
    }
}

/// One front of the daemon.
pub(super) struct Behind {
    socket: PathBuf,
    name: &'static str,
    /// The process that was hurt.
    hurt: Option<u32>,
}

impl Behind {
    pub(super) fn new(scene: &Scene<'_>, name: &'static str) -> Self {
        Self {
            socket: scene.dir.join("socket"),
            name,
            hurt: None,
        }
    }

    /// What the front did, in words, the latest last.
    pub(super) fn changes(&self) -> Vec<String> {
        self.front().map(|front| front.changes).unwrap_or_default()
    }

    fn front(&self) -> Option<api::Front> {
        let fronts = cli::fronts(&self.socket).ok()?;
        let mut fronts = fronts.fronts.into_iter();
        fronts.find(|front| front.front == self.name)
    }

    fn primary(&self) -> Option<api::FrontInstance> {
        let front = self.front()?;
        let primary = front.primary?;
        let mut instances = front.instances.into_iter();
        instances.find(|instance| instance.app == primary)
    }

    /// Waits until one serves and the other one could.
    pub(super) fn await_ready(&self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let front = self.front();
            let ready = front.as_ref().is_some_and(|front| {
                let all = |instance: &api::FrontInstance| {
                    instance.ready && instance.fence && instance.pid != self.hurt
                };
                front.stage.as_deref() == Some("warm")
                    && front.standby.is_some()
                    && front.instances.iter().all(all)
            });
            if ready {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        Err(Error::part(
            format!("the front `{}`", self.name),
            format!("no shadow stands by: {:?}", self.front()),
        ))
    }

    /// Lets a fault happen to the one that serves; the moment.
    pub(super) fn strike(&mut self, fault: Fault) -> Result<Instant, Error> {
        let primary = self.primary();
        let found = primary.and_then(|primary| {
            let address: SocketAddr = primary.address.parse().ok()?;
            Some((primary.pid?, address.port()))
        });
        let front = || format!("the front `{}`", self.name);
        let (pid, port) = found.ok_or_else(|| Error::part(front(), "nobody serves"))?;
        self.hurt = Some(pid);
        inflict(fault, pid, port)
    }

    /// An operator who lets one go on that was stopped must not undo the fence.
    pub(super) fn let_go_on(&self, fault: Fault) {
        let pid = self.hurt.and_then(|pid| i32::try_from(pid).ok());
        if let (Fault::Stopped, Some(pid)) = (fault, pid.and_then(Pid::from_raw)) {
            // It may be dead by now.
            kill_process(pid, Signal::CONT).ok();
        }
    }
}

/// Behind Forebay.
pub(super) struct Forebay {
    address: SocketAddr,
    log: PathBuf,
    daemon: Child,
    front: Behind,
}

impl Forebay {
    /// Starts the daemon, with these lines of configuration besides.
    pub(super) fn open(scene: &Scene<'_>, besides: &str) -> Result<Self, Error> {
        let [port, a, b] = [free_port()?, free_port()?, free_port()?];
        let log = scene.dir.join(format!("orders-{port}"));
        let path = |name: &str| toml::Value::from(scene.dir.join(name).display().to_string());
        let mut text = format!(
            "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"forebay-bench-{}\"\nlease = \"2s\"\n\
             [policy]\non_stop = \"kill\"\n",
            path("socket"),
            path(STATE_DIR),
            std::process::id(),
        );
        for (name, port) in [("a", a), ("b", b)] {
            let command = toml::Value::from(instance(scene, port, &log)?);
            text += &format!(
                "[apps.{name}]\nclass = \"critical\"\nrestart = \"always\"\nexec = {command}\n"
            );
        }
        text += &format!(
            "[fronts.shop]\nmode = \"http\"\nlisten = [\"127.0.0.1:{port}\"]\n\
             instances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n{besides}"
        );
        let config = scene.dir.join("failover.toml");
        write_config(&config, &text)?;
        Ok(Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            log,
            daemon: start_daemon(&config)?,
            front: Behind::new(scene, "shop"),
        })
    }

    /// What the front did, in words, the latest last.
    pub(super) fn changes(&self) -> Vec<String> {
        self.front.changes()
    }
}

impl Shop for Forebay {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn await_ready(&mut self) -> Result<(), Error> {
        self.front.await_ready()
    }

    fn hurt(&mut self, fault: Fault) -> Result<Instant, Error> {
        self.front.strike(fault)
    }

    fn heal(&mut self, fault: Fault) -> Result<(), Error> {
        self.front.let_go_on(fault);
        Ok(())
    }

    fn executed(&self) -> Result<HashMap<u64, u32>, Error> {
        count(&self.log)
    }

    fn close(mut self: Box<Self>) -> Result<(), Error> {
        terminate(&mut self.daemon, "the daemon")
    }
}
