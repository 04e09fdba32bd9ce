//! The documents: what docs/tutorial.md has its reader type works, and the table of contents leads everywhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::{EXE, processes};

/// Where the documents are.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// The group that the tutorial has the daemon make.
const GROUP: &str = "forebay-tutorial";

/// The blocks of a page that are for the shell, one after the other.
fn script(page: &str) -> String {
    let mut script = String::new();
    let mut is_shell = false;
    for line in page.lines() {
        match line {
            "```sh" => is_shell = true,
            "```" => is_shell = false,
            line if is_shell => {
                script += line;
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

/// The control groups that begin with the tutorial's name.
fn groups() -> Vec<PathBuf> {
    let find = Command::new("find")
        .args(["/sys/fs/cgroup", "-maxdepth", "2", "-name"])
        .arg(format!("{GROUP}*"))
        .output()
        .unwrap();
    let found = String::from_utf8_lossy(&find.stdout);
    found.lines().map(PathBuf::from).collect()
}

#[test]
fn the_tutorial_works_as_it_is_written() {
    let name = "the_tutorial_works_as_it_is_written";
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: {name}: not root");
        return;
    }
    if Command::new("curl").arg("--version").output().is_err() {
        println!("SKIPPED: {name}: there is no curl");
        return;
    }
    let page = fs::read_to_string(docs().join("tutorial.md")).unwrap();
    let script = script(&page);
    assert!(script.contains("forebay shadow handover"), "{script}");
    let dir = tempfile::tempdir().unwrap();
    let programs = Path::new(EXE.as_str()).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    // Whatever fails ends it, and the daemon with it.
    let guarded =
        format!("trap 'kill \"${{daemon:-}}\" 2>/dev/null || true; wait' EXIT\nset -eux\n{script}");
    let output = Command::new("timeout")
        .args(["--kill-after", "20", "120", "bash", "-c", &guarded])
        .current_dir(dir.path())
        .env("PATH", format!("{}:{path}", programs.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let steps = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{said}\n{steps}",
        output.status
    );
    for word in ["shop-a", "numbers", "serves now instead of"] {
        let has = |text: &str| text.to_lowercase().contains(&word.to_lowercase());
        assert!(has(&said), "{word}: {said}");
    }
    assert!(groups().is_empty(), "{:?}", groups());
    let left = processes(|words| words.iter().any(|word| word == "18081" || word == "18082"));
    assert_eq!(left, [0; 0]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// What a page refers to by a link within the documents.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let ends = page.split("](").skip(1);
    let targets = ends.filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://") && !target.starts_with('#'))
}

#[test]
fn every_page_is_in_the_table_of_contents_and_every_link_leads_somewhere() {
    let docs = docs();
    let contents = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<&str> = links(&contents).collect();
    let mut pages = 0;
    for entry in fs::read_dir(&docs).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        pages += 1;
        assert!(
            name == "SUMMARY.md" || listed.contains(name.as_str()),
            "{name} is not listed"
        );
        let page = fs::read_to_string(&path).unwrap();
        for link in links(&page) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = docs.join(file);
            assert!(
                target.exists(),
                "{name} refers to {link}, which is not there"
            );
            if anchor.is_empty() {
                continue;
            }
            let text = fs::read_to_string(&target).unwrap();
            let heads = text
                .lines()
                .filter(|line| line.starts_with('#'))
                .map(anchor_of);
            assert!(
                heads.into_iter().any(|head| head == anchor),
                "{name} refers to {link}: {file} has no such head"
            );
        }
    }
    assert!(pages > 20, "{pages}");
}

/// What a head is referred to by.
fn anchor_of(head: &str) -> String {
    let text = head.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
