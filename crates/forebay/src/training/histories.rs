//! Roll-ups as what a network learns from.

use forebay_core::app::AppId;
use forebay_forecast::lstm::History;
use forebay_forecast::scales::SCALES;

use crate::store::{HistoryQuery, Level, Reader, Resolution, Resource, Row, StoreError};

/// One series at one resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    app: AppId,
    resource: Resource,
    level: Level,
}

/// Steps of a series, its values and its peaks.
#[derive(Debug, Clone)]
pub(super) struct Steps {
    /// Means and maxima of the roll-ups.
    pub(super) histories: [History; 2],
    /// The first step that begins at or after the time that was asked for; the count of steps
    /// where none does.
    pub(super) fresh: usize,
}

/// All that could be learnt from: the resolutions of one series beside each other, so that any
/// stretch of the list has all of them.
pub(super) fn sources(reader: &Reader) -> Result<Vec<Source>, StoreError> {
    let mut sources = Vec::new();
    for (app, resource) in reader.series()? {
        let (Some(app), true) = (app, resource.is_demand()) else {
            continue;
        };
        sources.extend(Level::ALL.map(|level| Source {
            app: app.clone(),
            resource,
            level,
        }));
    }
    Ok(sources)
}

impl Source {
    /// The last `steps_max` whole steps up to the end of the roll-ups of ten seconds. Those that
    /// have no samples are gaps. None where there are none at all.
    pub(super) fn read(
        &self,
        reader: &Reader,
        end_unix_ms: u64,
        steps_max: usize,
        fresh_unix_ms: u64,
    ) -> Result<Option<Steps>, StoreError> {
        let step = self.level.step_ms();
        let span = u64::try_from(steps_max)
            .unwrap_or(u64::MAX)
            .saturating_mul(step);
        let Some(last) = end_unix_ms.checked_sub(step) else {
            return Ok(None);
        };
        let answer = reader.history(&HistoryQuery {
            app: Some(self.app.clone()),
            resource: self.resource,
            since_unix_ms: end_unix_ms.saturating_sub(span),
            until_unix_ms: last,
            resolution: Resolution::At(self.level),
            limit: steps_max,
        })?;
        Ok(steps(&answer.rows, self.level, fresh_unix_ms))
    }
}

fn steps(rows: &[Row], level: Level, fresh_unix_ms: u64) -> Option<Steps> {
    let (first, last) = (rows.first()?.time_unix_ms, rows.last()?.time_unix_ms);
    let place = |time: u64| usize::try_from((time - first) / level.step_ms()).unwrap_or(usize::MAX);
    let mut histories = [0, 1].map(|_| History {
        values: vec![f64::NAN; place(last) + 1],
        period: SCALES
            .iter()
            .find(|scale| scale.bucket.as_millis() == u128::from(level.step_ms()))
            .and_then(|scale| scale.cycle),
    });
    for row in rows {
        histories[0].values[place(row.time_unix_ms)] = row.mean;
        histories[1].values[place(row.time_unix_ms)] = row.max;
    }
    let whole = fresh_unix_ms
        .saturating_sub(first)
        .div_ceil(level.step_ms());
    let count = histories[0].values.len();
    Some(Steps {
        histories,
        fresh: usize::try_from(whole).unwrap_or(usize::MAX).min(count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(time_unix_ms: u64, mean: f64) -> Row {
        Row {
            time_unix_ms,
            count: 1,
            min: mean,
            mean,
            max: mean + 1.0,
            last: mean,
            demand_q95: None,
        }
    }

    #[test]
    fn times_without_samples_are_gaps() {
        let rows = [row(60_000, 1.0), row(120_000, 2.0), row(240_000, 4.0)];
        let check = |fresh_unix_ms, fresh| {
            let steps = steps(&rows, Level::Minute, fresh_unix_ms).unwrap();
            let [means, maxima] = &steps.histories;
            let shown: Vec<String> = means.values.iter().map(|v| v.to_string()).collect();
            assert_eq!(shown.join(" "), "1 2 NaN 4");
            assert_eq!(maxima.values[3], 5.0);
            assert_eq!(means.period, Some(60));
            assert_eq!(steps.fresh, fresh, "{fresh_unix_ms}");
        };
        check(0, 0);
        check(60_000, 0);
        check(60_001, 1);
        check(180_000, 2);
        check(240_000, 3);
        check(900_000, 4);
        assert!(steps(&[], Level::Minute, 0).is_none());
    }
}
