//! Which device is meant, and a file on it that leaves nothing behind.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use forebay_core::app::Device;
use forebay_core::units::Bytes;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::Error;
use super::measure::Target;

/// Bytes in the unit of /sys/block/DISK/size, whatever the device's own blocks are.
const SECTOR: u64 = 512;
/// The smallest block that every device and file system here accepts.
const SMALL: usize = 4096;
/// A device below this has no bandwidth to speak of.
const SIZE_MIN: Bytes = Bytes::mib(16);
/// The scratch file at most; less where the file system has less than four times that.
const SCRATCH_MAX: Bytes = Bytes::mib(256);
/// The scratch file at least.
const SCRATCH_MIN: Bytes = Bytes::mib(8);

/// A whole block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disk {
    /// Its number, which may be another one's after the next boot.
    pub(super) device: Device,
    /// Its name in /dev.
    pub(super) name: String,
    /// How much it holds.
    pub(super) size: Bytes,
    /// What the device calls itself, where it does.
    pub(super) identity: Option<String>,
    /// Its own block.
    logical_block: usize,
}

/// The device that a path names, and the path where it is a directory.
///
/// # Errors
/// When the path is neither a block device nor a directory on one.
pub(super) fn find<'a>(target: &'a Path, root: &Path) -> Result<(Disk, Option<&'a Path>), Error> {
    let attempt = || format!("calibrate {}", target.display());
    let meta = fs::metadata(target).map_err(|e| Error::system(attempt(), e))?;
    let (number, dir) = if meta.file_type().is_block_device() {
        (meta.rdev(), None)
    } else if meta.is_dir() {
        (meta.dev(), Some(target))
    } else {
        return Err(Error::invalid(
            format!("{}: neither a block device nor a directory", attempt()),
            "name one, such as /dev/sda or a directory on it; see `lsblk`",
        ));
    };
    let number = device(number);
    let disk = Disk::read(number, root).map_err(|source| Error::System {
        attempt: format!("{}: look up block device {number} in /sys", attempt()),
        advice: if dir.is_some() {
            "its file system is in memory, on a network, or on several devices: name a block \
             device, with a directory on it as --scratch"
                .to_owned()
        } else {
            "see `lsblk` for the devices that are there".to_owned()
        },
        source,
    })?;
    if disk.size < SIZE_MIN {
        return Err(Error::invalid(
            format!("{}: it holds {}", attempt(), disk.size),
            format!("name a device of at least {SIZE_MIN}; see `lsblk`"),
        ));
    }
    Ok((disk, dir))
}

fn device(number: u64) -> Device {
    Device {
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    }
}

impl Disk {
    /// The whole device that a number belongs to, from /sys below `root`.
    fn read(number: Device, root: &Path) -> std::io::Result<Self> {
        let entry = fs::canonicalize(root.join("sys/dev/block").join(number.to_string()))?;
        // A partition's directory is inside its disk's; limits hold for whole devices only.
        let dir = match entry.parent() {
            Some(parent) if entry.join("partition").exists() => parent.to_path_buf(),
            _ => entry,
        };
        let text = |name: &str| fs::read_to_string(dir.join(name)).map(|t| t.trim().to_owned());
        let bad = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
        let number = |name: &str| {
            text(name)?
                .parse::<u64>()
                .map_err(|e| bad(format!("{}: {e}", dir.join(name).display())))
        };
        let name = dir.file_name().and_then(|name| name.to_str());
        let known = ["wwid", "device/wwid", "serial", "device/serial", "dm/uuid"];
        let known = known.into_iter().chain(["loop/backing_file"]);
        Ok(Self {
            device: text("dev")?
                .parse()
                .map_err(|e| bad(format!("{}: {e}", dir.join("dev").display())))?,
            // A slash in a device's name is an exclamation mark in /sys.
            name: name
                .ok_or_else(|| bad(format!("{}: no name", dir.display())))?
                .replace('!', "/"),
            size: Bytes(number("size")?.saturating_mul(SECTOR)),
            identity: known
                .filter_map(|name| text(name).ok())
                .find(|text| !text.is_empty()),
            logical_block: usize::try_from(number("queue/logical_block_size")?)
                .map_err(|e| bad(e.to_string()))?,
        })
    }

    /// The block of random requests.
    pub(super) fn small_block(&self) -> usize {
        self.logical_block.max(SMALL)
    }

    /// Opens the device for reads past the page cache. It cannot be written through this.
    pub(super) fn open(&self) -> Result<Target, Error> {
        let node = Path::new("/dev").join(&self.name);
        let attempt = || format!("open {} for reading", node.display());
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(direct())
            .open(&node)
            .map_err(|e| Error::system(attempt(), e))?;
        let meta = file.metadata().map_err(|e| Error::system(attempt(), e))?;
        if !meta.file_type().is_block_device() || device(meta.rdev()) != self.device {
            return Err(Error::invalid(
                format!("{}: it is not block device {}", attempt(), self.device),
                "let udev make the nodes in /dev, or make this one with `mknod`",
            ));
        }
        Ok(Target::new(file, node, self.small_block()))
    }

    /// Why this is not the device that has its number now.
    pub(super) fn differs(&self, root: &Path) -> Option<String> {
        let now = match Self::read(self.device, root) {
            Ok(now) => now,
            Err(error) => return Some(format!("{} is not here now: {error}", self.device)),
        };
        let (was, is) = if now.identity != self.identity {
            let shown = |disk: &Self| disk.identity.clone().unwrap_or("nothing".to_owned());
            (shown(self), shown(&now))
        } else if now.size != self.size {
            (self.size.to_string(), now.size.to_string())
        } else {
            return None;
        };
        Some(format!(
            "{} is another device now ({is}; it was {was}): calibrate it again",
            self.device
        ))
    }
}

/// A file on the device that nobody else sees.
#[derive(Debug)]
pub(super) struct Scratch {
    target: Target,
    /// How large it may become.
    pub(super) size: Bytes,
}

impl Scratch {
    /// Makes the file. It has no name, so that nothing is left even if this process is killed.
    ///
    /// # Errors
    /// When the directory is on another device, its file system read-only or full, or it knows
    /// no such files.
    pub(super) fn make(dir: &Path, disk: &Disk) -> Result<Self, Error> {
        let attempt = || format!("make a scratch file in {}", dir.display());
        let meta = fs::metadata(dir).map_err(|e| Error::system(attempt(), e))?;
        let number = device(meta.dev());
        if !Disk::read(number, Path::new("/")).is_ok_and(|found| found.device == disk.device) {
            return Err(Error::invalid(
                format!(
                    "{}: it is on device {number}, not on {}",
                    attempt(),
                    disk.name
                ),
                format!("name a directory on {}; see `lsblk`", disk.name),
            ));
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR).map_err(|e| match e {
            rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL => Error::System {
                attempt: attempt(),
                advice: "its file system knows no nameless files or no direct I/O: name a \
                         directory on another one of the device"
                    .to_owned(),
                source: e.into(),
            },
            e => Error::system(attempt(), e),
        })?;
        let room = rustix::fs::fstatvfs(&file).map_err(|e| Error::system(attempt(), e))?;
        let free = Bytes(room.f_bavail.saturating_mul(room.f_frsize));
        // A quarter: others need room meanwhile.
        let size = Bytes(free.0 / 4).min(SCRATCH_MAX);
        if size < SCRATCH_MIN {
            return Err(Error::invalid(
                format!("{}: {free} is free there", attempt()),
                format!("make room: a quarter of it is used meanwhile, at least {SCRATCH_MIN}"),
            ));
        }
        let shown = dir.join("(scratch file)");
        Ok(Self {
            target: Target::new(File::from(file), shown, disk.small_block()),
            size,
        })
    }

    /// What to write to.
    pub(super) fn target(&self) -> Target {
        self.target.clone()
    }
}

fn direct() -> i32 {
    i32::from_ne_bytes(OFlags::DIRECT.bits().to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("sys/devices/sda");
        for dir in ["queue", "sda1"] {
            fs::create_dir_all(disk.join(dir)).unwrap();
        }
        for (file, text) in [
            ("dev", "8:0\n"),
            ("size", "409600\n"),
            ("wwid", "naa.5000\n"),
            ("queue/logical_block_size", "512\n"),
            ("sda1/dev", "8:1\n"),
            ("sda1/partition", "1\n"),
        ] {
            fs::write(disk.join(file), text).unwrap();
        }
        let block = root.path().join("sys/dev/block");
        fs::create_dir_all(&block).unwrap();
        for (number, target) in [("8:0", "sda"), ("8:1", "sda/sda1")] {
            let target = root.path().join("sys/devices").join(target);
            std::os::unix::fs::symlink(target, block.join(number)).unwrap();
        }
        root
    }

    #[test]
    fn a_partition_stands_for_its_disk() {
        let root = tree();
        let read = |number: &str| Disk::read(number.parse().unwrap(), root.path());
        let disk = read("8:1").unwrap();
        assert_eq!(disk, read("8:0").unwrap());
        assert_eq!(disk.name, "sda");
        assert_eq!(disk.size, Bytes::mib(200));
        assert_eq!(disk.small_block(), 4096);
        assert!(read("8:16").is_err());
    }

    #[test]
    fn a_number_that_is_another_device_now_is_noticed() {
        let root = tree();
        let disk = Disk::read("8:0".parse().unwrap(), root.path()).unwrap();
        assert_eq!(disk.differs(root.path()), None);
        let check = |file: &str, text: &str, words: &[&str]| {
            let path = root.path().join("sys/devices/sda").join(file);
            let before = fs::read_to_string(&path).unwrap();
            fs::write(&path, text).unwrap();
            let why = disk.differs(root.path()).unwrap();
            assert!(words.iter().all(|word| why.contains(word)), "{why}");
            fs::write(&path, before).unwrap();
        };
        check("wwid", "naa.6000\n", &["naa.6000", "naa.5000"]);
        check("size", "819200\n", &["400.0 MiB", "200.0 MiB"]);
        fs::remove_file(root.path().join("sys/dev/block/8:0")).unwrap();
        assert!(disk.differs(root.path()).unwrap().contains("not here now"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let check = |target: &Path, words: &str| {
            let error = find(target, Path::new("/")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        check(&file, "neither a block device nor a directory");
        check(&dir.path().join("none"), "see `lsblk`");
        check(Path::new("/proc"), "name a block device");
        check(Path::new("/dev/null"), "neither a block device");
    }
}
