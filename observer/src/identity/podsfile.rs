//! A kubelet's `/pods` document (a `v1` `PodList`) in a file: the names of pods on machines without an orchestrator.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Deserialize;

/// Characters of a name that are kept: a DNS subdomain (RFC 1123) has no more.
const MAX_NAME: usize = 253;

/// What is read of the file: a thousand times what a node with 110 pods has.
const MAX_BYTES: u64 = 256 << 20;

/// What the document tells of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The phase.
    pub phase: String,
    /// The runtime class, or empty.
    pub runtime_class: String,
    /// The top owner's kind, or empty.
    pub workload_kind: String,
    /// The top owner's name, or empty.
    pub workload: String,
    /// Containers by id (without the `containerd://`): name and image.
    pub containers: HashMap<String, (String, String)>,
}

/// Pods by UID; static pods also by the hash that their cgroup has.
pub type PodIndex = HashMap<String, PodIdentity>;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PodsFileError {
    /// It cannot be read.
    #[error("cannot read the pods file {path} (--pods.file): {source}; pods keep the names they have")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a list of pods.
    #[error(
        "the pods file {path} (--pods.file) is not a kubelet /pods document: {source}; pods keep the names they have"
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
}

/// The file and the last good version of it.
#[derive(Debug, Default)]
pub struct PodsFile {
    path: Option<PathBuf>,
    seen: Option<Version>,
    pods: PodIndex,
}

/// What changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: Option<SystemTime>,
    inode: u64,
    length: u64,
}

impl PodsFile {
    /// A file to read; `None` for no file.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, ..Self::default() }
    }

    /// The pods of the last good version.
    #[must_use]
    pub const fn pods(&self) -> &PodIndex {
        &self.pods
    }

    /// Reads the file again when it has changed since the last call. Says whether it was read.
    ///
    /// # Errors
    ///
    /// See [`PodsFileError`]; the last good version stays. A file that cannot be read fails at every call, one that
    /// cannot be parsed once for each version.
    pub fn refresh(&mut self) -> Result<bool, PodsFileError> {
        let Some(path) = self.path.clone() else { return Ok(false) };
        let path = &path;
        let now = version(path);
        if now.is_some() && now == self.seen {
            return Ok(false);
        }
        let text = read(path).map_err(|source| {
            self.seen = None;
            PodsFileError::Read { path: path.clone(), source }
        })?;
        self.seen = now;
        self.pods = parse(&text).map_err(|source| PodsFileError::Parse { path: path.clone(), source })?;
        Ok(true)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // To open a pipe would mean to wait for a writer, and a device has no end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(text)
}

fn version(path: &Path) -> Option<Version> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some(Version { modified: metadata.modified().ok(), inode: metadata.ino(), length: metadata.len() })
}

/// Reads a document. Unknown fields are passed over; a pod without a UID is left out.
///
/// # Errors
///
/// When it is not JSON, or a field that is needed has another type.
pub fn parse(text: &[u8]) -> Result<PodIndex, serde_json::Error> {
    let list: List = serde_json::from_slice(text)?;
    let mut pods = PodIndex::new();
    for pod in list.items.unwrap_or_default() {
        let uids: Vec<String> = std::iter::once(pod.metadata.uid.clone())
            .chain(
                ["kubernetes.io/config.hash", "kubernetes.io/config.mirror"]
                    .iter()
                    .filter_map(|name| pod.metadata.annotations.as_ref()?.get(*name).cloned()),
            )
            .filter(|uid| !uid.is_empty())
            .collect();
        let identity = identity(pod);
        for uid in uids {
            pods.entry(uid).or_insert_with(|| identity.clone());
        }
    }
    Ok(pods)
}

fn identity(pod: Pod) -> PodIdentity {
    let (workload_kind, workload) = workload(&pod.metadata);
    let status = pod.status.unwrap_or_default();
    let containers = [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|container| {
            // A container that was started again has a new id; the old one's cgroup may be there a moment longer.
            let ended = |state: Option<State>| state.and_then(|state| state.terminated?.container_id);
            let ids = [container.container_id, ended(container.last_state), ended(container.state)];
            let told = (clean(&container.name), clean(&container.image));
            let bare = |id: &String| id.rsplit("://").next().filter(|id| !id.is_empty()).map(str::to_owned);
            ids.iter().flatten().filter_map(bare).map(move |id| (id, told.clone())).collect::<Vec<_>>()
        })
        .collect();
    PodIdentity {
        namespace: clean(&pod.metadata.namespace),
        name: clean(&pod.metadata.name),
        phase: clean(&status.phase),
        runtime_class: clean(&pod.spec.unwrap_or_default().runtime_class_name.unwrap_or_default()),
        workload_kind,
        workload,
        containers,
    }
}

/// The top owner: a ReplicaSet that a Deployment made carries the hash that the pod is labelled with
/// (`pod-template-hash`). A static pod is owned by its node, which is no workload.
fn workload(metadata: &Metadata) -> (String, String) {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) =
        owners.iter().find(|owner| owner.controller.unwrap_or(false)).filter(|owner| owner.kind != "Node")
    else {
        return ("Pod".into(), clean(&metadata.name));
    };
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    if owner.kind == "ReplicaSet"
        && let Some(deployment) = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'))
    {
        return ("Deployment".into(), clean(deployment));
    }
    (clean(&owner.kind), clean(&owner.name))
}

/// Bounded, and without characters that could break a line of text.
fn clean(text: &str) -> String {
    text.chars().take(MAX_NAME).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[derive(Deserialize)]
struct List {
    items: Option<Vec<Pod>>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    controller: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    runtime_class_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
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
    state: Option<State>,
    last_state: Option<State>,
}

#[derive(Deserialize)]
struct State {
    terminated: Option<Terminated>,
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
       "spec":{"runtimeClassName":"kata"},
       "status":{"phase":"Running","containerStatuses":[
          {"name":"app","image":"i:1","containerID":"containerd://abc",
            "lastState":{"terminated":{"containerID":"containerd://old"}}},{"name":"late","image":"i"}]}},
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
        assert_eq!(web.containers["abc"], ("app".to_owned(), "i:1".to_owned()));
        assert_eq!(web.containers["old"], web.containers["abc"], "before it was started again");
        assert_eq!(web.containers.len(), 2);
        assert_eq!(pods["82886aa4"], pods["mirror"]);
        assert_eq!((pods["mirror"].workload_kind.as_str(), pods["mirror"].workload.as_str()), ("Pod", "etcd-n"));
        assert_eq!((pods["u3"].workload_kind.as_str(), pods["u3"].workload.as_str()), ("Job", "job"));
        assert_eq!(pods["u3"].namespace, "a\u{fffd}b");
    }

    #[test]
    fn a_broken_file_says_where_and_keeps_the_old_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pods.json");
        let mut file = PodsFile::new(Some(path.clone()));
        let error = file.refresh().unwrap_err().to_string();
        assert!(error.contains("pods.json") && error.contains("--pods.file"), "{error}");
        let error = PodsFile::new(Some("/dev/zero".into())).refresh().unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        fs::write(&path, DOCUMENT).unwrap();
        assert!(file.refresh().unwrap());
        assert!(!file.refresh().unwrap(), "not read again");
        fs::write(&path, "{\"items\": [\n 17]}").unwrap();
        let error = file.refresh().unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(file.pods().len(), 4);
    }

    #[test]
    fn hostile_documents_are_errors_or_empty() {
        for text in ["", "[]x", "{\"items\":{}}", "{\"items\":[{\"metadata\":{\"uid\":5}}]}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"{}").unwrap().is_empty());
        let long = format!("{{\"items\":[{{\"metadata\":{{\"uid\":\"u\",\"name\":\"{}\"}}}}]}}", "x".repeat(10_000));
        assert_eq!(parse(long.as_bytes()).unwrap()["u"].name.len(), MAX_NAME);
    }
}
