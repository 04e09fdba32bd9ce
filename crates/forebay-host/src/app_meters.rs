//! What is read from the files of one app's group.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use forebay_core::snapshot::{AppSample, Gap, Reading};
use forebay_core::units::Bytes;

use crate::blkstat::BlockMeter;
use crate::files::{Reader, keyed, pressure_total};
use crate::host::{index_of, unified_index};
use crate::memory::parse_stat;
use crate::mounts::{Controller, Hierarchies, Version};

/// The open files of one app's group.
#[derive(Debug)]
pub(crate) struct Meters {
    cpu: Option<(Reader, CpuFormat)>,
    throttled: Option<(Reader, CpuFormat)>,
    memory: Option<Reader>,
    cpu_pressure: Option<WaitMeter>,
    memory_pressure: Option<Reader>,
    memory_stat: Option<(Reader, Version)>,
    io_pressure: Option<WaitMeter>,
    io: Option<BlockMeter>,
    /// cgroup.events of v2, which says in few bytes whether anybody is inside.
    events: Option<Reader>,
    members: Option<Reader>,
}

/// How a file tells processor time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CpuFormat {
    /// cpu.stat of v2, in microseconds.
    StatV2,
    /// cpu.stat of v1, in nanoseconds.
    StatV1,
    /// cpuacct.usage, a bare number of nanoseconds.
    Usage,
}

impl Meters {
    /// Opens what is there.
    pub(crate) fn open(hierarchies: &Hierarchies, dirs: &[Option<PathBuf>]) -> Self {
        let open = |index: Option<usize>, file: &str| -> Option<Reader> {
            Reader::open(&dirs.get(index?)?.as_ref()?.join(file))
        };
        let unified = unified_index(hierarchies);
        let at = |controller| index_of(hierarchies, controller);
        let version = |controller| hierarchies.of(controller).map(|(_, h)| h.version);
        let cpu = open(at(Controller::Cpuacct), "cpuacct.usage")
            .map(|reader| (reader, CpuFormat::Usage))
            .or_else(|| Some((open(unified, "cpu.stat")?, CpuFormat::StatV2)));
        let throttled = open(at(Controller::Cpu), "cpu.stat").zip(match version(Controller::Cpu) {
            Some(Version::V2) => Some(CpuFormat::StatV2),
            Some(Version::V1) => Some(CpuFormat::StatV1),
            None => None,
        });
        let memory = match version(Controller::Memory) {
            Some(Version::V1) => open(at(Controller::Memory), "memory.usage_in_bytes"),
            _ => open(at(Controller::Memory), "memory.current"),
        };
        let io = hierarchies
            .of(Controller::Io)
            .and_then(|(index, hierarchy)| {
                BlockMeter::open(dirs.get(index)?.as_ref()?, hierarchy.version)
            });
        let memory_stat =
            open(at(Controller::Memory), "memory.stat").zip(version(Controller::Memory));
        let first = dirs.iter().position(Option::is_some);
        Self {
            cpu,
            throttled,
            memory,
            cpu_pressure: open(unified, "cpu.pressure").map(WaitMeter::new),
            memory_pressure: open(unified, "memory.pressure"),
            memory_stat,
            io_pressure: open(unified, "io.pressure").map(WaitMeter::new),
            io,
            events: open(unified, "cgroup.events"),
            members: open(unified, "cgroup.procs").or_else(|| open(first, "cgroup.procs")),
        }
    }
}

impl Meters {
    /// Memory charged now.
    pub(crate) fn memory_used(&self) -> Option<u64> {
        let mut buffer = Vec::new();
        let text = self.memory.as_ref()?.read(&mut buffer).ok()?;
        text.trim().parse().ok()
    }
}

/// A pressure file, which costs more to read than the others together and mostly says what it
/// said before.
#[derive(Debug)]
struct WaitMeter {
    file: Reader,
    last: Option<Waited>,
}

/// What a pressure file said.
#[derive(Debug, Clone, Copy)]
struct Waited {
    /// Processor time that the group had used by then, where that was known.
    used: Option<Duration>,
    total: Duration,
    /// Somebody waited before this reading, and may be waiting still.
    grew: bool,
}

impl WaitMeter {
    const fn new(file: Reader) -> Self {
        Self { file, last: None }
    }

    /// The time in which somebody of a group waited that has `used` so much processor time.
    ///
    /// Who used none since the last reading asked for no I/O, and got no CPU: where nobody waited
    /// by then, the total is what it was, but for somebody who woke and has not run yet. What
    /// that one waits is counted in the period in which it runs, or when the file is `due`.
    fn read(
        &mut self,
        used: Option<Duration>,
        due: bool,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Reading<Duration>> {
        let rests = |last: &Waited| used.is_some() && used == last.used && !last.grew;
        if let Some(last) = self.last.filter(|last| !due && rests(last)) {
            return Ok(Ok(last.total));
        }
        let Some(total) = pressure_total(self.file.read(buffer)?) else {
            return Ok(Err(Gap::Unsupported));
        };
        let total = Duration::from_micros(total);
        // Of the first one nobody knows.
        let grew = self.last.is_none_or(|last| last.total != total);
        self.last = Some(Waited { used, total, grew });
        Ok(Ok(total))
    }
}

/// Whether anything of the group was still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Here,
    Gone,
}

/// What is read in this period.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) throttled: bool,
    pub(crate) memory: bool,
    pub(crate) memory_stat: bool,
    pub(crate) io: bool,
    pub(crate) processes: bool,
    pub(crate) traffic: bool,
    /// Pressure is read also where nothing can have waited.
    pub(crate) waits: bool,
}

/// Reads what is due.
pub(crate) fn read_meters(
    meters: &mut Meters,
    due: &Due,
    buffer: &mut Vec<u8>,
    sample: &mut AppSample,
) -> Found {
    let mut found = Found::Here;
    let mut failed = |error: io::Error| {
        if is_gone(&error) {
            found = Found::Gone;
        }
        Gap::Failed(error.to_string())
    };
    let mut read = |reader: Option<&Reader>, is_due: bool, parse: &dyn Fn(&str) -> Option<u64>| {
        let Some(reader) = reader else {
            return Err(Gap::Unsupported);
        };
        if !is_due {
            return Err(Gap::NotDue);
        }
        match reader.read(buffer) {
            Ok(text) => parse(text).ok_or(Gap::Unsupported),
            Err(error) => Err(failed(error)),
        }
    };
    let micros = |reading: Reading<u64>| reading.map(Duration::from_micros);
    sample.cpu_used = match &meters.cpu {
        Some((reader, CpuFormat::Usage)) => {
            read(Some(reader), true, &|text| text.trim().parse().ok()).map(Duration::from_nanos)
        }
        Some((reader, _)) => micros(read(Some(reader), true, &|t| keyed(t, "usage_usec"))),
        None => Err(Gap::Unsupported),
    };
    sample.cpu_throttled = match &meters.throttled {
        Some((reader, CpuFormat::StatV2)) => micros(read(Some(reader), due.throttled, &|t| {
            keyed(t, "throttled_usec")
        })),
        Some((reader, _)) => read(Some(reader), due.throttled, &|t| keyed(t, "throttled_time"))
            .map(Duration::from_nanos),
        None => Err(Gap::Unsupported),
    };
    sample.memory_used = read(meters.memory.as_ref(), true, &|t| t.trim().parse().ok()).map(Bytes);
    sample.memory_stalled = micros(read(
        meters.memory_pressure.as_ref(),
        due.memory,
        &pressure_total,
    ));
    sample.processes = read(meters.members.as_ref(), due.processes, &|text| {
        u64::try_from(text.lines().count()).ok()
    })
    .map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let used = sample.cpu_used.as_ref().ok().copied();
    let mut waited = |meter: &mut Option<WaitMeter>, is_due: bool| match meter {
        None => Err(Gap::Unsupported),
        Some(_) if !is_due => Err(Gap::NotDue),
        Some(meter) => {
            let reading = meter.read(used, due.waits, buffer);
            reading.unwrap_or_else(|error| Err(failed(error)))
        }
    };
    sample.cpu_stalled = waited(&mut meters.cpu_pressure, true);
    sample.io_stalled = waited(&mut meters.io_pressure, due.io);
    sample.io = match &mut meters.io {
        None => Err(Gap::Unsupported),
        Some(_) if !due.io => Err(Gap::NotDue),
        Some(meter) => meter.read(buffer).map_err(&mut failed),
    };
    sample.memory_stat = match &meters.memory_stat {
        Some((reader, version)) if due.memory_stat => match reader.read(buffer) {
            Ok(text) => parse_stat(text, *version).ok_or(Gap::Unsupported),
            // Whoever finds the group gone says so above.
            Err(error) => Err(Gap::Failed(error.to_string())),
        },
        Some(_) => Err(Gap::NotDue),
        None => Err(Gap::Unsupported),
    };
    found
}

/// Whether a group has processes, in itself or below.
pub(crate) fn is_populated(meters: &Meters, buffer: &mut Vec<u8>) -> bool {
    if let Some(events) = &meters.events {
        return events
            .read(buffer)
            .is_ok_and(|text| keyed(text, "populated") == Some(1));
    }
    meters
        .members
        .as_ref()
        .is_some_and(|members| members.read(buffer).is_ok_and(|text| !text.is_empty()))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{DEBIAN_11_V1, DEBIAN_12, DEBIAN_13, HYBRID, Tree};
    use forebay_core::io::IoCounters;

    const DUE: Due = Due {
        throttled: true,
        memory: true,
        memory_stat: true,
        io: true,
        processes: true,
        traffic: true,
        waits: true,
    };

    fn sample_of(tree: &Tree) -> AppSample {
        let mut meters = Meters::open(&tree.hierarchies, &tree.dirs());
        let mut sample = AppSample::absent();
        let found = read_meters(&mut meters, &DUE, &mut Vec::new(), &mut sample);
        assert_eq!(found, Found::Here);
        assert!(is_populated(&meters, &mut Vec::new()));
        sample
    }

    #[test]
    fn every_kernel_is_understood() {
        /// Microseconds, bytes and a count; none where the kernel does not say.
        struct Expected {
            cpu: u64,
            throttled: u64,
            stalled: Option<[u64; 3]>,
            memory: u64,
            processes: u32,
        }
        let check = |fixture: &str, expected: Expected| {
            let sample = sample_of(&Tree::unpack(fixture));
            let micros = |time: &Reading<Duration>| time.as_ref().map(Duration::as_micros).ok();
            assert_eq!(micros(&sample.cpu_used), Some(expected.cpu.into()));
            let throttled = Some(expected.throttled.into());
            assert_eq!(micros(&sample.cpu_throttled), throttled);
            let stalled = expected.stalled.map(|stalled| stalled.map(u128::from));
            let [cpu, memory, io] = match stalled {
                Some(stalled) => stalled.map(Some),
                None => [None; 3],
            };
            assert_eq!(micros(&sample.cpu_stalled), cpu);
            assert_eq!(micros(&sample.memory_stalled), memory);
            assert_eq!(micros(&sample.io_stalled), io);
            assert_eq!(sample.memory_used, Ok(Bytes(expected.memory)));
            assert_eq!(sample.processes, Ok(expected.processes));
        };
        check(
            DEBIAN_12,
            Expected {
                cpu: 412_877,
                throttled: 287_451,
                stalled: Some([301_822, 0, 5120]),
                memory: 491_520,
                processes: 2,
            },
        );
        check(
            DEBIAN_13,
            Expected {
                cpu: 398_412,
                throttled: 341_209,
                stalled: Some([350_111, 214, 4096]),
                memory: 532_480,
                processes: 2,
            },
        );
        check(
            HYBRID,
            Expected {
                cpu: 138_978,
                throttled: 86_418,
                stalled: Some([95_293, 0, 3936]),
                memory: 454_656,
                processes: 2,
            },
        );
        check(
            DEBIAN_11_V1,
            Expected {
                cpu: 421_337,
                throttled: 402_118,
                stalled: None,
                memory: 507_904,
                processes: 1,
            },
        );
    }

    #[test]
    fn pressure_is_read_while_somebody_may_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpu.pressure");
        let say = |total: u64| std::fs::write(&path, format!("some avg10=0.00 total={total}\n"));
        say(5).unwrap();
        let mut meter = WaitMeter::new(Reader::open(&path).unwrap());
        let mut check = |total, used_ms, due, expected| {
            say(total).unwrap();
            let used = Some(Duration::from_millis(used_ms));
            let reading = meter.read(used, due, &mut Vec::new()).unwrap();
            assert_eq!(reading, Ok(Duration::from_micros(expected)), "{total}");
        };
        check(5, 10, false, 5);
        // It rests, but who knows whether somebody waited before.
        check(5, 10, false, 5);
        // It rests, and nobody looks.
        check(6, 10, false, 5);
        // It ran.
        check(7, 11, false, 7);
        // Whoever waited may wait on without running.
        check(8, 11, false, 8);
        check(8, 11, false, 8);
        check(9, 11, false, 8);
        check(9, 11, true, 9);
    }

    #[test]
    fn every_kernel_counts_its_devices() {
        let check = |fixture: &str, bytes: u64, expected: u64| {
            let io = sample_of(&Tree::unpack(fixture)).io.unwrap();
            let sum = io.values().map(|c| c.read_bytes + c.write_bytes).sum();
            assert_eq!(Bytes(sum), Bytes(bytes), "{io:?}");
            let requests: u64 = io.values().map(IoCounters::requests).sum();
            assert_eq!(requests, expected, "{io:?}");
        };
        check(DEBIAN_12, 4_431_872, 76);
        check(DEBIAN_13, 4_198_400, 65);
        check(HYBRID, 4_431_872, 76);
        check(DEBIAN_11_V1, 4_431_872, 76);
    }
}
