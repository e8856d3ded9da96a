//! Who the peers of all slots are: decisions, the table that has their numbers, and the map that outlives the agent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use super::{
    attribute::{Knowledge, PeerDetail},
    decide::{Decision, Decisions, Plan},
};
use crate::{
    clock,
    hash::FastSet,
    identity::{Snapshot, cluster::PeerBook},
    kernel::{DecisionMap, EdgeReading, EdgeTable, Leaving, Slot, SlotUse},
};

/// Ends of pods that are remembered; the next scan finds the others by itself.
const MAX_ENDS: usize = 4_096;

/// Decides, for the scrape and whenever the snapshot has changed.
pub struct Decider {
    table: Arc<EdgeTable>,
    detail: PeerDetail,
    peers: Option<Arc<PeerBook>>,
    settled: Mutex<Settled>,
}

/// What is decided.
pub struct Settled {
    /// By number.
    pub decisions: Decisions,
    kept: DecisionMap,
    /// The newest snapshot that was told, with the ends that are known beside it.
    latest: Arc<Snapshot>,
    /// Cgroups that pods have ended with, and when.
    ends: HashMap<u64, u64>,
    /// The one that all slots were looked at with.
    looked: u64,
    /// The version of the book that they were looked at with.
    read: u64,
    lost: u64,
    failing: bool,
}

impl std::fmt::Debug for Decider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decider").field("detail", &self.detail).finish_non_exhaustive()
    }
}

impl Decider {
    /// Goes on with what `kept` has.
    #[must_use]
    pub fn new(table: Arc<EdgeTable>, kept: DecisionMap, detail: PeerDetail, peers: Option<Arc<PeerBook>>) -> Self {
        let decisions = Decisions::new(kept.all());
        let settled = Settled {
            decisions,
            kept,
            latest: Arc::default(),
            ends: HashMap::new(),
            looked: 0,
            read: 0,
            lost: 0,
            failing: false,
        };
        Self { table, detail, peers, settled: Mutex::new(settled) }
    }

    /// How finely pods are named.
    #[must_use]
    pub const fn detail(&self) -> PeerDetail {
        self.detail
    }

    /// Who has the addresses beyond this node; `None` when nobody tells.
    #[must_use]
    pub const fn peers(&self) -> Option<&Arc<PeerBook>> {
        self.peers.as_ref()
    }

    /// Looks at every slot with a new snapshot. Says which are to be closed.
    pub fn look(&self, snapshot: &Arc<Snapshot>) -> Vec<(Slot, Leaving)> {
        let mut settled = self.lock();
        settled.learn(snapshot);
        if snapshot.number() <= settled.looked {
            return Vec::new();
        }
        self.look_at_all(&mut settled)
    }

    /// Looks at every slot: the pod that lived in this cgroup has ended. Says which are to be closed.
    pub fn gone(&self, cgroup: u64, at: u64) -> Vec<(Slot, Leaving)> {
        let mut settled = self.lock();
        if settled.ends.len() < MAX_ENDS {
            settled.ends.insert(cgroup, at);
        }
        let latest = Arc::clone(&settled.latest);
        settled.learn(&latest);
        self.look_at_all(&mut settled)
    }

    /// Looks at every slot if the book of peers has changed since. Says which are to be closed.
    pub fn look_again(&self) -> Vec<(Slot, Leaving)> {
        let mut settled = self.lock();
        if settled.looked == 0 || self.version() == settled.read {
            return Vec::new();
        }
        self.look_at_all(&mut settled)
    }

    fn version(&self) -> u64 {
        self.peers.as_ref().map_or(0, |peers| peers.version())
    }

    fn look_at_all(&self, settled: &mut Settled) -> Vec<(Slot, Leaving)> {
        let snapshot = Arc::clone(&settled.latest);
        let slots: Vec<SlotUse> = self.table.slots().collect();
        let plan = self.settle(settled, &slots, &snapshot, (true, false));
        settled.release(&slots, &plan);
        plan.close
    }

    /// Decides for all readings that are not decided yet: they are about to be shown. Says which slots are to be closed.
    pub fn show(
        &self,
        readings: &mut [EdgeReading],
        snapshot: &Snapshot,
    ) -> (MutexGuard<'_, Settled>, Vec<(Slot, Leaving)>) {
        let mut settled = self.lock();
        // Whoever was told may know more than the scrape.
        let mut latest = Arc::clone(&settled.latest);
        if snapshot.number() > latest.number() && !settled.ends.is_empty() {
            latest = Arc::new(snapshot.with_ends(&mut settled.ends));
        }
        let snapshot = if latest.number() >= snapshot.number() { &*latest } else { snapshot };
        let mut slots = Vec::new();
        let all = snapshot.number() > settled.looked || self.version() != settled.read;
        for reading in readings.iter_mut() {
            let Some(mut of) = reading.slot_use() else { continue };
            if of.decision == 0 {
                // It may have been decided since it was read.
                of.decision = self.table.decision(&of.slot);
                reading.decision = of.decision;
            }
            if all || settled.decisions.get(of.decision).is_none() {
                slots.push(of);
            }
        }
        let plan = self.settle(&mut settled, &slots, snapshot, (all, true));
        let mut decided = plan.decide.iter().peekable();
        for reading in readings {
            if let Some((_, number)) = decided.next_if(|(slot, _)| slot.number == reading.slot) {
                reading.decision = *number;
            }
        }
        (settled, plan.close)
    }

    fn settle(
        &self,
        settled: &mut Settled,
        slots: &[SlotUse],
        snapshot: &Snapshot,
        (all, shown): (bool, bool),
    ) -> Plan {
        let Settled { decisions, kept, looked, read, lost, failing, .. } = settled;
        *looked = snapshot.number().max(*looked);
        let book = self.peers.as_ref().map(|peers| peers.open());
        if all {
            // Nobody writes while it is open.
            *read = self.version();
        }
        let knowledge = Knowledge { snapshot, book: book.as_ref(), detail: self.detail, now: clock::monotonic() };
        let mut failed = None;
        // Kept before a slot has the number: the next agent knows every number that it finds.
        let plan = decisions.plan(slots.iter().copied(), &knowledge, (all, shown), |number, decision: &Decision| {
            kept.put(number, decision).map_err(|error| failed = Some(error)).is_ok()
        });
        if let Some(error) = failed {
            *lost += 1;
            if !std::mem::replace(failing, true) {
                warn!("peers are shown as other, because their names find no place in the map: {error}");
            }
        }
        for (slot, number) in &plan.decide {
            self.table.decide(slot, *number);
        }
        plan
    }

    fn lock(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settled {
    /// Takes a snapshot, with what is known beside it.
    fn learn(&mut self, snapshot: &Arc<Snapshot>) {
        let plain = self.ends.is_empty();
        self.latest = if plain { Arc::clone(snapshot) } else { Arc::new(snapshot.with_ends(&mut self.ends)) };
    }

    /// How often a decision found no place.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Forgets decisions that no slot has. Only while nobody else decides, and with all slots.
    fn release(&mut self, slots: &[SlotUse], plan: &Plan) {
        let used: FastSet<u64> =
            slots.iter().map(|of| of.decision).chain(plan.decide.iter().map(|(_, number)| *number)).collect();
        for number in self.decisions.unused(|number| used.contains(&number)) {
            self.decisions.forget(number);
            self.kept.forget(number);
        }
    }
}
