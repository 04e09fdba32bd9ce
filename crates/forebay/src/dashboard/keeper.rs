//! The dashboard that the daemon keeps: a process of its own with fewer rights, started again when it ends.
//!
//! The daemon makes the token, tells it to the process through a pipe, and writes the page's address beside
//! its socket, for root and the daemon's group. So the address stays while the process is started again,
//! and no command line and no environment has the token in it.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::gate;
use crate::config::{Config, DashboardConfig, Readers};
use crate::server::group_number;

/// The file beside the daemon's socket that has the page's address.
pub(crate) const ADDRESS_FILE: &str = "dashboard.url";

/// How long to wait before the next start: doubled each time, up to the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// The process and what it is started with.
#[derive(Debug)]
pub(crate) struct Keeper {
    config: DashboardConfig,
    socket: PathBuf,
    /// The daemon's group, where the page is to have its rights.
    group: Option<u32>,
    token: String,
    child: Option<Child>,
    started: Instant,
    again: Duration,
}

impl Keeper {
    /// Starts the page of a configuration; none where it has none.
    ///
    /// # Errors
    /// When its address cannot be written, or its user is not known.
    pub(crate) fn start(config: &Config) -> Result<Option<Self>, String> {
        let Some(dashboard) = &config.dashboard else {
            return Ok(None);
        };
        let daemon = &config.daemon;
        let group = group_number(&daemon.group);
        // Without need it has the rights of nobody in particular.
        let needed = !dashboard.read_only || daemon.readers == Readers::Group;
        let token =
            gate::token().map_err(|error| format!("make the dashboard's token: {error}"))?;
        let mut keeper = Self {
            config: dashboard.clone(),
            socket: daemon.socket.clone(),
            group: group.filter(|_| needed),
            token,
            child: None,
            started: Instant::now(),
            again: AGAIN,
        };
        let file = keeper.address_file();
        keeper.write_address(&file, group).map_err(|error| {
            format!(
                "write the dashboard's address to {}: {error}; make its directory writable",
                file.display()
            )
        })?;
        keeper.launch()?;
        Ok(Some(keeper))
    }

    fn address_file(&self) -> PathBuf {
        let directory = self.socket.parent().unwrap_or(Path::new("/"));
        directory.join(ADDRESS_FILE)
    }

    fn write_address(&self, file: &Path, group: Option<u32>) -> io::Result<()> {
        // One of before may be somebody else's to read.
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut opened = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        let (listen, token) = (self.config.listen, &self.token);
        writeln!(opened, "http://{listen}/#token={token}")?;
        if group.is_some() && geteuid().is_root() {
            fchown(&opened, None, group)?;
            opened.set_permissions(Permissions::from_mode(0o640))?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<(), String> {
        self.started = Instant::now();
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["dashboard", "--kept", "--listen"])
            .arg(self.config.listen.to_string())
            .arg("--socket")
            .arg(&self.socket)
            .args(self.config.read_only.then_some("--read-only"))
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        if geteuid().is_root() {
            let user = forebay_host::identity(&self.config.user);
            let user = user.map_err(|error| error.explain())?;
            // Setting the user leaves all other groups behind.
            command.uid(user.uid).gid(self.group.unwrap_or(user.gid));
        }
        let mut child = command
            .spawn()
            .map_err(|error| format!("start the dashboard: {error}; check process limits"))?;
        let told = child
            .stdin
            .take()
            .map(|mut pipe| writeln!(pipe, "{}", self.token));
        self.child = Some(child);
        match told {
            Some(Err(error)) => Err(format!(
                "tell the dashboard its token: {error}; see its message above"
            )),
            _ => Ok(()),
        }
    }

    /// Starts it again when it ended, a little later each time.
    pub(crate) fn keep(&mut self) {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => return,
                Ok(Some(status)) => {
                    if self.started.elapsed() > AGAIN_MAX {
                        self.again = AGAIN;
                    }
                    tracing::warn!(%status, again = ?self.again, "the dashboard ended; starting it again");
                }
                Err(error) => tracing::error!(%error, "cannot ask after the dashboard"),
            }
            self.child = None;
        }
        if self.started.elapsed() < self.again {
            return;
        }
        self.again = (self.again * 2).min(AGAIN_MAX);
        if let Err(error) = self.launch() {
            tracing::warn!(error, "the dashboard is not there; trying again");
        }
    }

    /// Ends it, and takes its address away.
    pub(crate) fn end(mut self) {
        if let Some(mut child) = self.child.take() {
            // It was not waited for, so that the number is still its own.
            let asked = Pid::from_child(&child);
            let ended = kill_process(asked, Signal::TERM).map_err(io::Error::from);
            if let Err(error) = ended.and_then(|()| child.wait().map(drop)) {
                tracing::error!(%error, "the dashboard could not be ended");
            }
        }
        let file = self.address_file();
        if let Err(error) = fs::remove_file(&file) {
            tracing::warn!(%error, file = %file.display(), "the dashboard's address stays");
        }
    }
}
