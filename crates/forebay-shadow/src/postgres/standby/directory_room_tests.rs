//! Room for a copy, on a small file system.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

const MIB: u64 = 1 << 20;

/// A file system of 16 MiB, until it is dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new(test: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = mount(
            "tmpfs",
            directory.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=16m"),
        );
        if let Err(error) = mounted {
            println!("SKIPPED: {test}: cannot mount here: {error}");
            return None;
        }
        Some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let file = self.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, vec![0; usize::try_from(bytes).unwrap()]).unwrap();
        file
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::empty()).unwrap();
    }
}

fn control() -> Control {
    Control {
        system: "7441".to_owned(),
        timeline: 1,
        needs: Lsn(0),
        is_standby: true,
    }
}

#[test]
fn a_copy_is_made_where_there_is_room_for_it() {
    let Some(small) = Small::new("a_copy_is_made_where_there_is_room_for_it") else {
        return;
    };
    let directory = Directory::new(&small.path().join("data")).unwrap();
    let program = Program::new("/bin/true".into());
    let room = |bytes, before| directory.look_for_room(bytes, before, &program);
    // Of nothing that it replaces.
    assert_eq!(room(15 * MIB, None).unwrap(), Room::Beside);
    let refused = room(16 * MIB, None).unwrap_err().to_string();
    assert!(
        refused.contains("a copy of the primary takes 16 MiB")
            && refused.contains("16 MiB are free"),
        "{refused}"
    );
    small.file("data/base/1", 8 * MIB);
    let before = control();
    assert_eq!(room(7 * MIB, Some(&before)).unwrap(), Room::Beside);
    // What it replaces makes the room for it, if nothing else takes it.
    assert_eq!(room(12 * MIB, Some(&before)).unwrap(), Room::Instead);
    small.file("others", 6 * MIB);
    let refused = room(12 * MIB, Some(&before)).unwrap_err().to_string();
    assert!(refused.contains("make room"), "{refused}");
    assert!(
        small.path().join("data/base/1").exists(),
        "it was asked alone"
    );
    assert_eq!(room(9 * MIB, Some(&before)).unwrap(), Room::Instead);
    directory.clear().unwrap();
    assert!(!directory.path().exists() && !directory.old().exists());
    assert_eq!(room(9 * MIB, None).unwrap(), Room::Beside);
}

#[test]
fn a_file_system_of_its_own_is_not_replaced() {
    let Some(small) = Small::new("a_file_system_of_its_own_is_not_replaced") else {
        return;
    };
    let directory = Directory::new(small.path()).unwrap();
    let program = Program::new("/bin/true".into());
    small.file("base/1", MIB);
    let refused = directory.look_for_room(1 << 60, Some(&control()), &program);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("is a file system of its own"), "{refused}");
}
