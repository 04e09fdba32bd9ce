//! From raw outputs of the network to quantiles that do not cross.
//!
//! # Problem
//!
//! A network that is asked for values in the series' unit must learn every scale;
//! one that is asked for quantiles may give them in the wrong order.
//!
//! # Approach
//!
//! The network does not forecast, it *weighs* what cheap models say
//! ([`Anchors`]). The median is a convex combination (softmax) of their centres,
//! plus a bounded shift in the unit of the target. What goes into the softmax is an
//! output for each centre plus the evidence, the centre's recent error, times an output
//! that says how far evidence is to be trusted. Each further quantile adds a
//! positive combination (squareplus) of the gaps between the same levels among
//! errors that those models lately made. So an untrained network is already a fair blend of
//! them, levels never cross, and nothing depends on the unit of the series.
//!
//! Sources: Jacobs, Jordan, Nowlan and Hinton, "Adaptive mixtures of local
//! experts", 1991 (the gate); Park, Maddix, Aubet et al., "Learning quantile
//! functions without quantile crossing", AISTATS 2022 (increments).

use super::math::{exp, soften, squareplus, squareplus_inverse, squareplus_slope};

/// Centres that are weighed for each target.
pub(super) const CENTRES: usize = 10;
/// Sources of gaps for each target.
pub(super) const SPREADS: usize = 4;
/// Quantile levels, and the gaps between them.
pub(super) const LEVELS: [f32; 4] = [0.5, 0.9, 0.95, 0.99];
const GAPS: usize = 3;
/// Raw outputs for each target: gate, trust in evidence, shift, weights of gaps.
pub(super) const OUTPUTS: usize = SCALES + GAPS * SPREADS;
const TRUST: usize = CENTRES;
const SHIFT: usize = CENTRES + 1;
const SCALES: usize = CENTRES + 2;
/// Greatest shift of the median, in units of the target.
const SHIFT_MAX: f32 = 4.0;

/// What cheap models say of one target: differences from the last value, in units
/// of the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Anchors {
    pub(super) centres: [f32; CENTRES],
    /// How good each was lately: minus the logarithm of its mean error over the least
    /// one.
    pub(super) evidence: [f32; CENTRES],
    /// Distances between neighbouring levels, lowest first, by source.
    pub(super) gaps: [[f32; SPREADS]; GAPS],
    /// The unit, in that of the series. Above 0.
    pub(super) unit: f32,
}

impl Anchors {
    /// The quantiles that the first centre and the first source of gaps give:
    /// what the network is compared with.
    pub(super) fn naive(&self) -> [f32; 4] {
        let mut quantiles = [self.centres[0]; 4];
        for level in 0..GAPS {
            quantiles[level + 1] = quantiles[level] + self.gaps[level][0];
        }
        quantiles
    }
}

/// Bias with which the raw outputs of a target start: the evidence decides, a little in
/// favour of the first and the last centre.
pub(super) fn initial_bias() -> [f32; OUTPUTS] {
    let mut bias = [0.0; OUTPUTS];
    bias[..CENTRES].fill(-1.0);
    bias[0] = 1.0;
    bias[CENTRES - 1] = 1.0;
    bias[TRUST] = squareplus_inverse(3.0);
    for gap in bias[SCALES..].chunks_exact_mut(SPREADS) {
        gap.copy_from_slice(&[0.4, 0.4, 0.1, 0.03].map(squareplus_inverse));
    }
    bias
}

/// Quantiles of one target from its raw outputs.
pub(super) fn quantiles(raw: &[f32], anchors: &Anchors) -> [f32; 4] {
    let gate = gate(raw, anchors);
    let centre: f32 = gate.iter().zip(anchors.centres).map(|(g, c)| g * c).sum();
    let mut quantiles = [centre + soften(raw[SHIFT], SHIFT_MAX); 4];
    for (level, raw) in raw[SCALES..].chunks_exact(SPREADS).enumerate() {
        let gaps = raw.iter().zip(anchors.gaps[level]);
        let gap: f32 = gaps.map(|(&raw, gap)| squareplus(raw) * gap).sum();
        quantiles[level + 1] = quantiles[level] + gap;
    }
    quantiles
}

/// Gradient by the raw outputs, from that by the quantiles.
pub(super) fn gradient(raw: &[f32], anchors: &Anchors, by_quantile: [f32; 4], out: &mut [f32]) {
    // A quantile is the sum of the median and the gaps below it.
    let mut above = by_quantile;
    for level in (0..GAPS).rev() {
        above[level] += above[level + 1];
    }
    let gate = gate(raw, anchors);
    let centre: f32 = gate.iter().zip(anchors.centres).map(|(g, c)| g * c).sum();
    let mut by_trust = 0.0;
    for k in 0..CENTRES {
        out[k] = above[0] * gate[k] * (anchors.centres[k] - centre);
        by_trust += out[k] * anchors.evidence[k];
    }
    out[TRUST] = by_trust * squareplus_slope(raw[TRUST]);
    let bend = SHIFT_MAX / (SHIFT_MAX + raw[SHIFT].abs());
    out[SHIFT] = above[0] * bend * bend;
    for (k, (out, &raw)) in out[SCALES..].iter_mut().zip(&raw[SCALES..]).enumerate() {
        let (level, source) = (k / SPREADS, k % SPREADS);
        *out = above[level + 1] * squareplus_slope(raw) * anchors.gaps[level][source];
    }
}

/// Pinball losses by level, and their slopes by the quantiles.
pub(super) fn pinball(actual: f32, quantiles: [f32; 4]) -> [(f32, f32); 4] {
    let mut out = [(0.0, 0.0); 4];
    for ((out, quantile), level) in out.iter_mut().zip(quantiles).zip(LEVELS) {
        let over = actual - quantile;
        let slope = if over > 0.0 { -level } else { 1.0 - level };
        *out = (-slope * over, slope);
    }
    out
}

/// Weights of the centres: what the network says, and the evidence as far as it trusts
/// that.
fn gate(raw: &[f32], anchors: &Anchors) -> [f32; CENTRES] {
    let trust = squareplus(raw[TRUST]);
    let mut weights = anchors.evidence;
    for (weight, raw) in weights.iter_mut().zip(raw) {
        *weight = raw + trust * *weight;
    }
    let most = weights.iter().copied().fold(f32::MIN, f32::max);
    weights.iter_mut().for_each(|w| *w = exp(*w - most));
    let sum: f32 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}
