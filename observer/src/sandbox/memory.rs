//! What is kept of containers and sandboxes that are not there any more: nothing that had counters loses its name.
//! Pure.

use std::collections::HashSet;

use super::{
    classify::{Kind, classify},
    model::{Container, ContainerKind, QosClass, Runtime, Sandbox, SandboxKey},
    scan::Sighting,
};
use crate::identity::PodIndex;

/// Dead containers that a sandbox keeps, the youngest: one that crashes all day must not grow without end.
const MAX_DEAD: usize = 256;

/// Cgroups below a container's that are gone and are still known as its own, the youngest. What they have counted goes to
/// the container's own cgroup after the next scrape, so only as many must be known as go between two scrapes.
const MAX_GONE: usize = 4096;

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
        let pause = identity.sandbox(&id).is_some();
        Some(Self {
            cgroup_id: sighting.inode,
            sandbox: SandboxKey(uid.clone().unwrap_or_else(|| format!("cgroup:{}", sighting.path))),
            pod: [identity.name, uid.unwrap_or_default(), short.clone()]
                .into_iter()
                .find(|name| !name.is_empty())
                .unwrap_or_default(),
            namespace: identity.namespace,
            name: identity.containers.get(&id).map_or(short, |told| told.name.clone()),
            id,
            pause,
        })
    }

    /// The container, gone.
    pub fn container(&self) -> Container {
        Container {
            id: self.id.clone(),
            name: self.name.clone(),
            image: String::new(),
            attempt: None,
            requests: crate::identity::Requests::default(),
            limits: crate::identity::Limits::default(),
            kind: if self.pause { ContainerKind::Pause } else { ContainerKind::Application },
            cgroup: String::new(),
            cgroup_id: self.cgroup_id,
            nested_cgroup_ids: Vec::new(),
            gone_cgroup_ids: Vec::new(),
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
            told_addresses: Vec::new(),
            workload_kind: String::new(),
            workload: String::new(),
            phase: String::new(),
            runtime_class: String::new(),
            runtime_handler: String::new(),
            hook: Default::default(),
            told: Default::default(),
            labels: Default::default(),
            annotations: Default::default(),
            containers: Vec::new(),
            attach_points: Vec::new(),
            alive: false,
            since: 0,
            until: 0,
        }
    }
}

/// Writes down a cgroup below a container's that is gone, and forgets the one that went first when there are too many.
pub fn nested_went(container: &mut Container, cgroup_id: u64) {
    container.nested_cgroup_ids.push(cgroup_id);
    container.gone_cgroup_ids.push(cgroup_id);
    if container.gone_cgroup_ids.len() > MAX_GONE {
        let first = container.gone_cgroup_ids.remove(0);
        container.nested_cgroup_ids.retain(|id| *id != first);
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
    // The first process may have ended since.
    sandbox.since = sandbox.since.min(old.since);
    for container in &mut sandbox.containers {
        let Some(before) = old.containers.iter().find(|before| same(before, container)) else { continue };
        if container.pid.is_none() && (before.pid.is_some() || !before.alive) {
            // Its processes have ended; what they said of it still holds.
            container.alive = false;
            container.kind = before.kind;
            container.started = before.started;
            container.namespaces.clone_from(&before.namespaces);
        }
        let here: HashSet<u64> = container.nested_cgroup_ids.iter().copied().collect();
        // In the order in which they went.
        let gone = before.gone_cgroup_ids.iter();
        let gone = gone.chain(before.nested_cgroup_ids.iter().filter(|id| !before.gone_cgroup_ids.contains(id)));
        let gone: Vec<u64> = gone.copied().filter(|id| !here.contains(id)).collect();
        gone.into_iter().for_each(|id| nested_went(container, id));
    }
    let mut dead: Vec<Container> = old
        .containers
        .iter()
        .filter(|before| !sandbox.containers.iter().any(|container| same(before, container)))
        .map(|before| Container { alive: false, ..before.clone() })
        .collect();
    // The oldest stand first: numbers of cgroups grow (`kernfs_new_node` of fs/kernfs/dir.c).
    dead.sort_by_key(|container| container.cgroup_id);
    sandbox.containers.extend(dead.into_iter().rev().take(MAX_DEAD).rev());
    // What only living processes can tell.
    sandbox.netns = sandbox.netns.or(old.netns);
    sandbox.host_network |= old.host_network && sandbox.netns == old.netns;
    // A runtime may tell late that the namespace is the node's, after its addresses were read.
    if sandbox.addresses.is_empty() && !sandbox.host_network {
        sandbox.addresses.clone_from(&old.addresses);
    }
    // Who told them may have lost the pod before it has ended.
    if sandbox.told_addresses.is_empty() && !sandbox.host_network && sandbox.netns == old.netns {
        sandbox.told_addresses.clone_from(&old.told_addresses);
    }
    if sandbox.sandbox_id.is_empty() {
        sandbox.sandbox_id.clone_from(&old.sandbox_id);
        for container in sandbox.containers.iter_mut().filter(|container| container.id == old.sandbox_id) {
            container.kind = ContainerKind::Pause;
        }
    }
    // A name that was told is better than none, when the list has already lost the pod.
    if sandbox.namespace.is_empty() && !old.namespace.is_empty() {
        sandbox.namespace.clone_from(&old.namespace);
        sandbox.name.clone_from(&old.name);
        sandbox.workload.clone_from(&old.workload);
        sandbox.workload_kind.clone_from(&old.workload_kind);
        sandbox.runtime_handler.clone_from(&old.runtime_handler);
        sandbox.told.clone_from(&old.told);
        sandbox.labels.clone_from(&old.labels);
        sandbox.annotations.clone_from(&old.annotations);
        for container in &mut sandbox.containers {
            if let Some(before) = old.containers.iter().find(|before| before.id == container.id) {
                container.name.clone_from(&before.name);
                container.image.clone_from(&before.image);
                container.attempt = before.attempt;
                container.requests = before.requests;
                container.limits = before.limits;
            }
        }
    }
}

/// Names dead containers that ended before anybody told their name: sources of names are slower than cgroups.
pub fn name_late(sandbox: &mut Sandbox, pods: &PodIndex) {
    let Some(identity) = pods.get(&sandbox.uid) else { return };
    for container in sandbox.containers.iter_mut().filter(|container| !container.alive) {
        if let Some(told) = identity.containers.get(&container.id)
            && container.id.starts_with(&container.name)
        {
            container.name.clone_from(&told.name);
            container.image.clone_from(&told.image);
            container.attempt = told.attempt;
            container.requests = told.requests;
            container.limits = told.limits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing::sandbox;

    #[test]
    fn cgroups_below_a_container_are_known_when_they_are_gone_and_not_without_end() {
        let with = |nested: Vec<u64>| {
            let app = Remembered {
                cgroup_id: 5,
                sandbox: SandboxKey("p".into()),
                namespace: String::new(),
                pod: "p".into(),
                id: "a".into(),
                name: "a".into(),
                pause: false,
            };
            let container = Container { nested_cgroup_ids: nested, alive: true, pid: Some(1), ..app.container() };
            Sandbox { containers: vec![container], ..sandbox("p", vec![]) }
        };
        let mut old = with(vec![10]);
        for next in [vec![11, 12], vec![12], vec![12, 13]] {
            let mut now = with(next);
            carry_over(&mut now, Some(&old));
            old = now;
        }
        assert_eq!(old.containers[0].gone_cgroup_ids, [10, 11]);
        assert_eq!(old.containers[0].nested_cgroup_ids, [12, 13, 10, 11]);
        let many = 100..100 + MAX_GONE as u64;
        many.clone().for_each(|id| nested_went(&mut old.containers[0], id));
        assert_eq!(old.containers[0].gone_cgroup_ids, many.collect::<Vec<_>>());
        assert_eq!(old.containers[0].nested_cgroup_ids.len(), 2 + MAX_GONE);
        assert!(!has(&old, 11) && has(&old, 12));
    }

    #[test]
    fn addresses_of_the_node_are_not_carried_over_once_it_is_known_to_be_the_node_s() {
        let old = Sandbox { netns: Some(1), addresses: vec![[10, 0, 0, 1].into()], ..sandbox("p", vec![]) };
        let mut own = Sandbox { netns: Some(1), ..sandbox("p", vec![]) };
        carry_over(&mut own, Some(&old));
        assert_eq!(own.addresses, old.addresses);
        let mut node = Sandbox { netns: Some(1), host_network: true, ..sandbox("p", vec![]) };
        carry_over(&mut node, Some(&old));
        assert!(node.addresses.is_empty());
    }

    #[test]
    fn addresses_that_were_told_hold_while_the_namespace_does() {
        let told = vec![[10, 0, 0, 1].into()];
        let old = Sandbox { netns: Some(1), told_addresses: told.clone(), ..sandbox("p", vec![]) };
        let carried = |now: Sandbox| {
            let mut now = now;
            carry_over(&mut now, Some(&old));
            now.told_addresses
        };
        assert_eq!(carried(Sandbox { netns: Some(1), ..sandbox("p", vec![]) }), told);
        assert_eq!(carried(Sandbox { netns: None, ..sandbox("p", vec![]) }), told, "its processes have ended");
        assert!(carried(Sandbox { netns: Some(2), ..sandbox("p", vec![]) }).is_empty());
        assert!(carried(Sandbox { netns: Some(1), host_network: true, ..sandbox("p", vec![]) }).is_empty());
        let again = vec![[10, 0, 0, 2].into()];
        assert_eq!(carried(Sandbox { told_addresses: again.clone(), ..sandbox("p", vec![]) }), again);
    }
}
