//! The archive that a kernel unpacks as its first root file system, and what of this host's files goes into it.
//!
//! The format is cpio's "newc", as in the kernel's documentation (driver-api/early-userspace/buffer-format.rst): for each
//! entry a header of hexadecimal numbers, the name, the content, each padded to four bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use crate::error::HostError;

/// Links on the way to a file, as many as the kernel follows.
const LINKS_MAX: u32 = 40;
/// Kinds of entries, as in a file's mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

/// An archive that is being written.
pub(super) struct Archive {
    path: PathBuf,
    out: BufWriter<File>,
    /// What is in it: a name comes once.
    has: BTreeSet<PathBuf>,
    number: u32,
}

/// What an entry is, beside its name and content.
#[derive(Clone, Copy, Default)]
struct Kind {
    mode: u32,
    device: (u32, u32),
}

impl Archive {
    pub(super) fn create(path: &Path) -> Result<Self, HostError> {
        let file = File::create(path).map_err(|error| HostError::file("create", path, error))?;
        let mut archive = Self {
            path: path.to_owned(),
            out: BufWriter::new(file),
            has: BTreeSet::new(),
            number: 0,
        };
        // Programs want them before anything can be mounted.
        for (name, device) in [("/dev/console", (5, 1)), ("/dev/null", (1, 3))] {
            archive.parents(Path::new(name))?;
            let mode = DEVICE | 0o600;
            archive.entry(Path::new(name), Kind { mode, device }, 0, &mut io::empty())?;
        }
        Ok(archive)
    }

    /// An empty directory, with those that it is in.
    pub(super) fn directory(&mut self, path: &Path) -> Result<(), HostError> {
        self.parents(path)?;
        let mode = DIRECTORY | 0o755;
        let kind = Kind {
            mode,
            ..Kind::default()
        };
        self.entry(path, kind, 0, &mut io::empty())
    }

    /// A file that this host has not.
    pub(super) fn text(&mut self, path: &Path, text: &str) -> Result<(), HostError> {
        self.parents(path)?;
        let mode = FILE | 0o644;
        let kind = Kind {
            mode,
            ..Kind::default()
        };
        self.entry(path, kind, text.len() as u64, &mut text.as_bytes())
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &Path) -> Result<(), HostError> {
        self.parents(path)?;
        let target = target.as_os_str().as_bytes();
        let mode = LINK | 0o777;
        let kind = Kind {
            mode,
            ..Kind::default()
        };
        self.entry(path, kind, target.len() as u64, &mut { target })
    }

    /// A file or directory of this host under the same name, with all links on the way to it; not what is in a directory.
    pub(super) fn take(&mut self, path: &Path) -> Result<(), HostError> {
        let mut wanted = path.to_owned();
        for _ in 0..LINKS_MAX {
            match self.take_until_link(&wanted)? {
                Some(next) => wanted = next,
                None => return Ok(()),
            }
        }
        Err(HostError::invalid(
            format!(
                "follow {}: there are more than {LINKS_MAX} links",
                path.display()
            ),
            "look at where it leads",
        ))
    }

    /// Takes what is on the way to a path; where a link leads from there, the path behind it.
    fn take_until_link(&mut self, path: &Path) -> Result<Option<PathBuf>, HostError> {
        let mut here = PathBuf::from("/");
        let mut rest = path.components();
        while let Some(component) = rest.next() {
            match component {
                Component::Normal(name) => here.push(name),
                Component::ParentDir => {
                    here.pop();
                    continue;
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            }
            let fail = |error| HostError::file("read", &here, error);
            let found = fs::symlink_metadata(&here).map_err(fail)?;
            if found.is_symlink() {
                let target = fs::read_link(&here).map_err(fail)?;
                self.link(&here, &target)?;
                let mut next = here.parent().unwrap_or(Path::new("/")).join(target);
                next.extend(rest);
                return Ok(Some(next));
            }
            match found.is_dir() {
                true => self.directory(&here)?,
                false => self.copy(&here)?,
            }
        }
        Ok(None)
    }

    fn copy(&mut self, path: &Path) -> Result<(), HostError> {
        self.copy_as(path, path)
    }

    /// A file of this host under another name.
    pub(super) fn copy_as(&mut self, path: &Path, name: &Path) -> Result<(), HostError> {
        if self.has.contains(name) {
            return Ok(());
        }
        self.parents(name)?;
        let fail = |error| HostError::file("read", path, error);
        let mut file = File::open(path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?;
        let mode = FILE | (found.permissions().mode() & 0o7777);
        let kind = Kind {
            mode,
            ..Kind::default()
        };
        self.entry(name, kind, found.len(), &mut file)
    }

    /// A library that a program has mapped, under every name that its directory has for it: the loader looks for it by
    /// another one than the kernel shows. Where it was chosen for this host's processor the plain one comes along.
    pub(super) fn library(&mut self, path: &Path) -> Result<(), HostError> {
        self.take(path)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let names = fs::read_dir(directory).map_err(|e| HostError::file("read", directory, e))?;
        for other in names.filter_map(|entry| Some(entry.ok()?.path())) {
            let is_link = fs::symlink_metadata(&other).is_ok_and(|found| found.is_symlink());
            if is_link && fs::canonicalize(&other).is_ok_and(|real| real == path) {
                self.take(&other)?;
                if let Some(plain) = plain(&other) {
                    self.take(&plain)?;
                }
            }
        }
        match plain(path) {
            Some(plain) => self.take(&plain),
            None => Ok(()),
        }
    }

    /// The directories that a path is in.
    fn parents(&mut self, path: &Path) -> Result<(), HostError> {
        let mut missing: Vec<&Path> = path.ancestors().skip(1).collect();
        missing.retain(|parent| *parent != Path::new("/") && !self.has.contains(*parent));
        for parent in missing.into_iter().rev() {
            let mode = DIRECTORY | 0o755;
            let kind = Kind {
                mode,
                ..Kind::default()
            };
            self.entry(parent, kind, 0, &mut io::empty())?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        kind: Kind,
        bytes: u64,
        content: &mut dyn Read,
    ) -> Result<(), HostError> {
        let name = path.strip_prefix("/").unwrap_or(path);
        if name.as_os_str().is_empty() || !self.has.insert(path.to_owned()) {
            return Ok(());
        }
        self.number += 1;
        let written = write_entry(&mut self.out, (self.number, name), kind, bytes, content);
        written.map_err(|error| {
            HostError::file(&format!("put {} into", path.display()), &self.path, error)
        })
    }

    /// Ends it; its length in bytes.
    pub(super) fn finish(mut self) -> Result<u64, HostError> {
        let trailer = (0, Path::new("TRAILER!!!"));
        let ended = write_entry(&mut self.out, trailer, Kind::default(), 0, &mut io::empty())
            .and_then(|()| self.out.flush())
            .and_then(|()| self.out.get_ref().metadata());
        let found = ended.map_err(|error| HostError::file("write", &self.path, error))?;
        Ok(found.len())
    }
}

/// The same library for any processor, where this one was chosen for a newer one (ld.so(8), "hardware capabilities").
fn plain(path: &Path) -> Option<PathBuf> {
    let directory = path.parent()?.parent()?;
    if directory.file_name()? != "glibc-hwcaps" {
        return None;
    }
    let plain = directory.parent()?.join(path.file_name()?);
    plain.is_file().then_some(plain)
}

fn write_entry(
    out: &mut impl Write,
    (number, name): (u32, &Path),
    kind: Kind,
    bytes: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    let name = name.as_os_str().as_bytes();
    let length = u32::try_from(bytes).map_err(|_| io::Error::other("it is larger than 4 GiB"))?;
    let name_length = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    let (major, minor) = kind.device;
    let links = if kind.mode & DIRECTORY == DIRECTORY {
        2
    } else {
        1
    };
    let fields = [
        number,
        kind.mode,
        0,
        0,
        links,
        0,
        length,
        0,
        0,
        major,
        minor,
        name_length,
        0,
    ];
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08X}")?;
    }
    out.write_all(name)?;
    // The header has 110 bytes, the name its end.
    out.write_all(&[0; 4][..1 + padding(110 + u64::from(name_length))])?;
    let copied = io::copy(&mut content.take(bytes), out)?;
    if copied != bytes {
        return Err(io::Error::other("it became shorter meanwhile"));
    }
    out.write_all(&[0; 4][..padding(bytes)])
}

/// Bytes up to the next multiple of four.
const fn padding(bytes: u64) -> usize {
    match bytes % 4 {
        0 => 0,
        1 => 3,
        2 => 2,
        _ => 1,
    }
}

/// Copies what of a program is loaded: sections for debuggers come after that, and are much of it. What is no ELF file
/// (elf(5)) is copied whole.
pub(super) fn copy_loaded(program: &Path, to: &Path) -> Result<u64, HostError> {
    let fail = |error| HostError::file("read", program, error);
    let mut whole = fs::read(program).map_err(fail)?;
    if let Some(length) = loaded(&whole) {
        whole.truncate(length);
        // Without the sections there is no table of them.
        whole[0x28..0x30].fill(0);
        whole[0x3C..0x40].fill(0);
    }
    fs::write(to, &whole).map_err(|error| HostError::file("write", to, error))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .map_err(|error| HostError::file("make executable", to, error))?;
    Ok(whole.len() as u64)
}

/// Where the last of a 64-bit ELF file's segments ends.
fn loaded(file: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry, count) = (word(0x20)?, half(0x36)?, half(0x38)?);
    let mut end = 0x40;
    for number in 0..u64::from(count) {
        let at = usize::try_from(table.checked_add(number * u64::from(entry))?).ok()?;
        end = end.max(word(at + 0x08)?.checked_add(word(at + 0x20)?)?);
        end = end.max(u64::try_from(at + usize::from(entry)).ok()?);
    }
    usize::try_from(end).ok().filter(|end| *end <= file.len())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// What the system's cpio makes of an archive.
    fn unpacked(archive: &Path, to: &Path) -> bool {
        let file = File::open(archive).unwrap();
        let mut command = Command::new("cpio");
        command.args([
            "--extract",
            "--quiet",
            "--no-absolute-filenames",
            "--directory",
        ]);
        command.arg(to).stdin(Stdio::from(file));
        match command.output() {
            Ok(ended) => {
                assert!(ended.status.success(), "{ended:?}");
                true
            }
            Err(_) => {
                println!("SKIPPED: an archive is unpacked: cpio is missing");
                false
            }
        }
    }

    #[test]
    fn an_archive_has_files_with_the_links_on_the_way_to_them() {
        let host = tempfile::tempdir().unwrap();
        let host = fs::canonicalize(host.path()).unwrap();
        let at = |name: &str| host.join(name);
        fs::create_dir_all(at("usr/lib/glibc-hwcaps/v3")).unwrap();
        std::os::unix::fs::symlink("usr/lib", at("lib")).unwrap();
        fs::write(at("usr/lib/libfoo.so.1.2"), "foo12").unwrap();
        std::os::unix::fs::symlink("libfoo.so.1.2", at("usr/lib/libfoo.so.1")).unwrap();
        fs::write(at("usr/lib/glibc-hwcaps/v3/libbar.so"), "fast").unwrap();
        fs::write(at("usr/lib/libbar.so"), "slow").unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();

        let archive = at("archive");
        let mut writing = Archive::create(&archive).unwrap();
        writing.take(&at("lib/libfoo.so.1")).unwrap();
        writing.library(&at("usr/lib/libfoo.so.1.2")).unwrap();
        writing
            .library(&at("usr/lib/glibc-hwcaps/v3/libbar.so"))
            .unwrap();
        writing.text(Path::new("/etc/note"), "x").unwrap();
        writing
            .link(Path::new("/init"), Path::new("/etc/note"))
            .unwrap();
        assert!(writing.take(&at("loop")).is_err());
        assert!(writing.take(&at("usr/lib/none")).is_err());
        let length = writing.finish().unwrap();
        assert_eq!(length, fs::metadata(&archive).unwrap().len());
        assert_eq!(length % 4, 0);

        let to = tempfile::tempdir().unwrap();
        if !unpacked(&archive, to.path()) {
            return;
        }
        let read = |name: &str| {
            let path = to.path().join(host.strip_prefix("/").unwrap()).join(name);
            fs::read_to_string(path).unwrap()
        };
        for name in [
            "lib/libfoo.so.1",
            "usr/lib/libfoo.so.1",
            "usr/lib/libfoo.so.1.2",
        ] {
            assert_eq!(read(name), "foo12", "{name}");
        }
        assert_eq!(read("usr/lib/libbar.so"), "slow");
        assert_eq!(fs::read_to_string(to.path().join("etc/note")).unwrap(), "x");
        let init = fs::read_link(to.path().join("init")).unwrap();
        assert_eq!(init, Path::new("/etc/note"));
    }

    #[test]
    fn what_is_loaded_of_a_program_runs() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("true");
        let program = fs::canonicalize("/bin/true").unwrap();
        let length = copy_loaded(&program, &copy).unwrap();
        assert!(length < fs::metadata(&program).unwrap().len());
        assert!(Command::new(&copy).status().unwrap().success());
        let script = directory.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert_eq!(copy_loaded(&script, &copy).unwrap(), 10);
        // A file that says more of itself than there is of it is left as it is.
        let mut cut = fs::read(&program).unwrap();
        cut.truncate(200);
        assert_eq!(loaded(&cut), None);
    }
}
