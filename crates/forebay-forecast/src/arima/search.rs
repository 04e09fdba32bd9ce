//! The order of a series.
//!
//! # Problem
//!
//! Over five ordinary and two seasonal terms of each kind there are 648 orders,
//! and a fit of one costs milliseconds.
//!
//! # Approach
//!
//! Differences by tests ([`difference`](super::difference)), the rest by
//! Akaike's corrected criterion, stepwise: from the best of a few usual orders to
//! the first neighbour that is better, until none is. A neighbour has one
//! ordinary or seasonal term more or less of one or both kinds, or the constant
//! toggled.
//!
//! Where this deviates from its source:
//!
//! - Only the last [`Search::history_max`] samples are looked at.
//! - A neighbour's search for coefficients starts from the best order's.
//! - On more than [`EXACT_SAMPLES_MAX`] samples, or with a season of more than
//!   12 steps, orders are compared by the conditional likelihood. The best three
//!   are fitted exactly then, and the best of these is taken.
//! - An order with a root nearer to the unit circle than 1.01 is passed over, as
//!   there, but by the recursion that tells stability, without finding roots.
//!
//! # Properties
//!
//! - At most [`Search::models_max`] orders are fitted.
//! - The same samples give the same model.
//!
//! Source: Hyndman and Khandakar, "Automatic time series forecasting: the
//! forecast package for R", Journal of Statistical Software 2008.

use super::FitError;
use super::difference;
use super::fit::{Blocks, Fit, Prepared, check_series};
use super::likelihood::Likelihood;
use super::order::{DIFFERENCES_MAX, Order, SEASONAL_TERMS_MAX, SeasonalOrder, TERMS_MAX};

/// Samples up to which orders are compared by the exact likelihood.
pub const EXACT_SAMPLES_MAX: usize = 150;
/// Seasons up to which they are.
const EXACT_PERIOD_MAX: usize = 12;
/// Orders that are fitted exactly after a conditional search.
const FINALISTS: usize = 3;
/// Roots nearer to the unit circle make an order unusable.
const ROOT_RADIUS_MIN: f64 = 1.01;

/// Where to look for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// Steps in a season. None, or a season of which the history has less than
    /// two, gives a model without.
    pub period: Option<usize>,
    /// Samples looked at: the last ones.
    pub history_max: usize,
    /// Orders fitted, at most.
    pub models_max: usize,
}

impl Default for Search {
    /// Without a season; five days of five-minute samples; as many orders as the
    /// source allows.
    fn default() -> Self {
        Self {
            period: None,
            history_max: 1440,
            models_max: 94,
        }
    }
}

/// The order found, fitted.
pub(super) fn search(series: &[f64], search: Search) -> Result<(Prepared, Fit), FitError> {
    let series = &series[series.len().saturating_sub(search.history_max)..];
    check_series(series)?;
    let frame = Frame::new(series, search.period);
    let mut walk = Walk::new(series, frame, search.models_max);
    walk.run()?;
    walk.finish()
}

/// What the tests decided, before any order is fitted.
#[derive(Clone, Copy, Debug)]
struct Frame {
    d: usize,
    seasonal: Option<SeasonalOrder>,
    likelihood: Likelihood,
}

impl Frame {
    fn new(series: &[f64], period: Option<usize>) -> Self {
        let period = period.filter(|&period| period > 1 && series.len() >= 2 * period);
        let differences = difference::choose(series, period, DIFFERENCES_MAX);
        let short = series.len() <= EXACT_SAMPLES_MAX
            && period.is_none_or(|period| period <= EXACT_PERIOD_MAX);
        Self {
            d: differences.d,
            seasonal: period.map(|period| SeasonalOrder {
                p: 0,
                d: differences.seasonal,
                q: 0,
                period,
            }),
            likelihood: if short {
                Likelihood::Exact
            } else {
                Likelihood::Conditional
            },
        }
    }

    /// An order with these ordinary and seasonal terms. None if out of bounds.
    fn order(&self, [p, q, seasonal_p, seasonal_q]: [usize; 4], constant: bool) -> Option<Order> {
        let seasonal = self.seasonal.map(|seasonal| SeasonalOrder {
            p: seasonal_p,
            q: seasonal_q,
            ..seasonal
        });
        let order = Order {
            p,
            d: self.d,
            q,
            seasonal,
            constant,
        };
        order.check().is_ok().then_some(order)
    }

    fn starts(&self) -> Vec<Order> {
        let constant = self.order([0; 4], true).is_some();
        let season = usize::from(self.seasonal.is_some());
        let mut orders: Vec<Order> = [
            [2, 2, season, season],
            [0, 0, 0, 0],
            [1, 0, season, 0],
            [0, 1, 0, season],
        ]
        .into_iter()
        .filter_map(|terms| self.order(terms, constant))
        .collect();
        orders.extend(self.order([0; 4], false).filter(|_| constant));
        orders
    }

    /// In the order in which they are tried.
    fn neighbours(&self, of: Order) -> Vec<Order> {
        const SINGLE: [(isize, isize); 4] = [(-1, 0), (0, -1), (1, 0), (0, 1)];
        const DOUBLE: [(isize, isize); 4] = [(-1, -1), (-1, 1), (1, -1), (1, 1)];
        let seasonal = of.season();
        let moved = |terms: usize, by: isize, most: usize| {
            terms.checked_add_signed(by).filter(|&terms| terms <= most)
        };
        let mut orders = Vec::new();
        if self.seasonal.is_some() {
            orders.extend(SINGLE.iter().chain(&DOUBLE).filter_map(|&(p, q)| {
                let p = moved(seasonal.p, p, SEASONAL_TERMS_MAX)?;
                let q = moved(seasonal.q, q, SEASONAL_TERMS_MAX)?;
                self.order([of.p, of.q, p, q], of.constant)
            }));
        }
        orders.extend(SINGLE.iter().chain(&DOUBLE).filter_map(|&(p, q)| {
            let (p, q) = (moved(of.p, p, TERMS_MAX)?, moved(of.q, q, TERMS_MAX)?);
            self.order([p, q, seasonal.p, seasonal.q], of.constant)
        }));
        orders.extend(self.order([of.p, of.q, seasonal.p, seasonal.q], !of.constant));
        orders
    }
}

/// The orders tried so far.
struct Walk<'a> {
    series: &'a [f64],
    frame: Frame,
    models_max: usize,
    tried: Vec<Order>,
    /// Usable fits, best first.
    ranked: Vec<Fit>,
    /// With and without a constant; of those, the one used last.
    prepared: [Option<Prepared>; 2],
}

impl<'a> Walk<'a> {
    fn new(series: &'a [f64], frame: Frame, models_max: usize) -> Self {
        Self {
            series,
            frame,
            models_max,
            tried: Vec::new(),
            ranked: Vec::new(),
            prepared: [None, None],
        }
    }

    fn run(&mut self) -> Result<(), FitError> {
        let mut refused = None;
        for order in self.frame.starts() {
            if let Err(error) = self.attempt(order) {
                refused = Some(error);
            }
        }
        if self.ranked.is_empty() {
            return Err(refused.unwrap_or(FitError::NoModel));
        }
        'better: loop {
            let best = self.ranked[0].order;
            for order in self.frame.neighbours(best) {
                if self.attempt(order).is_ok_and(|better| better) {
                    continue 'better;
                }
                if self.tried.len() >= self.models_max {
                    return Ok(());
                }
            }
            return Ok(());
        }
    }

    /// Whether an order that was not tried before is better than all that were.
    fn attempt(&mut self, order: Order) -> Result<bool, FitError> {
        if self.tried.contains(&order) {
            return Ok(false);
        }
        self.tried.push(order);
        let start = self.ranked.first().map(|best| best.numbers.clone());
        let likelihood = self.frame.likelihood;
        let prepared = self.prepared(order)?;
        let fit = prepared.fit(order, &start.unwrap_or_default(), likelihood);
        let Some(fit) = fit.filter(|fit| fit.is_stable_beyond(ROOT_RADIUS_MIN)) else {
            return Ok(false);
        };
        let rank = self
            .ranked
            .partition_point(|other| other.aicc() <= fit.aicc());
        self.ranked.insert(rank, fit);
        Ok(rank == 0)
    }

    fn prepared(&mut self, order: Order) -> Result<&Prepared, FitError> {
        let needed = order.samples_min();
        if self.series.len() < needed {
            let samples = self.series.len();
            return Err(FitError::TooShort { samples, needed });
        }
        let slot = &mut self.prepared[usize::from(order.constant)];
        match slot {
            Some(prepared) => Ok(prepared),
            None => Ok(slot.insert(Prepared::new(self.series, order)?)),
        }
    }

    /// The best order after an exact fit of the finalists.
    fn finish(mut self) -> Result<(Prepared, Fit), FitError> {
        let ranked = std::mem::take(&mut self.ranked);
        let mut best: Option<Fit> = None;
        let mut finalists = 0;
        for candidate in ranked {
            if finalists == FINALISTS {
                break;
            }
            let prepared = self.prepared(candidate.order)?;
            let start: &Blocks = &candidate.numbers;
            let Some(fit) = prepared
                .fit_best(candidate.order, start)
                .filter(|fit| fit.is_stable_beyond(ROOT_RADIUS_MIN))
            else {
                continue;
            };
            finalists += 1;
            if best.as_ref().is_none_or(|best| fit.aicc() < best.aicc()) {
                best = Some(fit);
            }
        }
        let best = best.ok_or(FitError::NoModel)?;
        let prepared = self.prepared(best.order)?.clone();
        Ok((prepared, best))
    }
}
