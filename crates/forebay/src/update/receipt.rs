//! What is shown of an update: how far it is, what to type next, what came of it.

use std::collections::BTreeSet;
use std::path::Path;

use forebay_api as api;
use forebay_core::app::AppId;
use forebay_core::idset::CpuSet;
use forebay_core::update::{AppProof, Call, Outcome, Pace, Record, Stage, System, Verdict};

use super::clients::Passage;
use super::journal::Entry;
use super::rehearse::{self, Report};
use super::{measure, plan};

pub(super) const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Planned => "planned",
        Stage::Locked => "locked",
        Stage::Isolated => "isolated",
        Stage::Leaving => "leaving",
        Stage::Telling => "telling",
        Stage::Synced => "synced",
        Stage::Updating => "updating",
        Stage::Rehearsing => "rehearsing",
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
        Stage::Telling => "apps are told, and prepare; `forebay update abort` calls it off",
        Stage::Updating => "the command runs; `forebay update abort` asks it to end",
        Stage::Rehearsing => {
            "the kernel that comes is tried out in a virtual machine; go on without the reboot: `forebay update resume`"
        }
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

/// What an update does that has a reboot before it.
pub(super) const fn before_reboot(stage: Stage) -> &'static str {
    match stage {
        Stage::Rehearsing => "tries the kernel out that comes",
        Stage::Departing => "has the host, or userspace, begin anew by itself",
        _ => "waits for a reboot (reboot the host)",
    }
}

/// The same as [`next`] where userspace begins anew.
const fn next_softly(stage: Stage) -> &'static str {
    match stage {
        Stage::Departing => {
            "critical apps run on, all others end, and userspace begins anew by itself; go on without: \
             `forebay update resume`"
        }
        Stage::Reviving => "apps that were to run on are looked at; it goes on by itself",
        other => next(other),
    }
}

/// Whether apps are ended meanwhile.
fn ends(record: &Record) -> bool {
    record.prepared.values().any(|call| *call == Call::End)
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
        None if record.stage == Stage::RebootPending && ends(record) => format!(
            "{}; apps that were told are ended until then",
            next(record.stage)
        ),
        None if record.order.soft => next_softly(record.stage).to_owned(),
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
        rehearsal: rehearsal(record, output),
        isolation: record.proof.iter().map(isolation).collect(),
        prepared: record
            .prepared
            .iter()
            .map(|(app, call)| api::UpdatePrepared {
                app: app.to_string(),
                how: call.word().to_owned(),
            })
            .collect(),
    }
}

fn isolation((app, proof): (&AppId, &AppProof)) -> api::UpdateIsolation {
    let cpus = |cpus: CpuSet| (!cpus.is_empty()).then(|| cpus.to_string());
    api::UpdateIsolation {
        app: app.to_string(),
        exclusive_cpus: cpus(proof.exclusive),
        load_cpus: cpus(proof.load_ran_on),
        memory_floor_bytes: proof.memory_floor.map(|floor| floor.0),
        waited: proof.waited,
        waited_loaded: proof.waited_loaded,
        p99_before_ms: proof.before.p99_ms,
        p99_loaded_ms: proof.loaded.p99_ms,
    }
}

/// Where an update that is over leaves the host, and what to type next.
fn afterwards(record: &Record, left: &Left<'_>) -> String {
    let Left { unconfigured, .. } = left;
    let output = left.output.display();
    let stage = record.stage;
    if !unconfigured.is_empty() {
        return format!(
            "dpkg has not finished with {}; next: `forebay update run -- dpkg --configure -a`",
            unconfigured.join(", ")
        );
    }
    let outcome = match stage {
        Stage::Over(outcome) | Stage::Closing(outcome) | Stage::Returning(outcome) => outcome,
        _ => Outcome::Alarmed,
    };
    let command = record.order.command.join(" ");
    if let (Outcome::Committed, Some(unbooted)) = (outcome, &left.unbooted) {
        let rest = match record.troubles.is_empty() {
            true => "",
            false => {
                "; not all was done, and `forebay update status` says what still runs outdated code"
            }
        };
        return format!(
            "the apps are well; {unbooted}, and that is in effect once this host begins anew: `forebay update plan \
             --reboot -- true` shows how{rest}"
        );
    }
    match (outcome, record.system) {
        (Outcome::Committed, _) if record.troubles.is_empty() => {
            "the system is updated and the apps are well: nothing is left to do".to_owned()
        }
        (Outcome::Committed, _) => {
            "the system is updated and the apps are well, but not all was done; `forebay update status` says \
             what still runs outdated code"
                .to_owned()
        }
        (Outcome::RolledBack, System::Untouched) => format!(
            "nothing of the system was changed; once the reason is gone: `forebay update run -- {command}`"
        ),
        (Outcome::RolledBack, _) => format!(
            "the rollback went through and the apps are well; `less {output}` shows what it wrote; once the \
             reason is gone: `forebay update run -- {command}`"
        ),
        (Outcome::Alarmed, System::Updated) if record.failed_rehearsal().is_some() => {
            after_rehearsal(record, Path::new(&output.to_string()))
        }
        (Outcome::Alarmed, System::Updated | System::Undone | System::Untouched) => {
            "somebody has to look at what is said above: `forebay apps` shows how apps are, and \
             `forebay update run --restart APP -- true` restarts one behind its front"
                .to_owned()
        }
        (Outcome::Alarmed, System::Broken) if record.departs_to.is_some() => {
            let kernel = record.departs_to.as_deref().unwrap_or_default();
            format!(
                "the apps go on under the kernel of before: look why kernel {kernel} does not come up, and mend it or \
                 take it away (as by `apt-get purge linux-image-{kernel}`); then: `forebay update run --rung checkpoint \
                 -- {command}`"
            )
        }
        (Outcome::Alarmed, System::Broken) => format!(
            "nobody knows how far the system is: `less {output}` shows what the command wrote; once it is \
             mended: `forebay update run -- {command}`, with `--rollback` where something undoes it"
        ),
    }
}

/// The same where its rehearsal keeps the host up.
fn after_rehearsal(record: &Record, output: &Path) -> String {
    let found = rehearsal(record, output).unwrap_or_default();
    let console = found.console.map_or(String::new(), |file| {
        format!("`less {file}` shows what the machine said; ")
    });
    let (kernel, command) = (found.kernel, record.order.command.join(" "));
    let known = record.rehearsal.as_ref().map(|found| &found.verdict);
    if let Some(Verdict::Impossible(_)) = known {
        return format!(
            "the apps go on under the kernel of before, and nothing is known of kernel {kernel}, which a reboot would \
             start: {console}`forebay update rehearse` tries it out once what is said above stands against that no \
             more; then: `forebay update run --rung checkpoint --rehearse required -- {command}`, or without a \
             rehearsal: `--rehearse off`"
        );
    }
    format!(
        "the apps go on under the kernel of before, and a reboot would start kernel {kernel}: {console}mend it or take \
         it away (as by `apt-get purge linux-image-{kernel}`), `forebay update rehearse` tries it again; then: `forebay \
         update run --rung checkpoint -- {command}`"
    )
}

/// What came of the rehearsal; outputs are beside where it was made.
fn rehearsal(record: &Record, output: &Path) -> Option<api::UpdateRehearsal> {
    let place = rehearse::beside(output);
    let found = record.rehearsal.as_ref()?;
    Some(Report::new(found, &place).shown())
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

/// What an update leaves, beside its record.
#[derive(Debug)]
pub(super) struct Left<'a> {
    /// What the last command wrote.
    pub(super) output: &'a Path,
    /// Packages that dpkg has not finished with.
    pub(super) unconfigured: &'a [String],
    /// What is in effect only once this host begins anew, and why, where there is something.
    pub(super) unbooted: Option<String>,
}

/// What came of an update that is over.
pub(super) fn receipt(
    entry: &Entry,
    ended_unix_ms: u64,
    restarted: &BTreeSet<AppId>,
    left: &Left<'_>,
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
        let proof = proof.map(|proof| isolation((id, proof)));
        let proof = proof.unwrap_or_default();
        api::UpdateApp {
            planned: plan::shown(id, choice),
            restarted: restarted.contains(id),
            exclusive_cpus: proof.exclusive_cpus,
            memory_floor_bytes: proof.memory_floor_bytes,
            p99_before_ms: proof.p99_before_ms,
            p99_loaded_ms: proof.p99_loaded_ms,
            pause_ms: entry.pauses.get(id).copied(),
            load_cpus: proof.load_cpus,
            waited: proof.waited,
            waited_loaded: proof.waited_loaded,
            told: record.order.told.get(id).map(|call| call.word().to_owned()),
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
        clients: entry.clients.iter().map(clients).collect(),
        troubles: record.troubles.clone(),
        rehearsal: rehearsal(record, left.output),
        next: afterwards(record, left),
    }
}

fn clients((front, passage): (&AppId, &Passage)) -> api::UpdateClients {
    api::UpdateClients {
        front: front.to_string(),
        kept: passage.kept,
        back: passage.back,
        left: passage.left,
        pause_ms: passage.pause_ms,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use forebay_core::update::{Order, Rehearsal, Rehearse, WELL_WITHIN_USUAL};

    use super::*;

    /// The page shows how far an update is by the names of its stages.
    #[test]
    fn the_page_has_every_stage_in_order() {
        let page = include_str!("../../../../web/src/views/updates.js");
        let (_, list) = page.split_once("const STAGES = [").unwrap();
        let (list, _) = list.split_once(']').unwrap();
        let shown: Vec<&str> = list
            .split(',')
            .map(|word| word.trim().trim_matches('"'))
            .collect();
        let stages = [
            Stage::Planned,
            Stage::Locked,
            Stage::Isolated,
            Stage::Leaving,
            Stage::Telling,
            Stage::Synced,
            Stage::Updating,
            Stage::Rehearsing,
            Stage::RebootPending,
            Stage::Departing,
            Stage::Reviving,
            Stage::Undoing,
            Stage::Restoring,
            Stage::Verifying,
            Stage::Returning(Outcome::Committed),
            Stage::Closing(Outcome::Committed),
        ];
        assert_eq!(shown, stages.map(stage));
    }

    /// However an update ended, what is said of it names a command, or that there is nothing to do.
    fn left(unconfigured: &[String]) -> Left<'_> {
        Left {
            output: Path::new("/state/update/1.1.output"),
            unconfigured,
            unbooted: None,
        }
    }

    #[test]
    fn every_ending_says_where_it_stands_and_what_to_type_next() {
        let order = Order {
            command: vec!["apt-get".to_owned(), "upgrade".to_owned()],
            directory: "/".into(),
            rollback: None,
            rehearse: Default::default(),
            limit: Duration::from_secs(1),
            well_within: WELL_WITHIN_USUAL,
            restart: BTreeSet::new(),
            reboot: false,
            unproved: false,
            elsewhere: false,
            keep: false,
            soft: false,
            told: BTreeMap::new(),
        };
        let mut record = Record::new(1, 2, "boot".to_owned(), order);
        use Outcome::{Alarmed, Committed, RolledBack};
        use System::{Broken, Undone, Untouched, Updated};
        let endings = [
            (Committed, Updated, false, "nothing is left to do"),
            (Committed, Updated, true, "`forebay update status`"),
            (
                RolledBack,
                Untouched,
                true,
                "nothing of the system was changed",
            ),
            (RolledBack, Undone, true, "`less /state/update/1.1.output`"),
            (Alarmed, Updated, true, "`forebay apps`"),
            (Alarmed, Undone, true, "`forebay apps`"),
            (
                Alarmed,
                Broken,
                true,
                "`forebay update run -- apt-get upgrade`",
            ),
        ];
        for (outcome, system, is_troubled, expected) in endings {
            record.stage = Stage::Over(outcome);
            record.system = system;
            record.troubles = vec!["why".to_owned(); usize::from(is_troubled)];
            let said = afterwards(&record, &left(&[]));
            assert!(said.contains(expected), "{outcome:?}, {system:?}: {said}");
            let names = said.contains("`forebay ") || outcome == Committed;
            assert!(names, "{outcome:?}, {system:?}: {said}");
        }
        record.departs_to = Some("9.9".to_owned());
        let said = afterwards(&record, &left(&[]));
        assert!(
            said.contains("kernel 9.9 does not come up")
                && said.contains("`forebay update run --rung checkpoint -- apt-get upgrade`"),
            "{said}"
        );
        record.system = Updated;
        record.order.rehearse = Rehearse::Required;
        let no = || "no".to_owned();
        let verdicts = [
            (
                Verdict::Failed(no()),
                "purge linux-image-9.9",
                "nothing is known",
            ),
            (
                Verdict::Impossible(no()),
                "nothing is known of kernel 9.9",
                "purge",
            ),
        ];
        for (verdict, part, none) in verdicts {
            record.rehearsal = Some(Rehearsal {
                verdict,
                ..Rehearsal::impossible("9.9".to_owned(), no())
            });
            let said = afterwards(&record, &left(&[]));
            assert!(said.contains(part) && !said.contains(none), "{said}");
            assert!(said.contains("`forebay update rehearse`"), "{said}");
        }
        let said = afterwards(&record, &left(&["libfoo".to_owned()]));
        assert!(
            said.contains("libfoo") && said.contains("`forebay update run -- dpkg --configure -a`")
        );
        record.stage = Stage::Over(Committed);
        for (troubles, is_told) in [(&[][..], false), (&["why".to_owned()][..], true)] {
            record.troubles = troubles.to_vec();
            let left = Left {
                unbooted: Some("kernel 9.9 was installed".to_owned()),
                ..left(&[])
            };
            let said = afterwards(&record, &left);
            assert!(!said.contains("nothing is left to do"), "{said}");
            assert!(said.contains("kernel 9.9 was installed"), "{said}");
            assert!(said.contains("`forebay update plan --reboot -- true`"));
            assert_eq!(said.contains("outdated code"), is_told, "{said}");
        }
    }
}
