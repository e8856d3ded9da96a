//! From what was found to sandboxes with names. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{
    classify::attach_root,
    hook::{Handlers, Hook, HookFacts},
    model::{AttachPoint, Container, ContainerKind, Runtime, Sandbox, SandboxKey},
    process::{ProcessCache, ProcessFacts},
    scan::{Found, FoundContainer},
};
use crate::{
    clock,
    identity::{PodIdentity, PodIndex, SandboxIdentity},
};

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
    /// Runtimes whose sandboxes are counted at their interfaces.
    pub handlers: &'a Handlers,
    /// Whether the host has a v2 tree.
    pub has_v2: bool,
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
        if sandbox.hook == Hook::Interface {
            sandbox.cgroup_id = pod.inode;
        }
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
        let listed = |identity: &&PodIdentity| inside.iter().any(|found| identity.has(&found.id));
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
    let now = clock::monotonic();
    let young = |facts: &ProcessFacts| facts.age(now).is_some_and(|age| age < SETTLED);
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
            let name = name.trim_end_matches(".slice");
            // Podman names a pod's cgroup by the pod's id, which it shows shortened too.
            let id = name.strip_prefix("machine-libpod_pod_").unwrap_or(name);
            if is_id(id) { short(id) } else { name.to_owned() }
        }
        _ => inside.first().map(|container| short(&container.id)).unwrap_or_default(),
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
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
            // A pod whose sandbox was made again may have the old pause for a moment.
            let is_pause = pause == Some(at) || identity.is_some_and(|identity| identity.sandbox(&found.id).is_some());
            let kind = if is_pause { ContainerKind::Pause } else { ContainerKind::Application };
            container(found, facts.as_ref(), kind, identity, known)
        })
        .collect();
    let identity = identity.cloned().unwrap_or_default();
    let pause = pause.map(|at| inside[at].id.as_str()).unwrap_or_default();
    let told = identity.sandbox(pause).or_else(|| named(inside, &identity)).cloned().unwrap_or_default();
    let sandbox_id = if told.id.is_empty() { pause.to_owned() } else { told.id.clone() };
    let netns = facts.iter().flatten().find_map(|facts| facts.namespace("net"));
    // A runtime's own process may be on the node's network while its sandbox is not: a virtual machine's.
    let has_own = !told.netns.is_empty() || !told.host_interface.is_empty();
    let on_node = netns.is_some() && netns == known.node_netns;
    let host_network = told.host_network || (on_node && !has_own);
    let programs: Vec<&str> = facts.iter().flatten().map(|facts| facts.name.as_str()).collect();
    let hook = known.handlers.choose(&HookFacts {
        has_v2: known.has_v2,
        host_network,
        runtime_class: &identity.runtime_class,
        runtime_handler: &identity.runtime_handler,
        programs: &programs,
    });
    let is_reached = netns.is_some() && !host_network;
    let told_addresses = if is_reached { identity.addresses } else { Vec::new() };
    // The namespace may be one that cannot be looked into, or that has no interface (a VM has its own).
    let own = netns.filter(|_| is_reached).map(known.addresses).unwrap_or_default();
    let further = own.into_iter().filter(|address| !told_addresses.contains(address));
    let addresses = told_addresses.iter().copied().chain(further).collect();
    Sandbox {
        key,
        uid: String::new(),
        namespace: identity.namespace,
        name: identity.name,
        sandbox_id,
        qos: identity.qos,
        runtime: inside
            .iter()
            .map(|found| found.runtime)
            .find(|found| *found != Runtime::Unknown)
            .unwrap_or(told.runtime),
        cgroup: None,
        cgroup_id: 0,
        other_cgroup_ids: Vec::new(),
        netns: netns.filter(|_| !on_node || host_network),
        host_network,
        addresses,
        told_addresses,
        workload_kind: identity.workload_kind,
        workload: identity.workload,
        phase: identity.phase,
        runtime_class: identity.runtime_class,
        runtime_handler: identity.runtime_handler,
        hook,
        told,
        labels: identity.labels,
        annotations: identity.annotations,
        containers,
        attach_points: Vec::new(),
        alive: true,
        since: facts.iter().flatten().filter_map(|facts| facts.began).min().unwrap_or_else(clock::monotonic),
        until: u64::MAX,
    }
}

/// The container that only holds the namespaces. The runtime tells which one it is; else its process says so by its
/// name; else it is the one that the pod's own list of containers does not have, if it came first.
fn pause(inside: &[&FoundContainer], facts: &[Option<ProcessFacts>], identity: Option<&PodIdentity>) -> Option<usize> {
    let sandboxes = identity.map(|identity| &identity.sandboxes[..]).unwrap_or_default();
    // The youngest comes first.
    if let Some(at) = sandboxes.iter().find_map(|sandbox| inside.iter().position(|found| found.id == sandbox.id)) {
        return Some(at);
    }
    let is_listed = |id: &str| {
        let told = identity.and_then(|identity| identity.containers.get(id));
        told.is_some_and(|told| !told.sandbox.is_empty())
    };
    // A program of that name in a container that the runtime lists is the application.
    let holds = |(found, facts): (&&FoundContainer, &Option<ProcessFacts>)| {
        facts.as_ref().is_some_and(|facts| facts.name == "pause") && !is_listed(&found.id)
    };
    if let Some(at) = inside.iter().zip(facts).position(holds) {
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

/// The sandbox that the runtime says these containers run in; of several the youngest. CRI-O makes no pause container for
/// most pods (`drop_infra_ctr`).
fn named<'a>(inside: &[&FoundContainer], identity: &'a PodIdentity) -> Option<&'a SandboxIdentity> {
    let runs_in = |sandbox: &SandboxIdentity, found: &FoundContainer| {
        identity.containers.get(&found.id).is_some_and(|told| !told.sandbox.is_empty() && told.sandbox == sandbox.id)
    };
    identity.sandboxes.iter().find(|sandbox| inside.iter().any(|found| runs_in(sandbox, found)))
}

fn container(
    found: &FoundContainer,
    facts: Option<&ProcessFacts>,
    kind: ContainerKind,
    identity: Option<&PodIdentity>,
    known: &Knowledge<'_>,
) -> Container {
    let told = identity.and_then(|identity| identity.containers.get(&found.id));
    let pause = identity.and_then(|identity| identity.sandbox(&found.id));
    let has_v2 = (known.attach_point)(&found.path, found.inode).is_some();
    Container {
        id: found.id.clone(),
        name: told.map_or_else(|| short(&found.id), |told| told.name.clone()),
        image: told.map(|told| &told.image).or(pause.map(|pause| &pause.image)).cloned().unwrap_or_default(),
        attempt: told.and_then(|told| told.attempt),
        requests: told.map(|told| told.requests).unwrap_or_default(),
        limits: told.map(|told| told.limits).unwrap_or_default(),
        kind,
        cgroup: found.path.clone(),
        cgroup_id: if has_v2 { found.inode } else { 0 },
        gone_cgroup_ids: Vec::new(),
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
