//! What is not selected is not observed, and what is selected is observed as if all were.

mod hooks;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hooks::Programs;

use super::PATIENCE;
use super::count::{Counted, check_udp};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::agent::Agent;
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;

/// Of these rules each leaves one of the pods out.
const RULES: [&str; 8] = [
    "--pods.namespaces",
    "cases,hidden",
    "--pods.exclude-namespaces",
    "hidden",
    "--pods.selector",
    "observe notin (no),tier",
    "--pods.annotation-selector",
    "!skip",
];
const SEEN: &str = "seen";
const LATE: &str = "late";

/// Pods that an agent counted before it was told otherwise, pods that are left out by namespace, label and annotation,
/// and one whose name comes late.
pub fn selection(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = |spec: PodSpec| Pod::create(&stage.node, spec.label("tier", "t"));
    let seen = pod(PodSpec::new("cases", SEEN, &["c"]).label("observe", "yes"))?;
    let left_out = [
        pod(PodSpec::new("hidden", "by-exclusion", &["c"]))?,
        pod(PodSpec::new("elsewhere", "by-namespace", &["c"]))?,
        pod(PodSpec::new("cases", "by-label", &["c"]).label("observe", "no"))?,
        pod(PodSpec::new("cases", "by-annotation", &["c"]).annotation("skip", "yes"))?,
        Pod::create(&stage.node, PodSpec::new("cases", "by-absence", &["c"]))?,
    ];
    left_out.iter().try_for_each(|pod| seen.introduce(pod))?;
    let all: Vec<&Pod> = left_out.iter().chain([&seen]).collect();
    stage.announce(&all)?;
    wait_for_pods(&agent, &all.iter().map(|pod| pod.spec().name.as_str()).collect::<Vec<_>>())?;
    left_out.iter().try_for_each(|pod| talk(pod, &seen, 1))?;
    settled(&agent)?;
    let mut programs = Programs::default();
    all.iter().try_for_each(|pod| programs.expect(&stage, pod))?;
    agent.kill9()?;

    let agent = stage.agent_with(None, &RULES)?;
    wait_for_pods(&agent, &[SEEN])?;
    let before = forgotten(&agent, &stage, &programs, &left_out)?;
    for pod in &left_out {
        talk(pod, &seen, 10)?;
        talk(&seen, pod, 10)?;
    }
    let after = settled(&agent)?;
    programs.expect(&stage, &seen)?;
    check_left_out(&after, &stage, &programs, &left_out)?;
    let counted = Counted { before: &before, after: &after };
    let number = left_out.len() as u64;
    for direction in ["transmit", "receive"] {
        // What one asked, and what it answered to the others.
        check_udp(direction, counted.pod(SEEN, direction), 20 * number, 2_000 * number, IpAddr::V4(seen.ipv4()))?;
    }
    if edges.is_none() {
        // Their names are not compared: pods of other nodes on this machine may have the same addresses.
        let peers = [("pod", SEEN), ("peer_kind", "pod"), ("direction", "receive")];
        let address = IpAddr::V4(seen.ipv4());
        check_udp("from those that are left out", counted.of(&peers), 20 * number, 2_000 * number, address)?;
    }
    late(&stage, &agent, &mut programs, &all)?;
    agent.terminate()
}

/// A pod that nobody names in time is not attached to, because its namespace is none of those that are selected. When it
/// has a name, it is, and its connections are followed that were there before.
fn late(stage: &Stage, agent: &Agent, programs: &mut Programs, others: &[&Pod]) -> Result<()> {
    let late = Pod::create(&stage.node, PodSpec::new("cases", LATE, &["c"]).label("tier", "t"))?;
    let to = late.container("c")?.serve_tcp(SocketAddr::from((late.ipv4(), 0)), ServeMode::Echo)?;
    let connection = late.container("c")?.open_tcp(to)?.0;
    std::thread::sleep(Duration::from_millis(2_500));
    settled(agent)?;
    programs.expect_none(stage, &late)?;
    stage.announce(&others.iter().copied().chain([&late]).collect::<Vec<_>>())?;
    wait_for_pods(agent, &[LATE])?;
    programs.expect(stage, &late)?;
    expect_active(agent, 2.0)?;
    late.container("c")?.traffic(&Command::TcpClose { connection })?;
    expect_active(agent, 0.0)?;
    let before = settled(agent)?;
    talk(&late, &late, 10)?;
    let after = settled(agent)?;
    let counted = Counted { before: &before, after: &after };
    // To itself: what was sent and what was echoed, each of them once in each direction.
    check_udp("with a late name", counted.sent(LATE, "c"), 20, 2_000, IpAddr::V4(late.ipv4()))
}

/// So many ends of a connection live in the pod that comes late, which nobody has seen begin.
fn expect_active(agent: &Agent, expected: f64) -> Result<()> {
    let read = |samples: &Samples| {
        ["observer_tcp_connections_active", "observer_tcp_connections_opened_total"]
            .map(|family| samples.sum(family, &[("pod", LATE)]))
    };
    let samples = agent.scrape_until(PATIENCE, |samples| read(samples) == [expected, 0.0])?;
    let found = read(&samples);
    ensure!(found == [expected, 0.0], "active and opened with a late name are {found:?}, {expected} live");
    Ok(())
}

/// So many datagrams of 100 bytes from one pod to another, each of them echoed.
fn talk(from: &Pod, to: &Pod, count: usize) -> Result<()> {
    let server = to.container("c")?.serve_udp(SocketAddr::from((to.ipv4(), 0)), true)?;
    let sizes = Sizes::List(vec![100; count]);
    let command = Command::UdpSend { to: server, sizes, connected: false, pace: Pace::Echoed { window: 1 } };
    from.container("c")?.traffic(&command).map(drop)
}

/// Waits until what an earlier agent has counted for pods that are left out now is given back.
fn forgotten(agent: &Agent, stage: &Stage, programs: &Programs, pods: &[Pod]) -> Result<Samples> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let samples = settled(agent)?;
        match check_left_out(&samples, stage, programs, pods) {
            Ok(()) => return Ok(samples),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("the agent's log:\n{}", agent.log())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// No program, no series, and nothing counted that waits for an owner.
fn check_left_out(samples: &Samples, stage: &Stage, programs: &Programs, pods: &[Pod]) -> Result<()> {
    for pod in pods {
        let name = pod.spec().name.as_str();
        programs.expect_none(stage, pod)?;
        let series = samples.iter().find(|sample| sample.label("pod") == name);
        ensure!(series.is_none(), "a series of {name}: {series:?}");
    }
    for family in ["observer_agent_pending_packets", "observer_agent_unattributed_packets_total"] {
        let packets = samples.sum(family, &[]);
        ensure!(packets == 0.0, "{family} is {packets}");
    }
    Ok(())
}
