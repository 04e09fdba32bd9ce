//! How an app takes part in updates of the operating system, and where it is told of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_api::attend::{APP_VARIABLE, SOCKET_VARIABLE, socket_beside};
use forebay_core::app::{App, Binding};
use forebay_core::update::{Otherwise, Part};

use super::accel::SOCKET_PATH_MAX;
use super::error::{Findings, Problem};
use super::text::{At, Section};

/// How long an app has to answer unless it says so.
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Where apps are told: beside the daemon's socket; none where that has a path too long for another beside it, and
/// then no app takes part.
pub(crate) fn update_socket(daemon_socket: &Path) -> Option<PathBuf> {
    Some(socket_beside(daemon_socket)).filter(|path| path.as_os_str().len() <= SOCKET_PATH_MAX)
}

/// Resolves the section of one app.
///
/// `copied` says that its memory is copied by CRIU, which cannot copy the connection by which it is told.
pub(super) fn part(
    section: &mut Section,
    copied: bool,
    findings: &mut Findings<'_>,
) -> Option<Part> {
    let mut given = section.take::<Section>("update")?.value;
    if copied {
        let problem = Problem::new(
            "the connection by which it is told cannot be in an image, nor go along with its memory",
            "leave out `update`, or `images` and move.mode = \"checkpoint\"",
        );
        findings.add(given.at, given.name.clone(), problem);
    }
    let timeout = given.take::<Duration>("timeout");
    if let Some(At { value, at }) = timeout
        && !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&value)
    {
        let message = format!("{value:?} to prepare for an update is not possible");
        let key = given.key("timeout");
        findings.add(at, key, Problem::new(message, "use 1s to 10min"));
    }
    let otherwise = given.take::<&str>("otherwise").map(|word| word.value);
    Some(Part {
        timeout: timeout.map_or(TIMEOUT, |timeout| timeout.value),
        otherwise: match otherwise {
            Some("next") => Otherwise::Next,
            _ => Otherwise::Refuse,
        },
    })
}

/// Tells the program who it is and where to listen, unless its own environment does.
pub(super) fn tell_program(app: &mut App, daemon_socket: &Path) -> Result<(), Problem> {
    let (Binding::Exec(exec), Some(_)) = (&mut app.binding, &app.update) else {
        return Ok(());
    };
    let Some(socket) = update_socket(daemon_socket) else {
        let socket = socket_beside(daemon_socket);
        return Err(Problem::new(
            format!(
                "{} is longer than {SOCKET_PATH_MAX} bytes",
                socket.display()
            ),
            "set daemon.socket to a shorter path: apps are told of updates beside it",
        ));
    };
    let variables = [
        (SOCKET_VARIABLE, socket.display().to_string()),
        (APP_VARIABLE, app.id.to_string()),
    ];
    for (name, value) in variables {
        exec.environment.entry(name.to_owned()).or_insert(value);
    }
    Ok(())
}
