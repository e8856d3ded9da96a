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
pub(super) mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::*;
    use crate::identity::cluster::PeerBook;
    use crate::sandbox::{Container, ContainerKind, Runtime, SandboxKey};

    pub fn container(name: &str, cgroup_id: u64, kind: ContainerKind) -> Container {
        Container {
            id: format!("{cgroup_id:064x}"),
            name: name.into(),
            image: String::new(),
            attempt: None,
            requests: Default::default(),
            limits: Default::default(),
            kind,
            cgroup: String::new(),
            cgroup_id,
            nested_cgroup_ids: vec![cgroup_id + 1000],
            gone_cgroup_ids: vec![],
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
            told_addresses: address.parse().into_iter().collect(),
            workload_kind: if name == "web" { "Deployment".into() } else { String::new() },
            workload: if name == "web" { "shopfront".into() } else { String::new() },
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

    pub fn knowing(snapshot: &Snapshot, detail: PeerDetail) -> Knowledge<'_> {
        Knowledge { snapshot, book: None, detail, now: 100 }
    }

    fn peer_of(key: EdgeKey) -> (PeerKind, String) {
        let snapshot = snapshot();
        let owner = snapshot.by_cgroup(key.cgroup).unwrap();
        let peer = View::at(&key, &owner, &knowing(&snapshot, PeerDetail::Pod), 1).peer;
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
    fn a_unix_socket_of_the_host_is_the_nodes() {
        let unix = |peer| {
            let key = over_loopback(12, peer);
            EdgeKey { protocol: 0, port: 0, flags: key.flags | flags::UNIX, ..key }
        };
        assert_eq!(protocol_name(&unix(13)), UNIX);
        assert_eq!(peer_of(unix(13)), (PeerKind::Container, "proxy".into()));
        assert_eq!(peer_of(unix(21)), (PeerKind::Pod, "dbdb".into()));
        assert_eq!(peer_of(unix(99)), (PeerKind::Node, String::new()));
        assert_eq!(peer_of(unix(0)), (PeerKind::Other, String::new()), "nobody knows who it is");
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

    /// Two pods in which a Docker runs, on a node where one runs too.
    #[test]
    fn addresses_that_pods_gave_themselves_are_the_nodes_or_nobodys() {
        let (bridge, inner): (IpAddr, IpAddr) = ("172.17.0.1".parse().unwrap(), "203.0.113.7".parse().unwrap());
        let with = |told: bool| {
            let pods = [("a", 40, "10.88.0.4"), ("b", 50, "10.88.0.5")].map(|(name, cgroup, address)| {
                let inside = vec![container("app", cgroup + 1, ContainerKind::Application)];
                let mut pod = Arc::unwrap_or_clone(sandbox(name, cgroup, address, inside));
                pod.addresses.extend([bridge, inner]);
                if !told {
                    pod.told_addresses.clear();
                }
                Arc::new(pod)
            });
            Snapshot::new(pods.into(), HashSet::from([bridge]), "n".into())
        };
        let seen = |snapshot: &Snapshot, address: &str| {
            let (key, owner) = (to(41, address), snapshot.by_cgroup(41).unwrap());
            let View { peer, told, .. } = View::at(&key, &owner, &knowing(snapshot, PeerDetail::Pod), 1);
            (peer.kind, peer.pod.to_owned(), told)
        };
        for told in [true, false] {
            let snapshot = with(told);
            assert_eq!(seen(&snapshot, "10.88.0.5"), (PeerKind::Pod, "b".into(), true));
            assert_eq!(seen(&snapshot, "172.17.0.1").0, PeerKind::Node);
            // One of the two may have ended: then it is the other's.
            assert_eq!(seen(&snapshot, "203.0.113.7"), (PeerKind::Other, String::new(), false));
        }
    }

    #[test]
    fn a_pod_is_named_as_finely_as_was_asked_for() {
        let snapshot = snapshot();
        let key = to(21, "10.88.0.2");
        let owner = snapshot.by_cgroup(21).unwrap();
        let named = |detail| {
            let peer = View::at(&key, &owner, &knowing(&snapshot, detail), 1).peer;
            (peer.kind, peer.namespace, peer.workload_kind, peer.workload, peer.pod)
        };
        assert_eq!(named(PeerDetail::Pod), (PeerKind::Pod, "shop", "Deployment", "shopfront", "web"));
        assert_eq!(named(PeerDetail::Workload), (PeerKind::Pod, "shop", "Deployment", "shopfront", ""));
        assert_eq!(named(PeerDetail::Namespace), (PeerKind::Pod, "shop", "", "", ""));
    }

    #[test]
    fn names_are_for_external_peers_that_were_called() {
        let snapshot = snapshot();
        let nobody = knowing(&snapshot, PeerDetail::Workload);
        let called = to(12, "93.184.216.34");
        assert_eq!(external_peer(&called, &nobody), Some("93.184.216.34".parse().unwrap()));
        let calls = EdgeKey { flags: Role::Server as u8, ..called };
        let overflowed = EdgeKey { flags: called.flags | flags::OVERFLOW, ..called };
        let nobodys = EdgeKey { cgroup: 777, ..called };
        for other in [calls, overflowed, nobodys, to(12, "10.88.0.1"), to(12, "fd00:88::3"), over_loopback(12, 13)] {
            assert_eq!(external_peer(&other, &nobody), None, "{other:?}");
        }
    }

    #[test]
    fn beyond_the_node_the_book_tells() {
        let snapshot = snapshot();
        let book = PeerBook::default();
        let tell = |address: &str, record| book.tell(address.parse().unwrap(), Some(Arc::new(record)), 100);
        let text = |text: &str| String::from(text);
        tell("10.96.0.80", PeerRecord::Service { namespace: text("shop"), name: text("api") });
        tell("93.184.216.34", PeerRecord::Node { name: text("m") });
        let owned = ("Deployment", "cart");
        let pod = |name: &str| PeerRecord::Pod {
            namespace: text("shop"),
            name: text(name),
            workload_kind: text(owned.0),
            workload: text(owned.1),
        };
        tell("10.99.0.1", pod("cart-7d9-x"));
        // What the node knows by itself is not taken from the book.
        tell("10.88.0.2", pod("old"));
        tell("10.88.0.1", pod("old"));
        book.complete(true);
        let open = book.open();
        let seen = |at, address: &str, detail| {
            let key = to(21, address);
            let owner = snapshot.by_cgroup(21).unwrap();
            let peer = View::at(&key, &owner, &Knowledge { book: Some(&open), ..knowing(&snapshot, detail) }, at).peer;
            (peer.kind, [peer.namespace, peer.workload_kind, peer.workload, peer.pod].join(" "))
        };
        let workload = |at, address| seen(at, address, PeerDetail::Workload);
        assert_eq!(workload(100, "10.96.0.80"), (PeerKind::Service, text("shop Service api ")));
        assert_eq!(workload(99, "10.96.0.80"), (PeerKind::Other, text("   ")), "before it was told");
        assert_eq!(workload(100, "93.184.216.34"), (PeerKind::Node, text("   ")));
        assert_eq!(workload(99, "93.184.216.34").0, PeerKind::External);
        assert_eq!(workload(100, "10.99.0.2").0, PeerKind::External, "the cluster has no such address");
        for unknown in ["169.254.169.254", "224.0.0.1", "fe80::1", "ff02::1"] {
            assert_eq!(workload(100, unknown).0, PeerKind::Other, "{unknown}");
        }
        assert_eq!(workload(100, "10.99.0.1"), (PeerKind::Pod, text("shop Deployment cart ")));
        assert_eq!(seen(100, "10.99.0.1", PeerDetail::Pod).1, "shop Deployment cart cart-7d9-x");
        assert_eq!(seen(100, "10.99.0.1", PeerDetail::Namespace), (PeerKind::Pod, text("shop   ")));
        assert_eq!(seen(100, "10.96.0.80", PeerDetail::Namespace), (PeerKind::Service, text("shop   ")));
        assert_eq!(seen(100, "10.88.0.2", PeerDetail::Pod).1, "shop Deployment shopfront web");
        assert_eq!(workload(100, "10.88.0.1").0, PeerKind::Node);
        let called = to(12, "93.184.216.34");
        let workload = knowing(&snapshot, PeerDetail::Workload);
        let external = |now| external_peer(&called, &Knowledge { book: Some(&open), now, ..workload });
        assert_eq!([external(100), external(99)], [None, Some("93.184.216.34".parse().unwrap())]);
    }

    #[test]
    fn nobody_is_guessed_to_be_external_before_there_is_an_answer() {
        let snapshot = snapshot();
        let book = PeerBook::default();
        let seen = |address: &str, at| {
            let called = to(12, address);
            let open = book.open();
            let knowledge = Knowledge { book: Some(&open), now: at, ..knowing(&snapshot, PeerDetail::Workload) };
            let owner = snapshot.by_cgroup(12).unwrap();
            let View { peer, told, .. } = View::at(&called, &owner, &knowledge, at);
            (peer.kind, told, external_peer(&called, &knowledge).is_some())
        };
        let (pending, external) = ((PeerKind::Other, false, false), (PeerKind::External, true, true));
        let all = ["2001:db8::7", "10.99.0.7"];
        for address in all {
            assert_eq!(seen(address, 100), pending, "{address}");
            // Somebody had it before.
            book.tell(address.parse().unwrap(), None, 100);
            assert_eq!(seen(address, 99), pending, "{address}: before it was told");
        }
        assert_eq!(all.map(|address| seen(address, 100)), [external, (PeerKind::Other, true, false)]);
        for address in ["2001:db8::8", "10.99.0.8"] {
            book.tell(address.parse().unwrap(), None, 0);
            assert_eq!(seen(address, 100), external, "{address}: nobody ever had it");
        }
        let all = ["2001:db8::9", "10.99.0.9", "fd01::9"];
        book.complete(false);
        let guessed = (PeerKind::External, false, true);
        assert_eq!(all.map(|address| seen(address, 100)), [guessed, pending, pending], "nobody will tell");
        book.complete(true);
        assert_eq!(all.map(|address| seen(address, 100)), [external; 3]);
    }

    #[test]
    fn what_overflowed_is_other() {
        let key = EdgeKey { cgroup: 12, protocol: 6, flags: flags::OVERFLOW, ..EdgeKey::default() };
        assert_eq!(peer_of(key), (PeerKind::Other, String::new()));
    }
}
