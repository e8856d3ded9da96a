//! OOM kills of containers.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    identity::Snapshot,
    metrics::{AgentMetrics, Collect, Exposition, catalogue as c},
    resources::OomKills,
};

/// Shows what the OOM probe has counted.
pub struct OomCollector {
    kills: Arc<Mutex<OomKills>>,
    agent: Arc<AgentMetrics>,
}

impl OomCollector {
    /// A collector of these counts; `agent` is told what found no place.
    #[must_use]
    pub const fn new(kills: Arc<Mutex<OomKills>>, agent: Arc<AgentMetrics>) -> Self {
        Self { kills, agent }
    }
}

impl Collect for OomCollector {
    fn name(&self) -> &'static str {
        "oom"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let mut kills = self.kills.lock().unwrap_or_else(PoisonError::into_inner);
        kills.show(snapshot, |totals, lost| {
            let mut family = out.family(&c::OOM_KILLS);
            totals.iter().for_each(|(names, kills)| family.sample(*names, *kills));
            self.agent.kernel_losses("oom_table_full", lost);
        })?;
        Ok(())
    }
}
