//! The order of a series.
//!
//! # Problem
//!
//! Over five ordinary and two seasonal terms of each kind there are 648 orders,
//! and a fit of one costs milliseconds.
//!
//! # Approach
//!
//! Differences by tests ([`difference`]), the rest by
//! Akaike's corrected criterion, stepwise: from the best of a few usual orders to
//! the first neighbour that is better, until none is. A neighbour has one
//! ordinary or seasonal term more or less of one or both kinds, or the constant
//! toggled.
//!
//! Where this deviates from its source:
//!
//! - Only the last [`Search::history_max`] samples are looked at.
//! - A neighbour's search for coefficients starts from the best order's.
//! - Orders are compared by the exact likelihood wherever that is cheap: always
//!   without a season, and for short histories with a short one. Elsewhere by the
//!   conditional one, of the same samples for all. The best three are fitted
//!   exactly once more, from their own conditional fits, and the best of these is
//!   taken; after a conditional search it loses terms for as long as that makes it
//!   better. With lags beyond the exact likelihood the conditional rank stands.
//! - An order with a root nearer to the unit circle than 1.01 is passed over, as
//!   there, but by the recursion that tells stability, without finding roots. If
//!   the likeliest order is passed over because of its moving average, one
//!   difference less is searched too: such a root undoes a difference.
//!
//! # Properties
//!
//! - At most [`Search::models_max`] orders are compared, and 6 fitted exactly
//!   before terms are dropped.
//! - The same samples give the same model.
//!
//! Source: Hyndman and Khandakar, "Automatic time series forecasting: the
//! forecast package for R", Journal of Statistical Software 2008.

use std::f64::consts::{E, TAU};

use super::difference;
use super::fit::{Blocks, Fit, Prepared, check_series};
use super::likelihood::{EXACT_LAGS_MAX, Judge, Likelihood};
use super::order::{
    DIFFERENCES_MAX, Order, PERIOD_MAX, SEASONAL_TERMS_MAX, SeasonalOrder, TERMS_MAX,
};
use super::{Coefficients, FitError};

/// Samples times the square of the longest lag up to which orders are compared by
/// the exact likelihood: what it costs where it does not settle.
const EXACT_WORK_MAX: usize = 150_000;
/// Usable orders that are fitted exactly after a conditional search.
const FINALISTS: usize = 3;
/// Orders that are tried for that.
const EXACT_FITS_MAX: usize = 6;
/// Roots nearer to the unit circle make an order unusable.
const ROOT_RADIUS_MIN: f64 = 1.01;

/// Where to look for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// Steps in a season. None, or a season of which the history has less than
    /// two, or beyond [`PERIOD_MAX`], gives a model without.
    pub period: Option<usize>,
    /// Samples looked at: the last ones.
    pub history_max: usize,
    /// Orders compared, at most, after the five that a search starts from.
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
    let Some(fewer) = walk.overdifferenced() else {
        return walk.finish();
    };
    let (models_max, found) = (search.models_max - walk.tried.len(), walk.finish()?);
    let mut walk = Walk::new(series, fewer, models_max);
    let Some(other) = walk.run().and_then(|()| walk.finish()).ok() else {
        return Ok(found);
    };
    // The difference drops one sample, which counts as one of a constant spread.
    let dropped = (TAU * E).ln() + 2.0 * other.0.scale.ln();
    let comparable = other.1.likelihood == found.1.likelihood;
    let better = comparable && other.1.aicc() < found.1.aicc() + dropped;
    Ok(if better { other } else { found })
}

/// What the tests decided, before any order is fitted.
#[derive(Clone, Copy, Debug)]
struct Frame {
    d: usize,
    seasonal: Option<SeasonalOrder>,
    judge: Judge,
}

impl Frame {
    fn new(series: &[f64], period: Option<usize>) -> Self {
        let period_max = PERIOD_MAX.min(series.len() / 2);
        let period = period.filter(|period| (2..=period_max).contains(period));
        let differences = difference::choose(series, period, DIFFERENCES_MAX);
        let lags = TERMS_MAX + period.map_or(0, |period| SEASONAL_TERMS_MAX * period);
        let seasonal = period.map(|period| SeasonalOrder {
            p: 0,
            d: differences.seasonal,
            q: 0,
            period,
        });
        let judge = if series.len() * lags * lags <= EXACT_WORK_MAX {
            Judge::EXACT
        } else {
            let differenced_away = seasonal.map_or(0, |seasonal| seasonal.d * seasonal.period);
            let skip = lags.min((series.len() - differenced_away) / 2);
            Judge {
                skip,
                ..Judge::CONDITIONAL
            }
        };
        Self {
            d: differences.d,
            seasonal,
            judge,
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

    /// One term less of one kind, seasonal ones first.
    fn smaller(&self, than: Order) -> Vec<Order> {
        let seasonal = than.season();
        let terms = [than.p, than.q, seasonal.p, seasonal.q];
        let without = |kind: usize| {
            let mut fewer = terms;
            fewer[kind] = fewer[kind].checked_sub(1)?;
            self.order(fewer, than.constant)
        };
        [2, 3, 0, 1].into_iter().filter_map(without).collect()
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
    /// The lowest criterion of an order that was passed over because its moving
    /// average undoes a difference.
    passed_over: f64,
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
            passed_over: f64::INFINITY,
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
        let judge = self.frame.judge;
        let prepared = self.prepared(order)?;
        let fit = prepared.fit(order, &start.unwrap_or_default(), judge);
        let Some(fit) = fit else {
            return Ok(false);
        };
        if !is_usable(&fit.coefficients) {
            let undoing = Coefficients {
                ma: fit.coefficients.ma.clone(),
                ..Coefficients::default()
            };
            if !is_usable(&undoing) {
                self.passed_over = self.passed_over.min(fit.aicc());
            }
            return Ok(false);
        }
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

    /// One difference less, if the likeliest order was one whose moving average
    /// undoes a difference.
    fn overdifferenced(&self) -> Option<Frame> {
        let best = self.ranked.first()?.aicc();
        (self.frame.d > 0 && self.passed_over < best && self.tried.len() < self.models_max).then(
            || Frame {
                d: self.frame.d - 1,
                ..self.frame
            },
        )
    }

    /// The best order after an exact fit of the finalists, which starts from their
    /// conditional one: also where the search was exact, since one that only holds
    /// where it was searched from (terms that nearly cancel) shows itself then.
    fn finish(mut self) -> Result<(Prepared, Fit), FitError> {
        let ranked = std::mem::take(&mut self.ranked);
        let leader = ranked.first().ok_or(FitError::NoModel)?.clone();
        let mut best: Option<Fit> = None;
        let mut usable = 0;
        for candidate in ranked.iter().take(EXACT_FITS_MAX) {
            let Some(fit) = self.finalist(candidate.order, &candidate.numbers)? else {
                continue;
            };
            usable += 1;
            // One beyond the exact likelihood does not compare: its rank decides.
            let comparable = fit.likelihood == Likelihood::Exact;
            if best
                .as_ref()
                .is_none_or(|best| comparable && fit.aicc() < best.aicc())
            {
                best = Some(fit);
            }
            if usable == FINALISTS || !comparable {
                break;
            }
        }
        let best = match best {
            Some(best) => self.prune(best)?,
            // The leader was usable as the search judged it.
            None => {
                let judge = Judge {
                    skip: 0,
                    ..self.frame.judge
                };
                let prepared = self.prepared(leader.order)?;
                let fit = prepared.fit(leader.order, &leader.numbers, judge);
                fit.ok_or(FitError::NoModel)?
            }
        };
        let prepared = self.prepared(best.order)?.clone();
        Ok((prepared, best))
    }

    fn finalist(&mut self, order: Order, start: &Blocks) -> Result<Option<Fit>, FitError> {
        let fit = self.prepared(order)?.fit_best(order, start);
        Ok(fit.filter(|fit| is_usable(&fit.coefficients)))
    }

    /// Drops terms while that makes an exact fit better: of the first samples the
    /// conditional likelihood knew nothing.
    fn prune(&mut self, mut best: Fit) -> Result<Fit, FitError> {
        if self.frame.judge == Judge::EXACT || best.order.lags() > EXACT_LAGS_MAX {
            return Ok(best);
        }
        'better: loop {
            for order in self.frame.smaller(best.order) {
                if let Some(fit) = self.finalist(order, &best.numbers)?
                    && fit.aicc() < best.aicc()
                {
                    best = fit;
                    continue 'better;
                }
            }
            return Ok(best);
        }
    }
}

/// Whether all roots are far enough from the unit circle.
fn is_usable(coefficients: &Coefficients) -> bool {
    coefficients.is_stable_beyond(ROOT_RADIUS_MIN)
}
