//! The container runtime as a source of names, on a real containerd node. Needs root.

mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use observer_lab::cgroup::{self, Version};
use observer_lab::cri_node::{CriContainerSpec, CriPod, CriPodSpec, HANDLER, IMAGE};
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;
use serde_json::Value;
use support::Ending;
use support::cri::{
    PATIENCE, WEB, node, observe, observe_on_the_node, observer_pods, observer_pods_with, settled, stage, wait, web,
};

/// Says that this process is a run that will be killed.
const VICTIM: &str = "OBSERVER_LAB_TEST_VICTIM";

#[test]
fn pods_have_the_names_images_and_restarts_that_the_runtime_tells() {
    let stage = stage();
    let agent = &stage.agent;
    wait(agent, "observer_agent_probe_state", &[("probe", "cri"), ("state", "ok"), ("reason", "")], 1.0);
    let (pod, app, side) = web(&stage.node);
    let address = pod.address().unwrap().to_string();
    let info = [
        ("namespace", "shop"),
        ("pod", WEB),
        ("uid", pod.uid()),
        ("pod_ip", &address),
        ("qos_class", "Burstable"),
        ("host_network", "false"),
        ("workload_kind", "Deployment"),
        ("workload", "web"),
    ];
    wait(agent, "observer_pod_info", &info, 1.0);
    wait(agent, "observer_sandbox_info", &[("pod", WEB), ("sandbox_id", pod.id()), ("runtime", "containerd")], 1.0);
    let of = |container| [("namespace", "shop"), ("pod", WEB), ("container", container)];
    wait(agent, "observer_container_restarts_total", &of("side"), 0.0);
    wait(agent, "observer_memory_limit_bytes", &of("app"), f64::from(128 << 20));
    let samples = wait(agent, "observer_cpu_limit_cores", &of("app"), 0.5);
    // Shares lead back to the request; a weight of cgroup v2 does not, and nobody else tells it here.
    let requests = |container| -> Vec<f64> {
        samples.select("observer_cpu_request_cores", &of(container)).map(|sample| sample.value).collect()
    };
    let told = if cgroup::detect().unwrap().iter().any(|h| h.version == Version::V1 && h.has("cpu")) {
        vec![0.5]
    } else {
        vec![]
    };
    assert_eq!(requests("app"), told);
    assert!(requests("side").is_empty(), "it asked for nothing");
    for container in ["app", "side"] {
        assert_eq!(samples.select("observer_cpu_usage_seconds_total", &of(container)).count(), 2, "{container}");
    }
    let containers: Vec<_> = samples.select("observer_processes", &[("pod", WEB)]).collect();
    assert_eq!(containers.len(), 2, "pause is no container: {containers:#?}");

    // What its containers have together: files in the /dev/shm of the pod, whoever made them, and sockets.
    let posix = [("pod", WEB), ("container", ""), ("type", "posix")];
    let shared = samples.get("observer_shared_memory_bytes", &posix).unwrap();
    app.exec(&["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=8"]).unwrap();
    let samples = agent.scrape().unwrap();
    assert_eq!(samples.get("observer_shared_memory_bytes", &posix), Some(shared + f64::from(8 << 20)));
    side.exec(&["dd", "if=/dev/null", "of=/dev/shm/x"]).unwrap();
    let samples = agent.scrape().unwrap();
    assert_eq!(samples.get("observer_shared_memory_bytes", &posix), Some(shared));
    let sockstat = std::fs::read_to_string(format!("/proc/{}/net/sockstat", app.pid())).unwrap();
    let sockets = sockstat.lines().find_map(|line| line.strip_prefix("sockets: used ")?.parse::<f64>().ok()).unwrap();
    assert!(sockets >= 1.0, "who serves has one: {sockstat}");
    wait(agent, "observer_sockets", &[("pod", WEB), ("container", "")], sockets);

    // The runtime's word alone tells which container is pause: its process has the image's name for it, sleep.
    let cadvisor = Samples::parse(&agent.fetch("/metrics/cadvisor").unwrap()).unwrap();
    for (id, name) in [(app.id(), "app"), (side.id(), "side"), (pod.id(), "")] {
        let labels = [("name", id), ("container", name), ("image", IMAGE), ("pod", WEB)];
        assert_eq!(cadvisor.select("container_start_time_seconds", &labels).count(), 1, "{name:?}");
    }

    // A restart, as a kubelet makes it: the old one stays listed, the new one has the next attempt.
    side.stop().unwrap();
    let again = pod.container(&CriContainerSpec::new("side", &[]).attempt(1)).unwrap();
    assert_eq!(again.exec(&["echo", "here"]).unwrap(), "here\n");
    let samples = wait(agent, "observer_container_restarts_total", &of("side"), 1.0);
    assert_eq!(samples.get("observer_container_restarts_total", &of("app")), Some(0.0));

    // On the node's network.
    let host = stage.node.pod(&CriPodSpec::new("kube-system", "proxy").host_network()).unwrap();
    let proxy = host.container(&CriContainerSpec::new("proxy", &[])).unwrap();
    assert_eq!(proxy.netns().unwrap().inode().unwrap(), stage.node.netns().inode().unwrap());
    let info = [("pod", "proxy"), ("host_network", "true"), ("pod_ip", ""), ("workload_kind", "")];
    wait(agent, "observer_pod_info", &info, 1.0);

    let pods = observer_pods(&stage);
    let shown = pods.iter().find(|shown| shown["uid"] == pod.uid()).unwrap();
    assert_eq!(
        (&shown["name"], &shown["labels"]["app"], &shown["annotations"]["note"]),
        (&Value::from(WEB), &Value::from("web"), &Value::from("x"))
    );
    assert!(shown["hostInterface"].as_str().unwrap().starts_with("veth"), "{shown:#}");
    let containers = shown["containers"].as_array().unwrap();
    let with_id = |id: &str| containers.iter().find(|container| container["id"] == id).unwrap();
    assert_eq!(
        (&with_id(again.id())["name"], &with_id(again.id())["attempt"]),
        (&Value::from("side"), &Value::from(1))
    );
    assert_eq!((&with_id(app.id())["image"], &with_id(app.id())["pause"]), (&Value::from(IMAGE), &Value::from(false)));
    assert_eq!(with_id(pod.id())["pause"], true);

    // Deleted and made again under the same name.
    let old = pod.uid().to_owned();
    drop((app, side, again));
    pod.remove().unwrap();
    let (pod, ..) = web(&stage.node);
    wait(agent, "observer_pod_info", &[("pod", WEB), ("uid", pod.uid())], 1.0);
    let gone =
        agent.scrape_until(PATIENCE, |samples| samples.select("observer_pod_info", &[("uid", &old)]).count() == 0);
    assert_eq!(gone.unwrap().select("observer_pod_info", &[("uid", &old)]).count(), 0);
    wait(agent, "observer_container_restarts_total", &of("side"), 0.0);
    assert_eq!(agent.scrape().unwrap().sum("observer_agent_source_errors_total", &[("source", "cri")]), 0.0);
}

/// The runtime tells by which handler it runs a pod, and a pod's own description of which class it is. The handler says
/// where the pod's traffic is counted.
#[test]
fn a_pod_of_a_runtime_class() {
    const CLASS: &str = "slow";
    let node = node();
    let plain = node.pod(&CriPodSpec::new("shop", "plain")).unwrap();
    let classed = node.pod(&CriPodSpec::new("shop", "classed").handler(HANDLER)).unwrap();
    let list = serde_json::json!({ "items": [
        { "metadata": { "namespace": "shop", "name": "classed", "uid": classed.uid() }, "spec": { "runtimeClassName": CLASS } },
    ]});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, list.to_string()).unwrap();
    let arguments = ["--pods.file", file.path().to_str().unwrap(), "--traffic.interface-handlers", HANDLER];
    // The agent looks for interfaces in its own network namespace.
    let seen = node.netns().run(|| {
        let (agent, _bpffs) = observe_on_the_node(&node, &arguments);
        for (pod, class, attached) in [(&plain, "", "cgroup"), (&classed, CLASS, "interface")] {
            wait(&agent, "observer_pod_info", &[("uid", pod.uid()), ("runtime_class", class)], 1.0);
            let of = [("sandbox_id", pod.id()), ("runtime", "containerd"), ("attached", attached)];
            wait(&agent, "observer_sandbox_info", &of, 1.0);
        }
        agent.terminate()
    });
    seen.unwrap();
    let pods = observer_pods_with(&node, &arguments[..2]);
    let shown = |pod: &CriPod<'_>| {
        let shown = pods.iter().find(|shown| shown["uid"] == pod.uid()).unwrap();
        (shown["runtimeHandler"].clone(), shown["runtimeClass"].clone())
    };
    assert_eq!(shown(&plain), ("".into(), "".into()));
    assert_eq!(shown(&classed), (HANDLER.into(), CLASS.into()));
}

#[test]
fn traffic_between_pods_is_named_and_exact() {
    const PAYLOAD: u64 = 5_000_000;
    let stage = stage();
    let agent = &stage.agent;
    let (pod, app, _side) = web(&stage.node);
    let client_pod = stage.node.pod(&CriPodSpec::new("shop", "client")).unwrap();
    let client = client_pod.container(&CriContainerSpec::new("shell", &[])).unwrap();
    wait(agent, "observer_container_restarts_total", &[("pod", "client"), ("container", "shell")], 0.0);
    wait(agent, "observer_container_restarts_total", &[("pod", WEB), ("container", "app")], 0.0);
    // The kernel's own announcements of group memberships are over by then.
    std::thread::sleep(Duration::from_millis(1500));

    let before = settled(agent);
    let truth = |pid| Truth::of_process(pid).unwrap();
    let begin = [truth(client.pid()), truth(app.pid())];
    let send = format!("dd if=/dev/zero bs=1000 count={} | nc {} 9000", PAYLOAD / 1000, pod.address().unwrap());
    client.exec(&["sh", "-c", &send]).unwrap();
    let after = settled(agent);
    let added = [&truth(client.pid()) - &begin[0], &truth(app.pid()) - &begin[1]];

    let count = |labels: &[(&str, &str)]| {
        let of = |name: &str| (after.sum(name, labels) - before.sum(name, labels)) as u64;
        (of("observer_traffic_bytes_total"), of("observer_traffic_packets_total"))
    };
    let named = |pod, container, direction, peer, role| {
        count(&[
            ("namespace", "shop"),
            ("pod", pod),
            ("container", container),
            ("direction", direction),
            ("protocol", "tcp"),
            ("peer_kind", "pod"),
            ("peer_pod", peer),
            ("port", "9000"),
            ("role", role),
        ])
    };
    let all = |pod| ["transmit", "receive"].map(|direction| count(&[("pod", pod), ("direction", direction)]));
    let of_client = ["transmit", "receive"].map(|way| named("client", "shell", way, WEB, "client"));
    let of_server = ["transmit", "receive"].map(|way| named(WEB, "app", way, "client", "server"));
    assert_eq!((of_client, of_server), (all("client"), all(WEB)), "every byte has both names");
    // What the interface counted, without the 14 bytes of each Ethernet header. ARP is no IP: a packet of 28 bytes.
    for (truth, [sent, received]) in added.iter().zip([of_client, of_server]) {
        let eth0 = truth.without_multicast("eth0");
        let ip = |bytes: u64, packets: u64| {
            (0..=2).map(|arp| (bytes - packets * 14 - arp * 28, packets - arp)).collect::<Vec<_>>()
        };
        assert!(ip(eth0.tx_bytes, eth0.tx_packets).contains(&sent), "{sent:?} sent, {eth0:?}");
        assert!(ip(eth0.rx_bytes, eth0.rx_packets).contains(&received), "{received:?} received, {eth0:?}");
    }
    // 20 bytes of IPv4, 32 of TCP with timestamps, and 8 more in the SYN.
    let again: i64 = added.iter().map(|truth| truth.protocol("Tcp.RetransSegs")).sum();
    let payload = of_server[1].0 - of_server[1].1 * 52 - 8;
    assert!(payload == PAYLOAD || (again > 0 && payload > PAYLOAD), "{payload} of {PAYLOAD}, {again} segments again");
    assert_eq!(after.sum("observer_agent_unattributed_bytes_total", &[]), 0.0);
}

#[test]
fn a_runtime_that_goes_and_comes_back() {
    let stage = stage();
    let agent = &stage.agent;
    let (pod, ..) = web(&stage.node);
    let info = [("namespace", "shop"), ("pod", WEB), ("uid", pod.uid()), ("workload", "web")];
    wait(agent, "observer_pod_info", &info, 1.0);
    let side = [("pod", WEB), ("container", "side")];
    wait(agent, "observer_container_restarts_total", &side, 0.0);

    stage.node.kill_containerd().unwrap();
    let errors = |samples: &Samples| samples.sum("observer_agent_source_errors_total", &[("source", "cri")]);
    let samples = agent.scrape_until(PATIENCE, |samples| errors(samples) >= 3.0).unwrap();
    assert!(errors(&samples) >= 3.0, "each try is counted");
    let failed = samples.select("observer_agent_probe_state", &[("probe", "cri"), ("state", "failed")]).next().unwrap();
    assert!(failed.label("reason").contains("--cri.endpoint"), "{failed:?}");
    // Longer than the scan that repairs.
    std::thread::sleep(Duration::from_secs(6));
    let samples = wait(agent, "observer_pod_info", &info, 1.0);
    assert_eq!(samples.get("observer_container_restarts_total", &side), Some(0.0));
    assert_eq!(agent.log().matches("pods keep the names they have").count(), 1, "{}", agent.log());
    // Debian's containerd is older than the events that every listener is told.
    assert_eq!(agent.log().matches("no events from the container runtime").count(), 1, "{}", agent.log());

    stage.node.start_containerd().unwrap();
    wait(agent, "observer_agent_probe_state", &[("probe", "cri"), ("state", "ok")], 1.0);
    let late = stage.node.pod(&CriPodSpec::new("shop", "late")).unwrap();
    let container = late.container(&CriContainerSpec::new("c", &[])).unwrap();
    wait(agent, "observer_container_restarts_total", &[("pod", "late"), ("container", "c")], 0.0);
    wait(agent, "observer_pod_info", &info, 1.0);
    assert_eq!(agent.log().matches("no events from the container runtime").count(), 1, "said once: {}", agent.log());
    container.stop().unwrap();
    container.remove().unwrap();
    assert!(stage.bpffs.path().is_dir());
}

/// One that takes connections and does not answer keeps neither the start nor a scrape.
#[test]
fn a_runtime_that_hangs() {
    let node = node();
    let (pod, ..) = web(&node);
    node.stop_containerd().unwrap();
    let (agent, _bpffs) = observe(&node);
    let (agent, uid) = (&agent, pod.uid());
    // Not named by anybody, and observed all the same.
    wait(agent, "observer_pod_info", &[("namespace", ""), ("pod", uid), ("uid", uid)], 1.0);
    let failed = [("probe", "cri"), ("state", "failed")];
    wait(agent, "observer_agent_probe_state", &failed, 1.0);
    node.continue_containerd().unwrap();
    let info = [("namespace", "shop"), ("pod", WEB), ("uid", uid)];
    wait(agent, "observer_pod_info", &info, 1.0);

    node.stop_containerd().unwrap();
    wait(agent, "observer_agent_probe_state", &failed, 1.0);
    wait(agent, "observer_pod_info", &info, 1.0);
    node.continue_containerd().unwrap();
    wait(agent, "observer_agent_probe_state", &[("probe", "cri"), ("state", "ok")], 1.0);
}

#[test]
fn what_a_killed_run_has_left_is_swept() {
    if let Some(report) = std::env::var_os(VICTIM) {
        let node = node();
        let (pod, ..) = web(&node);
        std::fs::write(&report, format!("{}\n{}", node.endpoint(), pod.uid())).unwrap();
        std::thread::park();
        return;
    }
    let report = tempfile::tempdir().unwrap();
    let file = report.path().join("report");
    let victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_run_has_left_is_swept"])
        .env(VICTIM, &file)
        .stdout(Stdio::null())
        .spawn();
    let victim = Ending(victim.unwrap());
    let deadline = std::time::Instant::now() + 3 * PATIENCE;
    let text = loop {
        match std::fs::read_to_string(&file) {
            Ok(text) if text.contains('\n') => break text,
            _ => assert!(std::time::Instant::now() < deadline, "the run to be killed does not get ready"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(victim);
    let (endpoint, uid) = text.split_once('\n').unwrap();
    let directory = PathBuf::from(endpoint.strip_prefix("unix://").unwrap()).parent().unwrap().to_owned();
    assert!(directory.is_dir() && !support::cgroups_named(uid).is_empty());
    let swept = observer_lab::sweep().unwrap();
    assert_eq!(swept.nodes, 1);
    assert!(!directory.exists());
    assert!(support::cgroups_named(uid).is_empty());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory.to_str().unwrap()), "{mounts}");
}
