//! Steps down the gradient: Adam with decoupled weight decay.
//!
//! Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015;
//! Loshchilov and Hutter, "Decoupled weight decay regularization" and "SGDR" (the
//! cosine), 2017 to 2019; Pascanu, Mikolov and Bengio, "On the difficulty of
//! training recurrent neural networks", 2013 (clipping by norm).

use super::math::dot;

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.99;
const EPSILON: f32 = 1e-8;

#[derive(Clone, Debug)]
pub(super) struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    /// Products of the decay rates so far.
    bias: (f32, f32),
}

impl Adam {
    pub(super) fn new(parameters: usize) -> Self {
        Self {
            mean: vec![0.0; parameters],
            square: vec![0.0; parameters],
            bias: (1.0, 1.0),
        }
    }

    pub(super) fn step(&mut self, parameters: &mut [f32], gradient: &[f32], rate: f32, decay: f32) {
        self.bias.0 *= BETA_1;
        self.bias.1 *= BETA_2;
        let (mean_bias, square_bias) = (1.0 - self.bias.0, 1.0 - self.bias.1);
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((p, g), (mean, square)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *mean += (1.0 - BETA_1) * (g - *mean);
            *square += (1.0 - BETA_2) * (g * g - *square);
            let step = (*mean / mean_bias) / ((*square / square_bias).sqrt() + EPSILON);
            *p -= rate * (step + decay * *p);
        }
    }
}

/// Shortens a gradient to a norm. Its norm before; None if it is not finite.
pub(super) fn clip(gradient: &mut [f32], norm_max: f32) -> Option<f32> {
    let norm = dot(gradient, gradient).sqrt();
    if !norm.is_finite() {
        return None;
    }
    if norm > norm_max {
        let factor = norm_max / norm;
        gradient.iter_mut().for_each(|g| *g *= factor);
    }
    Some(norm)
}

/// Learning rate as a share of the greatest: a short rise, then half a cosine.
/// `done` is the share of all steps that were taken.
pub(super) fn schedule(done: f32) -> f32 {
    const RISE: f32 = 0.05;
    let rise = (done / RISE).clamp(0.02, 1.0);
    let fall = ((done - RISE) / (1.0 - RISE)).clamp(0.0, 1.0);
    rise * (0.02 + 0.49 * (1.0 + (fall * std::f32::consts::PI).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_bottom_of_a_bowl() {
        let mut p = vec![3.0, -2.0];
        let mut adam = Adam::new(2);
        for step in 0..500 {
            let gradient = [2.0 * (p[0] - 1.0), 20.0 * (p[1] - 0.5)];
            adam.step(&mut p, &gradient, 0.1 * schedule(step as f32 / 500.0), 0.0);
        }
        assert!(
            (p[0] - 1.0).abs() < 1e-2 && (p[1] - 0.5).abs() < 1e-2,
            "{p:?}"
        );
    }

    #[test]
    fn clips_to_a_norm() {
        let mut gradient = vec![3.0, 4.0];
        assert_eq!(clip(&mut gradient, 1.0), Some(5.0));
        assert!((dot(&gradient, &gradient) - 1.0).abs() < 1e-6);
        assert_eq!(clip(&mut [f32::NAN], 1.0), None);
    }
}
