//! One container talks to more peers than its budgets have room for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::PATIENCE;
use super::between_pods::check_veth;
use super::count::{Counted, Unmet, check_udp, tcp_payload};
use super::restart::Monotonic;
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes, Traffic};
use crate::agent::Agent;
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::Truth;

/// Addresses that are no pod's, all of them answered by one (RFC 2544).
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);
const CLIENT: &str = "crowded";
const SERVER: &str = "responder";
/// Outside of the range of ports for clients, so that everybody can tell who is the server.
const UDP_PORT: u16 = 9_000;
const TCP_PORT: u16 = 9_001;
const FIRST_PORT: u16 = 9_100;
/// More of each than fit into the budgets.
const PORTS: u16 = 40;
const PODS: usize = 8;
const PORT_BUDGET: usize = 20;
const PEER_BUDGET: usize = 5;
const SERIES_BUDGET: usize = 200;
const FAMILIES: [&str; 3] =
    ["observer_traffic_bytes_total", "observer_traffic_packets_total", "observer_tcp_connections_opened_total"];

/// 2,000 addresses, 40 ports and 8 pods: the sums are the truth to the byte, the budgets hold, no counter goes back, not
/// even when the agent is killed, and the truth stays when the edges are gone.
pub fn many_peers(scale: Scale, edges: Option<u32>) -> Result<()> {
    let [series, peers, ports] = [SERIES_BUDGET, PEER_BUDGET, PORT_BUDGET].map(|budget| budget.to_string());
    let budgets = [
        // The budget is the node's: pods that are there for another reason must not take a part of it.
        "--pods.namespaces",
        "cases",
        "--traffic.series",
        &series,
        "--traffic.peers-per-container",
        &peers,
        "--traffic.ports-per-container",
        &ports,
    ];
    let stage = Stage::new(edges)?;
    let client = Pod::create(&stage.node, PodSpec::new("cases", CLIENT, &["client"]))?;
    let server = Pod::create(&stage.node, PodSpec::new("cases", SERVER, &["server"]))?;
    let names: Vec<String> = (0..PODS).map(|number| format!("peer-{number}")).collect();
    let pods: Vec<Pod> = (names.iter())
        .map(|name| Pod::create(&stage.node, PodSpec::new("cases", name, &["c"])))
        .collect::<Result<_>>()?;
    client.route(NETWORK, &server)?;
    pods.iter().chain([&server]).try_for_each(|pod| client.introduce(pod))?;
    // The bridge sends what is for a pod that it has not heard of to all of them. Before there is an agent: these would be the
    // first edges, and take the budgets.
    for container in pods.iter().chain([&server]).flat_map(Pod::containers) {
        container.ping(client.ipv4().into(), 1, 8)?;
    }
    let agent = stage.agent_with(None, &budgets)?;
    stage.announce(&pods.iter().chain([&client, &server]).collect::<Vec<_>>())?;
    wait_for_pods(&agent, &names.iter().map(String::as_str).chain([CLIENT, SERVER]).collect::<Vec<_>>())?;
    serve(&server, &pods)?;

    let before = settled(&agent)?;
    let pids = [client.container("client")?.pid(), server.container("server")?.pid()];
    let begin = [Truth::of_process(pids[0])?, Truth::of_process(pids[1])?];
    let truths = || anyhow::Ok([&Truth::of_process(pids[0])? - &begin[0], &Truth::of_process(pids[1])? - &begin[1]]);
    let mut watch = Monotonic::default();
    let addresses = scale.of(2_000, 200);
    let sent = talk(&client, &server, &pods, addresses, || watch.see(&agent.scrape()?))?;
    let after = settled(&agent)?;
    watch.see(&after)?;
    let counted = Counted { before: &before, after: &after };
    let [client_truth, server_truth] = truths()?;
    let unmet = Unmet::of([&client_truth, &server_truth].into_iter());
    check_veth(&counted, CLIENT, &client_truth, unmet)?;
    check_veth(&counted, SERVER, &server_truth, unmet)?;
    let again = client_truth.protocol("Tcp.RetransSegs") + server_truth.protocol("Tcp.RetransSegs");
    check_payload(&counted, addresses, sent, again)?;
    check_budgets(&after, edges)?;
    stage.check_overflow(&after)?;

    // The edges stay in the kernel with their order, so the next agent decides the same.
    let address = agent.address();
    agent.kill9()?;
    let agent = stage.agent_with(Some(address), &budgets)?;
    let restarted = settled(&agent)?;
    watch.see(&restarted)?;
    let (former, now) = (shown(&after), shown(&restarted));
    let different: Vec<_> = former.symmetric_difference(&now).take(4).collect();
    ensure!(different.is_empty(), "the agent that was killed showed other series: {different:#?}");
    let [client_truth, server_truth] = truths()?;
    let unmet = Unmet::of([&client_truth, &server_truth].into_iter());
    let counted = Counted { before: &before, after: &restarted };
    check_veth(&counted, CLIENT, &client_truth, unmet)?;
    check_veth(&counted, SERVER, &server_truth, unmet)?;

    // The client's edges are given back; what the server counted stays.
    let used = restarted.sum("observer_agent_edges_used", &[]);
    drop(client);
    stage.announce(&pods.iter().chain([&server]).collect::<Vec<_>>())?;
    let gone = wait_for_retirement(&agent, used)?;
    watch.see(&gone)?;
    let counted = Counted { before: &before, after: &gone };
    check_veth(&counted, SERVER, &server_truth, unmet)?;
    agent.terminate()
}

/// Holds ports, so that nobody answers that they are closed, and serves two.
fn serve(server: &Pod, pods: &[Pod]) -> Result<()> {
    let at = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let container = server.container("server")?;
    container.serve_tcp(at(TCP_PORT), ServeMode::request_response(100, 300))?;
    for port in (FIRST_PORT..FIRST_PORT + PORTS).chain([UDP_PORT]) {
        container.hold_udp(at(port), 1 << 20)?;
    }
    pods.iter().try_for_each(|pod| pod.container("c")?.hold_udp(at(UDP_PORT), 4096).map(drop))
}

/// Talks to all of them; `scrape` now and then.
fn talk(
    client: &Pod,
    server: &Pod,
    pods: &[Pod],
    addresses: u32,
    mut scrape: impl FnMut() -> Result<()>,
) -> Result<Traffic> {
    let container = client.container("client")?;
    let datagram = |to| Command::UdpSend { to, sizes: Sizes::List(vec![100]), connected: false, pace: Pace::Free };
    let request = |to| Command::TcpRequests {
        to,
        connections: 1,
        requests: 1,
        request_bytes: 100,
        response_bytes: 300,
        parallel: 1,
    };
    let first = u32::from(NETWORK.0) + 1;
    let mut total = Traffic::default();
    let external: Vec<Ipv4Addr> = (first..first + addresses).map(Ipv4Addr::from).collect();
    for some in external.chunks(500) {
        let script = some.iter().flat_map(|address| {
            [datagram(SocketAddr::from((*address, UDP_PORT))), request(SocketAddr::from((*address, TCP_PORT)))]
        });
        let job = container.start(script.collect(), Duration::from_millis(1), Some(1))?;
        scrape()?;
        total += container.join(job)?;
        scrape()?;
    }
    let ports = (FIRST_PORT..FIRST_PORT + PORTS).map(|port| SocketAddr::from((server.ipv4(), port)));
    let peers = pods.iter().map(|pod| SocketAddr::from((pod.ipv4(), UDP_PORT)));
    for to in ports.chain(peers) {
        total += container.traffic(&datagram(to))?;
        scrape()?;
    }
    ensure!(total.failures == 0, "{} commands failed", total.failures);
    Ok(total)
}

fn check_payload(counted: &Counted<'_>, addresses: u32, sent: Traffic, again: i64) -> Result<()> {
    let of = |protocol, direction| {
        counted.of(&[("pod", CLIENT), ("container", "client"), ("protocol", protocol), ("direction", direction)])
    };
    let connections = u64::from(addresses);
    let datagrams = connections + u64::from(PORTS) + PODS as u64;
    let address = IpAddr::V4(NETWORK.0);
    ensure!(sent.sent_datagrams == datagrams && sent.connections == connections, "{sent:?}");
    check_udp("sent", of("udp", "transmit"), datagrams, datagrams * 100, address)?;
    for (direction, payload) in [("transmit", connections * 100), ("receive", connections * 300)] {
        let count = of("tcp", direction);
        let found = tcp_payload(count, connections, address);
        let more = found - i128::from(payload);
        ensure!(more == 0 || (more > 0 && again > 0), "{direction}: {count:?} hold {found} bytes of {payload}");
    }
    Ok(())
}

/// The labels of all traffic.
fn shown(samples: &Samples) -> BTreeSet<String> {
    let traffic = samples.iter().filter(|sample| FAMILIES.contains(&sample.name.as_str()));
    traffic.map(|sample| format!("{}{:?}", sample.name, sample.labels)).collect()
}

fn check_budgets(samples: &Samples, edges: Option<u32>) -> Result<()> {
    let traffic = || samples.iter().filter(|sample| FAMILIES.contains(&sample.name.as_str()));
    let named = traffic().filter(|sample| sample.label("peer_kind") != "other" || !sample.label("port").is_empty());
    let named = named.count();
    ensure!(named <= SERIES_BUDGET, "{named} series with a name, {SERIES_BUDGET} are allowed");
    let distinct = |label: &str, labels: &[(&str, &str)]| {
        let mine = traffic().filter(|sample| sample.matches(labels));
        mine.map(|sample| sample.label(label).to_owned()).filter(|value| !value.is_empty()).collect::<BTreeSet<_>>()
    };
    let client = [("pod", CLIENT), ("role", "client")];
    let [ports, peers] = [distinct("port", &client), distinct("peer_pod", &client)];
    let used = samples.sum("observer_agent_series_used", &[]);
    let folded = samples.sum("observer_agent_series_folded", &[]);
    let limit = samples.sum("observer_agent_series_limit", &[]);
    ensure!(limit == SERIES_BUDGET as f64, "the limit is said to be {limit}");
    ensure!(used >= named as f64, "{used} series are said to be used, {named} are there");
    if edges.is_some() {
        // The table of edges is the smaller one.
        return Ok(());
    }
    ensure!(ports.len() == PORT_BUDGET, "{} ports are named: {ports:?}", ports.len());
    // The world outside is a peer, too.
    ensure!(peers.len() == PEER_BUDGET - 1, "{} pods are named: {peers:?}", peers.len());
    ensure!(folded > 0.0, "nothing is said to be folded");
    Ok(())
}

/// Waits until the edges of the client's pod are given back, and its series gone.
fn wait_for_retirement(agent: &Agent, used: f64) -> Result<Samples> {
    let gone = |samples: &Samples| {
        samples.sum("observer_agent_edges_used", &[]) < used
            && samples.select("observer_traffic_bytes_total", &[("pod", CLIENT)]).next().is_none()
    };
    let samples = agent.scrape_until(PATIENCE, gone)?;
    ensure!(gone(&samples), "the edges of a pod that is gone are still there; the agent's log:\n{}", agent.log());
    Ok(samples)
}
