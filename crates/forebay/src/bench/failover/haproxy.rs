//! The same service behind haproxy, tuned as well as its manual lets one.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::shop::{PATIENCE, Shop, count, free_port, inflict, instance};
use super::{Fault, Scene};
use crate::bench::write_config;
use crate::demo::{Error, terminate};

const PROGRAM: &str = "haproxy";
/// Checks go on every 10 ms, and two in a row have to be good.
const RISE: Duration = Duration::from_millis(200);

pub(super) fn is_installed() -> bool {
    let found = Command::new(PROGRAM)
        .arg("-v")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}

/// Behind haproxy: `a` serves whenever it is there.
pub(super) struct Haproxy {
    address: SocketAddr,
    log: PathBuf,
    haproxy: Child,
    commands: [Vec<String>; 2],
    ports: [u16; 2],
    instances: [Child; 2],
}

impl Haproxy {
    pub(super) fn open(scene: &Scene<'_>) -> Result<Self, Error> {
        let [port, a, b] = [free_port()?, free_port()?, free_port()?];
        let log = scene.dir.join(format!("orders-{port}"));
        let commands = [instance(scene, a, &log)?, instance(scene, b, &log)?];
        let instances = [start(&commands[0])?, start(&commands[1])?];
        let config = scene.dir.join("haproxy.cfg");
        write_config(&config, &configuration(port, [a, b]))?;
        let haproxy = run(&config)?;
        Ok(Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            log,
            haproxy,
            commands,
            ports: [a, b],
            instances,
        })
    }
}

/// A server that fails once, in a check or for a client, is out; its sessions end at once; what
/// may be repeated is sent to the other one. Orders may not: its manual warns of executing twice.
fn configuration(port: u16, [a, b]: [u16; 2]) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 2000\n\
         defaults\n  mode http\n  timeout client 30s\n  timeout connect 20ms\n  timeout server 200ms\n  \
         timeout check 20ms\n  retries 3\n  option redispatch 1\n  \
         retry-on conn-failure empty-response response-timeout\n\
         frontend shop\n  bind 127.0.0.1:{port}\n  default_backend instances\n\
         backend instances\n  http-request disable-l7-retry if METH_POST\n  option httpchk GET /\n  \
         default-server check inter 10ms fall 1 rise 2 observe layer7 error-limit 1 \
         on-error mark-down on-marked-down shutdown-sessions\n  \
         server a 127.0.0.1:{a}\n  server b 127.0.0.1:{b} backup\n"
    )
}

fn run(config: &Path) -> Result<Child, Error> {
    Command::new(PROGRAM)
        .arg("-db")
        .arg("-f")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::system("start", PROGRAM, "install it"))
}

fn start(command: &[String]) -> Result<Child, Error> {
    let (program, arguments) = command.split_first().unzip();
    Command::new(program.map_or("", String::as_str))
        .args(arguments.unwrap_or_default())
        .arg("--parent-death")
        .stdin(Stdio::null())
        .spawn()
        .map_err(Error::system("start", "an instance", "check memory"))
}

fn end(child: &mut Child) -> Result<(), Error> {
    let ended = child.kill().and_then(|()| child.wait());
    ended
        .map(drop)
        .map_err(Error::system("end", "an instance", "end it by hand"))
}

impl Shop for Haproxy {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn await_ready(&mut self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        let [a, b] = self.ports;
        for port in [a, b, self.address.port()] {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                if Instant::now() >= until {
                    return Err(Error::part("haproxy", format!("nobody listens on {port}")));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        std::thread::sleep(RISE);
        Ok(())
    }

    fn hurt(&mut self, fault: Fault) -> Result<Instant, Error> {
        inflict(fault, self.instances[0].id(), self.ports[0])
    }

    fn heal(&mut self, fault: Fault) -> Result<(), Error> {
        match fault {
            // It goes on, as an operator would let it, and executes what it was sent.
            Fault::Stopped => {
                let pid = rustix::process::Pid::from_child(&self.instances[0]);
                rustix::process::kill_process(pid, rustix::process::Signal::CONT).map_err(
                    Error::system("let go on", "an instance", "it should be there"),
                )?;
            }
            Fault::Killed | Fault::Blocked => {
                end(&mut self.instances[0])?;
                self.instances[0] = start(&self.commands[0])?;
            }
        }
        Ok(())
    }

    fn executed(&self) -> Result<HashMap<u64, u32>, Error> {
        count(&self.log)
    }

    fn close(mut self: Box<Self>) -> Result<(), Error> {
        terminate(&mut self.haproxy, PROGRAM)?;
        self.instances.iter_mut().try_for_each(end)
    }
}
