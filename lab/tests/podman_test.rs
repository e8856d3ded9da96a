//! Pods of Podman, which no orchestrator and no CRI names. Needs root.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use observer_lab::actor::Traffic;
use observer_lab::agent::{Agent, AgentOptions};
use observer_lab::bpffs::BpfFs;
use observer_lab::cases::count::{Counted, check_loopback, check_tcp};
use observer_lab::launch::Launcher;
use observer_lab::podman::Podman;
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;

const PATIENCE: Duration = Duration::from_secs(20);
const PAYLOAD: u64 = 1_000_000;

fn short(id: &str) -> &str {
    &id[..12]
}

/// Scrapes until nothing more is counted on the pod.
fn settled(agent: &Agent, pod: &str) -> Samples {
    let packets = |samples: &Samples| samples.sum("observer_traffic_packets_total", &[("pod", pod)]);
    agent.scrape_until_still(PATIENCE, 1, packets).unwrap()
}

/// Waits until the container has its one process.
fn wait_for(agent: &Agent, pod: &str, container: &str) {
    let labels = [("namespace", ""), ("pod", pod), ("container", container)];
    let samples = agent.scrape_until(PATIENCE, |all| all.get("observer_processes", &labels) == Some(1.0)).unwrap();
    assert_eq!(samples.get("observer_processes", &labels), Some(1.0), "{labels:?}");
}

/// Waits until somebody listens at the port in a process's network namespace (proc_pid_net(5)).
fn wait_for_listener(pid: u32) {
    /// In hexadecimal, and the state `TCP_LISTEN`.
    const LISTENS: &str = "00000000:2328 00000000:0000 0A";
    const LISTENS_6: &str = ":2328 00000000000000000000000000000000:0000 0A";
    let listens = || {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
        read("tcp").contains(LISTENS) || read("tcp6").contains(LISTENS_6)
    };
    let deadline = Instant::now() + PATIENCE;
    while !listens() {
        assert!(Instant::now() < deadline, "nobody listens");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends the payload over localhost in one connection and compares.
fn exchange(podman: &Podman, agent: &Agent, pod: &str, client: &str, server: &str) {
    let truth = || Truth::of_process(podman.pid(client).unwrap()).unwrap();
    wait_for_listener(podman.pid(server).unwrap());
    let (before, begin) = (settled(agent, pod), truth());
    let send = format!("dd if=/dev/zero bs=1000 count={} | nc 127.0.0.1 9000", PAYLOAD / 1000);
    podman.exec(client, &["sh", "-c", &send]).unwrap();
    let after = settled(agent, pod);
    let made = &truth() - &begin;
    let counted = Counted { before: &before, after: &after };
    let sent = Traffic { connections: 1, sent_bytes: PAYLOAD, ..Traffic::default() };
    let (client, server) = ((pod, short(client)), (pod, short(server)));
    check_tcp(&counted, client, server, Ipv4Addr::LOCALHOST.into(), sent, &[&made]).unwrap();
    check_loopback(&counted, pod, &made, 1, Ipv4Addr::LOCALHOST.into()).unwrap();
}

/// Made twice with the same names: each time another pod for Podman.
#[test]
fn a_pod_of_podman_is_a_sandbox_and_its_traffic_is_exact() {
    const MEMORY: u32 = 64 << 20;
    let podman = Podman::create().unwrap();
    let bpffs = BpfFs::create().unwrap();
    let options = AgentOptions { bpffs: Some(bpffs.path().to_owned()), ..AgentOptions::default() };
    let agent = Agent::start(&Launcher::at(env!("CARGO_BIN_EXE_observer-lab")), &options).unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = podman.pod("shop").unwrap();
        let serve = ["nc", "-ll", "-p", "9000", "-e", "sh", "-c", "cat >/dev/null"];
        let limited = ["--memory", &MEMORY.to_string(), "--cpus", "0.5"];
        let server = podman.container_with("shop", "server", &limited, &serve).unwrap();
        let client = podman.container("shop", "client", &["sleep", "2147483647"]).unwrap();
        let pod = short(&id);
        for container in [&server, &client] {
            wait_for(&agent, pod, short(container));
        }
        let (sandbox, of_pod) = ([("pod", pod), ("runtime", "podman"), ("attached", "cgroup")], [("pod", pod)]);
        let samples = agent.scrape().unwrap();
        let known: Vec<_> = samples.select("observer_sandbox_info", &of_pod).collect();
        assert_eq!((known.len(), samples.get("observer_sandbox_info", &sandbox)), (1, Some(1.0)), "{known:?}");
        let limit =
            |family: &str, container: &str| samples.get(family, &[("pod", pod), ("container", short(container))]);
        assert_eq!(limit("observer_memory_limit_bytes", &server), Some(f64::from(MEMORY)));
        assert_eq!(limit("observer_cpu_limit_cores", &server), Some(0.5));
        assert_eq!(limit("observer_memory_limit_bytes", &client), None);
        assert_eq!(limit("observer_cpu_limit_cores", &client), None);
        exchange(&podman, &agent, pod, &client, &server);

        // The same id, other processes and another cgroup.
        let of_server = [("pod", pod), ("container", short(&server))];
        let started = |all: &Samples| all.get("observer_container_start_time_seconds", &of_server);
        let before = (podman.pid(&server).unwrap(), started(&samples));
        podman.restart(&server).unwrap();
        assert_ne!(podman.pid(&server).unwrap(), before.0);
        let again = |all: &Samples| started(all) > before.1;
        assert!(before.1.is_some() && again(&agent.scrape_until(PATIENCE, again).unwrap()), "{before:?}");
        exchange(&podman, &agent, pod, &client, &server);

        podman.remove("shop").unwrap();
        let gone = |all: &Samples| all.select("observer_pod_info", &[("pod", pod)]).count() == 0;
        assert!(gone(&agent.scrape_until(PATIENCE, gone).unwrap()));
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
}
