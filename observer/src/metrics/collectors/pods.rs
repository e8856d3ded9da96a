//! What the containers of a pod have together.

use std::sync::Arc;

use crate::{
    identity::Snapshot,
    metrics::{AgentMetrics, Collect, Exposition, ProbeState, catalogue as c},
    resources::PodReader,
};

/// The probe that reads System V shared memory, in `observer_agent_probe_state`.
const PROBE: &str = "sysv_shared_memory";

/// Reads namespaces of pods when the scrape comes.
pub struct PodCollector {
    reader: PodReader,
    agent: Arc<AgentMetrics>,
}

impl PodCollector {
    /// A collector that reads with `reader`, and tells `agent` what it may not read.
    #[must_use]
    pub const fn new(reader: PodReader, agent: Arc<AgentMetrics>) -> Self {
        Self { reader, agent }
    }
}

impl Collect for PodCollector {
    fn name(&self) -> &'static str {
        "pods"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let was_closed = self.reader.closed().is_some();
        for usage in self.reader.read(snapshot) {
            out.family(&c::SOCKETS).sample_if([usage.namespace, usage.pod, ""], usage.sockets);
            let mut family = out.family(&c::SHARED_MEMORY);
            family.sample_if([usage.namespace, usage.pod, "", "posix"], usage.posix);
            family.sample_if([usage.namespace, usage.pod, "", "sysv"], usage.sysv);
        }
        match self.reader.closed() {
            None => self.agent.probe_state(PROBE, ProbeState::Ok, ""),
            Some(reason) => {
                if !was_closed {
                    tracing::warn!("{reason}");
                }
                self.agent.probe_state(PROBE, ProbeState::Failed, reason);
            }
        }
        Ok(())
    }
}
