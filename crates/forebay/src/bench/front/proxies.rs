//! The proxies that are held against each other, each one process with one thread, and what stands
//! behind them.
//!
//! Each is configured by itself in the directory of the benchmark, listens on loopback, writes no log of
//! requests, and keeps connections to what is behind it for as long as clients ask.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_shadow::control::{Answer, Line, Request};
use forebay_shadow::front::Plan;
use forebay_shadow::http;
use forebay_shadow::mode::Mode;
use forebay_shadow::proxy;
use forebay_shadow::status::Status;
use forebay_shadow::stream::Address;
use forebay_shadow::switchboard::Instance;

use crate::bench::failover::free_port;
use crate::bench::write_config;
use crate::demo::{Error, terminate};

/// How long anything may take that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// nginx's module for byte streams, as Debian installs it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Pipes that haproxy may splice with, which it opens no connection without room for.
const PIPES: u32 = 64;

/// A process that ends with this value.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(name: &'static str, command: &mut Command) -> Result<Self, Error> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::system("start", name, "install it"))?;
        Ok(Self { name, child })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until somebody listens at this port.
    ///
    /// # Errors
    /// When it ends instead, or nobody does.
    pub(super) fn await_port(&mut self, port: u16) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = self.child.try_wait();
            if let Ok(Some(status)) = ended {
                let what = format!("ended at its beginning, {status}; its message is above");
                return Err(Error::part(self.name, what));
            }
            if Instant::now() >= until {
                return Err(Error::part(self.name, format!("nobody listens on {port}")));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = terminate(&mut self.child, self.name) {
            tracing::warn!(%error, "not ended in order");
        }
    }
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Whether a program can be started.
pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&path);
    directories.any(|directory| directory.join(program).is_file())
}

/// The service that all proxies stand before, and its shadow.
#[derive(Debug)]
pub(super) struct Origins {
    pub(super) ports: [u16; 2],
    processes: [Process; 2],
}

impl Origins {
    /// # Errors
    /// When they do not begin to listen.
    pub(super) fn start() -> Result<Self, Error> {
        let ports = [free_port()?, free_port()?];
        let start = |port: u16| {
            let mut command = Command::new("/proc/self/exe");
            command.args(["workload", "origin", "--parent-death", "--port"]);
            Process::start("the origin", command.arg(port.to_string()))
        };
        let mut processes = [start(ports[0])?, start(ports[1])?];
        for (process, port) in processes.iter_mut().zip(ports) {
            process.await_port(port)?;
        }
        Ok(Self { ports, processes })
    }

    pub(super) fn address(&self) -> SocketAddr {
        loopback(self.ports[0])
    }

    /// The process that stands by.
    pub(super) fn shadow(&self) -> u32 {
        self.processes[1].pid()
    }

    fn members(&self) -> Vec<Member> {
        let members = self.ports.iter().zip(&self.processes);
        members
            .map(|(port, process)| Member {
                port: *port,
                pid: Some(process.pid()),
            })
            .collect()
    }
}

/// One instance behind a front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) port: u16,
    /// Its process; none of one that never runs.
    pub(super) pid: Option<u32>,
}

/// A build of Forebay, and where its fronts' files are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Build<'a> {
    pub(super) program: &'a Path,
    pub(super) dir: &'a Path,
}

impl<'a> Build<'a> {
    /// The one that measures.
    pub(super) fn own(dir: &'a Path) -> Self {
        let program = Path::new("/proc/self/exe");
        Self { program, dir }
    }
}

/// A Forebay front, without a daemon: nothing but the front itself is measured.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) address: SocketAddr,
    pub(super) process: Process,
}

impl Front {
    /// Before the origins.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub(super) fn before(build: Build<'_>, mode: Mode, origins: &Origins) -> Result<Self, Error> {
        Self::start(build, mode, &origins.members())
    }

    /// Before any instances, the first of which serves.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub(super) fn start(build: Build<'_>, mode: Mode, members: &[Member]) -> Result<Self, Error> {
        let port = free_port()?;
        let name = mode.to_string();
        let file = |suffix: &str| build.dir.join(format!("{name}-{port}.{suffix}"));
        let plan = Plan {
            name: name.clone(),
            mode,
            listen: vec![Address::Tcp(loopback(port)).into()],
            instances: members
                .iter()
                .map(|member| Instance {
                    app: app(*member),
                    address: Address::Tcp(loopback(member.port)),
                    elsewhere: None,
                })
                .collect(),
            user: "nobody".to_owned(),
            connections_max: 20_000,
            patience: Duration::from_secs(5),
            grace: Duration::ZERO,
            drain: Duration::ZERO,
            proxy: proxy::Options::default(),
            control: file("control"),
            epoch_file: file("epoch"),
            lender: None,
        };
        let text = serde_json::to_string(&plan);
        let text = text.map_err(|error| Error::part("the plan of a front", error))?;
        write_config(&file("json"), &text)?;
        let mut command = Command::new(build.program);
        let mut process = Process::start("the front", command.arg("front").arg(file("json")))?;
        process.await_port(port)?;
        join(&plan.control, members)?;
        Ok(Self {
            address: loopback(port),
            process,
        })
    }
}

fn app(member: Member) -> String {
    format!("instance-{}", member.port)
}

/// Tells a front which processes its instances are, and waits until the first one serves and every
/// other one could take over.
fn join(control: &Path, members: &[Member]) -> Result<(), Error> {
    let failed = || {
        Error::system(
            "ask",
            control.display(),
            "look at the front's message above",
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed())?;
    runtime.block_on(async {
        let mut line = Line::connect(control).await.map_err(failed())?;
        for member in members {
            let Some(pid) = member.pid else { continue };
            let request = Request::Joined {
                app: app(*member),
                pid,
                fence: None,
            };
            match line.ask(&request, &[]).await.map_err(failed())? {
                Answer::Done => {}
                other => return Err(Error::part("the front", format!("{other:?}"))),
            }
        }
        let shadows = members.iter().filter(|member| member.pid.is_some());
        let has_shadow = shadows.count() > 1;
        let until = Instant::now() + PATIENCE;
        let mut known: Option<Box<Status>> = None;
        loop {
            let request = Request::Status { known };
            let Answer::Status(status) = line.ask(&request, &[]).await.map_err(failed())? else {
                return Err(Error::part("the front", "does not say how it stands"));
            };
            if status.stage == "warm" && (status.standby.is_some() || !has_shadow) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Error::part(
                    "the front",
                    format!("does not serve: {status:?}"),
                ));
            }
            known = Some(status);
        }
    })
}

pub(super) fn http_mode() -> Mode {
    Mode::Http(http::Options::default())
}

/// haproxy, in all its modes at once.
#[derive(Debug)]
pub(super) struct Haproxy {
    pub(super) process: Process,
    pub(super) tcp: SocketAddr,
    pub(super) http: SocketAddr,
    /// `option splice-auto`, which its manual recommends for bulk.
    pub(super) splice: SocketAddr,
}

impl Haproxy {
    /// # Errors
    /// When it does not begin to listen.
    pub(super) fn start(dir: &Path, origin: u16, connections: u32) -> Result<Self, Error> {
        let [tcp, http, splice] = [free_port()?, free_port()?, free_port()?];
        let config = dir.join("haproxy.cfg");
        let text = format!(
            "global\n  nbthread 1\n  maxconn {connections}\n  maxpipes {PIPES}\n\
             defaults\n  timeout client 1h\n  timeout connect 5s\n  timeout server 1h\n  http-reuse always\n  maxconn {connections}\n\
             frontend tcp\n  mode tcp\n  bind 127.0.0.1:{tcp}\n  default_backend tcp\n\
             backend tcp\n  mode tcp\n  server a 127.0.0.1:{origin}\n\
             frontend http\n  mode http\n  bind 127.0.0.1:{http}\n  default_backend http\n\
             backend http\n  mode http\n  server a 127.0.0.1:{origin}\n\
             frontend splice\n  mode http\n  option splice-auto\n  bind 127.0.0.1:{splice}\n  default_backend splice\n\
             backend splice\n  mode http\n  option splice-auto\n  server a 127.0.0.1:{origin}\n"
        );
        write_config(&config, &text)?;
        let mut command = Command::new("haproxy");
        let mut process = Process::start("haproxy", command.args(["-q", "-db", "-f"]).arg(config))?;
        process.await_port(splice)?;
        Ok(Self {
            process,
            tcp: loopback(tcp),
            http: loopback(http),
            splice: loopback(splice),
        })
    }
}

/// nginx, with its module for byte streams where that is installed.
#[derive(Debug)]
pub(super) struct Nginx {
    pub(super) process: Process,
    pub(super) tcp: Option<SocketAddr>,
    pub(super) http: SocketAddr,
}

impl Nginx {
    /// # Errors
    /// When it does not begin to listen.
    pub(super) fn start(dir: &Path, origin: u16, connections: u32) -> Result<Self, Error> {
        let [tcp, http] = [free_port()?, free_port()?];
        let has_stream = Path::new(STREAM_MODULE).exists();
        let prefix = dir.join("nginx");
        fs::create_dir(&prefix).map_err(Error::system("make", prefix.display(), "free space"))?;
        let (module, stream) = if has_stream {
            (
                format!("load_module {STREAM_MODULE};\n"),
                format!(
                    "stream {{ server {{ listen 127.0.0.1:{tcp} backlog=4096; proxy_timeout 1h; \
                     proxy_pass 127.0.0.1:{origin}; }} }}\n"
                ),
            )
        } else {
            (String::new(), String::new())
        };
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name};\n", prefix.display()))
            .concat();
        // Each connection to what is behind it would end after 1,000 requests, and answers longer than
        // its buffers would be written to a file.
        let text = format!(
            "{module}daemon off;\nmaster_process off;\nworker_processes 1;\npid {0}/pid;\n\
             error_log {0}/error.log error;\nevents {{ worker_connections {1}; }}\n{stream}\
             http {{ access_log off;\n{paths}keepalive_timeout 1h;\nkeepalive_requests 1000000000;\n\
             upstream origin {{ server 127.0.0.1:{origin}; keepalive 128; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:{http} backlog=4096; location / {{ proxy_pass http://origin; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffers 16 64k; \
             proxy_max_temp_file_size 0; }} }} }}\n",
            prefix.display(),
            2 * connections + 256,
        );
        let config: PathBuf = prefix.join("nginx.conf");
        write_config(&config, &text)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&prefix).arg("-c").arg(config);
        let errors = prefix.join("start.log");
        let mut process = Process::start("nginx", command.arg("-e").arg(errors))?;
        process.await_port(http)?;
        Ok(Self {
            process,
            tcp: has_stream.then(|| loopback(tcp)),
            http: loopback(http),
        })
    }
}
