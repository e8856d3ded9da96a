//! What `observer pods` says, before it is drawn. Pure.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::Serialize;

use crate::{
    identity::Snapshot,
    sandbox::{Container, ContainerKind, Hierarchies, QosClass, Sandbox},
};

/// Everything that is printed. Field names are those of the JSON document.
#[derive(Debug, Serialize)]
pub struct Document {
    /// `v1`, `hybrid` or `v2`.
    pub cgroups: String,
    /// The tree that was looked at.
    pub tree: PathBuf,
    /// The pods, by namespace and name.
    pub pods: Vec<Pod>,
}

/// A sandbox.
#[derive(Debug, Serialize)]
pub struct Pod {
    /// What it is known by: a UID, or what stands for one.
    pub key: String,
    /// The namespace, or empty.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The pod's UID, or empty.
    pub uid: String,
    /// The class, or empty outside of Kubernetes.
    pub qos: &'static str,
    /// The runtime, or empty where names do not tell.
    pub runtime: &'static str,
    /// The id of the pause container, or empty.
    pub sandbox_id: String,
    /// The pod's own cgroup.
    pub cgroup: Option<String>,
    /// Its v2 id; 0 when there is none.
    pub cgroup_id: u64,
    /// Inode of the network namespace.
    pub netns: Option<u64>,
    /// True on the node's network.
    pub host_network: bool,
    /// Addresses of the network namespace.
    pub addresses: Vec<IpAddr>,
    /// Kernel programs, for each directory that carries them.
    pub hooks: Vec<Hooks>,
    /// The containers, in the order of their start.
    pub containers: Vec<ContainerLine>,
}

/// What is attached to one directory.
#[derive(Debug, Serialize)]
pub struct Hooks {
    /// The directory.
    pub path: PathBuf,
    /// `ingress`, `egress`, …
    pub attached: Vec<String>,
}

/// A container.
#[derive(Debug, Serialize)]
pub struct ContainerLine {
    /// The name, or the short id.
    pub name: String,
    /// The id.
    pub id: String,
    /// The image, or empty.
    pub image: String,
    /// Holds the pod's namespaces.
    pub pause: bool,
    /// The cgroup below every hierarchy.
    pub cgroup: String,
    /// Its v2 id; 0 when there is none.
    pub cgroup_id: u64,
    /// How many cgroups are below it.
    pub nested_cgroups: usize,
    /// A process.
    pub pid: Option<i32>,
    /// When its first process started, in seconds since 1970.
    pub started: Option<u64>,
    /// Namespaces that are the sandbox's.
    pub shared: Vec<String>,
    /// Namespaces that are its own.
    pub own: Vec<String>,
    /// Namespaces that are the node's.
    pub node: Vec<String>,
}

impl Document {
    /// From a snapshot. `node` are the node's own namespaces, `attached` tells which hooks a directory carries.
    pub fn new(
        snapshot: &Snapshot,
        tree: &Path,
        hierarchies: &Hierarchies,
        node: &[(String, u64)],
        attached: impl Fn(&Path) -> Vec<String>,
    ) -> Self {
        let mut pods: Vec<Pod> = snapshot
            .sandboxes()
            .iter()
            .filter(|sandbox| sandbox.alive)
            .map(|sandbox| pod(sandbox, node, &attached))
            .collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name, &a.key).cmp(&(&b.namespace, &b.name, &b.key)));
        Self { cgroups: hierarchies.mode().to_string(), tree: tree.to_owned(), pods }
    }
}

fn pod(sandbox: &Sandbox, node: &[(String, u64)], attached: &impl Fn(&Path) -> Vec<String>) -> Pod {
    let mut containers: Vec<&Container> = sandbox.containers.iter().filter(|container| container.alive).collect();
    containers.sort_by_key(|container| (container.kind != ContainerKind::Pause, container.started, &container.id));
    let holder = containers.first().map(|container| container.namespaces.as_slice()).unwrap_or_default();
    let hooks =
        sandbox.attach_points.iter().map(|point| Hooks { path: point.path.clone(), attached: attached(&point.path) });
    Pod {
        key: sandbox.key.to_string(),
        namespace: sandbox.namespace.clone(),
        name: sandbox.name.clone(),
        uid: sandbox.uid.clone(),
        qos: sandbox.qos.map_or("", QosClass::as_str),
        runtime: sandbox.runtime.as_str(),
        sandbox_id: sandbox.sandbox_id.clone(),
        cgroup: sandbox.cgroup.clone(),
        cgroup_id: sandbox.cgroup_id,
        netns: sandbox.netns,
        host_network: sandbox.host_network,
        addresses: sandbox.addresses.clone(),
        hooks: hooks.collect(),
        containers: containers.iter().map(|container| line(container, holder, node, containers.len() > 1)).collect(),
    }
}

/// `holder` are the namespaces of the pause container, or of the container that started first.
fn line(container: &Container, holder: &[(String, u64)], node: &[(String, u64)], company: bool) -> ContainerLine {
    let (mut shared, mut own, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for namespace in &container.namespaces {
        let place = if node.contains(namespace) {
            &mut nodes
        } else if company && holder.contains(namespace) {
            &mut shared
        } else {
            &mut own
        };
        place.push(namespace.0.clone());
    }
    ContainerLine {
        name: container.name.clone(),
        id: container.id.clone(),
        image: container.image.clone(),
        pause: container.kind == ContainerKind::Pause,
        cgroup: container.cgroup.clone(),
        cgroup_id: container.cgroup_id,
        nested_cgroups: container.nested_cgroup_ids.len(),
        pid: container.pid,
        started: container.started.and_then(|at| Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs())),
        shared,
        own,
        node: nodes,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::resources::testing;

    /// A container whose namespaces have these numbers.
    fn container(name: &str, started: u64, net: u64, mnt: u64) -> Container {
        Container {
            pid: Some(7),
            started: Some(UNIX_EPOCH + Duration::from_secs(started)),
            namespaces: vec![("net".into(), net), ("mnt".into(), mnt), ("user".into(), 1)],
            ..testing::container(name, &format!("/kubepods/p/{name}"))
        }
    }

    #[test]
    fn namespaces_are_the_sandboxs_its_own_or_the_nodes() {
        let pause = Container { kind: ContainerKind::Pause, ..container("pause", 9, 10, 11) };
        let snapshot = testing::snapshot(vec![
            ("web", vec![container("app", 3, 10, 12), pause]),
            ("lone", vec![container("one", 1, 20, 21)]),
        ]);
        let node = [("user".to_owned(), 1)];
        let document =
            Document::new(&snapshot, Path::new("/t"), &Hierarchies::default(), &node, |_| vec!["ingress".into()]);
        let [lone, web] = &document.pods[..] else { panic!("{document:?}") };
        assert_eq!((lone.name.as_str(), lone.containers[0].own.join(" ")), ("lone", "net mnt".to_owned()));
        let lines: Vec<_> = web
            .containers
            .iter()
            .map(|c| (c.name.as_str(), c.pause, c.shared.join(" "), c.own.join(" "), c.node.join(" ")))
            .collect();
        assert_eq!(lines[0], ("pause", true, "net mnt".into(), String::new(), "user".into()), "the holder comes first");
        assert_eq!(lines[1], ("app", false, "net".into(), "mnt".into(), "user".into()));
        assert!(serde_json::to_string(&document).unwrap().contains(r#""started":3"#));
    }
}
