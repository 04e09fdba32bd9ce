//! Which terms a model has.

use std::fmt;

use super::FitError;

/// Autoregressive or moving-average terms without a season, at most.
pub const TERMS_MAX: usize = 5;
/// Seasonal autoregressive or moving-average terms, at most.
pub const SEASONAL_TERMS_MAX: usize = 2;
/// Ordinary and seasonal differences together, at most.
pub const DIFFERENCES_MAX: usize = 2;
/// Longest season, in steps.
pub const PERIOD_MAX: usize = 4096;

/// The order of a model, `(p, d, q)(P, D, Q)m` as the textbooks write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Autoregressive terms, at most [`TERMS_MAX`].
    pub p: usize,
    /// Differences from one step to the next.
    pub d: usize,
    /// Moving-average terms, at most [`TERMS_MAX`].
    pub q: usize,
    /// Terms one season apart. None for a series without a season.
    pub seasonal: Option<SeasonalOrder>,
    /// Whether the differenced series has a mean of its own: the mean of the
    /// series without differences, a drift with one, and refused with two, where
    /// it would be a parabola.
    pub constant: bool,
}

/// The seasonal part of an [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeasonalOrder {
    /// Autoregressive terms, at most [`SEASONAL_TERMS_MAX`].
    pub p: usize,
    /// Differences from one season to the next.
    pub d: usize,
    /// Moving-average terms, at most [`SEASONAL_TERMS_MAX`].
    pub q: usize,
    /// Steps in a season, 2 to [`PERIOD_MAX`].
    pub period: usize,
}

impl Order {
    /// `(p, d, q)` without a season and without a constant.
    #[must_use]
    pub fn new(p: usize, d: usize, q: usize) -> Self {
        Self {
            p,
            d,
            q,
            ..Self::default()
        }
    }

    /// The same with seasonal terms.
    #[must_use]
    pub fn seasonal(self, p: usize, d: usize, q: usize, period: usize) -> Self {
        Self {
            seasonal: Some(SeasonalOrder { p, d, q, period }),
            ..self
        }
    }

    /// The same with a mean or drift.
    #[must_use]
    pub fn with_constant(self) -> Self {
        Self {
            constant: true,
            ..self
        }
    }

    /// Checks the bounds that the fields state.
    pub(super) fn check(self) -> Result<(), FitError> {
        let seasonal = self.season();
        let sound = self.p.max(self.q) <= TERMS_MAX
            && seasonal.p.max(seasonal.q) <= SEASONAL_TERMS_MAX
            && self.d.max(seasonal.d) <= DIFFERENCES_MAX
            && self.differences() <= DIFFERENCES_MAX
            && !(self.constant && self.differences() > 1)
            && self
                .seasonal
                .is_none_or(|seasonal| (2..=PERIOD_MAX).contains(&seasonal.period));
        if sound {
            Ok(())
        } else {
            Err(FitError::Order(self))
        }
    }

    /// The seasonal part, with no terms and a period of 1 where there is none.
    pub(super) fn season(self) -> SeasonalOrder {
        self.seasonal.unwrap_or(SeasonalOrder {
            p: 0,
            d: 0,
            q: 0,
            period: 1,
        })
    }

    /// Ordinary and seasonal differences together.
    pub(super) fn differences(self) -> usize {
        self.d + self.season().d
    }

    /// Samples that the differences take away.
    pub(super) fn differenced_away(self) -> usize {
        self.d + self.season().d * self.season().period
    }

    /// Autoregressive and moving-average coefficients.
    pub(super) fn coefficients(self) -> usize {
        self.p + self.q + self.season().p + self.season().q
    }

    /// Everything estimated: coefficients, constant and innovation variance.
    pub(super) fn parameters(self) -> usize {
        self.coefficients() + usize::from(self.constant) + 1
    }

    /// The longest lag of the differenced series.
    pub(super) fn ar_lags(self) -> usize {
        self.p + self.season().p * self.season().period
    }

    /// The longest lag of the innovations.
    pub(super) fn ma_lags(self) -> usize {
        self.q + self.season().q * self.season().period
    }

    /// The longer of the two.
    pub(super) fn lags(self) -> usize {
        self.ar_lags().max(self.ma_lags())
    }

    /// Samples that a fit needs.
    pub(super) fn samples_min(self) -> usize {
        self.differenced_away() + self.ar_lags() + 2 * self.parameters() + 4
    }
}

/// `(2,1,1)(0,1,1)12 with constant`.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{},{})", self.p, self.d, self.q)?;
        if let Some(SeasonalOrder { p, d, q, period }) = self.seasonal {
            write!(f, "({p},{d},{q}){period}")?;
        }
        if self.constant {
            write!(f, " with constant")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked() {
        fn check(order: Order, sound: bool) {
            assert_eq!(order.check().is_ok(), sound, "{order}");
        }
        check(Order::new(0, 0, 0), true);
        check(
            Order::new(5, 1, 5).seasonal(2, 0, 2, 288).with_constant(),
            true,
        );
        check(Order::new(1, 1, 1).seasonal(0, 1, 1, 12), true);
        check(Order::new(6, 0, 0), false);
        check(Order::new(0, 0, 6), false);
        check(Order::new(0, 3, 0), false);
        check(Order::new(0, usize::MAX, 0), false);
        check(Order::new(0, 2, 0).seasonal(0, 1, 0, 12), false);
        check(Order::new(0, 2, 0).with_constant(), false);
        check(
            Order::new(0, 1, 0).seasonal(0, 1, 0, 12).with_constant(),
            false,
        );
        check(Order::new(1, 0, 0).seasonal(3, 0, 0, 12), false);
        check(Order::new(1, 0, 0).seasonal(1, 0, 0, 1), false);
        check(Order::new(1, 0, 0).seasonal(1, 0, 0, 1 << 20), false);
    }

    #[test]
    fn an_order_reads_like_the_textbooks() {
        let order = Order::new(2, 0, 1).seasonal(0, 1, 1, 12).with_constant();
        assert_eq!(order.to_string(), "(2,0,1)(0,1,1)12 with constant");
        assert_eq!(order.parameters(), 6);
        assert_eq!((order.ar_lags(), order.ma_lags()), (2, 13));
    }
}
