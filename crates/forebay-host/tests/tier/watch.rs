//! Touches of tiered files are counted: by file, by samples, and when there are too many.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay_host::tier::{FileKey, Sampler, Tier, Touches, Watch};

use crate::{assert_once, done, open, run};

/// Touches are counted by file on both sides, those of this process are not, and a name that
/// is touched before and after a move is known by [`Tier::key_of`] both times.
pub(crate) fn watched(root: &Path) {
    let mut tier = open(root);
    let data = root.join("slow/data");
    fs::create_dir(data.join("sub")).unwrap();
    for name in ["sub/a", "b", "c"] {
        fs::write(data.join(name), b"content").unwrap();
    }
    done(tier.promote(Path::new("b")));
    let watch = Watch::open().map_err(|error| error.explain()).unwrap();
    let scan = tier.scan_and_watch(&watch).unwrap();
    assert_eq!((scan.entries.len(), scan.unwatched), (3, 0));
    let key = |tier: &Tier, name: &str| tier.key_of(Path::new(name)).unwrap().unwrap();
    for entry in &scan.entries {
        assert_eq!(entry.key, Some(key(&tier, entry.path.to_str().unwrap())));
    }
    let mut sampler = tier.sampler().map_err(|error| error.explain()).unwrap();
    let mut touched = |names: &[&str]| {
        let mut touches = Touches::default();
        let end = Instant::now() + Duration::from_secs(10);
        for name in names {
            run("cat", &[data.join(name).as_path()]).unwrap();
        }
        while touches.files.len() < names.len() && Instant::now() < end {
            watch.wait(Duration::from_millis(100)).unwrap();
            watch.read(&mut touches).unwrap();
            sampler.look(&mut touches).unwrap();
        }
        touches
    };
    // What is read here is no touch.
    fs::read(data.join("c")).unwrap();
    let touches = touched(&["sub/a", "b"]);
    let mut keys: Vec<_> = touches.files.keys().copied().collect();
    let mut expected = vec![key(&tier, "sub/a"), key(&tier, "b")];
    keys.sort();
    expected.sort();
    assert_eq!(keys, expected);
    let before = key(&tier, "sub/a");
    done(tier.promote(Path::new("sub/a")));
    done(tier.demote(Path::new("b")));
    assert_ne!(key(&tier, "sub/a"), before);
    let touches = touched(&["sub/a", "b"]);
    assert!(touches.files.contains_key(&key(&tier, "sub/a")));
    assert!(touches.files.contains_key(&key(&tier, "b")));
    assert!(!touches.files.contains_key(&before));
    sampled(&data, &mut sampler, key(&tier, "sub/a"));
    done(tier.demote(Path::new("sub/a")));
    for name in ["sub/a", "b", "c"] {
        fs::remove_file(data.join(name)).unwrap();
    }
    fs::remove_dir(data.join("sub")).unwrap();
    drop(watch);
    assert_once(root, &tier);
    overflowed(root, &tier);
}

/// While touches of promoted files come fast, one look in ten counts them, ten times.
fn sampled(data: &Path, sampler: &mut Sampler, file: FileKey) {
    // One process for each, for events of the same are merged.
    let many = "for n in $(seq 250); do cat \"$0\" > /dev/null; done";
    let path = data.join("sub/a");
    let touch = || run("sh", &["-c".as_ref(), many.as_ref(), path.as_path()]).unwrap();
    let mut look = || {
        let mut touches = Touches::default();
        sampler.look(&mut touches).unwrap();
        touches.files.get(&file).copied().unwrap_or(0)
    };
    look();
    touch();
    let first = look();
    assert!((200..=500).contains(&first), "{first}");
    touch();
    for n in 1..10 {
        assert_eq!(look(), 0, "look {n} after many touches");
    }
    run("cat", &[path.as_path()]).unwrap();
    let counted = look();
    assert!(counted >= 10 && counted % 10 == 0, "{counted}");
    run("cat", &[path.as_path()]).unwrap();
    let again = look();
    assert!((1..10).contains(&again), "{again}");
}

/// More files than the kernel has room for are touched before anybody looks.
fn overflowed(root: &Path, tier: &Tier) {
    let limit = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let data = root.join("slow/data/many");
    fs::create_dir(&data).unwrap();
    let count = limit + 100;
    for name in 0..count {
        fs::write(data.join(name.to_string()), b"x").unwrap();
    }
    let watch = Watch::open().map_err(|error| error.explain()).unwrap();
    tier.scan_and_watch(&watch).unwrap();
    run("grep", &["-rc".as_ref(), "x".as_ref(), data.as_path()]).unwrap();
    let mut touches = Touches::default();
    watch.read(&mut touches).unwrap();
    assert_eq!(touches.overflows, 1);
    assert!(touches.files.len() > limit / 2 && touches.files.len() <= limit);
    fs::remove_dir_all(&data).unwrap();
}
