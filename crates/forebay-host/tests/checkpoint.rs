//! A process with memory is taken apart and put together again, on one machine and in one room of process
//! numbers: it goes on where it stood and finds every page as it left it, or it goes on where it was. This
//! program plays the process and the mover too, as processes of their own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    unsafe_code,
    reason = "a test, which clippy does not see without the usual harness, of a process that forks and \
              changes its own memory"
)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::fleet::rounds::{Bounds, Verdict};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::preflight::{self, Survey};
use forebay_host::checkpoint::{
    Assembly, Criu, Freezing, Held, Landed, Landing, Lender, Orphaned, Tcp, Tracker, let_go, runs,
    take_back,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

mod lender;

use self::lender::{Slow, Snapshot};

const PAGE: usize = 4096;
const STANDS: Freezing = Freezing {
    tcp: Tcp::Keep,
    orphaned: Orphaned::Stands,
};
const GOES_ON: Freezing = Freezing {
    orphaned: Orphaned::GoesOn(None),
    ..STANDS
};
const HERE: Landing = Landing {
    tcp: Tcp::Keep,
    groups: Vec::new(),
};
/// Pages that the process has.
const PAGES: usize = 16 << 10;
/// Where `cargo xtask setup` puts it.
const UNPACKED: &str = "/var/cache/forebay-criu/criu";
const PATIENCE: Duration = Duration::from_secs(60);

type Trial = (&'static str, fn(&Criu));

const TRIALS: [Trial; 11] = [
    ("it_goes_on_where_it_stood", moves),
    ("it_goes_on_where_it_was_when_it_is_let_go", is_let_go),
    ("it_goes_on_where_it_was_when_its_mover_ended", mover_ends),
    ("its_group_holds_it_when_nobody_else_does", group_holds),
    ("its_group_alone_holds_it_when_its_mover_ended", group_alone),
    ("of_two_that_stand_one_goes_on", one_of_two),
    ("a_child_finds_all_while_memory_comes_in", forks),
    ("it_goes_on_and_its_memory_comes_after_it", moves_before),
    (
        "a_child_finds_all_while_memory_comes_after_it",
        forks_before,
    ),
    ("it_ends_when_who_fills_it_in_does", filler_ends),
    ("its_connections_are_refused_or_closed", connections),
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
    let dir = || PathBuf::from(&arguments[2]);
    match arguments.get(1).map(String::as_str) {
        Some("program") => return program(&dir()),
        Some("freezer") => return freezer(&dir(), arguments[3].parse().unwrap(), STANDS),
        Some("passer") => return freezer(&dir(), arguments[3].parse().unwrap(), GOES_ON),
        Some("talker") => return talker(&dir()),
        Some("target") => return target(&dir(), arguments[3].parse().unwrap()),
        Some("carrier") => return carrier(&dir(), arguments[3].parse().unwrap()),
        _ => {}
    }
    let criu = criu();
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let is_any = TRIALS.iter().any(|(name, _)| named(name));
    for (name, trial) in TRIALS {
        if is_any && !named(name) {
            continue;
        }
        match &criu {
            Ok(criu) => {
                println!("{name}");
                trial(criu);
            }
            Err(why) => println!("SKIPPED: {name}: {why}"),
        }
    }
}

fn criu() -> Result<Criu, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    // What is made anew is a child of whoever asked for it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let unpacked = Path::new(UNPACKED);
    Criu::find(unpacked.exists().then_some(unpacked)).map_err(|error| error.explain())
}

/// A process that counts, of its own session and with nothing of this program's open.
struct Program {
    child: Child,
    dir: tempfile::TempDir,
    is_gone: bool,
}

impl Program {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        let child = start("program", dir.path(), 0);
        let program = Self {
            child,
            dir,
            is_gone: false,
        };
        program.counts();
        program
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn number(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// How often it has looked at all of its pages, and found them as it left them.
    fn sweeps(&self) -> u64 {
        let text = fs::read_to_string(self.dir.path().join("sweeps")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    fn is_sound(&self) {
        let wrong = fs::read_to_string(self.dir.path().join("wrong"));
        assert!(wrong.is_err(), "{wrong:?}");
    }

    /// It goes on, and every page is as it left it.
    fn counts(&self) {
        let before = self.sweeps();
        eventually("it counts on", || {
            self.is_sound();
            self.sweeps() > before + 2
        });
    }

    /// It stands still: it writes nothing.
    fn stands(&self) {
        let before = self.sweeps();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(self.sweeps(), before);
    }

    /// A mover freezes it, and is there until it is ended.
    fn frozen_by_another(&self, part: &str) -> Child {
        let mover = start(part, self.dir.path(), self.pid());
        let frozen = self.dir.path().join("frozen");
        eventually("it is frozen", || frozen.exists());
        mover
    }

    /// Ends CRIU, which holds it and whose mover ended.
    fn end_criu(&self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        let tracer = Pid::from_raw(tracer.unwrap().trim().parse().unwrap()).unwrap();
        kill_process(tracer, Signal::KILL).unwrap();
        waitpid(Some(tracer), WaitOptions::empty()).unwrap();
    }

    /// It ended, whoever ended it.
    fn reap(&mut self) {
        self.child.wait().unwrap();
        self.is_gone = true;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // What was made anew under its number is a child as well.
        kill_process(self.number(), Signal::KILL).ok();
        if self.is_gone {
            waitpid(Some(self.number()), WaitOptions::empty()).ok();
        } else {
            self.child.wait().unwrap();
        }
    }
}

fn start(part: &str, dir: &Path, pid: u32) -> Child {
    Command::new("setsid")
        .arg(std::env::current_exe().unwrap())
        .arg(part)
        .arg(dir)
        .arg(pid.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not so: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const BOUNDS: Bounds = Bounds {
    aim: Duration::from_millis(300),
    most: Duration::from_secs(60),
    fixed: Duration::ZERO,
};

/// Copies a process while it runs and freezes it.
fn freeze(criu: &Criu, pid: u32, images: &Path) -> (Held, Tracker, Vec<u8>) {
    freeze_so(criu, pid, images, STANDS)
}

fn freeze_so(criu: &Criu, pid: u32, images: &Path, freezing: Freezing) -> (Held, Tracker, Vec<u8>) {
    let survey = Survey::of(pid, criu).unwrap();
    assert_eq!(survey.obstacles, [""; 0]);
    let mut tracker = Tracker::attach(pid).unwrap();
    let mut sent = Vec::new();
    let (_, verdict) = tracker.rounds(BOUNDS, &mut sent).unwrap();
    assert!(matches!(verdict, Verdict::Freeze(_)), "{verdict:?}");
    let held = Held::freeze(criu, pid, images, freezing).unwrap();
    (held, tracker, sent)
}

/// Copies the rest, ends it, and makes it anew, standing still.
fn land(criu: &Criu, mut program: Option<&mut Program>, images: &Path, pid: u32) -> Landed {
    let (held, mut tracker, mut sent) = freeze(criu, pid, images);
    tracker.last(&mut sent).unwrap();
    runs::end(&mut sent).unwrap();
    drop(tracker);
    if let Some(program) = &program {
        program.stands();
    }
    held.end().unwrap();
    match &mut program {
        Some(program) => program.reap(),
        // Its parent does.
        None => eventually("its number is free", || {
            !Path::new(&format!("/proc/{pid}")).exists()
        }),
    }
    let mut assembly = Assembly::new(Bytes::mib(1024)).unwrap();
    assembly.take(&mut sent.as_slice()).unwrap();
    Landed::prepare(criu, images, assembly, &HERE, None).unwrap()
}

fn moves(criu: &Criu) {
    let mut program = Program::start();
    let (images, pid) = (program.images(), program.pid());
    let landed = land(criu, Some(&mut program), &images, pid);
    assert_eq!(landed.pid(), pid);
    program.stands();
    landed.start().unwrap();
    program.counts();
    let filled = landed.settle().unwrap();
    assert!(filled.bytes >= Bytes((PAGES * PAGE) as u64), "{filled:?}");
    program.counts();
}

fn is_let_go(criu: &Criu) {
    let program = Program::start();
    for _ in 0..2 {
        let (held, mut tracker, mut sent) = freeze(criu, program.pid(), &program.images());
        tracker.last(&mut sent).unwrap();
        program.stands();
        held.thaw().unwrap();
        program.counts();
        drop(tracker);
        program.counts();
    }
}

fn mover_ends(criu: &Criu) {
    let program = Program::start();
    let mut mover = start("freezer", program.dir.path(), program.pid());
    let frozen = program.dir.path().join("frozen");
    eventually("it is frozen", || frozen.exists());
    mover.kill().unwrap();
    mover.wait().unwrap();
    // CRIU holds it on.
    program.stands();
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    let tracer = Pid::from_raw(tracer.unwrap().trim().parse().unwrap()).unwrap();
    kill_process(tracer, Signal::KILL).unwrap();
    waitpid(Some(tracer), WaitOptions::empty()).unwrap();
    take_back(program.pid(), &program.images()).unwrap();
    program.counts();
    // And nothing is left that keeps it from being moved later.
    let (held, ..) = freeze(criu, program.pid(), &program.images());
    held.thaw().unwrap();
    program.counts();
}

/// A control group that freezes, gone with this.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let name = format!("forebay-checkpoint-test-{}", std::process::id());
        ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(|root| Path::new(root).join(&name))
            .into_iter()
            .find_map(|dir| {
                let is_made = fs::create_dir(&dir).is_ok();
                let group = is_made.then_some(Self(dir))?;
                group.0.join("cgroup.freeze").exists().then_some(group)
            })
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    fn is_frozen(&self) -> bool {
        let events = fs::read_to_string(self.0.join("cgroup.events")).unwrap();
        events.contains("frozen 1")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually("the group goes", || fs::remove_dir(&self.0).is_ok());
    }
}

/// A group can be frozen around a process that CRIU holds. Then it stands although CRIU and the mover ended, so
/// that who may run elsewhere by then does not run here.
fn group_holds(criu: &Criu) {
    let Some(group) = Group::new() else {
        println!("SKIPPED: its_group_holds_it_when_nobody_else_does: no group that freezes");
        return;
    };
    let mut program = Program::start();
    group.write("cgroup.procs", &program.pid().to_string());
    let mut mover = program.frozen_by_another("freezer");
    group.write("cgroup.freeze", "1");
    eventually("its group stands", || group.is_frozen());
    mover.kill().unwrap();
    mover.wait().unwrap();
    program.end_criu();
    assert!(group.is_frozen());
    program.stands();
    group.write("cgroup.freeze", "0");
    take_back(program.pid(), &program.images()).unwrap();
    program.counts();
    // And CRIU ends one whose group stands.
    let (held, ..) = freeze(criu, program.pid(), &program.images());
    group.write("cgroup.freeze", "1");
    eventually("its group stands", || group.is_frozen());
    held.end().unwrap();
    program.reap();
}

/// CRIU lets it go by itself when its mover ends: it goes on, unless its group holds it, and then it goes on when that
/// is let go.
fn group_alone(_: &Criu) {
    let Some(group) = Group::new() else {
        println!("SKIPPED: its_group_alone_holds_it_when_its_mover_ended: no group that freezes");
        return;
    };
    let program = Program::start();
    group.write("cgroup.procs", &program.pid().to_string());
    let is_held = || {
        let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
        !status.contains("TracerPid:\t0\n")
    };
    for is_frozen in [false, true] {
        let mut mover = program.frozen_by_another("passer");
        program.stands();
        if is_frozen {
            group.write("cgroup.freeze", "1");
            eventually("its group stands", || group.is_frozen());
        }
        mover.kill().unwrap();
        mover.wait().unwrap();
        eventually("CRIU let it go", || !is_held());
        if is_frozen {
            program.stands();
            group.write("cgroup.freeze", "0");
        }
        program.counts();
        // What CRIU held packets up with is taken away by whoever looks after it.
        let_go(&[program.pid()], &program.images()).unwrap();
        fs::remove_file(program.dir.path().join("frozen")).unwrap();
    }
}

/// It stands still at its source and, in a room of process numbers of its own, at its target; whichever of them is
/// told to goes on, and the other is gone.
fn one_of_two(criu: &Criu) {
    let tried = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        println!("SKIPPED: of_two_that_stand_one_goes_on: no process numbers of its own");
        return;
    }
    for word in ["drop", "go"] {
        let mut program = Program::start();
        let (dir, pid) = (program.dir.path().to_owned(), program.pid());
        let (held, mut tracker, mut sent) = freeze(criu, pid, &program.images());
        tracker.last(&mut sent).unwrap();
        runs::end(&mut sent).unwrap();
        drop(tracker);
        fs::write(dir.join("pages"), sent).unwrap();
        let mut room = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(std::env::current_exe().unwrap())
            .arg("target")
            .arg(&dir)
            .arg(pid.to_string())
            .spawn()
            .unwrap();
        eventually("it stands at the target", || dir.join("prepared").exists());
        program.stands();
        if word == "go" {
            File::create(dir.join("go")).unwrap();
            program.counts();
            held.end().unwrap();
            program.reap();
            program.counts();
            eventually("all is there", || dir.join("settled").exists());
            program.counts();
            room.kill().unwrap();
            room.wait().unwrap();
        } else {
            File::create(dir.join("drop")).unwrap();
            assert!(room.wait().unwrap().success());
            program.stands();
            held.thaw().unwrap();
            program.counts();
        }
    }
}

/// The other host: it makes a process anew, and lets it go on or drops it when it is told to.
fn target(dir: &Path, pid: u32) {
    let criu = criu().unwrap();
    let mut assembly = Assembly::new(Bytes::mib(1024)).unwrap();
    let mut pages = File::open(dir.join("pages")).unwrap();
    assembly.take(&mut pages).unwrap();
    let landed = Landed::prepare(&criu, &dir.join("images"), assembly, &HERE, None).unwrap();
    File::create(dir.join("prepared")).unwrap();
    let (go, drop) = (dir.join("go"), dir.join("drop"));
    eventually("it is told", || go.exists() || drop.exists());
    if go.exists() {
        landed.start().unwrap();
        landed.settle().unwrap();
        File::create(dir.join("settled")).unwrap();
        wait();
    }
    landed.discard().unwrap();
    let stat = format!("/proc/{pid}/stat");
    eventually("it is gone", || {
        let text = fs::read_to_string(&stat).unwrap_or_default();
        text.is_empty() || text.contains(") Z ")
    });
}

fn forks(criu: &Criu) {
    let mut program = Program::start();
    let (images, pid) = (program.images(), program.pid());
    let landed = land(criu, Some(&mut program), &images, pid);
    File::create(program.dir.path().join("fork")).unwrap();
    landed.start().unwrap();
    let swept = program.dir.path().join("child");
    eventually("a child looked at all", || {
        program.is_sound();
        swept.exists()
    });
    program.counts();
    landed.settle().unwrap();
    program.counts();
}

/// Makes it anew with nothing of its memory but what is fetched.
fn land_before(criu: &Criu, program: &mut Program) -> Landed {
    let (images, pid) = (program.images(), program.pid());
    let (held, tracker, mut sent) = freeze(criu, pid, &images);
    runs::end(&mut sent).unwrap();
    drop(tracker);
    program.stands();
    let (snapshot, named) = Snapshot::of(pid);
    held.end().unwrap();
    program.reap();
    let mut assembly = Assembly::new(Bytes::mib(1024)).unwrap();
    assembly.take(&mut sent.as_slice()).unwrap();
    assembly.owe(&mut named.as_slice()).unwrap();
    let lender: Arc<dyn Lender> = Arc::new(Slow(snapshot));
    Landed::prepare(criu, &images, assembly, &HERE, Some(lender)).unwrap()
}

fn moves_before(criu: &Criu) {
    let mut program = Program::start();
    let landed = land_before(criu, &mut program);
    landed.start().unwrap();
    assert!(landed.left() > Bytes(0), "it waited for all of it");
    program.counts();
    let filled = landed.settle().unwrap();
    assert!(
        filled.bytes >= Bytes((PAGES * PAGE) as u64 / 2),
        "{filled:?}"
    );
    program.counts();
}

fn forks_before(criu: &Criu) {
    let mut program = Program::start();
    let landed = land_before(criu, &mut program);
    File::create(program.dir.path().join("fork")).unwrap();
    landed.start().unwrap();
    let swept = program.dir.path().join("child");
    eventually("a child looked at all", || {
        program.is_sound();
        swept.exists()
    });
    program.counts();
    landed.settle().unwrap();
    program.counts();
}

fn filler_ends(_: &Criu) {
    for _ in 0..3 {
        let mut program = Program::start();
        let mut carrier = start("carrier", program.dir.path(), program.pid());
        // It is ended there, and its number is to be free.
        program.reap();
        let runs = program.dir.path().join("runs");
        eventually("it runs", || runs.exists());
        carrier.kill().unwrap();
        carrier.wait().unwrap();
        // It was ended in time, or it has all.
        let stat = format!("/proc/{}/stat", program.pid());
        let is_ended = || {
            let text = fs::read_to_string(&stat).unwrap_or_default();
            text.is_empty() || text.contains(") Z ")
        };
        let before = program.sweeps();
        eventually("it ended, or goes on with all", || {
            program.is_sound();
            is_ended() || program.sweeps() > before + 4
        });
        println!("it {}", if is_ended() { "ended" } else { "had all" });
    }
}

/// Freezes a process, and waits to be ended.
fn freezer(dir: &Path, pid: u32, freezing: Freezing) {
    let criu = criu().unwrap();
    let _held = freeze_so(&criu, pid, &dir.join("images"), freezing);
    File::create(dir.join("frozen")).unwrap();
    wait()
}

/// One that has a connection is not taken where that is refused, and goes on; where it is closed it goes on without.
fn connections(criu: &Criu) {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let mut talker = start("talker", dir.path(), 0);
    let pid = talker.id();
    let said = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    let mut client = None;
    eventually("it listens", || {
        let port: Option<u16> = said("port").trim().parse().ok();
        client = port.and_then(|port| std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        client.is_some()
    });
    let mut client = client.unwrap();
    eventually("it is connected", || said("state") == "connected");
    assert_eq!(preflight::connections(pid).unwrap().len(), 1);

    let freezing = |tcp| Freezing {
        tcp,
        orphaned: Orphaned::Stands,
    };
    let refused = Held::freeze(criu, pid, &images, freezing(Tcp::Refuse));
    assert!(refused.is_err(), "it has a connection");
    // It answers by it.
    client.write_all(b"a").unwrap();
    client.read_exact(&mut [0]).unwrap();

    let (held, mut tracker, mut sent) = freeze_so(criu, pid, &images, freezing(Tcp::Close));
    tracker.last(&mut sent).unwrap();
    runs::end(&mut sent).unwrap();
    drop(tracker);
    held.end().unwrap();
    talker.wait().unwrap();
    let mut assembly = Assembly::new(Bytes::mib(1024)).unwrap();
    assembly.take(&mut sent.as_slice()).unwrap();
    let landing = Landing {
        tcp: Tcp::Close,
        groups: Vec::new(),
    };
    let landed = Landed::prepare(criu, &images, assembly, &landing, None).unwrap();
    landed.start().unwrap();
    eventually("it goes on without", || said("state") == "closed");
    assert_eq!(preflight::connections(pid).unwrap().len(), 0);
    landed.settle().unwrap();
    let number = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(number, Signal::KILL).unwrap();
    waitpid(Some(number), WaitOptions::empty()).unwrap();
}

/// Answers to one client, and says how its connection is.
fn talker(dir: &Path) {
    let say = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    say("port", &listener.local_addr().unwrap().port().to_string());
    let (mut stream, _) = listener.accept().unwrap();
    say("state", "connected");
    let mut byte = [0];
    while matches!(stream.read(&mut byte), Ok(1)) {
        stream.write_all(&byte).unwrap();
    }
    say("state", "closed");
    wait()
}

/// Waits to be ended.
fn wait() -> ! {
    loop {
        std::thread::park();
    }
}

/// Carries a process all the way, and is ended while its memory comes in.
fn carrier(dir: &Path, pid: u32) {
    let criu = criu().unwrap();
    let landed = land(&criu, None, &dir.join("images"), pid);
    landed.start().unwrap();
    File::create(dir.join("runs")).unwrap();
    landed.settle().unwrap();
    wait()
}

/// Writes its pages, and looks again and again whether they are what it wrote.
fn program(dir: &Path) {
    let mut random = fastrand::Rng::with_seed(7);
    let mut memory = vec![0_u8; PAGES * PAGE];
    let mut loose = Loose::new();
    let mut wrote: Vec<u8> = (0..PAGES).map(|_| random.u8(1..)).collect();
    for (page, value) in wrote.iter().enumerate() {
        memory[page * PAGE..][..PAGE].fill(*value);
    }
    let sweeps = File::create(dir.join("sweeps")).unwrap();
    let fork = dir.join("fork");
    let mut is_parent = false;
    for number in 1_u64.. {
        if !is_parent && fork.exists() {
            is_parent = true;
            // SAFETY: this program has one thread.
            if unsafe { libc::fork() } == 0 {
                sweep(dir, &memory, &wrote);
                loose.sweep(dir);
                File::create(dir.join("child")).unwrap();
                return;
            }
        }
        sweep(dir, &memory, &wrote);
        loose.sweep(dir);
        loose.change(&mut random);
        for _ in 0..64 {
            let (page, value) = (random.usize(..PAGES), random.u8(1..));
            memory[page * PAGE..][..PAGE].fill(value);
            wrote[page] = value;
        }
        sweeps
            .write_all_at(format!("{number:20}").as_bytes(), 0)
            .unwrap();
    }
}

fn sweep(dir: &Path, memory: &[u8], wrote: &[u8]) {
    for (page, value) in wrote.iter().enumerate() {
        let found = &memory[page * PAGE..][..PAGE];
        // The first and the last byte, and one between, for the sake of time.
        let is_so = [0, PAGE / 2, PAGE - 1]
            .iter()
            .all(|at| found[*at] == *value);
        if !is_so {
            wrong(dir, &format!("page {page}"));
        }
    }
}

fn wrong(dir: &Path, what: &str) -> ! {
    fs::write(dir.join("wrong"), what).unwrap();
    std::process::exit(1)
}

/// Pages that are written, emptied, read where they are empty, and moved.
struct Loose {
    start: *mut u8,
    wrote: Vec<u8>,
}

impl Loose {
    const PAGES: usize = 512;

    fn new() -> Self {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let length = Self::PAGES * PAGE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, protection, flags) };
        Self {
            start: start.unwrap().cast(),
            wrote: vec![0; Self::PAGES],
        }
    }

    fn sweep(&self, dir: &Path) {
        for (page, value) in self.wrote.iter().enumerate() {
            // SAFETY: within the mapping, of which nobody has a reference.
            let found = unsafe { self.start.add(page * PAGE).read_volatile() };
            if found != *value {
                wrong(dir, &format!("loose page {page}: {found}, not {value}"));
            }
        }
    }

    fn change(&mut self, random: &mut fastrand::Rng) {
        for _ in 0..8 {
            let (page, value) = (random.usize(..Self::PAGES), random.u8(1..));
            // SAFETY: within the mapping, of which nobody has a reference.
            unsafe { self.start.add(page * PAGE).write_volatile(value) };
            self.wrote[page] = value;
        }
        let first = random.usize(..Self::PAGES);
        let pages = random.usize(1..=8).min(Self::PAGES - first);
        // SAFETY: as above.
        unsafe {
            let start = self.start.add(first * PAGE).cast();
            madvise(start, pages * PAGE, Advice::LinuxDontNeed).unwrap();
        }
        self.wrote[first..first + pages].fill(0);
        let (now, more) = (Self::PAGES * PAGE, (Self::PAGES + 64) * PAGE);
        for (from, to) in [(now, more), (more, now)] {
            // SAFETY: the mapping is this one's alone, and its old address is not used any more. For a moment a
            // part of it alone may be tracked; then it stays as it is.
            let moved = unsafe { mremap(self.start.cast(), from, to, MremapFlags::MAYMOVE) };
            match moved {
                Ok(start) => self.start = start.cast(),
                Err(error) => {
                    assert_eq!((error, from), (Errno::FAULT, now));
                    return;
                }
            }
        }
    }
}
