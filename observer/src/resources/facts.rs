//! What a container's cgroup files say. Pure: text in, facts out.
//!
//! Files and units: the kernel's Documentation/admin-guide/cgroup-v2.rst and
//! Documentation/admin-guide/cgroup-v1/{cpuacct,memory,pids}.rst, Documentation/scheduler/sched-bwc.rst.

use super::parse;

/// A cgroup file that is read for every container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// v2 `cpu.stat`; without the cpu controller it has the times but no periods.
    CpuStat,
    /// v2 `cpu.max`.
    CpuMax,
    /// v2 `memory.current`, v1 `memory.usage_in_bytes`.
    MemoryUsage,
    /// v2 `memory.stat`.
    MemoryStat,
    /// v2 `memory.swap.current`.
    MemorySwap,
    /// v2 `memory.peak` (kernel 5.19), v1 `memory.max_usage_in_bytes`.
    MemoryPeak,
    /// v2 `memory.max`, v1 `memory.limit_in_bytes`.
    MemoryLimit,
    /// `pids.current`: tasks (threads), those of cgroups below included.
    Pids,
    /// v1 `cpuacct.stat`, in ticks.
    V1CpuacctStat,
    /// v1 `cpu.stat`.
    V1CpuStat,
    /// v1 `cpu.cfs_quota_us`.
    V1CpuQuota,
    /// v1 `cpu.cfs_period_us`.
    V1CpuPeriod,
    /// v1 `memory.stat`: the `total_` fields, which have what is in cgroups below.
    V1MemoryStat,
}

/// The hierarchy that a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hierarchy {
    V2,
    V1(&'static str),
}

/// All files, in the order in which they are read: [`Facts::needs`] decides by what was read before.
pub(super) const FILES: [(Source, Hierarchy, &str); 17] = [
    (Source::CpuStat, Hierarchy::V2, "cpu.stat"),
    (Source::CpuMax, Hierarchy::V2, "cpu.max"),
    (Source::MemoryUsage, Hierarchy::V2, "memory.current"),
    (Source::MemoryStat, Hierarchy::V2, "memory.stat"),
    (Source::MemorySwap, Hierarchy::V2, "memory.swap.current"),
    (Source::MemoryPeak, Hierarchy::V2, "memory.peak"),
    (Source::MemoryLimit, Hierarchy::V2, "memory.max"),
    (Source::Pids, Hierarchy::V2, "pids.current"),
    (Source::V1CpuacctStat, Hierarchy::V1("cpuacct"), "cpuacct.stat"),
    (Source::V1CpuQuota, Hierarchy::V1("cpu"), "cpu.cfs_quota_us"),
    (Source::V1CpuStat, Hierarchy::V1("cpu"), "cpu.stat"),
    (Source::V1CpuPeriod, Hierarchy::V1("cpu"), "cpu.cfs_period_us"),
    (Source::MemoryUsage, Hierarchy::V1("memory"), "memory.usage_in_bytes"),
    (Source::V1MemoryStat, Hierarchy::V1("memory"), "memory.stat"),
    (Source::MemoryPeak, Hierarchy::V1("memory"), "memory.max_usage_in_bytes"),
    (Source::MemoryLimit, Hierarchy::V1("memory"), "memory.limit_in_bytes"),
    (Source::Pids, Hierarchy::V1("pids"), "pids.current"),
];

/// The fields of v2 `cpu.stat` in microseconds and of v1 `cpu.stat` and `cpuacct.stat` brought to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuFacts {
    /// All CPU time.
    pub usage: Option<u64>,
    /// In user mode.
    pub user: Option<u64>,
    /// In the kernel.
    pub system: Option<u64>,
    /// Enforcement periods.
    pub periods: Option<u64>,
    /// Of them, with throttling.
    pub throttled_periods: Option<u64>,
    /// Time throttled.
    pub throttled: Option<u64>,
}

/// What the files of one container said. A field is `None` when its file or its line is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// From the v2 tree.
    pub cpu: CpuFacts,
    /// From v1 hierarchies.
    pub v1_cpu: CpuFacts,
    /// Quota and period of v2, µs; the quota is `None` for none.
    pub cpu_max: Option<(Option<u64>, u64)>,
    /// v1 quota, µs; -1 for none.
    pub v1_quota: Option<i64>,
    /// v1 period, µs.
    pub v1_period: Option<u64>,
    /// Bytes charged.
    pub usage: Option<u64>,
    /// Bytes of anonymous memory.
    pub anon: Option<u64>,
    /// Bytes of file cache.
    pub file: Option<u64>,
    /// Bytes of file cache that can go first.
    pub inactive_file: Option<u64>,
    /// Bytes swapped out.
    pub swap: Option<u64>,
    /// Highest usage in bytes.
    pub peak: Option<u64>,
    /// Limit in bytes; `None` also for no limit.
    pub limit: Option<u64>,
    /// All page faults.
    pub faults: Option<u64>,
    /// Of them, those that read from disk.
    pub major_faults: Option<u64>,
    /// Tasks, which are threads.
    pub tasks: Option<u64>,
    /// Processes.
    pub processes: Option<u64>,
}

impl Facts {
    /// False when a file would tell nothing new: the other tree told already, or there is no quota to tell about.
    pub(super) fn needs(&self, source: Source) -> bool {
        match source {
            Source::V1CpuacctStat => self.cpu.usage.is_none_or(|usage| usage == 0),
            Source::V1CpuStat | Source::V1CpuPeriod => self.v1_quota.is_some_and(|quota| quota > 0),
            Source::V1CpuQuota => self.cpu_max.is_none(),
            Source::MemoryUsage => self.usage.is_none(),
            Source::MemoryPeak => self.peak.is_none(),
            Source::MemoryLimit => self.limit.is_none(),
            Source::Pids => self.tasks.is_none(),
            _ => true,
        }
    }

    /// Adds what a file says. `ticks_per_second` is the unit of v1's `cpuacct.stat` (`sysconf(_SC_CLK_TCK)`).
    pub fn add(&mut self, source: Source, text: &str, ticks_per_second: u64) {
        match source {
            Source::CpuStat => self.cpu_stat(text),
            Source::CpuMax => self.cpu_max = parse::cpu_max(text),
            Source::MemoryUsage => self.usage = parse::number(text),
            Source::MemoryStat => self.memory_stat(text, ""),
            Source::V1MemoryStat => self.memory_stat(text, "total_"),
            Source::MemorySwap => self.swap = parse::number(text),
            Source::MemoryPeak => self.peak = parse::number(text),
            Source::MemoryLimit => self.limit = parse::limit(text),
            Source::Pids => self.tasks = parse::number(text),
            Source::V1CpuacctStat => {
                let micros = |ticks: u64| ticks.saturating_mul(1_000_000) / ticks_per_second.max(1);
                for (key, value) in parse::flat_keyed(text) {
                    match key {
                        "user" => self.v1_cpu.user = Some(micros(value)),
                        "system" => self.v1_cpu.system = Some(micros(value)),
                        _ => {}
                    }
                }
            }
            Source::V1CpuStat => {
                for (key, value) in parse::flat_keyed(text) {
                    match key {
                        "nr_periods" => self.v1_cpu.periods = Some(value),
                        "nr_throttled" => self.v1_cpu.throttled_periods = Some(value),
                        // Nanoseconds.
                        "throttled_time" => self.v1_cpu.throttled = Some(value / 1000),
                        _ => {}
                    }
                }
            }
            Source::V1CpuQuota => self.v1_quota = parse::signed(text),
            Source::V1CpuPeriod => self.v1_period = parse::number(text),
        }
    }

    fn cpu_stat(&mut self, text: &str) {
        for (key, value) in parse::flat_keyed(text) {
            let field = match key {
                "usage_usec" => &mut self.cpu.usage,
                "user_usec" => &mut self.cpu.user,
                "system_usec" => &mut self.cpu.system,
                "nr_periods" => &mut self.cpu.periods,
                "nr_throttled" => &mut self.cpu.throttled_periods,
                "throttled_usec" => &mut self.cpu.throttled,
                _ => continue,
            };
            *field = Some(value);
        }
    }

    /// v2 names, or v1 names behind `prefix`.
    fn memory_stat(&mut self, text: &str, prefix: &str) {
        for (key, value) in parse::flat_keyed(text) {
            let Some(name) = key.strip_prefix(prefix) else { continue };
            let field = match (name, prefix.is_empty()) {
                ("anon", true) | ("rss", false) => &mut self.anon,
                ("file", true) | ("cache", false) => &mut self.file,
                ("swap", false) => &mut self.swap,
                ("inactive_file", _) => &mut self.inactive_file,
                ("pgfault", _) => &mut self.faults,
                ("pgmajfault", _) => &mut self.major_faults,
                _ => continue,
            };
            *field = Some(value);
        }
    }
}
