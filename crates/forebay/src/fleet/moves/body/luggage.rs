//! The files that go along with an application, whichever way it moves: sent in rounds by the source, gathered
//! beside what is there by the target.
//!
//! Each round sends what changed during the one before. When the application stands still, what changed last is
//! sent, and the list of everything, by which the target knows that it is whole. A process that goes along with its
//! memory has its files open, and knows what is in them: so checksums of what was read are sent as well, the target
//! compares what it wrote, and after all that the source looks whether anybody else changed something meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use forebay_core::app::AppId;
use forebay_core::fleet::rounds::{Bounds, Round, Verdict, judge};
use forebay_core::units::Bytes;
use sha2::{Digest as _, Sha256};

use super::files::{self, Entries, Scan, Stamp, What};
use super::restart::{requirement, unknown};
use super::staged::{LIST_BYTES_MAX, Staged};
use crate::fleet::moves::note::Counted;
use crate::fleet::moves::{Content, Phase, Road, Trouble, refuse};

/// The name of the list of everything.
const LIST: &str = "entries";
/// And that of the checksums.
const SUMS: &str = "sums";
/// What a target has to have: room for so many bytes at a path.
const ROOM: &str = "room";

/// SHA-256 in hexadecimal, by path.
type Sums = BTreeMap<String, String>;

/// What is read, summed up where anybody wants to know.
struct Summed<R> {
    from: R,
    sum: Option<Sha256>,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        if let Some(sum) = &mut self.sum {
            sum.update(into.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

fn hex(sum: Sha256) -> String {
    let bytes = sum.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a target has to have for these, whatever is in them.
pub(super) fn places(files: &[PathBuf]) -> BTreeSet<String> {
    let parents = files.iter().filter_map(|file| file.parent());
    let parents = parents.map(|parent| requirement("directory", parent));
    let moves = files.iter().map(|file| requirement("moves", file));
    moves.chain(parents).collect()
}

/// On the source.
#[derive(Debug)]
pub(super) struct Leaves {
    app: AppId,
    files: Vec<PathBuf>,
    /// What the target has, by name.
    sent: BTreeMap<String, Stamp>,
    /// What it has is this; none where nobody compares.
    sums: Option<Sums>,
    /// Sent once more while it stands, whatever their times say.
    mapped: BTreeSet<String>,
    /// As it was when all was sent.
    listed: Entries,
}

impl Leaves {
    pub(super) const fn new(app: AppId, files: Vec<PathBuf>) -> Self {
        Self {
            app,
            files,
            sent: BTreeMap::new(),
            sums: None,
            mapped: BTreeSet::new(),
            listed: Entries::new(),
        }
    }

    /// With checksums, for a process that has them open.
    pub(super) fn summed(app: AppId, files: Vec<PathBuf>) -> Self {
        let mut leaves = Self::new(app, files);
        leaves.sums = Some(Sums::new());
        leaves
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether something goes along.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.files.iter().any(|file| path.starts_with(file))
    }

    /// Those that it writes through a mapping: nobody sees that on a file system without a disk.
    pub(super) fn are_mapped<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let names = files.filter_map(Path::to_str).map(str::to_owned);
        self.mapped = names.collect();
    }

    fn scan(&self) -> Result<Scan, Trouble> {
        files::scan(&self.files)
            .map_err(|why| Trouble::Refused(format!("move {}: {why}", self.app)))
    }

    /// What a target has to have, after a look whether all can go along.
    pub(super) fn check(&self) -> Result<BTreeSet<String>, Trouble> {
        let scan = self.scan()?;
        let mut requires = places(&self.files);
        // Older releases do not know it, nor checksums.
        if self.sums.is_some() {
            for file in &self.files {
                let below = |name: &String| Path::new(name).starts_with(file);
                let entries = scan.entries.iter().filter(|(name, _)| below(name));
                let bytes = entries.map(|(_, entry)| match entry.what {
                    What::File { bytes } => bytes,
                    What::Directory | What::Link { .. } => 0,
                });
                let bytes = bytes.fold(0_u64, u64::saturating_add);
                requires.insert(format!("{ROOM}:{bytes} {}", file.display()));
            }
        }
        Ok(requires)
    }

    /// Sends what may differ from what the target has; how many bytes.
    fn send_news(&mut self, scan: &Scan, phase: Phase, road: &Road<'_>) -> Result<u64, Trouble> {
        let mut news = scan.news(&self.sent);
        if phase == Phase::Final {
            let known: BTreeSet<String> = news.iter().map(|(name, _)| name.clone()).collect();
            let more = scan.news(&BTreeMap::new()).into_iter();
            news.extend(
                more.filter(|(name, _)| self.mapped.contains(name) && !known.contains(name)),
            );
        }
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
            let counted = Counted {
                // One that became shorter meanwhile is another by that, and is sent again.
                from: opened.file.chain(io::repeat(0)),
                note: road.note,
            };
            let mut from = Summed {
                from: counted.take(opened.bytes),
                sum: self.sums.is_some().then(Sha256::new),
            };
            let parcel = (phase, &content, opened.bytes);
            road.peer.send(road.to, road.of, parcel, &mut from)?;
            sent = sent.saturating_add(opened.bytes);
            if let (Some(sums), Some(sum)) = (&mut self.sums, from.sum) {
                sums.insert(name.clone(), hex(sum));
            }
            self.sent.insert(name, opened.stamp);
        }
        Ok(sent)
    }

    /// Copies all while the application runs, until little is left.
    pub(super) fn copy(&mut self, road: &Road<'_>, bounds: Bounds) -> Result<(), Trouble> {
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
            match judge(bounds, &rounds) {
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

    /// Sends what changed last, and what all is, while the application stands still; what is to be prepared.
    pub(super) fn send_last(&mut self, road: &Road<'_>) -> Result<Vec<Content>, Trouble> {
        let scan = self.scan()?;
        self.send_news(&scan, Phase::Final, road)?;
        let mut contents = Vec::new();
        if let Some(sums) = &self.sums {
            contents.push(self.send_table(road, (SUMS, "sums"), sums)?);
        }
        contents.push(self.send_table(road, (LIST, "list"), &scan.entries)?);
        self.listed = scan.entries;
        Ok(contents)
    }

    fn send_table(
        &self,
        road: &Road<'_>,
        (name, kind): (&str, &str),
        table: &impl serde::Serialize,
    ) -> Result<Content, Trouble> {
        let text = serde_json::to_vec(table).map_err(|error| {
            Trouble::Refused(format!("list the files of {}: {error}", self.app))
        })?;
        let content = Content {
            name: name.to_owned(),
            kind: kind.to_owned(),
        };
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let parcel = (Phase::Final, &content, bytes);
        road.peer
            .send(road.to, road.of, parcel, &mut text.as_slice())?;
        Ok(content)
    }

    /// Looks once more, after the target has it: whoever changes a file while its application stands is somebody
    /// else, and the copy does not have it.
    ///
    /// # Errors
    /// What changed.
    pub(super) fn is_as_sent(&self) -> Result<(), Trouble> {
        let scan = self.scan()?;
        let differs = |name: &str| {
            refuse(format!(
                "{name} was changed while {} stood still, by something else, and the copy does not have that; end \
                 what writes there, or move again when it does not",
                self.app
            ))
        };
        let names = self.listed.keys().chain(scan.entries.keys());
        for name in names {
            if self.listed.get(name) != scan.entries.get(name) {
                return differs(name);
            }
        }
        // Those whose times do not tell are read again.
        for (name, _) in scan.news(&self.sent) {
            let Some(opened) = files::open(&self.files, &name).map_err(Trouble::Refused)? else {
                return differs(&name);
            };
            let mut from = Summed {
                from: opened.file,
                sum: Some(Sha256::new()),
            };
            io::copy(&mut from, &mut io::sink())
                .map_err(|error| Trouble::Refused(format!("read {name}: {error}")))?;
            let sent = self.sums.as_ref().and_then(|sums| sums.get(&name));
            if sent != from.sum.map(hex).as_ref() {
                return differs(&name);
            }
        }
        Ok(())
    }
}

/// On the target.
#[derive(Debug)]
pub(super) struct Comes {
    app: AppId,
    files: Vec<PathBuf>,
    pub(super) staged: Staged,
    /// Whether what an earlier attempt left was removed.
    is_clear: bool,
    entries: Option<Entries>,
    /// What was written here.
    came: Sums,
    /// What was read at the source.
    sums: Option<Sums>,
}

impl Comes {
    pub(super) fn new(app: &AppId, files: &[PathBuf], state_dir: &Path) -> Self {
        Self {
            app: app.clone(),
            files: files.to_vec(),
            staged: Staged::new(app, files, state_dir),
            is_clear: false,
            entries: None,
            came: Sums::new(),
            sums: None,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether this host can take them in; none where that is no need of files.
    pub(super) fn has(&self, (kind, what): (&str, &str)) -> Option<Result<(), String>> {
        let path = Path::new(what);
        Some(match kind {
            "moves" if !self.files.iter().any(|file| file == path) => Err(format!(
                "{what} is not among the `move.files` of {} on the target; give it the same on all hosts",
                self.app
            )),
            "moves" => self.takes_place_of(path),
            // All of them together, by `has_all`.
            ROOM => Ok(()),
            _ => return None,
        })
    }

    /// Whether this host has room for them, and counts no others among them.
    pub(super) fn has_all(&self, requires: &BTreeSet<String>) -> Result<(), String> {
        self.has_room(requires)?;
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

    /// What was there is kept until the application runs, so that all of it has to fit beside that.
    fn has_room(&self, requires: &BTreeSet<String>) -> Result<(), String> {
        let mut needed: BTreeMap<u64, (u64, &Path)> = BTreeMap::new();
        let rooms = requires.iter().filter_map(|required| {
            let what = required.strip_prefix(ROOM)?.strip_prefix(':')?;
            Some((required, what))
        });
        for (required, what) in rooms {
            let parsed = what.split_once(' ');
            let parsed = parsed.and_then(|(bytes, path)| Some((bytes.parse().ok()?, path)));
            let (bytes, path): (u64, &str) = parsed.ok_or_else(|| unknown(required))?;
            let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
            let device = parent.metadata().map_err(|error| {
                format!(
                    "look at {} on the target: {error}; make it there",
                    parent.display()
                )
            })?;
            let (sum, _) = needed.entry(device.dev()).or_insert((0, parent));
            *sum = sum.saturating_add(bytes);
        }
        for (bytes, parent) in needed.into_values() {
            let found = rustix::fs::statvfs(parent).map_err(|error| {
                format!(
                    "look at the disk of {} on the target: {error}",
                    parent.display()
                )
            })?;
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            if bytes > free {
                return Err(format!(
                    "the files of {} have {} MiB, and {} MiB are free at {} on the target; make room there",
                    self.app,
                    bytes.div_ceil(1 << 20),
                    free >> 20,
                    parent.display()
                ));
            }
        }
        Ok(())
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

    /// Takes something in; none where it is nothing of files.
    pub(super) fn take(
        &mut self,
        (content, bytes): (&Content, u64),
        from: &mut dyn Read,
    ) -> Option<Result<(), String>> {
        let kind = content.kind.as_str();
        matches!(kind, "file" | "list" | "sums").then(|| self.take_in((content, bytes), from))
    }

    fn take_in(
        &mut self,
        (content, bytes): (&Content, u64),
        from: &mut dyn Read,
    ) -> Result<(), String> {
        if !self.is_clear {
            self.staged.clear()?;
            self.is_clear = true;
        }
        if content.kind == "file" {
            let mut from = Summed {
                from,
                sum: Some(Sha256::new()),
            };
            self.staged.take(&content.name, bytes, &mut from)?;
            if let Some(sum) = from.sum {
                self.came.insert(content.name.clone(), hex(sum));
            }
            return Ok(());
        }
        if bytes > LIST_BYTES_MAX {
            return Err(format!(
                "a list of {bytes} bytes is too long; move fewer files"
            ));
        }
        let from = BufReader::new(from.take(bytes));
        let failed = |error: serde_json::Error| {
            format!(
                "the list of the files of {}: {error}; send it again",
                self.app
            )
        };
        match content.kind.as_str() {
            "sums" => self.sums = Some(serde_json::from_reader(from).map_err(failed)?),
            _ => self.entries = Some(serde_json::from_reader(from).map_err(failed)?),
        }
        Ok(())
    }

    /// Makes what came what the list says, and durable.
    pub(super) fn complete(&self, contents: &[Content]) -> Result<(), Trouble> {
        let is_named = contents.iter().any(|content| content.name == LIST);
        match &self.entries {
            Some(entries) if is_named => self.staged.complete(entries).map_err(Trouble::Refused),
            _ => refuse(format!(
                "the list of the files of {} did not come",
                self.app
            )),
        }
    }

    /// Whether every file is what was read at the source.
    pub(super) fn agrees(&self) -> Result<(), Trouble> {
        let (Some(entries), Some(sums)) = (&self.entries, &self.sums) else {
            return refuse(format!(
                "the checksums of the files of {} did not come",
                self.app
            ));
        };
        let files = entries.iter();
        let files = files.filter(|(_, entry)| matches!(entry.what, What::File { .. }));
        for (name, _) in files {
            let came = self.came.get(name);
            if came.is_none() || came != sums.get(name) {
                return refuse(format!(
                    "{name} is not what it is on the source: its checksum differs; move {} again, and check the disks \
                     if that does not help",
                    self.app
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// An application with one directory, of which all was sent.
    struct Case {
        dir: tempfile::TempDir,
        leaves: Leaves,
    }

    impl Case {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            fs::create_dir(&data).unwrap();
            fs::write(data.join("a"), "one").unwrap();
            fs::write(data.join("b"), "two").unwrap();
            let leaves = Leaves::summed("web".parse().unwrap(), vec![data]);
            let mut case = Self { dir, leaves };
            case.send();
            case
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("data").join(name)
        }

        fn send(&mut self) {
            let leaves = &mut self.leaves;
            leaves.listed = leaves.scan().unwrap().entries;
            for name in leaves.listed.keys() {
                let Some(opened) = files::open(&leaves.files, name).unwrap() else {
                    continue;
                };
                let read = fs::read(name).unwrap();
                let sum = Sha256::new_with_prefix(read);
                leaves.sent.insert(name.clone(), opened.stamp);
                leaves
                    .sums
                    .get_or_insert_default()
                    .insert(name.clone(), hex(sum));
            }
        }
    }

    #[test]
    fn what_changes_after_it_was_sent_is_seen() {
        let check = |change: fn(&Case), name: Option<&str>| {
            let case = Case::new();
            change(&case);
            let seen = case.leaves.is_as_sent();
            match name {
                None => seen.unwrap(),
                Some(name) => {
                    let why = seen.unwrap_err().to_string();
                    assert!(why.contains(name) && why.contains("was changed"), "{why}");
                }
            }
        };
        check(|_| {}, None);
        check(
            |case| fs::write(case.path("a"), "more").unwrap(),
            Some("data/a"),
        );
        // As long as before, and of the same time.
        let same = |case: &Case| {
            let path = case.path("a");
            let before = path.metadata().unwrap().modified().unwrap();
            fs::write(&path, "ONE").unwrap();
            let file = fs::File::options().append(true).open(path).unwrap();
            file.set_modified(before).unwrap();
        };
        check(same, Some("data/a"));
        check(|case| fs::write(case.path("c"), "").unwrap(), Some("data"));
        check(
            |case| fs::remove_file(case.path("b")).unwrap(),
            Some("data"),
        );
    }

    #[test]
    fn what_was_written_is_compared_with_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let name = data.to_str().unwrap();
        let came = |text: &str, read: &str| {
            let app = "web".parse().unwrap();
            let mut comes = Comes::new(&app, std::slice::from_ref(&data), dir.path());
            let mut take = |name: &str, kind: &str, text: &str| {
                let content = Content {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                };
                let bytes = u64::try_from(text.len()).unwrap();
                let taken = comes.take((&content, bytes), &mut text.as_bytes());
                taken.expect("it is of files").unwrap();
            };
            take(name, "file", text);
            let entry =
                r#"{"what":{"file":{"bytes":3}},"mode":420,"uid":0,"gid":0,"modified_ns":0}"#;
            take(LIST, "list", &format!("{{\"{name}\":{entry}}}"));
            let sum = hex(Sha256::new_with_prefix(read));
            take(SUMS, "sums", &format!("{{\"{name}\":\"{sum}\"}}"));
            comes.agrees()
        };
        came("one", "one").unwrap();
        let why = came("one", "two").unwrap_err().to_string();
        assert!(why.contains("its checksum differs"), "{why}");
    }

    #[test]
    fn a_disk_that_is_too_full_for_all_of_them_together_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| dir.path().join(name));
        let comes = Comes::new(&"web".parse().unwrap(), &files, dir.path());
        let requires = |bytes: u64| {
            let mut requires = places(&files);
            requires.extend(
                files
                    .iter()
                    .map(|file| format!("{ROOM}:{bytes} {}", file.display())),
            );
            requires
        };
        comes.has_all(&requires(1)).unwrap();
        let found = rustix::fs::statvfs(dir.path()).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let why = comes.has_all(&requires(free / 2 + free / 4)).unwrap_err();
        assert!(
            why.contains("are free at") && why.contains("make room there"),
            "{why}"
        );
        let why = comes.has_all(&["room:much /srv".to_owned()].into());
        assert!(why.unwrap_err().contains("does not know"));
    }
}
