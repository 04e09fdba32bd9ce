//! What hosts say of the applications that they would take in.
//!
//! Problem: whoever chooses a target by room alone chooses hosts that refuse: those that do not have the application
//! in their configuration, have another one under its name, or lack what its way to move needs.
//!
//! Approach: each host publishes, beside its room, the applications that it is configured for, by which way each
//! moves, what of it has to be the same everywhere, and what stands against its coming. Whoever chooses compares that
//! with what it has itself, and rules hosts out with the reason that they would give.
//!
//! Properties, tested: a host that says nothing (one of an older release, or one that looks still) may be chosen, and
//! is asked; a host that lists what it takes is chosen for nothing else.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::HostName;
use super::choice::Offer;
use super::mobility::Way;
use crate::app::AppId;

/// Applications that a host publishes at most: it publishes none of them where it has more.
pub const TAKES_MAX: usize = 1024;

/// How a host would take an application in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taking {
    /// By which way it moves there, as it is written in the configuration: a release may know more of them than
    /// another one.
    pub way: String,
    /// Stands for all that has to be the same on both hosts; empty where nothing has to be.
    pub like: String,
    /// What stands against its coming, as the host sees it now: why, and what to do.
    #[serde(default)]
    pub obstacle: Option<String>,
    /// Of what is handed over: whether a front is there that has instances of it on several hosts.
    #[serde(default)]
    pub has_front: bool,
}

impl Taking {
    /// One that nothing stands against.
    #[must_use]
    pub fn new(way: Way, like: String) -> Self {
        Self {
            way: way.to_string(),
            like,
            obstacle: None,
            has_front: false,
        }
    }
}

/// By application.
pub type Takes = BTreeMap<AppId, Taking>;

/// Why a host would not take an application that is like this where it is now; none where it would, or may.
fn refusal(app: &AppId, own: &Taking, takes: Option<&Takes>) -> Option<String> {
    let Some(there) = takes?.get(app) else {
        return Some(format!(
            "{app} is not among the apps that move there; write the same [apps.{app}] on it"
        ));
    };
    if there.way != own.way {
        return Some(format!(
            "{app} moves by `{}` there, and by `{}` here; give it the same `move.mode` on both",
            there.way, own.way
        ));
    }
    if there.like != own.like {
        return Some(format!(
            "{app} is another one there; write the same [apps.{app}] on all hosts"
        ));
    }
    if own.way == Way::Handoff.to_string() && !own.has_front && !there.has_front {
        return Some(format!(
            "neither it nor this host has the front of {app}, which hands over"
        ));
    }
    there.obstacle.clone()
}

/// Rules out the hosts that would refuse an application that is like this where it is now.
pub fn rule_out(app: &AppId, own: &Taking, offers: &mut BTreeMap<HostName, Offer>) {
    for offer in offers.values_mut() {
        if let Some(why) = refusal(app, own, offer.takes.as_ref()) {
            offer.unfit.get_or_insert(why);
        }
    }
}

/// What is told of an application that no host takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untaken {
    /// The first of the other hosts.
    pub host: HostName,
    /// Why that one does not.
    pub why: String,
    /// So many more do not either.
    pub others: usize,
}

impl fmt::Display for Untaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, why, others } = self;
        match others {
            0 => write!(f, "{host} does not take it: {why}"),
            _ => write!(f, "{host} and {others} more do not take it; {host}: {why}"),
        }
    }
}

/// Why no other host takes an application, once those that would refuse it are ruled out; none where one may, and
/// where there is no other host.
#[must_use]
pub fn untaken(here: &HostName, offers: &BTreeMap<HostName, Offer>) -> Option<Untaken> {
    let others = offers.iter().filter(|(host, _)| *host != here);
    let refusals = others.map(|(host, offer)| Some((host, offer.unfit.as_ref()?)));
    let refusals: Vec<_> = refusals.collect::<Option<_>>()?;
    let (host, why) = refusals.first()?;
    Some(Untaken {
        host: (*host).clone(),
        why: (*why).clone(),
        others: refusals.len() - 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(way: Way, own_front: bool, there: Option<Taking>, words: Option<&str>) {
        let app: AppId = "web".parse().unwrap();
        let own = Taking {
            has_front: own_front,
            ..Taking::new(way, "1".to_owned())
        };
        let takes: Takes = there.into_iter().map(|one| (app.clone(), one)).collect();
        let why = refusal(&app, &own, Some(&takes));
        match words {
            None => assert_eq!(why, None),
            Some(words) => {
                let why = why.unwrap();
                assert!(why.contains(words), "{why}");
            }
        }
    }

    #[test]
    fn a_host_that_would_refuse_is_ruled_out_with_its_reason() {
        let like = |way| Taking::new(way, "1".to_owned());
        let restart = || like(Way::Restart);
        check(Way::Restart, false, Some(restart()), None);
        check(
            Way::Restart,
            false,
            None,
            Some("write the same [apps.web] on it"),
        );
        let other = like(Way::Checkpoint);
        check(
            Way::Restart,
            false,
            Some(other),
            Some("by `checkpoint` there"),
        );
        let another = Taking::new(Way::Restart, "2".to_owned());
        check(
            Way::Restart,
            false,
            Some(another),
            Some("is another one there"),
        );
        let lacks = Taking {
            obstacle: Some("no CRIU".to_owned()),
            ..like(Way::Checkpoint)
        };
        check(Way::Checkpoint, false, Some(lacks), Some("no CRIU"));

        // The front is on one of both.
        let handoff = || like(Way::Handoff);
        check(Way::Handoff, true, Some(handoff()), None);
        check(
            Way::Handoff,
            false,
            Some(handoff()),
            Some("has the front of web"),
        );
        let has_front = true;
        let front = Taking {
            has_front,
            ..handoff()
        };
        check(Way::Handoff, false, Some(front), None);
    }

    #[test]
    fn a_host_that_says_nothing_may_be_asked() {
        let app: AppId = "web".parse().unwrap();
        let own = Taking::new(Way::Restart, String::new());
        assert_eq!(refusal(&app, &own, None), None);
        // What an older release publishes, and one that knows more than this one.
        let older = r#"{"capacity":{"cpu":1000,"memory":1},"needed":{},"promised":{},"apps":[],"cordoned":false,
            "unfit":null}"#;
        let older: Offer = serde_json::from_str(older).unwrap();
        assert_eq!(older.takes, None);
        let newer = r#"{"way":"teleport","like":"1","more":true}"#;
        let newer: Taking = serde_json::from_str(newer).unwrap();
        let takes = Takes::from([(app.clone(), newer)]);
        assert!(refusal(&app, &own, Some(&takes)).is_some());
        let mut offers = BTreeMap::from([
            ("old".parse().unwrap(), older.clone()),
            (
                "new".parse().unwrap(),
                Offer {
                    takes: Some(takes),
                    ..older
                },
            ),
        ]);
        rule_out(&app, &own, &mut offers);
        let is_open = |name: &str| {
            let name: HostName = name.parse().unwrap();
            offers[&name].unfit.is_none()
        };
        assert!(is_open("old") && !is_open("new"));

        // One that may be asked is enough; where none is left, it is said why.
        let here: HostName = "here".parse().unwrap();
        assert_eq!(untaken(&here, &offers), None);
        assert_eq!(untaken(&here, &BTreeMap::new()), None);
        let (old, new) = ("old".parse::<HostName>().unwrap(), "new".parse().unwrap());
        offers.remove(&old);
        let why = untaken(&here, &offers).unwrap().to_string();
        assert!(
            why.starts_with("new does not take it: web moves by `teleport` there"),
            "{why}"
        );
        let more = offers[&new].clone();
        offers.insert("newer".parse().unwrap(), more);
        let why = untaken(&here, &offers).unwrap().to_string();
        assert!(
            why.starts_with("new and 1 more do not take it; new: "),
            "{why}"
        );
        assert_eq!(untaken(&new, &offers).unwrap().others, 0);
    }
}
