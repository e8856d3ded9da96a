//! How finely pods at the other side are told apart (`--traffic.peer-detail`).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use super::count::{Count, DIRECTIONS, ip_header};
use super::stage::{Scale, Stage, settled, wait_for_pods};
use super::ways::{CLIENT, HERE, NAMESPACE};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;

const WORKLOAD: &str = "web";
const PODS: [&str; 2] = ["web-0", "web-1"];
const BYTES: &str = "observer_traffic_bytes_total";
const PACKETS: &str = "observer_traffic_packets_total";

/// What a detail shows of the workload's pods, and of the pod that calls them, which has no owner.
type Shown = (&'static str, [[&'static str; 3]; 2]);

/// Pods of one workload, called over IPv4 and IPv6: with less detail their series are one, and it has the bytes of both.
pub fn peer_detail(_: Scale, edges: Option<u32>) -> Result<()> {
    let shown: [Shown; 2] =
        [("workload", [["StatefulSet", WORKLOAD, ""], ["Pod", HERE, ""]]), ("namespace", [["", "", ""], ["", "", ""]])];
    shown.into_iter().try_for_each(|shown| with_detail(edges, shown))
}

fn with_detail(edges: Option<u32>, (detail, [of_workload, of_caller]): Shown) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent_with(None, &["--traffic.peer-detail", detail])?;
    let here = Pod::create(&stage.node, PodSpec::new(NAMESPACE, HERE, &[CLIENT]))?;
    let pods: Vec<Pod> = (PODS.iter())
        .map(|name| Pod::create(&stage.node, PodSpec::new(NAMESPACE, name, &["c"]).owner("StatefulSet", WORKLOAD)))
        .collect::<Result<_>>()?;
    pods.iter().try_for_each(|pod| here.introduce(pod))?;
    stage.announce(&pods.iter().chain([&here]).collect::<Vec<_>>())?;
    wait_for_pods(&agent, &[HERE, PODS[0], PODS[1]])?;

    let mut sent = [Count::default(); 2];
    for ((pod, sent), number) in pods.iter().zip(&mut sent).zip(1u32..) {
        for address in [IpAddr::from(pod.ipv4()), pod.ipv6().into()] {
            let any_port = SocketAddr::new(address, 0);
            let udp = pod.container("c")?.serve_udp(any_port, true)?;
            let sizes = Sizes::List(vec![100 * number; 10 + number as usize]);
            let (packets, payload) = sizes.totals();
            *sent = *sent + Count { bytes: payload + packets * (ip_header(address) + 8), packets };
            let pace = Pace::Echoed { window: 1 };
            here.container(CLIENT)?.traffic(&Command::UdpSend { to: udp, sizes, connected: false, pace })?;
            let to = pod.container("c")?.serve_tcp(any_port, ServeMode::request_response(100, 300))?;
            here.container(CLIENT)?.traffic(&Command::TcpRequests {
                to,
                connections: 5 * number,
                requests: 1,
                request_bytes: 100,
                response_bytes: 300,
                parallel: 1,
            })?;
        }
    }
    let samples = settled(&agent)?;
    for direction in DIRECTIONS {
        let total = |pod: &str| {
            let labels = [("pod", pod), ("direction", direction), ("protocol", "udp"), ("peer_kind", "pod")];
            // Counters below 2^53 are exact in a float.
            let [bytes, packets] = [BYTES, PACKETS].map(|family| samples.sum(family, &labels) as u64);
            Count { bytes, packets }
        };
        let found = [total(HERE), total(PODS[0]), total(PODS[1])];
        let expected = [sent[0] + sent[1], sent[0], sent[1]];
        ensure!(found == expected, "--traffic.peer-detail {detail}, {direction}: {found:?}, sent {expected:?}");
    }
    for (pod, connections) in [(HERE, 30.0), (PODS[0], 10.0), (PODS[1], 20.0)] {
        let opened = samples.sum("observer_tcp_connections_opened_total", &[("pod", pod), ("peer_kind", "pod")]);
        ensure!(
            opened == connections,
            "--traffic.peer-detail {detail}: {opened} connections of {pod}, not {connections}"
        );
        let wanted = if pod == HERE { of_workload } else { of_caller };
        let named = peers(&samples, pod);
        let expected = [NAMESPACE, wanted[0], wanted[1], wanted[2]].map(str::to_owned);
        ensure!(
            named.len() == 1 && named.contains(&expected),
            "--traffic.peer-detail {detail}: {pod} talks to {named:?}, not to {expected:?}"
        );
    }
    stage.check_overflow(&samples)?;
    agent.terminate()
}

/// Namespace, workload's kind, workload and pod of all that a pod talks to.
fn peers(samples: &Samples, pod: &str) -> BTreeSet<[String; 4]> {
    let labels = ["peer_namespace", "peer_workload_kind", "peer_workload", "peer_pod"];
    let series = samples.iter().filter(|sample| [BYTES, PACKETS].contains(&sample.name.as_str()));
    series
        .filter(|sample| sample.label("pod") == pod)
        .map(|sample| labels.map(|name| sample.label(name).to_owned()))
        .collect()
}
