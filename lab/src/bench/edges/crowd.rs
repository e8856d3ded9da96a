//! A client and a server, and how much they say to each other.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Size;
use crate::actor::{Command, Pace, ServeMode, Sizes, Traffic};
use crate::agent::{Agent, AgentOptions};
use crate::bpffs::BpfFs;
use crate::node::Node;
use crate::pod::{Pod, PodSpec};
use crate::podsfile;
use crate::samples::Samples;

/// Containers that talk, so that there are ports enough for all the edges.
pub(super) const CLIENTS: usize = 2;
/// Edges of a run that varies the connections: a client's and a server's for each port.
pub(super) const FEW_EDGES: usize = 50;
const SERVER: &str = "server";
/// Outside of the range of ports for clients, so that everybody can tell who is the server.
const FIRST_PORT: usize = 2_000;
const LAST_PORT: usize = 32_767;
/// Commands in a job: a line to the container for each job.
const COMMANDS: usize = 1_000;
/// Bytes of payload in a datagram.
const DATAGRAM: u32 = 100;
/// Bytes that IPv4 and UDP put in front of it.
const HEADERS: u64 = 28;
const SHOWING: Duration = Duration::from_secs(60);
const POD: &str = "clients";

/// The two pods, and what the agent needs.
pub(super) struct Crowd {
    // Dropped in this order.
    clients: Pod,
    server: Pod,
    node: Node,
    bpffs: BpfFs,
    directory: TempDir,
}

impl Crowd {
    pub(super) fn create() -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for the pods file")?;
        let (node, bpffs) = (Node::create()?, BpfFs::create()?);
        let names: Vec<String> = (0..CLIENTS).map(client).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let clients = Pod::create(&node, PodSpec::new("bench", POD, &names))?;
        let server = Pod::create(&node, PodSpec::new("bench", SERVER, &[SERVER]))?;
        clients.introduce(&server)?;
        podsfile::write(&directory.path().join("pods.json"), [&clients, &server])?;
        Ok(Self { clients, server, node, bpffs, directory })
    }

    /// Starts an agent that sees these pods alone.
    pub(super) fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        let agent = Agent::start(
            self.node.launcher(),
            &AgentOptions {
                pods_file: Some(self.directory.path().join("pods.json")),
                bpffs: Some(self.bpffs.path().to_owned()),
                arguments: ["--pods.namespaces", "bench"].iter().chain(arguments).map(Into::into).collect(),
                ..AgentOptions::default()
            },
        )?;
        let shown = |samples: &Samples| samples.sum("observer_pod_info", &[("namespace", "bench")]) == 2.0;
        ensure!(shown(&agent.scrape_until(SHOWING, shown)?), "the agent does not show both pods:\n{}", agent.log());
        Ok(agent)
    }

    /// Talks as much as was asked for, and makes sure that the agent has counted it so.
    pub(super) fn talk(&self, agent: &Agent, size: Size) -> Result<()> {
        match size {
            Size::Connections(connections) => self.connect(connections)?,
            Size::Edges(edges) => self.send(edges)?,
        }
        let (edges, name, labels, truth) = match size {
            Size::Connections(connections) => {
                (FEW_EDGES, "observer_tcp_connections_opened_total", ("role", "client"), connections as f64)
            }
            Size::Edges(edges) => {
                let bytes = edges as u64 * (u64::from(DATAGRAM) + HEADERS);
                (edges, "observer_traffic_bytes_total", ("direction", "transmit"), bytes as f64)
            }
        };
        let labels = [("pod", POD), labels];
        let right = |samples: &Samples| {
            let fit = samples.sum("observer_agent_edges_capacity", &[]).min(edges as f64);
            samples.sum("observer_agent_edges_used", &[]) == fit && samples.sum(name, &labels) == truth
        };
        let samples = agent.scrape_until(SHOWING, right)?;
        ensure!(
            right(&samples),
            "{} edges of {edges}, and {} in {name} of {truth}",
            samples.sum("observer_agent_edges_used", &[]),
            samples.sum(name, &labels),
        );
        Ok(())
    }

    /// Makes connections to half as many ports as there shall be edges: each has one at either end.
    fn connect(&self, connections: usize) -> Result<()> {
        let ports = FEW_EDGES / 2;
        let server = self.server.container(SERVER)?;
        let client = self.clients.container(&client(0))?;
        let mut script = Vec::new();
        for at in 0..ports {
            let to = self.address(FIRST_PORT + at)?;
            server.serve_tcp(to, ServeMode::request_response(DATAGRAM, DATAGRAM))?;
            let share = connections / ports + usize::from(at < connections % ports);
            script.push(Command::TcpRequests {
                to,
                connections: share.try_into()?,
                requests: 1,
                request_bytes: DATAGRAM,
                response_bytes: DATAGRAM,
                parallel: 2,
            });
        }
        // One after another: none takes longer than a command may.
        let mut sent = Traffic::default();
        for command in script {
            sent += client.traffic(&command)?;
        }
        ensure!(sent.connections == connections as u64, "{sent:?} of {connections} connections");
        Ok(())
    }

    /// Sends a datagram to each of as many ports as there shall be edges. Nobody listens there.
    fn send(&self, edges: usize) -> Result<()> {
        let mut left = edges;
        for number in 0..CLIENTS {
            let container = self.clients.container(&client(number))?;
            let ports = left / (CLIENTS - number);
            left -= ports;
            let all: Vec<usize> = (FIRST_PORT..FIRST_PORT + ports).collect();
            ensure!(all.last().is_none_or(|last| *last <= LAST_PORT), "no container has {ports} ports to talk to");
            for some in all.chunks(COMMANDS) {
                let script = some.iter().map(|port| {
                    let sizes = Sizes::List(vec![DATAGRAM]);
                    anyhow::Ok(Command::UdpSend { to: self.address(*port)?, sizes, connected: false, pace: Pace::Free })
                });
                let job = container.start(script.collect::<Result<_>>()?, Duration::ZERO, Some(1))?;
                let sent = container.join(job)?;
                ensure!(sent.failures == 0, "{} datagrams of {} were not sent", sent.failures, some.len());
            }
        }
        Ok(())
    }

    fn address(&self, port: usize) -> Result<SocketAddr> {
        Ok(SocketAddr::from((self.server.ipv4(), port.try_into()?)))
    }
}

fn client(number: usize) -> String {
    format!("client-{number}")
}
