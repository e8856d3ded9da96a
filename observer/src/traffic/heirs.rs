//! Slots whose totals can become another slot's, or another container's, because both are shown in the same series. Pure.

use observer_common::{
    dns::PeerKey,
    edge::{Role, flags},
};

use super::{
    attribute::{PeerKind, peer_key},
    retire::GoesOn,
    series::{Labels, SeriesKey},
};
use crate::{
    hash::{FastMap, FastSet},
    identity::{Snapshot, Successors, gone_inside},
    kernel::{EdgeReading, Leaving, Slot, SlotUse},
};

/// Finds an heir for slots that are closed: one of the same container with the same series, so that the sum of the series
/// stays as it is. An address that goes to and fro costs no slots.
#[must_use]
pub fn heirs(readings: &[EdgeReading], labels: &Labels<'_>) -> Vec<(Slot, Slot)> {
    // Where there is nothing to look for, which is the rule, no labels are made.
    let closed = readings.iter().filter(|reading| reading.closed.is_some());
    let cgroups: FastSet<u64> = closed.filter_map(|reading| Some(reading.key?.cgroup)).collect();
    if cgroups.is_empty() {
        return Vec::new();
    }
    let mut best: FastMap<SeriesOf<'_>, (u8, Slot)> = FastMap::default();
    let mut wanted = Vec::new();
    for reading in readings {
        let Some(of) = reading.slot_use().filter(|of| cgroups.contains(&of.slot.key.cgroup)) else { continue };
        let Some(key) = series_of(&of, labels) else { continue };
        if of.closed.is_some() {
            wanted.push((key, of.slot));
        }
        let rank = rank(&of);
        let there = best.entry(key).or_insert((rank, of.slot));
        if rank < there.0 {
            *there = (rank, of.slot);
        }
    }
    let heir = |(key, slot)| best.get(&key).filter(|(_, heir)| *heir != slot).map(|(_, heir)| (slot, *heir));
    wanted.into_iter().filter_map(heir).collect()
}

/// A container's series: its cgroup, whether the slot is a spare one, and the labels.
pub(super) type SeriesOf<'a> = (u64, u8, SeriesKey<'a>);

/// The series that a slot is shown in; `None` when its container is gone, or nobody knows it. Slots with the same one can take
/// each other's totals. Spare slots go to spare slots: each kind has its own queue, and a purpose.
pub(super) fn series_of<'a>(of: &SlotUse, labels: &Labels<'a>) -> Option<SeriesOf<'a>> {
    let key = &of.slot.key;
    let owner = labels.snapshot.by_cgroup(key.cgroup).filter(|owner| owner.sandbox.alive)?;
    Some((key.cgroup, key.flags & flags::OVERFLOW, labels.of(key, of.decision, &owner)))
}

/// Which slot takes others: one that is open, else one that connections count in, else one that they have left. So none that
/// connections count in goes to one that they have left, in which they are not found again.
const fn rank(of: &SlotUse) -> u8 {
    match of.closed {
        None => 0,
        Some(Leaving::Connections) => 1,
        Some(Leaving::Nothing) => 2,
    }
}

/// Finds slots of cgroups that are gone, and the cgroup that goes on with their series ([`Successors`]): so these neither go back
/// nor begin anew, and a container that makes cgroups, or ends again and again, costs no slots for as long as it lives.
///
/// The name of an external peer is decided for each container. If the next container knows no such peer, it inherits it with its
/// name ([`Names::inherit`](crate::dns::Names::inherit)); if it knows it by another name, the slot is merged into one that stays
/// in its series, where there is one.
#[must_use]
pub fn go_on(readings: &[EdgeReading], labels: &Labels<'_>) -> GoesOn {
    let mut goes_on = GoesOn { merge: heirs(readings, labels), adopt: Vec::new() };
    let Some(successors) = Successors::of(labels.snapshot) else { return goes_on };
    let merged: FastSet<u32> = goes_on.merge.iter().map(|(slot, _)| slot.number).collect();
    let slots = || readings.iter().filter_map(EdgeReading::slot_use).filter(|of| !merged.contains(&of.slot.number));
    let (mut staying, mut refused) = (Vec::new(), Vec::new());
    let mut next = FastSet::default();
    for of in slots() {
        let Some(cgroup) = successors.successor(of.slot.key.cgroup) else { continue };
        if is_known_otherwise(&of, cgroup, labels) {
            refused.push(of);
            next.insert(cgroup);
        } else {
            staying.push(of);
            goes_on.adopt.push((of.slot, cgroup));
        }
    }
    if !refused.is_empty() {
        staying.extend(slots().filter(|of| next.contains(&of.slot.key.cgroup)));
        let series = |of: &SlotUse| {
            let owner = labels.snapshot.by_cgroup(of.slot.key.cgroup)?;
            let spare = of.slot.key.flags & flags::OVERFLOW;
            Some(((spare, labels.of(&of.slot.key, of.decision, &owner)), of.slot))
        };
        let takes = |of: &&SlotUse| of.closed != Some(Leaving::Nothing);
        let heirs: FastMap<_, Slot> = staying.iter().filter(takes).filter_map(series).collect();
        let heir = |of: &SlotUse| heirs.get(&series(of)?.0).map(|heir| (of.slot, *heir));
        goes_on.merge.extend(refused.iter().filter_map(heir));
    }
    goes_on
}

/// True when the slot's peer has a name that it was given for its container alone, and that container's successor knows it by
/// another one, or when no name was decided yet.
fn is_known_otherwise(of: &SlotUse, successor: u64, labels: &Labels<'_>) -> bool {
    let external = labels.decisions.get(of.decision).is_none_or(|decision| decision.kind == PeerKind::External);
    let (Some(names), true) = (labels.names, external && of.slot.key.role() != Role::Server) else { return false };
    let mine = peer_key(&of.slot.key);
    let before = names.decided(&mine);
    let there = names.decided(&PeerKey { cgroup: successor, ..mine });
    before.is_none() || there.is_some() && before != there
}

/// Slots whose peer over loopback was a cgroup below a container's that is gone: nobody begins anything with it any more.
/// Closed, they find their heirs.
#[must_use]
pub fn lost_peers(readings: &[EdgeReading], snapshot: &Snapshot) -> Vec<(Slot, Leaving)> {
    let gone = gone_inside(snapshot);
    if gone.is_empty() {
        return Vec::new();
    }
    let lost = |reading: &EdgeReading| {
        let of = reading.slot_use().filter(|of| of.closed.is_none())?;
        of.slot.key.loopback_peer().filter(|peer| gone.contains(peer))?;
        // Not before it was decided who that was.
        (of.decision != 0).then_some((of.slot, Leaving::Connections))
    };
    readings.iter().filter_map(lost).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use observer_common::{counters::PacketCounters, decision::kind, edge::EdgeKey, tcp::TcpCounters};

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
        let closed = closed.then_some(Leaving::Connections);
        EdgeReading {
            slot,
            key: Some(key),
            born: 1,
            decision,
            closed,
            packets: PacketCounters::default(),
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
        let left = |slot| EdgeReading { closed: Some(Leaving::Nothing), ..reading(slot, here, OTHER, true) };
        let readings_left = [readings[1], readings[3], left(8), left(9)];
        assert_eq!(found(&readings_left, vec![pod(1, true)]), [(2, 4), (8, 4), (9, 4)], "the open one");
        let left_and_closed = [left(8), readings[1], left(9)];
        assert_eq!(found(&left_and_closed, vec![pod(1, true)]), [(8, 2), (9, 2)], "not one that they have left");
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
            let found = go_on(readings, &labels).adopt;
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
            let found = go_on(&readings, &labels).adopt;
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
    fn an_external_peer_goes_along_with_its_name() {
        let (here, there, further) = ("93.184.216.34", "93.184.216.35", "93.184.216.36");
        let snapshot = Snapshot::new(vec![pod(1, false), pod(2, true)], HashSet::new(), String::new());
        let decisions = Decisions::new(Vec::new());
        let external = |slot, cgroup, address| reading(slot, to(cgroup, address), kind::EXTERNAL + 1, false);
        let readings = vec![external(1, 11, here), external(2, 11, there), external(3, 21, here)];
        let goes_on = |readings: &[EdgeReading], next: Option<&str>| {
            let kept = [(here, 11, Some("a")), (there, 11, Some("a")), (here, 21, next), (further, 21, Some("a"))];
            let kept = kept
                .into_iter()
                .filter_map(|(to_whom, cgroup, name)| Some((peer_key(&to(cgroup, to_whom)), name?.to_owned())));
            let names = Names::new(kept, Vec::new(), Budget::default());
            let found = go_on(readings, &Labels { snapshot: &snapshot, decisions: &decisions, names: Some(&names) });
            let adopted: Vec<_> = found.adopt.into_iter().map(|(slot, cgroup)| (slot.number, cgroup)).collect();
            (adopted, found.merge.into_iter().map(|(slot, heir)| (slot.number, heir.number)).collect::<Vec<_>>())
        };
        assert_eq!(goes_on(&readings, Some("a")), (vec![(1, 21), (2, 21)], vec![]), "each address of the name");
        assert_eq!(goes_on(&readings, None), (vec![(1, 21), (2, 21)], vec![]), "the next one inherits the name");
        assert_eq!(goes_on(&readings, Some("b")), (vec![(2, 21)], vec![(1, 2)]), "it stays in the series of its name");
        let with_own = [external(1, 11, here), external(3, 21, here), external(4, 21, further)];
        assert_eq!(goes_on(&with_own, Some("b")), (vec![], vec![(1, 4)]), "with what the next one has counted in it");
        assert_eq!(goes_on(&with_own[..2], Some("b")), (vec![], vec![]), "it ends");
    }
}
