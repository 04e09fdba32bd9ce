//! One app's I/O: from counters of each device to rates, forecasts and waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_forecast::{Series, SeriesOptions};
use serde::{Deserialize, Serialize};

use crate::app::{Device, Foresight};
use crate::demand::Band;
use crate::io::{DEVICES_MAX, DeviceCapability, DeviceCounters, IoRates};
use crate::snapshot::{AppSample, Gap};
use crate::units::Time;

/// Samples that one series keeps: a minute at the default period.
const HISTORY_MAX: usize = 600;
/// Weight of the newest sample in what is smoothed: about the last ten samples count.
const SMOOTHING: f64 = 0.2;

/// What one app lately did on one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceUse {
    /// Between the last two readings.
    pub rates: IoRates,
    /// Part of the device's time that these take; absent where nobody measured the device.
    pub share: Option<f64>,
}

/// What one app lately did on block devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IoUse {
    /// By device.
    pub devices: BTreeMap<Device, DeviceUse>,
    /// Share of time, lately, in which some task waited for I/O, 0 to 1; absent where the
    /// kernel does not say.
    pub stalled: Option<f64>,
    /// Time that tasks waited, lately, for each request: what the app sees of the devices'
    /// latency. Too low where it waits for several at a time; absent without requests.
    pub wait: Option<Duration>,
    /// What a request of these lengths takes alone, where all its devices were measured.
    pub wait_alone: Option<Duration>,
}

impl IoUse {
    /// To and from all devices, in bytes per second. Absent without a device: there may be none
    /// that was used, or nothing that says so.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        let moved = self.devices.values().map(|used| used.rates.bytes());
        moved.reduce(|sum, bytes| sum + bytes)
    }
}

/// What one app is expected to ask of one device, within the horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IoDemand {
    /// Part of the device's time.
    pub share: Band,
}

/// The series of one app's devices and what is needed to turn counters into rates.
#[derive(Debug, Clone)]
pub(crate) struct IoHistory {
    horizons: Vec<usize>,
    series: BTreeMap<Device, Series>,
    last: Option<Last>,
    usage: IoUse,
}

#[derive(Debug, Clone)]
struct Last {
    time: Time,
    counters: DeviceCounters,
    stalled: Option<Duration>,
}

impl IoHistory {
    /// An empty history that forecasts these numbers of periods ahead.
    pub(crate) const fn new(horizons: Vec<usize>) -> Self {
        Self {
            horizons,
            series: BTreeMap::new(),
            last: None,
            usage: IoUse {
                devices: BTreeMap::new(),
                stalled: None,
                wait: None,
                wait_alone: None,
            },
        }
    }

    /// Takes in one sample. A missing reading is a gap, not a zero.
    pub(crate) fn record(
        &mut self,
        time: Time,
        sample: &AppSample,
        devices: &BTreeMap<Device, DeviceCapability>,
    ) {
        self.series.retain(|device, _| devices.contains_key(device));
        let counters = match &sample.io {
            Ok(counters) => counters.clone(),
            Err(gap) => {
                if *gap != Gap::NotDue {
                    self.usage = IoUse::default();
                    self.last = None;
                }
                self.series.values_mut().for_each(Series::update_gap);
                return;
            }
        };
        let now = Last {
            time,
            counters,
            stalled: sample.io_stalled.as_ref().ok().copied(),
        };
        if let Some(last) = self.last.replace(now) {
            self.advance(&last, devices);
        }
    }

    fn advance(&mut self, last: &Last, devices: &BTreeMap<Device, DeviceCapability>) {
        let Some(now) = &self.last else { return };
        let elapsed = now.time.since(last.time);
        let mut usage = BTreeMap::new();
        let mut requests: Option<u64> = Some(0);
        for (device, counters) in now.counters.iter().take(DEVICES_MAX) {
            let before = last.counters.get(device).copied().unwrap_or_default();
            let grown = counters.requests().checked_sub(before.requests());
            requests = requests.zip(grown).map(|(sum, grown)| sum + grown);
            if let Some(rates) = counters.since(&before, elapsed) {
                let share = devices.get(device).map(|device| device.share(&rates));
                usage.insert(*device, DeviceUse { rates, share });
            }
        }
        let waited = now.stalled.zip(last.stalled);
        let waited = waited.and_then(|(now, before)| now.checked_sub(before));
        let seconds = elapsed.as_secs_f64();
        let stalled = waited
            .filter(|_| seconds > 0.0)
            .map(|waited| (waited.as_secs_f64() / seconds).min(1.0));
        let wait = waited
            .zip(requests.filter(|count| *count > 0))
            .and_then(|(waited, count)| waited.checked_div(u32::try_from(count).ok()?));

        // It is read together with the counters: where it is missing it could not be read, and what
        // was before is no evidence of what is.
        let before = self.usage.stalled.filter(|_| now.stalled.is_some());
        self.usage.stalled = smoothed(before, stalled);
        if let Some(wait) = wait {
            let before = self.usage.wait.map(|wait| wait.as_secs_f64());
            self.usage.wait = smoothed(before, Some(wait.as_secs_f64()))
                .and_then(|wait| Duration::try_from_secs_f64(wait).ok());
            self.usage.wait_alone = alone(&usage, devices);
        }
        for device in devices.keys() {
            let share = usage.get(device).map_or(Some(0.0), |usage| usage.share);
            // A device that the app never used needs no series.
            if !self.series.contains_key(device) && !usage.contains_key(device) {
                continue;
            }
            let series = self.series.entry(*device).or_insert_with(|| {
                Series::new(SeriesOptions {
                    horizons: self.horizons.clone(),
                    history_max: HISTORY_MAX,
                    request: Some(0.0),
                })
            });
            match share {
                Some(share) => series.update(share),
                None => series.update_gap(),
            }
        }
        self.usage.devices = usage;
    }

    /// The latest rates.
    pub(crate) const fn usage(&self) -> &IoUse {
        &self.usage
    }

    /// What to plan for within so many periods, of each measured device that the app used.
    pub(crate) fn forecast(
        &self,
        steps: usize,
        foresight: Foresight,
    ) -> BTreeMap<Device, IoDemand> {
        let demand = |series: &Series| IoDemand {
            share: Band::planned(series, steps, foresight),
        };
        self.series
            .iter()
            .map(|(device, series)| (*device, demand(series)))
            .collect()
    }
}

/// What a request takes alone, over all devices that had some; none when one was not measured.
fn alone(
    usage: &BTreeMap<Device, DeviceUse>,
    devices: &BTreeMap<Device, DeviceCapability>,
) -> Option<Duration> {
    let mut time = 0.0;
    let mut requests = 0.0;
    for (device, usage) in usage.iter().filter(|(_, usage)| !usage.rates.is_idle()) {
        let alone = devices.get(device)?.time_alone(&usage.rates)?;
        time += alone.as_secs_f64() * usage.rates.requests();
        requests += usage.rates.requests();
    }
    Duration::try_from_secs_f64(time / requests).ok()
}

fn smoothed(before: Option<f64>, new: Option<f64>) -> Option<f64> {
    match (before, new) {
        (Some(before), Some(new)) => Some(before + SMOOTHING * (new - before)),
        (before, new) => new.or(before),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Direction, IoCounters, Measured};

    const DISK: Device = Device { major: 8, minor: 0 };
    const OTHER: Device = Device {
        major: 8,
        minor: 16,
    };

    fn devices() -> BTreeMap<Device, DeviceCapability> {
        let read = Direction::new(Measured {
            bytes_per_second: 100 << 20,
            requests_per_second: 1000,
            block_bytes: 4096,
            latency: Duration::from_millis(1),
            latency_p99: Duration::from_millis(2),
        });
        let device = DeviceCapability {
            name: "sda".to_owned(),
            read: read.unwrap(),
            write: None,
            cost_model: None,
        };
        BTreeMap::from([(DISK, device)])
    }

    fn sample(disk: u64, other: u64, stalled_ms: u64) -> AppSample {
        let counters = |reads: u64| IoCounters {
            reads,
            read_bytes: reads * 4096,
            ..IoCounters::default()
        };
        let mut sample = AppSample::absent();
        sample.io = Ok([(DISK, counters(disk)), (OTHER, counters(other))].into());
        sample.io_stalled = Ok(Duration::from_millis(stalled_ms));
        sample
    }

    fn at(ms: u64) -> Time {
        Time {
            monotonic: Duration::from_millis(ms),
            unix_ms: ms,
        }
    }

    #[test]
    fn waiting_is_not_known_when_it_cannot_be_read() {
        let mut history = IoHistory::new(vec![1, 10]);
        let mut stalled = |ms, sample: &AppSample| {
            history.record(at(ms), sample, &devices());
            history.usage().stalled
        };
        assert_eq!(stalled(0, &sample(0, 0, 0)), None);
        assert_eq!(stalled(100, &sample(10, 0, 100)), Some(1.0));
        let mut unread = sample(20, 0, 200);
        unread.io_stalled = Err(Gap::Failed("gone".to_owned()));
        assert_eq!(stalled(200, &unread), None);
        assert_eq!(stalled(300, &sample(30, 0, 300)), None);
        assert_eq!(stalled(400, &sample(40, 0, 350)), Some(0.5));
    }

    #[test]
    fn counters_become_rates_shares_and_waiting() {
        let mut history = IoHistory::new(vec![1, 10]);
        history.record(at(0), &sample(100, 0, 0), &devices());
        assert_eq!(history.usage(), &IoUse::default());
        history.record(at(100), &sample(150, 0, 100), &devices());
        let usage = history.usage();
        let disk = usage.devices[&DISK];
        assert!((disk.rates.reads - 500.0).abs() < 1e-6, "{usage:?}");
        assert!((disk.share.unwrap() - 0.5).abs() < 0.01, "{usage:?}");
        assert_eq!(usage.devices[&OTHER].share, None);
        assert_eq!(usage.stalled, Some(1.0));
        assert_eq!(usage.wait, Some(Duration::from_millis(2)));
        assert_eq!(usage.wait_alone, Some(Duration::from_millis(1)));
        assert_eq!(
            history
                .forecast(10, Foresight::Models)
                .keys()
                .collect::<Vec<_>>(),
            [&DISK]
        );
    }

    #[test]
    fn an_unmeasured_device_leaves_the_time_alone_unknown() {
        let mut history = IoHistory::new(vec![1, 10]);
        history.record(at(0), &sample(0, 0, 0), &devices());
        history.record(at(100), &sample(10, 10, 10), &devices());
        assert_eq!(history.usage().wait_alone, None);
    }

    #[test]
    fn rates_span_the_periods_in_which_nothing_was_read() {
        let mut history = IoHistory::new(vec![1, 10]);
        history.record(at(0), &sample(0, 0, 0), &devices());
        let mut missing = AppSample::absent();
        missing.io = Err(Gap::NotDue);
        history.record(at(100), &missing, &devices());
        history.record(at(200), &sample(20, 0, 0), &devices());
        let reads = history.usage().devices[&DISK].rates.reads;
        assert!((reads - 100.0).abs() < 1e-6, "{reads}");
    }

    #[test]
    fn a_new_group_starts_anew() {
        let mut history = IoHistory::new(vec![1, 10]);
        history.record(at(0), &sample(100, 0, 50), &devices());
        history.record(at(100), &sample(3, 0, 1), &devices());
        assert!(!history.usage().devices.contains_key(&DISK));
        assert_eq!(history.usage().wait, None);
        history.record(at(200), &AppSample::absent(), &devices());
        assert_eq!(history.usage(), &IoUse::default());
    }

    #[test]
    fn a_device_that_is_measured_no_more_has_no_forecast() {
        let mut history = IoHistory::new(vec![1, 10]);
        history.record(at(0), &sample(0, 0, 0), &devices());
        history.record(at(100), &sample(10, 0, 0), &devices());
        assert_eq!(history.forecast(1, Foresight::Models).len(), 1);
        history.record(at(200), &sample(20, 0, 0), &BTreeMap::new());
        assert_eq!(history.forecast(1, Foresight::Models).len(), 0);
    }
}
