//! Pods that come and go.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::PATIENCE;
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, Sizes};
use crate::cgroup;
use crate::pod::{ContainerSpec, Pod, PodSpec};

/// A datagram as a container's very first act.
fn first_datagram(size: u32) -> Command {
    Command::UdpSend {
        to: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9),
        sizes: Sizes::List(vec![size]),
        connected: false,
        pace: Pace::Free,
    }
}

/// Pods one after another under load, each sending one datagram at once: all are counted.
pub fn first_packet(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    // The load: two containers that only use the processor.
    let busy = stage.pod(&agent, "busy", &["one", "two"])?;
    for container in busy.containers() {
        container.start(vec![Command::Burn { cpu_ms: 50 }], Duration::from_millis(50), None)?;
    }
    let count = scale.of(200, 20);
    let names: Vec<String> = (0..count).map(|number| format!("first-{number}")).collect();
    let mut pods = Vec::new();
    for name in &names {
        let container = ContainerSpec::new("c").first(first_datagram(100)).light();
        pods.push(Pod::create(&stage.node, PodSpec::new("cases", name, &[]).container(container))?);
    }
    stage.announce(&std::iter::once(&busy).chain(&pods).collect::<Vec<_>>())?;
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    wait_for_pods(&agent, &known)?;
    let samples = settled(&agent)?;
    for name in &names {
        let labels = [("pod", name.as_str()), ("container", "c"), ("direction", "transmit")];
        let bytes = samples.sum("observer_traffic_bytes_total", &labels);
        let packets = samples.sum("observer_traffic_packets_total", &labels);
        ensure!(
            (bytes, packets) == (128.0, 1.0),
            "{name} sent one datagram of 100 bytes; reported: {bytes} bytes in {packets} packets; the agent's log:\n{}",
            agent.log()
        );
    }
    Ok(())
}

/// A pod that goes shows its final totals once more and then leaves nothing: no series, no slot, no link.
pub fn pods_leave_nothing(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let used = |samples: &crate::samples::Samples| samples.sum("observer_agent_edges_used", &[]);
    let idle = used(&agent.scrape()?);
    let before = links(&stage)?;
    for round in 0..scale.of(10, 3) {
        let name = format!("short-{round}");
        let container = ContainerSpec::new("c").first(first_datagram(1_000));
        let pod = Pod::create(&stage.node, PodSpec::new("cases", &name, &[]).container(container))?;
        stage.announce(&[&pod])?;
        wait_for_pods(&agent, &[&name])?;
        drop(pod);
        let labels = [("pod", name.as_str()), ("direction", "transmit")];
        let deadline = Instant::now() + PATIENCE;
        let mut last = 0.0;
        loop {
            let samples = agent.scrape()?;
            let found: Vec<f64> =
                samples.select("observer_traffic_bytes_total", &labels).map(|sample| sample.value).collect();
            if found.is_empty() {
                break;
            }
            last = found.iter().sum();
            ensure!(Instant::now() < deadline, "the series of {name} are still there after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(last == 1_028.0, "the final total of {name} was {last}; the agent's log:\n{}", agent.log());
    }
    let found = used(&agent.scrape_until(PATIENCE, |samples| used(samples) == idle)?);
    ensure!(found == idle, "{found} edges are used, {idle} were; the agent's log:\n{}", agent.log());
    let deadline = Instant::now() + PATIENCE;
    // The attaching thread may be behind the snapshot that lets edges go.
    loop {
        let left: Vec<String> = links(&stage)?.difference(&before).cloned().collect();
        if left.is_empty() {
            return agent.terminate();
        }
        ensure!(
            Instant::now() < deadline,
            "links are left: {left:?}; cgroups of pods that are there: {:?}; the agent's log:\n{}",
            cgroup::left(),
            agent.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The links that are pinned: `<cgroup id>-<direction>`.
fn links(stage: &Stage) -> Result<BTreeSet<String>> {
    let links = stage.pinned("links");
    let read = std::fs::read_dir(&links).with_context(|| format!("reading {}", links.display()))?;
    read.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
