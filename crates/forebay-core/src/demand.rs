//! From samples to forecasts: what each app will need.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_forecast::{Forecast, Series, SeriesOptions};
use serde::{Deserialize, Serialize};

use crate::accel;
use crate::app::{App, AppId, Device, Foresight, Policy};
use crate::io::DeviceCapability;
use crate::io_history::{IoDemand, IoHistory, IoUse};
use crate::network::{Network, NetworkRates};
use crate::outlook::{Need, Quantiles, Resource, Window};
use crate::signals::Signal;
use crate::snapshot::{AppSample, Gap, Reclaim, Touched, Traffic};
use crate::tick::Inputs;
use crate::units::{Bytes, MilliCpu, Time};
use crate::working_set::{self, MemoryStat, Refaults, Witness};

/// How far ahead every series learns.
const SOON: Duration = Duration::from_secs(1);

/// Samples that one series keeps: two minutes at the default period.
const HISTORY_MAX: usize = 1200;

/// The longest horizon that so many samples can teach.
const STEPS_MAX: usize = HISTORY_MAX / 2;

/// How far ahead critical apps' memory is looked at, so that others have time to give back.
pub const AHEAD: Duration = Duration::from_secs(10);

/// So many times as long an app must have been seen, before that is believed.
const AHEAD_SEEN_MIN: u64 = 6;

/// What is likely to come counts where it is so many times what the series remember: less is
/// within the headroom of a plan, and no news.
const NEWS: f64 = 1.25;

/// What stands for a model where more is likely to come than the series remember.
pub const AHEAD_MODEL: &str = "ahead";

/// What stands for a model where an app that declares nothing begins as others of its class are.
pub const CLASS_PRIOR: &str = "class";

/// What stands for a model where nothing is forecast.
pub const PRESENT: &str = "present";

/// Weight of the newest sample in the smoothed share of waiting: about the last ten periods
/// count.
const STALL_SMOOTHING: f64 = 0.2;

/// A forecast of one resource of one app: the highest value within the horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// As likely above as below.
    pub q50: f64,
    /// Not above this in 90 of 100 cases.
    pub q90: f64,
    /// Not above this in 95 of 100 cases.
    pub q95: f64,
    /// Not above this in 99 of 100 cases.
    pub q99: f64,
    /// The model that made it.
    pub model: String,
    /// Whether there was too little history, so that the request stands in.
    pub cold: bool,
}

impl Band {
    /// Nothing but what is now; without that, floors decide.
    fn present(value: Option<f64>) -> Self {
        let value_or_none = value.unwrap_or(0.0);
        Self {
            q50: value_or_none,
            q90: value_or_none,
            q95: value_or_none,
            q99: value_or_none,
            model: PRESENT.to_owned(),
            cold: value.is_none(),
        }
    }

    /// What somebody announces.
    fn announced(peak: Quantiles, why: &str) -> Self {
        Self {
            q50: peak.q50(),
            q90: peak.q90(),
            q95: peak.q95(),
            q99: peak.q99(),
            model: why.to_owned(),
            cold: false,
        }
    }

    /// What a policy plans by: the forecast of the peak within `steps`, or the last sample.
    pub(crate) fn planned(series: &Series, steps: usize, foresight: Foresight) -> Self {
        match foresight {
            Foresight::Models => Self::of(series.peak(steps)),
            Foresight::Present => Self::present(series.last()),
        }
    }

    /// Raised level by level to what is known to come: what is as likely as not is no less so because a model
    /// says otherwise. What is only likely is a 90 % bound, which is planned for as one of 95 %, and counts where it
    /// is more than the series remembers.
    fn raised(self, need: &Need<'_>, series: &Series, foresight: Foresight) -> Self {
        if foresight == Foresight::Present {
            return self;
        }
        let unheard_of = |level: &f64| {
            series
                .highest()
                .is_none_or(|highest| *level > NEWS * highest)
        };
        let soon = need.soon.filter(unheard_of);
        let soon = soon.and_then(|level| {
            let levels = Quantiles::new([0.0, level, level, level])?;
            Some((levels, AHEAD_MODEL))
        });
        let known = need.expected.into_iter().chain(soon);
        known.fold(self, |band, (peak, why)| {
            let named = peak.q95() > band.q95 || peak.q50() > band.q50;
            Self {
                q50: band.q50.max(peak.q50()),
                q90: band.q90.max(peak.q90()),
                q95: band.q95.max(peak.q95()),
                q99: band.q99.max(peak.q99()),
                cold: band.cold && !named,
                model: match named {
                    true => why.to_owned(),
                    false => band.model,
                },
            }
        })
    }

    /// A forecast as a band; without one, nothing is expected yet and floors decide.
    fn of(forecast: Option<Forecast>) -> Self {
        let Some(forecast) = forecast else {
            return Self {
                q50: 0.0,
                q90: 0.0,
                q95: 0.0,
                q99: 0.0,
                model: "none".to_owned(),
                cold: true,
            };
        };
        let quantiles = forecast.quantiles;
        Self {
            q50: quantiles.q50(),
            q90: quantiles.q90(),
            q95: quantiles.q95(),
            q99: quantiles.q99(),
            model: forecast.model.to_owned(),
            cold: forecast.cold,
        }
    }
}

/// What one app will need at most within the policy's horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// Processor time, in CPUs.
    pub cpu: Band,
    /// Memory, in bytes.
    pub memory: Band,
    /// Share of time, lately, in which some task waited for a CPU, 0 to 1.
    pub cpu_stalled: f64,
    /// What it does on block devices now.
    pub io_use: IoUse,
    /// What it will ask of each measured block device.
    pub io: BTreeMap<Device, IoDemand>,
    /// The memory it has, and where that goes.
    pub memory_now: MemoryNow,
    /// What it does now.
    pub usage: Usage,
    /// How long its answers will take at most, in milliseconds, where that is known to come.
    pub response_time: Option<Band>,
}

/// The memory of one app now, divided into what it works with and what it only holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryNow {
    /// Charged.
    pub used: Option<Bytes>,
    /// Page cache that would not be missed: planned demand leaves it out.
    pub cold_file: Bytes,
    /// Anonymous memory that is probably not in use.
    pub cold_anon: Bytes,
    /// Who says so of anonymous memory.
    pub witness: Witness,
    /// What the peak within [`AHEAD`] stays below in 90 of 100 cases; none while there is too
    /// little history.
    pub rises_to: Option<Bytes>,
    /// What it consists of, when that was last read.
    pub stat: Option<MemoryStat>,
    /// Pages that come back in a second after they were evicted.
    pub refaults_per_second: Option<f64>,
    /// Share of time, lately, in which some task waited for memory, 0 to 1.
    pub stalled: Option<f64>,
    /// The last request to give memory back.
    pub reclaim: Option<Reclaim>,
}

impl MemoryNow {
    /// What it works with of what is charged.
    #[must_use]
    pub const fn working_set(&self, used: Bytes) -> Bytes {
        used.saturating_sub(self.cold_file)
    }

    /// Anonymous memory that was watched and not touched: a plan may go by it, as it may not by
    /// a guess.
    #[must_use]
    pub const fn untouched(&self) -> Bytes {
        match self.witness {
            Witness::Accesses => self.cold_anon,
            Witness::Lists => Bytes(0),
        }
    }
}

impl Demand {
    /// Processor time to plan for: the 95 % quantile of the peak.
    #[must_use]
    pub fn cpu_planned(&self) -> MilliCpu {
        MilliCpu::from_cpus(self.cpu.q95)
    }

    /// Memory to plan for: the 95 % quantile of the peak.
    #[must_use]
    pub fn memory_planned(&self) -> Bytes {
        Bytes::from_f64(self.memory.q95)
    }
}

/// The latest use of an app, as rates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time used, in CPUs; absent in the first period and at gaps.
    pub cpu: Option<f64>,
    /// Share of time in which some task waited for a CPU, 0 to 1.
    pub cpu_stalled: Option<f64>,
    /// Memory charged.
    pub memory: Option<Bytes>,
    /// To and from all block devices, in bytes per second, when that was last read.
    pub io: Option<f64>,
    /// Received over the network, in bytes per second; absent in periods that do not read it.
    pub received: Option<f64>,
    /// Sent over the network, in bytes per second; absent in periods that do not read it.
    pub sent: Option<f64>,
    /// Requests served, per second; absent where nobody tells.
    pub requests: Option<f64>,
    /// Time until a request is answered, in milliseconds; absent where nobody tells.
    pub response_time: Option<f64>,
    /// Share of errors among answers, 0 to 1; absent where nobody tells.
    #[serde(default)]
    pub errors: Option<f64>,
    /// What its worker says of accelerators; absent where it has none, or nobody answers.
    #[serde(default)]
    pub accelerator: Option<accel::Use>,
}

/// What an app that declares nothing probably needs: as others of its class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    /// In CPUs.
    pub cpu: f64,
    /// In bytes.
    pub memory: f64,
}

impl Prior {
    /// The medians of what others are expected to need at most. None without others.
    pub fn of(others: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let (mut cpu, mut memory): (Vec<f64>, Vec<f64>) = others.unzip();
        cpu.sort_unstable_by(f64::total_cmp);
        memory.sort_unstable_by(f64::total_cmp);
        Some(Self {
            cpu: *cpu.get(cpu.len() / 2)?,
            memory: *memory.get(memory.len() / 2)?,
        })
    }
}

/// The series of one app and what is needed to turn counters into rates.
#[derive(Debug, Clone)]
pub struct History {
    cpu: Series,
    memory: Series,
    /// Whether the processor series begins as others of the class are.
    from_class: bool,
    io: IoHistory,
    network: Network,
    last: Option<Counters>,
    usage: Usage,
    stalled: f64,
    memory_now: MemoryNow,
    refaults: Refaults,
    touched: Option<Touched>,
    memory_stalled: Option<(Time, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    time: Time,
    cpu_used: Option<Duration>,
    cpu_stalled: Option<Duration>,
}

impl History {
    /// An empty history of `app`, starting from its request; from what others of its class need
    /// where it has none, but not below its floor.
    #[must_use]
    pub fn new(app: &App, period: Duration, prior: Option<Prior>) -> Self {
        let series = |ahead: &[Duration], request| {
            Series::new(SeriesOptions {
                horizons: horizons(ahead, period),
                history_max: HISTORY_MAX,
                request,
            })
        };
        let floor = app.floor.cpu.as_cpus();
        let undeclared = prior.filter(|prior| app.request.is_none() && prior.cpu > floor);
        let prior_cpu = undeclared.map_or(floor, |prior| prior.cpu);
        let request = app.request.map_or(prior_cpu, MilliCpu::as_cpus);
        let memory = prior.map_or(0.0, |prior| prior.memory);
        let memory = memory.max(app.floor.memory.as_f64());
        Self {
            io: IoHistory::new(horizons(&[SOON], period)),
            cpu: series(&[SOON], Some(request)),
            memory: series(&[SOON, AHEAD], Some(memory)),
            from_class: undeclared.is_some(),
            network: Network::default(),
            last: None,
            usage: Usage::default(),
            stalled: 0.0,
            memory_now: MemoryNow::default(),
            refaults: Refaults::default(),
            touched: None,
            memory_stalled: None,
        }
    }

    /// Takes in one sample. A missing reading is a gap in the series, not a zero.
    /// `devices` are those of which it is known what they can do; the rest is what the kernel
    /// does not know.
    pub fn record(
        &mut self,
        time: Time,
        sample: &AppSample,
        devices: &BTreeMap<Device, DeviceCapability>,
        (signal, accelerator): (Signal, Option<accel::Use>),
    ) {
        self.io.record(time, sample, devices);
        let network = self.network.record(time, &sample.traffic);
        let counters = Counters {
            time,
            cpu_used: sample.cpu_used.as_ref().ok().copied(),
            cpu_stalled: sample.cpu_stalled.as_ref().ok().copied(),
        };
        let rate = |counter: fn(&Counters) -> Option<Duration>| {
            let last = self.last.as_ref()?;
            let elapsed = time.since(last.time);
            // A counter that went back belongs to a new group: no rate across it.
            let grown = counter(&counters)?.checked_sub(counter(last)?)?;
            (!elapsed.is_zero()).then(|| grown.as_secs_f64() / elapsed.as_secs_f64())
        };
        self.usage = Usage {
            cpu: rate(|c| c.cpu_used),
            cpu_stalled: rate(|c| c.cpu_stalled).map(|share| share.min(1.0)),
            memory: sample.memory_used.as_ref().ok().copied(),
            io: self.io.usage().bytes_per_second(),
            received: network.map(|rates| rates.received),
            sent: network.map(|rates| rates.sent),
            requests: signal.requests_per_second,
            response_time: signal.response_time_ms,
            errors: signal.errors,
            accelerator,
        };
        self.last = Some(counters);
        if let Some(stalled) = self.usage.cpu_stalled {
            self.stalled += STALL_SMOOTHING * (stalled - self.stalled);
        }

        match wanted_cpu(&self.usage) {
            Some(cpu) => self.cpu.update(cpu),
            None => self.cpu.update_gap(),
        }
        self.record_memory(time, sample);
        match self.usage.memory {
            Some(used) => self
                .memory
                .update(self.memory_now.working_set(used).as_f64()),
            None => self.memory.update_gap(),
        }
    }

    /// Divides what is charged. What is read only now and then stays as it was meanwhile.
    fn record_memory(&mut self, time: Time, sample: &AppSample) {
        let now = &mut self.memory_now;
        match &sample.memory_stat {
            Ok(stat) => {
                self.refaults.record(time, stat.refaults);
                now.stat = Some(*stat);
                now.refaults_per_second = self.refaults.per_second;
            }
            Err(Gap::NotDue) => {}
            Err(Gap::Unsupported | Gap::Failed(_)) => {
                self.refaults = Refaults::default();
                now.stat = None;
                now.refaults_per_second = None;
            }
        }
        match sample.memory_stalled {
            Ok(total) => {
                let grown = self.memory_stalled.and_then(|(then, before)| {
                    let elapsed = time.since(then).as_secs_f64();
                    (elapsed > 0.0)
                        .then(|| Some(total.checked_sub(before)?.as_secs_f64() / elapsed))?
                });
                now.stalled = grown.map(|share| share.min(1.0));
                self.memory_stalled = Some((time, total));
            }
            Err(Gap::NotDue) => {}
            // What cannot be read any more is no evidence of what was.
            Err(Gap::Unsupported | Gap::Failed(_)) => {
                now.stalled = None;
                self.memory_stalled = None;
            }
        }
        now.used = self.usage.memory;
        now.reclaim = sample.reclaim;
        let rare = self.refaults.are_rare(time);
        let used = now.used.unwrap_or(Bytes(0));
        match &sample.touched {
            Ok(touched) => self.touched = Some(*touched),
            Err(Gap::NotDue) => {}
            Err(Gap::Unsupported | Gap::Failed(_)) => self.touched = None,
        }
        let touched = self.touched.as_ref();
        let divided = working_set::estimate(used, now.stat.as_ref(), rare, touched);
        (now.cold_file, now.cold_anon) = (divided.cold_file, divided.cold_anon);
        now.witness = divided.witness;
    }

    /// The latest rates.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        self.usage
    }

    /// The latest use of block devices.
    #[must_use]
    pub const fn io_use(&self) -> &IoUse {
        self.io.usage()
    }

    /// What it sent and received, when that was last read.
    #[must_use]
    pub const fn traffic(&self) -> Option<Traffic> {
        self.network.traffic()
    }

    /// How fast that grew between its last two readings.
    #[must_use]
    pub const fn network_rates(&self) -> Option<NetworkRates> {
        self.network.rates()
    }

    /// What to plan for by a policy: the peak within its horizon, and what is known to come.
    #[must_use]
    pub fn forecast(&self, app: &AppId, inputs: &Inputs<'_>) -> Demand {
        let Policy {
            horizon,
            period,
            foresight,
            ..
        } = *inputs.policy;
        let steps = steps(horizon, period);
        let window = Window::ahead(inputs.time.unix_ms, horizon);
        let band = |series, resource| {
            let need = inputs.outlook.need(app, resource, window);
            Band::planned(series, steps, foresight).raised(&need, series, foresight)
        };
        let mut cpu = band(&self.cpu, Resource::Cpu);
        if cpu.cold && self.from_class && foresight == Foresight::Models {
            CLASS_PRIOR.clone_into(&mut cpu.model);
        }
        Demand {
            cpu,
            memory: band(&self.memory, Resource::Memory),
            cpu_stalled: self.stalled,
            io_use: self.io.usage().clone(),
            io: self.io.forecast(steps, foresight),
            memory_now: MemoryNow {
                rises_to: match foresight {
                    Foresight::Models => self.rises_to(app, inputs),
                    Foresight::Present => None,
                },
                ..self.memory_now
            },
            usage: self.usage,
            response_time: inputs
                .outlook
                .brought(app, Resource::ResponseTime, window)
                .filter(|_| foresight == Foresight::Models)
                .map(|(peak, why)| Band::announced(peak, why)),
        }
    }

    /// What makes others give back goes by a lower bound than protection does: that the app
    /// was small before it started is among the changes seen, and not one that comes again.
    /// What is expected by name is no guess.
    fn rises_to(&self, app: &AppId, inputs: &Inputs<'_>) -> Option<Bytes> {
        let ahead = steps(AHEAD, inputs.policy.period);
        let known = self.memory.samples() >= (ahead as u64).saturating_mul(AHEAD_SEEN_MIN);
        let peak = self.memory.peak(ahead).filter(|peak| known && !peak.cold);
        let window = Window::ahead(inputs.time.unix_ms, AHEAD);
        let expected = inputs.outlook.need(app, Resource::Memory, window).expected;
        let levels = [
            peak.map(|peak| peak.quantiles.q90()),
            expected.map(|(peak, _)| peak.q95()),
        ];
        levels
            .into_iter()
            .flatten()
            .max_by(f64::total_cmp)
            .map(Bytes::from_f64)
    }

    /// What it is expected to need at most, in CPUs and bytes, for those who have no history. None
    /// while it has none itself.
    #[must_use]
    pub fn typical(&self) -> Option<(f64, f64)> {
        let peak = |series: &Series| {
            let peak = series.peak(1).filter(|peak| !peak.cold)?;
            Some(peak.quantiles.q95())
        };
        Some((peak(&self.cpu)?, peak(&self.memory)?))
    }

    /// The processor series, to explain a forecast.
    #[must_use]
    pub const fn cpu_series(&self) -> &Series {
        &self.cpu
    }

    /// The memory series, to explain a forecast.
    #[must_use]
    pub const fn memory_series(&self) -> &Series {
        &self.memory
    }
}

/// What the app would have used, had no task waited. Use alone cannot show a need above the
/// slice; the share of time in which tasks waited can.
fn wanted_cpu(usage: &Usage) -> Option<f64> {
    Some(usage.cpu? * (1.0 + usage.cpu_stalled.unwrap_or(0.0)))
}

/// The horizons of a series, in steps: the next step, and those.
fn horizons(ahead: &[Duration], period: Duration) -> Vec<usize> {
    let mut horizons = vec![1];
    let ahead = ahead
        .iter()
        .map(|ahead| steps(*ahead, period).min(STEPS_MAX));
    horizons.extend(ahead);
    horizons.dedup();
    horizons
}

/// Whole periods in `horizon`, at least one.
fn steps(horizon: Duration, period: Duration) -> usize {
    let steps = horizon.as_nanos() / period.as_nanos().max(1);
    usize::try_from(steps).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Binding, Class};

    #[test]
    fn a_horizon_is_at_least_one_step() {
        let ms = Duration::from_millis;
        let check = |horizon, period, expected| assert_eq!(steps(horizon, period), expected);
        check(ms(1000), ms(100), 10);
        check(ms(10), ms(100), 1);
        check(ms(10), ms(0), 10_000_000);
    }

    #[test]
    fn without_foresight_demand_is_what_is_used_now() {
        let mut series = Series::new(SeriesOptions::default());
        let nothing = Band::planned(&series, 10, Foresight::Present);
        assert!(nothing.cold && nothing.q95 == 0.0);
        for step in 0..300_u16 {
            series.update(f64::from(step % 30));
        }
        let band = Band::planned(&series, 10, Foresight::Present);
        assert_eq!((band.q50, band.q99), (29.0, 29.0));
        assert_eq!((band.model.as_str(), band.cold), (PRESENT, false));
        let foreseen = Band::planned(&series, 10, Foresight::Models);
        assert_ne!(foreseen.model, PRESENT);
    }

    #[test]
    fn what_is_known_to_come_raises_a_band_and_what_is_likely_only_beyond_memory() {
        let mut series = Series::new(SeriesOptions::default());
        for step in 0..300_u16 {
            series.update(f64::from(step % 30));
        }
        let check = |expected: Option<(f64, &'static str)>,
                     soon,
                     foresight,
                     raised: Option<(f64, &str)>| {
            let expected = expected.map(|(level, why)| (Quantiles::new([level; 4]).unwrap(), why));
            let need = Need { expected, soon };
            let plain = Band::planned(&series, 10, foresight);
            let band = plain.clone().raised(&need, &series, foresight);
            match raised {
                Some(raised) => assert_eq!((band.q95, band.model.as_str()), raised),
                None => assert_eq!(band, plain),
            }
        };
        check(None, None, Foresight::Models, None);
        check(
            Some((90.0, "event x")),
            None,
            Foresight::Models,
            Some((90.0, "event x")),
        );
        check(Some((1.0, "event x")), None, Foresight::Models, None);
        check(None, Some(29.0), Foresight::Models, None);
        check(
            None,
            Some(60.0),
            Foresight::Models,
            Some((60.0, AHEAD_MODEL)),
        );
        check(
            Some((50.0, "x")),
            Some(60.0),
            Foresight::Models,
            Some((60.0, AHEAD_MODEL)),
        );
        check(
            Some((90.0, "event x")),
            Some(60.0),
            Foresight::Present,
            None,
        );
    }

    /// Only what is exceeded in one case of twenty was raised, so that what is expected with certainty was none of
    /// what is as likely as not.
    #[test]
    fn every_level_of_what_is_expected_counts() {
        let mut series = Series::new(SeriesOptions::default());
        for _ in 0..300 {
            series.update(1.0);
        }
        let raised = |levels, soon| {
            let expected = Some((Quantiles::new(levels).unwrap(), "event x"));
            let band = Band::planned(&series, 10, Foresight::Models);
            let need = Need { expected, soon };
            let band = band.raised(&need, &series, Foresight::Models);
            ([band.q50, band.q90, band.q95, band.q99], band.model)
        };
        let levels = [2.0, 3.0, 4.0, 5.0];
        assert_eq!(raised(levels, None), (levels, "event x".to_owned()));
        // What is only likely says nothing of what is as likely as not.
        let both = [2.0, 9.0, 9.0, 9.0];
        assert_eq!(raised(levels, Some(9.0)), (both, AHEAD_MODEL.to_owned()));
        // It may be that a model expects as much at most, and less on the whole.
        let (levels, by) = raised([0.5, 0.5, 0.5, 0.5], None);
        assert!(levels[0] > 0.5 && by != "event x", "{levels:?} {by}");
    }

    #[test]
    fn who_declares_nothing_begins_as_others_of_its_class_are() {
        let others = [(1.0, 100.0), (4.0, 50.0), (2.0, 900.0)];
        let prior = Prior::of(others.into_iter()).unwrap();
        assert_eq!((prior.cpu, prior.memory), (2.0, 100.0));
        assert_eq!(Prior::of(std::iter::empty()), None);
        let check = |request: Option<u64>, floor, prior, expected: (f64, &str)| {
            let mut app = App::new(
                "x".parse().unwrap(),
                Class::Critical,
                Binding::Cgroup("x".into()),
            );
            app.request = request.map(MilliCpu);
            app.floor.cpu = MilliCpu(floor);
            let policy = Policy::default();
            let history = History::new(&app, policy.period, prior);
            let demand = history.forecast(&app.id, &Inputs::new(Time::default(), &policy));
            assert!(demand.cpu.cold, "{demand:?}");
            assert_eq!((demand.cpu.q50, demand.cpu.model.as_str()), expected);
        };
        check(None, 500, Some(prior), (2.0, CLASS_PRIOR));
        check(None, 3000, Some(prior), (3.0, "request"));
        check(Some(700), 500, Some(prior), (0.7, "request"));
        check(None, 500, None, (0.5, "request"));
    }

    #[test]
    fn waiting_for_memory_is_not_known_when_it_cannot_be_read() {
        let binding = Binding::Cgroup("x".into());
        let app = App::new("x".parse().unwrap(), Class::Critical, binding);
        let mut history = History::new(&app, Policy::default().period, None);
        let mut stalled = |ms: u64, reading| {
            let mut sample = AppSample::absent();
            sample.memory_stalled = reading;
            let time = Time {
                monotonic: Duration::from_millis(ms),
                unix_ms: ms,
            };
            history.record(time, &sample, &BTreeMap::new(), (Signal::default(), None));
            history.memory_now.stalled
        };
        let ms = Duration::from_millis;
        assert_eq!(stalled(0, Ok(ms(0))), None);
        assert_eq!(stalled(1000, Ok(ms(500))), Some(0.5));
        assert_eq!(stalled(1100, Err(Gap::NotDue)), Some(0.5));
        assert_eq!(stalled(2000, Err(Gap::Failed("gone".to_owned()))), None);
        // Nor is what grew across that.
        assert_eq!(stalled(3000, Ok(ms(600))), None);
        assert_eq!(stalled(4000, Ok(ms(600))), Some(0.0));
    }

    #[test]
    fn waiting_shows_in_the_demand() {
        let usage = Usage {
            cpu: Some(1.0),
            cpu_stalled: Some(0.5),
            ..Usage::default()
        };
        assert_eq!(wanted_cpu(&usage), Some(1.5));
        assert_eq!(wanted_cpu(&Usage::default()), None);
    }
}
