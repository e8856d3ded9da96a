//! What a source of names tells of pods. Every source fills the same index. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{Limits, Requests};
use crate::sandbox::{QosClass, Runtime};

/// Characters of a name that are kept: a DNS subdomain (RFC 1123) has no more.
const MAX_NAME: usize = 253;
/// Characters of a label's or annotation's key that are kept: a DNS subdomain, a slash and a name have no more.
const MAX_KEY: usize = MAX_NAME + 1 + 63;
/// Characters of an annotation's value that are kept; the API allows 256 KiB.
const MAX_ANNOTATION: usize = 1024;
/// Labels and annotations of a pod that are kept, the first by key.
const MAX_PAIRS: usize = 64;

/// Labels or annotations, bounded; shared between a pod's versions.
pub type Pairs = Arc<BTreeMap<String, String>>;

/// Pods by UID; static pods by the hash that their cgroup has too.
pub type PodIndex = HashMap<String, PodIdentity>;

/// What is told of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The phase, or empty.
    pub phase: String,
    /// The runtime class, or empty.
    pub runtime_class: String,
    /// The runtime's handler that runs the pod, or empty for the default one.
    pub runtime_handler: String,
    /// The class of service; the cgroup's path is asked first.
    pub qos: Option<QosClass>,
    /// The top owner's kind, or empty.
    pub workload_kind: String,
    /// The top owner's name, or empty.
    pub workload: String,
    /// The labels.
    pub labels: Pairs,
    /// The annotations.
    pub annotations: Pairs,
    /// Addresses that the source tells; the sandbox's own interfaces are asked first.
    pub addresses: Vec<IpAddr>,
    /// The sandboxes that the runtime made for it, the youngest first; more than one after its pause container was
    /// made again.
    pub sandboxes: Vec<SandboxIdentity>,
    /// Containers by id (without the `containerd://`).
    pub containers: HashMap<String, ContainerIdentity>,
}

/// What is told of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerIdentity {
    /// The name in the pod.
    pub name: String,
    /// The image as the user wrote it, or empty.
    pub image: String,
    /// How often a container of this name was started in the pod before; `None` where nobody tells.
    pub attempt: Option<u32>,
    /// The id of the sandbox that it runs in, or empty: the runtime alone tells it.
    pub sandbox: String,
    /// What it asked for, as far as it is told.
    pub requests: Requests,
    /// What it may use, as far as it is told. What the kernel holds it to is in its cgroup.
    pub limits: Limits,
}

/// What a runtime tells of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxIdentity {
    /// Its id, which is the pause container's too.
    pub id: String,
    /// The pause container's image, or empty.
    pub image: String,
    /// True when it is on the node's network; false also where nobody tells.
    pub host_network: bool,
    /// The pause container's process, in the runtime's pid namespace.
    pub pid: Option<i32>,
    /// The path of its network namespace, or empty.
    pub netns: String,
    /// The node's end of its network interface, or empty.
    pub host_interface: String,
    /// The runtime that made it.
    pub runtime: Runtime,
}

impl PodIdentity {
    /// The sandbox with this id.
    #[must_use]
    pub fn sandbox(&self, id: &str) -> Option<&SandboxIdentity> {
        self.sandboxes.iter().find(|sandbox| sandbox.id == id)
    }

    /// Whether this container, pause or not, is the pod's.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.containers.contains_key(id) || self.sandbox(id).is_some()
    }
}

/// A name, bounded, and without characters that could break a line of text.
pub(super) fn clean(text: &str) -> String {
    bounded(text, MAX_NAME)
}

/// Labels, bounded in number and length.
pub(super) fn labels<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Pairs {
    collect(pairs, MAX_NAME)
}

/// Annotations, bounded in number and length.
pub(super) fn annotations<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Pairs {
    collect(pairs, MAX_ANNOTATION)
}

fn collect<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>, longest: usize) -> Pairs {
    let sorted: BTreeMap<&String, &String> = pairs.into_iter().collect();
    let kept = sorted.into_iter().take(MAX_PAIRS);
    Arc::new(kept.map(|(key, value)| (bounded(key, MAX_KEY), bounded(value, longest))).collect())
}

fn bounded(text: &str, longest: usize) -> String {
    text.chars().take(longest).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_bounded() {
        let many: BTreeMap<String, String> =
            (0..100).map(|n| (format!("{n:03}{}", "k".repeat(500)), "v\n".repeat(2000))).collect();
        let kept = labels(&many);
        assert_eq!(kept.len(), MAX_PAIRS);
        let (key, value) = kept.first_key_value().unwrap();
        assert!(key.starts_with("000k"), "{key}");
        assert_eq!((key.chars().count(), value.chars().count()), (MAX_KEY, MAX_NAME));
        assert!(!value.contains('\n'));
        assert_eq!(annotations(&many).values().next().unwrap().chars().count(), MAX_ANNOTATION);
    }

    #[test]
    fn a_pod_has_its_containers_and_its_pause() {
        let pod = PodIdentity {
            sandboxes: vec![SandboxIdentity { id: "s".into(), ..Default::default() }],
            containers: HashMap::from([("c".to_owned(), ContainerIdentity::default())]),
            ..Default::default()
        };
        assert!(pod.has("s") && pod.has("c") && !pod.has("x"));
    }
}
