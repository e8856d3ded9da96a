//! Who called whom, of connections that nobody saw begin.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::{CLIENT, HERE, SERVER, Scene, Way, quiet};
use crate::actor::{Command, ServeMode, Traffic};
use crate::cases::count::{Counted, check_tcp};
use crate::cases::stage::Scale;

/// Connections that are older than the agent: every byte that they carry from now on is the client's at one end and the
/// server's at the other, by the server's port.
pub fn older_roles(_: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let ways = scene.ways()?;
    let mut old: Vec<(SocketAddr, Vec<u64>)> = Vec::new();
    for way in &ways {
        let to = way.server.serve_tcp(way.any_port(), ServeMode::Echo)?;
        let connections = (0..3).map(|_| way.client.open_tcp(to).map(|(number, _)| number));
        old.push((to, connections.collect::<Result<_>>()?));
    }
    let agent = scene.agent()?;
    for (way, (to, old)) in ways.iter().zip(old) {
        let before = quiet(&scene, &agent)?;
        let truths = scene.truths()?;
        let mut sent = Traffic::default();
        for connection in old {
            let some = way.client.traffic(&Command::TcpWrite { connection, bytes: 5_000, reply_bytes: 5_000 })?;
            sent.sent_bytes += some.sent_bytes;
            sent.received_bytes += some.received_bytes;
        }
        ensure!((sent.sent_bytes, sent.received_bytes) == (15_000, 15_000), "{sent:?}");
        let after = quiet(&scene, &agent)?;
        let now = scene.truths()?;
        let added = [&now[0] - &truths[0], &now[1] - &truths[1]];
        let counted = Counted { before: &before, after: &after };
        let (here, there) = ((HERE, CLIENT), (way.server_pod, SERVER));
        check_tcp(&counted, here, there, way.address, sent, &added.each_ref())?;
        check_role(&counted, way, here, "client", to)?;
        check_role(&counted, way, there, "server", to)?;
    }
    Ok(())
}

/// Everything of the container stands under one role and port.
fn check_role(
    counted: &Counted<'_>,
    way: &Way<'_>,
    (pod, container): (&str, &str),
    role: &str,
    to: SocketAddr,
) -> Result<()> {
    let port = to.port().to_string();
    let all = [("pod", pod), ("container", container)];
    let right = [all[0], all[1], ("protocol", "tcp"), ("role", role), ("port", port.as_str())];
    let (all, right) = (counted.of(&all), counted.of(&right));
    ensure!(all == right, "to {}: of {all:?} in {pod}/{container}, {right:?} are the {role}'s at {port}", way.address);
    Ok(())
}
