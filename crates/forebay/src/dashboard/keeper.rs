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
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::{Told, gate};
use crate::config::{Config, DashboardConfig, PageTls, Readers};
use crate::server::group_number;

/// The file beside the daemon's socket that has the page's address.
const ADDRESS_FILE: &str = "dashboard.url";

/// How long to wait before the next start: doubled each time, up to the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// How soon it is noticed that the certificate was renewed.
const RENEWAL: Duration = Duration::from_secs(2);

/// The process and what it is started with.
#[derive(Debug)]
pub(crate) struct Keeper {
    config: DashboardConfig,
    socket: PathBuf,
    /// The daemon's group, where the page is to have its rights.
    group: Option<u32>,
    told: Told,
    child: Option<Child>,
    started: Instant,
    again: Duration,
    renewal: Renewal,
}

/// Looking whether what the page speaks TLS with is still what stands in its files.
#[derive(Debug)]
struct Renewal {
    /// Beside the daemon's thread: a file system may hang.
    reading: Option<JoinHandle<Result<PageTls, String>>>,
    looked: Instant,
    complaint: Option<String>,
}

/// Where the page's address stands, beside the daemon's socket.
pub(crate) fn address_file(socket: &Path) -> PathBuf {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    directory.join(ADDRESS_FILE)
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
        let tls = dashboard
            .tls
            .as_ref()
            .map(|files| files.read())
            .transpose()?;
        let mut keeper = Self {
            config: dashboard.clone(),
            socket: daemon.socket.clone(),
            group: group.filter(|_| needed),
            told: Told { token, tls },
            child: None,
            started: Instant::now(),
            again: AGAIN,
            renewal: Renewal {
                reading: None,
                looked: Instant::now(),
                complaint: None,
            },
        };
        let file = address_file(&keeper.socket);
        keeper.write_address(&file, group).map_err(|error| {
            format!(
                "write the dashboard's address to {}: {error}; make its directory writable",
                file.display()
            )
        })?;
        keeper.launch()?;
        Ok(Some(keeper))
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
        writeln!(opened, "{}", self.told.address(self.config.listen))?;
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
        let told = child.stdin.take().map(|mut pipe| {
            // Nobody but root may read the key in its file, and the page is not root.
            serde_json::to_writer(&pipe, &self.told)?;
            writeln!(pipe)
        });
        self.child = Some(child);
        match told {
            Some(Err(error)) => Err(format!(
                "tell the dashboard its token and certificate: {error}; see its message above"
            )),
            _ => Ok(()),
        }
    }

    /// Starts it again when it ended, a little later each time, and when its certificate was renewed.
    pub(crate) fn keep(&mut self) {
        self.renew();
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

    /// Looks at the files of the certificate; another one is for another process, since this one could not read
    /// it. Browsers come back by themselves.
    fn renew(&mut self) {
        let Some(files) = &self.config.tls else {
            return;
        };
        let Some(reading) = self.renewal.reading.take() else {
            if self.renewal.looked.elapsed() >= RENEWAL {
                self.renewal.looked = Instant::now();
                let files = files.clone();
                self.renewal.reading = Some(std::thread::spawn(move || files.read()));
            }
            return;
        };
        if !reading.is_finished() {
            self.renewal.reading = Some(reading);
            return;
        }
        let read = reading.join();
        let read = read.unwrap_or_else(|_| Err("reading it panicked; report this".to_owned()));
        let complaint = match read {
            Ok(tls) if self.told.tls.as_ref() == Some(&tls) => None,
            Ok(tls) => {
                tracing::info!("the dashboard gets the certificate of its files");
                self.told.tls = Some(tls);
                self.stop();
                self.launch().err()
            }
            Err(why) => Some(why),
        };
        if complaint != self.renewal.complaint {
            if let Some(why) = &complaint {
                tracing::warn!(why, "the dashboard's certificate is not renewed");
            }
            self.renewal.complaint = complaint;
        }
    }

    /// Ends the process.
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It was not waited for, so that the number is still its own.
            let asked = Pid::from_child(&child);
            let ended = kill_process(asked, Signal::TERM).map_err(io::Error::from);
            if let Err(error) = ended.and_then(|()| child.wait().map(drop)) {
                tracing::error!(%error, "the dashboard could not be ended");
            }
        }
    }

    /// Ends it, and takes its address away.
    pub(crate) fn end(mut self) {
        self.stop();
        let file = address_file(&self.socket);
        if let Err(error) = fs::remove_file(&file) {
            tracing::warn!(%error, file = %file.display(), "the dashboard's address stays");
        }
    }
}
