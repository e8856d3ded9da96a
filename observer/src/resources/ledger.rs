//! What ended containers used, kept under their names: counters of a container go on when it is started again, and
//! nothing that one used in its last moments is lost. Pure, but for the [`Store`] that outlives the agent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ContainerUsage, Facts, Usage};
use crate::{
    identity::Snapshot,
    sandbox::{Container, ContainerKind, Sandbox},
};

/// Cgroups of ended containers that an entry remembers to have in its sums.
pub const REMEMBERED: usize = 64;
/// How long a new ledger waits for the names of pods that are here: what an earlier agent left is kept under them.
const NAMES_WAIT: Duration = Duration::from_secs(600);

/// The name that counters are kept under: that of their series. A pod that is made anew under its old name goes on
/// where it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
}

/// What the ended containers of one name used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Sums of their counters; fields that are no counters are `None`.
    pub sums: Facts,
    /// The cgroups that are in the sums, the oldest first; at most [`REMEMBERED`].
    pub cgroups: VecDeque<u64>,
}

/// Where entries outlive the agent.
pub trait Store: Send {
    /// All entries that an earlier agent left.
    fn load(&mut self) -> Vec<(Name, Entry)>;

    /// Writes an entry in the place of the old one.
    ///
    /// # Errors
    /// When there is no room.
    fn save(&mut self, name: &Name, entry: &Entry) -> anyhow::Result<()>;

    /// Forgets an entry.
    fn forget(&mut self, name: &Name);
}

/// The entries.
#[derive(Default)]
pub struct Ledger {
    store: Option<Box<dyn Store>>,
    entries: BTreeMap<Name, Entry>,
    /// Names of entries that are kept but not shown: no pod that is observed has them now. One that is not named yet may,
    /// and without what it uses now the entry would be less than what was shown before.
    hidden: BTreeSet<Name>,
    /// Until when names are waited for.
    names_until: Option<Instant>,
    /// Cgroups of ended containers that need not be looked at again.
    settled: HashSet<u64>,
    /// What was added of those that are here still: one of them may get a process again. What an earlier agent added is
    /// not known.
    added: HashMap<u64, Facts>,
    /// The same by path, of those that have no cgroup id: those of a host without a v2 tree.
    without_id: HashSet<String>,
    missed: u64,
}

impl Ledger {
    /// A ledger with what an earlier agent left; without a store it ends with the agent.
    #[must_use]
    pub fn new(store: Option<Box<dyn Store>>) -> Self {
        let names_until = Instant::now().checked_add(NAMES_WAIT);
        let mut ledger = Self { store, names_until, ..Self::default() };
        if let Some(store) = &mut ledger.store {
            ledger.entries = store.load().into_iter().collect();
            ledger.settled = ledger.entries.values().flat_map(|entry| entry.cgroups.iter().copied()).collect();
        }
        ledger
    }

    /// Containers whose last values nobody could read, since the agent started.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// Takes in what has ended since the last time. `last` tells what a container said when it ended, `said` what the one
    /// in a cgroup said in this scrape, or, when it has ended since, in the one before.
    ///
    /// # Errors
    /// When an entry could not be stored: the last one that failed. It counts all the same, until the agent ends.
    pub fn settle(
        &mut self,
        snapshot: &Snapshot,
        last: impl Fn(&Container) -> Option<Facts>,
        said: impl Fn(u64) -> Option<Facts>,
    ) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for sandbox in snapshot.sandboxes() {
            for container in sandbox.containers.iter().filter(|c| c.kind == ContainerKind::Application) {
                let settled = match container.alive {
                    true => self.settle_living(sandbox, container, &said),
                    false => self.settle_ended(sandbox, container, &last, &said),
                };
                outcome = settled.and(outcome);
            }
        }
        self.forget_gone(snapshot);
        self.hide(snapshot);
        outcome
    }

    fn settle_ended(
        &mut self,
        sandbox: &Sandbox,
        container: &Container,
        last: impl Fn(&Container) -> Option<Facts>,
        said: impl Fn(u64) -> Option<Facts>,
    ) -> anyhow::Result<()> {
        if container.cgroup_id == 0 {
            // Nobody tells when it ends, and nothing was kept of it.
            self.missed += u64::from(self.without_id.insert(container.cgroup.clone()));
            return Ok(());
        }
        if !self.settled.insert(container.cgroup_id) {
            return Ok(());
        }
        let facts = last(container).or_else(|| {
            self.missed += 1;
            said(container.cgroup_id)
        });
        let Some(facts) = facts else { return Ok(()) };
        let name = name(sandbox, container);
        let entry = self.entries.entry(name.clone()).or_default();
        entry.sums.add_ended(&facts);
        entry.cgroups.push_back(container.cgroup_id);
        if entry.cgroups.len() > REMEMBERED {
            entry.cgroups.pop_front();
        }
        self.added.insert(container.cgroup_id, facts);
        self.store.as_mut().map_or(Ok(()), |store| store.save(&name, entry))
    }

    /// Takes back what was added of a cgroup that has a process again (a runtime may start one in the cgroup that it made
    /// before): once it says anything, it says all of that. Where what was added is not known it is taken for what is said
    /// now: it was no more.
    fn settle_living(
        &mut self,
        sandbox: &Sandbox,
        container: &Container,
        said: impl Fn(u64) -> Option<Facts>,
    ) -> anyhow::Result<()> {
        if !self.settled.contains(&container.cgroup_id) {
            return Ok(());
        }
        let Some(now) = said(container.cgroup_id) else { return Ok(()) };
        self.settled.remove(&container.cgroup_id);
        let added = self.added.remove(&container.cgroup_id).unwrap_or(now);
        let name = name(sandbox, container);
        let Some(entry) = self.entries.get_mut(&name) else { return Ok(()) };
        let Some(at) = entry.cgroups.iter().position(|cgroup| *cgroup == container.cgroup_id) else { return Ok(()) };
        entry.cgroups.remove(at);
        entry.sums.take_back(&added);
        self.store.as_mut().map_or(Ok(()), |store| store.save(&name, entry))
    }

    /// What goes with its pod. One that is not observed, or not yet, is no less there.
    fn forget_gone(&mut self, snapshot: &Snapshot) {
        let nothing = self.entries.is_empty() && self.settled.is_empty() && self.without_id.is_empty();
        if nothing || !snapshot.is_scanned() || self.waits_for_names(snapshot) {
            return;
        }
        let here: HashSet<(&str, &str)> = all(snapshot).map(|sandbox| pod(sandbox)).collect();
        let Self { store, entries, settled, added, without_id, .. } = self;
        entries.retain(|name, _| {
            let stays = here.contains(&(name.namespace.as_str(), name.pod.as_str()));
            if !stays && let Some(store) = store.as_mut() {
                store.forget(name);
            }
            stays
        });
        let containers = || all(snapshot).flat_map(|sandbox| &sandbox.containers);
        let mut known: HashSet<u64> = containers().map(|container| container.cgroup_id).collect();
        added.retain(|cgroup, _| known.contains(cgroup));
        known.extend(entries.values().flat_map(|entry| entry.cgroups.iter().copied()));
        settled.retain(|cgroup| known.contains(cgroup));
        let paths: HashSet<&str> = containers().map(|container| container.cgroup.as_str()).collect();
        without_id.retain(|path| paths.contains(path.as_str()));
    }

    /// Whether any entry may be that of a pod whose name nobody has told: sources of names are slower than cgroups.
    fn waits_for_names(&self, snapshot: &Snapshot) -> bool {
        let unnamed = |sandbox: &Arc<Sandbox>| sandbox.alive && !sandbox.uid.is_empty() && sandbox.namespace.is_empty();
        self.names_until.is_some_and(|until| Instant::now() < until) && all(snapshot).any(unnamed)
    }

    fn hide(&mut self, snapshot: &Snapshot) {
        self.hidden.clear();
        if self.entries.is_empty() {
            return;
        }
        let observed: HashSet<(&str, &str)> = snapshot.sandboxes().iter().map(|sandbox| pod(sandbox)).collect();
        let shown = |name: &Name| observed.contains(&(name.namespace.as_str(), name.pod.as_str()));
        self.hidden = self.entries.keys().filter(|name| !shown(name)).cloned().collect();
    }

    /// Adds what has ended to what runs. Usages come and go sorted by namespace, pod, container, each of these names
    /// once.
    #[must_use]
    pub fn complete<'a>(&'a self, running: Vec<ContainerUsage<'a>>) -> Vec<ContainerUsage<'a>> {
        let mut ended = self.entries.iter().filter(|(name, _)| !self.hidden.contains(name)).peekable();
        let mut all = Vec::with_capacity(running.len() + self.entries.len());
        for mut usage in running {
            let key = (usage.namespace, usage.pod, usage.container);
            while let Some((name, entry)) = ended.next_if(|(name, _)| labels(name) < key) {
                all.push(alone(name, entry));
            }
            if let Some((_, entry)) = ended.next_if(|(name, _)| labels(name) == key) {
                usage.usage = usage.usage.with_ended(&entry.sums);
            }
            all.push(usage);
        }
        all.extend(ended.map(|(name, entry)| alone(name, entry)));
        all
    }
}

/// Those that are observed, and the others.
fn all(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Sandbox>> {
    snapshot.sandboxes().iter().chain(snapshot.others())
}

fn pod(sandbox: &Sandbox) -> (&str, &str) {
    (&sandbox.namespace, &sandbox.name)
}

fn name(sandbox: &Sandbox, container: &Container) -> Name {
    Name { namespace: sandbox.namespace.clone(), pod: sandbox.name.clone(), container: container.name.clone() }
}

fn labels(name: &Name) -> (&str, &str, &str) {
    (&name.namespace, &name.pod, &name.container)
}

/// A name under which nothing runs now.
fn alone<'a>(name: &'a Name, entry: &Entry) -> ContainerUsage<'a> {
    ContainerUsage {
        namespace: &name.namespace,
        pod: &name.pod,
        container: &name.container,
        started: None,
        cgroup_id: 0,
        usage: Usage::default().with_ended(&entry.sums),
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
