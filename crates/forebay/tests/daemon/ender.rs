//! Programs in place of those that would end this host: they only say that they were asked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::place::Place;

/// The programs of one place.
#[derive(Debug)]
pub(crate) struct Ender {
    bin: PathBuf,
    asked: PathBuf,
}

impl Ender {
    /// Programs of these names, and the status that each ends with.
    pub(crate) fn new(place: &Place, programs: &[(&str, u8)]) -> Self {
        let ender = Self {
            bin: place.path("bin"),
            asked: place.path("asked"),
        };
        fs::create_dir_all(&ender.bin).unwrap();
        for (name, status) in programs {
            let asked = ender.asked.display();
            let text = format!("#!/bin/sh\necho {name} $* >>{asked}\nexit {status}\n");
            let program = ender.bin.join(name);
            fs::write(&program, text).unwrap();
            fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        ender
    }

    /// The daemon of a place, which never begins without them.
    pub(crate) fn daemon_command(&self, place: &Place) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = place.daemon_command();
        command.env("PATH", format!("{}:{path}", self.bin.display()));
        command
    }

    /// What was asked of them, a line each.
    pub(crate) fn asked(&self) -> String {
        fs::read_to_string(&self.asked).unwrap_or_default()
    }

    /// Nothing was asked.
    pub(crate) fn forget(&self) {
        fs::remove_file(&self.asked).unwrap();
    }
}
