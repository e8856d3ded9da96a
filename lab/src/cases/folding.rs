//! Slots of containers that nobody knows become one, while the edge table is read.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use observer::kernel::{DEFAULT_EDGES, EdgeTable, Kernel, LoadOptions, Pins};

use super::stage::{Scale, Stage};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::cgroup;
use crate::pod::{Pod, PodSpec};

/// Different ports that are talked to.
const PORTS: u32 = 6;

/// What all slots have counted together: bytes and packets of both directions, and connections that were opened.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    tx: (u64, u64),
    rx: (u64, u64),
    opened: u64,
}

/// Every byte that a table has counted is read in one slot or another at any moment in which its slots are folded, and it is the
/// unattributed one at the end. No agent runs: the table is the case's own.
pub fn folding(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let pins = Pins::open(stage.bpffs())?;
    let options = LoadOptions { edges: edges.unwrap_or(DEFAULT_EDGES), debug: false, dns_ports: 0 };
    let mut kernel = Kernel::load(&pins, options)?;
    let pod = Pod::create(&stage.node, PodSpec::new("cases", "nobody", &["client", "server"]))?;
    let directory = pod.cgroup().unified().context("this machine has no cgroup v2 tree")?;
    kernel.attacher.attach(&cgroup::attach_point(&directory)?)?;

    let datagrams = scale.of(500, 50);
    let expected = talk(&pod, datagrams)?;
    let table = &kernel.table;
    let before = sum(table);
    // Each datagram of the client, and its echo: one packet of each end in each direction. TCP comes on top.
    let least = u64::from(PORTS * datagrams) * 2;
    ensure!(before.tx.1 > least && before.rx.1 > least, "{before:?} is less than {least} packets each way");
    ensure!(
        before.tx.0 > expected && before.rx == before.tx,
        "{before:?} is not all of {expected} bytes, sent and received"
    );
    ensure!(before.opened > 0, "no connection was counted: {before:?}");

    let slots: Vec<_> = table.read().iter().filter_map(|reading| Some((reading.slot, reading.key?))).collect();
    let least = usize::try_from(PORTS)?;
    ensure!(slots.len() > least, "{} slots for traffic to {least} ports, both ways", slots.len());
    let mut seen = Vec::new();
    table.fold(&slots, &mut || seen.push(sum(table)))?;
    ensure!(
        !seen.is_empty() && seen.iter().all(|sum| *sum == before),
        "was {before:?}, and read while it was folded {seen:?}"
    );
    ensure!(sum(table) == before, "was {before:?}, and is {:?} after all was folded", sum(table));
    let left: BTreeSet<u32> = table.read().iter().filter(|reading| reading.key.is_some()).map(|one| one.slot).collect();
    ensure!(left.is_empty(), "slots {left:?} still have edges");

    // The slots are free again, and count from nothing.
    let more = talk(&pod, datagrams)?;
    let after = sum(table);
    ensure!(
        after.tx.0 > before.tx.0 + more && after.rx == after.tx,
        "{after:?} after {before:?} and {more} bytes more"
    );
    Ok(())
}

/// Datagrams to each of the ports and back, and a TCP connection. Says how many bytes of payload the datagrams had.
fn talk(pod: &Pod, datagrams: u32) -> Result<u64> {
    let (client, server) = (pod.container("client")?, pod.container("server")?);
    let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let mut bytes = 0;
    for seed in 0..PORTS {
        let to = server.serve_udp(any_port, true)?;
        let sizes = Sizes::Random { count: datagrams, min: 1, max: 1_000, seed: u64::from(seed) };
        let pace = Pace::Echoed { window: 8 };
        let sent = client.traffic(&Command::UdpSend { to, sizes, connected: false, pace })?;
        ensure!(sent.received_datagrams == u64::from(datagrams), "{sent:?} of {datagrams} datagrams");
        bytes += sent.sent_bytes + sent.received_bytes;
    }
    let to = server.serve_tcp(any_port, ServeMode::Sink)?;
    client.open_tcp(to)?;
    Ok(bytes)
}

fn sum(table: &EdgeTable) -> Sum {
    table.read().iter().fold(Sum::default(), |mut sum, reading| {
        sum.tx = (sum.tx.0 + reading.packets.tx_bytes, sum.tx.1 + reading.packets.tx_packets);
        sum.rx = (sum.rx.0 + reading.packets.rx_bytes, sum.rx.1 + reading.packets.rx_packets);
        sum.opened += reading.tcp.events.opened;
        sum
    })
}
