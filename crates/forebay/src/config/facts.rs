//! What a configuration is checked against: the host's size, users, programs and devices.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use forebay_core::app::{Device, Exec};
use forebay_core::units::Bytes;

use super::error::Problem;

/// The host as far as a configuration depends on it.
#[derive(Debug, Clone)]
pub(crate) struct HostFacts {
    /// Online CPUs.
    pub(crate) cpus: usize,
    /// Memory in all.
    pub(crate) memory: Bytes,
    /// Directory under which /etc, /sys and the programs are found; `/` outside tests.
    pub(crate) root: PathBuf,
    /// This program.
    pub(crate) executable: PathBuf,
    /// The daemon's PATH: absolute directories, with colons between.
    pub(crate) search_path: String,
}

impl HostFacts {
    /// Where an absolute path really is.
    pub(super) fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Checks that a user exists. Numbers always do.
    pub(super) fn check_user(&self, user: &str) -> Result<(), Problem> {
        self.check_account("/etc/passwd", user, "user")
    }

    /// Checks that a group exists. Numbers always do.
    pub(super) fn check_group(&self, group: &str) -> Result<(), Problem> {
        self.check_account("/etc/group", group, "group")
    }

    fn check_account(&self, file: &str, name: &str, noun: &str) -> Result<(), Problem> {
        if name.parse::<u32>().is_ok() {
            return Ok(());
        }
        let text = fs::read_to_string(self.at(Path::new(file))).map_err(|e| {
            Problem::new(
                format!("look up the {noun} `{name}` in {file}: {e}"),
                format!("give the {noun}'s number"),
            )
        })?;
        let known = text
            .lines()
            .filter_map(|line| line.split(':').next())
            .any(|known| known == name);
        if known {
            Ok(())
        } else {
            Err(Problem::new(
                format!("there is no {noun} `{name}` in {file}"),
                format!("create it with `{noun}add --system {name}`, or name another"),
            ))
        }
    }

    /// The absolute path of what an app's command starts.
    pub(super) fn find_program(&self, exec: &Exec) -> Result<String, Problem> {
        let program = exec.command.first().map_or("", String::as_str);
        if program.starts_with('/') {
            return match self.runnable(Path::new(program)) {
                Ok(()) => Ok(program.to_owned()),
                Err(why) => Err(Problem::new(
                    format!("`{program}` {why}"),
                    "install it or correct the path",
                )),
            };
        }
        if program.is_empty() || program.contains('/') {
            return Err(Problem::new(
                format!("`{program}` is neither a program's name nor an absolute path"),
                "write the path from `/` on",
            ));
        }
        let search_path = exec.environment.get("PATH").unwrap_or(&self.search_path);
        search_path
            .split(':')
            .filter(|directory| directory.starts_with('/'))
            .map(|directory| Path::new(directory).join(program))
            .find(|path| self.runnable(path).is_ok())
            .and_then(|path| path.to_str().map(str::to_owned))
            .ok_or_else(|| {
                Problem::new(
                    format!("there is no program `{program}` in {search_path}"),
                    "install it or write its absolute path",
                )
            })
    }

    fn runnable(&self, path: &Path) -> Result<(), &'static str> {
        match fs::metadata(self.at(path)) {
            Err(_) => Err("does not exist or cannot be reached"),
            Ok(meta) if !meta.is_file() => Err("is not a file"),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Err("is not executable"),
            Ok(_) => Ok(()),
        }
    }

    /// Checks that a directory exists.
    pub(super) fn check_directory(&self, path: &Path) -> Result<(), Problem> {
        if self.at(path).is_dir() {
            Ok(())
        } else {
            Err(Problem::new(
                format!("there is no directory {}", path.display()),
                "create it or name another",
            ))
        }
    }

    /// Checks that a number is that of a whole block device: the kernel refuses limits on
    /// partitions, and numbers change between boots.
    pub(super) fn check_device(&self, device: Device) -> Result<(), Problem> {
        let entry = self
            .at(Path::new("/sys/dev/block"))
            .join(device.to_string());
        if !entry.exists() {
            return Err(Problem::new(
                format!("there is no block device {device}"),
                "see `lsblk` for the numbers",
            ));
        }
        if !entry.join("partition").exists() {
            return Ok(());
        }
        // The entry links to .../DISK/PARTITION.
        let disk = fs::canonicalize(&entry)
            .ok()
            .and_then(|path| fs::read_to_string(path.parent()?.join("dev")).ok());
        Err(Problem::new(
            format!("{device} is a partition, and limits hold for whole devices"),
            match disk {
                Some(disk) => format!("use its device, {}", disk.trim()),
                None => "use its device; see `lsblk`".to_owned(),
            },
        ))
    }
}
