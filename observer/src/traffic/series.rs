//! From edges to series: edges with the same labels are one series. Pure.

use std::collections::HashMap;

use observer_common::edge::flags;

use super::attribute::{Peer, PeerDetail, protocol_name, role_name};
use crate::{identity::Snapshot, kernel::EdgeReading};

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
    /// TCP connections.
    pub tcp_opened: u64,
}

/// All series of one scrape.
#[derive(Debug, Default)]
pub struct Series<'a> {
    /// By labels.
    pub totals: HashMap<SeriesKey<'a>, Totals>,
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
        self.tcp_opened += reading.rare.tcp_opened;
    }
}

/// Sums readings into series. Every byte of every reading is in exactly one series, in `pending`, or in
/// `unattributed`.
#[must_use]
pub fn sum<'a>(readings: &[EdgeReading], snapshot: &'a Snapshot, detail: PeerDetail) -> Series<'a> {
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
            series.unknown_cgroups.push(key.cgroup);
            series.pending.add(reading);
            continue;
        };
        let labels = SeriesKey {
            namespace: &owner.sandbox.namespace,
            pod: &owner.sandbox.name,
            container: owner.container.map_or("", |container| container.name.as_str()),
            protocol: protocol_name(key.protocol),
            peer: Peer::of(key, &owner, snapshot, detail),
            port: key.port,
            role: role_name(key.role()),
        };
        series.totals.entry(labels).or_default().add(reading);
    }
    series.unknown_cgroups.sort_unstable();
    series.unknown_cgroups.dedup();
    series
}

#[cfg(test)]
mod tests {
    use observer_common::counters::{PacketCounters, RareCounters};
    use observer_common::edge::EdgeKey;

    use super::super::attribute::tests::{over_loopback, snapshot, to};
    use super::*;

    fn reading(slot: u32, key: Option<EdgeKey>, bytes: u64) -> EdgeReading {
        EdgeReading {
            slot,
            key,
            packets: PacketCounters { tx_bytes: bytes, tx_packets: 1, rx_bytes: bytes * 2, rx_packets: 2 },
            rare: RareCounters { tcp_opened: 1 },
        }
    }

    #[test]
    fn every_byte_is_somewhere_and_once() {
        let snapshot = snapshot();
        let readings = [
            reading(0, None, 1),
            reading(1, Some(over_loopback(12, 13)), 10),
            reading(2, Some(over_loopback(1012, 13)), 100),
            reading(3, Some(to(12, "10.88.0.1")), 1_000),
            reading(4, Some(to(777, "10.88.0.1")), 10_000),
        ];
        let series = sum(&readings, &snapshot, PeerDetail::Workload);
        let tx: u64 = series.totals.values().map(|totals| totals.tx_bytes).sum();
        assert_eq!((tx, series.pending.tx_bytes, series.unattributed.tx_bytes), (1_110, 10_000, 1));
        assert_eq!(series.totals.len(), 2, "the two edges of app to proxy are one series");
        assert_eq!(series.unknown_cgroups, [777]);
        assert_eq!(series.edges, 4);
    }
}
