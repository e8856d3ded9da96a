//! What follows from the coming and going of sandboxes: programs, pins, memories.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tracing::warn;

use super::TRAFFIC_PROBE;
use crate::{
    http::{Latch, Readiness},
    identity::Snapshot,
    kernel::{Attacher, Names, Pins, attach::AttachError, names::RememberedContainer},
    metrics::{AgentMetrics, ProbeState},
    sandbox::{AttachPoint, ContainerKind, Sandbox, SandboxHooks},
};

/// The names map, for the hooks that write it and the housekeeping that empties it.
#[derive(Clone)]
pub(super) struct SharedNames(Arc<Mutex<Names>>);

impl SharedNames {
    pub(super) fn new(names: Names) -> Self {
        Self(Arc::new(Mutex::new(names)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On a machine that counts traffic.
pub(super) struct KernelHooks {
    attacher: Attacher,
    pins: Pins,
    names: SharedNames,
    remembered: HashSet<(u64, String)>,
    metrics: Arc<AgentMetrics>,
    readiness: Arc<Readiness>,
    /// Cgroups that could not be attached to, with the reason.
    failed: HashMap<u64, String>,
    swept: bool,
}

impl KernelHooks {
    pub(super) fn new(
        attacher: Attacher,
        pins: Pins,
        names: SharedNames,
        metrics: Arc<AgentMetrics>,
        readiness: Arc<Readiness>,
    ) -> Self {
        let remembered = HashSet::new();
        Self { attacher, pins, names, remembered, metrics, readiness, failed: HashMap::new(), swept: false }
    }

    /// Links of cgroups that went while no agent was there.
    fn sweep(&mut self, snapshot: &Snapshot) {
        let wanted: HashSet<u64> = snapshot
            .sandboxes()
            .iter()
            .filter(|sandbox| sandbox.alive)
            .flat_map(|sandbox| sandbox.attach_points.iter().map(|point| point.cgroup_id))
            .collect();
        match self.pins.linked_cgroups() {
            Ok(linked) => linked
                .into_iter()
                .filter(|cgroup| !wanted.contains(cgroup))
                .for_each(|cgroup| self.attacher.detach(cgroup)),
            Err(error) => warn!("links of an earlier agent may be left: {error}"),
        }
    }

    /// Writes down whose cgroups these are, for the next agent.
    fn remember(&mut self, snapshot: &Snapshot) {
        let mut names = self.names.lock();
        let mut now = HashSet::new();
        for sandbox in snapshot.sandboxes() {
            for container in memories(sandbox) {
                let key =
                    (container.cgroup_id, format!("{}/{}/{}", container.namespace, container.pod, container.name));
                if !self.remembered.contains(&key)
                    && let Err(error) = names.remember(&container)
                {
                    warn!("the name of container {} may be lost at a restart: {error}", container.name);
                }
                now.insert(key);
            }
        }
        self.remembered = now;
    }

    fn tell_state(&self) {
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
fn memories(sandbox: &Sandbox) -> impl Iterator<Item = RememberedContainer> {
    sandbox.containers.iter().flat_map(move |container| {
        let ids = std::iter::once(container.cgroup_id).chain(container.nested_cgroup_ids.iter().copied());
        ids.filter(|id| *id != 0).map(move |cgroup_id| RememberedContainer {
            cgroup_id,
            sandbox: sandbox.key.0.clone(),
            namespace: sandbox.namespace.clone(),
            pod: sandbox.name.clone(),
            id: container.id.clone(),
            name: container.name.clone(),
            pause: container.kind == ContainerKind::Pause,
        })
    })
}

impl SandboxHooks for KernelHooks {
    fn attach(&mut self, point: &AttachPoint, seen: Instant) -> anyhow::Result<()> {
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
        if !std::mem::replace(&mut self.swept, true) {
            self.sweep(snapshot);
        }
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
        self.readiness.set(Latch::Hooks);
        self.readiness.set(Latch::Snapshot);
    }
}
