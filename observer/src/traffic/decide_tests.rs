use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use observer_common::{counters::PacketCounters, tcp::TcpCounters};
use proptest::prelude::*;

use super::{
    super::{
        attribute::{
            PeerDetail,
            tests::{container, knowing, over_loopback, sandbox, to},
        },
        go_on,
        series::{Labels, sum},
    },
    *,
};
use crate::{
    identity::{
        Snapshot,
        cluster::{PeerBook, PeerRecord},
    },
    kernel::EdgeReading,
    sandbox::{ContainerKind, Sandbox, SandboxKey},
};

const CLIENT: u64 = 12;
const ADDRESSES: [&str; 2] = ["10.88.0.5", "10.88.0.6"];

fn client() -> Arc<Sandbox> {
    let application = ContainerKind::Application;
    sandbox("web", 10, "10.88.0.2", vec![container("app", CLIENT, application), container("proxy", 13, application)])
}

/// A pod in the life `life`, that has had its address in these times.
fn pod(name: &str, life: u64, address: &str, times: (u64, u64)) -> Sandbox {
    let mut pod = Arc::unwrap_or_clone(sandbox(name, 100 + life, address, vec![]));
    pod.key = SandboxKey(format!("{name}-{life}"));
    (pod.since, pod.until) = times;
    pod.alive = times.1 == u64::MAX;
    pod
}

/// The same before anybody has told its name.
fn untold(pod: &Sandbox) -> Sandbox {
    let name = pod.key.0.clone();
    Sandbox { namespace: String::new(), name, workload_kind: String::new(), workload: String::new(), ..pod.clone() }
}

fn snapshot(pods: impl IntoIterator<Item = Sandbox>) -> Snapshot {
    let all = std::iter::once(client()).chain(pods.into_iter().map(Arc::new)).collect();
    Snapshot::new(all, HashSet::new(), String::new())
}

fn verdict<'a>(
    snapshot: &'a Snapshot,
    decided: Option<&Decision>,
    key: &EdgeKey,
    born: u64,
    shown: bool,
) -> Verdict<'a> {
    let owner = snapshot.by_cgroup(key.cgroup).unwrap();
    judge(decided, (key, &owner), born, &knowing(snapshot, PeerDetail::Pod), shown)
}

fn decision(name: &str) -> Decision {
    let peer =
        Peer { namespace: "shop", workload_kind: "Pod", workload: name, pod: name, ..Peer::of_kind(PeerKind::Pod) };
    Decision::of(&peer)
}

#[test]
fn an_edge_is_with_whom_the_address_belonged_to_when_it_began() {
    let moved = snapshot([pod("old", 1, ADDRESSES[0], (10, 20)), pod("new", 2, ADDRESSES[0], (30, u64::MAX))]);
    let key = to(CLIENT, ADDRESSES[0]);
    let decided = |born, shown| {
        let Verdict { decide, close } = verdict(&moved, None, &key, born, shown);
        (decide.map(|peer| peer.pod), close)
    };
    assert_eq!(decided(15, false), (Some("old"), Some(Leaving::Connections)));
    assert_eq!(decided(30, false), (Some("new"), None));
    assert_eq!(decided(25, false), (Some(""), Some(Leaving::Nothing)), "nobody had it, and it is known who has it now");
    let gone = snapshot([pod("old", 1, ADDRESSES[0], (10, 20))]);
    let waits = verdict(&gone, None, &key, 25, false);
    assert_eq!((waits.decide, waits.close), (None, None), "somebody may be seen to have had it");
    let shown = verdict(&gone, None, &key, 25, true);
    assert_eq!((shown.decide.unwrap().kind, shown.close), (PeerKind::Other, None));
    let both = snapshot([pod("old", 1, ADDRESSES[0], (10, u64::MAX)), pod("new", 2, ADDRESSES[0], (30, u64::MAX))]);
    assert_eq!(verdict(&both, None, &key, 40, false).decide.unwrap().pod, "new", "the last to come");
    assert_eq!(verdict(&both, None, &key, 20, false).decide.unwrap().pod, "old");
}

#[test]
fn what_was_decided_is_closed_when_it_is_not_so_any_more() {
    let key = to(CLIENT, ADDRESSES[0]);
    let close =
        |pods: Vec<Sandbox>, decided: &Decision, born| verdict(&snapshot(pods), Some(decided), &key, born, true).close;
    let old = || pod("old", 1, ADDRESSES[0], (10, 20));
    let new = || pod("new", 2, ADDRESSES[0], (30, u64::MAX));
    assert_eq!(close(vec![old(), new()], &decision("old"), 15), Some(Leaving::Connections));
    assert_eq!(close(vec![old()], &decision("old"), 15), Some(Leaving::Connections), "it has gone");
    assert_eq!(close(vec![], &decision("old"), 15), Some(Leaving::Connections), "while no agent was there");
    assert_eq!(close(vec![old(), new()], &decision("new"), 35), None);
    assert_eq!(close(vec![new()], &Decision::default(), 35), Some(Leaving::Nothing), "it was told late");
    assert_eq!(close(vec![], &Decision::default(), 35), None);
    assert_eq!(close(vec![untold(&new())], &decision("new"), 35), None, "what is known less of is no news");
    assert_eq!(close(vec![untold(&new())], &decision("old"), 15), Some(Leaving::Connections));
    let owned = Sandbox { workload_kind: "Deployment".into(), workload: "shop".into(), ..new() };
    let with_owner = Decision::of(&Peer { workload_kind: "Deployment", workload: "shop", ..decision("new").peer() });
    assert_eq!(close(vec![owned], &decision("new"), 35), Some(Leaving::Nothing), "its owner is known now");
    assert_eq!(close(vec![new()], &with_owner, 35), None, "its owner is not known yet");
}

#[test]
fn beyond_the_node_the_book_says_who_and_when() {
    let book = PeerBook::default();
    let address: std::net::IpAddr = "10.99.0.1".parse().unwrap();
    let tell = |name: Option<&str>, since| {
        let record = |name: &str| Arc::new(PeerRecord::Service { namespace: "shop".into(), name: name.into() });
        book.tell(address, name.map(record), since);
    };
    let (all, key) = (snapshot([]), to(CLIENT, "10.99.0.1"));
    let service =
        |name| Peer { namespace: "shop", workload_kind: "Service", workload: name, ..Peer::of_kind(PeerKind::Service) };
    let judged = |decided: Option<&Peer<'_>>, born| {
        let (open, owner) = (book.open(), all.by_cgroup(CLIENT).unwrap());
        let knowledge = Knowledge { book: Some(&open), ..knowing(&all, PeerDetail::Pod) };
        let Verdict { decide, close } =
            judge(decided.map(Decision::of).as_ref(), (&key, &owner), born, &knowledge, false);
        (decide.map(|peer| peer.workload.to_owned()), close)
    };
    let other = Peer::of_kind(PeerKind::Other);
    assert_eq!(judged(None, 5), (None, None), "somebody may tell");
    assert_eq!(judged(Some(&service("old")), 5), (None, None), "nobody has told yet");
    tell(Some("old"), 10);
    assert_eq!(judged(None, 15), (Some("old".into()), None));
    assert_eq!(judged(Some(&other), 5), (None, Some(Leaving::Nothing)));
    tell(Some("new"), 20);
    assert_eq!(judged(None, 15), (Some("old".into()), Some(Leaving::Connections)));
    assert_eq!(judged(Some(&service("old")), 15), (None, Some(Leaving::Connections)));
    assert_eq!(judged(Some(&service("new")), 25), (None, None));
    tell(None, 30);
    assert_eq!(judged(Some(&service("new")), 25), (None, Some(Leaving::Connections)), "it is nobody's now");
}

#[test]
fn what_was_pending_is_put_right_once_all_is_told_or_nobody_will() {
    let (all, other, external) = (snapshot([]), Peer::of_kind(PeerKind::Other), Peer::of_kind(PeerKind::External));
    let book = PeerBook::default();
    let judged = |decided: &Peer<'_>, address: &str, shown| {
        let (open, owner) = (book.open(), all.by_cgroup(CLIENT).unwrap());
        let knowledge = Knowledge { book: Some(&open), ..knowing(&all, PeerDetail::Pod) };
        let (key, decided) = (to(CLIENT, address), Decision::of(decided));
        let first = judge(None, (&key, &owner), 5, &knowledge, shown).decide.map(|peer| peer.kind);
        (first, judge(Some(&decided), (&key, &owner), 5, &knowledge, shown).close)
    };
    let (public, private) = ("93.184.216.34", "10.99.0.1");
    for address in [public, private] {
        assert_eq!(judged(&other, address, false), (None, None), "{address}: somebody may tell");
        assert_eq!(judged(&external, address, true), (Some(PeerKind::Other), None), "{address}: from another agent");
    }
    book.complete(false);
    assert_eq!(judged(&other, public, true), (Some(PeerKind::External), Some(Leaving::Nothing)));
    assert_eq!(judged(&other, private, true), (Some(PeerKind::Other), None));
    book.complete(true);
    for address in [public, private] {
        let closed = (Some(PeerKind::External), Some(Leaving::Nothing));
        assert_eq!(judged(&other, address, true), closed, "{address}");
        assert_eq!(judged(&external, address, true).1, None, "{address}");
    }
}

#[test]
fn a_cgroup_is_never_somebody_else() {
    let key = over_loopback(CLIENT, 13);
    let proxy = Decision::of(&Peer { container: "proxy", ..Peer::of_kind(PeerKind::Container) });
    let all = snapshot([]);
    assert_eq!(verdict(&all, None, &key, 1, false).decide.unwrap().container, "proxy");
    assert_eq!(verdict(&all, Some(&proxy), &key, 1, true).close, None);
    let forgotten = over_loopback(CLIENT, 99);
    assert_eq!(verdict(&all, Some(&proxy), &forgotten, 1, true).close, None);
    assert_eq!(verdict(&all, Some(&Decision::default()), &key, 1, true).close, Some(Leaving::Nothing), "told late");
    let mut early = Arc::unwrap_or_clone(client());
    early.containers[1].name = early.containers[1].id[..12].into();
    let early = Snapshot::new(vec![Arc::new(early)], HashSet::new(), String::new());
    assert_eq!(verdict(&early, Some(&proxy), &key, 1, true).close, None, "not told yet");
}

#[test]
fn numbers_stay_for_the_next_agent() {
    let mut decisions = Decisions::new(Vec::new());
    let (old, external) = (decision("old"), Peer::of_kind(PeerKind::External));
    assert_eq!(decisions.number(&external), (kind::EXTERNAL + 1, false), "it has no record");
    assert_eq!(decisions.number(&old.peer()), (FIRST_NUMBER, true));
    assert_eq!(decisions.number(&old.peer()), (FIRST_NUMBER, false));
    let mut next = Decisions::new([(FIRST_NUMBER + 6, old.clone())]);
    assert_eq!(next.number(&old.peer()), (FIRST_NUMBER + 6, false));
    assert_eq!(next.number(&decision("new").peer()), (FIRST_NUMBER + 7, true));
    assert_eq!(next.get(kind::OTHER + 1), Some(&Decision::default()));
    assert_eq!(next.get(0), None);
    assert_eq!(next.unused(|number| number == FIRST_NUMBER + 7), [FIRST_NUMBER + 6]);
    next.forget(FIRST_NUMBER + 6);
    assert_eq!(next.number(&old.peer()), (FIRST_NUMBER + 8, true));
}

#[test]
fn a_peer_whose_name_cannot_be_kept_is_other() {
    let all = snapshot([pod("p", 1, ADDRESSES[0], (1, u64::MAX))]);
    let slot = Slot { number: 1, key: to(CLIENT, ADDRESSES[0]), born: 5 };
    let mut decisions = Decisions::new(Vec::new());
    let knowledge = Knowledge { snapshot: &all, book: None, detail: PeerDetail::Pod, now: 9 };
    let mut plan = |keeps| {
        let slots = [SlotUse { slot, decision: 0, closed: None }];
        decisions.plan(slots.into_iter(), &knowledge, (true, true), |_, _| keeps).decide
    };
    assert_eq!(plan(false), [(slot, kind::OTHER + 1)]);
    assert_eq!(plan(true).len(), 1);
    assert!(plan(true)[0].1 >= FIRST_NUMBER);
}

/// What can happen.
#[derive(Debug, Clone)]
enum Event {
    /// A pod of this name takes an address that is free; its name is told at once, or later.
    Begin {
        name: u8,
        address: u8,
        told: bool,
        seen: bool,
    },
    /// The pod at this address ends.
    End {
        address: u8,
    },
    /// Everything is seen and told.
    Tell,
    /// Bytes on a connection: a new one, or (if there is one) the last one to this address.
    Send {
        address: u8,
        bytes: u16,
        new: bool,
    },
    Scrape,
    /// The agent is killed and another one starts.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let address = 0..2u8;
    prop_oneof![
        2 => (0..2u8, address.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(name, address, told, seen)| Event::Begin { name, address, told, seen }),
        2 => address.clone().prop_map(|address| Event::End { address }),
        1 => Just(Event::Tell),
        5 => (address, 1..500u16, any::<bool>()).prop_map(|(address, bytes, new)| Event::Send { address, bytes, new }),
        3 => Just(Event::Scrape),
        1 => Just(Event::Restart),
    ]
}

/// A pod as it is, and what the agent knows of it.
struct Life {
    pod: Sandbox,
    address: u8,
    told: bool,
    seen: bool,
}

struct Connection {
    slot: usize,
    /// Who had the address when it began.
    with: Option<String>,
}

/// The kernel's table and the agent, without either.
#[derive(Default)]
struct World {
    now: u64,
    lives: Vec<Life>,
    slots: Vec<(SlotUse, u64)>,
    edges: HashMap<EdgeKey, usize>,
    connections: HashMap<u8, Connection>,
    decisions: Option<Decisions>,
    kept: HashMap<u64, Decision>,
    /// What was sent while a pod of this name had the address, or on a connection that began then.
    truth: BTreeMap<String, u64>,
    sent: u64,
    shown: BTreeMap<String, u64>,
    /// The same pods, told from the beginning: nothing may be said to be other but what was nobody's.
    nobodys: u64,
}

impl World {
    fn snapshot(&self) -> Snapshot {
        let seen = self.lives.iter().filter(|life| life.seen);
        snapshot(seen.map(|life| if life.told { life.pod.clone() } else { untold(&life.pod) }))
    }

    fn at(&self, address: u8) -> Option<&Life> {
        self.lives.iter().find(|life| life.address == address && life.pod.alive)
    }

    fn step(&mut self, event: &Event) {
        self.now += 1;
        match *event {
            Event::Begin { name, address, told, seen } if self.at(address).is_none() => {
                let name = ["red", "blue"][usize::from(name)];
                let life = self.lives.len() as u64;
                let pod = pod(name, life, ADDRESSES[usize::from(address)], (self.now, u64::MAX));
                self.lives.push(Life { pod, address, told, seen });
                self.look(false);
            }
            Event::Begin { .. } => {}
            Event::End { address } => {
                let now = self.now;
                if let Some(life) = self.lives.iter_mut().find(|life| life.address == address && life.pod.alive) {
                    (life.pod.alive, life.pod.until) = (false, now);
                    // What has gone unseen stays so.
                    self.look(false);
                }
            }
            Event::Tell => {
                self.lives
                    .iter_mut()
                    .filter(|life| life.pod.alive)
                    .for_each(|life| (life.told, life.seen) = (true, true));
                self.look(false);
            }
            Event::Send { address, bytes, new } => self.send(address, bytes.into(), new),
            Event::Scrape => self.scrape(),
            Event::Restart => self.decisions = None,
        }
    }

    fn send(&mut self, address: u8, bytes: u64, new: bool) {
        let key = to(CLIENT, ADDRESSES[usize::from(address)]);
        let known = self.connections.get(&address).filter(|_| !new).map(|connection| connection.slot);
        let slot = known.unwrap_or_else(|| {
            *self.edges.entry(key).or_insert_with(|| {
                let slot = Slot { number: self.slots.len() as u32 + 1, key, born: self.now };
                self.slots.push((SlotUse { slot, decision: 0, closed: None }, 0));
                self.slots.len() - 1
            })
        });
        let with = self.at(address).map(|life| life.pod.name.clone());
        if known.is_none() {
            self.connections.insert(address, Connection { slot, with: with.clone() });
        } else if let Some(connection) = self.connections.get_mut(&address) {
            // Its line was cleared, and it goes on in the slot that it finds; it is the same connection.
            connection.slot = slot;
        }
        let whose = self.connections[&address].with.clone().or(with);
        self.slots[slot].1 += bytes;
        self.sent += bytes;
        match whose {
            Some(name) => *self.truth.entry(name).or_default() += bytes,
            None => self.nobodys += bytes,
        }
    }

    fn decisions(&mut self) -> Decisions {
        let kept = &self.kept;
        self.decisions.take().unwrap_or_else(|| Decisions::new(kept.clone()))
    }

    fn look(&mut self, shown: bool) {
        let (snapshot, mut decisions) = (self.snapshot(), self.decisions());
        let knowledge = Knowledge { snapshot: &snapshot, book: None, detail: PeerDetail::Pod, now: self.now };
        let slots: Vec<SlotUse> = self.slots.iter().map(|(of, _)| *of).filter(|of| of.slot.born > 0).collect();
        let kept = &mut self.kept;
        let plan = decisions.plan(slots.into_iter(), &knowledge, (true, shown), |number, decision| {
            kept.insert(number, decision.clone());
            true
        });
        for (slot, number) in plan.decide {
            self.slots[slot.number as usize - 1].0.decision = number;
        }
        for (slot, leaving) in plan.close {
            let index = slot.number as usize - 1;
            self.slots[index].0.closed = Some(leaving);
            self.edges.remove(&slot.key);
            if leaving == Leaving::Nothing {
                self.connections.retain(|_, connection| connection.slot != index);
            }
        }
        self.decisions = Some(decisions);
    }

    fn scrape(&mut self) {
        self.look(true);
        let (snapshot, decisions) = (self.snapshot(), self.decisions());
        let labels = Labels { snapshot: &snapshot, decisions: &decisions, names: None };
        let readings: Vec<EdgeReading> = self
            .slots
            .iter()
            .filter(|(of, _)| of.slot.born > 0)
            .map(|(of, bytes)| EdgeReading {
                slot: of.slot.number,
                key: Some(of.slot.key),
                born: of.slot.born,
                decision: of.decision,
                closed: of.closed,
                packets: PacketCounters { tx_bytes: *bytes, ..PacketCounters::default() },
                tcp: TcpCounters::default(),
            })
            .collect();
        let mut shown: BTreeMap<String, u64> = BTreeMap::new();
        for (key, totals) in sum(&readings, &labels).totals {
            *shown.entry(key.peer.pod.to_owned()).or_default() += totals.tx_bytes;
        }
        assert_eq!(shown.values().sum::<u64>(), self.sent, "every byte is somewhere and once");
        for (series, before) in &self.shown {
            assert!(shown.get(series).is_some_and(|now| now >= before), "{series} went back from {before}: {shown:?}");
        }
        for name in ["red", "blue"] {
            let (says, truth) = [&shown, &self.truth].map(|of| of.get(name).copied().unwrap_or(0)).into();
            assert!(says <= truth, "{name} has {says} bytes that were {truth}");
        }
        self.shown = shown;
        for (slot, heir) in go_on(&readings, &labels).merge {
            let (slot, heir) = (slot.number as usize - 1, heir.number as usize - 1);
            self.slots[heir].1 += std::mem::take(&mut self.slots[slot].1);
            if self.edges.get(&self.slots[slot].0.slot.key) == Some(&slot) {
                self.edges.remove(&self.slots[slot].0.slot.key);
            }
            self.slots[slot].0.slot.born = 0;
            for connection in self.connections.values_mut().filter(|connection| connection.slot == slot) {
                connection.slot = heir;
            }
        }
        // Whoever comes after a scrape finds few: an open one for each edge, a closed one for each name that it had.
        let left = self.slots.iter().filter(|(of, _)| of.slot.born > 0).count();
        let names: HashSet<u64> = self.slots.iter().map(|(of, _)| of.decision).collect();
        assert!(left <= ADDRESSES.len() * (names.len() + 1), "{left} slots for {} names", names.len());
        self.decisions = Some(decisions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn series_never_go_back_and_nobody_has_what_was_anothers(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::default();
        events.iter().for_each(|event| world.step(event));
        world.step(&Event::Scrape);
    }

    #[test]
    fn who_is_always_known_has_all_that_was_its_own(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::default();
        for event in &events {
            let event = match event.clone() {
                Event::Begin { name, address, .. } => Event::Begin { name, address, told: true, seen: true },
                other => other,
            };
            world.step(&event);
        }
        world.step(&Event::Scrape);
        for name in ["red", "blue"] {
            prop_assert_eq!(world.shown.get(name), world.truth.get(name));
        }
        prop_assert_eq!(world.shown.get("").copied().unwrap_or(0), world.nobodys);
    }
}
