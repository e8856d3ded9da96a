//! Between two pods.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use super::count::{Count, Counted, DIRECTIONS, check_interface, check_tcp, check_udp, ip_header};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes, Traffic};
use crate::agent::Agent;
use crate::pod::{Pod, PodSpec};
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

    /// What the client's pod sent and received is what its interface counted.
    fn check_veth(counted: &Counted<'_>, truth: &Truth) -> Result<()> {
        // Group membership reports are the kernel's own: they may have passed the interface, or only have been looped
        // back to it.
        let [sent, received] = DIRECTIONS.map(|direction| counted.pod("here", direction));
        let check = |eth0: Interface| {
            check_interface("sent over eth0", sent, eth0.tx_bytes, eth0.tx_packets, ETHERNET)?;
            check_interface("received over eth0", received, eth0.rx_bytes, eth0.rx_packets, ETHERNET)
        };
        check(truth.without_multicast(ETH0)).or_else(|error| check(truth.interface(ETH0)).map_err(|_| error))
    }

    fn tcp(&self, address: IpAddr, mode: ServeMode, command: impl FnOnce(SocketAddr) -> Command) -> Result<()> {
        let server = self.there.container("server")?.serve_tcp(SocketAddr::new(address, 0), mode)?;
        let (before, after, sent, truth) = self.around(|| self.here.container("client")?.traffic(&command(server)))?;
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, ("here", "client"), ("there", "server"), address, sent, &[&truth[0], &truth[1]])?;
        Self::check_veth(&counted, &truth[0])
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
        Self::check_veth(&counted, &truth[0])
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

/// Echo requests and their replies. The kernel answers them, so only the side that asks has a socket.
pub fn icmp(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    for address in [IpAddr::from(scene.there.ipv4()), scene.there.ipv6().into()] {
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
        Scene::check_veth(&counted, &truth[0])?;
    }
    Ok(())
}
