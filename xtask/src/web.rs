//! `cargo xtask web`: the dashboard's files, made by npm.
//!
//! Without them the program is built all the same: its page works and has no charts.

use std::path::PathBuf;
use std::process::Command;

use crate::{process, setup};

/// The page's room.
pub(crate) fn room() -> PathBuf {
    process::repository().join("web")
}

/// Installs what `web/package-lock.json` names, and makes `web/dist`.
pub(crate) fn build() -> Result<(), String> {
    setup::ensure(setup::Group::Web)?;
    let npm = |arguments: &[&str]| {
        let mut npm = Command::new("npm");
        npm.args(arguments).current_dir(room());
        process::succeed(&mut npm)
    };
    npm(&["ci", "--no-audit", "--no-fund"])?;
    npm(&["run", "build"])
}
