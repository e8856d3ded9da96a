//! Connections count once, when they are established, whatever comes to a listener before.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::{Scene, Seen, Way, accept, opened, quiet, state, until_all_seen, wait_for_count};
use crate::actor::{Command, Drop, Fault};
use crate::agent::Agent;
use crate::cases::kernel_older_than;
use crate::cases::stage::Scale;

pub(super) const OPENED: &str = "observer_tcp_connections_opened_total";

/// A queue that is full, and a server that waits for data: each segment that meets the listener could be taken for the
/// end of a handshake. As many connections are opened as the kernel counts.
pub fn tcp_opened(_: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let agent = scene.agent()?;
    for way in scene.ways()? {
        // On an emulated 6.1 one run of five counted no overflow: there the queue was not full, and nothing is to be compared.
        if !kernel_older_than(6, 12) {
            until_all_seen(way.address, || compare(&scene, &agent, &way, full_queue))?;
        }
        until_all_seen(way.address, || compare(&scene, &agent, &way, deferred))?;
        until_all_seen(way.address, || compare(&scene, &agent, &way, both_families))?;
    }
    Ok(())
}

/// Opens connections in a way and gives their port and number; both ends have opened as many, and so says the kernel.
fn compare(scene: &Scene, agent: &Agent, way: &Way<'_>, open: fn(&Way<'_>) -> Result<(u16, u64)>) -> Result<Seen> {
    let before = quiet(scene, agent)?;
    let truths = scene.truths()?;
    let (port, made) = open(way)?;
    let after = quiet(scene, agent)?;
    let now = scene.truths()?;
    let counted = |name| (0..2).map(|at| (&now[at] - &truths[at]).protocol(name)).sum::<i64>();
    let (active, passive) = (counted("Tcp.ActiveOpens"), counted("Tcp.PassiveOpens"));
    let made_there = i64::try_from(made)?;
    ensure!((active, passive) == (made_there, made_there), "made {made}, the kernel counted {active} and {passive}");
    let found = [true, false].map(|client| scene.added(way, client, Some(port), (OPENED, &[]), [&before, &after]));
    Seen::compare(found, [made; 2])
}

/// Three connections to a listener whose queue has room for two. The third is established when one is accepted; before,
/// it is sent again and again what the listener has no place for.
fn full_queue(way: &Way<'_>) -> Result<(u16, u64)> {
    let fault = Fault::Listen { address: way.any_port(), backlog: 1, defer_s: 0 };
    let (listener, to) = opened(way.server, fault)?;
    let deafen = |drop| way.server.run(&Command::Fault(Fault::Deafen { socket: listener, drop }));
    deafen(Drop::AllButSyn)?;
    let connections = (0..3).map(|_| way.client.open_tcp(to).map(|open| open.0)).collect::<Result<Vec<_>>>()?;
    for connection in &connections {
        way.client.traffic(&Command::TcpWrite { connection: *connection, bytes: 1, reply_bytes: 0 })?;
    }
    let overflows = super::count(way.server.pid(), OVERFLOWS)?;
    deafen(Drop::Nothing)?;
    wait_for_count(way.server.pid(), OVERFLOWS, overflows, 1)?;
    for _ in &connections {
        accept(way.server, listener)?;
    }
    for connection in connections {
        state(way.client, Fault::Reset { connection })?;
    }
    Ok((to.port(), 3))
}

/// What finds no room in a listener's queue (`tcp_v4_syn_recv_sock` in net/ipv4/tcp_ipv4.c).
const OVERFLOWS: &str = "TcpExt.ListenOverflows";

/// A server of both families: to its socket, an IPv4 client has an IPv6 address.
fn both_families(way: &Way<'_>) -> Result<(u16, u64)> {
    let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let (listener, at) = opened(way.server, Fault::Listen { address, backlog: 64, defer_s: 0 })?;
    let to = SocketAddr::new(way.address, at.port());
    for _ in 0..5 {
        let connection = way.client.open_tcp(to)?.0;
        accept(way.server, listener)?;
        state(way.client, Fault::Reset { connection })?;
    }
    Ok((to.port(), 5))
}

/// A server that wants to hear of connections with data alone (`TCP_DEFER_ACCEPT`): the ACK that ends the handshake is let
/// go, and so is every one after it, until data comes.
fn deferred(way: &Way<'_>) -> Result<(u16, u64)> {
    let fault = Fault::Listen { address: way.any_port(), backlog: 64, defer_s: 30 };
    let (listener, to) = opened(way.server, fault)?;
    for _ in 0..5 {
        let connection = way.client.open_tcp(to)?.0;
        way.client.traffic(&Command::TcpWrite { connection, bytes: 1, reply_bytes: 0 })?;
        accept(way.server, listener)?;
        state(way.client, Fault::Reset { connection })?;
    }
    Ok((to.port(), 5))
}
