//! Sixty-four containers of eight pods, all talking at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::count::{Count, Counted, DIRECTIONS, Unmet, check_udp, hidden_syn_acks, is_all, sent_again, tcp_payload};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes, Traffic};
use crate::agent::Agent;
use crate::pod::{Container, ContainerSpec, Pod, PodSpec};
use crate::truth::{Interface, Truth};

const PODS: usize = 8;
const CONTAINERS: usize = 8;
/// Outside of the range of ports for clients; container `n` of a pod takes the `n`th.
const TCP_PORTS: u16 = 7_000;
const UDP_PORTS: u16 = 8_000;
/// Of TCP. Each fits into one segment, so that an interface sees it as the socket does.
const REQUEST: u32 = 500;
const RESPONSE: u32 = 700;
/// Datagrams on their way: all the clients' together stay below what a processor queues for its interfaces (1000,
/// `net.core.netdev_max_backlog`), so none is lost.
const WINDOW: u32 = 2;
/// The length of an Ethernet header, which a veth counts.
const ETHERNET: u64 = 14;
/// How long all of them may take until each has heard enough of its clients.
const TALKING: Duration = Duration::from_secs(100);

/// Who talks to whom: a job of one container, which ends at a server of another.
struct Talk {
    pod: usize,
    container: usize,
    udp: bool,
    loopback: bool,
}

impl Talk {
    /// Each container talks by TCP and by UDP to one of its own pod and to one of the next.
    fn all() -> impl Iterator<Item = Self> {
        (0..PODS * CONTAINERS * 4).map(|number| Self {
            pod: number / 4 / CONTAINERS,
            container: number / 4 % CONTAINERS,
            udp: number & 1 != 0,
            loopback: number & 2 != 0,
        })
    }

    /// Containers with an even number use TCP over IPv4 and UDP over IPv6, the others the other way round, and each
    /// talks to its like. So the bytes of a protocol in a container have headers of one length.
    fn is_ipv6(&self) -> bool {
        self.udp == self.container.is_multiple_of(2)
    }

    fn server(&self) -> (usize, usize) {
        if self.loopback {
            (self.pod, (self.container + 2) % CONTAINERS)
        } else {
            ((self.pod + 1) % PODS, self.container)
        }
    }

    fn address(&self, pods: &[Pod]) -> IpAddr {
        let pod = &pods[self.server().0];
        match (self.loopback, self.is_ipv6()) {
            (true, false) => Ipv4Addr::LOCALHOST.into(),
            (true, true) => Ipv6Addr::LOCALHOST.into(),
            (false, false) => pod.ipv4().into(),
            (false, true) => pod.ipv6().into(),
        }
    }

    /// One round of it.
    fn command(&self, pods: &[Pod], scale: Scale) -> Command {
        let to = SocketAddr::new(self.address(pods), port(self.udp, self.server().1));
        if self.udp {
            // Nothing larger than a packet of the link, and over loopback from a socket that is connected.
            let seed = (self.pod * CONTAINERS + self.container) as u64 + 1;
            let sizes = Sizes::Random { count: scale.of(8, 2), min: 1, max: 1_400, seed };
            Command::UdpSend { to, sizes, connected: self.loopback, pace: Pace::Echoed { window: WINDOW } }
        } else {
            let (request_bytes, response_bytes) = (REQUEST, RESPONSE);
            let (connections, requests) = scale.of((2, 3), (1, 2));
            Command::TcpRequests { to, connections, requests, request_bytes, response_bytes, parallel: 1 }
        }
    }

    fn protocol(&self) -> &'static str {
        if self.udp { "udp" } else { "tcp" }
    }
}

fn port(udp: bool, container: usize) -> u16 {
    // At most 8.
    (if udp { UDP_PORTS } else { TCP_PORTS }) + container as u16
}

fn pod_name(pod: usize) -> String {
    format!("crowd-{pod}")
}

fn container_name(container: usize) -> String {
    format!("c{container}")
}

fn container(pods: &[Pod], (pod, container): (usize, usize)) -> Result<&Container> {
    pods[pod].container(&container_name(container))
}

/// All of them talk at once, over loopback and between pods, by TCP and UDP, over IPv4 and IPv6. What each container
/// sent to and received from each of its peers is the truth to the byte, and so is the sum of all series.
pub fn sixty_four(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    // The sum of all series must hold these pods alone.
    let agent = stage.agent_with(None, &["--pods.namespaces", "cases"])?;
    let pods = crowd(&stage, &agent)?;
    for pod in &pods {
        for (number, container) in pod.containers().iter().enumerate() {
            serve(container, number)?;
        }
    }

    let before = settled(&agent)?;
    let begin = truths(&pods)?;
    let talks = talk(&pods, scale)?;
    let after = settled(&agent)?;
    let truths: Vec<Truth> = truths(&pods)?.iter().zip(&begin).map(|(now, then)| now - then).collect();
    let counted = Counted { before: &before, after: &after };
    stage.check_overflow(&after)?;
    check_interfaces(&counted, &talks, &truths)?;
    check_containers(&counted, &talks, &truths)?;
    if edges.is_none() {
        check_edges(&counted, &talks, &truths)?;
    }
    agent.terminate()
}

fn crowd(stage: &Stage, agent: &Agent) -> Result<Vec<Pod>> {
    let pods: Vec<Pod> = (0..PODS)
        .map(|pod| {
            let spec = PodSpec::new("cases", &pod_name(pod), &[]);
            let spec = (0..CONTAINERS)
                .fold(spec, |spec, container| spec.container(ContainerSpec::new(&container_name(container)).light()));
            Pod::create(&stage.node, spec)
        })
        .collect::<Result<_>>()?;
    for (number, pod) in pods.iter().enumerate() {
        let next = &pods[(number + 1) % PODS];
        pod.introduce(next)?;
        // The bridge sends what is for a pod that it has not heard of to all of them, and their interfaces count it.
        container(&pods, (number, 0))?.ping(next.ipv4().into(), 1, 8)?;
    }
    stage.announce(&pods.iter().collect::<Vec<_>>())?;
    let names: Vec<String> = (0..PODS).map(pod_name).collect();
    wait_for_pods(agent, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(pods)
}

/// A server for each protocol, in the family that its container uses for it.
fn serve(server: &Container, number: usize) -> Result<()> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let [tcp, udp] = if number.is_multiple_of(2) { any } else { [any[1], any[0]] };
    server.serve_tcp(SocketAddr::new(tcp, port(false, number)), ServeMode::request_response(REQUEST, RESPONSE))?;
    server.serve_udp(SocketAddr::new(udp, port(true, number)), true)?;
    Ok(())
}

/// Starts everybody, and ends nobody before each server has heard enough requests or datagrams of its two clients. Returns what each has sent and received.
fn talk(pods: &[Pod], scale: Scale) -> Result<Vec<(Talk, Traffic)>> {
    let (least, every) = scale.of((200, Duration::from_millis(100)), (8, Duration::from_secs(10)));
    let jobs: Vec<(Talk, u64)> = Talk::all()
        .map(|talk| {
            let client = container(pods, (talk.pod, talk.container))?;
            let job = client.start(vec![talk.command(pods, scale)], every, None)?;
            Ok((talk, job))
        })
        .collect::<Result<_>>()?;
    let deadline = Instant::now() + TALKING;
    for server in pods.iter().flat_map(Pod::containers) {
        let heard = |server: &Container| {
            let stats = server.stats()?;
            anyhow::Ok(stats.iter().map(|server| server.traffic.requests + server.traffic.received_datagrams).min())
        };
        while heard(server)?.unwrap_or(0) < least {
            ensure!(Instant::now() < deadline, "container {} has heard {:?}", server.name(), server.stats()?);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let stop = |(talk, job): (Talk, u64)| {
        let sent = container(pods, (talk.pod, talk.container))?.stop(job)?;
        let (pod, container) = (talk.pod, talk.container);
        ensure!(sent.failures == 0, "{} rounds of container {container} of pod {pod} failed", sent.failures);
        Ok((talk, sent))
    };
    let talks: Vec<_> = jobs.into_iter().map(stop).collect::<Result<_>>()?;
    check_servers(pods, &talks)?;
    Ok(talks)
}

/// What the clients say they sent is what the servers say they received.
fn check_servers(pods: &[Pod], talks: &[(Talk, Traffic)]) -> Result<()> {
    let mut heard = Traffic::default();
    for stats in pods.iter().flat_map(Pod::containers).map(Container::stats) {
        stats?.iter().for_each(|server| heard += server.traffic);
    }
    let mut said = Traffic::default();
    talks.iter().for_each(|(_, traffic)| said += *traffic);
    let mirrored = Traffic {
        sent_bytes: heard.received_bytes,
        received_bytes: heard.sent_bytes,
        sent_datagrams: heard.received_datagrams,
        received_datagrams: heard.sent_datagrams,
        ..heard
    };
    ensure!(said == mirrored, "the clients say {said:?}, the servers the mirror image of {heard:?}");
    Ok(())
}

fn truths(pods: &[Pod]) -> Result<Vec<Truth>> {
    pods.iter().map(|pod| Truth::of_process(pod.container(&container_name(0))?.pid())).collect()
}

/// What a pod sent and received is what its two interfaces counted, and nothing stands under any other name.
fn check_interfaces(counted: &Counted<'_>, talks: &[(Talk, Traffic)], truths: &[Truth]) -> Result<()> {
    let mut all = [Count::default(); 2];
    let unmet = Unmet::of(truths.iter());
    for (pod, truth) in truths.iter().enumerate() {
        let name = pod_name(pod);
        let [sent, received] = DIRECTIONS.map(|direction| counted.pod(&name, direction));
        let connections = talks.iter().filter(|(talk, _)| !talk.udp && talk.is_ipv6() && talk.server().0 == pod);
        let connections = connections.map(|(_, traffic)| traffic.connections).sum();
        let lo = truth.interface("lo");
        let right = |eth0: Interface| {
            let (tx, rx) = (eth0.sent(ETHERNET) + lo.sent(0), eth0.received(ETHERNET) + lo.received(0));
            let hidden = hidden_syn_acks(connections, Ipv6Addr::LOCALHOST.into());
            is_all(received, rx, unmet) && hidden.iter().any(|hidden| is_all(sent + *hidden, tx, unmet))
        };
        // See `between_pods::check_veth`.
        ensure!(
            right(truth.without_multicast("eth0")) || right(truth.interface("eth0")),
            "{name}: the agent says sent {sent:?}, received {received:?}; the kernel says {:?}",
            truth.interfaces
        );
        all = [all[0] + sent, all[1] + received];
    }
    let total = DIRECTIONS.map(|direction| counted.of(&[("direction", direction)]));
    ensure!(total == all, "all series hold {total:?}, those of the pods {all:?}");
    Ok(())
}

/// Each container's own sums, whatever they were folded into.
fn check_containers(counted: &Counted<'_>, talks: &[(Talk, Traffic)], truths: &[Truth]) -> Result<()> {
    for me in (0..PODS * CONTAINERS).map(|number| (number / CONTAINERS, number % CONTAINERS)) {
        for udp in [false, true] {
            let mine = || talks.iter().filter(|(talk, _)| talk.udp == udp);
            let as_client: Vec<_> = mine().filter(|(talk, _)| (talk.pod, talk.container) == me).collect();
            let as_server: Vec<_> = mine().filter(|(talk, _)| talk.server() == me).collect();
            check(counted, me, &[], &as_client, &as_server, truths)?;
        }
    }
    Ok(())
}

/// Each client and each server of the four that a container has for each protocol.
fn check_edges(counted: &Counted<'_>, talks: &[(Talk, Traffic)], truths: &[Truth]) -> Result<()> {
    for one in talks {
        let talk = &one.0;
        let (client, server) = ((talk.pod, talk.container), talk.server());
        let names = [client, server].map(|(pod, container)| (pod_name(pod), container_name(container)));
        for (me, role, peer) in [(client, "client", &names[1]), (server, "server", &names[0])] {
            let (as_client, as_server): (&[_], &[_]) = if role == "client" { (&[one], &[]) } else { (&[], &[one]) };
            // Between pods the peer is known by its pod, over loopback by its container.
            let kind = if talk.loopback { ("peer_kind", "container") } else { ("peer_kind", "pod") };
            let peer = if talk.loopback { ("peer_container", &*peer.1) } else { ("peer_pod", &*peer.0) };
            let port = port(talk.udp, server.1).to_string();
            let labels = [("role", role), kind, peer, ("port", &*port)];
            check(counted, me, &labels, as_client, as_server, truths)?;
        }
    }
    Ok(())
}

/// Compares what a container sent and received under these labels with what it did as a client and as a server of one
/// protocol.
fn check(
    counted: &Counted<'_>,
    (pod, container): (usize, usize),
    labels: &[(&str, &str)],
    as_client: &[&(Talk, Traffic)],
    as_server: &[&(Talk, Traffic)],
    truths: &[Truth],
) -> Result<()> {
    let (pod_name, container_name) = (pod_name(pod), container_name(container));
    let all = || as_client.iter().chain(as_server);
    let Some((talk, _)) = all().next() else { return Ok(()) };
    let address = if talk.is_ipv6() { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { Ipv4Addr::LOCALHOST.into() };
    let sum = |talks: &[&(Talk, Traffic)], of: fn(&Traffic) -> u64| talks.iter().map(|(_, t)| of(t)).sum::<u64>();
    let connections: u64 = all().map(|(_, traffic)| traffic.connections).sum();
    let datagrams: u64 = all().map(|(_, traffic)| traffic.sent_datagrams).sum();
    let again = sent_again(truths.iter());
    for (direction, payload, hidden) in [
        (
            "transmit",
            sum(as_client, |t| t.sent_bytes) + sum(as_server, |t| t.received_bytes),
            sum(as_server, |t| t.connections),
        ),
        ("receive", sum(as_client, |t| t.received_bytes) + sum(as_server, |t| t.sent_bytes), 0),
    ] {
        let own = [
            ("pod", &*pod_name),
            ("container", &*container_name),
            ("protocol", talk.protocol()),
            ("direction", direction),
        ];
        let count = counted.of(&[&own, labels].concat());
        let what = format!("{pod_name}/{container_name} {} {direction} {labels:?}", talk.protocol());
        ensure!(payload > 0, "{what}: nothing was sent");
        if talk.udp {
            check_udp(&what, count, datagrams, payload, address)?;
            continue;
        }
        let right = hidden_syn_acks(hidden, address).into_iter().any(|hidden| {
            let more = tcp_payload(count + hidden, connections, address) - i128::from(payload);
            more == 0 || (more > 0 && again > 0)
        });
        ensure!(
            right,
            "{what}: {count:?} in {connections} connections, {payload} bytes of payload, {again} sent again"
        );
    }
    Ok(())
}
