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
    addresses,
    assemble::{Knowledge, assemble},
    hierarchy::Hierarchies,
    model::{AttachPoint, Container, ContainerKind, QosClass, Runtime, Sandbox, SandboxKey},
    process::{self, ProcessCache},
    scan::{self, Found, directory},
};
use crate::identity::{PodsFile, Snapshot};

/// How long the totals of a gone sandbox wait for a scrape.
const KEEP_GONE: Duration = Duration::from_secs(300);
/// The process whose namespaces are the node's.
const INIT: i32 = 1;

/// A container as an earlier agent knew it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The cgroup v2 id.
    pub cgroup_id: u64,
    /// The sandbox's key.
    pub sandbox: SandboxKey,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// The pause container.
    pub pause: bool,
}

/// What one scan came to.
#[derive(Debug)]
pub struct Outcome {
    /// When the scan began.
    pub began: Instant,
    /// All sandboxes.
    pub snapshot: Arc<Snapshot>,
    /// Where programs should be attached.
    pub attach: Vec<AttachPoint>,
    /// Directories in which pods or containers can appear.
    pub parents: Vec<PathBuf>,
}

/// The sandboxes, scan after scan.
#[derive(Debug)]
pub struct SandboxTable {
    root: PathBuf,
    has_v2: bool,
    procfs: PathBuf,
    node_name: String,
    pods: PodsFile,
    last_pods_error: String,
    processes: ProcessCache,
    here: BTreeMap<SandboxKey, Sandbox>,
    gone: BTreeMap<SandboxKey, (Sandbox, Instant)>,
    remembered: Vec<Remembered>,
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
        pods_file: Option<PathBuf>,
        node_name: String,
        remembered: Vec<Remembered>,
    ) -> Self {
        Self {
            root: hierarchies.tree().map(Path::to_owned).unwrap_or_default(),
            has_v2: hierarchies.v2().is_some(),
            procfs: procfs.to_owned(),
            node_name,
            pods: PodsFile::new(pods_file),
            last_pods_error: String::new(),
            processes: ProcessCache::default(),
            here: BTreeMap::new(),
            gone: BTreeMap::new(),
            remembered,
            finished: HashSet::new(),
            errors: 0,
        }
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
        let began = Instant::now();
        let found = scan::scan(&self.root, "")?;
        self.refresh_names();
        self.processes.refresh(&self.procfs, found.containers.iter().filter_map(|container| container.pid));
        let assembled = self.assemble(&found);
        self.merge(assembled);
        self.recall();
        self.gone.retain(|_, (_, since)| began.saturating_duration_since(*since) < KEEP_GONE);
        Ok(Outcome { began, snapshot: self.snapshot(), attach: self.attach_points(&found), parents: found.parents })
    }

    /// Forgets sandboxes that are gone: their final totals were scraped.
    pub fn release(&mut self, keys: &[SandboxKey]) {
        for key in keys {
            self.gone.remove(key);
        }
    }

    fn refresh_names(&mut self) {
        match self.pods.refresh() {
            Ok(_) => self.last_pods_error.clear(),
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

    fn assemble(&self, found: &Found) -> Vec<Sandbox> {
        let netns_of = |pid: i32| self.processes.get(pid).and_then(|facts| facts.namespace("net"));
        let holders: HashMap<u64, i32> =
            found.containers.iter().filter_map(|container| Some((netns_of(container.pid?)?, container.pid?))).collect();
        assemble(
            found,
            &Knowledge {
                process: &|pid| self.processes.get(pid).cloned(),
                addresses: &|netns| {
                    holders.get(&netns).map(|pid| addresses::of_process(&self.procfs, *pid)).unwrap_or_default()
                },
                pods: self.pods.pods(),
                node_netns: self.node_netns(),
                attach_point: &|path, inode| self.attach_point(path, inode),
            },
        )
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
            // A container without a process is being made, unless its pod's processes have all ended before.
            let finished = self.finished.contains(&sandbox.cgroup_id);
            for container in &mut sandbox.containers {
                container.alive &= container.pid.is_some() || !finished;
            }
            sandbox.alive = sandbox.containers.iter().any(|container| container.alive);
            if sandbox.alive {
                self.finished.remove(&sandbox.cgroup_id);
                self.here.insert(key, sandbox);
            } else if self.finished.insert(sandbox.cgroup_id) || old.is_some() {
                self.gone.insert(key, (sandbox, Instant::now()));
            }
        }
        for (key, mut sandbox) in before {
            sandbox.alive = false;
            for container in &mut sandbox.containers {
                container.alive = false;
            }
            self.gone.insert(key, (sandbox, Instant::now()));
        }
    }

    /// Once: what an earlier agent remembered of containers that are not there any more.
    fn recall(&mut self) {
        for container in std::mem::take(&mut self.remembered) {
            let sandbox = match self.here.get_mut(&container.sandbox) {
                Some(sandbox) => sandbox,
                None => {
                    let gone = || (gone(&container), Instant::now());
                    &mut self.gone.entry(container.sandbox.clone()).or_insert_with(gone).0
                }
            };
            let known = |known: &Container| {
                known.cgroup_id == container.cgroup_id || known.nested_cgroup_ids.contains(&container.cgroup_id)
            };
            if sandbox.cgroup_id != container.cgroup_id && !sandbox.containers.iter().any(known) {
                sandbox.containers.push(dead(&container));
            }
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let gone = self.gone.values().map(|(sandbox, _)| sandbox);
        let sandboxes = gone.chain(self.here.values()).cloned().map(Arc::new).collect();
        let node: HashSet<IpAddr> = self.node_addresses().into_iter().collect();
        Arc::new(Snapshot::new(sandboxes, node, self.node_name.clone()))
    }

    fn node_addresses(&self) -> BTreeSet<IpAddr> {
        addresses::of_process(&self.procfs, INIT)
    }

    /// Pods that have processes, or never had any (they are just being made), and containers without a pod.
    fn attach_points(&self, found: &Found) -> Vec<AttachPoint> {
        let pods = found
            .pods
            .iter()
            .filter(|pod| !self.finished.contains(&pod.inode))
            .filter_map(|pod| self.attach_point(&pod.path, pod.inode));
        let alone = found
            .containers
            .iter()
            .filter(|container| container.pod.is_none())
            .filter_map(|container| self.attach_point(&container.path, container.inode));
        pods.chain(alone).collect()
    }
}

/// Containers that were there before and are not now, or have no process any more, stay as dead ones.
fn carry_over(sandbox: &mut Sandbox, old: Option<&Sandbox>) {
    let Some(old) = old else { return };
    for container in &mut sandbox.containers {
        let before = old.containers.iter().find(|before| before.id == container.id);
        let Some(before) = before else { continue };
        if container.pid.is_none() && (before.pid.is_some() || !before.alive) {
            // Its processes have ended; what they said of it still holds.
            container.alive = false;
            container.kind = before.kind;
            container.started = before.started;
            container.namespaces.clone_from(&before.namespaces);
        }
        for id in &before.nested_cgroup_ids {
            if !container.nested_cgroup_ids.contains(id) {
                container.nested_cgroup_ids.push(*id);
            }
        }
    }
    for before in &old.containers {
        if !sandbox.containers.iter().any(|container| container.id == before.id) {
            let mut before = before.clone();
            before.alive = false;
            sandbox.containers.push(before);
        }
    }
    // What only living processes can tell.
    sandbox.netns = sandbox.netns.or(old.netns);
    if sandbox.addresses.is_empty() {
        sandbox.addresses.clone_from(&old.addresses);
    }
    sandbox.host_network |= old.host_network && sandbox.netns == old.netns;
    if sandbox.sandbox_id.is_empty() {
        sandbox.sandbox_id.clone_from(&old.sandbox_id);
    }
    // A name that was told is better than none, when the list has already lost the pod.
    if sandbox.namespace.is_empty() && !old.namespace.is_empty() {
        sandbox.namespace.clone_from(&old.namespace);
        sandbox.name.clone_from(&old.name);
        sandbox.workload.clone_from(&old.workload);
        sandbox.workload_kind.clone_from(&old.workload_kind);
        for container in &mut sandbox.containers {
            if let Some(before) = old.containers.iter().find(|before| before.id == container.id) {
                container.name.clone_from(&before.name);
            }
        }
    }
}

fn dead(container: &Remembered) -> Container {
    Container {
        id: container.id.clone(),
        name: container.name.clone(),
        image: String::new(),
        kind: if container.pause { ContainerKind::Pause } else { ContainerKind::Application },
        cgroup: String::new(),
        cgroup_id: container.cgroup_id,
        nested_cgroup_ids: Vec::new(),
        pid: None,
        started: None,
        namespaces: Vec::new(),
        alive: false,
    }
}

/// A sandbox of which only memories are left.
fn gone(container: &Remembered) -> Sandbox {
    Sandbox {
        key: container.sandbox.clone(),
        uid: container.sandbox.0.clone(),
        namespace: container.namespace.clone(),
        name: container.pod.clone(),
        sandbox_id: String::new(),
        qos: None::<QosClass>,
        runtime: Runtime::Unknown,
        cgroup: None,
        cgroup_id: 0,
        netns: None,
        host_network: false,
        addresses: Vec::new(),
        workload_kind: String::new(),
        workload: String::new(),
        phase: String::new(),
        runtime_class: String::new(),
        containers: Vec::new(),
        attach_points: Vec::new(),
        alive: false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const UID: &str = "11111111-2222-3333-4444-000000000001";

    struct Tree {
        root: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            Self { root: tempfile::tempdir().unwrap() }
        }

        fn container(&self, id: char) -> PathBuf {
            self.root.path().join(format!("kubepods/pod{UID}/{}", String::from(id).repeat(64)))
        }

        fn make(&self, id: char, pid: u32) {
            fs::create_dir_all(self.container(id)).unwrap();
            fs::write(self.container(id).join("cgroup.procs"), format!("{pid}\n")).unwrap();
        }

        fn table(&self, remembered: Vec<Remembered>) -> SandboxTable {
            SandboxTable {
                root: self.root.path().to_owned(),
                has_v2: true,
                ..SandboxTable::new(&Hierarchies::default(), Path::new("/proc"), None, String::new(), remembered)
            }
        }
    }

    fn alive(outcome: &Outcome) -> Vec<(bool, usize)> {
        let living = |sandbox: &Arc<Sandbox>| sandbox.containers.iter().filter(|container| container.alive).count();
        outcome.snapshot.sandboxes().iter().map(|sandbox| (sandbox.alive, living(sandbox))).collect()
    }

    #[test]
    fn a_pod_comes_changes_and_goes() {
        let tree = Tree::new();
        let mut table = tree.table(vec![]);
        assert!(alive(&table.scan().unwrap()).is_empty());
        let me = std::process::id();
        tree.make('a', me);
        tree.make('b', me);
        let outcome = table.scan().unwrap();
        assert_eq!(alive(&outcome), [(true, 2)]);
        assert_eq!(outcome.attach.len(), 1);
        fs::remove_dir_all(tree.container('a')).unwrap();
        let outcome = table.scan().unwrap();
        assert_eq!(alive(&outcome), [(true, 1)]);
        assert_eq!(outcome.snapshot.sandboxes()[0].containers.len(), 2, "the dead one keeps its name");
        fs::remove_dir_all(tree.root.path().join("kubepods")).unwrap();
        let outcome = table.scan().unwrap();
        assert_eq!(alive(&outcome), [(false, 0)]);
        assert!(outcome.attach.is_empty());
        table.release(&[SandboxKey(UID.into())]);
        assert!(alive(&table.scan().unwrap()).is_empty());
    }

    #[test]
    fn an_empty_directory_that_stays_is_a_pod_that_went() {
        let tree = Tree::new();
        let mut table = tree.table(vec![]);
        tree.make('a', std::process::id());
        assert_eq!(alive(&table.scan().unwrap()), [(true, 1)]);
        fs::write(tree.container('a').join("cgroup.procs"), "").unwrap();
        let outcome = table.scan().unwrap();
        assert_eq!(alive(&outcome), [(false, 0)]);
        assert!(outcome.attach.is_empty(), "its programs go");
        table.release(&[SandboxKey(UID.into())]);
        assert!(alive(&table.scan().unwrap()).iter().all(|(alive, _)| !alive));
        tree.make('b', std::process::id());
        let outcome = table.scan().unwrap();
        assert!(alive(&outcome).contains(&(true, 1)), "and it may come back");
        assert_eq!(outcome.attach.len(), 1);
    }

    #[test]
    fn memories_name_what_is_gone() {
        let tree = Tree::new();
        tree.make('a', std::process::id());
        let remember = |sandbox: &str, cgroup_id| Remembered {
            cgroup_id,
            sandbox: SandboxKey(sandbox.into()),
            namespace: "shop".into(),
            pod: "web".into(),
            id: format!("{cgroup_id:064}"),
            name: "old".into(),
            pause: false,
        };
        let mut table = tree.table(vec![remember(UID, 4_000_000_001), remember("other", 4_000_000_002)]);
        let outcome = table.scan().unwrap();
        let here = outcome.snapshot.by_cgroup(4_000_000_001).unwrap();
        assert_eq!((here.sandbox.alive, here.container_name()), (true, "old"));
        let gone = outcome.snapshot.by_cgroup(4_000_000_002).unwrap();
        assert_eq!((gone.sandbox.alive, gone.sandbox.name.as_str()), (false, "web"));
    }
}
