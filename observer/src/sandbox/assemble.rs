//! From what was found to sandboxes with names. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{
    classify::attach_root,
    model::{AttachPoint, Container, ContainerKind, Runtime, Sandbox, SandboxKey},
    process::{ProcessCache, ProcessFacts},
    scan::{Found, FoundContainer},
};
use crate::identity::{PodIdentity, PodIndex};

/// Characters of an id that stand for a name that nobody tells.
const SHORT_ID: usize = 12;
/// A process that is younger may still become another program, in other namespaces.
const SETTLED: Duration = Duration::from_secs(1);

/// Everything that is known besides the tree itself.
pub struct Knowledge<'a> {
    /// Facts of the container's process.
    pub process: &'a dyn Fn(i32) -> Option<ProcessFacts>,
    /// Addresses of the network namespace with this inode.
    pub addresses: &'a dyn Fn(u64) -> BTreeSet<IpAddr>,
    /// Names of pods.
    pub pods: &'a PodIndex,
    /// The node's own network namespace.
    pub node_netns: Option<u64>,
    /// The key and the name that the sandbox of a container without a pod had before.
    pub before: &'a dyn Fn(&FoundContainer) -> Option<(SandboxKey, String)>,
    /// The attach point for a path, on a host that has a v2 tree.
    pub attach_point: &'a dyn Fn(&str, u64) -> Option<AttachPoint>,
}

/// Makes the sandboxes: one for each pod's cgroup that has containers, and one for each network namespace that
/// containers without a pod share.
#[must_use]
pub fn assemble(found: &Found, known: &Knowledge<'_>) -> Vec<Sandbox> {
    let mut inside: HashMap<&str, Vec<&FoundContainer>> = HashMap::new();
    for container in &found.containers {
        if let Some(pod) = &container.pod {
            inside.entry(pod).or_default().push(container);
        }
    }
    let inodes: HashMap<&str, u64> = (found.pods.iter().map(|pod| (pod.path.as_str(), pod.inode)))
        .chain(found.containers.iter().map(|container| (container.path.as_str(), container.inode)))
        .collect();
    let attach_point = |path: &str| {
        let root = attach_root(path)?;
        (known.attach_point)(root, *inodes.get(root)?)
    };
    let mut keys = HashSet::new();
    let mut sandboxes = Vec::new();
    for pod in &found.pods {
        let Some(inside) = inside.get(pod.path.as_str()) else { continue };
        let identity = known.pods.get(&pod.uid);
        let mut sandbox = group(SandboxKey(pod.uid.clone()), inside, identity, known);
        if !keys.insert(&pod.uid) {
            // One pod in two places: two kubelets that made a static pod from one file.
            sandbox.key = SandboxKey(format!("{}@{}", pod.uid, pod.path));
        }
        sandbox.uid.clone_from(&pod.uid);
        sandbox.qos = Some(pod.qos);
        sandbox.cgroup = Some(pod.path.clone());
        if (known.attach_point)(&pod.path, pod.inode).is_some() {
            sandbox.cgroup_id = pod.inode;
            sandbox.other_cgroup_ids.clone_from(&pod.others);
        }
        sandbox.attach_points = attach_point(&pod.path).into_iter().collect();
        if sandbox.name.is_empty() {
            sandbox.name.clone_from(&pod.uid);
        }
        sandboxes.push(sandbox);
    }
    for (key, name, inside) in alone(found, known) {
        // A pod all the same, when its list of containers has one of these: a runtime that ignores the pod's cgroup.
        let listed = |identity: &&PodIdentity| inside.iter().any(|found| identity.containers.contains_key(&found.id));
        let mut sandbox = group(key, &inside, known.pods.values().find(listed), known);
        if sandbox.name.is_empty() {
            sandbox.name = name;
        }
        sandbox.attach_points = inside.iter().filter_map(|container| attach_point(&container.path)).collect();
        sandboxes.push(sandbox);
    }
    sandboxes
}

/// True while a sandbox is being made: a container has no process or one that is on its way from the runtime to the
/// container, or nobody knows its addresses.
#[must_use]
pub fn is_unfinished(sandbox: &Sandbox, processes: &ProcessCache) -> bool {
    let young = |facts: &ProcessFacts| facts.age().is_some_and(|age| age < SETTLED);
    let being_made =
        |container: &Container| container.alive && container.pid.is_none_or(|pid| processes.get(pid).is_none_or(young));
    sandbox.netns.is_none()
        || (!sandbox.host_network && sandbox.addresses.is_empty())
        || sandbox.containers.iter().any(being_made)
}

/// Containers without a pod's cgroup, by network namespace, with a key and a name for each group. One on the node's
/// network stands alone: it shares nothing that makes a pod. One that has had no process yet waits: nobody can tell
/// whose it will be.
fn alone<'a>(found: &'a Found, known: &Knowledge<'_>) -> Vec<(SandboxKey, String, Vec<&'a FoundContainer>)> {
    let mut groups: BTreeMap<String, Vec<(Option<SystemTime>, &FoundContainer)>> = BTreeMap::new();
    for container in found.containers.iter().filter(|container| container.pod.is_none()) {
        let facts = container.pid.and_then(known.process);
        if facts.is_none() && (known.before)(container).is_none() {
            continue;
        }
        let netns = facts.as_ref().and_then(|facts| facts.namespace("net"));
        let group = match netns {
            Some(netns) if Some(netns) != known.node_netns => format!("netns:{netns}"),
            _ => format!("cgroup:{}", container.path),
        };
        groups.entry(group).or_default().push((facts.and_then(|facts| facts.started), container));
    }
    let mut taken = HashSet::new();
    groups
        .into_values()
        .map(|mut inside| {
            // The one that made the namespace came first.
            inside.sort_by_key(|(started, container)| (started.is_none(), *started, &container.path));
            let inside: Vec<&FoundContainer> = inside.into_iter().map(|(_, container)| container).collect();
            let before = inside.iter().filter_map(|container| (known.before)(container));
            let (key, name) = before.into_iter().find(|(key, _)| !taken.contains(key)).unwrap_or_else(|| {
                // Not the namespace's inode, which the kernel gives to the next one soon.
                let leader = inside.first().map_or("", |container| container.path.as_str());
                (SandboxKey(format!("cgroup:{leader}")), name_of_group(&inside))
            });
            taken.insert(key.clone());
            (key, name, inside)
        })
        .collect()
}

/// The parent cgroup's name where all have the same one that says something (`docker run --cgroup-parent /pod-foo`),
/// else the first container's short id.
fn name_of_group(inside: &[&FoundContainer]) -> String {
    let parents: BTreeSet<&str> =
        inside.iter().filter_map(|container| container.path.rsplit_once('/').map(|(parent, _)| parent)).collect();
    let told = parents.first().filter(|_| parents.len() == 1).map(|parent| parent.rsplit('/').next().unwrap_or(""));
    match told {
        Some(name) if !matches!(name, "" | "docker" | "system.slice" | "machine.slice" | "libpod_parent") => {
            name.trim_end_matches(".slice").to_owned()
        }
        _ => inside.first().map(|container| short(&container.id)).unwrap_or_default(),
    }
}

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

fn group(
    key: SandboxKey,
    inside: &[&FoundContainer],
    identity: Option<&PodIdentity>,
    known: &Knowledge<'_>,
) -> Sandbox {
    let facts: Vec<Option<ProcessFacts>> = inside.iter().map(|found| found.pid.and_then(known.process)).collect();
    let pause = pause(inside, &facts, identity);
    let containers: Vec<Container> = inside
        .iter()
        .zip(&facts)
        .enumerate()
        .map(|(at, (found, facts))| {
            let kind = if pause == Some(at) { ContainerKind::Pause } else { ContainerKind::Application };
            container(found, facts.as_ref(), kind, identity, known)
        })
        .collect();
    let netns = facts.iter().flatten().find_map(|facts| facts.namespace("net"));
    let host_network = netns.is_some() && netns == known.node_netns;
    let addresses = match netns {
        Some(netns) if !host_network => (known.addresses)(netns).into_iter().collect(),
        _ => Vec::new(),
    };
    let identity = identity.cloned().unwrap_or_default();
    Sandbox {
        key,
        uid: String::new(),
        namespace: identity.namespace,
        name: identity.name,
        sandbox_id: pause.map(|at| inside[at].id.clone()).unwrap_or_default(),
        qos: None,
        runtime: inside.iter().map(|found| found.runtime).find(|found| *found != Runtime::Unknown).unwrap_or_default(),
        cgroup: None,
        cgroup_id: 0,
        other_cgroup_ids: Vec::new(),
        netns,
        host_network,
        addresses,
        workload_kind: identity.workload_kind,
        workload: identity.workload,
        phase: identity.phase,
        runtime_class: identity.runtime_class,
        containers,
        attach_points: Vec::new(),
        alive: true,
    }
}

/// The container that only holds the namespaces. Its process says so by its name; else it is the one that the pod's
/// own list of containers does not have, if it came first.
fn pause(inside: &[&FoundContainer], facts: &[Option<ProcessFacts>], identity: Option<&PodIdentity>) -> Option<usize> {
    if let Some(at) = facts.iter().position(|facts| facts.as_ref().is_some_and(|facts| facts.name == "pause")) {
        return Some(at);
    }
    let listed = &identity?.containers;
    let mut unlisted = (0..inside.len()).filter(|at| !listed.contains_key(&inside[*at].id));
    let candidate = unlisted.next().filter(|_| unlisted.next().is_none())?;
    let started = |at: usize| facts[at].as_ref().and_then(|facts| facts.started);
    let first = started(candidate)?;
    let came_first = (0..inside.len()).filter_map(started).all(|other| other >= first);
    (inside.len() > 1 && came_first).then_some(candidate)
}

fn container(
    found: &FoundContainer,
    facts: Option<&ProcessFacts>,
    kind: ContainerKind,
    identity: Option<&PodIdentity>,
    known: &Knowledge<'_>,
) -> Container {
    let told = identity.and_then(|identity| identity.containers.get(&found.id));
    let has_v2 = (known.attach_point)(&found.path, found.inode).is_some();
    Container {
        id: found.id.clone(),
        name: told.map_or_else(|| short(&found.id), |(name, _)| name.clone()),
        image: told.map(|(_, image)| image.clone()).unwrap_or_default(),
        kind,
        cgroup: found.path.clone(),
        cgroup_id: if has_v2 { found.inode } else { 0 },
        nested_cgroup_ids: if has_v2 { found.nested.clone() } else { Vec::new() },
        pid: found.pid,
        started: facts.and_then(|facts| facts.started),
        namespaces: facts.map(|facts| facts.namespaces.clone()).unwrap_or_default(),
        alive: true,
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
