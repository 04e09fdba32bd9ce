//! Whether every app of an example was found, is in its slice and has what its class promises.

use std::fs;

use super::leftovers::{self, Process};
use super::stage::{Stage, group_root};
use super::{App, Class};
use crate::json::{self, Json};
use crate::process;

/// One look at the apps.
pub(super) struct Report {
    /// What is not as it should be; empty when all is well.
    pub(super) findings: Vec<String>,
    /// One line for each app.
    pub(super) lines: Vec<String>,
}

/// The examples match whatever runs on the host; a trial binds nothing but its own.
pub(super) fn refuse_others(programs: &[&str]) -> Result<(), String> {
    for pid in leftovers::pids() {
        let Some(program) = leftovers::program(pid) else {
            continue;
        };
        if programs.contains(&program.as_str()) {
            return Err(format!(
                "`{}` runs already as process {pid}, and the example would bind it, too; \
                 end it first",
                leftovers::command_line(pid)
            ));
        }
    }
    Ok(())
}

/// Asks the daemon, and the kernel where the processes are.
pub(super) fn look(apps: &[App], stage: &Stage) -> Result<Report, String> {
    let mut command = stage.client(&["apps", "--json"]);
    let described = process::describe(&command);
    let output = command
        .output()
        .map_err(|error| format!("run `{described}`: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answer = json::parse(&text).map_err(|error| format!("read `{described}`: {error}"))?;
    let family = leftovers::family();
    let mut report = Report {
        findings: Vec::new(),
        lines: Vec::new(),
    };
    for app in apps {
        let told = answer.get("apps").elements().iter();
        let Some(told) = told
            .into_iter()
            .find(|told| told.get("name").text() == Some(app.name))
        else {
            report.findings.push(format!("{}: not listed", app.name));
            continue;
        };
        let mut findings = check_told(app, told);
        let group = format!("/{}.{}", group_root(), app.name);
        let inside = check_processes(app, &family, &group, &mut findings);
        report.lines.push(format!(
            "  {:<16} {:<9} {inside} process(es) in {group}, CPUs {}, weight {}{}",
            app.name,
            app.class.name(),
            told.get("slice")
                .get("cpus")
                .text()
                .unwrap_or("of the host"),
            number(told.get("slice").get("cpu_weight")).map_or("-".into(), |w| w.to_string()),
            if told.get("slice").get("cpu_idle") == &Json::Bool(true) {
                ", idle class"
            } else {
                ""
            },
        ));
        let named = findings.iter().map(|text| format!("{}: {text}", app.name));
        report.findings.extend(named);
    }
    Ok(report)
}

/// What the daemon tells of an app against what the example says of it.
fn check_told(app: &App, told: &Json) -> Vec<String> {
    let mut findings = Vec::new();
    let mut expect = |what: &str, told: &Json, wanted: &Json| {
        if told != wanted {
            findings.push(format!("{what} is {told:?}, not {wanted:?}"));
        }
    };
    let text = |text: &str| Json::Text(text.to_owned());
    expect("state", told.get("state"), &text("running"));
    expect("class", told.get("class"), &text(app.class.name()));
    let slice = told.get("slice");
    let idle = Json::Bool(app.class == Class::Batch);
    expect("cpu_idle", slice.get("cpu_idle"), &idle);
    // The kernel's own weight is 100.
    let weight = number(slice.get("cpu_weight"));
    let fits = match app.class {
        Class::Critical => weight > Some(100),
        Class::Standard => weight == Some(100),
        Class::Batch => weight.is_none_or(|weight| weight <= 100),
    };
    if !fits {
        findings.push(format!("cpu_weight is {weight:?}"));
    }
    findings
}

/// Counts the app's processes; those outside its group are findings, and so is their absence.
fn check_processes(
    app: &App,
    family: &[Process],
    group: &str,
    findings: &mut Vec<String>,
) -> usize {
    let mut inside = 0;
    for process in family {
        let program = leftovers::program(process.pid());
        if !program.is_some_and(|program| app.programs.contains(&program.as_str())) {
            continue;
        }
        let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid()));
        // A compiler may have ended meanwhile.
        let Some(path) = text.ok().and_then(|text| cpu_group(&text)) else {
            continue;
        };
        if path == group {
            inside += 1;
        } else {
            findings.push(format!(
                "process {} `{}` is in {path}",
                process.pid(),
                leftovers::command_line(process.pid())
            ));
        }
    }
    if inside == 0 {
        findings.push(format!("no process in {group}"));
    }
    inside
}

/// The group that the cpu controller sees, from /proc/PID/cgroup: of v1 where it has the
/// controller, otherwise of v2.
fn cpu_group(text: &str) -> Option<String> {
    let entries: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .collect();
    let v1 = entries
        .iter()
        .find(|(controllers, _)| controllers.split(',').any(|name| name == "cpu"));
    let v2 = || {
        entries
            .iter()
            .find(|(controllers, _)| controllers.is_empty())
    };
    v1.or_else(v2).map(|(_, path)| (*path).to_owned())
}

fn number(value: &Json) -> Option<u64> {
    match value {
        Json::Number(text) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_the_cpu_controller_is_found() {
        let hybrid = "5:cpuset:/a\n3:cpu,cpuacct:/b\n0::/c\n";
        assert_eq!(cpu_group(hybrid).unwrap(), "/b");
        assert_eq!(cpu_group("0::/c\n").unwrap(), "/c");
        assert_eq!(cpu_group("5:cpuset:/a\n"), None);
    }

    #[test]
    fn what_is_told_is_held_against_the_class() {
        let app = |class| App {
            name: "a",
            class,
            programs: &[],
        };
        let told = |class: &str, idle: bool, weight: u32| {
            json::parse(&format!(
                r#"{{"name": "a", "state": "running", "class": "{class}",
                    "slice": {{"cpu_idle": {idle}, "cpu_weight": {weight}}}}}"#
            ))
            .unwrap()
        };
        let check = |class, told: &Json, wanted: usize| {
            let findings = check_told(&app(class), told);
            assert_eq!(findings.len(), wanted, "{findings:?}");
        };
        check(Class::Critical, &told("critical", false, 1000), 0);
        check(Class::Critical, &told("critical", false, 100), 1);
        check(Class::Standard, &told("standard", false, 100), 0);
        check(Class::Batch, &told("batch", true, 1), 0);
        check(Class::Batch, &told("standard", false, 1), 2);
    }
}
