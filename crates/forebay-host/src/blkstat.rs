//! What a group did on each block device: io.stat of v2, the throttle files of v1.
//!
//! Since Linux 6.10 those of v1 count what is done on a device only from the first time that somebody says a limit
//! of it, in any group (block/blk-throttle.c, `blk_throtl_activated`).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use forebay_core::app::Device;
use forebay_core::io::{DEVICES_MAX, DeviceCounters, IoCounters};

use crate::files::{Reader, write_text};
use crate::mounts::{Controller, Hierarchies, Version};
use crate::topology::disks;

/// The open files of one group.
#[derive(Debug)]
pub(crate) enum BlockMeter {
    /// io.stat
    V2(Reader),
    /// blkio.throttle.io_service_bytes_recursive and io_serviced_recursive
    V1 {
        /// Bytes.
        bytes: Reader,
        /// Requests.
        requests: Reader,
        /// What the bytes said last, and what both meant: while they say the same there was no
        /// request.
        last: (String, DeviceCounters),
    },
}

impl BlockMeter {
    /// Opens what a group's directory has. None where the controller is not there.
    pub(crate) fn open(dir: &Path, version: Version) -> Option<Self> {
        match version {
            Version::V2 => Reader::open(&dir.join("io.stat")).map(Self::V2),
            Version::V1 => Some(Self::V1 {
                bytes: Reader::open(&dir.join("blkio.throttle.io_service_bytes_recursive"))?,
                requests: Reader::open(&dir.join("blkio.throttle.io_serviced_recursive"))?,
                last: Default::default(),
            }),
        }
    }

    /// Reads the counters of all devices.
    ///
    /// # Errors
    /// When the kernel does not give the text: the group may be gone.
    pub(crate) fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<DeviceCounters> {
        match self {
            Self::V2(stat) => Ok(parse_v2(stat.read(buffer)?)),
            Self::V1 {
                bytes,
                requests,
                last: (said, counted),
            } => {
                let text = bytes.read(buffer)?;
                if text == said {
                    return Ok(counted.clone());
                }
                let text = text.to_owned();
                let mut counters = DeviceCounters::new();
                add_v1(&text, &mut counters, |device, is| match is {
                    Way::Read => &mut device.read_bytes,
                    Way::Write => &mut device.write_bytes,
                });
                add_v1(
                    requests.read(buffer)?,
                    &mut counters,
                    |device, is| match is {
                        Way::Read => &mut device.reads,
                        Way::Write => &mut device.writes,
                    },
                );
                (*said, *counted) = (text, counters.clone());
                Ok(counters)
            }
        }
    }
}

/// The devices on which v1 counts.
#[derive(Debug)]
pub(crate) struct Counting {
    /// A file of a group of ours; none where v2 counts, which does so by itself.
    limits: Option<PathBuf>,
    told: BTreeSet<Device>,
}

impl Counting {
    /// `anchor` is a group of ours without processes.
    pub(crate) fn new(hierarchies: &Hierarchies, anchor: &Path) -> Self {
        let (_, hierarchy) = hierarchies.of(Controller::Io).unzip();
        let v1 = hierarchy.filter(|hierarchy| hierarchy.version == Version::V1);
        let limits = v1.map(|v1| v1.dir(anchor).join("blkio.throttle.read_bps_device"));
        Self {
            limits: limits.filter(|file| file.exists()),
            told: BTreeSet::new(),
        }
    }

    /// Has the kernel count on the devices that came since the last time.
    pub(crate) fn follow(&mut self, sys_root: &Path) {
        let Some(limits) = &self.limits else {
            return;
        };
        let now: BTreeSet<Device> = disks(sys_root).into_iter().take(DEVICES_MAX).collect();
        for device in now.difference(&self.told) {
            // No limit, for a group that is empty: what is said changes nothing, but it is said.
            if let Err(error) = write_text(limits, &format!("{device} 0")) {
                let (device, reason) = (device.to_string(), error.explain());
                tracing::warn!(device, reason, "what apps do on it may not be counted");
            }
        }
        // A number that comes again is another device.
        self.told = now;
    }
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Read,
    Write,
}

/// Lines such as `8:0 Read 4096`; those of `Sync`, `Discard` or `Total` count the same again.
fn add_v1(
    text: &str,
    counters: &mut DeviceCounters,
    field: impl Fn(&mut IoCounters, Way) -> &mut u64,
) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(device), Some(way), Some(count)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let way = match way {
            "Read" => Way::Read,
            "Write" => Way::Write,
            _ => continue,
        };
        let (Ok(device), Ok(count)) = (device.parse(), count.parse()) else {
            continue;
        };
        if counters.len() < DEVICES_MAX || counters.contains_key(&device) {
            *field(counters.entry(device).or_default(), way) = count;
        }
    }
}

/// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn parse_v2(text: &str) -> DeviceCounters {
    let mut counters = DeviceCounters::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(Ok(device)) = words.next().map(str::parse) else {
            continue;
        };
        let mut of_device = IoCounters::default();
        for word in words {
            let Some((name, Ok(count))) = word
                .split_once('=')
                .map(|(name, count)| (name, count.parse()))
            else {
                continue;
            };
            match name {
                "rbytes" => of_device.read_bytes = count,
                "wbytes" => of_device.write_bytes = count,
                "rios" => of_device.reads = count,
                "wios" => of_device.writes = count,
                _ => {}
            }
        }
        // Devices that nothing was done on have lines as well.
        if of_device != IoCounters::default() && counters.len() < DEVICES_MAX {
            counters.insert(device, of_device);
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_core::app::Device;

    fn counters(all: &[(&str, [u64; 4])]) -> DeviceCounters {
        let one = |[read_bytes, write_bytes, reads, writes]: [u64; 4]| IoCounters {
            read_bytes,
            write_bytes,
            reads,
            writes,
        };
        all.iter()
            .map(|(device, numbers)| (device.parse::<Device>().unwrap(), one(*numbers)))
            .collect()
    }

    #[test]
    fn v2_counts_by_device() {
        let check = |text: &str, expected: &[(&str, [u64; 4])]| {
            assert_eq!(parse_v2(text), counters(expected), "{text}");
        };
        check("", &[]);
        check(
            "8:0 rbytes=100 wbytes=20 rios=3 wios=4 dbytes=9 dios=9\n8:16 rbytes=1\n",
            &[("8:0", [100, 20, 3, 4]), ("8:16", [1, 0, 0, 0])],
        );
        // What a kernel with io.cost or io.latency adds, and a device that is going.
        check(
            "8:0 rbytes=1 wios=2 cost.usage=7 use_delay=0 depth=max\n(unknown) rbytes=5\n8:16 \n",
            &[("8:0", [1, 0, 0, 2])],
        );
    }

    #[test]
    fn v1_counts_by_device() {
        let mut found = DeviceCounters::new();
        let bytes = "254:0 Read 100\n254:0 Write 20\n254:0 Sync 120\n254:0 Total 120\n7:0 Read 1\nTotal 121\n";
        add_v1(bytes, &mut found, |device, way| match way {
            Way::Read => &mut device.read_bytes,
            Way::Write => &mut device.write_bytes,
        });
        let expected = counters(&[("254:0", [100, 20, 0, 0]), ("7:0", [1, 0, 0, 0])]);
        assert_eq!(found, expected);
        add_v1("Total 0\n", &mut found, |device, _| &mut device.reads);
        assert_eq!(found, expected);
    }

    #[test]
    fn devices_beyond_the_bound_are_left_out() {
        let text: String = (0..2 * DEVICES_MAX)
            .map(|minor| format!("8:{minor} rbytes=1\n"))
            .collect();
        assert_eq!(parse_v2(&text).len(), DEVICES_MAX);
    }
}
