//! Pods made by hand in the Docker manner (`docker run --cgroup-parent /pod --network container:…`), which no orchestrator
//! and no runtime names. Needs root.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command as Process;
use std::time::Duration;

use observer_lab::actor::{Command, Pace, ServeMode, Sizes};
use observer_lab::agent::{Agent, AgentOptions, find_binary};
use observer_lab::bpffs::BpfFs;
use observer_lab::cases::count::{Counted, DIRECTIONS, check_loopback, check_tcp, check_udp};
use observer_lab::cases::settled;
use observer_lab::launch::Launcher;
use observer_lab::pod::{CgroupStyle, Pod, PodSpec};
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;
use support::{any_port, node, runs};

const PATIENCE: Duration = Duration::from_secs(20);
const POD: &str = "pod-by-hand";
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PAYLOAD: u64 = 3_000_000;

fn short(pod: &Pod, container: &str) -> String {
    pod.container(container).unwrap().id()[..12].to_owned()
}

/// One sandbox with two containers, whose traffic over localhost is exact; so it is for the pod that comes after it with
/// the same name.
#[test]
fn pods_made_by_hand_are_one_sandbox_and_so_are_those_after_them() {
    let node = node();
    let bpffs = BpfFs::create().unwrap();
    let options = AgentOptions { bpffs: Some(bpffs.path().to_owned()), ..AgentOptions::default() };
    let agent = Agent::start(&Launcher::at(env!("CARGO_BIN_EXE_observer-lab")), &options).unwrap();
    for round in 0..2 {
        let style = CgroupStyle::Parent(format!("/{POD}"));
        let pod = Pod::create(&node, PodSpec::new("", "by-hand", &["client", "server"]).style(style)).unwrap();
        let (client, server) = (short(&pod, "client"), short(&pod, "server"));
        for container in [&client, &server] {
            let labels = [("namespace", ""), ("pod", POD), ("container", container.as_str())];
            let shown = |samples: &Samples| samples.get("observer_processes", &labels).is_some();
            assert!(shown(&agent.scrape_until(PATIENCE, shown).unwrap()), "{round}: {labels:?}");
        }
        exchange(&agent, &pod, &client, &server);

        let output = Process::new(find_binary().unwrap()).args(["pods", "-o", "json"]).output().unwrap();
        let pods: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found: Vec<_> = pods.as_array().unwrap().iter().filter(|pod| pod["name"] == POD).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["hooks"], serde_json::json!(["ingress", "egress"]));
        let containers = found[0]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 2);
        let of_client = containers.iter().find(|container| container["name"] == client.as_str()).unwrap();
        let net = &of_client["shares"]["net"];
        assert_eq!(net, &serde_json::json!([server]), "one shares the network of the other, without pause");

        drop(pod);
        let gone = |samples: &Samples| samples.select("observer_pod_info", &[("pod", POD)]).count() == 0;
        assert!(gone(&agent.scrape_until(PATIENCE, gone).unwrap()), "{round}: it stays");
    }
    assert!(runs(agent.pid()));
    agent.terminate().unwrap();
}

/// Both protocols, against what was sent and what the interface counted.
fn exchange(agent: &Agent, pod: &Pod, client: &str, server: &str) {
    let of = |name: &str| pod.container(name).unwrap();
    let truth = || Truth::of_process(of("server").pid()).unwrap();
    let tcp = of("server").serve_tcp(any_port(LOCALHOST), ServeMode::Sink).unwrap();
    let (before, begin) = (settled(agent).unwrap(), truth());
    let sent = of("client").traffic(&Command::TcpSend { to: tcp, bytes: PAYLOAD, chunk: 65_536 }).unwrap();
    let (after, made) = (settled(agent).unwrap(), &truth() - &begin);
    let counted = Counted { before: &before, after: &after };
    assert_eq!((sent.connections, sent.sent_bytes), (1, PAYLOAD));
    check_tcp(&counted, (POD, client), (POD, server), LOCALHOST, sent, &[&made]).unwrap();
    check_loopback(&counted, POD, &made, 1, LOCALHOST).unwrap();
    named(&counted, client, server, tcp);

    let udp = of("server").serve_udp(any_port(LOCALHOST), true).unwrap();
    let sizes = Sizes::List(vec![100; 10]);
    let (before, begin) = (after, truth());
    let send = Command::UdpSend { to: udp, sizes, connected: true, pace: Pace::Echoed { window: 1 } };
    of("client").traffic(&send).unwrap();
    let (after, made) = (settled(agent).unwrap(), &truth() - &begin);
    let counted = Counted { before: &before, after: &after };
    for container in [client, server] {
        check_udp("sent", counted.sent(POD, container), 10, 1_000, LOCALHOST).unwrap();
        check_udp("received", counted.received(POD, container), 10, 1_000, LOCALHOST).unwrap();
    }
    check_loopback(&counted, POD, &made, 0, LOCALHOST).unwrap();
    named(&counted, client, server, udp);
}

/// Every byte has both names.
fn named(counted: &Counted<'_>, client: &str, server: &str, at: SocketAddr) {
    let port = at.port().to_string();
    for direction in DIRECTIONS {
        for (container, peer, role) in [(client, server, "client"), (server, client, "server")] {
            let own = [("pod", POD), ("container", container), ("direction", direction)];
            let peer = [("peer_kind", "container"), ("peer_container", peer), ("role", role), ("port", &port)];
            assert_eq!(counted.of(&[&own[..], &peer].concat()), counted.of(&own), "{container} {direction}");
        }
    }
}
