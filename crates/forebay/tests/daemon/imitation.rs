//! What systemd says on the bus, for hosts without it: units with properties, carried out on
//! control groups as systemd does, on a private bus.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::place::PATIENCE;
use forebay_host::mounts::{Controller, Hierarchies, Version};
use zbus::{ObjectPath, OwnedObjectPath, OwnedVariant, Variant, fdo, interface};

const PATH: &str = "/org/freedesktop/systemd1";
const UNSET: u64 = u64::MAX;

/// A property's value, of one of the types that systemd has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Held {
    Number(u64),
    Bits(Vec<u8>),
    Rates(Vec<(String, u64)>),
}

/// What systemd knows.
#[derive(Debug, Default)]
pub(crate) struct Units {
    /// The unit's group, relative to the hierarchies' roots; empty while it does not run.
    pub(crate) group: String,
    /// What was set.
    pub(crate) values: BTreeMap<String, Held>,
    /// Every call of `SetUnitProperties`: unit, runtime, properties.
    pub(crate) calls: Vec<(String, bool, Vec<String>)>,
    /// How often userspace began anew.
    pub(crate) soft_reboots: u32,
    /// The next calls are refused with this.
    pub(crate) refuses: Option<String>,
    hierarchies: Option<Hierarchies>,
}

/// A bus with systemd on it that has one unit.
#[derive(Debug)]
pub(crate) struct Bus {
    pub(crate) address: String,
    pub(crate) units: Arc<Mutex<Units>>,
    daemon: Child,
}

pub(crate) const UNIT: &str = "imitated.service";

impl Bus {
    /// None, with a line that says why, where there is no bus to be had.
    pub(crate) fn new(test: &str, dir: &Path, group: &str) -> Option<Self> {
        let config = dir.join("bus.conf");
        let socket = dir.join("bus.socket");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\"/>\
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        let started = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut daemon = match started {
            Ok(daemon) => daemon,
            Err(error) => {
                println!("SKIPPED: {test}: dbus-daemon: {error}");
                return None;
            }
        };
        // It says where it is once it listens.
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("unix:path="), "dbus-daemon said {line:?}");
        let units = Arc::new(Mutex::new(Units {
            group: group.to_owned(),
            hierarchies: Some(Hierarchies::read(Path::new("/proc")).unwrap()),
            ..Units::default()
        }));
        let bus = Self {
            address: line.trim().to_owned(),
            units,
            daemon,
        };
        bus.serve();
        Some(bus)
    }

    /// Puts systemd on the bus.
    fn serve(&self) {
        let (address, units) = (self.address.clone(), Arc::clone(&self.units));
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            zbus::block_on(async {
                let unit = format!("{PATH}/unit/imitated");
                let connection = zbus::connection::Builder::address(address.as_str())
                    .serve_at(PATH, Manager(Arc::clone(&units)))
                    .serve_at(unit.clone(), General)
                    .serve_at(unit, Service(units))
                    .name("org.freedesktop.systemd1")
                    .build()
                    .await
                    .unwrap();
                ready.send(()).unwrap();
                // As long as the test runs.
                std::future::pending::<()>().await;
                drop(connection);
            });
        });
        wait.recv_timeout(PATIENCE).unwrap();
    }

    pub(crate) fn units(&self) -> MutexGuard<'_, Units> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

impl Units {
    pub(crate) fn number(&self, property: &str) -> u64 {
        match self.values.get(property) {
            Some(Held::Number(number)) => *number,
            _ => UNSET,
        }
    }

    /// Sets a property and carries it out, as `systemctl set-property` does.
    pub(crate) fn set(&mut self, property: &str, value: Held) {
        if let Held::Number(number) = value {
            self.carry_out(property, number);
        }
        self.values.insert(property.to_owned(), value);
    }

    fn carry_out(&self, property: &str, number: u64) {
        let unset = number == UNSET;
        let max = |number: u64| {
            if unset {
                "max".to_owned()
            } else {
                number.to_string()
            }
        };
        let v1 = |number: u64| {
            if unset {
                "-1".to_owned()
            } else {
                number.to_string()
            }
        };
        let plain = number.to_string();
        let (controller, v2, v1) = match property {
            "CPUWeight" if number == 0 => (Controller::Cpu, ("cpu.idle", "1".to_owned()), None),
            "CPUWeight" => {
                let weight = if unset { 100 } else { number };
                let shares = (weight * 1024 / 100).to_string();
                let v1 = Some(("cpu.shares", shares));
                (Controller::Cpu, ("cpu.weight", weight.to_string()), v1)
            }
            "CPUQuotaPerSecUSec" => {
                let quota = if unset { UNSET } else { number / 10 };
                let v2 = ("cpu.max", format!("{} 100000", max(quota)));
                (Controller::Cpu, v2, Some(("cpu.cfs_quota_us", v1(quota))))
            }
            "MemoryMax" => {
                let v1 = Some(("memory.limit_in_bytes", v1(number)));
                (Controller::Memory, ("memory.max", max(number)), v1)
            }
            "TasksMax" => {
                let v1 = Some(("pids.max", max(number)));
                (Controller::Pids, ("pids.max", max(number)), v1)
            }
            "IOWeight" => {
                let weight = if unset { 100 } else { number };
                let v2 = ("io.weight", format!("default {weight}"));
                let v1 = ("blkio.bfq.weight", weight.min(1000).to_string());
                (Controller::Io, v2, Some(v1))
            }
            "MemoryMin" => (Controller::Memory, ("memory.min", plain), None),
            "MemoryLow" => (Controller::Memory, ("memory.low", plain), None),
            "MemoryHigh" => (Controller::Memory, ("memory.high", max(number)), None),
            "MemorySwapMax" => (Controller::Memory, ("memory.swap.max", max(number)), None),
            _ => return,
        };
        let Some((_, hierarchy)) = self.hierarchies.as_ref().unwrap().of(controller) else {
            return;
        };
        let to = if hierarchy.version == Version::V2 {
            Some(v2)
        } else {
            v1
        };
        let dir = hierarchy.dir(Path::new(&self.group));
        if let Some((file, text)) = to
            && dir.join(file).exists()
            && !self.group.is_empty()
        {
            fs::write(dir.join(file), text).unwrap();
        }
    }
}

struct Manager(Arc<Mutex<Units>>);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    #[zbus(property)]
    fn version(&self) -> String {
        "257.7-1".to_owned()
    }

    #[zbus(property)]
    fn soft_reboots_count(&self) -> u32 {
        let units = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        units.soft_reboots
    }

    fn load_unit(&self, name: &str) -> fdo::Result<OwnedObjectPath> {
        let known = name == UNIT;
        let path = if known { "imitated" } else { "unknown" };
        let path = ObjectPath::try_from(format!("{PATH}/unit/{path}"));
        path.map(Into::into)
            .map_err(|error| fdo::Error::Failed(error.to_string()))
    }

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: Vec<(String, OwnedVariant)>,
    ) -> fdo::Result<()> {
        let mut units = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = &units.refuses {
            return Err(fdo::Error::AccessDenied(text.clone()));
        }
        let names = properties.iter().map(|(name, _)| name.clone()).collect();
        units.calls.push((name.to_owned(), runtime, names));
        for (property, value) in properties {
            let value = typed(&property, &value)
                .ok_or_else(|| fdo::Error::InvalidArgs(format!("{property}: {value:?}")))?;
            units.set(&property, value);
        }
        Ok(())
    }
}

/// A value, if it is of the type that this property has.
fn typed(property: &str, value: &Variant<'_>) -> Option<Held> {
    let value = value.try_clone().ok()?;
    match property {
        "AllowedCPUs" | "AllowedMemoryNodes" => Some(Held::Bits(value.try_into().ok()?)),
        _ if property.starts_with("IO") && property != "IOWeight" => {
            Some(Held::Rates(value.try_into().ok()?))
        }
        _ => Some(Held::Number(value.try_into().ok()?)),
    }
}

struct General;

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl General {
    #[zbus(property)]
    fn id(&self) -> String {
        UNIT.to_owned()
    }

    #[zbus(property)]
    fn load_state(&self) -> String {
        "loaded".to_owned()
    }
}

struct Service(Arc<Mutex<Units>>);

impl Service {
    fn number(&self, property: &str) -> u64 {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .number(property)
    }

    fn held(&self, property: &str) -> Option<Held> {
        let units = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        units.values.get(property).cloned()
    }

    fn bits(&self, property: &str) -> Vec<u8> {
        match self.held(property) {
            Some(Held::Bits(bits)) => bits,
            _ => Vec::new(),
        }
    }

    fn rates(&self, property: &str) -> Vec<(String, u64)> {
        match self.held(property) {
            Some(Held::Rates(rates)) => rates,
            _ => Vec::new(),
        }
    }
}

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property)]
    fn control_group(&self) -> String {
        let units = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match units.group.as_str() {
            "" => String::new(),
            group => format!("/{group}"),
        }
    }
    #[zbus(property, name = "CPUWeight")]
    fn cpu_weight(&self) -> u64 {
        self.number("CPUWeight")
    }
    #[zbus(property, name = "CPUQuotaPerSecUSec")]
    fn cpu_quota(&self) -> u64 {
        self.number("CPUQuotaPerSecUSec")
    }
    #[zbus(property)]
    fn memory_min(&self) -> u64 {
        self.number("MemoryMin")
    }
    #[zbus(property)]
    fn memory_low(&self) -> u64 {
        self.number("MemoryLow")
    }
    #[zbus(property)]
    fn memory_high(&self) -> u64 {
        self.number("MemoryHigh")
    }
    #[zbus(property)]
    fn memory_max(&self) -> u64 {
        self.number("MemoryMax")
    }
    #[zbus(property)]
    fn memory_swap_max(&self) -> u64 {
        self.number("MemorySwapMax")
    }
    #[zbus(property, name = "IOWeight")]
    fn io_weight(&self) -> u64 {
        self.number("IOWeight")
    }
    #[zbus(property)]
    fn tasks_max(&self) -> u64 {
        self.number("TasksMax")
    }
    #[zbus(property, name = "AllowedCPUs")]
    fn allowed_cpus(&self) -> Vec<u8> {
        self.bits("AllowedCPUs")
    }
    #[zbus(property)]
    fn allowed_memory_nodes(&self) -> Vec<u8> {
        self.bits("AllowedMemoryNodes")
    }
    #[zbus(property, name = "IOReadBandwidthMax")]
    fn io_read_bandwidth_max(&self) -> Vec<(String, u64)> {
        self.rates("IOReadBandwidthMax")
    }
    #[zbus(property, name = "IOWriteBandwidthMax")]
    fn io_write_bandwidth_max(&self) -> Vec<(String, u64)> {
        self.rates("IOWriteBandwidthMax")
    }
    #[zbus(property, name = "IOReadIOPSMax")]
    fn io_read_iops_max(&self) -> Vec<(String, u64)> {
        self.rates("IOReadIOPSMax")
    }
    #[zbus(property, name = "IOWriteIOPSMax")]
    fn io_write_iops_max(&self) -> Vec<(String, u64)> {
        self.rates("IOWriteIOPSMax")
    }
}
