//! Taking images with a program in CRIU's place that does as a test says.

use std::os::unix::fs::PermissionsExt as _;

use forebay_core::app::Exec;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;
use crate::ledger::Process;
use crate::supervise;

/// A program of which images are taken, and what takes them.
struct Stage {
    directory: tempfile::TempDir,
    store: Store,
    app: AppId,
    program: Child,
    mounted: bool,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = Command::new("sleep").arg("600").spawn().unwrap();
        Self {
            store: Store::new(&directory.path().join("state")),
            directory,
            app: "a".parse().unwrap(),
            program,
            mounted: false,
        }
    }

    /// The file system with the images has so many bytes; whether this may be done here.
    fn bounded(&mut self, bytes: u64) -> bool {
        let state = self.directory.path().join("state");
        fs::create_dir(&state).unwrap();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let mounted = mount("tmpfs", &state, "tmpfs", MountFlags::empty(), Some(&*size));
        self.mounted = mounted.is_ok();
        self.mounted
    }

    /// Notes what it was begun with, as the host does.
    fn note(&self) -> Process {
        let exec = Exec::of(vec!["true".to_owned()]);
        let begun = supervise::resolve(&exec).unwrap().begun();
        let process = procs::identify(Path::new("/proc"), self.program.id()).unwrap();
        let noted = self.store.note_running(&self.app, process, &begun, None);
        noted.unwrap();
        process
    }

    /// In CRIU's place, a program that does this when it is to take an image at `$images`.
    fn criu(&self, does: &str, time_max: Duration) -> Criu {
        let file = self.directory.path().join("criu");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo Version: 4.2; exit; fi\n\
             images=$5\n{does}\n"
        );
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        Criu {
            time_max,
            ..Criu::find(Some(&file)).unwrap()
        }
    }

    fn take(&self, criu: &Criu) -> Result<Taken, HostError> {
        let proc_root = Path::new("/proc");
        criu.take(&self.store, &self.app, self.program.id(), proc_root)
    }

    /// What there is of images, whole or not.
    fn images(&self) -> Vec<String> {
        let home = self.directory.path().join("state/images/a");
        let entries = fs::read_dir(home).unwrap().map(|entry| entry.unwrap());
        let directories = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        directories
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.program.kill().unwrap();
        self.program.wait().unwrap();
        if self.mounted {
            let state = self.directory.path().join("state");
            unmount(&state, UnmountFlags::empty()).unwrap();
        }
    }
}

/// Makes an image of a few bytes.
const WELL: &str = "echo x > \"$images/pages-1.img\"";

#[test]
fn one_that_hangs_is_ended_and_leaves_nothing() {
    let mut stage = Stage::new();
    stage.note();
    let said = stage.directory.path().join("pid");
    let hangs = format!(
        "{WELL}\necho $$ > {0}.new; mv {0}.new {0}\nexec sleep 600",
        said.display()
    );
    // Long enough for it to have begun.
    let criu = stage.criu(&hangs, Duration::from_secs(2));
    let began = Instant::now();
    let error = stage.take(&criu).unwrap_err().explain();
    assert!(
        error.contains("take an image of a: not done after 2 s"),
        "{error}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    let pid: u32 = fs::read_to_string(&said).unwrap().trim().parse().unwrap();
    assert_eq!(procs::identify(Path::new("/proc"), pid), None, "it goes on");
    assert_eq!(stage.images(), Vec::<String>::new());
    assert!(
        stage.program.try_wait().unwrap().is_none(),
        "the program goes on"
    );
    // And the next one is taken.
    let taken = stage.take(&stage.criu(WELL, TIME_MAX)).unwrap();
    assert_eq!((taken.image.number, taken.image.bytes), (1, 2));
    assert_eq!(stage.images(), ["1"]);
}

#[test]
fn one_that_refuses_says_why_and_leaves_the_image_before() {
    let stage = Stage::new();
    stage.note();
    stage.take(&stage.criu(WELL, TIME_MAX)).unwrap();
    let refuses = format!("{WELL}\necho 'Error (criu/x.c:5): no' > \"$images/dump.log\"\nexit 1");
    let error = stage.take(&stage.criu(&refuses, TIME_MAX)).unwrap_err();
    assert!(error.explain().contains("CRIU says: no"), "{error}");
    assert_eq!(stage.images(), ["1"]);
}

#[test]
fn no_image_is_begun_where_there_is_no_room_for_it() {
    let mut stage = Stage::new();
    if !stage.bounded(256 << 10) {
        println!("SKIPPED: no_image_is_begun_where_there_is_no_room_for_it: cannot mount here");
        return;
    }
    stage.note();
    // Of the little room there is, some is taken by what is not an image.
    let filler = stage.directory.path().join("state/filler");
    fs::write(&filler, vec![0; 200 << 10]).unwrap();
    let asked = stage.directory.path().join("asked");
    let criu = stage.criu(&format!("touch {}\n{WELL}", asked.display()), TIME_MAX);
    let error = stage.take(&criu).unwrap_err().explain();
    assert!(error.contains("MiB are free at"), "{error}");
    assert!(error.contains("make room there"), "{error}");
    assert!(!asked.exists(), "it was asked nevertheless");
    assert_eq!(stage.images(), Vec::<String>::new());
}

/// The disk fills while an image is taken.
#[test]
fn an_image_that_fills_the_disk_is_removed_and_told() {
    let mut stage = Stage::new();
    if !stage.bounded(32 << 20) {
        println!("SKIPPED: an_image_that_fills_the_disk_is_removed_and_told: cannot mount here");
        return;
    }
    stage.note();
    stage.take(&stage.criu(WELL, TIME_MAX)).unwrap();
    let fills = "dd if=/dev/zero of=\"$images/pages-1.img\" bs=1M 2>/dev/null || exit 1";
    let error = stage.take(&stage.criu(fills, TIME_MAX)).unwrap_err();
    assert!(error.explain().contains("take an image of a"), "{error}");
    assert_eq!(stage.images(), ["1"], "the one before stays");
    // There is room again.
    let taken = stage.take(&stage.criu(WELL, TIME_MAX)).unwrap();
    assert_eq!(taken.image.number, 2);
}
