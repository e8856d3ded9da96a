//! A host without a cgroup v2 tree: ordinary pods are counted at their interfaces, as a whole. Needs root, and a v1
//! hierarchy, which is then all that the agent is shown.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use observer_lab::actor::{Command, Pace, ServeMode, Sizes};
use observer_lab::agent::Agent;
use observer_lab::cases::Stage;
use observer_lab::pod::{Container, Pod, PodSpec};
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;

const PATIENCE: Duration = Duration::from_secs(20);
/// A hierarchy that the agent looks for pods in.
const HIERARCHY: &str = "/sys/fs/cgroup/pids";
const PODS: [&str; 2] = ["asks", "serves"];
/// A veth counts it, the agent does not.
const ETHERNET: u64 = 14;

/// Bytes and packets that a pod sent, then those that it received.
type Traffic = [[u64; 2]; 2];

fn counted(samples: &Samples, pod: &str, container: &[(&str, &str)]) -> Traffic {
    ["transmit", "receive"].map(|direction| {
        let labels = [&[("pod", pod), ("direction", direction)], container].concat();
        ["observer_traffic_bytes_total", "observer_traffic_packets_total"].map(|name| samples.sum(name, &labels) as u64)
    })
}

fn at_interface(pid: u32) -> Result<Traffic> {
    let eth0 = Truth::of_process(pid)?.interface("eth0");
    Ok([
        [eth0.tx_bytes - eth0.tx_packets * ETHERNET, eth0.tx_packets],
        [eth0.rx_bytes - eth0.rx_packets * ETHERNET, eth0.rx_packets],
    ])
}

fn minus(now: Traffic, then: Traffic) -> Traffic {
    std::array::from_fn(|direction| std::array::from_fn(|n| now[direction][n] - then[direction][n]))
}

fn talk(asks: &Pod, serves: &Pod, address: IpAddr) -> Result<()> {
    let (client, server) = (asks.container("app")?, serves.container("app")?);
    let any = SocketAddr::new(address, 0);
    let datagrams = server.serve_udp(any, true)?;
    let sizes = Sizes::Random { count: 500, min: 1, max: 1_400, seed: 3 };
    client.traffic(&Command::UdpSend { to: datagrams, sizes, connected: false, pace: Pace::Echoed { window: 8 } })?;
    let stream = server.serve_tcp(any, ServeMode::Sink)?;
    client.traffic(&Command::TcpSend { to: stream, bytes: 32 << 20, chunk: 65_536 })?;
    Ok(())
}

/// What each pod sent and received is what its interface counted, to the byte and the packet.
fn check(agent: &Agent, pods: &[&Pod; 2], begin: &[(Traffic, Traffic); 2]) -> Result<()> {
    for ((pod, name), (shown, truth)) in pods.iter().zip(PODS).zip(begin) {
        let pid = pod.container("app")?.pid();
        let same = |samples: &Samples| {
            let now = at_interface(pid).map(|now| minus(now, *truth)).unwrap_or_default();
            (minus(counted(samples, name, &[]), *shown), now)
        };
        let samples = agent.scrape_until(PATIENCE, |samples| same(samples).0 == same(samples).1)?;
        let (found, truth) = same(&samples);
        ensure!(found == truth && found[0][0] > 0, "pod {name}: counted {found:?}, the interface has {truth:?}");
        let whole = counted(&samples, name, &[("container", "")]);
        ensure!(whole == counted(&samples, name, &[]), "pod {name}: some of it has a container's name");
    }
    Ok(())
}

fn on_the_node(stage: &Stage) -> Result<()> {
    let arguments = ["--path.cgroupfs", HIERARCHY];
    let agent = stage.agent_on_the_node(None, &arguments)?;
    let [asks, serves] = PODS.map(|name| Pod::create(&stage.node, PodSpec::new("cases", name, &["app"])));
    let (asks, serves) = (asks?, serves?);
    asks.introduce(&serves)?;
    stage.announce(&[&asks, &serves])?;
    let attached = |samples: &Samples| {
        PODS.iter().all(|pod| {
            samples.select("observer_sandbox_info", &[("pod", pod), ("attached", "interface")]).next().is_some()
        })
    };
    let samples = agent.scrape_until(PATIENCE, attached)?;
    ensure!(attached(&samples), "the pods are not attached; the agent's log:\n{}", agent.log());
    let state = [("probe", "cgroup_skb"), ("state", "unsupported")];
    ensure!(
        samples.get("observer_agent_probe_state", &state) == Some(1.0),
        "the cgroup hook is not said to be missing"
    );
    // The kernel's own announcements of group memberships are over by then.
    std::thread::sleep(Duration::from_millis(400));
    let samples = agent.scrape()?;
    let pods = [&asks, &serves];
    let pid = |pod: &Pod| pod.container("app").map(Container::pid);
    let begin = [
        (counted(&samples, PODS[0], &[]), at_interface(pid(&asks)?)?),
        (counted(&samples, PODS[1], &[]), at_interface(pid(&serves)?)?),
    ];
    talk(&asks, &serves, serves.ipv4().into())?;
    check(&agent, &pods, &begin)?;

    let address = agent.address();
    agent.kill9()?;
    talk(&asks, &serves, serves.ipv6().into())?;
    let agent = stage.agent_on_the_node(Some(address), &arguments)?;
    check(&agent, &pods, &begin).context("after a restart")?;
    agent.terminate()
}

#[test]
fn pods_are_counted_at_their_interfaces() {
    if !Path::new(HIERARCHY).is_dir() {
        return support::skipped(&format!("this machine has no v1 hierarchy at {HIERARCHY}"));
    }
    let stage = Stage::new(None).unwrap();
    if let Err(error) = stage.node.netns().run(|| on_the_node(&stage)) {
        panic!("{error:#}");
    }
}
