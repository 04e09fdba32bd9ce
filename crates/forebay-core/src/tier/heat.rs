//! How much each file is wanted: measured, and forecast.
//!
//! # Problem
//!
//! A file belongs on the fast side while it is used often, and best before it is. The kernel
//! tells of touches (opened, read, written), not of bytes, for more files than one cares to
//! remember, and a single pass over all files, as a backup makes it, must not look like use.
//!
//! # Approach
//!
//! *Measured*: a sum of touches that halves every five minutes, as a rate. It rises only as
//! fast as touches come, so that many at once count no more than a few for a long time. While
//! the table is younger than that, all sums are scaled up alike.
//!
//! *Forecast*: the few hundred files that were touched most over hours have a
//! [`Series`] of touches in 10 s. What its seasonal model expects at most within the next
//! minute is the file's forecast; other models only say what the sum says already.
//!
//! The table is bounded. When it is full, the coldest sixteenth leaves.
//!
//! # Properties
//!
//! - With no touches, heat only falls; of two files, the one touched more since is warmer.
//! - At most [`FILES_MAX`] files and [`FORECASTS_MAX`] series: about 6 MiB and 4 MiB.
//! - No clock and no randomness: the same touches give the same heat.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_forecast::{Series, SeriesOptions};

/// Files whose touches are remembered.
pub const FILES_MAX: usize = 65_536;
/// Files whose touches are forecast.
pub const FORECASTS_MAX: usize = 256;
/// What one value of a series counts.
pub const BUCKET: Duration = Duration::from_secs(10);

const HALF_LIFE: Duration = Duration::from_secs(300);
/// By this, files are chosen to be forecast: it must outlast the pauses between their uses.
const LONG_HALF_LIFE: Duration = Duration::from_secs(7200);
/// Time of measuring before which a table counts as this old, so that a single touch at the
/// start is no burning heat.
const AGE_MIN: Duration = Duration::from_secs(60);
/// How far ahead a forecast looks, in buckets: time to move some files.
const AHEAD: usize = 6;
/// Buckets in which periods are sought: twice the longest, one hour.
const HISTORY: usize = 720;
/// Touches over hours before a file is worth a series.
const FORECAST_MIN: f64 = 16.0;
/// How much warmer another must be to take over a series, for its history is lost.
const TAKEOVER: f64 = 1.5;
/// A sum under which a file may be forgotten.
const FORGOTTEN: f64 = 0.05;
/// Buckets that passed unseen and are made up for; after a longer pause series begin anew.
const CATCH_UP_MAX: u64 = 60;

/// How warm a file is, in touches per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Warmth {
    /// Lately.
    pub measured: f64,
    /// At most within the next minute, where it comes and goes with a period.
    pub forecast: Option<f64>,
}

impl Warmth {
    /// What to decide by.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.measured.max(self.forecast.unwrap_or(0.0))
    }
}

/// The heat of many files, by whatever names them.
#[derive(Debug, Clone)]
pub struct Heats<K> {
    files: BTreeMap<K, Heat>,
    began: Duration,
    bucket: u64,
    forgotten: u64,
    forecasts: usize,
}

#[derive(Debug, Clone)]
struct Heat {
    sum: f64,
    long: f64,
    at: Duration,
    in_bucket: u32,
    series: Option<Box<Series>>,
}

impl Heat {
    const fn new(now: Duration) -> Self {
        Self {
            sum: 0.0,
            long: 0.0,
            at: now,
            in_bucket: 0,
            series: None,
        }
    }

    fn sum(&self, now: Duration) -> f64 {
        self.sum * left(now.saturating_sub(self.at), HALF_LIFE)
    }

    fn long(&self, now: Duration) -> f64 {
        self.long * left(now.saturating_sub(self.at), LONG_HALF_LIFE)
    }
}

/// The part that is left of one after a while.
fn left(after: Duration, half_life: Duration) -> f64 {
    (-after.as_secs_f64() / half_life.as_secs_f64()).exp2()
}

impl<K: Ord + Copy> Heats<K> {
    /// Nothing was touched yet.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            files: BTreeMap::new(),
            began: now,
            bucket: bucket(now),
            forgotten: 0,
            forecasts: 0,
        }
    }

    /// Files remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Files that had to leave because there were too many.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Files that are forecast.
    #[must_use]
    pub const fn forecasts(&self) -> usize {
        self.forecasts
    }

    /// A file was touched so often, until now.
    pub fn touch(&mut self, now: Duration, file: K, times: u32) {
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&file) {
            self.make_room(now);
        }
        let heat = self.files.entry(file).or_insert_with(|| Heat::new(now));
        heat.sum = heat.sum(now) + f64::from(times);
        heat.long = heat.long(now) + f64::from(times);
        heat.at = now;
        heat.in_bucket = heat.in_bucket.saturating_add(times);
    }

    /// A file has another name from now on: it was moved.
    pub fn rename(&mut self, from: K, to: K) {
        if let Some(heat) = self.files.remove(&from) {
            self.files.insert(to, heat);
        }
    }

    /// How warm a file is.
    #[must_use]
    pub fn of(&self, now: Duration, file: K) -> Warmth {
        let Some(heat) = self.files.get(&file) else {
            return Warmth::default();
        };
        let age = now.saturating_sub(self.began).max(AGE_MIN);
        let decay = std::f64::consts::LN_2 / HALF_LIFE.as_secs_f64();
        let forecast = heat.series.as_ref().and_then(|series| {
            let peak = series.peak(AHEAD)?;
            (!peak.cold && peak.model == "seasonal").then(|| peak.quantiles.q50())
        });
        Warmth {
            measured: heat.sum(now) * decay / (1.0 - left(age, HALF_LIFE)),
            forecast,
        }
    }

    /// Time has passed: feeds the series, chooses whom to forecast, forgets what is cold.
    pub fn pass(&mut self, now: Duration) {
        let current = bucket(now);
        let passed = current.saturating_sub(self.bucket);
        if passed == 0 {
            return;
        }
        self.bucket = current;
        for heat in self.files.values_mut() {
            let touches = std::mem::take(&mut heat.in_bucket);
            if passed > CATCH_UP_MAX {
                heat.series = None;
            }
            if let Some(series) = &mut heat.series {
                series.update(f64::from(touches) / BUCKET.as_secs_f64());
                (1..passed).for_each(|_| series.update(0.0));
            }
        }
        self.choose(now);
        self.files.retain(|_, heat| {
            heat.sum(now) > FORGOTTEN || heat.series.is_some() && heat.long(now) > FORGOTTEN
        });
        let forecast = |heat: &&Heat| heat.series.is_some();
        self.forecasts = self.files.values().filter(forecast).count();
    }

    /// Gives series to those touched most over hours.
    fn choose(&mut self, now: Duration) {
        let warmest_first = |of: &mut Vec<(f64, K)>| {
            of.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        };
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for (file, heat) in &self.files {
            let long = heat.long(now);
            match heat.series {
                Some(_) => with.push((long, *file)),
                None if long >= FORECAST_MIN => without.push((long, *file)),
                None => {}
            }
        }
        warmest_first(&mut with);
        warmest_first(&mut without);
        for (long, file) in without.into_iter().take(FORECASTS_MAX) {
            if with.len() >= FORECASTS_MAX {
                match with.last() {
                    Some((coldest, other)) if long > coldest * TAKEOVER => {
                        self.give(*other, None);
                        with.pop();
                    }
                    _ => break,
                }
            }
            let series = Series::new(SeriesOptions {
                horizons: vec![1, AHEAD],
                history_max: HISTORY,
                request: None,
            });
            self.give(file, Some(Box::new(series)));
            with.insert(0, (long, file));
        }
    }

    fn give(&mut self, file: K, series: Option<Box<Series>>) {
        if let Some(heat) = self.files.get_mut(&file) {
            heat.series = series;
        }
    }

    fn make_room(&mut self, now: Duration) {
        let mut sums: Vec<(f64, K)> = self
            .files
            .iter()
            .filter(|(_, heat)| heat.series.is_none())
            .map(|(file, heat)| (heat.sum(now), *file))
            .collect();
        let count = (FILES_MAX / 16).min(sums.len());
        if count < sums.len() {
            sums.select_nth_unstable_by(count, |a, b| a.0.total_cmp(&b.0));
        }
        for (_, file) in &sums[..count] {
            self.files.remove(file);
            self.forgotten += 1;
        }
    }
}

fn bucket(now: Duration) -> u64 {
    now.as_secs() / BUCKET.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn heat_is_the_rate_of_touches_and_halves_in_five_minutes() {
        let mut heats = Heats::new(at(0));
        for second in 0..1200 {
            heats.touch(at(second), "steady", 2);
            heats.pass(at(second));
        }
        let measured = heats.of(at(1200), "steady").measured;
        assert!((measured - 2.0).abs() < 0.05, "{measured}");
        let later = heats.of(at(1500), "steady").measured;
        assert!((later / measured - 0.5).abs() < 0.05, "{later}");
        assert_eq!(heats.of(at(1500), "never"), Warmth::default());
    }

    #[test]
    fn one_pass_over_everything_is_no_match_for_use() {
        let mut heats = Heats::new(at(0));
        for second in 0..600 {
            heats.touch(at(second), 0, 1);
            heats.pass(at(second));
        }
        // A backup reads another file as fast as it can, for two seconds.
        for second in 600..602 {
            heats.touch(at(second), 1, 20);
        }
        let (used, copied) = (heats.of(at(602), 0), heats.of(at(602), 1));
        assert!(used.measured > 4.0 * copied.measured, "{used:?} {copied:?}");
    }

    #[test]
    fn a_file_that_is_hot_every_ten_minutes_is_hot_before() {
        let mut heats = Heats::new(at(0));
        for second in 0..7200_u64 {
            if second % 600 < 60 {
                heats.touch(at(second), "periodic", 10);
            }
            if second % 7 == 0 {
                heats.touch(at(second), "random", 1);
            }
            heats.pass(at(second));
        }
        // 7200 begins a new period: 20 s before it, nothing was touched for over 8 minutes.
        let mut late = heats.clone();
        for second in 7200..7780 {
            if second % 600 < 60 {
                late.touch(at(second), "periodic", 10);
            }
            late.pass(at(second));
        }
        let before = late.of(at(7780), "periodic");
        let forecast = before.forecast.expect("a period was found");
        assert!(forecast > 5.0, "{before:?}");
        assert!(forecast > 2.0 * before.measured, "{before:?}");
        // And in the middle of the pause, nothing is expected.
        let mut idle = heats.clone();
        for second in 7200..7500 {
            if second % 600 < 60 {
                idle.touch(at(second), "periodic", 10);
            }
            idle.pass(at(second));
        }
        let idle = idle.of(at(7500), "periodic");
        assert!(idle.forecast.is_none_or(|f| f < 1.0), "{idle:?}");
        assert_eq!(late.of(at(7780), "random").forecast, None);
    }

    #[test]
    fn a_moved_file_keeps_its_heat() {
        let mut heats = Heats::new(at(0));
        heats.touch(at(1), 1, 5);
        let before = heats.of(at(2), 1);
        heats.rename(1, 2);
        assert_eq!(heats.of(at(2), 2), before);
        assert_eq!(heats.of(at(2), 1), Warmth::default());
    }

    #[test]
    fn the_coldest_leave_a_full_table() {
        let mut heats = Heats::new(at(0));
        for file in 0..FILES_MAX + 1 {
            let times = if file < 100 { 50 } else { 1 };
            heats.touch(at(1), file, times);
        }
        assert!(heats.len() <= FILES_MAX);
        assert_eq!(heats.forgotten(), (FILES_MAX / 16) as u64);
        for file in (0..100).chain([FILES_MAX]) {
            assert!(heats.of(at(1), file).measured > 0.0, "{file}");
        }
    }

    #[test]
    fn series_are_bounded_and_go_to_those_touched_most() {
        let mut heats = Heats::new(at(0));
        for second in 0..60 {
            for file in 0..400_u32 {
                heats.touch(at(second), file, 1 + file);
            }
            heats.pass(at(second));
        }
        heats.pass(at(70));
        assert_eq!(heats.forecasts(), FORECASTS_MAX);
        assert!(heats.files[&399].series.is_some());
        assert!(heats.files[&0].series.is_none());
    }

    #[test]
    fn what_is_cold_is_forgotten() {
        let mut heats = Heats::new(at(0));
        heats.touch(at(0), 1, 1);
        heats.pass(at(60));
        assert_eq!(heats.len(), 1);
        heats.pass(at(3600));
        assert!(heats.is_empty());
    }
}
