//! The immutable index of sandboxes that one scrape works with.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    hash::FastMap,
    sandbox::{Container, ContainerKind, Sandbox},
};

/// The last moment before the end of time: who lives has its addresses then.
const LATEST: u64 = u64::MAX - 1;

/// Sandboxes at one moment, with the indices that attribution needs. Never changed once made.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Those that are observed, then the others.
    sandboxes: Vec<Arc<Sandbox>>,
    observed: usize,
    by_cgroup: FastMap<u64, (usize, Option<usize>)>,
    by_address: FastMap<IpAddr, usize>,
    /// All who have or had an address, of those that more than one had.
    shared: FastMap<IpAddr, Vec<usize>>,
    node_addresses: HashSet<IpAddr>,
    node_name: String,
    /// False before the first scan.
    scanned: bool,
    number: u64,
}

/// Whom a cgroup belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The sandbox.
    pub sandbox: &'a Arc<Sandbox>,
    /// The container; `None` for the pod's own cgroup and for the pause container.
    pub container: Option<&'a Container>,
}

impl Owner<'_> {
    /// The `container` label: empty for what is the pod's own.
    #[must_use]
    pub fn container_name(&self) -> &str {
        self.container.map_or("", |c| c.name.as_str())
    }
}

impl Snapshot {
    /// A snapshot of sandboxes that are all observed, as in [`Snapshot::with_others`].
    #[must_use]
    pub fn new(sandboxes: Vec<Arc<Sandbox>>, node_addresses: HashSet<IpAddr>, node_name: String) -> Self {
        Self::with_others(sandboxes, Vec::new(), node_addresses, node_name)
    }

    /// Builds the indices. The `others` are not observed: they are named where they are somebody's peer, and nowhere else.
    /// One of them that has attach points may still be observed, when more is known of it. Of two live sandboxes with one
    /// address one whose address was told wins, then one that is observed, then the later one; a gone one never hides a
    /// live one.
    #[must_use]
    pub fn with_others(
        mut sandboxes: Vec<Arc<Sandbox>>,
        mut others: Vec<Arc<Sandbox>>,
        node_addresses: HashSet<IpAddr>,
        node_name: String,
    ) -> Self {
        let observed = sandboxes.len();
        sandboxes.append(&mut others);
        let mut by_cgroup = FastMap::default();
        let mut by_address = FastMap::default();
        let mut shared: FastMap<IpAddr, Vec<usize>> = FastMap::default();
        let rank = |at: usize, of: IpAddr| (sandboxes[at].alive, sandboxes[at].is_told(of), at < observed);
        for (at, sandbox) in sandboxes.iter().enumerate() {
            for id in std::iter::once(sandbox.cgroup_id).chain(sandbox.other_cgroup_ids.iter().copied()) {
                if id != 0 {
                    by_cgroup.insert(id, (at, None));
                }
            }
            for (index, container) in sandbox.containers.iter().enumerate() {
                let container_at = match container.kind {
                    ContainerKind::Pause => None,
                    ContainerKind::Application => Some(index),
                };
                for id in std::iter::once(container.cgroup_id).chain(container.nested_cgroup_ids.iter().copied()) {
                    if id != 0 {
                        by_cgroup.insert(id, (at, container_at));
                    }
                }
            }
            if !sandbox.host_network {
                for address in &sandbox.addresses {
                    if let Some(before) = by_address.get(address) {
                        shared.entry(*address).or_insert_with(|| vec![*before]).push(at);
                    }
                    if by_address.get(address).is_none_or(|before| rank(at, *address) >= rank(*before, *address)) {
                        by_address.insert(*address, at);
                    }
                }
            }
        }
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Relaxed);
        Self { sandboxes, observed, by_cgroup, by_address, shared, node_addresses, node_name, scanned: true, number }
    }

    /// The id of the cgroup at this path, if the sandbox that it belongs to ends with it: its own, that of its pause
    /// container, or of its only living one.
    #[must_use]
    pub fn ends_with(&self, path: &str) -> Option<u64> {
        let living = |container: &&Container| container.alive && container.cgroup_id != 0;
        self.sandboxes.iter().filter(|sandbox| sandbox.alive).find_map(|sandbox| {
            if sandbox.cgroup.as_deref() == Some(path) && sandbox.cgroup_id != 0 {
                return Some(sandbox.cgroup_id);
            }
            let gone = sandbox.containers.iter().filter(living).find(|container| container.cgroup == path)?;
            let last = gone.kind == ContainerKind::Pause || sandbox.containers.iter().filter(living).count() == 1;
            last.then_some(gone.cgroup_id)
        })
    }

    /// The same snapshot, of which it is known that sandboxes have ended with these cgroups, and when (nanoseconds of
    /// `CLOCK_MONOTONIC`). Forgets those that nothing follows from any more: the sandbox is not listed, or lives on.
    #[must_use]
    pub fn with_ends(&self, ends: &mut HashMap<u64, u64>) -> Self {
        let mut ended = HashMap::new();
        for (at, sandbox) in self.sandboxes.iter().enumerate() {
            let mut own = sandbox.containers.iter().filter(|container| container.alive || !sandbox.alive);
            let by_container =
                own.by_ref().filter_map(|container| Some((container.cgroup_id, *ends.get(&container.cgroup_id)?)));
            let by_pod = ends.get(&sandbox.cgroup_id).map(|until| (sandbox.cgroup_id, *until));
            for (cgroup, until) in by_container.chain(by_pod) {
                ended.insert(cgroup, (at, until));
            }
        }
        ends.retain(|cgroup, _| ended.contains_key(cgroup));
        let mut sandboxes = self.sandboxes.clone();
        for (at, until) in ended.into_values() {
            let sandbox = Arc::make_mut(&mut sandboxes[at]);
            sandbox.until = sandbox.until.min(until);
        }
        let others = sandboxes.split_off(self.observed);
        let number = self.number;
        Self { number, ..Self::with_others(sandboxes, others, self.node_addresses.clone(), self.node_name.clone()) }
    }

    /// Tells snapshots apart: no two of this process have the same number, but for the one before the first scan (0).
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// False for the one that stands there before the first scan: it says nothing of what has gone.
    #[must_use]
    pub const fn is_scanned(&self) -> bool {
        self.scanned
    }

    /// All sandboxes that are observed, those included that are gone but not yet scraped for the last time.
    #[must_use]
    pub fn sandboxes(&self) -> &[Arc<Sandbox>] {
        &self.sandboxes[..self.observed]
    }

    /// Sandboxes that are not observed, or not yet.
    #[must_use]
    pub fn others(&self) -> &[Arc<Sandbox>] {
        &self.sandboxes[self.observed..]
    }

    /// Whom the cgroup with this v2 id belongs to; `None` when nobody knows, and when it is not observed.
    #[must_use]
    pub fn by_cgroup(&self, id: u64) -> Option<Owner<'_>> {
        let (at, _) = *self.by_cgroup.get(&id)?;
        self.peer_by_cgroup(id).filter(|_| at < self.observed)
    }

    /// All cgroups that are shown as this one is, the one that stands for them first: a container's own and those below it,
    /// or the pod's and those in it that are no container's. This one alone when nobody knows it.
    #[must_use]
    pub fn kin(&self, id: u64) -> Vec<u64> {
        let Some(owner) = self.by_cgroup(id) else { return vec![id] };
        let of = |container: &Container| {
            let nested = container.nested_cgroup_ids.iter().copied();
            std::iter::once(container.cgroup_id).chain(nested).collect::<Vec<_>>()
        };
        let mut all = match owner.container {
            Some(container) => of(container),
            None => {
                let pause = owner.sandbox.containers.iter().filter(|inside| inside.kind == ContainerKind::Pause);
                let own =
                    std::iter::once(owner.sandbox.cgroup_id).chain(owner.sandbox.other_cgroup_ids.iter().copied());
                own.chain(pause.flat_map(of)).collect()
            }
        };
        all.retain(|id| *id != 0);
        all
    }

    /// True for a cgroup of a sandbox that is not to be observed.
    #[must_use]
    pub fn is_left_out(&self, id: u64) -> bool {
        let Some((at, _)) = self.by_cgroup.get(&id) else { return false };
        *at >= self.observed && self.sandboxes[*at].attach_points.is_empty()
    }

    /// Whom the cgroup with this v2 id belongs to, observed or not.
    #[must_use]
    pub fn peer_by_cgroup(&self, id: u64) -> Option<Owner<'_>> {
        let (at, container) = *self.by_cgroup.get(&id)?;
        let sandbox = &self.sandboxes[at];
        Some(Owner { sandbox, container: container.map(|index| &sandbox.containers[index]) })
    }

    /// The pod (never one on the host network) that has this address, or had it last.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&Arc<Sandbox>> {
        let owner = &self.sandboxes[*self.by_address.get(&address)?];
        self.holds(owner, address, LATEST).then_some(owner)
    }

    /// The pod (never one on the host network) that had this address at a moment, in nanoseconds of `CLOCK_MONOTONIC`.
    /// Of several one whose address was told wins, then one that is observed, then the one that came last. An address
    /// that nobody told is the node's if the node has it too, and nobody's if it [is disputed](Self::is_disputed).
    #[must_use]
    pub fn owner_at(&self, address: IpAddr, at: u64) -> Option<&Arc<Sandbox>> {
        let had = |index: &&usize| (self.sandboxes[**index].since..self.sandboxes[**index].until).contains(&at);
        let rank = |index: &&usize| {
            let sandbox = &self.sandboxes[**index];
            (sandbox.is_told(address), **index < self.observed, sandbox.since, **index)
        };
        let owner = match self.shared.get(&address) {
            Some(all) => all.iter().filter(had).max_by_key(rank),
            None => self.by_address.get(&address).filter(had),
        };
        owner.map(|index| &self.sandboxes[*index]).filter(|owner| self.holds(owner, address, at))
    }

    /// Whether an address that this sandbox had at a moment is its own for its peers too.
    fn holds(&self, owner: &Sandbox, address: IpAddr, at: u64) -> bool {
        owner.is_told(address) || !(self.is_node_address(address) || self.is_disputed(address, at))
    }

    /// True when nobody told whose this address is, and at a moment (nanoseconds of `CLOCK_MONOTONIC`) several pods had it
    /// that live still, each in a network namespace of its own: a packet for it may have been for any of them, or for
    /// none.
    #[must_use]
    pub fn is_disputed(&self, address: IpAddr, at: u64) -> bool {
        let all = self.shared.get(&address).map(Vec::as_slice).unwrap_or_default();
        let sandboxes = all.iter().map(|index| &self.sandboxes[*index]);
        let living: Vec<_> = sandboxes.filter(|one| one.alive && one.until == u64::MAX && one.since <= at).collect();
        let mut namespaces = living.iter().filter_map(|sandbox| sandbox.netns);
        let first = namespaces.next();
        !living.iter().any(|sandbox| sandbox.is_told(address)) && namespaces.any(|other| Some(other) != first)
    }

    /// True for an address of the node itself.
    #[must_use]
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.node_addresses.contains(&address)
    }

    /// The node's name, or empty.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resources::testing, sandbox::SandboxKey};

    const ADDRESS: [u8; 4] = [10, 88, 0, 5];

    fn pod(life: u64, times: (u64, u64)) -> Sandbox {
        let mut containers = [("pause", 1), ("app", 2)].map(|(name, number)| {
            let mut container = testing::container(name, &format!("/pod{life}/{name}"));
            (container.cgroup_id, container.alive) = (life * 10 + number, times.1 == u64::MAX);
            container
        });
        containers[0].kind = ContainerKind::Pause;
        Sandbox {
            key: SandboxKey(life.to_string()),
            cgroup: Some(format!("/pod{life}")),
            cgroup_id: life * 10,
            addresses: vec![ADDRESS.into()],
            alive: times.1 == u64::MAX,
            since: times.0,
            until: times.1,
            ..testing::sandbox("again", containers.into())
        }
    }

    fn snapshot(pods: Vec<Sandbox>) -> Snapshot {
        Snapshot::new(pods.into_iter().map(Arc::new).collect(), HashSet::new(), String::new())
    }

    fn owners(snapshot: &Snapshot, moments: [u64; 5]) -> [Option<&str>; 5] {
        moments.map(|at| snapshot.owner_at(ADDRESS.into(), at).map(|sandbox| sandbox.key.0.as_str()))
    }

    #[test]
    fn an_address_belongs_to_whom_it_belonged_then() {
        let moments = [9, 10, 19, 20, 30];
        let one = snapshot(vec![pod(1, (10, 20))]);
        assert_eq!(owners(&one, moments), [None, Some("1"), Some("1"), None, None]);
        let two = snapshot(vec![pod(1, (10, 20)), pod(2, (25, u64::MAX))]);
        assert_eq!(owners(&two, moments), [None, Some("1"), Some("1"), None, Some("2")]);
        let both = snapshot(vec![pod(2, (20, u64::MAX)), pod(1, (10, u64::MAX))]);
        assert_eq!(owners(&both, moments), [None, Some("1"), Some("1"), Some("2"), Some("2")], "the last to come");
        assert!(two.number() < both.number());
    }

    #[test]
    fn cgroups_are_kin_that_are_shown_as_one() {
        let of = |kind, cgroup_id, nested: &[u64]| Container {
            kind,
            cgroup_id,
            nested_cgroup_ids: nested.to_vec(),
            ..testing::container("c", "")
        };
        let containers = vec![of(ContainerKind::Application, 11, &[12, 13]), of(ContainerKind::Pause, 20, &[21])];
        let snapshot = testing::snapshot_of(vec![Sandbox {
            cgroup_id: 10,
            other_cgroup_ids: vec![14],
            ..testing::sandbox("web", containers)
        }]);
        for (ids, kin) in [(vec![11, 12, 13], vec![11, 12, 13]), (vec![10, 14, 20, 21], vec![10, 14, 20, 21])] {
            ids.into_iter().for_each(|id| assert_eq!(snapshot.kin(id), kin));
        }
        assert_eq!(snapshot.kin(99), [99], "nobody knows it");
    }

    #[test]
    fn an_address_that_was_told_is_no_others() {
        let in_netns = |life: u64, times, netns| Sandbox { netns: Some(netns), ..pod(life, times) };
        let told = Sandbox { told_addresses: vec![ADDRESS.into()], ..in_netns(1, (10, u64::MAX), 1) };
        let elsewhere = Sandbox { told_addresses: vec![[10, 0, 0, 9].into()], ..in_netns(2, (12, u64::MAX), 2) };
        let untold = in_netns(3, (14, u64::MAX), 3);
        let all = snapshot(vec![told, elsewhere.clone(), untold.clone()]);
        assert_eq!(owners(&all, [9, 10, 13, 14, 30]), [None, Some("1"), Some("1"), Some("1"), Some("1")]);
        assert!(all.by_address(ADDRESS.into()).is_some_and(|pod| pod.key.0 == "1"));
        assert!(!all.is_disputed(ADDRESS.into(), 30));
        // A second network, which nobody tells of.
        let second = snapshot(vec![elsewhere.clone()]);
        assert_eq!(owners(&second, [12; 5]), [Some("2"); 5]);
        let two = snapshot(vec![elsewhere, untold.clone()]);
        assert_eq!(owners(&two, [13, 14, 14, 15, 30]), [Some("2"), None, None, None, None]);
        let node = |pod| Snapshot::new(vec![Arc::new(pod)], HashSet::from([ADDRESS.into()]), String::new());
        assert_eq!(owners(&node(untold.clone()), [14; 5]), [None; 5], "the node has it");
        assert!(node(untold.clone()).by_address(ADDRESS.into()).is_none());
        let told = Sandbox { told_addresses: vec![ADDRESS.into()], ..untold };
        assert_eq!(owners(&node(told), [14; 5]), [Some("3"); 5]);
    }

    #[test]
    fn an_address_that_several_live_with_is_nobodys_unless_they_share_the_namespace() {
        let in_netns = |life: u64, times, netns| Sandbox { netns, ..pod(life, times) };
        let moments = [9, 10, 19, 20, 30];
        let (one, later) = (in_netns(1, (10, u64::MAX), Some(1)), |netns| in_netns(2, (20, u64::MAX), netns));
        let two = snapshot(vec![one.clone(), later(Some(2))]);
        assert_eq!(owners(&two, moments), [None, Some("1"), Some("1"), None, None]);
        assert!(two.is_disputed(ADDRESS.into(), 20) && !two.is_disputed(ADDRESS.into(), 19));
        assert!(two.by_address(ADDRESS.into()).is_none());
        for joined in [Some(1), None] {
            let same = snapshot(vec![one.clone(), later(joined)]);
            assert_eq!(owners(&same, moments), [None, Some("1"), Some("1"), Some("2"), Some("2")], "{joined:?}");
        }
        // It moved: the old one is gone, or known to have ended.
        let gone = snapshot(vec![in_netns(1, (10, 25), Some(1)), later(Some(2))]);
        assert_eq!(owners(&gone, moments), [None, Some("1"), Some("1"), Some("2"), Some("2")]);
        let ended = two.with_ends(&mut HashMap::from([(11, 25)]));
        assert_eq!(owners(&ended, moments), [None, Some("1"), Some("1"), Some("2"), Some("2")]);
        assert!(ended.by_address(ADDRESS.into()).is_some());
    }

    #[test]
    fn a_sandbox_ends_with_its_pause_container_its_last_one_or_its_own_cgroup() {
        let mut pods = vec![pod(1, (10, u64::MAX)), pod(2, (10, 20))];
        let two = snapshot(pods.clone());
        let ends = ["/pod1/pause", "/pod1", "/pod1/app", "/pod2/pause", "/pod3"].map(|path| two.ends_with(path));
        assert_eq!(ends, [Some(11), Some(10), None, None, None]);
        pods[0].containers[0].alive = false;
        assert_eq!(snapshot(pods).ends_with("/pod1/app"), Some(12), "its last one");
    }

    #[test]
    fn an_end_that_is_known_holds_until_the_sandbox_lives_again() {
        let moments = [10, 14, 15, 19, 20];
        let mut ends = HashMap::from([(11, 15), (777, 3)]);
        let ended = snapshot(vec![pod(1, (10, u64::MAX))]).with_ends(&mut ends);
        assert_eq!(owners(&ended, moments), [Some("1"), Some("1"), None, None, None]);
        assert_eq!(ends, HashMap::from([(11, 15)]), "nobody has the other cgroup");
        let gone = snapshot(vec![pod(1, (10, 20))]).with_ends(&mut ends);
        assert_eq!(owners(&gone, moments), [Some("1"), Some("1"), None, None, None], "the scan saw it later");
        let mut again = pod(1, (10, u64::MAX));
        again.containers[0].alive = false;
        let again = snapshot(vec![again]).with_ends(&mut ends);
        assert_eq!((owners(&again, moments)[4], ends.len()), (Some("1"), 0), "another pause container");
    }
}
