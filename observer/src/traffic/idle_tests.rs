use std::collections::HashSet;

use observer_common::{
    counters::PacketCounters,
    decision::kind,
    edge::{EdgeKey, Role},
    tcp::{TcpCounters, TcpEvents},
};

use super::super::{
    attribute::tests::{container, sandbox, to},
    decide::Decisions,
};
use super::*;
use crate::{identity::Snapshot, sandbox::ContainerKind};

const EXTERNAL: u64 = kind::EXTERNAL + 1;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const TCP: u8 = libc::IPPROTO_TCP as u8;
/// Edges that fit.
const CAPACITY: u32 = 20;

/// A client at this address of the server in cgroup 11.
fn client(slot: u32, protocol: u8) -> EdgeReading {
    let key = EdgeKey { protocol, flags: Role::Server as u8, port: 53, ..to(11, &format!("93.184.216.{slot}")) };
    EdgeReading {
        slot,
        key: Some(key),
        born: 1,
        decision: EXTERNAL,
        closed: None,
        packets: PacketCounters { rx_packets: 1, ..PacketCounters::default() },
        tcp: TcpCounters::default(),
    }
}

/// So many clients that speak datagrams.
fn clients(number: u32) -> Vec<EdgeReading> {
    (1..=number).map(|slot| client(slot, UDP)).collect()
}

struct Watch {
    idle: Idle,
    start: Instant,
}

impl Watch {
    /// Begins with what a first scrape has shown.
    fn new(readings: &[EdgeReading]) -> Self {
        let mut watch = Self { idle: Idle::new(32_768), start: Instant::now() };
        assert_eq!(watch.after(0, readings), [0; 0], "nothing is idle yet");
        watch
    }

    /// The slots that are chosen so many seconds later.
    fn after(&mut self, seconds: u64, readings: &[EdgeReading]) -> Vec<u32> {
        self.merging(0, seconds, readings)
    }

    fn merging(&mut self, merging: usize, seconds: u64, readings: &[EdgeReading]) -> Vec<u32> {
        let pod = sandbox("dns", 10, "10.88.0.2", vec![container("app", 11, ContainerKind::Application)]);
        let snapshot = Snapshot::new(vec![pod], HashSet::new(), String::new());
        let decisions = Decisions::new(Vec::new());
        let labels = Labels { snapshot: &snapshot, decisions: &decisions, names: None };
        let now = self.start + Duration::from_secs(seconds);
        let chosen = self.idle.choose(readings, &labels, (merging, CAPACITY), now);
        assert!(chosen.iter().all(|(_, leaving)| *leaving == Leaving::Connections));
        chosen.into_iter().map(|(slot, _)| slot.number).collect()
    }
}

#[test]
fn an_edge_that_alone_says_who_called_keeps_its_place() {
    let at = |port| {
        let mut readings = clients(16);
        readings.iter_mut().filter_map(|reading| reading.key.as_mut()).for_each(|key| key.port = port);
        readings
    };
    assert_eq!(Watch::new(&at(32_768)).after(10_000, &at(32_768)), [0; 0]);
    assert_eq!(Watch::new(&at(32_767)).after(60, &at(32_767)).len(), 4);
}

#[test]
fn a_table_that_has_room_keeps_what_is_idle() {
    let readings = clients(15);
    let mut watch = Watch::new(&readings);
    assert_eq!(watch.after(10_000, &readings), [0; 0], "three quarters are in use, and no more");
}

#[test]
fn what_is_idle_goes_until_there_is_room_and_the_first_of_a_series_stays() {
    let readings = clients(16);
    let mut watch = Watch::new(&readings);
    assert_eq!(watch.after(59, &readings), [0; 0]);
    assert_eq!(watch.after(60, &readings), [2, 3, 4, 5]);
    assert_eq!(watch.merging(4, 121, &readings), [0; 0], "they are on their way");
    assert_eq!(watch.after(62, &readings), [0; 0], "there was room: all begins anew");
    let (all, closed) = (clients(20), Some(Leaving::Connections));
    let half: Vec<_> =
        (all.iter()).map(|one| EdgeReading { closed: closed.filter(|_| one.slot > 2), ..*one }).collect();
    let mut watch = Watch::new(&half);
    assert_eq!(watch.after(60, &half), [2], "those that are closed need no choice");
}

#[test]
fn all_that_goes_finds_its_heir_and_the_series_stay_as_they_are() {
    let pod = sandbox("dns", 10, "10.88.0.2", vec![container("app", 11, ContainerKind::Application)]);
    let snapshot = Snapshot::new(vec![pod], HashSet::new(), String::new());
    let decisions = Decisions::new(Vec::new());
    let labels = Labels { snapshot: &snapshot, decisions: &decisions, names: None };
    let mut readings = clients(16);
    for reading in readings.iter_mut().filter(|reading| reading.slot % 2 == 0) {
        reading.key = reading.key.map(|key| EdgeKey { port: 54, ..key });
    }
    let before = super::super::sum(&readings, &labels);
    let chosen = Watch::new(&readings).after(60, &readings);
    assert_eq!(chosen, [3, 4, 5, 6]);
    for reading in readings.iter_mut().filter(|reading| chosen.contains(&reading.slot)) {
        reading.closed = Some(Leaving::Connections);
    }
    let merge = super::super::go_on(&readings, &labels).merge;
    assert_eq!(
        merge.iter().map(|(slot, heir)| (slot.number, heir.number)).collect::<Vec<_>>(),
        [(3, 1), (4, 2), (5, 1), (6, 2)]
    );
    for (slot, heir) in merge {
        let at = readings.iter().position(|reading| reading.slot == slot.number).unwrap();
        let gone = readings.remove(at).packets.rx_packets;
        let heir = readings.iter_mut().find(|reading| reading.slot == heir.number).unwrap();
        heir.packets.rx_packets += gone;
    }
    let after = super::super::sum(&readings, &labels);
    assert_eq!((after.totals, after.order), (before.totals, before.order));
}

#[test]
fn it_goes_on_below_the_mark_at_which_it_began() {
    let mut readings = clients(16);
    let mut watch = Watch::new(&readings);
    readings.truncate(13);
    assert_eq!(watch.after(60, &readings), [2]);
    let readings = clients(13);
    let mut watch = Watch::new(&readings);
    assert_eq!(watch.after(60, &readings), [0; 0], "nothing has begun");
}

#[test]
fn who_was_idle_for_longest_goes_first_and_who_speaks_stays() {
    let mut readings = clients(16);
    let mut watch = Watch::new(&readings);
    readings[1].packets.tx_bytes += 1;
    readings[2].born = 2;
    assert_eq!(watch.after(50, &readings), [0; 0]);
    assert_eq!(watch.after(60, &readings), [4, 5, 6, 7], "not one that has spoken, nor one that is another edge's now");
    let mut speaking = clients(16);
    assert_eq!(Watch::new(&speaking).after(60, &speaking).len(), 4);
    let mut watch = Watch::new(&speaking);
    speaking.iter_mut().for_each(|reading| reading.packets.rx_packets += 1);
    assert_eq!(watch.after(60, &speaking), [0; 0], "all have spoken");
}

#[test]
fn connections_that_live_keep_their_slot() {
    let tcp = |slot, established, closed| {
        let events = TcpEvents { established, closed, ..TcpEvents::default() };
        EdgeReading { tcp: TcpCounters { events, ..TcpCounters::default() }, ..client(slot, TCP) }
    };
    let chosen = |established, closed, seconds| {
        let readings: Vec<_> = (1..=16).map(|slot| tcp(slot, established, closed)).collect();
        Watch::new(&readings).after(seconds, &readings)
    };
    assert_eq!(chosen(2, 1, 1_000_000), [0; 0], "one rests");
    assert_eq!(chosen(2, 2, 29), [0; 0]);
    assert_eq!(chosen(2, 2, 30), [2, 3, 4, 5]);
    assert_eq!(chosen(0, 0, 599), [0; 0], "nobody knows whether there are any");
    assert_eq!(chosen(0, 0, 600), [2, 3, 4, 5]);
}

#[test]
fn a_series_of_its_own_stays() {
    let mut readings = clients(16);
    for reading in &mut readings {
        reading.key = reading.key.map(|key| EdgeKey { port: reading.slot as u16, ..key });
    }
    let mut watch = Watch::new(&readings);
    assert_eq!(watch.after(1_000_000, &readings), [0; 0]);
}

#[test]
fn what_nobody_knows_or_has_decided_is_left_alone_and_spare_slots_are() {
    let with = |change: fn(&mut EdgeReading)| {
        let mut readings = clients(17);
        readings[1..].iter_mut().for_each(change);
        Watch::new(&readings).after(60, &readings)
    };
    let key = |reading: &mut EdgeReading, change: fn(EdgeKey) -> EdgeKey| reading.key = reading.key.map(change);
    assert_eq!(with(|_| {}).len(), 5);
    assert_eq!(with(|reading| reading.decision = 0), [0; 0]);
    let nobody = clients(17).into_iter().map(|mut reading| {
        key(&mut reading, |key| EdgeKey { cgroup: 99, ..key });
        reading
    });
    let nobody: Vec<_> = nobody.collect();
    assert_eq!(Watch::new(&nobody).after(60, &nobody), [0; 0]);
    let spare = clients(17).into_iter().map(|mut reading| {
        key(&mut reading, |key| EdgeKey { flags: key.flags | flags::OVERFLOW, ..key });
        reading
    });
    let spare: Vec<_> = spare.collect();
    assert_eq!(Watch::new(&spare).after(60, &spare), [0; 0], "they are no part of the table");
}

#[test]
fn any_count_is_another_sum() {
    let before = client(1, TCP);
    let mut words: Vec<EdgeReading> = Vec::new();
    let mut with = |change: &dyn Fn(&mut EdgeReading)| {
        let mut reading = before;
        change(&mut reading);
        words.push(reading);
    };
    with(&|reading| reading.packets.tx_bytes += 1);
    with(&|reading| reading.packets.tx_packets += 1);
    with(&|reading| reading.packets.rx_bytes += 1);
    with(&|reading| reading.packets.rx_packets += 1);
    with(&|reading| reading.tcp.events.opened += 1);
    with(&|reading| reading.tcp.events.established += 1);
    with(&|reading| reading.tcp.events.closed += 1);
    with(&|reading| reading.tcp.events.failures[4] += 1);
    with(&|reading| reading.tcp.events.retransmitted += 1);
    with(&|reading| reading.tcp.events.resets_sent += 1);
    with(&|reading| reading.tcp.events.resets_received += 1);
    assert!(words.iter().all(|reading| sum(reading) != sum(&before)));
}
