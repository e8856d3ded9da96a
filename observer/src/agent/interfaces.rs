//! Sandboxes whose packets meet no socket of the host: programs at the host's ends of their interfaces.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};

use crate::{
    identity::Snapshot,
    kernel::{
        EdgeTable, InterfaceHooks, Pins, Programs, interface,
        links::{self, HostLink},
    },
    metrics::{AgentMetrics, ProbeState, collectors::CountedWhere},
    sandbox::{Handlers, Hook, Sandbox, SandboxKey},
};

/// The probe that counts at interfaces, in `observer_agent_probe_state`.
const INTERFACE_PROBE: &str = "interface";

/// What is attached where, and why it is not.
pub(super) struct Interfaces {
    hooks: InterfaceHooks,
    procfs: PathBuf,
    metrics: Arc<AgentMetrics>,
    /// Interfaces by index, each with the cgroup that it counts for.
    attached: HashMap<u32, u64>,
    /// Interfaces whose programs are this agent's.
    own: HashSet<u32>,
    /// The node's interfaces when they were last looked at.
    links: Vec<HostLink>,
    counted: CountedWhere,
    /// Sandboxes that are not counted, with the reason.
    failed: BTreeMap<SandboxKey, String>,
}

impl Interfaces {
    /// Loads the programs. `None` when this kernel refuses them, or nobody is to be counted so: said by the probe's state.
    pub(super) fn start(
        pins: &Pins,
        table: &EdgeTable,
        (procfs, wanted): (&Path, bool),
        metrics: &Arc<AgentMetrics>,
        counted: CountedWhere,
    ) -> Option<Self> {
        if !wanted {
            interface::forget(pins.root());
            return None;
        }
        match InterfaceHooks::start(pins, table) {
            Ok(hooks) => {
                metrics.probe_state(INTERFACE_PROBE, ProbeState::Ok, "");
                let attached = hooks.attached().into_iter().collect();
                Some(Self {
                    hooks,
                    procfs: procfs.to_owned(),
                    metrics: Arc::clone(metrics),
                    attached,
                    own: HashSet::new(),
                    links: Vec::new(),
                    counted,
                    failed: BTreeMap::new(),
                })
            }
            Err(error) => {
                interface::forget(pins.root());
                let state = if error.is_unsupported() { ProbeState::Unsupported } else { ProbeState::Failed };
                let reason = error.to_string();
                warn!("sandboxes whose packets meet no socket of the host are not counted: {reason}");
                metrics.probe_state(INTERFACE_PROBE, state, reason.lines().next().unwrap_or_default());
                None
            }
        }
    }

    /// The programs at interfaces.
    pub(super) fn programs(&self) -> Programs {
        self.hooks.programs()
    }

    /// Whether an interface counts for this cgroup.
    pub(super) fn counts(&self, cgroup: u64) -> bool {
        self.attached.values().any(|counted| *counted == cgroup)
    }

    /// Attaches to the interfaces of sandboxes that are counted there, and takes the programs away from all others. `detach`
    /// is told of sandboxes whose cgroups must not count as well, before their interfaces do. Gives those that live on and are
    /// not counted at their interfaces any more.
    pub(super) fn settle(&mut self, snapshot: &Snapshot, mut detach: impl FnMut(&Sandbox)) -> Vec<Arc<Sandbox>> {
        let wanted: Vec<&Arc<Sandbox>> = snapshot
            .sandboxes()
            .iter()
            .filter(|sandbox| sandbox.alive && is_wanted(sandbox, self.counts(sandbox.cgroup_id)))
            .collect();
        let before = std::mem::take(&mut self.failed);
        // Those whose name is awaited may still be wanted.
        let waiting = snapshot.others().iter().filter(|sandbox| sandbox.alive && !sandbox.attach_points.is_empty());
        let cgroups: HashSet<u64> = wanted.iter().copied().chain(waiting).map(|sandbox| sandbox.cgroup_id).collect();
        let (gone, let_go): (Vec<u32>, HashSet<u64>) = self
            .attached
            .iter()
            .filter(|(_, cgroup)| !cgroups.contains(cgroup))
            .map(|(index, cgroup)| (*index, *cgroup))
            .unzip();
        gone.into_iter().for_each(|index| self.detach(index));
        if !wanted.is_empty() {
            self.attach_all(&wanted, &before, &mut detach);
        }
        for sandbox in wanted {
            if let Some(reason) = self.failed.get(&sandbox.key)
                && before.get(&sandbox.key) != Some(reason)
            {
                warn!("the traffic of pod {}/{} is not counted: {reason}", sandbox.namespace, sandbox.name);
            }
        }
        self.counted.set_at_interface(self.attached.values().copied().collect());
        self.tell_state();
        let alive = snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive);
        alive.filter(|sandbox| let_go.contains(&sandbox.cgroup_id)).cloned().collect()
    }

    fn attach_all(
        &mut self,
        wanted: &[&Arc<Sandbox>],
        failed_before: &BTreeMap<SandboxKey, String>,
        detach: &mut impl FnMut(&Sandbox),
    ) {
        let links = match links::read() {
            Ok(links) => links,
            Err(error) => {
                let reason = format!("cannot list the node's interfaces: {error}");
                let new = wanted.iter().filter(|sandbox| !self.is_own(sandbox.cgroup_id));
                self.failed = new.map(|sandbox| (sandbox.key.clone(), reason.clone())).collect();
                return;
            }
        };
        let changed = links != self.links;
        for sandbox in wanted {
            // Asking for each one's namespace costs more than the list.
            if !changed && self.is_own(sandbox.cgroup_id) && !failed_before.contains_key(&sandbox.key) {
                continue;
            }
            let ends = links::ends_of(&links, &sandbox.netns_paths(&self.procfs), &sandbox.told.host_interface);
            if let Err(reason) = self.attach(sandbox, &ends, detach) {
                self.failed.insert(sandbox.key.clone(), reason);
            }
        }
        self.links = links;
    }

    /// Whether programs of this agent count for a cgroup.
    fn is_own(&self, cgroup: u64) -> bool {
        self.attached.iter().any(|(index, counted)| *counted == cgroup && self.own.contains(index))
    }

    fn attach(
        &mut self,
        sandbox: &Sandbox,
        ends: &[&HostLink],
        detach: &mut impl FnMut(&Sandbox),
    ) -> Result<(), String> {
        if ends.is_empty() {
            return Err(
                "no interface of the node leads to it (a veth pair does, macvlan and ipvlan have no end on the node; \
                        the agent must be on the node's network)"
                    .to_owned(),
            );
        }
        if sandbox.cgroup_id == 0 {
            return Err("it has no cgroup of its own to count for".to_owned());
        }
        let old: Vec<u32> = self
            .attached
            .iter()
            .filter(|(index, cgroup)| **cgroup == sandbox.cgroup_id && !ends.iter().any(|end| end.index == **index))
            .map(|(index, _)| *index)
            .collect();
        old.into_iter().for_each(|index| self.detach(index));
        for end in ends {
            let known = self.attached.get(&end.index) == Some(&sandbox.cgroup_id);
            if known && self.own.contains(&end.index) {
                continue;
            }
            if !known {
                detach(sandbox);
            }
            self.hooks.attach(end, sandbox.cgroup_id).map_err(|error| {
                self.attached.remove(&end.index);
                error.to_string()
            })?;
            if !known {
                info!(
                    pod = sandbox.name,
                    namespace = sandbox.namespace,
                    interface = end.name,
                    way = self.hooks.way().as_str(),
                    "counting at the interface"
                );
            }
            self.attached.insert(end.index, sandbox.cgroup_id);
            self.own.insert(end.index);
        }
        Ok(())
    }

    fn detach(&mut self, index: u32) {
        self.hooks.detach(index);
        self.attached.remove(&index);
        self.own.remove(&index);
    }

    fn tell_state(&self) {
        match self.failed.values().next() {
            None => self.metrics.probe_state(INTERFACE_PROBE, ProbeState::Ok, ""),
            Some(reason) => {
                let reason = format!("{} pods are not counted: {reason}", self.failed.len());
                self.metrics.probe_state(INTERFACE_PROBE, ProbeState::Failed, &reason);
            }
        }
    }
}

/// Whether a sandbox is to be counted at its interface. One that is counted there stays so while nobody tells what runs it:
/// sources of names come one after the other when an agent starts.
fn is_wanted(sandbox: &Sandbox, counted: bool) -> bool {
    let untold = sandbox.runtime_class.is_empty() && sandbox.runtime_handler.is_empty();
    sandbox.hook == Hook::Interface || (counted && untold && sandbox.cgroup_id != 0)
}

/// Whether anybody may have to be counted at an interface.
pub(super) fn wanted(handlers: &Handlers, has_v2: bool) -> bool {
    !has_v2 || !handlers.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing;

    #[test]
    fn who_is_counted_stays_while_nobody_tells_more() {
        let pod = Sandbox { cgroup_id: 7, ..testing::sandbox("p", Vec::new()) };
        assert!(!is_wanted(&pod, false));
        assert!(is_wanted(&pod, true));
        assert!(!is_wanted(&Sandbox { runtime_handler: "runc".into(), ..pod.clone() }, true));
        assert!(is_wanted(&Sandbox { hook: Hook::Interface, ..pod }, false));
    }

    #[test]
    fn nothing_is_loaded_for_nobody() {
        let none: Handlers = "".parse().unwrap();
        assert!(!wanted(&none, true) && wanted(&none, false) && wanted(&Handlers::default(), true));
    }
}
