//! The global LSTM: what it learns, when it stops, what it refuses, what always holds.

mod samples;

use std::f64::consts::TAU;
use std::sync::Arc;

use forebay_forecast::lstm::{
    History, Layout, Lstm, Progress, State, Trained, Trainer, TrainerConfig, Verdict, Weights,
    WeightsError,
};
use forebay_forecast::{Forecaster, Target};
use proptest::prelude::*;
use samples::sample;

fn config(horizons: &[usize]) -> TrainerConfig {
    let layout = Layout::new(horizons, 8).expect("a sound layout");
    TrainerConfig {
        window: 24,
        warm_up: 4,
        batch: 4,
        batches: 24,
        epochs_max: 12,
        learning_rate: 2e-2,
        judged_max: 48,
        ..TrainerConfig::new(layout)
    }
}

/// Runs a job to its end, in portions.
fn train(mut trainer: Trainer) -> (Verdict, Option<Trained>) {
    for _ in 0..1_000_000 {
        if let Progress::Done(verdict) = trainer.advance(1000) {
            return (verdict, trainer.finish());
        }
    }
    panic!("no end");
}

/// Weights of a short training on noise: good for nothing, but whole.
fn some_weights() -> Weights {
    let mut rng = fastrand::Rng::with_seed(5);
    let values = (0..600).map(|_| 3.0 + rng.f64()).collect();
    let history = History {
        values,
        period: None,
    };
    let short = TrainerConfig {
        epochs_max: 3,
        ..config(&[1, 4])
    };
    let (_, trained) = train(Trainer::new(&short, &[history], 1));
    trained.expect("noise about a level is learnt").weights
}

/// Mean pinball losses at 0.5 one step ahead over the last `judged` samples: the
/// network's and the last value's.
fn losses(weights: &Weights, history: &History, judged: usize) -> (f64, f64) {
    let mut state = State::new(weights, history.period);
    let (mut own, mut naive, mut last) = (0.0, 0.0, 0.0);
    for (step, &value) in history.values.iter().enumerate() {
        if step + judged >= history.values.len() {
            let median = state.forecast(weights, 0).expect("warm").q50();
            own += (value - median).abs() / 2.0;
            naive += (value - last).abs() / 2.0;
        }
        state.step(weights, value);
        last = value;
    }
    (own, naive)
}

fn noisy_sine(seed: u64, samples: usize) -> History {
    let mut rng = fastrand::Rng::with_seed(seed);
    let wave = |t: f64| 10.0 + 3.0 * (t * TAU / 12.0).sin();
    let values = (0..samples)
        .map(|t| wave(t as f64) + 0.3 * (rng.f64() - 0.5))
        .collect();
    History {
        values,
        period: None,
    }
}

/// The next value depends on the one two steps ago, by a logistic map: no linear
/// model of the past explains any of it.
fn two_steps_ago(seed: u64, samples: usize) -> History {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut values = vec![rng.f64(), rng.f64()];
    while values.len() < samples {
        let before = values[values.len() - 2];
        let next: f64 = 3.9 * before * (1.0 - before) + 0.01 * (rng.f64() - 0.5);
        values.push(next.clamp(0.01, 0.99));
    }
    History {
        values,
        period: None,
    }
}

#[test]
fn it_learns_a_noisy_sine() {
    let histories: Vec<_> = (0..3).map(|seed| noisy_sine(seed, 800)).collect();
    let (verdict, trained) = train(Trainer::new(&config(&[1]), &histories, 1));
    assert_eq!(verdict, Verdict::Better);
    let (own, naive) = losses(&trained.unwrap().weights, &noisy_sine(9, 800), 400);
    assert!(own < 0.15 * naive, "{own} against {naive}");
}

#[test]
fn it_learns_what_no_linear_model_can() {
    let histories: Vec<_> = (0..4).map(|seed| two_steps_ago(seed, 1500)).collect();
    let config = TrainerConfig {
        epochs_max: 30,
        patience: 20,
        ..config(&[1])
    };
    let (verdict, trained) = train(Trainer::new(&config, &histories, 1));
    assert_eq!(verdict, Verdict::Better);
    let trained = trained.unwrap();
    let unseen = two_steps_ago(9, 1500);
    let (own, naive) = losses(&trained.weights, &unseen, 700);
    assert!(own < 0.15 * naive, "{own} against the last value's {naive}");
    // The constant that fits best, which is what a linear fit comes to here.
    let mut sorted = unseen.values[800..].to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let median = sorted[350];
    let flat: f64 = sorted.iter().map(|v| (v - median).abs() / 2.0).sum();
    assert!(own < 0.2 * flat, "{own} against a constant's {flat}");
    let origin = trained.weights.origin();
    assert!(origin.loss_after < 0.5 * origin.loss_before, "{origin:?}");
}

#[test]
fn training_stops_early_when_there_is_nothing_to_learn() {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut walk = 50.0;
    let values = (0..1200)
        .map(|_| {
            walk += rng.f64() - 0.5;
            walk
        })
        .collect();
    let history = History {
        values,
        period: None,
    };
    let long = TrainerConfig {
        epochs_max: 400,
        patience: 4,
        ..config(&[1, 4])
    };
    let mut trainer = Trainer::new(&long, &[history], 3);
    let mut epochs = 0;
    while let Progress::Working { epoch, .. } = trainer.advance(1000) {
        epochs = epoch;
    }
    assert!(epochs < 100, "{epochs} epochs");
}

#[test]
fn an_incumbent_stays_when_the_newcomer_is_worse() {
    let histories: Vec<_> = (0..2).map(|seed| noisy_sine(seed, 800)).collect();
    let (_, first) = train(Trainer::new(&config(&[1, 4]), &histories, 1));
    let incumbent = first.unwrap().weights;
    // Steps so wide that they can only lead away.
    let wild = TrainerConfig {
        learning_rate: 1.0,
        gradient_max: 1e6,
        epochs_max: 3,
        ..config(&[1, 4])
    };
    let job = Trainer::new(&wild, &histories, 2).improving(&incumbent);
    let (verdict, trained) = train(job);
    assert!(
        matches!(verdict, Verdict::NotBetter | Verdict::Diverged),
        "{verdict:?}"
    );
    assert!(trained.is_none());
}

#[test]
fn an_incumbent_is_replaced_by_its_better_successor() {
    let histories: Vec<_> = (0..2).map(|seed| noisy_sine(seed, 800)).collect();
    let brief = TrainerConfig {
        epochs_max: 1,
        ..config(&[1, 4])
    };
    let (_, first) = train(Trainer::new(&brief, &histories, 1));
    let incumbent = first.unwrap().weights;
    let job = Trainer::new(&config(&[1, 4]), &histories, 2).improving(&incumbent);
    let (verdict, second) = train(job);
    assert_eq!(verdict, Verdict::Better);
    let origin = second.unwrap().weights.origin();
    assert_eq!(origin.version, 2);
    assert!(origin.loss_after < origin.loss_before, "{origin:?}");
}

#[test]
fn too_little_to_learn_from_is_said() {
    fn check(histories: &[History]) {
        let (verdict, trained) = train(Trainer::new(&config(&[1, 4]), histories, 1));
        assert_eq!(verdict, Verdict::TooLittle);
        assert!(trained.is_none());
    }
    let of = |values: Vec<f64>| History {
        values,
        period: None,
    };
    check(&[]);
    check(&[of(Vec::new())]);
    check(&[of(vec![1.0; 50]), of(vec![f64::NAN; 5000])]);
}

#[test]
fn portions_do_not_change_the_result() {
    let histories = [noisy_sine(1, 600)];
    let brief = TrainerConfig {
        epochs_max: 2,
        ..config(&[1, 4])
    };
    let result = |work: usize| {
        let mut trainer = Trainer::new(&brief, &histories, 7);
        while !matches!(trainer.advance(work), Progress::Done(_)) {}
        trainer.finish().unwrap().weights
    };
    assert_eq!(result(1), result(100_000));
    let mut unfinished = Trainer::new(&brief, &histories, 7);
    unfinished.advance(2000);
    assert!(unfinished.finish().is_none());
}

#[test]
fn the_weights_of_the_crate_can_be_read() {
    let weights = Weights::pretrained();
    assert_eq!(weights.layout().horizons(), [1, 12, 60]);
    let origin = weights.origin();
    assert!(origin.loss_after < 0.95 * origin.loss_before, "{origin:?}");
}

#[test]
fn weights_survive_their_bytes() {
    let weights = some_weights();
    let bytes = weights.to_bytes();
    assert_eq!(Weights::from_bytes(&bytes), Ok(weights.clone()));
    let numbered = weights.clone().numbered(77);
    assert_eq!((numbered.version(), numbered == weights), (77, false));
    assert_eq!(numbered.numbered(weights.version()), weights);
    let check = |change: &dyn Fn(&mut Vec<u8>), expected| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        assert_eq!(Weights::from_bytes(&bytes), Err(expected));
    };
    check(&|b| b.clear(), WeightsError::Format);
    check(&|b| b[7] = 0, WeightsError::Format);
    check(&|b| b[7] = 2, WeightsError::Newer);
    check(&|b| b.truncate(12), WeightsError::Length);
    check(&|b| b.truncate(b.len() - 4), WeightsError::Length);
    check(&|b| b.push(0), WeightsError::Length);
    check(&|b| b[8] = 200, WeightsError::Layout);
    check(&|b| b[100] ^= 1, WeightsError::Checksum);
}

#[test]
fn the_forecaster_answers_and_is_scored() {
    let mut lstm = Lstm::new(Arc::new(some_weights()), None);
    assert!(lstm.forecast(1).is_none() && lstm.score(Target::Value, 1).is_none());
    let mut rng = fastrand::Rng::with_seed(8);
    for step in 0..400 {
        if step % 50 == 9 {
            lstm.update_gap();
        } else {
            lstm.update(5.0 + rng.f64());
        }
    }
    assert_eq!(lstm.name(), "lstm");
    for steps in [1, 2, 4, 16] {
        let value = lstm.forecast(steps).unwrap();
        let peak = lstm.forecast_peak(steps).unwrap();
        assert!((4.5..6.5).contains(&value.q50()), "{steps}: {value:?}");
        assert!((4.5..7.5).contains(&peak.q95()), "{steps}: {peak:?}");
        for target in [Target::Value, Target::Peak] {
            let score = lstm.score(target, steps).unwrap();
            assert!(score.pinball < 0.2 && score.samples > 60, "{score:?}");
        }
    }
    lstm.set_weights(Arc::new(some_weights()));
    assert!(lstm.score(Target::Value, 1).is_some());
}

#[test]
fn calm_series_forecast_themselves() {
    let weights = some_weights();
    for constant in [0.0, 7.0, 1e12] {
        let mut state = State::new(&weights, Some(24));
        for _ in 0..3000 {
            state.step(&weights, constant);
        }
        for target in 0..3 {
            let levels = state.forecast(&weights, target).unwrap().to_array();
            let close = |level: &f64| (level - constant).abs() <= 1e-4 * constant + 1e-6;
            assert!(levels.iter().all(close), "{constant}: {levels:?}");
        }
    }
}

/// Kilobytes or shares: the network does not see the difference.
#[test]
fn the_unit_does_not_matter() {
    let weights = Weights::pretrained();
    let answers = |unit: f64| {
        let mut state = State::new(&weights, Some(48));
        let mut rng = fastrand::Rng::with_seed(6);
        for step in 0..600 {
            let wave = if step % 48 < 9 { 4.0 } else { 1.0 };
            state.step(&weights, unit * (wave + rng.f64()));
        }
        [0, 1, 2, 3, 4].map(|target| state.forecast(&weights, target).unwrap().to_array())
    };
    let one = answers(1.0);
    for unit in [1.0 / 1024.0, 1000.0, 1048576.0] {
        for (a, b) in one.iter().flatten().zip(answers(unit).iter().flatten()) {
            // Errors are kept to three digits.
            assert!((a - b / unit).abs() < 4e-3 * a, "{unit}: {a} and {b}");
        }
    }
}

/// A season that is known is seen coming.
#[test]
fn a_known_season_is_expected() {
    let weights = Weights::pretrained();
    let mut state = State::new(&weights, Some(48));
    let mut rng = fastrand::Rng::with_seed(6);
    // 40 of 48 passed: the burst begins in 8 steps, and lasts 8.
    for step in 0..48 * 12 + 40 {
        let wave = if step % 48 < 8 { 9.0 } else { 1.0 };
        state.step(&weights, wave + 0.2 * rng.f64());
    }
    let next = state.forecast(&weights, 0).unwrap();
    let later = state.forecast(&weights, 1).unwrap();
    let peak = state.forecast(&weights, 3).unwrap();
    assert!(next.q50() < 2.0, "{next:?}");
    assert!(later.q50() > 5.0, "{later:?}");
    assert!(peak.q50() > 7.0, "{peak:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn forecasts_are_sound_whatever_comes(
        samples in prop::collection::vec(sample(), 0..300),
        period in prop::option::of(0..2000_usize),
        steps in 0..2000_usize,
    ) {
        let weights = some_weights_once();
        let mut lstm = Lstm::new(Arc::clone(&weights), period);
        let (mut highest, mut seen) = (0.0_f64, 0);
        for sample in samples {
            lstm.update(sample);
            if forebay_forecast::is_plausible(sample) {
                highest = highest.max(sample);
                seen += 1;
            }
            for steps in [1, 4, steps] {
                for quantiles in [lstm.forecast(steps), lstm.forecast_peak(steps)] {
                    prop_assert_eq!(quantiles.is_some(), seen >= 16);
                    let Some(quantiles) = quantiles else { continue };
                    let levels = quantiles.to_array();
                    prop_assert!(levels.iter().all(|l| l.is_finite() && *l >= 0.0), "{:?}", levels);
                    prop_assert!(levels.is_sorted(), "{:?}", levels);
                    if steps <= 4 {
                        prop_assert!(levels[3] <= 2.0 * highest * (1.0 + 1e-6), "{:?}", levels);
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_are_weights_or_an_error(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        cut in 0..6000_usize,
        flips in prop::collection::vec((0..6000_usize, any::<u8>()), 0..4),
    ) {
        prop_assert!(Weights::from_bytes(&noise).is_err());
        let weights = some_weights_once();
        let mut bytes = weights.to_bytes();
        let headed: Vec<u8> = bytes[..8].iter().copied().chain(noise).collect();
        prop_assert!(Weights::from_bytes(&headed).is_err());
        let whole = bytes.len();
        bytes.truncate(cut);
        prop_assert_eq!(Weights::from_bytes(&bytes).is_ok(), cut >= whole);
        let mut changed = weights.to_bytes();
        for (place, mask) in flips {
            let place = place % changed.len();
            changed[place] ^= mask;
        }
        let same = changed == weights.to_bytes();
        prop_assert_eq!(Weights::from_bytes(&changed).is_ok(), same);
    }

    /// Histories of any content end in a verdict.
    #[test]
    fn training_ends_whatever_the_histories(
        values in prop::collection::vec(sample(), 0..400),
        period in prop::option::of(0..100_usize),
        seed in any::<u64>(),
    ) {
        let brief = TrainerConfig {
            epochs_max: 1,
            batches: 1,
            batch: 2,
            window: 16,
            warm_up: 4,
            ..config(&[1, 4])
        };
        let (verdict, trained) = train(Trainer::new(&brief, &[History { values, period }], seed));
        prop_assert_eq!(trained.is_some(), verdict == Verdict::Better);
        if let Some(trained) = trained {
            prop_assert!(Weights::from_bytes(&trained.weights.to_bytes()).is_ok());
        }
    }
}

fn some_weights_once() -> Arc<Weights> {
    static ONCE: std::sync::OnceLock<Arc<Weights>> = std::sync::OnceLock::new();
    Arc::clone(ONCE.get_or_init(|| Arc::new(some_weights())))
}
