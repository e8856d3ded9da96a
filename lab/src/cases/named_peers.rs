//! One container opens connections to more peers that have names than it may name.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::PATIENCE;
use super::between_pods::check_veth;
use super::count::{Counted, Unmet, check_tcp, sent_again, tcp_payload};
use super::restart::Monotonic;
use super::stage::{Scale, Stage, settled, wait_for_pods};
use super::ways::{CLIENT, HERE, NAMESPACE, SERVER, THERE};
use crate::actor::{Command, ServeMode, Traffic};
use crate::agent::Agent;
use crate::kube_server::KubeServer;
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::Truth;

/// The peers' addresses, all of them answered by one pod (RFC 2544 and RFC 5180).
const NETWORK_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);
const NETWORK_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 64);
/// Peers that the container may name: as many as without the option.
const BUDGET: u32 = 100;
/// Outside of the range of ports for clients, so that everybody can tell who is the server.
const PORT: u16 = 9_000;
/// What is sent to a peer and comes back are multiples of these.
const REQUEST: u32 = 211;
const RESPONSE: u32 = 503;
/// How many multiples there are: peers that follow each other differ.
const MULTIPLES: u32 = 17;
/// Samples that there is room for in a series of TCP before anything goes wrong.
const SAMPLES: u32 = 6;
/// Connections of a job, which is scraped meanwhile and at its end.
const ROUND: usize = 500;
/// The node's name in the API.
const NODE: &str = "node";
/// Labels of the client's container, all of whose series are added up.
const LABELS: [(&str, &str); 3] = [("namespace", NAMESPACE), ("pod", HERE), ("container", CLIENT)];
const PEER: [&str; 5] = ["peer_kind", "peer_namespace", "peer_workload_kind", "peer_workload", "peer_pod"];
const PAYLOAD: &str = "observer_tcp_payload_bytes_total";
const OPENED: &str = "observer_tcp_connections_opened_total";
/// What counts, in either mode.
const FAMILIES: [&str; 4] = ["observer_traffic_bytes_total", "observer_traffic_packets_total", PAYLOAD, OPENED];

struct Scene {
    stage: Stage,
    agent: Agent,
    here: Pod,
    there: Pod,
    peers: u32,
    watch: Watch,
    _cluster: KubeServer,
}

/// What was seen, and must not go back.
#[derive(Default)]
struct Watch {
    series: Vec<Monotonic>,
    sums: [f64; FAMILIES.len()],
}

impl Watch {
    /// Fails when a series went back, or the sum of all.
    fn see(&mut self, samples: &Samples) -> Result<()> {
        if self.series.is_empty() {
            self.series = FAMILIES.map(Monotonic::of).into();
        }
        self.series.iter_mut().try_for_each(|family| family.see(samples))?;
        for (family, last) in FAMILIES.iter().zip(&mut self.sums) {
            let sum = samples.sum(family, &LABELS);
            ensure!(sum >= *last, "all of {family} went back from {last} to {sum}");
            *last = sum;
        }
        Ok(())
    }
}

/// The nth peer, in the family of this address.
fn address(family: IpAddr, peer: u32) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from(u32::from(NETWORK_V4.0) + 1 + peer).into(),
        IpAddr::V6(_) => Ipv6Addr::from(u128::from(NETWORK_V6.0) + 1 + u128::from(peer)).into(),
    }
}

fn name(peer: u32) -> String {
    format!("peer-{peer}")
}

/// What is sent to a peer, and what comes back.
const fn exchange(peer: u32) -> (u32, u32) {
    let times = 1 + peer % MULTIPLES;
    (REQUEST * times, RESPONSE * times)
}

/// An API server that knows the peers as pods of another node.
fn cluster(peers: u32) -> Result<KubeServer> {
    let list = |items: Vec<Value>| json!({ "metadata": { "resourceVersion": "1" }, "items": items });
    let pod = |peer| {
        let ips = [NETWORK_V4.0.into(), NETWORK_V6.0.into()].map(|family| json!({ "ip": address(family, peer) }));
        json!({
            "metadata": { "name": name(peer), "namespace": NAMESPACE, "uid": name(peer), "resourceVersion": "1" },
            "spec": { "nodeName": "another" },
            "status": { "phase": "Running", "podIPs": ips },
        })
    };
    let server = KubeServer::start()?;
    server.list(NODE, &list(Vec::new()))?;
    for nothing in ["/api/v1/nodes?", "/api/v1/services?", "/apis/discovery.k8s.io/v1/endpointslices?"] {
        server.list_at(nothing, &list(Vec::new()))?;
    }
    let running = "/api/v1/pods?fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
    server.list_at(running, &list((0..peers).map(pod).collect()))?;
    Ok(server)
}

impl Scene {
    fn new(scale: Scale, edges: Option<u32>, more: &[&str]) -> Result<Self> {
        let peers = scale.of(2_000, 200);
        let cluster = cluster(peers)?;
        let stage = Stage::new(edges)?;
        let here = Pod::create(&stage.node, PodSpec::new(NAMESPACE, HERE, &[CLIENT]))?;
        let there = Pod::create(&stage.node, PodSpec::new(NAMESPACE, THERE, &[SERVER]))?;
        here.introduce(&there)?;
        here.route(NETWORK_V4, &there)?;
        here.route(NETWORK_V6, &there)?;
        stage.announce(&[&here, &there])?;
        let (budget, url) = (BUDGET.to_string(), cluster.url());
        let [token, ca] = [cluster.token_file(), cluster.ca_file()];
        let path = |path: &std::path::Path| path.to_str().context("a path that is no text").map(str::to_owned);
        let (token, ca) = (path(&token)?, path(&ca)?);
        let arguments = [
            // Pods that are there for another reason must not be in the sum of all series.
            "--pods.namespaces",
            NAMESPACE,
            "--traffic.peers-per-container",
            &budget,
            "--kubernetes",
            &url,
            "--kubernetes.peers",
            "watch",
            "--node.name",
            NODE,
            "--service-account.token-file",
            &token,
            "--service-account.ca-file",
            &ca,
        ];
        let agent = stage.agent_with(None, &[&arguments[..], more].concat())?;
        wait_for_pods(&agent, &[HERE, THERE])?;
        let known = |samples: &Samples| samples.sum("observer_agent_peer_addresses", &[]) == f64::from(2 * peers);
        agent.wait_until(PATIENCE, "the addresses of all peers", known)?;
        // One listener for both families: IPv4 comes to it, too.
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        there.container(SERVER)?.serve_tcp(listen, ServeMode::request_response(REQUEST, RESPONSE))?;
        Ok(Self { stage, agent, here, there, peers, watch: Watch::default(), _cluster: cluster })
    }

    /// Opens a connection to each peer in turn, with scrapes meanwhile.
    fn call(&mut self, family: IpAddr) -> Result<Traffic> {
        let container = self.here.container(CLIENT)?;
        let request = |peer| {
            let (request_bytes, response_bytes) = exchange(peer);
            let to = SocketAddr::new(address(family, peer), PORT);
            Command::TcpRequests { to, connections: 1, requests: 1, request_bytes, response_bytes, parallel: 1 }
        };
        let mut total = Traffic::default();
        for some in (0..self.called(family)).collect::<Vec<_>>().chunks(ROUND) {
            let script = some.iter().map(|peer| request(*peer)).collect();
            let job = container.start(script, Duration::from_millis(1), Some(1))?;
            self.watch.see(&self.agent.scrape()?)?;
            self.watch.see(&self.agent.scrape()?)?;
            total += container.join(job)?;
            self.watch.see(&self.agent.scrape()?)?;
        }
        let sums = self.sums(family);
        ensure!(total.failures == 0, "{} commands failed", total.failures);
        ensure!([total.sent_bytes, total.received_bytes, total.connections] == sums, "{total:?}, not {sums:?}");
        Ok(total)
    }

    /// How many peers are called. Over IPv6 fewer, all of them known from IPv4.
    const fn called(&self, family: IpAddr) -> u32 {
        if family.is_ipv4() { self.peers } else { self.peers / 4 + BUDGET }
    }

    /// What is sent, comes back and is opened.
    fn sums(&self, family: IpAddr) -> [u64; 3] {
        let mut sums = [0, 0, self.called(family).into()];
        for (sent, answered) in (0..self.called(family)).map(exchange) {
            sums[0] += u64::from(sent);
            sums[1] += u64::from(answered);
        }
        sums
    }

    fn truths(&self) -> Result<[Truth; 2]> {
        Ok([
            Truth::of_process(self.here.container(CLIENT)?.pid())?,
            Truth::of_process(self.there.container(SERVER)?.pid())?,
        ])
    }

    /// So many peers are named as may be, those that came first; all others are folded, and that is told.
    fn check_budget(&self, samples: &Samples) -> Result<()> {
        let mine =
            || samples.iter().filter(|sample| FAMILIES.contains(&sample.name.as_str()) && sample.matches(&LABELS));
        let named = mine().filter(|sample| sample.label("peer_kind") != "other");
        let named: BTreeSet<[String; 5]> =
            named.map(|sample| PEER.map(|label| sample.label(label).to_owned())).collect();
        ensure!(named.len() <= BUDGET as usize, "{} peers are named", named.len());
        ensure!(mine().any(|sample| sample.label("peer_kind") == "other"), "nothing stands under another peer");
        let overflowed = samples.sum("observer_agent_edges_overflowed_total", &[]);
        if self.stage.has_small_table() {
            // The table of edges is the smaller one.
            ensure!(overflowed > 0.0, "nothing overflowed a table that is too small");
            return Ok(());
        }
        ensure!(overflowed == 0.0, "{overflowed} edges overflowed the default table");
        let first = (0..BUDGET).map(|peer| ["pod", NAMESPACE, "Pod", &name(peer), &name(peer)].map(str::to_owned));
        let different: Vec<_> = named.symmetric_difference(&first.collect()).cloned().collect();
        ensure!(different.is_empty(), "not those that came first are named: {different:?}");
        let folded = samples.sum("observer_agent_series_folded", &[]);
        let least = f64::from((self.peers - BUDGET) * SAMPLES);
        ensure!(folded >= least, "{folded} samples are said to be folded, {least} at least are");
        Ok(())
    }
}

/// 2,000 peers of which 100 may be named, a short connection to each, over IPv4 and over IPv6, with as many bytes as tell
/// its peer from the next: the sum of all series is what the kernel counted at the interface, the payload in it is what was sent
/// and what came back, each peer that is named has its own, and no counter goes back.
pub fn named_peers(scale: Scale, edges: Option<u32>) -> Result<()> {
    let mut scene = Scene::new(scale, edges, &[])?;
    for family in [IpAddr::V4(NETWORK_V4.0), NETWORK_V6.0.into()] {
        let before = settled(&scene.agent)?;
        let begin = scene.truths()?;
        let sent = scene.call(family)?;
        let after = settled(&scene.agent)?;
        scene.watch.see(&after)?;
        let now = scene.truths()?;
        let truths = [&now[0] - &begin[0], &now[1] - &begin[1]];
        let counted = Counted { before: &before, after: &after };
        let ends = [&truths[0], &truths[1]];
        check_tcp(&counted, (HERE, CLIENT), (THERE, SERVER), family, sent, &ends)?;
        check_veth(&counted, HERE, &truths[0], Unmet::of(truths.iter()))?;
        let all = (after.sum(OPENED, &LABELS) - before.sum(OPENED, &LABELS)) as u64;
        ensure!(all == sent.connections, "{all} connections were opened in all series, not {}", sent.connections);
        scene.stage.check_overflow(&after)?;
        scene.check_budget(&after)?;
        if edges.is_none() {
            check_each(&counted, family, sent_again(truths.iter()))?;
        }
    }
    scene.agent.terminate()
}

/// The peers that are named, each by its own.
fn check_each(counted: &Counted<'_>, family: IpAddr, again: i64) -> Result<()> {
    for peer in 0..BUDGET {
        let (name, (request, response)) = (name(peer), exchange(peer));
        for (direction, bytes) in [("transmit", request), ("receive", response)] {
            let labels = [&LABELS[..], &[("peer_pod", &name), ("direction", direction)]].concat();
            let count = counted.of(&labels);
            let more = tcp_payload(count, 1, family) - i128::from(bytes);
            ensure!(
                more == 0 || (more > 0 && again > 0),
                "{direction} of {name}: {count:?}, of which {bytes} are payload"
            );
        }
    }
    Ok(())
}

/// The same by sockets: nothing but payload is counted, and all of it, whatever was sent again.
pub fn sockets_named_peers(scale: Scale, edges: Option<u32>) -> Result<()> {
    let mut scene = Scene::new(scale, edges, &["--traffic.accounting", "sockets"])?;
    let [mut sent, mut answered, mut opened] = [0; 3];
    for (family, rounds) in [(IpAddr::V4(NETWORK_V4.0), 1), (NETWORK_V6.0.into(), 2)] {
        let more = scene.call(family)?;
        sent += more.sent_bytes;
        answered += more.received_bytes;
        opened += more.connections;
        let expected = [[sent, answered, opened], [answered, sent, opened]];
        let ends = |samples: &Samples| {
            [LABELS, [("namespace", NAMESPACE), ("pod", THERE), ("container", SERVER)]].map(|labels| {
                let payload = |direction| samples.sum(PAYLOAD, &[&labels[..], &[("direction", direction)]].concat());
                // Counters below 2^53 are exact in a float.
                [payload("transmit"), payload("receive"), samples.sum(OPENED, &labels)].map(|sum| sum as u64)
            })
        };
        // The last packets come after the command that sent them.
        let samples = scene.agent.scrape_until(PATIENCE, |samples| ends(samples) == expected)?;
        let found = ends(&samples);
        ensure!(found == expected, "{found:?} of sent, received, opened in all series; expected {expected:?}");
        // Whatever the labels, there is nothing else.
        let all = samples.sum(PAYLOAD, &[]) as u64;
        ensure!(all == 2 * (sent + answered), "{all} bytes in all series of the node");
        scene.watch.see(&samples)?;
        scene.check_budget(&samples)?;
        let peers = if edges.is_none() { BUDGET } else { 0 };
        for peer in 0..peers {
            let (name, (request, response)) = (name(peer), exchange(peer));
            for (direction, bytes) in [("transmit", request), ("receive", response)] {
                let labels = [&LABELS[..], &[("peer_pod", &name), ("direction", direction)]].concat();
                let found = samples.sum(PAYLOAD, &labels) as u64;
                let bytes = u64::from(bytes) * rounds;
                ensure!(found == bytes, "{direction} of {name}: {found} bytes of payload, not {bytes}");
            }
        }
    }
    scene.agent.terminate()
}
