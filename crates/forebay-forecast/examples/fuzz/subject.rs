//! What is thrown at, and what is thrown.

use std::sync::Arc;

use fastrand::Rng;
use forebay_forecast::arima::{Arima, OnlineArima, OnlineOptions, Search};
use forebay_forecast::baseline::{Histogram, HistogramOptions, LastValue, MovingMax};
use forebay_forecast::lstm::{History, Layout, Lstm, Progress, Trainer, TrainerConfig, Weights};
use forebay_forecast::{
    Ensemble, Forecaster, Joint, Mixture, MixtureOptions, Quantiles, Seasonal, Series,
    SeriesOptions, Smoothing, Target, VALUE_MAX, Window,
};

/// Calls of one case, at most.
const CALLS_MAX: usize = 700;
/// Samples that an ARIMA model of a case looks at: fits are to take milliseconds.
const FITTED_MAX: usize = 120;

/// One case. What did not hold, if something did not.
pub(crate) fn run(case: u64) -> Result<(), String> {
    let mut random = Rng::with_seed(case);
    match random.u8(..12) {
        0 => bytes(&mut random),
        1 => joint(&mut random),
        2 => series(&mut random),
        3 | 4 => ensemble(&mut random),
        5 => training(&mut random),
        6 => online_arima(&mut random),
        7 => arima(&mut random),
        _ => one(&mut random),
    }
}

/// A sample as hosts and their faults give them, by a habit that lasts a while.
struct Load {
    habit: u8,
    level: f64,
}

impl Load {
    fn new(random: &mut Rng) -> Self {
        let mut load = Self {
            habit: 0,
            level: 0.0,
        };
        load.change(random);
        load
    }

    fn change(&mut self, random: &mut Rng) {
        self.habit = random.u8(..8);
        let exponent = random.i32(-12..18);
        self.level = 10_f64.powi(exponent) * random.f64();
    }

    fn next(&mut self, random: &mut Rng) -> Option<f64> {
        if random.u8(..100) == 0 {
            self.change(random);
        }
        match (self.habit, random.u8(..60)) {
            (_, 0) => None,
            (_, 1) => Some(strange(random)),
            (0, _) => Some(0.0),
            (1, _) => Some(self.level),
            (2, _) => None,
            (3, spike) => Some(if spike == 2 { VALUE_MAX } else { self.level }),
            (4, _) => Some(strange(random)),
            _ => Some(self.level * (1.0 + random.f64())),
        }
    }
}

fn strange(random: &mut Rng) -> f64 {
    let all = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        -1.0,
        -0.0,
        f64::MIN_POSITIVE,
        f64::from_bits(1),
        VALUE_MAX,
        2.0 * VALUE_MAX,
        f64::MAX,
        f64::from_bits(random.u64(..)),
    ];
    all[random.usize(..all.len())]
}

fn target(random: &mut Rng) -> Target {
    if random.bool() {
        Target::Value
    } else {
        Target::Peak
    }
}

fn sound(name: &str, answer: Option<Quantiles>) -> Result<(), String> {
    let Some(answer) = answer else { return Ok(()) };
    let levels = answer.to_array();
    let fine = levels.iter().all(|q| q.is_finite() && *q >= 0.0) && levels.is_sorted();
    if fine {
        Ok(())
    } else {
        Err(format!("{name} answered {levels:?}"))
    }
}

/// Asks about a horizon that may be far from what was configured.
fn ask(model: &dyn Forecaster, random: &mut Rng) -> Result<(), String> {
    let steps = match random.u8(..4) {
        0 => random.usize(..3),
        1 => random.usize(..5000),
        _ => random.usize(..100),
    };
    let target = target(random);
    sound(model.name(), model.forecast_of(target, steps))?;
    let score = model.score(target, steps);
    match score {
        Some(score) if !score.pinball.is_finite() => {
            Err(format!("{} scored {score:?}", model.name()))
        }
        _ => Ok(()),
    }
}

fn horizons(random: &mut Rng, most: usize) -> Vec<usize> {
    let mut horizons: Vec<usize> = (0..random.usize(1..=4))
        .map(|_| random.usize(1..=most))
        .collect();
    horizons.sort_unstable();
    horizons.dedup();
    horizons
}

fn mixture_options(random: &mut Rng) -> MixtureOptions {
    MixtureOptions {
        targets: vec![Target::Value, Target::Peak],
        horizons: (0..random.usize(..4))
            .map(|_| random.usize(..200))
            .collect(),
        history_max: random.usize(..400),
        cycle: random.bool().then(|| random.usize(..300)),
    }
}

fn period(random: &mut Rng) -> Option<usize> {
    random.bool().then(|| random.usize(..1200))
}

fn one(random: &mut Rng) -> Result<(), String> {
    let horizons = horizons(random, 60);
    let mut model: Box<dyn Forecaster> = match random.u8(..8) {
        0 => Box::new(Window::new(&horizons)),
        1 => Box::new(Smoothing::new(&horizons, random.usize(1..300))),
        2 => Box::new(Seasonal::new(&horizons, random.usize(1..300))),
        3 => Box::new(LastValue::new(&horizons, random.usize(..300))),
        4 => Box::new(MovingMax::new(random.usize(..300))),
        5 => Box::new(Histogram::new(HistogramOptions {
            reference: strange(random),
            half_life: strange(random),
        })),
        6 => Box::new(Lstm::new(Arc::new(Weights::pretrained()), period(random))),
        _ => Box::new(Mixture::new(&mixture_options(random))),
    };
    let mut load = Load::new(random);
    for _ in 0..random.usize(..CALLS_MAX) {
        match load.next(random) {
            Some(value) => model.update(value),
            None => model.update_gap(),
        }
        ask(&*model, random)?;
    }
    Ok(())
}

fn series(random: &mut Rng) -> Result<(), String> {
    let history_max = random.usize(16..300);
    let mut series = Series::new(SeriesOptions {
        horizons: horizons(random, history_max / 2),
        history_max,
        request: random.bool().then(|| strange(random)),
    });
    let mut load = Load::new(random);
    for _ in 0..random.usize(..CALLS_MAX) {
        match load.next(random) {
            Some(value) => series.update(value),
            None => series.update_gap(),
        }
        let steps = random.usize(..200);
        sound("series", series.forecast(steps).map(|f| f.quantiles))?;
        sound("series", series.peak(steps).map(|f| f.quantiles))?;
    }
    Ok(())
}

fn ensemble(random: &mut Rng) -> Result<(), String> {
    let weights = Arc::new(Weights::pretrained());
    let some = random.bool().then(|| weights.clone());
    let mut options = mixture_options(random);
    options.horizons.push(random.usize(1..60));
    options.history_max = random.usize(16..200);
    let mut ensemble = Ensemble::new(&options, some);
    let mut load = Load::new(random);
    let mut waiting = None;
    for _ in 0..random.usize(..CALLS_MAX) {
        match load.next(random) {
            Some(value) => ensemble.update(value),
            None => ensemble.update_gap(),
        }
        match random.u8(..40) {
            0 => ensemble.set_weights(weights.clone()),
            // A fit of a long history takes a second; one is asked for, run late or never.
            1 if waiting.is_none() => waiting = ensemble.arima().fit_request(),
            2 => {
                if let Some(request) = waiting.take() {
                    ensemble.arima().adopt(request.run()).ok();
                }
            }
            3 => drop(ensemble.explain(target(random), random.usize(..100))),
            _ => {}
        }
        ask(&ensemble, random)?;
    }
    Ok(())
}

fn online_arima(random: &mut Rng) -> Result<(), String> {
    let mut arima = OnlineArima::new(OnlineOptions {
        horizons: horizons(random, 40),
        search: Search {
            period: period(random),
            history_max: random.usize(16..FITTED_MAX),
            ..Search::default()
        },
        samples_min: random.usize(..100),
        refit_steps: random.usize(40..100),
        refits_per_search: random.usize(..3),
    });
    let mut load = Load::new(random);
    for _ in 0..random.usize(..CALLS_MAX / 2) {
        match load.next(random) {
            Some(value) => arima.update(value),
            None => arima.update_gap(),
        }
        match random.u8(..60) {
            0 => arima.set_period(period(random)),
            1 => drop(arima.fit_now()),
            _ => {}
        }
        ask(&arima, random)?;
    }
    Ok(())
}

fn arima(random: &mut Rng) -> Result<(), String> {
    let mut load = Load::new(random);
    let samples: Vec<f64> = (0..random.usize(..FITTED_MAX))
        .map(|_| load.next(random).unwrap_or(0.0))
        .collect();
    let search = Search {
        period: period(random),
        ..Search::default()
    };
    let Ok(mut model) = Arima::fit_auto(&samples, search) else {
        return Ok(());
    };
    for _ in 0..random.usize(..50) {
        match load.next(random) {
            Some(value) => model.observe(value),
            None => model.observe_gap(),
        }
        let path = model.forecast_path(random.usize(..50));
        let fine = |p: &forebay_forecast::arima::Prediction| {
            p.mean.is_finite() && p.variance.is_finite() && p.variance >= 0.0
        };
        if !path.iter().all(fine) {
            return Err(format!("ARIMA answered {path:?}"));
        }
    }
    Ok(())
}

fn joint(random: &mut Rng) -> Result<(), String> {
    let mut joint = Joint::new(target(random), random.usize(..80));
    let mut loads: Vec<Load> = (0..random.usize(..6)).map(|_| Load::new(random)).collect();
    for _ in 0..random.usize(..CALLS_MAX) {
        if random.u8(..50) == 0 {
            loads.push(Load::new(random));
        }
        let samples: Vec<Option<f64>> = loads
            .iter_mut()
            .map(|load| {
                load.next(random)
                    .filter(|&value| forebay_forecast::is_plausible(value))
            })
            .collect();
        let forecasts: Vec<Option<Quantiles>> = loads
            .iter_mut()
            .map(|load| {
                let level = load.next(random)?;
                Quantiles::new([level, level * random.f64(), 2.0 * level, 3.0 * level])
            })
            .collect();
        joint.step(&samples, &forecasts);
        sound("joint", joint.sum(&forecasts))?;
    }
    Ok(())
}

/// Weights that were spoilt are refused or answer soundly.
fn bytes(random: &mut Rng) -> Result<(), String> {
    let mut bytes = Weights::pretrained().to_bytes();
    match random.u8(..4) {
        0 => bytes = (0..random.usize(..300)).map(|_| random.u8(..)).collect(),
        1 => bytes.truncate(random.usize(..=bytes.len())),
        2 => bytes.extend((0..random.usize(1..50)).map(|_| 0)),
        _ => {
            for _ in 0..random.usize(1..8) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
        }
    }
    let Ok(weights) = Weights::from_bytes(&bytes) else {
        return Ok(());
    };
    let mut lstm = Lstm::new(Arc::new(weights), period(random));
    let mut load = Load::new(random);
    for _ in 0..100 {
        if let Some(value) = load.next(random) {
            lstm.update(value);
        }
        ask(&lstm, random)?;
    }
    Ok(())
}

fn training(random: &mut Rng) -> Result<(), String> {
    let mut load = Load::new(random);
    let histories: Vec<History> = (0..random.usize(..3))
        .map(|_| History {
            values: (0..random.usize(..300))
                .map(|_| load.next(random).unwrap_or(f64::NAN))
                .collect(),
            period: period(random),
        })
        .collect();
    let Some(layout) = Layout::new(&[1, random.usize(2..20)], random.usize(1..8)) else {
        return Ok(());
    };
    let mut config = TrainerConfig::new(layout);
    (config.window, config.batch, config.batches) = (32, 2, 2);
    (config.epochs_max, config.judged_max) = (2, 8);
    let mut trainer = Trainer::new(&config, &histories, random.u64(..));
    // More than that is an endless one.
    for _ in 0..10_000 {
        if let Progress::Done(_) = trainer.advance(random.usize(1..500)) {
            break;
        }
    }
    let Some(trained) = trainer.finish() else {
        return Ok(());
    };
    let mut lstm = Lstm::new(Arc::new(trained.weights), None);
    for _ in 0..100 {
        if let Some(value) = load.next(random) {
            lstm.update(value);
        }
        ask(&lstm, random)?;
    }
    Ok(())
}
