//! What an application is allowed and needs in order to change hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::departure::Mark;
use super::tenure::{Lease, Leave, Takeover, leave};
use super::{HostName, Ownership};
use crate::app::AppId;

/// How an application changes hosts; one without any stays where it is ("pinned").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mobility {
    /// What becomes of its processes.
    pub way: Way,
    /// Its files and directories, absolute, which go along. Empty: they are on storage that all hosts
    /// share, or there are none.
    pub files: Vec<PathBuf>,
    /// Whether others may take it over when its host is lost.
    pub takeover: Takeover,
    /// Of what goes along with its memory: its TCP connections.
    #[serde(default)]
    pub connections: Connections,
    /// Of what goes along with its memory: when that is sent.
    #[serde(default)]
    pub memory: Memory,
}

/// When the memory of processes that go along with it is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// All of it before they go on at the target: they are copied in rounds while they run, and stand for the rest.
    #[default]
    PreCopy,
    /// What is left after few rounds is fetched once they run there: until it is, both hosts have to live.
    PostCopy,
}

/// What becomes of the TCP connections of processes that go along with their memory. Their addresses stay
/// at the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connections {
    /// While one is established it stays where it is.
    #[default]
    Refuse,
    /// They are closed: whoever is at the other end connects anew.
    Close,
}

/// What becomes of the processes of an application that changes hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The program starts anew on the target, with the files as they stood.
    Restart,
    /// The processes themselves go, with their memory and connections.
    Checkpoint,
    /// A shadow on the target takes over.
    Handoff,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Restart => "restart",
            Self::Checkpoint => "checkpoint",
            Self::Handoff => "handoff",
        })
    }
}

/// What a host knows of who may run what.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Itself.
    pub here: &'a HostName,
    /// The records that were read last, or kept on disk.
    pub records: &'a BTreeMap<AppId, Ownership>,
    /// Those of which two hosts were made owners at one epoch: nobody runs them.
    pub disputed: &'a BTreeSet<AppId>,
    /// The moves away that are not over.
    pub departures: &'a BTreeMap<AppId, Mark>,
    /// Those that are on their way here: their move starts them, from what came.
    pub arriving: &'a BTreeSet<AppId>,
    /// What it holds at the coordinator.
    pub lease: Option<Lease>,
    /// Now, by the clock of leases.
    pub now: Duration,
}

/// The applications, out of those that can move, that must not be started here: supervision is given
/// them ([`Inputs::elsewhere`](crate::tick::Inputs::elsewhere)).
#[must_use]
pub fn elsewhere<'a>(
    movable: impl IntoIterator<Item = (&'a AppId, &'a Mobility)>,
    known: Known<'_>,
) -> BTreeSet<AppId> {
    let comes_by_move = |app: &AppId| {
        // What stands still while it leaves is let go on by its move: if it dies, nobody begins it anew
        // beside what was sent of it.
        let stands = known.departures.get(app) == Some(&Mark::Frozen);
        // It was given to this host and never ran here: what is here of it is of before.
        let never_ran = known.records.get(app).is_some_and(|record| !record.runs);
        stands || never_ran
    };
    let away = |app: &AppId, mobility: &Mobility| {
        let read = (known.records.get(app), known.departures.get(app).copied());
        let leave = leave(known.here, read, mobility.takeover, known.lease, known.now);
        // Of what is handed over an instance runs on every host, and a front says which one serves.
        let may_run = matches!(leave, Leave::Run { .. });
        let is_disputed = known.disputed.contains(app);
        mobility.way != Way::Handoff
            && (!may_run || is_disputed || known.arriving.contains(app) || comes_by_move(app))
    };
    movable
        .into_iter()
        .filter(|(app, mobility)| away(app, mobility))
        .map(|(app, _)| app.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_ours_is_elsewhere() {
        let here: HostName = "a".parse().unwrap();
        let mobility = Mobility {
            way: Way::Restart,
            files: Vec::new(),
            takeover: Takeover::Never,
            connections: Connections::Refuse,
            memory: Memory::PreCopy,
        };
        let apps: Vec<AppId> = [
            "ours", "theirs", "unknown", "leaving", "begun", "comes", "frozen", "given", "disputed",
        ]
        .map(|name| name.parse().unwrap())
        .to_vec();
        let ours = Ownership::first(here.clone());
        let theirs = Ownership::first("b".parse().unwrap());
        let records = BTreeMap::from([
            (apps[0].clone(), ours.clone()),
            (apps[1].clone(), theirs),
            (apps[3].clone(), ours.clone()),
            (apps[4].clone(), ours.clone()),
            (apps[5].clone(), ours.clone()),
            (apps[6].clone(), ours.clone()),
            // Its move is not known here any more, and nothing of it is.
            (apps[7].clone(), ours.given_to(&here)),
            (apps[8].clone(), ours.clone()),
        ]);
        let departures = BTreeMap::from([
            (apps[3].clone(), Mark::Committing),
            (apps[4].clone(), Mark::Begun),
            (apps[6].clone(), Mark::Frozen),
        ]);
        let known = Known {
            here: &here,
            records: &records,
            disputed: &BTreeSet::from([apps[8].clone()]),
            departures: &departures,
            arriving: &BTreeSet::from([apps[5].clone()]),
            lease: None,
            now: Duration::ZERO,
        };
        let away = elsewhere(apps.iter().map(|app| (app, &mobility)), known);
        let expected = [1, 2, 3, 5, 6, 7, 8].map(|index: usize| apps[index].clone());
        assert_eq!(away, BTreeSet::from(expected));
        assert!(elsewhere([], known).is_empty());
    }
}
