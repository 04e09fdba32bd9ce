//! The way `restart`: files go along, and the program starts anew on the target.
//!
//! While the application runs, its files are sent in rounds, each of which sends what changed during the
//! one before. Then it is frozen, which it survives if the move is given up, and what changed last is
//! sent. So the target starts from files as a power failure would leave them: a program that survives
//! one survives this.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Exec};
use forebay_core::fleet::arrival::{Found, Mark};
use forebay_core::fleet::rounds::Bounds;
use sha2::{Digest as _, Sha256};

use super::{address, luggage};
use crate::fleet::moves::{Apps, Coming, Content, Leaving, Phase, Road, Trouble, refuse};

/// What is wanted of the pause: starting a program anew takes longer anyhow.
const BOUNDS: Bounds = Bounds {
    aim: Duration::from_millis(200),
    most: Duration::from_secs(30),
    fixed: Duration::from_millis(50),
};
/// How long the application may take to stand still.
const FREEZE_MAX: Duration = Duration::from_secs(5);
/// How long it may take until no process of it is left.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);

/// What a target has to have.
pub(super) fn requirement(kind: &str, path: &Path) -> String {
    format!("{kind}:{}", path.display())
}

/// What starts the program, which has to be the same on both hosts. What is only here and there different by
/// right (its environment, where its output goes, when it is started again) is not compared.
fn started(exec: &Exec) -> [String; 4] {
    // Arguments may be longer than what one host says to another.
    let mut words = Sha256::new();
    for word in &exec.command {
        words.update(word.len().to_le_bytes());
        words.update(word);
    }
    let words = words.finalize();
    let words: String = words.iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = exec.directory.as_deref().unwrap_or(Path::new("/"));
    [
        format!("command:{words}"),
        format!("user:{}", exec.user.as_deref().unwrap_or_default()),
        format!("group:{}", exec.group.as_deref().unwrap_or_default()),
        requirement("works-in", directory),
    ]
}

/// What a target has to have of a program.
pub(super) fn needs(exec: &Exec) -> BTreeSet<String> {
    let mut requires = BTreeSet::new();
    if let Some(program) = exec.command.first() {
        requires.insert(requirement("program", Path::new(program)));
    }
    requires.extend(started(exec));
    if let Some(directory) = &exec.directory {
        requires.insert(requirement("directory", directory));
    }
    requires
}

/// Whether a target has what is needed of a program; none where it is no need of one.
pub(super) fn has(
    app: &AppId,
    exec: &Exec,
    (kind, what): (&str, &str),
) -> Option<Result<(), String>> {
    let path = Path::new(what);
    let host = "on the target";
    Some(match kind {
        "program" if !path.is_file() => Err(format!(
            "the program {what} is missing {host}; install it there"
        )),
        "directory" if !path.is_dir() => Err(format!(
            "the directory {what} is missing {host}; make it there"
        )),
        "program" | "directory" => Ok(()),
        "command" | "user" | "group" | "works-in" => {
            let own = started(exec);
            let is_own = |own: &&String| own.split_once(':') == Some((kind, what));
            let key = match kind {
                "command" => "exec",
                "works-in" => "directory",
                other => other,
            };
            own.iter().find(is_own).map(|_| ()).ok_or_else(|| {
                format!(
                    "{app} has another `{key}` {host}; write the same [apps.{app}] on all hosts"
                )
            })
        }
        _ => return None,
    })
}

/// What is said of a need that this release does not know.
pub(super) fn unknown(required: &str) -> String {
    format!("`{required}` is asked for, which this release does not know on the target; update it")
}

/// Freezes an application, and waits until it stands.
pub(super) fn stand_still(apps: &dyn Apps, app: &AppId) -> Result<(), Trouble> {
    let deadline = Instant::now() + FREEZE_MAX;
    loop {
        match apps.freeze(app) {
            Ok(()) => return Ok(()),
            Err(trouble) if Instant::now() >= deadline => return Err(trouble),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Ends an application, and waits until no process of it is left.
pub(super) fn end(apps: &dyn Apps, app: &AppId) -> Result<(), Trouble> {
    apps.end(app)?;
    let deadline = Instant::now() + END_MAX;
    while apps.runs(app) != Some(false) {
        if Instant::now() >= deadline {
            return Err(Trouble::Unknown(format!(
                "end {app}: some of its processes are still there; see `forebay explain {app}`"
            )));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// On the source.
#[derive(Debug)]
pub(crate) struct Leaves {
    app: AppId,
    /// What the target has to have of its address.
    address: Option<String>,
    files: luggage::Leaves,
    apps: Arc<dyn Apps>,
}

impl Leaves {
    pub(super) const fn new(
        app: AppId,
        address: Option<String>,
        files: luggage::Leaves,
        apps: Arc<dyn Apps>,
    ) -> Self {
        Self {
            app,
            address,
            files,
            apps,
        }
    }
}

impl Leaving for Leaves {
    fn check(&mut self) -> Result<BTreeSet<String>, Trouble> {
        let app = self.apps.app(&self.app);
        let app = app.ok_or_else(|| Trouble::Refused(format!("there is no app {}", self.app)))?;
        let Binding::Exec(exec) = &app.binding else {
            return refuse(format!(
                "{} is not started by Forebay, so that it cannot be started elsewhere; bind it with `exec`",
                self.app
            ));
        };
        if self.apps.runs(&self.app) != Some(true) {
            return refuse(format!(
                "{} does not run here; `forebay explain {0}` says why",
                self.app
            ));
        }
        address::is_here(&*self.apps, &self.app)?;
        let mut requires = self.files.check()?;
        requires.extend(needs(exec));
        requires.extend(self.address.clone());
        Ok(requires)
    }

    fn copy(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        self.files.copy(road, BOUNDS)
    }

    fn freeze(&mut self) -> Result<(), Trouble> {
        stand_still(&*self.apps, &self.app)?;
        self.apps.leave_address(&self.app)
    }

    fn send(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        let contents = self.files.send_last(road)?;
        road.peer.prepare(road.to, road.of, &contents)
    }

    fn thaw(&mut self) -> Result<(), Trouble> {
        address::answer(&*self.apps, &self.app);
        self.apps.thaw(&self.app)
    }

    fn end(&mut self) -> Result<(), Trouble> {
        end(&*self.apps, &self.app)
    }
}

/// On the target.
#[derive(Debug)]
pub(crate) struct Comes {
    app: AppId,
    binding: Binding,
    files: luggage::Comes,
    apps: Arc<dyn Apps>,
}

impl Comes {
    pub(super) fn new(app: &App, files: luggage::Comes, apps: Arc<dyn Apps>) -> Self {
        Self {
            app: app.id.clone(),
            binding: app.binding.clone(),
            files,
            apps,
        }
    }
}

impl Coming for Comes {
    fn fits(&self, requires: &BTreeSet<String>) -> Result<(), String> {
        let Binding::Exec(exec) = &self.binding else {
            return Err(format!(
                "{} is not started by Forebay on the target; bind it with `exec` there, too",
                self.app
            ));
        };
        for required in requires {
            let need = required.split_once(':').unwrap_or((required, ""));
            let has = self.files.has(need).or_else(|| has(&self.app, exec, need));
            let has = has.or_else(|| address::has(&self.app, &*self.apps, need));
            has.unwrap_or_else(|| Err(unknown(required)))?;
        }
        self.files.has_all(requires)
    }

    fn take(
        &mut self,
        (_, content, bytes): (Phase, &Content, u64),
        from: &mut dyn Read,
    ) -> Result<(), String> {
        let taken = self.files.take((content, bytes), from);
        taken.unwrap_or_else(|| {
            Err(format!(
                "`{}` is not known to this release; update the target",
                content.kind
            ))
        })
    }

    fn prepare(&mut self, contents: &[Content]) -> Result<(), Trouble> {
        self.files.complete(contents)
    }

    fn start(&mut self) -> Result<(), Trouble> {
        if self.apps.runs(&self.app) == Some(true) {
            return Ok(());
        }
        self.files.staged.place_all().map_err(Trouble::Refused)?;
        let started = self.apps.start(&self.app);
        if let Err(Trouble::Refused(_)) = started {
            // It goes back, and is reached there.
            self.apps.leave_address(&self.app)?;
        }
        started
    }

    fn discard(&mut self) -> Result<(), Trouble> {
        self.files.staged.discard().map_err(Trouble::Refused)
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        self.files.staged.settle().map_err(Trouble::Refused)
    }

    fn found(&self, mark: Mark) -> Found {
        let is_fresh = match mark {
            Mark::Starting if self.apps.runs(&self.app) == Some(true) => return Found::Started,
            Mark::Starting => self.files.staged.is_whole(),
            Mark::Receiving | Mark::Prepared | Mark::Dropped => self.files.staged.is_complete(),
        };
        match is_fresh {
            true => Found::Fresh,
            false => Found::Nothing,
        }
    }
}
