//! What timers, crontabs and declared events do to apps, learnt from what happened after them.
//!
//! # Problem
//!
//! A forecast of samples sees the nightly backup when it has begun. The host knows days ahead that it
//! will; what it does not know is which apps that concerns, how much more they will need then,
//! and for how long.
//!
//! # Approach
//!
//! A [`Source`] has times; [`Occasions`] compares what every app needed after them with what it needed
//! before, and with other times (`evidence`). Where there is an effect, the next
//! occurrences within a horizon become [`Expected`](crate::outlook::Expected). What somebody
//! declared stands until three occurrences were seen and then gives way, in four steps, to what was measured.
//! Whole days of a calendar become a factor (`holiday`): on the day before, it is that of forecasts
//! of the day. Plans do not go by it, since the day's peak is not the need of each of its hours.
//!
//! An effect here is what follows, whatever causes it: where two timers elapse at once, both are named.
//!
//! # Properties
//!
//! - Everything is bounded: [`SOURCES_MAX`] sources, [`SERIES_MAX`] series, [`PAIRS_MAX`] pairs of a
//!   source and a series, [`AHEAD_MAX`] occurrences of each, [`EXPECTED_MAX`] expectations for an app.
//! - A gap is no zero: an occurrence with less than three quarters of its samples is not learnt from.
//! - Sources that occur more often than every 40 minutes are left to the models that find periods,
//!   except for what is declared of them.
//! - Time is an argument; nothing is drawn.

mod evidence;
mod holiday;
mod known;
mod numbers;
mod state;
mod timeline;
mod track;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::app::AppId;
use crate::outlook::{Expected, Outlook, Resource};

pub use evidence::{ALPHA, CONTROLS_MAX, MEASURED_MIN, SEEN_MAX, SEEN_MIN, least};
use known::{Known, Learnt, Pair};
use state::{PairState, SourceState};
pub use state::{STATE_VERSION, State, StateError};
use timeline::Timeline;
pub use timeline::{DayFilter, Source, Times};
pub use track::SLOT_MS;
use track::Track;

/// Sources that are watched, and as many again that are remembered.
pub const SOURCES_MAX: usize = 64;
/// Apps times resources.
pub const SERIES_MAX: usize = 512;
/// Pairs of a source and a series, in all: 1.5 KiB each.
pub const PAIRS_MAX: usize = 2048;
/// Occurrences of one source that are looked ahead to.
pub const AHEAD_MAX: usize = 32;
/// Expectations for one app, the soonest first.
pub const EXPECTED_MAX: usize = 256;
/// Lines of one explanation.
pub const LINES_MAX: usize = 64;
/// A series that was silent for so long makes room for another.
const SILENT_MS: u64 = 86_400_000;
/// A longer reason is not added to.
const WHY_BYTES_MAX: usize = 160;

/// Values by app and resource.
type ByApp<T> = BTreeMap<AppId, BTreeMap<Resource, T>>;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Occasions {
    sources: Vec<Known>,
    /// Remembered of sources that are not there now.
    absent: BTreeMap<String, Learnt>,
    tracks: ByApp<Track>,
}

impl Occasions {
    /// Takes up what was learnt before. Its sources count once [`Self::set_sources`] names them.
    ///
    /// # Errors
    /// When the state is of another version or has numbers that nobody wrote.
    pub fn restore(state: State) -> Result<Self, StateError> {
        if state.version != STATE_VERSION {
            return Err(StateError::Version(state.version));
        }
        let mut occasions = Self::default();
        let mut room = PAIRS_MAX;
        for source in state.sources.into_iter().take(2 * SOURCES_MAX) {
            let (name, learnt) = remembered(source)?;
            if let Some(left) = room.checked_sub(learnt.count()) {
                room = left;
                occasions.absent.insert(name, learnt);
            }
        }
        Ok(occasions)
    }

    /// What was learnt, of absent sources too.
    #[must_use]
    pub fn state(&self) -> State {
        let present = self.sources.iter();
        let present = present.map(|known| (&known.source().name, &known.learnt));
        State {
            version: STATE_VERSION,
            sources: present
                .chain(&self.absent)
                .map(|(name, learnt)| kept(name, learnt))
                .collect(),
        }
    }

    /// Says which sources there are now. What was learnt of those that were there before stays; of
    /// those that are gone it is remembered, as far as there is room. Returns how many were left out,
    /// as the same name twice or beyond [`SOURCES_MAX`].
    pub fn set_sources(&mut self, now_unix_ms: u64, sources: Vec<Source>) -> usize {
        let mut before: BTreeMap<String, Known> = std::mem::take(&mut self.sources)
            .into_iter()
            .map(|known| (known.source().name.clone(), known))
            .collect();
        let mut left_out = 0;
        for source in sources {
            let is_there = |known: &Known| known.source().name == source.name;
            if self.sources.len() >= SOURCES_MAX || self.sources.iter().any(is_there) {
                left_out += 1;
                continue;
            }
            let name = source.name.clone();
            let mut timeline = Timeline::new(source, now_unix_ms);
            let mut learnt = match before.remove(&name) {
                Some(known) => {
                    timeline.follow(&known.timeline, now_unix_ms);
                    known.learnt
                }
                None => self.absent.remove(&name).unwrap_or_default(),
            };
            timeline.settle_length(learnt.length_ms);
            if timeline.length.is_some() && learnt.length_ms != timeline.length {
                learnt.pairs.clear();
                learnt.length_ms = timeline.length;
            }
            learnt.present_ms = now_unix_ms;
            self.sources.push(Known { timeline, learnt });
        }
        let gone = before.into_iter().map(|(name, known)| (name, known.learnt));
        self.absent.extend(gone);
        self.forget_oldest();
        left_out
    }

    fn forget_oldest(&mut self) {
        while self.absent.len() > SOURCES_MAX
            || (!self.absent.is_empty() && self.pairs() >= PAIRS_MAX)
        {
            let oldest = self
                .absent
                .iter()
                .min_by_key(|(_, learnt)| learnt.present_ms);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else {
                return;
            };
            self.absent.remove(&name);
        }
    }

    /// Pairs of a source and a series.
    fn pairs(&self) -> usize {
        let present = self.sources.iter().map(|known| known.learnt.count());
        present.sum::<usize>() + self.absent.values().map(Learnt::count).sum::<usize>()
    }

    /// Takes a sample in, at least one in ten seconds. What is not plausible or comes too late is a gap.
    pub fn record(&mut self, unix_ms: u64, app: &AppId, resource: Resource, value: f64) {
        if !forebay_forecast::is_plausible(value) {
            return;
        }
        let known = self.tracks.get_mut(app);
        let Some(track) = known.and_then(|inner| inner.get_mut(&resource)) else {
            if self.make_room(unix_ms) {
                let inner = self.tracks.entry(app.clone()).or_default();
                inner.insert(resource, Track::new(unix_ms, value));
            }
            return;
        };
        let Some(slot) = track.add(unix_ms, value) else {
            return;
        };
        let track = track.clone();
        let mut room = PAIRS_MAX.saturating_sub(self.pairs());
        for known in &mut self.sources {
            known.feed((app, resource), slot, &track, &mut room);
        }
    }

    /// Whether one more series may be watched.
    fn make_room(&mut self, now_ms: u64) -> bool {
        let count = |tracks: &ByApp<Track>| tracks.values().map(BTreeMap::len).sum::<usize>();
        if count(&self.tracks) < SERIES_MAX {
            return true;
        }
        for inner in self.tracks.values_mut() {
            inner.retain(|_, track| track.last_ms().saturating_add(SILENT_MS) > now_ms);
        }
        self.tracks.retain(|_, inner| !inner.is_empty());
        count(&self.tracks) < SERIES_MAX
    }

    /// What is to come within the horizon, and what has begun and is not over.
    #[must_use]
    pub fn expected(&self, now_unix_ms: u64, horizon: Duration) -> Outlook {
        let horizon = u64::try_from(horizon.as_millis()).unwrap_or(u64::MAX);
        let span = (now_unix_ms, now_unix_ms.saturating_add(horizon));
        let mut outlook = Outlook::default();
        for known in &self.sources {
            known.expected(span, &self.tracks, |app, expected| {
                add(outlook.expected.entry(app.clone()).or_default(), expected);
            });
        }
        for expected in outlook.expected.values_mut() {
            expected.sort_by_key(|each| (each.from_unix_ms, each.resource));
            expected.truncate(EXPECTED_MAX);
        }
        outlook
    }

    /// How much of an ordinary day's need there is on the day of a moment to come, and which calendar
    /// says so.
    #[must_use]
    pub fn factor_on(
        &self,
        app: &AppId,
        resource: Resource,
        now_unix_ms: u64,
        at_unix_ms: u64,
    ) -> Option<(f64, String)> {
        let mut sources = self.sources.iter();
        sources.find_map(|known| known.factor_on((app, resource), now_unix_ms, at_unix_ms))
    }

    /// Which sources matter for an app and how, and last which do not.
    #[must_use]
    pub fn explain(&self, app: &AppId) -> Vec<String> {
        let (mut lines, mut idle) = (Vec::new(), Vec::new());
        for known in &self.sources {
            known.explain(app, &mut lines, &mut idle);
        }
        lines.truncate(LINES_MAX - 1);
        if !idle.is_empty() {
            lines.push(format!("without effect: {}", idle.join(", ")));
        }
        lines
    }
}

/// Adds an expectation; what two sources expect of the same moment is one, with the greater peak.
fn add(all: &mut Vec<Expected>, expected: Expected) {
    let same = all.iter_mut().find(|each| {
        each.resource == expected.resource && each.from_unix_ms == expected.from_unix_ms
    });
    let Some(same) = same else {
        all.push(expected);
        return;
    };
    if expected.peak.q95() > same.peak.q95() {
        same.peak = expected.peak;
    }
    same.until_unix_ms = same.until_unix_ms.max(expected.until_unix_ms);
    if same.why.len() + expected.why.len() <= WHY_BYTES_MAX {
        same.why = format!("{}; {}", same.why, expected.why);
    }
}

fn kept(name: &str, learnt: &Learnt) -> SourceState {
    SourceState {
        name: name.to_owned(),
        present_ms: learnt.present_ms,
        length_ms: learnt.length_ms,
        pairs: flat(&learnt.pairs, |pair: &Pair| pair.evidence.clone()),
        days: flat(&learnt.days, Clone::clone),
    }
}

fn flat<T, S>(map: &ByApp<T>, keep: impl Fn(&T) -> S) -> Vec<PairState<S>> {
    let each = map.iter().flat_map(|(app, inner)| {
        let inner = inner.iter();
        inner.map(move |(resource, value)| (app, *resource, value))
    });
    each.map(|(app, resource, value)| PairState {
        app: app.clone(),
        resource,
        evidence: keep(value),
    })
    .collect()
}

fn remembered(source: SourceState) -> Result<(String, Learnt), StateError> {
    let mut learnt = Learnt {
        present_ms: source.present_ms,
        length_ms: source.length_ms,
        ..Learnt::default()
    };
    for mut pair in source.pairs {
        if !pair.evidence.is_plausible() {
            return Err(StateError::Numbers(source.name));
        }
        pair.evidence.restore(pair.resource);
        let inner = learnt.pairs.entry(pair.app).or_default();
        inner.insert(pair.resource, Pair::from(pair.evidence));
    }
    for mut pair in source.days {
        if !pair.evidence.is_plausible() {
            return Err(StateError::Numbers(source.name));
        }
        pair.evidence.restore();
        let inner = learnt.days.entry(pair.app).or_default();
        inner.insert(pair.resource, pair.evidence);
    }
    Ok((source.name, learnt))
}
