//! Files that came, beside those that were there, until it is known whose the application is.
//!
//! For a declared path `/srv/shop/orders` what comes is gathered in `/srv/shop/.orders.forebay-comes`.
//! When the application is this host's, what was there goes to `/srv/shop/.orders.forebay-before` and
//! what came takes its place, each by one rename; what was there is removed once the application runs.
//!
//! A declared path that is not on the source is not here either then. Each of these can be cut short
//! anywhere and done again. What is on disk of it, [`LIST`] in the state directory, is written when all
//! came whole, and again when all is placed: before that nothing of it ever ran.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use forebay_core::app::AppId;
use serde::{Deserialize, Serialize};

use super::files::{Entries, Entry, What};

/// Where what came is written down, in the state directory.
const LIST: &str = "comes";
/// A longer list is refused.
pub(super) const LIST_BYTES_MAX: u64 = 64 << 20;

/// What came whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    /// Everything is in its place.
    placed: bool,
    /// By declared path.
    roots: BTreeMap<PathBuf, Root>,
}

/// What is known of one declared path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Root {
    /// The source has something there.
    came: bool,
    /// Something was there.
    was_there: bool,
}

/// The files of one application on their way here.
#[derive(Debug)]
pub(super) struct Staged {
    app: AppId,
    roots: Vec<PathBuf>,
    list: PathBuf,
}

fn beside(root: &Path, suffix: &str) -> PathBuf {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    root.with_file_name(format!(".{name}.forebay-{suffix}"))
}

/// What is gathered for a declared path.
fn comes(root: &Path) -> PathBuf {
    beside(root, "comes")
}

/// What is coming in of one file, on the same file system.
fn part(root: &Path) -> PathBuf {
    beside(root, "part")
}

/// What was there.
fn before(root: &Path) -> PathBuf {
    beside(root, "before")
}

fn failed<'a>(attempt: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> String + 'a {
    move |error| format!("{attempt} {}: {error}; check the disk", path.display())
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Removes whatever stands there.
fn remove(path: &Path) -> Result<(), String> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), String> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(failed("sync", path))
}

fn sync_parent(path: &Path) -> Result<(), String> {
    path.parent().map_or(Ok(()), sync)
}

impl Staged {
    pub(super) fn new(app: &AppId, roots: &[PathBuf], state_dir: &Path) -> Self {
        Self {
            app: app.clone(),
            roots: roots.to_vec(),
            list: state_dir.join(format!("{LIST}.{app}.json")),
        }
    }

    /// Where something of this name is gathered.
    fn place(&self, name: &str) -> Result<PathBuf, String> {
        let path = Path::new(name);
        let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        // Two ways to write one path would be two entries at one place.
        let parts: PathBuf = path.components().collect();
        let is_one_way = parts.as_os_str() == path.as_os_str();
        let root = self.roots.iter().find(|root| path.starts_with(root));
        match root {
            Some(root) if is_one_way && path.components().all(is_plain) => {
                let below = path.strip_prefix(root).unwrap_or(Path::new(""));
                // An empty path would add a slash.
                Ok(match below.as_os_str().is_empty() {
                    true => comes(root),
                    false => comes(root).join(below),
                })
            }
            _ => Err(format!(
                "{name} is in none of the `move.files` that {} has on this host; give it the same on all",
                self.app
            )),
        }
    }

    /// Makes room for what comes; what an earlier attempt left is removed.
    pub(super) fn clear(&self) -> Result<(), String> {
        remove(&self.list)?;
        self.roots.iter().try_for_each(|root| {
            remove(&part(root))?;
            remove(&comes(root))
        })
    }

    /// The declared path that a name is at or below.
    fn root(&self, name: &str) -> Option<&PathBuf> {
        self.roots
            .iter()
            .find(|root| Path::new(name).starts_with(root))
    }

    /// Makes the directories above something that comes. What stands there and is no directory (a file, of a
    /// round before) makes way: nothing is written through a link.
    fn room_for(&self, name: &str) -> Result<PathBuf, String> {
        let place = self.place(name)?;
        let top = self.root(name).map(|root| comes(root));
        let mut above: Vec<&Path> = place.ancestors().skip(1).collect();
        above.retain(|dir| top.as_ref().is_some_and(|top| dir.starts_with(top)));
        for dir in above.into_iter().rev() {
            if !dir.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                remove(dir)?;
                // Nobody but root looks in before all is there.
                let made = DirBuilder::new().mode(0o700).create(dir);
                made.map_err(failed("make", dir))?;
            }
        }
        if place.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            remove(&place)?;
        }
        Ok(place)
    }

    /// Refuses a list in which something stands in what is no directory of it: what comes would be written
    /// wherever a link leads.
    fn is_sound(&self, entries: &Entries) -> Result<(), String> {
        for name in entries.keys() {
            self.place(name)?;
            let path = Path::new(name);
            let above = path.parent().and_then(Path::to_str);
            let above = above.and_then(|above| entries.get(above));
            let is_within = above.is_some_and(|above| above.what == What::Directory);
            if !is_within && !self.roots.iter().any(|root| root == path) {
                return Err(format!(
                    "{name} is in no directory of the list that came with {}; update the source",
                    self.app
                ));
            }
        }
        Ok(())
    }

    /// Takes in one file, which replaces what came of it before when it is whole.
    pub(super) fn take(&self, name: &str, bytes: u64, from: &mut dyn Read) -> Result<(), String> {
        let place = self.room_for(name)?;
        let part = part(self.root(name).unwrap_or(&place));
        remove(&part)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(failed("create", &part))?;
        let came = io::copy(&mut from.take(bytes), &mut file).map_err(failed("write", &part))?;
        if came != bytes {
            remove(&part)?;
            return Err(format!(
                "{came} of {bytes} bytes of {name} came; send it again"
            ));
        }
        file.sync_all().map_err(failed("sync", &part))?;
        fs::rename(&part, &place).map_err(failed("place", &place))
    }

    /// Makes what came what the list says, and durable.
    pub(super) fn complete(&self, entries: &Entries) -> Result<(), String> {
        self.is_sound(entries)?;
        for root in &self.roots {
            self.prune(&comes(root), entries)?;
        }
        for (name, entry) in entries {
            self.shape(&self.place(name)?, name, entry)?;
        }
        // Innermost first: making something in a directory changes its times.
        for (name, entry) in entries.iter().rev() {
            dress(&self.place(name)?, entry)?;
        }
        let mut roots = BTreeMap::new();
        for root in &self.roots {
            let state = Root {
                came: is_there(&comes(root)),
                was_there: is_there(root),
            };
            if state.came {
                sync_parent(root)?;
            }
            // Of a move before this one: whoever came then ran, or was removed.
            remove(&before(root))?;
            roots.insert(root.clone(), state);
        }
        self.write(&Whole {
            placed: false,
            roots,
        })
    }

    /// Removes what came and is gone on the source by now.
    fn prune(&self, dir: &Path, entries: &Entries) -> Result<(), String> {
        let wanted: std::collections::BTreeSet<PathBuf> = entries
            .keys()
            .filter_map(|name| self.place(name).ok())
            .collect();
        let mut dirs = vec![dir.to_owned()];
        while let Some(path) = dirs.pop() {
            if !wanted.contains(&path) {
                remove(&path)?;
            } else if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                let listed = fs::read_dir(&path).map_err(failed("list", &path))?;
                for child in listed {
                    dirs.push(child.map_err(failed("list", &path))?.path());
                }
            }
        }
        Ok(())
    }

    fn shape(&self, place: &Path, name: &str, entry: &Entry) -> Result<(), String> {
        let found = place.symlink_metadata().ok();
        match &entry.what {
            What::Directory => match found {
                Some(found) if found.is_dir() => Ok(()),
                _ => {
                    remove(place)?;
                    let made = DirBuilder::new().mode(0o700).create(place);
                    made.map_err(failed("make", place))
                }
            },
            What::Link { to } => {
                remove(place)?;
                symlink(to, place).map_err(failed("link", place))
            }
            What::File { bytes } => match found {
                Some(found) if found.is_file() && found.len() == *bytes => Ok(()),
                _ => Err(format!(
                    "{name} did not come whole; move {} again",
                    self.app
                )),
            },
        }
    }

    fn write(&self, whole: &Whole) -> Result<(), String> {
        let json = serde_json::to_vec(whole).map_err(|error| error.to_string())?;
        let new = self.list.with_extension("new");
        let mut file = File::create(&new).map_err(failed("create", &new))?;
        file.write_all(&json)
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &new))?;
        fs::rename(&new, &self.list).map_err(failed("replace", &self.list))?;
        sync_parent(&self.list)
    }

    fn whole(&self) -> Result<Option<Whole>, String> {
        match fs::read(&self.list) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                format!(
                    "read {}: {error}; look at the files of {} before it is removed",
                    self.list.display(),
                    self.app
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &self.list)(error)),
        }
    }

    /// Whether all came whole, and nothing of it ran.
    pub(super) fn is_whole(&self) -> bool {
        let Ok(Some(whole)) = self.whole() else {
            return false;
        };
        !whole.placed
    }

    /// Whether nothing is missing of what came whole.
    pub(super) fn is_complete(&self) -> bool {
        let Ok(Some(whole)) = self.whole() else {
            return false;
        };
        let mut came = whole.roots.iter().filter(|(_, state)| state.came);
        !whole.placed && came.all(|(root, _)| is_there(&comes(root)))
    }

    /// Puts what came in its place; what was there stays aside.
    pub(super) fn place_all(&self) -> Result<(), String> {
        let Some(whole) = self.whole()? else {
            return Err(format!(
                "place the files of {}: {} is missing; move it again",
                self.app,
                self.list.display()
            ));
        };
        if whole.placed {
            return Ok(());
        }
        for (root, state) in &whole.roots {
            let is_aside = is_there(&before(root));
            if state.was_there && !is_aside && is_there(root) {
                fs::rename(root, before(root)).map_err(failed("lay aside", root))?;
            }
            if state.came && is_there(&comes(root)) {
                fs::rename(comes(root), root).map_err(failed("place", root))?;
            }
            sync_parent(root)?;
        }
        self.write(&Whole {
            placed: true,
            ..whole
        })
    }

    /// Removes what came, and puts back what was there. Nothing of it ever ran.
    pub(super) fn discard(&self) -> Result<(), String> {
        if let Some(whole) = self.whole()? {
            for (root, state) in &whole.roots {
                let placed = state.came && !is_there(&comes(root));
                if is_there(&before(root)) {
                    if placed {
                        remove(root)?;
                    }
                    fs::rename(before(root), root).map_err(failed("put back", root))?;
                } else if placed && !state.was_there {
                    remove(root)?;
                }
                remove(&comes(root))?;
                sync_parent(root)?;
            }
        }
        self.clear()
    }

    /// What was there is not needed any more.
    pub(super) fn settle(&self) -> Result<(), String> {
        if let Some(whole) = self.whole()? {
            if !whole.placed {
                return Err(format!(
                    "the files of {} are not in their place: look at {}",
                    self.app,
                    self.list.display()
                ));
            }
            whole
                .roots
                .keys()
                .try_for_each(|root| remove(&before(root)))?;
        }
        self.clear()
    }
}

/// Gives it its owner, its mode and its times, and makes it durable.
fn dress(place: &Path, entry: &Entry) -> Result<(), String> {
    let is_link = matches!(entry.what, What::Link { .. });
    std::os::unix::fs::lchown(place, Some(entry.uid), Some(entry.gid))
        .map_err(failed("give to its owner", place))?;
    if !is_link {
        let mode = fs::Permissions::from_mode(entry.mode);
        fs::set_permissions(place, mode).map_err(failed("set the mode of", place))?;
    }
    let time = rustix::fs::Timespec {
        tv_sec: entry.modified_ns.div_euclid(1_000_000_000),
        tv_nsec: entry.modified_ns.rem_euclid(1_000_000_000),
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        place,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|error| failed("set the time of", place)(error.into()))?;
    if is_link { Ok(()) } else { sync(place) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    struct Stage {
        dir: tempfile::TempDir,
        staged: Staged,
    }

    impl Stage {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["srv", "state", "outside"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            fs::write(dir.path().join("outside/file"), "theirs").unwrap();
            let app = "web".parse().unwrap();
            let staged = Staged::new(
                &app,
                &[dir.path().join("srv/data")],
                &dir.path().join("state"),
            );
            Self { dir, staged }
        }

        fn name(&self, name: &str) -> String {
            format!("{}/{name}", self.dir.path().display())
        }

        fn take(&self, name: &str, text: &str) -> Result<(), String> {
            let bytes = u64::try_from(text.len()).unwrap();
            self.staged
                .take(&self.name(name), bytes, &mut text.as_bytes())
        }

        fn entry(&self, name: &str, what: What, mode: u32) -> (String, Entry) {
            let own = self.dir.path().metadata().unwrap();
            let entry = Entry {
                what,
                mode,
                uid: own.uid(),
                gid: own.gid(),
                modified_ns: 1_000_000_000,
            };
            (self.name(name), entry)
        }

        fn list(&self, entries: &[(&str, What)]) -> Entries {
            let entries = entries.iter();
            entries
                .map(|(name, what)| self.entry(name, what.clone(), 0o777))
                .collect()
        }

        /// What is outside is as it was.
        #[track_caller]
        fn is_untouched(&self) {
            let outside = self.dir.path().join("outside");
            let names: Vec<_> = fs::read_dir(&outside)
                .unwrap()
                .map(|one| one.unwrap().file_name())
                .collect();
            assert_eq!(names, ["file"]);
            let file = outside.join("file");
            assert_ne!(
                file.metadata().unwrap().mode() & 0o777,
                0o777,
                "its mode was changed"
            );
            assert_eq!(fs::read_to_string(file).unwrap(), "theirs");
        }
    }

    #[test]
    fn a_list_with_something_below_a_link_is_refused() {
        let check = |between: &[(&str, What)]| {
            let stage = Stage::new();
            stage.take("srv/data/fixed", "x").unwrap();
            let to = stage.name("outside");
            let mut entries = vec![
                ("srv/data", What::Directory),
                ("srv/data/l", What::Link { to }),
                ("srv/data/l/file", What::File { bytes: 6 }),
            ];
            entries.extend_from_slice(between);
            let refused = stage.staged.complete(&stage.list(&entries)).unwrap_err();
            assert!(refused.contains("srv/data"), "{refused}");
            stage.is_untouched();
            assert!(!stage.staged.is_whole());
        };
        check(&[]);
        check(&[("srv/data/l/new", What::Directory)]);
        // One place under two names, of which one is a directory.
        check(&[
            ("srv/data//l", What::Directory),
            ("srv/data//l/file", What::File { bytes: 6 }),
        ]);
        check(&[("srv/data/./l", What::Directory)]);
    }

    #[test]
    fn no_file_is_taken_in_through_a_link() {
        let stage = Stage::new();
        stage.take("srv/data/fixed", "x").unwrap();
        let place = stage.staged.place(&stage.name("srv/data/l")).unwrap();
        symlink(stage.name("outside"), &place).unwrap();
        stage.take("srv/data/l/new", "y").unwrap();
        stage.is_untouched();
        assert!(place.symlink_metadata().unwrap().is_dir());
    }

    /// Between two rounds the application may put a directory where a file was, and the other way round.
    #[test]
    fn what_becomes_another_kind_between_rounds_comes_as_it_is_last() {
        let stage = Stage::new();
        stage.take("srv/data/a", "a file").unwrap();
        stage.take("srv/data/b/in", "in a directory").unwrap();
        stage.take("srv/data/a/in", "now").unwrap();
        stage.take("srv/data/b", "a file").unwrap();
        let entries = stage.list(&[
            ("srv/data", What::Directory),
            ("srv/data/a", What::Directory),
            ("srv/data/a/in", What::File { bytes: 3 }),
            ("srv/data/b", What::File { bytes: 6 }),
        ]);
        stage.staged.complete(&entries).unwrap();
        stage.staged.place_all().unwrap();
        stage.staged.settle().unwrap();
        let read = |name: &str| fs::read_to_string(stage.name(name)).unwrap();
        assert_eq!(
            (read("srv/data/a/in"), read("srv/data/b")),
            ("now".into(), "a file".into())
        );
        let left: Vec<_> = fs::read_dir(stage.name("srv"))
            .unwrap()
            .map(|one| one.unwrap().file_name())
            .collect();
        assert_eq!(left, ["data"], "nothing is left beside it");
    }
}
