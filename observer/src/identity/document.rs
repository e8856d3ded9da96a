//! Pods as Kubernetes writes them in JSON: the kubelet's `/pods`, the API's lists and watches, the pods file. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::Deserialize;

use super::{
    Limits, Requests,
    pod::{self, ContainerIdentity, PodIdentity, PodIndex, clean},
    workload,
};
use crate::sandbox::QosClass;

/// Addresses of a pod that are kept; the API allows one of each family.
const MAX_ADDRESSES: usize = 8;

/// Reads a list of pods. Unknown fields are passed over; a pod without a UID is left out.
///
/// # Errors
///
/// When it is not JSON, or a field that is needed has another type.
pub fn parse(text: &[u8]) -> Result<PodIndex, serde_json::Error> {
    let list: List = serde_json::from_slice(text)?;
    let mut pods = PodIndex::new();
    for pod in list.items.unwrap_or_default() {
        let identity = pod.identity();
        for uid in pod.uids() {
            pods.entry(uid).or_insert_with(|| identity.clone());
        }
    }
    Ok(pods)
}

/// A `v1` `PodList`.
#[derive(Deserialize)]
pub(super) struct List {
    pub items: Option<Vec<Pod>>,
}

/// A `v1` `Pod`: the part of it that is used.
#[derive(Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Reference>>,
}

/// Who owns something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reference {
    pub kind: String,
    pub name: String,
    pub uid: String,
    controller: Option<bool>,
}

impl Metadata {
    /// The owner that is the controller.
    pub fn controller(&self) -> Option<&Reference> {
        Reference::controller(self.owner_references.as_deref())
    }
}

impl Reference {
    /// The controller among owners.
    pub fn controller(owners: Option<&[Self]>) -> Option<&Self> {
        owners?.iter().find(|owner| owner.controller.unwrap_or(false))
    }
}

impl Pod {
    /// What its cgroup may be called by: its UID; for a static pod the hash of its manifest, which its mirror in the API
    /// has as an annotation.
    pub fn uids(&self) -> Vec<String> {
        let annotations = self.metadata.annotations.as_ref();
        let hashes = ["kubernetes.io/config.hash", "kubernetes.io/config.mirror"];
        let mut uids: Vec<String> = std::iter::once(&self.metadata.uid)
            .chain(hashes.iter().filter_map(|name| annotations?.get(*name)))
            .filter(|uid| !uid.is_empty())
            .map(|uid| clean(uid))
            .collect();
        uids.dedup();
        uids
    }

    /// What it tells.
    pub fn identity(&self) -> PodIdentity {
        let (workload_kind, workload) = workload(&self.metadata);
        let (spec, status) = (self.spec.as_ref(), self.status.as_ref());
        let on_host = spec.is_some_and(|spec| spec.host_network);
        let addresses = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
        let addresses = addresses.iter().filter(|_| !on_host).take(MAX_ADDRESSES);
        PodIdentity {
            namespace: clean(&self.metadata.namespace),
            name: clean(&self.metadata.name),
            phase: status.map(|status| clean(&status.phase)).unwrap_or_default(),
            runtime_class: spec.and_then(|spec| spec.runtime_class_name.as_deref()).map(clean).unwrap_or_default(),
            qos: status.and_then(|status| QosClass::named(&status.qos_class)),
            workload_kind,
            workload,
            labels: pod::labels(self.metadata.labels.iter().flatten()),
            annotations: pod::annotations(self.metadata.annotations.iter().flatten()),
            addresses: addresses.filter_map(|address| address.ip.parse::<IpAddr>().ok()).collect(),
            containers: self.containers(),
            ..PodIdentity::default()
        }
    }

    fn containers(&self) -> HashMap<String, ContainerIdentity> {
        let asked = self.spec.as_ref().map(Spec::resources).unwrap_or_default();
        let Some(status) = &self.status else { return HashMap::new() };
        let mut containers = HashMap::new();
        let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
        for container in lists.into_iter().flatten().flatten() {
            // What is in force, where it is told, was changed while the container ran.
            let told = [container.resources.as_ref(), asked.get(container.name.as_str()).copied()];
            let first =
                |of: fn(&Resources) -> Option<Requests>| told.into_iter().flatten().find_map(of).unwrap_or_default();
            let (requests, limits) = (first(Resources::requests), first(Resources::limits));
            // A container that was started again has a new id; the old one's cgroup may be there a moment longer. The
            // count is that of the container that the id belongs to, not of those before it.
            let ids = [
                (State::ended(container.last_state.as_ref()), None),
                (State::ended(container.state.as_ref()), container.restart_count),
                (container.container_id.as_deref(), container.restart_count),
            ];
            for (id, attempt) in ids {
                let Some(id) = id.and_then(|id| id.rsplit("://").next()).filter(|id| !id.is_empty()) else { continue };
                let told = ContainerIdentity {
                    name: clean(&container.name),
                    image: clean(&container.image),
                    attempt,
                    requests,
                    limits,
                    ..ContainerIdentity::default()
                };
                containers.insert(clean(id), told);
            }
        }
        containers
    }
}

/// The controller among the owners, and the hash that a Deployment labels its pods with.
fn workload(metadata: &Metadata) -> (String, String) {
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let owner = metadata.controller().map(|owner| (owner.kind.as_str(), owner.name.as_str()));
    let (kind, name) = workload::from_owner(owner, hash.map(String::as_str), &metadata.name);
    (clean(&kind), clean(&name))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    runtime_class_name: Option<String>,
    host_network: bool,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

impl Spec {
    /// What each container asks for and may use, by its name. Ephemeral ones may not ask.
    fn resources(&self) -> HashMap<&str, &Resources> {
        let all = self.containers.iter().chain(&self.init_containers).flatten();
        all.filter_map(|container| Some((container.name.as_str(), container.resources.as_ref()?))).collect()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    resources: Option<Resources>,
}

/// `ResourceRequirements`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    requests: Option<BTreeMap<String, String>>,
    limits: Option<BTreeMap<String, String>>,
}

impl Resources {
    fn requests(&self) -> Option<Requests> {
        self.requests.as_ref().map(Requests::from_quantities)
    }

    fn limits(&self) -> Option<Limits> {
        self.limits.as_ref().map(Limits::from_quantities)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    qos_class: String,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Address>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

/// Something with an address.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    pub ip: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    #[serde(default)]
    name: String,
    #[serde(default)]
    image: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    restart_count: Option<u32>,
    state: Option<State>,
    last_state: Option<State>,
    resources: Option<Resources>,
}

#[derive(Deserialize)]
struct State {
    terminated: Option<Terminated>,
}

impl State {
    fn ended(state: Option<&Self>) -> Option<&str> {
        state?.terminated.as_ref()?.container_id.as_deref()
    }
}

#[derive(Deserialize)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"kind":"PodList","items":[
      {"metadata":{"name":"web-7d9-x","namespace":"shop","uid":"u1","labels":{"pod-template-hash":"7d9"},
        "ownerReferences":[{"kind":"ReplicaSet","name":"web-7d9","controller":true}]},
       "spec":{"runtimeClassName":"kata","containers":[
          {"name":"app","resources":{"limits":{"cpu":"1"},"requests":{"cpu":"100m","memory":"16Mi"}}},
          {"name":"late","resources":{}}],
          "initContainers":[{"name":"prepare","resources":{"requests":{"cpu":"1m"},"limits":{"memory":"1Ki"}}}],
          "ephemeralContainers":[{"name":"debugger-x","resources":{}}]},
       "status":{"phase":"Running","containerStatuses":[
          {"name":"app","image":"i:1","containerID":"containerd://abc","restartCount":1,
            "lastState":{"terminated":{"containerID":"containerd://old"}}},{"name":"late","image":"i"}],
          "initContainerStatuses":[{"name":"prepare","image":"i:2","containerID":"cri-o://ini","restartCount":2,
            "state":{"terminated":{"containerID":"cri-o://ini"}}}],
          "ephemeralContainerStatuses":[{"name":"debugger-x","image":"i:3","containerID":"containerd://eph",
            "restartCount":0}]}},
      {"metadata":{"name":"etcd-n","namespace":"kube-system","uid":"mirror",
        "annotations":{"kubernetes.io/config.hash":"82886aa4"},
        "ownerReferences":[{"kind":"Node","name":"n","controller":true}]}},
      {"metadata":{"name":"job-1","namespace":"a\nb","uid":"u3",
        "ownerReferences":[{"kind":"Job","name":"job","controller":true}]}}]}"#;

    #[test]
    fn pods_owners_and_containers() {
        let pods = parse(DOCUMENT.as_bytes()).unwrap();
        let web = &pods["u1"];
        assert_eq!((web.namespace.as_str(), web.name.as_str(), web.phase.as_str()), ("shop", "web-7d9-x", "Running"));
        assert_eq!((web.workload_kind.as_str(), web.workload.as_str()), ("Deployment", "web"));
        assert_eq!(web.runtime_class, "kata");
        let requests = Requests { cpu_millis: Some(100), memory_bytes: Some(16 << 20) };
        let limits = Limits { cpu_millis: Some(1000), memory_bytes: None };
        let app = |attempt| ContainerIdentity {
            name: "app".into(),
            image: "i:1".into(),
            attempt,
            requests,
            limits,
            ..ContainerIdentity::default()
        };
        assert_eq!(web.containers["abc"], app(Some(1)));
        assert_eq!(web.containers["old"], app(None), "before it was started again");
        assert_eq!(web.labels["pod-template-hash"], "7d9");
        let init = ContainerIdentity {
            name: "prepare".into(),
            image: "i:2".into(),
            attempt: Some(2),
            requests: Requests { cpu_millis: Some(1), memory_bytes: None },
            limits: Limits { cpu_millis: None, memory_bytes: Some(1 << 10) },
            ..ContainerIdentity::default()
        };
        assert_eq!(web.containers["ini"], init);
        let [name, image] = ["debugger-x", "i:3"].map(str::to_owned);
        let ephemeral = ContainerIdentity { name, image, attempt: Some(0), ..ContainerIdentity::default() };
        assert_eq!(web.containers["eph"], ephemeral);
        assert_eq!(web.containers.len(), 4);
        assert_eq!(pods["82886aa4"], pods["mirror"]);
        assert_eq!((pods["mirror"].workload_kind.as_str(), pods["mirror"].workload.as_str()), ("Pod", "etcd-n"));
        assert_eq!((pods["u3"].workload_kind.as_str(), pods["u3"].workload.as_str()), ("Job", "job"));
        assert_eq!(pods["u3"].namespace, "a\u{fffd}b");
    }

    #[test]
    fn what_is_in_force_comes_before_the_specification() {
        let resized = r#""restartCount":1,"resources":{"requests":{"cpu":"2"}},"#;
        let pods = parse(DOCUMENT.replace(r#""restartCount":1,"#, resized).as_bytes()).unwrap();
        let requests = Requests { cpu_millis: Some(2000), memory_bytes: None };
        assert_eq!(pods["u1"].containers["abc"].requests, requests);
        let kept = Limits { cpu_millis: Some(1000), memory_bytes: None };
        assert_eq!(pods["u1"].containers["abc"].limits, kept, "of limits nothing new is told");
        let resized = r#""restartCount":1,"resources":{"limits":{"memory":"1Gi"}},"#;
        let pods = parse(DOCUMENT.replace(r#""restartCount":1,"#, resized).as_bytes()).unwrap();
        let limits = Limits { cpu_millis: None, memory_bytes: Some(1 << 30) };
        assert_eq!(pods["u1"].containers["abc"].limits, limits);
    }

    #[test]
    fn hostile_documents_are_errors_or_empty() {
        for text in ["", "[]x", "{\"items\":{}}", "{\"items\":[{\"metadata\":{\"uid\":5}}]}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"{}").unwrap().is_empty());
        let long = format!("{{\"items\":[{{\"metadata\":{{\"uid\":\"u\",\"name\":\"{}\"}}}}]}}", "x".repeat(10_000));
        assert_eq!(parse(long.as_bytes()).unwrap()["u"].name.len(), 253);
    }

    /// What a kubelet 1.36 says of its pods.
    #[test]
    fn a_kubelets_pods() {
        let pods = parse(include_bytes!("../../tests/fixtures/kubernetes/kubelet-pods.json")).unwrap();
        assert_eq!(pods.len(), 6);
        let multi = &pods["986c58355b1a9629d28eb1e8abb627b3"];
        assert_eq!((multi.namespace.as_str(), multi.name.as_str()), ("demo", "multi-node1"));
        assert_eq!((multi.workload_kind.as_str(), multi.qos), ("Pod", Some(QosClass::Burstable)));
        let guaranteed = &pods["82886aa483380543a962a24cb2cac812"];
        let named = |name: &str| guaranteed.containers.values().find(|container| container.name == name).unwrap();
        let requests = |cpu, memory| Requests { cpu_millis: Some(cpu), memory_bytes: Some(memory) };
        assert_eq!(named("burn").requests, requests(200, 64 << 20));
        assert_eq!(named("burn").limits, requests(200, 64 << 20), "it is guaranteed");
        assert_eq!(named("sidecar").requests, requests(100, 32 << 20), "an init container that goes on");
        assert_eq!(guaranteed.qos, Some(QosClass::Guaranteed));
        let host = &pods["372d674a4d9d720541eed0c5872b8533"];
        assert_eq!((host.name.as_str(), host.addresses.len()), ("hostnet-node1", 0));
        assert_eq!(host.containers.values().next().unwrap().requests, Requests::default(), "asks for nothing");
        let cart = &pods["2511d807-524e-4528-886e-8e07fb12d47c"];
        assert_eq!((cart.labels["app"].as_str(), cart.addresses.len()), ("cart", 1));
    }
}
