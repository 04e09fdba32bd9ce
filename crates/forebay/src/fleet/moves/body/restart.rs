//! The way `restart`: files go along, and the program starts anew on the target.
//!
//! While the application runs, its files are sent in rounds, each of which sends what changed during the
//! one before. Then it is frozen, which it survives if the move is given up, and what changed last is
//! sent. So the target starts from files as a power failure would leave them: a program that survives
//! one survives this.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Exec};
use forebay_core::fleet::arrival::{Found, Mark};
use forebay_core::fleet::rounds::{Bounds, Round, Verdict, judge};
use forebay_core::units::Bytes;
use sha2::{Digest as _, Sha256};

use super::files::{self, Entries, Scan, Stamp};
use super::staged::{LIST_BYTES_MAX, Staged};
use crate::fleet::moves::note::Counted;
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

/// The name of the list of everything.
const LIST: &str = "entries";

/// What a target has to have.
fn requirement(kind: &str, path: &Path) -> String {
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
    files: Vec<PathBuf>,
    apps: Arc<dyn Apps>,
    /// What the target has, by name.
    sent: BTreeMap<String, Stamp>,
}

impl Leaves {
    pub(super) fn new(app: AppId, files: Vec<PathBuf>, apps: Arc<dyn Apps>) -> Self {
        Self {
            app,
            files,
            apps,
            sent: BTreeMap::new(),
        }
    }

    fn scan(&self) -> Result<Scan, Trouble> {
        files::scan(&self.files)
            .map_err(|why| Trouble::Refused(format!("move {}: {why}", self.app)))
    }

    /// Sends what may differ from what the target has; how many bytes.
    fn send_news(&mut self, scan: &Scan, phase: Phase, road: &Road<'_>) -> Result<u64, Trouble> {
        let news = scan.news(&self.sent);
        road.note.expect(news.iter().map(|(_, bytes)| bytes).sum());
        let mut sent = 0_u64;
        for (name, _) in news {
            if road.note.is_cancelled() && matches!(phase, Phase::Copy(_)) {
                return refuse(format!("move {}: it was cancelled", self.app));
            }
            let Some(opened) = files::open(&self.files, &name).map_err(Trouble::Refused)? else {
                continue;
            };
            let content = Content {
                name: name.clone(),
                kind: "file".to_owned(),
            };
            let mut from = Counted {
                // One that became shorter meanwhile is another by that, and is sent again.
                from: opened.file.chain(std::io::repeat(0)),
                note: road.note,
            };
            let parcel = (phase, &content, opened.bytes);
            road.peer.send(road.to, road.of, parcel, &mut from)?;
            sent = sent.saturating_add(opened.bytes);
            self.sent.insert(name, opened.stamp);
        }
        Ok(sent)
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
        self.scan()?;
        let mut requires = needs(exec);
        for file in &self.files {
            requires.insert(requirement("moves", file));
            if let Some(parent) = file.parent() {
                requires.insert(requirement("directory", parent));
            }
        }
        Ok(requires)
    }

    fn copy(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        let mut rounds = Vec::new();
        loop {
            let began = Instant::now();
            let scan = self.scan()?;
            let number = u32::try_from(rounds.len() + 1).unwrap_or(u32::MAX);
            let copied = self.send_news(&scan, Phase::Copy(number), road)?;
            let took = began.elapsed();
            // What is only too young to be sure of is sent again anyhow, and counts.
            let left = self.scan()?.news(&self.sent);
            rounds.push(Round {
                copied: Bytes(copied),
                took,
                left: Bytes(left.iter().map(|(_, bytes)| bytes).sum()),
            });
            match judge(BOUNDS, &rounds) {
                Verdict::Again => {}
                Verdict::Freeze(_) => return Ok(()),
                Verdict::Stay(pause) => {
                    let pause = pause.map_or_else(String::new, |pause| {
                        format!(", so that it would stand still for {pause:.1?}")
                    });
                    return refuse(format!(
                        "{} changes its files faster than they can be sent{pause}; move it when it does \
                         less, or put them on storage that the hosts share",
                        self.app
                    ));
                }
            }
        }
    }

    fn freeze(&mut self) -> Result<(), Trouble> {
        stand_still(&*self.apps, &self.app)
    }

    fn send(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        let scan = self.scan()?;
        self.send_news(&scan, Phase::Final, road)?;
        let list = serde_json::to_vec(&scan.entries).map_err(|error| {
            Trouble::Refused(format!("list the files of {}: {error}", self.app))
        })?;
        let content = Content {
            name: LIST.to_owned(),
            kind: "list".to_owned(),
        };
        let bytes = u64::try_from(list.len()).unwrap_or(u64::MAX);
        let parcel = (Phase::Final, &content, bytes);
        road.peer
            .send(road.to, road.of, parcel, &mut list.as_slice())?;
        road.peer.prepare(road.to, road.of, &[content])
    }

    fn thaw(&mut self) -> Result<(), Trouble> {
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
    files: Vec<PathBuf>,
    apps: Arc<dyn Apps>,
    staged: Staged,
    /// Whether what an earlier attempt left was removed.
    is_clear: bool,
    entries: Option<Entries>,
}

impl Comes {
    pub(super) fn new(app: &App, files: &[PathBuf], apps: Arc<dyn Apps>, state_dir: &Path) -> Self {
        Self {
            app: app.id.clone(),
            binding: app.binding.clone(),
            files: files.to_vec(),
            apps,
            staged: Staged::new(&app.id, files, state_dir),
            is_clear: false,
            entries: None,
        }
    }

    fn has(&self, exec: &Exec, required: &str) -> Result<(), String> {
        let (kind, what) = required.split_once(':').unwrap_or((required, ""));
        let path = Path::new(what);
        match kind {
            "moves" if !self.files.iter().any(|file| file == path) => Err(format!(
                "{what} is not among the `move.files` of {} on the target; give it the same on all hosts",
                self.app
            )),
            "moves" => self.takes_place_of(path),
            _ => has(&self.app, exec, (kind, what)).unwrap_or_else(|| Err(unknown(required))),
        }
    }

    /// Whether what comes can take the place of what is there, by a rename.
    fn takes_place_of(&self, path: &Path) -> Result<(), String> {
        files::no_link(path).map_err(|why| format!("on the target, {why}"))?;
        let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
        let (own, parent) = (device(path), path.parent().and_then(device));
        match own.is_some() && own != parent {
            true => Err(format!(
                "{} is a file system of its own on the target, which nothing can take the place of; name what \
                 is in it in the `move.files` of {}",
                path.display(),
                self.app
            )),
            false => Ok(()),
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
            self.has(exec, required)?;
        }
        // What only this host counts among its files would be removed, as something that the source has not.
        let moves = |file: &&PathBuf| !requires.contains(&requirement("moves", file));
        match self.files.iter().find(moves) {
            None => Ok(()),
            Some(more) => Err(format!(
                "{} is among the `move.files` of {} on the target and not on the source; give it the same on \
                 all hosts",
                more.display(),
                self.app
            )),
        }
    }

    fn take(
        &mut self,
        (_, content, bytes): (Phase, &Content, u64),
        from: &mut dyn Read,
    ) -> Result<(), String> {
        if !self.is_clear {
            self.staged.clear()?;
            self.is_clear = true;
        }
        match content.kind.as_str() {
            "file" => self.staged.take(&content.name, bytes, from),
            "list" if bytes > LIST_BYTES_MAX => Err(format!(
                "a list of {bytes} bytes is too long; move fewer files"
            )),
            "list" => {
                let entries = serde_json::from_reader(BufReader::new(from.take(bytes)));
                let entries: Entries = entries.map_err(|error| {
                    format!(
                        "the list of the files of {}: {error}; send it again",
                        self.app
                    )
                })?;
                self.entries = Some(entries);
                Ok(())
            }
            other => Err(format!(
                "`{other}` is not known to this release; update the target"
            )),
        }
    }

    fn prepare(&mut self, contents: &[Content]) -> Result<(), Trouble> {
        let is_named = contents.iter().any(|content| content.name == LIST);
        match &self.entries {
            Some(entries) if is_named => self.staged.complete(entries).map_err(Trouble::Refused),
            _ => refuse(format!(
                "the list of the files of {} did not come",
                self.app
            )),
        }
    }

    fn start(&mut self) -> Result<(), Trouble> {
        if self.apps.runs(&self.app) == Some(true) {
            return Ok(());
        }
        self.staged.place_all().map_err(Trouble::Refused)?;
        self.apps.start(&self.app)
    }

    fn discard(&mut self) -> Result<(), Trouble> {
        self.staged.discard().map_err(Trouble::Refused)
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        self.staged.settle().map_err(Trouble::Refused)
    }

    fn found(&self, mark: Mark) -> Found {
        let is_fresh = match mark {
            Mark::Starting if self.apps.runs(&self.app) == Some(true) => return Found::Started,
            Mark::Starting => self.staged.is_whole(),
            Mark::Receiving | Mark::Prepared | Mark::Dropped => self.staged.is_complete(),
        };
        match is_fresh {
            true => Found::Fresh,
            false => Found::Nothing,
        }
    }
}
