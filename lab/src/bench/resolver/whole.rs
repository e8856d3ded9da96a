//! What a whole agent has in memory when a resolver tells it who its peers are: a pod sends to addresses of the cluster,
//! which another pod takes all of for its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::super::usage;
use crate::actor::{Command, Pace, Sizes};
use crate::agent::Agent;
use crate::cases::{Stage, wait_for_pods};
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;

const PORT: u16 = 7_000;
/// Where the cluster's pods, Services and nodes are; the lab's own pods are elsewhere.
const NETWORKS: [(Ipv4Addr, u8); 3] =
    [(Ipv4Addr::new(10, 0, 0, 0), 14), (Ipv4Addr::new(172, 16, 0, 0), 12), (Ipv4Addr::new(192, 168, 0, 0), 16)];
/// Scrapes before memory is looked at: the first ones make room.
const SCRAPES: u32 = 10;

/// Memory of an agent that knows its peers, now and at its peak, in bytes.
///
/// # Errors
/// When it is not told who one of these addresses is.
pub(super) fn measure(url: &str, addresses: &[IpAddr]) -> Result<(u64, u64)> {
    let stage = Stage::new(None)?;
    let peers = format!("resolver={url}");
    let agent = stage.agent_with(None, &["--kubernetes.peers", &peers])?;
    let [here, there] = ["here", "there"].map(|name| Pod::create(&stage.node, PodSpec::new("cluster", name, &["c"])));
    let (here, there) = (here?, there?);
    NETWORKS.iter().try_for_each(|network| here.route(*network, &there))?;
    here.introduce(&there)?;
    stage.announce(&[&here, &there])?;
    wait_for_pods(&agent, &["here", "there"])?;
    there.container("c")?.hold_udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), 1 << 20)?;
    for address in addresses {
        let to = SocketAddr::new(*address, PORT);
        let sizes = Sizes::List(vec![100]);
        let send = Command::UdpSend { to, sizes, connected: false, pace: Pace::Free };
        here.container("c")?.traffic(&send).with_context(|| format!("sending to {address}"))?;
    }
    let known = |samples: &Samples| samples.get("observer_agent_peer_addresses", &[]);
    let wanted = addresses.len() as f64;
    let told = agent.scrape_until(super::REST, |samples| known(samples).is_some_and(|known| known >= wanted))?;
    ensure!(known(&told) >= Some(wanted), "{:?} of {wanted} addresses are known:\n{}", known(&told), agent.log());
    (0..SCRAPES).try_for_each(|_| agent.scrape().map(drop))?;
    let memory = usage::memory(agent.pid())?;
    Agent::terminate(agent)?;
    Ok(memory)
}
