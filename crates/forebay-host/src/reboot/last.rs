//! Being the last service of systemd's that ends.
//!
//! # Problem
//! When the host is to begin anew, systemd asks all its services at once to end, and some take long. Whoever is written
//! down before that stands for all of it.
//!
//! # Approach
//! systemd waits for a service that was asked to end, as long as that one's unit says (`TimeoutStopSec`), and ends what
//! it needs (file systems, the network) only afterwards. So a service may wait as well: until no other job of systemd's
//! is under way (systemctl(1), `list-jobs`). Those that are left then wait for it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::program;
use crate::error::HostError;

/// Less than that and systemd might end the service before it has done what it waited for.
pub const PATIENCE_MIN: Duration = Duration::from_secs(600);

/// The unit that this process is the main one of, and that systemd gives at least [`PATIENCE_MIN`] for its end.
///
/// # Errors
/// Why there is none, for somebody who could change that.
pub fn unit(proc_root: &Path) -> Result<String, String> {
    let own = std::process::id().to_string();
    // systemd sets it for what it starts itself (systemd.exec(5)); what that starts inherits it.
    if std::env::var("SYSTEMD_EXEC_PID").ok().as_ref() != Some(&own) {
        return Err("this daemon is no service of systemd's".to_owned());
    }
    if program("systemctl").is_none() {
        return Err("there is no systemctl(1)".to_owned());
    }
    let groups = fs::read_to_string(proc_root.join("self/cgroup")).unwrap_or_default();
    let unit = service(&groups).ok_or("the unit of this daemon is not known")?;
    let asked = ["show", "--property=TimeoutStopUSec", "--value", &unit];
    let said = systemctl(&asked).map_err(|error| error.explain())?;
    match timespan(said.trim()) {
        Some(patience) if patience >= PATIENCE_MIN => Ok(unit),
        _ => Err(format!(
            "systemd gives {unit} {} for its end; `TimeoutStopSec={}min` or more lets it be the last",
            said.trim(),
            PATIENCE_MIN.as_secs() / 60
        )),
    }
}

/// Whether systemd waits for nobody but this unit.
///
/// # Errors
/// When systemd does not say.
pub fn is_awaited(unit: &str) -> Result<bool, HostError> {
    let jobs = systemctl(&["list-jobs", "--no-legend", "--plain", "--no-pager"])?;
    Ok(is_last(&jobs, unit))
}

fn systemctl(words: &[&str]) -> Result<String, HostError> {
    let words_said = words.join(" ");
    let ended = Command::new("systemctl")
        .args(words)
        .output()
        .map_err(|error| HostError::io(format!("run `systemctl {words_said}`"), error))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(HostError::invalid(
        format!(
            "run `systemctl {words_said}`: {} ({})",
            said.trim(),
            ended.status
        ),
        "see what it says",
    ))
}

/// The service that a process belongs to, by its control groups.
fn service(groups: &str) -> Option<String> {
    let paths = groups.lines().filter_map(|line| line.rsplit_once(':'));
    let mut names = paths.filter_map(|(_, path)| path.rsplit('/').next());
    names
        .find(|name| name.ends_with(".service"))
        .map(str::to_owned)
}

/// Lines of `JOB UNIT TYPE STATE`: this unit's end is under way, and nothing else is.
fn is_last(jobs: &str, unit: &str) -> bool {
    let jobs = jobs.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words.as_slice() {
            [_, name, kind, state, ..] => Some((name, kind, state)),
            _ => None,
        }
    });
    let under_way: Vec<_> = jobs.filter(|(.., state)| *state == "running").collect();
    matches!(*under_way.as_slice(), [(name, "stop", _)] if name == unit)
}

/// A time as systemd shows it (systemd.time(7)): `1min 30s`.
fn timespan(text: &str) -> Option<Duration> {
    if text == "infinity" {
        return Some(Duration::MAX);
    }
    let mut whole = Duration::ZERO;
    for word in text.split_whitespace() {
        let end = word.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, unit) = word.split_at(end);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        whole += Duration::try_from_secs_f64(number * seconds).ok()?;
    }
    (!text.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_systemd_shows_them() {
        let check = |text: &str, seconds: Option<u64>| {
            assert_eq!(timespan(text), seconds.map(Duration::from_secs), "{text}");
        };
        check("1min 30s", Some(90));
        check("15min", Some(900));
        check("1h 500ms 500000us", Some(3601));
        check("", None);
        check("soon", None);
        check("5parsecs", None);
        assert_eq!(timespan("infinity"), Some(Duration::MAX));
    }

    #[test]
    fn a_service_is_known_by_its_groups() {
        let check = |groups: &str, unit: Option<&str>| {
            assert_eq!(service(groups).as_deref(), unit, "{groups}");
        };
        check(
            "0::/system.slice/forebay.service\n",
            Some("forebay.service"),
        );
        check(
            "4:cpu:/forebay\n1:name=systemd:/system.slice/forebay.service\n0::/\n",
            Some("forebay.service"),
        );
        check("0::/user.slice/user-0.slice/session-1.scope\n", None);
    }

    #[test]
    fn whoever_waits_for_it_is_not_waited_for() {
        let own = "12 forebay.service stop running\n";
        let waits = "13 basic.target stop waiting\n14 kexec.target start waiting\n";
        let check = |jobs: &str, last: bool| {
            assert_eq!(is_last(jobs, "forebay.service"), last, "{jobs}");
        };
        check(&format!("{own}{waits}"), true);
        check(
            &format!("{own}{waits}15 slow.service stop running\n"),
            false,
        );
        check(waits, false);
        check("12 forebay.service start running\n", false);
        check("", false);
    }
}
