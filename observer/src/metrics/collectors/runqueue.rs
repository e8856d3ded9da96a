//! How long the threads of containers waited for a CPU.

use std::sync::{Arc, Mutex, PoisonError};

use observer_common::runqueue::{BUCKETS, FIRST_POWER};

use crate::{
    identity::Snapshot,
    metrics::{AgentMetrics, Bounds, Collect, Exposition, catalogue as c},
    resources::RunQueue,
};

/// Shows what the run-queue probe has counted.
pub struct RunQueueCollector {
    queue: Arc<Mutex<RunQueue>>,
    agent: Arc<AgentMetrics>,
}

impl RunQueueCollector {
    /// A collector of these waits; `agent` is told who found no slot.
    #[must_use]
    pub const fn new(queue: Arc<Mutex<RunQueue>>, agent: Arc<AgentMetrics>) -> Self {
        Self { queue, agent }
    }
}

impl Collect for RunQueueCollector {
    fn name(&self) -> &'static str {
        "runqueue"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut family = out.family(&c::CPU_RUNQUEUE);
        let bounds = Bounds::new((0..BUCKETS - 1).map(|at| seconds(1 << (FIRST_POWER as usize + at))));
        for (names, reading) in queue.read(snapshot) {
            family.buckets(names, &bounds, &reading.buckets, seconds(reading.sum));
        }
        self.agent.kernel_losses("runqueue_no_slot", queue.refusals());
        Ok(())
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
