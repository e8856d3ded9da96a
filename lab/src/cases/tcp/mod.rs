//! How well TCP works: what goes wrong is made to, a known number of times, and compared with what the kernel counted in
//! the pods' namespaces and says of each socket.

mod crossed;
mod failures;
mod hasty;
mod known;
mod lives;
mod older;
mod opened;
mod retransmissions;
mod roles;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail, ensure};

use super::seen::{Seen, until_all_seen};
use super::stage::{Stage, settled, wait_for_pods};
use super::ways::{CLIENT, HERE, SERVER, THERE, Way};
use super::{PATIENCE, kernel_older_than};
use crate::actor::{Answer, Command, Fault, TcpState};
use crate::agent::Agent;
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::Truth;

pub(super) use crossed::{crossed, tcp_crossed};
pub(super) use failures::tcp_failures;
pub(super) use hasty::tcp_hasty;
pub(super) use known::tcp_known_times;
pub(super) use lives::{tcp_active, tcp_times};
pub(super) use older::{tcp_older, tcp_older_events};
pub(super) use opened::tcp_opened;
pub(super) use retransmissions::{tcp_resets, tcp_retransmissions};
pub(super) use roles::older_roles;

struct Scene {
    stage: Stage,
    here: Pod,
    there: Pod,
}

impl Scene {
    fn new(edges: Option<u32>) -> Result<Self> {
        let stage = Stage::new(edges)?;
        let here = Pod::create(&stage.node, PodSpec::new("cases", HERE, &[CLIENT, SERVER]))?;
        let there = Pod::create(&stage.node, PodSpec::new("cases", THERE, &[SERVER]))?;
        here.introduce(&there)?;
        stage.announce(&[&here, &there])?;
        Ok(Self { stage, here, there })
    }

    fn agent(&self) -> Result<Agent> {
        let agent = self.stage.agent()?;
        wait_for_pods(&agent, &[HERE, THERE])?;
        let samples = agent.scrape()?;
        let state = samples.get("observer_agent_probe_state", &[("probe", "tcp"), ("state", "ok")]);
        ensure!(state == Some(1.0), "the probe does not run; the agent's log:\n{}", agent.log());
        self.stage.fill_table(&self.here, CLIENT)?;
        Ok(agent)
    }

    /// Over IPv4 and IPv6, between pods and over loopback.
    fn ways(&self) -> Result<Vec<Way<'_>>> {
        let (here, there) = (&self.here, &self.there);
        Ok(vec![
            Way::far(here, there, there.ipv4())?,
            Way::far(here, there, there.ipv6())?,
            Way::near(here, Ipv4Addr::LOCALHOST)?,
            Way::near(here, Ipv6Addr::LOCALHOST)?,
        ])
    }

    /// The counters of both namespaces.
    fn truths(&self) -> Result<[Truth; 2]> {
        Ok([
            Truth::of_process(self.here.container(CLIENT)?.pid())?,
            Truth::of_process(self.there.container(SERVER)?.pid())?,
        ])
    }

    /// The labels that the series of the client's end, or of the server's, have: all of them, but where the table is too
    /// small to tell peers apart, or where no port is told.
    fn labels<'a>(&self, way: &Way<'_>, client: bool, port: Option<&'a str>) -> Vec<(&'static str, &'a str)> {
        match port {
            Some(port) if !self.stage.has_small_table() => way.labels(client, port),
            _ => {
                let (pod, container) = way.end(client);
                vec![("pod", pod), ("container", container)]
            }
        }
    }

    /// What of the client's, or the server's, was added between two scrapes.
    fn added(
        &self,
        way: &Way<'_>,
        client: bool,
        port: Option<u16>,
        (name, more): (&str, &[(&str, &str)]),
        [before, after]: [&Samples; 2],
    ) -> u64 {
        let port = port.map(|port| port.to_string());
        let labels = [&self.labels(way, client, port.as_deref())[..], more].concat();
        // Counters below 2^53 are exact in a float.
        (after.sum(name, &labels) - before.sum(name, &labels)) as u64
    }
}

impl Way<'_> {
    fn listen(&self) -> Result<(u64, SocketAddr)> {
        opened(self.server, Fault::Listen { address: self.any_port(), backlog: BACKLOG, defer_s: 0 })
    }
}

/// Room for all connections of a case.
const BACKLOG: u32 = 4096;

pub(super) fn opened(container: &Container, fault: Fault) -> Result<(u64, SocketAddr)> {
    match container.run(&Command::Fault(fault))? {
        Answer::Opened { connection, local } => Ok((connection, local)),
        other => bail!("the answer was {other:?}"),
    }
}

pub(super) fn accept(container: &Container, listener: u64) -> Result<u64> {
    opened(container, Fault::Accept { listener }).map(|(connection, _)| connection)
}

fn state(container: &Container, fault: Fault) -> Result<TcpState> {
    match container.run(&Command::Fault(fault))? {
        Answer::Tcp(state) => Ok(state),
        other => bail!("the answer was {other:?}"),
    }
}

/// Scrapes until nothing is on its way, and checks that nothing was lost.
fn quiet(scene: &Scene, agent: &Agent) -> Result<Samples> {
    let samples = settled(agent)?;
    let losses = |reason| samples.get("observer_agent_kernel_losses_total", &[("reason", reason)]);
    let full = losses("connections_full");
    ensure!(full == Some(0.0), "{full:?} connections found no place");
    // From this kernel on it is told.
    let missed = (!kernel_older_than(5, 12)).then_some(0.0);
    let found = losses("tcp_missed");
    ensure!(found == missed, "events that the kernel passed over, and counted: {found:?}, expected {missed:?}");
    scene.stage.check_overflow(&samples)?;
    Ok(samples)
}

/// A counter of the namespace that a process is in.
fn count(pid: u32, name: &str) -> Result<i64> {
    let mut text = String::new();
    for file in ["snmp", "netstat"] {
        text += &std::fs::read_to_string(format!("/proc/{pid}/net/{file}"))?;
    }
    Ok(crate::truth::counter(&text, name))
}

/// Waits until a counter of a namespace has grown by so many.
///
/// The kernel waits twice as long before each further try, so on a slow machine the next one may be half a minute away.
fn wait_for_count(pid: u32, name: &str, from: i64, more: i64) -> Result<()> {
    let deadline = std::time::Instant::now() + 2 * PATIENCE;
    loop {
        let now = count(pid, name)?;
        if now >= from + more {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "{name} stays at {now}, {more} more than {from} were expected");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
