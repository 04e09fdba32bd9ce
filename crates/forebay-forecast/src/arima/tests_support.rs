//! Seeded noise for tests.

/// A standard normal number (Box and Muller, 1958).
pub(crate) fn gaussian(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}
