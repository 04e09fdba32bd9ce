//! How often to difference a series, within and across seasons.
//!
//! # Problem
//!
//! An autoregression describes a stationary series. One that wanders, or that
//! repeats a shape, must be differenced first; one difference too many makes the
//! forecast noisier, one too few makes it return to a mean that is gone.
//!
//! # Approach
//!
//! Across seasons first: once, if the season's strength exceeds 0.64. The
//! strength is the share of the variance of the series without its trend that a
//! fixed seasonal shape explains. Then from step to step, until the test of
//! Kwiatkowski, Phillips, Schmidt and Shin no longer rejects a constant level at
//! 5 %.
//!
//! Where this deviates from its source: the season is taken from a classical
//! decomposition (moving average, then means by phase) and not from repeated
//! loess, with the variance of the remainder divided by its degrees of freedom,
//! so that noise alone has strength 0 also over few seasons. A strength needs
//! three seasons at least.
//!
//! Sources: Hyndman and Khandakar, "Automatic time series forecasting: the
//! forecast package for R", Journal of Statistical Software 2008; Wang, Smith and
//! Hyndman, "Characteristic-based clustering for time series data", Data Mining
//! and Knowledge Discovery 2006; Kwiatkowski, Phillips, Schmidt and Shin,
//! "Testing the null hypothesis of stationarity against the alternative of a
//! unit root", Journal of Econometrics 1992.

use super::count;

/// Strength of a season from which it is differenced away.
const STRONG: f64 = 0.64;
/// The statistic of the level test that 5 % of stationary series exceed.
const LEVEL_CRITICAL: f64 = 0.463;
/// Seasons that a strength needs.
const SEASONS_MIN: usize = 3;

/// How often to difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Differences {
    /// From step to step.
    pub(super) d: usize,
    /// From season to season.
    pub(super) seasonal: usize,
}

/// Differences that make a series stationary, with at most `differences_max`
/// from step to step.
pub(super) fn choose(series: &[f64], period: Option<usize>, differences_max: usize) -> Differences {
    let mut series = series.to_vec();
    let mut chosen = Differences { d: 0, seasonal: 0 };
    if let Some(period) = period
        && seasonal_strength(&series, period) > STRONG
    {
        series = difference(&series, period);
        chosen.seasonal = 1;
    }
    while chosen.d + chosen.seasonal < differences_max
        && !is_constant(&series)
        && level_statistic(&series) > LEVEL_CRITICAL
    {
        series = difference(&series, 1);
        chosen.d += 1;
    }
    chosen
}

/// `x[t] - x[t - lag]`.
pub(super) fn difference(series: &[f64], lag: usize) -> Vec<f64> {
    let later = series.iter().skip(lag);
    later
        .zip(series)
        .map(|(now, before)| now - before)
        .collect()
}

/// Whether all samples are the same but for the rounding of a sum.
pub(super) fn is_constant(series: &[f64]) -> bool {
    let mean = mean(series);
    let spread = greatest(series.iter().map(|x| x - mean));
    spread <= 1e-12 * greatest(series.iter().copied())
}

pub(super) fn mean(series: &[f64]) -> f64 {
    series.iter().sum::<f64>() / count(series.len().max(1))
}

/// The greatest magnitude; 0 of nothing.
pub(super) fn greatest(series: impl Iterator<Item = f64>) -> f64 {
    series.fold(0.0, |most, x| most.max(x.abs()))
}

/// The statistic of the test for a constant level, lags as long as
/// `3 sqrt(n) / 13`. 0 where it is not defined.
fn level_statistic(series: &[f64]) -> f64 {
    let n = count(series.len());
    let mean = mean(series);
    let scale = greatest(series.iter().map(|x| x - mean));
    if scale == 0.0 {
        return 0.0;
    }
    let errors: Vec<f64> = series.iter().map(|x| (x - mean) / scale).collect();
    let covariance = |lag: usize| {
        let later = errors.iter().skip(lag);
        later.zip(&errors).map(|(a, b)| a * b).sum::<f64>() / n
    };
    let lags = (9 * series.len() / 169).isqrt();
    let long_run = (1..=lags).fold(covariance(0), |sum, lag| {
        let weight = 1.0 - count(lag) / count(lags + 1);
        sum + 2.0 * weight * covariance(lag)
    });
    let mut partial_sum = 0.0;
    let squares: f64 = errors
        .iter()
        .map(|error| {
            partial_sum += error;
            partial_sum * partial_sum
        })
        .sum();
    let statistic = squares / (n * n * long_run);
    if statistic.is_finite() {
        statistic
    } else {
        0.0
    }
}

/// Share of the variance about the trend that a fixed season explains, 0 to 1.
fn seasonal_strength(series: &[f64], period: usize) -> f64 {
    if period < 2 || series.len() < SEASONS_MIN * period {
        return 0.0;
    }
    let scale = greatest(series.iter().copied());
    if scale == 0.0 {
        return 0.0;
    }
    let detrended = without_trend(series, period, scale);
    let mut phases = vec![(0.0, 0.0); period];
    for (index, x) in detrended.iter().enumerate() {
        let (sum, seen) = &mut phases[index % period];
        *sum += x;
        *seen += 1.0;
    }
    let remainder = detrended.iter().enumerate().map(|(index, x)| {
        let (sum, seen) = phases[index % period];
        x - sum / seen
    });
    let total = variance(&detrended);
    let seasons = count(detrended.len()) / count(period);
    let unexplained = variance(&remainder.collect::<Vec<_>>()) * seasons / (seasons - 1.0);
    let strength = 1.0 - unexplained / total;
    if strength.is_finite() {
        strength.max(0.0)
    } else {
        0.0
    }
}

/// The series over a scale, less its moving average over one period, where that
/// average is whole.
fn without_trend(series: &[f64], period: usize, scale: f64) -> Vec<f64> {
    // An even period has half a sample at each end.
    let half = period / 2;
    let end_weight = if period.is_multiple_of(2) { 0.5 } else { 1.0 };
    let width = 2 * half + 1;
    series
        .windows(width)
        .map(|window| {
            let inner: f64 = window[1..width - 1].iter().sum();
            let ends = end_weight * (window[0] + window[width - 1]);
            (window[half] - (inner + ends) / count(period)) / scale
        })
        .collect()
}

fn variance(series: &[f64]) -> f64 {
    let mean = mean(series);
    self::mean(
        &series
            .iter()
            .map(|x| (x - mean).powi(2))
            .collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arima::tests_support::gaussian;

    fn noise(length: usize, seed: u64) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..length).map(|_| gaussian(&mut rng)).collect()
    }

    fn sums(series: &[f64]) -> Vec<f64> {
        let mut sum = 0.0;
        series
            .iter()
            .map(|x| {
                sum += x;
                sum
            })
            .collect()
    }

    #[test]
    fn differences_are_those_the_process_needs() {
        fn check(what: &str, series: &[f64], period: Option<usize>, expected: (usize, usize)) {
            let Differences { d, seasonal } = choose(series, period, 2);
            assert_eq!((d, seasonal), expected, "{what}");
        }
        let white = noise(600, 3);
        let wave = |size: f64| -> Vec<f64> {
            let at = |(index, x): (usize, &f64)| {
                x + size * (count(index % 24) * std::f64::consts::TAU / 24.0).sin()
            };
            white.iter().enumerate().map(at).collect()
        };
        check("noise", &white, None, (0, 0));
        check("noise with a period", &white, Some(24), (0, 0));
        check("random walk", &sums(&white), None, (1, 0));
        check("sum of random walk", &sums(&sums(&white)), None, (2, 0));
        check("strong season", &wave(5.0), Some(24), (0, 1));
        check("weak season", &wave(0.5), Some(24), (0, 0));
        check("constant", &[3.0; 50], Some(12), (0, 0));
        check("zeros", &[0.0; 50], Some(12), (0, 0));
        check("nothing", &[], Some(12), (0, 0));
        check("one", &[1e18], None, (0, 0));
    }

    #[test]
    fn few_seasons_of_noise_have_no_strength() {
        for seed in 0..20 {
            let strength = seasonal_strength(&noise(4 * 48, seed), 48);
            assert!(strength < 0.3, "seed {seed}: {strength}");
        }
    }

    #[test]
    fn the_level_statistic_is_that_of_its_definition() {
        // 1, 2, 3, 4 about 2.5: sums -1.5, -2, -1.5, 0; no lags at n = 4.
        let expected = (2.25 + 4.0 + 2.25) / (16.0 * 1.25);
        let statistic = level_statistic(&[1.0, 2.0, 3.0, 4.0]);
        assert!((statistic - expected).abs() < 1e-12, "{statistic}");
    }
}
