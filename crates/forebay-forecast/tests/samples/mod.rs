//! What several test programs share.

use forebay_forecast::VALUE_MAX;
use proptest::prelude::*;

/// Samples as hosts show them, and as they never should.
pub(crate) fn sample() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..100.0,
        2 => Just(7.0),
        1 => Just(0.0),
        1 => -10.0..0.0,
        1 => 0.0..2.0 * VALUE_MAX,
        1 => any::<f64>(),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
    ]
}
