//! What is shown of an update: how far it is, what to type next, what came of it.

use std::collections::BTreeSet;
use std::path::Path;

use forebay_api as api;
use forebay_core::app::AppId;
use forebay_core::update::{Outcome, Pace, Stage};

use super::journal::Entry;
use super::{measure, plan};

pub(super) const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Planned => "planned",
        Stage::Locked => "locked",
        Stage::Isolated => "isolated",
        Stage::Leaving => "leaving",
        Stage::Synced => "synced",
        Stage::Updating => "updating",
        Stage::RebootPending => "reboot_pending",
        Stage::Departing => "departing",
        Stage::Reviving => "reviving",
        Stage::Undoing => "undoing",
        Stage::Restoring => "restoring",
        Stage::Verifying => "verifying",
        Stage::Returning(_) => "returning",
        Stage::Closing(_) => "closing",
        Stage::Over(outcome) => self::outcome(outcome),
    }
}

const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::RolledBack => "rolled_back",
        Outcome::Alarmed => "alarmed",
    }
}

const fn next(stage: Stage) -> &'static str {
    match stage {
        Stage::Planned | Stage::Locked => {
            "the isolation of critical apps is measured; `forebay update abort` calls it off"
        }
        Stage::Isolated | Stage::Synced => {
            "shadows are waited for; `forebay update abort` calls it off"
        }
        Stage::Leaving => {
            "apps go to other hosts (`forebay fleet drain --show`); `forebay update abort` calls it off"
        }
        Stage::Updating => "the command runs; `forebay update abort` asks it to end",
        Stage::RebootPending => {
            "reboot the host, and it goes on by itself; or go on without: `forebay update resume`"
        }
        Stage::Departing => {
            "apps are written down, and the host begins anew by itself; go on without: `forebay update resume`"
        }
        Stage::Reviving => "apps go on from what was written down; it goes on by itself",
        Stage::Undoing => "the rollback runs; it goes on by itself",
        Stage::Restoring => "programs that run outdated code are replaced; it goes on by itself",
        Stage::Verifying => "apps are compared with their past; it goes on by itself",
        Stage::Returning(_) => "apps come back from other hosts; it goes on by itself",
        Stage::Closing(_) | Stage::Over(_) => "it is almost over",
    }
}

pub(super) fn current(
    entry: &Entry,
    output: &Path,
    held: Option<String>,
    stuck: Option<String>,
) -> api::Update {
    let record = &entry.record;
    let next = match stuck {
        Some(why) => format!("it cannot go on, and tries again: {why}"),
        None => next(record.stage).to_owned(),
    };
    api::Update {
        number: record.number,
        command: record.order.command.clone(),
        began_unix_ms: record.began_unix_ms,
        stage: stage(record.stage).to_owned(),
        next,
        output: (record.runs > 0).then(|| output.display().to_string()),
        held,
        troubles: record.troubles.clone(),
    }
}

const fn shown(pace: Pace) -> api::UpdatePace {
    api::UpdatePace {
        answers: pace.answers,
        errors: pace.errors,
        p50_ms: pace.p50_ms,
        p99_ms: pace.p99_ms,
        max_ms: pace.max_ms,
    }
}

/// What came of an update that is over.
pub(super) fn receipt(
    entry: &Entry,
    ended_unix_ms: u64,
    restarted: &BTreeSet<AppId>,
) -> api::UpdateReceipt {
    let record = &entry.record;
    let names: BTreeSet<&AppId> = entry.before.keys().chain(entry.during.keys()).collect();
    let front = |name: &AppId| {
        let during = entry.during.get(name);
        let own = entry.hand_overs.iter().filter(|one| one.front == *name);
        let counted = during.map(|(_, counted)| counted);
        let pauses = own.clone().map(|one| one.pause_ms);
        api::UpdateFront {
            front: name.to_string(),
            before: shown(entry.before.get(name).copied().unwrap_or_default()),
            during: shown(during.map(|(pace, _)| *pace).unwrap_or_default()),
            held: counted.map_or(0, |counted| counted.held),
            failed: counted.map_or(0, |counted| counted.failed),
            unknown: counted.map_or(0, |counted| counted.unknown),
            hand_overs: own.map(|one| one.said.clone()).collect(),
            pause_ms: pauses.reduce(f64::max),
        }
    };
    let apps = record.plan.iter().map(|(id, choice)| {
        let proof = record.proof.get(id);
        api::UpdateApp {
            planned: plan::shown(id, choice),
            restarted: restarted.contains(id),
            exclusive_cpus: proof
                .map(|proof| proof.exclusive.to_string())
                .filter(|cpus| !cpus.is_empty()),
            memory_floor_bytes: proof
                .and_then(|proof| proof.memory_floor)
                .map(|floor| floor.0),
            pause_ms: entry.pauses.get(id).copied(),
            p99_before_ms: proof.and_then(|proof| proof.before.p99_ms),
            p99_loaded_ms: proof.and_then(|proof| proof.loaded.p99_ms),
        }
    });
    api::UpdateReceipt {
        number: record.number,
        command: record.order.command.clone(),
        outcome: stage(record.stage).to_owned(),
        rollout: entry.rollout.clone(),
        began_unix_ms: record.began_unix_ms,
        ended_unix_ms,
        held_times: entry.held_times,
        held_ms: entry.held_ms,
        fronts: names.into_iter().map(front).collect(),
        apps: apps.collect(),
        troubles: record.troubles.clone(),
    }
}

/// What a front saw since the first command began.
pub(super) fn since(
    entry: &Entry,
    now: &std::collections::BTreeMap<AppId, super::journal::Counted>,
) -> std::collections::BTreeMap<AppId, (Pace, super::journal::Counted)> {
    let fronts = entry.counted.iter().filter_map(|(name, before)| {
        let between = measure::between(before, now.get(name)?)?;
        Some((name.clone(), (measure::pace(&between.answers), between)))
    });
    fronts.collect()
}
