//! Tests of [`super`], with what containerd answered on a node with kubelet 1.36.

use serde_json::Value;

use super::*;

const API: &str = "396a9b5c-a679-4bcc-8a24-de21cbebd6b7";
const CART: &str = "2511d807-524e-4528-886e-8e07fb12d47c";
const CRASHER: &str = "a1ade6e1d90b9aa65b0274ac8e994dc6";

fn read(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/cri/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

fn pairs(value: &Value) -> HashMap<String, String> {
    value.as_object().unwrap().iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn image(value: &Value) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: text(&value["image"]), ..Default::default() })
}

fn listing() -> Listing {
    let (sandboxes, containers) = (read("ListPodSandbox"), read("ListContainers"));
    let sandboxes = sandboxes["items"].as_array().unwrap().iter().map(|item| v1::PodSandbox {
        id: text(&item["id"]),
        metadata: Some(v1::PodSandboxMetadata {
            name: text(&item["metadata"]["name"]),
            uid: text(&item["metadata"]["uid"]),
            namespace: text(&item["metadata"]["namespace"]),
            attempt: number(&item["metadata"]["attempt"]),
        }),
        state: v1::PodSandboxState::from_str_name(&text(&item["state"])).unwrap().into(),
        created_at: text(&item["createdAt"]).parse().unwrap(),
        labels: pairs(&item["labels"]),
        annotations: pairs(&item["annotations"]),
        runtime_handler: text(&item["runtimeHandler"]),
    });
    let sandboxes = sandboxes.collect();
    let containers = containers["containers"].as_array().unwrap().iter().map(|item| v1::Container {
        id: text(&item["id"]),
        pod_sandbox_id: text(&item["podSandboxId"]),
        metadata: Some(v1::ContainerMetadata {
            name: text(&item["metadata"]["name"]),
            attempt: number(&item["metadata"]["attempt"]),
        }),
        image: image(&item["image"]),
        ..Default::default()
    });
    Listing { sandboxes, containers: containers.collect() }
}

fn status(name: &str) -> v1::PodSandboxStatusResponse {
    let document = read(name);
    let network = v1::PodSandboxNetworkStatus {
        ip: text(&document["status"]["network"]["ip"]),
        additional_ips: vec![v1::PodIp { ip: "fd00::7".into() }],
    };
    let mode = text(&document["status"]["linux"]["namespaces"]["options"]["network"]);
    let mode = v1::NamespaceMode::from_str_name(&mode).unwrap();
    let options = Some(v1::NamespaceOption { network: mode.into(), ..Default::default() });
    let linux = Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options }) });
    v1::PodSandboxStatusResponse {
        status: Some(v1::PodSandboxStatus { network: Some(network), linux, ..Default::default() }),
        info: HashMap::from([("info".to_owned(), document["info"].to_string())]),
        ..Default::default()
    }
}

fn id_of<'a>(listing: &'a Listing, uid: &str) -> &'a str {
    let of = |sandbox: &&v1::PodSandbox| sandbox.metadata.as_ref().unwrap().uid == uid;
    &listing.sandboxes.iter().find(of).unwrap().id
}

#[test]
fn pods_of_a_node() {
    let listing = listing();
    let mut facts = Facts::of("containerd");
    assert_eq!(facts.sandboxes_to_ask(&listing).len(), 7);
    assert_eq!(facts.containers_to_ask(&listing).len(), listing.containers.len(), "the kubelet starts by digest");
    let api = id_of(&listing, API).to_owned();
    facts.sandbox(api.clone(), SandboxFacts::from(&status("PodSandboxStatus-api")));
    let crash = read("ContainerStatus-crash");
    let crash_id = text(&crash["status"]["id"]);
    let told = v1::ContainerStatus { image: image(&crash["status"]["image"]), ..Default::default() };
    facts.container(crash_id.clone(), Some(&told));
    assert_eq!(facts.sandboxes_to_ask(&listing).len(), 6);
    assert!(!facts.containers_to_ask(&listing).contains(&crash_id));

    let pods = index(&listing, &facts);
    assert_eq!(pods.len(), 7);
    let pod = &pods[API];
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "api-7f9fbbdc5f-vmngc"));
    assert_eq!((pod.workload_kind.as_str(), pod.workload.as_str()), ("Deployment", "api"));
    assert_eq!(pod.labels["app"], "api");
    assert_eq!(pod.addresses, [IpAddr::from([10, 88, 0, 16]), "fd00::7".parse().unwrap()]);
    let [sandbox] = &pod.sandboxes[..] else { panic!("{:?}", pod.sandboxes) };
    assert_eq!((&sandbox.id, sandbox.image.as_str(), sandbox.pid), (&api, "localhost/pause:3.9", Some(32234)));
    assert_eq!(sandbox.host_interface, "veth1458a43a");
    assert_eq!(sandbox.netns, "/var/run/netns/cni-c8fb58ed-5412-1f0e-e066-72f83e5f1f1d");
    assert_eq!(sandbox.runtime, Runtime::Containerd);

    let names: HashSet<_> = pods[CART].containers.values().map(|container| container.name.as_str()).collect();
    assert_eq!(names, HashSet::from(["web", "sidecar", "server"]));
    assert_eq!(pods[CART].workload_kind, "Pod", "made by hand");
    assert_eq!((pods[CRASHER].namespace.as_str(), pods[CRASHER].workload.as_str()), ("demo", "crasher-node1"));
    let crash = ContainerIdentity {
        name: "crash".into(),
        image: "localhost/busybox:1.35".into(),
        attempt: Some(22),
        sandbox: pods[CRASHER].sandboxes[0].id.clone(),
        ..Default::default()
    };
    assert_eq!(pods[CRASHER].containers[&crash_id], crash);
}

#[test]
fn the_host_network_has_no_addresses_and_no_interface() {
    let mut status = status("PodSandboxStatus-hostnet");
    status.status.as_mut().unwrap().network.as_mut().unwrap().additional_ips.clear();
    let facts = SandboxFacts::from(&status);
    assert!(facts.addresses.is_empty() && facts.told.host_network);
    assert!(!SandboxFacts::from(&self::status("PodSandboxStatus-api")).told.host_network);
    assert_eq!((facts.told.pid, facts.told.netns.as_str(), facts.told.host_interface.as_str()), (Some(31366), "", ""));
}

#[test]
fn a_sandbox_made_again_is_the_same_pod() {
    let mut listing = listing();
    let at = listing.sandboxes.iter().position(|sandbox| sandbox.metadata.as_ref().unwrap().uid == API).unwrap();
    let mut again = listing.sandboxes[at].clone();
    again.id = "f".repeat(64);
    again.created_at += 1;
    again.labels.insert("app".into(), "new".into());
    listing.sandboxes.insert(0, again);
    let pods = index(&listing, &Facts::default());
    assert_eq!(pods.len(), 7);
    let ids: Vec<_> = pods[API].sandboxes.iter().map(|sandbox| sandbox.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "f".repeat(64).as_str(),
            id_of(&Listing { sandboxes: listing.sandboxes.split_off(1), ..Default::default() }, API)
        ]
    );
    assert_eq!(pods[API].labels["app"], "new");
}

/// Somebody set the clock back between the two sandboxes.
#[test]
fn the_sandbox_that_runs_names_the_pod_whatever_the_clock_said() {
    let mut listing = listing();
    let at = listing.sandboxes.iter().position(|sandbox| sandbox.metadata.as_ref().unwrap().uid == API).unwrap();
    let mut again = listing.sandboxes[at].clone();
    again.id = "f".repeat(64);
    again.created_at -= 86_400_000_000_000;
    again.metadata.as_mut().unwrap().attempt += 1;
    again.labels.insert("app".into(), "new".into());
    listing.sandboxes.push(again);
    assert_eq!(index(&listing, &Facts::default())[API].labels["app"], "new", "the later attempt");
    let last = listing.sandboxes.len() - 1;
    listing.sandboxes[last].metadata.as_mut().unwrap().attempt = 0;
    assert_eq!(index(&listing, &Facts::default())[API].labels["app"], "api", "of the same attempt the youngest");
    listing.sandboxes[at].state = v1::PodSandboxState::SandboxNotready.into();
    assert_eq!(index(&listing, &Facts::default())[API].labels["app"], "new", "the one that runs");
}

#[test]
fn what_is_gone_is_forgotten() {
    let listing = listing();
    let mut facts = Facts::default();
    facts.sandbox("gone".into(), SandboxFacts::default());
    facts.container("gone".into(), None);
    let kept = listing.containers[0].id.clone();
    facts.container(kept.clone(), None);
    facts.forget_others(&listing);
    assert!(facts.sandboxes.is_empty());
    assert_eq!(facts.images.keys().collect::<Vec<_>>(), [&kept]);
}

#[test]
fn what_failed_is_asked_for_after_what_is_new_and_not_at_once() {
    let sandbox = |id: &str| v1::PodSandbox { id: id.into(), ..Default::default() };
    let container = v1::Container { id: "c".into(), ..Default::default() };
    let listing = Listing { sandboxes: ["a", "b", "new"].map(sandbox).into(), containers: vec![container] };
    let (mut facts, now) = (Facts::default(), Instant::now());
    let [a, b, new] = ["a", "b", "new"].map(|id| Detail::Sandbox(id.into()));
    let c = Detail::Container("c".into());
    facts.failed(&a, now, Duration::from_secs(2));
    facts.failed(&b, now, Duration::from_secs(1));
    assert_eq!(facts.to_ask(&listing, now), [(new.clone(), false), (c.clone(), false)]);
    let later = now + Duration::from_secs(20);
    assert_eq!(facts.to_ask(&listing, later), [(new, false), (c, false), (b, true), (a, true)]);
    assert_eq!(facts.missing(), 2);
    facts.sandbox("a".into(), SandboxFacts::default());
    facts.forget_others(&Listing::default());
    assert_eq!((facts.missing(), facts.later.due("b")), (0, None));
}

#[test]
fn facts_are_one_runtimes() {
    let facts = Facts::of("containerd");
    assert!(facts.is_of("containerd") && !facts.is_of("cri-o") && Facts::default().is_of("another"));
}

#[test]
fn hostile_answers_are_bounded_or_left_out() {
    let metadata = v1::PodSandboxMetadata { name: "n\n".repeat(1000), ..Default::default() };
    let listing = Listing {
        sandboxes: vec![
            v1::PodSandbox { id: "one".into(), ..Default::default() },
            v1::PodSandbox { id: "two".into(), metadata: Some(metadata), ..Default::default() },
        ],
        containers: vec![v1::Container { id: "c".into(), pod_sandbox_id: "none".into(), ..Default::default() }],
    };
    let pods = index(&listing, &Facts::default());
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["two"], "without a UID its id stands for it");
    assert_eq!(pods["two"].name.chars().count(), 253);
    assert!(!pods["two"].name.contains('\n') && pods["two"].containers.is_empty());
    for info in ["", "[]", "{\"pid\":-1,\"cniResult\":{\"Interfaces\":null}}", "{\"pid\":\"x\"}"] {
        let answer = v1::PodSandboxStatusResponse {
            info: HashMap::from([("info".to_owned(), info.to_owned())]),
            ..Default::default()
        };
        assert_eq!(SandboxFacts::from(&answer), SandboxFacts::default(), "{info}");
    }
    for (name, digest) in [("sha256:", false), ("a:b", false), ("", false), (&"a".repeat(64), true)] {
        assert_eq!(is_digest(name), digest, "{name}");
    }
    assert!(is_digest(&format!("sha256:{}", "0".repeat(64))));
}
