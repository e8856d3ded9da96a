//! `/metrics/cadvisor` and `/metrics/resource` against the cgroup files themselves.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::PATIENCE;
use super::stage::{Scale, Stage};
use crate::actor::Command;
use crate::agent::Agent;
use crate::kubelet::{self, Files, Subject};
use crate::node::ADDRESS_V4;
use crate::pod::Pod;
use crate::truth::Truth;

const POD: &str = "compatibility";
const NAMESPACE: &str = "cases";
const PINGS: u32 = 7;

/// What the files say of a pod that is frozen is what both endpoints say.
pub fn compatibility(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, POD, &["app", "idle"])?;
    let files = Files::detect()?;
    files.limit(pod.container("app")?.cgroup_path())?;
    pod.container("app")?.run(&Command::Burn { cpu_ms: 200 })?;
    pod.container("app")?.run(&Command::Touch { mib: 8 })?;
    pod.container("app")?.ping(ADDRESS_V4.0.into(), PINGS, 100)?;
    let pause = pod.pause_pid().context("the pod has no pause process")?;
    let sent: u64 = Truth::of_process(pause)?.interfaces.values().map(|of| of.tx_packets).sum();
    ensure!(sent >= PINGS.into(), "{sent} packets sent after {PINGS} echo requests");
    kubelet::compare(&agent, &files, &subjects(&pod)?, pause)?;
    gone(&stage, &agent, pod)
}

/// The series of a pod go with it.
fn gone(stage: &Stage, agent: &Agent, pod: Pod) -> Result<()> {
    drop(pod);
    stage.announce(&[])?;
    let deadline = Instant::now() + PATIENCE;
    for path in [kubelet::CADVISOR, kubelet::RESOURCE] {
        while agent.fetch(path)?.contains(&format!("pod=\"{POD}\"")) {
            ensure!(Instant::now() < deadline, "{path} still shows a pod that is gone");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn subjects(pod: &Pod) -> Result<Vec<Subject>> {
    let subject = |container: &str, image: &str, id: &str, path: &Path| {
        Subject::new((NAMESPACE, POD), container, id, image, path)
    };
    let pause = pod.pause_cgroup().zip(pod.sandbox_id()).context("the pod has no pause container")?;
    // Nobody names the image of the pause container: the pod's status lists the others alone.
    let mut all = vec![subject("", "", "", pod.cgroup().path()), subject("", "", pause.1, pause.0)];
    for container in pod.containers() {
        let image = "localhost/observer-lab:latest";
        all.push(subject(container.name(), image, container.id(), container.cgroup_path()));
    }
    Ok(all)
}
