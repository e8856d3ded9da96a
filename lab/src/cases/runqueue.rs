//! Threads that wait for a CPU.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::PATIENCE;
use super::stage::{Scale, Stage};
use crate::actor::Command;
use crate::agent::Agent;
use crate::pod::Container;

const POD: &str = "runqueue";
/// How often it is tried to see every wait by itself.
const ROUNDS: usize = 24;
const FAMILY: &str = "observer_cpu_runqueue_seconds";

/// Two containers burn CPU time on one CPU at the same time: each waits while the other runs. The scheduler's own book
/// of their threads (/proc/<pid>/task/<tid>/schedstat) has the same number of waits, and the same time to the
/// nanosecond: the probe reads the clock that the scheduler reads, at the same tick of it.
pub fn run_queue(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent_with(None, &["--resources.runqueue"])?;
    let pod = stage.pod(&agent, POD, &["one", "two", "idle"])?;
    let containers = [pod.container("one")?, pod.container("two")?, pod.container("idle")?];
    let cpu = std::thread::available_parallelism().context("asking for the number of CPUs")?.get() - 1;
    containers.iter().try_for_each(|container| pin(container, cpu))?;
    // Each runs once and is then seen to have run: the probe has found all of them.
    for container in containers {
        let seen = |agent: &Agent| Ok::<_, anyhow::Error>(Shown::of(agent, container.name())?.waits > 0);
        let deadline = std::time::Instant::now() + PATIENCE;
        while !seen(&agent)? {
            ensure!(std::time::Instant::now() < deadline, "no wait of {} is shown:\n{}", container.name(), agent.log());
            container.run(&Command::Ready)?;
        }
    }
    let mut exact = false;
    for _ in 0..ROUNDS {
        exact = round(&agent, containers, scale)?;
        if exact {
            break;
        }
    }
    ensure!(exact, "in none of {ROUNDS} rounds the scheduler said the same");
    agent.terminate()
}

/// Lets the first two burn. True when all waits are as many and as long as the scheduler says, to the nanosecond.
///
/// Not in every round: a kernel may keep threads of the machine's own out of sight (seen on a virtual machine: perf shows
/// no switch away from them either), and then reports the switch from such a thread to nobody. The wait that ended with
/// that switch is part of the thread's next one, which may come after the round.
fn round(agent: &Agent, containers: [&Container; 3], scale: Scale) -> Result<bool> {
    let before = containers.map(|container| Point::of(agent, container));
    let cpu_ms = scale.of(100, 50);
    let burn = |container: &Container| container.run(&Command::Burn { cpu_ms }).map(|_| ());
    std::thread::scope(|scope| {
        let burns: Vec<_> = containers[..2].iter().map(|container| scope.spawn(|| burn(container))).collect();
        burns.into_iter().try_for_each(|burn| burn.join().map_err(|_| anyhow::anyhow!("a driver's thread panicked"))?)
    })?;
    let mut exact = true;
    for (container, before) in containers.iter().zip(before) {
        let (before, after) = (before?, Point::of(agent, container)?);
        let name = container.name();
        let (true_waits, true_ns) = (after.book.waits - before.book.waits, after.book.ns - before.book.ns);
        let (waits, ns) = (after.shown.waits - before.shown.waits, after.shown.ns - before.shown.ns);
        println!("{name}: {waits} waits, {:.3} ms", ns as f64 / 1e6);
        ensure!(waits <= true_waits, "{name} shows {waits} waits, the scheduler says {true_waits}");
        if (waits, ns) != (true_waits, true_ns) {
            println!("the scheduler says {true_waits} waits of {true_ns} ns, shown are {waits} of {ns} ns");
            exact = false;
        }
        let least = u64::from(name != "idle") * cpu_ms * 1_000_000 / 2;
        ensure!(!exact || ns >= least, "{name} waited for {ns} ns only while the other ran for {cpu_ms} ms");
    }
    Ok(exact)
}

fn pin(container: &Container, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    for (_, thread) in threads(container)? {
        let thread = i32::try_from(thread).ok().and_then(Pid::from_raw);
        sched_setaffinity(thread, &cpus).with_context(|| format!("pinning {} to CPU {cpu}", container.name()))?;
    }
    Ok(())
}

/// Process and thread ids.
fn threads(container: &Container) -> Result<BTreeSet<(u32, u32)>> {
    let mut threads = BTreeSet::new();
    for process in container.cgroup().processes() {
        let path = format!("/proc/{process}/task");
        for entry in fs::read_dir(&path).with_context(|| format!("reading {path}"))? {
            let name = entry?.file_name();
            threads.insert((process, name.to_string_lossy().parse().with_context(|| format!("reading {path}"))?));
        }
    }
    Ok(threads)
}

/// How often and how long was waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shown {
    waits: u64,
    ns: u64,
}

impl Shown {
    /// What the agent shows. The histogram's text is read here: the shared reader leaves histograms out.
    fn of(agent: &Agent, container: &str) -> Result<Self> {
        let text = agent.fetch("/metrics")?;
        let value = |suffix: &str| -> Result<f64> {
            let start = format!("{FAMILY}{suffix}{{");
            let labels = format!("pod=\"{POD}\",container=\"{container}\"");
            let line = text.lines().find(|line| line.starts_with(&start) && line.contains(&labels));
            let Some(line) = line else { return Ok(0.0) };
            line.rsplit(' ').next().and_then(|value| value.parse().ok()).with_context(|| format!("reading {line}"))
        };
        Ok(Self { waits: value("_count")? as u64, ns: (value("_sum")? * 1e9).round() as u64 })
    }

    /// What the scheduler says: "time on the CPU, time in a queue, times it ran" (fs/proc/base.c,
    /// `proc_pid_schedstat`).
    fn of_the_scheduler(container: &Container) -> Result<Self> {
        let mut sum = Self::default();
        for (process, thread) in threads(container)? {
            let path = format!("/proc/{process}/task/{thread}/schedstat");
            let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [_, ns, waits] = numbers[..] else { anyhow::bail!("{path} says {text:?}") };
            sum.ns += ns;
            sum.waits += waits;
        }
        Ok(sum)
    }
}

/// Both, at a moment at which neither moved.
#[derive(Clone, Copy, Debug)]
struct Point {
    book: Shown,
    shown: Shown,
}

impl Point {
    fn of(agent: &Agent, container: &Container) -> Result<Self> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let first = Shown::of_the_scheduler(container)?;
            let shown = Shown::of(agent, container.name())?;
            let book = Shown::of_the_scheduler(container)?;
            if first == book {
                return Ok(Self { book, shown });
            }
            ensure!(std::time::Instant::now() < deadline, "{} does not come to rest", container.name());
        }
    }
}
