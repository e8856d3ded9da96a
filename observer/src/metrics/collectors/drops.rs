//! Packets that the kernel dropped: reads the probe, attributes, writes series.

use std::{collections::HashMap, sync::Arc, time::Instant};

use anyhow::Context;

use crate::{
    identity::Snapshot,
    kernel::{
        Program,
        probes::drops::{DropLosses, DropsProbe, Reasons},
    },
    metrics::{Collect, Direction, Exposition, catalogue as c},
    traffic::{self, DropMemory, Drops, NodeFacts},
};

/// Writes the series of drops, and forgets what it has shown for the last time.
pub struct DropCollector {
    probe: DropsProbe,
    node: NodeFacts,
    memory: DropMemory,
}

impl DropCollector {
    /// A collector of this probe.
    #[must_use]
    pub fn new(probe: DropsProbe, node: NodeFacts) -> Self {
        Self { probe, node, memory: DropMemory::default() }
    }

    /// The probe's program.
    #[must_use]
    pub fn program(&self) -> Arc<Program> {
        Arc::clone(self.probe.program())
    }
}

impl Collect for DropCollector {
    fn name(&self) -> &'static str {
        "drops"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let readings = self.probe.read().context("reading the map of dropped packets")?;
        let losses = self.probe.losses().context("reading the counts of packets that have no owner")?;
        let drops = traffic::attribute_drops(&readings, snapshot, self.node, &mut self.memory, Instant::now());
        write(&drops, self.probe.reasons(), &losses, out);
        for key in &drops.spent {
            self.probe.forget(key);
        }
        // What makes room first; and what fails leaves the rest as it is.
        let folded = drops.fold.iter().map(|key| self.probe.fold(key)).fold(Ok(()), Result::and);
        let go_on = drops.go_on.iter().map(|(key, heir)| self.probe.hand_over(key, heir)).fold(Ok(()), Result::and);
        let folded = folded.context("folding drops that nobody owns; they stay as they are");
        folded.and(go_on.context("keeping drops for who goes on with their series"))
    }
}

fn write(drops: &Drops<'_>, reasons: &Reasons, losses: &DropLosses, out: &mut Exposition) {
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut family = out.family(&c::PACKET_DROPS);
    for (series, packets) in &drops.totals {
        let direction = if series.receive { Direction::Receive } else { Direction::Transmit };
        let reason = names.entry(series.reason).or_insert_with(|| reasons.name(series.reason));
        let labels = [series.namespace, series.pod, series.container, direction.as_str(), reason.as_str()];
        family.sample(labels, *packets);
    }
    let mut family = out.family(&c::AGENT_UNATTRIBUTED_DROPS);
    for (cause, packets) in [
        ("node", Some(drops.node)),
        ("unknown", Some(drops.unknown)),
        ("unspecified", Some(losses.unspecified)),
        ("no_owner", Some(losses.no_owner)),
        ("table_full", Some(losses.table_full)),
        ("interrupted", losses.interrupted),
    ] {
        family.sample_if([cause], packets);
    }
    out.family(&c::AGENT_PENDING_DROPS).sample([], drops.pending);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::DropSeries;

    #[test]
    fn every_drop_is_written_once() {
        let series = |container, receive| DropSeries { namespace: "n", pod: "p", container, receive, reason: 9 };
        let totals = [(series("", true), 2), (series("c", false), 1)].into();
        let drops = Drops { totals, node: 3, pending: 4, ..Drops::default() };
        let losses = DropLosses { table_full: 5, ..DropLosses::default() };
        let mut out = Exposition::default();
        write(&drops, &Reasons::default(), &losses, &mut out);
        let text = String::from_utf8(out.take().concat()).unwrap();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "observer_agent_pending_drops 4",
                "observer_agent_unattributed_drops_total{cause=\"node\"} 3",
                "observer_agent_unattributed_drops_total{cause=\"unknown\"} 0",
                "observer_agent_unattributed_drops_total{cause=\"unspecified\"} 0",
                "observer_agent_unattributed_drops_total{cause=\"no_owner\"} 0",
                "observer_agent_unattributed_drops_total{cause=\"table_full\"} 5",
                "observer_packet_drops_total{namespace=\"n\",pod=\"p\",container=\"\",direction=\"receive\",reason=\"REASON_9\"} 2",
                "observer_packet_drops_total{namespace=\"n\",pod=\"p\",container=\"c\",direction=\"transmit\",reason=\"REASON_9\"} 1",
            ]
        );
    }
}
