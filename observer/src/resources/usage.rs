//! What a container uses, decided from the facts. Pure.

use super::facts::{CpuFacts, Facts};

/// What one container uses. A field is `None` when this host has no file that tells.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time in user mode, seconds.
    pub cpu_user: Option<f64>,
    /// CPU time in the kernel, seconds.
    pub cpu_system: Option<f64>,
    /// The CPU quota, when there is one.
    pub quota: Option<Quota>,
    /// Memory that cannot be dropped at once, bytes.
    pub working_set: Option<u64>,
    /// Memory charged, bytes.
    pub usage: Option<u64>,
    /// Anonymous memory, bytes.
    pub rss: Option<u64>,
    /// File cache, bytes.
    pub cache: Option<u64>,
    /// Swapped out, bytes.
    pub swap: Option<u64>,
    /// Highest usage, bytes.
    pub peak: Option<u64>,
    /// The limit, bytes; `None` also when there is none.
    pub limit: Option<u64>,
    /// Page faults served from memory.
    pub minor_faults: Option<u64>,
    /// Page faults that read from disk.
    pub major_faults: Option<u64>,
    /// Processes.
    pub processes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
}

/// A CPU quota and how it was felt.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quota {
    /// Quota divided by period, cores.
    pub cores: f64,
    /// Enforcement periods.
    pub periods: Option<u64>,
    /// Of them, with throttling.
    pub throttled_periods: Option<u64>,
    /// Time throttled, seconds.
    pub throttled: Option<f64>,
}

impl From<&Facts> for Usage {
    fn from(facts: &Facts) -> Self {
        let cpu = cpu_times(facts);
        Self {
            cpu_user: cpu.user.map(seconds),
            cpu_system: cpu.system.map(seconds),
            quota: quota(facts),
            working_set: facts.usage.zip(facts.inactive_file).map(|(usage, idle)| usage.saturating_sub(idle)),
            usage: facts.usage,
            rss: facts.anon,
            cache: facts.file,
            swap: facts.swap,
            peak: facts.peak,
            limit: facts.limit,
            // The kernel counts a major fault as a fault too.
            minor_faults: facts.faults.zip(facts.major_faults).map(|(all, major)| all.saturating_sub(major)),
            major_faults: facts.major_faults,
            processes: facts.processes,
            threads: facts.tasks,
        }
    }
}

/// v2 is exact to the microsecond, v1 to a tick; but on a hybrid host the v2 cgroup may be there without the
/// container's processes, and then it never counts anything.
fn cpu_times(facts: &Facts) -> CpuFacts {
    if facts.cpu.usage.is_some_and(|usage| usage > 0) || facts.v1_cpu.user.is_none() { facts.cpu } else { facts.v1_cpu }
}

fn quota(facts: &Facts) -> Option<Quota> {
    let (quota, period, cpu) = match (facts.cpu_max, facts.v1_quota, facts.v1_period) {
        (Some((quota, period)), _, _) => (quota?, period, facts.cpu),
        (None, Some(quota), Some(period)) => (u64::try_from(quota).ok()?, period, facts.v1_cpu),
        _ => return None,
    };
    if quota == 0 || period == 0 {
        return None;
    }
    Some(Quota {
        // Both are below 2^53 by the kernel's own limits.
        cores: quota as f64 / period as f64,
        periods: cpu.periods,
        throttled_periods: cpu.throttled_periods,
        throttled: cpu.throttled.map(seconds),
    })
}

/// Microseconds as seconds; exact up to 285 years.
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
