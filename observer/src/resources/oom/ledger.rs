//! Whose kills they are, over the life of a pod. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use observer_common::oom::Place;

use crate::{
    identity::{Owner, Snapshot, Successors, gone_inside},
    kernel::{probes::oom::OomReading, text},
    sandbox::{ContainerKind, Sandbox},
};

/// How long the kills of somebody that nobody knows are kept, in the hope that somebody tells.
const PATIENCE: Duration = Duration::from_secs(600);

/// The labels `namespace`, `pod` and `container`.
pub type Names<'a> = [&'a str; 3];

/// What to change in the kernel's counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Cgroups that are gone, whose counts go to their container.
    pub carry: Vec<(u64, Place)>,
    /// Containers whose carried counts go to who goes on with their series.
    pub go_on: Vec<(Place, Place)>,
    /// Cgroups to forget.
    pub forget: Vec<u64>,
    /// Containers whose carried counts are to be forgotten.
    pub forget_carried: Vec<Place>,
}

/// Remembers whose cgroups have kills, for as long as they have.
#[derive(Debug, Default)]
pub struct Ledger {
    owners: HashMap<u64, Place>,
    /// Cgroups and containers of no sandbox that is known, since when.
    strays: HashMap<Stray, Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stray {
    Cgroup(u64),
    Carried(Place),
}

impl Ledger {
    /// Learns from a snapshot whose kills these are, and decides what goes elsewhere. A crashing container leaves a
    /// cgroup each time; the snapshot knows the youngest of them, and the counts of the others are carried; as are those of
    /// cgroups below a container's that are gone.
    pub fn settle(&mut self, reading: &OomReading, snapshot: &Snapshot, now: Instant) -> Changes {
        let sandboxes = Sandboxes::of(snapshot);
        let gone = gone_inside(snapshot);
        let mut changes = Changes::default();
        let mut strays = HashSet::new();
        for cgroup in reading.kills.keys() {
            if let Some(owner) = snapshot.by_cgroup(*cgroup) {
                let place = place(&owner);
                self.owners.insert(*cgroup, place);
                // Its name is not kept for the next agent.
                if gone.contains(cgroup) {
                    changes.carry.push((*cgroup, place));
                }
                continue;
            }
            match self.owners.get(cgroup).filter(|place| sandboxes.has(place)) {
                Some(place) => changes.carry.push((*cgroup, *place)),
                None => {
                    strays.insert(Stray::Cgroup(*cgroup));
                }
            }
        }
        strays.extend(reading.carried.keys().filter(|place| !sandboxes.has(place)).copied().map(Stray::Carried));
        for stray in &strays {
            if now.duration_since(*self.strays.entry(*stray).or_insert(now)) >= PATIENCE {
                match stray {
                    Stray::Cgroup(cgroup) => changes.forget.push(*cgroup),
                    Stray::Carried(place) => changes.forget_carried.push(*place),
                }
            }
        }
        self.strays.retain(|stray, _| strays.contains(stray));
        self.owners.retain(|cgroup, _| reading.kills.contains_key(cgroup));
        changes
    }

    /// The kills of each container, those of its former cgroups included; 0 for those that live and had none.
    #[must_use]
    pub fn totals<'a>(&'a self, reading: &'a OomReading, snapshot: &'a Snapshot) -> BTreeMap<Names<'a>, u64> {
        let sandboxes = Sandboxes::of(snapshot);
        let mut totals: BTreeMap<Names<'a>, u64> = BTreeMap::new();
        for sandbox in snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive) {
            let living = |c: &&crate::sandbox::Container| c.alive && c.kind == ContainerKind::Application;
            for container in sandbox.containers.iter().filter(living) {
                totals.entry([&sandbox.namespace, &sandbox.name, &container.name]).or_default();
            }
        }
        let remembered = |place: &'a Place| {
            let sandbox = sandboxes.get(place)?;
            Some([sandbox.namespace.as_str(), sandbox.name.as_str(), text::read(&place.container)])
        };
        for (cgroup, kills) in &reading.kills {
            let names = match snapshot.by_cgroup(*cgroup) {
                Some(Owner { sandbox, container }) => Some([
                    sandbox.namespace.as_str(),
                    sandbox.name.as_str(),
                    container.map_or("", |container| container.name.as_str()),
                ]),
                None => self.owners.get(cgroup).and_then(remembered),
            };
            if let Some(names) = names {
                *totals.entry(names).or_default() += kills;
            }
        }
        for (place, kills) in &reading.carried {
            if let Some(names) = remembered(place) {
                *totals.entry(names).or_default() += kills;
            }
        }
        totals
    }

    /// What follows from a scrape with this snapshot for the sandboxes that are gone: their kills go to the pod that was made
    /// again with their name, so that no series falls to a part of what it was; all others were shown for the last time.
    #[must_use]
    pub fn shown(&self, reading: &OomReading, snapshot: &Snapshot) -> Changes {
        let mut changes = Changes::default();
        if snapshot.sandboxes().iter().all(|sandbox| sandbox.alive) {
            return changes;
        }
        let sandboxes = Sandboxes::of(snapshot);
        let heirs = heirs(snapshot);
        let gone = |place: &Place| sandboxes.get(place).is_some_and(|sandbox| !sandbox.alive);
        for cgroup in reading.kills.keys() {
            let owner = snapshot.by_cgroup(*cgroup).map(|owner| place(&owner));
            let Some(place) = owner.or_else(|| self.owners.get(cgroup).copied()).filter(gone) else { continue };
            match heirs.get(&place) {
                Some(heir) => changes.carry.push((*cgroup, *heir)),
                None => changes.forget.push(*cgroup),
            }
        }
        for place in reading.carried.keys().filter(|place| gone(place)) {
            match heirs.get(place) {
                Some(heir) => changes.go_on.push((*place, *heir)),
                None => changes.forget_carried.push(*place),
            }
        }
        changes
    }
}

/// Who goes on with the series of containers whose pod is gone.
fn heirs(snapshot: &Snapshot) -> HashMap<Place, Place> {
    let Some(successors) = Successors::of(snapshot) else { return HashMap::new() };
    let gone = snapshot.sandboxes().iter().filter(|sandbox| !sandbox.alive);
    let cgroups = gone.flat_map(|sandbox| {
        std::iter::once(sandbox.cgroup_id).chain(sandbox.containers.iter().map(|container| container.cgroup_id))
    });
    let place_of = |cgroup| snapshot.by_cgroup(cgroup).map(|owner| place(&owner));
    cgroups.filter_map(|cgroup| Some((place_of(cgroup)?, place_of(successors.successor(cgroup)?)?))).collect()
}

/// The sandboxes of a snapshot by key, as far as a [`Place`] holds it.
struct Sandboxes<'a>(HashMap<[u8; observer_common::record::KEY_LEN], &'a Sandbox>);

impl<'a> Sandboxes<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        Self(snapshot.sandboxes().iter().map(|sandbox| (text::bytes(&sandbox.key.0), &**sandbox)).collect())
    }

    fn get(&self, place: &Place) -> Option<&'a Sandbox> {
        self.0.get(&place.sandbox).copied()
    }

    fn has(&self, place: &Place) -> bool {
        self.0.contains_key(&place.sandbox)
    }
}

fn place(owner: &Owner<'_>) -> Place {
    Place { sandbox: text::bytes(&owner.sandbox.key.0), container: text::bytes(owner.container_name()) }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
