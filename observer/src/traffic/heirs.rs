//! Slots whose totals can become another slot's, or another container's, because both are shown in the same series. Pure.

use observer_common::edge::{Role, flags};

use super::{
    attribute::{PeerKind, peer_key},
    series::{Labels, SeriesKey},
};
use crate::{
    hash::{FastMap, FastSet},
    identity::{Owner, Snapshot},
    kernel::{EdgeReading, Leaving, Slot},
    sandbox::Sandbox,
};

/// Finds an heir for slots that are closed: one of the same container with the same series, so that the sum of the series
/// stays as it is. An address that goes to and fro costs no slots.
#[must_use]
pub fn heirs(readings: &[EdgeReading], labels: &Labels<'_>) -> Vec<(Slot, Slot)> {
    // Where there is nothing to look for, which is the rule, no labels are made.
    let closed = readings.iter().filter(|reading| reading.closed);
    let cgroups: FastSet<u64> = closed.filter_map(|reading| Some(reading.key?.cgroup)).collect();
    if cgroups.is_empty() {
        return Vec::new();
    }
    let mut best: FastMap<(u64, u8, SeriesKey<'_>), (bool, Slot)> = FastMap::default();
    let mut wanted = Vec::new();
    for reading in readings {
        let Some(of) = reading.slot_use().filter(|of| cgroups.contains(&of.slot.key.cgroup)) else { continue };
        let Some(owner) = labels.snapshot.by_cgroup(of.slot.key.cgroup).filter(|owner| owner.sandbox.alive) else {
            continue;
        };
        // Spare slots go to spare slots: each kind has its own queue, and a purpose.
        let spare = of.slot.key.flags & flags::OVERFLOW;
        let key = (of.slot.key.cgroup, spare, labels.of(&of.slot.key, of.decision, &owner));
        if of.closed {
            wanted.push((key, of.slot));
        }
        let there = best.entry(key).or_insert((of.closed, of.slot));
        // One that is open is the best: it takes all closed ones. Else the first.
        if there.0 && !of.closed {
            *there = (false, of.slot);
        }
    }
    let heir = |(key, slot)| best.get(&key).filter(|(_, heir)| *heir != slot).map(|(_, heir)| (slot, *heir));
    wanted.into_iter().filter_map(heir).collect()
}

/// Finds slots of pods that are gone and that were made again with their name, and the cgroup of the container that goes
/// on with their series: so these neither go back nor begin anew. And slots of cgroups below a living container's that are
/// gone, which go to the container's own: so they cost no slots for as long as the container lives.
#[must_use]
pub fn adoptions(readings: &[EdgeReading], labels: &Labels<'_>) -> Vec<(Slot, u64)> {
    let snapshot = labels.snapshot;
    let has_lost = |sandbox: &Sandbox| sandbox.containers.iter().any(|container| !container.gone_cgroup_ids.is_empty());
    if snapshot.sandboxes().iter().all(|sandbox| sandbox.alive && !has_lost(sandbox)) {
        return Vec::new();
    }
    let gone = gone_inside(snapshot);
    let name = |owner: &Owner<'_>| owner.container.map(|container| container.name.clone());
    // More than one can have the name for a moment: it is made again before it is seen that the last one went.
    let mut living: FastMap<(&str, &str), Vec<&Sandbox>> = FastMap::default();
    for sandbox in snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive) {
        living.entry((&sandbox.namespace, &sandbox.name)).or_default().push(sandbox);
    }
    let next = |owner: &Owner<'_>| {
        let sandboxes = living.get(&(owner.sandbox.namespace.as_str(), owner.sandbox.name.as_str()))?;
        let own = |cgroup: u64| snapshot.by_cgroup(cgroup).is_some_and(|next| name(&next) == name(owner));
        let of = |sandbox: &Sandbox| {
            let containers = sandbox.containers.iter().map(|container| (container.cgroup_id, container.alive));
            std::iter::once((sandbox.cgroup_id, true)).chain(containers).collect::<Vec<_>>()
        };
        let same = sandboxes.iter().flat_map(|sandbox| of(sandbox)).filter(|(cgroup, _)| *cgroup != 0 && own(*cgroup));
        // One that has ended does as well: it is shown for as long as its pod lives.
        same.max_by_key(|(_, alive)| *alive).map(|(cgroup, _)| cgroup)
    };
    let adoption = |reading: &EdgeReading| {
        let of = reading.slot_use()?;
        let owner = snapshot.by_cgroup(of.slot.key.cgroup)?;
        let cgroup = if gone.contains(&of.slot.key.cgroup) {
            owner.container?.cgroup_id
        } else if owner.sandbox.alive {
            return None;
        } else {
            next(&owner)?
        };
        // The name of an external peer is decided for each container: the series is the same only if both have the same.
        let external = labels.decisions.get(of.decision).is_none_or(|decision| decision.kind == PeerKind::External);
        if let (Some(names), true) = (labels.names, external && of.slot.key.role() != Role::Server) {
            let mut mine = peer_key(&of.slot.key);
            let before = names.decided(&mine);
            mine.cgroup = cgroup;
            let there = names.decided(&mine);
            // Where the container has no such peer yet, it inherits the name ([`Names::inherit`]).
            if before.is_none() || (there.is_some() || !owner.sandbox.alive) && before != there {
                return None;
            }
        }
        Some((of.slot, cgroup))
    };
    readings.iter().filter_map(adoption).collect()
}

/// Cgroups below living containers' that are gone.
fn gone_inside(snapshot: &Snapshot) -> FastSet<u64> {
    let sandboxes = snapshot.sandboxes().iter().chain(snapshot.others());
    let containers = sandboxes.flat_map(|sandbox| &sandbox.containers).filter(|container| container.alive);
    containers.flat_map(|container| container.gone_cgroup_ids.iter().copied()).collect()
}

/// Slots whose peer over loopback was such a cgroup: nobody begins anything with it any more. Closed, they find their
/// heirs.
#[must_use]
pub fn lost_peers(readings: &[EdgeReading], snapshot: &Snapshot) -> Vec<(Slot, Leaving)> {
    let gone = gone_inside(snapshot);
    if gone.is_empty() {
        return Vec::new();
    }
    let lost = |reading: &EdgeReading| {
        let of = reading.slot_use().filter(|of| !of.closed)?;
        of.slot.key.loopback_peer().filter(|peer| gone.contains(peer))?;
        // Not before it was decided who that was.
        (of.decision != 0).then_some((of.slot, Leaving::Connections))
    };
    readings.iter().filter_map(lost).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use observer_common::{
        counters::{PacketCounters, RareCounters},
        decision::kind,
        edge::EdgeKey,
        tcp::TcpCounters,
    };

    use super::super::{
        attribute::tests::{container, over_loopback, sandbox, to},
        decide::Decisions,
    };
    use super::*;
    use crate::{
        dns::{Budget, Names},
        sandbox::{ContainerKind, Sandbox, SandboxKey},
    };

    const OTHER: u64 = kind::OTHER + 1;
    const NODE: u64 = kind::NODE + 1;

    fn reading(slot: u32, key: EdgeKey, decision: u64, closed: bool) -> EdgeReading {
        EdgeReading {
            slot,
            key: Some(key),
            born: 1,
            decision,
            closed,
            packets: PacketCounters::default(),
            rare: RareCounters::default(),
            tcp: TcpCounters::default(),
        }
    }

    fn found(readings: &[EdgeReading], sandboxes: Vec<Arc<Sandbox>>) -> Vec<(u32, u32)> {
        let snapshot = Snapshot::new(sandboxes, HashSet::new(), String::new());
        let decisions = Decisions::new(Vec::new());
        let labels = Labels { snapshot: &snapshot, decisions: &decisions, names: None };
        heirs(readings, &labels).into_iter().map(|(slot, heir)| (slot.number, heir.number)).collect()
    }

    fn pod(life: u64, alive: bool) -> Arc<Sandbox> {
        let app = container("app", life * 10 + 1, ContainerKind::Application);
        let mut pod = Arc::unwrap_or_clone(sandbox("web", life * 10, "10.88.0.2", vec![app]));
        (pod.key, pod.alive) = (SandboxKey(life.to_string()), alive);
        Arc::new(pod)
    }

    #[test]
    fn a_closed_slot_goes_to_one_of_the_same_series() {
        let (here, there) = (to(11, "10.0.0.1"), to(11, "10.0.0.2"));
        let server = EdgeKey { port: 81, ..here };
        let spare = EdgeKey { flags: flags::OVERFLOW, port: 0, ..here };
        let readings = [
            reading(1, here, NODE, true),
            reading(2, here, OTHER, true),
            reading(3, there, OTHER, true),
            reading(4, here, OTHER, false),
            reading(5, server, OTHER, true),
            reading(6, server, OTHER, true),
            reading(7, spare, OTHER, false),
        ];
        assert_eq!(found(&readings, vec![pod(1, true)]), [(2, 4), (3, 4), (6, 5)], "the open one, else the first");
        assert_eq!(found(&readings[3..4], vec![pod(1, true)]), []);
        assert_eq!(found(&readings, vec![pod(1, false)]), [], "all of it ends soon");
    }

    #[test]
    fn a_pod_that_is_made_again_goes_on_with_what_the_old_one_had() {
        let (key, nested) = (to(11, "10.0.0.1"), to(1011, "10.0.0.1"));
        let again = EdgeKey { cgroup: 21, ..key };
        let pods = EdgeKey { cgroup: 10, ..key };
        let readings = [
            reading(1, key, OTHER, false),
            reading(2, again, OTHER, false),
            reading(3, nested, NODE, true),
            reading(4, pods, NODE, false),
        ];
        let adopted = |readings: &[EdgeReading], sandboxes| {
            let snapshot = Snapshot::new(sandboxes, HashSet::new(), String::new());
            let decisions = Decisions::new(Vec::new());
            let labels = Labels { snapshot: &snapshot, decisions: &decisions, names: None };
            let found = adoptions(readings, &labels);
            found.into_iter().map(|(slot, cgroup)| (slot.number, cgroup)).collect::<Vec<_>>()
        };
        assert_eq!(adopted(&readings, vec![pod(1, false), pod(2, true)]), [(1, 21), (3, 21), (4, 20)]);
        assert_eq!(adopted(&readings, vec![pod(1, false), pod(2, false)]), [], "nobody goes on");
        assert_eq!(adopted(&readings, vec![pod(1, true), pod(2, true)]), [], "nobody is gone");
        let mut other = Arc::unwrap_or_clone(pod(2, true));
        other.containers[0].name = "else".into();
        assert_eq!(adopted(&readings, vec![pod(1, false), Arc::new(other)]), [(4, 20)], "another container");
        let mut third = Arc::unwrap_or_clone(pod(3, true));
        third.containers.clear();
        let three = vec![pod(1, false), pod(2, true), Arc::new(third)];
        assert_eq!(adopted(&readings[..1], three), [(1, 21)], "the last one of the name has no container yet");
        let mut ended = Arc::unwrap_or_clone(pod(2, true));
        ended.containers[0].alive = false;
        assert_eq!(adopted(&readings[..1], vec![pod(1, false), Arc::new(ended)]), [(1, 21)], "it is still shown");
    }

    #[test]
    fn what_a_cgroup_below_a_container_s_had_is_the_container_s_when_it_is_gone() {
        let external = "93.184.216.34";
        let readings = [
            reading(1, to(1011, "10.0.0.1"), OTHER, false),
            reading(2, to(11, "10.0.0.1"), OTHER, false),
            reading(3, to(1011, external), kind::EXTERNAL + 1, false),
        ];
        let adopted = |gone: Vec<u64>, own: Option<&str>| {
            let mut pod = Arc::unwrap_or_clone(pod(1, true));
            pod.containers[0].gone_cgroup_ids = gone;
            let snapshot = Snapshot::new(vec![Arc::new(pod)], HashSet::new(), String::new());
            let kept = [(peer_key(&to(1011, external)), "a".to_owned())].into_iter();
            let kept = kept.chain(own.map(|own| (peer_key(&to(11, external)), own.to_owned())));
            let names = Names::new(kept, Vec::new(), Budget::default());
            let decisions = Decisions::new(Vec::new());
            let labels = Labels { snapshot: &snapshot, decisions: &decisions, names: Some(&names) };
            let found = adoptions(&readings, &labels);
            found.into_iter().map(|(slot, cgroup)| (slot.number, cgroup)).collect::<Vec<_>>()
        };
        assert_eq!(adopted(vec![], None), []);
        assert_eq!(adopted(vec![1011], None), [(1, 11), (3, 11)], "with its name");
        assert_eq!(adopted(vec![1011], Some("a")), [(1, 11), (3, 11)]);
        assert_eq!(adopted(vec![1011], Some("b")), [(1, 11)], "another name is another series");
    }

    #[test]
    fn what_talked_to_such_a_cgroup_is_closed_once_it_is_decided_who_that_was() {
        let (open, other) = (over_loopback(12, 1011), over_loopback(12, 11));
        let readings = [
            reading(1, open, OTHER, false),
            reading(2, open, OTHER, true),
            reading(3, open, 0, false),
            reading(4, other, OTHER, false),
        ];
        let closed = |gone: Vec<u64>| {
            let mut pod = Arc::unwrap_or_clone(pod(1, true));
            pod.containers[0].gone_cgroup_ids = gone;
            let snapshot = Snapshot::new(vec![Arc::new(pod)], HashSet::new(), String::new());
            lost_peers(&readings, &snapshot).into_iter().map(|(slot, _)| slot.number).collect::<Vec<_>>()
        };
        assert_eq!(closed(vec![]), [0; 0]);
        assert_eq!(closed(vec![1011]), [1]);
    }

    #[test]
    fn an_external_peer_goes_along_if_it_has_the_same_name() {
        let address = "93.184.216.34";
        let (key, again) = (to(11, address), to(21, address));
        let snapshot = Snapshot::new(vec![pod(1, false), pod(2, true)], HashSet::new(), String::new());
        let decisions = Decisions::new(Vec::new());
        for (own, next, goes) in [("a", Some("a"), true), ("a", Some("b"), false), ("a", None, false)] {
            let kept = [(peer_key(&key), own.to_owned())].into_iter();
            let kept = kept.chain(next.map(|name| (peer_key(&again), name.to_owned())));
            let names = Names::new(kept, Vec::new(), Budget::default());
            let labels = Labels { snapshot: &snapshot, decisions: &decisions, names: Some(&names) };
            let readings = [reading(1, key, kind::EXTERNAL + 1, false)];
            assert_eq!(adoptions(&readings, &labels).len(), usize::from(goes), "{own} and {next:?}");
        }
    }
}
