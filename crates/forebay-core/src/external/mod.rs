//! Forecasts that others make, and how far each is believed.
//!
//! # Problem
//!
//! Somebody may know of a load before it can be seen: a billing run, a campaign, a model of
//! their own. They may also be wrong, late, or gone, and a plan must not be worse for them.
//!
//! # Approach
//!
//! A source gives spans of time with quantiles of the greatest need in each ([`Given`]). What is
//! measured is taken together to means of ten seconds, and the greatest of those in a span is
//! what came true of it. When a span is over, the source's loss (pinball at 0.5 and 0.95, summed)
//! is noted beside that of a naive forecast: that everything stays as it was when the source
//! issued its forecast. The ratio of both over the last [`JUDGED_MAX`] spans is the measure:
//!
//! - before [`JUDGED_MIN`] spans were judged, a source is believed by half;
//! - at half of the naive losses or less it is believed wholly, at the naive losses or more it is
//!   ignored, and in between the belief falls in a straight line.
//!
//! A source believed by the share w is expected at `now + w * (said - now)`, where `now` is the
//! last ten seconds measured: by half is half way between its word and nothing new.
//!
//! # Properties
//!
//! - A span is judged only when it was known before it began, and by its latest version: what is
//!   said in hindsight earns nothing.
//! - A span of which less than half was measured is not judged.
//! - A source whose spans are all past expects nothing. One that was refused keeps what it said
//!   before, until that is past.
//! - A perfect source is believed wholly, and a useless one ignored, after [`JUDGED_MIN`] spans.
//! - State is bounded: [`POINTS_MAX`] spans a source and one hour of means a series.
//!
//! # Source
//!
//! Relative pinball loss against a persistence forecast as a skill score: Gneiting and Raftery,
//! "Strictly proper scoring rules, prediction, and estimation", JASA 2007.

mod given;
mod measured;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use forebay_forecast::{Quantiles, is_plausible, pinball};

use crate::app::AppId;
use crate::outlook::{Expected, Outlook, Resource};
pub use given::{Given, POINTS_MAX, Point, Refused, SPAN_MIN};
use measured::Measured;

/// Spans that are judged before a source is believed by its record.
pub const JUDGED_MIN: usize = 6;
/// The latest spans that make its record.
pub const JUDGED_MAX: usize = 32;
/// Share of the naive losses at which a source is believed wholly.
const RATIO_BELIEVED: f64 = 0.5;
/// How far a source without a record is believed.
const BELIEF_UNPROVEN: f64 = 0.5;
/// How long what is over may wait for what was measured meanwhile.
const LATE_MAX_MS: u64 = 60_000;
/// How far the clock of a source may be ahead.
const AHEAD_MAX_MS: u64 = 60_000;

/// Where a forecast comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// The app it is about.
    pub app: AppId,
    /// What of it.
    pub resource: Resource,
    /// The file or the address, as configured.
    pub place: String,
}

/// All sources, what they said and how it turned out.
#[derive(Debug, Clone, Default)]
pub struct External {
    sources: BTreeMap<Source, Record>,
    measured: BTreeMap<(AppId, Resource), Measured>,
}

/// What one source said and how it turned out.
#[derive(Debug, Clone, Default)]
struct Record {
    issued_unix_ms: Option<u64>,
    /// In the order of time: spans under way or to come.
    spans: Vec<Span>,
    /// The latest losses, oldest first.
    judged: VecDeque<Losses>,
    /// Why the latest was not taken.
    refused: Option<String>,
}

/// One span that is not over.
#[derive(Debug, Clone, PartialEq)]
struct Span {
    point: Point,
    issued_unix_ms: u64,
    /// What was measured last when it was issued; the first thing measured after that, where
    /// nothing was before.
    naive: Option<f64>,
    /// Whether it was known before it began.
    in_time: bool,
    peak: Option<f64>,
    /// Means of ten seconds in it that were measured.
    seen: u64,
}

#[derive(Debug, Clone, Copy)]
struct Losses {
    own: f64,
    naive: f64,
}

/// How far a source is believed, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Belief {
    /// Too few of its spans were judged.
    Unproven {
        /// How many were.
        judged: usize,
    },
    /// Its losses are `ratio` of the naive ones over so many spans.
    Proven {
        /// Below 1 it is better than the naive forecast.
        ratio: f64,
        /// Spans judged.
        judged: usize,
    },
}

impl Belief {
    /// 0 for a source that is ignored, to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        match self {
            Self::Unproven { .. } => BELIEF_UNPROVEN,
            Self::Proven { ratio, .. } => ((1.0 - ratio) / (1.0 - RATIO_BELIEVED)).clamp(0.0, 1.0),
        }
    }
}

impl fmt::Display for Belief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.share() * 100.0;
        match self {
            Self::Unproven { judged } => write!(
                f,
                "believed {percent:.0} %: {judged} of the {JUDGED_MIN} spans that a record takes were judged"
            ),
            Self::Proven { ratio, judged } if percent > 0.0 => write!(
                f,
                "believed {percent:.0} %: {ratio:.2} of the loss of \"as it was\" over {judged} spans"
            ),
            Self::Proven { ratio, judged } => write!(
                f,
                "ignored: {ratio:.2} times the loss of \"as it was\" over the last {judged} spans"
            ),
        }
    }
}

/// What there is to say of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// The source.
    pub source: Source,
    /// How far it is believed.
    pub belief: Belief,
    /// Until when it says something, in milliseconds since 1970-01-01 UTC; nothing when what it
    /// said is past.
    pub until_unix_ms: Option<u64>,
    /// Why the latest was not taken.
    pub refused: Option<String>,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Source {
            resource, place, ..
        } = &self.source;
        write!(f, "{resource} from {place}: {}", self.belief)?;
        if self.until_unix_ms.is_none() {
            f.write_str("; it says nothing of the time from now on")?;
        }
        match &self.refused {
            Some(why) => write!(f, "; the latest was refused: {why}"),
            None => Ok(()),
        }
    }
}

impl External {
    /// Keeps the records of these sources, and forgets all others.
    pub fn set_sources(&mut self, sources: impl IntoIterator<Item = Source>) {
        let mut before = std::mem::take(&mut self.sources);
        for source in sources {
            let record = before.remove(&source).unwrap_or_default();
            self.sources.insert(source, record);
        }
        let sources = &self.sources;
        self.measured.retain(|series, _| {
            sources
                .keys()
                .any(|source| (&source.app, source.resource) == (&series.0, series.1))
        });
    }

    /// The sources, in order.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.keys()
    }

    /// Takes in a measured value, in the unit of the resource. Values are to come in the order
    /// of time; after a clock that was set back it starts anew.
    pub fn record(&mut self, unix_ms: u64, app: &AppId, resource: Resource, value: f64) {
        let of_series = |source: &Source| source.app == *app && source.resource == resource;
        if !is_plausible(value) || !self.sources.keys().any(of_series) {
            return;
        }
        let series = (app.clone(), resource);
        let measured = self.measured.entry(series).or_default();
        let Some((start, mean)) = measured.add(unix_ms, value) else {
            return;
        };
        let sources = self.sources.iter_mut();
        for (_, record) in sources.filter(|(source, _)| of_series(source)) {
            record.judge(start, mean);
        }
    }

    /// Takes in what a source said, at `now_unix_ms`.
    ///
    /// # Errors
    /// When it cannot be true; then what the source said before stays.
    pub fn take(&mut self, source: &Source, now_unix_ms: u64, given: Given) -> Result<(), Refused> {
        let measured = self.measured.get(&(source.app.clone(), source.resource));
        let Some(record) = self.sources.get_mut(source) else {
            return Err(Refused::Unknown);
        };
        let taken = record.take(now_unix_ms, given, measured);
        record.refused = taken.as_ref().err().map(ToString::to_string);
        taken
    }

    /// Notes that what a source said could not be read, and why.
    pub fn refuse(&mut self, source: &Source, why: String) {
        if let Some(record) = self.sources.get_mut(source) {
            record.refused = Some(why);
        }
    }

    /// What is expected from `now_unix_ms` on within the horizon, by the sources that are
    /// believed.
    #[must_use]
    pub fn expected(&self, now_unix_ms: u64, horizon: Duration) -> Outlook {
        let horizon = u64::try_from(horizon.as_millis()).unwrap_or(u64::MAX);
        let end = now_unix_ms.saturating_add(horizon);
        let mut outlook = Outlook::default();
        for (source, record) in &self.sources {
            let belief = record.belief();
            let share = belief.share();
            if share <= 0.0 {
                continue;
            }
            let measured = self.measured.get(&(source.app.clone(), source.resource));
            let now = measured.and_then(Measured::last).unwrap_or(0.0);
            let spans = record.spans.iter().map(|span| &span.point);
            let near =
                spans.filter(|point| point.until_unix_ms > now_unix_ms && point.from_unix_ms < end);
            for point in near {
                let peak = toward(now, point.quantiles, share);
                let of_app = outlook.expected.entry(source.app.clone()).or_default();
                of_app.push(Expected {
                    resource: source.resource,
                    from_unix_ms: point.from_unix_ms,
                    until_unix_ms: point.until_unix_ms,
                    peak,
                    why: format!("forecast {} ({belief})", source.place),
                });
            }
        }
        outlook
    }

    /// How far the sources about an app are believed, and why.
    #[must_use]
    pub fn explain(&self, now_unix_ms: u64, app: &AppId) -> Vec<Explained> {
        let about = self.sources.iter().filter(|(source, _)| source.app == *app);
        about
            .map(|(source, record)| {
                let ends = record.spans.iter().map(|span| span.point.until_unix_ms);
                Explained {
                    source: source.clone(),
                    belief: record.belief(),
                    until_unix_ms: ends.max().filter(|until| *until > now_unix_ms),
                    refused: record.refused.clone(),
                }
            })
            .collect()
    }
}

/// From what is now, a share of the way to what is said.
fn toward(now: f64, said: Quantiles, share: f64) -> Quantiles {
    let levels = said.to_array().map(|level| now + share * (level - now));
    Quantiles::new(levels).unwrap_or(said)
}

impl Record {
    fn take(&mut self, now: u64, given: Given, measured: Option<&Measured>) -> Result<(), Refused> {
        let issued = given.issued_unix_ms();
        if issued > now.saturating_add(AHEAD_MAX_MS) {
            return Err(Refused::IssuedAhead);
        }
        if self.issued_unix_ms.is_some_and(|known| known > issued) {
            return Err(Refused::IssuedBefore);
        }
        self.issued_unix_ms = Some(issued);
        let naive = measured.and_then(|measured| measured.before(issued));
        // What has begun is judged by what was said before it began.
        let (mut begun, coming): (Vec<Span>, Vec<Span>) = std::mem::take(&mut self.spans)
            .into_iter()
            .partition(|span| span.point.from_unix_ms < now);
        // What is over is judged with the next ten seconds that are measured; where nothing is
        // measured, there is nothing to wait for.
        begun.retain(|span| span.point.until_unix_ms.saturating_add(LATE_MAX_MS) > now);
        let under_way = begun.iter().any(|span| span.point.until_unix_ms > now);
        self.spans = begun;
        for point in given.into_points() {
            let in_time = point.from_unix_ms >= now;
            if point.until_unix_ms <= now || (!in_time && under_way) {
                continue;
            }
            let same = coming
                .iter()
                .find(|span| span.point == point && span.issued_unix_ms == issued);
            self.spans.push(same.cloned().unwrap_or(Span {
                point,
                issued_unix_ms: issued,
                naive,
                in_time,
                peak: None,
                seen: 0,
            }));
        }
        Ok(())
    }

    /// Takes in the mean of the ten seconds from `start` on, and judges what ended with them.
    fn judge(&mut self, start: u64, mean: f64) {
        let end = start.saturating_add(SPAN_MIN);
        for span in &mut self.spans {
            span.naive = span.naive.or(Some(mean));
            let Point {
                from_unix_ms,
                until_unix_ms,
                ..
            } = span.point;
            if (from_unix_ms..until_unix_ms).contains(&start) {
                span.peak = Some(span.peak.map_or(mean, |peak| peak.max(mean)));
                span.seen += 1;
            }
        }
        let judged = &mut self.judged;
        self.spans.retain(|span| {
            let over = span.point.until_unix_ms <= end;
            if over && let Some(losses) = span.losses() {
                if judged.len() == JUDGED_MAX {
                    judged.pop_front();
                }
                judged.push_back(losses);
            }
            !over
        });
    }

    fn belief(&self) -> Belief {
        let judged = self.judged.len();
        if judged < JUDGED_MIN {
            return Belief::Unproven { judged };
        }
        let own: f64 = self.judged.iter().map(|losses| losses.own).sum();
        let naive: f64 = self.judged.iter().map(|losses| losses.naive).sum();
        // Where nothing ever changed, a source that says so is perfect.
        let ratio = if own <= 0.0 { 0.0 } else { own / naive };
        Belief::Proven { ratio, judged }
    }
}

impl Span {
    /// How it turned out; nothing when that cannot be told or would be hindsight.
    fn losses(&self) -> Option<Losses> {
        let length = self.point.until_unix_ms - self.point.from_unix_ms;
        let measured = self.seen * 2 >= length / SPAN_MIN;
        let (peak, naive) = self.peak.zip(self.naive)?;
        let said = &self.point.quantiles;
        (self.in_time && measured).then(|| Losses {
            own: pinball(peak, said.q50(), 0.5) + pinball(peak, said.q95(), 0.95),
            naive: pinball(peak, naive, 0.5) + pinball(peak, naive, 0.95),
        })
    }
}
