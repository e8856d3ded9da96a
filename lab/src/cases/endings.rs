//! Containers that end: what they used stays in the counters of their name.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::PATIENCE;
use super::stage::{Scale, Stage};
use crate::actor::Command;
use crate::agent::Agent;
use crate::pod::{ContainerSpec, Pod, PodSpec};
use crate::samples::Samples;

const POD: &str = "endings";
/// CPU time that each container burns, in milliseconds, as its first act.
const BURN_MS: u64 = 200;

fn used(samples: &Samples) -> f64 {
    samples.sum("observer_cpu_usage_seconds_total", &[("pod", POD), ("container", "c")])
}

fn short_container() -> ContainerSpec {
    ContainerSpec::new("c").first(Command::Burn { cpu_ms: BURN_MS })
}

/// Three containers of one name, each gone before anybody scrapes: all that they used is shown, goes on in one
/// counter through a restart of the agent, and is shown once more when the pod goes.
pub fn short_containers(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let mut agent = stage.agent()?;
    let mut pod = stage.pod(&agent, POD, &["stays"])?;
    ensure!(used(&agent.scrape()?) == 0.0, "a container shows CPU time that does not exist yet");
    let mut least = 0.0;
    for round in 1..=3_u32 {
        pod.add_container(&stage.node, &short_container())?;
        stage.announce(&[&pod])?;
        if scale == Scale::Guest {
            // An emulated processor needs a moment until the container is seen.
            std::thread::sleep(Duration::from_millis(500));
        }
        pod.remove_container("c")?;
        least += BURN_MS as f64 / 1e3;
        let samples = agent.scrape_until(PATIENCE, |samples| used(samples) >= least)?;
        let shown = used(&samples);
        let most = f64::from(round) * (BURN_MS as f64 / 1e3 + scale.of(0.15, 2.0));
        ensure!((least..most).contains(&shown), "{shown} s of CPU shown after {round} containers; {}", agent.log());
    }
    let before = used(&agent.scrape()?);
    agent.kill9()?;
    agent = stage.agent()?;
    let after = agent.scrape_until(PATIENCE, |samples| used(samples) >= before)?;
    ensure!(used(&after) == before, "{} s after the agent's restart, {before} s before", used(&after));
    let missed = after.sum("observer_agent_missed_endings_total", &[]);
    ensure!(missed == 0.0, "{missed} endings were missed; {}", agent.log());
    // One more that still runs: the counter goes on.
    pod.add_container(&stage.node, &short_container())?;
    stage.announce(&[&pod])?;
    let more = before + BURN_MS as f64 / 1e3;
    let running = agent.scrape_until(PATIENCE, |samples| used(samples) >= more)?;
    ensure!(used(&running) >= more, "{} s with one more that runs, {more} s at least are true", used(&running));
    drop(pod);
    gone(&agent, used(&running))
}

/// A whole pod that nobody scraped while it lived.
pub fn short_pod(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    agent.scrape()?;
    let pod = Pod::create(&stage.node, PodSpec::new("cases", POD, &[]).container(short_container()))?;
    stage.announce(&[&pod])?;
    std::thread::sleep(Duration::from_millis(scale.of(800, 2_000)));
    drop(pod);
    std::thread::sleep(Duration::from_millis(scale.of(300, 1_000)));
    let least = BURN_MS as f64 / 1e3;
    let shown = used(&agent.scrape_until(PATIENCE, |samples| used(samples) >= least)?);
    ensure!(
        (least..least + scale.of(0.15, 2.0)).contains(&shown),
        "{shown} s of CPU shown of a pod that used {least} s and went; {}",
        agent.log()
    );
    gone(&agent, shown)
}

/// The counter never goes below what it was, and then it is not there any more.
fn gone(agent: &Agent, last: f64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let samples = agent.scrape()?;
        let shown = used(&samples);
        if samples.select("observer_cpu_usage_seconds_total", &[("pod", POD)]).next().is_none() {
            return Ok(());
        }
        ensure!(shown >= last, "the counter went back from {last} to {shown}");
        ensure!(Instant::now() < deadline, "the series are still there after {PATIENCE:?}; {}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
