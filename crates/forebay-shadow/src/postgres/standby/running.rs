//! Whether a server runs in a directory.
//!
//! A server works in the directory of its data, and so do all its processes: that is what tells them
//! from others, whatever number `postmaster.pid` has been left with. It is the inode that counts, so
//! a link or another mount namespace hides nobody.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What every process of a server is called.
const NAME: &str = "postgres";

/// The server that runs in a directory: its postmaster, or what is left of it when that one is gone.
pub(super) fn server_in(directory: &Path) -> Option<u32> {
    let data = fs::metadata(directory).ok()?;
    let is_here = |pid: u32| match fs::metadata(format!("/proc/{pid}/cwd")) {
        Ok(place) => Some((place.dev(), place.ino()) == (data.dev(), data.ino())),
        // Whoever may not look at it is to take it for one of the owner's servers if it could be.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let owner = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
            Some(owner == data.uid() && is_postgres(pid))
        }
        // It has ended.
        Err(_) => None,
    };
    let runs = |pid: &u32| *pid != std::process::id() && is_here(*pid) == Some(true);
    noted(directory).filter(runs).or_else(|| {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        processes.find(|pid| is_postgres(*pid) && runs(pid))
    })
}

/// Whom the file names that a server leaves while it runs; one of a single user with a minus.
fn noted(directory: &Path) -> Option<u32> {
    let text = fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    Some(pid.unsigned_abs())
}

fn is_postgres(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == NAME)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Process(Child);

    impl Process {
        fn start(program: &Path, directory: &Path) -> Self {
            let mut command = Command::new(program);
            Self(command.arg("1000").current_dir(directory).spawn().unwrap())
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn only_whoever_works_in_the_directory_is_its_server() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        fs::create_dir(&data).unwrap();
        assert_eq!(server_in(&base.path().join("nothing")), None);
        assert_eq!(server_in(&data), None);

        // A number that somebody else has now is nobody's.
        let note =
            |pid: i64| fs::write(data.join("postmaster.pid"), format!("{pid}\n/x\n")).unwrap();
        let other = Process::start("sleep".as_ref(), base.path());
        note(other.0.id().into());
        assert_eq!(server_in(&data), None);
        note(std::process::id().into());
        assert_eq!(server_in(&data), None);

        // The one that is noted, whatever it is called.
        let server = Process::start("sleep".as_ref(), &data);
        assert_eq!(server_in(&data), None, "it is not noted, and no postgres");
        note(server.0.id().into());
        assert_eq!(server_in(&data), Some(server.0.id()));
        note(-i64::from(server.0.id()));
        assert_eq!(server_in(&data), Some(server.0.id()));
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        assert_eq!(server_in(&link), Some(server.0.id()));
        drop(server);
        assert_eq!(server_in(&data), None);

        // What its postmaster left behind.
        let postgres = base.path().join("postgres");
        let sleep = ["/usr/bin/sleep", "/bin/sleep"];
        let sleep = sleep.iter().find(|path| Path::new(path).exists()).unwrap();
        fs::copy(sleep, &postgres).unwrap();
        let orphan = Process::start(&postgres, &data);
        assert_eq!(server_in(&data), Some(orphan.0.id()));
    }
}
