//! What keeps apps going, in metrics: fronts, moves, updates of the operating system, the fleet.
//!
//! There are as many series as there are fronts, their instances and apps that moved. Counters with an
//! outcome begin at 0 for each, so that the first that goes wrong is seen as a rise.

use std::collections::BTreeMap;

use forebay_api as api;
use forebay_core::fleet::departure::End;
use forebay_core::fleet::mobility::Way;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Labels, count, counters, gauges};
use crate::fleet::moves::Ended;
use crate::server::{ServerState, fleet, fronts, moves};
use crate::update::Tally;

/// The stages of a front, `unreachable` included.
const STAGES: [&str; 8] = [
    "warm",
    "suspect",
    "fencing",
    "settling",
    "promoting",
    "replaying",
    "down",
    "unreachable",
];
/// Why a primary was replaced.
const CAUSES: [&str; 6] = ["planned", "forced", "death", "halt", "stall", "vacancy"];
/// How an update ends.
const OUTCOMES: [&str; 3] = ["committed", "rolled_back", "alarmed"];

/// How it stands with all that, at one moment.
#[derive(Debug, Default)]
pub(in crate::server) struct Continuity {
    fronts: Vec<api::Front>,
    /// Changes of the primary by front and cause.
    changes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Absent on a host where no app moves.
    moves: Option<(api::Moves, Ended)>,
    /// Absent where no updates are carried out.
    updates: Option<Tally>,
    /// Absent where the host is alone.
    fleet: Option<api::Fleet>,
}

impl Continuity {
    /// Asks all fronts, each for at most a second and all at the same time; the rest is known.
    pub(in crate::server) async fn now(state: &ServerState) -> Self {
        let known = state.fronts.all().into_iter();
        let changes = known.map(|(name, known)| (name.to_string(), known.changes));
        Self {
            changes: changes.collect(),
            fronts: fronts::asked(&state.fronts).await,
            moves: (state.moves.as_ref())
                .map(|desk| (moves::shown(&desk.moves), desk.moves.ended())),
            updates: state.update.as_ref().map(crate::update::Desk::tally),
            fleet: state.fleet.as_ref().map(fleet::shown),
        }
    }
}

pub(super) fn register(registry: &mut Registry, continuity: &Continuity) {
    if !continuity.fronts.is_empty() {
        stand(registry, &continuity.fronts);
        serve(registry, continuity);
    }
    if let Some((moves, ended)) = &continuity.moves {
        move_apps(registry, moves, ended);
    }
    if let Some(tally) = &continuity.updates {
        update(registry, tally);
    }
    if let Some(fleet) = &continuity.fleet {
        belong(registry, fleet);
    }
}

fn of(front: &api::Front) -> Labels {
    vec![("front", front.front.clone())]
}

fn zero_or_one(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// How fronts and their instances stand.
fn stand(registry: &mut Registry, fronts: &[api::Front]) {
    let stages = fronts.iter().filter_map(|front| {
        let now = front.stage.as_ref()?;
        Some(STAGES.map(|stage| {
            let mut labels = of(front);
            labels.push(("stage", stage.to_owned()));
            (labels, zero_or_one(now == stage))
        }))
    });
    registry.register(
        "front_stage",
        "1 for the stage that the front is in, 0 for the others; `warm` is serving",
        gauges(stages.flatten()),
    );
    let with_standby = fronts.iter().filter(|front| front.instances.len() > 1);
    registry.register(
        "front_standby_ready",
        "1 while an instance is in step and would take over; of fronts with several instances",
        gauges(with_standby.map(|front| {
            let is_reached = front
                .stage
                .as_deref()
                .is_some_and(|stage| stage != "unreachable");
            (
                of(front),
                zero_or_one(is_reached && front.standby.is_some()),
            )
        })),
    );
    let lag = |value: fn(&api::FrontInstance) -> Option<f64>| {
        let each = fronts.iter().flat_map(move |front| {
            front.instances.iter().filter_map(move |instance| {
                let mut labels = of(front);
                labels.push(("app", instance.app.clone()));
                Some((labels, value(instance)?))
            })
        });
        gauges(each)
    };
    registry.register(
        "front_instance_lag_bytes",
        "How much the instance is behind the primary, where that can be told",
        lag(|instance| Some(forebay_core::units::Bytes(instance.lag_bytes?).as_f64())),
    );
    registry.register(
        "front_instance_lag_seconds",
        "How long ago the instance heard from the primary, where that can be told",
        lag(|instance| Some(std::time::Duration::from_millis(instance.lag_ms?).as_secs_f64())),
    );
}

/// What fronts did.
fn serve(registry: &mut Registry, continuity: &Continuity) {
    let changes = continuity.changes.iter().flat_map(|(front, by_cause)| {
        CAUSES.map(|cause| {
            let labels = vec![("front", front.clone()), ("way", cause.to_owned())];
            (labels, by_cause.get(cause).copied().unwrap_or_default())
        })
    });
    registry.register(
        "front_changes",
        "Changes of the primary: hand-overs in order (`planned`), and promotions by what led to them",
        counters(changes),
    );
    let counted = |value: fn(&api::FrontCounts) -> u64| {
        let each = continuity.fronts.iter();
        counters(each.filter_map(|front| Some((of(front), value(front.counts.as_ref()?)))))
    };
    registry.register(
        "front_requests",
        "Requests to the front since its process began, or connections where there is nothing smaller",
        counted(|counts| counts.requests),
    );
    registry.register(
        "front_requests_failed",
        "Requests that got no answer, and surely were not executed",
        counted(|counts| counts.failed),
    );
    registry.register(
        "front_requests_unknown",
        "Requests that got no answer, and of which nobody knows whether they were executed",
        counted(|counts| counts.unknown),
    );
}

fn move_apps(registry: &mut Registry, moves: &api::Moves, ended: &Ended) {
    let ways = [Way::Restart, Way::Checkpoint, Way::Handoff];
    let ends = [
        (End::Moved, "moved"),
        (End::Stayed, "stayed"),
        (End::Refused, "refused"),
    ];
    let each = ways.into_iter().flat_map(|way| {
        ends.map(|(end, outcome)| {
            let labels = vec![("mode", way.to_string()), ("outcome", outcome.to_owned())];
            (labels, ended.get(&(way, end)).copied().unwrap_or_default())
        })
    });
    registry.register(
        "moves",
        "Moves from this host that are over, by their mode and how they ended",
        counters(each),
    );
    let away = moves.away.iter().filter(|one| !one.over).count();
    let coming = moves
        .coming
        .iter()
        .filter(|one| one.stage != "over")
        .count();
    let under_way = [("away", away), ("coming", coming)];
    registry.register(
        "moves_in_progress",
        "Moves that are under way from this host and to it",
        gauges(under_way.map(|(direction, n)| {
            (
                vec![("direction", direction.to_owned())],
                f64::from(count(n)),
            )
        })),
    );
    let stood = moves.away.iter().filter(|one| one.over);
    registry.register(
        "move_stood_seconds",
        "How long the app stood still in its latest move from this host that is over",
        gauges(stood.filter_map(|one| Some((vec![("app", one.app.clone())], one.stood_seconds?)))),
    );
}

fn update(registry: &mut Registry, tally: &Tally) {
    registry.register(
        "updates",
        "Updates of the operating system that are over, by their outcome; kept over boots",
        counters(OUTCOMES.map(|outcome| {
            let times = tally.outcomes.get(outcome).copied().unwrap_or_default();
            (vec![("outcome", outcome.to_owned())], times)
        })),
    );
    registry.register(
        "update_in_progress",
        "1 while an update of the operating system is under way",
        ConstGauge::new(u32::from(tally.is_under_way)),
    );
    registry.register(
        "update_held_seconds",
        "Time that updates stood still because a critical app suffered; kept over boots",
        ConstCounter::new(tally.held.as_secs_f64()),
    );
}

/// How this host stands in its fleet.
fn belong(registry: &mut Registry, fleet: &api::Fleet) {
    let is_member = fleet.lease_seconds.is_some_and(|left| left > 0.0);
    let hosts = usize::try_from(fleet.hosts).unwrap_or(usize::MAX);
    registry.register(
        "fleet_member",
        "1 while this host certainly holds its lease in the fleet",
        ConstGauge::new(u32::from(is_member)),
    );
    registry.register(
        "fleet_hosts",
        "Members of the fleet, as was last looked",
        ConstGauge::new(count(hosts)),
    );
    registry.register(
        "fleet_cordoned",
        "1 while this host takes no more apps",
        ConstGauge::new(u32::from(fleet.cordoned)),
    );
    registry.register(
        "fleet_owned_apps",
        "Apps that can move and are this host's",
        ConstGauge::new(count(fleet.owns.len())),
    );
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// A value of each family.
    pub(in crate::server::metrics) fn every() -> Continuity {
        let instance = |app: &str, lag_ms| api::FrontInstance {
            app: app.to_owned(),
            lag_bytes: lag_ms,
            lag_ms,
            ..api::FrontInstance::default()
        };
        let front = api::Front {
            front: "shop".to_owned(),
            stage: Some("warm".to_owned()),
            standby: Some("b".to_owned()),
            instances: vec![instance("a", None), instance("b", Some(250))],
            counts: Some(api::FrontCounts {
                requests: 9,
                failed: 2,
                unknown: 1,
                ..api::FrontCounts::default()
            }),
            ..api::Front::default()
        };
        let moved = api::Move {
            app: "db".to_owned(),
            over: true,
            stood_seconds: Some(0.5),
            ..api::Move::default()
        };
        let goes = api::Move::default();
        Continuity {
            fronts: vec![front],
            changes: [("shop".to_owned(), [("death".to_owned(), 3)].into())].into(),
            moves: Some((
                api::Moves {
                    away: vec![moved, goes],
                    ..api::Moves::default()
                },
                [((Way::Handoff, End::Stayed), 4)].into(),
            )),
            updates: Some(Tally {
                outcomes: [("alarmed".to_owned(), 1)].into(),
                is_under_way: true,
                held: Duration::from_millis(1500),
            }),
            fleet: Some(api::Fleet {
                host: "one".to_owned(),
                coordinator: "etcd".to_owned(),
                lease_seconds: Some(7.0),
                lost_since_unix_ms: None,
                lost: None,
                cordoned: true,
                hosts: 3,
                owns: vec!["db".to_owned()],
                apps: Vec::new(),
            }),
        }
    }

    fn rendered(continuity: &Continuity) -> String {
        let mut registry = Registry::with_prefix("forebay");
        register(&mut registry, continuity);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[track_caller]
    fn check(continuity: &Continuity, lines: &[&str]) {
        let text = rendered(continuity);
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} in\n{text}");
        }
    }

    #[test]
    fn fronts_moves_updates_and_the_fleet_are_told_in_the_names_promised() {
        let lines = [
            "forebay_front_stage{front=\"shop\",stage=\"warm\"} 1.0",
            "forebay_front_stage{front=\"shop\",stage=\"down\"} 0.0",
            "forebay_front_standby_ready{front=\"shop\"} 1.0",
            "forebay_front_instance_lag_bytes{front=\"shop\",app=\"b\"} 250.0",
            "forebay_front_instance_lag_seconds{front=\"shop\",app=\"b\"} 0.25",
            "forebay_front_changes_total{front=\"shop\",way=\"death\"} 3",
            "forebay_front_changes_total{front=\"shop\",way=\"planned\"} 0",
            "forebay_front_requests_total{front=\"shop\"} 9",
            "forebay_front_requests_failed_total{front=\"shop\"} 2",
            "forebay_front_requests_unknown_total{front=\"shop\"} 1",
            "forebay_moves_total{mode=\"handoff\",outcome=\"stayed\"} 4",
            "forebay_moves_total{mode=\"restart\",outcome=\"moved\"} 0",
            "forebay_moves_in_progress{direction=\"away\"} 1.0",
            "forebay_moves_in_progress{direction=\"coming\"} 0.0",
            "forebay_move_stood_seconds{app=\"db\"} 0.5",
            "forebay_updates_total{outcome=\"alarmed\"} 1",
            "forebay_updates_total{outcome=\"committed\"} 0",
            "forebay_update_in_progress 1",
            "forebay_update_held_seconds_total 1.5",
            "forebay_fleet_member 1",
            "forebay_fleet_hosts 3",
            "forebay_fleet_cordoned 1",
            "forebay_fleet_owned_apps 1",
        ];
        check(&every(), &lines);
    }

    #[test]
    fn what_is_lost_is_told_as_lost() {
        let mut lost = every();
        let front = &mut lost.fronts[0];
        // What was known last of one that does not answer is no standby.
        front.stage = Some("unreachable".to_owned());
        front.counts = None;
        lost.fleet.as_mut().unwrap().lease_seconds = None;
        let lines = [
            "forebay_front_standby_ready{front=\"shop\"} 0.0",
            "forebay_front_stage{front=\"shop\",stage=\"unreachable\"} 1.0",
            "forebay_fleet_member 0",
        ];
        check(&lost, &lines);
        let text = rendered(&lost);
        assert!(!text.contains("front_requests_total{"), "{text}");
    }

    #[test]
    fn a_front_of_one_instance_has_no_standby_to_miss() {
        let mut alone = every();
        alone.fronts[0].instances.truncate(1);
        let text = rendered(&alone);
        assert!(!text.contains("front_standby_ready{"), "{text}");
    }
}
