//! What is kept of containers and sandboxes that are not there any more: nothing that had counters loses its name.
//! Pure.

use super::{
    classify::{Kind, classify},
    model::{Container, ContainerKind, QosClass, Runtime, Sandbox, SandboxKey},
    scan::Sighting,
};
use crate::identity::PodIndex;

/// Dead containers that a sandbox keeps, the youngest: one that crashes all day must not grow without end.
const MAX_DEAD: usize = 256;

/// A container as an earlier agent knew it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The cgroup v2 id.
    pub cgroup_id: u64,
    /// The sandbox's key.
    pub sandbox: SandboxKey,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// The pause container.
    pub pause: bool,
}

impl Remembered {
    /// From a container that was seen when it was made and is not there any more.
    pub fn from_sighting(sighting: &Sighting, pods: &PodIndex) -> Option<Self> {
        let Kind::Container { id, pod, .. } = classify(&sighting.path) else { return None };
        let uid = pod.and_then(|pod| match classify(&pod) {
            Kind::Pod { uid, .. } => Some(uid),
            _ => None,
        });
        let identity = uid.as_ref().and_then(|uid| pods.get(uid)).cloned().unwrap_or_default();
        let short: String = id.chars().take(12).collect();
        Some(Self {
            cgroup_id: sighting.inode,
            sandbox: SandboxKey(uid.clone().unwrap_or_else(|| format!("cgroup:{}", sighting.path))),
            pod: [identity.name, uid.unwrap_or_default(), short.clone()]
                .into_iter()
                .find(|name| !name.is_empty())
                .unwrap_or_default(),
            namespace: identity.namespace,
            name: identity.containers.get(&id).map_or(short, |(name, _)| name.clone()),
            id,
            pause: false,
        })
    }

    /// The container, gone.
    pub fn container(&self) -> Container {
        Container {
            id: self.id.clone(),
            name: self.name.clone(),
            image: String::new(),
            kind: if self.pause { ContainerKind::Pause } else { ContainerKind::Application },
            cgroup: String::new(),
            cgroup_id: self.cgroup_id,
            nested_cgroup_ids: Vec::new(),
            pid: None,
            started: None,
            namespaces: Vec::new(),
            alive: false,
        }
    }

    /// Its sandbox, gone, without containers.
    pub fn sandbox(&self) -> Sandbox {
        let made_up = self.sandbox.0.starts_with("cgroup:");
        Sandbox {
            key: self.sandbox.clone(),
            uid: if made_up { String::new() } else { self.sandbox.0.clone() },
            namespace: self.namespace.clone(),
            name: self.pod.clone(),
            sandbox_id: String::new(),
            qos: None::<QosClass>,
            runtime: Runtime::Unknown,
            cgroup: None,
            cgroup_id: 0,
            other_cgroup_ids: Vec::new(),
            netns: None,
            host_network: false,
            addresses: Vec::new(),
            workload_kind: String::new(),
            workload: String::new(),
            phase: String::new(),
            runtime_class: String::new(),
            containers: Vec::new(),
            attach_points: Vec::new(),
            alive: false,
        }
    }
}

/// True when the sandbox has the container whose cgroup has this id.
pub fn has(sandbox: &Sandbox, cgroup_id: u64) -> bool {
    let known =
        |container: &Container| container.cgroup_id == cgroup_id || container.nested_cgroup_ids.contains(&cgroup_id);
    sandbox.cgroup_id == cgroup_id || sandbox.containers.iter().any(known)
}

/// True when both are one container, not one that was started again (Docker keeps the id).
fn same(one: &Container, other: &Container) -> bool {
    one.id == other.id && one.cgroup_id == other.cgroup_id
}

/// Containers that were there before and are not now, or have no process any more, stay as dead ones.
pub fn carry_over(sandbox: &mut Sandbox, old: Option<&Sandbox>) {
    let Some(old) = old else { return };
    for container in &mut sandbox.containers {
        let Some(before) = old.containers.iter().find(|before| same(before, container)) else { continue };
        if container.pid.is_none() && (before.pid.is_some() || !before.alive) {
            // Its processes have ended; what they said of it still holds.
            container.alive = false;
            container.kind = before.kind;
            container.started = before.started;
            container.namespaces.clone_from(&before.namespaces);
        }
        for id in &before.nested_cgroup_ids {
            if !container.nested_cgroup_ids.contains(id) {
                container.nested_cgroup_ids.push(*id);
            }
        }
    }
    let dead: Vec<Container> = old
        .containers
        .iter()
        .filter(|before| !sandbox.containers.iter().any(|container| same(before, container)))
        .map(|before| Container { alive: false, ..before.clone() })
        .collect();
    // The oldest stand first.
    sandbox.containers.extend(dead.into_iter().rev().take(MAX_DEAD).rev());
    // What only living processes can tell.
    sandbox.netns = sandbox.netns.or(old.netns);
    if sandbox.addresses.is_empty() {
        sandbox.addresses.clone_from(&old.addresses);
    }
    sandbox.host_network |= old.host_network && sandbox.netns == old.netns;
    if sandbox.sandbox_id.is_empty() {
        sandbox.sandbox_id.clone_from(&old.sandbox_id);
    }
    // A name that was told is better than none, when the list has already lost the pod.
    if sandbox.namespace.is_empty() && !old.namespace.is_empty() {
        sandbox.namespace.clone_from(&old.namespace);
        sandbox.name.clone_from(&old.name);
        sandbox.workload.clone_from(&old.workload);
        sandbox.workload_kind.clone_from(&old.workload_kind);
        for container in &mut sandbox.containers {
            if let Some(before) = old.containers.iter().find(|before| before.id == container.id) {
                container.name.clone_from(&before.name);
            }
        }
    }
}
