//! Shares of caches, on files as a server has them: no kernel that runs these tests divides them.

#![expect(dead_code, reason = "these tests do not use all of the support")]

#[cfg(test)]
mod support;

use std::fs;
use std::os::unix::fs::symlink;

use forebay_core::app::OnStop;
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::slice::{Knob, Setting};
use forebay_host::restore;
use support::*;

/// A share is a group of the app's, which the ledger knows of and restore removes.
#[test]
fn a_share_is_a_group_that_goes_with_the_app() {
    let Some(mut place) = Place::new("a_share_is_a_group_that_goes_with_the_app") else {
        return;
    };
    let sys = tempfile::tempdir().unwrap();
    for name in ["devices", "block", "class", "dev", "kernel"] {
        symlink(format!("/sys/{name}"), sys.path().join(name)).unwrap();
    }
    let root = sys.path().join("fs/resctrl");
    fs::create_dir_all(root.join("info/L3")).unwrap();
    fs::write(root.join("schemata"), "L3:0=fff\n").unwrap();
    fs::write(root.join("info/L3/cbm_mask"), "fff\n").unwrap();
    // The kernel makes these files with the group.
    let dir = root.join("forebay.job");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("schemata"), "").unwrap();
    fs::write(dir.join("tasks"), "").unwrap();
    place.options.roots.sys = sys.path().to_path_buf();

    let mut host = place.open();
    assert!(host.capabilities().knobs.contains(&Knob::L3Cache));
    assert!(!host.capabilities().knobs.contains(&Knob::MemoryBandwidth));
    let app = program("job", &["sleep", "1000"]);
    let lacking = Action::Set {
        app: app.id.clone(),
        setting: Setting::MemoryBandwidth(50),
    };
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    // Every thread is in the root group until it is put into another.
    let pid = look(&mut host, &[&app], 1).apps[&app.id].main_pid.unwrap();
    fs::write(root.join("tasks"), format!("{pid}\n")).unwrap();
    apply(&mut host, &[set("job", Setting::L3Cache(25))]);
    assert_eq!(host.apply(&[lacking]), [Outcome::Unsupported]);

    assert_eq!(text(&dir.join("schemata")), "L3:0=7");
    assert_eq!(text(&dir.join("tasks")), pid.to_string());

    // A daemon that was killed: the kernel removes a group with its files, a plain folder needs help.
    drop(host);
    for file in ["schemata", "tasks"] {
        fs::remove_file(dir.join(file)).unwrap();
    }
    let report = restore(&place.options.state_dir, &place.options.roots, OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert!(!dir.exists());
}
