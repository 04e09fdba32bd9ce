//! How one app climbs a ladder, and how it comes down again.
//!
//! Problem: what would help is not known for certain, what was tried may make things worse, and
//! what helped must not stay for ever nor be taken back only to be needed at once.
//!
//! Approach: one machine for each app. In each period it is told what constrains the app worst, and
//! says at most one [`Turn`]:
//!
//! ```text
//!            constrained          a rung is worth its cost: Take
//!   Calm ───────────────> Seeking ──────────────────────────────> Settling
//!    ^ │ calm for a while:   │ ^                                     │ the settling time is over:
//!    │ └ Undo of the last    │ └─────────────────────────────────────┤ it helped: kept
//!    │                       │                                       │ it did not: Undo, and barred
//!    └───────────────────────┘ not constrained any more              │ it was refused: barred
//!                                                                    └ for a while that doubles
//! ```
//!
//! Rungs are looked at in order, the least disruptive first, and the first is taken whose predicted
//! relief of the harm is more than its cost; of several lacks, the worst that anything can be done
//! about counts. What is measured is the mean over the second half of
//! the settling time, against what there was when the rung was taken. Once the app has not lacked for
//! a while what a kept rung is against, that is let go, the last first, one after the other; when the
//! lack comes back soon after, the next wait is twice as long.
//!
//! Properties, tested on random sequences: one rung settles at a time; what is undone was taken, and
//! only once; a rung that did not help is not taken again before its bar is over, and bars double;
//! everything that is remembered has a bound. How often apps change hosts is not said here: whoever offers
//! that rung knows it, see [`policy`](crate::fleet::policy).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::relief::Learned;
use super::rung::{Absence, Effect, Offer, Rung};
use super::trigger::{RELEASE, Reading, Watched};
use super::{Bottleneck, Rules};
use crate::app::AppId;
use crate::units::Time;

/// A rung stays when it took away at least this part of the constraint.
pub const KEEP_MIN: f64 = 0.1;
/// Relief is measured against what is above the limit at which a constraint ends, but against so
/// much at least: near the limit, noise would else be all of it.
pub(super) const OPEN_MIN: f64 = 0.3;
/// The first bar of a rung that did not help, and the longest.
pub const BAR_MIN: Duration = Duration::from_secs(60);
/// See [`BAR_MIN`].
pub const BAR_MAX: Duration = Duration::from_secs(3600);
/// How long an app is calm before what was kept is let go, at first and at most.
pub const DESCENT_MIN: Duration = Duration::from_secs(60);
/// See [`DESCENT_MIN`].
pub const DESCENT_MAX: Duration = Duration::from_secs(3600);
/// So often a rung is taken on top of itself.
pub const REPEATS_MAX: usize = 4;
/// What was tried last, of one app.
pub const TRIED_MAX: usize = 16;

/// What constrains an app worst.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Strain {
    pub(super) bottleneck: Bottleneck,
    /// By what it is measured.
    pub(super) watched: Watched,
    /// How many times its limit it is.
    pub(super) severity: f64,
    /// What it costs to leave it, 0 to 1.
    pub(super) harm: f64,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// A rung is taken.
    Take(Rung, Effect),
    /// What was taken is taken back.
    Undo(Rung, Effect),
}

/// What became of a rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It helped and stays.
    Kept,
    /// It did not help and was taken back.
    Undone,
    /// It did not help, and there is nothing to take back.
    Spent,
    /// The host did not do it.
    Refused,
}

/// A rung that was tried, and what it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Which.
    pub rung: Rung,
    /// What it meant.
    pub effect: Effect,
    /// When it was taken.
    pub at: Time,
    /// How many times its limit it was before.
    pub before: f64,
    /// The same afterwards; none where nothing could be measured.
    pub after: Option<f64>,
    /// The part of the constraint that it was expected to take away.
    pub predicted: f64,
    /// The part that it took away; below zero where it made things worse.
    pub relief: Option<f64>,
    /// What became of it.
    pub verdict: Verdict,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: f64| part * 100.0;
        write!(f, "{}{}: ", self.rung, self.effect)?;
        match (self.relief, self.after) {
            (Some(relief), Some(after)) => write!(
                f,
                "it was {:.2} times its limit and then {after:.2}, relief {:.0}% ({:.0}% \
                 predicted), ",
                self.before,
                percent(relief),
                percent(self.predicted)
            )?,
            _ if self.verdict == Verdict::Refused => {}
            _ => f.write_str("what it did could not be measured, ")?,
        }
        f.write_str(match self.verdict {
            Verdict::Kept => "kept",
            Verdict::Undone => "taken back",
            Verdict::Spent => "there is nothing to take back",
            Verdict::Refused => "the host did not do it",
        })
    }
}

/// Why a rung is not taken now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// It does not exist for this app on this host.
    Absent(Absence),
    /// It did not help lately.
    Barred {
        /// How much longer it is left alone.
        left: Duration,
    },
    /// It was taken as often as it may.
    Enough,
    /// It would cost more than it brings.
    NotWorth {
        /// The harm that it would take away, by prediction.
        relief: f64,
        /// What it costs.
        cost: f64,
    },
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(absence) => absence.fmt(f),
            Self::Barred { left } => write!(
                f,
                "it did not help when it was tried last, and is left alone for {} s more",
                left.as_secs()
            ),
            Self::Enough => write!(f, "it was taken {REPEATS_MAX} times already"),
            Self::NotWorth { relief, cost } => write!(
                f,
                "it would take away {:.0}% of harm and cost {:.0}%",
                relief * 100.0,
                cost * 100.0
            ),
        }
    }
}

/// Where an app is on its ladder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ascent {
    stage: Stage,
    /// What helped, in the order in which it was taken: what is in force, and what cannot be taken
    /// back and was done within the last hour, which counts to [`REPEATS_MAX`] and nothing else.
    kept: Vec<Kept>,
    bars: BTreeMap<Rung, Bar>,
    tried: VecDeque<Tried>,
    /// Of what it lacks nothing since when, or when something was let go since.
    calm_since: BTreeMap<Bottleneck, Time>,
    /// How long it is calm before something is let go.
    descent: Duration,
    /// When something was let go last, and against what it was.
    let_go: Option<(Bottleneck, Time)>,
    /// Why the rungs are not taken that are not, in the latest period that looked.
    skipped: Vec<(Rung, Skip)>,
}

/// A rung that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    rung: Rung,
    effect: Effect,
    /// The lack that it is against.
    against: Bottleneck,
    at: Time,
}

impl Kept {
    /// Whether it is more than a mark that it was done.
    const fn is_in_force(&self) -> bool {
        self.rung.can_be_undone()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
enum Stage {
    /// Nothing constrains the app.
    #[default]
    Calm,
    /// It is constrained, and no rung is being measured.
    Seeking,
    /// A rung was taken, and its effect is not known yet.
    Settling(Settling),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Settling {
    rung: Rung,
    effect: Effect,
    bottleneck: Bottleneck,
    watched: Watched,
    /// When it was taken.
    at: Time,
    /// Since when its effect is waited for: later than that where something came between.
    from: Time,
    time: Duration,
    before: f64,
    predicted: f64,
    sum: f64,
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Bar {
    since: Time,
    length: Duration,
}

/// What one period tells the machine of one app.
#[derive(Debug)]
pub(super) struct Round<'a> {
    pub(super) now: Time,
    pub(super) rules: &'a Rules,
    pub(super) app: &'a AppId,
    /// Whether it is on its way to another host.
    pub(super) leaves: bool,
    /// What it lacks and what of that is known to be so now, the worst first; one for each lack.
    pub(super) strains: &'a [Strain],
    /// What it lacks by any constraint, also by one that is not known at this moment.
    pub(super) lacks: &'a BTreeSet<Bottleneck>,
    /// Whether something constrains it of which it is not known what it lacks: that may be anything.
    pub(super) unknown: bool,
    pub(super) readings: &'a [Reading<'a>],
}

impl Ascent {
    /// One period.
    pub(super) fn advance(
        &mut self,
        round: &Round<'_>,
        offer: &dyn Fn(Rung, f64) -> Result<Offer, Absence>,
        learned: &mut Learned,
    ) -> Option<Turn> {
        self.wake(round);
        if let Stage::Settling(settling) = &mut self.stage {
            if settling.rung == Rung::Move && round.leaves {
                // Once it is there nobody asks any more; where it stays, what it then lacks shows.
                settling.begin_anew(round.now);
                return None;
            }
            settling.measure(round);
            if round.now.since(settling.from) < settling.time {
                return None;
            }
            let settled = settling.clone();
            self.stage = Stage::Seeking;
            return self.judge(round, settled, learned);
        }
        self.stage = if round.unknown || !round.lacks.is_empty() {
            Stage::Seeking
        } else {
            self.skipped.clear();
            Stage::Calm
        };
        if let Some(turn) = self.come_down(round) {
            return Some(turn);
        }
        let (strain, rung, found, predicted) = self.seek(round, offer, learned)?;
        self.stage = Stage::Settling(Settling {
            rung,
            effect: found.effect.clone(),
            bottleneck: strain.bottleneck,
            watched: strain.watched,
            at: round.now,
            from: round.now,
            time: round.rules.settling * rung.slowness(),
            before: strain.severity.max(1.0),
            predicted,
            sum: 0.0,
            count: 0,
        });
        Some(Turn::Take(rung, found.effect))
    }

    /// The first rung worth taking against the worst lack that has one, and the part of the
    /// constraint that it is expected to take away. Notes why those before it are not.
    pub(super) fn seek(
        &mut self,
        round: &Round<'_>,
        offer: &dyn Fn(Rung, f64) -> Result<Offer, Absence>,
        learned: &Learned,
    ) -> Option<(Strain, Rung, Offer, f64)> {
        self.skipped.clear();
        for strain in round.strains {
            for rung in Rung::ladder(strain.bottleneck) {
                match self.consider(round, *strain, *rung, offer, learned) {
                    Ok((offer, predicted)) => return Some((*strain, *rung, offer, predicted)),
                    // A rung that is on several ladders is named once, against the worst.
                    Err(_) if self.skipped.iter().any(|(named, _)| named == rung) => {}
                    Err(skip) => self.skipped.push((*rung, skip)),
                }
            }
        }
        None
    }

    fn consider(
        &self,
        round: &Round<'_>,
        strain: Strain,
        rung: Rung,
        offer: &dyn Fn(Rung, f64) -> Result<Offer, Absence>,
        learned: &Learned,
    ) -> Result<(Offer, f64), Skip> {
        let found = offer(rung, strain.severity).map_err(Skip::Absent)?;
        if let Some(bar) = self.bars.get(&rung) {
            let left = bar.length.saturating_sub(round.now.since(bar.since));
            if !left.is_zero() {
                return Err(Skip::Barred { left });
            }
        }
        let same = self.kept.iter().filter(|kept| kept.rung == rung);
        if same.count() >= REPEATS_MAX {
            return Err(Skip::Enough);
        }
        let predicted =
            learned.predict(round.now, round.app, strain.bottleneck, rung, found.relief);
        let relief = predicted * strain.harm;
        if relief <= found.cost {
            return Err(Skip::NotWorth {
                relief: relief.max(0.0),
                cost: found.cost,
            });
        }
        Ok((found, predicted))
    }

    fn judge(
        &mut self,
        round: &Round<'_>,
        settled: Settling,
        learned: &mut Learned,
    ) -> Option<Turn> {
        let after = (settled.count > 0).then(|| settled.sum / f64::from(settled.count));
        let open = (settled.before - RELEASE).max(OPEN_MIN);
        let relief = after.map(|after| ((settled.before - after) / open).clamp(-1.0, 1.0));
        if let Some(relief) = relief {
            let bottleneck = settled.bottleneck;
            learned.record(round.now, round.app, bottleneck, settled.rung, relief);
        }
        let helped = relief.is_some_and(|relief| relief >= KEEP_MIN);
        let verdict = match (helped, settled.rung.can_be_undone()) {
            (true, _) => Verdict::Kept,
            (false, true) => Verdict::Undone,
            (false, false) => Verdict::Spent,
        };
        self.note(&settled, after, relief, verdict);
        let Settling {
            rung,
            effect,
            bottleneck: against,
            ..
        } = settled;
        if helped {
            self.bars.remove(&rung);
            // Moves have a budget of their own, and what moved is not here.
            if rung != Rung::Move {
                self.kept.push(Kept {
                    rung,
                    effect,
                    against,
                    at: round.now,
                });
            }
            return None;
        }
        self.bar(round.now, rung);
        (verdict == Verdict::Undone).then_some(Turn::Undo(rung, effect))
    }

    /// The host did not do something: a rung that is being measured and counts on that is not in
    /// force.
    pub(super) fn refuse(&mut self, now: Time, counts_on: impl Fn(&Effect) -> bool) {
        let Stage::Settling(settling) = &self.stage else {
            return;
        };
        if !counts_on(&settling.effect) {
            return;
        }
        let refused = settling.clone();
        self.stage = Stage::Seeking;
        self.note(&refused, None, None, Verdict::Refused);
        self.bar(now, refused.rung);
    }

    /// Nothing is done or measured at this moment. What a rung does is measured anew afterwards, for
    /// the whole settling time and against what there was when it was taken: what was read before is of
    /// another load, and a rung of the last period is not in force yet. How long an app has been calm is
    /// not known either, since nobody looked.
    pub(super) fn stand_still(&mut self, now: Time) {
        if let Stage::Settling(settling) = &mut self.stage {
            settling.begin_anew(now);
        }
        self.calm_since.values_mut().for_each(|since| *since = now);
    }

    /// The app did not get to another host.
    pub(super) fn refuse_move(&mut self, now: Time) {
        self.refuse(now, |effect| matches!(effect, Effect::Move(_)));
    }

    /// The host did not do what a rung that was taken in this period asked of it.
    pub(super) fn refuse_rung(&mut self, now: Time, rung: Rung) {
        if matches!(&self.stage, Stage::Settling(of) if of.rung == rung && of.at == now) {
            self.refuse(now, |_| true);
        }
    }

    /// The host did not ask one app for memory, in this period: the others that were asked give all
    /// the same, and without others the rung is refused.
    pub(super) fn refuse_giver(&mut self, now: Time, giver: &AppId) {
        let Stage::Settling(settling) = &mut self.stage else {
            return;
        };
        // A rung of an earlier period has had what it asked of that app.
        let Effect::Reclaim(from) = &mut settling.effect else {
            return;
        };
        if settling.at != now || !from.contains_key(giver) {
            return;
        }
        if from.len() > 1 {
            from.remove(giver);
        } else {
            self.refuse(now, |_| true);
        }
    }

    fn note(&mut self, of: &Settling, after: Option<f64>, relief: Option<f64>, verdict: Verdict) {
        if self.tried.len() >= TRIED_MAX {
            self.tried.pop_front();
        }
        self.tried.push_back(Tried {
            rung: of.rung,
            effect: of.effect.clone(),
            at: of.at,
            before: of.before,
            after,
            predicted: of.predicted,
            relief,
            verdict,
        });
    }

    fn bar(&mut self, now: Time, rung: Rung) {
        let before = self.bars.get(&rung);
        let close = before.filter(|bar| now.since(bar.since) < bar.length * 4);
        let length = close.map_or(BAR_MIN, |bar| (bar.length * 2).min(BAR_MAX));
        self.bars.insert(rung, Bar { since: now, length });
    }

    /// What it lacks is not over, and if it was let go a short while ago, that was too soon.
    fn wake(&mut self, round: &Round<'_>) {
        let lacks = |bottleneck: &Bottleneck| round.unknown || round.lacks.contains(bottleneck);
        self.calm_since.retain(|bottleneck, _| !lacks(bottleneck));
        if let Some((_, at)) = self.let_go.take_if(|(bottleneck, _)| lacks(bottleneck)) {
            let since = round.now.since(at);
            self.descent = if since < self.descent.max(DESCENT_MIN) * 4 {
                (self.descent.max(DESCENT_MIN) * 2).min(DESCENT_MAX)
            } else {
                DESCENT_MIN
            };
        }
    }

    /// What was kept is let go a while after the lack that it is against is over, the last first.
    fn come_down(&mut self, round: &Round<'_>) -> Option<Turn> {
        if self.tried.is_empty() {
            return None;
        }
        for bottleneck in Bottleneck::ALL {
            if !round.unknown && !round.lacks.contains(&bottleneck) {
                self.calm_since.entry(bottleneck).or_insert(round.now);
            }
        }
        let descent = self.descent.max(DESCENT_MIN);
        let calm = |bottleneck: &Bottleneck| {
            let since = self.calm_since.get(bottleneck);
            since.is_some_and(|since| round.now.since(*since) >= descent)
        };
        self.kept.retain(|kept| {
            let lately = round.now.since(kept.at) < BAR_MAX;
            kept.is_in_force() || lately && !calm(&kept.against)
        });
        let mut kept = self.kept.iter();
        let place = kept.rposition(|kept| calm(&kept.against))?;
        let Kept {
            rung,
            effect,
            against,
            ..
        } = self.kept.remove(place);
        self.calm_since.insert(against, round.now);
        self.let_go = Some((against, round.now));
        Some(Turn::Undo(rung, effect))
    }

    /// Whether nothing is worth remembering any more.
    pub(super) fn is_over(&self, now: Time) -> bool {
        let long_calm = |since: &Time| now.since(*since) >= BAR_MAX;
        let calm = !self.calm_since.is_empty() && self.calm_since.values().all(long_calm);
        let remembers = !self.tried.is_empty() && !calm;
        self.stage == Stage::Calm && self.kept.is_empty() && !remembers
    }

    /// What is in force, what is being measured included.
    pub(super) fn in_force(&self) -> impl Iterator<Item = (Rung, &Effect)> {
        let settling = match &self.stage {
            Stage::Settling(settling) => Some((settling.rung, &settling.effect)),
            Stage::Calm | Stage::Seeking => None,
        };
        let kept = self.kept.iter().filter(|kept| kept.is_in_force());
        kept.map(|kept| (kept.rung, &kept.effect)).chain(settling)
    }

    /// The rung that is being measured.
    pub(super) const fn settling(&self) -> Option<Rung> {
        match &self.stage {
            Stage::Settling(settling) => Some(settling.rung),
            Stage::Calm | Stage::Seeking => None,
        }
    }

    /// What was tried lately, oldest first.
    pub(super) fn tried(&self) -> impl Iterator<Item = &Tried> {
        self.tried.iter()
    }

    /// Why rungs were not taken.
    pub(super) fn skipped(&self) -> &[(Rung, Skip)] {
        &self.skipped
    }
}

impl Settling {
    /// What was read so far says nothing.
    const fn begin_anew(&mut self, now: Time) {
        (self.from, self.sum, self.count) = (now, 0.0, 0);
    }

    /// Takes in a reading in the second half of the settling time.
    fn measure(&mut self, round: &Round<'_>) {
        if round.now.since(self.from) * 2 < self.time {
            return;
        }
        let mut readings = round.readings.iter();
        if let Some(reading) = readings.find(|reading| reading.watched == self.watched) {
            self.sum += reading.severity();
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests;
