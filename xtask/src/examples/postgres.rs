//! PostgreSQL under pgbench.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::stage::{Signal, Stage};
use super::{App, Class, Latency, Server, Trial};
use crate::process;

#[derive(Default)]
pub(super) struct Postgres {
    /// Where the version's programs are.
    programs: PathBuf,
}

const USER: &str = "postgres";
/// Transactions per second that pgbench asks for, at times that do not wait for answers.
const RATE: &str = "300";
/// Millions of accounts, in tenths.
const SCALE: &str = "10";

impl Postgres {
    fn program(&self, stage: &Stage, name: &str) -> Command {
        let path = self.programs.join(name).display().to_string();
        stage.program_as(USER, &path)
    }

    /// Reached through a socket in a directory that only its user may enter.
    fn client(&self, stage: &Stage, name: &str) -> Command {
        let mut command = self.program(stage, name);
        command.arg("--host").arg(home(stage));
        command
    }
}

fn home(stage: &Stage) -> PathBuf {
    stage.dir().join("postgres")
}

impl Trial for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn edits(&self, _stage: &Stage) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn apps(&self) -> &'static [App] {
        &[
            App {
                name: "postgres",
                class: Class::Critical,
                programs: &["postgres"],
            },
            App {
                name: "pgbench",
                class: Class::Standard,
                programs: &["pgbench"],
            },
            App {
                name: "build",
                class: Class::Batch,
                programs: &["make", "cc1"],
            },
        ]
    }

    fn prepare(&mut self, stage: &Stage) -> Result<(), String> {
        self.programs = newest_programs()?;
        let mut make = Command::new("install");
        make.args(["-d", "-m", "0700", "-o", USER, "-g", USER]);
        process::succeed(make.arg(home(stage)))?;
        let mut initdb = self.program(stage, "initdb");
        initdb.args(["--auth", "trust", "--no-sync", "--pgdata"]);
        quietly(initdb.arg(home(stage).join("data")))
    }

    fn server(&self, stage: &Stage) -> Command {
        let mut postgres = self.program(stage, "postgres");
        postgres.arg("-D").arg(home(stage).join("data"));
        // No TCP: the socket is all that pgbench needs.
        postgres.args(["-c", "listen_addresses="]);
        postgres.arg("-k").arg(home(stage));
        postgres
    }

    fn server_kind(&self) -> Server {
        // Its fast shutdown, which does not wait for clients.
        Server::OfHost(Signal::Interrupt)
    }

    fn is_ready(&self, stage: &Stage) -> bool {
        process::succeeds_quietly(&mut self.client(stage, "pg_isready"))
    }

    fn fill(&self, stage: &Stage) -> Result<(), String> {
        quietly(self.client(stage, "createdb").arg("bench"))?;
        let mut fill = self.client(stage, "pgbench");
        quietly(fill.args(["--initialize", "--quiet", "--scale", SCALE, "bench"]))
    }

    fn load(&self, stage: &Stage) -> Command {
        let mut pgbench = self.client(stage, "pgbench");
        pgbench
            .args(["--client", "8", "--rate", RATE, "--time"])
            .arg(stage.load_s().to_string())
            .args(["--log", "--log-prefix"])
            .arg(home(stage).join("transactions"))
            .arg("bench");
        pgbench
    }

    fn latency(&self, stage: &Stage, output: &str) -> Result<Latency, String> {
        let home = home(stage);
        let fail = |error| format!("read pgbench's log in {}: {error}", home.display());
        let mut times_us = Vec::new();
        for entry in fs::read_dir(&home).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with("transactions")) {
                times_us.extend(times(&fs::read_to_string(&path).map_err(fail)?));
                // The next load writes its own.
                fs::remove_file(&path).map_err(fail)?;
            }
        }
        summary(times_us, output).ok_or_else(|| format!("read what pgbench says:\n{output}"))
    }
}

/// `/usr/lib/postgresql/VERSION/bin`, where Debian keeps them.
fn newest_programs() -> Result<PathBuf, String> {
    let parent = PathBuf::from("/usr/lib/postgresql");
    let fail = |error| format!("list {}: {error}; install postgresql", parent.display());
    let versions = fs::read_dir(&parent).map_err(fail)?.flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| parent.join(format!("{version}/bin/initdb")).exists())
        .max();
    newest
        .map(|version| parent.join(format!("{version}/bin")))
        .ok_or_else(|| format!("find initdb below {}: install postgresql", parent.display()))
}

/// Runs it; its output matters only when it fails.
fn quietly(command: &mut Command) -> Result<(), String> {
    let text = process::describe(command);
    let output = command
        .output()
        .map_err(|error| format!("run `{text}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{text}` failed: {}: {errors}", output.status))
}

/// The third number of each line: microseconds from the intended start to the end.
fn times(log: &str) -> Vec<u64> {
    log.lines()
        .filter_map(|line| line.split(' ').nth(2)?.parse().ok())
        .collect()
}

fn summary(mut times_us: Vec<u64>, output: &str) -> Option<Latency> {
    times_us.sort_unstable();
    let quantile_ms = |percent: usize| {
        let at = (times_us.len() * percent).div_ceil(100).checked_sub(1)?;
        let us = u32::try_from(*times_us.get(at)?).ok()?;
        Some(f64::from(us) / 1000.0)
    };
    let per_s = output
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))?
        .split(' ')
        .next()?;
    Some(Latency {
        p50_ms: quantile_ms(50)?,
        p99_ms: quantile_ms(99)?,
        per_s: per_s.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_writes_is_read() {
        let log = "0 1 2500 0 1700000000 12 900\n1 1 1500 0 1700000000 99 10\n";
        assert_eq!(times(log), [2500, 1500]);
        let latency = summary(
            times(log),
            "tps = 299.5 (without initial connection time)\n",
        );
        let expected = Latency {
            p50_ms: 1.5,
            p99_ms: 2.5,
            per_s: 299.5,
        };
        assert_eq!(latency, Some(expected));
        assert_eq!(summary(Vec::new(), "tps = 1 ()"), None);
    }
}
