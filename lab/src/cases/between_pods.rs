//! Between two pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::count::{Count, Counted, DIRECTIONS, Unmet, check_interface, check_tcp, check_udp, ip_header};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes, Traffic};
use crate::agent::Agent;
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::{Interface, Truth};

/// The length of an Ethernet header, which a veth counts.
const ETHERNET: u64 = 14;
/// The interface of a pod.
const ETH0: &str = "eth0";

struct Scene {
    stage: Stage,
    agent: Agent,
    here: Pod,
    there: Pod,
}

fn scene(edges: Option<u32>) -> Result<Scene> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let here = Pod::create(&stage.node, PodSpec::new("cases", "here", &["client"]))?;
    let there = Pod::create(&stage.node, PodSpec::new("cases", "there", &["server"]))?;
    here.introduce(&there)?;
    stage.announce(&[&here, &there])?;
    wait_for_pods(&agent, &["here", "there"])?;
    stage.fill_table(&here, "client")?;
    Ok(Scene { stage, agent, here, there })
}

/// What a pod sent and received is what its interface counted.
pub(super) fn check_veth(counted: &Counted<'_>, pod: &str, truth: &Truth, unmet: Unmet) -> Result<()> {
    // Group membership reports are the kernel's own: they may have passed the interface, or only have been looped back
    // to it.
    let [sent, received] = DIRECTIONS.map(|direction| counted.pod(pod, direction));
    let check = |eth0: Interface| {
        check_interface("sent over eth0", sent, eth0.sent(ETHERNET), unmet)?;
        check_interface("received over eth0", received, eth0.received(ETHERNET), unmet)
    };
    check(truth.without_multicast(ETH0)).or_else(|error| check(truth.interface(ETH0)).map_err(|_| error))
}

impl Scene {
    /// Does something between two scrapes.
    fn around(&self, act: impl FnOnce() -> Result<Traffic>) -> Result<(Samples, Samples, Traffic, [Truth; 2])> {
        let before = settled(&self.agent)?;
        let pids = [self.here.container("client")?.pid(), self.there.container("server")?.pid()];
        let begin = [Truth::of_process(pids[0])?, Truth::of_process(pids[1])?];
        let sent = act()?;
        let after = settled(&self.agent)?;
        let truth = [&Truth::of_process(pids[0])? - &begin[0], &Truth::of_process(pids[1])? - &begin[1]];
        self.stage.check_overflow(&after)?;
        Ok((before, after, sent, truth))
    }

    fn check_veth(counted: &Counted<'_>, truths: &[Truth; 2]) -> Result<()> {
        check_veth(counted, "here", &truths[0], Unmet::of(truths.iter()))
    }

    fn tcp(&self, address: IpAddr, mode: ServeMode, command: impl FnOnce(SocketAddr) -> Command) -> Result<()> {
        let server = self.there.container("server")?.serve_tcp(SocketAddr::new(address, 0), mode)?;
        let (before, after, sent, truth) = self.around(|| self.here.container("client")?.traffic(&command(server)))?;
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, ("here", "client"), ("there", "server"), address, sent, &[&truth[0], &truth[1]])?;
        Self::check_veth(&counted, &truth)
    }

    fn udp(&self, address: IpAddr, count: u32) -> Result<()> {
        let server = self.there.container("server")?.serve_udp(SocketAddr::new(address, 0), true)?;
        // Nothing larger than a packet of the link: fragments are counted once at the socket, each at the interface.
        let sizes = Sizes::Random { count, min: 1, max: 1400, seed: 11 };
        let (datagrams, payload) = sizes.totals();
        let send = Command::UdpSend { to: server, sizes, connected: false, pace: Pace::Echoed { window: 32 } };
        let (before, after, _, truth) = self.around(|| self.here.container("client")?.traffic(&send))?;
        let counted = Counted { before: &before, after: &after };
        check_udp("sent", counted.sent("here", "client"), datagrams, payload, address)?;
        check_udp("arrived", counted.received("there", "server"), datagrams, payload, address)?;
        Self::check_veth(&counted, &truth)
    }
}

/// TCP and UDP, over IPv4 and IPv6.
pub fn pod_to_pod(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    for address in [scene.there.ipv4().into(), scene.there.ipv6().into()] {
        let bytes = scale.of(256 << 20, 4 << 20);
        scene.tcp(address, ServeMode::Sink, |to| Command::TcpSend { to, bytes, chunk: 65_536 })?;
        let connections = scale.of(5_000, 200);
        scene.tcp(address, ServeMode::request_response(100, 100), |to| Command::TcpRequests {
            to,
            connections,
            requests: 1,
            request_bytes: 100,
            response_bytes: 100,
            parallel: 4,
        })?;
        scene.udp(address, scale.of(10_000, 500))?;
    }
    if edges.is_none() {
        let samples = scene.agent.scrape()?;
        let peer = [("pod", "here"), ("container", "client"), ("peer_kind", "pod"), ("peer_pod", "there")];
        let named = samples.sum("observer_traffic_bytes_total", &peer);
        let all = samples.sum("observer_traffic_bytes_total", &peer[..2]);
        ensure!(named > 0.0 && named == all, "{named} of {all} bytes name the peer pod");
    }
    Ok(())
}

/// A server of both families, with clients of either: every byte of a packet and each connection has its peer, role and
/// port, whatever the address is to the server's socket.
pub fn both_families(_: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    let (client, server) = (scene.here.container("client")?, scene.there.container("server")?);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let udp = server.serve_udp(any, true)?.port();
    let tcp = server.serve_tcp(any, ServeMode::request_response(100, 300))?.port();
    for address in [scene.there.ipv4().into(), scene.there.ipv6().into()] {
        let send = Command::UdpSend {
            to: SocketAddr::new(address, udp),
            sizes: Sizes::List(vec![100; 50]),
            connected: false,
            pace: Pace::Echoed { window: 1 },
        };
        let request = Command::TcpRequests {
            to: SocketAddr::new(address, tcp),
            connections: 20,
            requests: 1,
            request_bytes: 100,
            response_bytes: 300,
            parallel: 2,
        };
        let (before, after, sent, truth) = scene.around(|| client.traffic(&request))?;
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, ("here", "client"), ("there", "server"), address, sent, &[&truth[0], &truth[1]])?;
        Scene::check_veth(&counted, &truth)?;
        check_ends(&counted, &scene, "tcp", tcp)?;
        let (before, after, _, truth) = scene.around(|| client.traffic(&send))?;
        let counted = Counted { before: &before, after: &after };
        for (pod, container) in [("here", "client"), ("there", "server")] {
            check_udp("sent", counted.sent(pod, container), 50, 5_000, address)?;
            check_udp("received", counted.received(pod, container), 50, 5_000, address)?;
        }
        Scene::check_veth(&counted, &truth)?;
        check_ends(&counted, &scene, "udp", udp)?;
    }
    Ok(())
}

/// All that was counted of a protocol names both ends, at both ends.
fn check_ends(counted: &Counted<'_>, scene: &Scene, protocol: &str, port: u16) -> Result<()> {
    if scene.stage.has_small_table() {
        return Ok(());
    }
    let port = port.to_string();
    for (pod, peer, role) in [("here", "there", "client"), ("there", "here", "server")] {
        let all = [("pod", pod), ("protocol", protocol)];
        let named = [("peer_kind", "pod"), ("peer_pod", peer), ("role", role), ("port", port.as_str())];
        let (all, named) = (counted.of(&all), counted.of(&[&all[..], &named].concat()));
        ensure!(
            all == named && all.packets > 0,
            "of {all:?} of {pod}, {named:?} are the {role}'s, with {peer} at {port}"
        );
    }
    Ok(())
}

/// SCTP, and a protocol that nobody knows (253, for experiments: RFC 3692), by raw sockets. SCTP has a server's port.
pub fn raw_protocols(_: Scale, edges: Option<u32>) -> Result<()> {
    const SCTP: u8 = 132;
    const UNKNOWN: u8 = 253;
    const PORT: u16 = 5_000;
    let scene = scene(edges)?;
    let (here, there) = (scene.here.container("client")?, scene.there.container("server")?);
    let ways: [(IpAddr, IpAddr, &Container, &str); 4] = [
        (scene.here.ipv4().into(), scene.there.ipv4().into(), there, "there"),
        (scene.here.ipv6().into(), scene.there.ipv6().into(), there, "there"),
        // Two addresses: a raw socket gets a copy of all that comes to its own.
        (Ipv4Addr::new(127, 0, 0, 2).into(), Ipv4Addr::LOCALHOST.into(), here, "here"),
        (scene.here.ipv6().into(), Ipv6Addr::LOCALHOST.into(), here, "here"),
    ];
    for (protocol, name) in [(SCTP, "sctp"), (UNKNOWN, "other")] {
        for (from, address, receiver, receiver_pod) in ways {
            receiver.run(&Command::RawHold { address, protocol })?;
            // Fewer than fill the receiver's buffer.
            let (count, payload) = (100, 333);
            let to = SocketAddr::new(address, PORT);
            let send = Command::RawSend { from, to, protocol, count, payload };
            let (before, after, _, truth) = scene.around(|| here.traffic(&send))?;
            let counted = Counted { before: &before, after: &after };
            let packet = ip_header(address) + u64::from(payload);
            let expected = Count { bytes: packet * u64::from(count), packets: count.into() };
            let port = if protocol == SCTP { PORT.to_string() } else { String::new() };
            let ends = [("here", receiver_pod, "client", "transmit"), (receiver_pod, "here", "server", "receive")];
            for (pod, peer, role, direction) in ends {
                let role = if protocol == SCTP { role } else { "none" };
                let all = [("pod", pod), ("protocol", name), ("direction", direction)];
                let mut named = vec![("role", role), ("port", &port)];
                if peer != pod {
                    named.extend([("peer_kind", "pod"), ("peer_pod", peer)]);
                }
                if scene.stage.has_small_table() {
                    named.clear();
                }
                let found = [counted.of(&all), counted.of(&[&all[..], &named].concat())];
                ensure!(
                    found == [expected; 2],
                    "{name} to {address}, {pod}'s {direction}: {found:?}, sent {expected:?}"
                );
            }
            if receiver_pod == "there" {
                Scene::check_veth(&counted, &truth)?;
            }
        }
    }
    Ok(())
}

/// Echo requests and their replies. The kernel answers them, so only the side that asks has a socket.
pub fn icmp(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    let outside = [IpAddr::from(scene.there.ipv4()), scene.there.ipv6().into()];
    for address in outside.into_iter().chain([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]) {
        let (count, payload) = (scale.of(1_000, 100), 200);
        let (before, after, sent, truth) =
            scene.around(|| scene.here.container("client")?.ping(address, count, payload))?;
        ensure!(sent.received_datagrams == u64::from(count), "{sent:?} of {count} echo requests to {address}");
        let counted = Counted { before: &before, after: &after };
        let packet = ip_header(address) + 8 + u64::from(payload);
        let expected = Count { bytes: packet * u64::from(count), packets: count.into() };
        let labels = [("pod", "here"), ("container", "client"), ("protocol", "icmp")];
        for direction in DIRECTIONS {
            let [a, b, c] = labels;
            let found = counted.of(&[a, b, c, ("direction", direction)]);
            ensure!(found == expected, "{direction} to {address}: reported {found:?}, sent {expected:?}");
        }
        if !address.is_loopback() {
            Scene::check_veth(&counted, &truth)?;
        }
    }
    Ok(())
}
