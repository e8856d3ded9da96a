//! CPU, memory, processes and block devices of a container.

use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::stage::{Scale, Stage};
use super::{PATIENCE, told};
use crate::actor::Command;
use crate::agent::Agent;
use crate::cgroup::Version;
use crate::loopdev::LoopDevice;
use crate::pod::Container;
use crate::samples::Samples;

/// Processor time that is burned.
const BURNED: f64 = 0.5;
const MIB: f64 = 1024.0 * 1024.0;
/// What one block of the actor's direct I/O has.
const BLOCK: f64 = 64.0 * 1024.0;
const POD: &str = "resources";
const THROTTLED: &str = "observer_cpu_throttled_seconds_total";

fn of(samples: &Samples, name: &str, container: &str) -> f64 {
    samples.sum(name, &[("pod", POD), ("container", container)])
}

/// A container that burns half a second of CPU, touches 256 MiB and lets go of it, and has a thousand children shows
/// just that.
pub fn resources(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, POD, &["busy", "idle"])?;
    let busy = pod.container("busy")?;
    cpu(&agent, busy, scale)?;
    memory(&agent, busy, scale.of(256, 64))?;
    children(&agent, busy, scale.of(1_000, 100))?;
    let samples = agent.scrape()?;
    let started = of(&samples, "observer_container_start_time_seconds", "busy");
    let truth = busy.started().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs_f64();
    ensure!((started - truth).abs() < 5.0, "start time {started} reported, {truth} is true");
    Ok(())
}

fn cpu(agent: &Agent, busy: &Container, scale: Scale) -> Result<()> {
    const CPU: &str = "observer_cpu_usage_seconds_total";
    let before = agent.scrape()?;
    busy.run(&Command::Burn { cpu_ms: 500 })?;
    let after = agent.scrape()?;
    let used = of(&after, CPU, "busy") - of(&before, CPU, "busy");
    // The actor's own work costs too, and far more where the processor is emulated; v1 counts in ticks of 10 ms.
    let most = BURNED + scale.of(0.1, 2.0);
    ensure!((BURNED - 0.03..most).contains(&used), "{used} s of CPU reported, {BURNED} s burned");
    let idle = of(&after, CPU, "idle") - of(&before, CPU, "idle");
    ensure!(idle < 0.1, "{idle} s of CPU reported for a container that did nothing");
    Ok(())
}

fn memory(agent: &Agent, busy: &Container, mib: u32) -> Result<()> {
    const SET: &str = "observer_memory_working_set_bytes";
    let in_use = || -> Result<f64> { Ok(of(&agent.scrape()?, SET, "busy") / MIB) };
    let before = in_use()?;
    busy.run(&Command::Touch { mib })?;
    let held = in_use()? - before;
    let wanted = f64::from(mib);
    // Page tables and what the kernel charges in advance (64 pages for each CPU, `MEMCG_CHARGE_BATCH`).
    ensure!((wanted - 1.0..wanted + 16.0).contains(&held), "{held} MiB reported, {wanted} MiB touched");
    busy.run(&Command::Touch { mib: 0 })?;
    let left = in_use()? - before;
    ensure!(left < 16.0, "{left} MiB are left of {wanted} MiB that were released");
    let samples = agent.scrape()?;
    let peak = samples.select("observer_memory_peak_bytes", &[("pod", POD), ("container", "busy")]).next();
    // cgroup v2 tells no peak before kernel 5.19.
    if let Some(peak) = peak {
        ensure!(peak.value / MIB >= wanted, "the peak is {} MiB, {wanted} MiB were in use", peak.value / MIB);
    }
    Ok(())
}

fn children(agent: &Agent, busy: &Container, count: u32) -> Result<()> {
    let processes = || -> Result<f64> { Ok(of(&agent.scrape()?, "observer_processes", "busy")) };
    let threads = || -> Result<f64> { Ok(of(&agent.scrape()?, "observer_threads", "busy")) };
    let (before, threads_before) = (processes()?, threads()?);
    ensure!(before >= 1.0, "no process in a container that runs");
    busy.run(&Command::Fork { count })?;
    let (all, threads_now) = (processes()? - before, threads()? - threads_before);
    let wanted = f64::from(count);
    ensure!((all, threads_now) == (wanted, wanted), "{all} processes and {threads_now} threads more, {wanted} forked");
    busy.run(&Command::Fork { count: 0 })?;
    // A process that was waited for leaves its cgroup a moment later, when the kernel frees it.
    let after = agent.scrape_until(PATIENCE, |samples| of(samples, "observer_threads", "busy") == threads_before)?;
    let left = (of(&after, "observer_processes", "busy"), of(&after, "observer_threads", "busy"));
    ensure!(left == (before, threads_before), "{left:?} processes and threads are left of {before}, {threads_before}");
    Ok(())
}

/// What half a second of CPU takes at half a CPU, less what the first period may give: its own quota and the next one's.
const LEAST_BURNING: Duration = Duration::from_millis(800);
/// The least that is waited for the quota, of nearly as much time again.
const LEAST_HELD_BACK: f64 = 0.3;
/// Who waits for a processor that others use is not held back; so it may take several times until that is reached.
const BURNS: usize = 10;

/// A container held to half a CPU shows how it was held back, as its cgroup and the clock say; at rest, everything else
/// too.
pub fn throttling(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, POD, &["held"])?;
    let held = pod.container("held")?;
    let began = Instant::now();
    held.cgroup().limit_cpu(0.5)?;
    let mut samples = Samples::default();
    for _ in 0..BURNS {
        let burning = Instant::now();
        held.run(&Command::Burn { cpu_ms: 500 })?;
        ensure!(burning.elapsed() >= LEAST_BURNING, "half a second burned in {:?}", burning.elapsed());
        // Whoever burned now waits for a command: nothing moves between the two readings, once the period is over.
        std::thread::sleep(Duration::from_millis(250));
        samples = agent.scrape()?;
        if of(&samples, THROTTLED, "held") > LEAST_HELD_BACK {
            break;
        }
    }
    // On each processor by itself.
    let most_held_back = began.elapsed().as_secs_f64() * told::cpus()?;
    let (version, text) = held.cgroup().read("cpu", "cpu.stat", "cpu.stat")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).with_context(|| format!("no {name} in {text}"))
    };
    let throttled = match version {
        Version::V2 => field("throttled_usec")? / 1e6,
        Version::V1 => (field("throttled_time")? / 1e3).floor() / 1e6,
    };
    let reported = |name| of(&samples, name, "held");
    ensure!(reported("observer_cpu_limit_cores") == 0.5, "the limit is {}", reported("observer_cpu_limit_cores"));
    let (periods, held_back) = (reported("observer_cpu_throttled_periods_total"), reported(THROTTLED));
    ensure!(periods > 0.0 && periods == field("nr_throttled")?, "{periods} throttled periods reported; {text}");
    ensure!((held_back - throttled).abs() < 1e-6, "{held_back} s throttled reported; {text}");
    ensure!(
        held_back > LEAST_HELD_BACK && held_back <= most_held_back,
        "{held_back} s throttled reported, by the clock {LEAST_HELD_BACK} to {most_held_back}"
    );
    ensure!(reported("observer_cpu_periods_total") >= periods, "less periods than throttled ones");
    // Anonymous memory, and shared memory, which is file cache.
    held.run(&Command::Touch { mib: 8 })?;
    held.run(&Command::Segment { mib: 4 })?;
    told::container(&agent, POD, held)?;
    told::node(&agent)
}

/// What a container reads from and writes to a block device is counted to the byte.
pub fn block_device(scale: Scale, edges: Option<u32>) -> Result<()> {
    let blocks = scale.of(256_u32, 16);
    let Some(device) = LoopDevice::create(u64::from(blocks) * BLOCK as u64)? else {
        println!("not tested: this kernel has no loop devices");
        return Ok(());
    };
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, POD, &["writer"])?;
    let writer = pod.container("writer")?;
    writer.cgroup().count_device(&device.number()?)?;
    writer.run(&Command::DiskWrite { path: device.path().to_owned(), blocks })?;
    writer.run(&Command::DiskRead { path: device.path().to_owned(), blocks: blocks / 2 })?;
    let samples = agent.scrape()?;
    let cadvisor = Samples::parse(&agent.fetch("/metrics/cadvisor")?)?;
    for (operation, blocks) in [("write", blocks), ("read", blocks / 2)] {
        let labels = [("pod", POD), ("container", "writer"), ("device", device.name()), ("operation", operation)];
        let bytes = samples.sum("observer_io_bytes_total", &labels);
        let wanted = f64::from(blocks) * BLOCK;
        ensure!(bytes == wanted, "{operation}: {bytes} bytes reported, {wanted} are true");
        let theirs = if operation == "write" { "writes" } else { "reads" };
        let device = format!("/dev/{}", device.name());
        let labels_there = [("pod", POD), ("container", "writer"), ("device", device.as_str())];
        let bytes = cadvisor.get(&format!("container_fs_{theirs}_bytes_total"), &labels_there);
        ensure!(bytes == Some(wanted), "{operation}: {bytes:?} bytes at /metrics/cadvisor, {wanted} are true");
        let operations = samples.sum("observer_io_operations_total", &labels);
        ensure!(operations >= f64::from(blocks), "{operation}: {operations} operations for {blocks} blocks");
    }
    Ok(())
}
