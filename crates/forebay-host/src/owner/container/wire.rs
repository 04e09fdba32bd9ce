//! What runtimes say and are told, and how that stands to knobs.
//!
//! A container's limits have many spellings. Here each knob is one property, under the name that
//! the Docker API has for it, and holds what the kernel's file holds: that can be read whoever the
//! runtime is, and Podman before 5.1 does not say what it was told.

use std::collections::BTreeMap;

use forebay_core::slice::{Knob, Setting};
use forebay_core::units::{Bytes, Limit, MilliCpu};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use crate::knobs::{self, pages};
use crate::mounts::Version;
use crate::owner::systemd::{bits, set_of};
use crate::owner::{Value, Values};

pub(super) const CPUS: &str = "CpusetCpus";
pub(super) const MEMS: &str = "CpusetMems";
const SHARES: &str = "CpuShares";
const NANO_CPUS: &str = "NanoCpus";
const MEMORY: &str = "Memory";
const PIDS: &str = "PidsLimit";

/// What a property holds that is not set.
const UNSET: u64 = u64::MAX;
/// Docker takes no amount of memory for "no limit" once there was one. This is the largest that
/// the kernel counts to, and it shows it as none.
const MEMORY_MAX: u64 = (1 << 63) - 4096;
/// The kernel's own period of the quota, in microseconds.
const PERIOD_US: u64 = 100_000;
const NANOS_PER_CPU: u128 = 1_000_000_000;

/// The part of GET /version that matters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct About {
    pub(super) version: String,
    pub(super) api_version: String,
    components: Vec<Component>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Component {
    name: String,
    details: BTreeMap<String, String>,
}

impl About {
    /// The version of Podman's own API, where it is Podman.
    pub(super) fn libpod(&self) -> Option<&str> {
        let mut components = self.components.iter();
        let podman = components.find(|component| component.name == "Podman Engine")?;
        podman.details.get("APIVersion").map(String::as_str)
    }
}

/// The part of GET /containers/NAME/json that matters.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) state: RunningState,
    pub(super) host_config: HostConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RunningState {
    pub(super) running: bool,
    /// 0 while nothing of it runs.
    pub(super) pid: u32,
}

/// What the runtime was told, as it was told; 0 and nothing stand for nothing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HostConfig {
    cpuset_cpus: String,
    cpuset_mems: String,
    cpu_shares: i64,
    nano_cpus: i64,
    cpu_quota: i64,
    cpu_period: i64,
    memory: i64,
    memory_swap: i64,
    memory_reservation: i64,
    pids_limit: Option<i64>,
    blkio_weight: i64,
    blkio_weight_device: Option<Vec<Json>>,
    blkio_device_read_bps: Option<Vec<Json>>,
    blkio_device_write_bps: Option<Vec<Json>>,
    #[serde(rename = "BlkioDeviceReadIOps")]
    blkio_device_read_iops: Option<Vec<Json>>,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    blkio_device_write_iops: Option<Vec<Json>>,
}

impl HostConfig {
    /// The properties that the runtime was told.
    pub(super) fn told(&self) -> Values {
        let mut told = Values::new();
        let mut tell = |property: &str, value: Option<Value>| {
            told.extend(value.map(|value| (property.to_owned(), value)));
        };
        let set = |text: &str| text.parse().ok().map(|set| Value::Bits(bits(&set)));
        let some = |text: &str| (!text.is_empty()).then(|| set(text)).flatten();
        tell(CPUS, some(&self.cpuset_cpus));
        tell(MEMS, some(&self.cpuset_mems));
        let amount = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        tell(SHARES, amount(self.cpu_shares).map(Value::Number));
        let quota = match self.cpu_quota {
            0 => None,
            quota => Some(amount(quota).map_or(UNSET, |quota| nanos(quota, self.period_us()))),
        };
        let nano_cpus = amount(self.nano_cpus).or(quota);
        tell(NANO_CPUS, nano_cpus.map(Value::Number));
        let memory = amount(self.memory).map(|bytes| {
            let unlimited = bytes >= MEMORY_MAX;
            if unlimited {
                UNSET
            } else {
                pages(Bytes(bytes))
            }
        });
        tell(MEMORY, memory.map(Value::Number));
        let pids = self.pids_limit.map(|limit| amount(limit).unwrap_or(UNSET));
        tell(PIDS, pids.map(Value::Number));
        told
    }

    /// The period of its quota, in microseconds.
    pub(super) fn period_us(&self) -> u64 {
        let period = u64::try_from(self.cpu_period).ok();
        period.filter(|period| *period > 0).unwrap_or(PERIOD_US)
    }

    /// Whether the runtime writes the file of a knob that it has no property for here: then it
    /// was told to when the container was made, and may be told again.
    pub(super) fn writes(&self, knob: Knob, version: Version) -> bool {
        let any = |list: &Option<Vec<Json>>| list.as_ref().is_some_and(|list| !list.is_empty());
        match knob {
            Knob::MemoryLow => self.memory_reservation != 0,
            // v1's soft limit, by the name that the planner has for it.
            Knob::MemoryHigh => version == Version::V1 && self.memory_reservation != 0,
            Knob::IoWeight => self.blkio_weight != 0 || any(&self.blkio_weight_device),
            Knob::IoMax(_) => [
                &self.blkio_device_read_bps,
                &self.blkio_device_write_bps,
                &self.blkio_device_read_iops,
                &self.blkio_device_write_iops,
            ]
            .into_iter()
            .any(any),
            _ => false,
        }
    }

    /// The bound on memory and swap together that leaves as much swap as there is now.
    fn swap_with(&self, memory: u64) -> i64 {
        let unlimited = self.memory_swap <= 0 || memory == UNSET;
        if unlimited {
            return -1;
        }
        let swap = self.memory_swap.saturating_sub(self.memory).max(0);
        whole(memory).saturating_add(swap)
    }
}

/// The property that a knob is.
pub(in crate::owner) fn property(knob: Knob) -> Option<&'static str> {
    Some(match knob {
        Knob::Cpus => CPUS,
        Knob::Mems => MEMS,
        Knob::CpuWeight => SHARES,
        Knob::CpuMax => NANO_CPUS,
        Knob::MemoryMax => MEMORY,
        Knob::PidsMax => PIDS,
        // memory.swap.max follows Memory; of the rest, see the module above.
        _ => return None,
    })
}

/// Whether a knob's property says that there is no limit.
pub(super) fn is_unset(values: &Values, knob: Knob) -> bool {
    property(knob).and_then(|name| values.get(name)) == Some(&Value::Number(UNSET))
}

/// What to set for a setting, where the cpu controller is of this version.
pub(in crate::owner) fn value(setting: &Setting, version: Version) -> Option<Value> {
    Some(match setting {
        Setting::Cpus(set) | Setting::Mems(set) => Value::Bits(bits(set)),
        Setting::CpuWeight(weight) => Value::Number(match version {
            Version::V1 => knobs::shares(*weight),
            Version::V2 => shares_of_weight(u64::from(*weight)),
        }),
        Setting::CpuMax(limit) => number(*limit, |cpu: MilliCpu| cpu.0.saturating_mul(1_000_000)),
        Setting::MemoryMax(limit) => number(*limit, pages),
        Setting::PidsMax(limit) => number(*limit, |count| count),
        _ => return None,
    })
}

/// What a knob's files stand for, exactly: a setting would round it. None when they say nothing.
pub(super) fn read(
    knob: Knob,
    way: &knobs::Way,
    texts: &[String],
    period_us: u64,
) -> Option<Value> {
    let first = texts.first()?.as_str();
    match knob {
        Knob::CpuWeight => {
            let number: u64 = first.parse().ok().filter(|number| *number > 0)?;
            Some(Value::Number(match way.version {
                Version::V1 => number,
                Version::V2 => shares_of_weight(number),
            }))
        }
        Knob::CpuMax => {
            let quota = first.split_whitespace().next()?;
            Some(Value::Number(match quota {
                "max" | "-1" => UNSET,
                quota => nanos(quota.parse().ok()?, period_us),
            }))
        }
        _ => value(&knobs::parse(knob, way, texts, period_us)?, way.version),
    }
}

fn number<T>(limit: Limit<T>, amount: impl FnOnce(T) -> u64) -> Value {
    Value::Number(match limit {
        Limit::At(value) => amount(value),
        Limit::Max => UNSET,
    })
}

/// The shares that runtimes turn into this cpu.weight, by the rule that all of them had for long:
/// from 2 to 262144 evenly over 1 to 10000.
fn shares_of_weight(weight: u64) -> u64 {
    2 + ((weight.clamp(1, 10_000) - 1) * 262_142).div_ceil(9_999)
}

/// Nanoseconds of processor time in a second.
fn nanos(quota_us: u64, period_us: u64) -> u64 {
    let period = u128::from(period_us.max(1));
    let nanos = (u128::from(quota_us) * NANOS_PER_CPU + period / 2) / period;
    u64::try_from(nanos).unwrap_or(UNSET - 1)
}

/// The quota in a period that comes closest, in microseconds.
fn quota_us(nanos: u64, period_us: u64) -> i64 {
    let quota = (u128::from(nanos) * u128::from(period_us) + NANOS_PER_CPU / 2) / NANOS_PER_CPU;
    // The kernel refuses quotas below a millisecond.
    i64::try_from(quota.max(1000)).unwrap_or(i64::MAX)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What was known of a container when it was last looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) config: HostConfig,
    /// The period of its quota, in microseconds.
    pub(super) period_us: u64,
}

impl Known {
    /// The body of POST /containers/ID/update.
    pub(super) fn docker(&self, values: &Values) -> Json {
        let mut body = Map::new();
        for (property, value) in values {
            let value = match value {
                Value::Bits(bytes) => json!(set_text(bytes)),
                Value::Number(number) if property == NANO_CPUS => {
                    // It takes one or the other, and keeps to the one it had first.
                    if self.config.nano_cpus > 0 && *number != UNSET {
                        json!(number)
                    } else {
                        let quota = limit(*number, |nanos| quota_us(nanos, self.period_us));
                        body.insert("CpuQuota".to_owned(), json!(quota));
                        continue;
                    }
                }
                Value::Number(number) if property == MEMORY => {
                    body.insert(
                        "MemorySwap".to_owned(),
                        json!(self.config.swap_with(*number)),
                    );
                    json!(whole((*number).min(MEMORY_MAX)))
                }
                Value::Number(number) => json!(limit(*number, whole)),
                Value::Rates(_) => continue,
            };
            body.insert(property.clone(), value);
        }
        Json::Object(body)
    }

    /// The body of POST /libpod/containers/ID/update: resources as the OCI's runtime
    /// specification has them.
    pub(super) fn libpod(&self, values: &Values) -> Json {
        let mut body = json!({});
        for (property, value) in values {
            match (property.as_str(), value) {
                (CPUS, Value::Bits(bytes)) => body["cpu"]["cpus"] = json!(set_text(bytes)),
                (MEMS, Value::Bits(bytes)) => body["cpu"]["mems"] = json!(set_text(bytes)),
                (SHARES, Value::Number(shares)) => body["cpu"]["shares"] = json!(shares),
                (NANO_CPUS, Value::Number(number)) => {
                    let quota = limit(*number, |nanos| quota_us(nanos, self.period_us));
                    body["cpu"]["quota"] = json!(quota);
                    body["cpu"]["period"] = json!(self.period_us);
                }
                (MEMORY, Value::Number(number)) => {
                    body["memory"]["limit"] = json!(limit(*number, whole));
                    body["memory"]["swap"] = json!(self.config.swap_with(*number));
                }
                (PIDS, Value::Number(number)) => {
                    body["pids"]["limit"] = json!(limit(*number, whole));
                }
                _ => {}
            }
        }
        body
    }
}

fn limit(number: u64, amount: impl FnOnce(u64) -> i64) -> i64 {
    if number == UNSET { -1 } else { amount(number) }
}

fn set_text(bytes: &[u8]) -> String {
    set_of(bytes).unwrap_or_default().to_string()
}

/// What to write into a knob's files so that they hold this.
pub(super) fn texts(knob: Knob, value: &Value, way: &knobs::Way, period_us: u64) -> Vec<String> {
    let v2 = way.version == Version::V2;
    let text = match (knob, value) {
        (_, Value::Bits(bytes)) => set_text(bytes),
        (Knob::CpuWeight, Value::Number(shares)) if v2 => weight_of_shares(*shares).to_string(),
        (Knob::CpuMax, Value::Number(number)) => {
            let quota = match *number {
                UNSET if v2 => "max".to_owned(),
                number => limit(number, |nanos| quota_us(nanos, period_us)).to_string(),
            };
            if v2 {
                format!("{quota} {period_us}")
            } else {
                quota
            }
        }
        (Knob::MemoryMax, Value::Number(UNSET)) if !v2 => "-1".to_owned(),
        (_, Value::Number(UNSET)) => "max".to_owned(),
        (_, Value::Number(number)) => number.to_string(),
        (_, Value::Rates(_)) => return vec![],
    };
    vec![text]
}

/// The other way round of [`shares_of_weight`].
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_survives_shares() {
        for weight in 1..=10_000 {
            assert_eq!(weight_of_shares(shares_of_weight(weight)), weight);
        }
        assert_eq!(shares_of_weight(1), 2);
        assert_eq!(shares_of_weight(10_000), 262_144);
    }

    #[test]
    fn quotas_survive_odd_periods() {
        let check = |quota: u64, period: u64| {
            let back = quota_us(nanos(quota, period), period);
            assert_eq!(back, whole(quota), "{quota} in {period}");
        };
        check(150_000, 100_000);
        check(33_333, 100_000);
        check(10_000, 30_000);
        check(1_000, 1_000_000);
    }

    fn known(config: &str) -> Known {
        let config: HostConfig = serde_json::from_str(config).unwrap();
        let period_us = config.period_us();
        Known { config, period_us }
    }

    fn values(list: &[(&str, u64)]) -> Values {
        let values = list.iter();
        values
            .map(|(name, number)| ((*name).to_owned(), Value::Number(*number)))
            .collect()
    }

    #[test]
    fn what_a_runtime_was_told_is_read_whoever_it_is() {
        let check = |config: &str, expected: &[(&str, u64)]| {
            assert_eq!(known(config).config.told(), values(expected), "{config}");
        };
        check(
            r#"{"CpuShares":0,"Memory":0,"PidsLimit":null,"BlkioDeviceReadBps":null}"#,
            &[],
        );
        check(
            r#"{"CpuShares":512,"PidsLimit":0}"#,
            &[(SHARES, 512), (PIDS, UNSET)],
        );
        check(r#"{"NanoCpus":500000000}"#, &[(NANO_CPUS, 500_000_000)]);
        check(
            r#"{"CpuQuota":25000,"CpuPeriod":50000}"#,
            &[(NANO_CPUS, 500_000_000)],
        );
        check(r#"{"CpuQuota":-1}"#, &[(NANO_CPUS, UNSET)]);
        check(r#"{"Memory":100000000}"#, &[(MEMORY, 99_999_744)]);
        check(r#"{"Memory":9223372036854771712}"#, &[(MEMORY, UNSET)]);
        let set = known(r#"{"CpusetCpus":"0-1","CpusetMems":""}"#)
            .config
            .told();
        assert_eq!(set, [(CPUS.to_owned(), Value::Bits(vec![3]))].into());
    }

    #[test]
    fn docker_is_told_what_it_takes() {
        let check = |config: &str, list: &[(&str, u64)], expected: Json| {
            assert_eq!(known(config).docker(&values(list)), expected, "{config}");
        };
        check(
            "{}",
            &[(SHARES, 10), (PIDS, UNSET)],
            json!({"CpuShares": 10, "PidsLimit": -1}),
        );
        check(
            "{}",
            &[(NANO_CPUS, 1_500_000_000)],
            json!({"CpuQuota": 150_000}),
        );
        check("{}", &[(NANO_CPUS, UNSET)], json!({"CpuQuota": -1}));
        check(
            r#"{"NanoCpus":500000000}"#,
            &[(NANO_CPUS, 250_000_000)],
            json!({"NanoCpus": 250_000_000}),
        );
        // A limit of memory goes with one of memory and swap together, or is refused.
        check(
            "{}",
            &[(MEMORY, 8 << 20)],
            json!({"Memory": 8 << 20, "MemorySwap": -1}),
        );
        check(
            r#"{"Memory":1000,"MemorySwap":3000}"#,
            &[(MEMORY, 5000)],
            json!({"Memory": 5000, "MemorySwap": 7000}),
        );
        check(
            "{}",
            &[(MEMORY, UNSET)],
            json!({"Memory": 9_223_372_036_854_771_712_u64, "MemorySwap": -1}),
        );
    }

    #[test]
    fn podman_is_told_resources_of_the_oci() {
        let mut all = values(&[(NANO_CPUS, UNSET), (SHARES, 10), (MEMORY, UNSET), (PIDS, 7)]);
        all.insert(CPUS.to_owned(), Value::Bits(vec![0b101]));
        let expected = json!({
            "cpu": {"quota": -1, "period": 100_000, "shares": 10, "cpus": "0,2"},
            "memory": {"limit": -1, "swap": -1},
            "pids": {"limit": 7},
        });
        assert_eq!(known("{}").libpod(&all), expected);
    }

    #[test]
    fn podman_is_told_from_docker_by_its_components() {
        let about = |text: &str| -> About { serde_json::from_str(text).unwrap() };
        let podman = r#"{"Version":"4.3.1","ApiVersion":"1.41","Components":[
            {"Name":"Podman Engine","Details":{"APIVersion":"4.3.1"}},{"Name":"Conmon"}]}"#;
        assert_eq!(about(podman).libpod(), Some("4.3.1"));
        let docker = r#"{"Version":"20.10.24","ApiVersion":"1.41","Components":[
            {"Name":"Engine","Details":{"ApiVersion":"1.41"}}]}"#;
        assert_eq!(about(docker).libpod(), None);
    }
}
