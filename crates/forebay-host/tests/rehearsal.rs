//! Kernels are tried out in a virtual machine: those of Debian's that `cargo xtask vm build` leaves, whole and damaged.
//! This program plays process 1 of the machine, and the canary in it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, which clippy does not see without the usual harness"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forebay_core::update::{Rehearsal, Verdict};
use forebay_host::rehearsal::{CONSOLE, Wanted, obstacle, rehearse, run_canary, run_guest};

/// Where `cargo xtask setup` puts CRIU, and `cargo xtask vm build` kernels.
const CRIU: &str = "/var/cache/forebay-criu/criu";
const KERNELS: &str = "/var/cache/forebay-vm";
/// A machine that is up in seconds may take so long on a busy host.
const LIMIT: Duration = Duration::from_secs(300);
/// Process 1 ends at once in a rehearsal whose directory is named so.
const DIES: &str = "process-1-dies";

type Trial = (&'static str, fn(&Stage));

const TRIALS: [Trial; 7] = [
    ("debians_stable_kernel_passes", |stage| {
        passes(stage, "stable")
    }),
    ("debians_old_kernel_passes", |stage| passes(stage, "old")),
    (
        "a_kernel_whose_file_is_cut_fails_before_anything_is_started",
        is_cut,
    ),
    ("a_kernel_whose_file_is_damaged_fails", is_damaged),
    ("a_machine_whose_process_1_dies_does_not_pass", dies),
    (
        "what_fails_under_the_kernel_that_runs_says_nothing_of_another",
        says_nothing,
    ),
    (
        "a_machine_that_takes_too_long_does_not_pass",
        takes_too_long,
    ),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            for (name, _) in TRIALS {
                println!("{name}: test");
            }
        }
        return;
    }
    match arguments.get(1).map(String::as_str) {
        Some("rehearsal-canary") => return run_canary(Path::new(&arguments[2])).unwrap(),
        Some("rehearsal-init") => {
            let program = fs::read_link("/init").unwrap();
            if program.to_string_lossy().contains(DIES) {
                return;
            }
            return run_guest().unwrap();
        }
        _ => {}
    }
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let is_any = TRIALS.iter().any(|(name, _)| named(name));
    for (name, trial) in TRIALS {
        if is_any && !named(name) {
            continue;
        }
        match Stage::new() {
            Ok(stage) => {
                println!("{name}");
                trial(&stage);
            }
            Err(why) => println!("SKIPPED: {name}: {why}"),
        }
    }
}

struct Stage {
    kernels: PathBuf,
    place: tempfile::TempDir,
}

impl Stage {
    fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("not root".to_owned());
        }
        if !Path::new(CRIU).exists() {
            return Err("no CRIU; `cargo xtask setup` unpacks one".to_owned());
        }
        if let Some(why) = obstacle(None) {
            return Err(why);
        }
        let named = std::env::var_os("FOREBAY_VM_CACHE");
        let kernels = named.map_or_else(|| PathBuf::from(KERNELS), PathBuf::from);
        for kind in ["stable", "old"] {
            if !kernels.join(format!("vmlinuz-{kind}")).is_file() {
                return Err(format!(
                    "no kernel in {}; `cargo xtask vm build` gets some",
                    kernels.display()
                ));
            }
        }
        // What is written down goes on where its files are, and many systems have /tmp in memory.
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let lib = place.path().join("lib");
        fs::create_dir(&lib).unwrap();
        // The modules of these kernels are in the root file system of guests.
        let extracted = Command::new("debugfs")
            .arg("-R")
            .arg(format!("rdump /usr/lib/modules {}", lib.display()))
            .arg(kernels.join("root.ext4"))
            .output();
        if !lib.join("modules").is_dir() {
            return Err(format!("no modules of the kernels: {extracted:?}"));
        }
        Ok(Self { kernels, place })
    }

    fn kernel(&self, kind: &str) -> PathBuf {
        self.kernels.join(format!("vmlinuz-{kind}"))
    }

    /// A rehearsal of a kernel, emulated; no other kernel is known to work.
    fn wanted(&self, kernel: &Path) -> Wanted {
        Wanted {
            kernel: kernel.to_owned(),
            running: None,
            root: self.place.path().to_owned(),
            limit: LIMIT,
            directory: self.place.path().join("rehearsal"),
            criu: Some(CRIU.into()),
            qemu: None,
            executable: std::env::current_exe().unwrap(),
            accelerate: false,
        }
    }

    /// A copy of a kernel that was changed.
    fn changed(&self, change: impl Fn(&mut Vec<u8>)) -> PathBuf {
        let mut file = fs::read(self.kernel("stable")).unwrap();
        change(&mut file);
        let kernel = self.place.path().join("vmlinuz");
        fs::write(&kernel, file).unwrap();
        kernel
    }
}

/// Rehearses; nothing but what the machine said is left of it.
fn run(wanted: &Wanted) -> Rehearsal {
    let found = rehearse(wanted).unwrap();
    println!("{found:?}");
    let left = fs::read_dir(&wanted.directory).unwrap();
    for entry in left {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!([CONSOLE, "lock"].contains(&name.as_str()), "{name} is left");
    }
    found
}

fn failed(found: &Rehearsal) -> &str {
    match &found.verdict {
        Verdict::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

/// Why a kernel did not pass of which nothing is known all the same.
fn uncompared(found: &Rehearsal) -> &str {
    match &found.verdict {
        Verdict::Impossible(why) if why.contains("the file of the kernel that runs") => why,
        other => panic!("{other:?}"),
    }
}

fn passes(stage: &Stage, kind: &str) {
    let wanted = stage.wanted(&stage.kernel(kind));
    let found = run(&wanted);
    let console = fs::read_to_string(wanted.directory.join(CONSOLE));
    let console = console.unwrap_or_default();
    assert_eq!(found.verdict, Verdict::Passed, "{console}");
    assert!(
        console.contains(&format!("up {}", found.kernel)),
        "{console}"
    );
}

fn is_cut(stage: &Stage) {
    let kernel = stage.changed(|file| file.truncate(file.len() / 2));
    let wanted = stage.wanted(&kernel);
    let found = run(&wanted);
    assert!(
        failed(&found).contains("its file is not whole"),
        "{found:?}"
    );
    assert!(!wanted.directory.join(CONSOLE).exists());
}

fn is_damaged(stage: &Stage) {
    let kernel = stage.changed(|file| {
        // Where what is compressed begins, by the Linux/x86 boot protocol.
        let offset = u32::from_le_bytes(file[0x248..0x24C].try_into().unwrap());
        let begin = (usize::from(file[0x1F1]) + 1) * 512 + usize::try_from(offset).unwrap();
        file[begin..begin + 4096].fill(0x5A);
    });
    let wanted = Wanted {
        // What is known to work tells the kernel's fault from the rehearsal's.
        running: Some(stage.kernel("stable")),
        ..stage.wanted(&kernel)
    };
    let found = run(&wanted);
    let why = failed(&found);
    assert!(
        why.contains("it did not come up") && why.contains("System halted"),
        "{why}"
    );
    let console = fs::read_to_string(wanted.directory.join(CONSOLE)).unwrap();
    assert!(
        console.contains("System halted"),
        "it is that of the other kernel: {console}"
    );
}

fn dies(stage: &Stage) {
    let mut wanted = stage.wanted(&stage.kernel("stable"));
    wanted.directory = stage.place.path().join(DIES);
    let found = run(&wanted);
    let why = uncompared(&found);
    assert!(
        why.contains("Kernel panic - not syncing: Attempted to kill init"),
        "{why}"
    );
}

fn says_nothing(stage: &Stage) {
    let mut wanted = stage.wanted(&stage.kernel("stable"));
    wanted.directory = stage.place.path().join(DIES);
    wanted.running = Some(stage.kernel("old"));
    match run(&wanted).verdict {
        Verdict::Impossible(why) => {
            assert!(why.contains("the kernel that runs does not pass"), "{why}")
        }
        other => panic!("{other:?}"),
    }
}

fn takes_too_long(stage: &Stage) {
    let mut wanted = stage.wanted(&stage.kernel("stable"));
    wanted.limit = Duration::from_millis(500);
    let found = run(&wanted);
    assert!(
        uncompared(&found).contains("it did not come up within 0.5 s"),
        "{found:?}"
    );
}
