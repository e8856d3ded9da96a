//! Snapshots for tests.

use std::{collections::HashSet, sync::Arc};

use crate::{
    identity::Snapshot,
    sandbox::{Container, ContainerKind, QosClass, Runtime, Sandbox, SandboxKey},
};

/// A living application container.
pub(crate) fn container(name: &str, cgroup: &str) -> Container {
    Container {
        id: name.into(),
        name: name.into(),
        image: String::new(),
        kind: ContainerKind::Application,
        cgroup: cgroup.into(),
        cgroup_id: 0,
        nested_cgroup_ids: vec![],
        pid: None,
        started: None,
        namespaces: vec![],
        alive: true,
    }
}

/// Pods of namespace `n` by name.
pub(crate) fn snapshot(pods: Vec<(&str, Vec<Container>)>) -> Snapshot {
    let sandbox = |(name, containers): (&str, Vec<Container>)| {
        Arc::new(Sandbox {
            key: SandboxKey(name.into()),
            uid: String::new(),
            namespace: "n".into(),
            name: name.into(),
            sandbox_id: String::new(),
            qos: Some(QosClass::Burstable),
            runtime: Runtime::Unknown,
            cgroup: None,
            cgroup_id: 0,
            other_cgroup_ids: Vec::new(),
            netns: None,
            host_network: false,
            addresses: vec![],
            workload_kind: String::new(),
            workload: String::new(),
            phase: String::new(),
            runtime_class: String::new(),
            containers,
            attach_points: vec![],
            alive: true,
        })
    };
    Snapshot::new(pods.into_iter().map(sandbox).collect(), HashSet::new(), String::new())
}
