//! Between two containers of one pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use super::count::{Counted, check_loopback, check_tcp, check_udp};
use super::stage::{Scale, Stage, settled};
use crate::actor::{Command, Pace, ServeMode, Sizes, Traffic};
use crate::agent::Agent;
use crate::pod::Pod;
use crate::samples::Samples;
use crate::truth::Truth;

const POD: &str = "localhost";
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A pod of a client and a server, and the agent.
struct Scene {
    stage: Stage,
    agent: Agent,
    pod: Pod,
}

fn scene(edges: Option<u32>) -> Result<Scene> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, POD, &["client", "server"])?;
    stage.fill_table(&pod, "client")?;
    Ok(Scene { stage, agent, pod })
}

fn any_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

impl Scene {
    /// Does something between two scrapes, then compares all that was received with the interface.
    fn around(
        &self,
        address: IpAddr,
        act: impl FnOnce() -> Result<Traffic>,
    ) -> Result<(Samples, Samples, Traffic, Truth)> {
        let before = settled(&self.agent)?;
        let pid = self.pod.container("server")?.pid();
        let truth = Truth::of_process(pid)?;
        let sent = act()?;
        let after = settled(&self.agent)?;
        let truth = &Truth::of_process(pid)? - &truth;
        let counted = Counted { before: &before, after: &after };
        check_loopback(&counted, POD, &truth, sent.connections, address)?;
        self.stage.check_overflow(&after)?;
        Ok((before, after, sent, truth))
    }

    fn tcp(&self, address: IpAddr, mode: ServeMode, command: impl FnOnce(SocketAddr) -> Command) -> Result<()> {
        let server = self.pod.container("server")?.serve_tcp(any_port(address), mode)?;
        let (before, after, sent, truth) =
            self.around(address, || self.pod.container("client")?.traffic(&command(server)))?;
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, (POD, "client"), (POD, "server"), address, sent, &[&truth])
    }

    fn udp(&self, address: IpAddr, count: u32, connected: bool) -> Result<()> {
        let server = self.pod.container("server")?.serve_udp(any_port(address), true)?;
        let sizes = Sizes::Random { count, min: 1, max: 9000, seed: 7 };
        let (datagrams, payload) = sizes.totals();
        let send = Command::UdpSend { to: server, sizes, connected, pace: Pace::Echoed { window: 32 } };
        let (before, after, _, _) = self.around(address, || self.pod.container("client")?.traffic(&send))?;
        let counted = Counted { before: &before, after: &after };
        // Each datagram goes there and comes back.
        for (what, count) in [
            ("client sent", counted.sent(POD, "client")),
            ("server received", counted.received(POD, "server")),
            ("server sent", counted.sent(POD, "server")),
            ("client received", counted.received(POD, "client")),
        ] {
            check_udp(what, count, datagrams, payload, address)?;
        }
        Ok(())
    }
}

fn stream(bytes: u64) -> impl FnOnce(SocketAddr) -> Command {
    move |to| Command::TcpSend { to, bytes, chunk: 65_536 }
}

fn connections(connections: u32) -> impl FnOnce(SocketAddr) -> Command {
    move |to| Command::TcpRequests {
        to,
        connections,
        requests: 1,
        request_bytes: 100,
        response_bytes: 100,
        parallel: 4,
    }
}

/// One large stream.
pub fn tcp_stream(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    scene.tcp(V4, ServeMode::Sink, stream(scale.of(1 << 30, 16 << 20)))
}

/// Many short connections.
pub fn tcp_connections(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    scene.tcp(V4, ServeMode::request_response(100, 100), connections(scale.of(20_000, 500)))
}

/// Many datagrams of mixed sizes, from a connected and from an unconnected socket.
pub fn udp_datagrams(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    let half = scale.of(50_000, 1_000);
    scene.udp(V4, half, false)?;
    scene.udp(V4, half, true)
}

/// The same over ::1.
pub fn ipv6(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    scene.tcp(V6, ServeMode::Sink, stream(scale.of(256 << 20, 8 << 20)))?;
    scene.tcp(V6, ServeMode::request_response(100, 100), connections(scale.of(5_000, 200)))?;
    scene.udp(V6, scale.of(20_000, 500), false)
}

/// A pod that talks to its own address: loopback all the same.
pub fn own_address(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = scene(edges)?;
    for address in [scene.pod.ipv4().into(), scene.pod.ipv6().into()] {
        scene.tcp(address, ServeMode::Sink, stream(scale.of(64 << 20, 4 << 20)))?;
        scene.tcp(address, ServeMode::request_response(100, 100), connections(scale.of(1_000, 100)))?;
        scene.udp(address, scale.of(2_000, 200), true)?;
    }
    Ok(())
}
