//! What the agent shows of a container at rest and of the node, held against the files that it is read from.

use anyhow::{Context, Result, ensure};

use crate::agent::Agent;
use crate::cgroup::Version;
use crate::kubelet::{Files, keyed};
use crate::pod::Container;
use crate::samples::Samples;

/// Readings before the files are said to move all the time.
const TRIES: usize = 200;
const MOST_THREADS: u32 = 4321;
/// More than the container uses; a number of whole pages.
const MOST_MEMORY: u64 = 333 << 20;
/// Families of memory, and those of the kubelet that have the same number.
const MEMORY: [(&str, &str); 7] = [
    ("observer_memory_usage_bytes", "container_memory_usage_bytes"),
    ("observer_memory_working_set_bytes", "container_memory_working_set_bytes"),
    (MEMORY_RSS, "container_memory_rss"),
    (MEMORY_CACHE, "container_memory_cache"),
    ("observer_memory_swap_bytes", "container_memory_swap"),
    ("observer_memory_peak_bytes", "container_memory_max_usage_bytes"),
    (MEMORY_LIMIT, "container_spec_memory_limit_bytes"),
];
const MEMORY_RSS: &str = "observer_memory_rss_bytes";
const MEMORY_CACHE: &str = "observer_memory_cache_bytes";
const MEMORY_LIMIT: &str = "observer_memory_limit_bytes";
const THREADS_LIMIT: &str = "observer_threads_limit";

/// A family, its labels beside those of a container, and what the files say; `None` when it must be absent.
type Truth = Vec<(&'static str, Vec<(&'static str, &'static str)>, Option<f64>)>;

/// Memory, limits, faults and pressure of a container that holds memory and does nothing at this moment: without limits,
/// then with them.
pub(super) fn container(agent: &Agent, pod: &str, container: &Container) -> Result<()> {
    compare(agent, pod, container, [(MEMORY_LIMIT, None), (THREADS_LIMIT, None)])?;
    for directory in container.cgroup().directories() {
        let file = directory.join("pids.max");
        if file.exists() {
            std::fs::write(&file, MOST_THREADS.to_string())
                .with_context(|| format!("writing to {}", file.display()))?;
        }
    }
    container.cgroup().limit_memory(MOST_MEMORY)?;
    let limits = [(MEMORY_LIMIT, Some(MOST_MEMORY as f64)), (THREADS_LIMIT, Some(f64::from(MOST_THREADS)))];
    compare(agent, pod, container, limits)
}

/// Holds what is shown against the files, and the files against the limits that were set.
fn compare(agent: &Agent, pod: &str, container: &Container, limits: [(&str, Option<f64>); 2]) -> Result<()> {
    let files = Files::detect()?;
    for _ in 0..TRIES {
        let before = truth(&files, container)?;
        let samples = agent.scrape()?;
        if before != truth(&files, container)? {
            continue;
        }
        for (limit, wanted) in limits {
            let found = before.iter().find(|(family, ..)| *family == limit).and_then(|(.., value)| *value);
            ensure!(found == wanted, "{limit}: the files say {found:?}, {wanted:?} was set");
        }
        for (family, labels, wanted) in before {
            let mut labels = labels;
            labels.extend([("pod", pod), ("container", container.name())]);
            let shown = samples.get(family, &labels);
            ensure!(shown == wanted, "{family} {labels:?}: {shown:?} shown, {wanted:?} in the files");
        }
        return Ok(());
    }
    anyhow::bail!("the files of {} did not stand still for {TRIES} readings", container.name())
}

fn truth(files: &Files, container: &Container) -> Result<Truth> {
    let cgroup = container.cgroup();
    let (memory, stat) = cgroup.read("memory", "memory.stat", "memory.stat")?;
    let v2 = memory == Version::V2;
    let key = |v2_key: &'static str, v1_key: &'static str| if v2 { v2_key } else { v1_key };
    let (_, threads) = cgroup.read("pids", "pids.max", "pids.max")?;
    let faults = keyed(&stat, key("pgfault", "total_pgfault"));
    let major = keyed(&stat, key("pgmajfault", "total_pgmajfault"));
    let minor = faults.zip(major).map(|(all, major)| all - major);
    let (_, events) = cgroup.read("memory", "memory.events", "memory.oom_control")?;
    let max =
        if v2 { keyed(&events, "max") } else { cgroup.read("memory", "", "memory.failcnt")?.1.trim().parse().ok() };
    let of_v2 = |event| keyed(&events, event).filter(|_| v2);
    let mut truth = vec![
        (THREADS_LIMIT, vec![], threads.trim().parse().ok()),
        ("observer_memory_page_faults_total", vec![("type", "minor")], minor),
        ("observer_memory_page_faults_total", vec![("type", "major")], major),
        ("observer_memory_events_total", vec![("event", "high")], of_v2("high")),
        ("observer_memory_events_total", vec![("event", "max")], max),
        ("observer_memory_events_total", vec![("event", "oom")], of_v2("oom")),
        ("observer_memory_events_total", vec![("event", "oom_kill")], keyed(&events, "oom_kill")),
    ];
    ensure!(minor.is_some_and(|minor| minor > 0.0) && max.is_some(), "the files tell nothing: {stat}{events}");
    truth.extend(memory_truth(files, container));
    for family in [MEMORY_RSS, MEMORY_CACHE] {
        let held = truth.iter().any(|(name, _, value)| *name == family && value.is_some_and(|value| value > 0.0));
        ensure!(held, "the files tell nothing that {family} could show: {stat}");
    }
    let directory = cgroup.unified();
    for resource in ["cpu", "memory", "io"] {
        let file = directory.as_ref().map(|directory| directory.join(format!("{resource}.pressure")));
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        for kind in ["some", "full"] {
            let labels = vec![("resource", resource), ("kind", kind)];
            truth.push(("observer_pressure_seconds_total", labels, pressure(&text, kind)));
        }
    }
    Ok(truth)
}

fn memory_truth(files: &Files, container: &Container) -> Truth {
    let expected = files.expected(container.cgroup_path());
    let value = |theirs| expected.iter().find(|(family, ..)| *family == theirs).and_then(|(.., value)| *value);
    let ours = |(family, theirs)| match value(theirs) {
        // The kubelet's families have 0 where there is no limit.
        Some(0.0) if family == MEMORY_LIMIT => (family, vec![], None),
        value => (family, vec![], value),
    };
    MEMORY.into_iter().map(ours).collect()
}

/// Totals of the node do not change, and its counters are between two readings.
pub(super) fn node(agent: &Agent) -> Result<()> {
    let counters = || -> Result<Truth> {
        let stat = read("/proc/stat")?;
        let cpu: Vec<f64> = stat
            .lines()
            .find_map(|line| line.strip_prefix("cpu "))
            .map(|rest| rest.split_whitespace().filter_map(|word| word.parse().ok()).collect())
            .unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        // Those that never go back (proc_stat(5) says it of the others).
        let mut all: Vec<_> = [("user", 0), ("nice", 1), ("system", 2), ("softirq", 6)]
            .into_iter()
            .map(|(mode, at)| ("observer_node_cpu_seconds_total", vec![("mode", mode)], cpu.get(at).map(|t| t / ticks)))
            .collect();
        for resource in ["cpu", "memory", "io"] {
            let text = read(&format!("/proc/pressure/{resource}")).unwrap_or_default();
            for kind in ["some", "full"] {
                let labels = vec![("resource", resource), ("kind", kind)];
                all.push(("observer_node_pressure_seconds_total", labels, pressure(&text, kind)));
            }
        }
        Ok(all)
    };
    let before = counters()?;
    let samples = agent.scrape()?;
    for ((family, labels, least), (.., most)) in before.into_iter().zip(counters()?) {
        let shown = samples.get(family, &labels);
        let right = match (shown, least, most) {
            (Some(shown), Some(least), Some(most)) => (least..=most).contains(&shown),
            (shown, least, _) => shown == least,
        };
        ensure!(right, "{family} {labels:?}: {shown:?} shown, between {least:?} and {most:?}");
    }
    let meminfo = read("/proc/meminfo")?;
    let bytes = |name| keyed(&meminfo, name).map(|kilobytes| kilobytes * 1024.0);
    let boot = keyed(&read("/proc/stat")?, "btime");
    for (family, wanted) in [
        ("observer_node_memory_total_bytes", bytes("MemTotal:")),
        ("observer_node_swap_total_bytes", bytes("SwapTotal:")),
        ("observer_node_boot_time_seconds", boot),
    ] {
        same(&samples, family, wanted)?;
    }
    same(&samples, "observer_node_cpus", Some(cpus()?))
}

/// How many processors are on line.
pub(super) fn cpus() -> Result<f64> {
    let text = read("/proc/stat")?;
    let count = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    Ok(count as f64)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

fn same(samples: &Samples, family: &str, wanted: Option<f64>) -> Result<()> {
    let shown = samples.get(family, &[]);
    ensure!(shown.is_some() && shown == wanted, "{family}: {shown:?} shown, {wanted:?} is true");
    Ok(())
}

/// Seconds of a pressure file.
fn pressure(text: &str, kind: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(kind))?;
    line.rsplit_once("total=")?.1.parse::<f64>().ok().map(|micros| micros / 1e6)
}
