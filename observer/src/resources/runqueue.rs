//! Which container has which slot of the run-queue probe. [`Slots`] is pure; [`RunQueue`] acts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use aya::maps::MapError;
use observer_common::{oom::Place, runqueue::SLOTS};

use crate::{
    identity::{Snapshot, Successors},
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

/// A slot for each container by name: it stays when the container starts again. When its pod is made again with its name,
/// what it has counted is carried by who goes on: the series does not fall to a part of what it was.
#[derive(Debug)]
pub struct Slots {
    slots: HashMap<Place, u32>,
    cgroups: HashMap<u64, u32>,
    free: Vec<u32>,
    resting: Vec<Resting>,
    /// What containers of pods that are gone have counted, by who goes on with their series.
    carried: HashMap<Place, WaitReading>,
    refused: HashSet<Place>,
    refusals: u64,
}

/// A slot that was given up a moment ago: a CPU may have been using it just then.
#[derive(Debug)]
struct Resting {
    slot: u32,
    since: Instant,
    /// Who goes on with the series.
    heir: Option<Place>,
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
            carried: HashMap::new(),
            refused: HashSet::new(),
            refusals: 0,
        }
    }

    /// Follows a new snapshot, at a moment that is not before that of the last call. `read` tells what a slot has counted.
    pub fn follow(&mut self, snapshot: &Snapshot, now: Instant, read: impl Fn(u32) -> WaitReading) -> Changes {
        let mut changes = Changes::default();
        let there: HashSet<Place> =
            containers(snapshot).map(|(sandbox, container)| place(sandbox, container)).collect();
        self.go_on(&heirs(snapshot), now);
        for resting in &mut self.resting {
            resting.heir = resting.heir.filter(|heir| there.contains(heir));
        }
        self.carried.retain(|place, _| there.contains(place));
        self.resting.retain(|Resting { slot, since, heir }| {
            let rested = now.saturating_duration_since(*since) >= REST;
            if rested {
                changes.clear.push(*slot);
                if let Some(heir) = heir {
                    *self.carried.entry(*heir).or_default() += read(*slot);
                }
            }
            !rested
        });
        self.free.extend(&changes.clear);
        self.slots.retain(|place, slot| {
            let stays = there.contains(place);
            if !stays {
                self.resting.push(Resting { slot: *slot, since: now, heir: None });
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

    /// Takes from those whose pod is gone all that they have counted, for these heirs.
    fn go_on(&mut self, heirs: &HashMap<Place, Place>, now: Instant) {
        for (gone, heir) in heirs {
            if let Some(slot) = self.slots.remove(gone) {
                self.resting.push(Resting { slot, since: now, heir: Some(*heir) });
            }
            if let Some(reading) = self.carried.remove(gone) {
                *self.carried.entry(*heir).or_default() += reading;
            }
        }
        for heir in self.resting.iter_mut().filter_map(|resting| resting.heir.as_mut()) {
            *heir = *heirs.get(heir).unwrap_or(heir);
        }
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

    /// What all containers in the snapshot have counted, by labels (`namespace`, `pod`, `container`): of several, when a
    /// pod has taken the name of one that is just gone. `read` tells what a slot has counted.
    #[must_use]
    pub fn named<'a>(
        &self,
        snapshot: &'a Snapshot,
        read: impl Fn(u32) -> WaitReading,
    ) -> BTreeMap<[&'a str; 3], WaitReading> {
        let mut places: BTreeMap<_, HashSet<Place>> = BTreeMap::new();
        for (sandbox, container) in containers(snapshot) {
            let names = [sandbox.namespace.as_str(), sandbox.name.as_str(), container.name.as_str()];
            places.entry(names).or_default().insert(place(sandbox, container));
        }
        let readings = |place: Place| {
            let resting = self.resting.iter().filter(move |resting| resting.heir == Some(place));
            let slots = self.slots.get(&place).copied().into_iter().chain(resting.map(|resting| resting.slot));
            slots.map(&read).chain(self.carried.get(&place).copied())
        };
        let sum = |places: HashSet<Place>| {
            places.into_iter().flat_map(readings).reduce(|mut all, one| {
                all += one;
                all
            })
        };
        places.into_iter().filter_map(|(names, places)| Some((names, sum(places)?))).collect()
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

/// Who goes on with the series of containers whose pod is gone and was made again with its name.
fn heirs(snapshot: &Snapshot) -> HashMap<Place, Place> {
    let Some(successors) = Successors::of(snapshot) else { return HashMap::new() };
    let gone = containers(snapshot).filter(|(sandbox, _)| !sandbox.alive);
    let heir = |container: &Container| {
        let owner = snapshot.by_cgroup(successors.successor(container.cgroup_id)?)?;
        Some(place(owner.sandbox, owner.container?))
    };
    gone.filter_map(|(sandbox, container)| Some((place(sandbox, container), heir(container)?))).collect()
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
        let changes = self.slots.follow(snapshot, Instant::now(), |slot| self.probe.read(slot));
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
        self.slots.named(snapshot, |slot| self.probe.read(slot)).into_iter().collect()
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
    use crate::{
        resources::testing::{self, container, snapshot, snapshot_of},
        sandbox::SandboxKey,
    };

    fn with_cgroup(name: &str, cgroup_id: u64) -> Container {
        Container { cgroup_id, ..container(name, "/x") }
    }

    fn none(_: u32) -> WaitReading {
        WaitReading::default()
    }

    /// What a slot has counted tells which one it is.
    fn counted(slot: u32) -> WaitReading {
        WaitReading { sum: 1 << slot, ..WaitReading::default() }
    }

    fn pod(cgroups: &[(&str, u64)]) -> Snapshot {
        snapshot(vec![("shop", cgroups.iter().map(|(name, id)| with_cgroup(name, *id)).collect())])
    }

    #[test]
    fn a_container_that_starts_again_keeps_its_slot() {
        let (mut slots, now) = (Slots::new(8), Instant::now());
        let first = slots.follow(&pod(&[("a", 11), ("b", 12)]), now, none);
        assert_eq!(first, Changes { observe: vec![(11, 0), (12, 1)], ..Changes::default() });
        assert_eq!(slots.follow(&pod(&[("a", 11), ("b", 12)]), now, none), Changes::default());
        let again = slots.follow(&pod(&[("a", 21), ("b", 12)]), now, none);
        assert_eq!(again, Changes { leave: vec![11], observe: vec![(21, 0)], ..Changes::default() });
    }

    #[test]
    fn a_slot_rests_before_it_is_used_again() {
        let (mut slots, now) = (Slots::new(1), Instant::now());
        slots.follow(&pod(&[("a", 11)]), now, none);
        let other = pod(&[("b", 12)]);
        assert_eq!(slots.follow(&other, now, none), Changes { leave: vec![11], ..Changes::default() });
        let almost = now + REST - Duration::from_nanos(1);
        assert_eq!(slots.follow(&other, almost, none), Changes::default());
        let rested = Changes { clear: vec![0], observe: vec![(12, 0)], ..Changes::default() };
        assert_eq!(slots.follow(&other, now + REST, none), rested);
        assert_eq!(slots.refusals(), 1, "each container counts once");
    }

    #[test]
    fn a_container_that_is_dead_is_left_and_keeps_its_series() {
        let (mut slots, now) = (Slots::new(8), Instant::now());
        let mut dead = with_cgroup("a", 11);
        slots.follow(&snapshot(vec![("shop", vec![dead.clone(), with_cgroup("b", 12)])]), now, none);
        dead.alive = false;
        let after = snapshot(vec![("shop", vec![dead, with_cgroup("b", 12)])]);
        assert_eq!(slots.follow(&after, now, none), Changes { leave: vec![11], ..Changes::default() });
        assert_eq!(slots.named(&after, counted)[&["n", "shop", "a"]], counted(0));
    }

    #[test]
    fn nested_cgroups_are_the_containers() {
        let mut outer = with_cgroup("a", 11);
        outer.nested_cgroup_ids.push(13);
        let changes = Slots::new(8).follow(&snapshot(vec![("shop", vec![outer])]), Instant::now(), none);
        assert_eq!(changes.observe, [(11, 0), (13, 0)]);
    }

    fn life(number: u64, alive: bool) -> Sandbox {
        let pod = testing::sandbox("web", vec![Container { alive, ..with_cgroup("app", number * 10 + 1) }]);
        Sandbox { key: SandboxKey(number.to_string()), alive, ..pod }
    }

    #[test]
    fn a_pod_that_is_made_again_goes_on() {
        let (mut slots, mut now) = (Slots::new(8), Instant::now());
        let sum = |slots: &Slots, pods: &Snapshot| slots.named(pods, counted)[&["n", "web", "app"]].sum;
        let first = snapshot_of(vec![life(1, true)]);
        slots.follow(&first, now, counted);
        let both_alive = snapshot_of(vec![life(1, true), life(2, true)]);
        slots.follow(&both_alive, now, counted);
        assert_eq!(sum(&slots, &both_alive), 0b11);
        let both = snapshot_of(vec![life(1, false), life(2, true)]);
        assert_eq!(slots.follow(&both, now, counted).leave, [11]);
        assert_eq!(sum(&slots, &both), 0b11);
        // It has gone, and its slot still rests.
        let after = snapshot_of(vec![life(2, true)]);
        assert_eq!(slots.follow(&after, now, counted), Changes::default());
        assert_eq!(sum(&slots, &after), 0b11);
        now += REST;
        assert_eq!(slots.follow(&after, now, counted).clear, [0]);
        assert_eq!(sum(&slots, &after), 0b11, "not 0b10: that would be taken for new");
        // The next one takes all of it, and the slot that is free.
        let third = snapshot_of(vec![life(2, false), life(3, true)]);
        assert_eq!(slots.follow(&third, now, counted).observe, [(31, 0)]);
        assert_eq!(sum(&slots, &third), 0b11 + 1);
        // It goes while the slot rests that it was to have.
        let fourth = snapshot_of(vec![life(3, false), life(4, true)]);
        slots.follow(&fourth, now, none);
        now += REST;
        slots.follow(&snapshot_of(vec![life(4, true)]), now, counted);
        assert_eq!(sum(&slots, &snapshot_of(vec![life(4, true)])), 0b11 + 1 + 0b100);
    }

    #[test]
    fn what_nobody_goes_on_with_is_forgotten() {
        let (mut slots, now) = (Slots::new(8), Instant::now());
        slots.follow(&snapshot_of(vec![life(1, true)]), now, counted);
        slots.follow(&snapshot_of(vec![life(1, false), life(2, true)]), now, counted);
        slots.follow(&snapshot_of(vec![life(2, false)]), now + REST, counted);
        assert_eq!(slots.carried.len(), 1);
        assert_eq!(slots.follow(&snapshot_of(vec![]), now + REST, counted), Changes::default());
        assert!(slots.carried.is_empty() && slots.slots.is_empty());
        assert_eq!(slots.follow(&snapshot_of(vec![]), now + 2 * REST, counted).clear, [1]);
    }
}
