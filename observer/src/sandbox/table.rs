//! The sandboxes over time: what is there, what has gone and still has totals to show.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    addresses::{self, AddressCache},
    assemble::{Knowledge, assemble, is_unfinished},
    attacher::Outcome,
    choice::Choice,
    classify::{Kind, attach_root, classify},
    hierarchy::Hierarchies,
    hook::Handlers,
    memory::{self, Remembered, carry_over, name_late},
    model::{AttachPoint, Sandbox, SandboxKey},
    process::{self, INIT, ProcessCache},
    scan::{self, Found, Sighting, directory},
};
use crate::{
    clock,
    identity::{Names, Selection, Snapshot},
};

/// How long the totals of a gone sandbox wait for a scrape.
const KEEP_GONE: Duration = Duration::from_secs(300);
/// How long a pod's cgroup may have no container before it counts as a leftover. A container that is made in it later
/// makes it a pod again.
const EMPTY_PATIENCE: Duration = Duration::from_secs(60);

/// The sandboxes, scan after scan.
#[derive(Debug)]
pub struct SandboxTable {
    root: PathBuf,
    has_v2: bool,
    procfs: PathBuf,
    node_name: String,
    names: Names,
    choice: Choice,
    handlers: Handlers,
    last_pods_error: String,
    processes: ProcessCache,
    addresses: AddressCache,
    here: BTreeMap<SandboxKey, Sandbox>,
    gone: BTreeMap<SandboxKey, (Sandbox, Instant)>,
    remembered: Vec<Remembered>,
    /// Containers that were seen when they were made, until a sandbox has them.
    sighted: Vec<Sighting>,
    /// Pods' cgroups without a container, since when.
    empty: HashMap<u64, Instant>,
    truncated: bool,
    /// Pods' cgroups whose processes have all ended; the directory may stay.
    finished: HashSet<u64>,
    errors: u64,
}

impl SandboxTable {
    /// An empty table. `remembered` names containers whose cgroups may be gone.
    #[must_use]
    pub fn new(
        hierarchies: &Hierarchies,
        procfs: &Path,
        names: Names,
        node_name: String,
        remembered: Vec<Remembered>,
    ) -> Self {
        Self {
            root: hierarchies.tree().map(Path::to_owned).unwrap_or_default(),
            has_v2: hierarchies.v2().is_some(),
            procfs: procfs.to_owned(),
            node_name,
            names,
            choice: Choice::default(),
            handlers: Handlers::default(),
            last_pods_error: String::new(),
            processes: ProcessCache::default(),
            addresses: AddressCache::default(),
            here: BTreeMap::new(),
            gone: BTreeMap::new(),
            remembered,
            sighted: Vec::new(),
            empty: HashMap::new(),
            truncated: false,
            finished: HashSet::new(),
            errors: 0,
        }
    }

    /// The same table, which attaches to what is selected alone.
    #[must_use]
    pub fn selecting(self, selection: Selection) -> Self {
        Self { choice: Choice::new(selection), ..self }
    }

    /// The same table, with other runtimes whose sandboxes are counted at their interfaces.
    #[must_use]
    pub fn with_handlers(self, handlers: Handlers) -> Self {
        Self { handlers, ..self }
    }

    /// Whether programs can be attached to a cgroup before it is known whose it is.
    #[must_use]
    pub fn attaches_at_once(&self) -> bool {
        self.has_v2 && self.choice.is_all()
    }

    /// The root of the tree that is looked at.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the host has a v2 tree, which programs can be attached to.
    #[must_use]
    pub const fn has_v2(&self) -> bool {
        self.has_v2
    }

    /// How often a source could not be read, so far.
    #[must_use]
    pub const fn errors(&self) -> u64 {
        self.errors
    }

    /// Looks at everything anew.
    ///
    /// # Errors
    ///
    /// When the root of the cgroup tree cannot be read. What was known stays.
    pub fn scan(&mut self) -> io::Result<Outcome> {
        self.scan_after(&[])
    }

    /// Whether a source has other names than at the last scan, without having told.
    #[must_use]
    pub fn names_have_changed(&self) -> bool {
        self.names.have_changed()
    }

    /// Looks at everything anew. `seen` are containers that were made since the last time; one that has gone again
    /// meanwhile is listed as gone.
    ///
    /// # Errors
    ///
    /// As for [`SandboxTable::scan`].
    pub fn scan_after(&mut self, seen: &[Sighting]) -> io::Result<Outcome> {
        let began = Instant::now();
        self.processes.check(&self.procfs);
        let node_netns = self.node_netns();
        let settled = self.settled(node_netns);
        let found = scan::scan_with(&self.root, "", &|inode| settled.get(&inode).copied())?;
        self.tell_truncated(found.truncated);
        self.refresh_names();
        self.names.seen(found.containers.iter().map(|container| container.id.as_str()));
        self.processes.refresh(&self.procfs, found.containers.iter().filter_map(|container| container.pid));
        let netns_of = |pid: i32| self.processes.get(pid).and_then(|facts| facts.namespace("net"));
        let pids = found.containers.iter().filter_map(|container| container.pid);
        let holders: HashMap<u64, i32> =
            pids.filter_map(|pid| Some((netns_of(pid).filter(|netns| Some(*netns) != node_netns)?, pid))).collect();
        self.addresses.refresh(&self.procfs, holders.into_iter());
        let assembled = self.assemble(&found, node_netns);
        self.merge(assembled);
        self.settle_sightings(&found, seen);
        self.recall();
        self.gone.retain(|_, (_, since)| began.saturating_duration_since(*since) < KEEP_GONE);
        self.choice.judge(&self.here, &self.gone, began);
        let points = self.attach_points(&found, began);
        Ok(Outcome {
            began,
            snapshot: self.snapshot(),
            attach: self.choice.of(points, self.here.values()),
            incomplete: !self.sighted.is_empty()
                || self.choice.waits()
                || self.here.values().any(|sandbox| is_unfinished(sandbox, &self.processes)),
            parents: found.parents,
        })
    }

    fn tell_truncated(&mut self, truncated: bool) {
        if truncated && !std::mem::replace(&mut self.truncated, truncated) {
            tracing::warn!(
                "the cgroup tree {} has more directories, or deeper ones, than are looked at: pods in the rest are not \
                 observed",
                self.root.display()
            );
        }
        self.truncated = truncated;
    }

    /// Forgets sandboxes that are gone: their final totals were scraped.
    pub fn release(&mut self, keys: &[SandboxKey]) {
        for key in keys {
            self.gone.remove(key);
        }
    }

    fn refresh_names(&mut self) {
        match self.names.refresh() {
            Ok(()) => self.last_pods_error.clear(),
            Err(error) => {
                let text = error.to_string();
                self.errors += 1;
                if text != self.last_pods_error {
                    tracing::warn!("{text}");
                    self.last_pods_error = text;
                }
            }
        }
    }

    /// Processes that are known to be in a container still, by the inode of its directory: those in a network namespace
    /// of their pod's. On the node's network another process may have got the id.
    fn settled(&self, node_netns: Option<u64>) -> HashMap<u64, i32> {
        let containers = self.here.values().flat_map(|sandbox| &sandbox.containers);
        containers
            .filter(|container| container.alive && container.cgroup_id != 0)
            .filter_map(|container| {
                let pid = container.pid?;
                let netns = self.processes.get(pid)?.namespace("net")?;
                (Some(netns) != node_netns).then_some((container.cgroup_id, pid))
            })
            .collect()
    }

    fn assemble(&self, found: &Found, node_netns: Option<u64>) -> Vec<Sandbox> {
        let before: HashMap<(&str, u64), (SandboxKey, String)> = self
            .here
            .values()
            .filter(|sandbox| sandbox.uid.is_empty())
            .flat_map(|sandbox| sandbox.containers.iter().map(move |container| (sandbox, container)))
            .map(|(sandbox, container)| {
                ((container.cgroup.as_str(), container.cgroup_id), (sandbox.key.clone(), sandbox.name.clone()))
            })
            .collect();
        assemble(
            found,
            &Knowledge {
                process: &|pid| self.processes.get(pid).cloned(),
                addresses: &|netns| self.addresses.get(netns),
                pods: self.names.pods(),
                node_netns,
                before: &|container| before.get(&(container.path.as_str(), self.id(container.inode))).cloned(),
                handlers: &self.handlers,
                has_v2: self.has_v2,
                attach_point: &|path, inode| self.attach_point(path, inode),
            },
        )
    }

    /// The cgroup id of a directory with this inode.
    const fn id(&self, inode: u64) -> u64 {
        if self.has_v2 { inode } else { 0 }
    }

    /// The node's network namespace: that of its first process. Where that is closed to us (it has capabilities that we
    /// lack: `__ptrace_may_access` in kernel/ptrace.c), our own, which is the node's wherever the agent is on the host
    /// network, as it should be.
    fn node_netns(&self) -> Option<u64> {
        let of = |pid| process::read(&self.procfs, pid).and_then(|facts| facts.namespace("net"));
        of(INIT).or_else(|| of(i32::try_from(std::process::id()).ok()?))
    }

    fn attach_point(&self, path: &str, inode: u64) -> Option<AttachPoint> {
        self.has_v2.then(|| AttachPoint { cgroup_id: inode, path: directory(&self.root, path) })
    }

    /// Puts the new state in the place of the old one. Nothing that had counters loses its name.
    fn merge(&mut self, assembled: Vec<Sandbox>) {
        let mut before = std::mem::take(&mut self.here);
        for mut sandbox in assembled {
            let key = sandbox.key.clone();
            let old = before.remove(&key).or_else(|| self.gone.remove(&key).map(|(sandbox, _)| sandbox));
            carry_over(&mut sandbox, old.as_ref());
            name_late(&mut sandbox, self.names.pods());
            // A container without a process is being made, unless its pod's processes have all ended before.
            let finished = self.finished.contains(&sandbox.cgroup_id);
            for container in &mut sandbox.containers {
                container.alive &= container.pid.is_some() || !finished;
            }
            sandbox.alive = sandbox.containers.iter().any(|container| container.alive);
            if !sandbox.alive {
                sandbox.until = old.as_ref().map_or(u64::MAX, |old| old.until).min(clock::monotonic());
            }
            if sandbox.alive {
                self.finished.remove(&sandbox.cgroup_id);
                self.here.insert(key, sandbox);
            } else if self.finished.insert(sandbox.cgroup_id) || old.is_some() {
                self.gone.insert(key, (sandbox, Instant::now()));
            }
        }
        for (key, mut sandbox) in before {
            sandbox.alive = false;
            sandbox.until = clock::monotonic();
            for container in &mut sandbox.containers {
                container.alive = false;
            }
            self.gone.insert(key, (sandbox, Instant::now()));
        }
    }

    /// Once: what an earlier agent remembered of containers that are not there any more.
    fn recall(&mut self) {
        for container in std::mem::take(&mut self.remembered) {
            self.recall_one(&container);
        }
    }

    fn recall_one(&mut self, container: &Remembered) {
        let sandbox = match self.here.get_mut(&container.sandbox) {
            Some(sandbox) => sandbox,
            None => {
                let gone = || (container.sandbox(), Instant::now());
                &mut self.gone.entry(container.sandbox.clone()).or_insert_with(gone).0
            }
        };
        if !memory::has(sandbox, container.cgroup_id) {
            sandbox.containers.push(container.container());
        }
    }

    /// Containers that came and went between two scans may have counters all the same.
    fn settle_sightings(&mut self, found: &Found, seen: &[Sighting]) {
        self.sighted.extend_from_slice(seen);
        if self.sighted.is_empty() || !self.has_v2 {
            return self.sighted.clear();
        }
        let there: HashSet<u64> = found.containers.iter().map(|container| container.inode).collect();
        for sighting in std::mem::take(&mut self.sighted) {
            let gone = self.gone.values().map(|(sandbox, _)| sandbox);
            if self.here.values().chain(gone).any(|sandbox| memory::has(sandbox, sighting.inode)) {
                continue;
            }
            if let Kind::Nested { container } = classify(&sighting.path) {
                if !self.settle_nested(&container, sighting.inode)
                    && found.containers.iter().any(|found| found.path == container)
                {
                    // Its container waits for its first process.
                    self.sighted.push(sighting);
                }
            } else if there.contains(&sighting.inode) {
                // It waits for its first process.
                self.sighted.push(sighting);
            } else if let Some(container) = Remembered::from_sighting(&sighting, self.names.pods()) {
                self.recall_one(&container);
            }
        }
    }

    /// A cgroup below this container's came and went. False when nobody knows the container.
    fn settle_nested(&mut self, container: &str, cgroup_id: u64) -> bool {
        let Kind::Container { id, .. } = classify(container) else { return false };
        let gone = self.gone.values_mut().map(|(sandbox, _)| sandbox);
        let mut containers: Vec<_> = gone
            .chain(self.here.values_mut())
            .flat_map(|sandbox| &mut sandbox.containers)
            .filter(|of| of.id == id && of.cgroup_id != 0)
            .collect();
        // One that was started again has the same id; the last is the one that may live.
        containers.sort_by_key(|container| container.alive);
        let Some(container) = containers.pop() else { return false };
        memory::nested_went(container, cgroup_id);
        true
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let gone = self.gone.values().map(|(sandbox, _)| sandbox);
        let (observed, others) = self.choice.split(gone.chain(self.here.values()));
        let node: HashSet<IpAddr> = self.node_addresses().into_iter().collect();
        Arc::new(Snapshot::with_others(observed, others, node, self.node_name.clone()))
    }

    fn node_addresses(&self) -> BTreeSet<IpAddr> {
        addresses::of_process(&self.procfs, INIT)
    }

    /// Pods that have processes or are just being made, and containers without a pod; of those inside of one another the
    /// outermost.
    fn attach_points(&mut self, found: &Found, now: Instant) -> Vec<AttachPoint> {
        let inhabited: HashSet<&str> = found.containers.iter().filter_map(|found| found.pod.as_deref()).collect();
        let since = std::mem::take(&mut self.empty);
        let mut points = Vec::new();
        for pod in &found.pods {
            if !inhabited.contains(pod.path.as_str()) {
                let since = since.get(&pod.inode).copied().unwrap_or(now);
                self.empty.insert(pod.inode, since);
                if now.saturating_duration_since(since) >= EMPTY_PATIENCE {
                    continue;
                }
            }
            if !self.finished.contains(&pod.inode) && attach_root(&pod.path) == Some(&pod.path) {
                points.extend(self.attach_point(&pod.path, pod.inode));
            }
        }
        for container in found.containers.iter().filter(|found| attach_root(&found.path) == Some(&found.path)) {
            points.extend(self.attach_point(&container.path, container.inode));
        }
        let there: HashSet<u64> = found.pods.iter().map(|pod| pod.inode).collect();
        self.finished.retain(|inode| there.contains(inode));
        points
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
