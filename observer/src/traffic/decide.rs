//! Who the peer of a slot is: decided once, for the moment at which its edge began. Pure.
//!
//! A series must not go back, so what was decided for a slot stays. Where it is not so any more (the address has another
//! owner, or somebody has told meanwhile whose it is), the slot is closed: new connections get a new one, for which it is
//! decided anew.

use observer_common::{
    decision::{FIRST_NUMBER, kind},
    edge::EdgeKey,
};

use super::attribute::{Knowledge, Peer, PeerKind, View, Who};
use crate::{
    hash::FastMap,
    identity::Owner,
    kernel::{Leaving, Slot, SlotUse},
};

/// Text that a record can keep: names of Kubernetes fit, others are cut at once, so that the next agent says the same.
const SHORT: usize = observer_common::record::NAME_LEN - 1;
/// The same for names of pods and workloads.
const LONG: usize = observer_common::record::POD_LEN - 1;

/// The labels of a peer that were decided for a slot; `peer_name` is decided by the names of DNS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What it is.
    pub kind: PeerKind,
    /// `peer_container`.
    pub container: Box<str>,
    /// `peer_namespace`.
    pub namespace: Box<str>,
    /// `peer_pod`.
    pub pod: Box<str>,
    /// `peer_workload_kind`.
    pub workload_kind: Box<str>,
    /// `peer_workload`.
    pub workload: Box<str>,
}

impl Default for Decision {
    fn default() -> Self {
        Self::of(&Peer::of_kind(PeerKind::Other))
    }
}

impl Decision {
    fn of(peer: &Peer<'_>) -> Self {
        Self {
            kind: peer.kind,
            container: cut(peer.container, SHORT).into(),
            namespace: cut(peer.namespace, SHORT).into(),
            pod: cut(peer.pod, LONG).into(),
            workload_kind: cut(peer.workload_kind, SHORT).into(),
            workload: cut(peer.workload, LONG).into(),
        }
    }

    /// As labels.
    #[must_use]
    pub fn peer(&self) -> Peer<'_> {
        Peer {
            kind: self.kind,
            container: &self.container,
            namespace: &self.namespace,
            pod: &self.pod,
            workload_kind: &self.workload_kind,
            workload: &self.workload,
            name: "",
        }
    }

    fn says(&self, peer: &Peer<'_>) -> bool {
        self.peer() == cut_all(peer)
    }

    /// The number of its kind in a record.
    #[must_use]
    pub const fn kind_number(&self) -> u64 {
        match self.kind {
            PeerKind::Container => kind::CONTAINER,
            PeerKind::Pod => kind::POD,
            PeerKind::Service => kind::SERVICE,
            PeerKind::Node => kind::NODE,
            PeerKind::External => kind::EXTERNAL,
            PeerKind::Other => kind::OTHER,
        }
    }

    /// The kind with this number; `None` for one that this agent does not know.
    #[must_use]
    pub const fn kind_of(number: u64) -> Option<PeerKind> {
        Some(match number {
            kind::CONTAINER => PeerKind::Container,
            kind::POD => PeerKind::Pod,
            kind::SERVICE => PeerKind::Service,
            kind::NODE => PeerKind::Node,
            kind::EXTERNAL => PeerKind::External,
            kind::OTHER => PeerKind::Other,
            _ => return None,
        })
    }

    /// Its kind says all.
    fn is_bare(&self) -> bool {
        let Self { kind: _, container, namespace, pod, workload_kind, workload } = self;
        [container, namespace, pod, workload_kind, workload].iter().all(|text| text.is_empty())
    }
}

fn cut(text: &str, length: usize) -> &str {
    &text[..text.floor_char_boundary(length)]
}

fn cut_all<'a>(peer: &Peer<'a>) -> Peer<'a> {
    Peer {
        kind: peer.kind,
        container: cut(peer.container, SHORT),
        namespace: cut(peer.namespace, SHORT),
        pod: cut(peer.pod, LONG),
        workload_kind: cut(peer.workload_kind, SHORT),
        workload: cut(peer.workload, LONG),
        name: "",
    }
}

/// What follows for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// Decide so, where nothing is decided yet.
    pub decide: Option<Peer<'a>>,
    /// Close it.
    pub close: Option<Leaving>,
}

/// What follows for a slot of this edge from what is known. `shown`: a scrape is about to show it, so that it must be
/// decided now; otherwise one whose peer nobody knows, or has named, can wait for somebody who does.
#[must_use]
pub fn judge<'a>(
    decided: Option<&Decision>,
    (key, owner): (&EdgeKey, &Owner<'a>),
    born: u64,
    knowledge: &Knowledge<'a>,
    shown: bool,
) -> Verdict<'a> {
    let at_birth = View::at(key, owner, knowledge, born);
    let at_present = View::at(key, owner, knowledge, knowledge.now);
    let Some(decided) = decided else {
        let may_be_told = at_birth.who == Who::Nobody || !at_birth.told;
        if may_be_told && at_birth == at_present && !shown {
            return Verdict { decide: None, close: None };
        }
        let decision = Decision::of(&at_birth.peer);
        return Verdict { decide: Some(at_birth.peer), close: differs(&decision, &at_birth, &at_present) };
    };
    Verdict { decide: None, close: differs(decided, &at_birth, &at_present) }
}

/// Whether what was decided is not so any more, and whose connections stay with it.
fn differs(decided: &Decision, at_birth: &View<'_>, at_present: &View<'_>) -> Option<Leaving> {
    if decided.says(&at_present.peer) {
        return None;
    }
    let same = at_birth.who == at_present.who && at_present.who != Who::Nobody;
    // A cgroup's id is never given to another: who was known by it stays who it was. So does who was known by an address of
    // which nothing is told: whoever tells is away, or has not begun.
    let forgotten = at_present.who == Who::Nobody && (at_present.is_cgroup || !at_present.told);
    // Somebody might have told of it, and it is known by now that nobody will.
    let given_up = decided.kind == PeerKind::Other && at_present.peer.kind == PeerKind::External;
    // Sources of names come one after the other when an agent starts: what is known less of is no news.
    let lost_owner = at_present.peer.workload_kind == "Pod"
        && !matches!(&*decided.workload_kind, "Pod" | "")
        && at_present.peer.namespace == &*decided.namespace;
    if forgotten && !given_up || same && decided.kind == at_present.peer.kind && (!at_present.told || lost_owner) {
        return None;
    }
    let unknown = matches!(decided.kind, PeerKind::Other | PeerKind::External);
    Some(if same || unknown { Leaving::Nothing } else { Leaving::Connections })
}

/// All decisions, by the numbers that slots have.
#[derive(Debug)]
pub struct Decisions {
    by_number: FastMap<u64, Decision>,
    numbers: FastMap<Decision, u64>,
    next: u64,
}

impl Decisions {
    /// With those that an earlier agent has kept.
    #[must_use]
    pub fn new(kept: impl IntoIterator<Item = (u64, Decision)>) -> Self {
        let mut decisions = Self { by_number: FastMap::default(), numbers: FastMap::default(), next: FIRST_NUMBER };
        for kind in
            [PeerKind::Container, PeerKind::Pod, PeerKind::Service, PeerKind::Node, PeerKind::External, PeerKind::Other]
        {
            let decision = Decision::of(&Peer::of_kind(kind));
            decisions.enter(decision.kind_number() + 1, decision);
        }
        for (number, decision) in kept {
            decisions.next = decisions.next.max(number.saturating_add(1));
            decisions.enter(number, decision);
        }
        decisions
    }

    fn enter(&mut self, number: u64, decision: Decision) {
        self.numbers.insert(decision.clone(), number);
        self.by_number.insert(number, decision);
    }

    /// The decision with this number; `None` for 0, and for one that is not known.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Decision> {
        self.by_number.get(&number)
    }

    /// The number for a peer, and whether it is new: then it must be kept before a slot has it.
    pub fn number(&mut self, peer: &Peer<'_>) -> (u64, bool) {
        let decision = Decision::of(peer);
        if let Some(number) = self.numbers.get(&decision) {
            return (*number, false);
        }
        if decision.is_bare() {
            // All of these are there from the beginning.
            return (decision.kind_number() + 1, false);
        }
        let number = self.next;
        self.next += 1;
        self.enter(number, decision);
        (number, true)
    }

    /// Forgets a decision.
    pub fn forget(&mut self, number: u64) {
        if let Some(decision) = self.by_number.remove(&number) {
            self.numbers.remove(&decision);
        }
    }

    /// Those that are not in use, of those that have a record.
    pub fn unused(&self, used: impl Fn(u64) -> bool) -> Vec<u64> {
        self.by_number.keys().copied().filter(|number| *number >= FIRST_NUMBER && !used(*number)).collect()
    }
}

/// What follows for many slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// These slots have these decisions now.
    pub decide: Vec<(Slot, u64)>,
    /// These are closed.
    pub close: Vec<(Slot, Leaving)>,
}

impl Decisions {
    /// Decides for slots that are new, and finds those of which it is not so any more. `all`: looks at those that are
    /// decided, too, which nothing follows for as long as the knowledge is the same. `shown` as in [`judge`].
    /// `keep` keeps a new decision for the next agent; where it cannot, the peer is other.
    pub fn plan(
        &mut self,
        slots: impl Iterator<Item = SlotUse>,
        knowledge: &Knowledge<'_>,
        (all, shown): (bool, bool),
        mut keep: impl FnMut(u64, &Decision) -> bool,
    ) -> Plan {
        let mut plan = Plan::default();
        for SlotUse { slot, decision, closed } in slots {
            let decided = self.get(decision);
            if decided.is_some() && (closed.is_some() || !all) {
                continue;
            }
            // A series that has no name is not shown.
            let Some(owner) = knowledge.snapshot.by_cgroup(slot.key.cgroup) else { continue };
            let verdict = judge(decided, (&slot.key, &owner), slot.born, knowledge, shown || closed.is_some());
            if let Some(peer) = &verdict.decide {
                let (mut number, new) = self.number(peer);
                if new && !self.by_number.get(&number).is_some_and(|decision| keep(number, decision)) {
                    self.forget(number);
                    number = self.number(&Peer::of_kind(PeerKind::Other)).0;
                }
                plan.decide.push((slot, number));
            }
            if let Some(leaving) = verdict.close.filter(|_| closed.is_none()) {
                plan.close.push((slot, leaving));
            }
        }
        plan
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
