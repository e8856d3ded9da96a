//! What must have happened before the agent is ready.

use std::sync::atomic::{AtomicBool, Ordering};

/// Something that must have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latch {
    /// The first snapshot of the node's pods is published.
    Snapshot,
    /// The hooks of the pods that were there at the start are in force.
    Hooks,
    /// Connections that are older than the agent are followed.
    Older,
    /// Everything that tells something is asked by a scrape.
    Serving,
    /// The first lists of the cluster are complete.
    Cluster,
}

impl Latch {
    /// What an agent waits for.
    const AGENT: [Self; 4] = [Self::Snapshot, Self::Hooks, Self::Older, Self::Serving];
    const COUNT: usize = 5;

    /// Why the agent is not ready while this has not happened.
    const fn reason(self) -> &'static str {
        match self {
            Self::Snapshot => "the pods of this node are not known yet",
            Self::Hooks => "the kernel hooks are not attached yet",
            Self::Older => "connections that are older than the agent are still looked for",
            Self::Serving => "the agent is starting",
            Self::Cluster => "the cluster's first lists are not complete yet",
        }
    }
}

/// The latches. What was set stays set.
#[derive(Debug)]
pub struct Readiness {
    needed: &'static [Latch],
    set: [AtomicBool; Latch::COUNT],
}

impl Default for Readiness {
    /// An agent's.
    fn default() -> Self {
        Self::of(&Latch::AGENT)
    }
}

impl Readiness {
    /// Ready when all of these have happened.
    #[must_use]
    pub fn of(needed: &'static [Latch]) -> Self {
        Self { needed, set: Default::default() }
    }

    /// It happened.
    pub fn set(&self, latch: Latch) {
        self.set[latch as usize].store(true, Ordering::Release);
    }

    /// Why the agent is not ready; empty when it is.
    #[must_use]
    pub fn reasons(&self) -> Vec<&'static str> {
        let open = |latch: &Latch| !self.set[*latch as usize].load(Ordering::Acquire);
        self.needed.iter().copied().filter(open).map(Latch::reason).collect()
    }
}
