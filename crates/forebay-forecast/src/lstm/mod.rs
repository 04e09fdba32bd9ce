//! One LSTM for all series of a host.
//!
//! # Problem
//!
//! Simple forecasters each fit some series at some times, and none says which of them
//! to trust now: after a jump, before the end of a burst, when a season drifts.
//! Series of one host are alike in such things; each alone is too short to learn
//! them from.
//!
//! # Approach
//!
//! One network over all series. It does not forecast from nothing: `features` and
//! `track` run cheap models online (means, a season, a linear fit, recent
//! errors), and the network weighs their centres and the spreads of their errors
//! (`head`): an untrained one is a fair blend already. From the bottom up:
//!
//! - `math`: elementary functions, vectors, pseudo-random numbers;
//! - `past`, `track`, `features`: a sample in, cheap models, inputs and anchors out;
//! - `cell`, `head`, `network`: forward, and back through time;
//! - `lessons`, `adam`, [`Trainer`]: learning, a portion at a time;
//! - [`Weights`]: versioned, as bytes and back;
//! - [`State`], [`Lstm`]: one series at run time.
//!
//! # Properties
//!
//! - Answers are finite, not negative, do not cross, and stay within one recent range
//!   above the recent maximum, whatever the weights are.
//! - There is no clock, thread, file or randomness but the seed that is passed in.
//! - Training never replaces weights by worse ones, as far as the held-out part
//!   of the histories can tell.
//!
//! # Measured
//!
//! 24 public traces of CPU, memory, network and disk use, 117 origins each
//! (`examples/lstm_traces.rs`). Pinball loss as a ratio to the last value plus empirical
//! changes over 1440 steps, geometric mean of the traces, and the share of values within
//! the bound; periods were told. `pretrained` never saw a trace; `all` was trained further
//! on the traces before their first origins; `halves` on other traces than it forecasts.
//! (The design and the number of synthetic series were chosen on these traces; no weight of
//! `pretrained` was fitted to them.)
//!
//! | regime | steps | 0.5 | 0.9 | 0.95 | 0.99 | within 0.9 | 0.95 | 0.99 |
//! |---|---|---|---|---|---|---|---|---|
//! | `pretrained` | 1 | 0.812 | 0.751 | 0.705 | 0.703 | 0.891 | 0.942 | 0.986 |
//! | | 12 | 0.823 | 0.836 | 0.837 | 0.874 | 0.884 | 0.941 | 0.987 |
//! | | 60 | 0.755 | 0.825 | 0.853 | 0.860 | 0.892 | 0.947 | 0.982 |
//! | `halves` | 1 | 0.818 | 0.743 | 0.695 | 0.690 | 0.899 | 0.947 | 0.983 |
//! | | 12 | 0.829 | 0.827 | 0.824 | 0.871 | 0.880 | 0.938 | 0.984 |
//! | | 60 | 0.762 | 0.826 | 0.862 | 0.894 | 0.876 | 0.938 | 0.980 |
//! | `all` | 1 | 0.815 | 0.739 | 0.693 | 0.680 | 0.895 | 0.948 | 0.985 |
//! | | 12 | 0.830 | 0.823 | 0.820 | 0.859 | 0.877 | 0.937 | 0.989 |
//! | | 60 | 0.751 | 0.812 | 0.844 | 0.845 | 0.886 | 0.947 | 0.984 |
//!
//! Without a period `pretrained` has 0.777, 0.900 and 0.940 at 0.95, and a network trained
//! from nothing on the other traces alone (`cold`, 16 units) 0.817, 0.903 and 0.948. An
//! untrained one has 0.925, 0.913 and 0.915: a dozen traces teach little, and 60 steps ahead
//! they even harm.
//!
//! 32 hidden units, two cores of a busy virtual machine (AMD EPYC), one series after the
//! other: 3.6 to 3.8 us of CPU time for a step with three forecasts, files read and written
//! included; by the clock 3.3 us, and up to 6.6 us while others wanted the cores. Training
//! further on the 24 traces (1,300 to 2,000 samples of each) until it stopped took 5 to 8 s.
//! A state takes some 20 KiB with a period of 288 steps, and 17 in an ensemble of values.
//!
//! Sources are given where the parts are.

mod adam;
mod cell;
mod features;
mod forecaster;
mod head;
mod lessons;
pub(crate) mod math;
mod network;
mod past;
mod state;
mod track;
mod trainer;
mod weights;

pub use forecaster::Lstm;
pub use past::PERIOD_MAX;
pub use state::State;
pub use trainer::{Progress, Trained, Trainer, Verdict};
pub use weights::{Origin, Weights, WeightsError};

use crate::Target;
use cell::CellShape;
use network::Shape;

/// Horizons that a network may have.
pub const HORIZONS_MAX: usize = 4;
/// Longest horizon, in steps.
pub const HORIZON_MAX: usize = 512;
/// Hidden units that a network may have.
pub const HIDDEN_MAX: usize = 64;

/// What a network forecasts.
const TARGETS: [Target; 2] = [Target::Value, Target::Peak];

/// What a network is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    horizons: Vec<usize>,
    hidden: usize,
}

impl Layout {
    /// `horizons` in steps: ascending, 1 to [`HORIZON_MAX`], at most [`HORIZONS_MAX`] of
    /// them; `hidden` units, 1 to [`HIDDEN_MAX`]. None if a bound is broken.
    #[must_use]
    pub fn new(horizons: &[usize], hidden: usize) -> Option<Self> {
        let sound = (1..=HORIZONS_MAX).contains(&horizons.len())
            && horizons.is_sorted_by(|a, b| a < b)
            && horizons.iter().all(|h| (1..=HORIZON_MAX).contains(h))
            && (1..=HIDDEN_MAX).contains(&hidden);
        sound.then(|| Self {
            horizons: horizons.to_vec(),
            hidden,
        })
    }

    /// In steps, ascending.
    #[must_use]
    pub fn horizons(&self) -> &[usize] {
        &self.horizons
    }

    /// Units of the cell.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// What is forecast, in order: the values by horizon, then the peaks within each
    /// horizon longer than a step.
    pub fn targets(&self) -> impl Iterator<Item = (Target, usize)> {
        let values = self.horizons.iter().map(|&steps| (Target::Value, steps));
        let longer = self.horizons.iter().filter(|&&steps| steps > 1);
        values.chain(longer.map(|&steps| (Target::Peak, steps)))
    }

    fn shape(&self) -> Shape {
        Shape {
            cell: CellShape {
                inputs: features::inputs(&self.horizons),
                hidden: self.hidden,
            },
            targets: self.targets().count(),
        }
    }
}

/// One series to learn from, oldest sample first. What [`crate::is_plausible`]
/// refuses is a gap.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// One for each step, in any unit.
    pub values: Vec<f64>,
    /// The period, in steps, if one is known.
    pub period: Option<usize>,
}

impl History {
    fn latest(&self, steps: usize) -> Self {
        Self {
            values: self.values[self.values.len().saturating_sub(steps)..].to_vec(),
            period: self.period,
        }
    }
}

/// How a network is trained. Values out of bounds are held to them.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerConfig {
    /// The network.
    pub layout: Layout,
    /// Steps of a window, 16 to 1024.
    pub window: usize,
    /// Steps at its beginning that are not judged, at most half of it.
    pub warm_up: usize,
    /// Windows before a step down the gradient, 1 to 256.
    pub batch: usize,
    /// Steps down the gradient in an epoch, 1 to 4096.
    pub batches: usize,
    /// Epochs at most, 1 to 4096.
    pub epochs_max: usize,
    /// Epochs without a better result before training ends.
    pub patience: usize,
    /// The greatest learning rate.
    pub learning_rate: f32,
    /// Share of the rate by which weights shrink in each step.
    pub weight_decay: f32,
    /// Norm to which gradients are shortened.
    pub gradient_max: f32,
    /// Share of each history, the latest part, that is held out, 0.05 to 0.5.
    pub held_out: f32,
    /// Windows of it that are judged, 1 to 4096.
    pub judged_max: usize,
    /// Samples that are learnt from, of all histories together.
    pub steps_max: usize,
}

impl TrainerConfig {
    /// The defaults for a network.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            window: 96,
            warm_up: 24,
            batch: 16,
            batches: 32,
            epochs_max: 40,
            patience: 8,
            learning_rate: 3e-3,
            weight_decay: 1e-4,
            gradient_max: 1.0,
            held_out: 0.2,
            judged_max: 512,
            steps_max: 65_536,
        }
    }

    fn epoch_windows(&self) -> usize {
        self.batch * self.batches
    }

    fn held_to_bounds(mut self) -> Self {
        self.window = self.window.clamp(16, 1024);
        self.warm_up = self.warm_up.min(self.window / 2);
        self.batch = self.batch.clamp(1, 256);
        self.batches = self.batches.clamp(1, 4096);
        self.epochs_max = self.epochs_max.clamp(1, 4096);
        self.learning_rate = hold(self.learning_rate, 0.0, 1.0);
        self.weight_decay = hold(self.weight_decay, 0.0, 1.0);
        self.gradient_max = hold(self.gradient_max, 1e-6, 1e6);
        self.held_out = hold(self.held_out, 0.05, 0.5);
        self.judged_max = self.judged_max.clamp(1, 4096);
        self
    }

    /// A number that differs between configurations.
    fn fingerprint(&self) -> u64 {
        // The debug form names every field and shows floats exactly.
        weights::fingerprint(format!("{self:?}").as_bytes())
    }
}

/// The number held to bounds; the least for what is no number.
fn hold(value: f32, least: f32, most: f32) -> f32 {
    if value.is_nan() {
        least
    } else {
        value.clamp(least, most)
    }
}
