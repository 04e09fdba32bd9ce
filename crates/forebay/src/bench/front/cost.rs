//! What a process costs, by the kernel's accounts.

use std::fs;
use std::time::Duration;

/// CPU time of all threads, by the scheduler's clock: utime and stime count ticks where the kernel
/// samples. What the network does for a process is done in its system calls on the loopback device,
/// and counts as its own.
///
/// # Errors
/// When the process is gone.
pub(super) fn cpu(pid: u32) -> Result<Duration, String> {
    let directory = format!("/proc/{pid}/task");
    let failed = |error| format!("read {directory}: {error}; the process has ended");
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(&directory).map_err(failed)? {
        let path = task.map_err(failed)?.path().join("schedstat");
        let text = fs::read_to_string(&path).map_err(failed)?;
        let nanoseconds = text.split_whitespace().next();
        let nanoseconds = nanoseconds.and_then(|text| text.parse().ok());
        sum += nanoseconds
            .map(Duration::from_nanos)
            .ok_or_else(|| format!("{}: no time in `{text}`", path.display()))?;
    }
    Ok(sum)
}

/// Resident memory, in KiB.
///
/// # Errors
/// When the process is gone.
pub(super) fn resident_kib(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path);
    let text = text.map_err(|error| format!("read {path}: {error}; the process has ended"))?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("{path}: no VmRSS; the process has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something_and_a_missing_one_is_named() {
        let own = std::process::id();
        assert!(cpu(own).unwrap() > Duration::ZERO);
        assert!(resident_kib(own).unwrap() > 100);
        // No process has this number: it is above the kernel's largest.
        assert!(cpu(4_194_305).unwrap_err().contains("4194305"));
        assert!(resident_kib(4_194_305).unwrap_err().contains("4194305"));
    }
}
