//! From dropped packets to series: whose they were. Pure.
//!
//! The socket's cgroup names the container. Without one the network namespace names the pod. The kernel soon gives the
//! inode of a namespace that is gone to the next one, but its cookie to none; which pod has which cookie is told by
//! time: a namespace that dropped a packet while a process of the pod was in the namespace of this inode is the pod's.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use observer_common::drops::{DropCount, DropKey, flags};

use crate::{
    identity::{Snapshot, Successors},
    sandbox::{Sandbox, SandboxKey},
};

/// How long after its start a process may still be on its way into its namespaces, and the ticks that starts are told
/// in.
const ENTERING: Duration = Duration::from_millis(100);
/// How long drops that nobody owns must stand still before they are folded together.
const PATIENCE: Duration = Duration::from_secs(600);

/// The labels of a series of drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropSeries<'a> {
    /// `namespace`.
    pub namespace: &'a str,
    /// `pod`.
    pub pod: &'a str,
    /// `container`; empty where only the pod is known.
    pub container: &'a str,
    /// The packet had come in.
    pub receive: bool,
    /// The kernel's number of the reason.
    pub reason: u32,
}

/// All drops of one scrape. Every packet of a reading is in one of these.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Drops<'a> {
    /// By labels.
    pub totals: BTreeMap<DropSeries<'a>, u64>,
    /// In the node's own namespace, between addresses and sockets of no pod.
    pub node: u64,
    /// Of owners that nobody knew for ten minutes.
    pub unknown: u64,
    /// Of owners that nobody knows yet.
    pub pending: u64,
    /// Entries of sandboxes that are gone: shown for the last time.
    pub spent: Vec<DropKey>,
    /// Entries of owners that are gone, each with that of who goes on with its series: no series falls to a part of what
    /// it was.
    pub go_on: Vec<(DropKey, DropKey)>,
    /// Entries to fold into `unknown`.
    pub fold: Vec<DropKey>,
}

/// What is remembered from scrape to scrape.
#[derive(Debug, Default)]
pub struct DropMemory {
    /// The sandbox of a namespace's cookie.
    owners: HashMap<u64, SandboxKey>,
    /// Entries of unknown owners, with the number they have had since when.
    quiet: HashMap<DropKey, (u64, Instant)>,
}

/// What is known of the node.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts {
    /// The inode of its network namespace.
    pub netns: u32,
    /// The moment that starts of processes are counted from; without it no pod is known by its namespace.
    pub boot: Option<SystemTime>,
}

/// Attributes these entries.
#[must_use]
pub fn attribute<'a>(
    readings: &[(DropKey, DropCount)],
    snapshot: &'a Snapshot,
    node: NodeFacts,
    memory: &mut DropMemory,
    now: Instant,
) -> Drops<'a> {
    let by_key: HashMap<&SandboxKey, &'a Sandbox> =
        snapshot.sandboxes().iter().map(|sandbox| (&sandbox.key, &**sandbox)).collect();
    memory.owners.retain(|_, key| by_key.contains_key(key));
    learn(readings, snapshot, node, memory);
    let successors = Successors::of(snapshot);
    let mut drops = Drops::default();
    let mut quiet = HashMap::new();
    for (key, count) in readings {
        if key.flags & flags::FOLDED != 0 {
            drops.unknown += count.packets;
            continue;
        }
        let by_cgroup = snapshot.by_cgroup(key.cgroup).map(|owner| {
            let only_the_pod = key.flags & flags::BY_ADDRESS != 0;
            let container = owner.container.filter(|_| !only_the_pod).map_or("", |container| container.name.as_str());
            (&**owner.sandbox, container)
        });
        let owner = by_cgroup.or_else(|| Some((*by_key.get(memory.owners.get(&key.cookie)?)?, "")));
        match owner {
            Some((sandbox, container)) => {
                let series = DropSeries {
                    namespace: &sandbox.namespace,
                    pod: &sandbox.name,
                    container,
                    receive: key.flags & flags::RECEIVE != 0,
                    reason: key.reason,
                };
                *drops.totals.entry(series).or_default() += count.packets;
                let only_the_pod = by_cgroup.is_none() || key.flags & flags::BY_ADDRESS != 0;
                match successors.as_ref().and_then(|successors| heir(key, sandbox, only_the_pod, successors)) {
                    Some(heir) => drops.go_on.push((*key, heir)),
                    None if !sandbox.alive => drops.spent.push(*key),
                    None => {}
                }
            }
            None if key.cgroup == 0 && key.netns == node.netns => drops.node += count.packets,
            None => {
                drops.pending += count.packets;
                let before = memory.quiet.get(key).filter(|(packets, _)| *packets == count.packets);
                let since = before.map_or(now, |(_, since)| *since);
                quiet.insert(*key, (count.packets, since));
                if now.duration_since(since) >= PATIENCE {
                    drops.fold.push(*key);
                }
            }
        }
    }
    memory.quiet = quiet;
    drops
}

/// The entry that goes on with the series of this one, whose owner is gone. It is the agent's own, because a program may
/// be counting in any other.
fn heir(key: &DropKey, sandbox: &Sandbox, only_the_pod: bool, successors: &Successors<'_>) -> Option<DropKey> {
    let flags = key.flags | flags::TAKEN_OVER;
    if sandbox.alive {
        // The namespace is the pod's, and tells the next agent so.
        return Some(DropKey { cgroup: successors.successor(key.cgroup)?, flags, ..*key });
    }
    let pod = DropKey { cookie: 0, netns: 0, ..*key };
    if !only_the_pod {
        return Some(DropKey { cgroup: successors.successor(key.cgroup)?, flags, ..pod });
    }
    let mut own = cgroups(sandbox);
    Some(DropKey { cgroup: own.find_map(|id| successors.successor(id))?, flags: flags | flags::BY_ADDRESS, ..pod })
}

/// The pod's own cgroup and its containers', as far as they are known.
fn cgroups(sandbox: &Sandbox) -> impl Iterator<Item = u64> {
    let all = std::iter::once(sandbox.cgroup_id).chain(sandbox.containers.iter().map(|inside| inside.cgroup_id));
    all.filter(|id| *id != 0)
}

/// Learns whose the namespaces are that had no owner yet.
fn learn(readings: &[(DropKey, DropCount)], snapshot: &Snapshot, node: NodeFacts, memory: &mut DropMemory) {
    let Some(boot) = node.boot else { return };
    let mut last: HashMap<u64, (u32, u64)> = HashMap::new();
    for (key, count) in readings {
        if key.cookie != 0 && key.netns != node.netns && !memory.owners.contains_key(&key.cookie) {
            let (_, last) = last.entry(key.cookie).or_insert((key.netns, 0));
            *last = count.last.max(*last);
        }
    }
    for (cookie, (inode, last)) in last {
        if let Some(sandbox) = holder(snapshot, inode.into(), boot + Duration::from_nanos(last)) {
            memory.owners.insert(cookie, sandbox.key.clone());
        }
    }
}

/// The sandbox that held the namespace with this inode at a time; `None` unless that is certain.
fn holder(snapshot: &Snapshot, inode: u64, time: SystemTime) -> Option<&Sandbox> {
    let had = |sandbox: &&Sandbox| sandbox.netns == Some(inode) && !sandbox.host_network;
    let all: Vec<&Sandbox> = snapshot.sandboxes().iter().map(|sandbox| &**sandbox).filter(had).collect();
    if all.iter().filter(|sandbox| sandbox.alive).count() > 1 {
        return None;
    }
    let started = |sandbox: &Sandbox| {
        let inside = sandbox
            .containers
            .iter()
            .filter(|container| container.namespaces.iter().any(|(name, found)| name == "net" && *found == inode));
        inside.filter_map(|container| container.started).min()
    };
    // One whose start is not known may be the latest.
    let started: Option<Vec<(SystemTime, &Sandbox)>> =
        all.into_iter().map(|sandbox| Some((started(sandbox)?, sandbox))).collect();
    let (started, latest) = started?.into_iter().max_by_key(|(started, _)| *started)?;
    (time >= started + ENTERING).then_some(latest)
}

/// Addresses of living pods, IPv4 as `::ffff:a.b.c.d`, each with the id of a cgroup of its pod. An address that two pods
/// have is nobody's, unless it was told of one of them alone; one that nobody told and that the node has is the node's.
#[must_use]
pub fn pod_addresses(snapshot: &Snapshot) -> HashMap<[u8; 16], u64> {
    let mut found: HashMap<[u8; 16], (bool, Option<u64>)> = HashMap::new();
    for sandbox in snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive && !sandbox.host_network) {
        let Some(cgroup) = cgroups(sandbox).next() else { continue };
        for address in &sandbox.addresses {
            let told = sandbox.is_told(*address);
            if !told && snapshot.is_node_address(*address) {
                continue;
            }
            let bytes = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let claim = (told, Some(cgroup));
            let known = found.entry(bytes).or_insert(claim);
            match known.0.cmp(&told) {
                Ordering::Less => *known = claim,
                Ordering::Equal if known.1 != Some(cgroup) => known.1 = None,
                _ => {}
            }
        }
    }
    found.into_iter().filter_map(|(address, (_, cgroup))| Some((address, cgroup?))).collect()
}

/// Inodes of the network namespaces of living pods.
#[must_use]
pub fn pod_namespaces(snapshot: &Snapshot) -> Vec<u32> {
    let pods = snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive && !sandbox.host_network);
    pods.filter_map(|sandbox| u32::try_from(sandbox.netns?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::super::attribute::tests::{container, sandbox};
    use super::*;
    use crate::sandbox::ContainerKind;

    const NODE: NodeFacts = NodeFacts { netns: 1, boot: Some(SystemTime::UNIX_EPOCH) };
    /// The inode of a pod's namespace: `sandbox` of the tests takes the cgroup's id.
    const NETNS: u32 = 10;

    fn pod(name: &str, cgroup: u64, address: &str, started: u64, alive: bool) -> Arc<Sandbox> {
        let mut inside = container("app", cgroup + 1, ContainerKind::Application);
        inside.started = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(started));
        inside.namespaces = vec![("net".to_owned(), NETNS.into())];
        let mut sandbox = Arc::unwrap_or_clone(sandbox(name, cgroup, address, vec![inside]));
        sandbox.netns = Some(NETNS.into());
        sandbox.alive = alive;
        Arc::new(sandbox)
    }

    fn snapshot(pods: Vec<Arc<Sandbox>>) -> Snapshot {
        Snapshot::new(pods, HashSet::new(), String::new())
    }

    fn entry(cgroup: u64, cookie: u64, netns: u32, flags: u32, packets: u64, last: u64) -> (DropKey, DropCount) {
        let key = DropKey { cgroup, cookie, netns, reason: 3, flags, zero: 0 };
        (key, DropCount { packets, last: last * 1_000_000_000 })
    }

    fn names(drops: &Drops<'_>) -> Vec<(String, u64)> {
        let name = |series: &DropSeries<'_>| format!("{}/{}/{}", series.pod, series.container, series.receive);
        drops.totals.iter().map(|(series, packets)| (name(series), *packets)).collect()
    }

    #[test]
    fn a_packet_has_the_name_of_its_socket_else_of_its_namespace() {
        let snapshot = snapshot(vec![pod("web", 10, "10.88.0.2", 100, true)]);
        let readings = [
            entry(11, 7, NETNS, 0, 1, 0),
            entry(1011, 7, NETNS, 0, 2, 0),
            entry(0, 7, NETNS, flags::RECEIVE, 4, 101),
            entry(999, 7, NETNS, flags::RECEIVE, 8, 101),
            entry(10, 0, 0, flags::RECEIVE | flags::BY_ADDRESS, 16, 101),
            entry(11, 0, 0, flags::BY_ADDRESS, 32, 101),
            entry(0, 5, 1, 0, 64, 101),
            entry(999, 5, 1, 0, 128, 101),
            entry(0, 0, 0, flags::FOLDED, 256, 101),
        ];
        let drops = attribute(&readings, &snapshot, NODE, &mut DropMemory::default(), Instant::now());
        let wanted = [("web//false", 32), ("web//true", 28), ("web/app/false", 3)];
        assert_eq!(names(&drops), wanted.map(|(name, packets)| (name.to_owned(), packets)));
        assert_eq!((drops.node, drops.pending, drops.unknown), (64, 128, 256));
        assert!(drops.spent.is_empty() && drops.fold.is_empty());
        let all: u64 = readings.iter().map(|(_, count)| count.packets).sum();
        assert_eq!(drops.totals.values().sum::<u64>() + drops.node + drops.pending + drops.unknown, all);
    }

    #[test]
    fn a_namespace_that_was_there_before_the_pod_is_not_the_pods() {
        let snapshot = snapshot(vec![pod("new", 10, "10.88.0.2", 100, true)]);
        let mut memory = DropMemory::default();
        let early = [entry(0, 7, NETNS, 0, 3, 100), entry(0, 8, NETNS, 0, 5, 101)];
        let drops = attribute(&early, &snapshot, NODE, &mut memory, Instant::now());
        assert_eq!((names(&drops), drops.pending), (vec![("new//false".to_owned(), 5)], 3));
        // The owner stays known by an old entry alone, and what comes later is added.
        let later = [entry(0, 7, NETNS, 0, 3, 100), entry(0, 8, NETNS, flags::RECEIVE, 1, 0)];
        let drops = attribute(&later, &snapshot, NODE, &mut memory, Instant::now());
        assert_eq!((names(&drops), drops.pending), (vec![("new//true".to_owned(), 1)], 3));
    }

    #[test]
    fn of_two_pods_that_had_an_inode_the_latter_has_what_came_after_its_start() {
        let of_pods =
            |alive| snapshot(vec![pod("old", 10, "10.88.0.2", 100, alive), pod("new", 20, "10.88.0.3", 200, true)]);
        let readings = [entry(0, 7, NETNS, 0, 3, 150), entry(0, 8, NETNS, 0, 5, 201)];
        let after = of_pods(false);
        let drops = attribute(&readings, &after, NODE, &mut DropMemory::default(), Instant::now());
        assert_eq!((names(&drops), drops.pending), (vec![("new//false".to_owned(), 5)], 3));
        let both = of_pods(true);
        let drops = attribute(&readings, &both, NODE, &mut DropMemory::default(), Instant::now());
        assert_eq!((names(&drops), drops.pending), (Vec::new(), 8));
    }

    #[test]
    fn what_a_gone_pod_had_is_shown_and_spent() {
        let snapshot = snapshot(vec![pod("web", 10, "10.88.0.2", 100, false)]);
        let readings = [entry(11, 7, NETNS, 0, 1, 0), entry(0, 7, NETNS, 0, 2, 150)];
        let drops = attribute(&readings, &snapshot, NODE, &mut DropMemory::default(), Instant::now());
        assert_eq!(drops.totals.values().sum::<u64>(), 3);
        assert_eq!(drops.spent, readings.map(|(key, _)| key));
    }

    /// Scrapes, and does to the entries what the collector does to the map.
    fn scrape(entries: &mut Vec<(DropKey, DropCount)>, snapshot: &Snapshot) -> Vec<(String, u64)> {
        let drops = attribute(entries, snapshot, NODE, &mut DropMemory::default(), Instant::now());
        entries.retain(|(key, _)| !drops.spent.contains(key));
        for (key, heir) in &drops.go_on {
            assert_ne!(heir.flags & flags::TAKEN_OVER, 0, "no program writes it");
            let at = entries.iter().position(|(there, _)| there == key).unwrap();
            let (_, count) = entries.swap_remove(at);
            match entries.iter_mut().find(|(there, _)| there == heir) {
                Some((_, before)) => before.packets += count.packets,
                None => entries.push((*heir, count)),
            }
        }
        names(&drops)
    }

    #[test]
    fn a_pod_that_is_made_again_goes_on() {
        let life = |life: u64, alive| {
            let mut pod = Arc::unwrap_or_clone(pod("web", life * 10, "10.88.0.2", life * 100, alive));
            (pod.key, pod.netns) = (SandboxKey(life.to_string()), Some(life * 10));
            pod.containers[0].namespaces = vec![("net".to_owned(), life * 10)];
            Arc::new(pod)
        };
        let mut entries = Vec::new();
        let wanted = [("web//false", 10), ("web//true", 16), ("web/app/false", 3)];
        let wanted = wanted.map(|(name, packets)| (name.to_owned(), packets));
        for (round, packets) in [(1, 1), (2, 0), (3, 0)] {
            let (cgroup, netns, at) = (round * 10, round as u32 * 10, round * 100 + 1);
            let address = flags::RECEIVE | flags::BY_ADDRESS;
            entries.extend([
                entry(cgroup + 1, round, netns, 0, packets, at),
                entry(cgroup + 1001, round, netns, 0, 2 * packets, at),
                entry(0, round, netns, 0, 2 * packets, at),
                entry(999, round, netns, 0, 8 * packets, at),
                entry(cgroup, 0, 0, address, 16 * packets, at),
            ]);
            assert_eq!(scrape(&mut entries, &snapshot(vec![life(round, true)])), wanted);
            let both = vec![life(round, false), life(round + 1, true)];
            assert_eq!(scrape(&mut entries, &snapshot(both)), wanted);
            assert_eq!(scrape(&mut entries, &snapshot(vec![life(round + 1, true)])), wanted, "not less");
            assert_eq!(entries.len(), 3, "one for each series, however often it is made again");
        }
        let both = vec![life(4, false), pod("other", 90, "10.88.0.9", 500, true)];
        assert_eq!(scrape(&mut entries, &snapshot(both)), wanted);
        assert!(entries.is_empty(), "nobody goes on");
    }

    #[test]
    fn what_a_cgroup_below_a_container_s_had_is_the_container_s_when_it_is_gone() {
        let mut with = Arc::unwrap_or_clone(pod("web", 10, "10.88.0.2", 100, true));
        with.containers[0].gone_cgroup_ids = vec![1011];
        let mut entries = vec![entry(11, 7, NETNS, 0, 1, 101), entry(1011, 7, NETNS, 0, 2, 101)];
        let wanted = [("web/app/false".to_owned(), 3)];
        assert_eq!(scrape(&mut entries, &snapshot(vec![Arc::new(with.clone())])), wanted);
        assert_eq!(entries[1].0.cookie, 7, "the namespace's owner stays known by it");
        with.containers[0].gone_cgroup_ids.clear();
        with.containers[0].nested_cgroup_ids.clear();
        assert_eq!(scrape(&mut entries, &snapshot(vec![Arc::new(with)])), wanted, "it was forgotten");
    }

    #[test]
    fn only_what_stands_still_is_folded() {
        let snapshot = snapshot(Vec::new());
        let mut memory = DropMemory::default();
        let start = Instant::now();
        let mut fold = |packets, after| {
            let readings = [entry(999, 7, NETNS, 0, packets, 0)];
            attribute(&readings, &snapshot, NODE, &mut memory, start + after).fold.len()
        };
        assert_eq!(fold(1, Duration::ZERO), 0);
        assert_eq!(fold(2, PATIENCE), 0, "it moved");
        assert_eq!(fold(2, PATIENCE * 2 - Duration::from_secs(1)), 0);
        assert_eq!(fold(2, PATIENCE * 2), 1);
    }

    #[test]
    fn addresses_of_living_pods_that_only_one_has() {
        let mut shared = Arc::unwrap_or_clone(pod("b", 20, "10.88.0.3", 1, true));
        shared.cgroup_id = 0;
        let twin = pod("c", 30, "10.88.0.4", 1, true);
        let pods = vec![
            pod("a", 10, "fd00:88::2", 1, true),
            Arc::new(shared),
            Arc::clone(&twin),
            pod("d", 40, "10.88.0.4", 1, true),
            pod("e", 50, "10.88.0.5", 1, false),
        ];
        let found = pod_addresses(&snapshot(pods));
        let of = |address: &str| {
            let bytes = match address.parse().unwrap() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            found.get(&bytes).copied()
        };
        assert_eq!((of("fd00:88::2"), of("10.88.0.3")), (Some(10), Some(21)));
        assert_eq!((of("10.88.0.4"), of("10.88.0.5"), found.len()), (None, None, 2));
        let untold = |name, cgroup, address| Sandbox {
            told_addresses: vec![],
            ..Arc::unwrap_or_clone(pod(name, cgroup, address, 1, true))
        };
        let node = "172.17.0.1";
        let pods = [untold("f", 60, "10.88.0.4"), Sandbox::clone(&twin), untold("g", 70, node)];
        let all = Snapshot::new(pods.map(Arc::new).into(), HashSet::from([node.parse().unwrap()]), String::new());
        let told = std::net::Ipv4Addr::new(10, 88, 0, 4);
        assert_eq!(pod_addresses(&all), HashMap::from([(told.to_ipv6_mapped().octets(), 30)]));
        assert_eq!(
            pod_namespaces(&snapshot(vec![twin, pod("e", 50, "", 1, true), pod("f", 60, "::1", 1, false)])),
            [NETNS]
        );
    }
}
