//! The order in which a shadow takes over.
//!
//! Problem: between the first doubt and the first answer of the new primary, nothing may be lost,
//! executed twice, or executed by two.
//!
//! Approach: one machine for each front. What happened comes in, what has to be done goes out, one
//! [`Step`] after the other, and whoever carries a step out says how it ended:
//!
//! ```text
//!       Lost, held down          Lost            Fenced             Promoted          Replayed
//!   Warm ────────────> Suspect ───────> Fencing ─────────> Promoting ────────> Replaying ───────> Warm
//!    │ ^                  │ Cleared        │ Refused           │ Refused          (epoch + 1)
//!    │ └──────────────────┘                v                   v
//!    │ HandOver                          Warm                Down <─ Lost, and nobody stands by
//!    └──────> Settling ── Settled ─────────────────────────>   │ Available
//!                                                              └──────> Fencing, or Promoting
//! ```
//!
//! A stall that is not acted on, because another one was a moment ago or nobody stands by, holds new
//! requests back until it is over. The fence stops the old primary where it
//! stands; until the new one is asked to take over, that can be undone as well. After that it
//! cannot: the old one is killed while it still stands, because it would execute what lies in its
//! socket buffers.
//!
//! Properties: nobody is promoted before the old one is fenced, or was seen to be gone, or has
//! settled what it was asked; every promotion has an epoch of its own, larger than all before; a
//! fenced primary is never let go on once a promotion was begun; a primary that hangs again and
//! again is given up for one promotion in each hold-down only, since what it hangs in may be the load;
//! one that is dead or stopped at any time.

use std::time::Duration;

/// How soon after a promotion another may follow because of a stall.
pub const HOLD_DOWN_MIN: Duration = Duration::from_secs(5);
/// The hold-down doubles with each stall that follows closely, up to this.
pub const HOLD_DOWN_MAX: Duration = Duration::from_secs(300);

/// Which promotion a primary owes its place to; grows by one with each.
pub type Epoch = u64;

/// One instance, by its place in the front's list.
pub type Slot = usize;

/// Where a front stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The primary serves.
    Warm,
    /// New requests wait until it is known how the primary is.
    Suspect,
    /// The old primary is being stopped where it stands.
    Fencing,
    /// No new request is sent, and those that were are waited for.
    Settling,
    /// The shadow is taking over.
    Promoting,
    /// What is safe is sent to the new primary again.
    Replaying,
    /// Nobody can serve; requests wait for an instance, for as long as they may.
    Down,
}

/// Why an instance takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The old one is gone.
    Death,
    /// The old one was stopped: it does nothing, for certain.
    Halt,
    /// The old one hangs, as far as can be told from outside.
    Stall,
    /// Somebody asked for it, and the old one makes room in order.
    Planned,
    /// Somebody asked for it, whatever the old one is doing.
    Forced,
    /// Nobody served: at the beginning, or after all were lost.
    Vacancy,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It answers again.
    Cleared,
    /// It is lost.
    Lost(Cause),
    /// Its shadow is to take over though it is well.
    HandOver,
    /// The step before is done.
    Done,
    /// The step before did not work.
    Refused,
    /// An instance can serve.
    Available(Slot),
}

/// What has to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Keep new requests back.
    Hold,
    /// Let the requests that were kept back go on.
    Release,
    /// Stop an instance where it stands and see that it does; make the next epoch durable.
    Fence(Slot),
    /// Let an instance that was stopped go on.
    Unfence(Slot),
    /// Wait, for a bounded time, until an instance has answered what it was sent.
    Settle(Slot),
    /// Make an instance the primary, under this epoch.
    Promote(Slot, Epoch),
    /// Send to the new primary what is safe, then let the rest go on.
    Replay(Slot),
    /// End an instance that stands still, and keep it so until then.
    Kill(Slot),
    /// Let the connections of an instance run out.
    Drain(Slot),
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    stage: Stage,
    epoch: Epoch,
    primary: Slot,
    /// Who takes over, and from whom, while that goes on.
    change: Option<Change>,
    /// That change began when nobody served.
    was_down: bool,
    /// The time of the latest promotion because of a stall.
    stalled_at: Option<Duration>,
    hold_down: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    to: Slot,
    cause: Cause,
}

impl Promotion {
    /// A front whose primary serves since an epoch.
    #[must_use]
    pub const fn new(primary: Slot, epoch: Epoch) -> Self {
        Self {
            stage: Stage::Warm,
            epoch,
            primary,
            change: None,
            was_down: false,
            stalled_at: None,
            hold_down: HOLD_DOWN_MIN,
        }
    }

    /// A front that begins: its primary was this one, and has to be asked to serve again.
    #[must_use]
    pub const fn starting(primary: Slot, epoch: Epoch) -> Self {
        Self {
            stage: Stage::Down,
            ..Self::new(primary, epoch)
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// The epoch of the primary.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The primary.
    #[must_use]
    pub const fn primary(&self) -> Slot {
        self.primary
    }

    /// Why the change is made that goes on.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.change.map(|change| change.cause)
    }

    /// Who is to take over in the change that goes on, and under which epoch.
    #[must_use]
    pub fn next(&self) -> Option<(Slot, Epoch)> {
        self.change.map(|change| (change.to, self.epoch + 1))
    }

    /// Takes in what happened at a time, with the instance that could take over, if any.
    ///
    /// What makes no sense where the machine stands changes nothing.
    pub fn step(&mut self, now: Duration, input: Input, standby: Option<Slot>) -> Vec<Step> {
        match (self.stage, input) {
            (Stage::Suspect, Input::Cleared) => self.back_to_warm(),
            (Stage::Warm | Stage::Suspect, Input::Lost(cause)) => self.lost(now, cause, standby),
            (Stage::Warm | Stage::Suspect, Input::HandOver) => match standby {
                Some(to) => {
                    self.begin(to, Cause::Planned);
                    self.stage = Stage::Settling;
                    vec![Step::Hold, Step::Settle(self.primary)]
                }
                None => Vec::new(),
            },
            // While a planned change waits for answers, the old one may die.
            (Stage::Settling, Input::Lost(cause)) => {
                let to = self.change.map(|change| change.to);
                self.lost(now, cause, to)
            }
            (Stage::Settling, Input::Refused) => self.back_to_warm(),
            (Stage::Settling | Stage::Fencing, Input::Done) => {
                let Some(change) = self.change else {
                    return Vec::new();
                };
                self.stage = Stage::Promoting;
                vec![Step::Promote(change.to, self.epoch + 1)]
            }
            // Whoever still runs may not be replaced.
            (Stage::Fencing, Input::Refused) if self.was_down => {
                self.change = None;
                self.stage = Stage::Down;
                // It may be the one that can serve next.
                vec![Step::Unfence(self.primary)]
            }
            (Stage::Fencing, Input::Refused) => {
                let mut steps = vec![Step::Unfence(self.primary)];
                steps.extend(self.back_to_warm());
                steps
            }
            (Stage::Promoting, Input::Done) => {
                let Some(change) = self.change else {
                    return Vec::new();
                };
                self.epoch += 1;
                self.stage = Stage::Replaying;
                vec![Step::Replay(change.to)]
            }
            // One that is well and was asked to make room goes on.
            (Stage::Promoting, Input::Refused) if self.cause() == Some(Cause::Planned) => {
                self.back_to_warm()
            }
            (Stage::Promoting, Input::Refused) => {
                let change = self.change.take();
                self.stage = Stage::Down;
                // The old one may be the only one left, but it would execute what lies in its
                // socket buffers; it has to begin anew.
                let other = change.filter(|change| change.to != self.primary);
                let kill = other.map(|_| Step::Kill(self.primary));
                kill.into_iter().collect()
            }
            (Stage::Replaying, Input::Done | Input::Refused) => {
                let old = self.primary;
                let Some(change) = self.change.take() else {
                    return Vec::new();
                };
                self.primary = change.to;
                self.stage = Stage::Warm;
                let last = match change.cause {
                    Cause::Planned => Step::Drain(old),
                    Cause::Death | Cause::Halt | Cause::Stall | Cause::Forced | Cause::Vacancy => {
                        Step::Kill(old)
                    }
                };
                // One that began from nothing has no one before it.
                if old == change.to {
                    vec![Step::Release]
                } else {
                    vec![Step::Release, last]
                }
            }
            (Stage::Down, Input::Available(to)) => {
                self.begin(to, Cause::Vacancy);
                if to == self.primary {
                    self.stage = Stage::Promoting;
                    return vec![Step::Promote(to, self.epoch + 1)];
                }
                // The last primary is gone as far as is known; what is left of it stays so.
                self.stage = Stage::Fencing;
                vec![Step::Fence(self.primary)]
            }
            _ => Vec::new(),
        }
    }

    fn lost(&mut self, now: Duration, cause: Cause, standby: Option<Slot>) -> Vec<Step> {
        let Some(to) = standby else {
            // One that hangs or stands may come back; one that is dead does not.
            if matches!(cause, Cause::Stall | Cause::Halt | Cause::Forced) {
                return self.suspected();
            }
            self.change = None;
            self.stage = Stage::Down;
            return vec![Step::Hold];
        };
        if cause == Cause::Stall {
            if self.is_held_down(now) {
                return self.suspected();
            }
            self.count_stall(now);
        }
        let hold = self.stage == Stage::Warm;
        self.begin(to, cause);
        self.stage = Stage::Fencing;
        let fence = Step::Fence(self.primary);
        if hold {
            vec![Step::Hold, fence]
        } else {
            vec![fence]
        }
    }

    fn suspected(&mut self) -> Vec<Step> {
        if self.stage == Stage::Suspect {
            return Vec::new();
        }
        self.stage = Stage::Suspect;
        vec![Step::Hold]
    }

    fn begin(&mut self, to: Slot, cause: Cause) {
        self.was_down = self.stage == Stage::Down;
        self.change = Some(Change { to, cause });
    }

    fn back_to_warm(&mut self) -> Vec<Step> {
        self.change = None;
        self.stage = Stage::Warm;
        vec![Step::Release]
    }

    /// Whether a stall is too soon after another one to be acted on.
    #[must_use]
    pub fn is_held_down(&self, now: Duration) -> bool {
        self.stalled_at
            .is_some_and(|at| now < at.saturating_add(self.hold_down))
    }

    fn count_stall(&mut self, now: Duration) {
        let close = self
            .stalled_at
            .is_some_and(|at| now < at.saturating_add(self.hold_down.saturating_mul(4)));
        self.hold_down = if close {
            self.hold_down.saturating_mul(2).min(HOLD_DOWN_MAX)
        } else {
            HOLD_DOWN_MIN
        };
        self.stalled_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn a_death_is_fenced_promoted_replayed_and_the_old_one_killed() {
        let mut machine = Promotion::new(0, 4);
        let steps = machine.step(NOW, Input::Lost(Cause::Death), Some(1));
        assert_eq!(steps, [Step::Hold, Step::Fence(0)]);
        assert_eq!(machine.step(NOW, Input::Done, None), [Step::Promote(1, 5)]);
        assert_eq!((machine.epoch(), machine.primary()), (4, 0));
        assert_eq!(machine.step(NOW, Input::Done, None), [Step::Replay(1)]);
        assert_eq!(
            machine.step(NOW, Input::Done, None),
            [Step::Release, Step::Kill(0)]
        );
        assert_eq!((machine.epoch(), machine.primary()), (5, 1));
        assert_eq!(machine.stage(), Stage::Warm);
    }

    #[test]
    fn one_that_cannot_be_fenced_goes_on() {
        let mut machine = Promotion::new(0, 0);
        machine.step(NOW, Input::Lost(Cause::Stall), Some(1));
        let steps = machine.step(NOW, Input::Refused, Some(1));
        assert_eq!(steps, [Step::Unfence(0), Step::Release]);
        assert_eq!((machine.epoch(), machine.stage()), (0, Stage::Warm));
    }

    #[test]
    fn a_shadow_that_refuses_leaves_nobody_and_the_next_one_begins_anew() {
        let mut machine = Promotion::new(0, 0);
        machine.step(NOW, Input::Lost(Cause::Stall), Some(1));
        machine.step(NOW, Input::Done, None);
        assert_eq!(machine.step(NOW, Input::Refused, None), [Step::Kill(0)]);
        assert_eq!(machine.stage(), Stage::Down);
        assert_eq!(
            machine.step(NOW, Input::Available(0), None),
            [Step::Promote(0, 1)]
        );
        machine.step(NOW, Input::Done, None);
        assert_eq!(machine.step(NOW, Input::Done, None), [Step::Release]);
        assert_eq!((machine.epoch(), machine.primary()), (1, 0));
    }

    #[test]
    fn a_hand_over_waits_for_answers_and_drains() {
        let mut machine = Promotion::new(0, 0);
        let steps = machine.step(NOW, Input::HandOver, Some(1));
        assert_eq!(steps, [Step::Hold, Step::Settle(0)]);
        assert_eq!(machine.step(NOW, Input::Done, None), [Step::Promote(1, 1)]);
        machine.step(NOW, Input::Done, None);
        assert_eq!(
            machine.step(NOW, Input::Done, None),
            [Step::Release, Step::Drain(0)]
        );
    }

    #[test]
    fn a_hand_over_that_is_refused_leaves_things_as_they_were() {
        let mut machine = Promotion::new(0, 3);
        machine.step(NOW, Input::HandOver, Some(1));
        machine.step(NOW, Input::Done, None);
        assert_eq!(machine.step(NOW, Input::Refused, None), [Step::Release]);
        assert_eq!(machine, Promotion::new(0, 3));
    }

    #[test]
    fn one_that_dies_while_it_is_waited_for_is_fenced() {
        let mut machine = Promotion::new(0, 0);
        machine.step(NOW, Input::HandOver, Some(1));
        let steps = machine.step(NOW, Input::Lost(Cause::Death), None);
        assert_eq!(steps, [Step::Fence(0)]);
    }

    #[test]
    fn stalls_are_held_down_and_deaths_are_not() {
        let mut machine = Promotion::new(0, 0);
        let fail_over = |machine: &mut Promotion, now, cause| {
            let to = 1 - machine.primary();
            let steps = machine.step(now, Input::Lost(cause), Some(to));
            let fenced = steps.contains(&Step::Fence(machine.primary()));
            if fenced {
                for _ in 0..3 {
                    machine.step(now, Input::Done, None);
                }
            } else {
                machine.step(now, Input::Cleared, None);
            }
            fenced
        };
        let at = Duration::from_secs;
        assert!(fail_over(&mut machine, at(100), Cause::Stall));
        assert!(!fail_over(&mut machine, at(104), Cause::Stall), "held down");
        assert!(fail_over(&mut machine, at(104), Cause::Death));
        assert!(fail_over(&mut machine, at(104), Cause::Halt));
        assert!(fail_over(&mut machine, at(106), Cause::Stall));
        assert!(!fail_over(&mut machine, at(112), Cause::Stall), "doubled");
        assert!(fail_over(&mut machine, at(117), Cause::Stall));
        assert!(fail_over(&mut machine, at(1000), Cause::Stall));
        assert!(fail_over(&mut machine, at(1006), Cause::Stall), "forgotten");
    }

    #[test]
    fn a_death_without_a_shadow_waits_for_whoever_comes() {
        let mut machine = Promotion::new(0, 7);
        let steps = machine.step(NOW, Input::Lost(Cause::Death), None);
        assert_eq!(steps, [Step::Hold]);
        assert_eq!(machine.stage(), Stage::Down);
        assert_eq!(
            machine.step(NOW, Input::Available(0), None),
            [Step::Promote(0, 8)]
        );
    }

    #[test]
    fn whoever_comes_instead_finds_the_last_primary_fenced() {
        let mut machine = Promotion::starting(0, 7);
        let steps = machine.step(NOW, Input::Available(1), None);
        assert_eq!(steps, [Step::Fence(0)]);
        let mut refused = machine.clone();
        let steps = refused.step(NOW, Input::Refused, None);
        assert_eq!(steps, [Step::Unfence(0)]);
        assert_eq!(refused.stage(), Stage::Down);
        assert_eq!(machine.step(NOW, Input::Done, None), [Step::Promote(1, 8)]);
        machine.step(NOW, Input::Done, None);
        let steps = machine.step(NOW, Input::Done, None);
        assert_eq!(steps, [Step::Release, Step::Kill(0)]);
    }

    #[test]
    fn a_stall_without_a_shadow_is_waited_out() {
        let mut machine = Promotion::new(0, 7);
        assert_eq!(
            machine.step(NOW, Input::Lost(Cause::Stall), None),
            [Step::Hold]
        );
        assert_eq!(machine.step(NOW, Input::Cleared, None), [Step::Release]);
    }

    fn inputs() -> impl Strategy<Value = (Input, bool, u64)> {
        let input = prop_oneof![
            Just(Input::Cleared),
            Just(Input::Lost(Cause::Death)),
            Just(Input::Lost(Cause::Stall)),
            Just(Input::Lost(Cause::Halt)),
            Just(Input::Lost(Cause::Forced)),
            Just(Input::HandOver),
            Just(Input::Done),
            Just(Input::Refused),
            (0_usize..2).prop_map(Input::Available),
        ];
        (input, any::<bool>(), 0_u64..20)
    }

    proptest! {
        /// Whatever happens in whatever order: no promotion without a fence, a settled primary or
        /// nobody; epochs grow; what was fenced is not let go on once a promotion was begun.
        #[test]
        fn no_two_primaries(events in proptest::collection::vec(inputs(), 1..200)) {
            let mut machine = Promotion::new(0, 0);
            let mut now = Duration::ZERO;
            let mut promoted = 0;
            let mut fence_begun: Option<Slot> = None;
            let mut promotion_begun = false;
            for (input, standing_by, wait) in events {
                now += Duration::from_secs(wait);
                let before = machine.clone();
                let standby = standing_by.then_some(1 - machine.primary());
                for step in machine.step(now, input, standby) {
                    match step {
                        Step::Fence(slot) => {
                            prop_assert_eq!(slot, before.primary());
                            fence_begun = Some(slot);
                            promotion_begun = false;
                        }
                        Step::Promote(slot, epoch) => {
                            prop_assert!(epoch > promoted);
                            match before.stage() {
                                Stage::Fencing => {
                                    prop_assert_eq!(fence_begun, Some(before.primary()));
                                    prop_assert_ne!(slot, before.primary());
                                }
                                Stage::Down => prop_assert_eq!(slot, before.primary()),
                                stage => prop_assert_eq!(stage, Stage::Settling),
                            }
                            promotion_begun = true;
                        }
                        Step::Unfence(_) => prop_assert!(!promotion_begun),
                        Step::Replay(_) => promoted = machine.epoch(),
                        Step::Kill(slot) => prop_assert_eq!(Some(slot), fence_begun),
                        Step::Hold | Step::Release | Step::Settle(_) | Step::Drain(_) => {}
                    }
                }
            }
        }
    }
}
