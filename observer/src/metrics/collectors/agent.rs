//! What the agent tells of itself.

use std::sync::Arc;

use crate::{
    identity::Snapshot,
    metrics::{AgentMetrics, Collect, Exposition, catalogue as c},
};

/// Writes the facts of [`AgentMetrics`].
pub struct AgentCollector {
    agent: Arc<AgentMetrics>,
}

impl AgentCollector {
    /// A collector of these facts. Register it last, so that it shows the errors of this scrape too.
    #[must_use]
    pub const fn new(agent: Arc<AgentMetrics>) -> Self {
        Self { agent }
    }
}

impl Collect for AgentCollector {
    fn name(&self) -> &'static str {
        "agent"
    }

    fn collect(&mut self, _: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let build = self.agent.build();
        out.family(&c::AGENT_BUILD_INFO).sample([build.version, build.revision, build.rustc], 1u64);
        if let Some(histogram) = &self.agent.scrape_duration {
            out.family(&c::AGENT_SCRAPE_DURATION).histogram([], histogram);
        }
        if let Some(histogram) = &self.agent.attach_duration {
            out.family(&c::AGENT_ATTACH_DURATION).histogram([], histogram);
        }
        let facts = self.agent.facts();
        for (probe, (state, reason)) in &facts.probes {
            out.family(&c::AGENT_PROBE_STATE).sample([probe, state.as_str(), reason], 1u64);
        }
        out.family(&c::AGENT_EDGES_USED).sample_if([], facts.edges.map(|(used, _)| used));
        out.family(&c::AGENT_EDGES_CAPACITY).sample_if([], facts.edges.map(|(_, capacity)| capacity));
        out.family(&c::AGENT_EDGES_OVERFLOWED).sample_if([], facts.overflowed);
        out.family(&c::AGENT_EDGES_EVICTED).sample_if([], facts.edges.map(|_| facts.edges_evicted));
        out.family(&c::AGENT_SERIES_LIMIT).sample_if([], facts.series.map(|series| series.limit));
        out.family(&c::AGENT_SERIES_USED).sample_if([], facts.series.map(|series| series.used));
        out.family(&c::AGENT_SERIES_FOLDED).sample_if([], facts.series.map(|series| series.folded));
        for (direction, (bytes, packets)) in &facts.unattributed {
            out.family(&c::AGENT_UNATTRIBUTED_BYTES).sample([direction.as_str()], *bytes);
            out.family(&c::AGENT_UNATTRIBUTED_PACKETS).sample_if([direction.as_str()], *packets);
        }
        for (reason, total) in &facts.losses {
            out.family(&c::AGENT_KERNEL_LOSSES).sample([reason], *total);
        }
        for (direction, (bytes, packets)) in &facts.pending {
            out.family(&c::AGENT_PENDING_BYTES).sample([direction.as_str()], *bytes);
            out.family(&c::AGENT_PENDING_PACKETS).sample_if([direction.as_str()], *packets);
        }
        for (source, errors) in &facts.source_errors {
            out.family(&c::AGENT_SOURCE_ERRORS).sample([source], *errors);
        }
        out.family(&c::AGENT_ATTACH_ERRORS).sample([], facts.attach_errors);
        out.family(&c::AGENT_SCRAPE_SIZE).sample_if([], facts.scrape_size);
        Ok(())
    }
}
