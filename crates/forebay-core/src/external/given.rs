//! What a source says: spans of time in order, with quantiles that can be.

use forebay_forecast::{Quantiles, is_plausible};

/// Spans of one forecast at most: a week of five-minute spans.
pub const POINTS_MAX: usize = 2016;
/// The shortest span, in milliseconds.
pub const SPAN_MIN: u64 = 10_000;
/// The last time there is: the end of the year 9999.
const TIME_MAX_MS: u64 = 253_402_300_800_000;

/// A span of time and the greatest need in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// When it begins, in milliseconds since 1970-01-01 UTC.
    pub from_unix_ms: u64,
    /// When it has ended.
    pub until_unix_ms: u64,
    /// The greatest mean of ten seconds in it, in the unit of the resource.
    pub quantiles: Quantiles,
}

impl Point {
    /// From levels 0.5, 0.9, 0.95 and 0.99; one that is absent is taken for the next lower one.
    ///
    /// # Errors
    /// When a level cannot be, or is below a lower one.
    pub fn new(
        from_unix_ms: u64,
        until_unix_ms: u64,
        q50: f64,
        higher: [Option<f64>; 3],
    ) -> Result<Self, Refused> {
        let mut levels = [q50; 4];
        let mut last = q50;
        for (level, higher) in levels[1..].iter_mut().zip(higher) {
            *level = higher.unwrap_or(last);
            if *level < last {
                return Err(Refused::Crossing);
            }
            last = *level;
        }
        if !levels.iter().all(|level| is_plausible(*level)) {
            return Err(Refused::Value);
        }
        let quantiles = Quantiles::new(levels).ok_or(Refused::Value)?;
        Ok(Self {
            from_unix_ms,
            until_unix_ms,
            quantiles,
        })
    }
}

/// One forecast of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    issued_unix_ms: u64,
    points: Vec<Point>,
}

impl Given {
    /// Spans in the order of time that do not overlap.
    ///
    /// # Errors
    /// When they are not that, or too many.
    pub fn new(issued_unix_ms: u64, points: Vec<Point>) -> Result<Self, Refused> {
        if points.is_empty() || points.len() > POINTS_MAX {
            return Err(Refused::Count(points.len()));
        }
        let mut before = 0;
        for (index, point) in points.iter().enumerate() {
            if point.from_unix_ms < before {
                return Err(Refused::Order(index));
            }
            let length = point.until_unix_ms.checked_sub(point.from_unix_ms);
            if length.is_none_or(|length| length < SPAN_MIN) {
                return Err(Refused::Length(index));
            }
            if point.until_unix_ms > TIME_MAX_MS {
                return Err(Refused::Time(index));
            }
            before = point.until_unix_ms;
        }
        Ok(Self {
            issued_unix_ms,
            points,
        })
    }

    /// When it was made, in milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn issued_unix_ms(&self) -> u64 {
        self.issued_unix_ms
    }

    pub(super) fn into_points(self) -> Vec<Point> {
        self.points
    }
}

/// Why a forecast is not taken. Points are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has no points or too many.
    #[error("it has {0} points; give 1 to {POINTS_MAX}")]
    Count(usize),
    /// A point begins before the one before it has ended.
    #[error(
        "points[{0}] begins before the one before it has ended; give them in the order of time"
    )]
    Order(usize),
    /// A point is too short.
    #[error("points[{0}] is shorter than 10 s or ends before it begins; give longer spans")]
    Length(usize),
    /// A point is after all times.
    #[error("points[{0}] is after the year 9999; give times as RFC 3339 or in seconds since 1970")]
    Time(usize),
    /// A level is below a lower one.
    #[error("a higher quantile is below a lower one; give q50 <= q90 <= q95 <= q99")]
    Crossing,
    /// A level cannot be.
    #[error("a quantile is negative, no number or too great; give what can be measured")]
    Value,
    /// It was issued in the future.
    #[error("it was issued more than a minute from now; correct `issued` or the clocks")]
    IssuedAhead,
    /// A later one is known.
    #[error("it was issued before the one that is known; give newer ones only")]
    IssuedBefore,
    /// Nobody configured that source.
    #[error("no such source is configured; add a [[external_forecast]]")]
    Unknown,
}
