//! systemd: units by D-Bus.
//!
//! | knob | property |
//! |---|---|
//! | `Cpus`, `Mems` | AllowedCPUs, AllowedMemoryNodes; none on cgroup v1 |
//! | `CpuWeight` | CPUWeight |
//! | `CpuIdle` | CPUWeight = 0, which is `idle`, from version 252 on; none on cgroup v1 |
//! | `CpuMax` | CPUQuotaPerSecUSec |
//! | `MemoryMin`, `MemoryLow`, `MemoryHigh`, `MemorySwapMax` | the same; none on cgroup v1 |
//! | `MemoryZswapMax` | MemoryZSwapMax, from version 253 on; none on cgroup v1 |
//! | `MemoryMax` | MemoryMax |
//! | `IoWeight` | IOWeight |
//! | `IoMax` | IOReadBandwidthMax, IOWriteBandwidthMax, IOReadIOPSMax, IOWriteIOPSMax |
//! | `PidsMax` | TasksMax |
//! | `CpusPartition`, `CpuBurst`, `CpuUclampMin`, `CpuUclampMax` | none |
//!
//! The knobs without a property are not written to a unit with `Delegate=yes` either: what is
//! delegated is the tree below the unit, while the unit's own knobs stay systemd's (systemd's
//! "Control Group APIs and Delegation").
//!
//! `SetUnitProperties` with `runtime` keeps what it is told in a file of
//! /run/systemd/system.control, one for each property, so that it outlives daemon-reload. Such a
//! file would go before what somebody writes into the unit later, until the next boot. So once a
//! property holds its original again, the file goes, unless it was there before. systemd then
//! says of the unit, truly, that its files have changed, until somebody reloads it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use forebay_core::app::{Device, IoMax};
use forebay_core::idset::IdSet;
use forebay_core::slice::{Knob, Setting};
use forebay_core::units::{Limit, MilliCpu};
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use super::{Held, Owner, Value, Values};
use crate::error::HostError;
use crate::files::read_text;
use crate::knobs::{all_knobs, pages};

/// How long one call may take: a manager that reloads many units is slow, not lost.
const CALL_MAX: Duration = Duration::from_secs(5);
/// The first version that takes `idle` for a weight.
const IDLE_SINCE: u32 = 252;
/// What a property holds that is not set.
const UNSET: u64 = u64::MAX;
/// Where systemd keeps what it was told for as long as the host runs.
const RUNTIME: &str = "/run/systemd/system.control";

const SERVICE: &str = "org.freedesktop.systemd1";
pub(crate) const PATH: &str = "/org/freedesktop/systemd1";
pub(crate) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(crate) const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Microseconds by device.
const LATENCY: &str = "IODeviceLatencyTargetUSec";
/// Bytes or requests a second, by device.
const RATES: [&str; 4] = [
    "IOReadBandwidthMax",
    "IOWriteBandwidthMax",
    "IOReadIOPSMax",
    "IOWriteIOPSMax",
];

/// systemd on one bus.
#[derive(Debug)]
pub(crate) struct Systemd {
    address: String,
    connection: Option<zbus::Connection>,
    version: u32,
}

impl Systemd {
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            connection: None,
            version: 0,
        }
    }

    /// Its version.
    pub(crate) fn version(&mut self) -> Result<u32, HostError> {
        self.learn_version("ask systemd for its version")?;
        Ok(self.version)
    }

    /// One call. A connection that broke is made anew by the next.
    pub(crate) fn call<B, R>(
        &mut self,
        to: (&str, &str, &str),
        body: &B,
        attempt: &str,
    ) -> Result<R, HostError>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: serde::de::DeserializeOwned + zbus::Type,
    {
        let (path, interface, method) = to;
        let result = zbus::block_on(async {
            let connection = match &self.connection {
                Some(connection) => connection.clone(),
                None => connect(&self.address).await?,
            };
            let reply = connection
                .call_method(Some(SERVICE), path, Some(interface), method, body)
                .await;
            self.connection = match &reply {
                Ok(_) | Err(zbus::Error::MethodError(..)) => Some(connection),
                Err(_) => None,
            };
            reply?.body().deserialize::<R>()
        });
        result.map_err(|error| self.explain(attempt, &error))
    }

    fn explain(&self, attempt: &str, error: &zbus::Error) -> HostError {
        let zbus::Error::MethodError(name, text, _) = error else {
            let source = io::Error::other(error.to_string());
            return HostError::io(attempt, source).advise(
                "is systemd running, and its bus? where it is not, bind the app with `cgroup`",
            );
        };
        let text = text.clone().unwrap_or_else(|| name.to_string());
        match name.as_str().rsplit('.').next() {
            Some("NoSuchUnit") => HostError::missing(attempt, text),
            Some("AccessDenied" | "InteractiveAuthorizationRequired") => {
                HostError::io(attempt, io::Error::other(text)).advise("run as root")
            }
            Some("ServiceUnknown" | "NameHasNoOwner") => {
                HostError::io(attempt, io::Error::other(text)).advise(format!(
                    "systemd is not on the bus at {}: is it this host's first process?",
                    self.address
                ))
            }
            _ => HostError::io(attempt, io::Error::other(text)),
        }
    }

    pub(crate) fn properties(
        &mut self,
        path: &OwnedObjectPath,
        interface: &str,
        attempt: &str,
    ) -> Result<HashMap<String, OwnedVariant>, HostError> {
        self.call(
            (path.as_str(), PROPERTIES, "GetAll"),
            &(interface,),
            attempt,
        )
    }

    fn learn_version(&mut self, attempt: &str) -> Result<(), HostError> {
        if self.version == 0 {
            let version: OwnedVariant =
                self.call((PATH, PROPERTIES, "Get"), &(MANAGER, "Version"), attempt)?;
            let text = String::try_from(version).unwrap_or_default();
            self.version = version_of(&text);
        }
        Ok(())
    }
}

/// A connection, unless the bus is silent for too long: calls have a bound of their own, and
/// what goes before the first call has none.
async fn connect(address: &str) -> zbus::Result<zbus::Connection> {
    let made = zbus::connection::Builder::address(address)
        .method_timeout(CALL_MAX)
        .build();
    let mut made = Box::pin(made);
    let mut bound = Bound::new(CALL_MAX)?;
    std::future::poll_fn(|context| match made.as_mut().poll(context) {
        Poll::Pending if bound.is_over(context) => {
            let silent = io::Error::from(io::ErrorKind::TimedOut);
            Poll::Ready(Err(zbus::Error::InputOutput(silent.into())))
        }
        other => other,
    })
    .await
}

/// Wakes a future when its time is over.
#[derive(Debug)]
struct Bound {
    over: Arc<Mutex<(bool, Option<Waker>)>>,
    /// The thread that waits ends with this.
    _cancel: mpsc::Sender<()>,
}

impl Bound {
    fn new(time: Duration) -> io::Result<Self> {
        let over = Arc::new(Mutex::new((false, None::<Waker>)));
        let (cancel, cancelled) = mpsc::channel();
        let ring = Arc::clone(&over);
        std::thread::Builder::new()
            .name("bus-timeout".to_owned())
            .spawn(move || {
                if cancelled.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
                    ring.0 = true;
                    if let Some(waker) = ring.1.take() {
                        waker.wake();
                    }
                }
            })?;
        Ok(Self {
            over,
            _cancel: cancel,
        })
    }

    fn is_over(&mut self, context: &Context<'_>) -> bool {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        over.1 = Some(context.waker().clone());
        over.0
    }
}

impl Owner for Systemd {
    fn look_up(&mut self, unit: &str) -> Result<Held, HostError> {
        let attempt = format!("ask systemd for {unit}");
        self.learn_version(&attempt)?;
        let path: OwnedObjectPath = self.call((PATH, MANAGER, "LoadUnit"), &(unit,), &attempt)?;
        let general = self.properties(&path, UNIT, &attempt)?;
        let word = |name: &str| -> String {
            let value = general.get(name).cloned();
            value
                .and_then(|value| String::try_from(value).ok())
                .unwrap_or_default()
        };
        if word("LoadState") == "not-found" {
            return Err(HostError::missing(
                attempt,
                "there is no such unit; see `systemctl list-units` for the names",
            ));
        }
        // A unit that was found by another of its names.
        let name = Some(word("Id")).filter(|id| !id.is_empty());
        let name = name.unwrap_or_else(|| unit.to_owned());
        let own = self.properties(&path, &interface(&name), &attempt)?;
        Ok(held(name, &self.address, self.version, own))
    }

    fn write(&mut self, unit: &str, values: &Values) -> Result<(), HostError> {
        // A set that is no longer set stays in the kernel as it was: systemd only stops to write
        // it. So it is everything first.
        let emptied: Values = values
            .iter()
            .filter(|(_, value)| matches!(value, Value::Bits(bytes) if set_of(bytes).is_some_and(|set| set.is_empty())))
            .map(|(property, _)| Ok((property.clone(), Value::Bits(bits(&everything(property)?)))))
            .collect::<Result<_, HostError>>()?;
        if !emptied.is_empty() {
            self.set(unit, &emptied)?;
        }
        self.set(unit, values)
    }

    fn forget(&mut self, unit: &str, property: &str) -> Result<(), HostError> {
        let file = kept_in(unit, property);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HostError::file("remove", &file, error));
            }
            Ok(()) | Err(_) => {}
        }
        // Left where others have files in it.
        let dir = file.parent().unwrap_or(&file);
        match fs::remove_dir(dir) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(HostError::file("remove", dir, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// All CPUs or nodes that this host may ever have.
fn everything(property: &str) -> Result<IdSet, HostError> {
    let file = match property {
        "AllowedCPUs" => "/sys/devices/system/cpu/possible",
        _ => "/sys/devices/system/node/possible",
    };
    match read_text(Path::new(file)) {
        Ok(text) => text.trim().parse().map_err(|error| {
            HostError::invalid(
                format!("understand {file}: {error}"),
                "report this as a bug",
            )
        }),
        // A kernel without nodes has one.
        Err(error) if error.is_gone() => Ok([0].into_iter().collect()),
        Err(error) => Err(error),
    }
}

impl Systemd {
    fn set(&mut self, unit: &str, values: &Values) -> Result<(), HostError> {
        let properties: Vec<(&str, Variant<'_>)> = values
            .iter()
            .map(|(name, value)| (name.as_str(), wire(value)))
            .collect();
        let told: Vec<String> = values
            .iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        let attempt = format!("have systemd set {} of {unit}", told.join(", "));
        self.call(
            (PATH, MANAGER, "SetUnitProperties"),
            &(unit, true, properties),
            &attempt,
        )
    }
}

/// Where systemd keeps what it was told of a property.
fn kept_in(unit: &str, property: &str) -> PathBuf {
    let setting = match property {
        "CPUQuotaPerSecUSec" => "CPUQuota",
        other => other,
    };
    Path::new(RUNTIME)
        .join(format!("{unit}.d"))
        .join(format!("50-{setting}.conf"))
}

/// `252.39-1~deb12u1` is 252.
fn version_of(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// The interface with the properties of a unit of this kind.
pub(crate) fn interface(unit: &str) -> String {
    let kind = unit.rsplit('.').next().unwrap_or_default();
    let mut letters = kind.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    let kind: String = first.into_iter().chain(letters).collect();
    format!("{SERVICE}.{kind}")
}

fn held(name: String, at: &str, version: u32, mut own: HashMap<String, OwnedVariant>) -> Held {
    let group = own.remove("ControlGroup");
    let group = group.and_then(|value| String::try_from(value).ok());
    let group = group.map(|path| PathBuf::from(path.trim_start_matches('/')));
    let mut values = Values::new();
    let mut lacks = BTreeSet::new();
    for knob in all_knobs() {
        let properties = properties(knob);
        let read: Vec<Option<Value>> = properties
            .iter()
            .map(|property| read(own.get(*property)?))
            .collect();
        let too_old = knob == Knob::CpuIdle && version < IDLE_SINCE;
        if properties.is_empty() || read.contains(&None) || too_old {
            lacks.insert(knob);
        }
        let names = properties.iter().map(|name| (*name).to_owned());
        values.extend(
            names
                .zip(read)
                .filter_map(|(name, value)| Some((name, value?))),
        );
    }
    let kept = values
        .keys()
        .filter(|property| kept_in(&name, property).exists());
    Held {
        kept: kept.cloned().collect(),
        group: group.filter(|path| !path.as_os_str().is_empty()),
        name,
        at: at.to_owned(),
        values,
        told: Values::new(),
        lacks,
        direct: BTreeSet::new(),
    }
}

/// The properties that a knob is.
pub(crate) fn properties(knob: Knob) -> Vec<&'static str> {
    match knob {
        Knob::Cpus => vec!["AllowedCPUs"],
        Knob::Mems => vec!["AllowedMemoryNodes"],
        Knob::CpuWeight | Knob::CpuIdle => vec!["CPUWeight"],
        Knob::CpuMax => vec!["CPUQuotaPerSecUSec"],
        Knob::MemoryMin => vec!["MemoryMin"],
        Knob::MemoryLow => vec!["MemoryLow"],
        Knob::MemoryHigh => vec!["MemoryHigh"],
        Knob::MemoryMax => vec!["MemoryMax"],
        Knob::MemorySwapMax => vec!["MemorySwapMax"],
        Knob::MemoryZswapMax => vec!["MemoryZSwapMax"],
        Knob::IoWeight => vec!["IOWeight"],
        Knob::IoMax(_) => RATES.to_vec(),
        Knob::IoLatency(_) => vec![LATENCY],
        Knob::PidsMax => vec!["TasksMax"],
        // What is no file of a group is not systemd's, or not a property of it.
        _ => vec![],
    }
}

/// Knobs whose property systemd takes and does nothing about on cgroup v1.
pub(crate) const fn is_idle_on_v1(knob: Knob) -> bool {
    matches!(
        knob,
        Knob::Cpus
            | Knob::Mems
            | Knob::CpuIdle
            | Knob::MemoryMin
            | Knob::MemoryLow
            | Knob::MemoryHigh
            | Knob::MemorySwapMax
            | Knob::MemoryZswapMax
            | Knob::IoLatency(_)
    )
}

/// What to set for a setting. `now` is what the properties hold: rates of other devices stay.
pub(crate) fn values(setting: &Setting, now: &Values) -> Vec<(String, Value)> {
    let names = properties(setting.knob());
    let one = |value: Value| -> Vec<(String, Value)> {
        let name = names.first().map(|name| (*name).to_owned());
        name.into_iter().map(|name| (name, value.clone())).collect()
    };
    match setting {
        Setting::Cpus(set) | Setting::Mems(set) => one(Value::Bits(bits(set))),
        Setting::CpuWeight(weight) => one(Value::Number(u64::from(*weight))),
        Setting::CpuIdle(true) => one(Value::Number(0)),
        // The weight that follows ends it.
        Setting::CpuIdle(false) => vec![],
        Setting::CpuMax(limit) => one(number(*limit, |cpu: MilliCpu| cpu.0.saturating_mul(1000))),
        Setting::MemoryMin(bytes) | Setting::MemoryLow(bytes) => one(Value::Number(pages(*bytes))),
        Setting::MemoryHigh(limit)
        | Setting::MemoryMax(limit)
        | Setting::MemorySwapMax(limit)
        | Setting::MemoryZswapMax(limit) => one(number(*limit, pages)),
        Setting::IoWeight(weight) => one(Value::Number(u64::from(*weight))),
        Setting::PidsMax(limit) => one(number(*limit, |count| count)),
        Setting::IoMax(device, max) => {
            let limits = [max.rbps, max.wbps, max.riops, max.wiops];
            let written = RATES.iter().zip(limits);
            written
                .map(|(property, limit)| of_device(property, *device, limit, now))
                .collect()
        }
        Setting::IoLatency(device, target) => {
            let micros = |target: Duration| u64::try_from(target.as_micros()).unwrap_or(UNSET);
            let target = match target {
                Limit::At(target) => Limit::At(micros(*target)),
                Limit::Max => Limit::Max,
            };
            vec![of_device(LATENCY, *device, target, now)]
        }
        _ => vec![],
    }
}

/// What a limit of a device was by the originals of the properties that it is; none where it is
/// none of them.
pub(crate) fn limit_before(knob: Knob, originals: &Values) -> Option<Setting> {
    let is_written = |name: &&str| originals.contains_key(*name);
    if !properties(knob).iter().any(is_written) {
        return None;
    }
    let number = |property: &str, device| match originals.get(property) {
        Some(Value::Rates(rates)) => match rates.get(&path_of(device, rates)) {
            Some(rate) if *rate != UNSET => Limit::At(*rate),
            _ => Limit::Max,
        },
        _ => Limit::Max,
    };
    match knob {
        Knob::IoMax(device) => {
            let [rbps, wbps, riops, wiops] = RATES.map(|property| number(property, device));
            let max = IoMax {
                rbps,
                wbps,
                riops,
                wiops,
            };
            Some(Setting::IoMax(device, max))
        }
        Knob::IoLatency(device) => {
            let target = match number(LATENCY, device) {
                Limit::At(micros) => Limit::At(Duration::from_micros(micros)),
                Limit::Max => Limit::Max,
            };
            Some(Setting::IoLatency(device, target))
        }
        _ => None,
    }
}

/// One device's number of a property that has one for each.
fn of_device(property: &str, device: Device, limit: Limit<u64>, now: &Values) -> (String, Value) {
    let mut rates = match now.get(property) {
        Some(Value::Rates(rates)) => rates.clone(),
        _ => BTreeMap::new(),
    };
    let rate = match limit {
        Limit::At(rate) => rate,
        Limit::Max => UNSET,
    };
    rates.insert(path_of(device, &rates), rate);
    (property.to_owned(), Value::Rates(rates))
}

/// Under which path a device's rate is told: the one that somebody chose before.
fn path_of(device: Device, rates: &BTreeMap<String, u64>) -> String {
    let is_same = |path: &&String| {
        fs::metadata(path.as_str()).is_ok_and(|meta| {
            let (major, minor) = (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            );
            meta.file_type().is_block_device() && Device { major, minor } == device
        })
    };
    let known = rates.keys().find(is_same).cloned();
    known.unwrap_or_else(|| format!("/dev/block/{device}"))
}

fn number<T>(limit: Limit<T>, amount: impl FnOnce(T) -> u64) -> Value {
    Value::Number(match limit {
        Limit::At(value) => amount(value),
        Limit::Max => UNSET,
    })
}

pub(super) fn bits(set: &IdSet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in set.iter() {
        let (byte, bit) = (id / 8, id % 8);
        if bytes.len() <= byte {
            bytes.resize(byte + 1, 0);
        }
        bytes[byte] |= 1 << bit;
    }
    bytes
}

/// The set in a bitmap; none when it has numbers that Forebay does not count to.
pub(crate) fn set_of(bytes: &[u8]) -> Option<IdSet> {
    let ids = bytes.iter().enumerate().flat_map(|(at, byte)| {
        let set = (0..8).filter(move |bit| byte & (1 << bit) != 0);
        set.map(move |bit| at * 8 + bit)
    });
    let text: Vec<String> = ids.map(|id| id.to_string()).collect();
    text.join(",").parse().ok()
}

fn read(value: &OwnedVariant) -> Option<Value> {
    match &**value {
        Variant::U64(number) => Some(Value::Number(*number)),
        Variant::Array(array) => {
            let signature = array.signature().to_string();
            match signature.as_str() {
                "ay" => Some(Value::Bits(value.try_clone().ok()?.try_into().ok()?)),
                "a(st)" => {
                    let pairs: Vec<(String, u64)> = value.try_clone().ok()?.try_into().ok()?;
                    Some(Value::Rates(pairs.into_iter().collect()))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn wire(value: &Value) -> Variant<'_> {
    match value {
        Value::Number(number) => Variant::U64(*number),
        Value::Bits(bytes) => Variant::from(bytes.as_slice()),
        Value::Rates(rates) => {
            let pairs: Vec<(&str, u64)> = rates
                .iter()
                .map(|(device, rate)| (device.as_str(), *rate))
                .collect();
            Variant::from(pairs)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use forebay_core::units::Bytes;

    #[test]
    fn settings_become_properties() {
        let check = |setting: Setting, expected: &[(&str, Value)]| {
            let expected: Vec<(String, Value)> = expected
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            assert_eq!(values(&setting, &Values::new()), expected, "{setting}");
        };
        let number = Value::Number;
        check(
            Setting::Cpus("0-1,9".parse().unwrap()),
            &[("AllowedCPUs", Value::Bits(vec![0b11, 0b10]))],
        );
        check(
            Setting::Mems("1".parse().unwrap()),
            &[("AllowedMemoryNodes", Value::Bits(vec![0b10]))],
        );
        check(Setting::CpuWeight(100), &[("CPUWeight", number(100))]);
        check(Setting::CpuIdle(true), &[("CPUWeight", number(0))]);
        check(
            Setting::CpuMax(Limit::At(MilliCpu(1500))),
            &[("CPUQuotaPerSecUSec", number(1_500_000))],
        );
        check(
            Setting::CpuMax(Limit::Max),
            &[("CPUQuotaPerSecUSec", number(u64::MAX))],
        );
        check(
            Setting::MemoryHigh(Limit::At(Bytes(4097))),
            &[("MemoryHigh", number(4096))],
        );
        check(
            Setting::MemorySwapMax(Limit::Max),
            &[("MemorySwapMax", number(u64::MAX))],
        );
        check(
            Setting::MemoryZswapMax(Limit::At(Bytes::mib(64))),
            &[("MemoryZSwapMax", number(64 << 20))],
        );
        check(Setting::PidsMax(Limit::At(7)), &[("TasksMax", number(7))]);
        let device = Device { major: 8, minor: 0 };
        for (target, expected) in [
            (Limit::At(Duration::from_millis(4)), 4000),
            (Limit::Max, u64::MAX),
        ] {
            let targets = Value::Rates([("/dev/block/8:0".to_owned(), expected)].into());
            check(Setting::IoLatency(device, target), &[(LATENCY, targets)]);
        }
        let max = IoMax {
            rbps: Limit::At(5),
            ..IoMax::NONE
        };
        let rate = |rate| Value::Rates([("/dev/block/8:0".to_owned(), rate)].into());
        check(
            Setting::IoMax(device, max),
            &[
                (RATES[0], rate(5)),
                (RATES[1], rate(u64::MAX)),
                (RATES[2], rate(u64::MAX)),
                (RATES[3], rate(u64::MAX)),
            ],
        );
    }

    #[test]
    fn every_bitmap_is_a_set_and_back() {
        let check = |text: &str| {
            let set: IdSet = text.parse().unwrap();
            assert_eq!(set_of(&bits(&set)), Some(set), "{text}");
        };
        check("0");
        check("7-8,63-65,1023");
        assert_eq!(set_of(&[0; 8]).map(|set| set.is_empty()), Some(true));
        assert_eq!(set_of(&[255; 200]), None);
        assert!(Value::Bits(vec![3, 0]).means(&Value::Bits(vec![3])));
        assert!(!Value::Bits(vec![3, 1]).means(&Value::Bits(vec![3])));
    }

    #[test]
    fn a_bus_that_never_answers_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("bus");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut systemd = Systemd::new(&format!("unix:path={}", socket.display()));
        let error = systemd.look_up("a.service").unwrap_err().explain();
        assert!(
            error.contains("a.service") && error.contains("timed out"),
            "{error}"
        );
        drop(listener);
    }

    #[test]
    fn units_say_what_they_lack() {
        let own = |names: &[&str]| -> HashMap<String, OwnedVariant> {
            let value = |_: &&str| OwnedVariant::from(u64::MAX);
            names
                .iter()
                .map(|name| ((*name).to_owned(), value(name)))
                .collect()
        };
        let names = ["CPUWeight", "TasksMax"];
        let check = |version: u32, offered: &[Knob]| {
            let held = held("a.service".to_owned(), "", version, own(&names));
            let is: Vec<Knob> = all_knobs()
                .into_iter()
                .filter(|knob| !held.lacks.contains(knob))
                .collect();
            assert_eq!(is, offered);
        };
        check(251, &[Knob::CpuWeight, Knob::PidsMax]);
        check(252, &[Knob::CpuWeight, Knob::CpuIdle, Knob::PidsMax]);
        assert_eq!(version_of("252.39-1~deb12u1"), 252);
        assert_eq!(interface("a.b.service"), "org.freedesktop.systemd1.Service");
        assert_eq!(
            kept_in("a.service", "CPUQuotaPerSecUSec"),
            Path::new("/run/systemd/system.control/a.service.d/50-CPUQuota.conf")
        );
    }
}
