//! Traffic of a real containerd node's pods, to the byte: over localhost, of the host network, of containers that share
//! processes, of init containers, and of pods that are made again. Needs root.

mod support;

use std::net::{IpAddr, Ipv4Addr};

use observer_lab::actor::Traffic;
use observer_lab::agent::Agent;
use observer_lab::cases::count::{Count, Counted, DIRECTIONS, check_loopback, check_tcp};
use observer_lab::cri_node::{CriContainerSpec, CriPodSpec};
use observer_lab::holdings::Holdings;
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;
use serde_json::json;
use support::cri::{PATIENCE, WEB, observer_pods, settled, stage, wait, web};

const PAYLOAD: u64 = 1_000_000;
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A shell's command that sends the payload in one connection.
fn send_to(address: IpAddr) -> String {
    format!("dd if=/dev/zero bs=1000 count={} | nc {address} 9000", PAYLOAD / 1000)
}

fn sent() -> Traffic {
    Traffic { connections: 1, sent_bytes: PAYLOAD, ..Traffic::default() }
}

fn truth(pid: u32) -> Truth {
    Truth::of_process(pid).unwrap()
}

/// Waits until the agent knows this container of namespace `shop` by its name.
fn wait_for(agent: &Agent, pod: &str, container: &str) -> Samples {
    let labels = [("namespace", "shop"), ("pod", pod), ("container", container)];
    wait(agent, "observer_container_restarts_total", &labels, 0.0)
}

/// Every byte between the client and the server of [`web`] has these names: what `whom` adds says who the client's peer is,
/// and `who` who the server's is.
fn check_names(counted: &Counted<'_>, (pod, container): (&str, &str), whom: &[(&str, &str)], who: &[(&str, &str)]) {
    for direction in DIRECTIONS {
        let of = |pod, container, role, peer: &[(&str, &str)]| {
            let labels = [("namespace", "shop"), ("pod", pod), ("container", container), ("direction", direction)];
            let all = counted.of(&labels);
            let edge = [("role", role), ("port", "9000"), ("protocol", "tcp")];
            let named = counted.of(&[&labels[..], &edge, peer].concat());
            assert_eq!(named, all, "{pod}/{container} {direction} with {peer:?}");
            assert_ne!(named, Count::default(), "{pod}/{container} {direction}");
        };
        of(pod, container, "client", whom);
        of(WEB, "app", "server", who);
    }
}

#[test]
fn over_localhost_from_the_host_network_and_after_it_was_made_again() {
    let stage = stage();
    let agent = &stage.agent;
    let host = stage.node.pod(&CriPodSpec::new("shop", "proxy").host_network()).unwrap();
    let proxy = host.container(&CriContainerSpec::new("proxy", &[])).unwrap();
    wait_for(agent, "proxy", "proxy");
    let mut uids = Vec::new();
    for _ in 0..2 {
        let (pod, app, side) = web(&stage.node);
        wait(agent, "observer_pod_info", &[("namespace", "shop"), ("pod", WEB), ("uid", pod.uid())], 1.0);
        for container in ["app", "side"] {
            wait_for(agent, WEB, container);
        }

        let (before, begin) = (settled(agent), truth(app.pid()));
        side.exec(&["sh", "-c", &send_to(LOCALHOST)]).unwrap();
        let (after, made) = (settled(agent), &truth(app.pid()) - &begin);
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, (WEB, "side"), (WEB, "app"), LOCALHOST, sent(), &[&made]).unwrap();
        check_loopback(&counted, WEB, &made, 1, LOCALHOST).unwrap();
        let container = |name| [("peer_kind", "container"), ("peer_container", name)];
        check_names(&counted, (WEB, "side"), &container("app"), &container("side"));

        let address = pod.address().unwrap();
        let both = || [truth(app.pid()), truth(proxy.pid())];
        let (before, begin) = (settled(agent), both());
        proxy.exec(&["sh", "-c", &send_to(address)]).unwrap();
        let (after, now) = (settled(agent), both());
        let made = [0, 1].map(|at| &now[at] - &begin[at]);
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, ("proxy", "proxy"), (WEB, "app"), address, sent(), &[&made[0], &made[1]]).unwrap();
        // Whoever is on the host network has the node's address, here that of a bridge in a network namespace, which
        // nobody has told of: never a pod's.
        let web = [("peer_kind", "pod"), ("peer_namespace", "shop"), ("peer_pod", WEB)];
        check_names(&counted, ("proxy", "proxy"), &web, &[("peer_kind", "other"), ("peer_pod", "")]);
        assert_eq!(after.sum("observer_agent_unattributed_bytes_total", &[]), 0.0);

        uids.push(pod.uid().to_owned());
        drop((app, side));
        pod.remove().unwrap();
    }
    assert_ne!(uids[0], uids[1]);
    assert_eq!(agent.scrape().unwrap().sum("observer_agent_source_errors_total", &[("source", "cri")]), 0.0);
}

#[test]
fn shared_processes_the_node_s_processes_and_an_init_container() {
    let stage = stage();
    let agent = &stage.agent;
    let (pod, app, _side) = web(&stage.node);
    let address = pod.address().unwrap();
    wait_for(agent, WEB, "app");
    let together = stage.node.pod(&CriPodSpec::new("shop", "together").shared_processes()).unwrap();
    let [one, two] = ["one", "two"].map(|name| together.container(&CriContainerSpec::new(name, &[])).unwrap());
    let host = stage.node.pod(&CriPodSpec::new("shop", "debugger").host_processes()).unwrap();
    let three = host.container(&CriContainerSpec::new("three", &[])).unwrap();
    let web = [("peer_kind", "pod"), ("peer_namespace", "shop"), ("peer_pod", WEB)];
    for (name, container, client) in
        [("together", "one", &one), ("together", "two", &two), ("debugger", "three", &three)]
    {
        wait_for(agent, name, container);
        let both = || [truth(app.pid()), truth(client.pid())];
        let (before, begin) = (settled(agent), both());
        client.exec(&["sh", "-c", &send_to(address)]).unwrap();
        let (after, now) = (settled(agent), both());
        let made = [0, 1].map(|at| &now[at] - &begin[at]);
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, (name, container), (WEB, "app"), address, sent(), &[&made[0], &made[1]]).unwrap();
        check_names(&counted, (name, container), &web, &[("peer_kind", "pod"), ("peer_pod", name)]);
    }
    // Containers that see the same processes are containers of their own.
    let samples = agent.scrape().unwrap();
    for (pod, container) in [("together", "one"), ("together", "two"), ("debugger", "three")] {
        assert_eq!(samples.get("observer_processes", &[("pod", pod), ("container", container)]), Some(1.0));
    }

    // An init container works and ends; what comes after it is another container.
    let late = stage.node.pod(&CriPodSpec::new("shop", "late")).unwrap();
    wait(agent, "observer_sandbox_info", &[("pod", "late"), ("sandbox_id", late.id())], 1.0);
    let (before, begin) = (settled(agent), truth(app.pid()));
    let init = late.container(&CriContainerSpec::new("init", &["sh", "-c", &send_to(address)])).unwrap();
    let ended = || init.status().unwrap().finished_at > 0;
    let deadline = std::time::Instant::now() + PATIENCE;
    while !ended() {
        assert!(std::time::Instant::now() < deadline, "the init container does not end");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let main = late.container(&CriContainerSpec::new("main", &[])).unwrap();
    wait_for(agent, "late", "main");
    let bytes = "observer_traffic_bytes_total";
    let of_init = [("namespace", "shop"), ("pod", "late"), ("container", "init")];
    agent.wait_until(PATIENCE, "what the init container sent", |samples| samples.sum(bytes, &of_init) > 0.0).unwrap();
    let (after, made) = (settled(agent), &truth(app.pid()) - &begin);
    let counted = Counted { before: &before, after: &after };
    check_tcp(&counted, ("late", "init"), (WEB, "app"), address, sent(), &[&made]).unwrap();
    check_names(&counted, ("late", "init"), &web, &[("peer_kind", "pod"), ("peer_pod", "late")]);
    assert_eq!(counted.sent("late", "main"), Count::default());

    let pods = observer_pods(&stage);
    let shown = |uid: &str| pods.iter().find(|shown| shown["uid"] == uid).unwrap()["containers"].clone();
    let shares = |uid: &str, name: &str| {
        let containers = shown(uid);
        let containers = containers.as_array().unwrap();
        let found = containers.iter().find(|container| container["name"] == name).unwrap();
        (found["shares"]["pid"].clone(), found["shares"]["net"].clone())
    };
    let names = |mut value: serde_json::Value| {
        value.as_array_mut().unwrap().sort_by_key(ToString::to_string);
        value
    };
    let (pid, net) = shares(together.uid(), "one");
    assert_eq!((names(pid), names(net)), (json!(["(pause)", "two"]), json!(["(pause)", "two"])));
    let (pid, net) = shares(host.uid(), "three");
    assert_eq!((names(pid), names(net)), (json!(["(node)", "(pause)"]), json!(["(pause)"])));
    let (pid, net) = shares(late.uid(), "main");
    assert_eq!((pid, names(net)), (json!(null), json!(["(pause)"])), "what has ended shares nothing");
    assert_eq!(shown(late.uid()).as_array().unwrap().len(), 2, "pause and main");
    drop((one, two, three, main, init));
}

/// What the agent holds after many pods is what it held before them.
#[test]
fn pods_of_a_runtime_leave_nothing_in_the_agent() {
    let stage = stage();
    let agent = &stage.agent;
    let round = |number: usize| {
        let name = format!("passing-{number}");
        let pod = stage.node.pod(&CriPodSpec::new("shop", &name)).unwrap();
        let container = pod.container(&CriContainerSpec::new("c", &[])).unwrap();
        wait_for(agent, &name, "c");
        drop(container);
        pod.remove().unwrap();
        let gone = |samples: &Samples| samples.select("observer_pod_info", &[("pod", &name)]).count() == 0;
        assert!(gone(&agent.scrape_until(PATIENCE, gone).unwrap()), "{name} stays");
    };
    let holdings = || Holdings::of(agent, stage.bpffs.path()).unwrap();
    // Whatever is made once is made by then, and the last one's links go a moment after its series.
    (0..3).for_each(round);
    let calm = || {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            // The thread that scrapes run on ends when there was none for some seconds; a scrape's connection a moment after it.
            agent.scrape().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(100));
            let now = holdings();
            if now.links == 0 {
                return now;
            }
            assert!(std::time::Instant::now() < deadline, "links stay: {now:?}");
        }
    };
    let before = calm();
    (3..33).for_each(round);
    let same = |now: Holdings| {
        let counts = |of: Holdings| (of.descriptors, of.threads, of.watches, of.links, of.maps);
        counts(now) == counts(before)
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut now = holdings();
    while !same(now) {
        assert!(std::time::Instant::now() < deadline, "before {before:?}, after {now:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
        agent.scrape().unwrap();
        now = holdings();
    }
    assert!(!agent.log().contains(" ERROR "), "{}", agent.log());
}
