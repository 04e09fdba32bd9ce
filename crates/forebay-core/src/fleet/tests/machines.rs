//! One machine by itself, step by step.

use super::*;

/// A departure that was driven to a stage by what its steps ended with.
fn departing(inputs: &[departure::Input]) -> (Departure, Vec<departure::Step>) {
    let (mut machine, mut steps) = Departure::begin(Ownership::first(source()), target());
    for input in inputs {
        steps = machine.step(input.clone());
    }
    (machine, steps)
}

#[test]
fn a_source_whose_disk_is_full_turns_back_before_it_asks() {
    use departure::{End, Input, Mark, Stage, Step};
    let done = Input::Ended(Outcome::Done);
    let check = |count: usize, stage, mark, first: Option<Step>| {
        let mut inputs = vec![done.clone(); count];
        inputs.push(Input::Unmarked);
        let (machine, steps) = departing(&inputs);
        assert_eq!((machine.stage(), machine.mark()), (stage, mark));
        assert_eq!(steps.first().cloned(), first);
    };
    check(1, Stage::Over(End::Refused), None, None);
    let recalled = Step::Change(1, Ownership::first(source()).recalled());
    check(3, Stage::CallingOff, Some(Mark::Begun), Some(recalled));
    // Frozen, and all is sent: the record was not asked for yet.
    check(5, Stage::Thawing, Some(Mark::Frozen), Some(Step::Thaw));
    // It was: only the record says now whose it is.
    check(6, Stage::Awaiting, Some(Mark::Committing), None);

    // It goes on, and the disk still says that it may stand still: the record waits for no room.
    let mut inputs = vec![done.clone(); 3];
    inputs.extend([Input::Ended(Outcome::Refused), done]);
    let (mut machine, steps) = departing(&inputs);
    assert_eq!(
        (machine.stage(), machine.mark()),
        (Stage::CallingOff, Some(Mark::Begun))
    );
    assert_eq!(machine.step(Input::Unmarked), steps);
    assert_eq!(machine.mark(), Some(Mark::Frozen));
    // What is on disk already cannot fail to be there.
    assert_eq!(machine.step(Input::Unmarked), []);
    machine.step(Input::Ended(Outcome::Done));
    assert_eq!(machine.stage(), Stage::Over(End::Stayed));
}

/// What the target may still fetch stands until that is known not to be so, whatever is wanted meanwhile; a daemon
/// that begins anew finds its way back there, and nothing lets it go on.
#[test]
fn a_source_lends_until_its_target_needs_nothing() {
    use departure::{End, Input, Mark, Stage, Step};
    let runs = first().given_to(&target()).running();
    let lends = |mut machine: Departure| {
        assert_eq!(machine.step(Input::Read(runs.clone())), [Step::Lend]);
        assert_eq!(machine.stage(), Stage::Lending);
        for outcome in [Outcome::Unknown, Outcome::Refused] {
            assert_eq!(machine.step(Input::Ended(outcome)), [Step::Lend]);
        }
        let back = first().recalled();
        for input in [
            Input::Cancel,
            Input::Unmarked,
            Input::Gone,
            Input::Read(back),
        ] {
            assert_eq!(machine.step(input.clone()), [], "{input:?}");
        }
        let found = (machine.stage(), machine.mark());
        assert_eq!(found, (Stage::Lending, Some(Mark::Committing)));
        assert_eq!(machine.step(Input::Ended(Outcome::Done)), [Step::End]);
        assert_eq!(machine.step(Input::Ended(Outcome::Done)), []);
        assert_eq!(machine.stage(), Stage::Over(End::Moved));
    };
    lends(asked(Outcome::Unknown));
    let (mut anew, _) = Departure::resume(first(), target(), Mark::Committing);
    assert_eq!(anew.step(Input::Ended(Outcome::Refused)), [Step::Read]);
    lends(anew);
}

/// A source that was asked for this many steps from a record that is not the first, and reads.
fn asked(commit: Outcome) -> Departure {
    use departure::{Input, Stage};
    let (mut machine, _) = Departure::begin(first(), target());
    for _ in 0..5 {
        machine.step(Input::Ended(Outcome::Done));
    }
    machine.step(Input::Ended(commit));
    if commit == Outcome::Unknown {
        machine.step(Input::Ended(Outcome::Refused));
    }
    assert_eq!(machine.stage(), Stage::Reading);
    machine
}

#[test]
fn a_record_of_before_ends_nothing_and_gives_a_rest() {
    use departure::{End, Input, Stage, Step};
    let before = |owner: HostName| {
        Input::Read(Ownership {
            epoch: FIRST - 2,
            ..Ownership::first(owner)
        })
    };
    let done = Input::Ended(Outcome::Done);
    for read in [
        before(source()),
        before("other".parse().unwrap()),
        Input::Gone,
    ] {
        // Somebody else may have been given it: it stands until that is known.
        let mut machine = asked(Outcome::Unknown);
        assert_eq!(machine.step(read.clone()), [Step::Read]);
        assert_eq!(machine.stage(), Stage::Reading);
        machine.step(Input::Read(first().given_to(&target())));
        assert_eq!(machine.step(read.clone()), [Step::Read]);
        assert_eq!(machine.stage(), Stage::Awaiting);

        // Nobody was.
        let mut machine = asked(Outcome::Refused);
        assert_eq!(machine.step(read), [Step::Thaw]);
        machine.step(done.clone());
        machine.step(Input::Ended(Outcome::Refused));
        assert_eq!(machine.stage(), Stage::Over(End::Stayed));
    }
}

#[test]
fn what_is_given_back_says_again_that_it_runs() {
    use departure::{End, Input, Mark, Stage, Step};
    let done = Input::Ended(Outcome::Done);
    let back = Ownership::first(source())
        .given_to(&target())
        .given_to(&source());
    let mut inputs = vec![done.clone(); 6];
    inputs.extend([Input::Read(back.clone()), done.clone()]);
    let (mut machine, steps) = departing(&inputs);
    let expected = [Step::Change(back.epoch, back.running())];
    assert_eq!(steps, expected);
    // A daemon that begins anew finds the record once more.
    assert_eq!(machine.mark(), Some(Mark::Committing));
    assert_eq!(machine.step(Input::Ended(Outcome::Unknown)), expected);
    machine.step(done);
    assert_eq!(machine.stage(), Stage::Over(End::Stayed));
}

/// An arrival whose copy is whole.
fn waiting() -> Arrival {
    let (mut machine, _) = Arrival::begin(Ownership::first(source()), target());
    machine.step(arrival::Input::Ended(Outcome::Done));
    machine.step(arrival::Input::Ended(Outcome::Done));
    assert_eq!(machine.stage(), arrival::Stage::Waiting);
    machine
}

#[test]
fn a_target_goes_by_the_record_and_not_by_the_sources_word() {
    use arrival::{End, Input, Stage, Step};
    let done = Input::Ended(Outcome::Done);
    let given = Ownership::first(source()).given_to(&target());
    let mut machine = waiting();
    assert_eq!(machine.step(Input::Dropped(1)), [Step::Discard]);
    machine.step(done.clone());
    assert_eq!(machine.step(Input::Dropped(1)), []);
    let back = Step::Change(given.epoch, given.given_to(&source()));
    assert_eq!(machine.step(Input::Read(given)), [back]);

    let mut machine = waiting();
    machine.step(Input::Dropped(1));
    machine.step(done);
    machine.step(Input::Read(Ownership::first(source()).recalled()));
    assert_eq!(machine.stage(), Stage::Over(End::Dropped));
}

#[test]
fn what_may_have_run_is_not_given_back() {
    use arrival::{Input, Stage, Step};
    let given = Ownership::first(source()).given_to(&target());
    let mut machine = waiting();
    machine.step(Input::Read(given.clone()));
    machine.step(Input::Ended(Outcome::Unknown));
    let runs = Step::Change(given.epoch, given.running());
    assert_eq!(machine.step(Input::Ended(Outcome::Refused)), [runs]);

    let mut machine = waiting();
    machine.step(Input::Read(given));
    machine.step(Input::Ended(Outcome::Refused));
    assert_eq!(machine.stage(), Stage::Returning);
}

/// The daemon ended between the start and what it had to say of it, and the program ends by itself.
#[test]
fn what_ran_before_the_daemon_ended_is_not_given_back() {
    use arrival::{Found, Input, Mark, Stage};
    for (found, stage) in [
        (Found::Started, Stage::Announcing),
        (Found::Fresh, Stage::Returning),
    ] {
        let record = Ownership::first(source());
        let given = record.given_to(&target());
        let (mut machine, _) = Arrival::resume(record, target(), Mark::Starting, found);
        machine.step(Input::Read(given));
        machine.step(Input::Ended(Outcome::Refused));
        assert_eq!(machine.stage(), stage);
    }
}

#[test]
fn a_target_whose_disk_is_full_gives_it_back() {
    use arrival::{Input, Mark, Stage, Step};
    let given = Ownership::first(source()).given_to(&target());
    let mut machine = waiting();
    machine.step(Input::Read(given.clone()));
    let back = [Step::Change(given.epoch, given.given_to(&source()))];
    assert_eq!(machine.step(Input::Unmarked), back);
    // What is on disk stays true: nothing of it ran.
    assert_eq!(machine.mark(), Some(Mark::Prepared));
    assert_eq!(machine.step(Input::Ended(Outcome::Unknown)), back);
    assert_eq!(machine.mark(), Some(Mark::Prepared));

    // It was not said that the copy is whole.
    let mut machine = waiting();
    assert_eq!(machine.step(Input::Unmarked), [Step::Discard]);
    assert_eq!(machine.stage(), Stage::Discarding { watch: false });
}

/// It could not be started, and the disk takes nothing more: nobody waits for room on it.
#[test]
fn a_target_whose_disk_is_full_when_it_could_not_start_gives_it_back() {
    use arrival::{End, Found, Input, Mark, Stage, Step};
    let given = Ownership::first(source()).given_to(&target());
    let back = given.given_to(&source());
    let mut machine = waiting();
    machine.step(Input::Read(given.clone()));
    let asked = [Step::Change(given.epoch, back.clone())];
    assert_eq!(machine.step(Input::Ended(Outcome::Refused)), asked);
    assert_eq!(machine.mark(), Some(Mark::Dropped));
    assert_eq!(machine.step(Input::Unmarked), asked);
    assert_eq!(
        machine.mark(),
        Some(Mark::Starting),
        "that is on disk already"
    );
    assert_eq!(machine.step(Input::Unmarked), []);

    // A daemon that begins anew asks whose it is before it starts what was given back.
    for found in [Found::Fresh, Found::Nothing] {
        let record = Ownership::first(source());
        let (mut machine, steps) = Arrival::resume(record, target(), Mark::Starting, found);
        if found == Found::Fresh {
            assert_eq!(steps, [Step::Read]);
            assert_eq!(machine.step(Input::Read(back.clone())), [Step::Discard]);
            machine.step(Input::Ended(Outcome::Done));
        } else {
            assert_eq!(steps, [Step::Change(given.epoch, given.running())]);
            assert_eq!(machine.step(Input::Ended(Outcome::Refused)), [Step::Read]);
            // Of before it says nothing of whether it was given back.
            let before = Ownership::first(source());
            assert_eq!(machine.step(Input::Read(before)), [Step::Read]);
            machine.step(Input::Read(back.clone()));
        }
        assert_eq!(machine.stage(), Stage::Over(End::Dropped));
        assert_eq!(machine.known(), None);
    }
}

/// Refused by a record of before, nothing is thrown away that nobody else has.
#[test]
fn what_is_given_back_is_kept_until_the_record_says_so() {
    use arrival::{Input, Stage, Step};
    let given = first().given_to(&target());
    let back = given.given_to(&source());
    let (mut machine, _) = Arrival::begin(first(), target());
    machine.step(Input::Ended(Outcome::Done));
    machine.step(Input::Ended(Outcome::Done));
    machine.step(Input::Read(given));
    machine.step(Input::Ended(Outcome::Refused));
    assert_eq!(machine.step(Input::Ended(Outcome::Refused)), [Step::Read]);
    assert_eq!(machine.step(Input::Gone), [Step::Read]);
    let before = Ownership {
        epoch: FIRST - 2,
        ..first()
    };
    let again = [Step::Change(FIRST - 2, back.clone())];
    assert_eq!(machine.step(Input::Read(before)), again);
    machine.step(Input::Ended(Outcome::Refused));
    assert_eq!(machine.step(Input::Read(back)), [Step::Discard]);
    assert_eq!(machine.stage(), Stage::Discarding { watch: false });
}

/// What ran is nobody else's by a record of before: its host says so once no move is about it.
#[test]
fn what_runs_is_known_to_run_although_its_record_was_put_back() {
    use arrival::{End, Input, Stage, Step};
    let given = first().given_to(&target());
    for read in [Some(first().recalled()), Some(first()), None] {
        let (mut machine, _) = Arrival::begin(first(), target());
        machine.step(Input::Ended(Outcome::Done));
        machine.step(Input::Ended(Outcome::Done));
        machine.step(Input::Read(given.clone()));
        machine.step(Input::Ended(Outcome::Done));
        assert_eq!(machine.step(Input::Ended(Outcome::Refused)), [Step::Read]);
        machine.step(read.map_or(Input::Gone, Input::Read));
        assert_eq!(machine.stage(), Stage::Over(End::Runs));
        assert_eq!(machine.known(), Some(given.running()));
    }

    let back = given.given_to(&source());
    let mut machine = asked(Outcome::Unknown);
    machine.step(departure::Input::Read(back.clone()));
    assert_eq!(machine.known(), None, "it stands still");
    machine.step(departure::Input::Ended(Outcome::Done));
    machine.step(departure::Input::Ended(Outcome::Refused));
    assert_eq!(
        machine.stage(),
        departure::Stage::Over(departure::End::Stayed)
    );
    assert_eq!(machine.known(), Some(back.running()));
}

/// Two owners of one epoch: what stands here is ended for none of them.
#[test]
fn a_conflict_ends_nothing() {
    use departure::{Input, Stage, Step};
    let other: HostName = "other".parse().unwrap();
    for record in [
        Ownership {
            owner: other.clone(),
            ..first()
        },
        first().given_to(&other).running(),
        first().given_to(&other),
    ] {
        let mut machine = asked(Outcome::Unknown);
        assert_eq!(machine.step(Input::Read(record.clone())), [Step::Read]);
        machine.step(Input::Read(first().given_to(&target())));
        assert_eq!(machine.stage(), Stage::Awaiting);
        assert_eq!(machine.step(Input::Read(record)), [Step::Read]);
        // A later one says who has it.
        let later = first().given_to(&target()).given_to(&other);
        assert_eq!(machine.step(Input::Read(later)), [Step::Lend]);
    }
}
