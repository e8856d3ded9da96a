//! Packets that the kernel drops, as many as it says itself.

mod scene;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

pub use scene::{CLOSED, Drops, Scene, difference, drops_of, send, settled, these};

use super::{Scale, kernel_older_than};
use crate::pod::Container;
use crate::truth::Truth;

/// From where, to which address, and how the kernel's counters of UDP are called there.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Within the pod that is sent to, and not from the other one.
    local: bool,
    address: IpAddr,
    udp: &'static str,
}

impl Way {
    fn sender(self, scene: &Scene) -> Result<&Container> {
        if self.local { scene.s() } else { scene.c() }
    }

    fn udp(self, truth: &Truth, name: &str) -> Result<u64> {
        Ok(u64::try_from(truth.protocol(&format!("{}.{name}", self.udp)))?)
    }
}

/// A receive buffer that is full, and ports that nobody listens at: between pods and over loopback, IPv4 and IPv6.
pub(super) fn drops(_: Scale, _: Option<u32>) -> Result<()> {
    let Some(mut scene) = Scene::new()? else { return Ok(()) };
    let [v4, v6] = scene.addresses();
    let ways = [
        Way { local: false, address: v4, udp: "Udp" },
        Way { local: false, address: v6, udp: "Udp6" },
        Way { local: true, address: Ipv4Addr::LOCALHOST.into(), udp: "Udp" },
        Way { local: true, address: Ipv6Addr::LOCALHOST.into(), udp: "Udp6" },
    ];
    for way in ways {
        full_buffer(&mut scene, way)?;
        nobody_listens(&mut scene, way)?;
    }
    scene.agent.take().map_or(Ok(()), crate::agent::Agent::terminate)
}

/// A drop counts for the container that holds the socket.
fn full_buffer(scene: &mut Scene, way: Way) -> Result<()> {
    const DATAGRAMS: usize = 300;
    // From this kernel on it says which socket refused a packet; before, only the pod is known.
    let holder = if kernel_older_than(6, 11) { "" } else { "s" };
    let to = scene.s()?.hold_udp(SocketAddr::new(way.address, 0), 4096)?;
    let [_, before] = scene.truths()?;
    way.sender(scene)?.traffic(&send(to, DATAGRAMS))?;
    let found = scene.look()?;
    let errors = way.udp(&(&scene.truths()?[1] - &before), "RcvbufErrors")?;
    ensure!((1..DATAGRAMS as u64).contains(&errors), "{way:?}: the kernel refused {errors} of {DATAGRAMS} datagrams");
    check(way, found, &these(&[(holder, "receive", "SOCKET_RCVBUFF", errors)]))
}

/// A packet to a closed port meets no socket: the pod alone is known.
fn nobody_listens(scene: &mut Scene, way: Way) -> Result<()> {
    const DATAGRAMS: u64 = 23;
    const CONNECTIONS: u64 = 5;
    let to = SocketAddr::new(way.address, CLOSED);
    let [_, before] = scene.truths()?;
    way.sender(scene)?.traffic(&send(to, DATAGRAMS as usize))?;
    for _ in 0..CONNECTIONS {
        ensure!(way.sender(scene)?.open_tcp(to).is_err(), "{way:?}: somebody listens");
    }
    let found = scene.look()?;
    let truth = &scene.truths()?[1] - &before;
    let (no_ports, resets) = (way.udp(&truth, "NoPorts")?, u64::try_from(truth.protocol("Tcp.OutRsts"))?);
    ensure!((no_ports, resets) == (DATAGRAMS, CONNECTIONS), "{way:?}: the kernel counted {no_ports} and {resets}");
    check(way, found, &these(&[("", "receive", "NO_SOCKET", no_ports + resets)]))
}

/// The server's pod alone has these.
fn check(way: Way, [client, server]: [Drops; 2], expected: &Drops) -> Result<()> {
    ensure!(server == *expected, "{way:?}: {server:?} were dropped, expected {expected:?}");
    ensure!(client.is_empty(), "{way:?}: of the pod that sent, {client:?} were dropped");
    Ok(())
}
