//! Memory of a process that does all kinds of things to it, copied while it runs: when it stands still, what
//! was copied is what it has, and whoever gives up at whatever moment leaves it as it was. This program
//! plays the process and the mover too, as processes of their own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    unsafe_code,
    reason = "a test, which clippy does not see without the usual harness, of a process that changes \
              its own memory"
)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_core::fleet::rounds::{Bounds, Verdict};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::{Tracker, glance};
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use rustix::process::{Pid, Signal, kill_process};

const PAGE: usize = 4096;
/// The bits of an entry of `pagemap` that are the number of a page.
const NUMBER: u64 = (1 << 55) - 1;
const PATIENCE: Duration = Duration::from_secs(20);
/// Runs of each kind in an ordinary run.
const RUNS: u64 = 4;

type Trial = (&'static str, fn());

const TRIALS: [Trial; 7] = [
    ("what_was_copied_is_what_it_has", copies),
    ("giving_up_leaves_the_process_as_it_was", gives_up),
    (
        "a_mover_that_is_killed_leaves_the_process_as_it_was",
        is_killed,
    ),
    ("what_cannot_be_tracked_is_refused", refuses),
    ("one_that_does_not_stop_is_refused", does_not_stop),
    ("an_old_mark_of_a_neighbour_says_nothing", neighbours),
    ("a_glance_says_what_is_written_and_leaves_no_trace", glances),
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
        Some("restless") => restless(arguments[2].parse().unwrap()),
        Some("mover") => mover(arguments[2].parse().unwrap()),
        Some("waiting") => waiting(),
        Some("swapping") => swapping(),
        Some("pacing") => pacing(arguments[2].parse().unwrap()),
        _ => {
            let named = |name: &str| arguments.iter().any(|argument| argument == name);
            let is_any = TRIALS.iter().any(|(name, _)| named(name));
            for (name, trial) in TRIALS {
                if is_any && !named(name) {
                    continue;
                }
                println!("{name}");
                trial();
            }
        }
    }
}

/// A process that was started, gone with this.
struct Started {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Started {
    /// Starts this program in another part, and waits until it says that it is at work.
    fn new(part: &str, argument: &str) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .args([part, argument])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut started = Self { child, said };
        started.hear();
        started
    }

    fn hear(&mut self) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    /// Has it do what it does next, and waits until it has.
    fn step(&mut self) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(b"\n").unwrap();
        self.hear();
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn state(&self) -> char {
        state(&PathBuf::from(format!("/proc/{}", self.pid())))
    }

    fn stop(&self) {
        self.signal(Signal::STOP);
        // Its threads stop one after another.
        eventually("it stands still", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            let states: Vec<char> = tasks.map(|task| state(&task.unwrap().path())).collect();
            states.iter().all(|state| *state == 'T')
        });
    }

    /// What a tracker would leave: descriptors, and areas that the kernel still watches.
    fn traces(&self) -> (usize, usize) {
        let pid = self.pid();
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let userfaults = fds
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .filter(|target| target.to_string_lossy().contains("userfaultfd"))
            .count();
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let watched = smaps
            .lines()
            .filter_map(|line| line.strip_prefix("VmFlags:"))
            .filter(|flags| flags.split(' ').any(|flag| flag == "uw"))
            .count();
        (userfaults, watched)
    }

    /// It goes on writing, and nobody holds it.
    fn is_at_work(&self) {
        let writes = || {
            let text = fs::read_to_string(format!("/proc/{}/io", self.pid())).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("syscw: "));
            line.unwrap().parse::<u64>().unwrap()
        };
        let before = writes();
        eventually("it works on", || writes() > before + 3);
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0"), "{status}");
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}

/// The state of a process or thread, as its directory says.
fn state(of: &Path) -> char {
    let stat = fs::read_to_string(of.join("stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.chars().next().unwrap()
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not so: {what}");
        std::thread::yield_now();
    }
}

/// Pages by address, as the stream says.
#[derive(Default)]
struct Pages {
    pages: BTreeMap<u64, Vec<u8>>,
    head: Vec<u8>,
    /// Where the next bytes belong, and how many.
    expected: Option<(u64, usize)>,
    body: Vec<u8>,
}

impl Write for Pages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (into, most) = match self.expected {
                None => (&mut self.head, 16),
                Some((_, length)) => (&mut self.body, length),
            };
            let take = rest.len().min(most - into.len());
            into.extend(&rest[..take]);
            rest = &rest[take..];
            if into.len() < most {
                continue;
            }
            match self.expected.take() {
                None => {
                    let number =
                        |at: usize| u64::from_le_bytes(self.head[at..at + 8].try_into().unwrap());
                    self.expected = Some((number(0), usize::try_from(number(8)).unwrap()));
                    self.head.clear();
                }
                Some((start, _)) => {
                    for (place, page) in self.body.chunks(PAGE).enumerate() {
                        let at = start + (place * PAGE) as u64;
                        self.pages.insert(at, page.to_vec());
                    }
                    self.body.clear();
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `pagemap` says of a page.
fn entry(pagemap: &File, at: u64) -> u64 {
    let mut entry = [0; 8];
    pagemap
        .read_exact_at(&mut entry, at / PAGE as u64 * 8)
        .unwrap();
    u64::from_ne_bytes(entry)
}

/// The number of the kernel's page of zeros, which is behind memory that was read and never written. It goes
/// where that memory goes, so that it may come to where something else was that was copied. No image
/// has it, and who is made anew from one reads zeros there, whatever was copied.
fn page_of_zeros() -> u64 {
    let flags = (ProtFlags::READ, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address that the kernel chooses, which is only read.
    let (start, first) = unsafe {
        let start =
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE, flags.0, flags.1).unwrap();
        (start, start.cast::<u8>().read_volatile())
    };
    assert_eq!(first, 0);
    let number = entry(
        &File::open("/proc/self/pagemap").unwrap(),
        start.addr() as u64,
    ) & NUMBER;
    assert_ne!(number, 0, "numbers of pages are told to root alone");
    // SAFETY: the mapping is this one's alone.
    unsafe { rustix::mm::munmap(start, PAGE) }.unwrap();
    number
}

/// Compares all private anonymous memory that a process has with what was copied; how many pages.
fn compare(process: &Started, copied: &Pages) -> usize {
    let pid = process.pid();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let zeros = page_of_zeros();
    let mut pages = 0;
    for line in maps.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_kernels = words.get(5).is_some_and(|name| name.starts_with("[v"));
        if !words[1].ends_with('p') || words[4] != "0" || is_kernels {
            continue;
        }
        let (start, end) = words[0].split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        for at in (number(start)..number(end)).step_by(PAGE) {
            let entry = entry(&pagemap, at);
            // Neither in memory nor swapped out, or never written.
            if entry >> 62 == 0 || (entry >> 62 == 2 && entry & NUMBER == zeros) {
                continue;
            }
            let mut page = vec![0; PAGE];
            memory.read_exact_at(&mut page, at).unwrap();
            match copied.pages.get(&at) {
                Some(found) => assert!(*found == page, "page {at:x} of {line} is another"),
                None => panic!("page {at:x} of {line} was not copied"),
            }
            pages += 1;
        }
    }
    pages
}

const BOUNDS: Bounds = Bounds {
    aim: Duration::from_millis(1),
    most: Duration::from_secs(100),
    fixed: Duration::ZERO,
};

fn copies() {
    for seed in 0..RUNS {
        let process = Started::new("restless", &seed.to_string());
        let mut tracker = Tracker::attach(process.pid()).unwrap();
        let mut copied = Pages::default();
        let (rounds, verdict) = tracker.rounds(BOUNDS, &mut copied).unwrap();
        assert!(!rounds.is_empty());
        assert!(matches!(verdict, Verdict::Freeze(_)), "{verdict:?}");
        process.stop();
        tracker.last(&mut copied).unwrap();
        let pages = compare(&process, &copied);
        println!("seed {seed}: {} rounds, {pages} pages", rounds.len());
        assert!(pages > 1000, "{pages}");
        process.signal(Signal::CONT);
        drop(tracker);
        assert_eq!(process.traces(), (0, 0));
        process.is_at_work();
    }
}

fn gives_up() {
    for rounds in 0..RUNS {
        let process = Started::new("restless", "77");
        let mut tracker = Tracker::attach(process.pid()).unwrap();
        for _ in 0..rounds {
            tracker.round(&mut io::sink()).unwrap();
        }
        if rounds > 0 {
            assert!(process.traces().1 > 0, "nothing is tracked");
        }
        drop(tracker);
        assert_eq!(process.traces(), (0, 0), "after {rounds} rounds");
        process.is_at_work();
        // And it can be tracked again.
        let mut again = Tracker::attach(process.pid()).unwrap();
        again.round(&mut io::sink()).unwrap();
    }
}

fn is_killed() {
    for _ in 0..RUNS {
        let process = Started::new("restless", "78");
        let mover = Started::new("mover", &process.pid().to_string());
        drop(mover);
        eventually("its marks are gone", || process.traces() == (0, 0));
        process.is_at_work();
    }
}

fn refuses() {
    let check = |pid: u32, part: &str| {
        let error = Tracker::attach(pid).unwrap_err().explain();
        assert!(error.contains(part), "{error}");
    };
    let process = Started::new("restless", "79");
    process.stop();
    check(process.pid(), "it was stopped by a signal");
    // Whoever lets go of it wakes it for a moment, in which the kernel has it stop again.
    eventually("it stands still as before", || process.state() == 'T');
    process.signal(Signal::CONT);
    process.is_at_work();
    let mut tracker = Tracker::attach(process.pid()).unwrap();
    process.signal(Signal::KILL);
    eventually("it ended", || process.state() == 'Z');
    let error = tracker.round(&mut io::sink()).unwrap_err().explain();
    assert!(error.contains("it ended"), "{error}");
    check(4_194_304, "no such process");
}

/// A thread that waits for a device does not stop, and neither does one whose child borrows its place.
fn does_not_stop() {
    let process = Started::new("waiting", "");
    eventually("it waits", || process.state() == 'D');
    let began = Instant::now();
    let error = Tracker::attach(process.pid()).unwrap_err().explain();
    assert!(error.contains("does not stop"), "{error}");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    assert!(status.contains("TracerPid:\t0"), "{status}");
    let children = format!("/proc/{0}/task/{0}/children", process.pid());
    let child = fs::read_to_string(children).unwrap();
    let child = Pid::from_raw(child.trim().parse().unwrap()).unwrap();
    kill_process(child, Signal::KILL).unwrap();
    // And it goes on as if nobody had asked.
    eventually("it goes on", || process.state() == 'S');
}

/// A part of an area goes away and comes back, by which the rest is not tracked any more, and keeps its marks;
/// then it is written.
fn neighbours() {
    let mut process = Started::new("swapping", "");
    let mut tracker = Tracker::attach(process.pid()).unwrap();
    let mut copied = Pages::default();
    for _ in 0..3 {
        tracker.round(&mut copied).unwrap();
        process.step();
    }
    process.stop();
    tracker.last(&mut copied).unwrap();
    assert!(compare(&process, &copied) > 20);
}

/// Copies a process again and again until it is killed.
fn mover(pid: u32) {
    let mut tracker = Tracker::attach(pid).unwrap();
    tracker.round(&mut io::sink()).unwrap();
    println!("ready");
    loop {
        tracker.round(&mut io::sink()).unwrap();
    }
}

/// A process that waits for a child which never does what it waits for.
fn waiting() {
    println!("ready");
    let flags = libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: a copy of this process as fork makes it, which does nothing but wait.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    assert_ne!(child, -1);
    // The child by its nature, this process when that has ended.
    loop {
        // SAFETY: it waits for a signal.
        unsafe { libc::pause() };
    }
}

/// A process that moves a part of its memory away, moves it back and writes beside it, and writes there again: one
/// step for each line that it reads.
fn swapping() {
    let part = 10 * PAGE;
    let mut area = Area::new(20);
    let elsewhere = Area::new(10);
    // SAFETY: within the mapping.
    let second = unsafe { area.start.add(part) };
    let shift = |from: *mut c_void, to: *mut c_void| {
        let flags = MremapFlags::MAYMOVE;
        // SAFETY: both are of mappings of this process's own, in which nobody has a reference.
        unsafe { rustix::mm::mremap_fixed(from, part, part, flags, to) }.unwrap();
    };
    let mut lines = io::stdin().lines();
    let mut next = || {
        println!("ready");
        lines.next().unwrap().unwrap();
    };
    next();
    shift(second, elsewhere.start);
    next();
    shift(elsewhere.start, second);
    area.set(5, 2);
    next();
    area.set(5, 3);
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// A process that writes, takes memory, gives it back, moves it, empties it and locks itself out of it.
fn restless(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let thread_seed = random.u64(..);
    // Another thread writes, too.
    std::thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(thread_seed);
        let mut memory = vec![1_u8; 4 << 20];
        loop {
            let at = random.usize(..memory.len());
            memory[at] = random.u8(..);
        }
    });
    let mut areas: Vec<Area> = (0..16).map(|_| Area::new(128)).collect();
    let mut nowhere = File::options().write(true).open("/dev/null").unwrap();
    println!("ready");
    loop {
        let at = random.usize(..areas.len());
        match random.u8(..16) {
            0 => {
                areas.swap_remove(at);
                areas.push(Area::new(random.usize(64..256)));
            }
            1 => areas[at].grow(random.usize(1..64)),
            2 => areas[at].empty(&mut random),
            3 => areas[at].protect(&mut random),
            _ => {
                for _ in 0..32 {
                    areas[at].write(&mut random);
                }
            }
        }
        // Whoever looks counts these.
        nowhere.write_all(b".").unwrap();
    }
}

/// Some pages.
struct Area {
    start: *mut c_void,
    pages: usize,
}

impl Area {
    fn new(pages: usize) -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                pages * PAGE,
                protection,
                MapFlags::PRIVATE,
            )
        };
        let mut area = Self {
            start: start.unwrap(),
            pages,
        };
        for page in 0..pages {
            area.set(page, 1);
        }
        area
    }

    fn set(&mut self, page: usize, value: u8) {
        assert!(page < self.pages);
        // SAFETY: within the mapping, which may be written to but while `protect` is at it.
        unsafe {
            self.start
                .cast::<u8>()
                .add(page * PAGE + 8)
                .write_volatile(value)
        };
    }

    fn write(&mut self, random: &mut fastrand::Rng) {
        self.set(random.usize(..self.pages), random.u8(..));
    }

    /// Somewhere else perhaps, and larger.
    fn grow(&mut self, pages: usize) {
        let (old, new) = (self.pages * PAGE, (self.pages + pages) * PAGE);
        let until = Instant::now() + PATIENCE;
        loop {
            // SAFETY: the mapping is this one's alone, and its old address is not used any more.
            match unsafe { rustix::mm::mremap(self.start, old, new, MremapFlags::MAYMOVE) } {
                Ok(start) => {
                    (self.start, self.pages) = (start, self.pages + pages);
                    return;
                }
                // For a moment a part of it alone is tracked: `docs/checkpoint-moves.md`.
                Err(error) => {
                    assert_eq!(error, rustix::io::Errno::FAULT);
                    assert!(Instant::now() < until, "it stays in two");
                }
            }
        }
    }

    fn part(&self, random: &mut fastrand::Rng) -> (*mut c_void, usize) {
        let first = random.usize(..self.pages);
        let pages = random.usize(1..=self.pages - first);
        // SAFETY: within the mapping.
        let start = unsafe { self.start.add(first * PAGE) };
        (start, pages * PAGE)
    }

    fn empty(&mut self, random: &mut fastrand::Rng) {
        let (start, length) = self.part(random);
        // SAFETY: a part of the mapping, of which nobody has a reference.
        unsafe { rustix::mm::madvise(start, length, Advice::LinuxDontNeed) }.unwrap();
    }

    fn protect(&mut self, random: &mut fastrand::Rng) {
        let (start, length) = self.part(random);
        for flags in [
            MprotectFlags::empty(),
            MprotectFlags::READ | MprotectFlags::WRITE,
        ] {
            // SAFETY: a part of the mapping, which nobody uses meanwhile.
            unsafe { rustix::mm::mprotect(start, length, flags) }.unwrap();
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone.
        unsafe { rustix::mm::munmap(self.start, self.pages * PAGE) }.unwrap();
    }
}

/// Pages of the process that is looked at.
const PACED: usize = 16_384;

/// Looks at a process that writes every second page of its memory that often, or none: faults, stops and descriptors
/// would be traces.
fn glances() {
    let faults = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest.split(' ').nth(7).unwrap().to_owned()
    };
    for pages_of_100 in [0_u32, 5, 50] {
        let process = Started::new("pacing", &pages_of_100.to_string());
        // Past all that it does for the first time.
        process.is_at_work();
        let before = (faults(process.pid()), process.traces());
        let all = Bytes((PACED * PAGE) as u64);
        let seen = glance(process.pid(), all).unwrap();
        assert_eq!((faults(process.pid()), process.traces()), before);
        process.is_at_work();
        // It writes them all again within that.
        let part = seen.written(Duration::from_millis(500)).as_f64() / all.as_f64();
        let expected = f64::from(pages_of_100) / 100.0;
        println!("{pages_of_100} % written, {:.1} % seen", part * 100.0);
        let off = (part - expected).abs();
        assert!(off <= 0.015 + expected * 0.1, "{part}: {seen:?}");
    }
    let error = glance(4_194_304, Bytes(0)).unwrap_err().to_string();
    assert!(error.contains("4194304"), "{error}");
}

/// Writes these pages of each hundred, again and again, and nothing else.
fn pacing(pages_of_100: usize) -> ! {
    let mut memory = vec![1_u64; PACED * PAGE / 8];
    for count in 1_u64.. {
        for page in 0..PACED {
            if page % 100 < pages_of_100 {
                std::hint::black_box(&mut memory)[page * PAGE / 8] = count;
            }
        }
        // By which it is seen to be at work.
        fs::write("/dev/null", "1").unwrap();
        std::thread::yield_now();
        // It has all that it needs by then, and faults no more by itself.
        if count == 3 {
            println!("ready");
        }
    }
    unreachable!("it counts for ever")
}
