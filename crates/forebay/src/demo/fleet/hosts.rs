//! Three hosts on one machine: networks on a bridge, a daemon in each, and etcd beside them.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Stage;
use crate::bench::moving::stage::{await_network, ip};
use crate::demo::sweep::STATE_DIR;
use crate::demo::{Error, terminate};

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
/// Those with an instance of the service. The front is on the first, and hands over from or to that host.
const SERVING: [&str; 2] = ["a", "b"];
/// Where etcd and the clients are.
const CENTRE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);
/// The bridge's own. Without one it takes the lowest of its ports', and with the port another one when that host
/// ends: others then speak to nobody for some seconds.
const CENTRE_MAC: &str = "02:78:00:00:00:fe";
const ETCD_PORT: u16 = 2379;
const LINK_PORT: u16 = 9476;
const SERVICE_PORT: u16 = 8081;
const FRONT_PORT: u16 = 8080;
/// Computing time of one request.
const WORK_US: u32 = 1000;
/// Threads of a hog: more than there are CPUs.
const HOG_THREADS: u32 = 8;
/// Of each second it takes so many: all CPUs of two for three quarters of the time. The hosts have the same
/// CPUs, and what it is not given is the other hosts' part.
const HOG_CPUS: f64 = 1.5;

/// One host.
struct Host {
    name: &'static str,
    address: Ipv4Addr,
    dir: PathBuf,
    daemon: Child,
}

/// All of them. What is not ended here, the outer process ends.
pub(super) struct Hosts {
    program: PathBuf,
    hosts: Vec<Host>,
    etcd: Child,
}

/// What the front calls the instance of a host.
pub(super) fn instance(host: &str) -> String {
    match host {
        "a" => "shop".to_owned(),
        other => format!("shop-{other}"),
    }
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, u8::try_from(index + 1).unwrap_or(u8::MAX))
}

impl Hosts {
    pub(super) fn start(dir: &Path, stage: &Stage<'_>) -> Result<Self, Error> {
        let program = std::env::current_exe();
        let program = program.map_err(Error::system("find", "this program", "mount /proc"))?;
        ip(
            &[],
            &format!(
                "link set lo up\nlink add fleet address {CENTRE_MAC} type bridge\naddress add {CENTRE}/24 dev fleet\nlink set fleet up\n"
            ),
        )?;
        let mut fleet = Self {
            etcd: etcd(dir)?,
            program,
            hosts: Vec::new(),
        };
        stage.until("etcd", || {
            if let Some(status) = ended(&mut fleet.etcd)? {
                return Err(Error::part("etcd", format!("it ended with {status}")));
            }
            Ok(std::net::TcpStream::connect((CENTRE, ETCD_PORT)).ok())
        })?;
        fleet.certify(dir)?;
        for (index, name) in NAMES.into_iter().enumerate() {
            let host = fleet.host(dir, index, name)?;
            fleet.hosts.push(host);
        }
        for name in NAMES {
            stage.until(&format!("the daemon of {name}"), || {
                fleet.ask(name, &["status", "--json"])
            })?;
        }
        // It has no instance of the service, which its offer does not say.
        stage.until("a host that takes no more", || {
            fleet.ask(NAMES[0], &["fleet", "cordon", NAMES[2], "--json"])
        })?;
        Ok(fleet)
    }

    pub(super) fn front(&self) -> SocketAddr {
        SocketAddr::from((address(0), FRONT_PORT))
    }

    /// Certificates, as an operator makes them.
    fn certify(&self, dir: &Path) -> Result<(), Error> {
        let place = |name: &str| dir.join(name).join(STATE_DIR).join("fleet");
        let own = place("a");
        for (index, name) in NAMES.into_iter().enumerate() {
            let at = place(name);
            if let Some(parent) = at.parent() {
                make(parent)?;
            }
            let mut command = Command::new(&self.program);
            command.args(["fleet", "ca"]);
            match index {
                0 => command.args(["init", "--fleet", "demo", "--host", name]),
                _ => command.args(["issue", name, "--out"]).arg(&at),
            };
            let output = command.arg("--dir").arg(&own).output();
            let output = output.map_err(Error::system("run", "forebay fleet ca", "report it"))?;
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(Error::part("certificates of the fleet", why));
            }
        }
        Ok(())
    }

    /// A network with a daemon in it, which waits until its cable is there.
    fn host(&self, dir: &Path, index: usize, name: &'static str) -> Result<Host, Error> {
        let (dir, address) = (dir.join(name), address(index));
        let config = dir.join("forebay.toml");
        write(&config, &configuration(&self.program, &dir, name, address))?;
        let log = dir.join("daemon.log");
        let log =
            fs::File::create(&log).map_err(Error::system("write", log.display(), "make room"))?;
        let mut daemon = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "read -r go && exec \"$@\"", "sh"])
            .arg(&self.program)
            .args(["daemon", "--parent-death", "--config"])
            .arg(&config)
            .env("FOREBAY_LOG", "info")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(Error::system("run", "unshare", "install util-linux"))?;
        cable(name, address, daemon.id())?;
        let mut input = daemon
            .stdin
            .take()
            .ok_or_else(|| Error::part("a daemon", "it has no input"))?;
        input
            .write_all(b"go\n")
            .map_err(Error::system("start", "a daemon", "see its log"))?;
        Ok(Host {
            name,
            address,
            dir,
            daemon,
        })
    }

    fn of(&self, name: &str) -> Result<&Host, Error> {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.ok_or_else(|| Error::part("the fleet", format!("it has no host {name}")))
    }

    /// Where the daemons answer.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let hosts = self.hosts.iter();
        hosts.map(|host| host.dir.join("socket")).collect()
    }

    /// What the daemon of a host says; none where it does not, or refuses.
    pub(super) fn ask(&self, host: &str, words: &[&str]) -> Result<Option<Value>, Error> {
        let socket = self.of(host)?.dir.join("socket");
        let output = Command::new(&self.program)
            .args(words)
            .arg("--socket")
            .arg(socket)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::system("run", self.program.display(), "report it"))?;
        let said = output.status.success();
        Ok(said
            .then(|| serde_json::from_slice(&output.stdout).ok())
            .flatten())
    }

    /// The hosts that say that the service is theirs.
    pub(super) fn owners(&self) -> Result<Vec<String>, Error> {
        let mut owners = Vec::new();
        for host in &self.hosts {
            let said = self.ask(host.name, &["fleet", "status", "--json"])?;
            let owns = said.as_ref().and_then(|said| said["owns"].as_array());
            if owns.is_some_and(|owns| owns.contains(&"shop".into())) {
                owners.push(host.name.to_owned());
            }
        }
        Ok(owners)
    }

    /// The host whose instance serves, by the front.
    pub(super) fn serves(&self) -> Result<Option<String>, Error> {
        let front = self.ask("a", &["shadow", "status", "web", "--json"])?;
        let primary = front.and_then(|front| front["primary"].as_str().map(str::to_owned));
        let host = |primary: String| NAMES.into_iter().find(|host| instance(host) == primary);
        Ok(primary.and_then(host).map(str::to_owned))
    }

    /// Why it left a host, as that one told.
    pub(super) fn why(&self, from: &str) -> Result<String, Error> {
        let events = self.ask(from, &["events", "--app", "shop", "--json"])?;
        let events = events.as_ref().and_then(|said| said["events"].as_array());
        let told = events.into_iter().flatten().rev();
        let mut told = told.filter_map(|event| event["message"].as_str());
        let why = told.find(|said| said.contains("by itself"));
        Ok(why.unwrap_or("it did not say why").to_owned())
    }

    /// A critical application begins on a host that takes all the processor time that it gets.
    pub(super) fn hog(&self, name: &str, stage: &Stage<'_>) -> Result<(), Error> {
        let host = self.of(name)?;
        let text = configuration(&self.program, &host.dir, name, host.address)
            + &format!(
                "\n[apps.hog]\nclass = \"critical\"\nrestart = \"never\"\nceiling = {{ cpu = {HOG_CPUS} }}\nexec = [{}, \"workload\", \"burn\", \
                 \"--threads\", \"{HOG_THREADS}\", \"--count-file\", {}]\n",
                quoted(&self.program),
                quoted(&host.dir.join("burned")),
            );
        write(&host.dir.join("forebay.toml"), &text)?;
        self.reload(name)?;
        stage.until("the hog", || self.hog_pid(name)).map(drop)
    }

    fn reload(&self, name: &str) -> Result<(), Error> {
        match self.ask(name, &["reload", "--json"])? {
            Some(_) => Ok(()),
            None => Err(Error::part(name, "its configuration is not taken")),
        }
    }

    fn hog_pid(&self, name: &str) -> Result<Option<Pid>, Error> {
        let said = self.ask(name, &["explain", "hog", "--json"])?;
        let pid = said.and_then(|said| said["app"]["main_pid"].as_i64());
        Ok(pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw))
    }

    /// It ends, and is forgotten.
    pub(super) fn end_hog(&self, name: &str, stage: &Stage<'_>) -> Result<(), Error> {
        if let Some(pid) = self.hog_pid(name)? {
            // It may have ended by itself; what is looked at below tells.
            kill_process(pid, Signal::KILL).ok();
        }
        stage.until("the end of the hog", || {
            Ok(self.hog_pid(name)?.is_none().then_some(()))
        })?;
        let host = self.of(name)?;
        let text = configuration(&self.program, &host.dir, name, host.address);
        write(&host.dir.join("forebay.toml"), &text)?;
        self.reload(name)
    }

    /// Ends all, the daemons first: they put back what they did.
    pub(super) fn end(mut self) -> Result<(), Error> {
        for host in &mut self.hosts {
            terminate(&mut host.daemon, &format!("the daemon of {}", host.name))?;
        }
        terminate(&mut self.etcd, "etcd")
    }
}

fn ended(child: &mut Child) -> Result<Option<std::process::ExitStatus>, Error> {
    let status = child.try_wait();
    status.map_err(Error::system("look at", "a process", "report it"))
}

fn etcd(dir: &Path) -> Result<Child, Error> {
    let client = format!("http://{CENTRE}:{ETCD_PORT}");
    let peer = "http://127.0.0.1:2380";
    let log = dir.join("etcd.log");
    let log = fs::File::create(&log).map_err(Error::system("write", log.display(), "make room"))?;
    Command::new("etcd")
        .args(["--name", "demo", "--data-dir"])
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", peer])
        .args(["--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("demo={peer}")])
        // Where it was packaged for other processors only.
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(Error::system("start", "etcd", "install etcd-server"))
}

/// What an operator would write, but for the short times.
fn configuration(program: &Path, dir: &Path, name: &str, address: Ipv4Addr) -> String {
    let mut text = format!(
        "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"forebay-demo-{}-{name}\"\nlease = \"2s\"\n\
         [policy]\non_stop = \"kill\"\n\
         [fleet]\nhost = \"{name}\"\nlease = \"5s\"\n\
         [fleet.etcd]\nendpoints = [\"http://{CENTRE}:{ETCD_PORT}\"]\n\
         [fleet.link]\nlisten = \"{address}:{LINK_PORT}\"\n\
         [fleet.moves]\nrest = \"5s\"\nhold = \"5s\"\n\
         [offload]\nmode = \"act\"\npersistence = \"1s\"\ncool_down = \"2s\"\nsettling = \"1s\"\n",
        quoted(&dir.join("socket")),
        quoted(&dir.join(STATE_DIR)),
        std::process::id(),
    );
    if SERVING.contains(&name) {
        text += &format!(
            "[apps.shop]\nrestart = \"always\"\nmove = {{ mode = \"handoff\" }}\n\
             exec = [{}, \"workload\", \"service\", \"--address\", \"0.0.0.0\", \"--port\", \
             \"{SERVICE_PORT}\", \"--work-us\", \"{WORK_US}\"]\n",
            quoted(program)
        );
    }
    if name == NAMES[0] {
        let each = SERVING.into_iter().enumerate();
        let each = each.map(|(index, host)| {
            format!(
                "{} = \"{}:{SERVICE_PORT}\"",
                instance(host),
                self::address(index)
            )
        });
        let instances: Vec<String> = each.collect();
        let elsewhere = SERVING[1..].iter();
        let elsewhere = elsewhere.map(|host| format!("{} = \"{host}\"", instance(host)));
        let elsewhere: Vec<String> = elsewhere.collect();
        text += &format!(
            "[fronts.web]\nmode = \"http\"\nlisten = [\"{address}:{FRONT_PORT}\"]\ninstances = {{ {} }}\n\
             elsewhere = {{ {} }}\n",
            instances.join(", "),
            elsewhere.join(", ")
        );
    }
    text
}

/// A cable from the bridge into the network of a process, which becomes that of a host.
fn cable(name: &str, address: Ipv4Addr, pid: u32) -> Result<(), Error> {
    await_network(pid)?;
    ip(
        &[],
        &format!(
            "link add to-{name} type veth peer name cable netns {pid}\n\
         link set to-{name} master fleet\nlink set to-{name} up\n"
        ),
    )?;
    let theirs = format!("link set lo up\naddress add {address}/24 dev cable\nlink set cable up\n");
    ip(
        &["nsenter", &format!("--net=/proc/{pid}/ns/net"), "--"],
        &theirs,
    )
}

fn quoted(path: &Path) -> String {
    toml::Value::from(path.display().to_string()).to_string()
}

fn make(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::system("make", dir.display(), "make room"))
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(Error::system("write", file.display(), "make room"))
}
