//! CPU, memory and processes of a container.

use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};

use super::stage::{Scale, Stage};
use crate::actor::Command;
use crate::samples::Samples;

/// Processor time that is burned.
const BURNED: f64 = 0.5;
/// Memory that is touched, in MiB.
const TOUCHED: u32 = 64;
const MIB: f64 = 1024.0 * 1024.0;

/// A container that burns half a second of CPU and touches 64 MiB shows just that.
pub fn resources(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, "resources", &["busy", "idle"])?;
    let busy = pod.container("busy")?;
    let of = |samples: &Samples, name: &str, container: &str| {
        samples.sum(name, &[("pod", "resources"), ("container", container)])
    };
    let before = agent.scrape()?;
    busy.run(&Command::Burn { cpu_ms: 500 })?;
    busy.run(&Command::Touch { mib: TOUCHED })?;
    let after = agent.scrape()?;
    let difference = |name, container| of(&after, name, container) - of(&before, name, container);

    let cpu = difference("observer_cpu_usage_seconds_total", "busy");
    // Touching costs CPU too, and far more where the processor is emulated; v1 counts in ticks of 10 ms.
    let most = BURNED + scale.of(0.3, 3.0);
    ensure!((BURNED - 0.03..most).contains(&cpu), "{cpu} s of CPU reported, {BURNED} s burned");
    let idle = difference("observer_cpu_usage_seconds_total", "idle");
    ensure!(idle < 0.1, "{idle} s of CPU reported for a container that did nothing");

    let memory = difference("observer_memory_working_set_bytes", "busy") / MIB;
    let wanted = f64::from(TOUCHED);
    ensure!((wanted - 1.0..wanted + 16.0).contains(&memory), "{memory} MiB reported, {wanted} MiB touched");
    ensure!(of(&after, "observer_processes", "busy") >= 1.0, "no process in a container that runs");

    let started = of(&after, "observer_container_start_time_seconds", "busy");
    let truth = busy.started().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs_f64();
    ensure!((started - truth).abs() < 5.0, "start time {started} reported, {truth} is true");
    Ok(())
}
