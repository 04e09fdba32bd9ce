//! From what somebody asks for to what an update is to do.

use std::path::PathBuf;
use std::time::Duration;

use forebay_api as api;
use forebay_core::app::{App, AppId, Policy};
use forebay_core::update::{Order, WELL_WITHIN_USUAL, Way, ends_userspace};

use super::{Fleet, Refused, plan, rehearse};

/// What an update may take unless it says so.
const LIMIT_USUAL: Duration = Duration::from_secs(3600);
const LIMIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long apps may take to be well afterwards.
const WELL_WITHIN_MAX: Duration = Duration::from_secs(3600);
/// Words of a command, all together.
const COMMAND_BYTES_MAX: usize = 16 << 10;

/// The name by which somebody leaves it to Forebay which way over a boot is taken.
const CHOSEN: &str = "auto";

/// Which way an update is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// This one, by its name or by the command.
    Way(Way),
    /// Over a boot, the least disruptive that there is here.
    Chosen,
    /// Nobody said.
    Usual,
}

/// What the request says of its way.
pub(super) fn asked(request: &api::UpdateRequest) -> Result<Asked, Refused> {
    let by_command = ends_userspace(&request.command).then_some(Way::SoftReboot.name());
    let Some(name) = request.rung.as_deref().or(by_command) else {
        return Ok(Asked::Usual);
    };
    if name == CHOSEN {
        return Ok(Asked::Chosen);
    }
    match Way::of(name) {
        None => Err(Refused::Mistake(format!(
            "rung {name}: there is none of that name; give {CHOSEN}, or one that `forebay update plan -- COMMAND` shows"
        ))),
        Some(Way::Userspace) if request.reboot => Err(Refused::Mistake(
            "rung userspace is without a reboot: leave out --reboot, or the rung".to_owned(),
        )),
        Some(Way::SoftReboot) if request.reboot => Err(Refused::Mistake(
            "rung soft-reboot leaves the kernel as it is: leave out --reboot, or the rung"
                .to_owned(),
        )),
        Some(way) => Ok(Asked::Way(way)),
    }
}

/// What is asked for, as far as it makes sense.
pub(super) fn order(
    request: api::UpdateRequest,
    named: Option<Way>,
    policy: &Policy,
    fleet: Option<&Fleet>,
) -> Result<Order, Refused> {
    let check = |what: &str, command: &[String]| {
        let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
        if command.first().is_none_or(String::is_empty) {
            return Err(Refused::Mistake(format!("{what}: there is no command")));
        }
        if bytes > COMMAND_BYTES_MAX || command.iter().any(|word| word.contains('\0')) {
            return Err(Refused::Mistake(format!(
                "{what}: at most {COMMAND_BYTES_MAX} bytes without NUL; put it in a script"
            )));
        }
        Ok(())
    };
    check("update", &request.command)?;
    if let Some(rollback) = &request.rollback {
        check("rollback", rollback)?;
    }
    let limit = request
        .limit_seconds
        .map_or(LIMIT_USUAL, Duration::from_secs);
    if limit.is_zero() || limit > LIMIT_MAX {
        return Err(Refused::Mistake(format!(
            "limit of {} s: give one between a second and a day",
            limit.as_secs()
        )));
    }
    let well_within = request
        .well_within_seconds
        .map_or(WELL_WITHIN_USUAL, Duration::from_secs);
    if well_within.is_zero() || well_within > WELL_WITHIN_MAX {
        return Err(Refused::Mistake(format!(
            "{} s for apps to be well: give between a second and an hour",
            well_within.as_secs()
        )));
    }
    let restart = request.restart.iter().map(|name| {
        let id = name.parse::<AppId>().ok();
        id.filter(|id| policy.apps.contains_key(id)).ok_or_else(|| {
            Refused::Mistake(format!(
                "restart {name}: no such app; `forebay apps` lists them"
            ))
        })
    });
    let directory = PathBuf::from(request.directory.unwrap_or_else(|| "/".to_owned()));
    if !directory.is_absolute() {
        return Err(Refused::Mistake(format!(
            "directory {}: give it from the root on",
            directory.display()
        )));
    }
    // Of what is not asked for by name the least disruptive is taken.
    let elsewhere = match named {
        Some(way) => way == Way::OtherHost,
        None => {
            let can_leave = |app: &App| fleet.is_some_and(|fleet| fleet.can_leave(app));
            request.reboot && policy.apps.values().any(can_leave)
        }
    };
    let reboot =
        request.reboot || named.is_some_and(|way| matches!(way, Way::Reboot | Way::Checkpoint));
    let told = plan::told(policy, named, |app| {
        elsewhere && fleet.is_some_and(|fleet| fleet.can_leave(app))
    });
    let rehearse = rehearse::wanted(request.rehearse.as_deref(), named)?;
    Ok(Order {
        told,
        rehearse,
        elsewhere,
        command: request.command,
        directory,
        rollback: request.rollback,
        limit,
        well_within,
        restart: restart.collect::<Result<_, _>>()?,
        reboot,
        keep: named == Some(Way::Checkpoint),
        soft: named == Some(Way::SoftReboot),
        unproved: request.unproved,
    })
}
