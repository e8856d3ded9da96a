//! What a pod should be, and where its cgroups belong.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::actor::Command;

/// A pod's class of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests: the pod's cgroup is directly in `kubepods`.
    Guaranteed,
    /// Some requests.
    #[default]
    Burstable,
    /// No requests.
    BestEffort,
}

impl Qos {
    /// As in a pod's `status.qosClass`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    fn directory(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// How a pod's cgroups are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CgroupStyle {
    /// The kubelet's cgroupfs driver: `/kubepods/burstable/pod<uid>/<id>`.
    #[default]
    Cgroupfs,
    /// The kubelet's systemd driver with containerd:
    /// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope`.
    Systemd,
    /// `docker run --cgroup-parent /pod-foo --network container:…`: containers below a parent of this
    /// name share the network namespace of the first; there is no pause process.
    Parent(String),
}

/// The controller that owns a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOwner {
    /// For example `ReplicaSet`.
    pub kind: String,
    /// For example `web-6d4cf56db6`.
    pub name: String,
}

/// A container to make.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    /// Its name in the pod.
    pub name: String,
    /// What its process does as its very first act, before it answers the driver.
    pub first: Vec<Command>,
    /// Whether it has PID and mount namespaces of its own, as real containers do. Without, it is a
    /// process less and quicker to make.
    pub isolated: bool,
}

impl ContainerSpec {
    /// An isolated container that waits for commands.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), first: Vec::new(), isolated: true }
    }

    /// Does this before anything else.
    pub fn first(mut self, command: Command) -> Self {
        self.first.push(command);
        self
    }

    /// Shares the PID and mount namespaces of the driver.
    pub fn light(mut self) -> Self {
        self.isolated = false;
        self
    }
}

/// A pod to make.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; made up when absent.
    pub uid: Option<String>,
    /// Its class of service.
    pub qos: Qos,
    /// How its cgroups are named.
    pub style: CgroupStyle,
    /// A cgroup that stands in front of the path (as kind's nodes have), empty for none.
    pub prefix: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its controller.
    pub owner: Option<PodOwner>,
    /// Its containers.
    pub containers: Vec<ContainerSpec>,
    /// Whether it uses the network namespace of the thread that makes it (the machine's, as a rule) instead of one of its own.
    pub host_network: bool,
    /// Its runtime class, or empty. Nothing here is run by one: it is what the pods file says.
    pub runtime_class: String,
    /// The IPv4 address of a pod that is gone, whose addresses this one takes; new ones when absent.
    pub address: Option<Ipv4Addr>,
}

impl PodSpec {
    /// A burstable pod with these containers.
    pub fn new(namespace: &str, name: &str, containers: &[&str]) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            qos: Qos::default(),
            style: CgroupStyle::default(),
            prefix: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            owner: None,
            containers: containers.iter().map(|name| ContainerSpec::new(name)).collect(),
            host_network: false,
            runtime_class: String::new(),
            address: None,
        }
    }

    /// With this container too.
    pub fn container(mut self, container: ContainerSpec) -> Self {
        self.containers.push(container);
        self
    }

    /// With this class of service.
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// With cgroups named this way.
    pub fn style(mut self, style: CgroupStyle) -> Self {
        self.style = style;
        self
    }

    /// With this label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With this annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Owned by this controller.
    pub fn owner(mut self, kind: &str, name: &str) -> Self {
        self.owner = Some(PodOwner { kind: kind.to_owned(), name: name.to_owned() });
        self
    }

    /// With the addresses of a pod that is gone.
    pub fn address(mut self, v4: Ipv4Addr) -> Self {
        self.address = Some(v4);
        self
    }

    /// In the network namespace of the thread that makes the pod.
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }
}

/// The path of the pod's own cgroup.
pub fn pod_cgroup(prefix: &str, style: &CgroupStyle, qos: Qos, uid: &str) -> PathBuf {
    let path = match (style, qos.directory()) {
        (CgroupStyle::Cgroupfs, None) => format!("kubepods/pod{uid}"),
        (CgroupStyle::Cgroupfs, Some(qos)) => format!("kubepods/{qos}/pod{uid}"),
        (CgroupStyle::Systemd, None) => {
            format!("kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_"))
        }
        (CgroupStyle::Systemd, Some(qos)) => {
            format!("kubepods.slice/kubepods-{qos}.slice/kubepods-{qos}-pod{}.slice", uid.replace('-', "_"))
        }
        (CgroupStyle::Parent(parent), _) => parent.trim_matches('/').to_owned(),
    };
    let prefix = prefix.trim_matches('/');
    PathBuf::from(if prefix.is_empty() { format!("/{path}") } else { format!("/{prefix}/{path}") })
}

/// The name of a container's cgroup in its pod's.
pub fn container_cgroup(style: &CgroupStyle, id: &str) -> String {
    match style {
        CgroupStyle::Systemd => format!("cri-containerd-{id}.scope"),
        CgroupStyle::Cgroupfs | CgroupStyle::Parent(_) => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_are_those_of_real_nodes() {
        let path = |prefix, style, qos| pod_cgroup(prefix, &style, qos, "a-b").to_string_lossy().into_owned();
        use CgroupStyle::{Cgroupfs, Parent, Systemd};
        assert_eq!(path("", Cgroupfs, Qos::Guaranteed), "/kubepods/poda-b");
        assert_eq!(path("", Cgroupfs, Qos::BestEffort), "/kubepods/besteffort/poda-b");
        assert_eq!(path("/kubelet/", Cgroupfs, Qos::Burstable), "/kubelet/kubepods/burstable/poda-b");
        assert_eq!(path("", Systemd, Qos::Guaranteed), "/kubepods.slice/kubepods-poda_b.slice");
        assert_eq!(
            path("", Systemd, Qos::Burstable),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice"
        );
        assert_eq!(path("", Parent("/pod-foo".to_owned()), Qos::Burstable), "/pod-foo");
        assert_eq!(container_cgroup(&Systemd, "ff"), "cri-containerd-ff.scope");
    }
}
