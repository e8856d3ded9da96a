//! Pods and sandboxes, as the snapshot knows them.

use std::collections::HashSet;

use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, catalogue as c},
    sandbox::{ContainerKind, QosClass, Sandbox},
};

/// Writes what a pod is; reads nothing but the snapshot.
#[derive(Debug, Default)]
pub struct InfoCollector;

impl Collect for InfoCollector {
    fn name(&self) -> &'static str {
        "info"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        let (mut pods, mut containers) = (0u64, 0u64);
        for sandbox in snapshot.sandboxes().iter().filter(|s| s.alive) {
            pods += 1;
            containers += count(sandbox);
            if seen.insert((&sandbox.namespace, &sandbox.name, &sandbox.uid, &sandbox.sandbox_id)) {
                pod(sandbox, snapshot.node_name(), out);
                self::sandbox(sandbox, out);
            }
        }
        out.family(&c::AGENT_PODS).sample([], pods);
        out.family(&c::AGENT_CONTAINERS).sample([], containers);
        Ok(())
    }
}

fn count(sandbox: &Sandbox) -> u64 {
    let living = sandbox.containers.iter().filter(|c| c.alive && c.kind == ContainerKind::Application);
    u64::try_from(living.count()).unwrap_or(u64::MAX)
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

fn sandbox(sandbox: &Sandbox, out: &mut Exposition) {
    let netns = sandbox.netns.map(|inode| inode.to_string()).unwrap_or_default();
    out.family(&c::SANDBOX_INFO).sample(
        [
            &sandbox.namespace,
            &sandbox.name,
            &sandbox.sandbox_id,
            sandbox.runtime.as_str(),
            &netns,
            if sandbox.attach_points.is_empty() { "none" } else { "cgroup" },
        ],
        1u64,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing::{container, snapshot};

    #[test]
    fn a_pod_is_there_once_and_pause_does_not_count() {
        let mut pause = container("POD", "/p/pause");
        pause.kind = ContainerKind::Pause;
        let pods = vec![("p", vec![pause, container("a", "/p/a")]), ("p", vec![container("a", "/q/a")])];
        let mut out = Exposition::default();
        InfoCollector.collect(&snapshot(pods), &mut out).unwrap();
        let text = String::from_utf8(out.to_text()).unwrap();
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
