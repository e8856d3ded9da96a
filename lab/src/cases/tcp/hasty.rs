//! First data that arrives while another CPU still makes its connection out of the handshake.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::{CLIENT, HERE, SERVER, THERE, opened};
use crate::actor::{Command, Drop, Fault};
use crate::cases::PATIENCE;
use crate::cases::count::{Count, Counted};
use crate::cases::stage::{Scale, Stage, settled, wait_for_pods};
use crate::guest::{Guest, Peer};
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;

/// The port that the first connection comes from.
const FIRST_PORT: u16 = 7_000;

/// The kernel filters such a packet for the listener, finds then that the other CPU was faster, and filters it for the connection
/// again (`req_stolen` in `tcp_v4_rcv` of net/ipv4/tcp_ipv4.c). It is counted once. One that is sent again is counted again.
pub fn tcp_hasty(scale: Scale, _: Option<u32>) -> Result<()> {
    let stage = Stage::new(None)?;
    let agent = stage.agent()?;
    let here = Pod::create(&stage.node, PodSpec::new("cases", HERE, &[CLIENT, SERVER]))?;
    let there = Pod::create(&stage.node, PodSpec::new("cases", THERE, &["app"]))?;
    here.introduce(&there)?;
    let mut guest = Guest::take_over(&there)?;
    stage.announce(&[&here, &there])?;
    wait_for_pods(&agent, &[HERE, THERE])?;
    let connections = scale.of(1_000, 50);
    let before = settled(&agent)?;
    let server = here.container(SERVER)?;
    let listen = |address, backlog| {
        let fault = Fault::Listen { address: SocketAddr::new(address, 0), backlog, defer_s: 0 };
        let (listener, to) = opened(server, fault)?;
        anyhow::Ok((listener, Peer { address: to, mac: here.mac().context("the pod has no interface")? }))
    };
    let check = |guest: &Guest, peer: Peer| {
        let sent = Count { bytes: guest.sent.bytes, packets: guest.sent.packets };
        let received = |after: &Samples| Counted { before: &before, after }.received(HERE, SERVER);
        agent.scrape_until(PATIENCE, |samples| received(samples).packets >= sent.packets)?;
        let after = settled(&agent)?;
        ensure!(received(&after) == sent, "to {}: {sent:?} were sent, {:?} counted", peer.address, received(&after));
        anyhow::Ok(())
    };
    for address in [IpAddr::from(here.ipv4()), here.ipv6().into()] {
        let (listener, peer) = listen(address, u32::from(connections))?;
        // What the listener takes for a filter is time in which the other CPU can be faster.
        server.run(&Command::Fault(Fault::Deafen { socket: listener, drop: Drop::NothingSlowly }))?;
        guest.rush(FIRST_PORT..FIRST_PORT + connections, peer)?;
        check(&guest, peer)?;
        // Whose queue is full: it lets the ends of handshakes go, and each that comes is another packet.
        let (_, full) = listen(address, 1)?;
        let begun =
            (FIRST_PORT..).take(3).map(|port| Ok((port, guest.begin(port, full)?))).collect::<Result<Vec<_>>>()?;
        for ((port, number), times) in begun.into_iter().zip([1, 1, 20]) {
            guest.confirm(port, full, number, times)?;
        }
        check(&guest, full)?;
        // Of a connection that there is room for, what follows may be of the same size and numbers, in the same memory.
        let (_, wide) = listen(address, 64)?;
        for port in (FIRST_PORT..).take(20) {
            let number = guest.begin(port, wide)?;
            // A copy of a packet of IPv6 is no other packet.
            guest.confirm(port, wide, number, if address.is_ipv4() { 2 } else { 1 })?;
            guest.break_off(port, wide, number)?;
        }
        check(&guest, wide)?;
    }
    agent.terminate()
}
