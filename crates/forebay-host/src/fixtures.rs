//! Hosts of several kernels as trees of files, for tests. Each is one text in
//! `tests/fixtures`, compiled in, so that a test finds it wherever it runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use forebay_core::app::{App, Binding, Class, Device, IoMax};

use crate::groups;
use crate::mounts::Hierarchies;

/// Debian 12: v2 alone, kernel 6.1.
pub(crate) const DEBIAN_12: &str = include_str!("../tests/fixtures/debian-12-v2-6.1.txt");
/// Debian 13: v2 alone, kernel 6.12.
pub(crate) const DEBIAN_13: &str = include_str!("../tests/fixtures/debian-13-v2-6.12.txt");
/// v1, each controller by itself, with v2 beside it; kernel 6.18.
pub(crate) const HYBRID: &str = include_str!("../tests/fixtures/hybrid-6.18.txt");
/// Debian 11 told to use v1 alone: cpu and cpuacct in one hierarchy, kernel 5.10.
pub(crate) const DEBIAN_11_V1: &str = include_str!("../tests/fixtures/debian-11-v1-5.10.txt");

/// The one group that each fixture has, with a program in it.
const GROUP: &str = "fixture.web";
/// The disk of which Debian 13's has a limit.
pub(crate) const DEVICE: Device = Device {
    major: 253,
    minor: 0,
};

/// A fixture unpacked, gone when this is dropped.
pub(crate) struct Tree {
    _root: tempfile::TempDir,
    /// As they would be found were the tree's root the host's.
    pub(crate) hierarchies: Hierarchies,
}

impl Tree {
    pub(crate) fn unpack(fixture: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files(fixture) {
            let path = below(root.path(), Path::new(path));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let hierarchies = hierarchies(fixture).at(|mount| below(root.path(), mount));
        Self {
            _root: root,
            hierarchies,
        }
    }

    /// The directories of the group, by hierarchy.
    pub(crate) fn dirs(&self) -> Vec<Option<PathBuf>> {
        let mut dirs = vec![None; self.hierarchies.list().len()];
        for (index, hierarchy) in groups::used(&self.hierarchies) {
            dirs[index] = Some(hierarchy.dir(Path::new(GROUP)));
        }
        dirs
    }
}

/// An app to look at it for.
pub(crate) fn app() -> App {
    App {
        io_max: BTreeMap::from([(DEVICE, IoMax::NONE)]),
        ..App::new(
            "web".parse().unwrap(),
            Class::Standard,
            Binding::Cgroup(GROUP.into()),
        )
    }
}

/// A pipe in place of a kernel's file: without a reader it makes its writer wait, as a kernel does
/// that reclaims.
pub(crate) fn slow_file(path: &Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

/// The hierarchies of a fixture, where they were on its host.
pub(crate) fn hierarchies(fixture: &str) -> Hierarchies {
    let mountinfo = text(fixture, Path::new("/proc/self/mountinfo")).unwrap();
    Hierarchies::parse(mountinfo, |mount| {
        let file = mount.join("cgroup.controllers");
        text(fixture, &file).unwrap_or_default().to_owned()
    })
}

/// One file of a fixture.
pub(crate) fn text<'a>(fixture: &'a str, file: &Path) -> Option<&'a str> {
    files(fixture)
        .find(|(path, _)| Path::new(path) == file)
        .map(|(_, text)| text)
}

/// Paths and texts: each file begins with a line `== PATH`.
fn files(fixture: &str) -> impl Iterator<Item = (&str, &str)> {
    fixture
        .split("== ")
        .skip(1)
        .map(|file| file.split_once('\n').unwrap())
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap())
}
