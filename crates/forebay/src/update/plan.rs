//! What would be done to each app, from what is configured and what fronts remember.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_api as api;
use forebay_core::app::{App, AppId, Binding, Policy};
use forebay_core::update::{
    Call, Choice, Front, Order, Otherwise, Rung, Subject, Way, choose, ends_the_host,
};
use forebay_shadow::status::Transition;

use super::keep::keeps_none;
use super::soft::Softly;
use super::{Fleet, Shared};
use crate::fronts::Known;

/// Chooses for all apps.
pub(super) fn choices(
    policy: &Policy,
    order: &Order,
    shared: &Shared,
    softly: &Softly,
) -> BTreeMap<AppId, Choice> {
    let fleet = shared.fleet.as_ref();
    let fronts = shared.fronts.all();
    let mut keeps = shared.keeps(policy, order);
    let mut choose = |id: &AppId, app: &App| {
        let known = fronts.values().find(|known| serves(known, id));
        let mut choice = choose(&Subject {
            front: known.map(|known| front(known, id)),
            is_started: matches!(app.binding, Binding::Exec(_)),
            restart: order.restart.contains(id),
            reboot: order.reboot,
            leaves: order.elsewhere && fleet.is_some_and(|fleet| fleet.can_leave(app)),
            keeps: keeps.remove(id),
            told: order.told.get(id).copied(),
            soft: softly.apps.get(id).cloned(),
        });
        let refuses = app
            .update
            .is_some_and(|part| part.otherwise == Otherwise::Refuse);
        if order.told.contains_key(id) && refuses && !shared.board.is_present(id) {
            choice.refused.push(
                "update: it is to be told, and has not registered; see that its client runs \
                 (`forebay update attend`), or give it `update.otherwise = \"next\"`"
                    .to_owned(),
            );
        }
        choice
    };
    let apps = policy.apps.iter();
    let apps = apps.filter(|(id, _)| !id.as_str().starts_with(super::PREFIX));
    apps.map(|(id, app)| (id.clone(), choose(id, app)))
        .collect()
}

/// Who is told what: those that take part and stay here.
pub(super) fn told(
    policy: &Policy,
    way: Option<Way>,
    leaves: impl Fn(&App) -> bool,
) -> BTreeMap<AppId, Call> {
    let call = match way {
        Some(Way::Cooperative) => Call::End,
        _ => Call::Detach,
    };
    let apps = policy.apps.values();
    let told = apps.filter(|app| app.update.is_some() && !leaves(app));
    told.map(|app| (app.id.clone(), call)).collect()
}

/// Whether an app is an instance behind a front.
pub(super) fn serves(known: &Known, id: &AppId) -> bool {
    known.config.instances.iter().any(|(app, _)| app == id)
}

fn front(known: &Known, id: &AppId) -> Front {
    let mut others = known.config.instances.iter().filter(|(app, _)| app != id);
    let transitions = known
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.transitions);
    Front {
        shadow: others.any(|(app, _)| !known.config.elsewhere.contains_key(app)),
        took: took(transitions),
    }
}

/// The median and the longest of planned hand-overs.
fn took(transitions: &[Transition]) -> Option<(Duration, Duration)> {
    let planned = transitions.iter().filter(|one| one.cause == "planned");
    let mut times: Vec<Duration> = planned.map(pause).collect();
    times.sort_unstable();
    Some((*times.get(times.len() / 2)?, *times.last()?))
}

/// How long a change took, all its steps together.
pub(super) fn pause(transition: &Transition) -> Duration {
    transition.steps.iter().map(|(_, took)| *took).sum()
}

/// What is asked for and cannot be done: then nothing of it is.
pub(super) fn cannot(
    way: Option<Way>,
    order: &Order,
    choices: &BTreeMap<AppId, Choice>,
    (fleet, keeping, softly): (Option<&Fleet>, &Result<String, String>, &Softly),
) -> Vec<String> {
    let mut refused = Vec::new();
    if order.soft {
        refused.extend(softly.cannot());
    }
    if order.keep {
        match keeping {
            Ok(_) => refused.extend(keeps_none(order, choices)),
            Err(why) => refused.push(format!(
                "rung {} is not offered: {why}; `forebay update plan -- COMMAND` shows all",
                Way::Checkpoint.name()
            )),
        }
    }
    let has_fleet = fleet.is_some();
    if let Some(way) = way.filter(|way| !way.is_offered(has_fleet)) {
        refused.push(format!(
            "rung {} is not offered: {}; `forebay update plan -- COMMAND` shows all",
            way.name(),
            way.reason(has_fleet)
        ));
    }
    if order.elsewhere
        && let Some(fleet) = fleet
    {
        if !choices.values().any(|one| one.rung == Rung::OtherHost) {
            refused.push(format!(
                "rung {}: no app of this host can leave it: give those that may `move`, or take another rung",
                Way::OtherHost.name()
            ));
        }
        refused.extend(fleet.obstacle());
    }
    if way == Some(Way::Cooperative) && order.told.is_empty() {
        refused.push(format!(
            "rung {}: no app of this host is told of updates: give those that are to be `update`, or take \
             another rung",
            Way::Cooperative.name()
        ));
    }
    if ends_the_host(&order.command) && !order.is_its_command() {
        refused.push(format!(
            "update ({}): it would end the host behind the apps' back; give --reboot with the command that \
             changes the system, and reboot when `forebay update status` says so",
            order.command.join(" ")
        ));
    }
    for (app, choice) in choices {
        let said = choice.refused.iter().map(|why| format!("{app}: {why}"));
        refused.extend(said);
    }
    refused
}

/// Why a way is not offered on this host.
pub(super) fn unoffered<'a>(
    way: Way,
    fleet: bool,
    keeping: &'a Result<String, String>,
    softly: &'a Softly,
) -> Option<&'a str> {
    match way {
        Way::Checkpoint => keeping.as_ref().err().map(String::as_str),
        Way::SoftReboot => softly.obstacle.as_deref(),
        way => (!way.is_offered(fleet)).then(|| way.reason(fleet)),
    }
}

/// All ways; `keeping`: how apps would be kept over a reboot here, or why not.
pub(super) fn rungs(
    fleet: bool,
    keeping: &Result<String, String>,
    softly: &Softly,
) -> Vec<api::UpdateRung> {
    let shown = |way: Way| {
        let obstacle = unoffered(way, fleet, keeping, softly);
        let how = keeping.as_ref().ok().filter(|_| way == Way::Checkpoint);
        let reason = obstacle.or(how.map(String::as_str));
        api::UpdateRung {
            rung: way.name().to_owned(),
            offered: obstacle.is_none(),
            reason: reason.unwrap_or_else(|| way.reason(fleet)).to_owned(),
        }
    };
    Way::ALL.map(shown).into()
}

pub(super) const fn rung(rung: Rung) -> &'static str {
    match rung {
        Rung::Userspace => "userspace",
        Rung::SoftReboot => "soft-reboot",
        Rung::OtherHost => "other-host",
        Rung::Checkpoint => "checkpoint",
        Rung::Cooperative => "cooperative",
        Rung::Restart => "restart",
        Rung::Reboot => "reboot",
    }
}

pub(super) fn shown(app: &AppId, choice: &Choice) -> api::UpdateChoice {
    api::UpdateChoice {
        app: app.to_string(),
        rung: rung(choice.rung).to_owned(),
        reason: choice.reason.clone(),
        pause_p50_ms: choice.pause_ms.map(|(median, _)| median),
        pause_p99_ms: choice.pause_ms.map(|(_, most)| most),
        refused: choice.refused.clone(),
    }
}
