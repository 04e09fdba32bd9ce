//! A PostgreSQL cluster to throw away, and pgbouncer before it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::load;
use super::proxies::{PATIENCE, Process, loopback};
use super::talk::Talk;
use crate::bench::failover::free_port;
use crate::bench::write_config;
use crate::demo::Error;

const BINARIES: &str = "/usr/lib/postgresql/15/bin";
/// The database that Forebay and direct clients ask for.
pub(super) const DATABASE: &str = "postgres";

/// Whether the cluster could be made.
pub(super) fn is_installed() -> bool {
    Path::new(BINARIES).join("postgres").exists()
}

/// A server that trusts everybody on loopback, and forgets everything.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) port: u16,
    server: Process,
    directory: PathBuf,
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--clear-groups",
        ])
        .arg(program);
    command
}

impl Cluster {
    /// # Errors
    /// When it cannot be made, or does not begin to serve.
    pub(super) fn start(dir: &Path) -> Result<Self, Error> {
        let port = free_port()?;
        let directory = dir.join("cluster");
        let owned = Command::new("install")
            .args(["-d", "-o", "postgres", "-g", "postgres", "-m", "700"])
            .arg(&directory)
            .status();
        succeeded("make a directory of user postgres", owned)?;
        let made = as_postgres(Path::new(BINARIES).join("initdb"))
            .arg("-D")
            .arg(&directory)
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"])
            .arg("--locale=C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        succeeded("initdb", made)?;
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n\
             shared_buffers = 32MB\nmax_connections = 500\nfsync = off\nautovacuum = off\n\
             dynamic_shared_memory_type = mmap\n"
        );
        write_config(&directory.join("postgresql.auto.conf"), &settings)?;
        let log = directory.join("log");
        let log = fs::File::create(&log).map_err(Error::system(
            "create",
            log.display(),
            "check that its file system has room",
        ))?;
        let mut server = as_postgres(Path::new(BINARIES).join("postgres"));
        let server = server.arg("-D").arg(&directory).stderr(log);
        let mut server = Process::start("PostgreSQL", server)?;
        server.await_port(port)?;
        let cluster = Self {
            port,
            server,
            directory,
        };
        cluster.await_service()?;
        Ok(cluster)
    }

    /// It listens before it serves.
    fn await_service(&self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        let talk = Talk::Postgres { database: DATABASE };
        while let Err(why) = load::connect(self.address(), talk) {
            if Instant::now() > until {
                return Err(Error::part("PostgreSQL", why));
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(())
    }

    pub(super) fn address(&self) -> SocketAddr {
        loopback(self.port)
    }

    pub(super) fn pid(&self) -> u32 {
        self.server.pid()
    }
}

impl Drop for Cluster {
    /// Fast, as clients need not be waited for.
    fn drop(&mut self) {
        let stopped = as_postgres(Path::new(BINARIES).join("pg_ctl"))
            .args(["stop", "-s", "-m", "fast", "-D"])
            .arg(&self.directory)
            .stdin(Stdio::null())
            .status();
        if let Err(error) = succeeded("pg_ctl stop", stopped) {
            tracing::warn!(%error, "PostgreSQL is ended as any process");
        }
    }
}

fn succeeded(what: &str, status: std::io::Result<std::process::ExitStatus>) -> Result<(), Error> {
    let status = status.map_err(Error::system("start", what, "install it"))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::part(what, format!("{status}; its message is above")))
}

/// pgbouncer, both of whose ways to pool are databases of one process.
#[derive(Debug)]
pub(super) struct Pgbouncer {
    pub(super) process: Process,
    pub(super) address: SocketAddr,
}

pub(super) const SESSION: &str = "session";
pub(super) const TRANSACTION: &str = "transaction";

impl Pgbouncer {
    /// # Errors
    /// When it does not begin to listen.
    pub(super) fn start(dir: &Path, server: u16) -> Result<Self, Error> {
        let port = free_port()?;
        let config = dir.join("pgbouncer.ini");
        let database = |mode: &str| {
            format!(
                "{mode} = host=127.0.0.1 port={server} dbname={DATABASE} user=postgres pool_mode={mode}\n"
            )
        };
        let text = format!(
            "[databases]\n{}{}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\nmax_client_conn = 1000\ndefault_pool_size = 100\nlog_connections = 0\n\
             log_disconnections = 0\nlog_stats = 0\n",
            database(SESSION),
            database(TRANSACTION)
        );
        write_config(&config, &text)?;
        let mut command = as_postgres("pgbouncer");
        let mut process = Process::start("pgbouncer", command.arg("-q").arg(config))?;
        process.await_port(port)?;
        Ok(Self {
            process,
            address: loopback(port),
        })
    }
}
