//! Bytes over time: a token bucket that lets debts be made and makes everybody wait for them.

use std::time::Duration;

use crate::units::Bytes;

/// What may be spent at once after a rest, as time at the full rate.
const BURST: Duration = Duration::from_millis(250);

/// Spreads work over time. In any span it lets through no more than the rate times the span,
/// one burst and the last thing spent.
#[derive(Debug, Clone)]
pub struct Pace {
    bytes_per_second: u64,
    /// When everything spent so far has been paid for. Never further back than one burst.
    paid: Duration,
}

impl Pace {
    /// At most so many bytes in a second; at least one.
    #[must_use]
    pub fn new(bytes_per_second: Bytes) -> Self {
        Self {
            bytes_per_second: bytes_per_second.0.max(1),
            paid: Duration::ZERO,
        }
    }

    /// Takes so many bytes, and says how long to wait before taking more.
    pub fn spend(&mut self, now: Duration, bytes: Bytes) -> Duration {
        let nanos = u128::from(bytes.0) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.paid.max(now.saturating_sub(BURST));
        self.paid = from.saturating_add(cost);
        self.wait(now)
    }

    /// How long to wait before taking more.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        self.paid.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_span_sees_more_than_its_share(
            rate in 1_u64..10_000_000,
            steps in prop::collection::vec((0_u64..2_000_000, 0_u64..5_000), 1..60),
        ) {
            let mut pace = Pace::new(Bytes(rate));
            let mut now = Duration::from_secs(10);
            let mut spent: Vec<(Duration, u64)> = Vec::new();
            for (bytes, idle_ms) in steps {
                // Whoever spends has waited as it was told.
                now += pace.wait(now);
                pace.spend(now, Bytes(bytes));
                spent.push((now, bytes));
                now += Duration::from_millis(idle_ms);
            }
            for first in 0..spent.len() {
                for last in first..spent.len() {
                    let all: u64 = spent[first..last].iter().map(|(_, bytes)| bytes).sum();
                    let span = spent[last].0 - spent[first].0 + BURST;
                    let most = span.as_secs_f64() * Bytes(rate).as_f64();
                    prop_assert!(Bytes(all).as_f64() <= most + 1.0, "{all} in {span:?} at {rate}");
                }
            }
        }

        #[test]
        fn what_is_owed_is_what_was_spent(rate in 1_u64..1_000_000, bytes in 0_u64..10_000_000) {
            let mut pace = Pace::new(Bytes(rate));
            let now = Duration::from_secs(100);
            let wait = pace.spend(now, Bytes(bytes));
            let due = Bytes(bytes).as_f64() / Bytes(rate).as_f64() - BURST.as_secs_f64();
            prop_assert!((wait.as_secs_f64() - due.max(0.0)).abs() < 1e-6);
        }
    }
}
