//! From objects of the API to who has which address. Pure.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{PeerRecord, PodRanges};
use crate::hash::{FastMap, FastSet};

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
    /// A Node.
    Node,
    /// A Pod.
    Pod,
}

/// How good a claim to an address is: the highest wins. A node's address may be a Service's, too, as its load balancer's or
/// as one of its endpoints: then much more than this Service is behind it, so that it is the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// An endpoint of a Service that is no pod.
    Endpoint,
    /// An address that a Service may share with others: external ones, and those of load balancers.
    Shared,
    /// A node's.
    Node,
    /// A Service's own.
    ClusterIp,
    /// A live pod's.
    Pod,
}

/// What an object claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// When it was made, as a number with the order of time. Of two claims of one rank the later object's wins.
    pub created: u64,
    /// The addresses, each once.
    pub addresses: Vec<(IpAddr, Rank)>,
    /// Who it is.
    pub record: PeerRecord,
    /// The ranges that it gives addresses to pods from.
    pub ranges: Vec<IpNet>,
}

/// All objects that claim addresses. What was told in which order makes no difference.
#[derive(Debug)]
pub struct Cluster {
    kinds: [Objects; 4],
    claims: FastMap<IpAddr, Vec<Claim>>,
    /// Ranges for pods, by object: of few kinds.
    ranges: FastMap<Arc<str>, Box<[IpNet]>>,
    /// They were told as they are.
    ranges_told: bool,
    /// Claims, and how many there may be.
    used: usize,
    most: usize,
    folded: u64,
}

#[derive(Debug, Default)]
struct Objects {
    by_uid: FastMap<Arc<str>, Object>,
    /// Addresses whose claims have changed.
    touched: FastSet<IpAddr>,
    /// Which list is being read.
    list: u64,
}

#[derive(Debug)]
struct Object {
    created: u64,
    addresses: Box<[(IpAddr, Rank)]>,
    record: Arc<PeerRecord>,
    /// The list that it was seen in or after.
    list: u64,
}

#[derive(Debug)]
struct Claim {
    rank: Rank,
    created: u64,
    uid: Arc<str>,
    record: Arc<PeerRecord>,
}

impl Cluster {
    /// One that keeps at most so many claims.
    pub fn with_room_for(most: usize) -> Self {
        Self {
            kinds: Default::default(),
            claims: FastMap::default(),
            ranges: FastMap::default(),
            ranges_told: true,
            used: 0,
            most,
            folded: 0,
        }
    }

    /// A list of all objects of a kind begins.
    pub fn list_begins(&mut self, kind: Kind) {
        self.kinds[kind as usize].list += 1;
    }

    /// The list has ended: what was not in it, and not told of since it began, is gone.
    pub fn list_ends(&mut self, kind: Kind) {
        let objects = &self.kinds[kind as usize];
        let gone = objects.by_uid.iter().filter(|(_, object)| object.list < objects.list);
        let gone: Vec<Arc<str>> = gone.map(|(uid, _)| Arc::clone(uid)).collect();
        gone.iter().for_each(|uid| self.remove(kind, uid));
    }

    /// An object is so now.
    pub fn put(&mut self, kind: Kind, uid: &str, claims: Claims) {
        let list = self.kinds[kind as usize].list;
        if let Some(object) = self.kinds[kind as usize].by_uid.get_mut(uid) {
            let same = object.created == claims.created
                && *object.addresses == *claims.addresses
                && *object.record == claims.record
                && self.ranges.get(uid).map_or(&[][..], |ranges| ranges) == claims.ranges;
            if same {
                object.list = list;
                return;
            }
        }
        self.remove(kind, uid);
        let Claims { created, addresses, record, ranges } = claims;
        if addresses.is_empty() && ranges.is_empty() || uid.is_empty() {
            return;
        }
        if self.used + addresses.len() > self.most {
            self.folded += addresses.len() as u64;
            return;
        }
        self.used += addresses.len();
        let (uid, record): (Arc<str>, _) = (uid.into(), Arc::new(record));
        for (address, rank) in &addresses {
            let claim = Claim { rank: *rank, created, uid: Arc::clone(&uid), record: Arc::clone(&record) };
            let claims = self.claims.entry(*address).or_insert_with(|| Vec::with_capacity(1));
            claims.push(claim);
            self.kinds[kind as usize].touched.insert(*address);
        }
        if !ranges.is_empty() {
            self.ranges.insert(Arc::clone(&uid), ranges.into());
            self.ranges_told = false;
        }
        let object = Object { created, addresses: addresses.into(), record, list };
        self.kinds[kind as usize].by_uid.insert(uid, object);
    }

    /// An object is gone.
    pub fn remove(&mut self, kind: Kind, uid: &str) {
        let Some(object) = self.kinds[kind as usize].by_uid.remove(uid) else { return };
        self.used -= object.addresses.len();
        self.ranges_told &= self.ranges.remove(uid).is_none();
        for (address, _) in &object.addresses {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.retain(|claim| *claim.uid != *uid);
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
            self.kinds[kind as usize].touched.insert(*address);
        }
    }

    /// An object is in the list, as it was before for all that is known.
    pub fn keep(&mut self, kind: Kind, uid: &str) {
        let objects = &mut self.kinds[kind as usize];
        if let Some(object) = objects.by_uid.get_mut(uid) {
            object.list = objects.list;
        }
    }

    /// Objects of a kind that have addresses.
    pub fn count(&self, kind: Kind) -> usize {
        self.kinds[kind as usize].by_uid.len()
    }

    /// Who has the address now.
    pub fn who(&self, address: IpAddr) -> Option<&Arc<PeerRecord>> {
        let claims = self.claims.get(&address)?;
        claims.iter().max_by_key(|claim| (claim.rank, claim.created, &claim.uid)).map(|claim| &claim.record)
    }

    /// Addresses whose claims by objects of this kind have changed since this was asked last, with who has them now.
    pub fn changes(&mut self, kind: Kind) -> Vec<(IpAddr, Option<Arc<PeerRecord>>)> {
        let touched = std::mem::take(&mut self.kinds[kind as usize].touched);
        touched.into_iter().map(|address| (address, self.who(address).cloned())).collect()
    }

    /// All ranges that pods get addresses from; `None` when they are those that were told last.
    pub fn new_ranges(&mut self) -> Option<PodRanges> {
        let told = std::mem::replace(&mut self.ranges_told, true);
        (!told).then(|| PodRanges::of(self.ranges.values().flatten().copied()))
    }

    /// Claims that found no place since this was asked last.
    pub fn take_folded(&mut self) -> u64 {
        std::mem::take(&mut self.folded)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::Pod];

    fn address(at: u8) -> IpAddr {
        [10, 0, 0, at].into()
    }

    fn claims(name: &str, created: u64, addresses: &[(u8, Rank)]) -> Claims {
        let addresses = addresses.iter().map(|(at, rank)| (address(*at), *rank)).collect();
        Claims { created, addresses, record: PeerRecord::Node { name: name.into() }, ranges: Vec::new() }
    }

    #[test]
    fn ranges_are_told_when_they_have_changed() {
        let mut cluster = Cluster::with_room_for(2);
        assert!(cluster.new_ranges().is_none());
        let node =
            |addresses, range: &str| Claims { ranges: vec![range.parse().unwrap()], ..claims("node", 1, addresses) };
        let of = |ranges: &[&str]| Some(PodRanges::of(ranges.iter().map(|range| range.parse().unwrap())));
        cluster.put(Kind::Node, "a", node(&[(1, Rank::Node)], "10.1.0.0/24"));
        cluster.put(Kind::Node, "b", node(&[], "10.2.0.0/24"));
        assert_eq!(cluster.new_ranges(), of(&["10.1.0.0/24", "10.2.0.0/24"]));
        cluster.put(Kind::Node, "b", node(&[], "10.2.0.0/24"));
        cluster.put(Kind::Pod, "p", claims("pod", 1, &[(2, Rank::Pod)]));
        cluster.remove(Kind::Pod, "p");
        assert!(cluster.new_ranges().is_none(), "nothing has changed");
        cluster.put(Kind::Node, "b", node(&[], "10.3.0.0/24"));
        assert_eq!(cluster.new_ranges(), of(&["10.1.0.0/24", "10.3.0.0/24"]));
        cluster.list_begins(Kind::Node);
        cluster.keep(Kind::Node, "a");
        cluster.list_ends(Kind::Node);
        assert_eq!(cluster.new_ranges(), of(&["10.1.0.0/24"]), "a node without addresses goes like any other");
    }

    fn name(cluster: &Cluster, at: u8) -> &str {
        match cluster.who(address(at)).map(|record| &**record) {
            Some(PeerRecord::Node { name }) => name,
            _ => "",
        }
    }

    #[test]
    fn the_best_claim_wins_and_the_next_one_follows() {
        let mut cluster = Cluster::with_room_for(100);
        cluster.put(Kind::Node, "n", claims("node", 9, &[(1, Rank::Node)]));
        cluster.put(Kind::Service, "s", claims("service", 9, &[(1, Rank::ClusterIp), (2, Rank::Shared)]));
        cluster.put(Kind::Pod, "old", claims("old", 1, &[(1, Rank::Pod)]));
        cluster.put(Kind::Pod, "new", claims("new", 2, &[(1, Rank::Pod)]));
        cluster.put(Kind::Pod, "old", claims("old, changed", 1, &[(1, Rank::Pod)]));
        assert_eq!(name(&cluster, 1), "new", "what is later was made later, not told later");
        cluster.put(Kind::Node, "m", claims("other node", 1, &[(2, Rank::Node)]));
        assert_eq!(name(&cluster, 2), "other node", "more is behind it than the Service");
        for (kind, uid, next) in [
            (Kind::Pod, "new", "old, changed"),
            (Kind::Pod, "old", "service"),
            (Kind::Service, "s", "node"),
            (Kind::Node, "n", ""),
        ] {
            cluster.remove(kind, uid);
            assert_eq!(name(&cluster, 1), next);
        }
        assert_eq!((cluster.used, cluster.count(Kind::Node)), (1, 1));
    }

    #[test]
    fn changes_are_told_once() {
        let mut cluster = Cluster::with_room_for(100);
        cluster.put(Kind::Pod, "a", claims("a", 1, &[(1, Rank::Pod), (2, Rank::Pod)]));
        assert_eq!(cluster.changes(Kind::Pod).len(), 2);
        assert_eq!(cluster.changes(Kind::Node), []);
        cluster.put(Kind::Pod, "a", claims("a", 1, &[(1, Rank::Pod), (2, Rank::Pod)]));
        assert_eq!(cluster.changes(Kind::Pod), []);
        cluster.put(Kind::Pod, "a", claims("a", 1, &[]));
        let mut changes = cluster.changes(Kind::Pod);
        changes.sort_by_key(|(address, _)| *address);
        assert_eq!(changes, [(address(1), None), (address(2), None)]);
        assert_eq!(cluster.count(Kind::Pod), 0);
    }

    #[test]
    fn what_finds_no_place_is_counted() {
        let mut cluster = Cluster::with_room_for(3);
        cluster.put(Kind::Pod, "a", claims("a", 1, &[(1, Rank::Pod), (2, Rank::Pod)]));
        cluster.put(Kind::Pod, "b", claims("b", 1, &[(3, Rank::Pod), (4, Rank::Pod)]));
        assert_eq!((cluster.take_folded(), cluster.take_folded(), name(&cluster, 3)), (2, 0, ""));
        cluster.put(Kind::Pod, "a", claims("changed", 1, &[(1, Rank::Pod), (2, Rank::Pod)]));
        assert_eq!((cluster.take_folded(), name(&cluster, 1)), (0, "changed"));
        cluster.remove(Kind::Pod, "a");
        cluster.put(Kind::Pod, "b", claims("b", 1, &[(3, Rank::Pod), (4, Rank::Pod)]));
        assert_eq!(name(&cluster, 3), "b");
    }

    /// When an object was made, and the numbers of the addresses that it claims, with those of the claims' ranks.
    type Claimed = (u64, Vec<(u8, u8)>);
    type Told = (usize, u8, Option<Claimed>);

    /// A kind, an object's number, and what it claims; `None` when it is deleted.
    fn told() -> impl Strategy<Value = Told> {
        let addresses = proptest::collection::btree_map(0..6u8, 0..5u8, 0..3);
        let claims = proptest::option::weighted(0.7, (0..3u64, addresses.prop_map(|map| map.into_iter().collect())));
        (0..4usize, 0..4u8, claims)
    }

    fn made(kind: usize, number: u8, (created, addresses): &Claimed) -> Claims {
        let ranks = [Rank::Endpoint, Rank::Shared, Rank::Node, Rank::ClusterIp, Rank::Pod];
        let addresses: Vec<_> = addresses.iter().map(|(at, rank)| (*at, ranks[*rank as usize])).collect();
        claims(&format!("{kind}-{number}-{created}-{addresses:?}"), *created, &addresses)
    }

    proptest! {
        /// Any order of what happens ends with what the last list says, with and without lists in between.
        #[test]
        fn the_end_is_that_of_the_last_list(events in proptest::collection::vec(told(), 0..60), relist in 0..60usize) {
            let mut watched = Cluster::with_room_for(1000);
            let mut followed: BTreeMap<IpAddr, Option<Arc<PeerRecord>>> = BTreeMap::new();
            let mut truth: BTreeMap<(usize, u8), Claimed> = BTreeMap::new();
            for (at, (kind, number, change)) in events.iter().enumerate() {
                let uid = format!("{kind}-{number}");
                match change {
                    Some(change) => drop(truth.insert((*kind, *number), change.clone())),
                    None => drop(truth.remove(&(*kind, *number))),
                }
                if at < relist {
                    match change {
                        Some(change) => watched.put(KINDS[*kind], &uid, made(*kind, *number, change)),
                        None => watched.remove(KINDS[*kind], &uid),
                    }
                }
                if at % 3 == 0 {
                    followed.extend(KINDS.iter().flat_map(|kind| watched.changes(*kind)));
                }
            }
            // What happened after `relist` was missed: lists tell.
            for (kind, name) in KINDS.iter().enumerate() {
                watched.list_begins(*name);
                for ((_, number), change) in truth.iter().filter(|((of, _), _)| *of == kind) {
                    watched.put(*name, &format!("{kind}-{number}"), made(kind, *number, change));
                }
                watched.list_ends(*name);
            }
            followed.extend(KINDS.iter().flat_map(|kind| watched.changes(*kind)));
            let mut listed = Cluster::with_room_for(1000);
            for ((kind, number), change) in truth.iter().rev() {
                listed.put(KINDS[*kind], &format!("{kind}-{number}"), made(*kind, *number, change));
            }
            for at in 0..6 {
                prop_assert_eq!(watched.who(address(at)), listed.who(address(at)));
                prop_assert_eq!(followed.get(&address(at)).and_then(Option::as_ref), listed.who(address(at)));
            }
            prop_assert_eq!(watched.used, listed.used);
            prop_assert_eq!(watched.claims.len(), listed.claims.len());
        }
    }
}
