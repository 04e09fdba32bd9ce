//! Scenarios: shell scripts that say in their header which guests they run in.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::guest::Machine;
use crate::process;

const DEFAULT_BOUND: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) kernels: Vec<String>,
    /// Those of them that it runs on in `cargo xtask test`, too.
    pub(super) routine: Vec<String>,
    pub(super) machine: Machine,
    /// What it needs beside the program: test binaries by name, and `package`, that of the release build.
    pub(super) needs: Vec<String>,
    /// How long it may take.
    pub(super) bound: Duration,
}

pub(super) fn directory() -> PathBuf {
    process::repository().join("tests/vm")
}

/// Every scenario, sorted by name.
pub(super) fn all() -> Result<Vec<Scenario>, String> {
    let directory = directory();
    let fail = |path: &Path, error| format!("read {}: {error}", path.display());
    let entries = fs::read_dir(&directory).map_err(|error| fail(&directory, error))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sh"));
    paths.sort();
    let mut scenarios = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(|error| fail(&path, error))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        scenarios.push(parse(&name, &text).map_err(|text| format!("{}: {text}", path.display()))?);
    }
    Ok(scenarios)
}

/// Reads `# about: TEXT`, `# kernels: K...`, `# routine: K...` (all of them where it is left out, `none` for none),
/// `# machine: OPTIONS`, `# needs: package BINARY...` (beside what it names at /host), and `# seconds: N`.
fn parse(name: &str, text: &str) -> Result<Scenario, String> {
    let field = |key: &str| {
        text.lines()
            .take_while(|line| line.starts_with('#'))
            .find_map(|line| {
                line.strip_prefix("# ")?
                    .strip_prefix(key)?
                    .strip_prefix(": ")
            })
    };
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let about = field("about").ok_or("the header lacks `# about: TEXT`")?;
    let kernels = words(field("kernels").ok_or("the header lacks `# kernels: stable old`")?);
    let routine = match field("routine") {
        None => kernels.clone(),
        Some("none") => Vec::new(),
        Some(text) => words(text),
    };
    if let Some(other) = routine.iter().find(|kernel| !kernels.contains(kernel)) {
        return Err(format!("`# routine: {other}` is none of `# kernels:`"));
    }
    let declared = words(field("needs").unwrap_or_default());
    let can_be_had = |name: &str| {
        let mut binaries = super::TEST_BINARIES.iter().flat_map(|(_, names)| *names);
        name == "package" || binaries.any(|binary| *binary == name)
    };
    if let Some(other) = declared.iter().find(|name| !can_be_had(name)) {
        return Err(format!("`# needs: {other}`: there is no such test binary"));
    }
    let machine = Machine::parse(&words(field("machine").unwrap_or_default()))?;
    let bound = match field("seconds") {
        Some(number) => Duration::from_secs(
            number
                .parse()
                .map_err(|_| format!("`# seconds: {number}` is no number"))?,
        ),
        None => DEFAULT_BOUND,
    };
    for kernel in &kernels {
        super::guest::check_kernel(kernel)?;
    }
    Ok(Scenario {
        name: name.to_owned(),
        about: about.to_owned(),
        kernels,
        routine,
        machine,
        needs: named(text).chain(declared).collect(),
        bound,
    })
}

/// What a script names of the folder that it finds at /host.
fn named(text: &str) -> impl Iterator<Item = String> {
    let names = text.split("/host/bin/").skip(1);
    let names = names.filter_map(|rest| rest.split(|letter: char| !is_of_a_name(letter)).next());
    let package = text.contains("/host/forebay_").then_some("package");
    names
        .filter(|name| !name.is_empty())
        .chain(package)
        .map(str::to_owned)
}

const fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_this_checkout_is_understood() {
        assert!(!all().unwrap().is_empty());
    }

    #[test]
    fn a_header_says_where_a_scenario_runs() {
        let text = "#!/bin/bash\n# about: one\n# kernels: stable old\n# machine: --smp 4 --numa\n# seconds: 9\n";
        let scenario = parse("name", text).unwrap();
        assert_eq!(scenario.kernels, ["stable", "old"]);
        assert_eq!(scenario.routine, ["stable", "old"]);
        assert!(scenario.needs.is_empty());
        let tested = format!("{text}# needs: kernel oom\n");
        assert_eq!(parse("name", &tested).unwrap().needs, ["kernel", "oom"]);
        let used =
            format!("{text}cp /host/bin/daemon .\nls /host/forebay_*.deb\n/host/bin/$name\n");
        assert_eq!(parse("name", &used).unwrap().needs, ["daemon", "package"]);
        let fewer = format!("{text}# routine: old\n");
        assert_eq!(parse("name", &fewer).unwrap().routine, ["old"]);
        let never = format!("{text}# routine: none\n");
        assert!(parse("name", &never).unwrap().routine.is_empty());
        assert!(scenario.needs.is_empty());
        let wants = format!("{text}# needs: package\n");
        assert_eq!(parse("name", &wants).unwrap().needs, ["package"]);
        assert_eq!(scenario.bound, Duration::from_secs(9));
        assert_eq!(scenario.machine.cpus, 4);
    }

    #[test]
    fn a_wrong_header_is_refused() {
        for text in [
            "",
            "# about: one\n",
            "# about: one\n# kernels: 2.4\n",
            "# about: a\n# kernels: old\n# machine: --smp many\n",
            "# about: a\n# kernels: old\n# routine: stable\n",
            "# about: a\n# kernels: old\n# needs: luck\n",
        ] {
            assert!(parse("name", text).is_err(), "{text}");
        }
    }
}
