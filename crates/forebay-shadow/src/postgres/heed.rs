//! When commits really wait for whom the settings of a primary name.
//!
//! Problem: `pg_stat_replication` calls a standby synchronous as soon as the backend that is asked has
//! read `synchronous_standby_names`. A commit waits from the moment on that the *checkpointer* has
//! read it, which may be in the middle of a checkpoint, or stand still, and no view has that.
//!
//! Approach: it is inferred, in this order. A backend that is new has the names: then the postmaster
//! has sent SIGHUP to all its processes. The checkpointer sleeps, and has no SIGHUP left to take
//! (/proc, which everybody may read). A later account says that it waits where it comes to only by way
//! of its settings: whatever it did when it was looked at is over.
//!
//! Properties: a checkpointer that is stopped, frozen or not scheduled has not heeded. Where it is not
//! to be seen in /proc, since the server has numbers of its own, a pause stands for that look, twice as long as
//! it sleeps between two writes.

use std::time::{Duration, Instant};

use super::account::Primary;

/// Whom commits wait for by a backend that begins now.
pub(crate) const NAMES: &str = "SELECT pg_catalog.current_setting('synchronous_standby_names')";
/// Where a checkpointer waits that has looked at its settings.
const IDLE: [&str; 2] = ["CheckpointerMain", "CheckpointWriteDelay"];
const PAUSE: Duration = Duration::from_millis(200);
/// The bit of SIGHUP in the masks of /proc.
const SIGHUP: u64 = 1;

/// How far it is known that commits wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heed {
    names: String,
    checkpointer: u32,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The postmaster had told it by then.
    Told(Instant),
    /// It had been told, and slept.
    Slept(Instant),
    Heeded,
}

/// What /proc says of a checkpointer that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It sleeps, and was interrupted by all it was sent.
    Sleeps,
    Busy,
    /// It is not there, or somebody else is.
    Unseen,
}

impl Heed {
    /// A new backend has the names at this moment.
    pub(crate) fn told(names: &str, checkpointer: u32, now: Instant) -> Self {
        Self {
            names: names.to_owned(),
            checkpointer,
            step: Step::Told(now),
        }
    }

    /// Whether this is about these names and the checkpointer of now.
    pub(crate) fn is_of(&self, names: &str, checkpointer: u32) -> bool {
        self.names == names && self.checkpointer == checkpointer
    }

    /// Whether commits wait, by a later account of the primary.
    pub(crate) fn is_done(&mut self, later: &Primary) -> bool {
        let waits = later.checkpointer.as_ref().map(|(_, waits)| waits.as_str());
        let is_idle = waits.is_some_and(|waits| IDLE.contains(&waits));
        self.step(later.asked, is_idle, look)
    }

    fn step(&mut self, asked: Instant, is_idle: bool, look: impl FnOnce(u32) -> Look) -> bool {
        match self.step {
            Step::Told(told) => {
                let sleeps = match look(self.checkpointer) {
                    Look::Sleeps => true,
                    Look::Busy => false,
                    Look::Unseen => told.elapsed() >= PAUSE,
                };
                if sleeps {
                    self.step = Step::Slept(Instant::now());
                }
            }
            Step::Slept(since) if asked >= since && is_idle => self.step = Step::Heeded,
            Step::Slept(_) | Step::Heeded => {}
        }
        self.step == Step::Heeded
    }
}

fn look(pid: u32) -> Look {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.map_or(Look::Unseen, |status| seen(&status))
}

fn seen(status: &str) -> Look {
    let of = |key: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    };
    if of("Name") != Some("postgres") {
        return Look::Unseen;
    }
    let pending = ["SigPnd", "ShdPnd"].map(|key| {
        let mask = of(key).and_then(|mask| u64::from_str_radix(mask, 16).ok());
        mask.is_none_or(|mask| mask & SIGHUP != 0)
    });
    let sleeps = of("State").is_some_and(|state| state.starts_with('S'));
    if sleeps && pending == [false, false] {
        Look::Sleeps
    } else {
        Look::Busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpointer_has_heeded_once_it_slept_and_is_idle_later() {
        let now = Instant::now();
        let told = || Heed::told("b", 7, now);
        assert!(told().is_of("b", 7) && !told().is_of("c", 7) && !told().is_of("b", 8));
        let never = |_: u32| -> Look { panic!("it is not looked at again") };
        let later = || Instant::now() + PAUSE;

        let mut heed = told();
        assert!(
            !heed.step(later(), true, |_| Look::Busy),
            "it has to sleep first"
        );
        assert!(
            !heed.step(later(), true, |_| Look::Sleeps),
            "and to be asked later"
        );
        assert!(!heed.step(now, true, never), "this was asked before");
        assert!(!heed.step(later(), false, never), "it works");
        assert!(heed.step(later(), true, never));
        assert!(heed.step(now, false, never), "and stays so");

        // One that is not to be seen has a pause instead.
        let mut heed = told();
        assert!(!heed.step(later(), true, |_| Look::Unseen));
        let mut heed = Heed::told("b", 7, now - PAUSE);
        assert!(!heed.step(later(), true, |_| Look::Unseen));
        assert!(heed.step(later(), true, never));
    }

    #[test]
    fn only_who_sleeps_and_has_taken_its_signals_has_read_anything() {
        let check = |name: &str, state: &str, own: &str, shared: &str, expected: Look| {
            let status = format!(
                "Name:\t{name}\nUmask:\t0077\nState:\t{state}\nSigPnd:\t{own}\nShdPnd:\t{shared}\n"
            );
            assert_eq!(seen(&status), expected, "{status}");
        };
        let (none, hup, usr) = ("0000000000000000", "0000000000000001", "0000000000000200");
        check("postgres", "S (sleeping)", none, none, Look::Sleeps);
        check("postgres", "S (sleeping)", none, usr, Look::Sleeps);
        check("postgres", "S (sleeping)", none, hup, Look::Busy);
        check("postgres", "S (sleeping)", hup, none, Look::Busy);
        check("postgres", "R (running)", none, none, Look::Busy);
        check("postgres", "T (stopped)", none, none, Look::Busy);
        check("postgres", "D (disk sleep)", none, none, Look::Busy);
        check("postgres", "S (sleeping)", "?", none, Look::Busy);
        check("bash", "S (sleeping)", none, none, Look::Unseen);
        assert_eq!(seen(""), Look::Unseen);
    }
}
