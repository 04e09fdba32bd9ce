//! `cargo xtask tidy`: house rules that compilers do not check.
//!
//! Each rule is a function from text to findings; a finding is one line that
//! names the file and what to do. The same rules run as tests.

mod architecture;
mod arrows;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace;

/// All findings in the checkout at `root`.
pub(crate) fn check(root: &Path) -> Result<Vec<String>, String> {
    let mut findings = arrows::check(&workspace::read()?.arrows);
    for path in files(root)? {
        let name = path.strip_prefix(root).unwrap_or(&path);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => findings.extend(sources::check_rust(name, &read(&path)?)),
            Some("md") => findings.extend(sources::check_prose(name, &read(&path)?)),
            _ => {}
        }
    }
    findings.extend(check_architecture(root)?);
    Ok(findings)
}

fn check_architecture(root: &Path) -> Result<Vec<String>, String> {
    let page = root.join("ARCHITECTURE.md");
    let tick = root.join("crates/forebay-core/src/tick.rs");
    if !page.exists() {
        return Ok(Vec::new());
    }
    let code = if tick.exists() {
        read(&tick)?
    } else {
        String::new()
    };
    Ok(architecture::check(&read(&page)?, &code))
}

/// Every file of the checkout, sorted, without build output, hidden directories and
/// the `.git` file of a worktree. Symbolic links are not followed.
fn files(root: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let fail = |error| format!("list {}: {error}", directory.display());
        for entry in fs::read_dir(&directory).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let kind = entry.file_type().map_err(fail)?;
            let name = entry.file_name();
            let built = ["target", "node_modules"]
                .iter()
                .any(|built| name == *built);
            let skipped = built || name.as_encoded_bytes().starts_with(b".");
            if kind.is_dir() && !skipped {
                directories.push(entry.path());
            } else if kind.is_file() && name != ".git" {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    #[test]
    fn this_checkout_is_tidy() {
        let findings = check(&process::repository()).unwrap();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }

    #[test]
    fn build_output_and_hidden_directories_are_left_out() {
        let root = process::repository();
        let all = files(&root).unwrap();
        assert!(all.contains(&root.join("xtask/src/tidy.rs")));
        for hidden in [".git", "target"] {
            assert!(!all.iter().any(|path| path.starts_with(root.join(hidden))));
        }
    }
}
