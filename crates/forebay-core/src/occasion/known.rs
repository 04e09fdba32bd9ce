//! One source with what was learnt of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forebay_forecast::Quantiles;

use super::ByApp;
use super::evidence::{BINS, Course, EDGES, Evidence, MEASURED_MIN, SEEN_MIN};
use super::holiday::HolidayEvidence;
use super::timeline::{Source, Timeline, Times, Window, timestamp};
use super::track::{SLOT_MS, Slot, Track};
use crate::app::AppId;
use crate::outlook::{Expected, Resource};
use crate::units::Bytes;

/// What is declared without a duration is taken to last so long.
const LASTS: Duration = Duration::from_secs(600);
/// A window that was seen from so late on is none.
const LATE_MS: u64 = 3 * SLOT_MS;
/// Nearer than this, what an app needs now says what it will need before the occurrence.
const NEAR_MS: u64 = 600_000;

/// What is remembered of a source, also while it is absent.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// When it was last among the sources.
    pub(super) present_ms: u64,
    /// How long its occurrences were watched: what was learnt holds for that alone.
    pub(super) length_ms: Option<u64>,
    pub(super) pairs: ByApp<Pair>,
    pub(super) days: ByApp<HolidayEvidence>,
}

impl Learnt {
    pub(super) fn count(&self) -> usize {
        let pairs: usize = self.pairs.values().map(BTreeMap::len).sum();
        pairs + self.days.values().map(BTreeMap::len).sum::<usize>()
    }
}

/// One resource of one app beside a source.
#[derive(Debug, Default)]
pub(super) struct Pair {
    pub(super) evidence: Evidence,
    open: Option<Open>,
}

/// A window that is not over.
#[derive(Debug, Clone, Copy)]
struct Open {
    window: Window,
    level: Option<f64>,
    peaks: [f64; BINS],
    slots: u64,
}

impl Open {
    fn new(window: Window, length: u64, slot: Slot, track: &Track) -> Self {
        let is_late = slot.at_ms > window.start + LATE_MS.min(length);
        Self {
            window,
            level: if is_late {
                None
            } else {
                track.level(window.start)
            },
            peaks: [f64::NEG_INFINITY; BINS],
            slots: 0,
        }
    }

    fn add(&mut self, slot: Slot, length: u64) {
        let sixtieths = (slot.at_ms - self.window.start) * 60 / length;
        let bin = EDGES[1..].partition_point(|edge| *edge <= sixtieths);
        if let Some(peak) = self.peaks.get_mut(bin) {
            *peak = peak.max(slot.peak);
            self.slots += 1;
        }
    }

    /// None with gaps.
    fn close(&self, length: u64) -> Option<Course> {
        let level = self.level?;
        let is_whole = self.slots >= length / SLOT_MS * 3 / 4;
        let rises = self.peaks.map(|peak| peak - level);
        let is_known = rises.iter().all(|rise| rise.is_finite());
        (is_whole && is_known).then(|| Course {
            level: narrow(level),
            rises: rises.map(narrow),
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "what is kept is rounded; plausible values are far below the largest f32"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}

/// What a source has to say of one resource of one app.
struct Stage {
    /// From when on after the occurrence, in milliseconds.
    from_ms: u64,
    /// Until when.
    until_ms: u64,
    declared: Option<f64>,
    /// Parts, and how much what was measured counts.
    measured: Option<((usize, usize), f64)>,
    why: String,
}

/// A source that is present.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) timeline: Timeline,
    pub(super) learnt: Learnt,
}

impl Known {
    pub(super) const fn source(&self) -> &Source {
        &self.timeline.source
    }

    /// Takes a slot in. With `room`, of how many pairs there may be more.
    pub(super) fn feed(
        &mut self,
        (app, resource): (&AppId, Resource),
        slot: Slot,
        track: &Track,
        room: &mut usize,
    ) {
        if !self.source().concerns(app) {
            return;
        }
        if let Times::WholeDays { days, zone } = &self.timeline.source.times {
            let Some(at) = timestamp(slot.at_ms) else {
                return;
            };
            let date = zone.to_datetime(at).date();
            let is_holiday = days.has(date);
            if let Some(evidence) = entry(&mut self.learnt.days, app, resource, room) {
                evidence.feed(date, is_holiday, slot.peak);
            }
            return;
        }
        self.timeline.advance(slot.at_ms);
        let Some(length) = self.timeline.length else {
            return;
        };
        let window = self.timeline.window_at(slot.at_ms);
        let Some(pair) = entry(&mut self.learnt.pairs, app, resource, room) else {
            return;
        };
        if pair.open.map(|open| open.window) != window {
            if let Some(open) = pair.open.take()
                && let Some(course) = open.close(length)
            {
                if open.window.is_occurrence {
                    pair.evidence.add_seen(course, resource);
                } else {
                    pair.evidence.add_control(course, resource);
                }
            }
            pair.open = window.map(|window| Open::new(window, length, slot, track));
        }
        if let Some(open) = &mut pair.open {
            open.add(slot, length);
        }
    }

    /// The apps and resources that there may be something to say of.
    fn subjects(&self) -> BTreeSet<(&AppId, Resource)> {
        let source = self.source();
        let declared = source.apps.iter().flatten();
        let declared = declared.flat_map(|app| {
            source
                .declared
                .iter()
                .map(move |(resource, _)| (app, *resource))
        });
        let learnt = self.learnt.pairs.iter();
        let learnt =
            learnt.flat_map(|(app, pairs)| pairs.keys().map(move |resource| (app, *resource)));
        let allowed = learnt.filter(|(app, _)| source.concerns(app));
        declared.chain(allowed).collect()
    }

    fn pair(&self, app: &AppId, resource: Resource) -> Option<&Pair> {
        self.learnt.pairs.get(app)?.get(&resource)
    }

    fn stage(&self, app: &AppId, resource: Resource) -> Option<Stage> {
        let source = self.source();
        let name = &source.name;
        let declared = source.declares(resource);
        // While it recurs too often to be watched, what was learnt before says nothing.
        let watched = self.timeline.length.and(self.pair(app, resource));
        let evidence = watched.map(|pair| &pair.evidence);
        let seen = evidence.map_or(0, |evidence| evidence.seen.len());
        let lasts = source.lasts.unwrap_or(LASTS);
        let lasts = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        let length = self.timeline.length.unwrap_or(lasts).max(1);
        let edge = |at: usize| EDGES[at] * length / 60;
        let effect = evidence.and_then(Evidence::effect);
        let parts = effect.map(|effect| (effect.first, effect.last));
        let (from_ms, until_ms) = match parts {
            Some((first, last)) if declared.is_none() || seen >= MEASURED_MIN => {
                (edge(first), edge(last + 1))
            }
            _ => (0, lasts),
        };
        if declared.is_none() {
            return Some(Stage {
                from_ms,
                until_ms,
                declared,
                measured: Some((parts?, 1.0)),
                why: format!("{name}: learnt from {seen} occurrences"),
            });
        }
        let within = (0..BINS).rfind(|bin| edge(*bin) < lasts).unwrap_or(0);
        let parts = parts.unwrap_or((0, within));
        let (share, why) = match seen {
            0..SEEN_MIN => (0.0, format!("{name}: declared")),
            SEEN_MIN..MEASURED_MIN => (
                (seen + 1 - SEEN_MIN) as f64 / (MEASURED_MIN + 1 - SEEN_MIN) as f64,
                format!("{name}: declared, and measured in {seen} occurrences"),
            ),
            _ => (1.0, format!("{name}: measured in {seen} occurrences")),
        };
        Some(Stage {
            from_ms,
            until_ms,
            declared,
            measured: (share > 0.0).then_some((parts, share)),
            why,
        })
    }

    /// What is to come, by app.
    pub(super) fn expected(
        &self,
        (now_ms, until_ms): (u64, u64),
        tracks: &ByApp<Track>,
        mut tell: impl FnMut(&AppId, Expected),
    ) {
        for (app, resource) in self.subjects() {
            let Some(stage) = self.stage(app, resource) else {
                continue;
            };
            let pair = self.pair(app, resource);
            let track = tracks.get(app).and_then(|each| each.get(&resource));
            for start in self.timeline.between(now_ms, until_ms, stage.until_ms) {
                let level = level(start, now_ms, pair, track);
                let evidence = pair.map(|pair| &pair.evidence);
                let Some(peak) = stage.peak(evidence, level) else {
                    continue;
                };
                let expected = Expected {
                    resource,
                    from_unix_ms: start.saturating_add(stage.from_ms),
                    until_unix_ms: start.saturating_add(stage.until_ms),
                    peak,
                    why: stage.why.clone(),
                };
                if expected.until_unix_ms > now_ms && expected.from_unix_ms <= until_ms {
                    tell(app, expected);
                }
            }
        }
    }

    /// How much of an ordinary day's need there is on the day of a moment, and who says so, where that
    /// day is of the calendar and today is not: what goes on, the models see.
    pub(super) fn factor_on(
        &self,
        (app, resource): (&AppId, Resource),
        now_ms: u64,
        at_ms: u64,
    ) -> Option<(f64, String)> {
        let Times::WholeDays { days, zone } = &self.source().times else {
            return None;
        };
        let is_of_calendar =
            |unix_ms: u64| Some(days.has(zone.to_datetime(timestamp(unix_ms)?).date()));
        if is_of_calendar(now_ms)? || !is_of_calendar(at_ms)? {
            return None;
        }
        let evidence = self.learnt.days.get(app)?.get(&resource)?;
        let factor = evidence.factor()?;
        Some((factor, self.explain_days(factor, evidence)))
    }

    fn explain_days(&self, factor: f64, evidence: &HolidayEvidence) -> String {
        format!(
            "{}: {factor:.2} of an ordinary day's peak, learnt from {} days",
            self.source().name,
            evidence.seen.len()
        )
    }

    /// What matters to an app, and what does not although it was watched.
    pub(super) fn explain(&self, app: &AppId, lines: &mut Vec<String>, idle: &mut Vec<String>) {
        let name = &self.source().name;
        if self.timeline.length.is_none()
            && !matches!(self.source().times, Times::WholeDays { .. })
            && self.source().concerns(app)
            && self.source().declared.is_empty()
        {
            idle.push(format!("{name} (too often)"));
            return;
        }
        let mut watched = None;
        for (whose, resource) in self.subjects() {
            if whose != app {
                continue;
            }
            match self.stage(app, resource) {
                Some(stage) => lines.push(self.explain_stage(app, resource, &stage)),
                None => {
                    let pair = self.pair(app, resource);
                    let seen = pair.map_or(0, |pair| pair.evidence.seen.len());
                    watched = Some(watched.unwrap_or(0).max(seen));
                }
            }
        }
        if let Some(seen) = watched {
            idle.push(format!("{name} ({seen} seen)"));
        }
        for (whose, resource, evidence) in each(&self.learnt.days) {
            if let Some(factor) = evidence.factor().filter(|_| whose == app) {
                lines.push(format!(
                    "{resource}, {}",
                    self.explain_days(factor, evidence)
                ));
            }
        }
    }

    fn explain_stage(&self, app: &AppId, resource: Resource, stage: &Stage) -> String {
        let evidence = self.pair(app, resource).map(|pair| &pair.evidence);
        let span = format!(
            "from {} to {} after it",
            time(stage.from_ms),
            time(stage.until_ms)
        );
        let rise = stage.measured.and_then(|(parts, _)| evidence?.rise(parts));
        let measured = rise.map(|rise| format!(", {} above before", amount(resource, rise)));
        let declared = stage.declared;
        let declared = declared.map(|value| format!(", {} declared", amount(resource, value)));
        let chance = evidence.and_then(Evidence::effect);
        let chance = chance.map(|effect| format!(" (p {:.0e})", effect.p));
        format!(
            "{}: {resource}{}{} {span}{}",
            stage.why,
            measured.unwrap_or_default(),
            declared.unwrap_or_default(),
            chance.unwrap_or_default()
        )
    }
}

impl Stage {
    fn peak(&self, evidence: Option<&Evidence>, level: Option<f64>) -> Option<Quantiles> {
        let measured = self
            .measured
            .and_then(|(parts, share)| Some((evidence?.peak(parts, level)?, share)));
        match (self.declared, measured) {
            (Some(amount), Some((measured, share))) => {
                let mix = |value: f64| share * value + (1.0 - share) * amount;
                Quantiles::new(measured.to_array().map(mix))
            }
            (Some(amount), None) => Quantiles::new([amount; 4]),
            (None, Some((measured, _))) => Some(measured),
            (None, None) => None,
        }
    }
}

/// What an app needs before an occurrence, where that can be told better than from the past.
fn level(start: u64, now_ms: u64, pair: Option<&Pair>, track: Option<&Track>) -> Option<f64> {
    if start <= now_ms {
        let open = pair?.open.filter(|open| open.window.start == start);
        return open?.level;
    }
    if start - now_ms <= NEAR_MS {
        return track?.level(now_ms);
    }
    None
}

fn each<T>(map: &ByApp<T>) -> impl Iterator<Item = (&AppId, Resource, &T)> {
    map.iter().flat_map(|(app, inner)| {
        let inner = inner.iter();
        inner.map(move |(resource, value)| (app, *resource, value))
    })
}

/// The entry, made where there is room.
fn entry<'a, T: Default>(
    map: &'a mut ByApp<T>,
    app: &AppId,
    resource: Resource,
    room: &mut usize,
) -> Option<&'a mut T> {
    let is_there = map
        .get(app)
        .is_some_and(|inner| inner.contains_key(&resource));
    if !is_there {
        if *room == 0 {
            return None;
        }
        *room -= 1;
        let inner = map.entry(app.clone()).or_default();
        inner.insert(resource, T::default());
    }
    map.get_mut(app)?.get_mut(&resource)
}

fn amount(resource: Resource, value: f64) -> String {
    match resource {
        Resource::Cpu => format!("{value:.2} CPU"),
        Resource::Memory => Bytes::from_f64(value).to_string(),
        Resource::Io | Resource::Received | Resource::Sent => {
            format!("{}/s", Bytes::from_f64(value))
        }
        Resource::Requests => format!("{value:.1}/s"),
        Resource::ResponseTime => format!("{value:.1} ms"),
    }
}

fn time(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

impl From<Evidence> for Pair {
    fn from(evidence: Evidence) -> Self {
        Self {
            evidence,
            open: None,
        }
    }
}
