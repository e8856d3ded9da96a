//! The cgroup files of this machine, and what series that are made of them must show.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cgroup::{self, Hierarchy, Version};

/// What a series must show; `None` when it must be absent.
pub(crate) type Expected = Vec<(&'static str, &'static [(&'static str, &'static str)], Option<f64>)>;

/// The cgroup files of this machine.
#[derive(Debug)]
pub struct Files {
    hierarchies: Vec<Hierarchy>,
}

impl Files {
    /// Those that are mounted here.
    pub fn detect() -> Result<Self> {
        Ok(Self { hierarchies: cgroup::detect()? })
    }

    /// Whether memory is told by cgroup v1.
    pub fn memory_is_v1(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.version == Version::V1 && hierarchy.has("memory"))
    }

    /// The v1 directory of a controller for a cgroup.
    fn v1(&self, controller: &str, path: &Path) -> Option<PathBuf> {
        let found = self.hierarchies.iter().find(|h| h.version == Version::V1 && h.has(controller))?;
        Some(cgroup::directory(found, path))
    }

    pub(super) fn v2(&self, path: &Path) -> PathBuf {
        let found = self.hierarchies.iter().find(|h| h.version == Version::V2);
        found.map(|hierarchy| cgroup::directory(hierarchy, path)).unwrap_or_default()
    }

    /// 64 MiB, 77 threads, and half a CPU.
    pub fn limit(&self, path: &Path) -> Result<()> {
        let v2 = self.v2(path);
        let of = |controller: &str, v1: &str, value: &str, in_v2: &str, value_in_v2: &str| {
            let (file, value) = match self.v1(controller, path) {
                Some(directory) => (directory.join(v1), value),
                None => (v2.join(in_v2), value_in_v2),
            };
            std::fs::write(&file, value).with_context(|| format!("writing {value} to {}", file.display()))
        };
        of("cpu", "cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000")?;
        of("memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864")?;
        of("pids", "pids.max", "77", "pids.max", "77")
    }

    /// What the series of a cgroup must show.
    pub(crate) fn expected(&self, path: &Path) -> Expected {
        let v2 = self.v2(path);
        let mut all = self.cpu(path, &v2);
        all.extend(match self.v1("memory", path) {
            Some(directory) => memory_v1(&directory),
            None => memory_v2(&v2),
        });
        let pids = self.v1("pids", path).unwrap_or_else(|| v2.clone());
        let limit = read(&pids.join("pids.max")).map(|text| text.trim().parse().unwrap_or(0.0));
        let pressure = |file: &str, kind: &str| {
            let text = read(&v2.join(file))?;
            let line = text.lines().find(|line| line.starts_with(kind))?;
            line.rsplit_once("total=")?.1.parse::<f64>().ok().map(|micros| micros / 1e6)
        };
        all.extend([
            ("container_threads", &[][..], number(&pids.join("pids.current"))),
            ("container_threads_max", &[], limit),
            ("container_processes", &[], read(&v2.join("cgroup.procs")).map(|text| text.lines().count() as f64)),
            ("container_pressure_cpu_waiting_seconds_total", &[], pressure("cpu.pressure", "some")),
            ("container_pressure_cpu_stalled_seconds_total", &[], pressure("cpu.pressure", "full")),
            ("container_pressure_memory_waiting_seconds_total", &[], pressure("memory.pressure", "some")),
            ("container_pressure_memory_stalled_seconds_total", &[], pressure("memory.pressure", "full")),
            ("container_pressure_io_waiting_seconds_total", &[], pressure("io.pressure", "some")),
            ("container_pressure_io_stalled_seconds_total", &[], pressure("io.pressure", "full")),
        ]);
        all
    }

    fn cpu(&self, path: &Path, v2: &Path) -> Expected {
        let stat = read(&v2.join("cpu.stat")).unwrap_or_default();
        let micros = |text: &str, key: &str| keyed(text, key).map(|micros| micros / 1e6);
        let usage = self.v1("cpuacct", path).and_then(|directory| number(&directory.join("cpuacct.usage")));
        let usage = usage.map(|nanos| nanos / 1e9).or_else(|| micros(&stat, "usage_usec"));
        let (quota, period, periods) = match self.v1("cpu", path) {
            Some(directory) => (
                number(&directory.join("cpu.cfs_quota_us")).filter(|quota| *quota > 0.0),
                number(&directory.join("cpu.cfs_period_us")),
                read(&directory.join("cpu.stat")).unwrap_or_default(),
            ),
            None => {
                let text = read(&v2.join("cpu.max")).unwrap_or_default();
                let mut words = text.split_whitespace().map(|word| word.parse().ok());
                (words.next().flatten(), words.next().flatten(), stat.clone())
            }
        };
        let with_quota = |value: Option<f64>| value.filter(|_| quota.is_some());
        // v1 tells nanoseconds, of which microseconds are shown.
        let throttled = micros(&periods, "throttled_usec")
            .or_else(|| keyed(&periods, "throttled_time").map(|nanos| (nanos / 1000.0).trunc() / 1e6));
        // v2 has a weight, and the shares that it stands for are shown (`ConvertCPUSharesToCgroupV2Value` of runc, backwards).
        let shares = match self.v1("cpu", path) {
            Some(directory) => number(&directory.join("cpu.shares")),
            None => number(&v2.join("cpu.weight")).map(|weight| 2.0 + ((weight - 1.0) * 262_142.0 / 9_999.0).trunc()),
        };
        let burst = micros(&periods, "burst_usec")
            .or_else(|| keyed(&periods, "burst_time").map(|nanos| (nanos / 1000.0).trunc() / 1e6));
        vec![
            ("container_spec_cpu_shares", &[][..], shares),
            ("container_cpu_cfs_burst_periods_total", &[], with_quota(keyed(&periods, "nr_bursts"))),
            ("container_cpu_cfs_burst_seconds_total", &[], with_quota(burst)),
            ("container_cpu_usage_seconds_total", &[("cpu", "total")], usage),
            ("container_cpu_user_seconds_total", &[], micros(&stat, "user_usec")),
            ("container_cpu_system_seconds_total", &[], micros(&stat, "system_usec")),
            ("container_spec_cpu_quota", &[], quota),
            ("container_spec_cpu_period", &[], period),
            ("container_cpu_cfs_periods_total", &[], with_quota(keyed(&periods, "nr_periods"))),
            ("container_cpu_cfs_throttled_periods_total", &[], with_quota(keyed(&periods, "nr_throttled"))),
            ("container_cpu_cfs_throttled_seconds_total", &[], with_quota(throttled)),
        ]
    }
}

fn memory_v1(directory: &Path) -> Expected {
    let stat = read(&directory.join("memory.stat")).unwrap_or_default();
    let of = |file: &str| number(&directory.join(file));
    let usage = of("memory.usage_in_bytes");
    let inactive = keyed(&stat, "total_inactive_file");
    // No limit is a number near 2^63.
    let limit = |file: &str| of(file).map(|bytes| if bytes > 2f64.powi(62) { 0.0 } else { bytes });
    vec![
        ("container_memory_usage_bytes", &[], usage),
        ("container_memory_working_set_bytes", &[], working_set(usage, inactive)),
        ("container_memory_rss", &[], keyed(&stat, "total_rss")),
        ("container_memory_cache", &[], keyed(&stat, "total_cache")),
        ("container_memory_mapped_file", &[], keyed(&stat, "total_mapped_file")),
        ("container_memory_swap", &[], keyed(&stat, "total_swap")),
        ("container_memory_total_inactive_file_bytes", &[], inactive),
        ("container_memory_total_active_file_bytes", &[], keyed(&stat, "total_active_file")),
        ("container_memory_max_usage_bytes", &[], of("memory.max_usage_in_bytes")),
        ("container_memory_failcnt", &[], of("memory.failcnt")),
        ("container_memory_kernel_usage", &[], of("memory.kmem.usage_in_bytes")),
        ("container_spec_memory_limit_bytes", &[], limit("memory.limit_in_bytes")),
        ("container_spec_memory_swap_limit_bytes", &[], limit("memory.memsw.limit_in_bytes")),
        ("container_spec_memory_reservation_limit_bytes", &[], limit("memory.soft_limit_in_bytes")),
        ("container_memory_failures_total", &FAULTS_BELOW, keyed(&stat, "total_pgfault")),
        ("container_memory_failures_total", &FAULTS_OWN, keyed(&stat, "pgfault")),
        ("container_memory_failures_total", &MAJOR_BELOW, keyed(&stat, "total_pgmajfault")),
        ("container_memory_failures_total", &MAJOR_OWN, keyed(&stat, "pgmajfault")),
        (
            "container_oom_events_total",
            &[],
            keyed(&read(&directory.join("memory.oom_control")).unwrap_or_default(), "oom_kill"),
        ),
    ]
}

fn memory_v2(directory: &Path) -> Expected {
    let stat = read(&directory.join("memory.stat")).unwrap_or_default();
    let events = read(&directory.join("memory.events")).unwrap_or_default();
    let of = |file: &str| number(&directory.join(file));
    let usage = of("memory.current");
    let inactive = keyed(&stat, "inactive_file");
    let limit = |file: &str| read(&directory.join(file)).map(|text| text.trim().parse().unwrap_or(0.0));
    vec![
        ("container_memory_usage_bytes", &[], usage),
        ("container_memory_working_set_bytes", &[], working_set(usage, inactive)),
        ("container_memory_rss", &[], keyed(&stat, "anon")),
        ("container_memory_cache", &[], keyed(&stat, "file")),
        ("container_memory_mapped_file", &[], keyed(&stat, "file_mapped")),
        ("container_memory_swap", &[], of("memory.swap.current")),
        ("container_memory_total_inactive_file_bytes", &[], inactive),
        ("container_memory_total_active_file_bytes", &[], keyed(&stat, "active_file")),
        ("container_memory_max_usage_bytes", &[], of("memory.peak")),
        ("container_memory_failcnt", &[], keyed(&events, "max")),
        ("container_memory_kernel_usage", &[], keyed(&stat, "kernel")),
        ("container_spec_memory_limit_bytes", &[], limit("memory.max")),
        ("container_spec_memory_swap_limit_bytes", &[], limit("memory.swap.max")),
        ("container_spec_memory_reservation_limit_bytes", &[], limit("memory.min")),
        ("container_memory_failures_total", &FAULTS_BELOW, keyed(&stat, "pgfault")),
        ("container_memory_failures_total", &MAJOR_BELOW, keyed(&stat, "pgmajfault")),
        ("container_oom_events_total", &[], keyed(&events, "oom_kill")),
    ]
}

const FAULTS_BELOW: [(&str, &str); 2] = [("failure_type", "pgfault"), ("scope", "hierarchy")];
const MAJOR_BELOW: [(&str, &str); 2] = [("failure_type", "pgmajfault"), ("scope", "hierarchy")];
const MAJOR_OWN: [(&str, &str); 2] = [("failure_type", "pgmajfault"), ("scope", "container")];
const FAULTS_OWN: [(&str, &str); 2] = [("failure_type", "pgfault"), ("scope", "container")];

fn working_set(usage: Option<f64>, inactive: Option<f64>) -> Option<f64> {
    usage.zip(inactive).map(|(usage, inactive)| (usage - inactive).max(0.0))
}

pub(super) fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// A file with one number.
fn number(path: &Path) -> Option<f64> {
    read(path)?.trim().parse().ok()
}

/// The number behind a key at the beginning of a line.
pub(crate) fn keyed(text: &str, key: &str) -> Option<f64> {
    let words = text.lines().map(str::split_whitespace);
    words.into_iter().find_map(|mut words| (words.next() == Some(key)).then(|| words.next()?.parse().ok())?)
}
