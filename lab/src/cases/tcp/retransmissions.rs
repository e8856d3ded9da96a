//! Segments that are sent again, and resets.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::{Scene, Seen, Way, accept, quiet, state, until_all_seen, wait_for_count};
use crate::actor::{Command, Drop, Fault};
use crate::agent::Agent;
use crate::cases::stage::Scale;
use crate::samples::Samples;
use crate::truth::Truth;

pub(super) const AGAIN: &str = "observer_tcp_retransmitted_segments_total";
pub(super) const RESETS: &str = "observer_tcp_resets_total";

/// What is not heard is sent again: as many segments as the kernel counts in the namespace.
pub fn tcp_retransmissions(_: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let agent = scene.agent()?;
    for way in scene.ways()? {
        until_all_seen(way.address, || data_again(&scene, &agent, &way))?;
        until_all_seen(way.address, || answer_again(&scene, &agent, &way))?;
    }
    Ok(())
}

fn data_again(scene: &Scene, agent: &Agent, way: &Way<'_>) -> Result<Seen> {
    let (listener, to) = way.listen()?;
    let connection = way.client.open_tcp(to)?.0;
    let accepted = accept(way.server, listener)?;
    let before = quiet(scene, agent)?;
    let truths = scene.truths()?;
    way.server.run(&Command::Fault(Fault::Deafen { socket: accepted, drop: Drop::Everything }))?;
    way.client.traffic(&Command::TcpWrite { connection, bytes: 20_000, reply_bytes: 0 })?;
    wait_for_count(way.client.pid(), "Tcp.RetransSegs", truths[0].protocol("Tcp.RetransSegs"), 3)?;
    way.server.run(&Command::Fault(Fault::Deafen { socket: accepted, drop: Drop::Nothing }))?;
    let last = state(way.client, Fault::Confirmed { connection })?;
    let seen = compare(scene, agent, way, to, (&before, &truths), true)?;
    ensure!(last.retransmitted >= 3, "{last:?}");
    state(way.client, Fault::Reset { connection })?;
    Ok(seen)
}

fn answer_again(scene: &Scene, agent: &Agent, way: &Way<'_>) -> Result<Seen> {
    let (listener, to) = way.listen()?;
    way.server.run(&Command::Fault(Fault::Deafen { socket: listener, drop: Drop::AllButSyn }))?;
    let before = quiet(scene, agent)?;
    let truths = scene.truths()?;
    let connection = way.client.open_tcp(to)?.0;
    let counted = Truth::protocol(&truths[usize::from(way.server_pod != super::HERE)], "Tcp.RetransSegs");
    wait_for_count(way.server.pid(), "Tcp.RetransSegs", counted, 1)?;
    way.server.run(&Command::Fault(Fault::Deafen { socket: listener, drop: Drop::Nothing }))?;
    accept(way.server, listener)?;
    let seen = compare(scene, agent, way, to, (&before, &truths), false)?;
    state(way.client, Fault::Reset { connection })?;
    Ok(seen)
}

/// One end has sent again, the other has not.
pub(super) fn compare(
    scene: &Scene,
    agent: &Agent,
    way: &Way<'_>,
    to: SocketAddr,
    (before, truths): (&Samples, &[Truth; 2]),
    client: bool,
) -> Result<Seen> {
    let after = quiet(scene, agent)?;
    let now = scene.truths()?;
    let counted: i64 = (0..2).map(|at| (&now[at] - &truths[at]).protocol("Tcp.RetransSegs")).sum();
    let ends = [true, false].map(|client| scene.added(way, client, Some(to.port()), (AGAIN, &[]), [before, &after]));
    let made = u64::try_from(counted)?;
    ensure!(made > 0, "to {}: the kernel sent nothing again", way.address);
    Seen::compare(ends, if client { [made, 0] } else { [0, made] })
}

/// Each reset, at the end that sent it and at the one that received it.
pub fn tcp_resets(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let agent = scene.agent()?;
    for way in scene.ways()? {
        let (listener, to) = way.listen()?;
        let (by_client, by_server) = (scale.of(30, 10), scale.of(20, 6));
        let before = quiet(&scene, &agent)?;
        let truths = scene.truths()?;
        for at in 0..by_client + by_server {
            let here = way.client.open_tcp(to)?.0;
            let there = accept(way.server, listener)?;
            let (container, connection) = if at < by_client { (way.client, here) } else { (way.server, there) };
            state(container, Fault::Reset { connection })?;
        }
        let after = quiet(&scene, &agent)?;
        let resets = |client, direction| {
            scene.added(&way, client, Some(to.port()), (RESETS, &[("direction", direction)]), [&before, &after])
        };
        let found =
            [resets(true, "transmit"), resets(false, "receive"), resets(true, "receive"), resets(false, "transmit")];
        let expected = [by_client, by_client, by_server, by_server];
        ensure!(found == expected, "to {}: reported {found:?}, sent {expected:?}", way.address);
        let now = scene.truths()?;
        let counted: i64 = (0..2).map(|at| (&now[at] - &truths[at]).protocol("Tcp.OutRsts")).sum();
        ensure!(u64::try_from(counted)? == by_client + by_server, "the kernel counted {counted} resets");
        // Of these pods: other cases may run beside this one.
        let active: f64 = [super::HERE, super::THERE]
            .map(|pod| after.sum("observer_tcp_connections_active", &[("namespace", "cases"), ("pod", pod)]))
            .iter()
            .sum();
        ensure!(active == 0.0, "{active} connections outlived their resets");
    }
    Ok(())
}
