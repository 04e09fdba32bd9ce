//! Where applications of this host were before: what keeps them from going to and fro.
//!
//! The hosts that one left come with it, by how long ago that was, and are kept in a small file, so that a
//! new start of the daemon does not send it back. Nothing else depends on it: one that cannot be read or
//! written is told of, and the daemon goes on with what it knows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::app::AppId;
use forebay_core::fleet::HostName;
use forebay_core::fleet::policy::{HOMES_MAX, Homes};
use serde::{Deserialize, Serialize};

use crate::durable;

/// The file's name in the state directory.
const FILE: &str = "homes.json";
const HEADING: &str = "forebay homes 1 ";
/// Applications that are remembered at most; those that came last stay.
const APPS_MAX: usize = 1024;

/// A host, and when it was left, in milliseconds since 1970: a daemon that starts after the host did has
/// another clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Left {
    host: HostName,
    unix_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Past {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    homes: BTreeMap<AppId, Homes>,
    /// What came along with those that are on their way here.
    comes: BTreeMap<AppId, Vec<(HostName, Duration)>>,
}

impl Past {
    /// Reads what an earlier daemon knew.
    pub(crate) fn open(state_dir: &Path, now: Duration) -> Self {
        let file = state_dir.join(FILE);
        let read = durable::read::<BTreeMap<AppId, Vec<Left>>>(&file, HEADING);
        let read = read.unwrap_or_else(|error| {
            tracing::warn!(
                "{}; it is not known where applications were before, and begun anew",
                durable::said(&error)
            );
            BTreeMap::new()
        });
        let unix = unix_ms();
        let homes = read.into_iter().map(|(app, left)| {
            let age = |unix_ms| Duration::from_millis(unix.saturating_sub(unix_ms));
            let left = left.into_iter().map(|left| (left.host, age(left.unix_ms)));
            (app, Homes::remembered(now, &left.collect::<Vec<_>>()))
        });
        let state = Mutex::new(State {
            homes: homes.collect(),
            comes: BTreeMap::new(),
        });
        Self { file, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn homes(&self, app: &AppId) -> Homes {
        self.state().homes.get(app).cloned().unwrap_or_default()
    }

    /// What goes along with one that leaves.
    pub(crate) fn ages(&self, app: &AppId, now: Duration) -> Vec<(HostName, Duration)> {
        self.homes(app).ages(now)
    }

    /// One is on its way here that left these.
    pub(crate) fn comes(&self, app: &AppId, left: &[(HostName, Duration)]) {
        let beyond = left.len().saturating_sub(HOMES_MAX);
        let mut state = self.state();
        // Of those that never came nobody says so.
        if state.comes.len() >= APPS_MAX {
            state.comes.clear();
        }
        state.comes.insert(app.clone(), left[beyond..].to_vec());
    }

    /// It came.
    pub(crate) fn arrived(&self, app: &AppId, from: &HostName, now: Duration) {
        let mut state = self.state();
        let ages = state.comes.remove(app).unwrap_or_default();
        let homes = Homes::arrived(now, &ages, from.clone());
        state.homes.insert(app.clone(), homes);
        while state.homes.len() > APPS_MAX {
            let youngest = |homes: &Homes| homes.ages(now).last().map(|(_, age)| *age);
            let oldest = state.homes.iter().max_by_key(|(_, homes)| youngest(homes));
            let Some(oldest) = oldest.map(|(app, _)| app.clone()) else {
                break;
            };
            state.homes.remove(&oldest);
        }
        let unix = unix_ms();
        let left = |(host, age): (HostName, Duration)| Left {
            host,
            unix_ms: unix.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        };
        let known = state.homes.iter();
        let known: BTreeMap<&AppId, Vec<Left>> = known
            .map(|(app, homes)| (app, homes.ages(now).into_iter().map(left).collect()))
            .collect();
        if let Err(error) = durable::write(&self.file, HEADING, &known) {
            tracing::warn!(
                "{}; a new start of the daemon forgets where {app} was before",
                durable::said(&error)
            );
        }
    }
}

fn unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(unix.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use forebay_core::fleet::policy::Rules;

    use super::*;

    #[test]
    fn a_new_daemon_knows_where_one_was_and_a_damaged_file_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let app: AppId = "web".parse().unwrap();
        let host = |name: &str| -> HostName { name.parse().unwrap() };
        let now = Duration::from_secs(100_000);
        let past = Past::open(dir.path(), now);
        assert_eq!(past.homes(&app), Homes::default());
        let before = (host("a"), Duration::from_secs(1000));
        past.comes(&app, std::slice::from_ref(&before));
        past.arrived(&app, &host("b"), now);
        let held = |past: &Past, now| {
            let (homes, rules) = (past.homes(&app), Rules::default());
            let held = homes.held(&rules, now);
            held.map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(held(&past, now), ["a", "b"]);
        // It left the first one 2,700 s ago by now, and is held for an hour.
        let later = now + Duration::from_secs(2700);
        assert_eq!(held(&past, later), ["b"]);

        let rebooted = Duration::from_secs(5000);
        let anew = Past::open(dir.path(), rebooted);
        assert_eq!(held(&anew, rebooted), ["a", "b"]);
        let ages = anew.ages(&app, rebooted);
        assert!(
            ages[0].1 >= before.1 && ages[0].1 < before.1 * 2,
            "{ages:?}"
        );

        std::fs::write(dir.path().join(FILE), "nothing of ours").unwrap();
        let anew = Past::open(dir.path(), rebooted);
        assert_eq!(anew.homes(&app), Homes::default());
        anew.arrived(&app, &host("c"), rebooted);
        assert_eq!(held(&Past::open(dir.path(), rebooted), rebooted), ["c"]);
    }
}
