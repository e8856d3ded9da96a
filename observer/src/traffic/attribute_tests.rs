use std::{collections::HashSet, sync::Arc};

use super::*;
use crate::{
    identity::cluster::PeerBook,
    sandbox::{Container, ContainerKind, Runtime, SandboxKey},
};

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
