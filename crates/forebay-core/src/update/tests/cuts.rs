//! The power of the host is cut at any moment of an update: what runs is gone, and only what is on disk is there.

use super::*;

/// How far the command was when the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Command {
    /// Nothing was changed.
    Before,
    /// It is on disk that it begins, and it did not.
    Noted,
    Amid,
    After,
}

fn command(world: &World) -> Command {
    let record = world.disk.as_ref();
    let stage = record.map(|record| record.stage);
    match (world.ended.contains_key(&1), world.begun.contains_key(&1)) {
        (true, _) => Command::After,
        (false, true) => Command::Amid,
        (false, false) if stage == Some(Stage::Updating) => Command::Noted,
        (false, false) if record.is_none_or(Record::can_be_called_off) => Command::Before,
        // There is none to run: it is what is done for it anyway.
        (false, false) => Command::After,
    }
}

/// Runs a path with a cut at this moment; how far the command was at it, and the world afterwards.
fn cut(path: &Path, moment: u32) -> (Command, World) {
    let mut world = world(path, &[moment]);
    let mut at = None;
    loop {
        let begun = (world.boots, world.userspaces);
        if world.live(path).is_ok() {
            break;
        }
        // Otherwise it was the reboot that was asked for.
        if begun == (world.boots, world.userspaces) {
            at = Some(command(&world));
            world.cut();
        }
    }
    (at.unwrap_or(Command::After), world)
}

#[test]
fn a_command_that_was_noted_and_did_not_begin_runs_once_in_the_boot_after_a_cut() {
    let mut cuts = BTreeMap::<Command, u32>::new();
    for path in paths() {
        for moment in 1..=check(&path, &[]) {
            let (at, world) = cut(&path, moment);
            *cuts.entry(at).or_default() += 1;
            let said = format!("{}, cut at {moment}, {at:?}: {world:?}", path.name);
            let Some(Record { stage, .. }) = world.disk else {
                panic!("{said}: nothing on disk")
            };
            assert!(matches!(stage, Stage::Over(_)), "{said}");
            assert!(world.begun.values().all(|starts| *starts == 1), "{said}");
            let runs = u32::try_from(world.begun.len()).unwrap();
            assert!(runs <= 1 + ROLLBACKS_MAX, "{said}");
            assert!(!world.slice && !world.frozen && !world.cordoned, "{said}");
            assert!(
                world.away.is_empty() && world.kept_ended.is_empty(),
                "{said}"
            );
            assert_eq!(world.owners(), 1, "{said}");
            match at {
                // As if there had been no cut: nothing was done before it.
                Command::Before | Command::Noted => {
                    assert_eq!(stage, Stage::Over(path.ends), "{said}");
                    assert_eq!(
                        world.ended.get(&1),
                        path.endings.first(),
                        "it ended as it does: {said}"
                    );
                }
                Command::Amid => {
                    assert_eq!(world.ended[&1], Ending::Lost, "{said}");
                    assert_ne!(stage, Stage::Over(Outcome::Committed), "{said}");
                }
                Command::After => {}
            }
        }
    }
    let kinds: Vec<Command> = cuts.keys().copied().collect();
    let all = [
        Command::Before,
        Command::Noted,
        Command::Amid,
        Command::After,
    ];
    assert_eq!(kinds, all, "{cuts:?}");
    assert!(cuts[&Command::Noted] > 50, "{cuts:?}");
}

#[test]
fn a_boot_before_the_command_ended_is_not_the_reboot_that_is_waited_for() {
    let mut cuts = 0;
    for path in paths().iter().filter(|path| path.reboot) {
        let moments = check(path, &[]);
        for moment in 1..=moments {
            let mut world = world(path, &[moment]);
            let mut ended_in = None;
            loop {
                let boots = world.boots;
                let is_over = world.live(path).is_ok();
                if world.ended.contains_key(&1) {
                    ended_in.get_or_insert(boots);
                }
                if is_over {
                    break;
                }
                let stage = world.disk.as_ref().map(|record| record.stage);
                // Otherwise it is the reboot that was asked for, or as good as that.
                if boots == world.boots && stage != Some(Stage::RebootPending) {
                    cuts += 1;
                    world.cut();
                }
            }
            let said = format!("{}, cut at {moment}", path.name);
            // One that was cut off left no system that waits for a reboot.
            let is_cut_off = world.ended.get(&1) == Some(&Ending::Lost);
            let began_anew = ended_in.is_some_and(|boot| world.boots > boot);
            assert!(began_anew || is_cut_off, "{said}");
        }
    }
    assert!(cuts > 10, "{cuts}");
}

/// At the moments at which apps are written down, or all else ends.
#[test]
fn what_a_power_cut_loses_is_never_taken_for_kept() {
    let (mut cuts, mut losses) = (0, 0);
    let departs = |path: &&Path| path.keep.is_some() || path.soft.is_some();
    for path in paths().iter().filter(departs) {
        let moments = check(path, &[]);
        for moment in 1..=moments {
            let mut world = world(path, &[moment]);
            let mut is_cut = false;
            loop {
                let boots = (world.boots, world.userspaces);
                if world.live(path).is_ok() {
                    break;
                }
                let stage = world.disk.as_ref().map(|record| record.stage);
                // Otherwise it was the reboot that was asked for, or comes before all that is of interest.
                if boots == (world.boots, world.userspaces) && stage == Some(Stage::Departing) {
                    is_cut = true;
                    world.cut();
                }
            }
            let Some(Record { stage, .. }) = world.disk else {
                panic!("{}: nothing on disk", path.name)
            };
            let is_kept = |app: &AppId| path.soft.is_none() || app.as_str() == "a";
            let mut memories = world.memories.iter();
            let lost = memories.any(|(app, memory)| memory.fresh && is_kept(app));
            let said = format!("{}, cut at {moment}: {:?}", path.name, world.memories);
            assert!(!lost || stage == Stage::Over(Outcome::Alarmed), "{said}");
            for memory in world.memories.values() {
                assert_eq!(memory.has, Some(memory.told), "{said}");
            }
            cuts += u32::from(is_cut);
            losses += u32::from(is_cut && lost);
        }
    }
    assert!(cuts > 10 && losses > 0, "{cuts} {losses}");
}
