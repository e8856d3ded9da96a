//! Services, nodes and pods of other nodes as peers: a real pod that talks to their addresses, and a server that says
//! what was recorded of a real cluster. Needs root.

mod support;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use observer_lab::actor::{Command, Pace, ServeMode, Sizes};
use observer_lab::agent::{Agent, AgentOptions, free_address};
use observer_lab::cases::count::{Count, Counted, DIRECTIONS, check_tcp};
use observer_lab::cases::settled;
use observer_lab::kube_server::KubeServer;
use observer_lab::launch::Launcher;
use observer_lab::pod::{Pod, PodSpec};
use observer_lab::podsfile;
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;
use serde_json::{Value, json};
use support::kubernetes::{NODE, PATIENCE, Stage, observe};
use support::{any_port, nft};

const NODES: &str = "/api/v1/nodes?";
const SERVICES: &str = "/api/v1/services?";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices?";
const PODS: &str = "/api/v1/pods?fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";

const PORT: u16 = 9_000;
const DATAGRAMS: u32 = 50;
const SIZE: u32 = 200;
/// What they are at IP level: with the headers of UDP and IPv4.
const BYTES: u64 = (DATAGRAMS * (SIZE + 28)) as u64;

fn list(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn nodes() -> Value {
    let mut nodes = list(include_str!("../../observer/tests/fixtures/kubernetes/api-nodes.json"));
    let mut other = nodes["items"][0].clone();
    other["metadata"]["name"] = "node2".into();
    other["metadata"]["uid"] = "node2".into();
    other["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "10.77.0.2" },
        { "type": "ExternalIP", "address": "192.0.2.2" }]);
    other["spec"]["podCIDRs"] = json!(["10.244.1.0/24"]);
    nodes["items"].as_array_mut().unwrap().push(other);
    nodes
}

/// A Service like the recorded one.
fn service(name: &str, address: &str) -> Value {
    let services = list(include_str!("../../observer/tests/fixtures/kubernetes/api-services.json"));
    let mut service =
        services["items"].as_array().unwrap().iter().find(|it| it["metadata"]["name"] == "api").unwrap().clone();
    service["metadata"]["name"] = name.into();
    service["metadata"]["uid"] = name.into();
    service["spec"]["clusterIP"] = address.into();
    service["spec"]["clusterIPs"] = json!([address]);
    service
}

fn services(of: &[(&str, &str)]) -> Value {
    let mut services = list(include_str!("../../observer/tests/fixtures/kubernetes/api-services.json"));
    let items = services["items"].as_array_mut().unwrap();
    items.extend(of.iter().map(|(name, address)| service(name, address)));
    services
}

/// The recorded slice, and one of a Service whose endpoint is no pod.
fn slices() -> Value {
    let mut slices = list(include_str!("../../observer/tests/fixtures/kubernetes/api-endpointslices.json"));
    let mut other = slices["items"][0].clone();
    other["metadata"]["uid"] = "legacy-1".into();
    other["metadata"]["labels"]["kubernetes.io/service-name"] = "legacy".into();
    other["endpoints"] = json!([{ "addresses": ["198.51.100.9"] }]);
    slices["items"].as_array_mut().unwrap().push(other);
    slices
}

/// A pod of another node, like a recorded one of a Deployment.
fn pod(name: &str, address: &str) -> Value {
    let pods = list(include_str!("../../observer/tests/fixtures/kubernetes/api-list-deployment.json"));
    let mut pod = pods["items"][0].clone();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["uid"] = name.into();
    pod["spec"]["nodeName"] = "node2".into();
    pod["status"]["phase"] = "Running".into();
    pod["status"]["podIPs"] = json!([{ "ip": address }]);
    pod
}

/// A server with the recorded cluster, a second node, a few Services more, and pods of the second node.
fn cluster() -> KubeServer {
    let server = KubeServer::start().unwrap();
    server.list(NODE, &json!({ "metadata": { "resourceVersion": "1" }, "items": [] })).unwrap();
    server.list_at(NODES, &nodes()).unwrap();
    let more = [("short", "10.96.0.90"), ("missed", "10.96.0.91"), ("lasting", "10.96.0.92")];
    server.list_at(SERVICES, &services(&more)).unwrap();
    server.list_at(SLICES, &slices()).unwrap();
    let mut host = pod("host", "10.77.0.2");
    host["spec"]["hostNetwork"] = true.into();
    let mut ended = pod("ended", "10.244.1.16");
    ended["status"]["phase"] = "Succeeded".into();
    let pods = [pod("api-7f9fbbdc5f-x2x9k", "10.244.1.15"), host, ended];
    server.list_at(PODS, &json!({ "metadata": { "resourceVersion": "400" }, "items": pods })).unwrap();
    server
}

/// A pod that talks, and one that has all the addresses that it talks to.
struct Scene {
    stage: Stage,
    client: Pod,
    server: Pod,
    _file: tempfile::NamedTempFile,
}

fn scene(server: KubeServer, further: &[&str]) -> Scene {
    let file = tempfile::NamedTempFile::new().unwrap();
    podsfile::write(file.path(), []).unwrap();
    let url = server.url();
    let arguments =
        ["--kubernetes", &url, "--pods.file", file.path().to_str().unwrap(), "--traffic.peer-detail", "pod"];
    let stage = observe(server, &[&arguments, further].concat());
    let client = Pod::create(&stage.node, PodSpec::new("t", "client", &["c"])).unwrap();
    let beyond = Pod::create(&stage.node, PodSpec::new("t", "beyond", &["s"])).unwrap();
    client.introduce(&beyond).unwrap();
    for network in ["10.96.0.0", "10.77.0.0", "10.244.0.0", "198.51.0.0", "192.0.0.0"] {
        let network: Ipv4Addr = network.parse().unwrap();
        client.route((network, 16), &beyond).unwrap();
    }
    podsfile::write(file.path(), [&client, &beyond]).unwrap();
    beyond.container("s").unwrap().serve_udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), false).unwrap();
    let named = [("namespace", "t"), ("pod", "client")];
    let shown = |samples: &Samples| samples.select("observer_pod_info", &named).count() == 1;
    stage.agent.wait_until(PATIENCE, "the client's pod", shown).unwrap();
    Scene { stage, client, server: beyond, _file: file }
}

impl Scene {
    /// Sends a known number of bytes to an address, and says as what they are shown: kind, namespace, workload's kind,
    /// workload, pod. Every byte must be there, and once.
    fn talk(&self, address: &str) -> [String; 5] {
        self.talk_to(address, PORT)
    }

    fn talk_to(&self, address: &str, port: u16) -> [String; 5] {
        let name = "observer_traffic_bytes_total";
        let labels = [("pod", "client"), ("container", "c"), ("direction", "transmit"), ("protocol", "udp")];
        let before = self.stage.agent.scrape().unwrap();
        self.send(address, port);
        let after = self.stage.agent.scrape().unwrap();
        let peer = ["peer_kind", "peer_namespace", "peer_workload_kind", "peer_workload", "peer_pod"];
        let mut found = Vec::new();
        for sample in after.select(name, &labels) {
            let values = peer.map(|label| sample.label(label).to_owned());
            let same: Vec<(&str, &str)> =
                labels.iter().copied().chain(peer.iter().copied().zip(values.iter().map(String::as_str))).collect();
            let more = after.sum(name, &same) - before.sum(name, &same);
            // Those of another port are in the same sum.
            if more != 0.0 && !found.contains(&(values.clone(), more)) {
                found.push((values, more));
            }
        }
        assert_eq!(found.len(), 1, "{address}: {found:#?}");
        let (values, bytes) = found.remove(0);
        assert_eq!(bytes, BYTES as f64, "{address}: {values:?}");
        let port = port.to_string();
        let of_port: Vec<(&str, &str)> = labels
            .iter()
            .copied()
            .chain(peer.iter().copied().zip(values.iter().map(String::as_str)))
            .chain([("port", port.as_str()), ("role", "client")])
            .collect();
        assert_eq!(after.sum(name, &of_port) - before.sum(name, &of_port), bytes, "{address}: {of_port:?}");
        values
    }

    fn send(&self, address: &str, port: u16) {
        let to = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        let sizes = Sizes::List(vec![SIZE; DATAGRAMS as usize]);
        let pace = Pace::Batches { datagrams: DATAGRAMS, pause_us: 0 };
        let send = Command::UdpSend { to, sizes, connected: false, pace };
        self.client.container("c").unwrap().traffic(&send).unwrap();
    }

    /// Talks to an address that the agent has not seen before, and waits until it was told who has it: of all that a
    /// resolver had to say before, it was told then, too.
    fn ask(&self, address: &str) {
        let known = |samples: &Samples| samples.get("observer_agent_peer_addresses", &[]);
        let before = known(&self.stage.agent.scrape().unwrap());
        self.send(address, PORT);
        let samples = self.stage.agent.scrape_until(PATIENCE, |samples| known(samples) > before).unwrap();
        assert!(known(&samples) > before, "{address}");
    }

    fn service(&self, address: &str) -> String {
        let [kind, namespace, workload_kind, workload, pod] = self.talk(address);
        assert_eq!([kind, namespace, workload_kind, pod], ["service", "shop", "Service", ""], "{address}: {workload}");
        workload
    }

    /// Puts one more Service there, and waits until its address is known, and with it all that happened before.
    fn mark(&self, name: &str, address: &str) {
        let known = || self.stage.agent.scrape().unwrap().get("observer_agent_peer_addresses", &[]).unwrap();
        let before = known();
        self.stage.server.put(SERVICES, &service(name, address)).unwrap();
        let more = |samples: &Samples| {
            samples.get("observer_agent_peer_addresses", &[]).is_some_and(|addresses| addresses > before)
        };
        self.stage.agent.wait_until(PATIENCE, &format!("the address of {name}"), more).unwrap();
    }
}

fn texts(of: [&str; 5]) -> [String; 5] {
    of.map(str::to_owned)
}

#[test]
fn a_pod_talks_to_services_nodes_and_pods_of_other_nodes() {
    let scene = scene(cluster(), &[]);
    let stage = &scene.stage;
    stage.wait_state("peers", "ok", &[]);
    let samples = stage.agent.scrape().unwrap();
    // Five Services, two nodes with three addresses and the first one of a range, an endpoint, a pod.
    assert_eq!(samples.get("observer_agent_peer_addresses", &[]), Some(11.0));
    assert_eq!(samples.get("observer_agent_peer_addresses_folded_total", &[]), Some(0.0));

    assert_eq!(scene.service("10.96.0.80"), "api");
    assert_eq!(scene.service("198.51.100.9"), "legacy", "an endpoint outside of the cluster");
    assert_eq!(scene.talk("10.77.0.2"), texts(["node", "", "", "", ""]), "a pod on the host network is its node");
    assert_eq!(scene.talk("192.0.2.2"), texts(["node", "", "", "", ""]), "by its external address");
    let api = ["pod", "shop", "Deployment", "api", "api-7f9fbbdc5f-x2x9k"];
    assert_eq!(scene.talk("10.244.1.15"), texts(api));
    assert_eq!(scene.talk("10.244.1.0"), texts(["node", "", "", "", ""]), "its tunnel's address");
    assert_eq!(
        scene.talk("10.244.1.16"),
        texts(["other", "", "", "", ""]),
        "it may be that of a pod nobody has told of"
    );
    assert_eq!(scene.talk("10.244.2.16"), texts(["external", "", "", "", ""]), "no node has it for its pods");
    assert_eq!(scene.talk("198.51.100.10"), texts(["external", "", "", "", ""]));
    let beyond = texts(["pod", "t", "Pod", "beyond", "beyond"]);
    assert_eq!(scene.talk(&scene.server.ipv4().to_string()), beyond, "a pod of this node");

    // A Service deleted, and another one made with its address.
    stage.server.delete(SERVICES, &service("short", "10.96.0.90")).unwrap();
    stage.server.put(SERVICES, &service("anew", "10.96.0.90")).unwrap();
    scene.mark("marker-1", "10.96.0.101");
    assert_eq!(scene.service("10.96.0.90"), "anew");

    // While nobody can tell: one is gone, one has come. After 410 a list says so.
    let lists = |server: &KubeServer| {
        let asked = |path: &str| path.starts_with(SERVICES) && !path.contains("watch=true");
        server.requests().iter().filter(|request| asked(&request.path)).count()
    };
    let before = lists(&stage.server);
    let now = [("anew", "10.96.0.90"), ("lasting", "10.96.0.92"), ("come", "10.96.0.93")];
    stage.server.list_at(SERVICES, &services(&now)).unwrap();
    stage.server.forget();
    stage.wait_until("a list after 410", |server| lists(server) > before);
    scene.mark("marker-2", "10.96.0.102");
    assert_eq!(scene.talk("10.96.0.91"), texts(["other", "", "", "", ""]));
    assert_eq!(scene.service("10.96.0.93"), "come");

    // The server goes away: what is known stays known. It comes back: what happened meanwhile is told.
    stage.server.away(true);
    stage.wait_state("peers", "failed", &["cannot be reached"]);
    assert_eq!(scene.service("10.96.0.92"), "lasting");
    stage.server.put(SERVICES, &service("meanwhile", "10.96.0.94")).unwrap();
    assert_eq!(scene.talk("10.96.0.95"), texts(["other", "", "", "", ""]));
    stage.server.away(false);
    stage.wait_state("peers", "ok", &[]);
    scene.mark("marker-3", "10.96.0.103");
    assert_eq!(scene.service("10.96.0.94"), "meanwhile");

    // A pod whose owner no label tells, and which is deleted.
    let job = r#"{"metadata":{"uid":"job","name":"nightly-1","ownerReferences":[
        {"kind":"CronJob","name":"nightly","uid":"cron","controller":true}]}}"#;
    stage.server.answer("/apis/batch/v1/namespaces/shop/jobs/nightly-1", job);
    let mut nightly = pod("nightly-1-abcde", "10.244.1.20");
    nightly["metadata"]["labels"] = json!({});
    nightly["metadata"]["ownerReferences"] =
        json!([{ "kind": "Job", "name": "nightly-1", "uid": "job", "controller": true }]);
    let known = |samples: &Samples| samples.get("observer_agent_peer_addresses", &[]);
    let before = known(&stage.agent.scrape().unwrap()).unwrap();
    stage.server.put(PODS, &nightly).unwrap();
    let more = |samples: &Samples| known(samples).is_some_and(|now| now > before);
    stage.agent.wait_until(PATIENCE, "the address of nightly", more).unwrap();
    assert_eq!(scene.talk("10.244.1.20"), texts(["pod", "shop", "CronJob", "nightly", "nightly-1-abcde"]));
    scene.stage.agent.terminate().unwrap();
}

/// A Service's address and port, where they are translated once the pod's packets have left it (as for pods with a network
/// of their own, in the node's `prerouting`), and where that happens in the pod's own network namespace (as for pods on
/// the host network: in `output`, before a program of a cgroup sees what leaves). A connection belongs to the Service either
/// way, but for the one packet that is there before its socket has a line.
#[test]
fn translated_addresses_and_ports() {
    const SERVICE_PORT: u16 = 80;
    const PAYLOAD: u64 = 200_000;
    let scene = scene(cluster(), &[]);
    scene.stage.wait_state("peers", "ok", &[]);
    let agent = &scene.stage.agent;
    let backend =
        scene.server.container("s").unwrap().serve_tcp(any_port(scene.server.ipv4()), ServeMode::Sink).unwrap();
    let port = backend.port().to_string();
    let service =
        |name| [("peer_kind", "service"), ("peer_namespace", "shop"), ("peer_workload", name), ("port", "80")];
    let pod = |name| [("peer_kind", "pod"), ("peer_namespace", "t"), ("peer_pod", name), ("port", port.as_str())];
    let syn = Count { bytes: 60, packets: 1 };
    let none = Count::default();
    for (translating, hook, address, name, [as_service, as_pod]) in [
        (&scene.server, "prerouting", "10.96.0.80", "api", [none, syn]),
        (&scene.client, "output", "10.96.0.92", "lasting", [syn, none]),
    ] {
        nft(translating.netns(), "add table ip nat").unwrap();
        nft(translating.netns(), &format!("add chain ip nat c {{ type nat hook {hook} priority -100; }}")).unwrap();
        let translate = format!("add rule ip nat c ip daddr {address} tcp dport {SERVICE_PORT} dnat to {backend}");
        nft(translating.netns(), &translate).unwrap();
        let truths = || {
            [(&scene.client, "c"), (&scene.server, "s")]
                .map(|(pod, name)| Truth::of_process(pod.container(name).unwrap().pid()).unwrap())
        };
        let (before, begin) = (settled(agent).unwrap(), truths());
        let to = SocketAddr::new(address.parse().unwrap(), SERVICE_PORT);
        let send = Command::TcpSend { to, bytes: PAYLOAD, chunk: 10_000 };
        let sent = scene.client.container("c").unwrap().traffic(&send).unwrap();
        let (after, now) = (settled(agent).unwrap(), truths());
        let made = [0, 1].map(|at| &now[at] - &begin[at]);
        let counted = Counted { before: &before, after: &after };
        check_tcp(&counted, ("client", "c"), ("beyond", "s"), to.ip(), sent, &[&made[0], &made[1]]).unwrap();
        let named = |own, direction, role, peer: &[(&str, &str)]| {
            counted.of(&[&[("pod", own), ("direction", direction), ("role", role)], peer].concat())
        };
        let shown: Vec<_> = after.select("observer_traffic_bytes_total", &[("protocol", "tcp")]).collect();
        for direction in DIRECTIONS {
            let [of_client, of_server] = ["client", "beyond"].map(|own| counted.pod(own, direction));
            let leaves = direction == "transmit";
            // The client's SYN leaves with the backend's address, where its own namespace translates.
            let early = if leaves { as_service } else { none };
            let by_service = named("client", direction, "client", &service(name));
            assert_eq!(by_service + early, of_client, "{hook}, {direction}: {shown:#?}");
            assert_eq!(named("client", direction, "client", &pod("beyond")), early, "{hook}, {direction}: {shown:#?}");
            // The server's SYN-ACK leaves with the Service's port, where its own namespace translates.
            let early = if leaves { as_pod } else { none };
            let by_port = named("beyond", direction, "server", &pod("client"));
            assert_eq!(by_port + early, of_server, "{hook}, {direction}: {shown:#?}");
            let client = [("peer_kind", "pod"), ("peer_pod", "client")];
            assert_eq!(named("beyond", direction, "server", &client), of_server, "{hook}, {direction}: {shown:#?}");
        }
    }
    scene.stage.agent.terminate().unwrap();
}

/// What may not be watched is said, and the rest is watched.
#[test]
fn permissions_that_are_missing_are_named() {
    let server = cluster();
    server.forbid("/apis/discovery.k8s.io");
    let scene = scene(server, &["--kubernetes.peers", "watch"]);
    scene.stage.wait_state("peers", "failed", &["403", "list and watch endpointslices.discovery.k8s.io"]);
    assert_eq!(scene.service("10.96.0.80"), "api");
    scene.stage.server.allow_all();
    scene.stage.wait_state("peers", "ok", &[]);
    assert_eq!(scene.service("198.51.100.9"), "legacy");
}

/// A cluster with more nodes than this agent may watch.
#[test]
fn a_large_cluster_is_not_watched_by_every_agent() {
    let scene = scene(cluster(), &["--kubernetes.peers.max-nodes", "1"]);
    scene.stage.wait_state(
        "peers",
        "unsupported",
        &["2 nodes", "--kubernetes.peers.max-nodes", "--kubernetes.peers watch"],
    );
    assert_eq!(scene.talk("10.96.0.80"), texts(["other", "", "", "", ""]));
    let requests = scene.stage.server.requests();
    let of_peers: Vec<&str> =
        requests.iter().map(|request| request.path.as_str()).filter(|path| !path.contains("spec.nodeName")).collect();
    assert_eq!(of_peers, ["/api/v1/nodes?&limit=1"]);
}

/// 5,000 pods, 200 nodes and 1,000 Services with a slice each: what an agent needs to know them.
#[test]
fn a_cluster_of_two_hundred_nodes_fits_into_an_agent() {
    /// What an agent may take for a cluster, in kB.
    const BUDGET: u64 = 40 << 10;
    let (nodes_there, pods_there, services_there) = (200, 5_000, 1_000);
    let (node, pod, service) = (nodes()["items"][0].clone(), pod("p", "10.0.0.1"), service("s", "10.0.0.1"));
    let slice = slices()["items"][0].clone();
    let items = |like: &Value, count: u32, change: &dyn Fn(&mut Value, String, String)| -> Value {
        let items: Vec<Value> = (0..count)
            .map(|number| {
                let mut item = like.clone();
                let name = format!("quite-a-usual-name-{number}");
                item["metadata"]["uid"] = format!("{number:08x}-0ce0-4f86-9996-a9e578d603c4").into();
                item["metadata"]["name"] = name.clone().into();
                change(&mut item, name, format!("{}.{}", number / 250, 1 + number % 250));
                item
            })
            .collect();
        json!({ "metadata": { "resourceVersion": "400" }, "items": items })
    };
    let server = KubeServer::start().unwrap();
    server.list(NODE, &json!({ "metadata": { "resourceVersion": "1" }, "items": [] })).unwrap();
    let address = |item: &mut Value, _, rest| {
        item["status"]["addresses"][0]["address"] = format!("10.1.{rest}").into();
    };
    server.list_at(NODES, &items(&node, nodes_there, &address)).unwrap();
    let address = |item: &mut Value, _, rest| item["spec"]["clusterIPs"][0] = format!("10.2.{rest}").into();
    server.list_at(SERVICES, &items(&service, services_there, &address)).unwrap();
    let name = |item: &mut Value, name: String, _| {
        item["metadata"]["labels"]["kubernetes.io/service-name"] = name.into();
    };
    server.list_at(SLICES, &items(&slice, services_there, &name)).unwrap();
    let address = |item: &mut Value, _, rest| item["status"]["podIPs"][0]["ip"] = format!("10.3.{rest}").into();
    server.list_at(PODS, &items(&pod, pods_there, &address)).unwrap();

    let nobody = KubeServer::start().unwrap();
    nobody.list(NODE, &json!({ "metadata": { "resourceVersion": "1" }, "items": [] })).unwrap();
    let used = |server: KubeServer, peers: &str| {
        let url = server.url();
        let stage = observe(server, &["--kubernetes", &url, "--kubernetes.peers", peers]);
        stage.wait_state("kubernetes", "ok", &[]);
        if peers == "auto" {
            stage.wait_state("peers", "ok", &[]);
            let known = || stage.agent.scrape().unwrap().get("observer_agent_peer_addresses", &[]);
            let all = Some(f64::from(nodes_there + pods_there + services_there));
            assert_eq!(known(), all);
            // The first list was the cache's, at once; the one after 410 comes in pages.
            let pages = |server: &KubeServer| {
                let asked = |path: &str| path.starts_with(PODS) && path.contains("&continue=");
                server.requests().iter().filter(|request| asked(&request.path)).count()
            };
            assert_eq!(pages(&stage.server), 0);
            // Of nodes, Services, slices and pods, and of this node's own pods. The lists are known before they are watched.
            let all_watches = || stage.wait_until("all watches", |server| server.watches() == 5);
            all_watches();
            stage.server.forget();
            stage.wait_until("nine further pages of pods", |server| pages(server) == 9);
            all_watches();
            assert_eq!(known(), all);
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", stage.agent.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let (without, with) = (used(nobody, "none"), used(server, "auto"));
    eprintln!("RssAnon of the agent: {without} kB without the cluster, {with} kB with it");
    assert!(with < without + BUDGET, "{without} kB without the cluster, {with} kB with it");
}

/// A resolver that watches this server, and listens for agents there.
fn resolver(server: &KubeServer, listen: SocketAddr) -> Agent {
    let mut arguments: Vec<OsString> = ["--kubernetes", &server.url()].map(OsString::from).to_vec();
    arguments.extend(["--service-account.token-file".into(), server.token_file().into()]);
    arguments.extend(["--service-account.ca-file".into(), server.ca_file().into()]);
    arguments.extend(["--resolver.listen-address".into(), listen.to_string().into()]);
    let options = AgentOptions { subcommand: Some("resolver"), arguments, ..AgentOptions::default() };
    Agent::start(&Launcher::at(env!("CARGO_BIN_EXE_observer-lab")), &options).unwrap()
}

/// An address changes hands while the agent is connected to a resolver, and while the resolver is away.
#[test]
fn a_resolver_tells_of_peers() {
    const ADDRESS: &str = "10.244.1.15";
    let server = cluster();
    let listen = free_address().unwrap();
    let running = resolver(&server, listen);
    let scene = scene(server, &["--kubernetes.peers", &format!("resolver=http://{listen}")]);
    let stage = &scene.stage;
    stage.wait_state("resolver", "ok", &[]);
    let is = |pod: &str| texts(["pod", "shop", "Deployment", "api", pod]);
    let other = texts(["other", "", "", "", ""]);
    let [first, second, third] = ["api-7f9fbbdc5f-x2x9k", "api-7f9fbbdc5f-second", "api-7f9fbbdc5f-third"];

    for address in ["10.96.0.80", "10.77.0.2", ADDRESS, "10.244.2.16", "10.244.1.0"] {
        scene.ask(address);
    }
    assert_eq!(scene.service("10.96.0.80"), "api");
    assert_eq!(scene.talk("10.77.0.2"), texts(["node", "", "", "", ""]));
    assert_eq!(scene.talk(ADDRESS), is(first));
    assert_eq!(scene.talk("10.244.2.16"), texts(["external", "", "", "", ""]), "no node has it for its pods");
    assert_eq!(scene.talk("10.244.1.0"), texts(["node", "", "", "", ""]), "its tunnel's address");
    assert_eq!(scene.talk("10.244.1.16"), other, "it may be that of a pod nobody has told of");
    let numbers = running.scrape().unwrap();
    let number = |name: &str| numbers.get(name, &[]);
    assert_eq!(number("observer_resolver_agents"), Some(1.0));
    assert_eq!(number("observer_resolver_addresses"), Some(11.0), "as when the agent watches by itself");
    assert_eq!(number("observer_resolver_subscriptions"), Some(6.0), "those that it talks to, and no others");

    // One after the other, because of changes that follow one another fast the last one may be told alone.
    let changes = |samples: &Samples| samples.get("observer_resolver_changes_total", &[]).unwrap();
    let change = |change: &dyn Fn()| {
        let before = changes(&running.scrape().unwrap());
        change();
        running.wait_until(PATIENCE, "a change", |samples| changes(samples) > before).unwrap();
    };
    change(&|| stage.server.delete(PODS, &pod(first, ADDRESS)).unwrap());
    scene.ask("10.96.0.91");
    assert_eq!(scene.talk_to(ADDRESS, PORT + 1), other, "nobody has it");
    change(&|| stage.server.put(PODS, &pod(second, ADDRESS)).unwrap());
    scene.ask("10.96.0.92");
    assert_eq!(scene.talk_to(ADDRESS, PORT + 2), is(second));

    running.kill9().unwrap();
    stage.wait_state("resolver", "failed", &["--kubernetes.peers", &listen.to_string()]);
    assert_eq!(scene.talk_to(ADDRESS, PORT + 3), is(second), "what is known stays known");
    assert_eq!(scene.talk("10.96.0.90"), other, "what is new is not guessed");
    const PUBLIC: &str = "198.51.100.77";
    assert_eq!(scene.talk(PUBLIC), other, "pods may have public addresses");
    stage.server.delete(PODS, &pod(second, ADDRESS)).unwrap();
    stage.server.put(PODS, &pod(third, ADDRESS)).unwrap();
    let running = resolver(&stage.server, listen);
    stage.wait_state("resolver", "ok", &[]);
    scene.ask("10.96.0.94");
    assert_eq!(scene.talk_to(ADDRESS, PORT + 4), is(third));
    assert_eq!(scene.service("10.96.0.90"), "short", "put right when it is back");
    assert_eq!(scene.talk_to(PUBLIC, PORT + 1), texts(["external", "", "", "", ""]));
    running.terminate().unwrap();
}
