//! TCP quality, from the series of the traffic.

use std::sync::Arc;

use observer_common::tcp::{BOUNDS_US, Failure, Histogram, TcpTimes};

use super::traffic::Row;
use crate::{
    hash::FastMap,
    identity::Snapshot,
    kernel::probes::Misses,
    metrics::{AgentMetrics, Bounds, Collect, Direction, Exposition, catalogue as c},
    traffic::TimesKey,
};

/// Tells the agent's own metrics what the TCP probe was not run for.
pub struct TcpMissesCollector {
    misses: Misses,
    agent: Arc<AgentMetrics>,
}

impl TcpMissesCollector {
    /// A collector of what these programs missed.
    #[must_use]
    pub const fn new(misses: Misses, agent: Arc<AgentMetrics>) -> Self {
        Self { misses, agent }
    }
}

impl Collect for TcpMissesCollector {
    fn name(&self) -> &'static str {
        "tcp_misses"
    }

    fn collect(&mut self, _: &Snapshot, _: &mut Exposition) -> anyhow::Result<()> {
        if let Some(total) = self.misses.total()? {
            self.agent.kernel_losses("tcp_missed", total);
        }
        Ok(())
    }
}

/// One of the histograms.
type Part = fn(&TcpTimes) -> &Histogram;

/// Writes the histograms, sorted by labels, family after family.
pub(super) fn write_times(times: &FastMap<TimesKey<'_>, TcpTimes>, out: &mut Exposition) {
    let mut times: Vec<(&TimesKey<'_>, &TcpTimes)> = times.iter().collect();
    times.sort_unstable_by_key(|(key, _)| **key);
    let bounds = Bounds::new(BOUNDS_US.map(|bound| f64::from(bound) / 1e6));
    let of: [(_, Part); 2] = [(&c::TCP_CONNECT_DURATION, |times| &times.connect), (&c::TCP_RTT, |times| &times.rtt)];
    for (family, of) in of {
        let mut family = out.family(family);
        for (key, histogram) in times.iter().map(|(key, times)| (key, of(times))).filter(|(_, of)| of.count() > 0) {
            let labels = [key.namespace, key.pod, key.container, key.peer.as_str()];
            family.buckets(labels, &bounds, &histogram.buckets, histogram.sum_us as f64 / 1e6);
        }
    }
}

/// The rest, family after family, because looking one up costs as much as a line.
pub(super) fn write_events(rows: &[Row<'_>], out: &mut Exposition) {
    let rows = || rows.iter().map(|row| (row, row.key.role, &row.totals.tcp));
    let mut family = out.family(&c::TCP_CONNECTIONS_ACTIVE);
    for (row, role, tcp) in rows().filter(|(_, _, tcp)| tcp.established > 0) {
        // The two are read one after another, while connections begin and end.
        family.sample_of(&row.own, [role], &row.peer, [], tcp.established.saturating_sub(tcp.closed));
    }
    let mut family = out.family(&c::TCP_CONNECT_FAILURES);
    for (row, role, tcp) in rows() {
        for (failure, failures) in Failure::ALL.into_iter().zip(tcp.failures).filter(|(_, failures)| *failures > 0) {
            family.sample_of(&row.own, [role], &row.peer, [reason(failure)], failures);
        }
    }
    let mut family = out.family(&c::TCP_RETRANSMITTED);
    for (row, role, tcp) in rows().filter(|(_, _, tcp)| tcp.retransmitted > 0) {
        family.sample_of(&row.own, [role], &row.peer, [], tcp.retransmitted);
    }
    let mut family = out.family(&c::TCP_RESETS);
    for (row, role, tcp) in rows() {
        let resets = [(Direction::Transmit, tcp.resets_sent), (Direction::Receive, tcp.resets_received)];
        for (direction, resets) in resets.into_iter().filter(|(_, resets)| *resets > 0) {
            family.sample_of(&row.own, [role], &row.peer, [direction.as_str()], resets);
        }
    }
}

const fn reason(failure: Failure) -> &'static str {
    match failure {
        Failure::Refused => "refused",
        Failure::Timeout => "timeout",
        Failure::Reset => "reset",
        Failure::Unreachable => "unreachable",
        Failure::Other => "other",
    }
}
