//! When edges are given back. Pure: what to retire is decided here, done by the edge table.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use observer_common::edge::EdgeKey;

use crate::{
    identity::{Snapshot, gone_inside},
    kernel::{EdgeReading, Slot},
    sandbox::{Container, SandboxKey},
};

/// How long counters of a cgroup that nobody knows are kept under an empty name, in the hope that somebody tells.
const PATIENCE: Duration = Duration::from_secs(600);

/// What can be given back after a scrape.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Retirement {
    /// Sandboxes that are gone and whose final totals were in the scrape, each with its cgroups.
    pub sandboxes: Vec<(SandboxKey, Vec<u64>)>,
    /// Cgroups of pods that are not to be observed.
    pub left_out: Vec<u64>,
    /// Cgroups below living containers' that are gone, again with each scrape: their names may go.
    pub gone_inside: Vec<u64>,
    /// Slots that somebody goes on with.
    pub goes_on: GoesOn,
    /// Slots whose counters end with their sandbox, each with its birth: whomever it was given to meanwhile, it was shown for
    /// the last time.
    pub slots: Vec<(u32, u64)>,
    /// Slots whose counters go to the unattributed slot.
    pub fold: Vec<(u32, EdgeKey)>,
}

/// Slots that somebody goes on with.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GoesOn {
    /// Slots whose counters go to another one of the same series.
    pub merge: Vec<(Slot, Slot)>,
    /// Slots of sandboxes that are gone, and the cgroups of those that go on with their series.
    pub adopt: Vec<(Slot, u64)>,
}

impl Retirement {
    /// Decides after a scrape that showed these readings with this snapshot. `unknown` remembers since when a cgroup
    /// has had no name; `goes_on` are slots that somebody goes on with.
    #[must_use]
    pub fn after_scrape(
        readings: &[EdgeReading],
        goes_on: GoesOn,
        snapshot: &Snapshot,
        unknown: &mut HashMap<u64, Instant>,
        now: Instant,
    ) -> Self {
        let gone_inside = gone_inside(snapshot).into_iter().collect();
        let mut retirement = Self { goes_on, gone_inside, ..Self::default() };
        let GoesOn { merge, adopt } = &retirement.goes_on;
        let going_on = merge.iter().map(|(slot, _)| slot).chain(adopt.iter().map(|(slot, _)| slot));
        let going_on: HashSet<u32> = going_on.map(|slot| slot.number).collect();
        let mut gone = HashSet::<u64>::new();
        for sandbox in snapshot.sandboxes().iter().filter(|sandbox| !sandbox.alive) {
            let of =
                |container: &Container| std::iter::once(container.cgroup_id).chain(container.nested_cgroup_ids.clone());
            let own = std::iter::once(sandbox.cgroup_id).chain(sandbox.other_cgroup_ids.iter().copied());
            let cgroups = own.chain(sandbox.containers.iter().flat_map(of));
            // A container that joined another's namespace belongs to that one now, and goes on.
            let lives = |id: u64| snapshot.peer_by_cgroup(id).is_some_and(|owner| owner.sandbox.alive);
            let cgroups: Vec<u64> = cgroups.filter(|cgroup| *cgroup != 0 && !lives(*cgroup)).collect();
            gone.extend(&cgroups);
            retirement.sandboxes.push((sandbox.key.clone(), cgroups));
        }
        let mut left_out = HashSet::new();
        let mut still_unknown = HashSet::new();
        for reading in readings {
            let Some(key) = &reading.key else { continue };
            if snapshot.is_left_out(key.cgroup) {
                // It was counted before that was known, or for an earlier agent that was told otherwise.
                retirement.slots.push((reading.slot, reading.born));
                left_out.insert(key.cgroup);
            } else if gone.contains(&key.cgroup) {
                if going_on.contains(&reading.slot) {
                    continue;
                }
                retirement.slots.push((reading.slot, reading.born));
            } else if snapshot.by_cgroup(key.cgroup).is_none() {
                still_unknown.insert(key.cgroup);
                if now.duration_since(*unknown.entry(key.cgroup).or_insert(now)) >= PATIENCE {
                    retirement.fold.push((reading.slot, *key));
                }
            }
        }
        unknown.retain(|cgroup, _| still_unknown.contains(cgroup));
        retirement.left_out = left_out.into_iter().collect();
        retirement.left_out.sort_unstable();
        retirement
    }

    /// Sandboxes that can be let go of, and cgroups whose names can, when these cgroups still have slots: one that went on
    /// with another's after the scrape that this was decided by. The next scrape shows these, and decides again. A cgroup below
    /// a container's is not let go of either while it is the peer of a slot over loopback.
    #[must_use]
    pub fn settled(self, counting: &HashSet<u64>, peers: &HashSet<u64>) -> (Vec<SandboxKey>, Vec<u64>) {
        let Self { sandboxes, left_out, gone_inside, .. } = self;
        let free = |cgroups: &[u64]| !cgroups.iter().any(|cgroup| counting.contains(cgroup));
        let (keys, cgroups): (Vec<_>, Vec<_>) = sandboxes.into_iter().filter(|(_, cgroups)| free(cgroups)).unzip();
        let inside = gone_inside.into_iter().filter(|cgroup| !counting.contains(cgroup) && !peers.contains(cgroup));
        (keys, cgroups.into_iter().flatten().chain(left_out).chain(inside).collect())
    }

    /// True when there is nothing to do. Names alone wait for the next work.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let GoesOn { merge, adopt } = &self.goes_on;
        merge.is_empty()
            && adopt.is_empty()
            && self.sandboxes.is_empty()
            && self.slots.is_empty()
            && self.fold.is_empty()
    }
}

/// What a map has refused to take back. No scrape asks for these slots again: they were shown for the last time.
#[derive(Debug, Default)]
pub struct Refused {
    slots: Vec<(u32, u64)>,
    any: bool,
}

impl Refused {
    /// Keeps slots for the next time, each with its birth. Some may be taken back in part.
    pub fn keep(&mut self, slots: &[(u32, u64)]) {
        self.any = true;
        self.slots.extend(slots);
    }

    /// Has them taken back with these. Says whether there was anything to finish first.
    #[must_use]
    pub fn retry(&mut self, retirement: &mut Retirement) -> bool {
        let Self { slots, any } = std::mem::take(self);
        retirement.slots.extend(slots);
        any
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet as Set, sync::Arc};

    use observer_common::{counters::PacketCounters, tcp::TcpCounters};

    use super::super::attribute::tests::{container, sandbox, to};
    use super::*;
    use crate::sandbox::ContainerKind;

    fn reading(slot: u32, cgroup: u64) -> EdgeReading {
        EdgeReading {
            slot,
            key: Some(to(cgroup, "10.0.0.1")),
            born: 0,
            decision: 0,
            closed: None,
            packets: PacketCounters::default(),
            tcp: TcpCounters::default(),
        }
    }

    fn numbers(slots: &[(u32, impl Copy)]) -> Vec<u32> {
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
        let first = Retirement::after_scrape(&readings, Default::default(), &snapshot, &mut unknown, start);
        assert_eq!(numbers(&first.slots), [2, 3]);
        assert_eq!(first.sandboxes, [(SandboxKey("left".into()), vec![20, 21, 1021])]);
        assert_eq!(numbers(&first.fold), [0; 0], "an unknown cgroup gets time");
        let counting = HashSet::from([1021]);
        let first_again = Retirement::after_scrape(&readings, GoesOn::default(), &snapshot, &mut unknown, start);
        assert_eq!(first.settled(&HashSet::from([11]), &Set::new()).0, [SandboxKey("left".into())]);
        let (keys, names) = first_again.settled(&counting, &Set::new());
        assert!(keys.is_empty() && names.is_empty(), "it went on with another's slot, which the next scrape shows");
        let later = Retirement::after_scrape(&readings, Default::default(), &snapshot, &mut unknown, start + PATIENCE);
        assert_eq!(numbers(&later.fold), [4]);
    }

    #[test]
    fn a_container_that_goes_on_in_another_sandbox_keeps_its_slots() {
        let app = || vec![container("a", 11, ContainerKind::Application)];
        let mut alone = Arc::unwrap_or_clone(sandbox("alone", 0, "10.88.0.2", app()));
        (alone.alive, alone.other_cgroup_ids) = (false, vec![12]);
        let joined = sandbox("joined", 20, "10.88.0.3", app());
        let snapshot = Snapshot::new(vec![Arc::new(alone), joined], Set::new(), String::new());
        let readings = [reading(1, 11), reading(2, 12)];
        let retirement =
            Retirement::after_scrape(&readings, GoesOn::default(), &snapshot, &mut HashMap::new(), Instant::now());
        assert_eq!(numbers(&retirement.slots), [2], "what was the first one's alone ends with it");
        assert_eq!(retirement.sandboxes, [(SandboxKey("alone".into()), vec![12])]);
    }

    #[test]
    fn the_name_of_a_cgroup_below_a_container_s_goes_when_it_is_gone_and_no_slot_knows_it() {
        let mut pod = sandbox("here", 10, "10.88.0.2", vec![container("a", 11, ContainerKind::Application)]);
        Arc::make_mut(&mut pod).containers[0].gone_cgroup_ids = vec![1011];
        let snapshot = Snapshot::new(vec![pod], Set::new(), String::new());
        let let_go = |counting: &[u64], peers: &[u64]| {
            let now = Instant::now();
            let retirement = Retirement::after_scrape(&[], GoesOn::default(), &snapshot, &mut HashMap::new(), now);
            assert!(retirement.is_empty(), "names alone are no work that comes with each scrape");
            retirement.settled(&counting.iter().copied().collect(), &peers.iter().copied().collect())
        };
        assert_eq!(let_go(&[11], &[11]), (vec![], vec![1011]));
        assert_eq!(let_go(&[1011], &[]), (vec![], vec![]));
        assert_eq!(let_go(&[], &[1011]), (vec![], vec![]));
    }

    #[test]
    fn what_a_map_has_refused_is_asked_for_again_until_it_is_taken() {
        let asked = |number| Retirement { slots: vec![(number, 7)], ..Retirement::default() };
        let mut refused = Refused::default();
        let mut first = asked(1);
        assert!(!refused.retry(&mut first));
        refused.keep(&first.slots);
        let mut second = asked(2);
        assert!(refused.retry(&mut second));
        assert_eq!(second.slots, [(2, 7), (1, 7)]);
        refused.keep(&second.slots);
        let mut third = Retirement::default();
        assert!(refused.retry(&mut third), "a map may refuse for long");
        assert_eq!(third.slots, [(2, 7), (1, 7)]);
        assert!(!refused.retry(&mut asked(3)), "taken");
        refused.keep(&[]);
        assert!(refused.retry(&mut asked(4)), "what was folded in part is finished, too");
    }
}
