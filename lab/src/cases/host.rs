//! Containers of one pod on the host network: they share a network namespace and its addresses with the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::count::{Count, Counted, DIRECTIONS, check_tcp, check_udp};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use super::ways::NAMESPACE;
use crate::actor::{Command, Pace, ServeMode, Sizes, Traffic};
use crate::agent::Agent;
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::Truth;

const HOST: &str = "host";
const OUTSIDE: &str = "outside";
const CLIENT: &str = "client";
const SERVER: &str = "server";

/// Where traffic goes: from a container to another one.
struct Way<'a> {
    client: (&'a Pod, &'a str),
    server: (&'a Pod, &'a str),
    address: IpAddr,
}

/// Two containers talk over loopback, and each of them to a pod that has a network of its own: told apart by cgroup, to the
/// byte, by TCP and UDP, over IPv4 and IPv6.
pub fn host_containers(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    // The lab's node plays the host: there the pods' network ends.
    stage.node.netns().run(|| on_the_node(&stage))
}

fn on_the_node(stage: &Stage) -> Result<()> {
    let agent = stage.agent_on_the_node(None, &[])?;
    let host = Pod::create(&stage.node, PodSpec::new(NAMESPACE, HOST, &[CLIENT, SERVER]).host_network())?;
    let outside = Pod::create(&stage.node, PodSpec::new(NAMESPACE, OUTSIDE, &[SERVER]))?;
    stage.announce(&[&host, &outside])?;
    wait_for_pods(&agent, &[HOST, OUTSIDE])?;
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        talk(&agent, &Way { client: (&host, CLIENT), server: (&host, SERVER), address })?;
    }
    for address in [IpAddr::from(outside.ipv4()), outside.ipv6().into()] {
        for client in [CLIENT, SERVER] {
            talk(&agent, &Way { client: (&host, client), server: (&outside, SERVER), address })?;
        }
    }
    let samples = settled(&agent)?;
    let info = samples.sum("observer_pod_info", &[("host_network", "true")]);
    ensure!(info == 1.0 || !is_the_node(), "{info} pods are said to be on the host network");
    stage.check_overflow(&samples)?;
    agent.terminate()
}

/// Whether the agent takes the lab's node for the machine. Where it may look at the machine's first process, it knows better:
/// then the pod is one with a network of its own to it, in which the lab's node happens to be.
fn is_the_node() -> bool {
    std::fs::read_link("/proc/1/ns/net").is_err()
}

/// TCP, then UDP, each between two scrapes.
fn talk(agent: &Agent, way: &Way<'_>) -> Result<()> {
    let any_port = SocketAddr::new(way.address, 0);
    let server = way.server.0.container(way.server.1)?;
    let tcp = server.serve_tcp(any_port, ServeMode::request_response(100, 300))?;
    let requests = Command::TcpRequests {
        to: tcp,
        connections: 20,
        requests: 2,
        request_bytes: 100,
        response_bytes: 300,
        parallel: 2,
    };
    let (before, after, sent, truths) = way.around(agent, &requests)?;
    let counted = Counted { before: &before, after: &after };
    let (client, server_end) = (way.end(true), way.end(false));
    check_tcp(&counted, client, server_end, way.address, sent, &truths.each_ref())?;
    way.check_ends(&counted, "tcp", tcp.port())?;

    let udp = server.serve_udp(any_port, true)?;
    let pace = Pace::Echoed { window: 1 };
    let datagrams = Command::UdpSend { to: udp, sizes: Sizes::List(vec![100; 50]), connected: false, pace };
    let (before, after, ..) = way.around(agent, &datagrams)?;
    let counted = Counted { before: &before, after: &after };
    for (pod, container) in [client, server_end] {
        check_udp("sent", counted.sent(pod, container), 50, 5_000, way.address)?;
        check_udp("received", counted.received(pod, container), 50, 5_000, way.address)?;
    }
    way.check_ends(&counted, "udp", udp.port())
}

impl Way<'_> {
    fn end(&self, client: bool) -> (&str, &str) {
        let (pod, container) = if client { self.client } else { self.server };
        (&pod.spec().name, container)
    }

    fn around(&self, agent: &Agent, command: &Command) -> Result<(Samples, Samples, Traffic, [Truth; 2])> {
        let pids = [self.client.0.container(self.client.1)?.pid(), self.server.0.container(self.server.1)?.pid()];
        let before = settled(agent)?;
        let begin = [Truth::of_process(pids[0])?, Truth::of_process(pids[1])?];
        let sent = self.client.0.container(self.client.1)?.traffic(command)?;
        let after = settled(agent)?;
        let truths = [&Truth::of_process(pids[0])? - &begin[0], &Truth::of_process(pids[1])? - &begin[1]];
        Ok((before, after, sent, truths))
    }

    /// All that both ends have names the other one, its role and its port, and nobody else has anything.
    fn check_ends(&self, counted: &Counted<'_>, protocol: &str, port: u16) -> Result<()> {
        let port = port.to_string();
        let local = self.address.is_loopback();
        for client in [true, false] {
            let ((pod, container), (peer_pod, peer_container)) = (self.end(client), self.end(!client));
            let peer: &[_] = match (local, client) {
                (true, _) => &[("peer_kind", "container"), ("peer_container", peer_container)],
                (false, true) => &[("peer_kind", "pod"), ("peer_pod", peer_pod)],
                // A pod on the host network has no address of its own. The node's are those of the machine's first process,
                // so that the address of the lab's node is nobody's.
                (false, false) if is_the_node() => &[("peer_kind", "other"), ("peer_pod", "")],
                (false, false) => &[],
            };
            let mine = [("pod", pod), ("container", container), ("protocol", protocol)];
            let ends = [("role", if client { "client" } else { "server" }), ("port", &port)];
            let (all, named) = (counted.of(&mine), counted.of(&[&mine[..], peer, &ends].concat()));
            ensure!(
                all == named && all.packets > 0,
                "{pod}/{container}: {named:?} of {all:?} has {peer:?} and {ends:?}"
            );
        }
        let ends = [self.end(true), self.end(false)];
        for (pod, container) in [(HOST, CLIENT), (HOST, SERVER), (OUTSIDE, SERVER)] {
            let found = DIRECTIONS
                .map(|direction| counted.of(&[("pod", pod), ("container", container), ("direction", direction)]));
            let quiet = found == [Count::default(); 2];
            ensure!(quiet != ends.contains(&(pod, container)), "{pod}/{container} of {ends:?}: {found:?}");
        }
        Ok(())
    }
}
