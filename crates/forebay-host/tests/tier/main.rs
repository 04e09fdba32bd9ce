//! Tiered directories on a tmpfs and on ext4 in a loop device, in a mount namespace of its own,
//! so that nothing is left. kill -9 of the mover at random moments, beside an application that
//! writes: every file is intact and there exactly once. This program plays the mover too.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, which clippy does not see without the usual harness"
)]

mod watch;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay_host::tier::{Left, Moved, Place, Tier, TierPlace};

/// Kills in an ordinary run; `FOREBAY_KILLS` asks for more.
const KILLS: u64 = 200;
const LIFE_MAX_US: u64 = 60_000;
const FILES: usize = 24;
const SIZE_MAX: usize = 600_000;
const NAME: &str = "tiered_files_survive";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("{NAME}: test");
        }
        return;
    }
    match arguments.get(1).map(String::as_str) {
        Some("mover") => mover(Path::new(&arguments[2]), arguments[3].parse().unwrap()),
        Some("promoter") => {
            let mut tier = open(Path::new(&arguments[2]));
            println!("ready");
            let moved = tier.promote(Path::new("late"));
            println!("{:?}", moved.map_err(|error| error.explain()).unwrap());
        }
        Some("inside") => inside(Path::new(&arguments[2])),
        _ => outside(),
    }
}

/// Its mounts end with the namespace, however the inner process ends.
fn outside() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: {NAME}: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    if let Err(reason) = run("unshare", &["-m".as_ref(), "true".as_ref()]) {
        println!("SKIPPED: {NAME}: no mount namespace: {reason}");
        return;
    }
    let status = Command::new("unshare")
        .args(["-m", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .arg("inside")
        .arg(dir.path())
        .status()
        .unwrap();
    drop(dir);
    assert!(status.success(), "see above");
}

fn inside(root: &Path) {
    if let Err(reason) = mounts(root) {
        println!("SKIPPED: {NAME}: {reason}");
        return;
    }
    println!("{NAME}: one move each way");
    one_move(root);
    println!("{NAME}: left alone");
    left_alone(root);
    println!("{NAME}: filled by others");
    filled_by_others(root);
    println!("{NAME}: opened too late");
    opened_late(root, Late::Alive);
    opened_late(root, Late::Killed);
    opened_late(root, Late::BothWritten);
    println!("{NAME}: refused");
    refused(root);
    println!("{NAME}: watched");
    watch::watched(root);
    println!("{NAME}: moved beside readers");
    moved_beside_readers(root);
    println!("{NAME}: held back");
    held_back(root);
    println!("{NAME}: killed");
    killed(root);
    println!("{NAME}: passed");
}

/// A tmpfs and an ext4 of its own; the loop device goes with the mount.
fn mounts(root: &Path) -> Result<(), String> {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let (fast, slow, image) = (root.join("fast"), root.join("slow"), root.join("image"));
    for directory in [&fast, &slow] {
        fs::create_dir(directory).unwrap();
    }
    File::create(&image).unwrap().set_len(192 << 20).unwrap();
    run("mkfs.ext4", &["-q".as_ref(), image.as_path()])?;
    run(
        "mount",
        &["-o".as_ref(), "loop".as_ref(), image.as_path(), &slow],
    )?;
    run(
        "mount",
        &[
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "tmpfs".as_ref(),
            fast.as_path(),
        ],
    )?;
    for directory in ["fast/tier", "slow/tier", "slow/data"] {
        fs::create_dir(root.join(directory)).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.join(directory), mode).unwrap();
    }
    fs::set_permissions(&fast, fs::Permissions::from_mode(0o755)).unwrap();
    Ok(())
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("no {program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

fn place(root: &Path) -> TierPlace {
    TierPlace {
        name: "test".to_owned(),
        directory: root.join("slow/data"),
        fast: root.join("fast/tier"),
        slow: root.join("slow/tier"),
        fast_size_max: 64 << 20,
        bandwidth_max: Some(200 << 20),
        volatile: true,
    }
}

fn open(root: &Path) -> Tier {
    Tier::open(place(root))
        .map_err(|error| error.explain())
        .unwrap()
        .0
}

fn done(moved: Result<Moved, forebay_host::Error>) -> u64 {
    match moved.map_err(|error| error.explain()).unwrap() {
        Moved::Done { bytes } => bytes,
        Moved::Left(left) => panic!("left: {left}"),
    }
}

fn one_move(root: &Path) {
    let mut tier = open(root);
    let path = root.join("slow/data/sub/file");
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, b"content").unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(2345)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
    rustix::fs::setxattr(&path, "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(&path).unwrap().set_modified(time).unwrap();
    let before = fs::metadata(&path).unwrap();
    for step in ["to fast", "to slow"] {
        let relative = Path::new("sub/file");
        let bytes = match step {
            "to fast" => done(tier.promote(relative)),
            _ => done(tier.demote(relative)),
        };
        assert_eq!(bytes, 7);
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.dev() == before.dev(), step == "to slow", "{step}");
        for (of, was, is) in [
            ("mode", u64::from(before.mode()), u64::from(after.mode())),
            ("uid", before.uid().into(), after.uid().into()),
            ("gid", before.gid().into(), after.gid().into()),
        ] {
            assert_eq!(was, is, "{of} {step}");
        }
        assert_eq!(after.modified().unwrap(), time, "{step}");
        assert_eq!(fs::read(&path).unwrap(), b"content", "{step}");
        let mut note = [0; 16];
        let length = rustix::fs::getxattr(&path, "user.note", &mut note).unwrap();
        assert_eq!(&note[..length], b"kept", "{step}");
    }
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!(tier.fast_used(), 0);
    assert_once(root, &tier);
    // Renamed, replaced and removed while on the fast tier.
    done(tier.promote(Path::new("sub/file")));
    fs::rename(&path, root.join("slow/data/other")).unwrap();
    assert_eq!(done(tier.demote(Path::new("other"))), 7);
    done(tier.promote(Path::new("other")));
    fs::remove_file(root.join("slow/data/other")).unwrap();
    let later = std::time::SystemTime::now();
    assert_eq!(tier.collect_removed(later).unwrap(), 0);
    assert_eq!(tier.fast_used(), 7);
    let later = later + Duration::from_secs(3600);
    assert_eq!(tier.collect_removed(later).unwrap(), 1);
    assert_eq!(tier.fast_used(), 0);
    fs::remove_dir(path.parent().unwrap()).unwrap();
    assert_once(root, &tier);
}

fn left_alone(root: &Path) {
    let mut tier = open(root);
    let data = root.join("slow/data");
    let file = data.join("file");
    let check = |tier: &mut Tier, name: &str, why: Left| {
        let moved = tier
            .promote(Path::new(name))
            .map_err(|error| error.explain());
        assert_eq!(moved.unwrap(), Moved::Left(why), "{name}");
        assert_once(root, tier);
    };
    check(&mut tier, "absent", Left::Gone);
    fs::create_dir(data.join("sub")).unwrap();
    check(&mut tier, "sub", Left::NotRegular);
    std::os::unix::fs::symlink("/etc", data.join("away")).unwrap();
    check(&mut tier, "away/passwd", Left::Gone);
    check(&mut tier, "/etc/passwd", Left::Outside);
    check(&mut tier, "../tier/tier", Left::Outside);
    fs::write(&file, b"content").unwrap();
    let reader = File::open(&file).unwrap();
    check(&mut tier, "file", Left::Open);
    drop(reader);
    fs::hard_link(&file, data.join("second")).unwrap();
    check(&mut tier, "file", Left::SeveralNames);
    fs::remove_file(data.join("second")).unwrap();
    File::create(data.join("big"))
        .unwrap()
        .set_len(65 << 20)
        .unwrap();
    check(&mut tier, "big", Left::Full);
    fs::remove_file(data.join("big")).unwrap();
    done(tier.promote(Path::new("file")));
    check(&mut tier, "file", Left::AlreadyThere);
    // A copy of the link is a second name that the kernel does not count.
    let target = fs::read_link(&file).unwrap();
    std::os::unix::fs::symlink(target, data.join("copied")).unwrap();
    let moved = tier.demote(Path::new("copied")).unwrap();
    assert_eq!(moved, Moved::Left(Left::SeveralNames));
    fs::remove_file(data.join("copied")).unwrap();
    let writer = File::options().append(true).open(&file).unwrap();
    assert_eq!(
        tier.demote(Path::new("file")).unwrap(),
        Moved::Left(Left::Open)
    );
    drop(writer);
    opened_while_copied(root, &mut tier);
    done(tier.demote(Path::new("file")));
    for name in ["file", "away"] {
        fs::remove_file(data.join(name)).unwrap();
    }
    fs::remove_dir(data.join("sub")).unwrap();
}

/// Either side fills up although the tier's own bound is far: the file stays where it is.
fn filled_by_others(root: &Path) {
    let mut tier = open(root);
    let data = root.join("slow/data");
    let path = Path::new("file");
    let content = vec![7; 8 << 20];
    fs::write(data.join("file"), &content).unwrap();
    let whole = |tier: &Tier| {
        assert!(fs::read(data.join("file")).unwrap() == content);
        assert_once(root, tier);
    };
    let fast = root.join("fast");
    let remount = |how: &str| {
        run("mount", &["-o".as_ref(), how.as_ref(), fast.as_path()]).unwrap();
    };
    remount("remount,size=4m");
    assert_eq!(tier.promote(path).unwrap(), Moved::Left(Left::Full));
    whole(&tier);
    remount("remount,size=50%");
    done(tier.promote(path));
    whole(&tier);
    let filler = root.join("slow/filler");
    let mut writer = File::create(&filler).unwrap();
    let full = (0..1024).find_map(|_| writer.write_all(&content).err());
    assert_eq!(
        full.map(|error| error.kind()),
        Some(std::io::ErrorKind::StorageFull)
    );
    assert_eq!(tier.demote(path).unwrap(), Moved::Left(Left::Full));
    whole(&tier);
    drop(writer);
    fs::remove_file(filler).unwrap();
    done(tier.demote(path));
    whole(&tier);
    fs::remove_file(data.join("file")).unwrap();
}

/// Opens a file, slow to copy, while it is copied: the opener does not wait for the copy.
fn opened_while_copied(root: &Path, tier: &mut Tier) {
    let path = root.join("slow/data/wanted");
    fs::write(&path, vec![7; 32 << 20]).unwrap();
    let files = root.join("fast/tier/files");
    let before = fs::read_dir(&files).unwrap().count();
    let app = std::thread::spawn({
        let (path, files) = (path.clone(), files.clone());
        move || {
            let end = Instant::now() + Duration::from_secs(20);
            while fs::read_dir(&files).unwrap().count() == before && Instant::now() < end {
                std::thread::yield_now();
            }
            let start = Instant::now();
            let mut file = File::options().append(true).open(&path).unwrap();
            file.write_all(b"more").unwrap();
            start.elapsed()
        }
    });
    assert_eq!(
        tier.promote(Path::new("wanted")).unwrap(),
        Moved::Left(Left::Wanted)
    );
    let waited = app.join().unwrap();
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    assert_eq!(fs::metadata(&path).unwrap().len(), (32 << 20) + 4);
    assert_once(root, tier);
    fs::remove_file(&path).unwrap();
}

/// Somebody opens, reads and closes a large file all the time, and is never kept waiting for as
/// long as the copy takes: the file moves all the same, both ways.
fn moved_beside_readers(root: &Path) {
    let mut place = place(root);
    place.bandwidth_max = Some(32 << 20);
    let (mut tier, _) = Tier::open(place).unwrap();
    let path = root.join("slow/data/busy");
    fs::write(&path, vec![7; 16 << 20]).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let app = std::thread::spawn({
        let (path, stop) = (path.clone(), Arc::clone(&stop));
        move || {
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Acquire) {
                let start = Instant::now();
                let mut some = [0; 4096];
                File::open(&path).unwrap().read_exact(&mut some).unwrap();
                assert_eq!(some, [7; 4096]);
                longest = longest.max(start.elapsed());
                std::thread::sleep(Duration::from_millis(40));
            }
            longest
        }
    });
    let end = Instant::now() + Duration::from_secs(180);
    for to in [Place::Fast, Place::Slow] {
        loop {
            let moved = match to {
                Place::Fast => tier.promote(Path::new("busy")),
                Place::Slow => tier.demote(Path::new("busy")),
            };
            match moved.map_err(|error| error.explain()).unwrap() {
                Moved::Done { .. } => break,
                Moved::Left(left) => assert!(Instant::now() < end, "{to:?}: {left}"),
            }
        }
    }
    stop.store(true, Ordering::Release);
    let longest = app.join().unwrap();
    println!("{NAME}: a reader waited {longest:?} at most");
    fs::remove_file(&path).unwrap();
    assert_once(root, &tier);
}

/// A held mover waits in the middle of a file, a stopped one gives it up, and the bandwidth
/// counts for several files together.
fn held_back(root: &Path) {
    let mut place = place(root);
    place.bandwidth_max = Some(4 << 20);
    let (mut tier, _) = Tier::open(place).unwrap();
    let data = root.join("slow/data");
    for name in ["first", "second", "third"] {
        fs::write(data.join(name), vec![7; 1 << 20]).unwrap();
    }
    // Before the second is copied, 3 MiB are due; a quarter of a second comes for nothing.
    let start = Instant::now();
    done(tier.promote(Path::new("first")));
    done(tier.promote(Path::new("second")));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}");
    let brake = tier.brake();
    brake.hold();
    let moving = std::thread::spawn(move || {
        let moved = tier.promote(Path::new("third"));
        (tier, moved.map_err(|error| error.explain()).unwrap())
    });
    let moves = root.join("slow/tier/moves");
    let end = Instant::now() + Duration::from_secs(20);
    while fs::read_dir(&moves).unwrap().count() == 0 && Instant::now() < end {
        std::thread::yield_now();
    }
    // Held, yet nobody who opens a file waits for that.
    let start = Instant::now();
    assert_eq!(fs::read(data.join("first")).unwrap().len(), 1 << 20);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(brake.is_held() && !moving.is_finished());
    brake.stop();
    let (tier, moved) = moving.join().unwrap();
    assert_eq!(moved, Moved::Left(Left::Stopped));
    assert_once(root, &tier);
    drop(tier);
    let mut tier = open(root);
    for name in ["first", "second"] {
        done(tier.demote(Path::new(name)));
    }
    for name in ["first", "second", "third"] {
        fs::remove_file(data.join(name)).unwrap();
    }
}

/// What happens to the mover after its exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    /// It notices.
    Alive,
    /// It is killed, and the next start notices.
    Killed,
    /// It is killed, and both contents are written to before the next start.
    BothWritten,
}

/// Somebody looked the name up before the exchange and opens the old file only after it: what
/// is written then is not lost.
fn opened_late(root: &Path, late: Late) {
    let path = root.join("slow/data/late");
    for _ in 0..20 {
        fs::write(&path, b"content").unwrap();
        if opened_late_once(root, &path, late) {
            fs::remove_file(&path).unwrap();
            let (mut tier, _) = Tier::open(place(root)).unwrap();
            let later = std::time::SystemTime::now() + Duration::from_secs(3600);
            tier.collect_removed(later).unwrap();
            return assert_once(root, &tier);
        }
        done(open(root).demote(Path::new("late")));
    }
    panic!("{late:?}: the mover was always through before it could be stopped");
}

/// False when the move was over too early.
fn opened_late_once(root: &Path, path: &Path, late: Late) -> bool {
    use std::os::fd::AsRawFd;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let found = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
    let old = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let mut mover = Command::new(std::env::current_exe().unwrap())
        .arg("promoter")
        .arg(root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !fs::symlink_metadata(path).unwrap().is_symlink() && Instant::now() < end {
        std::hint::spin_loop();
    }
    let pid = rustix::process::Pid::from_child(&mover);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    if late != Late::Alive {
        signal(rustix::process::Signal::STOP);
        if fs::read_dir(root.join("slow/tier/stage")).unwrap().count() == 0 {
            signal(rustix::process::Signal::CONT);
            mover.wait().unwrap();
            return false;
        }
    }
    let writer = std::thread::spawn(move || {
        let mut file = File::options().append(true).open(old).unwrap();
        file.write_all(b" and more").unwrap();
    });
    if late != Late::Alive {
        mover.kill().unwrap();
    }
    let mut said = String::new();
    mover
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    mover.wait().unwrap();
    writer.join().unwrap();
    drop(found);
    if late == Late::Alive && said.contains("Done") {
        return false;
    }
    if late == Late::BothWritten {
        fs::write(path, b"newer").unwrap();
    }
    let (_, recovered) = Tier::open(place(root))
        .map_err(|error| error.explain())
        .unwrap();
    let kept = root.join("slow/tier/kept");
    if late == Late::BothWritten {
        assert_eq!((recovered.ended, recovered.kept), (1, 1));
        let content = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read(&content).unwrap(), b"content and more");
        assert_eq!(fs::read(path).unwrap(), b"newer");
        fs::remove_file(content).unwrap();
    } else {
        assert_eq!(recovered.undone, u64::from(late == Late::Killed));
        assert_eq!(fs::read(path).unwrap(), b"content and more", "{late:?}");
        assert!(fs::symlink_metadata(path).unwrap().is_file());
    }
    true
}

fn refused(root: &Path) {
    let check = |place: TierPlace, words: &str| {
        let error = Tier::open(place).map(drop).unwrap_err();
        assert!(error.explain().contains(words), "{}", error.explain());
    };
    let place = place(root);
    let with = |change: &dyn Fn(&mut TierPlace)| {
        let mut place = place.clone();
        change(&mut place);
        place
    };
    check(
        with(&|place| place.fast = root.join("slow")),
        "one file system",
    );
    check(
        with(&|place| place.slow = root.to_owned()),
        "not on the file system of",
    );
    check(with(&|place| place.volatile = false), "in memory");
    check(
        with(&|place| place.fast = root.join("none")),
        "make that directory",
    );
    let other = root.join("fast/other");
    fs::create_dir(&other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    check(with(&|place| place.fast.clone_from(&other)), "belongs to");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o777)).unwrap();
    check(
        with(&|place| place.fast.clone_from(&other)),
        "others than root",
    );
    fs::remove_dir(&other).unwrap();
    check(
        with(&|place| place.fast_size_max = u64::MAX),
        "lower fast_size_max",
    );
    let held = open(root);
    check(place.clone(), "another process");
    drop(held);
    let fast = root.join("fast");
    let remount = |how: &str| {
        run("mount", &["-o".as_ref(), how.as_ref(), fast.as_path()]).unwrap();
    };
    remount("remount,ro");
    check(place.clone(), "read-only");
    remount("remount,rw");
}

/// Moves files to and fro until it is killed.
fn mover(root: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tier = open(root);
    println!("ready");
    loop {
        let path = PathBuf::from(name(random.usize(..FILES)));
        let moved = match random.bool() {
            true => tier.promote(&path),
            false => tier.demote(&path),
        };
        moved.map_err(|error| error.explain()).unwrap();
    }
}

fn name(index: usize) -> String {
    match index % 3 {
        0 => format!("deep/er/{index}"),
        _ => format!("{index}"),
    }
}

/// What the application knows it wrote.
type Written = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

fn content(random: &mut fastrand::Rng) -> Vec<u8> {
    let length = random.usize(..SIZE_MAX);
    std::iter::repeat_with(|| random.u8(..))
        .take(length)
        .collect()
}

fn killed(root: &Path) {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let kills: u64 = number("FOREBAY_KILLS").unwrap_or(KILLS);
    let seed: u64 = number("FOREBAY_SEED").unwrap_or(7);
    println!("{NAME}: {kills} kills of seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let data = root.join("slow/data");
    fs::create_dir_all(data.join("deep/er")).unwrap();
    let written = Written::default();
    for index in 0..FILES {
        let bytes = content(&mut random);
        fs::write(data.join(name(index)), &bytes).unwrap();
        written.lock().unwrap().insert(name(index), bytes);
    }
    let (mut ended, mut undone, mut kept, mut writes) = (0, 0, 0, 0);
    for round in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let app = std::thread::spawn({
            let (data, written, stop) = (data.clone(), written.clone(), stop.clone());
            let random = fastrand::Rng::with_seed(random.u64(..));
            move || application(&data, &written, &stop, random)
        });
        let mut mover = start(root, random.u64(..));
        std::thread::sleep(Duration::from_micros(random.u64(..LIFE_MAX_US)));
        mover.kill().unwrap();
        mover.wait().unwrap();
        stop.store(true, Ordering::Release);
        writes += app.join().unwrap();
        let (tier, recovered) = Tier::open(place(root))
            .map_err(|error| error.explain())
            .unwrap();
        ended += recovered.ended;
        undone += recovered.undone;
        kept += recovered.kept;
        assert_eq!(recovered.unclaimed, 0, "round {round}");
        let written = written.lock().unwrap();
        assert_eq!(
            tier.scan().unwrap().entries.len(),
            written.len(),
            "round {round}"
        );
        for (name, bytes) in written.iter() {
            let found = fs::read(data.join(name)).unwrap();
            assert!(found == *bytes, "round {round}: {name} is another");
        }
        let later = std::time::SystemTime::now() + Duration::from_secs(3600);
        let mut tier = tier;
        tier.collect_removed(later).unwrap();
        assert_once(root, &tier);
    }
    println!("{NAME}: {ended} moves ended, {undone} undone, {kept} kept, {writes} writes");
    assert!(
        kills < 100 || (ended > 0 && undone > 0),
        "nothing was tried"
    );
    assert_eq!(kept, 0, "content was put aside that nobody lost");
}

fn start(root: &Path, seed: u64) -> Child {
    let mut mover = Command::new(std::env::current_exe().unwrap())
        .arg("mover")
        .arg(root)
        .arg(seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(mover.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    mover
}

/// Rewrites files in place and by renaming, and reads them; what it wrote is what it finds.
fn application(
    data: &Path,
    written: &Written,
    stop: &AtomicBool,
    mut random: fastrand::Rng,
) -> u64 {
    let mut writes = 0;
    while !stop.load(Ordering::Acquire) {
        let name = name(random.usize(..FILES));
        let path = data.join(&name);
        match random.u32(..8) {
            0 => {
                let bytes = content(&mut random);
                fs::write(&path, &bytes).unwrap();
                written.lock().unwrap().insert(name, bytes);
                writes += 1;
            }
            1 => {
                let bytes = content(&mut random);
                let next = data.join("deep/next");
                fs::write(&next, &bytes).unwrap();
                fs::rename(&next, &path).unwrap();
                written.lock().unwrap().insert(name, bytes);
                writes += 1;
            }
            2 => {
                let mut file = File::options().append(true).open(&path).unwrap();
                file.write_all(b"more").unwrap();
                let mut written = written.lock().unwrap();
                written.get_mut(&name).unwrap().extend_from_slice(b"more");
                writes += 1;
            }
            _ => {
                let mut found = Vec::new();
                File::open(&path).unwrap().read_to_end(&mut found).unwrap();
                assert!(
                    found == written.lock().unwrap()[&name],
                    "{name} reads as another"
                );
            }
        }
    }
    writes
}

/// As many copies as there are promoted files, and nothing half done.
fn assert_once(root: &Path, tier: &Tier) {
    let count = |path: &str| fs::read_dir(root.join(path)).unwrap().count();
    let scan = tier.scan().unwrap();
    assert!(scan.broken.is_empty(), "{:?}", scan.broken);
    let fast: std::collections::BTreeSet<u64> = scan
        .entries
        .iter()
        .filter(|entry| entry.place == Place::Fast)
        .map(|entry| entry.inode)
        .collect();
    assert_eq!(count("fast/tier/files"), fast.len());
    assert_eq!(count("slow/tier/links"), fast.len());
    for empty in ["moves", "stage", "kept"] {
        assert_eq!(count(&format!("slow/tier/{empty}")), 0, "{empty}");
    }
    let used: u64 = scan
        .entries
        .iter()
        .filter(|entry| entry.place == Place::Fast)
        .map(|entry| entry.size)
        .sum();
    assert!(tier.fast_used() >= used.saturating_sub(SIZE_MAX as u64 * 8));
}
