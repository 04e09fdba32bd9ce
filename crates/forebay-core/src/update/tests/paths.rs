//! Ways that updates take, each of which every crash is tried on.

use super::*;

pub(super) fn paths() -> Vec<Path> {
    use Outcome::{Alarmed, Committed, RolledBack};
    let ok = || Ending::Status(0);
    let bad = || Ending::Status(100);
    let path = |name, endings: Vec<Ending>, looks: &[bool], has_rollback, ends| Path {
        name,
        proof: Ok(()),
        sync: Ok(()),
        endings,
        looks: looks.to_vec(),
        has_rollback,
        reboot: false,
        elsewhere: None,
        keep: None,
        rehearsal: None,
        soft: None,
        tells: None,
        ends,
    };
    let mut all = vec![
        path("well", vec![ok()], &[true], false, Committed),
        path("fails", vec![bad()], &[true], false, Alarmed),
        path("undone", vec![bad(), ok()], &[true, true], true, RolledBack),
        path(
            "undone twice",
            vec![bad(), bad(), ok()],
            &[true; 3],
            true,
            RolledBack,
        ),
        path(
            "cannot be undone",
            vec![bad(), bad(), bad()],
            &[true; 3],
            true,
            Alarmed,
        ),
        path("sick", vec![ok()], &[false], false, Alarmed),
        path(
            "sick, undone",
            vec![ok(), ok()],
            &[false, true],
            true,
            RolledBack,
        ),
        path(
            "sick for good",
            vec![ok(), ok(), ok()],
            &[false; 3],
            true,
            Alarmed,
        ),
        path(
            "sick, then not undone",
            vec![ok(), bad(), ok()],
            &[false, true, true],
            true,
            RolledBack,
        ),
        path(
            "cut off",
            vec![Ending::Lost, ok()],
            &[true; 2],
            true,
            RolledBack,
        ),
        path("too long", vec![Ending::TimedOut], &[true], false, Alarmed),
        path("killed", vec![Ending::Signal(9)], &[true], false, Alarmed),
        path(
            "stopped",
            vec![Ending::Stopped, ok()],
            &[true; 2],
            true,
            RolledBack,
        ),
        path(
            "no such program",
            vec![Ending::NotStarted("x".to_owned())],
            &[],
            true,
            RolledBack,
        ),
    ];
    let mut reboots = path("reboots", vec![ok()], &[true], false, Committed);
    reboots.reboot = true;
    let kept = [
        ("kept", Keeping::Well, Committed),
        ("cannot be kept", Keeping::Refused, Alarmed),
        ("kept, and damaged", Keeping::Damaged, Alarmed),
    ];
    let kept = kept.map(|(name, keeping, ends)| Path {
        keep: Some(keeping),
        ..path(name, vec![ok()], &[true], false, ends)
    });
    let no = || "no".to_owned();
    let rehearsed = [
        (
            "rehearsed",
            Rehearse::Auto,
            Some(Verdict::Passed),
            false,
            Committed,
        ),
        (
            "nothing to rehearse",
            Rehearse::Required,
            None,
            false,
            Committed,
        ),
        (
            "not to be rehearsed",
            Rehearse::Auto,
            Some(Verdict::Impossible(no())),
            false,
            Committed,
        ),
        (
            "had to be rehearsed",
            Rehearse::Required,
            Some(Verdict::Impossible(no())),
            false,
            Alarmed,
        ),
        (
            "not passed",
            Rehearse::Auto,
            Some(Verdict::Failed(no())),
            false,
            Alarmed,
        ),
        (
            "not passed, and undone",
            Rehearse::Auto,
            Some(Verdict::Failed(no())),
            true,
            RolledBack,
        ),
    ];
    let rehearsed = rehearsed.map(|(name, rehearse, verdict, is_undone, ends)| Path {
        keep: Some(Keeping::Well),
        rehearsal: Some((rehearse, verdict)),
        ..path(
            name,
            vec![ok(); 1 + usize::from(is_undone)],
            &[true, true],
            is_undone,
            ends,
        )
    });
    let fallen = Path {
        keep: Some(Keeping::FellBack),
        ..path("another kernel", vec![ok()], &[true], false, Alarmed)
    };
    let undone = Path {
        keep: Some(Keeping::FellBack),
        ..path(
            "another kernel, and undone",
            vec![ok(), ok()],
            &[true, true],
            true,
            RolledBack,
        )
    };
    let softly = [
        ("soft", Softly::Well, vec![ok()], &[true][..], Committed),
        (
            "soft by its command",
            Softly::ByCommand,
            vec![],
            &[true],
            Committed,
        ),
        (
            "cannot be soft",
            Softly::Refused,
            vec![ok()],
            &[true],
            Alarmed,
        ),
        (
            "soft, sick, undone",
            Softly::Well,
            vec![ok(), ok()],
            &[false, true],
            RolledBack,
        ),
    ];
    let softly = softly.map(|(name, softly, endings, looks, ends)| Path {
        soft: Some(softly),
        ..path(name, endings, looks, looks.len() > 1, ends)
    });
    let mut unproved = path("not isolated", vec![], &[], false, RolledBack);
    unproved.proof = Err("no");
    let mut behind = path("no shadow", vec![], &[], false, RolledBack);
    behind.sync = Err("no");
    let mut unmoved = path("no room elsewhere", vec![], &[], false, RolledBack);
    unmoved.elsewhere = Some(Err("no"));
    let mut unprepared = path("not prepared", vec![], &[], false, RolledBack);
    unprepared.tells = Some(Err("no"));
    // Whatever comes of the command, those that were told hear that it is over.
    let told = all.iter().chain([&reboots, &behind]).cloned();
    let told: Vec<Path> = told
        .map(|path| Path {
            tells: Some(Ok(())),
            ..path
        })
        .collect();
    // Whatever comes of the command, those that went come back.
    let moved = all.iter().chain([&reboots, &unproved, &behind]).cloned();
    let moved: Vec<Path> = moved
        .map(|path| Path {
            elsewhere: Some(Ok(())),
            ..path
        })
        .collect();
    all.extend([reboots, unproved, behind, unmoved, unprepared]);
    all.extend(told);
    all.extend(moved);
    all.extend(kept);
    all.extend(rehearsed);
    all.extend([fallen, undone]);
    all.extend(softly);
    all
}
