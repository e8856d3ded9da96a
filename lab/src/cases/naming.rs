//! Both ends are named.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::PATIENCE;
use super::count::{Counted, DIRECTIONS, check_udp};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::cgroup;
use crate::pod::{CgroupStyle, Container, Pod, PodSpec, Qos};
use crate::samples::Samples;

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

/// Both drivers of the kubelet, on a node, on one of kind and on one of k3s: the pods have their names and classes, and
/// each has its own traffic.
pub fn drivers_and_prefixes(_: Scale, edges: Option<u32>) -> Result<()> {
    const PREFIXES: [&str; 3] = ["", "kubelet", "k3s.service"];
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let mut pods = Vec::new();
    for (driver, style) in [("cgroupfs", CgroupStyle::Cgroupfs), ("systemd", CgroupStyle::Systemd)] {
        for (at, qos) in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort].into_iter().enumerate() {
            let name = format!("{driver}-{at}");
            let spec = PodSpec::new("cases", &name, &["client", "server"]).style(style.clone()).qos(qos);
            let spec = PodSpec { prefix: PREFIXES[at].to_owned(), ..spec };
            pods.push((name, qos, Pod::create(&stage.node, spec)?));
        }
    }
    let all: Vec<&Pod> = pods.iter().map(|(.., pod)| pod).collect();
    stage.announce(&all)?;
    for (name, qos, pod) in &pods {
        let info = [("namespace", "cases"), ("pod", name), ("uid", pod.uid()), ("qos_class", qos.class())];
        let samples = agent.scrape_until(PATIENCE, |samples| samples.get("observer_pod_info", &info).is_some())?;
        let shown: Vec<_> = samples.select("observer_pod_info", &[]).collect();
        ensure!(samples.get("observer_pod_info", &info) == Some(1.0), "{info:?} is not among {shown:#?}");
    }
    let before = settled(&agent)?;
    for (count, (.., pod)) in (1..).zip(&pods) {
        let to = pod.container("server")?.serve_udp(SocketAddr::new(LOCALHOST, 0), true)?;
        pod.container("client")?.traffic(&datagrams(to, count, 100))?;
    }
    let after = settled(&agent)?;
    let counted = Counted { before: &before, after: &after };
    for (count, (name, ..)) in (1u64..).zip(&pods) {
        for (container, peer, role) in [("client", "server", "client"), ("server", "client", "server")] {
            for direction in DIRECTIONS {
                let own = [("namespace", "cases"), ("pod", name), ("container", container), ("direction", direction)];
                let named = [("peer_kind", "container"), ("peer_container", peer), ("role", role)];
                let found = counted.of(&[&own[..], &named].concat());
                check_udp(&format!("{name}/{container}, {direction}"), found, count, count * 100, LOCALHOST)?;
            }
        }
        ensure!(counted.pod(name, "transmit").packets == 2 * count, "{name} has sent what another pod has");
    }
    Ok(())
}

/// A cgroup that a container makes below its own, as systemd and nested runtimes do, with the container's process in it.
struct Inside<'a> {
    container: &'a Container,
    above: PathBuf,
    directory: PathBuf,
    ended: bool,
}

impl<'a> Inside<'a> {
    fn enter(container: &'a Container, name: &str) -> Result<Self> {
        let above = container.cgroup().unified().context("sockets are told apart in the v2 tree, and there is none")?;
        let directory = above.join(name);
        std::fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let inside = Self { container, above, directory, ended: false };
        inside.move_to(&inside.directory)?;
        Ok(inside)
    }

    /// Goes back and removes the cgroup. A thread that has just ended may still hold it for a moment.
    fn end(&self) -> Result<()> {
        let outcome = self.move_to(&self.above).and_then(|()| cgroup::remove_when_empty(&self.directory));
        outcome.with_context(|| format!("leaving {}", self.directory.display()))
    }

    /// [`Inside::end`], for those who must know that it is gone.
    fn leave(mut self) -> Result<()> {
        self.ended = true;
        self.end()
    }

    fn move_to(&self, directory: &Path) -> Result<()> {
        let file = directory.join("cgroup.procs");
        std::fs::write(&file, self.container.pid().to_string()).with_context(|| format!("writing {}", file.display()))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Err(error) = self.end() {
            eprintln!("observer-lab: {error:#}");
        }
    }
}

/// A container with cgroups of its own inside, one that stays and many that come and go: all of it is the container's, at
/// both ends, and those that went take no room.
pub fn nested_cgroups(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let pod = stage.pod(&agent, "nested", &["client", "server"])?;
    let (client, server) = (pod.container("client")?, pod.container("server")?);
    let udp = server.serve_udp(SocketAddr::new(LOCALHOST, 0), true)?;
    let tcp = server.serve_tcp(SocketAddr::new(LOCALHOST, 0), ServeMode::request_response(10, 20))?;
    let before = settled(&agent)?;
    let request = Command::TcpRequests {
        to: tcp,
        connections: 3,
        requests: 1,
        request_bytes: 10,
        response_bytes: 20,
        parallel: 1,
    };
    let (sessions, stable) = (40, 7);
    for session in 0..sessions {
        let inside = Inside::enter(client, &format!("session-{session}.scope"))?;
        client.traffic(&datagrams(udp, 1, 100))?;
        client.traffic(&request)?;
        if scale == Scale::Guest {
            // As in `endings`: an emulated processor needs a moment until the cgroup is seen.
            std::thread::sleep(Duration::from_millis(200));
        }
        inside.leave()?;
    }
    let inside = Inside::enter(client, "init.scope")?;
    client.traffic(&datagrams(udp, stable as usize, 100))?;
    client.traffic(&request)?;
    // TCP and UDP: two of the cgroup that stays, two of the container's own, which has all that went, and two of the server,
    // whose client is one container.
    let expected = (6.0, 0.0);
    let slots_and_pending = |samples: &Samples| {
        (samples.sum("observer_agent_edges_used", &[]), samples.sum("observer_agent_pending_bytes", &[]))
    };
    let samples = agent.scrape_until(PATIENCE, |samples| slots_and_pending(samples) == expected)?;
    let found = slots_and_pending(&samples);
    ensure!(
        found == expected,
        "{found:?} slots and bytes without a name, expected {expected:?}; cgroups that are there: {:?}; the agent's log:\n{}",
        cgroup::left(),
        agent.log()
    );
    let after = settled(&agent)?;
    let counted = Counted { before: &before, after: &after };
    let port = udp.port().to_string();
    for (container, peer, role) in [("client", "server", "client"), ("server", "client", "server")] {
        let both = [("pod", "nested"), ("container", container), ("peer_container", peer), ("role", role)];
        for direction in DIRECTIONS {
            let found =
                counted.of(&[&both[..], &[("protocol", "udp"), ("direction", direction), ("port", &port)]].concat());
            let made = sessions + stable;
            check_udp(&format!("{container} to {peer}, {direction}"), found, made, made * 100, LOCALHOST)?;
        }
        let opened = after.sum("observer_tcp_connections_opened_total", &both) as u64;
        ensure!(opened == (sessions + 1) * 3, "{container} and {peer}: {opened} connections reported");
    }
    let bytes = |labels: &[(&str, &str)]| counted.of(labels).bytes;
    let (named, all) = (bytes(&[("pod", "nested"), ("peer_kind", "container")]), bytes(&[("pod", "nested")]));
    ensure!(named == all, "{named} of {all} bytes name both ends");
    drop(inside);
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
