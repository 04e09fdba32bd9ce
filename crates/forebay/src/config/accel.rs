//! What an app may have of accelerators, and where its worker is.

use std::path::{Path, PathBuf};

use forebay_accel::client::SOCKET_VARIABLE;
use forebay_core::accel::{Accelerators, Priority};
use forebay_core::app::{App, AppId, Binding};
use forebay_core::units::Limit;

use super::error::{Findings, Problem};
use super::resolve::share;
use super::text::Section;

/// The longest path of a Unix socket that the kernel takes.
pub(super) const SOCKET_PATH_MAX: usize = 107;

/// Where the directories of all workers are: beside the daemon's socket.
pub(crate) fn workers_directory(daemon_socket: &Path) -> PathBuf {
    daemon_socket
        .parent()
        .unwrap_or(Path::new("/"))
        .join("accel")
}

/// Where the worker of an app listens.
fn worker_socket(workers: &Path, app: &AppId) -> PathBuf {
    workers.join(app.as_str()).join("socket")
}

/// Resolves the section of one app. `copied` says that its memory is copied by CRIU, which can copy
/// neither end of a connection to a worker.
pub(super) fn accelerators(
    section: &mut Section,
    copied: bool,
    findings: &mut Findings<'_>,
) -> Option<Accelerators> {
    let mut given = section.take::<Section>("accelerators")?.value;
    let mut names = |key| {
        let texts = given.take::<Vec<String>>(key);
        texts.map_or_else(Vec::new, |texts| texts.value)
    };
    let (allow, deny) = (names("allow"), names("deny"));
    if let Some(both) = allow.iter().find(|name| deny.contains(name)) {
        let problem = Problem::new(
            format!("`{both}` is allowed and denied"),
            "keep one of the two",
        );
        findings.add(given.at, given.name.clone(), problem);
    }
    if copied {
        let problem = Problem::new(
            "a connection to a worker cannot be in an image, nor go along with its memory",
            "leave out `accelerators`, or `images` and move.mode = \"checkpoint\"",
        );
        findings.add(given.at, given.name.clone(), problem);
    }
    let memory = given.take("memory").map_or(Limit::Max, |limit| limit.value);
    let priority = given.take::<&str>("priority").map(|word| word.value);
    Some(Accelerators {
        time_percent: share(&mut given, "time", findings).unwrap_or(100),
        allow,
        deny,
        memory,
        priority: priority.and_then(|word| match word {
            "low" => Some(Priority::Low),
            "normal" => Some(Priority::Normal),
            "high" => Some(Priority::High),
            _ => None,
        }),
    })
}

/// Tells the program where its worker is, unless its own environment does.
pub(super) fn tell_program(app: &mut App, workers: &Path) -> Result<(), Problem> {
    let (Binding::Exec(exec), Some(_)) = (&mut app.binding, &app.accelerators) else {
        return Ok(());
    };
    let socket = worker_socket(workers, &app.id);
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(Problem::new(
            format!(
                "{} is longer than {SOCKET_PATH_MAX} bytes",
                socket.display()
            ),
            "set daemon.socket to a shorter path: workers listen beside it",
        ));
    }
    let variables = &mut exec.environment;
    variables
        .entry(SOCKET_VARIABLE.to_owned())
        .or_insert_with(|| socket.display().to_string());
    Ok(())
}
