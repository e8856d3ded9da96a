//! The kubelet and the Kubernetes API as sources of names: real sandboxes, and a server that says what was recorded of
//! real ones. Needs root.

mod support;

use observer_lab::kube_server::KubeServer;
use observer_lab::pod::{ContainerSpec, Pod, PodSpec};
use observer_lab::podsfile;
use serde_json::Value;
use support::kubernetes::{NODE, Stage};

const LIST: &str = include_str!("../../observer/tests/fixtures/kubernetes/api-list.json");
const WATCH: &str = include_str!("../../observer/tests/fixtures/kubernetes/api-watch.jsonl");
const DEPLOYMENT: &str = include_str!("../../observer/tests/fixtures/kubernetes/api-list-deployment.json");
const REPLICA_SET: &str = include_str!("../../observer/tests/fixtures/kubernetes/api-replicaset.json");
const REPLICA_SET_PATH: &str = "/apis/apps/v1/namespaces/shop/replicasets/api-7f9fbbdc5f";
const CART: &str = "cart-5d4f8c7b9d-x2x9k";
/// The version of the recorded list, and one more that everybody forgets.
const LISTED: u64 = 225;

/// An agent that asks this server, of its own node's pods alone, with these arguments, and no runtime.
fn observe(server: KubeServer, further: &[&str]) -> Stage {
    support::kubernetes::observe(server, &[&["--kubernetes.peers", "none"], further].concat())
}

/// A pod of the machine for a recorded one; the recording is told under its UID and its containers' ids.
fn pod(stage: &Stage, containers: &[&str]) -> Pod {
    let mut spec = PodSpec::new("unknown", "unknown", &[]);
    for name in containers {
        spec = spec.container(ContainerSpec::new(name).light());
    }
    Pod::create(&stage.node, spec).unwrap()
}

/// The versions of the watches that were asked for, and how many lists there were.
fn asked(server: &KubeServer) -> (Vec<u64>, usize) {
    let requests = server.requests();
    let pods: Vec<&str> = requests
        .iter()
        .filter(|request| request.status == 200 && request.path.starts_with("/api/v1/pods"))
        .map(|request| request.path.as_str())
        .collect();
    let version = |path: &&str| path.split("resourceVersion=").nth(1)?.parse().ok();
    let (watches, lists): (Vec<&str>, Vec<&str>) = pods.into_iter().partition(|path| path.contains("watch=true"));
    (watches.iter().filter_map(version).collect(), lists.len())
}

/// A recorded text with the ids of a pod that is here: its UID, and the ids of containers by their names, in the order
/// in which the recording has them.
fn told_as(text: &str, uid: &str, pod: &Pod, ids: &[(&str, &str)]) -> Value {
    let mut text = text.replace(uid, pod.uid());
    for (name, id) in ids {
        text = text.replace(id, pod.container(name).unwrap().id());
    }
    serde_json::from_str(&text).unwrap()
}

/// The ids of a recorded pod's containers, by name.
fn ids_of(pod: &Value) -> Vec<(String, String)> {
    let statuses = pod["status"]["containerStatuses"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let id = |status: &Value| text(&status["containerID"]).replace("containerd://", "");
    statuses.iter().map(|status| (text(&status["name"]), id(status))).collect()
}

fn recorded(list: &str, name: &str) -> Value {
    let list: Value = serde_json::from_str(list).unwrap();
    let items = list["items"].as_array().unwrap();
    items.iter().find(|pod| pod["metadata"]["name"] == name).unwrap().clone()
}

/// Moves what a list says of containers of a pod to where it says it of containers of another kind.
fn in_other_lists(list: &mut Value, pod: &str, kinds: &[(&str, &str)]) {
    let items = list["items"].as_array_mut().unwrap();
    let status = &mut items.iter_mut().find(|item| item["metadata"]["name"] == pod).unwrap()["status"];
    for (container, kind) in kinds {
        let all = status["containerStatuses"].as_array_mut().unwrap();
        let at = all.iter().position(|one| one["name"] == *container).unwrap();
        let moved = all.remove(at);
        status[*kind] = serde_json::json!([moved]);
    }
}

/// Recorded events after a version.
fn events_after(version: u64, name: &str) -> Vec<Value> {
    let events = WATCH.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of = |event: &Value| event["object"]["metadata"]["name"] == name;
    let at = |event: &Value| event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    events.filter(|event| of(event) && at(event) > version).collect()
}

fn info<'a>(pod: &'a Pod, namespace: &'a str, name: &'a str, phase: &'a str) -> Vec<(&'a str, &'a str)> {
    let told = [("namespace", namespace), ("pod", name), ("phase", phase), ("node", NODE)];
    [&[("uid", pod.uid()), ("qos_class", "Burstable")], &told[..]].concat()
}

/// Everything that happens to a watch: a disconnect in the middle of an event, 410, bookmarks, a token that ends.
#[test]
fn the_watch_of_a_real_api_server_with_all_that_goes_wrong() {
    let server = KubeServer::start().unwrap();
    let empty = serde_json::json!({ "metadata": { "resourceVersion": "1" }, "items": [] });
    server.list(NODE, &empty).unwrap();
    let url = server.url();
    let stage = observe(server, &["--kubernetes", &url]);
    stage.wait_state("kubernetes", "ok", &["no pod", "NODE_NAME"]);
    stage.wait_until("a first watch", |server| server.watches() == 1);

    // The recorded list, as it is after 410: the pods of this machine are among it.
    let cart = pod(&stage, &["server", "sidecar", "web"]);
    let loadgen = pod(&stage, &["gen", "oomer"]);
    let (old_cart, old_loadgen) = (recorded(LIST, CART), recorded(LIST, "loadgen"));
    let mut list = LIST.to_owned();
    let mut events: Vec<String> = events_after(LISTED, "loadgen").iter().map(Value::to_string).collect();
    assert!(events.len() > 4 && events.last().unwrap().contains("DELETED"));
    for (old, pod) in [(&old_cart, &cart), (&old_loadgen, &loadgen)] {
        let (ids, uid) = (ids_of(old), old["metadata"]["uid"].as_str().unwrap());
        let ids: Vec<(&str, &str)> = ids.iter().map(|(name, id)| (name.as_str(), id.as_str())).collect();
        list = told_as(&list, uid, pod, &ids).to_string();
        events = events.iter().map(|event| told_as(event, uid, pod, &ids).to_string()).collect();
    }
    let mut events = events.iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let mut list: Value = serde_json::from_str(&list).unwrap();
    in_other_lists(&mut list, CART, &[("sidecar", "initContainerStatuses"), ("web", "ephemeralContainerStatuses")]);
    stage.server.list(NODE, &list).unwrap();
    let before = asked(&stage.server);
    stage.server.forget();
    stage.wait("observer_pod_info", &info(&cart, "shop", CART, "Running"), 1.0);
    assert_eq!(asked(&stage.server).1, before.1 + 1, "a list after 410");
    stage.wait_state("kubernetes", "ok", &[]);
    let samples = stage.wait("observer_pod_info", &info(&loadgen, "shop", "loadgen", "Running"), 1.0);
    let of = |name| [("namespace", "shop"), ("pod", CART), ("container", name)];
    for name in ["server", "sidecar", "web"] {
        assert_eq!(samples.get("observer_container_restarts_total", &of(name)), Some(0.0), "{name}");
    }
    // One of a kind each: an ordinary, an init and an ephemeral one.
    for name in ["server", "sidecar", "web"] {
        stage.wait("observer_processes", &of(name), 1.0);
    }
    // 200m and 64Mi in the recording.
    stage.wait("observer_cpu_request_cores", &of("server"), 0.2);
    stage.wait("observer_memory_request_bytes", &of("server"), f64::from(64 << 20));
    let oomer = [("namespace", "shop"), ("pod", "loadgen"), ("container", "oomer")];
    stage.wait("observer_container_restarts_total", &oomer, 2.0);

    // A disconnect in the middle of an event, and what happened meanwhile.
    stage.wait_until("a watch", |server| server.watches() == 1);
    let lists = asked(&stage.server).1;
    stage.server.break_watches();
    for event in events.by_ref().take(3) {
        stage.server.event(&event).unwrap();
    }
    stage.wait("observer_pod_info", &info(&loadgen, "shop", "loadgen", "Failed"), 1.0);
    assert_eq!(asked(&stage.server).1, lists, "a watch goes on where it was");

    // After a bookmark a watch goes on from there.
    stage.wait_until("a watch", |server| server.watches() == 1);
    stage.server.bookmark(5000);
    stage.server.end_watches();
    stage.wait_until("a watch from the bookmark on", |server| asked(server).0.last() == Some(&5000));

    // The token ends, and the connection with it; the new one comes later.
    stage.wait_until("a watch", |server| server.watches() == 1);
    stage.server.accept_token("second").unwrap();
    stage.server.break_watches();
    stage.wait_state("kubernetes", "failed", &["401", "token", "--kubernetes"]);
    stage.server.write_token("second").unwrap();
    stage.wait_state("kubernetes", "ok", &[]);

    // The old watch is as good as forgotten; the pod is deleted with the rest of the events.
    stage.wait_until("a watch", |server| server.watches() == 1);
    let mut changed = serde_json::json!({ "type": "MODIFIED", "object": recorded(&list.to_string(), CART) });
    changed["object"]["metadata"]["resourceVersion"] = "5001".into();
    changed["object"]["status"]["phase"] = "Succeeded".into();
    stage.server.event(&changed).unwrap();
    let samples = stage.wait("observer_pod_info", &info(&cart, "shop", CART, "Succeeded"), 1.0);
    assert_eq!(samples.select("observer_pod_info", &[("pod", "unknown")]).count(), 0);

    // Deleted in the API: what is still here keeps its name.
    let deleted = events.next_back().unwrap();
    stage.server.event(&deleted).unwrap();
    changed["object"]["metadata"]["resourceVersion"] = "5002".into();
    changed["object"]["status"]["phase"] = "Running".into();
    stage.server.event(&changed).unwrap();
    let samples = stage.wait("observer_pod_info", &info(&cart, "shop", CART, "Running"), 1.0);
    assert_eq!(samples.get("observer_pod_info", &[("uid", loadgen.uid()), ("pod", "loadgen")]), Some(1.0));
    assert!(samples.sum("observer_agent_source_errors_total", &[("source", "kubernetes")]) >= 2.0);
    stage.agent.terminate().unwrap();
}

/// A Deployment by its ReplicaSet's owner, and by the pod's labels where ReplicaSets may not be read.
#[test]
fn owners_are_asked_for_and_told_from_labels_where_they_may_not_be_read() {
    for allowed in [true, false] {
        let server = KubeServer::start().unwrap();
        server.list(NODE, &serde_json::json!({ "metadata": { "resourceVersion": "1" }, "items": [] })).unwrap();
        // An owner's owner that no label tells.
        let rollout = REPLICA_SET.replace(r#""kind":"Deployment","name":"api""#, r#""kind":"Rollout","name":"slow""#);
        assert_ne!(rollout, REPLICA_SET);
        server.answer(REPLICA_SET_PATH, rollout);
        if !allowed {
            server.forbid("/apis/apps/v1");
        }
        let url = server.url();
        let stage = observe(server, &["--kubernetes", &url]);
        stage.wait_until("a watch", |server| server.watches() == 1);
        let pod = pod(&stage, &["web"]);
        let name = "api-7f9fbbdc5f-vmngc";
        let mut event = recorded(DEPLOYMENT, name);
        event["metadata"]["uid"] = pod.uid().into();
        stage.server.event(&serde_json::json!({ "type": "ADDED", "object": event })).unwrap();
        let workload = if allowed { ("Rollout", "slow") } else { ("Deployment", "api") };
        let mut labels = info(&pod, "shop", name, "Running");
        labels.extend([("workload_kind", workload.0), ("workload", workload.1)]);
        stage.wait("observer_pod_info", &labels, 1.0);
        if !allowed {
            stage.wait_state("kubernetes", "ok", &["replicasets.apps", "pod-template-hash"]);
        }
        let owners = stage.server.requests().iter().filter(|request| request.path == REPLICA_SET_PATH).count();
        assert_eq!(owners, 1, "asked once");
        stage.agent.terminate().unwrap();
    }
}

/// Those that name themselves, with nothing to ask for.
#[test]
fn daemon_sets_and_stateful_sets_by_reference() {
    let server = KubeServer::start().unwrap();
    server.list(NODE, &serde_json::json!({ "metadata": { "resourceVersion": "1" }, "items": [] })).unwrap();
    let url = server.url();
    let stage = observe(server, &["--kubernetes", &url]);
    stage.wait_until("a watch", |server| server.watches() == 1);
    for (version, kind, owner, name) in [(2, "DaemonSet", "proxy", "proxy-x2x9k"), (3, "StatefulSet", "db", "db-0")] {
        let spec = PodSpec::new("shop", name, &[]).container(ContainerSpec::new("c").light()).owner(kind, owner);
        let pod = Pod::create(&stage.node, spec).unwrap();
        let mut object = podsfile::document([&pod])["items"][0].clone();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        stage.server.event(&serde_json::json!({ "type": "ADDED", "object": object })).unwrap();
        let mut labels = info(&pod, "shop", name, "Running");
        labels.extend([("workload_kind", kind), ("workload", owner)]);
        stage.wait("observer_pod_info", &labels, 1.0);
    }
    assert!(!stage.server.requests().iter().any(|request| request.path.starts_with("/apis/")), "nobody is asked for");
    stage.agent.terminate().unwrap();
}

/// What the service account may not do is said, and done when it may. A static pod is told by its mirror.
#[test]
fn a_server_that_refuses_is_asked_again() {
    let server = KubeServer::start().unwrap();
    // Its cgroup has the hash of its manifest, its mirror in the API has a UID of its own.
    let hash = observer_lab::ids::pod_uid().unwrap().replace('-', "");
    let list = LIST.replace("986c58355b1a9629d28eb1e8abb627b3", &hash);
    assert_ne!(list, LIST);
    server.list(NODE, &serde_json::from_str(&list).unwrap()).unwrap();
    server.forbid("/api/v1/pods");
    let url = server.url();
    let stage = observe(server, &["--kubernetes", &url]);
    let spec = PodSpec { uid: Some(hash), ..PodSpec::new("unknown", "unknown", &["app"]) };
    let pod = Pod::create(&stage.node, spec).unwrap();
    stage.wait_state("kubernetes", "failed", &["403", "list and watch pods", "forbidden"]);
    stage.server.allow_all();
    let mut labels = info(&pod, "demo", "multi-node1", "Running");
    labels.extend([("workload_kind", "Pod"), ("workload", "multi-node1")]);
    stage.wait("observer_pod_info", &labels, 1.0);
    stage.wait_state("kubernetes", "ok", &[]);
    drop(labels);
    drop(pod);
    stage.agent.terminate().unwrap();
}

/// The kubelet: refused for its certificate, for the token, for the permission; then names, and those of a container that
/// is started later.
#[test]
fn a_kubelet_names_pods() {
    let server = KubeServer::start().unwrap();
    server.accept_token("second").unwrap();
    server.forbid("/pods");
    let (url, ca) = (server.url(), server.ca_file());
    let wrong = tempfile::NamedTempFile::new().unwrap();
    let other = KubeServer::start().unwrap();
    std::fs::copy(other.ca_file(), wrong.path()).unwrap();
    let file = wrong.path().to_str().unwrap().to_owned();
    let stage = observe(server, &["--kubelet.url", &url, "--kubelet.ca-file", &file, "--kubernetes", "none"]);
    stage.wait_state("kubelet", "failed", &["certificate", "--kubelet.insecure-skip-verify"]);
    std::fs::copy(ca, wrong.path()).unwrap();
    stage.wait_state("kubelet", "failed", &["401", "token"]);
    stage.server.write_token("second").unwrap();
    stage.wait_state("kubelet", "failed", &["403", "nodes/pods", "nodes/proxy"]);

    let spec = |name: &str| {
        PodSpec::new("shop", name, &[])
            .container(ContainerSpec::new("app").light())
            .label("pod-template-hash", "7d9")
            .owner("ReplicaSet", "web-7d9")
    };
    let mut web = Pod::create(&stage.node, spec("web-7d9-abcde")).unwrap();
    stage.server.answer("/pods", podsfile::document([&web]).to_string());
    stage.server.allow_all();
    let mut labels = info(&web, "shop", "web-7d9-abcde", "Running");
    labels.extend([("workload_kind", "Deployment"), ("workload", "web")]);
    let samples = stage.wait("observer_pod_info", &labels, 1.0);
    stage.wait_state("kubelet", "ok", &[]);
    let of = |name| [("namespace", "shop"), ("pod", "web-7d9-abcde"), ("container", name)];
    assert_eq!(samples.get("observer_processes", &of("app")), Some(1.0));
    drop(labels);

    // A container that comes later is asked for: sooner than the next question would be.
    let id = web.add_container(&stage.node, &ContainerSpec::new("late").light()).unwrap().id().to_owned();
    assert!(podsfile::document([&web]).to_string().contains(&id));
    stage.server.answer("/pods", podsfile::document([&web]).to_string());
    stage.wait("observer_processes", &of("late"), 1.0);
    assert!(!stage.server.requests().iter().any(|request| request.path != "/pods"));
    stage.agent.terminate().unwrap();
}

/// A kubelet that has signed its own certificate, and a file that knows better.
#[test]
fn a_file_stands_before_the_api_and_the_api_before_the_kubelet() {
    let server = KubeServer::start().unwrap();
    server.list(NODE, &serde_json::json!({ "metadata": { "resourceVersion": "1" }, "items": [] })).unwrap();
    server.answer("/pods", r#"{"items":[]}"#);
    let file = tempfile::NamedTempFile::new().unwrap();
    podsfile::write(file.path(), []).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let url = server.url();
    let further = [
        "--kubelet.url",
        &url,
        "--kubelet.ca-file",
        "/nonexistent",
        "--kubelet.insecure-skip-verify",
        "--kubernetes",
        &url,
        "--pods.file",
        &path,
    ];
    let stage = observe(server, &further);
    stage.wait_until("a watch", |server| server.watches() == 1);
    let pod = Pod::create(&stage.node, PodSpec::new("of-kubelet", "pod", &["app"])).unwrap();
    let document = podsfile::document([&pod]);
    let with_namespace = |namespace: &str| -> Value {
        serde_json::from_str(&document.to_string().replace("of-kubelet", namespace)).unwrap()
    };
    stage.server.answer("/pods", document.to_string());
    stage.wait("observer_pod_info", &info(&pod, "of-kubelet", "pod", "Running"), 1.0);
    let mut object = with_namespace("of-api")["items"][0].clone();
    object["metadata"]["resourceVersion"] = "2".into();
    stage.server.event(&serde_json::json!({ "type": "ADDED", "object": object })).unwrap();
    stage.wait("observer_pod_info", &info(&pod, "of-api", "pod", "Running"), 1.0);
    std::fs::write(&path, with_namespace("of-file").to_string()).unwrap();
    stage.wait("observer_pod_info", &info(&pod, "of-file", "pod", "Running"), 1.0);
    stage.agent.terminate().unwrap();
}
