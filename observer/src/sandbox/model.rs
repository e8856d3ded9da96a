//! The nouns: a sandbox (a pod's cgroup and network namespace) and its containers.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::hook::Hook;
use crate::identity::{Limits, Pairs, Requests, SandboxIdentity};

/// Identifies a sandbox for as long as it lives: the pod's UID where there is one, else
/// `cgroup:<path>` of the container that came first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxKey(pub String);

impl fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The Kubernetes quality-of-service class, as the cgroup path tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QosClass {
    /// Requests equal limits for every container.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// No requests, no limits.
    BestEffort,
}

impl QosClass {
    /// The name that the Kubernetes API uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The class that the Kubernetes API names so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Guaranteed, Self::Burstable, Self::BestEffort].into_iter().find(|class| class.as_str() == name)
    }
}

/// The container runtime that made a cgroup, as far as its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Runtime {
    /// containerd (`cri-containerd-<id>.scope`).
    Containerd,
    /// CRI-O (`crio-<id>.scope`).
    Crio,
    /// Docker (`docker-<id>.scope`, `/docker/<id>`).
    Docker,
    /// Podman (`libpod-<id>.scope`).
    Podman,
    /// The name does not tell (the cgroupfs driver uses the bare id).
    #[default]
    Unknown,
}

impl Runtime {
    /// The runtime's name as a label value; empty when unknown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Unknown => "",
        }
    }
}

/// What a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerKind {
    /// Holds the sandbox's namespaces; counts as the pod's, not as a container.
    Pause,
    /// Everything else.
    Application,
}

/// A container of a sandbox.
#[derive(Debug, Clone)]
pub struct Container {
    /// The full id that the runtime gave.
    pub id: String,
    /// The name in the pod; where nobody tells it, the first 12 characters of the id.
    pub name: String,
    /// The image reference, or empty.
    pub image: String,
    /// How often a container of this name was started in the pod before (its restarts); `None` where nobody tells.
    pub attempt: Option<u32>,
    /// What it asked for, as the orchestrator tells.
    pub requests: Requests,
    /// What it may use, as the orchestrator tells. What the kernel holds it to is in its cgroup, and that is what series
    /// show.
    pub limits: Limits,
    /// What it is for.
    pub kind: ContainerKind,
    /// The cgroup's path below the hierarchy's mount point, with a leading `/`. The same in every hierarchy.
    pub cgroup: String,
    /// The cgroup v2 id (inode of the directory in the v2 tree); 0 on a host without a v2 tree.
    pub cgroup_id: u64,
    /// Ids of cgroups below this one: their sockets count for this container.
    pub nested_cgroup_ids: Vec<u64>,
    /// Those of them that are gone, the youngest last: what they have counted goes to the container's own cgroup.
    pub gone_cgroup_ids: Vec<u64>,
    /// A process in the container, when one was seen.
    pub pid: Option<i32>,
    /// When its first process started.
    pub started: Option<SystemTime>,
    /// Inode numbers of the namespaces of that process, by name (`net`, `ipc`, `uts`, `pid`, `mnt`, `cgroup`, `user`).
    pub namespaces: Vec<(String, u64)>,
    /// False once its cgroup is gone. It stays listed while its pod lives, so that its traffic keeps its name.
    pub alive: bool,
}

/// Where kernel programs are attached for a sandbox: a directory of the v2 tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AttachPoint {
    /// The cgroup v2 id of the directory.
    pub cgroup_id: u64,
    /// The directory, absolute.
    pub path: PathBuf,
}

/// A pod sandbox: the pod's cgroup and its network namespace.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its identity.
    pub key: SandboxKey,
    /// The pod's UID, or empty.
    pub uid: String,
    /// The pod's namespace, or empty.
    pub namespace: String,
    /// The pod's name; where nobody tells it, the UID or the cgroup's name.
    pub name: String,
    /// The id of the sandbox, which is the pause container's where there is one; or empty.
    pub sandbox_id: String,
    /// The class from the cgroup path; `None` outside of `kubepods`.
    pub qos: Option<QosClass>,
    /// The container runtime.
    pub runtime: Runtime,
    /// The pod's own cgroup below the hierarchy's mount point; `None` for containers that only share a network namespace.
    pub cgroup: Option<String>,
    /// The v2 id of the pod's own cgroup; 0 when there is none. On a host without a v2 tree the inode of its directory in
    /// the v1 tree that is looked at, for a pod that is counted at its interface.
    pub cgroup_id: u64,
    /// Ids of cgroups in the pod's that are no container's; what runs there counts as the pod's.
    pub other_cgroup_ids: Vec<u64>,
    /// Inode of the network namespace, when known.
    pub netns: Option<u64>,
    /// True when it shares the node's network namespace.
    pub host_network: bool,
    /// Addresses of the sandbox, without loopback and link-local ones: those that were told, in that order, then what
    /// else its network namespace has. Empty for host network.
    pub addresses: Vec<IpAddr>,
    /// Addresses that the runtime, the kubelet or the API tells; empty where nobody does, and for host network.
    pub told_addresses: Vec<IpAddr>,
    /// The top owner's kind (`Deployment`, `Pod`, …), or empty.
    pub workload_kind: String,
    /// The top owner's name, or empty.
    pub workload: String,
    /// The pod's phase, or empty.
    pub phase: String,
    /// The runtime class, or empty.
    pub runtime_class: String,
    /// The runtime's handler that runs the pod, or empty for the default one.
    pub runtime_handler: String,
    /// Where its traffic is counted.
    pub hook: Hook,
    /// What the runtime tells of the sandbox; empty where it is not asked.
    pub told: SandboxIdentity,
    /// The pod's labels, bounded; empty where nobody tells them.
    pub labels: Pairs,
    /// The pod's annotations, bounded; empty where nobody tells them.
    pub annotations: Pairs,
    /// All containers, pause included.
    pub containers: Vec<Container>,
    /// Directories that carry this sandbox's kernel programs.
    pub attach_points: Vec<AttachPoint>,
    /// False once its cgroups are gone; it stays until its final totals were scraped.
    pub alive: bool,
    /// From when on its addresses may be its own: when its first process began, as far as that was seen. Nanoseconds of
    /// `CLOCK_MONOTONIC`, as all moments of the kernel programs.
    pub since: u64,
    /// When it was seen to be gone, on the same clock; `u64::MAX` while it is alive.
    pub until: u64,
}

impl Sandbox {
    /// Whether somebody has told that this address is its own. A pod may give itself any address (a Docker in it makes the
    /// bridge 172.17.0.1 in each such pod), and would take what is sent to others that have it.
    #[must_use]
    pub fn is_told(&self, address: IpAddr) -> bool {
        self.told_addresses.contains(&address)
    }

    /// Where its network namespace may be opened: what the runtime tells, as the node's first process sees it and as this one
    /// does, then that of its processes.
    #[must_use]
    pub fn netns_paths(&self, procfs: &Path) -> Vec<PathBuf> {
        let told = Path::new(&self.told.netns);
        let mut paths = Vec::new();
        if let Ok(below) = told.strip_prefix("/") {
            paths.push(procfs.join("1/root").join(below));
            paths.push(told.to_owned());
        }
        let pids = self.containers.iter().filter(|container| container.alive).filter_map(|container| container.pid);
        paths.extend(pids.map(|pid| procfs.join(pid.to_string()).join("ns/net")));
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing;

    #[test]
    fn a_namespace_is_looked_for_where_the_runtime_says_then_at_processes() {
        let mut container = testing::container("app", "/p/app");
        container.pid = Some(7);
        let mut dead = testing::container("old", "/p/old");
        (dead.pid, dead.alive) = (Some(8), false);
        let mut pod = testing::sandbox("p", vec![container, dead]);
        assert_eq!(pod.netns_paths(Path::new("/host/proc")), [PathBuf::from("/host/proc/7/ns/net")]);
        pod.told.netns = "/run/netns/cni-1".into();
        let paths = pod.netns_paths(Path::new("/proc"));
        let expected = ["/proc/1/root/run/netns/cni-1", "/run/netns/cni-1", "/proc/7/ns/net"].map(PathBuf::from);
        assert_eq!(paths, expected);
    }
}
