//! Where the interrupts of devices are served.

use std::collections::BTreeMap;

use forebay_core::host::{Action, Host, Outcome};
use forebay_core::idset::CpuSet;

use super::{Case, Fixture, Unmet, Verdict, ensure, with};

/// Interrupts leave the CPUs that they are to be kept off, but for those that the kernel binds
/// itself, never all CPUs, and go back to where they were.
pub fn interrupts_are_kept_off_and_come_back<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let now = case.observe().host.interrupts;
        let Ok(now) = now else {
            return Err(Unmet::Skipped("it moves no interrupts".to_owned()));
        };
        ensure!(
            now.kept_off == Some(CpuSet::EMPTY),
            "nothing was done yet, but {now:?}"
        );
        let all = case.host.topology().cpu_set();
        let keep_off: CpuSet = all.iter().next_back().into_iter().collect();
        if keep_off == all {
            return Err(Unmet::Skipped("there is one CPU".to_owned()));
        }
        let outcome = case.apply(Action::Interrupts { keep_off: all })?;
        ensure!(
            matches!(outcome, Outcome::Failed(_)),
            "no CPU is left to serve interrupts: {outcome:?}"
        );
        let before = served(case)?;
        let concerned = |on: &CpuSet| !on.is_disjoint(&keep_off);
        if !before.values().any(concerned) {
            return Err(Unmet::Skipped(
                "no interrupt may be served there".to_owned(),
            ));
        }
        case.done(Action::Interrupts { keep_off })?;
        let after = served(case)?;
        let (mut moved, mut stay) = (0, Vec::new());
        for (number, on) in &after {
            if !concerned(on) {
                moved += usize::from(before.get(number) != Some(on));
            } else if before.get(number) == Some(on) {
                stay.push(number);
            } else {
                ensure!(false, "interrupt {number} was moved to {on}");
            }
        }
        ensure!(moved > 0, "of all interrupts none was moved: {stay:?} stay");
        let seen = case.observe().host.interrupts;
        ensure!(
            seen.as_ref()
                .is_ok_and(|seen| seen.kept_off == Some(keep_off)),
            "in force are {keep_off}, seen is {seen:?}"
        );
        case.done(Action::Interrupts {
            keep_off: CpuSet::EMPTY,
        })?;
        let back = served(case)?;
        ensure!(back == before, "they were {before:?}, and are {back:?}");
        Ok(())
    })
}

fn served<H: Host, F: Fixture<H>>(
    case: &mut Case<'_, H, F>,
) -> Result<BTreeMap<u32, CpuSet>, Unmet> {
    let read = case.fixture.interrupts(&case.host);
    read.map_err(Unmet::Skipped)
}
