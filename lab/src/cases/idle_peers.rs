//! More peers than the table of edges holds, in turn: those that have fallen silent give their places to new ones.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::PATIENCE;
use super::count::{Count, DIRECTIONS, ip_header};
use super::restart::Monotonic;
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, ServeMode};
use crate::agent::Agent;
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;

/// Addresses of the world outside, all of them one pod's (RFC 2544).
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);
const CROWD: &str = "crowd";
const SERVER: &str = "server";
const NEWCOMER: &str = "newcomer";
/// Outside of the range of ports for clients, so that everybody can tell who is the server.
const UDP_PORT: u16 = 9_000;
const TCP_PORT: u16 = 9_001;
/// Edges that fit.
const EDGES: u32 = 64;
/// Addresses that call first: more than three quarters of the table.
const FIRST: u32 = 50;
/// Those that call when places are free again. With the first ones they are more than the table holds.
const LATER: u32 = 15;
/// Connections that live and rest meanwhile, each to an address of its own.
const RESTING: u32 = 3;
/// A minute of silence, and what it takes to see it.
const SILENCE: Duration = Duration::from_secs(150);
const SIZE: u32 = 100;

/// A server is called by 65 addresses of the world outside, and the table has 64 places: no counter goes back, the sums are
/// what was sent to the byte, who speaks again is counted in the same series, connections that rest stay where they began, and
/// a pod that comes last has series of its own.
pub fn idle_peers(_: Scale, _: Option<u32>) -> Result<()> {
    let stage = Stage::new(Some(EDGES))?;
    let [crowd, server, newcomer] =
        [CROWD, SERVER, NEWCOMER].map(|name| Pod::create(&stage.node, PodSpec::new("cases", name, &["c"])));
    let (crowd, server, newcomer) = (crowd?, server?, newcomer?);
    server.route(NETWORK, &crowd)?;
    [&crowd, &newcomer].iter().try_for_each(|pod| server.introduce(pod))?;
    // Pods that are there for another reason must not take a part of the table.
    let options = ["--pods.namespaces", "cases"];
    let agent = stage.agent_with(None, &options)?;
    stage.announce(&[&crowd, &server, &newcomer])?;
    wait_for_pods(&agent, &[CROWD, SERVER, NEWCOMER])?;
    let to = SocketAddr::from((server.ipv4(), UDP_PORT));
    server.container("c")?.serve_udp(to, true)?;
    let crowds = crowd.container("c")?;
    crowds.serve_tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, TCP_PORT)), ServeMode::Echo)?;
    let connections: Vec<u64> = (0..RESTING)
        .map(|number| Ok(server.container("c")?.open_tcp(SocketAddr::from((address(number), TCP_PORT)))?.0))
        .collect::<Result<_>>()?;

    let mut watch = Monotonic::default();
    let mut sent = 0;
    let sockets: Vec<u64> = (0..FIRST + LATER)
        .map(|number| crowds.open_udp(SocketAddr::from((address(number), 0)), None))
        .collect::<Result<_>>()?;
    let (first, later) = sockets.split_at(FIRST as usize);
    sent += call(crowds, first, to)?;
    let samples = settled(&agent)?;
    watch.see(&samples)?;
    check(&samples, sent)?;
    let used = samples.sum("observer_agent_edges_used", &[]);
    ensure!(used > f64::from(EDGES) * 0.75, "{used} edges do not press a table of {EDGES}");

    let samples = wait_for_places(&agent, &mut watch)?;
    check(&samples, sent)?;
    let evicted = samples.sum("observer_agent_edges_evicted_total", &[]);
    ensure!(evicted > 0.0, "no edge is said to have lost its place");

    // New ones, and some that have lost their places.
    sent += call(crowds, later, to)?;
    sent += call(crowds, &first[..4], to)?;
    let samples = settled(&agent)?;
    watch.see(&samples)?;
    check(&samples, sent)?;

    // Who comes last is known by name.
    let socket = newcomer.container("c")?.open_udp(SocketAddr::from((newcomer.ipv4(), 0)), None)?;
    let theirs = call(newcomer.container("c")?, &[socket], to)?;
    let samples = settled(&agent)?;
    watch.see(&samples)?;
    check(&samples, sent)?;
    let port = UDP_PORT.to_string();
    for (pod, peer) in [(SERVER, NEWCOMER), (NEWCOMER, SERVER)] {
        check_udp(&samples, &[("pod", pod), ("peer_kind", "pod"), ("peer_pod", peer), ("port", &port)], theirs)?;
    }
    let overflowed = samples.sum("observer_agent_edges_overflowed_total", &[]);
    ensure!(overflowed == 0.0, "{overflowed} edges found no place");

    // What has rested speaks, and ends where it began.
    for connection in &connections {
        let write = Command::TcpWrite { connection: *connection, bytes: 1_000, reply_bytes: 1_000 };
        server.container("c")?.traffic(&write)?;
        check_active(&agent, RESTING)?;
    }
    for connection in connections {
        server.container("c")?.run(&Command::TcpClose { connection })?;
    }
    check_active(&agent, 0)?;

    // All of it is in the kernel for the next agent.
    let address = agent.address();
    agent.kill9()?;
    let agent = stage.agent_with(Some(address), &options)?;
    wait_for_pods(&agent, &[CROWD, SERVER, NEWCOMER])?;
    let samples = settled(&agent)?;
    watch.see(&samples)?;
    check(&samples, sent)?;
    agent.terminate()
}

/// One of the world outside.
fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(NETWORK.0) + 1 + number)
}

/// Sends a datagram from each of these sockets, and has its echo. Says how many.
fn call(from: &Container, sockets: &[u64], to: SocketAddr) -> Result<u64> {
    for socket in sockets {
        let talk = from.traffic(&Command::UdpTalk { socket: *socket, datagrams: vec![(to, SIZE)] })?;
        ensure!(talk.received_datagrams == 1, "{talk:?} of one datagram");
    }
    Ok(sockets.len() as u64)
}

/// All that the world outside has sent to the server and had from it is in one series in each direction.
fn check(samples: &Samples, datagrams: u64) -> Result<()> {
    let port = UDP_PORT.to_string();
    check_udp(samples, &[("pod", SERVER), ("peer_kind", "external"), ("role", "server"), ("port", &port)], datagrams)
}

fn check_udp(samples: &Samples, labels: &[(&str, &str)], datagrams: u64) -> Result<()> {
    let bytes = datagrams * (u64::from(SIZE) + ip_header(IpAddr::V4(NETWORK.0)) + 8);
    for direction in DIRECTIONS {
        let labels = [labels, &[("protocol", "udp"), ("direction", direction)]].concat();
        // Counters below 2^53 are exact in a float.
        let [bytes_found, packets] = ["observer_traffic_bytes_total", "observer_traffic_packets_total"]
            .map(|family| samples.sum(family, &labels) as u64);
        let found = Count { bytes: bytes_found, packets };
        ensure!(found == Count { bytes, packets: datagrams }, "{labels:?}: {found:?}, {datagrams} datagrams were sent");
    }
    Ok(())
}

/// Waits until idle edges have given their places back.
fn wait_for_places(agent: &Agent, watch: &mut Monotonic) -> Result<Samples> {
    let begin = Instant::now();
    loop {
        let samples = agent.scrape()?;
        watch.see(&samples)?;
        if samples.sum("observer_agent_edges_used", &[]) <= f64::from(EDGES) * 0.6 {
            return Ok(samples);
        }
        ensure!(begin.elapsed() < SILENCE, "no edge loses its place; the agent's log:\n{}", agent.log());
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// So many connections of the server to the world outside live.
fn check_active(agent: &Agent, connections: u32) -> Result<()> {
    let port = TCP_PORT.to_string();
    let labels = [("pod", SERVER), ("peer_kind", "external"), ("role", "client"), ("port", port.as_str())];
    let active = |samples: &Samples| samples.sum("observer_tcp_connections_active", &labels);
    let right = |samples: &Samples| active(samples) == f64::from(connections);
    agent.wait_until(PATIENCE, &format!("{connections} active connections"), right)?;
    Ok(())
}
