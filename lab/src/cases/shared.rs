//! What the containers of a pod have together.

use anyhow::{Context, Result, ensure};

use super::PATIENCE;
use super::stage::{Scale, Stage};
use crate::actor::Command;
use crate::agent::Agent;
use crate::pod::{Container, Pod};
use crate::samples::Samples;

const POD: &str = "shared";
const SYSV: [(&str, &str); 3] = [("pod", POD), ("container", ""), ("type", "sysv")];

/// System V segments of two containers are added up, to the byte, and nothing of another pod is among them; sockets of the
/// pod are those that its network namespace counts.
pub fn shared(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = Pod::create(&stage.node, crate::pod::PodSpec::new("cases", POD, &["a", "b"]))?;
    let other = Pod::create(&stage.node, crate::pod::PodSpec::new("cases", "other", &["c"]))?;
    stage.announce(&[&pod, &other])?;
    super::stage::wait_for_pods(&agent, &[POD, "other"])?;
    let (a, b) = (pod.container("a")?, pod.container("b")?);
    other.container("c")?.run(&Command::Segment { mib: 1 })?;
    for (container, mib, together) in [(a, 4, 4_u64), (b, 2, 6), (a, 0, 2), (b, 0, 0)] {
        container.run(&Command::Segment { mib })?;
        let shown = agent.scrape()?.get("observer_shared_memory_bytes", &SYSV);
        let wanted = together << 20;
        ensure!(shown == Some(wanted as f64), "{shown:?} bytes of System V shared memory shown, {wanted} are true");
    }
    // Its IPC namespace is its own; its /dev/shm is the node's here, and so not the pod's.
    let posix = agent.scrape()?.get("observer_shared_memory_bytes", &[("pod", POD), ("type", "posix")]);
    ensure!(posix.is_none(), "{posix:?} bytes of the node's /dev/shm are shown as the pod's");
    sockets(&agent, a)
}

fn sockets(agent: &Agent, container: &Container) -> Result<()> {
    let before = settled(agent, container)?;
    container.hold_udp("127.0.0.1:0".parse()?, 4096)?;
    container.hold_udp("127.0.0.1:0".parse()?, 4096)?;
    let after = settled(agent, container)?;
    ensure!(after == before + 2.0, "{after} sockets after {before} and two more");
    Ok(())
}

/// Scrapes until the agent shows as many sockets as the kernel.
fn settled(agent: &Agent, container: &Container) -> Result<f64> {
    let path = format!("/proc/{}/net/sockstat", container.pid());
    let truth = || -> Result<f64> {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let used = text.lines().find_map(|line| line.strip_prefix("sockets: used ")?.trim().parse().ok());
        used.with_context(|| format!("looking for sockets in {path}"))
    };
    let shown = |samples: &Samples| samples.get("observer_sockets", &[("pod", POD), ("container", "")]);
    let wanted = truth()?;
    let samples = agent.scrape_until(PATIENCE, |samples| shown(samples) == Some(wanted))?;
    ensure!(shown(&samples) == Some(wanted), "{:?} sockets shown, {} are true", shown(&samples), truth()?);
    Ok(wanted)
}
