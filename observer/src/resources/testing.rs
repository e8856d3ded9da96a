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
        attempt: None,
        requests: Default::default(),
        limits: Default::default(),
        kind: ContainerKind::Application,
        cgroup: cgroup.into(),
        cgroup_id: 0,
        nested_cgroup_ids: vec![],
        gone_cgroup_ids: vec![],
        pid: None,
        started: None,
        namespaces: vec![],
        alive: true,
    }
}

/// A living pod of namespace `n`, without a cgroup of its own.
pub(crate) fn sandbox(name: &str, containers: Vec<Container>) -> Sandbox {
    Sandbox {
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
        told_addresses: vec![],
        workload_kind: String::new(),
        workload: String::new(),
        phase: String::new(),
        runtime_class: String::new(),
        runtime_handler: String::new(),
        hook: Default::default(),
        told: Default::default(),
        labels: Default::default(),
        annotations: Default::default(),
        containers,
        attach_points: vec![],
        alive: true,
        since: 0,
        until: u64::MAX,
    }
}

/// A snapshot of these.
pub(crate) fn snapshot_of(sandboxes: Vec<Sandbox>) -> Snapshot {
    Snapshot::new(sandboxes.into_iter().map(Arc::new).collect(), HashSet::new(), String::new())
}

/// Pods of namespace `n` by name.
pub(crate) fn snapshot(pods: Vec<(&str, Vec<Container>)>) -> Snapshot {
    snapshot_of(pods.into_iter().map(|(name, containers)| sandbox(name, containers)).collect())
}
