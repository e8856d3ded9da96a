//! UDP sockets that are held: one that speaks with many, and such that are older than the agent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::count::{Count, DIRECTIONS, ip_header};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use super::ways::{CLIENT, HERE, SERVER, THERE, Way};
use crate::actor::Command;
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;

/// Outside of the range of ports for clients, so that everybody can tell who is the server.
const PORT: u16 = 9_000;
const PEERS: u32 = 5;
const ROUNDS: u32 = 10;

/// A datagram and how large it is.
type Datagram = (SocketAddr, u32);

/// Sends them on an open socket; each is echoed.
fn talk(client: &Container, socket: u64, datagrams: &[Datagram]) -> Result<()> {
    let sent = client.traffic(&Command::UdpTalk { socket, datagrams: datagrams.to_vec() })?;
    ensure!(sent.received_datagrams == datagrams.len() as u64, "{sent:?} of {} datagrams", datagrams.len());
    Ok(())
}

/// What datagrams to an address are at IP level, in each direction.
fn packets(datagrams: &[Datagram], to: IpAddr) -> Count {
    let mine = datagrams.iter().filter(|(address, _)| address.ip() == to);
    mine.fold(Count::default(), |sum, (address, size)| {
        // An address of IPv4 in one of IPv6 (RFC 4291, section 2.5.5.2) is called by IPv4.
        let header = ip_header(address.ip().to_canonical()) + 8;
        sum + Count { bytes: u64::from(*size) + header, packets: 1 }
    })
}

/// All that was ever counted under these labels.
fn total(samples: &Samples, labels: &[(&str, &str)]) -> Count {
    let [bytes, packets] = ["observer_traffic_bytes_total", "observer_traffic_packets_total"]
        // Counters below 2^53 are exact in a float.
        .map(|family| samples.sum(family, labels) as u64);
    Count { bytes, packets }
}

/// An unconnected socket of IPv4, one of IPv6 and one of both speak with five pods in turn: each pod, and the client for each
/// pod, has what was sent to it and no byte of another's.
pub fn one_socket(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let client = Pod::create(&stage.node, PodSpec::new("cases", CLIENT, &["c"]))?;
    let names: Vec<String> = (0..PEERS).map(|number| format!("peer-{number}")).collect();
    let pods: Vec<Pod> = (names.iter())
        .map(|name| Pod::create(&stage.node, PodSpec::new("cases", name, &["c"])))
        .collect::<Result<_>>()?;
    pods.iter().try_for_each(|pod| client.introduce(pod))?;
    stage.announce(&pods.iter().chain([&client]).collect::<Vec<_>>())?;
    wait_for_pods(&agent, &names.iter().map(String::as_str).chain([CLIENT]).collect::<Vec<_>>())?;
    for pod in &pods {
        pod.container("c")?.serve_udp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)), true)?;
    }
    let v4 = |pod: &Pod| SocketAddr::from((pod.ipv4(), PORT));
    let v6 = |pod: &Pod| SocketAddr::from((pod.ipv6(), PORT));
    let mapped = |pod: &Pod| SocketAddr::from((pod.ipv4().to_ipv6_mapped(), PORT));
    type Ways<'a> = Vec<&'a dyn Fn(&Pod) -> SocketAddr>;
    let sockets: [(IpAddr, Ways<'_>); 3] = [
        (Ipv4Addr::UNSPECIFIED.into(), vec![&v4]),
        (Ipv6Addr::UNSPECIFIED.into(), vec![&v6]),
        (Ipv6Addr::UNSPECIFIED.into(), vec![&mapped, &v6]),
    ];
    let mut sent: Vec<Count> = vec![Count::default(); pods.len()];
    for (any, ways) in sockets {
        let socket = client.container("c")?.open_udp(SocketAddr::new(any, 0), None)?;
        // From pod to pod with each datagram; the later ones of a pod come every other round.
        let mut datagrams = Vec::new();
        for round in 0..ROUNDS {
            for (pod, number) in pods.iter().zip(0..PEERS).filter(|(_, number)| number % 2 == 0 || round % 2 == 0) {
                datagrams.extend(ways.iter().map(|way| (way(pod), 1 + 100 * number + round)));
            }
        }
        talk(client.container("c")?, socket, &datagrams)?;
        for (pod, sent) in pods.iter().zip(&mut sent) {
            *sent = ways.iter().fold(*sent, |sum, way| sum + packets(&datagrams, way(pod).ip()));
        }
        let after = settled(&agent)?;
        for (name, sent) in names.iter().zip(&sent) {
            check_pair(&after, name, *sent)?;
        }
        let all = sent.iter().copied().fold(Count::default(), |sum, sent| sum + sent);
        for direction in DIRECTIONS {
            let found = total(&after, &[("pod", CLIENT), ("protocol", "udp"), ("direction", direction)]);
            ensure!(found == all, "the client's {direction} is {found:?}, of all pods {all:?}");
        }
        stage.check_overflow(&after)?;
    }
    agent.terminate()
}

/// The client names the pod and the pod the client, with all of it, and the pod has nothing else.
fn check_pair(samples: &Samples, name: &str, sent: Count) -> Result<()> {
    let port = PORT.to_string();
    for (pod, peer, role) in [(CLIENT, name, "client"), (name, CLIENT, "server")] {
        for direction in DIRECTIONS {
            let udp = [("pod", pod), ("protocol", "udp"), ("direction", direction)];
            let peer = [("peer_kind", "pod"), ("peer_pod", peer), ("role", role), ("port", &port)];
            let found = total(samples, &[&udp[..], &peer].concat());
            ensure!(found == sent, "{pod} as the {role}, {direction}: {found:?} with {peer:?}, sent {sent:?}");
            let all = total(samples, &udp);
            ensure!(pod == CLIENT || all == sent, "{pod}, {direction}: {all:?} in all, of which {sent:?} were sent");
        }
    }
    Ok(())
}

/// Sockets that have spoken before there was an agent, connected and not: from the first datagram after its start on all of
/// theirs is counted, and nothing of what was before; so it stays over the start of another agent.
pub fn older_datagrams(_: Scale, edges: Option<u32>) -> Result<()> {
    const BEFORE: u32 = 1_000;
    const AFTER: u32 = 77;
    let stage = Stage::new(edges)?;
    let here = Pod::create(&stage.node, PodSpec::new("cases", HERE, &[CLIENT, SERVER]))?;
    let there = Pod::create(&stage.node, PodSpec::new("cases", THERE, &[SERVER]))?;
    here.introduce(&there)?;
    stage.announce(&[&here, &there])?;
    let mut sockets = Vec::new();
    for (way, first) in ways(&here, &there)?.into_iter().zip((PORT..).step_by(10)) {
        for (connected, port) in [(false, first), (true, first + 1)] {
            let to = SocketAddr::new(way.address, port);
            way.server.serve_udp(to, true)?;
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = way.client.open_udp(SocketAddr::new(any, 0), connected.then_some(to))?;
            talk(way.client, socket, &[(to, BEFORE); 3])?;
            sockets.push((way, to, socket));
        }
    }
    let mut agent = stage.agent()?;
    wait_for_pods(&agent, &[HERE, THERE])?;
    let before = settled(&agent)?;
    let found = total(&before, &[("protocol", "udp"), ("namespace", "cases")]);
    ensure!(found == Count::default(), "{found:?} were counted before anything was sent");
    let mut sent = Vec::new();
    for round in 1..=3 {
        for (way, to, socket) in &sockets {
            let more = [(*to, AFTER), (*to, AFTER + round)];
            talk(way.client, *socket, &more)?;
            sent.extend(more);
        }
        if round == 2 {
            // What is sent while no agent runs is counted, too.
            let address = agent.address();
            agent.kill9()?;
            for (way, to, socket) in &sockets {
                talk(way.client, *socket, &[(*to, BEFORE)])?;
                sent.push((*to, BEFORE));
            }
            agent = stage.agent_at(Some(address))?;
            wait_for_pods(&agent, &[HERE, THERE])?;
        }
        let after = settled(&agent)?;
        for (way, to, _) in &sockets {
            let mine: Vec<Datagram> = sent.iter().copied().filter(|(address, _)| address == to).collect();
            let (expected, port) = (packets(&mine, to.ip()), to.port().to_string());
            for (client, direction) in [true, false].iter().flat_map(|client| DIRECTIONS.map(|way| (*client, way))) {
                let more = [("protocol", "udp"), ("direction", direction)];
                let found = total(&after, &[&way.labels(client, &port)[..], &more].concat());
                let end = way.end(client);
                ensure!(
                    found == expected,
                    "round {round}, {direction} of {end:?} to {to}: {found:?}, sent {expected:?}"
                );
            }
        }
        let each = sent.iter().fold(Count::default(), |sum, datagram| sum + packets(&[*datagram], datagram.0.ip()));
        for direction in DIRECTIONS {
            let found = total(&after, &[("protocol", "udp"), ("namespace", "cases"), ("direction", direction)]);
            ensure!(found == each + each, "{direction} in all: {found:?}, both ends together twice {each:?}");
        }
        stage.check_overflow(&after)?;
    }
    agent.terminate()
}

/// Between pods and over loopback, IPv4 and IPv6.
fn ways<'a>(here: &'a Pod, there: &'a Pod) -> Result<[Way<'a>; 4]> {
    Ok([
        Way::far(here, there, there.ipv4())?,
        Way::far(here, there, there.ipv6())?,
        Way::near(here, Ipv4Addr::LOCALHOST)?,
        Way::near(here, Ipv6Addr::LOCALHOST)?,
    ])
}
