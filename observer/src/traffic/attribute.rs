//! Who is at the other end of an edge. Pure: facts come from the edge and the snapshot.

use std::net::{IpAddr, Ipv6Addr};

use observer_common::{
    dns::PeerKey,
    edge::{EdgeKey, Role, flags},
};

use crate::{
    identity::{
        Owner, Snapshot,
        cluster::{OpenBook, PeerRecord, Told},
    },
    sandbox::{Sandbox, SandboxKey},
};

/// The `peer_kind` label: what the other side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerKind {
    /// A container of the same pod, over the pod's loopback.
    Container,
    /// A pod.
    Pod,
    /// A Service: its address before translation, or an endpoint of it that is no pod.
    Service,
    /// A node of the cluster.
    Node,
    /// A public address, or a private one that the cluster is known not to have.
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
            Self::Service => "service",
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
    /// By its namespace alone.
    Namespace,
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
    /// `peer_name`: what the container asked for when it was given the address.
    pub name: &'a str,
}

impl<'a> Peer<'a> {
    /// Of this kind, without a name.
    #[must_use]
    pub const fn of_kind(kind: PeerKind) -> Self {
        Self { kind, container: "", namespace: "", pod: "", workload_kind: "", workload: "", name: "" }
    }

    /// The labels from `peer_kind` to `peer_workload`, in the order of every family: all but the name.
    #[must_use]
    pub const fn labels(&self) -> [&'a str; 6] {
        [self.kind.as_str(), self.container, self.namespace, self.pod, self.workload_kind, self.workload]
    }

    fn container(name: &'a str) -> Self {
        Self { container: name, ..Self::of_kind(PeerKind::Container) }
    }

    fn pod(sandbox: &'a Sandbox, detail: PeerDetail) -> Self {
        // A pod that nobody owns is its own workload.
        let workload = if sandbox.workload.is_empty() {
            ("Pod", sandbox.name.as_str())
        } else {
            (sandbox.workload_kind.as_str(), sandbox.workload.as_str())
        };
        Self::named_pod(&sandbox.namespace, &sandbox.name, workload, detail)
    }

    fn named_pod(
        namespace: &'a str,
        name: &'a str,
        (workload_kind, workload): (&'a str, &'a str),
        detail: PeerDetail,
    ) -> Self {
        let of_namespace = Self { namespace, ..Self::of_kind(PeerKind::Pod) };
        match detail {
            PeerDetail::Namespace => of_namespace,
            PeerDetail::Workload => Self { workload_kind, workload, ..of_namespace },
            PeerDetail::Pod => Self { workload_kind, workload, pod: name, ..of_namespace },
        }
    }

    /// Somebody beyond this node's pods.
    fn beyond(record: &'a PeerRecord, detail: PeerDetail) -> Self {
        match record {
            PeerRecord::Pod { namespace, name, workload_kind, workload } => {
                Self::named_pod(namespace, name, (workload_kind, workload), detail)
            }
            PeerRecord::Service { namespace, name } => {
                let service = Self { namespace, ..Self::of_kind(PeerKind::Service) };
                if detail == PeerDetail::Namespace {
                    return service;
                }
                Self { workload_kind: "Service", workload: name, ..service }
            }
            PeerRecord::Node { .. } => Self::of_kind(PeerKind::Node),
        }
    }
}

/// By what a peer is known. Two that are equal are the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// Its sandbox.
    Sandbox(&'a SandboxKey),
    /// What the book of the cluster says of it.
    Record(&'a PeerRecord),
    /// Its kind says it.
    Kind,
    /// Nobody knows it.
    Nobody,
}

/// What is known of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View<'a> {
    /// The labels.
    pub peer: Peer<'a>,
    /// By what it is known.
    pub who: Who<'a>,
    /// Somebody has told its name, or that nobody has it; otherwise its name was made from ids, or it may be anybody.
    pub told: bool,
    /// It is known by its cgroup, not by its address.
    pub is_cgroup: bool,
}

impl<'a> View<'a> {
    /// The other side of an edge whose own side is `owner`, as it was at a moment, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn at(key: &EdgeKey, owner: &Owner<'a>, knowledge: &Knowledge<'a>, at: u64) -> Self {
        if key.flags & flags::OVERFLOW != 0 {
            return Self { who: Who::Kind, ..Self::nobody(PeerKind::Other) };
        }
        match key.loopback_peer() {
            Some(cgroup) => {
                let is_unix = key.flags & flags::UNIX != 0;
                Self { is_cgroup: true, ..Self::over_loopback(cgroup, is_unix, owner, knowledge) }
            }
            None => Self::of_address(address(&key.peer), knowledge, at),
        }
    }

    const fn nobody(kind: PeerKind) -> Self {
        Self { peer: Peer::of_kind(kind), who: Who::Nobody, told: true, is_cgroup: false }
    }

    fn over_loopback(cgroup: u64, is_unix: bool, owner: &Owner<'a>, knowledge: &Knowledge<'a>) -> Self {
        match knowledge.snapshot.peer_by_cgroup(cgroup) {
            Some(peer) if owner.sandbox.key == peer.sandbox.key => {
                // Without a name that was told it has the beginning of its id.
                let told = peer.container.is_none_or(|container| !container.id.starts_with(&container.name));
                let name = peer.container.map_or("", |container| container.name.as_str());
                Self { peer: Peer::container(name), who: Who::Sandbox(&peer.sandbox.key), told, is_cgroup: true }
            }
            // On the host network every pod has the same loopback, and a volume may be shared by pods.
            Some(peer) => Self::pod(peer.sandbox, knowledge.detail),
            None if (owner.sandbox.host_network || is_unix) && cgroup != 0 => Self::nobody(PeerKind::Node),
            None => Self::nobody(PeerKind::Other),
        }
    }

    fn pod(sandbox: &'a Sandbox, detail: PeerDetail) -> Self {
        let told = !sandbox.namespace.is_empty();
        Self { peer: Peer::pod(sandbox, detail), who: Who::Sandbox(&sandbox.key), told, is_cgroup: false }
    }

    fn of_address(address: IpAddr, knowledge: &Knowledge<'a>, at: u64) -> Self {
        let Knowledge { snapshot, book, detail, .. } = knowledge;
        // What this node knows by itself comes first: it knew it first.
        if let Some(sandbox) = snapshot.owner_at(address, at) {
            return Self::pod(sandbox, *detail);
        }
        if snapshot.is_node_address(address) {
            return Self { who: Who::Kind, ..Self::nobody(PeerKind::Node) };
        }
        let is_disputed = snapshot.is_disputed(address, at);
        let answer = book.map(|book| book.told(address, at));
        let told = match answer {
            Some(Told::By(record)) => {
                let peer = Peer::beyond(record, *detail);
                return Self { peer, who: Who::Record(record), told: true, is_cgroup: false };
            }
            // One that was a pod's of this node is known to be nobody's, before the book says so.
            Some(Told::Nothing | Told::Pending) => snapshot.by_address(address).is_some(),
            // Of two pods that live with it one may have ended without being seen to: the other has it then.
            Some(Told::Nobody | Told::Vacant) | None => !is_disputed,
        };
        let is_external = match Reach::of(address) {
            _ if is_disputed => false,
            // Pods may have public addresses: before it is said that nobody has it, it may be anybody's.
            Reach::World => answer != Some(Told::Pending),
            // One that a pod had a moment ago is called by those who have not heard that it ended.
            Reach::Private => answer == Some(Told::Nobody) && snapshot.by_address(address).is_none(),
            Reach::Link => false,
        };
        let kind = if is_external { PeerKind::External } else { PeerKind::Other };
        Self { told, ..Self::nobody(kind) }
    }
}

/// What is known, and when.
#[derive(Debug, Clone, Copy)]
pub struct Knowledge<'a> {
    /// Who is on this node, and was.
    pub snapshot: &'a Snapshot,
    /// Who has the addresses beyond it, while it is held open; `None` when nobody fills a book.
    pub book: Option<&'a OpenBook<'a>>,
    /// How finely pods are named.
    pub detail: PeerDetail,
    /// The moment, in nanoseconds of `CLOCK_MONOTONIC`.
    pub now: u64,
}

/// Whose peer it is: what its name is decided by.
#[must_use]
pub const fn peer_key(key: &EdgeKey) -> PeerKey {
    PeerKey { cgroup: key.cgroup, peer: key.peer }
}

/// The address of a peer that may have a name from DNS: one outside of the cluster, which the container has called.
#[must_use]
pub fn external_peer(key: &EdgeKey, knowledge: &Knowledge<'_>) -> Option<IpAddr> {
    if key.flags & (flags::OVERFLOW | flags::LOOPBACK) != 0 || key.role() == Role::Server {
        return None;
    }
    knowledge.snapshot.by_cgroup(key.cgroup)?;
    let address = address(&key.peer);
    let View { peer, who, .. } = View::of_address(address, knowledge, knowledge.now);
    (who == Who::Nobody && peer.kind == PeerKind::External).then_some(address)
}

/// The address of an edge's peer; `None` over loopback, and for what found no place in the table.
#[must_use]
pub fn peer_address(key: &EdgeKey) -> Option<IpAddr> {
    let has = key.flags & flags::OVERFLOW == 0 && key.loopback_peer().is_none();
    has.then(|| address(&key.peer))
}

/// The address in an edge's key.
fn address(words: &[u32; 4]) -> IpAddr {
    let mut bytes = [0u8; 16];
    for (at, word) in words.iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

/// From where an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// From anywhere.
    World,
    /// Within an organisation (RFC 1918, RFC 6598, RFC 4193). It may be a pod's of another node, so it is not called
    /// external before somebody knows better.
    Private,
    /// From the same link or machine, or it is no single one's (RFC 3927, RFC 4291): nobody can tell whose it is.
    Link,
}

impl Reach {
    fn of(address: IpAddr) -> Self {
        let (is_private, is_link) = match address {
            IpAddr::V4(v4) => {
                let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
                let is_one = !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified();
                (v4.is_private() || is_shared, v4.is_loopback() || v4.is_link_local() || !is_one)
            }
            IpAddr::V6(v6) => {
                let is_one = !v6.is_multicast() && !v6.is_unspecified();
                (v6.is_unique_local(), v6.is_loopback() || v6.is_unicast_link_local() || !is_one)
            }
        };
        match (is_private, is_link) {
            (_, true) => Self::Link,
            (true, false) => Self::Private,
            (false, false) => Self::World,
        }
    }
}

/// The protocol of messages over Unix sockets, which is no label: they have families of their own.
pub const UNIX: &str = "unix";

/// The `protocol` label of an edge, by its IP protocol number.
#[must_use]
pub const fn protocol_name(key: &EdgeKey) -> &'static str {
    match key.protocol {
        _ if key.flags & flags::UNIX != 0 => UNIX,
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
#[path = "attribute_tests.rs"]
pub(super) mod tests;
