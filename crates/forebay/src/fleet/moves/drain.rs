//! Leaving a host: every application that can move away does, one after the other.
//!
//! That the host is being left is on disk ([`FILE`]), so that a daemon that begins anew goes on with it.
//! It ends when the host takes applications again; what is on its way then goes on to its end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay_core::app::AppId;
use forebay_core::fleet::HostName;
use forebay_core::fleet::departure::End;
use forebay_core::fleet::policy::Look;
use forebay_host::regular;

use super::desk::{Choose, Moves, Refused, Wanted};

/// There while the host is being left, in the fleet's directory.
const FILE: &str = "draining";

/// Where one application of a host that is being left stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its turn has not come, or it cannot begin now: why.
    Waits(Option<String>),
    /// It is on its way.
    Moves(HostName),
    /// It is not this host's any more.
    Left(Option<HostName>),
    /// Why.
    Stays(String),
}

/// One application of a host that is being left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaver {
    pub(crate) app: AppId,
    pub(crate) movable: bool,
    pub(crate) place: Place,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// It was begun, and nobody ended it.
    pub(crate) goes_on: bool,
    /// In the order in which they leave; those that stay last.
    pub(crate) apps: Vec<Leaver>,
    /// Why it cannot be gone on with after a new start of the daemon, if so.
    pub(crate) trouble: Option<String>,
    /// The host was seen to take no more since it was begun.
    is_cordoned: bool,
}

impl Drained {
    /// Nothing is to leave any more.
    pub(crate) fn is_over(&self) -> bool {
        let under_way = |one: &Leaver| matches!(one.place, Place::Waits(_) | Place::Moves(_));
        !self.apps.iter().any(under_way)
    }
}

/// What is there of a host's applications when it begins to be left.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Those that can move, and are this host's.
    pub(crate) movable: Vec<AppId>,
    /// Those that are tied to it.
    pub(crate) pinned: Vec<AppId>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Drain {
    state: Mutex<Drained>,
    file: PathBuf,
    /// A daemon before this one had begun it.
    resumes: AtomicBool,
}

impl Drain {
    /// With what is on disk.
    pub(crate) fn open(directory: &Path) -> Self {
        let file = directory.join(FILE);
        Self {
            resumes: AtomicBool::new(file.exists()),
            file,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, Drained> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn shown(&self) -> Drained {
        self.state().clone()
    }

    /// Whether it is to be begun because an earlier daemon had not ended it.
    pub(crate) fn is_to_resume(&self) -> bool {
        self.resumes.load(Ordering::Relaxed)
    }

    /// Begins, or goes on: those that could not leave before are tried again.
    pub(crate) fn begin(&self, found: &Found) {
        let kept = regular::replace(&self.file, b"", 0o600);
        self.resumes.store(false, Ordering::Relaxed);
        let mut state = self.state();
        let goes = |one: &Leaver| matches!(one.place, Place::Moves(_));
        let moving: BTreeMap<AppId, Place> = std::mem::take(&mut state.apps)
            .into_iter()
            .filter(goes)
            .map(|one| (one.app, one.place))
            .collect();
        let leaves = found.movable.iter().map(|app| Leaver {
            app: app.clone(),
            movable: true,
            place: moving.get(app).cloned().unwrap_or(Place::Waits(None)),
        });
        let stays = found.pinned.iter().map(|app| Leaver {
            app: app.clone(),
            movable: false,
            place: Place::Stays("it is pinned to this host: it has no `move`".to_owned()),
        });
        let apps = leaves.chain(stays).collect();
        *state = Drained {
            goes_on: true,
            apps,
            trouble: kept
                .err()
                .map(|error| format!("a new start of the daemon would end it: {error}")),
            is_cordoned: false,
        };
    }

    /// Hears whether the host takes applications: one that does again is not being left any more.
    pub(crate) fn hear(&self, cordoned: bool) {
        let mut state = self.state();
        // Who died while it was being ended had not removed the file.
        let is_stale = !cordoned && self.resumes.swap(false, Ordering::Relaxed);
        if !is_stale && (cordoned || !state.goes_on) {
            state.is_cordoned |= cordoned && state.goes_on;
            return;
        }
        if !is_stale && !std::mem::replace(&mut state.is_cordoned, false) {
            // It was asked to take no more, and has not done so yet.
            return;
        }
        state.goes_on = false;
        for one in &mut state.apps {
            if let Place::Waits(_) = one.place {
                one.place = Place::Stays("this host takes applications again".to_owned());
            }
        }
        state.trouble = match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Some(format!("remove {}: {error}", self.file.display()))
            }
            _ => None,
        };
    }

    /// Sees how the one that is on its way is, and lets the next one go. `may` says why nothing moves now.
    pub(crate) fn step(&self, moves: &Arc<Moves>, choose: &Choose, may: Result<(), String>) {
        let apps = self.state().apps.clone();
        let on_its_way = |one: &&Leaver| matches!(one.place, Place::Moves(_));
        if let Some(one) = apps.iter().find(on_its_way) {
            if let Place::Moves(to) = &one.place
                && let Some(place) = ended(moves, &one.app, to)
            {
                self.set(&one.app, place);
            }
            return;
        }
        let waits = |one: &&Leaver| matches!(one.place, Place::Waits(_));
        let Some(Leaver { app, .. }) = apps.iter().find(waits) else {
            return;
        };
        // Nobody is asked with the state locked: that takes seconds where the coordinator is slow.
        let place = match may {
            Err(why) => Place::Waits(Some(why)),
            Ok(()) if !moves.ours().contains(app) => Place::Left(None),
            Ok(()) => match choose(app, Wanted::Other) {
                Err(why) => Place::Stays(why),
                Ok(to) => match moves.begin(app, &to, Look::Ahead) {
                    Ok(_) => Place::Moves(to),
                    Err(Refused::Busy(why)) => Place::Waits(Some(why)),
                    Err(refused) => Place::Stays(refused.why().to_owned()),
                },
            },
        };
        self.set(app, place);
    }

    fn set(&self, app: &AppId, place: Place) {
        let mut state = self.state();
        if let Some(one) = state.apps.iter_mut().find(|one| one.app == *app) {
            one.place = place;
        }
    }
}

/// Where an application is whose move is over.
fn ended(moves: &Moves, app: &AppId, to: &HostName) -> Option<Place> {
    let away = moves.away();
    let Some((note, shown)) = away.iter().find(|(note, _)| note.app == *app) else {
        return Some(Place::Waits(None));
    };
    let why = || {
        shown
            .why
            .clone()
            .unwrap_or_else(|| "no reason is known".to_owned())
    };
    match note.end()? {
        End::Moved => Some(Place::Left(Some(to.clone()))),
        End::Stayed | End::Refused => Some(Place::Stays(why())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> AppId {
        name.parse().unwrap()
    }

    fn places(drain: &Drain) -> Vec<(String, Place)> {
        let apps = drain.shown().apps.into_iter();
        apps.map(|one| (one.app.to_string(), one.place)).collect()
    }

    #[test]
    fn it_ends_when_the_host_takes_applications_again_and_not_before_it_took_none() {
        let dir = tempfile::tempdir().unwrap();
        let drain = Drain::open(dir.path());
        assert!(!drain.is_to_resume());
        drain.begin(&Found {
            movable: vec![id("a"), id("b")],
            pinned: vec![id("c")],
        });
        drain.set(&id("a"), Place::Moves("there".parse().unwrap()));
        // Its own command to take no more is still on its way.
        drain.hear(false);
        assert!(drain.shown().goes_on && !drain.shown().is_over());
        assert!(
            Drain::open(dir.path()).is_to_resume(),
            "a new daemon goes on"
        );
        drain.hear(true);
        drain.hear(false);
        let shown = drain.shown();
        assert!(
            !shown.goes_on && !shown.is_over(),
            "what is on its way goes on"
        );
        let places = places(&drain);
        assert!(matches!(&places[0].1, Place::Moves(_)));
        assert!(
            matches!(&places[1].1, Place::Stays(why) if why.contains("takes applications again"))
        );
        assert!(matches!(&places[2].1, Place::Stays(why) if why.contains("pinned")));
        assert!(!Drain::open(dir.path()).is_to_resume());
        drain.hear(true);
        assert!(!drain.is_to_resume(), "to cordon is not to drain");
    }

    #[test]
    fn a_host_that_takes_applications_is_not_drained_by_a_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "").unwrap();
        let drain = Drain::open(dir.path());
        drain.hear(false);
        assert!(!drain.is_to_resume() && !drain.shown().goes_on);
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn who_could_not_leave_is_tried_again_and_who_is_on_its_way_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let drain = Drain::open(dir.path());
        let found = Found {
            movable: vec![id("a"), id("b")],
            pinned: Vec::new(),
        };
        drain.begin(&found);
        let there = Place::Moves("there".parse().unwrap());
        drain.set(&id("a"), there.clone());
        drain.set(&id("b"), Place::Stays("no room".to_owned()));
        drain.begin(&found);
        let expected = [
            ("a".to_owned(), there),
            ("b".to_owned(), Place::Waits(None)),
        ];
        assert_eq!(places(&drain), expected);
    }
}
