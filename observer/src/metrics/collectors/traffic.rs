//! Traffic of containers: reads the edge table, attributes, writes series.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use crate::{
    identity::Snapshot,
    kernel::EdgeTable,
    metrics::{AgentMetrics, Collect, Direction, Exposition, catalogue as c},
    traffic::{self, PeerDetail, Retirement, Series, SeriesKey, Totals},
};

/// Writes the traffic series, and tells housekeeping what it has shown for the last time.
pub struct TrafficCollector {
    table: Arc<EdgeTable>,
    detail: PeerDetail,
    agent: Arc<AgentMetrics>,
    shown: Sender<Retirement>,
    unknown: HashMap<u64, Instant>,
}

impl TrafficCollector {
    /// A collector of this table.
    #[must_use]
    pub fn new(table: Arc<EdgeTable>, detail: PeerDetail, agent: Arc<AgentMetrics>, shown: Sender<Retirement>) -> Self {
        Self { table, detail, agent, shown, unknown: HashMap::new() }
    }

    fn tell(&self, series: &Series<'_>) {
        let losses = self.table.losses();
        self.agent.edges(series.edges, self.table.capacity().into());
        self.agent.edges_overflowed(losses.overflowed);
        for (reason, total) in [
            ("table_full", losses.overflowed),
            ("no_spare_slot", losses.unattributed),
            ("insert_failed", losses.insert_failed),
            ("unparsed", losses.unparsed),
        ] {
            self.agent.kernel_losses(reason, total);
        }
        for (totals, tell) in [
            (&series.unattributed, AgentMetrics::unattributed as fn(&AgentMetrics, Direction, u64, u64)),
            (&series.pending, AgentMetrics::pending),
        ] {
            tell(&self.agent, Direction::Transmit, totals.tx_bytes, totals.tx_packets);
            tell(&self.agent, Direction::Receive, totals.rx_bytes, totals.rx_packets);
        }
    }
}

impl Collect for TrafficCollector {
    fn name(&self) -> &'static str {
        "traffic"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let readings = self.table.read();
        let series = traffic::sum(&readings, snapshot, self.detail);
        let mut sorted: Vec<(&SeriesKey<'_>, &Totals)> = series.totals.iter().collect();
        sorted.sort_unstable_by_key(|(key, _)| **key);
        for (key, totals) in sorted {
            write(key, totals, out);
        }
        self.tell(&series);
        let retirement = Retirement::after_scrape(&readings, snapshot, &mut self.unknown, Instant::now());
        if !retirement.is_empty() {
            // Without housekeeping the agent is ending, and the next one finds them again.
            let _ = self.shown.send(retirement);
        }
        Ok(())
    }
}

fn write(key: &SeriesKey<'_>, totals: &Totals, out: &mut Exposition) {
    let port = if key.port == 0 { String::new() } else { key.port.to_string() };
    let peer = &key.peer;
    for (direction, bytes, packets) in [
        (Direction::Transmit, totals.tx_bytes, totals.tx_packets),
        (Direction::Receive, totals.rx_bytes, totals.rx_packets),
    ] {
        let labels = [
            key.namespace,
            key.pod,
            key.container,
            direction.as_str(),
            key.protocol,
            peer.kind.as_str(),
            peer.container,
            peer.namespace,
            peer.pod,
            peer.workload_kind,
            peer.workload,
            // Names of external peers come from DNS, which is not observed yet.
            "",
            &port,
            key.role,
        ];
        out.family(&c::TRAFFIC_BYTES).sample(labels, bytes);
        out.family(&c::TRAFFIC_PACKETS).sample(labels, packets);
    }
    if totals.tcp_opened > 0 {
        let labels = [
            key.namespace,
            key.pod,
            key.container,
            key.role,
            peer.kind.as_str(),
            peer.container,
            peer.namespace,
            peer.pod,
            peer.workload_kind,
            peer.workload,
            "",
            &port,
        ];
        out.family(&c::TCP_CONNECTIONS_OPENED).sample(labels, totals.tcp_opened);
    }
}
