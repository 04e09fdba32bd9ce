//! Rehearses a kernel in a virtual machine before the host begins anew with it.
//!
//! # Problem
//! Programs are to go on under another kernel. Whether that one comes up, and whether CRIU can begin there what it wrote
//! down here, is seen when nobody can go back any more.
//!
//! # Approach
//! A canary (`canary`) is written down by CRIU under the kernel that runs. QEMU starts the other kernel with an archive
//! (`archive`) that has this program as process 1 (`guest`), CRIU with the libraries that it has mapped, and what was
//! written down. There CRIU begins the canary, which is asked what only one can answer that has its memory.
//!
//! A rehearsal may fail for reasons that are not the kernel's: an emulated processor is not this one. So what failed where
//! the processor executes it is tried once more emulated, and what failed emulated is tried with the kernel that runs.
//! Where that one does not pass either, nothing is known of the other.
//!
//! # Properties
//! - The machine has no disk, no network and no device of this host; time, memory and what it says are bounded.
//! - A kernel whose file is whole is not said to fail where that of the kernel that runs is there and fails as well.
//! - It does not show that the initrd finds the root file system, nor drivers of this host's devices.

mod archive;
mod canary;
mod guest;
pub mod image;
mod machine;
mod modules;
mod places;

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use forebay_core::units::Bytes;
use forebay_core::update::{Rehearsal, Verdict};
use rustix::fs::FlockOperation;

use crate::checkpoint::criu::{Criu, IMAGES_DIR, last_error, room};
use crate::checkpoint::raise_numbers;
use crate::error::HostError;
use crate::{files, outside};

use archive::{Archive, copy_loaded};
use canary::{Answer, Files};
use guest::Order;
use machine::{End, Executed, Heard, Machine};
use places::{Places, clear, lock, remove};

pub use canary::run as run_canary;
pub use guest::run as run_guest;
pub use places::clear_up;

/// What emulates the machine, where programs are.
const QEMU: &str = "qemu-system-x86_64";
const INSTALL: &str = "install qemu-system-x86, or name it as `qemu` in `[daemon]`";
/// What a kernel needs besides what is in its archive, twice: packed and unpacked.
const KERNEL_MIB: u64 = 256;
/// Libraries, CRIU and images, together at most.
const OTHERS_MIB: u64 = 32;
/// What QEMU needs besides the machine's memory, and the canary here.
const AROUND_MIB: u64 = 256;
/// What is left free of the host's memory.
const SPARE_MIB: u64 = 128;
/// Numbers of processes that a machine gives away while it comes up.
const LOW_PIDS: u32 = 1024;
/// The canary may take so long to answer, CRIU to write it down or to say what it has mapped.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// Where what the machine said is left, in the directory.
pub const CONSOLE: &str = "console";

/// What is rehearsed, and with what.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The file of the kernel that runs, where it is there.
    pub running: Option<PathBuf>,
    /// Where `lib/modules` of kernels is found: usually `/`.
    pub root: PathBuf,
    /// How long one machine may be there.
    pub limit: Duration,
    /// What is made for it, and what the machine said.
    pub directory: PathBuf,
    /// CRIU; looked for where programs are unless given.
    pub criu: Option<PathBuf>,
    /// QEMU; looked for where programs are unless given.
    pub qemu: Option<PathBuf>,
    /// This program.
    pub executable: PathBuf,
    /// Whether the processor may execute the machine's instructions.
    pub accelerate: bool,
}

/// Memory that a rehearsal with this program takes, the machine's and what is around it.
#[must_use]
pub fn memory(executable: &Path) -> Bytes {
    let bytes = fs::metadata(executable).map_or(0, |found| found.len());
    Bytes((machine_mib(bytes) + AROUND_MIB) << 20)
}

const fn machine_mib(program: u64) -> u64 {
    KERNEL_MIB + 2 * ((program >> 20) + OTHERS_MIB)
}

/// Why a rehearsal came to no verdict on the kernel, or what it came to.
type Tried<T> = Result<T, Verdict>;

/// Rehearses a kernel.
///
/// # Errors
/// When the directory cannot be used. What else stands against it is a verdict.
pub fn rehearse(wanted: &Wanted) -> Result<Rehearsal, HostError> {
    let began = Instant::now();
    let directory = &wanted.directory;
    fs::create_dir_all(directory).map_err(|e| HostError::file("make", directory, e))?;
    let _lock = lock(directory, FlockOperation::LockExclusive)?;
    clear(directory)?;
    remove(&directory.join(CONSOLE), |place| fs::remove_file(place))?;
    let (kernel, tried) = look_and_try(wanted);
    clear(directory)?;
    Ok(Rehearsal {
        kernel: kernel.unwrap_or_else(|| wanted.kernel.display().to_string()),
        verdict: tried.map_or_else(|verdict| verdict, |()| Verdict::Passed),
        took: began.elapsed(),
    })
}

/// What the kernel is called, where that is known, and what came of it.
fn look_and_try(wanted: &Wanted) -> (Option<String>, Tried<()>) {
    // First of all: elsewhere kernels look otherwise.
    if let Some(why) = obstacle(wanted.qemu.as_deref()) {
        return (None, Err(Verdict::Impossible(why)));
    }
    match image::look(&wanted.kernel) {
        Err(error) => (None, Err(impossible(&error))),
        Ok(Err(why)) => (None, Err(Verdict::Failed(why))),
        Ok(Ok(said)) => {
            let release = said.release().to_owned();
            let tried = try_out(wanted, &release);
            (Some(release), tried)
        }
    }
}

/// What does not work here says nothing of the kernel.
fn impossible(error: &HostError) -> Verdict {
    Verdict::Impossible(error.explain())
}

fn try_out(wanted: &Wanted, release: &str) -> Tried<()> {
    let qemu = find_qemu(wanted.qemu.as_deref()).map_err(|error| impossible(&error))?;
    let criu = Criu::find(wanted.criu.as_deref()).map_err(|error| impossible(&error))?;
    // The machine has the same names, and no links on the way to them.
    let directory = fs::canonicalize(&wanted.directory)
        .map_err(|error| impossible(&HostError::file("find", &wanted.directory, error)))?;
    let stage = Stage::set(wanted, &criu, &directory).map_err(|error| impossible(&error))?;
    let has_modules = stage
        .pack(&criu, &wanted.root, release)
        .map_err(|error| impossible(&error))?;
    let attempt = |kernel: &Path, has_modules: bool, executed| {
        let machine = Machine {
            qemu: &qemu,
            kernel,
            archive: &stage.places.archive,
            memory_mib: stage.memory_mib,
            executed,
        };
        let (heard, end) = machine
            .run(wanted.limit, &directory.join(CONSOLE))
            .map_err(|error| impossible(&error))?;
        match judge(stage.right, &heard, &end, wanted.limit) {
            // What CRIU needs of the kernel may be in modules.
            Err(Verdict::Failed(why)) if heard.up.is_some() && !has_modules => {
                Err(Verdict::Impossible(format!(
                    "the kernel has no modules in {}, and without: {why}",
                    wanted.root.join(modules::DIRECTORY).display()
                )))
            }
            judged => judged,
        }
    };
    let is_fast = wanted.accelerate
        && File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
    if is_fast && attempt(&wanted.kernel, has_modules, Executed::ByProcessor).is_ok() {
        return Ok(());
    }
    let failed = match attempt(&wanted.kernel, has_modules, Executed::ByEmulator) {
        Err(Verdict::Failed(why)) => why,
        other => return other,
    };
    let with_another = |running: &Path| {
        let said = image::look(running).map_err(|error| impossible(&error))?;
        let said = said.map_err(Verdict::Impossible)?;
        let packed = stage.pack(&criu, &wanted.root, said.release());
        let has_modules = packed.map_err(|error| impossible(&error))?;
        attempt(running, has_modules, Executed::ByEmulator)
    };
    // What it said is what somebody wants to see, and not what the other one says.
    let console = fs::read(directory.join(CONSOLE));
    let compared = wanted.running.as_deref().map(with_another);
    let verdict = compare(failed, compared);
    if let Err(error) = console.and_then(|text| fs::write(directory.join(CONSOLE), text)) {
        tracing::warn!(%error, "what the machine said is lost");
    }
    Err(verdict)
}

/// What is known of a kernel that failed so, by what came of the one that runs in its place.
fn compare(failed: String, running: Option<Tried<()>>) -> Verdict {
    let untried = match running {
        Some(Ok(())) => return Verdict::Failed(failed),
        Some(Err(Verdict::Failed(why))) => {
            return Verdict::Impossible(format!(
                "the kernel that runs does not pass here either ({why}), and so nothing is known of another one ({failed})"
            ));
        }
        Some(Err(other)) => other.why().unwrap_or_default().to_owned(),
        None => "its file is not in /boot".to_owned(),
    };
    // Who waits in vain loses time; who boots it loses the host.
    Verdict::Failed(format!(
        "{failed}; the kernel that runs could not be tried out in its place ({untried}), so the machine may be to blame"
    ))
}

/// Why nothing can be rehearsed here, if so.
#[must_use]
pub fn obstacle(qemu: Option<&Path>) -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("this host is no x86-64, and nothing else is rehearsed".to_owned());
    }
    find_qemu(qemu).err().map(|error| error.explain())
}

fn find_qemu(named: Option<&Path>) -> Result<PathBuf, HostError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(QEMU));
    let found = match named {
        Some(named) => Some(named.to_owned()),
        None => places.find(|program| program.is_file()),
    };
    let found = found.ok_or_else(|| HostError::missing(format!("find {QEMU}"), INSTALL))?;
    match found.is_file() {
        true => Ok(found),
        false => Err(HostError::missing(
            format!("find {}", found.display()),
            INSTALL,
        )),
    }
}

/// All that a machine is started with, and what its canary has to answer.
struct Stage {
    places: Places,
    memory_mib: u64,
    /// What the canary has mapped.
    libraries: Vec<PathBuf>,
    number: u64,
    right: Answer,
}

impl Stage {
    fn set(wanted: &Wanted, criu: &Criu, directory: &Path) -> Result<Self, HostError> {
        let places = Places::of(directory);
        let has_room = |needed: u64, room: u64, what: &str| match needed <= room {
            true => Ok(()),
            false => Err(HostError::invalid(
                format!(
                    "rehearse with {} MiB of {what}: {} MiB are free",
                    needed >> 20,
                    room >> 20
                ),
                "make room, or rehearse when there is some",
            )),
        };
        let whole = fs::metadata(&wanted.executable).map_or(0, |found| found.len());
        let disk = format!("disk at {}", directory.display());
        has_room(
            2 * whole + ((3 * OTHERS_MIB) << 20),
            room(directory)?,
            &disk,
        )?;
        let loaded = copy_loaded(&wanted.executable, &places.program)?;
        let memory_mib = machine_mib(loaded);
        let needed = memory_mib + AROUND_MIB + SPARE_MIB;
        has_room(needed << 20, free_memory()?, "memory")?;
        for place in [&places.images, &places.canary] {
            fs::create_dir(place).map_err(|error| HostError::file("make", place, error))?;
        }
        let libraries = write_canary_down(&places, criu)?;
        let number = number();
        Ok(Self {
            places,
            memory_mib,
            libraries,
            number,
            right: Answer::right(2, number),
        })
    }

    /// Packs the archive that a machine with this kernel begins with; whether the kernel has modules.
    fn pack(&self, criu: &Criu, root: &Path, release: &str) -> Result<bool, HostError> {
        let places = &self.places;
        let (criu, mapped) = begun_criu(criu, &places.canary)?;
        let mut archive = Archive::create(&places.archive)?;
        archive.link(Path::new("/init"), &places.program)?;
        archive.take(&places.program)?;
        for library in self.libraries.iter().chain(&mapped) {
            archive.library(library)?;
        }
        // Where loaders are looked for, and where they look.
        for way in [
            "/lib",
            "/lib64",
            "/bin",
            "/sbin",
            LOADER,
            "/etc/ld.so.cache",
        ] {
            if Path::new(way).exists() {
                archive.take(Path::new(way))?;
            }
        }
        for word in criu.iter().filter(|word| word.starts_with('/')) {
            if Path::new(word).is_file() {
                archive.take(Path::new(word))?;
            }
        }
        for directory in [&places.images, &places.canary] {
            archive.directory(directory)?;
            let names =
                fs::read_dir(directory).map_err(|e| HostError::file("read", directory, e))?;
            for entry in names {
                let entry = entry.map_err(|e| HostError::file("read", directory, e))?;
                archive.take(&entry.path())?;
            }
        }
        let has_modules = modules::take(&mut archive, root, release)?;
        let order = Order {
            criu,
            images: places.images.clone(),
            canary: places.canary.clone(),
            number: self.number,
        };
        let order = serde_json::to_string(&order)
            .map_err(|error| HostError::told(format!("say what the machine is to do: {error}")))?;
        archive.text(Path::new(guest::ORDER), &order)?;
        archive.finish()?;
        Ok(has_modules)
    }
}

/// What came of a machine whose canary has to answer so.
fn judge(right: Answer, heard: &Heard, end: &End, limit: Duration) -> Tried<()> {
    let failed = |why: String| Err(Verdict::Failed(why));
    let seconds = limit.as_secs_f64();
    match (end, heard.answer) {
        (End::NoMachine(why), _) => return Err(Verdict::Impossible(why.clone())),
        (_, Some(answer)) if answer == right => return Ok(()),
        (_, Some(answer)) => {
            return failed(format!(
                "the canary went on with another memory: it answers {} {}, and has to answer {} {}",
                answer.count, answer.sum, right.count, right.sum
            ));
        }
        (End::Over | End::TooLong, None) => {}
    }
    let tail = heard.tail();
    match (&heard.up, heard.troubles.first(), end) {
        (None, _, End::TooLong) => failed(format!(
            "it did not come up within {seconds} s; its console says: {tail}"
        )),
        (None, ..) => failed(format!("it did not come up; its console says: {tail}")),
        (Some(_), Some(trouble), _) if heard.restored => {
            failed(format!("it came up, CRIU began the canary, and: {trouble}"))
        }
        (Some(_), Some(trouble), _) => failed(format!(
            "it came up, and CRIU cannot begin there what it wrote down here: {trouble}"
        )),
        (Some(_), None, End::TooLong) => failed(format!(
            "it came up, and was not done within {seconds} s; its console says: {tail}"
        )),
        (Some(_), None, _) => failed(format!(
            "it came up, and ended before the canary answered; its console says: {tail}"
        )),
    }
}

fn free_memory() -> Result<u64, HostError> {
    let text = files::read_text(Path::new("/proc/meminfo"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let kib = kib.ok_or_else(|| {
        HostError::invalid(
            "find how much memory is free in /proc/meminfo",
            "look at it",
        )
    })?;
    Ok(kib << 10)
}

/// One that nobody knew before.
fn number() -> u64 {
    let mut bytes = [0; 8];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(1, |now| now.as_secs() ^ u64::from(now.subsec_nanos()));
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // It only has to be another one than before.
        Ok(_) | Err(_) => now,
    }
}

/// Ended with this.
struct Canary(Child);

impl Drop for Canary {
    fn drop(&mut self) {
        // One that was written down has ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Has CRIU write down a canary, which ends it; the libraries that it has mapped.
fn write_canary_down(places: &Places, criu: &Criu) -> Result<Vec<PathBuf>, HostError> {
    let canary = begin_canary(places)?;
    let pid = canary.0.id();
    let first = number();
    let answer = canary::ask(&Files::of(&places.canary), first, PATIENCE)?;
    if answer != Answer::right(1, first) {
        return Err(HostError::invalid(
            "ask the canary on this host: its memory is not what it wrote there",
            "have the memory of this host tested",
        ));
    }
    // Before it answers they may not be there yet.
    let libraries = mapped(pid)?;
    let mut command = Command::new(criu.program());
    command
        .args(["dump", "--tree", &pid.to_string()])
        .arg(IMAGES_DIR)
        .arg(&places.images)
        .args(["--manage-cgroups=ignore", "--network-lock", "skip"])
        .args(["--log-file", DUMP_LOG])
        .stdin(Stdio::null());
    outside::have_step_out(&mut command);
    let status = finish(&mut command, PATIENCE)?;
    if status.success() {
        return Ok(libraries);
    }
    Err(HostError::invalid(
        format!(
            "write down the canary on this host: {}",
            last_error(&places.images.join(DUMP_LOG))
        ),
        "`criu check` says what it lacks here",
    ))
}

const DUMP_LOG: &str = "dump.log";

fn begin_canary(places: &Places) -> Result<Canary, HostError> {
    let begin = || {
        let mut command = Command::new(&places.program);
        command
            .arg("rehearsal-canary")
            .arg(&places.canary)
            .env_clear()
            // The C library would choose what this processor can and the emulated one cannot.
            .env("GLIBC_TUNABLES", PLAIN_PROCESSOR)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        inherit_nothing(&mut command);
        command
            .spawn()
            .map(Canary)
            .map_err(|error| HostError::file("run", &places.program, error))
    };
    let canary = begin()?;
    if canary.0.id() >= LOW_PIDS {
        return Ok(canary);
    }
    // Its number would be somebody else's in the machine.
    drop(canary);
    raise_numbers(Path::new("/proc"))?;
    begin()
}

/// What whoever began this left open is not the canary's: it would be written down with it, or CRIU would refuse.
#[expect(unsafe_code, reason = "rustix does not have close_range")]
fn inherit_nothing(command: &mut Command) {
    let mark = || {
        // SAFETY: one plain system call on plain numbers, which closes nothing before the program begins.
        let done = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: it allocates nothing and takes no lock, as has to be between fork and exec. There is no safe way to run code
    // there.
    unsafe {
        command.pre_exec(mark);
    }
}

/// For glibc's dynamic loader ("Hardware Capability Tunables" of its manual).
const PLAIN_PROCESSOR: &str =
    "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-ERMS,-FSRM,-XSAVEC,-RTM";

/// The files that a process has mapped, apart from those that were removed.
fn mapped(pid: u32) -> Result<Vec<PathBuf>, HostError> {
    let text = files::read_text(Path::new(&format!("/proc/{pid}/maps")))?;
    let mut paths: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| Some(&line[line.find('/')?..]))
        .filter(|path| !path.ends_with(" (deleted)"))
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// What CRIU is begun with, whatever script stands before it, and the files that it has mapped: of one that serves.
fn begun_criu(criu: &Criu, directory: &Path) -> Result<(Vec<String>, Vec<PathBuf>), HostError> {
    let socket = directory.join("criu.socket");
    let log = directory.join("service.log");
    let mut command = Command::new(criu.program());
    command
        .arg("service")
        .arg("--address")
        .arg(&socket)
        .arg("--log-file")
        .arg(&log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let own = command.get_args().count();
    let child = command
        .spawn()
        .map_err(|error| HostError::file("run", criu.program(), error))?;
    let serving = Canary(child);
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        if Instant::now() >= deadline {
            return Err(HostError::invalid(
                format!("have {} serve: it does not", criu.program().display()),
                "`criu service` says why",
            ));
        }
        std::thread::sleep(LOOK);
    }
    let pid = serving.0.id();
    let files = mapped(pid)?;
    let words = files::read_text(Path::new(&format!("/proc/{pid}/cmdline")))?;
    let mut words: Vec<String> = words
        .trim_end_matches('\0')
        .split('\0')
        .map(str::to_owned)
        .collect();
    words.truncate(words.len().saturating_sub(own));
    // The machine has no PATH that it would be looked for in.
    let program = Path::new(&format!("/proc/{pid}/exe")).to_owned();
    let program = fs::read_link(&program).map_err(|e| HostError::file("read", &program, e))?;
    if let Some(first) = words.first_mut() {
        *first = program.display().to_string();
    }
    drop(serving);
    remove(&socket, |socket| fs::remove_file(socket))?;
    remove(&log, |log| fs::remove_file(log))?;
    Ok((words, files))
}

/// What programs for this processor name as their loader.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Runs a command to its end; it is ended where it takes too long.
fn finish(command: &mut Command, most: Duration) -> Result<ExitStatus, HostError> {
    let program = PathBuf::from(command.get_program());
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| HostError::file("run", &program, error))?;
    let deadline = Instant::now() + most;
    loop {
        let ended = child.try_wait();
        if let Some(status) = ended.map_err(|e| HostError::file("wait for", &program, e))? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child
                .kill()
                .and_then(|()| child.wait())
                .map_err(|error| HostError::file("end", &program, error))?;
            return Err(HostError::invalid(
                format!(
                    "run {}: not done after {} s",
                    program.display(),
                    most.as_secs()
                ),
                "see whether this host is too busy for it",
            ));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_of_a_machine_decides() {
        let right = Answer { count: 2, sum: 7 };
        let check = |lines: &[&str], end: End, expected: &str| {
            let mut heard = Heard::default();
            for line in lines {
                heard.line(line);
            }
            let verdict = judge(right, &heard, &end, Duration::from_secs(9));
            let verdict = verdict.err().unwrap_or(Verdict::Passed);
            let said = format!("{}: {}", verdict.word(), verdict.why().unwrap_or_default());
            assert!(said.starts_with(expected), "{lines:?}: {said}");
        };
        let up = "forebay-rehearsal: up 6.1";
        let restored = "forebay-rehearsal: restored";
        let trouble = "forebay-rehearsal: trouble CRIU ended with exit status: 1: no vdso";
        let answered = "forebay-rehearsal: answered 2 7";
        check(&[up, restored, answered], End::Over, "passed");
        // Whatever becomes of it after that.
        check(&[up, restored, answered], End::TooLong, "passed");
        let anew = "forebay-rehearsal: answered 1 7";
        check(
            &[up, restored, anew],
            End::Over,
            "failed: the canary went on with another memory: it answers 1 7",
        );
        check(
            &[],
            End::TooLong,
            "failed: it did not come up within 9 s; its console says: nothing",
        );
        check(
            &["-- System halted"],
            End::Over,
            "failed: it did not come up; its console says: -- System halted",
        );
        check(
            &[up, trouble],
            End::Over,
            "failed: it came up, and CRIU cannot begin there what it wrote down here: CRIU ended",
        );
        check(
            &[up, restored, trouble],
            End::Over,
            "failed: it came up, CRIU began the canary, and: CRIU ended",
        );
        check(
            &[up, "Oops"],
            End::TooLong,
            "failed: it came up, and was not done within 9 s; its console says: Oops",
        );
        check(
            &[up],
            End::Over,
            "failed: it came up, and ended before the canary answered",
        );
        check(
            &[],
            End::NoMachine("no memory".to_owned()),
            "impossible: no memory",
        );
    }

    #[test]
    fn a_kernel_fails_unless_the_one_that_runs_does_as_well() {
        let check = |running: Option<Tried<()>>, expected: &str| {
            let verdict = compare("a panic".to_owned(), running);
            let said = format!("{}: {}", verdict.word(), verdict.why().unwrap_or_default());
            assert!(
                said.starts_with(expected) && said.contains("a panic"),
                "{said}"
            );
        };
        check(Some(Ok(())), "failed: a panic");
        check(
            Some(Err(Verdict::Failed("no vdso".to_owned()))),
            "impossible: the kernel that runs does not pass here either (no vdso)",
        );
        check(
            Some(Err(Verdict::Impossible("no modules".to_owned()))),
            "failed: a panic; the kernel that runs could not be tried out in its place (no modules)",
        );
        check(None, "failed: a panic; the kernel that runs could not");
    }

    #[test]
    fn without_qemu_nothing_is_known() {
        let why = obstacle(Some(Path::new("/no/such/qemu"))).unwrap();
        assert!(
            why.contains("find /no/such/qemu") && why.contains("qemu-system-x86"),
            "{why}"
        );
        let directory = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            kernel: directory.path().join("vmlinuz"),
            running: None,
            root: "/".into(),
            limit: Duration::from_secs(1),
            directory: directory.path().join("rehearsal"),
            criu: None,
            qemu: Some("/no/such/qemu".into()),
            executable: "/bin/true".into(),
            accelerate: false,
        };
        fs::write(&wanted.kernel, "no kernel").unwrap();
        let found = rehearse(&wanted).unwrap();
        let why = found.verdict.why().unwrap_or_default();
        assert!(why.contains("/no/such/qemu"), "{found:?}");
        assert!(matches!(found.verdict, Verdict::Impossible(_)), "{found:?}");
        // A file that is no kernel needs no machine to be found out.
        let wanted = Wanted {
            qemu: Some("/bin/true".into()),
            ..wanted
        };
        let found = rehearse(&wanted).unwrap();
        assert!(matches!(found.verdict, Verdict::Failed(_)), "{found:?}");
        let found = rehearse(&Wanted {
            kernel: "/no/such/kernel".into(),
            ..wanted
        });
        let found = found.unwrap();
        assert!(matches!(found.verdict, Verdict::Impossible(_)), "{found:?}");
    }
}
