//! `forebay tier` from outside, on a tmpfs and on ext4 in a loop device. The mounts end with
//! their namespace.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, whose functions clippy does not see as such"
)]

mod daemon;

use std::path::Path;
use std::process::{Command, Output};

/// What runs in the namespace before the commands of a test.
const MOUNTS: &str = r#"set -e
cd "$1"
chmod 755 .
mkdir fast slow
truncate -s 64M image
mkfs.ext4 -q image
mount -o loop image slow
mount -t tmpfs tmpfs fast
mkdir fast/tier slow/tier slow/data
chmod 755 fast fast/tier slow/tier slow/data
printf '[tiers.data]\ndirectory = "%s/slow/data"\nfast = "%s/fast/tier"\nslow = "%s/slow/tier"\nfast_size_max = "1MiB"\nvolatile = true\n' "$1" "$1" "$1" > forebay.toml
set +e
"#;

fn inside(test: &str, script: &str) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: {test}: not root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |script: &str, dir: &Path| {
        Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(dir)
            .arg(env!("CARGO_BIN_EXE_forebay"))
            .output()
    };
    let tried = tempfile::tempdir().unwrap();
    match run(MOUNTS, tried.path()) {
        Ok(output) if output.status.success() => {}
        other => {
            println!("SKIPPED: {test}: no loop device in a mount namespace: {other:?}");
            return None;
        }
    }
    Some(run(&format!("{MOUNTS}{script}"), dir.path()).unwrap())
}

fn check(test: &str, script: &str, success: bool, words: &[&str]) {
    let Some(output) = inside(test, script) else {
        return;
    };
    let mut text = String::from_utf8(output.stdout).unwrap();
    text += &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.success(), success, "{test}: {text}");
    for word in words {
        assert!(text.contains(word), "{test}: no `{word}` in {text}");
    }
}

#[test]
fn files_go_to_the_fast_tier_and_back() {
    check(
        "files_go_to_the_fast_tier_and_back",
        r#"
        echo content > slow/data/a; mkdir slow/data/b; echo more > slow/data/b/c
        "$2" tier promote data "$1/slow/data/a" b/c --config forebay.toml || exit
        cat slow/data/a slow/data/b/c
        stat -L -c %d slow/data/a fast | uniq | wc -l
        "$2" tier status --json --config forebay.toml || exit
        "$2" tier drain data --config forebay.toml || exit
        test -f slow/data/a -a ! -L slow/data/a -a -z "$(ls fast/tier/files)"
        "#,
        true,
        &[
            "content\nmore\n1\n",
            "\"fast_files\": 2",
            "\"fast_bytes\": 13",
            "moved b/c",
        ],
    );
}

#[test]
fn a_copy_without_a_file_is_told_and_kept() {
    check(
        "a_copy_without_a_file_is_told_and_kept",
        r#"
        echo content > slow/data/a
        "$2" tier promote data a --config forebay.toml || exit
        mv slow/data/a fast/
        "$2" tier status --config forebay.toml || exit
        "$2" tier forget data --config forebay.toml || exit
        cat fast/a
        "#,
        true,
        &[
            "1 without a file (`forget` removes them)",
            "removed 0 copies from tier data; 1 lost their file less than 10 minutes ago and are kept\ncontent\n",
        ],
    );
}

/// The kernel lets nobody set when a link lost its last name; the file system's own tool does.
#[test]
fn a_copy_that_lost_its_file_long_ago_is_forgotten_when_asked_for() {
    check(
        "a_copy_that_lost_its_file_long_ago_is_forgotten_when_asked_for",
        r#"
        echo content > slow/data/a; echo more > slow/data/b
        "$2" tier promote data a b --config forebay.toml || exit
        rm slow/data/a
        for id in $(ls slow/tier/links); do
            test $(stat -c %h slow/tier/links/$id) = 1 && gone=$id
        done
        inode=$(stat -c %i slow/tier/links/$gone)
        umount slow
        debugfs -w -R "set_inode_field <$inode> ctime 202001010000" image || exit
        mount -o loop image slow
        "$2" tier status --config forebay.toml || exit
        test -f fast/tier/files/$gone || exit
        "$2" tier forget data --config forebay.toml || exit
        "$2" tier status --json --config forebay.toml || exit
        test ! -e fast/tier/files/$gone -a "$(cat slow/data/b)" = more
        "#,
        true,
        &[
            "1 without a file (`forget` removes them)",
            "removed 1 copies from tier data\n",
            "\"nameless\": 0",
            "\"fast_bytes\": 5",
        ],
    );
}

#[test]
fn what_cannot_be_moved_is_left_with_its_reason() {
    check(
        "what_cannot_be_moved_is_left_with_its_reason",
        r#"
        truncate -s 2M slow/data/big; echo content > slow/data/held; exec 5< slow/data/held
        "$2" tier promote data big held absent /etc/passwd --config forebay.toml
        "#,
        false,
        &[
            "left big: the tier has no room for it",
            "left held: a process holds it open",
            "left absent: it is gone",
            "left /etc/passwd: it lies outside of the directory",
        ],
    );
}

#[test]
fn a_tier_that_cannot_be_is_refused() {
    check(
        "a_tier_that_cannot_be_is_refused",
        r#"
        "$2" tier status --config forebay.toml; umount fast
        "$2" tier status --config forebay.toml; mkdir fast/tier
        "$2" tier status --config forebay.toml
        sed -i '/fast_size_max/d; s/volatile/volatil/' forebay.toml
        "$2" tier promote data a --config forebay.toml
        sed -i /volatil/d forebay.toml
        "$2" tier promote data a --config forebay.toml
        "#,
        false,
        &[
            "make that directory for tier data",
            "fast/tier is not the fast side that belongs to",
            "forebay.toml:5: unknown key `volatil` in [tiers.data]; did you mean `volatile`?",
            "forebay.toml:1: tiers.data: the tier lacks fast_size_max",
        ],
    );
}
