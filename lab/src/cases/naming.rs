//! Both ends are named.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::count::{Counted, DIRECTIONS, check_udp};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::pod::{Pod, PodSpec};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn datagrams(to: SocketAddr, count: usize, size: u32) -> Command {
    Command::UdpSend { to, sizes: Sizes::List(vec![size; count]), connected: false, pace: Pace::Echoed { window: 1 } }
}

/// Two clients of one server over localhost: each end names the other, and nobody is taken for somebody else, not
/// even when a client uses the port that the other client used before.
pub fn both_names(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, "names", &["one", "two", "server"])?;
    let tcp = pod.container("server")?.serve_tcp(SocketAddr::new(LOCALHOST, 0), ServeMode::request_response(10, 20))?;
    let udp = pod.container("server")?.serve_udp(SocketAddr::new(LOCALHOST, 0), true)?;
    let before = settled(&agent)?;
    for (client, rounds) in [("one", 3), ("two", 5)] {
        let client = pod.container(client)?;
        client.traffic(&Command::TcpRequests {
            to: tcp,
            connections: rounds,
            requests: 1,
            request_bytes: 10,
            response_bytes: 20,
            parallel: 1,
        })?;
        for _ in 0..rounds {
            client.traffic(&datagrams(udp, 1, 100))?;
        }
    }
    let after = settled(&agent)?;
    let counted = Counted { before: &before, after: &after };
    for (client, rounds) in [("one", 3u64), ("two", 5)] {
        for (container, peer, role) in [(client, "server", "client"), ("server", client, "server")] {
            let both = [
                ("pod", "names"),
                ("container", container),
                ("peer_kind", "container"),
                ("peer_container", peer),
                ("role", role),
            ];
            for direction in DIRECTIONS {
                let found = |protocol, port: &str| {
                    let rest = [("protocol", protocol), ("direction", direction), ("port", port)];
                    counted.of(&[&both[..], &rest].concat())
                };
                let datagrams = found("udp", &udp.port().to_string());
                check_udp(&format!("{container} to {peer}, {direction}"), datagrams, rounds, rounds * 100, LOCALHOST)?;
                let segments = found("tcp", &tcp.port().to_string());
                ensure!(segments.packets >= rounds * 3, "{container} to {peer} over TCP: {segments:?}");
            }
            let opened = after.sum("observer_tcp_connections_opened_total", &both);
            ensure!(opened as u64 == rounds, "{container} and {peer}: {opened} connections reported, {rounds} made");
        }
    }
    let bytes = |labels: &[(&str, &str)]| counted.of(labels).bytes;
    let (named, all) = (bytes(&[("pod", "names"), ("peer_kind", "container")]), bytes(&[("pod", "names")]));
    ensure!(named == all, "{named} of {all} bytes name both ends");
    Ok(())
}

/// Pods on the host network share its address and are told apart by cgroup.
pub fn host_network(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let one = Pod::create(&stage.node, PodSpec::new("cases", "host-one", &["client"]).host_network())?;
    let two = Pod::create(&stage.node, PodSpec::new("cases", "host-two", &["server"]).host_network())?;
    stage.announce(&[&one, &two])?;
    wait_for_pods(&agent, &["host-one", "host-two"])?;
    let udp = two.container("server")?.serve_udp(SocketAddr::new(LOCALHOST, 0), true)?;
    let before = settled(&agent)?;
    one.container("client")?.traffic(&datagrams(udp, 50, 100))?;
    let after = settled(&agent)?;
    let counted = Counted { before: &before, after: &after };
    for (pod, container) in [("host-one", "client"), ("host-two", "server")] {
        check_udp(pod, counted.sent(pod, container), 50, 5_000, LOCALHOST)?;
        check_udp(pod, counted.received(pod, container), 50, 5_000, LOCALHOST)?;
    }
    let info = after.sum("observer_pod_info", &[("host_network", "true")]);
    ensure!(info == 2.0, "{info} pods are said to be on the host network");
    Ok(())
}
