//! What a container uses, decided from the facts. Pure.

use super::{
    Limit,
    facts::{CpuFacts, Facts, MemoryEvents, PressureFacts, plus},
    io::DeviceIo,
};
use crate::identity::Requests;

/// What one container uses. A field is `None` when this host has no file that tells.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Files that are mapped, bytes.
    pub mapped_file: Option<u64>,
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
    /// Most threads allowed; `None` also when there is no limit.
    pub threads_limit: Option<u64>,
    /// The enforcement period of a CPU quota, µs, with a quota and without.
    pub cpu_period: Option<u64>,
    /// Shares of the CPU, 2 to 262,144; where the host has a weight instead, the shares that it stands for.
    pub cpu_shares: Option<u64>,
    /// How often limits of memory were met.
    pub events: MemoryEvents,
    /// What it asked for; not in any one file, so not in [`Usage::from`].
    pub requests: Requests,
    /// Time waited for resources.
    pub pressure: Pressure,
    /// Block devices, in the order of their numbers.
    pub io: Vec<DeviceIo>,
}

/// Time waited for resources, in seconds; see [`Waited`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// For the CPU.
    pub cpu: Waited,
    /// For memory.
    pub memory: Waited,
    /// For block devices.
    pub io: Waited,
}

/// Time waited for one resource, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Waited {
    /// While at least one task waited.
    pub some: Option<f64>,
    /// While all tasks waited.
    pub full: Option<f64>,
}

impl From<PressureFacts> for Waited {
    fn from(facts: PressureFacts) -> Self {
        Self { some: facts.some.map(seconds), full: facts.full.map(seconds) }
    }
}

/// A CPU quota and how it was felt.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quota {
    /// Quota divided by period, cores; `None` once the container has ended.
    pub cores: Option<f64>,
    /// Enforcement periods.
    pub periods: Option<u64>,
    /// Of them, with throttling.
    pub throttled_periods: Option<u64>,
    /// Time throttled, seconds.
    pub throttled: Option<f64>,
}

impl Usage {
    /// The CPU times that count: v2 is exact to the microsecond, v1 to a tick; but on a hybrid host the v2 cgroup may be
    /// there without the container's processes, and then it never counts anything.
    pub(super) fn cpu_facts(facts: &Facts) -> CpuFacts {
        if facts.cpu.usage.is_some_and(|usage| usage > 0) || facts.v1_cpu.user.is_none() {
            facts.cpu
        } else {
            facts.v1_cpu
        }
    }

    /// True when no file told anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The facts of the tree whose quota is in force.
    pub(super) fn quota_facts(facts: &Facts) -> Option<CpuFacts> {
        quota_in_force(facts).map(|(_, _, cpu)| cpu)
    }

    /// With the counters of containers of the same name that have ended.
    #[must_use]
    pub fn with_ended(mut self, ended: &Facts) -> Self {
        plus_seconds(&mut self.cpu_user, ended.cpu.user);
        plus_seconds(&mut self.cpu_system, ended.cpu.system);
        if ended.cpu.periods.is_some() {
            let quota = self.quota.get_or_insert_default();
            plus(&mut quota.periods, ended.cpu.periods);
            plus(&mut quota.throttled_periods, ended.cpu.throttled_periods);
            plus_seconds(&mut quota.throttled, ended.cpu.throttled);
        }
        // A major fault was counted as a fault too.
        plus(&mut self.minor_faults, ended.faults.map(|all| all.saturating_sub(ended.major_faults.unwrap_or(0))));
        plus(&mut self.major_faults, ended.major_faults);
        self.events.plus(&ended.events);
        for (waited, facts) in [
            (&mut self.pressure.cpu, &ended.cpu_pressure),
            (&mut self.pressure.memory, &ended.memory_pressure),
            (&mut self.pressure.io, &ended.io_pressure),
        ] {
            plus_seconds(&mut waited.some, facts.some);
            plus_seconds(&mut waited.full, facts.full);
        }
        ended.io.iter().for_each(|device| device.add_to(&mut self.io));
        self.io.sort_unstable_by_key(|io| io.device);
        self
    }
}

/// Adds microseconds to seconds; what is not known adds nothing. Added up as whole microseconds, of which all seconds here are
/// made: in whatever order containers end, the sum is the same to the last bit, and no counter goes back.
fn plus_seconds(sum: &mut Option<f64>, micros: Option<u64>) {
    if let Some(micros) = micros {
        let before = (sum.unwrap_or(0.0) * 1e6).round() as u64;
        *sum = Some(seconds(before.saturating_add(micros)));
    }
}

impl From<&Facts> for Usage {
    fn from(facts: &Facts) -> Self {
        let cpu = Self::cpu_facts(facts);
        let mut io = facts.io.clone();
        io.sort_unstable_by_key(|io| io.device);
        Self {
            cpu_user: cpu.user.map(seconds),
            cpu_system: cpu.system.map(seconds),
            quota: quota(facts),
            working_set: facts.usage.zip(facts.inactive_file).map(|(usage, idle)| usage.saturating_sub(idle)),
            usage: facts.usage,
            rss: facts.anon,
            cache: facts.file,
            mapped_file: facts.mapped_file,
            swap: facts.swap,
            peak: facts.peak,
            limit: facts.limit.and_then(Limit::finite),
            // The kernel counts a major fault as a fault too.
            minor_faults: facts.faults.zip(facts.major_faults).map(|(all, major)| all.saturating_sub(major)),
            major_faults: facts.major_faults,
            processes: facts.processes,
            threads: facts.tasks,
            threads_limit: facts.tasks_limit.and_then(Limit::finite),
            cpu_period: facts.cpu_max.map(|(_, period)| period).or(facts.v1_period),
            cpu_shares: facts.cpu_shares.or(facts.cpu_weight.and_then(shares)),
            events: facts.events,
            requests: Requests::default(),
            pressure: Pressure {
                cpu: facts.cpu_pressure.into(),
                memory: facts.memory_pressure.into(),
                io: facts.io_pressure.into(),
            },
            io,
        }
    }
}

/// Quota and period in force, µs, and the facts of the tree that they are in.
fn quota_in_force(facts: &Facts) -> Option<(u64, u64, CpuFacts)> {
    let (quota, period, cpu) = match (facts.cpu_max, facts.v1_quota, facts.v1_period) {
        (Some((quota, period)), _, _) => (quota?, period, facts.cpu),
        (None, Some(quota), Some(period)) => (u64::try_from(quota).ok()?, period, facts.v1_cpu),
        _ => return None,
    };
    (quota > 0 && period > 0).then_some((quota, period, cpu))
}

fn quota(facts: &Facts) -> Option<Quota> {
    let (quota, period, cpu) = quota_in_force(facts)?;
    Some(Quota {
        // Both are below 2^53 by the kernel's own limits.
        cores: Some(quota as f64 / period as f64),
        periods: cpu.periods,
        throttled_periods: cpu.throttled_periods,
        throttled: cpu.throttled.map(seconds),
    })
}

/// The shares that a weight stands for: what runc made of shares, backwards (`ConvertCPUSharesToCgroupV2Value` of
/// opencontainers/runc libcontainer/cgroups/utils.go). The weight is rounded, so this is too.
fn shares(weight: u64) -> Option<u64> {
    (1..=10_000).contains(&weight).then(|| 2 + (weight - 1) * 262_142 / 9_999)
}

/// Microseconds as seconds; exact up to 285 years.
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
