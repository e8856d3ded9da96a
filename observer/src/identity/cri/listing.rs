//! From a runtime's answers to pods. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use observer_cri::v1;
use serde::Deserialize;

use super::{
    super::{
        pod::{self, ContainerIdentity, PodIdentity, PodIndex, SandboxIdentity, clean},
        workload,
    },
    later::Later,
};
use crate::sandbox::Runtime;

/// Characters of a path that are kept (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Everything that a runtime runs, as it lists it.
#[derive(Debug, Default)]
pub struct Listing {
    /// Pod sandboxes, ended ones too.
    pub sandboxes: Vec<v1::PodSandbox>,
    /// Containers, ended ones too.
    pub containers: Vec<v1::Container>,
}

/// Details that the lists do not have. They stay as they are while the thing lives, so each is asked for once.
#[derive(Debug, Default)]
pub struct Facts {
    runtime: Runtime,
    sandboxes: HashMap<String, SandboxFacts>,
    images: HashMap<String, String>,
    /// What the runtime did not tell.
    later: Later,
}

/// Something that the lists do not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// The status of the sandbox with this id.
    Sandbox(String),
    /// The status of the container with this id.
    Container(String),
}

/// Details of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFacts {
    /// Its addresses; none for one on the node's network.
    pub addresses: Vec<IpAddr>,
    /// What containerd and CRI-O tell beyond the interface.
    pub told: SandboxIdentity,
}

/// The `info` of a verbose status, a JSON document of the runtime's own. CRI-O has other fields than containerd.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    pid: Option<i32>,
    image: Option<String>,
    runtime_spec: Option<Spec>,
    cni_result: Option<CniResult>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Linux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CniResult {
    #[serde(rename = "Interfaces")]
    interfaces: Option<BTreeMap<String, Option<Interface>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Interface {
    #[serde(rename = "Sandbox")]
    sandbox: String,
}

impl From<&v1::PodSandboxStatusResponse> for SandboxFacts {
    fn from(answer: &v1::PodSandboxStatusResponse) -> Self {
        let network = answer.status.as_ref().and_then(|status| status.network.as_ref());
        let further = network.into_iter().flat_map(|network| network.additional_ips.iter().map(|ip| &ip.ip));
        let addresses = network.map(|network| &network.ip).into_iter().chain(further);
        // Another runtime's document may have nothing of this, or no JSON at all.
        let info: Info = answer.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let linux =
            answer.status.as_ref().and_then(|status| status.linux.as_ref()?.namespaces.as_ref()?.options.as_ref());
        let network = |namespace: &Namespace| namespace.kind == "network";
        let netns = info.runtime_spec.and_then(|spec| spec.linux.namespaces.into_iter().find(network));
        Self {
            addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
            told: SandboxIdentity {
                id: String::new(),
                image: clean(&info.image.unwrap_or_default()),
                host_network: linux.is_some_and(|options| options.network() == v1::NamespaceMode::Node),
                pid: info.pid.filter(|pid| *pid > 0),
                netns: netns.map(|netns| netns.path.chars().take(MAX_PATH).collect()).unwrap_or_default(),
                host_interface: info.cni_result.and_then(host_interface).unwrap_or_default(),
                runtime: Runtime::Unknown,
            },
        }
    }
}

/// The node's end of the pod's veth pair. The list has the bridge too, and what other plugins made: only a name that
/// says what it is, and only one.
fn host_interface(result: CniResult) -> Option<String> {
    let on_node = result
        .interfaces?
        .into_iter()
        .filter(|(_, interface)| interface.as_ref().is_none_or(|interface| interface.sandbox.is_empty()));
    let mut veths = on_node.map(|(name, _)| name).filter(|name| name.starts_with("veth"));
    let first = veths.next()?;
    veths.next().is_none().then(|| clean(&first))
}

impl Facts {
    /// Of the runtime that calls itself so.
    #[must_use]
    pub fn of(runtime: &str) -> Self {
        let runtime = match runtime {
            "containerd" => Runtime::Containerd,
            "cri-o" => Runtime::Crio,
            "docker" => Runtime::Docker,
            _ => Runtime::Unknown,
        };
        Self { runtime, ..Self::default() }
    }

    /// What the runtime is to be asked for now, each with whether it failed before: what is new first, then what has
    /// waited for longest.
    pub fn to_ask(&self, listing: &Listing, now: Instant) -> Vec<(Detail, bool)> {
        let due = |id: &String| self.later.due(id);
        let sandboxes = self.sandboxes_to_ask(listing).into_iter().map(|id| (due(&id), Detail::Sandbox(id)));
        let containers = self.containers_to_ask(listing).into_iter().map(|id| (due(&id), Detail::Container(id)));
        let ready = |(due, _): &(Option<Instant>, Detail)| due.is_none_or(|due| due <= now);
        let mut asked: Vec<_> = sandboxes.chain(containers).filter(ready).collect();
        asked.sort_by_key(|(due, _)| *due);
        asked.into_iter().map(|(due, detail)| (detail, due.is_some())).collect()
    }

    /// Sandboxes that run and that nothing is known of.
    fn sandboxes_to_ask(&self, listing: &Listing) -> Vec<String> {
        let ready = |sandbox: &&v1::PodSandbox| sandbox.state() == v1::PodSandboxState::SandboxReady;
        let ids = listing.sandboxes.iter().filter(ready).map(|sandbox| &sandbox.id);
        ids.filter(|id| !self.sandboxes.contains_key(*id)).cloned().collect()
    }

    /// Containers whose image the list tells by its digest alone.
    fn containers_to_ask(&self, listing: &Listing) -> Vec<String> {
        let asked =
            |container: &&v1::Container| in_list(container).is_none() && !self.images.contains_key(&container.id);
        listing.containers.iter().filter(asked).map(|container| container.id.clone()).collect()
    }

    /// Keeps what is told of a sandbox.
    pub fn sandbox(&mut self, id: String, facts: SandboxFacts) {
        self.later.told(&id);
        self.sandboxes.insert(id, facts);
    }

    /// Keeps what is told of a container.
    pub fn container(&mut self, id: String, status: Option<&v1::ContainerStatus>) {
        self.later.told(&id);
        let image = status.and_then(|status| status.image.as_ref());
        let written = image.and_then(as_written).map(clean);
        self.images.insert(id, written.unwrap_or_default());
    }

    /// The runtime was asked for this, and did not tell it for so long.
    pub fn failed(&mut self, detail: &Detail, now: Instant, took: Duration) {
        let (Detail::Sandbox(id) | Detail::Container(id)) = detail;
        self.later.failed(id, now, took);
    }

    /// How much it was asked for and has not told.
    pub fn missing(&self) -> usize {
        self.later.len()
    }

    /// Whether this is what the runtime calls itself whose facts these are, as far as its name is known.
    pub fn is_of(&self, runtime: &str) -> bool {
        self.runtime == Self::of(runtime).runtime
    }

    /// Forgets what is not listed any more, and what needs not be asked for again: one that has ended is told of by none.
    pub fn forget_others(&mut self, listing: &Listing) {
        let asked: HashSet<String> =
            self.sandboxes_to_ask(listing).into_iter().chain(self.containers_to_ask(listing)).collect();
        let sandboxes: HashSet<&str> = listing.sandboxes.iter().map(|sandbox| sandbox.id.as_str()).collect();
        let containers: HashSet<&str> = listing.containers.iter().map(|container| container.id.as_str()).collect();
        self.sandboxes.retain(|id, _| sandboxes.contains(id.as_str()));
        self.images.retain(|id, _| containers.contains(id.as_str()));
        self.later.retain(|id| asked.contains(id));
    }
}

/// The pods. Several sandboxes of one pod are one pod, with the youngest one's names.
#[must_use]
pub fn index(listing: &Listing, facts: &Facts) -> PodIndex {
    let mut sandboxes: Vec<&v1::PodSandbox> = listing.sandboxes.iter().collect();
    sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(youth(sandbox)));
    let mut pods = PodIndex::new();
    let mut pod_of: HashMap<&str, String> = HashMap::new();
    for sandbox in sandboxes {
        let Some(metadata) = &sandbox.metadata else { continue };
        // A pod that no kubelet made may have no UID; then nothing but its containers' ids names it.
        let key = clean(if metadata.uid.is_empty() { &sandbox.id } else { &metadata.uid });
        let known = facts.sandboxes.get(&sandbox.id).cloned().unwrap_or_default();
        let told = SandboxIdentity { id: clean(&sandbox.id), runtime: facts.runtime, ..known.told };
        pod_of.insert(&sandbox.id, key.clone());
        let pod = pods.entry(key).or_insert_with(|| identity(sandbox, metadata, known.addresses));
        pod.sandboxes.push(told);
    }
    for container in &listing.containers {
        let key = pod_of.get(container.pod_sandbox_id.as_str());
        let (Some(pod), Some(metadata)) = (key.and_then(|key| pods.get_mut(key)), &container.metadata) else {
            continue;
        };
        let image = in_list(container).map(clean).or_else(|| facts.images.get(&container.id).cloned());
        let told = ContainerIdentity {
            name: clean(&metadata.name),
            image: image.unwrap_or_default(),
            attempt: Some(metadata.attempt),
            sandbox: clean(&container.pod_sandbox_id),
            ..Default::default()
        };
        pod.containers.insert(clean(&container.id), told);
    }
    pods
}

/// The greater, the younger. What runs comes before what has ended, then the kubelet's count of attempts tells; only of
/// those that are the same in both it is the time, which is the wall clock's and may go back.
fn youth(sandbox: &v1::PodSandbox) -> (bool, u32, i64, &str) {
    let ready = sandbox.state() == v1::PodSandboxState::SandboxReady;
    let attempt = sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
    (ready, attempt, sandbox.created_at, &sandbox.id)
}

fn identity(sandbox: &v1::PodSandbox, metadata: &v1::PodSandboxMetadata, addresses: Vec<IpAddr>) -> PodIdentity {
    let labels = pod::labels(&sandbox.labels);
    let annotations = pod::annotations(&sandbox.annotations);
    let name = clean(&metadata.name);
    let (workload_kind, workload) = workload::from_labels(&name, &labels, &annotations).unwrap_or_default();
    PodIdentity {
        namespace: clean(&metadata.namespace),
        name,
        runtime_handler: clean(&sandbox.runtime_handler),
        workload_kind,
        workload,
        labels,
        annotations,
        addresses,
        ..PodIdentity::default()
    }
}

/// The image as the list has it, when that is what the user wrote. The kubelet starts containers by digest.
fn in_list(container: &v1::Container) -> Option<&str> {
    as_written(container.image.as_ref()?)
}

fn as_written(image: &v1::ImageSpec) -> Option<&str> {
    let by_name = |name: &&str| !name.is_empty() && !is_digest(name);
    // What containerd resolved to a tag comes first, as the kubelet and its cAdvisor show it.
    [image.image.as_str(), image.user_specified_image.as_str()].into_iter().find(by_name)
}

/// `sha256:…`, or the bare digest that CRI-O gives.
fn is_digest(name: &str) -> bool {
    let digest = name.rsplit_once(':').filter(|(kind, _)| *kind == "sha256").map_or(name, |(_, digest)| digest);
    digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
