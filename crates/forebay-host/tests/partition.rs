//! Partitions of CPUs on the kernel that runs this test. Needs root and cgroup v2.

#![expect(dead_code, reason = "these tests do not use all of the support")]

#[cfg(test)]
mod support;

use std::path::Path;

use forebay_core::app::{Binding, OnStop, Partition};
use forebay_core::host::{Action, Host};
use forebay_core::idset::CpuSet;
use forebay_core::slice::{Knob, Setting};
use forebay_host::mounts::Controller;
use forebay_host::restore;
use support::*;

struct Theirs(std::path::PathBuf);

impl Drop for Theirs {
    fn drop(&mut self) {
        assert!(std::fs::remove_dir(&self.0).is_ok() || std::thread::panicking());
    }
}

/// CPUs of a partition leave everybody else, and come back.
#[test]
fn a_partition_takes_its_cpus_from_the_host_and_gives_them_back() {
    let Some(place) = Place::new("partition") else {
        return;
    };
    let mut host = place.open();
    let all = host.topology().cpu_set();
    let last = all.iter().last().unwrap();
    if !host.capabilities().knobs.contains(&Knob::CpusPartition) || all.len() < 2 {
        println!("SKIPPED: partition: no cpuset.cpus.partition, or one CPU");
        return;
    }
    let root = place
        .hierarchies
        .of(Controller::Cpuset)
        .unwrap()
        .1
        .mount
        .clone();
    let effective = || -> CpuSet { text(&root.join("cpuset.cpus.effective")).parse().unwrap() };
    let before = effective();
    let own: CpuSet = [last].into_iter().collect();
    let web = program("web", &["sleep", "1000"]);
    apply(
        &mut host,
        &[
            Action::Start {
                app: web.clone().into(),
            },
            set("web", Setting::Cpus(own)),
            set("web", Setting::CpusPartition(Partition::Root)),
        ],
    );
    let dir = place.dir(Controller::Cpuset, "web");
    assert_eq!(text(&dir.join("cpuset.cpus.partition")), "root");
    assert_eq!(effective(), before.difference(&own));
    let allowed = |pid: u32| -> CpuSet {
        let status = text(Path::new(&format!("/proc/{pid}/status")));
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().parse().unwrap()
    };
    assert!(
        allowed(std::process::id()).is_disjoint(&own),
        "this very process lost it"
    );

    // A daemon that comes back still knows of the CPU that it took, and that it is taken.
    drop(host);
    let mut host = place.open();
    assert_eq!(host.topology().cpu_set(), all);
    let sample = look(&mut host, &[&web], 1).apps.remove(&web.id).unwrap();
    assert!(
        sample
            .found
            .contains(&Setting::CpusPartition(Partition::Root)),
        "{:?}",
        sample.found
    );
    let pid = sample.main_pid.unwrap();
    assert_eq!(allowed(pid), own);
    apply(&mut host, &[Action::Release { app: id("web") }]);
    assert_eq!(effective(), before);
    assert_eq!(allowed(pid), before, "nobody is left on fewer CPUs");

    // After a crash, restore does the same.
    apply(
        &mut host,
        &[
            Action::Enter {
                app: id("web"),
                pids: vec![pid],
            },
            set("web", Setting::Cpus(own)),
            set("web", Setting::CpusPartition(Partition::Root)),
        ],
    );
    assert_eq!(effective(), before.difference(&own));
    drop(host);
    let report = restore(&place.options.state_dir, &place.options.roots, OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(effective(), before);
}

/// A group that somebody else made is a member again, with the CPUs it had.
#[test]
fn a_partition_of_others_is_what_it_was() {
    let Some(place) = Place::new("partition_of_others") else {
        return;
    };
    let mut host = place.open();
    let all = host.topology().cpu_set();
    if !host.capabilities().knobs.contains(&Knob::CpusPartition) || all.len() < 2 {
        println!("SKIPPED: partition_of_others: no cpuset.cpus.partition, or one CPU");
        return;
    }
    let name = format!("{}-other", place.options.group.display());
    let (_, hierarchy) = place.hierarchies.of(Controller::Cpuset).unwrap();
    let theirs = Theirs(hierarchy.dir(name.as_ref()));
    std::fs::create_dir(&theirs.0).unwrap();
    let app = app("theirs", Binding::Cgroup(name.into()));
    look(&mut host, &[&app], 1);
    let own: CpuSet = [all.iter().last().unwrap()].into_iter().collect();
    apply(
        &mut host,
        &[
            set("theirs", Setting::Cpus(own)),
            set("theirs", Setting::CpusPartition(Partition::Isolated)),
        ],
    );
    let file = theirs.0.join("cpuset.cpus.partition");
    assert_eq!(text(&file), "isolated");
    // Another group names the CPU: the kernel takes the partition back, which does not make
    // the knob somebody else's.
    let beside =
        Theirs(hierarchy.dir(format!("{}-beside", place.options.group.display()).as_ref()));
    std::fs::create_dir(&beside.0).unwrap();
    std::fs::write(beside.0.join("cpuset.cpus"), own.to_string()).unwrap();
    assert!(
        text(&file).starts_with("isolated invalid"),
        "{}",
        text(&file)
    );
    drop(host);
    let report = restore(&place.options.state_dir, &place.options.roots, OnStop::Keep).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.foreign, Vec::<String>::new());
    assert_eq!(text(&file), "member");
    assert_eq!(text(&theirs.0.join("cpuset.cpus")), "");
}

/// The set of CPUs of a group of others goes back to all of them, although a partition has some
/// while it is released.
#[test]
fn a_set_of_others_comes_back_whole_beside_a_partition() {
    let Some(place) = Place::new("set_beside_partition") else {
        return;
    };
    let (_, hierarchy) = place.hierarchies.of(Controller::Cpuset).unwrap();
    for released_alone in [false, true] {
        let mut host = place.open();
        let all = host.topology().cpu_set();
        if !host.capabilities().knobs.contains(&Knob::CpusPartition) || all.len() < 2 {
            println!("SKIPPED: set_beside_partition: no cpuset.cpus.partition, or one CPU");
            return;
        }
        let name = format!("{}-a-other", place.options.group.display());
        let theirs = Theirs(hierarchy.dir(name.as_ref()));
        std::fs::create_dir(&theirs.0).unwrap();
        // A set with members never goes back to empty, which is what makes this hard.
        let member = Stray::new("member-of-theirs");
        std::fs::write(theirs.0.join("cgroup.procs"), member.pid().to_string()).unwrap();
        let effective = || text(&theirs.0.join("cpuset.cpus.effective"));
        let before = effective();

        let theirs_app = app("a", Binding::Cgroup(name.into()));
        let web = program("web", &["sleep", "1000"]);
        look(&mut host, &[&theirs_app], 1);
        let own: CpuSet = [all.iter().last().unwrap()].into_iter().collect();
        apply(
            &mut host,
            &[
                Action::Start {
                    app: web.clone().into(),
                },
                set("a", Setting::Cpus(all.difference(&own))),
                set("web", Setting::Cpus(own)),
                set("web", Setting::CpusPartition(Partition::Root)),
            ],
        );
        assert_eq!(effective(), all.difference(&own).to_string());
        if released_alone {
            apply(&mut host, &[Action::Release { app: id("a") }]);
        }
        drop(host);
        let report = restore(&place.options.state_dir, &place.options.roots, OnStop::Kill).unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.foreign, Vec::<String>::new());
        assert_eq!(effective(), before, "released alone: {released_alone}");
        drop(member);
    }
}
