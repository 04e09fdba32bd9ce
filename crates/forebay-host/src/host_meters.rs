//! What is read of the host as a whole: /proc/stat and /proc/meminfo.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::snapshot::{Gap, HostSample};

use crate::host::LinuxHost;
use crate::procs;
use crate::topology::kib_after;

impl LinuxHost {
    pub(crate) fn look_at_host(&mut self) -> HostSample {
        let mut sample = HostSample {
            cpu_busy: Err(Gap::Unsupported),
            steal: Err(Gap::Unsupported),
            memory_available: Err(Gap::Unsupported),
            interrupts: Err(Gap::Unsupported),
            cost_models: Err(Gap::Unsupported),
            swap_free: Err(Gap::Unsupported),
            memory_watch: Err(Gap::Unsupported),
            compaction: Err(Gap::Unsupported),
        };
        if let Some(reader) = &self.host_stat {
            match reader.read(&mut self.buffer) {
                Ok(text) => {
                    let (busy, steal) = parse_cpu_times(text);
                    sample.cpu_busy = Ok(busy);
                    sample.steal = steal.ok_or(Gap::Unsupported);
                }
                Err(error) => sample.cpu_busy = Err(Gap::Failed(error.to_string())),
            }
        }
        if let Some(reader) = &self.host_memory {
            match reader.read(&mut self.buffer) {
                Ok(text) => {
                    let after = |label| kib_after(text, label).ok_or(Gap::Unsupported);
                    sample.memory_available = after("MemAvailable:");
                    sample.swap_free = after("SwapFree:");
                }
                Err(error) => {
                    sample.memory_available = Err(Gap::Failed(error.to_string()));
                    sample.swap_free = Err(Gap::Failed(error.to_string()));
                }
            }
        }
        sample
    }
}

/// Busy time of each CPU and stolen time of all, from /proc/stat.
fn parse_cpu_times(text: &str) -> (BTreeMap<usize, Duration>, Option<Duration>) {
    let mut busy = BTreeMap::new();
    let mut steal = None;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("cpu") else {
            break;
        };
        let mut fields = rest.split_whitespace();
        // user nice system idle iowait irq softirq steal; guest is part of user.
        if rest.starts_with(' ') {
            steal = fields.nth(7).and_then(|f| f.parse().ok()).map(procs::ticks);
            continue;
        }
        let Some(id) = fields.next().and_then(|id| id.parse().ok()) else {
            continue;
        };
        let times: Vec<u64> = fields.filter_map(|f| f.parse().ok()).collect();
        let sum: u64 = [0, 1, 2, 5, 6]
            .into_iter()
            .filter_map(|at| times.get(at))
            .sum();
        busy.insert(id, procs::ticks(sum));
    }
    (busy, steal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_leave_idle_out() {
        let text = "cpu  10 0 5 100 7 1 1 30 0 0\ncpu0 6 1 2 50 3 1 0 20 0 0\ncpu1 4 0 3 50 4 0 1 10 0 0\nintr 5\n";
        let (busy, steal) = parse_cpu_times(text);
        assert_eq!(busy[&0], Duration::from_millis(100));
        assert_eq!(busy[&1], Duration::from_millis(80));
        assert_eq!(steal, Some(Duration::from_millis(300)));
    }
}
