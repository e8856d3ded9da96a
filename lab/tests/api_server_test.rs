//! The Kubernetes API of a real server: `cargo xtask api-server` builds it from Debian's sources and runs this. Needs
//! root.

mod support;

use observer_lab::api_server::{AGENT_USER, ApiServer};
use observer_lab::pod::{ContainerSpec, Pod, PodSpec};
use observer_lab::relay::Relay;
use serde_json::{Value, json};
use support::kubernetes::{NODE, PATIENCE, Stage, observe_with};

const PODS: &str = "/api/v1/namespaces/shop/pods";
/// The server sends a bookmark about once a minute to a watch that hears nothing else.
const BOOKMARK: std::time::Duration = std::time::Duration::from_secs(75);

/// What the agent's role in the documentation allows.
fn allow_agent(server: &ApiServer) {
    let rules = json!([
        { "apiGroups": [""], "resources": ["pods", "services", "nodes"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        { "apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["get"] },
        { "apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"] },
    ]);
    let group = "rbac.authorization.k8s.io";
    let role = json!({ "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": { "name": AGENT_USER },
        "rules": rules });
    let binding = json!({ "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
        "metadata": { "name": AGENT_USER },
        "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": AGENT_USER },
        "subjects": [{ "apiGroup": group, "kind": "User", "name": AGENT_USER }] });
    server.raw("create", &format!("/apis/{group}/v1/clusterroles"), Some(&role)).unwrap();
    server.raw("create", &format!("/apis/{group}/v1/clusterrolebindings"), Some(&binding)).unwrap();
}

fn create(server: &ApiServer, path: &str, object: &Value) -> Value {
    server.raw("create", path, Some(object)).unwrap()
}

/// A Deployment's ReplicaSet, as its controller would make it.
fn replica_set(server: &ApiServer) -> Value {
    let template = json!({ "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "app", "image": "web:1" }] } });
    let spec = json!({ "replicas": 1, "selector": { "matchLabels": { "app": "web" } }, "template": template });
    let deployment =
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": spec });
    let deployment = create(server, "/apis/apps/v1/namespaces/shop/deployments", &deployment);
    let owner = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "controller": true,
        "uid": deployment["metadata"]["uid"] });
    // No label tells the Deployment: it has to be asked for.
    let set = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": { "name": "first-of-web", "ownerReferences": [owner] }, "spec": spec });
    create(server, "/apis/apps/v1/namespaces/shop/replicasets", &set)
}

/// A pod of the agent's node, of this owner.
fn pod(name: &str, owner: Option<&Value>) -> Value {
    let owners: Vec<Value> = owner
        .map(|set| {
            json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set["metadata"]["name"],
                "uid": set["metadata"]["uid"], "controller": true })
        })
        .into_iter()
        .collect();
    let requests = json!({ "cpu": "250m", "memory": "96Mi" });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "ownerReferences": owners },
        "spec": { "nodeName": NODE,
            "containers": [{ "name": "app", "image": "web:1", "resources": { "requests": requests } }] } })
}

/// A sandbox of the machine for a pod of the server, and what a kubelet would report of it.
fn run(stage: &Stage<ApiServer>, created: &Value) -> Pod {
    let mut spec = PodSpec::new("unknown", "unknown", &[]).container(ContainerSpec::new("app").light());
    spec.uid = Some(created["metadata"]["uid"].as_str().unwrap().to_owned());
    let made = Pod::create(&stage.node, spec).unwrap();
    let mut running = created.clone();
    let id = format!("containerd://{}", made.container("app").unwrap().id());
    running["status"] = json!({ "phase": "Running", "podIP": made.ipv4(), "podIPs": [{ "ip": made.ipv4() }],
        "containerStatuses": [{ "name": "app", "image": "web:1", "imageID": "", "ready": true, "restartCount": 3,
            "containerID": id }] });
    let name = created["metadata"]["name"].as_str().unwrap();
    stage.server.raw("replace", &format!("{PODS}/{name}/status"), Some(&running)).unwrap();
    made
}

fn remove(server: &ApiServer, at: std::net::SocketAddr, name: &str) {
    server.raw_at(at, "delete", &format!("{PODS}/{name}?gracePeriodSeconds=0"), None).unwrap();
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// The versions from which the agent has watched its node's pods, and how often it has asked for a list of them.
fn watched(server: &ApiServer) -> (Vec<u64>, usize) {
    let asked = server.asked().unwrap();
    let own = asked.iter().map(|(path, _)| path).filter(|path| path.contains("spec.nodeName"));
    let (watches, lists): (Vec<&String>, Vec<&String>) = own.partition(|path| path.contains("watch=true"));
    let version = |path: &&String| path.split("resourceVersion=").nth(1)?.split('&').next()?.parse().ok();
    (watches.iter().filter_map(version).collect(), lists.len())
}

#[test]
#[ignore = "needs a real API server, which takes minutes to build: cargo xtask api-server"]
fn the_agent_and_a_real_api_server() {
    let server = ApiServer::start().unwrap();
    allow_agent(&server);
    create(&server, "/api/v1/namespaces", &json!({ "metadata": { "name": "shop" } }));
    let relay = Relay::start(server.address()).unwrap();
    let url = format!("https://{}", relay.address());
    let credentials = (server.token_file(), server.ca_file());
    let mut stage = observe_with(server, credentials, &["--kubernetes", &url]);
    stage.wait_state("kubernetes", "ok", &[]);
    // This server is older than the EndpointSlices that the agent asks for (1.21): said, and the other kinds are known.
    stage.wait_state("peers", "failed", &["endpointslices", "404"]);

    // A pod that is made while the agent watches: names, owner, requests, restarts, phase.
    let set = replica_set(&stage.server);
    let web = create(&stage.server, PODS, &pod("web-1", Some(&set)));
    let here = run(&stage, &web);
    let info = |pod: &Pod, name: &'static str| {
        let workload = if name == "web-1" { ["Deployment", "web"] } else { ["Pod", name] };
        let labels = [("namespace", "shop"), ("pod", name), ("node", NODE), ("phase", "Running")];
        let owner = [("workload_kind", workload[0]), ("workload", workload[1])];
        labels
            .into_iter()
            .chain(owner)
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .chain([("uid".to_owned(), pod.uid().to_owned())])
            .collect::<Vec<(String, String)>>()
    };
    let wait = |stage: &Stage<ApiServer>, pod: &Pod, name| {
        let labels = info(pod, name);
        let labels: Vec<(&str, &str)> = labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
        stage.wait("observer_pod_info", &labels, 1.0);
    };
    wait(&stage, &here, "web-1");
    let of = [("namespace", "shop"), ("pod", "web-1"), ("container", "app")];
    stage.wait("observer_cpu_request_cores", &of, 0.25);
    stage.wait("observer_memory_request_bytes", &of, f64::from(96 << 20));
    stage.wait("observer_container_restarts_total", &of, 3.0);

    // A Service gets its address from the server: the agent knows it.
    // The pod's own address, and that of the Service `kubernetes`, which the server makes.
    stage.wait("observer_agent_peer_addresses", &[], 2.0);
    let service = json!({ "metadata": { "name": "db" }, "spec": { "ports": [{ "port": 5432 }] } });
    create(&stage.server, "/api/v1/namespaces/shop/services", &service);
    stage.wait("observer_agent_peer_addresses", &[], 3.0);

    // For a minute things happen to the pods of other nodes alone: a bookmark says up to where the agent is. Its connections
    // are cut, and it goes on from the bookmark, without a list. The server tells of a watch when it has ended.
    let mut last = 0;
    for number in 0..5 {
        let mut other = pod(&format!("other-{number}"), None);
        other["spec"]["nodeName"] = "node2".into();
        last = version(&create(&stage.server, PODS, &other));
    }
    std::thread::sleep(BOOKMARK);
    let lists = watched(&stage.server).1;
    relay.cut();
    let late = create(&stage.server, PODS, &pod("late", None));
    let late = run(&stage, &late);
    wait(&stage, &late, "late");
    relay.cut();
    let deadline = std::time::Instant::now() + PATIENCE;
    let (watches, after) = loop {
        let (watches, lists) = watched(&stage.server);
        if watches.iter().any(|from| *from >= last) || std::time::Instant::now() > deadline {
            break (watches, lists);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    assert!(watches.iter().any(|from| *from >= last), "{watches:?}: none from a bookmark at {last} or later");
    assert_eq!(after, lists, "a watch goes on where it was, without a list");

    // The server dies, and while the agent waits one pod goes, another comes, and the store forgets how.
    stage.server.down();
    relay.cut();
    stage.wait_state("kubernetes", "failed", &[&url]);
    wait(&stage, &late, "late");
    let mut unseen = Value::Null;
    stage
        .server
        .behind(|server, at| {
            remove(server, at, "late");
            unseen = server.raw_at(at, "create", PODS, Some(&pod("unseen", None)))?;
            server.compact()
        })
        .unwrap();
    stage.server.up().unwrap();
    let unseen = run(&stage, &unseen);
    wait(&stage, &unseen, "unseen");
    stage.wait_state("kubernetes", "ok", &[]);
    assert!(watched(&stage.server).1 > after, "a list, because the store has forgotten what happened");

    // Permissions are taken away: said, and what is known stays.
    let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{AGENT_USER}");
    stage.server.raw("delete", &path, None).unwrap();
    relay.cut();
    stage.wait_state("kubernetes", "failed", &["403", "pods"]);
    wait(&stage, &here, "web-1");
    stage.agent.terminate().unwrap();
}
