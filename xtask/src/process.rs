//! Running other programs.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long output is still awaited after the program that made it has ended:
/// a process it left behind may hold the pipe open for ever.
const STRAGGLER_WAIT: Duration = Duration::from_secs(5);

/// Lines read ahead of the one being handled.
const LINES_BUFFERED: usize = 1024;

/// The root of the checkout.
pub(crate) fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// What is tested, always the same: of one package alone dependencies would have fewer features, and all
/// would be compiled once more. With all that is left out of a build that asks for nothing.
pub(crate) const WHOLE: [&str; 3] = ["--workspace", "--features", "forebay/etcd,forebay/vulkan"];

/// What is shipped.
pub(crate) const SHIPPED: [&str; 4] = ["--release", "--workspace", "--features", "forebay/etcd"];

/// `cargo SUBCOMMAND` for [`WHOLE`].
pub(crate) fn cargo_whole(subcommand: &[&str]) -> Command {
    let mut command = cargo(subcommand);
    command.args(WHOLE);
    command
}

/// `cargo build` for [`SHIPPED`].
pub(crate) fn cargo_shipped() -> Command {
    let mut command = cargo(&["build"]);
    command.args(SHIPPED);
    command
}

/// `cargo ARGS...`, to be run at the root of the checkout.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(repository());
    // cargo tells this program of itself. Build scripts that look at these names would run again, and all that
    // depends on them be compiled again, whenever somebody calls cargo by hand in between.
    for (name, _) in std::env::vars_os() {
        let is_told =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_told) {
            command.env_remove(name);
        }
    }
    command
}

/// The command as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// Runs the command and fails unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> Result<(), String> {
    let status = command
        .status()
        .map_err(|error| format!("run `{}`: {error}", describe(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{}` failed: {status}", describe(command)))
    }
}

/// Whether the command can be run and succeeds; its output is dropped.
pub(crate) fn succeeds_quietly(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Replaces this process; returns only to say why that failed.
pub(crate) fn become_program(program: &Path, first: &[&str], rest: &[String]) -> String {
    let mut command = Command::new(program);
    command.args(first).args(rest);
    let error = command.exec();
    format!("run `{}`: {error}", describe(&command))
}

/// Runs the command, handing each line of its output (stdout and stderr in one
/// stream, as a terminal would show them) to `on_line`.
pub(crate) fn run_lines(command: Command, on_line: impl FnMut(&str)) -> Result<ExitStatus, String> {
    run_lines_within(STRAGGLER_WAIT, command, on_line)
}

fn run_lines_within(
    straggler_wait: Duration,
    mut command: Command,
    mut on_line: impl FnMut(&str),
) -> Result<ExitStatus, String> {
    let text = describe(&command);
    let fail = |error: io::Error| format!("run `{text}`: {error}");

    let (reader, writer) = io::pipe().map_err(fail)?;
    command.stdout(writer.try_clone().map_err(fail)?);
    command.stderr(writer);
    let mut child = command.spawn().map_err(fail)?;
    // The command holds the write ends: without this the stream never ends.
    drop(command);

    let (sender, lines) = mpsc::sync_channel(LINES_BUFFERED);
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });

    let mut ended: Option<Instant> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => on_line(String::from_utf8_lossy(&line).trim_end_matches('\r')),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() && child.try_wait().map_err(fail)?.is_some() {
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|at| at.elapsed() > straggler_wait) {
            on_line("xtask: a process left behind still holds this command's output");
            break;
        }
    }
    child.wait().map_err(fail)
}

/// Where a program lies, as root would find it.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_arrive_line_by_line_with_the_status() {
        let mut lines = Vec::new();
        let status = run_lines(
            shell("echo one; echo two >&2; printf three; exit 3"),
            |line| {
                lines.push(line.to_owned());
            },
        )
        .unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_process_left_behind_does_not_hold_the_run() {
        let mut lines = Vec::new();
        let script = "while sleep 0.05; do echo; kill -0 $PPID || exit; done & echo $!";
        let wait = Duration::from_millis(200);
        let status = run_lines_within(wait, shell(script), |line| lines.push(line.to_owned()));
        assert!(status.unwrap().success());
        let straggler = lines.iter().find(|line| !line.is_empty()).unwrap();
        succeed(Command::new("kill").arg(straggler)).unwrap();
        assert!(lines.last().unwrap().contains("left behind"), "{lines:?}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run_lines(Command::new("forebay-no-such-program"), |_| ()).unwrap_err();
        assert!(error.contains("forebay-no-such-program"), "{error}");
        let error = become_program(Path::new("/no/such/forebay"), &["demo"], &[]);
        assert!(error.contains("/no/such/forebay demo"), "{error}");
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find_program("sh").is_some());
        assert!(find_program("forebay-no-such-program").is_none());
    }
}
