//! Traffic of containers: reads the edge table, attributes, writes series.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use super::tcp;
use crate::{
    clock::monotonic,
    dns::Feed,
    identity::Snapshot,
    kernel::{Accounting, EdgeTable, ephemeral_min},
    metrics::{AgentMetrics, Collect, Direction, Exposition, LabelText, catalogue as c},
    traffic::{
        self, Budget, BudgetUse, Decider, Idle, Knowledge, Labels, Limits, Retirement, Series, SeriesKey, Task, Totals,
        Urgent,
    },
};

const TRANSMIT: &str = Direction::Transmit.as_str();
const RECEIVE: &str = Direction::Receive.as_str();

/// Writes the traffic series, and tells housekeeping what it has shown for the last time.
pub struct TrafficCollector {
    table: Arc<EdgeTable>,
    decider: Arc<Decider>,
    agent: Arc<AgentMetrics>,
    dns: Arc<Feed>,
    tasks: Sender<Task>,
    accounting: Accounting,
    unknown: HashMap<u64, Instant>,
    idle: Idle,
    budget: Budget,
    /// Slots that were shown for the last time and are still to be taken back, with their births. Nobody may see them
    /// again: a series that somebody else goes on with would count them, and then go back.
    leaving: HashSet<(u32, u64)>,
    /// What this scrape shows for the last time.
    retirement: Option<Retirement>,
}

impl TrafficCollector {
    /// A collector of this table, with the peers that `decider` decides and the names of external peers from `dns`.
    #[must_use]
    pub fn new(
        table: Arc<EdgeTable>,
        decider: Arc<Decider>,
        limits: Limits,
        agent: Arc<AgentMetrics>,
        dns: Arc<Feed>,
        tasks: Sender<Task>,
        accounting: Accounting,
    ) -> Self {
        Self {
            table,
            decider,
            agent,
            dns,
            tasks,
            accounting,
            unknown: HashMap::new(),
            idle: Idle::new(ephemeral_min()),
            budget: Budget::new(limits),
            leaving: HashSet::new(),
            retirement: None,
        }
    }

    fn tell(&self, series: &Series<'_>, usage: BudgetUse) {
        self.agent.series(usage.shown, usage.folded, self.budget.limits().series);
        let losses = self.table.losses();
        self.agent.edges(series.edges, self.table.capacity().into());
        self.agent.edges_overflowed(losses.overflowed);
        for (reason, total) in [
            ("table_full", losses.overflowed),
            ("no_spare_slot", losses.unattributed),
            ("insert_failed", losses.insert_failed),
            ("unparsed", losses.unparsed),
            ("connections_full", losses.connections_full),
            ("older_connections_full", losses.older_full),
            ("end_unknown", losses.end_unknown),
        ] {
            self.agent.kernel_losses(reason, total);
        }
        for (totals, tell) in [
            (&series.unattributed, AgentMetrics::unattributed as fn(&AgentMetrics, Direction, u64, Option<u64>)),
            (&series.pending, AgentMetrics::pending),
        ] {
            let packets = |packets| (self.accounting == Accounting::Packets).then_some(packets);
            tell(&self.agent, Direction::Transmit, totals.tx_bytes, packets(totals.tx_packets));
            tell(&self.agent, Direction::Receive, totals.rx_bytes, packets(totals.rx_packets));
        }
    }
}

impl Collect for TrafficCollector {
    fn name(&self) -> &'static str {
        "traffic"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let mut readings = self.table.read();
        let mut left = HashSet::new();
        readings.retain(|reading| {
            let slot = (reading.slot, reading.born);
            let leaves = self.leaving.contains(&slot);
            if leaves {
                left.insert(slot);
            }
            !leaves
        });
        self.leaving = left;
        // After the counters: the answer that led to a peer came before its first packet.
        let mut dns = self.dns.read();
        let keys = readings.iter().filter_map(|reading| reading.key.as_ref());
        let addresses = keys.filter(|key| key.loopback_peer().is_none());
        let peers = self.decider.peers().map(|peers| peers.open());
        let knowledge = Knowledge { snapshot, book: peers.as_ref(), detail: self.decider.detail(), now: monotonic() };
        let external = |key| (traffic::peer_key(key), traffic::external_peer(key, &knowledge));
        let changes = dns.names.settle(addresses.map(external), snapshot);
        dns.keep(&changes);
        drop(peers);
        let (settled, mut close) = self.decider.show(&mut readings, snapshot);
        close.extend(traffic::lost_peers(&readings, snapshot));
        if !close.is_empty() {
            // Without housekeeping the agent is ending.
            let _ = self.tasks.send(Task::Urgent(Urgent::Close(close)));
        }
        let labels = Labels { snapshot, decisions: &settled.decisions, names: Some(&dns.names) };
        let mut series = traffic::sum(&readings, &labels);
        let usage = self.budget.apply(&mut series);
        let mut sorted: Vec<(&SeriesKey<'_>, &Totals)> = series.totals.iter().collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        let (unix, sorted): (Vec<_>, Vec<_>) = sorted.into_iter().partition(|(key, _)| key.protocol == traffic::UNIX);
        write_unix(&unix, out);
        let rows: Vec<_> = sorted.into_iter().map(Row::new).collect();
        match self.accounting {
            Accounting::Packets => write_packets(&rows, out),
            Accounting::Sockets => write_payload(&rows, out),
        }
        write_opened(&rows, out);
        tcp::write_events(&rows, out);
        tcp::write_times(&series.times, out);
        let names = dns.names.usage();
        out.family(&c::AGENT_PEER_NAMES).sample([], names.used);
        out.family(&c::AGENT_PEER_NAMES_FOLDED).sample([], names.folded);
        out.family(&c::AGENT_PEER_NAMES_FORGOTTEN).sample([], names.forgotten);
        self.tell(&series, usage);
        self.agent.kernel_losses("decisions_full", settled.lost());
        if let Some(usage) = self.decider.peers().map(|peers| peers.usage()) {
            out.family(&c::AGENT_PEER_ADDRESSES).sample([], usage.addresses);
            out.family(&c::AGENT_PEER_ADDRESSES_FOLDED).sample([], usage.folded);
        }
        let goes_on = traffic::go_on(&readings, &labels);
        let now = Instant::now();
        let places = (goes_on.merge.len(), self.table.capacity());
        let idle = self.idle.choose(&readings, &labels, places, now);
        if !idle.is_empty() {
            let _ = self.tasks.send(Task::Urgent(Urgent::Evict(idle)));
        }
        for (slot, cgroup) in &goes_on.adopt {
            let changes = dns.names.inherit(&traffic::peer_key(&slot.key), *cgroup);
            dns.keep(&changes);
        }
        let retirement = Retirement::after_scrape(&readings, goes_on, snapshot, &mut self.unknown, now);
        self.retirement = Some(retirement).filter(|retirement| !retirement.is_empty());
        Ok(())
    }

    fn scraped(&mut self) {
        // Without housekeeping the agent is ending.
        let _ = self.tasks.send(Task::EndMissed);
        if let Some(retirement) = self.retirement.take() {
            self.leaving.extend(retirement.slots.iter().copied());
            // Without housekeeping the agent is ending, and the next one finds them again.
            let _ = self.tasks.send(Task::Retire(retirement));
        }
    }
}

/// A series, and the labels that all its samples have, written once.
pub(super) struct Row<'a> {
    pub(super) key: &'a SeriesKey<'a>,
    pub(super) totals: &'a Totals,
    /// Whose it is.
    pub(super) own: LabelText<3>,
    /// The `peer_*` labels, and the port.
    pub(super) peer: LabelText<8>,
}

impl<'a> Row<'a> {
    fn new((key, totals): (&'a SeriesKey<'_>, &'a Totals)) -> Self {
        let family = &c::TCP_CONNECTIONS_OPENED;
        let mut digits = itoa::Buffer::new();
        let port = if key.port == 0 { "" } else { digits.format(key.port) };
        let [kind, container, namespace, pod, workload_kind, workload] = key.peer.labels();
        let peer = [kind, container, namespace, pod, workload_kind, workload, key.peer.name, port];
        let own = LabelText::of(family, 0, [key.namespace, key.pod, key.container]);
        Self { key, totals, own, peer: LabelText::of(family, 4, peer) }
    }
}

/// Family after family, because looking one up costs as much as a line.
fn write_packets(rows: &[Row<'_>], out: &mut Exposition) {
    let mut bytes = out.family(&c::TRAFFIC_BYTES);
    for Row { key, totals, own, peer } in rows {
        bytes.sample_of(own, [TRANSMIT, key.protocol], peer, [key.role], totals.tx_bytes);
        bytes.sample_of(own, [RECEIVE, key.protocol], peer, [key.role], totals.rx_bytes);
    }
    let mut packets = out.family(&c::TRAFFIC_PACKETS);
    for Row { key, totals, own, peer } in rows {
        packets.sample_of(own, [TRANSMIT, key.protocol], peer, [key.role], totals.tx_packets);
        packets.sample_of(own, [RECEIVE, key.protocol], peer, [key.role], totals.rx_packets);
    }
}

/// Where sockets are counted, a series' bytes are payload, and there are no packets.
fn write_payload(rows: &[Row<'_>], out: &mut Exposition) {
    let mut family = out.family(&c::TCP_PAYLOAD_BYTES);
    for Row { key, totals, own, peer } in rows {
        family.sample_of(own, [key.role], peer, [TRANSMIT], totals.tx_bytes);
        family.sample_of(own, [key.role], peer, [RECEIVE], totals.rx_bytes);
    }
}

fn write_opened(rows: &[Row<'_>], out: &mut Exposition) {
    let mut family = out.family(&c::TCP_CONNECTIONS_OPENED);
    for Row { key, totals, own, peer } in rows.iter().filter(|row| row.totals.tcp.opened > 0) {
        family.sample_of(own, [key.role], peer, [], totals.tcp.opened);
    }
}

fn write_unix(series: &[(&SeriesKey<'_>, &Totals)], out: &mut Exposition) {
    let mut family = out.family(&c::UNIX_SOCKET_BYTES);
    for (key, totals) in series {
        family.sample(unix_labels(key, Direction::Transmit), totals.tx_bytes);
        family.sample(unix_labels(key, Direction::Receive), totals.rx_bytes);
    }
    let mut family = out.family(&c::UNIX_SOCKET_MESSAGES);
    for (key, totals) in series {
        family.sample(unix_labels(key, Direction::Transmit), totals.tx_packets);
        family.sample(unix_labels(key, Direction::Receive), totals.rx_packets);
    }
}

fn unix_labels<'a>(key: &SeriesKey<'a>, direction: Direction) -> [&'a str; 10] {
    let [kind, container, namespace, pod, workload_kind, workload] = key.peer.labels();
    let direction = direction.as_str();
    [key.namespace, key.pod, key.container, direction, kind, container, namespace, pod, workload_kind, workload]
}

#[cfg(test)]
mod tests {
    use observer_common::tcp::TcpEvents;

    use super::*;
    use crate::traffic::{Peer, PeerKind};

    fn key(protocol: &'static str) -> SeriesKey<'static> {
        let peer = Peer::of_kind(PeerKind::External);
        SeriesKey { namespace: "n", pod: "p", container: "c", protocol, peer, port: 1, role: "client" }
    }

    fn written(key: &SeriesKey<'_>, totals: &Totals) -> u64 {
        let mut out = Exposition::default();
        let all = [(key, totals)];
        if key.protocol == traffic::UNIX {
            write_unix(&all, &mut out);
        }
        let rows = all.map(Row::new);
        if key.protocol != traffic::UNIX {
            write_packets(&rows, &mut out);
        }
        write_opened(&rows, &mut out);
        tcp::write_events(&rows, &mut out);
        let text = String::from_utf8(out.take().concat()).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).count() as u64
    }

    #[test]
    fn the_budget_knows_how_many_samples_there_are() {
        let udp = Totals { tx_bytes: 1, ..Totals::default() };
        for protocol in ["udp", traffic::UNIX] {
            assert_eq!(written(&key(protocol), &udp), key(protocol).samples(&udp).count());
        }
        let counters = TcpEvents { established: 1, opened: 1, ..TcpEvents::default() };
        let well = Totals { tcp: counters, ..Totals::default() };
        let mut failures = [0; observer_common::tcp::FAILURES];
        failures[3] = 1;
        let unreachable = Totals { tcp: TcpEvents { failures, ..well.tcp }, ..well };
        let again = Totals { tcp: TcpEvents { retransmitted: 1, ..well.tcp }, ..well };
        let resets = Totals { tcp: TcpEvents { resets_sent: 1, resets_received: 1, ..well.tcp }, ..well };
        let failures = [1; observer_common::tcp::FAILURES];
        let all = Totals { tcp: TcpEvents { failures, retransmitted: 1, ..resets.tcp }, ..well };
        let counts = [well, unreachable, again, resets, all].map(|totals| {
            let count = key("tcp").samples(&totals).count();
            assert_eq!(written(&key("tcp"), &totals), count, "{totals:?}");
            count
        });
        assert_eq!(counts, [6, 7, 7, 8, 14]);
    }
}
