//! What a container's cgroup files say. Pure: text in, facts out.
//!
//! Files and units: the kernel's Documentation/admin-guide/cgroup-v2.rst and
//! Documentation/admin-guide/cgroup-v1/{cpuacct,memory,pids,blkio-controller}.rst, Documentation/accounting/psi.rst,
//! Documentation/scheduler/sched-bwc.rst.

use std::path::{Path, PathBuf};

use super::{
    CgroupRoots, Limit,
    io::{self, Counted, DeviceIo},
    parse,
};

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
    /// v2 `memory.events`: how often a limit was met.
    MemoryEvents,
    /// `pids.current`: tasks (threads), those of cgroups below included.
    Pids,
    /// `pids.max`.
    PidsLimit,
    /// v2 `cpu.weight`.
    CpuWeight,
    /// v2 `cpu.pressure`.
    CpuPressure,
    /// v2 `memory.pressure`.
    MemoryPressure,
    /// v2 `io.pressure`.
    IoPressure,
    /// v2 `io.stat`.
    IoStat,
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
    /// v1 `memory.failcnt`: how often the limit was met.
    V1MemoryFailures,
    /// v1 `memory.oom_control`.
    V1OomControl,
    /// v1 `cpu.shares`.
    V1CpuShares,
    /// v1 `blkio.throttle.io_service_bytes_recursive`.
    V1IoBytes,
    /// v1 `blkio.throttle.io_serviced_recursive`.
    V1IoOperations,
}

impl Source {
    /// Whether the file changes only when somebody writes to it.
    pub(super) const fn is_setting(self) -> bool {
        matches!(
            self,
            Self::CpuMax
                | Self::MemoryLimit
                | Self::PidsLimit
                | Self::CpuWeight
                | Self::V1CpuQuota
                | Self::V1CpuPeriod
                | Self::V1CpuShares
        )
    }
}

/// The hierarchy that a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// The v2 tree; every cgroup of it has the file.
    V2,
    /// The v2 tree, where it has this controller.
    V2With(&'static str),
    /// The v1 hierarchy of this controller.
    V1(&'static str),
}

impl Hierarchy {
    /// Its directory, where it is mounted.
    pub(super) fn root(self, roots: &CgroupRoots) -> Option<&Path> {
        match self {
            Self::V2 | Self::V2With(_) => roots.v2.as_deref(),
            Self::V1(controller) => roots.v1.get(controller).map(PathBuf::as_path),
        }
    }
}

/// All files, in the order in which they are read: [`Facts::needs`] decides by what was read before.
pub(super) const FILES: [(Source, Hierarchy, &str); 30] = [
    (Source::CpuStat, Hierarchy::V2, "cpu.stat"),
    (Source::CpuMax, Hierarchy::V2With("cpu"), "cpu.max"),
    (Source::MemoryUsage, Hierarchy::V2With("memory"), "memory.current"),
    (Source::MemoryStat, Hierarchy::V2With("memory"), "memory.stat"),
    (Source::MemorySwap, Hierarchy::V2With("memory"), "memory.swap.current"),
    (Source::MemoryPeak, Hierarchy::V2With("memory"), "memory.peak"),
    (Source::MemoryLimit, Hierarchy::V2With("memory"), "memory.max"),
    (Source::MemoryEvents, Hierarchy::V2With("memory"), "memory.events"),
    (Source::Pids, Hierarchy::V2With("pids"), "pids.current"),
    (Source::PidsLimit, Hierarchy::V2With("pids"), "pids.max"),
    (Source::CpuWeight, Hierarchy::V2With("cpu"), "cpu.weight"),
    (Source::CpuPressure, Hierarchy::V2, "cpu.pressure"),
    (Source::MemoryPressure, Hierarchy::V2, "memory.pressure"),
    (Source::IoPressure, Hierarchy::V2, "io.pressure"),
    (Source::IoStat, Hierarchy::V2With("io"), "io.stat"),
    (Source::V1CpuacctStat, Hierarchy::V1("cpuacct"), "cpuacct.stat"),
    (Source::V1CpuQuota, Hierarchy::V1("cpu"), "cpu.cfs_quota_us"),
    (Source::V1CpuStat, Hierarchy::V1("cpu"), "cpu.stat"),
    (Source::V1CpuPeriod, Hierarchy::V1("cpu"), "cpu.cfs_period_us"),
    (Source::MemoryUsage, Hierarchy::V1("memory"), "memory.usage_in_bytes"),
    (Source::V1MemoryStat, Hierarchy::V1("memory"), "memory.stat"),
    (Source::MemoryPeak, Hierarchy::V1("memory"), "memory.max_usage_in_bytes"),
    (Source::MemoryLimit, Hierarchy::V1("memory"), "memory.limit_in_bytes"),
    (Source::V1MemoryFailures, Hierarchy::V1("memory"), "memory.failcnt"),
    (Source::V1OomControl, Hierarchy::V1("memory"), "memory.oom_control"),
    (Source::Pids, Hierarchy::V1("pids"), "pids.current"),
    (Source::PidsLimit, Hierarchy::V1("pids"), "pids.max"),
    (Source::V1CpuShares, Hierarchy::V1("cpu"), "cpu.shares"),
    (Source::V1IoBytes, Hierarchy::V1("blkio"), "blkio.throttle.io_service_bytes_recursive"),
    (Source::V1IoOperations, Hierarchy::V1("blkio"), "blkio.throttle.io_serviced_recursive"),
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
    /// Periods in which more than the quota was used (kernel 5.14).
    pub bursts: Option<u64>,
    /// Time that was used beyond the quota.
    pub burst: Option<u64>,
}

/// Microseconds that tasks waited for one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PressureFacts {
    /// Some of them.
    pub some: Option<u64>,
    /// All of them.
    pub full: Option<u64>,
}

/// How often limits of memory were met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Processes were throttled because usage was above `memory.high`.
    pub high: Option<u64>,
    /// Usage was about to go over the limit.
    pub max: Option<u64>,
    /// The limit was met and nothing could be reclaimed.
    pub oom: Option<u64>,
    /// Processes that the OOM killer killed.
    pub oom_kill: Option<u64>,
}

/// What the files of one container said. A field is `None` when its file or its line is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// Bytes of file cache in use.
    pub active_file: Option<u64>,
    /// Bytes of kernel memory; v2 from kernel 5.18.
    pub kernel_memory: Option<u64>,
    /// Bytes of files that are mapped.
    pub mapped_file: Option<u64>,
    /// Bytes swapped out.
    pub swap: Option<u64>,
    /// Highest usage in bytes.
    pub peak: Option<u64>,
    /// Limit in bytes.
    pub limit: Option<Limit>,
    /// All page faults.
    pub faults: Option<u64>,
    /// Of them, those that read from disk.
    pub major_faults: Option<u64>,
    /// Faults of its own processes, without those of cgroups below; v1 alone.
    pub own_faults: Option<u64>,
    /// Of them, those that read from disk.
    pub own_major_faults: Option<u64>,
    /// Tasks, which are threads.
    pub tasks: Option<u64>,
    /// Processes.
    pub processes: Option<u64>,
    /// Most tasks allowed.
    pub tasks_limit: Option<Limit>,
    /// v2 weight of the CPU, 1 to 10,000.
    pub cpu_weight: Option<u64>,
    /// v1 shares of the CPU, 2 to 262,144.
    pub cpu_shares: Option<u64>,
    /// How often limits were met.
    pub events: MemoryEvents,
    /// Waiting for the CPU.
    pub cpu_pressure: PressureFacts,
    /// Waiting for memory.
    pub memory_pressure: PressureFacts,
    /// Waiting for block devices.
    pub io_pressure: PressureFacts,
    /// Block devices.
    pub io: Vec<DeviceIo>,
}

impl Facts {
    /// False when a file would tell nothing new: the other tree told already, or there is no quota to tell about.
    pub(super) fn needs(&self, source: Source) -> bool {
        match source {
            Source::V1CpuacctStat => self.cpu.usage.is_none_or(|usage| usage == 0),
            Source::V1CpuStat => self.v1_quota.is_some_and(|quota| quota > 0),
            Source::V1CpuPeriod => self.v1_quota.is_some(),
            Source::V1CpuQuota => self.cpu_max.is_none(),
            Source::MemoryUsage => self.usage.is_none(),
            Source::MemoryPeak => self.peak.is_none(),
            Source::MemoryLimit => self.limit.is_none(),
            Source::Pids => self.tasks.is_none(),
            Source::PidsLimit => self.tasks_limit.is_none(),
            Source::V1CpuShares => self.cpu_weight.is_none(),
            Source::V1MemoryFailures => self.events.max.is_none(),
            Source::V1OomControl => self.events.oom_kill.is_none(),
            Source::V1IoBytes => self.io.is_empty(),
            Source::V1IoOperations => self.io.iter().any(|io| io.reads.is_none()),
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
                        "nr_bursts" => self.v1_cpu.bursts = Some(value),
                        "burst_time" => self.v1_cpu.burst = Some(value / 1000),
                        _ => {}
                    }
                }
            }
            Source::MemoryEvents | Source::V1OomControl => self.memory_events(text),
            Source::V1MemoryFailures => self.events.max = parse::number(text),
            Source::PidsLimit => self.tasks_limit = parse::limit(text),
            Source::CpuWeight => self.cpu_weight = parse::number(text),
            Source::V1CpuShares => self.cpu_shares = parse::number(text),
            Source::CpuPressure => self.cpu_pressure = pressure(text),
            Source::MemoryPressure => self.memory_pressure = pressure(text),
            Source::IoPressure => self.io_pressure = pressure(text),
            Source::IoStat => io::io_stat(text, &mut self.io),
            Source::V1IoBytes => io::blkio(text, Counted::Bytes, &mut self.io),
            Source::V1IoOperations => io::blkio(text, Counted::Operations, &mut self.io),
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
                "nr_bursts" => &mut self.cpu.bursts,
                "burst_usec" => &mut self.cpu.burst,
                _ => continue,
            };
            *field = Some(value);
        }
    }

    /// v2 `memory.events`; of v1 `memory.oom_control` the one line that has the same name.
    fn memory_events(&mut self, text: &str) {
        for (key, value) in parse::flat_keyed(text) {
            let field = match key {
                "high" => &mut self.events.high,
                "max" => &mut self.events.max,
                "oom" => &mut self.events.oom,
                "oom_kill" => &mut self.events.oom_kill,
                _ => continue,
            };
            *field = Some(value);
        }
    }

    /// v2 names, or v1 names behind `prefix`.
    fn memory_stat(&mut self, text: &str, prefix: &str) {
        for (key, value) in parse::keyed(text) {
            let field = match (key.strip_prefix(prefix), prefix.is_empty()) {
                (None, _) if key == "pgfault" => &mut self.own_faults,
                (None, _) if key == "pgmajfault" => &mut self.own_major_faults,
                (Some("anon"), true) | (Some("rss"), false) => &mut self.anon,
                (Some("file"), true) | (Some("cache"), false) => &mut self.file,
                (Some("swap"), false) => &mut self.swap,
                (Some("kernel"), true) => &mut self.kernel_memory,
                (Some("active_file"), _) => &mut self.active_file,
                (Some("file_mapped"), true) | (Some("mapped_file"), false) => &mut self.mapped_file,
                (Some("inactive_file"), _) => &mut self.inactive_file,
                (Some("pgfault"), _) => &mut self.faults,
                (Some("pgmajfault"), _) => &mut self.major_faults,
                _ => continue,
            };
            if let Some(value) = parse::value_of_key(value) {
                *field = Some(value);
            }
        }
    }
}

fn pressure(text: &str) -> PressureFacts {
    let (some, full) = parse::pressure(text);
    PressureFacts { some, full }
}

/// What is not known adds nothing, and a sum of nothing known is not known.
pub(super) fn plus(sum: &mut Option<u64>, value: Option<u64>) {
    if let Some(value) = value {
        *sum = Some(sum.unwrap_or(0).saturating_add(value));
    }
}
