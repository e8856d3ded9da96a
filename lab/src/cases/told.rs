//! What the agent shows of a container at rest and of the node, held against the files that it is read from.

use anyhow::{Context, Result, ensure};

use crate::agent::Agent;
use crate::cgroup::Version;
use crate::pod::Container;
use crate::samples::Samples;

/// Readings before the files are said to move all the time.
const TRIES: usize = 200;
const MOST_THREADS: &str = "4321";

/// A family, its labels beside those of a container, and what the files say; `None` when it must be absent.
type Truth = Vec<(&'static str, Vec<(&'static str, &'static str)>, Option<f64>)>;

/// Limits, faults, pressure and events of memory of a container that does nothing at this moment.
pub(super) fn container(agent: &Agent, pod: &str, container: &Container) -> Result<()> {
    for directory in container.cgroup().directories() {
        let file = directory.join("pids.max");
        if file.exists() {
            std::fs::write(&file, MOST_THREADS).with_context(|| format!("writing to {}", file.display()))?;
        }
    }
    for _ in 0..TRIES {
        let before = truth(container)?;
        let samples = agent.scrape()?;
        if before != truth(container)? {
            continue;
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

fn truth(container: &Container) -> Result<Truth> {
    let cgroup = container.cgroup();
    let (memory, stat) = cgroup.read("memory", "memory.stat", "memory.stat")?;
    let v2 = memory == Version::V2;
    let key = |v2_key: &'static str, v1_key: &'static str| if v2 { v2_key } else { v1_key };
    let (_, threads) = cgroup.read("pids", "pids.max", "pids.max")?;
    ensure!(threads.trim() == MOST_THREADS, "the limit of threads is {threads}");
    let faults = keyed(&stat, key("pgfault", "total_pgfault"));
    let major = keyed(&stat, key("pgmajfault", "total_pgmajfault"));
    let minor = faults.zip(major).map(|(all, major)| all - major);
    let (_, events) = cgroup.read("memory", "memory.events", "memory.oom_control")?;
    let max =
        if v2 { keyed(&events, "max") } else { cgroup.read("memory", "", "memory.failcnt")?.1.trim().parse().ok() };
    let of_v2 = |event| keyed(&events, event).filter(|_| v2);
    let mut truth = vec![
        ("observer_threads_limit", vec![], threads.trim().parse().ok()),
        ("observer_memory_page_faults_total", vec![("type", "minor")], minor),
        ("observer_memory_page_faults_total", vec![("type", "major")], major),
        ("observer_memory_events_total", vec![("event", "high")], of_v2("high")),
        ("observer_memory_events_total", vec![("event", "max")], max),
        ("observer_memory_events_total", vec![("event", "oom")], of_v2("oom")),
        ("observer_memory_events_total", vec![("event", "oom_kill")], keyed(&events, "oom_kill")),
    ];
    ensure!(minor.is_some_and(|minor| minor > 0.0) && max.is_some(), "the files tell nothing: {stat}{events}");
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

/// Totals of the node do not change, and its counters are between two readings.
pub(super) fn node(agent: &Agent) -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("reading {path}"));
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
    let text = read("/proc/stat")?;
    let count = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    same(&samples, "observer_node_cpus", Some(count as f64))
}

fn same(samples: &Samples, family: &str, wanted: Option<f64>) -> Result<()> {
    let shown = samples.get(family, &[]);
    ensure!(shown.is_some() && shown == wanted, "{family}: {shown:?} shown, {wanted:?} is true");
    Ok(())
}

/// The number behind a key at the beginning of a line.
fn keyed(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
    })
}

/// Seconds of a pressure file.
fn pressure(text: &str, kind: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(kind))?;
    line.rsplit_once("total=")?.1.parse::<f64>().ok().map(|micros| micros / 1e6)
}
