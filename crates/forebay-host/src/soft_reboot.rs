//! Having userspace begin anew under the kernel that runs, with apps that run on: `systemctl soft-reboot`.
//!
//! # Problem
//! systemd ends every unit, then every process that is left, and begins again. Apps that matter are to be neither.
//!
//! # Approach
//! The group of an app that Forebay started is nobody's unit, so only the last step concerns it: it spares groups that
//! carry a mark, which is what `SurviveFinalKillSignal=yes` puts on a unit's own (systemd.unit(5), from version 255
//! on). Such groups are marked and left in force when the daemon stops, and its guardian waits longer than for a lost
//! daemon. How long and for whom is in a file, so that whoever comes later knows ([`Respite`]).
//!
//! A unit of systemd's runs on by its own settings (systemd-soft-reboot.service(8)): what is missing is said.
//!
//! # Properties
//! - Nobody is spared of whom the daemon did not write that down before.
//! - The file is good for one boot and [`RESPITE`]; then the guardian puts back as always.
//! - One userspace is told from another by a number that systemd counts: nothing else changes with it for certain.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use forebay_core::app::AppId;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::error::HostError;
use crate::mounts::{Hierarchies, Hierarchy};
use crate::owner::systemd::{MANAGER, PATH, Systemd, UNIT, interface};
use crate::{Roots, groups, regular, tenure};

/// The file's name in the state directory.
pub const FILE: &str = "respite.json";
/// A longer one is none of ours.
const BYTES_MAX: u64 = 1 << 20;
/// How long a host may take to end its units and to come back to its daemon.
pub const RESPITE: Duration = Duration::from_secs(15 * 60);
/// What systemd looks for on a group before it ends its processes, and what their unit set it for.
const SPARED: &str = "user.survive_final_kill_signal";
/// Versions of systemd that are without what this needs.
const SINCE: u32 = 256;

/// How often userspace began anew in this boot.
///
/// # Errors
/// When this host's systemd cannot be asked, or is too old for its groups to be spared and its soft reboots counted.
pub fn count(bus: &str) -> Result<u64, HostError> {
    let attempt = "ask systemd how often userspace began anew";
    let mut systemd = Systemd::new(bus);
    let version = systemd.version()?;
    let counted: Result<OwnedVariant, HostError> = systemd.call(
        (PATH, "org.freedesktop.DBus.Properties", "Get"),
        &(MANAGER, "SoftRebootsCount"),
        attempt,
    );
    match counted.map(u64_of) {
        Ok(Some(count)) => Ok(count),
        Err(error) if version >= SINCE => Err(error),
        Ok(None) | Err(_) => Err(HostError::invalid(
            format!("{attempt}: this is version {version}, which does not count it"),
            format!("version {SINCE} or later does; use --reboot here"),
        )),
    }
}

/// Whether userspace can begin anew here while groups of Forebay's run on.
///
/// # Errors
/// Why not.
pub fn offered(bus: &str, roots: &Roots) -> Result<(), HostError> {
    count(bus)?;
    unified(&Hierarchies::read(&roots.proc)?).map(|_| ())
}

fn u64_of(value: OwnedVariant) -> Option<u64> {
    let wide = u64::try_from(value.clone()).ok();
    wide.or_else(|| u32::try_from(value).ok().map(u64::from))
}

/// What keeps a unit from running on while userspace begins anew.
///
/// # Errors
/// When systemd cannot be asked.
pub fn unit_obstacles(bus: &str, unit: &str) -> Result<Vec<String>, HostError> {
    let attempt = format!("ask systemd for {unit}");
    let mut systemd = Systemd::new(bus);
    let path: OwnedObjectPath = systemd.call((PATH, MANAGER, "LoadUnit"), &(unit,), &attempt)?;
    let own = systemd.properties(&path, UNIT, &attempt)?;
    let switches = [
        ("SurviveFinalKillSignal", true),
        ("IgnoreOnIsolate", true),
        ("DefaultDependencies", false),
    ];
    let switch = |name: &str| {
        own.get(name)
            .cloned()
            .and_then(|value| bool::try_from(value).ok())
    };
    let mut obstacles: Vec<String> = switches
        .iter()
        .filter(|(name, wanted)| switch(name) != Some(*wanted))
        .map(|(name, wanted)| {
            let word = if *wanted { "yes" } else { "no" };
            format!("{unit} lacks {name}={word}")
        })
        .collect();
    let conflicts = own.get("Conflicts").cloned();
    let conflicts = conflicts.and_then(|value| Vec::<String>::try_from(value).ok());
    let conflicts = conflicts.unwrap_or_default();
    for target in ["shutdown.target", "soft-reboot.target", "umount.target"] {
        // With its default dependencies it has the first, and that is said already.
        if conflicts.iter().any(|name| name == target)
            && switch("DefaultDependencies") == Some(false)
        {
            obstacles.push(format!("{unit} has Conflicts={target}"));
        }
    }
    if !unit.ends_with(".service") {
        obstacles.push(format!(
            "{unit} is no service: nobody could say whether it is the same afterwards"
        ));
    }
    Ok(obstacles)
}

/// The process that systemd started for a service, while that runs.
///
/// # Errors
/// When systemd cannot be asked.
pub fn service_process(bus: &str, unit: &str) -> Result<Option<u32>, HostError> {
    let attempt = format!("ask systemd for {unit}");
    let mut systemd = Systemd::new(bus);
    let path: OwnedObjectPath = systemd.call((PATH, MANAGER, "LoadUnit"), &(unit,), &attempt)?;
    let own = systemd.properties(&path, &interface(unit), &attempt)?;
    let pid = own
        .get("MainPID")
        .cloned()
        .and_then(|value| u32::try_from(value).ok());
    Ok(pid.filter(|pid| *pid != 0))
}

/// Has userspace begin anew. It goes on running for a while, as its units take to end.
///
/// # Errors
/// When systemd could not be asked to.
pub fn begin() -> Result<(), HostError> {
    let words = "run `systemctl soft-reboot`";
    let ended = std::process::Command::new("systemctl")
        .arg("soft-reboot")
        .output()
        .map_err(|error| HostError::io(words, error))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(HostError::invalid(
        format!("{words}: {} ({})", said.trim(), ended.status),
        "see what it says; `systemctl list-jobs` shows what is under way",
    ))
}

/// Marks the groups of an app as ones that systemd spares.
///
/// # Errors
/// When it has none in the unified hierarchy, or they cannot be marked.
pub fn spare(roots: &Roots, anchor: &Path, app: &AppId) -> Result<(), HostError> {
    each_group(roots, anchor, app, |dir| {
        rustix::fs::setxattr(dir, SPARED, b"1", XattrFlags::empty())
    })
}

/// Takes that mark away; an app that has no group any more has none.
///
/// # Errors
/// When a group cannot be changed.
pub fn unspare(roots: &Roots, anchor: &Path, app: &AppId) -> Result<(), HostError> {
    let done = each_group(roots, anchor, app, |dir| {
        match rustix::fs::removexattr(dir, SPARED) {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        }
    });
    match done {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

fn unified(hierarchies: &Hierarchies) -> Result<&Hierarchy, HostError> {
    let unified = hierarchies.unified().filter(|(_, h)| h.writable);
    let unified = unified.map(|(_, hierarchy)| hierarchy);
    unified.ok_or_else(|| {
        HostError::missing(
            "mark a group for systemd to spare: this host has no unified hierarchy of control groups",
            "use --reboot here",
        )
    })
}

fn each_group(
    roots: &Roots,
    anchor: &Path,
    app: &AppId,
    change: impl Fn(&Path) -> Result<(), Errno>,
) -> Result<(), HostError> {
    let hierarchies = Hierarchies::read(&roots.proc)?;
    let dir = unified(&hierarchies)?.dir(&groups::of_app(anchor, app));
    if !dir.is_dir() {
        return Err(HostError::file("mark control group", &dir, Errno::NOENT));
    }
    let mut result = Ok(());
    groups::walk(&dir, 0, &mut |dir| {
        if let Err(error) = change(dir)
            && result.is_ok()
        {
            result = Err(HostError::file("mark control group", dir, error));
        }
    });
    result
}

/// Who is left in force while no daemon is there, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Respite {
    /// The boot that the time is of.
    boot: String,
    /// Until when, in milliseconds of `CLOCK_BOOTTIME`.
    until_ms: u64,
    /// The apps that run on.
    apps: BTreeSet<AppId>,
}

impl Respite {
    /// Writes down that these run on from now on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(roots: &Roots, state_dir: &Path, apps: BTreeSet<AppId>) -> Result<(), HostError> {
        let until = tenure::now() + RESPITE;
        let respite = Self {
            boot: roots.boot_id()?,
            until_ms: u64::try_from(until.as_millis()).unwrap_or(u64::MAX),
            apps,
        };
        let file = state_dir.join(FILE);
        let refused = |error| HostError::file("write", &file, error);
        let text = serde_json::to_vec(&respite);
        let text = text.map_err(|error| refused(std::io::Error::other(error)))?;
        regular::replace(&file, &text, 0o600).map_err(|error| refused(std::io::Error::other(error)))
    }

    /// It is over: a daemon is there that holds what it left.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn end(state_dir: &Path) -> Result<(), HostError> {
        let file = state_dir.join(FILE);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(HostError::file("remove", &file, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn read(roots: &Roots, state_dir: &Path) -> Option<Self> {
        let file = state_dir.join(FILE);
        let bytes = match regular::read(&file, BYTES_MAX) {
            Ok((bytes, _)) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "who runs on is not known: nobody is left");
                return None;
            }
        };
        let read: Result<Self, _> = serde_json::from_slice(&bytes);
        if let Err(error) = &read {
            tracing::warn!(file = %file.display(), %error, "who runs on is not known: nobody is left");
        }
        let boot = roots.boot_id().ok();
        read.ok()
            .filter(|respite| Some(&respite.boot) == boot.as_ref())
    }

    fn left(&self) -> Duration {
        Duration::from_millis(self.until_ms).saturating_sub(tenure::now())
    }
}

/// Those that are left in force now, when a daemon stops.
pub(crate) fn left_in_force(roots: &Roots, state_dir: &Path) -> BTreeSet<AppId> {
    let respite = Respite::read(roots, state_dir);
    let respite = respite.filter(|respite| !respite.left().is_zero());
    respite.map(|respite| respite.apps).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apps() -> BTreeSet<AppId> {
        ["web"].map(|app| app.parse().unwrap()).into()
    }

    #[test]
    fn what_is_left_in_force_is_so_for_a_time_and_in_one_boot() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::default();
        let left = || left_in_force(&roots, dir.path());
        assert_eq!(left(), BTreeSet::new());
        Respite::begin(&roots, dir.path(), apps()).unwrap();
        assert_eq!(left(), apps());
        let change = |change: &dyn Fn(&mut Respite)| {
            Respite::begin(&roots, dir.path(), apps()).unwrap();
            let mut respite = Respite::read(&roots, dir.path()).unwrap();
            change(&mut respite);
            let text = serde_json::to_vec(&respite).unwrap();
            std::fs::write(dir.path().join(FILE), text).unwrap();
        };
        change(&|respite| respite.until_ms = 1);
        assert_eq!(left(), BTreeSet::new());
        change(&|respite| respite.boot = "another".to_owned());
        assert_eq!(left(), BTreeSet::new());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(left(), BTreeSet::new());
        Respite::begin(&roots, dir.path(), apps()).unwrap();
        Respite::end(dir.path()).unwrap();
        Respite::end(dir.path()).unwrap();
        assert_eq!(left(), BTreeSet::new());
    }

    #[test]
    fn an_app_without_a_group_cannot_be_spared_and_needs_no_unsparing() {
        let roots = Roots::default();
        let anchor = Path::new("forebay-of-nobody");
        let app = "nobody".parse().unwrap();
        spare(&roots, anchor, &app).unwrap_err();
        let has_unified = Hierarchies::read(&roots.proc)
            .is_ok_and(|all| all.unified().is_some_and(|(_, h)| h.writable));
        if has_unified {
            unspare(&roots, anchor, &app).unwrap();
        }
    }
}
