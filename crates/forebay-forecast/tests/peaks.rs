//! The most that comes within a window, beside the rules that others size by.

use forebay_forecast::baseline::{Histogram, HistogramOptions, MovingMax};
use forebay_forecast::{Forecaster, Mixture, MixtureOptions, Target};

/// Steps of a window, of a day, and of a series of which the last part is judged.
const WINDOW: usize = 60;
const DAY: usize = 288;
const STEPS: usize = 2800;
const WARM_UP: usize = 1000;

/// Loss at 0.95, and how often that bound was kept.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    lost: f64,
    kept: f64,
}

fn noise(random: &mut fastrand::Rng) -> f64 {
    (0..6).map(|_| random.f64() - 0.5).sum()
}

/// A load of one of several kinds.
fn load(kind: usize, random: &mut fastrand::Rng) -> Vec<f64> {
    let (mut state, mut left, mut level) = (0.0, 0_u32, 30.0);
    let step = |step: usize| {
        let shock = noise(random);
        let value = match kind {
            // Persistent noise.
            0 => {
                state = 0.95 * state + shock;
                30.0 + state
            }
            // A day.
            1 => {
                state = 0.6 * state + shock;
                let day = if step % DAY < DAY / 3 { 15.0 } else { 0.0 };
                20.0 + day + state
            }
            // Bursts at no time that can be known.
            2 => {
                left = left.saturating_sub(1);
                if left == 0 && random.u32(..100) == 0 {
                    left = random.u32(5..25);
                }
                10.0 + shock + if left > 0 { 40.0 } else { 0.0 }
            }
            // Levels.
            3 => {
                if random.u32(..400) == 0 {
                    level = 10.0 + 60.0 * random.f64();
                }
                level + 2.0 * shock
            }
            // Heavy tails.
            _ => {
                state = 0.7 * state + random.f64().max(1e-9).powf(-1.0 / 2.2);
                5.0 + state
            }
        };
        f64::max(value, 0.0)
    };
    (0..STEPS).map(step).collect()
}

fn judge(model: &mut dyn Forecaster, series: &[f64]) -> Judged {
    let mut all = Judged::default();
    let mut count = 0.0;
    for (now, &value) in series.iter().enumerate() {
        model.update(value);
        let ahead = now + 1..=now + WINDOW;
        let (Some(ahead), true) = (series.get(ahead), now >= WARM_UP) else {
            continue;
        };
        let peak = ahead.iter().copied().fold(0.0, f64::max);
        let bound = model.forecast_peak(WINDOW).expect("it is warm").q95();
        let over = peak - bound;
        all.lost += (0.95 * over).max(-0.05 * over);
        all.kept += f64::from(u8::from(peak <= bound));
        count += 1.0;
    }
    Judged {
        lost: all.lost / count,
        kept: all.kept / count,
    }
}

#[test]
fn bounds_of_peaks_lose_less_than_what_others_size_by_and_hold_more_often() {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut ratios, mut kept, mut kinds) = ([0.0, 0.0], [0.0; 3], 0.0);
    for kind in 0..5 {
        let series = load(kind, &mut random);
        let greatest = series[..WARM_UP].iter().copied().fold(0.0, f64::max);
        let mut mixture = Mixture::new(&MixtureOptions {
            targets: vec![Target::Peak],
            horizons: vec![WINDOW],
            cycle: Some(DAY),
            ..MixtureOptions::default()
        });
        let mut histogram = Histogram::new(HistogramOptions {
            reference: greatest,
            half_life: 288.0,
        });
        let mut maximum = MovingMax::new(DAY);
        let ours = judge(&mut mixture, &series);
        let others = [judge(&mut histogram, &series), judge(&mut maximum, &series)];
        for (ratio, other) in ratios.iter_mut().zip(others) {
            *ratio += (ours.lost / other.lost).ln();
        }
        for (kept, one) in kept.iter_mut().zip([ours, others[0], others[1]]) {
            *kept += one.kept;
        }
        kinds += 1.0;
    }
    let [histogram, maximum] = ratios.map(|sum: f64| (sum / kinds).exp());
    let kept = kept.map(|sum| sum / kinds);
    assert!(histogram < 0.65, "{histogram} of the histogram's loss");
    assert!(maximum < 0.8, "{maximum} of the maximum's loss");
    assert!(
        kept[0] > 0.92 && kept[0] > kept[1] && kept[0] > kept[2],
        "{kept:?}"
    );
}
