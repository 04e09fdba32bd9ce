//! A period that nobody declares.
//!
//! The period is the lag of the first high hill of the autocorrelation after it has fallen: lags
//! before that fall only say that neighbours are alike. A search examines one lag in each step, so
//! that one over a history of `n` takes `n / 2` steps and no step is a burst. A period is
//! replaced only by a clearly better one, and dropped when its own correlation is gone.
//!
//! Source: Vlachos, Yu and Castelli, "On periodicity detection and structural periodic
//! similarity", SDM 2005 (hills of the autocorrelation).

use crate::history::narrow;

/// Correlation under which neighbours count as unlike again.
const FALLEN: f32 = 0.3;
/// Correlation from which a lag counts as a period.
const FOUND: f32 = 0.5;
/// Correlation under which the period in use is given up.
const LOST: f32 = 0.3;
/// How much a longer or another lag must be better, to be preferred.
const CLEARLY: f32 = 0.08;

/// A search over the lags, one in each step.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    lag: usize,
    mean: f32,
    scale: f32,
    fallen: bool,
    best: Option<Hill>,
    /// Correlation at the period in use.
    in_use: Option<f32>,
}

#[derive(Clone, Copy, Debug)]
struct Hill {
    lag: usize,
    correlation: f32,
}

/// What a finished scan says of the period.
pub(crate) enum Verdict {
    Keep,
    Drop,
    Replace(usize),
}

impl Search {
    pub(crate) const START: Self = Self {
        lag: 1,
        mean: 0.0,
        scale: 0.0,
        fallen: false,
        best: None,
        in_use: None,
    };

    /// Examines the next lag. A verdict at the end of a scan.
    pub(crate) fn step(&mut self, samples: &[f32], period: Option<usize>) -> Option<Verdict> {
        if self.lag == 1 && !self.start(samples) {
            return None;
        }
        let correlation = correlation(samples, self.lag, self.mean, self.scale);
        if period == Some(self.lag) {
            self.in_use = Some(correlation);
        }
        self.fallen |= correlation < FALLEN;
        if self.fallen && correlation >= FOUND && self.is_better(correlation) {
            self.best = Some(Hill {
                lag: self.lag,
                correlation,
            });
        }
        self.lag += 1;
        if self.lag <= samples.len() / 2 {
            return None;
        }
        let verdict = self.verdict(period);
        *self = Self::START;
        Some(verdict)
    }

    /// Mean and spread for this scan. False if there is nothing to scan.
    fn start(&mut self, samples: &[f32]) -> bool {
        if samples.len() < 8 {
            return false;
        }
        let sum: f64 = samples.iter().map(|&sample| f64::from(sample)).sum();
        #[expect(
            clippy::cast_precision_loss,
            reason = "a history is far shorter than 2^52"
        )]
        let mean = sum / samples.len() as f64;
        let spread = samples
            .iter()
            .fold(0.0, |most: f64, &s| most.max((f64::from(s) - mean).abs()));
        // Less than the rounding of the samples is no variation.
        if spread <= mean * 1e-6 {
            return false;
        }
        self.mean = narrow(mean);
        self.scale = narrow(1.0 / spread);
        true
    }

    /// Further up the same hill, or clearly higher than the first one.
    fn is_better(&self, correlation: f32) -> bool {
        self.best.is_none_or(|best| {
            let same_hill = self.lag - best.lag <= (best.lag / 8).max(1);
            correlation > best.correlation + if same_hill { 0.0 } else { CLEARLY }
        })
    }

    fn verdict(&self, period: Option<usize>) -> Verdict {
        let in_use = self.in_use.unwrap_or(-1.0);
        match (period, self.best) {
            (None, Some(best)) => Verdict::Replace(best.lag),
            (Some(_), Some(best)) if best.correlation > in_use + CLEARLY => {
                Verdict::Replace(best.lag)
            }
            (Some(_), _) if in_use < LOST => Verdict::Drop,
            _ => Verdict::Keep,
        }
    }
}

/// Correlation of a series with itself `lag` steps ago, about a given mean. In
/// -1..=1; 0 where it is not defined.
fn correlation(samples: &[f32], lag: usize, mean: f32, scale: f32) -> f32 {
    const LANES: usize = 8;
    let (now, before) = (&samples[lag..], &samples[..samples.len() - lag]);
    let mut sums = [[0.0_f32; LANES]; 3];
    // Independent lanes, which the compiler turns into vector instructions. The
    // few samples left over are of no importance here.
    for (now, before) in now.chunks_exact(LANES).zip(before.chunks_exact(LANES)) {
        for lane in 0..LANES {
            let (a, b) = ((now[lane] - mean) * scale, (before[lane] - mean) * scale);
            sums[0][lane] += a * b;
            sums[1][lane] += a * a;
            sums[2][lane] += b * b;
        }
    }
    let [both, a, b] = sums.map(|lanes| lanes.iter().sum::<f32>());
    let correlation = both / (a * b).sqrt();
    if correlation.is_finite() {
        correlation
    } else {
        0.0
    }
}
