//! Processes that the kernel kills for want of memory.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::PATIENCE;
use super::stage::{Scale, Stage};
use crate::actor::Command;
use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::pod::{Container, ContainerSpec, Pod};
use crate::process;
use crate::samples::Samples;

const POD: &str = "oom";
const FAMILY: &str = "observer_oom_kills_total";
/// The limit, and what is touched within it.
const LIMIT: u64 = 32 << 20;
const TOUCHED: u32 = 96;

/// Three processes of one container are killed: one in its first life; one in its second, while no agent runs; one in
/// its third, in a cgroup below the container's. The series says 1, 2, 3. Who ends by another's SIGKILL is not counted.
pub fn oom_kills(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let mut agent = stage.agent()?;
    let mut pod = stage.pod(&agent, POD, &["app", "other", "ended"])?;
    for container in ["app", "other", "ended"] {
        wait_for(&agent, container, 0)?;
    }
    first_life(&agent, pod.container("app")?, pod.container("other")?)?;
    start_again(&stage, &agent, &mut pod)?;
    wait_for(&agent, "app", 1)?;
    agent.kill9()?;
    starve(pod.container("app")?, None)?;
    // The cgroup goes too: only its name is left for the next agent.
    pod.remove_container("app")?;
    agent = stage.agent()?;
    wait_for(&agent, "app", 2)?;

    pod.add_container(&stage.node, &ContainerSpec::new("app"))?;
    stage.announce(&[&pod])?;
    wait_for_life(&agent, &pod)?;
    let app = pod.container("app")?;
    let below = Cgroup::create(stage.node.hierarchies(), &app.cgroup_path().join("below"))?;
    below.take_in(app.pid())?;
    starve(app, Some(&below))?;
    wait_for(&agent, "app", 3)?;
    drop(below);

    process::kill(pod.container("ended")?.pid())?;
    let after = start_again_named(&stage, &agent, &mut pod, "ended")?;
    for (container, kills) in [("ended", 0.0), ("other", 0.0), ("app", 3.0)] {
        let shown = value(&after, container);
        ensure!(shown == Some(kills), "{container} shows {shown:?} kills, {kills} is true");
    }
    let lost = after.sum("observer_agent_kernel_losses_total", &[("reason", "oom_table_full")]);
    ensure!(lost == 0.0, "{lost} kills found no place");

    drop(pod);
    let gone = agent.scrape_until(PATIENCE, |samples| value(samples, "app").is_none())?;
    ensure!(gone.select(FAMILY, &[("pod", POD)]).next().is_none(), "the series stays when the pod is gone");
    agent.terminate()
}

/// A kill in a container that lives on: in the series, in the log, and in what cAdvisor shows of the cgroup.
///
/// Meanwhile it has a process of another container, which is smaller than who wants more, so that it is not the one that is
/// killed.
fn first_life(agent: &Agent, app: &Container, guest: &Container) -> Result<()> {
    let comm = format!("/proc/{}/comm", app.pid());
    let command = std::fs::read_to_string(&comm).with_context(|| format!("reading {comm}"))?;
    app.cgroup().take_in(guest.pid())?;
    starve(app, None)?;
    wait_for(agent, "app", 1)?;

    let words =
        ["want of memory", "container=app", &format!("command={:?}", command.trim()), &format!("pid={} ", app.pid())];
    let deadline = Instant::now() + PATIENCE;
    let line = loop {
        let log = agent.log();
        if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
            break line.to_owned();
        }
        ensure!(Instant::now() < deadline, "no line with {words:?} in the agent's log:\n{log}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let peak = line.split("peak_bytes=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let peak = peak.with_context(|| format!("no memory is told: {line}"))?;
    // It got no further than its limit, but for pages that its program's file has already.
    ensure!((LIMIT / 2..u64::from(TOUCHED) << 20).contains(&peak), "{peak} bytes with a limit of {LIMIT}: {line}");

    let shown = Samples::parse(&agent.fetch("/metrics/cadvisor")?)?;
    let kills = shown.get("container_oom_events_total", &[("pod", POD), ("container", "app")]);
    ensure!(kills == Some(1.0), "container_oom_events_total is {kills:?} after one kill");
    guest.cgroup().take_in(guest.pid())
}

/// Lets the container want more than it may have, and makes sure that the kernel says the same of its end.
fn starve(container: &Container, below: Option<&Cgroup>) -> Result<()> {
    container.cgroup().limit_memory(LIMIT)?;
    // v1 counts in the cgroup of the process alone; v2 in those above it too, and this one may have no such file there.
    let counted = below.filter(|below| below.oom_kills().is_ok()).unwrap_or(container.cgroup());
    let before = counted.oom_kills()?;
    if container.run(&Command::Touch { mib: TOUCHED }).is_ok() {
        bail!("{} holds {TOUCHED} MiB with a limit of {LIMIT} bytes", container.name());
    }
    // The answer ends with the process, and the count stands before that.
    let kills = counted.oom_kills()? - before;
    ensure!(kills == 1, "the kernel says that it killed {kills} processes of {}", container.name());
    Ok(())
}

fn start_again(stage: &Stage, agent: &Agent, pod: &mut Pod) -> Result<()> {
    start_again_named(stage, agent, pod, "app").map(|_| ())
}

/// The container again, under a new cgroup, once the agent knows it.
fn start_again_named(stage: &Stage, agent: &Agent, pod: &mut Pod, name: &str) -> Result<Samples> {
    pod.remove_container(name)?;
    pod.add_container(&stage.node, &ContainerSpec::new(name))?;
    stage.announce(&[pod])?;
    wait_for_named(agent, pod, name)
}

fn wait_for_life(agent: &Agent, pod: &Pod) -> Result<()> {
    wait_for_named(agent, pod, "app").map(|_| ())
}

/// Waits until the agent shows a process of this life of the container.
fn wait_for_named(agent: &Agent, pod: &Pod, name: &str) -> Result<Samples> {
    let started = pod.container(name)?.started();
    let since = started.duration_since(std::time::UNIX_EPOCH).context("the clock is before 1970")?.as_secs_f64();
    let labels = [("pod", POD), ("container", name)];
    let alive = |samples: &Samples| {
        // In steps of a clock tick, and the boot time is told in whole seconds.
        samples.select("observer_container_start_time_seconds", &labels).any(|sample| sample.value > since - 1.5)
            && samples.sum("observer_processes", &labels) >= 1.0
    };
    let samples = agent.scrape_until(PATIENCE, alive)?;
    ensure!(alive(&samples), "the agent does not show the new {name}; its log:\n{}", agent.log());
    Ok(samples)
}

/// Scrapes until the container shows so many kills. It may never show more, and never fewer than it did.
fn wait_for(agent: &Agent, container: &str, kills: u32) -> Result<()> {
    let wanted = f64::from(kills);
    let deadline = Instant::now() + PATIENCE;
    let mut last = wanted - 1.0;
    loop {
        let shown = value(&agent.scrape()?, container);
        if shown == Some(wanted) {
            return Ok(());
        }
        if let Some(shown) = shown {
            ensure!(shown >= last && shown < wanted, "{container} shows {shown} kills after {last}, {wanted} is true");
            last = shown;
        }
        ensure!(
            Instant::now() < deadline,
            "{container} shows {shown:?} kills, {wanted} is true; the agent's log:\n{}",
            agent.log()
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn value(samples: &Samples, container: &str) -> Option<f64> {
    let labels = [("pod", POD), ("container", container)];
    samples.select(FAMILY, &labels).next().map(|sample| sample.value)
}
