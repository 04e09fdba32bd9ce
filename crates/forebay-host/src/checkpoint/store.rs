//! Where images are, which are whole, and which may be used.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_core::app::AppId;
use serde::{Deserialize, Serialize};

use super::over_boot::Kept;
use crate::error::HostError;
use crate::files::read_text;
use crate::ledger::Process;
use crate::supervise::Begun;

/// What is written beside an image.
const DESCRIPTION: &str = "image.json";
const FAILED: &str = "failed";
const RESTORED: &str = "restored";
const PART: &str = "part";
const REFUSED: &str = "refused";
const RUNNING: &str = "running.json";

/// The images of all apps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    root: PathBuf,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Counts the images of an app.
    #[serde(skip)]
    pub number: u64,
    /// What the program was begun with.
    pub begun: Begun,
    /// Its main process, which has the same number when it begins anew.
    pub pid: u32,
    /// The boot that it was taken in.
    pub boot: String,
    /// When, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// How long the program stood, in microseconds.
    pub pause_us: Option<u64>,
    /// How large it is: the sum of what CRIU wrote, without its logs.
    pub bytes: u64,
    /// It is good for the boot after that one as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// A program that runs, of which images are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) begun: Begun,
    /// It goes on from an image that was kept over a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kept: Option<Went>,
}

/// How a program was kept over a boot: for which update, and, in milliseconds since 1970, from when until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Went {
    pub(super) update: u64,
    pub(super) stopped_unix_ms: u64,
    pub(super) on_unix_ms: u64,
}

/// What became of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The program was begun from an image.
    Restored(String),
    /// It was not, and why.
    Failed(String),
}

impl Store {
    /// In a state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("images"),
        }
    }

    fn of(&self, app: &AppId) -> PathBuf {
        self.root.join(app.as_str())
    }

    /// The image that a command of ours names.
    pub(crate) fn named(&self, app: &AppId, restore: &[String]) -> Option<Image> {
        let place = restore
            .iter()
            .position(|word| word == super::criu::IMAGES_DIR)?;
        let directory = Path::new(restore.get(place + 1)?);
        let number = directory.file_name()?.to_str()?.parse().ok()?;
        self.image(app, number).ok()
    }

    /// The newest image that is whole, whoever may use it.
    ///
    /// # Errors
    /// When the directory or what is written beside the image cannot be read.
    pub fn newest(&self, app: &AppId) -> Result<Option<Image>, HostError> {
        let number = self.numbers(app)?.into_iter().max();
        number.map(|number| self.image(app, number)).transpose()
    }

    fn image(&self, app: &AppId, number: u64) -> Result<Image, HostError> {
        let file = self.directory(app, number).join(DESCRIPTION);
        let text = read_text(&file)?;
        let image: Image = serde_json::from_str(&text).map_err(|error| {
            HostError::invalid(
                format!("read {}: {error}", file.display()),
                "remove its directory; the next image is taken as usual",
            )
        })?;
        Ok(Image { number, ..image })
    }

    /// The newest image, if a program that is begun like this may begin from it. One of another boot has to be as it
    /// was written as well ([`Self::check_kept`]).
    ///
    /// # Errors
    /// As those of [`Self::newest`].
    pub(crate) fn usable(
        &self,
        app: &AppId,
        begun: &Begun,
        proc_root: &Path,
    ) -> Result<Option<Image>, HostError> {
        let Some(image) = self.newest(app)? else {
            return Ok(None);
        };
        let is_ours = image.boot == boot(proc_root)?;
        let is_kept = image.kept.as_ref().is_some_and(|kept| !kept.claimed);
        if !is_ours && !is_kept {
            return Ok(None);
        }
        if image.begun != *begun {
            return match is_kept {
                false => Ok(None),
                true => Err(HostError::invalid(
                    format!(
                        "begin {app} from image {}, which was kept for it: it is configured otherwise since",
                        image.number
                    ),
                    "the program begins with nothing; change its command after the update is over",
                )),
            };
        }
        // CRIU waits for ever for what is missing at the end of a file.
        let found = size(&self.directory(app, image.number))?;
        if found != image.bytes {
            let expected = image.bytes;
            return Err(HostError::invalid(
                format!(
                    "image {} of {app} is damaged: it has {found} bytes and should have {expected}",
                    image.number
                ),
                "the program begins with nothing; the next image is taken as usual",
            ));
        }
        Ok(Some(image))
    }

    /// Notes what a program was begun with: images of it are of that, whatever is configured later.
    pub(crate) fn note_running(
        &self,
        app: &AppId,
        process: Process,
        begun: &Begun,
        from: Option<&Image>,
    ) -> Result<(), HostError> {
        let file = self.home(app)?.join(RUNNING);
        let kept = from.and_then(|image| Some((image.kept.as_ref()?, image.taken_unix_ms)));
        let running = Running {
            process,
            begun: begun.clone(),
            kept: kept.map(|(kept, stopped_unix_ms)| Went {
                update: kept.update,
                stopped_unix_ms,
                on_unix_ms: unix_ms(),
            }),
        };
        let text = serde_json::to_string(&running)
            .map_err(|e| HostError::file("write", &file, io::Error::other(e)))?;
        fs::write(&file, text).map_err(|e| HostError::file("write", &file, e))
    }

    /// What the program of an app was begun with, if this process is it.
    pub(super) fn running(&self, app: &AppId, process: Process) -> Result<Begun, HostError> {
        self.known(app, process)
            .map(|running| running.begun)
            .ok_or_else(|| {
                HostError::invalid(
                    format!(
                        "take an image of {app}: what process {} was begun with is not known",
                        process.pid
                    ),
                    "images of it are taken once it has been started anew",
                )
            })
    }

    /// What is known of this process, if it is the program of an app.
    pub(super) fn known(&self, app: &AppId, process: Process) -> Option<Running> {
        let file = self.of(app).join(RUNNING);
        let text = fs::read_to_string(&file).ok()?;
        let known: Option<Running> = serde_json::from_str(&text).ok();
        known.filter(|running| running.process == process)
    }

    /// Removes every image of an app, and what is known of how its program was begun.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn forget(&self, app: &AppId) -> Result<(), HostError> {
        match fs::remove_dir_all(self.of(app)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::file("remove images", &self.of(app), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The directory of an app, made where it is missing: what a program has in memory is for nobody
    /// else.
    fn home(&self, app: &AppId) -> Result<PathBuf, HostError> {
        let home = self.of(app);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&home)
            .map_err(|e| HostError::file("make", &home, e))?;
        Ok(home)
    }

    /// Where an image is.
    pub(crate) fn directory(&self, app: &AppId, number: u64) -> PathBuf {
        self.of(app).join(number.to_string())
    }

    /// Where CRIU says which process it began.
    pub(crate) fn pid_file(&self, app: &AppId) -> PathBuf {
        self.of(app).join("restored.pid")
    }

    /// A place for the next image; what was left of one that was not finished is removed.
    pub(super) fn begin(&self, app: &AppId) -> Result<(u64, PathBuf), HostError> {
        let home = self.home(app)?;
        for entry in entries(&home)? {
            if entry.extension().is_some_and(|end| end == PART) {
                remove(&entry)?;
            }
        }
        let number = self.numbers(app)?.into_iter().max().unwrap_or(0) + 1;
        let part = home.join(format!("{number}.{PART}"));
        fs::create_dir(&part).map_err(|e| HostError::file("make", &part, e))?;
        Ok((number, part))
    }

    /// Makes an image whole, and removes those before it.
    pub(super) fn finish(&self, app: &AppId, part: &Path, image: &Image) -> Result<(), HostError> {
        self.describe(part, image)?;
        for file in entries(part)? {
            sync(&file)?;
        }
        sync(part)?;
        let place = self.directory(app, image.number);
        fs::rename(part, &place).map_err(|e| HostError::file("rename", part, e))?;
        sync(&self.of(app))?;
        for number in self.numbers(app)? {
            if number < image.number {
                remove(&self.directory(app, number))?;
            }
        }
        self.remove_refused(app)
    }

    /// Writes durably beside an image what is known of it.
    pub(super) fn describe(&self, directory: &Path, image: &Image) -> Result<(), HostError> {
        let file = directory.join(DESCRIPTION);
        let next = file.with_extension("new");
        let text = serde_json::to_string(image)
            .map_err(|e| HostError::file("write", &file, io::Error::other(e)))?;
        let written = File::create(&next).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|e| HostError::file("write", &next, e))?;
        fs::rename(&next, &file).map_err(|e| HostError::file("rename", &next, e))?;
        sync(directory)
    }

    /// Lays an image aside that a program does not live from, and says why to whoever asks next. It
    /// goes once a newer one is whole: what failed may not have been its fault.
    pub(crate) fn discard(&self, app: &AppId, number: u64, why: &str) -> Result<(), HostError> {
        self.note_failure(app, why)?;
        let place = self.directory(app, number);
        if !place.exists() {
            return Ok(());
        }
        self.remove_refused(app)?;
        let aside = place.with_extension(REFUSED);
        fs::rename(&place, &aside).map_err(|e| HostError::file("rename", &place, e))?;
        sync(&self.of(app))
    }

    /// The program begins with nothing. What was kept for this beginning is older than all that it does from now on, and
    /// no later one begins from that.
    ///
    /// # Errors
    /// When it stays where it was.
    pub(crate) fn give_up(&self, app: &AppId, why: &str) -> Result<(), HostError> {
        let newest = self.newest(app).ok().flatten();
        match newest.filter(|image| image.kept.is_some()) {
            Some(image) => self.discard(app, image.number, why),
            None => self.note_failure(app, why),
        }
    }

    fn remove_refused(&self, app: &AppId) -> Result<(), HostError> {
        for entry in entries(&self.of(app))? {
            if entry.extension().is_some_and(|end| end == REFUSED) {
                remove(&entry)?;
            }
        }
        Ok(())
    }

    /// Notes why a program was not begun from its image.
    pub(crate) fn note_failure(&self, app: &AppId, why: &str) -> Result<(), HostError> {
        self.note(app, FAILED, why)
    }

    /// Notes that a program was begun from an image.
    pub(crate) fn note_restored(&self, app: &AppId, image: &Image) -> Result<(), HostError> {
        let age = unix_ms().saturating_sub(image.taken_unix_ms) / 1000;
        let number = image.number;
        let text = format!("begun from its image {number}, which is {age} s old");
        self.note(app, RESTORED, &text)
    }

    fn note(&self, app: &AppId, kind: &str, text: &str) -> Result<(), HostError> {
        let file = self.of(app).join(kind);
        fs::write(&file, text).map_err(|e| HostError::file("write", &file, e))
    }

    /// What became of restores; each is told once, and the last of each kind alone.
    ///
    /// # Errors
    /// When what is written of it can be read but not removed.
    pub fn take_notes(&self, app: &AppId) -> Result<Vec<Note>, HostError> {
        let mut notes = Vec::new();
        for (kind, note) in [
            (FAILED, Note::Failed as fn(String) -> Note),
            (RESTORED, Note::Restored),
        ] {
            let file = self.of(app).join(kind);
            if let Ok(text) = fs::read_to_string(&file) {
                fs::remove_file(&file).map_err(|e| HostError::file("remove", &file, e))?;
                notes.push(note(text));
            }
        }
        Ok(notes)
    }

    /// Removes what an earlier restore said of its process.
    pub(crate) fn forget_process(&self, app: &AppId) -> Result<(), HostError> {
        let file = self.pid_file(app);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::file("remove", &file, error))
            }
            _ => Ok(()),
        }
    }

    fn numbers(&self, app: &AppId) -> Result<Vec<u64>, HostError> {
        let home = self.of(app);
        if !home.exists() {
            return Ok(Vec::new());
        }
        let entries = entries(&home)?;
        let name = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
        Ok(entries.iter().filter_map(name).collect())
    }
}

/// The present boot.
pub(super) fn boot(proc_root: &Path) -> Result<String, HostError> {
    let text = read_text(&proc_root.join("sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_owned())
}

/// Whether a command is one of ours that begins a program from an image.
pub(crate) fn is_restore(command: &[String]) -> bool {
    command.get(1).map(String::as_str) == Some("restore")
        && command.iter().any(|word| word == super::criu::IMAGES_DIR)
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
    let fail = |error| HostError::file("list", directory, error);
    let listed = fs::read_dir(directory).map_err(fail)?;
    let paths: io::Result<_> = listed.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(fail)
}

/// What CRIU wrote of an image, in bytes.
pub(super) fn size(directory: &Path) -> Result<u64, HostError> {
    let mut bytes = 0;
    for file in entries(directory)? {
        if file.extension().is_some_and(|end| end == "img") {
            let found = fs::metadata(&file).map_err(|e| HostError::file("look at", &file, e))?;
            bytes += found.len();
        }
    }
    Ok(bytes)
}

pub(super) fn sync(path: &Path) -> Result<(), HostError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|e| HostError::file("sync", path, e))
}

fn remove(directory: &Path) -> Result<(), HostError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::file("remove", directory, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {

    use forebay_core::app::Exec;

    use super::super::Comparing;
    use super::*;
    use crate::supervise;

    fn begun(command: &str) -> Begun {
        let exec = Exec::of(vec![command.to_owned()]);
        supervise::resolve(&exec).unwrap().begun()
    }

    fn image(number: u64, command: &str, boot: &str) -> Image {
        Image {
            number,
            begun: begun(command),
            pid: 1,
            boot: boot.to_owned(),
            taken_unix_ms: 0,
            pause_us: None,
            bytes: 0,
            kept: None,
        }
    }

    #[test]
    fn an_image_that_was_kept_is_used_in_one_boot_more() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        let app: AppId = "a".parse().unwrap();
        let proc_root = Path::new("/proc");
        let usable = |command: &str| store.usable(&app, &begun(command), proc_root);
        let take = |boot: &str| {
            let (number, part) = store.begin(&app).unwrap();
            fs::write(part.join("pages-1.img"), "all that it had").unwrap();
            let image = Image {
                bytes: size(&part).unwrap(),
                kept: Some(super::super::over_boot::seal(&part, 7).unwrap()),
                ..image(number, "true", boot)
            };
            store.finish(&app, &part, &image).unwrap();
            number
        };
        let number = take("the boot before");
        let found = usable("true").unwrap().unwrap();
        assert_eq!(found.number, number);
        // Of something else, it says so: what was kept is lost then.
        usable("false").unwrap_err();
        let claimed = store.claim(&app, &found, proc_root).unwrap();
        assert_eq!(claimed.boot, boot(proc_root).unwrap());
        assert_eq!(usable("true").unwrap(), Some(claimed.clone()));
        // As it looks from the boot after this one.
        let later = Image {
            boot: "the boot before".to_owned(),
            ..claimed
        };
        store
            .describe(&store.directory(&app, number), &later)
            .unwrap();
        assert_eq!(usable("true").unwrap(), None);

        let number = take("the boot before");
        let pages = store.directory(&app, number).join("pages-1.img");
        fs::write(&pages, "all that he had").unwrap();
        let found = usable("true").unwrap().unwrap();
        let comparing = Comparing::start(&store, &app, &found).unwrap();
        assert!(comparing.is_of(&found));
        let error = comparing.result().unwrap_err().explain();
        assert!(error.contains("pages-1.img"), "{error}");
        fs::write(&pages, "all that it had").unwrap();
        let comparing = Comparing::start(&store, &app, &found).unwrap();
        comparing.result().unwrap();

        // Given up for a reason that passes, it is not used over what the program has done since.
        take("the boot before");
        assert!(usable("true").unwrap().is_some());
        store.give_up(&app, "no criu").unwrap();
        assert_eq!(usable("true").ok().flatten(), None);
        assert_eq!(
            store.take_notes(&app).unwrap(),
            [Note::Failed("no criu".to_owned())]
        );
    }

    #[test]
    fn only_what_is_whole_and_fits_is_used() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        let app: AppId = "a".parse().unwrap();
        let proc_root = Path::new("/proc");
        let here = boot(proc_root).unwrap();
        let command = begun("true");
        let usable = || {
            let found = store.usable(&app, &command, proc_root).unwrap();
            found.map(|image| image.number)
        };
        assert_eq!(usable(), None);

        let (first, part) = store.begin(&app).unwrap();
        assert_eq!((first, usable()), (1, None), "it is not whole");
        store.finish(&app, &part, &image(1, "true", &here)).unwrap();
        assert_eq!(usable(), Some(1));

        // One that was not finished is in nobody's way.
        fs::write(store.begin(&app).unwrap().1.join("pages"), "x").unwrap();
        assert_eq!(usable(), Some(1));
        let (second, part) = store.begin(&app).unwrap();
        assert_eq!(second, 2);
        assert!(!part.join("pages").exists());
        store
            .finish(&app, &part, &image(2, "false", &here))
            .unwrap();
        assert_eq!(usable(), None, "of another command");
        assert!(!store.directory(&app, 1).exists());

        let (third, part) = store.begin(&app).unwrap();
        store
            .finish(&app, &part, &image(third, "true", "elsewhere"))
            .unwrap();
        assert_eq!(usable(), None, "of another boot");

        // One that lost a part of a file is told of.
        let (fourth, part) = store.begin(&app).unwrap();
        fs::write(part.join("pages-1.img"), "x").unwrap();
        let whole = Image {
            bytes: 1,
            ..image(fourth, "true", &here)
        };
        store.finish(&app, &part, &whole).unwrap();
        assert_eq!(usable(), Some(4));
        let pages = store.directory(&app, 4).join("pages-1.img");
        fs::write(pages, "").unwrap();
        let error = store.usable(&app, &command, proc_root).unwrap_err();
        assert!(
            error.explain().contains("0 bytes and should have 1"),
            "{error}"
        );

        store.discard(&app, fourth, "it died").unwrap();
        assert_eq!(store.newest(&app).unwrap(), None);
        let (fifth, part) = store.begin(&app).unwrap();
        store
            .finish(&app, &part, &image(fifth, "true", &here))
            .unwrap();
        let left = entries(&store.of(&app)).unwrap();
        let refused = left.iter().filter(|path| path.extension().is_some());
        assert_eq!(refused.count(), 0, "{left:?}");
        let died = Note::Failed("it died".to_owned());
        assert_eq!(store.take_notes(&app).unwrap(), [died]);
        assert_eq!(store.take_notes(&app).unwrap(), []);
    }

    #[test]
    fn what_is_forgotten_is_begun_from_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let app: AppId = "web".parse().unwrap();
        store.forget(&app).unwrap();
        let (number, part) = store.begin(&app).unwrap();
        store
            .finish(&app, &part, &image(number, "sh", "b"))
            .unwrap();
        assert!(store.newest(&app).unwrap().is_some());
        store.forget(&app).unwrap();
        assert_eq!(store.newest(&app).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        let app: AppId = "a".parse().unwrap();
        let place = store.directory(&app, 4);
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(DESCRIPTION), "{").unwrap();
        let error = store.newest(&app).unwrap_err().explain();
        assert!(error.contains("4/image.json"), "{error}");
    }
}
