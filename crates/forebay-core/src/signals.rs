//! What an app says of itself, or others measure of it: the kernel knows nothing of requests.
//!
//! Whoever hears a signal leaves it on a [`Board`], each value until its time is over; a period
//! is given what stands there then. What was not told again in time is absent, never zero and
//! never the old value. What an app says of itself goes before what its front measured.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_forecast::is_plausible;

use crate::app::AppId;

/// How long a value stands that an app told of itself.
pub const PUSHED_STANDS: Duration = Duration::from_secs(3);

/// Apps of which values stand at most; of one more, none are taken.
pub const APPS_MAX: usize = 4096;

/// The latest signals of one app. What nobody tells lately is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signal {
    /// Requests served, per second.
    pub requests_per_second: Option<f64>,
    /// Time until a request is answered, in milliseconds, as whoever tells it defines it.
    pub response_time_ms: Option<f64>,
    /// Share of errors among answers, 0 to 1.
    pub errors: Option<f64>,
}

/// Who tells a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The app, or its metrics.
    App,
    /// The front before it, which sees all that clients see.
    Front,
}

/// The latest signals of all apps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signals {
    /// By app.
    pub apps: BTreeMap<AppId, Signal>,
}

/// Nobody tells anything.
pub static NONE: Signals = Signals {
    apps: BTreeMap::new(),
};

impl Signals {
    /// What is told of one app. What cannot be (negative, not a number, beyond any host) is
    /// absent.
    #[must_use]
    pub fn of(&self, app: &AppId) -> Signal {
        let signal = self.apps.get(app).copied().unwrap_or_default();
        let plausible = |value: Option<f64>| value.filter(|value| is_plausible(*value));
        Signal {
            requests_per_second: plausible(signal.requests_per_second),
            response_time_ms: plausible(signal.response_time_ms),
            errors: plausible(signal.errors).filter(|share| *share <= 1.0),
        }
    }
}

/// What is told, and by whom.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told {
    /// By whom.
    pub by: Source,
    /// What.
    pub signal: Signal,
}

impl Told {
    /// By the app itself.
    #[must_use]
    pub const fn by_app(signal: Signal) -> Self {
        Self {
            by: Source::App,
            signal,
        }
    }

    /// By its front.
    #[must_use]
    pub const fn by_front(signal: Signal) -> Self {
        Self {
            by: Source::Front,
            signal,
        }
    }
}

/// Signals, each with the time until which it stands. Times are counted from whatever origin
/// the caller has, always the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Board {
    apps: BTreeMap<AppId, Standing>,
}

/// What stands of one app.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Standing {
    by_app: Values,
    by_front: Values,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Values {
    requests: Option<Value>,
    response_time: Option<Value>,
    errors: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Value {
    value: f64,
    until: Duration,
}

impl Board {
    /// Takes in what is told of an app at `now`: each value takes the place of the one before
    /// it and stands for `stands`; what is not told stays as it is. Says whether there was room.
    pub fn tell(&mut self, now: Duration, stands: Duration, app: &AppId, told: Told) -> bool {
        if self.apps.len() >= APPS_MAX && !self.apps.contains_key(app) {
            self.apps.retain(|_, standing| !standing.is_over(now));
            if self.apps.len() >= APPS_MAX {
                return false;
            }
        }
        let until = now.saturating_add(stands);
        let standing = self.apps.entry(app.clone()).or_default();
        let Told { by, signal } = told;
        let values = match by {
            Source::App => &mut standing.by_app,
            Source::Front => &mut standing.by_front,
        };
        let replace = |place: &mut Option<Value>, value: Option<f64>| {
            if let Some(value) = value {
                *place = Some(Value { value, until });
            }
        };
        replace(&mut values.requests, signal.requests_per_second);
        replace(&mut values.response_time, signal.response_time_ms);
        replace(&mut values.errors, signal.errors);
        true
    }

    /// What stands at `now`.
    #[must_use]
    pub fn at(&self, now: Duration) -> Signals {
        let apps = self
            .apps
            .iter()
            .filter(|(_, standing)| !standing.is_over(now));
        Signals {
            apps: apps
                .map(|(app, standing)| (app.clone(), standing.at(now)))
                .collect(),
        }
    }
}

impl Standing {
    fn is_over(&self, now: Duration) -> bool {
        self.at(now) == Signal::default()
    }

    fn at(&self, now: Duration) -> Signal {
        let value = |of: fn(&Values) -> Option<Value>| {
            let mut told = [&self.by_app, &self.by_front].into_iter().filter_map(of);
            Some(told.find(|value| now < value.until)?.value)
        };
        Signal {
            requests_per_second: value(|values| values.requests),
            response_time_ms: value(|values| values.response_time),
            errors: value(|values| values.errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn id(name: &str) -> AppId {
        name.parse().unwrap()
    }

    const fn signal(requests: Option<f64>, response_time: Option<f64>) -> Signal {
        Signal {
            requests_per_second: requests,
            response_time_ms: response_time,
            errors: None,
        }
    }

    const fn by_app(requests: Option<f64>, response_time: Option<f64>) -> Told {
        Told::by_app(signal(requests, response_time))
    }

    #[test]
    fn what_is_not_told_again_is_absent_and_not_zero() {
        let mut board = Board::default();
        let web = id("web");
        assert!(board.tell(at(0), PUSHED_STANDS, &web, by_app(Some(5.0), None)));
        assert!(board.tell(at(1000), PUSHED_STANDS, &web, by_app(None, Some(2.5))));
        let check = |ms, expected| assert_eq!(board.at(at(ms)).of(&web), expected, "{ms}");
        check(1000, signal(Some(5.0), Some(2.5)));
        check(2999, signal(Some(5.0), Some(2.5)));
        check(3000, signal(None, Some(2.5)));
        check(4000, signal(None, None));
        assert_eq!(board.at(at(4000)), NONE);
    }

    #[test]
    fn what_an_app_says_of_itself_goes_before_what_its_front_measured() {
        let mut board = Board::default();
        let web = id("web");
        let front = Told::by_front(Signal {
            errors: Some(0.1),
            ..signal(Some(7.0), Some(900.0))
        });
        board.tell(at(0), at(5000), &web, front);
        board.tell(at(0), at(3000), &web, by_app(None, Some(2.5)));
        board.tell(at(1), at(5000), &web, front);
        let check = |ms, requests, response_time, errors| {
            let expected = Signal {
                errors,
                ..signal(requests, response_time)
            };
            assert_eq!(board.at(at(ms)).of(&web), expected, "{ms}");
        };
        check(2999, Some(7.0), Some(2.5), Some(0.1));
        // It says nothing any more; the front still does.
        check(3000, Some(7.0), Some(900.0), Some(0.1));
        check(5001, None, None, None);
        assert_eq!(board.at(at(5001)), NONE);
    }

    #[test]
    fn a_board_has_a_bound_and_makes_room() {
        let mut board = Board::default();
        let some = by_app(Some(1.0), None);
        for number in 0..APPS_MAX {
            assert!(board.tell(at(0), at(100), &id(&number.to_string()), some));
        }
        assert!(!board.tell(at(50), at(100), &id("late"), some));
        assert!(board.tell(at(60), at(100), &id("7"), some));
        assert!(board.tell(at(100), at(100), &id("late"), some));
        assert_eq!(board.at(at(100)).apps.len(), 2);
    }

    #[test]
    fn what_cannot_be_is_absent() {
        let more_than_all = Signal {
            errors: Some(1.1),
            ..Signal::default()
        };
        let signals = Signals {
            apps: BTreeMap::from([(id("web"), more_than_all)]),
        };
        assert_eq!(signals.of(&id("web")).errors, None);
        let check = |value: f64, expected: Option<f64>| {
            let signals = Signals {
                apps: BTreeMap::from([(id("web"), signal(Some(value), Some(value)))]),
            };
            assert_eq!(
                signals.of(&id("web")),
                signal(expected, expected),
                "{value}"
            );
        };
        check(0.0, Some(0.0));
        check(120.5, Some(120.5));
        check(-1.0, None);
        check(f64::NAN, None);
        check(f64::INFINITY, None);
    }
}
