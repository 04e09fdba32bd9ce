//! Control groups that a benchmark made for itself and did not remove, because it was killed.

use std::fs;
use std::path::Path;

use forebay_host::mounts::{Controller, Hierarchies};

use crate::demo::print as output;

/// Start of the names of such groups; the process number of the benchmark follows, then anything.
pub(super) const PREFIX: &str = "forebay-bench-own-";

/// Removes those whose benchmark is gone. One that cannot be removed is named.
pub(super) fn remove() {
    // Where hierarchies cannot be read, no benchmark has made a group either.
    let Ok(hierarchies) = Hierarchies::read(Path::new("/proc")) else {
        return;
    };
    for controller in [Controller::Io, Controller::Memory] {
        if let Some((_, hierarchy)) = hierarchies.of(controller) {
            remove_from(&hierarchy.dir(Path::new("")));
        }
    }
}

fn remove_from(parent: &Path) {
    let groups = fs::read_dir(parent).into_iter().flatten().flatten();
    for group in groups.filter(|group| is_left(&group.file_name().to_string_lossy())) {
        let path = group.path();
        match fs::remove_dir(&path) {
            Err(error) if path.exists() => output::line(format_args!(
                "{} was left by a benchmark that is gone: {error}; remove it by hand",
                path.display()
            )),
            _ => {}
        }
    }
}

fn is_left(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    let number = rest.split('-').next().unwrap_or_default();
    number
        .parse::<u32>()
        .is_ok_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_benchmarks_that_are_gone_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this number: it is above the kernel's largest.
        let gone = format!("{PREFIX}4194305-disk");
        let alive = format!("{PREFIX}{}-disk", std::process::id());
        let others = ["forebay-bench-4194305", "forebay-bench-own-web", "web"];
        for name in others.iter().copied().chain([gone.as_str(), &alive]) {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        remove_from(dir.path());
        assert!(!dir.path().join(gone).exists());
        for name in others.iter().copied().chain([alive.as_str()]) {
            assert!(dir.path().join(name).exists(), "{name}");
        }
    }
}
