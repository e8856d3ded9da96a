//! Who is at the other end of an edge. Pure: facts come from the edge and the snapshot.

use std::net::{IpAddr, Ipv6Addr};

use observer_common::edge::{EdgeKey, Role, flags};

use crate::{
    identity::{Owner, Snapshot},
    sandbox::Sandbox,
};

/// The `peer_kind` label: what the other side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerKind {
    /// A container of the same pod, over the pod's loopback.
    Container,
    /// A pod.
    Pod,
    /// A node of the cluster.
    Node,
    /// A public address.
    External,
    /// Folded by a full table, or an address that nobody has told of.
    Other,
}

impl PeerKind {
    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::External => "external",
            Self::Other => "other",
        }
    }
}

/// How finely a peer pod is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerDetail {
    /// By its workload: series do not multiply with replicas.
    #[default]
    Workload,
    /// By its workload and its own name.
    Pod,
}

/// The `peer_*` labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer<'a> {
    /// What it is.
    pub kind: PeerKind,
    /// `peer_container`.
    pub container: &'a str,
    /// `peer_namespace`.
    pub namespace: &'a str,
    /// `peer_pod`.
    pub pod: &'a str,
    /// `peer_workload_kind`.
    pub workload_kind: &'a str,
    /// `peer_workload`.
    pub workload: &'a str,
}

impl<'a> Peer<'a> {
    const fn of_kind(kind: PeerKind) -> Self {
        Self { kind, container: "", namespace: "", pod: "", workload_kind: "", workload: "" }
    }

    fn container(name: &'a str) -> Self {
        Self { container: name, ..Self::of_kind(PeerKind::Container) }
    }

    fn pod(sandbox: &'a Sandbox, detail: PeerDetail) -> Self {
        // A pod that nobody owns is its own workload.
        let (workload_kind, workload) = if sandbox.workload.is_empty() {
            ("Pod", sandbox.name.as_str())
        } else {
            (sandbox.workload_kind.as_str(), sandbox.workload.as_str())
        };
        let pod = match detail {
            PeerDetail::Workload => "",
            PeerDetail::Pod => sandbox.name.as_str(),
        };
        Self { namespace: &sandbox.namespace, pod, workload_kind, workload, ..Self::of_kind(PeerKind::Pod) }
    }

    /// The other side of an edge whose own side is `owner`.
    #[must_use]
    pub fn of(key: &EdgeKey, owner: &Owner<'a>, snapshot: &'a Snapshot, detail: PeerDetail) -> Self {
        if key.flags & flags::OVERFLOW != 0 {
            return Self::of_kind(PeerKind::Other);
        }
        match key.loopback_peer() {
            Some(cgroup) => Self::over_loopback(cgroup, owner, snapshot, detail),
            None => Self::at(address(&key.peer), snapshot, detail),
        }
    }

    fn over_loopback(cgroup: u64, owner: &Owner<'a>, snapshot: &'a Snapshot, detail: PeerDetail) -> Self {
        match snapshot.by_cgroup(cgroup) {
            Some(peer) if owner.sandbox.key == peer.sandbox.key => {
                let name = peer.container.map_or("", |container| container.name.as_str());
                Self::container(name)
            }
            // On the host network every pod has the same loopback.
            Some(peer) => Self::pod(peer.sandbox, detail),
            None if owner.sandbox.host_network && cgroup != 0 => Self::of_kind(PeerKind::Node),
            None => Self::of_kind(PeerKind::Other),
        }
    }

    fn at(address: IpAddr, snapshot: &'a Snapshot, detail: PeerDetail) -> Self {
        if let Some(sandbox) = snapshot.by_address(address) {
            return Self::pod(sandbox, detail);
        }
        let kind = if snapshot.is_node_address(address) {
            PeerKind::Node
        } else if is_public(address) {
            PeerKind::External
        } else {
            PeerKind::Other
        };
        Self::of_kind(kind)
    }
}

/// The address in an edge's key.
fn address(words: &[u32; 4]) -> IpAddr {
    let mut bytes = [0u8; 16];
    for (at, word) in words.iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

/// Addresses that cannot belong to a cluster. Private ones may be pods of other nodes, so they are not called
/// external before somebody knows better (RFC 1918, RFC 6598, RFC 4193, RFC 3927, RFC 4291).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !(v4.is_private()
                || shared
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_unspecified())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_loopback()
                || v6.is_unspecified())
        }
    }
}

/// The `protocol` label for an IP protocol number.
#[must_use]
pub const fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        1 | 58 => "icmp",
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        _ => "other",
    }
}

/// The `role` label.
#[must_use]
pub const fn role_name(role: Role) -> &'static str {
    match role {
        Role::None => "none",
        Role::Client => "client",
        Role::Server => "server",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::*;
    use crate::sandbox::{Container, ContainerKind, Runtime, SandboxKey};

    pub fn container(name: &str, cgroup_id: u64, kind: ContainerKind) -> Container {
        Container {
            id: format!("{cgroup_id:064x}"),
            name: name.into(),
            image: String::new(),
            kind,
            cgroup: String::new(),
            cgroup_id,
            nested_cgroup_ids: vec![cgroup_id + 1000],
            pid: None,
            started: None,
            namespaces: vec![],
            alive: true,
        }
    }

    pub fn sandbox(name: &str, cgroup_id: u64, address: &str, containers: Vec<Container>) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            key: SandboxKey(name.into()),
            uid: name.into(),
            namespace: "shop".into(),
            name: name.into(),
            sandbox_id: String::new(),
            qos: None,
            runtime: Runtime::Unknown,
            cgroup: None,
            cgroup_id,
            other_cgroup_ids: Vec::new(),
            netns: Some(cgroup_id),
            host_network: address.is_empty(),
            addresses: address.parse().into_iter().collect(),
            workload_kind: if name == "web" { "Deployment".into() } else { String::new() },
            workload: if name == "web" { "shopfront".into() } else { String::new() },
            phase: String::new(),
            runtime_class: String::new(),
            containers,
            attach_points: vec![],
            alive: true,
        })
    }

    pub fn snapshot() -> Snapshot {
        let web = sandbox(
            "web",
            10,
            "10.88.0.2",
            vec![
                container("", 11, ContainerKind::Pause),
                container("app", 12, ContainerKind::Application),
                container("proxy", 13, ContainerKind::Application),
            ],
        );
        let db = sandbox("db", 20, "fd00:88::3", vec![container("db", 21, ContainerKind::Application)]);
        let host = sandbox("host", 30, "", vec![container("agent", 31, ContainerKind::Application)]);
        let node = HashSet::from(["10.88.0.1".parse().unwrap()]);
        Snapshot::new(vec![web, db, host], node, "n".into())
    }

    pub fn to(cgroup: u64, address: &str) -> EdgeKey {
        let bytes = match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let peer = std::array::from_fn(|at| u32::from_ne_bytes(bytes[at * 4..at * 4 + 4].try_into().unwrap()));
        EdgeKey { cgroup, peer, port: 80, protocol: 6, flags: Role::Client as u8, zero: 0 }
    }

    pub fn over_loopback(cgroup: u64, peer: u64) -> EdgeKey {
        let flags = Role::Client as u8 | flags::LOOPBACK;
        EdgeKey { cgroup, peer: [peer as u32, (peer >> 32) as u32, 0, 0], port: 80, protocol: 6, flags, zero: 0 }
    }

    fn peer_of(key: EdgeKey) -> (PeerKind, String) {
        let snapshot = snapshot();
        let owner = snapshot.by_cgroup(key.cgroup).unwrap();
        let peer = Peer::of(&key, &owner, &snapshot, PeerDetail::Pod);
        (peer.kind, format!("{}{}{}", peer.container, peer.pod, peer.workload))
    }

    #[test]
    fn loopback_names_the_other_container() {
        assert_eq!(peer_of(over_loopback(12, 13)), (PeerKind::Container, "proxy".into()));
        assert_eq!(peer_of(over_loopback(12, 12)), (PeerKind::Container, "app".into()));
        assert_eq!(peer_of(over_loopback(12, 1013)), (PeerKind::Container, "proxy".into()), "a cgroup inside proxy's");
        assert_eq!(peer_of(over_loopback(12, 0)), (PeerKind::Other, String::new()), "nobody listens");
        assert_eq!(peer_of(over_loopback(12, 99)), (PeerKind::Other, String::new()), "a stranger in the namespace");
    }

    #[test]
    fn the_host_network_has_one_loopback_for_all() {
        assert_eq!(peer_of(over_loopback(31, 99)), (PeerKind::Node, String::new()));
        assert_eq!(peer_of(over_loopback(31, 21)), (PeerKind::Pod, "dbdb".into()));
    }

    #[test]
    fn addresses_are_pods_nodes_or_the_world() {
        assert_eq!(peer_of(to(21, "10.88.0.2")), (PeerKind::Pod, "webshopfront".into()));
        assert_eq!(peer_of(to(12, "fd00:88::3")), (PeerKind::Pod, "dbdb".into()));
        assert_eq!(peer_of(to(12, "10.88.0.1")).0, PeerKind::Node);
        assert_eq!(peer_of(to(12, "93.184.216.34")).0, PeerKind::External);
        assert_eq!(peer_of(to(12, "2606:2800:220:1::1")).0, PeerKind::External);
        for unknown in ["10.99.0.1", "100.64.3.4", "169.254.1.1", "224.0.0.1", "fe80::1", "fd01::1", "ff02::1"] {
            assert_eq!(peer_of(to(12, unknown)).0, PeerKind::Other, "{unknown}");
        }
    }

    #[test]
    fn what_overflowed_is_other() {
        let key = EdgeKey { cgroup: 12, protocol: 6, flags: flags::OVERFLOW, ..EdgeKey::default() };
        assert_eq!(peer_of(key), (PeerKind::Other, String::new()));
    }
}
