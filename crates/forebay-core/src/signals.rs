//! What an app says of itself, or others measure of it: the kernel knows nothing of requests.
//!
//! Whoever hears a signal leaves it on a [`Board`], each value until its time is over; a period
//! is given what stands there then. What was not told again in time is absent, never zero and
//! never the old value. What an app says of itself goes before what its front measured.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_forecast::is_plausible;

use crate::accel;
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
    /// What the workers of apps say of accelerators.
    pub accelerators: BTreeMap<AppId, accel::Use>,
}

/// Nobody tells anything.
pub static NONE: Signals = Signals {
    apps: BTreeMap::new(),
    accelerators: BTreeMap::new(),
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

    /// What an app's worker says; nothing where that cannot be.
    #[must_use]
    pub fn accelerator(&self, app: &AppId) -> Option<accel::Use> {
        let told = self.accelerators.get(app).copied();
        told.filter(accel::Use::is_plausible)
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
    accelerator: Option<(accel::Use, Duration)>,
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
        let until = now.saturating_add(stands);
        let Some(standing) = self.standing(now, app) else {
            return false;
        };
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

    /// As [`tell`](Self::tell), of what its worker says of accelerators.
    pub fn tell_accelerator(
        &mut self,
        now: Duration,
        stands: Duration,
        app: &AppId,
        used: accel::Use,
    ) -> bool {
        let until = now.saturating_add(stands);
        let standing = self.standing(now, app);
        standing.is_some_and(|standing| {
            standing.accelerator = Some((used, until));
            true
        })
    }

    /// The place of an app; none where there is no room.
    fn standing(&mut self, now: Duration, app: &AppId) -> Option<&mut Standing> {
        if self.apps.len() >= APPS_MAX && !self.apps.contains_key(app) {
            self.apps.retain(|_, standing| !standing.is_over(now));
            if self.apps.len() >= APPS_MAX {
                return None;
            }
        }
        Some(self.apps.entry(app.clone()).or_default())
    }

    /// What stands at `now`.
    #[must_use]
    pub fn at(&self, now: Duration) -> Signals {
        let signals = self.apps.iter();
        let signals = signals.map(|(app, standing)| (app, standing.at(now)));
        let used = self.apps.iter();
        let used = used.filter_map(|(app, standing)| Some((app.clone(), standing.used(now)?)));
        Signals {
            apps: signals
                .filter(|(_, signal)| *signal != Signal::default())
                .map(|(app, signal)| (app.clone(), signal))
                .collect(),
            accelerators: used.collect(),
        }
    }
}

impl Standing {
    fn is_over(&self, now: Duration) -> bool {
        self.at(now) == Signal::default() && self.used(now).is_none()
    }

    fn used(&self, now: Duration) -> Option<accel::Use> {
        let (used, until) = self.accelerator?;
        (now < until).then_some(used)
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
    fn what_a_worker_said_stands_by_itself_and_ends() {
        let mut board = Board::default();
        let web = id("web");
        let used = accel::Use {
            devices: 1,
            price: 1.0,
            ..accel::Use::default()
        };
        assert!(board.tell_accelerator(at(0), at(2000), &web, used));
        board.tell(at(0), at(1000), &web, by_app(Some(5.0), None));
        assert_eq!(board.at(at(500)).accelerator(&web), Some(used));
        let later = board.at(at(1500));
        assert_eq!(
            (later.accelerator(&web), later.of(&web)),
            (Some(used), Signal::default())
        );
        assert_eq!(board.at(at(2000)), NONE);
        // Any process of the app's user may be that worker.
        let wrong = accel::Use {
            busy: f64::NAN,
            ..used
        };
        board.tell_accelerator(at(0), at(2000), &web, wrong);
        assert_eq!(board.at(at(1)).accelerator(&web), None);
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
            ..Signals::default()
        };
        assert_eq!(signals.of(&id("web")).errors, None);
        let check = |value: f64, expected: Option<f64>| {
            let signals = Signals {
                apps: BTreeMap::from([(id("web"), signal(Some(value), Some(value)))]),
                ..Signals::default()
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
