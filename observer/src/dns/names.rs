//! Which name a container asked for before it called an address.
//!
//! Names are learnt by cgroup, because it may not be known yet whose a cgroup is, and looked for in all cgroups of a container:
//! what asks a resolver and what calls the address may be in different ones below it. What was decided is kept by the cgroup of
//! the edge, so that an agent that comes after another finds it without knowing the container.
//!
//! A series must not go back, so the name of a container's peer is decided once, when its first series is shown, and
//! kept as long as the container has that peer. What an address was called later makes no difference.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use observer_common::dns::PeerKey;

use crate::identity::Snapshot;

/// Addresses of which a container's last names are remembered.
const MAX_LEARNT: usize = 512;

/// How many different names series may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// On this node.
    pub node: usize,
    /// For one container.
    pub container: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { node: 500, container: 50 }
    }
}

/// What the budget came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameUse {
    /// Different names that series carry.
    pub used: u64,
    /// Peers that were left without their name because the budget was used up.
    pub folded: u64,
    /// Addresses whose name was forgotten because their container was told of too many others.
    pub forgotten: u64,
}

#[derive(Debug)]
struct Learnt {
    name: Arc<str>,
    at: u64,
}

#[derive(Debug)]
struct Given {
    name: Arc<str>,
    /// The last scrape that had the peer.
    seen: u64,
}

/// What changes in what is kept for the next agent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New names.
    pub given: Vec<PeerKey>,
    /// Names whose peer no container has any more.
    pub gone: Vec<PeerKey>,
}

/// Names that were asked for, and those that series carry.
#[derive(Debug)]
pub struct Names {
    learnt: HashMap<u64, HashMap<IpAddr, Learnt>>,
    given: HashMap<PeerKey, Given>,
    budget: Budget,
    folded: u64,
    forgotten: u64,
    scrape: u64,
}

impl Names {
    /// With the names that an earlier agent has `kept`. Peers `before` the start are without a name unless it was kept:
    /// they may have been shown so.
    #[must_use]
    pub fn new(
        kept: impl IntoIterator<Item = (PeerKey, String)>,
        before: impl IntoIterator<Item = PeerKey>,
        budget: Budget,
    ) -> Self {
        let give = |name: &str| Given { name: name.into(), seen: 0 };
        let mut given: HashMap<_, _> = before.into_iter().map(|key| (key, give(""))).collect();
        given.extend(kept.into_iter().map(|(key, name)| (key, give(&name))));
        Self { learnt: HashMap::new(), given, budget, folded: 0, forgotten: 0, scrape: 0 }
    }

    /// A cgroup asked for a name and was given these addresses.
    pub fn learn(&mut self, cgroup: u64, name: &str, addresses: &[IpAddr], at: u64) {
        if name.is_empty() || self.budget.node == 0 || addresses.is_empty() {
            return;
        }
        let name: Arc<str> = name.into();
        let learnt = self.learnt.entry(cgroup).or_default();
        for address in addresses {
            self.forgotten += remember(learnt, *address, Learnt { name: Arc::clone(&name), at });
        }
    }

    /// What was learnt for a cgroup inside a container that is gone is the container's from now on.
    pub fn hand_over(&mut self, from: u64, to: u64) {
        let Some(learnt) = self.learnt.remove(&from) else { return };
        let heir = self.learnt.entry(to).or_default();
        self.forgotten += learnt.into_iter().map(|(address, learnt)| remember(heir, address, learnt)).sum::<u64>();
    }

    /// The name that a cgroup last asked for and was given this address.
    #[must_use]
    pub fn learnt(&self, cgroup: u64, address: IpAddr) -> Option<&str> {
        Some(&self.learnt.get(&cgroup)?.get(&address)?.name)
    }

    /// Decides for those of these peers that are new. Called once for each scrape, with all peers that there are: with
    /// the address of each that may have a name now.
    pub fn settle(
        &mut self,
        peers: impl IntoIterator<Item = (PeerKey, Option<IpAddr>)>,
        snapshot: &Snapshot,
    ) -> Changes {
        self.scrape += 1;
        let mut changes = Changes::default();
        let mut used: Option<Used> = None;
        let kin = Kin { snapshot, known: RefCell::default() };
        for (key, address) in peers {
            if let Some(given) = self.given.get_mut(&key) {
                given.seen = given.seen.max(self.scrape);
                continue;
            }
            let Some(address) = address else { continue };
            let all = kin.of(key.cgroup);
            let learnt = all.iter().filter_map(|cgroup| self.learnt.get(cgroup)?.get(&address));
            let mut name: Arc<str> = "".into();
            if let Some(learnt) = learnt.max_by_key(|learnt| learnt.at) {
                let used = used.get_or_insert_with(|| Used::of(&self.given, |cgroup| kin.first(cgroup)));
                if used.take(kin.first(key.cgroup), &learnt.name, self.budget) {
                    name = Arc::clone(&learnt.name);
                    changes.given.push(key);
                } else {
                    self.folded += 1;
                }
            }
            self.given.insert(key, Given { name, seen: self.scrape });
        }
        self.given.retain(|key, given| {
            let stays = given.seen >= self.scrape;
            if !stays && !given.name.is_empty() {
                changes.gone.push(*key);
            }
            stays
        });
        changes
    }

    /// A container goes on with a peer of another cgroup, under the name that was decided for that one. Nothing changes
    /// when it has the peer already.
    pub fn inherit(&mut self, from: &PeerKey, cgroup: u64) -> Changes {
        /// The peer is the container's after this scrape; until it is read as such, nobody has it.
        const PATIENCE: u64 = 10;
        let mut changes = Changes::default();
        let key = PeerKey { cgroup, ..*from };
        if let Some(Given { name, .. }) = self.given.get(from)
            && !self.given.contains_key(&key)
        {
            let name = Arc::clone(name);
            if !name.is_empty() {
                changes.given.push(key);
            }
            self.given.insert(key, Given { name, seen: self.scrape + PATIENCE });
        }
        changes
    }

    /// A name could not be kept for the next agent: no series may carry it.
    pub fn revoke(&mut self, key: &PeerKey) {
        if let Some(given) = self.given.get_mut(key) {
            given.name = "".into();
            self.folded += 1;
        }
    }

    /// The name of a container's peer, or empty.
    #[must_use]
    pub fn of(&self, key: &PeerKey) -> &str {
        self.given.get(key).map_or("", |given| &given.name)
    }

    /// What was decided for a container's peer; `None` when nothing was.
    #[must_use]
    pub fn decided(&self, key: &PeerKey) -> Option<&str> {
        self.given.get(key).map(|given| &*given.name)
    }

    /// A container is gone: what it asked for is of no use any more. Names in series stay as long as they are shown.
    pub fn forget(&mut self, cgroup: u64) {
        self.learnt.remove(&cgroup);
    }

    /// What the budget came to.
    #[must_use]
    pub fn usage(&self) -> NameUse {
        let used = Used::of(&self.given, |cgroup| cgroup).node.len() as u64;
        NameUse { used, folded: self.folded, forgotten: self.forgotten }
    }
}

/// Remembers a name of an address, unless a newer one is known. One that finds no place, or takes that of the oldest, is
/// forgotten: says how many are.
fn remember(learnt: &mut HashMap<IpAddr, Learnt>, address: IpAddr, new: Learnt) -> u64 {
    if let Some(known) = learnt.get_mut(&address) {
        if new.at >= known.at {
            *known = new;
        }
        return 0;
    }
    let full = learnt.len() >= MAX_LEARNT;
    let oldest = learnt.iter().filter(|_| full).min_by_key(|(_, learnt)| learnt.at);
    if let Some((oldest, at)) = oldest.map(|(address, learnt)| (*address, learnt.at)) {
        if new.at < at {
            return 1;
        }
        learnt.remove(&oldest);
    }
    learnt.insert(address, new);
    full.into()
}

/// The cgroups of containers in one snapshot, each looked for once: a container may have thousands of peers.
struct Kin<'a> {
    snapshot: &'a Snapshot,
    known: RefCell<HashMap<u64, Rc<[u64]>>>,
}

impl Kin<'_> {
    /// All of this one's container.
    fn of(&self, cgroup: u64) -> Rc<[u64]> {
        let mut known = self.known.borrow_mut();
        Rc::clone(known.entry(cgroup).or_insert_with(|| self.snapshot.kin(cgroup).into()))
    }

    /// The one that stands for all of them, and is budgeted for.
    fn first(&self, cgroup: u64) -> u64 {
        self.of(cgroup).first().copied().unwrap_or(cgroup)
    }
}

/// Names in series.
#[derive(Default)]
struct Used {
    node: HashSet<Arc<str>>,
    containers: HashMap<u64, HashSet<Arc<str>>>,
}

impl Used {
    /// By container, for which the cgroup stands that `main` says.
    fn of(given: &HashMap<PeerKey, Given>, main: impl Fn(u64) -> u64) -> Self {
        let mut used = Self::default();
        for (key, given) in given.iter().filter(|(_, given)| !given.name.is_empty()) {
            used.node.insert(Arc::clone(&given.name));
            used.containers.entry(main(key.cgroup)).or_default().insert(Arc::clone(&given.name));
        }
        used
    }

    /// Takes a place for a name, unless it has one. False when there is none left.
    fn take(&mut self, cgroup: u64, name: &Arc<str>, budget: Budget) -> bool {
        let container = self.containers.entry(cgroup).or_default();
        let fits = (self.node.contains(name) || self.node.len() < budget.node)
            && (container.contains(name) || container.len() < budget.container);
        if fits {
            self.node.insert(Arc::clone(name));
            container.insert(Arc::clone(name));
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing;

    #[test]
    fn an_inherited_name_waits_for_its_peer() {
        let key = |cgroup| PeerKey { cgroup, peer: [1, 2, 3, 4] };
        let mut names = Names::new([(key(7), "a".to_owned())], Vec::new(), Budget::default());
        settle(&mut names, [(key(7), None)]);
        assert_eq!(names.inherit(&key(7), 5).given, [key(5)]);
        assert_eq!(names.inherit(&key(7), 5), Changes::default(), "once");
        assert_eq!(settle(&mut names, []).gone, [key(7)], "the other one is on its way");
        assert_eq!(names.decided(&key(5)), Some("a"));
        let gone: Vec<_> = (0..20).flat_map(|_| settle(&mut names, []).gone).collect();
        assert_eq!(gone, [key(5)], "and does not wait without end");
    }

    /// Settles where nobody knows whose a cgroup is.
    fn settle(names: &mut Names, peers: impl IntoIterator<Item = (PeerKey, Option<IpAddr>)>) -> Changes {
        names.settle(peers, &Snapshot::default())
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([203, 0, 113, last])
    }

    fn peer(cgroup: u64, last: u8) -> (PeerKey, Option<IpAddr>) {
        (PeerKey { cgroup, peer: [0, 0, 0, last.into()] }, Some(address(last)))
    }

    fn names(budget: Budget) -> Names {
        Names::new(Vec::new(), Vec::new(), budget)
    }

    #[test]
    fn a_name_is_decided_once() {
        let mut names = names(Budget::default());
        names.learn(7, "old.test", &[address(1)], 1);
        names.learn(7, "a.test", &[address(1), address(2)], 2);
        let peers = [peer(7, 1), peer(7, 3), peer(8, 1)];
        assert_eq!(settle(&mut names, peers), Changes { given: vec![peer(7, 1).0], gone: vec![] });
        names.learn(7, "b.test", &[address(1), address(3)], 3);
        names.learn(8, "b.test", &[address(1)], 3);
        assert_eq!(settle(&mut names, peers), Changes::default());
        assert_eq!(peers.map(|(key, _)| names.of(&key).to_owned()), ["a.test", "", ""].map(str::to_owned));
        assert_eq!(names.usage(), NameUse { used: 1, folded: 0, forgotten: 0 });
        assert_eq!(settle(&mut names, []), Changes { given: vec![], gone: vec![peer(7, 1).0] });
        assert_eq!(names.usage().used, 0);
        settle(&mut names, peers);
        assert_eq!(names.of(&peer(7, 1).0), "b.test", "a new edge, a new decision");
        let unsure = peers.map(|(key, _)| (key, None));
        assert_eq!(settle(&mut names, unsure), Changes::default(), "a snapshot that knows less changes nothing");
        settle(&mut names, [(peer(9, 1).0, None)]);
        names.learn(9, "c.test", &[address(1)], 4);
        settle(&mut names, [peer(9, 1)]);
        assert_eq!(names.of(&peer(9, 1).0), "c.test", "it was not shown before");
    }

    /// A container whose own cgroup is 7, with 8 and 9 below it.
    fn nested() -> Snapshot {
        let mut app = testing::container("app", "");
        (app.cgroup_id, app.nested_cgroup_ids) = (7, vec![8, 9]);
        testing::snapshot(vec![("web", vec![app])])
    }

    #[test]
    fn what_one_cgroup_of_a_container_asked_for_names_the_peers_of_all() {
        let mut names = names(Budget { node: 9, container: 2 });
        names.learn(8, "a.test", &[address(1), address(2)], 5);
        names.learn(9, "b.test", &[address(2)], 6);
        names.learn(7, "old.test", &[address(2)], 4);
        names.learn(8, "c.test", &[address(3)], 7);
        let peers = [peer(9, 1), peer(7, 1), peer(7, 2), peer(8, 3), peer(10, 1)];
        names.settle(peers, &nested());
        let given = peers.map(|(key, _)| names.of(&key).to_owned());
        assert_eq!(given, ["a.test", "a.test", "b.test", "", ""].map(str::to_owned), "the last one asked for");
        assert_eq!(names.usage().folded, 1, "all of the container share its budget");
    }

    #[test]
    fn what_a_cgroup_that_is_gone_asked_for_stays_the_container_s() {
        let mut names = names(Budget::default());
        names.learn(8, "a.test", &[address(1), address(2)], 5);
        names.learn(7, "b.test", &[address(2)], 6);
        names.hand_over(8, 7);
        assert_eq!([1, 2].map(|last| names.learnt(7, address(last))), [Some("a.test"), Some("b.test")]);
        assert_eq!(names.learnt(8, address(1)), None);
        for number in 0..MAX_LEARNT as u32 {
            names.learn(9, "c.test", &[IpAddr::from(number.to_be_bytes())], 3);
        }
        names.hand_over(9, 7);
        assert_eq!(
            (names.learnt[&7].len(), names.usage().forgotten),
            (MAX_LEARNT, 2),
            "those that were the older ones"
        );
        assert_eq!(names.learnt(7, address(2)), Some("b.test"));
    }

    #[test]
    fn budgets_hold_for_the_node_and_for_each_container() {
        let mut names = names(Budget { node: 3, container: 2 });
        for last in 1..=4 {
            names.learn(7, &format!("n{last}.test"), &[address(last), address(last + 10)], 1);
            names.learn(8, &format!("n{last}.test"), &[address(last)], 1);
        }
        names.learn(8, "other.test", &[address(9)], 1);
        let peers = [peer(7, 1), peer(7, 2), peer(7, 3), peer(7, 11), peer(8, 1), peer(8, 3), peer(8, 4), peer(8, 9)];
        settle(&mut names, peers);
        let given = peers.map(|(key, _)| names.of(&key).to_owned());
        assert_eq!(given, ["n1.test", "n2.test", "", "n1.test", "n1.test", "n3.test", "", ""].map(str::to_owned));
        assert_eq!(names.usage(), NameUse { used: 3, folded: 3, forgotten: 0 });
    }

    #[test]
    fn an_agent_that_comes_after_another_says_the_same() {
        let (named, nameless, new) = (peer(7, 1), peer(7, 2), peer(7, 3));
        let kept = vec![(named.0, "a.test".to_owned()), (peer(9, 9).0, "gone.test".to_owned())];
        let mut names = Names::new(kept, [named.0, nameless.0], Budget::default());
        names.learn(7, "b.test", &[address(1), address(2), address(3)], 1);
        let changes = settle(&mut names, [named, nameless, new]);
        assert_eq!(changes, Changes { given: vec![new.0], gone: vec![peer(9, 9).0] });
        assert_eq!([named, nameless, new].map(|(key, _)| names.of(&key).to_owned()), ["a.test", "", "b.test"]);
        names.revoke(&new.0);
        assert_eq!((names.of(&new.0), names.usage().folded), ("", 1));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut names = names(Budget::default());
        for number in 0..2 * MAX_LEARNT {
            let address = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
            names.learn(7, "a.test", &[address], number as u64);
        }
        assert_eq!(names.learnt[&7].len(), MAX_LEARNT);
        assert_eq!(names.learnt(7, IpAddr::from([0, 0, 0, 0])), None, "the oldest went");
        assert_eq!(names.usage().forgotten, MAX_LEARNT as u64, "each of them was counted");
        let last = u32::try_from(2 * MAX_LEARNT - 1).unwrap().to_be_bytes();
        names.learn(7, "b.test", &[IpAddr::from(last)], 1 << 20);
        names.learn(8, "b.test", &[IpAddr::from(last)], 1 << 20);
        assert_eq!(names.usage().forgotten, MAX_LEARNT as u64, "another name, another container: nothing went");
        names.forget(7);
        names.forget(8);
        assert!(names.learnt.is_empty());
    }
}
