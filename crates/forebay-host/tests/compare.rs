//! Images of another boot are compared beside the host, which goes on meanwhile. Needs root and writable control groups.

#![expect(
    dead_code,
    clippy::unwrap_used,
    reason = "a test that fails stops, and does not use all of the support"
)]

#[cfg(test)]
mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use forebay_core::app::{Images, OnStop};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::snapshot::{Ending, RunState};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use support::*;

/// An image that was kept in another boot, of which the disk gives nothing back until the test does.
fn kept(place: &Place, number: u32) -> PathBuf {
    let home = place.options.state_dir.join("images/web");
    let running = fs::read_to_string(home.join("running.json")).unwrap();
    let running: Value = serde_json::from_str(&running).unwrap();
    let directory = home.join(number.to_string());
    fs::create_dir(&directory).unwrap();
    let pages = directory.join("pages-1.img");
    mknodat(CWD, &pages, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let image = json!({
        "begun": running["begun"],
        "pid": 4_000_000,
        "boot": "the boot before",
        "taken_unix_ms": 0,
        "pause_us": null,
        "bytes": 0,
        "kept": { "update": 1, "sums": { "pages-1.img": 7 } },
    });
    fs::write(directory.join("image.json"), image.to_string()).unwrap();
    pages
}

#[test]
fn an_image_of_another_boot_is_compared_while_the_host_goes_on() {
    let Some(place) = Place::new("compared") else {
        return;
    };
    let mut host = place.open();
    let mut app = program("web", &["sleep", "1000"]);
    app.images = Some(Images {
        every: Duration::from_secs(3600),
    });
    let start = || {
        [Action::Start {
            app: app.clone().into(),
        }]
    };
    let kill = [Action::Kill { app: id("web") }];
    look(&mut host, &[&app], 0);
    apply(&mut host, &start());
    apply(&mut host, &kill);
    look_until(&mut host, &app, "end", |s| s.state != RunState::Running);

    let pages = kept(&place, 7);
    for _ in 0..2 {
        assert_eq!(host.apply(&start()), [Outcome::Pending]);
        let sample = look(&mut host, &[&app], 1).apps.remove(&app.id).unwrap();
        let seen = (sample.state, sample.main_pid);
        assert_eq!(seen, (RunState::Running, None), "it is on its way");
    }
    // The disk gives back something else than was written.
    fs::write(&pages, "x").unwrap();
    wait_for("start without the image", || {
        host.apply(&start()) == [Outcome::Done]
    });
    let sample = look(&mut host, &[&app], 2).apps.remove(&app.id).unwrap();
    assert!(sample.main_pid.is_some(), "{sample:?}");
    let said = place.options.state_dir.join("images/web/failed");
    assert!(text(&said).contains("pages-1.img"), "{}", text(&said));
    assert!(!pages.exists(), "it is laid aside");

    // Whoever is not to run is not begun once its image was compared.
    apply(&mut host, &kill);
    look_until(&mut host, &app, "end", |s| s.state != RunState::Running);
    let pages = kept(&place, 8);
    assert_eq!(host.apply(&start()), [Outcome::Pending]);
    apply(&mut host, &kill);
    let sample = look(&mut host, &[&app], 3).apps.remove(&app.id).unwrap();
    assert_eq!(sample.state, RunState::Ended(Ending::Signal(9)));
    // The disk gives it back, and nobody wants to know any more.
    drop(fs::File::options().write(true).open(&pages).unwrap());
    let sample = look(&mut host, &[&app], 4).apps.remove(&app.id).unwrap();
    assert_eq!(sample.state, RunState::Ended(Ending::Signal(9)));
    assert!(host.close(OnStop::Kill).unwrap().is_complete());
}
