//! Pods and containers of the node.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use observer_cri::v1;

use super::{CriNode, IMAGE};
use crate::cgroup::Cgroup;
use crate::ids;
use crate::netns::NetNs;

/// What a pod is to be.
#[derive(Clone, Debug, Default)]
pub struct CriPodSpec {
    namespace: String,
    name: String,
    uid: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    host_network: bool,
    pid: v1::NamespaceMode,
    handler: String,
}

impl CriPodSpec {
    /// A pod with a random UID.
    pub fn new(namespace: &str, name: &str) -> Self {
        let pid = v1::NamespaceMode::Container;
        Self { namespace: namespace.to_owned(), name: name.to_owned(), pid, ..Self::default() }
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// In the node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Run by this handler of the runtime, as a runtime class says it.
    #[must_use]
    pub fn handler(mut self, handler: &str) -> Self {
        handler.clone_into(&mut self.handler);
        self
    }

    /// Its containers see each other's processes (`shareProcessNamespace`).
    #[must_use]
    pub fn shared_processes(mut self) -> Self {
        self.pid = v1::NamespaceMode::Pod;
        self
    }

    /// Its containers see the node's processes (`hostPID`).
    #[must_use]
    pub fn host_processes(mut self) -> Self {
        self.pid = v1::NamespaceMode::Node;
        self
    }
}

/// What a container is to be.
#[derive(Clone, Debug)]
pub struct CriContainerSpec {
    name: String,
    command: Vec<String>,
    attempt: u32,
    resources: v1::LinuxContainerResources,
}

impl CriContainerSpec {
    /// A container that runs this command; the image's own one, which sleeps, when it is empty.
    pub fn new(name: &str, command: &[&str]) -> Self {
        // What the kubelet gives who asks for nothing (`MinShares`).
        const LEAST_SHARES: i64 = 2;
        let command = command.iter().map(ToString::to_string).collect();
        let resources = v1::LinuxContainerResources { cpu_shares: LEAST_SHARES, ..Default::default() };
        Self { name: name.to_owned(), command, attempt: 0, resources }
    }

    /// The so manieth of its name, as a kubelet counts restarts.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Held to this many thousandths of a CPU and bytes of memory. Who says no request asks for his limit, so the kubelet
    /// gives him the shares for it (`MilliCPUToShares`).
    #[must_use]
    pub fn limits(mut self, millicores: i64, memory_bytes: i64) -> Self {
        const PERIOD_US: i64 = 100_000;
        self.resources = v1::LinuxContainerResources {
            cpu_period: PERIOD_US,
            cpu_quota: PERIOD_US * millicores / 1000,
            cpu_shares: millicores * 1024 / 1000,
            memory_limit_in_bytes: memory_bytes,
            ..Default::default()
        };
        self
    }
}

/// A pod. Dropping it removes it.
#[derive(Debug)]
pub struct CriPod<'a> {
    node: &'a CriNode,
    id: String,
    uid: String,
    config: v1::PodSandboxConfig,
    address: Option<IpAddr>,
    /// Made before the sandbox, as a kubelet does, and removed after it; carries the lab's mark.
    cgroup: Cgroup,
    removed: bool,
}

impl<'a> CriPod<'a> {
    pub(super) fn create(node: &'a CriNode, spec: &CriPodSpec) -> Result<Self> {
        let uid = spec.uid.clone().map_or_else(ids::pod_uid, Ok)?;
        let path = PathBuf::from(format!("/kubepods/burstable/pod{uid}"));
        let cgroup = Cgroup::create(&node.hierarchies, &path)?;
        let config = config(node, spec, &uid, &path);
        std::fs::create_dir_all(&config.log_directory)
            .with_context(|| format!("making the directory of logs {}", config.log_directory))?;
        let id = node.client.run_pod(&config, &spec.handler)?;
        let mut pod = Self { node, id, uid, config, address: None, cgroup, removed: false };
        pod.address = pod.status()?.network.and_then(|network| network.ip.parse().ok());
        Ok(pod)
    }

    /// The sandbox's id, which is the pause container's.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The pod's own cgroup.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The cgroup of one of its containers, or of the pause container: the runtime names it by the id.
    pub fn cgroup_of(&self, id: &str) -> PathBuf {
        self.cgroup().join(id)
    }

    /// What the runtime says of it.
    pub fn status(&self) -> Result<v1::PodSandboxStatus> {
        self.node.client.pod_status(&self.id)
    }

    /// The address; none on the host network.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Starts a container.
    pub fn container(&self, spec: &CriContainerSpec) -> Result<CriContainer<'a>> {
        let image = v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
        let mut labels = self.config.labels.clone();
        labels.retain(|name, _| name.starts_with("io.kubernetes."));
        labels.insert("io.kubernetes.container.name".to_owned(), spec.name.clone());
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt }),
            image: Some(image),
            command: spec.command.clone(),
            log_path: format!("{}.{}.log", spec.name, spec.attempt),
            labels,
            annotations: HashMap::from([("io.kubernetes.container.restartCount".into(), spec.attempt.to_string())]),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(spec.resources.clone()),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: self.namespaces(),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let id = self.node.client.start(&self.id, &self.config, config)?;
        let pid = self.node.client.pid(&id)?;
        Ok(CriContainer { node: self.node, id, pid })
    }

    /// Stops and removes it with all its containers.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.node.client.remove_pod(&self.id)
    }

    fn namespaces(&self) -> Option<v1::NamespaceOption> {
        self.config.linux.as_ref()?.security_context.as_ref()?.namespace_options.clone()
    }
}

impl Drop for CriPod<'_> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.node.client.remove_pod(&self.id) {
            eprintln!("observer-lab: removing the pod {}: {error:#}", self.id);
        }
    }
}

/// A container of a pod. It goes with its pod.
#[derive(Debug)]
pub struct CriContainer<'a> {
    node: &'a CriNode,
    id: String,
    pid: u32,
}

impl CriContainer<'_> {
    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the runtime says of it.
    pub fn status(&self) -> Result<v1::ContainerStatus> {
        self.node.client.container_status(&self.id)
    }

    /// Its first process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The network namespace that it is in.
    pub fn netns(&self) -> Result<NetNs> {
        NetNs::of_process(self.pid)
    }

    /// Runs a command in it and gives what that wrote.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        self.node.client.exec(&self.id, command)
    }

    /// Kills what runs in it. The runtime keeps its record.
    pub fn stop(&self) -> Result<()> {
        self.node.client.stop(&self.id)
    }

    /// Removes the record too.
    pub fn remove(self) -> Result<()> {
        self.node.client.remove(&self.id)
    }
}

fn config(node: &CriNode, spec: &CriPodSpec, uid: &str, cgroup: &Path) -> v1::PodSandboxConfig {
    let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
    for (key, value) in [("name", spec.name.as_str()), ("namespace", &spec.namespace), ("uid", uid)] {
        labels.insert(format!("io.kubernetes.pod.{key}"), value.to_owned());
    }
    let network = if spec.host_network { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    let options = v1::NamespaceOption { network: network.into(), pid: spec.pid.into(), ..Default::default() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: spec.name.clone(),
            uid: uid.to_owned(),
            namespace: spec.namespace.clone(),
            attempt: 0,
        }),
        hostname: if spec.host_network { String::new() } else { spec.name.clone() },
        log_directory: node.directory.join("logs").join(uid).display().to_string(),
        labels,
        annotations: spec.annotations.clone().into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup.display().to_string(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}
