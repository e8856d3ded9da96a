//! Which container has which slot of the run-queue probe. [`Slots`] is pure; [`RunQueue`] acts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use aya::maps::MapError;
use observer_common::{oom::Place, runqueue::SLOTS};

use crate::{
    identity::Snapshot,
    kernel::{
        probes::runqueue::{RunQueueProbe, WaitReading},
        text,
    },
    sandbox::{Container, ContainerKind, Sandbox},
};

/// How long a slot rests when it was given up: far longer than the program, which runs with interrupts off, may go on
/// with the slot that it has found.
const REST: Duration = Duration::from_secs(1);

/// What to change in the probe, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Cgroups that are observed no more.
    pub leave: Vec<u64>,
    /// Slots to set to zero.
    pub clear: Vec<u32>,
    /// Cgroups to observe, each with its slot.
    pub observe: Vec<(u64, u32)>,
}

/// A slot for each container by name: it stays when the container starts again.
#[derive(Debug)]
pub struct Slots {
    slots: HashMap<Place, u32>,
    cgroups: HashMap<u64, u32>,
    free: Vec<u32>,
    /// Given up a moment ago, and when: a CPU may have been using one just then.
    resting: Vec<(u32, Instant)>,
    refused: HashSet<Place>,
    refusals: u64,
}

impl Slots {
    /// All of so many slots are free.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            slots: HashMap::new(),
            cgroups: HashMap::new(),
            free: (0..slots).rev().collect(),
            resting: Vec::new(),
            refused: HashSet::new(),
            refusals: 0,
        }
    }

    /// Follows a new snapshot, at a moment that is not before that of the last call.
    pub fn follow(&mut self, snapshot: &Snapshot, now: Instant) -> Changes {
        let mut changes = Changes::default();
        self.resting.retain(|(slot, since)| {
            let rested = now.saturating_duration_since(*since) >= REST;
            if rested {
                changes.clear.push(*slot);
            }
            !rested
        });
        self.free.extend(&changes.clear);
        let there: HashSet<Place> =
            containers(snapshot).map(|(sandbox, container)| place(sandbox, container)).collect();
        self.slots.retain(|place, slot| {
            let stays = there.contains(place);
            if !stays {
                self.resting.push((*slot, now));
            }
            stays
        });
        self.refused.retain(|place| there.contains(place));

        let mut cgroups = HashMap::new();
        for (sandbox, container) in containers(snapshot).filter(|(sandbox, _)| sandbox.alive) {
            let Some(slot) = self.slot(place(sandbox, container)) else { continue };
            let ids = std::iter::once(container.cgroup_id).chain(container.nested_cgroup_ids.iter().copied());
            cgroups.extend(ids.filter(|id| *id != 0 && container.alive).map(|id| (id, slot)));
        }
        changes.leave = self.cgroups.keys().copied().filter(|id| !cgroups.contains_key(id)).collect();
        changes.observe = cgroups
            .iter()
            .map(|(id, slot)| (*id, *slot))
            .filter(|(id, slot)| self.cgroups.get(id) != Some(slot))
            .collect();
        changes.observe.sort_unstable();
        self.cgroups = cgroups;
        changes
    }

    fn slot(&mut self, place: Place) -> Option<u32> {
        if let Some(slot) = self.slots.get(&place) {
            return Some(*slot);
        }
        let slot = self.free.pop();
        match slot {
            Some(slot) => {
                self.refused.remove(&place);
                self.slots.insert(place, slot);
            }
            None => self.refusals += u64::from(self.refused.insert(place)),
        }
        slot
    }

    /// The slots of all containers in the snapshot, by labels (`namespace`, `pod`, `container`): more than one when a
    /// pod has taken the name of one that is just gone.
    #[must_use]
    pub fn named<'a>(&self, snapshot: &'a Snapshot) -> BTreeMap<[&'a str; 3], HashSet<u32>> {
        let mut named: BTreeMap<_, HashSet<u32>> = BTreeMap::new();
        for (sandbox, container) in containers(snapshot) {
            if let Some(slot) = self.slots.get(&place(sandbox, container)) {
                let names = [sandbox.namespace.as_str(), sandbox.name.as_str(), container.name.as_str()];
                named.entry(names).or_default().insert(*slot);
            }
        }
        named
    }

    /// Containers that found no slot, so far.
    #[must_use]
    pub const fn refusals(&self) -> u64 {
        self.refusals
    }
}

fn containers(snapshot: &Snapshot) -> impl Iterator<Item = (&Sandbox, &Container)> {
    snapshot.sandboxes().iter().flat_map(|sandbox| {
        let applications = |container: &&Container| container.kind == ContainerKind::Application;
        sandbox.containers.iter().filter(applications).map(move |container| (&**sandbox, container))
    })
}

fn place(sandbox: &Sandbox, container: &Container) -> Place {
    Place { sandbox: text::bytes(&sandbox.key.0), container: text::bytes(&container.name) }
}

/// The probe with its slots.
pub struct RunQueue {
    probe: RunQueueProbe,
    slots: Slots,
}

impl RunQueue {
    /// Observes nobody yet.
    #[must_use]
    pub fn new(probe: RunQueueProbe) -> Self {
        Self { probe, slots: Slots::new(SLOTS) }
    }

    /// Follows a new snapshot.
    ///
    /// # Errors
    ///
    /// What bpf(2) says of a cgroup that cannot be observed. The others are.
    pub fn follow(&mut self, snapshot: &Snapshot) -> Result<(), MapError> {
        let changes = self.slots.follow(snapshot, Instant::now());
        changes.leave.iter().for_each(|cgroup| self.probe.leave(*cgroup));
        changes.clear.iter().for_each(|slot| self.probe.clear(*slot));
        let mut outcome = Ok(());
        for (cgroup, slot) in changes.observe {
            outcome = outcome.and(self.probe.observe(cgroup, slot));
        }
        outcome
    }

    /// The waits of all containers that have a slot.
    #[must_use]
    pub fn read<'a>(&self, snapshot: &'a Snapshot) -> Vec<([&'a str; 3], WaitReading)> {
        let sum = |slots: HashSet<u32>| slots.into_iter().map(|slot| self.probe.read(slot)).sum();
        self.slots.named(snapshot).into_iter().map(|(names, slots)| (names, sum(slots))).collect()
    }

    /// Containers that found no slot, so far.
    #[must_use]
    pub const fn refusals(&self) -> u64 {
        self.slots.refusals()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing::{container, snapshot};

    fn with_cgroup(name: &str, cgroup_id: u64) -> Container {
        Container { cgroup_id, ..container(name, "/x") }
    }

    fn pod(cgroups: &[(&str, u64)]) -> Snapshot {
        snapshot(vec![("shop", cgroups.iter().map(|(name, id)| with_cgroup(name, *id)).collect())])
    }

    #[test]
    fn a_container_that_starts_again_keeps_its_slot() {
        let (mut slots, now) = (Slots::new(8), Instant::now());
        let first = slots.follow(&pod(&[("a", 11), ("b", 12)]), now);
        assert_eq!(first, Changes { observe: vec![(11, 0), (12, 1)], ..Changes::default() });
        assert_eq!(slots.follow(&pod(&[("a", 11), ("b", 12)]), now), Changes::default());
        let again = slots.follow(&pod(&[("a", 21), ("b", 12)]), now);
        assert_eq!(again, Changes { leave: vec![11], observe: vec![(21, 0)], ..Changes::default() });
    }

    #[test]
    fn a_slot_rests_before_it_is_used_again() {
        let (mut slots, now) = (Slots::new(1), Instant::now());
        slots.follow(&pod(&[("a", 11)]), now);
        let other = pod(&[("b", 12)]);
        assert_eq!(slots.follow(&other, now), Changes { leave: vec![11], ..Changes::default() });
        let almost = now + REST - Duration::from_nanos(1);
        assert_eq!(slots.follow(&other, almost), Changes::default());
        let rested = Changes { clear: vec![0], observe: vec![(12, 0)], ..Changes::default() };
        assert_eq!(slots.follow(&other, now + REST), rested);
        assert_eq!(slots.refusals(), 1, "each container counts once");
    }

    #[test]
    fn a_container_that_is_dead_is_left_and_keeps_its_series() {
        let (mut slots, now) = (Slots::new(8), Instant::now());
        let mut dead = with_cgroup("a", 11);
        slots.follow(&snapshot(vec![("shop", vec![dead.clone(), with_cgroup("b", 12)])]), now);
        dead.alive = false;
        let after = snapshot(vec![("shop", vec![dead, with_cgroup("b", 12)])]);
        assert_eq!(slots.follow(&after, now), Changes { leave: vec![11], ..Changes::default() });
        assert_eq!(slots.named(&after)[&["n", "shop", "a"]], HashSet::from([0]));
    }

    #[test]
    fn nested_cgroups_are_the_containers() {
        let mut outer = with_cgroup("a", 11);
        outer.nested_cgroup_ids.push(13);
        let changes = Slots::new(8).follow(&snapshot(vec![("shop", vec![outer])]), Instant::now());
        assert_eq!(changes.observe, [(11, 0), (13, 0)]);
    }
}
