//! One series at run time: what the network remembers of it, and its answers.
//!
//! # Properties
//!
//! - Quantiles are finite, not negative, do not cross, and are never above the highest
//!   recent sample by more than the recent range (the last 1,024 samples).
//! - A sample that is not plausible is a gap. A gap changes no memory.

use super::TARGETS;
use super::cell::Memory;
use super::features::Features;
use super::head::{self, OUTPUTS};
use super::weights::Weights;
use crate::{Quantiles, Target, is_plausible};

/// Samples before the first answer.
const WARM_SAMPLES: u32 = 16;

/// What is remembered of one series: the cell's state and running statistics.
#[derive(Clone, Debug)]
pub struct State {
    features: Features,
    targets: &'static [Target],
    h: Vec<f32>,
    c: Vec<f32>,
}

impl State {
    /// For a series of which nothing was seen. `period` in steps, if one is known.
    #[must_use]
    pub fn new(weights: &Weights, period: Option<usize>) -> Self {
        Self::of(weights, &TARGETS, period)
    }

    /// Of these targets alone; the others are not forecast.
    pub(super) fn of(weights: &Weights, targets: &'static [Target], period: Option<usize>) -> Self {
        let hidden = weights.layout().hidden();
        Self {
            features: Features::new(weights.layout().horizons(), targets, period),
            targets,
            h: vec![0.0; hidden],
            c: vec![0.0; hidden],
        }
    }

    /// The period that is in use, in steps.
    #[must_use]
    pub fn period(&self) -> Option<usize> {
        self.features.period()
    }

    /// Another period, or none. Its season is used once a whole period was seen; few
    /// samples of before are kept.
    pub fn set_period(&mut self, period: Option<usize>) {
        self.features.set_period(period);
    }

    /// One step passed with this sample. `weights` have the layout that the state was
    /// made for; with others, the network's memory starts anew.
    pub fn step(&mut self, weights: &Weights, value: f64) {
        if !is_plausible(value) {
            return self.step_gap();
        }
        let mut x = self.features.push(value);
        let shape = weights.layout().shape();
        if self.h.len() != shape.cell.hidden || x.len() != shape.cell.inputs {
            *self = Self::of(weights, self.targets, self.period());
            x = self.features.push(value);
        }
        // What only training remembers of a step is made anew for each.
        let mut memory = Memory {
            h: std::mem::take(&mut self.h),
            c: std::mem::take(&mut self.c),
            ..Memory::new(shape.cell.hidden)
        };
        shape.step(weights.parameters(), &x, &mut memory);
        (self.h, self.c) = (memory.h, memory.c);
    }

    /// One step passed without a sample.
    pub fn step_gap(&mut self) {
        self.features.pass();
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let memory = self.h.len() + self.c.len();
        size_of::<Self>() + self.features.heap_bytes() + memory * size_of::<f32>()
    }

    /// The answer for a target, by its place in [`Layout::targets`]. None before a few
    /// samples were seen, and for a place that is not there.
    ///
    /// [`Layout::targets`]: super::Layout::targets
    #[must_use]
    pub fn forecast(&self, weights: &Weights, target: usize) -> Option<Quantiles> {
        let anchors = self.features.anchors().get(target)?;
        let shape = weights.layout().shape();
        if self.features.seen() < WARM_SAMPLES || self.h.len() != shape.cell.hidden {
            return None;
        }
        let mut raw = [0.0; OUTPUTS];
        shape.outputs_of(weights.parameters(), &self.h, target, &mut raw)?;
        let (last, (low, high)) = (self.features.last()?, self.features.bounds()?);
        let unit = f64::from(anchors.unit);
        let range = high - low;
        let levels = head::quantiles(&raw, anchors).map(|level| {
            let value = last + unit * f64::from(level);
            value.clamp((low - range).max(0.0), high + range)
        });
        Quantiles::new(levels)
    }
}
