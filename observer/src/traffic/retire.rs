//! When edges are given back. Pure: what to retire is decided here, done by the edge table.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use observer_common::edge::EdgeKey;

use crate::{identity::Snapshot, kernel::EdgeReading, sandbox::SandboxKey};

/// How long counters of a cgroup that nobody knows are kept under an empty name, in the hope that somebody tells.
const PATIENCE: Duration = Duration::from_secs(600);

/// What can be given back after a scrape.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Retirement {
    /// Sandboxes that are gone and whose final totals were in the scrape.
    pub sandboxes: Vec<SandboxKey>,
    /// Their cgroups.
    pub cgroups: Vec<u64>,
    /// Slots whose counters end with their sandbox.
    pub slots: Vec<(u32, EdgeKey)>,
    /// Slots whose counters go to the unattributed slot.
    pub fold: Vec<(u32, EdgeKey)>,
}

impl Retirement {
    /// Decides after a scrape that showed these readings with this snapshot. `unknown` remembers since when a cgroup
    /// has had no name.
    #[must_use]
    pub fn after_scrape(
        readings: &[EdgeReading],
        snapshot: &Snapshot,
        unknown: &mut HashMap<u64, Instant>,
        now: Instant,
    ) -> Self {
        let mut retirement = Self::default();
        let mut gone = HashSet::new();
        for sandbox in snapshot.sandboxes().iter().filter(|sandbox| !sandbox.alive) {
            retirement.sandboxes.push(sandbox.key.clone());
            gone.insert(sandbox.cgroup_id);
            for container in &sandbox.containers {
                gone.insert(container.cgroup_id);
                gone.extend(&container.nested_cgroup_ids);
            }
        }
        gone.remove(&0);
        let mut still_unknown = HashSet::new();
        for reading in readings {
            let Some(key) = &reading.key else { continue };
            if gone.contains(&key.cgroup) {
                retirement.slots.push((reading.slot, *key));
            } else if snapshot.by_cgroup(key.cgroup).is_none() {
                still_unknown.insert(key.cgroup);
                if now.duration_since(*unknown.entry(key.cgroup).or_insert(now)) >= PATIENCE {
                    retirement.fold.push((reading.slot, *key));
                }
            }
        }
        unknown.retain(|cgroup, _| still_unknown.contains(cgroup));
        retirement.cgroups = gone.into_iter().collect();
        retirement.cgroups.sort_unstable();
        retirement
    }

    /// True when there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.slots.is_empty() && self.fold.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet as Set, sync::Arc};

    use observer_common::counters::{PacketCounters, RareCounters};

    use super::super::attribute::tests::{container, sandbox, to};
    use super::*;
    use crate::sandbox::ContainerKind;

    fn reading(slot: u32, cgroup: u64) -> EdgeReading {
        EdgeReading {
            slot,
            key: Some(to(cgroup, "10.0.0.1")),
            packets: PacketCounters::default(),
            rare: RareCounters::default(),
        }
    }

    fn numbers(slots: &[(u32, EdgeKey)]) -> Vec<u32> {
        slots.iter().map(|(slot, _)| *slot).collect()
    }

    #[test]
    fn only_what_is_gone_and_was_shown_is_given_back() {
        let here = sandbox("here", 10, "10.88.0.2", vec![container("a", 11, ContainerKind::Application)]);
        let mut left = Arc::unwrap_or_clone(sandbox(
            "left",
            20,
            "10.88.0.3",
            vec![container("a", 21, ContainerKind::Application)],
        ));
        left.alive = false;
        let snapshot = Snapshot::new(vec![here, Arc::new(left)], Set::new(), String::new());
        let readings = [reading(1, 11), reading(2, 21), reading(3, 1021), reading(4, 99)];
        let mut unknown = HashMap::new();
        let start = Instant::now();
        let first = Retirement::after_scrape(&readings, &snapshot, &mut unknown, start);
        assert_eq!(numbers(&first.slots), [2, 3]);
        assert_eq!(first.sandboxes, [SandboxKey("left".into())]);
        assert_eq!(numbers(&first.fold), [0; 0], "an unknown cgroup gets time");
        let later = Retirement::after_scrape(&readings, &snapshot, &mut unknown, start + PATIENCE);
        assert_eq!(numbers(&later.fold), [4]);
    }
}
