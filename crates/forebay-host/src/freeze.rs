//! Stopping the tasks of a group where they stand.
//!
//! v2 has cgroup.freeze, and says in cgroup.events when none runs any more; v1 has
//! freezer.state, which is FREEZING until then. Every kernel that Forebay runs on has
//! cgroup.freeze (5.2; programs are supervised by pidfds of 5.3), so v1's freezer serves
//! where no v2 is mounted, and for groups of others that are not in it.
//!
//! A group of ours needs no record: it is thawed before it is emptied, whoever froze it. What
//! a group of others held is in the ledger, as of any knob.
//!
//! Two exceptions: the group of an instance behind a front carries a mark, an extended attribute, which
//! lives and dies with it. When such a group stands, its front fenced it for another one to serve, and
//! whoever is in it would execute what lies in its socket buffers: they are killed before they may go
//! on, whether or not the front is still there to do so. The group of an app that is being given to another
//! host carries a mark as well, while nobody knows whose it is: that host may let it run by then. The mark also
//! says what becomes of whoever stands there when no daemon comes that finds it out ([`Unclaimed`]).

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;

use crate::apply::Refusal;
use crate::error::HostError;
use crate::files::{keyed, read_text, write_text};
use crate::groups;
use crate::host::{Group, LinuxHost};
use crate::ledger::{Record, Spot};
use crate::mounts::Version;

/// How long a period waits for tasks to stand; one that is asked again goes on. A task that
/// waits for a disk stands only after that.
const PATIENCE: Duration = Duration::from_millis(20);
const POLL: Duration = Duration::from_millis(1);

const FILES: [(&str, Version); 2] = [
    ("cgroup.freeze", Version::V2),
    ("freezer.state", Version::V1),
];

/// The file by which a group is frozen.
#[derive(Debug)]
struct Freezer {
    file: PathBuf,
    version: Version,
}

impl Freezer {
    fn at(dir: &Path) -> Option<Self> {
        FILES
            .into_iter()
            .map(|(name, version)| Self {
                file: dir.join(name),
                version,
            })
            .find(|freezer| freezer.file.exists())
    }

    /// That of a group: v2's where it has one.
    fn of(group: &Group) -> Option<Self> {
        let all: Vec<Self> = group.all_dirs().into_iter().filter_map(Self::at).collect();
        all.into_iter()
            .max_by_key(|freezer| freezer.version == Version::V2)
    }

    fn spot(&self) -> Spot {
        Spot {
            file: self.file.clone(),
            device: None,
        }
    }

    const fn frozen(&self) -> &'static str {
        match self.version {
            Version::V1 => "FROZEN",
            Version::V2 => "1",
        }
    }

    const fn thawed(&self) -> &'static str {
        match self.version {
            Version::V1 => "THAWED",
            Version::V2 => "0",
        }
    }

    /// Whether nobody in the group runs.
    fn stands(&self) -> Result<bool, HostError> {
        match self.version {
            Version::V1 => Ok(read_text(&self.file)?.trim() == "FROZEN"),
            Version::V2 => {
                let events = read_text(&self.file.with_file_name("cgroup.events"))?;
                Ok(keyed(&events, "frozen") == Some(1))
            }
        }
    }

    /// Whether the group was asked to freeze.
    fn is_asked(&self) -> Result<bool, HostError> {
        Ok(read_text(&self.file)?.trim() != self.thawed())
    }

    fn thaw(&self) -> Result<(), HostError> {
        if self.is_asked()? {
            write_text(&self.file, self.thawed())?;
        }
        Ok(())
    }
}

/// Whether what comes into one of these groups stands at once: it was asked to freeze, or a
/// group above it was.
pub(crate) fn is_frozen(dirs: &[&Path]) -> bool {
    dirs.iter()
        .filter_map(|dir| Freezer::at(dir))
        .any(|freezer| {
            let asked = freezer.is_asked().unwrap_or(false);
            asked || freezer.stands().unwrap_or(false)
        })
}

/// Asks a group to freeze, and waits for nobody.
pub(crate) fn ask(dir: &Path) -> Result<(), HostError> {
    match Freezer::at(dir) {
        Some(freezer) if freezer.is_asked()? => Ok(()),
        Some(freezer) => write_text(&freezer.file, freezer.frozen()),
        None => Ok(()),
    }
}

/// A file by which a group is stopped, open beforehand, and what is written to it.
#[derive(Debug)]
pub struct Stop {
    pub(crate) file: File,
    pub(crate) word: &'static str,
}

/// Opens the file that stops a group; none where it has none.
pub(crate) fn open(dir: &Path) -> Result<Option<Stop>, HostError> {
    let Some(freezer) = Freezer::at(dir) else {
        return Ok(None);
    };
    let opened = OpenOptions::new().write(true).open(&freezer.file);
    let file = opened.map_err(|error| HostError::file("open", &freezer.file, error))?;
    let word = freezer.frozen();
    Ok(Some(Stop { file, word }))
}

/// Whether nobody in a group runs.
pub(crate) fn stands(dir: &Path) -> bool {
    Freezer::at(dir).is_some_and(|freezer| freezer.stands().unwrap_or(false))
}

/// The mark of a group that a front may fence.
const FENCED_BY_FRONT: &str = "user.forebay.fence";

/// Marks a group whose instance its front may fence.
pub(crate) fn mark(dir: &Path) -> Result<(), HostError> {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(dir, FENCED_BY_FRONT, b"1", flags)
        .map_err(|error| HostError::file("mark control group", dir, error))
}

/// The mark of a group whose app may be another host's already.
const GIVEN_AWAY: &str = "user.forebay.given";
/// No mark is longer.
const MARK_MAX: usize = 16;

/// What becomes of an app that stands still, and may be another host's, where no daemon comes that finds out
/// whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unclaimed {
    /// It is ended before its group goes on: whoever owns it starts it from its files.
    Ends,
    /// It stands on, for the next daemon: what it has in memory may be nowhere else.
    Stands,
    /// It stands on even where programs end with their daemon, and where everything is put back: it may go on at
    /// another host that fetches its memory from here.
    Lends,
}

impl Unclaimed {
    const fn mark(self) -> &'static [u8] {
        match self {
            Self::Ends => b"1",
            Self::Stands => b"stands",
            Self::Lends => b"lends",
        }
    }
}

/// Marks a group whose app is given to another host.
pub(crate) fn mark_given(dir: &Path, unclaimed: Unclaimed) -> Result<(), HostError> {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(dir, GIVEN_AWAY, unclaimed.mark(), flags)
        .map_err(|error| HostError::file("mark control group", dir, error))
}

/// Takes that mark away: the app is this host's for certain, or nobody is left in the group.
pub(crate) fn unmark_given(dir: &Path) -> Result<(), HostError> {
    match rustix::fs::removexattr(dir, GIVEN_AWAY) {
        Ok(()) | Err(rustix::io::Errno::NODATA) => Ok(()),
        Err(error) => Err(HostError::file("unmark control group", dir, error)),
    }
}

fn has(dir: &Path, mark: &str) -> bool {
    rustix::fs::getxattr(dir, mark, &mut [0_u8; MARK_MAX][..]).is_ok()
}

/// Whether a group is marked as one whose app is given to another host.
pub(crate) fn is_given(dir: &Path) -> bool {
    has(dir, GIVEN_AWAY)
}

/// Whether somebody stands in a group who is to stand there until a daemon knows whose it is, by one of these marks.
pub(crate) fn stands_unclaimed(dir: &Path, marks: &[Unclaimed]) -> bool {
    let mut value = [0_u8; MARK_MAX];
    let read = rustix::fs::getxattr(dir, GIVEN_AWAY, &mut value[..]);
    let is_to_stand = read.is_ok_and(|length| {
        let found = value.get(..length);
        marks.iter().any(|mark| found == Some(mark.mark()))
    });
    is_to_stand && is_frozen(&[dir]) && !groups::members(dir).is_empty()
}

/// Whether whoever is in a group was fenced by a front, or may run on another host.
fn is_fenced(dir: &Path) -> bool {
    let marked = has(dir, FENCED_BY_FRONT) || is_given(dir);
    marked && Freezer::at(dir).is_some_and(|freezer| freezer.is_asked().unwrap_or(true))
}

/// Lets everybody in these groups and below go on; whoever was fenced by a front is killed first.
pub(crate) fn thaw_all(dirs: &[&Path]) -> Result<(), HostError> {
    let mut outcome = Ok(());
    for dir in dirs {
        if is_fenced(dir) {
            tracing::warn!(group = %dir.display(), "fenced, and ended where it stands");
            groups::kill_standing(dir)?;
        }
        groups::walk(
            dir,
            0,
            &mut |dir| match Freezer::at(dir).map(|freezer| freezer.thaw()) {
                Some(Err(error)) if !error.is_gone() => outcome = Err(error),
                _ => {}
            },
        );
    }
    outcome
}

impl LinuxHost {
    /// Records what the freezer of a group of others holds.
    pub(crate) fn announce_freezer(&mut self, app: &AppId) -> Result<(), Refusal> {
        self.find_bound_group(app);
        let freezer = self.freezer(app)?;
        if self.is_bound(app) {
            self.announce_originals(app, vec![freezer.spot()])?;
        }
        Ok(())
    }

    pub(crate) fn freeze(&mut self, app: &AppId) -> Result<(), Refusal> {
        let freezer = self.freezer(app)?;
        if let Some(dir) = freezer.file.parent()
            && groups::members(dir).contains(&std::process::id())
        {
            return Err(Refusal::Failed(format!(
                "freeze {app}: the daemon is in {} itself; run it elsewhere",
                dir.display()
            )));
        }
        if !freezer.is_asked()? {
            self.write_freezer(app, &freezer, freezer.frozen())?;
        }
        let deadline = Instant::now() + PATIENCE;
        while !freezer.stands()? {
            if Instant::now() >= deadline {
                return Err(Refusal::Failed(format!(
                    "freeze {app}: some tasks still run, or wait for a device"
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    pub(crate) fn thaw(&mut self, app: &AppId) -> Result<(), Refusal> {
        let freezer = self.freezer(app)?;
        if freezer.is_asked()? {
            self.write_freezer(app, &freezer, freezer.thawed())?;
        }
        Ok(())
    }

    fn write_freezer(
        &mut self,
        app: &AppId,
        freezer: &Freezer,
        text: &str,
    ) -> Result<(), HostError> {
        if self.is_bound(app) {
            self.ledger.append(Record::Wrote {
                spot: freezer.spot(),
                text: text.to_owned(),
            })?;
        }
        write_text(&freezer.file, text)
    }

    fn freezer(&self, app: &AppId) -> Result<Freezer, Refusal> {
        let group = self.entries.get(app).and_then(|entry| entry.group.as_ref());
        let group = group.ok_or_else(|| {
            Refusal::Failed(format!("freeze or thaw {app}: it has no control group"))
        })?;
        Freezer::of(group).ok_or(Refusal::Unsupported)
    }

    fn is_bound(&self, app: &AppId) -> bool {
        self.entries
            .get(app)
            .is_some_and(|entry| entry.bound.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn each_version_says_in_its_way_whether_all_stand() {
        let check = |files: &[(&str, &str)], asked: bool, stands: bool, frozen: bool| {
            let dir = group(files);
            let freezer = Freezer::at(dir.path()).unwrap();
            assert_eq!(freezer.is_asked().unwrap(), asked, "{files:?}");
            assert_eq!(freezer.stands().unwrap(), stands, "{files:?}");
            assert_eq!(is_frozen(&[dir.path()]), frozen, "{files:?}");
        };
        let v2 = |freeze, events| [("cgroup.freeze", freeze), ("cgroup.events", events)];
        check(&v2("0\n", "populated 1\nfrozen 0\n"), false, false, false);
        check(&v2("1\n", "populated 1\nfrozen 0\n"), true, false, true);
        check(&v2("1\n", "populated 1\nfrozen 1\n"), true, true, true);
        // The group above is frozen.
        check(&v2("0\n", "populated 1\nfrozen 1\n"), false, true, true);
        check(&[("freezer.state", "THAWED\n")], false, false, false);
        check(&[("freezer.state", "FREEZING\n")], true, false, true);
        check(&[("freezer.state", "FROZEN\n")], true, true, true);
        assert!(Freezer::at(group(&[]).path()).is_none());
    }

    /// A front that died after it had fenced the primary left it to be thawed by the daemon that
    /// ended: the old primary executed what lay in its sockets.
    #[test]
    fn who_was_fenced_by_a_front_never_goes_on() {
        use std::io::Write as _;
        for root in [
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/freezer",
        ] {
            let name = format!("forebay-freeze-test-{}", std::process::id());
            let dir = Path::new(root).join(name);
            let able = fs::create_dir(&dir).is_ok() && Freezer::at(&dir).is_some();
            if !able {
                println!("SKIPPED: {root}: no group that can be frozen can be made here");
                fs::remove_dir(&dir).ok();
                continue;
            }
            let freezer = Freezer::at(&dir).unwrap();
            let until = |what: &str, is: &mut dyn FnMut() -> bool| {
                let deadline = Instant::now() + Duration::from_secs(30);
                while !is() {
                    assert!(Instant::now() < deadline, "{root}: {what}");
                    std::thread::yield_now();
                }
            };
            type Mark = fn(&Path) -> Result<(), HostError>;
            let given_and_kept: Mark =
                |dir| mark_given(dir, Unclaimed::Ends).and_then(|()| unmark_given(dir));
            let marks: [(Mark, bool); 6] = [
                (|_| Ok(()), false),
                (given_and_kept, false),
                (|dir| mark_given(dir, Unclaimed::Ends), true),
                // Whoever leaves it standing does not come here.
                (|dir| mark_given(dir, Unclaimed::Stands), true),
                (|dir| mark_given(dir, Unclaimed::Lends), true),
                (mark, true),
            ];
            for (mark, marked) in marks {
                let file = tempfile::NamedTempFile::new().unwrap();
                let mut command = std::process::Command::new("sh");
                let script = "read line; echo executed > \"$1\"; read line";
                let mut child = command
                    .args(["-c", script, "sh"])
                    .arg(file.path())
                    .stdin(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
                mark(&dir).unwrap();
                write_text(&freezer.file, freezer.frozen()).unwrap();
                until("it stands", &mut || freezer.stands().unwrap());
                let input = child.stdin.as_mut().unwrap();
                input.write_all(b"what lay in its input\n").unwrap();
                thaw_all(&[&dir]).unwrap();
                let executed = || fs::read_to_string(file.path()).unwrap() == "executed\n";
                if marked {
                    child.wait().unwrap();
                    assert!(!executed(), "{root}");
                } else {
                    until("it goes on", &mut || executed());
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
                assert!(!freezer.is_asked().unwrap());
                unmark_given(&dir).unwrap();
            }
            until("its group is removed", &mut || fs::remove_dir(&dir).is_ok());
        }
    }

    #[test]
    fn groups_below_are_thawed_too() {
        let dir = group(&[("freezer.state", "FROZEN\n")]);
        let below = dir.path().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("freezer.state"), "FREEZING\n").unwrap();
        thaw_all(&[dir.path(), Path::new("/no/such/group")]).unwrap();
        for dir in [dir.path(), &below] {
            let text = fs::read_to_string(dir.join("freezer.state")).unwrap();
            assert_eq!(text.lines().next(), Some("THAWED"));
        }
    }
}
