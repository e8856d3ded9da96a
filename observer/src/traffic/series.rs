//! From edges to series: edges with the same labels are one series. Pure.

use observer_common::{
    edge::{EdgeKey, Role, flags},
    tcp::{TcpEvents, TcpTimes},
};

use super::{
    attribute::{Peer, PeerKind, peer_key, protocol_name, role_name},
    decide::Decisions,
};
use crate::{
    dns::Names,
    hash::FastMap,
    identity::{Owner, Snapshot},
    kernel::EdgeReading,
};

/// The protocol whose connections are counted, too.
const TCP: &str = "tcp";

/// The labels of a traffic series, without the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey<'a> {
    /// `namespace`.
    pub namespace: &'a str,
    /// `pod`.
    pub pod: &'a str,
    /// `container`; empty for the pod's own cgroup and the pause container.
    pub container: &'a str,
    /// `protocol`.
    pub protocol: &'static str,
    /// The `peer_*` labels.
    pub peer: Peer<'a>,
    /// `port`: the server side's, 0 where there is none.
    pub port: u16,
    /// `role`.
    pub role: &'static str,
}

impl SeriesKey<'_> {
    /// The samples that these labels have in one scrape. Histograms are by container and kind of peer, and no cost of one
    /// series.
    #[must_use]
    pub fn samples(&self, totals: &Totals) -> Samples {
        /// Bytes and packets in two directions.
        const PACKETS: u16 = 0b1111;
        /// Connections opened and active. There is room for them from the first packet on, because they are the rule.
        const CONNECTIONS: u16 = 0b11 << 4;
        /// What is not there before it happens: failures by reason, segments sent again, resets in two directions.
        const RARE: u32 = 6;
        if self.protocol != TCP {
            return Samples(PACKETS);
        }
        let TcpEvents { failures, retransmitted, resets_sent, resets_received, .. } = totals.tcp;
        let rare = failures.into_iter().chain([retransmitted, resets_sent, resets_received]);
        let rare = rare.zip(RARE..).fold(0, |bits, (total, bit)| bits | u16::from(total > 0) << bit);
        Samples(PACKETS | CONNECTIONS | rare)
    }
}

/// Which samples a series has, a bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Samples(u16);

impl Samples {
    /// How many.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.0.count_ones() as u64
    }

    /// Those of two series that are shown as one.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What the edges of a series have counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// TCP connections, and how well they went.
    pub tcp: TcpEvents,
}

/// Labels of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimesKey<'a> {
    /// Namespace of the observed container.
    pub namespace: &'a str,
    /// Its pod.
    pub pod: &'a str,
    /// Its name.
    pub container: &'a str,
    /// What the other side is.
    pub peer: PeerKind,
}

/// All series of one scrape.
#[derive(Debug, Default)]
pub struct Series<'a> {
    /// By labels.
    pub totals: FastMap<SeriesKey<'a>, Totals>,
    /// The same labels, each once, in the order of their lowest slots: mostly that in which they came.
    pub order: Vec<SeriesKey<'a>>,
    /// How long TCP connections take: by container and kind of peer, so that there are not many of them. No budget folds
    /// them, and a peer that one folds keeps its kind here.
    pub times: FastMap<TimesKey<'a>, TcpTimes>,
    /// What belongs to no container at all: no slot was left.
    pub unattributed: Totals,
    /// What belongs to cgroups that nobody knows yet. It is in no series until somebody does, because a series must
    /// not go back when its cgroup gets its name.
    pub pending: Totals,
    /// Edges in use, of all capacity.
    pub edges: u64,
    /// Cgroups that have counters but no name: newer than the snapshot, or gone before anybody saw them.
    pub unknown_cgroups: Vec<u64>,
}

impl Totals {
    fn add(&mut self, reading: &EdgeReading) {
        self.tx_bytes += reading.packets.tx_bytes;
        self.tx_packets += reading.packets.tx_packets;
        self.rx_bytes += reading.packets.rx_bytes;
        self.rx_packets += reading.packets.rx_packets;
        self.tcp.add(&reading.tcp.events);
    }
}

/// What labels are made from.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Who has which cgroup.
    pub snapshot: &'a Snapshot,
    /// Who the peers were decided to be.
    pub decisions: &'a Decisions,
    /// The names of external peers that were decided.
    pub names: Option<&'a Names>,
}

impl<'a> Labels<'a> {
    /// The labels of a reading whose cgroup is `owner`'s.
    #[must_use]
    pub fn of(&self, key: &EdgeKey, decision: u64, owner: &Owner<'a>) -> SeriesKey<'a> {
        let mut peer = self.decisions.get(decision).map_or(Peer::of_kind(PeerKind::Other), |decision| decision.peer());
        if let Some(names) = self.names
            && peer.kind == PeerKind::External
            && key.role() != Role::Server
        {
            peer.name = names.of(&peer_key(key));
        }
        SeriesKey {
            namespace: &owner.sandbox.namespace,
            pod: &owner.sandbox.name,
            container: owner.container.map_or("", |container| container.name.as_str()),
            protocol: protocol_name(key),
            peer,
            port: key.port,
            role: role_name(key.role()),
        }
    }
}

/// Sums readings into series. Every byte of every reading, but those of pods that are not to be observed, is in exactly
/// one series, in `pending`, or in `unattributed`. Peers are who they were decided to be.
#[must_use]
pub fn sum<'a>(readings: &[EdgeReading], labels: &Labels<'a>) -> Series<'a> {
    let snapshot = labels.snapshot;
    let mut series = Series::default();
    for reading in readings {
        let Some(key) = &reading.key else {
            series.unattributed.add(reading);
            continue;
        };
        if key.flags & flags::OVERFLOW == 0 {
            series.edges += 1;
        }
        let Some(owner) = snapshot.by_cgroup(key.cgroup) else {
            if snapshot.is_left_out(key.cgroup) {
                continue;
            }
            series.unknown_cgroups.push(key.cgroup);
            series.pending.add(reading);
            continue;
        };
        let labels = labels.of(key, reading.decision, &owner);
        let totals = series.totals.entry(labels).or_insert_with(|| {
            series.order.push(labels);
            Totals::default()
        });
        totals.add(reading);
        let TcpTimes { connect, rtt } = &reading.tcp.times;
        // Most edges of short life and all that are not TCP have none.
        if connect.count() + rtt.count() > 0 {
            let SeriesKey { namespace, pod, container, peer, .. } = labels;
            let times = series.times.entry(TimesKey { namespace, pod, container, peer: peer.kind }).or_default();
            times.connect.add(connect);
            times.rtt.add(rtt);
        }
    }
    series.unknown_cgroups.sort_unstable();
    series.unknown_cgroups.dedup();
    series
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use observer_common::counters::PacketCounters;
    use observer_common::tcp::{BUCKETS, FAILURES, Histogram, Payload, TcpCounters};

    use super::super::attribute::Knowledge;
    use super::super::attribute::{
        PeerDetail, View, external_peer,
        tests::{over_loopback, snapshot, to},
    };
    use super::*;
    use crate::dns::Budget;
    use crate::sandbox::{AttachPoint, Sandbox};

    fn reading(slot: u32, key: Option<EdgeKey>, bytes: u64) -> EdgeReading {
        EdgeReading {
            slot,
            key,
            born: 5,
            decision: 0,
            closed: None,
            packets: PacketCounters { tx_bytes: bytes, tx_packets: 1, rx_bytes: bytes * 2, rx_packets: 2 },
            tcp: tcp(bytes),
        }
    }

    fn knowledge(snapshot: &Snapshot) -> Knowledge<'_> {
        Knowledge { snapshot, book: None, detail: PeerDetail::Pod, now: 9 }
    }

    /// Decides for all of them, as before a scrape.
    fn decided(readings: &mut [EdgeReading], snapshot: &Snapshot, detail: PeerDetail) -> Decisions {
        let mut decisions = Decisions::new(Vec::new());
        let knowledge = Knowledge { snapshot, book: None, detail, now: 9 };
        let slots: Vec<_> = readings.iter().filter_map(EdgeReading::slot_use).collect();
        for (slot, number) in decisions.plan(slots.into_iter(), &knowledge, (true, true), |_, _| true).decide {
            readings.iter_mut().find(|reading| reading.slot == slot.number).unwrap().decision = number;
        }
        decisions
    }

    /// Every word is the number, so that one that is left out shows.
    fn tcp(number: u64) -> TcpCounters {
        let durations = Histogram { buckets: [number; BUCKETS], sum_us: number };
        let events = TcpEvents {
            established: number,
            closed: number,
            opened: number,
            failures: [number; FAILURES],
            retransmitted: number,
            resets_sent: number,
            resets_received: number,
        };
        TcpCounters { events, times: TcpTimes { connect: durations, rtt: durations }, payload: Payload::default() }
    }

    #[test]
    fn who_is_left_out_is_in_no_series_but_as_a_peer() {
        let all = snapshot();
        let [web, db, host] = [0, 1, 2].map(|at| all.sandboxes()[at].clone());
        let waiting = observer_point(20);
        let db = Arc::new(Sandbox { attach_points: vec![waiting], ..Sandbox::clone(&db) });
        let snapshot = Snapshot::with_others(vec![host], vec![web, db], HashSet::new(), String::new());
        let mut readings = [
            reading(1, Some(to(12, "fd00:88::3")), 10),
            reading(2, Some(to(31, "10.88.0.2")), 100),
            reading(3, Some(to(21, "10.88.0.2")), 1_000),
        ];
        let decisions = decided(&mut readings, &snapshot, PeerDetail::Pod);
        let series = sum(&readings, &Labels { snapshot: &snapshot, decisions: &decisions, names: None });
        let shown: Vec<_> =
            series.totals.iter().map(|(key, totals)| (key.pod, key.peer.pod, totals.tx_bytes)).collect();
        assert_eq!(shown, [("host", "web", 100)]);
        assert_eq!((series.pending.tx_bytes, series.unknown_cgroups), (1_000, vec![21]), "db waits for its name");
        let owner = snapshot.by_cgroup(31).unwrap();
        let view = View::at(&over_loopback(31, 13), &owner, &knowledge(&snapshot), 1);
        assert_eq!(view.peer.pod, "web");
    }

    fn observer_point(cgroup_id: u64) -> AttachPoint {
        AttachPoint { cgroup_id, path: "/x".into() }
    }

    #[test]
    fn every_byte_is_somewhere_and_once() {
        let snapshot = snapshot();
        let mut readings = [
            reading(0, None, 1),
            reading(1, Some(over_loopback(12, 13)), 10),
            reading(2, Some(over_loopback(1012, 13)), 100),
            reading(3, Some(to(12, "10.88.0.1")), 1_000),
            reading(4, Some(to(777, "10.88.0.1")), 10_000),
        ];
        let decisions = decided(&mut readings, &snapshot, PeerDetail::Workload);
        let series = sum(&readings, &Labels { snapshot: &snapshot, decisions: &decisions, names: None });
        let tx: u64 = series.totals.values().map(|totals| totals.tx_bytes).sum();
        assert_eq!((tx, series.pending.tx_bytes, series.unattributed.tx_bytes), (1_110, 10_000, 1));
        let app_to_proxy = series.totals.values().find(|totals| totals.tx_bytes == 110).unwrap();
        assert_eq!(app_to_proxy.tcp, tcp(110).events);
        let mut times = TcpTimes::default();
        for of in series.times.values() {
            times.connect.add(&of.connect);
            times.rtt.add(&of.rtt);
        }
        assert_eq!(times, tcp(1_110).times, "of containers that have a name");
        assert_eq!(series.totals.len(), 2, "the two edges of app to proxy are one series");
        assert_eq!(series.unknown_cgroups, [777]);
        assert_eq!(series.edges, 4);
    }

    #[test]
    fn an_external_peer_has_the_name_that_was_decided() {
        let snapshot = snapshot();
        let mut names = Names::new(Vec::new(), Vec::new(), Budget::default());
        let (named, nameless) = (to(12, "93.184.216.34"), to(12, "93.184.216.35"));
        names.learn(12, "www.example.org", &["93.184.216.34".parse().unwrap(), "10.88.0.1".parse().unwrap()], 1);
        let keys = [named, nameless, to(12, "10.88.0.1")];
        names.settle(keys.iter().map(|key| (peer_key(key), external_peer(key, &knowledge(&snapshot)))), &snapshot);
        let mut readings = [1, 2, 3].map(|slot| reading(slot, Some(keys[slot as usize - 1]), 10u64.pow(slot)));
        let decisions = decided(&mut readings, &snapshot, PeerDetail::Workload);
        let series = sum(&readings, &Labels { snapshot: &snapshot, decisions: &decisions, names: Some(&names) });
        let mut found: Vec<_> = series.totals.iter().map(|(key, totals)| (totals.tx_bytes, key.peer.name)).collect();
        found.sort_unstable();
        assert_eq!(found, [(10, "www.example.org"), (100, ""), (1_000, "")]);
    }
}
