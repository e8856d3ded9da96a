//! What must have happened before the agent is ready.

use std::sync::atomic::{AtomicBool, Ordering};

/// Something that must have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latch {
    /// The first snapshot of the node's pods is published.
    Snapshot,
    /// The hooks of the pods that were there at the start are in force.
    Hooks,
}

impl Latch {
    const ALL: [Self; 2] = [Self::Snapshot, Self::Hooks];

    /// Why the agent is not ready while this has not happened.
    const fn reason(self) -> &'static str {
        match self {
            Self::Snapshot => "the pods of this node are not known yet",
            Self::Hooks => "the kernel hooks are not attached yet",
        }
    }
}

/// The latches. What was set stays set.
#[derive(Debug, Default)]
pub struct Readiness {
    set: [AtomicBool; Latch::ALL.len()],
}

impl Readiness {
    /// It happened.
    pub fn set(&self, latch: Latch) {
        self.set[latch as usize].store(true, Ordering::Release);
    }

    /// Why the agent is not ready; empty when it is.
    #[must_use]
    pub fn reasons(&self) -> Vec<&'static str> {
        let open = |latch: &Latch| !self.set[*latch as usize].load(Ordering::Acquire);
        Latch::ALL.into_iter().filter(open).map(Latch::reason).collect()
    }
}
