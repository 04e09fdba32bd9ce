//! Series as hosts show them, made up.
//!
//! # Approach
//!
//! A series is a sum of parts, each present by chance and with parameters drawn over
//! wide ranges: persistent noise with changing volatility, white noise, a season
//! (waves, pulses or arches), short pulses of another period, decaying spikes, level
//! shifts, a sawtooth. Then, by chance again: idling between bursts, averaging, an
//! exponential, saturation, rounding. Magnitudes are relative to about 1, as the
//! network does not see units. The period that is told is often that of a day in
//! five-minute steps, whether the series has a season or not.
//!
//! Similar in spirit to the synthetic corpora of Dooley et al., "ForecastPFN", 2023,
//! and of Ansari et al., "Chronos", 2024, but of what workloads show.

use std::f64::consts::TAU;

use fastrand::Rng;
use forebay_forecast::lstm::History;

/// Steps of a day at five minutes.
const DAY: usize = 288;

/// A history that depends on the seed alone.
pub(crate) fn history(seed: u64, samples: usize) -> History {
    let mut rng = Rng::with_seed(seed);
    let rng = &mut rng;
    let period = if rng.f64() < 0.5 {
        DAY
    } else {
        whole(wide(rng, 10.0, 400.0))
    };
    let mut level = wide(rng, 0.3, 30.0);
    let mut y = vec![0.0; samples];
    let y = &mut y[..];
    persistent(rng, y);
    by_chance(rng, 0.5, y, white);
    by_chance(rng, 0.6, y, |rng, y| season(rng, y, period));
    by_chance(rng, 0.3, y, short_pulses);
    by_chance(rng, 0.5, y, spikes);
    by_chance(rng, 0.45, y, level_shifts);
    by_chance(rng, 0.15, y, sawtooth);
    if rng.f64() < 0.2 {
        level *= 0.05;
        bursts(rng, y);
    }
    by_chance(rng, 0.2, y, average);
    by_chance(rng, 0.2, y, |_, y| {
        y.iter_mut().for_each(|v| *v = (0.5 * *v).min(12.0).exp());
    });
    y.iter_mut().for_each(|v| *v = (*v + level).max(0.0));
    by_chance(rng, 0.2, y, |_, y| saturate(y));
    by_chance(rng, 0.2, y, round);
    History {
        values: y.to_vec(),
        period: (rng.f64() < 0.8).then_some(period),
    }
}

fn by_chance(rng: &mut Rng, chance: f64, y: &mut [f64], part: impl FnOnce(&mut Rng, &mut [f64])) {
    if rng.f64() < chance {
        part(rng, y);
    }
}

/// An autoregression, sometimes with a moving average, from white to a random walk.
fn persistent(rng: &mut Rng, y: &mut [f64]) {
    const PERSISTENCE: [f64; 9] = [0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995, 1.0];
    let persistence = PERSISTENCE[rng.usize(..PERSISTENCE.len())];
    let echo = if rng.bool() { rng.f64() - 0.5 } else { 0.0 };
    let restless = if rng.f64() < 0.4 { 0.1 } else { 0.0 };
    let shock = wide(rng, 0.02, 1.0) * (1.0 - persistence * persistence).max(0.02).sqrt();
    let (mut state, mut before, mut log_volatility) = (0.0, 0.0, 0.0_f64);
    for v in y {
        let now = heavy(rng);
        log_volatility = 0.98 * log_volatility + restless * normal(rng);
        state = persistence * state + shock * log_volatility.exp() * (now + echo * before);
        before = now;
        *v += state;
    }
}

fn white(rng: &mut Rng, y: &mut [f64]) {
    let scale = wide(rng, 0.01, 0.6);
    y.iter_mut().for_each(|v| *v += scale * heavy(rng));
}

/// Waves, pulses or arches with a period, of changing height and, perhaps, a wandering
/// beginning.
fn season(rng: &mut Rng, y: &mut [f64], period: usize) {
    let amplitude = wide(rng, 0.2, 4.0);
    let kind = rng.u8(0..3);
    let waves = rng.u8(1..4);
    let phases = [rng.f64() * TAU, rng.f64() * TAU, rng.f64() * TAU];
    let duty = 0.02 + 0.3 * rng.f64();
    let jitter = if rng.bool() { 0.1 * rng.f64() } else { 0.0 };
    let vary = 0.3 * rng.f64();
    let start = rng.usize(..period);
    let (mut height, mut late) = (1.0, 0.0);
    for (t, v) in (start..).zip(y) {
        if t % period == 0 {
            height = (1.0 + vary * normal(rng)).max(0.0);
            late = jitter * (rng.f64() - 0.5);
        }
        let phase = (t % period) as f64 / period as f64;
        let shifted = (phase + late).rem_euclid(1.0);
        *v += amplitude
            * match kind {
                0 => {
                    let wave = |k: u8| {
                        let order = f64::from(k + 1);
                        (TAU * order * phase + phases[usize::from(k)]).sin() / order
                    };
                    (0..waves).map(wave).sum::<f64>() * (0.7 + 0.3 * height)
                }
                1 if shifted < duty => height,
                1 => 0.0,
                _ => height * (1.0 - (2.0 * shifted - 1.0).abs()).powi(2),
            };
    }
}

fn short_pulses(rng: &mut Rng, y: &mut [f64]) {
    let period = whole(wide(rng, 4.0, 90.0));
    let amplitude = wide(rng, 0.2, 4.0);
    let width = rng.usize(1..(period / 3).max(2));
    for v in y.chunks_mut(period).flat_map(|c| c.iter_mut().take(width)) {
        *v += amplitude;
    }
}

fn spikes(rng: &mut Rng, y: &mut [f64]) {
    let rate = wide(rng, 0.002, 0.1);
    let kept = [0.0, 0.0, 0.5, 0.8, 0.95][rng.usize(..5)];
    let height = wide(rng, 0.5, 8.0);
    let mut state = 0.0;
    for v in y {
        state *= kept;
        if rng.f64() < rate {
            // A bounded Pareto tail.
            state += height * rng.f64().max(0.02).powf(-0.4) * rng.f64();
        }
        *v += state;
    }
}

fn level_shifts(rng: &mut Rng, y: &mut [f64]) {
    let rate = wide(rng, 0.001, 0.05);
    let levels: Vec<f64> = (0..rng.u8(2..5)).map(|_| wide(rng, 0.2, 5.0)).collect();
    let mut current = 0;
    for v in y {
        if rng.f64() < rate {
            current = rng.usize(..levels.len());
        }
        *v += levels[current];
    }
}

fn sawtooth(rng: &mut Rng, y: &mut [f64]) {
    let slope = wide(rng, 0.003, 0.1);
    let most = wide(rng, 1.0, 10.0);
    let mut state = 0.0;
    for v in y {
        state += slope;
        if state > most * (0.7 + 0.3 * rng.f64()) {
            state = 0.0;
        }
        *v += state;
    }
}

/// Nearly nothing, but for bursts.
fn bursts(rng: &mut Rng, y: &mut [f64]) {
    let begin = wide(rng, 0.005, 0.1);
    let end = wide(rng, 0.02, 0.5);
    let mut busy = false;
    for v in y {
        if rng.f64() < if busy { end } else { begin } {
            busy = !busy;
        }
        if !busy {
            *v *= 0.02;
        }
    }
}

/// As if each sample were the mean over an interval.
fn average(rng: &mut Rng, y: &mut [f64]) {
    let width = rng.usize(3..7);
    for t in (width - 1..y.len()).rev() {
        let sum: f64 = y[t + 1 - width..=t].iter().sum();
        y[t] = sum / width as f64;
    }
}

/// Cuts the highest twentieth off.
fn saturate(y: &mut [f64]) {
    let mut sorted = y.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let most = sorted[y.len() * 95 / 100];
    y.iter_mut().for_each(|v| *v = v.min(most));
}

fn round(rng: &mut Rng, y: &mut [f64]) {
    let step = 0.1 + 0.4 * rng.f64();
    y.iter_mut().for_each(|v| *v = (*v / step).round() * step);
}

fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * rng.f64().max(1e-12).ln()).sqrt() * (TAU * rng.f64()).cos()
}

/// Normal, but one in twenty is up to five times as large.
fn heavy(rng: &mut Rng) -> f64 {
    let large = if rng.f64() < 0.05 {
        1.0 + 4.0 * rng.f64()
    } else {
        1.0
    };
    normal(rng) * large
}

/// Uniform in the logarithm.
fn wide(rng: &mut Rng, least: f64, most: f64) -> f64 {
    least * (most / least).powf(rng.f64())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "periods are small and positive"
)]
fn whole(value: f64) -> usize {
    value as usize
}
