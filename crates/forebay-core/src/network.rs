//! One app's traffic: from counters, which are read once in some periods, to rates.

use serde::{Deserialize, Serialize};

use crate::snapshot::{Gap, Reading, Traffic};
use crate::units::Time;

/// How much goes over the network, loopback left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkRates {
    /// Received, in bytes per second.
    pub received: f64,
    /// Sent, in bytes per second.
    pub sent: f64,
}

/// The last reading, and how fast the counters grew until then.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Network {
    last: Option<(Time, Traffic)>,
    rates: Option<NetworkRates>,
}

impl Network {
    /// Takes in a reading. Gives rates in the periods in which there is a reading and one
    /// before it; the periods between are gaps, and not the same rates again.
    pub(crate) fn record(
        &mut self,
        time: Time,
        reading: &Reading<Traffic>,
    ) -> Option<NetworkRates> {
        let traffic = match reading {
            Ok(traffic) => *traffic,
            Err(Gap::NotDue) => return None,
            Err(Gap::Unsupported | Gap::Failed(_)) => {
                *self = Self::default();
                return None;
            }
        };
        self.rates = self
            .last
            .and_then(|(then, before)| since(time, traffic, then, before));
        self.last = Some((time, traffic));
        self.rates
    }

    /// What was counted, when that was last read.
    pub(crate) const fn traffic(&self) -> Option<Traffic> {
        match self.last {
            Some((_, traffic)) => Some(traffic),
            None => None,
        }
    }

    /// The rates between the last two readings.
    pub(crate) const fn rates(&self) -> Option<NetworkRates> {
        self.rates
    }
}

/// Counters that went back belong to a new group: no rate across them.
fn since(time: Time, now: Traffic, then: Time, before: Traffic) -> Option<NetworkRates> {
    let seconds = time.since(then).as_secs_f64();
    let received = now.received.0.checked_sub(before.received.0)?;
    let sent = now.sent.0.checked_sub(before.sent.0)?;
    let rate = |bytes: u64| crate::units::Bytes(bytes).as_f64() / seconds;
    (seconds > 0.0).then(|| NetworkRates {
        received: rate(received),
        sent: rate(sent),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::units::Bytes;

    #[test]
    fn a_period_without_a_reading_is_a_gap() {
        let mut network = Network::default();
        let mut check = |ms: u64, reading: Reading<u64>, rate: Option<f64>, held: Option<f64>| {
            let time = Time {
                monotonic: Duration::from_millis(ms),
                unix_ms: ms,
            };
            let reading = reading.map(|sent| Traffic {
                sent: Bytes(sent),
                ..Traffic::default()
            });
            let rates = network.record(time, &reading);
            assert_eq!(rates.map(|rates| rates.sent), rate, "{ms}");
            assert_eq!(network.rates().map(|rates| rates.sent), held, "{ms}");
        };
        check(0, Ok(1000), None, None);
        check(500, Err(Gap::NotDue), None, None);
        check(1000, Ok(3000), Some(2000.0), Some(2000.0));
        check(1100, Err(Gap::NotDue), None, Some(2000.0));
        // A period that overran: the time between the readings counts.
        check(3000, Ok(5000), Some(1000.0), Some(1000.0));
        check(3000, Ok(5000), None, None);
        // A new group.
        check(4000, Ok(10), None, None);
        check(5000, Ok(20), Some(10.0), Some(10.0));
        check(6000, Err(Gap::Unsupported), None, None);
        check(7000, Ok(30), None, None);
        assert_eq!(
            network.traffic().map(|traffic| traffic.sent),
            Some(Bytes(30))
        );
    }
}
