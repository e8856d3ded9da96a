//! Pods and sandboxes, as the snapshot knows them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, catalogue as c},
    sandbox::{ContainerKind, Hook, QosClass, Sandbox},
};

/// Where pods are counted now. Shared by whoever attaches and whoever shows it.
#[derive(Debug, Clone, Default)]
pub struct CountedWhere(Arc<Mutex<Places>>);

/// Where pods are counted, by cgroup id.
#[derive(Debug, Clone, Default)]
struct Places {
    at_interface: HashSet<u64>,
    /// Cgroups that could not be attached to; `None` where no pod is counted by its cgroup.
    refused: Option<HashSet<u64>>,
}

impl CountedWhere {
    /// Says who is counted at an interface.
    pub fn set_at_interface(&self, cgroups: HashSet<u64>) {
        self.lock().at_interface = cgroups;
    }

    /// Says that pods are counted by their cgroups, all but these.
    pub fn set_refused(&self, cgroups: HashSet<u64>) {
        self.lock().refused = Some(cgroups);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what a pod is; reads nothing but the snapshot, and where pods are counted.
#[derive(Debug, Default)]
pub struct InfoCollector(pub CountedWhere);

impl Collect for InfoCollector {
    fn name(&self) -> &'static str {
        "info"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        // A copy, because nobody who attaches may have to wait for a scrape.
        let places = self.0.lock().clone();
        let (mut pods, mut containers) = (0u64, 0u64);
        for sandbox in snapshot.sandboxes().iter().filter(|s| s.alive) {
            pods += 1;
            containers += count(sandbox);
            if seen.insert((&sandbox.namespace, &sandbox.name, &sandbox.uid, &sandbox.sandbox_id)) {
                pod(sandbox, snapshot.node_name(), out);
                self::sandbox(sandbox, attached(sandbox, &places), out);
            }
        }
        restarts(snapshot, out);
        out.family(&c::AGENT_PODS).sample([], pods);
        out.family(&c::AGENT_CONTAINERS).sample([], containers);
        Ok(())
    }
}

fn count(sandbox: &Sandbox) -> u64 {
    let living = sandbox.containers.iter().filter(|c| c.alive && c.kind == ContainerKind::Application);
    u64::try_from(living.count()).unwrap_or(u64::MAX)
}

/// The newest attempt of each name: earlier ones are listed while their pod lives. Two pods of one name, one of them
/// about to end, are one series.
fn restarts(snapshot: &Snapshot, out: &mut Exposition) {
    let mut newest: BTreeMap<[&str; 3], u32> = BTreeMap::new();
    for sandbox in snapshot.sandboxes().iter().filter(|s| s.alive) {
        for container in sandbox.containers.iter().filter(|c| c.kind == ContainerKind::Application) {
            let Some(attempt) = container.attempt else { continue };
            let known = newest.entry([&sandbox.namespace, &sandbox.name, &container.name]).or_default();
            *known = attempt.max(*known);
        }
    }
    for (labels, attempt) in newest {
        out.family(&c::CONTAINER_RESTARTS).sample(labels, u64::from(attempt));
    }
}

fn pod(sandbox: &Sandbox, node: &str, out: &mut Exposition) {
    let address = sandbox.addresses.first().map(ToString::to_string).unwrap_or_default();
    out.family(&c::POD_INFO).sample(
        [
            &sandbox.namespace,
            &sandbox.name,
            &sandbox.uid,
            &address,
            node,
            sandbox.qos.map_or("", QosClass::as_str),
            if sandbox.host_network { "true" } else { "false" },
            &sandbox.workload_kind,
            &sandbox.workload,
            &sandbox.runtime_class,
            &sandbox.phase,
        ],
        1u64,
    );
}

/// The hook in force.
fn attached(sandbox: &Sandbox, places: &Places) -> &'static str {
    let refused = |cgroup| places.refused.as_ref().is_none_or(|refused| refused.contains(cgroup));
    let points = &sandbox.attach_points;
    if sandbox.cgroup_id != 0 && places.at_interface.contains(&sandbox.cgroup_id) {
        "interface"
    } else if sandbox.hook == Hook::Cgroup && points.iter().any(|point| !refused(&point.cgroup_id)) {
        "cgroup"
    } else {
        "none"
    }
}

fn sandbox(sandbox: &Sandbox, attached: &str, out: &mut Exposition) {
    let netns = sandbox.netns.map(|inode| inode.to_string()).unwrap_or_default();
    out.family(&c::SANDBOX_INFO).sample(
        [&sandbox.namespace, &sandbox.name, &sandbox.sandbox_id, sandbox.runtime.as_str(), &netns, attached],
        1u64,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resources::testing::{container, snapshot},
        sandbox::Container,
    };

    #[test]
    fn restarts_are_the_newest_attempt_and_absent_when_nobody_tells() {
        let attempt = |name: &str, attempt| Container { attempt, ..container(name, "/p/x") };
        let dead = Container { alive: false, ..attempt("a", Some(1)) };
        let containers = vec![dead, attempt("a", Some(2)), attempt("b", None), attempt("c", Some(0))];
        let mut out = Exposition::default();
        InfoCollector::default()
            .collect(&snapshot(vec![("p", containers), ("p", vec![attempt("a", Some(0))])]), &mut out)
            .unwrap();
        let text = String::from_utf8(out.take().concat()).unwrap();
        let samples: Vec<_> = text.lines().filter(|line| line.starts_with("observer_container_restarts")).collect();
        let line = |name: &str, count| {
            format!("observer_container_restarts_total{{namespace=\"n\",pod=\"p\",container=\"{name}\"}} {count}")
        };
        assert_eq!(samples, [line("a", 2), line("c", 0)]);
    }

    #[test]
    fn the_hook_in_force_is_told() {
        let plain = crate::resources::testing::sandbox("p", vec![]);
        let point = crate::sandbox::AttachPoint { cgroup_id: 7, path: "/x".into() };
        let at_cgroup = Sandbox { cgroup_id: 7, attach_points: vec![point], ..plain.clone() };
        let at_interface = Sandbox { hook: Hook::Interface, ..at_cgroup.clone() };
        let places = |at_interface: &[u64], refused: Option<&[u64]>| Places {
            at_interface: at_interface.iter().copied().collect(),
            refused: refused.map(|cgroups| cgroups.iter().copied().collect()),
        };
        let all = places(&[], Some(&[]));
        let counted = places(&[7], Some(&[]));
        assert_eq!(attached(&plain, &counted), "none");
        assert_eq!(attached(&at_cgroup, &all), "cgroup");
        assert_eq!(attached(&at_cgroup, &places(&[], Some(&[8]))), "cgroup", "another one was refused");
        assert_eq!(attached(&at_cgroup, &places(&[], Some(&[7]))), "none", "it was refused");
        assert_eq!(attached(&at_cgroup, &Places::default()), "none", "nothing is attached at all");
        assert_eq!(attached(&at_interface, &counted), "interface");
        assert_eq!(attached(&at_interface, &all), "none", "its interface was not found");
    }

    #[test]
    fn a_pod_is_there_once_and_pause_does_not_count() {
        let mut pause = container("POD", "/p/pause");
        pause.kind = ContainerKind::Pause;
        let pods = vec![("p", vec![pause, container("a", "/p/a")]), ("p", vec![container("a", "/q/a")])];
        let mut out = Exposition::default();
        InfoCollector::default().collect(&snapshot(pods), &mut out).unwrap();
        let text = String::from_utf8(out.take().concat()).unwrap();
        assert!(text.contains("observer_agent_pods 2\n") && text.contains("observer_agent_containers 2\n"), "{text}");
        let pod = "observer_pod_info{namespace=\"n\",pod=\"p\",uid=\"\",pod_ip=\"\",node=\"\",\
            qos_class=\"Burstable\",host_network=\"false\",workload_kind=\"\",workload=\"\",runtime_class=\"\",\
            phase=\"\"} 1\n";
        assert_eq!(text.matches(pod).count(), 1, "{text}");
        let sandbox = "observer_sandbox_info{namespace=\"n\",pod=\"p\",sandbox_id=\"\",runtime=\"\",\
            network_namespace=\"\",attached=\"none\"} 1\n";
        assert_eq!(text.matches(sandbox).count(), 1, "{text}");
    }
}
