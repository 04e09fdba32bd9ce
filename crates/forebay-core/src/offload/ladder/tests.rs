//! Every transition of the ladder, and what no sequence of them may do.

use proptest::prelude::*;

use super::super::trigger::{Sign, When};
use super::*;
use crate::units::{Bytes, MilliCpu};

const CPU_USE: Watched = Watched {
    sign: Sign::CpuUse,
    when: When::Now,
};

/// One app, seconds as periods, and rungs that exist or not.
struct Bench {
    ascent: Ascent,
    learned: Learned,
    /// Whether it is on its way to another host.
    leaves: bool,
    rules: Rules,
    app: AppId,
    bottleneck: Bottleneck,
    second: u64,
    harm: f64,
    /// What it lacks besides.
    other: Option<Strain>,
    /// Whether it lacks something of which nobody knows what.
    unknown: bool,
    offers: BTreeMap<Rung, Offer>,
}

impl Bench {
    fn new(bottleneck: Bottleneck, rungs: &[Rung]) -> Self {
        let offers = rungs.iter().map(|rung| (*rung, offer(*rung, 0.5, 0.02)));
        Self {
            ascent: Ascent::default(),
            learned: Learned::default(),
            leaves: false,
            rules: Rules::default(),
            app: "web".parse().unwrap(),
            bottleneck,
            second: 0,
            harm: 1.0,
            other: None,
            unknown: false,
            offers: offers.collect(),
        }
    }

    fn now(&self) -> Time {
        Time {
            monotonic: Duration::from_secs(self.second),
            unix_ms: 0,
        }
    }

    /// One second in which it is so many times its limit; none is a gap.
    fn step(&mut self, severity: Option<f64>) -> Option<Turn> {
        self.second += 1;
        let reading = severity.map(|severity| Reading {
            watched: CPU_USE,
            value: severity,
            limit: 1.0,
            whole: None,
            foretold: None,
        });
        let strained = severity.filter(|severity| *severity > 1.0);
        let strain = strained.map(|severity| Strain {
            bottleneck: self.bottleneck,
            watched: CPU_USE,
            severity,
            harm: self.harm,
        });
        let mut strains: Vec<Strain> = strain.into_iter().collect();
        strains.extend(self.other);
        strains.sort_by(|a, b| b.severity.total_cmp(&a.severity));
        let round = Round {
            now: self.now(),
            rules: &self.rules,
            app: &self.app,
            leaves: self.leaves,
            strains: &strains,
            lacks: &strains.iter().map(|strain| strain.bottleneck).collect(),
            unknown: self.unknown,
            readings: reading.as_slice(),
        };
        let offers = &self.offers;
        let find = |rung: Rung, _| offers.get(&rung).cloned().ok_or(Absence::NoFleet);
        self.ascent.advance(&round, &find, &mut self.learned)
    }

    /// So many seconds of the same; what was done in them, and when.
    fn steps(&mut self, seconds: u64, severity: Option<f64>) -> Vec<(u64, Turn)> {
        let begin = self.second;
        let turns = (0..seconds).filter_map(|_| {
            let turn = self.step(severity)?;
            Some((self.second - begin, turn))
        });
        turns.collect()
    }

    /// So many seconds in which Forebay is paused.
    fn pause(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.second += 1;
            self.ascent.stand_still(self.now());
        }
    }

    fn last(&self) -> &Tried {
        self.ascent.tried.back().unwrap()
    }
}

fn effect(rung: Rung) -> Effect {
    match rung {
        Rung::WidenSlice => Effect::Widen(MilliCpu::cpus(1)),
        Rung::ReclaimBatch => Effect::Reclaim([("burn".parse().unwrap(), Bytes::mib(8))].into()),
        Rung::Move => Effect::Move("b".parse().unwrap()),
        _ => Effect::Whole,
    }
}

fn offer(rung: Rung, relief: f64, cost: f64) -> Offer {
    Offer {
        relief,
        cost,
        effect: effect(rung),
    }
}

fn take(rung: Rung) -> Turn {
    Turn::Take(rung, effect(rung))
}

fn undo(rung: Rung) -> Turn {
    Turn::Undo(rung, effect(rung))
}

use Rung::{Accelerate, Compact, Move, ReclaimBatch, ReclaimOwn, SpreadThreads, WidenSlice};

#[test]
fn the_first_rung_that_exists_is_taken_and_those_before_it_are_named() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice, Move]);
    assert_eq!(bench.step(Some(0.5)), None);
    assert_eq!(bench.step(Some(1.5)), Some(take(WidenSlice)));
    let skipped = bench.ascent.skipped().to_vec();
    assert_eq!(
        skipped,
        [(SpreadThreads, Skip::Absent(Absence::NoFleet))],
        "why the one before was not taken"
    );
    assert_eq!(bench.ascent.settling(), Some(WidenSlice));
    assert_eq!(bench.ascent.in_force().count(), 1);
}

#[test]
fn without_any_rung_all_are_named_and_it_looks_again() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[]);
    assert_eq!(bench.steps(10, Some(2.0)), []);
    assert_eq!(bench.ascent.skipped().len(), 4);
    bench.offers.insert(Accelerate, offer(Accelerate, 0.9, 0.2));
    assert_eq!(bench.step(Some(2.0)), Some(take(Accelerate)));
}

#[test]
fn what_helped_stays_and_the_next_rung_follows_only_if_the_constraint_does() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[SpreadThreads, WidenSlice]);
    assert_eq!(bench.step(Some(2.0)), Some(take(SpreadThreads)));
    // Nothing is done while its effect is measured.
    assert_eq!(bench.steps(5, Some(1.45)), []);
    let tried = bench.last();
    assert_eq!((tried.verdict, tried.rung), (Verdict::Kept, SpreadThreads));
    assert!((tried.relief.unwrap() - 0.5).abs() < 1e-9);
    // It helped, so that it is tried once more before anything that costs more.
    assert_eq!(bench.step(Some(1.45)), Some(take(SpreadThreads)));
    assert_eq!(bench.steps(5, Some(0.8)), []);
    assert_eq!(bench.last().verdict, Verdict::Kept);
    assert_eq!(bench.steps(30, Some(0.8)), []);
    assert_eq!(bench.ascent.in_force().count(), 2);
}

#[test]
fn what_did_not_help_is_taken_back_and_barred_for_twice_as_long_each_time() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    // So sure that it is tried again in spite of all.
    bench.offers.insert(WidenSlice, offer(WidenSlice, 1.0, 0.0));
    bench.step(Some(2.0));
    assert_eq!(bench.steps(5, Some(2.0)), [(5, undo(WidenSlice))]);
    assert_eq!(bench.ascent.in_force().count(), 0);
    assert_eq!(bench.last().verdict, Verdict::Undone);
    bench.step(Some(2.0));
    assert!(matches!(
        bench.ascent.skipped()[1],
        (WidenSlice, Skip::Barred { .. })
    ));
    let again = [(59, take(WidenSlice)), (64, undo(WidenSlice))];
    assert_eq!(bench.steps(64, Some(2.0)), again);
    let again = [(120, take(WidenSlice)), (125, undo(WidenSlice))];
    assert_eq!(bench.steps(125, Some(2.0)), again);
}

#[test]
fn what_made_it_worse_is_taken_back_and_not_expected_to_help() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.step(Some(1.5));
    assert_eq!(bench.steps(5, Some(3.0)), [(5, undo(WidenSlice))]);
    assert!((bench.last().relief.unwrap() + 1.0).abs() < 1e-9);
    // (2 * 0.5 - 1) / 3: nothing, and so not worth anything.
    assert_eq!(bench.steps(200, Some(1.5)), []);
    assert!(matches!(
        bench.ascent.skipped()[1],
        (WidenSlice, Skip::NotWorth { .. })
    ));
}

#[test]
fn what_cannot_be_measured_is_taken_back() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.step(Some(1.5));
    assert_eq!(bench.steps(5, None), [(5, undo(WidenSlice))]);
    assert_eq!(bench.last().relief, None);
    // Nothing was learned by that.
    let predicted =
        bench
            .learned
            .predict(bench.now(), &bench.app, Bottleneck::Cpu, WidenSlice, 0.5);
    assert!((predicted - 0.5).abs() < 1e-9);
}

/// A pause that began while a rung was measured had it judged in the first period after it, by what was read
/// in that alone, or taken back since nothing was.
#[test]
fn what_was_measured_before_a_pause_is_measured_anew_after_it() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.step(Some(2.0));
    assert_eq!(bench.steps(3, Some(2.0)), []);
    let taken_at = bench.second - 3;
    bench.pause(600);
    // Gaps after it, and less than the settling time: nothing is judged by them.
    assert_eq!(bench.steps(2, None), []);
    assert_eq!(bench.steps(2, Some(1.45)), []);
    assert_eq!(bench.ascent.settling(), Some(WidenSlice));
    assert_eq!(bench.step(Some(1.45)), None);
    let tried = bench.last();
    assert_eq!(tried.verdict, Verdict::Kept);
    assert_eq!(tried.at.monotonic.as_secs(), taken_at);
    assert!((tried.relief.unwrap() - 0.5).abs() < 1e-9);
}

#[test]
fn what_the_host_refuses_after_a_pause_is_not_what_was_taken_before_it() {
    let mut bench = Bench::new(Bottleneck::Memory, &[Compact]);
    assert_eq!(bench.step(Some(1.5)), Some(take(Compact)));
    bench.pause(5);
    bench.ascent.refuse_rung(bench.now(), Compact);
    assert_eq!(bench.ascent.settling(), Some(Compact));
}

#[test]
fn a_pause_is_no_time_in_which_an_app_was_calm() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.step(Some(1.5));
    bench.steps(5, Some(0.8));
    assert_eq!(bench.steps(10, Some(0.8)), []);
    bench.pause(600);
    assert_eq!(bench.steps(300, Some(0.8)), [(60, undo(WidenSlice))]);
}

#[test]
fn memory_that_was_taken_back_in_vain_leaves_nothing_to_undo() {
    let mut bench = Bench::new(Bottleneck::Memory, &[Compact, ReclaimBatch]);
    assert_eq!(bench.step(Some(1.5)), Some(take(Compact)));
    // Slower rungs have longer to settle.
    assert_eq!(bench.steps(10, Some(1.5)), []);
    assert_eq!(bench.last().verdict, Verdict::Spent);
    assert_eq!(bench.step(Some(1.5)), Some(take(ReclaimBatch)));
    // Half of the constraint is gone: kept, and there is nothing to keep.
    assert_eq!(bench.steps(10, Some(1.2)), []);
    assert_eq!(bench.last().verdict, Verdict::Kept);
    assert_eq!(bench.ascent.in_force().count(), 0);
}

#[test]
fn what_the_host_refuses_is_barred_at_once() {
    let mut bench = Bench::new(Bottleneck::Memory, &[ReclaimBatch, Move]);
    assert_eq!(bench.step(Some(1.5)), Some(take(ReclaimBatch)));
    let now = bench.now();
    bench.ascent.refuse(now, |_| false);
    assert_eq!(bench.ascent.settling(), Some(ReclaimBatch));
    let asked = effect(ReclaimBatch);
    bench.ascent.refuse(now, |effect| *effect == asked);
    assert_eq!(bench.ascent.settling(), None);
    assert_eq!(bench.last().verdict, Verdict::Refused);
    assert_eq!(bench.step(Some(1.5)), Some(take(Move)));
}

#[test]
fn a_rung_must_be_worth_its_cost_for_the_harm_there_is() {
    let mut bench = Bench::new(Bottleneck::Network, &[Move]);
    bench.offers.insert(Move, offer(Move, 0.9, 0.2));
    bench.harm = 0.2;
    assert_eq!(bench.steps(5, Some(1.1)), []);
    assert!(matches!(
        bench.ascent.skipped()[0],
        (Move, Skip::NotWorth { .. })
    ));
    bench.harm = 0.3;
    assert_eq!(bench.step(Some(1.4)), Some(take(Move)));
}

#[test]
fn one_that_is_calm_comes_down_the_last_rung_first() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.step(Some(2.0));
    bench.steps(5, Some(1.2));
    bench
        .offers
        .insert(SpreadThreads, offer(SpreadThreads, 0.5, 0.0));
    assert_eq!(bench.step(Some(1.2)), Some(take(SpreadThreads)));
    // It ends while the rung settles: that goes on first.
    bench.steps(5, Some(0.5));
    assert_eq!(bench.ascent.in_force().count(), 2);
    let down = bench.steps(300, Some(0.5));
    assert_eq!(down, [(61, undo(SpreadThreads)), (121, undo(WidenSlice))]);
}

/// One that is lacked beside what the bench is about.
const MEMORY: Strain = Strain {
    bottleneck: Bottleneck::Memory,
    watched: Watched {
        sign: Sign::MemoryStalled,
        when: When::Now,
    },
    severity: 3.0,
    harm: 1.0,
};

#[test]
fn what_is_lacked_besides_does_not_keep_what_is_not_against_it() {
    let let_go = |other, unknown| {
        let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
        bench.step(Some(1.5));
        bench.steps(5, Some(0.8));
        (bench.other, bench.unknown) = (other, unknown);
        bench.steps(300, Some(0.8))
    };
    assert_eq!(let_go(Some(MEMORY), false), [(61, undo(WidenSlice))]);
    // What nobody can name may be what it is against.
    assert_eq!(let_go(None, true), []);
}

#[test]
fn a_worse_lack_without_any_rung_does_not_hide_one_that_has_some() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.other = Some(MEMORY);
    assert_eq!(bench.step(Some(1.5)), Some(take(WidenSlice)));
    let skipped = bench.ascent.skipped().iter().map(|(rung, _)| *rung);
    let named = [Compact, ReclaimBatch, ReclaimOwn, Move, SpreadThreads];
    assert_eq!(skipped.collect::<Vec<_>>(), named, "each once");
}

#[test]
fn one_bad_measurement_near_the_limit_does_not_end_a_rung() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.step(Some(1.05));
    assert_eq!(bench.steps(5, Some(1.2)), [(5, undo(WidenSlice))]);
    assert!((bench.last().relief.unwrap() + 0.5).abs() < 1e-9);
    assert_eq!(bench.steps(60, Some(1.05)), [(60, take(WidenSlice))]);
}

#[test]
fn what_is_needed_again_at_once_is_let_go_later_the_next_time() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert_eq!(bench.step(Some(1.5)), Some(take(WidenSlice)));
        bench.steps(5, Some(0.8));
        let calm_at = bench.second + 1;
        let turn = (0..4000).find_map(|_| bench.step(Some(0.8)));
        assert_eq!(turn, Some(undo(WidenSlice)));
        waits.push(bench.second - calm_at);
    }
    assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
}

#[test]
fn a_rung_is_taken_on_top_of_itself_a_few_times_only() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    let mut severity = 50.0;
    let mut taken = 0_usize;
    for _ in 0..8 {
        taken += usize::from(bench.step(Some(severity)).is_some());
        severity *= 0.7;
        assert_eq!(bench.steps(5, Some(severity)), []);
    }
    assert_eq!(taken, REPEATS_MAX);
    assert_eq!(bench.ascent.skipped()[1], (WidenSlice, Skip::Enough));
}

#[test]
fn what_leaves_nothing_to_take_back_counts_as_well_until_the_lack_is_over() {
    let mut bench = Bench::new(Bottleneck::Memory, &[ReclaimBatch]);
    let climb = |bench: &mut Bench| {
        let mut severity = 50.0;
        let mut taken = 0_usize;
        for _ in 0..8 {
            taken += usize::from(bench.step(Some(severity)).is_some());
            severity *= 0.7;
            assert_eq!(bench.steps(10, Some(severity)), []);
        }
        taken
    };
    assert_eq!(climb(&mut bench), REPEATS_MAX);
    assert_eq!(bench.ascent.skipped()[1], (ReclaimBatch, Skip::Enough));
    assert_eq!(bench.ascent.in_force().count(), 0);
    // Nothing is taken back of it, and after a minute without the lack nothing is counted.
    assert_eq!(bench.steps(59, Some(0.5)), []);
    assert_eq!(climb(&mut bench), 0);
    assert_eq!(bench.steps(70, Some(0.5)), []);
    assert_eq!(climb(&mut bench), REPEATS_MAX);
    // Where the lack stays, it counts for an hour.
    let again = bench.steps(4000, Some(2.0));
    assert!((3400..3700).contains(&again[0].0), "{again:?}");
}

#[test]
fn a_move_is_measured_once_it_is_over_and_one_that_did_not_get_there_is_barred() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[Move]);
    bench.offers.insert(Move, offer(Move, 0.9, 0.2));
    assert_eq!(bench.step(Some(2.0)), Some(take(Move)));
    bench.leaves = true;
    assert_eq!(bench.steps(600, Some(2.0)), []);
    assert_eq!(
        bench.ascent.settling(),
        Some(Move),
        "it takes as long as it takes"
    );
    bench.leaves = false;
    let settles = u64::from(Move.slowness()) * bench.rules.settling.as_secs();
    assert_eq!(bench.steps(settles - 1, Some(2.0)), []);
    assert_eq!(bench.ascent.settling(), Some(Move));
    assert_eq!(bench.steps(BAR_MIN.as_secs(), Some(2.0)), []);
    assert_eq!(bench.last().verdict, Verdict::Spent);

    // After the bar it is tried again, and does not get there.
    let again = bench.steps(10, Some(2.0));
    assert_eq!(again.len(), 1, "{again:?}");
    bench.ascent.refuse_move(bench.now());
    assert_eq!(bench.last().verdict, Verdict::Refused);
    assert_eq!(bench.ascent.settling(), None);
    assert_eq!(bench.steps(2 * BAR_MIN.as_secs() - 1, Some(2.0)), []);
    assert_eq!(bench.steps(2, Some(2.0)).len(), 1);
    // Another rung is not meant.
    let mut other = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    other.step(Some(2.0));
    other.ascent.refuse_move(other.now());
    assert_eq!(other.ascent.settling(), Some(WidenSlice));
}

#[test]
fn what_was_tried_says_its_numbers() {
    let mut bench = Bench::new(Bottleneck::Cpu, &[WidenSlice]);
    bench.step(Some(2.0));
    bench.steps(5, Some(1.45));
    assert_eq!(
        bench.last().to_string(),
        "give it more CPUs (1.00 CPU): it was 2.00 times its limit and then 1.45, relief 50% \
         (50% predicted), kept"
    );
    let skip = Skip::NotWorth {
        relief: 0.05,
        cost: 0.2,
    };
    assert_eq!(
        skip.to_string(),
        "it would take away 5% of harm and cost 20%"
    );
}

/// Which rungs exist, what each really does, and how the load goes.
#[derive(Debug, Clone)]
struct Trace {
    bottleneck: Bottleneck,
    reliefs: Vec<Option<f64>>,
    load: Vec<(u64, Option<f64>)>,
}

fn trace() -> impl Strategy<Value = Trace> {
    let bottleneck = prop::sample::select(vec![
        Bottleneck::Cpu,
        Bottleneck::Memory,
        Bottleneck::Io,
        Bottleneck::Network,
    ]);
    let relief = prop::option::weighted(0.8, -0.5..1.0_f64);
    let severity = prop::option::weighted(0.95, 0.3..4.0_f64);
    (
        bottleneck,
        prop::collection::vec(relief, 4),
        prop::collection::vec((1..400_u64, severity), 1..60),
    )
        .prop_map(|(bottleneck, reliefs, load)| Trace {
            bottleneck,
            reliefs,
            load,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the load does and the rungs bring, nothing goes to and fro.
    #[test]
    fn no_trace_goes_to_and_fro(trace in trace()) {
        let ladder = Rung::ladder(trace.bottleneck);
        let mut bench = Bench::new(trace.bottleneck, &[]);
        let reliefs: BTreeMap<Rung, f64> = ladder
            .iter()
            .zip(&trace.reliefs)
            .filter_map(|(rung, relief)| Some((*rung, (*relief)?)))
            .collect();
        for rung in reliefs.keys() {
            bench.offers.insert(*rung, offer(*rung, 0.8, 0.01));
        }
        let mut in_force: Vec<Rung> = Vec::new();
        let mut failed_at: BTreeMap<Rung, u64> = BTreeMap::new();
        let mut turns: Vec<(u64, Turn)> = Vec::new();
        for (seconds, load) in &trace.load {
            for _ in 0..*seconds {
                let helped = in_force.iter().map(|rung| 1.0 - reliefs[rung]).product::<f64>();
                let settling = bench.ascent.settling();
                let turn = bench.step(load.map(|load| load * helped));
                let Some(turn) = turn else { continue };
                match &turn {
                    Turn::Take(rung, _) => {
                        prop_assert_eq!(settling, None, "one rung settles at a time");
                        let failed = failed_at.get(rung);
                        let barred = failed.is_some_and(|at| bench.second - at < BAR_MIN.as_secs());
                        prop_assert!(!barred, "{rung:?} failed a moment ago");
                        if rung.can_be_undone() {
                            in_force.push(*rung);
                        }
                    }
                    Turn::Undo(rung, _) => {
                        let place = in_force.iter().rposition(|taken| taken == rung);
                        prop_assert!(place.is_some(), "{rung:?} was not taken");
                        in_force.remove(place.unwrap());
                        if settling == Some(*rung) {
                            failed_at.insert(*rung, bench.second);
                        }
                    }
                }
                turns.push((bench.second, turn));
            }
            let now: Vec<Rung> = bench.ascent.in_force().map(|(rung, _)| rung).collect();
            let now: Vec<Rung> = now.into_iter().filter(|rung| rung.can_be_undone()).collect();
            prop_assert_eq!(&now, &in_force);
            prop_assert!(bench.ascent.tried.len() <= TRIED_MAX);
            prop_assert!(bench.ascent.kept.len() <= REPEATS_MAX * ladder.len());
        }
        for (place, (second, turn)) in turns.iter().enumerate() {
            let within = |seconds: u64, other: &Turn| {
                let later = turns[place + 1..].iter();
                later
                    .take_while(|(at, _)| at - second < seconds)
                    .filter(|(_, turn)| turn == other)
                    .count()
            };
            match turn {
                // A bar or a descent is between, and both double when it comes soon again.
                Turn::Undo(rung, effect) => {
                    let again = within(3600, &Turn::Take(*rung, effect.clone()));
                    prop_assert!(again <= 12 * REPEATS_MAX, "{rung:?} {again} times");
                }
                Turn::Take(..) => {}
            }
        }
    }
}
