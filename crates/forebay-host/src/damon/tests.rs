//! On plain files in the kernel's places. What it takes a kernel for is in the guests' scenario.

use std::fs;

use super::*;

/// A host with so many kdamonds.
struct Tree {
    top: tempfile::TempDir,
    files: Files,
}

const ATTRS: &str = "contexts/0/monitoring_attrs";

impl Tree {
    fn new(kdamonds: usize) -> Self {
        let top = tempfile::tempdir().unwrap();
        let files = Files::below(&top.path().join("sys"));
        fs::create_dir_all(&files.dir).unwrap();
        let tree = Self { top, files };
        tree.write(COUNT, &kdamonds.to_string());
        for slot in 0..kdamonds {
            for (file, text) in [
                ("contexts/nr_contexts", "0"),
                ("state", "off"),
                ("pid", "-1"),
                ("contexts/0/targets/nr_targets", "0"),
                ("contexts/0/operations", "paddr"),
                (&format!("{ATTRS}/intervals/sample_us"), "5000"),
                (&format!("{ATTRS}/intervals/aggr_us"), "100000"),
                (&format!("{ATTRS}/intervals/update_us"), "60000000"),
                (&format!("{ATTRS}/nr_regions/min"), "10"),
                (&format!("{ATTRS}/nr_regions/max"), "1000"),
                ("contexts/0/schemes/nr_schemes", "0"),
            ] {
                tree.write(&format!("{slot}/{file}"), text);
            }
            for index in 0..4 {
                tree.write(
                    &format!("{slot}/contexts/0/targets/{index}/pid_target"),
                    "0",
                );
            }
            for scheme in 0..2 {
                let scheme = format!("{slot}/contexts/0/schemes/{scheme}");
                tree.write(&format!("{scheme}/action"), "pageout");
                for name in ["sz", "nr_accesses", "age"] {
                    for end in ["min", "max"] {
                        tree.write(&format!("{scheme}/access_pattern/{name}/{end}"), "0");
                    }
                }
            }
        }
        tree
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.files.dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// The first line: a plain file keeps the tail of a longer text.
    fn read(&self, file: &str) -> String {
        let text = fs::read_to_string(self.files.dir.join(file)).unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// A ledger that says that eight were made.
    fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::open(self.top.path(), "b").unwrap();
        let spot = self.files.count();
        for record in [
            Record::HostOriginal {
                spot: spot.clone(),
                text: "0".to_owned(),
            },
            Record::Wrote {
                spot,
                text: WATCHED_MAX.to_string(),
            },
        ] {
            ledger.append(record).unwrap();
        }
        ledger
    }

    fn owner(&self) -> Owner {
        let made = [WATCHED_MAX.to_string()];
        self.files.owner(Some(&made)).unwrap()
    }
}

#[test]
fn an_app_is_watched_and_nothing_is_done_to_its_memory() {
    let tree = Tree::new(WATCHED_MAX);
    assert!(tree.files.begin(2, &BTreeSet::from([70, 71])).unwrap());
    let check = |file: &str, text: &str| assert_eq!(tree.read(&format!("2/{file}")), text);
    check("state", "on");
    check("contexts/nr_contexts", "1");
    check("contexts/0/operations", "vaddr");
    check("contexts/0/targets/nr_targets", "2");
    check("contexts/0/targets/0/pid_target", "70");
    check("contexts/0/targets/1/pid_target", "71");
    for scheme in ["contexts/0/schemes/0", "contexts/0/schemes/1"] {
        // "stat" over "pageout": the kernel takes the whole text.
        check(&format!("{scheme}/action"), "stat");
        check(
            &format!("{scheme}/access_pattern/sz/max"),
            &u64::MAX.to_string(),
        );
    }
    check("contexts/0/schemes/0/access_pattern/nr_accesses/min", "1");
    check("contexts/0/schemes/1/access_pattern/nr_accesses/max", "0");
    check("contexts/0/schemes/1/access_pattern/age/max", "14");
    assert_eq!(tree.owner(), Owner::Us(WATCHED_MAX));
    assert_eq!(
        tree.files.owner(None).unwrap(),
        Owner::Us(WATCHED_MAX),
        "known without a ledger"
    );
}

#[test]
fn whose_it_is_shows() {
    let is_others = |owner: Owner| matches!(owner, Owner::Others(_));
    let tree = Tree::new(0);
    assert_eq!(tree.owner(), Owner::Nobody);
    // Made, and killed before anything was set up.
    let tree = Tree::new(WATCHED_MAX);
    assert_eq!(tree.owner(), Owner::Us(WATCHED_MAX));
    assert!(is_others(tree.files.owner(None).unwrap()));
    // Killed while a context was set up.
    tree.write("0/contexts/nr_contexts", "1");
    assert_eq!(tree.owner(), Owner::Us(WATCHED_MAX));
    tree.write("0/contexts/0/targets/nr_targets", "1");
    assert!(is_others(tree.owner()));
    // Another number than ours, another interval, something on that was not set up.
    assert!(is_others(Tree::new(1).owner()));
    let tree = Tree::new(WATCHED_MAX);
    tree.files.begin(0, &BTreeSet::from([7])).unwrap();
    tree.write(&format!("0/{ATTRS}/intervals/update_us"), "10000000");
    assert!(is_others(tree.owner()));
    let tree = Tree::new(WATCHED_MAX);
    tree.write("5/state", "on");
    assert!(is_others(tree.owner()));
}

#[test]
fn what_was_made_is_taken_down_from_the_ledger_alone() {
    let tree = Tree::new(WATCHED_MAX);
    let mut ledger = tree.ledger();
    tree.files.begin(1, &BTreeSet::from([7])).unwrap();
    start_anew(&mut ledger).unwrap();
    assert_eq!(tree.read("1/state"), "off");
    assert_eq!(tree.read(COUNT), "0");
    assert!(ledger.state().is_restored(), "{:?}", ledger.state());
    let mut report = Report::default();
    put_back(tree.ledger().state(), &mut report);
    assert_eq!((report.knobs, report.failed), (1, Vec::new()), "again");
}

#[test]
fn what_is_somebody_elses_by_now_is_left() {
    let tree = Tree::new(2);
    tree.write("0/contexts/nr_contexts", "1");
    tree.write("0/state", "on");
    let mut report = Report::default();
    put_back(tree.ledger().state(), &mut report);
    assert_eq!((report.knobs, report.failed.len()), (0, 0), "{report:?}");
    assert!(report.foreign[0].contains("somebody else uses DAMON"));
    assert_eq!(tree.read("0/state"), "on");
    assert_eq!(tree.read(COUNT), "2");
    // A host that has it no more, such as after a kernel update on the next boot.
    fs::remove_file(tree.files.dir.join(COUNT)).unwrap();
    let mut report = Report::default();
    put_back(tree.ledger().state(), &mut report);
    assert_eq!(report, Report::default());
}

#[test]
fn doctor_tells_whose_it_is() {
    let roots = |tree: &Tree| Roots {
        proc: tree.top.path().join("proc"),
        sys: tree.top.path().join("sys"),
    };
    let check = |tree: &Tree, says: &str| {
        let said = examine(&roots(tree)).map_or_else(|error| error.explain(), str::to_owned);
        assert!(said.contains(says), "{said}");
    };
    let tree = Tree::new(0);
    check(&tree, "used by nobody");
    let symbols = |text: &str| {
        fs::create_dir_all(roots(&tree).proc).unwrap();
        fs::write(roots(&tree).proc.join("kallsyms"), text).unwrap();
    };
    symbols("ffff t damon_pa_apply_scheme\n");
    check(&tree, "CONFIG_DAMON_VADDR");
    symbols("ffff t damon_va_apply_scheme\nffff t damon_va_target_valid\n");
    check(&tree, "used by nobody");
    let theirs = Tree::new(1);
    check(&theirs, "somebody else uses DAMON (nr_kdamonds = 1");
    let ours = Tree::new(WATCHED_MAX);
    ours.files.begin(0, &BTreeSet::from([7])).unwrap();
    check(&ours, "used by Forebay");
    fs::remove_file(tree.files.dir.join(COUNT)).unwrap();
    check(&tree, "there is no");
}

#[test]
fn a_daemon_sees_that_somebody_else_uses_it_and_when_not_any_more() {
    let tree = Tree::new(1);
    let roots = Roots {
        proc: tree.top.path().join("proc"),
        sys: tree.top.path().join("sys"),
    };
    let ledger = Ledger::open(tree.top.path(), "b").unwrap();
    let mut damon = Damon::open(&roots).unwrap();
    let seen = damon.look(ledger.state(), true).unwrap();
    assert!(seen.apps.is_empty() && seen.taken.is_some(), "{seen:?}");
    tree.write(COUNT, "0");
    let seen = damon.look(ledger.state(), false).unwrap();
    assert!(seen.taken.is_some(), "it is looked at now and then only");
    let seen = damon.look(ledger.state(), true).unwrap();
    assert_eq!(seen, MemoryWatch::default());
    fs::remove_file(tree.files.dir.join(COUNT)).unwrap();
    assert!(Damon::open(&roots).is_none());
}
