//! What cargo knows of this workspace.

use std::path::PathBuf;

use crate::json::{self, Json};
use crate::process;

#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) target_directory: PathBuf,
    pub(crate) arrows: Vec<Arrow>,
}

/// One crate of this workspace depends on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrow {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In what is shipped, build scripts included.
    Shipped,
    /// In tests only.
    Dev,
}

/// Asks `cargo metadata`, without downloading anything.
pub(crate) fn read() -> Result<Workspace, String> {
    let mut command = process::cargo(&["metadata", "--format-version", "1", "--no-deps"]);
    let described = process::describe(&command);
    let output = command
        .output()
        .map_err(|error| format!("run `{described}`: {error}"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{described}` failed: {}", reason.trim_end()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let metadata = json::parse(&text).map_err(|error| format!("read `{described}`: {error}"))?;
    from_metadata(&metadata).ok_or_else(|| format!("read `{described}`: a field is missing"))
}

fn from_metadata(metadata: &Json) -> Option<Workspace> {
    let packages = metadata.get("packages").elements();
    let members: Option<Vec<&str>> = packages
        .iter()
        .map(|package| package.get("name").text())
        .collect();
    let members = members?;
    let mut arrows = Vec::new();
    for (package, from) in packages.iter().zip(&members) {
        for dependency in package.get("dependencies").elements() {
            let to = dependency.get("name").text()?;
            let kind = match dependency.get("kind").text() {
                Some("dev") => Kind::Dev,
                _ => Kind::Shipped,
            };
            if members.contains(&to) {
                arrows.push(Arrow {
                    from: (*from).to_owned(),
                    to: to.to_owned(),
                    kind,
                });
            }
        }
    }
    let target_directory = PathBuf::from(metadata.get("target_directory").text()?);
    Some(Workspace {
        target_directory,
        arrows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_arrows_inside_the_workspace_are_kept() {
        let metadata = json::parse(
            r#"{"target_directory": "/t", "packages": [
                {"name": "a", "dependencies": [
                    {"name": "b", "kind": null}, {"name": "serde", "kind": null}]},
                {"name": "b", "dependencies": [{"name": "a", "kind": "dev"}]}]}"#,
        )
        .unwrap();
        let workspace = from_metadata(&metadata).unwrap();
        let arrow = |from: &str, to: &str, kind| Arrow {
            from: from.into(),
            to: to.into(),
            kind,
        };
        assert_eq!(workspace.target_directory, PathBuf::from("/t"));
        assert_eq!(
            workspace.arrows,
            [arrow("a", "b", Kind::Shipped), arrow("b", "a", Kind::Dev)]
        );
    }

    #[test]
    fn this_workspace_can_be_read() {
        let workspace = read().unwrap();
        assert!(workspace.target_directory.is_absolute());
        assert!(workspace.arrows.iter().any(|arrow| arrow.from == "forebay"));
    }
}
