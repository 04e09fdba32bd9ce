//! How apps share the time of one device.
//!
//! Each app has a worker of its own, and these know nothing of each other: a daemon sees all of them. Who
//! used a device lately divides it with the others who did, by priority; who is alone has all of it, and
//! nobody has more than its own quota. A worker keeps to its part by a bucket (`forebay_accel::broker`).
//!
//! Properties, tested: parts of those who use a device add up to one at most; one that is alone is not held
//! back; who does not use it takes nothing from others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use forebay_core::app::AppId;

/// Who took less than this part of a device's time does not use it.
const USES_MIN: f64 = 0.005;
/// How long who used a device is counted.
const LATELY: Duration = Duration::from_secs(2);

/// Who used which device lately.
#[derive(Debug, Default)]
pub(super) struct Shares {
    devices: BTreeMap<String, BTreeMap<AppId, User>>,
}

#[derive(Debug, Clone, Copy)]
struct User {
    weight: u32,
    at: Instant,
}

impl Shares {
    /// Notes that an app took a part of a device's time until now.
    pub(super) fn used(&mut self, device: &str, app: &AppId, weight: u32, part: f64, now: Instant) {
        let users = self.devices.entry(device.to_owned()).or_default();
        users.retain(|_, user| now.saturating_duration_since(user.at) < LATELY);
        if part >= USES_MIN {
            users.insert(app.clone(), User { weight, at: now });
        }
        if users.is_empty() {
            self.devices.remove(device);
        }
    }

    /// The part that an app may take from now on.
    pub(super) fn part(&self, device: &str, app: &AppId, weight: u32, now: Instant) -> f64 {
        let users = self.devices.get(device);
        let others = users.into_iter().flatten().filter(|(other, user)| {
            *other != app && now.saturating_duration_since(user.at) < LATELY
        });
        let others: u32 = others.map(|(_, user)| user.weight).sum();
        f64::from(weight) / f64::from(weight.saturating_add(others).max(1))
    }

    /// Forgets an app.
    pub(super) fn forget(&mut self, app: &AppId) {
        for users in self.devices.values_mut() {
            users.remove(app);
        }
        self.devices.retain(|_, users| !users.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_divided_among_those_who_use_it() {
        let begin = Instant::now();
        let now = |ms| begin + Duration::from_millis(ms);
        let [a, b, c] = ["a", "b", "c"].map(|name| name.parse::<AppId>().unwrap());
        let mut shares = Shares::default();
        let check = |shares: &Shares, at, expected: [f64; 3]| {
            let parts = [(&a, 16), (&b, 4), (&c, 4)];
            let parts = parts.map(|(app, weight)| shares.part("gpu", app, weight, at));
            assert_eq!(parts, expected);
        };
        shares.used("gpu", &a, 16, 0.9, now(0));
        shares.used("gpu", &b, 4, 0.001, now(0));
        // Who comes gets its part of what is used by now.
        check(&shares, now(1), [1.0, 0.2, 0.2]);
        shares.used("gpu", &b, 4, 0.2, now(500));
        check(&shares, now(501), [0.8, 0.2, 4.0 / 24.0]);
        assert_eq!(shares.part("other", &a, 16, now(501)), 1.0);
        check(&shares, now(2000), [0.8, 1.0, 0.5]);
        shares.forget(&b);
        check(&shares, now(2000), [1.0, 1.0, 1.0]);
    }
}
