//! What follows from the coming and going of sandboxes: programs, pins, memories.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use aya::maps::MapError;
use tracing::warn;

use super::{TRAFFIC_PROBE, interfaces::Interfaces, older::OlderConnections};
use crate::{
    http::{Latch, Readiness},
    identity::{Snapshot, gone_inside},
    kernel::{Accounting, Attacher, EdgeTable, Names, Pins, attach::AttachError},
    metrics::{AgentMetrics, ProbeState, collectors::CountedWhere},
    sandbox::{AttachPoint, ContainerKind, Hook, Remembered, Sandbox, SandboxHooks},
};

/// The names map, for the hooks that write it and the housekeeping that empties it.
#[derive(Clone)]
pub(super) struct SharedNames(Arc<Mutex<KeptNames>>);

/// The names map, and what is in it.
pub(super) struct KeptNames {
    names: Names,
    /// Whose each cgroup is.
    written: HashMap<u64, String>,
}

impl SharedNames {
    pub(super) fn new(names: Names) -> Self {
        let written = names.all().iter().map(|container| (container.cgroup_id, whose(container))).collect();
        Self(Arc::new(Mutex::new(KeptNames { names, written })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, KeptNames> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptNames {
    /// One that finds no place is tried again next time.
    fn remember(&mut self, container: &Remembered) -> Result<(), MapError> {
        self.names.remember(container)?;
        self.written.insert(container.cgroup_id, whose(container));
        Ok(())
    }

    /// Forgets a cgroup; one that is not there is no error.
    pub(super) fn forget(&mut self, cgroup: u64) {
        if self.written.remove(&cgroup).is_some() {
            self.names.forget(cgroup);
        }
    }
}

/// What to change in the names map.
#[derive(Debug, Default, PartialEq, Eq)]
struct NameChanges {
    write: Vec<Remembered>,
    forget: Vec<u64>,
}

impl NameChanges {
    /// Names are for the next agent, to which slots are all that is left of cgroups that are gone. So none is written for a
    /// cgroup below a container's that is gone and has no slot, and none stays for a cgroup that nobody knows any more.
    /// `in_slots` tells which cgroups slots have.
    fn of(snapshot: &Snapshot, written: &HashMap<u64, String>, in_slots: impl FnOnce() -> HashSet<u64>) -> Self {
        let gone = gone_inside(snapshot);
        let new = |container: &Remembered| written.get(&container.cgroup_id) != Some(&whose(container));
        let mut write: Vec<_> = snapshot.sandboxes().iter().flat_map(|sandbox| memories(sandbox)).filter(new).collect();
        let mut forget: Vec<u64> =
            written.keys().copied().filter(|cgroup| snapshot.peer_by_cgroup(*cgroup).is_none()).collect();
        if !forget.is_empty() || write.iter().any(|container| gone.contains(&container.cgroup_id)) {
            let in_slots = in_slots();
            write.retain(|container| !gone.contains(&container.cgroup_id) || in_slots.contains(&container.cgroup_id));
            forget.retain(|cgroup| !in_slots.contains(cgroup));
        }
        Self { write, forget }
    }
}

fn whose(container: &Remembered) -> String {
    format!("{}/{}/{}", container.namespace, container.pod, container.name)
}

/// On a machine that counts traffic.
pub(super) struct KernelHooks {
    attacher: Attacher,
    pins: Pins,
    table: Arc<EdgeTable>,
    names: SharedNames,
    /// `None` when nobody is counted at an interface.
    interfaces: Option<Interfaces>,
    /// Whether there is a tree whose cgroups can be attached to.
    has_v2: bool,
    counted: CountedWhere,
    metrics: Arc<AgentMetrics>,
    readiness: Arc<Readiness>,
    /// Cgroups that could not be attached to, with the reason.
    failed: HashMap<u64, String>,
    swept: bool,
    older: OlderConnections,
    /// Not all names could be written down the last time.
    forgetful: bool,
}

impl KernelHooks {
    pub(super) fn new(
        attacher: Attacher,
        pins: Pins,
        table: Arc<EdgeTable>,
        names: SharedNames,
        (interfaces, has_v2, counted): (Option<Interfaces>, bool, CountedWhere),
        metrics: Arc<AgentMetrics>,
        readiness: Arc<Readiness>,
    ) -> Self {
        let failed = HashMap::new();
        let older = OlderConnections::start(Arc::clone(&table), pins.accounting(), Arc::clone(&readiness));
        Self {
            attacher,
            pins,
            table,
            names,
            interfaces,
            has_v2,
            counted,
            metrics,
            readiness,
            failed,
            swept: false,
            older,
            forgetful: false,
        }
    }

    /// Links of cgroups that went while no agent was there.
    fn sweep(&mut self, snapshot: &Snapshot) {
        let wanted: HashSet<u64> = snapshot
            .sandboxes()
            .iter()
            .chain(snapshot.others())
            .filter(|sandbox| sandbox.alive)
            .flat_map(|sandbox| sandbox.attach_points.iter().map(|point| point.cgroup_id))
            .collect();
        match self.pins.linked_cgroups() {
            Ok(linked) => linked
                .into_iter()
                .chain(self.attacher.observed())
                .filter(|cgroup| !wanted.contains(cgroup))
                .for_each(|cgroup| self.attacher.detach(cgroup)),
            Err(error) => warn!("links of an earlier agent may be left: {error}"),
        }
    }

    /// Writes down whose cgroups these are, for the next agent.
    fn remember(&mut self, snapshot: &Snapshot) {
        let mut names = self.names.lock();
        let in_slots = || self.table.cgroups().chain(self.table.loopback_peers()).collect();
        let NameChanges { write, forget } = NameChanges::of(snapshot, &names.written, in_slots);
        forget.into_iter().for_each(|cgroup| names.forget(cgroup));
        let failed = write.iter().filter_map(|container| Some((container, names.remember(container).err()?))).last();
        if let (Some((container, error)), false) = (&failed, self.forgetful) {
            warn!("names may be lost at a restart, as that of container {}: {error}", container.name);
        }
        self.forgetful = failed.is_some();
    }

    fn tell_state(&self) {
        self.counted.set_refused(self.failed.keys().copied().collect());
        if self.pins.accounting() == Accounting::Sockets {
            // Nothing is attached to cgroups; whose a socket is its cgroup says, so that is where pods are counted.
            const WHY: &str =
                "not used with --traffic.accounting=sockets: UDP, ICMP and every other protocol are not counted";
            return self.metrics.probe_state(TRAFFIC_PROBE, ProbeState::Unsupported, WHY);
        }
        if !self.has_v2 {
            // Said at the start.
            return;
        }
        match self.failed.values().next() {
            None => self.metrics.probe_state(TRAFFIC_PROBE, ProbeState::Ok, ""),
            Some(reason) => {
                let reason = format!("{} cgroups are not attached to: {reason}", self.failed.len());
                self.metrics.probe_state(TRAFFIC_PROBE, ProbeState::Failed, &reason);
            }
        }
    }
}

/// A record for each cgroup of a sandbox whose sockets may be counted.
fn memories(sandbox: &Sandbox) -> impl Iterator<Item = Remembered> {
    let containers = sandbox.containers.iter().flat_map(move |container| {
        let ids = std::iter::once(container.cgroup_id).chain(container.nested_cgroup_ids.iter().copied());
        ids.filter(|id| *id != 0).map(move |cgroup_id| Remembered {
            cgroup_id,
            sandbox: sandbox.key.clone(),
            namespace: sandbox.namespace.clone(),
            pod: sandbox.name.clone(),
            id: container.id.clone(),
            name: container.name.clone(),
            pause: container.kind == ContainerKind::Pause,
        })
    });
    // Counted for the pod as a whole.
    let whole = (sandbox.hook == Hook::Interface && sandbox.cgroup_id != 0).then(|| Remembered {
        cgroup_id: sandbox.cgroup_id,
        sandbox: sandbox.key.clone(),
        namespace: sandbox.namespace.clone(),
        pod: sandbox.name.clone(),
        id: sandbox.sandbox_id.clone(),
        name: String::new(),
        pause: true,
    });
    containers.chain(whole)
}

impl SandboxHooks for KernelHooks {
    fn attach(&mut self, point: &AttachPoint, seen: Instant) -> anyhow::Result<()> {
        if self.interfaces.as_ref().is_some_and(|interfaces| interfaces.counts(point.cgroup_id)) {
            // Counted there, and so nowhere else.
            return Ok(());
        }
        match self.attacher.attach(point) {
            Ok(()) => {
                self.metrics.attach_seen(seen.elapsed());
                self.failed.remove(&point.cgroup_id);
                Ok(())
            }
            // It lived shorter than the way here.
            Err(AttachError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                self.metrics.attach_failed();
                let text = error.to_string();
                if self.failed.insert(point.cgroup_id, text.clone()).as_deref() != Some(&text) {
                    warn!("the traffic of one pod is not counted: {text}");
                }
                Err(error.into())
            }
        }
    }

    fn detach(&mut self, point: &AttachPoint) {
        self.attacher.detach(point.cgroup_id);
        self.failed.remove(&point.cgroup_id);
    }

    fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        if !self.swept {
            self.sweep(snapshot);
            // Once more when it is known whether those that wait for a name are observed.
            self.swept = snapshot.others().iter().all(|sandbox| sandbox.attach_points.is_empty());
        }
        if let Some(interfaces) = &mut self.interfaces {
            let attacher = &mut self.attacher;
            let let_go = interfaces.settle(snapshot, |sandbox| {
                sandbox.attach_points.iter().for_each(|point| attacher.detach(point.cgroup_id));
            });
            for point in let_go.iter().flat_map(|sandbox| &sandbox.attach_points) {
                // What goes wrong is logged, counted and in the probe's state.
                let _ = self.attach(point, Instant::now());
            }
        }
        self.older.look(self.attacher.has_met_processes());
        self.remember(snapshot);
        self.tell_state();
        self.readiness.set(Latch::Hooks);
        self.readiness.set(Latch::Snapshot);
    }
}

/// On a machine that does not.
pub(super) struct NoHooks {
    readiness: Arc<Readiness>,
}

impl NoHooks {
    pub(super) const fn new(readiness: Arc<Readiness>) -> Self {
        Self { readiness }
    }
}

impl SandboxHooks for NoHooks {
    fn attach(&mut self, _: &AttachPoint, _: Instant) -> anyhow::Result<()> {
        Ok(())
    }

    fn detach(&mut self, _: &AttachPoint) {}

    fn snapshot(&mut self, _: &Arc<Snapshot>) {
        // There is nothing to wait for: the probe's state says what is missing.
        [Latch::Hooks, Latch::Older, Latch::Snapshot].into_iter().for_each(|latch| self.readiness.set(latch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing::{container, sandbox, snapshot_of};

    fn pod(gone: &[u64]) -> Snapshot {
        let mut app = container("app", "");
        (app.cgroup_id, app.nested_cgroup_ids, app.gone_cgroup_ids) = (11, vec![12, 13], gone.to_vec());
        snapshot_of(vec![sandbox("web", vec![app])])
    }

    fn changes(snapshot: &Snapshot, written: &[u64], in_slots: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let written = written.iter().map(|cgroup| (*cgroup, "n/web/app".to_owned())).collect();
        let NameChanges { write, mut forget } =
            NameChanges::of(snapshot, &written, || in_slots.iter().copied().collect());
        forget.sort_unstable();
        (write.into_iter().map(|container| container.cgroup_id).collect(), forget)
    }

    #[test]
    fn names_are_written_once_and_under_another_name_again() {
        assert_eq!(changes(&pod(&[]), &[], &[]), (vec![11, 12, 13], vec![]));
        assert_eq!(changes(&pod(&[]), &[11, 12, 13], &[]), (vec![], vec![]));
        let written = HashMap::from([(11, "n/web/aa".to_owned()), (12, "n/web/app".to_owned())]);
        let write = NameChanges::of(&pod(&[]), &written, HashSet::new).write;
        assert_eq!(write.iter().map(|container| container.cgroup_id).collect::<Vec<_>>(), [11, 13]);
    }

    #[test]
    fn what_is_gone_needs_a_name_only_for_its_slots() {
        assert_eq!(changes(&pod(&[12, 13]), &[11], &[13]), (vec![13], vec![]));
        assert_eq!(changes(&pod(&[12]), &[11, 12, 13], &[]), (vec![], vec![]), "not before it was shown");
        assert_eq!(changes(&pod(&[]), &[11, 12, 13, 14, 15], &[15]), (vec![], vec![14]), "nobody knows it");
    }
}
