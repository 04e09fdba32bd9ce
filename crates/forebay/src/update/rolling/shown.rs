//! What is shown of a rolling update: how it stands, and what to type next.

use std::collections::BTreeSet;

use forebay_api as api;
use forebay_core::fleet::HostName;
use forebay_core::fleet::rolling::{Host, Owner, Phase, Rolling, Rollout, Standing, Turn, Wait};

use super::open_now;

/// What is known, for people. `there` are the members now.
pub(super) fn shown(rolling: &Rolling, there: &BTreeSet<HostName>) -> api::FleetUpdate {
    let slot = |holder: &forebay_core::fleet::rolling::Holder| {
        let (kind, holder_name) = match &holder.owner {
            Owner::Host(host) => ("host", host.to_string()),
            Owner::Client(id) => ("client", id.clone()),
        };
        api::Slot {
            holder: holder_name,
            kind: kind.to_owned(),
            group: holder.group.clone(),
            since_unix_ms: holder.since_unix_ms,
        }
    };
    api::FleetUpdate {
        rollout: rolling
            .rollout
            .as_ref()
            .map(|rollout| of_rollout(rolling, rollout, there)),
        slots: rolling.holders.iter().map(slot).collect(),
    }
}

fn of_rollout(rolling: &Rolling, rollout: &Rollout, there: &BTreeSet<HostName>) -> api::Rollout {
    api::Rollout {
        number: rollout.number,
        command: rollout.wanted.command.clone(),
        by: rollout.by.to_string(),
        began_unix_ms: rollout.began_unix_ms,
        group: rollout.group.clone(),
        at_once: rollout.at_once,
        when: rollout.window.as_ref().map(|window| window.when.clone()),
        lasts_seconds: rollout.window.as_ref().map(|window| window.lasts.as_secs()),
        phase: phase(rollout.phase()).to_owned(),
        next: next(rollout),
        hosts: rollout
            .hosts
            .iter()
            .map(|host| of_host(rolling, rollout, host, there))
            .collect(),
    }
}

const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Going => "going",
        Phase::Stopped => "stopped",
        Phase::Ending => "ending",
        Phase::CalledOff => "called_off",
        Phase::Complete => "complete",
    }
}

/// How it stands as a whole, and the next command.
fn next(rollout: &Rollout) -> String {
    let names = |is: fn(&Standing) -> bool| -> Vec<&str> {
        let hosts = rollout.hosts.iter().filter(|host| is(&host.standing));
        hosts.map(|host| host.name.as_str()).collect()
    };
    let updated = names(|one| *one == Standing::Updated).len();
    let all = rollout.hosts.len();
    let stopped = || {
        let failed = names(|one| matches!(one, Standing::Failed { .. }));
        let silent = names(|one| matches!(one, Standing::Silent { .. }));
        let mut said = Vec::new();
        if !failed.is_empty() {
            said.push(format!(
                "look at {} (`forebay update history` there); then `forebay update fleet resume` tries it again",
                failed.join(", ")
            ));
        }
        if !silent.is_empty() {
            said.push(format!(
                "nothing is heard of {}: it goes on by itself when its daemon runs again",
                silent.join(", ")
            ));
        }
        format!(
            "no other host begins: {}; `forebay update fleet resume --without HOST` goes on without it, `forebay \
             update fleet abort` ends it",
            said.join("; ")
        )
    };
    match rollout.phase() {
        Phase::Going => format!(
            "{updated} of {all} hosts are updated; it goes on by itself, also without this host; `forebay update \
             fleet abort` has no more begin"
        ),
        Phase::Stopped => stopped(),
        Phase::Ending => match names(|one| matches!(one, Standing::Silent { .. })).as_slice() {
            [] => {
                "no more hosts begin; those that update come to their end by themselves".to_owned()
            }
            silent => format!(
                "no more hosts begin; nothing is heard of {}, which ends by itself when its daemon runs again; \
                 `forebay update fleet resume --without HOST` where it does not come back",
                silent.join(", ")
            ),
        },
        Phase::CalledOff => format!(
            "it was called off with {updated} of {all} hosts updated; `forebay update fleet run -- COMMAND` begins \
             another"
        ),
        Phase::Complete => format!("all {all} hosts are updated, and well"),
    }
}

fn of_host(
    rolling: &Rolling,
    rollout: &Rollout,
    host: &Host,
    there: &BTreeSet<HostName>,
) -> api::RolloutHost {
    let (state, said) = match &host.standing {
        Standing::Waits => ("waits", waits(rolling, rollout, host, there)),
        Standing::Updates { stage, next, .. } if next.is_empty() => {
            ("updates", Some(stage.clone()))
        }
        Standing::Updates { stage, next, .. } => ("updates", Some(format!("{stage}: {next}"))),
        Standing::Silent { .. } => (
            "silent",
            Some(format!(
                "nothing was heard of it for {} s",
                rollout.silence.as_secs()
            )),
        ),
        Standing::Updated => ("updated", None),
        Standing::Failed { why } => ("failed", Some(why.clone())),
    };
    api::RolloutHost {
        host: host.name.to_string(),
        attempt: host.attempt,
        state: state.to_owned(),
        said,
    }
}

/// What a host waits for.
fn waits(
    rolling: &Rolling,
    rollout: &Rollout,
    host: &Host,
    there: &BTreeSet<HostName>,
) -> Option<String> {
    if rollout.called_off {
        return None;
    }
    if !there.contains(&host.name) {
        return Some(
            "it is no member now; it begins when it is back, or is left out by `--without`"
                .to_owned(),
        );
    }
    match rolling.turn(&host.name, there, open_now(rollout)) {
        Turn::Take => Some("it is its turn".to_owned()),
        Turn::Wait(Wait::Behind(other)) => Some(format!("{other} comes before it")),
        Turn::Wait(Wait::Slot(owners)) => {
            let names: Vec<String> = owners.iter().map(ToString::to_string).collect();
            Some(format!("for a slot, held by {}", names.join(", ")))
        }
        Turn::Wait(Wait::Window(Some(at))) => Some(format!("for its window, which opens at {at}")),
        Turn::Wait(Wait::Window(None)) => Some("for a window that does not open again".to_owned()),
        Turn::Wait(Wait::Decision) => Some("for somebody to decide".to_owned()),
        Turn::Nothing | Turn::CarryOn => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::waiting;
    use super::*;

    #[test]
    fn it_says_what_each_host_waits_for_and_what_to_type() {
        let names = ["a", "b", "c"];
        let there: BTreeSet<HostName> = ["a", "b"].map(|name| name.parse().unwrap()).into();
        let mut rolling = Rolling::default();
        rolling
            .begin(Rollout {
                number: 0,
                began_unix_ms: 1,
                by: "a".parse().unwrap(),
                wanted: forebay_core::fleet::rolling::Wanted::default(),
                group: "default".to_owned(),
                at_once: 1,
                window: None,
                silence: std::time::Duration::from_secs(60),
                hosts: names.map(|name| waiting(name.parse().unwrap())).into(),
                called_off: false,
            })
            .unwrap();
        let said = |rolling: &Rolling| {
            let rollout = shown(rolling, &there).rollout.unwrap();
            let hosts = rollout.hosts.iter();
            let hosts: Vec<String> = hosts
                .map(|one| format!("{} {}", one.state, one.said.clone().unwrap_or_default()))
                .collect();
            (rollout.phase, rollout.next, hosts)
        };
        let (phase, _, hosts) = said(&rolling);
        assert_eq!(phase, "going");
        assert_eq!(
            hosts[..2],
            ["waits it is its turn", "waits a comes before it"]
        );
        assert!(hosts[2].contains("no member now"), "{hosts:?}");
        let a: HostName = "a".parse().unwrap();
        let open = forebay_core::fleet::rolling::Opening::Open;
        rolling.take(&a, &there, open, 1).unwrap();
        assert_eq!(said(&rolling).2[1], "waits for a slot, held by a");
        rolling.ended(&a, Err("web is not well".to_owned()));
        let (phase, next, hosts) = said(&rolling);
        assert_eq!(phase, "stopped");
        for command in [
            "update history",
            "fleet resume`",
            "--without HOST",
            "fleet abort",
        ] {
            assert!(next.contains(command), "{next}");
        }
        assert_eq!(
            hosts[..2],
            ["failed web is not well", "waits for somebody to decide"]
        );
    }
}
