//! What the history has of each application, for the models to begin with.

use std::path::Path;

use forebay_core::app::{AppId, Class};
use forebay_core::outlook::Resource;
use forebay_core::outlook::ahead::Forecasts;
use forebay_forecast::scales::{Bucket, SCALES};

use crate::store::{self, HistoryQuery, Level, Reader, Resolution, StoreError};

/// The series of the history that are those of a resource.
const SERIES: [(Resource, store::Resource); 7] = [
    (Resource::Cpu, store::Resource::Cpu),
    (Resource::Memory, store::Resource::Memory),
    (Resource::Io, store::Resource::Io),
    (Resource::Received, store::Resource::Received),
    (Resource::Sent, store::Resource::Sent),
    (Resource::Requests, store::Resource::Requests),
    (Resource::ResponseTime, store::Resource::ResponseTime),
];

/// Tells the forecasts what the history knows. Without a history that can be read they begin with
/// nothing, and that is said.
pub(super) fn replay(forecasts: &mut Forecasts, history: &Path, apps: &[(AppId, Class)]) {
    let told = Reader::open(history).and_then(|reader| {
        apps.iter().try_fold(0, |told, (app, class)| {
            Ok(told + replay_app(forecasts, &reader, app, *class)?)
        })
    });
    match told {
        Ok(buckets) => tracing::info!(buckets, apps = apps.len(), "the past was taken in"),
        Err(error) => {
            tracing::warn!(%error, "forecasts begin without the past of applications");
        }
    }
}

fn replay_app(
    forecasts: &mut Forecasts,
    reader: &Reader,
    app: &AppId,
    class: Class,
) -> Result<usize, StoreError> {
    let mut told = 0;
    for (resource, series) in SERIES {
        for (scale, level) in Level::ALL.into_iter().enumerate() {
            let query = HistoryQuery {
                app: Some(app.clone()),
                resource: series,
                since_unix_ms: 0,
                until_unix_ms: u64::MAX,
                resolution: Resolution::At(level),
                limit: SCALES[scale].history_max,
            };
            for row in reader.history(&query)?.rows {
                let bucket = Bucket {
                    start_unix_ms: row.time_unix_ms,
                    mean: row.mean,
                    max: row.max,
                    samples: u32::try_from(row.count).unwrap_or(u32::MAX),
                };
                forecasts.replay((app, class), resource, scale, &bucket);
                told += 1;
            }
        }
    }
    Ok(told)
}
